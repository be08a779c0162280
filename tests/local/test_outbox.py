"""The spool: durable or not there, one hand at a time on an item, and whole after a crash at any step."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from maild.core import outgoing
from maild.core.errors import LocalError, StateBusy
from maild.core.outgoing import AS_USUAL, Item, Notices, Recipient, Reply, Verdict
from maild.local import lately
from maild.local import outbox as outbox_module
from maild.local.itemfile import ItemUnreadable, dump, load
from maild.local.outbox import ItemBusy, NoSuchItem, Outbox
from tests.local.conftest import Fail
from tests.local.crash import Crash, Machine, every_step
from tests.local.powercut import SyncedDisk

TEXT = b"Subject: hello\n\nthere\n"
NO = Verdict.of(Reply(550, "5.1.1 nobody"))


def item(*addresses: str) -> Item:
    recipients = tuple(Recipient(address) for address in addresses or ("a@x.example",))
    return Item(
        id="", account="work", sender="me@x", recipients=recipients, size_octets=9, created_s=5, since_s=5, next_s=5
    )


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "state")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncedDisk]:
    disk = SyncedDisk(monkeypatch, tmp_path)
    yield disk
    disk.close()


@pytest.fixture
def machine(disk: SyncedDisk, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def files(outbox: Outbox) -> list[str]:
    names = {path.name for path in outbox.path.rglob("*") if path.is_file()}
    return sorted(name for name in names if not name.endswith(".lock") and name != ".synced")


def claim(outbox: Outbox, *ids: str) -> list[Item]:
    return outbox.claim(ids, lambda found: outgoing.claimed(found, found.due(10)))


# -- accepting


def test_accepted_and_found_again(outbox: Outbox) -> None:
    accepted = outbox.accept(item("a@x", "b@x"), TEXT)
    assert outbox.contents().items == (accepted,)
    assert Outbox(outbox.path.parent).contents().items == (accepted,)
    assert outbox.text(accepted.id) == TEXT
    assert files(outbox) == [f"{accepted.id}.eml", f"{accepted.id}.toml"]
    assert {path.stat().st_mode & 0o077 for path in outbox.path.rglob("*")} == {0}


def test_file_and_directory_are_synced_before_it_is_accepted(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox.accept(item(), TEXT)
    steps: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename")}

    def fsync(descriptor: int) -> None:
        steps.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().suffix)
        real["fsync"](descriptor)

    def rename(source: str, target: str, **kwargs: int) -> None:
        steps.append("rename " + Path(target).suffix)
        real["rename"](source, target, **kwargs)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    outbox.accept(item(), TEXT)
    assert steps[0] == "sync .eml"
    assert steps[1].startswith("sync .")
    assert steps[2:] == ["rename .toml", "sync "]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize(
    ("call", "after"), [("write", 0), ("write", 1), ("fsync", 0), ("fsync", 1), ("fsync", 2), ("rename", 0)]
)
def test_a_disk_that_refuses_leaves_nothing(outbox: Outbox, fail: Fail, call: str, after: int, code: int) -> None:
    first = outbox.accept(item(), TEXT)
    fail(call, code, after=after, times=1)
    with pytest.raises(LocalError, match="cannot accept a message in"):
        outbox.accept(item(), TEXT)
    assert files(outbox) == [f"{first.id}.eml", f"{first.id}.toml"]


@pytest.mark.parametrize("end", ["killed", "power cut"])
def test_a_crash_at_any_step_of_accepting(tmp_path: Path, disk: SyncedDisk, machine: Machine, end: str) -> None:
    for steps in every_step(machine):
        (root := tmp_path / str(steps)).mkdir()
        outbox = Outbox(root / "state")
        accepted = None
        with machine.crashing_at(steps):
            try:
                accepted = outbox.accept(item(), TEXT)
            except Crash:
                assert machine.has_crashed
        if end == "power cut":
            disk.image(root, root := tmp_path / f"{steps} after")
        outbox = Outbox(root / "state")
        found = outbox.contents()
        assert not found.unreadable
        assert accepted is None or found.items == (accepted,)
        for whole in found.items:
            assert outbox.text(whole.id) == TEXT
    assert steps >= 8


def test_accepted_where_another_process_has_just_made_the_directory(tmp_path: Path, disk: SyncedDisk) -> None:
    """It was killed before it had synced what is above: that its directory is there does not mean that it stays."""
    (root := tmp_path / "root").mkdir()
    (root / "home" / "state" / "outbox").mkdir(parents=True)
    outbox = Outbox(root / "home" / "state")
    accepted = [outbox.accept(item(), TEXT), outbox.accept(item(), TEXT)]
    disk.image(root, tmp_path / "after")
    found = Outbox(tmp_path / "after" / "home" / "state").contents().items
    assert {one.id for one in found} == {one.id for one in accepted}


def test_what_is_above_is_synced_as_far_as_it_may_be_read(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def denied(path: str | Path, flags: int, *args: int, **kwargs: int) -> int:
        if str(path) == "/":
            raise PermissionError(errno.EACCES, "no")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)
    assert outbox.contents().items == ()
    assert outbox.accept(item(), TEXT).id


@pytest.mark.parametrize(("code", "is_refused"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_what_is_above_cannot_be_synced(outbox: Outbox, fail: Fail, code: int, is_refused: bool) -> None:
    outbox.path.mkdir(parents=True)
    fail("fsync", code, times=1)
    if is_refused:
        with pytest.raises(LocalError, match="kernel log"):
            outbox.accept(item(), TEXT)
    else:
        assert outbox.accept(item(), TEXT).id


def test_fifty_writers_and_a_drainer(outbox: Outbox) -> None:
    start = threading.Barrier(51)
    seen: list[Item] = []

    def write(number: int) -> str:
        start.wait()
        return outbox.accept(item(f"r{number}@x"), TEXT + b"%d\n" % number).id

    def drain() -> None:
        start.wait()
        deadline = time.monotonic() + 30
        while len(seen) < 50 and time.monotonic() < deadline:
            waiting = [found.id for found in outbox.contents().items if not found.phase]
            taken = claim(outbox, *waiting)
            assert all(outbox.text(found.id).startswith(TEXT) for found in taken)
            seen.extend(taken)

    with ThreadPoolExecutor(51) as threads, outbox.draining():
        drained = threads.submit(drain)
        ids = list(threads.map(write, range(50)))
        drained.result()
    assert sorted(found.id for found in seen) == sorted(ids)
    assert len(set(ids)) == 50


# -- reading


def test_an_item_survives_its_file() -> None:
    whole = replace(
        item("a@x", 'quoted"\\@x'),
        id="1",
        subject='with "quotes"\n\x07 and é',
        message_id="<x@y>",
        is_8bit=True,
        utf8="needed",
        notices=Notices("NEVER", envid='"'),
        attempts=3,
        phase="body",
        uncertain_s=77,
        copy="begun",
        is_delay_told=True,
        is_doubt_mixed=True,
        recipients=(Recipient("a@x", "uncertain", "451 no\r\nx", True, True), Recipient("b@x", "held")),
    )
    assert load("1", dump(whole)) == whole
    before = dump(replace(whole, notices=AS_USUAL))
    assert b"notices" not in before, "as an older maild wrote it"
    assert load("1", before).notices == AS_USUAL


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "half": lambda text: text[: len(text) // 2],
    "state": lambda text: text.replace(b"queued", b"flying"),
    "phase": lambda text: text.replace(b'phase = ""', b'phase = "x"'),
    "number": lambda text: text.replace(b"attempts = 0", b'attempts = "many"'),
    "text": lambda text: text.replace(b'account = "work"', b"account = 7"),
    "time": lambda text: text.replace(b"accepted = ", b"accepted = 1 #"),
    "notices": lambda text: b'notices = "x"\n' + text,
    "octets": lambda text: text + b"\xff",
    "nobody": lambda text: text[: text.index(b"recipients")] + b"recipients = []\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_and_harms_no_other(outbox: Outbox, damage: str) -> None:
    good, bad = outbox.accept(item(), TEXT), outbox.accept(item(), TEXT)
    path = outbox.path / f"{bad.id}.toml"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    found = outbox.contents()
    assert found.items == (good,)
    assert list(found.unreadable) == [bad.id]
    with pytest.raises(ItemUnreadable):
        load(bad.id, path.read_bytes())
    with outbox.draining():
        assert path.exists()


def test_a_file_that_cannot_be_read_holds_up_no_other(outbox: Outbox) -> None:
    """EISDIR, in place of a file that root has written, or a bad sector."""
    good, bad = outbox.accept(item(), TEXT), outbox.accept(item(), TEXT)
    path = outbox.path / f"{bad.id}.toml"
    path.unlink()
    path.mkdir()
    with outbox.draining():
        assert [one.id for one in claim(outbox, good.id)] == [good.id]
    found = outbox.contents()
    assert [one.id for one in found.items] == [good.id]
    assert found.unreadable == {bad.id: f"{bad.id}.toml: Is a directory"}
    assert outbox.has_text(bad.id)


def test_too_many_open_files_are_no_fault_of_the_items(outbox: Outbox, fail: Fail) -> None:
    outbox.accept(item(), TEXT)
    fail("stat", errno.EMFILE)
    with pytest.raises(LocalError, match="too many open files: raise"):
        outbox.contents()


def test_an_id_may_be_cut_short(outbox: Outbox) -> None:
    one, two = outbox.accept(item(), TEXT), outbox.accept(item(), TEXT)
    assert outbox.find(one.id) == one
    different = next(n for n in range(len(one.id)) if one.id[n] != two.id[n])
    assert outbox.find(two.id[: different + 1]) == two
    with pytest.raises(NoSuchItem, match="more than one"):
        outbox.find("20")
    with pytest.raises(NoSuchItem, match="no message has the id 'x'"):
        outbox.find("x")


def test_changes_of_others_are_seen(outbox: Outbox) -> None:
    accepted = outbox.accept(item(), TEXT)
    assert outbox.contents().items[0].state == "queued"
    Outbox(outbox.path.parent).edit(accepted.id, outgoing.held)
    assert outbox.contents().items[0].state == "held"
    assert outbox.counts() == {"queued": 0, "held": 1, "deferred": 0, "uncertain": 0, "failed": 0}
    Outbox(outbox.path.parent).cancel(accepted.id)
    assert outbox.contents().items == ()
    assert files(outbox) == []


# -- one hand at a time


def test_what_is_being_submitted_cannot_be_changed(outbox: Outbox) -> None:
    accepted = outbox.accept(item(), TEXT)
    other = Outbox(outbox.path.parent)
    with outbox.draining():
        (claimed,) = claim(outbox, accepted.id)
        assert claimed.phase == "envelope"
        for act in (lambda: other.edit(accepted.id, outgoing.held), lambda: other.cancel(accepted.id)):
            with pytest.raises(ItemBusy):
                act()
        assert claim(outbox, accepted.id) == []
        outbox.record([outgoing.unclaimed(claimed)])
        assert other.edit(accepted.id, outgoing.held).state == "held"
        assert outbox.claim([accepted.id], lambda found: found if found.due(10) else None) == []


@pytest.mark.parametrize("end", ["sent", "deferred"])
def test_an_attempt_that_ends_while_another_looks_at_it(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """What the other had read of it is no more; it would make a doubt of what is known, or bring back what is sent."""
    accepted = outbox.accept(item("a@x", "b@x"), TEXT)
    other = Outbox(outbox.path.parent)
    locked = outbox_module.locked
    with ExitStack() as draining:
        draining.enter_context(outbox.draining())
        (claimed,) = claim(outbox, accepted.id)
        begun = outgoing.body_begun(claimed, {})
        outbox.note([begun])

        def ended_meanwhile(descriptor: int) -> bool:
            verdicts = {"a@x": Verdict.of(Reply(250, "")), "b@x": Verdict.of(Reply(250 if end == "sent" else 451, ""))}
            settled = outgoing.settled(begun, verdicts, 10)
            outbox.note([settled])
            if end == "sent":
                outbox.remove([accepted.id])
            else:
                outbox.record([settled])
            draining.close()
            return locked(descriptor)

        monkeypatch.setattr(outbox_module, "locked", ended_meanwhile)
        if end == "sent":
            with pytest.raises(NoSuchItem):
                other.edit(accepted.id, outgoing.held)
            assert files(outbox) == []
        else:
            found = other.edit(accepted.id, outgoing.held)
            assert [recipient.state for recipient in found.recipients] == ["sent", "held"]


def test_what_cannot_be_read_can_be_cancelled(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = outbox.accept(item(), TEXT)
    outbox.edit(accepted.id, lambda found: replace(found, attempts=1))

    def text(_: Outbox, item_id: str) -> bytes:
        raise LocalError(f"cannot read {item_id}.eml: Input/output error")

    monkeypatch.setattr(Outbox, "text", text)
    began_s = int(time.time())
    outbox.cancel(accepted.id)
    assert outbox.contents().items == ()
    assert lately.read(outbox.path).since_s >= began_s  # it may look like any


def test_what_was_cancelled_is_not_claimed(outbox: Outbox) -> None:
    accepted = outbox.accept(item(), TEXT)
    Outbox(outbox.path.parent).cancel(accepted.id)
    with outbox.draining():
        assert claim(outbox, accepted.id) == []


def test_one_drainer(outbox: Outbox) -> None:
    other = Outbox(outbox.path.parent)
    with outbox.draining(), pytest.raises(StateBusy, match="another maild is submitting"), other.draining():
        pytest.fail("two drainers at once")
    with Outbox(outbox.path.parent).draining():
        pass


def test_when_a_drainer_is_gone_its_items_can_be_changed(outbox: Outbox) -> None:
    first, second = outbox.accept(item(), TEXT), outbox.accept(item("b@x"), TEXT)
    with outbox.draining():
        claim(outbox, first.id)
        (begun,) = claim(outbox, second.id)
        outbox.record([outgoing.body_begun(begun, {})])
    other = Outbox(outbox.path.parent)
    assert other.edit(first.id, outgoing.held).state == "held"
    assert other.edit(second.id, outgoing.held).state == "uncertain"


def test_a_new_drainer_puts_things_in_order(outbox: Outbox) -> None:
    first, second, third = (outbox.accept(item(name), TEXT) for name in ("a@x", "b@x", "c@x"))
    with outbox.draining():
        claim(outbox, first.id)
        (begun,) = claim(outbox, second.id)
        outbox.record([outgoing.body_begun(begun, {})])
        (failed,) = claim(outbox, third.id)
        outbox.record([outgoing.settled(failed, {"c@x": NO}, 10)])
    stale = outbox.path / "20200101-000000-00000000.eml"
    stale.write_bytes(b"half")
    os.utime(stale, (1, 1))
    fresh = outbox.path / "20200101-000000-00000001.eml"
    fresh.write_bytes(b"half")
    with outbox.draining():
        found = {waiting.id: waiting for waiting in outbox.contents().items}
        assert found[first.id] == first
        assert found[second.id].state == "uncertain"
        assert (outbox.path / "failed" / f"{third.id}.eml").read_bytes() == TEXT
        assert not stale.exists()
        assert fresh.exists()  # somebody may be writing it


def test_to_failed_and_back(outbox: Outbox) -> None:
    accepted = outbox.accept(item(), TEXT)
    failed = outbox.edit(accepted.id, lambda found: outgoing.settled(found, {"a@x.example": NO}, 10))
    assert failed.is_over
    assert files(outbox) == [f"{accepted.id}.eml", f"{accepted.id}.toml"]
    assert (outbox.path / "failed" / f"{accepted.id}.toml").exists()
    assert outbox.text(accepted.id) == TEXT
    assert outbox.counts()["failed"] == 1
    again = outbox.edit(accepted.id, lambda found: outgoing.retried(found, 20))
    assert again.state == "queued"
    assert (outbox.path / f"{accepted.id}.toml").exists()
    assert list((outbox.path / "failed").iterdir()) == []
    outbox.edit(accepted.id, lambda found: outgoing.settled(found, {"a@x.example": NO}, 10))
    outbox.cancel(accepted.id)
    assert files(outbox) == []


def test_an_item_that_a_power_cut_left_in_both_places_is_one(outbox: Outbox) -> None:
    """Two directories are not always written at one time."""
    failed, again = (outbox.accept(item(name), TEXT) for name in ("a@x", "b@x"))
    failed = outbox.edit(failed.id, lambda found: outgoing.settled(found, {"a@x": NO}, 10))
    for one, here, there in ((failed, "failed", ""), (again, "", "failed")):
        for suffix in (".eml", ".toml"):
            name = f"{one.id}{suffix}"
            (outbox.path / there / name).hardlink_to(outbox.path / here / name)
    with outbox.draining():
        assert {found.id for found in outbox.contents().items} == {failed.id, again.id}
    expected = [f"{one.id}{suffix}" for one in (failed, again) for suffix in (".eml", ".toml")]
    assert files(outbox) == sorted(expected)
    assert (outbox.path / "failed" / f"{failed.id}.toml").exists()


# -- crashes


@pytest.fixture(params=["record", "edit", "fail", "retry", "remove", "cancel"])
def act(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def carry_out(act: str, outbox: Outbox, one: Item, two: Item) -> None:
    failed = lambda found: outgoing.settled(found, {r.address: NO for r in found.recipients}, 10)  # noqa: E731
    match act:
        case "record":
            outbox.record([outgoing.held(one), outgoing.held(two)])
        case "edit":
            outbox.edit(one.id, outgoing.held)
        case "fail":
            outbox.edit(one.id, failed)
        case "retry":
            outbox.edit(two.id, lambda found: outgoing.retried(found, 20))
        case "remove":
            outbox.remove([one.id, two.id])
        case _:
            outbox.cancel(two.id)


@pytest.mark.parametrize("end", ["killed", "power cut"])
def test_a_crash_at_any_step_of_anything_else(
    tmp_path: Path, disk: SyncedDisk, machine: Machine, act: str, end: str
) -> None:
    """Each item is as before or as after, whole, with its message; a message without an item only after `remove`."""
    for steps in every_step(machine):
        (root := tmp_path / str(steps)).mkdir()
        outbox = Outbox(root / "state")
        one, two = outbox.accept(item("a@x"), TEXT), outbox.accept(item("b@x"), TEXT)
        two = outbox.edit(two.id, lambda found: outgoing.settled(found, {"b@x": NO}, 10)) if act != "record" else two
        with machine.crashing_at(steps):
            try:
                carry_out(act, outbox, one, two)
            except Crash:
                assert machine.has_crashed
        if end == "power cut":
            disk.image(root, root := tmp_path / f"{steps} after")
        after = Outbox(root / "state")
        with after.draining():
            found = after.contents()
            assert not found.unreadable
            for whole in found.items:
                assert after.text(whole.id) == TEXT
                place = after.path / "failed" if whole.is_over else after.path
                assert (place / f"{whole.id}.toml").exists()
                assert (place / f"{whole.id}.eml").exists()
            if act not in ("remove", "cancel"):
                assert {whole.id for whole in found.items} == {one.id, two.id}
    assert steps >= 2
