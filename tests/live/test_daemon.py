"""The real daemon with a real Dovecot: push both ways, and what comes between."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio.to_thread
import pytest

from maild.engine import network
from maild.remote.imap.push import DONE_LIMIT_S
from maild.remote.imap.remote import PROOF_S
from tests.daemon.inside import DaemonInside, shorten
from tests.daemon.process import DaemonProcess, imap_account
from tests.daemon.waiting import until
from tests.live.conftest import started
from tests.servers.dovecot import Dovecot
from tests.servers.proxy import FaultProxy
from tests.servers.relay import Toward

pytestmark = pytest.mark.live

HELD_BACK_S = 0.5  # Dovecot tells of a change that late; the bench measures what is above it
LATE_S = 3.0

Make = Callable[..., DaemonProcess]


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return "".join(c if c.isalnum() else "-" for c in request.node.name)[:60].strip("-").lower()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], DaemonProcess]]:
    made: list[DaemonProcess] = []

    def build(account: str) -> DaemonProcess:
        made.append(DaemonProcess(tmp_path, {"work": account}))
        return made[-1]

    yield build
    for daemon in made:
        daemon.kill()
        assert "Traceback" not in daemon.log, daemon.log
        assert Dovecot.password not in daemon.log


def account(server: Dovecot, user: str, *settings: str) -> str:
    return imap_account("127.0.0.1", server.imap_port, user, Dovecot.password, *settings)


def deliver(server: Dovecot, user: str, n: int, mailbox: str = "INBOX") -> None:
    with server.connect(user) as client:
        raw = f"Message-ID: <{n}@test.example>\r\nSubject: Nr. {n}\r\n\r\nHallo {n}\r\n".encode()
        assert client.append(mailbox, "", "", raw)[0] == "OK"


def has(daemon: DaemonProcess, n: int, mailbox: str = "INBOX") -> list[Path]:
    return [path for path in daemon.files(mailbox) if f"Subject: Nr. {n}\n".encode() in path.read_bytes()]


@pytest.mark.parametrize("push", ["notify", "idle"])
async def test_new_mail_appears_by_push(make: Make, dovecot: Dovecot, user: str, push: str) -> None:
    daemon = make(account(dovecot, user, f'push = "{push}"', 'poll = "1d"'))
    daemon.start()
    await daemon.until_account(lambda a: a["state"] == "idle" and a["push"] == push)
    for n in range(5):
        deliver(dovecot, user, n)
        await until(lambda n=n: has(daemon, n), HELD_BACK_S + LATE_S)
    await daemon.stop()


async def test_sync_carries_a_flag_to_the_server_through_the_daemon(make: Make, dovecot: Dovecot, user: str) -> None:
    deliver(dovecot, user, 1)
    daemon = make(account(dovecot, user))
    daemon.start()
    await daemon.until_pushed()
    (path,) = has(daemon, 1)
    path.rename(path.parent.parent / "cur" / f"{path.name.partition(':')[0]}:2,S")
    assert (await daemon.run("sync")).returncode == 0
    with dovecot.connect(user) as client:
        client.select("INBOX", readonly=True)
        assert client.search(None, "SEEN")[1] == [b"1"]
    await daemon.stop()


async def test_wrong_then_right_password_in_a_file(make: Make, dovecot: Dovecot, user: str, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("wrong")
    secret.chmod(0o600)
    lines = account(dovecot, user).replace(f'password = "{Dovecot.password}"', f'password_file = "{secret}"')
    daemon = make(lines)
    daemon.start()
    await daemon.until_account(lambda a: a["state"] == "auth_rejected")
    secret.write_text(Dovecot.password)
    assert (await daemon.run("sync")).returncode == 0  # whoever asks has the secret looked at
    await daemon.until_pushed()
    await daemon.stop()


@pytest.mark.parametrize("push", ["notify", "idle"])
async def test_server_restart(make: Make, tmp_path: Path, push: str) -> None:
    with started() as server:
        daemon = make(account(server, "me", f'push = "{push}"'))
        daemon.start()
        await daemon.until_pushed()
        server.stop()
        await daemon.until_account(lambda a: a["state"] == "offline" and a["push"] is None)
        server.start()
        deliver(server, "me", 1)
        await until(lambda: has(daemon, 1), 30.0)
        await daemon.until_pushed()
        deliver(server, "me", 2)
        await until(lambda: has(daemon, 2), HELD_BACK_S + LATE_S)
        await daemon.stop()


async def test_sigkill_and_again(make: Make, dovecot: Dovecot, user: str) -> None:
    daemon = make(account(dovecot, user))
    for n in range(4):
        daemon.start()
        await daemon.until_pushed()
        deliver(dovecot, user, n)
        daemon.signal(signal.SIGKILL)
        await daemon.ended()
    daemon.start()
    await daemon.until_pushed()
    assert [len(has(daemon, n)) for n in range(4)] == [1, 1, 1, 1]
    await daemon.stop()


async def test_what_a_reader_does_is_on_the_server_at_once(make: Make, dovecot: Dovecot, user: str) -> None:
    """A flag, a new message, a new mailbox, a deletion: heard of on this disk, with nobody asking for a pass."""
    for n in (1, 2):
        deliver(dovecot, user, n)
    daemon = make(account(dovecot, user, 'poll = "1d"', 'remote_delete = "expunge"'))
    daemon.start()
    await daemon.until_pushed()
    await until(lambda: has(daemon, 2), LATE_S)

    def search(*words: str, mailbox: str = "INBOX") -> list[bytes]:
        with dovecot.connect(user) as client:
            if client.select(mailbox, readonly=True)[0] != "OK":
                return []
            return client.search(None, *words)[1][0].split()

    (path,) = has(daemon, 1)
    path.rename(path.parent.parent / "cur" / f"{path.name.partition(':')[0]}:2,S")
    await until(lambda: search("SEEN"), LATE_S)
    (other,) = has(daemon, 2)
    other.unlink()
    await until(lambda: len(search("ALL")) == 1, LATE_S)
    top = path.parent.parent.parent / "Neu"
    for name in ("tmp", "new", "cur"):
        (top / name).mkdir(parents=True)
    (top / "tmp" / "1.x.y").write_bytes(b"Message-ID: <neu@test.example>\nSubject: Nr. 3\n\nHallo\n")
    (top / "tmp" / "1.x.y").rename(top / "new" / "1.x.y")
    await until(lambda: search("ALL", mailbox="Neu"), LATE_S)
    await daemon.stop()


# -- a line and a server that play tricks, with deadlines that a test can wait for


def inside(tmp_path: Path, port: int, user: str, push: str) -> DaemonInside:
    lines = imap_account("127.0.0.1", port, user, Dovecot.password, f'push = "{push}"', 'poll = "1d"')
    return DaemonInside(tmp_path, {"work": lines})


METHODS = pytest.mark.parametrize("push", ["notify", "idle"])


@METHODS
async def test_half_open_line(
    dovecot: Dovecot, user: str, push: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch)
    with FaultProxy(dovecot.imap_port) as proxy:
        async with inside(tmp_path, proxy.port, user, push).running() as daemon:
            await daemon.until_pushed()
            proxy.blackhole()
            deliver(dovecot, user, 1)
            await daemon.until_account(lambda a: a["state"] == "offline" and a["push"] is None)
            proxy.resume()
            await until(lambda: has(daemon, 1))
            assert (await daemon.until_pushed())["push"] == push
            deliver(dovecot, user, 2)
            await until(lambda: has(daemon, 2), HELD_BACK_S + LATE_S)


@METHODS
async def test_stopped_server(tmp_path: Path, push: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel goes on saying that all is well."""
    shorten(monkeypatch)
    with started() as server:
        async with inside(tmp_path, server.imap_port, "me", push).running() as daemon:
            await daemon.until_pushed()
            os.killpg(server.pid, signal.SIGSTOP)
            try:
                await daemon.until_account(lambda a: a["state"] == "offline" and a["push"] is None)
            finally:
                os.killpg(server.pid, signal.SIGCONT)
            deliver(server, "me", 1)
            await until(lambda: has(daemon, 1))
            assert (await daemon.until_pushed())["push"] == push
            deliver(server, "me", 2)
            await until(lambda: has(daemon, 2), HELD_BACK_S + LATE_S)


