"""What this process may use of the machine: descriptors, and memory that it gives back."""

from __future__ import annotations

import ctypes
import gc
import resource

DESCRIPTORS = 16_384
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


def give_memory_back() -> None:
    """Return to the system what is free in the heap: after many passes at once that is a third of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_memory_small() -> None:
    """Have glibc keep one heap for all threads and return big blocks at once.

    Messages are made in one thread and let go in another; with a heap per thread each keeps the largest it ever had
    (measured: 120 MiB in place of 83 for a first pass). Another C library has no `mallopt`, and nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _BIG_OCTETS)
