"""What may have been sent, looked for among what the server keeps of what it took.

Only where the server keeps its own copies is one a proof, and only if all attempts that may have made one were for the
same recipients: a copy says nothing about those it was not for. Nor is one that could be that of another message, or a
mail reader's own; then it is sent again with the same Message-ID, which at worst makes two of one, never none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

import anyio
import anyio.to_thread
import structlog

from maild.config import Account
from maild.core import outgoing
from maild.core.errors import LocalError, MaildError, Retry, Scope, Unavailable
from maild.core.head import divide
from maild.core.likeness import Likeness, Marks
from maild.core.model import Listing, RemoteMailbox
from maild.core.outgoing import Item
from maild.core.ports import Remote
from maild.core.roles import SENT, sent_among
from maild.local import lately
from maild.local.durable import disk_error
from maild.local.outbox import NoSuchItem, Outbox
from maild.remote import open_remote

SUBJECT_CHARACTERS = 60  # of which two that are the same begin alike, however they were folded and cut off
LOOK_S = 30.0  # for so long new messages of the account wait for a look
LOOK_AGAIN_S = 15 * 60
SEARCHED_S = 3 * 86400  # before a message was accepted: more than the days by which servers are searched
LOOK_FOR_S = 4 * 3600  # a mail server that cannot be asked for longer does not keep the message from being sent again

log = structlog.get_logger()

FindSent = Callable[[Likeness], Awaitable[bool | None]]  # None: it cannot be told; raises MaildError


async def settle_doubts(
    account: str,
    outbox: Outbox,
    items: list[Item],
    find_sent: FindSent,
    is_readers: Callable[[str], bool],
    now_s: float,
) -> None:
    """Those of the items that are found have been sent; where the server cannot be asked now, they wait for it.

    `is_readers` tells, of a Message-ID, whether a mail reader has put that message among those sent itself: then it is
    on the server because we have carried it there. It is called in a thread, and raises MaildError.
    """
    doubtful = [item for item in items if item.with_state("uncertain") and not _is_no_proof(item)]
    wanted = await anyio.to_thread.run_sync(likenesses, outbox, doubtful)
    for item in doubtful:
        if item.id not in wanted:
            continue
        try:
            is_found = await look(find_sent, wanted[item.id], LOOK_S)
            if is_found and await anyio.to_thread.run_sync(is_readers, item.message_id):
                continue
        except MaildError as exc:
            log.warning("message.doubted", account=account, item=item.id, reason=exc.text, hint=exc.hint)
            may_pass = exc.retry is Retry.LATER and exc.scope is Scope.ACCOUNT and now_s < item.next_s + LOOK_FOR_S
            if may_pass and item.uncertain_s <= now_s:
                later = replace(item, uncertain_s=int(now_s) + LOOK_AGAIN_S)
                await _edit(outbox, item, partial(_unless_changed, item, later))
            continue
        if is_found:
            await _edit(outbox, item, partial(outgoing.found_in_sent, now_s=now_s))
            log.info("message.confirmed", account=account, item=item.id)


def _is_no_proof(item: Item) -> bool:
    """Whether a copy could be that of a transaction for others."""
    return bool(item.copy or item.is_doubt_mixed or item.phase)


def likenesses(outbox: Outbox, items: Sequence[Item]) -> dict[str, Likeness]:
    """By what each may be known on the server, told apart from all that maild knows of; without those that cannot be.

    One that is sent on as it was (RFC 5322 §3.6.6) may be there from when it was sent first. Blocks; raises LocalError
    if the outbox cannot be read.
    """
    if not items:
        return {}
    contents = outbox.contents()
    try:
        left = lately.read(outbox.path)
    except OSError as exc:
        raise disk_error(exc, "read", outbox.path / lately.NAME) from exc
    tried = [item for item in contents.items if item.attempts]
    marks: dict[str, Marks | None] = {}

    def marks_of(item_id: str) -> Marks | None:
        if item_id not in marks:
            octets = _read(outbox, item_id)
            marks[item_id] = None if octets is None else Likeness.of(octets).marks
        return marks[item_id]

    def others(item: Item) -> Iterator[Marks | None]:
        yield from (one for item_id, (_, one) in left.left.items() if item_id != item.id)
        yield from (marks_of(other.id) for other in tried if other.id != item.id and _may_share(item, other))
        yield from (marks_of(item_id) for item_id in contents.unreadable if outbox.has_text(item_id))

    found: dict[str, Likeness] = {}
    for item in items:
        octets = _read(outbox, item.id)
        known = list(others(item))
        if octets is None or divide(octets).has("resent-date") or None in known:
            continue
        likeness = Likeness.of(octets, item.created_s).among(one for one in known if one is not None)
        is_all_known = left.since_s < item.created_s - SEARCHED_S
        likeness = replace(likeness, are_traits_telling=likeness.are_traits_telling and is_all_known)
        if likeness.is_telling:
            found[item.id] = likeness
    return found


def _read(outbox: Outbox, item_id: str) -> bytes | None:
    try:
        return outbox.text(item_id)
    except LocalError:
        return None


def _may_share(item: Item, other: Item) -> bool:
    """Whether they may have the same Message-ID or traits, by what is known without reading them."""
    subjects = {" ".join(one.subject.split())[:SUBJECT_CHARACTERS] for one in (item, other)}
    return item.message_id == other.message_id or len(subjects) == 1


async def look(find_sent: FindSent, wanted: Likeness, timeout_s: float) -> bool | None:
    """What `find_sent` tells. Raises MaildError, also where that takes too long."""
    with anyio.move_on_after(timeout_s):
        return await find_sent(wanted)
    raise Unavailable(f"the server did not tell within {timeout_s:g} s what it has sent")


def _unless_changed(seen: Item, later: Item, found: Item) -> Item:
    return later if found == seen else found


async def _edit(outbox: Outbox, item: Item, change: Callable[[Item], Item]) -> None:
    with suppress(NoSuchItem):  # cancelled meanwhile
        await anyio.to_thread.run_sync(outbox.edit, item.id, change)


async def is_in_sent(remote: Remote, wanted: Likeness) -> bool | None:
    """Whether the account's Sent mailbox on the server has the message; None where it has no such mailbox."""
    sent = sent_on_server(await remote.listing())
    if sent is None:
        return None
    async with remote.visit(sent.name, read_only=True) as box:
        return await box.holds(wanted)


def sent_on_server(listing: Listing) -> RemoteMailbox | None:
    """By its role, else by its name among those that are synchronised."""
    if (sent := listing.roles.get(SENT)) is not None:
        return sent
    by_levels = {mailbox.levels: mailbox for mailbox in listing.mailboxes}
    found = sent_among(by_levels)
    return by_levels[found] if found is not None else None


@asynccontextmanager
async def looking(account: Account) -> AsyncIterator[FindSent | None]:
    """A look at an account's server over a connection of its own, made when first asked; None without such a server."""
    if account.imap is None:
        yield None
        return
    async with AsyncExitStack() as opened:
        remote: Remote | None = None

        async def find(wanted: Likeness) -> bool | None:
            nonlocal remote
            if remote is None:
                remote = open_remote(account)
                opened.push_async_callback(remote.aclose)
            return await is_in_sent(remote, wanted)

        yield find
