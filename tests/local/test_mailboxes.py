"""Renaming and removing mailboxes' directories, with a crash at every step: one mailbox remains, with everything."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from maild.core.errors import LocalError
from maild.core.model import Flags, Key
from maild.core.names import NESTED, MailboxUnusable
from maild.local import mailboxes
from maild.local.mailboxes import remove_mailbox, rename_mailbox
from maild.local.maildir import Maildir
from maild.local.survey import survey
from tests.local.conftest import Fail

MESSAGES: dict[str, bytes] = {
    "new/1.a": b"one\n",
    "new/2.a:2,a": b"two\n",
    "cur/3.a:2,Sb": b"three\n",
    "cur/4.a:2,": b"four\n",
}
FLAGS: dict[Key, Flags] = {
    Key("1.a"): frozenset(),
    Key("2.a"): frozenset({"Work"}),
    Key("3.a"): frozenset({"\\Seen", "Home"}),
    Key("4.a"): frozenset(),
}
METADATA = {"dovecot-uidlist": b"3 V1 N5\n", ".mbsyncstate": b"state\n", "maildirfolder": b""}


def fill(root: Path, relative: str) -> Path:
    """A mailbox with messages, keywords, and what other programs keep beside them."""
    path = root / relative
    Maildir.create(root, PurePosixPath(relative)).close()
    (path / "dovecot-keywords").write_text("0 Work\n1 Home\n")
    for name, octets in (MESSAGES | METADATA).items():
        (path / name).write_bytes(octets)
    (path / "tmp" / "leftover").write_bytes(b"x")
    return path


def make(root: Path, *relatives: str) -> None:
    for relative in relatives:
        Maildir.create(root, PurePosixPath(relative)).close()
        (root / relative / "new" / "child.a").write_text(relative)


def rename(root: Path, old: str, new: str) -> None:
    rename_mailbox(root, PurePosixPath(old), PurePosixPath(new))


def messages(root: Path, relative: str) -> dict[Key, Flags] | None:
    """As maild reads the mailbox: flags by key; None where it is none."""
    maildir = Maildir.open(root, PurePosixPath(relative))
    if maildir is None:
        return None
    with maildir:
        entries = maildir.entries()
        assert maildir.duplicates == ()
        return {key: maildir.flags(entry) for key, entry in entries.items()}


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below, files with their octets."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }


def is_whole(root: Path, relative: str) -> None:
    assert messages(root, relative) == FLAGS
    present = tree(root / relative)
    assert {name: present[name] for name in MESSAGES | METADATA} == MESSAGES | METADATA


CASES = [
    ("A", "B", [], "alone"),
    ("A", "B", ["A/child", "A/child/deeper"], "with children"),
    ("A", "B", ["B/child"], "to the parent of others"),
    ("A", "A/B", [], "below itself"),
    ("A/B", "A", [], "to its own parent"),
    ("A/B", "C/D/E", ["A/other"], "to parents that are missing"),
    ("A/B/C", "D", [], "away from parents that are empty then"),
    ("A", "A/B/C", ["A/B"], "below its child"),
]


@pytest.mark.parametrize(("old", "new", "others"), [case[:3] for case in CASES], ids=[case[3] for case in CASES])
def test_a_mailbox_is_renamed_alone(root: Path, old: str, new: str, others: list[str]) -> None:
    identity = f"{fill(root, old).joinpath('cur').stat().st_ino}"
    make(root, *others)
    before = {other: tree(root / other / "new") for other in others}
    rename(root, old, new)
    is_whole(root, new)
    assert messages(root, old) is None
    found = survey(root, NESTED)
    assert set(found.mailboxes) == {new, *others}
    assert found.unreadable == {}
    assert found.mailboxes[new].identity.endswith(f":{identity}")
    assert {other: tree(root / other / "new") for other in others} == before


def test_names_of_files_in_new_stay_and_nothing_is_left(root: Path) -> None:
    fill(root, "A")
    make(root, "A/child")
    rename(root, "A", "B")
    assert {path.name for path in (root / "A").iterdir()} == {"child"}
    assert {path.name for path in (root / "B" / "new").iterdir()} == {"1.a", "2.a:2,a"}
    assert all(path.stat().st_nlink == 1 for path in (root / "B").rglob("*") if path.is_file())


def test_empty_parents_go_and_others_stay(root: Path) -> None:
    fill(root, "A/B/C")
    make(root, "A/other")
    rename(root, "A/B/C", "D")
    assert {path.name for path in (root / "A").iterdir()} == {"other"}


def test_new_directories_are_the_users_alone(root: Path) -> None:
    fill(root, "A")
    make(root, "A/child")
    rename(root, "A", "P/B")
    assert {(root / name).stat().st_mode & 0o777 for name in ("P", "P/B", "P/B/new", "P/B/tmp")} == {0o700}


def test_unknown_files_stay_where_children_do(root: Path) -> None:
    fill(root, "A")
    make(root, "A/child")
    (root / "A" / "notes.txt").write_text("mine")
    rename(root, "A", "B")
    assert {path.name for path in (root / "A").iterdir()} == {"child", "notes.txt"}


def test_maildir_plus_plus_mailboxes_are_renamed(root: Path) -> None:
    fill(root, ".A")
    make(root, ".A.child")
    rename(root, ".A", ".B")
    is_whole(root, ".B")
    assert {path.name for path in root.iterdir()} == {".A.child", ".B"}


@pytest.mark.parametrize(("old", "new"), [(".", ".B"), (".A", ".")])
def test_the_maildir_itself_is_not_renamed(root: Path, old: str, new: str) -> None:
    fill(root, ".A")
    fill(root, ".")
    before = tree(root)
    with pytest.raises(MailboxUnusable, match="Maildir itself"):
        rename(root, old, new)
    assert tree(root) == before


def test_no_mailbox_is_replaced(root: Path) -> None:
    fill(root, "A")
    make(root, "B")
    before = tree(root)
    with pytest.raises(MailboxUnusable, match=r"cannot rename the mailbox .*A to .*B: there is a mailbox of that name"):
        rename(root, "A", "B")
    assert tree(root) == before


def test_what_is_not_there_cannot_be_renamed(root: Path) -> None:
    make(root, "C")
    with pytest.raises(MailboxUnusable, match="it is not there"):
        rename(root, "A", "B")


@pytest.mark.parametrize("others", [[], ["A/child"]])
def test_what_is_renamed_already_will_do(root: Path, others: list[str]) -> None:
    fill(root, "A")
    make(root, *others)
    rename(root, "A", "B")
    before = tree(root)
    rename(root, "A", "B")
    rename(root, "B", "B")
    assert tree(root) == before


def test_a_symlink_in_the_way_is_not_followed(root: Path, tmp_path: Path) -> None:
    fill(root, "A")
    (tmp_path / "elsewhere").mkdir()
    (root / "B").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MailboxUnusable):
        rename(root, "A", "B")
    is_whole(root, "A")
    assert tree(tmp_path / "elsewhere") == {}


def test_another_message_of_the_same_name_in_the_way_is_kept(root: Path) -> None:
    fill(root, "A")
    make(root, "A/child")
    (root / "B" / "new").mkdir(parents=True)
    (root / "B" / "new" / "1.a").write_bytes(b"another\n")
    rename(root, "A", "B")
    found = messages(root, "B") or {}
    assert len(found) == len(FLAGS) + 1
    assert {b"one\n", b"another\n"} <= set(tree(root / "B" / "new").values())


class Crash(BaseException):
    """The process ends here: nothing may clean up after it."""


class Steps:
    """Counts what changes the disk, and ends the process before the step that is wanted, or lets a reader act there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], None] | None = None) -> None:
        self.taken: list[str] = []
        self._at = at
        self._act = act
        for name in ("link", "unlink", "mkdir", "rmdir", "fsync"):
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        monkeypatch.setattr(mailboxes, "rename_new", self._counted("rename", mailboxes.rename_new))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            self.taken.append(f"{name} {args[0]}")
            if len(self.taken) == self._at:
                if self._act is None:
                    raise Crash
                self._act()
            return real(*args, **kwargs)

        return step


