"""Which mailboxes an account has: LIST, with STATUS in it where the server can, and NAMESPACE (RFC 9051 §6.3.9).

A server that refuses an extension which it advertises, or answers it with nothing, is asked again without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import structlog

from maild.core.errors import ProtocolViolation, Rejected
from maild.core.model import MailboxName, RemoteMailbox
from maild.core.names import decode_mutf7, matches
from maild.remote.imap.answers import Reply
from maild.remote.imap.parse import Data, Event, Token, number, printable
from maild.remote.imap.session import Command, ImapSession, quoted

STATUS_WINDOW = 64  # STATUS commands sent ahead
_OBJECT_ID = re.compile(rb"[A-Za-z0-9_-]{1,255}")

log = structlog.get_logger()
_ROLES = {r.lower(): r for r in ("\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash")}
_UNSELECTABLE = frozenset({"\\noselect", "\\nonexistent"})


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mailbox as the server writes it (`wire`, unquoted) and as everybody else sees it."""

    wire: str
    public: RemoteMailbox
    is_selectable: bool = True
    is_subscribed: bool = False


@dataclass(slots=True)
class Names:
    """All that LIST told. `known` holds the selectable ones, wanted or not; `wanted` are those of the config.

    `left_out` are those that are not subscribed, and would be wanted otherwise.
    """

    known: dict[MailboxName, Mailbox] = field(default_factory=dict)
    wanted: list[Mailbox] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    present: set[MailboxName] = field(default_factory=set)
    left_out: set[MailboxName] = field(default_factory=set)
    separator: str = ""
    is_utf8: bool = False  # the server's names are raw UTF-8, not modified UTF-7

    def with_role(self, role: str) -> MailboxName | None:
        return next((m.public.name for m in self.known.values() if m.public.role == role), None)

    def roles(self) -> dict[str, RemoteMailbox]:
        """The first mailbox of each role."""
        found: dict[str, RemoteMailbox] = {}
        for mailbox in self.known.values():
            if mailbox.public.role:
                found.setdefault(mailbox.public.role, mailbox.public)
        return found

    def learn(self, mailbox: Mailbox) -> None:
        """It is there now."""
        self.known[mailbox.public.name] = mailbox
        self.present.add(mailbox.public.name)

    def forget(self, mailbox: Mailbox) -> None:
        """It is there no longer."""
        self.known.pop(mailbox.public.name, None)
        self.present.discard(mailbox.public.name)


async def list_mailboxes(
    session: ImapSession, when_sent: Callable[[], None] = lambda: None, *, subscribed: bool = False
) -> list[Event]:
    """All LIST and STATUS responses, at least one LIST. Raises ProtocolViolation where the server tells of none.

    `when_sent` is called each time when LIST has been sent and not been answered. With `subscribed` they tell, or LSUB
    responses do, which mailboxes are; raises Rejected where the server does not say.
    """
    events = await _listed_with_status(session, when_sent, subscribed=subscribed)
    if subscribed and not any(mailbox.is_subscribed for mailbox, _ in _all_listed(events)):
        events += (await session.run("LSUB", '""', '"*"')).events
    return events


async def _listed_with_status(session: ImapSession, when_sent: Callable[[], None], *, subscribed: bool) -> list[Event]:

    async def asked(*options: str) -> Reply:
        command = session.launch("LIST", '""', '"*"', *options)
        when_sent()
        return await session.finish(command)

    for options in _return_options(session, subscribed=subscribed):
        try:
            reply = await asked(f"RETURN ({options})")
        except Rejected:  # Proton Bridge
            log.debug("server.corrected", host=session.endpoint.host, reason="LIST with RETURN was refused")
            continue
        if reply.data("LIST"):  # strato answers nothing
            return reply.events
    reply = await asked()
    if not reply.data("LIST"):
        session.drop()
        raise ProtocolViolation(
            f"{session.protocol.server} lists no mailbox at all, not even INBOX", "nothing is taken as deleted"
        )
    return reply.events


def _return_options(session: ImapSession, *, subscribed: bool) -> Iterator[str]:
    """What to ask for with an extended LIST, from the most to the least."""
    if not (session.has("LIST-EXTENDED") or session.has("LIST-STATUS") or session.has("SPECIAL-USE")):
        return
    special = ["SPECIAL-USE"] if session.has("SPECIAL-USE") else []
    special += ["SUBSCRIBED"] if subscribed and session.has("LIST-EXTENDED") else []
    if session.has("LIST-STATUS"):
        if session.has("OBJECTID"):
            yield " ".join([*special, f"STATUS ({status_items(session)} MAILBOXID)"])
        yield " ".join([*special, f"STATUS ({status_items(session)})"])
    elif special:
        yield " ".join(special)


