"""Push: the server tells of changes by NOTIFY (RFC 5465) or IDLE (RFC 2177), over sessions kept for nothing else.

What this file keeps:
- what changes after a watch is established is told, or the watch ends with an error: it never dies silently;
- every session gives a sign of life: it leaves IDLE and enters it again before a router forgets it, and a DONE that is
  not answered within seconds ends the session. How long is learnt from sessions that had died meanwhile;
- counters are compared whenever IDLE begins anew, so nothing falls between DONE and IDLE;
- hints that nobody waits for are merged: a server cannot make them pile up.

NOTIFY is asked for without STATUS, which would count every mailbox at each connect: the pass that follows asks anyway.
The session idles too, for its sign of life and because RFC 5465 does not forbid a server to wait for it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import anyio
import structlog

from maild.core.errors import ConnectionLost, MaildError, Rejected, Unavailable
from maild.core.model import MailboxName, Push
from maild.remote.imap.listing import status_items, wire_name
from maild.remote.imap.opening import Opening, finish_anyhow, leave_mailbox
from maild.remote.imap.parse import Data, Event, FetchData, Numbered, Token, Untagged, Vanished
from maild.remote.imap.session import Command, ImapSession, ignore, quoted

RENEW_S = 540.0  # many routers forget a connection after 10 minutes
SHORTEST_RENEW_S = 180.0
DONE_LIMIT_S = 15.0
GO_AHEAD_S = 15.0
LEAST_IDLE_S = 10.0  # a server that ends IDLE by itself sooner does not mean it
STRIKES = 2  # how often an extension may end in nothing before it counts as not offered
LINE_OCTETS = 8000  # of a command (RFC 7162 §4)

_MESSAGES = "MessageNew MessageExpunge FlagChange"  # RFC 5465 §5.2: the last one only with the others

log = structlog.get_logger()
Hint = frozenset[MailboxName] | None
Method = Literal["notify", "idle", "poll"]


class Lender(Protocol):
    """Who has the sessions."""

    async def hold(self) -> ImapSession | None:
        """One for push alone; None where that would leave none for work."""

    async def release(self, session: ImapSession) -> None:
        """It is not needed any more, and closed."""


@dataclass(slots=True)
class Experience:
    """What a server has taught about push, for as long as its account runs."""

    interval_s: float = RENEW_S
    refused: set[str] = field(default_factory=set)  # what it offers, and does not do
    strikes: dict[str, int] = field(default_factory=dict)

    def died_silently(self) -> None:
        """A session was found dead: the next ones are asked for a sign of life sooner."""
        self.interval_s = max(SHORTEST_RENEW_S, self.interval_s / 2)

    def strike(self, extension: str) -> None:
        """It came to nothing; once may be the network."""
        self.strikes[extension] = self.strikes.get(extension, 0) + 1
        if self.strikes[extension] >= STRIKES:
            self.refused.add(extension)

    def offers(self, session: ImapSession, extension: str) -> bool:
        return session.has(extension) and extension not in self.refused


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be told of: in the words of the server.

    `whom` says which mailboxes a notice about one concerns, by the name on the wire; None where it is not known.
    `idle` are those for IDLE, `foreign` those that NOTIFY does not count as personal, both by their wire names.
    """

    mailboxes: frozenset[MailboxName]
    idle: tuple[tuple[str, MailboxName], ...]
    foreign: tuple[str, ...]
    whom: Callable[[str], Hint]


