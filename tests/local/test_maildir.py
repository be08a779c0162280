"""Changing a mailbox: flags by renaming, removal, identity, cleaning up, each with readers that interfere."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import time
from pathlib import Path, PurePosixPath

import pytest

from maild.core.errors import LocalError, Scope
from maild.core.identity import canonical, digest
from maild.core.model import Facts, Flags, Key
from maild.core.names import MailboxUnusable
from maild.local import durable
from maild.local.directory import unique_key
from maild.local.maildir import Maildir
from maild.local.scan import Entry
from tests.local.conftest import Fail


def put(maildir: Maildir, name: str, octets: bytes = b"message\n") -> Path:
    path = maildir.path / name
    path.write_bytes(octets)
    return path


def files(maildir: Maildir) -> set[str]:
    return {str(path.relative_to(maildir.path)) for name in ("new", "cur") for path in (maildir.path / name).iterdir()}


def only(maildir: Maildir) -> Entry:
    (entry,) = maildir.entries().values()
    return entry


@pytest.mark.parametrize(
    ("before", "flags", "after"),
    [
        ("new/1.a", {"\\Seen"}, "cur/1.a:2,S"),
        ("new/1.a", set(), "new/1.a"),
        ("new/1.a:2,S", {"\\Seen"}, "new/1.a:2,S"),
        ("new/1.a:2,S", {"\\Flagged"}, "cur/1.a:2,F"),
        ("cur/1.a:2,S", set(), "cur/1.a:2,"),
        ("cur/1.a", set(), "cur/1.a"),
        ("cur/1.a", {"\\Draft"}, "cur/1.a:2,D"),
        ("cur/1.a:2,SXz", {"\\Flagged"}, "cur/1.a:2,FXz"),
        ("cur/1.a:2,SF", {"\\Seen", "\\Flagged"}, "cur/1.a:2,SF"),  # in another order, but right: left alone
        ("cur/1.a:2,S", {"\\Seen", "Work", "$Forwarded"}, "cur/1.a:2,PSa"),
        ("cur/1.a:2,", {"\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft", "$Forwarded"}, "cur/1.a:2,DFPRST"),
    ],
)
def test_flags_are_changed_by_renaming(inbox: Maildir, before: str, flags: set[str], after: str) -> None:
    path = put(inbox, before)
    inode = path.stat().st_ino
    entry = only(inbox)
    done = inbox.set_flags([(entry, frozenset(flags))])
    assert files(inbox) == {after}
    assert (inbox.path / after).stat().st_ino == inode
    assert f"{done[entry.key].subdir}/{done[entry.key].name}" == after
    assert only(inbox) == done[entry.key]


def test_a_keyword_is_listed_durably_before_a_name_uses_its_letter(
    inbox: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(inbox, "cur/1.a:2,")
    entry = only(inbox)
    steps: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        steps.append("fsync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_fsync(descriptor)

    def rename(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        steps.append(f"rename to {target}")
        real_rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def renamed_without_replacing(from_fd: int, name: bytes, to_fd: int, target: bytes) -> int:
        rename(name.decode(), target.decode(), src_dir_fd=from_fd, dst_dir_fd=to_fd)
        return 0

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(durable, "_rename_noreplace", lambda: renamed_without_replacing)
    inbox.set_flags([(entry, frozenset({"Work"}))])
    assert steps[0].startswith("fsync .dovecot-keywords")
    assert steps[1:4] == ["rename to dovecot-keywords", "fsync INBOX", "rename to 1.a:2,a"]
    assert steps[4:] == ["fsync cur"]


def test_keywords_beyond_the_26th_stay_out_of_the_name(inbox: Maildir) -> None:
    put(inbox, "cur/1.a:2,")
    many = frozenset(f"k{number:02}" for number in range(28)) | {"\\Seen"}
    (entry,) = inbox.set_flags([(only(inbox), many)]).values()
    assert entry.name == "1.a:2,Sabcdefghijklmnopqrstuvwxyz"
    assert inbox.flags(entry) | inbox.unrepresentable(many) == many


def test_a_file_that_a_reader_renamed_meanwhile_is_reported_and_left(inbox: Maildir) -> None:
    for number in range(4):
        put(inbox, f"cur/{number}.a:2,")
    entries = inbox.entries()
    (inbox.path / "cur/1.a:2,").rename(inbox.path / "cur/1.a:2,R")
    (inbox.path / "cur/2.a:2,").unlink()
    done = inbox.set_flags([(entry, frozenset({"\\Seen"})) for entry in entries.values()])
    assert done.keys() == {"0.a", "3.a"}
    assert files(inbox) == {"cur/0.a:2,S", "cur/1.a:2,R", "cur/3.a:2,S"}
    found = inbox.locate({Key("1.a"): frozenset(), Key("2.a"): frozenset()})
    assert {key: inbox.flags(entry) for key, entry in found.items()} == {"1.a": {"\\Answered"}}


def test_no_file_is_ever_replaced(inbox: Maildir) -> None:
    put(inbox, "cur/1.a:2,S", b"one")
    entry = only(inbox)
    put(inbox, "cur/1.a:2,FS", b"other")  # appears after the scan, with the name we are about to give
    done = inbox.set_flags([(entry, frozenset({"\\Seen", "\\Flagged"}))])
    assert done[Key("1.a")].name == "1.a:2,FS"
    assert {path.read_bytes() for path in (inbox.path / "cur").iterdir()} == {b"one", b"other"}


def test_changing_nothing_touches_nothing(inbox: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    put(inbox, "cur/1.a:2,S")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    inbox.set_flags([(only(inbox), frozenset({"\\Seen"}))])
    inbox.set_flags([])
    assert synced == []


def test_a_change_of_flags_that_cannot_be_made_durable_is_an_error(inbox: Maildir, fail: Fail) -> None:
    put(inbox, "cur/1.a:2,S")
    entry = only(inbox)
    fail("fsync", errno.EIO)
    with pytest.raises(LocalError, match=r"cannot change flags in .*INBOX: Input/output error; .*kernel log") as caught:
        inbox.set_flags([(entry, frozenset())])
    assert caught.value.scope is Scope.ACCOUNT


def test_removing_is_durable_and_already_gone_is_fine(inbox: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("new/0.a", "cur/1.a:2,", "cur/2.a:2,S"):
        put(inbox, name)
    entries = inbox.entries()
    (inbox.path / "cur/1.a:2,").unlink()
    steps: list[str] = []
    real_unlink = os.unlink

    def unlink(name: str, *, dir_fd: int) -> None:
        steps.append("unlink")
        real_unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append("fsync " + Path(f"/proc/self/fd/{fd}").readlink().name))
    assert inbox.remove(entries.values()) == {"0.a", "1.a", "2.a"}
    assert files(inbox) == set()
    assert steps[:3] == ["unlink"] * 3
    assert sorted(steps[3:]) == ["fsync cur", "fsync new"]


def test_what_a_reader_renamed_meanwhile_is_removed_all_the_same(inbox: Maildir) -> None:
    put(inbox, "new/1.a")
    put(inbox, "cur/2.a:2,")
    entries = inbox.entries()
    (inbox.path / "new/1.a").rename(inbox.path / "cur/1.a:2,S")
    assert inbox.remove(entries.values()) == {"1.a", "2.a"}
    assert files(inbox) == set()


def test_what_keeps_escaping_is_not_reported_as_gone(inbox: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    put(inbox, "cur/1.a:2,")
    entry = only(inbox)

    def escaping(name: str, *, dir_fd: int) -> None:
        """A reader toggles a flag each time we are about to unlink."""
        target = "1.a:2,S" if name == "1.a:2," else "1.a:2,"
        os.rename(name, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(os, "unlink", escaping)
    assert inbox.remove([entry]) == set()
    assert len(files(inbox)) == 1


@pytest.mark.parametrize(("code", "kind"), [(errno.EROFS, LocalError), (errno.EACCES, MailboxUnusable)])
def test_removing_that_fails_is_an_error(inbox: Maildir, fail: Fail, code: int, kind: type[LocalError]) -> None:
    put(inbox, "cur/1.a:2,")
    entry = only(inbox)
    fail("unlink", code)
    with pytest.raises(LocalError, match="cannot remove messages from") as caught:
        inbox.remove([entry])
    assert type(caught.value) is kind


WIRE = b"Message-ID:\r\n <1@a.example>\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\n\r\nbody\r\n"


@pytest.mark.parametrize("octets", [canonical(WIRE), WIRE], ids=["LF", "CRLF"])
def test_identity_of_a_file(inbox: Maildir, octets: bytes) -> None:
    put(inbox, "cur/1.a:2,", octets)
    identity = inbox.identity(only(inbox))
    assert identity is not None
    assert identity.facts == Facts(len(WIRE), b"<1@a.example>", b"Tue, 24 Nov 2026 10:00:00 +0000")
    assert identity.size_octets == len(canonical(WIRE))
    assert identity.digest == digest(WIRE)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_identity_of_files_of_any_size(inbox: Maildir, size: int) -> None:
    octets = (b"Message-ID: <x>\n\n" + b"line\n" * (size // 5 + 1))[:size]
    put(inbox, "cur/1.a:2,", octets)
    identity = inbox.identity(only(inbox))
    assert identity is not None
    assert (identity.size_octets, identity.digest) == (size, digest(octets))
    assert identity.facts.size_octets == size + octets.count(b"\n")


def test_what_is_gone_or_no_plain_file_has_no_identity(inbox: Maildir) -> None:
    assert inbox.identity(Entry(Key("1.a"), "cur", "S")) is None
    os.mkfifo(inbox.path / "cur" / "2.a:2,")
    assert inbox.identity(Entry(Key("2.a"), "cur", "")) is None
    (inbox.path / "cur" / "3.a:2,").symlink_to("/etc/passwd")
    assert inbox.identity(Entry(Key("3.a"), "cur", "")) is None


def test_only_old_leftovers_are_removed_from_tmp(inbox: Maildir, fail: Fail) -> None:
    put(inbox, "tmp/1.a")
    os.utime(put(inbox, "tmp/2.a"), (0, 0))  # a message of 1970 that arrives right now
    (inbox.path / "tmp" / "directory").mkdir()
    put(inbox, "cur/3.a:2,")
    now_s = (inbox.path / "tmp/1.a").stat().st_ctime
    assert inbox.delete_stale_tmp(now_s) == 0
    assert inbox.delete_stale_tmp(now_s + 35 * 3600) == 0
    assert inbox.delete_stale_tmp(now_s + 37 * 3600) == 2
    assert [path.name for path in (inbox.path / "tmp").iterdir()] == ["directory"]
    assert files(inbox) == {"cur/3.a:2,"}


def test_leftovers_of_a_maild_that_is_gone_are_removed_at_once(inbox: Maildir) -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    here = unique_key().rpartition(".")[0]
    names = {
        "gone": re.sub(r"P\d+Q", f"P{ended.pid}Q", unique_key()),
        "alive": unique_key(),
        "elsewhere": re.sub(r"P\d+Q", f"P{ended.pid}Q", here) + ".another-host",
        "of another program": f"1700000000.M123456P{ended.pid}.{os.uname().nodename}",
    }
    for name in names.values():
        put(inbox, f"tmp/{name}")
    assert inbox.delete_stale_tmp(time.time()) == 1
    assert {path.name for path in (inbox.path / "tmp").iterdir()} == {*names.values()} - {names["gone"]}


def test_an_open_mailbox_survives_being_renamed(root: Path, inbox: Maildir) -> None:
    """Everything goes by descriptor, so nothing lands in whatever now has the old path."""
    put(inbox, "cur/1.a:2,")
    entry = only(inbox)
    (root / "INBOX").rename(root / "Renamed")
    (root / "INBOX").symlink_to("/nonexistent")
    assert inbox.set_flags([(entry, frozenset({"\\Seen"}))]).keys() == {"1.a"}
    assert (root / "Renamed/cur/1.a:2,S").exists()


def test_a_mailbox_whose_keywords_cannot_be_read_is_not_opened(root: Path) -> None:
    Maildir.create(root, PurePosixPath("A")).close()
    (root / "A" / "dovecot-keywords").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(MailboxUnusable, match="cannot read the keywords of"):
        Maildir.open(root, PurePosixPath("A"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_flags_survive_the_disk(inbox: Maildir) -> None:
    some: list[Flags] = [
        frozenset(),
        frozenset({"\\Seen"}),
        frozenset({"Work", "$Label1"}),
        frozenset({"\\Draft", "\\Flagged", "$Forwarded", "\\Answered", "\\Seen", "\\Deleted", "Work"}),
    ]
    for number in range(len(some)):
        put(inbox, f"cur/{number}.a:2,")
    entries = inbox.entries()
    inbox.set_flags([(entries[Key(f"{number}.a")], flags) for number, flags in enumerate(some)])
    again = Maildir.open(inbox.path.parent, PurePosixPath("INBOX"))
    assert again is not None
    with again:
        entries = again.entries()
        assert [again.flags(entries[Key(f"{number}.a")]) for number in range(len(some))] == some
