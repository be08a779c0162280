"""The state file: what is put in comes out, transactions are whole, and a bad file says so."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.errors import LocalError, Retry
from maild.core.model import Cursor, Epoch, Flags, Key, MailboxName, Pair, Skipped, Uid
from maild.local import state as state_module
from maild.local.pairs import flags_from, flags_text
from maild.local.schema import StateUnusable
from maild.local.state import Changes, MailboxState, Orphan, SkippedMessage, State

INBOX = MailboxName("INBOX")
SEEN: Flags = frozenset({"\\Seen"})


def pair(number: int, flags: Flags = frozenset()) -> Pair:
    return Pair(Uid(str(number)), Key(f"{number}.host"), flags, 100 + number, bytes([number % 256]) * 16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "work.db"


@pytest.fixture
def state(path: Path) -> Iterator[State]:
    opened = State.open(path)
    yield opened
    opened.close()


@pytest.fixture
def inbox(state: State) -> int:
    return state.add_mailbox(INBOX, "INBOX").id


def test_the_file_is_the_users_alone(state: State, path: Path) -> None:
    state.add_mailbox(INBOX, "INBOX")
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_commits_are_synced(state: State) -> None:
    assert state._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert state._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert state._database.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_mailboxes_and_what_is_known_of_them(state: State, path: Path) -> None:
    added = state.add_mailbox(MailboxName("Entwürfe/2026"), "Entwürfe/2026")
    assert added == MailboxState(added.id, MailboxName("Entwürfe/2026"), "Entwürfe/2026")
    other = state.add_mailbox(INBOX, "INBOX")
    assert other.id != added.id
    state.set_epoch(other.id, Epoch("77"))
    state.finish(other.id, Cursor("77 12 900"), "mark", 11, 1234.5)
    state.set_error(other.id, "broken")
    state.set_refused(other.id, "10 of 10")
    expected = MailboxState(
        other.id, INBOX, "INBOX", Epoch("77"), Cursor("77 12 900"), "mark", 11, "broken", "10 of 10", 1234.5
    )
    state.close()
    again = State.open(path)
    assert again.mailboxes() == {added.name: added, INBOX: expected}
    again.drop_mailbox(added.id)
    assert again.mailboxes() == {INBOX: expected}
    again.close()


def test_a_mailbox_added_again_moves_and_keeps_the_rest(state: State, inbox: int) -> None:
    state.set_epoch(inbox, Epoch("1"))
    assert state.add_mailbox(INBOX, ".") == MailboxState(inbox, INBOX, ".", Epoch("1"))


def test_a_complete_pass_ends_an_error(state: State, inbox: int) -> None:
    state.set_error(inbox, "broken")
    state.finish(inbox, None, None, None, 1.0)
    assert state.mailboxes()[INBOX].error is None
    state.set_error(inbox, "broken")
    state.set_error(inbox, None)
    assert state.mailboxes()[INBOX].error is None


def test_pairs_come_back_as_they_were(state: State, inbox: int) -> None:
    odd = [
        Pair(Uid("a b/c"), Key("1.host,S=3"), frozenset({"\\Seen", "$Label1", "Entwürfe"}), 0, b""),
        Pair(Uid("2"), Key(os.fsdecode(b"\xff\xe4.a")), frozenset(), 2**40, bytes(range(16))),
        Pair(Uid("3"), Key("ä.host"), SEEN, 1, b"\x00" * 16),
    ]
    state.apply([Changes(inbox, add=odd)])
    assert sorted(state.pairs(inbox), key=lambda one: one.uid) == sorted(odd, key=lambda one: one.uid)
    assert state.keys(inbox) == {one.key for one in odd}
    assert state.uids(inbox) == {"a b/c", "2", "3"}
    assert state.pairs_of(inbox, [Uid("2"), Uid("nix")]) == {"2": odd[1]}
    assert state.pairs_of(inbox, []) == {}


@given(st.frozensets(st.text(st.characters(codec="utf-8", exclude_characters=" "), min_size=1, max_size=5), max_size=4))
def test_flags_of_any_spelling_come_back(flags: Flags) -> None:
    assert flags_from(flags_text(flags)) == flags


def test_changes_of_several_mailboxes_at_once(state: State, inbox: int) -> None:
    sent = state.add_mailbox(MailboxName("Sent"), "Sent").id
    state.apply([Changes(inbox, add=[pair(number) for number in range(1, 6)]), Changes(sent, add=[pair(1, SEEN)])])
    state.apply(
        [
            Changes(
                inbox, add=[pair(6)], flags=[(Uid("2"), SEEN, None), (Uid("6"), SEEN, None)], drop=[Uid("3"), Uid("4")]
            ),
            Changes(sent, flags=[(Uid("1"), frozenset(), None)], drop=[Uid("99")]),
        ]
    )
    assert {one.uid: one.flags for one in state.pairs(inbox)} == {
        "1": frozenset(),
        "2": SEEN,
        "5": frozenset(),
        "6": SEEN,
    }
    assert (state.count(inbox), state.unseen(inbox)) == (4, 2)
    assert (state.count(sent), state.unseen(sent)) == (1, 1)
    state.drop_mailbox(inbox)
    assert (state.count(inbox), state.count(sent)) == (0, 1)


def test_unseen_is_not_fooled_by_similar_keywords(state: State, inbox: int) -> None:
    state.apply([Changes(inbox, add=[pair(1, frozenset({"\\SeenNot", "x\\Seen"})), pair(2, SEEN | {"a", "z"})])])
    assert state.unseen(inbox) == 1


def test_a_pair_made_again_takes_the_place_of_the_old_one(state: State, inbox: int) -> None:
    state.apply([Changes(inbox, add=[pair(1)])])
    state.apply([Changes(inbox, add=[Pair(Uid("1"), Key("other"), SEEN, 5, b"x" * 16)])])
    assert list(state.pairs(inbox)) == [Pair(Uid("1"), Key("other"), SEEN, 5, b"x" * 16)]


def test_changes_are_committed_all_or_not_at_all(state: State, inbox: int) -> None:
    state.apply([Changes(inbox, add=[pair(1)])])
    with pytest.raises(sqlite3.IntegrityError):
        state.apply([Changes(inbox, add=[pair(2)], drop=[Uid("1")]), Changes(999, add=[pair(3)])])
    assert state.uids(inbox) == {"1"}
    state.apply([Changes(inbox, add=[pair(2)])])  # the transaction is over
    assert state.uids(inbox) == {"1", "2"}


def test_pairs_are_read_page_by_page(state: State, inbox: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_PAGE_ROWS", 3)
    monkeypatch.setattr(state_module, "_IN_VALUES", 3)
    for count in range(11):
        state.apply([Changes(inbox, add=[pair(count)])])
        assert {one.uid for one in state.pairs(inbox)} == {str(number) for number in range(count + 1)}
        assert len(list(state.pairs(inbox))) == count + 1
        assert len(state.pairs_of(inbox, [Uid(str(number)) for number in range(20)])) == count + 1


def test_changing_while_reading_is_allowed(state: State, inbox: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_PAGE_ROWS", 2)
    state.apply([Changes(inbox, add=[pair(number) for number in range(10)])])
    for one in state.pairs(inbox):
        state.apply([Changes(inbox, drop=[one.uid])])
    assert state.count(inbox) == 0


def test_after_a_change_of_epoch_the_messages_are_known_by_content(state: State, inbox: int) -> None:
    state.set_epoch(inbox, Epoch("1"))
    state.finish(inbox, Cursor("c"), "m", 2, 1.0)
    state.apply([Changes(inbox, add=[pair(1, SEEN), pair(2)])])
    state.skip(inbox, [Skipped(Uid("3"), "too big")], now_s=1.0)
    state.rebuild(inbox, Epoch("2"))
    assert state.mailboxes()[INBOX] == MailboxState(inbox, INBOX, "INBOX", Epoch("2"), last_pass_s=1.0)
    assert (state.count(inbox), state.skipped(inbox)) == (0, {})
    assert state.orphans(inbox) == {
        "1.host": Orphan(Key("1.host"), SEEN, 101, b"\x01" * 16),
        "2.host": Orphan(Key("2.host"), frozenset(), 102, b"\x02" * 16),
    }
    state.apply([Changes(inbox, add=[Pair(Uid("77"), Key("1.host"), SEEN, 101, b"\x01" * 16)])])
    assert state.orphans(inbox).keys() == {"2.host"}
    state.rebuild(inbox, Epoch("3"))  # again, before all were matched
    assert state.orphans(inbox).keys() == {"1.host", "2.host"}
    state.drop_orphans(inbox, [Key("2.host"), Key("nix")])
    assert state.orphans(inbox).keys() == {"1.host"}


def test_skipped_messages_are_counted(state: State, inbox: int) -> None:
    state.skip(inbox, [Skipped(Uid("1"), "too big", 500), Skipped(Uid("2"), "refused")], now_s=10.0)
    state.skip(inbox, [Skipped(Uid("1"), "still too big", 501)], now_s=20.0)
    assert state.skipped(inbox) == {
        "1": SkippedMessage(Uid("1"), "still too big", 501, 2, 10.0, 20.0),
        "2": SkippedMessage(Uid("2"), "refused", 0, 1, 10.0, 10.0),
    }
    state.unskip(inbox, [Uid("1"), Uid("nix")])
    assert state.skipped(inbox).keys() == {"2"}


def test_facts_of_the_account(state: State) -> None:
    assert state.meta("generation") is None
    state.set_meta("generation", "1")
    state.set_meta("generation", "2")
    assert state.meta("generation") == "2"


def test_a_path_that_is_no_utf8_can_stand_in_an_error(state: State, inbox: int) -> None:
    state.set_error(inbox, "cannot read /mail/\udcff")
    assert state.mailboxes()[INBOX].error == "cannot read /mail/\\udcff"


def test_another_thread_may_go_on(state: State, inbox: int) -> None:
    thread = threading.Thread(target=lambda: state.apply([Changes(inbox, add=[pair(1)])]))
    thread.start()
    thread.join()
    assert state.count(inbox) == 1


def test_what_is_committed_survives_a_kill(path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom maild.core.model import *\nfrom maild.local.state import *\n"
        "state = State.open(Path(sys.argv[1]))\nbox = state.add_mailbox('INBOX', 'INBOX').id\n"
        "for number in range(50):\n"
        "    state.apply([Changes(box, add=[Pair(str(number), f'{number}.host', frozenset(), 1, bytes(16))])])\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    state = State.open(path)
    assert state.count(state.mailboxes()[INBOX].id) == 50
    state.close()


def test_a_full_disk_is_an_error_and_the_state_is_as_before(state: State, inbox: int) -> None:
    """SQLite's own limit on the size of a file fails as a full disk does."""
    state.apply([Changes(inbox, add=[pair(1)])])
    (pages,) = state._database.execute("PRAGMA page_count").fetchone()
    state._database.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(LocalError, match=r"cannot use the state .*work.db: .*full; the disk is full") as caught:
        state.apply([Changes(inbox, drop=[Uid("1")], add=[pair(number) for number in range(2, 2000)])])
    assert caught.value.retry is Retry.LATER
    assert state.uids(inbox) == {"1"}
    state._database.execute("PRAGMA max_page_count = 1000000")
    state.apply([Changes(inbox, add=[pair(number) for number in range(2, 2000)])])
    assert state.count(inbox) == 1999


