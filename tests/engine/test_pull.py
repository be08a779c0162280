"""What comes from the server: first pass, only what changed after it, the same whatever the server can do."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import anyio
import pytest

from maild.engine import pull
from maild.testing.faults import Bye, Hold
from maild.testing.imap import ALL, ImapServer
from maild.testing.samples import sample_store
from maild.testing.store import Store
from tests.engine.world import PASSWORD, START_S, USER, World, bodies, long_body, message


def uids_of(command: str) -> list[int]:
    """The UIDs that a UID FETCH asks for."""
    found = re.match(r"UID FETCH ([0-9:,]+) ", command)
    assert found, command
    uids: list[int] = []
    for part in found[1].split(","):
        low, _, high = part.partition(":")
        first, last = sorted((int(low), int(high or low)))
        uids += range(first, last + 1)
    return uids


async def test_first_pass_brings_everything_once(any_world: World) -> None:
    any_world.store.create("Archiv/2025")
    any_world.deliver(5, flags=["\\Seen"])
    any_world.deliver(3, start=6, flags=["\\Flagged", "$Work"])
    any_world.deliver(4, "Archiv/2025", start=20)
    report = await any_world.synced()
    assert report.total("pulled") == 12
    any_world.assert_equal()
    assert any_world.server.mutations == []
    await any_world.settled()


async def test_the_samples_arrive_as_they_are(tmp_path: Path) -> None:
    async with ImapServer(sample_store(), {USER: PASSWORD}) as server:
        world = World(tmp_path, server)
        await world.synced()
        for mailbox in server.store.names:
            assert world.on_disk(mailbox) == world.on_server(mailbox)
        await world.settled()


async def test_nothing_changed_costs_one_listing_and_opens_nothing(world: World) -> None:
    world.store.create("Sent")
    world.deliver(3)
    await world.synced()
    world.commands()
    report = await world.synced()
    sent = world.commands()
    assert report.unchanged == 2
    assert sum(command.startswith("LIST ") for command in sent) == 1
    assert not any(command.startswith(("EXAMINE", "SELECT", "STATUS", "UID FETCH")) for command in sent)


async def test_new_mail_alone_is_fetched(any_world: World) -> None:
    any_world.deliver(5)
    await any_world.synced()
    any_world.commands()
    new = any_world.deliver(2, start=6, flags=["\\Answered", "Label"])
    report = await any_world.synced()
    assert report.total("pulled") == 2
    asked = {uid for command in bodies(any_world.commands()) for uid in uids_of(command)}
    assert {uid for uid in asked if uid <= max(new)} == set(new)  # a range may end above what there is
    any_world.assert_equal()
    await any_world.settled()


async def test_flags_and_keywords_follow_the_server(any_world: World) -> None:
    any_world.deliver(4, flags=["\\Seen", "Alt"])
    await any_world.synced()
    any_world.store.set_flags("INBOX", 1, add=["\\Flagged", "Neu"])
    any_world.store.set_flags("INBOX", 2, remove=["\\Seen", "Alt"])
    any_world.store.set_flags("INBOX", [3, 4], replace=["\\Deleted", "\\Draft"])
    report = await any_world.synced()
    assert (report.total("flags"), report.total("pulled")) == (4, 0)
    any_world.assert_equal()
    await any_world.settled()


async def test_expunged_messages_go(any_world: World) -> None:
    any_world.deliver(5)
    await any_world.synced()
    any_world.store.expunge("INBOX", [2, 4])
    report = await any_world.synced()
    assert report.total("deleted") == 2
    any_world.assert_equal()
    await any_world.settled()


async def test_expunged_new_and_changed_at_once(any_world: World) -> None:
    any_world.deliver(6)
    await any_world.synced()
    any_world.store.expunge("INBOX", [1, 5])
    any_world.deliver(3, start=7)
    any_world.store.expunge("INBOX", 7)
    any_world.store.set_flags("INBOX", 3, add=["\\Seen"])
    report = await any_world.synced()
    assert (report.total("pulled"), report.total("deleted"), report.total("flags")) == (2, 2, 1)
    any_world.assert_equal()
    await any_world.settled()


async def test_expunges_after_the_server_forgot_its_log(any_world: World) -> None:
    any_world.deliver(5)
    await any_world.synced()
    any_world.store.expunge("INBOX", 3)
    any_world.store.mailbox("INBOX").forget_expunged()
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


async def test_a_mailbox_without_mod_sequences(any_world: World) -> None:
    any_world.store.mailbox("INBOX").modseqs = False
    any_world.deliver(4)
    await any_world.synced()
    any_world.store.set_flags("INBOX", 2, add=["\\Seen"])
    any_world.store.expunge("INBOX", 1)
    any_world.deliver(1, start=5)
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


async def test_a_moved_message_arrives_and_goes(any_world: World) -> None:
    any_world.store.create("Archiv")
    any_world.deliver(3)
    await any_world.synced()
    any_world.store.move("INBOX", 2, "Archiv")
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


async def test_mailboxes_are_chosen_by_pattern(world: World) -> None:
    for name in ("Sent", "Junk", "Lists/a", "Lists/b"):
        world.store.create(name)
        world.deliver(1, name)
    world.settings(mailboxes=("*", "!Junk", "!Lists/*", "Lists/b"))
    await world.synced()
    world.assert_equal("INBOX", "Sent", "Lists/b")
    assert not (world.root / "Junk").exists()
    assert not (world.root / "Lists" / "a").exists()
    await world.settled()


async def test_a_new_mailbox_is_found_and_a_lost_one_goes(any_world: World) -> None:
    any_world.store.create("Alt")
    any_world.deliver(2, "Alt")
    await any_world.synced()
    any_world.store.create("Neu")
    any_world.deliver(2, "Neu", start=5)
    any_world.store.delete("Alt")
    report = await any_world.synced()
    assert report.mailboxes["Alt"].deleted == 2
    any_world.assert_equal("INBOX", "Neu")
    assert not any_world.directory("Alt").exists()
    assert "Alt" not in any_world.store.names
    await any_world.settled()


async def test_a_lost_mailbox_that_holds_much_stays(any_world: World) -> None:
    any_world.store.create("Alt")
    any_world.deliver(10, "Alt")
    await any_world.synced()
    any_world.store.delete("Alt")
    before = any_world.snapshot()
    for _ in range(2):
        report = await any_world.sync()
        assert (report.mailboxes["Alt"].state, report.mailboxes["Alt"].refused) == ("refused", 10)
        assert "Alt" not in any_world.store.names
        after = any_world.snapshot()
        assert {name: after[name] for name in after if "/Alt/" in name} == {
            name: before[name] for name in before if "/Alt/" in name
        }


async def test_one_mailbox_alone(world: World) -> None:
    world.store.create("Sent")
    world.deliver(2)
    world.deliver(2, "Sent")
    report = await world.sync(only=["Sent"])
    assert report.ok
    world.assert_equal("Sent")
    assert not (world.root / "INBOX").exists()
    report = await world.sync(only=["Nirgends"])
    assert not report.ok
    assert "no such mailbox" in str(report.error)
    assert "Nirgends" in str(report.error)


async def test_inbox_comes_first(world: World) -> None:
    for name in ("Aaa", "Bbb"):
        world.store.create(name)
        world.deliver(1, name)
    world.deliver(1)
    world.settings(connections=1)
    await world.synced()
    opened = [command.split()[1].strip('"') for command in world.commands() if command.startswith("SELECT")]
    assert opened[0] == "INBOX"
    assert len(opened) == 3


async def test_newest_come_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "FETCH_MESSAGES", 4)
    world.deliver(18)
    world.settings(connections=1)
    await world.synced()
    sets = [uids_of(command) for command in bodies(world.commands())]
    assert sets == [[15, 16, 17, 18], [11, 12, 13, 14], [7, 8, 9, 10], [3, 4, 5, 6], [1, 2]]
    world.assert_equal()


async def test_a_big_mailbox_is_shared_by_several_connections(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "WORTH_HELP_OCTETS", 1000)
    monkeypatch.setattr(pull, "FETCH_MESSAGES", 5)
    world.deliver(300)
    second_fetches = asyncio.Event()
    held = world.server.faults.add("UID FETCH", Hold(second_fetches, after_octets=0), nth=3)

    async def let_go_when_helped() -> None:
        await world.server.until(lambda: sum(bool(bodies(c.commands)) for c in world.server.connections) > 1)
        second_fetches.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(let_go_when_helped)
        await world.synced()
    assert held.struck.is_set()
    asked = [uid for command in bodies(world.commands()) for uid in uids_of(command)]
    assert sorted(asked) == list(range(1, 301)), "each message is asked for once"
    world.assert_equal()
    await world.settled()


async def test_a_server_that_allows_one_connection_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session that should have helped does not come: the first one does it all, and nobody waits for the other."""
    monkeypatch.setattr(pull, "WORTH_HELP_OCTETS", 1000)
    monkeypatch.setattr(pull, "FETCH_MESSAGES", 5)
    world.deliver(300)
    turned_away = world.server.faults.add("CONNECT", Bye("Too many connections"), nth=2, times=None)
    refused = asyncio.Event()
    world.server.faults.add("UID FETCH", Hold(refused, after_octets=0), nth=3)

    async def let_go_when_refused() -> None:
        await turned_away.struck.wait()
        refused.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(let_go_when_refused)
        await world.synced()
    world.assert_equal()


