"""Letters of our own: in the mailbox once, whatever is cut off and begun again, and whatever readers do meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePosixPath

import pytest

from maild.core.errors import LocalError
from maild.core.model import Key
from maild.local.once import Letter, check_mounted, deliver_once, letter_key
from tests.local.conftest import Fail
from tests.local.crash import Crash, Machine, every_step

SENT = PurePosixPath("Sent")
LETTERS = [Letter(Key(f"5.{n}.sent.maild"), b"Subject: %d\n\n" % n, is_seen=bool(n % 2)) for n in range(3)]


def messages(root: Path) -> list[tuple[str, bytes]]:
    found = [path for subdir in ("new", "cur") for path in (root / SENT / subdir).glob("*")]
    return sorted((f"{path.parent.name}/{path.name}", path.read_bytes()) for path in found)


EXPECTED = [
    ("cur/5.1.sent.maild:2,S", b"Subject: 1\n\n"),
    ("new/5.0.sent.maild", b"Subject: 0\n\n"),
    ("new/5.2.sent.maild", b"Subject: 2\n\n"),
]


def again(letters: list[Letter]) -> list[Letter]:
    return [Letter(letter.key, letter.octets, letter.is_seen, may_be_there=True) for letter in letters]


def test_delivered(root: Path) -> None:
    deliver_once(root, SENT, LETTERS)
    assert messages(root) == EXPECTED
    assert list((root / SENT / "tmp").iterdir()) == []


def test_delivered_once_though_a_reader_changed_it(root: Path) -> None:
    deliver_once(root, SENT, LETTERS)
    (root / SENT / "new" / LETTERS[0].key).rename(root / SENT / "cur" / f"{LETTERS[0].key}:2,FRS")
    deliver_once(root, SENT, again(LETTERS))
    assert len(messages(root)) == 3


def test_a_file_is_the_letter_where_it_can_have_a_second_name(root: Path, tmp_path: Path) -> None:
    """Its time is that of the delivery, and a reader's flags on it stay."""
    source = tmp_path / "1.eml"
    source.write_bytes(b"Subject: x\n\n")
    os.utime(source, (1, 1))
    letter = Letter(Key("5.9.sent.maild"), source, is_seen=True)
    deliver_once(root, SENT, [letter, LETTERS[0]])
    delivered = root / SENT / "cur" / "5.9.sent.maild:2,S"
    assert delivered.samefile(source)
    assert delivered.stat().st_mtime > 1
    deliver_once(root, SENT, [letter])
    source.unlink()
    assert messages(root) == [("cur/5.9.sent.maild:2,S", b"Subject: x\n\n"), ("new/5.0.sent.maild", b"Subject: 0\n\n")]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_a_file_cannot_be_the_letter_it_is_copied(root: Path, tmp_path: Path, fail: Fail, code: int) -> None:
    source = tmp_path / "1.eml"
    source.write_bytes(b"Subject: x\n\n")
    fail("link", code)
    deliver_once(root, SENT, [Letter(Key("5.9.sent.maild"), source, is_seen=True)])
    assert messages(root) == [("cur/5.9.sent.maild:2,S", b"Subject: x\n\n")]
    assert not (root / SENT / "cur" / "5.9.sent.maild:2,S").samefile(source)


def test_a_link_that_a_full_disk_refuses_is_an_error(root: Path, tmp_path: Path, fail: Fail) -> None:
    source = tmp_path / "1.eml"
    source.write_bytes(b"Subject: x\n\n")
    fail("link", errno.ENOSPC)
    with pytest.raises(LocalError, match="disk is full"):
        deliver_once(root, SENT, [Letter(Key("5.9.sent.maild"), source, is_seen=True)])


def test_delivered_once_after_a_crash_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    for steps in every_step(machine):
        root = tmp_path / str(steps) / "Mail"
        with machine.crashing_at(steps):
            try:
                deliver_once(root, SENT, LETTERS)
            except Crash:
                assert machine.has_crashed
        deliver_once(root, SENT, again(LETTERS))
        assert messages(root) == EXPECTED
        assert list((root / SENT / "tmp").iterdir()) == []
    assert steps > 10


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk(root: Path, fail: Fail, call: str) -> None:
    deliver_once(root, SENT, [])
    fail(call, errno.ENOSPC)
    with pytest.raises(LocalError, match="disk is full"):
        deliver_once(root, SENT, LETTERS)


def test_the_name_of_a_letter_is_always_the_same() -> None:
    assert letter_key("20261125-1", 7, "sent") == letter_key("20261125-1", 7, "sent") == "7.20261125-1.sent.maild"


def test_a_maildir_that_is_not_mounted_is_not_made_anew(tmp_path: Path) -> None:
    root, state = tmp_path / "Mail" / "work", tmp_path / "work.sqlite"
    check_mounted(root, state)
    state.touch()
    root.mkdir(parents=True)
    with pytest.raises(LocalError, match="lost its marker file"):
        check_mounted(root, state)
    (root / ".maild").touch()
    check_mounted(root, state)
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(LocalError, match="leads nowhere"):
        check_mounted(dangling, state)
