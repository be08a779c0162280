"""The tables of an account's state file: making them, bringing them up to date, and what their errors mean."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from maild.core.errors import LocalError, NoPermission, Retry
from maild.local.durable import disk_error, make_directory

Row = tuple[Any, ...]

# One script per schema version; a file of an older version runs those it lacks, in order.
_MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE mailboxes (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        directory TEXT NOT NULL UNIQUE,
        epoch TEXT, cursor TEXT, mark TEXT, messages INTEGER, error TEXT, refused TEXT, last_pass_s REAL
    );
    CREATE TABLE pairs (
        mailbox INTEGER NOT NULL REFERENCES mailboxes ON DELETE CASCADE,
        uid TEXT NOT NULL,
        key NOT NULL,
        flags TEXT NOT NULL,
        size_octets INTEGER NOT NULL,
        digest BLOB NOT NULL,
        PRIMARY KEY (mailbox, uid)
    ) WITHOUT ROWID;
    CREATE TABLE orphans (
        mailbox INTEGER NOT NULL REFERENCES mailboxes ON DELETE CASCADE,
        key NOT NULL,
        flags TEXT NOT NULL,
        size_octets INTEGER NOT NULL,
        digest BLOB NOT NULL,
        PRIMARY KEY (mailbox, key)
    ) WITHOUT ROWID;
    CREATE TABLE skipped (
        mailbox INTEGER NOT NULL REFERENCES mailboxes ON DELETE CASCADE,
        uid TEXT NOT NULL,
        reason TEXT NOT NULL,
        size_octets INTEGER NOT NULL,
        count INTEGER NOT NULL,
        first_s REAL NOT NULL,
        last_s REAL NOT NULL,
        PRIMARY KEY (mailbox, uid)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE mailboxes ADD COLUMN object_id TEXT NOT NULL DEFAULT '';
    ALTER TABLE mailboxes ADD COLUMN identity TEXT NOT NULL DEFAULT '';
    ALTER TABLE mailboxes ADD COLUMN stamp TEXT;
    ALTER TABLE mailboxes ADD COLUMN undone INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE mailboxes ADD COLUMN next_uid TEXT NOT NULL DEFAULT '';
    ALTER TABLE mailboxes ADD COLUMN approved INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE pairs ADD COLUMN only TEXT NOT NULL DEFAULT '';
    ALTER TABLE pairs ADD COLUMN info TEXT;
    CREATE TABLE unsent (
        mailbox INTEGER NOT NULL REFERENCES mailboxes ON DELETE CASCADE,
        key NOT NULL,
        reason TEXT NOT NULL,
        size_octets INTEGER NOT NULL,
        count INTEGER NOT NULL,
        first_s REAL NOT NULL,
        last_s REAL NOT NULL,
        PRIMARY KEY (mailbox, key)
    ) WITHOUT ROWID;
    CREATE TABLE refusals (
        mailbox INTEGER NOT NULL REFERENCES mailboxes ON DELETE CASCADE,
        side TEXT NOT NULL,
        id NOT NULL,
        PRIMARY KEY (mailbox, side, id)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE roles (role TEXT PRIMARY KEY, name TEXT NOT NULL, directory TEXT NOT NULL) WITHOUT ROWID;
    """,
    """
    ALTER TABLE orphans ADD COLUMN only TEXT NOT NULL DEFAULT '';
    """,
    """
    CREATE TABLE deliveries (
        mailbox INTEGER NOT NULL REFERENCES mailboxes ON DELETE CASCADE,
        uid TEXT NOT NULL,
        key NOT NULL,
        flags TEXT NOT NULL,
        size_octets INTEGER NOT NULL,
        digest BLOB NOT NULL,
        PRIMARY KEY (mailbox, uid)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE mailboxes ADD COLUMN matched INTEGER NOT NULL DEFAULT 0;
    """,
    """
    CREATE TABLE going (
        mailbox INTEGER NOT NULL REFERENCES mailboxes ON DELETE CASCADE,
        uid TEXT NOT NULL,
        target INTEGER REFERENCES mailboxes ON DELETE CASCADE,
        newest TEXT NOT NULL,
        PRIMARY KEY (mailbox, uid)
    ) WITHOUT ROWID;
    """,
)
FIRST_WITH_ROLES = 3

