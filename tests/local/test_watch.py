"""What happens below a Maildir is heard of: which mailbox, in one hint a burst; what cannot be told is everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from maild.core.errors import LocalError
from maild.local import watch
from maild.local.watch import Hint, TreeWatch, _Place, watching

SOON_S = 5.0


def mailbox(root: Path, name: str) -> Path:
    for subdir in ("cur", "new", "tmp"):
        (root / name / subdir).mkdir(parents=True, exist_ok=True)
    return root / name


@asynccontextmanager
async def watched(root: Path, layout: str = "nested") -> AsyncIterator[TreeWatch]:
    async with watching() as watcher, watcher.tree(root, layout) as tree:
        yield tree


async def soon(tree: TreeWatch) -> Hint:
    with anyio.fail_after(SOON_S):
        return await tree.hint()


async def test_a_reader_in_a_mailbox(tmp_path: Path) -> None:
    inbox, deep = mailbox(tmp_path, "INBOX"), mailbox(tmp_path, "Lists/deep")
    (inbox / "new" / "1").touch()
    async with watched(tmp_path) as tree:
        (inbox / "new" / "1").rename(inbox / "cur" / "1:2,S")
        assert await soon(tree) == {"INBOX"}
        (deep / "tmp" / "2").touch()
        (deep / "tmp" / "2").rename(deep / "new" / "2")
        assert await soon(tree) == {"Lists/deep"}
        (inbox / "cur" / "1:2,S").unlink()
        assert await soon(tree) == {"INBOX"}


async def test_a_burst_is_one_hint(tmp_path: Path) -> None:
    inbox, other = mailbox(tmp_path, "INBOX"), mailbox(tmp_path, "Other")
    async with watched(tmp_path) as tree:
        for n in range(500):
            (inbox / "new" / str(n)).touch()
        (other / "cur" / "1").touch()
        assert await soon(tree) == {"INBOX", "Other"}
        with anyio.move_on_after(2 * watch.SETTLE_S) as nothing_more:
            await tree.hint()
        assert nothing_more.cancelled_caught


async def test_a_new_mailbox_and_what_is_in_it(tmp_path: Path) -> None:
    mailbox(tmp_path, "INBOX")
    async with watched(tmp_path) as tree:
        new = mailbox(tmp_path, "New/er")
        assert await soon(tree) is None
        (new / "new" / "1").touch()
        with anyio.fail_after(SOON_S):
            while (hint := await tree.hint()) is None:
                continue
        assert hint == {"New/er"}


async def test_maildir_plus_plus(tmp_path: Path) -> None:
    mailbox(tmp_path, ".")
    lists = mailbox(tmp_path, ".Lists.a")
    async with watched(tmp_path, "maildir++") as tree:
        (tmp_path / "new" / "1").touch()
        assert await soon(tree) == {"."}
        (lists / "cur" / "1").touch()
        assert await soon(tree) == {".Lists.a"}


async def test_what_maild_writes_beside_the_mail_is_no_change(tmp_path: Path) -> None:
    inbox = mailbox(tmp_path, "INBOX")
    async with watched(tmp_path) as tree:
        (tmp_path / ".maild").write_text("{}")
        (inbox / "dovecot-keywords").write_text("0 x\n")
        (inbox / "tmp" / "1").touch()
        with anyio.move_on_after(2 * watch.SETTLE_S) as nothing:
            await tree.hint()
        assert nothing.cancelled_caught


async def test_a_renamed_mailbox_and_a_root_that_goes(tmp_path: Path) -> None:
    root = tmp_path / "Mail"
    mailbox(root, "A")
    async with watching() as watcher:
        async with watcher.tree(root, "nested") as tree:
            (root / "A").rename(root / "B")
            assert await soon(tree) is None
            root.rename(tmp_path / "elsewhere")
            for _ in range(2):
                with pytest.raises(LocalError, match="moved, removed or unmounted"):
                    await soon(tree)
        with pytest.raises(LocalError):
            async with watcher.tree(root, "nested"):
                raise AssertionError("it is not there")
        (tmp_path / "elsewhere").rename(root)
        async with watcher.tree(root, "nested") as again:
            (root / "B" / "new" / "1").touch()
            assert await soon(again) == {"B"}


@pytest.mark.parametrize("is_linked", [False, True])
async def test_a_root_that_goes_with_a_directory_above_it(tmp_path: Path, is_linked: bool) -> None:
    root = tmp_path / "disk" / "home" / "Mail"
    mailbox(root, "A")
    named = root
    if is_linked:
        named = tmp_path / "Mail"
        named.symlink_to(root)
    async with watching() as watcher:
        async with watcher.tree(named, "nested") as tree:
            (root.parent / "something").mkdir()
            (root / "A" / "new" / "1").touch()
            assert await soon(tree) == {"A"}  # what else goes on above is no news
            (tmp_path / "disk").rename(tmp_path / "elsewhere")
            with pytest.raises(LocalError, match="moved, removed or unmounted"):
                await soon(tree)
        assert not watcher._places


async def test_a_queue_that_overflows_leaves_no_new_mailbox_unwatched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox(tmp_path, "INBOX")
    events = watch._events
    async with watched(tmp_path) as tree:
        monkeypatch.setattr(watch, "_events", lambda _: iter([(-1, 0x4000, "")]))  # IN_Q_OVERFLOW in place of all else
        new = mailbox(tmp_path, "New")
        assert await soon(tree) is None
        monkeypatch.setattr(watch, "_events", events)
        (new / "new" / "1").touch()
        with anyio.fail_after(SOON_S):
            while await tree.hint() != {"New"}:
                continue


async def test_too_many_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox(tmp_path, "INBOX")
    monkeypatch.setattr(watch, "_add_watch", lambda *_: (-1, 28))  # ENOSPC
    async with watched(tmp_path) as tree:
        assert not tree.is_complete


async def test_two_accounts_share_the_instance(tmp_path: Path) -> None:
    one, two = mailbox(tmp_path / "1", "INBOX"), mailbox(tmp_path / "2", "INBOX")
    async with watching() as watcher, watcher.tree(tmp_path / "1", "nested") as first:
        async with watcher.tree(tmp_path / "2", "nested") as second:
            (two / "new" / "1").touch()
            assert await soon(second) == {"INBOX"}
        (one / "new" / "1").touch()
        assert await soon(first) == {"INBOX"}


async def test_one_directory(tmp_path: Path) -> None:
    (tmp_path / "outbox").mkdir()
    async with watching() as watcher, watcher.directory(tmp_path / "outbox") as tree:
        (tmp_path / "outbox" / ".x").write_bytes(b"")
        (tmp_path / "outbox" / ".x").rename(tmp_path / "outbox" / "x.toml")
        assert await soon(tree) == {"."}
        (tmp_path / "outbox" / "x.toml").unlink()
        assert await soon(tree) == {"."}
    async with watching() as watcher:
        with pytest.raises(LocalError, match="watch"):
            watcher._add(_Place(TreeWatch(tmp_path / ("x" * 300), "nested"), "", "."))
