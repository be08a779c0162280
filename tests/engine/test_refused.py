"""Nothing is deleted without proof: the deletion guard, Maildirs that are gone, listings that are cut short."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from maild.testing.faults import Rewrite
from tests.engine.world import World


def stored_refusal(world: World, mailbox: str = "INBOX") -> str | None:
    state = world.state()
    try:
        return next(row.refused for name, row in state.mailboxes().items() if name == mailbox)
    finally:
        state.close()


# -- the deletion guard


async def test_a_refused_plan_leaves_everything_and_is_seen_again(any_world: World) -> None:
    any_world.store.create("Archiv")
    any_world.deliver(10)
    any_world.deliver(2, "Archiv", start=50)
    await any_world.synced()
    any_world.store.expunge("INBOX", range(1, 11))
    any_world.deliver(1, start=11)
    any_world.store.expunge("Archiv", 1)
    for _ in range(3):
        report = await any_world.sync()
        assert not report.ok, "what is new does not release it"
        inbox = report.mailboxes["INBOX"]
        assert (inbox.state, inbox.refused, inbox.deleted) == ("refused", 10, 0)
        assert "10 of 10 messages are gone" in str(inbox.error)
        assert len(any_world.files()) == 11, "what is new came all the same"
        assert len(any_world.files("Archiv")) == 1, "the other mailbox went on"
        assert "are gone on the server" in str(stored_refusal(any_world))
    for n in range(1, 11):
        any_world.one(n).path.unlink()
    await any_world.synced()
    assert stored_refusal(any_world) is None, "its hint was followed"
    any_world.assert_equal()
    await any_world.settled()


async def test_a_refused_plan_that_is_undone_on_the_server(any_world: World) -> None:
    any_world.deliver(12)
    await any_world.synced()
    lost = list(any_world.store.mailbox("INBOX").messages)
    any_world.store.expunge("INBOX", range(1, 13))
    report = await any_world.sync()
    assert report.mailboxes["INBOX"].refused == 12
    for message in lost:
        any_world.store.deliver("INBOX", message.raw, message.flags, message.date_s)
    report = await any_world.sync()
    assert report.total("deleted") == 0
    assert len(any_world.files()) >= 12


@pytest.mark.parametrize(
    ("messages", "gone", "is_refused"),
    [(9, 9, False), (10, 10, True), (10, 9, False), (40, 20, False), (39, 20, True), (30, 19, False), (60, 31, True)],
)
async def test_where_the_guard_begins(world: World, messages: int, gone: int, is_refused: bool) -> None:
    world.deliver(messages)
    await world.synced()
    world.store.expunge("INBOX", range(1, gone + 1))
    report = await world.sync()
    assert report.ok is not is_refused
    assert len(world.files()) == (messages if is_refused else messages - gone)


async def test_a_higher_limit_lets_the_plan_pass(any_world: World) -> None:
    any_world.deliver(40)
    await any_world.synced()
    any_world.store.expunge("INBOX", range(1, 31))
    assert not (await any_world.sync()).ok
    any_world.limit_deletions(90, is_percent=True)
    report = await any_world.synced()
    assert report.total("deleted") == 30
    any_world.assert_equal()
    await any_world.settled()


async def test_flags_come_while_deletions_are_refused(any_world: World) -> None:
    any_world.deliver(40)
    await any_world.synced()
    any_world.store.expunge("INBOX", range(1, 31))
    any_world.store.set_flags("INBOX", 40, add=["\\Flagged"])
    report = await any_world.sync()
    assert report.mailboxes["INBOX"].state == "refused"
    assert any_world.one(40).flags == {"\\Flagged"}


# -- Maildirs that are not there


def unmounted(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))


def emptied(root: Path) -> None:
    unmounted(root)
    root.mkdir()


def dangling(root: Path) -> None:
    unmounted(root)
    root.symlink_to(root.with_name("not-mounted"))


def unmarked(root: Path) -> None:
    shutil.copytree(root, root.with_name("elsewhere"))
    (root / ".maild").unlink()


@pytest.mark.parametrize("loss", [unmounted, emptied, dangling, unmarked])
async def test_a_maildir_that_is_gone_stops_the_account(any_world: World, loss: Callable[[Path], None]) -> None:
    any_world.deliver(3)
    await any_world.synced()
    kept = any_world.root.with_name("elsewhere")
    loss(any_world.root)
    any_world.deliver(2, start=4)
    for _ in range(2):
        report = await any_world.sync()
        assert not report.ok
        assert str(any_world.root) in str(report.error)
        assert "; mount or restore" in str(report.error), "it says what to do"
        assert not (any_world.root / "INBOX" / "new").exists() or loss is unmarked, "nothing was made in its place"
    if any_world.root.is_symlink():
        any_world.root.unlink()
    elif any_world.root.exists():
        shutil.rmtree(any_world.root)
    kept.rename(any_world.root)
    report = await any_world.synced()
    assert report.total("pulled") == 2, "nothing was lost"
    any_world.assert_equal()
    await any_world.settled()


async def test_a_symlink_as_the_maildir(any_world: World) -> None:
    real = any_world.root.parent.with_name("disk")
    real.mkdir(parents=True)
    any_world.root.parent.mkdir(parents=True)
    any_world.root.symlink_to(real)
    any_world.deliver(2)
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


@pytest.mark.parametrize("gone", ["", "cur", "new"])
async def test_a_mailbox_directory_that_is_gone_is_refused_alone(any_world: World, gone: str) -> None:
    any_world.store.create("Archiv")
    any_world.deliver(3)
    any_world.deliver(3, "Archiv", start=10)
    await any_world.synced()
    directory = any_world.directory("Archiv")
    (directory / gone).rename(any_world.root.parent / "elsewhere")
    any_world.deliver(1, start=4)
    any_world.deliver(1, "Archiv", start=13)
    any_world.store.expunge("Archiv", 1)
    for _ in range(2):
        report = await any_world.sync()
        assert report.mailboxes["Archiv"].state == "refused"
        assert str(directory) in str(report.mailboxes["Archiv"].error)
        assert "mount or restore it" in str(report.mailboxes["Archiv"].error)
        any_world.assert_equal("INBOX")
    (any_world.root.parent / "elsewhere").rename(directory / gone)
    await any_world.synced()
    any_world.assert_equal()
    assert stored_refusal(any_world, "Archiv") is None
    await any_world.settled()


async def test_a_symlink_in_place_of_a_mailbox_is_not_followed(world: World) -> None:
    world.store.create("Archiv")
    world.deliver(1, "Archiv")
    outside = world.root.parent.parent / "outside"
    for name in ("cur", "new", "tmp"):
        (outside / name).mkdir(parents=True)
    world.root.mkdir(parents=True)
    (world.root / "Archiv").symlink_to(outside)
    world.deliver(1)
    report = await world.sync()
    assert report.mailboxes["Archiv"].state == "error"
    assert "symlink" in str(report.mailboxes["Archiv"].error)
    world.assert_equal("INBOX")
    assert [path for path in outside.rglob("*") if path.is_file()] == []


# -- listings that are not whole


async def test_a_listing_that_is_cut_short_deletes_nothing(any_world: World) -> None:
    """RFC 9738: the rest of the messages exists, it was just not told."""
    any_world.deliver(6)
    await any_world.synced()
    any_world.lose_state()
    await any_world.synced()
    any_world.store.mailbox("INBOX").modseqs = False  # so that the next pass lists everything
    any_world.deliver(1, start=7)

    def half(response: bytes) -> bytes:
        number = re.match(rb"\* (\d+) FETCH", response)
        if number is not None and int(number[1]) <= 3:
            return b""
        return re.sub(rb"\A(\S+ OK) Fetch", rb"\1 [MESSAGELIMIT 4] Fetch", response)

    any_world.server.faults.add("UID FETCH", Rewrite(half))
    await any_world.sync()
    assert len(any_world.files()) == 7
    any_world.assert_equal()
    any_world.server.faults.clear()
    any_world.store.expunge("INBOX", 1)
    report = await any_world.synced()
    assert report.total("deleted") == 1, "the cursor had stayed where it was"
    any_world.assert_equal()


async def test_what_a_first_listing_left_out_comes_with_the_next(any_world: World) -> None:
    any_world.deliver(6)

    def half(response: bytes) -> bytes:
        number = re.match(rb"\* (\d+) FETCH", response)
        return b"" if number is not None and int(number[1]) <= 3 else response

    any_world.server.faults.add("UID FETCH", Rewrite(half))
    await any_world.sync()
    assert len(any_world.files()) == 3
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


@pytest.mark.parametrize("told", [5, 7])
async def test_a_count_that_does_not_fit_deletes_nothing(any_world: World, told: int) -> None:
    any_world.deliver(6)
    await any_world.synced()
    any_world.store.mailbox("INBOX").modseqs = False
    any_world.store.set_flags("INBOX", 1, add=["\\Seen"])

    def miscounted(response: bytes) -> bytes:
        return re.sub(rb"\* \d+ EXISTS", b"* %d EXISTS" % told, response)

    any_world.server.faults.add("SELECT", Rewrite(miscounted), times=None)
    any_world.store.expunge("INBOX", 2)
    if told == 5:
        any_world.store.expunge("INBOX", 3)
    await any_world.sync()
    assert len(any_world.files()) == 6
    any_world.server.faults.clear()
    await any_world.synced()
    any_world.assert_equal()
