"""The overview of a state is read beside its owner, and reading it leaves nothing behind."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from maild.core.errors import LocalError
from maild.core.model import Cursor, Flags, Key, MailboxName, Pair, Skipped, Uid
from maild.local import overview
from maild.local.overview import NOTHING_KNOWN, MailboxOverview, Refused, Withheld, read_overview
from maild.local.schema import StateLocked, StateUnusable, reading
from maild.local.state import Changes, State
from maild.local.withheld import Unsent

SEEN: Flags = frozenset({"\\Seen"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a state?" / "50%.sqlite"  # characters that mean something in a URI


@pytest.fixture
def state(path: Path) -> Iterator[State]:
    opened = State.open(path)
    yield opened
    opened.close()


def inbox(state: State, messages: int = 2) -> int:
    """One with messages of which the first is unseen, after a complete pass."""
    mailbox = state.add_mailbox(MailboxName("INBOX"), "INBOX").id
    flags = [frozenset[str](), *[SEEN] * (messages - 1)]
    pairs = [Pair(Uid(str(n)), Key(f"{n}.a"), flag, 10, b"") for n, flag in enumerate(flags)]
    state.apply([Changes(mailbox, add=pairs)])
    state.finish(mailbox, Cursor("1"), "m", messages + 1, 50.0)
    return mailbox


def files(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


def test_everything_that_is_to_be_told(state: State, path: Path) -> None:
    key = Key("1.caf\udce9")  # a file name that is no UTF-8
    mailbox = inbox(state)
    state.skip(mailbox, [Skipped(Uid("7"), "too big", 5000)], now_s=10.0)
    state.skip(mailbox, [Skipped(Uid("7"), "too big", 5000)], now_s=20.0)
    state.hold_back(mailbox, [Unsent(key, "over quota", 60)], now_s=30.0)
    state.refuse(mailbox, "all gone", map(Uid, "12"), [key])
    state.approve(mailbox)
    state.set_error(state.add_mailbox(MailboxName("Drafts"), "Drafts").id, "cannot be read")
    first, second = read_overview(path).mailboxes
    assert first == MailboxOverview(
        name="INBOX",
        messages=3,
        unseen=1,
        error=None,
        refused=Refused("all gone", here=1, there=2, is_approved=True),
        last_pass_s=50.0,
        skipped=(Withheld("7", "too big", 5000, 2, 10.0),),
        held_back=(Withheld(key, "over quota", 60, 1, 30.0),),
    )
    assert second == MailboxOverview("Drafts", 0, 0, "cannot be read", None, None, (), ())


@pytest.mark.parametrize(
    ("told", "last_pass_s", "error"),
    [
        (None, 50.0, None),
        ('{"at": 70.5, "ok": true, "error": null}', 70.5, None),
        ('{"at": 70.5, "ok": false, "error": null}', 70.5, None),  # a mailbox was refused or failed
        ('{"at": 70.5, "ok": false, "error": "no network"}', 50.0, "no network"),  # as version 0.1 wrote it
        ('{"at": 70.5, "ok": false, "error": "no network", "done_at": 60.5}', 60.5, "no network"),
        ('{"at": 70.5, "ok": false, "error": "no network", "done_at": null}', 50.0, "no network"),
    ],
)
def test_last_pass(state: State, path: Path, told: str | None, last_pass_s: float, error: str | None) -> None:
    inbox(state)
    if told is not None:
        state.set_meta("last_pass", told)
    found = read_overview(path)
    assert (found.last_pass_s, found.error) == (last_pass_s, error)


@pytest.mark.parametrize("told", ["{", "[]", "{}", '{"at": "x", "ok": true, "error": null}'])
def test_a_last_pass_that_cannot_be_read(state: State, path: Path, told: str) -> None:
    state.set_meta("last_pass", told)
    with pytest.raises(StateUnusable, match="last_pass"):
        read_overview(path)


def test_nothing_is_made_where_nothing_is(path: Path) -> None:
    assert read_overview(path) == NOTHING_KNOWN
    assert not path.parent.exists()


def test_a_file_in_which_nothing_is_yet(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert read_overview(path) == NOTHING_KNOWN


def test_reading_leaves_nothing_behind_and_needs_no_permission_to_write(path: Path) -> None:
    state = State.open(path)
    inbox(state)
    state.close()
    before = files(path)
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        assert read_overview(path).mailboxes[0].messages == 3
    finally:
        path.parent.chmod(0o700)
    assert files(path) == before == {path.name}


def test_what_the_owner_has_committed_is_seen_while_it_writes_more(state: State, path: Path) -> None:
    mailbox = inbox(state)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE mailboxes SET messages = 99")
    try:
        assert read_overview(path).mailboxes[0].messages == 3
    finally:
        writer.execute("COMMIT")
        writer.close()
    assert read_overview(path).mailboxes[0].messages == 99
    state.set_error(mailbox, "the reader is in nobody's way")


def test_what_a_killed_maild_has_committed_is_seen(path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from maild.local.state import State\n"
        "State.open(Path(sys.argv[1])).add_mailbox('INBOX', 'INBOX'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert f"{path.name}-wal" in files(path)
    assert [mailbox.name for mailbox in read_overview(path).mailboxes] == ["INBOX"]


def test_a_file_that_changes_while_it_is_read_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    State.open(path).close()
    looked = overview._overview

    def changed_first(database: sqlite3.Connection, at: Path) -> overview.Overview:
        found = looked(database, at)
        if not found.mailboxes:
            state = State.open(path)
            inbox(state)
            state.close()
        return found

    monkeypatch.setattr(overview, "_overview", changed_first)
    assert read_overview(path).mailboxes[0].messages == 3


def test_a_file_that_changes_all_the_time(path: Path) -> None:
    State.open(path).close()
    with pytest.raises(StateLocked, match="changed while it was read"), reading(path):
        state = State.open(path)
        inbox(state)
        state.close()


def test_damaged(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StateUnusable, match="damaged"):
        read_overview(path)


@pytest.mark.parametrize(("version", "text"), [(1, "older maild"), (99, "newer maild")])
def test_other_versions(path: Path, version: int, text: str) -> None:
    State.open(path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {version}")
    database.close()
    with pytest.raises(LocalError, match=text):
        read_overview(path)


def test_something_else_of_that_name(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(LocalError, match=r"50%\.sqlite"):
        read_overview(path)
    with pytest.raises(LocalError, match="cannot read the state"):
        read_overview(path.parent / ("x" * 300))
