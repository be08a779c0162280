"""Adding messages to a mailbox: APPEND, several ahead of their answers, never half a command.

What is kept by this file:
- at most `AHEAD_OCTETS` and one big message are sent and unanswered; a message above `SMALL_OCTETS` is read and sent in
  pieces, no faster than the line takes them, and never stands in memory;
- literals are non-synchronizing where the server allows it (LITERAL+, LITERAL-: RFC 7888), else each waits for its `+`;
  a very big one always does, so that a full mailbox is told of before it is sent;
- what cannot be sent is refused here: no octets at all (RFC 3502 §6.3.11), NUL without BINARY (RFC 9051 §4.3), more
  than APPENDLIMIT (RFC 7889);
- small messages go together in one command where the server can (MULTIAPPEND, RFC 3502); if that is refused, each goes
  alone, so that a refusal concerns only one;
- a size that turns out wrong after the literal was announced ends the connection: there is no other way out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

import structlog
from anyio import to_thread

from maild.core.errors import LocalError, MaildError, Rejected
from maild.core.identity import header_facts
from maild.core.model import Appended, Facts, Outgoing, Permitted, Uid
from maild.remote.imap.answers import Opened
from maild.remote.imap.change import sendable
from maild.remote.imap.dates import date_time
from maild.remote.imap.facts import facts_of
from maild.remote.imap.opening import finish_anyhow
from maild.remote.imap.parse import Data, Tagged, number, uid_ranges
from maild.remote.imap.session import Command, ImapSession, ignore, quoted
from maild.remote.imap.sets import ANSWER_LIMIT_S

SMALL_OCTETS = 64 << 10
RUN_OCTETS = 1 << 20  # of small messages read, and sent by one MULTIAPPEND
RUN_MESSAGES = 256
AHEAD_OCTETS = 4 << 20
AHEAD_COMMANDS = 64
LITERAL_MINUS_OCTETS = 4096  # RFC 7888 §5
LOOK_UP_MESSAGES = 200  # accepted without a UID, before it is looked for

log = structlog.get_logger()
_FULL = ("quota", "no space", "disk full", "mailbox full", "mailbox is full", "out of storage")


@dataclass(frozen=True, slots=True)
class _Content:
    """A message read as far as it must be before it is sent: all of a small one."""

    message: Outgoing
    raw: bytes | None
    facts: tuple[bytes, bytes]
    has_nul: bool


@dataclass(frozen=True, slots=True)
class _Sent:
    """One APPEND without an answer yet."""

    command: Command
    contents: Sequence[_Content]
    octets: int


async def append(
    session: ImapSession, opened: Opened, permitted: Permitted, messages: Iterator[Outgoing]
) -> AsyncGenerator[Appended]:
    """Each message's answer, as soon as there is one; an error is raised after all the answers that came."""
    sender = _Sender(session, opened, permitted, await _limit_octets(session, opened.wire))
    failure: MaildError | None = None
    try:
        for run in _runs(messages):
            await sender.send(run)
            for answer in sender.answers():
                yield answer
    except MaildError as exc:
        failure = exc
    try:
        await sender.settle_all()
    except MaildError as exc:
        failure = failure or exc
        await sender.settle_known()
    for answer in sender.answers():
        yield answer
    if failure is not None:
        raise failure


def _runs(messages: Iterator[Outgoing]) -> Iterator[list[Outgoing]]:
    """Small messages together, a big one alone."""
    run: list[Outgoing] = []
    octets = 0
    for message in messages:
        is_small = message.size_octets <= SMALL_OCTETS
        if run and (not is_small or octets + message.size_octets > RUN_OCTETS or len(run) >= RUN_MESSAGES):
            yield run
            run, octets = [], 0
        if not is_small:
            yield [message]
            continue
        run.append(message)
        octets += message.size_octets
    if run:
        yield run


async def _limit_octets(session: ImapSession, wire: str) -> int | None:
    """APPENDLIMIT for all mailboxes, or asked of this one (RFC 7889 §2, §3.1); None without a limit."""
    for capability in session.protocol.capabilities:
        if capability.startswith("APPENDLIMIT="):
            return limit if (limit := number(capability.partition("=")[2].encode())) >= 0 else None
    if not session.has("APPENDLIMIT"):
        return None
    try:
        reply = await session.run("STATUS", quoted(wire), "(APPENDLIMIT)")
    except Rejected:
        return None
    limits = [number(value) for data in reply.data("STATUS") for value in _values(data, b"APPENDLIMIT")]
    return next((limit for limit in limits if limit >= 0), None)


def _values(data: Data, name: bytes) -> Iterator[bytes]:
    items = data.tokens[1] if len(data.tokens) > 1 else None
    if isinstance(items, list):
        for key, value in zip(items[::2], items[1::2], strict=False):
            if isinstance(key, bytes) and isinstance(value, bytes) and key.upper() == name:
                yield value


