"""Two files with one unique name, as a backup that is copied over a Maildir leaves them: they are one message."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from maild.local.state import State
from tests.engine.twin import Twin

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["changes", "full"])
async def twin(quick_path: Path, request: pytest.FixtureRequest) -> Twin:
    """Message 1 is in INBOX, here twice under its name; message 2 as well, once."""
    twin = Twin(quick_path, settings={"way": request.param})
    twin.configure(remote_delete="expunge")
    twin.store.create("Archive")
    twin.deliver(1)
    twin.deliver(2)
    await twin.synced()
    first = twin.one(1)
    shutil.copy2(first, first.parent.parent / "cur" / f"{first.name}:2,S")
    await twin.synced()
    assert twin.remote.journal == []
    assert len(twin.find(1)) == 2
    await twin.quiet()
    return twin


async def settled(twin: Twin, **wanted: int) -> None:
    """So many messages in each mailbox, on both sides."""
    for _ in range(2):
        await twin.synced()
        assert not [change for change in twin.remote.journal if change.startswith("append")]
    twin.assert_equal()
    assert {name: len(twin.there(name)) for name in twin.store.names} == {"INBOX": 0, "Archive": 0} | wanted
    await twin.quiet()


async def test_both_go_with_its_deletion_on_the_server(twin: Twin) -> None:
    twin.store.expunge("INBOX", [twin.uid(1)])
    await twin.synced()
    assert twin.find(1) == []
    await settled(twin, INBOX=1)


async def test_both_go_with_its_move_on_the_server(twin: Twin) -> None:
    twin.store.move("INBOX", [twin.uid(1)], "Archive")
    await twin.synced()
    assert [len(twin.find(1)), len(twin.find(1, "Archive"))] == [0, 1]
    await settled(twin, INBOX=1, Archive=1)


async def test_three_go_with_its_deletion_on_the_server(twin: Twin) -> None:
    """Two backups, or one and a flag that was given in between."""
    first = twin.find(1)[0]
    shutil.copy2(first, first.parent.parent / "cur" / f"{first.name.partition(':2,')[0]}:2,RS")
    await twin.synced()
    assert len(twin.find(1)) == 3
    twin.store.expunge("INBOX", [twin.uid(1)])
    await twin.synced()
    assert twin.find(1) == []
    await settled(twin, INBOX=1)


async def test_one_deleted_here_is_still_there(twin: Twin) -> None:
    twin.find(1)[0].unlink()
    await settled(twin, INBOX=2)


async def test_other_contents_are_another_message(twin: Twin) -> None:
    """It is not deleted because of what happens to the first one."""
    second = next(path for path in twin.find(1) if path.name.endswith(":2,S"))
    second.write_bytes(twin.body(9))
    twin.store.expunge("INBOX", [twin.uid(1)])
    for _ in range(2):
        await twin.synced()
    twin.assert_equal()
    assert sorted(shown.raw for shown in twin.there("INBOX")) == [twin.body(2), twin.body(9)]


@pytest.mark.parametrize("move", [False, True])
async def test_other_contents_get_a_name_of_their_own(quick_path: Path, move: bool) -> None:
    """A flag that comes from the server would give the first one the name of the other, which would go in its place."""
    twin = Twin(quick_path)
    twin.configure(remote_delete="expunge")
    twin.store.create("Archive")
    twin.deliver(1, flags=["\\Seen"])
    await twin.synced()
    first = twin.one(1)
    (first.parent / f"{first.name.partition(':2,')[0]}:2,FS").write_bytes(twin.body(9))
    twin.store.set_flags("INBOX", [twin.uid(1)], add=["\\Flagged"])
    await twin.synced()
    if move:
        twin.store.move("INBOX", [twin.uid(1)], "Archive")
    else:
        twin.store.expunge("INBOX", [twin.uid(1)])
    await twin.synced()
    await twin.synced()
    twin.assert_equal()
    assert [shown.raw for shown in twin.there("INBOX")] == [twin.body(9)]
    assert [shown.raw for shown in twin.there("Archive")] == ([twin.body(1)] if move else [])
    await twin.quiet()


async def test_a_new_message_does_not_hide_behind_another(quick_path: Path) -> None:
    """Two files that no pair knows have one name: the one that its reader moved here is not taken for deleted."""
    twin = Twin(quick_path)
    twin.configure(remote_delete="expunge")
    twin.store.create("Archive")
    twin.deliver(1)
    await twin.synced()
    moved = twin.move(twin.one(1), "Archive")
    (twin.where("Archive") / "cur" / f"{moved.name}:2,S").write_bytes(twin.body(9))
    await twin.synced()
    twin.assert_equal()
    assert [shown.raw for shown in twin.there("Archive")] == [twin.body(1), twin.body(9)]
    await twin.quiet()


async def test_a_dry_run_gives_no_names(twin: Twin) -> None:
    next(path for path in twin.find(1) if path.name.endswith(":2,S")).write_bytes(twin.body(9))
    before = twin.snapshot()
    await twin.sync(dry_run=True)
    assert twin.snapshot() == before


async def test_what_came_under_the_name_of_one_that_was_deleted(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass ended between the deletion of both and its end: what has that name now is not what was to go."""

    class Killed(BaseException):
        """The process has ended here."""

    def killed(*_: object) -> None:
        raise Killed

    name = twin.find(1)[0].name
    twin.store.expunge("INBOX", [twin.uid(1)])
    with monkeypatch.context() as patched, pytest.raises(BaseExceptionGroup):
        patched.setattr(State, "finish", killed)
        patched.setattr(State, "drop_orphans", killed)
        await twin.sync()
    assert twin.find(1) == []
    (twin.where("INBOX") / "new" / name.partition(":2,")[0]).write_bytes(twin.body(9))
    for _ in range(2):
        await twin.synced()
    twin.assert_equal()
    assert [shown.raw for shown in twin.there("INBOX")] == [twin.body(2), twin.body(9)]
    await twin.quiet()
