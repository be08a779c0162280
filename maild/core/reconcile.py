"""(base, local, remote) → operations. The only place that decides what happens to a message; pure.

| base | local | remote | operation                              |
|------|-------|--------|----------------------------------------|
| –    | –     | x      | Pull                                   |
| –    | x     | x      | Adopt, when the contents match         |
| x    | x     | x      | merge flags bit by bit                 |
| x    | –     | x      | nothing: the local deletion stays here |
| x    | x     | –      | DeleteLocal                            |
| x    | –     | –      | Forget                                 |

`base` is what both sides last agreed on (a `Pair`). In this version changes travel from the server to this disk only,
so the new base of a message is what the server has: whatever differs from it on this disk is a local change that is
kept, and can still be told as one later. Which new messages are adopted is found out before they are pulled, by content
(`engine.propagate`), since only then both sides can be looked at.

Invariants: a flag that one side changed wins over no change on the other; a message is removed only if its pair was
known and a complete listing no longer has it; no operation writes to the server.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from maild.core.flags import merge, same_flags
from maild.core.model import DeleteLocal, Flags, Forget, Key, Operation, Pair, Scan, ScanTable, SetLocalFlags, Uid


@dataclass(slots=True)
class News:
    """What a scan says, sorted by what is known: new messages, changed ones with their pair, pairs that are gone."""

    fresh: ScanTable = field(default_factory=ScanTable)
    changed: list[tuple[Pair, Flags]] = field(default_factory=list)
    gone: list[Pair] = field(default_factory=list)

    def sort(
        self, items: Iterable[tuple[Uid, Flags, int]], known: Mapping[Uid, Pair], left_out: Collection[Uid]
    ) -> None:
        """Take a part of a scan; `known` holds its pairs, `left_out` the Uids that are not to be pulled."""
        for uid, flags, size_octets in items:
            if (pair := known.get(uid)) is None:
                if uid not in left_out:
                    self.fresh.add(uid, flags, size_octets)
            elif not same_flags(pair.flags, flags):
                self.changed.append((pair, flags))


def proven_gone(scan: Scan, known: set[Uid], listed: Iterable[Uid]) -> set[Uid]:
    """The known Uids that the server has no longer, none unless the listing was complete."""
    if not scan.complete:
        return set()
    return known.difference(listed) if scan.full else known.intersection(scan.vanished)


def reconcile(news: News, local: Mapping[Key, Flags], *, deletes: bool) -> list[Operation]:
    """What to do with local files. `local` holds the flags of those paired files of `news` that are there.

    `deletes` says whether deletions on the server travel to this disk; without, the file stays and its pair is dropped.
    """
    operations: list[Operation] = []
    for pair, remote in news.changed:
        here = local.get(pair.key)
        merged = remote if here is None else merge(pair.flags, here, remote)
        operations.append(SetLocalFlags(pair.uid, pair.key, merged, remote))
    for pair in news.gone:
        is_here = pair.key in local
        operations.append(DeleteLocal(pair.uid, pair.key) if is_here and deletes else Forget(pair.uid))
    return operations
