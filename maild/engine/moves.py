"""Messages that moved between mailboxes, found before the mailboxes of an account are brought together one by one.

What moves where is decided in `core.moves`; here is who asks for the facts and what follows:

- gone here, an equal file elsewhere, still on the server: the server moves it too (`MailboxPass.moves_there`); unless
  it has the copy of a move of ours that was cut off there already: that one is adopted, and the old one expunged
  (`MailboxPass.left_behind`). That it was about to be copied is in the state (`State.going`): an equal new message
  that nobody noted is another's;
- gone here, an equal file elsewhere, gone on the server: where facts do not tell its new message there, the file waits
  for what comes (`Unpaired.unsure`): adopted by an equal message it had moved there too, else it is deleted;
- gone there, an equal message elsewhere, still here: the file moves too (`MailboxPass.relocations` of the target);
- gone here, and its noted copy on the server in the trash: expunged, not moved there once more (`MailboxPass.trashed`);
- gone there, a new message of equal facts in the same mailbox: it is fetched, and its content decides;
- moved here, and on the server away and back: as if it had stayed there;
- moved on both sides: the server's place wins; moved on one side and deleted on the other: it is deleted.

Facts pair; only an equal content removes anything, and only where no other message is known that has it: the equal
one may be that other's, which moved as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from maild.core.flags import same_flags
from maild.core.model import NO_FLAGS, Content, Facts, Key, MailboxName, Pair, Uid
from maild.core.moves import File, Gone, NewMessage, likely, local_moves, remote_moves
from maild.engine.adopt import Unsure, uid_order
from maild.engine.apply import Relocation
from maild.engine.elsewhere import keep_what_may_be_too_big
from maild.engine.proof import FactsOf, Known, contents_of, sole
from maild.engine.pull import Work
from maild.engine.sync import MailboxPass, Move
from maild.engine.untold import settle_untold
from maild.local.state import Changes


@dataclass(slots=True)
class _Noted:
    """What was about to go when a pass was cut off, as `State.going`; of some, nobody can tell if it was copied."""

    going: Mapping[tuple[int, Uid], tuple[int, Uid] | None]
    copies: dict[tuple[int, Uid], tuple[int, Uid]] = field(init=False)
    doubtful: set[tuple[int, Uid]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.copies = {one: copies for one, copies in self.going.items() if copies is not None}

    def newest(self, was: MailboxPass, target: MailboxPass) -> dict[Uid, tuple[int, str]]:
        """Those of `was` that were to be copied to `target`, with the place in order of what was the newest there."""
        if not (was.same_epoch and target.same_epoch):
            return {}
        return {
            uid: uid_order(newest)
            for (mailbox_id, uid), (target_id, newest) in self.copies.items()
            if (mailbox_id, target_id) == (was.mailbox.id, target.mailbox.id)
        }


async def settle_moves(
    work: Work, passes: Sequence[MailboxPass], facts_of: FactsOf, blind: Sequence[MailboxPass] = ()
) -> None:
    """Take out of the news of these mailboxes what has only moved. Changes nothing on either side.

    `blind` are those whose server side could not be looked at: what may have moved from or to them is left alone.
    """
    await settle_untold(work, passes, facts_of)
    _leave_alone(passes, blind)
    await keep_what_may_be_too_big(work, passes)
    noted = _Noted(await work.state.run(work.state.state.going))
    if not any(p.local.gone or p.remote.gone for p in passes):
        await _drop_notes(work, passes, noted)
        return
    by_name = {p.name: p for p in passes}
    gone_here = [Gone(p.name, pair) for p in passes for pair in p.local.gone.values() if not pair.only]
    # Two pairs may claim one file, where a pass that did not see one of their mailboxes adopted it in the other. It is
    # not the one that the server has no longer: the other's message would be deleted for want of it.
    gone_here.sort(key=lambda one: one.pair.uid in by_name[one.mailbox].remote.gone)
    files = _files(passes)
    moved_here = local_moves(gone_here, files) if files else {}
    found_here = set(moved_here)
    moved_there = await _moved_there(work, passes, moved_here, facts_of)
    await _renew(work, by_name, moved_here, moved_there)
    _follow_server(by_name, moved_here, {one: new for one, new in moved_there.items() if new.mailbox != one.mailbox})
    for one in [one for one, new in moved_there.items() if new.mailbox == one.mailbox and one not in moved_here]:
        await work.state.run(_await_content, by_name[one.mailbox], one.pair)
    copied = await _copied_already(work, passes, moved_here, facts_of, noted) if noted.copies else set()
    for one, file in moved_here.items():
        _follow_file(by_name, one, file, is_copied=one in copied)
    if noted.copies:
        await _note_trashed(work, passes, facts_of, noted)
    await _drop_notes(work, passes, noted)
    await _note_doomable(work, passes, found_here, noted)


def _leave_alone(passes: Sequence[MailboxPass], blind: Sequence[MailboxPass]) -> None:
    """Neither send nor forget what may have moved between a mailbox that was looked at and one that was not."""
    came = {(i.size_octets, i.digest) for p in blind for i in p.unpaired.identities.values()}
    went = {pair.content for p in blind for pair in p.local.gone.values()}
    for p in passes:
        for uid, pair in list(p.local.gone.items()) if came else ():
            if pair.content in came:
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
        alike = [uid for uid, _, size in p.remote.fresh if size in sizes and uid not in p.retried]
        for uid, facts in (await facts_of(p, alike)).items() if alike else ():
            fresh[facts].append(NewMessage(p.name, uid))
    moved = remote_moves(gone, fresh, moved_here)
    # Where deletions do not travel here, a move there does not either: the file stays where its reader put it.
    stays = {one for one in moved if one in moved_here and not by_name[one.mailbox].rules.deletes_here}
    return {one: new for one, new in moved.items() if one not in stays or new.mailbox == one.mailbox}


async def _copied_already(
    work: Work,
    passes: Sequence[MailboxPass],
    moved_here: Mapping[Gone, File],
    facts_of: FactsOf,
    noted: _Noted,
) -> set[Gone]:
    """Those that the server has in their new mailbox too: where it has no MOVE, a cut after the COPY leaves that."""
    by_name = {p.name: p for p in passes}
    wanted: dict[tuple[MailboxName, MailboxName], list[Gone]] = defaultdict(list)
    for one, file in moved_here.items():
        was, target = by_name[one.mailbox], by_name[file.mailbox]
        is_moved = was is not target and one.pair.uid not in was.remote.gone and was.rules.deletes_there
        if is_moved and was.rules.permitted is not None and target.rules.permitted is not None:
            wanted[was.name, target.name].append(one)
    used: defaultdict[MailboxName, set[Uid]] = defaultdict(set)
    copied: set[Gone] = set()
    rivals = _ids(passes, [one for several in wanted.values() for one in several])
    for (source, name), several in sorted(wanted.items()):
        was, target = by_name[source], by_name[name]
        pairs = [one.pair for one in several]
        proven = await _copies(work, was, target, pairs, facts_of, used[name], rivals, noted)
        copied.update(one for one in several if one.pair.uid in proven)
    return copied


async def _note_trashed(work: Work, passes: Sequence[MailboxPass], facts_of: FactsOf, noted: _Noted) -> None:
    """Messages to be deleted that are new in the trash already: without MOVE, a deletion that was cut off."""
    trash = next((p for p in passes if p.name == work.trash), None)
    if trash is None:
        return
    able = [p for p in passes if p.rules.permitted is not None and p.rules.deletes_there and work.trash_for(p.name)]
    going = [Gone(p.name, pair) for p in able for uid, pair in p.local.gone.items() if uid not in p.remote.gone]
    rivals, used = _ids(passes, going), set[Uid]()
    for p in able:
        pairs = [one.pair for one in going if one.mailbox == p.name and not one.pair.only]
        p.trashed = await _copies(work, p, trash, pairs, facts_of, used, rivals, noted)


async def _drop_notes(work: Work, passes: Sequence[MailboxPass], noted: _Noted) -> None:
    """A note counts once: whatever comes to its target after this look is no copy of a move that was cut before."""
    seen = {p.mailbox.id for p in passes}
    kept = noted.doubtful | {
        (p.mailbox.id, uid) for p in passes for uid in (*p.left_behind, *p.trashed, *p.remote.gone)
    }
    past = [
        one
        for one, copies in noted.going.items()
        if one not in kept and one[0] in seen and (copies is None or copies[0] in seen)
    ]
    if past and not work.dry_run:
        await work.state.run(work.state.state.drop_going, past)


async def _copies(
    work: Work,
    was: MailboxPass,
    target: MailboxPass,
    pairs: Sequence[Pair],
    facts_of: FactsOf,
    used: set[Uid],
    rivals: Collection[Known],
    noted: _Noted,
) -> set[Uid]:
    """Those of messages of `was` of which a copy was begun and is in `target`, of the same content; each counts once.

    No message but `rivals` may be what went there instead.
    """
    newest = noted.newest(was, target)
    pairs = [pair for pair in pairs if pair.uid in newest]
    fresh = [(uid, size) for uid, _, size in target.remote.fresh if uid not in target.retried and uid not in used]
    alike = likely([pair.size_octets for pair in pairs], fresh)
    if not alike:
        return set()
    by_facts: dict[Facts, list[Uid]] = defaultdict(list)
    for uid, facts in (await facts_of(target, alike)).items():
        by_facts[facts].append(uid)
    there = await facts_of(was, [pair.uid for pair in pairs]) if by_facts else {}
    nominated = {pair.uid: by_facts[there[pair.uid]] for pair in pairs if there.get(pair.uid) in by_facts}
    contents = await contents_of(work, target, {uid for uids in nominated.values() for uid in uids})
    safe = await sole(work, rivals, {pair.content for pair in pairs} & set(contents.values()))
    by_content: dict[tuple[Facts, Content], list[Uid]] = defaultdict(list)
    for facts, uids in by_facts.items():
        for uid in uids:
            if contents.get(uid) in safe:
                by_content[facts, contents[uid]].append(uid)
    proven: set[Uid] = set()
    for pair in pairs:
        same = by_content[there[pair.uid], pair.content] if pair.uid in nominated else []
        if (copy := next((uid for uid in same if uid_order(uid) > newest[pair.uid]), None)) is not None:
            same.remove(copy)
            used.add(copy)
            proven.add(pair.uid)
        elif pair.uid not in there or not contents.keys() >= set(nominated.get(pair.uid, ())):
            noted.doubtful.add((was.mailbox.id, pair.uid))
    return proven


async def _renew(
    work: Work,
    by_name: Mapping[MailboxName, MailboxPass],
    moved_here: dict[Gone, File],
    moved_there: dict[Gone, NewMessage],
) -> None:
    """Messages that left and came back on the server, under a new Uid: a reader's move of them is carried out there."""
    for one in [one for one, new in moved_there.items() if new.mailbox == one.mailbox and one in moved_here]:
        was, uid = by_name[one.mailbox], moved_there.pop(one).uid
        if (await contents_of(work, was, {uid})).get(uid) != one.pair.content:
            continue  # a corrected draft
        pair, there = replace(one.pair, uid=uid), was.remote_flags({uid})[uid]
        if not work.dry_run:
            changes = Changes(was.mailbox.id, drop=[one.pair.uid], add=[pair])
            await work.state.run(work.state.state.apply, [changes])
        del was.local.gone[one.pair.uid], was.remote.gone[one.pair.uid]
        was.local.gone[uid] = pair
        was.remote.fresh = was.remote.fresh.without({uid})
        if not same_flags(there, pair.flags):
            was.remote.changed[uid] = pair, there
        moved_here[Gone(one.mailbox, pair)] = moved_here.pop(one)