RENAMES = [("A", "B", []), ("A", "B", ["A/child"]), ("A", "A/B", []), ("A/B", "A", []), ("A/B", "C/D", ["A/other"])]


def steps_of(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> list[str]:
    with monkeypatch.context() as patched:
        steps = Steps(patched, 0)
        action()
    return steps.taken


@pytest.mark.parametrize(("old", "new", "others"), RENAMES)
def test_a_crash_at_any_step_leaves_one_whole_mailbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, others: list[str]
) -> None:
    calm = tmp_path / "calm"
    fill(calm, old)
    make(calm, *others)
    count = len(steps_of(monkeypatch, lambda: rename(calm, old, new)))
    assert count >= 3
    for at in range(1, count + 1):
        root = tmp_path / str(at)
        fill(root, old)
        make(root, *others)
        with monkeypatch.context() as patched:
            Steps(patched, at)
            with pytest.raises(Crash):
                rename(root, old, new)
        whole = [relative for relative in (old, new) if messages(root, relative) == FLAGS]
        assert len(whole) == 1, f"after step {at}: {tree(root)}"
        other = new if whole == [old] else old
        assert messages(root, other) is None
        assert other not in survey(root, NESTED).mailboxes
        for child in others:
            assert messages(root, child) == {Key("child.a"): frozenset()}
        rename(root, old, new)
        assert tree(root) == tree(calm), f"after step {at}"


