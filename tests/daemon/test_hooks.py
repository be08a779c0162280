"""Hooks as programs really run: what they are told, and that they hold nothing up."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import structlog

from maild.config.values import Hooks
from maild.core.errors import ConnectionLost
from maild.engine.hooks import HookBoard
from maild.engine.report import AccountReport, MailboxReport
from tests.daemon.waiting import until

TELL = (
    "import json, os, sys;"
    "told = {'stdin': sys.stdin.read().splitlines(), **{k: v for k, v in os.environ.items() if 'MAILD_' in k}};"
    "open(sys.argv[1], 'a').write(json.dumps(told) + '\\n')"
)


def report(account: str = "work", *, paths: Sequence[str] = (), **counts: int) -> AccountReport:
    made = AccountReport(account, delivered=list(paths))
    made.mailboxes["INBOX"] = MailboxReport("INBOX", "ok", **counts)
    return made


@asynccontextmanager
async def running(board: HookBoard) -> AsyncIterator[HookBoard]:
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(board.run)
            yield board
            tasks.cancel_scope.cancel()


def told(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def teller(file: Path) -> tuple[str, ...]:
    return (sys.executable, "-c", TELL, str(file))


async def test_new_mail_is_told_with_paths_and_facts(tmp_path: Path) -> None:
    file = tmp_path / "told"
    async with running(HookBoard(Hooks(on_new_mail=teller(file)))) as board:
        board.note_pass(report(paths=["/m/new/a b", "/m/new/c"], pulled=2))
        (facts,) = await until(lambda: told(file))
    assert facts["stdin"] == ["/m/new/a b", "/m/new/c"]
    assert facts["MAILD_EVENT"] == "on_new_mail"
    assert (facts["MAILD_ACCOUNTS"], facts["MAILD_MAILBOXES"], facts["MAILD_NEW"]) == ("work", "work/INBOX", "2")


async def test_nothing_changed_is_nothing_told(tmp_path: Path) -> None:
    quiet, change = tmp_path / "quiet", tmp_path / "change"
    async with running(HookBoard(Hooks(on_new_mail=teller(quiet), on_change=teller(change)))) as board:
        board.note_pass(report())
        board.note_pass(report(pushed=3, flags_there=2, adopted=7))
        board.note_pass(report(flags=1))
        (facts,) = await until(lambda: told(change))
    assert facts["MAILD_FLAGS"] == "1"
    assert told(quiet) == []


async def test_what_happens_while_a_hook_runs_is_told_by_its_next_run(tmp_path: Path) -> None:
    file, gate = tmp_path / "told", tmp_path / "gate"
    os.mkfifo(gate)
    waiting = f"open({str(gate)!r}).read();" + TELL
    async with running(HookBoard(Hooks(on_new_mail=(sys.executable, "-c", waiting, str(file))))) as board:
        board.note_pass(report(paths=["/1"], pulled=1))
        await anyio.to_thread.run_sync(gate.write_text, "")  # returns once the first run reads
        for n in range(2, 6):
            board.note_pass(report("work" if n < 4 else "home", paths=[f"/{n}"], pulled=1))
        await until(lambda: len(told(file)) == 1)
        await anyio.to_thread.run_sync(gate.write_text, "")
        second = (await until(lambda: told(file)[1:]))[0]
    assert second["stdin"] == ["/2", "/3", "/4", "/5"]
    assert (second["MAILD_ACCOUNTS"], second["MAILD_NEW"]) == ("work home", "4")


async def test_one_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {file}; wait"
    with structlog.testing.capture_logs() as events:
        async with running(HookBoard(Hooks(on_change=("sh", "-c", script)), time_limit_s=0.5)) as board:
            board.note_pass(report(flags=1))
            await until(lambda: [e for e in events if e["event"] == "hook.failed"])
    child = int(file.read_text())
    await until(lambda: not Path(f"/proc/{child}/stat").exists() or " Z " in Path(f"/proc/{child}/stat").read_text())
    assert "killed" in next(e["reason"] for e in events if e["event"] == "hook.failed")


async def test_a_hook_that_cannot_run_or_fails_is_logged_and_the_next_one_runs(tmp_path: Path) -> None:
    file = tmp_path / "told"
    board = HookBoard(Hooks(on_change=("/no/such/program",), on_new_mail=("false",)))
    with structlog.testing.capture_logs() as events:
        async with running(board):
            board.note_pass(report(pulled=1))
            await until(lambda: len([e for e in events if e["event"] == "hook.failed"]) == 2)
            board.change(Hooks(on_change=teller(file)))
            board.note_pass(report(pulled=1))
            await until(lambda: told(file))
    assert {e["reason"] for e in events} == {
        "/no/such/program cannot be run: No such file or directory",
        "exit status 1",
    }


async def test_a_hook_that_reads_nothing_does_no_harm(tmp_path: Path) -> None:
    many = [f"/m/new/{n:0100d}" for n in range(10_000)]
    with structlog.testing.capture_logs() as events:
        async with running(HookBoard(Hooks(on_new_mail=("false",)))) as board:
            board.note_pass(report(paths=many, pulled=len(many)))
            await until(lambda: events)
    assert events[0]["reason"] == "exit status 1"


async def test_names_of_a_hostile_server_are_one_line_each(tmp_path: Path) -> None:
    file = tmp_path / "told"
    hostile = report(pulled=1)
    hostile.mailboxes["x\n/etc/passwd\x1b[2J"] = MailboxReport("x\n/etc/passwd\x1b[2J", "ok", pulled=1)
    async with running(HookBoard(Hooks(on_new_mail=teller(file)))) as board:
        board.note_pass(hostile)
        (facts,) = await until(lambda: told(file))
    assert str(facts["MAILD_MAILBOXES"]).split("\n") == ["work/INBOX", "work/x\\n/etc/passwd\\x1b[2J"]


async def test_a_failure_is_told(tmp_path: Path) -> None:
    file = tmp_path / "told"
    async with running(HookBoard(Hooks(on_failure=teller(file)))) as board:
        board.note_pass(report(pulled=1))
        board.note_failure("work", ConnectionLost("the server is gone", "look after it"))
        (facts,) = await until(lambda: told(file))
    assert facts["MAILD_ERROR"] == "the server is gone; look after it"


async def test_more_mailboxes_than_a_variable_holds(tmp_path: Path) -> None:
    file = tmp_path / "told"
    many = AccountReport("work", delivered=[])
    for n in range(5000):
        name = f"A mailbox with a long name/{n:030}"
        many.mailboxes[name] = MailboxReport(name, "ok", pulled=1)
    async with running(HookBoard(Hooks(on_new_mail=teller(file)))) as board:
        board.note_pass(many)
        (facts,) = await until(lambda: told(file))
    assert facts["MAILD_NEW"] == "5000"
    names = str(facts["MAILD_MAILBOXES"]).split("\n")
    assert 1000 < len(names) < 5000
    assert set(names) <= {f"work/{name}" for name in many.mailboxes}