class News:
    """The watch as its owner has it (`core.ports.Watch`)."""

    def __init__(self) -> None:
        self.method: Method = "poll"
        self.mailboxes: frozenset[MailboxName] = frozenset()
        self.again_s: float | None = None  # when nothing is told: after this it may be worth another try
        self._listeners: list[_Listener] = []
        self._changed: set[MailboxName] = set()
        self._is_everything = False
        self._failure: BaseException | None = None
        self._stirred = asyncio.Event()

    async def hint(self) -> Hint:
        with anyio.move_on_after(self.again_s if self.again_s is not None else float("inf")):
            await self._stirred.wait()
        if self._failure is not None:
            raise self._failure
        if not self._stirred.is_set():
            raise Unavailable("the server allowed too few connections for push", "it is tried again")
        told = None if self._is_everything else frozenset(self._changed)
        self._changed, self._is_everything = set(), False
        self._stirred.clear()
        return told

    def probe(self) -> None:
        for listener in self._listeners:
            listener.probe()

    def note(self, hint: Hint) -> None:
        """Something was told."""
        if hint is None:
            self._is_everything = True
        else:
            self._changed |= hint
        if self._is_everything or self._changed:
            self._stirred.set()

    def fail(self, error: BaseException) -> None:
        """The watch is over."""
        self._failure = self._failure or error
        self._stirred.set()

    def listen(self, method: Method, mailboxes: frozenset[MailboxName], listener: _Listener) -> None:
        """One more session tells."""
        self.method = method
        self.mailboxes |= mailboxes
        self._listeners.append(listener)


class _OneMailbox:
    """What IDLE tells: of the mailbox that is open, read-only so that nothing there stops being recent."""

    def __init__(self, session: ImapSession, wire: str, name: MailboxName, news: News) -> None:
        self._session = session
        self._wire = wire
        self._name = name
        self._news = news
        self._counters: Token = None

    async def begin(self) -> None:
        """Open it. Raises Rejected."""
        await Opening(self._session, self._wire, self._name, read_only=True).finish()

    async def renew(self) -> None:
        """It stays open."""

    def sound(self) -> Command:
        """Ask for the counters, in one write with the IDLE that follows."""
        return self._session.launch("STATUS", quoted(self._wire), f"({status_items(self._session)})", collect=self.take)

    def take(self, event: Event) -> None:
        match event:
            case Numbered(name="EXISTS" | "EXPUNGE") | Vanished() | FetchData():
                self._news.note(frozenset({self._name}))
            case Data(name="STATUS", tokens=[bytes() as name, counters, *_]) if wire_name(name) == self._wire:
                if self._counters not in (None, counters):
                    self._news.note(frozenset({self._name}))
                self._counters = counters
            case _:
                pass


class _AllMailboxes:
    """What NOTIFY tells: STATUS of the mailbox that changed, LIST where one came, went or was renamed (RFC 5465 §5)."""

    def __init__(self, session: ImapSession, wanted: Wanted, news: News) -> None:
        self._session = session
        self._wanted = wanted
        self._news = news
        self._has_overflown = False
        self.on_overflow: Callable[[], None] = lambda: None

    async def begin(self) -> None:
        """Ask for it. Raises Rejected, such as with BADEVENT."""
        await leave_mailbox(self._session)  # of an open mailbox STATUS would not tell
        await self._session.finish(self._session.launch("NOTIFY", self._request(), collect=self.take))

    async def renew(self) -> None:
        """Ask again if the server stopped telling (RFC 5465 §5.8): whatever happened meanwhile, nobody knows."""
        if self._has_overflown:
            self._has_overflown = False
            await self._session.finish(self._session.launch("NOTIFY", self._request(), collect=self.take))
            self._news.note(None)

    def sound(self) -> Command:
        """A sign of life in one write with the IDLE that follows; the server keeps telling all the time."""
        return self._session.launch("NOOP", collect=self.take)

    def _request(self) -> str:
        groups = f"(personal ({_MESSAGES} MailboxName))"
        foreign: list[str] = []
        room = LINE_OCTETS - len(groups)
        for wire in map(quoted, self._wanted.foreign):
            room -= len(wire.encode("utf-8", "surrogateescape")) + 1
            if room > 0:
                foreign.append(wire)
        if foreign:
            groups += f" (mailboxes ({' '.join(foreign)}) ({_MESSAGES}))"
        return f"SET {groups}"

    def take(self, event: Event) -> None:
        match event:
            case Data(name="STATUS", tokens=[bytes() as name, *_]):
                self._news.note(self._wanted.whom(wire_name(name)))
            case Untagged(code="NOTIFICATIONOVERFLOW"):
                self._has_overflown = True
                self.on_overflow()
            case Data(name="LIST" | "LSUB") | Numbered(name="EXISTS" | "EXPUNGE") | Vanished() | FetchData():
                self._news.note(None)
            case _:
                pass


