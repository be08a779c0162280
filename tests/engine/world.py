"""One account in a test: its server in memory, its Maildir and state on disk, and an independent look at both sides."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import anyio

from maild.config import Account, Imap, Password
from maild.config.values import DeletionLimit
from maild.engine.account import CHANGES, sync_account
from maild.engine.report import AccountReport
from maild.local.state import State
from maild.remote.imap.parse import Limits
from maild.testing.imap import ALL, BARE, ImapServer
from maild.testing.store import Store

USER = "me@example.org"
PASSWORD = "correct horse battery staple"
DEADLINE_S = 30.0
START_S = 1_700_000_000

CAPABILITIES = {
    "qresync": ALL,
    "condstore": ALL - {"QRESYNC"},
    "no-modseq": ALL - {"QRESYNC", "CONDSTORE"},
    "bare": BARE,
}

_LETTERS = {
    "D": "\\Draft",
    "F": "\\Flagged",
    "P": "$Forwarded",
    "R": "\\Answered",
    "S": "\\Seen",
    "T": "\\Deleted",
}


def message(n: int, *, message_id: str | None = None, body: str = "Hallo Welt\r\nzwei\r\n") -> bytes:
    """A small message in wire form; `message_id` "" leaves that field out."""
    name = f"<m{n}@test.example>" if message_id is None else message_id
    field = f"Message-ID: {name}\r\n" if name else ""
    return f"{field}Date: Tue, 14 Nov 2023 22:13:{n % 60:02d} +0000\r\nSubject: Nr. {n}\r\n\r\n{body}{n}\r\n".encode()


def long_body() -> str:
    """More than maild keeps in memory of one message, so that it goes over a file in `tmp`."""
    line = "0123456789abcdef\r\n"
    return line * (Limits().literal // len(line) + 1000)


@dataclass(frozen=True, slots=True, order=True)
class Seen:
    """One message as either side has it: disk form, flags and keywords in order, date in seconds."""

    raw: bytes
    flags: tuple[str, ...]
    date_s: int


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One message file as it lies there."""

    path: Path
    raw: bytes
    flags: frozenset[str]
    letters: str | None
    date_s: int

    @property
    def key(self) -> str:
        return self.path.name.partition(":2,")[0]


