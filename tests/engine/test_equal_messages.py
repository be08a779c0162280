"""Of several equal messages each is one: what moves or deletes one of them says nothing about the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from maild.core.errors import Rejected
from maild.core.model import Cursor, Facts, Scan, Uid
from maild.testing.memory import MemoryBox
from tests.engine.twin import Twin

pytestmark = pytest.mark.anyio


class Killed(BaseException):
    """As a SIGKILL: nothing of maild runs after it."""


@pytest.fixture(params=["no_message_id", "wrong_sizes"])
async def twin(request: pytest.FixtureRequest, quick_path: Path) -> Twin:
    """One message in two mailboxes, of which facts do not tell where it went; and others beside it."""
    if request.param == "wrong_sizes":
        request.getfixturevalue("wrong_sizes")
    twin = Twin(quick_path, message_ids=request.param != "no_message_id")
    twin.configure(remote_delete="expunge")
    for mailbox in ("Other", "Archive", "Trash"):
        twin.store.create(mailbox, "\\Trash" if mailbox == "Trash" else "")
    twin.deliver(1)
    twin.deliver(2)
    twin.deliver(1, "Other")
    twin.deliver(3, "Other")
    await twin.synced()
    return twin


async def then_there_are(twin: Twin, **wanted: list[int]) -> None:
    """After two more passes both sides hold these, by number, and rest."""
    for _ in range(2):
        await twin.synced()
    twin.assert_equal()
    found = {name: sorted(shown.raw for shown in twin.there(name)) for name in twin.store.names}
    assert found == {name: sorted(map(twin.body, wanted.get(name, []))) for name in twin.store.names}
    await twin.quiet()


async def test_what_both_sides_deleted_is_not_taken_for_come_back(twin: Twin) -> None:
    """The new one in Archive is the other, moved there; its old file goes with the move."""
    twin.one(1).unlink()
    twin.store.expunge("INBOX", [twin.uid(1)])
    twin.store.move("Other", [twin.uid(1, "Other")], "Archive")
    await then_there_are(twin, INBOX=[2], Other=[3], Archive=[1])


async def test_it_is_not_taken_for_come_back_while_the_other_is_not_looked_at(twin: Twin) -> None:
    twin.one(1).unlink()
    twin.store.expunge("INBOX", [twin.uid(1)])
    twin.store.move("Other", [twin.uid(1, "Other")], "Archive")
    await twin.sync(only=["INBOX", "Archive"])
    await then_there_are(twin, INBOX=[2], Other=[3], Archive=[1])


async def test_it_is_not_taken_for_the_copy_of_a_move_that_was_cut(twin: Twin) -> None:
    """One moves here, the other on the server, to the same mailbox: there are two."""
    twin.move(twin.one(1), "Archive")
    twin.store.move("Other", [twin.uid(1, "Other")], "Archive")
    await then_there_are(twin, INBOX=[2], Other=[3], Archive=[1, 1])


async def test_it_is_not_taken_for_the_copy_of_a_deletion_that_was_cut(twin: Twin) -> None:
    """One is deleted here, the other moves to the trash on the server: there it is twice."""
    twin.configure(remote_delete="trash")
    twin.one(1).unlink()
    twin.store.move("Other", [twin.uid(1, "Other")], "Trash")
    await then_there_are(twin, INBOX=[2], Other=[3], Trash=[1, 1])


async def test_it_counts_as_come_back_while_the_other_is_still_there(twin: Twin) -> None:
    """The server moved what was deleted here, and both are the only ones that it can have been."""
    twin.store.move("INBOX", [twin.uid(1)], "Archive")
    twin.one(1).unlink()
    await then_there_are(twin, INBOX=[2], Other=[1, 3])


@pytest.mark.parametrize("deleted", [False, True])
async def test_nothing_counts_as_copied_where_the_server_moves_at_once(twin: Twin, deleted: bool) -> None:
    """A new equal message is never what a move that was cut off has left: both stay."""
    twin.settings["moves_whole"] = True
    twin.configure(remote_delete="trash")
    twin.store.expunge("Other", [twin.uid(1, "Other")])
    await twin.synced()
    target = "Trash" if deleted else "Archive"
    if deleted:
        twin.one(1).unlink()
    else:
        twin.move(twin.one(1), target)
    twin.store.copy("INBOX", twin.uid(1), target)
    await twin.synced()
    assert twin.remote.journal == [f"move INBOX 1 {target}"]
    await then_there_are(twin, INBOX=[2], Other=[3], **{target: [1, 1]})


async def test_a_dry_run_takes_no_file_twice(twin: Twin) -> None:
    """The file that a reader moved goes with its message, and is not that of the equal new one beside it."""
    twin.settings["moves_whole"] = True
    twin.move(twin.one(1), "Archive")
    twin.write(4, "Archive")
    twin.deliver(1, "Archive")
    report = await twin.sync(dry_run=True)
    assert report.ok
    assert (report.total("moved_there"), report.total("pulled"), report.total("pushed")) == (1, 1, 1)


async def alone(twin: Twin) -> None:
    """The one in INBOX is the only one of its kind."""
    twin.store.expunge("Other", [twin.uid(1, "Other")])
    await twin.synced()


@pytest.mark.parametrize("target", ["Archive", "Trash"])
async def test_what_nobody_noted_is_no_copy(twin: Twin, target: str) -> None:
    """Another client's equal message in the target, on a server without MOVE: there are two."""
    twin.configure(remote_delete="trash")
    await alone(twin)
    if target == "Trash":
        twin.one(1).unlink()
    else:
        twin.move(twin.one(1), target)
    twin.deliver(1, target)
    await twin.synced()
    assert twin.remote.journal == [f"move INBOX 1 {target}"]
    await then_there_are(twin, INBOX=[2], Other=[3], **{target: [1, 1]})


