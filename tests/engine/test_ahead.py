"""A mailbox is asked for behind the listing where this disk has news, or INBOX where it has none: a round trip less."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from maild.core.errors import LocalError
from maild.core.model import MailboxName
from maild.engine.account import opened_account
from maild.engine.report import AccountReport
from maild.remote.imap.line import Line
from maild.testing.faults import Hold
from tests.daemon.waiting import until
from tests.engine.world import DEADLINE_S, World, message


@pytest.fixture
def selected(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when a SELECT is sent."""
    found = asyncio.Event()
    write = Line.write

    def seen(line: Line, octets: bytes) -> None:
        write(line, octets)
        if b" SELECT " in octets:
            found.set()

    monkeypatch.setattr(Line, "write", seen)
    return found


def new_here(world: World, mailbox: str = "INBOX") -> None:
    world.write_foreign(9, message(9).replace(b"\r\n", b"\n"), mailbox=mailbox)


async def test_a_kept_account(world: World, selected: asyncio.Event) -> None:
    world.settings(connections=1)
    world.store.create("Lists/maild")
    world.deliver(3)
    world.deliver(3, "Lists/maild")
    async with opened_account(world.account, world.state_dir) as kept, asyncio.timeout(DEADLINE_S):
        for _ in range(2):
            await kept.bring_up_to_date(AccountReport("work"))
        world.server.journal.clear()
        selected.clear()
        new_here(world, "Lists/maild")
        may_answer = asyncio.Event()
        world.server.faults.add("LIST", Hold(may_answer))
        passing = asyncio.create_task(kept.bring_up_to_date(AccountReport("work")))
        await selected.wait()
        may_answer.set()
        assert await passing is None
    sent = [command.partition(" (")[0] for command in world.server.journal]
    behind = sent[next(index for index, name in enumerate(sent) if name.startswith("LIST")) + 1 :]
    assert behind[:2] == ['SELECT "Lists/maild"', "UID FETCH 4:*"]
    assert behind[2].startswith('APPEND "Lists/maild"')
    assert len(world.store.mailbox("Lists/maild")) == 4
    await world.settled()


async def test_a_pass_of_its_own(world: World, selected: asyncio.Event) -> None:
    """Nothing is known of the server's names yet, but INBOX is always called so."""
    world.deliver(3)
    for _ in range(2):
        await world.synced()
    selected.clear()
    await world.synced()
    assert not selected.is_set()
    new_here(world)
    may_answer = asyncio.Event()
    world.server.faults.add("LIST", Hold(may_answer))
    async with asyncio.timeout(DEADLINE_S):
        passing = asyncio.create_task(world.synced())
        await selected.wait()
        may_answer.set()
        assert (await passing).total("pushed") == 1
    assert len(world.store.mailbox("INBOX")) == 4
    await world.settled()


async def test_only_what_was_asked_for_is_opened(world: World, selected: asyncio.Event) -> None:
    world.store.create("Other")
    world.deliver(1)
    world.deliver(1, "Other")
    for _ in range(2):
        await world.synced()
    new_here(world)
    selected.clear()
    await world.sync(only=["Other"])
    assert not selected.is_set()


async def test_what_came_there_meanwhile_decides(world: World) -> None:
    """Nothing is sent before it is known what the server has: the same message there is adopted."""
    world.deliver(3)
    async with opened_account(world.account, world.state_dir) as kept:
        for _ in range(2):
            await kept.bring_up_to_date(AccountReport("work"))
        new_here(world)
        world.deliver(1, start=9)
        report = AccountReport("work")
        await kept.bring_up_to_date(report)
        assert (report.total("adopted"), report.total("pushed"), report.total("pulled")) == (1, 0, 0)
    assert len(world.store.mailbox("INBOX")) == len(world.files()) == 4


