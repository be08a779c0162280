"""The deletion guard in both directions (contract 5), which way deletions travel, and what a server does not allow."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from pathlib import Path

import pytest

from maild.core.model import Appended, Cursor, Flags, MailboxName, Outgoing, Uid
from maild.engine import push
from maild.engine.account import CHANGES
from maild.engine.sync import MailboxPass
from maild.local.marker import MARKER, check_root, next_rise
from maild.local.overview import read_overview
from maild.local.state import State
from maild.testing.memory import MemoryBox, MemoryRemote
from tests.engine.test_twoway import SCENARIOS, Step, start
from tests.engine.twin import START_S, Shown, Twin, body

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_threads")]

SIDES = ["here", "there"]


@pytest.fixture
def twin(quick_path: Path) -> Twin:
    return Twin(quick_path)


async def filled(twin: Twin, count: int, mailbox: str = "INBOX") -> None:
    """Both sides have messages 1 to `count`."""
    if twin.store.find(mailbox) is None:
        twin.store.create(mailbox)
    for n in range(1, count + 1):
        twin.deliver(n, mailbox)
    await twin.synced()


def delete(twin: Twin, side: str, numbers: range, mailbox: str = "INBOX") -> None:
    for n in numbers:
        if side == "here":
            twin.one(n, mailbox).unlink()
        else:
            twin.store.expunge(mailbox, twin.uid(n, mailbox))


def kept(twin: Twin, side: str, mailbox: str = "INBOX") -> list[Shown]:
    """What the side has on which nobody deleted."""
    return twin.there(mailbox) if side == "here" else twin.here(mailbox)


def no_deletion(twin: Twin) -> bool:
    return not any(change.startswith(("expunge", "move", "delete")) for change in twin.remote.journal)


# -- the thresholds


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("messages", "gone", "is_refused"),
    [(9, 9, False), (10, 10, True), (10, 9, False), (40, 20, False), (39, 20, True), (30, 19, False), (60, 31, True)],
)
async def test_where_the_guard_begins(twin: Twin, side: str, messages: int, gone: int, is_refused: bool) -> None:
    await filled(twin, messages)
    delete(twin, side, range(1, gone + 1))
    report = await twin.sync()
    inbox = report.mailboxes["INBOX"]
    assert (inbox.state, inbox.refused) == (("refused", gone) if is_refused else ("ok", 0))
    assert len(kept(twin, side)) == (messages if is_refused else messages - gone)
    assert no_deletion(twin) or not is_refused
    if is_refused:
        assert f"{gone} of {messages} messages are gone" in str(inbox.error)
        assert "maild approve work/INBOX" in str(inbox.error)
    else:
        twin.assert_equal()
        await twin.quiet()


@pytest.mark.parametrize("side", SIDES)
async def test_a_higher_limit_lets_the_plan_pass(twin: Twin, side: str) -> None:
    await filled(twin, 40)
    delete(twin, side, range(1, 31))
    assert not (await twin.sync()).ok
    twin.limit_deletions(90)
    await twin.synced()
    twin.assert_equal()
    assert len(twin.here("INBOX")) == 10
    await twin.quiet()


@pytest.mark.parametrize("side", SIDES)
async def test_everything_else_goes_on(twin: Twin, side: str) -> None:
    """New messages and flags both ways, and other mailboxes; and what came in does not release the plan."""
    twin.store.create("Archive")
    twin.deliver(90, "Archive")
    await filled(twin, 30)
    delete(twin, side, range(1, 26))
    twin.deliver(50)
    twin.write(51)
    twin.relabel(twin.one(30), "F")
    twin.store.set_flags("INBOX", twin.uid(29), add=["\\Seen"])
    delete(twin, side, range(90, 91), "Archive")
    for _ in range(3):
        report = await twin.sync()
        assert report.mailboxes["INBOX"].refused == 25
        assert report.mailboxes["INBOX"].state == "refused"
    assert len(kept(twin, side)) == 32
    for n in (29, 30, 50, 51):
        assert len(twin.find(n)) == 1
        assert twin.uid(n)
    assert twin.one(29).name.endswith(":2,S")
    assert twin.store.mailbox("INBOX").message(twin.uid(30)).flags == {"\\Flagged"}
    assert kept(twin, side, "Archive") == []


# -- approved


@pytest.mark.parametrize("side", SIDES)
async def test_approving_releases_that_plan_once(twin: Twin, side: str) -> None:
    await filled(twin, 12)
    assert not twin.approve("INBOX"), "there is nothing to approve"
    delete(twin, side, range(1, 13))
    assert not (await twin.sync()).ok
    assert twin.approve("INBOX")
    await twin.synced()
    assert kept(twin, side) == []
    twin.assert_equal()
    await twin.quiet()
    for n in range(20, 32):
        twin.deliver(n)
    await twin.synced()
    delete(twin, side, range(20, 32))
    report = await twin.sync()
    assert report.mailboxes["INBOX"].refused == 12, "the next one is another"


@pytest.mark.parametrize("side", SIDES)
async def test_a_plan_that_grew_is_refused_again(twin: Twin, side: str) -> None:
    await filled(twin, 40)
    delete(twin, side, range(1, 31))
    assert not (await twin.sync()).ok
    assert twin.approve("INBOX")
    delete(twin, side, range(31, 33))
    report = await twin.sync()
    assert report.mailboxes["INBOX"].refused == 32
    assert len(kept(twin, side)) == 40
    assert twin.approve("INBOX")
    await twin.synced()
    assert len(kept(twin, side)) == 8
    twin.assert_equal()


async def test_a_plan_that_shrank_stays_approved(twin: Twin) -> None:
    await filled(twin, 40)
    lost = {n: twin.one(n).read_bytes() for n in (1, 2)}
    delete(twin, "here", range(1, 31))
    assert not (await twin.sync()).ok
    assert twin.approve("INBOX")
    for n, raw in lost.items():
        twin.write(n, raw=raw)
    for _ in range(2):
        await twin.synced()
    twin.assert_equal()
    assert len(twin.here("INBOX")) == 12


# -- whole mailboxes and the Maildir itself


@pytest.mark.parametrize("count", [1, 12])
async def test_a_directory_that_is_gone(twin: Twin, count: int) -> None:
    await filled(twin, count, "Archive")
    twin.deliver(90)
    await twin.synced()
    shutil.rmtree(twin.where("Archive"))
    twin.deliver(91)
    for _ in range(2):
        report = await twin.sync()
        assert (report.mailboxes["Archive"].state, report.mailboxes["Archive"].refused) == ("refused", count)
        assert str(twin.where("Archive")) in str(report.mailboxes["Archive"].error)
        assert len(twin.there("Archive")) == count
        assert no_deletion(twin)
        assert not twin.where("Archive").exists()
        assert len(twin.find(91)) == 1
    assert twin.approve("Archive")
    await twin.synced()
    assert "Archive" not in twin.store.names, "the messages and the mailbox"
    twin.assert_equal()
    await twin.quiet()


async def test_a_directory_that_comes_back(twin: Twin) -> None:
    await filled(twin, 3, "Archive")
    twin.where("Archive").rename(twin.directory / "elsewhere")
    assert not (await twin.sync()).ok
    assert refused_there(twin) == {"Archive": 3}
    (twin.directory / "elsewhere").rename(twin.where("Archive"))
    await twin.synced()
    assert refused_there(twin) == {}
    twin.assert_equal()
    await twin.quiet()


async def test_a_mailbox_that_was_left_out_and_removed_here_comes_anew(twin: Twin) -> None:
    """Its absence is no deletion: `approve` would have deleted it on the server."""
    await filled(twin, 12, "Archive")
    twin.configure(mailboxes=("*", "!Archive"))
    await twin.synced()
    shutil.rmtree(twin.where("Archive"))
    await twin.synced()
    assert not twin.where("Archive").exists()
    twin.configure(mailboxes=("*",))
    await twin.synced()
    assert len(twin.files("Archive")) == len(twin.there("Archive")) == 12
    assert no_deletion(twin)
    await twin.quiet()


def refused_there(twin: Twin) -> dict[str, int]:
    """How many messages on the server each mailbox's refused plan would delete, as `maild status` tells it."""
    found = read_overview(twin.state_dir / "work.sqlite").mailboxes
    return {mailbox.name: mailbox.refused.there for mailbox in found if mailbox.refused is not None}


