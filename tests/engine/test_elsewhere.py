"""A file that lies where a pass did not look has moved: its message is neither deleted nor sent a second time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from maild.core.errors import ConnectionLost, Rejected
from maild.engine import elsewhere, visits, whole
from maild.engine.report import AccountReport
from maild.local.state import State
from maild.testing.faults import Bye
from maild.testing.imap import ImapServer
from maild.testing.memory import MemoryBox, MemoryRemote
from maild.testing.store import Store
from tests.engine.twin import Twin, WireTwin
from tests.engine.world import PASSWORD, USER

MOVED = ["move INBOX 1 Archive"]


@pytest.fixture(params=["expunge", "trash"])
async def twin(tmp_path: Path, request: pytest.FixtureRequest) -> Twin:
    """Two messages that are on both sides, and an empty mailbox beside them."""
    made = Twin(tmp_path)
    made.configure(remote_delete=request.param)
    made.store.create("Trash", "\\Trash")
    made.store.create("Archive")
    made.deliver(1)
    made.deliver(2)
    await made.synced()
    return made


async def then_it_moves(twin: Twin) -> None:
    """The next pass that sees both mailboxes."""
    assert twin.remote.journal == []
    await twin.synced()
    assert twin.remote.journal == MOVED
    twin.assert_equal()
    await twin.quiet()


def refuse_scans(patch: pytest.MonkeyPatch, mailbox: str) -> None:
    """The server does not let anybody open this mailbox."""
    original = MemoryBox.scan

    async def scan(self: MemoryBox, cursor: Any) -> Any:
        if self.mailbox.name == mailbox:
            raise Rejected("cannot be opened", code="UNAVAILABLE")
        return await original(self, cursor)

    patch.setattr(MemoryBox, "scan", scan)


def lose_visit(patch: pytest.MonkeyPatch, mailbox: str, nth: int) -> list[str]:
    """The connection is lost once: at this visit of the mailbox, of those after it was looked at. They are told."""
    original, visited = MemoryRemote.visit, list[str]()

    def visit(self: MemoryRemote, name: Any, epoch: Any = None, **options: Any) -> Any:
        if name == mailbox and epoch is not None:
            visited.append(name)
            if len(visited) == nth:
                raise ConnectionLost("cut once")
        return original(self, name, epoch, **options)

    patch.setattr(MemoryRemote, "visit", visit)
    return visited


async def test_the_connection_is_lost_once_at_the_move(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mailbox is done again by itself: then nobody has told it where its file went."""
    original, lost = MemoryBox.move, [True]

    async def move(self: MemoryBox, uids: Sequence[Any], target: Any, epoch: Any = None, **_: Any) -> Any:
        if lost:
            lost.pop()
            raise ConnectionLost("cut once")
        return await original(self, uids, target)

    monkeypatch.setattr(MemoryBox, "move", move)
    twin.move(twin.one(1), "Archive")
    await twin.synced()
    assert not lost
    await then_it_moves(twin)


async def test_the_connection_is_lost_once_at_the_move_over_imap(tmp_path: Path) -> None:
    async with ImapServer(Store(), users={USER: PASSWORD}) as server:
        twin = WireTwin.over(tmp_path, server)
        twin.store.create("Archive")
        twin.deliver(1)
        twin.deliver(2)
        await twin.synced()
        twin.move(twin.one(1), "Archive")
        server.faults.add("UID MOVE", Bye("restart"))
        before = len(server.mutations)
        await twin.synced()
        await twin.synced()
        assert server.mutations[before:] == ['UID MOVE 1 "Archive"'] * 2
        twin.assert_equal()
        await twin.quiet()


