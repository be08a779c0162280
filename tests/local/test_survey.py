"""Which mailboxes there are on this disk, and whether one has changed: seen cheaply, and never seen wrongly."""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.errors import LocalError
from maild.core.names import MAILDIR_PLUS_PLUS, NESTED, directory
from maild.local import survey as survey_module
from maild.local.maildir import Maildir
from maild.local.survey import Stamp, is_settled, stamp_of, survey
from tests.local.conftest import Fail

SECOND_NS = 1_000_000_000
NOW_NS = 1_764_000_000 * SECOND_NS + 123_456_789
MS_NS = 1_000_000


def make(root: Path, *relatives: str) -> None:
    for relative in relatives:
        Maildir.create(root, PurePosixPath(relative)).close()


def age(*directories: Path) -> None:
    """Let them be so old that one look is enough."""
    for one in directories:
        os.utime(one, ns=(NOW_NS - SECOND_NS, NOW_NS - SECOND_NS))


def stamp(cur_ns: int = 5, new_ns: int = 5) -> Stamp:
    return Stamp(1, cur_ns, 2, new_ns)


@given(st.builds(Stamp, *[st.integers(min_value=0, max_value=2**63)] * 6))
def test_a_stamp_comes_back_from_its_text(one: Stamp) -> None:
    assert Stamp.read(one.text()) == one


@pytest.mark.parametrize(
    "text", ["", "=", "1 2 3", "1 2 3 4 5 6 7", "1 2 3 4 5 x", "1 2 3 4 5 6 ", "1  2 3 4 5 6", "1 2"]
)
def test_other_text_is_no_stamp(text: str) -> None:
    assert Stamp.read(text) is None


@pytest.mark.parametrize(
    ("age_ns", "settled"),
    [
        (25 * MS_NS, True),
        (20 * MS_NS, False),
        (1, False),
        (0, False),
        (-5, False),
        (-3600 * SECOND_NS, False),
        (3600 * SECOND_NS, True),
    ],
)
def test_a_stamp_is_settled_when_no_change_could_hide_in_its_tick(age_ns: int, settled: bool) -> None:
    assert is_settled(stamp(cur_ns=NOW_NS - age_ns), NOW_NS) is settled
    assert is_settled(stamp(new_ns=NOW_NS - age_ns), NOW_NS) is settled


@pytest.mark.parametrize(("age_s", "settled"), [(0, False), (1, False), (2, True), (-1, False)])
def test_whole_seconds_may_be_all_that_the_file_system_keeps(age_s: int, settled: bool) -> None:
    whole_ns = NOW_NS // SECOND_NS * SECOND_NS - age_s * SECOND_NS
    assert is_settled(stamp(cur_ns=whole_ns), NOW_NS) is settled


def test_a_list_of_keywords_with_a_time_to_come_does_not_hold_up_the_stamp() -> None:
    assert is_settled(Stamp(1, 5, 2, 5, NOW_NS + SECOND_NS, 10), NOW_NS)


def test_each_change_gives_another_stamp(inbox: Maildir) -> None:
    parts = (inbox.path / "cur", inbox.path / "new")
    age(*parts)
    first = stamp_of(inbox.directory)
    assert stamp_of(inbox.directory) == first
    message = inbox.path / "new" / "1.a"
    message.write_bytes(b"x")
    arrived = stamp_of(inbox.directory)
    age(*parts)
    message.rename(inbox.path / "cur" / "1.a:2,S")
    read = stamp_of(inbox.directory)
    (inbox.path / "dovecot-keywords").write_text("0 Work\n")
    listed = stamp_of(inbox.directory)
    with (inbox.path / "dovecot-keywords").open("a") as keywords:
        keywords.write("1 Home\n")
    assert len({first, arrived, read, listed, stamp_of(inbox.directory)}) == 5


def test_the_survey_has_the_stamp_of_the_open_mailbox(root: Path, inbox: Maildir) -> None:
    (inbox.path / "dovecot-keywords").write_text("0 Work\n")
    found = survey(root, NESTED).mailboxes["INBOX"]
    assert found.stamp == stamp_of(inbox.directory)
    cur = (inbox.path / "cur").stat()
    assert found.identity == f"{cur.st_dev}:{cur.st_ino}"


def test_nested_mailboxes_are_found_at_any_depth(root: Path) -> None:
    make(root, "INBOX", "A/B/C", "A/B/C/D", "Entwürfe")
    (root / "A" / "B" / "C" / "cur" / "E" / "cur").mkdir(parents=True)
    (root / "A" / "B" / "C" / "cur" / "E" / "new").mkdir()
    make(root, ".hidden", "INBOX/.hidden")
    found = survey(root, NESTED)
    assert set(found.mailboxes) == {"INBOX", "A/B/C", "A/B/C/D", "Entwürfe"}
    assert {name: one.directory for name, one in found.mailboxes.items()} == {name: name for name in found.mailboxes}
    assert found.unreadable == {}


def test_the_nested_root_is_no_mailbox_itself(root: Path) -> None:
    make(root, "INBOX")
    for name in ("cur", "new", "tmp"):
        (root / name).mkdir()
    assert set(survey(root, NESTED).mailboxes) == {"INBOX"}


def test_maildir_plus_plus_mailboxes_are_found(root: Path) -> None:
    make(root, ".", ".Sent", ".Sent.2026", "Other", ".Sent/.Inside")
    found = survey(root, MAILDIR_PLUS_PLUS)
    assert set(found.mailboxes) == {".", ".Sent", ".Sent.2026"}
    assert found.unreadable == {}


