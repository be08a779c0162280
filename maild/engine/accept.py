"""Accepting a message: whom it goes to, through which account, and what it looks like on the wire.

The message as it is stored is the message as it will be sent, but for line ends: what is added and what is taken out,
is so here, once. Nothing is guessed about recipients; what is not certain is refused, and nothing is stored.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from maild.config.senders import Sender, Senders
from maild.core.addresses import Address, AddressError, check_address, parse_address, parse_list
from maild.core.errors import MaildError, Scope
from maild.core.head import Message, decoded, disk_form, divide, encoded_phrase, shown
from maild.core.outgoing import AS_USUAL, Item, Notices, Recipient, Utf8

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SUBJECT_CHARACTERS = 200
_BCC = re.compile(rb"^(?:resent-)?bcc[ \t]*:", re.IGNORECASE | re.MULTILINE)
_SHOWN_OCTETS = 60


class Refused(MaildError):
    """The message cannot be accepted as it is; nothing was stored. Exit status 65 (EX_DATAERR)."""

    scope = Scope.MESSAGE


class NoAccount(MaildError):
    """No account is there to send it, or it cannot be told which one. Exit status 78 (EX_CONFIG)."""


class NoSuchAccount(NoAccount):
    """The command line names an account that cannot send. Exit status 64 (EX_USAGE), as with every other command."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line says about a message.

    `sender` is that of -f: None if it was not given, "" for the null reverse-path. `send_s` is when it may be sent
    first, in seconds since 1970 UTC.
    """

    recipients: tuple[str, ...] = ()
    take_from_head: bool = False
    sender: str | None = None
    full_name: str = ""
    account: str | None = None
    send_s: int | None = None
    notices: Notices = AS_USUAL


def prepared(raw: bytes, order: Order, senders: Senders, now_s: float) -> tuple[Item, bytes]:
    """The item, without an id, and the message in its disk form. Raises Refused, NoAccount."""
    message = divide(disk_form(raw))
    if not message.is_closed and message.fields and _BCC.search(message.body.partition(b"\n\n")[0]):
        line = message.body.partition(b"\n")[0][:_SHOWN_OCTETS].decode("utf-8", "replace")
        raise Refused(f"everybody would see the Bcc: the head ends before it, with {line!a}, which is no field")
    try:
        recipients = _recipients(message, order)
        account = _account(message, order, senders)
        sender = _reverse_path(message, order, account)
    except AddressError as exc:
        raise Refused(str(exc), "nothing was sent") from exc
    message = _completed(message.without("bcc", "resent-bcc", "return-path"), order, account, now_s)
    text = message.joined()
    due_s = max(order.send_s or 0, int(now_s) + (account.undo_s if order.send_s is None else 0))
    item = Item(
        id="",
        account=account.account,
        sender=sender,
        recipients=tuple(Recipient(address) for address in recipients),
        size_octets=len(text) + text.count(b"\n"),
        created_s=int(now_s),
        since_s=due_s,
        next_s=due_s,
        message_id=shown(message.first("message-id")),
        subject=decoded(message.first("subject"))[:_SUBJECT_CHARACTERS],
        is_8bit=not text.isascii(),
        utf8=_utf8(message, (sender, *recipients)),
        notices=order.notices,
    )
    return item, text


# -- recipients


def _recipients(message: Message, order: Order) -> list[str]:
    """Each once, in the order given: those of the command line, then those of the head."""
    found = [address for word in order.recipients for address in parse_list(word)]
    if order.take_from_head:
        if not message.is_closed:
            raise AddressError("the head is not divided from the body by an empty line, so a recipient could be missed")
        found += _of_head(message)
    if not found:
        raise AddressError("there is no recipient" + (" in To, Cc or Bcc" if order.take_from_head else ""))
    unique: dict[tuple[str, str], str] = {}
    for address in found:
        unique.setdefault(address.key, _on_the_wire(address))
    return list(dict.fromkeys(unique.values()))


def _of_head(message: Message) -> list[Address]:
    """To, Cc and Bcc; those of the Resent block where the message is resent (RFC 5322 §3.6.6)."""
    names = ("to", "cc", "bcc")
    if message.has(*(f"resent-{name}" for name in names)):
        if len(message.bodies("resent-from")) > 1 or len(message.bodies("resent-date")) > 1:
            raise AddressError("the message was resent more than once; give its recipients on the command line")
        names = ("resent-to", "resent-cc", "resent-bcc")
    return [address for body in message.bodies(*names) for address in parse_list(body)]


def _on_the_wire(address: Address) -> str:
    """With the domain in ASCII (IDNA 2008): every server takes that, and SMTPUTF8 is needed less often."""
    if address.domain.isascii():
        return str(check_address(address))
    import idna

    try:
        domain = idna.encode(address.domain, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError) as exc:
        raise AddressError(f"{address.domain!a} in {str(address)!a} is no domain: {exc}") from exc
    return str(check_address(Address(address.local, domain)))


# -- account and sender


def _account(message: Message, order: Order, senders: Senders) -> Sender:
    """By name, by -f, by From (or Sender), by default, or the only one there is."""
    if not senders.accounts:
        raise NoAccount("no account can send", "give one a section [accounts.NAME.smtp] with host")
    names = ", ".join(sender.account for sender in senders.accounts)
    if order.account is not None:
        if (named := _named(senders.accounts, order.account)) is None:
            raise NoSuchAccount(f"no account {order.account!r} can send", f"there are: {names}")
        return named
    for address in (order.sender or "", *_authors(message)):
        if (owner := _owner(senders.accounts, address)) is not None:
            return owner
    if (default := _named(senders.accounts, senders.default_account)) is not None:
        return default
    if len(senders.accounts) == 1:
        return senders.accounts[0]
    raise NoAccount(
        "no account has the sender's address",
        f"use -f or --account ({names}), or set default_account in the config",
    )


def _named(accounts: Iterable[Sender], name: str | None) -> Sender | None:
    return next((sender for sender in accounts if sender.account == name), None)


def _owner(accounts: Iterable[Sender], address: str) -> Sender | None:
    """Whose address it is, without regard to case: nobody has two that differ in it."""
    wanted = _comparable(address)
    return next((s for s in accounts if wanted and wanted in map(_comparable, s.addresses)), None)


def _comparable(address: str) -> str:
    """An address as it is compared; "" for what is none, such as the name of a local user."""
    try:
        return _on_the_wire(parse_address(address)).casefold()
    except AddressError:
        return ""


def _authors(message: Message) -> list[str]:
    """The addresses of Sender and From, of the Resent block first. Authors need not be readable, as recipients must."""
    found: list[str] = []
    for name in ("resent-sender", "resent-from", "sender", "from"):
        for body in message.bodies(name):
            try:
                found += [_on_the_wire(address) for address in parse_list(body)]
            except AddressError:
                continue
    return found


def _reverse_path(message: Message, order: Order, account: Sender) -> str:
    """-f, else the author, else the account's own address. A name without a domain (cron's) tells nothing."""
    if order.sender is not None and order.sender.strip() in ("", "<>"):
        return ""
    if order.sender is not None and "@" in order.sender:
        return _on_the_wire(parse_address(order.sender))
    authors = _authors(message) if order.sender is None else []
    return authors[0] if authors else _on_the_wire(parse_address(account.addresses[0]))


# -- what is added


def _completed(message: Message, order: Order, account: Sender, now_s: float) -> Message:
    """With From, Date and Message-ID, where they are missing (RFC 6409 §8)."""
    missing: list[tuple[str, str]] = []
    if not message.has("from"):
        name = f"{encoded_phrase(order.full_name)} " if order.full_name else ""
        missing.append(("From", f"{name}<{_on_the_wire(parse_address(account.addresses[0]))}>"))
    if not message.has("date"):
        missing.append(("Date", date_field(now_s)))
    if not message.has("message-id"):
        domain = _on_the_wire(parse_address(account.addresses[0])).rpartition("@")[2]
        missing.append(("Message-ID", f"<{int(now_s):x}.{os.urandom(10).hex()}@{domain}>"))
    return message.preceded_by(missing)


def _utf8(message: Message, addresses: Iterable[str]) -> Utf8:
    """Whether SMTPUTF8 is needed, or wanted: for a head that is not ASCII and is UTF-8 (RFC 6532 §3.1)."""
    if not all(address.isascii() for address in addresses):
        return "needed"
    octets = b"".join(field.octets for field in message.fields)
    try:
        return "" if octets.isascii() or not octets.decode() else "wanted"
    except UnicodeDecodeError:
        return ""


def date_field(seconds: float) -> str:
    """A time as in a Date field, in the local zone. `email.utils` would cost every start 20 ms."""
    local = time.localtime(seconds)
    sign, offset = "-" if local.tm_gmtoff < 0 else "+", abs(local.tm_gmtoff) // 60
    clock = time.strftime("%H:%M:%S", local)
    day = f"{_DAYS[local.tm_wday]}, {local.tm_mday} {_MONTHS[local.tm_mon - 1]} {local.tm_year}"
    return f"{day} {clock} {sign}{offset // 60:02d}{offset % 60:02d}"
