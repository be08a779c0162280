"""Messages that the server got, or may have got, from here, and of which nobody told the Uid.

A pass was killed between an APPEND and the pair, or the server has no UIDPLUS. As long as both stay where they are, the
next pass adopts file and message by content. Here is what happens if one of them has moved on meanwhile: without it
the message would be sent a second time from where its file is by then.

- the file has gone on, the message is where it was sent to: a pair whose file is gone, as any other;
- the file is gone altogether: the same if the server is known to have taken the message ("sent"). Else ("sending") the
  equal message may be anybody's, and is fetched: that a file is gone proves nothing about it;
- the message has gone on, the file is where it was: the file follows.

Contents decide, and only where no other message is known to have the same. Comes before `engine.moves`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from maild.core.flags import same_flags
from maild.core.model import NO_FLAGS, Content, Key, Pair, Uid
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
    def message_id(self) -> bytes:
        return self.this.unpaired.identities[self.key].facts.message_id


async def settle_untold(work: Work, passes: Sequence[MailboxPass], facts_of: FactsOf) -> None:
    """Find these messages where their file, or they themselves, are no longer where they were sent to.

    Not to be called while a session is held.
    """
    for p in passes:
        notes = [note for note in p.unpaired.untold() if note.key not in p.unpaired.unreadable] if p.same_epoch else []
        away = [note for note in notes if note.key not in p.unpaired.entries]
        files = {note.key: _File(p, note.key) for note in notes if note.key in p.unpaired.entries}
        if away:
            files |= _files_of(away, passes)
            await _find_messages(work, p, away, files, facts_of)
        left = [note for note in notes if note.key in files and note.key in p.unpaired.orphans]
        if left:
            await _find_moved(work, p, left, files, passes, facts_of)


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
    wanted = [note for note in away if note.key in files or note.only == "sent" or _is_partial(work)]
    found = await _matched(work, p, wanted, files, facts_of, set())
    waiting = {uid for note, uid in found if note.key not in files and note.only == "sending"}
    pairs = {uid: Pair(uid, note.key, note.flags, *note.content) for note, uid in found if uid not in waiting}
    if waiting:  # its file may be where this pass does not look
        p.untold |= {note.key for note, uid in found if uid in waiting}
        p.is_undone = p.is_missed = True
        p.remote.fresh = p.remote.fresh.without(waiting)
        p.report.error = _waiting_text(work, len(waiting))
    if pairs and not work.dry_run:
        await work.state.run(work.state.state.apply, [Changes(p.mailbox.id, add=list(pairs.values()))])
    flags = p.remote_flags(pairs)
    p.remote.fresh = p.remote.fresh.without(pairs) if pairs else p.remote.fresh
    for uid, pair in pairs.items():
        del p.unpaired.orphans[pair.key]
        p.local.gone[uid] = pair
        if not same_flags(flags[uid], pair.flags):
            p.remote.changed[uid] = pair, flags[uid]


def _files_of(notes: Sequence[Orphan], passes: Sequence[MailboxPass]) -> dict[Key, _File]:
    """Files with these contents, by the key of the note: under the same name if there is one."""
    found: dict[Key, _File] = {}
    for note in notes:
        for q in passes:
            for key in q.unpaired.by_content.get(note.content, ()):
                if key in q.unpaired.entries and (key == note.key or note.key not in found):
                    found[note.key] = _File(q, key)
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
    others = [q for q in passes if q is not p and _fresh_like(q, notes)]
    if not others and not _is_partial(work) and not p.unfetched:
        return  # they are adopted, or sent again
    alike = _fresh_like(p, notes)
    ids = {facts.message_id for facts in (await facts_of(p, alike)).values()} if alike else set()
    missing = [note for note in notes if files[note.key].message_id not in ids]
    unproven: set[bytes] = set()  # Message-IDs of what did not come
    for q in others:
        several = [note for note in missing if files[note.key].this is not q]
        found = await _matched(work, q, several, files, facts_of, unproven)
        for note, uid in found:
            await _follow(work, p, note, files[note.key], q, uid)
        missing = [note for note in missing if all(note is not followed for followed, _ in found)]
    for note in missing:
        is_sure = note.only == "sent"  # else it may never have come there, and is sent
        may_be_elsewhere = is_sure and (_is_partial(work) or likely([note.size_octets], p.unfetched))
        if may_be_elsewhere or files[note.key].message_id in unproven:
            files[note.key].this.waiting.add(files[note.key].key)
            p.untold.add(note.key)
            if work.is_asked:
                p.report.error = _waiting_text(work, 1)


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


def _fresh_like(this: MailboxPass, notes: Iterable[Orphan]) -> list[Uid]:
    fresh = [(uid, size) for uid, _, size in this.remote.fresh if uid not in this.retried]
    return likely([note.size_octets for note in notes], fresh)


async def _matched(
    work: Work,
    where: MailboxPass,
    notes: Sequence[Orphan],
    files: Mapping[Key, _File],
    facts_of: FactsOf,
    unproven: set[bytes],
) -> list[tuple[Orphan, Uid]]:
    """New messages in `where` that have the contents of these, where no other message is known that has.

    The Message-IDs of those that might, and did not come, are added to `unproven`.
    """
    alike = _fresh_like(where, notes)
    ids: dict[Uid, bytes] = {}
    if alike and all(note.key in files for note in notes):  # sizes may be wrong; a Message-ID is not
        wanted = {files[note.key].message_id for note in notes}
        told = await facts_of(where, alike)
        ids = {uid: facts.message_id for uid, facts in told.items() if facts.message_id in wanted}
        alike = list(ids)
    contents = await contents_of(work, where, set(alike)) if alike else {}
    unproven.update(message_id for uid, message_id in ids.items() if uid not in contents)
    by_content: dict[Content, list[Uid]] = defaultdict(list)
    for uid in sorted(contents, key=lambda uid: (len(uid), uid)):
        by_content[contents[uid]].append(uid)
    ours = {(None, note.key) for note in notes}
    safe = await unknown_elsewhere(work, ours, by_content.keys() & {note.content for note in notes})
    found: list[tuple[Orphan, Uid]] = []
    for note in (note for note in notes if note.content in safe):
        if uids := by_content[note.content]:
            found.append((note, uids.pop(0)))
    return found
