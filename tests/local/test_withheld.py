"""What was not done is remembered: messages the server did not take, and the plans that wait for the user's word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.model import Epoch, Key, MailboxName, Uid
from maild.local.state import State
from maild.local.withheld import Refusal, Unsent, UnsentMessage

ODD = Key("1.caf\udce9")  # a file name that is no UTF-8
NOTHING: frozenset[Uid] = frozenset()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State.open(tmp_path / "work.db")
    yield opened
    opened.close()


@pytest.fixture
def inbox(state: State) -> int:
    return state.add_mailbox(MailboxName("INBOX"), "INBOX").id


@pytest.fixture
def sent(state: State) -> int:
    return state.add_mailbox(MailboxName("Sent"), "Sent").id


def uids(*names: str) -> frozenset[Uid]:
    return frozenset(map(Uid, names))


def keys(*names: str) -> frozenset[Key]:
    return frozenset(map(Key, names))


def text_of(state: State) -> str | None:
    return state.mailboxes()[MailboxName("INBOX")].refused


def test_messages_held_back_are_counted(state: State, inbox: int, sent: int) -> None:
    state.hold_back(inbox, [Unsent(Key("1.a"), "too big", 5000), Unsent(ODD, "\udce9 refused")], now_s=10.0)
    state.hold_back(inbox, [Unsent(Key("1.a"), "quota", 5001)], now_s=20.0)
    assert state.unsent(inbox) == {
        Key("1.a"): UnsentMessage(Key("1.a"), "quota", 5001, 2, 10.0, 20.0),
        ODD: UnsentMessage(ODD, "\\udce9 refused", 0, 1, 10.0, 10.0),
    }
    assert state.unsent(sent) == {}
    state.unsent_done(inbox, [ODD, Key("never there")])
    assert set(state.unsent(inbox)) == {"1.a"}


def test_a_refused_plan_comes_back(state: State, inbox: int, sent: int) -> None:
    assert state.refusal(inbox) is None
    state.refuse(inbox, "10 of 10", uids("1", "2"), [ODD, Key("2.a")])
    assert state.refusal(inbox) == Refusal(uids("1", "2"), keys(ODD, "2.a"), False)
    assert text_of(state) == "10 of 10"
    assert state.refusal(sent) is None


def test_another_plan_replaces_it(state: State, inbox: int) -> None:
    state.refuse(inbox, "first", uids("1", "2"), keys("a"))
    state.refuse(inbox, "second", uids("3"), keys())
    assert state.refusal(inbox) == Refusal(uids("3"), keys())
    assert text_of(state) == "second"


def test_only_what_is_refused_can_be_approved(state: State, inbox: int, sent: int) -> None:
    assert not state.approve(inbox)
    state.refuse(inbox, "10 of 10", uids("1"), keys())
    assert state.approve(inbox)
    assert state.refusal(inbox) == Refusal(uids("1"), keys(), True)
    assert state.mailboxes()[MailboxName("INBOX")].approved is True
    assert state.mailboxes()[MailboxName("Sent")].approved is False
    assert not state.approve(999)


def test_a_refusal_is_cleared_with_its_approval(state: State, inbox: int) -> None:
    state.refuse(inbox, "10 of 10", uids("1"), keys())
    state.approve(inbox)
    state.clear_refusal(inbox)
    assert (state.refusal(inbox), text_of(state)) == (None, None)
    assert not state.approve(inbox)
    state.refuse(inbox, "10 of 10", uids("1"), keys())
    assert state.refusal(inbox) == Refusal(uids("1"), keys(), False)


@pytest.mark.parametrize(
    ("remote", "local", "kept"),
    [
        (uids("1", "2"), keys("a", "b"), True),
        (uids("1"), keys("a"), True),
        (uids(), keys("a"), True),
        (uids("1", "3"), keys("a"), False),
        (uids("1"), keys("c"), False),
        (uids("1", "2"), keys("a", "b", "c"), False),
        (uids(), keys(), False),
    ],
)
def test_an_approval_holds_for_the_plan_and_its_parts(
    state: State, inbox: int, remote: frozenset[Uid], local: frozenset[Key], kept: bool
) -> None:
    state.refuse(inbox, "first", uids("1", "2"), keys("a", "b"))
    state.approve(inbox)
    state.refuse(inbox, "second", remote, local)
    assert state.refusal(inbox) == Refusal(remote, local, kept)


def test_the_approval_of_a_part_does_not_grow_back(state: State, inbox: int) -> None:
    state.refuse(inbox, "first", uids("1", "2"), keys())
    state.approve(inbox)
    state.refuse(inbox, "second", uids("1"), keys())
    state.refuse(inbox, "third", uids("1", "2"), keys())
    assert state.refusal(inbox) == Refusal(uids("1", "2"), keys(), False)


@pytest.mark.parametrize(
    ("text", "remote", "kept"), [("gone", uids(), True), ("other", uids(), False), ("gone", uids("1"), False)]
)
def test_a_refusal_without_ids_is_approved_by_its_text(
    state: State, inbox: int, text: str, remote: frozenset[Uid], kept: bool
) -> None:
    state.refuse(inbox, "gone", NOTHING, keys())
    assert state.refusal(inbox) == Refusal(uids(), keys())
    state.approve(inbox)
    state.refuse(inbox, text, remote, keys())
    assert state.refusal(inbox) == Refusal(remote, keys(), kept)


@given(st.lists(st.tuples(st.frozensets(st.sampled_from("12345")), st.booleans()), max_size=6))
def test_nothing_is_ever_approved_that_the_user_did_not_see(
    tmp_path_factory: pytest.TempPathFactory, plans: list[tuple[frozenset[str], bool]]
) -> None:
    state = State.open(tmp_path_factory.mktemp("state") / "work.db")
    try:
        inbox = state.add_mailbox(MailboxName("INBOX"), "INBOX").id
        seen: frozenset[Uid] | None = None
        for names, says_yes in plans:
            state.refuse(inbox, f"{len(names)} of 5", uids(*names), keys())
            if says_yes:
                state.approve(inbox)
                seen = uids(*names)
            refusal = state.refusal(inbox)
            assert refusal is not None
            assert not refusal.approved or (seen is not None and refusal.delete_remote <= seen)
            assert refusal.approved or not says_yes
    finally:
        state.close()


def test_the_text_alone_can_be_set_and_taken_back(state: State, inbox: int) -> None:
    state.refuse(inbox, "first", uids("1"), keys())
    state.set_refused(inbox, "the directory is gone")
    assert (state.refusal(inbox), text_of(state)) == (Refusal(uids(), keys()), "the directory is gone")
    state.set_refused(inbox, None)
    assert state.refusal(inbox) is None


def test_it_goes_with_the_mailbox_and_with_its_epoch(state: State, inbox: int, sent: int) -> None:
    for mailbox in (inbox, sent):
        state.hold_back(mailbox, [Unsent(Key("1.a"), "too big")])
        state.refuse(mailbox, "10 of 10", uids("1"), keys("a"))
        state.approve(mailbox)
    state.rebuild(inbox, Epoch("2"))
    assert (state.unsent(inbox), state.refusal(inbox), text_of(state)) == ({}, None, None)
    assert state.refusal(sent) == Refusal(uids("1"), keys("a"), True)
    state.drop_mailbox(sent)
    again = state.add_mailbox(MailboxName("Sent"), "Sent").id
    assert (state.unsent(again), state.refusal(again)) == ({}, None)
    assert state._database.execute("SELECT (SELECT count(*) FROM unsent) + count(*) FROM refusals").fetchone() == (0,)
