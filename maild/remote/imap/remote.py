"""The port for IMAP: an account's mailboxes over a few sessions.

Set-up to the first FETCH, in round trips: TCP, greeting, log in, (ID, ENABLE, NAMESPACE, LIST in one write), and
EXAMINE with the FETCH of flags and sizes right behind it.

A cursor is JSON: `v` UIDVALIDITY, `n` UIDNEXT, `m` HIGHESTMODSEQ (0 where the server has none), `e` the message count.
How a mailbox is scanned: QRESYNC where it works, else CONDSTORE, with a full comparison only if the counts say that
something was expunged, else everything (RFC 7162). All three give the same result.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import anyio
import structlog

from maild import __version__
from maild.config import Imap
from maild.core.errors import AuthRejected, ConnectionLost, ProtocolViolation, Rejected, RemoteError, Unavailable
from maild.core.identity import header_facts
from maild.core.model import (
    NO_FLAGS,
    Body,
    Cursor,
    Epoch,
    Facts,
    Fetched,
    Listing,
    MailboxName,
    RemoteMailbox,
    Scan,
    ScanTable,
    Uid,
)
from maild.core.names import decode_mutf7, matches
from maild.core.ports import OpenBody, RemoteBox
from maild.remote.auth import read_secret
from maild.remote.imap.parse import (
    Data,
    Event,
    FetchData,
    Numbered,
    Token,
    Untagged,
    Vanished,
    number,
    printable,
    uid_set,
)
from maild.remote.imap.session import Command, ImapSession, quoted

FACTS_MESSAGES = 1000  # headers asked for by one UID FETCH
VANISHED_MOST = 200_000  # beyond it, comparing everything is cheaper than believing the ranges
SET_OCTETS = 4000  # a command line stays far below the 8,192 octets of RFC 7162 §4
SCAN_LIMIT_S = None  # a big mailbox may take minutes; silence still ends it
MOST_TOLD = 10_000_000  # messages in one mailbox
MOST_UID = 1 << 64
BODY_ITEMS = "(UID FLAGS INTERNALDATE BODY.PEEK[])"
IDENTITY_FIELDS = "BODY.PEEK[HEADER.FIELDS (MESSAGE-ID DATE)]"

log = structlog.get_logger()
_ROLES = {r.lower(): r for r in ("\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash")}
_UNSELECTABLE = frozenset({"\\noselect", "\\nonexistent"})
_DATE = re.compile(rb" ?(\d{1,2})-([A-Za-z]{3})-(\d{4}) (\d\d):(\d\d):(\d\d) ([+-]\d{4})\Z")
_MONTH_NAMES = b"jan feb mar apr may jun jul aug sep oct nov dec"
_MONTHS = {name: n for n, name in enumerate(_MONTH_NAMES.split(), 1)}


@dataclass(frozen=True, slots=True)
class _Mailbox:
    """A mailbox as the server writes it (`wire`, unquoted modified UTF-7) and as everybody else sees it."""

    wire: str
    public: RemoteMailbox


class ImapRemote:
    """One account over at most `connections` sessions. The first is opened by whoever asks first."""

    def __init__(self, endpoint: Imap, account: str) -> None:
        self._endpoint = endpoint
        self._account = account
        self._limit = endpoint.connections
        self._open = 0
        self._free: list[ImapSession] = []
        self._returned = anyio.Condition()
        self._mailboxes: dict[MailboxName, _Mailbox] = {}
        self._password: str | None = None
        self._refusal: AuthRejected | None = None  # once refused, nothing is tried again with this object
        self._first = anyio.Lock()  # the secret is read, and refused, once and not by several at a time

    # -- sessions

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[ImapSession]:
        session = await self._borrow()
        try:
            yield session
        finally:
            with anyio.CancelScope(shield=True):
                await self._give_back(session)

    async def _borrow(self) -> ImapSession:
        while True:
            async with self._returned:
                while not self._free and self._open >= self._limit:
                    await self._returned.wait()
                if self._free:
                    session = self._free.pop()
                    if not session.is_lost:
                        return session
                    self._open -= 1
                    continue
                self._open += 1
            try:
                return await self._connect()
            except BaseException as exc:
                async with self._returned:
                    self._open -= 1
                    if isinstance(exc, Unavailable | ConnectionLost) and self._open:
                        self._limit = self._open  # the server allows no more, said or unsaid: share what there is
                        self._returned.notify_all()
                        continue
                    self._returned.notify_all()
                raise

    async def _give_back(self, session: ImapSession) -> None:
        async with self._returned:
            if session.is_busy:
                session.drop()  # answers are still owed: whoever had it next would get them
            if session.is_lost:
                self._open -= 1
            else:
                self._free.append(session)
            self._returned.notify()

    async def _connect(self) -> ImapSession:
        endpoint = self._endpoint
        session = await ImapSession.connect(endpoint, endpoint.max_message_size_octets * 3 // 2 + (1 << 20))
        try:
            await self._login(session)
            await self._introduce(session)
        except BaseException:
            session.drop()
            raise
        log.debug("session.opened", account=self._account, host=endpoint.host, port=endpoint.port, user=endpoint.user)
        return session

    async def _login(self, session: ImapSession) -> None:
        """Log in; a refused secret is read once more, and tried again only if it has changed."""
        async with self._first:
            if self._refusal is not None:
                raise self._refusal
            if self._password is None:
                await self._first_login(session)
                return
        await session.login(self._endpoint.user, self._password)

    async def _first_login(self, session: ImapSession) -> None:
        password = await read_secret(self._endpoint.secret, self._account)
        try:
            await session.login(self._endpoint.user, password)
        except AuthRejected as exc:
            self._refusal = exc
            log.warning("login.rejected", account=self._account, host=self._endpoint.host, reason=exc.text)
            again = await read_secret(self._endpoint.secret, self._account)
            if again == password or session.is_lost:
                raise
            await session.login(self._endpoint.user, again)
            password, self._refusal = again, None
        self._password = password

    async def _introduce(self, session: ImapSession) -> None:
        """ID (NetEase refuses SELECT without it) and ENABLE, in one write with whatever is sent next."""
        sent: list[Command] = []
        if session.has("ID"):
            name = f'("name" "maild" "version" {quoted(__version__)})'
            sent.append(session.launch("ID", name))
        if session.has("ENABLE") and session.has("QRESYNC"):
            sent.append(session.launch("ENABLE", "QRESYNC"))
            session.enabled = frozenset({"QRESYNC", "CONDSTORE"})
        for command in sent:
            command.collect = _ignore

    # -- the port

    async def listing(self) -> Listing:
        async with self._session() as session:
            namespaces = session.launch("NAMESPACE") if session.has("NAMESPACE") else None
            events = await _list_mailboxes(session)
            foreign = await _foreign_prefixes(session, namespaces) if namespaces is not None else ()
            found, unusable = self._understood(events, foreign)
            marks = _marks(events, session)
            if session.has("CONDSTORE") and not session.has("LIST-STATUS"):
                marks = await _ask_marks(session, found)
            self._mailboxes = {}
            for mailbox in found:
                mark, messages = marks.get(mailbox.wire, (None, None))
                p = mailbox.public
                public = RemoteMailbox(p.name, p.levels, p.role, mark, messages)
                self._mailboxes[p.name] = _Mailbox(mailbox.wire, public)
            return Listing(tuple(m.public for m in self._mailboxes.values()), unusable)

    def _understood(self, events: list[Event], foreign: tuple[str, ...]) -> tuple[list[_Mailbox], dict[str, str]]:
        found: dict[str, _Mailbox] = {}
        unusable: dict[str, str] = {}
        for event in events:
            if isinstance(event, Data) and event.name == "LIST" and (mailbox := _listed(event.tokens)) is not None:
                name = mailbox.public.name
                if not self._is_wanted(name, mailbox.wire, foreign):
                    continue
                if not _is_sendable(mailbox.wire):
                    unusable[printable(os.fsencode(mailbox.wire))] = "its name is neither UTF-8 nor modified UTF-7"
                    continue
                if found.setdefault(name, mailbox).wire != mailbox.wire:
                    unusable[mailbox.wire] = f"its name reads like that of another mailbox, {name}"
        return list(found.values()), unusable

    def _is_wanted(self, name: str, wire: str, foreign: tuple[str, ...]) -> bool:
        """Other people's and shared mailboxes only if a pattern names them: the plain `*` means one's own."""
        patterns = self._endpoint.mailboxes
        if any(wire.startswith(prefix) for prefix in foreign):
            patterns = tuple(p for p in patterns if p != "*")
        return matches(name, patterns)

    @asynccontextmanager
    async def visit(self, mailbox: MailboxName, epoch: Epoch | None = None) -> AsyncIterator[RemoteBox]:
        async with self._session() as session:
            box = _Box(session, self._mailboxes[mailbox].wire, mailbox)
            if epoch is not None:
                await box.reopen(epoch)
            yield box

    async def prepare(self) -> None:
        """Open a further session, if the limit and the server allow it; nobody needs it yet."""
        try:
            async with self._session() as session:
                await session.settled()
        except RemoteError as exc:
            log.debug("session.refused", account=self._account, host=self._endpoint.host, reason=exc.text)

    async def aclose(self) -> None:
        free, self._free = self._free, []
        for session in free:
            await session.logout()
        self._open -= len(free)


def _ignore(event: Event) -> None:
    """Takes the untagged responses of a command whose answer does not matter."""


# -- LIST


async def _list_mailboxes(session: ImapSession) -> list[Event]:
    """All LIST and STATUS responses. Falls back to the plain LIST where the extended one is refused or says nothing."""
    if session.has("LIST-EXTENDED") or session.has("LIST-STATUS") or session.has("SPECIAL-USE"):
        options = ["SPECIAL-USE"] if session.has("SPECIAL-USE") else []
        if session.has("LIST-STATUS"):
            options.append(f"STATUS ({_status_items(session)})")
        if options:
            try:
                reply = await session.run("LIST", '""', '"*"', f"RETURN ({' '.join(options)})")
            except Rejected:  # Proton Bridge
                log.debug("server.corrected", host=session.endpoint.host, reason="LIST with RETURN was refused")
            else:
                if reply.data("LIST"):  # strato answers nothing
                    return reply.events
    return (await session.run("LIST", '""', '"*"')).events


def _status_items(session: ImapSession) -> str:
    return "MESSAGES UIDNEXT UIDVALIDITY" + (" HIGHESTMODSEQ" if session.has("CONDSTORE") or _qresync(session) else "")


def _qresync(session: ImapSession) -> bool:
    return "QRESYNC" in session.enabled


async def _ask_marks(session: ImapSession, mailboxes: list[_Mailbox]) -> dict[str, tuple[str | None, int | None]]:
    """STATUS for each mailbox, a window at a time, for servers without LIST-STATUS."""
    marks: dict[str, tuple[str | None, int | None]] = {}
    for start in range(0, len(mailboxes), 64):
        window = mailboxes[start : start + 64]
        sent = [session.launch("STATUS", quoted(m.wire), f"({_status_items(session)})") for m in window]
        for command in sent:
            try:
                marks.update(_marks((await session.finish(command)).events, session))
            except Rejected as exc:
                log.debug("server.corrected", host=session.endpoint.host, reason=exc.text)
    return marks


def _marks(events: list[Event], session: ImapSession) -> dict[str, tuple[str | None, int | None]]:
    """(mark, message count) by wire name. Without mod-sequences a count proves nothing: flags may have changed."""
    marks: dict[str, tuple[str | None, int | None]] = {}
    for event in events:
        if isinstance(event, Data) and event.name == "STATUS" and len(event.tokens) >= 2:
            name, items = event.tokens[0], event.tokens[1]
            if isinstance(name, bytes) and isinstance(items, list):
                values = {
                    k.upper(): number(v) for k, v in zip(items[::2], items[1::2], strict=False) if isinstance(k, bytes)
                }
                mark = _mark(*(values.get(k, 0) for k in (b"UIDVALIDITY", b"UIDNEXT", b"HIGHESTMODSEQ", b"MESSAGES")))
                messages = values.get(b"MESSAGES", -1)
                marks[_wire_name(name)] = (mark, messages if messages >= 0 else None)
    return marks


def _mark(uidvalidity: int, uidnext: int, modseq: int, messages: int) -> str | None:
    good = uidvalidity > 0 and uidnext > 0 and modseq > 0 and messages >= 0
    return f"{uidvalidity}:{uidnext}:{modseq}:{messages}" if good else None


def _wire_name(name: bytes) -> str:
    text = name.decode("utf-8", "surrogateescape")
    return "INBOX" if text.upper() == "INBOX" else text


def _listed(tokens: list[Token]) -> _Mailbox | None:
    """One LIST response (RFC 9051 §7.3.1) as a mailbox; None for what cannot be selected."""
    if len(tokens) < 3 or not isinstance(tokens[0], list):
        return None
    attributes = {t.decode("ascii", "replace").lower() for t in tokens[0] if isinstance(t, bytes)}
    name = tokens[2] if isinstance(tokens[2], bytes) else b"NIL" if tokens[2] is None else b""
    is_cut = len(tokens) > 3 and isinstance(tokens[3], bytes) and not tokens[1]  # an unquoted name with a space
    if is_cut or not name or attributes & _UNSELECTABLE:
        return None
    wire = _wire_name(name)
    decoded = decode_mutf7(name) if wire != "INBOX" else "INBOX"
    text = wire if decoded is None else decoded
    separator = tokens[1].decode("utf-8", "surrogateescape") if isinstance(tokens[1], bytes) else ""
    levels = tuple(text.split(separator)) if separator else (text,)
    role = next((_ROLES[a] for a in sorted(attributes) if a in _ROLES), "")
    return _Mailbox(wire, RemoteMailbox(MailboxName(text), levels, role))


def _is_sendable(wire: str) -> bool:
    """Whether a mailbox name can be sent back to the server, and be written down."""
    return not any(c in "\r\n\0" or "\ud800" <= c <= "\udfff" for c in wire)


async def _foreign_prefixes(session: ImapSession, command: Command) -> tuple[str, ...]:
    """Prefixes of the namespaces that are not one's own (RFC 2342 §5: personal, other users', shared)."""
    try:
        data = (await session.finish(command)).data("NAMESPACE")
    except Rejected as exc:
        log.debug("server.corrected", host=session.endpoint.host, reason=exc.text)
        return ()
    if not data:
        return ()
    prefixes: list[str] = []
    for group in data[0].tokens[1:3]:
        for entry in group if isinstance(group, list) else []:
            if isinstance(entry, list) and entry and isinstance(entry[0], bytes) and entry[0]:
                prefixes.append(entry[0].decode("utf-8", "surrogateescape"))
    return tuple(prefixes)


# -- one mailbox


@dataclass(slots=True)
class _Findings:
    """What arrives while a mailbox is opened, or while one FETCH runs in it."""

    uidvalidity: int = 0
    uidnext: int = 0
    modseq: int = 0
    exists: int = 0
    expunges: int = 0
    truncated: bool = False
    table: ScanTable = field(default_factory=ScanTable)
    vanished: list[tuple[int, int]] = field(default_factory=list)

    def take(self, event: Event) -> None:
        match event:
            case FetchData(uid=uid, flags=flags) if uid is not None and flags is not None:
                self.table.add(uid, flags, max(event.size or 0, 0))
                if len(self.table) > MOST_TOLD:
                    raise ProtocolViolation("the server tells of messages without end")
            case Vanished(earlier=True, ranges=ranges):  # the others are of now: the next pass hears of them again
                self.vanished.extend(ranges)
            case Vanished():
                self.expunges += 1
            case Numbered(number=n, name="EXISTS"):
                self.exists = n
            case Numbered(name="EXPUNGE"):
                self.expunges += 1
            case Untagged(code=code, argument=argument):
                self._take_code(code, argument)
            case _:
                pass

    def _forget(self) -> None:
        """All of it was of the mailbox that was open before (RFC 7162 §3.2.11, CLOSED)."""
        self.uidvalidity = self.uidnext = self.modseq = self.exists = self.expunges = 0
        self.truncated, self.table, self.vanished = False, ScanTable(), []

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
            case "CLOSED":
                self._forget()
            case "MESSAGELIMIT":  # RFC 9738: the rest exists, it was just not told
                self.truncated = True
            case _:
                pass


class _Box:
    """One mailbox open on one session (read-only: EXAMINE)."""

    def __init__(self, session: ImapSession, wire: str, name: MailboxName) -> None:
        self._session = session
        self._wire = wire
        self._name = name

    async def scan(self, cursor: Cursor | None) -> Scan:
        """By QRESYNC, by CONDSTORE or all of it. Whatever is told is cut to how things were at the EXAMINE."""
        session = self._session
        known = _read_cursor(cursor)
        if known is None or not known["m"] or not (_qresync(session) or session.has("CONDSTORE")):
            return await self._scan_all()
        use_qresync = _qresync(session)
        parameter = f" (QRESYNC ({known['v']} {known['m']}))" if use_qresync else " (CONDSTORE)"
        try:
            found, _ = await self._open(parameter)
        except Rejected:
            session.enabled = frozenset()  # it advertises what it then refuses
            return await self._scan_all()
        if found.uidvalidity != known["v"] or not known["m"] <= found.modseq or found.uidnext < known["n"]:
            return await self._scan_all()
        return await self._scan_changes(found, known, use_qresync)

    async def reopen(self, epoch: Epoch) -> None:
        """Open it to fetch what another session's scan found; raises Rejected if the UIDs mean something else now."""
        found, _ = await self._open("")
        if str(found.uidvalidity) != epoch:
            raise Rejected(f"mailbox {self._name} changed its UIDVALIDITY", "the next pass makes its pairs anew")

    async def _scan_all(self) -> Scan:
        found, told = await self._open("", scan_items="(UID FLAGS RFC822.SIZE)")
        table = told.table.distinct().between(0, found.uidnext or MOST_UID)
        exists = found.exists if found.uidnext else told.exists or found.exists
        complete = not (found.truncated or told.truncated or told.expunges) and len(table) == exists
        return self._scan(found, table, full=True, complete=complete, vanished=frozenset())

    async def _scan_changes(self, found: _Findings, known: dict[str, int], has_vanished: bool) -> Scan:
        """Flags changed since the cursor, new messages with their sizes, and what was expunged."""
        session, old = self._session, known["n"]
        changed, fresh = found if has_vanished else _Findings(), _Findings()
        sent: list[Command] = []
        if not has_vanished and found.modseq != known["m"] and old > 1:
            since = f"(CHANGEDSINCE {known['m']})"
            items = "(UID FLAGS)"
            sent.append(session.launch("FETCH", f"1:{old - 1}", items, since, prefix="UID", collect=changed.take))
        if found.uidnext > old:
            items = "(UID FLAGS RFC822.SIZE)"
            sent.append(session.launch("FETCH", f"{old}:*", items, prefix="UID", collect=fresh.take))
        for command in sent:
            reply = await session.finish(command, SCAN_LIMIT_S)
            found.truncated |= reply.tagged.code == "MESSAGELIMIT"
        complete = not (found.truncated or changed.truncated or fresh.truncated)
        new = fresh.table.distinct().between(old, found.uidnext)
        table = changed.table.distinct().between(0, old)
        for uid, flags, size in new:
            table.add(uid, flags, size)
        gone = _clipped(found.vanished, old - 1)
        too_much = sum(high - low + 1 for low, high in gone) > VANISHED_MOST
        if too_much or (not has_vanished and found.exists - len(new) != known["e"]):
            return await self._scan_all()  # something was expunged, and CONDSTORE alone does not tell what
        vanished = frozenset(Uid(str(n)) for low, high in gone for n in range(low, high + 1))
        return self._scan(found, table, full=False, complete=complete, vanished=vanished)

    async def _open(self, parameter: str, scan_items: str = "") -> tuple[_Findings, _Findings]:
        """EXAMINE, with UNSELECT before and the FETCH of everything behind it in the same write.

        What the EXAMINE told, and what the FETCH told.
        """
        session = self._session
        found, told = _Findings(), _Findings()
        is_left = session.is_selected() and session.has("UNSELECT")
        leave = session.launch("UNSELECT", collect=_ignore) if is_left else None
        if leave is not None:
            session.set_selected(False)
        examine = session.launch("EXAMINE", quoted(self._wire) + parameter, collect=found.take)
        scan = None
        if scan_items:
            session.set_selected(True)
            scan = session.launch("FETCH", "1:*", scan_items, prefix="UID", collect=told.take)
        if leave is not None:
            await _finish_anyhow(session, leave)
        try:
            reply = await session.finish(examine, SCAN_LIMIT_S)
        except Rejected as exc:
            session.set_selected(False)
            if scan is not None:
                await _finish_anyhow(session, scan)
            raise Rejected(f"mailbox {self._name} cannot be opened: {exc.text}", code=exc.code) from exc
        session.set_selected(True)
        found.truncated |= reply.tagged.code == "MESSAGELIMIT"
        if scan is not None:
            await self._finish_scan(scan, found, told)
        if found.uidvalidity <= 0:
            raise Rejected(f"mailbox {self._name}: the server gives no UIDVALIDITY, so messages cannot be told apart")
        return found, told

    async def _finish_scan(self, scan: Command, found: _Findings, told: _Findings) -> None:
        try:
            reply = await self._session.finish(scan, SCAN_LIMIT_S)
            told.truncated |= reply.tagged.code == "MESSAGELIMIT"
        except Rejected:
            if found.exists:  # 1:* in an empty mailbox is an error for some servers
                raise

    def _scan(
        self, found: _Findings, table: ScanTable, *, full: bool, complete: bool, vanished: frozenset[Uid]
    ) -> Scan:
        uidnext = max(found.uidnext, table.highest + 1)
        values = {"v": found.uidvalidity, "n": uidnext, "m": found.modseq, "e": found.exists}
        mark = _mark(found.uidvalidity, uidnext, found.modseq, found.exists)
        return Scan(
            epoch=Epoch(str(found.uidvalidity)),
            items=table,
            full=full,
            complete=complete,
            vanished=vanished,
            cursor=Cursor(json.dumps(values, separators=(",", ":"))),
            mark=mark,
            messages=found.exists,
        )

    async def facts(self, uids: Sequence[Uid]) -> dict[Uid, Facts]:
        found: dict[Uid, Facts] = {}

        def take(event: Event) -> None:
            if isinstance(event, FetchData) and event.uid is not None and event.sections and event.size is not None:
                header = next(iter(event.sections.values()))
                if isinstance(header, bytes | bytearray):
                    message_id, date = header_facts(bytes(header))
                    found[Uid(str(event.uid))] = Facts(max(event.size, 0), message_id, date)

        items = f"(UID RFC822.SIZE {IDENTITY_FIELDS})"
        numbers = [int(uid) for uid in uids]
        chunks = (numbers[start : start + FACTS_MESSAGES] for start in range(0, len(numbers), FACTS_MESSAGES))
        sets = deque(uid_set(part) for chunk in chunks for part in _cut(chunk))
        running: deque[Command] = deque()
        while sets or running:
            while sets and len(running) < 8:
                running.append(self._session.launch("FETCH", sets.popleft(), items, prefix="UID", collect=take))
            await _finish_anyhow(self._session, running.popleft())  # without them the content decides
        return found

    async def fetch(self, batches: Iterator[Sequence[Uid]], open_body: OpenBody) -> AsyncIterator[list[Fetched]]:
        """A set that the server refuses is asked for again message by message: a bad one costs only itself."""
        expected: set[int] = set()
        refused: list[int] = []
        sets = (part for batch in batches for part in _cut([int(uid) for uid in batch]))
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

        async with aclosing(self._session.messages(noted(), BODY_ITEMS, open_body, refused)) as stream:
            async for several in stream:
                wanted: list[Fetched] = []
                for data in several:
                    if data.uid is not None and data.uid in expected:
                        expected.discard(data.uid)
                        wanted.append(_fetched(data.uid, data))
                if wanted:
                    yield wanted


