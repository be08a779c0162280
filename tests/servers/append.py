"""Fills a mailbox over IMAP as fast as the server takes it: MULTIAPPEND, non-synchronizing literals, one batch ahead.

Written for a server of our own on loopback that offers both (RFC 3502, RFC 7888), and kept apart from maild's own
session, so that what a test puts on the server does not depend on the code under test.
"""

from __future__ import annotations

import base64
import imaplib
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from io import BufferedReader

# raw message in wire form (CRLF), IMAP flags and keywords, INTERNALDATE (None: now)
Message = tuple[bytes, Sequence[str], datetime | None]

BATCH_MESSAGES = 500
BATCH_OCTETS = 8 << 20
REPLY_TIMEOUT_S = 120.0


class Refused(Exception):
    """The server answered something else than OK; the text is its answer."""


def modified_utf7(name: str) -> str:
    """A mailbox name as it travels in IMAP (RFC 3501 §5.1.3): "Entwürfe" becomes "Entw&APw-rfe"."""

    def encode(run: re.Match[str]) -> str:
        if run[0] == "&":
            return "&-"
        return "&" + base64.b64encode(run[0].encode("utf-16-be"), b"+,").rstrip(b"=").decode() + "-"

    return re.sub(r"&|[^\x20-\x7e]+", encode, name)


def quoted(text: str) -> bytes:
    """An IMAP quoted string. Line breaks have no place in one."""
    return b'"' + text.replace("\\", "\\\\").replace('"', '\\"').encode("ascii") + b'"'


class Filler:
    """A logged-in connection that only appends. Blocking; a context manager."""

    def __init__(self, host: str, port: int, user: str, password: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=REPLY_TIMEOUT_S)
        self._replies: BufferedReader = self._socket.makefile("rb")
        self._replies.readline()  # the greeting
        self._command(b"LOGIN " + quoted(user) + b" " + quoted(password))

    def __enter__(self) -> Filler:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._replies.close()
        self._socket.close()

    def create(self, mailbox: str) -> None:
        """Make the mailbox unless it is there."""
        try:
            self._command(b"CREATE " + quoted(modified_utf7(mailbox)))
        except Refused as refusal:
            if "ALREADYEXISTS" not in str(refusal):
                raise

    def append(self, mailbox: str, messages: Iterable[Message]) -> list[int]:
        """Append all of them to a mailbox that exists; their UIDs, in order. All or none of a batch arrive."""
        verb = b"a APPEND " + quoted(modified_utf7(mailbox))
        uids: list[int] = []
        waiting = 0
        for batch in _batches(messages):
            self._socket.sendall(b"".join([verb, *batch, b"\r\n"]))
            if waiting:
                uids += _appended(self._reply())
            waiting = 1
        return uids + _appended(self._reply()) if waiting else uids

    def _command(self, line: bytes) -> bytes:
        self._socket.sendall(b"a " + line + b"\r\n")
        return self._reply()

    def _reply(self) -> bytes:
        """The next tagged line; raises Refused unless it says OK."""
        for line in self._replies:
            if line.startswith(b"a OK"):
                return line
            if line.startswith(b"a "):
                raise Refused(line.decode(errors="replace").strip())
        raise Refused("the server closed the connection")


def _batches(messages: Iterable[Message]) -> Iterator[list[bytes]]:
    """The arguments of one APPEND command after another."""
    batch: list[bytes] = []
    octets = count = 0
    for raw, flags, date in messages:
        when = b" " + imaplib.Time2Internaldate(date).encode() if date else b""
        batch += [b" (", " ".join(flags).encode(), b")", when, b" {%d+}\r\n" % len(raw), raw]
        octets, count = octets + len(raw), count + 1
        if count == BATCH_MESSAGES or octets >= BATCH_OCTETS:
            yield batch
            batch, octets, count = [], 0, 0
    if batch:
        yield batch


def _appended(reply: bytes) -> list[int]:
    """The UIDs that an APPENDUID response code tells (RFC 4315 §3)."""
    told = re.search(rb"\[APPENDUID \d+ ([0-9:,]+)\]", reply)
    if told is None:
        raise Refused(f"no APPENDUID in {reply!r}")
    uids: list[int] = []
    for part in told[1].decode().split(","):
        first, _, last = part.partition(":")
        uids += range(int(first), int(last or first) + 1)
    return uids
