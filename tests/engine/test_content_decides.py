"""Facts may pair messages; only their content may remove one. What facts cannot tell is fetched, and then decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from maild.core.errors import ConnectionLost, Rejected
from maild.core.model import Fetched, Flags, Key, MailboxName, ScanTable, Uid
from maild.engine import crew
from maild.local.maildir import Maildir
from maild.local.scan import Entry
from maild.testing.faults import Cut
from maild.testing.imap import ALL, ImapServer
from maild.testing.memory import MemoryBox
from maild.testing.store import Store
from tests.engine.twin import Twin, WireTwin, body
from tests.engine.world import PASSWORD, USER

pytestmark = pytest.mark.anyio

NO_ID = body(1, message_id="")
CORRECTED = body(1).replace(b"Hallo", b"Hullo")  # the same Message-ID, Date and size


@pytest.fixture
def twin(quick_path: Path) -> Twin:
    twin = Twin(quick_path)
    twin.store.create("Archive")
    return twin


async def begin(twin: Twin, *first: bytes) -> None:
    for raw in first or (body(1),):
        twin.deliver(1, raw=raw)
    twin.deliver(2)
    await twin.synced()


async def settled(twin: Twin, **wanted: Sequence[bytes]) -> None:
    """Two passes, and then both sides hold this, named by mailbox, and rest."""
    for _ in range(2):
        await twin.synced()
    twin.assert_equal()
    assert {name: sorted(m.raw for m in twin.there(name)) for name in twin.store.names} == {
        name: sorted(wanted.get(name, ())) for name in twin.store.names
    }
    await twin.quiet()


# -- moved here, and there as well


@pytest.mark.parametrize("trash", [False, True], ids=["no_trash", "trash"])
async def test_killed_after_a_move_without_a_message_id(twin: Twin, trash: bool) -> None:
    if trash:
        twin.store.create("Trash", "\\Trash")
    await begin(twin, NO_ID)
    twin.relabel(twin.move(twin.one(1), "Archive"), "F")
    twin.store.move("INBOX", twin.uid(1), "Archive")  # what the killed pass had done
    await settled(twin, INBOX=[body(2)], Archive=[NO_ID])
    assert twin.there("Archive")[0].flags == ("\\Flagged",), "the base of its flags is known all the time"


async def test_killed_after_a_move_of_equal_facts_and_other_content(twin: Twin) -> None:
    await begin(twin, body(1), CORRECTED)
    for path in twin.find(1):
        twin.move(path, "Archive")
    twin.store.move("INBOX", [1, 2], "Archive")
    await settled(twin, INBOX=[body(2)], Archive=[body(1), CORRECTED])


@pytest.mark.usefixtures("wrong_sizes")
async def test_killed_after_a_move_where_sizes_are_wrong(twin: Twin) -> None:
    await begin(twin)
    twin.move(twin.one(1), "Archive", new_name=True)
    twin.store.move("INBOX", twin.uid(1), "Archive")
    await settled(twin, INBOX=[body(2)], Archive=[body(1)])


@pytest.mark.parametrize("raw", [body(1), NO_ID], ids=["message_id", "no_message_id"])
async def test_moved_elsewhere_there(twin: Twin, raw: bytes) -> None:
    """Of two moves the server's wins, and one message remains."""
    twin.store.create("Work")
    await begin(twin, raw)
    twin.move(twin.one(1), "Archive")
    twin.store.move("INBOX", twin.uid(1), "Work")
    await settled(twin, INBOX=[body(2)], Work=[raw])


@pytest.mark.parametrize("flagged", [0, 1])
@pytest.mark.usefixtures("wrong_sizes")
async def test_a_copy_beside_a_file_that_waits_is_a_message_of_its_own(twin: Twin, flagged: int) -> None:
    await begin(twin)
    twin.copy(twin.move(twin.one(1), "Archive", new_name=True), "Archive")
    twin.relabel(twin.files("Archive")[flagged], "F")  # the other one looks more like what comes
    twin.relabel(twin.files("Archive")[1 - flagged], "T")
    twin.store.set_flags("INBOX", twin.uid(1), add=["\\Deleted"])
    twin.store.move("INBOX", twin.uid(1), "Archive")
    await settled(twin, INBOX=[body(2)], Archive=[body(1), body(1)])


