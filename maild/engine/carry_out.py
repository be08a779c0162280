"""Carrying out what was decided about one mailbox: this disk's own changes, then all that needs the server.

Quick things first, then messages both ways. Whatever is not carried out leaves `is_undone` or `is_missed` behind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from maild.core.errors import Rejected
from maild.core.flags import same_flags
from maild.core.identity import LocalIdentity
from maild.core.model import (
    DeleteRemote,
    Flags,
    Key,
    MailboxName,
    MergeFlags,
    Operation,
    Pair,
    Uid,
)
from maild.core.ports import RemoteBox
from maild.core.reconcile import merge_flags
from maild.engine.adopt import Adopted, adopt, sent_orphan, unsure_of
from maild.engine.apply import merge_files, reflag, relocate, remove_files
from maild.engine.look import flags_here, open_mailbox
from maild.engine.propagate import Delivery
from maild.engine.pull import Doomed, Pull
from maild.engine.push import append_files, delete_there, expunge_there, move_there, store_flags
from maild.engine.sync import MailboxPass, Move
from maild.local.delivery import Delivered
from maild.local.maildir import Maildir
from maild.local.state import Changes, Orphan

SLACK_OCTETS = 64


async def propagate(this: MailboxPass, box: RemoteBox | None) -> None:
    """Carry it out; without a box only what this disk needs. Quick things first, then messages both ways."""
    work = this.work
    if this.needs_server or any(map(partial(_has_effect_here, this), this.operations)) or this.rekeyed:
        await work.announce_change()
    maildir = await work.state.run(this.opened, not this.is_removed)
    if maildir is not None:
        is_first = this.mailbox.last_pass_s is None
        this.delivery = Delivery(this.mailbox, maildir, partial(_count_durable, this), is_noted=not is_first)
    adopted = await work.state.run(_change_files, this)
    if box is None:
        await _merge_flags(this, None, [])
        await _settle_unsure(this)
        return
    await _merge_flags(this, box, adopted.merges)
    await _move_there(this, box)
    await _delete_there(this, box)
    await _pull_messages(this, box)
    await _settle_unsure(this)
    await _append(this, box)


def _has_effect_here(this: MailboxPass, operation: Operation) -> bool:
    """Whether it changes a file, or what is known of one."""
    if isinstance(operation, MergeFlags):
        return not same_flags(operation.flags, this.flags_before(operation))
    return True


def _change_files(this: MailboxPass) -> Adopted:
    """Whatever concerns this disk alone, and pairs of what is on both sides already."""
    state, mailbox, scan = this.work.state.state, this.mailbox, this.found
    if mailbox.epoch is None:
        state.set_epoch(mailbox.id, scan.epoch)
    elif not this.same_epoch:
        state.rebuild(mailbox.id, scan.epoch)
        this.log.info("mailbox.rebuilt")
        this.unpaired.know(state.orphans(mailbox.id) | this.unpaired.orphans)
    _change_names(this)
    maildir, report = this.maildir, this.report
    removed = remove_files(state, mailbox, maildir, this.operations, this.look.seconds)
    this.is_undone |= bool(removed.left) or removed.is_missing
    this.is_missed |= removed.is_missing
    this.unpaired.unsure.update((orphan.key, unsure_of(mailbox.id, orphan)) for orphan in removed.left)
    report.deleted += removed.count
    adopted = Adopted()
    if this.matched and maildir is not None:
        flags = this.remote_flags(this.matched)
        adopted = adopt(state, mailbox, maildir, this.unpaired, this.matched, flags, this.rules.permitted)
        report.adopted += len(this.matched)
        report.flags += adopted.flags
        this.is_undone |= adopted.has_escaped
        this.is_missed |= adopted.has_escaped
    if this.relocations and maildir is not None:
        adopted.merges += _relocate(this, maildir)
    this.remote.fresh = this.remote.fresh.without(this.matched) if this.matched else this.remote.fresh
    if this.left_out:
        state.skip(mailbox.id, this.left_out)
    return adopted


def _change_names(this: MailboxPass) -> None:
    """Files that only got another unique name keep their pair."""
    if this.rekeyed:
        pairs = [replace(pair, key=entry.key, info=None) for pair, entry in this.rekeyed]
        this.work.state.state.apply([Changes(this.mailbox.id, add=pairs)])
        this.awaited.difference_update(pair.key for pair in pairs)


def _relocate(this: MailboxPass, maildir: Maildir) -> list[MergeFlags]:
    sources: dict[int, Maildir] = {this.mailbox.id: maildir}
    try:
        for move in this.relocations:
            if move.source.id not in sources:
                source = open_mailbox(this.work.account.maildir, move.source)
                if source is not None:
                    sources[move.source.id] = source
        moves = [move for move in this.relocations if move.source.id in sources]
        permitted, seconds = this.rules.permitted, this.work.seconds
        result = relocate(this.work.state.state, sources, maildir, moves, permitted, seconds)
    finally:
        for mailbox_id, source in sources.items():
            if mailbox_id != this.mailbox.id:
                source.close()
    this.report.moved += len(result.done)
    this.report.flags += result.flags
    this.is_undone |= len(result.done) < len(this.relocations)
    for move in result.done:
        this.work.awaited[move.source.name].discard(move.key)
    return result.merges


async def _merge_flags(this: MailboxPass, box: RemoteBox | None, adopted: Sequence[MergeFlags]) -> None:
    """Flags: the server first, then the files, then the base."""
    merges = [o for o in this.operations if isinstance(o, MergeFlags)] + list(adopted)
    if not merges:
        return
    done = merges if box is None else await store_flags(box, merges)
    there = sum(bool(m.add or m.remove) for m in done)
    changed, is_all = await this.work.state.run(
        merge_files, this.work.state.state, this.mailbox, this.maildir, done, this.look.seen
    )
    this.is_undone |= not is_all or len(done) < len(merges)
    this.is_missed |= not is_all or len(done) < len(merges)
    this.report.flags += changed
    this.report.flags_there += there


async def _move_there(this: MailboxPass, box: RemoteBox) -> None:
    """What a reader moved to another mailbox here; its flags first, for they travel with it."""
    if this.left_behind:  # before the others: without UIDPLUS marks that are left would be in their way
        gone = await expunge_there(this.work, box, this.mailbox, this.left_behind)
        this.work.remote_delta[this.mailbox.id] -= len(gone)
        this.report.moved_there += len(gone)
        this.is_undone |= len(gone) < len(this.left_behind)
    for target, moves in this.moves_there.items():
        merges = await this.work.state.run(_flags_of_moved, this, target, moves)
        stored = await store_flags(box, list(merges.values()))
        try:
            done = await move_there(this.work, box, this.mailbox, [move.pair.uid for move in moves], target)
        except Rejected as exc:
            done = {}
            this.report.error = f"cannot move messages to {target} on the server: {exc.text}"
        else:
            await this.work.state.run(_note_moves, this, target, moves, done, {m.uid: m for m in stored})
        left = [move for move in moves if move.pair.uid not in done]
        this.is_undone |= bool(left)
        # Flags changed there that were to travel with them: nobody tells them again, wherever the file is by then.
        this.is_missed |= any(not same_flags(move.flags, move.pair.flags) for move in left)


def _flags_of_moved(this: MailboxPass, target: MailboxName, moves: Sequence[Move]) -> dict[Uid, MergeFlags]:
    """How to bring the flags of moved files and of their messages, which are still here, together."""
    maildir = open_mailbox(this.work.account.maildir, this.work.state.state.mailboxes()[target])
    if maildir is None:
        return {}
    with maildir:
        entries = maildir.locate({move.key: move.pair.flags for move in moves})
        merges: dict[Uid, MergeFlags] = {}
        for pair, key, there in moves:
            if key in entries:
                mine = flags_here(maildir, entries[key], pair.flags)
                merges[pair.uid] = replace(merge_flags(pair, mine, there, this.rules.permitted), key=key)
        return merges


def _note_moves(
    this: MailboxPass,
    target: MailboxName,
    moves: Sequence[Move],
    done: Mapping[Uid, Uid | None],
    merged: Mapping[Uid, MergeFlags],
) -> None:
    state = this.work.state.state
    row = state.mailboxes()[target]
    drop: list[Uid] = []
    add: list[Pair] = []
    merges: list[MergeFlags] = []
    unpaired: dict[Key, tuple[Flags, Flags]] = {}
    sent: list[Orphan] = []
    # What the server says may be wrong: a UID that has a pair is no new one; the next pass finds the message itself.
    taken = state.pairs_of(row.id, [uid for uid in done.values() if uid is not None])
    for pair, key, _ in moves:
        if pair.uid not in done:
            continue
        drop.append(pair.uid)
        if (new := done[pair.uid]) is not None and new not in taken:
            add.append(replace(pair, uid=new, key=key, info=None))
            this.work.awaited[target].discard(key)
            if pair.uid in merged:
                merges.append(replace(merged[pair.uid], uid=new))
        else:
            there = merged[pair.uid].base if pair.uid in merged else pair.flags
            sent.append(sent_orphan(key, there, pair.content))
            if pair.uid in merged:
                unpaired[key] = pair.flags, merged[pair.uid].flags
    if row.epoch is None and (add or sent) and (epoch := this.work.epochs.get(target)) is not None:
        state.set_epoch(row.id, epoch)  # it is new, and its own pass, which does this, may yet fail
    state.apply([Changes(this.mailbox.id, drop=drop), Changes(row.id, add=add, sent=sent)])
    this.work.sent.update((row.id, orphan.key) for orphan in sent)
    this.work.remote_delta[this.mailbox.id] -= len(drop)
    this.work.remote_delta[row.id] += len(add)
    this.report.moved_there += len(drop)
    maildir = open_mailbox(this.work.account.maildir, row)
    if maildir is not None:
        with maildir:
            this.report.flags += merge_files(state, row, maildir, merges, {})[0]
            this.report.flags += reflag(maildir, unpaired)
    this.report.flags_there += sum(bool(m.add or m.remove) for m in merges)


async def _delete_there(this: MailboxPass, box: RemoteBox) -> None:
    uids = [o.uid for o in this.operations if isinstance(o, DeleteRemote)]
    if not uids:
        return
    trash = this.work.trash_for(this.name)
    try:
        gone = await expunge_there(this.work, box, this.mailbox, [uid for uid in uids if uid in this.trashed])
        left = [uid for uid in uids if uid not in this.trashed]
        gone |= await delete_there(this.work, box, this.mailbox, left, trash)
    except Rejected as exc:
        gone = set()
        this.report.error = f"cannot delete messages on the server: {exc.text}"
    _note_deleted(this, gone, uids, trash)


def _note_deleted(this: MailboxPass, gone: Collection[Uid], uids: Collection[Uid], trash: MailboxName | None) -> None:
    this.work.remote_delta[this.mailbox.id] -= len(gone)
    this.work.is_trash_filled |= trash is not None and bool(gone)
    this.report.deleted_there += len(gone)
    left = [uid for uid in uids if uid not in gone]
    this.is_undone |= bool(left)
    this.is_missed |= any(uid in this.remote.changed for uid in left)  # the file may come back, with its old flags


async def _pull_messages(this: MailboxPass, box: RemoteBox) -> None:
    fresh, report = this.remote.fresh, this.work.report
    this.report.wanted_octets = fresh.octets
    report.wanted_messages += len(fresh)
    report.wanted_octets += fresh.octets
    if len(fresh) and this.delivery is not None:
        this.pull = Pull(
            this.name, this.found.epoch, fresh, this.delivery, this.unpaired, this.rules.permitted, this.compared
        )
        await this.pull.run(this.work, box)
        await _merge_flags_of(this, box, this.pull.merges)
        await _delete_doomed(this, box, this.pull.doomed)


async def _merge_flags_of(this: MailboxPass, box: RemoteBox, merges: Sequence[MergeFlags]) -> None:
    this.operations = [o for o in this.operations if not isinstance(o, MergeFlags)]
    await _merge_flags(this, box, merges)


async def _delete_doomed(this: MailboxPass, box: RemoteBox, doomed: Mapping[Uid, Doomed]) -> None:
    """Messages that were deleted here and moved there: the deletion counts.

    Their pairs follow them first: after a cut each is a message whose file is gone, as any other.
    """
    if doomed:
        work, trash = this.work, this.work.trash_for(this.name)
        pairs = [replace(was.pair, uid=uid, info=None) for uid, was in doomed.items()]
        left = [Changes(was.mailbox_id, drop=[was.pair.uid]) for was in doomed.values()]
        await work.state.run(work.state.state.look_again, [this.mailbox.id])  # nothing in its directory tells
        await work.state.run(work.state.state.apply, [*left, Changes(this.mailbox.id, add=pairs)])
        gone = await delete_there(work, box, this.mailbox, list(doomed), trash)
        _note_deleted(this, gone, doomed, trash)


async def _settle_unsure(this: MailboxPass) -> None:
    """Everything has come: files that were not adopted had been deleted on the server, which beats their move here."""
    if not this.unpaired.unsure:
        return
    if this.delivery is not None:
        await this.delivery.settled()
    sure = await this.work.state.run(_surely_deleted, this)
    if sure:
        await this.work.announce_change()
        await this.work.state.run(_delete_files, this, sure)
    this.is_undone |= bool(this.unpaired.unsure)


def _surely_deleted(this: MailboxPass) -> list[Key]:
    """Those that are not among messages which have yet to come, as far as the guard lets them go."""
    unpaired, missing = this.unpaired, _sizes_missing(this)
    left = [key for key in unpaired.unsure if key in unpaired.entries and this.found.complete]
    sure = [key for key in left if not _is_likely(unpaired.identities[key], missing)]
    return sure if sure and this.may_delete(sure) else []


def _delete_files(this: MailboxPass, keys: Sequence[Key]) -> None:
    """First their pairs, with a note that they go, then they themselves, durably: so a kill leaves no doubt."""
    unpaired, maildir, state = this.unpaired, this.opened(make=False), this.work.state.state
    if maildir is None:
        return
    # One that a reader has moved on keeps its pair: the next look finds it, as any file that moved.
    found = maildir.locate({key: unpaired.unsure[key].pair.flags for key in keys})
    keys = list(found)
    noted = [replace(unpaired.orphans[key], only="unsure") for key in keys]
    went = [unpaired.unsure[key] for key in keys]
    state.make_unsure(this.mailbox.id, noted, [(was.mailbox_id, was.pair.uid) for was in went])
    gone = maildir.remove(found.values())
    this.report.deleted += len(gone)
    for key in gone:
        unpaired.take(key)
        del unpaired.unsure[key]


def _is_likely(identity: LocalIdentity, sizes: Sequence[int]) -> bool:
    """Whether one of these sizes may be what the server tells of it; some are wrong, as Exchange's are."""
    wire = identity.facts.size_octets
    return any(abs(size - wire) <= SLACK_OCTETS + wire // 8 for size in sizes)


def _sizes_missing(this: MailboxPass) -> list[int]:
    """How big the messages are that are on the server and did not come."""
    state, mailbox = this.work.state.state, this.mailbox
    have = state.uids(mailbox.id).union(this.pull.doomed if this.pull is not None else ())
    sizes = [size for uid, _, size in this.remote.fresh if uid not in have]
    return sizes + [m.size_octets for m in state.skipped(mailbox.id).values() if m.uid not in have]


async def _append(this: MailboxPass, box: RemoteBox) -> None:
    """What is still unpaired once everything has come is new here: the server gets it."""
    permitted, maildir, to_send = this.rules.permitted, this.maildir, sorted(this.to_send)
    if not to_send or maildir is None:
        return
    if permitted is None or not this.found.complete:
        this.is_undone |= permitted is not None
        return
    report = await append_files(this.work, box, this.mailbox, maildir, this.unpaired, to_send, permitted)
    this.report.pushed += report.appended
    waiting = (this.waiting & this.unpaired.entries.keys()) | this.unpaired.unreadable.keys()
    this.report.held_back = report.refused + len(waiting)
    this.work.remote_delta[this.mailbox.id] += report.paired
    this.is_undone |= not report.is_complete


def withdraw(this: MailboxPass) -> None:
    """This attempt has failed: what did not come is no longer expected, the next attempt counts it anew."""
    if this.pull is not None:
        this.work.report.wanted_messages -= this.pull.left_messages
        this.work.report.wanted_octets -= this.pull.left_octets
        this.pull.doubt(this.work)


def _count_durable(this: MailboxPass, delivered: Delivered) -> None:
    this.report.pulled += 1
    this.pulled += 1
    this.work.report.done_messages += 1
    if this.work.report.delivered is not None:
        this.work.report.note_delivered(delivered.path)
    this.log.debug("message.pulled", uid=delivered.incoming.uid)
