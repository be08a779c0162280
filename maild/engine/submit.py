"""Draining the outbox: one account's due messages, over as many connections as pay, each step recorded beforehand.

What this file keeps:
- a message is claimed before its envelope is sent, and it is recorded that its body follows before any of that is
  sent; so after a crash it is known which messages may have been submitted without an answer, and they are never
  doubled silently;
- what became of a message is durable before anything else is made of it: the copy for the Sent mailbox, the reports;
- time without a connection is no attempt: nothing is claimed before a session is open;
- a slow or refusing server holds up nobody but its own account.

The caller holds `Outbox.draining()` for as long as it drains. Times are wall-clock seconds since 1970 UTC.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from maild.config import Account, Config, Smtp
from maild.core import outgoing
from maild.core.backoff import reconnect_delay_s
from maild.core.errors import ConfigError, ConnectionLost, LocalError, MaildError, ProtocolViolation
from maild.core.outgoing import Item, Reply, State, Submission, Verdict
from maild.engine.aftermath import AGAIN_S, Aftermath
from maild.engine.doubts import FindSent, looking, settle_doubts
from maild.engine.own_copies import wants_copy
from maild.engine.wave import Wave, only_ours
from maild.local.outbox import Outbox
from maild.local.sent import has_readers_copy, sent_directory
from maild.remote.auth import Credentials
from maild.remote.smtp import RFC_5321, Offline, SessionRefused, Timeouts
from maild.remote.submission import SmtpSession

CONNECTIONS = 4  # at most, to one server: providers count them
PER_CONNECTION = 8  # messages that pay for the round trips of one more

TRIED: tuple[State, ...] = ("sent", "deferred", "failed", "uncertain")

log = structlog.get_logger()


@dataclass(slots=True)
class Drained:
    """What became of an account's outbox.

    `counts` are recipients by the state their attempt came to. `error` is what kept the account from submitting, and
    `next_s` when to drain again, None for not before something changes: a new message, the config, the network.
    """

    account: str
    counts: Counter[State] = field(default_factory=Counter)
    error: MaildError | None = None
    next_s: float | None = None

    @property
    def is_well(self) -> bool:
        """Whatever was tried has been sent."""
        return self.error is None and not self.counts.keys() - {"sent"}

    @property
    def is_nothing(self) -> bool:
        """Nothing was tried, and nothing kept it from being tried."""
        return self.error is None and not self.counts

    @property
    def in_words(self) -> str:
        """For example `12 sent, 1 deferred`, of recipients."""
        return ", ".join(f"{count} {state}" for state, count in sorted(self.counts.items())) or "nothing sent"


def told(drained: Drained) -> dict[str, object]:
    """Its JSON form: recipients by what became of them in this drain."""
    counts = {str(state): drained.counts.get(state, 0) for state in TRIED}
    return {"ok": drained.is_well, "error": str(drained.error) if drained.error else None, **counts}


class Submitter:
    """One account's way out of the outbox. Keep it as long as the account: it knows of refused secrets and failures.

    One drain at a time. `find_sent` tells whether the server's Sent mailbox has a message; it is asked only where the
    server keeps its own copies. `on_failure` is called in a worker thread, when a failure has been reported.
    """

    def __init__(
        self,
        account: Account,
        outbox: Outbox,
        state_dir: Path,
        *,
        find_sent: FindSent | None = None,
        on_failure: Callable[[Item], None] | None = None,
        clock: Callable[[], float] = time.time,
        timeouts: Timeouts = RFC_5321,
    ) -> None:
        if account.smtp is None:
            raise ConfigError([f'account "{account.name}" has no smtp section, so it cannot send'])
        self.account = account
        self._smtp: Smtp = account.smtp
        self._outbox = outbox
        self._find_sent = find_sent
        self._clock = clock
        self._timeouts = timeouts
        self._credentials = Credentials(account.smtp, account.name)
        self._state = state_dir / f"{account.name}.sqlite"
        self._aftermath = Aftermath(account, account.smtp, outbox, self._state, on_failure, find_sent, clock)
        self._failures = 0
        self._first_failure_s = 0.0
        self._is_stopping = False

    def stop(self) -> None:
        """Let the running drain end when the messages on the wire are answered for."""
        self._is_stopping = True

    async def has_other_secret(self) -> bool:
        """Whether the file of a refused password holds another one by now; other sources are not asked this often."""
        if not self._credentials.is_in_a_file:
            return False
        try:
            return await self._credentials.has_changed()
        except MaildError:
            return False  # the next drain says why

    async def drain(self, *, everything: bool = False) -> Drained:
        """Submit what is due, or with `everything` all that waits and is not held; also what arrives meanwhile.

        Never raises a MaildError: it is in the result.
        """
        if not self._outbox.is_ours:
            raise RuntimeError("only within Outbox.draining()")
        self._is_stopping = False
        drained = Drained(self.account.name)
        try:
            if due := self._due(await self._in_order(everything=everything), everything=everything):
                await self._submit(due, drained, everything=everything)
        except MaildError as exc:
            drained.error = exc
            log.warning("outbox.stopped", account=self.account.name, reason=exc.text, hint=exc.hint)
        self._count_failure(drained)
        try:
            drained.next_s = await self._wakes_at(drained)
        except MaildError as exc:  # it is told once
            drained.error, drained.next_s = drained.error or exc, self._clock() + AGAIN_S
        if drained.counts:
            counts = {str(state): count for state, count in drained.counts.items()}
            log.bind(**counts).info("outbox.drained", account=self.account.name)
        return drained

    # -- what there is to do

    async def _items(self) -> list[Item]:
        contents = await anyio.to_thread.run_sync(self._outbox.contents)
        return [item for item in contents.items if item.account == self.account.name]

    def _due(self, items: Sequence[Item], *, everything: bool) -> list[Item]:
        now_s = self._clock()
        return [item for item in items if not item.phase and item.due(now_s, everything=everything)]

    async def _in_order(self, *, everything: bool) -> list[Item]:
        """All items, after seeing to what earlier drains have left."""
        items = await self._items()
        if left := [item for item in items if item.phase or self._outbox.is_in_hand(item.id)]:
            # A failing disk left their attempts open: no other drain of this account runs now.
            ended = [outgoing.interrupted(item, self._clock()) if item.phase else item for item in left]
            await anyio.to_thread.run_sync(self._outbox.record, ended)
            items = await self._items()
        # That a server was only found to keep its own proves nothing: a reader may have put a copy there itself.
        find = None if wants_copy(self._smtp) else self._find_sent
        if find is not None and any(item.with_state("uncertain") for item in items):
            await settle_doubts(self.account.name, self._outbox, items, find, self._is_readers, self._clock())
            items = await self._items()
        return await self._items() if await self._aftermath.catch_up(items, at_once=everything) else items

    def _is_readers(self, message_id: str) -> bool:
        account = self.account
        where = sent_directory(account.maildir, account.layout, self._state, None)
        return has_readers_copy(account.maildir, where, message_id)

    async def _wakes_at(self, drained: Drained) -> float | None:
        """When there is something to do again. A refused login waits for a change, a missing network for a while."""
        times: list[float] = [at for item in await self._items() if (at := item.wakes_at()) is not None]
        times += [self._aftermath.again_s] if self._aftermath.again_s is not None else []
        times += [self._clock() + AGAIN_S] if isinstance(drained.error, LocalError) else []
        if not times or self._credentials.refused is not None:
            return None
        soonest_s = float(min(times))
        if drained.error is None:
            return soonest_s
        since_s = self._clock() - self._first_failure_s
        return max(soonest_s, self._clock() + reconnect_delay_s(self._failures, since_s, random.random))

    # -- submitting

    async def _submit(self, due: Sequence[Item], drained: Drained, *, everything: bool) -> None:
        if self._credentials.refused is not None and not await self._credentials.has_changed():
            raise self._credentials.refused

        async def find_due() -> list[Item]:
            return self._due(await self._items(), everything=everything)

        wave = Wave(self._outbox, self._aftermath, drained.counts, find_due, self._clock)
        wave.add(due)
        wanted = 1 if self._failures else min(CONNECTIONS, 1 + len(due) // PER_CONNECTION)
        refusals: list[MaildError] = []
        try:
            async with self._aftermath.running(), anyio.create_task_group() as workers:
                wave.tasks = workers
                for _ in range(wanted):
                    workers.start_soon(self._connect, wave, drained, refusals)
        except BaseExceptionGroup as group:
            raise only_ours(group) from group
        finally:
            with anyio.CancelScope(shield=True):
                await wave.let_go()
        if len(refusals) == wanted:
            await self._without_session(due, refusals[0], drained)

    async def _connect(self, wave: Wave, drained: Drained, refusals: list[MaildError]) -> None:
        """One connection. Where the server lets us have some, it does not matter that it refuses more."""
        try:
            session = await self._open()
        except MaildError as exc:
            refusals.append(exc)
            log.debug("session.refused", account=self.account.name, host=self._smtp.host, reason=exc.text)
            return
        await self._work(wave, session, drained)

    async def _without_session(self, due: Sequence[Item], refusal: MaildError, drained: Drained) -> None:
        """If there was a server and it would have no session, all that is due was an attempt at it."""
        drained.error = refusal
        if isinstance(refusal, SessionRefused):
            await self._defer(due, refusal.reply, drained)
        elif isinstance(refusal, ConnectionLost | ProtocolViolation) and not isinstance(refusal, Offline):
            await self._defer(due, Reply(0, refusal.text), drained)

    async def _open(self) -> SmtpSession:
        return await SmtpSession.open(self._smtp, self._credentials, self._timeouts)

    def _count_failure(self, drained: Drained) -> None:
        """How often in a row it did not go well, and since when: the longer, the longer it waits."""
        if drained.error is None:
            self._failures = 0
            return
        if not self._failures:
            self._first_failure_s = self._clock()
        self._failures += 1

    async def _defer(self, due: Sequence[Item], reply: Reply, drained: Drained) -> None:
        """The server's word about the session holds for each message that would have gone over it."""
        now_s = self._clock()

        def attempted(item: Item) -> Item | None:
            addresses = item.due(now_s, everything=True)
            deferred = {address: Verdict("deferred", reply) for address in addresses}
            return outgoing.settled(outgoing.claimed(item, addresses), deferred, now_s) if addresses else None

        items = await anyio.to_thread.run_sync(self._outbox.claim, [item.id for item in due], attempted)
        await anyio.to_thread.run_sync(self._outbox.record, items)
        for item in items:
            drained.counts.update(r.state for r in item.recipients if r.state in ("deferred", "failed"))
        await self._aftermath.catch_up(items)

    async def _work(self, wave: Wave, session: SmtpSession, drained: Drained) -> None:
        """Submit until nothing is left; a session that ends after it has been of use is opened again."""
        while True:
            was_of_use = await self._use(wave, session)
            if self._is_stopping or not session.is_over or not await wave.has_more():
                return
            if not was_of_use:
                drained.error = ConnectionLost(f"{self._smtp.host} ended the session before it took a message")
                return
            try:
                session = await self._open()
            except MaildError as exc:
                drained.error = exc
                return

    async def _use(self, wave: Wave, session: SmtpSession) -> bool:
        """Whether the session took a message before it ended."""
        was_of_use = False
        try:
            while not session.is_over and not self._is_stopping and await wave.has_more():
                async with aclosing(session.submit(partial(self._take, wave), wave.begin_body)) as answers:
                    async for submission, verdicts in answers:
                        was_of_use |= any(verdict.state in ("sent", "failed") for verdict in verdicts.values())
                        wave.settle(submission, verdicts)
            await session.close()
        finally:
            session.drop()
        return was_of_use or session.is_given_up

    def _take(self, wave: Wave) -> Submission | None:
        return None if self._is_stopping else wave.take()


