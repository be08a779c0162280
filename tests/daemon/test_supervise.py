"""A task is kept alive: back-off with a clock and chance of the test's own, faults of maild included."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from maild.core.errors import ConnectionLost, MaildError
from maild.engine.supervise import Patience, keep_alive, only_ours
from maild.remote.pace import Pace
from tests.daemon.waiting import until


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def patience(clock: Clock, chance: float = 1.0) -> Patience:
    return Patience(clock, lambda: chance)


def test_delays_double_to_five_minutes_and_go_to_fifteen_after_an_hour() -> None:
    clock = Clock()
    this = patience(clock)
    delays = []
    while clock.now_s < 1000 + 3 * 3600:
        delays.append(this.note_failure())
        clock.now_s += delays[-1]
    assert delays[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert delays[-1] == 900
    assert {delay for delay in delays[10:] if delay not in (300, 900)} == set()


def test_chance_spreads_a_delay_over_its_second_half() -> None:
    clock = Clock()
    assert [patience(clock, chance).note_failure() for chance in (0.0, 0.5, 1.0)] == [0.5, 0.75, 1.0]


def test_reset_begins_anew() -> None:
    this = patience(Clock())
    for _ in range(5):
        this.note_failure()
    this.reset()
    assert (this.note_failure(), this.failing_for_s) == (1.0, 0.0)


async def test_reset_ends_the_wait() -> None:
    this = patience(Clock())
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(this.wait, 3600.0)
            await anyio.lowlevel.checkpoint()
            this.reset()


def failing(*errors: BaseException | None) -> tuple[list[int], Callable[[], object]]:
    runs: list[int] = []

    async def run() -> None:
        runs.append(len(runs))
        error = errors[len(runs) - 1]
        if error is not None:
            raise error

    return runs, run


class AtOnce(Patience):
    async def wait(self, delay_s: float) -> None:
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionLost("gone"), ConnectionLost),
        (ExceptionGroup("", [ConnectionLost("gone")]), ConnectionLost),
        (KeyError("a fault of ours"), type(None)),
        (ExceptionGroup("", [ConnectionLost("gone"), KeyError("a fault of ours")]), type(None)),
    ],
)
async def test_what_fails_is_begun_again(error: Exception, told: type) -> None:
    runs, run = failing(error, error, None)
    failures: list[MaildError | None] = []
    await keep_alive("test", run, AtOnce(), failures.append)
    assert len(runs) == 3
    assert [type(failure) for failure in failures] == [told, told]


async def test_cancellation_is_not_caught() -> None:
    began = anyio.Event()

    async def run() -> None:
        began.set()
        await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_alive, "test", run, AtOnce())
            await began.wait()
            tasks.cancel_scope.cancel()


def test_only_ours_looks_into_groups_of_groups() -> None:
    lost = ConnectionLost("gone")
    assert only_ours(ExceptionGroup("", [ExceptionGroup("", [lost])])) is lost
    assert only_ours(ValueError()) is None


def test_turns_at_a_host_are_spread_and_hosts_do_not_wait_for_each_other() -> None:
    clock = Clock()
    pace = Pace(per_s=25, clock=clock)
    waits = [pace.wait_s("one.example") for _ in range(1000)]
    assert waits[0] == 0
    assert max(sum(second <= wait < second + 1 for wait in waits) for second in range(40)) <= 26
    assert waits[-1] == pytest.approx(999 / 25)
    assert pace.wait_s("two.example") == 0
    clock.now_s += 3600
    assert pace.wait_s("one.example") == 0


async def test_until_tells_what_it_saw() -> None:
    with pytest.raises(AssertionError, match="last seen: 0"):
        await until(lambda: 0, within_s=0.05)
