"""A disk that keeps only what was synced: what a power cut leaves in the worst case.

A file has the octets that it had at its last fsync, none if there was none; a directory has the names that it had at
its last fsync. Real disks often keep more: that is what `tests.local.crash` alone is for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class SyncedDisk:
    """Notes what becomes durable from now on; `image` makes a directory as it would be found after a power cut.

    Descriptors of all that it has seen stay open, so that no inode number comes back with another meaning.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, below: Path) -> None:
        """What is not `below` that directory is of no interest: what is above a test's is everybody's."""
        self._below = os.path.realpath(below)
        self._names: dict[int, dict[str, int]] = {}  # of directories, by inode: the inodes of what they hold
        self._octets: dict[int, bytes] = {}  # of files, by inode
        self._held: dict[int, int] = {}
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._noted(getattr(os, name)))

    def _noted(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            real(descriptor)
            if not Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(self._below):
                return
            status = os.fstat(descriptor)
            self._hold(f"/proc/self/fd/{descriptor}", status.st_ino)
            if stat.S_ISDIR(status.st_mode):
                self._names[status.st_ino] = dict(self._entries(descriptor))
            else:
                self._octets[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

        return call

    def _entries(self, directory: int) -> Any:
        for name in os.listdir(directory):
            inode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino
            self._hold(f"/proc/self/fd/{directory}/{name}", inode)
            yield name, inode

    def _hold(self, path: str, inode: int) -> None:
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def image(self, root: Path, target: Path) -> None:
        """Make `target` what is left of `root`."""
        self._restore(root.stat().st_ino, target)

    def _restore(self, inode: int, target: Path) -> None:
        target.mkdir()
        for name, entry in self._names.get(inode, {}).items():
            if stat.S_ISDIR(os.fstat(self._held[entry]).st_mode):
                self._restore(entry, target / name)
            else:
                (target / name).write_bytes(self._octets.get(entry, b""))

    def close(self) -> None:
        """Let go of everything."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()
