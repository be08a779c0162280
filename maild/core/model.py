"""The nouns: what a mailbox, a message on each side, a pair and an operation are.

`Uid` and `Cursor` are opaque text that only the protocol adapter reads (RFC 9051 §2.3.1.1 for IMAP).
`Flags` holds system flags as `\\Seen` and keywords as the server spells them, never `\\Recent`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from operator import lt
from typing import Literal, NewType, Protocol

Uid = NewType("Uid", str)
Key = NewType("Key", str)  # Maildir unique name: what stands before ":2,"
MailboxName = NewType("MailboxName", str)  # decoded, with the server's own hierarchy separator
Cursor = NewType("Cursor", str)  # where the last complete remote scan of a mailbox ended
Epoch = NewType("Epoch", str)  # while it stays the same, a Uid means the same message (IMAP: UIDVALIDITY)
Flags = frozenset[str]
Content = tuple[int, bytes]  # size in octets and digest of a message's disk form
Only = Literal["", "local", "remote"]
Push = Literal["auto", "notify", "idle", "poll"]  # how the server is to tell of changes; "auto" is the best it can

NO_FLAGS: Flags = frozenset()


@dataclass(frozen=True, slots=True)
class RemoteMailbox:
    """One selectable mailbox as the server lists it.

    `levels` are its decoded hierarchy levels, the last one its own; `role` is the special use
    (`\\Sent`, `\\Trash` …, RFC 6154) or "". `mark` is what the server said about its state in the listing,
    None where that does not prove that nothing changed; `messages` is its count, None where unknown. `epoch` and
    `next_uid` (UIDVALIDITY, UIDNEXT) are "" where the listing does not tell; `object_id` stays the same when the
    mailbox is renamed (MAILBOXID, RFC 8474), "" where the server has none.
    """

    name: MailboxName
    levels: tuple[str, ...]
    role: str = ""
    mark: str | None = None
    messages: int | None = None
    epoch: str = ""
    next_uid: str = ""
    object_id: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The selectable mailboxes that the config wants, and those that cannot be used with the reason, in words.

    `present` names everything the server has, wanted or not, selectable or not: what is missing there is gone.
    `separator` divides levels, "" where there are none. `trash` is the mailbox with the role \\Trash, wanted or not;
    `roles` are the selectable mailboxes that have one, by role, wanted or not. `left_out` are those that the patterns
    want, and that are not subscribed, as the config asks for. `moves_whole`: the server moves a message in one step
    (RFC 6851 §3.3), so that no cut leaves it in both mailboxes.
    """

    mailboxes: tuple[RemoteMailbox, ...]
    unusable: dict[str, str] = field(default_factory=dict)
    present: frozenset[MailboxName] = frozenset()
    separator: str = "/"
    trash: MailboxName | None = None
    roles: Mapping[str, RemoteMailbox] = field(default_factory=dict)
    left_out: frozenset[MailboxName] = frozenset()
    moves_whole: bool = False


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

    def sizeless(self) -> ScanTable:
        """Those that were told without a size."""
        table = ScanTable()
        for number, flags, size in zip(self._uids, self._flags, self._sizes, strict=True):
            if not size:
                table.add(number, flags, size)
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
class Permitted:
    """Which flags a mailbox keeps (PERMANENTFLAGS, RFC 9051 §7.1), in their canonical spelling.

    `new_keywords`: any other keyword too (`\\*`).
    """

    flags: Flags = NO_FLAGS
    new_keywords: bool = True

    def of(self, flags: Flags) -> Flags:
        """Those that the mailbox would keep."""
        known = {flag.lower() for flag in self.flags}
        return frozenset(f for f in flags if f.lower() in known or (self.new_keywords and not f.startswith("\\")))


@dataclass(frozen=True, slots=True)
class Scan:
    """What a remote scan found.

    `full`: `items` lists every message there is, so a known Uid that is not in it is gone. Otherwise `items` holds only
    the new and the changed ones and `vanished` those known to be gone. `complete` is False when the server cut the
    answer short: then nothing may be taken as gone, and `cursor` must not be stored. `cursor` and `mark` become
    true once everything in this scan is applied and durable. `permitted` is None where nothing may be changed
    (READ-ONLY, ACL, or opened for reading only).
    """

    epoch: Epoch
    items: ScanTable
    full: bool
    complete: bool
    vanished: frozenset[Uid]
    cursor: Cursor
    mark: str | None
    messages: int
    permitted: Permitted | None = None


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

    `size_octets` and `digest` (first 16 octets of SHA-256) are those of the disk form with LF line ends. `only` is ""
    as long as it is on both sides; "local" or "remote" where it is left on that side alone because its deletion on the
    other is not to travel. Such a message is neither changed nor fetched nor sent. `info` is what followed the key in
    the file's name (":2," and letters, or "") when its flags were those of the base, None where that is not known.
    """

    uid: Uid
    key: Key
    flags: Flags
    size_octets: int
    digest: bytes
    only: Only = ""
    info: str | None = None

    @property
    def content(self) -> Content:
        """What tells that another file or message is the same."""
        return self.size_octets, self.digest


# Operations: what reconcile wants done about messages that are pairs. What is to be pulled stays a ScanTable.


@dataclass(frozen=True, slots=True)
class MergeFlags:
    """Bring a file's flags to `flags`, set `add` and clear `remove` on the server; `base` is then the common state."""

    uid: Uid
    key: Key
    flags: Flags
    add: Flags
    remove: Flags
    base: Flags


@dataclass(frozen=True, slots=True)
class DeleteLocal:
    """The server no longer has it and the pair proves that it had: remove the file."""

    uid: Uid
    key: Key


@dataclass(frozen=True, slots=True)
class DeleteRemote:
    """This disk no longer has it and the pair proves that it had: remove it on the server."""

    uid: Uid
    key: Key


@dataclass(frozen=True, slots=True)
class Keep:
    """Its deletion does not travel: from now on it is on one side only, and no concern of the other."""

    uid: Uid
    only: Only


@dataclass(frozen=True, slots=True)
class Forget:
    """Gone on both sides: drop the pair."""

    uid: Uid


Operation = MergeFlags | DeleteLocal | DeleteRemote | Keep | Forget


# What the engine hands to the server's side, and what it hears back.


@dataclass(frozen=True, slots=True)
class FlagChange:
    """Flags to be set and to be removed on the server; the others stay as they are there."""

    uid: Uid
    add: Flags
    remove: Flags


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A local message for the server. `size_octets` is its exact size on the wire, `pieces` gives its wire form (CRLF).

    `date_s` becomes INTERNALDATE, seconds since 1970 UTC. `pieces` may be called more than once, from a worker thread
    or not, and raises LocalError where the file cannot be read or has changed its size.
    """

    key: Key
    flags: Flags
    date_s: int
    size_octets: int
    pieces: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of an Outgoing: its new Uid (None where the server did not tell and it could not be found again).

    `refusal` says in words why the server did not take it, "" where it did; `is_full`: for want of room (quota).
    """

    key: Key
    uid: Uid | None
    refusal: str = ""
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A message that was left where it is, with the reason in words."""

    uid: Uid
    reason: str
    size_octets: int = 0
