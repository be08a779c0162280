"""Passes of maild in one process after login, beside whole runs of mbsync, over the same changes.

`python -m tests.bench.passes --port N --user NAME --password P --directory D` is the process that is timed: it fetches
everything once, then makes each change of `CHANGES` and times the pass that carries it over; one line of JSON per pass:
what, seconds, seconds of CPU. Changes there are made by another client, over IMAP. `--only WHAT`: that change alone.
"""

from __future__ import annotations

import argparse
import imaplib
import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import anyio

from maild import log
from maild.config import Account, Imap, Password
from maild.engine.account import KeptAccount, opened_account
from maild.engine.limits import settle_in
from maild.engine.report import AccountReport
from tests.bench.clients import Server

SOME = 100
MESSAGE = b"Message-ID: <%d@new.bench.example>\nDate: Tue, 14 Nov 2023 22:13:00 +0000\nSubject: new\n\nHello.\n"


@dataclass(slots=True)
class Sides:
    """One mailbox on both sides, to be changed by a reader here and by another client there."""

    inbox: Path
    server: Server
    number: int = 0

    def nothing(self) -> None:
        """No change at all."""

    def new_here(self) -> None:
        self.number += 1
        name = f"{time.time_ns()}.bench{self.number}.reader"
        (self.inbox / "tmp" / name).write_bytes(MESSAGE % time.time_ns())
        (self.inbox / "tmp" / name).rename(self.inbox / "new" / name)

    def flags_here(self) -> None:
        for name in self._some():
            key, _, letters = name.partition(":2,")
            other = "".join(sorted(set(letters) ^ {"F"}))
            (self._where(name) / name).rename(self.inbox / "cur" / f"{key}:2,{other}")

    def deleted_here(self) -> None:
        for name in self._some():
            (self._where(name) / name).unlink()

    def new_there(self) -> None:
        with self._session() as session:
            session.append("INBOX", "", "", MESSAGE.replace(b"\n", b"\r\n") % time.time_ns())

    def flags_there(self) -> None:
        with self._session() as session:
            session.select("INBOX")
            session.uid("STORE", self._uids(session), "+FLAGS.SILENT", "(\\Flagged bench)")
            session.unselect()

    def deleted_there(self) -> None:
        with self._session() as session:
            session.select("INBOX")
            uids = self._uids(session)
            session.uid("STORE", uids, "+FLAGS.SILENT", "(\\Deleted)")
            session.uid("EXPUNGE", uids)
            session.unselect()

    def _session(self) -> imaplib.IMAP4:
        session = imaplib.IMAP4(self.server.host, self.server.port)
        session.login(self.server.user, self.server.password)
        return session

    def _uids(self, session: imaplib.IMAP4) -> str:
        _, found = session.uid("SEARCH", "ALL")
        return b",".join(random.Random(self.number).sample(found[0].split(), SOME)).decode()

    def _some(self) -> list[str]:
        self.number += 1
        names = [path.name for subdir in ("cur", "new") for path in (self.inbox / subdir).iterdir()]
        return random.Random(self.number).sample(sorted(names), min(SOME, len(names)))

    def _where(self, name: str) -> Path:
        return self.inbox / ("cur" if (self.inbox / "cur" / name).exists() else "new")


NOTHING = "nothing changed"
CHANGES: dict[str, Callable[[Sides], None]] = {
    NOTHING: Sides.nothing,
    "1 new here": Sides.new_here,
    f"{SOME} flags changed here": Sides.flags_here,
    f"{SOME} deleted here": Sides.deleted_here,
    "1 new there": Sides.new_there,
    f"{SOME} flags changed there": Sides.flags_there,
    f"{SOME} deleted there": Sides.deleted_there,
}


@dataclass(frozen=True, slots=True)
class Pass:
    """One timed pass."""

    what: str
    wall_s: float
    cpu_s: float


def mbsync_passes(command: list[str], sides: Sides) -> list[Pass]:
    """Whole runs of mbsync over the same changes, in a Maildir where it has fetched everything."""
    found = []
    for what, change in CHANGES.items():
        change(sides)
        found.append(_run(command, what))
        for _ in range(2):  # its own changes come back to it, and it waits for a second to pass
            _run(command, what)
    return found


def _run(command: list[str], what: str) -> Pass:
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Pass(what, time.perf_counter() - began, cpu_s)


async def _measure(account: Account, state_dir: Path, sides: Sides, wanted: Collection[str]) -> None:
    async with opened_account(account, state_dir) as kept:
        for _ in range(3):
            await _pass(kept, "settling")
        for what, change in ((what, CHANGES[what]) for what in wanted):
            await anyio.to_thread.run_sync(change, sides)
            print(json.dumps(vars_of(await _pass(kept, what))), flush=True)
            for _ in range(2):
                await _pass(kept, "settling")


def vars_of(one: Pass) -> dict[str, object]:
    return {"what": one.what, "wall_s": one.wall_s, "cpu_s": one.cpu_s}


async def _pass(kept: KeptAccount, what: str) -> Pass:
    report = AccountReport("bench")
    cpu_s, began = time.process_time(), time.perf_counter()
    await kept.bring_up_to_date(report)
    found = Pass(what, time.perf_counter() - began, time.process_time() - cpu_s)
    if not report.ok:
        raise SystemExit(f"{what}: {report.first_error()}")
    return found


def main() -> None:
    """The process that is timed."""
    parser = argparse.ArgumentParser(prog="tests.bench.passes")
    for name in ("--port", "--near", "--user", "--password", "--directory"):
        parser.add_argument(name, required=True)
    parser.add_argument("--only", action="append", choices=CHANGES)
    arguments = parser.parse_args()
    directory = Path(arguments.directory)
    imap = Imap(
        host="127.0.0.1",
        port=int(arguments.port),
        user=arguments.user,
        secret=Password(arguments.password),
        tls="none",
        remote_delete="expunge",
    )
    account = Account(name="bench", address="me@bench.example", maildir=directory / "mail", imap=imap)
    log.configure("error", "console")
    settle_in()
    server = Server(int(arguments.near), arguments.user, arguments.password)  # the other client is near it
    sides = Sides(directory / "mail" / "INBOX", server)
    anyio.run(_measure, account, directory / "state", sides, arguments.only or list(CHANGES))


if __name__ == "__main__":
    main()
