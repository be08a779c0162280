"""`maild run` as a process of its own, with the config that a test gives it and a socket that takes systemd's part."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from maild.control import NoDaemon, Refused, ask
from tests.daemon.waiting import until

STOP_S = 12.0  # a little more than the contract's 10 s


def imap_account(host: str, port: int, user: str, password: str, *settings: str) -> str:
    """The lines of an imap section without TLS, to a server on this machine."""
    lines = (f'host = "{host}"', f"port = {port}", 'tls = "none"', f'user = "{user}"', f'password = "{password}"')
    return "\n".join(["[accounts.{name}.imap]", *lines, *settings])


class DaemonProcess:
    """One daemon. `accounts` are, by name, the lines of the sections below [accounts.NAME]; {name} stands for it."""

    def __init__(self, directory: Path, accounts: Mapping[str, str], extra: str = "") -> None:
        self.directory = directory
        self.accounts = dict(accounts)
        self.extra = extra
        self.process: subprocess.Popen[bytes] | None = None
        self.log_file = directory / "log"
        self._notify: socket.socket | None = None

    @property
    def config(self) -> Path:
        return self.directory / "maild.toml"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    def maildir(self, name: str = "work") -> Path:
        return self.directory / "Mail" / name

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def write_config(self) -> None:
        text = f'[maild]\nstate_dir = "{self.state_dir}"\nmaildir = "{self.directory / "Mail"}"\nlog_format = "json"\n'
        for name, lines in self.accounts.items():
            text += f'[accounts.{name}]\naddress = "{name}@example.org"\n{lines.replace("{name}", name)}\n'
        self.config.write_text(text + self.extra)
        self.config.chmod(0o600)

    def start(self, **environment: str) -> None:
        self.write_config()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAILD", "NOTIFY"))}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "maild", "-c", str(self.config), "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=inherited | environment,
            )

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def stop(self) -> None:
        """End it as systemd does; it has to do so in time, and well."""
        self.signal(signal.SIGTERM)
        assert await self.ended() == 0, self.log

    async def ended(self) -> int:
        assert self.process is not None
        return await anyio.to_thread.run_sync(self.process.wait, STOP_S)

    async def ask(self, **request: object) -> Any:
        return await anyio.to_thread.run_sync(ask, self.state_dir, request, 30.0)

    async def status(self) -> dict[str, Any] | None:
        """None where it does not answer."""
        try:
            told: dict[str, Any] = await self.ask(ask="status")
        except (NoDaemon, Refused):
            return None
        return told

    async def until_account(self, happened: Callable[[dict[str, Any]], object], name: str = "work") -> dict[str, Any]:
        """The account's status once it is so."""

        async def look() -> dict[str, Any] | None:
            status = await self.status()
            account = (status or {}).get("accounts", {}).get(name)
            return account if account is not None and happened(account) else None

        try:
            return await until(look)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\nstatus: {await self.status()}\nlog: {self.log}") from exc

    async def until_pushed(self, name: str = "work") -> dict[str, Any]:
        return await self.until_account(lambda a: a["state"] == "idle" and a["push"] in {"notify", "idle"}, name)

    async def run(self, *arguments: str, stdin: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Another command with the same config; it reads from the file `stdin`."""
        argv = [sys.executable, "-m", "maild", "-c", str(self.config), *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAILD")}

        def call() -> subprocess.CompletedProcess[str]:
            with nullcontext(subprocess.DEVNULL) if stdin is None else stdin.open("rb") as source:
                return subprocess.run(
                    argv, stdin=source, capture_output=True, text=True, check=False, timeout=60, env=environment
                )

        return await anyio.to_thread.run_sync(call)

    def files(self, mailbox: str = "INBOX", name: str = "work") -> list[Path]:
        directory = self.maildir(name) / mailbox
        return [path for sub in ("new", "cur") if (directory / sub).is_dir() for path in (directory / sub).iterdir()]


class NotifySocket:
    """systemd's end of sd_notify(3). What came is in `lines`, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def read(self) -> Sequence[str]:
        while True:
            try:
                self.lines += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self.lines

    def close(self) -> None:
        self._socket.close()
