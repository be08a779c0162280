"""The head of a message: divided without loss, completed, and shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.head import decoded, disk_form, divide, encoded_phrase, encoded_text


@pytest.mark.parametrize(
    ("raw", "names", "body", "is_closed"),
    [
        (b"A: 1\nB: 2\n\nbody\n", ["a", "b"], b"body\n", True),
        (b"A: 1\n folded\n\tmore\nB : 2\n\n\nbody\n", ["a", "b"], b"\nbody\n", True),
        (b"A: 1\n", ["a"], b"", True),
        (b"\nbody\n", [], b"body\n", True),
        (b"", [], b"", True),
        (b"no head at all\nbody\n", [], b"no head at all\nbody\n", False),
        (b"A: 1\nnot a field\nBcc: x@y\n\nbody\n", ["a"], b"not a field\nBcc: x@y\n\nbody\n", False),
        (b" begins folded\n", [], b" begins folded\n", False),
        (b"From me@x Thu Jan  1 00:00:00 1970\nA: 1\n\nb\n", ["a"], b"b\n", True),
        (b"From : me@x\n\nb\n", ["from"], b"b\n", True),
        (b"From: me@x\n\nb\n", ["from"], b"b\n", True),
        (b"S\xc3\xb6: 1\n\n", [], b"S\xc3\xb6: 1\n\n", False),
    ],
)
def test_divided(raw: bytes, names: list[str], body: bytes, is_closed: bool) -> None:
    message = divide(raw)
    assert ([field.name for field in message.fields], message.body, message.is_closed) == (names, body, is_closed)


@given(
    st.lists(st.sampled_from([b"A: 1\n", b"B:2\n", b" f\n", b"\n", b"x\n", b"Bcc: y@z\n"]), max_size=9).map(b"".join)
)
def test_nothing_is_lost(text: bytes) -> None:
    message = divide(text)
    head = b"".join(field.octets for field in message.fields)
    assert head + (b"\n" if message.is_closed and len(head) < len(text) else b"") + message.body == text


def test_bodies_are_unfolded() -> None:
    message = divide(b"To: a@b,\n\tc@d\nto: e@f\nSubject: \xff\n\n")
    assert message.bodies("to") == ["a@b,\tc@d", "e@f"]
    assert message.first("subject") == "\udcff"
    assert message.first("cc", "to") == "a@b,\tc@d"
    assert message.first("cc") == ""


def test_taken_out_and_added() -> None:
    message = divide(b"To: a@b\nBcc: c@d,\n e@f\nBCC: g@h\n\nBcc: in the body\n").without("bcc")
    assert message.preceded_by([("Date", "now")]).joined() == b"Date: now\nTo: a@b\n\nBcc: in the body\n"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(b"", b""), (b"a", b"a\n"), (b"a\r\nb\rc\nd\r", b"a\nb\nc\nd\n"), (b"\r\r\n\n", b"\n\n\n"), (b"\n\r", b"\n\n")],
)
def test_disk_form(raw: bytes, expected: bytes) -> None:
    assert disk_form(raw) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("plain", "plain"),
        ("=?utf-8?q?h=C3=A9_llo?=", "hé llo"),
        ("=?utf-8?b?aMOp?= =?UTF-8?Q?llo?=", "héllo"),
        ("a =?iso-8859-1?q?=E9?= b", "a é b"),
        ("=?utf-8?b?%%%?=", ""),
        ("=?nonsense?q?x?=", "=?nonsense?q?x?="),
        ("\udcff", "?"),
        ("=?utf-8*de?q?x?=", "x"),
    ],
)
def test_shown(body: str, expected: str) -> None:
    assert decoded(body) == expected


@given(st.text(max_size=80))
def test_a_name_in_a_field_is_one_line_of_ascii_and_comes_back(name: str) -> None:
    phrase = encoded_phrase(name)
    assert phrase.isascii()
    assert phrase.isprintable()
    assert encoded_text(name).isascii()
    if name.isprintable() and not name.isascii():
        assert decoded(phrase) == name