class _Sender:
    """The APPENDs of one mailbox on one session."""

    def __init__(self, session: ImapSession, opened: Opened, permitted: Permitted, limit_octets: int | None) -> None:
        self._session = session
        self._opened = opened
        self._permitted = permitted
        self._limit_octets = limit_octets
        self._has_plus = session.has("LITERAL+")
        self._has_minus = self._has_plus or session.has("LITERAL-") or session.has("IMAP4REV2")
        self._has_several = session.has("MULTIAPPEND") and self._has_plus
        self._looks_up = not session.has("UIDPLUS")
        self._running: deque[_Sent] = deque()
        self._ahead_octets = 0
        self._alone: deque[_Content] = deque()  # refused together, to be sent one by one
        self._unknown: list[_Content] = []  # accepted, without a UID yet
        self._told_uids: set[int] = set()
        self._answers: list[Appended] = []

    def answers(self) -> list[Appended]:
        """Those that came since it was asked last."""
        answers, self._answers = self._answers, []
        return answers

    async def send(self, run: list[Outgoing]) -> None:
        """Send what can be sent; returns when there is room for more. Raises LocalError for a file in trouble."""
        good = [message for message in run if self._is_sendable(message)]
        contents, failure = await to_thread.run_sync(_read, good) if good else ([], None)
        fit = [content for content in contents if self._is_literal(content)]
        if len(fit) > 1 and self._has_several and not any(content.has_nul for content in fit):
            await self._send_together(fit)
        else:
            for content in fit:
                await self._send_alone(content)
        if failure is not None:
            raise failure
        await self._send_refused()
        if len(self._unknown) >= LOOK_UP_MESSAGES:
            await self.settle_all()

    async def settle_all(self) -> None:
        """Wait for every answer, and look for the UIDs that no answer told."""
        while self._running or self._alone:
            await self._send_refused()
            while self._running:
                await self._settle()
        await self._look_up()

    async def settle_known(self) -> None:
        """Take what the server had said before the connection was lost."""
        while self._running and self._running[0].command.reply is not None:
            await self._settle()
        self._answers += [Appended(content.message.key, None) for content in self._unknown]
        self._unknown = []

    # -- what can be sent

    def _is_sendable(self, message: Outgoing) -> bool:
        limit = self._limit_octets
        if message.size_octets <= 0:
            self._refuse(message, "an empty message cannot be sent to a mail server")
        elif limit is not None and message.size_octets > limit:
            self._refuse(message, f"it has {message.size_octets} octets, and the server takes {limit} at most")
        else:
            return True
        return False

    def _is_literal(self, content: _Content) -> bool:
        if content.has_nul and not self._session.has("BINARY"):
            self._refuse(content.message, "it holds a NUL octet, which cannot be sent to this server")
            return False
        return True

    def _refuse(self, message: Outgoing, reason: str, *, is_full: bool = False) -> None:
        self._answers.append(Appended(message.key, None, reason, is_full))

    def _head(self, content: _Content) -> str:
        """Flags, date and the announcement of the literal."""
        message = content.message
        flags = " ".join(sendable(self._permitted.of(message.flags)))
        octets = message.size_octets
        at_once = (self._has_plus and octets <= AHEAD_OCTETS) or (self._has_minus and octets <= LITERAL_MINUS_OCTETS)
        parts = [f"({flags})" if flags else "", date_time(message.date_s)]
        form = "~" if content.has_nul else ""  # literal8, RFC 3516 §4.4
        parts.append(f"{form}{{{octets}{'+' if at_once else ''}}}")
        return " ".join(part for part in parts if part)

    # -- sending

    async def _send_together(self, contents: list[_Content]) -> None:
        heads = [self._head(content).encode("ascii") for content in contents]
        pieces = [contents[0].raw or b""]
        for head, content in zip(heads[1:], contents[1:], strict=True):
            pieces += [b" ", head, b"\r\n", content.raw or b""]
        octets = sum(content.message.size_octets for content in contents)
        await self._make_room(octets)
        literal = b"".join([*pieces, b"\r\n"])
        command = self._session.launch_with(literal, "APPEND", quoted(self._opened.wire), heads[0].decode("ascii"))
        self._note(command, contents, octets)
        await self._session.room()

    async def _send_alone(self, content: _Content) -> None:
        session, octets = self._session, content.message.size_octets
        await self._make_room(octets)
        head = self._head(content)
        arguments = (quoted(self._opened.wire), head)
        if content.raw is not None and head.endswith("+}"):
            self._note(session.launch_with(content.raw + b"\r\n", "APPEND", *arguments), [content], octets)
            await session.room()
            return
        if head.endswith("+}"):
            command = session.launch("APPEND", *arguments, collect=ignore)
        else:
            command = await session.launch_asking(ANSWER_LIMIT_S, "APPEND", *arguments)
        self._note(command, [content], octets)
        if not command.done:
            await self._send_pieces(content)

    async def _send_pieces(self, content: _Content) -> None:
        """The octets that were announced, and the end of the command; anything else ends the connection."""
        session, left = self._session, content.message.size_octets
        if content.raw is not None:
            await session.feed(content.raw + b"\r\n")
            return
        pieces = content.message.pieces()
        try:
            while (piece := await to_thread.run_sync(next, pieces, None)) is not None:
                left -= len(piece)
                if left < 0:
                    break
                await session.feed(piece)
            if left:
                raise _changed(content.message)
            await session.feed(b"\r\n")
        except BaseException:
            session.drop()
            raise

    def _note(self, command: Command, contents: list[_Content], octets: int) -> None:
        self._running.append(_Sent(command, contents, octets))
        self._ahead_octets += octets

    async def _make_room(self, octets: int) -> None:
        while self._running and (self._ahead_octets + octets > AHEAD_OCTETS or len(self._running) >= AHEAD_COMMANDS):
            await self._settle()
        while self._running and self._running[0].command.done:
            await self._settle()

    async def _send_refused(self) -> None:
        while self._alone:
            await self._send_alone(self._alone.popleft())

    # -- answers

    async def _settle(self) -> None:
        """Wait for the oldest answer."""
        sent = self._running.popleft()
        self._ahead_octets -= sent.octets
        try:
            reply = await self._session.finish(sent.command, ANSWER_LIMIT_S)
        except Rejected as exc:
            self._take_refusal(sent, exc)
        else:
            self._take(sent, reply.tagged)

    def _take_refusal(self, sent: _Sent, refusal: Rejected) -> None:
        if len(sent.contents) > 1:
            self._has_several = False
            self._alone.extend(sent.contents)
            return
        is_full = refusal.code == "OVERQUOTA" or any(word in refusal.text.lower() for word in _FULL)
        self._refuse(sent.contents[0].message, refusal.text, is_full=is_full)

    def _take(self, sent: _Sent, tagged: Tagged) -> None:
        uids = _append_uids(tagged, self._opened)
        if len(uids) == len(sent.contents) and self._told_uids.isdisjoint(uids):
            self._told_uids.update(uids)
            for content, uid in zip(sent.contents, uids, strict=True):
                self._answers.append(Appended(content.message.key, Uid(str(uid))))
        elif self._looks_up:
            self._unknown += sent.contents
        else:
            self._answers += [Appended(content.message.key, None) for content in sent.contents]

    async def _look_up(self) -> None:
        """Find what came since the mailbox was opened and is, without a doubt, one of ours."""
        if not (unknown := self._unknown):
            return
        found: dict[Facts, list[Uid]] = {}
        if (first := self._opened.next_uid) > 0:
            await finish_anyhow(
                self._session, self._session.launch("NOOP", collect=ignore)
            )  # some tell of new ones only now
            for uid, facts in (await facts_of(self._session, [f"{first}:*"], first.__le__)).items():
                found.setdefault(facts, []).append(uid)
                self._opened.next_uid = max(self._opened.next_uid, int(uid) + 1)
        self._unknown = []
        wanted = [Facts(content.message.size_octets, *content.facts) for content in unknown]
        for content, facts in zip(unknown, wanted, strict=True):
            same = found.get(facts, [])
            is_certain = len(same) == 1 and wanted.count(facts) == 1 and facts.message_id
            self._answers.append(Appended(content.message.key, same[0] if is_certain else None))