def unmount(root: Path) -> None:
    shutil.rmtree(root)


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def dangle(root: Path) -> None:
    shutil.rmtree(root)
    root.symlink_to(root.with_name("not-mounted"))


def unmark(root: Path) -> None:
    (root / ".maild").unlink()


@pytest.mark.parametrize("loss", [unmount, empty, dangle, unmark])
async def test_a_maildir_that_is_gone_stops_the_account(twin: Twin, loss: Callable[[Path], None]) -> None:
    await filled(twin, 3)
    loss(twin.root)
    for _ in range(2):
        report = await twin.sync()
        assert str(twin.root) in str(report.error)
        assert len(twin.there("INBOX")) == 3
        assert twin.remote.journal == []
        assert refused_there(twin) == {"INBOX": 3}


async def test_a_maildir_that_comes_back(twin: Twin) -> None:
    await filled(twin, 3)
    await filled(twin, 12, "Archive")
    twin.root.rename(twin.directory / "elsewhere")
    assert not (await twin.sync()).ok
    assert refused_there(twin) == {"INBOX": 3, "Archive": 12}
    (twin.directory / "elsewhere").rename(twin.root)
    await twin.synced()
    assert refused_there(twin) == {}
    twin.assert_equal()
    await twin.quiet()


async def test_a_maildir_that_is_gone_for_good(twin: Twin) -> None:
    """Approved for one mailbox only: the others stay."""
    await filled(twin, 3)
    await filled(twin, 12, "Archive")
    shutil.rmtree(twin.root)
    assert not (await twin.sync()).ok
    assert twin.approve("Archive")
    report = await twin.sync()
    assert report.error is None
    assert report.mailboxes["INBOX"].state == "refused"
    assert "Archive" not in twin.store.names
    assert len(twin.there("INBOX")) == 3
    assert refused_there(twin) == {"INBOX": 3}
    assert twin.approve("INBOX")
    await twin.synced()
    assert twin.there("INBOX") == []
    twin.assert_equal()
    await twin.quiet()


