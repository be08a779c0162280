"""The control socket with clients of every kind: several, slow, silent, hostile, gone."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from maild.control import (
    REQUEST_OCTETS,
    SOCKET,
    ControlServer,
    Conversation,
    Message,
    NoDaemon,
    Refused,
    as_message,
    ask,
    note_progress,
)
from maild.core.errors import ConfigError
from maild.engine.report import AccountReport
from tests.daemon.waiting import until

HELD = anyio.Event


class Answers:
    """Echoes; "big" is an answer of many megabytes, "hold" one that comes when the test says so."""

    def __init__(self) -> None:
        self.released = anyio.Event()
        self.held = 0

    async def __call__(self, request: Message) -> AsyncGenerator[Message, None]:
        match request["ask"]:
            case "big":
                yield {"progress": "x" * (32 << 20)}
                yield {"result": None}
            case "hold":
                self.held += 1
                try:
                    await self.released.wait()
                finally:
                    self.held -= 1
                yield {"result": "late"}
            case "refuse":
                raise Refused("no", "because", 64)
            case "broken config":
                raise ConfigError(["a:1: b"])
            case word:
                yield {"progress": 1}
                yield {"result": word}


@asynccontextmanager
async def serving(directory: Path, **limits: Any) -> AsyncIterator[Answers]:
    answers = Answers()
    server = ControlServer(directory, answers, **limits)
    try:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.run)
                yield answers
                tasks.cancel_scope.cancel()
    finally:
        server.close()


async def asked(directory: Path, word: str) -> Any:
    return await anyio.to_thread.run_sync(ask, directory, {"ask": word}, 10.0)


def connected(directory: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(10)
    client.connect(str(directory / SOCKET))
    return client


def said(client: socket.socket) -> bytes:
    """All until the daemon hangs up."""
    chunks = []
    try:
        while chunk := client.recv(1 << 16):
            chunks.append(chunk)
    except ConnectionResetError:  # hung up with something of ours unread
        pass
    return b"".join(chunks)


async def test_answer_with_progress(tmp_path: Path) -> None:
    async with serving(tmp_path):
        talk = await anyio.to_thread.run_sync(Conversation, tmp_path, {"ask": "hallo"})
        heard = await anyio.to_thread.run_sync(list, talk)
    assert [message["progress"] for message in heard] == [1]
    assert talk.result == "hallo"


async def test_socket_is_the_owners_alone_and_goes_with_the_daemon(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert stat.S_IMODE((tmp_path / SOCKET).stat().st_mode) == 0o600
    assert not (tmp_path / SOCKET).exists()
    with pytest.raises(NoDaemon):
        ask(tmp_path, {"ask": "hallo"})


async def test_what_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(tmp_path / SOCKET))
    dead.close()
    with pytest.raises(NoDaemon):
        ask(tmp_path, {"ask": "hallo"})
    async with serving(tmp_path):
        assert await asked(tmp_path, "hallo") == "hallo"


async def test_a_path_too_long_for_an_address(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    async with serving(deep):
        assert await asked(deep, "hallo") == "hallo"


async def test_errors_arrive_with_their_exit_status(tmp_path: Path) -> None:
    async with serving(tmp_path):
        with pytest.raises(Refused) as refused:
            await asked(tmp_path, "refuse")
        assert (refused.value.text, refused.value.hint, refused.value.status) == ("no", "because", 64)
        with pytest.raises(Refused, match="a:1: b"):
            await asked(tmp_path, "broken config")


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"\0\xff\xfe\n",
        b"[1, 2]\n",
        b'{"ask": "hallo"}\n',
        b'{"version": 99, "ask": "hallo"}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (REQUEST_OCTETS + 10),
    ],
)
async def test_rubbish_is_refused_and_the_next_client_served(tmp_path: Path, line: bytes) -> None:
    async with serving(tmp_path):
        client = connected(tmp_path)
        await anyio.to_thread.run_sync(client.sendall, line)
        answer = await anyio.to_thread.run_sync(said, client)
        assert json.loads(answer)["status"] == 64
        client.close()
        assert await asked(tmp_path, "hallo") == "hallo"


async def test_who_says_nothing_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path, request_s=0.2):
        client = connected(tmp_path)
        client.sendall(b'{"version": 1')
        assert await anyio.to_thread.run_sync(said, client) == b""
        client.close()


async def test_who_does_not_read_holds_up_nobody_and_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path, take_s=0.5):
        client = connected(tmp_path)
        client.sendall(b'{"version": 1, "ask": "big"}\n')
        assert await asked(tmp_path, "hallo") == "hallo"
        await until(lambda: _is_hung_up(client))
        client.close()


def _is_hung_up(client: socket.socket) -> bool:
    """Without reading what came: the other end is closed."""
    import select

    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))


async def test_too_many_clients_are_turned_away_until_some_leave(tmp_path: Path) -> None:
    async with serving(tmp_path, most_clients=3):
        clients = [connected(tmp_path) for _ in range(3)]
        for client in clients:
            client.sendall(b'{"version": 1, "ask": "hold"}\n')
        with pytest.raises(NoDaemon):
            await asked(tmp_path, "hallo")
        for client in clients:
            client.close()


async def served(directory: Path) -> bool:
    try:
        return bool(await asked(directory, "hallo") == "hallo")
    except NoDaemon:
        return False


async def test_who_goes_before_the_answer_makes_room(tmp_path: Path) -> None:
    async with serving(tmp_path, most_clients=1) as answers:
        client = connected(tmp_path)
        client.sendall(b'{"version": 1, "ask": "hold"}\n')
        await until(lambda: answers.held == 1)
        assert not await served(tmp_path)
        client.close()
        await until(lambda: served(tmp_path))
        assert answers.held == 0  # nobody works for it any more


async def test_who_says_no_more_may_still_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maild.control.LOOK_EVERY_S", 0.02)
    async with serving(tmp_path, most_clients=1) as answers:
        client = connected(tmp_path)
        client.sendall(b'{"version": 1, "ask": "hold"}\n')
        client.shutdown(socket.SHUT_WR)
        await until(lambda: answers.held == 1)
        answers.released.set()
        assert b"late" in await anyio.to_thread.run_sync(said, client)
        client.close()
        answers.released = anyio.Event()
        client = connected(tmp_path)
        client.sendall(b'{"version": 1, "ask": "hold"}\n')
        client.shutdown(socket.SHUT_WR)
        await until(lambda: answers.held == 1)
        client.close()
        await until(lambda: served(tmp_path))


async def test_who_goes_on_talking_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path) as answers:
        client = connected(tmp_path)
        client.sendall(b'{"version": 1, "ask": "hold"}\n')
        await until(lambda: answers.held == 1)

        def talk() -> None:
            try:
                while True:
                    client.sendall(b"x" * 65536)
            except OSError:
                return

        with anyio.fail_after(10):
            await anyio.to_thread.run_sync(talk)
        client.close()
        await until(lambda: answers.held == 0)


async def test_many_clients_at_once(tmp_path: Path) -> None:
    results: list[str] = []

    async def one(n: int) -> None:
        results.append(await asked(tmp_path, f"n{n}"))

    async with serving(tmp_path), anyio.create_task_group() as tasks:
        for n in range(30):
            tasks.start_soon(one, n)
    assert sorted(results) == sorted(f"n{n}" for n in range(30))


async def test_clients_leave_no_descriptor_behind(tmp_path: Path) -> None:
    async with serving(tmp_path, request_s=0.2):
        await asked(tmp_path, "hallo")
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            connected(tmp_path).close()
            await asked(tmp_path, "hallo")
        await until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


def test_a_report_arrives_as_it_was() -> None:
    sent = AccountReport("work", "syncing")
    sent.done_messages = 3
    sent.mailbox("IN\udcffBOX").pulled = 3
    arrived = AccountReport("work")
    note_progress(arrived, json.loads(json.dumps(as_message(sent))))
    assert as_message(arrived) == as_message(sent)
    assert (arrived.mailboxes["IN\udcffBOX"].pulled, arrived.done_messages, arrived.state) == (3, 3, "syncing")
