"""Messages that moved between mailboxes, found before the mailboxes of an account are brought together one by one.

What moves where is decided in `core.moves`; here is who asks for the facts and what follows:

- gone here, an equal file elsewhere, still on the server: the server moves it too (`MailboxPass.moves_there`); unless
  it has an equal new message there already, the copy of a move that was cut off: that one is adopted, and the old one
  expunged (`MailboxPass.left_behind`);
- gone there, an equal message elsewhere, still here: the file moves too (`MailboxPass.relocations` of the target);
- gone here, and on the server in the trash as well: expunged, not moved there once more (`MailboxPass.trashed`);
- moved on both sides: the server's place wins; moved on one side and deleted on the other: it is deleted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

from maild.core.model import NO_FLAGS, Facts, MailboxName, Uid
from maild.core.moves import Content, File, Gone, NewMessage, local_moves, remote_moves
from maild.engine.apply import Relocation
from maild.engine.pull import Work
from maild.engine.sync import MailboxPass, Move

FactsOf = Callable[[MailboxPass, Sequence[Uid]], Awaitable[Mapping[Uid, Facts]]]


async def settle_moves(
    work: Work, passes: Sequence[MailboxPass], facts_of: FactsOf, blind: Sequence[MailboxPass] = ()
) -> None:
    """Take out of the news of these mailboxes what has only moved. Changes nothing on either side.

    `blind` are those whose server side could not be looked at: what may have moved from or to them is left alone.
    """
    _leave_alone(passes, blind)
    if not any(p.local.gone or p.remote.gone for p in passes):
        return
    by_name = {p.name: p for p in passes}
    gone_here = [Gone(p.name, pair) for p in passes for pair in p.local.gone.values() if not pair.only]
    files = _files(passes)
    moved_here = local_moves(gone_here, files) if files else {}
    moved_there = await _moved_there(work, passes, moved_here, facts_of)
    for one, new in moved_there.items():
        _follow_server(by_name, one, moved_here.pop(one, None), new)
    copied = await _copied_already(by_name, moved_here, facts_of)
    for one, file in moved_here.items():
        _follow_file(by_name, one, file, is_copied=one in copied)
    await _note_trashed(work, passes, facts_of)
    _doom(work, passes)


def _leave_alone(passes: Sequence[MailboxPass], blind: Sequence[MailboxPass]) -> None:
    """Neither send nor forget what may have moved between a mailbox that was looked at and one that was not."""
    came = {(i.size_octets, i.digest) for p in blind for i in p.unpaired.identities.values()}
    went = {(pair.size_octets, pair.digest) for p in blind for pair in p.local.gone.values()}
    for p in passes:
        for uid, pair in list(p.local.gone.items()) if came else ():
            if (pair.size_octets, pair.digest) in came:
                del p.local.gone[uid]
                p.remote.gone.pop(uid, None)
                p.awaited.add(pair.key)
        for key, identity in list(p.unpaired.identities.items()) if went else ():
            if (identity.size_octets, identity.digest) in went:
                p.unpaired.take(key)
                p.awaited.add(key)


def _files(passes: Sequence[MailboxPass]) -> dict[Content, list[File]]:
    files: dict[Content, list[File]] = defaultdict(list)
    for p in passes:
        for key, identity in p.unpaired.identities.items():
            files[identity.size_octets, identity.digest].append(File(p.name, key))
    return files


async def _moved_there(
    work: Work, passes: Sequence[MailboxPass], moved_here: Mapping[Gone, File], facts_of: FactsOf
) -> dict[Gone, NewMessage]:
    """Pairs gone on the server whose message is somewhere else there, as the file we still have tells."""
    by_name = {p.name: p for p in passes}
    if not any(p.remote.gone for p in passes) or not any(len(p.remote.fresh) for p in passes):
        return {}
    gone: dict[Facts, list[Gone]] = defaultdict(list)
    for p in passes:
        kept = [pair for uid, pair in p.remote.gone.items() if uid not in p.local.gone and not pair.only]
        identities = await work.state.run(p.identities_of, kept) if kept and p.rules.deletes_here else {}
        for pair in kept:
            if (identity := identities.get(pair.key)) is not None:
                gone[identity.facts].append(Gone(p.name, pair))
    for one, file in moved_here.items():
        if one.pair.uid in by_name[one.mailbox].remote.gone:
            gone[by_name[file.mailbox].unpaired.identities[file.key].facts].append(one)
    sizes = {facts.size_octets for facts in gone}
    fresh: dict[Facts, list[NewMessage]] = defaultdict(list)
    for p in passes:
        likely = [uid for uid, _, size in p.remote.fresh if size in sizes and uid not in p.retried]
        for uid, facts in (await facts_of(p, likely)).items() if likely else ():
            fresh[facts].append(NewMessage(p.name, uid))
    return remote_moves(gone, fresh, moved_here)


async def _copied_already(
    by_name: Mapping[MailboxName, MailboxPass], moved_here: Mapping[Gone, File], facts_of: FactsOf
) -> set[Gone]:
    """Those that the server has in their new mailbox too: where it has no MOVE, a cut after the COPY leaves that."""
    wanted: dict[MailboxName, dict[Facts, list[Gone]]] = defaultdict(lambda: defaultdict(list))
    for one, file in moved_here.items():
        is_there = one.pair.uid not in by_name[one.mailbox].remote.gone
        facts = by_name[file.mailbox].unpaired.identities[file.key].facts
        if is_there and one.mailbox != file.mailbox and facts.message_id:
            wanted[file.mailbox][facts].append(one)
    copied: set[Gone] = set()
    for name, groups in wanted.items():
        target, sizes = by_name[name], {facts.size_octets for facts in groups}
        likely = [uid for uid, _, size in target.remote.fresh if size in sizes and uid not in target.retried]
        for facts in (await facts_of(target, likely)).values() if likely else ():
            if groups.get(facts):
                copied.add(groups[facts].pop(0))
    return copied


async def _note_trashed(work: Work, passes: Sequence[MailboxPass], facts_of: FactsOf) -> None:
    """Messages to be deleted that are new in the trash already: without MOVE, a deletion that was cut off."""
    trash = next((p for p in passes if p.name == work.trash), None)
    if trash is None or not len(trash.remote.fresh):
        return
    fresh = [(uid, size) for uid, _, size in trash.remote.fresh if uid not in trash.retried]
    for p in passes:
        if p.rules.permitted is None or not p.rules.deletes_there or work.trash_for(p.name) is None:
            continue
        gone = [pair for uid, pair in p.local.gone.items() if uid not in p.remote.gone and not pair.only]
        likely = _likely([pair.size_octets for pair in gone], fresh)
        if not likely:
            continue
        there = await facts_of(p, [pair.uid for pair in gone])
        copies = list((await facts_of(trash, likely)).values())
        for uid, facts in there.items():
            if facts.message_id and facts in copies:
                copies.remove(facts)
                p.trashed.add(uid)


def _likely(sizes: Sequence[int], fresh: Sequence[tuple[Uid, int]]) -> list[Uid]:
    """Those that may have one of these sizes on disk, where each line is an octet shorter than on the wire."""
    ordered = sorted(sizes)
    likely: list[Uid] = []
    for uid, size in fresh:
        at = bisect_right(ordered, size) - 1
        if at >= 0 and ordered[at] * 2 >= size:
            likely.append(uid)
    return likely


def _follow_server(by_name: Mapping[MailboxName, MailboxPass], one: Gone, file: File | None, new: NewMessage) -> None:
    """The server's move: the file, wherever it is by now, goes to the new mailbox."""
    was, target = by_name[one.mailbox], by_name[new.mailbox]
    source, key = (was, one.pair.key) if file is None else (by_name[file.mailbox], file.key)
    flags = target.remote_flags({new.uid}).get(new.uid, NO_FLAGS)
    if file is not None:
        source.unpaired.take(file.key)
        del was.local.gone[one.pair.uid]
        source.awaited.add(file.key)
    del was.remote.gone[one.pair.uid]
    target.remote.fresh = target.remote.fresh.without({new.uid})
    target.relocations.append(Relocation(was.mailbox, one.pair, source.mailbox, key, target.mailbox, new.uid, flags))


