"""Notices that the network or the clock is another: an address came or went, or the machine slept.

Nothing is read out of the kernel's messages but that there was one (rtnetlink(7), groups for IPv4 and IPv6 addresses).
Whether the machine slept shows in the difference of two clocks, of which one stands still meanwhile (clock_gettime(2)).
A process that was stopped, and a virtual machine that was, show in a wait that took too long or in the time of day.

The clocks are looked at as soon as the kernel says that it set one, which it does at the end of a sleep (timerfd of
CLOCK_REALTIME with TFD_TIMER_CANCEL_ON_SET, timerfd_create(2)): what logind tells on the bus, where there is no bus as
well. Now and then they are looked at all the same.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio
import structlog

LOOK_AT_CLOCK_S = 10.0
SLEPT_S = 5.0  # less than this is no sleep that a connection could die of
JUMPED_S = 60.0
SETTLE_S = 0.5  # addresses come and go in bursts
_IPV4_ADDRESS, _IPV6_ADDRESS = 0x10, 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR (linux/rtnetlink.h)
_OCTETS = 1 << 16
_ABSOLUTE, _CANCEL_ON_SET = 0x1, 0x2  # TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET (sys/timerfd.h)
_NEVER_S = (1 << (8 * ctypes.sizeof(ctypes.c_long) - 1)) - 1

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Clocks:
    """Readings of one instant, in seconds: since the start without and with sleep, and of the wall."""

    awake_s: float
    asleep_s: float
    wall_s: float


def read_clocks() -> Clocks:
    awake_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    return Clocks(awake_s, time.clock_gettime(time.CLOCK_BOOTTIME) - awake_s, time.time())


def interruption(before: Clocks, now: Clocks, wanted_s: float) -> str:
    """What happened while `wanted_s` were to be waited, other than waiting; "" for nothing."""
    if (slept_s := now.asleep_s - before.asleep_s) >= SLEPT_S:
        return f"the machine slept for {slept_s:.0f} s"
    passed_s = now.awake_s - before.awake_s
    if (stood_s := passed_s - wanted_s) >= SLEPT_S:
        return f"maild stood still for {stood_s:.0f} s"
    if abs(jumped_s := now.wall_s - before.wall_s - passed_s) >= JUMPED_S:
        return f"the clock was set by {jumped_s:+.0f} s"  # as where a virtual machine is resumed
    return ""


async def watch_network(changed: Callable[[], None], read: Callable[[], Clocks] = read_clocks) -> None:
    """Call `changed` after each change of either, for ever; without rtnetlink the clocks alone are watched."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_watch_clocks, changed, read)
        try:
            await _watch_addresses(changed)
        except OSError as exc:
            log.warning("watch.failed", reason=f"changed addresses are not noticed: {exc.strerror}")
            await anyio.sleep_forever()


async def _watch_clocks(changed: Callable[[], None], read: Callable[[], Clocks]) -> None:
    with _set_clocks() as is_set:
        before = read()
        while True:
            with anyio.move_on_after(LOOK_AT_CLOCK_S):
                await is_set.wait()
            is_set.clear()
            now = read()
            if reason := interruption(before, now, LOOK_AT_CLOCK_S):
                log.info("network.changed", reason=reason)
                changed()
            before = now


@contextmanager
def _set_clocks() -> Iterator[asyncio.Event]:
    """Set each time when the kernel has set the wall's clock; never where it cannot tell."""
    is_set, loop = asyncio.Event(), asyncio.get_running_loop()
    try:
        timer = ClockTimer()
    except OSError as exc:
        log.debug("watch.failed", reason=f"a clock that is set is noticed late: {exc.strerror}")
        yield is_set
        return

    def told() -> None:
        if timer.take():
            is_set.set()

    try:
        loop.add_reader(timer.descriptor, told)
        yield is_set
    finally:
        loop.remove_reader(timer.descriptor)
        timer.close()


class ClockTimer:
    """A timer that never ends, and is cancelled when the wall's clock is set: then its descriptor can be read.

    Raises OSError where the kernel has none. Python has it from 3.13 on (os.timerfd_create).
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_NONBLOCK | os.O_CLOEXEC  # as TFD_NONBLOCK and TFD_CLOEXEC
        self.descriptor = self._checked(self._libc.timerfd_create(time.CLOCK_REALTIME, flags))
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def take(self) -> bool:
        """Whether the clock was set since the last call."""
        try:
            os.read(self.descriptor, 8)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno != errno.ECANCELED:
                raise
        self._begin()
        return True

    def close(self) -> None:
        os.close(self.descriptor)

    def _begin(self) -> None:
        at = (ctypes.c_long * 4)(0, 0, _NEVER_S, 0)  # struct itimerspec
        self._checked(self._libc.timerfd_settime(self.descriptor, _ABSOLUTE | _CANCEL_ON_SET, at, None))

    def _checked(self, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            if number != errno.ECANCELED:  # set once more while it was begun: armed all the same
                raise OSError(number, os.strerror(number))
        return result


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
    """One message, or the kernel's word that there were more than fit. Raises OSError for anything else."""
    try:
        await asyncio.get_running_loop().sock_recv(listener, _OCTETS)
    except OSError as exc:
        if exc.errno != errno.ENOBUFS:
            raise