async def test_many_mailboxes_gone_from_the_server_at_once(twin: Twin) -> None:
    names = ["A", "B", "C", "D"]
    for name in names:
        await filled(twin, 2, name)
    twin.deliver(90)
    for name in names[:3]:
        twin.store.delete(name)
    for _ in range(2):
        report = await twin.sync()
        assert [report.mailboxes[name].state for name in names[:3]] == ["refused"] * 3
        assert all(len(twin.here(name)) == 2 for name in names)
        assert set(twin.store.names) == {"INBOX", "D"}, "nor are they made anew"
        assert len(twin.find(90)) == 1
    for name in names[:3]:
        assert twin.approve(name)
    await twin.synced()
    twin.assert_equal()
    await twin.quiet()


async def test_an_emptied_server(twin: Twin) -> None:
    """Every mailbox is there, and nothing in it."""
    for name in ("INBOX", "Archive"):
        await filled(twin, 10, name)
    for name in ("INBOX", "Archive"):
        twin.store.expunge(name, twin.store.mailbox(name).uids)
    for _ in range(2):
        report = await twin.sync()
        assert {m.state for m in report.mailboxes.values()} == {"refused"}
        assert [len(twin.here(name)) for name in ("INBOX", "Archive")] == [10, 10]
        assert twin.remote.journal == []


async def test_a_new_maildir_deletes_no_empty_mailbox_on_the_server(twin: Twin) -> None:
    """Nobody could approve that: there is nothing in it to be refused."""
    await filled(twin, 3)
    twin.store.create("Empty")
    await twin.synced()
    shutil.rmtree(twin.root)
    await twin.sync()
    assert twin.approve("INBOX")
    await twin.synced()
    assert [change.split()[0] for change in twin.remote.journal] == ["expunge"]
    assert twin.store.find("Empty") is not None
    twin.assert_equal()
    await twin.quiet()


async def test_another_plan_that_was_approved_begins_no_new_maildir(twin: Twin) -> None:
    """The disk goes away between the approval and the pass."""
    await filled(twin, 30)
    twin.store.create("Empty")
    await twin.synced()
    delete(twin, "here", range(1, 26))
    await twin.sync()
    assert twin.approve("INBOX")
    away = twin.root.rename(twin.directory / "away")
    report = await twin.sync()
    assert "is gone or lost its marker" in str(report.error)
    assert twin.remote.journal == []
    assert not twin.root.exists()
    away.rename(twin.root)
    await twin.sync()
    assert no_deletion(twin)
    assert twin.approve("INBOX")
    await twin.synced()
    twin.assert_equal()
    assert len(twin.there("INBOX")) == 5


