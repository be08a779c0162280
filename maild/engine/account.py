"""One account, with its state open and its connections kept: the only owner of the state.

What a pass does is in `engine.whole`; here is how one begins, what is told of it, and what becomes of its failure.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from maild.config import Account, Imap
from maild.core.errors import (
    ConfigError,
    MaildError,
    NoSuchMailbox,
)
from maild.core.model import MailboxName
from maild.core.ports import Remote
from maild.engine.lifetime import note_pass, only_ours, state_path
from maild.engine.look import has_local_news
from maild.engine.propagate import Deliverer, StateThread
from maild.engine.pull import Work
from maild.engine.report import AccountReport
from maild.engine.whole import AccountPass
from maild.local.marker import check_root, mark_root
from maild.local.state import State
from maild.remote import open_remote

CHANGES = ("pulled", "pushed", "adopted", "flags", "flags_there", "deleted", "deleted_there", "moved", "moved_there")

log = structlog.get_logger()


async def sync_account(
    account: Account, state_dir: Path, report: AccountReport, *, only: Sequence[str] = (), dry_run: bool = False
) -> None:
    """One pass over an account by itself, told in `report`. Never raises a MaildError: it is reported."""
    try:
        async with opened_account(account, state_dir, dry_run=dry_run) as kept:
            await kept.bring_up_to_date(report, only)
    except MaildError as exc:  # the state cannot be opened
        _fail(account, report, exc)
        report.state = "error"


@asynccontextmanager
async def opened_account(account: Account, state_dir: Path, *, dry_run: bool = False) -> AsyncIterator[KeptAccount]:
    """State and server of an account, for as many passes as the block makes; closed at its end.

    Raises LocalError, StateUnusable where the state cannot be opened. Connections are made when they are needed.
    """
    if account.imap is None:
        raise ConfigError([f'account "{account.name}" has no imap section'])
    with state_path(account, state_dir, dry_run=dry_run) as path:
        state = await anyio.to_thread.run_sync(State.open, path)
        remote = open_remote(account)
        try:
            yield KeptAccount(account, account.imap, remote, StateThread(state), dry_run)
        finally:
            with anyio.CancelScope(shield=True):
                await remote.aclose()
                await anyio.to_thread.run_sync(state.close)


@dataclass(frozen=True, slots=True)
class KeptAccount:
    """An account with its state open and its connections kept. One pass at a time."""

    account: Account
    imap: Imap
    remote: Remote
    state: StateThread
    dry_run: bool = False

    async def sleep(self) -> None:
        """Close the state and the line for work until the next pass, for the sake of memory; push goes on."""
        await self.remote.rest(keep=0)
        await self.state.run(self.state.state.sleep)

    async def bring_up_to_date(
        self, report: AccountReport, only: Sequence[str] = (), hinted: Collection[MailboxName] = ()
    ) -> MaildError | None:
        """One pass, told in `report`; `only` names mailboxes, `hinted` those with news on the server.

        Returns what ended it early, if anything of ours did.
        """
        started = time.monotonic()
        report.state = "connecting"
        log.debug("account.started", account=self.account.name)
        failure: MaildError | None = None
        try:
            await self._pass(report, only, hinted)
        except MaildError as exc:
            failure = exc
        except BaseExceptionGroup as group:
            failure = only_ours(group)
        is_ours = not isinstance(failure, NoSuchMailbox)
        if failure is not None:
            _fail(self.account, report, failure)
        if not self.dry_run and is_ours:
            with anyio.CancelScope(shield=True):
                await self._note(report)
        report.duration_s = time.monotonic() - started
        report.state = "ok" if report.ok else "error"
        _log_end(self.account, report)
        return failure

    async def has_local_news(self) -> bool:
        """Whether something changed on this disk that maild did not do itself. Not during a pass. Raises LocalError."""
        return await self.state.run(has_local_news, self.state.state, self.account.maildir, self.account.layout)

    async def _pass(self, report: AccountReport, only: Sequence[str], hinted: Collection[MailboxName]) -> None:
        state = self.state
        await state.run(check_root, self.account.maildir, state.state, self.dry_run)
        work = Work(self.account, self.imap, self.remote, state, Deliverer(state), report, self.dry_run, bool(only))
        await AccountPass(work, hinted).run(only)
        if not self.dry_run and any(report.total(counter) for counter in CHANGES):
            await state.run(mark_root, self.account.maildir, state.state)

    async def _note(self, report: AccountReport) -> None:
        """For `maild status`: when the last pass ended, and how."""
        try:
            await self.state.run(note_pass, self.state.state, report.error)
        except MaildError as exc:
            _fail(self.account, report, exc)


def _fail(account: Account, report: AccountReport, exc: MaildError) -> None:
    report.error, report.failure = str(exc), exc
    for mailbox in report.mailboxes.values():
        if mailbox.state == "syncing":
            mailbox.state, mailbox.error = "error", report.error
    if report.error != report.known_error and not isinstance(exc, NoSuchMailbox):
        log.error("account.failed", account=account.name, error=exc.text, hint=exc.hint)


def _log_end(account: Account, report: AccountReport) -> None:
    is_news = report.error is None or any(report.total(counter) for counter in CHANGES)  # else `account.failed` says it
    (log.info if is_news else log.debug)(
        "account.finished",
        account=account.name,
        pulled=report.total("pulled"),
        pushed=report.total("pushed"),
        adopted=report.total("adopted"),
        flags=report.total("flags") + report.total("flags_there"),
        deleted=report.total("deleted") + report.total("deleted_there"),
        moved=report.total("moved") + report.total("moved_there"),
        refused=report.total("refused"),
        skipped=report.total("skipped"),
        octets=report.done_octets,
        duration_s=round(report.duration_s, 3),
    )
