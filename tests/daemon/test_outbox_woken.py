"""A message that is put into the outbox of a running daemon is sent at once: inotify tells, not the clock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import anyio
import pytest
import structlog
import structlog.testing

from maild.config import Account, Config, Password, Smtp
from maild.config.senders import Sender, Senders
from maild.daemon import Daemon
from maild.engine import sender
from maild.engine.accept import Order, prepared
from maild.local.lock import InstanceLock
from maild.local.outbox import Outbox
from maild.testing.smtp import SmtpServer
from tests.daemon.waiting import until

USER, PASSWORD = "user", "correct horse battery staple"


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sender, "LOOK_EVERY_S", 3600.0)
    with InstanceLock(tmp_path / "state", "test"):
        yield tmp_path / "state"


def accept(state_dir: Path, subject: str) -> None:
    """As `maild sendmail` does it, which says nothing to the daemon."""
    senders = Senders(state_dir, (Sender("work", ("me@example.org",), 0),), None)
    raw = f"Subject: {subject}\n\nthere\n".encode()
    item, text = prepared(raw, Order(recipients=("a@x.example",)), senders, time.time())
    Outbox(state_dir).accept(item, text)


async def test_each_message_is_sent_as_soon_as_it_is_there(state_dir: Path) -> None:
    root = state_dir.parent
    server = SmtpServer(users={USER: PASSWORD})
    with structlog.testing.capture_logs() as logs:
        async with server, anyio.create_task_group() as tasks:
            smtp = Smtp(
                host=server.host, port=server.port, tls="none", user=USER, secret=Password(PASSWORD), sent="none"
            )
            account = Account(name="work", address="me@example.org", maildir=root / "Mail/work", smtp=smtp)
            config = Config(
                path=root / "maild.toml", maildir=root / "Mail", state_dir=state_dir, accounts={"work": account}
            )
            daemon = Daemon(config)
            tasks.start_soon(daemon.run)
            for number in range(1, 6):
                accept(state_dir, f"number {number}")
                await until(lambda number=number: _drains(logs) == number)  # a drain sends what arrives meanwhile too
            daemon.stop()
    sent = b"".join(message.octets for message in server.journal)
    assert all(sent.count(f"Subject: number {number}\r\n".encode()) == 1 for number in range(1, 6))


async def test_a_message_in_the_same_tick_of_the_clock_as_the_last_look_is_seen(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "LOOK_EVERY_S", 0.01)
    accept(state_dir, "first")
    outbox = Outbox(state_dir)
    tick_ns = time.time_ns() + 3_600_000_000_000  # a tick that never ends
    os.utime(outbox.path, ns=(tick_ns, tick_ns))
    seen: list[int] = []

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            sender.watch_outbox, outbox, lambda _: seen.append(len(outbox.contents().items)), anyio.sleep_forever
        )
        await until(lambda: 1 in seen)
        accept(state_dir, "second")
        os.utime(outbox.path, ns=(tick_ns, tick_ns))
        await until(lambda: 2 in seen)
        tasks.cancel_scope.cancel()


def _drains(logs: Sequence[Mapping[str, object]]) -> int:
    return sum(entry["event"] == "outbox.drained" for entry in logs)
