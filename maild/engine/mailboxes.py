"""Mailboxes made, renamed and deleted, on either side: what `core.mailboxes` decided is carried out here.

Renames and new mailboxes come before any message, so that messages find their place; deletions come after all of them,
for a mailbox goes only when nothing is left in it. The server or the disk first, then the state: whatever is cut off in
the middle is seen, and finished, by the next pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import structlog

from maild.core.errors import LocalError, MaildError, PlanRefused, Scope
from maild.core.guard import approval, are_too_many_mailboxes
from maild.core.mailboxes import (
    CreateRemote,
    DirectoryGone,
    ForgetMailbox,
    Known,
    MailboxGone,
    MailboxOperation,
    RenameLocal,
    RenameRemote,
    Sides,
    comes_with,
    plan_mailboxes,
)
from maild.core.model import Cursor, Epoch, Listing, MailboxName, RemoteMailbox, Scan, ScanTable
from maild.engine.look import open_mailbox
from maild.engine.pull import Work
from maild.local.mailboxes import remove_mailbox, rename_mailbox
from maild.local.state import MailboxState
from maild.local.survey import Survey

NOT_STORED = -1  # the id of a mailbox that the state does not know, and those below

log = structlog.get_logger()


@dataclass(slots=True)
class Settled:
    """The mailboxes after all that was made and renamed: those to look at, those gone from the server, those not.

    `failed` are left alone for this pass; each has its error in the report. `to_make`: those that a dry run would make.
    """

    mailboxes: dict[MailboxName, RemoteMailbox]
    gone: list[MailboxState] = field(default_factory=list)
    failed: set[MailboxName] = field(default_factory=set)
    to_make: list[RemoteMailbox] = field(default_factory=list)


async def settle_mailboxes(work: Work, listing: Listing, survey: Survey) -> Settled:
    """Carry out what concerns whole mailboxes, as far as it comes before their messages."""
    rows = await work.state.run(work.state.state.mailboxes)
    sides = Sides(
        known=[_known(row) for row in rows.values()],
        there=listing,
        here={where: mailbox.identity for where, mailbox in survey.mailboxes.items()},
        is_wanted=work.wants,
        layout=work.account.layout,
    )
    plan, unusable = plan_mailboxes(sides)
    settled = Settled({mailbox.name: mailbox for mailbox in listing.mailboxes})
    for name, reason in unusable.items():
        note_failure(work, name, PlanRefused(f"mailbox {name}: {reason}"))
    _note_doubts(work, rows, survey, settled)
    plan = await _guarded(work, plan, rows, settled)
    renames: list[RenameRemote] = []
    for operation in plan:
        name = operation.name
        if name in settled.failed:
            continue
        try:
            await _carry_out(work, operation, rows, settled, renames)
        except MaildError as exc:
            if exc.scope is not Scope.MAILBOX:
                raise
            settled.failed.add(name)
            settled.mailboxes.pop(name, None)
            note_failure(work, name, exc)
    return settled


def _known(row: MailboxState) -> Known:
    return Known(row.name, row.directory, row.identity, row.object_id, str(row.epoch or ""), row.next_uid)


def note_failure(work: Work, name: str, exc: MaildError) -> None:
    """One mailbox's failure, told in the report and the log."""
    work.failed.add(MailboxName(name))
    report = work.report.mailbox(name)
    report.state = "refused" if isinstance(exc, PlanRefused) else "error"
    report.error = str(exc)
    log.error("mailbox.failed", account=work.account.name, mailbox=name, error=exc.text, hint=exc.hint)


def _note_doubts(work: Work, rows: dict[MailboxName, MailboxState], survey: Survey, settled: Settled) -> None:
    """A directory that cannot be read is not gone: its mailbox is left alone. One that lacks `cur` or `new` is gone."""
    for row in rows.values():
        reason = survey.doubt(row.directory) if row.directory not in survey.mailboxes else None
        if reason is not None and row.identity and not _is_half(work, row):
            settled.failed.add(row.name)
            settled.mailboxes.pop(row.name, None)
            where = work.account.maildir / row.directory
            note_failure(work, row.name, PlanRefused(f"mailbox {row.name}: {where}: {reason}"))


def _is_half(work: Work, row: MailboxState) -> bool:
    """Whether the directory can be read, and no mailbox is in it."""
    try:
        maildir = open_mailbox(work.account.maildir, row)
    except LocalError:
        return False
    if maildir is not None:
        maildir.close()
    return maildir is None


async def _guarded(
    work: Work, plan: list[MailboxOperation], rows: dict[MailboxName, MailboxState], settled: Settled
) -> list[MailboxOperation]:
    """Many mailboxes that vanish from the server at once are more likely its fault than anybody's wish.

    Where as many new ones came, they were renamed, and their messages are found there.
    """
    gone = [o for o in plan if isinstance(o, MailboxGone) and not rows[o.name].approved]
    new = sum(name not in rows for name in settled.mailboxes)
    if not are_too_many_mailboxes(len(gone) - new, len(rows)):
        return plan
    for operation in gone:
        exc = PlanRefused(
            f"mailbox {operation.name} is gone on the server, with {len(gone) - 1} others of {len(rows)};"
            " nothing was deleted here",
            f"if that is right: {approval(work.account.name, operation.name)}",
        )
        settled.failed.add(operation.name)
        note_failure(work, operation.name, exc)
        if not work.dry_run:
            await work.state.run(_refuse_all, work, rows[operation.name], exc.text)
    return [o for o in plan if o not in gone]


