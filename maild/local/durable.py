"""Making things durable: batched fsync, atomic replacement, renames that replace nothing, errors a person can act on.

An fsync that failed is never tried again on the same descriptor: the kernel may have dropped the pages, and a second
call would report success for data that is not on the disk. Whoever gets the error writes the file anew.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from maild.core.errors import LocalError, NoPermission

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

# Eight threads let the file system merge many fsyncs into one journal commit: 7,300 files/s against 3,600 one after
# the other (3,000 files of 8 KB median, batches of 200, ext4); sixteen cost more CPU and gain nothing.
_FSYNC_THREADS = 8

# From so many files on, their contents are brought to the disk before the first fsync: one commit of the journal then
# covers them all. 5,000 files of 8 KB median in batches of 256: 0.45 s (0.41 to 0.52) against 0.61 s (0.53 to 0.66).
_WRITTEN_BACK_FIRST = 8
_WRITE, _WRITE_AND_WAIT = 2, 1 | 2 | 4  # SYNC_FILE_RANGE_*, linux/fs.h
_LOST_DATA = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})

_TEMPORARY_NUMBERS = itertools.count()

_RENAME_NOREPLACE = 1  # linux/fs.h
_NO_SUCH_CALL = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})

_NEVER_SYNCED = frozenset({errno.EINVAL, errno.EROFS, errno.ENOTSUP})  # a file system that has nothing to write

_DENIED = frozenset({errno.EACCES, errno.EPERM})

_REMEDIES = {
    errno.ENOSPC: "the disk is full: make room, maild then goes on by itself",
    errno.EDQUOT: "the disk quota is used up: make room or raise it, maild then goes on by itself",
    errno.EROFS: "the file system is read-only: mount it writable; after an I/O error look at the kernel log",
    errno.EIO: "the disk reported an error: look at the kernel log before trusting this disk",
    errno.EACCES: "give the user who runs maild read and write permission there",
    errno.EPERM: "give the user who runs maild ownership of it",
    errno.ENAMETOOLONG: "the file system does not take a name this long: choose a shorter path for the Maildir",
    errno.EMFILE: "too many open files: raise LimitNOFILE= in the unit or `ulimit -n`, or lower `connections`",
    errno.ENFILE: "the whole machine has too many open files: raise fs.file-max",
    errno.ENOENT: "is its disk mounted, or was it removed meanwhile?",
    errno.EEXIST: "something else has that name, perhaps a symlink to a disk that is not mounted",
    errno.ENOTDIR: "a file or a symlink stands where a directory should be; inside a Maildir maild follows no symlinks",
    errno.EXDEV: "the mailboxes are on different file systems: keep an account's Maildir on one, without mounts in it",
    errno.ELOOP: "inside a Maildir maild follows no symlinks: put a directory there, or a bind mount",
}


def disk_error(exc: OSError, what: str, path: Path | str) -> LocalError:
    """The error for a person: "cannot WHAT PATH: reason; remedy"."""
    kind = NoPermission if exc.errno in _DENIED else LocalError
    return kind(*disk_error_texts(exc, what, path))


def disk_error_texts(exc: OSError, what: str, path: Path | str) -> tuple[str, str]:
    """(text, hint) of a failed system call, for errors of another class."""
    reason = exc.strerror or str(exc)
    return f"cannot {what} {path}: {reason}", _REMEDIES.get(exc.errno or 0, "")


def fsync_many(descriptors: Sequence[int]) -> None:
    """Make files and directories durable, several at a time. The first error is raised once all were tried."""
    if len(descriptors) == 1:
        os.fsync(descriptors[0])
        return
    errors = _written_back(descriptors) if len(descriptors) >= _WRITTEN_BACK_FIRST else []
    remaining = iter(descriptors)  # shared by the threads: next() on a list's iterator is one step under the GIL

    def drain() -> None:
        for descriptor in remaining:
            try:
                os.fsync(descriptor)
            except OSError as exc:
                errors.append(exc)

    pool = _fsync_pool()
    threads = [pool.submit(drain) for _ in range(min(_FSYNC_THREADS, len(descriptors)))]
    for thread in threads:
        thread.result()
    if errors:
        raise errors[0]


def _written_back(descriptors: Sequence[int]) -> list[OSError]:
    """Bring what the files hold to the disk, which makes nothing durable yet; the errors that lost some of it.

    An error that is told here is not told by fsync again. Where the call is not to be had, fsync does all the work.
    """
    errors: list[OSError] = []
    write_back = _sync_file_range()
    for flags in (_WRITE, _WRITE_AND_WAIT):  # first all are on their way
        for descriptor in descriptors:
            if (code := write_back(descriptor, flags)) in _LOST_DATA:
                errors.append(OSError(code, os.strerror(code)))
    return errors


@functools.cache
def _sync_file_range() -> Callable[[int, int], int]:
    """sync_file_range(2) of a whole file as a function that returns the errno; ENOSYS where the C library lacks it."""
    import ctypes  # as in `_rename_noreplace`

    sync_file_range = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if sync_file_range is None:
        return lambda *_: errno.ENOSYS
    sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def call(descriptor: int, flags: int) -> int:
        return ctypes.get_errno() if sync_file_range(descriptor, 0, 0, flags) else 0

    return call


@functools.cache
def _fsync_pool() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor  # 8 ms that `maild sendmail` never needs

    return ThreadPoolExecutor(_FSYNC_THREADS, thread_name_prefix="fsync")


def fsync_dir(descriptor: int) -> None:
    """Make the names in a directory durable: what was created, renamed or removed in it."""
    os.fsync(descriptor)


def write_all(descriptor: int, octets: bytes) -> None:
    """Write everything: one write may take only a part, as on a disk that is about to be full."""
    written = os.write(descriptor, octets)
    while written < len(octets):
        written += os.write(descriptor, memoryview(octets)[written:])


def replace_file(dir_fd: int, name: str, data: bytes, mode: int = 0o600, mtime_s: int | None = None) -> None:
    """Put `data` under `name`: after a crash there is the old file or the new one, never a part. Durable on return."""
    temporary = f".{name}.{os.getpid()}-{next(_TEMPORARY_NUMBERS)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, mode, dir_fd=dir_fd)
    try:
        try:
            write_all(descriptor, data)
            if mtime_s is not None:
                os.utime(descriptor, (mtime_s, mtime_s))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        with suppress(OSError):  # the error that counts is the first
            os.unlink(temporary, dir_fd=dir_fd)
        raise
    fsync_dir(dir_fd)


def make_directory(path: Path) -> None:
    """Make a directory and the parents it lacks, mode 0700, each durable in its parent. A symlink to one will do."""
    missing = [path]
    while not os.path.isdir(missing[-1]):
        missing.append(missing[-1].parent)
    for directory in reversed(missing[:-1]):
        try:
            _make_unless_there(directory)
            parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fsync_dir(parent)
            finally:
                os.close(parent)
        except OSError as exc:
            raise disk_error(exc, "create", directory) from exc


def sync_names(path: Path) -> None:
    """Make the names durable by which a directory is reached, as far as the user may read what is above it.

    Whoever has just made one of them may not have come to that yet. Raises OSError.
    """
    for directory in Path(os.path.realpath(path)).parents:
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            continue  # somebody else's, and older than we are
        try:
            fsync_dir(descriptor)
        except OSError as exc:
            if exc.errno not in _NEVER_SYNCED:
                raise
        finally:
            os.close(descriptor)


def _make_unless_there(directory: Path) -> None:
    """Two accounts that begin at once may both make the directory above theirs: the second finds it made."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if not os.path.isdir(directory):
            raise


