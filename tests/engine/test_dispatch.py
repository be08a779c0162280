"""Senders run while the outbox is theirs, and nobody lets go of it before the last has noted what it knows."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from maild.config.values import Hooks
from maild.core.errors import StateBusy, Unavailable
from maild.core.outgoing import Item
from maild.engine.dispatch import Dispatch
from maild.engine.hooks import HookBoard
from maild.engine.sender import Sender
from maild.local.outbox import Outbox
from maild.testing.smtp import SmtpServer
from tests.daemon.waiting import until
from tests.engine.sending import PASSWORD, USER, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with SmtpServer(users={USER: PASSWORD}) as server:
        yield World(server, tmp_path, now_s=time.time())


def sender_of(world: World) -> Sender:
    sender = Sender(world.account(), world.outbox, world.root / "state", HookBoard(Hooks()))
    sender.wake()
    return sender


class Verdicts:
    """The disk takes its time over what became of a message, until `go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.have_come, self._may_go_on = threading.Event(), threading.Event()
        real = Outbox.note

        def note(outbox: Outbox, items: Sequence[Item]) -> None:
            if any(item.state == "sent" for item in items):
                self.have_come.set()
                assert self._may_go_on.wait(20)
            real(outbox, items)

        monkeypatch.setattr(Outbox, "note", note)

    async def go_on(self) -> None:
        for _ in range(100):  # whoever can end, ends
            await anyio.lowlevel.checkpoint()
        self._may_go_on.set()


async def test_a_verdict_that_is_being_noted_when_all_is_cut_off_is_noted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.accept()
    verdicts = Verdicts(monkeypatch)
    dispatch, sender = Dispatch(world.outbox), sender_of(world)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dispatch.run, anyio.sleep_forever)
        tasks.start_soon(dispatch.keep, sender)
        await until(verdicts.have_come.is_set)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await verdicts.go_on()
    with world.outbox.draining():
        assert [item.state for item in world.outbox.contents().items] in (["sent"], [])


async def test_an_account_that_is_cut_off_alone_ends_when_its_verdict_is_noted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.accept()
    verdicts = Verdicts(monkeypatch)
    dispatch, account, seen = Dispatch(world.outbox), anyio.CancelScope(), list[str]()

    async def keep() -> None:
        with account:
            await dispatch.keep(sender_of(world))
        seen.extend(item.phase for item in world.outbox.contents().items)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dispatch.run, anyio.sleep_forever)
        tasks.start_soon(keep)
        await until(verdicts.have_come.is_set)
        account.cancel()
        await verdicts.go_on()
    assert seen in ([""], [])


async def test_nobody_sends_while_the_outbox_is_anothers(world: World) -> None:
    """A daemon that starts while `maild outbox flush` runs: it waits for its turn, and says so."""
    world.accept()
    dispatch, sender = Dispatch(world.outbox), sender_of(world)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dispatch.keep, sender)
        with Outbox(world.outbox.path.parent).draining():
            with pytest.raises(StateBusy):
                await dispatch.run(anyio.sleep_forever)
            with pytest.raises(StateBusy):
                await dispatch.until_ours()
            assert world.server.connections == 0
        tasks.start_soon(dispatch.run, anyio.sleep_forever)
        await until(lambda: world.server.journal)
        await dispatch.until_ours()
        tasks.cancel_scope.cancel()


async def test_one_is_stopped_before_the_outbox_was_ours(world: World) -> None:
    dispatch, sender = Dispatch(world.outbox), sender_of(world)
    sender.stop()
    await dispatch.keep(sender)
    assert world.server.connections == 0


@pytest.mark.parametrize("is_stopped_before", [True, False])
async def test_whoever_waits_for_one_that_is_stopped_is_told(world: World, is_stopped_before: bool) -> None:
    """As when the config is read again while `maild outbox flush` asks."""
    world.accept()
    sender = sender_of(world)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            if not is_stopped_before:
                tasks.start_soon(_stop_when_idle, sender)
            else:
                sender.stop()
            drained = await sender.flush()
    assert isinstance(drained.error, Unavailable)
    assert world.server.connections == 0


async def _stop_when_idle(sender: Sender) -> None:
    await anyio.wait_all_tasks_blocked()
    sender.stop()


async def test_after_a_fault_the_senders_go_on(world: World) -> None:
    dispatch, sender, faults = Dispatch(world.outbox), sender_of(world), iter([True])

    async def watch() -> None:
        if next(faults, False):
            raise ZeroDivisionError
        world.accept()
        sender.wake()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dispatch.keep, sender)
        with pytest.raises(ExceptionGroup):
            await dispatch.run(watch)
        tasks.start_soon(dispatch.run, watch)
        await until(lambda: world.server.journal)
        sender.stop()
        tasks.cancel_scope.cancel()


async def test_there_is_no_drain_without_the_outbox(world: World) -> None:
    world.accept()
    with pytest.raises(RuntimeError, match="draining"):
        await world.submitter().drain()
    assert world.server.connections == 0
