"""What was changed on this disk stays changed: in this version it does not travel, and nothing overwrites it."""

from __future__ import annotations

from typing import Any

import pytest

from maild.local.maildir import Maildir
from tests.engine.world import World, bodies


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
    assert any_world.base_flags() == {"1": {"\\Seen", "\\Answered"}, "2": {"\\Seen", "\\Answered"}, "3": frozenset()}
    assert any_world.server.mutations == []
    await any_world.settled()


async def test_letters_of_other_programs_stay(any_world: World) -> None:
    any_world.deliver(1)
    await any_world.synced()
    any_world.relabel(any_world.one(1), "Xz")
    any_world.store.set_flags("INBOX", 1, add=["\\Seen"])
    await any_world.synced()
    (path,) = (any_world.directory("INBOX") / "cur").iterdir()
    assert path.name.endswith(":2,SXz")


def a_reader_is_quicker(world: World, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Has a reader set \\Flagged on message 1 just before maild first changes flags; the list tells that it did."""
    real = Maildir.set_flags
    done: list[object] = []

    def after_a_reader(maildir: Maildir, changes: Any) -> Any:
        if not done:
            done.append(world.relabel(world.one(1), "F"))
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
    await world.settled()


async def test_a_reader_renames_while_its_file_is_adopted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deliver(1, flags=["\\Seen"])
    await world.synced()
    world.relabel(world.one(1), "")
    world.lose_state()
    done = a_reader_is_quicker(world, monkeypatch)
    await world.synced()
    assert done
    assert world.one(1).flags == {"\\Seen", "\\Flagged"}
    await world.settled()


async def test_a_message_deleted_here_is_not_pulled_again(any_world: World) -> None:
    any_world.deliver(3)
    await any_world.synced()
    any_world.one(2).path.unlink()
    any_world.store.set_flags("INBOX", 2, add=["\\Seen"])
    any_world.deliver(1, start=4)
    report = await any_world.synced()
    assert report.total("pulled") == 1
    assert len(any_world.files()) == 3
    await any_world.settled()


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


async def test_a_message_with_a_new_base_name_is_neither_doubled_nor_deleted(any_world: World) -> None:
    """A reader that gives a file another base name makes it another message: in this version its pair is not followed.

    It is not pulled a second time, its flags no longer follow the server, and when the server loses the message the
    file stays. Without the state it is adopted like any other.
    """
    any_world.deliver(2)
    await any_world.synced()
    file = any_world.one(1)
    file.path.rename(file.path.with_name("1700000000.other.elsewhere"))
    any_world.store.set_flags("INBOX", 1, add=["\\Seen"])
    any_world.deliver(1, start=3)
    await any_world.synced()
    assert len(any_world.files()) == 3
    assert any_world.one(1).flags == frozenset()
    await any_world.settled()
    any_world.lose_state()
    any_world.commands()
    await any_world.synced()
    assert bodies(any_world.commands()) == []
    any_world.assert_equal()


async def test_a_message_moved_to_another_mailbox_here_is_not_doubled(any_world: World) -> None:
    any_world.store.create("Archiv")
    any_world.deliver(2)
    any_world.deliver(1, "Archiv", start=9)
    await any_world.synced()
    file = any_world.one(1)
    file.path.rename(any_world.directory("Archiv") / "cur" / f"{file.key}:2,S")
    any_world.deliver(1, start=3)
    any_world.deliver(1, "Archiv", start=10)
    await any_world.synced()
    assert len(any_world.files("INBOX")) == 2
    assert len(any_world.files("Archiv")) == 3
    await any_world.settled()


async def test_a_message_written_here_stays(any_world: World) -> None:
    any_world.deliver(1)
    await any_world.synced()
    any_world.write_foreign(7, b"Subject: draft\n\nnot sent yet\n", "D")
    any_world.deliver(1, start=2)
    await any_world.synced()
    assert len(any_world.files()) == 3
    await any_world.settled()
