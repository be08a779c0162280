"""An IMAP server over a `Store`, for the demo and the tests: it accepts, reads commands and answers them in order.

It speaks IMAP4rev1 (RFC 3501) with the extensions in `ALL`; those left out of `capabilities` are answered with BAD. It
runs in the event loop of its caller and holds nothing but memory. `faults` makes it misbehave, `journal` and
`connections` tell what clients did, `until` waits for them to have done it.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

from maild.testing.faults import Faults, Reply
from maild.testing.imap.commands import COMMANDS
from maild.testing.imap.session import ALL, Policy, Session
from maild.testing.imap.syntax import Arguments, BadSyntax
from maild.testing.store import Refused, Store
from maild.testing.wire import ConnectionEnded, LineTooLong, Wire, listen

MAX_LITERAL_OCTETS = 1 << 28

_ANNOUNCED = re.compile(rb"\{(\d+)(\+?)\}\Z")
_TAG = re.compile(rb'[^\x00-\x20\x7f-\xff(){%*"\\+]+\Z')


class Connection:
    """One client as a test sees it. `commands` are what it sent, without tags and secrets, literals as `{octets}`."""

    def __init__(self, session: Session, task: asyncio.Task[None]) -> None:
        self._session = session
        self._task = task
        self.closed = asyncio.Event()

    @property
    def number(self) -> int:
        """From 1, in the order accepted."""
        return self._session.number

    @property
    def commands(self) -> list[str]:
        return self._session.commands

    @property
    def user(self) -> str | None:
        return self._session.user

    @property
    def selected(self) -> str | None:
        """The name of the mailbox it has open."""
        return self._session.selected.mailbox.name if self._session.selected else None

    @property
    def tls(self) -> bool:
        return self._session.wire.tls

    @property
    def octets_sent(self) -> int:
        """By the server, without TLS's own."""
        return self._session.wire.octets_sent

    @property
    def octets_received(self) -> int:
        return self._session.wire.octets_received

    async def send_raw(self, raw: bytes) -> None:
        """Send octets of the test's own at once, such as `* OK Still here` into an IDLE."""
        await self._session.wire.write(raw)
        await self._session.wire.flush()

    async def drop(self, *, reset: bool = False) -> None:
        """End the connection now, losing what was not sent yet, and wait until it is over."""
        self._session.wire.abort(reset=reset)
        self._task.cancel()
        await self.closed.wait()
        await self._session.wire.closed()


