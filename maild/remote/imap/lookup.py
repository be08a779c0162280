"""Finding one message in an open mailbox by what its head says (RFC 9051 §6.4.4)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from maild.core.likeness import Likeness
from maild.remote.imap.dates import day
from maild.remote.imap.parse import Event, FetchData, uid_set
from maild.remote.imap.session import ImapSession, quoted
from maild.remote.imap.sets import ANSWER_LIMIT_S, cut, search

MOST_CANDIDATES = 1000
_FIELDS = "(UID BODY.PEEK[HEADER.FIELDS (MESSAGE-ID DATE TO CC SUBJECT)])"


async def holds(session: ImapSession, wanted: Likeness) -> bool:
    """Whether the mailbox has the message; what SEARCH finds is looked at. Raises Rejected where it cannot be told."""
    has_id = wanted.message_id != "" and wanted.message_id.isascii()
    if has_id and await _any_of(session, wanted, f"HEADER Message-ID {quoted(wanted.message_id)}"):
        return True
    since = datetime.fromtimestamp(wanted.sent_s, UTC) - timedelta(days=1)  # whatever the server's zone is
    return await _any_of(session, wanted, f"SINCE {day(since)}")


async def _any_of(session: ImapSession, wanted: Likeness, criterion: str) -> bool:
    found = sorted(await search(session, criterion))[-MOST_CANDIDATES:]
    heads: list[bytes] = []

    def take(event: Event) -> None:
        if isinstance(event, FetchData):
            heads.extend(bytes(h) for h in event.sections.values() if isinstance(h, bytes | bytearray))

    for part in cut(found):
        command = session.launch("FETCH", uid_set(part), _FIELDS, prefix="UID", collect=take)
        await session.finish(command, ANSWER_LIMIT_S)
    return any(wanted.fits(head) for head in heads)
