"""One account's owner, with a server in memory that stops a pass where the test wants it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from maild.config import Hooks
from maild.core.errors import AuthRejected, ConnectionLost, MaildError, Unavailable
from maild.core.model import Listing, MailboxName
from maild.engine import account as engine
from maild.engine import keeper as keeper_module
from maild.engine import listen
from maild.engine.hooks import HookBoard
from maild.engine.keeper import STUCK_S, Keeper, Request, refresh
from maild.engine.listen import Common
from maild.engine.status import AccountDocument
from maild.testing.memory import MemoryRemote
from tests.daemon.waiting import until
from tests.engine.twin import Twin


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class ToldWatch:
    """A watch that tells what the test says."""

    method: str = "idle"
    mailboxes: frozenset[MailboxName] = frozenset({MailboxName("INBOX")})
    said: anyio.Event = field(default_factory=anyio.Event)
    failure: MaildError | None = None
    lack: str = ""
    probes: int = 0
    misses: int = 0

    async def hint(self) -> frozenset[MailboxName] | None:
        await self.said.wait()
        self.said = anyio.Event()
        if self.failure is not None:
            raise self.failure
        return self.mailboxes

    def say(self) -> None:
        self.said.set()

    def fail(self, error: MaildError) -> None:
        self.failure = error
        self.said.set()

    def probe(self) -> None:
        self.probes += 1

    def missed(self) -> None:
        self.misses += 1


@dataclass(slots=True)
class HeldRemote(MemoryRemote):
    """`held`: a listing waits for it. `failures` are raised by the listings to come, one each."""

    held: anyio.Event | None = None
    listings: int = 0
    at_once: int = 0
    most_at_once: int = 0
    failures: list[MaildError] = field(default_factory=list)
    watches: list[ToldWatch] = field(default_factory=list)
    watch_failures: list[MaildError] = field(default_factory=list)

    async def listing(self) -> Listing:
        self.listings += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.held is not None:
                await self.held.wait()
            if self.failures:
                raise self.failures.pop(0)
            return await MemoryRemote.listing(self)
        finally:
            self.at_once -= 1

    @asynccontextmanager
    async def watch(
        self, mailboxes: Sequence[MailboxName], idle: Sequence[MailboxName], method: str
    ) -> AsyncIterator[ToldWatch]:
        if self.watch_failures:
            raise self.watch_failures.pop(0)
        watch = ToldWatch()
        self.watches.append(watch)
        yield watch


class Kept(Twin):
    """A twin whose account a keeper keeps."""

    held: HeldRemote
    keeper: Keeper
    clock: Clock

    @asynccontextmanager
    async def running(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Keeper]:
        self.held = getattr(self, "held", None) or HeldRemote(self.store)
        monkeypatch.setattr(engine, "open_remote", lambda _: self.held)
        self.clock = Clock()
        common = Common(self.state_dir, HookBoard(Hooks()), clock=self.clock, chance=lambda: 1.0)
        self.keeper = Keeper(self.account, "imap", common)
        self.state_dir.mkdir(exist_ok=True)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.keeper.run)
                yield self.keeper
                tasks.cancel_scope.cancel()

    async def idle(self) -> None:
        """Until the first passes are over and push is there."""
        await until(lambda: self.keeper.state == "idle" and self.keeper.push == "idle" and self.held.listings >= 2)
        await until(lambda: not self.keeper._is_wanted and self.keeper.report is None)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    twin = Kept(tmp_path)
    twin.deliver(1)
    return twin


async def test_mail_comes_at_the_start_and_with_each_hint(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept.running(monkeypatch):
        await kept.idle()
        assert len(kept.find(1)) == 1
        kept.deliver(2)
        kept.held.watches[0].say()
        await until(lambda: kept.find(2))


async def test_a_hint_during_a_pass_leads_to_another_and_two_hints_to_one(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        before = kept.held.listings
        kept.held.held = anyio.Event()
        keeper.wake()
        await until(lambda: kept.held.at_once == 1)
        for _ in range(5):
            keeper.wake()
            await anyio.lowlevel.checkpoint()
        assert kept.held.listings == before + 1
        kept.held.held.set()
        await until(lambda: kept.held.listings == before + 2)
        await until(lambda: keeper.report is None and keeper.state == "idle")
        assert kept.held.listings == before + 2
        assert kept.held.most_at_once == 1


async def test_who_asks_during_a_pass_gets_one_that_began_afterwards(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        kept.held.held = anyio.Event()
        keeper.wake()
        await until(lambda: kept.held.at_once == 1)
        running, request = keeper.report, Request()
        keeper.ask(request)
        kept.held.held.set()
        await request.done.wait()
        assert request.report is not None
        assert request.report is not running
        assert request.report.ok


async def test_a_request_for_one_mailbox_and_one_that_is_not_there(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.store.create("Other")
    kept.deliver(5, "Other")
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        some, none = Request(("Other",)), Request(("Nowhere",))
        kept.deliver(6, "Other")
        keeper.ask(some)
        await some.done.wait()
        assert some.report is not None
        assert set(some.report.mailboxes) == {"Other"}
        assert kept.find(6, "Other")
        keeper.ask(none)
        await none.done.wait()
        assert none.report is not None
        assert "no such mailbox" in (none.report.error or "")
        await until(lambda: keeper.state == "idle" and keeper.failure is None)


async def test_a_dry_run_changes_nothing(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        kept.deliver(2)
        dry = Request(is_dry_run=True)
        keeper.ask(dry)
        await dry.done.wait()
        assert dry.report is not None
        assert dry.report.total("pulled") == 1
        assert kept.find(2) == []


async def test_refused_login_stops_until_somebody_asks(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.held = HeldRemote(kept.store, failures=[AuthRejected("wrong password")])
    async with kept.running(monkeypatch) as keeper:
        await until(lambda: keeper.state == "auth_rejected")
        kept.clock.now_s += 600
        keeper.wake()
        keeper.hasten()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert (kept.held.listings, keeper.state) == (1, "auth_rejected")
        request = Request()
        keeper.ask(request)
        await request.done.wait()
        await until(lambda: keeper.state == "idle")


@pytest.mark.parametrize(
    ("failure", "state"), [(ConnectionLost("no route"), "offline"), (Unavailable("too many"), "backing_off")]
)
async def test_failures_are_tried_again_and_the_request_that_asks_does_not_wait(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, failure: MaildError, state: str
) -> None:
    kept.held = HeldRemote(kept.store, failures=[failure] * 3)
    async with kept.running(monkeypatch) as keeper:
        await until(lambda: keeper.state == state)
        request = Request()
        keeper.ask(request)
        await request.done.wait()
        assert request.report is not None
        assert request.report.error == str(failure)
        keeper.hasten()
        await until(lambda: kept.held.listings == 3)
        keeper.hasten()
        await kept.idle()


async def test_lost_push_is_replaced_after_a_pass(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        kept.deliver(2)
        kept.held.watches[0].fail(ConnectionLost("silent"))
        await until(lambda: kept.find(2))
        await until(lambda: len(kept.held.watches) == 2 and keeper.push == "idle")


async def test_a_new_mailbox_is_watched_too(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        kept.store.create("New")
        kept.deliver(3, "New")
        keeper.wake()
        await until(lambda: kept.find(3, "New"))
        await until(lambda: len(kept.held.watches) == 2 and keeper.push == "idle")


async def test_stop_lets_the_pass_end_and_is_told(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        kept.deliver(2)
        kept.held.held = anyio.Event()
        keeper.wake()
        await until(lambda: kept.held.at_once == 1)
        keeper.stop()
        kept.held.held.set()
        await until(lambda: keeper.state == "stopped")
        assert kept.find(2)


async def test_what_status_tells_comes_from_memory(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        await refresh([keeper])
        document: AccountDocument = keeper.document()
        assert (document["state"], document["push"], document["error"]) == ("idle", "idle", None)
        assert document["mailboxes"]["INBOX"]["messages"] == 1
        (kept.state_dir / "work.sqlite").rename(kept.state_dir / "elsewhere")
        await refresh([keeper])
        assert keeper.document() == document


async def test_an_owner_without_a_sign_of_life_is_stuck(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        kept.clock.now_s += STUCK_S / 2
        assert not keeper.is_stuck()  # and it was asked
        await until(lambda: keeper._last_sign_s == kept.clock.now_s)
        kept.held.held = anyio.Event()
        keeper.wake()
        await until(lambda: kept.held.at_once == 1)
        assert not keeper.is_stuck()
        kept.clock.now_s += STUCK_S + 1
        assert keeper.is_stuck()
        kept.held.held.set()
        await until(lambda: keeper.report is None)
        assert not keeper.is_stuck()


async def test_state_that_cannot_be_opened_is_an_error_of_the_account(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.state_dir.mkdir()
    (kept.state_dir / "work.sqlite").write_bytes(b"no database" * 1000)
    async with kept.running(monkeypatch) as keeper:
        await until(lambda: keeper.state == "backing_off")
        request = Request()
        keeper.ask(request)
        await request.done.wait()
        assert request.report is not None
        assert request.report.error


# -- push that is not what it seems


async def test_news_that_nobody_told_of_is_told_to_the_watch(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "MISSED_S", 0.05)
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        (watch,) = kept.held.watches
        kept.deliver(2)
        keeper.wake()  # a poll, say
        await until(lambda: watch.misses == 1)
        assert kept.find(2)
        keeper.wake()  # it finds nothing
        kept.deliver(3)
        kept.clock.now_s += 1
        watch.say()
        await until(lambda: kept.find(3))
        await until(lambda: keeper.report is None and not keeper._is_wanted)
        assert watch.misses == 1


async def test_news_that_is_told_of_late_is_not_missed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "MISSED_S", 2.0)
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        (watch,) = kept.held.watches
        kept.deliver(2)
        keeper.wake()
        await until(lambda: keeper._listening._doubt is not None)
        kept.clock.now_s += 1
        watch.say()
        await until(lambda: keeper._listening._doubt is None)
        assert watch.misses == 0


async def test_why_there_is_no_push_is_told(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        kept.held.watch_failures = [Unavailable("too many connections")]
        kept.held.watches[0].fail(ConnectionLost("silent"))
        await until(lambda: keeper.push is None and "too many" in str(keeper.document()["error"]))
        await until(lambda: keeper.state == "idle")  # the mail itself is up to date
        await until(lambda: keeper.push == "idle")
        assert keeper.document()["error"] is None


async def test_why_push_is_less_than_it_could_be_is_told(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        assert "push_reason" not in keeper.document()
        keeper._listening.lack = "no NOTIFY: refused"
        assert keeper.document()["push_reason"] == "no NOTIFY: refused"


async def test_push_that_dies_at_once_each_time_waits_longer_each_time(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        for failures in range(1, 6):
            kept.held.watches[-1].fail(ConnectionLost("cut"))
            await until(lambda failures=failures: keeper._listening._patience.failures == failures)
            await until(lambda: keeper.failure is None and keeper.report is None and not keeper._is_wanted)
            assert keeper._listening._patience.retry_at_s - kept.clock.now_s == 2 ** (failures - 1)
            patience = keeper._listening._patience
            assert patience._asked is not None
            patience._asked.set()  # the time is over
            await until(lambda failures=failures: len(kept.held.watches) == failures + 1 and keeper.push == "idle")
        kept.clock.now_s += listen.USEFUL_S
        kept.held.watches[-1].fail(ConnectionLost("cut"))
        await until(lambda: keeper._listening._patience.failures == 1)  # that one had been of use


async def test_a_probe_reaches_the_watch_and_leads_to_a_pass(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        before = kept.held.listings
        keeper.probe()
        await until(lambda: kept.held.watches[0].probes == 1 and kept.held.listings > before)


# -- the disk


async def test_what_maild_wrote_itself_is_no_reason_to_ask_the_server(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        kept.deliver(2)
        kept.held.watches[0].say()
        await until(lambda: kept.find(2))
        await until(lambda: keeper.report is None and not keeper._is_wanted)
        before = kept.held.listings
        for _ in range(3):
            keeper.stir()
            await until(lambda: not keeper._is_stirred_here)
        assert kept.held.listings == before
        (path,) = kept.find(2)
        path.rename(path.parent.parent / "cur" / f"{path.name}:2,S")
        keeper.stir()
        await until(lambda: kept.held.listings == before + 1)
        await until(lambda: kept.store.mailbox("INBOX").message(kept.uid(2)).flags == {"\\Seen"})


async def test_a_hint_while_the_disk_is_looked_at_is_not_lost(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    looking, held = anyio.Event(), anyio.Event()

    async def has_local_news() -> bool:
        looking.set()
        await held.wait()
        return False

    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        keeper._look_here = has_local_news
        keeper.stir()
        await looking.wait()
        kept.deliver(2)
        kept.held.watches[0].say()
        await until(lambda: keeper._is_wanted)
        held.set()
        await until(lambda: kept.find(2))


# -- secrets, ends and faults


async def test_another_secret_ends_the_wait_at_once(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.held = HeldRemote(kept.store, failures=[AuthRejected("wrong password")])
    async with kept.running(monkeypatch) as keeper:
        await until(lambda: keeper.state == "auth_rejected")
        keeper.note_secret()
        await kept.idle()
        assert keeper.failure is None


async def test_a_fault_of_maild_is_no_success_for_who_asked(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.held = HeldRemote(kept.store)
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        kept.held.failures = [KeyError("a fault")]  # type: ignore[list-item]
        request = Request()
        keeper.ask(request)
        await request.done.wait()
        assert request.report is not None
        assert not request.report.ok
        await until(lambda: keeper.state == "backing_off")
        assert "fault in maild" in str(keeper.failure)


async def test_a_pass_that_a_stop_cuts_off_is_no_success(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "LONGEST_PASS_AT_STOP_S", 0.05)
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        kept.held.held = anyio.Event()
        request = Request()
        keeper.ask(request)
        await until(lambda: kept.held.at_once == 1)
        keeper.stop()
        await request.done.wait()
        assert request.report is not None
        assert request.report.error == keeper_module.STOPPED
        await until(lambda: keeper.state == "stopped")


async def test_of_many_accounts_the_one_without_a_pass_for_longest_sleeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "MOST_AWAKE", 2)
    common = Common(tmp_path, HookBoard(Hooks()))

    class Sleeper:
        slept = 0

        async def sleep(self) -> None:
            self.slept += 1

    some: list[Any] = [Sleeper() for _ in range(4)]
    for one in (some[0], some[1], some[0], some[2]):
        await common.note_use(one)
    assert [one.slept for one in some] == [0, 1, 0, 0]
    common.note_end(some[0])
    await common.note_use(some[3])
    assert [one.slept for one in some] == [0, 1, 0, 0]


async def test_an_account_that_slept_goes_on_as_before(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "MOST_AWAKE", 0)
    async with kept.running(monkeypatch) as keeper:
        await kept.idle()
        assert [file.name for file in kept.state_dir.iterdir()] == ["work.sqlite"]
        kept.deliver(2)
        kept.held.watches[-1].say()
        await until(lambda: kept.find(2))
        await kept.idle()
        assert [file.name for file in kept.state_dir.iterdir()] == ["work.sqlite"]
        assert keeper.failure is None
