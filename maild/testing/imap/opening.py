"""Opening and closing a mailbox: SELECT and EXAMINE with CONDSTORE and QRESYNC (RFC 7162), CLOSE, UNSELECT.

Each returns the text of the tagged OK; it raises `Refused` for NO and `BadSyntax` for BAD.
"""

from __future__ import annotations

from dataclasses import dataclass

from maild.testing.faults import Reply
from maild.testing.imap.session import Policy, Selected, Session
from maild.testing.imap.syntax import Arguments, BadSyntax, Ranges, set_of
from maild.testing.store import SYSTEM_FLAGS, Mailbox


@dataclass(frozen=True, slots=True)
class _Resync:
    """QRESYNC parameters of SELECT (RFC 7162 §3.2.5); message sequence match data is read and not used."""

    validity: int
    modseq: int
    known: Ranges | None


async def select(session: Session, arguments: Arguments, reply: Reply, *, examine: bool) -> str:
    """SELECT and EXAMINE; a failed one leaves no mailbox open (RFC 9051 §6.3.2)."""
    arguments.space()
    name = arguments.mailbox()
    resync = _select_parameters(session, arguments)
    arguments.end()
    if session.selected is not None:
        session.selected = None
        if session.policy.has("QRESYNC"):
            await reply.send(b"* OK [CLOSED] Previous mailbox closed\r\n")
    mailbox = session.store.mailbox(name)
    read_only = examine or mailbox.read_only
    session.selected = Selected(mailbox, read_only=read_only)
    for line in _select_lines(session.policy, mailbox, read_only):
        await reply.send(line)
    if resync is not None and resync.validity == mailbox.uidvalidity and mailbox.modseqs:
        for line in _resync_lines(session.selected, resync):
            await reply.send(line)
    return "[READ-ONLY] Opened" if read_only else "[READ-WRITE] Opened"


async def close(session: Session, arguments: Arguments, _reply: Reply, *, expunge: bool) -> str:
    """CLOSE, which expunges without telling, and UNSELECT, which does not."""
    arguments.end()
    selected = session.open_box
    session.selected = None
    if expunge and not selected.read_only:
        selected.mailbox.expunge([message.uid for message in selected.mailbox if "\\Deleted" in message.flags])
    return "Closed"


def _select_parameters(session: Session, arguments: Arguments) -> _Resync | None:
    if not arguments.took(b" "):
        return None
    arguments.expect(b"(")
    resync = None
    while not arguments.took(b")"):
        word = arguments.word()
        if not session.policy.has(word) or word not in ("CONDSTORE", "QRESYNC"):
            raise BadSyntax(f"SELECT has no parameter {word}")
        session.wants_modseq()
        if word == "QRESYNC":
            if not session.qresync:
                raise BadSyntax("QRESYNC was not enabled")
            resync = _resync_parameters(arguments)
        arguments.took(b" ")
    return resync


def _resync_parameters(arguments: Arguments) -> _Resync:
    arguments.expect(b" (")
    validity = arguments.number()
    arguments.space()
    modseq = arguments.number()
    known = None
    if arguments.took(b" ") and arguments.at_ranges():
        known = arguments.ranges()
        arguments.took(b" ")
    if arguments.took(b"("):
        arguments.ranges()
        arguments.space()
        arguments.ranges()
        arguments.expect(b")")
    arguments.expect(b")")
    return _Resync(validity, modseq, known)


def _select_lines(policy: Policy, mailbox: Mailbox, read_only: bool) -> list[bytes]:
    known = " ".join((*SYSTEM_FLAGS, *mailbox.keywords))
    free = [flag for flag in sorted(mailbox.permanent_flags) if flag != "\\*"]
    free += [keyword for keyword in mailbox.keywords if "\\*" in mailbox.permanent_flags and keyword not in free]
    free += ["\\*"] if "\\*" in mailbox.permanent_flags else []
    unseen = next((n for n, message in enumerate(mailbox, 1) if "\\Seen" not in message.flags), 0)
    lines = [
        f"FLAGS ({known})",
        f"OK [PERMANENTFLAGS ({'' if read_only else ' '.join(free)})] Flags permitted",
        f"{len(mailbox)} EXISTS",
        "0 RECENT",
        *([f"OK [UNSEEN {unseen}] First unseen"] if unseen else []),
        f"OK [UIDVALIDITY {mailbox.uidvalidity}] UIDs valid",
        f"OK [UIDNEXT {mailbox.uidnext}] Predicted next UID",
    ]
    if policy.has("CONDSTORE"):
        code = f"HIGHESTMODSEQ {mailbox.highestmodseq}" if mailbox.modseqs else "NOMODSEQ"
        lines.append(f"OK [{code}] Mod-sequences")
    if policy.has("OBJECTID"):
        lines.append(f"OK [MAILBOXID ({mailbox.mailbox_id})] Mailbox")
    return [f"* {line}\r\n".encode() for line in lines]


def _resync_lines(selected: Selected, resync: _Resync) -> list[bytes]:
    gone = within(selected.mailbox.vanished_since(resync.modseq), resync.known)
    lines = [b"* VANISHED (EARLIER) %b\r\n" % set_of(gone)] if gone else []
    changed = [message for message in selected.mailbox if message.modseq > resync.modseq]
    wanted = set(within([message.uid for message in changed], resync.known))
    flags = (
        selected.flags_of(message, with_uid=True, with_modseq=True) for message in changed if message.uid in wanted
    )
    return lines + list(flags)


def within(uids: list[int], known: Ranges | None) -> list[int]:
    """Those of `uids` inside the ranges a client named; None means all."""
    if known is None:
        return uids
    bounds = [sorted((low or 0xFFFFFFFF, high or 0xFFFFFFFF)) for low, high in known]
    return [uid for uid in uids if any(low <= uid <= high for low, high in bounds)]
