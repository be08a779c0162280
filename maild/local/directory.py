"""One mailbox's directory on disk, held open: its `cur`, `new` and `tmp` by descriptor.

Everything below the account's Maildir is reached from a descriptor of the directory above and never through a symlink,
so a mailbox cannot lead out of the Maildir, nor be exchanged for another directory while maild works in it. The
account's Maildir itself may be a symlink: that one the user chose.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Self

from maild.core.errors import LocalError
from maild.core.model import Key
from maild.core.names import MailboxUnusable
from maild.local.durable import disk_error, disk_error_texts, fsync_dir, make_directory

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_INSIDE = _DIRECTORY | os.O_NOFOLLOW

# What goes wrong in one mailbox only; a full or broken disk concerns the account.
_ONE_MAILBOX = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EXDEV,
    }
)

_NUMBERS = itertools.count()  # one for the process: next() on it is one step under the GIL
_HOST = os.uname().nodename.replace("/", "\\057").replace(":", "\\072").replace(",", "\\054") or "localhost"
_UNIQUE = re.compile(r"\d{1,12}\.M\d{6}P(?P<pid>[1-9]\d{0,8})Q\d+\.(?P<host>.+)\Z")


def unique_key() -> Key:
    """A new message's unique name: when, by which process, as its how manieth, where (the Maildir convention)."""
    now_us = time.time_ns() // 1000
    return Key(f"{now_us // 1_000_000}.M{now_us % 1_000_000:06d}P{os.getpid()}Q{next(_NUMBERS)}.{_HOST}")


def is_given_by_maild(key: Key) -> bool:
    """Whether `unique_key` gives such names."""
    return _UNIQUE.match(key) is not None


def is_abandoned(name: str) -> bool:
    """Whether a name in `tmp` was given on this machine as `unique_key` gives them, by a process that is gone."""
    found = _UNIQUE.match(name)
    if found is None or found["host"] != _HOST:
        return False
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        return False
    return False


class MailboxDirectory:
    """The open directory. `top`, `cur`, `new` and `tmp` are descriptors, good until `close`."""

    __slots__ = ("_opened", "cur", "new", "path", "tmp", "top")

    def __init__(self, path: Path, top: int) -> None:
        """Takes over the descriptor `top`, also when this raises."""
        self.path = path
        self.top = top
        with ExitStack() as opened:
            opened.callback(os.close, top)
            self.cur, self.new, self.tmp = (_open_into(opened, name, top) for name in ("cur", "new", "tmp"))
            self._opened = opened.pop_all()

    @classmethod
    def create(cls, root: Path, relative: PurePosixPath) -> Self:
        """Open it, making what is missing with mode 0700, durable on return. Raises LocalError."""
        make_directory(root)
        with translated("create", root / relative), ExitStack() as opened:
            top = descend(root, relative, make=True)
            opened.callback(os.close, top)
            made = [_made(name, top) for name in ("tmp", "new", "cur")]
            if relative.name.startswith("."):
                made.append(_made_marker(top))
            if any(made):
                fsync_dir(top)
            opened.pop_all()
            return cls(root / relative, top)

    @classmethod
    def open(cls, root: Path, relative: PurePosixPath) -> Self | None:
        """Open it as it is, None where there is no `cur` or no `new`. Raises LocalError where it cannot be used."""
        with translated("open", root / relative), ExitStack() as opened:
            try:
                top = descend(root, relative, make=False)
                opened.callback(os.close, top)
                for name in ("cur", "new"):
                    os.close(os.open(name, _INSIDE, dir_fd=top))
            except FileNotFoundError:
                return None
            _made("tmp", top)  # it holds no mail, and tools that copy trees leave it out when it is empty
            opened.pop_all()
            return cls(root / relative, top)

    def close(self) -> None:
        self._opened.close()

    def descriptor(self, subdir: str) -> int:
        """The descriptor of "cur" or "new"."""
        return self.cur if subdir == "cur" else self.new


@contextmanager
def translated(what: str, path: Path) -> Iterator[None]:
    """Failed system calls in this block as LocalError: cannot WHAT PATH."""
    try:
        yield
    except OSError as exc:
        raise mailbox_error(exc, what, path) from exc


def mailbox_error(exc: OSError, what: str, path: Path) -> LocalError:
    """MailboxUnusable where the other mailboxes of the account need not suffer, else LocalError."""
    if exc.errno in _ONE_MAILBOX:
        return MailboxUnusable(*disk_error_texts(exc, what, path))
    return disk_error(exc, what, path)


def descend(root: Path, relative: PurePosixPath, *, make: bool) -> int:
    """Open `relative` below the account's Maildir, level by level; with `make`, durably make the missing levels."""
    if relative.is_absolute() or ".." in relative.parts:
        raise MailboxUnusable(f"{relative} is no directory below the account's Maildir")
    current = os.open(root, _DIRECTORY)
    for name in relative.parts:
        above = current
        try:
            if make and _made(name, above):
                fsync_dir(above)
            current = os.open(name, _INSIDE, dir_fd=above)
        finally:
            os.close(above)
    return current


def _open_into(opened: ExitStack, name: str, parent: int) -> int:
    descriptor = os.open(name, _INSIDE, dir_fd=parent)
    opened.callback(os.close, descriptor)
    return descriptor


def _made(name: str, parent: int) -> bool:
    """Make a directory unless something has that name already; opening it tells what."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def _made_marker(top: int) -> bool:
    """The empty file by which Maildir++ readers tell a mailbox from the Maildir it is in."""
    with suppress(FileExistsError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open("maildirfolder", flags, 0o600, dir_fd=top))
        return True
    return False
