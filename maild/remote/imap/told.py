"""What a server says by itself, as hints: of one mailbox in IDLE (RFC 2177), of all of them by NOTIFY (RFC 5465).

Hints carry no facts, and those that nobody waits for are merged: a server cannot make them pile up. What `hear`
returns, and `has_untold_mail`, are for `push`, which judges by them whether the server is to be relied on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import anyio

from maild.core.errors import Rejected, Unavailable
from maild.core.model import MailboxName
from maild.remote.imap.experience import Experience
from maild.remote.imap.listing import status_items, wire_name
from maild.remote.imap.opening import Opening, leave_mailbox
from maild.remote.imap.parse import Data, Event, FetchData, Numbered, Token, Untagged, Vanished, number
from maild.remote.imap.session import Command, ImapSession, quoted

LEAST_NOTIFY_S = 60.0  # a server that overflows sooner cannot do NOTIFY for as many mailboxes
LINE_OCTETS = 8000  # of a command (RFC 7162 §4)

_MESSAGES = "MessageNew MessageExpunge FlagChange"  # RFC 5465 §5.2: the last one only with the others
_OVERFLOWS = "the server overflows at once"

Hint = frozenset[MailboxName] | None
Method = Literal["notify", "idle", "poll"]


class Speaker(Protocol):
    """A session that tells."""

    def probe(self) -> None: ...

    def missed(self) -> None: ...


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
        self.lack = ""
        self.again_s: float | None = None  # after this a better method may be worth another try
        self.on_probe: Callable[[], None] = lambda: None
        self._listeners: list[Speaker] = []
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
            raise Unavailable(f"push was less than it could be: {self.lack}", "it is tried again")
        told = None if self._is_everything else frozenset(self._changed)
        self._changed, self._is_everything = set(), False
        self._stirred.clear()
        return told

    def probe(self) -> None:
        self.on_probe()
        for listener in self._listeners:
            listener.probe()

    def missed(self) -> None:
        for listener in self._listeners:
            listener.missed()

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

    def listen(self, method: Method, mailboxes: frozenset[MailboxName], listener: Speaker) -> None:
        """One more session tells."""
        self.method = method
        self.mailboxes |= mailboxes
        self._listeners.append(listener)


class OneMailbox:
    """What IDLE tells: of the mailbox that is open, read-only so that nothing there stops being recent."""

    extension = "IDLE"

    def __init__(self, session: ImapSession, wire: str, name: MailboxName, news: News) -> None:
        self._session = session
        self._wire = wire
        self._name = name
        self._news = news
        self._counters: dict[bytes, Token] = {}
        self.has_untold_mail = False  # the last comparison of counters shows more messages, under new UIDs

    async def begin(self) -> None:
        """Open it. Raises Rejected."""
        self._session.protocol.receiver.on_unasked = self.take
        await Opening(self._session, self._wire, self._name, read_only=True).finish()

    async def renew(self) -> None:
        """It stays open."""

    def sound(self) -> Command:
        """Ask for the counters, in one write with the IDLE that follows."""
        self.has_untold_mail = False
        return self._session.launch("STATUS", quoted(self._wire), f"({status_items(self._session)})", collect=self.take)

    def take(self, event: Event) -> None:
        self.hear(event)

    def hear(self, event: Event) -> bool:
        """Note what was said; whether it tells of a change."""
        match event:
            case Numbered(name="EXISTS" | "EXPUNGE") | Vanished() | FetchData():
                self._news.note(frozenset({self._name}))
                return True
            case Data(name="STATUS", tokens=[bytes() as name, list() as items, *_]) if wire_name(name) == self._wire:
                pairs = zip(items[::2], items[1::2], strict=False)
                self._compare({k.upper(): v for k, v in pairs if isinstance(k, bytes)})
            case _:
                pass
        return False

    def _compare(self, counters: dict[bytes, Token]) -> None:
        before, self._counters = self._counters, counters
        if before and before != counters:
            self.has_untold_mail = all(_grew(before, counters, name) for name in (b"UIDNEXT", b"MESSAGES"))
            self._news.note(frozenset({self._name}))


def _grew(before: dict[bytes, Token], now: dict[bytes, Token], name: bytes) -> bool:
    return 0 <= number(before.get(name, b"")) < number(now.get(name, b""))


class AllMailboxes:
    """What NOTIFY tells: STATUS of the mailbox that changed, LIST where one came, went or was renamed (RFC 5465 §5)."""

    extension = "NOTIFY"

    def __init__(self, session: ImapSession, wanted: Wanted, news: News, experience: Experience) -> None:
        self._session = session
        self._wanted = wanted
        self._news = news
        self._experience = experience
        self._asked_at_s = 0.0
        self._has_overflown = False
        self.on_overflow: Callable[[], None] = lambda: None
        self.has_untold_mail = False  # only whoever looks at all mailboxes can tell: `missed`

    async def begin(self) -> None:
        """Ask for it. Raises Rejected, such as with BADEVENT."""
        await leave_mailbox(self._session)  # of an open mailbox STATUS would not tell
        self._session.protocol.receiver.on_unasked = self.take
        await self._ask()

    async def renew(self) -> None:
        """Ask again if the server stopped telling (RFC 5465 §5.8): whatever happened meanwhile, nobody knows."""
        if not self._has_overflown:
            return
        if time.monotonic() - self._asked_at_s < LEAST_NOTIFY_S:
            self._experience.strike("NOTIFY", _OVERFLOWS)
        try:
            await self._ask()
        except Rejected as exc:
            self._experience.refuse("NOTIFY", exc.text)
        if why := self._experience.refusal("NOTIFY"):
            raise Unavailable(f"NOTIFY is given up: {why}", "push is begun anew without it")
        self._news.note(None)

    async def _ask(self) -> None:
        self._has_overflown, self._asked_at_s = False, time.monotonic()
        await self._session.finish(self._session.launch("NOTIFY", self._request(), collect=self.take))

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
        self.hear(event)

    def hear(self, event: Event) -> bool:
        """Note what was said; whether it tells of a change."""
        match event:
            case Data(name="STATUS", tokens=[bytes() as name, *_]):
                self._news.note(self._wanted.whom(wire_name(name)))
            case Untagged(code="NOTIFICATIONOVERFLOW"):
                self._has_overflown = True
                self.on_overflow()
                return False
            case Data(name="LIST" | "LSUB") | Numbered(name="EXISTS" | "EXPUNGE") | Vanished() | FetchData():
                self._news.note(None)
            case _:
                return False
        return True
