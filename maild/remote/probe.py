"""A look at a server, layer by layer, without logging in: name, TCP, TLS, greeting, capabilities.

For `maild doctor`, which tells each layer apart, and for finding servers. Nothing about the user is ever sent, so
what a forged answer could do is to be wrong. Blocks; call it in a thread.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from maild.config import Endpoint, Imap, Pop3
from maild.core.errors import ConnectionLost, MaildError, ProtocolViolation, TlsFailed
from maild.remote.net import check_pin, tls_context, translated

Layer = Literal["name", "tcp", "tls", "greeting", "capabilities"]
MOST_OCTETS = 64 << 10
MOST_LINES = 500
_CAPABILITIES = re.compile(r"\[CAPABILITY ([^\]]*)\]|^\* CAPABILITY (.*)$", re.IGNORECASE)
_DER_TIME = rb"(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)"
_VALIDITY = re.compile(_DER_TIME + _DER_TIME)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The server's own certificate. `expires_s` in seconds since 1970 UTC; `names` is () where it was not verified."""

    fingerprint: str
    names: tuple[str, ...]
    issuer: str
    begins_s: float
    expires_s: float


@dataclass(slots=True)
class Reached:
    """How far it went. `failure` is what stopped it at `layer`, None when everything was seen."""

    layer: Layer = "name"
    failure: MaildError | None = None
    addresses: tuple[str, ...] = ()
    name_s: float = 0.0
    address: str = ""
    unreachable: list[tuple[str, str]] = field(default_factory=list)  # addresses that did not answer, and why
    connect_s: float = 0.0
    tls: str = ""
    handshake_s: float = 0.0
    certificate: Certificate | None = None
    greeting: str = ""
    capabilities: frozenset[str] = frozenset()
    mechanisms: frozenset[str] = frozenset()


def reach(endpoint: Endpoint, timeout_s: float) -> Reached:
    """Go as far as it goes, each step within `timeout_s`."""
    reached = Reached()
    try:
        with translated(endpoint):
            _reach(endpoint, reached, timeout_s)
    except MaildError as exc:
        reached.failure = exc
    return reached


def _reach(endpoint: Endpoint, reached: Reached, timeout_s: float) -> None:
    begun = time.monotonic()
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    reached.name_s = time.monotonic() - begun
    reached.addresses = tuple(dict.fromkeys(str(info[4][0]) for info in found))
    reached.layer = "tcp"
    with closing(_Dialogue(endpoint, _connected(endpoint, reached, timeout_s))) as dialogue:
        if endpoint.tls == "implicit":
            reached.layer = "tls"
            dialogue.secure(reached)
        reached.layer = "greeting"
        reached.greeting = dialogue.greeting()
        if endpoint.tls == "starttls":
            reached.layer = "tls"
            dialogue.ask_for_tls()
            dialogue.secure(reached)
        reached.layer = "capabilities"
        reached.capabilities, reached.mechanisms = dialogue.capabilities()
        dialogue.leave()


def _connected(endpoint: Endpoint, reached: Reached, timeout_s: float) -> socket.socket:
    failure: OSError | None = None
    for address in reached.addresses:
        begun = time.monotonic()
        try:
            sock = socket.create_connection((address, endpoint.port), timeout_s)
        except OSError as exc:
            reached.unreachable.append((address, exc.strerror or "no answer in time"))
            failure = exc
            continue
        reached.address, reached.connect_s = address, time.monotonic() - begun
        return sock
    raise failure or ConnectionLost(f"{endpoint.host} has no address")