@pytest.mark.long
@METHODS
async def test_a_process_that_stood_still_doubts_its_lines(make: Make, dovecot: Dovecot, user: str, push: str) -> None:
    """As after a sleep: a router has forgotten the line, no end was told, and IDLE would be renewed minutes later."""
    with FaultProxy(dovecot.imap_port) as proxy:
        daemon = make(imap_account("127.0.0.1", proxy.port, user, Dovecot.password, f'push = "{push}"'))
        daemon.start()
        await daemon.until_account(lambda a: a["push"] == push and a["state"] == "idle")
        daemon.signal(signal.SIGSTOP)
        proxy.blackhole()
        deliver(dovecot, user, 1)
        proxy.resume()
        await asyncio.sleep(network.LOOK_AT_CLOCK_S + network.SLEPT_S + 1)  # not for anything: it is what is tested
        daemon.signal(signal.SIGCONT)
        await until(lambda: "maild stood still for" in daemon.log, LATE_S)
        await until(lambda: has(daemon, 1), PROOF_S + LATE_S)
        await until(lambda: daemon.log.count('"push.started"') == 2, DONE_LIMIT_S + LATE_S)
        deliver(dovecot, user, 2)
        await until(lambda: has(daemon, 2), HELD_BACK_S + LATE_S)


