"""Carrying out what was decided: effect first, then the state. Delivery in batches, adoption, changes to local files.

Invariants:
- a pair is committed only when its file and the file's directory are durable, and dropped only when the removal is; so
  whatever instant maild is killed at, the state never claims more than the disk holds;
- what is on the disk without a pair (a crash between effect and commit, a lost state, another tool's Maildir) is found
  again by content before anything is pulled: adoption is the one recovery;
- memory is bounded: at most `QUEUE_OCTETS` of messages wait for the disk.
"""

from __future__ import annotations

import resource
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar, assert_never, cast

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from maild.core.errors import LocalError
from maild.core.flags import merge, same_flags
from maild.core.identity import TUID_WIRE_OCTETS, LocalIdentity, disk_and_content, fingerprint
from maild.core.model import (
    NO_FLAGS,
    DeleteLocal,
    Facts,
    Fetched,
    Flags,
    Forget,
    Key,
    Operation,
    Pair,
    SetLocalFlags,
    Uid,
)
from maild.local.maildir import Delivered, DeliveryFailed, Incoming, Maildir, Staged, stage
from maild.local.scan import Entry
from maild.local.spool import Spool
from maild.local.state import Changes, MailboxState, Orphan, State

QUEUE_OCTETS = 6 << 20  # messages that may wait for the disk, beside the batches being written
SPOOL_OCTETS = 1 << 20  # what a message counts that is on the disk already: it holds a descriptor
BATCH_OCTETS = 4 << 20
BATCH_MESSAGES = 256
COMMITTERS = 2  # batches made durable side by side
DESCRIPTORS_KEPT = 200  # for connections, directories, the database

Content = tuple[int, bytes]  # size and digest of a message's content

T = TypeVar("T")


class StateThread:
    """One account's state, used by one thread at a time, off the event loop."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._limiter = anyio.CapacityLimiter(1)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run a function that may use the state; others wait."""
        return await anyio.to_thread.run_sync(function, *args, limiter=self._limiter)


@dataclass(slots=True)
class Delivery:
    """One mailbox's share in the account's deliveries: what is under way, and what became of it."""

    mailbox: MailboxState
    maildir: Maildir
    on_durable: Callable[[Delivered], None]
    under_way: int = 0
    failure: LocalError | None = None
    idle: anyio.Event = field(default_factory=anyio.Event)

    async def drained(self) -> None:
        """Wait until nothing is under way any more, well or badly."""
        while self.under_way > 0:
            self.idle = anyio.Event()
            await self.idle.wait()

    async def settled(self) -> None:
        """Wait until everything put so far is durable and its pairs are committed; raises what went wrong."""
        await self.drained()
        if self.failure is not None:
            raise self.failure


Item = tuple[Delivery, Incoming]


