"""NOTIFY (RFC 5465): the client is told of changes in all mailboxes, whatever it does and without asking for them.

Events are taken as they come: STATUS for a mailbox in which something changed, LIST for one that came, went or was
renamed. The fault name `"TELL"` is one such message, so a test can lose them or hold them back.
"""

from __future__ import annotations

import asyncio

from maild.testing.faults import Reply
from maild.testing.imap.session import Session
from maild.testing.imap.syntax import Arguments, BadSyntax, encode_name, string
from maild.testing.store import Mailbox, Refused
from maild.testing.wire import ConnectionEnded

_EVENTS = {"MESSAGENEW", "MESSAGEEXPUNGE", "FLAGCHANGE", "MAILBOXNAME"}


class Telling:
    """What one client has been told of, from its NOTIFY SET on, until `stop`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._names = {id(mailbox): mailbox.name for mailbox in session.store.mailboxes}
        self._due: list[bytes] = []
        self._stirred = asyncio.Event()
        self._ignore = session.store.listen(self._note)
        self._task = asyncio.get_running_loop().create_task(self._tell())

    def stop(self) -> None:
        self._ignore()
        self._task.cancel()

    def _note(self, mailbox: Mailbox) -> None:
        line = self._line(mailbox)
        if line and line not in self._due:
            self._due.append(line)
            self._stirred.set()

    def _line(self, mailbox: Mailbox) -> bytes:
        known = self._names.get(id(mailbox))
        name = string(encode_name(mailbox.name))
        divider = string(self._session.store.separator.encode()) if self._session.store.separator else b"NIL"
        if mailbox.deleted:
            self._names.pop(id(mailbox), None)
            return b"* LIST (\\NonExistent) %b %b\r\n" % (divider, name)
        self._names[id(mailbox)] = mailbox.name
        if known is None:
            return b"* LIST () %b %b\r\n" % (divider, name)
        if known != mailbox.name:
            return b'* LIST () %b %b ("OLDNAME" (%b))\r\n' % (divider, name, string(encode_name(known)))
        if self._session.selected is not None and self._session.selected.mailbox is mailbox:
            return b""  # of an open mailbox it is told as ever
        items = f"MESSAGES {len(mailbox)} UIDNEXT {mailbox.uidnext} UIDVALIDITY {mailbox.uidvalidity}"
        return b"* STATUS %b (%b)\r\n" % (name, items.encode())

    async def _tell(self) -> None:
        session = self._session
        try:
            while True:
                await self._stirred.wait()
                self._stirred.clear()
                due, self._due = self._due, []
                for line in due:
                    reply = Reply(session.wire, session.faults.due("TELL", session.number))
                    await reply.begin()
                    await reply.send(line)
                await session.wire.flush()
                session.turn()
        except ConnectionEnded:
            return


async def notify(session: Session, arguments: Arguments, _reply: Reply) -> str:
    """NOTIFY NONE, or NOTIFY SET with groups of mailboxes and events; whatever they name, all are told of."""
    arguments.space()
    word = arguments.word()
    if word == "SET":
        arguments.took(b" STATUS")
        arguments.space()
        _group(arguments)
        while arguments.took(b" "):
            _group(arguments)
    elif word != "NONE":
        raise BadSyntax("NOTIFY takes SET or NONE")
    arguments.end()
    session.stop_telling()
    if word == "SET":
        session.stop_telling = Telling(session).stop
    return "Notify completed"


def _group(arguments: Arguments) -> None:
    """`(personal (MessageNew …))`, or `(mailboxes (a b) (…))` (RFC 5465 §8)."""
    arguments.expect(b"(")
    if arguments.word() in {"MAILBOXES", "SUBTREE"}:
        arguments.space()
        arguments.expect(b"(")
        while not arguments.took(b")"):
            arguments.mailbox()
            arguments.took(b" ")
    arguments.space()
    events = arguments.words()
    arguments.expect(b")")
    if unknown := set(events) - _EVENTS:
        raise Refused(f"BADEVENT ({' '.join(sorted(_EVENTS))})", f"No event {min(unknown)} here")
