"""A POP3 account with a server in memory, for the tests of a poll."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from maild.config import Account, Password, Pop3
from maild.config.values import DeletionLimit
from maild.core.maildrop import Terms
from maild.engine.poll import poll_account
from maild.engine.report import AccountReport
from maild.testing.pop3 import ALL, Pop3Server
from tests.engine.world import DEADLINE_S, PASSWORD, USER, message

DAY_S = 86_400.0
CAPABILITIES = {
    "all": ALL,
    "no-pipelining": ALL - {"PIPELINING"},
    "no-top": ALL - {"TOP"},
    "no-uidl": ALL - {"UIDL"},
    "bare": frozenset({"USER"}),
}


class PopWorld:
    """`settings` replaces keys of the pop3 section; `now_s` is the clock by which messages age."""

    def __init__(self, directory: Path, server: Pop3Server) -> None:
        self.server = server
        self.state_dir = directory / "state"
        self.now_s = 1_700_000_000.0
        self.terms: Terms | None = None
        pop3 = Pop3(host=server.host, port=server.port, user=USER, secret=Password(PASSWORD), tls="none")
        self.account = Account(name="isp", address=USER, maildir=directory / "Mail" / "isp", pop3=pop3)
        self._read = 0

    @property
    def root(self) -> Path:
        return self.account.maildir

    def settings(self, **changes: Any) -> None:
        assert self.account.pop3 is not None
        self.account = replace(self.account, pop3=replace(self.account.pop3, **changes))

    def limit_deletions(self, amount: int, *, is_percent: bool) -> None:
        self.account = replace(self.account, max_deletions=DeletionLimit(amount, is_percent=is_percent))

    def deliver(self, count: int, start: int = 1) -> list[bytes]:
        """Small messages numbered from `start`, in wire form."""
        raws = [message(n) for n in range(start, start + count)]
        for raw in raws:
            self.server.deliver(raw)
        return raws

    def commands(self) -> list[str]:
        """What clients sent since this was asked last."""
        news, self._read = self.server.journal[self._read :], len(self.server.journal)
        return news

    def counted(self) -> Counter[str]:
        """The same, by command."""
        return Counter(line.split(" ")[0] for line in self.commands())

    async def poll(self, *, dry_run: bool = False) -> AccountReport:
        """One poll, whatever becomes of it; afterwards the server has seen its end."""
        report = AccountReport(self.account.name)
        with anyio.fail_after(DEADLINE_S):
            self.terms = await poll_account(
                self.account, self.state_dir, report, dry_run=dry_run, now=lambda: self.now_s
            )
        await self.server.unlocked()
        return report

    async def polled(self) -> AccountReport:
        """One poll that goes well."""
        report = await self.poll()
        assert report.ok, report
        return report

    def paths(self, mailbox: str = "INBOX") -> list[Path]:
        directory = self.root / mailbox
        return sorted([*(directory / "new").iterdir(), *(directory / "cur").iterdir()])

    def on_disk(self, mailbox: str = "INBOX", *, tmp: bool = False) -> Counter[bytes]:
        """What lies in a mailbox; `tmp`: a crash may have left something there."""
        assert tmp or list((self.root / mailbox / "tmp").iterdir()) == []
        return Counter(path.read_bytes() for path in self.paths(mailbox))

    def path_of(self, n: int, mailbox: str = "INBOX") -> Path:
        (found,) = [path for path in self.paths(mailbox) if f"Subject: Nr. {n}\n".encode() in path.read_bytes()]
        return found

    def make_mailbox(self, name: str) -> Path:
        for subdir in ("cur", "new", "tmp"):
            (self.root / name / subdir).mkdir(parents=True)
        return self.root / name

    def on_server(self) -> Counter[bytes]:
        return Counter(kept.raw for kept in self.server.messages)

    def lose_state(self) -> None:
        for path in self.state_dir.iterdir():
            path.unlink()

    def sql(self, statement: str, *values: object) -> list[Any]:
        """Look into the state file, or do to it what a crash would."""
        with closing(sqlite3.connect(self.state_dir / "isp.sqlite")) as database, database:
            return database.execute(statement, values).fetchall()


def disk_form(raws: list[bytes]) -> Counter[bytes]:
    return Counter(raw.replace(b"\r\n", b"\n") for raw in raws)


@asynccontextmanager
async def pop_world(directory: Path, capabilities: frozenset[str] = ALL) -> AsyncIterator[PopWorld]:
    async with Pop3Server(users={USER: PASSWORD}, capabilities=capabilities) as server:
        yield PopWorld(directory, server)
