"""Scanning: complete while readers rename, indifferent to what is no message."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from maild.core.model import Key
from maild.local.maildir import Maildir
from maild.local.scan import Entry


def put(maildir: Maildir, name: str, octets: bytes = b"message\n") -> Path:
    path = maildir.path / name
    path.write_bytes(octets)
    return path


def age(maildir: Maildir) -> None:
    """Let the directories look as if nobody had touched them for long."""
    for name in ("new", "cur"):
        os.utime(maildir.path / name, (1_000_000_000, 1_000_000_000))


def names(maildir: Maildir) -> set[str]:
    return {f"{entry.subdir}/{entry.name}" for entry in maildir.entries().values()}


def test_messages_are_listed_with_place_and_letters(inbox: Maildir) -> None:
    for name in ("new/1.a", "cur/2.a:2,", "cur/3.a:2,FS", "cur/4.a", "new/5.a:2,S", "cur/6.a,S=3:2,RS"):
        put(inbox, name)
    entries = inbox.entries()
    assert entries == {
        "1.a": Entry(Key("1.a"), "new", None),
        "2.a": Entry(Key("2.a"), "cur", ""),
        "3.a": Entry(Key("3.a"), "cur", "FS"),
        "4.a": Entry(Key("4.a"), "cur", None),
        "5.a": Entry(Key("5.a"), "new", "S"),
        "6.a,S=3": Entry(Key("6.a,S=3"), "cur", "RS"),
    }
    assert names(inbox) == {"new/1.a", "cur/2.a:2,", "cur/3.a:2,FS", "cur/4.a", "new/5.a:2,S", "cur/6.a,S=3:2,RS"}
    assert inbox.flags(entries[Key("3.a")]) == {"\\Flagged", "\\Seen"}
    assert inbox.flags(entries[Key("1.a")]) == frozenset()


def test_what_is_no_plain_file_is_no_message(inbox: Maildir) -> None:
    message = put(inbox, "cur/1.a:2,S")
    put(inbox, "cur/.hidden")
    put(inbox, "tmp/2.a")
    (inbox.path / "cur" / "3.a:2,").mkdir()
    (inbox.path / "new" / "4.a").symlink_to(message)
    os.mkfifo(inbox.path / "new" / "5.a")
    assert names(inbox) == {"cur/1.a:2,S"}
    assert inbox.locate({Key(f"{number}.a"): frozenset() for number in range(1, 6)}).keys() == {"1.a"}


def test_names_that_are_no_utf8_keep_their_octets(inbox: Maildir) -> None:
    put(inbox, os.fsdecode(b"cur/\xff\xe4.a:2,S"))
    (entry,) = inbox.entries().values()
    (moved,) = inbox.set_flags([(entry, frozenset({"\\Flagged"}))]).values()
    assert [os.fsencode(path.name) for path in (inbox.path / "cur").iterdir()] == [b"\xff\xe4.a:2,F"]
    assert inbox.remove([moved]) == {entry.key}


@pytest.mark.parametrize(
    ("files", "winner"),
    [
        (["new/1.a", "cur/1.a:2,S"], "cur/1.a:2,S"),
        (["cur/1.a:2,S", "cur/1.a:2,FS"], "cur/1.a:2,FS"),
        (["cur/1.a:2,F", "cur/1.a:2,S"], "cur/1.a:2,F"),
        (["cur/1.a", "cur/1.a:2,"], "cur/1.a"),
        (["cur/1.a", "cur/1.a:2,", "new/1.a", "cur/1.a:2,S"], "cur/1.a:2,S"),
    ],
)
def test_of_files_with_one_key_the_same_one_counts_always(inbox: Maildir, files: list[str], winner: str) -> None:
    for file in files:
        put(inbox, file)
    age(inbox)
    assert names(inbox) == {winner}
    losers = {f"{entry.subdir}/{entry.name}" for entry in inbox.duplicates}
    assert losers == set(files) - {winner}


Scandir = Callable[[int], Any]


@contextmanager
def scandir_with(
    monkeypatch: pytest.MonkeyPatch, replacement: Callable[[Scandir, int], Iterator[Any]]
) -> Iterator[None]:
    """Let `replacement` stand between the scan and the directory."""
    real = os.scandir

    @contextmanager
    def scandir(descriptor: int) -> Iterator[Iterator[Any]]:
        yield replacement(real, descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        yield


def test_a_message_on_its_way_from_new_to_cur_is_not_missed(inbox: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    put(inbox, "new/1.a")
    age(inbox)
    reads: list[list[str]] = []

    def reader_moves_it(real: Scandir, descriptor: int) -> Iterator[Any]:
        """As a mail reader does between our reading of `new` and that of `cur`."""
        items = list(real(descriptor))
        reads.append([item.name for item in items])
        if len(reads) == 1:
            (inbox.path / "new" / "1.a").rename(inbox.path / "cur" / "1.a:2,S")
        return iter(items)

    with scandir_with(monkeypatch, reader_moves_it):
        assert names(inbox) == {"cur/1.a:2,S"}
    assert reads[:2] == [["1.a"], ["1.a:2,S"]]


def test_a_message_that_readdir_missed_because_it_was_renamed_is_found(
    inbox: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(inbox, "cur/1.a:2,")
    put(inbox, "cur/2.a:2,")
    age(inbox)
    reads: list[int] = []

    def reader_flags_it(real: Scandir, descriptor: int) -> Iterator[Any]:
        """POSIX lets readdir leave out a file that is renamed while the directory is read."""
        items = list(real(descriptor))
        reads.append(descriptor)
        if len(reads) == 2:
            (inbox.path / "cur" / "1.a:2,").rename(inbox.path / "cur" / "1.a:2,S")
            items = [item for item in items if item.name != "1.a:2,"]
        return iter(items)

    with scandir_with(monkeypatch, reader_flags_it):
        assert names(inbox) == {"cur/1.a:2,S", "cur/2.a:2,"}


def test_what_only_an_earlier_reading_saw_is_not_lost(inbox: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two messages, each missed once: the first by the first reading of `cur`, the second by all others."""
    put(inbox, "cur/1.a:2,")
    put(inbox, "cur/2.a:2,")
    age(inbox)
    reads: list[int] = []

    def reader_is_busy(real: Scandir, descriptor: int) -> Iterator[Any]:
        items = list(real(descriptor))
        reads.append(descriptor)
        if len(reads) % 2 == 0:
            missed = "1.a" if len(reads) == 2 else "2.a"
            for item in items:
                if item.name.startswith(missed):
                    (inbox.path / "cur" / item.name).rename(inbox.path / "cur" / f"{missed}:2,{'S' * len(reads)}")
            items = [item for item in items if not item.name.startswith(missed)]
        return iter(items)

    with scandir_with(monkeypatch, reader_is_busy):
        assert inbox.entries().keys() == {"1.a", "2.a"}


