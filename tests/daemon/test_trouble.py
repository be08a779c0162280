"""What the issue of push that dies silently is about: a daemon whose line, server or clock plays tricks.

The server is in memory, behind a proxy that breaks connections to order; every deadline is shortened.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import anyio.to_thread
import pytest
import structlog

from maild.engine import listen, network
from maild.engine.network import Clocks, read_clocks
from maild.remote.auth import Credentials
from maild.remote.imap import push
from maild.testing.faults import Answer, Forget, Hold, Rewrite
from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.daemon.inside import DaemonInside, open_descriptors, resident_octets, shorten, tasks
from tests.daemon.process import imap_account
from tests.daemon.waiting import until
from tests.engine.world import PASSWORD, USER, message
from tests.servers.proxy import FaultProxy

METHODS = pytest.mark.parametrize("method", ["notify", "idle"])
OTHER = "home@example.org"
SOON_S = 10.0


class Line:
    """A server, the proxy before it, and the daemon behind that."""

    def __init__(self, server: ImapServer, proxy: FaultProxy, directory: Path) -> None:
        self.server = server
        self.store = server.store
        self.proxy = proxy
        self.directory = directory
        self.delivered = 1

    def daemon(self, *settings: str, **accounts: str) -> DaemonInside:
        settings = ('poll = "1d"', *settings)
        work = imap_account("127.0.0.1", self.proxy.port, USER, PASSWORD, *settings)
        return DaemonInside(self.directory, {"work": work, **accounts})

    def deliver(self) -> int:
        self.delivered += 1
        self.store.deliver("INBOX", message(self.delivered), (), 1_700_000_000)
        return self.delivered


def numbers(daemon: DaemonInside) -> list[int]:
    """Which messages are in the Maildir, each as often as it is there."""
    found = []
    for path in daemon.files():
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:
            continue
        found += [int(line.removeprefix("Subject: Nr. ")) for line in lines if line.startswith("Subject: Nr. ")]
    return sorted(found)


async def has_all(line: Line, daemon: DaemonInside) -> None:
    wanted = list(range(1, line.delivered + 1))
    await until(lambda: set(numbers(daemon)) == set(wanted), SOON_S)
    assert numbers(daemon) == wanted


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    store = Store()
    store.deliver("INBOX", message(1), (), 1_700_000_000)
    async with ImapServer(store, {USER: PASSWORD, OTHER: PASSWORD}) as server:
        with FaultProxy(server.port) as proxy:
            yield Line(server, proxy, tmp_path)
            server.faults.clear()


@METHODS
@pytest.mark.parametrize("fault", ["blackhole", "stall"])
async def test_a_line_that_goes_silent_is_noticed_and_replaced(
    line: Line, monkeypatch: pytest.MonkeyPatch, method: str, fault: str
) -> None:
    """A router that forgot the connection, or a server that is stopped: its kernel still says that it is there."""
    shorten(monkeypatch)
    async with line.daemon(f'push = "{method}"').running() as daemon:
        await daemon.until_pushed()
        getattr(line.proxy, fault)()
        line.deliver()
        told = await daemon.until_account(lambda a: a["state"] == "offline" and a["push"] is None)
        assert told["error"]
        line.proxy.resume()
        await has_all(line, daemon)
        told = await daemon.until_pushed()
        assert (told["push"], told["error"]) == (method, None)
        line.deliver()
        await has_all(line, daemon)


@METHODS
async def test_what_the_server_tells_of_is_here_after_one_round_trip(line: Line, method: str) -> None:
    """The message comes along with what is asked after a notice, which is all sent at once."""
    async with line.daemon(f'push = "{method}"').running() as daemon:
        await daemon.until_pushed()
        await until(lambda: daemon.daemon._common.passes >= 2)  # the one that follows the beginning of push is over
        await daemon.until_account(lambda account: account["state"] == "idle")
        line.server.journal.clear()
        line.deliver()
        await has_all(line, daemon)
        names = [command.split(' "')[0].split(" 2:")[0] for command in line.server.journal]
        assert names == ["NAMESPACE", "LIST", "SELECT", "UID FETCH", "UID FETCH"]
        assert "BODY.PEEK[]" in line.server.journal[-1]


@METHODS
@pytest.mark.parametrize("why", ["asleep", "stopped", "clock"])
async def test_after_a_sleep_dead_connections_are_replaced_at_once(
    line: Line, monkeypatch: pytest.MonkeyPatch, method: str, why: str
) -> None:
    shorten(monkeypatch, interval_s=3600.0)
    jumps: list[Clocks] = []

    def read() -> Clocks:
        now = read_clocks()
        for jump in jumps:
            now = Clocks(now.awake_s + jump.awake_s, now.asleep_s + jump.asleep_s, now.wall_s + jump.wall_s)
        return now

    monkeypatch.setattr(network.watch_network, "__defaults__", (read,))
    async with line.daemon(f'push = "{method}"').running() as daemon:
        await daemon.until_pushed()
        line.proxy.blackhole()
        line.deliver()
        line.proxy.resume()  # for new connections; those that were lost stay lost
        jumps.append({"asleep": Clocks(0, 600, 600), "stopped": Clocks(600, 0, 600), "clock": Clocks(0, 0, 600)}[why])
        await has_all(line, daemon)
        await daemon.until_pushed()
        line.deliver()
        await has_all(line, daemon)


@METHODS
async def test_probes_of_a_line_that_is_fine_change_nothing(
    line: Line, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    shorten(monkeypatch, interval_s=3600.0)
    async with line.daemon(f'push = "{method}"').running() as daemon:
        await daemon.until_pushed()
        await until(lambda: len(line.server.connections) >= 2)
        before = {c.number for c in line.server.connections if not c.closed.is_set()}
        for n in range(1, 4):
            daemon.daemon._probe()
            await line.server.until(lambda n=n: line.server.count("DONE") == n)
            line.deliver()
            await has_all(line, daemon)
        assert before <= {c.number for c in line.server.connections if not c.closed.is_set()}


@pytest.mark.parametrize("lost", [False, True], ids=["whole", "forgetful"])
@METHODS
async def test_no_delivery_at_a_random_instant_is_lost(
    line: Line, monkeypatch: pytest.MonkeyPatch, method: str, lost: bool
) -> None:
    """While IDLE is left and begun all the time; also where the server forgets what came between two IDLEs."""
    await deliver_at_random(line, monkeypatch, method, lost, deliveries=100)


@pytest.mark.long
@pytest.mark.parametrize("lost", [False, True], ids=["whole", "forgetful"])
@METHODS
async def test_no_delivery_of_a_thousand_is_lost(
    line: Line, monkeypatch: pytest.MonkeyPatch, method: str, lost: bool
) -> None:
    await deliver_at_random(line, monkeypatch, method, lost, deliveries=1000)


async def deliver_at_random(
    line: Line, monkeypatch: pytest.MonkeyPatch, method: str, lost: bool, deliveries: int
) -> None:
    shorten(monkeypatch, interval_s=0.02)
    chance = random.Random(deliveries)
    if lost:
        line.server.faults.add("IDLE", Forget(), times=None)
    async with line.daemon(f'push = "{method}"').running() as daemon:
        await daemon.until_pushed()
        for _ in range(deliveries):
            await asyncio.sleep(chance.random() * 0.03)  # the instant is the point
            line.deliver()
        await has_all(line, daemon)
        assert line.server.count("DONE") > deliveries / 10
        assert (await daemon.until_pushed())["push"] == method


async def test_a_server_that_takes_idle_and_says_nothing_is_found_out(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, interval_s=0.1)
    monkeypatch.setattr(push, "MUTE_S", 0.05)
    line.server.faults.add("IDLE", Rewrite(lambda r: b"" if r.startswith(b"* ") else r), times=None)
    async with line.daemon('push = "idle"').running() as daemon:
        await daemon.until_pushed()

        while (await daemon.status())["accounts"]["work"]["push"] != "poll":  # type: ignore[index]
            line.deliver()

            async def is_here_or_polled() -> bool:  # late, but not lost
                status = await daemon.status()
                is_polled = status is not None and status["accounts"]["work"]["push"] == "poll"
                return is_polled or len(numbers(daemon)) == line.delivered

            await until(is_here_or_polled)
        told = await daemon.until_account(lambda a: a["push"] == "poll")
        assert told["push_reason"] == "no IDLE: the server does not tell of new mail by it"
        assert "polled (no IDLE: the server does not tell of new mail by it)" in (await daemon.run("status")).stdout
        await daemon.ask(ask="look", account="work")  # as the poll does
        await has_all(line, daemon)


async def test_notify_that_says_nothing_is_found_out_by_looking(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    monkeypatch.setattr(listen, "MISSED_S", 0.1)
    line.server.faults.add("TELL", Rewrite(lambda _: b""), times=None)
    async with line.daemon().running() as daemon:
        await daemon.until_account(lambda a: a["push"] == "notify" and a["state"] == "idle")

        async def falls_back() -> bool:
            line.deliver()
            await daemon.ask(ask="look", account="work")  # in place of the poll
            await has_all(line, daemon)
            status = await daemon.status()
            return status is not None and status["accounts"]["work"]["push"] == "idle"

        await until(falls_back)
        line.deliver()
        await has_all(line, daemon)


@pytest.mark.parametrize("push", ["poll", "notify"])
async def test_the_safety_pass_finds_what_nobody_tells(line: Line, monkeypatch: pytest.MonkeyPatch, push: str) -> None:
    """Without push, and with one that says nothing: again and again, here from the other mailboxes too."""
    monkeypatch.setattr(listen, "MISSED_S", 3600.0)  # it is not to be found out
    line.server.faults.add("TELL", Rewrite(lambda _: b""), times=None)
    line.store.create("Other")
    account = imap_account("127.0.0.1", line.proxy.port, USER, PASSWORD, f'push = "{push}"', 'poll = "1s"')
    async with DaemonInside(line.directory, {"work": account}).running() as daemon:
        told = await daemon.until_account(lambda account: account["state"] == "idle" and account["push"] == push)
        assert told["error"] is None
        for n in range(2):
            line.deliver()
            line.store.deliver("Other", message(100 + n), (), 1_700_000_000)
            await has_all(line, daemon)
            await until(lambda n=n: len(daemon.files("Other")) == n + 1, SOON_S)


@pytest.mark.parametrize(
    ("refused", "push_method", "reason"),
    [(["NOTIFY"], "idle", "no NOTIFY: "), (["NOTIFY", "IDLE"], "poll", "no IDLE: "), (["IDLE"], "poll", "no IDLE: ")],
)
async def test_what_the_server_refuses_is_told(
    line: Line, monkeypatch: pytest.MonkeyPatch, refused: list[str], push_method: str, reason: str
) -> None:
    shorten(monkeypatch)
    for command in refused:
        line.server.faults.add(command, Answer("BAD no such thing"), times=None)
    async with line.daemon().running() as daemon:
        told = await daemon.until_account(lambda a: a["push"] == push_method and a["state"] == "idle")
        assert told["push_reason"].startswith(reason)
        assert told["error"] is None


async def cut(line: Line, daemon: DaemonInside, chance: random.Random) -> None:
    """Cut a connection somewhere, with something on its way, and wait until all is well again."""
    match chance.randrange(4):
        case 0:
            line.proxy.cut(reset=chance.random() < 0.5)
            line.deliver()
        case 1:
            line.deliver()
            line.proxy.cut(reset=chance.random() < 0.5)
        case _:
            toward = chance.choice(["client", "server"])
            octets = chance.randrange(600)
            line.proxy.cut_after(octets, toward=toward, reset=chance.random() < 0.5)  # type: ignore[arg-type]
            line.deliver()
    await has_all(line, daemon)


async def cut_many_times(line: Line, monkeypatch: pytest.MonkeyPatch, method: str, cycles: int) -> None:
    shorten(monkeypatch, interval_s=0.2)
    chance = random.Random(cycles)
    # Two sessions, so that it is known how many there are at rest.
    async with line.daemon(f'push = "{method}"', "connections = 2").running() as daemon:
        for _ in range(5):  # until all that stays for good is there
            await cut(line, daemon, chance)
        before = await at_rest(line, daemon)
        memory = resident_octets()
        for _ in range(cycles):
            await cut(line, daemon, chance)
        after = await at_rest(line, daemon)
        assert after[0] <= before[0], "tasks"
        assert after[1] <= before[1], "descriptors"
        assert resident_octets() - memory < (8 << 20)


async def at_rest(line: Line, daemon: DaemonInside) -> tuple[int, int]:
    """Tasks and descriptors while push is there and nothing else goes on."""
    line.proxy.cut()
    await daemon.until_account(lambda a: a["state"] != "idle" or a["push"] is None)
    await daemon.until_pushed()
    counts: list[tuple[int, int]] = []

    async def is_steady() -> bool:
        await asyncio.sleep(0.2)
        counts.append((tasks(), open_descriptors()))
        return len(counts) >= 3 and len(set(counts[-3:])) == 1

    await until(is_steady)
    return counts[-1]


@METHODS
async def test_cut_cycles_leave_nothing_behind(line: Line, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    await cut_many_times(line, monkeypatch, method, 10)


@pytest.mark.long
@METHODS
async def test_two_hundred_cut_cycles_leave_nothing_behind(
    line: Line, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    await cut_many_times(line, monkeypatch, method, 200)


async def test_reload_under_load_restarts_only_what_changed(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, interval_s=3600.0)
    monkeypatch.setattr("maild.remote.imap.line.STALL_S", 60.0)  # the pull that is held is no silent line
    for _ in range(400):
        line.deliver()
    held = asyncio.Event()
    line.server.faults.add("UID FETCH", Hold(held, after_octets=20_000), nth=2)
    # On a server of its own, so that it is not this one's fetch that is held.
    async with ImapServer(Store(), {OTHER: PASSWORD}) as server:
        other = imap_account(server.host, server.port, OTHER, PASSWORD, 'mailboxes = ["INBOX"]')
        await reload_another(line, line.daemon(home=other), other, held)


async def reload_another(line: Line, daemon: DaemonInside, other: str, held: asyncio.Event) -> None:
    async with daemon.running():
        await daemon.until_account(lambda a: a["state"] == "idle" and a["push"], "home")
        await until(lambda: daemon.files())
        mine = [c for c in line.server.connections if c.user == USER]
        daemon.accounts["home"] = other.replace('["INBOX"]', '["INBOX", "Other"]')
        daemon.write_config()
        assert await daemon.ask(ask="reload") == {"changed": ["home"], "gone": []}
        await daemon.until_account(lambda a: a["state"] == "idle" and a["push"], "home")
        assert len(mine) >= 2
        assert not any(c.closed.is_set() for c in mine)
        held.set()
        await has_all(line, daemon)
        await daemon.until_pushed()
        assert numbers(daemon) == list(range(1, line.delivered + 1))


def with_wrong_password(line: Line, tmp_path: Path) -> tuple[DaemonInside, Path]:
    """A daemon whose account reads its password from a file, which holds another one."""
    secret = tmp_path / "password"
    secret.touch(mode=0o600)
    secret.write_text("wrong")
    daemon = line.daemon()
    daemon.accounts["work"] = daemon.accounts["work"].replace(f'password = "{PASSWORD}"', f'password_file = "{secret}"')
    return daemon, secret


async def test_a_refused_login_goes_on_as_soon_as_somebody_logs_in(
    line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shorten(monkeypatch)
    daemon, secret = with_wrong_password(line, tmp_path)
    async with daemon.running():
        await daemon.until_account(lambda a: a["state"] == "auth_rejected")
        logins = line.server.count("AUTHENTICATE")
        assert logins <= 2
        await daemon.ask(ask="login", account="work")
        await daemon.until_account(lambda a: a["state"] == "auth_rejected" and a["error"])
        assert line.server.count("AUTHENTICATE") == logins  # it is the same secret still
        secret.write_text(PASSWORD)
        await daemon.ask(ask="login", account="work")
        await daemon.until_pushed()


async def test_a_refused_login_goes_on_when_the_file_holds_another_secret(
    line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shorten(monkeypatch, interval_s=3600.0)
    monkeypatch.setattr("maild.engine.keeper.SECRET_FILE_S", 0.02)
    looks = 0
    has_changed = Credentials.has_changed

    async def counted(self: Credentials) -> bool:
        nonlocal looks
        looks += 1
        return await has_changed(self)

    monkeypatch.setattr(Credentials, "has_changed", counted)
    daemon, secret = with_wrong_password(line, tmp_path)
    async with daemon.running():
        await daemon.until_account(lambda a: a["state"] == "auth_rejected")
        logins = line.server.count("AUTHENTICATE")
        with structlog.testing.capture_logs() as events:
            secret.rename(elsewhere := tmp_path / "elsewhere")
            seen = looks
            await until(lambda: looks > seen + 4)
            elsewhere.rename(secret)
            seen = looks
            await until(lambda: looks > seen + 4)
        assert [event["event"] for event in events] == ["secret.refused"]  # told once, not at every look
        assert line.server.count("AUTHENTICATE") == logins
        secret.write_text(PASSWORD)
        await daemon.until_pushed()


async def test_passwd_tells_the_daemon(line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shorten(monkeypatch)
    daemon, _ = with_wrong_password(line, tmp_path)
    async with daemon.running():
        await daemon.until_account(lambda a: a["state"] == "auth_rejected")
        (typed := tmp_path / "typed").write_text(PASSWORD)
        changed = await daemon.run("account", "passwd", "work", "--password-stdin", stdin=typed)
        assert changed.returncode == 0, changed.stderr
        await daemon.until_pushed()


async def test_a_maildir_that_goes_away_is_watched_again_when_it_is_back(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch)
    async with line.daemon().running() as daemon:
        await daemon.until_pushed()
        await has_all(line, daemon)
        root = daemon.maildir()
        await anyio.to_thread.run_sync(root.rename, root.parent / "away")
        await daemon.until_account(lambda a: a["error"])
        (root.parent / "away").rename(root)
        await daemon.until_account(lambda a: a["error"] is None and a["state"] == "idle")
        (path,) = daemon.files()
        path.rename(path.parent.parent / "cur" / f"{path.name.partition(':')[0]}:2,S")
        await until(lambda: line.store.mailbox("INBOX").message(1).flags == {"\\Seen"})


async def test_less_than_everything_is_offered(line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shorten(monkeypatch)
    async with ImapServer(line.store, {USER: PASSWORD}, capabilities=ALL - {"IDLE", "NOTIFY"}) as server:
        account = imap_account(server.host, server.port, USER, PASSWORD)
        async with DaemonInside(tmp_path, {"work": account}).running() as daemon:
            told = await daemon.until_account(lambda a: a["push"] == "poll" and a["state"] == "idle")
            assert told["push_reason"] == "the server offers no IDLE"
