"""A POP3 account with a server in memory, for every set of capabilities where a test asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from maild.engine import poll
from tests.engine.maildrop import CAPABILITIES, PopWorld, pop_world


@pytest.fixture(autouse=True)
def no_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection is tried again at once."""
    monkeypatch.setattr(poll, "RETRY_DELAY_S", 0.0)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[PopWorld]:
    async with pop_world(tmp_path) as made:
        yield made


@pytest.fixture(params=CAPABILITIES)
async def any_world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[PopWorld]:
    async with pop_world(tmp_path, CAPABILITIES[request.param]) as made:
        yield made
