"""Changes to the server's side of one mailbox: flags, moves, deletions, new messages. Effect first, then the state.

What the server refuses, or what is cut off in the middle, leaves the pairs as they were: the next pass looks at both
sides and does what is left. A message that was added and not noted is found there by content and adopted.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import cast

import structlog

from maild.core.errors import Rejected
from maild.core.model import (
    Appended,
    FlagChange,
    Flags,
    Key,
    MailboxName,
    MergeFlags,
    Outgoing,
    Pair,
    Permitted,
    Uid,
)
from maild.core.ports import RemoteBox
from maild.engine.adopt import Unpaired, sent_orphan
from maild.engine.look import flags_here
from maild.engine.pull import Work
from maild.local.maildir import Maildir
from maild.local.state import Changes, MailboxState, Orphan
from maild.local.withheld import Unsent

SOME = 200  # messages per step, after which what was done is noted
FULL_IN_A_ROW = 3  # messages refused for want of room, after which the rest waits

log = structlog.get_logger()


@dataclass(slots=True)
class AppendReport:
    """How many messages the server has now, how many of them have a pair, how many it refused, and if that was all."""

    appended: int = 0
    paired: int = 0
    refused: int = 0
    is_complete: bool = True


async def store_flags(box: RemoteBox, merges: Sequence[MergeFlags]) -> list[MergeFlags]:
    """Change flags on the server; those of `merges` whose part there is done, or that had none."""
    changes = [FlagChange(m.uid, m.add, m.remove) for m in merges if m.add or m.remove]
    done = await box.store(changes) if changes else set()
    return [m for m in merges if m.uid in done or not (m.add or m.remove)]


async def move_there(
    work: Work, box: RemoteBox, mailbox: MailboxState, uids: Sequence[Uid], target: MailboxName
) -> dict[Uid, Uid | None]:
    """Move messages on the server, as `RemoteBox.move`.

    Where it has no MOVE a cut may leave them in both mailboxes. That is noted before, for nothing else tells the copy
    from an equal message of another client's. So is what goes to the trash, as all that is deleted.
    """
    left_behind: set[Uid] = set()
    row = None if work.moves_whole else (await work.state.run(work.rows)).get(target)
    copies = None if row is None else (row.id, work.newest.get(target, Uid("")))
    if copies is None and target != work.trash:
        return await box.move(uids, target, work.epochs.get(target))
    async with _going(work, mailbox, uids, left_behind, copies) as done:
        done.update(await box.move(uids, target, work.epochs.get(target), left_behind=left_behind))
    return done


@asynccontextmanager
async def _going(
    work: Work,
    mailbox: MailboxState,
    uids: Sequence[Uid],
    left_behind: Collection[Uid] = (),
    copies: tuple[int, Uid] | None = None,
) -> AsyncIterator[dict[Uid, Uid | None]]:
    """Note before what goes from here: after a kill it is known from what another client deleted, or moved.

    What the server says it did not do is noted no longer.
    """
    state, done = work.state.state, dict[Uid, Uid | None]()
    await work.state.run(state.note_going, mailbox.id, uids, copies)
    try:
        yield done
    except Rejected:
        await work.state.run(state.drop_going, [(mailbox.id, uid) for uid in uids])
        raise
    if refused := [(mailbox.id, uid) for uid in uids if uid not in done and uid not in left_behind]:
        await work.state.run(state.drop_going, refused)


async def delete_there(
    work: Work, box: RemoteBox, mailbox: MailboxState, uids: Sequence[Uid], trash: MailboxName | None
) -> set[Uid]:
    """Delete messages on the server, into `trash` where there is one, and drop their pairs; those that are gone."""
    gone: set[Uid] = set()
    for start in range(0, len(uids), SOME):
        some = uids[start : start + SOME]
        if trash is not None:
            done = set(await move_there(work, box, mailbox, some, trash))
        else:
            async with _going(work, mailbox, some) as expunged:
                expunged.update(dict.fromkeys(await box.expunge(some)))
            done = set(expunged)
        await work.state.run(work.state.state.apply, [Changes(mailbox.id, drop=sorted(done))])
        gone |= done
    return gone


async def expunge_there(work: Work, box: RemoteBox, mailbox: MailboxState, uids: Sequence[Uid]) -> set[Uid]:
    """The same for good, wherever deleted messages go otherwise."""
    return await delete_there(work, box, mailbox, uids, None)


async def append_files(
    work: Work,
    box: RemoteBox,
    mailbox: MailboxState,
    maildir: Maildir,
    unpaired: Unpaired,
    keys: Sequence[Key],
    permitted: Permitted,
) -> AppendReport:
    """Send these of the files that are unpaired. What the server refuses is held back with the reason."""
    report = AppendReport()
    full_in_a_row = 0
    answers: list[Appended] = []
    for start in range(0, len(keys), SOME):
        if full_in_a_row >= FULL_IN_A_ROW:  # the others would not fit either
            await work.state.run(_hold_back, work, mailbox, unpaired, keys[start:], answers[-1].refusal, report)
            break
        outgoing = await work.state.run(_outgoing, maildir, unpaired, keys[start : start + SOME])
        flags = {one.key: one.flags for one in outgoing}
        await work.state.run(_note_sending, work, mailbox, unpaired, permitted, flags)
        answers = []
        try:
            stream = cast("AsyncGenerator[Appended]", box.append(iter(outgoing)))
            async with aclosing(stream):
                async for answer in stream:
                    answers.append(answer)
                    full_in_a_row = full_in_a_row + 1 if answer.is_full else 0
        finally:
            await work.state.run(_note_answers, work, mailbox, unpaired, permitted, flags, answers, report)
    return report


def _hold_back(
    work: Work,
    mailbox: MailboxState,
    unpaired: Unpaired,
    keys: Sequence[Key],
    reason: str,
    report: AppendReport,
) -> None:
    """What was not even tried."""
    held = [Unsent(key, reason, unpaired.identities[key].facts.size_octets) for key in keys]
    work.state.state.hold_back(mailbox.id, held)
    report.refused += len(held)


def _outgoing(maildir: Maildir, unpaired: Unpaired, keys: Sequence[Key]) -> list[Outgoing]:
    outgoing: list[Outgoing] = []
    for key in keys:
        entry = unpaired.entries[key]
        orphan = unpaired.orphans.get(key)
        base: Flags = frozenset() if orphan is None else orphan.flags
        message = maildir.outgoing(entry, flags_here(maildir, entry, base))
        if message is not None:  # one that is gone has been renamed or removed: the next look sees it
            outgoing.append(message)
    return outgoing


def _note_sending(
    work: Work, mailbox: MailboxState, unpaired: Unpaired, permitted: Permitted, flags: Mapping[Key, Flags]
) -> None:
    """A kill after this leaves a message on the server, or none: which, the next pass finds out by content."""
    sent = [sent_orphan(key, permitted.of(mine), unpaired.content_of(key), "sending") for key, mine in flags.items()]
    if sent:
        work.state.state.apply([Changes(mailbox.id, sent=sent)])
        work.sent.update((mailbox.id, orphan.key) for orphan in sent)


def _note_answers(
    work: Work,
    mailbox: MailboxState,
    unpaired: Unpaired,
    permitted: Permitted,
    flags: dict[Key, Flags],
    answers: Sequence[Appended],
    report: AppendReport,
) -> None:
    state = work.state.state
    pairs: list[Pair] = []
    held: list[Unsent] = []
    sent: list[Orphan] = []
    for answer in answers:
        identity = unpaired.identities[answer.key]
        if answer.refusal:
            held.append(Unsent(answer.key, answer.refusal, identity.facts.size_octets))
            log.warning(
                "message.refused",
                account=work.account.name,
                mailbox=mailbox.name,
                octets=identity.facts.size_octets,
                reason=answer.refusal,
            )
        elif answer.uid is None:
            report.is_complete = False  # it is there and nobody said under which Uid: adopted next time
            sent.append(sent_orphan(answer.key, permitted.of(flags[answer.key]), unpaired.content_of(answer.key)))
            report.appended += 1
        else:
            base = permitted.of(flags[answer.key])
            entry, _, _ = unpaired.take(answer.key)
            info = entry.info if base == flags[answer.key] else None
            pairs.append(Pair(answer.uid, answer.key, base, identity.size_octets, identity.digest, info=info))
    report.appended += len(pairs)
    report.paired += len(pairs)
    report.refused += len(held)
    if pairs or sent:
        state.apply([Changes(mailbox.id, add=pairs, sent=sent)])
        state.unsent_done(mailbox.id, [pair.key for pair in pairs])
    if held:
        state.hold_back(mailbox.id, held)
        work.sent.difference_update((mailbox.id, one.key) for one in held)
    work.sent.difference_update((mailbox.id, pair.key) for pair in pairs)
