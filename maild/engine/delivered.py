"""Messages that a pass which was killed had delivered, or was about to, and of which no pair was committed.

As long as file and message stay where they are, adoption finds them by content. Here is what happens if one has moved
on since: without it the message would come a second time, or its file would be sent.

The note is the pair that was to be committed: in this epoch that Uid has that content, and unique names are given once.
So where there is a file of that name, wherever in the account, the pair was true, and is put in before anything is
looked at: what became of either side since is then a move, a deletion, a flag as any other. Without such a file nobody
knows whether it ever got its name: nothing is said of it, and the message is fetched again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import PurePosixPath

import structlog

from maild.core.errors import LocalError
from maild.core.model import Key, Pair
from maild.engine.pull import Work
from maild.local.directory import MailboxDirectory, translated
from maild.local.scan import keys
from maild.local.state import Changes
from maild.local.survey import survey

log = structlog.get_logger()


def settle_deliveries(work: Work) -> None:
    """Make pairs of what got its name, and forget the rest. Reads names only, and those only after a kill. Blocks."""
    state = work.state.state
    noted = state.deliveries()
    if not noted:
        return
    found = _placed(work, noted) if work.account.maildir.exists() else {}
    state.apply([Changes(mailbox_id, add=pairs) for mailbox_id, pairs in found.items()])
    state.drop_deliveries(noted)


def _placed(work: Work, noted: Mapping[int, Iterable[Pair]]) -> dict[int, list[Pair]]:
    """Those whose file is there and has no pair, as its message has none: neither was adopted since."""
    state = work.state.state
    rows = {row.directory: row for row in state.mailboxes().values()}
    wanted = {pair.key for pairs in noted.values() for pair in pairs}
    there: set[Key] = set()
    for where in survey(work.account.maildir, work.account.layout).mailboxes:
        some = wanted & _names(work, where)
        paired = state.pairs_by_key(rows[where].id, some).keys() if some and where in rows else set[Key]()
        there |= some - paired
        wanted -= paired
    placed: dict[int, list[Pair]] = {}
    for mailbox_id, pairs in noted.items():
        unpaired = [pair for pair in pairs if pair.key in there & wanted]
        known = state.pairs_of(mailbox_id, [pair.uid for pair in unpaired])
        placed[mailbox_id] = [pair for pair in unpaired if pair.uid not in known]
    return placed


def _names(work: Work, where: str) -> set[Key]:
    """The unique names that a directory has; none where it cannot be read, which its own pass says."""
    try:
        directory = MailboxDirectory.open(work.account.maildir, PurePosixPath(where))
        if directory is None:
            return set()
        with closing(directory), translated("read", directory.path):
            return keys(directory)
    except LocalError as exc:
        log.warning("mailbox.failed", account=work.account.name, mailbox=where, error=str(exc))
        return set()
