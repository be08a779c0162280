r"""A server that plays a conversation from a text file, octet by octet, and says where the client left the script.

For what a real server must not do: broken responses, bad greetings, attacks. One step a line; blank lines and lines
that start with `#` are nothing:

    S: * OK [CAPABILITY IMAP4rev1] hello     send this line and CRLF
    C: $1 LOGIN "user" <...>                 expect this line and CRLF from the client
    S: $1 OK done                            and answer with the client's own tag
    S!: "\x00raw\r\n"                        send exactly these octets (Python escapes), no CRLF
    C!: "DONE\r\n"                           expect exactly these octets
    S*1000: * $# FETCH (UID $# FLAGS ())     send the line 1000 times, `$#` counting from 1
    CHUNK 1                                  from here on send n octets at a time, to be read in pieces
    TLS                                      be the server of a TLS handshake now
    DEFLATE                                  from here on both ways are compressed (RFC 4978)
    WAIT name                                until the test calls `release("name")`
    EOF                                      expect the client to close the connection, having sent nothing more
    HANGUP                                   expect it to close, whatever it still sends first
    CLOSE                                    close (FIN; under TLS with close_notify)
    RESET                                    close with a TCP reset
    CONNECT                                  what follows is for the next connection, opened after this one ended

In `S` and `C` lines `$1` … `$9` stand for one word each, the client's tags: the first `C` line that holds one binds
it, for its connection. In `C` lines `<...>` stands for any octets. In `S` lines `{"text\r\n"}` becomes a literal,
announced with its right length, and `{<name}` one with the octets of a file beside the script. A client's literal is
what its `C` lines say. Text is UTF-8. A connection whose steps are over stays open until the dialogue ends.

    async with Dialogue.from_file(path) as server:
        session = await connect(server.host, server.port)

Leaving the block waits for the script's end and raises `Mismatch` where client and script disagreed, in preference to
the error the client had because of it.
"""

from __future__ import annotations

import ast
import asyncio
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from maild.testing.wire import ConnectionEnded, LineTooLong, Wire, listen

_STEP = re.compile(r"(S|C|S!|C!|S\*\d+): ?(.*)\Z|(CHUNK|WAIT) +(\S+)\Z|(TLS|DEFLATE|EOF|HANGUP|CLOSE|RESET|CONNECT)\Z")
_INSERT = re.compile(r'\{("(?:[^"\\]|\\.)*")\}|\{<([^}]+)\}')
_VARIABLE = re.compile(r"\$([1-9])")
_WILD = re.compile(r"\$([1-9])|<\.\.\.>")


class Mismatch(AssertionError):
    """The client did something else than the script says; the text shows both, with file and line."""


class ScriptError(ValueError):
    """The script itself cannot be read."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the script: `verb` is what stands before the colon, or the word itself."""

    line: int
    verb: str
    text: str


