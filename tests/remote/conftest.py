"""What the tests of the receiving half share: an endpoint on loopback, sessions that get closed, a quiet event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from maild.config import Imap, Password
from maild.remote.imap.line import Line
from maild.remote.imap.session import ImapSession, Protocol
from tests.servers.certificates import Authority

USER = "user"
PASSWORD = "correct horse battery staple"
LONGEST_OCTETS = 50 << 20
DEADLINE_S = 5.0
SHORT_S = 0.2

Connect = Callable[[Imap], Awaitable[ImapSession]]


def imap_endpoint(port: int, **changes: Any) -> Imap:
    """An endpoint on this machine, in plain text unless `tls` says otherwise."""
    values: dict[str, Any] = {"host": "127.0.0.1", "user": USER, "secret": Password(PASSWORD), "tls": "none"}
    return Imap(port=port, **(values | changes))


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`await connect(endpoint)` gives a session that is not logged in yet and dropped after the test."""
    sessions: list[ImapSession] = []

    async def connected(endpoint: Imap) -> ImapSession:
        async with asyncio.timeout(DEADLINE_S):
            sessions.append(await ImapSession.connect(endpoint, LONGEST_OCTETS))
        return sessions[-1]

    yield connected
    for session in sessions:
        session.drop()


@pytest.fixture
async def quiet_loop() -> AsyncIterator[None]:
    """Fail the test after which the event loop has something to complain about, or a task is left behind."""
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    complaints: list[str] = []
    previous = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(f"{context['message']}: {context!r}"))
    yield
    left = {task for task in asyncio.all_tasks() - before if "TestRunner." not in repr(task.get_coro())}  # anyio's own
    pending = (await asyncio.wait(left, timeout=DEADLINE_S))[1] if left else set()
    left.clear()
    gc.collect(1)  # "… exception was never retrieved" is said when the task or future goes
    loop.set_exception_handler(previous)
    assert not complaints
    assert not pending


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every write of every session, in order, before TLS or compression makes it unreadable."""
    found: list[bytes] = []
    write = Line.write

    def write_seen(line: Line, octets: bytes) -> None:
        found.append(octets)
        write(line, octets)

    monkeypatch.setattr(Line, "write", write_seen)
    return found


Answer = Callable[[bytes], bytes | Iterable[bytes]]
Serve = Callable[[Answer], Awaitable[int]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`port = await serve(answer)`: a server that greets, takes any login, and answers each other line as told."""
    writers: list[asyncio.StreamWriter] = []
    servers: list[asyncio.Server] = []

    async def started(answer: Answer) -> int:
        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            writer.write(b"* OK [CAPABILITY IMAP4rev1] hello\r\n")
            while line := await reader.readline():
                if b" LOGIN " in line:
                    writer.write(line.split()[0] + b" OK [CAPABILITY IMAP4rev1 NAMESPACE] in\r\n")
                    continue
                said = answer(line)
                for piece in [said] if isinstance(said, bytes) else said:
                    writer.write(piece)
                    await writer.drain()

        async def conversed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await converse(reader, writer)
            except ConnectionError:
                return
            finally:
                writer.transport.abort()

        servers.append(await asyncio.start_server(conversed, "127.0.0.1", 0))
        return int(servers[-1].sockets[0].getsockname()[1])

    yield started
    for server in servers:
        server.close()
    for writer in writers:
        writer.transport.abort()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of time that a test can wait for."""
    for name in ("session.CONNECT_TIMEOUT_S", "session.COMMAND_TIMEOUT_S", "line.STALL_S"):
        monkeypatch.setattr(f"maild.remote.imap.{name}", SHORT_S)
    for function in (ImapSession.finish, Protocol.finish):
        monkeypatch.setattr(function, "__defaults__", (SHORT_S,))


def scripts() -> list[Path]:
    """The conversations written down beside these tests."""
    return sorted((Path(__file__).parent / "dialogues").glob("*.txt"))
