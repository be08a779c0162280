"""Waiting for something to become true, with a deadline; never for a time to pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")
DEADLINE_S = 20.0


async def until(happened: Callable[[], T | Awaitable[T]], within_s: float = DEADLINE_S) -> T:
    """The first result that is true. The test fails with the last one when the time is over."""
    result: T | None = None
    with anyio.move_on_after(within_s):
        while True:
            told = happened()
            result = await told if isinstance(told, Awaitable) else told
            if result:
                return result
            await anyio.sleep(0.01)
    raise AssertionError(f"not within {within_s:g} s; last seen: {result!r}")
