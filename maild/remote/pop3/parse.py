"""Octets of a POP3 server → replies, in whatever pieces they come. Pure (RFC 1939 §3, RFC 2449).

A reply is a status line, and for some commands lines up to one that holds a dot only. Which, the octets do not tell:
the parser is told before what it is to expect, in the order in which the commands are sent.

What servers do that the RFCs do not allow, and is read all the same: line ends of LF alone, in everything or in
messages only; spaces too many; a listing whose lines make no sense (they are left to the reader of the listing). How
the first line of a message ends decides how all of them do. So a server that keeps to CRLF cannot be made to end a
message early, and to have the rest of it taken for replies, by a mail that holds a bare LF, a dot and another one.
"""

from __future__ import annotations

import enum
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from maild.core.errors import ProtocolViolation
from maild.core.model import Uid

MOST_UID_OCTETS = 512  # RFC 1939 §7 says 70; some servers need more

_CODE = re.compile(rb"\[([A-Za-z0-9/_-]{1,64})([^\]]*)\][ \t]*")
_END = b"\r\n.\r\n"
_END_LF = re.compile(rb"\n\.\r?\n")
_FIRST_END = re.compile(rb"\.\r?\n")
_KEPT_BACK = len(_END) - 1  # so many octets may be the beginning of an end
_NO_LINE_OCTETS = 65_536  # after these without a line end a message is one with CRLF
_UNIQUE = re.compile(rb"[ -~]{1,%d}" % MOST_UID_OCTETS)


class Sink(Protocol):
    """Where a big message goes as it arrives. The memory given to `write` is reused after it returns."""

    def write(self, chunk: memoryview, /) -> None: ...


OpenBody = Callable[[int], Sink]


class Shape(enum.Enum):
    """What follows a status line that says +OK."""

    LINE = "nothing"
    LISTING = "lines"
    BODY = "a message"


@dataclass(frozen=True, slots=True)
class Expected:
    """What a command is answered with. A message above `Limits.memory` goes to what `open_body` opens.

    `size_octets` is what LIST told of it, 0 where that is not known. A message that comes with just one line end more
    than told has none at its end, and the server had to add one before the dot: it is taken off again (Dovecot).
    """

    shape: Shape = Shape.LINE
    open_body: OpenBody | None = None
    size_octets: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server may make us keep, in octets. `body` bounds a message; above `memory` it goes to a sink."""

    line: int = 8192
    listing: int = 64 << 20
    memory: int = 1 << 20
    body: int = 1 << 31


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole answer. `status` is "+OK", "-ERR", or "+" where the server wants to hear more (RFC 5034 §4).

    `code` is the response code in upper case, "" where there is none (RFC 2449 §8); `lines` a listing; `body` a message
    in wire form without its dots, or the sink that took it, of `size_octets`.
    """

    status: str
    code: str = ""
    text: str = ""
    lines: list[bytes] = field(default_factory=list)
    body: bytes | Sink | None = None
    size_octets: int = 0

    @property
    def ok(self) -> bool:
        return self.status == "+OK"


