"""Address lists: what is read in one way only, and what is refused because a recipient could be lost or invented."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.addresses import Address, AddressError, check_address, parse_address, parse_list


def read(field: str) -> list[str]:
    return [str(address) for address in parse_list(field)]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("", []),
        (" , ,, ", []),
        ("a@b", ["a@b"]),
        ("<a@b>", ["a@b"]),
        ("  a@b\t,c@d ", ["a@b", "c@d"]),
        (",a@b,,c@d,", ["a@b", "c@d"]),
        ("A B <a@b>", ["a@b"]),
        ("John Q. Public <j@x.example>", ["j@x.example"]),
        ('"Doe, John" <j@x>, k@y', ["j@x", "k@y"]),
        (r'"a \"b\", <c@d>" <e@f>', ["e@f"]),
        ('"unclosed in words (" <a@b>', ["a@b"]),
        ("a@b (a comment, with <c@d> (and another, e@f))", ["a@b"]),
        (r"(\) , c@d) a@b", ["a@b"]),
        ("a (x) @ (y) b", ["a@b"]),
        ("a@b,\r\n c@d", ["a@b", "c@d"]),
        ("Doe\r\n <a@b>", ["a@b"]),
        ("undisclosed-recipients:;", []),
        ("Team: a@b, C <c@d>;", ["a@b", "c@d"]),
        ("Team: a@b;, e@f", ["a@b", "e@f"]),
        ('"A, B": ;, x@y, Empty:;', ["x@y"]),
        ("=?utf-8?q?J=C3=B6rg?= <a@b>", ["a@b"]),
        ("=?utf-8?q?a?= =?utf-8?b?YQ==?= <a@b>", ["a@b"]),
        ('"ab"@c', ["ab@c"]),
        ('"a@b"@c', ['"a@b"@c']),
        (r'"a\"b"@c', [r'"a\"b"@c']),
        ("a..b@docomo.example", ["a..b@docomo.example"]),
        ("a@[192.0.2.1], b@[IPv6:2001:db8::1]", ["a@[192.0.2.1]", "b@[IPv6:2001:db8::1]"]),
        ("a@b <a@b>", ["a@b"]),
        ("A@B <a@b>", ["a@b"]),
        ("jörg@bücher.example", ["jörg@bücher.example"]),
        ("a+b=c/d!e#f@x_y.example", ["a+b=c/d!e#f@x_y.example"]),
    ],
)
def test_read_in_one_way(field: str, expected: list[str]) -> None:
    assert read(field) == expected


@pytest.mark.parametrize(
    "field",
    [
        "root",
        "a",
        "a, b@c",
        "a@b c@d",
        "a@b; c@d",
        "a@b <c@d>",
        "a@b> , c@d",
        "<a@b",
        "<a@b> <c@d>",
        "<a@b> c",
        "a@b <>",
        "<>",
        "@b",
        "a@",
        "a@b@c",
        "a@@b",
        "a b@c",
        "a@b c",
        "<@x,@y:a@b>",
        "Team: a@b",
        "Team: a@b; c@d",
        "a@b: c@d;",
        "x: y: a@b;;",
        ":;",
        '"a b"@c',
        '"a>b"@c',
        '"a<b"@c',
        '"a@b',
        '"a"b@c',
        "a@b (unclosed",
        "a@b)",
        "a\\b@c",
        "a@b..c",
        "a@.b",
        "a@-b.c",
        "a@b-.c",
        "a@b c.d",
        "a@[b c]",
        "a@[]",
        "a@[1.2.3.4",
        "=?utf-8?q?Doe,_J?= <a@b>",
        "=?utf-8?q?x@evil.example,_J?= <a@b>",
        "=?utf-8?q?a?=x@b",
        "a@b\x00",
        "a\x00@b",
        "a@b\x7f",
        "a@b\u00a0",
        "a@\u2028b",
        "\udcff@b",
        "a@" + "x" * 64,
        "a" * 320 + "@b",
        "a@b\nBcc: c@d",
    ],
)
def test_refused_rather_than_guessed(field: str) -> None:
    with pytest.raises(AddressError):
        read(field)


def test_exactly_one() -> None:
    assert parse_address("A <a@b>") == Address("a", "b")
    for text in ("", "a@b, c@d", "x: a@b, c@d;"):
        with pytest.raises(AddressError):
            parse_address(text)


WORDS = st.text(st.sampled_from("abcXYZ019!#$%&'*+-/=?^_`{|}~.é"), min_size=1, max_size=8).filter(
    lambda word: not word.startswith("=?")
)
LABELS = st.text(st.sampled_from("abcxyz019"), min_size=1, max_size=6)
DOMAINS = st.lists(LABELS, min_size=1, max_size=3).map(".".join)
ADDRESSES = st.builds(lambda local, domain: f"{local}@{domain}", WORDS, DOMAINS)
QUOTED = st.text(st.sampled_from('abc ,;:<>@()[]."\\é'), max_size=10).map(
    lambda name: '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
)
NAMES = st.one_of(QUOTED, st.just("Jo Doe"), st.just("=?utf-8?q?=C3=A9?="), st.just("J. R. Doe"))
COMMENTS = st.text(st.sampled_from('abc ,;:<>@"'), max_size=10).map(lambda text: f"({text})")
SPACE = st.one_of(st.sampled_from([" ", "\t", "\r\n ", "\n\t", "  "]), COMMENTS)


@st.composite
def mailboxes(draw: st.DrawFn) -> tuple[str, list[str]]:
    address = draw(ADDRESSES)
    match draw(st.integers(min_value=0, max_value=3)):
        case 0:
            return address, [address]
        case 1:
            return f"{draw(NAMES)}{draw(SPACE)}<{address}>", [address]
        case 2:
            return f"{draw(SPACE)}<{address}>{draw(SPACE)}", [address]
        case _:
            return f"{address}{draw(SPACE)}", [address]


@st.composite
def lists(draw: st.DrawFn) -> tuple[str, list[str]]:
    elements = draw(st.lists(mailboxes(), max_size=4))
    text, expected = ",".join(e for e, _ in elements), [a for _, found in elements for a in found]
    if draw(st.booleans()):
        members = draw(st.lists(mailboxes(), max_size=3))
        text += f", Group {draw(NAMES)}:{','.join(e for e, _ in members)};"
        expected += [a for _, found in members for a in found]
    return text, expected


@given(lists())
def test_no_recipient_is_lost_and_none_invented(made: tuple[str, list[str]]) -> None:
    text, expected = made
    assert read(text) == expected


@given(st.text(st.sampled_from('ab@.,;:<>()[]"\\ \t\r\n=?é\udcff\0'), max_size=30))
def test_whatever_is_read_can_go_on_the_wire(text: str) -> None:
    """Either it is refused, or each address is one address again when read alone, without anything that ends it."""
    try:
        found = parse_list(text)
    except AddressError:
        return
    for address in found:
        assert check_address(address) == address
        assert parse_list(str(address)) == [address]
        assert not set(str(address)) & set(" \t\r\n\0<>")


def test_big_fields_take_time_in_proportion() -> None:
    many = ", ".join(f"Name {n} <a{n}@b.example>" for n in range(20_000))
    hostile = ("@" * 100_000, "<" * 100_000, "(" * 100_000, '"' * 100_001, ";" * 100_000, "a " * 100_000)
    started = time.perf_counter()
    assert len(parse_list(many)) == 20_000
    for field in hostile:
        with pytest.raises(AddressError):
            parse_list(field)
    assert time.perf_counter() - started < 10
