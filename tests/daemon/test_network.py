"""Sleep and changed addresses are noticed; the latter with a real address on the loopback interface, as root only."""

from __future__ import annotations

import os
import select
import shutil
import subprocess

import anyio
import pytest

from maild.engine import network
from maild.engine.network import Clocks, interruption
from tests.daemon.inside import open_descriptors
from tests.daemon.waiting import until

WAITED = 10.0
BEGIN = Clocks(100.0, 5.0, 1_700_000_000.0)


def later(awake_s: float = WAITED, asleep_s: float = 0.0, wall_s: float | None = None) -> Clocks:
    """Readings after so much time, on the wall as much as passed unless said otherwise."""
    wall_s = awake_s + asleep_s if wall_s is None else wall_s
    return Clocks(BEGIN.awake_s + awake_s, BEGIN.asleep_s + asleep_s, BEGIN.wall_s + wall_s)


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (later(), ""),
        (later(WAITED + 4, 4.0), ""),
        (later(asleep_s=60), "the machine slept for 60 s"),
        (later(WAITED + 300), "maild stood still for 300 s"),  # SIGSTOP, or a machine that had no time for it
        (later(wall_s=WAITED + 86_400), "the clock was set by +86400 s"),
        (later(wall_s=WAITED - 86_400), "the clock was set by -86400 s"),
        (later(wall_s=WAITED + 20), ""),
    ],
)
def test_what_interrupted_a_wait(now: Clocks, reason: str) -> None:
    assert interruption(BEGIN, now, WAITED) == reason


async def test_sleep_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "LOOK_AT_CLOCK_S", 0.0)
    readings = [later(0.0), later(0.0), later(0.0, 4.0), later(0.0, 64.0), later(0.0, 64.0)]
    done, calls = anyio.Event(), []

    def read() -> Clocks:
        if len(readings) == 1:
            done.set()
        return readings.pop(0) if len(readings) > 1 else readings[0]

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(network.watch_network, lambda: calls.append(1), read)
            await done.wait()
            tasks.cancel_scope.cancel()
    assert len(calls) == 1


async def a_sleep_is_noticed() -> None:
    """The clocks show a minute that nobody was awake for."""
    readings = iter([later(), later(asleep_s=60)])
    changed = anyio.Event()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(network.watch_network, changed.set, lambda: next(readings, later(asleep_s=60)))
            await changed.wait()
            tasks.cancel_scope.cancel()


async def test_without_rtnetlink_the_clocks_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(network, "LOOK_AT_CLOCK_S", 0.0)
    monkeypatch.setattr(network.socket, "socket", refuse)
    await a_sleep_is_noticed()


class EndedTimer:
    """As `ClockTimer`, but that a test says when the clock is set: no test may set this machine's."""

    def __init__(self) -> None:
        self.descriptor, self._said = os.pipe()

    def tell(self) -> None:
        os.write(self._said, b"x")

    def take(self) -> bool:
        return bool(os.read(self.descriptor, 1))

    def close(self) -> None:
        os.close(self.descriptor)
        os.close(self._said)


async def test_the_end_of_a_sleep_is_noticed_as_soon_as_the_kernel_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[EndedTimer] = []
    monkeypatch.setattr(network, "LOOK_AT_CLOCK_S", 3600.0)
    monkeypatch.setattr(network, "ClockTimer", lambda: timers.append(EndedTimer()) or timers[-1])
    readings = iter([later(), later(), later(asleep_s=60)])
    changed, looked = anyio.Event(), []

    def read() -> Clocks:
        looked.append(next(readings, later(asleep_s=60)))
        return looked[-1]

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(network.watch_network, changed.set, read)
            await until(lambda: len(looked) == 1)
            timers[0].tell()  # it was set, by less than a sleep
            await until(lambda: len(looked) == 2)
            assert not changed.is_set()
            timers[0].tell()
            await changed.wait()
            tasks.cancel_scope.cancel()


async def test_where_the_kernel_cannot_tell_the_clocks_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(network, "LOOK_AT_CLOCK_S", 0.0)
    monkeypatch.setattr(network, "ClockTimer", refuse)
    await a_sleep_is_noticed()


def test_a_clock_that_nobody_sets_is_silent() -> None:
    before = open_descriptors()
    timer = network.ClockTimer()
    try:
        assert not select.select([timer.descriptor], [], [], 0.05)[0]
        assert timer.take() is False
    finally:
        timer.close()
    assert open_descriptors() == before


async def test_an_address_that_comes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root may add an address, with ip: apt-get install iproute2")
    monkeypatch.setattr(network, "SETTLE_S", 0.05)
    changed = anyio.Event()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(network.watch_network, changed.set)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            added = subprocess.run(["ip", "address", "add", "127.77.77.77/32", "dev", "lo"], capture_output=True)
            if added.returncode:
                tasks.cancel_scope.cancel()
                pytest.skip(f"no address may be added here: {added.stderr.decode().strip()}")
            try:
                await changed.wait()
            finally:
                subprocess.run(["ip", "address", "del", "127.77.77.77/32", "dev", "lo"], check=True)
            tasks.cancel_scope.cancel()


def test_nothing_interrupts_a_machine_that_is_awake() -> None:
    assert interruption(network.read_clocks(), network.read_clocks(), 0.0) == ""