@pytest.mark.parametrize("octets", [b"no database at all, only text\n" * 200, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_file_that_is_no_database_says_what_to_do(path: Path, octets: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(octets)
    with pytest.raises(
        StateUnusable, match=r"work.db is damaged .*; delete it: .*no mail is lost or doubled"
    ) as caught:
        State.open(path)
    assert caught.value.retry is Retry.AFTER_CHANGE


def test_damage_that_shows_later_says_what_to_do(path: Path) -> None:
    state = State.open(path)
    box = state.add_mailbox(INBOX, "INBOX").id
    state.apply([Changes(box, add=[pair(number) for number in range(2000)])])
    state.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:20480] + b"\xa5" * (len(whole) - 20480))
    damaged = State.open(path)
    with pytest.raises(StateUnusable, match="is damaged"):
        list(damaged.pairs(box))
    damaged.close()


def test_the_state_of_a_newer_maild_is_refused(path: Path) -> None:
    State.open(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StateUnusable, match=r"written by a newer maild \(schema 99, this one knows \d+\); use that"):
        State.open(path)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_opened_is_an_error(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(LocalError, match=r"cannot open the state .*Is a directory"):
        State.open(path)


def test_a_state_that_another_program_writes_to_is_an_error(
    state: State, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state._database.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LocalError, match="database is locked; another program"):
        state.set_meta("a", "b")
    other.close()
    state.set_meta("a", "b")


def test_faults_of_maild_are_not_disguised(state: State) -> None:
    state.close()
    with pytest.raises(sqlite3.ProgrammingError):
        state.meta("a")


def test_a_state_that_sleeps_has_no_file_open_and_wakes_when_it_is_used(state: State, path: Path, inbox: int) -> None:
    state.apply([Changes(inbox, add=[pair(1)])])
    state.sleep()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    state.sleep()
    assert state.uids(inbox) == {Uid("1")}
    state.apply([Changes(inbox, add=[pair(2)])])
    state.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        state.uids(inbox)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
