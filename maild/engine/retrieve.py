"""What is new in a maildrop on its way to this disk: found here already, known by another name, or retrieved.

A message is known before it is retrieved, and adopted where its content is here: that is the one recovery from a crash
between the file and its pair, from a lost state, and from a server whose unique-ids have all become others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

import anyio
import anyio.to_thread
import structlog

from maild.config import Account, Pop3
from maild.core.backoff import LONGEST_RETRY_S
from maild.core.errors import MaildError
from maild.core.identity import header_facts
from maild.core.maildrop import (
    Known,
    News,
    Policy,
    Terms,
    hashed,
    header_digest,
    matched,
    nth,
    uid_of_content,
)
from maild.core.model import NO_FLAGS, Content, Facts, Fetched, Key, Skipped, Uid
from maild.core.ports import BodyWriter
from maild.engine.adopt import Unpaired, adopt, fetched_content, match_facts
from maild.engine.propagate import Deliverer, Delivery, StateThread
from maild.engine.report import AccountReport, MailboxReport
from maild.local.delivery import Delivered, Incoming
from maild.local.elsewhere import changed_since
from maild.local.maildir import Maildir
from maild.local.maildrop import MaildropTable
from maild.local.marker import mark_root
from maild.local.spool import Spool
from maild.local.state import MailboxState
from maild.remote.pop3.remote import Maildrop, Retrieved

PULLING_SINCE = "pop3_pulling_since"  # when a pull began that has not ended: its files may have no pairs yet
NOT_PULLING = "-"
SUSPECTS = "pop3_suspects"  # messages at which a session ended since a pull was complete, one a line
SUSPECTS_KEPT = 100
ENDS_CONNECTION = "the connection ends whenever it is fetched"
TRY_AGAIN_S = LONGEST_RETRY_S  # a message that ends connections costs a poll each time that it is asked for
QUEUE_OCTETS = 2 << 20  # for the disk: there is one session only, and what it does not read the line holds
FACTS_KEPT = 2000
CLOCK_SLACK_S = 2.0  # file times are those of the kernel's tick

log = structlog.get_logger()


@dataclass(slots=True)
class Visit:
    """What the steps of one poll share. `maildir` is missing only in a dry run.

    `listed` are the messages of this session by what they are, `sizes` what LIST told by number; `doubted` are those
    at which the connection was lost, in this poll or before, so that they are asked for last; `given_up` those at which
    it was lost again; `suspect` is the one that is on its way. `terms` are those of the server, once it was logged in
    to. `now` is the clock, `now_s` what it said when the poll began.
    """

    account: Account
    pop3: Pop3
    state: StateThread
    report: AccountReport
    mailbox: MailboxState
    maildir: Maildir | None
    table: MaildropTable
    policy: Policy
    dry_run: bool
    now: Callable[[], float]
    now_s: float
    terms: Terms | None = None
    listed: dict[Uid, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    known: dict[Uid, Known] = field(default_factory=dict)
    doubted: set[Uid] = field(default_factory=set)
    given_up: set[Uid] = field(default_factory=set)
    suspect: Uid | None = None
    is_pulling: bool = False
    is_announced: bool = False

    @property
    def box(self) -> MailboxReport:
        return self.report.mailbox(self.mailbox.name)

    def recall_doubts(self) -> None:
        """Learn at which messages earlier polls lost their connections. Blocks."""
        state = self.state.state
        for uid, one in state.skipped(self.mailbox.id).items():
            if one.reason == ENDS_CONNECTION:
                is_due = not one.last_s <= self.now_s < one.last_s + TRY_AGAIN_S
                (self.doubted if is_due else self.given_up).add(uid)
        self.doubted.update(map(Uid, _lines(state.meta(SUSPECTS))))

    def doubt(self) -> None:
        """The connection was lost: the second time at a message that message is given up. Blocks.

        Remembered at once, for where the server wants a delay between two logins this poll ends here.
        """
        uid, state = self.suspect, self.state.state
        if uid is None:
            return
        if uid in self.doubted:
            self.given_up.add(uid)
            size = self.sizes.get(self.listed.get(uid, 0), 0)
            state.skip(self.mailbox.id, [Skipped(uid, ENDS_CONNECTION, size)], self.now_s)
            log.warning("message.skipped", account=self.account.name, uid=uid, reason=ENDS_CONNECTION)
        self.doubted.add(uid)
        others = [one for one in _lines(state.meta(SUSPECTS)) if one != uid]
        state.set_meta(SUSPECTS, "\n".join([*others, uid][-SUSPECTS_KEPT:]))

    def announce_change(self) -> None:
        """Let the Maildir's generation rise before the first change of a poll. Blocks."""
        if not self.is_announced:
            mark_root(self.account.maildir, self.state.state)
            self.is_announced = True


