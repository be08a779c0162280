"""IMAP responses: octets in any pieces become events. Pure, iterative, linear, tolerant of what real servers send.

What is kept by this file:
- events never depend on how the octets were cut;
- every octet is looked at a bounded number of times, nothing recurses, and everything a server can make us store has a
  limit (`Limits`); beyond it the parser stops for good and `violation` says why;
- only the end of a line that can carry data announces a literal: status texts, tagged lines and continuations never do
  (a text may end in `{12}`), nor does a `{n}` glued to an atom (a mailbox called `abc{5}`);
- a line that makes no sense becomes `Ignored`, it never spoils its neighbours.

Grammar: RFC 3501 §9 and RFC 9051 §9; extensions are cited where they are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from maild.core.errors import ProtocolViolation
from maild.core.model import Flags

Token = bytes | list["Token"] | None  # atom, quoted string or literal; parenthesised list; NIL


class Bare(bytes):
    """An atom, or a quoted string that has no end: no octets of a message (RFC 9051 nstring)."""

    __slots__ = ()


class Sink(Protocol):
    """Where a big literal goes as it arrives. The memory given to `write` is reused after it returns."""

    def write(self, chunk: memoryview, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server may make us keep. `body` bounds literals that go to a sink, `literal` those kept in memory."""

    line: int = 16 << 20  # octets; a SEARCH answer of two million UIDs fits
    literal: int = 4 << 20
    body: int = 1 << 31
    nesting: int = 32
    tokens: int = 4_000_000
    ranges: int = 1_000_000  # in one VANISHED
    parts: int = 64  # literals in one response


@dataclass(frozen=True, slots=True)
class Tagged:
    """The end of a command: `status` is OK, NO or BAD; `code` the response code's name in upper case or ""."""

    tag: str
    status: str
    code: str
    argument: bytes
    text: str


@dataclass(frozen=True, slots=True)
class Untagged:
    """`* OK|NO|BAD|BYE|PREAUTH [CODE argument] text`."""

    status: str
    code: str
    argument: bytes
    text: str


@dataclass(frozen=True, slots=True)
class Continuation:
    """`+ text`: the server waits for more of a command."""

    text: bytes


