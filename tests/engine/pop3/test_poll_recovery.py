"""A POP3 account after a crash, a lost state, a move to another server: nothing lost, doubled or retrieved twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from maild.local.state import State
from maild.testing.pop3 import ALL
from tests.engine.maildrop import DAY_S, PopWorld, disk_form, pop_world
from tests.engine.world import long_body, message


async def test_a_crash_between_file_and_pair(any_world: PopWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are there, as many as got so far, and the state knows nothing of them."""
    world = any_world
    raws = world.deliver(9)

    class Killed(BaseException):
        """What kill -9 is to the code."""

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(State, "apply", killed)
        with pytest.raises(BaseExceptionGroup) as caught:
            await world.poll()
        assert caught.group_contains(Killed)
    await world.server.unlocked()
    left = len(world.paths())
    assert left > 0
    assert world.sql("SELECT count(*) FROM pairs") == [(0,)]
    world.commands()
    report = await world.polled()
    assert (report.total("pulled"), report.total("adopted")) == (9 - left, left)
    if "TOP" in world.server.capabilities:
        assert world.counted()["RETR"] == 9 - left
    assert world.on_disk(tmp=True) == disk_form(raws)
    assert (await world.polled()).total("pulled") == 0


async def test_the_state_is_lost(any_world: PopWorld) -> None:
    world = any_world
    raws = world.deliver(9)
    await world.polled()
    world.path_of(4).rename(world.root / "INBOX" / "cur" / f"{world.path_of(4).name}:2,S")
    world.lose_state()
    world.commands()
    report = await world.polled()
    assert (report.total("pulled"), report.total("adopted")) == (0, 9)
    if "TOP" in world.server.capabilities:
        assert world.counted()["RETR"] == 0
    assert world.on_disk() == disk_form(raws)


async def test_equal_messages_stay_as_many_as_they_are(any_world: PopWorld) -> None:
    world = any_world
    for n in (1, 1, 2, 1, 2):
        world.server.deliver(message(n, message_id=""))
    await world.polled()
    assert sum(world.on_disk().values()) == 5
    await world.polled()
    world.lose_state()
    await world.polled()
    await world.polled()
    assert sum(world.on_disk().values()) == 5


async def test_a_maildir_restored_from_a_backup(world: PopWorld) -> None:
    """What is in it is matched, what is not comes again, and nothing is deleted because of it."""
    world.settings(delete_with_local=True)
    raws = world.deliver(4)
    await world.polled()
    backup = {path: path.read_bytes() for path in world.root.rglob("*") if path.is_file()}
    raws += world.deliver(3, start=10)
    await world.polled()
    for path in world.paths():
        path.unlink()
    for path, octets in backup.items():
        path.write_bytes(octets)
    report = await world.polled()
    assert (report.total("pulled"), report.total("adopted"), report.total("deleted_there")) == (3, 4, 0)
    assert world.on_disk() == disk_form(raws)
    assert len(world.server.messages) == 7


def renumbered(world: PopWorld) -> None:
    """The provider has a new server: the same messages, in another order, by other unique-ids."""
    world.server.messages.reverse()
    for n, kept in enumerate(world.server.messages):
        kept.uid = f"new-{n}"


async def test_all_unique_ids_change(world: PopWorld) -> None:
    """Nothing comes twice, nothing removed or moved comes back, and nothing is deleted for a day."""
    world.settings(delete_with_local=True, leave_on_server=int(7 * DAY_S))
    raws = world.deliver(12)
    await world.polled()
    world.now_s += 5 * DAY_S
    await world.polled()
    archive = world.make_mailbox("Archive")
    world.path_of(3).rename(archive / "new" / world.path_of(3).name)
    world.path_of(5).unlink()
    renumbered(world)
    new = world.deliver(1, start=100)
    world.commands()
    report = await world.poll()
    assert (report.total("pulled"), report.total("adopted"), report.total("deleted_there")) == (1, 12, 0)
    assert report.total("refused") == 1
    assert world.counted()["RETR"] == 1
    assert world.on_disk() == disk_form([raw for n, raw in enumerate([*raws, *new], 1) if n not in (3, 5)])
    world.now_s += DAY_S / 2
    assert (await world.poll()).total("deleted_there") == 0
    world.now_s += DAY_S / 2 + 1
    assert (await world.polled()).total("deleted_there") == 1
    world.now_s += DAY_S
    assert (await world.polled()).total("deleted_there") == 11
    assert list(world.on_server()) == new


