"""(base, local, remote) → operations. The only place that decides what happens to a message; pure.

| base | local | remote | operation                                                        |
|------|-------|--------|------------------------------------------------------------------|
| –    | –     | x      | Pull                                                             |
| –    | x     | –      | Push                                                             |
| –    | x     | x      | Adopt, when the contents match                                   |
| x    | x     | x      | MergeFlags, flag by flag                                         |
| x    | –     | x      | DeleteRemote; where deletions do not travel there, Keep "remote" |
| x    | x     | –      | DeleteLocal; where deletions do not travel here, Keep "local"    |
| x    | –     | –      | Forget                                                           |

`base` is what both sides last agreed on (a `Pair`). Pull, Push and Adopt have no operation of their own: which new
messages are on both sides is found out by content, when both sides can be looked at (`engine.adopt`); what is left on
the server is pulled, what is left here is pushed. What vanished in one mailbox and appeared in another has moved and is
taken out beforehand (`core.moves`); where deletions do not travel from the side that moved it, it has only been added
to the other mailbox, also if both sides moved it, each elsewhere.

Invariants: a flag that one side changed wins over no change on the other, and flags the server does not keep stay a
local difference; a deletion beats a flag change; a message is removed only if its pair was known and a complete listing
of its side no longer has it. Swapping the sides swaps the operations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from maild.core.flags import merge, same_flags
from maild.core.model import (
    DeleteLocal,
    DeleteRemote,
    Flags,
    Forget,
    Keep,
    MergeFlags,
    Operation,
    Pair,
    Permitted,
    Scan,
    ScanTable,
    Uid,
)


@dataclass(slots=True)
class RemoteNews:
    """What a scan of the server says, sorted by what is known: new messages, changed pairs, pairs that are gone."""

    fresh: ScanTable = field(default_factory=ScanTable)
    changed: dict[Uid, tuple[Pair, Flags]] = field(default_factory=dict)
    gone: dict[Uid, Pair] = field(default_factory=dict)

    def sort(
        self, items: Iterable[tuple[Uid, Flags, int]], known: Mapping[Uid, Pair], left_out: Collection[Uid]
    ) -> None:
        """Take a part of a scan; `known` holds its pairs, `left_out` the Uids that are not to be pulled."""
        for uid, flags, size_octets in items:
            if (pair := known.get(uid)) is None:
                if uid not in left_out:
                    self.fresh.add(uid, flags, size_octets)
            elif not pair.only and not same_flags(pair.flags, flags):
                self.changed[uid] = pair, flags


@dataclass(slots=True)
class LocalNews:
    """What a look at the directory says: pairs whose file has other flags, and pairs whose file is gone.

    Files without a pair are kept by `engine.adopt`, for only their content tells what they are.
    """

    changed: dict[Uid, tuple[Pair, Flags]] = field(default_factory=dict)
    gone: dict[Uid, Pair] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """What may travel. `permitted`: which flags the server keeps, None where nothing may be written there."""

    deletes_here: bool
    deletes_there: bool
    permitted: Permitted | None


def proven_gone(scan: Scan, known: set[Uid], listed: Iterable[Uid]) -> set[Uid]:
    """The known Uids that the server has no longer, none unless the listing was complete."""
    if not scan.complete:
        return set()
    return known.difference(listed) if scan.full else known.intersection(scan.vanished)


def reconcile(remote: RemoteNews, local: LocalNews, here: Mapping[Uid, Flags], rules: Rules) -> list[Operation]:
    """What to do about the pairs in the news. `here`: the flags that files of `remote.changed` have; else as paired.

    A file of `remote.changed` that is in neither `here` nor `local` is gone by now: the next look finds that.
    """
    operations: list[Operation] = []
    for uid, pair in remote.gone.items():
        operations.append(_gone_there(pair, uid in local.gone, rules))
    for uid, pair in local.gone.items():
        if uid not in remote.gone:
            operations.append(_gone_here(pair, rules))
    for uid in remote.changed.keys() | local.changed.keys():
        if uid in remote.gone or uid in local.gone:
            continue
        pair, there = remote.changed.get(uid) or (local.changed[uid][0], local.changed[uid][0].flags)
        mine = here.get(uid) if uid in here else local.changed.get(uid, (pair, None))[1]
        operations.append(merge_flags(pair, pair.flags if mine is None else mine, there, rules.permitted))
    return operations


def _gone_there(pair: Pair, is_gone_here: bool, rules: Rules) -> Operation:
    if is_gone_here or pair.only == "remote":
        return Forget(pair.uid)
    return DeleteLocal(pair.uid, pair.key) if rules.deletes_here else Keep(pair.uid, "local")


def _gone_here(pair: Pair, rules: Rules) -> Operation:
    if pair.only == "local":
        return Forget(pair.uid)
    if not rules.deletes_there or rules.permitted is None:
        return Keep(pair.uid, "remote")
    return DeleteRemote(pair.uid, pair.key)


def merge_flags(pair: Pair, mine: Flags, there: Flags, permitted: Permitted | None) -> MergeFlags:
    """Bring the flags of one message together. The new base is what the server will have."""
    merged = merge(pair.flags, mine, there)
    add = missing_in(there, merged)
    add = permitted.of(add) if permitted is not None else frozenset()
    remove = missing_in(merged, there) if permitted is not None else frozenset()
    return MergeFlags(pair.uid, pair.key, merged, add, remove, (there - remove) | add)


def missing_in(these: Flags, flags: Flags) -> Flags:
    """Those of `flags` that are not in `these`, however keywords are spelled."""
    folded = {flag.lower() for flag in these}
    return frozenset(flag for flag in flags if flag.lower() not in folded)
