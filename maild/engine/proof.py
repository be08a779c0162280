"""What messages on the server contain, and which are there: the proof before anything is removed for an equal one.

Cheap facts (size, Message-ID, Date) nominate; different messages may share them, and some servers tell wrong sizes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import cast

import anyio.to_thread

from maild.core.errors import ConnectionLost, ProtocolViolation, Rejected
from maild.core.identity import Digester
from maild.core.model import Content, Facts, Fetched, ScanTable, Uid
from maild.engine.adopt import fetched_content
from maild.engine.crew import TRIES, is_tried_again, pause
from maild.engine.pull import FETCH_MESSAGES, FETCH_OCTETS, Work
from maild.engine.sync import MailboxPass
from maild.local.state import MailboxState

FactsOf = Callable[[MailboxPass, Sequence[Uid]], Awaitable[Mapping[Uid, Facts]]]
Known = tuple[int | None, str]  # a message as the state knows it: mailbox and Uid; without a pair None and its key


class Measured:
    """A big message that is only to be compared: nothing of it is kept. A `BodyWriter` of `core.ports`."""

    def __init__(self) -> None:
        self.size_octets = 0
        self._digester = Digester()

    def write(self, chunk: memoryview) -> None:
        """Take the next octets of the wire form."""
        self.size_octets += len(chunk)
        self._digester.update(bytes(chunk))

    @property
    def content(self) -> Content:
        return self._digester.size_octets, self._digester.digest()

    def discard(self) -> None:
        """There is nothing to be removed."""


async def contents_of(work: Work, this: MailboxPass, uids: set[Uid]) -> dict[Uid, Content]:
    """Fetch these new messages and say what they contain; one that does not come is missing. Keeps nothing.

    Of what the server refuses, or loses the connection about again and again, nothing is proven. Not to be called while
    a session is held.
    """
    found: dict[Uid, Content] = {}
    for attempt in range(1, TRIES + 1 if uids else 1):
        try:
            await _fetch(work, this, uids - found.keys(), found)
        except (ConnectionLost, ProtocolViolation, Rejected) as exc:
            if not is_tried_again(exc, attempt):
                break
            await pause(work, this.name, attempt, exc)
        else:
            break
    return found


async def unknown_elsewhere(work: Work, but: Collection[Known], contents: Collection[Content]) -> set[Content]:
    """Those of these contents that no other message is known to have, wherever it is: it may have been copied."""
    known = await work.state.run(_all_with, work, contents) if contents else []
    return set(contents) - {content for mailbox_id, id_, content in known if (mailbox_id, id_) not in but}


async def sole(work: Work, rivals: Collection[Known], contents: Collection[Content]) -> set[Content]:
    """Those of these contents that no message has which may have become a new one: none but `rivals`.

    Another that is still where it was, now that the new ones have been seen, is none of them. Not to be called while a
    session is held.
    """
    found = set(contents)
    others: dict[int, dict[Uid, Content]] = defaultdict(dict)
    for mailbox_id, id_, content in await work.state.run(_all_with, work, contents) if contents else ():
        if (mailbox_id, id_) in rivals:
            continue
        if mailbox_id is None:
            found.discard(content)
        else:
            others[mailbox_id][Uid(id_)] = content
    rows = {row.id: row for row in (await work.state.run(work.rows)).values()} if others else {}
    for mailbox_id, uids in others.items():
        there = await still_there(work, rows.get(mailbox_id), uids)
        found.difference_update(content for uid, content in uids.items() if uid not in there)
    return found


def _all_with(work: Work, contents: Collection[Content]) -> list[tuple[int | None, str, Content]]:
    return list(work.state.state.all_with(contents))


async def still_there(work: Work, mailbox: MailboxState | None, uids: Collection[Uid]) -> set[Uid]:
    """Those of these messages that the server has in this mailbox now; none where it does not tell.

    Not to be called while a session is held.
    """
    if mailbox is None or mailbox.epoch is None or mailbox.name not in work.listed:
        return set()
    for attempt in range(1, TRIES + 1):
        try:
            async with work.remote.visit(mailbox.name, mailbox.epoch, read_only=work.dry_run) as box:
                return await box.has(uids)
        except (ConnectionLost, ProtocolViolation, Rejected) as exc:
            if not is_tried_again(exc, attempt):
                break
            await pause(work, mailbox.name, attempt, exc)
    return set()


async def _fetch(work: Work, this: MailboxPass, uids: Collection[Uid], found: dict[Uid, Content]) -> None:
    table = ScanTable()
    for uid, flags, size in this.remote.fresh:
        if uid in uids:
            table.add(uid, flags, size)
    async with work.remote.visit(this.name, this.found.epoch, read_only=work.dry_run) as box:
        batches = table.batches(FETCH_MESSAGES, FETCH_OCTETS)
        stream = cast("AsyncGenerator[list[Fetched]]", box.fetch(batches, lambda _: Measured()))
        async with aclosing(stream):
            async for several in stream:
                for fetched in several:
                    if fetched.uid in uids:
                        found[fetched.uid] = await anyio.to_thread.run_sync(_content, fetched)


def _content(fetched: Fetched) -> Content:
    return fetched.raw.content if isinstance(fetched.raw, Measured) else fetched_content(fetched)