@dataclass(slots=True)
class _Wanted:
    """A message to be retrieved; `uid` is None where only its content will tell what it is."""

    number: int
    uid: Uid | None
    size_octets: int


class Retrieval:
    """The new messages of one session. `match`, then `pull`."""

    def __init__(self, visit: Visit, drop: Maildrop, news: News, nameless: list[int]) -> None:
        self._visit = visit
        self._drop = drop
        self._box = visit.box
        self._log = log.bind(account=visit.account.name)
        self._fresh = {uid: visit.listed[uid] for uid in news.fresh}
        self._nameless = nameless
        self._lost = {uid: visit.known[uid] for uid in news.lost if visit.known[uid].key is not None}
        self._unpaired: Unpaired | None = None
        self._has_looked = False
        self._left_out: list[Skipped] = []
        self._spools: set[Spool] = set()
        self._facts: list[tuple[Uid, int | None, bytes | None]] = []
        self._times_seen: Counter[Uid] = Counter()
        self._left_messages = 0
        self._left_octets = 0

    # -- what is here already

    async def match(self) -> None:
        """Find out which messages are on this disk, without retrieving them, and note that in the state."""
        visit = self._visit
        if not self._fresh and not self._nameless:
            return
        await visit.state.run(self._find_unpaired)
        self._has_looked = True
        sizes = set(self._unpaired.sizes()) if self._unpaired is not None else set()
        sizes.update(known.size_octets for known in self._lost.values() if known.size_octets is not None)
        likely = {number: uid for uid, number in self._fresh.items() if visit.sizes.get(number) in sizes}
        if not likely or not self._drop.can_top:
            return
        facts: dict[Uid, Facts] = {}
        for number, header in (await self._drop.headers(list(likely))).items():
            facts[likely[number]] = Facts(visit.sizes[number], *header_facts(header))
        await visit.state.run(self._take_up, facts)

    def _find_unpaired(self) -> None:
        """The files that no pair knows, if there can be any that are of this maildrop. Blocks."""
        visit, maildir = self._visit, self._visit.maildir
        since = visit.state.state.meta(PULLING_SINCE)
        orphans = visit.state.state.orphans(visit.mailbox.id)
        if maildir is None or (since == NOT_PULLING and not orphans):
            return
        entries = maildir.entries()
        for key in visit.state.state.keys(visit.mailbox.id):
            entries.pop(key, None)
        if since not in (None, NOT_PULLING) and not orphans:
            entries = changed_since(maildir, entries, float(since or 0) - CLOCK_SLACK_S)
        identities = {key: found for key, e in entries.items() if (found := maildir.identity(e)) is not None}
        if identities:
            self._unpaired = Unpaired({key: entries[key] for key in identities}, identities, orphans)

    def _take_up(self, facts: dict[Uid, Facts]) -> None:
        """Pair by size and header what is here, and what was known by another unique-id. Blocks."""
        visit = self._visit
        by_header = {
            uid: (fact.size_octets, hashed(fact.message_id, fact.date))
            for uid, fact in facts.items()
            if fact.message_id
        }
        renamed = matched(by_header, self._lost.values())
        left = {uid: fact for uid, fact in facts.items() if uid not in renamed}
        here = match_facts(self._unpaired, left) if self._unpaired is not None else {}
        for uid in (*renamed, *here):
            del self._fresh[uid]
        visit.box.adopted += len(renamed) + len(here)
        if visit.dry_run:
            return
        if renamed:
            visit.table.rename(renamed)
            for old in renamed.values():
                del self._lost[old]
        if here:
            visit.announce_change()
            self._adopt(here)
        self._facts += [(uid, size, header) for uid, (size, header) in by_header.items() if uid not in self._fresh]

    def _adopt(self, matched: Mapping[Uid, Key]) -> None:
        """Make pairs; the server has no flags, so those of the files stay. Blocks."""
        visit = self._visit
        if self._unpaired is not None and visit.maildir is not None:
            flags = dict.fromkeys(matched, NO_FLAGS)
            adopt(visit.state.state, visit.mailbox, visit.maildir, self._unpaired, matched, flags, None)

    # -- what is not

    async def pull(self) -> None:
        """Retrieve the rest; returns when all of it is durable and its pairs are committed."""
        visit = self._visit
        self._leave_out()
        wanted = [_Wanted(number, uid, visit.sizes.get(number, 0)) for uid, number in self._fresh.items()]
        wanted += [_Wanted(number, None, visit.sizes.get(number, 0)) for number in self._nameless]
        wanted.sort(key=lambda one: one.uid in visit.doubted)
        self._left_messages, self._left_octets = len(wanted), sum(one.size_octets for one in wanted)
        self._expect(self._left_messages, self._left_octets)
        if visit.dry_run or visit.maildir is None:
            visit.box.pulled = len(wanted)
            return
        if wanted:
            await visit.state.run(self._begin)
            visit.is_pulling = True
            await self._deliver(wanted, visit.maildir)
            visit.is_pulling = False
        await visit.state.run(self._conclude)

    def _expect(self, messages: int, octets: int) -> None:
        """Tell what is to come; less than nothing: what did not, when the connection was lost."""
        box, report = self._visit.box, self._visit.report
        box.wanted += messages
        box.wanted_octets += octets
        report.wanted_messages += messages
        report.wanted_octets += octets

    def _leave_out(self) -> None:
        """Neither what is too big nor what ends the connection is asked for."""
        visit, limit = self._visit, self._visit.policy.max_message_octets
        for uid, number in list(self._fresh.items()):
            size = visit.sizes.get(number, 0)
            if size > limit:
                self._left_out.append(Skipped(uid, f"larger than max_message_size ({size} octets)", size))
            elif uid in visit.given_up:
                self._left_out.append(Skipped(uid, ENDS_CONNECTION, size))
            else:
                continue
            del self._fresh[uid]
        self._nameless = [number for number in self._nameless if visit.sizes.get(number, 0) <= limit]

    def _begin(self) -> None:
        state = self._visit.state.state
        self._visit.announce_change()
        if state.meta(PULLING_SINCE) == NOT_PULLING:
            state.set_meta(PULLING_SINCE, f"{time.time():.3f}")

    async def _deliver(self, wanted: list[_Wanted], maildir: Maildir) -> None:
        visit = self._visit
        deliverer = Deliverer(visit.state, QUEUE_OCTETS)
        delivery = Delivery(visit.mailbox, maildir, self._count_durable)
        failure: MaildError | None = None
        try:
            async with deliverer.running():
                try:
                    await self._fetch(wanted, deliverer, delivery)
                except MaildError as exc:  # what has arrived is delivered all the same
                    failure = exc
                await delivery.drained()
        finally:
            for spool in self._spools:
                spool.discard()
        await self._note_facts()
        if (raised := failure or delivery.failure) is not None:
            self._expect(-self._left_messages, -self._left_octets)
            raise raised

    async def _fetch(self, wanted: list[_Wanted], deliverer: Deliverer, delivery: Delivery) -> None:
        visit = self._visit

        def open_body(size_octets: int) -> BodyWriter:
            spool = delivery.maildir.spool(size_octets)
            self._spools.add(spool)
            return spool

        done = 0
        visit.suspect = wanted[0].uid
        pairs = ((one.number, one.size_octets) for one in wanted)
        async with aclosing(self._drop.fetch(pairs, open_body)) as stream:
            async for several in stream:
                incoming: list[Incoming] = []
                for one, retrieved in zip(wanted[done : done + len(several)], several, strict=True):
                    if (message := await self._incoming(one, retrieved, delivery)) is not None:
                        incoming.append(message)
                await deliverer.put(delivery, incoming)
                self._spools.difference_update([i.raw for i in incoming if isinstance(i.raw, Spool)])
                if len(self._facts) >= FACTS_KEPT:
                    await self._note_facts()
                done += len(several)
                visit.suspect = wanted[done].uid if done < len(wanted) else None

    async def _note_facts(self) -> None:
        facts, self._facts = self._facts, []
        await self._visit.state.run(self._visit.table.note_facts, facts)

    async def _incoming(self, wanted: _Wanted, retrieved: Retrieved, delivery: Delivery) -> Incoming | None:
        """What of an answer is to be delivered: nothing where there is none, or where its content is here."""
        visit = self._visit
        self._left_messages -= 1
        self._left_octets -= wanted.size_octets
        if retrieved.body is None:
            self._left_out.append(Skipped(wanted.uid or Uid(""), retrieved.refusal, wanted.size_octets))
            return None
        visit.report.done_octets += retrieved.size_octets
        raw = cast("bytes | Spool", retrieved.body)
        fetched = Fetched(wanted.uid or Uid(""), NO_FLAGS, None, raw)
        content: Content | None = None
        if wanted.uid is None or self._lost or self._unpaired is not None:
            content = await anyio.to_thread.run_sync(fetched_content, fetched)
        if wanted.uid is None and content is not None:
            fetched.uid = await self._named(wanted.number, content)
        self._facts.append((fetched.uid, wanted.size_octets or None, _header_digest(raw)))
        is_known = wanted.uid is None and self._is_here(fetched.uid)
        if is_known or (content is not None and await visit.state.run(self._is_adopted, fetched, content)):
            visit.report.done_messages += 1
            if isinstance(raw, Spool):
                raw.discard()
                self._spools.discard(raw)
            return None
        return Incoming(delivery.maildir, fetched.uid, NO_FLAGS, None, raw)

    async def _named(self, number: int, content: Content) -> Uid:
        """The identity of a message by its content; it is known from now on."""
        visit = self._visit
        plain = uid_of_content(content[1])
        self._times_seen[plain] += 1
        uid = nth(plain, self._times_seen[plain])
        visit.listed[uid] = number
        if not self._is_here(uid):
            await visit.state.run(visit.table.note_listing, [uid], (), (), (), visit.now_s)
        return uid

    def _is_here(self, uid: Uid) -> bool:
        known = self._visit.known.get(uid)
        return known is not None and known.key is not None

    def _is_adopted(self, fetched: Fetched, content: Content) -> bool:
        """Whether just this content is here, under another unique-id or under none. Blocks."""
        visit = self._visit
        old = next((uid for uid, known in self._lost.items() if known.content == content and uid != fetched.uid), None)
        if old is not None:
            del self._lost[old]
            visit.table.rename({fetched.uid: old})
        else:
            key = None if self._unpaired is None else self._unpaired.with_content(content)
            if key is None:
                return False
            self._adopt({fetched.uid: key})
        visit.box.adopted += 1
        return True

    def _count_durable(self, delivered: Delivered) -> None:
        report = self._visit.report
        self._box.pulled += 1
        report.done_messages += 1
        if report.delivered is not None:
            report.note_delivered(delivered.path)
        self._log.debug("message.pulled", uid=delivered.incoming.uid)

    def _conclude(self) -> None:
        """No file of a pull is without its pair any more; what was left on the server is remembered. Blocks."""
        visit, state = self._visit, self._visit.state.state
        if state.meta(PULLING_SINCE) != NOT_PULLING:
            state.set_meta(PULLING_SINCE, NOT_PULLING)
        if state.meta(SUSPECTS):
            state.set_meta(SUSPECTS, "")
        if (orphans := state.orphans(visit.mailbox.id)) and self._has_looked:
            state.drop_orphans(visit.mailbox.id, list(orphans))
        skipped = state.skipped(visit.mailbox.id)
        left_out = {one.uid: one for one in self._left_out if one.uid}
        if news := [one for uid, one in left_out.items() if uid not in skipped or skipped[uid].reason != one.reason]:
            state.skip(visit.mailbox.id, news)
            for one in news:
                log.warning("message.skipped", account=visit.account.name, uid=one.uid, reason=one.reason)
        if past := skipped.keys() - left_out.keys():
            state.unskip(visit.mailbox.id, past)
        visit.box.skipped = len(self._left_out)


def _lines(text: str | None) -> list[str]:
    return text.split("\n") if text else []


def _header_digest(raw: bytes | Spool) -> bytes | None:
    return header_digest(raw.head if isinstance(raw, Spool) else raw)
