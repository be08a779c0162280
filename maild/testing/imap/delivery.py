"""Mail that comes in while the client is connected: APPEND from it (RFC 9051 §6.3.12), IDLE for everybody's (RFC 2177).

Each returns the text of the tagged OK; it raises `Refused` for NO and `BadSyntax` for BAD.
"""

from __future__ import annotations

import asyncio

from maild.testing.faults import Reply
from maild.testing.imap.messages import writable_target
from maild.testing.imap.session import Session
from maild.testing.imap.syntax import Arguments, BadSyntax, set_of
from maild.testing.store import Mailbox, Refused


async def append(session: Session, arguments: Arguments, _reply: Reply) -> str:
    """APPEND of one message, or of several where MULTIAPPEND is offered (RFC 3502); all or none."""
    arguments.space()
    name = arguments.mailbox()
    messages = [_append_one(session, arguments)]
    while arguments:
        if not session.policy.has("MULTIAPPEND"):
            raise BadSyntax("MULTIAPPEND is not offered")
        messages.append(_append_one(session, arguments))
    target = writable_target(session, name)
    if target.append_limit is not None and any(len(raw) > target.append_limit for _, _, raw in messages):
        raise Refused("TOOBIG", f"No message here has more than {target.append_limit} octets")
    uids = [session.store.deliver(target.name, raw, flags, date_s) for flags, date_s, raw in messages]
    if not session.policy.has("UIDPLUS"):
        return "Append completed"
    return f"[APPENDUID {target.uidvalidity} {set_of(uids).decode()}] Append completed"


def _append_one(session: Session, arguments: Arguments) -> tuple[list[str], int | None, bytes]:
    arguments.space()
    flags: list[str] = []
    date_s = None
    if arguments.starts(b"("):
        flags = arguments.flags()
        arguments.space()
    if arguments.starts(b'"'):
        date_s = arguments.date_time()
        arguments.space()
    is_binary = session.policy.has("BINARY") and arguments.took(b"~")  # literal8, RFC 3516 §4.4
    if not arguments.starts(b"{"):
        raise BadSyntax("APPEND takes a literal")
    raw = arguments.string()
    if not raw:
        raise Refused("", "An APPEND of nothing is given up")  # RFC 3502 §6.3.11
    if b"\0" in raw and not is_binary:
        raise BadSyntax("A literal holds no NUL")
    return flags, date_s, raw


async def idle(session: Session, arguments: Arguments, reply: Reply) -> str:
    """Tell every change of the open mailbox as it happens, until DONE."""
    arguments.end()
    changed = asyncio.Event()

    def notice(mailbox: Mailbox) -> None:
        if session.selected and mailbox is session.selected.mailbox:
            changed.set()

    ignore = session.store.listen(notice)
    done = asyncio.ensure_future(session.wire.line())
    try:
        if reply.forgets():
            session.updates()
        await reply.send(b"+ idling\r\n")
        changed.set()  # what came before the IDLE is told at once
        while not done.done() and not session.over:
            await _tell_when(changed, done, session, reply)
        return "Idle completed" if session.over else await _finish(session, done, reply)
    finally:
        ignore()
        if not done.cancel() and not done.cancelled():
            done.exception()  # seen, in case a push failed first


async def _tell_when(changed: asyncio.Event, done: asyncio.Future[bytes], session: Session, reply: Reply) -> None:
    """Wait for a change or the client's line, then send what is new."""
    change = asyncio.ensure_future(changed.wait())
    try:
        await asyncio.wait((change, done), return_when=asyncio.FIRST_COMPLETED)
    finally:
        change.cancel()
    changed.clear()
    for line in session.updates():
        await reply.send(line)
    await session.wire.flush()


async def _finish(session: Session, done: asyncio.Future[bytes], reply: Reply) -> str:
    line = await done
    if line.upper() != b"DONE":
        raise BadSyntax("Expected DONE")
    session.note("DONE")
    actions = session.faults.due("DONE", session.number)
    reply.add(actions)
    await reply.begin(actions)
    return "Idle completed"
