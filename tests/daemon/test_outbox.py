"""The outbox in the daemon: who tells it of a new message, and that nobody waits for it."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from maild.cli import main
from maild.commands import sendmail
from maild.config import load
from maild.control import MOST_CLIENTS, SOCKET, ask, hint
from maild.daemon import Daemon
from maild.engine import sender
from maild.local.lock import InstanceLock
from maild.local.outbox import Contents, Outbox
from maild.local.watch import Watcher
from maild.testing.smtp import SmtpServer
from tests.daemon.waiting import until
from tests.servers.sender import config_of_sender

Send = Callable[[], int]


@pytest.fixture
async def server() -> AsyncIterator[SmtpServer]:
    async with SmtpServer(users={"me": "secret"}) as server:
        yield server


@pytest.fixture
def config(tmp_path: Path, server: SmtpServer) -> Path:
    return config_of_sender(tmp_path, port=server.port, user="me", password="secret")


@pytest.fixture
def send(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Send:
    message = tmp_path / "message"
    message.write_bytes(b"To: a@x.example\n\nhello\n")

    def call() -> int:
        with message.open() as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            return main(["-c", str(config), "sendmail", "-t"])

    return call


@pytest.mark.parametrize("told_by", ["the kernel", "sendmail"])
async def test_a_new_message_is_sent_at_once(
    server: SmtpServer, config: Path, send: Send, monkeypatch: pytest.MonkeyPatch, told_by: str
) -> None:
    monkeypatch.setattr(sender, "LOOK_EVERY_S", 3600.0)
    if told_by == "the kernel":
        monkeypatch.setattr("maild.control.hint", lambda state_dir, request: None)
    else:
        monkeypatch.setattr(Watcher, "_add", lambda watcher, place: None)
    settings = load(config)
    daemon = Daemon(settings, config)
    with InstanceLock(settings.state_dir, "maild run"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(daemon.run)
            await until(lambda: (settings.state_dir / "outbox" / ".drain.lock").exists())
            for count in (1, 2):
                assert await anyio.to_thread.run_sync(send) == 0
                await until(lambda count=count: len(server.journal) == count)
            daemon.stop()


async def test_a_message_that_fails_runs_the_users_program(
    server: SmtpServer, config: Path, send: Send, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    program = [
        sys.executable,
        "-c",
        "import os, sys; open(sys.argv[1], 'a').write(os.environ['MAILD_ERROR'])",
        str(told),
    ]
    config.write_text(config.read_text() + f"[hooks]\non_failure = {json.dumps(program)}\n")
    server.react("rcpt", "550 5.1.1 nobody")
    settings = load(config)
    daemon = Daemon(settings, config)
    with InstanceLock(settings.state_dir, "maild run"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(daemon.run)
            assert await anyio.to_thread.run_sync(send) == 0
            await until(lambda: told.exists() and told.read_text())
            daemon.stop()
    (failed,) = Outbox(settings.state_dir).contents().items
    assert told.read_text() == f"message {failed.id} failed: 550 5.1.1 nobody"


async def test_a_refused_login_tells_the_user_and_goes_on_with_another_password(
    server: SmtpServer, config: Path, send: Send, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "SECRET_FILE_S", 0.05)
    told, secret = tmp_path / "told", tmp_path / "password"
    secret.touch(mode=0o600)
    secret.write_text("wrong")
    program = json.dumps(["sh", "-c", f'echo "$MAILD_ERROR" >> {told}'])
    text = config.read_text().replace('password = "secret"', f'password_file = "{secret}"')
    config.write_text(f"{text}[hooks]\non_failure = {program}\n")
    settings = load(config)
    daemon = Daemon(settings, config)
    with InstanceLock(settings.state_dir, "maild run"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(daemon.run)
            assert await anyio.to_thread.run_sync(send) == 0
            await until(lambda: told.exists() and told.read_text())
            logins = sum(command.startswith("AUTH") for command in server.commands)
            secret.write_text("secret")
            await until(lambda: server.journal)
            daemon.stop()
    (line,) = told.read_text().splitlines()
    assert "refused to log in me" in line
    assert sum(command.startswith("AUTH") for command in server.commands) == logins + 1


async def test_a_message_that_comes_while_the_daemon_looks_is_not_overlooked(
    server: SmtpServer, config: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even within one tick of the file system's clock, where the directory's time stamp tells nothing."""
    monkeypatch.setattr(sender, "LOOK_EVERY_S", 3600.0)
    monkeypatch.setattr(Watcher, "_add", lambda watcher, place: None)
    monkeypatch.setattr("maild.control.hint", lambda state_dir, request: None)
    settings = load(config)
    looks: list[int] = []
    contents = Outbox.contents

    def slow_look(outbox: Outbox) -> Contents:
        seen = contents(outbox)
        if threading.current_thread() is threading.main_thread():
            return seen  # when it begins, before it looks
        looks.append(len(seen.items))
        if len(looks) == 1:
            stamp_ns = outbox.path.stat().st_mtime_ns
            assert send() == 0
            os.utime(outbox.path, ns=(stamp_ns, stamp_ns))
            hint(settings.state_dir, {"ask": "outbox"})
            ask(settings.state_dir, {"ask": "status"})  # answered after that was heard
        return seen

    monkeypatch.setattr(Outbox, "contents", slow_look)
    daemon = Daemon(settings, config)
    with InstanceLock(settings.state_dir, "maild run"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(daemon.run)
            await until(lambda: len(server.journal) == 1)
            daemon.stop()
    assert looks[0] == 0


async def test_without_a_word_from_anybody_a_tick_of_the_clock_hides_nothing(
    config: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "LOOK_EVERY_S", 0.01)
    outbox = Outbox(load(config).state_dir)
    assert send() == 0
    tick_ns = time.time_ns() + 3_600_000_000_000  # one that does not end while the test lasts
    os.utime(outbox.path, ns=(tick_ns, tick_ns))
    seen: list[int] = []
    async with anyio.create_task_group() as tasks:
        look = partial(sender.watch_outbox, outbox, lambda _: seen.append(len(outbox.contents().items)))
        tasks.start_soon(look, anyio.sleep_forever)
        await until(lambda: 1 in seen)
        assert send() == 0
        os.utime(outbox.path, ns=(tick_ns, tick_ns))
        await until(lambda: 2 in seen)
        tasks.cancel_scope.cancel()


async def test_sync_with_send_waits_for_the_daemon_to_send(
    server: SmtpServer, config: Path, send: Send, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is due; what was deferred keeps its time, unless it is flushed."""
    monkeypatch.setattr(sender.Sender, "wake", lambda sender: None)
    settings = load(config)
    daemon = Daemon(settings, config)

    async def maild(*words: str) -> tuple[int, str]:
        status = await anyio.to_thread.run_sync(main, ["-c", str(config), *words])
        return status, capsys.readouterr().out.splitlines()[-1]

    with InstanceLock(settings.state_dir, "maild run"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(daemon.run)
            await until(lambda: (settings.state_dir / "outbox" / ".drain.lock").exists())
            server.react("mail", "451 4.3.0 later")
            assert await anyio.to_thread.run_sync(send) == 0
            assert await maild("sync", "--send", "work") == (1, "work: 1 deferred")
            assert await maild("sync", "--send", "work") == (0, "work: nothing sent")
            assert server.journal == []
            assert await maild("outbox", "flush") == (0, "work: 1 sent")
            assert await maild("sync", "--send", "work") == (0, "work: nothing to send")
            daemon.stop()


@pytest.mark.parametrize(
    "there", ["nothing", "a file", "a dead socket", "a daemon that hangs", "a daemon that is full"]
)
async def test_nobody_waits_for_a_daemon(config: Path, send: Send, tmp_path: Path, there: str) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    path = state_dir / SOCKET
    with socket.socket(socket.AF_UNIX) as listener:
        if there == "a file":
            path.write_bytes(b"")
        elif there != "nothing":
            listener.bind(str(path))
            if there != "a dead socket":
                listener.listen(0)
        if there == "a daemon that is full":
            for _ in range(MOST_CLIENTS):
                hint(state_dir, {"ask": "outbox"})
        started_s = time.monotonic()
        assert await anyio.to_thread.run_sync(send) == 0
        assert time.monotonic() - started_s < 5
    assert len(list((state_dir / "outbox").glob("*.toml"))) == 1


def test_the_name_of_the_socket_is_one() -> None:
    assert sendmail.SOCKET == SOCKET