@dataclass(slots=True)
class FetchData:
    """One FETCH response; what it does not carry, and a UID that is none, is None.

    `modseq` and `size` are -1 where they cannot be read.

    `sections` maps what stood in the brackets of BODY[…], in upper case, to its octets (or to the sink that took them).
    """

    seq: int
    uid: int | None = None
    flags: Flags | None = None
    modseq: int | None = None
    date: bytes | None = None
    size: int | None = None
    email_id: bytes | None = None
    sections: dict[bytes, bytes | bytearray | Sink] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Numbered:
    """`* n EXISTS`, `* n EXPUNGE`, `* n RECENT`."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class Vanished:
    """`* VANISHED [(EARLIER)] set` (RFC 7162 §3.2.10): ranges of UIDs, inclusive, as the server gave them."""

    earlier: bool
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Data:
    """Any other untagged response, `name` in upper case, what follows as tokens."""

    name: str
    tokens: list[Token]


@dataclass(frozen=True, slots=True)
class Ignored:
    """A line that is not IMAP; kept, cut short, for the log."""

    line: bytes


Event = Tagged | Untagged | Continuation | FetchData | Numbered | Vanished | Data | Ignored

# The numbers are those that surely fit into 63 bits; whatever is longer is read by `number`.
_ITEMS = (
    rb"(?:(?:UID ([1-9]\d{0,17})|FLAGS \(([^()\"{}\r\n]*)\)|MODSEQ \((\d{1,18})\)|RFC822\.SIZE (\d{1,18})"
    rb'|INTERNALDATE "([^"\\]*)") ?)*'
)
_FETCH_LINE = re.compile(rb"\* (\d{1,10}) FETCH \(" + _ITEMS + rb"\)\s*\Z", re.IGNORECASE)
_FETCH_BODY = re.compile(
    rb"\* (\d{1,10}) FETCH \(" + _ITEMS + rb"BODY\[([^\]]*)\](?:<\d+>)? ~?\{(\d{1,20})\+?\}\Z", re.IGNORECASE
)
_FETCH_TAIL = re.compile(rb" ?" + _ITEMS + rb"\)\s*\Z", re.IGNORECASE)
_FETCH = re.compile(rb"\* (\d{1,10}) FETCH(?= |\()", re.IGNORECASE)
_LITERAL = re.compile(rb"(?:\A|[ (])~?\{(\d+)\+?\}\Z")
_LAST_SECTION = re.compile(rb"(?:BODY|BINARY)\[([^\]]*)\](?:<\d+>)? \Z", re.IGNORECASE)
_STATUS = re.compile(rb"\* (OK|NO|BAD|BYE|PREAUTH)(?: |\Z)(.*)\Z", re.IGNORECASE | re.DOTALL)
_TAGGED = re.compile(rb"([!-'),-Z^-z|}~]{1,64}) (OK|NO|BAD)(?: |\Z)(.*)\Z", re.IGNORECASE | re.DOTALL)
_CODE = re.compile(rb"\[([^\s\]\[]+)(?: ([^\]\"]*(?:\"[^\"]*\"[^\]\"]*)*))?\] ?")
_NUMBERED = re.compile(rb"\* (\d{1,10}) (EXISTS|EXPUNGE|RECENT)\s*\Z", re.IGNORECASE)
_FLAT = frozenset({"SEARCH", "CAPABILITY", "ENABLED"})  # possibly huge, without strings or literals
_CACHED_FLAGS_OCTETS = 256
_VANISHED = re.compile(rb"\* VANISHED (\(EARLIER\) )?([\d:,*]+)\s*\Z", re.IGNORECASE)
_NAME = re.compile(rb"\* ([A-Za-z][A-Za-z0-9.-]*)(?: |\Z)")
_TOKEN = re.compile(rb' *(?:"([^"\\\r\n]*(?:\\.[^"\\\r\n]*)*)"(?=[ )(]|\Z)|(\()|(\))|([^ ()"]+)|("))', re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_SECTION_ATOM = re.compile(rb"(?:BODY|BINARY)\[", re.IGNORECASE)


class Parser:
    """One connection's receiving half. `open_body(size)` may give a sink for a big BODY[] literal, or None."""

    def __init__(self, limits: Limits | None = None, open_body: Callable[[int], Sink | None] | None = None) -> None:
        self.limits = limits or Limits()
        self.open_body = open_body
        self.violation: ProtocolViolation | None = None
        self._partial = bytearray()
        self._parts: list[bytes | bytearray | Sink] = []  # line, literal, line, literal … of the response being read
        self._is_in_literal = False
        self._literal: bytearray | None = None  # one that has come in part only
        self._filled = 0
        self._sink: Sink | None = None
        self._left = 0
        self._fast: FetchData | None = None
        self._section = b""

    @property
    def idle(self) -> bool:
        """True when no part of a response is waiting for its rest."""
        return not (self._partial or self._parts or self._left or self._fast)

    def feed(self, data: bytes | bytearray | memoryview, length: int | None = None) -> list[Event]:
        """The events completed by the first `length` octets of `data`, which may be reused after the call.

        Beyond a limit `violation` is set, and nothing after it is looked at.
        """
        events: list[Event] = []
        if self.violation is None:
            try:
                self._consume(data, length, events)
            except ProtocolViolation as exc:
                self.violation = exc
        return events

    def _consume(self, data: bytes | bytearray | memoryview, length: int | None, events: list[Event]) -> None:
        view = data if isinstance(data, memoryview) else memoryview(data)
        source = view.obj if isinstance(data, memoryview) else data
        if not isinstance(source, bytes | bytearray) or len(source) != len(view):
            source = bytes(view)
        end = len(view) if length is None else length
        pos = 0
        while pos < end or (self._left == 0 and self._is_in_literal):
            if self._is_in_literal:
                pos = self._fill_literal(view, pos, end)
                continue
            eol = source.find(b"\n", pos, end)
            if eol < 0:
                self._keep_partial(view[pos:end])
                break
            if self._partial or eol - pos > self.limits.line:
                self._keep_partial(view[pos:eol])
                line = bytes(self._partial)
                self._partial.clear()
            else:
                line = bytes(view[pos:eol])
            pos = eol + 1
            self._line(line.removesuffix(b"\r"), events)

    def _keep_partial(self, octets: bytes | memoryview) -> None:
        if len(self._partial) + len(octets) > self.limits.line:
            raise ProtocolViolation(f"the server sent a line of more than {self.limits.line} octets")
        self._partial += octets

    # -- literals ---------------------------------------------------------------------------------------------------

    def _begin_literal(self, digits: bytes, section: bytes | None) -> None:
        size = int(digits) if len(digits) <= 20 else self.limits.body + 1
        if section is not None and size > self.limits.literal and self.open_body is not None:
            if size > self.limits.body:
                raise ProtocolViolation(
                    f"the server announced a message of {size} octets, the limit is {self.limits.body}"
                )
            self._sink = self.open_body(size)
        if self._sink is None and size > self.limits.literal:
            raise ProtocolViolation(f"the server announced {size} octets, the limit is {self.limits.literal}")
        self._is_in_literal = True
        self._left, self._filled = size, 0

    def _fill_literal(self, view: memoryview, pos: int, end: int) -> int:
        take = min(end - pos, self._left)
        if self._sink is not None:
            if take:
                self._sink.write(view[pos : pos + take])
        elif take == self._left and self._literal is None:  # whole, as most are: copied once
            self._end_literal(bytes(view[pos : pos + take]))
            return pos + take
        else:
            if self._literal is None:
                self._literal = bytearray(self._left)
            self._literal[self._filled : self._filled + take] = view[pos : pos + take]
        self._filled += take
        self._left -= take
        if not self._left:
            self._end_literal(self._sink if self._sink is not None else self._literal or b"")
        return pos + take

    def _end_literal(self, value: bytes | bytearray | Sink) -> None:
        self._is_in_literal, self._left = False, 0
        self._sink = self._literal = None
        if self._fast is not None:
            self._fast.sections[self._section] = value
        else:
            self._parts.append(value)

    # -- lines ------------------------------------------------------------------------------------------------------

    def _line(self, line: bytes, events: list[Event]) -> None:
        if self._fast is not None:
            self._fetch_tail(line, events)
        elif self._parts:
            self._continue_response(line, events)
        elif line.startswith(b"* "):
            self._untagged_line(line, events)
        elif line.startswith(b"+"):
            events.append(Continuation(line[1:].removeprefix(b" ")))
        elif m := _TAGGED.match(line):
            events.append(Tagged(m[1].decode("ascii"), m[2].decode("ascii").upper(), *_code_and_text(m[3])))
        elif line:
            events.append(Ignored(line[:200]))

    def _untagged_line(self, line: bytes, events: list[Event]) -> None:
        if (m := _FETCH_LINE.match(line)) is not None:
            events.append(_simple_fetch(int(m[1]), m[2], m[3], m[4], m[5], m[6]))
        elif (m := _FETCH_BODY.match(line)) is not None:
            self._fast = _simple_fetch(int(m[1]), m[2], m[3], m[4], m[5], m[6])
            self._section = m[7].upper()
            self._begin_literal(m[8], self._section)
        elif (m := _STATUS.match(line)) is not None:
            events.append(Untagged(m[1].decode("ascii").upper(), *_code_and_text(m[2])))
        elif (m := _NUMBERED.match(line)) is not None:
            events.append(Numbered(int(m[1]), m[2].decode("ascii").upper()))
        elif (m := _VANISHED.match(line)) is not None:
            if m[2].count(b",") >= self.limits.ranges:
                raise ProtocolViolation(f"the server sent more than {self.limits.ranges} ranges in one response")
            events.append(Vanished(m[1] is not None, tuple(uid_ranges(m[2]))))
        else:
            self._response_line(line, events)

    def _fetch_tail(self, line: bytes, events: list[Event]) -> None:
        """What follows the literal of a FETCH: `)`, more simple items, or anything (the slow way)."""
        fetch = self._fast
        if fetch is None or not line.strip():  # MailKit#954: a CRLF more than was announced
            return
        self._fast = None
        if (m := _FETCH_TAIL.match(line)) is not None:
            _fill_simple(fetch, m[1], m[2], m[3], m[4], m[5])
            events.append(fetch)
            return
        if not line.startswith((b" ", b")")):
            raise ProtocolViolation("the octets of a message do not add up to the announced size")
        head = b"* %d FETCH (%sBODY[%s] " % (fetch.seq, _simple_text(fetch), self._section)
        self._parts = [head, fetch.sections[self._section]]
        self._response_line(line, events)

    def _continue_response(self, line: bytes, events: list[Event]) -> None:
        is_fetch = isinstance(self._parts[0], bytes) and _FETCH.match(self._parts[0]) is not None
        if not line.strip():
            if is_fetch:
                return
        elif is_fetch and not line.startswith((b" ", b")")):
            raise ProtocolViolation("the octets of a message do not add up to the announced size")
        self._response_line(line, events)

    def _response_line(self, line: bytes, events: list[Event]) -> None:
        """One more line of a response that may hold literals."""
        literal = _LITERAL.search(line)
        if literal is None or not (self._parts or _may_hold_literals(line)):
            parts, self._parts = [*self._parts, line], []
            events.append(self._response(parts))
            return
        if len(self._parts) >= 2 * self.limits.parts:
            raise ProtocolViolation(f"the server sent more than {self.limits.parts} literals in one response")
        head = line[: line.rindex(b"{")].removesuffix(b"~")
        self._parts.append(head)
        first = self._parts[0]
        section = _LAST_SECTION.search(head) if isinstance(first, bytes) and _FETCH.match(first) else None
        self._begin_literal(literal[1], section[1] if section else None)

    def _response(self, parts: list[bytes | bytearray | Sink]) -> Event:
        first = parts[0]
        if not isinstance(first, bytes):
            raise ProtocolViolation("a response began with a literal")
        if (m := _FETCH.match(first)) is not None:
            return _slow_fetch(int(m[1]), [first[m.end() :], *parts[1:]], self.limits)
        if (m := _NAME.match(first)) is None:
            return Ignored(first[:200])
        name = m[1].decode("ascii").upper()
        rest = first[m.end() :]
        if name in _FLAT:
            if rest.count(b" ") >= self.limits.tokens:
                raise ProtocolViolation(f"the server sent more than {self.limits.tokens} items in one response")
            return Data(name, list(rest.replace(b"(", b" ( ").replace(b")", b" ) ").split()))
        flat = [p if isinstance(p, bytes | bytearray) else b"" for p in [rest, *parts[1:]]]
        return Data(name, tokens(flat, self.limits))


