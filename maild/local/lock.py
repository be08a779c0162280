"""One maild per state directory: the lock that the second one finds taken, and by whom."""

from __future__ import annotations

import fcntl
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from maild.core.errors import StateBusy
from maild.local.durable import disk_error, make_directory

_LOCK = "lock"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class InstanceLock:
    """Holds the state directory from its construction until `close`, or until the process ends in whatever way.

    The directory is made if it is missing, and closed to other users if it is open to them. `purpose` is what the
    holder is for, in words. Raises StateBusy while another process holds it, LocalError where the disk refuses.
    """

    def __init__(self, state_dir: Path, purpose: str = "maild") -> None:
        make_directory(state_dir)
        try:
            mode = state_dir.stat().st_mode
            if mode & _OTHERS:
                state_dir.chmod(stat.S_IMODE(mode) & ~_OTHERS)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(state_dir / _LOCK, flags, 0o600)
        except OSError as exc:
            raise disk_error(exc, "use the state directory", state_dir) from exc
        try:
            self._take(state_dir, purpose)
        except BaseException:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """Let go. The file stays: removing it would let two processes lock two files of one name."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, state_dir: Path, purpose: str) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.read(self._descriptor, 200).decode(errors="replace").strip() or "another maild"
            raise StateBusy(
                f"{state_dir} is in use by {holder}", "wait until it is done, or use another `state_dir`"
            ) from exc
        except OSError as exc:
            raise disk_error(exc, "lock", state_dir / _LOCK) from exc
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"pid {os.getpid()} ({purpose}, since {since})\n".encode(), 0)
