"""What two-way sync keeps in the state: pairs of one side, lookups by key, directories' stamps; and older files."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.model import Cursor, Epoch, Flags, Key, MailboxName, Only, Pair, Uid
from maild.local import schema
from maild.local import state as state_module
from maild.local.state import Changes, MailboxState, Orphan, State

INBOX = MailboxName("INBOX")
SEEN: Flags = frozenset({"\\Seen"})
ODD = Key("1.caf\udce9")


def pair(number: int, only: Only = "", flags: Flags = frozenset(), key: str = "") -> Pair:
    return Pair(Uid(str(number)), Key(key or f"{number}.host"), flags, 100 + number, bytes([number % 256]) * 16, only)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work.db"


@pytest.fixture
def state(path: Path) -> Iterator[State]:
    opened = State.open(path)
    yield opened
    opened.close()


@pytest.fixture
def inbox(state: State) -> int:
    return state.add_mailbox(INBOX, "INBOX").id


@pytest.fixture
def sent(state: State) -> int:
    return state.add_mailbox(MailboxName("Sent"), "Sent").id


def test_a_file_of_the_first_schema_is_brought_up_to_date(path: Path) -> None:
    database = sqlite3.connect(path)
    database.executescript(f"{schema._MIGRATIONS[0]} PRAGMA user_version = 1;")
    database.execute(
        "INSERT INTO mailboxes VALUES (1, 'INBOX', 'INBOX', '77', 'cursor', 'mark', 2, 'error', 'refused', 3.5)"
    )
    for uid in "12":
        database.execute("INSERT INTO pairs VALUES (1, ?, ?, '\\Seen', 5, ?)", (uid, f"{uid}.host", bytes(16)))
    database.execute("INSERT INTO orphans VALUES (1, 'o.host', '', 5, ?)", (bytes(16),))
    database.execute("INSERT INTO meta VALUES ('maildir_id', 'abc')")
    database.commit()
    database.close()
    for _ in range(2):  # the second time there is nothing to do
        state = State.open(path)
        assert state.mailboxes() == {
            INBOX: MailboxState(
                1, INBOX, "INBOX", Epoch("77"), Cursor("cursor"), "mark", 2, "error", "refused", 3.5, "", "", None
            )
        }
        assert list(state.pairs(1)) == [Pair(Uid(uid), Key(f"{uid}.host"), SEEN, 5, bytes(16), "") for uid in "12"]
        assert state.orphans(1) == {Key("o.host"): Orphan(Key("o.host"), frozenset(), 5, bytes(16))}
        assert state.meta("maildir_id") == "abc"
        assert (state.unsent(1), state.count(1)) == ({}, 2)
        state.close()


def test_a_pass_that_ends_says_what_it_saw(state: State, inbox: int) -> None:
    state.finish(
        inbox, Cursor("c"), "m", 2, 1.0, stamp="1 2", undone=True, object_id="F1", identity="8:9", next_uid="77"
    )
    assert state.mailboxes()[INBOX] == MailboxState(
        *(inbox, INBOX, "INBOX", None, Cursor("c"), "m", 2, None, None, 1.0),
        object_id="F1",
        identity="8:9",
        stamp="1 2",
        undone=True,
        next_uid="77",
    )
    assert type(state.mailboxes()[INBOX].undone) is bool


def test_what_a_pass_does_not_say_stays(state: State, inbox: int) -> None:
    state.finish(inbox, None, None, 2, 1.0, stamp="1 2", undone=True, object_id="F1", identity="8:9", next_uid="77")
    state.finish(inbox, Cursor("c"), "m", 3, 2.0)
    row = state.mailboxes()[INBOX]
    assert (row.stamp, row.undone, row.object_id, row.identity, row.next_uid) == ("1 2", True, "F1", "8:9", "77")
    state.finish(inbox, Cursor("c"), "m", 3, 2.0, stamp=None, undone=False, object_id="", identity="", next_uid="")
    row = state.mailboxes()[INBOX]
    assert (row.stamp, row.undone, row.object_id, row.identity, row.next_uid) == (None, False, "", "", "")


def test_a_stamp_is_set_alone(state: State, inbox: int, sent: int) -> None:
    state.set_stamp(inbox, "5 6")
    assert [row.stamp for row in state.mailboxes().values()] == ["5 6", None]
    state.set_stamp(inbox, None)
    assert state.mailboxes()[INBOX].stamp is None


def test_a_renamed_mailbox_keeps_everything(state: State, inbox: int, sent: int) -> None:
    state.apply([Changes(inbox, add=[pair(1)])])
    state.finish(inbox, Cursor("c"), "m", 1, 1.0, identity="8:9")
    state.rename_mailbox(inbox, MailboxName("Old"), "Old")
    assert set(state.mailboxes()) == {"Old", "Sent"}
    row = state.mailboxes()[MailboxName("Old")]
    assert (row.id, row.directory, row.cursor, row.identity) == (inbox, "Old", "c", "8:9")
    assert state.uids(inbox) == {"1"}
    with pytest.raises(sqlite3.IntegrityError):
        state.rename_mailbox(inbox, MailboxName("Sent"), "Old")


def test_pairs_of_one_side_count_on_that_side_only(state: State, inbox: int) -> None:
    pairs = [pair(1), pair(2, "local"), pair(3, "remote"), pair(4, flags=SEEN)]
    state.apply([Changes(inbox, add=pairs)])
    assert list(state.pairs(inbox)) == pairs
    assert state.pairs_of(inbox, [Uid("2"), Uid("3")]) == {one.uid: one for one in pairs[1:3]}
    assert state.uids(inbox) == {"1", "3", "4"}
    assert state.keys(inbox) == {"1.host", "2.host", "4.host"}
    assert (state.count(inbox), state.unseen(inbox)) == (2, 1)


def test_a_pair_can_become_one_of_one_side_and_back(state: State, inbox: int, sent: int) -> None:
    state.apply([Changes(inbox, add=[pair(1), pair(2), pair(3)]), Changes(sent, add=[pair(1)])])
    state.apply([Changes(inbox, only=[(Uid("1"), "local"), (Uid("2"), "remote"), (Uid("99"), "local")])])
    assert [one.only for one in state.pairs(inbox)] == ["local", "remote", ""]
    assert [one.only for one in state.pairs(sent)] == [""]
    state.apply([Changes(inbox, only=[(Uid("1"), "")], flags=[(Uid("1"), SEEN, None)])])
    assert state.pairs_of(inbox, [Uid("1")]) == {Uid("1"): pair(1, flags=SEEN)}


def test_a_moved_message_is_in_one_mailbox_or_the_other(state: State, inbox: int, sent: int) -> None:
    state.apply([Changes(inbox, add=[pair(1), pair(2)])])
    state.apply([Changes(inbox, drop=[Uid("1")]), Changes(sent, add=[pair(7, key="1.host")])])
    assert (state.keys(inbox), state.keys(sent)) == ({"2.host"}, {"1.host"})
    with pytest.raises(sqlite3.IntegrityError):
        state.apply([Changes(inbox, drop=[Uid("2")]), Changes(999, add=[pair(8)])])
    assert state.keys(inbox) == {"2.host"}


def test_pairs_are_found_by_key(state: State, inbox: int, sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_IN_KEYS", 2)
    pairs = [pair(1), pair(2, "remote"), pair(3, key=ODD), pair(4), pair(5)]
    state.apply([Changes(inbox, add=pairs), Changes(sent, add=[pair(9)])])
    wanted = [Key("1.host"), Key("2.host"), ODD, Key("5.host"), Key("9.host")]
    assert state.pairs_by_key(inbox, wanted) == {one.key: one for one in (*pairs[:3], pairs[4])}
    assert state.pairs_by_key(inbox, []) == {}


@given(
    st.dictionaries(
        st.integers(min_value=1, max_value=999),
        st.tuples(
            st.sampled_from(["", "local", "remote"]),
            st.frozensets(st.sampled_from(["\\Seen", "\\Flagged", "Work"])),
            st.sampled_from(["", ODD]),
        ),
        max_size=20,
    )
)
def test_the_base_is_the_pairs_in_short(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[int, tuple[Only, Flags, str]]
) -> None:
    state = State.open(tmp_path_factory.mktemp("state") / "work.db")
    try:
        inbox = state.add_mailbox(INBOX, "INBOX").id
        state.apply([Changes(inbox, add=[pair(number, *row) for number, row in rows.items()])])
        expected = [(one.uid, one.key, one.flags, one.only) for one in state.pairs(inbox)]
        assert list(state.base(inbox)) == expected
        assert len(expected) == len(rows)
    finally:
        state.close()


def test_the_base_is_read_in_pages(state: State, inbox: int, sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_PAGE_ROWS", 3)
    for count in range(1, 8):
        state.apply([Changes(inbox, add=[pair(count)]), Changes(sent, add=[pair(100 + count)])])
        assert [uid for uid, *_ in state.base(inbox)] == [str(number) for number in range(1, count + 1)]


def test_the_base_may_be_changed_while_it_is_read(state: State, inbox: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_PAGE_ROWS", 2)
    state.apply([Changes(inbox, add=[pair(number) for number in range(1, 8)])])
    for uid, *_ in state.base(inbox):
        state.apply([Changes(inbox, drop=[uid])])
    assert state.uids(inbox) == set()


def test_a_new_epoch_leaves_orphans_that_know_on_which_side_they_were(state: State, inbox: int) -> None:
    state.apply([Changes(inbox, add=[pair(1), pair(2, "local"), pair(3, "remote")])])
    state.finish(inbox, Cursor("c"), "m", 3, 1.0, stamp="1 2", identity="8:9", object_id="F1", next_uid="4")
    state.rebuild(inbox, Epoch("2"))
    sides = {key: orphan.only for key, orphan in state.orphans(inbox).items()}
    assert sides == {"1.host": "", "2.host": "local", "3.host": "remote"}
    row = state.mailboxes()[INBOX]
    assert (row.stamp, row.next_uid, row.cursor, row.identity, row.object_id) == (None, "", None, "8:9", "F1")


def test_what_is_about_to_go_is_noted_until_its_pair_goes(state: State, inbox: int, sent: int) -> None:
    state.apply([Changes(inbox, add=[pair(1), pair(2), pair(3)])])
    state.note_going(inbox, [Uid("1"), Uid("2")], (sent, Uid("7")))
    state.note_going(inbox, [Uid("2"), Uid("3")], (sent, Uid("9")))
    state.note_going(inbox, [Uid("3"), Uid("4")])
    noted = {
        (inbox, Uid("1")): (sent, Uid("7")),
        (inbox, Uid("2")): (sent, Uid("9")),
        (inbox, Uid("3")): (sent, Uid("9")),
    }
    assert state.going() == noted | {(inbox, Uid("4")): None}
    assert state.with_leftovers() == {inbox, sent}
    state.apply([Changes(inbox, drop=[Uid("2")])])
    state.drop_going([(inbox, Uid("3")), (inbox, Uid("4")), (sent, Uid("1"))])
    assert list(state.going()) == [(inbox, Uid("1"))]


@pytest.mark.parametrize("which", ["source", "target"])
@pytest.mark.parametrize("is_dropped", [False, True])
def test_in_another_epoch_nothing_is_about_to_go(
    state: State, inbox: int, sent: int, which: str, is_dropped: bool
) -> None:
    state.apply([Changes(inbox, add=[pair(1)])])
    state.note_going(inbox, [Uid("1")], (sent, Uid("7")))
    one = inbox if which == "source" else sent
    if is_dropped:
        state.drop_mailbox(one)
    else:
        state.rebuild(one, Epoch("78"))
    assert state.going() == {}
