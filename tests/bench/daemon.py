"""The daemon as the bench has it: a process with a socket that takes systemd's part, looked at from outside."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import tomli_w

from maild.control import NoDaemon, Refused, ask
from tests.bench.clients import maild_program
from tests.bench.measure import RunFailed, environment

READY_S = 60.0
STOP_S = 20.0
LOOK_S = 0.05
LOG_TAIL = 2_000
PUSHED = frozenset({"idle", "notify"})


@dataclass(slots=True)
class Daemon:
    """`maild run` over accounts (name → table). A context manager, ready on entry; `ready_s` is how long that took."""

    directory: Path
    accounts: Mapping[str, Mapping[str, Any]]
    ready_s: float = 0.0
    _process: subprocess.Popen[bytes] = field(init=False)

    def __enter__(self) -> Self:
        self._write_config()
        notices = self.directory / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, self.log_file.open("ab") as log:
            systemd.bind(str(notices))
            systemd.settimeout(READY_S)
            began = time.perf_counter()
            self._process = subprocess.Popen(
                [*self.command, "run"],
                cwd=self.directory,
                env=environment(self.directory) | {"NOTIFY_SOCKET": str(notices)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                while b"READY=1" not in systemd.recv(4096):
                    continue
            except TimeoutError:
                self._end()
                raise RunFailed(f"the daemon was not ready after {READY_S:.0f} s:\n{self._tail()}") from None
            self.ready_s = time.perf_counter() - began
        notices.unlink()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end()

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def command(self) -> list[str]:
        """`maild` with this daemon's config; a command is to follow."""
        return [*maild_program(), "-c", str(self.directory / "maild.toml")]

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def log_file(self) -> Path:
        return self.directory / "log"

    def maildir(self, account: str) -> Path:
        return self.directory / "mail" / account

    def _write_config(self) -> None:
        head = {"maildir": str(self.directory / "mail"), "state_dir": str(self.state_dir), "log_level": "warning"}
        path = self.directory / "maild.toml"
        path.touch(mode=0o600)
        path.write_text(tomli_w.dumps({"maild": head, "accounts": dict(self.accounts)}))

    def _tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-LOG_TAIL:]

    def status(self) -> dict[str, Any]:
        """What it tells of its accounts."""
        try:
            told: dict[str, Any] = ask(self.state_dir, {"ask": "status", "accounts": []})
        except (NoDaemon, Refused) as exc:
            raise RunFailed(f"the daemon does not answer: {exc}\n{self._tail()}") from exc
        accounts: dict[str, Any] = told["accounts"]
        return accounts

    def until(self, happened: Callable[[dict[str, Any]], bool], limit_s: float, *, every_s: float = LOOK_S) -> float:
        """Wait until its accounts are so; how long that took. Raises RunFailed after `limit_s`."""
        began = time.perf_counter()
        while not happened(found := self.status()):
            if time.perf_counter() - began > limit_s:
                some = [(name, account) for name, account in found.items() if account["push"] not in PUSHED][:3]
                raise RunFailed(f"not so after {limit_s:.0f} s; {some}\n{self._tail()}")
            time.sleep(every_s)
        return time.perf_counter() - began

    def until_pushed(self, limit_s: float, *, every_s: float = LOOK_S) -> float:
        """Wait until every account has push and nothing to do; how long that took."""
        return self.until(_is_pushed, limit_s, every_s=every_s)

    def memory_kib(self) -> tuple[float, float]:
        """Resident and proportional set size."""
        found = psutil.Process(self._process.pid).memory_full_info()
        return found.rss / 1024, found.pss / 1024

    def cpu_s(self) -> float:
        """User and system, since it was started."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)


def _is_pushed(accounts: dict[str, Any]) -> bool:
    return all(account["push"] in PUSHED and account["state"] == "idle" for account in accounts.values())
