"""The port for IMAP: an account's mailboxes over a few sessions.

Set-up to the first FETCH, in round trips: TCP, greeting, log in, (ID, ENABLE, NAMESPACE, LIST in one write), and
SELECT with the FETCH of flags and sizes right behind it; where this disk has news, or the server told of some, they
go out behind LIST, and small new messages come along. COMPRESS costs one more, for its answer has to come before
anything else is sent.

A session remembers which mailbox it has open, so that several visits of one need no round trip for that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial

import anyio
import structlog

from maild import __version__
from maild.config import Imap
from maild.core.errors import ConnectionLost, ProtocolViolation, Rejected, RemoteError, Unavailable
from maild.core.model import Cursor, Epoch, Listing, MailboxName, Push, RemoteMailbox
from maild.core.ports import RemoteBox
from maild.remote.auth import Credentials
from maild.remote.imap import naming
from maild.remote.imap.box import Box
from maild.remote.imap.experience import Experience
from maild.remote.imap.listing import (
    Mailbox,
    Names,
    ask_status,
    foreign_prefixes,
    list_mailboxes,
    understood,
    with_status,
)
from maild.remote.imap.login import login
from maild.remote.imap.opening import finish_anyhow, leave_ahead, leave_mailbox
from maild.remote.imap.parse import Event
from maild.remote.imap.push import foreign_of, watching
from maild.remote.imap.session import Command, ImapSession, ignore, quoted
from maild.remote.imap.told import Hint, News, Wanted
from maild.remote.pace import connects

SILENT_S = 300.0  # of a session that nobody used: a router may have forgotten it
PROOF_S = 10.0  # within this it has to answer then
LEARNT_LIMIT_S = 600.0  # a server that said that it allows no more sessions is tried again after that
UNSAID_LIMIT_S = 60.0  # the same of one that did not say so
UNSAID_REFUSALS = 2

log = structlog.get_logger()
Fits = Callable[[ImapSession], int]  # how well it suits; the most wins


class ImapRemote:
    """One account over at most `connections` sessions. The first is opened by whoever asks first."""

    def __init__(self, endpoint: Imap, account: str, credentials: Credentials | None = None) -> None:
        """`credentials` are the caller's who outlives this object and has to know of a refusal."""
        self._endpoint = endpoint
        self._account = account
        self._learnt_limit = 0
        self._learnt_until_s = 0.0
        self._unsaid = 0  # connections in a row that the server ended without a reason while others stood
        self._open = 0
        self._free: list[ImapSession] = []
        self._held: list[ImapSession] = []  # for push alone
        self._returned = anyio.Condition()
        self._listing_on: ImapSession | None = None  # which LIST is under way on, so that more may be sent behind it
        self._is_listing = False  # or about to
        self._wish: Callable[[], None] | None = None  # what `expect` was told before LIST was sent
        self._begun: dict[ImapSession, Box] = {}  # mailboxes that are being opened there ahead of any visit
        self._expected: Box | None = None  # the one among them that is for a visit after the last listing
        self._last: Box | None = None  # of the last visit since the listing
        self._with_mail: set[MailboxName] = set()  # mailboxes of which the next visit finds new messages
        self._names = Names()
        self._foreign: tuple[str, ...] = ()  # prefixes of mailboxes that are not one's own
        self._experience = Experience()
        self.credentials = credentials or Credentials(endpoint, account)

    # -- sessions

    @asynccontextmanager
    async def _session(
        self, fits: Fits = lambda _: 0, expected: Box | None = None, *, may_be_in_doubt: bool = False
    ) -> AsyncIterator[ImapSession]:
        """A session for a while; nothing is under way on it but what belongs to the box that is expected."""
        session = await self._borrow(fits, expected, may_be_in_doubt=may_be_in_doubt)
        try:
            yield session
        finally:
            with anyio.CancelScope(shield=True):
                await self._give_back(session)

    async def _borrow(
        self,
        fits: Fits = lambda _: 0,
        expected: Box | None = None,
        *,
        is_for_push: bool = False,
        may_be_in_doubt: bool = False,
    ) -> ImapSession:
        session = await self._free_or_new(fits, is_for_push=is_for_push, may_be_in_doubt=may_be_in_doubt)
        if (box := self._begun.pop(session, None)) is not None and box is not expected:
            try:
                await box.settle()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._give_back(session)
                raise
        return session

    async def _free_or_new(self, fits: Fits, *, is_for_push: bool, may_be_in_doubt: bool) -> ImapSession:
        while True:
            async with self._returned:
                while not self._free and self._open >= self._limit:
                    await self._returned.wait()
                session = max(reversed(self._free), key=fits, default=None)  # the last one, if equal
                if session is None:
                    self._open += 1
                else:
                    self._free.remove(session)
            if session is not None:
                if may_be_in_doubt and _proves_itself(session) and not session.is_lost:
                    return session
                if await self._is_alive(session):
                    return session
                continue
            try:
                session = await self._connect()
                self._unsaid = 0
                return session
            except (Unavailable, ConnectionLost) as exc:
                left = await self._count_back()
                if not left:
                    raise
                is_limit = self._learn_limit(left, is_said=isinstance(exc, Unavailable))
                if is_for_push:
                    raise
                if is_limit:
                    self._make_room_for_work()
            except BaseException:
                await self._count_back()
                raise

    async def _is_alive(self, session: ImapSession) -> bool:
        """Whether a session may be given to work; one that was silent for long has to answer first, and soon."""
        protocol = session.protocol
        try:
            if _is_in_doubt(session):
                await protocol.finish(session.launch("NOOP", collect=ignore), PROOF_S, may_refuse=True)
        except (Unavailable, ConnectionLost, ProtocolViolation) as exc:
            log.debug("session.lost", account=self._account, host=self._endpoint.host, reason=exc.text)
        except BaseException:
            await self._count_back()
            raise
        if session.is_lost:
            self._begun.pop(session, None)
            await self._count_back()
            return False
        return True

    def _doubt(self) -> None:
        """The network or the clock is another: a session has to prove that it is alive before it is used."""
        for session in self._free:
            session.protocol.heard_at_s = float("-inf")

    async def _count_back(self) -> int:
        """A session was not opened, or is closed: how many there are now. One not counted back is missed for ever."""
        with anyio.CancelScope(shield=True):
            async with self._returned:
                self._open -= 1
                self._returned.notify_all()
        return self._open

    def _learn_limit(self, sessions: int, *, is_said: bool) -> bool:
        """The server allows no more than there are: share them. Once unsaid, it may have been the network: not so."""
        self._unsaid = 0 if is_said else self._unsaid + 1
        is_limit = is_said or self._unsaid >= UNSAID_REFUSALS
        if is_limit:
            until_s = time.monotonic() + (LEARNT_LIMIT_S if is_said else UNSAID_LIMIT_S)
            self._learnt_limit, self._learnt_until_s = sessions, until_s
        return is_limit

    @property
    def _limit(self) -> int:
        """How many sessions there may be now."""
        if time.monotonic() < self._learnt_until_s:
            return min(self._learnt_limit, self._endpoint.connections)
        return self._endpoint.connections

    def _make_room_for_work(self) -> None:
        """Where push has all the sessions that are to be had, it ends: work would wait for ever."""
        if self._open <= len(self._held):
            for session in self._held:
                session.protocol.fail(
                    Unavailable(f"{session.protocol.server} allows no session besides those for push")
                )

    async def _give_back(self, session: ImapSession) -> None:
        async with self._returned:
            if session.is_busy and session not in self._begun:
                session.drop()  # answers are still owed: whoever had it next would get them
            if session.is_lost:
                self._begun.pop(session, None)
                self._open -= 1
            else:
                self._free.append(session)
            self._returned.notify()

    async def _connect(self) -> ImapSession:
        endpoint = self._endpoint
        await connects.turn(endpoint.host)
        session = await ImapSession.connect(endpoint, endpoint.max_message_size_octets * 3 // 2 + (1 << 20))
        try:
            await self.credentials.log_in(
                lambda secret: login(session, endpoint.user, secret), lambda: not session.is_lost
            )
            await self._introduce(session)
        except BaseException:
            session.drop()
            raise
        log.debug("session.opened", account=self._account, host=endpoint.host, port=endpoint.port, user=endpoint.user)
        return session

    async def _introduce(self, session: ImapSession) -> None:
        """ID (NetEase refuses SELECT without it), ENABLE and COMPRESS, in one write with whatever is sent next.

        Only COMPRESS has to be waited for.
        """
        sent: list[Command] = []
        if session.has("ID"):
            name = f'("name" "maild" "version" {quoted(__version__)})'
            sent.append(session.launch("ID", name))
        if session.has("ENABLE") and session.has("QRESYNC"):
            sent.append(session.launch("ENABLE", "QRESYNC"))
            session.enabled = frozenset({"QRESYNC", "CONDSTORE"})
        for command in sent:
            command.collect = ignore
        if self._endpoint.compress:
            await session.compress()

    # -- the port

    async def listing(self) -> Listing:
        self._expected = None  # what it told may be old
        self._with_mail.clear()
        self._last = None
        self._is_listing = True
        try:
            return await self._list()
        finally:
            self._is_listing, self._wish = False, None

    async def _list(self) -> Listing:
        """On a session in doubt without asking it first, and on another one if it says nothing."""
        was_in_doubt = False
        try:
            async with self._session(may_be_in_doubt=True) as session:
                was_in_doubt = _is_in_doubt(session)
                with _to_be_heard(session) if was_in_doubt else nullcontext():
                    return await self._list_on(session)
        except ConnectionLost as exc:
            if not was_in_doubt:
                raise
            log.debug("session.lost", account=self._account, host=self._endpoint.host, reason=exc.text)
        async with self._session() as session:
            return await self._list_on(session)

    async def _list_on(self, session: ImapSession) -> Listing:
        # Of an open mailbox STATUS may tell what was true when it was looked at last.
        left = await leave_ahead(session)
        namespaces = session.launch("NAMESPACE") if session.has("NAMESPACE") else None
        events = await self._listed(session)
        if left is not None:
            await finish_anyhow(session, left)
        foreign = await foreign_prefixes(session, namespaces)
        only = self._endpoint.subscribed_only
        names = understood(events, self._endpoint.mailboxes, foreign, subscribed_only=only)
        if session.has("CONDSTORE") and not session.has("LIST-STATUS"):
            events += await ask_status(session, names.wanted)
        self._names, self._foreign = names, foreign
        return Listing(
            tuple(mailbox.public for mailbox in with_status(names.wanted, events)),
            names.unusable,
            frozenset(names.present),
            names.separator,
            names.with_role("\\Trash"),
            names.roles(),
            frozenset(names.left_out),
            session.has("MOVE"),
        )

    async def _listed(self, session: ImapSession) -> list[Event]:
        """LIST, behind which `expect` may send more, unless STATUS is to follow: of an open mailbox it may be old."""

        def sent() -> None:
            if session.has("LIST-STATUS") or not session.has("CONDSTORE"):
                self._listing_on = session
            if self._wish is not None:
                wish, self._wish = self._wish, None
                wish()

        try:
            return await list_mailboxes(session, sent, subscribed=self._endpoint.subscribed_only)
        finally:
            self._listing_on = None

    def expect(self, mailbox: MailboxName, cursor: Cursor, *, read_only: bool = False, has_mail: bool = False) -> None:
        session, known = self._listing_on, self._names.known.get(mailbox)
        self._with_mail |= {mailbox} if has_mail else set()
        if session is None:
            wish = partial(self.expect, mailbox, cursor, read_only=read_only, has_mail=has_mail)
            self._wish = wish if self._is_listing else None
            return
        wire = known.wire if known is not None else "INBOX" if mailbox == "INBOX" else ""
        if not wire or session.is_lost or session in self._begun:
            return
        box = Box(session, wire, mailbox, self._wire_name, read_only=read_only, has_mail=has_mail)
        if box.begin(cursor):
            self._begun[session] = self._expected = box

    @asynccontextmanager
    async def visit(
        self, mailbox: MailboxName, epoch: Epoch | None = None, *, read_only: bool = False
    ) -> AsyncIterator[RemoteBox]:
        wire = self._wire_name(mailbox)
        expected = self._expected
        if expected is not None and not expected.is_of(wire, read_only=read_only):
            expected = None

        def fits(session: ImapSession) -> int:
            if (begun := self._begun.get(session)) is not None:
                return 3 if begun is expected else -1
            if (opened := session.opened) is None:
                return 1
            return 2 if (opened.wire, opened.read_only) == (wire, read_only) and epoch in {None, opened.epoch} else 0

        async with self._session(fits, expected) as session:
            if expected is not None and expected.session is session:
                box, self._expected = expected, None
            else:
                has_mail = epoch is None and mailbox in self._with_mail
                box = Box(session, wire, mailbox, self._wire_name, read_only=read_only, has_mail=has_mail)
            self._with_mail.discard(mailbox)
            if epoch is not None:
                box.take_ahead(self._last, epoch)
                await box.reopen(epoch)
            self._last = box
            yield box

    def _wire_name(self, mailbox: MailboxName) -> str:
        return self._known(mailbox).wire

    def _known(self, mailbox: MailboxName) -> Mailbox:
        if (known := self._names.known.get(mailbox)) is None:
            raise Rejected(f"there is no mailbox {mailbox} on the server", code="NONEXISTENT")
        return known

    async def create(self, levels: tuple[str, ...]) -> RemoteMailbox:
        wanted = naming.mailbox_of(levels, self._names)
        async with self._session() as session:
            made = await naming.create(session, wanted)
        self._names.learn(made)
        return made.public

    async def rename(self, mailbox: MailboxName, levels: tuple[str, ...]) -> RemoteMailbox:
        old, new = self._known(mailbox), naming.mailbox_of(levels, self._names)
        naming.refuse_inbox(old, "renamed")
        below = naming.below(old, new, self._names)
        await self._leave({old.wire, *(child.wire for child, _ in below)})
        async with self._session() as session:
            await naming.rename(session, [(old, new), *below])
        for before, after in [(old, new), *below]:
            self._names.forget(before)
            self._names.learn(after)
        return self._known(new.public.name).public

    async def delete(self, mailbox: MailboxName, seen: Cursor) -> bool:
        if (old := self._names.known.get(mailbox)) is None:
            return True
        naming.refuse_inbox(old, "deleted")
        await self._leave({old.wire})
        async with self._session() as session:
            if not await naming.delete(session, old, seen):
                return False
        self._names.forget(old)
        return True

    async def _leave(self, wires: set[str]) -> None:
        """Have none of our free sessions stay in these mailboxes: some servers refuse to touch an open one."""

        def is_there(session: ImapSession) -> int:
            is_begun = session in self._begun
            return int(is_begun or (session.opened is not None and session.opened.wire in wires))

        while any(map(is_there, self._free)):
            async with self._session(is_there) as session:
                await leave_mailbox(session)

    # -- push

    @asynccontextmanager
    async def watch(
        self, mailboxes: Sequence[MailboxName], idle: Sequence[MailboxName], method: Push
    ) -> AsyncIterator[News]:
        if method != "poll" and self._may_hold() and not self._names.present:
            await self.listing()  # names on the wire have to be known
        async with watching(self, self._experience, self._wanted(frozenset(mailboxes), idle), method) as news:
            if method != "poll" and news.method == "poll" and not self._may_hold():
                news.lack = "there is no connection besides the one for work"
                if self._endpoint.connections > 1:
                    news.lack = "the server allows too few connections"
                    news.again_s = max(0.0, self._learnt_until_s - time.monotonic())
            news.on_probe = self._doubt
            yield news

    def _wanted(self, mailboxes: frozenset[MailboxName], idle: Sequence[MailboxName]) -> Wanted:
        known, wanted = self._names.known, self._names.wanted
        wires = [mailbox.wire for mailbox in wanted]
        return Wanted(
            mailboxes | {mailbox.public.name for mailbox in wanted},
            tuple((known[name].wire, name) for name in dict.fromkeys(idle) if name in known),
            foreign_of(wires, self._foreign),
            lambda wire: self._whom(wire, mailboxes),
        )

    def _whom(self, wire: str, mailboxes: frozenset[MailboxName]) -> Hint:
        """Whom a notice about a mailbox concerns: nobody where it is not synchronised, None where it is new."""
        names = self._names
        found = next((mailbox for mailbox in names.known.values() if mailbox.wire == wire), None)
        if found is None:
            return None
        name = found.public.name
        return frozenset({name}) if name in mailboxes or found in names.wanted else frozenset()

    def _may_hold(self) -> bool:
        """Whether one more session for push leaves one for work."""
        return self._limit - len(self._held) >= 2

    async def hold(self) -> ImapSession | None:
        """A session for push alone (`push.Lender`); None where that would leave none for work."""
        if not self._may_hold():
            return None
        try:
            session = await self._borrow(is_for_push=True)
        except (Unavailable, ConnectionLost):
            if self._may_hold():
                raise
            return None
        if self._may_hold():
            self._held.append(session)
            return session
        await self._give_back(session)  # the limit fell while this waited
        return None

    async def release(self, session: ImapSession) -> None:
        """Close a session that `hold` gave: what it has asked for must not reach work."""
        await session.logout()
        self._held.remove(session)
        await self._count_back()

    # -- the rest of the port

    async def prepare(self) -> None:
        """Open a further session, if the limit and the server allow it; nobody needs it yet."""
        if connects.is_crowded(self._endpoint.host):
            return
        try:
            async with self._session() as session:
                await session.settled()
        except RemoteError as exc:
            log.debug("session.refused", account=self._account, host=self._endpoint.host, reason=exc.text)

    async def rest(self, keep: int = 1) -> None:
        """The one that stays is in a mailbox, if any is."""
        while len(self._free) > keep:
            session = min(self._free, key=lambda free: free.opened is not None)
            self._free.remove(session)
            await session.logout()
            await self._count_back()

    async def aclose(self) -> None:
        free, self._free = self._free, []
        for session in free:
            await session.logout()
        self._open -= len(free)


def _is_in_doubt(session: ImapSession) -> bool:
    """Whether a router may have forgotten it, or the network is another since it was last heard."""
    return session.protocol.silent_s > SILENT_S


def _proves_itself(session: ImapSession) -> bool:
    """Whether a listing on it begins with something that any server answers at once, however many mailboxes it has."""
    return session.has("NAMESPACE") and (session.has("UNSELECT") or not session.is_selected())


@contextmanager
def _to_be_heard(session: ImapSession) -> Iterator[None]:
    """Something has to come soon on a session in doubt, of which something is asked within the block."""
    protocol, began_s = session.protocol, session.protocol.heard_at_s

    def look() -> None:
        if protocol.heard_at_s == began_s:
            protocol.fail(ConnectionLost(f"{protocol.server} gives no sign of life"))

    deadline = asyncio.get_running_loop().call_later(PROOF_S, look)
    try:
        yield
    finally:
        deadline.cancel()
