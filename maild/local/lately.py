"""What has left the outbox lately and may be on a server, so that its copy there is not taken for another message's.

One small file beside the outbox's items, replaced whole; it holds digests, no addresses or subjects. Who writes it
holds the outbox's edit lock.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maild.core.likeness import Marks
from maild.local.durable import replace_file

NAME = ".lately"
KEPT_S = 30 * 86400
MOST = 4096


@dataclass(frozen=True, slots=True)
class Lately:
    """By the ids that items had: when each left, in seconds since 1970 UTC, and its marks.

    What left at `since_s` or before may have been forgotten.
    """

    since_s: int = 0
    left: Mapping[str, tuple[int, Marks]] = field(default_factory=dict)


def read(directory: Path) -> Lately:
    """What the file tells. One that cannot be understood tells of nothing up to now. Raises OSError."""
    try:
        known = json.loads((directory / NAME).read_bytes())
        left = {str(item_id): (int(at), Marks(str(mid), str(traits))) for item_id, at, mid, traits in known["left"]}
        return Lately(int(known["since"]), left)
    except FileNotFoundError:
        return Lately()
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Lately(int(time.time()))


def add(directory: Path, marks: Mapping[str, Marks], now_s: float, *, are_all: bool = True) -> None:
    """More has left, and without `are_all` also what nobody could read; durable on return. Raises OSError."""
    known = read(directory)
    now = int(now_s)
    left = sorted({**known.left, **{item_id: (now, one) for item_id, one in marks.items()}}.items(), key=_when)
    kept = [one for one in left[-MOST:] if _when(one) > now - KEPT_S]
    since_s = max([known.since_s, *(_when(one) for one in left[: len(left) - len(kept)]), *([] if are_all else [now])])
    rows = [(item_id, at, one.message_id, one.traits) for item_id, (at, one) in kept]
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        replace_file(descriptor, NAME, json.dumps({"since": since_s, "left": rows}).encode())
    finally:
        os.close(descriptor)


def _when(one: tuple[str, tuple[int, Marks]]) -> int:
    return one[1][0]
