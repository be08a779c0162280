"""One account in a test without a network: its server a store, its Maildir and state on disk, both sides looked at."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import anyio

from maild.config import Account, Imap, Password
from maild.config.values import DeletionLimit
from maild.core.model import MailboxName, Uid
from maild.engine import account as engine
from maild.engine.report import AccountReport
from maild.local.state import State
from maild.testing.faults import Action, Bye, Cut
from maild.testing.imap import ImapServer
from maild.testing.memory import MemoryRemote
from maild.testing.store import Store
from tests.engine.world import PASSWORD, USER, bodies

START_S = 1_700_000_000
DEADLINE_S = 30.0
LETTERS = {
    "D": "\\Draft",
    "F": "\\Flagged",
    "P": "$Forwarded",
    "R": "\\Answered",
    "S": "\\Seen",
    "T": "\\Deleted",
}


def body(n: int, *, message_id: str | None = None) -> bytes:
    """Message number `n` in the disk form; equal numbers make equal messages."""
    name = f"<m{n}@test.example>" if message_id is None else message_id
    field_ = f"Message-ID: {name}\n" if name else ""
    return f"{field_}Date: Tue, 14 Nov 2023 22:13:{n % 60:02d} +0000\nSubject: Nr. {n}\n\nHallo {n}\n".encode()


@dataclass(frozen=True, slots=True, order=True)
class Shown:
    """One message as either side shows it."""

    raw: bytes
    flags: tuple[str, ...]
    date_s: int


@dataclass
class Twin:
    """See the module. `remote` holds the settings of the server's side for the passes to come.

    Without `message_ids` the numbered messages have no Message-ID.
    """

    directory: Path
    store: Store = field(default_factory=Store)
    settings: dict[str, Any] = field(default_factory=dict)
    message_ids: bool = True
    account: Account = field(init=False)
    remote: MemoryRemote = field(init=False)
    _numbers: int = 0

    def __post_init__(self) -> None:
        imap = Imap(host="127.0.0.1", port=1, user="me", secret=Password("x"), tls="none")
        self.account = Account(name="work", address="me@example.org", maildir=self.directory / "Mail", imap=imap)
        self.remote = MemoryRemote(self.store, **self.settings)

    @property
    def root(self) -> Path:
        return self.account.maildir

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    def configure(self, **imap: Any) -> None:
        """Change keys of the imap section."""
        assert self.account.imap is not None
        self.account = replace(self.account, imap=replace(self.account.imap, **imap))

    def limit_deletions(self, percent: int) -> None:
        self.account = replace(self.account, max_deletions=DeletionLimit(percent, is_percent=True))

    def body(self, n: int) -> bytes:
        return body(n) if self.message_ids else body(n, message_id="")

    # -- passes

    async def sync(
        self, *, lose_at: int | None = None, only: Sequence[str] = (), dry_run: bool = False
    ) -> AccountReport:
        """One pass, whatever becomes of it; with `lose_at` the connection is cut at that step."""
        assert self.account.imap is not None
        self.remote = MemoryRemote(self.store, patterns=self.account.imap.mailboxes, lose_at=lose_at, **self.settings)
        report = AccountReport(self.account.name)
        original = engine.open_remote
        engine.open_remote = lambda _: self.remote  # type: ignore[assignment]
        try:
            with anyio.fail_after(DEADLINE_S):
                await engine.sync_account(self.account, self.state_dir, report, only=only, dry_run=dry_run)
        finally:
            engine.open_remote = original
        return report

    async def synced(self) -> AccountReport:
        """One pass that goes well."""
        report = await self.sync()
        assert report.ok, (report.error, report.mailboxes)
        return report

    async def quiet(self) -> None:
        """A pass that changes nothing on either side and fetches nothing."""
        before = self.snapshot()
        await self.synced()
        assert self.remote.journal == []
        assert self.remote.fetched == []
        assert self.snapshot() == before

    def approve(self, mailbox: str) -> bool:
        state = State.open(self.state_dir / "work.sqlite")
        try:
            row = next(row for name, row in state.mailboxes().items() if name == mailbox)
            return state.approve(row.id)
        finally:
            state.close()

    # -- this disk

    def where(self, mailbox: str) -> Path:
        return self.root / PurePosixPath(mailbox)

    def make(self, mailbox: str) -> None:
        for name in ("cur", "new", "tmp"):
            (self.where(mailbox) / name).mkdir(parents=True, exist_ok=True)

    def write(self, n: int, mailbox: str = "INBOX", letters: str = "", *, raw: bytes | None = None) -> Path:
        """Put message `n` into a mailbox as a program on this disk does."""
        self.make(mailbox)
        self._numbers += 1
        key = f"1600{self._numbers:06d}.R{n}.elsewhere"
        path = self.where(mailbox) / ("cur" if letters else "new") / (key + (f":2,{letters}" if letters else ""))
        temporary = self.where(mailbox) / "tmp" / key
        temporary.write_bytes(self.body(n) if raw is None else raw)
        os.utime(temporary, (START_S + n, START_S + n))
        temporary.rename(path)
        return path

    def files(self, mailbox: str = "INBOX") -> list[Path]:
        top = self.where(mailbox)
        if not (top / "cur").is_dir():
            return []
        return sorted([*(top / "new").iterdir(), *(top / "cur").iterdir()])

    def find(self, n: int, mailbox: str = "INBOX") -> list[Path]:
        return [path for path in self.files(mailbox) if f"Subject: Nr. {n}\n".encode() in path.read_bytes()]

    def one(self, n: int, mailbox: str = "INBOX") -> Path:
        (found,) = self.find(n, mailbox)
        return found

    def relabel(self, path: Path, letters: str) -> Path:
        target = path.parent.parent / "cur" / f"{path.name.partition(':2,')[0]}:2,{''.join(sorted(letters))}"
        path.rename(target)
        return target

    def move(self, path: Path, mailbox: str, *, new_name: bool = False) -> Path:
        """Move a file to another mailbox, as a reader does; `new_name` as mutt does."""
        self.make(mailbox)
        name = path.name
        if new_name:
            self._numbers += 1
            name = f"1700{self._numbers:06d}.M.elsewhere" + (":2," + name.partition(":2,")[2] if ":2," in name else "")
        target = self.where(mailbox) / path.parent.name / name
        path.rename(target)
        return target

    def copy(self, path: Path, mailbox: str) -> Path:
        self.make(mailbox)
        self._numbers += 1
        name = f"1800{self._numbers:06d}.C.elsewhere" + (
            ":2," + path.name.partition(":2,")[2] if ":2," in path.name else ""
        )
        target = self.where(mailbox) / path.parent.name / name
        shutil.copy2(path, target)
        return target

    # -- the server

    def deliver(self, n: int, mailbox: str = "INBOX", flags: Iterable[str] = (), *, raw: bytes | None = None) -> int:
        octets = (self.body(n) if raw is None else raw).replace(b"\n", b"\r\n")
        return self.store.deliver(mailbox, octets, flags, START_S + n)

    def uid(self, n: int, mailbox: str = "INBOX") -> int:
        (found,) = [m.uid for m in self.store.mailbox(mailbox) if f"Subject: Nr. {n}\r\n".encode() in m.raw]
        return found

    def copy_cut_off(self, uid: int, target: str, mailbox: str = "INBOX") -> None:
        """What a pass leaves that is killed between the COPY and the EXPUNGE of a move on a server without MOVE."""
        newest = max(self.store.mailbox(target).uids, default=0)
        with closing(State.open(self.state_dir / "work.sqlite")) as state:
            ids = {name: row.id for name, row in state.mailboxes().items()}
            state.note_going(ids[MailboxName(mailbox)], [Uid(str(uid))], (ids[MailboxName(target)], Uid(str(newest))))
        self.store.copy(mailbox, uid, target)

    # -- both

    def here(self, mailbox: str) -> list[Shown]:
        keywords = self._keywords(mailbox)
        shown = []
        for path in self.files(mailbox):
            letters = path.name.partition(":2,")[2]
            flags = tuple(sorted(LETTERS.get(letter) or keywords[letter] for letter in letters))
            shown.append(Shown(path.read_bytes(), flags, int(path.stat().st_mtime)))
        return sorted(shown)

    def there(self, mailbox: str) -> list[Shown]:
        found = self.store.find(mailbox)
        return sorted(Shown(m.raw.replace(b"\r\n", b"\n"), tuple(sorted(m.flags)), m.date_s) for m in (found or ()))

    def _keywords(self, mailbox: str) -> dict[str, str]:
        path = self.where(mailbox) / "dovecot-keywords"
        lines = (line.split(" ", 1) for line in path.read_text().splitlines()) if path.exists() else ()
        return {chr(ord("a") + int(number)): keyword for number, keyword in lines}

    def mailboxes_here(self) -> set[str]:
        return {str(path.parent.relative_to(self.root)) for path in self.root.rglob("cur")}

    def assert_equal(self) -> None:
        """Both sides hold the same mailboxes, and in each the same messages with flags and dates; `tmp` is empty."""
        assert self.mailboxes_here() == set(self.store.names)
        for mailbox in self.store.names:
            here, there = Counter(self.here(mailbox)), Counter(self.there(mailbox))
            assert here == there, f"{mailbox}: only here {here - there}, only there {there - here}"
            assert list((self.where(mailbox) / "tmp").iterdir()) == []

    def snapshot(self) -> dict[str, tuple[int, int, int]]:
        """Every file below the Maildir: inode, size, time of content."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            status = path.lstat()
            if not path.is_dir():
                found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return found


