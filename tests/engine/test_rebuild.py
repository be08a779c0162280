"""Both sides hold the mail and the pairs are gone: they are made anew by content, nothing is doubled or fetched."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import anyio
import pytest

from maild.engine import carry_out, pull
from maild.engine.sync import MailboxPass
from maild.local import marker
from maild.local.delivery import Delivered
from maild.testing.faults import Cut, Hold
from tests.engine.twin import Twin
from tests.engine.world import START_S, World, bodies, long_body, message, touched_times


def disk_form(raw: bytes) -> bytes:
    return raw.replace(b"\r\n", b"\n")


async def adopted(world: World, count: int) -> None:
    """A pass that adopts `count` messages and pulls nothing; both sides are equal after it, and it is over."""
    world.commands()
    report = await world.synced()
    assert (report.total("adopted"), report.total("pulled"), report.total("deleted")) == (count, 0, 0)
    assert bodies(world.commands()) == []
    world.assert_equal()
    await world.settled()


async def test_uidvalidity_changes(any_world: World) -> None:
    any_world.deliver(6, flags=["\\Seen", "Wort"])
    await any_world.synced()
    before = {file.path for file in any_world.files()}
    any_world.store.bump_uidvalidity("INBOX")
    await adopted(any_world, 6)
    assert {file.path for file in any_world.files()} == before


async def test_uidvalidity_changes_and_so_do_flags_on_both_sides(any_world: World) -> None:
    """The flags of the last common state outlive the pairs: a flag removed on either side stays removed."""
    any_world.deliver(3, flags=["\\Seen", "\\Flagged"])
    await any_world.synced()
    any_world.relabel(any_world.one(1), "S")
    any_world.store.set_flags("INBOX", 2, remove=["\\Seen"], add=["\\Answered"])
    any_world.store.bump_uidvalidity("INBOX")
    report = await any_world.synced()
    assert (report.total("adopted"), report.total("flags"), report.total("flags_there")) == (3, 1, 1)
    assert any_world.one(1).flags == {"\\Seen"}
    assert any_world.one(2).flags == {"\\Flagged", "\\Answered"}
    any_world.assert_equal()
    assert any_world.base_flags()["1"] == {"\\Seen"}
    await any_world.settled()


async def test_uidvalidity_changes_and_the_mailbox_is_another(any_world: World) -> None:
    """Without a pair nothing proves that a message was deleted: what the server lost it gets back."""
    any_world.deliver(30)
    await any_world.synced()
    any_world.store.bump_uidvalidity("INBOX", keep=False)
    any_world.deliver(2, start=29)
    any_world.deliver(2, start=31)
    report = await any_world.synced()
    assert (report.total("adopted"), report.total("pulled"), report.total("deleted")) == (2, 2, 0)
    assert (report.total("pushed"), report.total("deleted_there")) == (28, 0)
    assert len(any_world.files()) == 32
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


async def test_uidvalidity_changes_in_the_middle(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "FETCH_MESSAGES", 5)
    world.deliver(40)
    held = asyncio.Event()
    fault = world.server.faults.add("UID FETCH", Hold(held, after_octets=500), nth=4)

    async def change() -> None:
        await fault.struck.wait()
        world.store.bump_uidvalidity("INBOX")
        held.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(change)
        await world.sync()
    await world.synced()
    world.assert_equal()
    await world.settled()


async def test_a_rebuilding_that_is_interrupted(any_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "FETCH_MESSAGES", 2)
    any_world.deliver(6, flags=["\\Seen"])
    await any_world.synced()
    any_world.relabel(any_world.one(2), "")
    any_world.store.bump_uidvalidity("INBOX")
    any_world.deliver(6, start=10)
    any_world.server.faults.add("UID FETCH", Cut(after_octets=100), nth=3, times=None)
    report = await any_world.sync()
    assert not report.ok
    any_world.server.faults.clear()
    await any_world.synced()
    assert len(any_world.files()) == 12
    assert any_world.one(2).flags == frozenset(), "removed here; the last common state was not forgotten"
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


async def test_the_state_is_lost(any_world: World) -> None:
    any_world.store.create("Archiv")
    any_world.deliver(4, flags=["\\Seen", "Wort"])
    any_world.deliver(3, "Archiv", start=10)
    await any_world.synced()
    any_world.lose_state()
    await adopted(any_world, 7)


async def test_the_maildir_of_another_tool(any_world: World) -> None:
    """Flags are joined, on both sides: without a common state nothing says that one was removed."""
    any_world.deliver(3, flags=["\\Seen"])
    for n, letters in ((1, "F"), (2, None), (3, "S")):
        path = any_world.write_foreign(n, disk_form(message(n)), letters)
        touched_times(path, START_S + n * 60)
    any_world.commands()
    report = await any_world.synced()
    assert (report.total("adopted"), report.total("pulled"), report.total("flags")) == (3, 0, 2)
    assert bodies(any_world.commands()) == []
    assert any_world.one(1).flags == {"\\Flagged", "\\Seen"}
    assert any_world.one(2).flags == {"\\Seen"}
    any_world.assert_equal()
    assert any_world.base_flags() == {"1": {"\\Flagged", "\\Seen"}, "2": {"\\Seen"}, "3": {"\\Seen"}}
    await any_world.settled()
    any_world.store.set_flags("INBOX", 1, add=["\\Answered"])
    await any_world.synced()
    assert any_world.one(1).flags == {"\\Flagged", "\\Seen", "\\Answered"}


async def test_a_maildir_with_crlf(any_world: World) -> None:
    any_world.deliver(2)
    for n in (1, 2):
        any_world.write_foreign(n, message(n))
    report = await any_world.synced()
    assert (report.total("adopted"), report.total("pulled")) == (2, 0)
    assert len(any_world.files()) == 2
    await any_world.settled()


async def test_equal_copies_stay_as_many_as_they_were(any_world: World) -> None:
    raw = message(1)
    for _ in range(2):
        any_world.store.deliver("INBOX", raw, (), START_S)
    await any_world.synced()
    assert len(any_world.files()) == 2
    any_world.lose_state()
    await adopted(any_world, 2)


@pytest.mark.parametrize("message_id", [None, ""])
async def test_equal_copies_keep_their_flags(any_world: World, message_id: str | None) -> None:
    """Which copy is which is told by the flags; else all would get those of all."""
    raw = message(1, message_id=message_id)
    for flags in (["\\Seen"], [], ["\\Flagged"], []):
        any_world.store.deliver("INBOX", raw, flags, START_S)
    await any_world.synced()
    any_world.lose_state()
    before = any_world.snapshot()
    assert (await any_world.synced()).total("flags") == 0
    assert [sorted(m.flags) for m in any_world.store.mailbox("INBOX")] == [["\\Seen"], [], ["\\Flagged"], []]
    assert any_world.snapshot().keys() == before.keys()


async def test_fewer_copies_here_than_there(any_world: World) -> None:
    raw = message(1)
    for _ in range(3):
        any_world.store.deliver("INBOX", raw, ["\\Seen"], START_S)
    any_world.write_foreign(1, disk_form(raw), "S")
    report = await any_world.synced()
    assert (report.total("adopted"), report.total("pulled")) == (1, 2)
    assert len(any_world.files()) == 3
    await any_world.settled()


async def test_more_copies_here_than_there(any_world: World) -> None:
    raw = message(1)
    any_world.store.deliver("INBOX", raw, (), START_S)
    for n in (1, 2):
        touched_times(any_world.write_foreign(n, disk_form(raw)), START_S)
    report = await any_world.synced()
    assert (report.total("adopted"), report.total("pulled"), report.total("pushed")) == (1, 0, 1)
    assert len(any_world.files()) == 2
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


async def test_one_message_id_on_different_messages(any_world: World) -> None:
    for n in (1, 2, 3):
        any_world.store.deliver("INBOX", message(n, message_id="<same@test.example>"), (), START_S)
    await any_world.synced()
    any_world.assert_equal()
    any_world.lose_state()
    await adopted(any_world, 3)


@pytest.mark.parametrize("body", ["Hallo\r\n", long_body()], ids=["small", "long"])
async def test_without_a_message_id_the_content_decides(any_world: World, body: str) -> None:
    """Such a message has to be fetched to be known; it is not kept twice, however big it is."""
    for n in (1, 2):
        any_world.store.deliver("INBOX", message(n, message_id="", body=body), ["\\Seen"], START_S)
    await any_world.synced()
    any_world.lose_state()
    report = await any_world.synced()
    assert (report.total("adopted"), report.total("pulled")) == (2, 0)
    any_world.assert_equal()
    await any_world.settled()


async def test_equal_messages_over_several_connections(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever session brings a copy first takes the file that is here; the others are delivered."""
    monkeypatch.setattr(pull, "WORTH_HELP_OCTETS", 100)
    monkeypatch.setattr(pull, "FETCH_MESSAGES", 1)
    raw = message(1, message_id="")
    for _ in range(60):
        world.store.deliver("INBOX", raw, (), START_S)
    for n in range(20):
        world.write_foreign(n, disk_form(raw))
    helped = asyncio.Event()
    world.server.faults.add("UID FETCH", Hold(helped, after_octets=0), nth=3)

    async def let_go_when_helped() -> None:
        await world.server.until(lambda: sum(bool(bodies(c.commands)) for c in world.server.connections) > 1)
        helped.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(let_go_when_helped)
        report = await world.synced()
    assert (report.total("adopted"), report.total("pulled")) == (20, 40)
    assert len(world.files()) == 60
    await world.settled()


