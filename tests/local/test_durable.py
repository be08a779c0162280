"""Durability: every file is synced once, replacements are whole, renames replace nothing, errors say what to do."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maild.core.errors import LocalError
from maild.local import durable
from maild.local.durable import disk_error, fsync_many, make_directory, rename_new, replace_file, write_all
from tests.local.conftest import Fail


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("count", [0, 1, 2, 8, 200])
def test_every_descriptor_is_synced_exactly_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    fsync_many(range(1000, 1000 + count))
    assert sorted(synced) == list(range(1000, 1000 + count))


def test_the_others_are_synced_before_an_error_is_raised_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if descriptor in (3, 5):
            raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="broken"):
        fsync_many(range(20))
    assert sorted(synced) == list(range(20))


def test_syncs_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4, timeout=10)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: together.wait())
    fsync_many(range(4))  # one thread alone would wait at the barrier until it breaks


def test_a_short_write_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    written = bytearray()

    def write(_descriptor: int, octets: bytes | memoryview) -> int:
        written.extend(octets[:3])
        return min(3, len(octets))

    monkeypatch.setattr(os, "write", write)
    write_all(99, b"0123456789")
    assert written == b"0123456789"


def test_replacing_a_file(directory: int, tmp_path: Path) -> None:
    replace_file(directory, "list", b"one")
    replace_file(directory, "list", b"two", mtime_s=1_000_000_000)
    assert (tmp_path / "list").read_bytes() == b"two"
    assert (tmp_path / "list").stat().st_mtime == 1_000_000_000
    assert (tmp_path / "list").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["list"]


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_replacement_that_fails_leaves_the_old_file(call: str, directory: int, tmp_path: Path, fail: Fail) -> None:
    replace_file(directory, "list", b"old")
    fail(call, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        replace_file(directory, "list", b"new")
    assert (tmp_path / "list").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["list"]


def test_a_replacement_is_written_synced_renamed_and_its_directory_synced(
    directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for call in ("write", "fsync", "rename"):
        real = getattr(os, call)

        def recorded(*args: object, _real: object = real, _call: str = call, **kwargs: object) -> object:
            steps.append("fsync directory" if args == (directory,) else _call)
            return _real(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(os, call, recorded)
    replace_file(directory, "list", b"new")
    assert steps == ["write", "fsync", "rename", "fsync directory"]


@pytest.fixture(params=["renameat2", "without renameat2"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a local file system, and as on a network file system that answers EINVAL to the flag."""
    if request.param == "without renameat2":
        monkeypatch.setattr(durable, "_rename_noreplace", lambda: lambda *_: errno.EINVAL)


@pytest.mark.usefixtures("kernel")
def test_renaming_to_a_free_name(directory: int, tmp_path: Path) -> None:
    (tmp_path / "from").write_text("message")
    rename_new("from", "tö\udcff", directory, directory)
    assert [os.fsencode(path.name) for path in tmp_path.iterdir()] == [b"t\xc3\xb6\xff"]


@pytest.mark.usefixtures("kernel")
def test_renaming_replaces_nothing(directory: int, tmp_path: Path) -> None:
    (tmp_path / "from").write_text("one")
    (tmp_path / "to").write_text("other")
    with pytest.raises(FileExistsError):
        rename_new("from", "to", directory, directory)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"from": "one", "to": "other"}


@pytest.mark.usefixtures("kernel")
def test_renaming_what_is_gone(directory: int) -> None:
    with pytest.raises(FileNotFoundError):
        rename_new("from", "to", directory, directory)


def test_other_errors_of_renaming_keep_their_number(directory: int, tmp_path: Path) -> None:
    (tmp_path / "from").write_text("one")
    with pytest.raises(OSError, match="name too long") as caught:
        rename_new("from", "x" * 300, directory, directory)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_a_directory_is_made_with_its_parents_for_the_user_alone(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b" / "c")
    make_directory(tmp_path / "a" / "b" / "c")
    assert [path.stat().st_mode & 0o777 for path in sorted((tmp_path / "a").rglob("*"))] == [0o700, 0o700]


def test_a_symlink_to_nothing_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "Mail").symlink_to(tmp_path / "not mounted")
    with pytest.raises(LocalError, match=r"Mail: File exists; .*not mounted"):
        make_directory(tmp_path / "Mail")
    with pytest.raises(LocalError, match="Mail: File exists"):
        make_directory(tmp_path / "Mail" / "work")
    assert not (tmp_path / "not mounted").exists()


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "kernel log"),
        (errno.EACCES, "permission"),
        (errno.EPERM, "ownership"),
        (errno.ENAMETOOLONG, "shorter"),
        (errno.EMFILE, "LimitNOFILE"),
        (errno.ENFILE, "file-max"),
        (errno.ENOENT, "mounted"),
        (errno.ENOTDIR, "symlink"),
        (errno.ELOOP, "symlink"),
    ],
)
def test_errors_say_what_where_why_and_what_to_do(code: int, remedy: str) -> None:
    error = disk_error(OSError(code, os.strerror(code)), "write a message to", Path("/mail/INBOX"))
    assert error.text == f"cannot write a message to /mail/INBOX: {os.strerror(code)}"
    assert remedy in error.hint
    assert str(error) == f"{error.text}; {error.hint}"


def test_an_unusual_error_has_its_own_words_only() -> None:
    assert str(disk_error(OSError(errno.EBADMSG, "bad message"), "read", "/x")) == "cannot read /x: bad message"
    assert str(disk_error(OSError("odd"), "read", "/x")) == "cannot read /x: odd"


def test_a_directory_that_another_account_makes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tmp_path / "Mail" / "work"
    mkdir = Path.mkdir

    def late(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if not self.exists():
            mkdir(self, 0o700)  # the other one was quicker
        mkdir(self, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", late)
    make_directory(wanted)
    assert wanted.is_dir()


# -- many at once


def test_what_is_lost_on_its_way_to_the_disk_is_an_error_though_fsync_tells_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synced: list[int] = []

    def write_back(descriptor: int, _flags: int) -> int:
        return errno.EIO if descriptor == 1003 else 0

    monkeypatch.setattr(durable, "_sync_file_range", lambda: write_back)
    monkeypatch.setattr(os, "fsync", synced.append)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        fsync_many(range(1000, 1020))
    assert sorted(synced) == list(range(1000, 1020))


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EBADF])
def test_fsync_alone_decides_where_nothing_can_be_written_back_first(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(durable, "_sync_file_range", lambda: lambda *_: code)
    monkeypatch.setattr(os, "fsync", synced.append)
    fsync_many(range(1000, 1020))
    assert sorted(synced) == list(range(1000, 1020))


def test_files_are_written_back_as_a_whole(tmp_path: Path) -> None:
    descriptors = [os.open(tmp_path / str(n), os.O_WRONLY | os.O_CREAT) for n in range(20)]
    for descriptor in descriptors:
        os.write(descriptor, b"x" * 10_000)
    write_back = durable._sync_file_range()
    assert [write_back(descriptor, durable._WRITE_AND_WAIT) for descriptor in descriptors] == [0] * 20
    assert write_back(10_000, durable._WRITE) == errno.EBADF
    for descriptor in descriptors:
        os.close(descriptor)