async def test_the_new_mailbox_is_done_again_before_the_message_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is about to be moved there is not sent to it."""
    twin = Twin(tmp_path)
    twin.configure(connections=1)
    for name in ("Archive", "Other"):
        twin.store.create(name)
    twin.deliver(1, "Other")
    twin.deliver(2, "Other")
    await twin.synced()
    twin.move(twin.one(1, "Other"), "Archive")
    twin.deliver(7, "Archive")
    twin.write(8, "Archive")
    lose_visit(monkeypatch, "Archive", 2)
    await twin.synced()
    monkeypatch.undo()
    assert twin.remote.journal == ["append Archive 97", "move Other 1 Archive"]
    await twin.synced()
    twin.assert_equal()


@pytest.mark.parametrize("mailbox", ["Archive", "INBOX"], ids=["new", "old"])
async def test_one_of_its_mailboxes_cannot_be_opened(twin: Twin, mailbox: str) -> None:
    twin.move(twin.one(1), "Archive")
    with pytest.MonkeyPatch.context() as patch:
        refuse_scans(patch, mailbox)
        report = await twin.sync()
        assert report.mailboxes[mailbox].state == "error"
    await then_it_moves(twin)


async def test_one_mailbox_is_asked_for(twin: Twin) -> None:
    twin.move(twin.one(1), "Archive")
    report = await twin.sync(only=["INBOX"])
    assert report.ok
    await then_it_moves(twin)


@pytest.mark.parametrize("new_name", [False, True])
async def test_its_new_mailbox_is_asked_for(twin: Twin, new_name: bool) -> None:
    """It is on the server already: it is not sent, and the report says what it waits for; what is new is sent."""
    moved = twin.move(twin.one(1), "Archive", new_name=new_name)
    twin.relabel(moved, "F")
    twin.write(5, "Archive")
    for _ in range(2):
        report = await twin.sync(only=["Archive"])
        assert "moved here from INBOX: 1;" in str(report.mailboxes["Archive"].error)
        assert report.mailboxes["Archive"].held_back == 1
        assert [shown.raw for shown in twin.there("Archive")] == [twin.body(5)]
    await twin.synced()
    assert [step.split()[0] for step in twin.remote.journal] == ["store", "move"]
    twin.assert_equal()
    await twin.quiet()


async def test_its_old_mailbox_cannot_be_looked_at(twin: Twin) -> None:
    """Nobody knows whether its file is there still: it is not sent; what is new goes."""
    twin.move(twin.one(1), "Archive")
    twin.write(5, "Archive")
    keywords = twin.where("INBOX") / "dovecot-keywords"
    keywords.mkdir()
    for only, sent in ((["Archive"], ["append"]), ([], [])):
        report = await twin.sync(only=only)
        assert report.error is None
        assert [step.split()[0] for step in twin.remote.journal] == sent
    keywords.rmdir()
    await then_it_moves(twin)


async def test_a_dry_run_of_its_new_mailbox_sends_nothing(twin: Twin) -> None:
    twin.move(twin.one(1), "Archive")
    report = await twin.sync(only=["Archive"], dry_run=True)
    assert (report.mailboxes["Archive"].pushed, report.mailboxes["Archive"].held_back) == (0, 1)
    await then_it_moves(twin)


async def test_a_copy_is_sent_when_its_new_mailbox_is_asked_for(twin: Twin) -> None:
    """Its other file is where it was."""
    twin.copy(twin.one(1), "Archive")
    report = await twin.sync(only=["Archive"])
    assert report.ok
    assert [step.split()[0] for step in twin.remote.journal] == ["append"]
    await twin.synced()
    twin.assert_equal()


async def test_what_the_server_moved_too_is_adopted_when_its_new_mailbox_is_asked_for(twin: Twin) -> None:
    twin.move(twin.one(1), "Archive")
    twin.store.move("INBOX", [1], "Archive")
    await twin.sync(only=["Archive"])
    assert (twin.remote.journal, twin.remote.fetched) == ([], [])
    await twin.synced()
    twin.assert_equal()
    await twin.quiet()


async def test_a_reader_moves_it_after_its_old_mailbox_was_found_unchanged(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the new mailbox is looked at after that."""
    await twin.synced()
    _settle(twin)
    await twin.quiet()
    twin.write(5, "Archive")
    original = visits.look_at

    def look_at(state: Any, row: Any, maildir: Any, **options: Any) -> Any:
        if row.name == "Archive" and twin.find(1):
            twin.move(twin.one(1), "Archive")
        return original(state, row, maildir, **options)

    monkeypatch.setattr(visits, "look_at", look_at)
    await twin.synced()
    monkeypatch.undo()
    assert [step.split()[0] for step in twin.remote.journal] == ["append"]
    await twin.synced()
    assert twin.remote.journal == MOVED
    twin.assert_equal()


async def test_what_is_deleted_goes_all_the_same(twin: Twin) -> None:
    """Also where others were not looked at, and hold files that nobody knows."""
    twin.write(5, "Archive")
    twin.one(1).unlink()
    await twin.sync(only=["INBOX"])
    assert twin.remote.journal in (["expunge INBOX 1"], ["move INBOX 1 Trash"])


async def test_a_mailbox_that_is_left_out_is_no_place_to_move_to(tmp_path: Path) -> None:
    """Whoever moves mail to where it does not travel takes it off the server."""
    twin = Twin(tmp_path)
    twin.configure(mailboxes=("*", "!Local"), remote_delete="expunge")
    twin.deliver(1)
    twin.deliver(2)
    await twin.synced()
    twin.move(twin.one(1), "Local")
    await twin.synced()
    assert twin.remote.journal == ["expunge INBOX 1"]


