"""The messages of one mailbox on their way to this disk, over as many sessions as lend a hand; newest first."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import anyio
import anyio.to_thread
import structlog

from maild.config import Account, Imap
from maild.core.backoff import is_due
from maild.core.errors import LocalError, MaildError
from maild.core.model import Content, Epoch, Fetched, Key, MailboxName, MergeFlags, Pair, Permitted, ScanTable, Uid
from maild.core.names import matches
from maild.core.ports import BodyWriter, Remote, RemoteBox
from maild.engine.adopt import Adopted, Unpaired, Unsure, adopt, fetched_content
from maild.engine.look import Seconds
from maild.engine.propagate import Deliverer, Delivery, StateThread
from maild.engine.report import AccountReport
from maild.local.delivery import Incoming
from maild.local.marker import next_rise
from maild.local.spool import Spool
from maild.local.state import Changes, MailboxState, Orphan, SkippedMessage
from maild.local.withheld import UnsentMessage

FETCH_MESSAGES = 500  # one FETCH asks for at most so many messages …
FETCH_OCTETS = 4 << 20  # … and about so many octets
WORTH_HELP_OCTETS = 8 << 20  # with less left, opening one more session takes longer than it saves


log = structlog.get_logger()


@dataclass(slots=True)
class Doubts:
    """Which messages of a mailbox may be what ends the connection: they were on their way when it was lost.

    The next attempt fetches them last and one by one; the one that ends the connection again is given up.
    """

    suspects: list[Uid] = field(default_factory=list)
    given_up: set[Uid] = field(default_factory=set)


class Doomed(NamedTuple):
    """A message that is gone on both sides from a mailbox, with the pair that it had there."""

    mailbox_id: int
    name: MailboxName
    pair: Pair


@dataclass(slots=True)
class Work:
    """What the mailboxes of one account's pass share.

    `remote_delta`: by mailbox id, by how many messages with a pair the server has more than it had when it was looked
    at. `awaited`: files that a move is to give a pair. `unsure`: see `Unpaired`, by mailbox. `doomed`: contents that
    are gone on both sides from a mailbox, so that the server's having moved one elsewhere does not bring it back;
    `may_be_doomed`: the new messages, by mailbox, that were there when this was found out. `sent`: by mailbox id and
    key, what the server was given in this pass and has no pair yet. `seconds`: by mailbox id, as in `Look`. `epochs`:
    those in which mailboxes were looked at, `newest`: the newest message that was there then. `foreseen`: mailboxes
    that a dry run takes for made or renamed. `is_asked`: somebody named the mailboxes, so that messages which did not
    travel before are tried at once; else when their time has come, as of `now_s`.
    """

    account: Account
    imap: Imap
    remote: Remote
    state: StateThread
    deliverer: Deliverer
    report: AccountReport
    dry_run: bool
    is_asked: bool = False
    now_s: float = field(default_factory=time.time)
    foreseen: dict[MailboxName, MailboxState] = field(default_factory=dict)
    pulls: list[Pull] = field(default_factory=list)
    is_announced: bool = False
    announcing: anyio.Lock = field(default_factory=anyio.Lock)
    listed: frozenset[MailboxName] = frozenset()  # what the server has
    left_out: frozenset[MailboxName] = frozenset()  # of these, what is not subscribed where that counts
    moves_whole: bool = False  # no move that was cut off is in both mailboxes there
    doubts: dict[MailboxName, Doubts] = field(default_factory=dict)
    trash: MailboxName | None = None  # where deleted messages go on the server
    is_trash_filled: bool = False  # in this pass
    failed: set[MailboxName] = field(default_factory=set)  # mailboxes
    epochs: dict[MailboxName, Epoch] = field(default_factory=dict)
    newest: dict[MailboxName, Uid] = field(default_factory=dict)
    remote_delta: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    awaited: defaultdict[MailboxName, set[Key]] = field(default_factory=lambda: defaultdict(set))
    unsure: defaultdict[MailboxName, dict[Key, Unsure]] = field(default_factory=lambda: defaultdict(dict))
    doomed: defaultdict[Content, list[Doomed]] = field(default_factory=lambda: defaultdict(list))
    sent: set[tuple[int, Key]] = field(default_factory=set)
    seconds: dict[int, Seconds] = field(default_factory=dict)
    may_be_doomed: defaultdict[MailboxName, set[Uid]] = field(default_factory=lambda: defaultdict(set))

    def rows(self) -> dict[MailboxName, MailboxState]:
        """What is known of each mailbox; in a dry run as it would be after what it foresees."""
        stored = self.state.state.mailboxes()
        if not self.foreseen:
            return stored
        renamed = {row.id for row in self.foreseen.values()}
        return {name: row for name, row in stored.items() if row.id not in renamed} | self.foreseen

    def wants(self, name: str) -> bool:
        """Whether the config wants the mailbox of this name, one that there is or one to be made."""
        return matches(name, self.imap.mailboxes) and name not in self.left_out

    def is_due(self, message: SkippedMessage | UnsentMessage) -> bool:
        """Whether one that did not travel is to be tried in this pass."""
        free = 1 if isinstance(message, SkippedMessage) else 0  # what does not come once mostly comes at the next pass
        return self.is_asked or message.count <= free or is_due(message.count - free, message.last_s, self.now_s)

    def trash_for(self, mailbox: MailboxName) -> MailboxName | None:
        """Where messages deleted in a mailbox go, None where they are to be expunged."""
        return None if self.imap.remote_delete == "expunge" or mailbox == self.trash else self.trash

    async def announce_change(self) -> None:
        """Let the Maildir's generation rise before the first change of a pass; at its end it rises once more.

        So a copy made before this pass is older than the state, even if the pass never comes to its end.
        """
        async with self.announcing:
            if not self.is_announced:
                rise = await self.state.run(next_rise, self.state.state)
                await anyio.to_thread.run_sync(rise.mark, self.account.maildir)  # the state is free meanwhile
                await self.state.run(rise.note, self.state.state)
                self.is_announced = True

    async def announce_ahead(self) -> None:
        """The same, while the server is still asked; where it fails, whoever changes something is told."""
        with suppress(LocalError):
            await self.announce_change()


class Pull:
    """One mailbox being pulled. Sessions share its batches; what one of them took and lost, the next pass fetches."""

    def __init__(
        self,
        name: MailboxName,
        epoch: Epoch,
        wanted: ScanTable,
        delivery: Delivery,
        unpaired: Unpaired,
        permitted: Permitted | None,
        compared: Collection[Uid] = (),
    ) -> None:
        """`compared` are not to come: they are only to be adopted, if a file holds just that."""
        self.name = name
        self.epoch = epoch
        self._wanted = wanted
        self._suspects: list[Uid] = []
        self._in_flight: dict[Uid, None] = {}
        self._sizes: dict[Uid, int] | None = None  # as the server told them, once anything came empty
        self._one_by_one = False
        self._delivery = delivery
        self._unpaired = unpaired
        self._permitted = permitted
        self._compared = compared
        self.merges: list[MergeFlags] = []  # flags that the server needs of what was adopted
        self.doomed: dict[Uid, Doomed] = {}  # messages that are to be deleted there, and which they were
        self.left_messages = len(wanted)
        self.left_octets = wanted.octets
        self._batches = self._handed_out(wanted)
        self._expected = 0  # who wants to help, with a session already or waiting for one
        self._helpers = 0
        self._helped = anyio.Event()
        self._takes_help = True
        self._failure: MaildError | None = None

    def _handed_out(self, wanted: ScanTable) -> Iterator[list[Uid]]:
        """The batches, for whichever session asks next; after the last one, one more session has nothing to do."""
        suspects = self._suspects
        for batch in (wanted.without(set(suspects)) if suspects else wanted).batches(FETCH_MESSAGES, FETCH_OCTETS):
            self._in_flight.update(dict.fromkeys(batch))
            yield batch
        self._takes_help = False
        self._one_by_one = not self._in_flight
        for uid in suspects:
            self._in_flight[uid] = None
            yield [uid]

    @property
    def is_worth_help(self) -> bool:
        """Whether one more session would make a difference."""
        return self._takes_help and self.left_octets > WORTH_HELP_OCTETS * (1 + self._expected)

    def doubt(self, work: Work) -> None:
        """The connection was lost: remember which messages may be the reason."""
        doubts = work.doubts.setdefault(self.name, Doubts())
        doubts.suspects = list(self._in_flight)
        if self._one_by_one and doubts.suspects:  # servers answer in order: it was the first that has not come
            doubts.given_up.add(doubts.suspects.pop(0))

    async def run(self, work: Work, box: RemoteBox) -> None:
        """Fetch on the first session until no batch is left, and wait for the helpers."""
        doubts = work.doubts.get(self.name, Doubts())
        here = {uid for uid, _, _ in self._wanted} if doubts.suspects else set()
        self._suspects = [uid for uid in doubts.suspects if uid in here]
        work.pulls.append(self)
        try:
            await self._fetch(work, box)
        finally:
            work.pulls.remove(self)
            self._takes_help = False
            with anyio.CancelScope(shield=True):
                while self._helpers:
                    self._helped = anyio.Event()
                    await self._helped.wait()
        if self._failure is not None:
            raise self._failure

    async def help(self, work: Work) -> None:
        """Fetch over one more session, if one is to be had before the first has done it all."""
        self._expected += 1
        try:
            async with work.remote.visit(self.name, self.epoch) as box:
                if self._takes_help:
                    await self._join(work, box)
        except MaildError as exc:  # nothing was taken yet, so nothing is lost: the sessions there are go on
            self._takes_help = False
            log.debug("session.lost", account=work.account.name, mailbox=self.name, reason=exc.text)
        finally:
            self._expected -= 1

    async def _join(self, work: Work, box: RemoteBox) -> None:
        """Fetch beside the first session. What goes wrong is raised by `run`, which answers for the mailbox."""
        self._helpers += 1
        try:
            await self._fetch(work, box)
        except MaildError as exc:
            self._failure = self._failure or exc
        finally:
            self._helpers -= 1
            self._helped.set()

    async def _fetch(self, work: Work, box: RemoteBox) -> None:
        spools: set[Spool] = set()

        def open_body(size_octets: int) -> BodyWriter:
            spool = self._delivery.maildir.spool(size_octets)
            spools.add(spool)
            return spool

        try:
            stream = cast("AsyncGenerator[list[Fetched]]", box.fetch(self._batches, open_body))
            async with aclosing(stream):
                async for several in stream:
                    await self._take(work, several, spools)
        finally:
            for spool in spools:
                spool.discard()

    async def _take(self, work: Work, several: list[Fetched], spools: set[Spool]) -> None:
        incoming: list[Incoming] = []
        for fetched in several:
            self._in_flight.pop(fetched.uid, None)
            raw = cast("bytes | bytearray | Spool", fetched.raw)
            octets = raw.size_octets if isinstance(raw, Spool) else len(raw)
            if not octets and self._size_told(fetched.uid):  # BODY[] NIL: Exchange, of what it cannot read just now
                continue
            self.left_messages -= 1
            self.left_octets -= octets
            work.report.done_octets += octets
            if not await self._is_settled(work, fetched) and fetched.uid not in self._compared:
                incoming.append(Incoming(self._delivery.maildir, fetched.uid, fetched.flags, fetched.date_s, raw))
            elif isinstance(raw, Spool):
                raw.discard()
                spools.discard(raw)
        await work.deliverer.put(self._delivery, incoming)
        spools.difference_update([i.raw for i in incoming if isinstance(i.raw, Spool)])

    def _size_told(self, uid: Uid) -> int:
        if self._sizes is None:
            self._sizes = {other: size for other, _, size in self._wanted}
        return self._sizes.get(uid, 0)

    async def _is_settled(self, work: Work, fetched: Fetched) -> bool:
        """Whether no file is needed: one without a pair holds just this message, or it is to be deleted."""
        unpaired = self._unpaired
        if not unpaired.entries and not work.doomed and not unpaired.has_kept_there:
            return False
        content = await anyio.to_thread.run_sync(fetched_content, fetched)
        if content in unpaired.by_content:
            adopted = await work.state.run(self._adopt_content, work, fetched, content)
            if adopted is not None:
                self._count_adopted(work, adopted)
                return True
        if (kept := unpaired.take_kept_there(content)) is not None:
            await work.state.run(self._keep_there, work, fetched, kept)
            return True
        may_be = fetched.uid in work.may_be_doomed[self.name]
        elsewhere = [doomed for doomed in work.doomed.get(content, ()) if doomed.name != self.name and may_be]
        if elsewhere and self._permitted is not None and self.name != work.trash:
            work.doomed[content].remove(elsewhere[0])
            self.doomed[fetched.uid] = elsewhere[0]
            return True
        return False

    def _keep_there(self, work: Work, fetched: Fetched, kept: Orphan) -> None:
        pair = Pair(fetched.uid, kept.key, fetched.flags, kept.size_octets, kept.digest, "remote")
        work.state.state.apply([Changes(self._delivery.mailbox.id, add=[pair])])
        work.report.done_messages += 1

    def _adopt_content(self, work: Work, fetched: Fetched, content: Content) -> Adopted | None:
        """Adopt a file that holds exactly what has just been fetched, None if there is none. Blocks.

        Looking and taking are one step of the state's thread: several sessions may bring equal messages at once.
        """
        delivery = self._delivery
        key = self._unpaired.with_content(content, fetched.flags, delivery.maildir)
        if key is None:
            return None
        return adopt(
            work.state.state,
            delivery.mailbox,
            delivery.maildir,
            self._unpaired,
            {fetched.uid: key},
            {fetched.uid: fetched.flags},
            self._permitted,
        )

    def _count_adopted(self, work: Work, adopted: Adopted) -> None:
        report = work.report.mailbox(self.name)
        report.adopted += 1
        report.flags += adopted.flags
        self.merges.extend(adopted.merges)
        work.report.done_messages += 1
