"""Messages that the server got, or may have got, from here, and of which nobody told the Uid.

A pass was killed between an APPEND and the pair, or the server has no UIDPLUS. As long as both stay where they are, the
next pass adopts file and message by content. Here is what happens if one of them has moved on meanwhile: without it
the message would be sent a second time from where its file is by then.

- the file has gone on, the message is where it was sent to: a pair whose file is gone, as any other;
- the file is gone altogether: the same if the server is known to have taken the message ("sent"). Else ("sending") the
  equal message may be anybody's, and is fetched: that a file is gone proves nothing about it;
- the message has gone on, the file is where it was: the file follows. A message that the server took and that is
  nowhere in two passes ("missed" after the first) was deleted there, or lost: it is sent again.

Contents decide, and only where no other message is known to have the same. Comes before `engine.moves`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from maild.core.flags import same_flags
from maild.core.model import NO_FLAGS, Content, Facts, Key, MailboxName, Pair, Uid
from maild.core.moves import likely
from maild.engine.adopt import kept_uid
from maild.engine.apply import Relocation
from maild.engine.proof import FactsOf, contents_of, unknown_elsewhere
from maild.engine.pull import Work
from maild.engine.sync import MailboxPass
from maild.local.state import Changes, Orphan


@dataclass(frozen=True, slots=True)
class _File:
    """Where the file of an untold message is now."""

    this: MailboxPass
    key: Key

    @property
    def facts(self) -> Facts:
        return self.this.unpaired.identities[self.key].facts

    def wait(self) -> None:
        """It is not sent in this pass, for the server may have it."""
        self.this.waiting.add(self.key)
        self.this.awaited.add(self.key)


@dataclass(slots=True)
class _Matches:
    """Which message is which; and those that might be one of the others, and did not come when they were fetched."""

    found: list[tuple[Orphan, Uid]] = field(default_factory=list)
    doubtful: dict[Uid, bytes | None] = field(default_factory=dict)  # with their Message-ID, where it was asked


async def settle_untold(work: Work, passes: Sequence[MailboxPass], facts_of: FactsOf) -> None:
    """Find these messages where their file, or they themselves, are no longer where they were sent to.

    Not to be called while a session is held.
    """
    undecided = await _of_unseen(work, passes)
    for p in passes:
        notes, hidden = _sorted_out(p, passes)
        p.untold |= {note.key for note in hidden}
        undecided |= {note.content for note in hidden}
        away = [note for note in notes if note.key not in p.unpaired.entries]
        files = {note.key: _File(p, note.key) for note in notes if note.key in p.unpaired.entries}
        if away:
            files |= _files_of(away, passes, {(p.name, key) for key in files})
            await _find_messages(work, p, away, files, facts_of)
            if _is_partial(work):  # both may be where this pass does not look, or one of them
                lost = [note for note in away if note.key not in files and note.key in p.unpaired.orphans]
                p.untold |= {note.key for note in lost}
                undecided |= {note.content for note in lost}
        left = [note for note in notes if note.key in files and note.key in p.unpaired.orphans]
        left = [note for note in left if files[note.key].key in files[note.key].this.to_send]
        if left:
            await _find_moved(work, p, left, files, passes, facts_of)
    if undecided:
        for p in passes:
            await _leave_undecided(work, p, undecided)


# -- where file or message cannot be seen


async def _of_unseen(work: Work, passes: Sequence[MailboxPass]) -> set[Content]:
    """What the server has from mailboxes that these passes do not look at: it may have moved to where they do."""
    seen = {p.mailbox.id for p in passes}
    wanted = {row.id for row in work.rows().values() if row.name in work.listed and work.wants(row.name)} - seen

    def contents() -> set[Content]:
        state = work.state.state
        notes = [(id_, note) for id_ in wanted & state.with_leftovers() for note in state.orphans(id_).values()]
        return {note.content for id_, note in notes if note.is_untold and (id_, note.key) not in work.sent}

    return await work.state.run(contents) if wanted else set()


def _sorted_out(this: MailboxPass, passes: Sequence[MailboxPass]) -> tuple[list[Orphan], list[Orphan]]:
    """The notes about messages that are to be found, and those whose file may be one that nobody can read.

    Not one of which there is a file with its content: that one has gone there, and would be sent else.
    """
    notes = this.unpaired.untold() if this.same_epoch else []
    unreadable = [file for p in passes for file in p.unpaired.unreadable.values()]
    hidden = [
        note
        for note in notes
        if note.key not in this.unpaired.entries
        and (
            note.key in this.unpaired.unreadable
            or (
                any(file.may_be(note.size_octets) for file in unreadable)
                and all(p.unpaired.with_content(note.content) is None for p in passes)
            )
        )
    ]
    return [note for note in notes if note not in hidden], hidden


async def _leave_undecided(work: Work, this: MailboxPass, undecided: Collection[Content]) -> None:
    """New messages that have one of these contents are not fetched, unless a file here is to be one of them."""
    mine = this.unpaired
    unknown = {content for content in undecided if mine.with_content(content) is None}
    alike = set(likely([size for size, _ in unknown], [(uid, size) for uid, _, size in this.remote.fresh]))
    contents = await contents_of(work, this, alike) if alike else {}
    waiting = {uid for uid in alike if uid not in contents or contents[uid] in unknown}
    _leave(this, waiting)
    if waiting and _is_partial(work):
        this.report.error = _waiting_text(work, len(waiting))


def _is_partial(work: Work) -> bool:
    """Whether file or message may be in a mailbox that this pass does not see."""
    return work.is_asked or bool(work.failed & work.listed)


def _waiting_text(work: Work, messages: int) -> str:
    return (
        f"messages that were sent from here and may have moved since: {messages}; they wait for a pass that looks"
        f" everywhere: maild sync {work.account.name}"
    )


# -- the file is gone


async def _find_messages(
    work: Work, p: MailboxPass, away: Sequence[Orphan], files: Mapping[Key, _File], facts_of: FactsOf
) -> None:
    wanted = [note for note in away if note.key in files or note.is_taken or _is_partial(work)]
    matches = await _matched(work, p, wanted, files, facts_of)
    waiting = {uid for note, uid in matches.found if note.key not in files and not note.is_taken}
    pairs = {uid: Pair(uid, note.key, note.flags, *note.content) for note, uid in matches.found if uid not in waiting}
    if waiting:  # its file may be where this pass does not look
        p.untold |= {note.key for note, uid in matches.found if uid in waiting}
        p.report.error = _waiting_text(work, len(waiting))
    if matches.doubtful:  # any of them may be one of these
        for note in (note for note in wanted if all(note is not matched for matched, _ in matches.found)):
            p.untold.add(note.key)
            if note.key in files:
                files[note.key].wait()
    _leave(p, waiting | matches.doubtful.keys())
    if pairs and not work.dry_run:
        await work.state.run(work.state.state.apply, [Changes(p.mailbox.id, add=list(pairs.values()))])
    flags = p.remote_flags(pairs)
    p.remote.fresh = p.remote.fresh.without(pairs) if pairs else p.remote.fresh
    for uid, pair in pairs.items():
        del p.unpaired.orphans[pair.key]
        p.local.gone[uid] = pair
        if not same_flags(flags[uid], pair.flags):
            p.remote.changed[uid] = pair, flags[uid]


def _leave(this: MailboxPass, uids: Collection[Uid]) -> None:
    """These messages are not fetched in this pass; the next one sees them anew."""
    if uids:
        this.remote.fresh = this.remote.fresh.without(uids)
        this.is_undone = this.is_missed = True


def _files_of(
    notes: Sequence[Orphan], passes: Sequence[MailboxPass], used: set[tuple[MailboxName, Key]]
) -> dict[Key, _File]:
    """Files with these contents, by the key of the note: under the same name if there is one. Each counts once."""
    found: dict[Key, _File] = {}
    for is_same in (True, False):
        for note in (note for note in notes if note.key not in found):
            for q in passes:
                keys = (key for key in q.unpaired.by_content.get(note.content, ()) if key in q.unpaired.entries)
                free = (key for key in keys if (q.name, key) not in used and (key == note.key or not is_same))
                if note.key not in found and (key := next(free, None)) is not None:
                    found[note.key] = _File(q, key)
                    used.add((q.name, key))
    return found


# -- the message is gone


async def _find_moved(
    work: Work,
    p: MailboxPass,
    notes: Sequence[Orphan],
    files: Mapping[Key, _File],
    passes: Sequence[MailboxPass],
    facts_of: FactsOf,
) -> None:
    sizes = [note.size_octets for note in notes]
    brought_back = [q.bring_back(q.left_like(sizes)) for q in passes]
    others = [q for q in passes if q is not p and _fresh_like(q, notes)]
    missing = await _missing(work, p, notes, files, facts_of)
    unproven: set[bytes | None] = set()
    for q in others if missing else ():
        several = [note for note in missing if files[note.key].this is not q]
        matches = await _matched(work, q, several, files, facts_of)
        for note, uid in matches.found:
            await _follow(work, p, note, files[note.key], q, uid)
        missing = [note for note in missing if all(note is not followed for followed, _ in matches.found)]
        unproven |= set(matches.doubtful.values())
        _leave(q, matches.doubtful.keys())
    late = [message for q in passes for message in _late(q)]
    for note in missing:
        # What the server may never have had is not to wait for ever for a mailbox that always fails.
        is_unseen = _is_partial(work) if note.is_taken else work.is_asked
        is_late = is_unseen or not all(brought_back) or (note.is_taken and bool(likely([note.size_octets], late)))
        if is_late or None in unproven or files[note.key].facts.message_id in unproven:
            _wait(work, p, files[note.key], note)
        elif note.only == "sent":  # it may have moved while others were looked at: missed twice, it is sent again
            _wait(work, p, files[note.key], note)
            if not work.dry_run:
                missed = Changes(p.mailbox.id, sent=[replace(note, only="missed")])
                await work.state.run(work.state.state.apply, [missed])


def _wait(work: Work, p: MailboxPass, file: _File, note: Orphan) -> None:
    file.wait()
    p.untold.add(note.key)
    if _is_partial(work):
        p.report.error = _waiting_text(work, 1)


async def _missing(
    work: Work, p: MailboxPass, notes: Sequence[Orphan], files: Mapping[Key, _File], facts_of: FactsOf
) -> list[Orphan]:
    """Those whose message is not where it was sent to, among what is new there; each message counts once.

    The others are adopted, or wait: a message may go on before that.
    """
    alike = _fresh_like(p, notes)
    if not alike:
        return list(notes)
    told = await facts_of(p, alike)
    facts = {files[note.key].facts for note in notes}
    sure = {one for one in told.values() if one in facts and one.message_id}
    ids = {one.message_id for one in facts}
    asked = {uid for uid, one in told.items() if one.message_id in ids and one not in sure}
    contents = await contents_of(work, p, asked) if asked else {}
    unasked = set(alike) - told.keys()  # the mailbox failed, or they have just gone
    doubtful = asked - contents.keys()
    _leave(p, doubtful | unasked)
    unproven = {told[uid].message_id for uid in doubtful}
    there: Counter[Facts | Content] = Counter(one for one in told.values() if one in sure)
    there.update(contents.values())
    missing: list[Orphan] = []
    for note in notes:
        file = files[note.key]
        which = file.facts if file.facts in sure else note.content
        if there[which] > 0:
            there[which] -= 1
            if file.this is p:
                p.untold.add(note.key)
                p.waiting.add(file.key)
        elif unasked or file.facts.message_id in unproven:
            _wait(work, p, file, note)
        else:
            missing.append(note)
    return missing


async def _follow(work: Work, p: MailboxPass, note: Orphan, file: _File, target: MailboxPass, uid: Uid) -> None:
    """The message has gone on to `target`: its file follows, unless what the server does has no effect here."""
    source = file.this
    pair = Pair(kept_uid(note.key), note.key, note.flags, *note.content)
    source.unpaired.take(file.key)
    if not source.rules.deletes_here:
        kept = Pair(kept_uid(file.key), file.key, note.flags, *note.content, only="local")
        if not work.dry_run:
            await work.state.run(work.state.state.apply, [Changes(source.mailbox.id, add=[kept])])
        return
    p.untold.add(note.key)
    source.awaited.add(file.key)
    there = target.remote_flags({uid}).get(uid, NO_FLAGS)
    target.remote.fresh = target.remote.fresh.without({uid})
    target.relocations.append(Relocation(p.mailbox, pair, source.mailbox, file.key, target.mailbox, uid, there))


# -- which message is which


def _late(this: MailboxPass) -> list[tuple[Uid, int]]:
    """What is there and does not come in this pass, or did not come before."""
    return this.unfetched + [(uid, size) for uid, _, size in this.remote.fresh if uid in this.retried]


def _fresh_like(this: MailboxPass, notes: Iterable[Orphan]) -> list[Uid]:
    fresh = [(uid, size) for uid, _, size in this.remote.fresh if uid not in this.retried]
    return likely([note.size_octets for note in notes], fresh)


async def _matched(
    work: Work, where: MailboxPass, notes: Sequence[Orphan], files: Mapping[Key, _File], facts_of: FactsOf
) -> _Matches:
    """New messages in `where` that have the contents of these, where no other message is known that has."""
    matches = _Matches()
    alike: dict[Uid, bytes | None] = dict.fromkeys(_fresh_like(where, notes))
    unasked: dict[Uid, bytes | None] = {}
    if alike and all(note.key in files for note in notes):  # sizes may be wrong; a Message-ID is not
        wanted = {files[note.key].facts.message_id for note in notes}
        told = await facts_of(where, list(alike))
        unasked = dict.fromkeys(alike.keys() - told.keys())  # the mailbox failed, or they have just gone
        alike = {uid: facts.message_id for uid, facts in told.items() if facts.message_id in wanted}
    contents = await contents_of(work, where, set(alike)) if alike else {}
    matches.doubtful = {uid: message_id for uid, message_id in alike.items() if uid not in contents} | unasked
    by_content: dict[Content, list[Uid]] = defaultdict(list)
    for uid in sorted(contents, key=lambda uid: (len(uid), uid)):
        by_content[contents[uid]].append(uid)
    ours = {(None, note.key) for note in notes}
    safe = await unknown_elsewhere(work, ours, by_content.keys() & {note.content for note in notes})
    for note in (note for note in notes if note.content in safe):
        if uids := by_content[note.content]:
            matches.found.append((note, uids.pop(0)))
    return matches