def status_items(session: ImapSession) -> str:
    has_modseq = session.has("CONDSTORE") or "QRESYNC" in session.enabled
    return "MESSAGES UIDNEXT UIDVALIDITY" + (" HIGHESTMODSEQ" if has_modseq else "")


async def ask_status(session: ImapSession, mailboxes: Sequence[Mailbox]) -> list[Event]:
    """STATUS for each mailbox, a window at a time, for servers without LIST-STATUS."""
    items = status_items(session)
    if session.has("OBJECTID"):
        events = await _ask_status(session, mailboxes, f"({items} MAILBOXID)")
        if any(_status(event) is not None for event in events):
            return events
    return await _ask_status(session, mailboxes, f"({items})")


async def _ask_status(session: ImapSession, mailboxes: Sequence[Mailbox], items: str) -> list[Event]:
    events: list[Event] = []
    for start in range(0, len(mailboxes), STATUS_WINDOW):
        sent = [session.launch("STATUS", quoted(m.wire), items) for m in mailboxes[start : start + STATUS_WINDOW]]
        for command in sent:
            try:
                events += (await session.finish(command)).events
            except Rejected as exc:
                log.debug("server.corrected", host=session.endpoint.host, reason=exc.text)
    return events


def with_status(mailboxes: Iterable[Mailbox], events: Iterable[Event]) -> list[Mailbox]:
    """The mailboxes with what STATUS told of them."""
    told = {wire: items for event in events if (status := _status(event)) is not None for wire, items in [status]}
    if any(b"MAILBOXID" in items and not object_id(items[b"MAILBOXID"]) for items in told.values()):
        for items in told.values():  # Cyrus 3.6 answers STATUS with memory it has freed: another each time
            items.pop(b"MAILBOXID", None)
    return [_with_items(mailbox, told[mailbox.wire]) if mailbox.wire in told else mailbox for mailbox in mailboxes]


def _status(event: Event) -> tuple[str, dict[bytes, Token]] | None:
    if not (isinstance(event, Data) and event.name == "STATUS" and len(event.tokens) >= 2):
        return None
    name, items = event.tokens[0], event.tokens[1]
    if not (isinstance(name, bytes) and isinstance(items, list)):
        return None
    return wire_name(name), {
        k.upper(): v for k, v in zip(items[::2], items[1::2], strict=False) if isinstance(k, bytes)
    }


def _with_items(mailbox: Mailbox, items: dict[bytes, Token]) -> Mailbox:
    validity, uidnext, modseq, messages = (
        number(items.get(name, b"0")) for name in (b"UIDVALIDITY", b"UIDNEXT", b"HIGHESTMODSEQ", b"MESSAGES")
    )
    public = replace(
        mailbox.public,
        mark=mark_of(validity, uidnext, modseq, messages),
        messages=messages if messages >= 0 and b"MESSAGES" in items else None,
        epoch=str(validity) if validity > 0 else "",
        next_uid=str(uidnext) if uidnext > 0 else "",
        object_id=object_id(items.get(b"MAILBOXID")),
    )
    return replace(mailbox, public=public)


def object_id(token: Token) -> str:
    """A MAILBOXID in its parentheses (RFC 8474 §4), or "" for none and for what cannot be one (§7)."""
    inner = token[0] if isinstance(token, list) and token else token
    return inner.decode() if isinstance(inner, bytes) and _OBJECT_ID.fullmatch(inner) else ""


def mark_of(uidvalidity: int, uidnext: int, modseq: int, messages: int) -> str | None:
    """The state of a mailbox. Without mod-sequences a count proves nothing: flags may have changed."""
    good = uidvalidity > 0 and uidnext > 0 and modseq > 0 and messages >= 0
    return f"{uidvalidity}:{uidnext}:{modseq}:{messages}" if good else None


def wire_name(name: bytes) -> str:
    text = name.decode("utf-8", "surrogateescape")
    return "INBOX" if text.upper() == "INBOX" else text


