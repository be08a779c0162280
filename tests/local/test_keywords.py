"""Keywords: Dovecot's list, its letters, and what happens when others change it or all letters are taken."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from maild.core.errors import LocalError
from maild.local.maildir import Maildir
from tests.local.conftest import Fail


@pytest.fixture
def listed(inbox: Maildir) -> Path:
    return inbox.path / "dovecot-keywords"


def test_letters_are_given_in_order_and_kept(inbox: Maildir, listed: Path) -> None:
    inbox.keywords.assign([frozenset({"Todo", "\\Seen"}), frozenset({"$Forwarded"})])
    inbox.keywords.assign([frozenset({"Work", "todo"}), frozenset({"NonJunk"})])
    assert listed.read_bytes() == b"0 Todo\n1 NonJunk\n2 Work\n"
    assert inbox.keywords.letters == {"todo": "a", "nonjunk": "b", "work": "c"}
    assert inbox.keywords.by_letter == {"a": "Todo", "b": "NonJunk", "c": "Work"}
    assert listed.stat().st_mode & 0o777 == 0o600


def test_without_keywords_there_is_no_file(inbox: Maildir, listed: Path) -> None:
    inbox.keywords.assign([frozenset({"\\Seen", "$Forwarded"}), frozenset()])
    assert not listed.exists()


def test_a_list_of_dovecot_is_read_and_continued(inbox: Maildir, listed: Path) -> None:
    listed.write_bytes(b"0 $Label1\n3 Work\n25 Last\nno number\n26 TooFar\n4 \n-1 x\n5 b\xff\n7 NoLineEnd")
    inbox.keywords.refresh()
    assert inbox.keywords.by_letter == {"a": "$Label1", "d": "Work", "z": "Last", "h": "NoLineEnd"}
    inbox.keywords.assign([frozenset({"one", "two", "three", "four", "five"})])
    assert listed.read_bytes().endswith(b"7 NoLineEnd\n1 five\n2 four\n4 one\n6 three\n8 two\n")  # 5 is taken
    assert listed.read_bytes().startswith(b"0 $Label1\n3 Work\n25 Last\nno number\n26 TooFar\n")


def test_a_change_by_another_program_is_seen_before_a_letter_is_given(inbox: Maildir, listed: Path) -> None:
    inbox.keywords.assign([frozenset({"Mine"})])
    listed.write_bytes(b"0 Mine\n1 Theirs\n")
    inbox.keywords.assign([frozenset({"Next"})])
    assert listed.read_bytes() == b"0 Mine\n1 Theirs\n2 Next\n"


def test_a_list_that_was_removed_is_empty(inbox: Maildir, listed: Path) -> None:
    inbox.keywords.assign([frozenset({"Mine"})])
    listed.unlink()
    inbox.keywords.refresh()
    assert inbox.keywords.by_letter == {}


def test_dovecot_notices_each_change_by_the_seconds_of_the_mtime(inbox: Maildir, listed: Path) -> None:
    times = []
    for keyword in ("one", "two", "three"):
        inbox.keywords.assign([frozenset({keyword})])
        times.append(int(listed.stat().st_mtime))
    assert times[0] < times[1] < times[2]


def test_after_the_letters_are_used_up_keywords_stay_out_of_names(inbox: Maildir, listed: Path) -> None:
    many = frozenset(f"k{number:02}" for number in range(30))
    assert inbox.unrepresentable(many) == {"k26", "k27", "k28", "k29"}
    assert not listed.exists()  # asking writes nothing
    inbox.keywords.assign([many])
    assert len(listed.read_bytes().splitlines()) == 26
    assert inbox.unrepresentable(many | {"\\Seen"}) == {"k26", "k27", "k28", "k29"}
    assert inbox.unrepresentable(frozenset({"K03", "other"})) == {"other"}
    before = listed.stat().st_mtime_ns
    inbox.keywords.assign([many])
    assert listed.stat().st_mtime_ns == before


@pytest.mark.parametrize("keyword", ["two words", "line\nend", "nul\x00", "\ud800", "x" * 256, "tab\t"])
def test_what_cannot_stand_in_the_list_stays_out_of_it(inbox: Maildir, listed: Path, keyword: str) -> None:
    inbox.keywords.assign([frozenset({keyword, "fine"})])
    assert listed.read_bytes() == b"0 fine\n"
    assert inbox.unrepresentable(frozenset({keyword, "fine"})) == {keyword}


def test_one_keyword_in_two_spellings_gets_one_letter(inbox: Maildir, listed: Path) -> None:
    inbox.keywords.assign([frozenset({"Work", "WORK", "work"})])
    assert len(listed.read_bytes().splitlines()) == 1
    assert inbox.unrepresentable(frozenset({"wOrK"})) == frozenset()


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_full_disk_changes_nothing(inbox: Maildir, listed: Path, fail: Fail, call: str) -> None:
    inbox.keywords.assign([frozenset({"Old"})])
    fail(call, errno.ENOSPC, times=1)
    with pytest.raises(OSError, match="No space left"):
        inbox.keywords.assign([frozenset({"New"})])
    assert listed.read_bytes() == b"0 Old\n"
    assert inbox.keywords.letters == {"old": "a"}
    inbox.keywords.assign([frozenset({"New"})])
    assert inbox.keywords.letters == {"old": "a", "new": "b"}


def test_a_symlink_in_place_of_the_list_is_refused(inbox: Maildir, listed: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"0 Secret\n")
    listed.symlink_to(tmp_path / "other")
    with pytest.raises(LocalError, match="symlink"):
        inbox.unrepresentable(frozenset({"x"}))
    listed.unlink()
    assert inbox.unrepresentable(frozenset({"x"})) == frozenset()
