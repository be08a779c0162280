"""One SMTP connection: commands out, replies in, each for its own command; alone imports aiosmtplib (RFC 5321).

aiosmtplib's protocol carries single commands and the upgrade to TLS, refuses control characters in commands, and reads
EHLO. Its receiving half takes one reply at a time, which rules out PIPELINING; here replies queue up instead, in the
order of the commands. Its client class is not used: it parses recipients anew, and TLS is opportunistic there.

What this file keeps:
- no reply is ever taken for another command's; one that is broken, that nobody asked for, or that does not come in
  time ends the connection, and whoever waits for it hears why;
- octets after the server's answer to STARTTLS are an attack, and nothing that came before TLS survives it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import ssl
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from aiosmtplib.errors import SMTPException, SMTPResponseException
from aiosmtplib.esmtp import parse_esmtp_extensions
from aiosmtplib.protocol import SMTPProtocol
from aiosmtplib.response import SMTPResponse

from maild.config import Smtp
from maild.core.errors import ConnectionLost, MaildError, ProtocolViolation, TlsFailed, Unavailable
from maild.core.outgoing import Reply
from maild.remote.net import check_pin, tls_context, translated

HAPPY_EYEBALLS_S = 0.25  # RFC 8305 §5, between attempts at the addresses of a name
LINE_OCTETS = 8192
REPLY_OCTETS = 32 << 10
REPLY_CHARACTERS = 4096  # what is kept of a reply's text; a challenge of SCRAM may be that long
CLOSING = 421
WITHOUT_STARTTLS = 'nothing was sent; use port 465 with tls = "implicit" if the server offers it'

_REPLY_LINE = re.compile(rb"([2-5]\d\d)(?:([ -])(.*))?", re.DOTALL)
_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3} ")


class Offline(ConnectionLost):
    """No connection came about at all: name resolution, route or server is not there. No attempt at any message."""


class SessionRefused(Unavailable):
    """The server does not want a session now; `reply` are its words."""

    def __init__(self, text: str, reply: Reply) -> None:
        super().__init__(text, "it is tried again")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step may take, in seconds; all but the first are those of RFC 5321 §4.5.3.2."""

    connect_s: float = 30.0
    command_s: float = 300.0
    data_s: float = 120.0
    block_s: float = 180.0
    final_s: float = 600.0
    goodbye_s: float = 2.0


RFC_5321 = Timeouts()


