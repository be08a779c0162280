"""What is known of the messages of a POP3 maildrop, in the account's state file, beside the pairs of its mailbox.

A row stands here from the moment maild first sees a message listed; the message's pair follows when it is durable.
Nothing is forgotten of a message that is merely not listed any more, until `core.maildrop` says so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping

from maild.core.maildrop import Known, Terms
from maild.core.model import Key, Uid
from maild.local import pairs
from maild.local.state import State

_TABLE = """
    CREATE TABLE IF NOT EXISTS maildrop (
        mailbox INTEGER NOT NULL REFERENCES mailboxes ON DELETE CASCADE,
        uid TEXT NOT NULL,
        first_seen_s REAL NOT NULL,
        size_octets INTEGER,
        header BLOB,
        gone_s REAL,
        deletion_s REAL,
        elsewhere,
        PRIMARY KEY (mailbox, uid)
    ) WITHOUT ROWID
"""
_KNOWN = """
    SELECT m.uid, m.first_seen_s, m.size_octets, m.header, m.gone_s, m.deletion_s, p.key, p.size_octets, p.digest
    FROM maildrop m LEFT JOIN pairs p ON p.mailbox = m.mailbox AND p.uid = m.uid WHERE m.mailbox = ?
"""


_TERMS = "pop3_terms"  # LOGIN-DELAY in seconds, EXPIRE in days or "-", and when the server said so


def terms_told(state: State) -> tuple[Terms, float]:
    """What the server wanted at the last login, and when that was (seconds since 1970 UTC). Raises LocalError."""
    text = state.meta(_TERMS)
    if text is None:
        return Terms(), 0.0
    login_delay, expire, login_s = text.split(" ")
    return Terms(int(login_delay), None if expire == "-" else int(expire)), float(login_s)


def note_terms(state: State, terms: Terms, login_s: float) -> None:
    """The server was logged in to at `login_s`, and wants this. Raises LocalError."""
    expire = "-" if terms.expire_days is None else terms.expire_days
    state.set_meta(_TERMS, f"{terms.login_delay_s} {expire} {login_s:.3f}")


class MaildropTable:
    """The rows of one account's maildrop. Every method blocks and raises LocalError; for the state's thread."""

    def __init__(self, state: State, mailbox_id: int) -> None:
        self._state = state
        self._mailbox = mailbox_id

    def create(self) -> None:
        """Make the table where the file has none yet; only `known` may be called before."""
        with self._state.transaction() as database:
            database.execute(_TABLE)

    def known(self) -> dict[Uid, Known]:
        """All that is remembered."""
        if not self._state.rows("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'maildrop'"):
            return {}
        return {row[0]: _known(*row) for row in self._state.rows(_KNOWN, (self._mailbox,))}

    def elsewhere(self) -> dict[Uid, Key]:
        """Under which key a message's file was found in another mailbox, where that is another one."""
        rows = self._state.rows(
            "SELECT uid, elsewhere FROM maildrop WHERE mailbox = ? AND elsewhere IS NOT NULL", (self._mailbox,)
        )
        return {uid: pairs.key_from(key) for uid, key in rows}

    def note_listing(
        self, unseen: Iterable[Uid], lost: Iterable[Uid], returned: Iterable[Uid], gone: Collection[Uid], now_s: float
    ) -> None:
        """Begin with messages seen for the first time, mark those not listed any more, drop those that are `gone`."""
        with self._state.transaction() as database:
            database.executemany(
                "INSERT OR IGNORE INTO maildrop (mailbox, uid, first_seen_s) VALUES (?, ?, ?)",
                [(self._mailbox, uid, now_s) for uid in unseen],
            )
            database.executemany(
                "UPDATE maildrop SET gone_s = ? WHERE mailbox = ? AND uid = ? AND gone_s IS NULL",
                [(now_s, self._mailbox, uid) for uid in lost],
            )
            database.executemany(
                "UPDATE maildrop SET gone_s = NULL, deletion_s = NULL WHERE mailbox = ? AND uid = ?",
                [(self._mailbox, uid) for uid in returned],
            )
            self._drop(database, gone)

    def begin_anew(self, mark: str) -> None:
        """The account has another maildrop: what is known gets identities, begun by `mark`, that none there can have.

        So it can still be matched by content.
        """
        with self._state.transaction() as database:
            for table in ("maildrop", "pairs"):
                database.execute(
                    f"UPDATE {table} SET uid = ? || uid WHERE mailbox = ?",  # noqa: S608  # names of ours
                    (mark, self._mailbox),
                )
            database.execute("DELETE FROM skipped WHERE mailbox = ?", (self._mailbox,))

    def rename(self, renamed: Mapping[Uid, Uid]) -> None:
        """The same messages have other unique-ids now: new → old. All that is known goes with them."""
        rows = [(self._mailbox, new, old) for new, old in renamed.items()]
        with self._state.transaction() as database:
            database.executemany("DELETE FROM maildrop WHERE mailbox = ? AND uid = ?", [row[:2] for row in rows])
            for table, more in (("maildrop", ", gone_s = NULL, deletion_s = NULL"), ("pairs", "")):
                database.executemany(
                    f"UPDATE {table} SET uid = ?{more} WHERE mailbox = ? AND uid = ?",  # noqa: S608  # names of ours
                    [(new, mailbox, old) for mailbox, new, old in rows],
                )

    def note_facts(self, facts: Iterable[tuple[Uid, int | None, bytes | None]]) -> None:
        """Remember the size told by LIST, and the header digest, of messages; None leaves what is known."""
        with self._state.transaction() as database:
            database.executemany(
                "UPDATE maildrop SET size_octets = coalesce(?, size_octets), header = coalesce(?, header)"
                " WHERE mailbox = ? AND uid = ?",
                [(size, header, self._mailbox, uid) for uid, size, header in facts],
            )

    def note_elsewhere(self, found: Mapping[Uid, Key]) -> None:
        """The reader moved these files to another mailbox, under these keys."""
        with self._state.transaction() as database:
            database.executemany(
                "UPDATE maildrop SET elsewhere = ? WHERE mailbox = ? AND uid = ?",
                [(pairs.to_row(key), self._mailbox, uid) for uid, key in found.items()],
            )

    def ask_deletion(self, uids: Iterable[Uid], now_s: float) -> None:
        """Write down that the server is about to be asked to delete these."""
        with self._state.transaction() as database:
            database.executemany(
                "UPDATE maildrop SET deletion_s = ? WHERE mailbox = ? AND uid = ?",
                [(now_s, self._mailbox, uid) for uid in uids],
            )

    def withdraw_deletion(self, uids: Iterable[Uid]) -> None:
        """The server did not agree to delete these."""
        with self._state.transaction() as database:
            database.executemany(
                "UPDATE maildrop SET deletion_s = NULL WHERE mailbox = ? AND uid = ?",
                [(self._mailbox, uid) for uid in uids],
            )

    def confirm_deletion(self, uids: Collection[Uid]) -> None:
        """The server has deleted these; their files stay, and are no longer a copy of anything."""
        with self._state.transaction() as database:
            self._drop(database, uids)

    def _drop(self, database: sqlite3.Connection, uids: Collection[Uid]) -> None:
        rows = [(self._mailbox, uid) for uid in uids]
        database.executemany("DELETE FROM maildrop WHERE mailbox = ? AND uid = ?", rows)
        database.executemany("DELETE FROM pairs WHERE mailbox = ? AND uid = ?", rows)
        database.executemany("DELETE FROM skipped WHERE mailbox = ? AND uid = ?", rows)


def _known(
    uid: Uid,
    first_seen_s: float,
    size_octets: int | None,
    header: bytes | None,
    gone_s: float | None,
    deletion_s: float | None,
    key: str | bytes | None,
    content_octets: int | None,
    digest: bytes | None,
) -> Known:
    content = None if content_octets is None or digest is None else (content_octets, digest)
    here = None if key is None else pairs.key_from(key)
    return Known(uid, first_seen_s, size_octets, header, gone_s, deletion_s, here, content)
