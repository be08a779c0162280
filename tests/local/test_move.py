"""Moving messages between mailboxes of an account: one rename each, the flags right by the other mailbox's letters."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maild.core.errors import LocalError, Scope
from maild.core.model import Flags, Key
from maild.local import maildir as maildir_module
from maild.local.maildir import Maildir
from maild.local.scan import Entry
from tests.local.conftest import Fail

SEEN: Flags = frozenset({"\\Seen"})


@pytest.fixture
def archive(root: Path) -> Iterator[Maildir]:
    with Maildir.create(root, PurePosixPath("Archive")) as maildir:
        yield maildir


def put(maildir: Maildir, name: str, octets: bytes = b"message\n") -> Path:
    path = maildir.path / name
    path.write_bytes(octets)
    return path


def files(maildir: Maildir) -> set[str]:
    return {str(path.relative_to(maildir.path)) for name in ("new", "cur") for path in (maildir.path / name).iterdir()}


def moves(maildir: Maildir, flags: Flags) -> list[tuple[Entry, Flags]]:
    return [(entry, flags) for entry in maildir.entries().values()]


@pytest.mark.parametrize(
    ("before", "flags", "after"),
    [
        ("new/1.a", set(), "new/1.a"),
        ("new/1.a", {"\\Seen"}, "cur/1.a:2,S"),
        ("new/1.a:2,", set(), "new/1.a:2,"),
        ("new/1.a:2,S", set(), "cur/1.a:2,"),
        ("cur/1.a:2,S", {"\\Seen"}, "cur/1.a:2,S"),
        ("cur/1.a:2,SF", {"\\Seen", "\\Flagged"}, "cur/1.a:2,SF"),
        ("cur/1.a", set(), "cur/1.a"),
        ("cur/1.a:2,FS", set(), "cur/1.a:2,"),
        ("cur/1.a:2,Sa", {"\\Seen", "Work"}, "cur/1.a:2,Sb"),  # another letter there
        ("cur/1.a:2,ab", {"Work", "Home"}, "cur/1.a:2,bc"),
        ("cur/1.a:2,a", {"new one"}, "cur/1.a:2,"),  # no IMAP atom: no letter
        ("cur/1.a:2,SXz", {"\\Seen"}, "cur/1.a:2,SXz"),  # unknown letters stay
        ("cur/1.a:2,Sd", {"\\Seen"}, "cur/1.a:2,S"),  # but do not begin to mean something
        ("cur/1.a:2,S,x=1", {"\\Flagged"}, "cur/1.a:2,F,x=1"),
    ],
)
def test_a_message_moves_by_one_rename(
    inbox: Maildir, archive: Maildir, before: str, flags: set[str], after: str
) -> None:
    (inbox.path / "dovecot-keywords").write_text("0 Work\n1 Home\n")
    (archive.path / "dovecot-keywords").write_text("0 Other\n1 Work\n3 Fourth\n")
    inode = put(inbox, before).stat().st_ino
    done = inbox.move_to(moves(inbox, frozenset(flags)), archive)
    assert (files(inbox), files(archive)) == (set(), {after})
    assert (archive.path / after).stat().st_ino == inode
    assert {key: f"{entry.subdir}/{entry.name}" for key, entry in done.items()} == {Key("1.a"): after}
    assert archive.entries() == {Key("1.a"): done[Key("1.a")]}


@given(
    known=st.lists(st.sampled_from(["Work", "Home", "x", "y"]), unique=True),
    flags=st.frozensets(st.sampled_from(["\\Seen", "\\Flagged", "Work", "Home", "x", "y", "z"])),
    letters=st.sets(st.sampled_from("DFPRSTabcdQ")),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_flags_given_are_the_flags_it_has(
    tmp_path_factory: pytest.TempPathFactory, known: list[str], flags: Flags, letters: set[str]
) -> None:
    root = tmp_path_factory.mktemp("move")
    with (
        Maildir.create(root, PurePosixPath("A")) as source,
        Maildir.create(root, PurePosixPath("B")) as target,
    ):
        (source.path / "dovecot-keywords").write_text("0 Work\n1 x\n")
        (target.path / "dovecot-keywords").write_text("".join(f"{n} {name}\n" for n, name in enumerate(known)))
        put(source, "cur/1.a:2," + "".join(sorted(letters)))
        source.move_to(moves(source, flags), target)
        (entry,) = target.entries().values()
        assert target.flags(entry) == flags
        assert ("Q" in (entry.letters or "")) == ("Q" in letters)


@pytest.mark.parametrize("there", ["new/1.a", "cur/1.a:2,S", "cur/1.a:2,F", "tmp/1.a"])
def test_nothing_is_replaced_and_no_key_is_there_twice(inbox: Maildir, archive: Maildir, there: str) -> None:
    put(inbox, "new/1.a", b"moved\n")
    put(archive, there, b"other\n")
    done = inbox.move_to(moves(inbox, frozenset()), archive)
    entry = done[Key("1.a")]
    assert (entry.key == "1.a") is there.startswith("tmp")
    assert (archive.path / there).read_bytes() == b"other\n"
    assert (archive.path / "new" / entry.name).read_bytes() == b"moved\n"
    assert archive.entries()[entry.key] == entry
    assert archive.duplicates == ()
    assert files(inbox) == set()


def test_a_name_that_comes_after_the_target_was_read_is_not_replaced(
    inbox: Maildir, archive: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(inbox, "cur/1.a:2,S", b"moved\n")
    real = maildir_module.keys

    def keys(directory: object) -> set[Key]:
        found = real(archive.directory)
        put(archive, "cur/1.a:2,S", b"other\n")
        return found

    monkeypatch.setattr(maildir_module, "keys", keys)
    (entry,) = inbox.move_to(moves(inbox, SEEN), archive).values()
    assert entry.key != "1.a"
    assert (archive.path / "cur" / "1.a:2,S").read_bytes() == b"other\n"
    assert (archive.path / "cur" / entry.name).read_bytes() == b"moved\n"


def test_what_is_not_there_is_left_out(inbox: Maildir, archive: Maildir) -> None:
    put(inbox, "cur/1.a:2,S")
    found = moves(inbox, SEEN)
    put(inbox, "cur/2.a:2,")
    gone = Entry(Key("3.a"), "cur", "")
    renamed = Entry(Key("2.a"), "cur", "S")
    assert set(inbox.move_to([*found, (gone, SEEN), (renamed, SEEN)], archive)) == {"1.a"}
    assert (files(inbox), files(archive)) == ({"cur/2.a:2,"}, {"cur/1.a:2,S"})


def test_nothing_to_move_touches_nothing(inbox: Maildir, archive: Maildir, fail: Fail) -> None:
    calls = fail("fsync", errno.EIO)
    assert inbox.move_to([], archive) == {}
    assert calls == []


def test_keywords_are_listed_before_and_both_directories_are_durable_after(
    inbox: Maildir, archive: Maildir, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(inbox, "cur/1.a:2,")
    taken: list[str] = []
    real_fsync, real_rename = os.fsync, maildir_module.rename_new

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(root)
        taken.append(f"fsync {path}")
        real_fsync(descriptor)

    def rename(name: str, target: str, from_fd: int, to_fd: int) -> None:
        taken.append(f"rename to {target}")
        real_rename(name, target, from_fd, to_fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(maildir_module, "rename_new", rename)
    inbox.move_to(moves(inbox, frozenset({"Work"})), archive)
    moved = taken.index("rename to 1.a:2,a")
    assert taken[moved - 1] == "fsync Archive"
    assert set(taken[moved + 1 : moved + 3]) == {"fsync Archive/cur", "fsync Archive/new"}
    assert set(taken[moved + 3 :]) == {"fsync INBOX/cur", "fsync INBOX/new"}


def test_a_disk_that_refuses_says_so(inbox: Maildir, archive: Maildir, fail: Fail) -> None:
    put(inbox, "cur/1.a:2,S")
    fail("fsync", errno.EIO)
    with pytest.raises(LocalError, match=r"cannot move messages to .*Archive: Input/output error"):
        inbox.move_to(moves(inbox, SEEN), archive)


def test_another_file_system_concerns_these_mailboxes_only(
    inbox: Maildir, archive: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(inbox, "cur/1.a:2,S")

    def refused(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(maildir_module, "rename_new", refused)
    with pytest.raises(LocalError, match="different file systems") as raised:
        inbox.move_to(moves(inbox, SEEN), archive)
    assert raised.value.scope is Scope.MAILBOX
    assert files(inbox) == {"cur/1.a:2,S"}
