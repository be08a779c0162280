"""What a poll decides about a maildrop, for any history of listings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.maildrop import (
    DAY_S,
    FORGET_S,
    MADE_UP,
    Known,
    Listed,
    Policy,
    Terms,
    compare,
    due,
    header_digest,
    header_of,
    is_by_content,
    is_same_size,
    matched,
    next_poll_s,
    nth,
    uid_of_content,
    uid_of_header,
    unambiguous,
)
from maild.core.model import Key, Uid

NOW_S = 1_700_000_000.0
uids = st.sets(st.sampled_from([Uid(c) for c in "abcdefgh"]))
known_messages = st.builds(
    Known,
    uid=st.just(Uid("")),
    first_seen_s=st.floats(NOW_S - 100, NOW_S),
    size_octets=st.sampled_from([None, 10, 20]),
    header=st.sampled_from([None, b"x", b"y"]),
    gone_s=st.sampled_from([None, NOW_S - 10, NOW_S - FORGET_S - 1]),
    deletion_s=st.sampled_from([None, NOW_S - 5]),
    key=st.sampled_from([None, Key("k")]),
    content=st.sampled_from([(1, b"1"), (2, b"2")]),
)


def named(known: dict[Uid, Known]) -> dict[Uid, Known]:
    fields = ("first_seen_s", "size_octets", "header", "gone_s", "deletion_s", "key", "content")
    return {uid: Known(uid, *(getattr(message, name) for name in fields)) for uid, message in known.items()}


histories = st.dictionaries(st.sampled_from([Uid(c) for c in "abcdefgh"]), known_messages).map(named)
policies = st.builds(
    Policy,
    leave=st.one_of(st.booleans(), st.integers(1, 100)),
    delete_with_local=st.booleans(),
    max_message_octets=st.just(100),
)


@given(listed=uids, known=histories)
def test_every_message_is_one_thing(listed: set[Uid], known: dict[Uid, Known]) -> None:
    news = compare(listed, known, NOW_S)
    assert set(news.fresh) == {uid for uid in listed if uid not in known or known[uid].key is None}
    assert set(news.unseen) == listed - known.keys()
    gone = [*news.lost, *news.confirmed, *news.forgotten]
    assert len(gone) == len(set(gone))
    assert set(gone) == known.keys() - listed
    assert set(news.returned) == {uid for uid in listed & known.keys() if known[uid].gone_s is not None}
    assert set(news.newly_lost) <= set(news.lost)
    assert all(known[uid].deletion_s is not None for uid in news.confirmed)
    assert all(known[uid].key is not None for uid in news.lost)


@given(listed=uids, known=histories)
def test_renumbered_means_that_nothing_known_is_listed(listed: set[Uid], known: dict[Uid, Known]) -> None:
    news = compare(listed, known, NOW_S)
    if news.is_renumbered:
        assert listed
        assert not listed & known.keys()
    assert not compare((), known, NOW_S).is_renumbered


@given(listed=uids, known=histories, removed=uids, policy=policies)
def test_what_is_due_is_here_and_listed(
    listed: set[Uid], known: dict[Uid, Known], removed: set[Uid], policy: Policy
) -> None:
    deletions = due(listed, known, removed, policy, NOW_S)
    for uid in (*deletions.by_policy, *deletions.by_user):
        assert uid in listed
        assert known[uid].key is not None
    assert not set(deletions.by_policy) & set(deletions.by_user)
    assert set(deletions.by_user) <= removed
    if policy.leave is True:
        assert deletions.by_policy == []
    if not policy.delete_with_local:
        assert deletions.by_user == []


@given(known=histories, leave=st.integers(1, 50), later=st.integers(0, 100))
def test_what_is_due_stays_due(known: dict[Uid, Known], leave: int, later: int) -> None:
    policy = Policy(leave, False, 100)
    now = due(known, known, (), policy, NOW_S).by_policy
    assert set(now) <= set(due(known, known, (), policy, NOW_S + later).by_policy)


def test_true_and_false_are_no_durations() -> None:
    known = {Uid("a"): Known(Uid("a"), NOW_S, key=Key("k"))}
    assert due(known, known, (), Policy(True, False, 1), NOW_S + 1e9).by_policy == []
    assert due(known, known, (), Policy(False, False, 1), NOW_S).by_policy == ["a"]
    assert due(known, known, (), Policy(1, False, 1), NOW_S).by_policy == []
    assert due(known, known, (), Policy(1, False, 1), NOW_S + 1).by_policy == ["a"]


@given(
    fresh=st.dictionaries(
        st.sampled_from([Uid(c) for c in "pqrst"]), st.tuples(st.sampled_from([10, 20]), st.sampled_from([b"x", b"y"]))
    ),
    known=histories,
)
def test_matching_takes_each_once_and_never_in_doubt(
    fresh: dict[Uid, tuple[int, bytes]], known: dict[Uid, Known]
) -> None:
    found = matched(fresh, known.values())
    assert len(set(found.values())) == len(found)
    for uid, old in found.items():
        assert fresh[uid] == (known[old].size_octets, known[old].header)
        same = [k for k in known.values() if (k.size_octets, k.header) == fresh[uid] and k.key is not None]
        assert len({k.content for k in same}) == 1


def test_unique_ids_that_two_have_are_none() -> None:
    found = unambiguous({3: Uid("a"), 1: Uid("b"), 2: None, 4: Uid("b")})
    assert found == [Listed(1, None), Listed(2, None), Listed(3, Uid("a")), Listed(4, None)]


def test_an_identity_made_up_is_none_that_a_server_could_give() -> None:
    for uid in (uid_of_header(b"A: b\r\n", 3), uid_of_content(b"\1" * 16), nth(uid_of_content(b"x"), 2)):
        assert uid.startswith(MADE_UP)
        assert uid.strip() != uid
    assert is_by_content(uid_of_content(b"x"))
    assert not is_by_content(uid_of_header(b"", 1))
    assert nth(Uid("a"), 1) == "a"
    assert nth(Uid("a"), 2) != nth(Uid("a"), 3)


def test_header_lines_that_servers_write_are_not_part_of_it() -> None:
    plain = uid_of_header(b"A: b\r\nSubject: x\r\n\r\n", 100)
    assert uid_of_header(b"A: b\r\nStatus: RO\r\nX-UIDL: 7\r\nSubject: x\r\n", 100) == plain
    assert uid_of_header(b"A: c\r\nSubject: x\r\n", 100) != plain
    assert uid_of_header(b"A: b\r\nSubject: x\r\n", 101) != plain


def test_the_header_of_a_message() -> None:
    message = b"Message-ID: <a>\r\nDate: now\r\n\r\nMessage-ID: <b>\r\n"
    assert header_of(message) == b"Message-ID: <a>\r\nDate: now\r\n"
    assert header_digest(message) == header_digest(header_of(message)) != None  # noqa: E711
    assert header_digest(b"Date: now\r\n\r\n") is None


@pytest.mark.parametrize(
    ("told", "now", "same"),
    [(None, 5, True), (5, None, True), (1000, 1000, True), (1000, 1512, True), (1000, 1513, False)],
)
def test_sizes(told: int | None, now: int | None, same: bool) -> None:
    assert is_same_size(told, now) is same


@pytest.mark.parametrize(
    ("poll_s", "terms", "wait_s"),
    [
        (300, Terms(), 300),
        (300, Terms(login_delay_s=900), 900),
        (1800, Terms(login_delay_s=900), 1800),
        (7 * DAY_S, Terms(expire_days=1), DAY_S / 2),
        (300, Terms(expire_days=1), 300),
        (300, Terms(expire_days=0), 300),
        (7 * DAY_S, Terms(login_delay_s=50_000, expire_days=1), 50_000),
    ],
)
def test_the_server_may_want_more_time_or_less(poll_s: float, terms: Terms, wait_s: float) -> None:
    assert next_poll_s(poll_s, terms) == wait_s
