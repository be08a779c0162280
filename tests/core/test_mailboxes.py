"""Mailboxes made, renamed and deleted: the table row by row, in both layouts, and what a rename is known by."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from maild.core.mailboxes import (
    CreateRemote,
    DirectoryGone,
    ForgetMailbox,
    Known,
    MailboxGone,
    MailboxOperation,
    RenameLocal,
    RenameRemote,
    Sides,
    name_of,
    plan_mailboxes,
)
from maild.core.model import Listing, MailboxName, RemoteMailbox
from maild.core.names import MAILDIR_PLUS_PLUS, NESTED, directory, matches

LAYOUTS = [NESTED, MAILDIR_PLUS_PLUS]


def place(name: str, layout: str = NESTED, separator: str = "/") -> str:
    """The directory of a mailbox."""
    return str(directory(tuple(name.split(separator)), layout))


def known(
    name: str,
    *,
    where: str | None = None,
    identity: str | None = None,
    object_id: str = "",
    epoch: str = "1",
    next_uid: str = "5",
    layout: str = NESTED,
) -> Known:
    """A mailbox that both sides had; its directory's inode is called as the mailbox unless told otherwise."""
    return Known(
        MailboxName(name),
        place(name, layout) if where is None else where,
        f"inode of {name}" if identity is None else identity,
        object_id,
        epoch,
        next_uid,
    )


def there(
    name: str, *, object_id: str = "", epoch: str = "1", next_uid: str = "5", separator: str = "/"
) -> RemoteMailbox:
    return RemoteMailbox(
        MailboxName(name), tuple(name.split(separator)), epoch=epoch, next_uid=next_uid, object_id=object_id
    )


def planned(
    rows: Sequence[Known],
    listed: Sequence[RemoteMailbox],
    here: dict[str, str],
    *,
    layout: str = NESTED,
    separator: str = "/",
    patterns: Sequence[str] = ("*",),
    present: Sequence[str] = (),
) -> tuple[list[MailboxOperation], dict[str, str]]:
    """`here`: names of directories to what their inode is called. `present`: what the server has besides."""
    listing = Listing(
        mailboxes=tuple(mailbox for mailbox in listed if matches(mailbox.name, patterns)),
        present=frozenset(MailboxName(name) for name in (*(mailbox.name for mailbox in listed), *present)),
        separator=separator,
    )
    return plan_mailboxes(Sides(rows, listing, here, lambda name: matches(name, patterns), layout))


def inode(name: str) -> str:
    return f"inode of {name}"


def name(text: str) -> MailboxName:
    return MailboxName(text)


# -- the table


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("is_here", [False, True])
@pytest.mark.parametrize("is_there", [False, True])
def test_the_table(layout: str, is_known: bool, is_here: bool, is_there: bool) -> None:
    where = place("a/b", layout)
    expected: list[MailboxOperation] = {
        (False, False, True): [],
        (False, True, False): [CreateRemote(name("a/b"), ("a", "b"), where)],
        (False, True, True): [],
        (True, True, True): [],
        (True, False, True): [DirectoryGone(name("a/b"))],
        (True, True, False): [MailboxGone(name("a/b"))],
        (True, False, False): [ForgetMailbox(name("a/b"))],
        (False, False, False): [],
    }[is_known, is_here, is_there]
    rows = [known("a/b", layout=layout)] if is_known else []
    listed = [there("a/b")] if is_there else []
    assert planned(rows, listed, {where: inode("a/b")} if is_here else {}, layout=layout) == (expected, {})


def test_a_directory_that_no_pass_has_seen_is_not_gone() -> None:
    assert planned([known("A", identity="")], [there("A")], {}) == ([], {})


def test_what_cannot_be_selected_is_there_all_the_same() -> None:
    assert planned([known("A")], [], {"A": inode("A")}, present=["A"]) == ([], {})
    assert planned([], [], {"A": inode("A")}, present=["A"]) == ([], {}), "nor is it made once more"


@pytest.mark.parametrize(("layout", "where"), [(NESTED, "INBOX"), (MAILDIR_PLUS_PLUS, ".")])
def test_inbox(layout: str, where: str) -> None:
    assert planned([], [there("INBOX")], {where: "x"}, layout=layout) == ([], {})
    row = known("INBOX", layout=layout)
    assert row.directory == where
    assert planned([row], [there("INBOX")], {}, layout=layout) == ([DirectoryGone(name("INBOX"))], {})


def test_inbox_is_not_renamed_there() -> None:
    """Its directory under another name is a new mailbox."""
    plan, _ = planned([known("INBOX")], [there("INBOX")], {"Old": inode("INBOX")})
    assert plan == [DirectoryGone(name("INBOX")), CreateRemote(name("Old"), ("Old",), "Old")]


def test_inbox_in_small_letters_is_inbox() -> None:
    assert planned([], [there("INBOX")], {"inbox": "x"}) == ([], {})
    plan, _ = planned([], [there("INBOX")], {"inbox/a": "x"})
    assert plan == [CreateRemote(name("INBOX/a"), ("inbox", "a"), "inbox/a")]