def _may_hold_literals(line: bytes) -> bool:
    """Whether a response that begins so may announce a literal at the end of its first line."""
    if _FETCH.match(line) is not None:
        return True
    return (m := _NAME.match(line)) is not None and m[1].decode("ascii").upper() not in _FLAT


def _code_and_text(rest: bytes) -> tuple[str, bytes, str]:
    """`[CODE argument] text` taken apart; the text is escaped and cut, fit for a log or a terminal."""
    code, argument = "", b""
    if (m := _CODE.match(rest)) is not None:
        code, argument = m[1].decode("ascii", "replace").upper(), m[2] or b""
        rest = rest[m.end() :]
    return code, argument, printable(rest)


def printable(octets: bytes, limit: int = 300) -> str:
    """Server text made safe for a terminal: one line, control characters shown as escapes, cut at `limit`."""
    text = octets[: 4 * limit + 4].decode("utf-8", "replace").strip()  # a character has four octets at most
    safe = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return safe if len(safe) <= limit else safe[:limit] + "…"


# -- FETCH ----------------------------------------------------------------------------------------------------------


def parse_flags(text: bytes) -> Flags:
    """The inside of `FLAGS (…)`: system flags spelt as RFC 9051 does, keywords as they are, no `\\Recent`, no NIL."""
    return _cached_flags(text) if len(text) <= _CACHED_FLAGS_OCTETS else _flags(text)


