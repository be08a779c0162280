"""One POP3 connection: connect, TLS, log in, commands one after the other or many at a time.

What this file keeps:
- commands are sent ahead only where the server offers PIPELINING, and few enough octets of them that neither side can
  block while writing;
- nothing the server said before TLS is believed, nor kept; octets after the STLS answer are an attack;
- no secret is written before TLS is up, unless the config says that plain text will do;
- a lost connection, garbage or silence is one of our errors; a command that is given up ends the connection;
- the server is read no faster than the caller takes what it sends.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, contextmanager

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from maild.config import Pop3
from maild.core.errors import (
    AuthRejected,
    ConnectionLost,
    MaildError,
    ProtocolViolation,
    Rejected,
    TlsFailed,
    Unavailable,
)
from maild.remote.masking import masked
from maild.remote.net import check_pin, tls_context, tls_hint, translated
from maild.remote.pop3.parse import Expected, Limits, Parser, Reply, Shape, read_capabilities
from maild.remote.sasl import Exchange, check_sendable, choose

CONNECT_TIMEOUT_S = 30.0
STALL_S = 60.0  # within this a reply must be whole, or bring `STALL_OCTETS` of it
STALL_OCTETS = 4096  # a byte now and then is no proof of life
IN_FLIGHT = 300  # commands sent ahead: some 3 KB, which every socket's buffers hold
SENT_TOGETHER = 50
READ_OCTETS = 256 << 10  # as much as asyncio reads at once: asked for less, what is left over is copied each time
LINE_OCTETS = 255  # the longest command (RFC 2449 §4)

_NOT_NOW = {
    "IN-USE": "another program has this maildrop open; it is tried again later",
    "LOGIN-DELAY": "the server wants more time between two logins: a longer `poll` helps",
    "SYS/TEMP": "it is tried again later",
    "SYS/PERM": "only the server's operator can help; the password is not the reason",
}
_BUSY = ("too many", "maximum number", "connection limit", "try again later", "in use", "locked", "lock busy")
_WITHOUT_STLS = 'nothing was sent; use port 995 with tls = "implicit" if the server offers it'
_TAMPERING = "somebody on the network may be tampering with the connection; nothing secret was sent"

_TIMESTAMP = re.compile(r"<[^<>\s]+>")

Command = tuple[str, Expected]


class Pop3Session:
    """One connection, used by one task at a time."""

    def __init__(self, endpoint: Pop3, stream: ByteStream, limits: Limits) -> None:
        self.endpoint = endpoint
        self.server = f"{endpoint.host}:{endpoint.port}"
        self.capabilities: dict[str, tuple[str, ...]] = {}
        self.is_lost = False
        self._timestamp = ""  # of the greeting; with it a server says that it can do APOP
        self._stream = stream
        self._limits = limits
        self._parser = Parser(limits)
        self._progress_octets = 0
        self._deadline = 0.0

    @classmethod
    async def connect(cls, endpoint: Pop3, max_message_octets: int) -> Pop3Session:
        """TCP, TLS as the config demands, greeting, capabilities; nothing secret is sent."""
        with translated(endpoint):
            if endpoint.tls != "none":
                tls_context(endpoint)  # without good files nobody is called
            session = cls(endpoint, await _connected(endpoint), Limits(body=max_message_octets))
            try:
                await session._begin()
            except BaseException:
                await session.drop()
                raise
        return session

    async def _begin(self) -> None:
        if self.endpoint.tls == "implicit":
            await self._handshake()
        self._parser.expect(Expected())
        greeting = await self._reply()
        if not greeting.ok:
            raise _refusal(f"{self.server} does not want to talk", greeting)
        if (timestamp := _TIMESTAMP.search(greeting.text)) is not None and self.endpoint.tls != "starttls":
            self._timestamp = timestamp[0]
        if self.endpoint.tls == "starttls":
            await self.ask_capabilities()
            await self._start_tls()
        await self.ask_capabilities()

    async def _handshake(self) -> None:
        context = tls_context(self.endpoint)
        try:
            with anyio.fail_after(CONNECT_TIMEOUT_S):
                secure = await TLSStream.wrap(
                    self._stream, hostname=self.endpoint.host, ssl_context=context, standard_compatible=False
                )
        except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            if isinstance(exc.__cause__, ssl.SSLError):
                raise exc.__cause__ from exc
            text = f"{self.server} closed the connection during the TLS handshake"
            raise ConnectionLost(text, tls_hint(self.endpoint)) from exc
        self._stream = secure
        check_pin(self.endpoint, secure.extra_attributes[TLSAttribute.peer_certificate_binary]())

    async def _start_tls(self) -> None:
        """STLS (RFC 2595 §4); everything known before is forgotten."""
        if self.capabilities and "STLS" not in self.capabilities:
            raise TlsFailed(f"{self.server} does not offer STLS", _WITHOUT_STLS)
        try:
            reply = await self.run("STLS", may_refuse=True)
        except ProtocolViolation as exc:
            raise TlsFailed(f"{self.server} did not answer STLS as it should: {exc.text}", _TAMPERING) from exc
        if not self._parser.idle:
            raise TlsFailed(f"{self.server} sent more in plain text after agreeing to STLS", _TAMPERING)
        if not reply.ok:
            raise TlsFailed(f"{self.server} refused STLS: {reply.text or reply.status}", _WITHOUT_STLS)
        self._parser = Parser(self._limits)
        self.capabilities = {}
        await self._handshake()

    async def ask_capabilities(self) -> None:
        """CAPA (RFC 2449 §5); a server that does not know it has none."""
        self.learn_capabilities(await self.run("CAPA", Shape.LISTING, may_refuse=True))

    def learn_capabilities(self, reply: Reply) -> None:
        """Take the answer to CAPA."""
        self.capabilities = read_capabilities(reply.lines) if reply.ok else {}

    def has(self, capability: str) -> bool:
        return capability in self.capabilities

    # -- logging in

    async def login(self, user: str, secret: str) -> None:
        """AUTH (RFC 5034) with the strongest mechanism that both sides allow, else USER and PASS. APOP on request.

        Raises AuthRejected, or Unavailable where the server says that it is not about the password.
        """
        if self.endpoint.auth == "apop":
            reply = await self._prove(user, secret)
            if not reply.ok:
                raise _refused_login(self.server, user, reply, "")
            return
        offered = {name.upper() for name in self.capabilities.get("SASL", ())}
        mechanism = choose(self.endpoint, user, secret, offered, has_own_command=True)
        detail = ""
        if mechanism is not None:
            exchange = Exchange(mechanism, room_octets=LINE_OCTETS - len("AUTH \r\n"))
            reply = await self._authenticate(exchange)
            exchange.finish(is_accepted=reply.ok)
            detail = exchange.detail
        else:
            reply = await self.run(f"USER {user}", may_refuse=True)
            if reply.ok:
                reply = await self.run(f"PASS {secret}", may_refuse=True)
        if not reply.ok:
            raise _refused_login(self.server, user, reply, detail)

    async def _prove(self, user: str, secret: str) -> Reply:
        """APOP (RFC 1939 §7). Its MD5 does not hold against whoever poses as the server, so nobody gets it unasked."""
        check_sendable(user, secret)
        if not self._timestamp:
            late = " inside TLS" if self.endpoint.tls == "starttls" else ""
            text = f"{self.server} does not offer APOP: it greets without a timestamp{late}"
            raise AuthRejected(text, 'nothing was sent; auth = "auto" takes what there is')
        proof = hashlib.md5(f"{self._timestamp}{secret}".encode(), usedforsecurity=False).hexdigest()
        return await self.run(f"APOP {user} {proof}", may_refuse=True)

    async def _authenticate(self, exchange: Exchange) -> Reply:
        reply = await self.run(f"AUTH {exchange.argument}", may_refuse=True)
        while reply.status == "+":
            reply = await self.run(exchange.answer(reply.text.encode()).decode("ascii"), may_refuse=True)
        return reply

    # -- commands

    async def run(self, line: str, shape: Shape = Shape.LINE, *, may_refuse: bool = False) -> Reply:
        """Send a command and wait for its answer; -ERR raises Rejected, or Unavailable for what is only for now."""
        async with aclosing(self.exchange([(line, Expected(shape))])) as replies:
            async for (reply,) in replies:
                if not reply.ok and not may_refuse:
                    raise _refusal(f"{self.server} refused {line.partition(' ')[0]}", reply)
                return reply
        raise ConnectionLost(f"{self.server} closed the connection")

    async def exchange(self, commands: Iterable[Command]) -> AsyncGenerator[list[Reply]]:
        """Send commands and hand over the answers in order, as many as have come whenever the caller is ready.

        The next command is taken only when there is room for it. Leaving early ends the connection.
        """
        left = iter(commands)
        most = IN_FLIGHT if self.has("PIPELINING") else 1
        await self._see_violation()
        try:
            while True:
                if self._parser.outstanding <= max(most - SENT_TOGETHER, 0):
                    await self._send(left, most - self._parser.outstanding)
                if not self._parser.outstanding and self._parser.violation is None:
                    return
                if replies := await self._received():
                    yield replies
        finally:
            if self._parser.outstanding or self._parser.violation is not None:
                await self.drop()

    async def _send(self, commands: Iterator[Command], most: int) -> None:
        lines: list[str] = []
        for _, (line, expected) in zip(range(most), commands, strict=False):
            self._parser.expect(expected)
            lines.append(line)
        if not lines:
            return
        self._await_progress()
        octets = "".join(f"{line}\r\n" for line in lines).encode("utf-8", "surrogateescape")
        with _watched(self.server), anyio.fail_at(self._deadline):
            await self._stream.send(octets)

    async def _reply(self) -> Reply:
        self._await_progress()
        while True:
            if replies := await self._received():
                return replies[0]

    async def _received(self) -> list[Reply]:
        """What is whole after the next octets. Raises ConnectionLost after `STALL_S` with less than `STALL_OCTETS`."""
        await self._see_violation()
        with _watched(self.server), anyio.fail_at(self._deadline):
            octets = await self._stream.receive(READ_OCTETS)
        self._progress_octets += len(octets)
        replies = self._parser.feed(octets)
        if replies or self._progress_octets >= STALL_OCTETS:
            self._await_progress()
        if not replies:
            await self._see_violation()
        return replies

    async def _see_violation(self) -> None:
        """A server that broke the protocol is not talked to any more."""
        if (violation := self._parser.violation) is not None:
            await self.drop()
            raise ProtocolViolation(f"{self.server}: {violation.text}", violation.hint) from violation

    def _await_progress(self) -> None:
        self._progress_octets = 0
        self._deadline = anyio.current_time() + STALL_S

    async def quit(self) -> Reply:
        """QUIT: only now deletions are carried out (RFC 1939 §6). The connection ends."""
        try:
            return await self.run("QUIT", may_refuse=True)
        finally:
            await self.drop()

    async def leave(self) -> None:
        """Say goodbye without waiting for an answer, and close; nothing is to be deleted."""
        if not self.is_lost and self._parser.idle:
            with anyio.move_on_after(1.0, shield=True):
                try:
                    await self._stream.send(b"QUIT\r\n")
                except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                    self.is_lost = True  # gone already: nothing is left to be said
        await self.drop()

    async def drop(self) -> None:
        """Close at once."""
        self.is_lost = True
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(self._stream)


@contextmanager
def _watched(server: str) -> Iterator[None]:
    """Inside, what ends a connection becomes ConnectionLost."""
    try:
        yield
    except TimeoutError as exc:
        raise ConnectionLost(f"{server} sent nothing for {STALL_S:.0f} s") from exc
    except anyio.EndOfStream as exc:
        raise ConnectionLost(f"{server} closed the connection") from exc
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as exc:
        raise ConnectionLost(f"{server}: the connection broke ({exc.__cause__ or type(exc).__name__})") from exc


async def _connected(endpoint: Pop3) -> ByteStream:
    """TCP, over whichever of the host's addresses answers first (RFC 8305)."""
    try:
        with anyio.fail_after(CONNECT_TIMEOUT_S):
            return await anyio.connect_tcp(endpoint.host, endpoint.port)
    except OSError as exc:
        if isinstance(exc.__cause__, OSError):
            raise exc.__cause__ from exc
        raise


def _refusal(what: str, reply: Reply) -> MaildError:
    code = f" [{reply.code}]" if reply.code else ""
    text = f"{what}:{code} {reply.text or reply.status}"
    if (hint := _hint_of_busy(reply)) is not None:
        return Unavailable(text, hint)
    return Rejected(text, code=reply.code)


def _refused_login(server: str, user: str, reply: Reply, detail: str) -> MaildError:
    code = f" [{reply.code}]" if reply.code else ""
    why = f" ({detail})" if detail else ""
    text = f"{server} refused to log in {user}:{code} {masked(reply.text) or reply.status}{why}"
    if reply.code != "AUTH" and (hint := _hint_of_busy(reply)) is not None:
        return Unavailable(text, hint)
    return AuthRejected(text, "check user and password; some providers want an app password, or POP3 switched on")


def _hint_of_busy(reply: Reply) -> str | None:
    """What to do where the server means the moment and not what was asked of it (RFC 3206 §4, RFC 2449 §8.1)."""
    if reply.code in _NOT_NOW:
        return _NOT_NOW[reply.code]
    is_busy = any(word in reply.text.lower() for word in _BUSY)
    return "it is tried again later" if is_busy else None
