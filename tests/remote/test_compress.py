"""COMPRESS=DEFLATE (RFC 4978): where it begins, what it carries, and what a hostile stream can do: nothing."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from maild.core.errors import ConnectionLost, ProtocolViolation
from maild.core.model import MailboxName, Uid
from maild.remote.imap import line as line_module
from maild.remote.imap import stream as streaming
from maild.remote.imap.login import login
from maild.remote.imap.parse import Data, Event
from maild.remote.imap.remote import ImapRemote
from maild.remote.imap.session import ImapSession, quoted
from maild.remote.imap.stream import messages
from maild.testing.faults import Answer
from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.remote.conftest import DEADLINE_S, PASSWORD, USER, Connect, imap_endpoint
from tests.remote.contract import outgoing, raw_of

pytestmark = pytest.mark.usefixtures("quiet_loop")

INBOX = MailboxName("INBOX")
ITEMS = "(UID BODY.PEEK[])"
OFFERED = b"IMAP4rev1 NAMESPACE COMPRESS=DEFLATE"


def filled(messages: int, octets: int) -> Store:
    store = Store()
    for number in range(1, messages + 1):
        store.deliver("INBOX", (b"Subject: %d\r\n\r\n" % number).ljust(octets - 2, b"x") + b"\r\n")
    return store


def server_of(store: Store) -> ImapServer:
    return ImapServer(store, {USER: PASSWORD})


async def compressed(connect: Connect, port: int) -> ImapSession:
    session = await connect(imap_endpoint(port))
    await login(session, USER, PASSWORD)
    assert await session.compress()
    return session


async def opened(connect: Connect, port: int) -> ImapSession:
    session = await compressed(connect, port)
    await session.run("EXAMINE", quoted("INBOX"))
    session.set_selected(True)
    return session


# -- a session


async def test_a_mailbox_comes_whole_and_smaller(connect: Connect) -> None:
    store = filled(300, 8_000)
    async with server_of(store) as server, asyncio.timeout(2 * DEADLINE_S):
        session = await opened(connect, server.port)
        found: dict[int | None, bytes] = {}
        sets = iter([list(range(start, start + 50)) for start in range(1, 301, 50)])
        async for arrived in messages(session, sets, ITEMS, lambda _size: None, []):
            for message in arrived:
                body = message.sections[b""]
                assert isinstance(body, bytes | bytearray)
                found[message.uid] = bytes(body)
        assert found == {message.uid: message.raw for message in store.mailbox("INBOX")}
        assert server.connections[0].octets_sent < 300 * 8_000 / 20
        assert session.protocol.line.received_octets > 300 * 8_000


async def test_messages_go_there_compressed(written: list[bytes]) -> None:
    store = Store()
    async with server_of(store) as server, asyncio.timeout(2 * DEADLINE_S):
        remote = ImapRemote(imap_endpoint(server.port, compress=True), "work")
        await remote.listing()
        sent = [raw_of(number, octets) for number, octets in ((1, 0), (2, 3_000_000), (3, 500))]
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            answers = [
                answer async for answer in box.append(iter([outgoing(str(n), raw) for n, raw in enumerate(sent)]))
            ]
        assert [answer.refusal for answer in answers] == ["", "", ""]
        assert sorted(message.raw for message in store.mailbox("INBOX")) == sorted(sent)
        await remote.aclose()
    names = [command.split()[0] for command in server.connections[0].commands]
    assert names[: names.index("COMPRESS") + 2] == ["AUTHENTICATE", "ID", "ENABLE", "COMPRESS", "NAMESPACE"]
    assert b"COMPRESS DEFLATE\r\n" in written[names.index("COMPRESS")]


async def test_every_session_of_an_account_is_compressed() -> None:
    async with server_of(filled(3, 500)) as server, asyncio.timeout(DEADLINE_S):
        remote = ImapRemote(imap_endpoint(server.port, compress=True), "work")
        await remote.listing()
        async with remote.visit(INBOX), remote.watch([INBOX], [INBOX], "idle") as news:
            assert news.method == "idle"
            await server.until(lambda: server.count("IDLE") == 1)
            server.store.deliver("INBOX", raw_of(9))
            assert await news.hint() == frozenset({INBOX})
        await remote.aclose()
        assert len(server.connections) == 2
        assert server.count("COMPRESS") == 2


@pytest.mark.parametrize("text", ["NO [COMPRESSIONACTIVE] TLS does", "BAD Unknown command"])
async def test_a_refusal_costs_nothing_but_the_octets(text: str) -> None:
    async with server_of(filled(3, 500)) as server, asyncio.timeout(DEADLINE_S):
        server.faults.add("COMPRESS", Answer(text))
        remote = ImapRemote(imap_endpoint(server.port, compress=True), "work")
        await remote.listing()
        async with remote.visit(INBOX) as box:
            assert len((await box.scan(None)).items) == 3
        await remote.aclose()
        assert len(server.connections) == 1


@pytest.mark.parametrize("is_disabled", [False, True])
async def test_without_an_offer_nothing_is_asked(is_disabled: bool) -> None:
    offered = ALL if is_disabled else ALL - {"COMPRESS=DEFLATE"}
    disabled = frozenset({"COMPRESS=DEFLATE"} if is_disabled else ())
    async with ImapServer(Store(), {USER: PASSWORD}, capabilities=offered) as server, asyncio.timeout(DEADLINE_S):
        remote = ImapRemote(imap_endpoint(server.port, compress=True, disable_extensions=disabled), "work")
        await remote.listing()
        await remote.aclose()
        assert server.count("COMPRESS") == 0


async def test_off_is_the_default() -> None:
    async with server_of(Store()) as server, asyncio.timeout(DEADLINE_S):
        remote = ImapRemote(imap_endpoint(server.port), "work")
        await remote.listing()
        await remote.aclose()
        assert server.count("COMPRESS") == 0


async def test_where_tls_compresses_it_is_left_alone(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    class Compressing:
        def compression(self) -> str:
            return "ZLIB"

    async with server_of(Store()) as server, asyncio.timeout(DEADLINE_S):
        session = await connect(imap_endpoint(server.port))
        await login(session, USER, PASSWORD)
        monkeypatch.setattr(ImapSession, "tls", Compressing())
        assert not await session.compress()
        assert server.count("COMPRESS") == 0


# -- a server of octets: what it says after the OK is its own

Say = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]
Speak = Callable[[Say], Awaitable[int]]


@pytest.fixture
async def speak() -> AsyncIterator[Speak]:
    """`port = await speak(say)`: a server that lets anybody in; `say` gets the tag of COMPRESS and does the rest."""
    tasks: list[asyncio.Task[None]] = []
    servers: list[asyncio.Server] = []

    async def started(say: Say) -> int:
        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"* OK [CAPABILITY %b] hello\r\n" % OFFERED)
            tag = (await reader.readline()).split()[0]
            writer.write(tag + b" OK [CAPABILITY %b] in\r\n" % OFFERED)
            tag = (await reader.readline()).split()[0]
            try:
                await say(reader, writer, tag)
                await reader.read()
            except ConnectionError:
                return  # the client hung up in the middle: what it thought of that is in the test
            finally:
                writer.transport.abort()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.append(asyncio.get_running_loop().create_task(converse(reader, writer)))

        servers.append(await asyncio.start_server(accept, "127.0.0.1", 0))
        return int(servers[-1].sockets[0].getsockname()[1])

    yield started
    for server in servers:
        server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Stream:
    """The server's side of the compressed stream."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._in = zlib.decompressobj(wbits=-15)
        self._out = zlib.compressobj(9, wbits=-15)

    def out(self, octets: bytes) -> bytes:
        return self._out.compress(octets) + self._out.flush(zlib.Z_SYNC_FLUSH)

    async def line(self) -> bytes:
        line = b""
        while not line.endswith(b"\r\n"):
            octets = await self._reader.read(1000)
            assert octets
            line += self._in.decompress(octets)
        return line