def _flags(text: bytes) -> Flags:
    return frozenset(flag for word in text.split() if (flag := _flag(word)))


_cached_flags = lru_cache(maxsize=4096)(_flags)  # most messages of a mailbox share a few sets


_SYSTEM = {name.lower(): name for name in ("\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft")}


def _flag(word: bytes) -> str:
    try:
        text = word.decode("utf-8")
    except UnicodeDecodeError:
        return ""  # no keyword that anybody could set again
    if text.lower() in {"\\recent", "nil"}:
        return ""
    return _SYSTEM.get(text.lower(), text)


def _simple_fetch(
    seq: int, uid: bytes | None, flags: bytes | None, modseq: bytes | None, size: bytes | None, date: bytes | None
) -> FetchData:
    fetch = FetchData(seq)
    _fill_simple(fetch, uid, flags, modseq, size, date)
    return fetch


def _fill_simple(
    fetch: FetchData,
    uid: bytes | None,
    flags: bytes | None,
    modseq: bytes | None,
    size: bytes | None,
    date: bytes | None,
) -> None:
    if uid is not None:
        fetch.uid = int(uid)
    if flags is not None:
        fetch.flags = parse_flags(flags)
    if modseq is not None:
        fetch.modseq = int(modseq)
    if size is not None:
        fetch.size = int(size)
    if date is not None:
        fetch.date = date


