"""Messages that both sides moved, or that one moved while the other was looked at: one of each is left."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from maild.core.errors import Rejected
from maild.core.model import Key, Listing
from maild.engine import carry_out, whole
from maild.engine.sync import MailboxPass
from maild.testing.memory import MemoryBox, MemoryRemote
from tests.engine.twin import START_S, Twin


async def test_what_both_sides_moved_is_nowhere_deleted_by_a_pass_that_sees_two_of_three(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.configure(remote_delete="expunge")
    for name in ("Archive", "Work"):
        twin.store.create(name)
    for n in (1, 2):
        twin.deliver(n)
    await twin.synced()
    twin.move(twin.one(1), "Work")
    twin.store.move("INBOX", [twin.uid(1)], "Archive")
    await twin.sync(only=["INBOX", "Archive"])
    assert len(twin.there("Archive")) == 1
    await twin.synced()
    twin.assert_equal()
    assert len(twin.there("INBOX") + twin.there("Archive") + twin.there("Work")) == 2


@pytest.mark.parametrize("is_moved", [True, False])
async def test_a_reader_moves_what_the_server_moved_or_deleted_after_the_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_moved: bool
) -> None:
    twin = Twin(tmp_path)
    twin.configure(remote_delete="expunge", connections=1)
    for name in ("Archive", "Other", "Work"):
        twin.store.create(name)
    for n, mailbox in ((1, "Archive"), (3, "Archive"), (2, "INBOX")):
        twin.deliver(n, mailbox)
    await twin.synced()
    if is_moved:
        twin.store.move("Archive", [twin.uid(1, "Archive")], "Other")
    else:
        twin.store.expunge("Archive", [twin.uid(1, "Archive")])
    original = whole.settle_moves

    async def settle_moves(*arguments: Any) -> None:
        if twin.find(1, "Archive"):
            twin.move(twin.one(1, "Archive"), "Work")
        await original(*arguments)

    monkeypatch.setattr(whole, "settle_moves", settle_moves)
    await twin.sync()
    monkeypatch.undo()
    await twin.synced()
    await twin.synced()
    twin.assert_equal()
    assert sum(len(twin.there(name)) for name in twin.store.names) == (3 if is_moved else 2)


async def test_moves_are_found_where_no_cursor_is_known(tmp_path: Path) -> None:
    """An imperfect pass leaves none."""
    twin = Twin(tmp_path)
    for name in ("Archive", "Work"):
        twin.store.create(name)
    for n in (1, 2):
        twin.deliver(n)
    await twin.synced()
    with closing(sqlite3.connect(twin.state_dir / "work.sqlite")) as database, database:
        database.execute("UPDATE mailboxes SET cursor = NULL, mark = NULL")
    twin.move(twin.one(1), "Archive")
    twin.store.move("INBOX", [twin.uid(1)], "Work")
    await twin.synced()
    twin.assert_equal()
    assert sum(len(twin.there(name)) for name in twin.store.names) == 2


async def test_two_copies_that_were_cut_off_have_one_uid_in_two_mailboxes(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    for name in ("Archive", "Work", "Other"):
        twin.store.create(name)
    for n, mailbox in ((1, "INBOX"), (5, "INBOX"), (2, "Other"), (6, "Other")):
        twin.deliver(n, mailbox)
    await twin.synced()
    twin.move(twin.one(1), "Archive")
    twin.move(twin.one(2, "Other"), "Work")
    twin.copy_cut_off(twin.uid(1), "Archive")
    twin.copy_cut_off(twin.uid(2, "Other"), "Work", "Other")
    await twin.synced()
    twin.assert_equal()
    assert sum(len(twin.there(name)) for name in twin.store.names) == 4


async def test_a_mailbox_that_is_gone_is_kept_until_what_moved_from_it_has_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages went to INBOX on the server, which cannot be opened when it is their turn."""
    twin = Twin(tmp_path)
    twin.configure(remote_delete="expunge", connections=1)
    twin.store.create("Archive")
    for n, mailbox in ((1, "Archive"), (2, "Archive"), (7, "INBOX")):
        twin.deliver(n, mailbox)
    await twin.synced()
    twin.store.move("Archive", [1, 2], "INBOX")
    twin.store.delete("Archive")
    original, opened = MemoryRemote.visit, []

    def visit(self: MemoryRemote, name: Any, epoch: Any = None, **options: Any) -> Any:
        if name == "INBOX" and epoch is not None:
            opened.append(name)
            if len(opened) > 1:  # the first asks for facts
                raise Rejected("INBOX is locked", code="INUSE")
        return original(self, name, epoch, **options)

    monkeypatch.setattr(MemoryRemote, "visit", visit)
    report = await twin.sync()
    monkeypatch.undo()
    assert len(opened) > 1
    assert "on their way" in str(report.mailboxes["Archive"].error)
    await twin.synced()
    await twin.synced()
    assert set(twin.store.names) == {"INBOX"}
    assert len(twin.there("INBOX")) == len(twin.here("INBOX")) == 3


@pytest.mark.parametrize("flags", [[], ["\\Flagged"]])
async def test_a_message_that_left_and_came_back_there_follows_the_reader(tmp_path: Path, flags: list[str]) -> None:
    """It has another Uid, and is where it was: only the reader has moved it."""
    twin = Twin(tmp_path)
    for name in ("Archive", "Work"):
        twin.store.create(name)
    for n in (1, 2):
        twin.deliver(n)
    await twin.synced()
    twin.move(twin.one(1), "Archive")
    ((_, away),) = twin.store.move("INBOX", [twin.uid(1)], "Work")
    ((_, back),) = twin.store.move("Work", [away], "INBOX")
    twin.store.set_flags("INBOX", [back], add=flags)
    await twin.synced()
    assert twin.remote.journal == [f"move INBOX {back} Archive"]
    twin.assert_equal()
    assert [shown.flags for shown in twin.here("Archive")] == [tuple(flags)]
    await twin.quiet()


