"""One Dovecot for all live tests; every test has a user of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maild.engine import crew
from tests.live.client import Client
from tests.servers.dovecot import Dovecot, DovecotMissing

MakeClient = Callable[..., Client]


def started(**options: object) -> Dovecot:
    try:
        return Dovecot(**options)  # type: ignore[arg-type]
    except DovecotMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def dovecot() -> Iterator[Dovecot]:
    with started() as server:
        yield server


@pytest.fixture
def client(dovecot: Dovecot, tmp_path: Path, request: pytest.FixtureRequest) -> Client:
    """An account of the shared server, named after the test."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return Client(tmp_path, dovecot, name[:60].strip("-").lower())


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is cut is tried again at once."""
    monkeypatch.setattr(crew, "RETRY_DELAY_S", 0.0)