# -- what the server can be told


def test_a_separator_in_a_name_is_told_and_left() -> None:
    plan, unusable = planned([], [there("INBOX", separator=".")], {"a.b": "x", "c/d": "y"}, separator=".")
    assert plan == [CreateRemote(name("c.d"), ("c", "d"), "c/d")]
    assert list(unusable) == ["a.b"]
    assert "separator '.'" in unusable["a.b"]


def test_a_percent_encoded_separator_is_one() -> None:
    assert list(planned([], [], {"a%2Fb": "x"})[1]) == ["a/b"]


def test_a_rename_to_a_name_with_the_separator_is_none() -> None:
    plan, unusable = planned([known("A")], [there("A")], {"a.b": inode("A")}, separator=".")
    assert plan == [DirectoryGone(name("A"))]
    assert list(unusable) == ["a.b"]


@pytest.mark.parametrize(
    ("levels", "separator", "expected"),
    [
        (("a",), "/", "a"),
        (("a", "b"), "/", "a/b"),
        (("a", "b"), ".", "a.b"),
        (("inbox",), "/", "INBOX"),
        (("Inbox", "inbox"), "/", "INBOX/inbox"),
        (("a",), "", "a"),
        (("a/b",), "", "a/b"),
        (("a", "b"), "", None),
        (("a/b",), "/", None),
        (("a", "b.c"), ".", None),
        (("a", ""), "/", None),
        ((), "/", None),
    ],
)
def test_what_a_mailbox_is_called_there(levels: tuple[str, ...], separator: str, expected: str | None) -> None:
    assert name_of(levels, separator) == expected


# -- renamed here


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_inode_under_another_name_is_renamed(layout: str) -> None:
    where = place("b/c", layout)
    plan, _ = planned([known("a", layout=layout)], [there("a")], {where: inode("a")}, layout=layout)
    assert plan == [RenameRemote(name("a"), name("b/c"), ("b", "c"), where)]


def test_another_inode_is_another_mailbox() -> None:
    plan, _ = planned([known("A")], [there("A")], {"B": "other"})
    assert plan == [DirectoryGone(name("A")), CreateRemote(name("B"), ("B",), "B")]


def test_a_directory_in_place_of_a_renamed_one() -> None:
    """The old name was given to another one at once: as its directory is there, nothing is missing."""
    plan, _ = planned([known("A")], [there("A")], {"A": "other", "B": inode("A")})
    assert plan == [CreateRemote(name("B"), ("B",), "B")]


def test_a_rename_to_a_name_that_the_server_has_is_none() -> None:
    plan, _ = planned([known("A")], [there("A")], {"B": inode("A")}, present=["B"])
    assert plan == [DirectoryGone(name("A"))]


def test_children_go_along() -> None:
    rows = [known("a"), known("a/b")]
    plan, _ = planned(rows, [there("a"), there("a/b")], {"x": inode("a"), "x/b": inode("a/b")})
    assert plan == [
        RenameRemote(name("a"), name("x"), ("x",), "x"),
        RenameRemote(name("a/b"), name("x/b"), ("x", "b"), "x/b"),
    ]


def test_renames_come_first() -> None:
    rows = [known("gone"), known("lost"), known("z")]
    plan, _ = planned(
        rows, [there("lost"), there("z")], {"gone": inode("gone"), "new": "n", "y": inode("z")}, patterns=["*"]
    )
    assert isinstance(plan[0], RenameRemote)
    assert {type(operation) for operation in plan[1:]} == {MailboxGone, DirectoryGone, CreateRemote}


# -- renamed there


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_mailboxid_is_renamed(layout: str) -> None:
    row = known("a", object_id="M1", layout=layout)
    others = [there("other", object_id="M2"), there("b/c", object_id="M1", epoch="9", next_uid="1")]
    plan, _ = planned([row], others, {place("a", layout): inode("a")}, layout=layout)
    assert plan == [RenameLocal(name("a"), name("b/c"), place("a", layout), place("b/c", layout))]


def test_another_mailboxid_is_another_mailbox_whatever_else_is_equal() -> None:
    plan, _ = planned([known("A", object_id="M1")], [there("B", object_id="M2")], {"A": inode("A")})
    assert plan == [MailboxGone(name("A"))]


@pytest.mark.parametrize(("next_uid", "is_renamed"), [("5", True), ("6", True), ("4", False), ("", False)])
def test_without_mailboxid_uidvalidity_and_uidnext_tell(next_uid: str, is_renamed: bool) -> None:
    plan, _ = planned([known("A")], [there("B", next_uid=next_uid)], {"A": inode("A")})
    assert plan == ([RenameLocal(name("A"), name("B"), "A", "B")] if is_renamed else [MailboxGone(name("A"))])


