"""Octets to events: every odd response seen in the field, in any pieces; limits; and time that grows with the input.

The cases follow the list of odd server responses that other clients met; a bare #n is an issue of jstedfast/MailKit.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.errors import ProtocolViolation
from maild.remote.imap.parse import (
    Continuation,
    Data,
    Event,
    FetchData,
    Ignored,
    Limits,
    Numbered,
    Parser,
    Sink,
    Tagged,
    Untagged,
    Vanished,
    number,
    parse_flags,
    printable,
    tokens,
    uid_ranges,
    uid_set,
)

SEEN = frozenset({"\\Seen"})


def whole(octets: bytes) -> Iterator[bytes]:
    yield octets


def per_octet(octets: bytes) -> Iterator[bytes]:
    for start in range(len(octets)):
        yield octets[start : start + 1]


def at_random(octets: bytes) -> Iterator[bytes]:
    generator = random.Random(len(octets))
    start = 0
    while start < len(octets):
        size = generator.choice((1, 2, 3, 7, 50, 1000))
        yield octets[start : start + size]
        start += size


CHUNKINGS = [whole, per_octet, at_random]
Chunking = Callable[[bytes], Iterable[bytes]]


def read(octets: bytes, chunking: Chunking = whole, limits: Limits | None = None) -> tuple[list[Event], str]:
    """All events, and what the parser stopped for, or ""."""
    parser = Parser(limits)
    events = [event for piece in chunking(octets) for event in parser.feed(piece)]
    return events, str(parser.violation or "")


def untagged(status: str, code: str = "", argument: bytes = b"", text: str = "") -> Untagged:
    return Untagged(status, code, argument, text)


# (what, the octets without the last CRLF, the events): used.
USED: list[tuple[str, bytes, list[Event]]] = [
    ("tagged without text (imap-codec)", b"A1 OK", [Tagged("A1", "OK", "", b"", "")]),
    ("tagged with a space and no text", b"A1 OK ", [Tagged("A1", "OK", "", b"", "")]),
    ("lower case", b"a1 ok done\r\n* ok hi", [Tagged("a1", "OK", "", b"", "done"), untagged("OK", text="hi")]),
    ("line feeds only", b"* 3 EXISTS\nA1 OK x", [Numbered(3, "EXISTS"), Tagged("A1", "OK", "", b"", "x")]),
    ("empty SEARCH", b"* SEARCH", [Data("SEARCH", [])]),
    ("SEARCH with a space at its end (imap-codec)", b"* SEARCH ", [Data("SEARCH", [])]),
    ("SEARCH with MODSEQ", b"* SEARCH 2 5 (MODSEQ 7)", [Data("SEARCH", [b"2", b"5", b"(", b"MODSEQ", b"7", b")"])]),
    ("CAPABILITY with a space at its end", b"* CAPABILITY IMAP4rev1 ID ", [Data("CAPABILITY", [b"IMAP4rev1", b"ID"])]),
    ("bare continuation", b"+", [Continuation(b"")]),
    ("continuation with nothing", b"+ ", [Continuation(b"")]),
    ("continuation that ends like a literal", b"+ go {12}", [Continuation(b"go {12}")]),
    ("MODSEQ -1 (Zoho, #1686)", b"* 1 FETCH (UID 7 MODSEQ (-1))", [FetchData(1, uid=7, modseq=-1)]),
    ("a number with a comma (mail.ru, #1838)", b"* 1 FETCH (UID 7 RFC822.SIZE 9.3736e+06)", [FetchData(1, 7, size=-1)]),
    ("UIDNEXT 0 (#1010)", b"* OK [UIDNEXT 0] x", [untagged("OK", "UIDNEXT", b"0", "x")]),
    ("UIDVALIDITY 0 (#150)", b"* OK [UIDVALIDITY 0]", [untagged("OK", "UIDVALIDITY", b"0")]),
    ("COPYUID with empty sets (#555)", b"A1 OK [COPYUID 7  ] x", [Tagged("A1", "OK", "COPYUID", b"7  ", "x")]),
    ("BYE for ever (Yandex, #938)", b"* BYE\r\n" * 3, [untagged("BYE")] * 3),
    ("BODY NIL (Exchange)", b"* 1 FETCH (UID 7 BODY[] NIL)", [FetchData(1, 7, sections={b"": b""})]),
    ("BODY empty, quoted", b'* 1 FETCH (UID 7 BODY[] "")', [FetchData(1, 7, sections={b"": b""})]),
    ("BODY a literal without a length", b"* 1 FETCH (UID 7 BODY[] {-1}", [FetchData(1, 7, sections={b"": b""})]),
    ("BODY an atom", b"* 1 FETCH (BODY[] abc UID 7)", [FetchData(1, 7, sections={b"": b""})]),
    ("BODY quoted without an end", b'* 1 FETCH (UID 7 BODY[] "abc)', [FetchData(1, 7, sections={b"": b""})]),
    ("BODY quoted (Yahoo)", b'* 1 FETCH (BODY[] "a \\"b\\" )(" UID 7)', [FetchData(1, 7, sections={b"": b'a "b" )('})]),
    ("BODY of no octets", b"* 1 FETCH (UID 7 BODY[] {0}\r\n)", [FetchData(1, 7, sections={b"": b""})]),
    ("BODY with an offset", b"* 1 FETCH (UID 7 BODY[]<0> {2}\r\nab)", [FetchData(1, 7, sections={b"": b"ab"})]),
    ("literal8 (RFC 3516)", b"* 1 FETCH (BINARY[1] ~{2}\r\n\0b UID 7)", [FetchData(1, 7, sections={b"1": b"\0b"})]),
    ("LITERAL+ from a server", b"* 1 FETCH (UID 7 BODY[] {2+}\r\nab)", [FetchData(1, 7, sections={b"": b"ab"})]),
    ("literal one short (#954)", b"* 1 FETCH (UID 7 BODY[] {2}\r\na\r\n)", [FetchData(1, 7, sections={b"": b"a\r"})]),
    ("literal two short (#954)", b"* 1 FETCH (UID 7 BODY[] {1}\r\na\r\n)", [FetchData(1, 7, sections={b"": b"a"})]),
    (
        "items behind the literal",
        b"* 1 FETCH (BODY[] {2}\r\nab UID 7 FLAGS (\\Seen))",
        [FetchData(1, 7, SEEN, sections={b"": b"ab"})],
    ),
    (
        "two literals, the first with items before it that are read again",
        b'* 1 FETCH (UID 7 FLAGS ($a \\seen) MODSEQ (8) RFC822.SIZE 2 INTERNALDATE "x" BODY[HEADER] {1}\r\nh'
        b" X-GM-LABELS ({3}\r\n(a) NIL) BODY[] {2}\r\nab)",
        [FetchData(1, 7, frozenset({"$a", "\\Seen"}), 8, b"x", 2, sections={b"HEADER": b"h", b"": b"ab"})],
    ),
    (
        "header fields",
        b"* 1 FETCH (UID 7 RFC822.SIZE 9 BODY[HEADER.FIELDS (DATE Message-ID)] {4}\r\n\r\n\r\n)",
        [FetchData(1, 7, size=9, sections={b"HEADER.FIELDS (DATE MESSAGE-ID)": b"\r\n\r\n"})],
    ),
    (
        "header fields, quoted, in another order",
        b'* 1 FETCH (X 1 BODY[HEADER.FIELDS ("DATE")] {2}\r\n\r\n UID 7)',
        [FetchData(1, 7, sections={b"HEADER.FIELDS (DATE)": b"\r\n"})],
    ),
    (
        "a quote inside a quoted string (#485)",
        b'* LIST () "/" "a "b" c"\r\nA1 OK',
        [Data("LIST", [[], b"/", b'a "b', b"c", b""]), Tagged("A1", "OK", "", b"", "")],
    ),
    ("a quoted string without an end", b'* LIST () "/" "ab c', [Data("LIST", [[], b"/", b"ab c"])]),
    ("a TAB in an unquoted name (#945)", b'* LIST () "/" a\tb', [Data("LIST", [[], b"/", b"a\tb"])]),
    ("parentheses in an unquoted name", b'* LIST () "/" Root/Folder()', [Data("LIST", [[], b"/", b"Root/Folder", []])]),
    (
        "a name as a literal",
        b'* LIST () "/" {4}\r\na"\r\n\r\n* 1 EXISTS',
        [Data("LIST", [[], b"/", b'a"\r\n']), Numbered(1, "EXISTS")],
    ),
    ("a name as a literal of no octets", b'* LIST () "/" {0}\r\n', [Data("LIST", [[], b"/", b""])]),
    (
        "a name that ends like a literal",
        b'* LIST () "/" abc{5}\r\nA1 OK',
        [Data("LIST", [[], b"/", b"abc{5}"]), Tagged("A1", "OK", "", b"", "")],
    ),
    ("a star in a name", b'* LIST () "/" "a* b"', [Data("LIST", [[], b"/", b"a* b"])]),
    ("8-bit in a name", b'* LIST () "/" "\xfc\x00"', [Data("LIST", [[], b"/", b"\xfc\0"])]),
    ("no separator", b'* LIST (\\Noselect) NIL ""', [Data("LIST", [[b"\\Noselect"], None, b""])]),
    (
        "extended data behind a name",
        b'* LIST () "." a ("CHILDINFO" ("X"))',
        [Data("LIST", [[], b".", b"a", [b"CHILDINFO", [b"X"]]])],
    ),
    (
        "lists not closed, closed too often",
        b"* X (a (b\r\n* Y a)) b",
        [Data("X", [[b"a", [b"b"]]]), Data("Y", [b"a", b"b"])],
    ),
    ("NIL in a flag list (#953)", b"* 1 FETCH (UID 7 FLAGS (\\Seen NIL))", [FetchData(1, 7, SEEN)]),
    ("\\* outside PERMANENTFLAGS", b"* 1 FETCH (UID 7 FLAGS (\\*))", [FetchData(1, 7, frozenset({"\\*"}))]),
    (
        "a keyword that begins with \\ (#1906)",
        b"* 1 FETCH (UID 7 FLAGS (\\Junk))",
        [FetchData(1, 7, frozenset({"\\Junk"}))],
    ),
    ("flags in any case, \\Recent", b"* 1 FETCH (UID 7 FLAGS (\\SEEN \\recent))", [FetchData(1, 7, SEEN)]),
    (
        "8-bit and brackets in a keyword",
        b"* 1 FETCH (UID 7 FLAGS (\xfc[1] \xc3\xbc[1]))",
        [FetchData(1, 7, frozenset({"ü[1]"}))],  # what is no UTF-8 nobody could set again
    ),
    ("FLAGS that are quoted", b'* 1 FETCH (UID 7 FLAGS ("\\\\Seen"))', [FetchData(1, 7, SEEN)]),
    ("any order", b"* 1 FETCH (FLAGS (\\Seen) UID 7)", [FetchData(1, 7, SEEN)]),
    ("lower case items", b"* 1 fetch (uid 7 flags (\\seen) rfc822.size 3)", [FetchData(1, 7, SEEN, size=3)]),
    ("flags without a UID (Gmail)", b"* 1 FETCH (FLAGS (\\Seen))", [FetchData(1, flags=SEEN)]),
    ("spaces at the end", b"* 1 FETCH (UID 7)  ", [FetchData(1, 7)]),
    ("no items", b"* 1 FETCH ()", [FetchData(1)]),
    ("doubled parentheses (Domino, #943)", b"* 1 FETCH ((UID 7 FLAGS (\\Seen)))", [FetchData(1, 7, SEEN)]),
    ("no space before the items", b"* 1 FETCH(UID 7)", [FetchData(1, 7)]),
    ("EMAILID (RFC 8474)", b"* 1 FETCH (UID 7 EMAILID (M6d))", [FetchData(1, 7, email_id=b"M6d")]),
    ("X-GM-MSGID", b"* 1 FETCH (X-GM-MSGID 12 UID 7)", [FetchData(1, 7, email_id=b"12")]),
    (
        "unknown items with lists and literals",
        b'* 1 FETCH (X-GM-LABELS ("\\\\Inbox" {2}\r\n)( ()) UID 7 THREADID NIL ANNOTATION (/c (v NIL)) FLAGS ())',
        [FetchData(1, 7, frozenset())],
    ),
    ("an unbalanced parenthesis in a quoted field", b'* 1 FETCH (ENVELOPE ("hi :(" NIL) UID 7)', [FetchData(1, 7)]),
    ("an item without its value", b"* 1 FETCH (FLAGS (\\Seen) UID)", [FetchData(1, flags=SEEN)]),
    ("MODSEQ to 2^63-1", b"* 1 FETCH (UID 7 MODSEQ (9223372036854775807))", [FetchData(1, 7, modseq=(1 << 63) - 1)]),
    (
        "numbers beyond 63 bits",
        b"* 1 FETCH (UID 7 MODSEQ (9223372036854775808) RFC822.SIZE 99999999999999999999)",
        [FetchData(1, 7, modseq=-1, size=-1)],
    ),
    ("a UID that is none", b"* 1 FETCH (UID -1 FLAGS ())", [FetchData(1, flags=frozenset())]),
    ("UID 0", b"* 1 FETCH (UID 0 FLAGS ())", [FetchData(1, flags=frozenset())]),
    ("a UID beyond everything", b"* 1 FETCH (UID 99999999999999999999 FLAGS ())", [FetchData(1, flags=frozenset())]),
    ("a keepalive (Dovecot)", b"* OK Still here", [untagged("OK", text="Still here")]),
    (
        "MESSAGELIMIT (RFC 9738)",
        b"A1 OK [MESSAGELIMIT 1000 23221] x",
        [Tagged("A1", "OK", "MESSAGELIMIT", b"1000 23221", "x")],
    ),
    ("UNAVAILABLE (RFC 5530)", b"A1 NO [UNAVAILABLE] x", [Tagged("A1", "NO", "UNAVAILABLE", b"", "x")]),
    ("UIDREQUIRED (RFC 9586)", b"A1 BAD [UIDREQUIRED] x", [Tagged("A1", "BAD", "UIDREQUIRED", b"", "x")]),
    ("NetEase before ID", b"A1 NO EXAMINE Unsafe Login.", [Tagged("A1", "NO", "", b"", "EXAMINE Unsafe Login.")]),
    ("brackets that are text (K-9)", b"* OK [a b] {x} test [...]", [untagged("OK", "A", b"b", "{x} test [...]")]),
    ("a bracket in a quoted argument", b'* NO [X "a]b" c] d', [untagged("NO", "X", b'"a]b" c', "d")]),
    ("a bracket that never closes", b"* OK [UIDNEXT 5", [untagged("OK", text="[UIDNEXT 5")]),
    (
        "text that ends like a literal",
        b"* NO x {12}\r\nA1 OK y {3}",
        [untagged("NO", text="x {12}"), Tagged("A1", "OK", "", b"", "y {3}")],
    ),
    ("PREAUTH in a text", b"* OK no PREAUTH here", [untagged("OK", text="no PREAUTH here")]),
    (
        "VANISHED",
        b"* VANISHED (EARLIER) 7,9:8,1:4294967295\r\n* vanished 5",
        [Vanished(True, ((7, 7), (8, 9), (1, 4294967295))), Vanished(False, ((5, 5),))],
    ),
    ("VANISHED with nonsense in it", b"* VANISHED 7,,*,3:*,9", [Vanished(False, ((7, 7), (9, 9)))]),
    (
        "STATUS",
        b"* STATUS {1}\r\na (MESSAGES 3 UIDNEXT 0)",
        [Data("STATUS", [b"a", [b"MESSAGES", b"3", b"UIDNEXT", b"0"]])],
    ),
    ("an unknown response", b"* XKEY-1.0 a {1}\r\nb c", [Data("XKEY-1.0", [b"a", b"b", b"c"])]),
    ("escapes in a text", b"* OK \x1b[31m\x07\xe2\x80\xaex", [untagged("OK", text="\\x1b[31m\\x07\\u202ex")]),
]

# Not IMAP: ignored, and the line after it is read as always.
IGNORED: list[tuple[str, bytes]] = [
    ("COPYUID without OK (home.pl, #115)", b"* [COPYUID 1 2 3] x"),
    ("the same, ending like a literal", b"* [COPYUID 1 2 3] x {12}"),
    ("a star alone", b"*"),
    ("a star and a space", b"* "),
    ("a number without a word", b"* 12"),
    ("a count beyond everything", b"* 99999999999999999999 EXISTS"),
    ("a number with an unknown word", b"* 12 FROBNICATE {4}"),
    ("two spaces", b"*  OK hi"),
    ("a TAB", b"*\tOK hi"),
    ("HTTP", b"HTTP/1.1 400 Bad Request"),
    ("SMTP", b"220 mx ESMTP"),
    ("POP3", b"-ERR sorry"),
    ("control characters", b"\x00\x01\x02"),
    ("8-bit", b"\xff\xfe"),
]

# Nothing after it can be trusted: the session ends.
ENDED: list[tuple[str, bytes, str]] = [
    ("a literal too long by two", b"* 1 FETCH (UID 7 BODY[] {4}\r\nab)\r\nA1 OK", "do not add up"),
    ("a literal too short by three", b"* 1 FETCH (UID 7 BODY[] {2}\r\nabcde)", "do not add up"),
    ("the same on the slow way", b"* 1 FETCH (X {2}\r\nabcde)", "do not add up"),
    ("4 GB (gh-119511)", b"* 1 FETCH (UID 7 BODY[] {4294967296}", "4294967296 octets, the limit"),
    ("2^63", b"* 1 FETCH (UID 7 BODY[] {9223372036854775808}", "octets, the limit"),
    ("twenty nines", b"* 1 FETCH (UID 7 BODY[] {99999999999999999999}", "octets, the limit"),
    ("a thousand nines", b"* 1 FETCH (X 1 BODY[] {" + b"9" * 1000 + b"}", "octets, the limit"),
    ("a name of 10 MB", b'* LIST () "/" {10000000}', "10000000 octets, the limit is"),
]


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize(("octets", "events"), [case[1:] for case in USED], ids=[case[0] for case in USED])
def test_used(octets: bytes, events: list[Event], chunking: Chunking) -> None:
    found, violation = read(octets + b"\r\nZ9 NO [X] next\r\n", chunking)
    assert found == [*events, Tagged("Z9", "NO", "X", b"", "next")]
    assert not violation
    assert not any(isinstance(event, Ignored) for event in found)


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("octets", [case[1] for case in IGNORED], ids=[case[0] for case in IGNORED])
def test_ignored(octets: bytes, chunking: Chunking) -> None:
    found, violation = read(octets + b"\r\n* 1 EXISTS\r\n", chunking)
    assert len(found) == 2
    assert isinstance(found[0], Ignored)
    assert found[1] == Numbered(1, "EXISTS")
    assert not violation


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize(("octets", "text"), [case[1:] for case in ENDED], ids=[case[0] for case in ENDED])
def test_session_ended(octets: bytes, text: str, chunking: Chunking) -> None:
    found, violation = read(b"* 1 EXISTS\r\n" + octets + b"\r\n* 2 EXISTS\r\n", chunking)
    assert text in violation
    assert found == [Numbered(1, "EXISTS")], "what was read before it is good, nothing after it is"


def test_a_negative_or_absent_length_is_no_literal() -> None:
    for length in (b"{-1}", b"{}", b"{1x}", b"{ 1}"):
        found, violation = read(b"* 1 FETCH (UID 7 BODY[] " + length + b"\r\n* 1 EXISTS\r\n")
        assert found[-1] == Numbered(1, "EXISTS")
        assert not violation


def test_blank_lines_are_nothing() -> None:
    assert read(b"\r\n\n\r\n* 1 EXISTS\r\n\r\n") == ([Numbered(1, "EXISTS")], "")


# -- limits


SMALL = Limits(line=100, literal=50, body=1000, nesting=5, tokens=20, ranges=3, parts=2)


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize(
    ("good", "bad", "text"),
    [
        (b"* OK " + b"x" * 94 + b"\r\n", b"* OK " + b"x" * 95 + b"\r\n", "a line of more than 100 octets"),
        (b'* LIST () "" {50}\r\n' + b"x" * 50 + b"\r\n", b'* LIST () "" {51}\r\n', "51 octets, the limit is 50"),
        (b"* X " + b"(" * 5 + b"\r\n", b"* X " + b"(" * 6 + b"\r\n", "lists more than 5 deep"),
        (b"* X " + b"a " * 20 + b"\r\n", b"* X " + b"a " * 21 + b"\r\n", "more than 20 items"),
        (b"* SEARCH" + b" 1" * 20 + b"\r\n", b"* SEARCH" + b" 1" * 21 + b"\r\n", "more than 20 items"),
        (b"* VANISHED 1,2,3\r\n", b"* VANISHED 1,2,3,4\r\n", "more than 3 ranges"),
        (b"* X {1}\r\na {1}\r\nb\r\n", b"* X {1}\r\na {1}\r\nb {1}\r\n", "more than 2 literals"),
    ],
    ids=["line", "literal", "nesting", "items", "numbers", "ranges", "literals"],
)
def test_limits(good: bytes, bad: bytes, text: str, chunking: Chunking) -> None:
    assert read(good, chunking, SMALL)[1] == ""
    events, violation = read(good + bad, chunking, SMALL)
    assert text in violation
    assert len(events) == 1


def test_an_endless_line_is_not_kept() -> None:
    parser = Parser(Limits(line=1000))
    for _ in range(300):
        parser.feed(b"x" * 10)
    assert parser.violation is not None
    assert len(parser._partial) <= 1000


def test_after_a_violation_nothing_is_read() -> None:
    parser = Parser(SMALL)
    assert parser.feed(b"* 1 EXISTS\r\n" + b"x" * 101) == [Numbered(1, "EXISTS")]
    first = parser.violation
    assert isinstance(first, ProtocolViolation)
    assert parser.feed(b"\r\n* 2 EXISTS\r\n") == []
    assert parser.violation is first


def test_long_flag_lists_are_not_kept_in_a_cache() -> None:
    long = b" ".join(b"k%d" % n for n in range(1000))
    assert len(parse_flags(long)) == 1000
    assert parse_flags(long) is not parse_flags(long)
    assert parse_flags(b"\\Seen cached") is parse_flags(b"\\Seen cached")


# -- literals that go to a sink


@dataclass
class Kept:
    """A sink that copies what it gets, as it has to."""

    size: int
    pieces: list[bytes] = field(default_factory=list)

    def write(self, chunk: memoryview, /) -> None:
        self.pieces.append(bytes(chunk))

    @property
    def octets(self) -> bytes:
        return b"".join(self.pieces)


def read_with_sinks(octets: bytes, chunking: Chunking) -> tuple[list[FetchData], list[Kept], str]:
    opened: list[Kept] = []

    def open_body(size: int) -> Sink:
        opened.append(Kept(size))
        return opened[-1]

    parser = Parser(SMALL, open_body)
    events = [event for piece in chunking(octets) for event in parser.feed(piece)]
    assert all(isinstance(event, FetchData) for event in events)
    return [event for event in events if isinstance(event, FetchData)], opened, str(parser.violation or "")


BIG = bytes(range(256)) * 3  # CR, LF, NUL and parentheses included
FORMS = [
    b"* 1 FETCH (UID 7 BODY[] {%d}\r\n%b)\r\n",
    b"* 1 FETCH (UID 7 BODY[] {%d}\r\n%b FLAGS (\\Seen) X (1))\r\n",
    b"* 1 FETCH (X (1) UID 7 BODY[] {%d}\r\n%b)\r\n",
    b"* 1 FETCH (X NIL body[]<0> ~{%d}\r\n%b\r\n UID 7)\r\n",
]


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("form", FORMS, ids=["fast", "fast, then slow", "slow", "slow, CRLF too many"])
def test_big_bodies_go_to_sinks(form: bytes, chunking: Chunking) -> None:
    fetched, opened, violation = read_with_sinks(form % (len(BIG), BIG) * 3, chunking)
    assert not violation
    assert [sink.octets for sink in opened] == [BIG] * 3
    assert [sink.size for sink in opened] == [len(BIG)] * 3
    assert [fetch.uid for fetch in fetched] == [7] * 3
    assert all(fetch.sections[b""] is sink for fetch, sink in zip(fetched, opened, strict=True))


def test_small_bodies_and_other_literals_do_not() -> None:
    fetched, opened, _ = read_with_sinks(b"* 1 FETCH (BODY[] {50}\r\n" + b"x" * 50 + b")\r\n", whole)
    assert fetched[0].sections == {b"": b"x" * 50}
    assert not opened
    assert "51 octets" in read_with_sinks(b"* 1 FETCH (X {51}\r\n", whole)[2], "not a body: the limit of memory holds"


def test_a_body_above_its_limit_is_never_opened() -> None:
    _, opened, violation = read_with_sinks(b"* 1 FETCH (BODY[] {1001}\r\n", whole)
    assert "a message of 1001 octets, the limit is 1000" in violation
    assert not opened


def test_a_sink_may_be_declined() -> None:
    parser = Parser(SMALL, lambda _size: None)
    parser.feed(b"* 1 FETCH (BODY[] {51}\r\n")
    assert "the limit is 50" in str(parser.violation)


# -- the reused buffer


def test_a_reused_buffer_is_never_part_of_the_result() -> None:
    stream = b"".join(octets + b"\r\n" for _, octets, _ in USED)
    expected, _ = read(stream)
    buffer = bytearray(64)
    view = memoryview(buffer)
    parser = Parser()
    found: list[Event] = []
    for start in range(0, len(stream), 50):
        piece = stream[start : start + 50]
        view[:] = b"\n" * 64  # what stands behind `length` must not be read
        view[: len(piece)] = piece
        found += parser.feed(view, len(piece))
        view[:] = b"Z" * 64
    assert found == expected


def test_a_view_of_a_part_of_a_buffer() -> None:
    stream = b"* 1 EXISTS\r\n* 2 EXISTS\r\n"
    assert Parser().feed(memoryview(b"A1 OK\r\n" + stream)[7:]) == [Numbered(1, "EXISTS"), Numbered(2, "EXISTS")]
    assert Parser().feed(memoryview(bytearray(stream)), 12) == [Numbered(1, "EXISTS")]


@pytest.mark.parametrize("octets", [b"", b"* 1 EXISTS\r\n", b"* 1 FETCH (BODY[] {0}\r\n)\r\n"])
def test_idle_when_nothing_is_waiting(octets: bytes) -> None:
    parser = Parser()
    parser.feed(octets)
    assert parser.idle


@pytest.mark.parametrize(
    "octets", [b"*", b"* 1 FETCH (BODY[] {1}\r\n", b"* 1 FETCH (BODY[] {1}\r\nx", b"* X {1}\r\n", b"* X {1}\r\na"]
)
def test_not_idle_within_a_response(octets: bytes) -> None:
    parser = Parser()
    parser.feed(octets)
    assert not parser.idle


# -- any stream, cut anywhere


RESPONSES = [octets + b"\r\n" for _, octets, _ in USED] + [octets + b"\r\n" for _, octets in IGNORED]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A few responses one after the other, sometimes with octets changed, left out or put in."""
    stream = bytearray(b"".join(draw(st.lists(st.sampled_from(RESPONSES), min_size=1, max_size=8))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(stream) - 1)) if stream else 0
        new = draw(st.one_of(st.binary(max_size=3), st.sampled_from([b"\r\n", b"{3}\r\n", b'"', b"(", b")", b"* "])))
        stream[at : at + draw(st.integers(0, 3))] = new
    return bytes(stream)


