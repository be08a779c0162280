"""What may have been sent, looked for among what the server keeps of what it took.

Only where the server keeps its own copies is one a proof, and only if all attempts that may have made one were for the
same recipients: a copy says nothing about those it was not for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

import anyio
import anyio.to_thread
import structlog

from maild.config import Account
from maild.core import outgoing
from maild.core.errors import MaildError, Retry, Scope, Unavailable
from maild.core.likeness import Likeness
from maild.core.model import Listing, RemoteMailbox
from maild.core.outgoing import Item
from maild.core.ports import Remote
from maild.core.roles import SENT, sent_among
from maild.local.outbox import NoSuchItem, Outbox
from maild.remote import open_remote

LOOK_S = 30.0  # for so long new messages of the account wait for a look
LOOK_AGAIN_S = 15 * 60
LOOK_FOR_S = 4 * 3600  # a mail server that cannot be asked for longer does not keep the message from being sent again

log = structlog.get_logger()

FindSent = Callable[[Likeness], Awaitable[bool | None]]  # None: it cannot be told; raises MaildError


async def settle_doubts(account: str, outbox: Outbox, items: list[Item], find_sent: FindSent, now_s: float) -> None:
    """Those of the items that are found have been sent; where the server cannot be asked now, they wait for it."""
    for item in items:
        is_proof = not (item.copy or item.is_doubt_mixed or item.phase)
        if not is_proof or not item.with_state("uncertain") or not outbox.has_text(item.id):
            continue
        octets = await anyio.to_thread.run_sync(outbox.text, item.id)
        try:
            is_found = await look(find_sent, Likeness.of(octets, item.created_s), LOOK_S)
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
