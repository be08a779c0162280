"""The table of a maildrop, in the account's state file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from maild.core.maildrop import Known
from maild.core.model import NO_FLAGS, Key, MailboxName, Pair, Uid
from maild.local.maildrop import MaildropTable
from maild.local.state import Changes, State

A, B, C = Uid("a"), Uid("b"), Uid("c")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State.open(tmp_path / "state" / "isp.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def table(state: State) -> MaildropTable:
    made = MaildropTable(state, state.add_mailbox(MailboxName("INBOX"), "INBOX").id)
    made.create()
    made.create()  # a file that has it already
    return made


def pair(state: State, uid: Uid, key: str) -> None:
    (mailbox,) = state.mailboxes().values()
    state.apply([Changes(mailbox.id, add=[Pair(uid, Key(key), NO_FLAGS, 7, b"d" * 16)])])


def test_a_file_without_the_table_knows_nothing(state: State) -> None:
    assert MaildropTable(state, 0).known() == {}


def test_a_message_from_its_first_listing_to_its_deletion(state: State, table: MaildropTable) -> None:
    table.note_listing([A, B], (), (), (), 100.0)
    assert table.known() == {A: Known(A, 100.0), B: Known(B, 100.0)}
    pair(state, A, "1.a\udcff")
    table.note_facts([(A, 50, b"h"), (B, 60, None)])
    table.note_facts([(A, None, None)])
    known = table.known()
    assert known[A] == Known(A, 100.0, 50, b"h", key=Key("1.a\udcff"), content=(7, b"d" * 16))
    assert known[B].size_octets == 60
    table.note_listing([A], [B], (), (), 200.0)
    table.note_listing((), [B], (), (), 300.0)
    assert (table.known()[A].first_seen_s, table.known()[B].gone_s) == (100.0, 200.0)
    table.note_listing((), (), [B], (), 400.0)
    assert table.known()[B].gone_s is None
    table.ask_deletion([A, B], 500.0)
    table.withdraw_deletion([B])
    assert [table.known()[uid].deletion_s for uid in (A, B)] == [500.0, None]
    table.confirm_deletion([A])
    assert table.known().keys() == {B}
    (mailbox,) = state.mailboxes().values()
    assert state.count(mailbox.id) == 0


def test_another_unique_id_for_the_same_message(state: State, table: MaildropTable) -> None:
    table.note_listing([A], (), (), (), 100.0)
    pair(state, A, "1.a")
    table.note_listing([B], [A], (), (), 200.0)
    table.rename({B: A})
    known = table.known()
    assert known.keys() == {B}
    assert (known[B].first_seen_s, known[B].key, known[B].gone_s) == (100.0, "1.a", None)


def test_another_maildrop(state: State, table: MaildropTable) -> None:
    table.note_listing([A], (), (), (), 100.0)
    pair(state, A, "1.a")
    table.begin_anew(" was:1:")
    table.note_listing([A], (), (), (), 200.0)
    known = table.known()
    assert known.keys() == {A, " was:1:a"}
    assert known[Uid(" was:1:a")].key == "1.a"
    assert known[A].key is None


def test_a_file_found_elsewhere(table: MaildropTable) -> None:
    table.note_listing([A, B, C], (), (), (), 100.0)
    table.note_elsewhere({A: Key("2.x"), B: Key("2.\udcff")})
    assert table.elsewhere() == {A: "2.x", B: "2.\udcff"}
