"""What this process may use of the machine: descriptors, and memory that it gives back."""

from __future__ import annotations

import ctypes
import gc
import resource
import time
from collections.abc import Callable

DESCRIPTORS = 16_384
GIVE_BACK_EVERY_S = 60.0
COLLECT_AFTER = 300  # passes; the collector's own turn may be hours away, as `settle_in` has it
_M_MMAP_THRESHOLD = -3  # malloc.h
_M_ARENA_MAX = -8
_BIG_OCTETS = 256 * 1024


def settle_in() -> None:
    """Call once, before threads start."""
    raise_descriptor_limit()
    keep_memory_small()
    gc.freeze()  # what is imported stays; looking at it again and again costs a tenth of a first pass
    gc.set_threshold(50_000, 20, 50)


def raise_descriptor_limit() -> None:
    """Take as many descriptors as the system allows without asking (the soft limit is often 1,024)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Thrift:
    """Returns to the system what passes needed and nothing uses any more, a while after them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._trimmed = self._collected = 0
        self._not_before_s = clock() + GIVE_BACK_EVERY_S

    def look(self, passes: int) -> bool:
        """`passes` counts those made so far. Whether it was time."""
        if passes == self._trimmed or self._clock() < self._not_before_s:
            return False
        self._trimmed, self._not_before_s = passes, self._clock() + GIVE_BACK_EVERY_S
        if passes - self._collected >= COLLECT_AFTER:  # it takes 0.1 ms for each account
            self._collected = passes
            gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        return True


def keep_memory_small() -> None:
    """Have glibc keep one heap for all threads and return big blocks at once.

    Messages are made in one thread and let go in another; with a heap per thread each keeps the largest it ever had
    (measured: 120 MiB in place of 83 for a first pass). Another C library has no `mallopt`, and nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _BIG_OCTETS)
