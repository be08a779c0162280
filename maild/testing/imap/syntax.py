"""The grammar a server reads and writes: arguments, sets, dates, strings, mailbox names (RFC 9051 §9). Pure.

Written apart from the client's parser on purpose: if both shared code, a misreading would agree with itself.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime

Ranges = list[tuple[int, int]]  # a sequence set; 0 stands for "*"

_ATOM = re.compile(rb'[^\x00-\x20\x7f-\xff(){%*"\\\]]+')
_ASTRING = re.compile(rb'[^\x00-\x20\x7f-\xff(){%*"\\]+')
_PATTERN = re.compile(rb'[^\x00-\x20\x7f-\xff(){"\\]+')
_FLAG = re.compile(rb'\\?[^\x00-\x20\x7f-\xff(){%*"\\\]]+')
_QUOTED = re.compile(rb'"((?:[^"\\\r\n\x00]|\\["\\])*)"')
_LITERAL = re.compile(rb"\{(\d+)\+?\}\r\n")
_SET = re.compile(rb"(?:\d+|\*)(?::(?:\d+|\*))?(?:,(?:\d+|\*)(?::(?:\d+|\*))?)*")
_NUMBER = re.compile(rb"\d+")
_NEEDS_LITERAL = re.compile(rb"[\x00\r\n\x80-\xff]")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE = re.compile(rb"(\d{1,2})-([A-Za-z]{3})-(\d{4})\Z")
_TIME = re.compile(rb" (\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)\Z")
_UTF7 = re.compile(r"&([^-]*)-")
_NOT_ASCII = re.compile(r"&|[^\x20-\x7e]+")


class BadSyntax(Exception):
    """What the client sent cannot be read; answered with BAD and this text."""


class Arguments:
    """A cursor over what follows a command's name; literals stand in the text with their announcement."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._text)

    def end(self) -> None:
        """Nothing may follow."""
        if self:
            raise BadSyntax(f"Unexpected {self._text[self._at : self._at + 20]!r}")

    def starts(self, prefix: bytes) -> bool:
        return self._text[self._at : self._at + len(prefix)].upper() == prefix

    def took(self, prefix: bytes) -> bool:
        """Step over `prefix` (upper case) where it stands next."""
        if not self.starts(prefix):
            return False
        self._at += len(prefix)
        return True

    def expect(self, prefix: bytes) -> None:
        if not self.took(prefix):
            raise BadSyntax(f"Expected {prefix.decode()!r} before {self._text[self._at : self._at + 20]!r}")

    def space(self) -> None:
        self.expect(b" ")

    def word(self) -> str:
        """An atom in upper case."""
        return self._match(_ATOM, "a word")[0].decode().upper()

    def atom(self) -> str:
        return self._match(_ATOM, "an atom")[0].decode()

    def number(self) -> int:
        return int(self._match(_NUMBER, "a number")[0])

    def astring(self) -> bytes:
        return self.string() if self.starts(b'"') or self.starts(b"{") else self._match(_ASTRING, "a string")[0]

    def string(self) -> bytes:
        """A quoted string or a literal."""
        if self.starts(b'"'):
            return re.sub(rb"\\(.)", rb"\1", self._match(_QUOTED, "a quoted string")[1])
        size = int(self._match(_LITERAL, "a string")[1])
        self._at += size
        return self._text[self._at - size : self._at]

    def mailbox(self) -> str:
        return decode_name(self.astring())

    def pattern(self) -> str:
        """A mailbox name that may hold `*` and `%`."""
        text = self.string() if self.starts(b'"') or self.starts(b"{") else self._match(_PATTERN, "a pattern")[0]
        return decode_name(text)

    def ranges(self) -> Ranges:
        """A sequence set."""
        parts = self._match(_SET, "a message set")[0].split(b",")
        ends = [part.partition(b":") for part in parts]
        return [(_position(low), _position(high) if colon else _position(low)) for low, colon, high in ends]

    def at_ranges(self) -> bool:
        return _SET.match(self._text, self._at) is not None

    def flags(self) -> list[str]:
        """Flags in parentheses, or bare ones to the end."""
        if not self.took(b"("):
            return self._flags_bare()
        flags = [] if self.starts(b")") else self._flags_bare()
        self.expect(b")")
        return flags

    def words(self) -> list[str]:
        """Atoms in parentheses, in upper case."""
        self.expect(b"(")
        found: list[str] = []
        while not self.took(b")"):
            if found:
                self.space()
            found.append(self.word())
        return found

    def day(self) -> date:
        text = self.string() if self.starts(b'"') else self._match(_ATOM, "a date")[0]
        return _date(text)

    def date_time(self) -> int:
        """A quoted date-time, as seconds since 1970 UTC."""
        text = self.string().strip()
        clock = _TIME.search(text)
        if clock is None:
            raise BadSyntax("Not a date-time")
        hour, minute, second, zone_hours, zone_minutes = (int(clock[i]) for i in (1, 2, 3, 5, 6))
        if hour > 23 or minute > 59 or second > 60:
            raise BadSyntax("Not a time of day")
        day = _date(text[: clock.start()])
        zone_s = (zone_hours * 60 + zone_minutes) * 60 * (1 if clock[4] == b"+" else -1)
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        return int(midnight.timestamp()) + hour * 3600 + minute * 60 + second - zone_s

    def _flags_bare(self) -> list[str]:
        flags = [self._match(_FLAG, "a flag")[0].decode()]
        while self.took(b" "):
            flags.append(self._match(_FLAG, "a flag")[0].decode())
        return flags

    def _match(self, pattern: re.Pattern[bytes], what: str) -> re.Match[bytes]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise BadSyntax(f"Expected {what} before {self._text[self._at : self._at + 20]!r}")
        self._at = found.end()
        return found