@pytest.mark.parametrize("octets_at_once", [1, 2, 3, 7, 1000])
async def test_the_octet_after_the_answer_is_compressed(octets_at_once: int, connect: Connect, speak: Speak) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tag: bytes) -> None:
        stream = Stream(reader)
        said = b"* 1 EXISTS\r\n" + tag + b" OK on\r\n" + stream.out(b'* CAPABILITY IMAP4rev1\r\n* LIST () "/" a\r\n')
        for start in range(0, len(said), octets_at_once):
            writer.write(said[start : start + octets_at_once])
            await writer.drain()
            for _turn in range(2 if octets_at_once < 1000 else 0):  # a client in this loop has read it then
                await asyncio.sleep(0)
        tag = (await stream.line()).split()[0]
        writer.write(stream.out(b"* NAMESPACE NIL NIL NIL\r\n" + tag + b" OK\r\n"))

    async with asyncio.timeout(DEADLINE_S):
        session = await compressed(connect, await speak(say))
        reply = await session.run("NAMESPACE")
    assert session.protocol.capabilities == {"IMAP4REV1"}
    assert Data("NAMESPACE", [None, None, None]) in reply.events


async def test_a_refusal_and_more_in_one_segment_stay_plain(connect: Connect, speak: Speak) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tag: bytes) -> None:
        writer.write(tag + b" NO not today\r\n* CAPABILITY IMAP4rev1\r\n")
        tag = (await reader.readline()).split()[0]
        writer.write(b"* NAMESPACE NIL NIL NIL\r\n" + tag + b" OK\r\n")

    async with asyncio.timeout(DEADLINE_S):
        session = await connect(imap_endpoint(await speak(say)))
        await login(session, USER, PASSWORD)
        assert not await session.compress()
        assert session.protocol.capabilities == {"IMAP4REV1"}
        assert (await session.run("NAMESPACE")).data("NAMESPACE")