def _fetched(uid: int, data: FetchData) -> Fetched:
    body = data.sections[b""]
    raw = body if isinstance(body, bytes | bytearray) else cast("Body", body)  # a sink is what open_body gave
    return Fetched(Uid(str(uid)), data.flags or NO_FLAGS, internal_date(data.date), raw)


async def _finish_anyhow(session: ImapSession, command: Command) -> None:
    try:
        await session.finish(command, SCAN_LIMIT_S)
    except Rejected:
        return


def _read_cursor(cursor: Cursor | None) -> dict[str, int] | None:
    if cursor is None:
        return None
    values = json.loads(cursor)
    return {key: int(values[key]) for key in "vnme"}


def _clipped(ranges: list[tuple[int, int]], top: int) -> list[tuple[int, int]]:
    """VANISHED ranges up to the highest UID ever known; servers may name UIDs to 2^32-1."""
    return [(low, min(high, top)) for low, high in ranges if low <= top]


def _cut(chunk: list[int]) -> list[list[int]]:
    """Halve a batch until its set fits into a command line."""
    if len(chunk) < 2 or len(uid_set(chunk)) <= SET_OCTETS:
        return [chunk] if chunk else []
    middle = len(chunk) // 2
    return _cut(chunk[:middle]) + _cut(chunk[middle:])


def internal_date(text: bytes | None) -> int | None:
    """INTERNALDATE (RFC 9051 §9 date-time) in seconds since 1970 UTC; None where it cannot be read."""
    match = _DATE.match(text) if text is not None else None
    if match is None:
        return None
    day, month, year, hour, minute, second, zone = match.groups()
    shift_min = int(zone[1:3]) * 60 + int(zone[3:5])
    try:
        local = datetime(
            int(year), _MONTHS[month.lower()], int(day), int(hour), int(minute), min(int(second), 59), tzinfo=UTC
        )
    except (ValueError, KeyError):
        return None
    return int(local.timestamp()) - (shift_min * 60 if zone[:1] == b"+" else -shift_min * 60)