@given(streams(), st.randoms(use_true_random=False))
def test_events_do_not_depend_on_the_cuts(stream: bytes, generator: random.Random) -> None:
    limits = Limits(line=300, literal=40, body=60, nesting=6, tokens=40, ranges=10, parts=3)
    expected = read(stream, whole, limits)

    def cut(octets: bytes) -> Iterator[bytes]:
        while octets:
            size = generator.randint(1, len(octets))
            yield octets[:size]
            octets = octets[size:]

    assert read(stream, cut, limits) == expected
    assert read(stream, per_octet, limits) == expected


@given(st.binary(max_size=300))
def test_no_octets_at_all_make_it_fail(stream: bytes) -> None:
    assert read(stream, per_octet) == read(stream)


@given(st.recursive(st.binary(max_size=10), lambda inner: st.lists(inner, max_size=4), max_leaves=20))
def test_tokens_give_back_what_was_written(tree: bytes | list[object]) -> None:
    def written(node: object) -> bytes:
        if isinstance(node, list):
            return b"(" + b" ".join(written(inner) for inner in node) + b")"
        assert isinstance(node, bytes)
        return b'"' + node.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'

    if any(c in written(tree) for c in b"\r\n"):
        return
    assert tokens([written(tree)]) == [tree]


# -- time