class _Listener:
    """One session that idles, leaves IDLE for a sign of life, and idles again."""

    def __init__(self, session: ImapSession, subject: _OneMailbox | _AllMailboxes, experience: Experience) -> None:
        self.session = session
        self._subject = subject
        self._experience = experience
        self._idle: Command | None = None
        self._since_s = 0.0
        self._is_asked = False
        if isinstance(subject, _AllMailboxes):
            subject.on_overflow = self.probe

    def probe(self) -> None:
        """Leave IDLE now and begin it anew."""
        self._is_asked = True
        if self._idle is not None:
            self._idle.progress.set()

    async def begin(self) -> None:
        """IDLE, and return when the server has begun it. Raises Rejected where it does not, after all."""
        session, sound = self.session, self._subject.sound()
        idle = await session.launch_asking(GO_AHEAD_S, "IDLE", collect=self._subject.take)
        if idle.done:
            if idle.failure is not None and sound.reply is not None:  # it was there a moment ago: so it is the IDLE
                self._experience.strike("IDLE")
            await session.finish(idle)
            raise Rejected(f"{session.protocol.server} ends IDLE before it began")
        await finish_anyhow(session, sound)
        self._idle, self._since_s = idle, time.monotonic()

    async def keep(self) -> None:
        """Keep idling; ends by an error only."""
        while True:
            is_due = not await self._ended_or_asked()
            try:
                await self._leave()
                await self._subject.renew()
                await self.begin()
            except Rejected as exc:
                self._experience.strike("IDLE")
                raise Unavailable(exc.text, "push is begun anew") from exc
            except ConnectionLost:
                if is_due:
                    self._experience.died_silently()
                raise

    async def _ended_or_asked(self) -> bool:
        """Wait until it is time for a sign of life; True if something else came first."""
        idle = self._idle
        if idle is None:
            raise ConnectionLost("push was not begun")
        # Not all at once: a thousand accounts may have begun in the same second.
        with anyio.move_on_after(self._experience.interval_s * random.uniform(0.9, 1.0)):  # noqa: S311 - no secret
            while not (idle.done or self._is_asked):
                idle.progress.clear()
                await idle.progress.wait()
        return idle.done or self._is_asked

    async def _leave(self) -> None:
        idle, self._idle, self._is_asked = self._idle, None, False
        if idle is None:
            return
        protocol = self.session.protocol
        if not idle.done:
            protocol.write(b"DONE\r\n")
        elif idle.reply is not None and time.monotonic() - self._since_s < LEAST_IDLE_S:
            raise Rejected(f"{protocol.server} ends IDLE by itself, at once")
        await protocol.finish(idle, DONE_LIMIT_S, may_refuse=True)

    def close(self) -> None:
        """Leave IDLE without waiting for the answer."""
        if self._idle is not None and not self._idle.done:
            self.session.protocol.write(b"DONE\r\n")


@asynccontextmanager
async def watching(lender: Lender, experience: Experience, wanted: Wanted, method: Push) -> AsyncIterator[News]:
    """The watch, established on entry. Raises what keeps it from being so, but for what the server cannot do."""
    opening = _Opening(lender, experience, wanted)
    tasks: list[asyncio.Task[None]] = []
    try:
        await opening.begin(method)
        for listener in opening.listeners:
            tasks.append(asyncio.create_task(_keep(listener, opening, lender)))
            tasks[-1].add_done_callback(lambda task: _note_end(task, opening.news))
        yield opening.news
    finally:
        for task in tasks:
            task.cancel()
        with anyio.CancelScope(shield=True):
            if tasks:
                await asyncio.wait(tasks)
            await opening.close()


