"""A mailbox's directory: made whole and durable, never reached through a symlink, absent when it is absent."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path, PurePosixPath

import pytest

from maild.core.errors import LocalError, Scope
from maild.core.names import MailboxUnusable
from maild.local.directory import unique_key
from maild.local.maildir import Maildir
from tests.local.conftest import Fail

PARTS = ("cur", "new", "tmp")


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("relative", [".", "INBOX", "Archiv/2026/März", ".Archiv.2026"])
def test_created_for_the_user_alone_and_opened_again(root: Path, relative: str) -> None:
    with Maildir.create(root, PurePosixPath(relative)) as maildir:
        assert maildir.path == root / relative
        assert maildir.label == str(root / relative)
    for part in PARTS:
        assert (root / relative / part).stat().st_mode & 0o777 == 0o700
    assert root.stat().st_mode & 0o777 == 0o700
    again = Maildir.open(root, PurePosixPath(relative))
    assert again is not None
    again.close()


def test_maildir_plus_plus_mailboxes_are_marked_and_the_inbox_is_not(root: Path) -> None:
    Maildir.create(root, PurePosixPath(".")).close()
    Maildir.create(root, PurePosixPath(".A.B")).close()
    Maildir.create(root, PurePosixPath(".A.B")).close()
    assert (root / ".A.B" / "maildirfolder").read_bytes() == b""
    assert not (root / "maildirfolder").exists()


def test_creating_is_durable_from_the_root_down(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    Maildir.create(root, PurePosixPath("A/B")).close()
    expected = [root.parent.parent, root.parent, root, root / "A", root / "A" / "B"]
    assert synced == expected
    Maildir.create(root, PurePosixPath("A/B")).close()
    assert len(synced) == len(expected)  # nothing new, nothing to sync


def test_what_is_missing_is_added(root: Path) -> None:
    (root / "INBOX" / "cur").mkdir(parents=True)
    (root / "INBOX" / "cur" / "1.host:2,S").write_text("message")
    with Maildir.create(root, PurePosixPath("INBOX")) as maildir:
        assert list(maildir.entries()) == ["1.host"]


def test_the_accounts_maildir_may_be_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "Mail").symlink_to("disk")
    Maildir.create(tmp_path / "Mail", PurePosixPath("INBOX")).close()
    assert (tmp_path / "disk" / "INBOX" / "cur").is_dir()


@pytest.mark.parametrize("missing", ["Mail", "Mail/work", "Mail/work/A", "Mail/work/A/cur", "Mail/work/A/new"])
def test_a_mailbox_that_is_not_there_opens_as_none(tmp_path: Path, missing: str) -> None:
    root = tmp_path / "Mail" / "work"
    Maildir.create(root, PurePosixPath("A")).close()
    (tmp_path / missing).rename(tmp_path / "gone")
    before = open_descriptors()
    assert Maildir.open(root, PurePosixPath("A")) is None
    assert open_descriptors() == before
    assert not (tmp_path / missing).exists()


def test_an_empty_tmp_that_a_copy_left_out_is_made_anew(root: Path) -> None:
    Maildir.create(root, PurePosixPath("A")).close()
    (root / "A" / "tmp").rmdir()
    opened = Maildir.open(root, PurePosixPath("A"))
    assert opened is not None
    opened.close()
    assert (root / "A" / "tmp").is_dir()


def test_a_dangling_symlink_is_not_an_empty_account(tmp_path: Path) -> None:
    (tmp_path / "Mail").symlink_to(tmp_path / "not mounted")
    assert Maildir.open(tmp_path / "Mail", PurePosixPath("INBOX")) is None
    with pytest.raises(LocalError, match="not mounted"):
        Maildir.create(tmp_path / "Mail", PurePosixPath("INBOX"))


@pytest.mark.parametrize("linked", ["A", "A/B", "A/B/cur", "A/B/new", "A/B/tmp"])
@pytest.mark.parametrize("method", ["create", "open"])
@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_inside_the_maildir_no_symlink_is_followed(root: Path, linked: str, method: str, kind: str) -> None:
    Maildir.create(root, PurePosixPath("A/B")).close()
    (root / linked).rename(root.parent / "elsewhere")
    if kind == "symlink":
        (root / linked).symlink_to(root.parent / "elsewhere")
    else:
        (root / linked).write_text("a file")
    before = open_descriptors()
    with pytest.raises(MailboxUnusable, match="symlink") as caught:
        getattr(Maildir, method)(root, PurePosixPath("A/B"))
    assert caught.value.scope is Scope.MAILBOX
    assert str(root / "A/B") in caught.value.text
    assert open_descriptors() == before


@pytest.mark.parametrize("relative", ["../x", "a/../../b", "/abs", "..", "A/.."])
@pytest.mark.parametrize("method", ["create", "open"])
def test_no_way_up(root: Path, relative: str, method: str) -> None:
    root.mkdir(parents=True)
    with pytest.raises(MailboxUnusable, match="no directory below"):
        getattr(Maildir, method)(root, PurePosixPath(relative))
    assert list(root.parent.iterdir()) == [root]
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "scope"), [(errno.ENOSPC, Scope.ACCOUNT), (errno.EROFS, Scope.ACCOUNT), (errno.EACCES, Scope.MAILBOX)]
)
def test_a_full_disk_concerns_the_account_a_permission_the_mailbox(
    root: Path, fail: Fail, code: int, scope: Scope
) -> None:
    root.mkdir(parents=True)
    before = open_descriptors()
    fail("mkdir", code, after=1)
    with pytest.raises(LocalError) as caught:
        Maildir.create(root, PurePosixPath("A"))
    assert caught.value.scope is scope
    assert open_descriptors() == before


def test_closing_gives_all_descriptors_back(root: Path) -> None:
    before = open_descriptors()
    Maildir.create(root, PurePosixPath("A/B/C")).close()
    assert open_descriptors() == before


def test_unique_names_of_threads_differ() -> None:
    keys: list[str] = []
    threads = [threading.Thread(target=lambda: keys.extend(unique_key() for _ in range(2000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(keys)) == len(keys) == 8000


def test_unique_names_of_processes_differ() -> None:
    code = "from maild.local.directory import unique_key\nfor _ in range(500): print(unique_key())"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    keys = [key for process in processes for key in process.communicate()[0].split()]
    assert len(set(keys)) == len(keys) == 1000


@pytest.mark.parametrize(
    ("host", "shown"), [("a/b:c,d", "a\\057b\\072c\\054d"), ("mail.example", "mail.example"), ("", "localhost")]
)
def test_a_host_name_cannot_spoil_a_file_name(host: str, shown: str) -> None:
    code = (
        f"import os\nos.uname = lambda: type('Names', (), {{'nodename': {host!r}}})\n"
        "from maild.local.directory import unique_key\nprint(unique_key())"
    )
    key = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    seconds, _, rest = key.partition(".")
    assert seconds.isdigit()
    assert rest.startswith("M")
    assert rest.partition(".")[2] == shown
