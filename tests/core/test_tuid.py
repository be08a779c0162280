"""mbsync adds `X-TUID: ` and twelve characters to the header of what it copies: no part of the content."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.identity import Digester, canonical, content_of, digest, fingerprint, identify

PLAIN = (
    b"Message-ID: <1@example.org>\nDate: Tue, 24 Nov 2026 10:00:00 +0000\nSubject: x\n\nbody\nX-TUID: abcdefghijkl\n"
)
LINE = b"X-TUID: nK1/bEkS2zPx\n"

fields = st.lists(st.sampled_from([b"A: b", b"X-TUID: 123456789012", b"X-TUID: 1234567890123", b"X-TUID: ", b" c"]))
bodies = st.lists(st.one_of(st.binary(max_size=9), st.sampled_from([b"X-TUID: 123456789012", b"\r", b"\n", b"\r\n"])))


@pytest.mark.parametrize("at", [0, PLAIN.index(b"Date"), PLAIN.index(b"\nbody")])
def test_a_marked_message_is_the_one_it_was(at: int) -> None:
    marked = PLAIN[:at] + LINE + PLAIN[at:]
    assert fingerprint(marked) == fingerprint(PLAIN)
    assert digest(marked.replace(b"\n", b"\r\n")) == digest(PLAIN)
    plain, found = identify([PLAIN]), identify([marked])
    assert (found.facts, found.size_octets, found.digest) == (plain.facts, plain.size_octets, plain.digest)
    assert (plain.has_tuid, found.has_tuid) == (False, True)


def test_a_marked_file_with_crlf_is_the_same_too() -> None:
    marked = (LINE + PLAIN).replace(b"\n", b"\r\n")
    assert identify([marked]) == identify([LINE + PLAIN])
    assert identify([marked]).facts == identify([PLAIN]).facts


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace(b"\n\n", b"\nX-TUID: too long to be one\n\n", 1),
        PLAIN.replace(b"\n\n", b"\nX-TUID: abcdefghijk\n\n", 1),
        PLAIN.replace(b"\n\n", b"\nX-X-TUID: abcdefghijkl\n\n", 1),
        b"X-TUID: abcdefghijkl\nno end of the header",
        b"\nX-TUID: abcdefghijkl\n\nthe header is empty\n",
    ],
)
def test_what_only_looks_like_it_stays(other: bytes) -> None:
    assert fingerprint(other)[0] == len(other)
    assert not identify([other]).has_tuid


def test_only_the_first_line_is_mbsyncs() -> None:
    """A message that had such a line already stays another than the one that had none."""
    assert fingerprint(LINE + PLAIN) != fingerprint(LINE + LINE + PLAIN)


@given(fields, bodies, st.sampled_from([b"\n", b"\r\n"]), st.lists(st.integers(0, 200), max_size=4))
def test_pieces_and_the_whole_agree(header: list[bytes], body: list[bytes], end: bytes, cuts: list[int]) -> None:
    head = b"".join(field + end for field in header) + end
    rest = b"".join(body)
    places = sorted({min(cut, len(rest)) for cut in cuts} | {0, len(rest)})
    pieces = [rest[low:high] for low, high in pairwise(places)]
    pieces = [head + (pieces[0] if pieces else b""), *pieces[1:]]
    digester = Digester()
    for piece in pieces:
        digester.update(piece)
    whole = b"".join(pieces)
    assert whole == head + rest
    expected = fingerprint(content_of(whole))
    assert (digester.size_octets, digester.digest()) == expected
    assert digest(whole) == digest(canonical(whole)) == expected[1]
    found = identify(pieces)
    assert (found.size_octets, found.digest, found.has_tuid) == (*expected, digester.has_tuid)
