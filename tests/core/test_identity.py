"""Identity: a message is the same on the wire, on disk, and in a Maildir that another program wrote."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.identity import Digester, canonical, content_of, digest, header_facts, identify, wire_pieces
from maild.core.model import Facts

octets = st.one_of(st.binary(), st.lists(st.sampled_from([b"\r", b"\n", b"a", b"\r\n", b"bc"])).map(b"".join))

MESSAGE = (
    b"Received: from a by b;\r\n Tue, 24 Nov 2026 10:00:00 +0000\r\n"
    b"Date: Tue, 24 Nov 2026\r\n\t10:00:00 +0000 \r\n"
    b"message-id:\r\n <1@a.example>\r\n"
    b"Message-ID: <2@a.example>\r\n"
    b"X-Date: never\r\n"
    b"\r\n"
    b"Message-ID: <3@a.example>\r\n"
)


@pytest.mark.parametrize(
    ("wire", "disk"),
    [
        (b"", b""),
        (b"a\r\nb\r\n", b"a\nb\n"),
        (b"a\nb\r\n", b"a\nb\n"),
        (b"a\rb\r\n", b"a\rb\n"),
        (b"a\r\r\nb", b"a\r\nb"),
        (b"\n\r", b"\n\r"),
        (b"\r", b"\r"),
        (b"\x00\xff\r\n", b"\x00\xff\n"),
        (b"no line end", b"no line end"),
    ],
)
def test_the_disk_form_changes_line_ends_only(wire: bytes, disk: bytes) -> None:
    assert canonical(wire) == disk
    assert canonical(bytearray(wire)) == disk
    assert type(canonical(bytearray(wire))) is bytes


@given(octets)
def test_the_disk_form_is_the_plain_replacement(wire: bytes) -> None:
    assert canonical(wire) == wire.replace(b"\r\n", b"\n")


@given(octets, st.integers(2, 9))
def test_pieces_of_the_wire_form_are_the_disk_form_together(wire: bytes, most: int) -> None:
    pieces = list(wire_pieces(wire, most))
    assert b"".join(pieces) == wire
    assert all(0 < len(piece) <= most for piece in pieces) or pieces == [b""]
    assert b"".join(map(canonical, pieces)) == canonical(wire)


@given(octets)
def test_the_digest_is_one_for_wire_disk_and_crlf_files(wire: bytes) -> None:
    disk = canonical(wire)
    assert digest(wire) == digest(disk) == digest(disk.replace(b"\n", b"\r\n"))


@given(octets.filter(lambda wire: b"\r" not in canonical(wire)))
def test_without_lone_crs_the_digest_is_that_of_the_file(wire: bytes) -> None:
    assert digest(wire) == hashlib.sha256(canonical(wire)).digest()[:16]
    assert content_of(canonical(wire)) == canonical(wire)


@given(st.lists(octets))
def test_the_digest_does_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    digester = Digester()
    for piece in pieces:
        digester.update(piece)
    whole = b"".join(pieces)
    assert (digester.digest(), digester.size_octets) == (digest(whole), len(content_of(whole)))


def test_header_facts_are_the_first_of_each_unfolded() -> None:
    expected = (b"<1@a.example>", b"Tue, 24 Nov 2026\t10:00:00 +0000")
    assert header_facts(MESSAGE) == expected
    assert header_facts(canonical(MESSAGE)) == expected
    # what IMAP answers to BODY[HEADER.FIELDS (MESSAGE-ID DATE)]
    fields = b"".join(line for line in MESSAGE.partition(b"\r\n\r\n")[0].splitlines(keepends=True)[2:6])
    assert header_facts(fields + b"\r\n") == expected


@pytest.mark.parametrize(
    ("header", "facts"),
    [
        (b"", (b"", b"")),
        (b"\r\nDate: in the body\r\n", (b"", b"")),
        (b"\nMessage-ID: <body>\n", (b"", b"")),
        (b"Date: x", (b"", b"x")),
        (b"DATE : x\r\n", (b"", b"x")),
        (b"Date:\r\nMessage-Id:\r\n\r\n", (b"", b"")),
        (b"Subject: a\r\n Date: folded\r\n", (b"", b"")),
        (b"Message-ID: a\x00b\r\n\r\n", (b"a\x00b", b"")),
        (b"Message-ID: a\r\r\n b\r\n", (b"a b", b"")),
        (b"From x Mon\nDate: y\n\n", (b"", b"y")),
    ],
)
def test_header_facts_of_odd_headers(header: bytes, facts: tuple[bytes, bytes]) -> None:
    assert header_facts(header) == facts


@given(octets)
def test_header_facts_do_not_depend_on_the_form(wire: bytes) -> None:
    message = b"Message-ID: " + wire
    assert header_facts(message) == header_facts(canonical(message))


def test_header_facts_take_linear_time_and_a_long_message_id() -> None:
    long = b"<" + b"x" * 1_000_000 + b">"
    assert header_facts(b"date" + b" " * 1_000_000 + b"\nMessage-ID: " + long + b"\n")[0] == long
    assert header_facts(b"Message-ID:" + b"\n " * 300_000 + b"x\n")[0].endswith(b"x")


def test_a_file_is_told_by_what_the_server_would_say() -> None:
    facts = Facts(len(MESSAGE), *header_facts(MESSAGE))
    from_lf = identify([canonical(MESSAGE)])
    assert from_lf.facts == facts
    assert (from_lf.size_octets, from_lf.digest) == (len(canonical(MESSAGE)), digest(MESSAGE))
    assert identify([MESSAGE]) == from_lf  # a Maildir that another program wrote with CRLF
    assert identify([MESSAGE[:300], MESSAGE[300:]]) == from_lf


@pytest.mark.parametrize("wire", [b"", b"\r\n", b"a: b\r\n\r\nx\ry\r\n", b"no line end", b"a\r\r\nb\r\n", b"\r"])
def test_wire_size_of_odd_files(wire: bytes) -> None:
    assert identify([canonical(wire)]).facts.size_octets == len(wire)
    assert identify([canonical(wire)]).digest == digest(wire)