def understood(
    events: Sequence[Event], patterns: tuple[str, ...], foreign: tuple[str, ...], *, subscribed_only: bool = False
) -> Names:
    """Sort out what LIST told: what is there, what the patterns want, what cannot be used and why.

    `subscribed_only`: of these, INBOX and those that LIST or LSUB told to be subscribed.
    """
    names = Names()
    raw = encoded = False
    subscribed = {mailbox.wire for mailbox, _ in _all_listed(events, "LIST", "LSUB") if mailbox.is_subscribed}
    for mailbox, separator in _all_listed(events):
        names.separator = separator if mailbox.wire == "INBOX" and separator else names.separator or separator
        names.present.add(mailbox.public.name)
        raw, encoded = raw or not mailbox.wire.isascii(), encoded or mailbox.public.name != mailbox.wire
        if mailbox.is_selectable:
            is_wanted = _is_wanted(mailbox, patterns, foreign)
            if is_wanted and subscribed_only and mailbox.wire not in {*subscribed, "INBOX"}:
                names.left_out.add(mailbox.public.name)
                is_wanted = False
            _sort_in(names, mailbox, is_wanted=is_wanted)
    names.is_utf8 = raw and not encoded
    return names


def _sort_in(names: Names, mailbox: Mailbox, *, is_wanted: bool) -> None:
    name = mailbox.public.name
    if not _is_sendable(mailbox.wire):
        if is_wanted:
            names.unusable[printable(os.fsencode(mailbox.wire))] = "its name is neither UTF-8 nor modified UTF-7"
    elif (first := names.known.setdefault(name, mailbox)) is mailbox:
        names.wanted += [mailbox] if is_wanted else []
    elif first.wire != mailbox.wire and is_wanted:
        names.unusable[mailbox.wire] = f"its name reads like that of another mailbox, {name}"


def _is_wanted(mailbox: Mailbox, patterns: tuple[str, ...], foreign: tuple[str, ...]) -> bool:
    """Other people's and shared mailboxes only if a pattern names them: the plain `*` means one's own."""
    if any(mailbox.wire.startswith(prefix) for prefix in foreign):
        patterns = tuple(p for p in patterns if p != "*")
    return matches(mailbox.public.name, patterns)


def _all_listed(events: Iterable[Event], *names: str) -> Iterator[tuple[Mailbox, str]]:
    """What LIST told, or these responses; whatever LSUB names is subscribed."""
    for event in events:
        if isinstance(event, Data) and event.name in (names or ("LIST",)):
            listed = _listed(event.tokens)
            if listed is not None:
                mailbox, separator = listed
                is_subscribed = mailbox.is_subscribed or (event.name == "LSUB" and mailbox.is_selectable)
                yield replace(mailbox, is_subscribed=is_subscribed), separator


def _listed(tokens: list[Token]) -> tuple[Mailbox, str] | None:
    """One LIST response (RFC 9051 §7.3.1) as a mailbox and its separator, "" for NIL; None for what is no mailbox."""
    if len(tokens) < 3 or not isinstance(tokens[0], list):
        return None
    attributes = {t.decode("ascii", "replace").lower() for t in tokens[0] if isinstance(t, bytes)}
    name = tokens[2] if isinstance(tokens[2], bytes) else b"NIL" if tokens[2] is None else b""
    is_cut = len(tokens) > 3 and isinstance(tokens[3], bytes) and not tokens[1]  # an unquoted name with a space
    if is_cut or not name:
        return None
    wire = wire_name(name)
    decoded = decode_mutf7(name) if wire != "INBOX" else "INBOX"
    text = wire if decoded is None else decoded
    separator = tokens[1].decode("utf-8", "surrogateescape") if isinstance(tokens[1], bytes) else ""
    levels = tuple(text.split(separator)) if separator else (text,)
    role = next((_ROLES[a] for a in sorted(attributes) if a in _ROLES), "")
    public = RemoteMailbox(MailboxName(text), levels, role)
    is_selectable = not attributes & _UNSELECTABLE
    return Mailbox(wire, public, is_selectable, "\\subscribed" in attributes), separator


def _is_sendable(wire: str) -> bool:
    """Whether a mailbox name can be sent back to the server, and be written down."""
    return not any(c in "\r\n\0" or "\ud800" <= c <= "\udfff" for c in wire)


async def foreign_prefixes(session: ImapSession, command: Command | None) -> tuple[str, ...]:
    """Prefixes of the namespaces that are not one's own (RFC 2342 §5: personal, other users', shared)."""
    if command is None:
        return ()
    try:
        data = (await session.finish(command)).data("NAMESPACE")
    except Rejected as exc:
        log.debug("server.corrected", host=session.endpoint.host, reason=exc.text)
        return ()
    if not data:
        return ()
    prefixes: list[str] = []
    for group in data[0].tokens[1:3]:
        for entry in group if isinstance(group, list) else []:
            if isinstance(entry, list) and entry and isinstance(entry[0], bytes) and entry[0]:
                prefixes.append(entry[0].decode("utf-8", "surrogateescape"))
    return tuple(prefixes)