@pytest.mark.parametrize("raw", [body(1), NO_ID], ids=["message_id", "no_message_id"])
async def test_moved_here_and_deleted_there(twin: Twin, raw: bytes) -> None:
    await begin(twin, raw)
    twin.move(twin.one(1), "Archive")
    twin.store.expunge("INBOX", twin.uid(1))
    report = await twin.synced()
    assert report.total("deleted") == 1
    await settled(twin, INBOX=[body(2)])


async def synced_while_no_body_comes(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass to which the server says of each message that it is empty."""

    async def nothing(_: MemoryBox, batches: Sequence[Sequence[Uid]], __: object):  # type: ignore[no-untyped-def]
        for batch in batches:
            yield [Fetched(uid, frozenset(), 1, b"") for uid in batch]

    with monkeypatch.context() as patched:
        patched.setattr(MemoryBox, "fetch", nothing)
        await twin.sync()


async def test_what_may_be_among_messages_that_did_not_come_is_not_deleted(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server cannot deliver it for a while: the file waits, and is not sent either."""
    await begin(twin, NO_ID)
    twin.move(twin.one(1), "Archive")
    twin.store.move("INBOX", twin.uid(1), "Archive")
    await synced_while_no_body_comes(twin, monkeypatch)
    assert twin.remote.journal == []
    assert [path.read_bytes() for path in twin.files("Archive")] == [NO_ID]
    await settled(twin, INBOX=[body(2)], Archive=[NO_ID])


@pytest.mark.parametrize("is_moved", [True, False], ids=["moved", "deleted"])
async def test_the_connection_is_lost_once_while_a_file_waits(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, is_moved: bool
) -> None:
    """The next attempt within the pass knows of it, and the base of its flags."""
    twin.deliver(1, raw=NO_ID, flags=["\\Seen"])
    twin.deliver(2)
    await twin.synced()
    twin.move(twin.one(1), "Archive")
    twin.store.set_flags("INBOX", twin.uid(1), remove=["\\Seen"])
    if is_moved:
        twin.store.move("INBOX", twin.uid(1), "Archive")
    else:
        twin.store.expunge("INBOX", twin.uid(1))
    twin.deliver(3, "Archive")
    fetch, lost = MemoryBox.fetch, []

    async def lose_once(box: MemoryBox, *args: object):  # type: ignore[no-untyped-def]
        if not lost:
            lost.append(box.mailbox.name)
            raise ConnectionLost("cut")
        async for some in fetch(box, *args):  # type: ignore[arg-type]
            yield some

    monkeypatch.setattr(MemoryBox, "fetch", lose_once)
    await twin.synced()
    assert lost == ["Archive"]
    assert twin.remote.journal == []
    assert sorted(m.raw for m in twin.here("Archive")) == sorted([NO_ID, body(3)] if is_moved else [body(3)])
    assert [m.flags for m in twin.here("Archive")] == [()] * (2 if is_moved else 1)
    await settled(twin, INBOX=[body(2)], Archive=[NO_ID, body(3)] if is_moved else [body(3)])


async def test_the_guard_looks_at_files_that_nothing_came_for(twin: Twin) -> None:
    for n in range(1, 31):
        twin.deliver(n, raw=body(n, message_id=""))
    twin.deliver(99)
    await twin.synced()
    for n in range(1, 31):
        twin.move(twin.one(n), "Archive")
    twin.store.expunge("INBOX", range(1, 31))
    for _ in range(2):
        report = await twin.sync()
        assert report.mailboxes[MailboxName("Archive")].refused == 30
        assert twin.remote.journal == []
        assert len(twin.files("Archive")) == 30
    assert twin.approve("Archive")
    await settled(twin, INBOX=[body(99)])


async def test_the_guard_lets_files_pass_that_are_only_moved(twin: Twin) -> None:
    for n in range(1, 31):
        twin.deliver(n, raw=body(n, message_id=""))
    twin.deliver(99)
    await twin.synced()
    for n in range(1, 31):
        twin.move(twin.one(n), "Archive")
    twin.store.move("INBOX", range(1, 31), "Archive")
    await settled(twin, INBOX=[body(99)], Archive=[body(n, message_id="") for n in range(1, 31)])


@pytest.mark.parametrize("trash", [False, True], ids=["no_trash", "trash"])
@pytest.mark.parametrize("lacking", ["nothing", "MOVE"])
async def test_the_answer_to_a_move_is_lost(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, trash: bool, lacking: str
) -> None:
    monkeypatch.setattr(crew, "TRIES", 1)  # as if the process had been killed
    async with ImapServer(Store(), {USER: PASSWORD}, capabilities=ALL - {lacking}) as server:
        twin = WireTwin.over(quick_path, server)
        twin.store.create("Archive")
        if trash:
            twin.store.create("Trash", "\\Trash")
        await begin(twin, NO_ID)
        twin.move(twin.one(1), "Archive")
        server.faults.add("UID MOVE" if lacking == "nothing" else "UID COPY", Cut(before_tagged=True))
        assert not (await twin.sync()).ok
        assert len(twin.there("Archive")) == 1, "carried out, and nobody knows"
        server.faults.clear()
        await settled(twin, INBOX=[body(2)], Archive=[NO_ID])


# -- copies of a move that was cut off


@pytest.mark.parametrize("raw", [body(1), NO_ID], ids=["message_id", "no_message_id"])
async def test_a_move_that_was_cut_after_its_copy_is_ended(twin: Twin, raw: bytes) -> None:
    await begin(twin, raw)
    twin.move(twin.one(1), "Archive")
    twin.copy_cut_off(twin.uid(1), "Archive")
    await twin.synced()
    assert twin.remote.journal == ["expunge INBOX 1"]
    await settled(twin, INBOX=[body(2)], Archive=[raw])


@pytest.mark.usefixtures("wrong_sizes")
async def test_a_cut_move_is_ended_where_sizes_are_wrong(twin: Twin) -> None:
    await begin(twin)
    twin.move(twin.one(1), "Archive")
    twin.copy_cut_off(twin.uid(1), "Archive")
    await settled(twin, INBOX=[body(2)], Archive=[body(1)])


async def test_a_message_of_equal_facts_is_no_copy(twin: Twin) -> None:
    await begin(twin)
    twin.move(twin.one(1), "Archive")
    twin.deliver(1, "Archive", raw=CORRECTED)
    await twin.synced()
    assert twin.remote.journal == ["move INBOX 1 Archive"]
    await settled(twin, INBOX=[body(2)], Archive=[body(1), CORRECTED])


@pytest.mark.parametrize(
    ("raw", "copy"),
    [(body(1), None), (NO_ID, None), (body(1), CORRECTED), (body(1), body(1))],
    ids=["message_id", "no_message_id", "other_content", "not_noted"],
)
async def test_a_copy_in_the_trash(twin: Twin, raw: bytes, copy: bytes | None) -> None:
    twin.store.create("Trash", "\\Trash")
    await begin(twin, raw)
    twin.one(1).unlink()
    if copy is None:
        twin.copy_cut_off(twin.uid(1), "Trash")
    else:
        twin.deliver(1, "Trash", raw=copy)
    await twin.synced()
    is_equal = copy is None
    assert twin.remote.journal == ["expunge INBOX 1" if is_equal else "move INBOX 1 Trash"]
    await settled(twin, INBOX=[body(2)], Trash=[raw] if copy is None else [raw, copy])


@pytest.mark.parametrize("deleted", [False, True], ids=["moved", "deleted"])
@pytest.mark.parametrize("failure", [ConnectionLost("cut"), Rejected("not now")], ids=["lost", "refused"])
async def test_a_copy_that_cannot_be_looked_at(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, failure: Exception, deleted: bool
) -> None:
    """After a lost connection it is looked at again; what the server refuses to show is no copy."""
    twin.store.create("Trash", "\\Trash")
    await begin(twin)
    target = "Trash" if deleted else "Archive"
    twin.copy_cut_off(twin.uid(1), target)
    if deleted:
        twin.one(1).unlink()
    else:
        twin.move(twin.one(1), target)
    fetch, failed = MemoryBox.fetch, []

    async def fail_once(box: MemoryBox, *args: object):  # type: ignore[no-untyped-def]
        if not failed:
            failed.append(box.mailbox.name)
            raise failure
        async for some in fetch(box, *args):  # type: ignore[arg-type]
            yield some

    monkeypatch.setattr(MemoryBox, "fetch", fail_once)
    await twin.synced()
    assert failed == [target]
    is_proven = isinstance(failure, ConnectionLost)
    assert twin.remote.journal == ["expunge INBOX 1" if is_proven else f"move INBOX 1 {target}"]
    await settled(twin, INBOX=[body(2)], **{target: [body(1)] * (1 if is_proven else 2)})


# -- a new message where the old one was


async def test_a_draft_saved_again_with_a_correction(twin: Twin) -> None:
    await begin(twin)
    twin.store.expunge("INBOX", twin.uid(1))
    twin.deliver(1, raw=CORRECTED)
    await settled(twin, INBOX=[CORRECTED, body(2)])


async def test_a_message_that_left_and_came_back_keeps_its_file(twin: Twin) -> None:
    await begin(twin)
    path = twin.relabel(twin.one(1), "F")
    inode = path.stat().st_ino
    twin.store.move("INBOX", twin.uid(1), "Archive")
    twin.store.move("Archive", twin.uid(1, "Archive"), "INBOX")
    report = await twin.synced()
    assert report.total("deleted") == 0
    await settled(twin, INBOX=[body(1), body(2)])
    assert twin.one(1).stat().st_ino == inode
    assert [m.flags for m in twin.there("INBOX") if m.raw == body(1)] == [("\\Flagged",)], "what changed here stays"


# -- deleted here, moved there


@pytest.mark.parametrize("way", ["trash", "expunge"])
async def test_the_guard_looks_at_messages_deleted_here_that_moved_there(twin: Twin, way: str) -> None:
    twin.configure(remote_delete=way)
    twin.store.create("Trash", "\\Trash")
    for n in range(1, 31):
        twin.deliver(n)
    await twin.synced()
    for path in twin.files():
        path.unlink()
    twin.store.move("INBOX", range(1, 31), "Archive")
    report = await twin.sync()
    assert report.mailboxes[MailboxName("INBOX")].refused == 30
    assert twin.remote.journal == []
    await settled(twin, Archive=[body(n) for n in range(1, 31)])


async def test_what_both_sides_deleted_is_no_concern_of_the_guard(twin: Twin) -> None:
    for n in range(1, 31):
        twin.deliver(n)
    await twin.synced()
    for path in twin.files():
        path.unlink()
    twin.store.expunge("INBOX", range(1, 31))
    twin.deliver(40, "Archive")
    await settled(twin, Archive=[body(40)])


# -- deletions that do not travel


async def test_a_deletion_that_did_not_travel_outlasts_a_body_that_does_not_come(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin.configure(deletions="none")
    await begin(twin)
    twin.one(1).unlink()
    await twin.synced()
    twin.store.bump_uidvalidity("INBOX")
    await synced_while_no_body_comes(twin, monkeypatch)
    for _ in range(2):
        await twin.synced()
    assert [path.read_bytes() for path in twin.files()] == [body(2)]
    assert len(twin.there("INBOX")) == 2
    twin.deliver(1)  # another one with this content is another message
    await twin.synced()
    assert len(twin.files()) == 2


async def test_how_often_the_news_are_read_does_not_depend_on_how_many_move_or_come_empty(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings, read = [0], ScanTable.__iter__

    def counted(table: ScanTable) -> Iterator[tuple[Uid, Flags, int]]:
        readings[0] += 1
        return read(table)

    async def nothing(_: MemoryBox, batches: Sequence[Sequence[Uid]], __: object):  # type: ignore[no-untyped-def]
        for batch in batches:
            yield [Fetched(uid, frozenset(), 1, b"") for uid in batch]

    found: list[tuple[int, int]] = []
    for count in (5, 25):
        twin = Twin(quick_path / str(count))
        twin.directory.mkdir()
        twin.store.create("Archive")
        for n in range(count):
            twin.deliver(n)
        twin.deliver(99)
        await twin.synced()
        twin.store.move("INBOX", range(1, count + 1), "Archive")
        with monkeypatch.context() as patched:
            patched.setattr(ScanTable, "__iter__", counted)
            readings[0] = 0
            assert (await twin.synced()).total("moved") == count
            moved = readings[0]
            for n in range(count):
                twin.deliver(n)
            patched.setattr(MemoryBox, "fetch", nothing)
            readings[0] = 0
            await twin.sync()
            assert len(twin.files()) == 1
            found.append((moved, readings[0]))
    assert found[0] == found[1]


# -- killed while files are deleted


class Killed(BaseException):
    """What a kill -9 looks like from inside: nothing of ours catches it."""


async def killed_at(twin: Twin, monkeypatch: pytest.MonkeyPatch, *, is_removed: bool) -> None:
    """A pass that is killed before or after it removes a file, for the process is gone."""
    remove = Maildir.remove

    def removed(maildir: Maildir, entries: Sequence[Entry]) -> set[Key]:
        if is_removed:
            remove(maildir, entries)
        raise Killed("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Maildir, "remove", removed)
        with pytest.raises(BaseException, match=r"killed|unhandled errors"):
            await twin.sync()


@pytest.mark.parametrize("is_removed", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("way", ["trash", "expunge"])
async def test_killed_while_a_message_that_moved_there_is_deleted_here(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, way: str, is_removed: bool
) -> None:
    """What the killed pass removed is not taken for what a reader deleted, and deleted where it is now."""
    twin.configure(remote_delete=way, connections=1)
    twin.store.create("Trash", "\\Trash")
    await begin(twin, NO_ID)
    twin.store.move("INBOX", twin.uid(1), "Archive")
    await killed_at(twin, monkeypatch, is_removed=is_removed)
    await settled(twin, INBOX=[body(2)], Archive=[NO_ID])


async def test_killed_before_many_files_are_deleted(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next pass does it, and the guard measures it against what there was."""
    for n in range(1, 101):
        twin.deliver(n)
    await twin.synced()
    twin.store.expunge("INBOX", range(1, 46))
    await killed_at(twin, monkeypatch, is_removed=False)
    assert len(twin.files()) == 100
    await settled(twin, INBOX=[body(n) for n in range(46, 101)])


# -- what the server says of its UIDs


async def test_a_new_uid_that_has_a_pair_is_not_believed(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A false COPYUID would take the other message's pair."""
    other = twin.deliver(3, "Archive")
    await begin(twin)
    move = MemoryBox.move

    async def lying(
        box: MemoryBox, uids: Sequence[Uid], target: MailboxName, *_: Any, **__: Any
    ) -> dict[Uid, Uid | None]:
        return dict.fromkeys(await move(box, uids, target), Uid(str(other)))

    monkeypatch.setattr(MemoryBox, "move", lying)
    twin.move(twin.one(1), "Archive")
    await twin.synced()
    monkeypatch.undo()
    await settled(twin, INBOX=[body(2)], Archive=[body(1), body(3)])
    assert twin.remote.fetched == []


async def test_a_new_uid_of_another_epoch_is_not_believed(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """COPYUID tells the UIDVALIDITY for which its UIDs count: in the mailbox that was looked at they mean nothing."""
    twin.deliver(3, "Archive")
    await begin(twin)
    move, target_box, told = MemoryBox.move, twin.store.mailbox("Archive"), list[Uid | None]()

    async def elsewhere(box: MemoryBox, uids: Sequence[Uid], target: MailboxName, *epoch: Any, **_: Any) -> Any:
        known = target_box.uidvalidity
        target_box.uidvalidity = known + 1
        done = await move(box, uids, target, *epoch)
        target_box.uidvalidity = known
        told.extend(done.values())
        return {uid: None if new is None else Uid("77") for uid, new in done.items()}

    monkeypatch.setattr(MemoryBox, "move", elsewhere)
    twin.move(twin.one(1), "Archive")
    await twin.synced()
    monkeypatch.undo()
    assert told == [None]
    await settled(twin, INBOX=[body(2)], Archive=[body(1), body(3)])
    assert twin.remote.fetched == []