_REMEDIES = {
    sqlite3.SQLITE_FULL: "the disk is full: make room, maild then goes on by itself",
    sqlite3.SQLITE_IOERR: "the disk reported an error or is full: look at the kernel log",
    sqlite3.SQLITE_READONLY: "give the user who runs maild write permission to it and to its directory",
    sqlite3.SQLITE_CANTOPEN: "give the user who runs maild write permission to it and to its directory",
    sqlite3.SQLITE_PERM: "give the user who runs maild write permission to it and to its directory",
}
_BUSY = "another program has it open for writing: close that one"
_READING_WAITS_S = 1.0
_DENIED = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class StateUnusable(LocalError):
    """The state file itself is no good: damaged, or written by a newer maild."""

    retry = Retry.AFTER_CHANGE


class StateLocked(LocalError):
    """Another process was writing to the state all the time that SQLite waits, some seconds."""


def open_database(path: Path) -> sqlite3.Connection:
    """A connection that writes ahead, syncs at each commit and may change threads; transactions are begun by hand.

    Raises LocalError, StateUnusable where the file is no good.
    """
    make_directory(path.parent)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise disk_error(exc, "open the state", path) from exc
    with translated(path):
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                database.execute(f"PRAGMA {pragma}")
            _migrate(database, path)
        except BaseException:
            database.close()
            raise
    return database


@contextmanager
def reading(path: Path, oldest: int = len(_MIGRATIONS)) -> Iterator[sqlite3.Connection]:
    """What is in a file, as of one moment, however busy it is; nothing is made, changed or held up by this.

    `oldest` is the first schema version that the caller can read. Raises FileNotFoundError where there is no file or
    nothing in it yet, LocalError where it cannot be read, StateUnusable where it is no good, StateLocked where there
    was no such moment: then try again.
    """
    before = _stamp(path)
    is_open = os.path.exists(f"{path}-wal")  # it is there while somebody has the file open, and after a crash
    # A connection that may not write would make a -wal and a -shm and could not remove them (SQLite 3.40); with
    # "immutable" it does neither, and takes no locks, so whether anybody wrote meanwhile is to be seen afterwards.
    way = "mode=ro" if is_open else "immutable=1"
    with translated(path):
        database = sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?{way}", uri=True, isolation_level=None, timeout=_READING_WAITS_S
        )
        try:
            _check_version(database.execute("PRAGMA user_version").fetchone()[0], path, oldest)
            if is_open:
                database.execute("BEGIN")
            yield database
        except (sqlite3.DatabaseError, LocalError) as exc:
            if is_open or _is_as_before(path, before):
                raise
            raise _changed_meanwhile(path) from exc
        finally:
            database.close()
    if not (is_open or _is_as_before(path, before)):
        raise _changed_meanwhile(path)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise disk_error(exc, "read the state", path) from exc
    return status.st_ino, status.st_mtime_ns, status.st_size


def _is_as_before(path: Path, before: tuple[int, int, int]) -> bool:
    return not os.path.exists(f"{path}-wal") and _stamp(path) == before


def _changed_meanwhile(path: Path) -> StateLocked:
    return StateLocked(f"the state {path} was changed while it was read", "try again")


def _check_version(version: int, path: Path, oldest: int) -> None:
    if version > len(_MIGRATIONS):
        raise _too_new(version, path)
    if version == 0:
        raise FileNotFoundError(path)
    if version < oldest:
        raise LocalError(f"the state {path} is from an older maild", "the next `maild sync` brings it up to date")


def _too_new(version: int, path: Path) -> StateUnusable:
    return StateUnusable(
        f"the state {path} was written by a newer maild (schema {version}, this one knows {len(_MIGRATIONS)})",
        "use that version; or move the file away: maild then matches both sides by content again",
    )


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > len(_MIGRATIONS):
        raise _too_new(version, path)
    for number, script in enumerate(_MIGRATIONS[version:], version + 1):
        database.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors in this block as ours; those that are faults in maild pass unchanged."""
    try:
        yield
    except sqlite3.Error as exc:
        error = _state_error(exc, path)
        if error is None:
            raise
        raise error from exc


def _state_error(exc: sqlite3.Error, path: Path) -> LocalError | None:
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # extended codes have their kind in the low octet
    if code in _DAMAGED:
        return StateUnusable(
            f"the state {path} is damaged ({exc})",
            "delete it: maild then matches both sides by content, no mail is lost or doubled",
        )
    if code == sqlite3.SQLITE_BUSY:
        return StateLocked(f"cannot use the state {path}: {exc}", _BUSY)
    if code in _REMEDIES:
        kind = NoPermission if code in _DENIED else LocalError
        return kind(f"cannot use the state {path}: {exc}", _REMEDIES[code])
    return None
