"""Opening a mailbox: SELECT or EXAMINE, what the server tells with it, and which flags it keeps.

Whatever arrives is kept apart by the command that it came with, and dropped when the server says that it belonged to
the mailbox that was open before (RFC 7162 §3.2.11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from maild.core.errors import ProtocolViolation, Rejected
from maild.core.flags import canonical_flags
from maild.core.model import Epoch, MailboxName, Permitted, ScanTable
from maild.remote.imap.answers import Opened
from maild.remote.imap.parse import Data, Event, FetchData, Numbered, Untagged, Vanished, number
from maild.remote.imap.session import Command, ImapSession, ignore, quoted

SCAN_LIMIT_S = None  # a big mailbox may take minutes; silence still ends it
MOST_TOLD = 10_000_000  # messages in one mailbox
AHEAD_MESSAGES = 4  # that come along unseen: so many …
AHEAD_OCTETS = 128 << 10  # … of so many octets; what a line loses by them where they are not wanted is little
_OF_A_MAILBOX = frozenset(
    {"CLOSED", "HIGHESTMODSEQ", "MESSAGELIMIT", "NOMODSEQ", "PERMANENTFLAGS", "UIDNEXT", "UIDVALIDITY"}
)


@dataclass(slots=True)
class Findings:
    """What arrives while a mailbox is opened, or while one FETCH runs in it."""

    uidvalidity: int = 0
    uidnext: int = 0
    modseq: int = 0
    exists: int = 0
    expunges: int = 0
    truncated: bool = False
    table: ScanTable = field(default_factory=ScanTable)
    vanished: list[tuple[int, int]] = field(default_factory=list)
    bodies: list[FetchData] = field(default_factory=list)  # messages that came along
    flags: list[str] = field(default_factory=list)
    permanent: list[str] | None = None

    def take(self, event: Event) -> None:
        match event:
            case FetchData(uid=uid, flags=flags) if uid is not None and flags is not None:
                self.table.add(uid, flags, max(event.size or 0, 0))
                if len(self.table) > MOST_TOLD:
                    raise ProtocolViolation("the server tells of messages without end")
                if b"" in event.sections and len(self.bodies) < AHEAD_MESSAGES:
                    self.bodies.append(event)
            case Vanished(earlier=True, ranges=ranges):  # the others are of now: the next pass hears of them again
                self.vanished.extend(ranges)
            case Vanished():
                self.expunges += 1
            case Numbered(number=n, name="EXISTS"):
                self.exists = n
            case Numbered(name="EXPUNGE"):
                self.expunges += 1
            case Data(name="FLAGS", tokens=[list() as words, *_]):
                self.flags = [w.decode("utf-8", "replace") for w in words if isinstance(w, bytes)]
            case Untagged(code=code, argument=argument):
                self._take_code(code, argument)
            case _:
                pass

    def _forget(self) -> None:
        """All of it was of the mailbox that was open before (RFC 7162 §3.2.11, CLOSED)."""
        self.uidvalidity = self.uidnext = self.modseq = self.exists = self.expunges = 0
        self.truncated, self.table, self.vanished, self.bodies = False, ScanTable(), [], []
        self.flags, self.permanent = [], None

    def _take_code(self, code: str, argument: bytes) -> None:
        match code:
            case "UIDVALIDITY":
                self.uidvalidity = max(number(argument), 0)
            case "UIDNEXT":
                self.uidnext = max(number(argument), 0)
            case "HIGHESTMODSEQ":
                self.modseq = max(number(argument), 0)
            case "NOMODSEQ":
                self.modseq = 0
            case "PERMANENTFLAGS":
                self.permanent = argument.decode("utf-8", "replace").strip("() ").split()
            case "CLOSED":
                self._forget()
            case "MESSAGELIMIT":  # RFC 9738: the rest exists, it was just not told
                self.truncated = True
            case _:
                pass

    def permitted(self) -> Permitted:
        """Without PERMANENTFLAGS all that FLAGS lists (RFC 9051 §7.1), and no keyword that nobody has used yet."""
        words = self.flags if self.permanent is None else self.permanent
        return Permitted(canonical_flags(words), new_keywords="\\*" in words)


Fetches = Sequence[tuple[str, ...]]  # what UID FETCH is to get: the set, the items, a modifier
_AHEAD_ITEMS = f"(UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[]<0.{AHEAD_OCTETS}>)"


class Opening:
    """A mailbox on its way to be open: SELECT or EXAMINE, with UNSELECT before and UID FETCHes behind it, in one write.

    All of it is sent when this is made; `finish` waits for it. What the opening tells is in `found`, what the fetches
    tell in `told`, in the order in which it came: Dovecot tells of two at once in no order.

    It may be sent behind commands that are not about a mailbox. Of a server that answers those and these at once, which
    it may (RFC 9051 §5.5), answers are taken for those of the older command: then `finish` asks for everything again.

    With `ahead_from` messages from that UID on come along, a few, each cut to `AHEAD_OCTETS`, in `told.bodies`.
    """

    def __init__(
        self,
        session: ImapSession,
        wire: str,
        name: MailboxName,
        *,
        read_only: bool,
        parameter: str = "",
        fetches: Fetches = (),
        ahead_from: int = 0,
    ) -> None:
        self.found = Findings()
        self.told = Findings()
        self._is_spoiled = False
        self._session = session
        self._wire = wire
        self._name = name
        self._read_only = read_only
        self._asked = parameter, fetches
        session.overhear(self._overhear)
        is_left = session.is_selected() and session.has("UNSELECT")
        self._leave = session.launch("UNSELECT", collect=ignore) if is_left else None
        session.set_selected(session.is_selected() and not is_left)
        verb = "EXAMINE" if read_only else "SELECT"
        self._command = session.launch(verb, quoted(wire) + parameter, collect=self.found.take)
        if fetches:
            session.set_selected(True)
        self._fetches = [self._launch_fetch(*fetch) for fetch in fetches]
        some = f"{ahead_from}:{ahead_from + AHEAD_MESSAGES - 1}"
        self._ahead = [self._launch_fetch(some, _AHEAD_ITEMS)] if ahead_from else []

    def _launch_fetch(self, *words: str) -> Command:
        return self._session.launch("FETCH", *words, prefix="UID", collect=self.told.take)

    def _overhear(self, event: Event) -> None:
        match event:
            case FetchData() | Vanished() | Numbered() | Data(name="FLAGS"):
                self._is_spoiled = True
            case Untagged(code=code):
                self._is_spoiled |= code in _OF_A_MAILBOX
            case _:
                pass

    async def finish(self) -> Opening:
        """The opening that counts, once all is told: this one or another. Raises Rejected, and then nothing is open."""
        await self._finish()
        if not self._is_spoiled:
            return self
        parameter, fetches = self._asked
        again = Opening(
            self._session, self._wire, self._name, read_only=self._read_only, parameter=parameter, fetches=fetches
        )
        await again._finish()
        return again

    async def _finish(self) -> None:
        session, found = self._session, self.found
        if self._leave is not None:
            await finish_anyhow(session, self._leave)
        try:
            reply = await session.finish(self._command, SCAN_LIMIT_S)
        except Rejected as exc:
            session.set_selected(False)
            for fetch in (*self._fetches, *self._ahead):
                await finish_anyhow(session, fetch)
            raise Rejected(f"mailbox {self._name} cannot be opened: {exc.text}", code=exc.code) from exc
        session.set_selected(True)
        found.truncated |= reply.tagged.code == "MESSAGELIMIT"
        await self._finish_fetches()
        if self._is_spoiled:
            return
        if found.uidvalidity <= 0:
            text = f"mailbox {self._name}: the server gives no UIDVALIDITY, so messages cannot be told apart"
            raise Rejected(text)
        permitted = None if self._read_only or reply.tagged.code == "READ-ONLY" else found.permitted()
        epoch = Epoch(str(found.uidvalidity))
        session.set_opened(Opened(self._wire, epoch, self._read_only, permitted, found.uidnext))

    async def _finish_fetches(self) -> None:
        refusal: Rejected | None = None
        for fetch in self._fetches:
            try:
                reply = await self._session.finish(fetch, SCAN_LIMIT_S)
                self.told.truncated |= reply.tagged.code == "MESSAGELIMIT"
            except Rejected as exc:
                refusal = refusal or exc
        for ahead in self._ahead:
            await finish_anyhow(self._session, ahead)
        if refusal is not None and self.found.exists:  # n:* in an empty mailbox is an error for some servers
            raise refusal


async def leave_mailbox(session: ImapSession) -> None:
    """Have no mailbox open, without expunging anything (CLOSE would)."""
    if not session.is_selected():
        return
    if session.has("UNSELECT"):
        await finish_anyhow(session, session.launch("UNSELECT", collect=ignore))
        session.set_selected(False)
    else:
        await finish_anyhow(session, session.launch("EXAMINE", quoted("INBOX"), collect=ignore))
        session.set_selected(True)


async def leave_ahead(session: ImapSession) -> Command | None:
    """Have no mailbox open, or at least an up-to-date one, for what is sent next; for `finish_anyhow` to wait for.

    A NOOP is waited for here: Dovecot answers what is sent behind it before it.
    """
    if not session.is_selected():
        return None
    if session.has("UNSELECT"):
        command = session.launch("UNSELECT", collect=ignore)
        session.set_selected(False)
        return command
    await finish_anyhow(session, session.launch("NOOP", collect=ignore))
    return None


async def finish_anyhow(session: ImapSession, command: Command) -> None:
    """Wait for a command whose refusal does not matter."""
    try:
        await session.finish(command, SCAN_LIMIT_S)
    except Rejected:
        return
