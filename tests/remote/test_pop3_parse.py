"""A reply is the same however its octets are cut; what a server may not send ends the session."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.errors import ProtocolViolation
from maild.remote.pop3.parse import (
    Expected,
    Limits,
    Parser,
    Reply,
    Shape,
    printable,
    read_capabilities,
    read_sizes,
    read_uids,
)

LINE, LISTING, BODY = Expected(), Expected(Shape.LISTING), Expected(Shape.BODY)


@dataclass
class Taken:
    """A sink that keeps what it is given."""

    announced: int
    octets: bytearray = field(default_factory=bytearray)

    def write(self, chunk: memoryview) -> None:
        self.octets += chunk


def parsed(octets: bytes, *expected: Expected, cuts: tuple[int, ...] = (), limits: Limits | None = None) -> list[Reply]:
    """The replies to octets that arrive in pieces."""
    parser = Parser(limits or Limits())
    for one in expected:
        parser.expect(one)
    bounds = [0, *sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
    replies: list[Reply] = []
    for start, end in itertools.pairwise(bounds):
        replies += parser.feed(octets[start:end])
        if parser.violation is not None:
            raise parser.violation
    assert parser.idle == (len(replies) == len(expected))
    return replies


def stuffed(raw: bytes, line_end: bytes = b"\r\n") -> bytes:
    """What a server makes of a message: one line after the other, as RFC 1939 §3 tells it."""
    lines = raw.split(line_end)
    if lines[-1] == b"":
        lines.pop()
    return b"".join((b"." if line.startswith(b".") else b"") + line + line_end for line in lines) + b"." + line_end


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"+OK", Reply("+OK")),
        (b"+OK hello", Reply("+OK", text="hello")),
        (b"+ok  spaces  ", Reply("+OK", text="spaces")),
        (b"-ERR [IN-USE] later", Reply("-ERR", "IN-USE", "later")),
        (b"-err [sys/temp]later", Reply("-ERR", "SYS/TEMP", "later")),
        (b"-ERR [LOGIN-DELAY 30] later", Reply("-ERR", "LOGIN-DELAY", "later")),
        (b"-ERR [AUTH", Reply("-ERR", text="[AUTH")),
        (b"-ERR no [AUTH] here", Reply("-ERR", text="no [AUTH] here")),
        (b"+ ", Reply("+")),
        (b"+ [AUTH] abc=", Reply("+", text="[AUTH] abc=")),
        (b"+OK \x1b[31m\xff", Reply("+OK", text="�[31m�")),
    ],
)
def test_status_lines(line: bytes, reply: Reply) -> None:
    assert parsed(line + b"\r\n", LINE) == [reply]
    assert parsed(line + b"\n", LINE) == [reply]


@pytest.mark.parametrize("line", [b"", b"* OK IMAP", b"220 smtp", b"HTTP/1.1 400", b"OK", b"+OKAY", b"\xff\xfb\x01"])
def test_what_is_no_status_ends_the_session(line: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parsed(line + b"\r\n", LINE)


def test_more_than_was_asked_for_ends_the_session() -> None:
    with pytest.raises(ProtocolViolation, match="more than it was asked for"):
        parsed(b"+OK one\r\n+OK two\r\n", LINE)


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_listings(end: bytes) -> None:
    octets = end.join([b"+OK", b"1 120", b"2 200", b".", b"+OK", b".", b"-ERR no", b"+OK last", b""])
    replies = parsed(octets, LISTING, LISTING, LISTING, LINE, cuts=(3, 9, 17, 18, 19, 21))
    assert [reply.lines for reply in replies] == [[b"1 120", b"2 200"], [], [], []]
    assert [reply.text for reply in replies] == ["", "", "no", "last"]


lines = st.lists(st.sampled_from([b"", b".", b"..", b"a", b".a", b"\r", b"ab.", b"\n.", b"x" * 40]), max_size=8)


@given(body=lines, cuts=st.lists(st.integers(0, 2000), max_size=12), memory=st.sampled_from([4, 9, 30, 1 << 20]))
def test_a_message_is_what_was_sent_wherever_it_is_cut(body: list[bytes], cuts: list[int], memory: int) -> None:
    """A bare LF or CR in it is content, dots are dots, whether it stays in memory or goes to a sink."""
    raw = b"\r\n".join([b"Subject: x", *body, b""])
    octets = b"+OK here\r\n" + stuffed(raw) + b"+OK next\r\n"
    sinks: list[Taken] = []

    def open_body(size_octets: int) -> Taken:
        sinks.append(Taken(size_octets))
        return sinks[-1]

    expected = Expected(Shape.BODY, open_body, len(raw))
    first, second = parsed(octets, expected, LINE, cuts=tuple(cuts), limits=Limits(memory=memory))
    assert first.size_octets == len(raw)
    assert first.body == raw if isinstance(first.body, bytes) else bytes(sinks[0].octets) == raw
    assert second == Reply("+OK", text="next")


@given(body=lines, cuts=st.lists(st.integers(0, 2000), max_size=12), memory=st.sampled_from([4, 1 << 20]))
def test_a_server_that_ends_lines_with_lf(body: list[bytes], cuts: list[int], memory: int) -> None:
    raw = b"\n".join([b"Subject: x", *(line.replace(b"\n", b"") for line in body), b""])
    sinks: list[Taken] = []

    def open_body(size_octets: int) -> Taken:
        sinks.append(Taken(size_octets))
        return sinks[-1]

    octets = b"+OK\n" + stuffed(raw, b"\n") + b"+OK\n"
    replies = parsed(octets, Expected(Shape.BODY, open_body), LINE, cuts=tuple(cuts), limits=Limits(memory=memory))
    assert len(replies) == 2
    assert bytes(sinks[0].octets) == raw if sinks else replies[0].body == raw


def test_lf_in_the_message_only() -> None:
    """The server sends files as they lie there, and its own lines as it should."""
    (reply, _) = parsed(b"+OK\r\nA: b\n\n..dot\nend\n.\r\n+OK\r\n", BODY, LINE)
    assert reply.body == b"A: b\n\n.dot\nend\n"


def test_a_bare_lf_cannot_end_a_message_of_a_server_that_keeps_to_crlf() -> None:
    """Otherwise a mail could hold what the server says next."""
    raw = b"A: b\r\n\r\nx\n.\r\n+OK smuggled\r\n"
    replies = parsed(b"+OK\r\n" + raw + b".\r\n", BODY)
    assert [reply.body for reply in replies] == [raw]


@pytest.mark.parametrize(("told", "kept"), [(0, b"a\r\nb\r\n"), (6, b"a\r\nb\r\n"), (4, b"a\r\nb"), (3, b"a\r\nb\r\n")])
@pytest.mark.parametrize("memory", [2, 100])
def test_a_line_end_that_the_server_had_to_add_goes(told: int, kept: bytes, memory: int) -> None:
    taken = Taken(0)
    expected = Expected(Shape.BODY, lambda _: taken, told)
    (reply,) = parsed(b"+OK\r\na\r\nb\r\n.\r\n", expected, cuts=tuple(range(20)), limits=Limits(memory=memory))
    assert (reply.body if isinstance(reply.body, bytes) else bytes(taken.octets)) == kept
    assert reply.size_octets == len(kept)


@pytest.mark.parametrize("body", [b".\r\n", b".\n"])
def test_a_message_of_nothing(body: bytes) -> None:
    assert [reply.body for reply in parsed(b"+OK\r\n" + body, BODY, cuts=(5, 6))] == [b""]


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"+OK " + b"x" * 9000, LINE),
        (b"+OK\r\n" + b"1 2\r\n" * 1000, LISTING),
        (b"+OK\r\n" + b"a\r\n" * 2000, BODY),
        (b"+OK\r\n" + b"a" * 80_000, BODY),
    ],
)
def test_what_never_ends_ends_the_session(octets: bytes, expected: Expected) -> None:
    limits = Limits(line=8192, listing=4000, memory=1000, body=5000)
    with pytest.raises(ProtocolViolation):
        parsed(octets, expected, limits=limits)


def test_a_sink_is_told_what_list_told() -> None:
    sinks: list[Taken] = []

    def open_body(size_octets: int) -> Taken:
        sinks.append(Taken(size_octets))
        return sinks[-1]

    raw = b"line\r\n" * 1000
    expected = Expected(Shape.BODY, open_body, 6000)
    parsed(b"+OK\r\n" + raw + b".\r\n", expected, cuts=(2000,), limits=Limits(memory=1000))
    assert [(sink.announced, bytes(sink.octets)) for sink in sinks] == [(6000, raw)]


def test_capabilities() -> None:
    found = read_capabilities([b"TOP", b"sasl PLAIN LOGIN", b"", b"LOGIN-DELAY 900 USER", b"X" * 600])
    assert found == {"TOP": (), "SASL": ("PLAIN", "LOGIN"), "LOGIN-DELAY": ("900", "USER")}


def test_unique_ids() -> None:
    """One that cannot be kept is None: then the content tells the message."""
    lines = [
        b"1 a",
        b"2  spaced in  ",
        b"3",
        b"4 \x01",
        b"5 \xe4",
        b"6 " + b"x" * 600,
        b"x y",
        b"0 z",
        b"",
        b"7 ../..%",
    ]
    assert read_uids(lines) == {1: "a", 2: "spaced in", 3: None, 4: None, 5: None, 6: None, 7: "../..%"}


def test_sizes() -> None:
    assert read_sizes([b"1 10", b" 2  20 more", b"3", b"4 x", b"5 -1", b"6 " + b"9" * 20]) == {1: 10, 2: 20}


@given(st.binary(max_size=700))
def test_printable_text_moves_no_cursor(octets: bytes) -> None:
    text = printable(octets)
    assert text.isprintable()
    assert len(text) <= 500


shapes = st.lists(st.sampled_from([LINE, LISTING, BODY]))


@given(octets=st.binary(max_size=200), cuts=st.lists(st.integers(0, 300), max_size=6), expected=shapes)
def test_garbage_gives_the_same_replies_however_it_is_cut(
    octets: bytes, cuts: list[int], expected: list[Expected]
) -> None:
    def outcome(cuts: tuple[int, ...]) -> tuple[list[Reply], str]:
        parser = Parser(Limits(line=64, listing=1000, memory=1000, body=1000))
        for one in expected:
            parser.expect(one)
        bounds = [0, *sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
        replies: list[Reply] = []
        for start, end in itertools.pairwise(bounds):
            replies += parser.feed(octets[start:end])
            if parser.violation is not None:
                return replies, str(parser.violation)
        return replies, ""

    assert outcome(()) == outcome(tuple(cuts))


def test_what_is_whole_before_garbage_is_good() -> None:
    parser = Parser(Limits())
    for _ in range(3):
        parser.expect(LINE)
    assert [reply.text for reply in parser.feed(b"+OK one\r\n+OK two\r\nthree\r\n")] == ["one", "two"]
    assert parser.violation is not None
