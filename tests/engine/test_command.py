"""`maild sync` as a person or a script meets it: a process with exit status, standard output and standard error."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from maild import __version__
from maild.engine.status import stored_status
from maild.local.lock import InstanceLock
from maild.local.overview import LAST_PASS
from maild.local.state import State
from maild.testing.faults import Answer
from tests.engine.world import DEADLINE_S, PASSWORD, USER, World

ACCOUNT_FIELDS = {
    "ok",
    "error",
    "pulled",
    "pushed",
    "flags",
    "deleted",
    "moved",
    "refused",
    "skipped",
    "duration_s",
}


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str


class Command:
    """Runs `maild` against the world's server, with a config of two accounts on it."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.config = directory / "maild.toml"
        self.environment = {**os.environ, "HOME": str(directory), "TERM": "xterm", "NO_COLOR": "1"}
        self.environment.pop("MAILD_CONFIG", None)
        self.write(PASSWORD)

    def write(self, password: str, more: str = "") -> None:
        imap = (
            f'host = "{self.world.server.host}"\nport = {self.world.server.port}\ntls = "none"\n'
            f'user = "{USER}"\npassword = "{{}}"\n'
        )
        self.config.write_text(
            f'[maild]\nmaildir = "{self.world.root.parent}"\nstate_dir = "{self.world.state_dir}"\n'
            f'[accounts.work]\naddress = "{USER}"\n[accounts.work.imap]\n{imap.format(PASSWORD)}'
            f'[accounts.other]\naddress = "{USER}"\n[accounts.other.imap]\n{imap.format(password)}{more}'
        )
        self.config.chmod(0o600)

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "maild", "-c", str(self.config), *arguments]

    async def __call__(self, *arguments: str) -> Ran:
        with anyio.fail_after(DEADLINE_S):
            ran = await anyio.run_process(self.argv(*arguments), check=False, env=self.environment)
        return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


@pytest.fixture
def command(world: World, tmp_path: Path) -> Command:
    return Command(world, tmp_path)


async def test_all_accounts(world: World, command: Command) -> None:
    world.store.create("Entwürfe")
    world.deliver(3)
    world.deliver(2, "Entwürfe", start=5)
    ran = await command("sync")
    assert ran.status == 0, ran.err
    assert ran.err == ""
    assert [line.split(" (")[0] for line in ran.out.splitlines()] == ["work: 5 new", "other: 5 new"]
    world.assert_equal()
    ran = await command("sync")
    assert (ran.status, ran.err) == (0, "")
    assert [line.split(" (")[0] for line in ran.out.splitlines()] == ["work: nothing new", "other: nothing new"]


async def test_hooks_are_run_once_at_the_end(world: World, command: Command, tmp_path: Path) -> None:
    """As the daemon runs them; `maild sync` waits for them, and one that fails is told and changes nothing else."""
    said = tmp_path / "said"
    script = f'echo "$MAILD_EVENT $MAILD_ACCOUNTS $MAILD_NEW $(wc -l)" >> {said}; exit 3'
    hooks = "".join(f'{name} = ["sh", "-c", {script!r}]\n' for name in ("on_new_mail", "on_change", "on_failure"))
    world.deliver(3)
    command.write("wrong", f"[hooks]\n{hooks}")
    assert (await command("sync", "--dry-run")).status == 1
    assert not said.exists()
    ran = await command("sync")
    assert ran.status == 1
    assert sorted(said.read_text().splitlines()) == [
        "on_change work 3 3",
        "on_failure other 0 0",
        "on_new_mail work 3 3",
    ]
    assert ran.err.count(": exit status 3; run it by hand to see why\n") == 3
    said.unlink()
    assert (await command("sync", "work")).status == 0
    assert (await command("sync", "work/Nowhere")).status == 1
    assert not said.exists()


async def test_json(world: World, command: Command) -> None:
    world.deliver(12)
    first = json.loads((await command("sync", "--json", "work")).out)
    assert set(first) == {"accounts"}
    assert set(first["accounts"]) == {"work"}
    work = first["accounts"]["work"]
    assert set(work) >= ACCOUNT_FIELDS
    assert (work["ok"], work["error"], work["pulled"], work["pushed"], work["moved"]) == (True, None, 12, 0, 0)
    assert isinstance(work["duration_s"], float)
    world.store.expunge("INBOX", 12)
    world.store.set_flags("INBOX", 1, add=["\\Seen"])
    ran = await command("sync", "--json", "work")
    work = json.loads(ran.out)["accounts"]["work"]
    assert {k: work[k] for k in ("pulled", "flags", "deleted")} == {"pulled": 0, "flags": 1, "deleted": 1}
    world.store.expunge("INBOX", range(1, 12))
    ran = await command("sync", "--json", "work")
    work = json.loads(ran.out)["accounts"]["work"]
    assert ran.status == 1
    assert (work["ok"], work["refused"], work["deleted"]) == (False, 11, 0)
    assert "11 of 11 messages are gone" in work["error"]


async def test_one_account_fails_and_the_other_is_done(world: World, command: Command) -> None:
    world.deliver(2)
    command.write("wrong horse")
    ran = await command("sync")
    assert ran.status == 1
    assert ran.out.startswith("work: 2 new")
    assert len(ran.out.splitlines()) == 1, "results only"
    assert "maild: other: " in ran.err
    assert "refused to log in" in ran.err
    assert "check user and password" in ran.err
    assert "wrong horse" not in ran.err
    ran = await command("sync", "--json")
    document = json.loads(ran.out)
    assert (ran.status, document["accounts"]["work"]["ok"], document["accounts"]["other"]["ok"]) == (1, True, False)