def _simple_text(fetch: FetchData) -> bytes:
    """The simple items read so far, as text, for the slow way to read again."""
    flags = None if fetch.flags is None else " ".join(fetch.flags).encode("utf-8", "surrogateescape")
    pairs = (
        (b"UID %d ", fetch.uid),
        (b"FLAGS (%b) ", flags),
        (b"MODSEQ (%d) ", fetch.modseq),
        (b"RFC822.SIZE %d ", fetch.size),
        (b'INTERNALDATE "%b" ', fetch.date),
    )
    return b"".join(form % value for form, value in pairs if value is not None)


def _slow_fetch(seq: int, parts: list[bytes | bytearray | Sink], limits: Limits) -> Event:
    """Any FETCH response at all: items in any order, unknown ones skipped, doubled parentheses (Domino) undone."""
    sinks = [p for p in parts[1::2] if not isinstance(p, bytes | bytearray)]
    flat: list[bytes | bytearray] = [p if isinstance(p, bytes | bytearray) else _SINK for p in parts]
    found: Token = tokens(flat, limits)
    while isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    fetch = FetchData(seq)
    if not isinstance(found, list):
        return Ignored(b"FETCH without items")
    values = iter(sinks)
    for name, value in _item_pairs(found):
        _set_item(fetch, name, next(values, b"") if value is _SINK else value)
    return fetch


_HIGHEST_NUMBER = (1 << 63) - 1
_SINK = b"\x00literal went to a sink"


def _item_pairs(items: list[Token]) -> Iterator[tuple[bytes, Token | Sink]]:
    """(name, value) for each item."""
    stream = iter(items)
    for token in stream:
        if isinstance(token, bytes):
            name = _section_name(token, stream) if _SECTION_ATOM.match(token) else token
            yield name, next(stream, None)


def _section_name(first: bytes, stream: Iterator[Token]) -> bytes:
    """`BODY[HEADER.FIELDS (A B)]` comes as several tokens; this is its name again."""
    pieces = [first]
    while b"]" not in pieces[-1]:
        more = next(stream, b"]")
        words = b" ".join(t for t in more if isinstance(t, bytes)) if isinstance(more, list) else b""
        pieces.append(b"(" + words + b")" if isinstance(more, list) else more or b"NIL")
    return b" ".join(pieces).replace(b" ]", b"]")


