"""One account's pass: which mailboxes, in which order, over how many sessions. The only owner of the account's state.

A mailbox whose mark in the listing is the one it had when it was last brought up to date is not opened at all. INBOX
goes first; sessions that run out of mailboxes help with the one that has most left.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from maild.config import Account
from maild.core.errors import ConfigError, ConnectionLost, MaildError, PlanRefused, ProtocolViolation, Scope
from maild.core.model import Listing, MailboxName, RemoteMailbox
from maild.engine.propagate import Deliverer, StateThread
from maild.engine.pull import Pull, Work
from maild.engine.report import AccountReport
from maild.engine.sync import MailboxPass, sync_mailbox
from maild.local.durable import disk_error
from maild.local.marker import check_root, mark_root
from maild.local.state import State
from maild.remote import open_remote

TRIES = 3  # of one mailbox, when the connection is lost on the way
RETRY_DELAY_S = 1.0

log = structlog.get_logger()


async def sync_account(
    account: Account, state_dir: Path, report: AccountReport, *, only: Sequence[str] = (), dry_run: bool = False
) -> None:
    """One pass over an account, told in `report`. `only` names mailboxes. Never raises a MaildError: it is reported."""
    started = time.monotonic()
    report.state = "connecting"
    log.debug("account.started", account=account.name)
    try:
        async with _opened(account, state_dir, report, dry_run=dry_run) as work:
            await _AccountPass(work).run(only)
    except MaildError as exc:
        _fail(account, report, exc)
    except BaseExceptionGroup as group:
        _fail(account, report, _only_ours(group))
    report.duration_s = time.monotonic() - started
    report.state = "ok" if report.ok else "error"
    _log_end(account, report)


def _fail(account: Account, report: AccountReport, exc: MaildError) -> None:
    report.error = str(exc)
    for mailbox in report.mailboxes.values():
        if mailbox.state == "syncing":
            mailbox.state, mailbox.error = "error", report.error
    log.error("account.failed", account=account.name, error=exc.text, hint=exc.hint)


def _only_ours(group: BaseExceptionGroup[BaseException]) -> MaildError:
    """The first of our errors in a group that holds nothing else; a fault in maild is raised as it is."""
    ours, others = group.split(MaildError)
    if others is not None or ours is None:
        raise group
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    if not isinstance(first, MaildError):
        raise group
    return first


def _log_end(account: Account, report: AccountReport) -> None:
    log.info(
        "account.finished",
        account=account.name,
        pulled=report.total("pulled"),
        adopted=report.total("adopted"),
        flags=report.total("flags"),
        deleted=report.total("deleted"),
        refused=report.total("refused"),
        skipped=report.total("skipped"),
        octets=report.done_octets,
        duration_s=round(report.duration_s, 3),
    )


@asynccontextmanager
async def _opened(account: Account, state_dir: Path, report: AccountReport, *, dry_run: bool) -> AsyncIterator[Work]:
    """State, disk and server of an account, closed again at the end."""
    if account.imap is None:
        raise ConfigError([f'account "{account.name}" has no imap section; this version pulls IMAP accounts only'])
    with _state_path(account, state_dir, dry_run=dry_run) as path:
        state = await anyio.to_thread.run_sync(State.open, path)
        remote = open_remote(account)
        try:
            thread = StateThread(state)
            await thread.run(check_root, account.maildir, state, dry_run)
            yield Work(account, account.imap, remote, thread, Deliverer(thread), report, dry_run)
            if not dry_run and any(report.total(counter) for counter in ("pulled", "adopted", "flags", "deleted")):
                await thread.run(mark_root, account.maildir, state)
        finally:
            with anyio.CancelScope(shield=True):
                await remote.aclose()
                await anyio.to_thread.run_sync(state.close)


@contextmanager
def _state_path(account: Account, state_dir: Path, *, dry_run: bool) -> Iterator[Path]:
    """Where the account's state is. A dry run that finds none begins one that is thrown away."""
    path = state_dir / f"{account.name}.sqlite"
    if not dry_run or path.exists():
        yield path
        return
    try:
        scratch = TemporaryDirectory(prefix="maild-")
    except OSError as exc:
        raise disk_error(exc, "make a directory in", gettempdir()) from exc
    with scratch as directory:
        yield Path(directory) / path.name


