"""What a protocol must offer to be synchronised. `remote/imap` is one implementation, the tests bring another.

Errors of every method: `ConnectionLost`, `TlsFailed`, `AuthRejected`, `Unavailable`, `ProtocolViolation` end the
session; `Rejected` concerns the mailbox named and leaves the session usable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from maild.core.model import Body, Cursor, Epoch, Facts, Fetched, Listing, MailboxName, Scan, Uid


class BodyWriter(Body, Protocol):
    """Takes a big message's wire form as it arrives."""

    def write(self, chunk: memoryview) -> None:
        """Store the next octets; the memory is reused after the call returns."""


OpenBody = Callable[[int], BodyWriter]  # announced size in octets → where it goes


class RemoteBox(Protocol):
    """One mailbox, open for reading on one session. Not to be used by two tasks at once."""

    async def scan(self, cursor: Cursor | None) -> Scan:
        """What changed since `cursor`, or everything. A cursor that no longer fits is as good as None."""

    async def facts(self, uids: Sequence[Uid]) -> dict[Uid, Facts]:
        """Size and identifying header fields, without the bodies; a Uid that is gone is missing."""

    def fetch(self, batches: Iterator[Sequence[Uid]], open_body: OpenBody) -> AsyncIterator[list[Fetched]]:
        """The messages, as they arrive, in no promised order; one that is gone or refused does not come.

        The next batch is taken only when there is room for it, so several sessions may share `batches`. The server is
        read no faster than the caller iterates: a few MiB are buffered at most. A message bigger than that goes through
        `open_body` and never stands in memory.
        """


class Remote(Protocol):
    """One account's mailboxes on the other machine."""

    async def listing(self) -> Listing:
        """All mailboxes with their marks, in one round trip where the server can."""

    def visit(self, mailbox: MailboxName, epoch: Epoch | None = None) -> AbstractAsyncContextManager[RemoteBox]:
        """Borrow a session, waiting for a free one or opening one within the limit, for work on the mailbox.

        With the `epoch` of a scan the mailbox is opened for `fetch` right away; Rejected if it is another by now.
        """

    async def prepare(self) -> None:
        """Open one more session ahead of need, so that work that is about to be found does not wait for it.

        Where none is to be had nothing happens; whoever needs one will hear why.
        """

    async def aclose(self) -> None:
        """Say goodbye on every session, without waiting long for an answer."""
