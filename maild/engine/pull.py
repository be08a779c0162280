"""The messages of one mailbox on their way to this disk, over as many sessions as lend a hand; newest first."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

import anyio
import anyio.to_thread

from maild.config import Account, Imap
from maild.core.errors import MaildError
from maild.core.model import Epoch, Fetched, MailboxName, ScanTable
from maild.core.ports import BodyWriter, Remote, RemoteBox
from maild.engine.propagate import Deliverer, Delivery, StateThread, Unpaired, adopt, same_content
from maild.engine.report import AccountReport
from maild.local.maildir import Incoming
from maild.local.spool import Spool

FETCH_MESSAGES = 500  # one FETCH asks for at most so many messages …
FETCH_OCTETS = 4 << 20  # … and about so many octets
WORTH_HELP_OCTETS = 8 << 20  # with less left, opening one more session takes longer than it saves


@dataclass(slots=True)
class Work:
    """What the mailboxes of one account's pass share."""

    account: Account
    imap: Imap
    remote: Remote
    state: StateThread
    deliverer: Deliverer
    report: AccountReport
    dry_run: bool
    pulls: list[Pull] = field(default_factory=list)


class Pull:
    """One mailbox being pulled. Sessions share its batches; what one of them took and lost, the next pass fetches."""

    def __init__(
        self, name: MailboxName, epoch: Epoch, wanted: ScanTable, delivery: Delivery, unpaired: Unpaired | None
    ) -> None:
        self.name = name
        self.epoch = epoch
        self._delivery = delivery
        self._unpaired = unpaired
        self.left_octets = wanted.octets
        self._batches = wanted.batches(FETCH_MESSAGES, FETCH_OCTETS)
        self._helpers = 0
        self._helped = anyio.Event()
        self._failure: MaildError | None = None

    @property
    def is_worth_help(self) -> bool:
        """Whether one more session would make a difference."""
        return self.left_octets > WORTH_HELP_OCTETS * (1 + self._helpers)

    async def run(self, work: Work, box: RemoteBox) -> None:
        """Fetch on the first session until no batch is left, and wait for the helpers."""
        work.pulls.append(self)
        try:
            await self._fetch(work, box)
        finally:
            work.pulls.remove(self)
            with anyio.CancelScope(shield=True):
                while self._helpers:
                    self._helped = anyio.Event()
                    await self._helped.wait()
        if self._failure is not None:
            raise self._failure

    async def help(self, work: Work) -> None:
        """Fetch over one more session. What goes wrong is raised by `run`, which answers for the mailbox."""
        self._helpers += 1
        try:
            async with work.remote.visit(self.name, self.epoch) as box:
                await self._fetch(work, box)
        except MaildError as exc:
            self._failure = self._failure or exc
        finally:
            self._helpers -= 1
            self._helped.set()

    async def _fetch(self, work: Work, box: RemoteBox) -> None:
        spools: set[Spool] = set()

        def open_body(size_octets: int) -> BodyWriter:
            spool = self._delivery.maildir.spool(size_octets)
            spools.add(spool)
            return spool

        try:
            stream = cast("AsyncGenerator[Fetched]", box.fetch(self._batches, open_body))
            async with aclosing(stream):
                async for fetched in stream:
                    await self._take(work, fetched, spools)
        finally:
            for spool in spools:
                spool.discard()

    async def _take(self, work: Work, fetched: Fetched, spools: set[Spool]) -> None:
        raw = cast("bytes | bytearray | Spool", fetched.raw)
        octets = raw.size_octets if isinstance(raw, Spool) else len(raw)
        self.left_octets -= octets
        work.report.done_octets += octets
        if self._unpaired is not None and await self._is_adopted(work, self._unpaired, fetched):
            return
        incoming = Incoming(self._delivery.maildir, fetched.uid, fetched.flags, fetched.date_s, raw)
        await work.deliverer.put(self._delivery, incoming)
        if isinstance(raw, Spool):
            spools.discard(raw)

    async def _is_adopted(self, work: Work, unpaired: Unpaired, fetched: Fetched) -> bool:
        """Whether a file without a pair holds just this message: then the pair is all that was missing."""
        if not unpaired.entries:
            return False
        key = await anyio.to_thread.run_sync(same_content, unpaired, fetched)
        if key is None or key not in unpaired.entries:
            return False
        matched, flags = {fetched.uid: key}, {fetched.uid: fetched.flags}
        await work.state.run(adopt, work.state.state, self._delivery.mailbox, unpaired, matched, flags)
        work.report.mailbox(self.name).adopted += 1
        work.report.done_messages += 1
        return True
