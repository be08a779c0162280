"""Flags: one spelling each, a merge that loses no one's change, and the letters of file names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.flags import (
    canonical_flags,
    from_letters,
    join_info,
    keywords_of,
    merge,
    replace_letters,
    same_flags,
    split_info,
    to_letters,
)
from maild.core.model import NO_FLAGS, Flags

SYSTEM = ["\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen", "$Forwarded"]
LETTERS = {"work": "a", "$label1": "b"}
KEYWORDS = {"a": "Work", "b": "$Label1"}

flags = st.frozensets(st.sampled_from([*SYSTEM, "Work", "$Label1", "Todo"]))
spelled_flags = st.frozensets(st.sampled_from(["\\Seen", "\\Flagged", "Work", "WORK", "work", "Todo", "todo"])).map(
    lambda names: canonical_flags(sorted(names))
)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["\\seen", "\\SEEN"], {"\\Seen"}),
        (["\\Recent", "\\Seen"], {"\\Seen"}),
        (["\\RECENT"], set()),
        (["$forwarded"], {"$Forwarded"}),
        (["Work", "work", "WORK"], {"Work"}),
        (["\\*", "\\Junk", ""], set()),
        (["NonJunk", "\\ANSWERED", "\\draft", "\\deleted", "\\flagged"],
         {"NonJunk", "\\Answered", "\\Draft", "\\Deleted", "\\Flagged"}),
    ],
)  # fmt: skip
def test_one_spelling_for_each_flag(names: list[str], expected: set[str]) -> None:
    assert canonical_flags(names) == expected


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("flag", ["\\Seen", "Work"])
def test_each_flag_goes_with_the_side_that_changed_it(base: bool, local: bool, remote: bool, flag: str) -> None:
    def having(it: bool) -> Flags:
        return frozenset({flag}) if it else NO_FLAGS

    expected = local if local != base else remote
    assert merge(having(base), having(local), having(remote)) == having(expected)


@given(flags, flags, flags)
def test_merge_is_the_formula(base: Flags, local: Flags, remote: Flags) -> None:
    assert merge(base, local, remote) == (base & local & remote) | ((local | remote) - base)


@given(spelled_flags, spelled_flags, spelled_flags)
def test_spelling_is_no_change(base: Flags, local: Flags, remote: Flags) -> None:
    def folded(some: Flags) -> Flags:
        return frozenset(flag.lower() for flag in some)

    merged = merge(base, local, remote)
    assert folded(merged) == merge(folded(base), folded(local), folded(remote))
    assert len(folded(merged)) == len(merged)
    for flag in merged:  # the server's spelling where it has one
        assert flag in remote or (flag in local and flag.lower() not in folded(remote))


def test_keywords_are_the_same_in_any_spelling() -> None:
    assert merge(frozenset({"Work"}), frozenset({"work"}), frozenset({"WORK"})) == {"WORK"}
    assert same_flags(frozenset({"Work", "\\Seen"}), frozenset({"WORK", "\\Seen"}))
    assert not same_flags(frozenset({"Work"}), frozenset({"Work", "\\Seen"}))


def test_letters_are_sorted_and_complete() -> None:
    assert to_letters(frozenset(SYSTEM), {}) == "DFPRST"
    assert to_letters(frozenset({"\\Seen", "WORK", "$Label1", "\\Draft"}), LETTERS) == "DSab"
    assert to_letters(frozenset({"Unlisted"}), LETTERS) == ""


@given(st.frozensets(st.sampled_from([*SYSTEM, "Work", "$Label1"])))
def test_letters_mean_the_flags_they_were_made_of(some: Flags) -> None:
    assert from_letters(to_letters(some, LETTERS), KEYWORDS) == some


def test_unknown_letters_mean_nothing() -> None:
    assert from_letters("SXz9,Fa", KEYWORDS) == {"\\Seen"}


@pytest.mark.parametrize(
    ("old", "new_flags", "expected"),
    [
        ("", {"\\Seen"}, "S"),
        ("S", set(), ""),
        ("FS", {"\\Seen", "Work"}, "Sa"),
        ("XS", {"\\Flagged"}, "FX"),
        ("Sz", set(), "z"),
        ("Sa", {"\\Seen"}, "S"),
        ("SS", {"\\Seen"}, "S"),
        ("S,W=1", {"\\Flagged"}, "F,W=1"),
        ("2S", {"\\Answered"}, "2R"),
    ],
)
def test_letters_of_others_stay(old: str, new_flags: set[str], expected: str) -> None:
    assert replace_letters(old, frozenset(new_flags), LETTERS, KEYWORDS) == expected


def test_a_keyword_listed_twice_can_still_be_removed() -> None:
    assert replace_letters("ab", NO_FLAGS, {"work": "a"}, {"a": "Work", "b": "work"}) == ""


@pytest.mark.parametrize(
    ("filename", "key", "letters"),
    [
        ("1.M2P3Q4.host", "1.M2P3Q4.host", None),
        ("1.host:2,", "1.host", ""),
        ("1.host,S=12:2,FS", "1.host,S=12", "FS"),
        ("1.host:1,x", "1.host:1,x", None),
        ("a:2,S:2,F", "a", "S:2,F"),
        (":2,S", "", "S"),
    ],
)
def test_file_names_come_apart_and_together(filename: str, key: str, letters: str | None) -> None:
    taken = split_info(filename)
    assert taken == (key, letters)
    assert join_info(*taken) == filename


def test_keywords_are_what_needs_a_letter_of_its_own() -> None:
    assert keywords_of(frozenset({"\\Seen", "$Forwarded", "todo", "Work", "$Junk"})) == ("$Junk", "todo", "Work")
