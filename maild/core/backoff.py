"""Delays as a function of how often something failed. Time and chance are passed in."""

from __future__ import annotations

from collections.abc import Callable, Collection

FIRST_RETRY_S = 60
LONGEST_RETRY_S = 4 * 3600
GREYLISTED_S = 5 * 60  # 421 and 450: whoever greylists or is overloaded wants to be left alone that long
_PATIENT_CODES = frozenset({421, 450})

_FIRST_RECONNECT_S = 1.0
_LONGEST_RECONNECT_S = 300.0
_AFTER_AN_HOUR_S = 900.0
_AN_HOUR_S = 3600.0


def retry_delay_s(attempts: int, codes: Collection[int] = ()) -> int:
    """How long a message waits after its `attempts`-th try was deferred with these reply codes: 1 m, 2 m, 4 m … 4 h."""
    delay_s = min(FIRST_RETRY_S << min(max(attempts, 1) - 1, 16), LONGEST_RETRY_S)
    return max(delay_s, GREYLISTED_S) if _PATIENT_CODES.intersection(codes) else delay_s


def is_due(count: int, last_s: float, now_s: float) -> bool:
    """Whether a message that did not travel at the `count`-th try, at `last_s`, is to be tried again at `now_s`."""
    return not last_s <= now_s < last_s + retry_delay_s(count)


def reconnect_delay_s(failures: int, since_first_s: float, random: Callable[[], float]) -> float:
    """How long to wait after the `failures`-th failed connection in a row, the first of them `since_first_s` ago.

    Doubles from 1 s to 5 min, after an hour goes to 15 min. `random` gives a number from 0 to 1; the result lies
    between half and the whole of the delay, so that many accounts do not come back at one instant.
    """
    longest_s = _AFTER_AN_HOUR_S if since_first_s >= _AN_HOUR_S else _LONGEST_RECONNECT_S
    whole_s = (
        longest_s
        if longest_s == _AFTER_AN_HOUR_S
        else min(_FIRST_RECONNECT_S * 2 ** min(max(failures, 1) - 1, 16), longest_s)
    )
    return whole_s * (0.5 + random() / 2)
