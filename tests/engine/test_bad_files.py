"""A message whose file cannot be read, at whatever step: it waits by itself and says why; the others go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from maild.core.outgoing import Item
from maild.engine import wave
from maild.testing.smtp import SmtpServer
from tests.engine.sending import NOW, PASSWORD, USER, A, B, C, World, states


@pytest.fixture(params=[("PIPELINING",), ()], ids=["pipelining", "one by one"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with SmtpServer(users={USER: PASSWORD}, extensions=request.param) as server:
        yield World(server, tmp_path)


@pytest.fixture
def all_are_big(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is read before the server wants it."""
    monkeypatch.setattr(wave, "READ_AHEAD_OCTETS", 0)


def spoil(world: World, item: Item) -> None:
    path = world.outbox.text_path(item.id)
    path.rename(path.with_suffix(".away"))
    path.mkdir()  # EISDIR, in place of a bad sector


def mend(world: World, item: Item) -> None:
    path = world.outbox.text_path(item.id)
    path.rmdir()
    path.with_suffix(".away").rename(path)


@pytest.mark.usefixtures("all_are_big")
@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_big_one_that_cannot_be_read_holds_up_no_other(world: World, position: int) -> None:
    items = [world.accept(A, B, subject=str(n)) for n in range(3)]
    spoil(world, items[position])
    is_refused = position == 1
    if is_refused:
        world.server.react("rcpt", "550 5.1.1 nobody", when=B, times=3)
    drained = await world.drain()
    assert drained.error is None
    assert drained.counts == (Counter(sent=2, deferred=1, failed=3) if is_refused else Counter(sent=4, deferred=2))
    assert len(world.server.taken) == 2
    left = next(item for item in world.outbox.contents().items if item.with_state("deferred"))
    assert states(left) == ["deferred", "failed" if is_refused else "deferred"]
    assert f"cannot read {world.outbox.path}/{left.id}.eml: Is a directory" in left.recipients[0].reply
    mend(world, left)
    world.now_s += 60
    assert (await world.drain()).counts == Counter(sent=1 if is_refused else 2)
    assert len(world.server.taken) == 3


@pytest.mark.usefixtures("all_are_big")
async def test_it_is_tried_again_later_and_in_the_end_given_up(world: World) -> None:
    item = world.accept(A)
    spoil(world, item)
    drained = await world.drain()
    assert (drained.error, drained.counts, drained.next_s) == (None, Counter(deferred=1), world.now_s + 60)
    while (at_s := world.item().wakes_at()) is not None:
        world.now_s = at_s
        await world.drain()
    assert world.now_s >= NOW + 5 * 86400
    assert world.item().state == "failed"
    (report, notice) = sorted(world.mailbox("INBOX"), key=len, reverse=True)
    assert b"cannot read" in report
    assert b"given up" in report
    assert b"delayed" in notice.lower()
    assert world.server.taken == []


async def test_a_copy_that_cannot_be_made_keeps_no_other_from_being_made(world: World) -> None:
    """One recipient has it, so a copy is due, and the file is needed for the other: it cannot become the copy."""
    world.accept(C)
    bad = world.accept(A, B, subject="bad")
    world.accept(C)
    world.server.react("rcpt", "451 4.3.0 later", when=B, times=9)

    def left(found: Item) -> Item:
        if found.id != bad.id:
            return replace(found, copy="begun", recipients=(replace(found.recipients[0], state="sent"),))
        return replace(
            found, copy="begun", recipients=(replace(found.recipients[0], state="sent"), found.recipients[1])
        )

    for item in world.outbox.contents().items:
        world.outbox.edit(item.id, left)
    spoil(world, bad)
    await world.drain()
    assert [item.id for item in world.outbox.contents().items] == [bad.id]
    assert len(world.mailbox("Sent")) == 2
    mend(world, bad)
    world.now_s += 60
    await world.drain()
    assert len(world.mailbox("Sent")) == 3
    assert world.item().copy == "done"
