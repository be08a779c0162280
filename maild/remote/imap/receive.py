"""What arrives on one connection: octets become events, and each goes to the command that it belongs to.

What is kept by this file:
- an untagged response belongs to the oldest command that waits (RFC 9051 §5.5);
- a BYE, garbage, or an answer that nobody asked for is raised as one of our errors, and ends the connection;
- octets after the answer to STARTTLS are an attack, and nothing is read between it and the handshake;
- after the answer to COMPRESS the very next octet is compressed (RFC 4978 §3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Set
from functools import lru_cache
from typing import Any

import structlog

from maild.core.errors import MaildError, ProtocolViolation, TlsFailed
from maild.remote.imap.answers import Opened, goodbye, refused_starttls
from maild.remote.imap.line import Line
from maild.remote.imap.parse import (
    Continuation,
    Data,
    Event,
    Ignored,
    Limits,
    Parser,
    Tagged,
    Untagged,
    printable,
)

REPLY_OCTETS = 64 << 20  # what is kept for one command that has no `collect`
REPLY_EVENTS = 200_000

_IN_DOUBT = frozenset({"CLOSED", "UIDVALIDITY"})  # said of an open mailbox, it is no longer the one that was opened

log = structlog.get_logger()
Collect = Callable[[Event], None]


class Waiting:
    """The receiving half of a command: what is told while it is the oldest, and how it ends."""

    name: str
    tag: str

    def __init__(self, collect: Collect | None = None) -> None:
        self.collect = collect
        self.events: list[Event] = []
        self.reply: Tagged | None = None
        self.failure: MaildError | None = None
        self.on_continuation: Callable[[bytes], bytes] | None = None
        self.overheard: Collect | None = None  # gets a copy of every untagged response
        self.needs_go_ahead = False  # its literal may not be sent yet (RFC 9051 §4.3)
        self.progress = asyncio.Event()
        self.sent_at_octets = 0  # what the connection had received by then

    @property
    def done(self) -> bool:
        return self.reply is not None or self.failure is not None

    def take(self, event: Event) -> None:
        if self.overheard is not None:
            self.overheard(event)
        if self.collect is not None:
            self.collect(event)
        elif len(self.events) < REPLY_EVENTS:
            self.events.append(event)
        else:
            raise ProtocolViolation(f"the server answers {self.name} without end")

    def end(self, reply: Tagged | None, failure: MaildError | None = None) -> None:
        self.reply, self.failure = reply, failure
        self.progress.set()


class Receiver:
    """See the module. Every method that takes what arrived raises what must end the connection."""

    def __init__(self, server: str, limits: Limits, line: Line) -> None:
        self.server = server
        self.limits = limits
        self.parser = Parser(limits)
        self.greeting: asyncio.Future[Untagged] = asyncio.get_running_loop().create_future()
        self.capabilities: Set[str] = frozenset()
        self.waiting: dict[str, Waiting] = {}  # by tag, the oldest first
        self.opened: Opened | None = None  # the mailbox that is open, None also where that is in doubt
        self.is_private = False  # TLS is up, or the user said that plain text will do
        self.turning: Waiting | None = None  # STARTTLS or COMPRESS: what follows its answer is of another kind
        self.on_unasked: Collect = lambda _: None  # gets what is told while no command waits
        self._line = line

    def forget(self) -> None:
        """What was said so far was said by anybody."""
        self.parser = Parser(self.limits)
        self.capabilities = frozenset()
        self.turning = None

    def end(self, failure: MaildError) -> None:
        """Nothing more will come: everybody who waits hears why."""
        self.opened = None
        waiting = list(self.waiting.values())
        self.waiting.clear()
        for command in waiting:
            command.end(None, failure)
        if not self.greeting.done():
            self.greeting.set_exception(failure)
            self.greeting.exception()  # looked at: it may have no waiter any more

    def take(self, octets: bytes | bytearray | memoryview, length: int) -> None:
        """The first `length` of these have arrived."""
        if self.turning is None:
            self._feed(octets, length)
        else:
            self._take_lines(bytes(octets[:length]), self.turning)

    def _feed(self, octets: bytes | bytearray | memoryview, length: int) -> None:
        for event in self.parser.feed(octets, length):
            self._take(event)
        if self.parser.violation is not None:
            raise self.parser.violation

    # -- events

    def _take(self, event: Event) -> None:
        if isinstance(event, Tagged):
            self._end_command(event)
        elif not self.greeting.done():
            self._greet(event)
        elif isinstance(event, Continuation):
            self._answer(event)
        elif isinstance(event, Ignored):
            log.debug("server.corrected", host=self.server, reason="a line that is not IMAP was ignored")
        else:
            self._take_untagged(event)

    def oldest(self) -> Waiting | None:
        """The command that untagged responses and continuations belong to."""
        return next(iter(self.waiting.values()), None)

    def _take_untagged(self, event: Event) -> None:
        oldest = self.oldest()
        if isinstance(event, Untagged):
            if event.status == "BYE" and not (oldest is not None and oldest.name == "LOGOUT"):
                raise goodbye(self.server, event)
            if event.code in _IN_DOUBT:
                self.opened = None
            if event.code == "ALERT" and self.is_private:
                log.warning("server.alerted", host=self.server, reason=event.text)
        elif isinstance(event, Data) and event.name == "CAPABILITY":
            self._learn(event.tokens)
        if oldest is not None:
            if oldest.collect is None and self._line.received_octets - oldest.sent_at_octets > REPLY_OCTETS:
                raise ProtocolViolation(f"{self.server} answers {oldest.name} without end")
            oldest.take(event)
        else:
            self.on_unasked(event)

    def _greet(self, event: Event) -> None:
        if not isinstance(event, Untagged) or event.status not in {"OK", "PREAUTH", "BYE"}:
            raise ProtocolViolation(f"{self.server} does not greet as an IMAP server does", "check host and port")
        if event.status == "BYE":
            raise goodbye(self.server, event)
        self._learn_code(event)
        self.greeting.set_result(event)

    def _answer(self, event: Continuation) -> None:
        oldest = self.oldest()
        if oldest is not None and oldest is self.turning and oldest.name == "STARTTLS":
            raise refused_starttls(self.server, printable(b"+ " + event.text))
        if (waiting := next((c for c in self.waiting.values() if c.needs_go_ahead), None)) is not None:
            waiting.needs_go_ahead = False
            waiting.progress.set()
            return
        if oldest is None or oldest.on_continuation is None:
            log.debug("server.corrected", host=self.server, reason="a continuation that nobody asked for was ignored")
            return
        self._line.write(oldest.on_continuation(event.text) + b"\r\n")

    def _end_command(self, event: Tagged) -> None:
        command = self.waiting.pop(event.tag, None) or self.waiting.pop(event.tag.upper(), None)
        if command is None:
            raise ProtocolViolation(
                f"{self.server} answered a command that was not sent ({printable(event.tag.encode())})"
            )
        if event.status == "OK" and command.name != "STARTTLS":
            self._learn_code(event)
        command.end(event)

    def _learn_code(self, event: Tagged | Untagged) -> None:
        """Take the capabilities from a response code `[CAPABILITY …]`, if it is one."""
        if event.code == "CAPABILITY":
            self._learn(event.argument.split())

    def _learn(self, words: Iterable[Any]) -> None:
        told = frozenset(w.decode("ascii", "replace").upper() for w in words if isinstance(w, bytes))
        self.capabilities = _one_for_all(told)

    # -- turning: STARTTLS, COMPRESS

    def _take_lines(self, octets: bytes, turning: Waiting) -> None:
        """Line by line up to the answer to `turning`; what follows it is not what it was before."""
        start = 0
        while start < len(octets) and not turning.done:
            end = octets.find(b"\n", start) + 1 or len(octets)
            self._feed(octets[start:end], end - start)
            start = end
        if turning.done:
            self._turn(turning, octets[start:])

    def _turn(self, turning: Waiting, rest: bytes) -> None:
        if turning.name == "STARTTLS":
            if rest:
                raise TlsFailed(
                    f"{self.server} sent more in plain text after agreeing to STARTTLS",
                    "somebody on the network may be tampering with the connection; nothing secret was sent",
                )
            self._line.stop()  # until the handshake
            return
        self.turning = None
        if turning.reply is not None and turning.reply.status == "OK":
            self._line.compress()
            self._line.received(rest, len(rest))
        else:
            self._feed(rest, len(rest))


@lru_cache(maxsize=64)
def _one_for_all(capabilities: frozenset[str]) -> frozenset[str]:
    """The same object for sessions that are offered the same: some KiB that a thousand of them need once."""
    return capabilities
