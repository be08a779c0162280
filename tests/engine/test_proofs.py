"""What a server says at the wrong moment, or of what nobody asked, changes nothing here."""

from __future__ import annotations

import pytest

from maild.testing.faults import Inject, Rewrite
from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.engine.world import PASSWORD, USER, World, message

TUID = b"X-TUID: nK1/bEkS2zPx\n"


def bodies(world: World) -> list[str]:
    return [command for command in world.commands() if "BODY.PEEK[]" in command]


@pytest.mark.parametrize("extra", [b"* VANISHED 3\r\n* OK [CLOSED] bye\r\n", b"* VANISHED 3\r\n"])
async def test_what_vanished_from_another_mailbox_deletes_nothing(world: World, extra: bytes) -> None:
    world.store.create("Zzz")
    world.deliver(5)
    world.deliver(5, "Zzz", start=20)
    world.settings(connections=1)
    await world.sync()
    world.deliver(1, start=9)
    world.deliver(1, "Zzz", start=30)
    world.server.faults.add("SELECT", Inject(extra), times=None)
    report = await world.sync()
    assert report.total("deleted") == 0
    assert report.total("pulled") == 2
    world.server.faults.clear()
    world.assert_equal()


@pytest.mark.parametrize("uid", [1, 77])
async def test_a_body_that_nobody_asked_for_is_not_delivered(world: World, uid: int) -> None:
    world.deliver(3)
    await world.sync()
    world.deliver(1, start=9)
    forged = b"* 1 FETCH (UID %d FLAGS () BODY[] {18}\r\nSubject: forged\r\n\r\n)\r\n".replace(b"{18}", b"{19}") % uid

    def slip_in(response: bytes) -> bytes:
        return forged + response if b"BODY[]" in response else response

    world.server.faults.add("UID FETCH", Rewrite(slip_in), times=None)
    report = await world.sync()
    assert report.ok
    assert report.total("pulled") == 1
    world.server.faults.clear()
    await world.synced()
    world.assert_equal()


@pytest.mark.parametrize("told", [1, 999])
async def test_facts_that_nobody_asked_for_adopt_nothing(world: World, told: int) -> None:
    """Neither of a message that is not there, nor of one that has its pair already."""
    world.deliver(1)
    await world.synced()
    world.write_foreign(2, message(2).replace(b"\r\n", b"\n"))
    world.deliver(1, start=2)

    def renamed(response: bytes) -> bytes:
        return response.replace(b"UID 2 ", b"UID %d " % told) if b"HEADER.FIELDS" in response else response

    fault = world.server.faults.add("UID FETCH", Rewrite(renamed), times=None)
    report = await world.synced()
    assert fault.struck.is_set()
    assert report.total("adopted") == 1, "told apart by the content"
    assert [seen.raw for seen in world.on_disk("INBOX")] == [seen.raw for seen in world.on_server("INBOX")]
    assert len(world.store.mailbox("INBOX")) == 2
    await world.settled()


@pytest.mark.parametrize("on_server", [False, True])
async def test_a_maildir_that_mbsync_filled_is_not_fetched_again(world: World, on_server: bool) -> None:
    for n in range(1, 6):
        raw = message(n)
        head, _, rest = raw.partition(b"\r\n")
        marked = head + b"\r\n" + TUID.replace(b"\n", b"\r\n") + rest
        world.store.deliver("INBOX", marked if on_server else raw)
        world.write_foreign(n, marked.replace(b"\r\n", b"\n"))
    report = await world.sync()
    assert report.total("adopted") == 5
    assert bodies(world) == []
    assert len(world.files()) == 5


async def test_another_separator_moves_nothing(world: World) -> None:
    world.store.create("Work")
    world.store.create("Work/A")
    world.deliver(3, "Work/A")
    await world.sync()
    before = world.snapshot()
    moved = Store(separator=".")
    moved.create("Work")
    moved.create("Work.A")
    for found in world.store.mailbox("Work/A").messages:
        moved.deliver("Work.A", found.raw, found.flags, found.date_s)
    async with ImapServer(moved, {USER: PASSWORD}, capabilities=ALL) as server:
        world.settings(port=server.port)
        report = await world.sync()
        assert report.ok, report.first_error()
        assert (report.total("pulled"), report.total("pushed"), report.total("deleted")) == (0, 0, 0)
        assert {path.parent for path in world.root.rglob("cur")} == {
            world.directory(name) for name in ("INBOX", "Work", "Work/A")
        }
        assert server.mutations == []
        assert not any("BODY.PEEK[]" in command for command in server.journal)
    assert {name for name in world.snapshot() if "/A/" in name} == {name for name in before if "/A/" in name}


async def test_keywords_and_names_that_are_no_text(world: World) -> None:
    world.deliver(2)
    world.server.faults.add("LIST", Rewrite(lambda r: b'* LIST () "/" "caf\xe9"\r\n' + r), times=None)
    world.server.faults.add("UID FETCH", Rewrite(lambda r: r.replace(b"FLAGS (", b"FLAGS (caf\xe9 ")), times=None)
    report = await world.sync()
    assert report.error is None
    assert report.mailboxes["INBOX"].pulled == 2
    assert [m.error for m in report.mailboxes.values() if m.state == "error"] == [
        "its name is neither UTF-8 nor modified UTF-7"
    ]
