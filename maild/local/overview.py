"""What one account's state tells a person: read beside whoever writes it, without holding anybody up.

For a `State`, which is the owner's, see `state.py`; here nothing is made, migrated or changed.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from maild.local.schema import StateLocked, StateUnusable, reading

LAST_PASS = "last_pass"  # noqa: S105 - a name in the table meta, written by the engine
_TRIES = 3

# All that most accounts have to tell in one statement: preparing another takes as long as carrying it out.
_MAILBOXES = (
    "SELECT id, name, coalesce(messages, paired, 0), coalesce(unseen, 0), error, refused, approved, last_pass_s,"
    " EXISTS (SELECT 1 FROM skipped) OR EXISTS (SELECT 1 FROM unsent) FROM mailboxes LEFT JOIN"
    r" (SELECT mailbox, count(*) AS paired, sum(instr(' ' || flags || ' ', ' \Seen ') = 0) AS unseen FROM pairs"
    " WHERE only = '' GROUP BY mailbox) ON mailbox = id ORDER BY name <> 'INBOX', name"
)
_WITHHELD = (
    "SELECT mailbox, 0, uid, reason, size_octets, count, first_s FROM skipped"
    " UNION ALL SELECT mailbox, 1, key, reason, size_octets, count, first_s FROM unsent"
)
_REFUSALS = "SELECT mailbox, side, count(*) FROM refusals GROUP BY mailbox, side"


@dataclass(frozen=True, slots=True)
class Withheld:
    """A message that did not travel: its uid or its key, why, how often it was tried, since when (seconds, UTC)."""

    id: str
    reason: str
    size_octets: int
    count: int
    first_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A plan that the guard refused: how many messages it would delete on this disk and on the server, both 0 where
    a whole mailbox is gone. `is_approved`: the user released it."""

    reason: str
    here: int
    there: int
    is_approved: bool


@dataclass(frozen=True, slots=True)
class MailboxOverview:
    """One mailbox. `last_pass_s` is when it was last complete (seconds since 1970 UTC), None for never.

    `skipped` are messages left on the server, `held_back` those that the server did not take.
    """

    name: str
    messages: int
    unseen: int
    error: str | None
    refused: Refused | None
    last_pass_s: float | None
    skipped: tuple[Withheld, ...]
    held_back: tuple[Withheld, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """One account, its INBOX first, the others by name. `error` is why its last pass failed as a whole, or None.

    `last_pass_s` is when a pass last came to its end, or at least a mailbox was complete; None for never.
    """

    last_pass_s: float | None
    error: str | None
    mailboxes: tuple[MailboxOverview, ...]


NOTHING_KNOWN = Overview(None, None, ())


def read_overview(path: Path) -> Overview:
    """What the state file at `path` tells; NOTHING_KNOWN where there is none. Raises LocalError, StateUnusable."""
    tries = 1
    while True:
        try:
            with reading(path) as database:
                return _overview(database, path)
        except FileNotFoundError:
            return NOTHING_KNOWN
        except StateLocked:
            if tries == _TRIES:
                raise
            tries += 1


def _overview(database: sqlite3.Connection, path: Path) -> Overview:
    rows = database.execute(_MAILBOXES).fetchall()
    plans: dict[tuple[int, str], int] = {}
    if any(row[5] is not None for row in rows):
        plans = {(mailbox, side): count for mailbox, side, count in database.execute(_REFUSALS)}
    withheld = _withheld(database) if any(row[8] for row in rows) else {}
    mailboxes = []
    for id_, name, count, unseen, error, reason, approved, last_pass_s, _ in rows:
        refused = None
        if reason is not None:
            refused = Refused(reason, plans.get((id_, "local"), 0), plans.get((id_, "remote"), 0), bool(approved))
        skipped, held_back = (tuple(withheld.get((id_, side), ())) for side in (0, 1))
        mailboxes.append(MailboxOverview(name, count, unseen, error, refused, last_pass_s, skipped, held_back))
    at_s, failure = _last_pass(database, path)
    if at_s is None:
        at_s = max((m.last_pass_s for m in mailboxes if m.last_pass_s is not None), default=None)
    return Overview(at_s, failure, tuple(mailboxes))


def _withheld(database: sqlite3.Connection) -> Mapping[tuple[int, int], list[Withheld]]:
    """By mailbox and side: 0 on the server, 1 here."""
    found: dict[tuple[int, int], list[Withheld]] = defaultdict(list)
    for mailbox, side, id_, reason, size_octets, count, first_s in database.execute(_WITHHELD):
        name = os.fsdecode(id_)  # a key that is not ASCII is stored as octets (pairs.py)
        found[mailbox, side].append(Withheld(name, reason, size_octets, count, first_s))
    return found


def last_done(told: str | None) -> float | None:
    """When a pass last came to its end, by what LAST_PASS holds; None where that is not known."""
    try:
        last = json.loads(told or "null")
        return float(last["at"] if last["error"] is None else last["done_at"])
    except (ValueError, TypeError, KeyError):
        return None


def _last_pass(database: sqlite3.Connection, path: Path) -> tuple[float | None, str | None]:
    """(when a pass last came to its end, if known; why the last one failed). Mailboxes that failed have their own."""
    row = database.execute("SELECT value FROM meta WHERE name = ?", (LAST_PASS,)).fetchone()
    if row is None:
        return None, None
    try:
        told = json.loads(row[0])
        at_s, error = float(told["at"]), told["error"]
        return (at_s if error is None else told.get("done_at")), error
    except (ValueError, TypeError, KeyError) as exc:
        raise StateUnusable(
            f"the state {path} is damaged ({LAST_PASS} is {row[0][:80]!r})",
            "delete it: maild then matches both sides by content, no mail is lost or doubled",
        ) from exc
