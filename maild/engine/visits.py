"""Which mailboxes of an account have to be opened in a pass, and how the pass of one begins.

A mailbox whose mark in the listing and whose directory are as they were when it was last brought up to date is not
opened at all, unless something did not travel then and may do so now.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from maild.core.errors import MaildError, NoSuchMailbox, Scope, did_you_mean
from maild.core.mailboxes import INBOX
from maild.core.model import MailboxName, RemoteMailbox
from maild.core.names import MailboxUnusable, directory
from maild.engine.look import Look, look_at, look_if_changed, open_mailbox
from maild.engine.mailboxes import Settled, foresee_mailbox
from maild.engine.pull import Work
from maild.engine.sync import MailboxPass
from maild.local.state import MailboxState
from maild.local.survey import Survey, survey

SLOW_MESSAGES = 20_000  # reading the names of so many takes about as long as a round trip


@dataclass(frozen=True, slots=True)
class Visit:
    """A mailbox that has to be opened, with the look at its directory if there was one already."""

    remote: RemoteMailbox
    look: Look | None = None


class Visits:
    """The choice for one pass; `look_around` comes first, while the server is asked for its listing."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._looks: dict[int, Look] = {}  # by the mailbox's id in the state
        self.failed: dict[MailboxName, MaildError] = {}  # mailboxes whose directory cannot be looked at

    def look_around(self) -> tuple[Survey, list[MailboxState]]:
        """Look at what changed here while the server answers: all mailboxes, and those that are not as they
        were. Blocks for a few system calls each."""
        account = self._work.account
        found = survey(account.maildir, account.layout)
        changed: list[MailboxState] = []
        for row in self._work.state.state.mailboxes().values():
            here = found.mailboxes.get(row.directory)
            if here is not None and row.epoch is not None and here.stamp.text() != row.stamp:
                changed.append(row)
        return found, changed

    def at_once(self, changed: Sequence[MailboxState]) -> list[MailboxState]:
        """Those to be asked for before these have been looked into: of which reading the names may take longer than
        LIST; and INBOX where nothing changed, for if anything is new on the server, it is there."""
        if changed:
            return [row for row in changed if (row.messages or 0) >= SLOW_MESSAGES]
        return [row for row in self._work.rows().values() if row.name == INBOX]

    def look_into(self, changed: Sequence[MailboxState]) -> list[MailboxState]:
        """Look at all that is in these mailboxes; those in which there is something to do. Blocks."""
        news: list[MailboxState] = []
        for row in changed:
            if (look := self._look(row)) is not None:
                self._looks[row.id] = look
                news += [row] if look.has_news else []
        return news

    def _look(self, row: MailboxState) -> Look | None:
        """None, and a note in `failed`, where that mailbox cannot be looked at. Raises what concerns the account."""
        try:
            with open_mailbox(self._work.account.maildir, row) or nullcontext() as maildir:
                return look_at(self._work.state.state, row, maildir, may_note=not self._work.dry_run)
        except MaildError as exc:
            if exc.scope is not Scope.MAILBOX:
                raise
            self.failed[row.name] = exc
            return None

    def expect(self, some: Sequence[MailboxState], only: Sequence[str], *, has_mail: bool = False) -> bool:
        """Tell the server's side that one of these mailboxes comes first, whatever the listing says: it saves a round
        trip. Whether there was one.

        They are those with news here, or maybe with news, or those of which the server said that they have some.
        """
        wanted = [(row.name, row.cursor) for row in some if row.cursor and (not only or row.name in only)]
        for name, cursor in sorted(wanted, key=lambda one: one[0] != INBOX)[:1]:
            self._work.remote.expect(name, cursor, read_only=self._work.dry_run, has_mail=has_mail)
        return bool(wanted)

    async def chosen(self, settled: Settled, found: Survey, only: Sequence[str]) -> list[Visit]:
        work = self._work
        gone = {row.name for row in settled.gone}
        if missing := sorted(set(only) - settled.mailboxes.keys() - settled.failed - gone):
            names = ", ".join(f'"{name}"{did_you_mean(name, settled.mailboxes)}' for name in missing)
            raise NoSuchMailbox(f"no such mailbox among those synchronised: {names}")
        wanted = [m for m in settled.mailboxes.values() if not only or m.name in only]
        visits = await work.state.run(self._changed, wanted, found)
        if not work.dry_run:
            self._expect_mail(visits)
        failed = [name for name in self.failed if not only or name in only]
        work.report.unchanged = len(wanted) - len(visits) - len(failed)
        return sorted(visits, key=lambda visit: visit.remote.name != INBOX)

    def _expect_mail(self, visits: Sequence[Visit]) -> None:
        """Where the server has more messages than the last pass left, new ones may come with the first look there."""
        rows = self._work.rows()
        for remote in (visit.remote for visit in visits):
            row = rows.get(remote.name)
            if row is not None and row.cursor and (remote.messages or 0) > (row.messages or 0):
                self._work.remote.expect(remote.name, row.cursor, has_mail=True)

    def _changed(self, mailboxes: list[RemoteMailbox], found: Survey) -> list[Visit]:
        """Those that have to be opened: a mark moved, or something was left that may come or go now."""
        state, known = self._work.state.state, self._work.rows()
        with_leftovers = state.with_leftovers()
        visits: list[Visit] = []
        stamps: dict[int, str | None] = {}
        for mailbox in mailboxes:
            row = known.get(mailbox.name)
            if mailbox.name in self.failed:
                continue
            is_done = row is not None and not (row.epoch is None or row.undone or row.refused)
            if row is None or not is_done or mailbox.mark is None or row.mark != mailbox.mark:
                visits.append(Visit(mailbox, None if row is None else self._looks.get(row.id)))
                continue
            here = found.mailboxes.get(row.directory)
            look = self._looks.get(row.id)
            if here is None and not state.count(row.id):
                visits.append(Visit(mailbox))  # an empty one whose directory has to be made again
                continue
            if look is None and (here is None or here.stamp.text() != row.stamp):
                look = self._look(row)
                if look is None:
                    continue
            if look is not None and look.is_here and not look.has_news and look.stamp != row.stamp:
                stamps[row.id] = look.stamp  # all that is in it is known: it need not be read again until it changes
            has_leftovers = row.id in with_leftovers and self._has_leftovers(row, look)
            if (look is not None and (look.has_news or not look.is_here)) or has_leftovers:
                visits.append(Visit(mailbox, look))
            else:
                self._work.report.mailbox(mailbox.name).state = "ok"
        if stamps and not self._work.dry_run:
            state.set_stamps(stamps)
        return visits

    def _has_leftovers(self, row: MailboxState, look: Look | None) -> bool:
        """Whether messages did not travel that may do so now. What is known of files that are gone is dropped."""
        work, state = self._work, self._work.state.state
        if any(orphan.is_untold or orphan.only == "unsure" for orphan in state.orphans(row.id).values()):
            return True
        if any(
            row.id == mailbox_id or (copies and row.id == copies[0])
            for (mailbox_id, _), copies in state.going().items()
        ):
            return True
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

    def may_have_moves(self, visits: Sequence[Visit]) -> bool:
        """Whether a message may have gone from one of these to another: the first must have had it."""
        rows = self._work.rows()
        return any(visit.remote.name in rows and rows[visit.remote.name].epoch for visit in visits)


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
            return row, look_if_changed(work.state.state, row, maildir, may_note=not work.dry_run)

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
    return foresee_mailbox(work, remote.name, where) if work.dry_run else state.add_mailbox(remote.name, where)
