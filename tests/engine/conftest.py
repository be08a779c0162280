"""An account with a server in memory, for every set of extensions where a test asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from maild.engine import account
from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.engine.world import CAPABILITIES, PASSWORD, USER, World


@pytest.fixture(autouse=True)
def no_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection is tried again at once."""
    monkeypatch.setattr(account, "RETRY_DELAY_S", 0.0)


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
