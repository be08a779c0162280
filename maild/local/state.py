"""One account's state: which messages are pairs, and where each mailbox's last pass ended.

A SQLite file per account, written ahead (WAL) and synced at each commit. What is committed here was durable in the
Maildir before; losing the file loses no mail, for both sides are matched by content again. Everything blocks; one
thread at a time may use a `State`, which one does not matter.
"""

from __future__ import annotations

import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from maild.core.model import Content, Cursor, Epoch, Flags, Key, MailboxName, Only, Pair, Skipped, Uid
from maild.local import pairs as pair_rows
from maild.local import withheld
from maild.local.schema import Row, open_database, translated
from maild.local.withheld import Refusal, Unsent, UnsentMessage, printable

_PAGE_ROWS = 2000
_IN_VALUES = 500
_IN_KEYS = 20_000  # each round reads all pairs of the mailbox: an index by key costs a first pass 25% more in `apply`
_MAILBOXES = (
    "SELECT id, name, directory, epoch, cursor, mark, messages, error, refused, last_pass_s,"
    " object_id, identity, stamp, undone, next_uid, approved, matched FROM mailboxes"
)

UNCHANGED: Final = "="  # instead of a stamp: the column stays as it is


@dataclass(frozen=True, slots=True)
class MailboxState:
    """What is known of one mailbox.

    `directory` is relative to the account's Maildir. `cursor`, `mark` and `messages` are those of the last complete
    pass, `last_pass_s` when it ended (seconds since 1970 UTC); `error` and `refused` say why a later one was not.

    `object_id` is the server's name for the mailbox that a rename leaves as it is, `identity` that of the local
    directory (`survey.LocalMailbox`). While the directory has this `stamp` (`survey.Stamp.text`) nothing changed in it;
    None proves nothing. `undone`: a local change could not be carried out, so look again whatever the stamp says.
    `next_uid` is UIDNEXT as listed when the pass began. `approved`: the refused plan was released. `matched`: as long
    as it has this stamp, it holds the files of its pairs and no others, with the flags of their bases.
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
    object_id: str = ""
    identity: str = ""
    stamp: str | None = None
    undone: bool = False
    next_uid: str = ""
    approved: bool = False
    matched: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed in one mailbox: pairs made, base flags that are new, pairs that are no more, or on one side only.

    `sent`: local messages that the server is given, or has been, without a Uid to make a pair with.
    """

    mailbox_id: int
    add: Sequence[Pair] = ()
    flags: Sequence[tuple[Uid, Flags, str | None]] = ()
    drop: Sequence[Uid] = ()
    only: Sequence[tuple[Uid, Only]] = ()
    sent: Sequence[Orphan] = ()


