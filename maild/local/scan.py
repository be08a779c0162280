"""Which message files a mailbox's directory holds.

A directory that others change while it is read has no one listing: a file renamed meanwhile may be reported under both
names or under neither (POSIX readdir). `new` is read before `cur`, so that a message on its way there is seen at least
once; and when a directory changed during the reading, or so shortly before that its mtime could not show a further
change, both are read again and the results are joined. A message that is there all the time is never missed; one that
was removed meanwhile may still be in the result.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from typing import NamedTuple

from maild.core.flags import join_info, split_info
from maild.core.model import Key
from maild.local.directory import MailboxDirectory

_SUBDIRS = ("new", "cur")
_ROUNDS = 3
_MTIME_TICK_NS = 20_000_000  # the kernel's clock for file times stands still for up to 10 ms


class Entry(NamedTuple):
    """One message file: in which directory ("new" or "cur"), and the letters after ":2,", None without that mark.

    A tuple because 100,000 of them are made at a time: a third quicker than a frozen dataclass.
    """

    key: Key
    subdir: str
    letters: str | None

    @property
    def name(self) -> str:
        return join_info(self.key, self.letters)


class Found(NamedTuple):
    """What a scan found. `duplicates`: further files with the key of an entry, which everything else ignores."""

    entries: dict[Key, Entry]
    duplicates: tuple[Entry, ...]


def scan(directory: MailboxDirectory) -> Found:
    """All messages. Dot files, directories, symlinks and whatever else is not a plain file are passed over.

    Of two files with one key the one in `cur` counts, then the one with more letters.
    """
    entries: dict[Key, Entry] = {}
    losers: list[Entry] = []
    for _ in range(_ROUNDS):
        started_ns = time.time_ns()
        before = _changed_ns(directory)
        losers = []
        seen = _read(directory, losers)
        entries = {**entries, **seen} if entries else seen
        if _changed_ns(directory) == before and max(before) < started_ns - _MTIME_TICK_NS:
            break
    return Found(entries, tuple(losers))


def find(directory: MailboxDirectory, guesses: Iterable[Entry]) -> dict[Key, Entry]:
    """Those of the guessed files that are there, without reading the directory; a key's first right guess counts."""
    found: dict[Key, Entry] = {}
    for guess in guesses:
        if guess.key not in found and _is_message(guess.name, directory.descriptor(guess.subdir)):
            found[guess.key] = guess
    return found


def _changed_ns(directory: MailboxDirectory) -> tuple[int, int]:
    return os.fstat(directory.new).st_mtime_ns, os.fstat(directory.cur).st_mtime_ns


def _read(directory: MailboxDirectory, losers: list[Entry]) -> dict[Key, Entry]:
    found: dict[Key, Entry] = {}
    shared: dict[str, str] = {}  # few combinations of letters stand for many messages
    for subdir in _SUBDIRS:
        # A descriptor of its own: one that is used twice at a time would share its position in the directory.
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.descriptor(subdir))
        try:
            with os.scandir(descriptor) as items:
                for item in items:
                    name = item.name
                    if name[0] == "." or not item.is_file(follow_symlinks=False):
                        continue
                    key, letters = split_info(name)
                    entry = Entry(key, subdir, letters if letters is None else shared.setdefault(letters, letters))
                    other = found.get(key)
                    if other is not None:
                        entry = _winner(entry, other, losers)
                    found[key] = entry
        finally:
            os.close(descriptor)
    return found


def _winner(one: Entry, other: Entry, losers: list[Entry]) -> Entry:
    winner, loser = sorted(
        (one, other), key=lambda entry: (entry.subdir != "cur", -len(entry.letters or ""), entry.name)
    )
    losers.append(loser)
    return winner


def _is_message(name: str, dir_fd: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
