"""The rows of the state's pairs: how a key and flags are stored, and the statements that change them.

For `state.py` alone, which holds the connection and the transactions.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from maild.core.model import Flags, Key, Only, Pair, Uid
from maild.local.schema import Row

BASE = "SELECT uid, key, flags, only FROM pairs WHERE mailbox = ?"
PAIRS = "SELECT uid, key, flags, size_octets, digest, only, info FROM pairs WHERE mailbox = ?"
LEFTOVERS = " UNION ".join(
    (
        "SELECT mailbox FROM skipped",
        "SELECT mailbox FROM unsent",
        "SELECT mailbox FROM orphans WHERE only IN ('sending', 'sent', 'missed', 'unsure')",
        "SELECT mailbox FROM going",
        "SELECT target FROM going WHERE target IS NOT NULL",
    )
)
WITH_CONTENT = (
    "SELECT mailbox, uid, size_octets, digest FROM pairs WHERE only <> 'local'",
    "SELECT NULL, key, size_octets, digest FROM orphans WHERE only <> 'local'",
)
GOING = "SELECT mailbox, uid, target, newest FROM going"
DELIVERIES = "SELECT mailbox, uid, key, flags, size_octets, digest FROM deliveries"
NAMES = (
    "SELECT group_concat(key || info, x'0a'), count(*) - count(info) FROM pairs WHERE mailbox = ? AND only <> 'remote'"
)
MEANINGS = "SELECT DISTINCT info, flags FROM pairs WHERE mailbox = ? AND only = '' AND info IS NOT NULL"
MEANING = "SELECT key FROM pairs WHERE mailbox = ? AND only = '' AND info = ? AND flags = ?"
NAMELESS = "SELECT key FROM pairs WHERE mailbox = ? AND only <> 'remote' AND info IS NULL LIMIT ?"


def add(database: sqlite3.Connection, mailbox_id: int, pairs: Sequence[Pair]) -> None:
    """Put pairs in; one with the same Uid is replaced. Their keys are orphans no longer, and they are delivered."""
    database.executemany(
        "INSERT OR REPLACE INTO pairs (mailbox, uid, key, flags, size_octets, digest, only, info)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                mailbox_id,
                pair.uid,
                to_row(pair.key),
                flags_text(pair.flags),
                pair.size_octets,
                pair.digest,
                pair.only,
                pair.info if is_plain(pair.key) else None,
            )
            for pair in pairs
        ],
    )
    if database.execute("SELECT 1 FROM orphans WHERE mailbox = ? LIMIT 1", (mailbox_id,)).fetchone():
        drop_orphans(database, mailbox_id, [pair.key for pair in pairs])
    if database.execute("SELECT 1 FROM deliveries WHERE mailbox = ? LIMIT 1", (mailbox_id,)).fetchone():
        drop_deliveries(database, mailbox_id, [pair.uid for pair in pairs])


def drop(database: sqlite3.Connection, mailbox_id: int, uids: Iterable[Uid]) -> None:
    """Take pairs out. Their files may be there still: the next look has to read the directory."""
    if values := [(mailbox_id, uid) for uid in uids]:
        database.executemany("DELETE FROM pairs WHERE mailbox = ? AND uid = ?", values)
        database.executemany("DELETE FROM going WHERE mailbox = ? AND uid = ?", values)
        database.execute("UPDATE mailboxes SET matched = 0 WHERE id = ? AND matched", (mailbox_id,))


def set_flags(database: sqlite3.Connection, mailbox_id: int, bases: Iterable[tuple[Uid, Flags, str | None]]) -> None:
    """New base flags, and with them the info of the file's name, None where it is not known."""
    database.executemany(
        "UPDATE pairs SET flags = ?, info = iif(typeof(key) = 'text' AND instr(key, x'0a') = 0, ?, NULL)"
        " WHERE mailbox = ? AND uid = ?",
        [(flags_text(flags), info, mailbox_id, uid) for uid, flags, info in bases],
    )


def set_only(database: sqlite3.Connection, mailbox_id: int, sides: Iterable[tuple[Uid, Only]]) -> None:
    database.executemany(
        "UPDATE pairs SET only = ? WHERE mailbox = ? AND uid = ?", [(only, mailbox_id, uid) for uid, only in sides]
    )


def make_orphans(database: sqlite3.Connection, mailbox_id: int) -> None:
    """Drop all pairs of a mailbox; what they knew of local messages, and of those kept there, becomes orphans."""
    database.execute(
        "INSERT OR REPLACE INTO orphans (mailbox, key, flags, size_octets, digest, only)"
        " SELECT mailbox, key, flags, size_octets, digest, only FROM pairs WHERE mailbox = ?",
        (mailbox_id,),
    )
    database.execute("DELETE FROM pairs WHERE mailbox = ?", (mailbox_id,))


def add_orphans(
    database: sqlite3.Connection, mailbox_id: int, rows: Iterable[tuple[Key, Flags, int, bytes, str]]
) -> None:
    """Key, base flags, size, digest and `only` of what has no pair; one with the same key is replaced."""
    database.executemany(
        "INSERT OR REPLACE INTO orphans (mailbox, key, flags, size_octets, digest, only) VALUES (?, ?, ?, ?, ?, ?)",
        [(mailbox_id, to_row(key), flags_text(flags), *rest) for key, flags, *rest in rows],
    )


def drop_orphans(database: sqlite3.Connection, mailbox_id: int, keys: Iterable[Key]) -> None:
    database.executemany(
        "DELETE FROM orphans WHERE mailbox = ? AND key = ?", [(mailbox_id, to_row(key)) for key in keys]
    )


def add_deliveries(database: sqlite3.Connection, mailbox_id: int, pairs: Iterable[Pair]) -> None:
    """Note what is about to get its name in a mailbox's directory, as the pairs that are to come of it."""
    database.executemany(
        "INSERT OR REPLACE INTO deliveries (mailbox, uid, key, flags, size_octets, digest) VALUES (?, ?, ?, ?, ?, ?)",
        [(mailbox_id, p.uid, to_row(p.key), flags_text(p.flags), p.size_octets, p.digest) for p in pairs],
    )


def drop_deliveries(database: sqlite3.Connection, mailbox_id: int, uids: Iterable[Uid]) -> None:
    database.executemany("DELETE FROM deliveries WHERE mailbox = ? AND uid = ?", [(mailbox_id, uid) for uid in uids])


def pair_from(row: Row) -> Pair:
    uid, key, flags, size_octets, digest, only, info = row
    return Pair(uid, key_from(key), flags_from(flags), size_octets, digest, only, info)


def base_from(rows: Iterable[Row]) -> Iterator[tuple[Uid, Key, Flags, Only]]:
    """The rows of `BASE` as values."""
    return ((uid, key_from(key), flags_from(flags), only) for uid, key, flags, only in rows)


def to_row(key: Key) -> str | bytes:
    """File names are octets; those that are not plain ASCII, and perhaps no UTF-8, are stored as such."""
    return key if key.isascii() else os.fsencode(key)


def is_plain(key: Key) -> bool:
    """Whether a key can stand in a list of names, one a line."""
    return key.isascii() and "\n" not in key


def key_from(stored: str | bytes) -> Key:
    return Key(stored if isinstance(stored, str) else os.fsdecode(stored))


@functools.lru_cache(maxsize=1024)
def flags_from(text: str) -> Flags:
    """Few combinations stand for many messages; they share one set."""
    return frozenset(text.split(" ")) if text else frozenset()


@functools.lru_cache(maxsize=1024)
def flags_text(flags: Flags) -> str:
    return " ".join(sorted(flags))
