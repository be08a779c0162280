"""Deliveries: messages onto this disk, in durable batches for all of an account; files first, then the state.

Invariants:
- a pair is committed only when its file and the file's directory are durable; so whatever instant maild is killed at,
  the state never claims more than the disk holds;
- where readers may be at work before that, the pairs to come are noted first: a file that got its name and has moved
  on before the next pass is still known (`engine.delivered`);
- memory is bounded: at most `QUEUE_OCTETS` of messages wait for the disk.
"""

from __future__ import annotations

import resource
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from maild.core.errors import LocalError
from maild.core.model import Pair
from maild.local.delivery import Delivered, DeliveryFailed, Incoming, Staged, stage
from maild.local.maildir import Maildir
from maild.local.spool import Spool
from maild.local.state import Changes, MailboxState, State

QUEUE_OCTETS = 6 << 20
SPOOL_OCTETS = 1 << 20  # what a message counts that is on the disk already: it holds a descriptor
BATCH_OCTETS = 4 << 20
BATCH_MESSAGES = 256
COMMITTERS = 2  # batches made durable side by side
DESCRIPTORS_KEPT = 200  # for connections, directories, the database

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
    """One mailbox's share in the account's deliveries: what is under way, and what became of it.

    `is_noted`: its pairs are noted before its files get their names. A first pull, which nobody is reading, does
    without: that costs a commit per batch.
    """

    mailbox: MailboxState
    maildir: Maildir
    on_durable: Callable[[Delivered], None]
    is_noted: bool = False
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

    def __init__(self, state: StateThread, queue_octets: int | None = None) -> None:
        """`queue_octets` (default: `QUEUE_OCTETS`) of messages may wait, beside the batches being written."""
        self._state = state
        self._most_octets = QUEUE_OCTETS if queue_octets is None else queue_octets
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
        return self._octets > self._most_octets // 4

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
        while self._octets >= self._most_octets and delivery.failure is None and self._given_up is None:
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
                with self._answered_for(batch), _discarded_unless_kept() as files:
                    try:
                        await anyio.to_thread.run_sync(_stage_into, files, batch)
                    except LocalError as exc:
                        self._settle(batch, [], exc)
                        continue
                    await written.send((batch, files[0]))
                    files.clear()

    async def _commit_all(self, staged: MemoryObjectReceiveStream[tuple[list[Item], Staged]]) -> None:
        async with staged:
            async for batch, files in staged:
                with self._answered_for(batch), _discarded_unless_kept() as kept:
                    kept.append(files)
                    # Not between the note and the pairs: what `tmp` has then tells what got its name.
                    with anyio.CancelScope(shield=True):
                        delivered, failure = await self._committed(batch, files)
                    kept.clear()
                self._settle(batch, delivered, failure)

    async def _committed(self, batch: list[Item], files: Staged) -> tuple[list[Delivered], LocalError | None]:
        """Make a batch durable, then its pairs; what of it is done, and what went wrong."""
        failure: LocalError | None = None
        if any(delivery.is_noted for delivery, _ in batch):
            try:
                await self._state.run(self._note, batch, files)
            except LocalError as exc:
                await anyio.to_thread.run_sync(files.discard)
                return [], exc
        try:
            delivered = await anyio.to_thread.run_sync(files.commit)
        except DeliveryFailed as exc:
            delivered, failure = exc.delivered, exc
        try:
            await self._state.run(self._commit_pairs, batch, delivered, files)
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

    def _note(self, batch: list[Item], files: Staged) -> None:
        self._state.state.note_deliveries(_pairs([item for item in batch if item[0].is_noted], files.to_come))

    def _commit_pairs(self, batch: list[Item], delivered: list[Delivered], files: Staged) -> None:
        pairs = _pairs(batch, delivered)
        self._state.state.apply([Changes(mailbox_id, add=added) for mailbox_id, added in pairs.items()])
        if len(delivered) < len(batch):
            self._state.state.drop_deliveries(_pairs(batch, files.to_come))

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


def _pairs(batch: list[Item], delivered: Sequence[Delivered]) -> dict[int, list[Pair]]:
    """What of a batch is delivered, as pairs, by mailbox id."""
    mailbox_of = {id(incoming): delivery.mailbox.id for delivery, incoming in batch}
    pairs: dict[int, list[Pair]] = defaultdict(list)
    for d in delivered:
        if (mailbox_id := mailbox_of.get(id(d.incoming))) is not None:
            pair = Pair(d.incoming.uid, d.key, d.incoming.flags, d.size_octets, d.digest, info=d.info)
            pairs[mailbox_id].append(pair)
    return pairs


def _stage_into(files: list[Staged], batch: list[Item]) -> None:
    """Stage a batch; who is cancelled meanwhile finds the files in the list all the same."""
    files.append(stage([incoming for _, incoming in batch]))


@contextmanager
def _discarded_unless_kept() -> Iterator[list[Staged]]:
    """A list of staged files; those that are still in it at the end are removed."""
    files: list[Staged] = []
    try:
        yield files
    finally:
        for staged in files:
            staged.discard()


def batch_messages() -> int:
    """How many messages one batch may hold: each keeps a descriptor open, in every batch that is under way."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, min(BATCH_MESSAGES, (soft - DESCRIPTORS_KEPT) // (COMMITTERS + 2)))


def _octets(incoming: Incoming) -> int:
    return SPOOL_OCTETS if isinstance(incoming.raw, Spool) else len(incoming.raw)
