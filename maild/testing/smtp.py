"""A submission server in memory that says what a test tells it to, and keeps a journal of what it accepted.

It speaks SMTP (RFC 5321) with the extensions in `extensions`, and nothing it keeps is altered: a message stands in the
journal octet by octet as it came, after the dots at line starts are taken off.

    server = SmtpServer()
    server.react("rcpt", "451 4.3.0 try later", when="a@b.example")   # once, for this recipient
    server.react("dot", RESET, times=2)
    async with server:
        … server.host, server.port …
    server.journal[0].recipients
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from maild.testing.sasl import MECHANISMS
from maild.testing.store import Refused
from maild.testing.wire import ConnectionEnded, LineTooLong, Wire, listen

Stage = Literal["greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "body", "dot", "rset", "quit"]

EXTENSIONS = ("PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")


class End:
    """How a connection ends, in place of a reply."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


SILENCE = End("SILENCE")  # until the client gives up
STALL = End("STALL")  # silence, and nothing more is taken from the client
EOF = End("EOF")
RESET = End("RESET")

Reaction = str | bytes | End  # a text is a reply (CRLF is added), octets are sent as they are


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message for which the server said 250, or would have said it had it not been told to do worse.

    `octets` is the wire form, without the final dot; `parameters` are those of MAIL.
    """

    sender: str
    recipients: tuple[str, ...]
    octets: bytes
    parameters: tuple[str, ...] = ()
    connection: int = 0


@dataclass(slots=True)
class _Rule:
    stage: Stage
    reaction: Reaction
    times: int
    when: str

    def fits(self, stage: Stage, line: str) -> bool:
        return self.times > 0 and self.stage == stage and self.when in line


@dataclass(slots=True)
class _Mail:
    sender: str
    parameters: tuple[str, ...]
    recipients: list[str] = field(default_factory=list)


class SmtpServer:
    """The server; a context manager for its life. `users` are names and passwords, None for no AUTH at all."""

    def __init__(
        self,
        *,
        users: dict[str, str] | None = None,
        extensions: Iterable[str] = EXTENSIONS,
        mechanisms: Iterable[str] = ("PLAIN", "LOGIN"),
        tls: ssl.SSLContext | None = None,
        starttls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self.port = 0
        self.extensions = tuple(extensions)
        self.mechanisms = tuple(mechanisms)
        self.users = users
        self.journal: list[Accepted] = []  # with a 250
        self.taken: list[Accepted] = []  # whose final dot was seen, whatever was said to it
        self.commands: list[str] = []  # of all connections, without secrets
        self.connections = 0
        self.deliver: Callable[[Accepted], None] | None = None  # what is accepted goes there before the 250
        self._tls = tls
        self._starttls = starttls
        self._rules: list[_Rule] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    def react(self, stage: Stage, reaction: Reaction, *, times: int = 1, when: str = "") -> None:
        """At this stage, the next so many times, do that; `when` must be in the command line."""
        self._rules.append(_Rule(stage, reaction, times, when))

    async def __aenter__(self) -> Self:
        self._server = await listen(self._connected, self.host, self.port, tls=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def until(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        """Wait until the condition holds, asked anew after every command and every message."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def note(self, command: str) -> None:
        """A command of some connection; nothing secret may be in it."""
        self.commands.append(command)
        self._changed.set()

    def reaction(self, stage: Stage, line: str) -> Reaction | None:
        """What was ordered for this moment; counts as done."""
        for rule in self._rules:
            if rule.fits(stage, line):
                rule.times -= 1
                return rule.reaction
        return None

    def take(self, message: Accepted, *, is_accepted: bool) -> None:
        """A message whose final dot was seen."""
        self.taken.append(message)
        if is_accepted:
            self.journal.append(message)
            if self.deliver is not None:
                self.deliver(message)
        self._changed.set()

    def _connected(self, wire: Wire) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(_Session(self, wire, self.connections, self._starttls).serve())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Ended(Exception):
    """The server ended the connection, as it was told to."""


