"""Questions to the name service that the C library cannot ask: SRV and MX records (RFC 1035, RFC 2782).

One question over UDP, again over TCP where the answer was cut; the resolver is the first of /etc/resolv.conf, or the
tests'. Nothing here is protected against forgery: whoever uses an answer has to confirm it in another way. Blocks; call
it in a thread.
"""

from __future__ import annotations

import secrets
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

MX, SRV = 15, 33
RESOLV_CONF = Path("/etc/resolv.conf")
TIMEOUT_S = 3.0
TRIES = 2
MOST_RECORDS = 64
_HEADER = struct.Struct("!6H")
_CUT, _CODE = 0x0200, 0x000F
_NAME_ERROR = 3
_POINTERS = 64  # a name that has more of them goes in circles

Resolver = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Record:
    """An SRV or MX record; of MX `weight` and `port` are 0. A `target` of "" says that there is no such service."""

    priority: int
    weight: int
    port: int
    target: str


class NoAnswer(Exception):
    """The resolver did not answer, or not in a way that can be read."""


def system_resolver() -> Resolver | None:
    """The first name server of this machine, None where there is none."""
    try:
        lines = RESOLV_CONF.read_text(errors="replace").splitlines()
    except OSError:
        return None
    words = [line.split() for line in lines]
    return next(((w[1].partition("%")[0], 53) for w in words if len(w) > 1 and w[0] == "nameserver"), None)


def records(name: str, kind: int, resolver: Resolver | None = None) -> list[Record]:
    """The SRV or MX records of a name, best first, [] where it has none. Raises NoAnswer."""
    server = resolver or system_resolver()
    if server is None:
        raise NoAnswer(f"{RESOLV_CONF} names no name server")
    number = secrets.randbelow(1 << 16)
    question = _question(number, name, kind)
    try:
        answer = _over_udp(server, question)
        flags = _HEADER.unpack_from(answer)[1]
        if flags & _CUT:
            answer = _over_tcp(server, question)
        return sorted(_read(answer, question, kind), key=lambda r: (r.priority, -r.weight))
    except (OSError, struct.error, IndexError, UnicodeError) as exc:
        raise NoAnswer(f"{server[0]}: {exc}") from exc


def _question(number: int, name: str, kind: int) -> bytes:
    labels = [label.encode("idna") if not label.isascii() else label.encode() for label in name.strip(".").split(".")]
    if any(not 0 < len(label) < 64 for label in labels):
        raise NoAnswer(f"{name} is no name")
    encoded = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return _HEADER.pack(number, 0x0100, 1, 0, 0, 0) + encoded + struct.pack("!2H", kind, 1)


def _over_udp(server: Resolver, question: bytes) -> bytes:
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.connect(server)  # the kernel then takes answers from there only
        for left in reversed(range(TRIES)):
            sock.send(question)
            try:
                answer = sock.recv(4096)
            except TimeoutError:
                if left:
                    continue
                raise
            if answer[:2] == question[:2]:
                return answer
    raise NoAnswer(f"{server[0]} answers other questions")


def _over_tcp(server: Resolver, question: bytes) -> bytes:
    with socket.create_connection(server, TIMEOUT_S) as sock, sock.makefile("rb") as stream:
        sock.sendall(struct.pack("!H", len(question)) + question)
        (length,) = struct.unpack("!H", stream.read(2))
        return stream.read(length)


def _read(answer: bytes, question: bytes, kind: int) -> list[Record]:
    number, flags, questions, answers, _, _ = _HEADER.unpack_from(answer)
    end = len(question)
    if number != _HEADER.unpack_from(question)[0] or questions != 1 or answer[12:end].lower() != question[12:].lower():
        raise NoAnswer("the answer is to another question")
    if flags & _CODE == _NAME_ERROR:
        return []
    if flags & _CODE or not flags & 0x8000:
        raise NoAnswer(f"the name server failed (code {flags & _CODE})")
    found: list[Record] = []
    at = end
    for _ in range(min(answers, MOST_RECORDS)):
        _, at = _name(answer, at)
        this, _, _, length = struct.unpack_from("!2HIH", answer, at)
        at += 10
        if this == kind == SRV:
            priority, weight, port = struct.unpack_from("!3H", answer, at)
            found.append(Record(priority, weight, port, _name(answer, at + 6)[0]))
        elif this == kind == MX:
            (priority,) = struct.unpack_from("!H", answer, at)
            found.append(Record(priority, 0, 0, _name(answer, at + 2)[0]))
        at += length
    return found


def _name(answer: bytes, at: int) -> tuple[str, int]:
    """A name and where it ends; a pointer leads to the rest of it (RFC 1035 §4.1.4)."""
    labels: list[str] = []
    end = 0
    for _ in range(_POINTERS + 128):
        length = answer[at]
        if length >= 0xC0:
            end = end or at + 2
            at = (length & 0x3F) << 8 | answer[at + 1]
        elif length == 0:
            return ".".join(labels), end or at + 1
        else:
            labels.append(answer[at + 1 : at + 1 + length].decode("ascii"))
            at += length + 1
    raise NoAnswer("a name without an end")
