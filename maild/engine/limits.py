"""What this process may use of the machine: descriptors, threads that wait for names, memory that it gives back."""

from __future__ import annotations

import ctypes
import gc
import queue
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

DESCRIPTORS = 16_384
LOOKUPS = 64
GIVE_BACK_EVERY_S = 60.0
COLLECT_AFTER = 300  # passes; the collector's own turn may be hours away, as `settle_in` has it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_BIG_OCTETS = 320 << 10  # above what asyncio reads at once, 256 KiB: mapped and zeroed anew it would be for each read
_FREE_OCTETS = 1 << 20  # kept at the heap's end, for the same reason


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
        mallopt(_M_TRIM_THRESHOLD, _FREE_OCTETS)


class Lookups(ThreadPoolExecutor):
    """Threads for asyncio's look-ups of names (`loop.set_default_executor`), which may hang for half a minute.

    More of them than asyncio has, so that a resolver that is away for some hosts holds nobody else up; and nobody waits
    for them at the end.
    """

    def __init__(self, most: int = LOOKUPS) -> None:
        super().__init__(1)
        self._most = most
        self._started = 0
        self._free = threading.Semaphore(0)
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def carry_out() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except (OSError, UnicodeError) as exc:  # what look-ups fail with
                    future.set_exception(exc)
                finally:
                    if not future.done():
                        future.set_exception(RuntimeError("a look-up failed in an unknown way"))

        self._tasks.put(carry_out)
        if not self._free.acquire(blocking=False) and self._started < self._most:
            self._started += 1
            threading.Thread(target=self._work, name="lookup", daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            self._tasks.get()()
            self._free.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """The threads end with the process."""