@pytest.mark.parametrize("way", ["changes", "full"])
async def test_the_disk_goes_away_during_a_pass(quick_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """At any step; an empty directory is left, in which no Maildir is begun. What was pulled meanwhile is not lost."""
    step, at, is_reached = MemoryRemote.step, 0, True
    while is_reached:
        at, is_reached = at + 1, False
        (quick_path / str(at)).mkdir()
        twin = Twin(quick_path / str(at), settings={"way": way})
        twin.configure(remote_delete="expunge", connections=1)
        await filled(twin, 3)
        await filled(twin, 4, "Work")
        await filled(twin, 0, "Empty")
        await filled(twin, 0, "New")
        for mailbox in ("INBOX", "Work", "New"):
            twin.deliver(20, mailbox)

        def unmount(self: MemoryRemote, change: str = "", twin: Twin = twin, at: int = at) -> None:
            nonlocal is_reached
            step(self, change)
            if self.steps == at and not is_reached:
                is_reached = True
                twin.root.rename(twin.directory / "away")
                twin.root.mkdir()

        with monkeypatch.context() as patched:
            patched.setattr(MemoryRemote, "step", unmount)
            await twin.sync()
        if not is_reached:
            break
        for _ in range(3):
            report = await twin.sync()
            assert not report.ok
            assert twin.remote.journal == []
        assert list(twin.root.iterdir()) == []
        twin.root.rmdir()
        (twin.directory / "away").rename(twin.root)
        await twin.synced()
        await twin.synced()
        twin.assert_equal()
        assert {name: len(twin.there(name)) for name in twin.store.names} == {
            "INBOX": 4,
            "Work": 5,
            "Empty": 0,
            "New": 1,
        }
        await twin.quiet()
    assert at > 5


async def test_an_older_maildir_deletes_nothing(twin: Twin) -> None:
    """Restored from a backup: what it lacks comes again, what it has too much goes to the server."""
    await filled(twin, 12)
    shutil.copytree(twin.root, twin.directory / "backup", copy_function=shutil.copy2)
    for n in range(20, 25):
        twin.deliver(n)
    delete(twin, "there", range(1, 3))
    await twin.synced()
    shutil.rmtree(twin.root)
    (twin.directory / "backup").rename(twin.root)
    report = await twin.synced()
    assert (report.total("deleted"), report.total("deleted_there")) == (0, 0)
    await twin.synced()
    twin.assert_equal()
    assert len(twin.here("INBOX")) == 17
    await twin.quiet()


@pytest.mark.parametrize("is_newer", [False, True])
async def test_a_maildir_from_before_the_state_was_restored_deletes_nothing(twin: Twin, is_newer: bool) -> None:
    """The state, and with it the Maildir where `is_newer`, is restored; later another Maildir of that past."""

    def put_back(name: str, path: Path) -> None:
        shutil.rmtree(path)
        shutil.copytree(twin.directory / name, path, copy_function=shutil.copy2)

    await filled(twin, 2)
    shutil.copytree(twin.state_dir, twin.directory / "state of monday")
    shutil.copytree(twin.root, twin.directory / "mail of monday", copy_function=shutil.copy2)
    for n in range(20, 24):
        twin.deliver(n)
        await twin.synced()
    shutil.copytree(twin.root, twin.directory / "mail of tuesday", copy_function=shutil.copy2)
    put_back("state of monday", twin.state_dir)
    if is_newer:
        put_back("mail of monday", twin.root)
    twin.deliver(30)
    await twin.synced()
    put_back("mail of tuesday", twin.root)
    await twin.synced()
    assert twin.remote.journal == []
    twin.assert_equal()
    assert len(twin.here("INBOX")) == 7
    await twin.quiet()


async def test_a_generation_that_only_the_marker_has_is_not_given_again(twin: Twin) -> None:
    """A pass was cut off between the two: a copy of that Maildir is older than what the next pass makes of it."""
    await filled(twin, 2)
    state = State.open(twin.state_dir / "work.sqlite")
    try:
        next_rise(state).mark(twin.root)
        cut_off = (twin.root / MARKER).read_bytes()
        check_root(twin.root, state)
        next_rise(state).mark(twin.root)
    finally:
        state.close()
    assert (twin.root / MARKER).read_bytes() != cut_off


# -- which way deletions travel


@pytest.mark.parametrize("way", ["both", "to_local", "to_remote", "none"])
@pytest.mark.parametrize("side", SIDES)
async def test_which_way_deletions_travel(twin: Twin, way: str, side: str) -> None:
    twin.configure(deletions=way)
    await filled(twin, 3)
    delete(twin, side, range(2, 3))
    await twin.synced()
    travels = way in ("both", "to_remote" if side == "here" else "to_local")
    assert len(kept(twin, side)) == (2 if travels else 3)
    if travels:
        twin.assert_equal()
    for _ in range(2):
        await twin.quiet()
    assert len(twin.here("INBOX")) + len(twin.there("INBOX")) == (4 if travels else 5)


@pytest.mark.parametrize("side", SIDES)
async def test_what_is_kept_on_one_side_is_no_concern_of_the_other(twin: Twin, side: str) -> None:
    twin.configure(deletions="none")
    await filled(twin, 3)
    delete(twin, side, range(2, 3))
    await twin.synced()
    if side == "here":
        twin.store.set_flags("INBOX", twin.uid(2), add=["\\Flagged"])
    else:
        twin.relabel(twin.one(2), "F")
    for _ in range(2):
        await twin.quiet()
    assert ("\\Flagged",) in [shown.flags for shown in kept(twin, side)]
    delete(twin, "there" if side == "here" else "here", range(2, 3))
    await twin.synced()
    twin.assert_equal()
    await twin.quiet()


@pytest.mark.parametrize("event", ["renumber", "older Maildir"])
async def test_what_is_kept_on_one_side_does_not_come_back(twin: Twin, event: str) -> None:
    """Whatever makes the pairs anew, a deletion that did not travel does not come undone, nor travel after all."""
    twin.configure(deletions="none")
    await filled(twin, 4)
    delete(twin, "here", range(2, 3))
    delete(twin, "there", range(3, 4))
    await twin.synced()
    for round_ in range(2):
        if event == "renumber":
            twin.store.bump_uidvalidity("INBOX")
        else:
            (twin.root / ".maild").write_text(
                (twin.root / ".maild").read_text().replace('"generation": ', '"generation": -')
            )
        report = await twin.synced()
        assert (report.total("pushed"), report.total("pulled"), report.total("deleted")) == (0, 0, 0)
        for _ in range(2):
            await twin.quiet()
            assert [len(twin.find(n)) for n in range(1, 5)] == [1, 0, 1, 1]
            assert sorted(b"Nr. 3" in shown.raw for shown in twin.there("INBOX")) == [False] * 3
        twin.store.set_flags("INBOX", twin.uid(2), add=["\\Flagged"] if round_ else ["\\Seen"])
        await twin.quiet()
    twin.one(3).unlink()
    twin.store.expunge("INBOX", twin.uid(2))
    await twin.synced()
    twin.assert_equal()
    await twin.quiet()


# -- what the server does not allow


async def test_a_mailbox_that_may_only_be_read(twin: Twin) -> None:
    await filled(twin, 3)
    twin.store.mailbox("INBOX").read_only = True
    before = twin.there("INBOX")
    twin.relabel(twin.one(1), "F")
    twin.one(2).unlink()
    twin.write(4)
    await twin.synced()
    assert twin.remote.journal == []
    assert twin.there("INBOX") == before
    twin.deliver(5)
    twin.store.set_flags("INBOX", twin.uid(1), add=["\\Seen"])
    twin.store.expunge("INBOX", twin.uid(3))
    await twin.synced()
    assert twin.remote.journal == []
    assert [len(twin.find(n)) for n in range(1, 6)] == [1, 0, 0, 1, 1]
    assert twin.one(1).name.endswith(":2,FS")
    await twin.quiet()


async def test_a_keyword_that_the_server_does_not_keep_stays_here(twin: Twin) -> None:
    await filled(twin, 2)
    twin.store.mailbox("INBOX").permanent_flags = frozenset({"\\Seen", "\\Flagged"})
    (twin.where("INBOX") / "dovecot-keywords").write_text("0 $Mine\n")
    twin.relabel(twin.one(1), "FRa")
    await twin.synced()
    assert twin.store.mailbox("INBOX").message(1).flags == {"\\Flagged"}
    assert twin.one(1).name.endswith(":2,FRa")
    await twin.quiet()
    twin.store.set_flags("INBOX", 1, add=["\\Seen"])
    await twin.synced()
    assert twin.one(1).name.endswith(":2,FRSa")
    await twin.quiet()


async def test_a_message_that_the_server_refuses(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held back with the reason, the others are sent; tried again after 1, 2, 4 … minutes, or when asked."""
    await filled(twin, 1)
    for n in (2, 3, 4):
        twin.write(n)
    real = MemoryBox.append
    asked: list[int] = []

    async def append(box: MemoryBox, messages: Iterator[Outgoing]) -> AsyncGenerator[Appended]:
        for message in messages:
            if b"Subject: Nr. 3\r\n" in b"".join(message.pieces()):
                asked.append(3)
                yield Appended(message.key, None, "it has a virus")
            else:
                async for answer in real(box, iter([message])):
                    yield answer

    with monkeypatch.context() as patch:
        patch.setattr(MemoryBox, "append", append)
        for tries, minutes in ((1, 1), (2, 2), (3, 4)):
            report = await twin.synced()
            assert report.total("held_back") == 1
            assert len(asked) == tries
            assert _reasons(twin) == ["it has a virus"]
            _let_pass(twin, minutes * 60 - 5)
            for n in range(2):
                twin.deliver(100 + 10 * tries + n)
                assert (await twin.synced()).total("held_back") == 1
                assert (await twin.synced()).total("held_back") == 1
            assert len(asked) == tries
            _let_pass(twin, 5)
        _let_pass(twin, -240)
        assert (await twin.sync(only=["INBOX"])).total("held_back") == 1
        assert len(asked) == 4, "asked for"
        foretold = await twin.sync(dry_run=True)
        assert (foretold.total("pushed"), foretold.total("held_back")) == (0, 1)
    twin.write(5)
    report = await twin.synced()
    assert (report.total("pushed"), report.total("held_back")) == (1, 1), "another one does not wait"
    _let_pass(twin, 480)
    report = await twin.synced()
    assert (report.total("pushed"), report.total("held_back")) == (1, 0)
    assert _reasons(twin) == []
    twin.assert_equal()
    await twin.quiet()


async def test_a_message_held_back_that_is_removed(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is left, and nothing was looked at in vain meanwhile."""
    await filled(twin, 1)
    twin.write(2)

    async def append(_: MemoryBox, messages: Iterator[Outgoing]) -> AsyncGenerator[Appended]:
        for message in messages:
            yield Appended(message.key, None, "it has a virus")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryBox, "append", append)
        await twin.synced()
    for name in ("new", "cur"):
        os.utime(twin.where("INBOX") / name, (START_S, START_S))  # else it may still change within the clock's tick
    await twin.synced()
    report = await twin.synced()
    assert (report.unchanged, report.total("held_back")) == (1, 1)
    twin.one(2).unlink()
    assert (await twin.synced()).total("held_back") == 0
    assert _reasons(twin) == []
    await twin.quiet()


async def test_a_server_that_is_full(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few are tried, the others wait with them; all come when there is room."""
    await filled(twin, 1)
    for n in range(2, 12):
        twin.write(n)
    tried: list[int] = []

    async def append(_: MemoryBox, messages: Iterator[Outgoing]) -> AsyncGenerator[Appended]:
        for message in messages:
            tried.append(message.size_octets)
            yield Appended(message.key, None, "quota exceeded", is_full=True)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryBox, "append", append)
        patch.setattr(push, "SOME", 3)
        assert (await twin.synced()).total("held_back") == 10
        assert len(tried) == 3
        assert (await twin.synced()).total("held_back") == 10
        assert len(tried) == 3
    _let_pass(twin, 60)
    report = await twin.synced()
    assert (report.total("pushed"), report.total("held_back")) == (10, 0)
    twin.assert_equal()
    await twin.quiet()


def _let_pass(twin: Twin, seconds: int) -> None:
    """So much later, as far as messages that did not travel are concerned."""
    with sqlite3.connect(twin.state_dir / "work.sqlite") as database:
        database.execute("UPDATE unsent SET last_s = last_s - ?", (seconds,))
    database.close()


def _reasons(twin: Twin) -> list[str]:
    state = State.open(twin.state_dir / "work.sqlite")
    try:
        row = next(row for name, row in state.mailboxes().items() if name == "INBOX")
        return [message.reason for message in state.unsent(row.id).values()]
    finally:
        state.close()


# -- where deleted messages go


@pytest.mark.parametrize("way", ["trash", "expunge"])
@pytest.mark.parametrize("has_trash", [True, False])
async def test_remote_delete(twin: Twin, way: str, has_trash: bool) -> None:
    if has_trash:
        twin.store.create("Bin", "\\Trash")
    twin.configure(remote_delete=way)
    await filled(twin, 2)
    twin.one(1).unlink()
    report = await twin.synced()
    assert report.total("deleted_there") == 1
    goes_to_trash = has_trash and way == "trash"
    assert [change.split()[0] for change in twin.remote.journal] == ["move" if goes_to_trash else "expunge"]
    await twin.synced()
    assert len(twin.there("INBOX")) == 1
    assert len(twin.there("Bin")) == goes_to_trash
    twin.assert_equal()
    await twin.quiet()


async def test_a_message_deleted_in_the_trash_is_gone(twin: Twin) -> None:
    twin.store.create("Bin", "\\Trash")
    await filled(twin, 2, "Bin")
    twin.one(1, "Bin").unlink()
    await twin.synced()
    assert [change.split()[0] for change in twin.remote.journal] == ["expunge"]
    twin.assert_equal()
    assert [shown.raw for shown in twin.there("Bin")] == [body(2)]
    await twin.quiet()


# -- mailboxes


async def test_mail_that_comes_to_a_mailbox_just_before_it_is_deleted(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin.store.create("Old")
    await filled(twin, 2, "Old")
    for path in twin.files("Old"):
        path.unlink()
    await twin.synced()
    shutil.rmtree(twin.where("Old"))
    original = MemoryRemote.delete

    async def delete(remote: MemoryRemote, mailbox: MailboxName, seen: Cursor) -> bool:
        twin.deliver(9, "Old")
        return await original(remote, mailbox, seen)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryRemote, "delete", delete)
        await twin.synced()
    assert "Old" in twin.store.names
    await twin.synced()
    assert [shown.raw for shown in twin.here("Old")] == [body(9)]
    twin.assert_equal()
    await twin.quiet()


# -- equal messages


async def test_equal_messages_that_move_on_the_server(twin: Twin) -> None:
    twin.store.create("Archive")
    twin.deliver(9, "Archive")
    for _ in range(2):
        twin.deliver(1)
    await twin.synced()
    twin.store.move("INBOX", [1, 2], "Archive")
    await twin.synced()
    twin.assert_equal()
    assert twin.remote.fetched == []
    await twin.quiet()


# -- a look ahead


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda step: step.__name__)
async def test_a_dry_run_changes_nothing_and_foretells_the_pass(twin: Twin, scenario: Step) -> None:
    start(twin)
    await twin.synced()
    scenario(twin)
    files, mail = twin.snapshot(), {name: twin.there(name) for name in twin.store.names}
    foretold = await twin.sync(dry_run=True)
    assert twin.remote.journal == []
    assert twin.snapshot() == files
    assert {name: twin.there(name) for name in twin.store.names} == mail
    assert foretold.ok, foretold
    report = await twin.synced()
    assert {name: foretold.total(name) for name in CHANGES} == {name: report.total(name) for name in CHANGES}


async def test_a_dry_run_on_an_existing_maildir_goes_through_the_messages_once(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all of them, and not once for each: there may be 100,000."""
    nameless = b"Subject: no id\n\nbody\n"
    for n in range(1, 9):
        twin.deliver(n, flags=["\\Seen"] if n % 2 else [])
        twin.write(n, letters="F")
    for _ in range(3):
        twin.deliver(0, raw=nameless)
        twin.write(0, raw=nameless)
    asked: list[int] = []
    original = MailboxPass.remote_flags

    def remote_flags(this: MailboxPass, uids: Collection[Uid]) -> dict[Uid, Flags]:
        asked.append(len(uids))
        return original(this, uids)

    monkeypatch.setattr(MailboxPass, "remote_flags", remote_flags)
    foretold = await twin.sync(dry_run=True)
    assert [count for count in asked if count] == [11]
    report = await twin.synced()
    assert {name: foretold.total(name) for name in CHANGES} == {name: report.total(name) for name in CHANGES}
    assert (foretold.total("adopted"), foretold.total("flags"), foretold.total("flags_there")) == (11, 4, 8)
