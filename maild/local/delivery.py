"""Delivering messages into mailboxes, in batches: written to `tmp`, made durable, given their names, made durable.

A batch may go into several mailboxes. Its two halves, `stage` and `Staged.commit`, may run in different threads, so
that one batch is written while another waits for the disk. Everything here blocks and is called from worker threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from maild.core.errors import LocalError
from maild.core.flags import join_info, to_letters
from maild.core.identity import Digester, disk_and_content, wire_pieces
from maild.core.model import Flags, Key, Uid
from maild.local.directory import translated
from maild.local.durable import disk_error_texts, fsync_many, write_all
from maild.local.maildir import Maildir
from maild.local.spool import Spool, TemporaryFile

_LATEST_S = 253_402_300_799  # the year 9999; what a server calls a date may be beyond any file system


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
    """A message that is durably in its mailbox; size, digest and info are as a `Pair` keeps them."""

    incoming: Incoming
    key: Key
    size_octets: int
    digest: bytes
    info: str = ""

    @property
    def path(self) -> Path:
        """Where its file was put; a reader may have renamed it since."""
        return self.incoming.maildir.path / ("cur" if self.info else "new") / f"{self.key}{self.info}"


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

    @property
    def to_come(self) -> list[Delivered]:
        """The batch as it will be in place."""
        return [written.delivered for written in self._written]

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
        digester = Digester()
        for piece in wire_pieces(incoming.raw):
            octets, content = disk_and_content(piece)
            digester.update(content)
            write_all(file.descriptor, octets)
        size_octets, of_content = digester.size_octets, digester.digest()
        incoming.raw = b""
    if incoming.date_s is not None:
        os.utime(file.descriptor, (time.time(), min(max(incoming.date_s, 0), _LATEST_S)))
    letters = to_letters(incoming.flags, incoming.maildir.keywords.letters)
    name = join_info(file.key, letters or None)
    delivered = Delivered(incoming, file.key, size_octets, of_content, name[len(file.key) :])
    return _Written(file, "cur" if letters else "new", name, delivered)
