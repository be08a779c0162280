"""The files of the outbox: named, written together, cleaned up; what of it knows nothing of items."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from maild.core.errors import LocalError
from maild.local.durable import disk_error, fsync_dir, fsync_many, replace_file, write_all

_REPLACED = (".toml.", ".journal.", ".lately.", ".sent.")  # in the names of what a crash left of replacing a file
_STALE_S = 86400
_NAME_TRIES = 16
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def new_message(directory: int) -> tuple[str, int]:
    """An id that no other message has, and its `.eml`, open for writing."""
    for _ in range(_NAME_TRIES):
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(4).hex()}"
        with suppress(FileExistsError):
            return name, os.open(f"{name}.eml", _NEW_FILE, 0o600, dir_fd=directory)
    raise LocalError("no free id was found for a message in the outbox")


def replace_all(directory: int, files: dict[str, bytes]) -> None:
    """Like `durable.replace_file` for several files of one directory, with one barrier for their contents."""
    if len(files) == 1:
        ((name, octets),) = files.items()
        replace_file(directory, name, octets)
        return
    written: list[tuple[int, str, str]] = []
    try:
        try:
            for name, octets in files.items():
                temporary = f".{name}.{os.getpid()}-{os.urandom(4).hex()}"
                descriptor = os.open(temporary, _NEW_FILE, 0o600, dir_fd=directory)
                written.append((descriptor, temporary, name))
                write_all(descriptor, octets)
            fsync_many([descriptor for descriptor, _, _ in written])
        finally:
            for descriptor, _, _ in written:
                os.close(descriptor)
        for _, temporary, name in written:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        for _, temporary, _ in written:
            with suppress(OSError):  # the error that counts is the first
                os.unlink(temporary, dir_fd=directory)
        raise
    fsync_dir(directory)


def names_in(directory: Path) -> set[str]:
    """Of the files in a directory, none where there is no such directory."""
    try:
        return set(os.listdir(directory))
    except FileNotFoundError:
        return set()
    except OSError as exc:
        raise disk_error(exc, "read", directory) from exc


def delete_remains(path: Path, in_failed: Set[str], now_s: float) -> None:
    names = names_in(path)
    known = names | in_failed
    for name in names:
        is_temporary = name.startswith(".") and any(kind in name for kind in _REPLACED)
        is_alone = name.endswith(".eml") and f"{name[:-4]}.toml" not in known
        if is_temporary or is_alone:
            with suppress(FileNotFoundError):
                if os.stat(path / name).st_mtime < now_s - _STALE_S:
                    os.unlink(path / name)


def unlinked(path: Path) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, _OPEN_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def translated(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise disk_error(exc, what, path) from exc