async def deliver_at_random(daemon: DaemonInside, server: Dovecot, user: str, deliveries: int) -> None:
    """All of them have to come by push alone, while IDLE is left and begun all the time."""
    chance = random.Random(deliveries)
    await daemon.until_pushed()
    with server.connect(user) as client:
        for n in range(deliveries):
            await asyncio.sleep(chance.random() * 0.1)  # the instant is the point
            raw = f"Message-ID: <{n}@test.example>\r\nSubject: Nr. {n}\r\n\r\nHallo {n}\r\n".encode()
            assert (await anyio.to_thread.run_sync(client.append, "INBOX", "", "", raw))[0] == "OK"
    await until(lambda: len(daemon.files()) >= deliveries, HELD_BACK_S + 3 * LATE_S)
    assert len({path.read_bytes() for path in daemon.files()}) == len(daemon.files()) == deliveries


@METHODS
async def test_no_delivery_around_done_and_idle_is_lost(
    dovecot: Dovecot, user: str, push: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, interval_s=0.05)
    async with inside(tmp_path, dovecot.imap_port, user, push).running() as daemon:
        await deliver_at_random(daemon, dovecot, user, 100)


@pytest.mark.long
@METHODS
async def test_no_delivery_of_a_thousand_is_lost(
    dovecot: Dovecot, user: str, push: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, interval_s=0.05)
    async with inside(tmp_path, dovecot.imap_port, user, push).running() as daemon:
        await deliver_at_random(daemon, dovecot, user, 1000)


async def cut_many_times(
    dovecot: Dovecot, user: str, push: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cycles: int
) -> None:
    shorten(monkeypatch)
    chance = random.Random(cycles)
    with FaultProxy(dovecot.imap_port) as proxy:
        async with inside(tmp_path, proxy.port, user, push).running() as daemon:
            await daemon.until_pushed()
            for n in range(cycles):
                toward: Toward = "client" if chance.random() < 0.5 else "server"
                proxy.cut_after(chance.randrange(800), toward=toward, reset=chance.random() < 0.5)
                deliver(dovecot, user, n)
                await until(lambda n=n: has(daemon, n))
            await daemon.until_pushed()
            assert len(daemon.files()) == cycles


@METHODS
async def test_cut_at_random_moments(
    dovecot: Dovecot, user: str, push: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cut_many_times(dovecot, user, push, tmp_path, monkeypatch, 6)


@pytest.mark.long
@METHODS
async def test_cut_two_hundred_times(
    dovecot: Dovecot, user: str, push: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cut_many_times(dovecot, user, push, tmp_path, monkeypatch, 200)


async def test_a_mailbox_that_another_client_makes_fills_renames_and_deletes(
    dovecot: Dovecot, user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By NOTIFY, with nobody asking."""
    shorten(monkeypatch, interval_s=3600.0)
    async with inside(tmp_path, dovecot.imap_port, user, "notify").running() as daemon:
        await daemon.until_pushed()
        with dovecot.connect(user) as client:
            client.create("Neu")
            await until(lambda: (daemon.maildir() / "Neu" / "cur").is_dir())
            deliver(dovecot, user, 1, "Neu")
            await until(lambda: has(daemon, 1, "Neu"))
            client.rename("Neu", "Neuer")
            await until(lambda: has(daemon, 1, "Neuer") and not (daemon.maildir() / "Neu" / "cur").is_dir())
            client.delete("Neuer")
            await until(lambda: not (daemon.maildir() / "Neuer" / "cur").is_dir())
