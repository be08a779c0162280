"""Senders run while the outbox is theirs, and nobody lets go of it before the last has noted what it knows."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from maild.config.values import Hooks
from maild.core import outgoing
from maild.core.errors import StateBusy, Unavailable
from maild.core.outgoing import Item
from maild.engine import sender as sender_module
from maild.engine.dispatch import Dispatch
from maild.engine.hooks import HookBoard
from maild.engine.sender import Sender, watch_outbox
from maild.engine.submit import Drained, Submitter
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


async def test_a_fault_in_a_drain_leaves_no_message_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the sender again wakes nobody."""
    world.accept()
    drain, faults = Submitter.drain, [RuntimeError("a fault")]

    async def faulty(submitter: Submitter, *, everything: bool = False) -> Drained:
        if faults:
            raise faults.pop()
        return await drain(submitter, everything=everything)

    monkeypatch.setattr(Submitter, "drain", faulty)
    dispatch = Dispatch(world.outbox)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dispatch.run, anyio.sleep_forever)
        tasks.start_soon(dispatch.keep, sender_of(world))
        await until(lambda: world.server.journal)
        tasks.cancel_scope.cancel()


async def test_a_clock_that_is_set_back_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drain, before that, has told that the next try is a year from now."""
    monkeypatch.setattr(sender_module, "CHECK_CLOCK_EVERY_S", 0.05)
    tries: list[float] = []

    async def drain(submitter: Submitter, **_: bool) -> Drained:
        tries.append(time.time())
        return Drained("work", next_s=time.time() + 365 * 86400)

    monkeypatch.setattr(Submitter, "drain", drain)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sender_of(world).run)
        await until(lambda: len(tries) > 2)
        tasks.cancel_scope.cancel()


async def test_an_item_that_cannot_be_read_is_told_once(world: World) -> None:
    bad, good = world.accept(), world.accept()
    path = world.outbox.path / f"{bad.id}.toml"
    path.unlink()
    path.mkdir()
    woken: list[set[str]] = []
    with capture_logs() as logs, anyio.move_on_after(20) as scope:

        async def changed() -> None:
            if len(woken) > 1:
                scope.cancel()
            world.outbox.edit(good.id, outgoing.held if len(woken) == 1 else partial(outgoing.released, now_s=1))
            await anyio.lowlevel.checkpoint()

        await watch_outbox(world.outbox, lambda accounts: woken.append({*accounts}), changed)
    assert woken == [{"work"}, {"work"}]
    assert [(one["event"], one["item"]) for one in logs] == [("outbox.stopped", bad.id)]
