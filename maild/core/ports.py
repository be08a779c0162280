"""What a protocol must offer to be synchronised. `remote/imap` is one implementation, the tests bring another.

Errors of every method: `ConnectionLost`, `TlsFailed`, `AuthRejected`, `Unavailable`, `ProtocolViolation` end the
session; `Rejected` concerns the mailbox named and leaves the session usable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from maild.core.likeness import Likeness
from maild.core.model import (
    Appended,
    Body,
    Cursor,
    Epoch,
    Facts,
    Fetched,
    FlagChange,
    Listing,
    MailboxName,
    Outgoing,
    Push,
    RemoteMailbox,
    Scan,
    Uid,
)


class BodyWriter(Body, Protocol):
    """Takes a big message's wire form as it arrives."""

    def write(self, chunk: memoryview) -> None:
        """Store the next octets; the memory is reused after the call returns."""


OpenBody = Callable[[int], BodyWriter]  # announced size in octets → where it goes


class RemoteBox(Protocol):
    """One mailbox, open on one session. Not to be used by two tasks at once.

    The methods that change something are only to be called where `scan` gave a `permitted`. Each returns once the
    server has confirmed it; what a lost connection leaves undone or unknown, the next pass finds by looking.
    """

    async def scan(self, cursor: Cursor | None) -> Scan:
        """What changed since `cursor`, or everything. A cursor that no longer fits is as good as None."""

    async def facts(self, uids: Sequence[Uid]) -> dict[Uid, Facts]:
        """Size and identifying header fields, without the bodies; a Uid that is gone is missing."""

    async def has(self, uids: Collection[Uid]) -> set[Uid]:
        """Those of these messages that the mailbox has now, looked at anew. Raises Rejected where nobody can tell."""

    async def holds(self, wanted: Likeness) -> bool:
        """Whether the mailbox has a message like this now. Raises Rejected where the server cannot tell."""

    def fetch(self, batches: Iterator[Sequence[Uid]], open_body: OpenBody) -> AsyncIterator[list[Fetched]]:
        """The messages, as they arrive, in no promised order; one that is gone or refused does not come.

        The next batch is taken only when there is room for it, so several sessions may share `batches`. The server is
        read no faster than the caller iterates: a few MiB are buffered at most. A message bigger than that goes through
        `open_body` and never stands in memory.
        """

    async def store(self, changes: Sequence[FlagChange]) -> set[Uid]:
        """Change flags, in few commands. The Uids for which the server said yes; one that is gone counts as done."""

    def append(self, messages: Iterator[Outgoing]) -> AsyncIterator[Appended]:
        """Add messages; each is answered for, in any order, as soon as the server has it.

        The next one is taken only when there is room for it. A refused message does not stop the others.
        """

    async def move(
        self,
        uids: Sequence[Uid],
        target: MailboxName,
        epoch: Epoch | None = None,
        *,
        left_behind: set[Uid] | None = None,
    ) -> dict[Uid, Uid | None]:
        """Move messages to another mailbox: those that are there now, with their new Uid where it is known.

        A Uid of another `epoch` of the target than this one means nothing to the caller, and counts as not known.

        Without MOVE: copied first, and expunged here only when the copy is confirmed. What could not be moved whole,
        or could not be expunged without taking other messages along, is missing from the result; what the target has
        all the same is added to `left_behind`. Rejected: nothing was moved or copied.
        """

    async def expunge(self, uids: Sequence[Uid]) -> set[Uid]:
        """Remove exactly these messages for good; those that are gone now, by whomever."""


class Watch(Protocol):
    """The server tells by itself that something changed. Hints carry no facts: whoever hears one looks."""

    @property
    def method(self) -> Literal["notify", "idle", "poll"]:
        """What is really in use; "poll": nothing is told, and only a timer of the owner's makes up for it."""

    @property
    def mailboxes(self) -> frozenset[MailboxName]:
        """Those whose changes are told; of the others only the owner's timer knows."""

    @property
    def lack(self) -> str:
        """Why the method is less than what was asked for, for a person; "" where it is not."""

    async def hint(self) -> frozenset[MailboxName] | None:
        """Wait until something changed: in these mailboxes, or None: look at everything.

        What comes while nobody waits is merged, and told at once. Raises what ended the watch (ConnectionLost,
        Unavailable, ProtocolViolation), then and ever after; with the method "poll" it waits for ever, or raises
        Unavailable when the server may by now allow more than it did.
        """

    def probe(self) -> None:
        """Ask for a sign of life now, as after a suspend; a watch that gives none within seconds ends."""

    def missed(self) -> None:
        """Somebody looked and found what should have been told, long enough ago. Repeated, it ends the watch."""


class Remote(Protocol):
    """One account's mailboxes on the other machine."""

    async def listing(self) -> Listing:
        """All mailboxes with their marks, in one round trip where the server can."""

    def expect(self, mailbox: MailboxName, cursor: Cursor, *, read_only: bool = False, has_mail: bool = False) -> None:
        """The visit of this mailbox after the listing that is under way begins with a scan from this cursor.

        It may be asked for already then, so that the visit need not wait for it; `has_mail`: with the first new
        messages, if they are small, for the server said that something came. Nothing depends on it: the visit need
        not come, and may be otherwise; without a listing under way no more than `has_mail` is of use.
        """

    def visit(
        self, mailbox: MailboxName, epoch: Epoch | None = None, *, read_only: bool = False
    ) -> AbstractAsyncContextManager[RemoteBox]:
        """Borrow a session, waiting for a free one or opening one within the limit, for work on the mailbox.

        With the `epoch` of a scan the mailbox is opened right away, on the session that has it open already where
        there is one free; Rejected if it is another by now. `read_only`: nothing about it may change, not even
        which messages are recent.
        """

    async def create(self, levels: tuple[str, ...]) -> RemoteMailbox:
        """Make a mailbox, with the parents it lacks, and subscribe to it; one that is there already will do.

        Raises Rejected, also for levels that the server's names cannot express.
        """

    async def rename(self, mailbox: MailboxName, levels: tuple[str, ...]) -> RemoteMailbox:
        """Give a mailbox another name, and its subscription with it. Raises Rejected."""

    async def delete(self, mailbox: MailboxName, seen: Cursor) -> bool:
        """Remove a mailbox that is empty, if nothing came in since the scan that gave `seen`; else False, and it stays.

        One that is gone already will do. The server is asked right before, and no protocol can do better: a message
        that comes in between the answer and the deletion is lost with the mailbox. Raises Rejected.
        """

    def watch(
        self, mailboxes: Sequence[MailboxName], idle: Sequence[MailboxName], method: Push
    ) -> AbstractAsyncContextManager[Watch]:
        """Have the server tell of changes: of all `mailboxes` where it can, else of those in `idle`.

        It is established when the context is entered: what changes from then on is told, so a pass that begins
        afterwards misses nothing. It takes sessions away from those for work, but never the last one.
        """

    async def prepare(self) -> None:
        """Open one more session ahead of need, so that work that is about to be found does not wait for it.

        Where none is to be had nothing happens; whoever needs one will hear why.
        """

    async def rest(self, keep: int = 1) -> None:
        """The work is done for now: say goodbye on sessions beyond so many, with which the next work begins."""

    async def aclose(self) -> None:
        """Say goodbye on every session, without waiting long for an answer."""