async def _keep(listener: _Listener, opening: _Opening, lender: Lender) -> None:
    try:
        await listener.keep()
    except MaildError as exc:
        log.debug("session.lost", host=listener.session.endpoint.host, reason=exc.text)
        opening.news.fail(exc)
    finally:
        with anyio.CancelScope(shield=True):
            await opening.give_back(listener.session)


def _note_end(task: asyncio.Task[None], news: News) -> None:
    """A fault of maild's own reaches whoever waits for hints, too."""
    if not task.cancelled() and (fault := task.exception()) is not None:
        news.fail(fault)


class _Opening:
    """How a watch is established: NOTIFY, else IDLE, else nothing."""

    def __init__(self, lender: Lender, experience: Experience, wanted: Wanted) -> None:
        self.news = News()
        self.listeners: list[_Listener] = []
        self._lender = lender
        self._experience = experience
        self._wanted = wanted
        self._held: list[ImapSession] = []

    async def begin(self, method: Push) -> None:
        """`method` "notify" means IDLE too where there is no NOTIFY: some push is better than none."""
        if method == "poll":
            return
        if (session := await self._hold()) is None:
            return
        if not self._experience.offers(session, "IDLE"):
            await self.close()
            return
        try:
            if method == "idle" or not await self._notify(session):
                await self._idle_on_each(session)
        except Rejected as exc:
            _log_correction(session, exc)
            self._experience.refused.add("IDLE")
            self.listeners.clear()
            self.news = News()
        if not self.listeners:
            await self.close()

    async def _hold(self) -> ImapSession | None:
        session = await self._lender.hold()
        if session is not None:
            self._held.append(session)
        return session

    async def _notify(self, session: ImapSession) -> bool:
        """Whether NOTIFY is on; a server that refuses it is not asked again."""
        if not self._experience.offers(session, "NOTIFY"):
            return False
        subject = _AllMailboxes(session, self._wanted, self.news)
        listener = _Listener(session, subject, self._experience)
        try:
            await subject.begin()
            await listener.begin()
        except Rejected as exc:
            _log_correction(session, exc)
            self._experience.refused.add("NOTIFY")
            await finish_anyhow(session, session.launch("NOTIFY", "NONE", collect=ignore))
            return False
        except ConnectionLost:
            self._experience.strike("NOTIFY")
            raise
        self._add("notify", self._wanted.mailboxes, listener)
        return True

    async def _idle_on_each(self, first: ImapSession) -> None:
        """A session for each mailbox, as far as they go. Raises Rejected where there is no IDLE after all."""
        session: ImapSession | None = first
        for wire, name in self._wanted.idle:
            if session is None and (session := await self._hold()) is None:
                return
            subject = _OneMailbox(session, wire, name, self.news)
            try:
                await subject.begin()
            except Rejected as exc:
                _log_correction(session, exc)
                continue
            listener = _Listener(session, subject, self._experience)
            await listener.begin()
            self._add("idle", frozenset({name}), listener)
            session = None

    def _add(self, method: Method, mailboxes: frozenset[MailboxName], listener: _Listener) -> None:
        self.listeners.append(listener)
        self.news.listen(method, mailboxes, listener)

    async def give_back(self, session: ImapSession) -> None:
        """It is not needed any more."""
        if session not in self._held:
            return
        self._held.remove(session)
        for listener in self.listeners:
            if listener.session is session:
                listener.close()
        await self._lender.release(session)

    async def close(self) -> None:
        for session in list(self._held):
            await self.give_back(session)


def _log_correction(session: ImapSession, exc: Rejected) -> None:
    log.debug("server.corrected", host=session.endpoint.host, reason=exc.text)


def foreign_of(wires: Sequence[str], prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """Those that lie in other people's or shared namespaces."""
    return tuple(wire for wire in wires if any(wire.startswith(prefix) for prefix in prefixes))