def _follow_server(
    by_name: Mapping[MailboxName, MailboxPass], moved_here: dict[Gone, File], moved_there: Mapping[Gone, NewMessage]
) -> None:
    """The server's moves: the file, wherever it is by now, goes to the new mailbox."""
    uids: dict[MailboxName, set[Uid]] = defaultdict(set)
    for new in moved_there.values():
        uids[new.mailbox].add(new.uid)
    flags = {name: by_name[name].remote_flags(some) for name, some in uids.items()}
    for one, new in moved_there.items():
        was, target, file = by_name[one.mailbox], by_name[new.mailbox], moved_here.pop(one, None)
        source, key = (was, one.pair.key) if file is None else (by_name[file.mailbox], file.key)
        if file is not None:
            source.unpaired.take(file.key)
            del was.local.gone[one.pair.uid]
            source.awaited.add(file.key)
        del was.remote.gone[one.pair.uid]
        was.local.changed.pop(one.pair.uid, None)  # the move brings its flags together
        there = flags[new.mailbox].get(new.uid, NO_FLAGS)
        move = Relocation(was.mailbox, one.pair, source.mailbox, key, target.mailbox, new.uid, there)
        target.relocations.append(move)
    for name, some in uids.items():
        by_name[name].remote.fresh = by_name[name].remote.fresh.without(some)


