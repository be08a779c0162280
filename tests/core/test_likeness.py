"""Whether a message on a server is the one that was sent: by what nobody else's copy could show too."""

from __future__ import annotations

import pytest

from maild.core.likeness import Likeness

HEAD = "Date: Tue, 24 Nov 2026 10:00:0{} +0100\nTo: {}\nSubject: {}\nMessage-ID: {}\n\n"
OURS = "<1@here.example>"


def head(message_id: str = OURS, subject: str = "ALERT", to: str = "a@x.example", second: int = 0) -> bytes:
    return HEAD.format(second, to, subject, message_id).encode()


WANTED = Likeness.of(head())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (head(), True),
        (head(subject="another", second=5), True),
        (head("<9@server.example>"), True),
        (head("<9@server.example>", to="A <a@X.example>"), True),
        (head(""), True),
        (head("<2@here.example>"), False),
        (head("<2@HERE.example> "), False),
        (head("<9@server.example>", second=1), False),
        (head("<9@server.example>", subject="ALERT 2"), False),
        (head("<9@server.example>", to="b@x.example"), False),
    ],
)
def test_by_its_id_or_else_by_what_it_looks_like(found: bytes, expected: bool) -> None:
    assert WANTED.fits(found) is expected


def test_what_another_message_shares_tells_nothing() -> None:
    twin = Likeness.of(head("<2@here.example>")).marks
    among = WANTED.among([twin, Likeness.of(head("<3@here.example>", second=3)).marks])
    assert among.fits(head())
    assert not among.fits(head("<9@server.example>"))
    assert among.is_telling
    again = WANTED.among([Likeness.of(head(subject="another")).marks])
    assert not again.fits(head())
    assert again.fits(head("<9@server.example>"))
    assert not WANTED.among([WANTED.marks]).is_telling


def test_those_without_traits_share_none() -> None:
    bare = Likeness.of(b"Subject: a\nMessage-ID: <1@here.example>\n\n")
    assert bare.among([Likeness.of(b"Subject: a\nMessage-ID: <2@here.example>\n\n").marks]).fits(head())
    nameless = Likeness.of(b"Subject: a\n\n")
    assert not nameless.is_telling
    assert nameless.marks.message_id == nameless.marks.traits == ""


def test_marks_of_a_subject_in_no_known_encoding() -> None:
    raw = [head().replace(b"ALERT", octets) for octets in (b"\xff", "é".encode(), b"=?utf-8?q?=C3=A9?=")]
    marks = [Likeness.of(octets).marks.traits for octets in raw]
    assert marks[0] != marks[1] == marks[2]
