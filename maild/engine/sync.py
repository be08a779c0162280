"""One pass over one mailbox: scan the server's side, reconcile, guard, propagate, and only then move the cursor.

Whatever interrupts a pass, the cursor stays where it was: the next pass sees the same changes again, finds in the state
what is done, and on the disk what was done without being noted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import PurePosixPath

import anyio
import structlog

from maild.core.errors import PlanRefused
from maild.core.guard import check_deletions
from maild.core.model import NO_FLAGS, DeleteLocal, Key, Operation, RemoteMailbox, Scan, Skipped, Uid
from maild.core.names import MailboxUnusable, directory
from maild.core.ports import RemoteBox
from maild.core.reconcile import News, proven_gone, reconcile
from maild.engine.propagate import Delivery, Unpaired, adopt, apply_local, find_unpaired, local_flags, match_facts
from maild.engine.pull import Doubts, Pull, Work
from maild.local.maildir import Delivered, Maildir
from maild.local.state import MailboxState, SkippedMessage

NOT_DELIVERED = "the server did not deliver it"
LOOKED_UP = 1000  # pairs looked up at a time

log = structlog.get_logger()


async def sync_mailbox(work: Work, remote: RemoteMailbox, finishing: Callable[[MailboxPass], object]) -> None:
    """One pass over one mailbox. `finishing` gets the rest of it, which needs no session any more (`finish`)."""
    report = work.report.mailbox(remote.name)
    report.state = "syncing"
    mailbox = await work.state.run(_known_mailbox, work, remote)
    async with work.remote.visit(remote.name) as box:
        scan = await box.scan(mailbox.cursor if mailbox.epoch is not None else None)
        this = MailboxPass(work, mailbox, scan, await work.state.run(_open_maildir, work, mailbox))
        try:
            await this.decide(box)
            if not work.dry_run:
                await this.propagate(box)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await this.close()
            this.withdraw()
            raise
    finishing(this)


class MailboxPass:
    """A scan, what was decided about it, and how far that is. The directory is missing only in a dry run."""

    def __init__(self, work: Work, mailbox: MailboxState, scan: Scan, maildir: Maildir | None) -> None:
        self.report = work.report.mailbox(mailbox.name)
        self._work = work
        self._log = log.bind(account=work.account.name, mailbox=mailbox.name)  # bound once: it is called per message
        self._mailbox = mailbox
        self._scan = scan
        self._maildir = maildir
        self._delivery = None if maildir is None else Delivery(mailbox, maildir, self._count_durable)
        self._same_epoch = mailbox.epoch == scan.epoch
        self._news = News()
        self._left_out: list[Skipped] = []
        self._retried: set[Uid] = set()
        self._deletions = 0
        self._pulled = 0
        self._pull: Pull | None = None
        self._operations: list[Operation] = []
        self._unpaired: Unpaired | None = None
        self._matched: dict[Uid, Key] = {}
        self._refusal: PlanRefused | None = None

    # -- decide

    async def decide(self, box: RemoteBox) -> None:
        """Compare, guard and match by content; writes nothing anywhere."""
        await self._work.state.run(self._compare)
        if len(self._news.fresh) and self._maildir is not None:
            await self._work.state.run(self._find_unpaired, self._maildir)
            await self._match(box)
        self.report.wanted = len(self._news.fresh) - len(self._matched)
        self.report.refused = self._deletions if self._refusal else 0
        self.report.error = str(self._refusal) if self._refusal else None
        if self._work.dry_run:
            self._foretell()

    def _compare(self) -> None:
        """What the scan says against what the state knows."""
        state, mailbox, news = self._work.state.state, self._mailbox, self._news
        limit = self._work.imap.max_message_size_octets
        skipped = state.skipped(mailbox.id) if self._same_epoch else {}
        too_big = {uid for uid, message in skipped.items() if message.size_octets > limit}
        self.report.skipped = len(too_big)
        if self._same_epoch:
            items = iter(self._scan.items)
            while part := list(islice(items, LOOKED_UP)):
                news.sort(part, state.pairs_of(mailbox.id, [uid for uid, _, _ in part]), too_big)
        else:
            news.fresh = self._scan.items  # the whole mailbox is new
        if not self._scan.full:
            self._add_skipped({uid: message for uid, message in skipped.items() if uid not in too_big})
        self._leave_out(limit)
        if self._same_epoch and (self._scan.full or self._scan.vanished):
            news.gone.extend(state.pairs_of(mailbox.id, self._gone(state.uids(mailbox.id))).values())
        self._settle_operations()

    def _gone(self, known: set[Uid]) -> set[Uid]:
        """Which of these the scan proves to be gone."""
        listed = {uid for uid, _, _ in self._scan.items} if self._scan.full else set()
        return proven_gone(self._scan, known, listed)

    def _add_skipped(self, retry: Mapping[Uid, SkippedMessage]) -> None:
        """Messages that did not come before are asked for again, though nothing about them changed."""
        fresh = {uid for uid, _, _ in self._news.fresh}
        self._retried = retry.keys() - fresh - self._scan.vanished
        for uid in self._retried:
            self._news.fresh.add(uid, NO_FLAGS, retry[uid].size_octets)

    def _leave_out(self, limit: int) -> None:
        given_up = self._work.doubts.get(self._mailbox.name, Doubts()).given_up
        for uid, _, size in self._news.fresh:
            if size > limit:
                self._left_out.append(Skipped(uid, f"larger than max_message_size ({size} octets)", size))
            elif uid in given_up:
                self._left_out.append(Skipped(uid, "the connection ends whenever it is fetched", size))
        if self._left_out:
            self._news.fresh = self._news.fresh.without({message.uid for message in self._left_out})
        self.report.skipped += len(self._left_out)

    def _settle_operations(self) -> None:
        news, account = self._news, self._work.account
        concerned = [*(pair for pair, _ in news.changed), *news.gone]
        local = local_flags(self._maildir, concerned) if self._maildir is not None else {}
        deletes = self._work.imap.deletions in {"both", "to_local"}
        self._deletions = sum(pair.key in local for pair in news.gone)  # what is gone here too deletes nothing
        if deletes and self._deletions:
            try:
                total = self._guarded_total()
                check_deletions(self._mailbox.name, self._deletions, total, account.max_deletions.of(total))
            except PlanRefused as exc:
                self._refusal = exc
                self._log.error("mailbox.refused", reason=exc.text)
        allowed = News(news.fresh, news.changed) if self._refusal else news
        self._operations = reconcile(allowed, local, deletes=deletes)

    def _guarded_total(self) -> int:
        """How many messages the deletions are measured against: those that were here when the last pass was complete.

        What came in while a plan stands refused must not make it look smaller.
        """
        total = self._work.state.state.count(self._mailbox.id) - len(self._news.gone) + self._deletions
        return total if self._mailbox.messages is None else min(total, self._mailbox.messages)

    def _find_unpaired(self, maildir: Maildir) -> None:
        state = self._work.state.state
        found = find_unpaired(state, self._mailbox, maildir, pairs_count=self._same_epoch)
        self._unpaired = found if found.entries else None

    async def _match(self, box: RemoteBox) -> None:
        """Find out which new messages are on this disk already, without fetching them."""
        if self._unpaired is None:
            return
        sizes = self._unpaired.sizes()
        # Of those asked for once more the flags are not known; they are matched when they have come.
        likely = [uid for uid, _, size in self._news.fresh if size in sizes and uid not in self._retried]
        facts = await box.facts(likely) if likely else {}
        self._matched = match_facts(self._unpaired, facts)

    def _foretell(self) -> None:
        report = self.report
        report.pulled, report.adopted = report.wanted, len(self._matched)
        report.wanted_octets = self._news.fresh.without(self._matched).octets
        report.flags = len(self._news.changed)
        report.deleted = sum(isinstance(operation, DeleteLocal) for operation in self._operations)

    # -- propagate

    async def propagate(self, box: RemoteBox) -> None:
        """Local flags and deletions, adoption, then the messages: everything that needs the session."""
        work, delivery = self._work, self._delivery
        if delivery is None:
            return
        if self._operations or len(self._news.fresh):
            await work.announce_change()
        await work.state.run(self._apply, delivery.maildir)
        fresh = self._news.fresh.without(self._matched) if self._matched else self._news.fresh
        self._news.fresh = fresh
        self.report.wanted_octets = fresh.octets
        work.report.wanted_messages += len(fresh)
        work.report.wanted_octets += fresh.octets
        if len(fresh):
            self._pull = Pull(self._mailbox.name, self._scan.epoch, fresh, delivery, self._unpaired)
            await self._pull.run(work, box)

    def withdraw(self) -> None:
        """This attempt has failed: what did not come is no longer expected, the next attempt counts it anew."""
        if self._pull is not None:
            self._work.report.wanted_messages -= self._pull.left_messages
            self._work.report.wanted_octets -= self._pull.left_octets
            self._pull.doubt(self._work)

    def _apply(self, maildir: Maildir) -> None:
        state, mailbox = self._work.state.state, self._mailbox
        if mailbox.epoch is None:
            state.set_epoch(mailbox.id, self._scan.epoch)
        elif not self._same_epoch:
            state.rebuild(mailbox.id, self._scan.epoch)
            self._log.info("mailbox.rebuilt")
            if self._unpaired is not None:
                self._unpaired.orphans = state.orphans(mailbox.id)
        applied = apply_local(state, mailbox, maildir, self._operations)
        if self._matched and self._unpaired is not None:
            flags = {uid: flags for uid, flags, _ in self._news.fresh if uid in self._matched}
            applied.flags += adopt(state, mailbox, self._unpaired, self._matched, flags).flags
        self.report.flags += applied.flags
        self.report.deleted += applied.deleted
        self.report.adopted += len(self._matched)
        if self._left_out:
            state.skip(mailbox.id, self._left_out)

    def _count_durable(self, delivered: Delivered) -> None:
        self.report.pulled += 1
        self._pulled += 1
        self._work.report.done_messages += 1
        self._log.debug("message.pulled", uid=delivered.incoming.uid)

    # -- finish

    async def finish(self) -> None:
        """Wait until all is durable, then move the cursor, unless something has to be seen again."""
        try:
            if self._delivery is not None:
                await self._delivery.settled()
            if not self._work.dry_run:
                await self._work.state.run(self._conclude)
            self.report.state = "refused" if self._refusal else "error" if self.report.error else "ok"
        finally:
            with anyio.CancelScope(shield=True):
                await self.close()

    def _conclude(self) -> None:
        state, mailbox, scan = self._work.state.state, self._mailbox, self._scan
        self._note_missing()
        state.set_refused(mailbox.id, None if self._refusal is None else self._refusal.text)
        if self._refusal is not None:
            return
        if not scan.complete:
            self.report.error = (
                "the server listed only a part of it; nothing was taken for deleted, the rest comes later"
            )
            state.set_error(mailbox.id, self.report.error)
            self._log.warning("mailbox.failed", error=self.report.error)
            return
        state.drop_orphans(mailbox.id, list(state.orphans(mailbox.id)))
        if state.count(mailbox.id) + len(state.skipped(mailbox.id)) == scan.messages:
            state.finish(mailbox.id, scan.cursor, scan.mark, scan.messages, time.time())
        else:  # something was missed, whoever's fault it is: the next pass compares everything
            state.finish(mailbox.id, None, None, scan.messages, time.time())

    def _note_missing(self) -> None:
        """What was asked for and did not come is gone, or the server cannot deliver it: asked for again next time."""
        state, mailbox = self._work.state.state, self._mailbox
        have = state.uids(mailbox.id) if self._pulled < len(self._news.fresh) else None
        if have is not None:
            missing = [(uid, size) for uid, _, size in self._news.fresh if uid not in have]
            state.skip(mailbox.id, [Skipped(uid, NOT_DELIVERED, size) for uid, size in missing])
            for uid, _ in missing:
                self._log.warning("message.skipped", uid=uid, reason=NOT_DELIVERED)
        if skipped := state.skipped(mailbox.id):
            settled = set(state.pairs_of(mailbox.id, list(skipped)))
            past = settled | self._gone(set(skipped))
            state.unskip(mailbox.id, past)
            self.report.skipped = len(skipped.keys() - past)

    async def close(self) -> None:
        """Close the directory, once nothing writes to it any more."""
        if self._delivery is not None:
            await self._delivery.drained()
        if self._maildir is not None:
            self._maildir.close()


def _known_mailbox(work: Work, remote: RemoteMailbox) -> MailboxState:
    state = work.state.state
    rows = state.mailboxes()
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


def _open_maildir(work: Work, mailbox: MailboxState) -> Maildir | None:
    """The mailbox's directory, made if this disk never had it. One that is gone is not made again behind one's back."""
    root, relative = work.account.maildir, PurePosixPath(mailbox.directory)
    maildir = Maildir.open(root, relative)
    if maildir is None and mailbox.id and work.state.state.count(mailbox.id):
        raise PlanRefused(
            f"mailbox {mailbox.name}: its directory {root / relative} is gone, and it was not maild that removed it",
            "mount or restore it; to fetch it all again, remove the account's file in state_dir",
        )
    if work.dry_run:
        return maildir
    maildir = maildir or Maildir.create(root, relative)
    maildir.delete_stale_tmp(time.time())
    return maildir
