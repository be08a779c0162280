"""One POP3 client's session: which commands there are, and what each does to the maildrop (RFC 1939, RFC 2449)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from maild.testing.faults import Reply
from maild.testing.wire import Wire

ALL = frozenset({"TOP", "UIDL", "PIPELINING", "RESP-CODES", "AUTH-RESP-CODE", "SASL PLAIN", "USER", "CAPA"})
BARE = frozenset({"USER"})
NEEDS = {"CAPA": "CAPA", "UIDL": "UIDL", "TOP": "TOP", "USER": "USER", "PASS": "USER", "AUTH": "SASL PLAIN"}


class Refused(Exception):
    """What follows -ERR."""


@dataclass(eq=False, slots=True)
class Message:
    """One message as it lies there: `raw` in wire form. `size_octets` is what LIST tells, if that is to be wrong."""

    raw: bytes
    uid: str
    size_octets: int | None = None

    @property
    def told_octets(self) -> int:
        return len(self.raw) if self.size_octets is None else self.size_octets


@dataclass(slots=True)
class Policy:
    """What all sessions of a server share. `locked_by` is the connection that has the maildrop open, 0 for none."""

    users: dict[str, str]
    capabilities: set[str]
    messages: list[Message]
    stls_context: ssl.SSLContext | None
    line_end: bytes = b"\r\n"
    locked_by: int = 0
    timestamp: str = ""  # in the greeting: then there is APOP


@dataclass(slots=True)
class Session:
    """A client's. `listed` is the maildrop as it was at login, by message number less one; `marked` goes at QUIT."""

    policy: Policy
    wire: Wire
    number: int
    user: str = ""
    is_in: bool = False
    is_over: bool = False
    listed: list[Message] = field(default_factory=list)
    marked: set[int] = field(default_factory=set)

    def message(self, word: str) -> Message:
        """The message of that number; Refused where there is none, or none any more."""
        number = int(word) if word.isdigit() else 0
        if not 1 <= number <= len(self.listed) or number in self.marked:
            raise Refused("no such message")
        return self.listed[number - 1]

    def present(self) -> Iterator[tuple[int, Message]]:
        return ((n, message) for n, message in enumerate(self.listed, 1) if n not in self.marked)

    def enter(self, user: str, password: str) -> bytes:
        """Log in and lock the maildrop."""
        if self.policy.users.get(user) != password:
            raise Refused("[AUTH] wrong user or password")
        if self.policy.locked_by:
            raise Refused("[IN-USE] another session has this maildrop")
        self.policy.locked_by = self.number
        self.is_in = True
        self.listed = list(self.policy.messages)
        return self.status(f"{len(self.listed)} messages")

    def leave(self) -> None:
        """Let go of the maildrop; what was marked stays unless QUIT has removed it."""
        if self.policy.locked_by == self.number:
            self.policy.locked_by = 0

    def status(self, text: str) -> bytes:
        return b"+OK " + text.encode("latin-1") + self.policy.line_end

    def lines(self, text: str, lines: Iterator[str]) -> bytes:
        end = self.policy.line_end
        return self.status(text) + b"".join(line.encode("latin-1") + end for line in lines) + b"." + end

    def stuffed(self, text: str, raw: bytes) -> bytes:
        """A message as it goes over the wire: dots doubled, and a line end added where it has none."""
        if raw and not raw.endswith(b"\n"):
            raw += b"\r\n"
        if raw.startswith(b"."):
            raw = b"." + raw
        raw = raw.replace(b"\r\n.", b"\r\n..")
        end = self.policy.line_end
        return self.status(text) + (raw if end == b"\r\n" else raw.replace(b"\r\n", end)) + b"." + end


