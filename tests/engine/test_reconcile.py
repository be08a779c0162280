"""The decision, row by row, that swapping the sides swaps it, and the guard's thresholds; no disk and no line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.errors import PlanRefused
from maild.core.guard import HERE, THERE, approval, are_too_many_mailboxes, is_too_many, refusal
from maild.core.model import (
    NO_FLAGS,
    Cursor,
    DeleteLocal,
    DeleteRemote,
    Epoch,
    Flags,
    Forget,
    Keep,
    Key,
    MergeFlags,
    Only,
    Operation,
    Pair,
    Permitted,
    Scan,
    ScanTable,
    Uid,
)
from maild.core.reconcile import LocalNews, RemoteNews, Rules, merge_flags, missing_in, proven_gone, reconcile

SEEN, FLAGGED, ANSWERED = "\\Seen", "\\Flagged", "\\Answered"
ALL_PERMITTED = Permitted(frozenset({SEEN, FLAGGED, ANSWERED}))
ANY_FLAGS = st.frozensets(st.sampled_from([SEEN, FLAGGED, ANSWERED, "Wort"]))
UID, KEY = Uid("1"), Key("key1")


def flags(*names: str) -> Flags:
    return frozenset(names)


def rules(*, here: bool = True, there: bool = True, permitted: Permitted | None = ALL_PERMITTED) -> Rules:
    return Rules(deletes_here=here, deletes_there=there, permitted=permitted)


@dataclass(frozen=True, slots=True)
class Row:
    """One message: its pair, or None, and its flags on either side, None where that side does not have it."""

    pair: Pair | None
    local: Flags | None
    remote: Flags | None


def pair(uid: str = "1", base: Flags = NO_FLAGS, only: Only = "") -> Pair:
    return Pair(Uid(uid), Key(f"key{uid}"), base, 10, b"", only)


def decided(rows: Iterable[Row], rule: Rules) -> list[Operation]:
    """What `reconcile` says about the news in these rows, in the order of the Uids."""
    remote, local, here = RemoteNews(), LocalNews(), dict[Uid, Flags]()
    for row in rows:
        if (known := row.pair) is None:
            continue
        if row.remote is None:
            if known.only != "local":  # what is only here was not expected there
                remote.gone[known.uid] = known
        else:
            remote.sort([(known.uid, row.remote, 10)], {known.uid: known}, ())
        if row.local is None:
            if known.only != "remote":
                local.gone[known.uid] = known
        elif not known.only:
            here[known.uid] = row.local
            if row.local != known.flags:
                local.changed[known.uid] = known, row.local
    here = {uid: mine for uid, mine in here.items() if uid in remote.changed and uid not in local.changed}
    return sorted(reconcile(remote, local, here, rule), key=lambda operation: operation.uid)


def merged(now: Flags, *, add: Flags = NO_FLAGS, remove: Flags = NO_FLAGS, base: Flags | None = None) -> MergeFlags:
    return MergeFlags(UID, KEY, now, add, remove, now if base is None else base)


BOTH = rules()
TO_LOCAL, TO_REMOTE, NONE = rules(there=False), rules(here=False), rules(here=False, there=False)
READ_ONLY = rules(permitted=None)
FEW = rules(permitted=Permitted(frozenset({SEEN}), new_keywords=False))

TABLE: tuple[tuple[str, Row, Rules, list[Operation]], ...] = (
    # no base
    ("pull", Row(None, None, flags(SEEN)), BOTH, []),
    ("push", Row(None, flags(SEEN), None), BOTH, []),
    ("adopt", Row(None, flags(SEEN), flags()), BOTH, []),
    # on both sides: flag by flag
    ("nothing new", Row(pair(base=flags(SEEN)), flags(SEEN), flags(SEEN)), BOTH, []),
    ("set here", Row(pair(), flags(SEEN), flags()), BOTH, [merged(flags(SEEN), add=flags(SEEN))]),
    ("set there", Row(pair(), flags(), flags(SEEN)), BOTH, [merged(flags(SEEN))]),
    ("removed here", Row(pair(base=flags(SEEN)), flags(), flags(SEEN)), BOTH, [merged(flags(), remove=flags(SEEN))]),
    ("removed there", Row(pair(base=flags(SEEN)), flags(SEEN), flags()), BOTH, [merged(flags())]),
    ("set on both sides", Row(pair(), flags(SEEN), flags(SEEN)), BOTH, [merged(flags(SEEN))]),
    (
        "another one on each side",
        Row(pair(base=flags(SEEN)), flags(FLAGGED), flags(SEEN, ANSWERED)),
        BOTH,
        [merged(flags(FLAGGED, ANSWERED), add=flags(FLAGGED), remove=flags(SEEN))],
    ),
    ("a keyword", Row(pair(), flags("Wort"), flags()), BOTH, [merged(flags("Wort"), add=flags("Wort"))]),
    ("a keyword in other case", Row(pair(base=flags("wort")), flags("wort"), flags("WORT")), BOTH, []),
    # what the server keeps
    (
        "a flag that the server does not keep stays here",
        Row(pair(), flags(SEEN, FLAGGED, "Wort"), flags()),
        FEW,
        [merged(flags(SEEN, FLAGGED, "Wort"), add=flags(SEEN), base=flags(SEEN))],
    ),
    (
        "nothing is written there",
        Row(pair(), flags(FLAGGED), flags()),
        READ_ONLY,
        [merged(flags(FLAGGED), base=flags())],
    ),
    (
        "nor removed there",
        Row(pair(base=flags(SEEN)), flags(), flags(SEEN, ANSWERED)),
        READ_ONLY,
        [merged(flags(ANSWERED), base=flags(SEEN, ANSWERED))],
    ),
    # gone here
    ("gone here", Row(pair(), None, flags()), BOTH, [DeleteRemote(UID, KEY)]),
    ("gone here, changed there", Row(pair(), None, flags(SEEN)), BOTH, [DeleteRemote(UID, KEY)]),
    ("gone here, to_remote", Row(pair(), None, flags()), TO_REMOTE, [DeleteRemote(UID, KEY)]),
    ("gone here, to_local", Row(pair(), None, flags()), TO_LOCAL, [Keep(UID, "remote")]),
    ("gone here, none", Row(pair(), None, flags(SEEN)), NONE, [Keep(UID, "remote")]),
    ("gone here, nothing may be written there", Row(pair(), None, flags()), READ_ONLY, [Keep(UID, "remote")]),
    # gone there
    ("gone there", Row(pair(), flags(), None), BOTH, [DeleteLocal(UID, KEY)]),
    ("gone there, changed here", Row(pair(), flags(FLAGGED), None), BOTH, [DeleteLocal(UID, KEY)]),
    ("gone there, to_local", Row(pair(), flags(), None), TO_LOCAL, [DeleteLocal(UID, KEY)]),
    ("gone there, to_remote", Row(pair(), flags(), None), TO_REMOTE, [Keep(UID, "local")]),
    ("gone there, none", Row(pair(), flags(FLAGGED), None), NONE, [Keep(UID, "local")]),
    ("gone there, nothing may be written there", Row(pair(), flags(), None), READ_ONLY, [DeleteLocal(UID, KEY)]),
    # gone on both sides
    *(
        (f"gone on both sides, {n}", Row(pair(), None, None), rule, [Forget(UID)])
        for n, rule in enumerate((BOTH, NONE))
    ),
    # left on one side on purpose
    ("only there", Row(pair(only="remote"), None, flags()), BOTH, []),
    ("only there, changed there", Row(pair(only="remote"), None, flags(SEEN)), BOTH, []),
    ("only there, and gone", Row(pair(only="remote"), None, None), BOTH, [Forget(UID)]),
    ("only here", Row(pair(only="local"), flags(), None), BOTH, []),
    ("only here, changed here", Row(pair(only="local"), flags(SEEN), None), BOTH, []),
    ("only here, and gone", Row(pair(only="local"), None, None), BOTH, [Forget(UID)]),
)


@pytest.mark.parametrize(("row", "rule", "expected"), [line[1:] for line in TABLE], ids=[line[0] for line in TABLE])
def test_the_table(row: Row, rule: Rules, expected: list[Operation]) -> None:
    assert decided([row], rule) == expected


def test_what_has_no_pair_is_fresh_unless_it_is_left_out() -> None:
    news = RemoteNews()
    news.sort([(UID, flags(), 10), (Uid("2"), flags(SEEN), 20)], {}, {UID})
    assert list(news.fresh) == [("2", flags(SEEN), 20)]
    assert (news.changed, news.gone) == ({}, {})


def test_a_changed_message_whose_file_was_not_looked_at_counts_as_paired() -> None:
    news = RemoteNews(changed={UID: (pair(base=flags(SEEN)), flags(SEEN, FLAGGED))})
    assert reconcile(news, LocalNews(), {}, BOTH) == [merged(flags(SEEN, FLAGGED))]


def test_the_flags_seen_last_count() -> None:
    """The file was looked at twice: what `here` says is the later one."""
    local = LocalNews(changed={UID: (pair(), flags(FLAGGED))})
    assert reconcile(RemoteNews(), local, {UID: flags(ANSWERED)}, BOTH) == [
        merged(flags(ANSWERED), add=flags(ANSWERED))
    ]


@given(base=ANY_FLAGS, local=ANY_FLAGS, remote=ANY_FLAGS, kept=st.one_of(st.none(), ANY_FLAGS))
def test_flags_merge_bit_by_bit(base: Flags, local: Flags, remote: Flags, kept: Flags | None) -> None:
    permitted = None if kept is None else Permitted(kept, new_keywords=False)
    operation = merge_flags(pair(base=base), local, remote, permitted)
    for flag in base | local | remote:
        was, here, there = flag in base, flag in local, flag in remote
        expected = here if here != was else there
        assert (flag in operation.flags) is expected
    assert operation.base == (remote | operation.add) - operation.remove, "the base is what the server will have"
    assert not operation.add & remote
    assert operation.remove <= remote
    if kept is None:
        assert (operation.add, operation.remove) == (NO_FLAGS, NO_FLAGS)
    else:
        assert operation.add == (operation.flags - remote) & kept
        assert operation.remove == remote - operation.flags


@given(base=ANY_FLAGS, local=ANY_FLAGS, remote=ANY_FLAGS, kept=st.one_of(st.none(), ANY_FLAGS))
def test_a_merge_leaves_nothing_to_merge(base: Flags, local: Flags, remote: Flags, kept: Flags | None) -> None:
    """A flag that the server does not keep is seen as a change again, and asks for nothing new."""
    permitted = None if kept is None else Permitted(kept, new_keywords=False)
    first = merge_flags(pair(base=base), local, remote, permitted)
    again = merge_flags(pair(base=first.base), first.flags, first.base, permitted)
    assert again == replace(first, add=NO_FLAGS, remove=NO_FLAGS)


def test_flags_are_missing_however_they_are_spelled() -> None:
    assert missing_in(flags("wort", SEEN), flags("WORT", FLAGGED)) == {FLAGGED}


# -- the mirror

MESSAGES = st.lists(
    st.tuples(
        ANY_FLAGS,
        st.sampled_from(["", "", "", "local", "remote"]),
        st.one_of(st.none(), ANY_FLAGS),
        st.one_of(st.none(), ANY_FLAGS),
    ),
    max_size=6,
)
MIRRORED: dict[Only, Only] = {"": "", "local": "remote", "remote": "local"}


def row_of(number: int, base: Flags, only: Only, local: Flags | None, remote: Flags | None) -> Row:
    """What is only on one side is not on the other."""
    return Row(
        pair(str(number), base, only),
        None if only == "remote" else local,
        None if only == "local" else remote,
    )


def mirrored_row(row: Row) -> Row:
    assert row.pair is not None
    return Row(replace(row.pair, only=MIRRORED[row.pair.only]), row.remote, row.local)


def mirrored(operation: Operation, row: Row) -> Operation:
    """The same with both sides swapped: `add` and `remove` are then what this side needs."""
    match operation:
        case DeleteLocal(uid, key):
            return DeleteRemote(uid, key)
        case DeleteRemote(uid, key):
            return DeleteLocal(uid, key)
        case Keep(uid, only):
            return Keep(uid, MIRRORED[only])
        case Forget():
            return operation
        case MergeFlags():
            assert row.local is not None
            return replace(operation, add=operation.flags - row.local, remove=row.local - operation.flags)


@given(messages=MESSAGES, here=st.booleans(), there=st.booleans())
def test_swapping_the_sides_swaps_the_operations(
    messages: list[tuple[Flags, Only, Flags | None, Flags | None]], here: bool, there: bool
) -> None:
    rows = [row_of(n, *message) for n, message in enumerate(messages)]
    operations = decided(rows, rules(here=here, there=there))
    swapped = decided([mirrored_row(row) for row in rows], rules(here=there, there=here))
    assert swapped == [mirrored(operation, rows[int(operation.uid)]) for operation in operations]


@given(messages=MESSAGES, rule=st.sampled_from([BOTH, TO_LOCAL, TO_REMOTE, NONE, READ_ONLY]))
def test_a_message_is_deleted_only_where_the_other_side_lost_it(
    messages: list[tuple[Flags, Only, Flags | None, Flags | None]], rule: Rules
) -> None:
    rows = [row_of(n, *message) for n, message in enumerate(messages)]
    for operation in decided(rows, rule):
        row = rows[int(operation.uid)]
        assert row.pair is not None
        if isinstance(operation, DeleteLocal):
            assert (row.remote, row.pair.only, rule.deletes_here) == (None, "", True)
        elif isinstance(operation, DeleteRemote):
            assert (row.local, row.pair.only, rule.deletes_there) == (None, "", True)
            assert rule.permitted is not None
        elif isinstance(operation, Forget):
            assert (row.local, row.remote) == (None, None)


# -- proofs


def scanned(*uids: str, full: bool = True, complete: bool = True, vanished: frozenset[Uid] = frozenset()) -> Scan:
    items = ScanTable()
    for uid in uids:
        items.add(Uid(uid), flags(), 10)
    return Scan(Epoch("1"), items, full, complete, vanished, Cursor(""), None, len(uids))


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
    assert is_too_many(deletions, messages, allowed) is is_refused


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
    assert is_too_many(deletions, messages, allowed) is is_refused


@pytest.mark.parametrize(("side", "gone", "kept"), [(HERE, "on the server", "here"), (THERE, "here", "on the server")])
def test_what_a_refusal_says(side: str, gone: str, kept: str) -> None:
    refused = refusal("work", "INBOX", 10, 12, side)
    assert isinstance(refused, PlanRefused)
    assert refused.text == f"mailbox INBOX: 10 of 12 messages are gone {gone}; none was deleted {kept}"
    assert "maild approve work/INBOX" in str(refused)


@pytest.mark.parametrize(
    ("gone", "known", "is_refused"),
    [(2, 2, False), (3, 3, True), (3, 5, True), (3, 6, False), (4, 6, True), (0, 0, False)],
)
def test_where_so_many_mailboxes_are_a_fault(gone: int, known: int, is_refused: bool) -> None:
    assert are_too_many_mailboxes(gone, known) is is_refused


@pytest.mark.parametrize(
    ("mailbox", "typed"),
    [("INBOX", "maild approve work/INBOX"), ("Lists/a b", "maild approve 'work/Lists/a b'"), ("$(x)", "'work/$(x)'")],
)
def test_what_is_to_be_typed_can_be_pasted_into_a_shell(mailbox: str, typed: str) -> None:
    assert typed in approval("work", mailbox)
    assert typed in str(refusal("work", mailbox, 10, 10, HERE))