async def test_the_server_does_not_make_its_new_mailbox(twin: Twin) -> None:
    twin.move(twin.one(1), "New")
    with pytest.MonkeyPatch.context() as patch:

        async def create(self: MemoryRemote, levels: tuple[str, ...]) -> Any:
            raise Rejected("no permission to create")

        patch.setattr(MemoryRemote, "create", create)
        for _ in range(2):
            report = await twin.sync()
            assert report.mailboxes["New"].state == "error"
            assert twin.remote.journal == []
    await twin.synced()
    assert twin.remote.journal == ["create New", "move INBOX 1 New"]
    twin.assert_equal()


async def test_its_new_mailbox_is_read_only(twin: Twin) -> None:
    """It stays where it was, and `status` says so."""
    twin.store.mailbox("Archive").read_only = True
    await twin.synced()
    twin.move(twin.one(1), "Archive")
    for _ in range(3):
        report = await twin.sync()
        assert twin.remote.journal == []
        assert "read-only" in str(report.mailboxes["Archive"].error)
    twin.store.mailbox("Archive").read_only = False
    await then_it_moves(twin)


def refuse_moves(patch: pytest.MonkeyPatch) -> None:
    """The server answers every MOVE and COPY with NO, and does not expunge."""

    async def move(self: MemoryBox, uids: Sequence[Any], target: Any, epoch: Any = None, **_: Any) -> Any:
        raise Rejected("not now")

    async def expunge(self: MemoryBox, uids: Sequence[Any]) -> Any:
        raise Rejected("not now")

    patch.setattr(MemoryBox, "move", move)
    patch.setattr(MemoryBox, "expunge", expunge)


async def test_the_server_refuses_the_move(twin: Twin) -> None:
    """It is tried again at the next pass, with the flags that were changed there meanwhile."""
    twin.move(twin.one(1), "Archive")
    twin.store.mailbox("INBOX").set_flags([1], add={"\\Flagged"})
    with pytest.MonkeyPatch.context() as patch:
        refuse_moves(patch)
        report = await twin.sync()
        assert "not now" in str(report.mailboxes["INBOX"].error)
    await then_it_moves(twin)
    assert [shown.flags for shown in twin.there("Archive")] == [("\\Flagged",)]


@pytest.mark.parametrize("is_deleted", [False, True], ids=["moved", "deleted"])
async def test_a_file_comes_back_when_the_server_refused_what_became_of_it(twin: Twin, is_deleted: bool) -> None:
    """Flags changed there were to go with it: they are not told again."""
    path, aside = twin.one(1), twin.root / "aside"
    moved = path.rename(aside) if is_deleted else twin.move(path, "Archive")
    twin.store.mailbox("INBOX").set_flags([1], add={"\\Flagged"})
    with pytest.MonkeyPatch.context() as patch:
        refuse_moves(patch)
        report = await twin.sync()
        assert "not now" in str(report.mailboxes["INBOX"].error)
        assert twin.remote.journal == []
    moved.rename(path)
    await twin.synced()
    assert twin.remote.journal == []
    twin.assert_equal()
    await twin.quiet()


