"""The messages of one drain on their way: claimed, announced, settled, each durable before what follows from it.

Several connections work on one wave; what they have to record at one time is made durable together.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from maild.core import outgoing
from maild.core.errors import MaildError
from maild.core.outgoing import Item, Reply, State, Submission, Verdict, Verdicts
from maild.engine.aftermath import Aftermath
from maild.local.outbox import Outbox

CLAIMED_AHEAD = 16  # in all; a message that is claimed cannot be cancelled
ANNOUNCED_AHEAD = 4  # in all, beside those on the wire
SMALL_OCTETS = 1 << 20  # a bigger message is not read ahead


@dataclass(slots=True, eq=False)
class _Change:
    """An item to be recorded; `failure` is why that was not possible. `is_over`: its attempt has ended with it."""

    item: Item
    is_over: bool = False
    failure: MaildError | None = None


@dataclass(slots=True, eq=False)
class _Announcement:
    """That a body is about to be sent: recorded, and the message read, when `done`; `failure` is why that cannot be."""

    item: Item
    text: bytes = b""
    failure: MaildError | None = None
    done: anyio.Event = field(default_factory=anyio.Event)


@dataclass(slots=True)
class Wave:
    """Which messages are due, which are claimed. `find_due` looks for what has become due meanwhile.

    Everything here raises LocalError where the disk does not do as it should; then the drain ends.
    """

    outbox: Outbox
    aftermath: Aftermath
    counts: Counter[State]
    find_due: Callable[[], Awaitable[Sequence[Item]]]
    clock: Callable[[], float]
    tasks: TaskGroup = field(init=False)  # that of the connections, once it is open
    _seen: set[str] = field(default_factory=set)
    _due: deque[Item] = field(default_factory=deque)
    _ready: deque[Submission] = field(default_factory=deque)
    _claimed: dict[str, Item] = field(default_factory=dict)  # and not settled
    _announced: dict[str, _Announcement] = field(default_factory=dict)  # and not begun
    _changes: list[_Change] = field(default_factory=list)
    _claiming: anyio.Lock = field(default_factory=anyio.Lock)
    _recording: anyio.Lock = field(default_factory=anyio.Lock)

    def add(self, items: Iterable[Item]) -> None:
        """More that is due. What was tried once in this wave is not tried again in it."""
        for item in items:
            if item.id not in self._seen:
                self._seen.add(item.id)
                self._due.append(item)

    async def has_more(self) -> bool:
        """Whether `take` will give something; claims the next ones, and looks for new ones, if it would not."""
        if self._ready:
            return True
        async with self._claiming:
            if not self._ready and not self._due:
                self.add(await self.find_due())
            while not self._ready and self._due:
                await self._claim()
        return bool(self._ready)

    def take(self) -> Submission | None:
        """The next message that is claimed."""
        return self._ready.popleft() if self._ready else None

    def announce(self, submission: Submission) -> None:
        """The envelope is on its way: record meanwhile that the body follows, and read it. Has the next ones claimed.

        What a crash leaves from here on is uncertain, though the body may not have been begun. The next small ones are
        announced in the same write: on a fast line the disk is what takes time.
        """
        self._announce(submission)
        for following in islice(self._ready, ANNOUNCED_AHEAD):
            if following.size_octets <= SMALL_OCTETS:
                self._announce(following)
        if len(self._ready) < CLAIMED_AHEAD // 2 and self._due and not self._claiming.statistics().locked:
            self.tasks.start_soon(self._claim_ahead)

    def _announce(self, submission: Submission) -> None:
        if submission.id in self._announced:
            return
        announced = _Announcement(outgoing.body_begun(self._claimed[submission.id], {}))
        self._announced[submission.id] = announced
        change = _Change(announced.item)
        self._changes.append(change)
        self.tasks.start_soon(self._carry_out, announced, change)

    async def begin_body(self, submission: Submission, refused: Verdicts) -> bytes:
        """The message, when it is recorded that its body is about to be sent, for all but those refused."""
        announced = self._announced.pop(submission.id)
        await announced.done.wait()
        if announced.failure is not None:
            raise announced.failure
        item = outgoing.body_begun(self._claimed[submission.id], refused)
        if refused:
            await self._record(item)
        self._claimed[item.id] = item
        return announced.text

    async def _carry_out(self, announced: _Announcement, change: _Change) -> None:
        try:
            await self._write_down(change)
            announced.text = await anyio.to_thread.run_sync(self.outbox.text, announced.item.id)
        except MaildError as exc:
            announced.failure = exc
        announced.done.set()  # not after any other error: that ends the drain, and nothing must be sent

    def settle(self, submission: Submission, verdicts: Verdicts) -> None:
        """What became of a message: recorded at once, where another body is about to begin in one write with it."""
        item = self._claimed.pop(submission.id)
        self._announced.pop(submission.id, None)
        self.counts.update(verdict.state for verdict in verdicts.values())
        settled = outgoing.settled(item, verdicts, self.clock())
        self._changes.append(_Change(self.aftermath.judged(settled), is_over=True))
        self.tasks.start_soon(self._write_down)

    async def let_go(self) -> None:
        """At the end of the drain: what is claimed and was not sent is as before, what may have been sent uncertain."""
        left = [outgoing.interrupted(item, self.clock()) for item in self._claimed.values()]
        self._claimed.clear()
        self._announced.clear()
        self._ready.clear()
        self._changes.extend(_Change(item, is_over=True) for item in left)
        await self._write_down()

    async def _claim_ahead(self) -> None:
        async with self._claiming:
            await self._claim()

    async def _claim(self) -> None:
        """The next due messages. One that was cancelled or held in the meantime is not among them."""
        batch = [self._due.popleft() for _ in range(min(CLAIMED_AHEAD, len(self._due)))]
        wanted = {item.id: item for item in batch}
        now_s = self.clock()

        def claimed(item: Item) -> Item | None:
            seen = wanted[item.id]
            addresses = item.due(now_s, everything=seen.next_s > now_s)
            return outgoing.claimed(item, addresses) if addresses else None

        for item in await anyio.to_thread.run_sync(self.outbox.claim, list(wanted), claimed):
            self._claimed[item.id] = item
            submission = outgoing.submission(item)
            if self.outbox.has_text(item.id):
                self._ready.append(submission)
            else:
                gone = Verdict("failed", Reply(0, f"the message's file {item.id}.eml is gone from the outbox"))
                self.settle(submission, dict.fromkeys(submission.recipients, gone))

    async def _record(self, item: Item) -> None:
        """Durable on return."""
        change = _Change(item)
        self._changes.append(change)
        await self._write_down(change)

    async def _write_down(self, awaited: _Change | None = None) -> None:
        """Make durable all that is to be recorded; whoever comes first writes for those who came meanwhile."""
        async with self._recording:
            batch, self._changes = self._changes, []
            if batch:
                await self._write(batch)
        if awaited is not None and awaited.failure is not None:
            raise awaited.failure

    async def _write(self, batch: Sequence[_Change]) -> None:
        try:
            await anyio.to_thread.run_sync(self.outbox.record, [change.item for change in batch])
        except MaildError as exc:
            for change in batch:
                change.failure = exc
            raise
        for change in batch:
            if change.is_over:
                self.aftermath.add(change.item)


def only_ours(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of our errors in a group that holds nothing else; a fault in maild is the group as it is."""
    ours, others = group.split(MaildError)
    first: BaseException | None = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return group if others is not None or first is None else first
