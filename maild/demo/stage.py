"""What the steps of the demo share: the directory, the servers, the commands and the daemon; and how they wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import Process

from maild.config import Config
from maild.control import NoDaemon, Refused, ask
from maild.core.errors import MaildError
from maild.demo.place import ACCOUNT, CONFIG, LOG, POP3_ACCOUNT
from maild.demo.screen import Screen
from maild.demo.servers import Servers

PATIENCE_S = 20.0  # for anything that takes milliseconds when all is well
STOP_S = 12.0  # the daemon promises 10
LOOK_EVERY_S = 0.001
_ASK_EVERY_S = 0.01
_ASK_S = 2.0  # a thread that asks is waited for, also by Ctrl-C
# What a service manager or a user's settings would have the commands do is not part of the demo.
_LEFT_OUT = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"})


T = TypeVar("T")


class DemoFailed(MaildError):
    """Something in the demo was not as it should be."""


@dataclass(slots=True)
class Stage:
    """`place` is the directory that holds everything that is written."""

    screen: Screen
    place: Path
    is_kept: bool
    is_verbose: bool
    servers: Servers
    servers_ms: float
    config: Config
    config_ms: float
    daemon: Process | None = None
    results: list[tuple[float, str]] = field(default_factory=list)  # ms, and what took them: told again at the end

    @property
    def maildir(self) -> Path:
        return self.config.accounts[ACCOUNT].maildir

    @property
    def pop3_maildir(self) -> Path:
        return self.config.accounts[POP3_ACCOUNT].maildir

    # -- commands

    def command(self, *words: str) -> list[str]:
        """`maild WORDS`, as this Python runs it; what lies in the working directory is not looked at."""
        return [sys.executable, "-P", "-m", "maild", *words]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
        columns = str(self.screen.inner_width)
        return {**kept, "MAILD_CONFIG": str(self.place / CONFIG), "COLUMNS": columns, "PYTHONIOENCODING": "utf-8"}

    async def run(self, *words: str) -> float:
        """Show a command and what it prints; how many ms it took. Raises DemoFailed unless its exit status is 0."""
        self.screen.command(f"maild {' '.join(words)}")
        started_s = time.perf_counter()
        done = await anyio.run_process(self.command(*words), env=self.environment, check=False)
        took_ms = milliseconds(started_s)
        self.screen.show(done.stdout.decode(errors="replace"))
        if done.returncode:
            raise DemoFailed(f"maild {words[0]} ended with exit status {done.returncode}: {_last_line(done.stderr)}")
        return took_ms

    # -- the daemon

    async def start_daemon(self) -> None:
        options = ("-v",) if self.is_verbose else ()
        self.screen.command("maild run &")
        with (self.place / LOG).open("ab") as log:
            self.daemon = await anyio.open_process(
                self.command(*options, "run"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=None if self.is_verbose else log,
                env=self.environment,
            )

    async def end_daemon(self) -> int | None:
        """As systemd ends it; its exit status, None where there is none. Never leaves it running."""
        daemon, self.daemon = self.daemon, None
        if daemon is None:
            return None
        try:
            with suppress(ProcessLookupError):  # it has ended already
                daemon.terminate()
            with anyio.move_on_after(STOP_S, shield=True):
                await daemon.wait()
        finally:
            if daemon.returncode is None:
                daemon.kill()
            with anyio.CancelScope(shield=True):
                status = await daemon.wait()
        return status

    async def until_status(self, what: str, is_so: Callable[[dict[str, Any]], bool], looks: int = 1) -> dict[str, Any]:
        """What `maild status` says of the accounts, once it has been so for as many looks in a row."""
        deadline_s, seen = time.perf_counter() + PATIENCE_S, 0
        while time.perf_counter() < deadline_s:
            if self.daemon is not None and self.daemon.returncode is not None:
                raise DemoFailed(f"maild run ended with exit status {self.daemon.returncode}")
            try:
                told = await anyio.to_thread.run_sync(ask, self.config.state_dir, {"ask": "status"}, _ASK_S)
            except (NoDaemon, Refused):
                told = None
            seen = seen + 1 if told and is_so(told["accounts"]) else 0
            if seen == looks:
                accounts: dict[str, Any] = told["accounts"]
                return accounts
            await anyio.sleep(_ASK_EVERY_S)
        raise DemoFailed(f"not within {PATIENCE_S:g} s: {what}")


async def until(what: str, look: Callable[[], T | None]) -> T:
    """What `look` finds once it finds something, asked every millisecond. Raises DemoFailed."""
    deadline_s = time.perf_counter() + PATIENCE_S
    while not (found := look()):
        if time.perf_counter() >= deadline_s:
            raise DemoFailed(f"not within {PATIENCE_S:g} s: {what}")
        await anyio.sleep(LOOK_EVERY_S)
    return found


def milliseconds(since_s: float) -> float:
    """Since a moment of `time.perf_counter`."""
    return (time.perf_counter() - since_s) * 1000


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"


def trouble(log: Path) -> str:
    """The last thing of weight that the daemon's log tells, or ""."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:
            return line  # a traceback ends so
        if event.get("level") in ("warning", "error"):
            return " ".join(str(event[key]) for key in ("event", "account", "reason", "error") if key in event)
    return ""