async def test_a_big_message_is_known_by_its_header_too(world: PopWorld) -> None:
    """The one that it would cost most to fetch again."""
    raw = message(1, body=long_body())
    world.server.deliver(raw)
    await world.polled()
    renumbered(world)
    world.commands()
    report = await world.polled()
    assert (report.total("pulled"), report.total("adopted"), world.counted()["RETR"]) == (0, 1, 0)
    assert world.on_disk() == disk_form([raw])


async def test_the_user_knows_that_it_is_the_same_server(world: PopWorld) -> None:
    world.settings(delete_with_local=True)
    world.deliver(12)
    await world.polled()
    world.path_of(5).unlink()
    renumbered(world)
    assert (await world.poll()).total("refused") == 1
    assert (await world.poll()).total("refused") == 1
    state = State.open(world.state_dir / "isp.sqlite")
    (mailbox,) = state.mailboxes().values()
    assert state.approve(mailbox.id)
    state.close()
    assert (await world.polled()).total("deleted_there") == 1


async def test_all_unique_ids_change_where_no_headers_are_to_be_had(tmp_path: Path) -> None:
    """Then the content tells, once it has come."""
    async with pop_world(tmp_path, ALL - {"TOP"}) as world:
        raws = world.deliver(8)
        await world.polled()
        world.path_of(5).unlink()
        renumbered(world)
        report = await world.polled()
        assert (report.total("pulled"), report.total("adopted")) == (0, 8)
        assert world.on_disk() == disk_form([raw for n, raw in enumerate(raws, 1) if n != 5])


async def test_another_server_with_the_same_unique_ids(world: PopWorld, tmp_path: Path) -> None:
    """They mean other messages: all of those come, and none is deleted for one that is here."""
    raws = world.deliver(5)
    await world.polled()
    world.settings(user="me2", leave_on_server=False)
    world.server._policy.users["me2"] = world.server._policy.users[world.account.address]
    kept = world.server.messages[0].raw
    for n, lying in enumerate(world.server.messages[1:], 60):
        lying.raw = message(n)
    report = await world.poll()
    assert (report.total("pulled"), report.total("adopted")) == (4, 1)
    assert world.on_disk() == disk_form([*raws, *(message(n) for n in range(60, 64))])
    assert kept in [lying.raw for lying in world.server.messages]


async def test_a_server_that_lists_nothing_for_a_while(any_world: PopWorld) -> None:
    """Its disk was not mounted: when it is, nothing comes twice."""
    world = any_world
    raws = world.deliver(8)
    await world.polled()
    (world.path_of(2)).unlink()
    lying, world.server._policy.messages = world.server._policy.messages, []
    for _ in range(2):
        world.now_s += DAY_S
        await world.polled()
    world.server._policy.messages = lying
    assert (await world.polled()).total("pulled") == 0
    assert world.on_disk() == disk_form([raw for n, raw in enumerate(raws, 1) if n != 2])


async def test_what_is_gone_for_long_is_forgotten(world: PopWorld) -> None:
    world.deliver(3)
    await world.polled()
    del world.server.messages[0]
    await world.polled()
    assert world.sql("SELECT count(*) FROM maildrop") == [(3,)]
    world.now_s += 31 * DAY_S
    await world.polled()
    assert world.sql("SELECT count(*) FROM maildrop") == [(2,)]
    assert world.sql("SELECT count(*) FROM pairs") == [(2,)]
    assert len(world.paths()) == 3


@pytest.mark.parametrize("uids", [["x", "x", "x", "y"], ["", "", "a", "b"], ["\x01", "é", "../../x", "z" * 600]])
async def test_unique_ids_that_are_none(any_world: PopWorld, uids: list[str]) -> None:
    world = any_world
    raws = world.deliver(4)
    for kept, uid in zip(world.server.messages, uids, strict=True):
        kept.uid = uid
    assert (await world.polled()).total("pulled") == 4
    for _ in range(2):
        assert (await world.polled()).total("pulled") == 0
    assert world.on_disk() == disk_form(raws)
    world.settings(leave_on_server=False)
    assert (await world.polled()).total("deleted_there") == 4
    assert world.server.messages == []


async def test_a_unique_id_becomes_ambiguous(world: PopWorld) -> None:
    """Another message gets the one that a known message has."""
    raws = world.deliver(3)
    await world.polled()
    world.server.deliver(message(50), uid=world.server.messages[0].uid)
    for _ in range(3):
        await world.polled()
    assert world.on_disk() == disk_form([*raws, message(50)])