class _AccountPass:
    """The mailboxes still to be done and who does them."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._left: deque[tuple[RemoteMailbox, int]] = deque()
        self._busy = 0
        self._lost_in_a_row = 0  # mailboxes that lost their connection at every try, since one was done
        self._moved = anyio.Event()

    async def run(self, only: Sequence[str]) -> None:
        work = self._work
        is_first = not any(row.cursor for row in (await work.state.run(work.state.state.mailboxes)).values())
        async with anyio.create_task_group() as openers:
            for _ in range(work.imap.connections - 1 if is_first else 0):
                openers.start_soon(work.remote.prepare)  # a first pass needs them all, and logging in takes its time
            await self._run(only)
            openers.cancel_scope.cancel()

    async def _run(self, only: Sequence[str]) -> None:
        work = self._work
        listing = await work.remote.listing()
        work.report.state = "syncing"
        work.listed = frozenset(mailbox.name for mailbox in listing.mailboxes)
        self._left.extend((mailbox, 1) for mailbox in await self._to_visit(listing, only))
        self._note_unusable(listing)
        async with work.deliverer.running(), anyio.create_task_group() as finishers, anyio.create_task_group() as tasks:
            for _ in range(work.imap.connections if self._left else 0):
                tasks.start_soon(self._work_on, finishers)

    async def _to_visit(self, listing: Listing, only: Sequence[str]) -> list[RemoteMailbox]:
        work = self._work
        if missing := sorted(set(only) - {m.name for m in listing.mailboxes}):
            names = ", ".join(missing)
            raise PlanRefused(f"{work.account.name}: the server has no such mailbox among those synchronised: {names}")
        chosen = [m for m in listing.mailboxes if not only or m.name in only]
        changed = await work.state.run(self._changed, chosen)
        work.report.unchanged = len(chosen) - len(changed)
        return sorted(changed, key=lambda m: m.name != "INBOX")

    def _changed(self, mailboxes: list[RemoteMailbox]) -> list[RemoteMailbox]:
        """Those that have to be opened: the mark moved, or something was left out that may come now."""
        state, limit = self._work.state.state, self._work.imap.max_message_size_octets
        known = state.mailboxes()
        visit: list[RemoteMailbox] = []
        for mailbox in mailboxes:
            row = known.get(mailbox.name)
            is_same = row is not None and mailbox.mark is not None and row.mark == mailbox.mark
            if row is None or not is_same:
                visit.append(mailbox)
                continue
            skipped = state.skipped(row.id).values()
            self._work.report.mailbox(mailbox.name).skipped = len(skipped)
            self._work.report.mailbox(mailbox.name).state = "ok"
            if any(message.size_octets <= limit for message in skipped):
                visit.append(mailbox)
        return visit

    def _note_unusable(self, listing: Listing) -> None:
        for name, reason in listing.unusable.items():
            mailbox = self._work.report.mailbox(name)
            mailbox.state, mailbox.error = "error", reason
            log.warning("mailbox.skipped", account=self._work.account.name, mailbox=name, reason=reason)

    async def _work_on(self, finishers: TaskGroup) -> None:
        """Take mailboxes while there are any, then help, then leave when nobody can need help any more."""
        while True:
            if self._left:
                mailbox, attempt = self._left.popleft()
                self._busy += 1
                try:
                    await self._sync(mailbox, attempt, finishers)
                finally:
                    self._busy -= 1
                    self._moved.set()
            elif (pull := self._neediest()) is not None:
                await pull.help(self._work)
            elif not self._busy:
                return
            else:
                self._moved = anyio.Event() if self._moved.is_set() else self._moved
                with anyio.move_on_after(0.05):  # how fast the disk keeps up is looked at again
                    await self._moved.wait()

    def _neediest(self) -> Pull | None:
        """The pull with most left, if the disk could take messages faster than they arrive."""
        if self._work.deliverer.is_saturated:
            return None
        worth = [pull for pull in self._work.pulls if pull.is_worth_help]
        return max(worth, key=lambda pull: pull.left_octets, default=None)

    async def _sync(self, mailbox: RemoteMailbox, attempt: int, finishers: TaskGroup) -> None:
        try:
            await sync_mailbox(self._work, mailbox, lambda this: finishers.start_soon(self._finish, this))
            self._lost_in_a_row = 0
        except (ConnectionLost, ProtocolViolation) as exc:
            if attempt >= TRIES:
                self._lost_in_a_row += 1
                if self._lost_in_a_row >= TRIES:
                    raise  # nothing gets through any more
                await self._note_failure(mailbox.name, exc)
                return
            log.warning("session.retried", account=self._work.account.name, mailbox=mailbox.name, reason=exc.text)
            await anyio.sleep(RETRY_DELAY_S * attempt)
            self._left.appendleft((mailbox, attempt + 1))
        except MaildError as exc:
            await self._note_failure(mailbox.name, exc)

    async def _finish(self, this: MailboxPass) -> None:
        try:
            await this.finish()
        except MaildError as exc:
            await self._note_failure(this.report.name, exc)

    async def _note_failure(self, name: str, exc: MaildError) -> None:
        """One mailbox's failure stays its own; what concerns the account ends the pass.

        A broken response ends its session, as a message does that makes the server hang up; the other mailboxes get
        another session.
        """
        if exc.scope not in {Scope.MAILBOX, Scope.MESSAGE} and not isinstance(exc, ProtocolViolation | ConnectionLost):
            raise exc
        report = self._work.report.mailbox(name)
        report.state = "refused" if isinstance(exc, PlanRefused) else "error"
        report.error = str(exc)
        log.error("mailbox.failed", account=self._work.account.name, mailbox=name, error=exc.text, hint=exc.hint)
        if not self._work.dry_run:
            await self._work.state.run(self._store_failure, name, exc)

    def _store_failure(self, name: str, exc: MaildError) -> None:
        state = self._work.state.state
        row = state.mailboxes().get(MailboxName(name))
        if row is not None and isinstance(exc, PlanRefused):
            state.set_refused(row.id, exc.text)
        elif row is not None:
            state.set_error(row.id, exc.text)