class World:
    """See the module. `account` may be replaced at any time; `settings` replaces keys of its imap section."""

    def __init__(self, directory: Path, server: ImapServer) -> None:
        self.server = server
        self.state_dir = directory / "state"
        imap = Imap(host=server.host, port=server.port, user=USER, secret=Password(PASSWORD), tls="none")
        self.account = Account(name="work", address=USER, maildir=directory / "Mail" / "work", imap=imap)
        self._read = 0

    @property
    def store(self) -> Store:
        return self.server.store

    @property
    def root(self) -> Path:
        return self.account.maildir

    @property
    def database(self) -> Path:
        return self.state_dir / f"{self.account.name}.sqlite"

    @property
    def imap(self) -> Imap:
        assert self.account.imap is not None
        return self.account.imap

    def settings(self, **changes: Any) -> None:
        """Change keys of the imap section."""
        self.account = replace(self.account, imap=replace(self.imap, **changes))

    def limit_deletions(self, amount: int, *, is_percent: bool) -> None:
        self.account = replace(self.account, max_deletions=DeletionLimit(amount, is_percent=is_percent))

    # -- the server's side

    def deliver(self, count: int, mailbox: str = "INBOX", *, start: int = 1, flags: Iterable[str] = ()) -> list[int]:
        """Put small messages numbered from `start` into a mailbox; their UIDs."""
        return [self.store.deliver(mailbox, message(n), flags, START_S + n * 60) for n in range(start, start + count)]

    def on_server(self, mailbox: str) -> list[Seen]:
        """What the server has, in the disk form, in order."""
        messages = self.store.mailbox(mailbox).messages
        return sorted(Seen(m.raw.replace(b"\r\n", b"\n"), tuple(sorted(m.flags)), m.date_s) for m in messages)

    def commands(self) -> list[str]:
        """What clients sent since this was asked last."""
        journal = self.server.journal
        news, self._read = journal[self._read :], len(journal)
        return news

    # -- a pass

    async def sync(self, *, only: Sequence[str] = (), dry_run: bool = False) -> AccountReport:
        """One pass, whatever becomes of it."""
        report = AccountReport(self.account.name)
        with anyio.fail_after(DEADLINE_S):
            await sync_account(self.account, self.state_dir, report, only=only, dry_run=dry_run)
        return report

    async def synced(self) -> AccountReport:
        """One pass that goes well."""
        report = await self.sync()
        assert report.ok, (report.error, report.mailboxes)
        return report

    async def settled(self) -> AccountReport:
        """A further pass with nothing to do: no body crosses the line, no file is touched, nothing is written there."""
        before, mutations = self.snapshot(), len(self.server.mutations)
        self.commands()
        report = await self.synced()
        sent = self.commands()
        assert bodies(sent) == []
        assert self.snapshot() == before
        assert {name: report.total(name) for name in CHANGES} == dict.fromkeys(CHANGES, 0)
        assert self.server.mutations[mutations:] == []
        return report

    # -- this disk

    def directory(self, mailbox: str) -> Path:
        """Of a mailbox with an ordinary name, in the account's layout."""
        if self.account.layout == "nested":
            return self.root / PurePosixPath(mailbox)
        return self.root if mailbox == "INBOX" else self.root / f".{mailbox.replace('/', '.')}"

    def files(self, mailbox: str = "INBOX") -> list[LocalFile]:
        """The message files of a mailbox, in the order of their names."""
        directory = self.directory(mailbox)
        keywords = _keywords(directory / "dovecot-keywords")
        found = []
        for path in sorted([*(directory / "new").iterdir(), *(directory / "cur").iterdir()]):
            _, info, letters = path.name.partition(":2,")
            assert info or path.parent.name == "new", f"{path} is in cur without an info part"
            flags = frozenset(_LETTERS.get(letter) or keywords[letter] for letter in letters)
            raw, status = path.read_bytes(), path.stat()
            found.append(LocalFile(path, raw, flags, letters if info else None, int(status.st_mtime)))
        return found

    def on_disk(self, mailbox: str = "INBOX") -> list[Seen]:
        """What this disk has, in order."""
        return sorted(Seen(file.raw, tuple(sorted(file.flags)), file.date_s) for file in self.files(mailbox))

    def assert_equal(self, *mailboxes: str, tmp: bool = True) -> None:
        """Both sides hold the same messages, each once, with the same flags and dates; `tmp` is empty."""
        for mailbox in mailboxes or self.store.names:
            here, there = self.on_disk(mailbox), self.on_server(mailbox)
            assert here == there, f"{mailbox}: {_difference(here, there)}"
            assert not tmp or list((self.directory(mailbox) / "tmp").iterdir()) == []

    def snapshot(self) -> dict[str, tuple[int, int, int, int]]:
        """Every file below the Maildir: inode, size, times of content and inode."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            status = path.lstat()
            if not path.is_dir():
                found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return found

    def one(self, n: int, mailbox: str = "INBOX") -> LocalFile:
        """The file of message number `n`."""
        (found,) = [file for file in self.files(mailbox) if f"Subject: Nr. {n}\n".encode() in file.raw]
        return found

    def relabel(self, file: LocalFile, letters: str) -> Path:
        """Give a file other flags, as a mail reader does."""
        target = file.path.parent.parent / "cur" / f"{file.key}:2,{letters}"
        file.path.rename(target)
        return target

    def write_foreign(self, n: int, raw: bytes, letters: str | None = None, mailbox: str = "INBOX") -> Path:
        """A message file (disk form) as another program would have left it."""
        for name in ("cur", "new", "tmp"):
            (self.directory(mailbox) / name).mkdir(parents=True, exist_ok=True)
        name = f"16{n:08d}.R{n}.elsewhere" + ("" if letters is None else f":2,{letters}")
        path = self.directory(mailbox) / ("new" if letters is None else "cur") / name
        path.write_bytes(raw)
        return path

    def lose_state(self) -> None:
        """Remove everything maild remembers."""
        for path in self.state_dir.iterdir():
            path.unlink()

    def state(self) -> State:
        """The state file, opened beside maild; the caller closes it."""
        return State.open(self.database)

    def base_flags(self, mailbox: str = "INBOX") -> dict[str, frozenset[str]]:
        """UID → what both sides last agreed on."""
        state = self.state()
        try:
            row = next(row for name, row in state.mailboxes().items() if name == mailbox)
            return {pair.uid: pair.flags for pair in state.pairs(row.id)}
        finally:
            state.close()


def bodies(commands: Iterable[str]) -> list[str]:
    """The commands that ask for whole messages."""
    return [command for command in commands if "BODY.PEEK[]" in command]


def _keywords(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    lines = (line.split(" ", 1) for line in path.read_text().splitlines())
    return {chr(ord("a") + int(number)): keyword for number, keyword in lines}


def _difference(here: list[Seen], there: list[Seen]) -> str:
    only_here, only_there = Counter(here) - Counter(there), Counter(there) - Counter(here)
    return f"{len(here)} here, {len(there)} there; only here {list(only_here)[:3]}, only there {list(only_there)[:3]}"


def touched_times(path: Path, seconds: int) -> None:
    """Set a file's mtime."""
    os.utime(path, (seconds, seconds))
