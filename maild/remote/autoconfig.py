"""Mozilla's autoconfig: a provider's own description of its servers (draft-ietf-mailmaint-autoconfig).

Asked for over HTTPS only, with certificates verified; a redirect leads to HTTPS or nowhere. What comes is hostile until
it is read: it is cut at 256 KiB, a document type or an entity in it ends the reading, and a server without TLS is not
taken. Blocks; call `fetch` in a thread.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage
from typing import IO
from xml.parsers import expat

from maild import __version__
from maild.config import units
from maild.core.providers import ServerProtocol, ServerTls

TIMEOUT_S = 8.0
MOST_OCTETS = 256 << 10
MOST_SERVERS = 32
_TLS: dict[str, ServerTls] = {"ssl": "implicit", "starttls": "starttls"}
_PROTOCOLS: dict[tuple[str, str], ServerProtocol] = {
    ("incomingserver", "imap"): "imap",
    ("incomingserver", "pop3"): "pop3",
    ("outgoingserver", "smtp"): "smtp",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """A server that somebody says is the right one, and the user name there."""

    protocol: ServerProtocol
    host: str
    port: int
    tls: ServerTls
    user: str


class Unreadable(Exception):
    """It is no description of servers that can be read safely."""


def fetch(url: str, context: ssl.SSLContext | None = None) -> bytes | None:
    """The document, None where there is none, whatever the reason. `context` is for tests."""
    request = urllib.request.Request(url, headers={"User-Agent": f"maild/{__version__}"})  # noqa: S310  # https only
    if request.type != "https":
        return None
    handler = urllib.request.HTTPSHandler(context=context or ssl.create_default_context())
    opener = urllib.request.OpenerDirector()
    for part in (urllib.request.ProxyHandler(), handler, _HttpsOnly()):
        opener.add_handler(part)
    opener.add_handler(urllib.request.HTTPDefaultErrorHandler())
    opener.add_handler(urllib.request.HTTPErrorProcessor())
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            octets: bytes = response.read(MOST_OCTETS + 1)
            return octets if response.status == 200 and len(octets) <= MOST_OCTETS else None
    except (OSError, HTTPException, ValueError):
        return None  # no such host, no such page, a certificate that cannot be trusted: there is none here


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    max_redirections = 3

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://"):
            raise urllib.error.URLError("a redirect away from HTTPS")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def read(octets: bytes, address: str) -> list[Offer]:
    """The servers of a document that maild can use, in its order. Raises Unreadable."""
    reader = _Reader()
    try:
        reader.parser.Parse(octets, True)
    except expat.ExpatError as exc:
        raise Unreadable(f"it is not XML: {exc}") from exc
    return [offer for kind, fields in reader.servers[:MOST_SERVERS] for offer in _offers(kind, fields, address)]


@dataclass(slots=True)
class _Reader:
    """Collects the texts inside each server; everything else is passed over."""

    servers: list[tuple[tuple[str, str], dict[str, str]]] = field(default_factory=list)
    parser: expat.XMLParserType = field(init=False)
    _path: list[str] = field(default_factory=list)
    _text: str = ""

    def __post_init__(self) -> None:
        self.parser = parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        parser.ExternalEntityRefHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._take

    def _refuse(self, *_args: object) -> int:
        raise Unreadable("it has a document type or entities")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name.lower())
        self._text = ""
        if len(self._path) == 3 and name.lower() in ("incomingserver", "outgoingserver"):
            self.servers.append(((name.lower(), attributes.get("type", "").lower()), {}))

    def _take(self, text: str) -> None:
        self._text = (self._text + text)[:1000]

    def _end(self, name: str) -> None:
        if len(self._path) == 4 and self._path[2] in ("incomingserver", "outgoingserver"):
            self.servers[-1][1].setdefault(name.lower(), self._text.strip())
        self._path.pop()


def _offers(kind: tuple[str, str], fields: dict[str, str], address: str) -> Iterator[Offer]:
    """One, or none where it is no server for us: another protocol, no TLS, a host or port that cannot be one."""
    protocol, tls = _PROTOCOLS.get(kind), _TLS.get(fields.get("sockettype", "").lower())
    if protocol is None or tls is None:
        return
    try:
        host = units.host(_filled(fields.get("hostname", ""), address).lower())
        port = units.port(int(fields.get("port", "0")))
        user = units.line(_filled(fields.get("username", "") or "%EMAILADDRESS%", address))
    except ValueError:
        return
    yield Offer(protocol, host, port, tls, user)


def _filled(text: str, address: str) -> str:
    local, _, domain = address.rpartition("@")
    for name, value in (("%EMAILADDRESS%", address), ("%EMAILLOCALPART%", local), ("%EMAILDOMAIN%", domain)):
        text = text.replace(name, value)
    return text
