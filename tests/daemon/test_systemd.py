"""Both units under a live systemd, which shows what verifying a file cannot; skipped where none can be booted."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from maild.testing.imap import ImapServer
from maild.testing.store import Store
from tests.daemon.waiting import until
from tests.engine.world import PASSWORD, message
from tests.engine.world import USER as LOGIN
from tests.servers.systemd import USER, Systemd, SystemdMissing

pytestmark = [pytest.mark.long, pytest.mark.live]

UNITS = Path(__file__).resolve().parents[2] / "systemd"
HOME = f"/home/{USER}"
DROP_IN = "[Service]\nWatchdogSec=4\nTimeoutAbortSec=2\nRestartSec=1\nStandardError=append:%s\n"
LIMIT_S = 60.0


def config(port: int, head: str, secret: str) -> str:
    return (
        f'{head}\n[accounts.work]\naddress = "{LOGIN}"\n[accounts.work.imap]\nhost = "127.0.0.1"\nport = {port}\n'
        f'tls = "none"\n{secret}\npoll = "1d"\n'
    )


@pytest.fixture
async def server() -> AsyncIterator[ImapServer]:
    store = Store()
    store.deliver("INBOX", message(1), (), 1_700_000_000)
    async with ImapServer(store, {LOGIN: PASSWORD}) as running:
        yield running


class Unit:
    """maild as a unit of a manager; every call is made off the event loop, on which its server is."""

    def __init__(self, systemd: Systemd, *, is_user: bool) -> None:
        self._systemd = systemd
        self._run = systemd.call_as_user if is_user else systemd.call
        self._manager = ["--user"] if is_user else []
        self.log = f"{HOME}/log" if is_user else "/run/maild.log"
        self.config = f"{HOME}/.config/maild/maild.toml" if is_user else "/etc/maild/maild.toml"
        self.mail = f"{HOME}/Mail" if is_user else "/var/lib/private/maild/Mail"
        self._program = f"{HOME}/.local/bin/maild" if is_user else "/usr/local/bin/maild"

    async def call(self, *argv: str) -> str:
        done = await anyio.to_thread.run_sync(self._run, *argv)
        return done.stdout + done.stderr

    async def control(self, *words: str) -> str:
        return await self.call("systemctl", *self._manager, *words)

    async def do(self, *words: str) -> None:
        told = await self.control(*words)
        assert not told, f"{words}: {told}\n{await self.said()}"

    async def rewrite(self, text: str) -> None:
        """Its config is another."""
        await anyio.to_thread.run_sync(self._systemd.write, self.config, text)

    async def said(self) -> str:
        return f"{await self.call('cat', self.log)}\n{await self.control('status', 'maild', '--no-pager')}"

    async def facts(self) -> dict[str, str]:
        names = "ActiveState,SubState,Result,MainPID,NRestarts,ExecMainStatus,StatusText"
        told = await self.control("show", "maild", f"--property={names}")
        return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)

    async def until_facts(self, **wanted: str) -> dict[str, str]:
        async def look() -> dict[str, str] | None:
            found = await self.facts()
            return found if wanted.items() <= found.items() else None

        try:
            return await until(look, LIMIT_S)
        except AssertionError as exc:
            raise AssertionError(f"{wanted} was not; {await self.facts()}\n{await self.said()}") from exc

    async def status(self) -> dict[str, Any]:
        told = await self.call(self._program, "-c", self.config, "status", "--json")
        try:
            document: dict[str, Any] = json.loads(told)
        except ValueError:
            return {}
        return document

    async def until_pushed(self) -> None:
        async def look() -> bool:
            account = (await self.status()).get("accounts", {}).get("work", {})
            return (account.get("state"), account.get("push")) == ("idle", "notify")

        try:
            await until(look, LIMIT_S)
        except AssertionError as exc:
            raise AssertionError(f"{await self.status()}\n{await self.said()}") from exc

    async def until_files(self, count: int) -> None:
        async def look() -> bool:
            found = await self.call("find", self.mail, "-path", "*/INBOX/*", "-type", "f", "-name", "*.*")
            return sum("/new/" in path or "/cur/" in path for path in found.split()) == count

        try:
            await until(look, LIMIT_S)
        except AssertionError as exc:
            raise AssertionError(await self.said()) from exc


@pytest.fixture(params=["system", "user"])
async def unit(request: pytest.FixtureRequest, server: ImapServer, tmp_path: Path) -> AsyncIterator[Unit]:
    is_user = request.param == "user"
    if is_user:
        place, secret = f"home/{USER}/.config/systemd/user", f'password_file = "{HOME}/.config/maild/secret"'
        files = {
            f"{place}/maild.service": (UNITS / "maild.service").read_text(),
            f"home/{USER}/.config/maild/maild.toml": config(server.port, "", secret),
            f"home/{USER}/.config/maild/secret": PASSWORD,
        }
    else:
        place = "etc/systemd/system"
        head = '[maild]\nmaildir = "/var/lib/maild/Mail"\nstate_dir = "/var/lib/maild"'
        files = {
            f"{place}/maild.service": (UNITS / "maild-system.service").read_text(),
            "etc/maild/maild.toml": config(server.port, head, 'password_credential = "mail_work"'),
            "etc/maild/credentials/work": PASSWORD,
        }
    log = f"{HOME}/log" if is_user else "/run/maild.log"
    files[f"{place}/maild.service.d/test.conf"] = DROP_IN % log
    systemd = Systemd(tmp_path, files)
    try:
        await anyio.to_thread.run_sync(systemd.__enter__)
    except SystemdMissing as missing:
        pytest.skip(f"no live systemd here: {missing}")
    try:
        if is_user:
            started = await anyio.to_thread.run_sync(systemd.call, "systemctl", "start", "user-manager")
            assert started.returncode == 0, started.stderr
        else:  # the user of the unit has to be able to read its config
            await anyio.to_thread.run_sync(systemd.call, "chmod", "0755", "/etc/maild", "/etc/maild/maild.toml")
        yield Unit(systemd, is_user=is_user)
    finally:
        await anyio.to_thread.run_sync(systemd.__exit__)


async def test_a_life_under_systemd(unit: Unit, server: ImapServer) -> None:
    # READY ends the start; push works in the sandbox, both ways.
    began = time.monotonic()
    await unit.do("start", "maild")
    assert time.monotonic() - began < LIMIT_S
    first = await unit.until_facts(ActiveState="active", SubState="running", NRestarts="0")
    await unit.until_pushed()
    assert (await unit.until_facts(StatusText="1 idle"))["MainPID"] == first["MainPID"]
    server.store.deliver("INBOX", message(2), (), 1_700_000_000)
    await unit.until_files(2)
    some = (await unit.call("find", unit.mail, "-path", "*/INBOX/new/*", "-type", "f")).split()[0]
    await unit.call("mv", some, f"{some.replace('/new/', '/cur/')}:2,F")
    await until(lambda: any("\\Flagged" in one.flags for one in server.store.mailbox("INBOX")), LIMIT_S)

    # A reload keeps the process and its sessions, and takes what is new.
    sessions = len(server.connections)
    text = await unit.call("cat", unit.config)
    await unit.rewrite(text.replace('poll = "1d"', 'poll = "2d"'))
    await unit.do("reload", "maild")
    assert (await unit.facts())["MainPID"] == first["MainPID"]
    await unit.until_pushed()
    assert len(server.connections) > sessions  # this account's config is another

    # One that hangs is killed by the watchdog, and is there again.
    await unit.call("kill", "-STOP", first["MainPID"])
    again = await unit.until_facts(ActiveState="active", SubState="running", NRestarts="1")
    assert again["MainPID"] != first["MainPID"]
    await unit.until_pushed()
    server.store.deliver("INBOX", message(3), (), 1_700_000_000)
    await unit.until_files(3)

    # It stops in time and well.
    began = time.monotonic()
    await unit.do("stop", "maild")
    assert time.monotonic() - began < 10
    await unit.until_facts(ActiveState="inactive", Result="success")

    # A config that cannot be used is told by 78, and not tried again: "auto-restart" would be the state.
    await unit.rewrite("nonsense")
    assert "failed" in await unit.control("start", "maild")
    assert (await unit.until_facts(ActiveState="failed", ExecMainStatus="78"))["SubState"] == "failed"
    assert PASSWORD not in await unit.said()
