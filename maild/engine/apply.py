"""Changes to local files that were decided: flags, removals, moves between mailboxes. Files first, durable, then pairs.

Everything here blocks, and runs in the account's state thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from maild.core.errors import LocalError
from maild.core.flags import merge, same_flags
from maild.core.model import (
    DeleteLocal,
    Flags,
    Keep,
    Key,
    MergeFlags,
    Operation,
    Pair,
    Permitted,
    Uid,
)
from maild.core.reconcile import merge_flags
from maild.engine.look import Seconds, flags_here
from maild.local.maildir import Maildir
from maild.local.scan import Entry
from maild.local.state import Changes, MailboxState, Orphan, State

NO_SECONDS: Seconds = {}
TRIES = 3  # of a rename that a mail reader beats us to


@dataclass(slots=True)
class Removed:
    """How many files were removed, and which are still there though they should not be.

    `is_missing`: some were not where they had been seen.
    """

    count: int = 0
    is_missing: bool = False
    left: list[Orphan] = field(default_factory=list)


def remove_files(
    state: State,
    mailbox: MailboxState,
    maildir: Maildir | None,
    operations: Sequence[Operation],
    seconds: Seconds = NO_SECONDS,
) -> Removed:
    """DeleteLocal and Keep of one mailbox: first the pairs, with a note that their files go, then the files, durably.

    A file that is gone while its pair is there was removed by a reader; a kill must not look like that. One that is not
    where the look saw it may have been moved since: its pair stays, and the next look tells. `seconds`: as in `Look`.
    """
    delete = {operation.key: operation.uid for operation in operations if isinstance(operation, DeleteLocal)}
    only = [(operation.uid, operation.only) for operation in operations if isinstance(operation, Keep)]
    removed = Removed()
    if delete and maildir is not None:
        pairs = state.pairs_of(mailbox.id, list(delete.values()))
        entries = maildir.locate({key: pairs[uid].flags for key, uid in delete.items() if uid in pairs})
        going = [pairs[delete[key]] for key in entries]
        orphans = [Orphan(pair.key, pair.flags, pair.size_octets, pair.digest, "unsure") for pair in going]
        if going:
            state.make_unsure(mailbox.id, orphans, [(mailbox.id, pair.uid) for pair in going])
        gone = maildir.remove(entries.values()) if entries else set()
        removed.count = len(gone)
        _remove_seconds(maildir, [pair for pair in going if pair.key in gone], seconds)
        removed.left = [orphan for orphan in orphans if orphan.key not in gone]
        left = {key: pairs[uid] for key, uid in delete.items() if key not in entries and uid in pairs}
        removed.is_missing = any(pair.only != "remote" for pair in left.values())
        delete = {key: pair.uid for key, pair in left.items() if pair.only == "remote"}
    if delete or only:
        state.apply([Changes(mailbox.id, drop=list(delete.values()), only=only)])
    return removed


def _remove_seconds(maildir: Maildir, pairs: Sequence[Pair], seconds: Seconds) -> None:
    """Files with the unique name and the content of one that has gone: they are that message, and go too.

    Else they would count as new. One that has other contents, or cannot be read, is another message.
    """
    contents = {pair.key: pair.content for pair in pairs if pair.key in seconds}
    for entry in (entry for key in contents for entry in seconds[key]):
        with suppress(LocalError):
            identity = maildir.identity(entry)
            if identity is not None and (identity.size_octets, identity.digest) == contents[entry.key]:
                maildir.remove([entry])


def merge_files(
    state: State,
    mailbox: MailboxState,
    maildir: Maildir | None,
    merges: Sequence[MergeFlags],
    seen: Mapping[Key, Entry],
) -> tuple[int, bool]:
    """Give files their merged flags, then note the new base; how many changed, and whether all is done.

    The server has its part already. Flags that a reader changed since the look are kept: the base of such a message
    stays as it was, and the next look brings it together. `seen`: where the look saw some of them.
    """
    if not merges or maildir is None:
        return 0, not merges
    pairs = state.pairs_of(mailbox.id, [operation.uid for operation in merges])
    wanted = {operation.key: operation for operation in merges if operation.uid in pairs}
    settled: list[tuple[Uid, Flags, str | None]] = []
    changed = 0
    for _ in range(TRIES):
        entries = maildir.locate({key: pairs[operation.uid].flags for key, operation in wanted.items()}, seen)
        done = maildir.set_flags(
            [(entry, _wanted_now(maildir, entry, wanted[key], pairs)) for key, entry in entries.items()]
        )
        changed += sum(done[key] != entries[key] for key in done)
        for key, entry in done.items():
            base = wanted[key].base
            is_base = same_flags(flags_here(maildir, entry, base), base)
            settled.append((wanted[key].uid, base, entry.info if is_base else None))
        wanted = {key: operation for key, operation in wanted.items() if key in entries and key not in done}
        if not wanted:
            break
    if settled:
        state.apply([Changes(mailbox.id, flags=settled)])
    return changed, len(settled) == len(merges)


def reflag(maildir: Maildir, flags: Mapping[Key, tuple[Flags, Flags]]) -> int:
    """Give files whose pair is still to come other flags, from those of the base to the merged ones; how many changed.

    Else what one side removed would come back, for without a pair there is no base to tell that from an addition.
    """
    if not flags:
        return 0
    entries = maildir.locate({key: base for key, (base, _) in flags.items()})
    done = maildir.set_flags([(entry, flags[key][1]) for key, entry in entries.items()])
    return sum(done[key] != entries[key] for key in done)


def _wanted_now(maildir: Maildir, entry: Entry, operation: MergeFlags, pairs: Mapping[Uid, Pair]) -> Flags:
    """The decided flags, together with what a reader changed in this instant."""
    base = pairs[operation.uid].flags
    here = flags_here(maildir, entry, base)
    return operation.flags if same_flags(here, operation.flags) else merge(base, here, operation.flags)


@dataclass(frozen=True, slots=True)
class Relocation:
    """A message that moved on the server: the file that is in `source` belongs to `uid` of `target` now.

    `pair` is the old one, of mailbox `pair_mailbox`; `flags` are those on the server.
    """

    pair_mailbox: MailboxState
    pair: Pair
    source: MailboxState
    key: Key
    target: MailboxState
    uid: Uid
    flags: Flags


@dataclass(slots=True)
class Relocated:
    """The moves that were carried out, how many files changed flags on the way, and flags the server still needs."""

    done: list[Relocation] = field(default_factory=list)
    flags: int = 0
    merges: list[MergeFlags] = field(default_factory=list)


def relocate(
    state: State,
    sources: Mapping[int, Maildir],
    target: Maildir,
    moves: Sequence[Relocation],
    permitted: Permitted | None,
    seconds: Mapping[int, Seconds],
) -> Relocated:
    """Move files to where their messages are now, one rename each, then the pairs with them in one commit.

    `sources` are the open directories by mailbox id, `seconds`, as in `Look`, as well. What is missing in the result is
    pulled instead.
    """
    result = Relocated()
    for source_id in sorted({move.source.id for move in moves}):
        some = [move for move in moves if move.source.id == source_id]
        source = sources[source_id]
        entries = source.locate({move.key: move.pair.flags for move in some})
        merges = {
            move.key: merge_flags(
                replace(move.pair, uid=move.uid),
                flags_here(source, entries[move.key], move.pair.flags),
                move.flags,
                permitted,
            )
            for move in some
            if move.key in entries
        }
        ordered = [(entries[key], merge.flags) for key, merge in merges.items()]
        placed = source.set_flags(ordered) if source is target else source.move_to(ordered, target)
        for move in some:
            if (entry := placed.get(move.key)) is not None:
                _note(result, move, entries[move.key], entry, merges[move.key])
        if source is not target:
            moved = [replace(move.pair, key=move.key) for move in some if move.key in placed]
            _remove_seconds(source, moved, seconds.get(source_id, NO_SECONDS))
        state.apply(_pairs_changed(some, placed))
    return result


def _note(result: Relocated, move: Relocation, before: Entry, after: Entry, merge: MergeFlags) -> None:
    result.done.append(move)
    result.flags += (after.letters or "") != (before.letters or "")
    if merge.add or merge.remove:
        result.merges.append(replace(merge, key=after.key))


def _pairs_changed(moves: Sequence[Relocation], placed: Mapping[Key, Entry]) -> list[Changes]:
    """The old pairs go and the new ones come in one commit; drops first, for a pair may stay in its mailbox."""
    done = [move for move in moves if move.key in placed]
    drops = [Changes(move.pair_mailbox.id, drop=[move.pair.uid]) for move in done]
    adds = [
        Changes(
            move.target.id,
            add=[Pair(move.uid, placed[move.key].key, move.flags, move.pair.size_octets, move.pair.digest)],
        )
        for move in done
    ]
    return [*drops, *adds]
