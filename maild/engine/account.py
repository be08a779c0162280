"""One account's pass: which mailboxes, in which order, over how many sessions. The only owner of the account's state.

A mailbox whose mark in the listing and whose directory are as they were when it was last brought up to date is not
opened at all. Where messages may have moved between mailboxes, all that changed are looked at before anything is done;
a first pass brings each up to date by itself. INBOX goes first; sessions that run out of mailboxes help with the one
that has most left.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from maild.config import Account, Imap
from maild.core.errors import (
    ConfigError,
    ConnectionLost,
    MaildError,
    NoSuchMailbox,
    PlanRefused,
    ProtocolViolation,
    Scope,
    did_you_mean,
)
from maild.core.model import Facts, Listing, MailboxName, RemoteMailbox, Uid
from maild.core.names import MailboxUnusable, directory
from maild.core.ports import Remote
from maild.engine.lifetime import note_pass, only_ours, state_path
from maild.engine.look import Look, has_local_news, look_at, open_mailbox
from maild.engine.mailboxes import Settled, delete_there, note_failure, remove_here, scan_of_nothing, settle_mailboxes
from maild.engine.moves import settle_moves
from maild.engine.propagate import Deliverer, StateThread
from maild.engine.pull import Pull, Work
from maild.engine.report import AccountReport
from maild.engine.sync import MailboxPass
from maild.local.maildir import Maildir
from maild.local.marker import check_root, mark_root
from maild.local.state import MailboxState, State
from maild.local.survey import Survey, survey
from maild.remote import open_remote

TRIES = 3  # of one mailbox, when the connection is lost on the way
RETRY_DELAY_S = 1.0

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
        await _AccountPass(work, hinted).run(only)
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
    is_news = report.error is None or report.error != report.known_error
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


_Job = Callable[[TaskGroup], Awaitable[None]]  # the group takes what needs no session any more


@dataclass(frozen=True, slots=True)
class _Visit:
    """A mailbox that has to be opened, with the look at its directory if there was one already."""

    remote: RemoteMailbox
    look: Look | None = None


class _AccountPass:
    """The mailboxes still to be done and who does them."""

    def __init__(self, work: Work, hinted: Collection[MailboxName] = ()) -> None:
        self._work = work
        self._hinted = hinted
        self._left: deque[_Job] = deque()
        self._busy = 0
        self._lost_in_a_row = 0  # mailboxes that lost their connection at every try, since one was done
        self._moved = anyio.Event()
        self._moving = False
        self._looks: dict[int, Look] = {}  # by the mailbox's id in the state
        self._propagated: list[MailboxPass] = []

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
        listing, found = await self._both_sides(only)
        work.report.state = "syncing"
        work.listed = listing.present
        work.trash = listing.trash
        self._note_unusable(listing)
        if not work.dry_run:
            await work.state.run(self._note_roles, listing)
        settled = await settle_mailboxes(work, listing, found)
        visits = await self._to_visit(settled, found, only)
        gone = [row for row in settled.gone if not only or row.name in only]
        async with work.deliverer.running():
            has_moves = await work.state.run(self._may_have_moves, visits)
            if gone or has_moves or settled.to_make:
                await self._together(visits, gone, settled.to_make)
            else:
                self._left.extend(partial(self._sync, visit, 1) for visit in visits)
                await self._work_off()
            if work.trash in settled.mailboxes and work.is_trash_filled and not work.dry_run:
                self._left.append(partial(self._sync, _Visit(settled.mailboxes[work.trash]), 1))
                await self._work_off()
        if work.dry_run and work.trash in settled.mailboxes and work.imap.remote_delete == "trash":
            self._foretell_trash(work.trash)

    def _foretell_trash(self, trash: MailboxName) -> None:
        """What is deleted on the server comes back here, in the trash."""
        deleted = [m.deleted_there for m in self._work.report.mailboxes.values() if m.name != trash]
        self._work.report.mailbox(trash).pulled += sum(deleted)

    async def _both_sides(self, only: Sequence[str]) -> tuple[Listing, Survey]:
        """The mailboxes there and here, asked for at the same time."""
        work, found = self._work, Survey()

        async def look() -> None:
            nonlocal found
            if work.account.maildir.exists():
                found = await work.state.run(survey, work.account.maildir, work.account.layout)
                self._expect(await work.state.run(self._look_ahead, found), only)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            listing = await work.remote.listing()
        return listing, found

    def _look_ahead(self, found: Survey) -> list[MailboxState]:
        """Look at what changed here while the server answers: the mailboxes in which there is something to do.

        So there is in those that it said so of.
        """
        state = self._work.state.state
        news: list[MailboxState] = []
        for row in state.mailboxes().values():
            here = found.mailboxes.get(row.directory)
            if here is not None and row.epoch is not None and here.stamp.text() != row.stamp:
                with self._opened_mailbox(row) as maildir:
                    self._looks[row.id] = look_at(state, row, maildir, may_note=not self._work.dry_run)
                if self._looks[row.id].has_news:
                    news.append(row)
                    continue
            if row.name in self._hinted:
                news.append(row)
        return news

    def _expect(self, news: Sequence[MailboxState], only: Sequence[str]) -> None:
        """Tell the server's side which mailbox comes first, whatever the listing says: it saves a round trip."""
        wanted = [(row.name, row.cursor) for row in news if row.cursor and (not only or row.name in only)]
        for name, cursor in sorted(wanted, key=lambda one: one[0] != "INBOX")[:1]:
            self._work.remote.expect(name, cursor, read_only=self._work.dry_run)

    async def _to_visit(self, settled: Settled, found: Survey, only: Sequence[str]) -> list[_Visit]:
        work = self._work
        gone = {row.name for row in settled.gone}
        if missing := sorted(set(only) - settled.mailboxes.keys() - settled.failed - gone):
            names = ", ".join(f'"{name}"{did_you_mean(name, settled.mailboxes)}' for name in missing)
            raise NoSuchMailbox(f"no such mailbox among those synchronised: {names}")
        chosen = [m for m in settled.mailboxes.values() if not only or m.name in only]
        visits = await work.state.run(self._changed, chosen, found)
        work.report.unchanged = len(chosen) - len(visits)
        return sorted(visits, key=lambda visit: visit.remote.name != "INBOX")

    def _changed(self, mailboxes: list[RemoteMailbox], found: Survey) -> list[_Visit]:
        """Those that have to be opened: a mark moved, or something was left that may come or go now."""
        state, known = self._work.state.state, self._work.rows()
        with_leftovers = state.with_leftovers()
        visits: list[_Visit] = []
        for mailbox in mailboxes:
            row = known.get(mailbox.name)
            if row is None or row.epoch is None or mailbox.mark is None or row.mark != mailbox.mark or row.undone:
                visits.append(_Visit(mailbox, None if row is None else self._looks.get(row.id)))
                continue
            here = found.mailboxes.get(row.directory)
            look = self._looks.get(row.id)
            if here is None and not state.count(row.id):
                visits.append(_Visit(mailbox))  # an empty one whose directory has to be made again
                continue
            if look is None and (here is None or here.stamp.text() != row.stamp):
                with self._opened_mailbox(row) as maildir:
                    look = look_at(state, row, maildir, may_note=not self._work.dry_run)
                if look.is_here and not look.has_news and not self._work.dry_run:
                    state.set_stamp(row.id, look.stamp)
            has_leftovers = row.id in with_leftovers and self._has_leftovers(row, look)
            if (look is not None and (look.has_news or not look.is_here)) or has_leftovers:
                visits.append(_Visit(mailbox, look))
            else:
                self._work.report.mailbox(mailbox.name).state = "ok"
        return visits

    @contextmanager
    def _opened_mailbox(self, row: MailboxState) -> Iterator[Maildir | None]:
        maildir = open_mailbox(self._work.account.maildir, row)
        if maildir is None:
            yield None
            return
        with maildir:
            yield maildir

    def _has_leftovers(self, row: MailboxState, look: Look | None) -> bool:
        """Whether messages did not travel that may do so now. What is known of files that are gone is dropped."""
        work, state = self._work, self._work.state.state
        skipped, unsent = state.skipped(row.id), state.unsent(row.id)
        if look is not None and (past := unsent.keys() - look.unpaired.keys()):
            unsent = {key: message for key, message in unsent.items() if key not in past}
            if not work.dry_run:
                state.unsent_done(row.id, past)
        report, limit = work.report.mailbox(row.name), work.imap.max_message_size_octets
        report.skipped, report.held_back = len(skipped), len(unsent)
        if any(work.is_due(message) for message in unsent.values()):
            return True
        return any(message.size_octets <= limit and work.is_due(message) for message in skipped.values())

    def _may_have_moves(self, visits: Sequence[_Visit]) -> bool:
        """Whether a message may have gone from one of these to another: the first must have had it."""
        rows = self._work.rows()
        return len(visits) > 1 and any(visit.remote.name in rows and rows[visit.remote.name].cursor for visit in visits)

    def _note_unusable(self, listing: Listing) -> None:
        for name, reason in listing.unusable.items():
            mailbox = self._work.report.mailbox(name)
            mailbox.state, mailbox.error = "error", reason
            log.warning("mailbox.skipped", account=self._work.account.name, mailbox=name, reason=reason)

    def _note_roles(self, listing: Listing) -> None:
        """For whoever puts something into a mailbox by its role, as the outbox does."""
        state, layout = self._work.state.state, self._work.account.layout
        known, roles = state.mailboxes(), dict[str, tuple[MailboxName, str]]()
        for role, mailbox in listing.roles.items():
            row = known.get(mailbox.name)
            with suppress(MailboxUnusable):  # then nothing can be put into it
                roles[role] = mailbox.name, row.directory if row else str(directory(mailbox.levels, layout))
        state.set_roles(roles)

    # -- all mailboxes together: what vanished in one may have appeared in another

    async def _together(
        self, visits: Sequence[_Visit], gone: Sequence[MailboxState], to_make: Sequence[RemoteMailbox] = ()
    ) -> None:
        """Look at all of them, find what moved, then bring each up to date; what failed on the way is done singly."""
        passes: list[MailboxPass] = []
        blind: list[MailboxPass] = []
        self._left.extend(partial(self._scan_one, visit, 1, passes, blind) for visit in visits)
        await self._work_off()
        if blind:
            await self._work.remote.listing()  # one mailbox may be broken; if nothing gets through, nothing is done
        leaving = [await self._begin_without_server(RemoteMailbox(row.name, ())) for row in gone]
        coming = [await self._begin_without_server(mailbox) for mailbox in to_make]
        await settle_moves(self._work, [*passes, *leaving, *coming], self._facts, blind)
        for this in [*passes, *leaving, *coming]:
            await this.plan()
            this.rest()
            this.report.state = "refused" if this.is_stopped else this.report.state
        self._moving = bool(self._work.doomed) or any(this.awaited or this.relocations for this in passes)
        self._left.extend(partial(self._propagate_one, this) for this in passes if not this.is_stopped)
        await self._work_off()
        async with anyio.create_task_group() as finishers:
            for this in self._propagated:
                finishers.start_soon(self._finish, this)
        for this in leaving:
            await self._leave(this)
        for this in coming:
            await this.foretell()
            await this.close()
            this.report.state = "ok"

    async def _scan_one(
        self,
        visit: _Visit,
        attempt: int,
        passes: list[MailboxPass],
        blind: list[MailboxPass],
        finishers: TaskGroup,
    ) -> None:
        work = self._work

        async def scan() -> None:
            this = await begin(work, visit.remote, visit.look)
            try:
                async with work.remote.visit(visit.remote.name, read_only=work.dry_run) as box:
                    await this.scan(box)
            except MaildError:
                if attempt >= TRIES:
                    await work.state.run(this.look_without_server)
                    blind.append(this)
                raise
            finally:
                this.rest()
            passes.append(this)

        await self._guarded(visit, attempt, scan, partial(self._scan_one, visit, attempt + 1, passes, blind))

    async def _begin_without_server(self, mailbox: RemoteMailbox) -> MailboxPass:
        this = await begin(self._work, mailbox, None)
        await this.compare(scan_of_nothing(this.mailbox))
        return this

    async def _facts(self, this: MailboxPass, uids: Sequence[Uid]) -> Mapping[Uid, Facts]:
        async with self._work.remote.visit(this.name, this.found.epoch, read_only=self._work.dry_run) as box:
            return await box.facts(uids)

    async def _propagate_one(self, this: MailboxPass, finishers: TaskGroup) -> None:
        async def propagate() -> None:
            work = self._work
            try:
                if this.needs_server:
                    async with work.remote.visit(this.name, this.found.epoch, read_only=work.dry_run) as box:
                        await this.match(box)
                        if not work.dry_run:
                            await this.propagate(box)
                elif work.dry_run:
                    await this.foretell()
                else:
                    await this.propagate(None)
            except BaseException:
                await _abandon(this)
                raise
            if self._moving:
                self._propagated.append(this)
            else:
                finishers.start_soon(self._finish, this)

        await self._guarded(_Visit(this.listed), 1, propagate, partial(self._sync, _Visit(this.listed), 2))

    async def _leave(self, this: MailboxPass) -> None:
        """A mailbox that the server no longer has: its files go, as far as the guard lets them, then its directory."""
        work = self._work
        try:
            if this.is_refused:
                this.report.state = "refused"
                return
            if work.dry_run:
                await this.foretell()
                work.report.plan.append(f"{this.name}: remove its directory")
                this.report.state = "ok"
                return
            await this.propagate(None)
            await remove_here(work, this.mailbox)
            this.report.state = "ok"
        except MaildError as exc:
            await self._note_failure(this.name, exc)
        finally:
            with anyio.CancelScope(shield=True):
                await this.close()

    # -- the workers

    async def _work_off(self) -> None:
        """Do all that is left, over as many sessions as there are."""
        async with anyio.create_task_group() as finishers, anyio.create_task_group() as tasks:
            for _ in range(self._work.imap.connections if self._left else 0):
                tasks.start_soon(self._work_on, finishers)

    async def _work_on(self, finishers: TaskGroup) -> None:
        """Take mailboxes while there are any, then help, then leave when nobody can need help any more."""
        while True:
            if self._left:
                job = self._left.popleft()
                self._busy += 1
                try:
                    await job(finishers)
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

    async def _sync(self, visit: _Visit, attempt: int, finishers: TaskGroup) -> None:
        """One mailbox by itself, from beginning to end over one session."""

        async def sync() -> None:
            work = self._work
            this = await begin(work, visit.remote, visit.look if attempt == 1 else None)
            try:
                async with work.remote.visit(visit.remote.name, read_only=work.dry_run) as box:
                    await this.scan(box)
                    await settle_moves(work, [this], lambda _, uids: box.facts(uids))
                    await this.plan()
                    if this.is_stopped:
                        this.report.state = "refused"
                        await this.close()
                        return
                    await this.match(box)
                    if not work.dry_run:
                        await this.propagate(box)
            except BaseException:
                await _abandon(this)
                raise
            finishers.start_soon(self._finish, this)

        await self._guarded(visit, attempt, sync, partial(self._sync, _Visit(visit.remote), attempt + 1))

    async def _guarded(self, visit: _Visit, attempt: int, work_on: Callable[[], Awaitable[None]], again: _Job) -> None:
        """Failures of one mailbox: a lost connection is tried again, up to a limit, the rest is noted."""
        try:
            await work_on()
            self._lost_in_a_row = 0
        except (ConnectionLost, ProtocolViolation) as exc:
            if attempt >= TRIES:
                self._lost_in_a_row += 1
                if self._lost_in_a_row >= TRIES:
                    raise  # nothing gets through any more
                await self._note_failure(visit.remote.name, exc)
                return
            log.warning("session.retried", account=self._work.account.name, mailbox=visit.remote.name, reason=exc.text)
            await anyio.sleep(RETRY_DELAY_S * attempt)
            self._left.appendleft(again)
        except MaildError as exc:
            await self._note_failure(visit.remote.name, exc)

    async def _finish(self, this: MailboxPass) -> None:
        try:
            await this.finish()
            if this.is_to_be_deleted_there:
                await delete_there(self._work, this.mailbox)
        except MaildError as exc:
            await self._note_failure(this.name, exc)

    async def _note_failure(self, name: str, exc: MaildError) -> None:
        """One mailbox's failure stays its own; what concerns the account ends the pass.

        A broken response ends its session, as a message does that makes the server hang up; the other mailboxes get
        another session.
        """
        if exc.scope not in {Scope.MAILBOX, Scope.MESSAGE} and not isinstance(exc, ProtocolViolation | ConnectionLost):
            raise exc
        note_failure(self._work, name, exc)
        if not self._work.dry_run:
            await self._work.state.run(self._store_failure, name, exc)

    def _store_failure(self, name: str, exc: MaildError) -> None:
        state = self._work.state.state
        row = state.mailboxes().get(MailboxName(name))
        if row is not None and isinstance(exc, PlanRefused):
            state.set_refused(row.id, exc.text)
        elif row is not None:
            state.set_error(row.id, exc.text)