Run = Callable[[Session, list[str], Reply], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Command:
    """`needs_login`: only after it; None: before and after."""

    run: Run
    needs_login: bool | None


async def _capa(session: Session, _: list[str], __: Reply) -> bytes:
    offered = set(session.policy.capabilities) - {"CAPA"}
    if session.policy.stls_context is not None and not session.wire.tls:
        offered.add("STLS")
    return session.lines("capabilities", iter(sorted(offered)))


async def _stls(session: Session, _: list[str], reply: Reply) -> bytes:
    if session.policy.stls_context is None or session.wire.tls:
        raise Refused("no STLS here")
    await reply.send(session.status("go ahead"))
    await session.wire.start_tls(session.policy.stls_context)
    return b""


async def _user(session: Session, words: list[str], _: Reply) -> bytes:
    session.user = " ".join(words)
    return session.status("and the password?")


async def _pass(session: Session, words: list[str], __: Reply) -> bytes:
    return session.enter(session.user, " ".join(words))


async def _apop(session: Session, words: list[str], _: Reply) -> bytes:
    """RFC 1939 §7."""
    if not session.policy.timestamp or len(words) != 2:
        raise Refused("no APOP here")
    user, proof = words
    password = session.policy.users.get(user, "")
    wanted = hashlib.md5(f"{session.policy.timestamp}{password}".encode(), usedforsecurity=False).hexdigest()
    return session.enter(user, password if proof == wanted else "")


async def _auth(session: Session, words: list[str], reply: Reply) -> bytes:
    if not words or words[0].upper() != "PLAIN":
        raise Refused("unknown mechanism")
    if len(words) == 1:
        await reply.send(b"+ " + session.policy.line_end)
        await session.wire.flush()
        words.append((await session.wire.line()).decode("latin-1"))
    try:
        _identity, user, password = base64.b64decode(words[1], validate=True).decode().split("\0")
    except (binascii.Error, ValueError):
        raise Refused("that is not PLAIN") from None
    return session.enter(user, password)


async def _stat(session: Session, _: list[str], __: Reply) -> bytes:
    present = [message for _, message in session.present()]
    return session.status(f"{len(present)} {sum(message.told_octets for message in present)}")


async def _list(session: Session, words: list[str], _: Reply) -> bytes:
    if words:
        return session.status(f"{words[0]} {session.message(words[0]).told_octets}")
    return session.lines("sizes", (f"{n} {message.told_octets}" for n, message in session.present()))


async def _uidl(session: Session, words: list[str], _: Reply) -> bytes:
    if words:
        return session.status(f"{words[0]} {session.message(words[0]).uid}")
    return session.lines("unique-ids", (f"{n} {message.uid}" for n, message in session.present()))


async def _retr(session: Session, words: list[str], _: Reply) -> bytes:
    return session.stuffed("here it is", session.message(words[0] if words else "").raw)


async def _top(session: Session, words: list[str], _: Reply) -> bytes:
    if len(words) != 2 or not words[1].isdigit():
        raise Refused("TOP wants a message and a number of lines")
    header, _blank, body = session.message(words[0]).raw.partition(b"\r\n\r\n")
    lines = body.split(b"\r\n")[: int(words[1])]
    return session.stuffed("the top of it", b"\r\n".join([header, b"", *lines, b""]))


async def _dele(session: Session, words: list[str], _: Reply) -> bytes:
    session.message(words[0] if words else "")
    session.marked.add(int(words[0]))
    return session.status("marked")


async def _rset(session: Session, _: list[str], __: Reply) -> bytes:
    session.marked.clear()
    return session.status("nothing is marked")


async def _noop(session: Session, _: list[str], __: Reply) -> bytes:
    return session.status("still here")


async def _quit(session: Session, _: list[str], __: Reply) -> bytes:
    """Only now what was marked goes (RFC 1939 §6)."""
    gone = [message for number, message in enumerate(session.listed, 1) if number in session.marked]
    session.policy.messages[:] = [message for message in session.policy.messages if message not in gone]
    session.leave()
    session.is_over = True
    return session.status("goodbye")


COMMANDS = {
    "CAPA": Command(_capa, None),
    "QUIT": Command(_quit, None),
    "STLS": Command(_stls, False),
    "USER": Command(_user, False),
    "PASS": Command(_pass, False),
    "AUTH": Command(_auth, False),
    "APOP": Command(_apop, False),
    "STAT": Command(_stat, True),
    "LIST": Command(_list, True),
    "UIDL": Command(_uidl, True),
    "RETR": Command(_retr, True),
    "TOP": Command(_top, True),
    "DELE": Command(_dele, True),
    "RSET": Command(_rset, True),
    "NOOP": Command(_noop, True),
}
