"""The daemon is told to end, or killed, in whatever it does: it ends in time and well, and the next one is clean."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from maild.testing.faults import Hold
from maild.testing.imap import ImapServer
from maild.testing.smtp import SILENCE, SmtpServer
from maild.testing.store import Store
from tests.daemon.process import DaemonProcess, NotifySocket, imap_account
from tests.daemon.waiting import until
from tests.engine.world import PASSWORD, USER, message

END_S = 10.0  # as the contract has it
HANGING = "hanging.example"
HANGS = f"""
import socket, threading
ask = socket.getaddrinfo
def hang(host, *arguments, **keywords):
    if host in ("{HANGING}", b"{HANGING}"):
        threading.Event().wait(60)
    return ask(host, *arguments, **keywords)
socket.getaddrinfo = hang
"""

Ready = Callable[[DaemonProcess], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Phase:
    """The lines of an account that stays in it, and what waits until it is there."""

    account: str
    ready: Ready


def filled(messages: int) -> Store:
    store = Store()
    for n in range(1, messages + 1):
        store.deliver("INBOX", message(n), (), 1_700_000_000)
    return store


class Phases:
    """Makes accounts that stay in one phase, each by the method of its name."""

    def __init__(self, directory: Path, stack: AsyncExitStack, sockets: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._sockets = sockets

    async def _server(self, messages: int = 1) -> ImapServer:
        return await self._stack.enter_async_context(ImapServer(filled(messages), {USER: PASSWORD}))

    def _silent(self, backlog: int = 10) -> socket.socket:
        return self._sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=backlog))

    async def connect(self) -> Phase:
        """Nobody answers, as behind a firewall: the queue of the listener is full."""
        listener = self._silent(0)
        for _ in range(3):
            filler = self._sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        return Phase(imap_account(*listener.getsockname(), USER, PASSWORD), is_in("connect", "connecting"))

    async def look_up(self) -> Phase:
        account = imap_account(HANGING, 143, USER, PASSWORD).replace('tls = "none"', 'tls = "starttls"')
        return Phase(account, is_in("look_up", "connecting"))

    async def greeting(self) -> Phase:
        account = imap_account(*self._silent().getsockname(), USER, PASSWORD)
        return Phase(account, is_in("greeting", "connecting"))

    async def handshake(self) -> Phase:
        account = imap_account(*self._silent().getsockname(), USER, PASSWORD)
        return Phase(account.replace('tls = "none"', 'tls = "implicit"'), is_in("handshake", "connecting"))

    async def login(self) -> Phase:
        server = await self._server()
        held = server.faults.add("AUTHENTICATE", Hold(asyncio.Event()), times=None)
        return Phase(imap_account(server.host, server.port, USER, PASSWORD), lambda _: held.struck.wait())

    async def first_pull(self) -> Phase:
        server = await self._server(600)
        held = server.faults.add("UID FETCH", Hold(asyncio.Event(), after_octets=60_000), nth=2, times=None)
        return Phase(imap_account(server.host, server.port, USER, PASSWORD), lambda _: held.struck.wait())

    async def idle(self) -> Phase:
        server = await self._server()
        account = imap_account(server.host, server.port, USER, PASSWORD, 'push = "idle"')
        return Phase(account, lambda daemon: daemon.until_pushed("idle"))

    async def notify(self) -> Phase:
        server = await self._server()
        account = imap_account(server.host, server.port, USER, PASSWORD)
        return Phase(account, lambda daemon: daemon.until_pushed("notify"))

    async def no_server(self) -> Phase:
        """Between two attempts."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            account = imap_account(*listener.getsockname(), USER, PASSWORD)
        return Phase(account, is_in("no_server", "offline"))

    async def refused(self) -> Phase:
        server = await self._server()
        return Phase(imap_account(server.host, server.port, USER, "wrong"), is_in("refused", "auth_rejected"))

    async def sending(self) -> Phase:
        server = await self._server()
        smtp = await self._stack.enter_async_context(SmtpServer(users={USER: PASSWORD}))
        smtp.react("dot", SILENCE, times=9)
        lines = imap_account(server.host, server.port, USER, PASSWORD)
        lines += f'\n[accounts.{{name}}.smtp]\nhost = "{smtp.host}"\nport = {smtp.port}\ntls = "none"\n'
        letter = self._directory / "letter"
        letter.write_text("From: sending@example.org\nTo: you@example.org\nSubject: x\n\nHallo\n")

        async def is_sending(daemon: DaemonProcess) -> None:
            assert (await daemon.run("sendmail", "-t", stdin=letter)).returncode == 0
            await smtp.until(lambda: smtp.taken, 20.0)

        return Phase(lines + f'user = "{USER}"\npassword = "{PASSWORD}"', is_sending)


