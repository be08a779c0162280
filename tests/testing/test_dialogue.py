"""The scripted server: what it sends, what it expects, and how it says that the client left the script."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from maild.testing.dialogue import Dialogue, Mismatch, ScriptError
from tests.testing.conftest import RawClient

HELLO = """
# a comment
S: * OK hello
C: $1 LOGIN <...> "pw"
S: $1 OK done
"""


async def opened(dialogue: Dialogue, tls: ssl.SSLContext | None = None) -> RawClient:
    name = "localhost" if tls else None
    return RawClient(*await asyncio.open_connection(dialogue.host, dialogue.port, ssl=tls, server_hostname=name))


async def closed(client: RawClient) -> None:
    client.writer.close()
    await client.writer.wait_closed()


async def test_a_conversation_with_tags() -> None:
    script = HELLO + "C: $2 NOOP\nC: $3 X $2 $3\nS: $3 OK\nS: $2 OK {5}\nEOF\n"
    async with Dialogue(script) as dialogue:
        client = await opened(dialogue)
        assert await client.response() == b"* OK hello"
        assert await client.ask('LOGIN "any (one)" "pw"') == [b"OK done"]
        client.writer.write(b"A7 NOOP\r\nB8 X A7 B8\r\n")
        assert await client.reader.readuntil(b"{5}\r\n") == b"B8 OK\r\nA7 OK {5}\r\n"
        await closed(client)


async def test_literals_files_escapes_and_repeats(tmp_path: Path) -> None:
    (tmp_path / "mail.eml").write_bytes(b"a\r\nb\x00")
    path = tmp_path / "script.txt"
    path.write_text(
        'S: x {"\\xfc\\r\\n"} {<mail.eml}) ü\nS!: "\\x00\\r"\nS*3: * $# EXISTS $#\nC!: "DONE\\r\\nx"\nCLOSE\n'
    )
    async with Dialogue.from_file(path) as dialogue:
        client = await opened(dialogue)
        wanted = b"x {3}\r\n\xfc\r\n {5}\r\na\r\nb\x00) \xc3\xbc\r\n\x00\r"
        wanted += b"* 1 EXISTS 1\r\n* 2 EXISTS 2\r\n* 3 EXISTS 3\r\n"
        assert await client.reader.readexactly(len(wanted)) == wanted
        client.writer.write(b"DONE\r\nx")
        assert await client.rest() == b""
        await closed(client)


class Pieces(asyncio.Protocol):
    """Keeps what arrives as it arrives."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def test_chunks_arrive_in_pieces_and_reset_is_one() -> None:
    async with Dialogue("S: abc\nCHUNK 2\nS: def\nRESET\n") as dialogue:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(Pieces, dialogue.host, dialogue.port)
        async with asyncio.timeout(5):
            error = await client.lost
        assert b"".join(client.pieces) == b"abc\r\ndef\r\n"
        assert client.pieces[-2:] == [b"f\r", b"\n"]
        assert isinstance(error, ConnectionResetError)


async def test_wait_is_for_the_test() -> None:
    async with Dialogue("S: one\nWAIT go\nS: two\nCLOSE\n") as dialogue:
        client = await opened(dialogue)
        assert await client.response() == b"one"
        rest = asyncio.ensure_future(client.rest())
        done, _ = await asyncio.wait([rest], timeout=0.05)
        assert not done
        dialogue.release("go")
        assert await rest == b"two\r\n"
        await closed(client)


async def played(dialogue: Dialogue, *sent: bytes) -> None:
    """Run a script with a client that sends each line as a connection of its own and reads until the server ends it."""
    async with dialogue:
        for octets in sent:
            client = await opened(dialogue)
            client.writer.write(octets)
            await client.rest()
            await closed(client)


