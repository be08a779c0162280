"""Messages that a pass which was killed had delivered, or was about to, and of which no pair was committed.

As long as file and message stay where they are, adoption finds them by content. Here is what happens if one has moved
on since: without it the message would come a second time, or its file would be sent.

The note is the pair that was to be committed: in this epoch that Uid has that content, and unique names are given once.
So where there is a file of that name, wherever in the account, the pair was true, and is put in before anything is
looked at: what became of either side since is then a move, a deletion, a flag as any other.

Without such a file it has got another name since, or it never had this one: then it is in `tmp` still, and its message
is fetched again. Else it is known by its content, as what was being sent is (`engine.untold`): a file that is gone
proves nothing about its message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import PurePosixPath
from typing import NamedTuple

import structlog

from maild.core.errors import LocalError
from maild.core.model import Key, Pair
from maild.engine.adopt import sent_orphan
from maild.engine.pull import Work
from maild.local.directory import MailboxDirectory, translated
from maild.local.scan import keys, unfinished
from maild.local.state import Changes
from maild.local.survey import survey

log = structlog.get_logger()


class _Names(NamedTuple):
    """The unique names in a mailbox's directory, and those of what is only being written there."""

    placed: set[Key]
    unfinished: set[Key]


def settle_deliveries(work: Work) -> None:
    """Settle what became of them. Reads names only, and those only after a kill. Blocks.

    The notes of a mailbox that nobody can look into stay.
    """
    state = work.state.state
    noted = state.deliveries()
    if noted:
        unseen = _settle(work, noted) if work.account.maildir.exists() else ()
        state.drop_deliveries({mailbox_id: pairs for mailbox_id, pairs in noted.items() if mailbox_id not in unseen})


def _settle(work: Work, noted: Mapping[int, Sequence[Pair]]) -> set[int]:
    """Put in what to note instead, of those of which neither file nor message has been adopted since.

    Returns the mailboxes that cannot be looked into.
    """
    state = work.state.state
    rows = {row.directory: row for row in state.mailboxes().values()}
    wanted = {pair.key for pairs in noted.values() for pair in pairs}
    placed: set[Key] = set()
    changes: list[Changes] = []
    here = survey(work.account.maildir, work.account.layout)
    found = {where: _names(work, where) for where in here.mailboxes}
    for where, names in found.items():
        some = wanted & names.placed if names is not None else set[Key]()
        placed |= some
        wanted -= state.pairs_by_key(rows[where].id, some).keys() if some and where in rows else set()
    unseen: set[int] = set()
    for where, row in rows.items():
        pairs = noted.get(row.id, ())
        known = state.pairs_of(row.id, [pair.uid for pair in pairs])
        unknown = [pair for pair in pairs if pair.key in wanted and pair.uid not in known]
        away = [pair for pair in unknown if pair.key not in placed]
        names = found.get(where)
        if names is None and (where in found or here.doubt(where)):
            unseen.add(row.id)
        had_names = [pair for pair in away if names is not None and pair.key not in names.unfinished]
        sent = [sent_orphan(pair.key, pair.flags, pair.content, "sending") for pair in had_names]
        changes.append(Changes(row.id, add=[pair for pair in unknown if pair.key in placed], sent=sent))
    state.apply(changes)
    return unseen


def _names(work: Work, where: str) -> _Names | None:
    """None where the directory cannot be read, which its own pass says."""
    try:
        directory = MailboxDirectory.open(work.account.maildir, PurePosixPath(where))
        if directory is None:
            return None
        with closing(directory), translated("read", directory.path):
            return _Names(keys(directory), unfinished(directory))
    except LocalError as exc:
        log.warning("mailbox.failed", account=work.account.name, mailbox=where, error=str(exc))
        return None
