"""TLS and what is tried against IMAP on the way to it. What is the same for all protocols is in test_tls_table."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import structlog

from maild.core.errors import AuthRejected, ConnectionLost, TlsFailed, Unavailable
from maild.remote.imap.login import login
from maild.remote.net import tls_context
from maild.testing.dialogue import Dialogue
from maild.testing.imap import ImapServer
from maild.testing.store import Store
from tests.remote.conftest import DEADLINE_S, PASSWORD, USER, Connect, imap_endpoint
from tests.servers.certificates import Authority

pytestmark = pytest.mark.usefixtures("quiet_loop")

OFFER = "* OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN SASL-IR] hello"
Mode = Literal["implicit", "starttls"]
MODES: list[Mode] = ["implicit", "starttls"]


def assert_nothing_secret(written: list[bytes]) -> None:
    """STARTTLS and CAPABILITY are all that may ever go out before TLS is up and trusted."""
    assert [line.split()[1] for line in written if line.split()[1] not in (b"STARTTLS", b"CAPABILITY")] == []


# -- octets behind the answer to STARTTLS (B1, B2)


class Attacker:
    """Offers STARTTLS, answers it in pieces, and then plays the server of TLS, keeping what comes inside."""

    def __init__(self, pieces: Callable[[bytes], list[bytes]], context: ssl.SSLContext) -> None:
        self.pieces = pieces
        self.context = context
        self.inside = b""
        self.over = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(OFFER.encode() + b"\r\n")
            tag = (await reader.readline()).split()[0]
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a ClientHello belongs to TLS
            for piece in self.pieces(tag):
                writer.write(piece)
                for _turn in range(3):  # of the loop: the client has read this piece before the next is sent
                    await asyncio.sleep(0)
            await writer.start_tls(self.context)
            self.inside = await reader.read()
        except OSError:
            return
        finally:
            writer.transport.abort()
            self.over.set()


INJECTED: dict[str, Callable[[bytes], list[bytes]]] = {
    "the answer to the next command": lambda tag: [tag + b" OK go\r\n" + tag[:-1] + b"1 OK done\r\n"],
    "capabilities": lambda tag: [tag + b" OK go\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR\r\n"],
    "in two segments": lambda tag: [tag + b" OK go\r\n", b"* CAPABILITY IMAP4rev1 AUTH=LOGIN\r\n"],
    "a partial line": lambda tag: [tag + b" OK go\r\n* CAPABILITY IMAP4r"],
    "a partial line, late": lambda tag: [tag + b" OK go\r\n", b"* CAPABILITY IMAP4r"],
    "one octet": lambda tag: [tag + b" OK go\r\n*"],
    "one octet, late": lambda tag: [tag + b" OK go\r\n", b"*"],
    "an empty line": lambda tag: [tag + b" OK go\r\n\r\n"],
    "an empty line, late": lambda tag: [tag + b" OK go\r\n", b"\r\n"],
    "the OK itself cut": lambda tag: [tag + b" OK g", b"o\r\n* OK [ALERT] call me\r\n"],
    "an alert": lambda tag: [tag + b" OK go\r\n* OK [ALERT] call me\r\n"],
    "a goodbye": lambda tag: [tag + b" OK go\r\n* BYE\r\n"],
    "a literal": lambda tag: [tag + b" OK go\r\n* 1 FETCH (BODY[] {1000}\r\n"],
    "garbage": lambda tag: [tag + b" OK go\r\n\x00\xff\x16"],
    "an endless literal": lambda tag: [tag + b" OK go\r\n* 1 FETCH (BODY[] {99999999999}\r\n"],
}


@pytest.mark.parametrize("pieces", INJECTED.values(), ids=INJECTED)
async def test_octets_behind_the_answer_are_an_attack(
    pieces: Callable[[bytes], list[bytes]], authority: Authority, connect: Connect, written: list[bytes]
) -> None:
    attacker = Attacker(pieces, authority.good().server_context())
    server = await asyncio.start_server(attacker, "127.0.0.1", 0)
    with structlog.testing.capture_logs() as logged:
        async with server, asyncio.timeout(DEADLINE_S):
            endpoint = imap_endpoint(server.sockets[0].getsockname()[1], tls="starttls", ca_file=authority.ca_file)
            with pytest.raises(TlsFailed) as failure:
                await connect(endpoint)
            await attacker.over.wait()
    assert "127.0.0.1" in str(failure.value)
    assert failure.value.hint
    assert attacker.inside == b""
    assert_nothing_secret(written)
    assert not [entry for entry in logged if entry["event"] == "server.alerted"]


# -- data before TLS (T01–T10)

EARLY = [
    '* LIST () "/" evil',
    '* LSUB () "/" evil',
    "* STATUS INBOX (MESSAGES 5)",
    '* STATUS {"evil"} (UIDNEXT 5)',
    "* SEARCH 1 2 3",
    "* FLAGS (\\Evil)",
    "* 5 EXISTS",
    "* 5 RECENT",
    "* 1 EXPUNGE",
    '* 1 FETCH (UID 1 BODY[] {"From: evil"})',
    "* CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN SASL-IR ID",
    "* OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN SASL-IR ID] x",
    "* OK [ALERT] http://evil.example",
    "* OK [REFERRAL imap://evil.example/] x",
    "garbage",
]


@pytest.mark.parametrize("early", EARLY)
async def test_what_was_said_before_tls_is_forgotten(early: str, authority: Authority, connect: Connect) -> None:
    script = (
        f"S: {OFFER}\nS: {early}\nC: $1 STARTTLS\nS: {early}\nS: $1 OK [CAPABILITY IMAP4rev1 ID] go\nTLS\n"
        "C: $2 CAPABILITY\nS: * CAPABILITY IMAP4rev1\nS: $2 OK\n"
        f'C: $3 LOGIN "{USER}" "{PASSWORD}"\nS: $3 OK [CAPABILITY IMAP4rev1] in\nC: $4 LIST "" "*"\nS: $4 OK\nEOF\n'
    )
    with structlog.testing.capture_logs() as logged:
        async with (
            asyncio.timeout(DEADLINE_S),
            Dialogue(script, tls=authority.good().server_context()) as server,
        ):
            endpoint = imap_endpoint(server.port, tls="starttls", ca_file=authority.ca_file)
            session = await connect(endpoint)
            assert session.protocol.capabilities == {"IMAP4REV1"}
            await login(session, USER, PASSWORD)
            assert (await session.run("LIST", '""', '"*"')).events == []
            session.drop()
    assert "evil" not in str(logged)


# -- PREAUTH (P), REFERRAL (L, M), alerts (U)


@pytest.mark.parametrize("code", ["", "[CAPABILITY IMAP4rev1 STARTTLS] ", "[CAPABILITY IMAP4rev1] "])
@pytest.mark.parametrize("mode", ["implicit", "starttls", "none"])
async def test_preauth_is_refused(
    mode: str, code: str, authority: Authority, connect: Connect, written: list[bytes]
) -> None:
    context = authority.good().server_context()
    async with Dialogue(f"S: * PREAUTH {code}welcome\nEOF\n", tls=context, implicit_tls=mode == "implicit") as server:
        with pytest.raises(TlsFailed, match="PREAUTH"):
            await connect(imap_endpoint(server.port, tls=mode, ca_file=authority.ca_file))
    assert written == []


async def test_a_referral_is_not_followed(connect: Connect) -> None:
    visitors: list[object] = []
    elsewhere = await asyncio.start_server(lambda _reader, writer: visitors.append(writer), "127.0.0.1", 0)
    async with elsewhere:
        url = f"imap://{USER}@127.0.0.1:{elsewhere.sockets[0].getsockname()[1]}/"
        script = (
            f"S: * OK [REFERRAL {url}] hello\nC: $1 CAPABILITY\nS: * CAPABILITY IMAP4rev1\nS: $1 OK\n"
            f"C: $2 LOGIN <...>\nS: $2 NO [REFERRAL {url}] ask there\nEOF\n"
        )
        async with Dialogue(script) as server:
            session = await connect(imap_endpoint(server.port))
            with pytest.raises(AuthRejected, match="ask there"):
                await login(session, USER, PASSWORD)
            session.drop()
    assert visitors == []


async def test_a_huge_alert_is_cut_and_escaped(connect: Connect) -> None:
    script = (
        "S: * OK [CAPABILITY IMAP4rev1] hello\nC: $1 CAPABILITY\n"
        f'S!: "* OK [ALERT] {chr(92)}x1b[2J{"y" * 100_000}{chr(92)}r{chr(92)}n"\n'
        "S: * CAPABILITY IMAP4rev1\nS: $1 OK\nEOF\n"
    )
    with structlog.testing.capture_logs() as logged:
        async with Dialogue(script) as server:
            session = await connect(imap_endpoint(server.port))
            await session.run("CAPABILITY")
            session.drop()
    (reason,) = [entry["reason"] for entry in logged if entry["event"] == "server.alerted"]
    assert reason.startswith("\\x1b[2Jyyy")
    assert len(reason) == 301


# -- handshakes


@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize("mode", MODES)
async def test_a_handshake_that_is_never_answered(mode: Mode, authority: Authority, connect: Connect) -> None:
    script = "HANGUP\n" if mode == "implicit" else f"S: {OFFER}\nC: $1 STARTTLS\nS: $1 OK\nHANGUP\n"
    async with Dialogue(script) as server:
        with pytest.raises(ConnectionLost):
            await connect(imap_endpoint(server.port, tls=mode, ca_file=authority.ca_file))


@pytest.mark.parametrize("mode", MODES)
async def test_a_connection_that_ends_in_the_handshake(mode: Mode, authority: Authority, connect: Connect) -> None:
    script = "CLOSE\n" if mode == "implicit" else f"S: {OFFER}\nC: $1 STARTTLS\nS: $1 OK\nCLOSE\n"
    async with Dialogue(script) as server:
        with pytest.raises((ConnectionLost, TlsFailed)):
            await connect(imap_endpoint(server.port, tls=mode, ca_file=authority.ca_file))


async def test_a_goodbye_inside_tls(authority: Authority, connect: Connect) -> None:
    context = authority.good().server_context()
    async with Dialogue("S: * BYE [UNAVAILABLE] later\nCLOSE\n", tls=context, implicit_tls=True) as server:
        with pytest.raises(Unavailable, match="later"):
            await connect(imap_endpoint(server.port, tls="implicit", ca_file=authority.ca_file))


# -- contexts


async def test_endpoints_with_the_same_trust_share_one_context(authority: Authority) -> None:
    first, second = (imap_endpoint(port, tls="implicit", ca_file=authority.ca_file) for port in (1, 2))
    assert tls_context(first) is tls_context(second)
    assert tls_context(first) is not tls_context(imap_endpoint(1, tls="implicit"))
    assert tls_context(first).minimum_version == ssl.TLSVersion.TLSv1_2
    assert tls_context(first).verify_mode == ssl.CERT_REQUIRED
    assert tls_context(first).check_hostname


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
async def test_a_ca_file_that_cannot_be_used(content: bytes | None, tmp_path: Path, connect: Connect) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_bytes(content)
    async with ImapServer(Store()) as server:
        with pytest.raises(TlsFailed, match=r"cannot use ca_file .*ca.pem: .*; it must hold PEM certificates"):
            await connect(imap_endpoint(server.port, tls="implicit", ca_file=ca_file))


async def test_connections_share_what_they_read_into_and_never_each_other_s_octets(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    sizes = [1, 20_000, 65_536, 300_000]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = int(await reader.readline())
        for _ in range(3):
            writer.write(bytes([number]) * sizes[number])
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", ssl=authority.good().server_context())
    context = ssl.create_default_context(cafile=authority.ca_file)

    async def fetch(number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1], ssl=context)
        writer.write(b"%d\n" % number)
        found = await reader.read()
        assert len(writer.transport._ssl_protocol._ssl_buffer) == 0  # type: ignore[attr-defined]  # asyncio's: 256 KiB
        writer.close()
        return found

    async with asyncio.timeout(DEADLINE_S), server:
        found = await asyncio.gather(*(fetch(number % 4) for number in range(12)))
    assert found == [bytes([number % 4]) * sizes[number % 4] * 3 for number in range(12)]
