"""One user's mail on a real server, changed as another client changes it: what `testing.store.Store` does in memory.

Only what the scenarios of tests/engine/test_twoway.py ask of a store. Every step is one short IMAP session.
"""

from __future__ import annotations

import imaplib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

_UID = re.compile(rb"UID (\d+)")
_FLAGS = re.compile(rb"FLAGS \(([^)]*)\)")
_DATE = re.compile(rb'INTERNALDATE "([^"]*)"')
_COPYUID = re.compile(rb"COPYUID \d+ \S+ (\d+)")


@dataclass(frozen=True, slots=True)
class LiveMessage:
    """One message as the server gives it; `date_s` in seconds since 1970 UTC."""

    uid: int
    raw: bytes
    flags: frozenset[str]
    date_s: int


@dataclass(frozen=True, slots=True)
class LiveMailbox:
    name: str
    messages: tuple[LiveMessage, ...]

    def __iter__(self) -> Iterator[LiveMessage]:
        return iter(self.messages)


@dataclass(frozen=True, slots=True)
class LiveStore:
    """The account `user` of a server on loopback."""

    host: str
    port: int
    user: str
    password: str

    @contextmanager
    def _session(self, mailbox: str = "") -> Iterator[imaplib.IMAP4]:
        with imaplib.IMAP4(self.host, self.port) as session:
            session.login(self.user, self.password)
            if mailbox:
                _ok(session.select(f'"{mailbox}"'))
            yield session
            if mailbox:
                session.unselect()

    @property
    def names(self) -> tuple[str, ...]:
        with self._session() as session:
            _, lines = session.list()
        found = []
        for line in lines:
            if isinstance(line, bytes) and b"\\Noselect" not in line and b"\\NonExistent" not in line:
                found.append(line.split(b' "/" ', 1)[1].strip(b'"').decode())
        return tuple(found)

    def find(self, name: str) -> LiveMailbox | None:
        return self.mailbox(name) if name in self.names else None

    def mailbox(self, name: str) -> LiveMailbox:
        with self._session(name) as session:
            _, lines = session.uid("FETCH", "1:*", "(UID FLAGS INTERNALDATE BODY.PEEK[])")
        pairs = [line for line in lines if isinstance(line, tuple)]
        after = [line for line in lines if isinstance(line, bytes)]
        messages = []
        for (head, raw), tail in zip(pairs, after, strict=False):
            facts = head + tail
            messages.append(
                LiveMessage(
                    int(_found(_UID, facts)),
                    raw,
                    frozenset(f.decode() for f in _found(_FLAGS, facts).split() if f != b"\\Recent"),
                    int(datetime.strptime(_found(_DATE, facts).decode().strip(), "%d-%b-%Y %H:%M:%S %z").timestamp()),
                )
            )
        return LiveMailbox(name, tuple(messages))

    def create(self, name: str, special_use: str = "") -> None:
        if name == "Trash":
            return  # the server has it with its role
        with self._session() as session:
            _ok(session.create(f'"{name}"'))

    def delete(self, name: str) -> None:
        with self._session() as session:
            _ok(session.delete(f'"{name}"'))

    def rename(self, old: str, new: str) -> None:
        with self._session() as session:
            _ok(session.rename(f'"{old}"', f'"{new}"'))

    def deliver(self, mailbox: str, raw: bytes, flags: Iterable[str] = (), date_s: int = 0) -> int:
        date = datetime.fromtimestamp(date_s, UTC).strftime('"%d-%b-%Y %H:%M:%S +0000"')
        with self._session() as session:
            _ok(session.append(f'"{mailbox}"', f"({' '.join(flags)})", date, raw))
        return 0

    def set_flags(
        self, mailbox: str, uids: int | Iterable[int], *, add: Iterable[str] = (), remove: Iterable[str] = ()
    ) -> None:
        with self._session(mailbox) as session:
            for sign, flags in (("+", tuple(add)), ("-", tuple(remove))):
                if flags:
                    _ok(session.uid("STORE", _set(uids), f"{sign}FLAGS", f"({' '.join(flags)})"))

    def expunge(self, mailbox: str, uids: int | Iterable[int]) -> None:
        with self._session(mailbox) as session:
            _ok(session.uid("STORE", _set(uids), "+FLAGS", "(\\Deleted)"))
            _ok(session.uid("EXPUNGE", _set(uids)))

    def copy(self, source: str, uids: int | Iterable[int], target: str) -> None:
        with self._session(source) as session:
            _ok(session.uid("COPY", _set(uids), f'"{target}"'))

    def move(self, source: str, uids: int | Iterable[int], target: str) -> None:
        with self._session(source) as session:
            _ok(session.uid("MOVE", _set(uids), f'"{target}"'))


def _set(uids: int | Iterable[int]) -> str:
    return ",".join(map(str, (uids,) if isinstance(uids, int) else uids))


def _ok(answer: tuple[str, list[bytes | None] | list[bytes]]) -> None:
    assert answer[0] == "OK", answer


def _found(pattern: re.Pattern[bytes], text: bytes) -> bytes:
    match = pattern.search(text)
    assert match is not None, text
    return match[1]