# -- too big


async def test_messages_above_the_limit_stay_until_it_is_raised(any_world: World) -> None:
    big = message(3, body="x" * 5000)
    any_world.deliver(2)
    any_world.store.deliver("INBOX", big, ["\\Seen"], START_S)
    any_world.settings(max_message_size_octets=4000)
    report = await any_world.synced()
    assert (report.total("pulled"), report.total("skipped")) == (2, 1)
    assert len(any_world.files()) == 2
    state = any_world.state()
    (skipped,) = state.skipped(1).values()
    state.close()
    assert (skipped.uid, skipped.size_octets) == ("3", len(big))
    assert "max_message_size" in skipped.reason
    again = await any_world.settled()
    assert again.total("skipped") == 1, "it is still told"
    any_world.store.set_flags("INBOX", 3, add=["\\Flagged"])
    any_world.deliver(1, start=4)
    visited = await any_world.synced()
    assert (visited.total("pulled"), visited.total("skipped")) == (1, 1), "told in a pass that opens the mailbox too"
    any_world.settings(max_message_size_octets=6000)
    report = await any_world.synced()
    assert (report.total("pulled"), report.total("skipped")) == (1, 0)
    any_world.assert_equal()
    await any_world.settled()


async def test_a_message_above_the_limit_that_is_expunged_is_forgotten(any_world: World) -> None:
    any_world.deliver(1)
    any_world.store.deliver("INBOX", message(2, body="x" * 5000), (), START_S)
    any_world.settings(max_message_size_octets=4000)
    await any_world.synced()
    any_world.store.expunge("INBOX", 2)
    report = await any_world.synced()
    assert report.total("skipped") == 0
    any_world.assert_equal()
    await any_world.settled()