class WireTwin(Twin):
    """The same with IMAP between: `server` holds the store."""

    server: ImapServer

    @classmethod
    def over(cls, directory: Path, server: ImapServer) -> WireTwin:
        twin = cls(directory, server.store)
        twin.server = server
        twin.configure(host=server.host, port=server.port, user=USER, secret=Password(PASSWORD))
        return twin

    async def sync(
        self, *, lose_at: int | None = None, only: Sequence[str] = (), dry_run: bool = False
    ) -> AccountReport:
        """With `lose_at` each command from that one on ends its connection: not carried out, halfway or unanswered."""
        report = AccountReport(self.account.name)
        if lose_at is not None:
            ways: tuple[Action, ...] = (Bye("cut for a test"), Cut(after_octets=20), Cut(before_tagged=True))
            self.server.faults.add("*", ways[lose_at % len(ways)], nth=1 + lose_at, times=None)
        try:
            with anyio.fail_after(DEADLINE_S):
                await engine.sync_account(self.account, self.state_dir, report, only=only, dry_run=dry_run)
        finally:
            if lose_at is not None:
                self.server.faults.clear()
        return report

    async def quiet(self) -> None:
        before = self.snapshot()
        mutations, commands = len(self.server.mutations), len(self.server.journal)
        await self.synced()
        assert self.server.mutations[mutations:] == []
        assert bodies(self.server.journal[commands:]) == []
        assert self.snapshot() == before