async def test_nothing_is_sent_before_the_answer(connect: Connect, speak: Speak) -> None:
    may_answer = asyncio.Event()

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tag: bytes) -> None:
        await may_answer.wait()
        writer.write(tag + b" OK on\r\n")

    async with asyncio.timeout(DEADLINE_S):
        session = await connect(imap_endpoint(await speak(say)))
        await login(session, USER, PASSWORD)
        begun = asyncio.create_task(session.compress())
        while not session.is_busy:
            await asyncio.sleep(0)
        with pytest.raises(ProtocolViolation, match="NAMESPACE makes no sense now"):
            session.launch("NAMESPACE")
        may_answer.set()
        assert await begun


@pytest.mark.parametrize("said", [b"* OK not compressed at all\r\n", b"\xff" * 40, b"\x06\x00\x00\x00"])
async def test_garbage_ends_the_session(said: bytes, connect: Connect, speak: Speak) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tag: bytes) -> None:
        writer.write(tag + b" OK on\r\n")
        await reader.read(1)
        writer.write(said)

    async with asyncio.timeout(DEADLINE_S):
        session = await compressed(connect, await speak(say))
        with pytest.raises(ProtocolViolation, match="the compressed stream is damaged"):
            await session.run("NAMESPACE")
        assert session.is_lost


async def test_the_end_of_the_stream_ends_the_session(connect: Connect, speak: Speak) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tag: bytes) -> None:
        writer.write(tag + b" OK on\r\n")
        await reader.read(1)
        whole = zlib.compressobj(wbits=-15)
        writer.write(whole.compress(b"* OK Still here\r\n") + whole.flush())

    async with asyncio.timeout(DEADLINE_S):
        session = await compressed(connect, await speak(say))
        with pytest.raises(ProtocolViolation, match="the server ended the compressed stream"):
            await session.run("NAMESPACE")


async def test_a_cut_stream_is_a_lost_connection(connect: Connect, speak: Speak) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tag: bytes) -> None:
        stream = Stream(reader)
        writer.write(tag + b" OK on\r\n")
        await reader.read(1)
        writer.write(stream.out(b"* NAMESPACE NIL NIL NIL\r\n" * 50)[:-6])
        await writer.drain()
        writer.close()

    async with asyncio.timeout(DEADLINE_S):
        session = await compressed(connect, await speak(say))
        with pytest.raises(ConnectionLost, match="closed the connection"):
            await session.run("NAMESPACE")


# -- bombs


