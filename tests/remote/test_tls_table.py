"""One table for IMAP, POP3 and SMTP: whatever is wrong with TLS, no credential goes out, and the text says why."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from maild.config import Imap, NoSecret, Password, Pop3, Smtp
from maild.core.errors import ConnectionLost, MaildError, ProtocolViolation, TlsFailed, Unavailable
from maild.remote.auth import Credentials
from maild.remote.imap.login import login
from maild.remote.imap.session import ImapSession
from maild.remote.net import tls_context
from maild.remote.pop3.session import Pop3Session
from maild.remote.smtp import Timeouts
from maild.remote.submission import SmtpSession
from maild.testing.dialogue import Dialogue
from maild.testing.imap import ImapServer
from maild.testing.pop3 import Pop3Server
from maild.testing.smtp import SmtpServer
from maild.testing.store import Store
from tests.remote.conftest import DEADLINE_S, LONGEST_OCTETS, PASSWORD, USER
from tests.servers.certificates import HOSTS, Authority, Certificate

pytestmark = pytest.mark.usefixtures("quiet_loop")

Mode = Literal["implicit", "starttls"]
Endpoint = Imap | Pop3 | Smtp
TIMES = Timeouts(connect_s=DEADLINE_S, command_s=DEADLINE_S, goodbye_s=0.1)
OTHERS = ("imap.mail.example", "mail.example", "a.b.mail.example")


@dataclass(frozen=True)
class Kind:
    """A protocol: how to log in there, a server that lets USER in, and how its side of an upgrade begins."""

    endpoint: type[Imap] | type[Pop3] | type[Smtp]
    log_in: Callable[[Any], Awaitable[None]]
    server: Callable[[Mode, ssl.SSLContext], Any]
    offer: str  # the script up to the client's wish for TLS
    agreed: str  # what the server says to that
    clear: bytes  # all that may ever be sent without TLS, in such a session
    refusals: dict[str, tuple[type[MaildError], str]]
    withheld: dict[str, type[MaildError]]


async def imap_in(endpoint: Imap) -> None:
    session = await ImapSession.connect(endpoint, LONGEST_OCTETS)
    try:
        await login(session, endpoint.user, PASSWORD)
        await session.run("CAPABILITY")
    finally:
        session.drop()


async def pop3_in(endpoint: Pop3) -> None:
    session = await Pop3Session.connect(endpoint, LONGEST_OCTETS)
    try:
        await session.login(endpoint.user, PASSWORD)
    finally:
        await session.leave()


async def smtp_in(endpoint: Smtp) -> None:
    session = await SmtpSession.open(endpoint, Credentials(endpoint, "work"), TIMES)
    session.drop()


def imap_server(mode: Mode, context: ssl.SSLContext) -> ImapServer:
    options: dict[str, Any] = {"ssl_context" if mode == "implicit" else "starttls_context": context}
    return ImapServer(Store(), {USER: PASSWORD}, **options)


def pop3_server(mode: Mode, context: ssl.SSLContext) -> Pop3Server:
    options: dict[str, Any] = {"ssl_context" if mode == "implicit" else "stls_context": context}
    return Pop3Server((), {USER: PASSWORD}, **options)


def smtp_server(mode: Mode, context: ssl.SSLContext) -> SmtpServer:
    options: dict[str, Any] = {"tls" if mode == "implicit" else "starttls": context}
    return SmtpServer(users={USER: PASSWORD}, **options)


KINDS = {
    "imap": Kind(
        Imap,
        imap_in,
        imap_server,
        offer="S: * OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN SASL-IR] hello\nC: $1 STARTTLS\n",
        agreed="$1 OK go",
        clear=rb"\S+ STARTTLS\r\n",
        refusals={
            "S: $1 NO not here": (TlsFailed, "refused STARTTLS: not here"),
            "S: $1 BAD Unknown command": (TlsFailed, "refused STARTTLS: Unknown command"),
            "S: + go ahead": (TlsFailed, r"refused STARTTLS: \+ go ahead"),
            "S: * BYE no": (ConnectionLost, "ended the connection: no"),
            "CLOSE": (ConnectionLost, "closed the connection"),
        },
        withheld={
            "S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hello\n": TlsFailed,
            "S: * OK hello\nC: $1 CAPABILITY\nS: * CAPABILITY IMAP4rev1 AUTH=PLAIN\nS: $1 OK\n": TlsFailed,
            "S: * OK hello\nC: $1 CAPABILITY\nS: $1 BAD what\n": ProtocolViolation,
            "S: * OK hello\nC: $1 CAPABILITY\nS: * CAPABILITY IMAP4\nS: $1 OK\n": ProtocolViolation,
            "S: * PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] welcome\n": TlsFailed,
            "S: * PREAUTH welcome\n": TlsFailed,
        },
    ),
    "pop3": Kind(
        Pop3,
        pop3_in,
        pop3_server,
        offer="S: +OK hello\nC: CAPA\nS: +OK\nS: STLS\nS: SASL PLAIN\nS: .\nC: STLS\n",
        agreed="+OK go",
        clear=rb"CAPA\r\nSTLS\r\n",
        refusals={
            "S: -ERR not here": (TlsFailed, "refused STLS: not here"),
            "S: + go ahead": (TlsFailed, "refused STLS: go ahead"),
            "S: whatever": (TlsFailed, "did not answer STLS as it should"),
            "CLOSE": (ConnectionLost, "closed the connection"),
        },
        withheld={
            "S: +OK hello\nC: CAPA\nS: +OK\nS: SASL PLAIN\nS: USER\nS: .\n": TlsFailed,
            "S: +OK hello\nC: CAPA\nS: -ERR what\nC: STLS\nS: -ERR what\n": TlsFailed,
            "S: -ERR [SYS/TEMP] later\n": Unavailable,
        },
    ),
    "smtp": Kind(
        Smtp,
        smtp_in,
        smtp_server,
        offer="S: 220 hello\nC: EHLO <...>\nS: 250-hello\nS: 250-AUTH PLAIN\nS: 250 STARTTLS\nC: STARTTLS\n",
        agreed="220 go",
        clear=rb"EHLO \S+\r\nSTARTTLS\r\n",
        refusals={
            "S: 502 5.5.1 not here": (TlsFailed, "refused STARTTLS: 502 5.5.1 not here"),
            "S: 554 5.7.0 not here": (TlsFailed, "refused STARTTLS: 554"),
            "S: 354 go ahead": (TlsFailed, "refused STARTTLS: 354"),
            "S: 250 whatever": (TlsFailed, "refused STARTTLS: 250"),
            "S: 454 4.7.0 not now": (Unavailable, "cannot do STARTTLS now: 454"),
            "S: whatever": (ProtocolViolation, "does not answer as an SMTP server does"),
            "CLOSE": (ConnectionLost, "closed the connection"),
        },
        withheld={
            "S: 220 hello\nC: EHLO <...>\nS: 250-hello\nS: 250 AUTH PLAIN LOGIN\n": TlsFailed,
            "S: 220 hello\nC: EHLO <...>\nS: 502 what\n": Unavailable,  # and no HELO
            "S: 554 go away\n": Unavailable,
        },
    ),
}
EVERY = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
MODES = pytest.mark.parametrize("mode", ["implicit", "starttls"])


def endpoint(kind: Kind, port: int, mode: Mode, **changes: Any) -> Any:
    values: dict[str, Any] = {"host": "localhost", "user": USER, "secret": Password(PASSWORD)}
    return kind.endpoint(port=port, tls=mode, **(values | changes))


class Tee:
    """Between client and server, keeping what the client sends."""

    def __init__(self, target: int) -> None:
        self.sent: list[bytearray] = []
        self._target = target
        self._over: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Tee:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*self._over)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sent.append(bytearray())
        self._over.append(asyncio.get_running_loop().create_task(self._carry(reader, writer, self.sent[-1])))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytearray) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, kept: bytearray | None) -> None:
            try:
                while octets := await source.read(65536):
                    if kept is not None:
                        kept.extend(octets)
                    target.write(octets)
            except OSError:
                return  # a reset is an end like another
            finally:
                target.close()

        await asyncio.gather(pump(reader, back, sent), pump(there, writer, None))
        for stream in (back, writer):
            with suppress(OSError):
                await stream.wait_closed()


@asynccontextmanager
async def teed(kind: Kind, mode: Mode, context: ssl.SSLContext) -> AsyncIterator[Tee]:
    """A server, and what was sent to it: in clear only the wish for TLS, and nothing that a failed handshake allows."""
    async with cast("AbstractAsyncContextManager[Any]", kind.server(mode, context)) as server, Tee(server.port) as tee:
        yield tee
    for sent in tee.sent:
        expected = (kind.clear if mode == "starttls" else b"") + rb"(?:\x16\x03.*)?"
        assert re.fullmatch(expected, bytes(sent), re.DOTALL), bytes(sent)[:200]


async def refused(kind: Kind, where: Endpoint, text: str, *errors: type[MaildError]) -> None:
    with pytest.raises(errors or (TlsFailed,), match=text) as failure:
        async with asyncio.timeout(DEADLINE_S):
            await kind.log_in(where)
    assert failure.value.hint or isinstance(failure.value, ConnectionLost)
    assert PASSWORD not in str(failure.value)


async def accepted(kind: Kind, where: Endpoint) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await kind.log_in(where)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names under mail.example are this machine."""
    real = socket.getaddrinfo

    def here(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if name in OTHERS else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", here)


# -- certificates (C1–C8)

ANOTHER_NAME = "its certificate is for another name; use as host a name that the certificate holds"
BAD: dict[str, tuple[str, str, Callable[[Authority, Path], Certificate]]] = {
    "wrong name": ("localhost", ANOTHER_NAME, lambda authority, _: authority.wrong_name()),
    "wrong address": ("127.0.0.1", "for another address", lambda authority, _: authority.wrong_name()),
    "name for address": ("127.0.0.1", "for another address", lambda authority, _: authority.good(["localhost"])),
    "address for name": ("localhost", ANOTHER_NAME, lambda authority, _: authority.good(["127.0.0.1"])),
    "common name": ("localhost", ANOTHER_NAME, lambda authority, _: authority.common_name_only()),
    "wildcard above": ("mail.example", ANOTHER_NAME, lambda authority, _: authority.good(["*.mail.example"])),
    "wildcard two below": ("a.b.mail.example", ANOTHER_NAME, lambda authority, _: authority.good(["*.mail.example"])),
    "expired": ("localhost", "has expired; the server's operator", lambda authority, _: authority.expired()),
    "not yet valid": (
        "localhost",
        "is not valid yet; check this machine's clock",
        lambda authority, _: authority.not_yet_valid(),
    ),
    "unknown authority": (
        "localhost",
        "comes from an unknown authority; give the authority's certificate as ca_file",
        lambda _, directory: Authority(directory / "foreign").good(),
    ),
    "self-signed": (
        "localhost",
        "is self-signed; if it is yours, give it as ca_file or pin it",
        lambda authority, _: authority.self_signed(),
    ),
}


@EVERY
@MODES
@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("fault", BAD)
async def test_bad_certificates(fault: str, mode: Mode, kind: Kind, authority: Authority, tmp_path: Path) -> None:
    host, text, make = BAD[fault]
    async with teed(kind, mode, make(authority, tmp_path).server_context()) as tee:
        where = endpoint(kind, tee.port, mode, host=host, ca_file=authority.ca_file)
        await refused(kind, where, f"{host}:{tee.port} cannot be trusted: .*{text}")
    assert len(tee.sent) == 1


@EVERY
@MODES
async def test_no_server_may_renegotiate(mode: Mode, kind: Kind, authority: Authority) -> None:
    """Python's own server cannot try it: what OpenSSL was told is looked at."""
    context = tls_context(endpoint(kind, 1, mode, host="localhost", ca_file=authority.ca_file))
    assert context.options & ssl.OP_NO_RENEGOTIATION


@EVERY
@MODES
@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "imap.mail.example"])
async def test_good_certificates(host: str, mode: Mode, kind: Kind, authority: Authority) -> None:
    context = authority.good([*HOSTS, "*.mail.example"]).server_context()
    async with teed(kind, mode, context) as tee:
        await accepted(kind, endpoint(kind, tee.port, mode, host=host, ca_file=authority.ca_file))
        await refused(kind, endpoint(kind, tee.port, mode, host=host), "cannot be trusted")  # the system's own trust


