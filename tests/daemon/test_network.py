"""Sleep and changed addresses are noticed; the latter with a real address on the loopback interface, as root only."""

from __future__ import annotations

import os
import shutil
import subprocess

import anyio
import pytest

from maild.engine import network


async def test_sleep_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "LOOK_AT_CLOCK_S", 0.01)
    asleep = [0.0, 0.0, 4.0, 64.0, 64.0]
    done, calls = anyio.Event(), []

    def asleep_s() -> float:
        if len(asleep) == 1:
            done.set()
        return asleep.pop(0) if len(asleep) > 1 else asleep[0]

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(network.watch_network, lambda: calls.append(1), asleep_s)
            await done.wait()
            tasks.cancel_scope.cancel()
    assert len(calls) == 1


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


def test_a_machine_that_is_awake_has_not_slept_since() -> None:
    before = network.slept_s()
    assert abs(network.slept_s() - before) < 1
