"""Notices that the network or the clock is another: an address came or went, or the machine slept.

Nothing is read out of the kernel's messages but that there was one (rtnetlink(7), groups for IPv4 and IPv6 addresses).
Whether the machine slept shows in the difference of two clocks, of which one stands still meanwhile (clock_gettime(2)).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import anyio
import structlog

LOOK_AT_CLOCK_S = 10.0
SLEPT_S = 5.0  # less than this is no sleep that a connection could die of
SETTLE_S = 0.5  # addresses come and go in bursts
_IPV4_ADDRESS, _IPV6_ADDRESS = 0x10, 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR (linux/rtnetlink.h)
_OCTETS = 1 << 16

log = structlog.get_logger()


def slept_s() -> float:
    """For how long the machine has slept since it was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


async def watch_network(changed: Callable[[], None], asleep_s: Callable[[], float] = slept_s) -> None:
    """Call `changed` after each change of either, for ever. Raises OSError where the kernel offers no rtnetlink."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_watch_clock, changed, asleep_s)
        await _watch_addresses(changed)


async def _watch_clock(changed: Callable[[], None], asleep_s: Callable[[], float]) -> None:
    known_s = asleep_s()
    while True:
        await anyio.sleep(LOOK_AT_CLOCK_S)
        if (now_s := asleep_s()) - known_s >= SLEPT_S:
            log.info("network.changed", reason=f"the machine slept for {now_s - known_s:.0f} s")
            changed()
        known_s = now_s


async def _watch_addresses(changed: Callable[[], None]) -> None:
    flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE) as listener:
        listener.bind((0, _IPV4_ADDRESS | _IPV6_ADDRESS))
        while True:
            await _anything(listener)
            with anyio.move_on_after(SETTLE_S):
                while True:
                    await _anything(listener)
            log.info("network.changed", reason="an address came or went")
            changed()


async def _anything(listener: socket.socket) -> None:
    """One message, or the kernel's word that there were more than fit (ENOBUFS)."""
    with suppress(OSError):
        await asyncio.get_running_loop().sock_recv(listener, _OCTETS)