@pytest.mark.parametrize("deletions", ["none", "to_remote"])
@pytest.mark.parametrize("message_ids", [True, False])
async def test_where_deletions_do_not_travel_here_the_file_stays_where_its_reader_put_it(
    quick_path: Path, deletions: str, message_ids: bool
) -> None:
    """As with a move of the server alone, nothing goes from this side because of it; both places have it then."""
    twin = Twin(quick_path, message_ids=message_ids)
    twin.configure(remote_delete="expunge", deletions=deletions)
    for name in ("Archive", "Work"):
        twin.store.create(name)
    for n in (1, 2):
        twin.deliver(n)
    await twin.synced()
    path = twin.move(twin.one(1), "Archive")
    twin.store.move("INBOX", [twin.uid(1)], "Work")
    await twin.synced()
    assert path.exists()
    await twin.synced()
    twin.assert_equal()
    assert [len(twin.there(name)) for name in ("INBOX", "Archive", "Work")] == [1, 1, 1]
    await twin.quiet()


async def test_where_they_travel_here_alone_the_servers_move_wins(quick_path: Path) -> None:
    twin = Twin(quick_path)
    twin.configure(remote_delete="expunge", deletions="to_local")
    for name in ("Archive", "Work"):
        twin.store.create(name)
    for n in (1, 2):
        twin.deliver(n)
    await twin.synced()
    twin.move(twin.one(1), "Archive")
    twin.store.move("INBOX", [twin.uid(1)], "Work")
    await twin.synced()
    twin.assert_equal()
    assert [len(twin.there(name)) for name in ("INBOX", "Archive", "Work")] == [1, 0, 1]
    await twin.quiet()


class Killed(BaseException):
    """The process has ended here."""


@pytest.mark.parametrize("tells_uids", [True, False])
@pytest.mark.parametrize("new_name", [True, False])
async def test_two_pairs_claim_one_file(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, tells_uids: bool, new_name: bool
) -> None:
    """Killed after the server's move, adopted where it went by a pass that did not see where it was, and moved on."""
    twin = Twin(quick_path, settings={"tells_uids": tells_uids})
    twin.configure(remote_delete="expunge", connections=1)
    for name in ("Archive", "Work", "Other"):
        twin.store.create(name)
    for n, name in ((1, "Work"), (3, "Other"), (2, "INBOX")):
        twin.deliver(n, name)
    await twin.synced()
    twin.move(twin.one(1, "Work"), "Other")
    original = MemoryBox.move

    async def move(*arguments: Any, **named: Any) -> Any:
        await original(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup):
        patch.setattr(MemoryBox, "move", move)
        await twin.sync()
    await twin.sync(only=["Other", "INBOX", "Archive"])
    assert [len(twin.there("Other")), len(twin.files("Other"))] == [2, 2]
    twin.move(twin.one(1, "Other"), "Archive", new_name=new_name)
    await twin.synced()
    assert [len(twin.find(1, "Archive")), len(twin.there("Archive"))] == [1, 1]
    twin.assert_equal()
    assert sum(len(twin.there(name)) for name in twin.store.names) == 3
    await twin.synced()
    await twin.quiet()


async def test_deleted_here_and_moved_there_to_where_nothing_else_changes(quick_path: Path) -> None:
    """Cut at every step: nothing in the directory where it was moved to tells that it is still to be deleted."""
    step, is_cut = 0, True
    while is_cut:
        twin = Twin(quick_path / str(step))
        twin.configure(remote_delete="expunge", connections=1)
        twin.store.create("Archive")
        for n in (1, 2):
            twin.deliver(n)
        await twin.synced()
        for subdir in ("cur", "new"):  # so that its stamp is believed
            os.utime(twin.where("Archive") / subdir, (START_S, START_S))
        await twin.synced()
        twin.store.move("INBOX", [twin.uid(1)], "Archive")
        twin.one(1).unlink()
        is_cut = not (await twin.sync(lose_at=step)).ok
        for _ in range(2):
            await twin.synced()
        twin.assert_equal()
        assert twin.there("Archive") == [], f"cut at step {step}"
        step += 1
    assert step > 5


async def test_a_reader_moves_on_what_is_about_to_be_deleted(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message seems to be gone, for the server moved it after the listing; then one message is left, not two."""
    twin = Twin(quick_path, message_ids=False, settings={"tells_uids": False})
    twin.configure(remote_delete="expunge", connections=1)
    for n, mailbox in ((1, "INBOX"), (2, "INBOX"), (3, "Archive"), (4, "Work"), (5, "Other")):
        if mailbox != "INBOX":
            twin.store.create(mailbox)
        twin.deliver(n, mailbox)
    await twin.synced()
    twin.move(twin.one(1), "Other")
    listing, delete, moved = MemoryRemote.listing, carry_out._delete_files, list[str]()

    async def listed(self: MemoryRemote) -> Listing:
        found = await listing(self)
        if not moved:
            moved.append("there")
            twin.store.move("INBOX", [twin.uid(1)], "Work")
        return found

    def delete_files(this: MailboxPass, keys: Sequence[Key]) -> None:
        moved.append("here")
        twin.move(twin.one(1, "Other"), "Archive")
        delete(this, keys)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryRemote, "listing", listed)
        patch.setattr(carry_out, "_delete_files", delete_files)
        await twin.sync()
    assert moved == ["there", "here"]
    for _ in range(3):
        await twin.synced()
    twin.assert_equal()
    assert sum(len(twin.there(name)) for name in twin.store.names) == 5
    await twin.quiet()
