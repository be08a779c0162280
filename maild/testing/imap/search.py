"""SEARCH criteria, compiled to one test of (sequence number, message) (RFC 9051 §6.4.4, RFC 7162 §3.1.5). Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime

from maild.testing.imap.fetch import header_values, split
from maild.testing.imap.syntax import Arguments, BadSyntax, Ranges
from maild.testing.store import Message

Test = Callable[[int, Message], bool]
Resolve = Callable[[Ranges, bool], frozenset[int]]  # (set, whether it holds UIDs) → the UIDs it means

_DEPTH = 50
_FLAGS = {
    "ANSWERED": "\\Answered",
    "DELETED": "\\Deleted",
    "DRAFT": "\\Draft",
    "FLAGGED": "\\Flagged",
    "SEEN": "\\Seen",
}
_HEADERS = ("BCC", "CC", "FROM", "SUBJECT", "TO")
_DATES = ("BEFORE", "ON", "SINCE", "SENTBEFORE", "SENTON", "SENTSINCE")


class Criteria:
    """Reads criteria from a command. `used` holds the names of the extensions they asked for."""

    def __init__(self, arguments: Arguments, resolve: Resolve) -> None:
        self.used: set[str] = set()
        self._arguments = arguments
        self._resolve = resolve

    def all_of(self, depth: int = 0) -> Test:
        """Criteria up to the end or a closing parenthesis; all of them must hold."""
        if depth > _DEPTH:
            raise BadSyntax("Criteria are nested too deeply")
        tests = [self._one(depth)]
        while self._arguments.took(b" "):
            tests.append(self._one(depth))
        return tests[0] if len(tests) == 1 else lambda number, message: all(test(number, message) for test in tests)

    def _one(self, depth: int) -> Test:
        arguments = self._arguments
        if arguments.took(b"("):
            inner = self.all_of(depth + 1)
            arguments.expect(b")")
            return inner
        if arguments.at_ranges():
            return self._in(by_uid=False)
        return self._key(arguments.word(), depth)

    def _key(self, key: str, depth: int) -> Test:
        if depth > _DEPTH:
            raise BadSyntax("Criteria are nested too deeply")
        match key:
            case "ALL" | "OLD":
                return lambda _n, _m: True
            case "NEW" | "RECENT":
                return lambda _n, _m: False
            case "NOT":
                inner = self._next(depth)
                return lambda number, message: not inner(number, message)
            case "OR":
                left, right = self._next(depth), self._next(depth)
                return lambda number, message: left(number, message) or right(number, message)
            case "UID":
                self._arguments.space()
                return self._in(by_uid=True)
            case "KEYWORD" | "UNKEYWORD":
                self._arguments.space()
                return _flag(self._arguments.atom(), present=key == "KEYWORD")
            case _ if key in _FLAGS:
                return _flag(_FLAGS[key], present=True)
            case _ if key.startswith("UN") and key[2:] in _FLAGS:
                return _flag(_FLAGS[key[2:]], present=False)
            case _:
                return self._valued(key)

    def _next(self, depth: int) -> Test:
        self._arguments.space()
        return self._one(depth + 1)

    def _valued(self, key: str) -> Test:
        """The keys that look at what a message holds."""
        arguments = self._arguments
        arguments.space()
        if key in _HEADERS:
            return _header(key.encode(), arguments.astring())
        if key in _DATES:
            return _dated(key, arguments.day())
        match key:
            case "HEADER":
                name = arguments.astring()
                arguments.space()
                return _header(name, arguments.astring())
            case "BODY" | "TEXT":
                return _text(arguments.astring().lower(), whole=key == "TEXT")
            case "LARGER":
                least = arguments.number()
                return lambda _, message: len(message.raw) > least
            case "SMALLER":
                most = arguments.number()
                return lambda _, message: len(message.raw) < most
            case "MODSEQ":
                return self._modseq()
            case "EMAILID":
                self.used.add("OBJECTID")
                wanted = arguments.atom()
                return lambda _, message: message.email_id == wanted
            case _:
                raise BadSyntax(f"Unknown search key {key}")

    def _modseq(self) -> Test:
        """`MODSEQ n`, or with an entry name and type in between, which narrow nothing here."""
        self.used.add("CONDSTORE")
        if self._arguments.starts(b'"'):
            self._arguments.string()
            self._arguments.space()
            self._arguments.word()
            self._arguments.space()
        least = self._arguments.number()
        return lambda _, message: message.modseq >= least

    def _in(self, *, by_uid: bool) -> Test:
        uids = self._resolve(self._arguments.ranges(), by_uid)
        return lambda _, message: message.uid in uids


def _flag(name: str, *, present: bool) -> Test:
    wanted = name.lower()
    return lambda _, message: any(flag.lower() == wanted for flag in message.flags) is present


def _header(name: bytes, value: bytes) -> Test:
    wanted = value.lower()
    return lambda _, message: any(wanted in body.lower() for body in header_values(split(message.raw)[0], name))


def _text(wanted: bytes, *, whole: bool) -> Test:
    return lambda _, message: wanted in (message.raw if whole else split(message.raw)[1]).lower()


def _dated(key: str, day: date) -> Test:
    of = _sent if key.startswith("SENT") else _received
    match key.removeprefix("SENT"):
        case "BEFORE":
            return lambda _, message: (found := of(message)) is not None and found < day
        case "ON":
            return lambda _, message: of(message) == day
        case _:
            return lambda _, message: (found := of(message)) is not None and found >= day


def _received(message: Message) -> date | None:
    return datetime.fromtimestamp(message.date_s, UTC).date()


def _sent(message: Message) -> date | None:
    for body in header_values(split(message.raw)[0], b"Date"):
        try:
            return parsedate_to_datetime(body.decode("ascii", "replace")).date()
        except ValueError:
            return None
    return None