def _seconds(lines: int) -> float:
    stream = b"".join(
        b"* %d FETCH (UID %d FLAGS (\\Seen $k%d) MODSEQ (%d))\r\n" % (n, n, n % 7, n) for n in range(1, lines + 1)
    )
    buffer = memoryview(bytearray(65536))
    best = float("inf")
    for _ in range(3):
        parser = Parser()
        count = 0
        began = time.process_time()
        for start in range(0, len(stream), len(buffer)):
            piece = stream[start : start + len(buffer)]
            buffer[: len(piece)] = piece
            count += len(parser.feed(buffer, len(piece)))
        best = min(best, time.process_time() - began)
        assert count == lines
    return best


def test_100_000_lines_take_five_times_as_long_as_20_000() -> None:
    assert _seconds(100_000) < 15 * _seconds(20_000)


HOSTILE = {
    "many quotes": b"* X " + b'"a' * 100_000,
    "many broken quotes": b"* X " + b'"a"b" ' * 40_000,
    "many backslashes": b'* X "' + b"\\" * 200_000,
    "many spaces": b"* X" + b" " * 200_000,
    "a code without an end": b"* OK [" + b'A "' * 60_000,
    "items that fail at the end": b"* 1 FETCH (" + b"UID 1 " * 40_000 + b"x",
    "sections without an end": b"* 1 FETCH (" + b"BODY[A " * 30_000 + b")",
    "blank lines in a literal's response": b"* 1 FETCH (BODY[] {1}\r\nx" + b"\r\n" * 100_000,
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_hostile_lines_take_time_in_proportion(line: bytes) -> None:
    began = time.process_time()
    read(line + b"\r\n")
    assert time.process_time() - began < 2, "200 kB; a quadratic way would take minutes"


# -- small things


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"plain", "plain"),
        (b"  stripped \r\n", "stripped"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"a\r\nb\tc\0", "a\\r\\nb\\tc\\x00"),
        ("grüße ✓".encode(), "grüße ✓"),
        ("‮evil​".encode(), "\\u202eevil\\u200b"),
        (b"\xff", "\ufffd"),
        (b"x" * 1000, "x" * 300 + "…"),
        ("ü".encode() * 1000, "ü" * 300 + "…"),
        (b"\x1b" * 100, "\\x1b" * 75 + "…"),
    ],
)
def test_printable(octets: bytes, text: str) -> None:
    assert printable(octets) == text


@given(st.binary())
def test_printable_is_one_short_line_of_printable_characters(octets: bytes) -> None:
    text = printable(octets, 50)
    assert text.isprintable()
    assert len(text) <= 51


@pytest.mark.parametrize(
    ("text", "value"), [(b"0", 0), (b"007", 7), (b"-1", -1), (b"", -1), (b"1e3", -1), (None, -1), ([b"1"], -1)]
)
def test_number(text: object, value: int) -> None:
    assert number(text) == value  # type: ignore[arg-type]


@given(st.sets(st.integers(1, 5000), max_size=200))
def test_uid_set_and_ranges_are_each_other_s_reverse(numbers: set[int]) -> None:
    text = uid_set(list(numbers))
    found = [n for low, high in uid_ranges(text.encode()) for n in range(low, high + 1)] if text else []
    assert found == sorted(numbers)


def test_uid_set_is_short_and_ascending() -> None:
    assert uid_set([9, 1, 2, 3, 5, 7, 8]) == "1:3,5,7:9"
    assert uid_set([]) == ""
