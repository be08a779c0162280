"""What the server knows about one client: who it is, what it enabled, which mailbox it has open and what it was told.

A client's sequence numbers follow its own view, which changes only by what was sent to it: other clients' expunges wait
until a command during which they may be told (RFC 9051 §7.5.1). `Selected` keeps that view.
"""

from __future__ import annotations

import ssl
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from maild.testing.faults import Faults
from maild.testing.imap import fetch
from maild.testing.imap.syntax import BadSyntax, Ranges, set_of
from maild.testing.store import Mailbox, Message, Store
from maild.testing.wire import Wire

BARE = frozenset({"IMAP4rev1", "AUTH=PLAIN"})
ALL = BARE | {
    "LITERAL+",
    "SASL-IR",
    "ID",
    "ENABLE",
    "IDLE",
    "NAMESPACE",
    "UNSELECT",
    "CHILDREN",
    "UIDPLUS",
    "MOVE",
    "CONDSTORE",
    "QRESYNC",
    "ESEARCH",
    "LIST-EXTENDED",
    "LIST-STATUS",
    "SPECIAL-USE",
    "STATUS=SIZE",
    "MULTIAPPEND",
    "OBJECTID",
    "NOTIFY",
    "COMPRESS=DEFLATE",
}
_BEFORE_LOGIN = ("IMAP4rev1", "LITERAL+", "LITERAL-", "SASL-IR", "ID", "ENABLE", "IDLE")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a server was made to be; the same for all its connections."""

    store: Store
    users: Mapping[str, str]
    capabilities: frozenset[str]
    starttls_context: ssl.SSLContext | None
    login_disabled: bool
    greeting: str | None
    namespace: str

    def has(self, extension: str) -> bool:
        """Whether an extension is offered; QRESYNC includes CONDSTORE (RFC 7162 §3.2.3)."""
        return extension in self.capabilities or (extension == "CONDSTORE" and "QRESYNC" in self.capabilities)


class Selected:
    """One client's view of the mailbox it has open."""

    def __init__(self, mailbox: Mailbox, *, read_only: bool) -> None:
        self.mailbox = mailbox
        self.read_only = read_only
        self.uids = mailbox.uids
        self.uidvalidity = mailbox.uidvalidity
        self.told_modseq = mailbox.highestmodseq  # flags and arrivals up to here were told
        self.told_expunges = mailbox.highestmodseq
        self.told_own: dict[int, int] = {}  # uid → modseq told in answer to the client's own STORE

    @property
    def lost(self) -> str:
        """Why this view cannot go on, or ""."""
        if self.mailbox.deleted:
            return "The selected mailbox was deleted"
        return "UIDVALIDITY changed" if self.mailbox.uidvalidity != self.uidvalidity else ""

    def number(self, uid: int) -> int:
        """The sequence number of a UID that is in the view."""
        return bisect_left(self.uids, uid) + 1

    def resolve(self, ranges: Ranges, by_uid: bool) -> list[int]:
        """The UIDs in the view that a set means, ascending; `*` is the last message."""
        spans = sorted(self._span(low, high, by_uid) for low, high in ranges)
        found: list[int] = []
        done = 0
        for start, stop in spans:
            found += self.uids[max(start, done) : stop]
            done = max(done, stop)
        return found

    def _span(self, low: int, high: int, by_uid: bool) -> tuple[int, int]:
        last = (self.uids[-1] if self.uids else 0) if by_uid else len(self.uids)
        low, high = sorted((low or last, high or last))
        if by_uid:
            return bisect_left(self.uids, low), bisect_right(self.uids, high)
        if not 1 <= low <= high <= last:
            raise BadSyntax("There is no message with that number")
        return low - 1, high

    def messages(self, uids: list[int]) -> list[Message]:
        """Those that are still there."""
        found = (self.mailbox.find(uid) for uid in uids)
        return [message for message in found if message is not None]

    def expunges(self, *, as_vanished: bool) -> list[bytes]:
        """Tell which messages are gone, and drop them from the view."""
        mailbox = self.mailbox
        if mailbox.highestmodseq == self.told_expunges:
            return []
        gone = set(mailbox.vanished_since(self.told_expunges)).intersection(self.uids)
        self.told_expunges = mailbox.highestmodseq
        numbers = sorted((self.number(uid) for uid in gone), reverse=True)  # highest first: the others stay right
        self.uids = [uid for uid in self.uids if uid not in gone]
        for uid in gone:
            self.told_own.pop(uid, None)
        if as_vanished:
            return [b"* VANISHED %b\r\n" % set_of(sorted(gone))] if gone else []
        return [b"* %d EXPUNGE\r\n" % number for number in numbers]

    def news(self, *, with_uid: bool, with_modseq: bool) -> list[bytes]:
        """Tell arrivals and changed flags, and take the arrivals into the view."""
        mailbox = self.mailbox
        if mailbox.highestmodseq == self.told_modseq:
            return []
        last = self.uids[-1] if self.uids else 0
        fresh = [message for message in mailbox if message.modseq > self.told_modseq]
        changed = [message for message in fresh if message.uid <= last and self._is_news(message)]
        arrived = [message.uid for message in mailbox.messages[bisect_right(mailbox.uids, last) :]]
        self.uids += arrived
        self.told_modseq = mailbox.highestmodseq
        self.told_own.clear()
        told = [b"* %d EXISTS\r\n" % len(self.uids), b"* 0 RECENT\r\n"] if arrived else []
        return told + [self.flags_of(message, with_uid=with_uid, with_modseq=with_modseq) for message in changed]

    def flags_of(self, message: Message, *, with_uid: bool, with_modseq: bool, with_flags: bool = True) -> bytes:
        """A FETCH response about flags."""
        parts = [b"UID %d" % message.uid] if with_uid else []
        parts += [fetch.flags(message)] if with_flags else []
        parts += [b"MODSEQ (%d)" % message.modseq] if with_modseq else []
        return b"* %d FETCH (%b)\r\n" % (self.number(message.uid), b" ".join(parts))

    def _is_news(self, message: Message) -> bool:
        return self.told_own.get(message.uid) != message.modseq


