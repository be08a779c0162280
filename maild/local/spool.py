"""A message too big for memory, on its way into a mailbox: written to `tmp` piece by piece as it arrives."""

from __future__ import annotations

import errno
import os

from maild.core.identity import Digester, canonical
from maild.core.model import Key
from maild.local.directory import MailboxDirectory, mailbox_error, translated, unique_key
from maild.local.durable import write_all

_HEAD_OCTETS = 32_768  # hardly a header is longer
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class TemporaryFile:
    """A file in a mailbox's `tmp` that is to become the message `key`. It belongs to one thread at a time."""

    __slots__ = ("descriptor", "directory", "key")

    def __init__(self, directory: MailboxDirectory) -> None:
        self.directory = directory
        self.key: Key = unique_key()
        self.descriptor = os.open(self.key, _NEW_FILE, 0o600, dir_fd=directory.tmp)

    def close(self) -> None:
        """Close the descriptor; once is enough."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def move_to(self, subdir: str, name: str) -> None:
        """Give the file its name in "new" or "cur". Nothing can be there: the key is new."""
        os.rename(self.key, name, src_dir_fd=self.directory.tmp, dst_dir_fd=self.directory.descriptor(subdir))

    def discard(self) -> None:
        """Close it and remove it from `tmp`, where it still is there."""
        self.close()
        try:
            os.unlink(self.key, dir_fd=self.directory.tmp)
        except FileNotFoundError:
            return


class Spool:
    """One big message, taken in its wire form, kept in its disk form. A `BodyWriter` of `core.ports`.

    `size_octets` is what has arrived so far, in octets on the wire, `head` the beginning of it. It is delivered by
    `stage` like any other message, or discarded. Raises LocalError.
    """

    __slots__ = ("_digester", "_ends_with_cr", "file", "head", "size_octets")

    def __init__(self, directory: MailboxDirectory, size_octets: int) -> None:
        self.size_octets = 0
        self.head = b""
        self._digester = Digester()
        self._ends_with_cr = False
        with translated("write a message to", directory.path):
            self.file = TemporaryFile(directory)
            self._check_room(size_octets)

    def write(self, chunk: memoryview) -> None:
        """Store the next octets of the wire form; the memory may be reused after the call."""
        wire = (b"\r" + bytes(chunk)) if self._ends_with_cr else bytes(chunk)
        if not self.size_octets:
            self.head = wire[:_HEAD_OCTETS]
        self.size_octets += len(chunk)
        self._ends_with_cr = wire.endswith(b"\r")  # perhaps half of a CRLF: it waits for the next octet
        self._store(canonical(wire[:-1] if self._ends_with_cr else wire))

    def finish(self) -> tuple[int, bytes]:
        """Everything has arrived: size and digest of the content. The file is written, not yet durable."""
        if self._ends_with_cr:
            self._ends_with_cr = False
            self._store(b"\r")
        return self._digester.size_octets, self._digester.digest()

    def discard(self) -> None:
        """Forget the message; once is enough."""
        with translated("remove a temporary file of", self.file.directory.path):
            self.file.discard()

    def _store(self, octets: bytes) -> None:
        self._digester.update(octets)
        try:
            write_all(self.file.descriptor, octets)
        except OSError as exc:
            raise mailbox_error(exc, "write a message to", self.file.directory.path) from exc

    def _check_room(self, size_octets: int) -> None:
        """Refuse at once what will not fit, rather than fill the disk first."""
        room = os.fstatvfs(self.file.descriptor)
        if size_octets > room.f_bavail * room.f_frsize:
            self.file.discard()
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for {size_octets} octets")
