"""Messages that the server has from here under a Uid that nobody told, and which move on before the next pass."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from maild.core.errors import ConnectionLost, Rejected
from maild.local.state import Changes, State
from maild.testing.imap import ALL, ImapServer
from maild.testing.memory import MemoryBox, MemoryRemote
from maild.testing.store import Store
from tests.engine.test_unreadable import Disk
from tests.engine.twin import Twin, WireTwin
from tests.engine.world import PASSWORD, USER

pytestmark = pytest.mark.anyio


class Killed(BaseException):
    """The process has ended here."""


@pytest.fixture(params=["message_id", "no_message_id"])
def twin(quick_path: Path, request: pytest.FixtureRequest) -> Twin:
    return prepared(Twin(quick_path, message_ids=request.param == "message_id"))


def prepared(twin: Twin) -> Twin:
    twin.configure(remote_delete="expunge", connections=1)
    for mailbox in ("Archive", "Work", "Other"):
        twin.store.create(mailbox)
    return twin


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch, errno.EIO)


@pytest.fixture(params=["killed", "appended", "moved"])
async def untold(twin: Twin, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Twin:
    """Message 1 is in Archive on both sides, with a flag, and no pair knows it."""
    twin.settings["tells_uids"] = request.param == "killed"
    twin.deliver(2)
    if request.param == "moved":
        twin.deliver(1, flags=["\\Flagged"])
    await twin.synced()
    if request.param == "moved":
        twin.move(twin.one(1), "Archive")
    else:
        twin.write(1, "Archive", "F")
    if request.param == "killed":
        await killed_before_a_pair(twin, monkeypatch)
    else:
        await twin.synced()
    assert len(twin.here("Archive")) == len(twin.there("Archive")) == 1
    assert pairs(twin, "Archive") == 0
    return twin


async def killed_before_a_pair(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    original = State.apply

    def apply(self: State, changes: Iterable[Changes]) -> None:
        several = list(changes)
        if any(change.add for change in several):
            raise Killed
        original(self, several)

    with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup) as caught:
        patch.setattr(State, "apply", apply)
        await twin.sync()
    assert caught.value.split(Killed)[1] is None


async def killed_before_it_is_sent(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    def append(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup):
        patch.setattr(MemoryBox, "append", append)
        await twin.sync()


def pairs(twin: Twin, mailbox: str) -> int:
    state = State.open(twin.state_dir / "work.sqlite")
    try:
        return next(state.count(row.id) for name, row in state.mailboxes().items() if name == mailbox)
    finally:
        state.close()


async def then_it_is_in(twin: Twin, mailbox: str, flags: tuple[str, ...] = ("\\Flagged",)) -> None:
    """After another pass it is there on both sides, and nowhere else; and what was to be told has been forgotten."""
    await twin.synced()
    assert [(shown.raw, shown.flags) for shown in twin.there(mailbox)] == [(twin.body(1), flags)]
    assert sum(len(twin.there(name)) for name in twin.store.names) == 2
    await twin.synced()
    twin.assert_equal()
    await twin.quiet()
    state = State.open(twin.state_dir / "work.sqlite")
    try:
        assert [state.orphans(row.id) for row in state.mailboxes().values()] == [{}] * len(state.mailboxes())
    finally:
        state.close()


async def test_nothing_moves(untold: Twin) -> None:
    await untold.synced()
    assert untold.remote.journal == []
    await then_it_is_in(untold, "Archive")


async def test_a_flag_that_goes_is_not_there_again(untold: Twin) -> None:
    """The base of its flags is what the server was given."""
    untold.relabel(untold.one(1, "Archive"), "S")
    await untold.synced()
    await then_it_is_in(untold, "Archive", ("\\Seen",))


@pytest.mark.parametrize("new_name", [False, True])
async def test_the_reader_moves_it_on(untold: Twin, new_name: bool) -> None:
    untold.move(untold.one(1, "Archive"), "Work", new_name=new_name)
    await untold.synced()
    (change,) = untold.remote.journal
    assert change.startswith("move Archive ")
    await then_it_is_in(untold, "Work")


async def test_the_reader_moves_it_on_and_only_its_new_mailbox_is_asked_for(untold: Twin) -> None:
    """It is not sent from there, but waits for a pass that sees both."""
    untold.move(untold.one(1, "Archive"), "Work")
    report = await untold.sync(only=["Work"])
    assert untold.remote.journal == []
    assert "messages that were moved here from Archive: 1" in str(report.mailboxes["Work"].error)
    await then_it_is_in(untold, "Work")


async def test_the_reader_moves_it_on_and_only_its_old_mailbox_is_asked_for(untold: Twin) -> None:
    untold.move(untold.one(1, "Archive"), "Work")
    await untold.sync(only=["Archive"])
    assert untold.remote.journal == []
    await then_it_is_in(untold, "Work")


async def test_a_dry_run_changes_nothing(untold: Twin) -> None:
    untold.move(untold.one(1, "Archive"), "Work")
    report = await untold.sync(dry_run=True)
    assert report.mailboxes["Archive"].moved_there == 1
    assert untold.remote.journal == []
    assert pairs(untold, "Archive") == 0
    await then_it_is_in(untold, "Work")


async def test_the_reader_deletes_it(untold: Twin) -> None:
    """Where the server has said that it took it, an equal message there is that one; else it may be anybody's."""
    is_told = untold.settings["tells_uids"]
    untold.one(1, "Archive").unlink()
    await untold.synced()
    assert len(untold.there("Archive")) == is_told
    untold.assert_equal()
    await untold.synced()
    await untold.quiet()


