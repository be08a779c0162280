"""Local messages in their wire form: the announced size is the size, whatever is in the file and whatever moves it."""

from __future__ import annotations

import os
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.errors import Scope
from maild.core.model import Flags, Key, Outgoing
from maild.local.maildir import Maildir
from maild.local.outgoing import MessageChanged, to_wire, wire_size
from maild.local.scan import Entry

SEEN: Flags = frozenset({"\\Seen"})
MIB = 1 << 20


def put(maildir: Maildir, name: str, octets: bytes, mtime_ns: int | None = None) -> Path:
    path = maildir.path / name
    path.write_bytes(octets)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def outgoing(maildir: Maildir, key: str = "1.a", subdir: str = "cur", letters: str | None = "S") -> Outgoing:
    message = maildir.outgoing(Entry(Key(key), subdir, letters), SEEN)
    assert message is not None
    return message


@given(st.lists(st.binary(max_size=6) | st.sampled_from([b"\r", b"\n", b"\r\n", b"\n\r", b"\r\r\n"]), max_size=12))
def test_the_wire_form_does_not_depend_on_how_the_file_is_cut(pieces: list[bytes]) -> None:
    pieces = [piece for piece in pieces if piece]
    expected = re.sub(rb"(?<!\r)\n", b"\r\n", b"".join(pieces))
    assert b"".join(to_wire(pieces)) == expected
    assert wire_size(pieces) == len(expected)


@pytest.mark.parametrize(
    ("disk", "wire"),
    [
        (b"", b""),
        (b"A: b\n\nbody\n", b"A: b\r\n\r\nbody\r\n"),
        (b"A: b\n\nno line end", b"A: b\r\n\r\nno line end"),
        (b"A: b\r\n\r\nbody\r\n", b"A: b\r\n\r\nbody\r\n"),
        (b"mixed\r\nlines\n", b"mixed\r\nlines\r\n"),
        (b"lone\rcr\n", b"lone\rcr\r\n"),
        (b"last\r", b"last\r"),
        (b"\0\xff\xfe\n", b"\0\xff\xfe\r\n"),
    ],
)
def test_lf_becomes_crlf_and_all_else_stays(inbox: Maildir, disk: bytes, wire: bytes) -> None:
    put(inbox, "cur/1.a:2,S", disk)
    message = outgoing(inbox)
    assert b"".join(message.pieces()) == wire
    assert message.size_octets == len(wire)
    assert (message.key, message.flags) == (Key("1.a"), SEEN)


def test_pieces_may_be_asked_for_again(inbox: Maildir) -> None:
    put(inbox, "cur/1.a:2,S", b"x\n")
    message = outgoing(inbox)
    assert [b"".join(message.pieces()) for _ in range(2)] == [b"x\r\n"] * 2


@pytest.mark.parametrize(
    ("mtime_ns", "date_s"), [(1_764_000_000_999_999_999, 1_764_000_000), (0, 0), (-1, -1), (-1_000_000_000, -1)]
)
def test_the_date_is_the_second_of_the_mtime(inbox: Maildir, mtime_ns: int, date_s: int) -> None:
    put(inbox, "cur/1.a:2,S", b"x\n", mtime_ns)
    assert outgoing(inbox).date_s == date_s


def test_a_big_message_never_stands_in_memory(inbox: Maildir) -> None:
    line = b"0123456789" * 6 + b"\n"
    with (inbox.path / "cur" / "1.a:2,S").open("wb") as file:
        for _ in range(50):
            file.write(line * (MIB // len(line)))
    lines = 50 * (MIB // len(line))
    tracemalloc.start()
    try:
        message = outgoing(inbox)
        total = sum(len(piece) for piece in message.pieces())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == message.size_octets == lines * (len(line) + 1)
    assert peak < 6 * MIB


@pytest.mark.parametrize("before", ["new/1.a", "cur/1.a:2,FS", "new/1.a:2,S"])
def test_a_reader_may_rename_it_before_it_is_measured(inbox: Maildir, before: str) -> None:
    put(inbox, before, b"x\n")
    assert outgoing(inbox).size_octets == 3


@pytest.mark.parametrize("after", ["cur/1.a:2,FS", "cur/1.a:2,", "new/1.a:2,S"])
def test_a_reader_may_rename_it_after_it_was_measured(inbox: Maildir, after: str) -> None:
    path = put(inbox, "new/1.a", b"x\n")
    message = outgoing(inbox, subdir="new", letters=None)
    path.rename(inbox.path / after)
    assert b"".join(message.pieces()) == b"x\r\n"


def test_what_is_gone_or_no_plain_file_is_none(inbox: Maildir) -> None:
    assert inbox.outgoing(Entry(Key("1.a"), "cur", "S"), SEEN) is None
    os.mkfifo(inbox.path / "cur" / "2.a:2,")
    (inbox.path / "cur" / "3.a:2,").symlink_to("/etc/passwd")
    (inbox.path / "cur" / "4.a:2,").mkdir()
    for key in ("2.a", "3.a", "4.a"):
        assert inbox.outgoing(Entry(Key(key), "cur", ""), SEEN) is None


def test_one_that_goes_after_it_was_measured_says_so(inbox: Maildir) -> None:
    path = put(inbox, "cur/1.a:2,S", b"x\n")
    message = outgoing(inbox)
    path.unlink()
    with pytest.raises(MessageChanged, match=r"1\.a:2,S in .*INBOX is gone") as raised:
        list(message.pieces())
    assert raised.value.scope is Scope.MESSAGE


@pytest.mark.parametrize("now", [b"", b"x", b"xxxx\n", b"x\n\n"])
def test_never_more_octets_than_announced_and_an_error_for_fewer(inbox: Maildir, now: bytes) -> None:
    path = put(inbox, "cur/1.a:2,S", b"xx\n")
    message = outgoing(inbox)
    path.write_bytes(now)
    taken: list[bytes] = []
    with pytest.raises(MessageChanged, match="not what it was"):
        taken.extend(message.pieces())
    assert len(b"".join(taken)) <= message.size_octets


def test_no_descriptor_stays_open(inbox: Maildir) -> None:
    put(inbox, "cur/1.a:2,S", b"x\n" * MIB)
    before = open_descriptors()
    message = outgoing(inbox)
    pieces = message.pieces()
    next(pieces)
    assert open_descriptors() == before + 1
    del pieces
    assert open_descriptors() == before