async def begin(work: Work, remote: RemoteMailbox, look: Look | None) -> MailboxPass:
    """Begin the pass of one mailbox; without a `look` its directory is looked at first."""
    work.report.mailbox(remote.name).state = "syncing"

    def looked() -> tuple[MailboxState, Look]:
        row = known_mailbox(work, remote)
        if look is not None:
            return row, look
        maildir = open_mailbox(work.account.maildir, row)
        if maildir is None:
            return row, look_at(work.state.state, row, None) if row.identity else Look()
        with maildir:
            return row, look_at(work.state.state, row, maildir, may_note=not work.dry_run)

    mailbox, found = await work.state.run(looked)
    return MailboxPass(work, remote, mailbox, found)


def known_mailbox(work: Work, remote: RemoteMailbox) -> MailboxState:
    """The state of a mailbox, begun where there is none. Raises MailboxUnusable."""
    state, rows = work.state.state, work.rows()
    if (known := rows.get(remote.name)) is not None:
        return known
    where = str(directory(remote.levels, work.account.layout))
    if (other := next((row for row in rows.values() if row.directory == where), None)) is not None:
        if other.name in work.listed:
            raise MailboxUnusable(
                f"mailbox {remote.name} would have the directory {where}, as {other.name} has already"
            )
        if not work.dry_run:
            state.drop_mailbox(other.id)  # the server's separator or name changed: its files are matched by content
    return MailboxState(0, remote.name, where) if work.dry_run else state.add_mailbox(remote.name, where)


async def _abandon(this: MailboxPass) -> None:
    with anyio.CancelScope(shield=True):
        await this.close()
    this.withdraw()
