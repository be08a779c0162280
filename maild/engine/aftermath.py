"""What follows when it is recorded what became of a message: the copy in the Sent mailbox, reports, and forgetting it.

Each step can be cut off by a crash and is then made again: what it delivers has a name that is known before, and is
looked for. A disk that refuses leaves the message in the outbox as it is; the next drain goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from maild.config import Account, Smtp
from maild.core import outgoing
from maild.core.errors import LocalError
from maild.core.head import divide
from maild.core.names import directory
from maild.core.notices import Occasion, delay_notice, failure_report
from maild.core.outgoing import Item
from maild.engine.accept import date_field
from maild.engine.doubts import FindSent
from maild.engine.own_copies import OwnCopies, wants_copy
from maild.local.once import Letter, check_mounted, deliver_once, find_keys, letter_key
from maild.local.outbox import Outbox
from maild.local.sent import sent_directory

BATCH = 32
AGAIN_S = 60.0  # after a failure on this disk
GATHER_S = (
    0.1  # for so long the first waits for more, so that many share their fsyncs; at the end of a drain none waits
)

log = structlog.get_logger()


class Aftermath:
    """One account's. `again_s`: when that is tried again which could not be delivered on this disk, in seconds UTC."""

    def __init__(
        self,
        account: Account,
        smtp: Smtp,
        outbox: Outbox,
        state: Path,
        on_failure: Callable[[Item], None] | None,
        find_sent: FindSent | None,
        clock: Callable[[], float],
    ) -> None:
        self.again_s: float | None = None
        self.own_copies = OwnCopies(account, smtp, outbox, find_sent, clock)
        self._account = account
        self._smtp = smtp
        self._outbox = outbox
        self._state = state
        self._on_failure = on_failure
        self._clock = clock
        self._queue: MemoryObjectSendStream[Item] | None = None

    def judged(self, item: Item) -> Item:
        """The item with its copy done, where none is wanted."""
        return item if item.copy != "begun" or wants_copy(self._smtp) else replace(item, copy="done")

    def add(self, item: Item) -> None:
        """See to a message of which it has just been recorded what became of it."""
        if self._queue is not None:
            self._queue.send_nowait(item)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the block lasts, `add` has effect; at its end all is done."""
        queue, items = anyio.create_memory_object_stream[Item](float("inf"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._work, items)
            try:
                self._queue = queue
                yield
            finally:
                self._queue = None
                queue.close()

    async def catch_up(self, items: Sequence[Item], *, at_once: bool = False) -> bool:
        """See to what an earlier drain could not, or did not live to; whether there was anything.

        What failed waits until `again_s`, unless it is to be tried `at_once`: each try changes the outbox, which wakes
        whoever watches it.
        """
        if self.again_s is not None and self._clock() < self.again_s and not at_once:
            return False
        self.again_s = None
        left = [item.id for item in items if not item.phase and self._is_due(item)]
        for at in range(0, len(left), BATCH):
            batch = await anyio.to_thread.run_sync(self._outbox.claim, left[at : at + BATCH], self._if_due)
            await self._see_to(batch, may_be_there=True)
        return bool(left)

    def _if_due(self, item: Item) -> Item | None:
        """The item as it is now that nobody else changes it."""
        return self.judged(item) if self._is_due(item) else None

    def _is_due(self, item: Item) -> bool:
        is_reported = not outgoing.owes_report(item) and not outgoing.owes_delay_notice(item, self._clock())
        is_kept = item.is_over and item.state == "failed"  # in failed/, until it is retried or cancelled
        return item.copy == "begun" or not is_reported or (item.is_over and not is_kept)

    async def _work(self, items: MemoryObjectReceiveStream[Item]) -> None:
        with items:
            async for first in items:
                batch = [first]
                with anyio.move_on_after(GATHER_S), suppress(anyio.EndOfStream):
                    while len(batch) < BATCH:
                        batch.append(await items.receive())
                await self._see_to(batch, may_be_there=False)

    async def _see_to(self, batch: Sequence[Item], *, may_be_there: bool) -> None:
        if self.own_copies.are_found or not may_be_there:
            batch = await self.own_copies.sorted_out(batch)
        failure = await self._tried(batch, may_be_there=may_be_there)
        if failure is not None and len(batch) > 1:  # one that cannot be read, say, must not hold up the others
            failures = [await self._tried([item], may_be_there=True) for item in batch]
            failure = next((one for one in failures if one is not None), None)
        if failure is not None:
            self.again_s = self._clock() + AGAIN_S
            log.warning("outbox.stopped", account=self._account.name, reason=failure.text, hint=failure.hint)
            with suppress(LocalError):  # the same, told once; what is in hand is put down by the next drain
                await anyio.to_thread.run_sync(self._outbox.record, [i for i in batch if self._outbox.is_in_hand(i.id)])

    async def _tried(self, batch: Sequence[Item], *, may_be_there: bool) -> LocalError | None:
        try:
            await anyio.to_thread.run_sync(self._carry_out, batch, may_be_there)
        except LocalError as exc:
            return exc
        return None

    def _carry_out(self, batch: Sequence[Item], may_be_there: bool) -> None:
        """In a thread: copies, reports, then what is known is written down or forgotten. All are in hand until then."""
        self._copy([item for item in batch if item.copy == "begun"], may_be_there)
        done = [replace(item, copy="done") if item.copy == "begun" else item for item in batch]
        done = [self._reported(item) for item in done]
        over = [item for item in done if item.is_over and item.state == "sent"]
        if over and (self.own_copies.are_found or not wants_copy(self._smtp)):
            self._outbox.remember([item.id for item in over], self._clock())
        self._outbox.remove([item.id for item in over])
        self._outbox.record([item for item in done if item not in over])

    # -- copies

    def _copy(self, items: Sequence[Item], may_be_there: bool) -> None:
        if not items:
            return
        letters = [self._letter(item) for item in items if self._outbox.has_text(item.id)]
        account = self._account
        check_mounted(account.maildir, self._state)
        if may_be_there:
            present = find_keys(account.maildir, account.layout, [letter.key for letter in letters])
            letters = [letter for letter in letters if letter.key not in present]
        if letters:
            relative = sent_directory(account.maildir, account.layout, self._state, self._smtp.sent_mailbox)
            deliver_once(account.maildir, relative, letters)

    def _letter(self, item: Item) -> Letter:
        """Where nobody will ask for the message again, its file itself: it has two names for a moment."""
        key = letter_key(item.id, item.created_s, "sent")
        is_over = item.is_over and item.state == "sent"
        return Letter(key, self._outbox.text_path(item.id) if is_over else self._outbox.text(item.id), is_seen=True)

    # -- reports

    def _reported(self, item: Item) -> Item:
        if failed := outgoing.owes_report(item):
            report = failure_report(item, failed, self._account.address, self._occasion(item, "failed"))
            self._tell(item, f"failed{item.attempts}", report)
            log.error("message.failed", account=self._account.name, item=item.id, reason=failed[0].reply)
            if self._on_failure is not None:
                self._on_failure(item)
            reported = (replace(r, is_reported=r.is_reported or r.state == "failed") for r in item.recipients)
            item = replace(item, recipients=tuple(reported))
        if outgoing.owes_delay_notice(item, self._clock()):
            notice = delay_notice(item, self._account.address, self._occasion(item, "delayed"))
            self._tell(item, "delayed", notice)
            item = replace(item, is_delay_told=True)
        return item

    def _tell(self, item: Item, role: str, octets: bytes) -> None:
        key = letter_key(item.id, item.created_s, role)
        letter = Letter(key, octets, may_be_there=True)
        check_mounted(self._account.maildir, self._state)
        deliver_once(self._account.maildir, directory(("INBOX",), self._account.layout), [letter])

    def _occasion(self, item: Item, role: str) -> Occasion:
        return Occasion(
            date=date_field(self._clock()),
            arrived=date_field(item.created_s),
            host=os.uname().nodename or "localhost",
            remote=self._smtp.host,
            boundary=f"maild-{item.id}-{role}-{item.attempts}",
            original_head=self._head(item),
        )

    def _head(self, item: Item) -> bytes:
        """That of a message; nothing of one that is gone or cannot be read, which is reported all the same."""
        try:
            text = self._outbox.text(item.id)
        except LocalError:
            return b""
        return b"".join(field.octets for field in divide(text).fields)