@dataclass(frozen=True, slots=True)
class Orphan:
    """A message without a pair, known by content, with the flags of its last base. Mostly its epoch has ended.

    `only` as in `Pair`: where it is not "", its deletion on the other side is not to come undone. One that is "unsure"
    is a file that is being deleted, unless its message comes after all; one that is "sent" the server has taken under a
    Uid that nobody told, one that is "sending" it may have: neither is to be sent again while it is there. One that is
    "missed" was taken, and the last pass did not find it.
    """

    key: Key
    flags: Flags
    size_octets: int
    digest: bytes
    only: Only | Literal["unsure", "sending", "sent", "missed"] = ""

    @property
    def is_untold(self) -> bool:
        """Whether the server may have it under a Uid that nobody told."""
        return self.only in {"sending", "sent", "missed"}

    @property
    def is_taken(self) -> bool:
        """Whether the server has said that it took it."""
        return self.only in {"sent", "missed"}

    @property
    def content(self) -> Content:
        """As that of a pair."""
        return self.size_octets, self.digest


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
        self._opened: sqlite3.Connection | None = database
        self._is_closed = False

    @classmethod
    def open(cls, path: Path) -> State:
        """Open the file, making it (mode 0600) if it is missing and bringing an older schema up to date."""
        return cls(path, open_database(path))

    def close(self) -> None:
        self.sleep()
        self._is_closed = True

    def sleep(self) -> None:
        """Close the file; the next use opens it again."""
        opened, self._opened = self._opened, None
        if opened is not None:
            with translated(self.path):
                opened.close()

    @property
    def _database(self) -> sqlite3.Connection:
        if self._opened is None:
            if self._is_closed:
                raise sqlite3.ProgrammingError("the state was closed")
            self._opened = open_database(self.path)
        return self._opened

    def mailboxes(self) -> dict[MailboxName, MailboxState]:
        """Every mailbox there is a state for."""
        return {row[1]: _mailbox(row) for row in self.rows(_MAILBOXES)}

    def add_mailbox(self, name: MailboxName, directory: str) -> MailboxState:
        """Begin with a mailbox; one that is known by this name gets the directory and keeps the rest."""
        self._write(
            "INSERT INTO mailboxes (name, directory) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET directory = excluded.directory",
            (name, directory),
        )
        return _mailbox(self.rows(_MAILBOXES + " WHERE name = ?", (name,))[0])

    def set_epoch(self, mailbox_id: int, epoch: Epoch) -> None:
        self._write("UPDATE mailboxes SET epoch = ? WHERE id = ?", (epoch, mailbox_id))

    def finish(
        self,
        mailbox_id: int,
        cursor: Cursor | None,
        mark: str | None,
        messages: int | None,
        last_pass_s: float,
        *,
        stamp: str | None = UNCHANGED,
        undone: bool | None = None,
        object_id: str | None = None,
        identity: str | None = None,
        next_uid: str | None = None,
        matched: bool | None = None,
    ) -> None:
        """A pass is complete: everything up to `cursor` is applied. The last error is past.

        `stamp` None: nothing proves what the directory looked like. The other keywords, left out or None, leave what
        is stored.
        """
        self._write(
            "UPDATE mailboxes SET cursor = ?, mark = ?, messages = ?, last_pass_s = ?, error = NULL,"
            " stamp = iif(? = ?, stamp, ?), undone = coalesce(?, undone), object_id = coalesce(?, object_id),"
            " identity = coalesce(?, identity), next_uid = coalesce(?, next_uid), matched = coalesce(?, matched)"
            " WHERE id = ?",
            (
                *(cursor, mark, messages, last_pass_s),
                *(stamp, UNCHANGED, stamp, undone, object_id, identity, next_uid, matched, mailbox_id),
            ),
        )

    def look_again(self, mailbox_ids: Collection[int], *, is_all: bool = False) -> None:
        """The next pass opens these mailboxes, whatever the stamps say; with `is_all` it asks for all that is there."""
        with self.transaction() as database:
            values = [(mailbox_id,) for mailbox_id in mailbox_ids]
            database.executemany("UPDATE mailboxes SET stamp = NULL, undone = 1 WHERE id = ?", values)
            if is_all:
                database.executemany("UPDATE mailboxes SET cursor = NULL, mark = NULL WHERE id = ?", values)

    def set_stamp(self, mailbox_id: int, stamp: str | None) -> None:
        """What the directory looked like when it held the files of its pairs and no others; None: look at it again."""
        self.set_stamps({mailbox_id: stamp})

    def set_stamps(self, stamps: Mapping[int, str | None]) -> None:
        """The same of several mailboxes, by id."""
        with self.transaction() as database:
            values = [(stamp, mailbox_id) for mailbox_id, stamp in stamps.items()]
            database.executemany("UPDATE mailboxes SET stamp = ?, matched = 1 WHERE id = ?", values)

    def forget_directory(self, mailbox_id: int) -> None:
        """Nobody misses the directory that the mailbox had: it is to be made again."""
        self._write("UPDATE mailboxes SET identity = '', stamp = NULL WHERE id = ?", (mailbox_id,))

    def rename_mailbox(self, mailbox_id: int, name: MailboxName, directory: str) -> None:
        """The mailbox has another name and directory on both sides. No other row may have either."""
        with self.transaction() as database:
            database.execute(
                "UPDATE roles SET name = ?, directory = ? WHERE name = (SELECT name FROM mailboxes WHERE id = ?)",
                (name, directory, mailbox_id),
            )
            database.execute("UPDATE mailboxes SET name = ?, directory = ? WHERE id = ?", (name, directory, mailbox_id))

    def set_error(self, mailbox_id: int, text: str | None) -> None:
        self._write("UPDATE mailboxes SET error = ? WHERE id = ?", (printable(text), mailbox_id))

    def set_refused(self, mailbox_id: int, text: str | None) -> None:
        """Say why nothing is deleted, without a plan that could be approved by its ids; None is `clear_refusal`."""
        if text is None:
            self.clear_refusal(mailbox_id)
        else:
            self.refuse(mailbox_id, text, (), ())

    def refuse(self, mailbox_id: int, text: str, remote: Iterable[Uid], local: Iterable[Key]) -> None:
        """The guard refused a plan that deletes these on the server and these on this disk; it replaces the last one.

        An approval stays if it was for this plan or one that holds all of this; never from some ids to none.
        """
        with self.transaction() as database:
            withheld.refuse(database, mailbox_id, text, Refusal(frozenset(remote), frozenset(local)))

    def refusal(self, mailbox_id: int) -> Refusal | None:
        """The refused plan, None where nothing is refused."""
        with translated(self.path):
            return withheld.refusal(self._database, mailbox_id)

    def approve(self, mailbox_id: int) -> bool:
        """Release the refused plan, that one only. False where nothing is refused."""
        with self.transaction() as database:
            done = database.execute(
                "UPDATE mailboxes SET approved = 1 WHERE id = ? AND refused IS NOT NULL", (mailbox_id,)
            )
            return done.rowcount > 0

    def clear_refusal(self, mailbox_id: int) -> None:
        """Nothing is refused any more."""
        with self.transaction() as database:
            withheld.clear(database, mailbox_id)

    def drop_mailbox(self, mailbox_id: int) -> None:
        """Forget a mailbox with its pairs, orphans, skipped and unsent messages, and its refused plan."""
        self._write("DELETE FROM mailboxes WHERE id = ?", (mailbox_id,))

    def rebuild(self, mailbox_id: int, epoch: Epoch) -> None:
        """The Uids mean other messages now: what is known of the local ones becomes orphans, for a match by content."""
        with self.transaction() as database:
            pair_rows.make_orphans(database, mailbox_id)
            database.execute("DELETE FROM skipped WHERE mailbox = ?", (mailbox_id,))
            database.execute("DELETE FROM unsent WHERE mailbox = ?", (mailbox_id,))
            database.execute("DELETE FROM deliveries WHERE mailbox = ?", (mailbox_id,))
            database.execute("DELETE FROM going WHERE ? IN (mailbox, target)", (mailbox_id,))
            withheld.clear(database, mailbox_id)
            database.execute(
                "UPDATE mailboxes SET epoch = ?, cursor = NULL, mark = NULL, messages = NULL, stamp = NULL,"
                " next_uid = '' WHERE id = ?",
                (epoch, mailbox_id),
            )

    def forget_bases(self) -> None:
        """Of all orphans keep what they are, and on which side alone: the flags that they had once are no base."""
        self._write("UPDATE orphans SET flags = '', only = iif(only IN ('local', 'remote'), only, '')", ())

    def apply(self, changes: Iterable[Changes]) -> None:
        """Commit what is durable on both sides, for several mailboxes at once: all of it or nothing.

        In each mailbox pairs are dropped, then added, then flags and sides set. A key that gets a pair is an orphan no
        longer. A message that moved is dropped from one mailbox and added to another.
        """
        with self.transaction() as database:
            for change in changes:
                pair_rows.drop(database, change.mailbox_id, change.drop)
                if change.add:
                    pair_rows.add(database, change.mailbox_id, change.add)
                pair_rows.set_flags(database, change.mailbox_id, change.flags)
                pair_rows.set_only(database, change.mailbox_id, change.only)
                pair_rows.add_orphans(database, change.mailbox_id, map(_orphan_row, change.sent))

    def pairs(self, mailbox_id: int) -> Iterator[Pair]:
        """Every pair, in bounded memory; changes made while iterating may or may not be seen."""
        yield from map(pair_rows.pair_from, self._paged(pair_rows.PAIRS, mailbox_id))

    def base(self, mailbox_id: int) -> Iterator[tuple[Uid, Key, Flags, Only]]:
        """The same, no more of it than a comparison with both sides needs: for whole mailboxes, quickly."""
        yield from pair_rows.base_from(self._paged(pair_rows.BASE, mailbox_id))

    def names(self, mailbox_id: int) -> tuple[set[str], int]:
        """The names that files of pairs have as long as nobody changes anything; and how many may have any name."""
        text, others = self.rows(pair_rows.NAMES, (mailbox_id,))[0]
        return set(text.split("\n")) if text else set(), others

    def nameless(self, mailbox_id: int, most: int) -> list[Key]:
        """The keys of pairs whose file may have any name, at most so many."""
        return [pair_rows.key_from(row[0]) for row in self.rows(pair_rows.NAMELESS, (mailbox_id, most))]

    def meanings(self, mailbox_id: int) -> list[tuple[str, Flags]]:
        """Which infos the names of pairs' files have, and the flags that they stood for; few, however many pairs."""
        return [(info, pair_rows.flags_from(flags)) for info, flags in self.rows(pair_rows.MEANINGS, (mailbox_id,))]

    def keys_meaning(self, mailbox_id: int, info: str, flags: Flags) -> list[Key]:
        """The keys of pairs whose file's name has this info, which stood for these flags."""
        rows = self.rows(pair_rows.MEANING, (mailbox_id, info, pair_rows.flags_text(flags)))
        return [pair_rows.key_from(row[0]) for row in rows]

    def pairs_of(self, mailbox_id: int, uids: Collection[Uid]) -> dict[Uid, Pair]:
        """The pairs of these messages; those that have none are missing."""
        return {pair.uid: pair for pair in self._pairs_where("uid", mailbox_id, list(uids), _IN_VALUES)}

    def pairs_by_key(self, mailbox_id: int, keys: Collection[Key]) -> dict[Key, Pair]:
        """The pairs of these local messages, those that are on the server only included."""
        stored = [pair_rows.to_row(key) for key in keys]
        return {pair.key: pair for pair in self._pairs_where("key", mailbox_id, stored, _IN_KEYS)}

    def pairs_with(self, mailbox_id: int, contents: Collection[Content]) -> list[Pair]:
        """The pairs of messages with one of these sizes and digests. Reads the whole mailbox."""
        found = self._pairs_where("digest", mailbox_id, [digest for _, digest in contents], _IN_VALUES)
        return [pair for pair in found if pair.content in contents]

    def all_with(self, contents: Collection[Content]) -> Iterator[tuple[int | None, str, Content]]:
        """Every message that is known to have one of these contents: mailbox, Uid and content, from all pairs.

        None and the key instead where the message has no pair, so that its Uid is not known. Messages that are on this
        disk alone are not told.
        """
        digests = list({digest for _, digest in contents})
        for start in range(0, len(digests), _IN_VALUES):
            some = digests[start : start + _IN_VALUES]
            marks = ", ".join("?" * len(some))
            for query in pair_rows.WITH_CONTENT:
                for mailbox_id, id_, size_octets, digest in self.rows(f"{query} AND digest IN ({marks})", some):
                    if (size_octets, digest) in contents:
                        yield mailbox_id, id_ if mailbox_id else pair_rows.key_from(id_), (size_octets, digest)

    def uids(self, mailbox_id: int) -> set[Uid]:
        """Of all messages that are on the server, as far as is known."""
        return {
            row[0] for row in self.rows("SELECT uid FROM pairs WHERE mailbox = ? AND only <> 'local'", (mailbox_id,))
        }

    def keys(self, mailbox_id: int) -> set[Key]:
        """Of all messages that are on this disk, as far as is known."""
        rows = self.rows("SELECT key FROM pairs WHERE mailbox = ? AND only <> 'remote'", (mailbox_id,))
        return {pair_rows.key_from(row[0]) for row in rows}

    def count(self, mailbox_id: int) -> int:
        """How many messages are on both sides."""
        return self._number("SELECT count(*) FROM pairs WHERE mailbox = ? AND only = ''", mailbox_id)

    def count_there(self, mailbox_id: int) -> int:
        """How many messages of the mailbox are on the server, as far as the pairs know."""
        return self._number("SELECT count(*) FROM pairs WHERE mailbox = ? AND only <> 'local'", mailbox_id)

    def unseen(self, mailbox_id: int) -> int:
        """How many of those have no `\\Seen`, by the last common state."""
        return self._number(
            r"SELECT count(*) FROM pairs WHERE mailbox = ? AND only = '' AND instr(' ' || flags || ' ', ' \Seen ') = 0",
            mailbox_id,
        )

    def orphans(self, mailbox_id: int) -> dict[Key, Orphan]:
        """What `rebuild` left and no pair has taken up since, and files that are being deleted."""
        rows = self.rows("SELECT key, flags, size_octets, digest, only FROM orphans WHERE mailbox = ?", (mailbox_id,))
        found = (Orphan(pair_rows.key_from(key), pair_rows.flags_from(flags), *rest) for key, flags, *rest in rows)
        return {orphan.key: orphan for orphan in found}

    def make_unsure(self, mailbox_id: int, orphans: Iterable[Orphan], drop: Iterable[tuple[int, Uid]]) -> None:
        """Note files that are about to be deleted, in place of the pairs that they had in whichever mailbox.

        So that a deletion that is cut off is known from one that a reader made.
        """
        with self.transaction() as database:
            for was_id, uid in drop:
                pair_rows.drop(database, was_id, [uid])
            pair_rows.add_orphans(database, mailbox_id, map(_orphan_row, orphans))

    def drop_orphans(self, mailbox_id: int, keys: Iterable[Key]) -> None:
        with self.transaction() as database:
            pair_rows.drop_orphans(database, mailbox_id, keys)

    def note_deliveries(self, pairs: Mapping[int, Sequence[Pair]]) -> None:
        """By mailbox id, the pairs of files that are about to get their names; `apply`, which adds them, drops this."""
        with self.transaction() as database:
            for mailbox_id, some in pairs.items():
                pair_rows.add_deliveries(database, mailbox_id, some)

    def deliveries(self) -> dict[int, list[Pair]]:
        """What was noted and has no pair since: whether those files got their names nobody knows."""
        found: dict[int, list[Pair]] = defaultdict(list)
        for mailbox_id, uid, key, flags, *content in self.rows(pair_rows.DELIVERIES):
            pair = Pair(uid, pair_rows.key_from(key), pair_rows.flags_from(flags), *content)
            found[mailbox_id].append(pair)
        return found

    def drop_deliveries(self, pairs: Mapping[int, Sequence[Pair]]) -> None:
        with self.transaction() as database:
            for mailbox_id, some in pairs.items():
                pair_rows.drop_deliveries(database, mailbox_id, [pair.uid for pair in some])

    def note_going(self, mailbox_id: int, uids: Collection[Uid], copies: tuple[int, Uid] | None = None) -> None:
        """Messages that are about to be deleted on the server, or moved; a note about copies of them is not undone.

        With `copies` where it copies them first: to which mailbox, and what was the newest message there before.
        Dropped with their pairs, or by `drop_going`.
        """
        rows = [(mailbox_id, uid, *(copies or (None, ""))) for uid in uids]
        with self.transaction() as database:
            database.executemany(
                "INSERT INTO going (mailbox, uid, target, newest) VALUES (?, ?, ?, ?) ON CONFLICT (mailbox, uid)"
                " DO UPDATE SET target = excluded.target, newest = excluded.newest WHERE excluded.target IS NOT NULL",
                rows,
            )

    def going(self) -> dict[tuple[int, Uid], tuple[int, Uid] | None]:
        """What may have been deleted, moved or copied, and is not known to be: `copies`, by mailbox id and Uid."""
        found = self.rows(pair_rows.GOING)
        return {(row[0], row[1]): None if row[2] is None else (row[2], row[3]) for row in found}

    def drop_going(self, messages: Iterable[tuple[int, Uid]]) -> None:
        """They are where they were."""
        with self.transaction() as database:
            database.executemany("DELETE FROM going WHERE mailbox = ? AND uid = ?", list(messages))

    def skip(self, mailbox_id: int, messages: Iterable[Skipped], now_s: float | None = None) -> None:
        """Remember messages that were left on the server; one that was before is counted once more."""
        when = time.time() if now_s is None else now_s
        with self.transaction() as database:
            database.executemany(
                "INSERT INTO skipped (mailbox, uid, reason, size_octets, count, first_s, last_s)"
                " VALUES (?, ?, ?, ?, 1, ?, ?) ON CONFLICT (mailbox, uid) DO UPDATE SET reason = excluded.reason,"
                " size_octets = excluded.size_octets, count = count + 1, last_s = excluded.last_s",
                [(mailbox_id, item.uid, printable(item.reason), item.size_octets, when, when) for item in messages],
            )

    def skipped(self, mailbox_id: int) -> dict[Uid, SkippedMessage]:
        rows = self.rows(
            "SELECT uid, reason, size_octets, count, first_s, last_s FROM skipped WHERE mailbox = ?", (mailbox_id,)
        )
        return {row[0]: SkippedMessage(*row) for row in rows}

    def left_for_size(self, limit_octets: int) -> dict[int, list[tuple[Uid, int]]]:
        """Messages that are bigger than that and were left on the server: Uids with sizes, by mailbox id."""
        found: dict[int, list[tuple[Uid, int]]] = defaultdict(list)
        query = "SELECT mailbox, uid, size_octets FROM skipped WHERE size_octets > ?"
        for mailbox_id, uid, size_octets in self.rows(query, (limit_octets,)):
            found[mailbox_id].append((uid, size_octets))
        return found

    def unskip(self, mailbox_id: int, uids: Iterable[Uid]) -> None:
        with self.transaction() as database:
            database.executemany(
                "DELETE FROM skipped WHERE mailbox = ? AND uid = ?", [(mailbox_id, uid) for uid in uids]
            )

    def with_leftovers(self) -> set[int]:
        """The mailboxes with messages that did not travel, either way, or of which something is yet to be found out."""
        return {row[0] for row in self.rows(pair_rows.LEFTOVERS)}

    def hold_back(self, mailbox_id: int, items: Iterable[Unsent], now_s: float | None = None) -> None:
        """Remember local messages that the server did not take; one that was there before is counted once more."""
        when = time.time() if now_s is None else now_s
        with self.transaction() as database:
            withheld.hold_back(database, mailbox_id, items, when)

    def unsent(self, mailbox_id: int) -> dict[Key, UnsentMessage]:
        rows = self.rows(
            "SELECT key, reason, size_octets, count, first_s, last_s FROM unsent WHERE mailbox = ?", (mailbox_id,)
        )
        return {item.key: item for item in map(withheld.unsent_from, rows)}

    def unsent_done(self, mailbox_id: int, keys: Iterable[Key]) -> None:
        """These are on the server by now, or are gone."""
        with self.transaction() as database:
            database.executemany(
                "DELETE FROM unsent WHERE mailbox = ? AND key = ?",
                [(mailbox_id, pair_rows.to_row(key)) for key in keys],
            )

    def roles(self) -> dict[str, tuple[MailboxName, str]]:
        """The mailbox that has a role on the server (RFC 6154), with its directory: by role, as it was listed last."""
        return {role: (name, where) for role, name, where in self.rows("SELECT role, name, directory FROM roles")}

    def set_roles(self, roles: Mapping[str, tuple[MailboxName, str]]) -> None:
        """What a listing told; also of mailboxes that are not synchronised. Nothing is written if it is known."""
        if roles == self.roles():
            return
        with self.transaction() as database:
            database.execute("DELETE FROM roles")
            database.executemany(
                "INSERT INTO roles (role, name, directory) VALUES (?, ?, ?)",
                [(role, name, where) for role, (name, where) in roles.items()],
            )

    def meta(self, name: str) -> str | None:
        """A fact about the account as a whole, None if it was never set."""
        rows = self.rows("SELECT value FROM meta WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else None

    def set_meta(self, name: str, value: str) -> None:
        self._write(
            "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    # -- for tables of this file that belong to one protocol (`local.maildrop`)

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Row]:
        """All that a query finds."""
        with translated(self.path):
            return self._database.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """What is executed inside is committed together, or not at all where anything is raised."""
        with translated(self.path), self._database as database:  # the connection commits, or rolls back what raised
            database.execute("BEGIN IMMEDIATE")
            yield database

    def _paged(self, query: str, mailbox_id: int) -> Iterator[Row]:
        """All rows of a mailbox's pairs; `uid` is the first column."""
        last = ""
        while True:
            rows = self.rows(query + " AND uid > ? ORDER BY uid LIMIT ?", (mailbox_id, last, _PAGE_ROWS))
            yield from rows
            if len(rows) < _PAGE_ROWS:
                return
            last = rows[-1][0]

    def _pairs_where(self, column: str, mailbox_id: int, values: Sequence[str | bytes], at_once: int) -> Iterator[Pair]:
        for start in range(0, len(values), at_once):
            some = values[start : start + at_once]
            marks = ", ".join("?" * len(some))
            rows = self.rows(f"{pair_rows.PAIRS} AND {column} IN ({marks})", (mailbox_id, *some))
            yield from map(pair_rows.pair_from, rows)

    def _number(self, query: str, *values: object) -> int:
        return int(self.rows(query, values)[0][0])

    def _write(self, statement: str, values: Sequence[object]) -> None:
        with self.transaction() as database:
            database.execute(statement, values)


def _orphan_row(orphan: Orphan) -> tuple[Key, Flags, int, bytes, str]:
    return orphan.key, orphan.flags, orphan.size_octets, orphan.digest, orphan.only


def _mailbox(row: Row) -> MailboxState:
    stored = MailboxState(*row)
    # SQLite has no truth values.
    return replace(stored, undone=bool(stored.undone), approved=bool(stored.approved), matched=bool(stored.matched))
