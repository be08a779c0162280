"""What one client is told about the doings of others: at commands, in IDLE, and when its mailbox is taken away."""

from __future__ import annotations

import pytest

from maild.testing.imap import ImapServer
from maild.testing.store import Store
from tests.testing.conftest import Connect, RawClient

RAW = b"Subject: x\r\n\r\nbody\r\n"


def filled(count: int = 4) -> Store:
    store = Store()
    for _ in range(count):
        store.deliver("INBOX", RAW)
    return store


async def opened(connect: Connect, server: ImapServer, *, enable: str = "") -> RawClient:
    client = await connect(server)
    if enable:
        await client.ok(f"ENABLE {enable}")
    await client.ok("SELECT INBOX")
    return client


async def idling(connect: Connect, server: ImapServer, *, enable: str = "") -> tuple[RawClient, bytes]:
    client = await opened(connect, server, enable=enable)
    tag = client.send("IDLE")
    assert (await client.response()).startswith(b"+ ")
    return client, tag


async def test_noop_tells_everything_in_order(connect: Connect) -> None:
    store = filled()
    async with ImapServer(store) as server:
        client = await opened(connect, server)
        store.set_flags("INBOX", [1, 4], add=["\\Seen"])
        store.expunge("INBOX", [2, 3])
        store.deliver("INBOX", RAW)
        assert await client.ok("NOOP") == [
            b"* 3 EXPUNGE",
            b"* 2 EXPUNGE",
            b"* 3 EXISTS",
            b"* 0 RECENT",
            b"* 1 FETCH (FLAGS (\\Seen))",
            b"* 2 FETCH (FLAGS (\\Seen))",
        ]
        assert await client.ok("NOOP") == []


async def test_with_qresync_it_is_vanished_uid_and_modseq(connect: Connect) -> None:
    store = filled()
    async with ImapServer(store) as server:
        client = await opened(connect, server, enable="QRESYNC")
        store.set_flags("INBOX", 4, add=["\\Seen"])
        store.expunge("INBOX", [1, 3])
        assert await client.ok("CHECK") == [b"* VANISHED 1,3", b"* 2 FETCH (UID 4 FLAGS (\\Seen) MODSEQ (6))"]


async def test_expunges_wait_while_sequence_numbers_are_in_use(connect: Connect) -> None:
    store = filled()
    async with ImapServer(store) as server:
        client = await opened(connect, server)
        store.expunge("INBOX", 1)
        store.deliver("INBOX", RAW)
        *told, tagged = await client.ask("FETCH 1:2 (UID)")
        assert told == [b"* 2 FETCH (UID 2)", b"* 5 EXISTS", b"* 0 RECENT"]
        assert tagged.startswith(b"NO [EXPUNGEISSUED]")
        assert await client.ok("SEARCH ALL") == [b"* SEARCH 2 3 4 5"]
        assert (await client.ask("STORE 1 +FLAGS (\\Seen)"))[-1].startswith(b"NO [EXPUNGEISSUED]")
        assert await client.ok("UID FETCH 1:2 (FLAGS)") == [b"* 2 FETCH (UID 2 FLAGS ())", b"* 1 EXPUNGE"]


async def test_two_clients_see_each_other(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        first, second = await opened(connect, server), await opened(connect, server)
        await first.ok("UID STORE 2 +FLAGS (\\Deleted)")
        await first.ok("EXPUNGE")
        assert await second.ok("NOOP") == [b"* 2 EXPUNGE"]
        assert [connection.commands[-1] for connection in server.connections] == ["EXPUNGE", "NOOP"]


async def test_idle_pushes_at_once(connect: Connect) -> None:
    store = filled()
    async with ImapServer(store) as server:
        client, tag = await idling(connect, server, enable="QRESYNC")
        store.deliver("INBOX", RAW)
        assert [await client.response(), await client.response()] == [b"* 5 EXISTS", b"* 0 RECENT"]
        store.set_flags("INBOX", 5, add=["\\Seen"])
        assert await client.response() == b"* 5 FETCH (UID 5 FLAGS (\\Seen) MODSEQ (7))"
        store.expunge("INBOX", [1, 2])
        assert await client.response() == b"* VANISHED 1:2"
        client.writer.write(b"done\r\n")
        assert (await client.response()).startswith(tag + b" OK")
        assert server.journal[-2:] == ["IDLE", "DONE"]


async def test_idle_tells_what_came_just_before_it(connect: Connect) -> None:
    store = filled()
    async with ImapServer(store) as server:
        client = await opened(connect, server)
        store.deliver("INBOX", RAW)
        client.send("IDLE")
        assert [await client.response() for _ in range(2)] == [b"+ idling", b"* 5 EXISTS"]


async def test_idle_without_a_mailbox_and_with_other_mailboxes_is_silent(connect: Connect) -> None:
    store = filled()
    store.create("B")
    async with ImapServer(store) as server:
        client, tag = await idling(connect, server)
        store.deliver("B", RAW)
        client.writer.write(b"DONE\r\n")
        assert await client.responses(tag) == [tag + b" OK Idle completed"]
        other = await connect(server)
        tag = other.send("IDLE")
        await other.response()
        store.deliver("INBOX", RAW)
        other.writer.write(b"DONE\r\n")
        assert await other.responses(tag) == [tag + b" OK Idle completed"]


async def test_idle_ended_by_something_else_is_bad(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        client, tag = await idling(connect, server)
        client.writer.write(b"x NOOP\r\n")
        assert (await client.responses(tag))[-1].startswith(tag + b" BAD")
        await client.ok("NOOP")


async def test_the_test_may_say_anything_into_an_idle(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        client, _ = await idling(connect, server)
        await server.connections[0].send_raw(b"* OK Still here\r\n")
        assert await client.response() == b"* OK Still here"
        await server.connections[0].drop()
        assert await client.rest() == b""
        assert server.connections[0].closed.is_set()


@pytest.mark.parametrize("in_idle", [True, False])
@pytest.mark.parametrize("event", ["delete", "uidvalidity"])
async def test_a_mailbox_taken_away_ends_the_connection(connect: Connect, event: str, in_idle: bool) -> None:
    store = Store()
    store.create("B")
    async with ImapServer(store) as server:
        client = await connect(server)
        await client.ok("SELECT B")
        if in_idle:
            client.send("IDLE")
            await client.response()
        if event == "delete":
            store.delete("B")
        else:
            store.bump_uidvalidity("B")
        if not in_idle:
            client.send("NOOP")
        assert (await client.response()).startswith(b"* BYE ")
        await client.rest()


async def test_until_waits_for_what_a_client_does(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        client = await connect(server)
        client.send("NOOP")
        await server.until(lambda: server.count("NOOP") == 1)
        with pytest.raises(TimeoutError, match="NOOP"):
            await server.until(lambda: server.count("NOOP") == 2, timeout_s=0.05)
