"""One account's state: which messages are pairs, and where each mailbox's last pass ended.

A SQLite file per account, written ahead (WAL) and synced at each commit. What is committed here was durable in the
Maildir before; losing the file loses no mail, for both sides are matched by content again. Everything blocks; one
thread at a time may use a `State`, which one does not matter.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from maild.core.model import Cursor, Epoch, Flags, Key, MailboxName, Pair, Skipped, Uid
from maild.local.schema import Row, open_database, translated

_PAGE_ROWS = 2000
_IN_VALUES = 500
_MAILBOXES = "SELECT id, name, directory, epoch, cursor, mark, messages, error, refused, last_pass_s FROM mailboxes"
_PAIRS = "SELECT uid, key, flags, size_octets, digest FROM pairs WHERE mailbox = ?"


@dataclass(frozen=True, slots=True)
class MailboxState:
    """What is known of one mailbox.

    `directory` is relative to the account's Maildir. `cursor`, `mark` and `messages` are those of the last complete
    pass, `last_pass_s` when it ended (seconds since 1970 UTC); `error` and `refused` say why a later one was not.
    """

    id: int
    name: MailboxName
    directory: str
    epoch: Epoch | None = None
    cursor: Cursor | None = None
    mark: str | None = None
    messages: int | None = None
    error: str | None = None
    refused: str | None = None
    last_pass_s: float | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed in one mailbox: pairs made, base flags that are new, pairs that are no more."""

    mailbox_id: int
    add: Sequence[Pair] = ()
    flags: Sequence[tuple[Uid, Flags]] = ()
    drop: Sequence[Uid] = ()


@dataclass(frozen=True, slots=True)
class Orphan:
    """A local message whose pair ended with the mailbox's epoch: known by content, with the flags of its last base."""

    key: Key
    flags: Flags
    size_octets: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SkippedMessage:
    """A message left on the server: why, how often it was tried, and when first and last (seconds since 1970 UTC)."""

    uid: Uid
    reason: str
    size_octets: int
    count: int
    first_s: float
    last_s: float