async def test_a_look_only_examines(world: World, selected: asyncio.Event) -> None:
    world.deliver(3)
    for _ in range(2):
        await world.synced()
    new_here(world)
    selected.clear()
    async with opened_account(world.account, world.state_dir, dry_run=True) as kept:
        report = AccountReport("work")
        await kept.bring_up_to_date(report)
    assert report.total("pushed") == 1
    assert not selected.is_set()
    assert world.server.count("EXAMINE") == 1


async def test_the_marker_does_not_wait_for_mail_that_the_server_told_of(world: World) -> None:
    """It takes the disk as long as the server takes for its answer."""
    world.deliver(3)
    async with opened_account(world.account, world.state_dir) as kept, asyncio.timeout(DEADLINE_S):
        for _ in range(2):
            await kept.bring_up_to_date(AccountReport("work"))
        before, fetched = (world.root / ".maild").read_text(), asyncio.Event()
        world.deliver(1, start=4)
        held = world.server.faults.add("UID FETCH", Hold(fetched))
        report = AccountReport("work")
        passing = asyncio.create_task(kept.bring_up_to_date(report, hinted=[MailboxName("INBOX")]))
        await held.struck.wait()
        await until(lambda: (world.root / ".maild").read_text() != before)
        assert not report.total("pulled")
        fetched.set()
        assert await passing is None
        assert report.total("pulled") == 1
    await world.settled()


async def test_a_marker_that_cannot_be_written_ahead_is_told_where_it_is_needed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.deliver(3)
    async with opened_account(world.account, world.state_dir) as kept, asyncio.timeout(DEADLINE_S):
        for _ in range(2):
            await kept.bring_up_to_date(AccountReport("work"))

        def refuse(*_: object) -> None:
            raise LocalError("the disk is full", "make room")

        monkeypatch.setattr("maild.local.marker.replace_file", refuse)
        nothing_new, report = AccountReport("work"), AccountReport("work")
        await kept.bring_up_to_date(nothing_new, hinted=[MailboxName("INBOX")])
        assert nothing_new.ok
        world.deliver(1, start=4)
        await kept.bring_up_to_date(report, hinted=[MailboxName("INBOX")])
        assert not report.ok
        assert "the disk is full" in str(report.mailboxes["INBOX"].error or report.error)
        monkeypatch.undo()
        await kept.bring_up_to_date(AccountReport("work"))
    world.assert_equal()


CHANGES_THERE: dict[str, Callable[[World], object]] = {
    "flags change": lambda world: world.store.set_flags("INBOX", 1, add={"\\Flagged"}),
    "a message goes": lambda world: world.store.expunge("INBOX", 1),
}


@pytest.mark.parametrize("change", CHANGES_THERE.values(), ids=CHANGES_THERE)
async def test_what_changes_there_is_told_in_one_round_trip(
    world: World, selected: asyncio.Event, change: Callable[[World], object]
) -> None:
    """Nothing changed here, and nobody told of news: INBOX is asked for before the listing is answered."""
    world.settings(connections=1)
    world.deliver(3)
    async with opened_account(world.account, world.state_dir) as kept, asyncio.timeout(DEADLINE_S):
        for _ in range(2):
            await kept.bring_up_to_date(AccountReport("work"))
            for subdir in ("new", "cur"):
                os.utime(world.directory("INBOX") / subdir, (1, 1))  # as if it had been at rest for long
        await kept.bring_up_to_date(AccountReport("work"))
        change(world)
        selected.clear()
        may_answer = asyncio.Event()
        world.server.faults.add("LIST", Hold(may_answer))
        passing = asyncio.create_task(kept.bring_up_to_date(AccountReport("work")))
        await selected.wait()
        sent = len(world.server.journal)
        may_answer.set()
        await passing
    assert world.server.journal[sent - 1].startswith("LIST")
    assert [line.split(" (")[0] for line in world.server.journal[sent:]] == [
        'SELECT "INBOX"',
        "UID FETCH 4:*",
        "LOGOUT",
    ]
    assert len(world.files()) == len(world.store.mailbox("INBOX"))
    await world.settled()