def parse(script: str, name: str) -> list[list[Step]]:
    """The steps of each connection; `ScriptError` with file and line for what is none."""
    connections: list[list[Step]] = [[]]
    for number, line in enumerate(script.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _STEP.match(line)
        if found is None:
            raise ScriptError(f"{name}:{number}: not a step: {line!r}")
        verb = found[1] or found[3] or found[5]
        if verb == "CONNECT":
            connections.append([])
        else:
            connections[-1].append(Step(number, verb, found[2] or found[4] or ""))
    return connections


@dataclass(frozen=True, slots=True)
class _Stage:
    """What all connections of one dialogue share."""

    name: str
    directory: Path
    tls: ssl.SSLContext | None
    timeout_s: float
    released: dict[str, asyncio.Event] = field(default_factory=dict)

    def gate(self, name: str) -> asyncio.Event:
        return self.released.setdefault(name, asyncio.Event())


class _Player:
    """Plays the steps of one connection."""

    def __init__(self, stage: _Stage, wire: Wire) -> None:
        self._stage = stage
        self._wire = wire
        self._tags: dict[str, str] = {}
        self._chunk_octets = 0

    async def play(self, steps: list[Step]) -> None:
        for step in steps:
            try:
                async with asyncio.timeout(None if step.verb == "WAIT" else self._stage.timeout_s):
                    await self._step(step)
            except TimeoutError as error:
                raise self._mismatch(step, f"nothing for {self._stage.timeout_s} s") from error
            except (ConnectionEnded, LineTooLong) as error:
                raise self._mismatch(step, str(error) or "an endless line") from error

    async def _step(self, step: Step) -> None:
        match step.verb:
            case "S":
                await self._send(self._line(step, step.text))
            case "S!":
                await self._send(self._octets(step, step.text))
            case "C":
                self._expect(step, await self._wire.line())
            case "C!":
                wanted = self._octets(step, step.text)
                if (got := await self._wire.exactly(len(wanted))) != wanted:
                    raise self._mismatch(step, repr(got))
            case "CHUNK":
                self._chunk_octets = int(step.text)
            case "WAIT":
                await self._stage.gate(step.text).wait()
            case "TLS":
                await self._start_tls(step)
            case "DEFLATE":
                await self._wire.compress()
            case "EOF" | "HANGUP":
                await self._ended(step)
            case "CLOSE" | "RESET":
                await self._wire.close(reset=step.verb == "RESET")
            case repeated:
                for count in range(1, int(repeated[2:]) + 1):
                    await self._send(self._line(step, step.text.replace("$#", str(count))))
                await self._wire.flush()

    async def _send(self, octets: bytes) -> None:
        size = self._chunk_octets or len(octets) or 1
        for start in range(0, len(octets), size):
            await self._wire.write(octets[start : start + size])
            if self._chunk_octets:
                await self._wire.flush()
                for _turn in range(2):  # of the loop: a client in it has read this piece then, before the next is sent
                    await asyncio.sleep(0)
        await self._wire.flush()

    def _line(self, step: Step, text: str) -> bytes:
        """An `S` line as octets, with tags, literals and CRLF."""
        parts, done = [], 0
        for insert in _INSERT.finditer(text):
            literal = self._octets(step, insert[1]) if insert[1] else (self._stage.directory / insert[2]).read_bytes()
            parts += [self._tagged(step, text[done : insert.start()]), b"{%d}\r\n" % len(literal), literal]
            done = insert.end()
        return b"".join([*parts, self._tagged(step, text[done:]), b"\r\n"])

    def _tagged(self, step: Step, text: str) -> bytes:
        for name in _VARIABLE.findall(text):
            if name not in self._tags:
                raise ScriptError(f"{self._where(step)}: no C line has bound ${name} yet")
        return _VARIABLE.sub(lambda match: self._tags[match[1]], text).encode()

    def _octets(self, step: Step, text: str) -> bytes:
        try:
            octets = ast.literal_eval("b" + text)
        except (SyntaxError, ValueError) as error:
            raise ScriptError(f"{self._where(step)}: not a quoted string in ASCII: {text}") from error
        if not isinstance(octets, bytes):
            raise ScriptError(f"{self._where(step)}: not a quoted string: {text}")
        return octets

    def _expect(self, step: Step, line: bytes) -> None:
        """Compare a client's line with a `C` line and bind the tags that are new in it."""
        got = line.decode("utf-8", "surrogateescape")
        found = re.fullmatch(self._pattern(step.text), got, re.S)
        if found is None:
            raise self._mismatch(step, repr(got))
        self._tags.update({name[1:]: value for name, value in found.groupdict().items()})

    def _pattern(self, text: str) -> str:
        pattern, done = "", 0
        for wild in _WILD.finditer(text):
            pattern += re.escape(text[done : wild.start()])
            done = wild.end()
            name = wild[1]
            if name is None:
                pattern += ".*"
            elif name in self._tags:
                pattern += re.escape(self._tags[name])
            else:
                pattern += f"(?P=t{name})" if f"(?P<t{name}>" in pattern else f"(?P<t{name}>[^ ]+)"
        return pattern + re.escape(text[done:])

    async def _start_tls(self, step: Step) -> None:
        if self._stage.tls is None:
            raise ScriptError(f"{self._where(step)}: TLS without a context; pass tls=")
        await self._wire.start_tls(self._stage.tls)

    async def _ended(self, step: Step) -> None:
        while got := await self._wire.ended():
            if step.verb == "EOF":
                raise self._mismatch(step, repr(got))

    def _where(self, step: Step) -> str:
        return f"{self._stage.name}:{step.line}"

    def _mismatch(self, step: Step, got: str) -> Mismatch:
        wanted = f"{step.verb}: {step.text}" if step.text else step.verb
        known = "".join(f"\n  with     ${name} = {tag}" for name, tag in self._tags.items() if f"${name}" in step.text)
        return Mismatch(
            f"{self._where(step)}: the client left the script\n  expected {wanted}{known}\n  received {got}"
        )


class Dialogue:
    """One run of a script on a loopback port; see the module for the format.

    `timeout_s` is how long each step may take, the client's silence included. `tls` is for `TLS` steps, or from the
    first octet with `implicit_tls`. `directory` is where `{<name}` looks for files.
    """

    def __init__(
        self,
        script: str,
        *,
        name: str = "script",
        directory: Path | None = None,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        timeout_s: float = 5.0,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self._stage = _Stage(name, directory or Path(), tls, timeout_s)
        self._connections = parse(script, name)
        self._implicit_tls = implicit_tls
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._wires: list[Wire] = []
        self._connected = asyncio.Event()
        self._mismatch: Exception | None = None

    @classmethod
    def from_file(
        cls, path: Path, *, tls: ssl.SSLContext | None = None, implicit_tls: bool = False, timeout_s: float = 5.0
    ) -> Self:
        """A dialogue from a script file (UTF-8)."""
        script = path.read_text(encoding="utf-8")
        return cls(
            script, name=path.name, directory=path.parent, tls=tls, implicit_tls=implicit_tls, timeout_s=timeout_s
        )

    async def start(self) -> Self:
        """Listen; `port` is known afterwards."""
        context = self._stage.tls if self._implicit_tls else None
        self._server = await listen(self._accept, self.host, 0, tls=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def release(self, name: str) -> None:
        """Let a `WAIT name` go on, also one that is still to come."""
        self._stage.gate(name).set()

    async def finish(self) -> None:
        """Wait until every step was played; raises `Mismatch` where the client left the script."""
        for number in range(1, len(self._connections) + 1):
            while len(self._tasks) < number and self._mismatch is None:
                await self._next_client(number)
            if self._mismatch is None:
                await self._tasks[number - 1]
        if self._mismatch is not None:
            raise self._mismatch

    async def aclose(self) -> None:
        """Stop, whatever was played so far."""
        if self._server is not None:
            self._server.close()
        for task, wire in zip(self._tasks, self._wires, strict=True):
            task.cancel()
            wire.abort()
        for wire in self._wires:
            await wire.closed()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.finish()
            elif self._mismatch is not None and isinstance(error, Exception):
                raise self._mismatch from error
        finally:
            await self.aclose()

    async def _next_client(self, number: int) -> None:
        self._connected.clear()
        try:
            async with asyncio.timeout(self._stage.timeout_s):
                await self._connected.wait()
        except TimeoutError:
            name, timeout_s = self._stage.name, self._stage.timeout_s
            self._mismatch = Mismatch(f"{name}: the client made no connection {number} in {timeout_s} s")

    def _accept(self, wire: Wire) -> None:
        number = len(self._wires)
        self._wires.append(wire)
        self._tasks.append(asyncio.get_running_loop().create_task(self._play(wire, number)))
        self._connected.set()

    async def _play(self, wire: Wire, number: int) -> None:
        try:
            if number >= len(self._connections):
                raise Mismatch(f"{self._stage.name}: the script has no connection {number + 1}, the client made one")
            await _Player(self._stage, wire).play(self._connections[number])
        except (Mismatch, ScriptError, OSError) as mismatch:
            self._mismatch = self._mismatch or mismatch
            wire.abort()
            self._connected.set()
