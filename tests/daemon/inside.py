"""The daemon inside the test's own process: its times can be shortened, its tasks and descriptors counted."""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from maild.config import load
from maild.core import backoff
from maild.daemon import Daemon
from maild.engine import network
from maild.local.lock import InstanceLock
from maild.remote.imap import line, push, session
from maild.remote.imap import remote as remote_module
from maild.remote.imap.experience import Experience
from maild.remote.imap.session import ImapSession, Protocol
from tests.daemon.process import DaemonProcess

SHORT_S = 0.5
PAGE_OCTETS = resource.getpagesize()


class DaemonInside(DaemonProcess):
    """As `DaemonProcess`, but for signals and its log."""

    daemon: Daemon

    @asynccontextmanager
    async def running(self) -> AsyncIterator[DaemonInside]:
        self.write_config()
        config = load(self.config)
        with InstanceLock(config.state_dir, "a test"):
            self.daemon = Daemon(config, self.config)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.daemon.run)
                try:
                    yield self
                finally:
                    self.daemon.stop()


def shorten(monkeypatch: pytest.MonkeyPatch, interval_s: float = 0.3) -> None:
    """Deadlines and delays that a test can wait for; IDLE is renewed all the time."""
    for name in ("CONNECT_TIMEOUT_S", "COMMAND_TIMEOUT_S"):
        monkeypatch.setattr(session, name, SHORT_S)
    monkeypatch.setattr(line, "STALL_S", SHORT_S)
    for function in (ImapSession.finish, Protocol.finish):
        monkeypatch.setattr(function, "__defaults__", (SHORT_S,))
    for name in ("DONE_LIMIT_S", "GO_AHEAD_S"):
        monkeypatch.setattr(push, name, SHORT_S)
    monkeypatch.setattr(remote_module, "PROOF_S", SHORT_S)
    monkeypatch.setattr(remote_module, "UNSAID_LIMIT_S", SHORT_S)
    monkeypatch.setattr(remote_module, "Experience", lambda: Experience(interval_s=interval_s))
    monkeypatch.setattr("maild.remote.imap.experience.SHORTEST_RENEW_S", interval_s)
    monkeypatch.setattr(backoff, "_FIRST_RECONNECT_S", 0.02)
    monkeypatch.setattr(backoff, "_LONGEST_RECONNECT_S", 0.3)
    monkeypatch.setattr(network, "LOOK_AT_CLOCK_S", 0.05)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def tasks() -> int:
    return len(asyncio.all_tasks())


def resident_octets() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_OCTETS
