"""The cheap facts that tell messages apart: size, Message-ID and Date, asked for without the bodies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from maild.core.identity import header_facts
from maild.core.model import Facts, Uid
from maild.remote.imap.opening import finish_anyhow
from maild.remote.imap.parse import Event, FetchData
from maild.remote.imap.session import Command, ImapSession
from maild.remote.imap.sets import WINDOW

IDENTITY_FIELDS = "BODY.PEEK[HEADER.FIELDS (MESSAGE-ID DATE)]"


async def facts_of(session: ImapSession, sets: Sequence[str], is_asked: Callable[[int], bool]) -> dict[Uid, Facts]:
    """What tells the messages of several UID sets apart; those that are gone or refused are missing.

    A server may tell of any message at any time: `is_asked` says whether a UID is one of those sets.
    """
    found: dict[Uid, Facts] = {}

    def take(event: Event) -> None:
        if isinstance(event, FetchData) and event.uid is not None and event.sections and event.size is not None:
            header = next(iter(event.sections.values()))
            if isinstance(header, bytes | bytearray) and is_asked(event.uid):
                message_id, date = header_facts(bytes(header))
                found[Uid(str(event.uid))] = Facts(max(event.size, 0), message_id, date)

    items = f"(UID RFC822.SIZE {IDENTITY_FIELDS})"
    waiting, running = deque(sets), deque[Command]()
    while waiting or running:
        while waiting and len(running) < WINDOW:
            running.append(session.launch("FETCH", waiting.popleft(), items, prefix="UID", collect=take))
        await finish_anyhow(session, running.popleft())  # without them the content decides
    return found