@given(st.lists(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3).map(tuple), max_size=5, unique=True))
@pytest.mark.parametrize("layout", [NESTED, MAILDIR_PLUS_PLUS])
def test_every_directory_that_a_name_gives_is_found(
    layout: str, tmp_path_factory: pytest.TempPathFactory, mailboxes: list[tuple[str, ...]]
) -> None:
    root = tmp_path_factory.mktemp("survey")
    expected = {str(directory(levels, layout)) for levels in mailboxes}
    make(root, *expected)
    found = survey(root, layout)
    assert (set(found.mailboxes), found.unreadable) == (expected, {})


def test_a_rename_keeps_the_identity(root: Path) -> None:
    make(root, "A", "B")
    before = survey(root, NESTED).mailboxes
    (root / "A").rename(root / "C")
    after = survey(root, NESTED).mailboxes
    assert set(after) == {"B", "C"}
    assert after["C"].identity == before["A"].identity != after["B"].identity
    assert after["C"].stamp == before["A"].stamp


def test_a_root_that_is_gone_is_an_error(root: Path) -> None:
    with pytest.raises(LocalError, match=r"cannot read .*work: No such file.*is its disk mounted"):
        survey(root, NESTED)


def test_a_root_may_be_a_symlink(root: Path, tmp_path: Path) -> None:
    make(root, "INBOX", "A")
    (tmp_path / "link").symlink_to(root)
    assert set(survey(tmp_path / "link", NESTED).mailboxes) == {"INBOX", "A"}


def test_what_cannot_be_read_is_not_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, "INBOX", "A/B", "C")
    real = os.open

    def refusing(path: str, *args: int, dir_fd: int | None = None) -> int:
        if path == "A":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *args, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refusing)
    found = survey(root, NESTED)
    assert set(found.mailboxes) == {"INBOX", "C"}
    assert found.unreadable == {"A": "Permission denied"}
    assert [found.doubt(name) for name in ("A", "A/B", "A/B/C", "AB", "D")] == ["Permission denied"] * 3 + [None] * 2


def test_a_directory_that_fails_while_it_is_listed_is_not_gone(root: Path, fail: Fail) -> None:
    make(root, "A")
    age(root, root / "A")
    fail("scandir", errno.EIO, after=1)
    found = survey(root, NESTED)
    assert (found.mailboxes, found.doubt("A")) == ({}, "Input/output error")


@pytest.mark.parametrize("part", ["cur", "new"])
def test_half_a_mailbox_is_neither_there_nor_gone(root: Path, part: str) -> None:
    make(root, "A", "A/B")
    (root / "A" / part).rmdir()
    found = survey(root, NESTED)
    assert set(found.mailboxes) == {"A/B"}
    assert "only one of" in (found.doubt("A") or "")


def test_symlinks_are_not_followed_and_not_gone(root: Path, tmp_path: Path) -> None:
    make(root, "INBOX", "Linked")
    make(tmp_path, "elsewhere")
    (root / "A").symlink_to(tmp_path / "elsewhere")
    (root / "Dangling").symlink_to(tmp_path / "nowhere")
    (root / "Linked" / "cur").rmdir()
    (root / "Linked" / "cur").symlink_to(tmp_path / "elsewhere" / "cur")
    found = survey(root, NESTED)
    assert set(found.mailboxes) == {"INBOX"}
    assert {name for name, reason in found.unreadable.items() if "symlink" in reason} == {"A", "Dangling", "Linked"}


def test_a_name_that_is_no_utf_8_is_reported(root: Path) -> None:
    make(root, "INBOX")
    Maildir.create(root, PurePosixPath(os.fsdecode(b"caf\xe9"))).close()
    found = survey(root, NESTED)
    assert set(found.mailboxes) == {"INBOX"}
    assert found.unreadable == {"caf\\udce9": "its name is not UTF-8: rename it"}


def test_depth_and_number_are_bounded_and_said_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, "A/B/C/D", "E")
    monkeypatch.setattr(survey_module, "_MAX_DEPTH", 3)
    found = survey(root, NESTED)
    assert "more than 3 levels" in (found.doubt("A/B/C/D") or "")
    assert set(found.mailboxes) == {"E"}
    monkeypatch.setattr(survey_module, "_MAX_DIRECTORIES", 2)
    assert "more than 2 directories" in (survey(root, NESTED).doubt("anything") or "")


def test_a_mailbox_renamed_meanwhile_is_seen_under_its_new_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, "A", "B")
    age(root, root / "A", root / "B")
    real = os.open
    renamed: list[str] = []

    def renaming(path: str, *args: int, dir_fd: int | None = None) -> int:
        if path in ("A", "B") and not renamed:
            renamed.append(path)
            (root / path).rename(root / "C")
        return real(path, *args, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", renaming)
    assert set(survey(root, NESTED).mailboxes) == ({"A", "B"} - set(renamed)) | {"C"}


@pytest.mark.parametrize("same_tick", [False, True])
def test_a_mailbox_renamed_after_it_was_looked_at_is_seen_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, same_tick: bool
) -> None:
    make(root, "A", "B")
    if not same_tick:
        age(root, root / "A", root / "B")
    changed_ns = root.stat().st_mtime_ns
    real = os.close
    renamed: list[str] = []

    def renaming(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        real(descriptor)
        if not renamed:
            renamed.append(name)
            (root / name).rename(root / "C")
            if same_tick:
                os.utime(root, ns=(changed_ns, changed_ns))

    monkeypatch.setattr(os, "close", renaming)
    found = survey(root, NESTED)
    assert renamed in (["A"], ["B"])
    assert set(found.mailboxes) == ({"A", "B"} - set(renamed)) | {"C"}