async def test_a_reader_moves_it_after_its_new_mailbox_was_found_unchanged(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin.deliver(7, "Archive")
    await twin.synced()
    _settle(twin)
    await twin.quiet()
    twin.deliver(3)
    original = visits.survey

    def survey(*args: Any) -> Any:
        found = original(*args)
        twin.move(twin.one(1), "Archive")
        monkeypatch.undo()
        return found

    monkeypatch.setattr(visits, "survey", survey)
    await twin.synced()
    await then_it_moves(twin)


async def test_a_reader_moves_it_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new mailbox is looked at first, the old one when the file has gone."""
    twin = Twin(tmp_path)
    twin.configure(remote_delete="expunge", connections=1)
    for n, mailbox in enumerate(("Archive", "Other"), start=1):
        twin.store.create(mailbox)
        twin.deliver(n, mailbox)
    await twin.synced()
    twin.deliver(3, "Archive")
    twin.deliver(4, "Other")
    original = visits.look_at

    def look_at(state: Any, row: Any, maildir: Any, **options: Any) -> Any:
        look = original(state, row, maildir, **options)
        if row.name == "Archive" and twin.find(2, "Other"):
            twin.move(twin.one(2, "Other"), "Archive")
        return look

    monkeypatch.setattr(visits, "look_at", look_at)
    await twin.synced()
    assert twin.remote.journal == []
    await twin.synced()
    assert twin.remote.journal == ["move Other 1 Archive"]
    twin.assert_equal()


async def test_a_file_comes_back_while_others_are_looked_at(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory was away for a moment: nothing is gone."""
    path = twin.one(1)
    aside = path.rename(twin.root / "aside")
    original = elsewhere.survey

    def survey(*args: Any) -> Any:
        aside.rename(path)
        return original(*args)

    monkeypatch.setattr(elsewhere, "survey", survey)
    await twin.synced()
    monkeypatch.undo()
    assert twin.remote.journal == []
    await twin.synced()
    twin.assert_equal()


async def test_where_it_may_be_cannot_be_looked_at(twin: Twin) -> None:
    """An unreadable directory in which something changed: nothing is deleted until it can be read."""
    twin.move(twin.one(1), "Archive")
    twin.deliver(3)
    with pytest.MonkeyPatch.context() as patch:

        def differences(*_: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        patch.setattr(elsewhere, "differences", differences)
        report = await twin.sync(only=["INBOX"])
        assert "stay on the server" in str(report.mailboxes["INBOX"].error)
        assert len(twin.files()) == 2
    await then_it_moves(twin)


async def test_where_it_may_be_became_a_symlink(twin: Twin, tmp_path: Path) -> None:
    """The mailbox is refused, and what was moved to it is there all the same."""
    away = tmp_path / "disk"
    twin.where("Archive").rename(away)
    twin.where("Archive").symlink_to(away)
    twin.move(twin.one(1), "Archive")
    report = await twin.sync()
    assert str(report.mailboxes["INBOX"].error).startswith(
        f"1 messages that are gone here stay on the server, for they may have moved: mailbox Archive: {twin.root}/"
    )
    twin.where("Archive").unlink()
    away.rename(twin.where("Archive"))
    await then_it_moves(twin)


async def test_flags_changed_here_wait_for_where_the_server_moved_it(twin: Twin) -> None:
    twin.store.move("INBOX", [1], "Archive")
    twin.relabel(twin.one(1), "F")
    with pytest.MonkeyPatch.context() as patch:
        refuse_scans(patch, "Archive")
        await twin.sync()
        assert twin.remote.journal == []
    await twin.synced()
    twin.assert_equal()
    assert [shown.flags for shown in twin.there("Archive")] == [("\\Flagged",)]


@pytest.mark.parametrize(("mailbox", "nth"), [("Archive", 2), ("INBOX", 2)])
async def test_what_the_server_moved_is_not_fetched_anew_when_a_mailbox_is_done_again(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, mailbox: str, nth: int
) -> None:
    """Only the attempt that was lost knew where its file was; that has flags that the server has not."""
    twin.store.move("INBOX", [1], "Archive")
    twin.relabel(twin.one(1), "F")
    twin.deliver(3)
    twin.configure(connections=1)
    visits_there = lose_visit(monkeypatch, mailbox, nth)
    await twin.synced()
    monkeypatch.undo()
    assert len(visits_there) >= nth
    assert [name for name, _ in twin.remote.fetched] == ["INBOX"]
    await twin.synced()
    twin.assert_equal()
    assert [shown.flags for shown in twin.there("Archive")] == [("\\Flagged",)]


# -- the failure of one mailbox, after it was looked at or before


def _states(report: AccountReport) -> dict[str, str]:
    return {name: mailbox.state for name, mailbox in report.mailboxes.items()}


@pytest.mark.parametrize("failure", [Rejected("no"), ConnectionLost("cut")])
async def test_a_mailbox_that_does_not_tell_facts_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    twin = Twin(tmp_path)
    for name in ("Archive", "Other", "Trash"):
        twin.store.create(name)
    for n in range(1, 5):
        twin.deliver(n)
    await twin.synced()
    twin.store.move("INBOX", [1], "Archive")
    twin.deliver(9, "Other")
    twin.write(20, "Trash")
    original = MemoryBox.facts

    async def facts(self: MemoryBox, uids: Sequence[Any]) -> Any:
        if self.mailbox.name == "Archive":
            raise failure
        return await original(self, uids)

    monkeypatch.setattr(MemoryBox, "facts", facts)
    report = await twin.sync()
    assert report.error is None
    assert _states(report) == {"INBOX": "ok", "Archive": "error", "Other": "ok", "Trash": "ok"}
    assert twin.here("Other") == twin.there("Other")
    assert twin.here("Trash") == twin.there("Trash")
    monkeypatch.undo()
    await twin.synced()
    twin.assert_equal()


async def test_nothing_is_moved_to_a_mailbox_that_does_not_tell_facts(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have the message already, copied there by a pass that was cut off."""
    twin.move(twin.one(1), "Archive")
    twin.copy_cut_off(twin.uid(1), "Archive")

    async def facts(self: MemoryBox, uids: Sequence[Any]) -> Any:
        raise Rejected("no")

    monkeypatch.setattr(MemoryBox, "facts", facts)
    report = await twin.sync()
    monkeypatch.undo()
    assert report.mailboxes["Archive"].state == "error"
    assert twin.remote.journal == []
    await twin.synced()
    assert [step.split()[0] for step in twin.remote.journal] == ["expunge"]
    twin.assert_equal()


async def test_a_plan_that_fails_stops_no_other(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    twin.deliver(3)
    twin.deliver(4, "Archive")
    original = whole.MailboxPass.plan

    async def plan(self: whole.MailboxPass) -> None:
        if self.name == "Archive":
            raise Rejected("cannot be planned")
        await original(self)

    monkeypatch.setattr(whole.MailboxPass, "plan", plan)
    report = await twin.sync()
    assert (_states(report)["INBOX"], _states(report)["Archive"]) == ("ok", "error")
    assert len(twin.files()) == 3


async def test_a_file_that_cannot_be_read_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message moved on the server: it comes anew."""
    from maild.local import maildir

    twin = Twin(tmp_path)
    for name in ("Archive", "Other"):
        twin.store.create(name)
    twin.deliver(1)
    twin.deliver(2)
    await twin.synced()
    bad = twin.one(1).name
    twin.store.move("INBOX", [1], "Archive")
    twin.deliver(9, "Other")
    original = maildir.open_message

    def open_message(directory: Any, entry: Any) -> Any:
        if entry.name == bad:
            raise OSError(5, "Input/output error")
        return original(directory, entry)

    monkeypatch.setattr(maildir, "open_message", open_message)
    await twin.synced()
    twin.assert_equal()


async def test_a_mailbox_whose_keywords_cannot_be_read_stops_no_other(twin: Twin) -> None:
    twin.move(twin.one(1), "Archive")
    twin.one(2).unlink()
    twin.deliver(3)
    (twin.where("Archive") / "dovecot-keywords").mkdir()
    report = await twin.sync()
    assert report.error is None
    assert (_states(report)["INBOX"], _states(report)["Archive"]) == ("ok", "error")
    assert "Is a directory" in str(report.mailboxes["Archive"].error)
    assert [m.uid for m in twin.store.mailbox("INBOX")] == [1, 3], "what is nowhere here is deleted, what moved is not"
    shutil.rmtree(twin.where("Archive") / "dovecot-keywords")
    await twin.synced()
    assert twin.remote.journal == MOVED
    await twin.synced()
    twin.assert_equal()


# -- descriptors and directories


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_descriptor_stays_open_however_a_pass_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_fsync: None
) -> None:
    """Mailboxes that were brought together wait for each other with their directories open."""
    twin = Twin(tmp_path)
    twin.configure(connections=1)
    for n in range(8):
        twin.store.create(f"M{n}")
        twin.deliver(n, f"M{n}")
    twin.deliver(50)
    await twin.synced()
    original = MemoryBox.fetch

    def fetch(self: MemoryBox, *args: Any) -> Any:
        if self.mailbox.name in {"M5", "M6", "M7"}:
            raise ConnectionLost("cut")
        return original(self, *args)

    monkeypatch.setattr(MemoryBox, "fetch", fetch)
    for n in range(8):
        twin.deliver(100 + n, f"M{n}")
    twin.move(twin.one(50), "M7")
    before = _descriptors()
    report = await twin.sync()
    assert "cut" in str(report.error)
    assert _descriptors() == before


async def test_a_directory_is_read_again_only_when_it_changed(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    original = visits.look_at

    def look_at(state: Any, row: Any, maildir: Any, **options: Any) -> Any:
        looked.append(row.name)
        return original(state, row, maildir, **options)

    twin.deliver(3)
    await twin.synced()
    _settle(twin)
    monkeypatch.setattr(visits, "look_at", look_at)
    await twin.quiet()
    assert "INBOX" in looked
    looked.clear()
    await twin.quiet()
    assert looked == []


def _settle(twin: Twin) -> None:
    """Make all directories older than what the clock of the file system tells apart, and their stamps as they are."""
    state = State.open(twin.state_dir / "work.sqlite")
    try:
        for number, row in enumerate(state.mailboxes().values()):
            for subdir in ("cur", "new"):
                os.utime(twin.where(row.directory) / subdir, (1_700_000_000 + number, 1_700_000_000 + number))
            state.set_stamp(row.id, None)
    finally:
        state.close()
