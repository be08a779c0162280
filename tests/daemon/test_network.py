"""Sleep and changed addresses are noticed; the latter with a real address on the loopback interface, as root only."""

from __future__ import annotations

import os
import shutil
import subprocess

import anyio
import pytest

from maild.engine import network
from maild.engine.network import Clocks, interruption

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


async def test_without_rtnetlink_the_clocks_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(network, "LOOK_AT_CLOCK_S", 0.0)
    monkeypatch.setattr(network.socket, "socket", refuse)
    readings = iter([later(), later(asleep_s=60)])
    changed = anyio.Event()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(network.watch_network, changed.set, lambda: next(readings, later(asleep_s=60)))
            await changed.wait()
            tasks.cancel_scope.cancel()


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