class _Dialogue:
    """The first sentences of IMAP, POP3 or SMTP."""

    def __init__(self, endpoint: Endpoint, sock: socket.socket) -> None:
        self._endpoint = endpoint
        self._sock = sock
        self._buffer = b""
        self._server = f"{endpoint.host}:{endpoint.port}"
        self._protocol = "imap" if isinstance(endpoint, Imap) else "pop3" if isinstance(endpoint, Pop3) else "smtp"

    def secure(self, reached: Reached) -> None:
        """The handshake, with everything verified as for real use."""
        if self._buffer:
            raise TlsFailed(f"{self._server} sent more in plain text after agreeing to TLS", "it may be tampered with")
        begun = time.monotonic()
        tls = tls_context(self._endpoint).wrap_socket(self._sock, server_hostname=self._endpoint.host)
        self._sock = tls
        reached.handshake_s = time.monotonic() - begun
        octets = tls.getpeercert(binary_form=True) or b""
        reached.tls = tls.version() or ""
        reached.certificate = _certificate(tls, octets)
        check_pin(self._endpoint, octets)

    def close(self) -> None:
        """Close at once."""
        self._sock.close()

    def greeting(self) -> str:
        line = next(iter(self._reply())) if self._protocol == "smtp" else self._line()
        wanted = {"imap": "* OK", "pop3": "+OK", "smtp": "220"}[self._protocol]
        if not line.upper().startswith(wanted):
            raise ProtocolViolation(
                f"{self._server} does not greet as an {self._protocol.upper()} server does: {line[:200]}",
                "check host and port",
            )
        return line

    def ask_for_tls(self) -> None:
        before, _ = self.capabilities()
        command = {"imap": "STARTTLS", "pop3": "STLS", "smtp": "STARTTLS"}[self._protocol]
        if command not in before and (before or self._protocol != "pop3"):
            hint = 'nothing was sent; use tls = "implicit" with the port for it, if the server offers that'
            raise TlsFailed(f"{self._server} does not offer {command}", hint)
        if self._protocol == "imap":
            answer = self._imap(command)[-1]
            is_good = answer.upper().startswith("X1 OK")
        else:
            self._send(command)
            answer = self._reply()[-1] if self._protocol == "smtp" else self._line()
            is_good = answer.startswith(("220", "+OK"))
        if not is_good:
            raise TlsFailed(f"{self._server} refused {command}: {answer[:200]}", "nothing was sent")

    def capabilities(self) -> tuple[frozenset[str], frozenset[str]]:
        """What it offers, and the mechanisms to log in by, in upper case."""
        match self._protocol:
            case "imap":
                told = [
                    found[1] or found[2] or ""
                    for line in self._imap("CAPABILITY")
                    if (found := _CAPABILITIES.search(line))
                ]
                words = frozenset(" ".join(told).upper().split())
                return words, frozenset(word[5:] for word in words if word.startswith("AUTH="))
            case "pop3":
                lines = self._listing("CAPA")
                told_by = {line.split(" ")[0].upper(): line.upper().split()[1:] for line in lines if line}
                return frozenset(told_by), frozenset(told_by.get("SASL", ()))
            case _:
                self._send("EHLO localhost")
                lines = [line[4:].strip().upper() for line in self._reply()[1:]]
                mechanisms = next((line.split()[1:] for line in lines if line.startswith("AUTH ")), [])
                return frozenset(line.split(" ")[0] for line in lines if line), frozenset(mechanisms)

    def leave(self) -> None:
        self._send("X9 LOGOUT" if self._protocol == "imap" else "QUIT")

    # -- lines

    def _imap(self, command: str) -> list[str]:
        self._send(f"X1 {command}")
        lines: list[str] = []
        for line in self._lines():
            lines.append(line)
            if line.upper().startswith("X1 "):
                break
        return lines

    def _listing(self, command: str) -> list[str]:
        self._send(command)
        if not self._line().startswith("+OK"):
            return []
        lines = []
        for line in self._lines():
            if line == ".":
                break
            lines.append(line)
        return lines

    def _reply(self) -> list[str]:
        lines = []
        for line in self._lines():
            lines.append(line)
            if line[3:4] != "-":
                break
        return lines

    def _lines(self) -> Iterator[str]:
        for _ in range(MOST_LINES):
            yield self._line()
        raise ProtocolViolation(f"{self._server} answers without end", "check host and port")

    def _line(self) -> str:
        while b"\n" not in self._buffer:
            chunk = self._sock.recv(4096)
            if not chunk:
                raise ConnectionLost(f"{self._server} closed the connection", "check host and port")
            self._buffer += chunk
            if len(self._buffer) > MOST_OCTETS:
                raise ProtocolViolation(f"{self._server} sends a line without end", "check host and port")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("utf-8", "replace").rstrip("\r")

    def _send(self, line: str) -> None:
        self._sock.sendall(line.encode() + b"\r\n")


def _certificate(tls: ssl.SSLSocket, octets: bytes) -> Certificate:
    told: Mapping[str, Any] = tls.getpeercert() or {}
    issuer = {key: value for part in told.get("issuer", ()) for key, value in part}
    begins_s, expires_s = _validity(octets)
    return Certificate(
        fingerprint="sha256:" + hashlib.sha256(octets).hexdigest(),
        names=tuple(name for _, name in told.get("subjectAltName", ())),
        issuer=issuer.get("organizationName") or issuer.get("commonName") or "",
        begins_s=begins_s,
        expires_s=expires_s,
    )


def _validity(octets: bytes) -> tuple[float, float]:
    """notBefore and notAfter of a certificate (RFC 5280 §4.1.2.5), which is read so also where it is only pinned.

    They are the first two neighbouring DER times in it; (0, 0) where there are none.
    """
    found = _VALIDITY.search(octets)
    return (_seconds(found[1] or found[2]), _seconds(found[3] or found[4])) if found else (0.0, 0.0)


def _seconds(text: bytes) -> float:
    """UTCTime has two digits for the year, and 50 is 1950 (RFC 5280 §4.1.2.5.1)."""
    digits = text.decode("ascii")
    if len(digits) == 12:
        digits = ("19" if digits >= "5" else "20") + digits
    try:
        return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
