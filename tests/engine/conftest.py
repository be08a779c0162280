"""An account with a server in memory, for every set of extensions where a test asks for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import anyio.lowlevel
import anyio.to_thread
import pytest

from maild.core.model import Cursor, Facts, Scan, ScanTable, Uid
from maild.engine import crew
from maild.testing.imap import ALL, ImapServer
from maild.testing.memory import MemoryBox
from maild.testing.store import Store
from tests.engine.world import CAPABILITIES, PASSWORD, USER, World

T = TypeVar("T")


@pytest.fixture(autouse=True)
def no_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection is tried again at once."""
    monkeypatch.setattr(crew, "RETRY_DELAY_S", 0.0)


@pytest.fixture(scope="module")
def no_fsync() -> Iterator[None]:
    """Nobody waits for a disk: what is tested is no power cut."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, lambda _: None)
        yield


async def _run_inline(function: Callable[..., T], *args: object, **_: object) -> T:
    """As `anyio.to_thread.run_sync`, without the thread; others get their turn before it."""
    await anyio.lowlevel.checkpoint()
    return function(*args)


@pytest.fixture
def no_threads() -> Iterator[None]:
    """What blocks runs in the event loop's thread: the same steps in the same order, a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio.to_thread, "run_sync", _run_inline)
        yield


@pytest.fixture
def quick_path(no_fsync: None) -> Iterator[Path]:
    """As `tmp_path`, without waiting for a disk and gone at once: for tests by the thousand."""
    with tempfile.TemporaryDirectory(prefix="maild-test-") as directory:
        yield Path(directory)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """An account on a server that can do everything."""
    async with ImapServer(Store(), {USER: PASSWORD}, capabilities=ALL) as server:
        yield World(tmp_path, server)


@pytest.fixture(params=CAPABILITIES)
async def any_world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """The same on four servers, from QRESYNC down to nothing: each must give the same result."""
    async with ImapServer(Store(), {USER: PASSWORD}, capabilities=CAPABILITIES[request.param]) as server:
        yield World(tmp_path, server)


@pytest.fixture
def wrong_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose RFC822.SIZE is wrong by three octets, as Exchange's may be."""
    scan, facts = MemoryBox.scan, MemoryBox.facts

    async def scanned(box: MemoryBox, cursor: Cursor | None) -> Scan:
        found, table = await scan(box, cursor), ScanTable()
        for uid, flags, size in found.items:
            table.add(uid, flags, size + 3)
        return replace(found, items=table)

    async def told(box: MemoryBox, uids: Sequence[Uid]) -> dict[Uid, Facts]:
        return {uid: replace(fact, size_octets=fact.size_octets + 3) for uid, fact in (await facts(box, uids)).items()}

    monkeypatch.setattr(MemoryBox, "scan", scanned)
    monkeypatch.setattr(MemoryBox, "facts", told)