@EVERY
@MODES
async def test_old_tls(mode: Mode, kind: Kind, authority: Authority) -> None:
    context = authority.good().server_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with teed(kind, mode, context) as tee:
        where = endpoint(kind, tee.port, mode, ca_file=authority.ca_file)
        # A server that shares no version with us may say so, or just close.
        await refused(kind, where, "failed: |closed the connection|was lost", TlsFailed, ConnectionLost)


# -- pins, and trust that changes


@EVERY
@MODES
async def test_pins(mode: Mode, kind: Kind, authority: Authority, tmp_path: Path) -> None:
    certificate, other = authority.self_signed(), Authority(tmp_path / "foreign").good()
    right, wrong = f"sha256:{certificate.fingerprint()}", f"sha256:{other.fingerprint()}"
    async with teed(kind, mode, certificate.server_context()) as tee:
        await refused(kind, endpoint(kind, tee.port, mode, tls_fingerprint=wrong), f"{right}, not the pinned one")
        both = endpoint(kind, tee.port, mode, tls_fingerprint=right, ca_file=authority.ca_file)
        await refused(kind, both, "self-signed")
        await accepted(kind, endpoint(kind, tee.port, mode, tls_fingerprint=right))


@EVERY
@MODES
async def test_a_pin_and_a_ca_file_must_both_hold(mode: Mode, kind: Kind, authority: Authority) -> None:
    certificate = authority.good()
    async with teed(kind, mode, certificate.server_context()) as tee:
        for fingerprint in (certificate.fingerprint(), "0" * 64):
            pin = f"sha256:{fingerprint}"
            where = endpoint(kind, tee.port, mode, ca_file=authority.ca_file, tls_fingerprint=pin)
            if fingerprint == certificate.fingerprint():
                await accepted(kind, where)
            else:
                await refused(kind, where, "not the pinned one")