def _read(messages: list[Outgoing]) -> tuple[list[_Content], LocalError | None]:
    """In a worker thread: what is to be known of each before it is sent, up to the first file in trouble."""
    contents: list[_Content] = []
    for message in messages:
        try:
            contents.append(_content(message))
        except LocalError as exc:
            return contents, exc
    return contents, None


def _content(message: Outgoing) -> _Content:
    kept: list[bytes] | None = [] if message.size_octets <= SMALL_OCTETS else None
    first, octets, has_nul = b"", 0, False
    for piece in message.pieces():
        first = first or piece
        octets += len(piece)
        has_nul = has_nul or b"\0" in piece
        if octets > message.size_octets:
            break
        if kept is not None:
            kept.append(piece)
    if octets != message.size_octets:
        raise _changed(message)
    return _Content(message, None if kept is None else b"".join(kept), header_facts(first), has_nul)


def _changed(message: Outgoing) -> LocalError:
    text = f"message {message.key} no longer has the {message.size_octets} octets that it had"
    return LocalError(text, "it is tried again")


def _append_uids(tagged: Tagged, opened: Opened) -> list[int]:
    """The UIDs that APPENDUID tells of this very mailbox (RFC 4315 §3), in the order of the messages.

    None of them where one was there before, or is told twice: that would be another message.
    """
    words = tagged.argument.decode("ascii", "replace").split()
    if tagged.code != "APPENDUID" or len(words) != 2 or words[0] != opened.epoch:
        return []
    ranges = list(uid_ranges(words[1].encode()))
    if sum(high - low + 1 for low, high in ranges) > RUN_MESSAGES:
        return []
    uids = [n for low, high in ranges for n in range(low, high + 1)]
    return uids if len(set(uids)) == len(uids) and min(uids, default=0) >= max(opened.next_uid, 1) else []
