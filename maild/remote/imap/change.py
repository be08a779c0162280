"""Changing the messages of the open mailbox: flags, moving, expunging. Sets of UIDs, several commands in flight.

What is kept by this file:
- nothing of a Maildir reaches the wire but UIDs and flags that are atoms (RFC 9051 §9);
- a set that the server refuses is tried again message by message, so that a refusal concerns only one;
- a message is expunged only after its copy is confirmed, and no other message goes with it: without UIDPLUS the plain
  EXPUNGE is sent only while exactly ours are marked \\Deleted (RFC 4315 §2.1);
- which messages are gone is what the server tells by their UIDs (VANISHED), or finds afterwards, not what it was asked.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

import structlog

from maild.core.errors import Rejected
from maild.core.model import Epoch, FlagChange, Flags, MailboxName, Permitted, Uid
from maild.remote.imap.answers import Reply
from maild.remote.imap.parse import Numbered, Untagged, Vanished, uid_ranges
from maild.remote.imap.session import ImapSession, quoted
from maild.remote.imap.sets import Answer, Call, found_in, pipelined, search, searching, sets, uids_of

log = structlog.get_logger()
_ATOM = re.compile(r'[^\x00-\x20\x7f-\U0010ffff(){%*"\\\]]+\Z')
_SYSTEM = frozenset({"\\answered", "\\flagged", "\\deleted", "\\seen", "\\draft"})
_MARK = ("+FLAGS.SILENT", "(\\Deleted)")
_UNMARK = ("-FLAGS.SILENT", "(\\Deleted)")
_NOT_THERE = frozenset({"TRYCREATE", "NONEXISTENT", "NOPERM"})  # why nothing at all can be put into a mailbox


def sendable(flags: Iterable[str]) -> list[str]:
    """Those flags that can stand in a command: the system flags but \\Recent, and keywords that are atoms."""
    return sorted(f for f in flags if f.lower() in _SYSTEM or _ATOM.match(f) is not None)


# -- flags


async def store(session: ImapSession, permitted: Permitted, changes: Sequence[FlagChange]) -> set[Uid]:
    """The Uids for which the server said yes to all there was to send."""
    groups: dict[tuple[Flags, Flags], list[Uid]] = {}
    for one in changes:
        groups.setdefault((one.add, one.remove), []).append(one.uid)
    calls: list[Call] = []
    for (add, remove), uids in groups.items():
        for sign, flags in (("+", sendable(permitted.of(add))), ("-", sendable(remove))):
            if flags:
                calls += [Call("STORE", part, (f"{sign}FLAGS.SILENT", f"({' '.join(flags)})")) for part in sets(uids)]
    refused = await _each_or_all(session, calls)
    return {one.uid for one in changes} - uids_of(refused)


async def _each_or_all(session: ImapSession, calls: Iterable[Call]) -> set[int]:
    """Carry the calls out, a refused one again for each of its messages; those that stay refused."""
    again: list[Call] = []
    refused: set[int] = set()
    for call, answer in await pipelined(session, calls):
        if isinstance(answer, Rejected):
            if len(call.numbers) > 1:
                again += _singly(call)
            else:
                refused |= _told(session, call, answer)
    for call, answer in await pipelined(session, again):
        if isinstance(answer, Rejected):
            refused |= _told(session, call, answer)
    return refused


def _singly(call: Call) -> Iterator[Call]:
    for number in call.numbers:
        yield Call(call.name, [number], call.rest, call.before)


def _told(session: ImapSession, call: Call, refusal: Rejected) -> set[int]:
    log.debug("message.skipped", host=session.endpoint.host, uid=call.numbers[0], reason=refusal.text)
    return set(call.numbers)


# -- expunging


async def expunge(session: ImapSession, name: MailboxName, uids: Sequence[Uid]) -> set[Uid]:
    """Those that are gone now."""
    if not session.has("UIDPLUS"):
        return await _expunge_without_uids(session, name, uids)
    left = await _expunge_sets(session, sets(uids))
    if left:
        left = await _expunge_sets(session, [[number] for number in sorted(left)])
    return set(uids) - uids_of(left)


async def _expunge_sets(session: ImapSession, parts: Sequence[list[int]]) -> set[int]:
    """Mark and expunge in one write; those that are left."""
    answers = await pipelined(
        session, (c for part in parts for c in (Call("STORE", part, _MARK), Call("EXPUNGE", part)))
    )
    for call, answer in answers:
        if isinstance(answer, Rejected):
            _told(session, call, answer)
    told = _vanished(answers)
    untold = [part for part in parts if not told.issuperset(part)]
    return await _there(session, untold) - told


async def _expunge_without_uids(session: ImapSession, name: MailboxName, uids: Sequence[Uid]) -> set[Uid]:
    """The plain EXPUNGE, if it takes nothing but these along."""
    if not uids or not await _are_alone(session, name, uids):
        return set()
    await _each_or_all(session, [Call("STORE", part, _MARK) for part in sets(uids)])
    return await _expunge_marked(session, name, uids)


async def _are_alone(session: ImapSession, name: MailboxName, uids: Collection[Uid]) -> bool:
    """Whether no other message is marked as deleted, as far as the server tells."""
    try:
        others = uids_of(await search(session, "DELETED")) - set(uids)
    except Rejected as exc:
        log.debug("message.skipped", mailbox=name, messages=len(uids), reason=exc.text)
        return False
    if others:
        reason = "the server has no UIDPLUS, and an EXPUNGE would remove messages that others marked as deleted"
        log.debug("message.skipped", mailbox=name, messages=len(others), reason=reason)
    return not others


async def _expunge_marked(session: ImapSession, name: MailboxName, uids: Sequence[Uid]) -> set[Uid]:
    """EXPUNGE while only these are marked; otherwise the marks are taken back, and nothing is gone."""
    parts = sets(uids)
    if await _are_alone(session, name, uids):
        try:
            await session.run("EXPUNGE")
        except Rejected as exc:
            log.debug("message.skipped", mailbox=name, messages=len(uids), reason=exc.text)
    else:
        await pipelined(session, [Call("STORE", part, _UNMARK) for part in parts])
    return set(uids) - uids_of(await _there(session, parts))


async def _there(session: ImapSession, parts: Iterable[list[int]]) -> set[int]:
    """Those that the open mailbox still has; all of a set that the server refuses to look for."""
    there: set[int] = set()
    for call, answer in await pipelined(session, [searching(part) for part in parts]):
        there |= found_in(answer.events) & set(call.numbers) if isinstance(answer, Reply) else set(call.numbers)
    return there


# -- moving


async def move(
    session: ImapSession,
    name: MailboxName,
    uids: Sequence[Uid],
    wire: str,
    target: MailboxName,
    epoch: Epoch | None = None,
) -> tuple[dict[Uid, Uid | None], set[Uid]]:
    """Those that are in the target now, and those that are in both mailboxes, for they could not be expunged.

    Raises Rejected where there is nothing in the target because the server refused it.

    `epoch` is the target's UIDVALIDITY: new UIDs that belong to another one are not told.
    """
    left_behind: set[Uid] = set()
    if session.has("MOVE"):
        moved, refusal = await _moved_or_copied(session, "MOVE", sets(uids), wire, epoch)
    elif session.has("UIDPLUS") or await _are_alone(session, name, uids):
        copied, refusal = await _moved_or_copied(session, "COPY", sets(uids), wire, epoch)
        gone = await _expunge_copied(session, name, list(copied))
        moved = {uid: new for uid, new in copied.items() if uid in gone}
        left_behind = copied.keys() - gone
    else:
        return {}, left_behind
    if refusal is not None:
        if not moved and not left_behind:
            raise Rejected(f"nothing could be moved to mailbox {target}: {refusal.text}", code=refusal.code)
        log.debug("message.skipped", mailbox=name, messages=len(uids) - len(moved), reason=refusal.text)
    return moved, left_behind


async def _expunge_copied(session: ImapSession, name: MailboxName, uids: Sequence[Uid]) -> set[Uid]:
    if not uids:
        return set()
    if session.has("UIDPLUS"):
        return await expunge(session, name, uids)
    await _each_or_all(session, [Call("STORE", part, _MARK) for part in sets(uids)])
    return await _expunge_marked(session, name, uids)


async def _moved_or_copied(
    session: ImapSession, verb: str, parts: Sequence[list[int]], wire: str, epoch: Epoch | None
) -> tuple[dict[Uid, Uid | None], Rejected | None]:
    """Old Uid → new Uid of what the server moved or copied, and the first refusal that stands."""
    moved, refusals = await _transferred(session, verb, parts, wire, epoch)
    standing = [refusal for _, refusal in refusals]
    singles = [[number] for numbers, _ in refusals if len(numbers) > 1 for number in numbers]
    if singles and await _takes_messages(session, wire, standing):
        more, again = await _transferred(session, verb, singles, wire, epoch)
        moved |= more
        standing = [refusal for numbers, refusal in refusals if len(numbers) == 1] + [r for _, r in again]
    return moved, standing[0] if standing else None


async def _takes_messages(session: ImapSession, wire: str, refusals: Sequence[Rejected]) -> bool:
    """Whether the target is there at all, so that the refusals may concern single messages."""
    if any(refusal.code in _NOT_THERE for refusal in refusals):
        return False
    try:
        await session.run("STATUS", quoted(wire), "(MESSAGES)")
    except Rejected:
        return False
    return True


async def _transferred(
    session: ImapSession, verb: str, parts: Sequence[list[int]], wire: str, epoch: Epoch | None
) -> tuple[dict[Uid, Uid | None], list[tuple[list[int], Rejected]]]:
    """One try: what went, and the sets that were refused.

    COPYUID tells where the server can (RFC 4315 §3, RFC 6851 §4.3), in whichever answer it comes: Dovecot may answer
    one command among those of another, so nothing that looks is sent beside what changes.
    """
    told_uids = session.has("UIDPLUS")
    before = set[int]() if told_uids or verb == "COPY" else await _there(session, parts)
    answers = await pipelined(session, [Call(verb, part, (quoted(wire),)) for part in parts])
    pairs = {old: new for _, answer in answers if isinstance(answer, Reply) for old, new in _pairs(answer, epoch)}
    refusals = [(call.numbers, answer) for call, answer in answers if isinstance(answer, Rejected)]
    accepted = [call.numbers for call, answer in answers if isinstance(answer, Reply)]
    asked = {number for numbers in accepted for number in numbers}
    if pairs:
        told = Counter(pairs.values())  # two messages under one UID: it is known of neither
        moved = {old: new if told[new] == 1 and new else None for old, new in pairs.items() if old in asked}
        return {Uid(str(old)): None if new is None else Uid(str(new)) for old, new in moved.items()}, refusals
    if verb == "COPY":
        went = await _there(session, accepted)
    elif told_uids:
        went = asked if _expunged(answers) >= len(asked) else set()
    else:
        went = (before & asked) - await _there(session, accepted)
    return {Uid(str(number)): None for number in went}, refusals


def _pairs(reply: Reply, epoch: Epoch | None) -> Iterator[tuple[int, int]]:
    """(old UID, new UID) as COPYUID tells, in the tagged answer or in an untagged one; 0 where that is of no use."""
    untagged = ((event.code, event.argument) for event in reply.events if isinstance(event, Untagged))
    for code, argument in ((reply.tagged.code, reply.tagged.argument), *untagged):
        words = argument.split()
        if code == "COPYUID" and len(words) == 3:
            old, new = _listed(words[1]), _listed(words[2])
            if len(old) == len(new):
                is_known = epoch is None or words[0] == epoch.encode()
                yield from zip(old, new if is_known else [0] * len(new), strict=True)


def _expunged(answers: Iterable[tuple[Call, Answer]]) -> int:
    """How many messages the server said are gone, while it answered."""
    count = 0
    for _, answer in answers:
        for event in answer.events if isinstance(answer, Reply) else ():
            if isinstance(event, Vanished):
                count += sum(high - low + 1 for low, high in event.ranges)
            elif isinstance(event, Numbered) and event.name == "EXPUNGE":
                count += 1
    return count


def _vanished(answers: Sequence[tuple[Call, Answer]]) -> set[int]:
    """Those of the messages asked about that the server said are gone, by UID (RFC 7162 §3.2.10)."""
    asked = sorted({number for call, _ in answers for number in call.numbers})
    gone: set[int] = set()
    for _, answer in answers:
        for event in answer.events if isinstance(answer, Reply) else ():
            if isinstance(event, Vanished) and not event.earlier:
                for low, high in event.ranges:
                    gone.update(asked[bisect_left(asked, low) : bisect_right(asked, high)])
    return gone


def _listed(octets: bytes) -> list[int]:
    """The UIDs of a set, in its order; none where it is absurdly long."""
    ranges = list(uid_ranges(octets))
    if sum(high - low + 1 for low, high in ranges) > 1_000_000:
        return []
    return [number for low, high in ranges for number in range(low, high + 1)]