@EVERY
@MODES
async def test_a_ca_file_that_is_replaced(mode: Mode, kind: Kind, authority: Authority, tmp_path: Path) -> None:
    """No reload is needed: whoever connects next has the new trust, and the old one no longer."""
    ca_file = tmp_path / "ca.pem"
    shutil.copy(authority.ca_file, ca_file)
    other = Authority(tmp_path / "other")
    async with teed(kind, mode, authority.good().server_context()) as tee:
        where = endpoint(kind, tee.port, mode, ca_file=ca_file)
        await accepted(kind, where)
        shutil.copy(other.ca_file, ca_file)
        await refused(kind, where, "unknown authority")
        fresh = tmp_path / "fresh.pem"
        fresh.write_bytes(authority.ca_file.read_bytes())
        fresh.replace(ca_file)
        await accepted(kind, where)


@EVERY
@MODES
async def test_a_certificate_that_changes_between_connections(mode: Mode, kind: Kind, authority: Authority) -> None:
    first, second = authority.good(), authority.self_signed()
    pin = f"sha256:{first.fingerprint()}"
    context = first.server_context()
    async with teed(kind, mode, context) as tee:
        pinned = endpoint(kind, tee.port, mode, tls_fingerprint=pin)
        trusting = endpoint(kind, tee.port, mode, ca_file=authority.ca_file)
        await accepted(kind, pinned)
        await accepted(kind, trusting)
        context.load_cert_chain(second.chain_file, second.key_file)
        await refused(kind, pinned, "not the pinned one")
        await refused(kind, trusting, "self-signed")


