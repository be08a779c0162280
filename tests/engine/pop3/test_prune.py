"""What a poll deletes on a POP3 server: only what is durable here, only what is due, and again after a lost QUIT."""

from __future__ import annotations

import pytest

from maild.testing.faults import Answer, Cut
from tests.engine.maildrop import DAY_S, PopWorld, disk_form
from tests.engine.world import message


async def test_nothing_is_left_on_the_server(any_world: PopWorld) -> None:
    world = any_world
    world.settings(leave_on_server=False)
    raws = world.deliver(12)
    report = await world.polled()
    assert (report.total("pulled"), report.total("deleted_there")) == (12, 12)
    assert world.server.messages == []
    raws += world.deliver(2, start=50)
    report = await world.polled()
    assert (report.total("pulled"), report.total("deleted_there")) == (2, 2)
    assert world.on_disk() == disk_form(raws)
    assert (await world.polled()).total("deleted_there") == 0


async def test_everything_is_left_on_the_server(any_world: PopWorld) -> None:
    world = any_world
    world.deliver(5)
    await world.polled()
    world.path_of(2).unlink()
    world.now_s += 10_000 * DAY_S
    await world.polled()
    assert len(world.server.messages) == 5
    assert world.counted()["DELE"] == 0
    assert len(world.paths()) == 4


async def test_age_counts_from_when_it_was_seen_first(any_world: PopWorld) -> None:
    world = any_world
    world.settings(leave_on_server=int(14 * DAY_S))
    first = world.deliver(3)
    await world.polled()
    world.now_s += 10 * DAY_S
    second = world.deliver(2, start=10)
    assert (await world.polled()).total("deleted_there") == 0
    world.now_s += 4 * DAY_S - 1
    assert (await world.polled()).total("deleted_there") == 0
    world.now_s += 1
    assert (await world.polled()).total("deleted_there") == 3
    assert list(world.on_server()) == second
    world.now_s += 10 * DAY_S
    assert (await world.polled()).total("deleted_there") == 2
    assert world.on_disk() == disk_form([*first, *second])


async def test_a_message_that_is_not_durable_is_not_deleted(world: PopWorld) -> None:
    """One that the server does not give stays there, the others go."""
    world.settings(leave_on_server=False)
    world.deliver(4)
    world.server.faults.add("RETR", Answer("-ERR [SYS/TEMP] later"), nth=3)
    await world.polled()
    assert [kept.uid for kept in world.server.messages] == ["uid000003"]
    await world.polled()
    assert world.server.messages == []
    assert len(world.paths()) == 4


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("DELE", Cut(after_octets=0)),
        ("DELE", Cut(before_tagged=True, reset=True)),
        ("QUIT", Cut(before_tagged=True)),
        ("QUIT", Cut(after_octets=2, reset=True)),
        ("QUIT", Answer("-ERR some of them could not be deleted")),
    ],
)
async def test_a_lost_quit(world: PopWorld, command: str, fault: Cut | Answer) -> None:
    """Nobody knows whether it was carried out: the next poll looks, and nothing comes twice or stays."""
    world.settings(leave_on_server=False)
    raws = world.deliver(6)
    world.server.faults.add(command, fault)
    report = await world.poll()
    assert not report.ok
    assert world.on_disk() == disk_form(raws)
    assert [row[0] is not None for row in world.sql("SELECT deletion_s FROM maildrop")] == [True] * 6
    await world.polled()
    assert world.server.messages == []
    assert world.sql("SELECT count(*) FROM maildrop") == [(0,)]
    raws += world.deliver(1, start=20)
    await world.polled()
    assert world.on_disk() == disk_form(raws)


async def test_a_lost_quit_whatever_the_server_can(any_world: PopWorld) -> None:
    world = any_world
    world.settings(leave_on_server=False)
    raws = world.deliver(6)
    world.server.faults.add("DELE", Cut(after_octets=0), nth=3)
    assert not (await world.poll()).ok
    assert (await world.polled()).total("pulled") == 0
    assert world.server.messages == []
    raws += world.deliver(6)
    assert (await world.polled()).total("pulled") == 6
    assert world.on_disk() == disk_form(raws)


async def test_a_deletion_is_written_down_before_it_is_asked_for(world: PopWorld) -> None:
    world.settings(leave_on_server=False)
    world.deliver(2)
    seen: list[object] = []
    noted = world.server.journal.append

    def note(line: str) -> None:
        if line.startswith("DELE"):
            seen.append(world.sql("SELECT count(*) FROM maildrop WHERE deletion_s IS NOT NULL"))
        noted(line)

    class Journal(list[str]):
        append = staticmethod(note)  # type: ignore[assignment]

    world.server.journal = Journal()
    await world.polled()
    assert seen == [[(2,)], [(2,)]]


