"""What a pass would do about one mailbox, told without changing anything on either side (`maild sync --dry-run`)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, nullcontext
from typing import cast

from maild.core.errors import ProtocolViolation
from maild.core.flags import same_flags
from maild.core.model import (
    NO_FLAGS,
    Content,
    DeleteLocal,
    DeleteRemote,
    Fetched,
    Flags,
    Forget,
    Keep,
    Key,
    MergeFlags,
    Operation,
    Pair,
    ScanTable,
    Uid,
)
from maild.core.ports import BodyWriter, RemoteBox
from maild.core.reconcile import merge_flags
from maild.engine.adopt import fetched_content
from maild.engine.look import flags_here, open_mailbox
from maild.engine.sync import MailboxPass
from maild.local.maildir import Maildir
from maild.local.scan import Entry

COMPARED_OCTETS = 1 << 20  # what is fetched to compare: messages up to this size, and so much at once


async def foretell(this: MailboxPass, box: RemoteBox | None = None) -> None:
    """Fill the report with what a pass would do; after `match`, with the `box` that it had."""
    if box is not None:
        await _compare_contents(this, box)
        this.report.wanted = len(this.remote.fresh) - len(this.matched)
    await this.work.state.run(_foretell, this)


async def _compare_contents(this: MailboxPass, box: RemoteBox) -> None:
    """What only their content tells to be equal, of the messages that a dry run may hold in memory."""
    sizes = this.unpaired.sizes() if this.unpaired.entries else set()
    doomed = sorted({octets for octets, _ in this.work.doomed})
    table = ScanTable()
    for uid, flags, size in this.remote.fresh:
        may_be_equal = size in sizes or _is_any_between(doomed, size // 2, size)  # here each line is an octet shorter
        if size <= COMPARED_OCTETS and uid not in this.matched and may_be_equal:
            table.add(uid, flags, size)
    if not len(table):
        return
    used = set(this.matched.values())
    free = {
        content: [key for key in reversed(keys) if key not in used and key in this.unpaired.entries]
        for content, keys in this.unpaired.by_content.items()
    }
    stream = cast("AsyncGenerator[list[Fetched]]", box.fetch(table.batches(50, COMPARED_OCTETS), _no_body))
    async with aclosing(stream):
        async for several in stream:
            for fetched in several:
                content = fetched_content(fetched)
                _foresee(this, fetched.uid, content, free.get(content, []))


def _is_any_between(ascending: Sequence[int], least: int, most: int) -> bool:
    at = bisect_left(ascending, least)
    return at < len(ascending) and ascending[at] <= most


def _foresee(this: MailboxPass, uid: Uid, content: Content, free: list[Key]) -> None:
    """`free`: files with this content that no message has yet."""
    may_be = uid in this.work.may_be_doomed[this.name]
    elsewhere = [doomed for doomed in this.work.doomed.get(content, ()) if doomed.name != this.name and may_be]
    if free:
        this.matched[uid] = free.pop()
    elif elsewhere and this.name != this.work.trash:
        this.work.doomed[content].remove(elsewhere[0])
        this.foreseen_doomed += 1


def _foretell(this: MailboxPass) -> None:
    report = this.report
    report.pulled, report.adopted = report.wanted - this.foreseen_doomed, len(this.matched)
    report.deleted_there = this.foreseen_doomed
    report.wanted_octets = this.remote.fresh.without(this.matched).octets
    writable = this.rules.permitted is not None and this.found.complete
    report.pushed = len(this.to_send - set(this.matched.values())) if writable else 0
    report.moved = len(this.relocations)
    report.moved_there = sum(len(moves) for moves in this.moves_there.values()) + len(this.left_behind)
    for operation in this.operations:
        _foretell_one(this, operation)
    report.deleted += len(this.unpaired.unsure.keys() - set(this.matched.values()))
    _foretell_flags(this)


def _foretell_flags(this: MailboxPass) -> None:
    """Those of messages that get a pair, or another one, on the way."""
    maildir, root = this.opened(make=False), this.work.account.maildir
    theirs, rows = this.remote_flags(this.matched), this.work.rows()
    for uid, key in this.matched.items() if maildir is not None else ():
        orphan = this.unpaired.orphans.get(key)
        base = NO_FLAGS if orphan is None else orphan.flags
        _foretell_merge(this, maildir, this.unpaired.entries[key], base, theirs[uid])
    for move in this.relocations:
        with open_mailbox(root, move.source) or nullcontext() as source:
            found = source.locate({move.key: move.pair.flags}) if source is not None else {}
            for entry in found.values():
                _foretell_merge(this, source, entry, move.pair.flags, move.flags)
    for name, moves in this.moves_there.items():
        with open_mailbox(root, rows[name]) or nullcontext() as target:
            found = target.locate({m.key: m.pair.flags for m in moves}) if target is not None else {}
            for move_there in moves:
                if move_there.key in found:
                    entry, there = found[move_there.key], move_there.flags
                    _foretell_merge(this, target, entry, move_there.pair.flags, there)


def _foretell_merge(this: MailboxPass, maildir: Maildir | None, entry: Entry, base: Flags, there: Flags) -> None:
    if maildir is None:
        return
    here = flags_here(maildir, entry, base)
    pair = Pair(Uid(""), entry.key, base, 0, b"")
    merged = merge_flags(pair, here, there, this.rules.permitted)
    this.report.flags += not same_flags(merged.flags, here)
    this.report.flags_there += bool(merged.add or merged.remove)


def _foretell_one(this: MailboxPass, operation: Operation) -> None:
    match operation:
        case DeleteLocal():
            this.report.deleted += 1
        case DeleteRemote():
            this.report.deleted_there += 1
        case MergeFlags():
            this.report.flags += not same_flags(operation.flags, this.flags_before(operation))
            this.report.flags_there += bool(operation.add or operation.remove)
        case Keep() | Forget():
            pass


def _no_body(size_octets: int) -> BodyWriter:
    raise ProtocolViolation(f"the server sends {size_octets} octets for a message that it said was smaller")
