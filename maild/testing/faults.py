"""What a test can make a server do wrong, without subclassing it.

`server.faults.add("UID FETCH", Cut(after_octets=500), nth=2)` says: at the second UID FETCH from now, send 500 octets
of its response and close. Commands are matched by name: `"UID FETCH"` and `"FETCH"` differ, `"*"` is every command,
`"CONNECT"` is the greeting, `"DONE"` the end of an IDLE, `"TELL"` one message of NOTIFY. They are counted per rule,
over all connections or over one. Several rules may meet in one command. Offsets count the octets of that command's
response after rewriting.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from maild.testing.wire import ConnectionEnded, Wire

_LITERAL = re.compile(rb"\{(\d+)\}\r\n")


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the connection: after n octets of the response, else before or after the tagged reply.

    0 octets means: carry the command out and say nothing. An offset beyond the response cuts nothing.
    """

    after_octets: int | None = None
    before_tagged: bool = False
    reset: bool = False  # TCP reset instead of an orderly end


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait for `event` before carrying the command out, or within its response after n octets. Never set: silence."""

    event: asyncio.Event
    after_octets: int | None = None


@dataclass(frozen=True, slots=True)
class Inject:
    """Send `raw` where it does not belong, after n octets of the response; the response itself stays whole."""

    raw: bytes
    after_octets: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """Do not carry the command out; the tagged reply is `text`, such as `NO [UNAVAILABLE] later`.

    A synchronizing literal is refused by it too. At "CONNECT" the text is the greeting after `* `.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Bye:
    """Do not carry the command out; say `* BYE text` and close."""

    text: str


@dataclass(frozen=True, slots=True)
class StopReading:
    """Do not carry the command out and read nothing more, while the connection stays open."""


@dataclass(frozen=True, slots=True)
class LiteralOff:
    """Announce the first literal of each response `by` octets too long, or too short where negative."""

    by: int


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Replace each complete response (untagged with its literals, continuation, or tagged); b"" leaves it out."""

    change: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Forget:
    """An IDLE begins without telling what came before it and after the last command: a wake-up is lost."""


Action = Cut | Hold | Inject | Answer | Bye | StopReading | LiteralOff | Rewrite | Forget


@dataclass(slots=True)
class Rule:
    """One fault and when it strikes. `struck` is set the first time it does, `count` says how often it did."""

    command: str
    action: Action
    nth: int = 1
    times: int | None = 1
    connection: int | None = None
    count: int = 0
    seen: int = 0
    struck: asyncio.Event = field(default_factory=asyncio.Event)

    def strikes(self, command: str, connection: int) -> bool:
        """Count one command and say whether the fault is due at it."""
        named = self.command == command or (self.command == "*" and command not in ("CONNECT", "DONE", "TELL"))
        if not named or self.connection not in (None, connection):
            return False
        self.seen += 1
        if self.seen < self.nth or (self.times is not None and self.count >= self.times):
            return False
        self.count += 1
        self.struck.set()
        return True


class Faults:
    """The rules of one server."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []

    def add(
        self, command: str, action: Action, *, nth: int = 1, times: int | None = 1, connection: int | None = None
    ) -> Rule:
        """Strike at the n-th such command from now and at `times` of them in all (None: at every one from there).

        `connection` limits it to one connection, numbered from 1 in the order accepted.
        """
        rule = Rule(command.upper(), action, nth, times, connection)
        self.rules.append(rule)
        return rule

    def clear(self) -> None:
        """Behave again."""
        self.rules.clear()

    def due(self, command: str, connection: int) -> list[Action]:
        """The faults that strike at this command, in the order added."""
        return [rule.action for rule in self.rules if rule.strikes(command, connection)]


class Reply:
    """Everything a server answers to one command, with the faults that struck it."""

    def __init__(self, wire: Wire, actions: list[Action]) -> None:
        self._wire = wire
        self._sent = 0
        self._actions: list[Action] = []
        self._stops: list[tuple[int, Cut | Hold | Inject]] = []
        self.add(actions)

    def add(self, actions: list[Action]) -> None:
        """Let more faults strike, with offsets from here; for the DONE inside an IDLE."""
        self._actions += actions
        for action in actions:
            if isinstance(action, Cut | Hold | Inject) and action.after_octets is not None:
                self._stops.append((self._sent + action.after_octets, action))
        self._stops.sort(key=lambda stop: stop[0])

    def answer(self) -> str | None:
        """What to answer instead of carrying the command out."""
        return next((action.text for action in self._actions if isinstance(action, Answer)), None)

    def forgets(self) -> bool:
        """Whether an IDLE is to keep to itself what came before it."""
        return any(isinstance(action, Forget) for action in self._actions)

    async def begin(self, actions: list[Action] | None = None) -> None:
        """Do what comes before the command is carried out, or what `actions` that were added later ask for."""
        for action in self._actions if actions is None else actions:
            match action:
                case Hold(event, None):
                    await self._wire.flush()
                    await event.wait()
                case StopReading():
                    self._wire.stop_reading()
                    await self._wire.flush()
                    await asyncio.get_running_loop().create_future()
                case Bye(text):
                    await self._wire.write(f"* BYE {text}\r\n".encode())
                    await self._end(reset=False)

    async def send(self, response: bytes, *, tagged: bool = False) -> None:
        """Send one complete response; raises ConnectionEnded where a fault ends the connection."""
        for action in self._actions:
            if tagged and isinstance(action, Cut) and action.before_tagged:
                await self._send_in_parts(b"")  # what other faults wanted to send by now
                await self._end(action.reset)
            if isinstance(action, Rewrite):
                response = action.change(response)
            if isinstance(action, LiteralOff):
                response = _misannounced(response, action.by)
        await self._send_in_parts(response)
        for action in self._actions:
            if tagged and isinstance(action, Cut) and action.after_octets is None:
                await self._end(action.reset)

    async def _send_in_parts(self, response: bytes) -> None:
        start = 0
        while self._stops and self._stops[0][0] <= self._sent + len(response) - start:
            offset, action = self._stops.pop(0)
            length = offset - self._sent
            await self._wire.write(response[start : start + length])
            start, self._sent = start + length, offset
            await self._stop(action)
        if start < len(response):
            await self._wire.write(response[start:] if start else response)
            self._sent += len(response) - start

    async def _stop(self, action: Cut | Hold | Inject) -> None:
        match action:
            case Cut():
                await self._end(action.reset)
            case Hold():
                await self._wire.flush()
                await action.event.wait()
            case Inject():
                await self._wire.write(action.raw)

    async def _end(self, reset: bool) -> None:
        await self._wire.close(reset=reset)
        raise ConnectionEnded("a fault cut the connection")


def _misannounced(response: bytes, by: int) -> bytes:
    return _LITERAL.sub(lambda match: b"{%d}\r\n" % (int(match[1]) + by), response, count=1)