@dataclass(slots=True)
class Session:
    """One client's state. `tag` is that of the command being carried out, `over` ends the connection after it."""

    policy: Policy
    wire: Wire
    faults: Faults
    journal: list[str]  # the server's, over all connections
    turn: Callable[[], None]  # wakes those who wait for something to have happened
    number: int
    tag: str = ""
    user: str | None = None
    selected: Selected | None = None
    enabled: set[str] = field(default_factory=set)
    condstore: bool = False  # the client showed that it wants MODSEQ (RFC 7162 §3.1)
    over: bool = False
    commands: list[str] = field(default_factory=list)
    stop_telling: Callable[[], None] = lambda: None  # ends what NOTIFY began
    _noted_at: int = 0  # where the command being carried out stands in the journal

    @property
    def store(self) -> Store:
        return self.policy.store

    @property
    def state(self) -> str:
        """`anonymous`, `authenticated` or `selected`."""
        if self.user is None:
            return "anonymous"
        return "selected" if self.selected else "authenticated"

    @property
    def open_box(self) -> Selected:
        """The open mailbox; the command table lets nobody here without one."""
        if self.selected is None:
            raise BadSyntax("No mailbox is selected")
        return self.selected

    @property
    def qresync(self) -> bool:
        return "QRESYNC" in self.enabled

    @property
    def login_allowed(self) -> bool:
        return self.wire.tls or not self.policy.login_disabled

    def capabilities(self) -> str:
        """What is offered in the present state, as it stands in a CAPABILITY response."""
        offered = self.policy.capabilities
        if self.user is not None:
            names = sorted(name for name in offered if not name.startswith("AUTH="))
            names = [name for name in names if name != "COMPRESS=DEFLATE" or not self.wire.is_compressed]
        else:
            names = [name for name in _BEFORE_LOGIN if name in offered]
            names += sorted(name for name in offered if name.startswith("AUTH=")) if self.login_allowed else []
            names += ["STARTTLS"] if self.policy.starttls_context and not self.wire.tls else []
            names += [] if self.login_allowed else ["LOGINDISABLED"]
        return " ".join(sorted(names, key=lambda name: name != "IMAP4rev1"))

    def note(self, text: str) -> None:
        """A command was received; `text` holds no secret."""
        self.commands.append(text)
        self._noted_at = len(self.journal)
        self.journal.append(text)
        self.turn()

    def note_more(self, text: str) -> None:
        """What followed a literal of that command."""
        self.commands[-1] += text
        self.journal[self._noted_at] += text
        self.turn()

    def wants_modseq(self) -> None:
        """A command that shows interest in mod-sequences was seen."""
        self.condstore = True

    def updates(self, *, expunges: bool = True) -> list[bytes]:
        """Everything the client was not told yet about the open mailbox."""
        if self.selected is None:
            return []
        if reason := self.selected.lost:
            self.over = True
            return [b"* BYE %b\r\n" % reason.encode()]
        gone = self.selected.expunges(as_vanished=self.qresync) if expunges else []
        return gone + self.selected.news(with_uid=self.qresync, with_modseq=self.condstore)
