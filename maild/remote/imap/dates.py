"""INTERNALDATE (RFC 9051 §9 date-time), both ways. Pure; without the locale's month names."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_DATE = re.compile(rb" ?(\d{1,2})-([A-Za-z]{3})-(\d{4}) (\d\d):(\d\d):(\d\d) ([+-]\d{4})\Z")
_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name.lower().encode(): n for n, name in enumerate(_NAMES, 1)}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def internal_date(text: bytes | None) -> int | None:
    """What a server told, in seconds since 1970 UTC; None where it cannot be read."""
    match = _DATE.match(text) if text is not None else None
    if match is None:
        return None
    day, month, year, hour, minute, second, zone = match.groups()
    shift_min = int(zone[1:3]) * 60 + int(zone[3:5])
    try:
        local = datetime(
            int(year), _MONTHS[month.lower()], int(day), int(hour), int(minute), min(int(second), 59), tzinfo=UTC
        )
    except (ValueError, KeyError):
        return None
    return int(local.timestamp()) - (shift_min * 60 if zone[:1] == b"+" else -shift_min * 60)


def date_time(seconds: int) -> str:
    """Seconds since 1970 UTC as a server wants it, in quotes; "" where the year has not four digits."""
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return ""
    month = _NAMES[moment.month - 1]
    return f'"{moment.day:2d}-{month}-{moment.year:04d} {moment:%H:%M:%S} +0000"'


def day(moment: datetime) -> str:
    """A day as SEARCH wants it (RFC 9051 §9 date)."""
    return f"{moment.day}-{_NAMES[moment.month - 1]}-{moment.year:04d}"