def is_in(name: str, state: str) -> Ready:
    return lambda daemon: daemon.until_account(lambda a: a["state"] == state, name)


PHASES = [name for name in vars(Phases) if not name.startswith("_")]


@asynccontextmanager
async def in_every_phase(directory: Path) -> AsyncIterator[tuple[DaemonProcess, Callable[[], Awaitable[None]]]]:
    """One daemon with an account in each phase, and what starts it and waits until all are there."""
    (modules := directory / "modules").mkdir()
    (modules / "sitecustomize.py").write_text(HANGS)
    async with AsyncExitStack() as stack:
        with ExitStack() as sockets:
            phases = Phases(directory, stack, sockets)
            made = {name: await getattr(phases, name)() for name in PHASES}
            daemon = DaemonProcess(directory, {name: phase.account for name, phase in made.items()})

            async def start() -> None:
                daemon.start(PYTHONPATH=str(modules))
                for phase in made.values():
                    await phase.ready(daemon)

            try:
                yield daemon, start
            finally:
                daemon.kill()


async def ends_in_time_and_well(daemon: DaemonProcess, number: signal.Signals = signal.SIGTERM) -> None:
    daemon.signal(number)
    began_s = time.monotonic()
    assert await daemon.ended() == 0
    assert time.monotonic() - began_s < END_S
    assert not (daemon.state_dir / "control.sock").exists()
    assert "Traceback" not in daemon.log, daemon.log


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
async def test_in_every_phase_a_signal_ends_it_in_time_and_well(tmp_path: Path, number: signal.Signals) -> None:
    async with in_every_phase(tmp_path) as (daemon, start):
        await start()
        await ends_in_time_and_well(daemon, number)


async def test_killed_in_every_phase_it_is_there_again(tmp_path: Path) -> None:
    """All accounts come to where they were, with what is left of the lock, the socket and the state."""
    async with in_every_phase(tmp_path) as (daemon, start):
        await start()
        daemon.signal(signal.SIGKILL)
        assert await daemon.ended() == -signal.SIGKILL
        await start()
        assert len({path.read_bytes() for path in daemon.files(name="idle")}) == len(daemon.files(name="idle")) == 1
        await ends_in_time_and_well(daemon)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_ended_while_it_starts_it_starts_as_well_the_next_time(
    make: Callable[..., DaemonProcess], number: signal.Signals
) -> None:
    """At any instant from its first to the one at which it is ready; before it hears signals, SIGTERM just ends it."""
    async with ImapServer(filled(3), {USER: PASSWORD}) as server:
        daemon = make(server)
        began_s = time.monotonic()
        daemon.start()
        await until(daemon.status)
        takes_s = time.monotonic() - began_s
        daemon.signal(signal.SIGKILL)
        await daemon.ended()
        for part in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            daemon.start()
            await asyncio.sleep(part * takes_s)  # the instant is the point
            daemon.signal(number)
            assert await daemon.ended() in {0, -number}
        daemon.start()
        await daemon.until_pushed()
        assert len(daemon.files()) == 3
        await ends_in_time_and_well(daemon)


async def test_a_signal_during_a_reload_ends_it_in_time_and_well(tmp_path: Path) -> None:
    """The reload waits for the pass of an account that is to be another; the signal does not wait for that."""
    async with ImapServer(filled(600), {USER: PASSWORD}) as server:
        held = server.faults.add("UID FETCH", Hold(asyncio.Event(), after_octets=60_000), nth=2, times=None)
        daemon = DaemonProcess(tmp_path, {"work": imap_account(server.host, server.port, USER, PASSWORD)})
        systemd = NotifySocket(tmp_path / "notify")
        try:
            daemon.start(NOTIFY_SOCKET=str(systemd.path))
            await held.struck.wait()
            daemon.accounts = {"work": imap_account(server.host, server.port, USER, PASSWORD, 'poll = "2d"')}
            daemon.write_config()
            daemon.signal(signal.SIGHUP)
            await until(lambda: "RELOADING=1" in systemd.read())
            await ends_in_time_and_well(daemon)
        finally:
            systemd.close()
            daemon.kill()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., DaemonProcess]]:
    made: list[DaemonProcess] = []

    def build(server: ImapServer, *settings: str) -> DaemonProcess:
        made.append(
            DaemonProcess(tmp_path, {"work": imap_account(server.host, server.port, USER, PASSWORD, *settings)})
        )
        return made[-1]

    yield build
    for daemon in made:
        daemon.kill()
        assert "Traceback" not in daemon.log, daemon.log