def test_everything_is_durable_before_cur_moves_and_after(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root, "A")
    make(root, "A/child")
    taken: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        taken.append("fsync " + str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(root)))
        real(descriptor)

    with monkeypatch.context() as patched:
        steps = Steps(patched, 0)
        steps.taken = taken
        patched.setattr(os, "fsync", fsync)
        rename(root, "A", "B")
    moved = taken.index("rename cur")
    linked = max(at for at, step in enumerate(taken) if step in ("link 1.a", "link 2.a:2,a"))
    listed = taken.index("link dovecot-keywords")
    cleared = next(at for at, step in enumerate(taken) if step == "unlink 1.a")
    assert "fsync B/new" in taken[linked:moved]
    assert "fsync B" in taken[max(linked, listed) : moved]
    assert {"fsync A", "fsync B"} <= set(taken[moved:cleared])


@pytest.mark.parametrize("others", [[], ["A/child"]])
def test_a_reader_that_interferes_at_any_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[str]
) -> None:
    calm = tmp_path / "calm"
    fill(calm, "A")
    make(calm, *others)
    for at in range(1, 1 + len(steps_of(monkeypatch, lambda: rename(calm, "A", "B")))):
        root = tmp_path / str(at)
        fill(root, "A")
        make(root, *others)

        def read(root: Path = root) -> None:
            """A reader marks one as seen, and a new one is delivered, where the mailbox is right then."""
            here = root / ("A" if (root / "A" / "cur").exists() else "B")
            (here / "new" / "1.a").rename(here / "cur" / "1.a:2,S")
            (here / "new" / "5.a").write_bytes(b"five\n")

        with monkeypatch.context() as patched:
            Steps(patched, at, read)
            rename(root, "A", "B")
        assert messages(root, "B") == FLAGS | {Key("1.a"): {"\\Seen"}, Key("5.a"): frozenset()}, f"at step {at}"
        assert messages(root, "A") is None


def test_a_disk_that_refuses_is_told_and_the_mailbox_stays(root: Path, fail: Fail) -> None:
    fill(root, "A")
    make(root, "A/child")
    fail("link", errno.ENOSPC)
    with pytest.raises(LocalError, match=r"cannot rename the mailbox to B: .*A: No space left.*make room"):
        rename(root, "A", "B")
    is_whole(root, "A")


