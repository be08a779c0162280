"""A mailbox on disk: what is in it, and reflagging, moving and removing messages so that a crash harms nothing.

Invariants:
- A file is in `new` or `cur` only when it is complete and durable; it was written and fsynced in `tmp` before.
- A name that this module reports as done (delivered, renamed, removed) is durable: its directory is fsynced.
- Names carry no UID. A message without flags stays in `new` without info until a flag or a reader moves it; nothing
  goes back from `cur` to `new`.
- Mail readers change names at any time without asking. A file that is not where it was is looked for again or
  reported as missing, never recreated, and no existing file is ever replaced.

Everything here blocks and is called from worker threads. A `Maildir` may be used by several at a time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from maild.core.errors import LocalError
from maild.core.flags import from_letters, replace_letters, to_letters
from maild.core.identity import LocalIdentity, identify
from maild.core.model import Flags, Key, Outgoing
from maild.local.directory import MailboxDirectory, is_abandoned, translated, unique_key
from maild.local.durable import fsync_many, rename_new
from maild.local.keywords import Keywords
from maild.local.outgoing import open_message, outgoing, pieces_of, size_on_disk
from maild.local.scan import Differences, Entry, differences, find, keys, scan
from maild.local.spool import Spool

_REMOVE_TRIES = 3
_STALE_S = 36 * 3600


NOTHING: Mapping[Key, Entry] = {}


class Maildir:
    """One mailbox's directory, open until `close`. Raises LocalError; MailboxUnusable where only this one suffers."""

    def __init__(self, directory: MailboxDirectory) -> None:
        """Takes over the open directory, also when this raises."""
        self.directory = directory
        self.duplicates: tuple[Entry, ...] = ()  # further files with a key that the last scan had
        with translated("read the keywords of", directory.path), ExitStack() as undo:
            undo.callback(directory.close)
            self.keywords = Keywords(directory.top)
            undo.pop_all()

    @classmethod
    def create(cls, root: Path, relative: PurePosixPath) -> Self:
        """Open the mailbox at `relative` below the account's Maildir `root`, making durably what is missing."""
        return cls(MailboxDirectory.create(root, relative))

    @classmethod
    def open(cls, root: Path, relative: PurePosixPath) -> Self | None:
        """Open the mailbox as it is, None where it is not there."""
        directory = MailboxDirectory.open(root, relative)
        return None if directory is None else cls(directory)

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def label(self) -> str:
        """What to call it in messages."""
        return str(self.directory.path)

    def close(self) -> None:
        """Close the descriptors. Batches that are staged into it must be committed or discarded before."""
        self.directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def entries(self) -> dict[Key, Entry]:
        """Every message in it. One that is there throughout is never missed, however readers rename it meanwhile."""
        with translated("read", self.path):
            return self._scanned()

    def differences(self, expected: Set[str]) -> Differences:
        """Messages under other names than these, and the keys of expected names of which there is no file at all."""
        with translated("read", self.path):
            found = differences(self.directory, expected)
            self.keywords.refresh()
            return found

    def locate(self, keys: Mapping[Key, Flags], seen: Mapping[Key, Entry] = NOTHING) -> dict[Key, Entry]:
        """Where a few messages are, given the flags they are thought to have; those that are gone are missing.

        `seen`: where some were seen before.

        Names are guessed first; the whole directory is read only if a guess fails.
        """
        with translated("read", self.path):
            self.keywords.refresh()
            found = find(self.directory, [*(seen[key] for key in keys if key in seen), *self._guesses(keys)])
            if len(found) < len(keys):
                entries = self._scanned()
                found.update((key, entries[key]) for key in keys if key not in found and key in entries)
        return found

    def flags(self, entry: Entry) -> Flags:
        """What the letters of a file name mean in this mailbox."""
        return from_letters(entry.letters or "", self.keywords.by_letter)

    def refresh_keywords(self) -> None:
        """Read what letters mean if that may have changed since."""
        with translated("read the keywords of", self.path):
            self.keywords.refresh()

    def unrepresentable(self, flags: Flags) -> frozenset[str]:
        """Keywords that file names here cannot carry: the 26 letters are used up, or the keyword is no IMAP atom.

        They are kept in the state alone; their absence from a name does not mean that someone removed them.
        """
        with translated("read the keywords of", self.path):
            return self.keywords.unrepresentable(flags)

    def set_flags(self, changes: Sequence[tuple[Entry, Flags]]) -> dict[Key, Entry]:
        """Rename files to carry these flags, durable on return.

        A file that is no longer where its entry says is left out of the result: a reader renamed or removed it, so it
        has to be located and merged again.
        """
        done: dict[Key, Entry] = {}
        touched: set[str] = set()
        with translated("change flags in", self.path):
            self.keywords.assign(flags for _, flags in changes)
            for entry, flags in changes:
                wanted = self._reflagged(entry, flags, self.keywords)
                if wanted == entry:
                    done[entry.key] = entry
                elif self._renamed(entry, wanted):
                    done[entry.key] = wanted
                    touched.update((entry.subdir, wanted.subdir))
            fsync_many([self.directory.descriptor(subdir) for subdir in sorted(touched)])
        return done

    def remove(self, entries: Iterable[Entry]) -> set[Key]:
        """Remove messages, durable on return. The result holds those that are gone, by whomever.

        One that a reader renamed meanwhile is removed under its new name; what keeps escaping is left out.
        """
        gone: set[Key] = set()
        left = {entry.key: entry for entry in entries}
        with translated("remove messages from", self.path):
            for _ in range(_REMOVE_TRIES):
                missed = [key for key, entry in left.items() if not self._unlinked(entry)]
                gone.update(left.keys() - missed)
                if not missed:
                    break
                present = self._scanned()
                gone.update(key for key in missed if key not in present)
                left = {key: present[key] for key in missed if key in present}
            fsync_many((self.directory.cur, self.directory.new))
        return gone

    def move_to(self, moves: Sequence[tuple[Entry, Flags]], target: Maildir) -> dict[Key, Entry]:
        """Move messages to another mailbox of the account, one rename each; they have these flags there. Durable.

        The result holds where each went, under the key it had; the key is another where the target had that one.
        A file that is no longer where its entry says is left out, as in `set_flags`.
        """
        done: dict[Key, Entry] = {}
        with translated("move messages to", target.path):
            target.keywords.assign(flags for _, flags in moves)
            taken = keys(target.directory) if moves else set()
            for entry, flags in moves:
                wanted = self._reflagged(entry, flags, target.keywords)
                placed = self._moved(entry, wanted, target.directory, taken)
                if placed is not None:
                    done[entry.key] = placed
                    taken.add(placed.key)
            if done:  # the names that are new first: a crash may leave a message twice, never nowhere
                fsync_many((target.directory.cur, target.directory.new))
                fsync_many((self.directory.cur, self.directory.new))
        return done

    def identity(self, entry: Entry) -> LocalIdentity | None:
        """What a message is by its content; None when the file is not there any more, or no plain file."""
        with translated(f"read {entry.name} in", self.path):
            descriptor = open_message(self.directory, entry)
            if descriptor is None:
                return None
            try:
                return identify(pieces_of(descriptor))
            finally:
                os.close(descriptor)

    def is_same(self, one: Entry, other: Entry) -> bool:
        """Whether both files hold the same message, as far as anybody can tell: also if one cannot be read, or is gone.

        Size and time of content settle it where they are equal, as they are of a copy; else they are read.
        """
        with suppress(OSError):
            first, second = (
                os.stat(entry.name, dir_fd=self.directory.descriptor(entry.subdir), follow_symlinks=False)
                for entry in (one, other)
            )
            if (first.st_size, first.st_mtime_ns) == (second.st_size, second.st_mtime_ns):
                return True
        try:
            mine, its = self.identity(one), self.identity(other)
        except LocalError:
            return True
        return mine is None or its is None or (mine.size_octets, mine.digest) == (its.size_octets, its.digest)

    def put_aside(self, entry: Entry) -> Entry | None:
        """Give a message a unique name of its own, for another has this one too. Durable; None where it is gone."""
        with translated(f"rename {entry.name} in", self.path):
            return self._put_aside(entry)

    def size_on_disk(self, entry: Entry) -> int | None:
        """In octets, also of a file that cannot be read; None where not even that can be told."""
        return size_on_disk(self.directory, entry)

    def outgoing(self, entry: Entry, flags: Flags) -> Outgoing | None:
        """A message as the server is to have it; None when it is not there any more, or no plain file.

        Its file is read here, for the size on the wire, and again by each call of `pieces`, which needs this mailbox
        to be open still. Readers may rename it meanwhile.
        """
        return outgoing(self.directory, entry, flags, self._find)

    def spool(self, size_octets: int) -> Spool:
        """Where a big message of this announced size on the wire goes while it arrives."""
        return Spool(self.directory, size_octets)

    def delete_stale_tmp(self, now_s: float, older_than_s: float = _STALE_S) -> int:
        """Remove what crashed writers left in `tmp`; how many files that were.

        Those of a maild of this machine that is gone at once, others when they are that old. Age is that of the last
        change of the inode: a message's mtime is its date, which may be years ago.
        """
        removed = 0
        with translated("clean up tmp in", self.path):
            for name in os.listdir(self.directory.tmp):
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=self.directory.tmp, follow_symlinks=False)
                    is_old = status.st_ctime < now_s - older_than_s
                    if stat.S_ISREG(status.st_mode) and (is_old or is_abandoned(name)):
                        os.unlink(name, dir_fd=self.directory.tmp)
                        removed += 1
        return removed

    def _scanned(self) -> dict[Key, Entry]:
        """Read the directory, and after it the keywords: a letter is listed before a name has it."""
        entries, self.duplicates = scan(self.directory)
        self.keywords.refresh()
        return entries

    def _guesses(self, keys: Mapping[Key, Flags]) -> Iterator[Entry]:
        for key, flags in keys.items():
            letters = to_letters(flags, self.keywords.letters)
            if not letters:
                yield Entry(key, "new", None)
            yield Entry(key, "cur", letters)

    def _find(self, entry: Entry) -> Entry | None:
        """Where a message is now that is not where `entry` says."""
        return self.locate({entry.key: self.flags(entry)}).get(entry.key)

    def _reflagged(self, entry: Entry, flags: Flags, keywords: Keywords) -> Entry:
        """The entry with these flags by that list of keywords; a letter that means something in either list goes."""
        old = entry.letters or ""
        known = {**self.keywords.by_letter, **keywords.by_letter}
        letters = replace_letters(old, flags, keywords.letters, known)
        return entry if sorted(letters) == sorted(old) else Entry(entry.key, "cur", letters)

    def _moved(self, entry: Entry, wanted: Entry, target: MailboxDirectory, taken: set[Key]) -> Entry | None:
        """None when the file is not there."""
        placed = wanted._replace(key=unique_key()) if wanted.key in taken else wanted
        source = self.directory.descriptor(entry.subdir)
        while True:
            try:
                rename_new(entry.name, placed.name, source, target.descriptor(placed.subdir))
            except FileNotFoundError:
                return None
            except FileExistsError:  # it came after the target was read
                placed = wanted._replace(key=unique_key())
            else:
                return placed

    def _renamed(self, entry: Entry, wanted: Entry) -> bool:
        """False when the file is not there. A duplicate that has the wanted name already is as good.

        Another message that has it gets a unique name of its own: whoever looks for this one would find that one.
        """
        while True:
            try:
                rename_new(entry.name, wanted.name, self.directory.descriptor(entry.subdir), self.directory.cur)
            except FileNotFoundError:
                return False
            except FileExistsError:
                if self.is_same(entry, wanted):
                    return True
                self._put_aside(wanted)
            else:
                return True

    def _put_aside(self, entry: Entry) -> Entry | None:
        """See `put_aside`."""
        aside = entry._replace(key=unique_key())
        descriptor = self.directory.descriptor(entry.subdir)
        try:
            rename_new(entry.name, aside.name, descriptor, descriptor)
        except FileNotFoundError:
            return None
        fsync_many([descriptor])
        return aside

    def _unlinked(self, entry: Entry) -> bool:
        try:
            os.unlink(entry.name, dir_fd=self.directory.descriptor(entry.subdir))
        except FileNotFoundError:
            return False
        return True