def _await_content(this: MailboxPass, pair: Pair) -> None:
    """A new message where the one that is gone was, equal facts: that one again, or a corrected draft."""
    maildir = this.opened(make=False)
    entry = maildir.locate({pair.key: pair.flags}).get(pair.key) if maildir is not None else None
    identity = maildir.identity(entry) if maildir is not None and entry is not None else None
    if entry is None or identity is None:
        return
    this.local.changed.pop(pair.uid, None)
    this.unpaired.add(entry, identity)
    _leave_unsure(this, pair, this, pair.key)


def _leave_unsure(was: MailboxPass, pair: Pair, target: MailboxPass, key: Key) -> None:
    """Whether the message is gone or moved is told by what comes; until then the pair stays."""
    was.local.gone.pop(pair.uid, None)
    del was.remote.gone[pair.uid]
    target.unpaired.remember(key, pair)
    target.unpaired.unsure[key] = Unsure(was.mailbox.id, pair)


def _follow_file(by_name: Mapping[MailboxName, MailboxPass], one: Gone, file: File, *, is_copied: bool = False) -> None:
    """The reader's move: the server moves its message too; unless it is gone, for a deletion beats the move."""
    was, target = by_name[one.mailbox], by_name[file.mailbox]
    if one.pair.uid in was.remote.gone:
        if target.rules.deletes_here:
            _leave_unsure(was, one.pair, target, file.key)
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


