"""Moves of which an attempt failed halfway: what it had found out is not found out again, and is done all the same."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from maild.core.errors import ConnectionLost, Rejected
from maild.core.model import Uid
from maild.testing.memory import MemoryBox, MemoryRemote
from tests.engine.twin import Twin

pytestmark = pytest.mark.anyio


@pytest.fixture
async def twin(quick_path: Path) -> Twin:
    """Two messages in INBOX; deleted ones go to the trash."""
    twin = Twin(quick_path)
    twin.configure(connections=1)
    for mailbox in ("Archive", "Work", "Trash"):
        twin.store.create(mailbox, "\\Trash" if mailbox == "Trash" else "")
    twin.deliver(1)
    twin.deliver(2)
    await twin.synced()
    return twin


@pytest.mark.parametrize("mailbox", ["Trash", "Archive"])
async def test_the_end_of_a_cut_move_is_lost_once(twin: Twin, monkeypatch: pytest.MonkeyPatch, mailbox: str) -> None:
    """A deletion, or a reader's move, was cut after its COPY; then the EXPUNGE that ends it loses its connection."""
    if mailbox == "Trash":
        twin.one(1).unlink()
    else:
        twin.move(twin.one(1), mailbox)
    twin.copy_cut_off(twin.uid(1), mailbox)
    original, lost = MemoryBox.expunge, [True]

    async def expunge(self: MemoryBox, uids: Sequence[Uid]) -> set[Uid]:
        if lost:
            lost.clear()
            raise ConnectionLost("cut once")
        return await original(self, uids)

    monkeypatch.setattr(MemoryBox, "expunge", expunge)
    await twin.synced()
    assert not lost
    assert twin.remote.journal == ["expunge INBOX 1"]
    twin.assert_equal()
    assert len(twin.there(mailbox)) == 1
    await twin.synced()
    await twin.quiet()


async def test_a_new_mailbox_cannot_be_opened_after_a_message_moved_into_it(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin.move(twin.one(1), "Fresh")
    twin.write(9, "Fresh")
    original = MemoryRemote.visit

    def visit(self: MemoryRemote, name: Any, epoch: Any = None, **options: Any) -> Any:
        if name == "Fresh" and epoch is not None:
            raise Rejected("not now")
        return original(self, name, epoch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryRemote, "visit", visit)
        report = await twin.sync()
    assert twin.remote.journal == ["create Fresh", "move INBOX 1 Fresh"]
    assert report.mailboxes["Fresh"].error == "not now"
    await twin.synced()
    wire = twin.body(9).replace(b"\n", b"\r\n")
    assert twin.remote.journal == [f"append Fresh {len(wire)}"]
    twin.assert_equal()
    await twin.synced()
    await twin.quiet()


async def test_a_message_moves_there_to_an_empty_mailbox_that_was_removed_here(twin: Twin) -> None:
    """Its directory comes back with it."""
    shutil.rmtree(twin.where("Archive"))
    twin.store.move("INBOX", [twin.uid(1)], "Archive")
    await twin.synced()
    twin.assert_equal()
    assert len(twin.here("Archive")) == 1
    assert twin.remote.fetched == []
    await twin.quiet()


async def test_a_flag_changed_here_goes_to_where_the_message_is(twin: Twin) -> None:
    """Not to where it was: that would count as told, and a cut before the file follows would lose it."""
    twin.store.move("INBOX", [twin.uid(1)], "Archive")
    twin.relabel(twin.one(1), "F")
    await twin.synced()
    assert twin.remote.journal == ["store Archive 1 +\\Flagged"]
    twin.assert_equal()
    assert [shown.flags for shown in twin.here("Archive")] == [("\\Flagged",)]
    await twin.quiet()