def _refuse_all(work: Work, row: MailboxState, text: str) -> None:
    state = work.state.state
    state.refuse(row.id, text, remote=(), local=state.keys(row.id))


async def _carry_out(
    work: Work,
    operation: MailboxOperation,
    rows: dict[MailboxName, MailboxState],
    settled: Settled,
    renames: list[RenameRemote],
) -> None:
    if work.dry_run:
        _foretell(work, operation, rows, settled)
        return
    match operation:
        case RenameRemote():
            await _rename_there(work, operation, rows, settled, renames)
        case RenameLocal():
            await _rename_here(work, operation, rows, settled)
        case CreateRemote(levels=levels, directory=where, name=name):
            await work.announce_change()
            made = await work.remote.create(levels)
            await work.state.run(work.state.state.add_mailbox, made.name, where)
            settled.mailboxes[made.name] = replace(made, mark=None)
            log.info("mailbox.created", account=work.account.name, mailbox=name)
        case MailboxGone(name=name):
            if work.imap.deletions in {"both", "to_local"}:
                settled.gone.append(rows[name])
        case ForgetMailbox(name=name):
            await work.state.run(work.state.state.drop_mailbox, rows[name].id)
        case DirectoryGone():
            pass  # its pass looks whether it was empty


async def _rename_there(
    work: Work,
    operation: RenameRemote,
    rows: dict[MailboxName, MailboxState],
    settled: Settled,
    renames: list[RenameRemote],
) -> None:
    """A renamed parent took its children along on the server: for them the state alone follows."""
    await work.announce_change()
    old, new = operation.name, operation.new_name
    came_along = any(comes_with(operation, parent) for parent in renames)
    if came_along:
        renamed = replace(settled.mailboxes[old], name=new, levels=operation.levels, mark=None)
    else:
        renamed = await work.remote.rename(old, operation.levels)
        renames.append(operation)
    await work.state.run(work.state.state.rename_mailbox, rows[old].id, renamed.name, operation.directory)
    listed = settled.mailboxes.pop(old, None)
    settled.mailboxes[renamed.name] = renamed if listed is None else replace(renamed, role=listed.role)
    log.info("mailbox.renamed", account=work.account.name, mailbox=old, to=new)


async def _rename_here(
    work: Work, operation: RenameLocal, rows: dict[MailboxName, MailboxState], settled: Settled
) -> None:
    await work.announce_change()
    row = rows[operation.name]
    if operation.old_directory != operation.directory:
        try:
            await work.state.run(
                rename_mailbox,
                work.account.maildir,
                PurePosixPath(operation.old_directory),
                PurePosixPath(operation.directory),
            )
        except LocalError as exc:
            if exc.scope is not Scope.MAILBOX:
                raise
            settled.gone.append(row)  # something stands there already: its messages move one by one
            return
    await work.state.run(work.state.state.rename_mailbox, row.id, operation.new_name, operation.directory)
    log.info("mailbox.renamed", account=work.account.name, mailbox=operation.name, to=operation.new_name)


def _foretell(work: Work, operation: MailboxOperation, rows: dict[MailboxName, MailboxState], settled: Settled) -> None:
    match operation:
        case RenameRemote(name=name, new_name=new_name, directory=where):
            work.report.plan.append(f"{name}: rename it to {new_name} on the server")
            work.foreseen[name] = replace(rows[name], directory=where)
        case RenameLocal(name=name, new_name=new_name, old_directory=where):
            work.report.plan.append(f"{name}: rename its directory to that of {new_name}")
            work.foreseen[new_name] = replace(rows[name], name=new_name, directory=where)
        case CreateRemote(name=name, levels=levels, directory=where):
            work.report.plan.append(f"{name}: make it on the server")
            foresee_mailbox(work, name, where)
            settled.to_make.append(RemoteMailbox(name, levels))
        case MailboxGone(name=name):
            if work.imap.deletions in {"both", "to_local"}:
                settled.gone.append(rows[name])
        case DirectoryGone() | ForgetMailbox():
            pass


def foresee_mailbox(work: Work, name: MailboxName, where: str) -> MailboxState:
    """The state of a mailbox that a dry run would begin: messages that would go there are looked for in `where`."""
    row = work.foreseen[name] = MailboxState(NOT_STORED - len(work.foreseen), name, where)
    return row


def scan_of_nothing(row: MailboxState) -> Scan:
    """What a scan of a mailbox finds that the server has no longer, or not yet: nothing, and all of it."""
    return Scan(
        epoch=row.epoch or Epoch(""),
        items=ScanTable(),
        full=True,
        complete=True,
        vanished=frozenset(),
        cursor=Cursor(""),
        mark=None,
        messages=0,
    )


async def remove_here(work: Work, row: MailboxState) -> None:
    """Remove the directory of a mailbox that the server no longer has, if nothing is left in it, and forget it.

    Messages that came in meanwhile stay, and the next pass makes the mailbox anew for them.
    """
    await work.state.run(remove_mailbox, work.account.maildir, PurePosixPath(row.directory))
    await work.state.run(work.state.state.drop_mailbox, row.id)
    log.info("mailbox.deleted", account=work.account.name, mailbox=row.name)


async def delete_there(work: Work, row: MailboxState, seen: Cursor) -> None:
    """Delete on the server a mailbox that was removed here, now that its messages are gone.

    One that has got a new message since it was scanned stays: the next pass sees it.
    """
    if not await work.remote.delete(row.name, seen):
        log.info("mailbox.retained", account=work.account.name, mailbox=row.name)
        return
    await work.state.run(work.state.state.drop_mailbox, row.id)
    log.info("mailbox.deleted", account=work.account.name, mailbox=row.name)