class Deliverer:
    """Puts messages on this disk, for all mailboxes of an account, in batches that grow with the load.

    Three stages, each in its own thread, so that batches overlap: one is written while those before it are made durable
    and noted in the state. A single message does not wait for a batch to fill. Used by the event loop's thread only.
    """

    def __init__(self, state: StateThread) -> None:
        self._state = state
        self._queue: deque[Item] = deque()
        self._octets = 0
        self._filled = anyio.Event()
        self._room = anyio.Event()
        self._closing = False
        self._given_up: LocalError | None = None
        self._most = batch_messages()

    @property
    def is_saturated(self) -> bool:
        """Whether messages arrive faster than this disk takes them, so that more connections would not help."""
        return self._octets > QUEUE_OCTETS // 4

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the stages for as long as the block lasts, and until the queue is empty."""
        written, staged = anyio.create_memory_object_stream[tuple[list[Item], Staged]](0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._stage_all, written)
            for _ in range(COMMITTERS):
                tasks.start_soon(self._commit_all, staged.clone())
            staged.close()
            try:
                yield
            finally:
                self._closing = True
                self._filled.set()

    async def put(self, delivery: Delivery, incoming: Sequence[Incoming]) -> None:
        """Queue messages; waits while too much is queued. A failed delivery raises at once."""
        while self._octets >= QUEUE_OCTETS and delivery.failure is None and self._given_up is None:
            self._room = anyio.Event() if self._room.is_set() else self._room
            await self._room.wait()
        if (failure := delivery.failure or self._given_up) is not None:
            raise failure
        delivery.under_way += len(incoming)
        for one in incoming:
            self._queue.append((delivery, one))
            self._octets += _octets(one)
        if incoming:
            self._filled.set()

    async def _stage_all(self, written: MemoryObjectSendStream[tuple[list[Item], Staged]]) -> None:
        async with written:
            while batch := await self._next_batch():
                with self._answered_for(batch):
                    try:
                        staged = await anyio.to_thread.run_sync(stage, [incoming for _, incoming in batch])
                    except LocalError as exc:
                        self._settle(batch, [], exc)
                        continue
                    await written.send((batch, staged))

    async def _commit_all(self, staged: MemoryObjectReceiveStream[tuple[list[Item], Staged]]) -> None:
        async with staged:
            async for batch, files in staged:
                with self._answered_for(batch):
                    delivered, failure = await self._committed(batch, files)
                self._settle(batch, delivered, failure)

    async def _committed(self, batch: list[Item], files: Staged) -> tuple[list[Delivered], LocalError | None]:
        """Make a batch durable, then its pairs; what of it is done, and what went wrong."""
        failure: LocalError | None = None
        try:
            delivered = await anyio.to_thread.run_sync(files.commit)
        except DeliveryFailed as exc:
            delivered, failure = exc.delivered, exc
        try:
            await self._state.run(self._commit_pairs, batch, delivered)
        except LocalError as exc:
            return [], exc  # the files are there without pairs: adopted by content next time
        return delivered, failure

    @contextmanager
    def _answered_for(self, batch: list[Item]) -> Iterator[None]:
        """Whatever ends a stage, a fault of maild's own included, nobody waits for ever for what it had in hand."""
        try:
            yield
        except BaseException:
            self._given_up = LocalError("delivering messages to this disk was given up")
            left, self._queue = [*batch, *self._queue], deque()
            self._settle(left, [], self._given_up)
            raise

    async def _next_batch(self) -> list[Item]:
        while not self._queue and not self._closing:
            self._filled = anyio.Event()
            with self._answered_for([]):  # what is put in the instant of the end as well
                await self._filled.wait()
        batch: list[Item] = []
        octets = 0
        while self._queue and len(batch) < self._most and octets < BATCH_OCTETS:
            batch.append(self._queue.popleft())
            octets += _octets(batch[-1][1])
        self._octets -= octets
        self._room.set()
        return batch

    def _commit_pairs(self, batch: list[Item], delivered: list[Delivered]) -> None:
        mailbox_of = {id(incoming): delivery.mailbox.id for delivery, incoming in batch}
        pairs: dict[int, list[Pair]] = defaultdict(list)
        for d in delivered:
            pair = Pair(d.incoming.uid, d.key, d.incoming.flags, d.size_octets, d.digest)
            pairs[mailbox_of[id(d.incoming)]].append(pair)
        self._state.state.apply([Changes(mailbox_id, add=added) for mailbox_id, added in pairs.items()])

    def _settle(self, batch: list[Item], delivered: list[Delivered], failure: LocalError | None) -> None:
        """Tell each mailbox what became of its messages.

        First that it has an answer: a fault in `on_durable` must leave nobody waiting.
        """
        durable = {id(d.incoming): d for d in delivered}
        done: list[tuple[Delivery, Delivered]] = []
        for delivery, incoming in batch:
            delivery.under_way -= 1
            if (one := durable.get(id(incoming))) is not None:
                done.append((delivery, one))
            else:
                delivery.failure = failure or LocalError(f"a message for {delivery.mailbox.name} was not delivered")
            if delivery.under_way <= 0:
                delivery.idle.set()
        if failure is not None:
            self._room.set()
        for delivery, one in done:
            delivery.on_durable(one)


