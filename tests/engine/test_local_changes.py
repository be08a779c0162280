"""What was changed on this disk stays changed, whatever happens there meanwhile, and travels to the server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from maild.core.model import Cursor, Scan
from maild.local.maildir import Maildir
from maild.testing.memory import MemoryBox
from tests.engine.twin import Twin
from tests.engine.world import START_S, Seen, World, bodies, touched_times


async def test_a_flag_set_here_survives_a_change_there(any_world: World) -> None:
    any_world.deliver(3, flags=["\\Seen"])
    await any_world.synced()
    any_world.relabel(any_world.one(1), "FS")
    any_world.relabel(any_world.one(2), "")
    any_world.store.set_flags("INBOX", [1, 2], add=["\\Answered"])
    any_world.store.set_flags("INBOX", 3, remove=["\\Seen"])
    await any_world.synced()
    assert any_world.one(1).flags == {"\\Seen", "\\Flagged", "\\Answered"}
    assert any_world.one(2).flags == {"\\Answered"}
    assert any_world.one(3).flags == frozenset()
    any_world.assert_equal()
    assert any_world.base_flags() == {
        "1": {"\\Seen", "\\Flagged", "\\Answered"},
        "2": {"\\Answered"},
        "3": frozenset(),
    }
    await any_world.settled()


async def test_letters_of_other_programs_stay(any_world: World) -> None:
    any_world.deliver(1)
    await any_world.synced()
    any_world.relabel(any_world.one(1), "Xz")
    any_world.store.set_flags("INBOX", 1, add=["\\Seen"])
    await any_world.synced()
    (path,) = (any_world.directory("INBOX") / "cur").iterdir()
    assert path.name.endswith(":2,SXz")
    assert any_world.store.mailbox("INBOX").message(1).flags == {"\\Seen"}, "nobody knows what they mean"


def a_reader_is_quicker(world: World, monkeypatch: pytest.MonkeyPatch, letters: str = "F") -> list[object]:
    """Has a reader give message 1 these letters just before maild first changes flags; the list tells that it did."""
    real = Maildir.set_flags
    done: list[object] = []

    def after_a_reader(maildir: Maildir, changes: Any) -> Any:
        if not done:
            done.append(world.relabel(world.one(1), letters))
        return real(maildir, changes)

    monkeypatch.setattr(Maildir, "set_flags", after_a_reader)
    return done


async def test_a_reader_changes_flags_in_the_middle_of_a_pass(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the decision and its carrying out lies a round trip: what a reader did meanwhile counts."""
    world.deliver(2)
    await world.synced()
    world.store.set_flags("INBOX", [1, 2], add=["\\Seen"])
    done = a_reader_is_quicker(world, monkeypatch)
    await world.synced()
    assert done
    assert world.one(1).flags == {"\\Seen", "\\Flagged"}
    assert world.one(2).flags == {"\\Seen"}
    await world.synced()
    world.assert_equal()
    assert world.one(1).flags == {"\\Seen", "\\Flagged"}, "and travels with the next pass"
    await world.settled()


async def test_a_reader_renames_while_its_file_is_adopted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deliver(1, flags=["\\Seen"])
    await world.synced()
    world.relabel(world.one(1), "")
    world.lose_state()
    done = a_reader_is_quicker(world, monkeypatch)
    for _ in range(2):
        await world.synced()
    assert done
    assert world.one(1).flags == {"\\Seen", "\\Flagged"}
    world.assert_equal()
    await world.settled()


async def test_a_message_deleted_here_is_expunged_there_and_not_pulled_again(any_world: World) -> None:
    any_world.deliver(3)
    await any_world.synced()
    any_world.one(2).path.unlink()
    any_world.store.set_flags("INBOX", 2, add=["\\Seen"])
    any_world.deliver(1, start=4)
    report = await any_world.synced()
    assert report.mailboxes["INBOX"].pulled == 1
    assert (report.total("deleted"), report.total("deleted_there")) == (0, 1)
    assert [m.uid for m in any_world.store.mailbox("INBOX")] == [1, 3, 4]
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


async def test_a_message_deleted_here_goes_to_the_trash_there(world: World) -> None:
    world.store.create("Papierkorb", "\\Trash")
    world.deliver(3)
    await world.synced()
    world.one(2).path.unlink()
    world.store.set_flags("INBOX", 2, add=["\\Seen"])
    report = await world.synced()
    assert (report.mailboxes["INBOX"].pulled, report.total("deleted_there")) == (0, 1)
    (thrown,) = world.on_server("Papierkorb")
    assert (b"Subject: Nr. 2\n" in thrown.raw, thrown.flags) == (True, ("\\Seen",))
    await world.synced()
    world.assert_equal()
    await world.settled()


