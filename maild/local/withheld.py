"""What the state remembers of things that were not done: messages the server did not take, plans the guard refused.

For `state.py` alone, which holds the connection and the transactions; the values are for all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from maild.core.model import Key, Uid
from maild.local.pairs import key_from, to_row
from maild.local.schema import Row

_REMOTE, _LOCAL = "remote", "local"  # the side on which a refused plan would have deleted


@dataclass(frozen=True, slots=True)
class Unsent:
    """A local message that the server did not take, with the reason in words; its size is that on the wire.

    One that `waits` is tried again when its time has come, else at every pass.
    """

    key: Key
    reason: str
    size_octets: int = 0
    waits: bool = True


@dataclass(frozen=True, slots=True)
class UnsentMessage:
    """An `Unsent` as it is remembered: how often it was tried, first and last when (seconds since 1970 UTC)."""

    key: Key
    reason: str
    size_octets: int
    count: int
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """The plan that the guard refused: which messages it would delete on the server, which on this disk.

    Both are empty where a whole mailbox directory is gone. `approved`: the user released exactly this plan.
    """

    delete_remote: frozenset[Uid]
    delete_local: frozenset[Key]
    approved: bool = False


def hold_back(database: sqlite3.Connection, mailbox_id: int, items: Iterable[Unsent], now_s: float) -> None:
    """Remember messages that were not taken; one that was before is counted once more."""
    database.executemany(
        "INSERT INTO unsent (mailbox, key, reason, size_octets, count, first_s, last_s)"
        " VALUES (?, ?, ?, ?, 1, ?, ?) ON CONFLICT (mailbox, key) DO UPDATE SET reason = excluded.reason,"
        " size_octets = excluded.size_octets, count = count + 1, last_s = excluded.last_s",
        [
            (mailbox_id, to_row(i.key), printable(i.reason), i.size_octets, now_s, now_s if i.waits else 0.0)
            for i in items
        ],
    )


def unsent_from(row: Row) -> UnsentMessage:
    key, reason, size_octets, count, first_s, last_s = row
    return UnsentMessage(key_from(key), reason, size_octets, count, first_s, last_s)


def refuse(database: sqlite3.Connection, mailbox_id: int, text: str, plan: Refusal) -> None:
    """Replace the refused plan. An approval stays where the new plan is the approved one or a part of it.

    No plan that names messages has the one that names none, for a mailbox that is gone, as a part; there the text tells
    whether it is the same.
    """
    old = refusal(database, mailbox_id)
    is_approved = old is not None and old.approved and _is_part(plan, old)
    if not (plan.delete_remote or plan.delete_local):
        is_approved = is_approved and _text(database, mailbox_id) == printable(text)
    clear(database, mailbox_id)
    database.execute(
        "UPDATE mailboxes SET refused = ?, approved = ? WHERE id = ?", (printable(text), is_approved, mailbox_id)
    )
    rows = [(mailbox_id, _REMOTE, uid) for uid in plan.delete_remote]
    keys = [(mailbox_id, _LOCAL, to_row(key)) for key in plan.delete_local]
    database.executemany("INSERT INTO refusals (mailbox, side, id) VALUES (?, ?, ?)", [*rows, *keys])


def refusal(database: sqlite3.Connection, mailbox_id: int) -> Refusal | None:
    """The refused plan, None where nothing is refused."""
    flags = database.execute("SELECT refused, approved FROM mailboxes WHERE id = ?", (mailbox_id,)).fetchone()
    if flags is None or flags[0] is None:
        return None
    rows = database.execute("SELECT side, id FROM refusals WHERE mailbox = ?", (mailbox_id,)).fetchall()
    remote = frozenset(Uid(id_) for side, id_ in rows if side == _REMOTE)
    local = frozenset(key_from(id_) for side, id_ in rows if side == _LOCAL)
    return Refusal(remote, local, bool(flags[1]))


def _is_part(plan: Refusal, approved: Refusal) -> bool:
    if not (plan.delete_remote or plan.delete_local):
        return not (approved.delete_remote or approved.delete_local)
    return plan.delete_remote <= approved.delete_remote and plan.delete_local <= approved.delete_local


def _text(database: sqlite3.Connection, mailbox_id: int) -> str | None:
    text: str | None = database.execute("SELECT refused FROM mailboxes WHERE id = ?", (mailbox_id,)).fetchone()[0]
    return text


def clear(database: sqlite3.Connection, mailbox_id: int) -> None:
    """Nothing is refused any more."""
    database.execute("DELETE FROM refusals WHERE mailbox = ?", (mailbox_id,))
    database.execute("UPDATE mailboxes SET refused = NULL, approved = 0 WHERE id = ?", (mailbox_id,))


def printable(text: str | None) -> str | None:
    """Text that SQLite takes: paths in error messages may hold octets that are no UTF-8."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