# -- copies of the Maildir


async def test_an_older_maildir_is_matched_again(any_world: World) -> None:
    """Restored from a backup: what it lacks is pulled again, what it has too much is sent, nothing is deleted."""
    any_world.deliver(12)
    await any_world.synced()
    backup = any_world.root.with_name("backup")
    shutil.copytree(any_world.root, backup)
    any_world.deliver(5, start=13)
    any_world.store.expunge("INBOX", [1, 2])
    await any_world.synced()
    shutil.rmtree(any_world.root)
    backup.rename(any_world.root)
    report = await any_world.synced()
    assert (report.total("adopted"), report.total("pulled"), report.total("deleted")) == (10, 5, 0)
    assert (report.total("pushed"), report.total("deleted_there")) == (2, 0)
    assert len(any_world.files()) == 17
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


async def test_an_older_maildir_after_a_pass_that_was_broken_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generation rises before the first message of a pass, not only at its good end."""
    monkeypatch.setattr(pull, "FETCH_MESSAGES", 5)
    world.deliver(5)
    await world.synced()
    backup = world.root.with_name("backup")
    shutil.copytree(world.root, backup)
    world.deliver(30, start=6)
    durable = asyncio.Event()
    real = carry_out._count_durable

    def noted(this: MailboxPass, delivered: Delivered) -> None:
        real(this, delivered)
        durable.set()

    monkeypatch.setattr(carry_out, "_count_durable", noted)
    held = world.server.faults.add("UID FETCH", Hold(asyncio.Event()), nth=5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.sync)
        await held.struck.wait()
        await durable.wait()
        tasks.cancel_scope.cancel()  # as Ctrl-C does
    world.server.faults.clear()
    assert len(world.files()) > 5
    shutil.rmtree(world.root)
    backup.rename(world.root)
    await world.synced()
    world.assert_equal()
    await world.settled()


async def test_another_maildir_is_matched_by_content(any_world: World) -> None:
    """A Maildir with a marker of its own, from another machine: its mail is adopted, no pair is believed."""
    any_world.deliver(12)
    await any_world.synced()
    theirs = any_world.root.with_name("theirs")
    shutil.copytree(any_world.root, theirs)
    for path in sorted((theirs / "INBOX" / "new").iterdir())[:4]:
        path.unlink()
    marker = (theirs / ".maild").read_text()
    (theirs / ".maild").write_text(marker.replace('"id": "', '"id": "other'))
    shutil.rmtree(any_world.root)
    theirs.rename(any_world.root)
    report = await any_world.synced()
    assert (report.total("adopted"), report.total("pulled"), report.total("deleted")) == (8, 4, 0)
    any_world.assert_equal()
    await any_world.settled()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"id": 1}', b'{"id": "x", "generation": "y"}', b"\xff" * 100])
async def test_a_damaged_marker_is_as_good_as_another(world: World, damage: bytes) -> None:
    world.deliver(3)
    await world.synced()
    (world.root / ".maild").write_bytes(damage)
    await adopted(world, 3)


# -- copies of the state


async def test_an_older_state_takes_no_flag_off_an_equal_message(quick_path: Path) -> None:
    """What had that flag then has moved, and lost it; one that came since has it on both sides (a found history)."""
    twin = Twin(quick_path)
    twin.store.create("Archive")
    twin.deliver(1, "Archive", ["$Forwarded"])
    for mailbox in ("Archive", "INBOX"):
        twin.deliver(2, mailbox)
    await twin.synced()
    state = twin.state_dir / "work.sqlite"
    older = state.read_bytes()
    twin.deliver(1, "INBOX", ["$Forwarded"])
    await twin.synced()
    twin.relabel(twin.move(twin.one(1, "Archive"), "INBOX"), "")
    await twin.synced()
    before = {name: twin.there(name) for name in twin.store.names}
    assert sorted(shown.flags for shown in before["INBOX"]) == [(), (), ("$Forwarded",)]
    for path in twin.state_dir.glob("work.sqlite*"):
        path.unlink()
    state.write_bytes(older)
    await twin.synced()
    assert twin.remote.journal == []
    assert twin.remote.fetched == []
    twin.assert_equal()
    assert {name: twin.there(name) for name in twin.store.names} == before
    await twin.quiet()


async def test_an_older_state_is_no_base(quick_path: Path) -> None:
    """What either side set or took away since the last pass counts as set; nothing that is there is deleted."""
    twin = Twin(quick_path)
    for n in (1, 2, 3):
        twin.deliver(n, flags=["\\Flagged"])
    await twin.synced()
    state = twin.state_dir / "work.sqlite"
    older = state.read_bytes()
    twin.relabel(twin.one(1), "")
    await twin.synced()
    twin.relabel(twin.one(1), "F")
    await twin.synced()
    twin.relabel(twin.one(2), "")
    twin.one(3).unlink()
    for path in twin.state_dir.glob("work.sqlite*"):
        path.unlink()
    state.write_bytes(older)
    await twin.synced()
    assert twin.remote.journal == []
    assert [shown.flags for shown in twin.here("INBOX")] == [("\\Flagged",)] * 3
    await twin.quiet()
    twin.one(3).unlink()  # from now on the state is as good as any
    await twin.synced()
    assert twin.remote.journal == ["expunge INBOX 3"]


async def test_a_kill_while_the_generation_rises_is_no_older_state(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker is ahead of the state, again and again: deletions still travel."""
    twin = Twin(quick_path)
    for n in (1, 2, 3):
        twin.deliver(n)
    await twin.synced()
    twin.one(3).unlink()

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    for _ in range(3):
        with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup):
            patch.setattr(marker.Rise, "note", killed)
            await twin.sync()
        assert twin.remote.journal == []
    await twin.synced()
    assert twin.remote.journal == ["expunge INBOX 3"]
    await twin.quiet()
