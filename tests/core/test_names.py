"""Names: what servers may send, where it ends on disk, and that nothing leads out of the account's Maildir."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.errors import Scope
from maild.core.names import (
    MAILDIR_PLUS_PLUS,
    NESTED,
    MailboxUnusable,
    decode_mutf7,
    directory,
    encode_mutf7,
    levels_from,
    matches,
)

LAYOUTS = (NESTED, MAILDIR_PLUS_PLUS)

# Every code point, lone surrogates too, and what is special on disk far more often than by chance.
hostile_levels = st.one_of(
    st.text(st.characters(codec=None), max_size=12),
    st.text(st.sampled_from("./%~\\: \x00\n\x7f2EF5curnewtmpA\ud800\udfff"), max_size=8),
    st.sampled_from([".", "..", "...", "", "cur", "new", "tmp", "INBOX", "inbox", "dovecot-keywords", "%", "%25"]),
)
names = st.lists(hostile_levels, min_size=1, max_size=5).map(tuple)


@pytest.mark.parametrize(
    ("wire", "name"),
    [
        (b"INBOX", "INBOX"),
        (b"Entw&APw-rfe", "Entwürfe"),
        (b"~peter/mail/&U,BTFw-/&ZeVnLIqe-", "~peter/mail/台北/日本語"),  # RFC 3501 §5.1.3
        (b"Q&-A", "Q&A"),
        (b"&AOQ-&-&APY-", "ä&ö"),
        (b"&2D3eAA-", "\U0001f600"),
        (b"", ""),
        (b'a"b\\c {5}', 'a"b\\c {5}'),
        (b"&AAA-", "\x00"),
    ],
)
def test_modified_utf7_both_ways(wire: bytes, name: str) -> None:
    assert decode_mutf7(wire) == name
    assert encode_mutf7(name) == wire


@pytest.mark.parametrize(
    "wire",
    [
        b"&",
        b"a&b",
        b"&APw",  # never shifted back
        b"&U,BTFw-&ZeVnLIqe-",  # superfluous shift, the RFC's own example
        b"&AGE-",  # "a" may stand for itself only
        b"&APw=-",
        b"&APx-",  # bits left over that are not zero
        b"&A-",
        b"&APwA-",  # an octet and a half
        b"&2D0-",  # half a surrogate pair
        b"&3gA-",
        b"&U/BTFw-",  # base64 has "," here
        "Entwürfe".encode(),
        b"tab\there",
        b"nul\x00",
        b"\x7f",
    ],
)
def test_invalid_modified_utf7_has_no_name(wire: bytes) -> None:
    assert decode_mutf7(wire) is None


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_name_survives_modified_utf7(name: str) -> None:
    wire = encode_mutf7(name)
    assert decode_mutf7(wire) == name
    assert all(0x20 <= octet <= 0x7E for octet in wire)


@given(st.one_of(st.binary(), st.text("&-AB,/+ÄPw2D3eU", max_size=12).map(lambda text: text.encode())))
def test_what_decodes_encodes_to_the_same_octets(wire: bytes) -> None:
    name = decode_mutf7(wire)
    assert name is None or encode_mutf7(name) == wire


@pytest.mark.parametrize(
    ("levels", "nested", "plus_plus"),
    [
        (("INBOX",), "INBOX", "."),
        (("inbox",), "inbox", ".inbox"),
        (("INBOX", "Sub"), "INBOX/Sub", ".INBOX.Sub"),
        (("Entwürfe",), "Entwürfe", ".Entwürfe"),
        (("Archiv", "2026", "März"), "Archiv/2026/März", ".Archiv.2026.März"),
        (("..", "x"), "%2E./x", ".%2E%2E.x"),
        ((".",), "%2E", ".%2E"),
        (("a/b",), "a%2Fb", ".a%2Fb"),
        (("/etc", "passwd"), "%2Fetc/passwd", ".%2Fetc.passwd"),
        (("cur",), "%63ur", ".%63ur"),
        (("A", "new"), "A/%6Eew", ".A.%6Eew"),
        (("INBOX", "dovecot-keywords"), "INBOX/%64ovecot-keywords", ".INBOX.%64ovecot-keywords"),
        (("CUR",), "CUR", ".CUR"),
        (("100%",), "100%25", ".100%25"),
        (("v1.2",), "v1.2", ".v1%2E2"),
        (("", "x", ""), "%/x/%", ".%.x.%"),
        (("a\nb\x00\x7f\x85",), "a%0Ab%00%7F%C2%85", ".a%0Ab%00%7F%C2%85"),
        (("\ud800",), "%ED%A0%80", ".%ED%A0%80"),
        (("a b\\c:d`$(x)`",), "a b\\c:d`$(x)`", ".a b\\c:d`$(x)`"),
    ],
)
def test_directories(levels: tuple[str, ...], nested: str, plus_plus: str) -> None:
    assert str(directory(levels, NESTED)) == nested
    assert str(directory(levels, MAILDIR_PLUS_PLUS)) == plus_plus
    for layout in LAYOUTS:
        assert levels_from(directory(levels, layout), layout) == levels


@pytest.mark.parametrize("layout", LAYOUTS)
@given(levels=names)
def test_no_name_leaves_the_maildir(layout: str, levels: tuple[str, ...]) -> None:
    try:
        where = directory(levels, layout)
    except MailboxUnusable:
        return
    assert not where.is_absolute()
    assert PurePosixPath("root") in [PurePosixPath("root") / where, *(PurePosixPath("root") / where).parents]
    for component in where.parts:
        assert component not in {".", "..", "cur", "new", "tmp", "dovecot-keywords"}
        assert "/" not in component
        assert "\x00" not in component
        assert len(component.encode()) <= 255  # encodes at all, so it is no lone surrogate either
        assert component.startswith(".") == (layout == MAILDIR_PLUS_PLUS)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(levels=names)
def test_levels_come_back_from_the_directory(layout: str, levels: tuple[str, ...]) -> None:
    """A left inverse exists, so no two mailboxes share a directory."""
    try:
        where = directory(levels, layout)
    except MailboxUnusable:
        return
    assert levels_from(PurePosixPath(str(where)), layout) == levels


@pytest.mark.parametrize(
    ("where", "layout", "levels"),
    [
        ("100%", NESTED, ("100%",)),
        ("%2e%2E", NESTED, ("%2e.",)),  # maild writes capitals
        ("%FF", NESTED, ("%FF",)),  # no UTF-8
        (".A..B", MAILDIR_PLUS_PLUS, ("A", "", "B")),
    ],
)
def test_directories_of_others_are_taken_as_they_stand(where: str, layout: str, levels: tuple[str, ...]) -> None:
    assert levels_from(PurePosixPath(where), layout) == levels


@pytest.mark.parametrize(
    ("levels", "layout"),
    [
        (("ä" * 128,), NESTED),
        (("x" * 256,), NESTED),
        (("/" * 86,), NESTED),
        (("A", "x" * 130, "y" * 130), MAILDIR_PLUS_PLUS),
        (("x",) * 4000, NESTED),
        ((), NESTED),
        ((), MAILDIR_PLUS_PLUS),
    ],
)
def test_a_name_too_long_for_the_disk_concerns_its_mailbox_only(levels: tuple[str, ...], layout: str) -> None:
    with pytest.raises(MailboxUnusable) as caught:
        directory(levels, layout)
    assert caught.value.scope is Scope.MAILBOX
    assert caught.value.text.isprintable()


def test_the_longest_names_fit() -> None:
    assert directory(("x" * 255, "y" * 255), NESTED).parts == ("x" * 255, "y" * 255)
    assert len(str(directory(("A", "x" * 252), MAILDIR_PLUS_PLUS))) == 255


def test_a_name_too_long_is_named_in_the_error() -> None:
    with pytest.raises(MailboxUnusable, match=r"mailbox 'Projekte/ä+….*leave it out with `mailboxes`"):
        directory(("Projekte", "ä" * 128), NESTED)


@pytest.mark.parametrize(
    ("name", "patterns", "selected"),
    [
        ("INBOX", ["*"], True),
        ("Archiv/2026/März", ["*"], True),
        ("Junk", ["*", "!Junk"], False),
        ("Junk/Old", ["*", "!Junk"], True),
        ("Junk/Old", ["*", "!Junk*"], False),
        ("Junk", ["*", "!Junk", "J*"], True),
        ("Junk", ["!Junk", "*"], True),
        ("Work", ["!Junk"], False),
        ("Work", [], False),
        ("inbox", ["INBOX"], True),
        ("INBOX", ["*", "!inbox"], False),
        ("InBox", ["in?ox"], True),
        ("work", ["Work"], False),
        ("März", ["M?rz"], True),
        ("a[b]", ["a[b]"], True),
        ("ab", ["a[b]"], False),
        ("a*b", ["a*b"], True),
        ("a\nb", ["a?b"], True),
        ("", ["*"], True),
        ("", ["?"], False),
        ("abc", ["a*c*"], True),
        ("abcbd", ["a*bd"], True),
        ("abcb", ["a*bd"], False),
        ("!x", ["!x"], False),
        ("!x", ["?x"], True),
    ],
)
def test_patterns(name: str, patterns: list[str], selected: bool) -> None:
    assert matches(name, patterns) is selected


@given(st.text("ab*?", max_size=8), st.text("ab*?", max_size=8))
def test_patterns_agree_with_their_definition(name: str, glob: str) -> None:
    def fits(name: str, glob: str) -> bool:
        if not glob:
            return not name
        if glob[0] == "*":
            return any(fits(name[start:], glob[1:]) for start in range(len(name) + 1))
        return bool(name) and glob[0] in ("?", name[0]) and fits(name[1:], glob[1:])

    assert matches(name, [glob]) == fits(name, glob)


def test_a_hostile_name_does_not_make_matching_explode() -> None:
    assert not matches("a" * 5000, ["*a" * 20 + "b"])