async def test_a_dele_that_is_refused(world: PopWorld) -> None:
    world.settings(leave_on_server=False)
    world.deliver(3)
    world.server.faults.add("DELE", Answer("-ERR no"), nth=2)
    assert (await world.polled()).total("deleted_there") == 2
    assert len(world.server.messages) == 1
    assert (await world.polled()).total("deleted_there") == 1


async def test_a_unique_id_used_again_for_another_message_deletes_nothing(world: PopWorld) -> None:
    world.deliver(2)
    await world.polled()
    world.server.messages[1].raw = message(99, body="y" * 5000)
    world.settings(leave_on_server=False)
    await world.poll()
    assert list(world.on_server()) == [message(99, body="y" * 5000)]


# -- what the user removed


async def test_a_removed_file_does_not_come_back(any_world: PopWorld) -> None:
    world = any_world
    world.deliver(5)
    await world.polled()
    world.path_of(3).unlink()
    for _ in range(3):
        assert (await world.polled()).total("pulled") == 0
    assert len(world.paths()) == 4
    assert len(world.server.messages) == 5


async def test_a_removed_file_is_deleted_on_the_server(any_world: PopWorld) -> None:
    world = any_world
    world.settings(delete_with_local=True)
    raws = world.deliver(5)
    await world.polled()
    world.path_of(3).unlink()
    assert (await world.polled()).total("deleted_there") == 1
    assert list(world.on_server()) == [raw for raw in raws if raw != raws[2]]
    assert (await world.polled()).total("deleted_there") == 0


async def test_a_file_moved_elsewhere_is_not_taken_for_removed(world: PopWorld) -> None:
    """By rename, with other flags, and as mutt does it: a copy by another name. Then removed there."""
    world.settings(delete_with_local=True)
    world.deliver(6)
    await world.polled()
    archive = world.make_mailbox("Archive/2025")
    renamed, flagged, copied = (world.path_of(n) for n in (1, 2, 3))
    renamed.rename(archive / "new" / renamed.name)
    flagged.rename(archive / "cur" / f"{flagged.name}:2,FS")
    (archive / "cur" / "1700000000.other:2,S").write_bytes(copied.read_bytes())
    copied.unlink()
    for _ in range(3):
        report = await world.polled()
        assert (report.total("pulled"), report.total("deleted_there")) == (0, 0)
    (archive / "cur" / "1700000000.other:2,S").rename(archive / "new" / "1700000000.other")
    assert (await world.polled()).total("deleted_there") == 0
    for path in world.paths("Archive/2025"):
        path.unlink()
    assert (await world.polled()).total("deleted_there") == 3
    assert len(world.server.messages) == 3


async def test_of_two_equal_messages_one_is_removed(world: PopWorld) -> None:
    """The other one's file does not stand for both."""
    world.settings(delete_with_local=True)
    for _ in range(2):
        world.server.deliver(message(1))
    await world.polled()
    assert len(world.paths()) == 2
    world.paths()[0].unlink()
    assert (await world.polled()).total("deleted_there") == 1
    assert len(world.server.messages) == 1


async def test_the_guard(world: PopWorld) -> None:
    world.settings(delete_with_local=True)
    world.deliver(30)
    await world.polled()
    for path in world.paths()[:25]:
        path.unlink()
    report = await world.poll()
    assert not report.ok
    assert report.total("refused") == 25
    box = report.mailbox("INBOX")
    assert (box.state, box.error is not None and "25 of 30 messages are gone here" in box.error) == ("refused", True)
    assert len(world.server.messages) == 30
    world.deliver(1, start=100)
    assert (await world.poll()).total("pulled") == 1
    assert len(world.server.messages) == 31
    world.limit_deletions(90, is_percent=True)
    assert (await world.polled()).total("deleted_there") == 25
    assert world.sql("SELECT refused FROM mailboxes") == [(None,)]


async def test_an_approved_plan_is_carried_out(world: PopWorld) -> None:
    from maild.local.state import State

    world.settings(delete_with_local=True)
    world.deliver(30)
    await world.polled()
    for path in world.paths():
        path.unlink()
    assert (await world.poll()).total("refused") == 30
    state = State.open(world.state_dir / "isp.sqlite")
    (mailbox,) = state.mailboxes().values()
    assert state.approve(mailbox.id)
    state.close()
    assert (await world.polled()).total("deleted_there") == 30
    assert world.server.messages == []


async def test_the_guard_leaves_the_policy_alone(world: PopWorld) -> None:
    """What is deleted by age was never the user's deletion."""
    world.settings(leave_on_server=False, delete_with_local=True)
    world.deliver(40)
    assert (await world.polled()).total("deleted_there") == 40
