"""A mailbox on disk: what is in it, and delivering, reflagging and removing messages so that a crash harms nothing.

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
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from maild.core.errors import LocalError
from maild.core.flags import from_letters, join_info, replace_letters, to_letters
from maild.core.identity import LocalIdentity, disk_and_content, fingerprint, identify
from maild.core.model import Flags, Key, Uid
from maild.local.directory import MailboxDirectory, translated
from maild.local.durable import disk_error_texts, fsync_many, rename_new, write_all
from maild.local.keywords import Keywords
from maild.local.scan import Entry, find, scan
from maild.local.spool import Spool, TemporaryFile

_READ_OCTETS = 1 << 20
_REMOVE_TRIES = 3
_LATEST_S = 253_402_300_799  # the year 9999; what a server calls a date may be beyond any file system
_STALE_S = 36 * 3600


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

    def locate(self, keys: Mapping[Key, Flags]) -> dict[Key, Entry]:
        """Where a few messages are, given the flags they are thought to have; those that are gone are missing.

        Names are guessed first; the whole directory is read only if a guess fails.
        """
        with translated("read", self.path):
            self.keywords.refresh()
            found = find(self.directory, self._guesses(keys))
            if len(found) < len(keys):
                entries = self._scanned()
                found.update((key, entries[key]) for key in keys if key not in found and key in entries)
        return found

    def flags(self, entry: Entry) -> Flags:
        """What the letters of a file name mean in this mailbox."""
        return from_letters(entry.letters or "", self.keywords.by_letter)

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
                wanted = self._reflagged(entry, flags)
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

    def identity(self, entry: Entry) -> LocalIdentity | None:
        """What a message is by its content; None when the file is not there any more, or no plain file."""
        with translated(f"read {entry.name} in", self.path):
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not block us
                descriptor = os.open(entry.name, flags, dir_fd=self.directory.descriptor(entry.subdir))
            except FileNotFoundError:
                return None
            try:
                status = os.fstat(descriptor)
                return identify(_pieces(descriptor, status.st_size)) if stat.S_ISREG(status.st_mode) else None
            finally:
                os.close(descriptor)

    def spool(self, size_octets: int) -> Spool:
        """Where a big message of this announced size on the wire goes while it arrives."""
        return Spool(self.directory, size_octets)

    def delete_stale_tmp(self, now_s: float, older_than_s: float = _STALE_S) -> int:
        """Remove what crashed writers left in `tmp`; how many files that were.

        Age is that of the last change of the inode: a message's mtime is its date, which may be years ago.
        """
        removed = 0
        with translated("clean up tmp in", self.path):
            for name in os.listdir(self.directory.tmp):
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=self.directory.tmp, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_ctime < now_s - older_than_s:
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

    def _reflagged(self, entry: Entry, flags: Flags) -> Entry:
        old = entry.letters or ""
        letters = replace_letters(old, flags, self.keywords.letters, self.keywords.by_letter)
        if sorted(letters) == sorted(old) or (entry.subdir == "new" and not letters):
            return entry
        return Entry(entry.key, "cur", letters)

    def _renamed(self, entry: Entry, wanted: Entry) -> bool:
        """False when the file is not there. A file that has the wanted name already, a duplicate, is as good."""
        try:
            rename_new(entry.name, wanted.name, self.directory.descriptor(entry.subdir), self.directory.cur)
        except FileNotFoundError:
            return False
        except FileExistsError:
            return True
        return True

    def _unlinked(self, entry: Entry) -> bool:
        try:
            os.unlink(entry.name, dir_fd=self.directory.descriptor(entry.subdir))
        except FileNotFoundError:
            return False
        return True


def _pieces(descriptor: int, size_octets: int) -> Iterator[bytes]:
    wanted = min(size_octets + 1, _READ_OCTETS)  # a buffer of a MiB for each small file would cost more than reading it
    while piece := os.read(descriptor, wanted):
        yield piece


@dataclass(slots=True, eq=False)
class Incoming:
    """A message to deliver. `raw` is its wire form, or the spool of this mailbox that took it.

    `date_s` becomes the file's mtime, in seconds since 1970 UTC; None leaves the time of delivery. `stage` lets go of
    the octets once they are written: many batches are under way, and the disk has them now.
    """

    maildir: Maildir
    uid: Uid
    flags: Flags
    date_s: int | None
    raw: bytes | bytearray | Spool


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message that is durably in its mailbox; size and digest are those of its content, as a `Pair` keeps them."""

    incoming: Incoming
    key: Key
    size_octets: int
    digest: bytes


class DeliveryFailed(LocalError):
    """A batch could not be delivered; `delivered` is the part of it that is durably in place all the same."""

    def __init__(self, text: str, hint: str, delivered: list[Delivered]) -> None:
        super().__init__(text, hint)
        self.delivered = delivered