def _position(text: bytes) -> int:
    number = 0 if text == b"*" else int(text)
    if text == b"0" * len(text) or number > 0xFFFFFFFF:
        raise BadSyntax("Message numbers are from 1 to 4294967295")
    return number


def _date(text: bytes) -> date:
    found = _DATE.match(text.strip())
    month = found[2].decode().title() if found else ""
    if found is None or month not in _MONTHS:
        raise BadSyntax("Not a date")
    try:
        return date(int(found[3]), _MONTHS.index(month) + 1, int(found[1]))
    except ValueError as error:
        raise BadSyntax("Not a date") from error


def date_time(seconds: int) -> bytes:
    """INTERNALDATE in quotes, in UTC."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f'"{moment.day:2d}-{_MONTHS[moment.month - 1]}-{moment:%Y %H:%M:%S} +0000"'.encode()


def string(value: bytes) -> bytes:
    """A quoted string, or a literal where quoting cannot carry it."""
    if _NEEDS_LITERAL.search(value):
        return b"{%d}\r\n%b" % (len(value), value)
    return b'"%b"' % re.sub(rb'(["\\])', rb"\\\1", value)


def set_of(numbers: Iterable[int]) -> bytes:
    """Ascending numbers as a compressed set, such as `1:3,7`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return b",".join(b"%d" % low if low == high else b"%d:%d" % (low, high) for low, high in ranges)


def encode_name(name: str) -> bytes:
    """A mailbox name in modified UTF-7 (RFC 3501 §5.1.3), not yet quoted."""

    def shifted(match: re.Match[str]) -> str:
        if match[0] == "&":
            return "&-"
        return "&" + base64.b64encode(match[0].encode("utf-16-be")).decode().rstrip("=").replace("/", ",") + "-"

    return _NOT_ASCII.sub(shifted, name).encode("ascii")


def decode_name(raw: bytes) -> str:
    """The mailbox name a client wrote in modified UTF-7."""

    def plain(match: re.Match[str]) -> str:
        if not match[1]:
            return "&"
        text = match[1].replace(",", "/")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode("utf-16-be")

    try:
        name = _UTF7.sub(plain, raw.decode("ascii"))
    except (UnicodeDecodeError, binascii.Error) as error:
        raise BadSyntax("Mailbox name is not modified UTF-7") from error
    if encode_name(name) != raw:  # an unfinished shift, or ASCII written in base64
        raise BadSyntax("Mailbox name is not modified UTF-7")
    return name


def decode_base64(text: bytes) -> bytes:
    """A SASL response line; `=` alone is the empty response (RFC 4959)."""
    if text == b"=":
        return b""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadSyntax("Not base64") from error
