"""Killed or refused at every step in turn: the next pass makes it whole, nothing is lost, doubled or half-written.

A step is a system call that changes the disk, or a commit of the state. Killed means that the step and every one after
it do not happen, clean-up included; refused means that this one step fails with an error of the disk.
"""

from __future__ import annotations

import copy
import errno
import itertools
import os
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from maild.core.errors import MaildError
from maild.local import maildir
from maild.local.state import State
from maild.testing.imap import ImapServer
from maild.testing.store import Store
from tests.engine.world import PASSWORD, START_S, USER, World, message, touched_times

CALLS = ("write", "fsync", "rename", "unlink", "mkdir", "utime")
MOST_STEPS = 400


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class Steps:
    """Counts steps while it is armed, and lets the one with the number `at` fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = self.count = 0
        self.is_kill = self.is_dead = self.is_armed = False
        self.seen: list[str] = []
        self._lock = threading.Lock()
        for name in CALLS:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        monkeypatch.setattr(maildir, "rename_new", self._counted("rename_new", maildir.rename_new))
        monkeypatch.setattr(State, "transaction", self._counted_transaction(State.transaction))

    def arm(self, at: int, *, is_kill: bool) -> None:
        self.at, self.count, self.is_kill, self.is_dead, self.seen = at, 0, is_kill, False, []
        self.is_armed = True

    def disarm(self) -> bool:
        """Let everything pass again; whether the step was reached."""
        self.is_armed = False
        return self.count >= self.at

    def take(self, name: str) -> None:
        with self._lock:
            if not self.is_armed:
                return
            if self.is_dead:
                raise Killed
            self.count += 1
            self.seen.append(name)
            if self.count != self.at:
                return
            self.is_dead = self.is_kill
        if self.is_kill:
            raise Killed
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.take(name)
            return real(*args, **kwargs)

        return counted

    def _counted_transaction(self, real: Callable[[State], AbstractContextManager[Any]]) -> Callable[..., Any]:
        @contextmanager
        def counted(state: State) -> Iterator[Any]:
            if self.is_kill:
                self.take("begin")
            with real(state) as database:
                yield database
            if self.is_kill:
                self.take("committed")

        return counted


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


async def killed(world: World) -> None:
    """A pass that may end in any way."""
    world.settings(connections=1)  # cancelled just as it has connected, asyncio 3.11 forgets the socket of a second one
    try:
        await world.sync()
    except BaseException as exc:
        if not _is_kill(exc):
            raise


def _is_kill(exc: BaseException) -> bool:
    """The kill alone, or with those of our errors that it led to."""
    if isinstance(exc, BaseExceptionGroup):
        kills, others = exc.split(Killed)
        return kills is not None and (others is None or others.split(MaildError)[1] is None)
    return isinstance(exc, Killed)


def assert_nothing_half_written(world: World) -> None:
    """Whatever lies in `new` and `cur` is a whole message."""
    whole = {m.raw.replace(b"\r\n", b"\n") for mailbox in world.store.mailboxes for m in mailbox}
    whole |= {message(n).replace(b"\r\n", b"\n") for n in range(100)}  # those that are expunged
    for path in world.root.rglob("*") if world.root.exists() else ():
        if path.parent.name in {"new", "cur"}:
            assert path.read_bytes() in whole, path


async def at_every_step(
    steps: Steps,
    begin: Callable[[int], AbstractAsyncContextManager[World]],
    *,
    is_kill: bool,
    then: Callable[[World], Awaitable[None]],
) -> None:
    for at in range(1, MOST_STEPS):
        async with begin(at) as world:
            steps.arm(at, is_kill=is_kill)
            try:
                await killed(world)
            finally:
                was_reached = steps.disarm()
            try:
                assert_nothing_half_written(world)
                await then(world)
            except AssertionError as exc:
                exc.add_note(f"after step {at} of {len(steps.seen)}: {steps.seen[-6:]}")
                raise
        if not was_reached:
            assert at > 20, "there are that many steps at least"
            return
    raise AssertionError(f"more than {MOST_STEPS} steps: {steps.seen}")


def fill(store: Store) -> None:
    store.create("Entwürfe")
    for n in range(1, 4):
        store.deliver("INBOX", message(n), ["\\Seen", "Wort"] if n % 2 else [], START_S + n)
    store.deliver("Entwürfe", message(4), ["\\Draft"], START_S)
    store.deliver("Entwürfe", message(5, message_id=""), (), START_S)


@pytest.mark.parametrize("is_kill", [True, False], ids=["killed", "refused"])
async def test_a_first_pass(tmp_path: Path, steps: Steps, is_kill: bool) -> None:
    async def then(world: World) -> None:
        await world.synced()
        world.assert_equal(tmp=not is_kill)
        await world.settled()

    async with ImapServer(Store(), {USER: PASSWORD}) as server:
        fill(server.store)

        @asynccontextmanager
        async def begin(at: int) -> AsyncIterator[World]:
            yield World(tmp_path / str(at), server)

        await at_every_step(steps, begin, is_kill=is_kill, then=then)


@pytest.mark.parametrize(
    ("is_kill", "message_id"),
    [
        pytest.param(True, None, id="killed"),
        pytest.param(False, None, id="refused"),
        pytest.param(True, "", id="killed-no_message_id", marks=pytest.mark.long),
    ],
)
async def test_a_pass_with_changes(tmp_path: Path, steps: Steps, is_kill: bool, message_id: str | None) -> None:
    """Both sides change: messages, flags, deletions, a move on either side, a mailbox with a new UIDVALIDITY."""
    async with ImapServer(Store(), {USER: PASSWORD}) as server:
        fill(server.store)
        server.store.create("Archiv")
        for n, mailbox in ((9, "INBOX"), (10, "INBOX"), (11, "Archiv")):
            server.store.deliver(mailbox, message(n, message_id=message_id), (), START_S + n)
        first = World(tmp_path / "first", server)
        await first.synced()
        server.store.set_flags("INBOX", 1, add=["\\Flagged", "Neu"], remove=["\\Seen"])
        server.store.expunge("INBOX", 2)
        for n in (6, 7):
            server.store.deliver("INBOX", message(n), ["\\Seen"], START_S + n)
        server.store.bump_uidvalidity("Entwürfe")
        server.store.deliver("Entwürfe", message(8), (), START_S)
        server.store.move("INBOX", 4, "Archiv")
        first.relabel(first.one(3), "FS")
        first.one(10).path.unlink()
        moved = first.one(11, "Archiv")
        moved.path.rename(first.directory("INBOX") / "cur" / f"{moved.key}:2,S")
        touched_times(first.write_foreign(12, message(12).replace(b"\r\n", b"\n"), "R"), START_S)
        changed = server.store

    @asynccontextmanager
    async def begin(at: int) -> AsyncIterator[World]:
        """Each world has a server of its own, for a pass changes that too."""
        shutil.copytree(tmp_path / "first", tmp_path / str(at), copy_function=shutil.copy2)
        async with ImapServer(copy.deepcopy(changed), {USER: PASSWORD}) as server:
            yield World(tmp_path / str(at), server)

    async def then(world: World) -> None:
        for _ in range(2):
            await world.synced()
        assert world.one(3).flags == {"\\Seen", "\\Flagged"}, "changed here"
        world.assert_equal(tmp=not is_kill)
        assert {mailbox: _numbers(world, mailbox) for mailbox in world.store.names} == RESULT
        await world.settled()

    await at_every_step(steps, begin, is_kill=is_kill, then=then)


RESULT = {"INBOX": [1, 3, 6, 7, 11, 12], "Entwürfe": [4, 5, 8], "Archiv": [9]}


def _numbers(world: World, mailbox: str) -> list[int]:
    return sorted(int(seen.raw.partition(b"Subject: Nr. ")[2].split(b"\n")[0]) for seen in world.on_server(mailbox))


async def test_a_disk_that_refuses_says_so(tmp_path: Path, steps: Steps) -> None:
    """Each refused step is told as an error of this disk with its path, or could be done without."""
    told: set[str] = set()
    async with ImapServer(Store(), {USER: PASSWORD}) as server:
        fill(server.store)
        for at in itertools.count(1):
            world = World(tmp_path / str(at), server)
            world.settings(connections=1)
            steps.arm(at, is_kill=False)
            report = await world.sync()
            if not steps.disarm():
                break
            if report.ok:
                world.assert_equal()
            else:
                text = report.first_error()
                assert text is not None
                assert "Input/output error" in text, (steps.seen[at - 1], text)
                assert str(world.root.parent.parent) in text, (steps.seen[at - 1], text)
                told.add(steps.seen[at - 1])
    assert told >= {"write", "fsync", "rename", "mkdir"}
