"""Push: the server tells of changes by NOTIFY (RFC 5465) or IDLE (RFC 2177), over sessions kept for nothing else.

What this file keeps:
- what changes after a watch is established is told, or the watch ends with an error: it never dies silently;
- every session gives a sign of life: it leaves IDLE and enters it again before a router forgets it, and a DONE that is
  not answered within seconds ends the session. How long is learnt from sessions that had died meanwhile;
- counters are compared whenever IDLE begins anew, so nothing falls between DONE and IDLE. Mail that they show and that
  was not told of is a strike: a server that takes IDLE and never says anything is not believed for long;
- what is told while no command runs counts as well: NOTIFY speaks at any time.

NOTIFY is asked for without STATUS, which would count every mailbox at each connect: the pass that follows asks anyway.
The session idles too, for its sign of life and because RFC 5465 does not forbid a server to wait for it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
import structlog

from maild.core.errors import ConnectionLost, MaildError, Rejected, Unavailable
from maild.core.model import MailboxName, Push
from maild.remote.imap.experience import LOST_S, Experience
from maild.remote.imap.opening import finish_anyhow
from maild.remote.imap.parse import Event
from maild.remote.imap.session import Command, ImapSession
from maild.remote.imap.told import AllMailboxes, Method, News, OneMailbox, Wanted

DONE_LIMIT_S = 15.0
GO_AHEAD_S = 15.0
LEAST_IDLE_S = 10.0  # a server that ends IDLE by itself sooner does not mean it
MUTE_S = 60.0  # mail that is not told of in an IDLE shorter than this may only be late

_ENDS = "the server ends it by itself, or does not begin it"
_MUTE = "the server does not tell of new mail by it"
_LOST = "the connection ends when it is asked for"
_NOT_NOW = frozenset({"UNAVAILABLE", "INUSE", "LIMIT", "SERVERBUG"})  # RFC 5530: said of the moment

log = structlog.get_logger()


class Lender(Protocol):
    """Who has the sessions."""

    async def hold(self) -> ImapSession | None:
        """One for push alone; None where that would leave none for work."""

    async def release(self, session: ImapSession) -> None:
        """It is not needed any more, and closed."""


class _Listener:
    """One session that idles, leaves IDLE for a sign of life, and idles again."""

    def __init__(self, session: ImapSession, subject: OneMailbox | AllMailboxes, experience: Experience) -> None:
        self.session = session
        self._subject = subject
        self._experience = experience
        self._idle: Command | None = None
        self._since_s = 0.0
        self._is_asked = False
        self._has_spoken = False  # of its own accord: between the go-ahead of IDLE and DONE
        self._is_leaving = False
        if isinstance(subject, AllMailboxes):
            subject.on_overflow = self.probe

    def probe(self) -> None:
        """Leave IDLE now and begin it anew."""
        self._is_asked = True
        if self._idle is not None:
            self._idle.progress.set()

    def missed(self) -> None:
        """Somebody found what was not told. IDLE is asked for its counters; of NOTIFY it is a strike by itself."""
        if isinstance(self._subject, AllMailboxes):
            self._judge(has_spoken=False, has_missed=True)
        self.probe()

    async def begin(self) -> None:
        """IDLE, and return when the server has begun it. Raises Rejected where it does not, after all."""
        session, sound = self.session, self._subject.sound()
        self._is_leaving = False
        idle = await session.launch_asking(GO_AHEAD_S, "IDLE", collect=self._hear)
        if idle.done:
            if idle.failure is not None and sound.reply is not None:  # it was there a moment ago: so it is the IDLE
                self._experience.strike("IDLE", _LOST, LOST_S)
            await session.finish(idle)
            raise Rejected(f"{session.protocol.server} ends IDLE before it began")
        await finish_anyhow(session, sound)
        for extension in ("IDLE", self._subject.extension):
            self._experience.proved(extension, _LOST)
        self._idle, self._since_s = idle, time.monotonic()

    def _hear(self, event: Event) -> None:
        """What is said before the go-ahead, or after DONE, was late: it proves nothing."""
        oldest = self.session.oldest
        is_idling = oldest is not None and not oldest.needs_go_ahead and not self._is_leaving
        self._has_spoken |= self._subject.hear(event) and is_idling

    async def keep(self) -> None:
        """Keep idling; ends by an error only."""
        while True:
            is_due = not await self._ended_or_asked()
            idled_s = time.monotonic() - self._since_s
            try:
                await self._leave(idled_s)
                await self._subject.renew()
                has_spoken, self._has_spoken = self._has_spoken, False
                await self.begin()
            except Rejected as exc:
                self._experience.strike("IDLE", _ENDS)
                raise Unavailable(exc.text, "push is begun anew") from exc
            except ConnectionLost:
                if is_due:
                    self._experience.died_silently()
                raise
            if is_due:
                self._experience.renewed()
            if idled_s < MUTE_S:
                self._has_spoken |= has_spoken
            else:
                self._judge(has_spoken=has_spoken, has_missed=self._subject.has_untold_mail)
            if why := self._experience.refusal(self._subject.extension):
                name = self._subject.extension
                raise Unavailable(f"{self.session.protocol.server}: {name} is given up: {why}", "push is begun anew")

    def _judge(self, *, has_spoken: bool, has_missed: bool) -> None:
        """Whether what the server says by itself is to be relied on."""
        if has_spoken:
            self._experience.proved(self._subject.extension, _MUTE)
        elif has_missed:
            self._experience.strike(self._subject.extension, _MUTE)

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

    async def _leave(self, idled_s: float) -> None:
        idle, self._idle, self._is_asked = self._idle, None, False
        if idle is None:
            return
        protocol = self.session.protocol
        self._is_leaving = True
        if not idle.done:
            protocol.write(b"DONE\r\n")
        elif idle.reply is not None and idled_s < LEAST_IDLE_S:
            raise Rejected(f"{protocol.server} ends IDLE by itself, at once")
        await protocol.finish(idle, DONE_LIMIT_S, may_refuse=True)
        if idled_s >= LEAST_IDLE_S:
            self._experience.proved("IDLE", _ENDS)

    def close(self) -> None:
        """Leave IDLE without waiting for the answer."""
        if self._idle is not None and not self._idle.done:
            self.session.protocol.write(b"DONE\r\n")


@asynccontextmanager
async def watching(lender: Lender, experience: Experience, wanted: Wanted, method: Push) -> AsyncIterator[News]:
    """The watch, established on entry. Raises what keeps it from being so, but for what the server cannot do."""
    opening = _Opening(lender, experience, wanted)
    tasks: dict[asyncio.Task[None], ImapSession] = {}
    try:
        await opening.begin(method)
        for listener in opening.listeners:
            task = asyncio.create_task(_keep(listener, opening))
            task.add_done_callback(lambda task: _note_end(task, opening.news))
            tasks[task] = listener.session
        yield opening.news
    finally:
        for task, session in tasks.items():
            if opening.holds(session):  # else it is being given back, which must not end half-way
                task.cancel()
        with anyio.CancelScope(shield=True):
            if tasks:
                await asyncio.wait(tasks)
            await opening.close()


async def _keep(listener: _Listener, opening: _Opening) -> None:
    """Give the session back as soon as it ends by itself: work may wait for it."""
    try:
        await listener.keep()
    except MaildError as exc:
        log.debug("session.lost", host=listener.session.endpoint.host, reason=exc.text)
        opening.news.fail(exc)
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
        if self._experience.refusal("IDLE"):
            self._tell_refusals(method)
            return
        if (session := await self._hold()) is None:
            return
        try:
            if session.has("IDLE") and (method == "idle" or not await self._notify(session)):
                await self._idle_on_each(session)
        except Rejected as exc:
            self._refuse(session, "IDLE", exc)
            await self.close()
            self.listeners.clear()
            self.news = News()
        if not self.listeners:
            await self.close()
        self._tell_refusals(method)
        if not self.listeners and not self.news.lack:
            has_idle = session.has("IDLE")
            self.news.lack = "no mailbox of idle_mailboxes can be opened" if has_idle else "the server offers no IDLE"

    def _refuse(self, session: ImapSession, extension: str, exc: Rejected) -> None:
        """The server offers it and does not do it. Raises Unavailable where it only means the moment."""
        if exc.code in _NOT_NOW:
            raise Unavailable(exc.text, "push is begun anew") from exc
        _log_correction(session, exc)
        self._experience.refuse(extension, exc.text)

    def _tell_refusals(self, method: Push) -> None:
        """Why it is less than what was asked for, and when that may be worth another try."""
        wanted = ("IDLE",) if method == "idle" else ("IDLE", "NOTIFY")
        refusals = [f"no {name}: {why}" for name in wanted if (why := self._experience.refusal(name))]
        if refusals:
            self.news.lack, self.news.again_s = "; ".join(refusals), self._experience.again_s()

    async def _hold(self) -> ImapSession | None:
        session = await self._lender.hold()
        if session is not None:
            self._held.append(session)
        return session

    async def _notify(self, session: ImapSession) -> bool:
        """Whether NOTIFY is on; a server that refuses it is not asked again. Raises Rejected where there is no IDLE."""
        if not session.has("NOTIFY") or self._experience.refusal("NOTIFY"):
            return False
        subject = AllMailboxes(session, self._wanted, self.news, self._experience)
        listener = _Listener(session, subject, self._experience)
        try:
            await subject.begin()
        except Rejected as exc:
            self._refuse(session, "NOTIFY", exc)
            return False
        except ConnectionLost:
            self._experience.strike("NOTIFY", _LOST, LOST_S)
            raise
        await listener.begin()
        self._add("notify", self._wanted.mailboxes, listener)
        return True

    async def _idle_on_each(self, first: ImapSession) -> None:
        """A session for each mailbox, as far as they go. Raises Rejected where there is no IDLE after all."""
        session: ImapSession | None = first
        for wire, name in self._wanted.idle:
            if session is None and (session := await self._hold()) is None:
                return
            subject = OneMailbox(session, wire, name, self.news)
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

    def holds(self, session: ImapSession) -> bool:
        """Whether nobody has begun to give it back."""
        return session in self._held

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