async def _note_doomable(
    work: Work, passes: Sequence[MailboxPass], found_here: Collection[Gone], noted: _Noted
) -> None:
    """What both sides no longer have where it was may come back elsewhere, moved by the server: it stays deleted.

    Not that of which a file was found: a reader, or a pass that was killed, moved it as well. Nor that which such a
    pass was about to delete: what is new elsewhere is another's.
    """
    if len(passes) < 2:
        return  # nothing is known of the other mailboxes
    trash = next((row.id for row in (await work.state.run(work.rows)).values() if row.name == work.trash), None)
    deleted = {one for one, copies in noted.going.items() if copies is None or copies[0] == trash}
    for p in passes:
        gone = [pair for uid, pair in p.local.gone.items() if uid in p.remote.gone and not pair.only]
        gone = [pair for pair in gone if (p.mailbox.id, pair.uid) not in deleted]
        gone = [pair for pair in gone if Gone(p.name, pair) not in found_here] if p.rules.deletes_there else []
        others = [q for q in passes if q is not p and q.name != work.trash and q.rules.permitted is not None]
        sizes = [pair.size_octets for pair in gone]
        for q in others if gone else ():
            alike = likely(sizes, [(uid, size) for uid, _, size in q.remote.fresh])
            work.may_be_doomed[q.name].update(alike)
            p.may_come_back = min(len(gone), p.may_come_back + len(alike))
        p.doomable = gone if p.may_come_back else []
    rivals = [Gone(p.name, pair) for p in passes for pair in p.doomable]
    safe = await sole(work, _ids(passes, rivals), {one.pair.content for one in rivals})
    for p in passes:
        p.doomable = [pair for pair in p.doomable if pair.content in safe]
        p.may_come_back = min(p.may_come_back, len(p.doomable))


def _ids(passes: Iterable[MailboxPass], of: Iterable[Gone]) -> set[Known]:
    """The same as the state knows them."""
    ids = {p.name: p.mailbox.id for p in passes}
    return {(ids[one.mailbox], one.pair.uid) for one in of}