async def test_tls_in_the_middle_and_from_the_start(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    script = "S: * OK\nC: $1 STARTTLS\nS: $1 OK\nTLS\nC: $2 NOOP\nS: $2 OK inside\nHANGUP\n"
    async with Dialogue(script, tls=server_tls) as dialogue:
        client = await opened(dialogue)
        await client.response()
        await client.ok("STARTTLS")
        await client.writer.start_tls(client_tls, server_hostname="localhost")
        assert await client.ask("NOOP") == [b"OK inside"]
        client.writer.write(b"more\r\n")
        await closed(client)
    async with Dialogue("S: * OK\nCLOSE\n", tls=server_tls, implicit_tls=True) as dialogue:
        client = await opened(dialogue, client_tls)
        assert await client.rest() == b"* OK\r\n"
        await closed(client)


async def test_several_connections_bind_their_own_tags() -> None:
    script = "S: one\nC: $1 A\nS: $1 OK\nCLOSE\nCONNECT\nS: two\nC: $1 B\nS: $1 OK\nCLOSE\n"
    async with Dialogue(script) as dialogue:
        for greeting, command in ((b"one", b"x A\r\n"), (b"two", b"y B\r\n")):
            client = await opened(dialogue)
            assert await client.response() == greeting
            client.writer.write(command)
            assert await client.response() == command[:1] + b" OK"
            await closed(client)


@pytest.mark.parametrize(
    ("script", "sent", "text"),
    [
        (HELLO, b'x LOGIN "me" "no"\r\n', 'script:4: .*\n  expected C: \\$1 LOGIN <...> "pw"\n  received .*"no"'),
        (
            "C: $1 A\nC: $1 B\n",
            b"x A\r\ny B\r\n",
            "script:2: .*\n  expected C: \\$1 B\n  with     \\$1 = x\n  received 'y B'",
        ),
        ('C!: "abc"\n', b"abd", "received b'abd'"),
        ("EOF\n", b"more", "received b'more'"),
        ("C: never\n", b"", "nothing for 0.1 s"),
    ],
    ids=["line", "tag", "octets", "more", "silence"],
)
async def test_a_client_that_leaves_the_script_is_shown_where(script: str, sent: bytes, text: str) -> None:
    with pytest.raises(Mismatch, match=text):
        await played(Dialogue(script, timeout_s=0.1), sent)


async def test_a_client_that_goes_too_early() -> None:
    async def gone() -> None:
        async with Dialogue(HELLO) as dialogue:
            await closed(await opened(dialogue))

    with pytest.raises(Mismatch, match=r"script:4: .*\n.*\n  received the client closed the connection"):
        await gone()


async def test_a_client_that_connects_too_often_or_never() -> None:
    with pytest.raises(Mismatch, match="the script has no connection 2"):
        await played(Dialogue("S: hello\nCLOSE\n"), b"", b"")
    with pytest.raises(Mismatch, match="no connection 1"):
        await played(Dialogue("S: hello\n", timeout_s=0.05))


async def test_the_mismatch_comes_before_the_client_s_own_error() -> None:
    async def failing() -> None:
        async with Dialogue("C: $1 A\n") as dialogue:
            client = await opened(dialogue)
            client.writer.write(b"x B\r\n")
            try:
                await client.response()
            finally:
                await closed(client)

    with pytest.raises(Mismatch) as mismatch:
        await failing()
    assert isinstance(mismatch.value.__cause__, asyncio.IncompleteReadError)


@pytest.mark.parametrize("script", ["X: y\n", "S\n", "CHUNK\n", " S: indented\n"])
def test_scripts_that_cannot_be_read(script: str) -> None:
    with pytest.raises(ScriptError, match="script:2: not a step"):
        Dialogue("S: fine\n" + script)


@pytest.mark.parametrize(
    ("script", "text"),
    [("S: $1 OK\n", "has bound"), ("S!: abc\n", "not a quoted string"), ("TLS\n", "pass tls=")],
)
async def test_scripts_that_cannot_be_played(script: str, text: str) -> None:
    with pytest.raises(ScriptError, match=text):
        await played(Dialogue(script), b"")