async def test_one_mailbox_fails_and_the_others_are_done(world: World, command: Command) -> None:
    world.store.create("Archiv")
    world.deliver(2)
    world.deliver(2, "Archiv", start=9)
    world.server.faults.add("SELECT", Answer("NO [NOPERM] \x1b[31mnot for you"), nth=2)
    ran = await command("sync", "work")
    assert ran.status == 1
    assert ran.out.startswith("work: 2 new")
    assert "maild: work/" in ran.err
    assert "not for you" in ran.err
    assert "\x1b" not in ran.err, "a server's words do not reach the terminal unescaped"


async def test_a_dry_run(world: World, command: Command, tmp_path: Path) -> None:
    world.store.create("Archiv")
    world.deliver(3)
    world.deliver(1, "Archiv", start=9)
    before = set(tmp_path.rglob("*"))
    ran = await command("sync", "--dry-run", "work")
    assert (ran.status, ran.err) == (0, "")
    assert "work/INBOX: 3 to pull" in ran.out
    assert "work/Archiv: 1 to pull" in ran.out
    assert set(tmp_path.rglob("*")) == before
    assert world.server.mutations == []
    await command("sync", "work")
    world.store.expunge("INBOX", 1)
    snapshot, state = world.snapshot(), world.database.read_bytes()
    ran = await command("sync", "--dry-run", "work")
    assert "work/INBOX: 1 to delete here" in ran.out
    assert (world.snapshot(), world.database.read_bytes()) == (snapshot, state)
    ran = await command("sync", "--dry-run", "--json", "work")
    assert json.loads(ran.out)["accounts"]["work"]["deleted"] == 1


async def test_targets(world: World, command: Command) -> None:
    world.store.create("Archiv/2025")
    world.deliver(2)
    world.deliver(1, "Archiv/2025", start=9)
    ran = await command("sync", "work/Archiv/2025")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("work: 1 new")
    assert not (world.root / "INBOX").exists()
    ran = await command("sync", "work/INBOX", "other")
    assert [line.split(" (")[0] for line in ran.out.splitlines()] == ["work: 2 new", "other: 3 new"]
    ran = await command("sync", "work/Nirgends")
    assert ran.status == 1
    assert "no such mailbox" in ran.err
    assert "Nirgends" in ran.err
    ran = await command("sync", "work/inbux")
    assert 'maild: work: no such mailbox among those synchronised: "inbux" (did you mean "INBOX"?)' in ran.err
    stored = stored_status(world.state_dir, {"work": "imap"})["accounts"]["work"]
    assert stored["error"] is None, "a name mistyped is no failure of the account"
    assert stored["last_sync"] is not None


async def test_a_pass_that_failed_leaves_the_time_of_the_last_good_one(world: World, command: Command) -> None:
    assert (await command("sync", "work")).status == 0
    state = State.open(world.state_dir / "work.sqlite")
    state.set_meta(LAST_PASS, json.dumps({"at": 1_800_000_000, "ok": True, "error": None}))
    state.close()
    world.server.faults.add("LIST", Answer("BAD no"), times=None)
    assert (await command("sync", "work")).status == 1
    stored = stored_status(world.state_dir, {"work": "imap"})["accounts"]["work"]
    assert stored["error"] is not None
    assert stored["last_sync"] == "2027-01-15T08:00:00Z"


async def test_an_unknown_account_is_wrong_usage(world: World, command: Command) -> None:
    ran = await command("sync", "wrok")
    assert (ran.status, ran.out) == (64, "")
    assert "no account is called 'wrok' (did you mean \"work\"?); there are: work, other" in ran.err
    assert world.server.connections == []


async def test_a_busy_state_directory(world: World, command: Command) -> None:
    with InstanceLock(world.state_dir, "a test"):
        ran = await command("sync")
    assert (ran.status, ran.out) == (1, "")
    assert f"pid {os.getpid()}" in ran.err
    assert str(world.state_dir) in ran.err
    assert len(ran.err.splitlines()) == 1
    assert world.server.connections == []
    assert (await command("sync")).status == 0


async def test_progress_on_a_terminal_only(world: World, command: Command) -> None:
    world.deliver(3)
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *command.argv("sync", "work"), env=command.environment, stdout=asyncio.subprocess.PIPE, stderr=theirs
        )
        os.close(theirs)
        shown, (out, _) = await asyncio.gather(asyncio.to_thread(read_to_the_end, ours), process.communicate())
    finally:
        os.close(ours)
    assert process.returncode == 0
    assert out.decode().startswith("work: 3 new")
    assert "3/3 messages" in shown
    assert "work" in shown
    ran = await command("sync", "--json")
    assert ran.err == ""


def read_to_the_end(terminal: int) -> str:
    """What was written to a terminal until nobody has it open any more."""
    parts = []
    try:
        while octets := os.read(terminal, 65536):
            parts.append(octets)
    except OSError:  # Linux says EIO at the end
        pass
    return b"".join(parts).decode()


async def test_verbose_logs_every_step_and_no_secret(world: World, command: Command) -> None:
    world.deliver(1)
    with anyio.fail_after(DEADLINE_S):
        ran = await anyio.run_process(
            [sys.executable, "-m", "maild", "-v", "-c", str(command.config), "sync", "work"],
            check=False,
            env=command.environment,
        )
    assert b"message.pulled" in ran.stderr
    assert PASSWORD.encode() not in ran.stderr + ran.stdout
    assert __version__.encode() not in ran.stdout
