"""A local message on its way to the server: its file read in pieces, in bounded memory, and given CRLF line ends.

The size on the wire has to be announced before the first octet, so the file is read twice. A message's content never
changes in a Maildir; where it did all the same, or the file is gone, `MessageChanged` says so before a wrong number of
octets is handed out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

from maild.core.errors import LocalError, Scope
from maild.core.model import Flags, Outgoing
from maild.local.directory import MailboxDirectory, translated
from maild.local.scan import Entry

_READ_OCTETS = 1 << 20
_MESSAGE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not block us
_NO_FILE = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO})  # gone, a symlink, a socket

Find = Callable[[Entry], Entry | None]


class MessageChanged(LocalError):
    """A message's file is gone or another one since it was looked at; the mailbox's other messages are not affected."""

    scope = Scope.MESSAGE


def outgoing(directory: MailboxDirectory, entry: Entry, flags: Flags, find: Find) -> Outgoing | None:
    """See `Maildir.outgoing`. `find` tells where a message is now that is not where its entry says."""
    with translated(f"read {entry.name} in", directory.path):
        descriptor, entry = _open(directory, entry, find)
        if descriptor is None:
            return None
        try:
            date_s = os.fstat(descriptor).st_mtime_ns // 1_000_000_000
            size_octets = wire_size(pieces_of(descriptor))
        finally:
            os.close(descriptor)

    def pieces() -> Iterator[bytes]:
        return _exactly(size_octets, _wire_pieces(directory, entry, find), f"{entry.name} in {directory.path}")

    return Outgoing(entry.key, flags, date_s, size_octets, pieces)


def open_message(directory: MailboxDirectory, entry: Entry) -> int | None:
    """A descriptor of the message's file, None when it is not there, or no plain file. Raises OSError."""
    try:
        descriptor = os.open(entry.name, _MESSAGE, dir_fd=directory.descriptor(entry.subdir))
    except OSError as exc:
        if exc.errno in _NO_FILE:
            return None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def size_on_disk(directory: MailboxDirectory, entry: Entry) -> int | None:
    """How many octets the file has, read or not; None where not even that can be told."""
    try:
        return os.stat(entry.name, dir_fd=directory.descriptor(entry.subdir), follow_symlinks=False).st_size
    except OSError:
        return None


def pieces_of(descriptor: int) -> Iterator[bytes]:
    """The file from where it stands to its end, at most a MiB at a time."""
    size_octets = os.fstat(descriptor).st_size
    wanted = min(size_octets + 1, _READ_OCTETS)  # a buffer of a MiB for each small file would cost more than reading it
    while piece := os.read(descriptor, wanted):
        yield piece


def wire_size(pieces: Iterable[bytes]) -> int:
    """How many octets `to_wire` makes of these."""
    size_octets = 0
    ends_with_cr = False
    for piece in pieces:
        size_octets += len(piece) + piece.count(b"\n") - piece.count(b"\r\n")
        size_octets -= ends_with_cr and piece.startswith(b"\n")
        ends_with_cr = piece.endswith(b"\r")
    return size_octets


def to_wire(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The wire form: an LF without a CR before it gets one, every other octet stays."""
    held = b""  # a CR at the end of a piece: perhaps half of a CRLF
    for piece in pieces:
        octets = held + piece if held else piece
        held = b"\r" if octets.endswith(b"\r") else b""
        if held:
            octets = octets[:-1]
        if b"\r" in octets:
            octets = octets.replace(b"\r\n", b"\n")
        if octets:
            yield octets.replace(b"\n", b"\r\n")
    if held:
        yield held


def _open(directory: MailboxDirectory, entry: Entry, find: Find) -> tuple[int | None, Entry]:
    descriptor = open_message(directory, entry)
    if descriptor is None and (found := find(entry)) is not None:
        return open_message(directory, found), found
    return descriptor, entry


def _wire_pieces(directory: MailboxDirectory, entry: Entry, find: Find) -> Generator[bytes, None, None]:
    with translated(f"read {entry.name} in", directory.path):
        descriptor, _ = _open(directory, entry, find)
        if descriptor is None:
            raise MessageChanged(f"the message {entry.name} in {directory.path} is gone")
        try:
            yield from to_wire(pieces_of(descriptor))
        finally:
            os.close(descriptor)


def _exactly(size_octets: int, pieces: Generator[bytes, None, None], what: str) -> Iterator[bytes]:
    """The pieces, MessageChanged as soon as there are more octets than announced or fewer."""
    left = size_octets
    with closing(pieces):
        for piece in pieces:
            left -= len(piece)
            if left < 0:
                break
            yield piece
    if left:
        raise MessageChanged(f"the message {what} is not what it was when it was measured")