class Parser:
    """Takes octets, gives replies. `violation` is why it is of no further use, once it is.

    Most messages lie whole in what arrives at once and are copied from there; of one that does not, what has come is
    kept in pieces, or given to its sink, but for the few octets that may begin its end.
    """

    def __init__(self, limits: Limits) -> None:
        self.violation: ProtocolViolation | None = None
        self._limits = limits
        self._expected: deque[Expected] = deque()
        self._data = b""  # what has not become a reply, or a piece of one, yet
        self._start = 0  # in `_data`
        self._head: Reply | None = None  # the status line of the reply that is coming
        self._searched = 0  # octets from `_start` on that hold no line end
        self._pieces: list[bytes] = []  # of what follows that status line
        self._piece_octets = 0
        self._body: _Sunk | None = None
        self._ends_in_lf: bool | None = None  # of the message that is coming; None until its first line is there

    @property
    def idle(self) -> bool:
        """Nothing is expected, nothing is left over and nothing went wrong."""
        return not self._expected and not self._data and self._head is None and self.violation is None

    @property
    def outstanding(self) -> int:
        """How many replies are still to come."""
        return len(self._expected)

    def expect(self, expected: Expected) -> None:
        self._expected.append(expected)

    def feed(self, octets: bytes) -> list[Reply]:
        """The replies that are complete with these octets. What was whole before a violation is good."""
        self._data = self._data + octets if self._data else octets
        replies: list[Reply] = []
        try:
            while self._expected and (reply := self._next(self._expected[0])) is not None:
                self._expected.popleft()
                replies.append(reply)
            self._data, self._start = self._data[self._start :], 0
            if self._data and not self._expected:
                raise ProtocolViolation("the server sent more than it was asked for")
        except ProtocolViolation as exc:
            self.violation = exc
        return replies

    def _next(self, expected: Expected) -> Reply | None:
        if self._head is None:
            self._head = self._status()
            if self._head is None:
                return None
        head = self._head
        if not head.ok or expected.shape is Shape.LINE:
            reply: Reply | None = head
        elif expected.shape is Shape.LISTING:
            reply = self._listing(head)
        else:
            reply = self._message(head, expected)
        if reply is not None:
            self._head = self._ends_in_lf = self._body = None
            self._pieces, self._piece_octets, self._searched = [], 0, 0
        return reply

    def _status(self) -> Reply | None:
        start = self._start
        end = self._data.find(b"\n", start, start + self._limits.line)
        if end < 0:
            if len(self._data) - start >= self._limits.line:
                raise ProtocolViolation("the server sent a line without an end")
            return None
        self._start = end + 1
        return read_status(self._data[start:end].rstrip(b"\r"))

    def _listing(self, head: Reply) -> Reply | None:
        if not self._pieces and self._is_empty():
            return head
        end = _END_LF.search(self._data, self._start)
        if end is None:
            self._set_aside()
            if self._piece_octets > self._limits.listing:
                raise ProtocolViolation("the server sent a listing without an end")
            return None
        lines = self._taken(end.start(), end.end()).split(b"\n")
        return Reply(head.status, head.code, head.text, [line.rstrip(b"\r") for line in lines])

    def _is_empty(self) -> bool:
        """Whether nothing stands before the end; it is passed then."""
        first = _FIRST_END.match(self._data, self._start)
        if first is not None:
            self._start = first.end()
        return first is not None

    def _taken(self, end: int, after: int) -> bytes:
        """All pieces with what there is up to `end`, the last of them; the rest begins at `after`."""
        last, self._start = self._data[self._start : end], after
        if not self._pieces:
            return last
        self._pieces.append(last)
        return b"".join(self._pieces)

    def _set_aside(self) -> None:
        """Make a piece of what is certainly no part of an end."""
        end = len(self._data) - _KEPT_BACK
        if end > self._start:
            self._pieces.append(self._data[self._start : end])
            self._piece_octets += end - self._start
            self._start = end

    # -- messages

    def _message(self, head: Reply, expected: Expected) -> Reply | None:
        if self._ends_in_lf is None:
            if self._is_empty():
                return Reply(head.status, head.code, head.text, body=b"")
            if not self._first_line_is_there():
                return None
        end = self._end_of_message()
        if end is None:
            self._set_aside()
            self._keep_small(expected)
            return None
        body, size_octets = self._finished(self._taken(*end), expected.size_octets)
        return Reply(head.status, head.code, head.text, body=body, size_octets=size_octets)

    def _first_line_is_there(self) -> bool:
        start = self._start
        end = self._data.find(b"\n", start + self._searched)
        if end < 0 and len(self._data) - start < _NO_LINE_OCTETS:
            self._searched = len(self._data) - start
            return False
        self._ends_in_lf = end >= 0 and self._data[max(start, end - 1) : end] != b"\r"
        return True

    def _end_of_message(self) -> tuple[int, int] | None:
        """Where the message ends, its last line end included, and where what comes after it begins."""
        if self._ends_in_lf:
            end = _END_LF.search(self._data, self._start)
            return None if end is None else (end.start() + 1, end.end())
        at = self._data.find(_END, self._start)
        return None if at < 0 else (at + 2, at + len(_END))

    def _finished(self, last: bytes, told_octets: int) -> tuple[bytes | Sink, int]:
        if self._body is None:
            body = _less_added(unstuffed(last, ends_in_lf=bool(self._ends_in_lf)), 0, told_octets)
            return body, len(body)
        self._body.write(last, told_octets)
        return self._body.sink, self._body.size_octets

    def _keep_small(self, expected: Expected) -> None:
        """Send the pieces to the sink, once the message is bigger than memory should hold."""
        taken = 0 if self._body is None else self._body.size_octets
        if taken + self._piece_octets > self._limits.body:
            raise ProtocolViolation(f"the server sent a message of more than {self._limits.body} octets")
        if self._body is None:
            if self._piece_octets <= self._limits.memory:
                return
            if expected.open_body is None:
                raise ProtocolViolation("the server sent more than a message's header")
            sink = expected.open_body(max(expected.size_octets, self._piece_octets))
            self._body = _Sunk(sink, ends_in_lf=bool(self._ends_in_lf))
        pieces, self._pieces, self._piece_octets = self._pieces, [], 0
        for piece in pieces:
            self._body.write(piece)


