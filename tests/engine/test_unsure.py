"""Notes of files that are being deleted: after a kill they are settled by the next pass, and stand no longer."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from maild.local.state import State
from tests.engine.test_untold import Killed
from tests.engine.twin import Twin

pytestmark = pytest.mark.anyio


@pytest.fixture
async def twin(quick_path: Path) -> Twin:
    """Message 1 is moved by the reader and deleted on the server, which counts; message 2 stays."""
    twin = Twin(quick_path)
    twin.configure(remote_delete="expunge", connections=1)
    twin.store.create("Archive")
    for n in range(1, 3):
        twin.deliver(n)
    for n in range(30, 42):
        twin.deliver(n, "Archive")
    await twin.synced()
    twin.move(twin.one(1), "Archive")
    twin.store.expunge("INBOX", [twin.uid(1)])
    return twin


def notes(twin: Twin) -> dict[str, Collection[Any]]:
    state = State.open(twin.state_dir / "work.sqlite")
    try:
        return {name: list(state.orphans(row.id).values()) for name, row in state.mailboxes().items()}
    finally:
        state.close()


async def killed_after_the_deletion(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup):
        patch.setattr(State, "drop_orphans", finish)
        await twin.sync()
    assert [note.only for note in notes(twin)["Archive"]] == ["unsure"]
    assert len(twin.files("Archive")) == 12


async def test_the_next_pass_forgets_it(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nothing in its mailbox is new on either side: as long as it stood, every equal message was in doubt."""
    await killed_after_the_deletion(twin, monkeypatch)
    await twin.synced()
    assert notes(twin) == {"INBOX": [], "Archive": []}
    twin.assert_equal()
    await twin.quiet()


async def test_a_pass_that_is_refused_forgets_it(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    await killed_after_the_deletion(twin, monkeypatch)
    twin.store.expunge("Archive", [message.uid for message in twin.store.mailbox("Archive")])
    report = await twin.sync()
    assert report.mailboxes["Archive"].state == "refused"
    assert notes(twin) == {"INBOX": [], "Archive": []}
    assert len(twin.files("Archive")) == 12