def _set_item(fetch: FetchData, name: bytes, value: Token | Sink) -> None:
    upper = name.upper()
    if _SECTION_ATOM.match(upper):
        section = upper[upper.index(b"[") + 1 : upper.rindex(b"]")] if b"]" in upper else upper
        if value is None or isinstance(value, Bare):
            value = b""  # Exchange: BODY[] NIL; others: a literal without a length, such as {-1}
        if not isinstance(value, list):
            fetch.sections[section] = value
        return
    if upper == b"FLAGS" and isinstance(value, list):
        fetch.flags = parse_flags(b" ".join(t for t in value if isinstance(t, bytes)))
    elif upper == b"MODSEQ" and isinstance(value, list) and value:
        fetch.modseq = number(value[0])
    elif upper in {b"EMAILID", b"X-GM-MSGID"}:
        inner = value[0] if isinstance(value, list) and value else value
        fetch.email_id = inner if isinstance(inner, bytes) else None
    elif isinstance(value, bytes):
        if upper == b"UID":
            fetch.uid = uid if (uid := number(value)) > 0 else None
        elif upper == b"RFC822.SIZE":
            fetch.size = number(value)
        elif upper == b"INTERNALDATE":
            fetch.date = value


def number(token: Token) -> int:
    """A number from 0 to 2^63-1 (RFC 9051 number64), or -1 for what is none (Zoho: -1, mail.ru: 9.3736e+06)."""
    value = int(token) if isinstance(token, bytes) and token.isdigit() and len(token) <= 19 else -1
    return value if value <= _HIGHEST_NUMBER else -1


# -- tokens ---------------------------------------------------------------------------------------------------------


def tokens(parts: list[bytes | bytearray], limits: Limits | None = None) -> list[Token]:
    """Text and literals, in turn, as nested tokens. Closes what was left open, skips what closes too much."""
    limits = limits or Limits()
    top: list[Token] = []
    stack: list[list[Token]] = [top]
    count = 0
    for index, part in enumerate(parts):
        if index % 2:
            stack[-1].append(part if part is _SINK else bytes(part))
            continue
        text = bytes(part)
        pos = 0
        while (m := _TOKEN.match(text, pos)) is not None:
            pos = _step(text, m, stack, limits)
            count += 1
            if count > limits.tokens:
                raise ProtocolViolation(f"the server sent more than {limits.tokens} items in one response")
    return top


def _step(text: bytes, m: re.Match[bytes], stack: list[list[Token]], limits: Limits) -> int:
    """Put one token on the stack; returns where the next one starts."""
    if m[1] is not None:
        stack[-1].append(_ESCAPE.sub(rb"\1", m[1]) if b"\\" in m[1] else m[1])
    elif m[2] is not None:
        if len(stack) > limits.nesting:
            raise ProtocolViolation(f"the server nested lists more than {limits.nesting} deep")
        inner: list[Token] = []
        stack[-1].append(inner)
        stack.append(inner)
    elif m[3] is not None:
        if len(stack) > 1:
            stack.pop()
    elif m[4] is not None:
        stack[-1].append(None if m[4].upper() == b"NIL" else Bare(m[4]))
    else:
        return _broken_quote(text, m.start(5), stack)
    return m.end()


def _broken_quote(text: bytes, pos: int, stack: list[list[Token]]) -> int:
    """A quoted string with a bare quote inside (MailKit#485) ends at the first quote before a delimiter or the end."""
    end = pos + 1
    while True:
        end = text.find(b'"', end)
        if end < 0:
            stack[-1].append(Bare(text[pos + 1 :]))
            return len(text)
        if text[end + 1 : end + 2] in {b"", b" ", b")"}:
            stack[-1].append(_ESCAPE.sub(rb"\1", text[pos + 1 : end]))
            return end + 1
        end += 1


def uid_ranges(text: bytes) -> Iterator[tuple[int, int]]:
    """`1,3:5` as (1, 1), (3, 5); reversed ranges are turned round, nonsense and `*` are left out."""
    for item in text.split(b","):
        low, _, high = item.partition(b":")
        if low.isdigit() and len(low) <= 20 and (not high or (high.isdigit() and len(high) <= 20)):
            a, b = int(low), int(high or low)
            yield (a, b) if a <= b else (b, a)


def uid_set(numbers: list[int]) -> str:
    """Ascending, compressed sequence set (RFC 9051 §9 sequence-set; QQ refuses any other order)."""
    ordered = sorted(numbers)
    runs: list[str] = []
    start = last = -1
    for n in [*ordered, -1]:
        if n == last + 1 and start >= 0:
            last = n
            continue
        if start >= 0:
            runs.append(str(start) if start == last else f"{start}:{last}")
        start = last = n
    return ",".join(runs)