async def test_a_skipped_message_that_is_here_meanwhile_gets_the_servers_flags(world: World) -> None:
    """It is adopted by content: with the flags the server has, not with none."""
    big = message(2, body="x" * 5000)
    world.deliver(1)
    world.store.deliver("INBOX", big, ["\\Flagged"], START_S)
    world.settings(max_message_size_octets=4000)
    await world.synced()
    world.write_foreign(2, big.replace(b"\r\n", b"\n"), "S")
    world.settings(max_message_size_octets=6000)
    report = await world.synced()
    assert (report.total("pulled"), report.total("adopted")) == (0, 1)
    assert world.one(2).flags == {"\\Seen", "\\Flagged"}
    assert world.base_flags()["2"] == {"\\Seen", "\\Flagged"}
    assert world.store.mailbox("INBOX").message(2).flags == {"\\Seen", "\\Flagged"}
    await world.settled()


async def test_a_message_bigger_than_memory_holds_goes_through_the_disk(any_world: World) -> None:
    raw = message(1, body=long_body())
    any_world.store.deliver("INBOX", raw, ["\\Seen", "Gross"], START_S)
    any_world.deliver(2, start=2)
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


# -- deletions


@pytest.mark.parametrize("way", ["none", "to_remote"])
async def test_deletions_that_do_not_travel_here(any_world: World, way: str) -> None:
    any_world.deliver(4)
    any_world.settings(deletions=way)
    await any_world.synced()
    any_world.store.expunge("INBOX", [1, 2])
    report = await any_world.synced()
    assert report.total("deleted") == 0
    assert len(any_world.files()) == 4
    await any_world.settled()
    any_world.settings(deletions="both")
    await any_world.settled()
    assert len(any_world.files()) == 4, "without a pair there is no proof any more"


@pytest.mark.parametrize("way", ["both", "to_local"])
async def test_deletions_that_travel_here(any_world: World, way: str) -> None:
    any_world.deliver(4)
    any_world.settings(deletions=way)
    await any_world.synced()
    any_world.store.expunge("INBOX", [1, 2, 3, 4])
    report = await any_world.synced()
    assert report.total("deleted") == 4
    any_world.assert_equal()
    await any_world.settled()


# -- layouts and names