class ImapServer:
    """See the module. `users` maps names to passwords; `greeting` replaces the whole line, such as `* PREAUTH hello`.

    `ssl_context` makes TLS implicit, `starttls_context` offers STARTTLS and, unless `login_disabled` says otherwise,
    refuses logins before it. `latency_s` is added to the way of every octet from the client, as a round trip would be.
    `namespace` is the prefix of the personal namespace, for information only.
    """

    def __init__(
        self,
        store: Store,
        users: Mapping[str, str] | None = None,
        *,
        capabilities: Iterable[str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        starttls_context: ssl.SSLContext | None = None,
        login_disabled: bool | None = None,
        greeting: str | None = None,
        namespace: str = "",
        latency_s: float = 0.0,
    ) -> None:
        self.store = store
        self.faults = Faults()
        self.connections: list[Connection] = []
        self.accepted_s: list[float] = []  # when each was accepted, before TLS, by time.monotonic
        self.host = ""
        self.port = 0
        self._policy = Policy(
            store=store,
            users={"user": "password"} if users is None else users,
            capabilities=ALL if capabilities is None else frozenset(capabilities),
            starttls_context=starttls_context,
            login_disabled=starttls_context is not None if login_disabled is None else login_disabled,
            greeting=greeting,
            namespace=namespace,
        )
        self._ssl_context = ssl_context
        self._latency_s = latency_s
        self._server: asyncio.Server | None = None
        self._failures: list[Exception] = []
        self._journal: list[str] = []
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def journal(self) -> list[str]:
        """Every command of every connection in the order received, as in `Connection.commands`."""
        return self._journal

    @property
    def mutations(self) -> list[str]:
        """The commands of the journal that change something on the server, or could."""
        return [text for text in self._journal if (command := COMMANDS.get(_name(text))) and command.mutates]

    @property
    def octets_sent(self) -> int:
        """Over all connections."""
        return sum(connection.octets_sent for connection in self.connections)

    def count(self, name: str) -> int:
        """How often a command of that name was received."""
        return sum(_name(text) == name for text in self._journal)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> Self:
        """Accept connections; port 0 takes a free one, found in `port` afterwards. Also after `aclose`."""
        self._server = await listen(
            self._accept, host, port, tls=self._ssl_context, latency_s=self._latency_s, accepted=self._note_accepted
        )
        self.host, self.port = self._server.sockets[0].getsockname()[:2]
        return self

    async def aclose(self) -> None:
        """Stop accepting and drop every client. Raises what went wrong inside the server itself, if anything did."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self.connections:
            await connection.drop()
        failures, self._failures = self._failures, []
        if failures:
            raise ExceptionGroup("the test server failed", failures)

    async def __aenter__(self) -> Self:
        return self if self._server is not None else await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def until(self, happened: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Wait until `happened` is true, looked at after every command, answer, connect and disconnect.

        TimeoutError with the journal after `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not happened():
                    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.append(turn)
                    await turn
        except TimeoutError as error:
            raise TimeoutError(f"not within {timeout_s} s; the clients sent {self._journal[-20:]}") from error

    def _turn(self) -> None:
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)

    def _note_accepted(self) -> None:
        self.accepted_s.append(time.monotonic())

    def _accept(self, wire: Wire) -> None:
        session = Session(self._policy, wire, self.faults, self._journal, self._turn, number=len(self.connections) + 1)
        task = asyncio.get_running_loop().create_task(self._serve(session))
        connection = Connection(session, task)
        self.connections.append(connection)
        task.add_done_callback(lambda done: self._ended(done, connection))

    def _ended(self, task: asyncio.Task[None], connection: Connection) -> None:
        connection.closed.set()
        self._turn()
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._failures.append(error)

    async def _serve(self, session: Session) -> None:
        try:
            await self._greet(session)
            while not session.over:
                await self._answer_next(session)
            await session.wire.close()
        except LineTooLong:
            await session.wire.write(b"* BYE Line too long\r\n")
            await session.wire.close()
        except ConnectionEnded:
            return
        finally:
            session.stop_telling()
            session.wire.release()

    async def _greet(self, session: Session) -> None:
        actions = self.faults.due("CONNECT", session.number)
        reply = Reply(session.wire, actions)
        self._turn()
        await reply.begin()
        line = f"* {reply.answer()}" if reply.answer() else self._policy.greeting
        line = line or f"* OK [CAPABILITY {session.capabilities()}] maild.testing ready"
        if line.upper().startswith("* PREAUTH"):
            session.user = next(iter(self._policy.users), "")
        session.over = line.upper().startswith("* BYE")
        await reply.send(line.encode() + b"\r\n", tagged=True)
        await session.wire.flush()

    async def _answer_next(self, session: Session) -> None:
        line = await session.wire.line()
        tag, _, rest = line.partition(b" ")
        name = _name(rest.decode("latin-1"))
        session.note(_masked(name, rest.decode("latin-1")))
        reply = Reply(session.wire, self.faults.due(name, session.number))
        if not _TAG.match(tag):
            await reply.send(b"* BAD That is no command\r\n")
            await session.wire.flush()
            return
        session.tag = tag.decode()
        await reply.begin()
        before = session.selected
        outcome = await self._outcome(session, name, rest, reply)
        if before is not None and session.selected is before:
            command = COMMANDS.get(name)
            for update in session.updates(expunges=command is None or command.expunges):
                await reply.send(update)
        if outcome:
            await reply.send(f"{session.tag} {outcome}\r\n".encode(), tagged=True)
        await session.wire.flush()
        self._turn()

    async def _outcome(self, session: Session, name: str, line: bytes, reply: Reply) -> str:
        """The tagged reply without its tag, or "" where it is sent already."""
        try:
            text = await self._complete(session, name, line, reply)
            done = "" if reply.answer() else await _carry_out(session, name, Arguments(text[len(name) :]), reply)
        except Refused as refused:
            return f"NO [{refused.code}] {refused.text}" if refused.code else f"NO {refused.text}"
        except BadSyntax as bad:
            return f"BAD {bad}"
        return reply.answer() or (f"OK {done}" if done else "")

    async def _complete(self, session: Session, name: str, line: bytes, reply: Reply) -> bytes:
        """The whole command, its literals each after their announcement."""
        parts = [line]
        while announced := _ANNOUNCED.search(parts[-1]):
            octets = int(announced[1])
            if not await self._literal_comes(session, octets, bool(announced[2]), reply):
                break
            parts += [b"\r\n", await session.wire.exactly(octets)]
            parts.append(await session.wire.line())
            if name != "LOGIN":
                session.note_more(parts[-1].decode("latin-1"))
        return b"".join(parts)

    async def _literal_comes(self, session: Session, octets: int, at_once: bool, reply: Reply) -> bool:
        """Ask for a literal where it has to be asked for; False where the command is refused without it."""
        plus = session.policy.has("LITERAL+") or (session.policy.has("LITERAL-") and octets <= 4096)  # RFC 7888 §5
        if octets > MAX_LITERAL_OCTETS or (at_once and not plus):
            session.over = True  # what follows cannot be told from commands
            raise BadSyntax("That literal is not accepted here")
        if not at_once:
            if reply.answer():
                return False
            await reply.send(b"+ go ahead\r\n")
            await session.wire.flush()
        return True


async def _carry_out(session: Session, name: str, arguments: Arguments, reply: Reply) -> str:
    command = COMMANDS.get(name)
    if command is None or (command.needs and not session.policy.has(command.needs)):
        raise BadSyntax(f"Unknown command {name}")
    if session.state not in command.states:
        raise BadSyntax(f"{name} is not for the {session.state} state")
    return await command.run(session, arguments, reply)


def _name(text: str) -> str:
    """The command's name in upper case; `UID` belongs to the word after it."""
    words = text.upper().split(" ", 2)
    return " ".join(words[:2]) if words[0] == "UID" else words[0]


def _masked(name: str, text: str) -> str:
    words = text.split(" ")
    if name == "LOGIN":
        return " ".join([*words[:2], "***"])
    return " ".join([*words[:2], "***"]) if name == "AUTHENTICATE" and len(words) > 2 else text