async def submit_all(
    config: Config,
    outbox: Outbox,
    *,
    everything: bool = False,
    only: Collection[str] = (),
) -> dict[str, Drained]:
    """Drain the outbox of all accounts, or of `only` some, side by side, once. Raises StateBusy if another maild does.

    Without `everything` only what is due. An account without anything in the outbox is not in the result.
    """
    results: dict[str, Drained] = {}

    async def drain(account: Account) -> None:
        async with looking(account) as find_sent:
            submitter = Submitter(account, outbox, config.state_dir, find_sent=find_sent)
            results[account.name] = await submitter.drain(everything=everything)

    with outbox.draining():
        waiting = {item.account for item in outbox.contents().items if _is_left(item)}
        async with anyio.create_task_group() as drains:
            for name in sorted(waiting if not only else waiting & set(only)):
                account = config.accounts.get(name)
                if account is not None and account.smtp is not None:
                    drains.start_soon(drain, account)
                else:
                    results[name] = Drained(name, error=_no_account(name))
    return results


def _is_left(item: Item) -> bool:
    """Whether there is anything to do about it, now or later; what has failed and was told stays for a person."""
    is_unfinished = item.state == "sent" or bool(outgoing.owes_report(item))
    return item.wakes_at() is not None or not item.is_over or is_unfinished


def _no_account(name: str) -> ConfigError:
    return ConfigError([f'messages wait for account "{name}", which has no smtp section in the config'])