HOSTILE = (
    "../../outside",
    "..",
    "/etc/passwd",
    "a//b",
    "INBOX/cur/new",
    ".hidden",
    "new",
    "cur",
    "tmp",
    "dovecot-keywords",
    "100%",
    "%2e%2e",
    "tab\there",
    "Entwürfe",
    "Größe & Maß",
    "日本語/🌻",
    "A.B",
    "A/B",
    'quote"back\\slash',
    "~root",
    "-rf *",
)


@pytest.mark.parametrize("layout", ["nested", "maildir++"])
async def test_no_name_leaves_the_maildir(world: World, layout: str) -> None:
    world.account = type(world.account)(
        name="work",
        address=USER,
        maildir=world.root,
        imap=world.imap,
        layout=layout,  # type: ignore[arg-type]
    )
    for number, name in enumerate(HOSTILE, 1):
        world.store.create(name)
        world.deliver(1, name, start=number)
    world.deliver(1, start=100)
    report = await world.synced()
    assert report.total("pulled") == len(HOSTILE) + 1
    outside = [p for p in world.root.parent.parent.rglob("*") if p.is_file() and world.root not in p.parents]
    assert {p.parent for p in outside} == {world.state_dir}
    found = sorted(p.read_bytes() for p in world.root.rglob("*") if p.is_file() and p.parent.name in {"new", "cur"})
    sent = sorted(m.raw.replace(b"\r\n", b"\n") for mailbox in world.store.mailboxes for m in mailbox)
    assert found == sent
    directories = {p.parent.parent for p in world.root.rglob("*") if p.is_file() and p.parent.name in {"new", "cur"}}
    assert len(directories) == len(HOSTILE) + 1, "no two mailboxes share a directory"
    await world.settled()


async def test_maildir_plus_plus_puts_inbox_into_the_root(world: World) -> None:
    world.account = type(world.account)(
        name="work", address=USER, maildir=world.root, imap=world.imap, layout="maildir++"
    )
    world.store.create("Archiv/2025")
    world.deliver(2)
    world.deliver(2, "Archiv/2025", flags=["\\Seen"])
    await world.synced()
    world.assert_equal()
    assert (world.root / ".Archiv.2025" / "maildirfolder").exists()
    await world.settled()


@pytest.mark.parametrize("separator", [".", "/", ""])
async def test_separators(tmp_path: Path, separator: str) -> None:
    store = Store(separator=separator)
    name = f"A{separator}B" if separator else "A"
    store.create(name)
    async with ImapServer(store, {USER: PASSWORD}, capabilities=ALL) as server:
        world = World(tmp_path, server)
        world.deliver(2, name)
        await world.synced()
        assert len(world.files("A/B" if separator else "A")) == 2
        await world.settled()


async def test_a_name_too_long_for_a_directory_is_told_and_harms_no_other(world: World) -> None:
    world.store.create("x" * 300)
    world.deliver(1)
    report = await world.sync()
    assert not report.ok
    assert report.error is None
    assert "too long for a directory" in str(report.mailboxes["x" * 300].error)
    world.assert_equal("INBOX")


# -- a dry run


async def test_a_dry_run_tells_the_plan_and_changes_nothing(any_world: World) -> None:
    any_world.deliver(3)
    report = await any_world.sync(dry_run=True)
    assert report.ok
    assert report.total("pulled") == 3
    assert not any_world.root.exists()
    assert not any_world.state_dir.exists()
    await any_world.synced()
    any_world.store.expunge("INBOX", 1)
    any_world.store.set_flags("INBOX", 2, add=["\\Seen"])
    any_world.deliver(2, start=4)
    before, state = any_world.snapshot(), any_world.database.read_bytes()
    any_world.commands()
    report = await any_world.sync(dry_run=True)
    assert {name: report.total(name) for name in ("pulled", "deleted", "flags")} == {
        "pulled": 2,
        "deleted": 1,
        "flags": 1,
    }
    assert any_world.snapshot() == before
    assert any_world.database.read_bytes() == state
    assert sorted(path.name for path in any_world.state_dir.iterdir()) == ["work.sqlite"]
    assert bodies(any_world.commands()) == []
    assert any_world.server.mutations == []
    await any_world.synced()
    any_world.assert_equal()


async def test_a_dry_run_of_what_fails_changes_nothing(world: World) -> None:
    world.store.create("Weg")
    world.deliver(1, "Weg")
    await world.synced()
    for path in (world.root / "Weg").rglob("*"):
        if path.is_file():
            path.unlink()
    for name in ("cur", "new", "tmp"):
        (world.root / "Weg" / name).rmdir()
    world.deliver(1, "Weg", start=2)
    state = world.database.read_bytes()
    report = await world.sync(dry_run=True)
    assert not report.ok
    assert world.database.read_bytes() == state