# -- the upgrade (O, D, B, P)


def refusals() -> list[Any]:
    return [
        pytest.param(kind, answer, id=f"{name}: {answer}") for name, kind in KINDS.items() for answer in kind.refusals
    ]


@pytest.mark.parametrize(("kind", "answer"), refusals())
async def test_an_upgrade_that_is_refused(kind: Kind, answer: str, authority: Authority) -> None:
    error, text = kind.refusals[answer]
    async with Dialogue(f"{kind.offer}{answer}\nEOF\n") as server:
        where = endpoint(kind, server.port, "starttls", ca_file=authority.ca_file)
        with pytest.raises(error, match=text):
            await accepted(kind, where)


def withheld() -> list[Any]:
    return [
        pytest.param(kind, script, id=f"{name}-{number}")
        for name, kind in KINDS.items()
        for number, script in enumerate(kind.withheld)
    ]


@pytest.mark.parametrize(("kind", "script"), withheld())
async def test_an_upgrade_that_is_not_offered(kind: Kind, script: str, authority: Authority) -> None:
    async with Dialogue(f"{script}EOF\n") as server:
        with pytest.raises(kind.withheld[script]):
            await accepted(kind, endpoint(kind, server.port, "starttls", ca_file=authority.ca_file))


INJECTED = {
    "an answer": ["{agreed}\\r\\n{agreed}\\r\\n"],
    "an answer, late": ["{agreed}\\r\\n", "{agreed}\\r\\n"],
    "a partial line": ["{agreed}\\r\\n{agreed}"],
    "one octet": ["{agreed}\\r\\n*"],
    "one octet, late": ["{agreed}\\r\\n", "*"],
    "an empty line": ["{agreed}\\r\\n\\r\\n"],
    "an empty line, late": ["{agreed}\\r\\n", "\\r\\n"],
    "its own answer cut": ["{agreed}", " on\\r\\n{agreed}\\r\\n"],
    "garbage": ["{agreed}\\r\\n\\x00\\xff\\x16"],
}


