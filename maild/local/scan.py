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
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

from maild.core.flags import join_info, split_info
from maild.core.model import Key
from maild.local.directory import MailboxDirectory

_SUBDIRS = ("new", "cur")
_ROUNDS = 3
MTIME_TICK_NS = 20_000_000  # the kernel's clock for file times stands still for up to 10 ms


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

    @property
    def info(self) -> str:
        """What follows the key in the name: "" or ":2," and letters."""
        return self.name[len(self.key) :]


class Found(NamedTuple):
    """What a scan found. `duplicates`: further files with the key of an entry, which everything else ignores."""

    entries: dict[Key, Entry]
    duplicates: tuple[Entry, ...]


class Differences(NamedTuple):
    """What is other than expected: messages under other names, keys without a file, and keys whose name has changed.

    A key that is in `entries` and not in `renamed` has its expected file beside, or none is expected of it.
    `duplicates`: further files with the key of an entry.
    """

    entries: dict[Key, Entry]
    gone: set[Key]
    renamed: set[Key]
    duplicates: tuple[Entry, ...] = ()


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
        if _changed_ns(directory) == before and max(before) < started_ns - MTIME_TICK_NS:
            break
    return Found(entries, tuple(losers))


def differences(directory: MailboxDirectory, expected: Set[str]) -> Differences:
    """Messages under other names than these, and the keys of which there is no file at all; quicker than `scan`.

    Like `scan`, this misses nothing that is there throughout: a key counts as gone only if the directory was at rest
    while it was read, or if several readings in a row did not have it.
    """
    entries: dict[Key, Entry] = {}
    gone: set[Key] = set()
    renamed: set[Key] = set()
    losers: list[Entry] = []
    for n in range(_ROUNDS):
        started_ns = time.time_ns()
        before = _changed_ns(directory)
        names = {name for subdir in _SUBDIRS for name in os.listdir(directory.descriptor(subdir))}
        odd = names ^ expected
        unexpected = odd & names
        losers = []
        entries.update(entries_of(directory, dict.fromkeys(_SUBDIRS, unexpected), losers))
        missing = {split_info(name)[0] for name in odd - unexpected}
        gone = (missing if n == 0 else gone & missing) - entries.keys()
        renamed |= missing & entries.keys()
        if not gone or (_changed_ns(directory) == before and max(before) < started_ns - MTIME_TICK_NS):
            break
    return Differences(entries, gone, renamed, tuple(losers))


def entries_of(
    directory: MailboxDirectory, some: Mapping[str, Iterable[str]], losers: list[Entry] | None = None
) -> dict[Key, Entry]:
    """Those of some names that are messages: plain files without a leading dot.

    The better of two with one key; the others are added to `losers`.
    """
    found: dict[Key, Entry] = {}
    losers = [] if losers is None else losers
    for subdir, these in some.items():
        for name in these:
            if not name.startswith(".") and is_message(name, directory.descriptor(subdir)):
                entry = Entry(*_parted(name, subdir))
                other = found.get(entry.key)
                found[entry.key] = entry if other is None else _winner(entry, other, losers)
    return found


def _parted(name: str, subdir: str) -> tuple[Key, str, str | None]:
    key, letters = split_info(name)
    return key, subdir, letters


def keys(directory: MailboxDirectory) -> set[Key]:
    """The key of every name that is there, whatever it is: what a message that comes must not have."""
    names = (name for subdir in _SUBDIRS for name in os.listdir(directory.descriptor(subdir)))
    return {split_info(name)[0] for name in names}


def unfinished(directory: MailboxDirectory) -> set[Key]:
    """The unique names of what is being written, or was by somebody who has gone."""
    return {Key(name) for name in os.listdir(directory.tmp)}


def find(directory: MailboxDirectory, guesses: Iterable[Entry]) -> dict[Key, Entry]:
    """Those of the guessed files that are there, without reading the directory; a key's first right guess counts."""
    found: dict[Key, Entry] = {}
    for guess in guesses:
        if guess.key not in found and is_message(guess.name, directory.descriptor(guess.subdir)):
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


def is_message(name: str, dir_fd: int) -> bool:
    """Whether a plain file has this name in the directory."""
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
