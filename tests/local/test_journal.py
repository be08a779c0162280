"""The journal of what is in hand: durable with one sync, read back whole or up to where it was torn, short again."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from maild.core import outgoing
from maild.core.errors import LocalError
from maild.core.outgoing import Item, Notices, Recipient, Reply, Verdict
from maild.local import journal
from maild.local.itemfile import load
from maild.local.journal import NAME, Journal, read
from maild.local.outbox import ItemBusy, Outbox
from tests.local.conftest import Fail
from tests.local.test_outbox import TEXT, claim, item

LATER = Verdict.of(Reply(451, "4.3.0 later"))
FULL = replace(
    item("a@x", 'quoted"\\@x'),
    id="1",
    subject='with "quotes"\n\x07\x85\u2028 and é\udcff',
    notices=Notices("NEVER", envid='"'),
    attempts=3,
    phase="body",
    uncertain_s=77,
    copy="begun",
    is_delay_told=True,
    is_doubt_mixed=True,
    recipients=(Recipient("a@x", "uncertain", "451 no\r\nx", True, True), Recipient("b@x", "held")),
)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Journal]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    made = Journal(descriptor)
    yield made
    made.close()
    os.close(descriptor)


def numbered(number: int, **changes: object) -> Item:
    return replace(FULL, id=str(number), **changes)  # type: ignore[arg-type]


def test_an_item_is_read_as_it_was_written(tmp_path: Path, writer: Journal) -> None:
    writer.note([FULL, item_two := numbered(2, phase="envelope")])
    writer.note([settled := replace(item_two, phase="")])
    assert read(tmp_path) == writer.held == {"1": FULL, "2": settled}
    writer.put_down(["1", "unknown"])
    assert read(tmp_path) == {"2": settled}


def test_what_a_newer_maild_wrote_is_read_as_far_as_it_is_known(tmp_path: Path, writer: Journal) -> None:
    writer.note([FULL])
    line = (tmp_path / NAME).read_bytes().partition(b" ")[2].rstrip(b"\n")
    line = line.replace(b'"phase":', b'"colour": "red", "phase":').replace(b'"reply":', b'"mood": 1, "reply":')
    (tmp_path / NAME).write_bytes(b"%08x %b\n" % (zlib.crc32(line), line))
    assert read(tmp_path) == {"1": FULL}


def rewritten(directory: Path, old: bytes, new: bytes) -> None:
    """A line of the journal as another version would have written it."""
    line = (directory / NAME).read_bytes().partition(b" ")[2].rstrip(b"\n")
    assert old in line
    line = line.replace(old, new)
    (directory / NAME).write_bytes(b"%08x %b\n" % (zlib.crc32(line), line))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"sender": "me@x", ', b"", "'sender'"),
        (b'"recipients": [', b'"people": [', "'recipients' is missing"),
        (b'"address": "a@x", ', b"", "'address'"),
        (b'"state": "held"', b'"state": "paused"', "'paused' is no state"),
        (b'"phase": "body"', b'"phase": "soul"', "phase"),
        (b'["1", {', b'["1", 7, {', "too many values"),
        (b'["1", {', b'["1", [], {', "too many values"),
        (b'["1", {', b'[["1"], {', "id"),
        (b"}]", b"", "delimiter"),
    ],
)
def test_a_line_of_another_version_says_where_and_what_to_do(
    tmp_path: Path, writer: Journal, old: bytes, new: bytes, reason: str
) -> None:
    writer.note([FULL])
    rewritten(tmp_path, old, new)
    with pytest.raises(LocalError, match=r"\.journal, line 1: .*another version") as caught:
        read(tmp_path)
    assert reason in caught.value.text
    assert "flush" in caught.value.hint
    assert "move the file away" in caught.value.hint


def test_fields_that_came_later_have_their_defaults(tmp_path: Path, writer: Journal) -> None:
    writer.note([FULL])
    rewritten(tmp_path, b'"is_doubt_mixed": true', b'"was_mixed": true')
    assert read(tmp_path) == {"1": replace(FULL, is_doubt_mixed=False)}


def test_torn_at_any_octet_it_tells_what_was_whole(tmp_path: Path, writer: Journal) -> None:
    states: list[tuple[int, dict[str, Item]]] = [(0, {})]
    for step in range(3):
        writer.note([numbered(step), numbered(7, attempts=step)])
        states.append(((tmp_path / NAME).stat().st_size, dict(writer.held)))
    writer.put_down(["0"])
    octets = (tmp_path / NAME).read_bytes()
    for length in range(len(octets)):
        (tmp_path / NAME).write_bytes(octets[:length] + b"\0" * (length % 3))
        durable = max((size, number) for number, (size, _) in enumerate(states) if size <= length)[1]
        found = read(tmp_path)
        assert all(found[key] == value or key == "7" for key, value in states[durable][1].items())
        assert found.keys() <= {"0", "1", "2", "7"}
    assert read(tmp_path / "nowhere") == {}


def test_one_sync_for_many(writer: Journal, fail: Fail) -> None:
    writer.note([numbered(0)])
    syncs = {name: fail(name, errno.EIO, after=1_000) for name in ("fsync", "fdatasync")}
    writer.note([numbered(number) for number in range(50)])
    assert {name: len(calls) for name, calls in syncs.items()} == {"fsync": 0, "fdatasync": 1}


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_after_an_error_a_new_file_holds_everything(tmp_path: Path, writer: Journal, fail: Fail, call: str) -> None:
    """What the old one has of the lines that failed is not known, and more must not follow a part of one.

    How far an item in hand has come is not forgotten; one that could not be taken in hand is not in hand.
    """
    writer.note([numbered(1)])
    fail(call, errno.ENOSPC, times=1)
    further = replace(numbered(1), attempts=7)
    with pytest.raises(OSError, match="No space"):
        writer.note([numbered(2), further])
    writer.note([numbered(3)])
    assert read(tmp_path) == writer.held
    assert writer.held == {"1": further, "3": numbered(3)}


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_what_could_not_be_put_down_is_put_down_later(tmp_path: Path, writer: Journal, fail: Fail, call: str) -> None:
    writer.note([numbered(1), numbered(2)])
    fail(call, errno.ENOSPC, times=1)
    with pytest.raises(OSError, match="No space"):
        writer.put_down(["1"])
    assert writer.held.keys() == {"1", "2"}
    writer.put_down(["1"])
    assert read(tmp_path).keys() == writer.held.keys() == {"2"}


def test_what_an_error_kept_from_it_is_told_at_the_end(tmp_path: Path, writer: Journal, fail: Fail) -> None:
    """The disk has room again when the drainer ends in good order: a verdict that it had got is not lost."""
    writer.note([numbered(1)])
    fail("write", errno.ENOSPC, times=1)
    further = replace(numbered(1), attempts=7)
    with pytest.raises(OSError, match="No space"):
        writer.note([further])
    writer.close()
    assert read(tmp_path) == {"1": further}


def test_it_is_short_again(tmp_path: Path, writer: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FULL_OCTETS", 5_000)
    writer.note([numbered(0)])
    for number in range(1, 100):
        writer.note([numbered(number)])
        writer.put_down([str(number)], are_gone=bool(number % 2))
        assert (tmp_path / NAME).stat().st_size <= 5_000
    still_told = {number for number in read(tmp_path) if int(number) % 2 == 0}  # the others have no `.toml`
    assert still_told == {"0"}
    writer.put_down(["0"])
    assert (tmp_path / NAME).stat().st_size == 0
    writer.close()
    assert list(tmp_path.iterdir()) == []


# -- as the outbox uses it


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "state")


def test_in_hand_until_it_is_recorded(outbox: Outbox) -> None:
    """Also when the attempt is over: what follows from it must not be overtaken by somebody's change."""
    accepted = outbox.accept(item(), TEXT)
    other = Outbox(outbox.path.parent)
    with outbox.draining():
        (claimed,) = claim(outbox, accepted.id)
        settled = outgoing.settled(outgoing.body_begun(claimed, {}), {"a@x.example": LATER}, 10)
        outbox.note([settled])
        assert outbox.is_in_hand(accepted.id)
        assert other.contents().items == outbox.contents().items == (settled,)
        with pytest.raises(ItemBusy):
            other.edit(accepted.id, outgoing.held)
        with pytest.raises(ItemBusy):
            outbox.edit(accepted.id, outgoing.held)
        outbox.record([settled])
        assert not outbox.is_in_hand(accepted.id)
        assert other.edit(accepted.id, outgoing.held).state == "held"
        assert outbox.contents().items[0].state == "held"
    assert not (outbox.path / NAME).exists()