@EVERY
@pytest.mark.parametrize("pieces", INJECTED.values(), ids=INJECTED)
async def test_octets_behind_the_answer_are_an_attack(pieces: list[str], kind: Kind, authority: Authority) -> None:
    """Whatever they are, nothing is sent inside TLS, where they would be taken for answers."""
    attacker = Attacker(kind, pieces, authority.good().server_context())
    server = await asyncio.start_server(attacker, "127.0.0.1", 0)
    async with server, asyncio.timeout(DEADLINE_S):
        where = endpoint(kind, server.sockets[0].getsockname()[1], "starttls", ca_file=authority.ca_file)
        with pytest.raises((TlsFailed, ConnectionLost)):
            await accepted(kind, where)
        await attacker.over.wait()
    assert attacker.inside == b""
    assert re.fullmatch(kind.clear, attacker.clear), attacker.clear


class Attacker:
    """Plays the script of the offer, says the pieces, and then is the server of TLS, keeping what comes inside."""

    def __init__(self, kind: Kind, pieces: list[str], context: ssl.SSLContext) -> None:
        self.clear = self.inside = b""
        self.over = asyncio.Event()
        self._kind = kind
        self._pieces = pieces
        self._context = context

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for step in self._kind.offer.splitlines():
                if step.startswith("S: "):
                    writer.write(step[3:].encode() + b"\r\n")
                else:
                    self.clear += await reader.readline()
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a ClientHello belongs to TLS
            agreed = self._kind.agreed.replace("$1", self.clear.split()[0].decode())
            for piece in self._pieces:
                text = piece.replace("{agreed}", agreed)
                writer.write(text.encode("latin-1").decode("unicode_escape").encode("latin-1"))
                for _turn in range(3):  # of the loop: the client has read this piece before the next is sent
                    await asyncio.sleep(0)
            await writer.start_tls(self._context)
            self.inside = await reader.read()
        except OSError:
            return
        finally:
            writer.transport.abort()
            self.over.set()


# -- servers of something else (G, H)

STRANGE = {
    "http": "HTTP/1.1 400 Bad Request",
    "smtp": "220 hello",
    "imap": "* OK [CAPABILITY IMAP4rev1] hello",
    "pop3": "+OK hello",
    "ssh": "SSH-2.0-OpenSSH_9.2",
    "nothing": "",
}


def strangers() -> list[Any]:
    return [
        pytest.param(kind, STRANGE[what], id=f"{name} meets {what}")
        for name, kind in KINDS.items()
        for what in STRANGE
        if what != name
    ]


@pytest.mark.parametrize(("kind", "greeting"), strangers())
@MODES
async def test_a_server_of_something_else(mode: Mode, kind: Kind, greeting: str, authority: Authority) -> None:
    context = authority.good().server_context()
    script = f"S: {greeting}\nEOF\n" if greeting else "CLOSE\n"
    async with Dialogue(script, tls=context, implicit_tls=mode == "implicit") as server:
        where = endpoint(kind, server.port, mode, ca_file=authority.ca_file)
        with pytest.raises((ProtocolViolation, ConnectionLost)):
            await accepted(kind, where)


@EVERY
async def test_plain_text_where_tls_should_be(kind: Kind, authority: Authority) -> None:
    async with Dialogue("S: * OK hello\nHANGUP\n") as server:
        where = endpoint(kind, server.port, "implicit", ca_file=authority.ca_file)
        await refused(kind, where, 'if this port speaks plain text first, use tls = "starttls"')


# -- our own key


@EVERY
@pytest.mark.parametrize("is_one_file", [False, True])
async def test_a_key_that_others_can_read(
    is_one_file: bool, kind: Kind, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = authority.good()
    chain, key = tmp_path / "me.pem", tmp_path / "me.key"
    shutil.copy(issued.chain_file, chain)
    shutil.copy(issued.key_file, key)
    if is_one_file:
        chain.write_bytes(key.read_bytes() + chain.read_bytes())
    files = {"client_cert": chain} if is_one_file else {"client_cert": chain, "client_key": key}
    secret = chain if is_one_file else key
    where = endpoint(kind, 1, "implicit", secret=NoSecret(), auth="external", **files)
    for mode in (0o640, 0o604, 0o620):
        secret.chmod(mode)
        with pytest.raises(TlsFailed, match=f"{secret} holds a private key, and others have .*chmod 600 {secret}"):
            await accepted(kind, where)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert tls_context(where)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    secret.chmod(0o600)
    assert tls_context(where)
