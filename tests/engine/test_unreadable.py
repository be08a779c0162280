"""A file that cannot be read stops nothing but what may be the same message."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from maild.engine import elsewhere
from maild.engine.report import AccountReport
from maild.local import maildir
from tests.engine.twin import Twin

pytestmark = pytest.mark.anyio


class Disk:
    """Lets nobody read the files whose unique names are in `bad`."""

    def __init__(self, patch: pytest.MonkeyPatch, code: int) -> None:
        self.bad: set[str] = set()
        self.code = code
        for module in (maildir, elsewhere):
            self._break(patch, module)

    def _break(self, patch: pytest.MonkeyPatch, module: Any) -> None:
        original = module.open_message

        def open_message(directory: Any, entry: Any) -> Any:
            if entry.key in self.bad:
                raise OSError(self.code, os.strerror(self.code))
            return original(directory, entry)

        patch.setattr(module, "open_message", open_message)

    def spoil(self, path: Path) -> None:
        self.bad.add(path.name.partition(":")[0])


@pytest.fixture(params=[errno.EIO, errno.EACCES], ids=["io", "permission"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch, request.param)


@pytest.fixture
async def twin(quick_path: Path) -> Twin:
    twin = Twin(quick_path)
    twin.configure(remote_delete="expunge")
    twin.store.create("Archive")
    twin.deliver(1)
    twin.deliver(2)
    await twin.synced()
    return twin


def why(report: AccountReport, mailbox: str = "INBOX") -> str:
    return str(report.mailboxes[mailbox].error)


async def test_a_new_file_is_held_back_and_the_rest_goes_on(twin: Twin, disk: Disk) -> None:
    disk.spoil(twin.write(3, raw=twin.body(3) + b"long" * 100))
    twin.write(4)
    twin.deliver(5)
    twin.one(2).unlink()
    report = await twin.synced()
    assert sorted(step.partition(" ")[0] for step in twin.remote.journal) == ["append", "expunge"]
    assert report.mailboxes["INBOX"].held_back == 1
    assert sorted(shown.raw for shown in twin.there("INBOX")) == [twin.body(1), twin.body(4), twin.body(5)]
    report = await twin.sync(only=["INBOX"])
    assert report.mailboxes["INBOX"].held_back == 1
    disk.bad.clear()
    report = await twin.sync(only=["INBOX"])
    assert report.mailboxes["INBOX"].held_back == 0
    twin.assert_equal()
    await twin.quiet()


async def test_it_is_tried_again_at_every_pass(twin: Twin, disk: Disk) -> None:
    """Whoever may read it now has changed nothing that would show."""
    disk.spoil(twin.write(3))
    for _ in range(3):
        report = await twin.synced()
        assert report.mailboxes["INBOX"].held_back == 1
    disk.bad.clear()
    await twin.synced()
    twin.assert_equal()


@pytest.mark.parametrize("only", [[], ["INBOX"]], ids=["all", "one"])
async def test_it_may_be_what_was_moved_there(twin: Twin, disk: Disk, only: list[str]) -> None:
    """Nothing that it may be is deleted on the server; what it cannot be is."""
    twin.deliver(3, raw=twin.body(3) + b"other\n" * 100)
    await twin.synced()
    disk.spoil(twin.move(twin.one(1), "Archive"))
    twin.one(3).unlink()
    report = await twin.sync(only=only)
    assert twin.remote.journal == ["expunge INBOX 3"]
    assert why(report).startswith(
        "1 messages that are gone here stay on the server, for they may have moved: cannot read"
    )
    disk.bad.clear()
    await twin.synced()
    assert twin.remote.journal == ["move INBOX 1 Archive"]
    await twin.synced()
    twin.assert_equal()
    await twin.quiet()


async def test_of_a_file_that_does_not_even_tell_its_size_anything_may_be(
    twin: Twin, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.spoil(twin.write(9, "Archive", raw=b"Subject: none of them\n\n" + b"x\n" * 1000))
    monkeypatch.setattr(maildir, "size_on_disk", lambda *_: None)
    twin.one(1).unlink()
    report = await twin.sync()
    assert twin.remote.journal == []
    assert "stay on the server" in why(report)


async def test_its_message_is_not_fetched_beside_it(twin: Twin, disk: Disk) -> None:
    """A server that tells no UIDs has it; for a pass nobody can tell that it is this file's."""
    twin.settings["tells_uids"] = False
    path = twin.write(3, "Archive")
    await twin.synced()
    disk.spoil(path)
    for _ in range(2):
        await twin.synced()
        assert len(twin.files("Archive")) == 1
    disk.bad.clear()
    for _ in range(2):
        await twin.synced()
    assert len(twin.files("Archive")) == len(twin.there("Archive")) == 1
    await twin.quiet()


async def test_a_first_pass_needs_them_all(quick_path: Path, disk: Disk) -> None:
    """What is new on the server may be just this file: that mailbox waits, the others do not."""
    twin = Twin(quick_path)
    twin.store.create("Archive")
    twin.deliver(1)
    twin.deliver(2, "Archive")
    disk.code = errno.EACCES
    disk.spoil(twin.write(1))
    report = await twin.sync()
    assert report.mailboxes["INBOX"].state == "error"
    assert why(report).startswith("cannot read ")
    assert len(twin.here("Archive")) == 1
    disk.bad.clear()
    await twin.synced()
    twin.assert_equal()
    assert len(twin.here("INBOX")) == 1


async def test_one_moved_on_beside_another_that_nobody_can_read(twin: Twin, disk: Disk) -> None:
    """The server took it and told no Uid; the file that equals it is the one that went on, whatever the other is."""
    twin.settings["tells_uids"] = False
    twin.move(twin.one(1), "Archive")
    await twin.synced()
    twin.move(twin.one(1, "Archive"), "INBOX")
    disk.spoil(twin.write(3))
    for _ in range(2):
        await twin.sync()
        assert not [change for change in twin.remote.journal if change.startswith("append")]
    disk.bad.clear()
    await twin.sync(only=["INBOX"])
    for _ in range(2):
        await twin.synced()
    twin.assert_equal()
    assert sorted(shown.raw for shown in twin.there("INBOX")) == [twin.body(1), twin.body(2), twin.body(3)]
    assert twin.there("Archive") == []
    await twin.quiet()