async def test_killed_in_the_first_pull_again_and_again(make: Callable[..., DaemonProcess]) -> None:
    chance, count = random.Random(5), 600
    async with ImapServer(filled(count), {USER: PASSWORD}) as server:
        daemon = make(server)
        for _ in range(4):
            wanted = min(len(daemon.files()) + chance.randrange(1, 150), count)
            daemon.start()
            await until(lambda wanted=wanted: len(daemon.files()) >= wanted)
            daemon.signal(signal.SIGKILL)
            assert await daemon.ended() == -signal.SIGKILL
        daemon.start()
        await daemon.until_account(lambda a: a["state"] == "idle" and a["push"] and a["error"] is None)
        assert len({path.read_bytes() for path in daemon.files()}) == len(daemon.files()) == count
        await daemon.stop()


@pytest.mark.parametrize("is_carried_out", [False, True])
async def test_killed_while_a_new_message_goes_to_the_server(
    make: Callable[..., DaemonProcess], is_carried_out: bool
) -> None:
    async with ImapServer(filled(1), {USER: PASSWORD}) as server:
        daemon = make(server)
        daemon.start()
        await daemon.until_pushed()
        hold = Hold(asyncio.Event(), after_octets=0 if is_carried_out else None)
        server.faults.add("APPEND", hold, times=None)
        inbox = daemon.maildir() / "INBOX"
        (inbox / "tmp" / "1.new").write_text("Message-ID: <new@test.example>\nSubject: new\n\nHallo\n")
        (inbox / "tmp" / "1.new").rename(inbox / "new" / "1.new")
        await server.until(lambda: server.count("APPEND") == 1, 20.0)
        if is_carried_out:
            await server.until(lambda: len(server.store.mailbox("INBOX")) == 2, 20.0)
        daemon.signal(signal.SIGKILL)
        await daemon.ended()
        server.faults.clear()
        hold.event.set()
        daemon.start()
        await daemon.until_pushed()
        await until(lambda: len(server.store.mailbox("INBOX")) == 2)
        assert (await daemon.run("sync")).returncode == 0
        assert len(server.store.mailbox("INBOX")) == len(daemon.files()) == 2
        await daemon.stop()


async def test_many_dead_names_hold_up_no_other_account(tmp_path: Path) -> None:
    """More accounts than asyncio has threads for look-ups wait for a resolver that does not answer."""
    (modules := tmp_path / "modules").mkdir()
    (modules / "sitecustomize.py").write_text(HANGS)
    async with ImapServer(filled(1), {USER: PASSWORD}) as server:
        dead = imap_account(HANGING, 143, USER, PASSWORD).replace('tls = "none"', 'tls = "starttls"')
        alive = imap_account("localhost", server.port, USER, PASSWORD)
        daemon = DaemonProcess(tmp_path, {**{f"dead{n:02}": dead for n in range(40)}, "work": alive})
        daemon.start(PYTHONPATH=str(modules))
        try:
            await daemon.until_pushed()
            await daemon.stop()
        finally:
            daemon.kill()


async def test_the_socket_of_a_real_daemon_outlives_its_clients(make: Callable[..., DaemonProcess]) -> None:
    """Silent ones, such that go away at once, such that never read: whoever asks properly is answered."""
    async with ImapServer(filled(1), {USER: PASSWORD}) as server:
        daemon = make(server)
        daemon.start()
        await daemon.until_pushed()
        with ExitStack() as clients:
            for n in range(50):
                client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                client.connect(str(daemon.state_dir / "control.sock"))
                if n % 3 == 1:
                    client.sendall(b'{"version": 1, "ask": "status"}\n')
                if n % 3 == 2:
                    client.sendall(b"\xff" * 1000)
                    client.close()
            for _ in range(5):
                assert (await daemon.run("status", "--json")).returncode == 0
            server.store.deliver("INBOX", message(2), (), 1_700_000_000)
            await until(lambda: len(daemon.files()) == 2)
            await daemon.stop()