class Connection(SMTPProtocol):
    """aiosmtplib's protocol with a queue of replies, each for the oldest command that has none yet."""

    def __init__(self, server: str) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.server = server
        self.failure: MaildError | None = None
        self._received = bytearray()
        self._lines: list[str] = []
        self._code = 0
        self._reply_octets = 0
        self._replies: deque[SMTPResponse] = deque()
        self._owed = 1  # replies to come: at first the greeting
        self._arrival = asyncio.Event()
        self._is_upgrading = False

    # -- what arrives

    def data_received(self, data: bytes) -> None:
        if self.failure is not None:
            return
        self._received += data
        try:
            while (end := self._received.find(b"\n")) >= 0:
                line = bytes(self._received[:end]).removesuffix(b"\r")
                del self._received[: end + 1]
                self._take_line(line)
            if len(self._received) > LINE_OCTETS:
                raise ProtocolViolation(f"{self.server} sent an endless line")
        except MaildError as exc:
            self.fail(exc)

    def _take_line(self, line: bytes) -> None:
        found = _REPLY_LINE.fullmatch(line)
        self._reply_octets += len(line)
        if found is None or self._reply_octets > REPLY_OCTETS or len(line) > LINE_OCTETS:
            raise ProtocolViolation(
                f"{self.server} does not answer as an SMTP server does: {_printable(line)[:100]!r}",
                "check host and port",
            )
        if self._lines and int(found[1]) != self._code:
            raise ProtocolViolation(f"{self.server} changed the code within one reply")
        self._code = int(found[1])
        self._lines.append(_printable(found[3] or b""))
        if found[2] == b"-":
            return
        reply = SMTPResponse(self._code, "\n".join(self._lines))
        self._lines, self._reply_octets = [], 0
        self._take_reply(reply)

    def _take_reply(self, reply: SMTPResponse) -> None:
        if len(self._replies) >= self._owed:
            self.fail(_goodbye(self.server, reply))
            return
        self._replies.append(reply)
        self._arrival.set()
        if self._is_upgrading:
            if self._received:
                raise TlsFailed(
                    f"{self.server} sent more in plain text after agreeing to STARTTLS",
                    "somebody on the network may be tampering with the connection; nothing secret was sent",
                )
            cast("asyncio.ReadTransport", self.transport).pause_reading()

    def eof_received(self) -> bool:
        self.fail(ConnectionLost(f"{self.server} closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(ConnectionLost(f"the connection to {self.server} was lost" + (f": {_reason(exc)}" if exc else "")))
        super().connection_lost(exc)

    def fail(self, failure: MaildError) -> None:
        """The connection is over; what was received before still counts. Only the first failure does."""
        if self.failure is None:
            self.failure = failure
            self._arrival.set()
            if self.transport is not None:
                cast("asyncio.WriteTransport", self.transport).abort()

    # -- what is sent

    def send(self, commands: Sequence[bytes], before: bytes = b"") -> None:
        """Write `before` and then commands, all at once; a reply will be owed for each command."""
        if self.failure is not None:
            raise self.failure
        self._owed += len(commands)
        try:
            self.write(before + b"".join(command + b"\r\n" for command in commands))
        except SMTPException as exc:  # the last write failed, and connection_lost() is still to be called
            raise self._lost(exc) from exc

    def owe(self) -> None:
        """From now on one more reply may come: that to a body, which the server may give before its end."""
        self._owed += 1

    async def room(self, timeout_s: float) -> None:
        """Wait until the connection has taken what was written, but for a little."""
        if self.failure is not None:
            raise self.failure
        with self._deadline(timeout_s, "took no more of the message"):
            async with asyncio.timeout(timeout_s):
                await self._drain_helper()

    async def reply(self, timeout_s: float) -> Reply:
        """The next reply. Raises what ended the connection; ConnectionLost after too long a silence."""
        return _reply(await self._response(timeout_s))

    async def _response(self, timeout_s: float) -> SMTPResponse:
        if not self._replies:
            await self._arrived(timeout_s)
        self._owed -= 1
        return self._replies.popleft()

    async def _arrived(self, timeout_s: float) -> None:
        with self._deadline(timeout_s, "did not answer"):
            async with asyncio.timeout(timeout_s):
                while not self._replies:
                    if self.failure is not None:
                        raise self.failure
                    self._arrival.clear()
                    await self._arrival.wait()

    def has_reply(self) -> bool:
        """Whether the server has said something that is not asked for yet, or is gone."""
        return bool(self._replies) or self.failure is not None

    @contextmanager
    def _deadline(self, timeout_s: float, what: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError as exc:
            failure = ConnectionLost(f"{self.server} {what} within {timeout_s:g} s")
            self.fail(failure)
            raise failure from exc
        except OSError as exc:
            raise self.failure or ConnectionLost(f"the connection to {self.server} was lost: {_reason(exc)}") from exc

    async def read_response(self, timeout: float | None = None) -> SMTPResponse:
        """What aiosmtplib's own commands wait by."""
        return await self._response(timeout or RFC_5321.command_s)

    async def run(self, timeout_s: float, *words: bytes) -> Reply:
        """One command and its reply."""
        return _reply(await self._run(timeout_s, *words))

    async def ehlo(self, timeout_s: float) -> tuple[Reply, dict[str, str]]:
        """EHLO: its reply, and the extensions with their parameters, names in lower case."""
        response = await self._run(timeout_s, b"EHLO", self._own_name().encode("ascii"))
        extensions, _ = parse_esmtp_extensions(response.message)
        return _reply(response), extensions

    async def _run(self, timeout_s: float, *words: bytes) -> SMTPResponse:
        if self.failure is not None:
            raise self.failure
        self._owed += 1
        try:
            return await self.execute_command(*words, timeout=timeout_s)
        except SMTPException as exc:
            raise self._lost(exc) from exc

    def _own_name(self) -> str:
        """An address literal (RFC 5321 §4.1.3): true, and tells no more than the connection itself does."""
        name = self.transport and self.transport.get_extra_info("sockname")
        if not name:
            return "localhost"
        address = ipaddress.ip_address(str(name[0]).partition("%")[0])
        return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"

    def certificate(self) -> bytes | None:
        """The server's (DER), None without TLS."""
        tls = self.transport and self.transport.get_extra_info("ssl_object")
        return cast("ssl.SSLObject", tls).getpeercert(binary_form=True) if tls else None

    def _lost(self, exc: SMTPException) -> MaildError:
        """What ended the session: our own word for it, if there is one."""
        return self.failure or ConnectionLost(f"the connection to {self.server} was lost: {exc.message}")

    async def upgrade(self, context: ssl.SSLContext, host: str, timeout_s: float) -> None:
        """STARTTLS (RFC 3207); everything known before is forgotten."""
        self._owed += 1
        self._is_upgrading = True
        try:
            await self.start_tls(context, server_hostname=host, timeout=timeout_s)
        except SMTPResponseException as exc:
            reply = _reply(SMTPResponse(exc.code, exc.message))
            if 400 <= exc.code < 500:
                raise SessionRefused(f"{self.server} cannot do STARTTLS now: {reply}", reply) from exc
            raise TlsFailed(f"{self.server} refused STARTTLS: {reply}", WITHOUT_STARTTLS) from exc
        except SMTPException as exc:
            raise self._lost(exc) from exc
        self._is_upgrading = False


async def connected(endpoint: Smtp, timeouts: Timeouts) -> Connection:
    """A connection, over TLS where that is implicit; its greeting is still to be read. Raises Offline, TlsFailed."""
    protocol = Connection(f"{endpoint.host}:{endpoint.port}")
    context = tls_context(endpoint) if endpoint.tls == "implicit" else None
    delay_s = None if _is_address(endpoint.host) else HAPPY_EYEBALLS_S  # an address leaves nothing to choose from
    try:
        with translated(endpoint):
            async with asyncio.timeout(timeouts.connect_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: protocol, endpoint.host, endpoint.port, ssl=context, happy_eyeballs_delay=delay_s
                )
    except ConnectionLost as exc:
        raise Offline(exc.text, exc.hint) from exc
    if context is not None:
        try:
            check_pin(endpoint, protocol.certificate())
        except TlsFailed as exc:
            protocol.fail(exc)
            raise
    return protocol


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _goodbye(server: str, reply: SMTPResponse) -> MaildError:
    """A reply that no command asked for: 421 is how a server says that it has to go (RFC 5321 §3.8)."""
    if reply.code == CLOSING:
        return ConnectionLost(f"{server} ended the session: {_reply(reply)}")
    return ProtocolViolation(f"{server} answered what was not asked: {_reply(reply)}")


def _reply(response: SMTPResponse) -> Reply:
    """In one line; an enhanced status code that every line repeats stands once (RFC 2034 §4)."""
    first, *others = response.message.split("\n")
    found = _ENHANCED.match(first)
    rest = [line.removeprefix(found[0]) if found else line for line in others]
    return Reply(response.code, " ".join([first, *rest]).strip()[:REPLY_CHARACTERS])


def _printable(octets: bytes) -> str:
    text = octets.decode("utf-8", "replace")
    return (text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)).strip()


def _reason(exc: BaseException) -> str:
    """Without the number that Python puts before it."""
    known = isinstance(exc, OSError) and exc.errno and os.strerror(exc.errno).lower()
    return known or str(exc)
