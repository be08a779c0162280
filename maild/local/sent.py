"""Where this disk has the mailbox for what was sent: as the config names it, by its role on the server, by its name.

The roles are those of the last listing (`State.set_roles`). An account without mailboxes on a server has only what is
on this disk.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from maild.core.head import disk_form, divide, shown
from maild.core.model import Key
from maild.core.names import directory, levels_from
from maild.core.roles import SENT, SENT_NAMES, sent_among, usual_sent
from maild.local.directory import MailboxDirectory, is_given_by_maild, translated
from maild.local.scan import Entry, scan
from maild.local.schema import FIRST_WITH_ROLES, StateLocked, reading

_TRIES = 3
_LOOKED_AT = 1000
_HEAD_OCTETS = 1 << 16
_DIGITS = 12
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_BELOW = ((), ("INBOX",))


@dataclass(frozen=True, slots=True)
class _Known:
    """What the state tells: the mailboxes' directories by name, and that of the \\Sent mailbox, "" for none."""

    directories: dict[str, str] = field(default_factory=dict)
    sent: str = ""


def sent_directory(root: Path, layout: str, state: Path, wanted: str | None) -> PurePosixPath:
    """Relative to the account's Maildir `root`; it need not be there yet. `wanted` is the config's `sent_mailbox`.

    Raises LocalError, StateUnusable where there is a state that cannot be read, MailboxUnusable for a name that
    no directory can have.
    """
    known = _known(state)
    if wanted is not None:
        if wanted in known.directories:
            return PurePosixPath(known.directories[wanted])
        return directory(tuple(wanted.split("/")), layout)
    if known.sent:
        return PurePosixPath(known.sent)
    mailboxes = {levels_from(PurePosixPath(where), layout): where for where in known.directories.values()}
    there = {levels: where for levels, where in _usual(layout) if (root / where / "cur").is_dir()}
    found = sent_among({*mailboxes, *there})
    if found is None:
        return directory(usual_sent(mailboxes), layout)
    return PurePosixPath(mailboxes.get(found) or there[found])


def has_readers_copy(root: Path, relative: PurePosixPath, message_id: str) -> bool:
    """Whether the mailbox has a message with this Message-ID under a name that maild does not give; True in doubt.

    A mail reader that keeps copies itself has put it there, and a pass carries it to the server, where it looks like
    what the server has kept. Only the newest are looked at. Raises LocalError.
    """
    box = MailboxDirectory.open(root, relative)
    if box is None:
        return False
    try:
        with translated("read", box.path):
            foreign = [entry for entry in scan(box).entries.values() if not is_given_by_maild(entry.key)]
            foreign.sort(key=lambda entry: _since(entry.key), reverse=True)
            return any(_message_id(box, entry) in (message_id, None) for entry in foreign[:_LOOKED_AT])
    finally:
        box.close()


def _since(key: Key) -> int:
    """The time that a name begins with, as almost all do."""
    digits = key.partition(".")[0]
    return int(digits) if digits.isdecimal() and len(digits) <= _DIGITS else 0


def _message_id(box: MailboxDirectory, entry: Entry) -> str | None:
    """None for a file that has just got another name."""
    try:
        descriptor = os.open(entry.name, _READ, dir_fd=box.descriptor(entry.subdir))
    except FileNotFoundError:
        return None
    try:
        return shown(divide(disk_form(os.read(descriptor, _HEAD_OCTETS))).first("message-id"))
    finally:
        os.close(descriptor)


def _usual(layout: str) -> list[tuple[tuple[str, ...], str]]:
    names = [(*below, name) for below in _BELOW for name in SENT_NAMES]
    return [(levels, str(directory(levels, layout))) for levels in names]


def _known(state: Path) -> _Known:
    for tries_left in reversed(range(_TRIES)):
        try:
            with reading(state, oldest=1) as database:
                return _read(database)
        except FileNotFoundError:
            break
        except StateLocked:
            if not tries_left:
                raise
    return _Known()


def _read(database: sqlite3.Connection) -> _Known:
    directories = dict(database.execute("SELECT name, directory FROM mailboxes").fetchall())
    if database.execute("PRAGMA user_version").fetchone()[0] < FIRST_WITH_ROLES:
        return _Known(directories)
    row = database.execute("SELECT name, directory FROM roles WHERE role = ?", (SENT,)).fetchone()
    return _Known(directories, directories.get(row[0], row[1]) if row is not None else "")