@functools.cache
def _rename_noreplace() -> Callable[[int, bytes, int, bytes], int]:
    """renameat2 with RENAME_NOREPLACE as a function that returns the errno; ENOSYS where the C library lacks it."""
    import ctypes  # 10 ms that most runs never need

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return lambda *_: errno.ENOSYS

    def call(from_fd: int, name: bytes, to_fd: int, target: bytes) -> int:
        failed = renameat2(from_fd, name, to_fd, target, _RENAME_NOREPLACE)
        return ctypes.get_errno() if failed else 0

    return call


def rename_new(name: str, target: str, from_fd: int, to_fd: int) -> None:
    """Rename, and raise FileExistsError rather than replace what has the target's name.

    One renameat2 with RENAME_NOREPLACE: link and unlink would do the same in two steps, with two names in between and
    without the pair of inotify events by which a mail reader recognises its message. Network file systems that lack
    the call get a check before a plain rename, which leaves a window of microseconds.
    """
    code = _rename_noreplace()(from_fd, os.fsencode(name), to_fd, os.fsencode(target))
    if code == 0:
        return
    if code not in _NO_SUCH_CALL:
        raise OSError(code, os.strerror(code), name)
    if _exists(target, to_fd):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    os.rename(name, target, src_dir_fd=from_fd, dst_dir_fd=to_fd)


def _exists(name: str, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