class State:
    """The open state of one account. Every method raises LocalError, StateUnusable where the file is no good."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self._database = database

    @classmethod
    def open(cls, path: Path) -> State:
        """Open the file, making it (mode 0600) if it is missing and bringing an older schema up to date."""
        return cls(path, open_database(path))

    def close(self) -> None:
        self._database.close()

    def mailboxes(self) -> dict[MailboxName, MailboxState]:
        """Every mailbox there is a state for."""
        return {row[1]: MailboxState(*row) for row in self._rows(_MAILBOXES)}

    def add_mailbox(self, name: MailboxName, directory: str) -> MailboxState:
        """Begin with a mailbox; one that is known by this name gets the directory and keeps the rest."""
        self._write(
            "INSERT INTO mailboxes (name, directory) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET directory = excluded.directory",
            (name, directory),
        )
        return MailboxState(*self._rows(_MAILBOXES + " WHERE name = ?", (name,))[0])

    def set_epoch(self, mailbox_id: int, epoch: Epoch) -> None:
        self._write("UPDATE mailboxes SET epoch = ? WHERE id = ?", (epoch, mailbox_id))

    def finish(
        self, mailbox_id: int, cursor: Cursor | None, mark: str | None, messages: int | None, last_pass_s: float
    ) -> None:
        """A pass is complete: everything up to `cursor` is applied. The last error is past."""
        self._write(
            "UPDATE mailboxes SET cursor = ?, mark = ?, messages = ?, last_pass_s = ?, error = NULL WHERE id = ?",
            (cursor, mark, messages, last_pass_s, mailbox_id),
        )

    def set_error(self, mailbox_id: int, text: str | None) -> None:
        self._write("UPDATE mailboxes SET error = ? WHERE id = ?", (_printable(text), mailbox_id))

    def set_refused(self, mailbox_id: int, text: str | None) -> None:
        self._write("UPDATE mailboxes SET refused = ? WHERE id = ?", (_printable(text), mailbox_id))

    def drop_mailbox(self, mailbox_id: int) -> None:
        """Forget a mailbox with its pairs, orphans and skipped messages."""
        self._write("DELETE FROM mailboxes WHERE id = ?", (mailbox_id,))

    def rebuild(self, mailbox_id: int, epoch: Epoch) -> None:
        """The Uids mean other messages now: what is known of the local ones becomes orphans, for a match by content."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO orphans (mailbox, key, flags, size_octets, digest)"
                " SELECT mailbox, key, flags, size_octets, digest FROM pairs WHERE mailbox = ?",
                (mailbox_id,),
            )
            database.execute("DELETE FROM pairs WHERE mailbox = ?", (mailbox_id,))
            database.execute("DELETE FROM skipped WHERE mailbox = ?", (mailbox_id,))
            database.execute(
                "UPDATE mailboxes SET epoch = ?, cursor = NULL, mark = NULL, messages = NULL WHERE id = ?",
                (epoch, mailbox_id),
            )

    def apply(self, changes: Iterable[Changes]) -> None:
        """Commit what is durable on both sides, for several mailboxes at once: all of it or nothing.

        In each mailbox pairs are dropped, then added, then flags set. A key that gets a pair is an orphan no longer.
        """
        with self._transaction() as database:
            for change in changes:
                _apply(database, change)

    def pairs(self, mailbox_id: int) -> Iterator[Pair]:
        """Every pair, in bounded memory; changes made while iterating may or may not be seen."""
        last = ""
        while True:
            rows = self._rows(
                _PAIRS + " AND uid > ? ORDER BY uid LIMIT ?",
                (mailbox_id, last, _PAGE_ROWS),
            )
            yield from map(_pair, rows)
            if len(rows) < _PAGE_ROWS:
                return
            last = rows[-1][0]

    def pairs_of(self, mailbox_id: int, uids: Collection[Uid]) -> dict[Uid, Pair]:
        """The pairs of these messages; those that have none are missing."""
        wanted = list(uids)
        found: dict[Uid, Pair] = {}
        for start in range(0, len(wanted), _IN_VALUES):
            some = wanted[start : start + _IN_VALUES]
            marks = ", ".join("?" * len(some))
            rows = self._rows(
                _PAIRS + f" AND uid IN ({marks})",
                (mailbox_id, *some),
            )
            found.update((pair.uid, pair) for pair in map(_pair, rows))
        return found

    def uids(self, mailbox_id: int) -> set[Uid]:
        return {row[0] for row in self._rows("SELECT uid FROM pairs WHERE mailbox = ?", (mailbox_id,))}

    def keys(self, mailbox_id: int) -> set[Key]:
        return {_key(row[0]) for row in self._rows("SELECT key FROM pairs WHERE mailbox = ?", (mailbox_id,))}

    def count(self, mailbox_id: int) -> int:
        return self._number("SELECT count(*) FROM pairs WHERE mailbox = ?", mailbox_id)

    def unseen(self, mailbox_id: int) -> int:
        """How many messages have no `\\Seen`, by the last common state."""
        return self._number(
            r"SELECT count(*) FROM pairs WHERE mailbox = ? AND instr(' ' || flags || ' ', ' \Seen ') = 0", mailbox_id
        )

    def orphans(self, mailbox_id: int) -> dict[Key, Orphan]:
        """What `rebuild` left and no pair has taken up since."""
        rows = self._rows("SELECT key, flags, size_octets, digest FROM orphans WHERE mailbox = ?", (mailbox_id,))
        found = (Orphan(_key(key), _flags(flags), size, digest) for key, flags, size, digest in rows)
        return {orphan.key: orphan for orphan in found}

    def drop_orphans(self, mailbox_id: int, keys: Iterable[Key]) -> None:
        with self._transaction() as database:
            _drop_orphans(database, mailbox_id, keys)

    def skip(self, mailbox_id: int, messages: Iterable[Skipped], now_s: float | None = None) -> None:
        """Remember messages that were left on the server; one that was before is counted once more."""
        when = time.time() if now_s is None else now_s
        with self._transaction() as database:
            database.executemany(
                "INSERT INTO skipped (mailbox, uid, reason, size_octets, count, first_s, last_s)"
                " VALUES (?, ?, ?, ?, 1, ?, ?) ON CONFLICT (mailbox, uid) DO UPDATE SET reason = excluded.reason,"
                " size_octets = excluded.size_octets, count = count + 1, last_s = excluded.last_s",
                [(mailbox_id, item.uid, _printable(item.reason), item.size_octets, when, when) for item in messages],
            )

    def skipped(self, mailbox_id: int) -> dict[Uid, SkippedMessage]:
        rows = self._rows(
            "SELECT uid, reason, size_octets, count, first_s, last_s FROM skipped WHERE mailbox = ?", (mailbox_id,)
        )
        return {row[0]: SkippedMessage(*row) for row in rows}

    def unskip(self, mailbox_id: int, uids: Iterable[Uid]) -> None:
        with self._transaction() as database:
            database.executemany(
                "DELETE FROM skipped WHERE mailbox = ? AND uid = ?", [(mailbox_id, uid) for uid in uids]
            )

    def meta(self, name: str) -> str | None:
        """A fact about the account as a whole, None if it was never set."""
        rows = self._rows("SELECT value FROM meta WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else None

    def set_meta(self, name: str, value: str) -> None:
        self._write(
            "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[Row]:
        with translated(self.path):
            return self._database.execute(query, values).fetchall()

    def _number(self, query: str, *values: object) -> int:
        return int(self._rows(query, values)[0][0])

    def _write(self, statement: str, values: Sequence[object]) -> None:
        with self._transaction() as database:
            database.execute(statement, values)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with translated(self.path), self._database as database:  # the connection commits, or rolls back what raised
            database.execute("BEGIN IMMEDIATE")
            yield database


def _apply(database: sqlite3.Connection, changes: Changes) -> None:
    mailbox = changes.mailbox_id
    if changes.drop:
        database.executemany(
            "DELETE FROM pairs WHERE mailbox = ? AND uid = ?", [(mailbox, uid) for uid in changes.drop]
        )
    if changes.add:
        database.executemany(
            "INSERT OR REPLACE INTO pairs (mailbox, uid, key, flags, size_octets, digest) VALUES (?, ?, ?, ?, ?, ?)",
            [
                (mailbox, pair.uid, _stored_key(pair.key), _flags_text(pair.flags), pair.size_octets, pair.digest)
                for pair in changes.add
            ],
        )
        if database.execute("SELECT 1 FROM orphans WHERE mailbox = ? LIMIT 1", (mailbox,)).fetchone():
            _drop_orphans(database, mailbox, [pair.key for pair in changes.add])
    if changes.flags:
        database.executemany(
            "UPDATE pairs SET flags = ? WHERE mailbox = ? AND uid = ?",
            [(_flags_text(flags), mailbox, uid) for uid, flags in changes.flags],
        )


def _drop_orphans(database: sqlite3.Connection, mailbox_id: int, keys: Iterable[Key]) -> None:
    database.executemany(
        "DELETE FROM orphans WHERE mailbox = ? AND key = ?", [(mailbox_id, _stored_key(key)) for key in keys]
    )


def _pair(row: Row) -> Pair:
    uid, key, flags, size_octets, digest = row
    return Pair(uid, _key(key), _flags(flags), size_octets, digest)


def _stored_key(key: Key) -> str | bytes:
    """File names are octets; those that are not plain ASCII, and perhaps no UTF-8, are stored as such."""
    return key if key.isascii() else os.fsencode(key)


def _key(stored: str | bytes) -> Key:
    return Key(stored if isinstance(stored, str) else os.fsdecode(stored))


@functools.lru_cache(maxsize=1024)
def _flags(text: str) -> Flags:
    """Few combinations stand for many messages; they share one set."""
    return frozenset(text.split(" ")) if text else frozenset()


@functools.lru_cache(maxsize=1024)
def _flags_text(flags: Flags) -> str:
    return " ".join(sorted(flags))


def _printable(text: str | None) -> str | None:
    """Text that SQLite takes: paths in error messages may hold octets that are no UTF-8."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
