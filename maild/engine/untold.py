"""Messages that the server got, or may have got, from here, and of which nobody told the Uid.

A pass was killed between an APPEND and the pair, or the server has no UIDPLUS. As long as both stay where they are, the
next pass adopts file and message by content. Here is what happens if one of them has moved on meanwhile: without it
the message would be sent a second time from where its file is by then.

Comes before `engine.moves`, which then finds pairs whose file or message is gone, as any others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maild.core.flags import same_flags
from maild.core.model import NO_FLAGS, Facts, Key, Pair, Uid
from maild.engine.adopt import kept_uid
from maild.engine.apply import Relocation
from maild.engine.proof import FactsOf, contents_of, likely, sole
from maild.engine.pull import Work
from maild.engine.sync import MailboxPass
from maild.local.state import Changes, Orphan


@dataclass(frozen=True, slots=True)
class _File:
    """Where the file of an untold message is now."""

    this: MailboxPass
    key: Key


async def settle_untold(work: Work, passes: Sequence[MailboxPass], facts_of: FactsOf) -> None:
    """Find these messages where their file, or they themselves, are no longer where they were sent to."""
    for p in passes:
        sent = [orphan for orphan in p.unpaired.orphans.values() if orphan.only == "sent"] if p.same_epoch else []
        for orphan in (orphan for orphan in sent if orphan.key not in p.unpaired.unreadable):
            file = _file_of(orphan, p, passes)
            if file is None or file.this is not p:
                if (uid := await _message(work, p, p, orphan, file, facts_of)) is not None:
                    await _pair(work, p, orphan, uid)
                    continue
            elif _fresh_like(p, orphan):
                continue  # adopted by what it is
            for q in (q for q in passes if q is not p and file is not None):
                if file is not None and (uid := await _message(work, p, q, orphan, file, facts_of)) is not None:
                    _follow(p, orphan, file, q, uid)
                    break


def _file_of(orphan: Orphan, this: MailboxPass, passes: Sequence[MailboxPass]) -> _File | None:
    """Its file: where it was, under its name elsewhere, or one of its content."""
    if orphan.key in this.unpaired.entries:
        return _File(this, orphan.key)
    alike = [_File(q, key) for q in passes for key in q.unpaired.by_content.get(orphan.content, ())]
    alike = [file for file in alike if file.key in file.this.unpaired.entries]
    return next((file for file in alike if file.key == orphan.key), alike[0] if alike else None)


def _fresh_like(this: MailboxPass, orphan: Orphan) -> list[Uid]:
    return likely([orphan.size_octets], [(uid, size) for uid, _, size in this.remote.fresh if uid not in this.retried])


async def _message(
    work: Work, sent_to: MailboxPass, where: MailboxPass, orphan: Orphan, file: _File | None, facts_of: FactsOf
) -> Uid | None:
    """The new message in `where` that has the content; None too where it may be another's that moved there."""
    found = _fresh_like(where, orphan)
    if found and file is not None:
        found = _with_facts(await facts_of(where, found), file.this.unpaired.identities[file.key].facts)
    contents = await contents_of(work, where, set(found)) if found else {}
    uid = next((uid for uid in found if contents.get(uid) == orphan.content), None)
    if uid is None or not await sole(work, {(None, orphan.key)}, {orphan.content}):
        return None
    return uid


def _with_facts(found: Mapping[Uid, Facts], wanted: Facts) -> list[Uid]:
    """Sizes may be wrong; where there is a Message-ID, it is not."""
    return [uid for uid, facts in found.items() if facts.message_id == wanted.message_id]


async def _pair(work: Work, this: MailboxPass, orphan: Orphan, uid: Uid) -> None:
    """The message is where it was sent to, and its file has gone from there: a pair whose file is gone."""
    there = this.remote_flags({uid})[uid]
    pair = Pair(uid, orphan.key, orphan.flags, *orphan.content)
    if not work.dry_run:
        await work.state.run(work.state.state.apply, [Changes(this.mailbox.id, add=[pair])])
    del this.unpaired.orphans[orphan.key]
    this.remote.fresh = this.remote.fresh.without({uid})
    this.local.gone[uid] = pair
    if not same_flags(there, pair.flags):
        this.remote.changed[uid] = pair, there


def _follow(this: MailboxPass, orphan: Orphan, file: _File, target: MailboxPass, uid: Uid) -> None:
    """The message has gone on to `target`: its file follows."""
    there = target.remote_flags({uid}).get(uid, NO_FLAGS)
    target.remote.fresh = target.remote.fresh.without({uid})
    file.this.unpaired.take(file.key)
    file.this.awaited.add(file.key)
    pair = Pair(kept_uid(orphan.key), orphan.key, orphan.flags, *orphan.content)
    move = Relocation(this.mailbox, pair, file.this.mailbox, file.key, target.mailbox, uid, there)
    target.relocations.append(move)
