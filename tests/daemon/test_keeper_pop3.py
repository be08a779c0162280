"""The owner of a POP3 account: when it polls, what it does about a refused login."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from maild.config import Hooks, PasswordFile
from maild.core.maildrop import DAY_S, Terms
from maild.engine.hooks import HookBoard
from maild.engine.keeper import Common, Keeper, Request
from maild.testing.faults import Answer, Cut
from tests.daemon.waiting import until
from tests.engine.maildrop import PopWorld, pop_world
from tests.engine.world import PASSWORD


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[PopWorld]:
    async with pop_world(tmp_path) as made:
        made.deliver(2)
        made.state_dir.mkdir()
        yield made


@asynccontextmanager
async def kept(world: PopWorld, clock: Clock) -> AsyncIterator[Keeper]:
    """A daemon's keeper of the account; `clock` is the one that it waits by."""
    common = Common(world.state_dir, HookBoard(Hooks()), clock=clock, chance=lambda: 0.5)
    keeper = Keeper(world.account, "pop3", common)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keeper.run)
            yield keeper
            tasks.cancel_scope.cancel()


async def asked(keeper: Keeper) -> Request:
    """A pass that a user asks for, and its end."""
    request = Request()
    keeper.ask(request)
    await request.done.wait()
    return request


def logins(world: PopWorld) -> int:
    return world.server.count("AUTH")


async def test_it_polls_at_the_start_and_knows_when_again(world: PopWorld) -> None:
    clock = Clock()
    async with kept(world, clock) as keeper:
        await until(lambda: keeper.state == "idle")
        assert len(world.paths()) == 2
        assert keeper._next_poll_s == clock.now_s + 300.0
        assert (keeper.push, logins(world)) == ("poll", 1)
        world.deliver(1, start=3)
        keeper.wake()
        await until(lambda: len(world.paths()) == 3)


async def test_login_delay_outlives_the_daemon(world: PopWorld) -> None:
    """What the server wanted is known before it is asked again, by whoever polled last; only a person may insist."""
    world.server.capabilities.add("LOGIN-DELAY 900")
    world.now_s = time.time() - 600.0
    await world.polled()
    world.deliver(1, start=3)
    clock = Clock()
    async with kept(world, clock) as keeper:
        await until(lambda: keeper.has_started and keeper._login_from_s > 0)
        assert clock.now_s + 290.0 < keeper._login_from_s <= clock.now_s + 300.0
        keeper.hasten()
        await until(lambda: not keeper._stirred.is_set())
        assert (keeper.state, logins(world)) == ("starting", 1)
        clock.now_s += 301.0
        keeper.wake()
        await until(lambda: keeper.state == "idle")
        assert (logins(world), len(world.paths())) == (2, 3)
        assert keeper._next_poll_s >= clock.now_s + 900.0
        keeper.hasten()
        await until(lambda: not keeper._stirred.is_set())
        assert logins(world) == 2
        await asked(keeper)
        assert logins(world) == 3


async def test_login_delay_holds_for_what_failed_as_well(world: PopWorld) -> None:
    """A transfer that is cut is not begun again at once: the server would refuse."""
    world.server.capabilities.add("LOGIN-DELAY 900")
    world.server.faults.add("RETR", Cut(after_octets=10))
    clock = Clock()
    async with kept(world, clock) as keeper:
        await until(lambda: keeper.state == "offline")
        clock.now_s += 890.0
        keeper.hasten()
        await until(lambda: not keeper._stirred.is_set())
        assert (keeper.state, logins(world)) == ("offline", 1)
        clock.now_s += 11.0
        keeper.hasten()
        await until(lambda: keeper.state == "idle")
        assert (logins(world), len(world.paths())) == (2, 2)


async def test_a_server_that_keeps_mail_for_days_only_is_polled_twice_in_that_time(world: PopWorld) -> None:
    world.server.capabilities.add("EXPIRE 1")
    world.settings(poll_s=7 * 86_400)
    clock = Clock()
    for _ in range(2):  # the second time it is remembered
        async with kept(world, clock) as keeper:
            await until(lambda: keeper.state == "idle")
            assert keeper._next_poll_s == clock.now_s + DAY_S / 2
            assert keeper._terms == Terms(0, 1)
        await world.server.unlocked()


async def test_a_refused_password_is_read_once_more_and_then_left_alone(world: PopWorld, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.touch(mode=0o600)
    secret.write_text("wrong\n")
    world.settings(secret=PasswordFile(secret))
    clock = Clock()
    async with kept(world, clock) as keeper:
        await until(lambda: keeper.state == "auth_rejected")
        assert logins(world) == 1
        for _ in range(3):
            keeper.hasten()
            request = await asked(keeper)
            assert request.report is not None
            assert "check user and password" in str(request.report.error)
        assert (keeper.state, logins(world)) == ("auth_rejected", 1)
        secret.write_text(f"{PASSWORD}\n")
        await asked(keeper)
        assert (keeper.state, logins(world), len(world.paths())) == ("idle", 2, 2)


async def test_a_password_that_was_replaced_is_read_again_in_the_same_session(world: PopWorld, tmp_path: Path) -> None:
    """The one that was good is kept; refused, it is read once more, and the account goes on."""
    secret = tmp_path / "password"
    secret.touch(mode=0o600)
    secret.write_text(f"{PASSWORD}\n")
    world.settings(secret=PasswordFile(secret))
    async with kept(world, Clock()) as keeper:
        await until(lambda: keeper.state == "idle")
        world.server._policy.users[world.account.address] = "the new one"
        secret.write_text("the new one\n")
        request = await asked(keeper)
        assert request.report is not None
        assert request.report.ok
        assert (keeper.state, logins(world)) == ("idle", 3)


async def test_a_maildrop_in_use_is_tried_again(world: PopWorld) -> None:
    world.server.faults.add("AUTH", Answer("-ERR [IN-USE] another session has it"))
    clock = Clock()
    async with kept(world, clock) as keeper:
        await until(lambda: keeper.state == "backing_off")
        keeper.hasten()
        await until(lambda: keeper.state == "idle")
        assert len(world.paths()) == 2
