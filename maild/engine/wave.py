"""The messages of one drain on their way: claimed, begun, settled, each durable before what follows from it.

Several connections work on one wave; what they have to record at one time is made durable together.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from maild.core import outgoing
from maild.core.errors import LocalError, MaildError
from maild.core.outgoing import Item, Reply, State, Submission, Verdict, Verdicts
from maild.engine.aftermath import Aftermath
from maild.local.outbox import Outbox

CLAIMED_AHEAD = 16  # in all; a message that is claimed cannot be cancelled
READ_AHEAD_OCTETS = 1 << 17  # a bigger message is not read before the server wants it


@dataclass(slots=True, eq=False)
class _Page:
    """Items that are recorded together; `failure` is why that was not possible. The attempt at those `over` is over."""

    items: list[Item] = field(default_factory=list)
    over: list[Item] = field(default_factory=list)
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
    _texts: dict[str, bytes] = field(default_factory=dict)  # read ahead
    _page: _Page = field(default_factory=_Page)  # the next to be recorded
    _is_recording: bool = False
    _claiming: anyio.Lock = field(default_factory=anyio.Lock)

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
        """The next message that is claimed; before there is none left, the next ones are being claimed."""
        if len(self._ready) <= CLAIMED_AHEAD // 2 and self._due and not self._claiming.statistics().locked:
            self.tasks.start_soon(self._claim_ahead)
        return self._ready.popleft() if self._ready else None

    async def begin_body(self, submission: Submission, refused: Verdicts) -> bytes | Reply:
        """The message, when it is recorded that its body is about to be sent, for all but those refused.

        Or why it cannot be read, which holds up no other.
        """
        text = self._texts.pop(submission.id, None)
        if text is None:
            try:
                text = await anyio.to_thread.run_sync(self.outbox.text, submission.id)
            except LocalError as exc:
                return Reply(0, exc.text)
        item = outgoing.body_begun(self._claimed[submission.id], refused)
        page = self._add(item)
        await page.done.wait()
        if page.failure is not None:
            raise page.failure
        self._claimed[item.id] = item
        return text

    def settle(self, submission: Submission, verdicts: Verdicts) -> None:
        """What became of a message: recorded at once, and before another body begins on its connection."""
        item = self._claimed.pop(submission.id)
        self._texts.pop(submission.id, None)
        self.counts.update(verdict.state for verdict in verdicts.values())
        settled = self.aftermath.judged(outgoing.settled(item, verdicts, self.clock()))
        self._add(settled).over.append(settled)

    async def let_go(self) -> None:
        """At the end of the drain: what is claimed and was not sent is as before, what may have been sent uncertain."""
        await self._record()
        left = [outgoing.interrupted(item, self.clock()) for item in self._claimed.values()]
        self._claimed.clear()
        self._texts.clear()
        self._ready.clear()
        if left:
            await anyio.to_thread.run_sync(self.outbox.record, left)

    # -- inside

    async def _claim_ahead(self) -> None:
        async with self._claiming:
            if len(self._ready) <= CLAIMED_AHEAD // 2:
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

        def take_in_hand() -> tuple[list[Item], dict[str, Verdict]]:
            items = self.outbox.claim(list(wanted), claimed)
            return items, {item.id: verdict for item in items if (verdict := self._unreadable(item)) is not None}

        items, unreadable = await anyio.to_thread.run_sync(take_in_hand)
        self._claimed.update((item.id, item) for item in items)
        for item in items:
            submission = outgoing.submission(item)
            if item.id not in unreadable:
                self._ready.append(submission)
            else:
                self.settle(submission, dict.fromkeys(submission.recipients, unreadable[item.id]))

    def _unreadable(self, item: Item) -> Verdict | None:
        """Why a message cannot be sent; None if it can, and if it is small it has been read. Blocks."""
        if not self.outbox.has_text(item.id):
            return Verdict("failed", Reply(0, f"the message's file {item.id}.eml is gone from the outbox"))
        if item.size_octets > READ_AHEAD_OCTETS:
            return None
        try:
            self._texts[item.id] = self.outbox.text(item.id)
        except LocalError as exc:
            return Verdict("deferred", Reply(0, exc.text))
        return None

    def _add(self, item: Item) -> _Page:
        """Have it recorded with whatever else is waiting."""
        page = self._page
        page.items.append(item)
        if not self._is_recording:
            self._is_recording = True
            self.tasks.start_soon(self._record)
        return page

    async def _record(self) -> None:
        """Make durable all that is to be recorded, page after page."""
        self._is_recording = True
        try:
            while self._page.items:
                page, self._page = self._page, _Page()
                await self._write(page)
        finally:
            self._is_recording = False

    async def _write(self, page: _Page) -> None:
        """After an error other than ours nobody is told that a page is done: that ends the drain."""
        try:
            await anyio.to_thread.run_sync(self.outbox.note, page.items)
        except MaildError as exc:
            page.failure = exc
            page.done.set()
            raise
        except BaseException:
            self._page.items[:0], self._page.over[:0] = page.items, page.over
            raise
        page.done.set()
        for item in page.over:
            self.aftermath.add(item)


def only_ours(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of our errors in a group that holds nothing else; a fault in maild is the group as it is."""
    ours, others = group.split(MaildError)
    first: BaseException | None = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return group if others is not None or first is None else first
