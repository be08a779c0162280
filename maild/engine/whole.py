"""One pass over an account: all of its mailboxes, together where messages may have moved between them, else singly.

Where messages may have moved, all that changed are looked at before anything is done; a first pass brings each up to
date by itself. INBOX goes first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import anyio
import structlog
from anyio.abc import TaskGroup

from maild.core.errors import ConnectionLost, MaildError
from maild.core.model import Epoch, Facts, Listing, MailboxName, RemoteMailbox, Uid
from maild.core.names import MailboxUnusable, directory
from maild.engine.apply import Relocation
from maild.engine.carry_out import propagate, withdraw
from maild.engine.crew import Crew, is_tried_again, pause
from maild.engine.delivered import settle_deliveries
from maild.engine.elsewhere import keep_what_came_from_elsewhere, leave_what_lies_elsewhere
from maild.engine.finish import finish
from maild.engine.foretell import foretell
from maild.engine.mailboxes import delete_there, remove_here, scan_of_nothing, settle_mailboxes
from maild.engine.moves import settle_moves
from maild.engine.pull import Work
from maild.engine.sync import MailboxPass
from maild.engine.visits import Visit, Visits, begin
from maild.local.marker import check_still_there
from maild.local.state import MailboxState
from maild.local.survey import Survey

log = structlog.get_logger()


class AccountPass:
    """See the module; `run` is all there is to call."""

    def __init__(self, work: Work, hinted: Collection[MailboxName] = ()) -> None:
        """`hinted` are mailboxes of which the server said that something is new."""
        self._work = work
        self._hinted = hinted
        self._crew = Crew(work)
        self._visits = Visits(work)
        self._moving = False
        self._is_first = False  # nothing has been here before
        self._separator = ""
        self._propagated: list[MailboxPass] = []
        self._relocations: list[tuple[Epoch, Relocation]] = []  # of all, with their target's epoch
        self._before: dict[MailboxName, MailboxPass] = {}  # the attempts together with others
        self._left_out: list[MailboxPass] = []  # those that failed while it was found out what moved

    async def run(self, only: Sequence[str]) -> None:
        work = self._work
        if not work.dry_run:
            await work.state.run(settle_deliveries, work)
        rows = await work.state.run(work.state.state.mailboxes)
        self._is_first = not any(row.cursor for row in rows.values())
        async with anyio.create_task_group() as openers:
            for _ in range(work.imap.connections - 1 if self._is_first else 0):
                openers.start_soon(work.remote.prepare)  # a first pass needs them all, and logging in takes its time
            await self._run(only, [rows[name] for name in self._hinted if name in rows], openers)
            openers.cancel_scope.cancel()

    async def _run(self, only: Sequence[str], told: Sequence[MailboxState], openers: TaskGroup) -> None:
        work = self._work
        listing, found = await self._both_sides(only, told)
        work.report.state = "syncing"
        work.listed, work.left_out, work.moves_whole = listing.present, listing.left_out, listing.moves_whole
        self._separator = listing.separator
        work.trash = listing.trash
        self._note_unusable(listing)
        if not work.dry_run:
            await work.state.run(self._note_roles, listing)
        settled = await settle_mailboxes(work, listing, found)
        visits = await self._visits.chosen(settled, found, only)
        for name, exc in self._visits.failed.items():
            if name not in settled.failed and (not only or name in only):
                await self._crew.note_failure(name, exc)
        if told and visits and not work.dry_run:
            openers.start_soon(work.announce_ahead)  # there is mail, most likely, and the disk is slow
        gone = [row for row in settled.gone if not only or row.name in only]
        async with work.deliverer.running():
            has_moves = len(visits) > 1 and await work.state.run(self._visits.may_have_moves, visits)
            if gone or has_moves or settled.to_make:
                await self._together(visits, gone, settled.to_make)
            else:
                self._crew.add(*(partial(self._sync, visit, 1) for visit in visits))
                await self._crew.work_off()
            if work.trash in settled.mailboxes and work.is_trash_filled and not work.dry_run:
                self._crew.add(partial(self._sync, Visit(settled.mailboxes[work.trash]), 1))
                await self._crew.work_off()
        if work.dry_run and work.trash in settled.mailboxes and work.imap.remote_delete == "trash":
            self._foretell_trash(work.trash)

    def _foretell_trash(self, trash: MailboxName) -> None:
        """What is deleted on the server comes back here, in the trash."""
        deleted = [m.deleted_there for m in self._work.report.mailboxes.values() if m.name != trash]
        self._work.report.mailbox(trash).pulled += sum(deleted)

    async def _both_sides(self, only: Sequence[str], told: Sequence[MailboxState]) -> tuple[Listing, Survey]:
        """The mailboxes there and here, asked for at the same time; `told` are those that the server told of."""
        work, found = self._work, Survey()

        async def look() -> None:
            nonlocal found
            is_expected = self._visits.expect(told, only, has_mail=not work.dry_run)
            if work.account.maildir.exists():
                found, changed = await work.state.run(self._visits.look_around)
                if not is_expected:
                    is_expected = self._visits.expect(self._visits.at_once(changed), only)
                news = await work.state.run(self._visits.look_into, changed)
                if not is_expected:
                    self._visits.expect(news, only)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            listing = await work.remote.listing()
        return listing, found

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
        self, visits: Sequence[Visit], gone: Sequence[MailboxState], to_make: Sequence[RemoteMailbox] = ()
    ) -> None:
        """Look at all of them, find what moved, then bring each up to date; what failed on the way is done singly."""
        passes: list[MailboxPass] = []
        blind: list[MailboxPass] = []
        alone: list[MailboxPass] = []  # those that only one side has
        try:
            self._crew.add(*(partial(self._scan_one, visit, 1, passes, blind) for visit in visits))
            await self._crew.work_off()
            if blind:
                await self._work.remote.listing()  # one mailbox may be broken; if nothing gets through, nothing is done
            leaving = [
                this async for this in self._without_server([RemoteMailbox(row.name, ()) for row in gone], alone)
            ]
            coming = [this async for this in self._without_server(to_make, alone)]
            await self._settle([*passes, *leaving, *coming], blind)
            await self._carry_out(*(self._still(some) for some in (passes, leaving, coming)))
        finally:
            with anyio.CancelScope(shield=True):
                for this in (*passes, *blind, *alone):
                    await this.close()

    async def _settle(self, passes: Sequence[MailboxPass], blind: Sequence[MailboxPass]) -> None:
        """What moved, and what is to be done about the rest. Who fails on the way is left out, and changes no other."""
        await settle_moves(self._work, passes, self._facts, blind)
        await leave_what_lies_elsewhere(self._work, self._still(passes), self._separator)
        await keep_what_came_from_elsewhere(self._work, self._still(passes))
        for this in self._still(passes):
            try:
                await this.plan()
            except MaildError as exc:
                await self._leave_out(this, exc)
            finally:
                this.rest()
            this.report.state = "refused" if this.is_stopped else this.report.state
        self._relocations = [(this.found.epoch, m) for this in self._still(passes) for m in this.relocations]
        self._before = {this.name: this for this in self._still(passes)}
        for failed in self._left_out:
            for this in passes:
                if moves := this.moves_there.pop(failed.name, None):
                    this.awaited.update(move.pair.key for move in moves)
                    this.is_missed = True  # their flags

    async def _carry_out(
        self, passes: Sequence[MailboxPass], leaving: Sequence[MailboxPass], coming: Sequence[MailboxPass]
    ) -> None:
        self._moving = bool(self._work.doomed) or any(p.awaited or p.relocations or p.unpaired.unsure for p in passes)
        self._crew.add(*(partial(self._propagate_one, this) for this in passes if not this.is_stopped))
        await self._crew.work_off()
        async with anyio.create_task_group() as finishers:
            for this in self._propagated:
                finishers.start_soon(self._finish, this)
        for this in leaving:
            await self._leave(this)
        for this in coming:
            await foretell(this)
            await this.close()
            this.report.state = "ok"

    def _still(self, passes: Sequence[MailboxPass]) -> list[MailboxPass]:
        return [this for this in passes if this not in self._left_out]

    async def _leave_out(self, this: MailboxPass, exc: MaildError) -> None:
        """This mailbox has failed for this pass, unless it is not its fault alone."""
        self._left_out.append(this)
        await self._crew.note_failure(this.name, exc)
        if isinstance(exc, ConnectionLost):
            await self._work.remote.listing()  # as long as that gets through, the others go on

    async def _scan_one(
        self,
        visit: Visit,
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
            except MaildError as exc:
                if not is_tried_again(exc, attempt):
                    blind.append(this)
                    with suppress(MaildError):  # what is here then stays unknown; the first failure is told
                        await work.state.run(this.look_without_server)
                raise
            finally:
                this.rest()
            passes.append(this)

        again = partial(self._scan_one, visit, attempt + 1, passes, blind)
        await self._crew.guarded(visit.remote.name, attempt, scan, again)

    async def _without_server(
        self, mailboxes: Sequence[RemoteMailbox], begun: list[MailboxPass]
    ) -> AsyncIterator[MailboxPass]:
        """Those that can be looked at; all that have something open are in `begun`."""
        for mailbox in mailboxes:
            try:
                this = await begin(self._work, mailbox, None)
                begun.append(this)
                await this.compare(scan_of_nothing(this.mailbox))
            except MaildError as exc:
                await self._crew.note_failure(mailbox.name, exc)
            else:
                yield this

    async def _facts(self, this: MailboxPass, uids: Sequence[Uid]) -> Mapping[Uid, Facts]:
        """Nothing, of a mailbox that cannot tell them; it is left out from then on."""
        work, attempt = self._work, 1
        while this not in self._left_out:
            try:
                async with work.remote.visit(this.name, this.found.epoch, read_only=work.dry_run) as box:
                    return await box.facts(uids)
            except MaildError as exc:
                if is_tried_again(exc, attempt):
                    await pause(self._work, this.name, attempt, exc)
                    attempt += 1
                else:
                    await self._leave_out(this, exc)
        return {}

    async def _propagate_one(self, this: MailboxPass, finishers: TaskGroup) -> None:
        async def go() -> None:
            work = self._work
            try:
                if this.needs_server:
                    async with work.remote.visit(this.name, this.found.epoch, read_only=work.dry_run) as box:
                        await this.match(box)
                        await (foretell(this, box) if work.dry_run else propagate(this, box))
                else:
                    await (foretell(this) if work.dry_run else propagate(this, None))
            except BaseException:
                await _abandon(this)
                raise
            if self._moving:
                self._propagated.append(this)
            else:
                finishers.start_soon(self._finish, this)

        await self._crew.guarded(this.name, 1, go, partial(self._sync, Visit(this.listed), 2))

    async def _leave(self, this: MailboxPass) -> None:
        """A mailbox that the server no longer has: its files go, as far as the guard lets them, then its directory."""
        work = self._work
        try:
            if this.is_refused:
                this.report.state = "refused"
                return
            if work.dry_run:
                await foretell(this)
                work.report.plan.append(f"{this.name}: remove its directory")
                this.report.state = "ok"
                return
            if await work.state.run(self._has_moves_left, this):
                this.report.error = "its messages are on their way to other mailboxes; it goes when they are there"
                this.report.state = "error"
                return
            await propagate(this, None)
            await remove_here(work, this.mailbox)
            this.report.state = "ok"
        except MaildError as exc:
            await self._crew.note_failure(this.name, exc)
        finally:
            with anyio.CancelScope(shield=True):
                await this.close()

    def _has_moves_left(self, this: MailboxPass) -> bool:
        """Whether files of this mailbox still wait for the pass of where the server moved their messages. Blocks."""
        here = [m for _, m in self._relocations if this.mailbox.id in (m.pair_mailbox.id, m.source.id)]
        return any(self._work.state.state.pairs_of(m.pair_mailbox.id, [m.pair.uid]) for m in here)

    # -- one mailbox by itself

    async def _sync(self, visit: Visit, attempt: int, finishers: TaskGroup) -> None:
        """One mailbox by itself, from beginning to end over one session."""

        async def sync() -> None:
            work = self._work
            this = await begin(work, visit.remote, visit.look if attempt == 1 else None)
            try:
                async with work.remote.visit(visit.remote.name, read_only=work.dry_run) as box:
                    await this.scan(box)
                _resume_moves(this, self._relocations, self._before.get(this.name))
                await settle_moves(work, [this], self._facts)
                if this in self._left_out:
                    await _abandon(this)
                    return
                async with work.remote.visit(this.name, this.found.epoch, read_only=work.dry_run) as box:
                    await leave_what_lies_elsewhere(work, [this], self._separator)
                    if not self._is_first:
                        await keep_what_came_from_elsewhere(work, [this])
                    await this.plan()
                    if this.is_stopped:
                        this.report.state = "refused"
                        await this.close()
                        return
                    await this.match(box)
                    await (foretell(this, box) if work.dry_run else propagate(this, box))
            except BaseException:
                await _abandon(this)
                raise
            finishers.start_soon(self._finish, this)

        again = partial(self._sync, Visit(visit.remote), attempt + 1)
        await self._crew.guarded(visit.remote.name, attempt, sync, again)

    async def _finish(self, this: MailboxPass) -> None:
        try:
            await finish(this)
            if this.is_to_be_deleted_there:
                await self._work.state.run(check_still_there, self._work.account.maildir, self._work.state.state)
                await delete_there(self._work, this.mailbox, this.found.cursor)
        except MaildError as exc:
            await self._crew.note_failure(this.name, exc)


async def _abandon(this: MailboxPass) -> None:
    with anyio.CancelScope(shield=True):
        await this.close()
    withdraw(this)


def _resume_moves(
    this: MailboxPass, relocations: Sequence[tuple[Epoch, Relocation]], before: MailboxPass | None
) -> None:
    """Once more after an attempt together with others that failed: who moved what is not found out again."""
    if before is not None and before.found.epoch == this.found.epoch:
        this.trashed = before.trashed
        this.untold |= before.untold
        this.waiting |= before.waiting & this.unpaired.entries.keys()
        for uid in [uid for uid in before.left_behind if uid in this.local.gone and uid not in this.remote.gone]:
            del this.local.gone[uid]
            this.remote.changed.pop(uid, None)
            this.left_behind.append(uid)
    for key in this.awaited & this.unpaired.entries.keys():
        if (this.mailbox.id, key) in this.work.sent:  # the server has moved it here, and told no Uid
            this.waiting.add(key)
            continue
        this.unpaired.take(key)  # another mailbox's pass gives it a pair
    for _, move in relocations:
        if move.pair_mailbox.id == this.mailbox.id:
            this.remote.gone.pop(move.pair.uid, None)
    mine = [m for epoch, m in relocations if m.target.id == this.mailbox.id and epoch == this.found.epoch]
    flags = this.remote_flags({move.uid for move in mine})
    this.relocations += [replace(move, flags=flags[move.uid]) for move in mine if move.uid in flags]
    this.remote.fresh = this.remote.fresh.without(flags) if flags else this.remote.fresh