def _follow_file(by_name: Mapping[MailboxName, MailboxPass], one: Gone, file: File, *, is_copied: bool = False) -> None:
    """The reader's move: the server moves its message too; unless it deleted it, which beats the move."""
    was, target = by_name[one.mailbox], by_name[file.mailbox]
    if one.pair.uid in was.remote.gone:
        if target.rules.deletes_here:
            target.doomed_files.append(target.unpaired.take(file.key)[0])
        return
    if was is not target and (was.rules.permitted is None or not was.rules.deletes_there):
        return  # it is added there, and stays where it was
    del was.local.gone[one.pair.uid]
    if was is not target and target.rules.permitted is None:
        was.awaited.add(one.pair.key)
        target.awaited.add(file.key)
        target.report.error = f"it is read-only on the server: what was moved here from {was.name} stays there"
        return
    if is_copied:
        was.remote.changed.pop(one.pair.uid, None)
        was.left_behind.append(one.pair.uid)
        target.unpaired.remember(file.key, one.pair)
        return
    entry, _, _ = target.unpaired.take(file.key)
    target.awaited.add(file.key)
    if was is target:
        was.rekeyed.append((one.pair, entry))
    else:
        _, flags = was.remote.changed.pop(one.pair.uid, (one.pair, one.pair.flags))
        was.moves_there[target.name].append(Move(one.pair, file.key, flags))


def _doom(work: Work, passes: Sequence[MailboxPass]) -> None:
    """What both sides no longer have where it was may come back elsewhere, moved by the server: it stays deleted."""
    for p in passes:
        for uid, pair in p.local.gone.items():
            if uid in p.remote.gone and p.rules.deletes_there and not pair.only:
                work.doomed[pair.size_octets, pair.digest].append(p.name)
