"""A POP3 server over messages in memory, for the demo and the tests.

`messages` is the maildrop; a test fills and reads it. `capabilities` says which commands there are: those left out are
answered with -ERR. `faults` makes it misbehave (an `Answer` is the whole status line, such as `-ERR [IN-USE] later`),
`journal` tells what clients did, without secrets. Sessions lock the maildrop against each other, as RFC 1939 §4 wants.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from maild.testing.faults import Faults, Reply
from maild.testing.pop3.session import ALL, COMMANDS, NEEDS, Message, Policy, Refused, Session
from maild.testing.wire import ConnectionEnded, LineTooLong, Wire, listen


class Pop3Server:
    """See the module. `ssl_context` makes TLS implicit, `stls_context` offers STLS.

    `latency_s` is added to the way of every octet from the client, as a round trip would be; `line_end` LF makes it one
    of those servers; with a `timestamp` in its greeting (RFC 1939 §7) it has APOP.
    """

    def __init__(
        self,
        messages: Iterable[bytes] = (),
        users: Mapping[str, str] | None = None,
        *,
        capabilities: Iterable[str] = ALL,
        ssl_context: ssl.SSLContext | None = None,
        stls_context: ssl.SSLContext | None = None,
        line_end: bytes = b"\r\n",
        timestamp: str = "",
        latency_s: float = 0.0,
    ) -> None:
        self.faults = Faults()
        self.journal: list[str] = []
        self.sessions: list[Session] = []
        self.host = ""
        self.port = 0
        self._policy = Policy(
            users={"user": "password"} if users is None else dict(users),
            capabilities=set(capabilities),
            messages=[],
            stls_context=stls_context,
            line_end=line_end,
            timestamp=timestamp,
        )
        self._next_uid = 1
        self._ssl_context = ssl_context
        self._latency_s = latency_s
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self._idle = asyncio.Event()
        self._idle.set()
        for raw in messages:
            self.deliver(raw)

    @property
    def messages(self) -> list[Message]:
        """What is in the maildrop; a session sees it as it was when it logged in."""
        return self._policy.messages

    @property
    def capabilities(self) -> set[str]:
        return self._policy.capabilities

    def deliver(self, raw: bytes, uid: str | None = None) -> Message:
        """Put a message (wire form) into the maildrop."""
        message = Message(raw, f"uid{self._next_uid:06d}" if uid is None else uid)
        self._next_uid += 1
        self.messages.append(message)
        return message

    def count(self, name: str) -> int:
        """How often a command of that name was received."""
        return sum(line.split(" ", 1)[0] == name for line in self.journal)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> Self:
        """Accept connections; port 0 takes a free one, found in `port` afterwards."""
        self._server = await listen(self._accept, host, port, tls=self._ssl_context, latency_s=self._latency_s)
        self.host, self.port = self._server.sockets[0].getsockname()[:2]
        return self

    async def unlocked(self, timeout_s: float = 5.0) -> None:
        """Wait until every session has ended, so that the next login finds the maildrop free."""
        async with asyncio.timeout(timeout_s):
            await self._idle.wait()

    async def aclose(self) -> None:
        """Stop accepting and drop every client. Raises what went wrong inside the server itself, if anything did."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in self.sessions:
            session.wire.abort()
            await session.wire.closed()
        failures, self._failures = self._failures, []
        if failures:
            raise BaseExceptionGroup("the test server failed", failures)

    async def __aenter__(self) -> Self:
        return self if self._server is not None else await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _accept(self, wire: Wire) -> None:
        session = Session(self._policy, wire, len(self.sessions) + 1)
        self.sessions.append(session)
        task = asyncio.get_running_loop().create_task(self._serve(session))
        self._tasks.add(task)
        self._idle.clear()
        task.add_done_callback(lambda done: self._ended(done, session))

    def _ended(self, task: asyncio.Task[None], session: Session) -> None:
        self._tasks.discard(task)
        session.leave()
        if not self._tasks:
            self._idle.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    async def _serve(self, session: Session) -> None:
        try:
            reply = Reply(session.wire, self.faults.due("CONNECT", session.number))
            await reply.begin()
            greeting = reply.answer()
            ready = session.status(f"ready {self._policy.timestamp}".rstrip())
            await reply.send(ready if greeting is None else greeting.encode() + b"\r\n", tagged=True)
            await session.wire.flush()
            while not session.is_over:
                await self._answer_next(session)
            await session.wire.close()
        except (ConnectionEnded, LineTooLong):
            return
        finally:
            session.wire.release()

    async def _answer_next(self, session: Session) -> None:
        line = (await session.wire.line()).decode("latin-1")
        name, *words = line.split(" ")
        name = name.upper()
        self.journal.append(f"{name} ***" if name in ("PASS", "AUTH") else " ".join([name, *words]))
        reply = Reply(session.wire, self.faults.due(name, session.number))
        await reply.begin()
        refusal = reply.answer()
        answer = refusal.encode() + b"\r\n" if refusal is not None else await self._outcome(session, name, words, reply)
        if answer:
            await reply.send(answer, tagged=True)
        await session.wire.flush()

    async def _outcome(self, session: Session, name: str, words: list[str], reply: Reply) -> bytes:
        command = COMMANDS.get(name)
        needed = NEEDS.get(name)
        try:
            if command is None or (needed is not None and needed not in session.policy.capabilities):
                raise Refused("unknown command")
            if command.needs_login is not None and command.needs_login != session.is_in:
                raise Refused("not now")
            return await command.run(session, words, reply)
        except Refused as refused:
            return f"-ERR {refused}".encode() + session.policy.line_end