def emptied(root: Path, relative: str) -> Path:
    path = fill(root, relative)
    for name in MESSAGES:
        (path / name).unlink()
    return path


def remove(root: Path, relative: str) -> bool:
    return remove_mailbox(root, PurePosixPath(relative))


@pytest.mark.parametrize("relative", ["A", "A/B/C", ".A"])
def test_an_empty_mailbox_is_removed_with_what_belongs_to_it(root: Path, relative: str) -> None:
    make(root, "other")
    emptied(root, relative)
    assert remove(root, relative)
    assert {path.name for path in root.iterdir()} == {"other"}
    assert remove(root, relative)


@pytest.mark.parametrize("name", [*MESSAGES, "cur/.dot", "new/sub/"])
def test_one_with_anything_in_it_is_left_as_it_is(root: Path, name: str) -> None:
    path = emptied(root, "A") / name
    path.mkdir() if name.endswith("/") else path.write_bytes(b"x")
    before = tree(root)
    assert not remove(root, "A")
    assert tree(root) == before


def test_children_and_unknown_files_stay(root: Path) -> None:
    emptied(root, "A")
    make(root, "A/child")
    (root / "A" / "notes.txt").write_text("mine")
    assert remove(root, "A")
    assert {path.name for path in (root / "A").iterdir()} == {"child", "notes.txt"}
    assert messages(root, "A/child") == {Key("child.a"): frozenset()}


def test_the_maildir_itself_is_never_removed(root: Path) -> None:
    emptied(root, ".")
    before = tree(root)
    assert not remove(root, ".")
    assert tree(root) == before


def test_a_maildir_that_is_gone_has_removed_nothing(root: Path) -> None:
    with pytest.raises(MailboxUnusable, match="is its disk mounted"):
        remove(root, "A")


def test_a_crash_at_any_step_of_a_removal_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = tmp_path / "calm"
    emptied(calm, "A/B")
    make(calm, "A/B/child")
    count = len(steps_of(monkeypatch, lambda: remove(calm, "A/B")))
    for at in range(1, count + 1):
        root = tmp_path / str(at)
        emptied(root, "A/B")
        make(root, "A/B/child")
        with monkeypatch.context() as patched:
            Steps(patched, at)
            with pytest.raises(Crash):
                remove(root, "A/B")
        assert remove(root, "A/B")
        assert tree(root) == tree(calm)


@pytest.mark.parametrize("part", ["cur", "new"])
def test_a_message_that_comes_at_any_step_of_a_removal_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    outcomes = set()
    for at in range(1, 4):
        root = tmp_path / str(at)
        path = emptied(root, "A")

        def deliver(path: Path = path) -> None:
            if (path / part).exists():
                (path / part / "9.a:2,").write_bytes(b"late\n")

        with monkeypatch.context() as patched:
            Steps(patched, at, deliver)
            removed = remove(root, "A")
        outcomes.add(removed)
        assert messages(root, "A") == (None if removed else {Key("9.a"): frozenset()})
    assert outcomes == {True, False}


def test_a_copy_is_not_taken_for_what_it_was_copied_from(root: Path) -> None:
    """Two hard links with different keys are two messages, and stay so."""
    path = fill(root, "A")
    make(root, "A/child")
    os.link(path / "cur" / "4.a:2,", path / "new" / "6.a")
    rename(root, "A", "B")
    assert messages(root, "B") == FLAGS | {Key("6.a"): frozenset()}


def test_a_directory_that_is_no_mailbox_any_more_can_be_made_one_again(root: Path) -> None:
    fill(root, "A")
    make(root, "A/child")
    rename(root, "A", "B")
    fill(root, "A")
    is_whole(root, "A")
    shutil.rmtree(root / "B")
    rename(root, "A", "B")
    is_whole(root, "B")