@dataclass(frozen=True, slots=True)
class _Written:
    file: TemporaryFile
    subdir: str
    name: str
    delivered: Delivered


def stage(batch: Sequence[Incoming]) -> Staged:
    """First half of a delivery: write every message into its mailbox's `tmp`. Nothing is durable or visible yet.

    The second half, `Staged.commit`, may run in another thread while the next batch is staged. When this raises
    LocalError nothing of the batch is left, its spools included.
    """
    staged = Staged(batch)
    with ExitStack() as undo:
        undo.callback(staged.discard)
        staged.write()
        undo.pop_all()
    return staged


class Staged:
    """A batch that is written and not yet delivered: `commit` it or `discard` it, once."""

    __slots__ = ("_batch", "_files", "_written")

    def __init__(self, batch: Sequence[Incoming]) -> None:
        self._batch = batch
        self._files = [incoming.raw.file for incoming in batch if isinstance(incoming.raw, Spool)]
        self._written: list[_Written] = []

    def write(self) -> None:
        """Write the batch into `tmp`; `stage` does this, once."""
        _list_keywords(self._batch)
        for incoming in self._batch:
            with translated("write a message to", incoming.maildir.path):
                self._written.append(_write(incoming, self._file(incoming)))

    def commit(self) -> list[Delivered]:
        """Second half: make the files durable, give them their names, make those durable.

        The fsyncs of a batch run together, one barrier before the first rename and one after the last. Raises
        DeliveryFailed; whatever has not got its name by then is removed from `tmp`.
        """
        try:
            fsync_many([written.file.descriptor for written in self._written])
            for written in self._written:
                written.file.close()
        except OSError as exc:
            self.discard()
            raise self._failure(exc, []) from exc
        placed, failure = self._place()
        try:
            fsync_many(sorted({written.file.directory.descriptor(written.subdir) for written in placed}))
        except OSError as exc:
            raise self._failure(exc, []) from exc
        delivered = [written.delivered for written in placed]
        if failure is not None:
            raise self._failure(failure, delivered) from failure
        return delivered

    def discard(self) -> None:
        """Remove from `tmp` whatever of the batch is there; what cannot be removed now, `delete_stale_tmp` will."""
        for file in self._files:
            with suppress(OSError):
                file.discard()

    def _file(self, incoming: Incoming) -> TemporaryFile:
        if isinstance(incoming.raw, Spool):
            return incoming.raw.file
        file = TemporaryFile(incoming.maildir.directory)
        self._files.append(file)
        return file

    def _place(self) -> tuple[list[_Written], OSError | None]:
        """Rename into `new` or `cur`; each that fails is removed, and the others go on."""
        placed: list[_Written] = []
        failure: OSError | None = None
        for written in self._written:
            try:
                written.file.move_to(written.subdir, written.name)
                placed.append(written)
            except OSError as exc:
                failure = failure or exc
                with suppress(OSError):  # as in `discard`
                    written.file.discard()
        return placed, failure

    def _failure(self, exc: OSError, delivered: list[Delivered]) -> DeliveryFailed:
        mailboxes = sorted({incoming.maildir.label for incoming in self._batch})
        where = mailboxes[0] if len(mailboxes) == 1 else f"{mailboxes[0]} and {len(mailboxes) - 1} other mailboxes"
        return DeliveryFailed(*disk_error_texts(exc, "deliver messages to", where), delivered)


def _list_keywords(batch: Sequence[Incoming]) -> None:
    """Have a letter for every keyword before a file name needs it."""
    wanted: dict[Maildir, set[Flags]] = {}
    for incoming in batch:
        wanted.setdefault(incoming.maildir, set()).add(incoming.flags)
    for maildir, flags in wanted.items():
        with translated("list keywords in", maildir.path):
            maildir.keywords.assign(flags)


def _write(incoming: Incoming, file: TemporaryFile) -> _Written:
    if isinstance(incoming.raw, Spool):
        size_octets, of_content = incoming.raw.finish()
    else:
        octets, content = disk_and_content(incoming.raw)
        size_octets, of_content = fingerprint(content)
        write_all(file.descriptor, octets)
        incoming.raw = b""
    if incoming.date_s is not None:
        os.utime(file.descriptor, (time.time(), min(max(incoming.date_s, 0), _LATEST_S)))
    letters = to_letters(incoming.flags, incoming.maildir.keywords.letters)
    delivered = Delivered(incoming, file.key, size_octets, of_content)
    if letters:
        return _Written(file, "cur", join_info(file.key, letters), delivered)
    return _Written(file, "new", file.key, delivered)