def test_a_directory_changed_a_moment_ago_is_read_again_and_an_old_one_is_not(
    inbox: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    def counted(real: Scandir, descriptor: int) -> Iterator[Any]:
        reads.append(descriptor)
        return iter(list(real(descriptor)))

    put(inbox, "new/1.a")
    now = (inbox.path / "new").stat().st_mtime_ns + 10**15
    os.utime(inbox.path / "new", ns=(now, now))  # whatever the clock says, this is not in the past
    with scandir_with(monkeypatch, counted):
        inbox.entries()
        assert len(reads) == 6
        age(inbox)
        reads.clear()
        inbox.entries()
        assert len(reads) == 2


def test_two_scans_at_a_time_do_not_disturb_each_other(inbox: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        put(inbox, f"cur/{number}.a:2,")
    age(inbox)
    inner: list[set[str]] = []

    def scanning_within(real: Scandir, descriptor: int) -> Iterator[Any]:
        for position, item in enumerate(real(descriptor)):
            if position == 25 and not inner:
                inner.append(set())
                inner[0] = names(inbox)
            yield item

    with scandir_with(monkeypatch, scanning_within):
        assert len(names(inbox)) == 50
    assert len(inner[0]) == 50


def test_few_messages_are_found_by_guessing(inbox: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox.keywords.assign([frozenset({"Work"})])
    for name in ("new/1.a", "cur/2.a:2,", "cur/3.a:2,FSa"):
        put(inbox, name)

    def unread(_real: Scandir, _descriptor: int) -> Iterator[Any]:
        raise AssertionError("the directory was read")

    with scandir_with(monkeypatch, unread):
        found = inbox.locate(
            {
                Key("1.a"): frozenset(),
                Key("2.a"): frozenset(),
                Key("3.a"): frozenset({"WORK", "\\Seen", "\\Flagged"}),
            }
        )
    assert {entry.name for entry in found.values()} == {"1.a", "2.a:2,", "3.a:2,FSa"}


def test_a_wrong_guess_is_made_good_by_reading(inbox: Maildir) -> None:
    put(inbox, "cur/1.a:2,RS")
    put(inbox, "new/2.a")
    found = inbox.locate(
        {Key("1.a"): frozenset({"\\Seen"}), Key("2.a"): frozenset({"\\Seen"}), Key("3.a"): frozenset()}
    )
    assert found == {
        "1.a": Entry(Key("1.a"), "cur", "RS"),
        "2.a": Entry(Key("2.a"), "new", None),
    }
    assert inbox.locate({}) == {}


def test_a_letter_that_was_listed_just_now_is_understood(inbox: Maildir) -> None:
    inbox.entries()
    (inbox.path / "dovecot-keywords").write_bytes(b"0 Work\n")
    put(inbox, "cur/1.a:2,a")
    (entry,) = inbox.entries().values()
    assert inbox.flags(entry) == {"Work"}
