"""The nouns: what a mailbox, a message on each side, a pair and an operation are.

`Uid` and `Cursor` are opaque text that only the protocol adapter reads (RFC 9051 §2.3.1.1 for IMAP).
`Flags` holds system flags as `\\Seen` and keywords as the server spells them, never `\\Recent`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import lt
from typing import NewType, Protocol

Uid = NewType("Uid", str)
Key = NewType("Key", str)  # Maildir unique name: what stands before ":2,"
MailboxName = NewType("MailboxName", str)  # decoded, with the server's own hierarchy separator
Cursor = NewType("Cursor", str)  # where the last complete remote scan of a mailbox ended
Epoch = NewType("Epoch", str)  # while it stays the same, a Uid means the same message (IMAP: UIDVALIDITY)
Flags = frozenset[str]

NO_FLAGS: Flags = frozenset()


@dataclass(frozen=True, slots=True)
class RemoteMailbox:
    """One selectable mailbox as the server lists it.

    `levels` are its decoded hierarchy levels, the last one its own; `role` is the special use
    (`\\Sent`, `\\Trash` …, RFC 6154) or "". `mark` is what the server said about its state in the listing,
    None where that does not prove that nothing changed; `messages` is its count, None where unknown.
    """

    name: MailboxName
    levels: tuple[str, ...]
    role: str = ""
    mark: str | None = None
    messages: int | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All selectable mailboxes of an account, and those that cannot be used with the reason, in words."""

    mailboxes: tuple[RemoteMailbox, ...]
    unusable: dict[str, str] = field(default_factory=dict)


class ScanTable:
    """(uid, flags, size in octets on the wire) per message, in 24 octets each; iterates in the order added.

    For Uids that are decimal numbers; an adapter with other Uids brings a table of its own with the same methods.
    """

    __slots__ = ("_flags", "_sizes", "_uids")

    def __init__(self) -> None:
        self._uids = array("Q")
        self._sizes = array("Q")
        self._flags: list[Flags] = []

    def add(self, uid: Uid | int, flags: Flags, size_octets: int) -> None:
        self._uids.append(int(uid))
        self._flags.append(flags)
        self._sizes.append(size_octets)

    def __len__(self) -> int:
        return len(self._uids)

    def __iter__(self) -> Iterator[tuple[Uid, Flags, int]]:
        for number, flags, size in zip(self._uids, self._flags, self._sizes, strict=True):
            yield Uid(str(number)), flags, size

    @property
    def octets(self) -> int:
        """The sum of all sizes."""
        return sum(self._sizes)

    @property
    def highest(self) -> int:
        """The highest Uid, 0 in an empty table."""
        return max(self._uids, default=0)

    def distinct(self) -> ScanTable:
        """The same with each Uid once, ascending, with the last flags and the last size told; itself if it is so."""
        if all(map(lt, self._uids, islice(self._uids, 1, None))):
            return self
        told: dict[int, tuple[Flags, int]] = {}
        for number, flags, size in zip(self._uids, self._flags, self._sizes, strict=True):
            told[number] = flags, size or told.get(number, (flags, 0))[1]
        table = ScanTable()
        for number in sorted(told):
            table.add(number, *told[number])
        return table

    def between(self, low: int, high: int) -> ScanTable:
        """Those with low <= Uid < high of an ascending table; itself if that is all of it."""
        start, end = bisect_left(self._uids, low), bisect_left(self._uids, high)
        if end - start == len(self._uids):
            return self
        table = ScanTable()
        for index in range(start, end):
            table.add(self._uids[index], self._flags[index], self._sizes[index])
        return table

    def without(self, uids: Collection[Uid]) -> ScanTable:
        """The same less these."""
        table = ScanTable()
        for uid, flags, size in self:
            if uid not in uids:
                table.add(uid, flags, size)
        return table

    def batches(self, messages: int, octets: int) -> Iterator[list[Uid]]:
        """Uids from the last added to the first, cut by count and by octets; a bigger one stands alone."""
        batch: list[Uid] = []
        filled = 0
        for number, size in zip(reversed(self._uids), reversed(self._sizes), strict=True):
            if batch and (len(batch) >= messages or filled + size > octets):
                yield batch
                batch, filled = [], 0
            batch.append(Uid(str(number)))
            filled += size
        if batch:
            yield batch


@dataclass(frozen=True, slots=True)
class Scan:
    """What a remote scan found.

    `full`: `items` lists every message there is, so a known Uid that is not in it is gone. Otherwise `items` holds only
    the new and the changed ones and `vanished` those known to be gone. `complete` is False when the server cut the
    answer short: then nothing may be taken as gone, and `cursor` must not be stored. `cursor` and `mark` become
    true once everything in this scan is applied and durable.
    """

    epoch: Epoch
    items: ScanTable
    full: bool
    complete: bool
    vanished: frozenset[Uid]
    cursor: Cursor
    mark: str | None
    messages: int


class Body(Protocol):
    """A message that is already on this disk under a temporary name, because it was too big for memory."""

    size_octets: int

    def discard(self) -> None: ...


@dataclass(slots=True)
class Fetched:
    """One message from the server. `raw` is its wire form, or a `Body` that took it while it came in.

    `date_s` is INTERNALDATE in seconds since 1970 UTC, None where the server gave none that can be read.
    """

    uid: Uid
    flags: Flags
    date_s: int | None
    raw: bytes | bytearray | Body


@dataclass(frozen=True, slots=True)
class Facts:
    """The cheap identity of one message: its size on the wire and what its header says.

    `message_id` and `date` are the unfolded, stripped header bodies, b"" where there is none.
    """

    size_octets: int
    message_id: bytes
    date: bytes


@dataclass(frozen=True, slots=True)
class Pair:
    """One message known on both sides. `flags` is the base: what both sides last agreed on.

    `size_octets` and `digest` (first 16 octets of SHA-256) are those of the disk form with LF line ends.
    """

    uid: Uid
    key: Key
    flags: Flags
    size_octets: int
    digest: bytes


# Operations: what reconcile wants done with local files. What is to be pulled stays a ScanTable.


@dataclass(frozen=True, slots=True)
class SetLocalFlags:
    """Bring a local file's flags to `flags` (the merged result); `base` becomes the new common state."""

    uid: Uid
    key: Key
    flags: Flags
    base: Flags


@dataclass(frozen=True, slots=True)
class DeleteLocal:
    """The server no longer has it and the pair proves that it had: remove the file."""

    uid: Uid
    key: Key


@dataclass(frozen=True, slots=True)
class Forget:
    """Gone on both sides: drop the pair."""

    uid: Uid


Operation = SetLocalFlags | DeleteLocal | Forget


@dataclass(frozen=True, slots=True)
class Skipped:
    """A message that was left where it is, with the reason in words."""

    uid: Uid
    reason: str
    size_octets: int = 0