async def test_never_sent_then_brought_there_by_another_machine(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only copy of it, though its file was deleted here: what was never there cannot have been deleted there."""
    twin.deliver(2)
    await twin.synced()
    twin.write(1, "Archive", "F")
    await killed_before_it_is_sent(twin, monkeypatch)
    twin.deliver(1, "Archive", ["\\Flagged"])
    twin.one(1, "Archive").unlink()
    await then_it_is_in(twin, "Archive")


async def test_a_copy_that_was_never_sent_is_not_what_another_machine_copied(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin.deliver(1, "Other")
    await twin.synced()
    twin.copy(twin.one(1, "Other"), "Archive")
    await killed_before_it_is_sent(twin, monkeypatch)
    twin.store.copy("Other", twin.uid(1, "Other"), "Work")
    for _ in range(2):
        await twin.synced()
    twin.assert_equal()
    assert [len(twin.there(name)) for name in ("Other", "Archive", "Work")] == [1, 1, 1]
    await twin.quiet()


async def test_another_message_of_its_size_is_where_it_was_sent_to(untold: Twin) -> None:
    """It has moved on, whatever else came."""
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    untold.deliver(7, "Archive")
    await untold.synced()
    if not untold.message_ids:
        return  # such a message may be it, as far as anybody knows before it has come
    assert untold.remote.journal == []
    assert len(untold.there("Work")) == 1


@pytest.mark.parametrize("nth", [3, 4])
async def test_it_moves_on_to_a_mailbox_that_fails(untold: Twin, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """When it was to be fetched, to prove that it is this one, or when the file was to follow it."""
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    original, visits = MemoryRemote.visit, list[str]()

    def visit(self: MemoryRemote, name: Any, epoch: Any = None, **options: Any) -> Any:
        visits.append(name)
        if name == "Work" and visits.count("Work") >= nth:
            raise Rejected("not now")
        return original(self, name, epoch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryRemote, "visit", visit)
        await untold.sync()
    assert visits.count("Work") >= nth
    assert untold.remote.journal == []
    await then_it_is_in(untold, "Work")


async def test_it_moves_on_and_only_its_old_mailbox_is_asked_for(untold: Twin) -> None:
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    report = await untold.sync(only=["Archive"])
    assert untold.remote.journal == []
    assert "wait for a pass that looks everywhere" in str(report.mailboxes["Archive"].error)
    await then_it_is_in(untold, "Work")


async def test_it_moves_on_and_only_its_new_mailbox_is_asked_for(untold: Twin) -> None:
    """It is not fetched there, beside the file that is to follow it; whatever else comes is."""
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    untold.deliver(7, "Work")
    report = await untold.sync(only=["Work"])
    assert [shown.raw for shown in untold.here("Work")] == [untold.body(7)]
    assert "wait for a pass that looks everywhere" in str(report.mailboxes["Work"].error)
    untold.store.expunge("Work", [untold.uid(7, "Work")])
    await then_it_is_in(untold, "Work")


async def test_it_moves_on_and_its_old_mailbox_fails(untold: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    original = MemoryRemote.visit

    def visit(self: MemoryRemote, name: Any, epoch: Any = None, **options: Any) -> Any:
        if name == "Archive":
            raise Rejected("not now")
        return original(self, name, epoch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryRemote, "visit", visit)
        for _ in range(2):
            await untold.sync()
            assert untold.here("Work") == untold.remote.journal == []
    await then_it_is_in(untold, "Work")


async def test_both_move_on_and_only_the_place_of_the_file_is_not_asked_for(untold: Twin) -> None:
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Other")
    untold.move(untold.one(1, "Archive"), "Work")
    report = await untold.sync(only=["Archive", "Other"])
    assert untold.here("Other") == untold.remote.journal == []
    assert "wait for a pass that looks everywhere" in str(report.mailboxes["Other"].error)
    await then_it_is_in(untold, "Other")


async def test_both_move_on_to_the_only_mailbox_that_is_asked_for(untold: Twin) -> None:
    """There it is on both sides, wherever it was sent to: it waits for nobody."""
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    untold.move(untold.one(1, "Archive"), "Work")
    await untold.sync(only=["Work"])
    assert untold.remote.journal == []
    assert pairs(untold, "Work") == 1
    await then_it_is_in(untold, "Work")


@pytest.mark.parametrize("new_name", [False, True])
async def test_the_reader_moves_it_on_and_nobody_can_read_it(untold: Twin, disk: Disk, new_name: bool) -> None:
    """Neither is its message fetched beside it, nor does it go; once the file can be read it is that one again."""
    disk.spoil(untold.move(untold.one(1, "Archive"), "Work", new_name=new_name))
    for _ in range(2):
        await untold.synced()
        assert untold.remote.journal == []
        assert [len(untold.there("Archive")), len(untold.files("Archive")), len(untold.files("Work"))] == [1, 0, 1]
    disk.bad.clear()
    await untold.sync(only=["Work"])
    assert untold.remote.journal == []
    await then_it_is_in(untold, "Work")


async def test_it_moves_on_and_nobody_can_read_its_file(untold: Twin, disk: Disk) -> None:
    disk.spoil(untold.one(1, "Archive"))
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    for _ in range(2):
        await untold.synced()
        assert untold.remote.journal == []
        assert [len(untold.there("Work")), len(untold.files("Archive")), len(untold.files("Work"))] == [1, 1, 0]
    disk.bad.clear()
    await untold.sync(only=["Archive"])
    await then_it_is_in(untold, "Work")


async def test_deletions_do_not_travel_here(untold: Twin) -> None:
    """A message that moves on there keeps its file, as any other."""
    untold.configure(deletions="to_remote")
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    for _ in range(2):
        await untold.synced()
        assert untold.remote.journal == []
    assert len(untold.files("Archive")) == len(untold.files("Work")) == 1
    assert untold.there("Archive") == []


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "no_uidplus"])
async def test_one_connection_is_enough(quick_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool) -> None:
    """Nobody holds it while another is asked for."""
    lacking = set() if is_killed else {"UIDPLUS"}
    async with ImapServer(Store(), {USER: PASSWORD}, capabilities=ALL - lacking) as server:
        twin = WireTwin.over(quick_path, server)
        prepared(twin)
        twin.deliver(2)
        twin.deliver(1)
        await twin.synced()
        if is_killed:
            twin.one(1).unlink()
            await twin.synced()
            twin.write(1, "Archive")
            await killed_before_a_pair(twin, monkeypatch)
        else:
            twin.move(twin.one(1), "Archive")
            await twin.synced()
        twin.one(1, "Archive").unlink()
        for _ in range(2):
            await twin.synced()
        twin.assert_equal()


async def test_the_connection_is_lost_after_the_move(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new mailbox is done again; it knows what came there in this pass."""
    twin.settings["tells_uids"] = False
    twin.deliver(1, flags=["\\Flagged"])
    twin.deliver(2)
    await twin.synced()
    for n in range(1, 6):
        target = f"Target{n}"
        twin.store.create(target)
        source = "INBOX" if n == 1 else f"Target{n - 1}"
        await twin.synced()
        twin.move(twin.one(1, source), target)
        original, visits = MemoryRemote.visit, list[str]()

        def visit(
            self: MemoryRemote,
            name: Any,
            epoch: Any = None,
            *,
            original: Any = original,
            visits: list[str] = visits,
            target: str = target,
            n: int = n,
            **options: Any,
        ) -> Any:
            visits.append(name)
            if name == target and visits.count(target) == n and epoch is not None:
                raise ConnectionLost("cut once")
            return original(self, name, epoch, **options)

        with monkeypatch.context() as patch:
            patch.setattr(MemoryRemote, "visit", visit)
            await twin.synced()
        await then_it_is_in(twin, target)


async def test_it_is_moved_to_a_new_mailbox_and_on(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed as soon as the first move was noted: the epoch of the new mailbox is known all the same."""
    twin.settings["tells_uids"] = False
    twin.deliver(1, flags=["\\Flagged"])
    twin.deliver(2)
    await twin.synced()
    twin.move(twin.one(1), "Fresh")
    original = State.apply

    def apply(self: State, changes: Iterable[Changes]) -> None:
        several = list(changes)
        original(self, several)
        if any(change.sent for change in several):
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup):
        patch.setattr(State, "apply", apply)
        await twin.sync()
    twin.move(twin.one(1, "Fresh"), "Work")
    await twin.synced()
    assert twin.remote.journal == ["move Fresh 1 Work"]
    await then_it_is_in(twin, "Work")


@pytest.mark.parametrize("message_ids", [True, False])
async def test_one_that_is_too_big_to_come_back_is_sent_once(quick_path: Path, message_ids: bool) -> None:
    """The server has no UIDPLUS, and its copy is left there: it is the file's all the same."""
    async with ImapServer(Store(), {USER: PASSWORD}, capabilities=ALL - {"UIDPLUS"}) as server:
        twin = WireTwin.over(quick_path, server)
        twin.message_ids = message_ids
        prepared(twin)
        twin.configure(max_message_size_octets=300)
        twin.deliver(2)
        await twin.synced()
        twin.write(1, "Archive", raw=twin.body(1) + b"x" * 400 + b"\n")
        for _ in range(4):
            await twin.synced()
            assert len(twin.there("Archive")) == 1


async def test_the_guard_counts_them(twin: Twin) -> None:
    """18 of 45 are not too many, though no pair knows 30 of them."""
    twin.settings["tells_uids"] = False
    twin.limit_deletions(50)
    for n in range(30, 45):
        twin.deliver(n, "Archive")
    await twin.synced()
    new = [twin.write(n, "Archive") for n in range(50, 80)]
    await twin.synced()
    for path in new[:18]:
        path.unlink()
    report = await twin.synced()
    assert report.mailboxes["Archive"].deleted_there == 18
    assert len(twin.there("Archive")) == 27


async def test_it_moves_on_on_the_server(untold: Twin) -> None:
    """Its file follows: it is neither sent again nor fetched into another file."""
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    (before,) = untold.files("Archive")
    inode = before.stat().st_ino
    await untold.synced()
    assert untold.remote.journal == []
    assert [path.stat().st_ino for path in untold.files("Work")] == [inode]
    await then_it_is_in(untold, "Work")


async def test_it_moves_on_on_both_sides(untold: Twin) -> None:
    """The server's place wins."""
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Other")
    untold.move(untold.one(1, "Archive"), "Work")
    await untold.synced()
    assert untold.remote.journal == []
    await then_it_is_in(untold, "Other")


async def test_killed_before_it_was_sent(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server never had it: it is sent from where its file is now, once."""
    twin.deliver(2)
    await twin.synced()
    twin.write(1, "Archive", "F")
    await killed_before_it_is_sent(twin, monkeypatch)
    twin.move(twin.one(1, "Archive"), "Work")
    await twin.synced()
    assert [change.partition(" ")[0] for change in twin.remote.journal] == ["append"]
    await then_it_is_in(twin, "Work")


async def test_an_equal_message_that_moved_there_is_another(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before it was sent, then deleted: what is new in its mailbox was in Other before."""
    twin.deliver(2)
    twin.deliver(1, "Other", ["\\Flagged"])
    await twin.synced()
    twin.write(1, "Archive", "F")
    await killed_before_it_is_sent(twin, monkeypatch)
    twin.one(1, "Archive").unlink()
    twin.store.move("Other", [twin.uid(1, "Other")], "Archive")
    await then_it_is_in(twin, "Archive")


@pytest.mark.parametrize("lacking", [{"UIDPLUS"}, {"UIDPLUS", "MOVE"}], ids=["move", "copy"])
async def test_a_server_without_uidplus(quick_path: Path, lacking: set[str]) -> None:
    """The reader moves it twice, with a pass between."""
    async with ImapServer(Store(), {USER: PASSWORD}, capabilities=ALL - lacking) as server:
        twin = WireTwin.over(quick_path, server)
        prepared(twin)
        twin.deliver(1, flags=["\\Flagged"])
        twin.deliver(2)
        await twin.synced()
        twin.move(twin.one(1), "Archive")
        await twin.synced()
        twin.move(twin.one(1, "Archive"), "Work")
        await twin.synced()
        twin.store.move("Work", [twin.uid(1, "Work")], "Other")
        for _ in range(2):
            await twin.synced()
        assert not [change for change in server.mutations if change.startswith("APPEND")]
        assert [shown.raw for shown in twin.here("Other")] == [twin.body(1)]
        twin.assert_equal()


@pytest.mark.parametrize("deleted", [False, True])
async def test_two_equal_ones_move_on_under_other_names(twin: Twin, deleted: bool) -> None:
    """Each file counts once; where it is not clear whose message is whose, one may come back, and none is lost."""
    twin.settings["tells_uids"] = False
    twin.deliver(2)
    await twin.synced()
    files = [twin.write(1, "Archive", "F"), twin.write(1, "Archive", "F")]
    await twin.synced()
    if deleted:
        files[1].unlink()
    else:
        twin.move(files[1], "Work", new_name=True)
    twin.move(files[0], "Work", new_name=True)
    for uid in [message.uid for message in twin.store.mailbox("Archive")]:
        twin.store.move("Archive", [uid], "Other")
    for _ in range(3):
        await twin.synced()
    twin.assert_equal()
    assert sum(len(twin.there(name)) for name in ("Archive", "Work", "Other")) in (range(1, 4) if deleted else [2])
    await twin.quiet()


async def test_a_draft_is_saved_anew_there_and_the_old_one_moves_on(untold: Twin) -> None:
    """The same Message-ID is not the same message."""
    if not untold.message_ids:
        return
    old = untold.uid(1, "Archive")
    untold.deliver(1, "Archive", raw=untold.body(1) + b"And more.\n")
    untold.store.move("Archive", [old], "Work")
    for _ in range(2):
        await untold.synced()
        assert untold.remote.journal == []
    untold.assert_equal()
    assert [len(untold.there(name)) for name in ("Archive", "Work")] == [1, 1]


@pytest.mark.parametrize("passes", [1, 3])
async def test_no_body_comes(untold: Twin, monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
    """Whatever the server has may be this message: it is not sent again and again."""

    async def fetch(_: MemoryBox, batches: Any, __: Any) -> Any:
        for _batch in batches:
            yield []

    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryBox, "fetch", fetch)
        for _ in range(passes):
            await untold.synced()
            assert untold.remote.journal == []
    await then_it_is_in(untold, "Work")


async def test_it_moves_on_while_the_mailboxes_are_looked_at(untold: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its new mailbox was scanned, and before its old one is: what was missed once is looked for again."""
    if untold.settings["tells_uids"]:
        return  # the server only may have taken it
    untold.deliver(8, "Work")
    original = MemoryBox.scan

    async def scan(self: MemoryBox, cursor: Any) -> Any:
        found = await original(self, cursor)
        if self.mailbox.name == "Work" and untold.store.mailbox("Archive").find(uid) is not None:
            untold.store.move("Archive", [uid], "Work")
        return found

    uid = untold.uid(1, "Archive")
    untold.store.delete("Work")  # so that it is listed, and scanned, before Archive
    untold.store.create("Work")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryBox, "scan", scan)
        await untold.synced()
    for _ in range(2):
        await untold.synced()
        assert untold.remote.journal == []
    assert len(untold.there("Work")) == len(untold.here("Work")) == 1
    assert untold.there("Archive") == []


async def test_it_moves_on_after_the_mailboxes_were_looked_at(untold: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there a moment ago, and is not adopted: that does not make its file a new one."""
    original = MemoryBox.facts

    async def facts(self: MemoryBox, uids: Any) -> Any:
        found = await original(self, uids)
        asked.append(self.mailbox.name)
        if asked == ["Archive"]:
            untold.store.move("Archive", [uid], "Work")
        return found

    asked, uid = list[str](), untold.uid(1, "Archive")
    untold.deliver(8, "Work")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryBox, "facts", facts)
        await untold.synced()
    assert "Archive" in asked
    for _ in range(2):
        assert untold.remote.journal == []
        await untold.synced()
    assert [len(untold.there("Archive")), len(untold.there("Work")), len(untold.here("Work"))] == [0, 2, 2]


async def test_it_is_one_of_two_equal_messages_and_its_file_goes_on(twin: Twin) -> None:
    """Nobody can tell which of the two has gone on: it is fetched, and the file is sent, rather than forgotten."""
    twin.settings["tells_uids"] = False
    twin.deliver(1, "Other")
    twin.deliver(2)
    await twin.synced()
    twin.write(1, "Archive")
    await twin.synced()
    twin.move(twin.one(1, "Archive"), "Work", new_name=True)
    for subdir in ("new", "cur"):
        os.utime(twin.where("Work") / subdir, (1, 1))  # else it counts as changed until the clock's next tick
    for _ in range(3):
        await twin.synced()
    twin.assert_equal()
    assert len(twin.there("Work")) == len(twin.there("Other")) == 1
    await twin.quiet()


async def test_of_two_equal_ones_the_server_got_one(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two: the other one is sent in the next pass, not in a later one."""
    twin.deliver(2)
    await twin.synced()
    for _ in range(2):
        twin.write(1, "Archive", "F")
    original = MemoryBox.append

    async def append(self: MemoryBox, messages: Any) -> Any:
        async for answer in original(self, messages):
            yield answer
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup):
        patch.setattr(MemoryBox, "append", append)
        await twin.sync()
    assert len(twin.there("Archive")) == 1
    await twin.synced()
    assert len(twin.remote.journal) == 1
    await twin.synced()
    twin.assert_equal()
    assert len(twin.there("Archive")) == 2
    await twin.quiet()


async def test_what_the_server_took_and_lost_is_sent_again(untold: Twin) -> None:
    """Missed at two passes, it is nowhere; what it only may have taken is sent at once."""
    is_sure = not untold.settings["tells_uids"]
    untold.store.expunge("Archive", [untold.uid(1, "Archive")])
    await untold.synced()
    assert len(untold.remote.journal) == (not is_sure)
    await untold.synced()
    assert len(untold.remote.journal) == is_sure
    await then_it_is_in(untold, "Archive")


async def test_it_goes_on_once_more_while_it_is_looked_for(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was seen, and is gone when its facts are asked for: that it is nowhere is not proven."""
    twin.deliver(2)
    await twin.synced()
    twin.write(5)
    await killed_before_a_pair(twin, monkeypatch)
    twin.store.move("INBOX", [twin.uid(5)], "Archive")
    facts = MemoryBox.facts

    async def too_late(self: MemoryBox, uids: Any) -> Any:
        if twin.store.find("Archive") and any(shown.raw == twin.body(5) for shown in twin.there("Archive")):
            twin.store.move("Archive", [twin.uid(5, "Archive")], "Work")
        return await facts(self, uids)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryBox, "facts", too_late)
        await twin.sync()
    for _ in range(3):
        await twin.synced()
        assert not [change for change in twin.remote.journal if change.startswith("append")]
    twin.assert_equal()
    assert [len(twin.find(5, name)) for name in ("INBOX", "Archive", "Work")] == [0, 0, 1]
    await twin.quiet()
