"""A POP3 account's maild, the real process, killed at every command that it sends."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from maild.testing.pop3 import ALL
from maild.testing.wire import ConnectionEnded
from tests.engine.maildrop import DAY_S, PopWorld, disk_form, pop_world
from tests.engine.world import PASSWORD

MESSAGES = 3
COMMANDS = ["CAPA", "AUTH", "UIDL", "LIST", *["RETR"] * MESSAGES, *["DELE"] * MESSAGES, "QUIT"]
POLICIES = {"false": False, '"14d"': int(14 * DAY_S), "true": True}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[PopWorld]:
    """Its server takes one command at a time, so that one can be killed between any two."""
    async with pop_world(tmp_path, ALL - {"PIPELINING"}) as made:
        yield made


class Killer(list[str]):
    """A journal that kills the client as the server reads its n-th command.

    The command is carried out and its reply lost, or, where it `vanishes`, it never came.
    """

    def __init__(self, pid: int, nth: int, *, vanishes: bool) -> None:
        super().__init__()
        self._pid = pid
        self._left = nth
        self._vanishes = vanishes

    def append(self, line: str) -> None:
        super().append(line)
        self._left -= 1
        if self._left == 0:
            os.kill(self._pid, signal.SIGKILL)
            if self._vanishes:
                raise ConnectionEnded


def config_of(world: PopWorld, leave: str) -> Path:
    pop3 = world.account.pop3
    assert pop3 is not None
    path = world.state_dir.parent / "maild.toml"
    path.touch(mode=0o600)
    path.write_text(
        f'[maild]\nstate_dir = "{world.state_dir}"\n[accounts.isp]\naddress = "me@example.org"\n'
        f'maildir = "{world.root}"\n[accounts.isp.pop3]\nhost = "{pop3.host}"\nport = {pop3.port}\ntls = "none"\n'
        f'user = "{pop3.user}"\npassword = "{PASSWORD}"\nleave_on_server = {leave}\n'
    )
    return path


async def killed_at(world: PopWorld, config: Path, nth: int, *, vanishes: bool) -> list[str]:
    """Run `maild sync` until its n-th command; the commands that it sent."""
    world.server.journal = []
    command = [sys.executable, "-m", "maild", "-c", str(config), "sync"]
    async with await anyio.open_process(command, stdout=None, stderr=None) as process:
        world.server.journal = killer = Killer(process.pid, nth, vanishes=vanishes)
        with anyio.fail_after(60):
            await process.wait()
    await world.server.unlocked()
    assert process.returncode == -signal.SIGKILL, killer
    world.server.journal, world._read = [], 0
    return [line.partition(" ")[0] for line in killer]


async def killed_at_each(world: PopWorld, leave: str, kills: list[tuple[int, bool]]) -> None:
    """After each, a poll that comes to its end leaves every message here once, and there what the policy says."""
    config = config_of(world, leave)
    expected: Counter[bytes] = Counter()
    world.settings(leave_on_server=POLICIES[leave])
    (world.root / "INBOX" / "tmp").mkdir(parents=True)
    deletes = leave == "false"
    commands = COMMANDS if deletes else COMMANDS[:7]
    for n, (nth, vanishes) in enumerate(kills):
        new = world.deliver(MESSAGES, start=1 + n * MESSAGES)
        expected += disk_form(new)
        assert (await killed_at(world, config, nth, vanishes=vanishes)) == commands[:nth]
        await world.polled()
        assert world.on_disk(tmp=True) == expected
        assert world.on_server() == ({} if deletes else dict.fromkeys(world.on_server(), 1))
        assert len(world.server.messages) == (0 if deletes else len(expected))


async def test_killed_between_the_commands_that_matter(world: PopWorld) -> None:
    """In the middle of the messages, before a deletion is asked for, between two, and at QUIT, done or not."""
    await killed_at_each(world, "false", [(6, False), (8, True), (9, False), (11, True), (11, False)])


@pytest.mark.long
@pytest.mark.parametrize("leave", POLICIES)
async def test_killed_between_any_two_commands(world: PopWorld, leave: str) -> None:
    commands = len(COMMANDS) if leave == "false" else 7
    await killed_at_each(
        world, leave, [(nth, vanishes) for nth in range(1, commands + 1) for vanishes in (True, False)]
    )