def exploding(lines: int, line: bytes) -> bytes:
    """Few octets that become `lines` lines."""
    bomb = zlib.compressobj(9, wbits=-15)
    return b"".join(bomb.compress(line * 1000) for _ in range(lines // 1000)) + bomb.flush(zlib.Z_SYNC_FLUSH)


async def test_a_bomb_of_one_line_ends_the_session(connect: Connect, speak: Speak) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tag: bytes) -> None:
        writer.write(tag + b" OK on\r\n")
        await reader.read(1)
        writer.write(exploding(20_000, b"x" * 1000))

    async with asyncio.timeout(2 * DEADLINE_S):
        session = await compressed(connect, await speak(say))
        with pytest.raises(ProtocolViolation, match="a line of more than"):
            await session.run("NAMESPACE")
        limit = session.protocol.receiver.limits.line
        assert session.protocol.line.received_octets < limit + 2 * line_module.TURN_OCTETS


async def test_others_have_their_turn_while_a_bomb_goes_off(connect: Connect, speak: Speak) -> None:
    lines, line = 4_000, b"* OK " + b"x" * 994 + b"\r\n"
    bomb = exploding(lines, line)
    assert len(bomb) < line_module.PIECE_OCTETS  # it comes in one read

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tag: bytes) -> None:
        writer.write(tag + b" OK on\r\n")
        await reader.read(1)
        writer.write(bomb)

    found = 0
    most_between_turns = since_turn = 0

    def count(_event: Event) -> None:
        nonlocal found, since_turn, most_between_turns
        found += 1
        since_turn += 1
        most_between_turns = max(most_between_turns, since_turn)

    async with asyncio.timeout(2 * DEADLINE_S):
        session = await compressed(connect, await speak(say))
        session.launch("NAMESPACE", collect=count)
        while found < lines:
            since_turn = 0
            await asyncio.sleep(0)
    assert most_between_turns * len(line) < 2 * line_module.TURN_OCTETS


async def test_a_bomb_of_messages_waits_for_whoever_takes_them(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    high, octets = 1 << 18, 10_000
    monkeypatch.setattr(streaming, "HIGH_WATER_OCTETS", high)
    store = filled(2_000, octets)
    async with server_of(store) as server, asyncio.timeout(4 * DEADLINE_S):
        session = await opened(connect, server.port)
        line = session.protocol.line
        handed_over = line.received_octets
        most_held, found = 0, 0
        async for arrived in messages(session, iter([list(range(1, 2001))]), ITEMS, lambda _size: None, []):
            found += len(arrived)
            handed_over += octets * len(arrived)
            seen = -1
            while seen != line.received_octets:  # until the connection has nothing more to say
                seen = line.received_octets
                for _turn in range(20):
                    await asyncio.sleep(0)
            most_held = max(most_held, line.received_octets - handed_over)
    assert found == 2_000
    assert most_held < high + line_module.PIECE_OCTETS + octets + 60 * found
    assert server.connections[0].octets_sent < 2_000 * octets / 50


class Broken:
    """A sink with a defect of our own."""

    def write(self, chunk: memoryview, /) -> None:
        raise RuntimeError("a defect")


async def test_a_defect_while_inflating_ends_the_connection(connect: Connect) -> None:
    store = Store()
    store.deliver("INBOX", random.Random(1).randbytes(3_000_000).replace(b"\0", b"") + b"x" * 4_000_000)
    loop = asyncio.get_running_loop()
    complaints: list[BaseException | None] = []
    async with server_of(store) as server, asyncio.timeout(DEADLINE_S):
        session = await opened(connect, server.port)
        before = loop.get_exception_handler()
        loop.set_exception_handler(lambda _, context: complaints.append(context.get("exception")))
        stream = messages(session, iter([[1]]), ITEMS, lambda _size: Broken(), [])
        with pytest.raises(ConnectionLost):
            await anext(stream)
        await stream.aclose()
        loop.set_exception_handler(before)
    assert [str(complaint) for complaint in complaints] == ["a defect"]


async def test_flags_change_and_messages_are_moved_over_it() -> None:
    store = filled(20, 500)
    store.create("Archive")
    async with server_of(store) as server, asyncio.timeout(DEADLINE_S):
        remote = ImapRemote(imap_endpoint(server.port, compress=True), "work")
        await remote.listing()
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            moved = await box.move([Uid("1"), Uid("2")], MailboxName("Archive"))
        await remote.aclose()
    assert moved == {Uid("1"): Uid("1"), Uid("2"): Uid("2")}
    assert len(store.mailbox("Archive")) == 2
