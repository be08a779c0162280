"""Delivery in two stages: complete, durable, in this order; nothing half-written when a step fails or maild dies."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.errors import LocalError, Retry, Scope
from maild.core.identity import PIECE_OCTETS, canonical, digest
from maild.core.model import Flags, Uid
from maild.core.names import MailboxUnusable
from maild.local.delivery import Delivered, DeliveryFailed, Incoming, stage
from maild.local.maildir import Maildir
from maild.local.spool import Spool
from tests.local.conftest import Fail

DATE_S = 1_000_000_000
SEEN: Flags = frozenset({"\\Seen"})


def wire(number: int) -> bytes:
    return b"Subject: %d\r\n\r\nbody\rof %d\r\n" % (number, number)


def batch(maildir: Maildir, count: int = 4) -> list[Incoming]:
    """Every other message seen."""
    flags = (frozenset(), SEEN)
    return [
        Incoming(maildir, Uid(str(number)), flags[number % 2], DATE_S + number, wire(number)) for number in range(count)
    ]


def spooled(maildir: Maildir, octets: bytes, pieces: int = 1) -> Spool:
    spool = maildir.spool(len(octets))
    step = max(1, -(-len(octets) // pieces))
    for start in range(0, len(octets), step):
        spool.write(memoryview(octets)[start : start + step])
    return spool


def listing(maildir: Maildir, subdir: str) -> list[Path]:
    return sorted((maildir.path / subdir).iterdir())


def visible(maildir: Maildir) -> list[bytes]:
    return sorted(path.read_bytes() for subdir in ("new", "cur") for path in listing(maildir, subdir))


@pytest.mark.parametrize("before", [PIECE_OCTETS - 1, PIECE_OCTETS, 2 * PIECE_OCTETS - 2])
def test_a_message_that_is_written_in_pieces_keeps_every_octet(inbox: Maildir, before: int) -> None:
    octets = bytearray((b"x: y\r\n\r\n" + before * b"a")[:before] + b"\r\n" + PIECE_OCTETS * b"b\r" + b"\n")
    (delivered,) = stage([Incoming(inbox, Uid("1"), frozenset(), DATE_S, octets)]).commit()
    assert delivered.path.read_bytes() == canonical(octets)
    assert (delivered.size_octets, delivered.digest) == (len(octets.translate(None, b"\r")), digest(octets))


def test_messages_arrive_with_flags_date_and_every_octet(inbox: Maildir) -> None:
    some = [
        Incoming(inbox, Uid("1"), frozenset(), DATE_S, wire(1)),
        Incoming(inbox, Uid("2"), frozenset({"\\Seen", "\\Flagged", "Work"}), 0, bytearray(wire(2))),
        Incoming(inbox, Uid("3"), SEEN, None, b"\x00\xff\r\r\n.\r\nno line end"),
        Incoming(inbox, Uid("4"), frozenset(), 1, b""),
    ]
    raws = [bytes(incoming.raw) for incoming in some if not isinstance(incoming.raw, Spool)]
    delivered = stage(some).commit()
    assert [one.incoming for one in delivered] == some
    assert all(incoming.raw == b"" for incoming in some)  # let go of
    entries = inbox.entries()
    assert [(entries[one.key].subdir, entries[one.key].letters) for one in delivered] == [
        ("new", None),
        ("cur", "FSa"),
        ("cur", "S"),
        ("new", None),
    ]
    for incoming, raw, one in zip(some, raws, delivered, strict=True):
        entry = entries[one.key]
        path = inbox.path / entry.subdir / entry.name
        assert path.read_bytes() == canonical(raw)
        assert one.digest == digest(raw)
        assert path.stat().st_mode & 0o777 == 0o600
        assert inbox.flags(entry) == incoming.flags
        if incoming.date_s is not None:
            assert path.stat().st_mtime == incoming.date_s
    assert [one.size_octets for one in delivered] == [len(canonical(wire(1))) - 1, len(canonical(wire(2))) - 1, 16, 0]
    assert listing(inbox, "tmp") == []


@given(st.binary(max_size=200))
def test_what_was_delivered_is_identified_again_from_the_file(octets: bytes) -> None:
    maildir = shared_maildir()
    (one,) = stage([Incoming(maildir, Uid("1"), frozenset(), None, octets)]).commit()
    entry = maildir.locate({one.key: frozenset()})[one.key]
    identity = maildir.identity(entry)
    assert identity is not None
    assert (identity.size_octets, identity.digest) == (one.size_octets, one.digest)


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"bc", b"\r\r"])).map(b"".join), st.integers(1, 20))
def test_a_spooled_message_is_the_same_however_it_was_cut(octets: bytes, pieces: int) -> None:
    maildir = shared_maildir()
    spool = spooled(maildir, octets, pieces)
    assert spool.size_octets == len(octets)
    whole, cut = stage(
        [Incoming(maildir, Uid("1"), SEEN, 1, octets), Incoming(maildir, Uid("2"), SEEN, 1, spool)]
    ).commit()
    assert (cut.size_octets, cut.digest) == (whole.size_octets, whole.digest)
    entries = maildir.locate({one.key: SEEN for one in (whole, cut)})
    first, second = ((maildir.path / "cur" / entries[one.key].name).read_bytes() for one in (whole, cut))
    assert first == second == canonical(octets)


_SHARED: list[Maildir] = []


def shared_maildir() -> Maildir:
    """One mailbox for all the examples of a property; a fixture cannot be used there."""
    return _SHARED[0]


@pytest.fixture(autouse=True, scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with Maildir.create(tmp_path_factory.mktemp("shared"), PurePosixPath("INBOX")) as maildir:
        _SHARED.append(maildir)
        yield
        _SHARED.clear()


@pytest.mark.parametrize("date_s", [-1, -(2**70), 2**33, 2**70])
def test_a_date_beyond_reason_does_not_stop_a_message(inbox: Maildir, date_s: int) -> None:
    stage([Incoming(inbox, Uid("1"), frozenset(), date_s, wire(1))]).commit()
    assert visible(inbox) == [canonical(wire(1))]


def test_an_empty_batch_is_delivered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: pytest.fail("nothing to sync"))
    assert stage([]).commit() == []


def test_a_batch_may_go_to_several_mailboxes(root: Path) -> None:
    with Maildir.create(root, PurePosixPath("A")) as one, Maildir.create(root, PurePosixPath("B")) as other:
        stage([*batch(one, 3), *batch(other, 2)]).commit()
        assert (len(visible(one)), len(visible(other))) == (3, 2)


def test_batches_overlap_in_two_threads(inbox: Maildir) -> None:
    """While one batch is made durable, the next one is written."""
    delivered: list[Delivered] = []
    first = stage(batch(inbox, 50))
    committing = threading.Thread(target=lambda: delivered.extend(first.commit()))
    committing.start()
    second = stage(batch(inbox, 50))
    committing.join()
    delivered.extend(second.commit())
    assert len({one.key for one in delivered}) == 100
    assert inbox.entries().keys() == {one.key for one in delivered}


class Recorder:
    """The system calls that matter for durability, as (call, file or directory), in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, maildir: Maildir) -> None:
        self.steps: list[tuple[str, Any]] = []
        self._lock = threading.Lock()
        self._names = {(maildir.path / name).stat().st_ino: name for name in ("new", "cur", "tmp")}
        self._real_fsync, self._real_rename, self._real_write = os.fsync, os.rename, os.write
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "rename", self.rename)
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor: int, octets: bytes) -> int:
        self._note("write", os.fstat(descriptor).st_ino)
        return self._real_write(descriptor, octets)

    def fsync(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        self._real_fsync(descriptor)
        self._note("fsync", self._names.get(inode, inode))

    def rename(self, name: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        inode = os.stat(name, dir_fd=src_dir_fd, follow_symlinks=False).st_ino
        self._note("rename", (inode, self._names[os.fstat(dst_dir_fd).st_ino]))
        self._real_rename(name, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def _note(self, call: str, what: Any) -> None:
        with self._lock:
            self.steps.append((call, what))


def test_files_are_synced_before_their_rename_and_directories_after(
    inbox: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [*batch(inbox, 20), Incoming(inbox, Uid("big"), SEEN, DATE_S, spooled(inbox, wire(99), 3))]
    recorder = Recorder(monkeypatch, inbox)
    staged = stage(some)
    assert {call for call, _ in recorder.steps} == {"write"}
    assert visible(inbox) == []
    recorder.steps.clear()
    staged.commit()
    steps = recorder.steps
    renames = [place for place, (call, _) in enumerate(steps) if call == "rename"]
    assert len(renames) == 21
    for place in renames:
        inode, target = steps[place][1]
        assert ("fsync", inode) in steps[:place]
        assert ("fsync", target) in steps[place:]
    assert [what for call, what in steps if call == "fsync" and isinstance(what, str)] in (
        ["cur", "new"],
        ["new", "cur"],
    )
    assert steps[-2][0] == steps[-1][0] == "fsync"


@pytest.mark.parametrize(
    ("call", "code"), [("open", errno.EMFILE), ("write", errno.ENOSPC), ("utime", errno.EIO), ("write", errno.EACCES)]
)
@pytest.mark.parametrize("after", [0, 2])
def test_a_failing_first_stage_leaves_nothing(inbox: Maildir, fail: Fail, call: str, code: int, after: int) -> None:
    spool = spooled(inbox, wire(9))
    before = len(list(Path("/proc/self/fd").iterdir()))
    fail(call, code, after=after, times=1)
    with pytest.raises(LocalError, match="cannot write a message to") as caught:
        stage([*batch(inbox), Incoming(inbox, Uid("9"), SEEN, None, spool)])
    assert isinstance(caught.value, MailboxUnusable) == (code == errno.EACCES)
    assert visible(inbox) == []
    assert listing(inbox, "tmp") == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1  # that of the spool
    assert len(stage(batch(inbox)).commit()) == 4  # there is room again


def test_a_keyword_that_cannot_be_listed_stops_the_batch(inbox: Maildir, fail: Fail) -> None:
    fail("fsync", errno.ENOSPC)
    with pytest.raises(LocalError, match=r"cannot list keywords in .*the disk is full"):
        stage([Incoming(inbox, Uid("1"), frozenset({"Work"}), None, wire(1))])
    assert listing(inbox, "tmp") == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("after", [0, 3])
def test_a_failing_sync_delivers_nothing_and_is_not_repeated(inbox: Maildir, fail: Fail, code: int, after: int) -> None:
    staged = stage(batch(inbox))
    synced = fail("fsync", code, after=after, times=1)
    with pytest.raises(DeliveryFailed, match="cannot deliver messages to") as caught:
        staged.commit()
    assert caught.value.delivered == []
    assert (caught.value.scope, caught.value.retry) == (Scope.ACCOUNT, Retry.LATER)
    assert visible(inbox) == []
    assert listing(inbox, "tmp") == []
    assert len(set(synced)) == len(synced) == 4  # each descriptor once


def test_a_failing_rename_delivers_the_rest(inbox: Maildir, fail: Fail) -> None:
    staged = stage(batch(inbox))
    fail("rename", errno.ENOSPC, after=1, times=1)
    with pytest.raises(DeliveryFailed, match="the disk is full") as caught:
        staged.commit()
    assert [one.incoming.uid for one in caught.value.delivered] == ["0", "2", "3"]
    assert inbox.entries().keys() == {one.key for one in caught.value.delivered}
    assert listing(inbox, "tmp") == []


def test_what_may_not_be_durable_is_not_reported_as_delivered(inbox: Maildir, fail: Fail) -> None:
    staged = stage(batch(inbox))
    fail("fsync", errno.EIO, after=4)
    with pytest.raises(DeliveryFailed) as caught:
        staged.commit()
    assert caught.value.delivered == []
    assert len(visible(inbox)) == 4  # complete all the same: the next pass finds them by content


def test_a_mailbox_removed_meanwhile_is_an_error(root: Path, inbox: Maildir) -> None:
    staged = stage(batch(inbox))
    for path in (inbox.path / "new", inbox.path / "cur"):
        path.rmdir()
    with pytest.raises(DeliveryFailed, match="No such file"):
        staged.commit()


def test_a_discarded_batch_leaves_nothing(inbox: Maildir) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    staged = stage([*batch(inbox), Incoming(inbox, Uid("9"), SEEN, None, spooled(inbox, wire(9)))])
    staged.discard()
    staged.discard()
    assert (visible(inbox), listing(inbox, "tmp")) == ([], [])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class Killed(BaseException):
    """maild is gone at this instant: nothing after it is executed."""


CALLS = ("open", "write", "utime", "fsync", "close", "rename", "unlink")


def killed_at(step: int, patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Die before system call number `step`, and before every later one. The result tells how many calls there were."""
    count = [0]
    lock = threading.Lock()

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with lock:
                count[0] += 1
                if count[0] > step:
                    raise Killed
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        patch.setattr(os, name, counting(getattr(os, name)))
    return lambda: count[0]


def test_killed_at_any_step_nothing_half_written_shows(inbox: Maildir, root: Path) -> None:
    complete = {canonical(wire(number)) for number in range(4)}
    with pytest.MonkeyPatch.context() as patch:
        calls = killed_at(1_000_000, patch)
        stage(batch(inbox)).commit()
    assert calls() == 4 * len(CALLS[:-1]) + 2  # for each message all but unlink; then two directories
    for step in range(calls()):
        with Maildir.create(root, PurePosixPath(f"box{step}")) as maildir:
            with pytest.MonkeyPatch.context() as patch:
                killed_at(step, patch)
                with pytest.raises(Killed):
                    stage(batch(maildir)).commit()
            assert set(visible(maildir)) <= complete
            stage(batch(maildir)).commit()  # the next run works beside what was left in tmp
            assert set(visible(maildir)) == complete
            left = len(listing(maildir, "tmp"))
            assert maildir.delete_stale_tmp(now_s=2**34) == left


def test_big_messages_are_refused_at_once_where_there_is_no_room(inbox: Maildir) -> None:
    with pytest.raises(LocalError, match=r"No space left .*for 4611686018427387904 octets; the disk is full"):
        inbox.spool(2**62)
    assert listing(inbox, "tmp") == []


def test_a_disk_that_fills_while_a_message_arrives(inbox: Maildir, fail: Fail) -> None:
    spool = inbox.spool(100)
    spool.write(memoryview(b"Subject: x\r\n"))
    fail("write", errno.ENOSPC)
    with pytest.raises(LocalError, match=r"cannot write a message to .*the disk is full"):
        spool.write(memoryview(b"more\r\n"))
    spool.discard()
    spool.discard()
    assert listing(inbox, "tmp") == []


def test_a_spool_takes_memory_that_is_reused(inbox: Maildir) -> None:
    spool = inbox.spool(8)
    buffer = bytearray(b"abc\r")
    spool.write(memoryview(buffer))
    buffer[:] = b"\ndef"
    spool.write(memoryview(buffer))
    stage([Incoming(inbox, Uid("1"), frozenset(), None, spool)]).commit()
    assert visible(inbox) == [b"abc\ndef"]