def batch_messages() -> int:
    """How many messages one batch may hold: each keeps a descriptor open, in every batch that is under way."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, min(BATCH_MESSAGES, (soft - DESCRIPTORS_KEPT) // (COMMITTERS + 2)))


def _octets(incoming: Incoming) -> int:
    return SPOOL_OCTETS if isinstance(incoming.raw, Spool) else len(incoming.raw)


# -- local files


@dataclass(slots=True)
class Applied:
    """How many files got other flags, and how many were removed."""

    flags: int = 0
    deleted: int = 0


def apply_local(state: State, mailbox: MailboxState, maildir: Maildir, operations: Sequence[Operation]) -> Applied:
    """Flags, deletions and forgotten pairs of one mailbox: the files first, durable, then the state. Blocks."""
    reflag: list[SetLocalFlags] = []
    delete: list[DeleteLocal] = []
    forget: list[Uid] = []
    for operation in operations:
        match operation:
            case SetLocalFlags():
                reflag.append(operation)
            case DeleteLocal():
                delete.append(operation)
            case Forget(uid=uid):
                forget.append(uid)
            case _:
                assert_never(operation)
    pairs = state.pairs_of(mailbox.id, [operation.uid for operation in reflag])
    applied = Applied(flags=_reflag(maildir, reflag, {pair.key: pair.flags for pair in pairs.values()}))
    entries = maildir.locate({operation.key: NO_FLAGS for operation in delete}) if delete else {}
    gone = maildir.remove(entries.values()) if entries else set()
    applied.deleted = len(gone)
    kept = {key for key in entries if key not in gone}
    drop = [*forget, *(operation.uid for operation in delete if operation.key not in kept)]
    bases = [(operation.uid, operation.base) for operation in reflag]
    if bases or drop:
        state.apply([Changes(mailbox.id, flags=bases, drop=drop)])
    return applied


def _reflag(maildir: Maildir, operations: Sequence[SetLocalFlags], bases: Mapping[Key, Flags]) -> int:
    """Rename files to carry their flags, merged with those they have at this moment: a reader may just change them."""
    wanted = {operation.key: operation for operation in operations if operation.key in bases}
    changed = 0
    for _ in range(3):
        if not wanted:
            break
        entries = maildir.locate({key: bases[key] for key in wanted})
        done = maildir.set_flags(
            [
                (entry, merge(bases[key], _flags_here(maildir, entry, bases[key]), wanted[key].base))
                for key, entry in entries.items()
            ]
        )
        changed += sum(done[key] != entries[key] for key in done)
        wanted = {key: operation for key, operation in wanted.items() if key in entries and key not in done}
    return changed


def local_flags(maildir: Maildir, pairs: Iterable[Pair]) -> dict[Key, Flags]:
    """The flags that these pairs' files have; those that are gone are missing. Blocks.

    A keyword that no file name can carry counts as unchanged here.
    """
    bases = {pair.key: pair.flags for pair in pairs}
    found = maildir.locate(bases) if bases else {}
    return {key: _flags_here(maildir, entry, bases[key]) for key, entry in found.items()}


def _flags_here(maildir: Maildir, entry: Entry, base: Flags) -> Flags:
    return maildir.flags(entry) | maildir.unrepresentable(base)


# -- adoption


@dataclass(slots=True)
class Unpaired:
    """Files of one mailbox that no pair knows, by what they are. `orphans` keep the base flags of lost pairs."""

    maildir: Maildir
    entries: dict[Key, Entry]
    identities: dict[Key, LocalIdentity]
    orphans: dict[Key, Orphan]
    by_content: dict[Content, list[Key]] = field(init=False)

    def __post_init__(self) -> None:
        self.by_content = defaultdict(list)
        for key, identity in self.identities.items():
            self.by_content[identity.size_octets, identity.digest].append(key)

    def sizes(self) -> set[int]:
        """What the messages may count on the server."""
        plain = {identity.facts.size_octets for identity in self.identities.values()}
        return plain | {i.facts.size_octets + TUID_WIRE_OCTETS for i in self.identities.values() if i.has_tuid}

    def by_facts(self, *, with_tuid: bool) -> dict[Facts, list[Key]]:
        """Keys by their cheap identity, without those that have no Message-ID to be known by.

        With `with_tuid` only those that mbsync marked, as the server counts them if it has the mark too.
        """
        found: dict[Facts, list[Key]] = defaultdict(list)
        for key, identity in self.identities.items():
            facts = identity.facts
            if with_tuid:
                facts = Facts(facts.size_octets + TUID_WIRE_OCTETS, facts.message_id, facts.date)
            if facts.message_id and (identity.has_tuid or not with_tuid):
                found[facts].append(key)
        return found

    def with_content(self, content: Content) -> Key | None:
        """A file with exactly this content."""
        return next((key for key in self.by_content.get(content, ()) if key in self.entries), None)

    def take(self, key: Key) -> tuple[Entry, LocalIdentity, Flags]:
        """Its entry, identity and base flags; it is no longer unpaired."""
        orphan = self.orphans.pop(key, None)
        return self.entries.pop(key), self.identities.pop(key), NO_FLAGS if orphan is None else orphan.flags


def find_unpaired(state: State, mailbox: MailboxState, maildir: Maildir, *, pairs_count: bool) -> Unpaired:
    """Read what every file without a pair is. Blocks for as long as that takes.

    Without `pairs_count` every file is unpaired: the pairs are of an epoch that has ended.
    """
    entries = maildir.entries()
    for key in state.keys(mailbox.id) if pairs_count else ():
        entries.pop(key, None)
    identities = {key: identity for key, entry in entries.items() if (identity := maildir.identity(entry)) is not None}
    return Unpaired(maildir, {key: entries[key] for key in identities}, identities, state.orphans(mailbox.id))


def match_facts(unpaired: Unpaired, facts: Mapping[Uid, Facts]) -> dict[Uid, Key]:
    """Pair by cheap identity, where that leaves no doubt.

    No doubt: a Message-ID is there, all local files of the group have the same content, and there are no more messages
    on the server than files. Everything else is decided by the content once it has been fetched.
    """
    groups: dict[Facts, list[Uid]] = defaultdict(list)
    for uid, fact in facts.items():
        groups[fact].append(uid)
    matched: dict[Uid, Key] = {}
    for with_tuid in (False, True):
        taken = set(matched.values())
        for fact, same in unpaired.by_facts(with_tuid=with_tuid).items():
            keys = [key for key in same if key not in taken]
            uids = [uid for uid in groups.get(fact, []) if uid not in matched]
            if len(uids) <= len(keys) and len({unpaired.identities[key].digest for key in keys}) == 1:
                matched.update(zip(sorted(uids, key=_uid_order), sorted(keys), strict=False))
    return matched


def _uid_order(uid: Uid) -> tuple[int, str]:
    return len(uid), uid


def adopt(
    state: State, mailbox: MailboxState, unpaired: Unpaired, matched: Mapping[Uid, Key], remote: Mapping[Uid, Flags]
) -> Applied:
    """Make pairs of what is on both sides, and bring the flags together. Blocks."""
    pairs: list[Pair] = []
    changes: list[tuple[Entry, Flags]] = []
    bases: dict[Key, Flags] = {}
    maildir = unpaired.maildir
    for uid, key in matched.items():
        entry, identity, base = unpaired.take(key)
        here = _flags_here(maildir, entry, base)
        merged = merge(base, here, remote[uid])
        if not same_flags(merged, here):
            changes.append((entry, merged))
            bases[key] = base
        pairs.append(Pair(uid, key, remote[uid], identity.size_octets, identity.digest))
    done = maildir.set_flags(changes) if changes else {}
    escaped = [SetLocalFlags(p.uid, p.key, p.flags, p.flags) for p in pairs if p.key in bases and p.key not in done]
    flags = len(done) + _reflag(maildir, escaped, bases)
    state.apply([Changes(mailbox.id, add=pairs)])
    return Applied(flags=flags)


def fetched_content(fetched: Fetched) -> Content:
    """What has just been fetched, to be looked for among the unpaired files. Blocks for as long as hashing takes."""
    if isinstance(fetched.raw, Spool):
        return fetched.raw.finish()
    _, content = disk_and_content(cast("bytes | bytearray", fetched.raw))
    return fingerprint(content)


def adopt_content(
    state: State, mailbox: MailboxState, unpaired: Unpaired, fetched: Fetched, content: Content
) -> Applied | None:
    """Adopt an unpaired file that holds exactly what has just been fetched, None if there is none. Blocks.

    Looking and taking are one step of the state's thread: several sessions may bring equal messages at once.
    """
    key = unpaired.with_content(content)
    if key is None:
        return None
    return adopt(state, mailbox, unpaired, {fetched.uid: key}, {fetched.uid: fetched.flags})
