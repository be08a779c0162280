"""One open mailbox: what is in it and what has changed, and its messages. What changes it is in change.py, append.py.

A cursor is JSON: `v` UIDVALIDITY, `n` UIDNEXT, `m` HIGHESTMODSEQ (0 where the server has none), `e` the message count;
`g` is 1 where the server did not tell UIDNEXT, so that `n` is only above the UIDs that it listed.
How a mailbox is scanned: QRESYNC where it works, else CONDSTORE, with the UIDs listed only if the counts say that
something was expunged, else everything (RFC 7162). All three give the same result.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from itertools import chain
from typing import cast

import structlog

from maild.core.errors import Rejected
from maild.core.likeness import Likeness
from maild.core.model import (
    NO_FLAGS,
    Appended,
    Body,
    Cursor,
    Epoch,
    Facts,
    Fetched,
    FlagChange,
    MailboxName,
    Outgoing,
    Permitted,
    Scan,
    ScanTable,
    Uid,
)
from maild.core.ports import OpenBody
from maild.remote.imap import append, change, lookup
from maild.remote.imap.answers import Opened
from maild.remote.imap.dates import internal_date
from maild.remote.imap.facts import facts_of
from maild.remote.imap.listing import mark_of
from maild.remote.imap.opening import AHEAD_OCTETS, Fetches, Findings, Opening
from maild.remote.imap.parse import FetchData, uid_set
from maild.remote.imap.session import ImapSession
from maild.remote.imap.sets import cut, numbers_of, search, sets, uids_of
from maild.remote.imap.stream import messages

FACTS_MESSAGES = 1000  # headers asked for by one UID FETCH
VANISHED_MOST = 200_000  # beyond it, comparing everything is cheaper than believing the ranges
MOST_UID = 1 << 64
BODY_ITEMS = "(UID FLAGS INTERNALDATE BODY.PEEK[])"

log = structlog.get_logger()
WireName = Callable[[MailboxName], str]  # raises Rejected for a mailbox that is not there


class Box:
    """One mailbox on one session; `read_only` opens it by EXAMINE.

    With `has_mail` small messages that are new to a scan come along with it, to be there when they are fetched.
    """

    def __init__(
        self,
        session: ImapSession,
        wire: str,
        name: MailboxName,
        wire_name: WireName,
        *,
        read_only: bool = False,
        has_mail: bool = False,
    ) -> None:
        self._session = session
        self._wire = wire
        self._name = name
        self._wire_name = wire_name
        self._read_only = read_only
        self._has_mail = has_mail
        self._begun: tuple[Cursor, Opening] | None = None
        self._ahead: dict[int, FetchData] = {}  # whole messages that came with the scan …
        self._ahead_epoch: Epoch | None = None  # … which was of this epoch

    @property
    def session(self) -> ImapSession:
        return self._session

    def is_of(self, wire: str, *, read_only: bool) -> bool:
        return (self._wire, self._read_only) == (wire, read_only)

    def take_ahead(self, before: Box | None, epoch: Epoch | None) -> None:
        """What came along with the scan of the visit before this one, if that was of this mailbox in this epoch."""
        if before is not None and before is not self and before.is_of(self._wire, read_only=self._read_only):
            came, before._ahead = before._ahead, {}
            self._ahead = came if before._ahead_epoch == epoch else {}

    def begin(self, cursor: Cursor) -> bool:
        """Ask now for what a scan from this cursor takes, if it can; what comes then waits for it first."""
        known = read_cursor(cursor)
        if known is None or not self._can_tell_changes(known):
            return False
        self._begun = cursor, self._opening_since(known)
        return True

    async def settle(self) -> None:
        """Wait for what was begun, if nobody else has; the session is free for others then."""
        if self._begun is None:
            return
        (_, opening), self._begun = self._begun, None
        try:
            await opening.finish()
        except Rejected as exc:
            log.debug("server.corrected", host=self._session.protocol.server, reason=exc.text)

    async def scan(self, cursor: Cursor | None) -> Scan:
        """By QRESYNC, by CONDSTORE or all of it. Whatever is told is cut to how things were when it was opened."""
        session = self._session
        known = read_cursor(cursor)
        self._ahead = {}
        opening: Opening | None = None
        if self._begun is not None and self._begun[0] == cursor:
            (_, opening), self._begun = self._begun, None
        await self.settle()
        if known is None or not self._can_tell_changes(known):
            return await self._scan_all()
        use_qresync = "QRESYNC" in session.enabled
        try:
            opening = await (opening or self._opening_since(known)).finish()
        except Rejected:
            session.enabled = frozenset()  # it advertises what it then refuses
            return await self._scan_all()
        found = opening.found
        if found.uidvalidity != known["v"] or not known["m"] <= found.modseq or found.uidnext < known["n"]:
            return await self._scan_all()
        return await self._scan_changes(opening, known, use_qresync)

    def _can_tell_changes(self, known: dict[str, int]) -> bool:
        return known["m"] > 0 and ("QRESYNC" in self._session.enabled or self._session.has("CONDSTORE"))

    def _opening_since(self, known: dict[str, int]) -> Opening:
        """Opens the mailbox and asks for flags changed since then, and for new messages with their sizes."""
        use_qresync, old = "QRESYNC" in self._session.enabled, known["n"]
        fetches: list[tuple[str, ...]] = [(f"{old}:*", "(UID FLAGS RFC822.SIZE)")]
        if not use_qresync and old > 1:
            fetches.append((f"1:{old - 1}", "(UID FLAGS)", f"(CHANGEDSINCE {known['m']})"))
        parameter = f" (QRESYNC ({known['v']} {known['m']}))" if use_qresync else " (CONDSTORE)"
        return self._opening(parameter, fetches, ahead_from=old if self._has_mail else 0)

    def _opening(self, parameter: str = "", fetches: Fetches = (), ahead_from: int = 0) -> Opening:
        return Opening(
            self._session,
            self._wire,
            self._name,
            read_only=self._read_only,
            parameter=parameter,
            fetches=fetches,
            ahead_from=ahead_from,
        )

    async def reopen(self, epoch: Epoch) -> None:
        """Open it unless it is open already; raises Rejected if the UIDs mean something else than in that epoch."""
        if (await self._opened()).epoch != epoch:
            raise Rejected(f"mailbox {self._name} changed its UIDVALIDITY", "the next pass makes its pairs anew")

    async def _opened(self) -> Opened:
        await self.settle()
        opened = self._session.opened
        if opened is None or (opened.wire, opened.read_only) != (self._wire, self._read_only):
            await self._opening().finish()
            opened = self._session.opened
        if opened is None:
            raise Rejected(f"mailbox {self._name} was closed by the server as soon as it was open")
        return opened

    async def _scan_all(self) -> Scan:
        opening = await self._opening(fetches=[("1:*", "(UID FLAGS RFC822.SIZE)")]).finish()
        found, told = opening.found, opening.told
        table = told.table.distinct().between(0, found.uidnext or MOST_UID)
        exists = found.exists if found.uidnext else told.exists or found.exists
        complete = not (found.truncated or told.truncated or told.expunges) and len(table) == exists
        return self._scan(found, table, full=True, complete=complete, vanished=frozenset())

    async def _scan_changes(self, opening: Opening, known: dict[str, int], has_vanished: bool) -> Scan:
        """Flags changed since the cursor, new messages with their sizes, and what was expunged."""
        found, told, old = opening.found, opening.told, known["n"]
        complete = not (found.truncated or told.truncated)
        new = told.table.distinct().between(old, found.uidnext)
        table = found.table if has_vanished else told.table.sizeless()  # `n:*` tells of the last message in any case
        table = table.distinct().between(0, old)
        for uid, flags, size in new:
            table.add(uid, flags, size)
        gone: list[tuple[int, int]] | None = _clipped(found.vanished, old - 1)
        if not has_vanished and found.exists - len(new) != known["e"]:  # something was expunged
            gone = await self._gone(old, expected=found.exists - len(new))
        if gone is None or sum(high - low + 1 for low, high in gone) > VANISHED_MOST:
            return await self._scan_all()
        vanished = frozenset(Uid(str(n)) for low, high in gone for n in range(low, high + 1))
        self._ahead = {data.uid: data for data in told.bodies if data.uid is not None and _is_whole(data)}
        self._ahead_epoch = Epoch(str(found.uidvalidity))
        return self._scan(found, table, full=False, complete=complete, vanished=vanished)

    async def _gone(self, uidnext: int, expected: int) -> list[tuple[int, int]] | None:
        """Ranges of UIDs below `uidnext` that no message has: CONDSTORE alone does not tell what was expunged.

        None where the server refuses to list the UIDs, or lists another number of them than it counted.
        """
        try:
            there = await search(self._session, "ALL")
        except Rejected:
            return None
        gone: list[tuple[int, int]] = []
        last = count = 0
        for number in sorted(there):
            if number >= uidnext:
                break
            if number > last + 1:
                gone.append((last + 1, number - 1))
            last, count = number, count + 1
        if last + 1 < uidnext:
            gone.append((last + 1, uidnext - 1))
        return gone if count == expected else None

    def _scan(self, found: Findings, table: ScanTable, *, full: bool, complete: bool, vanished: frozenset[Uid]) -> Scan:
        uidnext = max(found.uidnext, table.highest + 1)
        values = {"v": found.uidvalidity, "n": uidnext, "m": found.modseq, "e": found.exists}
        if not found.uidnext:
            values["g"] = 1
        opened = self._session.opened
        return Scan(
            epoch=Epoch(str(found.uidvalidity)),
            items=table,
            full=full,
            complete=complete,
            vanished=vanished,
            cursor=Cursor(json.dumps(values, separators=(",", ":"))),
            mark=mark_of(found.uidvalidity, uidnext, found.modseq, found.exists),
            messages=found.exists,
            permitted=opened.permitted if opened is not None else None,
        )

    async def facts(self, uids: Sequence[Uid]) -> dict[Uid, Facts]:
        numbers = numbers_of(uids)
        chunks = (numbers[start : start + FACTS_MESSAGES] for start in range(0, len(numbers), FACTS_MESSAGES))
        asked = frozenset(numbers)
        return await facts_of(
            self._session, [uid_set(part) for chunk in chunks for part in cut(chunk)], asked.__contains__
        )

    async def has(self, uids: Collection[Uid]) -> set[Uid]:
        opened = await self._opened()
        await self._opening().finish()  # anew: what was expunged since it was opened may still be shown
        await self.reopen(opened.epoch)
        there: set[Uid] = set()
        for part in sets(uids):
            there |= uids_of(await search(self._session, f"UID {uid_set(part)}"))
        return there.intersection(uids)

    async def holds(self, wanted: Likeness) -> bool:
        await self.settle()
        await self._opening().finish()  # anew: what came since it was opened may not be shown
        return await lookup.holds(self._session, wanted)

    async def fetch(self, batches: Iterator[Sequence[Uid]], open_body: OpenBody) -> AsyncIterator[list[Fetched]]:
        """A set that the server refuses is asked for again message by message: a bad one costs only itself."""
        expected: set[int] = set()
        refused: list[int] = []
        first = numbers_of(next(batches, ())) if self._ahead else []
        if came := [self._ahead.pop(uid) for uid in first if uid in self._ahead]:
            yield [_fetched(data.uid, data) for data in came if data.uid is not None]
            first = [uid for uid in first if all(uid != data.uid for data in came)]
        sets = (part for batch in chain((first,), map(numbers_of, batches)) for part in cut(batch))
        async with aclosing(self._stream(sets, open_body, expected, refused)) as stream:
            async for several in stream:
                yield several
        singles = iter([[uid] for uid in refused if uid in expected])
        async with aclosing(self._stream(singles, open_body, expected, [])) as stream:
            async for several in stream:
                yield several

    async def _stream(
        self, sets: Iterator[list[int]], open_body: OpenBody, expected: set[int], refused: list[int]
    ) -> AsyncGenerator[list[Fetched]]:
        """Only what was asked for, and once: a body that nobody asked for is nobody's message."""

        def noted() -> Iterator[list[int]]:
            for numbers in sets:
                expected.update(numbers)
                yield numbers

        async with aclosing(messages(self._session, noted(), BODY_ITEMS, open_body, refused)) as stream:
            async for several in stream:
                wanted: list[Fetched] = []
                for data in several:
                    if data.uid is not None and data.uid in expected:
                        expected.discard(data.uid)
                        wanted.append(_fetched(data.uid, data))
                if wanted:
                    yield wanted

    # -- what changes it

    async def store(self, changes: Sequence[FlagChange]) -> set[Uid]:
        """What the mailbox does not keep is not set, and counts as done."""
        return await change.store(self._session, await self._permitted(), changes)

    async def append(self, messages: Iterator[Outgoing]) -> AsyncIterator[Appended]:
        permitted = await self._permitted()
        async with aclosing(append.append(self._session, await self._opened(), permitted, messages)) as answers:
            async for answer in answers:
                yield answer

    async def move(
        self,
        uids: Sequence[Uid],
        target: MailboxName,
        epoch: Epoch | None = None,
        *,
        left_behind: set[Uid] | None = None,
    ) -> dict[Uid, Uid | None]:
        await self._permitted()
        moved, copied = await change.move(self._session, self._name, uids, self._wire_name(target), target, epoch)
        if left_behind is not None:
            left_behind |= copied
        return moved

    async def expunge(self, uids: Sequence[Uid]) -> set[Uid]:
        await self._permitted()
        return await change.expunge(self._session, self._name, uids)

    async def _permitted(self) -> Permitted:
        permitted = (await self._opened()).permitted
        if permitted is None:
            raise Rejected(f"mailbox {self._name} is open for reading only")
        return permitted


def _is_whole(data: FetchData) -> bool:
    """Whether a message that came along was not cut, by all that the server says of it."""
    body = data.sections.get(b"")
    return isinstance(body, bytes | bytearray) and 0 < len(body) < AHEAD_OCTETS and len(body) == data.size


def _fetched(uid: int, data: FetchData) -> Fetched:
    body = data.sections[b""]
    raw = body if isinstance(body, bytes | bytearray) else cast("Body", body)  # a sink is what open_body gave
    return Fetched(Uid(str(uid)), data.flags or NO_FLAGS, internal_date(data.date), raw)


def read_cursor(cursor: Cursor | None) -> dict[str, int] | None:
    """What a cursor says, 0 for what it leaves out; None where it says nothing."""
    if not cursor:
        return None
    values = json.loads(cursor)
    return {key: int(values.get(key, 0)) for key in "vnmeg"}


def _clipped(ranges: list[tuple[int, int]], top: int) -> list[tuple[int, int]]:
    """VANISHED ranges up to the highest UID ever known; servers may name UIDs to 2^32-1."""
    return [(low, min(high, top)) for low, high in ranges if low <= top]
