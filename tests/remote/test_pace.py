"""Turns at a host: no second holds more than are allowed, whatever the event loop was doing."""

from __future__ import annotations

import time
from itertools import pairwise

import anyio
import pytest

from maild.remote.pace import CONNECTS_AT_ONCE, CONNECTS_PER_S, Pace


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_after_a_rest_some_at_once_and_never_more_than_50_in_a_second() -> None:
    clock = Clock()
    pace = Pace(CONNECTS_PER_S, CONNECTS_AT_ONCE, clock)
    waits = [pace.wait_s("one.example") for _ in range(200)]
    assert waits[: CONNECTS_AT_ONCE + 1] == [0.0] * CONNECTS_AT_ONCE + [pytest.approx(1 / CONNECTS_PER_S)]
    assert max(sum(start <= wait < start + 1 for wait in waits) for start in waits) <= 50
    assert waits[-1] == pytest.approx((200 - CONNECTS_AT_ONCE) / CONNECTS_PER_S)
    assert pace.wait_s("two.example") == 0
    clock.now_s += 3600
    assert pace.delay_s("one.example") == 0


async def test_an_event_loop_that_was_held_up_makes_no_crowd() -> None:
    pace, had_s = Pace(per_s=100), []

    async def come() -> None:
        await pace.turn("one.example")
        had_s.append(time.monotonic())

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(come)
        await anyio.lowlevel.checkpoint()
        assert pace.is_crowded("one.example")
        time.sleep(0.1)
    assert len(had_s) == 8
    assert min(later - earlier for earlier, later in pairwise(had_s)) > 0.005
    assert not pace.is_crowded("two.example")
