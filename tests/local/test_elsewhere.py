"""A message that a reader moved is found, by its key or by its content, and stands for one message only."""

from __future__ import annotations

import os
import time
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from maild.core.errors import LocalError
from maild.core.identity import fingerprint
from maild.core.model import Key
from maild.local.elsewhere import changed_since, find_elsewhere
from maild.local.maildir import Maildir

A, B = Key("1.a"), Key("1.b")


def put(root: Path, mailbox: str, name: str, octets: bytes = b"x") -> Path:
    path = root / mailbox / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(octets)
    return path


def test_by_key(tmp_path: Path) -> None:
    put(tmp_path, "Archive/2025", "cur/1.a:2,S")
    put(tmp_path, ".Other", "new/1.b")
    assert find_elsewhere(tmp_path, {A: None, B: None, Key("1.c"): None}, ()) == {A: A, B: B}


def test_by_content(tmp_path: Path) -> None:
    octets = b"A: b\n\nbody\n"
    put(tmp_path, "Archive", "cur/2.other:2,S", octets)
    put(tmp_path, "Archive", "cur/3.same-size:2,S", octets[:-2] + b"x\n")
    content = fingerprint(octets)
    assert find_elsewhere(tmp_path, {A: content}, ()) == {A: Key("2.other")}
    assert find_elsewhere(tmp_path, {A: content}, {Key("2.other")}) == {}
    assert len(find_elsewhere(tmp_path, {A: content, B: content}, ())) == 1
    put(tmp_path, "Archive", "new/1.b", octets)
    assert find_elsewhere(tmp_path, {A: content, B: content}, ()) == {A: Key("2.other"), B: B}


def test_only_what_is_a_message(tmp_path: Path) -> None:
    """Not in tmp, no dot file, no symlink, nothing outside, no FIFO that would hold us up."""
    octets = b"A: b\n\nbody\n"
    content = fingerprint(octets)
    put(tmp_path / "root", "X", "tmp/1.a", octets)
    put(tmp_path / "root", "X", "1.a", octets)
    put(tmp_path / "root", "X", "cur/.1.a", octets)
    outside = put(tmp_path / "outside", "Y", "cur/1.a", octets)
    (tmp_path / "root/X/cur/2.link").symlink_to(outside)
    (tmp_path / "root/Z").symlink_to(tmp_path / "outside/Y")
    os.mkfifo(tmp_path / "root/X/cur/3.fifo")
    assert find_elsewhere(tmp_path / "root", {A: content}, ()) == {}


@pytest.mark.parametrize("unreadable", ["Archive", "Archive/cur"])
def test_what_cannot_be_read_may_have_any_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    put(tmp_path, "Archive", "cur/1.a:2,S")
    original = os.scandir

    def scandir(path: Any) -> Any:
        if str(path) == str(tmp_path / unreadable):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(LocalError, match="Permission denied"):
        find_elsewhere(tmp_path, {A: None}, ())


def test_changed_since(tmp_path: Path) -> None:
    with Maildir.create(tmp_path, PurePosixPath("INBOX")) as maildir:
        put(tmp_path, "INBOX", "new/1.a")
        os.utime(tmp_path / "INBOX/new/1.a", (1, 1))  # the mail's own date says nothing
        entries = maildir.entries()
        assert changed_since(maildir, entries, time.time() - 60) == entries
        assert changed_since(maildir, entries, time.time() + 60) == {}
        (tmp_path / "INBOX/new/1.a").unlink()
        assert changed_since(maildir, entries, 0) == {}