class _Session:
    def __init__(self, server: SmtpServer, wire: Wire, number: int, starttls: ssl.SSLContext | None) -> None:
        self._server = server
        self._wire = wire
        self._number = number
        self._starttls = starttls
        self._user: str | None = None
        self._mail: _Mail | None = None

    async def serve(self) -> None:
        try:
            await self._say("greeting", "", "220 smtp.test ESMTP")
            while True:
                line = (await self._wire.line()).decode("utf-8", "replace")
                await self._command(line)
        except (ConnectionEnded, LineTooLong, _Ended):
            return
        finally:
            self._wire.abort()

    async def _command(self, line: str) -> None:
        word = line.split(" ")[0].upper()
        self._server.note("AUTH" if word == "AUTH" else line)
        match word:
            case "EHLO":
                await self._say("ehlo", line, self._greeting())
            case "STARTTLS":
                await self._start_tls(line)
            case "AUTH":
                await self._authenticate(line)
            case "MAIL" | "RCPT":
                await self._envelope(word, line)
            case "DATA":
                await self._data(line)
            case "RSET":
                self._mail = None
                await self._say("rset", line, "250 2.0.0 forgotten")
            case "QUIT":
                await self._say("quit", line, "221 2.0.0 bye")
                await self._wire.close()
                raise _Ended
            case _:
                await self._reply("500 5.5.2 what?")

    def _greeting(self) -> str:
        lines = ["smtp.test", *self._server.extensions]
        if self._server.users is not None and (self._wire.tls or self._starttls is None):
            lines.append(" ".join(("AUTH", *self._server.mechanisms)))
        if self._starttls is not None and not self._wire.tls:
            lines.append("STARTTLS")
        return "\r\n".join([*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}"])

    async def _start_tls(self, line: str) -> None:
        reaction = self._server.reaction("starttls", line)
        if self._starttls is None or reaction is not None:
            await self._react(reaction or "502 5.5.1 no")
            return
        await self._wire.start_tls(self._starttls, b"220 2.0.0 go ahead\r\n")
        self._user = self._mail = None

    async def _authenticate(self, line: str) -> None:
        """AUTH, with or without an initial response (RFC 4954 §4)."""
        _, mechanism, *initial = line.split(" ")
        if mechanism not in self._server.mechanisms:
            await self._reply("504 5.5.4 not offered")
            return
        login = MECHANISMS[mechanism](self._server.users or {})
        try:
            challenge = next(login)
            while True:
                encoded = initial.pop() if initial else await self._asked(challenge)
                challenge = login.send(base64.b64decode("" if encoded == "=" else encoded))
        except StopIteration as end:
            self._user = end.value
            await self._say("auth", "", "235 2.7.0 welcome")
        except (Refused, ValueError):
            await self._say("auth", "", "535 5.7.8 wrong user or password")

    async def _asked(self, challenge: bytes) -> str:
        await self._reply(f"334 {base64.b64encode(challenge).decode()}")
        return (await self._wire.line()).decode()

    async def _envelope(self, word: str, line: str) -> None:
        if self._server.users is not None and self._user is None:
            await self._reply("530 5.7.0 log in first")
            return
        path, _, rest = line.partition("<")[2].partition(">")
        stage: Stage = "mail" if word == "MAIL" else "rcpt"
        reaction = self._server.reaction(stage, line)
        if (word == "MAIL") == (self._mail is not None):
            await self._reply("503 5.5.1 bad sequence of commands")
        elif reaction is not None and not _is_positive(reaction):
            await self._react(reaction)
        else:
            if self._mail is None:
                self._mail = _Mail(path, tuple(rest.split()))
            else:
                self._mail.recipients.append(path)
            await self._react(reaction or "250 2.1.0 ok")

    async def _data(self, line: str) -> None:
        reaction = self._server.reaction("data", line)
        if self._mail is None or not self._mail.recipients:
            await self._data_for_nobody(reaction)
            return
        if reaction is not None:
            await self._react(reaction)
            return
        await self._reply("354 go on")
        octets = await self._body()
        mail, self._mail = self._mail, None
        message = Accepted(mail.sender, tuple(mail.recipients), octets, mail.parameters, self._number)
        reaction = self._server.reaction("dot", " ".join((mail.sender, *mail.recipients)))
        self._server.take(message, is_accepted=reaction is None or _is_positive(reaction))
        await self._react(reaction or "250 2.0.0 queued")

    async def _data_for_nobody(self, reaction: Reaction | None) -> None:
        """503, or for a reaction 354 what RFC 2920 §3.1 describes: the body is read, and refused."""
        if isinstance(reaction, str) and reaction.startswith("354"):
            await self._reply(reaction)
            await self._body()
            self._mail = None
            await self._reply("554 5.5.1 no valid recipients")
        else:
            await self._reply("503 5.5.1 no valid recipients")

    async def _body(self) -> bytes:
        lines: list[bytes] = []
        while (line := await self._wire.line()) != b".":
            if not lines and (reaction := self._server.reaction("body", "")) is not None:
                await self._react(reaction)
                while await self._wire.ended():  # it has decided, and reads on only so that its words arrive
                    continue
                raise _Ended
            lines.append(line[1:] if line.startswith(b".") else line)
        return b"".join(line + b"\r\n" for line in lines)

    async def _say(self, stage: Stage, line: str, usual: str) -> None:
        reaction = self._server.reaction(stage, line)
        await self._react(usual if reaction is None else reaction)

    async def _react(self, reaction: Reaction) -> None:
        match reaction:
            case str():
                await self._reply(reaction)
                if reaction.startswith("421"):
                    await self._wire.close()
                    raise _Ended
            case bytes():
                await self._wire.write(reaction)
                await self._wire.flush()
            case End():
                if reaction is STALL:
                    self._wire.stop_reading()
                    await asyncio.Event().wait()
                if reaction is SILENCE:
                    while await self._wire.ended():
                        continue
                await self._wire.close(reset=reaction is RESET)
                raise _Ended

    async def _reply(self, text: str) -> None:
        await self._wire.write(text.encode() + b"\r\n")
        await self._wire.flush()


def _is_positive(reaction: Reaction) -> bool:
    return isinstance(reaction, str) and reaction.startswith("2")