@pytest.mark.parametrize(
    ("row", "listed"),
    [
        (known("A", epoch="1"), there("B", epoch="2")),
        (known("A", epoch=""), there("B", epoch="")),
        (known("A", next_uid=""), there("B")),
    ],
    ids=["another", "none", "no UIDNEXT"],
)
def test_another_uidvalidity_or_none_proves_nothing(row: Known, listed: RemoteMailbox) -> None:
    assert planned([row], [listed], {"A": inode("A")})[0] == [MailboxGone(name("A"))]


def test_two_that_could_be_it_are_none() -> None:
    plan, _ = planned([known("A")], [there("B"), there("C")], {"A": inode("A")})
    assert plan == [MailboxGone(name("A"))]


def test_two_that_could_have_been_it_are_none() -> None:
    plan, _ = planned([known("A"), known("B")], [there("C")], {"A": inode("A"), "B": inode("B")})
    assert plan == [MailboxGone(name("A")), MailboxGone(name("B"))]


def test_one_that_is_still_there_is_no_rival() -> None:
    plan, _ = planned([known("A"), known("B")], [there("B"), there("C")], {"A": inode("A"), "B": inode("B")})
    assert plan == [RenameLocal(name("A"), name("C"), "A", "C")]


def test_an_old_mailbox_is_no_new_name() -> None:
    """Only one that is new there can be the renamed one, though all have the same UIDVALIDITY."""
    plan, _ = planned([known("A"), known("B")], [there("B")], {"A": inode("A"), "B": inode("B")})
    assert plan == [MailboxGone(name("A"))]


def test_another_separator_is_a_rename_in_the_same_directory() -> None:
    row = known("a.b", where="a/b", object_id="M1")
    plan, _ = planned([row], [there("a/b", object_id="M1")], {"a/b": inode("a.b")})
    assert plan == [RenameLocal(name("a.b"), name("a/b"), "a/b", "a/b")]


# -- renamed on both sides


def test_renamed_on_both_sides_the_servers_name_wins() -> None:
    row = known("A", object_id="M1")
    plan, _ = planned([row], [there("Theirs", object_id="M1")], {"Mine": inode("A")})
    assert plan == [RenameLocal(name("A"), name("Theirs"), "Mine", "Theirs")]


def test_renamed_there_and_gone_here_is_forgotten() -> None:
    """It comes as a new mailbox."""
    plan, _ = planned([known("A", object_id="M1")], [there("B", object_id="M1")], {})
    assert plan == [ForgetMailbox(name("A"))]


def test_renamed_here_and_gone_there_is_a_new_mailbox() -> None:
    plan, _ = planned([known("A", object_id="M1")], [], {"B": inode("A")})
    assert plan == [ForgetMailbox(name("A")), CreateRemote(name("B"), ("B",), "B")]


def test_renamed_alike_where_the_server_tells_nothing_but_names() -> None:
    """As a rename there leaves it that was cut off before it was noted."""
    row = known("A", epoch="", next_uid="")
    plan, _ = planned([row], [there("New", epoch="", next_uid="")], {"New": inode("A")})
    assert plan == [RenameLocal(name("A"), name("New"), "New", "New")]
    plan, _ = planned([row], [there("New", epoch="", next_uid="")], {"New": "another inode"})
    assert plan == [ForgetMailbox(name("A"))]


def test_renamed_alike_on_both_sides() -> None:
    plan, _ = planned([known("A", object_id="M1")], [there("B", object_id="M1")], {"B": inode("A")})
    assert plan == [RenameLocal(name("A"), name("B"), "B", "B")]


# -- patterns


def test_what_the_patterns_leave_out_is_neither_made_nor_missed() -> None:
    patterns = ["*", "!Junk*"]
    rows = [known("Junk/a", identity=""), known("Junk/b")]
    listed = [there("Junk/a"), there("Junk/d")]
    assert planned(rows, listed, {"Junk/b": inode("Junk/b"), "Junk/new": "n"}, patterns=patterns) == ([], {})


@pytest.mark.parametrize("listed", [[there("Junk")], []], ids=["there", "gone"])
def test_what_the_patterns_leave_out_and_is_gone_here_is_forgotten(listed: list[RemoteMailbox]) -> None:
    plan, _ = planned([known("Junk")], listed, {}, patterns=["*", "!Junk"])
    assert plan == [ForgetMailbox(name("Junk"))]


def test_a_rename_out_of_the_patterns_here_is_a_directory_gone() -> None:
    plan, _ = planned([known("A")], [there("A")], {"Junk": inode("A")}, patterns=["*", "!Junk"])
    assert plan == [DirectoryGone(name("A"))]


def test_a_rename_out_of_the_patterns_there_is_a_mailbox_gone() -> None:
    row = known("A", object_id="M1")
    plan, _ = planned([row], [there("Junk", object_id="M1")], {"A": inode("A")}, patterns=["*", "!Junk"])
    assert plan == [MailboxGone(name("A"))]