@pytest.mark.parametrize("is_refused", [False, True], ids=["killed", "refused"])
async def test_what_was_there_before_or_came_after_is_no_copy(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    """A COPY that was about to be made, or was refused, is noted no longer when its target is looked at again."""
    await alone(twin)
    twin.move(twin.one(1), "Archive")

    async def move(*_: object, **__: object) -> None:
        raise Rejected("not now") if is_refused else Killed

    async def facts(self: MemoryBox, uids: Sequence[Uid]) -> dict[Uid, Facts]:
        """Nothing, so that the equal message is not taken for the file, which has none."""
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(MemoryBox, "move", move)
        patch.setattr(MemoryBox, "facts", facts)
        if is_refused:
            await twin.sync()
            twin.deliver(1, "Archive")
        else:
            twin.deliver(1, "Archive")
            with pytest.raises(BaseExceptionGroup):
                await twin.sync()
    await then_there_are(twin, INBOX=[2], Other=[3], Archive=[1, 1])


async def test_a_note_counts_once(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the COPY; the file goes back, and moves again when an equal message is where it was to go."""
    await alone(twin)
    here = twin.one(1)
    twin.move(here, "Archive")

    async def move(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup):
        patch.setattr(MemoryBox, "move", move)
        await twin.sync()
    twin.one(1, "Archive").rename(here)
    await twin.synced()
    assert twin.remote.journal == []
    twin.move(here, "Archive")
    twin.deliver(1, "Archive")
    await then_there_are(twin, INBOX=[2], Other=[3], Archive=[1, 1])


@pytest.mark.parametrize("way", ["expunge", "trash"])
async def test_what_a_killed_pass_deleted_does_not_come_back(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """It is gone on both sides, and an equal message that is new elsewhere is another client's."""
    twin.settings["moves_whole"] = True
    twin.configure(remote_delete=way)
    await alone(twin)
    twin.one(1).unlink()
    method = "expunge" if way == "expunge" else "move"
    original = getattr(MemoryBox, method)

    async def then_killed(*arguments: object, **named: object) -> None:
        await original(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup):
        patch.setattr(MemoryBox, method, then_killed)
        await twin.sync()
    twin.deliver(1, "Archive")
    await then_there_are(twin, INBOX=[2], Other=[3], Archive=[1], Trash=[] if way == "expunge" else [1])


async def test_the_other_moves_after_its_mailbox_was_looked_at(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mailbox was scanned before, and shows nothing: whether it is still there is asked once more."""
    twin.configure(connections=1)
    twin.one(1).unlink()
    twin.store.expunge("INBOX", [twin.uid(1)])
    twin.deliver(4, "Other")
    original, moved = MemoryBox.scan, list[str]()

    async def scan(self: MemoryBox, cursor: Cursor | None) -> Scan:
        if self.mailbox.name == "Archive" and not moved:
            moved.append("Other")
            assert [name for name in scanned if name != "Archive"] == ["INBOX", "Other"]
            twin.store.move("Other", [twin.uid(1, "Other")], "Archive")
        scanned.append(self.mailbox.name)
        return await original(self, cursor)

    scanned = list[str]()
    twin.deliver(5, "Archive")
    monkeypatch.setattr(MemoryBox, "scan", scan)
    await twin.sync()
    assert moved
    await then_there_are(twin, INBOX=[2], Other=[3, 4], Archive=[1, 5])
