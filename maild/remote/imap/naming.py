"""Mailboxes being created, renamed and deleted, each with its subscription (RFC 9051 §6.3.4 to §6.3.8).

A subscription that the server refuses to change is no reason to fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from maild.core.errors import Rejected
from maild.core.model import Cursor, MailboxName, RemoteMailbox
from maild.core.names import encode_mutf7
from maild.remote.imap.box import read_cursor
from maild.remote.imap.listing import Mailbox, Names, object_id, understood, with_status
from maild.remote.imap.opening import finish_anyhow
from maild.remote.imap.session import ImapSession, ignore, quoted


def mailbox_of(levels: tuple[str, ...], names: Names) -> Mailbox:
    """How the server would write a mailbox. Raises Rejected for levels that it cannot."""
    separator = names.separator
    shown = "/".join(levels)
    if not levels or not all(levels):
        raise Rejected(f"mailbox {shown!a} cannot be on the server: a level of its name is empty", "rename it")
    if len(levels) > 1 and not separator:
        raise Rejected(f"mailbox {shown} cannot be on the server, which has no mailboxes inside mailboxes", "rename it")
    if separator and any(separator in level for level in levels):
        hint = f"the server divides levels by {separator!a}; rename it"
        raise Rejected(f"mailbox {shown} cannot be on the server: a level of its name holds {separator!a}", hint)
    if any("\ud800" <= character <= "\udfff" for character in shown):
        raise Rejected(f"mailbox {shown!a} cannot be on the server: its name is no text", "rename it")
    text = separator.join(levels)
    wire = "INBOX" if text.upper() == "INBOX" else text if names.is_utf8 else encode_mutf7(text).decode("ascii")
    quoted(wire)  # Rejected for what cannot be sent
    return Mailbox(wire, RemoteMailbox(MailboxName("INBOX" if wire == "INBOX" else text), levels))


def refuse_inbox(mailbox: Mailbox, done: str) -> None:
    """INBOX stays what it is: renaming it would move its messages (RFC 9051 §6.3.6)."""
    if mailbox.wire == "INBOX":
        raise Rejected(f"INBOX cannot be {done}")


async def create(session: ImapSession, wanted: Mailbox) -> Mailbox:
    """CREATE and SUBSCRIBE; one that is there already will do."""
    made = wanted
    try:
        reply = await session.run("CREATE", quoted(wanted.wire))
        if reply.tagged.code == "MAILBOXID":
            text = reply.tagged.argument.strip(b"()")
            made = replace(wanted, public=replace(wanted.public, object_id=object_id(text)))
    except Rejected as exc:
        if exc.code != "ALREADYEXISTS" and not await _is_there(session, wanted):
            raise Rejected(f"mailbox {wanted.public.name} cannot be created: {exc.text}", code=exc.code) from exc
    await finish_anyhow(session, session.launch("SUBSCRIBE", quoted(wanted.wire), collect=ignore))
    return made


async def _is_there(session: ImapSession, mailbox: Mailbox) -> bool | None:
    """Whether LIST shows it; None where the server refuses to tell."""
    try:
        events = (await session.run("LIST", '""', quoted(mailbox.wire))).events
    except Rejected:
        return None
    return any(known.wire == mailbox.wire for known in understood(events, ("*",), ()).known.values())


def below(old: Mailbox, new: Mailbox, names: Names) -> list[tuple[Mailbox, Mailbox]]:
    """The mailboxes inside one that is to be renamed, with their names afterwards."""
    if not names.separator:
        return []
    inside = [m for m in names.known.values() if m.wire.startswith(old.wire + names.separator)]
    return [(child, _moved(child, old, new)) for child in inside]


def _moved(child: Mailbox, old: Mailbox, new: Mailbox) -> Mailbox:
    name = MailboxName(new.public.name + child.public.name[len(old.public.name) :])
    levels = new.public.levels + child.public.levels[len(old.public.levels) :]
    wire = new.wire + child.wire[len(old.wire) :]
    return replace(child, wire=wire, public=replace(child.public, name=name, levels=levels))


async def rename(session: ImapSession, mailboxes: Sequence[tuple[Mailbox, Mailbox]]) -> None:
    """RENAME the first, which takes those inside along, then the subscriptions of all."""
    old, new = mailboxes[0]
    try:
        await session.run("RENAME", quoted(old.wire), quoted(new.wire))
    except Rejected as exc:
        text = f"mailbox {old.public.name} cannot be renamed to {new.public.name}: {exc.text}"
        raise Rejected(text, code=exc.code) from exc
    sent = [
        session.launch(name, quoted(wire), collect=ignore)
        for before, after in mailboxes
        for name, wire in (("UNSUBSCRIBE", before.wire), ("SUBSCRIBE", after.wire))
    ]
    for command in sent:
        await finish_anyhow(session, command)


async def delete(session: ImapSession, mailbox: Mailbox, seen: Cursor) -> bool:
    """DELETE and UNSUBSCRIBE, if STATUS tells right before that it is empty, and under the UIDNEXT of the cursor.

    IMAP has no DELETE that asks for this itself: what comes in between the two commands goes with the mailbox. So it is
    a round trip in which that can happen, and not a pass. One that is gone already will do.
    """
    try:
        if not await _is_untouched(session, mailbox, seen):
            return False
        await session.run("DELETE", quoted(mailbox.wire))
    except Rejected as exc:
        if exc.code != "NONEXISTENT" and await _is_there(session, mailbox) is not False:  # Dovecot's STATUS has no code
            raise Rejected(f"mailbox {mailbox.public.name} cannot be deleted: {exc.text}", code=exc.code) from exc
    await finish_anyhow(session, session.launch("UNSUBSCRIBE", quoted(mailbox.wire), collect=ignore))
    return True


async def _is_untouched(session: ImapSession, mailbox: Mailbox, seen: Cursor) -> bool:
    """Whether nothing is in the mailbox, and nothing came in since. What the server does not tell proves nothing."""
    if (known := read_cursor(seen)) is None:
        return False
    events = (await session.run("STATUS", quoted(mailbox.wire), "(MESSAGES UIDNEXT UIDVALIDITY)")).events
    (now,) = with_status([mailbox], events)
    validity, uidnext = now.public.epoch, now.public.next_uid
    is_same = (validity, uidnext) == (str(known["v"]), str(known["n"])) or (known["g"] and validity == str(known["v"]))
    return now.public.messages == 0 and bool(is_same)
