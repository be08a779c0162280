"""One mailbox's pass: what is new on either side, what is to be done about it, and whether the guard lets it pass.

Whatever interrupts a pass, cursor and stamp stay where they were: the next pass sees the same changes again, finds in
the state what is done, and on both sides what was done without being noted.

The steps, in the order in which `engine.whole` takes them: `scan` and `compare` (what is new on either side), then,
with all mailboxes of the account known so far, `engine.moves`, then `plan` (the decision, and the guard) and `match`
(what is on both sides already); then `engine.carry_out`, which does it, and `engine.finish`, which waits until all is
durable and only then moves the cursor. In a dry run `engine.foretell` takes the place of these two.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple

import structlog

from maild.core.errors import LocalError, PlanRefused
from maild.core.flags import same_flags
from maild.core.guard import HERE, THERE, approval, is_too_many, refusal
from maild.core.identity import LocalIdentity
from maild.core.mailboxes import INBOX
from maild.core.model import (
    NO_FLAGS,
    DeleteLocal,
    DeleteRemote,
    Flags,
    Forget,
    Key,
    MailboxName,
    MergeFlags,
    Operation,
    Pair,
    Permitted,
    RemoteMailbox,
    Scan,
    Skipped,
    Uid,
)
from maild.core.moves import likely
from maild.core.ports import RemoteBox
from maild.core.reconcile import RemoteNews, Rules, proven_gone, reconcile
from maild.engine.adopt import Alike, Unpaired, kept_uid, match_facts, read_unpaired, uid_order, unsure_of
from maild.engine.apply import Relocation
from maild.engine.look import Look, flags_here, open_mailbox
from maild.engine.propagate import Delivery
from maild.engine.pull import Doomed, Doubts, Pull, Work
from maild.local.maildir import Maildir
from maild.local.marker import check_still_there
from maild.local.scan import Entry
from maild.local.state import MailboxState, SkippedMessage
from maild.local.withheld import Refusal, Unsent, UnsentMessage

ANY_FLAGS = Permitted(frozenset({"\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen", "$Forwarded"}))
GIVEN_UP = "the connection ends whenever it is fetched"
LOOKED_UP = 1000  # pairs looked up at a time

log = structlog.get_logger()


def too_big(uid: Uid, size_octets: int) -> Skipped:
    """A message that is left on the server for its size."""
    return Skipped(uid, f"larger than max_message_size ({size_octets} octets)", size_octets)


class Move(NamedTuple):
    """A message that a reader moved: its pair, the key of its file now, and its flags on the server."""

    pair: Pair
    key: Key
    flags: Flags


class MailboxPass:
    """A scan of both sides, what was decided about it, and how far that is. Only `engine` touches its attributes.

    `local` and `remote` are the news about pairs, `unpaired` files without one. `engine.moves` takes from these what
    has only moved, and leaves `relocations` (files to come here), `moves_there` (messages to go to another mailbox),
    `left_behind` (messages to be expunged here, for they were copied there already), `trashed`
    (messages to be deleted that are in the trash already) and `rekeyed` (files with another unique name). Files of
    which only the pull tells whether they moved or are to be deleted are `unpaired.unsure`. `awaited` are keys that
    somebody has to deal with before the directory may count as looked at.
    """

    def __init__(self, work: Work, remote: RemoteMailbox, mailbox: MailboxState, look: Look) -> None:
        self.name = remote.name
        self.report = work.report.mailbox(remote.name)
        self.mailbox = mailbox
        self.local = look.news
        self.remote = RemoteNews()
        self.unpaired = Unpaired()
        self.rules = Rules(deletes_here=False, deletes_there=False, permitted=None)
        self.retried: frozenset[Uid] = frozenset()
        self.relocations: list[Relocation] = []
        self.moves_there: dict[MailboxName, list[Move]] = defaultdict(list)
        self.left_behind: list[Uid] = []
        self.trashed: set[Uid] = set()
        self.rekeyed: list[tuple[Pair, Entry]] = []
        self.doomable: list[Pair] = []  # pairs gone on both sides that may come back elsewhere …
        self.may_come_back = 0  # … at most so many
        self.awaited = work.awaited[remote.name]
        self.is_leaving = not remote.levels  # the server has it no longer
        self.operations: list[Operation] = []
        self.work = work
        self.listed = remote
        self.look = look
        work.seconds[mailbox.id] = look.seconds
        self.log = log.bind(account=work.account.name, mailbox=remote.name)  # bound once: it is called per message
        self.same_epoch = False
        self._scan: Scan | None = None
        self.here: dict[Uid, Flags] = {}
        self.left_out: list[Skipped] = []
        self.unfetched: list[tuple[Uid, int]] = []  # with sizes: those, and others that do not come in this pass
        self.too_big: set[Uid] = set()  # new messages that are not to come, and may be what a file here is
        self.compared: set[Uid] = set()  # of these, those that come all the same, for only their content tells
        self._left_before: dict[Uid, int] = {}  # with sizes: those that an earlier pass left for their size
        self.waiting: set[Key] = set()  # files that the server did not take, or may have, until their time has come
        self.untold: set[Key] = set()  # files of which is to be remembered that the server has taken them
        self._untold_before = 0
        self.matched: dict[Uid, Key] = {}
        self._planned: tuple[list[Key], list[Uid]] = [], []  # deletions here and there, as the guard saw them
        self._counted = 0  # messages that they were measured against
        self.refusal: PlanRefused | None = None
        self.maildir: Maildir | None = None
        self.delivery: Delivery | None = None
        self.pull: Pull | None = None
        self.pulled = 0
        self.foreseen_doomed = 0  # messages that a pass would delete on the server instead of pulling them
        self.is_undone = False  # something was not carried out, and has to be looked for again here
        self.is_missed = False  # the same, of what the server said: it has to be asked for everything

    # -- look

    @property
    def found(self) -> Scan:
        """The scan, which there is from `scan` on."""
        if self._scan is None:
            raise RuntimeError("a pass is scanned before anything else")
        return self._scan

    async def scan(self, box: RemoteBox) -> None:
        """Look at the server's side, and sort both sides' news."""
        cursor = self.mailbox.cursor if self.mailbox.epoch is not None else None
        await self.compare(await box.scan(cursor))

    async def compare(self, scan: Scan) -> None:
        self._scan = scan
        self.work.epochs[self.name] = scan.epoch
        self.same_epoch = self.mailbox.epoch == scan.epoch
        deletions = self.work.imap.deletions
        # A dry run opens mailboxes for reading only, which says nothing about what may be written.
        self.rules = Rules(
            deletes_here=deletions in {"both", "to_local"},
            deletes_there=deletions in {"both", "to_remote"},
            permitted=ANY_FLAGS if self.work.dry_run and not self.is_leaving else scan.permitted,
        )
        await self.work.state.run(self._compare)

    def _compare(self) -> None:
        scan, state, mailbox, news = self.found, self.work.state.state, self.mailbox, self.remote
        limit = self.work.imap.max_message_size_octets
        skipped = state.skipped(mailbox.id) if self.same_epoch else {}
        self._left_before = {uid: m.size_octets for uid, m in skipped.items() if m.size_octets > limit}
        wait = {uid for uid, m in skipped.items() if uid in self._left_before or not self.work.is_due(m)}
        self.report.skipped = len(wait)
        self.unfetched = [(uid, skipped[uid].size_octets) for uid in wait]
        if self.same_epoch:
            items = iter(scan.items)
            while part := list(islice(items, LOOKED_UP)):
                news.sort(part, state.pairs_of(mailbox.id, [uid for uid, _, _ in part]), wait)
        else:
            news.fresh = scan.items  # the whole mailbox is new
            self.local.gone.clear()
            self.local.changed.clear()
        if not scan.full:
            self._add_skipped({uid: message for uid, message in skipped.items() if uid not in wait})
        self._note_left_out(limit)
        there = [*(uid for uid, _, _ in news.fresh), *(uid for uid, _ in self.unfetched)]
        self.work.newest[self.name] = max(there, key=uid_order, default=Uid(""))
        if self.same_epoch and (scan.full or scan.vanished):
            known = state.uids(mailbox.id) if scan.full else set(scan.vanished)
            news.gone = state.pairs_of(mailbox.id, self.gone_among(known))
        self._look_closer()
        self._look_at_big_files()
        unsure = self.work.unsure[self.name]
        for key, orphan in self.unpaired.orphans.items():
            is_here = key in self.unpaired.entries and self.unpaired.content_of(key) == orphan.content
            if orphan.only == "unsure" and is_here:
                unsure.setdefault(key, unsure_of(mailbox.id, orphan))
        for key, was in unsure.items():  # of an attempt before this one
            if key in self.unpaired.entries and key not in self.unpaired.orphans:
                self.unpaired.remember(key, was.pair)
        self.unpaired.unsure = unsure

    def gone_among(self, known: set[Uid]) -> set[Uid]:
        """Which of these the scan proves to be gone."""
        scan = self.found
        listed = {uid for uid, _, _ in scan.items} if scan.full else set()
        return proven_gone(scan, known, listed)

    def _add_skipped(self, retry: Mapping[Uid, SkippedMessage]) -> None:
        """Messages that did not come before are asked for again, though nothing about them changed."""
        fresh = {uid for uid, _, _ in self.remote.fresh}
        self.retried = frozenset(retry.keys() - fresh - self.gone_among(set(retry)))
        for uid in sorted(self.retried):
            self.remote.fresh.add(uid, NO_FLAGS, retry[uid].size_octets)

    def _note_left_out(self, limit: int) -> None:
        given_up = self.work.doubts.get(self.name, Doubts()).given_up
        self._leave_out([Skipped(uid, GIVEN_UP, size) for uid, _, size in self.remote.fresh if uid in given_up])
        self.too_big = {uid for uid, _, size in self.remote.fresh if size > limit}

    def _leave_out(self, messages: Sequence[Skipped]) -> None:
        if messages:
            self.left_out += messages
            self.remote.fresh = self.remote.fresh.without({message.uid for message in messages})
            self.report.skipped += len(messages)
            self.unfetched += [(message.uid, message.size_octets) for message in messages]

    def _look_at_big_files(self) -> None:
        """A message that was left there for its size may have come here in another way."""
        if not self._left_before or not self.unpaired.entries:
            return
        sizes = self.unpaired.sizes()
        alike = {uid: size for uid, size in self._left_before.items() if size in sizes}
        if not self.bring_back(alike):
            identities = self.unpaired.identities
            self.waiting |= {key for key, i in identities.items() if i.facts.size_octets in alike.values()}

    def left_like(self, sizes: Sequence[int]) -> list[Uid]:
        """Those that an earlier pass left for their size and that may have one of these on disk."""
        return likely(sizes, list(self._left_before.items()))

    def bring_back(self, uids: Collection[Uid]) -> bool:
        """Count messages that were left for their size as new: they may be what a file is.

        False where the scan tells only what has changed since: the next one tells it all.
        """
        if not uids:
            return True
        listed = {uid: (flags, size) for uid, flags, size in self.found.items if uid in uids}
        for uid, (flags, size) in listed.items():
            self.remote.fresh.add(uid, flags, size)
            del self._left_before[uid]
        self.too_big |= listed.keys()
        self.unfetched = [(uid, size) for uid, size in self.unfetched if uid not in listed]
        self.report.skipped -= len(listed)
        is_all = len(listed) + len(self.gone_among(set(uids) - listed.keys())) == len(uids)
        self.is_missed |= not is_all
        return is_all

    def _look_closer(self) -> None:
        """The flags of the files that the server changed, and what the files without a pair are."""
        maildir = self.opened(make=False)
        if maildir is None:
            self.unpaired = Unpaired(orphans=self.work.state.state.orphans(self.mailbox.id))
            return
        pairs = {uid: pair for uid, (pair, _) in self.remote.changed.items() if uid not in self.local.changed}
        found = maildir.locate({pair.key: pair.flags for pair in pairs.values()}) if pairs else {}
        self.here = {
            uid: flags_here(maildir, found[pair.key], pair.flags) for uid, pair in pairs.items() if pair.key in found
        }
        is_known = self.same_epoch or self.mailbox.epoch is None
        entries = self.look.unpaired if is_known else maildir.entries()
        state = self.work.state.state
        needs_all = not self.same_epoch or self.mailbox.last_pass_s is None
        self.unpaired = read_unpaired(state, self.mailbox, maildir, entries, needs_all=needs_all)
        self._untold_before = sum(note.is_taken for note in self.unpaired.untold())
        unsent = state.unsent(self.mailbox.id) if self.same_epoch else {}
        if not self.work.dry_run and unsent.keys() - entries.keys():
            state.unsent_done(self.mailbox.id, unsent.keys() - entries.keys())
        self.waiting = {key for key, m in unsent.items() if key in entries and not self.work.is_due(m)}
        self._hold_back_unreadable(unsent)
        self.report.held_back = len((unsent.keys() | self.unpaired.unreadable.keys()) & entries.keys())

    def _hold_back_unreadable(self, unsent: Mapping[Key, UnsentMessage]) -> None:
        """They are tried at every pass."""
        unreadable = self.unpaired.unreadable
        if unreadable and not self.work.dry_run:
            held = [Unsent(key, file.reason, file.size_octets or 0, waits=False) for key, file in unreadable.items()]
            self.work.state.state.hold_back(self.mailbox.id, held)
            for key in unreadable.keys() - unsent.keys():
                self.log.warning("message.refused", octets=unreadable[key].size_octets, reason=unreadable[key].reason)

    def look_without_server(self) -> None:
        """Only this disk: what the files without a pair are. Blocks."""
        maildir = self.opened(make=False)
        if maildir is not None:
            self.unpaired = read_unpaired(self.work.state.state, self.mailbox, maildir, self.look.unpaired)

    def identities_of(self, pairs: Sequence[Pair]) -> dict[Key, LocalIdentity]:
        """What the files of these pairs are, without those that cannot be read, of which nothing is known. Blocks."""
        maildir = self.opened(make=False)
        entries = {} if maildir is None else maildir.locate({pair.key: pair.flags for pair in pairs})
        found: dict[Key, LocalIdentity] = {}
        for key, entry in entries.items():
            with suppress(LocalError):
                if maildir is not None and (identity := maildir.identity(entry)) is not None:
                    found[key] = identity
        return found

    def remote_flags(self, uids: Collection[Uid]) -> dict[Uid, Flags]:
        """The flags of these new messages."""
        return {uid: flags for uid, flags, _ in self.remote.fresh if uid in uids}

    # -- decide

    async def plan(self) -> None:
        """Decide, and let the guard look at the deletions. Writes nothing on either side."""
        await self.work.state.run(self._plan)

    def _plan(self) -> None:
        self._take_new_names()
        self.operations = reconcile(self.remote, self.local, self._here_of_changed(), self.rules)
        delete_here = [o for o in self.operations if isinstance(o, DeleteLocal)]
        delete_there = [o for o in self.operations if isinstance(o, DeleteRemote)]
        coming_back = [pair.uid for pair in self.doomable[: self.may_come_back]]
        self._planned = [o.key for o in delete_here], [*(o.uid for o in delete_there), *coming_back]
        if any(self._planned) or self.unpaired.unsure:  # else nothing is, nor will be, measured against it
            self._counted = self._guarded_total()
        if delete_there and not self.work.dry_run:
            check_still_there(self.work.account.maildir, self.work.state.state)
        self._guard(*self._planned)
        if self.refusal is not None:
            self.operations = [o for o in self.operations if not isinstance(o, DeleteLocal | DeleteRemote)]
            self.doomable.clear()
        for pair in self.doomable:
            self.work.doomed[pair.content].append(Doomed(self.mailbox.id, self.name, pair))

    def may_delete(self, keys: Collection[Key]) -> bool:
        """Whether the guard lets these files go as well, beside what was planned."""
        here, there = self._planned
        self._planned = [*here, *keys], there
        self._guard(*self._planned)
        return self.refusal is None

    def _take_new_names(self) -> None:
        """Files with another unique name: their pairs count with that name, and may have other flags too."""
        maildir = self.opened(make=False) if self.rekeyed else None
        for pair, entry in self.rekeyed:
            if maildir is None:
                break
            known = replace(pair, key=entry.key)
            self.here[pair.uid] = flags_here(maildir, entry, pair.flags)
            if pair.uid in self.remote.changed:
                self.remote.changed[pair.uid] = known, self.remote.changed[pair.uid][1]
            elif not same_flags(self.here[pair.uid], pair.flags):
                self.local.changed[pair.uid] = known, self.here[pair.uid]

    def _here_of_changed(self) -> dict[Uid, Flags]:
        """Of the pairs that the server changed those whose file is there; the others are gone, and found so later."""
        for uid in [uid for uid in self.remote.changed if uid not in self.here and uid not in self.local.changed]:
            if uid not in self.local.gone:
                del self.remote.changed[uid]
                self.is_undone = self.is_missed = True
        return self.here

    def _guard(self, delete_here: list[Key], delete_there: list[Uid]) -> None:
        state, mailbox, account = self.work.state.state, self.mailbox, self.work.account
        stored = state.refusal(mailbox.id)
        if stored is not None and stored.approved and _is_part_of(stored, delete_here, delete_there):
            return
        total = max(self._counted, len(delete_here), len(delete_there))
        allowed = account.max_deletions.of(total)
        if not self.look.is_here and delete_there:
            self.refusal = PlanRefused(
                f"mailbox {self.name}: its directory {account.maildir / mailbox.directory} is gone, with"
                f" {len(delete_there)} messages; nothing was deleted on the server",
                f"mount or restore it; to delete them there too: {approval(account.name, self.name)}",
            )
        elif is_too_many(len(delete_here), total, allowed):
            self.refusal = refusal(account.name, self.name, len(delete_here), total, HERE)
        elif is_too_many(len(delete_there), total, allowed):
            self.refusal = refusal(account.name, self.name, len(delete_there), total, THERE)
        if self.refusal is not None:
            self.report.refused = len(delete_here) + len(delete_there)
            self.report.error = str(self.refusal)
            self.log.error("mailbox.refused", reason=self.refusal.text)
            if not self.work.dry_run:
                state.refuse(mailbox.id, self.refusal.text, remote=delete_there, local=delete_here)

    def _guarded_total(self) -> int:
        """How many messages the deletions are measured against: those that were here when the last pass was complete.

        What came in while a plan stands refused must not make it look smaller.
        """
        forgotten = sum(isinstance(operation, Forget) for operation in self.operations)
        going = sum(
            was.pair.uid == kept_uid(key) for key, was in self.unpaired.unsure.items()
        )  # their pairs went first
        total = self.work.state.state.count(self.mailbox.id) - forgotten + going
        untold = sum(note.is_taken for note in self.unpaired.untold())  # of which no pair was made since
        if self.mailbox.messages is not None:
            total = min(total + untold, self.mailbox.messages + self._untold_before)
        return total

    async def match(self, box: RemoteBox) -> None:
        """Find out which new messages are on this disk already, without fetching them."""
        if len(self.remote.fresh) and self.unpaired.entries:
            sizes = self.unpaired.sizes()
            # Of those asked for once more the flags are not known; they are matched when they have come.
            likely = [uid for uid, _, size in self.remote.fresh if size in sizes and uid not in self.retried]
            facts = await box.facts(likely) if likely else {}
            matched = match_facts(self.unpaired, facts, await self.work.state.run(self._alike, likely))
            unsure = self.unpaired.unsure_contents()
            self.matched = {uid: key for uid, key in matched.items() if self.unpaired.content_of(key) not in unsure}
            mine = {identity.facts for identity in self.unpaired.identities.values()}
            self.compared = {uid for uid in self.too_big - self.matched.keys() if facts.get(uid) in mine}
        left = self.too_big - self.matched.keys() - self.compared
        self._leave_out([too_big(uid, size) for uid, _, size in self.remote.fresh if uid in left])
        self.report.wanted = len(self.remote.fresh) - len(self.matched)

    def _alike(self, uids: Collection[Uid]) -> Alike:
        """Whether a new message has the flags that a file has; found out only when it is asked."""
        maildir, entries, wanted = self.opened(make=False), self.unpaired.entries, set(uids)
        there: dict[Uid, Flags] = {}

        def is_alike(uid: Uid, key: Key) -> bool:
            if not there:
                there.update(self.remote_flags(wanted))
            return maildir is not None and same_flags(maildir.flags(entries[key]), there[uid])

        return is_alike

    @property
    def is_refused(self) -> bool:
        """Whether the guard refused the deletions of this pass."""
        return self.refusal is not None

    @property
    def is_stopped(self) -> bool:
        """Whether nothing at all is to be done: its directory is gone, and that is not approved."""
        return self.refusal is not None and not self.look.is_here

    @property
    def is_to_be_deleted_there(self) -> bool:
        """Whether the mailbox was removed here, for good, and nothing is left of it on the server."""
        if self.look.is_here or not self.is_removed or self.is_undone or self.work.dry_run:
            return False
        return self.found.complete and self.found.messages + self.work.remote_delta[self.mailbox.id] == 0

    @property
    def is_removed(self) -> bool:
        """Whether the mailbox has no directory and is to have none: gone on the server, or removed here on purpose."""
        if self.is_leaving:
            return True
        is_furniture = self.name == INBOX or self.listed.role
        may_go = self.rules.deletes_there and self.rules.permitted is not None and not is_furniture
        is_to_come = bool(len(self.remote.fresh) or self.relocations)
        return not self.look.is_here and may_go and not is_to_come

    @property
    def needs_server(self) -> bool:
        """Whether anything is left that cannot be done without a session."""
        merges = any(isinstance(o, MergeFlags) and (o.add or o.remove) for o in self.operations)
        deletes = any(isinstance(o, DeleteRemote) for o in self.operations)
        to_send = self.to_send and self.rules.permitted is not None
        moves = self.moves_there or self.left_behind or self.relocations
        return bool(merges or deletes or len(self.remote.fresh) or to_send or moves)

    @property
    def to_send(self) -> set[Key]:
        """Files that are new here, unless they turn out to be on the server."""
        unpaired = self.unpaired
        return unpaired.entries.keys() - self.waiting - unpaired.kept_here.keys() - unpaired.unsure.keys()

    def flags_before(self, operation: MergeFlags) -> Flags:
        if operation.uid in self.local.changed:
            return self.local.changed[operation.uid][1]
        return self.here.get(operation.uid, operation.flags)

    # -- the directory

    def opened(self, make: bool) -> Maildir | None:
        """The mailbox's directory, kept open until `rest`; with `make` it is made where it is missing."""
        if self.maildir is None:
            self.maildir = open_mailbox(self.work.account.maildir, self.mailbox)
            if self.maildir is None and make and not self.work.dry_run:
                check_still_there(self.work.account.maildir, self.work.state.state)
                self.maildir = Maildir.create(self.work.account.maildir, PurePosixPath(self.mailbox.directory))
        if self.maildir is not None and make and not self.work.dry_run:
            self.maildir.delete_stale_tmp(time.time())
        return self.maildir

    def rest(self) -> None:
        """Let go of the directory until it is needed again: there may be thousands of mailboxes."""
        if self.maildir is not None and self.delivery is None:
            self.maildir.close()
            self.maildir = None

    async def close(self) -> None:
        """Close the directory, once nothing writes to it any more."""
        if self.delivery is not None:
            await self.delivery.drained()
            self.delivery = None
        self.rest()


def _is_part_of(approved: Refusal, delete_here: Collection[Key], delete_there: Collection[Uid]) -> bool:
    """Whether these deletions are those of an approved plan, or some of them."""
    return approved.delete_remote >= set(delete_there) and approved.delete_local >= set(delete_here)
