"""Does the server put what it takes into the account's Sent mailbox by itself? A copy of ours would be a second one.

Known providers stand in a table, and the config has the last word. Of another server it is found out with the first
message: before our copy is made, its Sent mailbox is looked at, for `PAUSES_S` together. What was found out is kept
beside the outbox. Where a server is said to keep its own copies, that is looked at again for each message: one that is
not there gets a copy of ours, so that none is ever without. Where it is said to keep none, that is found out again with
another config and now and then: somebody may have switched it on. A server that cannot be asked is no reason to wait.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import anyio
import anyio.to_thread
import structlog

from maild.config import Account, Smtp
from maild.core.errors import MaildError
from maild.core.outgoing import Item
from maild.engine.doubts import FindSent, likenesses, look
from maild.local.durable import disk_error, replace_file
from maild.local.outbox import Outbox

PAUSES_S = (0.0, 0.5, 1.5)  # before each look
LOOK_S = 5.0
ASKED_AGAIN_S = 7 * 86400

# Submission servers that put what they take into the account's Sent mailbox themselves; a copy would be a second one.
# Google: "Sent mail is stored in [Gmail]/Sent Mail by SMTP", so clients are told not to save (Gmail's IMAP client
# settings). Microsoft: Exchange Online and Outlook.com keep what is submitted in Sent Items. iCloud is not here:
# reports go both ways. Others leave the copy to the client, as RFC 6409 does.
KEEPING_HOSTS = frozenset(
    {
        "smtp.gmail.com",
        "smtp.googlemail.com",
        "smtp.office365.com",
        "smtp-mail.outlook.com",
        "outlook.office365.com",
        "smtp.outlook.com",
        "smtp.live.com",
    }
)

log = structlog.get_logger()


def wants_copy(smtp: Smtp) -> bool:
    """Whether a copy of what was sent belongs into the local Sent mailbox, as far as the config and the table tell."""
    return smtp.sent == "copy" or (smtp.sent == "auto" and smtp.host.lower().rstrip(".") not in KEEPING_HOSTS)


class OwnCopies:
    """What is known of one account's server."""

    def __init__(
        self,
        account: Account,
        smtp: Smtp,
        outbox: Outbox,
        find_sent: FindSent | None,
        clock: Callable[[], float],
    ) -> None:
        self._account = account.name
        self._outbox = outbox
        self._directory = outbox.path
        self._name = f".{account.name}.sent"
        self._find_sent = find_sent if smtp.sent == "auto" and wants_copy(smtp) else None
        self._clock = clock
        self._where = [f"{one.user} at {one.host}" for one in (smtp, account.imap) if one is not None]
        self._learned_s = 0
        self._keeps = self._read() if self._find_sent is not None else None

    @property
    def are_found(self) -> bool:
        """Whether it was found that the server keeps its own copies."""
        return self._keeps is True

    async def sorted_out(self, items: Sequence[Item]) -> list[Item]:
        """Items that are to be copied; for those of which the server has its own copy, the copy is done."""
        asked = [item for item in items if item.copy == "begun"]
        if self._keeps is False and not 0 <= self._clock() - self._learned_s < ASKED_AGAIN_S:
            self._keeps = None
        if self._find_sent is None or self._keeps is False or not asked:
            return list(items)
        first, rest = (asked[:1], asked[1:]) if self._keeps is None else (asked, [])
        found = await self._found(self._find_sent, first)
        if self._keeps and rest:
            found |= await self._found(self._find_sent, rest)
        return [replace(item, copy="done") if item.id in found else item for item in items]

    async def _found(self, find_sent: FindSent, items: Sequence[Item]) -> set[str]:
        """The ids of those that the server has by itself, and what that teaches."""
        found: set[str] = set()
        is_told = False  # without a Sent mailbox the server tells nothing
        try:
            wanted = await anyio.to_thread.run_sync(likenesses, self._outbox, items)
            for pause_s in PAUSES_S:
                await anyio.sleep(pause_s if wanted.keys() - found else 0)
                for item_id in wanted.keys() - found:
                    is_there = await look(find_sent, wanted[item_id], LOOK_S)
                    is_told |= is_there is not None
                    if is_there:
                        found.add(item_id)
            if is_told and self._keeps is None:
                await anyio.to_thread.run_sync(self._learn, bool(found))
        except MaildError as exc:
            log.debug("message.doubted", account=self._account, reason=exc.text)
        return found

    def _read(self) -> bool | None:
        try:
            known = json.loads((self._directory / self._name).read_bytes())
            self._learned_s = int(known["learned"])
            return bool(known["keeps"]) if known["where"] == self._where else None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None  # it is found out again

    def _learn(self, keeps: bool) -> None:
        self._learned_s = int(self._clock())
        octets = json.dumps({"where": self._where, "keeps": keeps, "learned": self._learned_s}).encode()
        try:
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                replace_file(directory, self._name, octets)
            finally:
                os.close(directory)
        except OSError as exc:
            raise disk_error(exc, "write to", self._directory) from exc
        self._keeps = keeps
        log.info("sent.learned", account=self._account, method="by the server" if keeps else "by maild")
