"""The decision, row by row, and the guard's thresholds; neither touches a disk or a line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.errors import PlanRefused
from maild.core.guard import check_deletions
from maild.core.model import (
    Cursor,
    DeleteLocal,
    Epoch,
    Flags,
    Forget,
    Key,
    Operation,
    Pair,
    Scan,
    ScanTable,
    SetLocalFlags,
    Uid,
)
from maild.core.reconcile import News, proven_gone, reconcile

SEEN, FLAGGED, ANSWERED = "\\Seen", "\\Flagged", "\\Answered"
ANY_FLAGS = st.frozensets(st.sampled_from([SEEN, FLAGGED, ANSWERED, "Wort"]))


def flags(*names: str) -> Flags:
    return frozenset(names)


def pair(uid: str = "1", base: Flags = frozenset()) -> Pair:
    return Pair(Uid(uid), Key(f"key{uid}"), base, 10, b"")


def table(*items: tuple[str, Flags]) -> ScanTable:
    found = ScanTable()
    for uid, flagged in items:
        found.add(Uid(uid), flagged, 10)
    return found


def scanned(*uids: str, full: bool = True, complete: bool = True, vanished: frozenset[Uid] = frozenset()) -> Scan:
    items = table(*((uid, flags()) for uid in uids))
    return Scan(Epoch("1"), items, full, complete, vanished, Cursor(""), None, len(uids))


# base, local, remote flags; None where that side does not have the message
ROWS: tuple[tuple[Flags | None, Flags | None, Flags | None, bool, list[Operation]], ...] = (
    (None, None, flags(SEEN), True, []),  # Pull: it stays in `fresh`
    (None, flags(), None, True, []),  # Push is a later version's
    (flags(), flags(), flags(), True, []),
    (flags(SEEN), flags(), flags(SEEN), True, []),  # a local change, kept
    (flags(), flags(), flags(SEEN), True, [SetLocalFlags(Uid("1"), Key("key1"), flags(SEEN), flags(SEEN))]),
    (
        flags(SEEN),
        flags(FLAGGED),
        flags(SEEN, ANSWERED),
        True,
        [SetLocalFlags(Uid("1"), Key("key1"), flags(FLAGGED, ANSWERED), flags(SEEN, ANSWERED))],
    ),
    (flags(), None, flags(), True, []),  # deleted here: it stays so
    (flags(), None, flags(SEEN), True, [SetLocalFlags(Uid("1"), Key("key1"), flags(SEEN), flags(SEEN))]),
    (flags(), flags(), None, True, [DeleteLocal(Uid("1"), Key("key1"))]),
    (flags(), flags(FLAGGED), None, True, [DeleteLocal(Uid("1"), Key("key1"))]),  # it beats a flag change
    (flags(), flags(), None, False, [Forget(Uid("1"))]),
    (flags(), None, None, True, [Forget(Uid("1"))]),
    (flags(), None, None, False, [Forget(Uid("1"))]),
)


@pytest.mark.parametrize(("base", "local", "remote", "deletes", "expected"), ROWS)
def test_the_table(
    base: Flags | None, local: Flags | None, remote: Flags | None, deletes: bool, expected: list[Operation]
) -> None:
    known = {} if base is None else {Uid("1"): pair(base=base)}
    scan = scanned() if remote is None else scanned("1")
    news = News()
    news.sort([] if remote is None else [(Uid("1"), remote, 10)], known, ())
    news.gone.extend(known[uid] for uid in proven_gone(scan, set(known), [] if remote is None else [Uid("1")]))
    here = {} if local is None else {Key("key1"): local}
    assert reconcile(news, here, deletes=deletes) == expected
    assert len(news.fresh) == (base is None and remote is not None)


def test_what_is_left_out_is_not_pulled() -> None:
    news = News()
    news.sort([(Uid("1"), flags(), 10), (Uid("2"), flags(), 10)], {}, {Uid("1")})
    assert [uid for uid, _, _ in news.fresh] == ["2"]


def test_keywords_that_differ_in_case_only_are_no_change() -> None:
    news = News()
    news.sort([(Uid("1"), flags("WORT"), 10)], {Uid("1"): pair(base=flags("wort"))}, ())
    assert news.changed == []


@given(base=ANY_FLAGS, local=ANY_FLAGS, remote=ANY_FLAGS)
def test_flags_merge_bit_by_bit(base: Flags, local: Flags, remote: Flags) -> None:
    news = News()
    news.changed.append((pair(base=base), remote))
    (operation,) = reconcile(news, {Key("key1"): local}, deletes=True)
    assert isinstance(operation, SetLocalFlags)
    assert operation.base == remote, "what differs from the server stays a local change"
    for flag in base | local | remote:
        was, here, there = flag in base, flag in local, flag in remote
        expected = here if here != was else there
        assert (flag in operation.flags) is expected


@given(
    known=st.frozensets(st.sampled_from("123456")),
    listed=st.frozensets(st.sampled_from("123456")),
    vanished=st.frozensets(st.sampled_from("123456")),
    full=st.booleans(),
    complete=st.booleans(),
)
def test_only_a_complete_listing_proves_that_a_message_is_gone(
    known: frozenset[str], listed: frozenset[str], vanished: frozenset[str], full: bool, complete: bool
) -> None:
    scan = scanned(*listed, full=full, complete=complete, vanished=frozenset(map(Uid, vanished)))
    gone = proven_gone(scan, set(map(Uid, known)), map(Uid, listed))
    if not complete:
        assert gone == set()
    elif full:
        assert gone == known - listed
    else:
        assert gone == known & vanished


# -- the guard (contract 5)


@given(messages=st.integers(0, 200), share=st.integers(0, 100), data=st.data())
def test_the_guard(messages: int, share: int, data: st.DataObject) -> None:
    deletions = data.draw(st.integers(0, messages))
    allowed = messages * share // 100
    is_refused = (messages >= 10 and deletions == messages) or (deletions >= 20 and deletions > allowed)
    if not is_refused:
        check_deletions("INBOX", deletions, messages, allowed)
        return
    with pytest.raises(PlanRefused, match=f"INBOX: {deletions} of {messages} messages are gone"):
        check_deletions("INBOX", deletions, messages, allowed)


@pytest.mark.parametrize(
    ("deletions", "messages", "allowed", "is_refused"),
    [
        (9, 9, 4, False),
        (10, 10, 5, True),
        (10, 11, 5, False),
        (10, 10, 10, True),
        (19, 30, 15, False),
        (20, 39, 19, True),
        (20, 40, 20, False),
        (21, 40, 20, True),
        (0, 0, 0, False),
    ],
)
def test_where_the_guard_begins(deletions: int, messages: int, allowed: int, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(PlanRefused):
            check_deletions("INBOX", deletions, messages, allowed)
    else:
        check_deletions("INBOX", deletions, messages, allowed)
