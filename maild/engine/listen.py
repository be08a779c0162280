"""Who tells an account's owner to look again: its server, by push, and this disk.

Both begin once a pass has gone well, and end when one fails: what keeps passes from being made keeps push away too.
A server that was to tell and did not is found out by the passes that nobody asked for (`note_found`).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio
import structlog

from maild.config import Account
from maild.config.values import Layout
from maild.core.errors import MaildError
from maild.core.model import MailboxName
from maild.core.ports import Remote, Watch
from maild.engine.account import KeptAccount
from maild.engine.hooks import HookBoard
from maild.engine.supervise import Patience, keep_alive
from maild.remote.pace import Pace

ACCOUNTS_PER_S = 14.0  # that begin at one host; each needs two sessions, and whoever waits for one takes memory
MOST_AWAKE = 32  # accounts with state and a line for work open: 400 KiB, to be had again in some ms and 5 round trips
MISSED_S = 30.0  # after a look found something, the server has so long to say so too
RESCAN_S = 60.0  # where the system has too few watches
USEFUL_S = 60.0  # a watch that lasted so long was no failure

log = structlog.get_logger()


class Tree(Protocol):
    """Tells what changed below an account's Maildir: relative directories, None for anything (`local.watch`)."""

    @property
    def is_complete(self) -> bool:
        """Whether everything there is watched."""

    async def hint(self) -> frozenset[str] | None: ...


Hint = frozenset[MailboxName] | None
OpenTree = Callable[[Path, Layout], AbstractAsyncContextManager[Tree]]


@dataclass(slots=True)
class Common:
    """What the accounts of one daemon share. `open_tree` is None where changes on the disk are not told."""

    state_dir: Path
    hooks: HookBoard
    pace: Pace = field(default_factory=lambda: Pace(ACCOUNTS_PER_S))
    open_tree: OpenTree | None = None
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    passes: int = 0  # made so far
    _awake: dict[int, KeptAccount] = field(default_factory=dict)  # the one used last comes last

    async def note_use(self, kept: KeptAccount) -> None:
        """A pass of this account was made; the state of the one that had none for longest may be closed for it."""
        self.note_end(kept)
        self._awake[id(kept)] = kept
        if len(self._awake) > MOST_AWAKE:
            longest = next(iter(self._awake.values()))
            self.note_end(longest)
            await longest.sleep()

    def note_end(self, kept: KeptAccount) -> None:
        """The account is not kept any more, or its state not open."""
        self._awake.pop(id(kept), None)


class Listening:
    """One account's. `hear` is called for each hint of the server, `stir` for each of the disk, `wake` for all other
    reasons to look.

    `push` is the method in use, `lack` why it is less than it could be, `failure` what ended the last watch while
    there is no other.
    """

    def __init__(
        self,
        account: Account,
        common: Common,
        *,
        hear: Callable[[Hint], None],
        stir: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        self.push: str | None = None
        self.lack = ""
        self.failure: MaildError | None = None
        self.has_lost_push = False  # since the last pass that went well
        self._account = account
        self._common = common
        self._hear, self._stir, self._wake = hear, stir, wake
        self._patience = Patience(common.clock, common.chance)
        self._disk_patience = Patience(common.clock, common.chance)
        self._mailboxes: tuple[MailboxName, ...] = ()
        self._is_up = anyio.Event()  # a pass went well
        self._hearing = anyio.CancelScope()  # ends with the watch that there is
        self._watch: Watch | None = None
        self._told_at_s = float("-inf")
        self._doubt: asyncio.TimerHandle | None = None  # no task: a thousand accounts would have one for nothing

    # -- what the owner says

    def begin(self, mailboxes: tuple[MailboxName, ...] | None) -> None:
        """A pass went well; over these mailboxes, if over all."""
        self.has_lost_push = False
        if mailboxes is not None and mailboxes != self._mailboxes:
            self._mailboxes = mailboxes
            self._hearing.cancel()
        self._is_up.set()

    def end(self) -> None:
        """A pass failed: push is begun again only when one has gone well."""
        if self._is_up.is_set():
            self._is_up = anyio.Event()
        self._hearing.cancel()

    def hasten(self) -> None:
        """What kept push away may be over."""
        self._patience.reset()

    def probe(self) -> None:
        """The network or the clock has changed: see whether all is as it was."""
        if self._watch is not None:
            self._watch.probe()
        self._patience.reset()

    def note_found(self, mailboxes: Collection[str], since_s: float) -> None:
        """A pass that began at `since_s` without a hint found new messages in these."""
        watch = self._watch
        if watch is None or watch.mailboxes.isdisjoint(mailboxes) or self._doubt is not None:
            return
        self._doubt = asyncio.get_running_loop().call_later(MISSED_S, self._judge, watch, since_s)

    def _judge(self, watch: Watch, since_s: float) -> None:
        """Tell the watch of what it did not tell of."""
        self._doubt = None
        if self._told_at_s < since_s:
            watch.missed()

    # -- the server

    async def to_server(self, remote: Remote) -> None:
        """For ever."""
        name = self._account.name
        while True:
            await keep_alive("push", partial(self._watch_server, remote), self._patience, self._lost, account=name)

    async def _watch_server(self, remote: Remote) -> None:
        """Until other mailboxes are synchronised, or a pass fails."""
        imap = self._account.imap
        if imap is None:
            return
        await self._is_up.wait()
        self._hearing = anyio.CancelScope()
        idle = tuple(map(MailboxName, imap.idle_mailboxes))
        async with remote.watch(self._mailboxes, idle, imap.push) as watch:
            self.push, self.lack, self.failure = watch.method, watch.lack, None
            reason = watch.lack or None
            log.info("push.started", account=self._account.name, method=watch.method, reason=reason)
            self._watch = watch
            began_s = self._common.clock()
            self._hear(frozenset())  # what changed since the last pass
            try:
                with self._hearing:
                    while True:
                        hint = await watch.hint()
                        self._told_at_s = self._common.clock()
                        self._hear(hint)
            finally:
                self.push, self._watch = None, None
                if self._doubt is not None:
                    self._doubt.cancel()
                    self._doubt = None
                if self._common.clock() - began_s >= USEFUL_S:
                    self._patience.reset()

    def _lost(self, failure: MaildError | None) -> None:
        self.failure = failure
        self.has_lost_push = True
        self.end()
        self._wake()

    # -- the disk

    async def to_disk(self) -> None:
        """For ever, unless nothing is told of it."""
        if self._common.open_tree is None:
            return
        await self._is_up.wait()
        name = self._account.name
        await keep_alive("disk", self._watch_disk, self._disk_patience, lambda _: self._wake(), account=name)

    async def _watch_disk(self) -> None:
        opened, account = self._common.open_tree, self._account
        if opened is None:
            return
        async with opened(account.maildir, account.layout) as tree:
            if not tree.is_complete:
                hint = "raise fs.inotify.max_user_watches; until then the disk is looked at every minute"
                log.warning("watch.failed", account=account.name, reason="not everything can be watched", hint=hint)
            self._stir()  # what changed since the last pass
            while True:
                with anyio.move_on_after(math.inf if tree.is_complete else RESCAN_S):
                    await tree.hint()
                self._disk_patience.reset()
                self._stir()