class _Sunk:
    """A message on its way to a sink: takes its dots out, wherever the pieces are cut."""

    def __init__(self, sink: Sink, *, ends_in_lf: bool) -> None:
        self.sink = sink
        self.size_octets = 0
        self._plain = b"\n" if ends_in_lf else b"\r\n"
        self._stuffed = self._plain + b"."
        self._before = self._plain  # what of a line end has passed: a dot that follows the whole of it goes

    def write(self, piece: bytes, told_octets: int = 0) -> None:
        """Pass on a piece; with the last one comes what LIST told of the whole."""
        before = self._before
        self._before = _end_begun(piece if len(piece) >= len(self._plain) else before + piece, self._plain)
        rest = self._plain[len(before) :] + b"."  # what would complete a line end and the dot after it
        if before and piece.startswith(rest):
            piece = rest[:-1] + piece[len(rest) :]
        if self._stuffed in piece:
            piece = piece.replace(self._stuffed, self._plain)
        piece = _less_added(piece, self.size_octets, told_octets)
        self.size_octets += len(piece)
        if piece:
            self.sink.write(memoryview(piece))


def _end_begun(octets: bytes, line_end: bytes) -> bytes:
    """The longest end of `octets` that begins a line end, or is one."""
    return next((line_end[:n] for n in range(len(line_end), 0, -1) if octets.endswith(line_end[:n])), b"")


def _less_added(last: bytes, before_octets: int, told_octets: int) -> bytes:
    """The last piece of a message, after `before_octets` of it, without the line end that the server had to add."""
    is_added = told_octets > 0 and before_octets + len(last) == told_octets + 2 and last.endswith(b"\r\n")
    return last[:-2] if is_added else last


def unstuffed(octets: bytes, *, ends_in_lf: bool = False) -> bytes:
    """A whole message without the dots that were put before its dots (RFC 1939 §3)."""
    if octets.startswith(b"."):
        octets = octets[1:]
    if b"\n." not in octets:
        return octets
    return octets.replace(b"\n.", b"\n") if ends_in_lf else octets.replace(b"\r\n.", b"\r\n")


def read_status(line: bytes) -> Reply:
    """A status line without its end. Raises ProtocolViolation where it is none."""
    word, _, rest = line.partition(b" ")
    status = word.upper()
    if status not in {b"+OK", b"-ERR", b"+"}:
        raise ProtocolViolation(f"the server sent {printable(line)!r} where a status was due", "check host and port")
    rest = rest.strip()
    code = _CODE.match(rest)
    if code is None or status == b"+":
        return Reply(status.decode(), text=printable(rest))
    return Reply(status.decode(), code[1].decode().upper(), printable(rest[code.end() :]))


def printable(octets: bytes) -> str:
    """Server text for people: nothing that moves a cursor, and not more than a line of it."""
    text = octets[:500].decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "�" for character in text)


# -- listings


def read_capabilities(lines: Iterable[bytes]) -> dict[str, tuple[str, ...]]:
    """Capability in upper case → its arguments, as they stand (RFC 2449 §5)."""
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        words = line.decode("ascii", "replace").split()
        if words and len(line) <= MOST_UID_OCTETS:
            found[words[0].upper()] = tuple(words[1:])
    return found


def read_uids(lines: Iterable[bytes]) -> dict[int, Uid | None]:
    """Message number → its unique-id, None where that is missing or none that could be kept (RFC 1939 §7)."""
    found: dict[int, Uid | None] = {}
    for line in lines:
        number, _, rest = line.strip().partition(b" ")
        if not _is_number(number):
            continue
        unique = rest.strip()
        found[int(number)] = Uid(unique.decode("ascii")) if _UNIQUE.fullmatch(unique) else None
    return found


def read_sizes(lines: Iterable[bytes]) -> dict[int, int]:
    """Message number → its size in octets (RFC 1939 §5, LIST); lines that make no sense are left out."""
    found: dict[int, int] = {}
    for line in lines:
        words = line.split(None, 2)
        if len(words) >= 2 and _is_number(words[0]) and words[1].isdigit() and len(words[1]) <= 15:
            found[int(words[0])] = int(words[1])
    return found


def _is_number(word: bytes) -> bool:
    return word.isdigit() and len(word) <= 10 and int(word) > 0