def test_what_a_dead_drainer_had_in_hand_is_put_in_order(outbox: Outbox) -> None:
    accepted = [outbox.accept(item(name), TEXT) for name in ("a@x", "b@x", "c@x", "d@x")]
    with outbox.draining():
        first, second, third, fourth = claim(outbox, *(one.id for one in accepted))
        settled = outgoing.settled(third, {"c@x": LATER}, 10)
        outbox.note([outgoing.body_begun(second, {}), settled])
        outbox.remove([fourth.id])
    assert (outbox.path / NAME).exists()
    other = Outbox(outbox.path.parent)
    phases = {found.id: found.phase for found in other.contents().items}
    assert phases == {first.id: "envelope", second.id: "body", third.id: ""}
    assert other.edit(first.id, outgoing.held).state == "held"
    assert not (outbox.path / NAME).exists()
    assert {one.id: one.state for one in other.contents().items} == {
        first.id: "held",
        second.id: "uncertain",
        third.id: "deferred",
    }


def test_putting_it_in_order_reads_no_more_than_it_must(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both locks are held meanwhile, so a long queue must not make it long. What was removed does not come back."""
    accepted = [outbox.accept(item(), TEXT) for _ in range(30)]
    with outbox.draining():
        claim(outbox, *(one.id for one in accepted[:3]))
        outbox.remove([accepted[1].id])
    reads: list[str] = []
    monkeypatch.setattr(
        "maild.local.outbox.load", lambda item_id, octets: reads.append(item_id) or load(item_id, octets)
    )
    other = Outbox(outbox.path.parent)
    assert other.edit(accepted[0].id, outgoing.held).state == "held"
    assert set(reads) == {accepted[0].id}
    assert {one.id for one in other.contents().items} == {one.id for one in accepted} - {accepted[1].id}
    assert {one.phase for one in other.contents().items} == {""}


def test_only_the_drainer_has_a_journal(outbox: Outbox) -> None:
    accepted = outbox.accept(item(), TEXT)
    with pytest.raises(RuntimeError):
        outbox.note([accepted])
    assert not outbox.is_in_hand(accepted.id)


def test_a_disk_that_refuses_the_claim(outbox: Outbox, fail: Fail) -> None:
    accepted = outbox.accept(item(), TEXT)
    with outbox.draining():
        fail("rename", errno.ENOSPC, times=1)
        with pytest.raises(LocalError, match="disk is full"):
            claim(outbox, accepted.id)
    with outbox.draining():
        assert outbox.contents().items == (accepted,)
