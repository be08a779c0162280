"""A protocol without a protocol: `core.ports.Remote` straight on a store, for tests that need thousands of passes.

It passes the same contract suite as IMAP against real servers. What a test can turn: how changes are told (`ways`),
whether new Uids are told after appending, copying and moving, the step from which on every connection is lost, before
or after its effect (`lose_at`). `journal` lists every change asked for; `steps` counts what could be interrupted.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from maild.core.errors import ConnectionLost, Rejected
from maild.core.identity import header_facts
from maild.core.likeness import Likeness
from maild.core.mailboxes import name_of
from maild.core.model import (
    Appended,
    Cursor,
    Epoch,
    Facts,
    Fetched,
    FlagChange,
    Listing,
    MailboxName,
    Outgoing,
    Permitted,
    RemoteMailbox,
    Scan,
    ScanTable,
    Uid,
)
from maild.core.names import matches
from maild.core.ports import OpenBody
from maild.testing.store import Mailbox, Refused, Store

Way = Literal["changes", "full"]


@dataclass(slots=True)
class MemoryRemote:
    """The port. `way`: "changes" tells what changed and vanished since a cursor, "full" everything each time.

    `has_marks` and `has_object_ids`: whether the listing proves that nothing changed, and identifies mailboxes.
    `moves_whole`: as with MOVE; without it tests may leave copies as a COPY does that was cut off.
    """

    store: Store
    patterns: tuple[str, ...] = ("*",)
    way: Way = "changes"
    tells_uids: bool = True
    has_marks: bool = True
    has_object_ids: bool = True
    moves_whole: bool = False
    lose_at: int | None = None
    journal: list[str] = field(default_factory=list)
    fetched: list[tuple[str, str]] = field(default_factory=list)
    steps: int = 0

    def step(self, change: str = "") -> None:
        """Something could go wrong here."""
        if self.lose_at is not None and self.steps >= self.lose_at:
            raise ConnectionLost("the connection was cut for a test")
        self.steps += 1
        if change:
            self.journal.append(change)

    async def listing(self) -> Listing:
        self.step()
        listed = [_listed(mailbox, self) for mailbox in self.store.mailboxes]
        trash = next((m.name for m in self.store.mailboxes if m.special_use == "\\Trash"), None)
        return Listing(
            mailboxes=tuple(m for m in listed if matches(m.name, self.patterns)),
            present=frozenset(m.name for m in listed),
            separator=self.store.separator,
            trash=None if trash is None else MailboxName(trash),
            roles={mailbox.role: mailbox for mailbox in reversed(listed) if mailbox.role},
            moves_whole=self.moves_whole,
        )

    @asynccontextmanager
    async def visit(
        self, mailbox: MailboxName, epoch: Epoch | None = None, *, read_only: bool = False
    ) -> AsyncIterator[MemoryBox]:
        self.step()
        box = MemoryBox(self, self._mailbox(mailbox), read_only)
        if epoch is not None and epoch != box.epoch:
            raise Rejected(f"mailbox {mailbox} changed its epoch")
        yield box

    async def create(self, levels: tuple[str, ...]) -> RemoteMailbox:
        name = name_of(levels, self.store.separator)
        if name is None:
            raise Rejected(f"{levels} cannot be a mailbox here")
        self.step(f"create {name}")
        if self.store.find(name) is None:
            self.store.create(name)
        self.step()
        return _listed(self.store.mailbox(name), self)

    async def rename(self, mailbox: MailboxName, levels: tuple[str, ...]) -> RemoteMailbox:
        name = name_of(levels, self.store.separator)
        if name is None:
            raise Rejected(f"{levels} cannot be a mailbox here")
        self.step(f"rename {mailbox} {name}")
        try:
            self.store.rename(mailbox, name)
        except Refused as exc:
            raise Rejected(exc.text, code=exc.code) from exc
        self.step()
        return _listed(self.store.mailbox(name), self)

    async def delete(self, mailbox: MailboxName, seen: Cursor) -> bool:
        self.step()
        if (found := self.store.find(mailbox)) is not None:
            known = json.loads(seen) if seen else {}
            if len(found) or (known.get("v"), known.get("n")) != (found.uidvalidity, found.uidnext):
                return False
        self.step(f"delete {mailbox}")
        if found is not None:
            self.store.delete(mailbox)
        self.step()
        return True

    def expect(self, mailbox: MailboxName, cursor: Cursor, *, read_only: bool = False, has_mail: bool = False) -> None:
        """There is nothing to wait for."""

    async def prepare(self) -> None:
        """There are no sessions."""

    async def rest(self, keep: int = 1) -> None:
        """There are no sessions."""

    async def aclose(self) -> None:
        """There is nothing to close."""

    def _mailbox(self, name: MailboxName) -> Mailbox:
        found = self.store.find(name)
        if found is None:
            raise Rejected(f"there is no mailbox {name}", code="NONEXISTENT")
        return found


def _listed(mailbox: Mailbox, remote: MemoryRemote) -> RemoteMailbox:
    store = remote.store
    levels = tuple(mailbox.name.split(store.separator)) if store.separator else (mailbox.name,)
    return RemoteMailbox(
        MailboxName(mailbox.name),
        levels,
        mailbox.special_use,
        mark=_mark(mailbox) if remote.has_marks else None,
        messages=len(mailbox),
        epoch=str(mailbox.uidvalidity),
        next_uid=str(mailbox.uidnext),
        object_id=mailbox.mailbox_id if remote.has_object_ids else "",
    )


def _mark(mailbox: Mailbox) -> str:
    return f"{mailbox.uidvalidity}:{mailbox.uidnext}:{mailbox.highestmodseq}:{len(mailbox)}"


@dataclass(slots=True)
class MemoryBox:
    """One mailbox of it."""

    remote: MemoryRemote
    mailbox: Mailbox
    read_only: bool

    @property
    def epoch(self) -> Epoch:
        return Epoch(str(self.mailbox.uidvalidity))

    async def scan(self, cursor: Cursor | None) -> Scan:
        self.remote.step()
        known = json.loads(cursor) if cursor else None
        mailbox, way = self.mailbox, self.remote.way
        since = 0 if way == "full" or known is None or known["v"] != mailbox.uidvalidity else int(known["m"])
        is_full = since == 0
        items = ScanTable()
        for message in mailbox:
            if message.modseq > since:
                items.add(message.uid, message.flags, len(message.raw))
        gone = mailbox.vanished_since(since) if way == "changes" and not is_full else []
        can_write = not (self.read_only or mailbox.read_only)
        flags = frozenset(mailbox.permanent_flags - {"\\*"})
        return Scan(
            epoch=self.epoch,
            items=items,
            full=is_full,
            complete=True,
            vanished=frozenset(map(_uid, gone)),
            cursor=Cursor(json.dumps({"v": mailbox.uidvalidity, "n": mailbox.uidnext, "m": mailbox.highestmodseq})),
            mark=_mark(mailbox) if self.remote.has_marks else None,
            messages=len(mailbox),
            permitted=Permitted(flags, "\\*" in mailbox.permanent_flags) if can_write else None,
        )

    async def facts(self, uids: Sequence[Uid]) -> dict[Uid, Facts]:
        self.remote.step()
        found: dict[Uid, Facts] = {}
        for uid in uids:
            message = self.mailbox.find(int(uid))
            if message is not None:
                found[uid] = Facts(len(message.raw), *header_facts(message.raw))
        return found

    async def has(self, uids: Collection[Uid]) -> set[Uid]:
        self.remote.step()
        return {uid for uid in uids if self.mailbox.find(int(uid)) is not None}

    async def holds(self, wanted: Likeness) -> bool:
        self.remote.step()
        return any(wanted.fits(message.raw) for message in self.mailbox)

    async def fetch(self, batches: Iterator[Sequence[Uid]], open_body: OpenBody) -> AsyncGenerator[list[Fetched]]:
        for batch in batches:
            self.remote.step()
            several: list[Fetched] = []
            for uid in batch:
                message = self.mailbox.find(int(uid))
                if message is not None:
                    self.remote.fetched.append((self.mailbox.name, uid))
                    several.append(Fetched(uid, message.flags, message.date_s, message.raw))
            yield several

    async def store(self, changes: Sequence[FlagChange]) -> set[Uid]:
        for change in changes:
            words = [*("+" + f for f in sorted(change.add)), *("-" + f for f in sorted(change.remove))]
            self.remote.step(f"store {self.mailbox.name} {change.uid} {' '.join(words)}")
            self.mailbox.set_flags([int(change.uid)], add=change.add, remove=change.remove)
        self.remote.step()
        return {change.uid for change in changes}

    async def append(self, messages: Iterator[Outgoing]) -> AsyncGenerator[Appended]:
        for message in messages:
            raw = b"".join(message.pieces())
            self.remote.step(f"append {self.mailbox.name} {len(raw)}")
            uid = self.remote.store.deliver(self.mailbox.name, raw, message.flags, message.date_s)
            self.remote.step()
            yield Appended(message.key, _uid(uid) if self.remote.tells_uids else None)

    async def move(
        self,
        uids: Sequence[Uid],
        target: MailboxName,
        epoch: Epoch | None = None,
        *,
        left_behind: set[Uid] | None = None,
    ) -> dict[Uid, Uid | None]:
        if (found := self.remote.store.find(target)) is None:
            raise Rejected(f"there is no mailbox {target}", code="TRYCREATE")
        here = [int(uid) for uid in uids if self.mailbox.find(int(uid)) is not None]
        self.remote.step(f"move {self.mailbox.name} {_joined(here)} {target}")
        moved = self.remote.store.copy(self.mailbox.name, here, target)
        if not self.remote.moves_whole:
            self.remote.step()  # a COPY of which a cut leaves both
        self.mailbox.expunge([old for old, _ in moved])
        self.remote.step()
        is_told = self.remote.tells_uids and epoch in {None, str(found.uidvalidity)}
        return {_uid(old): _uid(new) if is_told else None for old, new in moved}

    async def expunge(self, uids: Sequence[Uid]) -> set[Uid]:
        self.remote.step(f"expunge {self.mailbox.name} {_joined(map(int, uids))}")
        self.mailbox.expunge(map(int, uids))
        self.remote.step()
        return set(uids)


def _uid(number: int) -> Uid:
    return Uid(str(number))


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