async def test_a_reader_opens_a_message_while_it_is_adopted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes from `new` to `cur` and changes no flag: those that the server has are not lost for that."""
    world.deliver(1, flags=["\\Seen"])
    await world.synced()
    world.relabel(world.one(1), "").rename(world.directory("INBOX") / "new" / world.one(1).key)
    world.lose_state()
    done = a_reader_is_quicker(world, monkeypatch, "")
    for _ in range(3):
        await world.synced()
    assert done
    world.assert_equal()
    assert world.one(1).flags == {"\\Seen"}
    await world.settled()


async def test_a_reader_gives_a_new_unique_name_while_the_server_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server said in this pass about the file that was not found counts in the next one."""
    twin = Twin(tmp_path)
    twin.deliver(1)
    await twin.synced()
    twin.store.set_flags("INBOX", 1, add=["\\Flagged"])
    real = MemoryBox.scan

    async def scan(box: MemoryBox, cursor: Cursor | None) -> Scan:
        if len(renamed) == 0:
            path = twin.one(1)
            renamed.append(path.rename(path.with_name("1700000000.other.elsewhere")))
        return await real(box, cursor)

    renamed: list[Path] = []
    monkeypatch.setattr(MemoryBox, "scan", scan)
    for _ in range(3):
        await twin.synced()
    assert renamed
    twin.assert_equal()
    assert [shown.flags for shown in twin.here("INBOX")] == [("\\Flagged",)]
    await twin.quiet()


async def test_a_message_deleted_on_both_sides_is_forgotten(any_world: World) -> None:
    any_world.deliver(3)
    await any_world.synced()
    any_world.one(2).path.unlink()
    any_world.store.expunge("INBOX", 2)
    report = await any_world.synced()
    assert report.total("deleted") == 0
    assert sorted(any_world.base_flags()) == ["1", "3"]
    await any_world.settled()


async def test_a_message_read_here_goes_when_the_server_has_it_no_longer(any_world: World) -> None:
    any_world.deliver(2)
    await any_world.synced()
    any_world.relabel(any_world.one(1), "FRS")
    any_world.store.expunge("INBOX", 1)
    report = await any_world.synced()
    assert report.total("deleted") == 1
    assert len(any_world.files()) == 1
    await any_world.settled()


async def test_a_message_with_a_new_unique_name_keeps_its_pair(any_world: World) -> None:
    """A reader may give a file another unique name: it is neither sent nor pulled, and its flags follow the server.

    Without the state it is adopted like any other.
    """
    any_world.deliver(2)
    await any_world.synced()
    file = any_world.one(1)
    file.path.rename(file.path.with_name("1700000000.other.elsewhere"))
    any_world.store.set_flags("INBOX", 1, add=["\\Seen"])
    any_world.deliver(1, start=3)
    report = await any_world.synced()
    assert (report.total("pulled"), report.total("pushed"), report.total("deleted_there")) == (1, 0, 0)
    assert any_world.one(1).key == "1700000000.other.elsewhere"
    assert any_world.one(1).flags == {"\\Seen"}
    any_world.assert_equal()
    await any_world.settled()
    any_world.store.set_flags("INBOX", 1, add=["\\Flagged"])
    await any_world.synced()
    assert any_world.one(1).flags == {"\\Seen", "\\Flagged"}
    any_world.lose_state()
    any_world.commands()
    await any_world.synced()
    assert bodies(any_world.commands()) == []
    any_world.assert_equal()


async def test_a_message_moved_to_another_mailbox_here_moves_there_too(any_world: World) -> None:
    any_world.store.create("Archiv")
    any_world.deliver(2)
    any_world.deliver(1, "Archiv", start=9)
    await any_world.synced()
    file = any_world.one(1)
    file.path.rename(any_world.directory("Archiv") / "cur" / f"{file.key}:2,S")
    any_world.deliver(1, start=3)
    any_world.deliver(1, "Archiv", start=10)
    any_world.commands()
    report = await any_world.synced()
    assert (report.total("moved_there"), report.total("pushed"), report.total("deleted_there")) == (1, 0, 0)
    assert not any(" APPEND " in command for command in any_world.commands()), "its octets stay where they are"
    assert len(any_world.files("INBOX")) == 2
    assert len(any_world.files("Archiv")) == 3
    await any_world.synced()
    any_world.assert_equal()
    assert any_world.one(1, "Archiv").flags == {"\\Seen"}
    await any_world.settled()


async def test_a_message_written_here_is_sent_with_its_flags_and_date(any_world: World) -> None:
    any_world.deliver(1)
    await any_world.synced()
    path = any_world.write_foreign(7, b"Subject: draft\n\nnot sent yet\n", "D")
    touched_times(path, START_S)
    any_world.deliver(1, start=2)
    report = await any_world.synced()
    assert (report.total("pushed"), report.total("pulled")) == (1, 1)
    assert path.exists(), "the file itself is not touched"
    await any_world.synced()
    assert Seen(b"Subject: draft\n\nnot sent yet\n", ("\\Draft",), START_S) in any_world.on_server("INBOX")
    any_world.assert_equal()
    await any_world.settled()


async def test_a_second_file_with_the_same_unique_name_changes_no_flags(quick_path: Path) -> None:
    """As a copy or a restored backup leaves it: only the one that is known counts, whatever else changes beside it."""
    twin = Twin(quick_path)
    twin.deliver(1)
    await twin.synced()
    known = twin.one(1)
    key = known.name.partition(":2,")[0]
    os.link(known, twin.where("INBOX") / "cur" / f"{key}:2,S")
    for n in range(2, 5):
        path = twin.write(n)
        octets = len(path.read_bytes().replace(b"\n", b"\r\n"))
        await twin.synced()
        assert twin.remote.journal == [f"append INBOX {octets}"]
    assert known.exists()
    assert {shown.flags for shown in twin.there("INBOX")} == {()}
