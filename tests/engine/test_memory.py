"""A disk slower than the line: messages wait on the server, not in memory. What passes needed is given back."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import pytest

from maild.engine import propagate
from maild.engine.limits import COLLECT_AFTER, GIVE_BACK_EVERY_S, Thrift
from maild.engine.propagate import Deliverer
from maild.local.delivery import Incoming
from maild.remote.imap.stream import HIGH_WATER_OCTETS
from tests.engine.world import START_S, World, message

QUEUE = 1 << 20
SIZE = 200_000
COUNT = 200


async def test_what_waits_for_the_disk_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk stands still until the queue is full; from then on it never holds more than it may."""
    raw = message(1, body="x" * 98 + "\r\n")
    raw += b"0123456789abcde\r\n" * (SIZE // 17)
    for n in range(COUNT):
        world.store.deliver("INBOX", raw, (), START_S + n)
    monkeypatch.setattr(propagate, "QUEUE_OCTETS", QUEUE)
    monkeypatch.setattr(propagate, "BATCH_OCTETS", QUEUE // 2)
    is_full = threading.Event()
    waiting: list[int] = []
    largest: list[int] = []
    real_stage, real_put = propagate.stage, Deliverer.put

    def stage(batch: Sequence[Incoming]) -> Any:
        assert is_full.wait(20), "the queue never filled"
        return real_stage(batch)

    async def put(deliverer: Deliverer, delivery: Any, incoming: Sequence[Incoming]) -> None:
        if deliverer._octets >= QUEUE:
            is_full.set()
        await real_put(deliverer, delivery, incoming)
        waiting.append(deliverer._octets)
        largest.append(sum(len(one.raw) for one in incoming if isinstance(one.raw, bytes | bytearray)))

    monkeypatch.setattr(propagate, "stage", stage)
    monkeypatch.setattr(Deliverer, "put", put)
    report = await world.synced()
    assert report.total("pulled") == COUNT
    assert is_full.is_set()
    assert max(largest) <= HIGH_WATER_OCTETS + (1 << 18) + SIZE, "the line is read no faster than this"
    assert max(waiting) < QUEUE + max(largest) * 4, "each session adds at most one hand-over to a full queue"
    assert max(waiting) < COUNT * SIZE // 2
    assert len(world.files()) == COUNT


def test_memory_is_given_back_a_while_after_passes_and_not_again_for_nothing() -> None:
    now_s = 0.0
    thrift = Thrift(lambda: now_s)
    assert not thrift.look(5)
    now_s = GIVE_BACK_EVERY_S
    assert [thrift.look(5), thrift.look(5), thrift.look(6)] == [True, False, False]
    now_s += GIVE_BACK_EVERY_S
    assert [thrift.look(6), thrift.look(6)] == [True, False]
    now_s += GIVE_BACK_EVERY_S

    class Cycle:
        def __init__(self) -> None:
            self.me = self

    lost = weakref.ref(Cycle())
    assert thrift.look(6 + COLLECT_AFTER)
    assert lost() is None
