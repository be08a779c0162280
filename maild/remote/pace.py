"""Turns at a host: many accounts do not come to one server at the same instant, whatever made them come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

CONNECTS_PER_S, CONNECTS_AT_ONCE = 30.0, 10  # in no second more than 50, which is what a server has to bear


@dataclass(slots=True)
class Pace:
    """So many turns a second at each host, in the order asked for; after a rest so many at once, without waiting.

    In any second there are at most `per_s + at_once` of them. `clock` gives seconds of any origin.
    """

    per_s: float
    at_once: int = 1
    clock: Callable[[], float] = time.monotonic
    _free_at_s: dict[str, float] = field(default_factory=dict)  # when the turns that were taken have been paid for
    _next: dict[str, anyio.Lock] = field(default_factory=dict)  # who has it is the next one at the host

    def delay_s(self, host: str) -> float:
        """How long whoever asked now would have to wait."""
        return max(0.0, self._free_at_s.get(host, 0.0) - (self.at_once - 1) / self.per_s - self.clock())

    def wait_s(self, host: str) -> float:
        """Take the next turn at a host: how long to wait for it."""
        delay_s = self.delay_s(host)
        self._free_at_s[host] = max(self._free_at_s.get(host, 0.0), self.clock()) + 1 / self.per_s
        return delay_s

    def forget(self) -> None:
        """As if nobody had come yet."""
        self._free_at_s.clear()
        self._next.clear()

    def is_crowded(self, host: str) -> bool:
        """Whether others wait for a turn there, or whoever comes would have to."""
        return self.delay_s(host) > 0 or (host in self._next and self._next[host].locked())

    async def turn(self, host: str) -> None:
        """Wait for one. It counts from when it is had, so that an event loop that was held up makes no crowd."""
        async with self._next.setdefault(host, anyio.Lock()):
            await anyio.sleep(self.delay_s(host))
            self.wait_s(host)


connects = Pace(CONNECTS_PER_S, CONNECTS_AT_ONCE)  # those of this process, of all its accounts and protocols
