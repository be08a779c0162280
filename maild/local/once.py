"""Delivering a message of our own exactly once: under a name that is known before, so that it is found again.

The copy for the Sent mailbox and the reports for the INBOX come from the outbox, not from a server. A crash between
delivering one and noting that it is delivered must not make it two. The names have the form of all Maildir names.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from maild.core.errors import LocalError
from maild.core.model import Key
from maild.core.names import MailboxUnusable
from maild.local.directory import MailboxDirectory, translated
from maild.local.durable import disk_error, fsync_many, rename_new, write_all
from maild.local.scan import scan
from maild.local.survey import survey

_MARKER = ".maild"
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP})
_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Letter:
    """A message in its disk form, its name, and whether it counts as read.

    `octets` may be the path of a durable file that nobody changes any more: where that can have a second name, it is
    the letter. `may_be_there`: an earlier process may have delivered it, so it is looked for, whatever its flags are by
    now.
    """

    key: Key
    octets: bytes | Path
    is_seen: bool = False
    may_be_there: bool = False


def letter_key(item_id: str, created_s: int, role: str) -> Key:
    """The name of what the outbox makes of one of its items: always the same for the same item and role."""
    return Key(f"{created_s}.{item_id}.{role}.maild")


def deliver_once(root: Path, relative: PurePosixPath, letters: Sequence[Letter]) -> None:
    """Put letters into the mailbox at `relative` below the Maildir `root`, making it if needed; durable on return.

    One that is there stays as it is. Raises LocalError.
    """
    directory = MailboxDirectory.create(root, relative)
    try:
        with translated("deliver messages to", directory.path):
            present = scan(directory).entries if any(letter.may_be_there for letter in letters) else {}
            missing = [letter for letter in letters if letter.key not in present]
            written = [letter for letter in missing if not _linked(directory, letter)]
            _write(directory, written)
            for letter in written:
                subdir, name = _place(letter)
                try:
                    rename_new(letter.key, name, directory.tmp, directory.descriptor(subdir))
                except FileExistsError:
                    os.unlink(letter.key, dir_fd=directory.tmp)
            for descriptor in (directory.cur, directory.new):  # also the name that a reader gave one meanwhile
                os.fsync(descriptor)
    finally:
        directory.close()


def find_keys(root: Path, layout: str, keys: Collection[Key]) -> set[Key]:
    """Which of these letters are in any mailbox below `root`: a reader may have moved one. Raises LocalError."""
    wanted, found = frozenset(keys), set[Key]()
    if not root.exists():
        return found
    for mailbox in survey(root, layout).mailboxes:
        with suppress(MailboxUnusable):  # nobody could have put one into it
            found |= wanted & _keys(root, PurePosixPath(mailbox))
    return found


def _keys(root: Path, relative: PurePosixPath) -> Set[Key]:
    directory = MailboxDirectory.open(root, relative)
    if directory is None:
        return frozenset()
    try:
        with translated("read", directory.path):
            return scan(directory).entries.keys()
    finally:
        directory.close()


def _place(letter: Letter) -> tuple[str, str]:
    return ("cur", f"{letter.key}:2,S") if letter.is_seen else ("new", str(letter.key))


def _linked(directory: MailboxDirectory, letter: Letter) -> bool:
    """Give a letter's file its name in the mailbox, with the time of now; False where that must be another file."""
    if not isinstance(letter.octets, Path):
        return False
    subdir, name = _place(letter)
    os.utime(letter.octets)
    try:
        os.link(letter.octets, name, dst_dir_fd=directory.descriptor(subdir))
    except FileExistsError:
        return True
    except OSError as exc:
        if exc.errno not in _NO_LINK:
            raise
        return False
    return True


def _octets(letter: Letter) -> bytes:
    if isinstance(letter.octets, bytes):
        return letter.octets
    try:
        return letter.octets.read_bytes()
    except OSError as exc:
        raise disk_error(exc, "read", letter.octets) from exc


def _write(directory: MailboxDirectory, letters: Sequence[Letter]) -> None:
    """Into `tmp`, complete and durable."""
    descriptors: list[int] = []
    try:
        for letter in letters:
            with suppress(FileNotFoundError):  # what a crash left
                os.unlink(letter.key, dir_fd=directory.tmp)
            descriptors.append(os.open(letter.key, _FILE, 0o600, dir_fd=directory.tmp))
            write_all(descriptors[-1], _octets(letter))
        fsync_many(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def check_mounted(root: Path, state: Path) -> None:
    """See that the account's Maildir is where it was: not made anew below a mount point. Raises LocalError.

    Where there is a state for the account, its Maildir has a marker.
    """
    if root.is_symlink() and not root.exists():
        raise LocalError(f"the Maildir {root} is a symlink that leads nowhere", "mount or restore what it points to")
    if state.exists() and root.parent.exists() and not (root / _MARKER).exists():
        raise LocalError(f"the Maildir {root} is gone or lost its marker file {_MARKER}", "mount or restore it")
