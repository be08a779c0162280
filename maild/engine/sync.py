"""One mailbox's pass: look at both sides, reconcile, guard, propagate, and only then move the cursor.

Whatever interrupts a pass, cursor and stamp stay where they were: the next pass sees the same changes again, finds in
the state what is done, and on both sides what was done without being noted.

The steps, in the order in which `engine.account` calls them: `scan` and `compare` (what is new on either side), then,
with all mailboxes of the account known so far, `engine.moves`, then `plan` (the decision, and the guard), `propagate`
(everything that needs the server) and `finish` (wait until all is durable, note where we are).
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple, cast

import anyio
import structlog

from maild.core.errors import PlanRefused, ProtocolViolation, Rejected
from maild.core.flags import same_flags
from maild.core.guard import HERE, THERE, approval, is_too_many, refusal
from maild.core.identity import LocalIdentity
from maild.core.mailboxes import INBOX
from maild.core.model import (
    NO_FLAGS,
    DeleteLocal,
    DeleteRemote,
    Fetched,
    Flags,
    Forget,
    Keep,
    Key,
    MailboxName,
    MergeFlags,
    Operation,
    Pair,
    Permitted,
    RemoteMailbox,
    Scan,
    ScanTable,
    Skipped,
    Uid,
)
from maild.core.moves import Content
from maild.core.ports import BodyWriter, RemoteBox
from maild.core.reconcile import RemoteNews, Rules, merge_flags, proven_gone, reconcile
from maild.engine.adopt import Adopted, Alike, Unpaired, adopt, fetched_content, kept_uid, match_facts, read_unpaired
from maild.engine.apply import Relocation, merge_files, reflag, relocate, remove_files
from maild.engine.look import Look, flags_here, open_mailbox
from maild.engine.propagate import Delivery
from maild.engine.pull import Doubts, Pull, Work
from maild.engine.push import append_files, delete_there, expunge_there, store_flags
from maild.local.delivery import Delivered
from maild.local.maildir import Maildir
from maild.local.scan import Entry
from maild.local.state import Changes, MailboxState, SkippedMessage
from maild.local.withheld import Refusal

NOT_DELIVERED = "the server did not deliver it"
ANY_FLAGS = Permitted(frozenset({"\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen", "$Forwarded"}))
COMPARED_OCTETS = 1 << 20  # what a dry run fetches to compare: messages up to this size, and so much at once
LOOKED_UP = 1000  # pairs looked up at a time

log = structlog.get_logger()


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
    (messages to be deleted that are in the trash already), `rekeyed` (files with another
    unique name) and `doomed_files`. `awaited` are keys that somebody has to deal with
    before the directory may count as looked at.
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
        self.doomed_files: list[Entry] = []
        self.awaited = work.awaited[remote.name]
        self.is_leaving = not remote.levels  # the server has it no longer
        self.operations: list[Operation] = []
        self._work = work
        self._listed = remote
        self._look = look
        self._log = log.bind(account=work.account.name, mailbox=remote.name)  # bound once: it is called per message
        self._same_epoch = False
        self._scan: Scan | None = None
        self._here: dict[Uid, Flags] = {}
        self._left_out: list[Skipped] = []
        self._waiting: set[Key] = set()  # files that the server did not take, until their time has come
        self._matched: dict[Uid, Key] = {}
        self._refusal: PlanRefused | None = None
        self._maildir: Maildir | None = None
        self._delivery: Delivery | None = None
        self._pull: Pull | None = None
        self._pulled = 0
        self._foreseen_doomed = 0  # messages that a pass would delete on the server instead of pulling them
        self._is_undone = False  # something was not carried out, and has to be looked for again here
        self._is_missed = False  # the same, of what the server said: it has to be asked for everything

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
        self._same_epoch = self.mailbox.epoch == scan.epoch
        deletions = self._work.imap.deletions
        # A dry run opens mailboxes for reading only, which says nothing about what may be written.
        self.rules = Rules(
            deletes_here=deletions in {"both", "to_local"},
            deletes_there=deletions in {"both", "to_remote"},
            permitted=ANY_FLAGS if self._work.dry_run and not self.is_leaving else scan.permitted,
        )
        await self._work.state.run(self._compare)

    def _compare(self) -> None:
        scan, state, mailbox, news = self.found, self._work.state.state, self.mailbox, self.remote
        limit = self._work.imap.max_message_size_octets
        skipped = state.skipped(mailbox.id) if self._same_epoch else {}
        wait = {uid for uid, m in skipped.items() if m.size_octets > limit or not self._work.is_due(m)}
        self.report.skipped = len(wait)
        if self._same_epoch:
            items = iter(scan.items)
            while part := list(islice(items, LOOKED_UP)):
                news.sort(part, state.pairs_of(mailbox.id, [uid for uid, _, _ in part]), wait)
        else:
            news.fresh = scan.items  # the whole mailbox is new
            self.local.gone.clear()
            self.local.changed.clear()
        if not scan.full:
            self._add_skipped({uid: message for uid, message in skipped.items() if uid not in wait})
        self._leave_out(limit)
        if self._same_epoch and (scan.full or scan.vanished):
            news.gone = state.pairs_of(mailbox.id, self._gone(state.uids(mailbox.id)))
        self._look_closer()

    def _gone(self, known: set[Uid]) -> set[Uid]:
        """Which of these the scan proves to be gone."""
        scan = self.found
        listed = {uid for uid, _, _ in scan.items} if scan.full else set()
        return proven_gone(scan, known, listed)

    def _add_skipped(self, retry: Mapping[Uid, SkippedMessage]) -> None:
        """Messages that did not come before are asked for again, though nothing about them changed."""
        fresh = {uid for uid, _, _ in self.remote.fresh}
        self.retried = frozenset(retry.keys() - fresh - self._gone(set(retry)))
        for uid in sorted(self.retried):
            self.remote.fresh.add(uid, NO_FLAGS, retry[uid].size_octets)

    def _leave_out(self, limit: int) -> None:
        given_up = self._work.doubts.get(self.name, Doubts()).given_up
        for uid, _, size in self.remote.fresh:
            if size > limit:
                self._left_out.append(Skipped(uid, f"larger than max_message_size ({size} octets)", size))
            elif uid in given_up:
                self._left_out.append(Skipped(uid, "the connection ends whenever it is fetched", size))
        if self._left_out:
            self.remote.fresh = self.remote.fresh.without({message.uid for message in self._left_out})
        self.report.skipped += len(self._left_out)

    def _look_closer(self) -> None:
        """The flags of the files that the server changed, and what the files without a pair are."""
        maildir = self._open(make=False)
        if maildir is None:
            self.unpaired = Unpaired(orphans=self._work.state.state.orphans(self.mailbox.id))
            return
        pairs = {uid: pair for uid, (pair, _) in self.remote.changed.items() if uid not in self.local.changed}
        found = maildir.locate({pair.key: pair.flags for pair in pairs.values()}) if pairs else {}
        self._here = {
            uid: flags_here(maildir, found[pair.key], pair.flags) for uid, pair in pairs.items() if pair.key in found
        }
        is_known = self._same_epoch or self.mailbox.epoch is None
        entries = self._look.unpaired if is_known else maildir.entries()
        state = self._work.state.state
        self.unpaired = read_unpaired(state, self.mailbox, maildir, entries)
        unsent = state.unsent(self.mailbox.id) if self._same_epoch else {}
        if not self._work.dry_run and unsent.keys() - entries.keys():
            state.unsent_done(self.mailbox.id, unsent.keys() - entries.keys())
        self.report.held_back = len(unsent.keys() & entries.keys())
        self._waiting = {key for key, m in unsent.items() if key in entries and not self._work.is_due(m)}

    def look_without_server(self) -> None:
        """Only this disk: what the files without a pair are. Blocks."""
        maildir = self._open(make=False)
        if maildir is not None:
            self.unpaired = read_unpaired(self._work.state.state, self.mailbox, maildir, self._look.unpaired)

    def identities_of(self, pairs: Sequence[Pair]) -> dict[Key, LocalIdentity]:
        """What the files of these pairs are. Blocks."""
        maildir = self._open(make=False)
        entries = {} if maildir is None else maildir.locate({pair.key: pair.flags for pair in pairs})
        found: dict[Key, LocalIdentity] = {}
        for key, entry in entries.items():
            if maildir is not None and (identity := maildir.identity(entry)) is not None:
                found[key] = identity
        return found

    def remote_flags(self, uids: Collection[Uid]) -> dict[Uid, Flags]:
        """The flags of these new messages."""
        return {uid: flags for uid, flags, _ in self.remote.fresh if uid in uids}

    # -- decide

    async def plan(self) -> None:
        """Decide, and let the guard look at the deletions. Writes nothing on either side."""
        await self._work.state.run(self._plan)

    def _plan(self) -> None:
        self._take_new_names()
        self.operations = reconcile(self.remote, self.local, self._here_of_changed(), self.rules)
        delete_here = [o for o in self.operations if isinstance(o, DeleteLocal)]
        delete_there = [o for o in self.operations if isinstance(o, DeleteRemote)]
        self._guard([o.key for o in delete_here] + [e.key for e in self.doomed_files], [o.uid for o in delete_there])
        if self._refusal is not None:
            self.operations = [o for o in self.operations if not isinstance(o, DeleteLocal | DeleteRemote)]
            self.doomed_files.clear()

    def _take_new_names(self) -> None:
        """Files with another unique name: their pairs count with that name, and may have other flags too."""
        maildir = self._open(make=False) if self.rekeyed else None
        for pair, entry in self.rekeyed:
            if maildir is None:
                break
            known = replace(pair, key=entry.key)
            self._here[pair.uid] = flags_here(maildir, entry, pair.flags)
            if pair.uid in self.remote.changed:
                self.remote.changed[pair.uid] = known, self.remote.changed[pair.uid][1]
            elif not same_flags(self._here[pair.uid], pair.flags):
                self.local.changed[pair.uid] = known, self._here[pair.uid]

    def _here_of_changed(self) -> dict[Uid, Flags]:
        """Of the pairs that the server changed those whose file is there; the others are gone, and found so later."""
        for uid in [uid for uid in self.remote.changed if uid not in self._here and uid not in self.local.changed]:
            if uid not in self.local.gone:
                del self.remote.changed[uid]
                self._is_undone = self._is_missed = True
        return self._here

    def _guard(self, delete_here: list[Key], delete_there: list[Uid]) -> None:
        state, mailbox, account = self._work.state.state, self.mailbox, self._work.account
        stored = state.refusal(mailbox.id)
        if stored is not None and stored.approved and _is_part_of(stored, delete_here, delete_there):
            return
        total = self._guarded_total(max(len(delete_here), len(delete_there)))
        allowed = account.max_deletions.of(total)
        if not self._look.is_here and delete_there:
            self._refusal = PlanRefused(
                f"mailbox {self.name}: its directory {account.maildir / mailbox.directory} is gone, with"
                f" {len(delete_there)} messages; nothing was deleted on the server",
                f"mount or restore it; to delete them there too: {approval(account.name, self.name)}",
            )
        elif is_too_many(len(delete_here), total, allowed):
            self._refusal = refusal(account.name, self.name, len(delete_here), total, HERE)
        elif is_too_many(len(delete_there), total, allowed):
            self._refusal = refusal(account.name, self.name, len(delete_there), total, THERE)
        if self._refusal is not None:
            self.report.refused = len(delete_here) + len(delete_there)
            self.report.error = str(self._refusal)
            self._log.error("mailbox.refused", reason=self._refusal.text)
            if not self._work.dry_run:
                state.refuse(mailbox.id, self._refusal.text, remote=delete_there, local=delete_here)

    def _guarded_total(self, deletions: int) -> int:
        """How many messages the deletions are measured against: those that were here when the last pass was complete.

        What came in while a plan stands refused must not make it look smaller.
        """
        forgotten = sum(isinstance(operation, Forget) for operation in self.operations)
        total = self._work.state.state.count(self.mailbox.id) - forgotten
        if self.mailbox.messages is not None:
            total = min(total, self.mailbox.messages)
        return max(total, deletions)

    async def match(self, box: RemoteBox) -> None:
        """Find out which new messages are on this disk already, without fetching them."""
        if len(self.remote.fresh) and self.unpaired.entries:
            sizes = self.unpaired.sizes()
            # Of those asked for once more the flags are not known; they are matched when they have come.
            likely = [uid for uid, _, size in self.remote.fresh if size in sizes and uid not in self.retried]
            facts = await box.facts(likely) if likely else {}
            self._matched = match_facts(self.unpaired, facts, await self._work.state.run(self._alike, likely))
        if self._work.dry_run:
            await self._compare_contents(box)
        self.report.wanted = len(self.remote.fresh) - len(self._matched)
        if self._work.dry_run:
            await self.foretell()

    def _alike(self, uids: Collection[Uid]) -> Alike:
        """Whether a new message has the flags that a file has; found out only when it is asked."""
        maildir, entries, wanted = self._open(make=False), self.unpaired.entries, set(uids)
        there: dict[Uid, Flags] = {}

        def is_alike(uid: Uid, key: Key) -> bool:
            if not there:
                there.update(self.remote_flags(wanted))
            return maildir is not None and same_flags(maildir.flags(entries[key]), there[uid])

        return is_alike

    async def _compare_contents(self, box: RemoteBox) -> None:
        """What only their content tells to be equal, of the messages that a dry run may hold in memory."""
        sizes = self.unpaired.sizes() if self.unpaired.entries else set()
        doomed = {octets for octets, _ in self._work.doomed}  # on disk, where each line is an octet shorter
        table = ScanTable()
        for uid, flags, size in self.remote.fresh:
            may_be_equal = size in sizes or any(octets <= size <= 2 * octets for octets in doomed)
            if size <= COMPARED_OCTETS and uid not in self._matched and may_be_equal:
                table.add(uid, flags, size)
        if not len(table):
            return
        stream = cast("AsyncGenerator[list[Fetched]]", box.fetch(table.batches(50, COMPARED_OCTETS), _no_body))
        async with aclosing(stream):
            async for several in stream:
                for fetched in several:
                    self._foresee(fetched.uid, fetched_content(fetched))

    def _foresee(self, uid: Uid, content: Content) -> None:
        used = self._matched.values()
        key = next((key for key in self.unpaired.by_content.get(content, ()) if key not in used), None)
        elsewhere = [name for name in self._work.doomed.get(content, ()) if name != self.name]
        if key is not None:
            self._matched[uid] = key
        elif elsewhere and self.name != self._work.trash:
            self._work.doomed[content].remove(elsewhere[0])
            self._foreseen_doomed += 1

    @property
    def listed(self) -> RemoteMailbox:
        return self._listed

    @property
    def is_refused(self) -> bool:
        """Whether the guard refused the deletions of this pass."""
        return self._refusal is not None

    @property
    def is_stopped(self) -> bool:
        """Whether nothing at all is to be done: its directory is gone, and that is not approved."""
        return self._refusal is not None and not self._look.is_here

    @property
    def is_to_be_deleted_there(self) -> bool:
        """Whether the mailbox was removed here, for good, and nothing is left of it on the server."""
        if self._look.is_here or not self._is_removed or self._is_undone or self._work.dry_run:
            return False
        return self.found.complete and self.found.messages + self._work.remote_delta[self.mailbox.id] == 0

    @property
    def _is_removed(self) -> bool:
        """Whether the mailbox has no directory and is to have none: gone on the server, or removed here on purpose."""
        if self.is_leaving:
            return True
        is_furniture = self.name == INBOX or self._listed.role
        may_go = self.rules.deletes_there and self.rules.permitted is not None and not is_furniture
        return not self._look.is_here and may_go and not len(self.remote.fresh)

    @property
    def needs_server(self) -> bool:
        """Whether anything is left that cannot be done without a session."""
        merges = any(isinstance(o, MergeFlags) and (o.add or o.remove) for o in self.operations)
        deletes = any(isinstance(o, DeleteRemote) for o in self.operations)
        to_send = self._to_send and self.rules.permitted is not None
        moves = self.moves_there or self.left_behind or self.relocations
        return bool(merges or deletes or len(self.remote.fresh) or to_send or moves)

    @property
    def _to_send(self) -> set[Key]:
        """Files that are new here, unless they turn out to be on the server."""
        return self.unpaired.entries.keys() - self._waiting - self.unpaired.kept_here.keys()

    async def foretell(self) -> None:
        """Fill the report with what a pass would do."""
        await self._work.state.run(self._foretell)

    def _foretell(self) -> None:
        report = self.report
        report.pulled, report.adopted = report.wanted - self._foreseen_doomed, len(self._matched)
        report.deleted_there = self._foreseen_doomed
        report.wanted_octets = self.remote.fresh.without(self._matched).octets
        writable = self.rules.permitted is not None and self.found.complete
        report.pushed = len(self._to_send - set(self._matched.values())) if writable else 0
        report.moved = len(self.relocations)
        report.moved_there = sum(len(moves) for moves in self.moves_there.values()) + len(self.left_behind)
        for operation in self.operations:
            self._foretell_one(operation)
        report.deleted += len(self.doomed_files)
        self._foretell_flags()

    def _foretell_flags(self) -> None:
        """Those of messages that get a pair, or another one, on the way."""
        maildir, root = self._open(make=False), self._work.account.maildir
        for uid, key in self._matched.items() if maildir is not None else ():
            orphan = self.unpaired.orphans.get(key)
            base = NO_FLAGS if orphan is None else orphan.flags
            self._foretell_merge(maildir, self.unpaired.entries[key], base, self.remote_flags([uid])[uid])
        for move in self.relocations:
            with open_mailbox(root, move.source) or nullcontext() as source:
                found = source.locate({move.key: move.pair.flags}) if source is not None else {}
                for entry in found.values():
                    self._foretell_merge(source, entry, move.pair.flags, move.flags)
        for name, moves in self.moves_there.items():
            with open_mailbox(root, self._work.rows()[name]) or nullcontext() as target:
                found = target.locate({m.key: m.pair.flags for m in moves}) if target is not None else {}
                for move_there in moves:
                    if move_there.key in found:
                        entry, there = found[move_there.key], move_there.flags
                        self._foretell_merge(target, entry, move_there.pair.flags, there)

    def _foretell_merge(self, maildir: Maildir | None, entry: Entry, base: Flags, there: Flags) -> None:
        if maildir is None:
            return
        here = flags_here(maildir, entry, base)
        pair = Pair(Uid(""), entry.key, base, 0, b"")
        merged = merge_flags(pair, here, there, self.rules.permitted)
        self.report.flags += not same_flags(merged.flags, here)
        self.report.flags_there += bool(merged.add or merged.remove)

    def _foretell_one(self, operation: Operation) -> None:
        match operation:
            case DeleteLocal():
                self.report.deleted += 1
            case DeleteRemote():
                self.report.deleted_there += 1
            case MergeFlags():
                self.report.flags += not same_flags(operation.flags, self._flags_before(operation))
                self.report.flags_there += bool(operation.add or operation.remove)
            case Keep() | Forget():
                pass

    def _has_effect_here(self, operation: Operation) -> bool:
        """Whether it changes a file, or what is known of one."""
        if isinstance(operation, MergeFlags):
            return not same_flags(operation.flags, self._flags_before(operation))
        return True

    def _flags_before(self, operation: MergeFlags) -> Flags:
        if operation.uid in self.local.changed:
            return self.local.changed[operation.uid][1]
        return self._here.get(operation.uid, operation.flags)

    # -- propagate

    async def propagate(self, box: RemoteBox | None) -> None:
        """Carry it out; without a box only what this disk needs. Quick things first, then messages both ways."""
        work = self._work
        if self.needs_server or any(map(self._has_effect_here, self.operations)) or self.doomed_files or self.rekeyed:
            await work.announce_change()
        maildir = await work.state.run(self._open, not self._is_removed)
        if maildir is not None:
            self._delivery = Delivery(self.mailbox, maildir, self._count_durable)
        adopted = await work.state.run(self._change_files)
        if box is None:
            await self._merge_flags(None, [])
            return
        await self._merge_flags(box, adopted.merges)
        await self._move_there(box)
        await self._delete_there(box)
        await self._pull_messages(box)
        await self._append(box)

    def _change_files(self) -> Adopted:
        """Whatever concerns this disk alone, and pairs of what is on both sides already."""
        state, mailbox, scan = self._work.state.state, self.mailbox, self.found
        if mailbox.epoch is None:
            state.set_epoch(mailbox.id, scan.epoch)
        elif not self._same_epoch:
            state.rebuild(mailbox.id, scan.epoch)
            self._log.info("mailbox.rebuilt")
            self.unpaired.orphans = state.orphans(mailbox.id)
        self._change_names()
        maildir, report = self._maildir, self.report
        removed = remove_files(state, mailbox, maildir, self.operations)
        self._is_undone |= bool(removed.left)
        report.deleted += removed.count
        if maildir is not None and self.doomed_files:
            report.deleted += len(maildir.remove(self.doomed_files))
        adopted = Adopted()
        if self._matched and maildir is not None:
            flags = self.remote_flags(self._matched)
            adopted = adopt(state, mailbox, maildir, self.unpaired, self._matched, flags, self.rules.permitted)
            report.adopted += len(self._matched)
            report.flags += adopted.flags
            self._is_undone |= adopted.has_escaped
            self._is_missed |= adopted.has_escaped
        if self.relocations and maildir is not None:
            adopted.merges += self._relocate(maildir)
        self.remote.fresh = self.remote.fresh.without(self._matched) if self._matched else self.remote.fresh
        if self._left_out:
            state.skip(mailbox.id, self._left_out)
        return adopted

    def _change_names(self) -> None:
        """Files that only got another unique name keep their pair."""
        if self.rekeyed:
            pairs = [replace(pair, key=entry.key, info=None) for pair, entry in self.rekeyed]
            self._work.state.state.apply([Changes(self.mailbox.id, add=pairs)])
            self.awaited.difference_update(pair.key for pair in pairs)

    def _relocate(self, maildir: Maildir) -> list[MergeFlags]:
        sources: dict[int, Maildir] = {self.mailbox.id: maildir}
        try:
            for move in self.relocations:
                if move.source.id not in sources:
                    source = open_mailbox(self._work.account.maildir, move.source)
                    if source is not None:
                        sources[move.source.id] = source
            moves = [move for move in self.relocations if move.source.id in sources]
            result = relocate(self._work.state.state, sources, maildir, moves, self.rules.permitted)
        finally:
            for mailbox_id, source in sources.items():
                if mailbox_id != self.mailbox.id:
                    source.close()
        self.report.moved += len(result.done)
        self.report.flags += result.flags
        self._is_undone |= len(result.done) < len(self.relocations)
        for move in result.done:
            self._work.awaited[move.source.name].discard(move.key)
        return result.merges

    async def _merge_flags(self, box: RemoteBox | None, adopted: Sequence[MergeFlags]) -> None:
        """Flags: the server first, then the files, then the base."""
        merges = [o for o in self.operations if isinstance(o, MergeFlags)] + list(adopted)
        if not merges:
            return
        done = merges if box is None else await store_flags(box, merges)
        there = sum(bool(m.add or m.remove) for m in done)
        changed, is_all = await self._work.state.run(
            merge_files, self._work.state.state, self.mailbox, self._maildir, done, self._look.seen
        )
        self._is_undone |= not is_all or len(done) < len(merges)
        self._is_missed |= not is_all or len(done) < len(merges)
        self.report.flags += changed
        self.report.flags_there += there

    async def _move_there(self, box: RemoteBox) -> None:
        """What a reader moved to another mailbox here; its flags first, for they travel with it."""
        if self.left_behind:  # before the others: without UIDPLUS marks that are left would be in their way
            gone = await expunge_there(self._work, box, self.mailbox, self.left_behind)
            self._work.remote_delta[self.mailbox.id] -= len(gone)
            self.report.moved_there += len(gone)
            self._is_undone |= len(gone) < len(self.left_behind)
        for target, moves in self.moves_there.items():
            merges = await self._work.state.run(self._flags_of_moved, target, moves)
            stored = await store_flags(box, list(merges.values()))
            try:
                done = await box.move([move.pair.uid for move in moves], target)
            except Rejected as exc:
                self._is_undone = True
                self.report.error = f"cannot move messages to {target} on the server: {exc.text}"
                continue
            await self._work.state.run(self._note_moves, target, moves, done, {m.uid: m for m in stored})
            self._is_undone |= len(done) < len(moves)

    def _flags_of_moved(self, target: MailboxName, moves: Sequence[Move]) -> dict[Uid, MergeFlags]:
        """How to bring the flags of moved files and of their messages, which are still here, together."""
        maildir = open_mailbox(self._work.account.maildir, self._work.state.state.mailboxes()[target])
        if maildir is None:
            return {}
        with maildir:
            entries = maildir.locate({move.key: move.pair.flags for move in moves})
            merges: dict[Uid, MergeFlags] = {}
            for pair, key, there in moves:
                if key in entries:
                    mine = flags_here(maildir, entries[key], pair.flags)
                    merges[pair.uid] = replace(merge_flags(pair, mine, there, self.rules.permitted), key=key)
            return merges

    def _note_moves(
        self,
        target: MailboxName,
        moves: Sequence[Move],
        done: Mapping[Uid, Uid | None],
        merged: Mapping[Uid, MergeFlags],
    ) -> None:
        state = self._work.state.state
        row = state.mailboxes()[target]
        drop: list[Uid] = []
        add: list[Pair] = []
        merges: list[MergeFlags] = []
        unpaired: dict[Key, tuple[Flags, Flags]] = {}
        for pair, key, _ in moves:
            if pair.uid not in done:
                continue
            drop.append(pair.uid)
            if (new := done[pair.uid]) is not None:
                add.append(replace(pair, uid=new, key=key, info=None))
                self._work.awaited[target].discard(key)
                if pair.uid in merged:
                    merges.append(replace(merged[pair.uid], uid=new))
            elif pair.uid in merged:
                unpaired[key] = pair.flags, merged[pair.uid].flags
        state.apply([Changes(self.mailbox.id, drop=drop), Changes(row.id, add=add)])
        self._work.remote_delta[self.mailbox.id] -= len(drop)
        self._work.remote_delta[row.id] += len(add)
        self.report.moved_there += len(drop)
        maildir = open_mailbox(self._work.account.maildir, row)
        if maildir is not None:
            with maildir:
                self.report.flags += merge_files(state, row, maildir, merges, {})[0]
                self.report.flags += reflag(maildir, unpaired)
        self.report.flags_there += sum(bool(m.add or m.remove) for m in merges)

    async def _delete_there(self, box: RemoteBox) -> None:
        uids = [o.uid for o in self.operations if isinstance(o, DeleteRemote)]
        if not uids:
            return
        trash = self._work.trash_for(self.name)
        try:
            gone = await expunge_there(self._work, box, self.mailbox, [uid for uid in uids if uid in self.trashed])
            left = [uid for uid in uids if uid not in self.trashed]
            gone |= await delete_there(self._work, box, self.mailbox, left, trash)
        except Rejected as exc:
            gone = set()
            self.report.error = f"cannot delete messages on the server: {exc.text}"
        self._note_deleted(gone, uids, trash)

    def _note_deleted(self, gone: Collection[Uid], uids: Collection[Uid], trash: MailboxName | None) -> None:
        self._work.remote_delta[self.mailbox.id] -= len(gone)
        self._work.is_trash_filled |= trash is not None and bool(gone)
        self.report.deleted_there += len(gone)
        self._is_undone |= len(gone) < len(uids)

    async def _pull_messages(self, box: RemoteBox) -> None:
        fresh, report = self.remote.fresh, self._work.report
        self.report.wanted_octets = fresh.octets
        report.wanted_messages += len(fresh)
        report.wanted_octets += fresh.octets
        if len(fresh) and self._delivery is not None:
            self._pull = Pull(self.name, self.found.epoch, fresh, self._delivery, self.unpaired, self.rules.permitted)
            await self._pull.run(self._work, box)
            await self._merge_flags_of(box, self._pull.merges)
            await self._delete_doomed(box, self._pull.doomed)

    async def _merge_flags_of(self, box: RemoteBox, merges: Sequence[MergeFlags]) -> None:
        self.operations = [o for o in self.operations if not isinstance(o, MergeFlags)]
        await self._merge_flags(box, merges)

    async def _delete_doomed(self, box: RemoteBox, uids: Sequence[Uid]) -> None:
        """Messages that were deleted here and moved there: the deletion counts. They never had a pair here."""
        if uids:
            trash = self._work.trash_for(self.name)
            gone = set(await box.move(uids, trash)) if trash is not None else await box.expunge(uids)
            self._note_deleted(gone, uids, trash)

    async def _append(self, box: RemoteBox) -> None:
        """What is still unpaired once everything has come is new here: the server gets it."""
        permitted, maildir, to_send = self.rules.permitted, self._maildir, sorted(self._to_send)
        if not to_send or maildir is None:
            return
        if permitted is None or not self.found.complete:
            self._is_undone |= permitted is not None
            return
        report = await append_files(self._work, box, self.mailbox, maildir, self.unpaired, to_send, permitted)
        self.report.pushed += report.appended
        self.report.held_back = report.refused + len(self._waiting & self.unpaired.entries.keys())
        self._work.remote_delta[self.mailbox.id] += report.paired
        self._is_undone |= not report.is_complete

    def withdraw(self) -> None:
        """This attempt has failed: what did not come is no longer expected, the next attempt counts it anew."""
        if self._pull is not None:
            self._work.report.wanted_messages -= self._pull.left_messages
            self._work.report.wanted_octets -= self._pull.left_octets
            self._pull.doubt(self._work)

    def _count_durable(self, delivered: Delivered) -> None:
        self.report.pulled += 1
        self._pulled += 1
        self._work.report.done_messages += 1
        if self._work.report.delivered is not None:
            self._work.report.note_delivered(delivered.path)
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
        state, mailbox, scan = self._work.state.state, self.mailbox, self.found
        self._note_missing()
        if self._refusal is not None:
            return
        if not scan.complete:
            self.report.error = (
                "the server listed only a part of it; nothing was taken for deleted, the rest comes later"
            )
            state.set_error(mailbox.id, self.report.error)
            self._log.warning("mailbox.failed", error=self.report.error)
            return
        forget = [o.uid for o in self.operations if isinstance(o, Forget)]
        if forget and not self._work.failed:  # else it may have moved to where nobody could look
            state.apply([Changes(mailbox.id, drop=forget)])
        state.clear_refusal(mailbox.id)
        if kept := self.unpaired.kept_here:
            pairs = [Pair(kept_uid(o.key), o.key, o.flags, o.size_octets, o.digest, "local") for o in kept.values()]
            state.apply([Changes(mailbox.id, add=pairs)])
        state.drop_orphans(mailbox.id, list(state.orphans(mailbox.id)))
        messages = scan.messages + self._work.remote_delta[mailbox.id]
        is_counted = state.count_there(mailbox.id) + len(state.skipped(mailbox.id)) == messages
        is_right = is_counted and not self._is_missed
        is_undone = self._is_undone or bool(self.awaited)
        state.finish(
            mailbox.id,
            scan.cursor if is_right else None,  # something was missed, whoever's fault it is: compare everything
            scan.mark if is_right else None,
            messages,
            time.time(),
            stamp=None if is_undone else self._look.stamp,
            undone=is_undone,
            object_id=self._listed.object_id,
            identity=self._identity() or mailbox.identity,
            next_uid=self._listed.next_uid,
        )
        if self.report.error:
            state.set_error(mailbox.id, self.report.error)

    def _identity(self) -> str:
        maildir = self._open(make=False)
        if maildir is None:
            return ""
        status = os.fstat(maildir.directory.cur)
        return f"{status.st_dev}:{status.st_ino}"

    def _note_missing(self) -> None:
        """What was asked for and did not come is gone, or the server cannot deliver it: asked for again next time."""
        state, mailbox = self._work.state.state, self.mailbox
        doomed = set(self._pull.doomed) if self._pull is not None else set()
        have = state.uids(mailbox.id) | doomed if self._pulled < len(self.remote.fresh) else None
        if have is not None:
            missing = [(uid, size) for uid, _, size in self.remote.fresh if uid not in have]
            state.skip(mailbox.id, [Skipped(uid, NOT_DELIVERED, size) for uid, size in missing])
            for uid, _ in missing:
                self._log.warning("message.skipped", uid=uid, reason=NOT_DELIVERED)
        if skipped := state.skipped(mailbox.id):
            settled = set(state.pairs_of(mailbox.id, list(skipped)))
            past = settled | self._gone(set(skipped)) | doomed
            state.unskip(mailbox.id, past)
            self.report.skipped = len(skipped.keys() - past)

    # -- the directory

    def _open(self, make: bool) -> Maildir | None:
        """The mailbox's directory, kept open until `rest`; with `make` it is made where it is missing."""
        if self._maildir is None:
            self._maildir = open_mailbox(self._work.account.maildir, self.mailbox)
            if self._maildir is None and make and not self._work.dry_run:
                self._maildir = Maildir.create(self._work.account.maildir, PurePosixPath(self.mailbox.directory))
        if self._maildir is not None and make and not self._work.dry_run:
            self._maildir.delete_stale_tmp(time.time())
        return self._maildir

    def rest(self) -> None:
        """Let go of the directory until it is needed again: there may be thousands of mailboxes."""
        if self._maildir is not None and self._delivery is None:
            self._maildir.close()
            self._maildir = None

    async def close(self) -> None:
        """Close the directory, once nothing writes to it any more."""
        if self._delivery is not None:
            await self._delivery.drained()
            self._delivery = None
        self.rest()


def _no_body(size_octets: int) -> BodyWriter:
    raise ProtocolViolation(f"the server sends {size_octets} octets for a message that it said was smaller")


def _is_part_of(approved: Refusal, delete_here: Collection[Key], delete_there: Collection[Uid]) -> bool:
    """Whether these deletions are those of an approved plan, or some of them."""
    return approved.delete_remote >= set(delete_there) and approved.delete_local >= set(delete_here)
