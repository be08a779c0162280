"""mbsync adds `X-TUID: ` and twelve characters to the header of what it copies: no part of the content."""

from __future__ import annotations

import pytest

from maild.core.identity import digest, fingerprint, identify

PLAIN = (
    b"Message-ID: <1@example.org>\nDate: Tue, 24 Nov 2026 10:00:00 +0000\nSubject: x\n\nbody\nX-TUID: abcdefghijkl\n"
)
LINE = b"X-TUID: nK1/bEkS2zPx\n"


@pytest.mark.parametrize("at", [0, PLAIN.index(b"Date"), PLAIN.index(b"\nbody")])
def test_a_marked_message_is_the_one_it_was(at: int) -> None:
    marked = PLAIN[:at] + LINE + PLAIN[at:]
    assert fingerprint(marked) == fingerprint(PLAIN)
    assert digest(marked.replace(b"\n", b"\r\n")) == digest(PLAIN)
    plain, found = identify([PLAIN]), identify([marked])
    assert (found.facts, found.size_octets, found.digest) == (plain.facts, plain.size_octets, plain.digest)
    assert (plain.has_tuid, found.has_tuid) == (False, True)


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace(b"\n\n", b"\nX-TUID: too long to be one\n\n", 1),
        PLAIN.replace(b"\n\n", b"\nX-X-TUID: abcdefghijkl\n\n", 1),
        b"X-TUID: abcdefghijkl\nno end of the header",
    ],
)
def test_what_only_looks_like_it_stays(other: bytes) -> None:
    assert fingerprint(other)[0] == len(other)
    assert not identify([other]).has_tuid
