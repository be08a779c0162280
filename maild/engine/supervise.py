"""Keeps a task alive: what went wrong is told, and after a while it is tried again. The only place that may catch all.

A delay doubles from 1 s to 5 min, after an hour of failures goes to 15 min, and ends at once when somebody asks or the
network changes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import structlog

from maild.core.backoff import reconnect_delay_s
from maild.core.errors import MaildError

log = structlog.get_logger()


@dataclass(slots=True)
class Patience:
    """How often something failed in a row, and so how long to wait. `clock` gives seconds of any origin."""

    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    failures: int = 0
    retry_at_s: float = 0.0
    _first_s: float = 0.0
    _asked: anyio.Event | None = None

    def note_failure(self) -> float:
        """One more; how long to wait now, in seconds."""
        now_s = self.clock()
        if not self.failures:
            self._first_s = now_s
        self.failures += 1
        delay_s = reconnect_delay_s(self.failures, now_s - self._first_s, self.chance)
        self.retry_at_s = now_s + delay_s
        return delay_s

    @property
    def failing_for_s(self) -> float:
        """Since when nothing went well, 0 while all is well."""
        return self.clock() - self._first_s if self.failures else 0.0

    def reset(self) -> None:
        """It went well, or there is reason to believe that it will: whoever waits goes on, the next delay is short."""
        self.failures = 0
        if self._asked is not None:
            self._asked.set()

    async def wait(self, delay_s: float) -> None:
        """Wait so long, or until `reset`."""
        self._asked = anyio.Event()
        with anyio.move_on_after(delay_s):
            await self._asked.wait()
        self._asked = None


async def keep_alive(
    what: str,
    run: Callable[[], Awaitable[None]],
    patience: Patience,
    on_failure: Callable[[MaildError | None], None] = lambda _: None,
    account: str | None = None,
) -> None:
    """Run something until it returns, again after each failure. `on_failure` gets what it was, None for a fault in
    maild itself, which is logged with its traceback."""
    while True:
        try:
            await run()
            return
        except Exception as exc:
            failure = only_ours(exc)
            delay_s = patience.note_failure()
            if failure is None:
                log.error("task.failed", task=what, delay_s=round(delay_s, 1), account=account, exc_info=exc)
            elif patience.failures == 1:
                log.warning("task.retried", task=what, account=account, reason=failure.text, delay_s=round(delay_s, 1))
            on_failure(failure)
        await patience.wait(delay_s)


def only_ours(exc: BaseException) -> MaildError | None:
    """The first of our errors where there is nothing else; None for a fault in maild."""
    if isinstance(exc, MaildError):
        return exc
    if not isinstance(exc, BaseExceptionGroup):
        return None
    found = [only_ours(one) for one in exc.exceptions]
    return None if None in found else found[0]
