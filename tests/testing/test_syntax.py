"""The server's grammar, by tables and round trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.testing.imap.syntax import (
    Arguments,
    BadSyntax,
    date_time,
    decode_base64,
    decode_name,
    encode_name,
    set_of,
    string,
)


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("Entwürfe", b"Entw&APw-rfe"),
        ("日本語", b"&ZeVnLIqe-"),
        ("🌻 Garten", b"&2DzfOw- Garten"),
        ("R&D", b"R&-D"),
        ("~peter/mail/台北/日本語", b"~peter/mail/&U,BTFw-/&ZeVnLIqe-"),  # RFC 3501 §5.1.3
        ("tab\there", b"tab&AAk-here"),
    ],
)
def test_names_in_modified_utf7(name: str, wire: bytes) -> None:
    assert encode_name(name) == wire
    assert decode_name(wire) == name


@pytest.mark.parametrize("wire", [b"&APw", b"&AGE-", b"\xc3\xbc", b"&!!-", b"&2Dw-", b"&APw-&APw-"])
def test_names_that_are_not_modified_utf7_are_refused(wire: bytes) -> None:
    with pytest.raises(BadSyntax):
        decode_name(wire)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_name_makes_the_round_trip(name: str) -> None:
    assert decode_name(encode_name(name)) == name


@given(st.binary())
def test_every_string_makes_the_round_trip(value: bytes) -> None:
    arguments = Arguments(string(value))
    assert arguments.string() == value
    arguments.end()


@given(st.sets(st.integers(1, 60)))
def test_sets_are_compressed_without_loss(numbers: set[int]) -> None:
    text = set_of(sorted(numbers))
    if numbers:
        ranges = Arguments(text).ranges()
        assert {number for low, high in ranges for number in range(low, high + 1)} == numbers
        assert all(ranges[i][1] + 1 < ranges[i + 1][0] for i in range(len(ranges) - 1))
    else:
        assert text == b""


def test_stars_are_zero() -> None:
    assert Arguments(b"1:*,*,5,7:3").ranges() == [(1, 0), (0, 0), (5, 5), (7, 3)]


@pytest.mark.parametrize("text", [b"0", b"1:", b"a", b"4294967296", b"1,,2,"])
def test_sets_that_are_none(text: bytes) -> None:
    def read() -> None:
        arguments = Arguments(text)
        arguments.ranges()
        arguments.end()

    with pytest.raises(BadSyntax):
        read()


def test_date_time_both_ways() -> None:
    assert Arguments(b'"17-Jul-1996 02:44:25 -0700"').date_time() == 837596665
    assert date_time(837596665) == b'"17-Jul-1996 09:44:25 +0000"'
    assert date_time(0) == b'" 1-Jan-1970 00:00:00 +0000"'
    assert Arguments(date_time(0)).date_time() == 0


@pytest.mark.parametrize("text", [b'"31-Feb-2026 00:00:00 +0000"', b'"1-Jan-2026"', b'"1-Foo-2026 00:00:00 +0000"'])
def test_dates_that_are_none(text: bytes) -> None:
    with pytest.raises(BadSyntax):
        Arguments(text).date_time()


def test_arguments_are_atoms_quoted_strings_and_literals() -> None:
    arguments = Arguments(b' atom "quo\\"ted" {3}\r\na"\r {2+}\r\nok (\\Seen $Work) ()')
    read = []
    for _ in range(4):
        arguments.space()
        read.append(arguments.astring())
    assert read == [b"atom", b'quo"ted', b'a"\r', b"ok"]
    arguments.space()
    assert arguments.flags() == ["\\Seen", "$Work"]
    arguments.space()
    assert arguments.flags() == []
    arguments.end()


def test_base64_of_sasl() -> None:
    assert decode_base64(b"=") == b""
    assert decode_base64(b"AGEAYg==") == b"\0a\0b"
    with pytest.raises(BadSyntax):
        decode_base64(b"***")
