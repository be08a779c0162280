"""Every way a test can make the server misbehave, seen from the client's end."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from maild.testing.faults import (
    Action,
    Answer,
    Bye,
    Cut,
    Faults,
    Hold,
    Inject,
    LiteralOff,
    Rewrite,
    StopReading,
)
from maild.testing.imap import ImapServer
from maild.testing.store import Store
from tests.testing.conftest import Connect, RawClient

RAW = b"Subject: x\r\n\r\nbody\r\n"
FIRST = b"* 1 FETCH (UID 1 BODY[] {20}\r\n" + RAW + b")\r\n"


def filled() -> Store:
    store = Store()
    for _ in range(3):
        store.deliver("INBOX", RAW)
    return store


async def opened(connect: Connect, server: ImapServer) -> RawClient:
    client = await connect(server)
    await client.ok("SELECT INBOX")
    return client


@pytest.mark.parametrize("octets", [0, 1, len(FIRST) - 10, len(FIRST) + 3])
async def test_cut_after_octets(connect: Connect, octets: int) -> None:
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        rule = server.faults.add("UID FETCH", Cut(after_octets=octets), nth=2)
        assert len(await client.ok("UID FETCH 1 BODY.PEEK[]")) == 1
        assert not rule.struck.is_set()
        client.send("UID FETCH 1:3 BODY.PEEK[]")
        got = await client.rest()
        assert len(got) == octets
        assert got[: len(FIRST)] == FIRST[:octets]
        assert rule.struck.is_set()


@pytest.mark.parametrize("tls", [True, False])
async def test_cut_round_the_tagged_reply(
    connect: Connect, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with ImapServer(filled(), ssl_context=server_tls if tls else None) as server:
        for action, tagged in ((Cut(before_tagged=True), b""), (Cut(), b"t3 OK Store completed\r\n")):
            server.faults.add("UID STORE", action)
            client = await connect(server, tls=client_tls if tls else None)
            await client.ok("SELECT INBOX")
            client.send("UID STORE 1 FLAGS (\\Seen)")
            assert await client.rest() == b"* 1 FETCH (UID 1 FLAGS (\\Seen))\r\n" + tagged
        assert server.store.mailbox("INBOX").message(1).flags == {"\\Seen"}, "the command was carried out"


async def test_cut_by_reset(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        server.faults.add("NOOP", Cut(before_tagged=True, reset=True))
        client.send("NOOP")
        with pytest.raises(ConnectionResetError):
            await client.rest()


async def test_an_offset_beyond_the_response_cuts_nothing(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        server.faults.add("NOOP", Cut(after_octets=1000))
        await client.ok("NOOP")
        await client.ok("NOOP")


async def test_hold_before_the_command(connect: Connect) -> None:
    gate = asyncio.Event()
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        rule = server.faults.add("UID STORE", Hold(gate))
        tag = client.send("UID STORE 1 FLAGS (\\Seen)")
        await rule.struck.wait()
        assert server.store.mailbox("INBOX").message(1).flags == frozenset()
        gate.set()
        assert (await client.responses(tag))[-1].startswith(tag + b" OK")
        assert server.store.mailbox("INBOX").message(1).flags == {"\\Seen"}


async def test_hold_within_the_response(connect: Connect) -> None:
    gate = asyncio.Event()
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        server.faults.add("UID FETCH", Hold(gate, after_octets=35))
        tag = client.send("UID FETCH 1 BODY.PEEK[]")
        assert await client.reader.readexactly(35) == FIRST[:35]
        gate.set()
        assert await client.reader.readexactly(len(FIRST) - 35) == FIRST[35:]
        assert (await client.response()).startswith(tag)


async def test_inject_adds_octets_and_loses_none(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        server.faults.add("UID FETCH", Inject(b"* OK between\r\n", after_octets=len(FIRST)))
        server.faults.add("UID FETCH", Inject(b"\x00garbage\r\n"))
        lines = await client.ok("UID FETCH 1 BODY.PEEK[]")
        assert lines == [b"\x00garbage", FIRST[:-2], b"* OK between"]


@pytest.mark.parametrize("answer", ["NO [UNAVAILABLE] later", "BAD", "OK [MESSAGELIMIT 2 9] partial"])
async def test_answer_instead_of_carrying_out(connect: Connect, answer: str) -> None:
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        server.faults.add("UID STORE", Answer(answer), times=2)
        assert await client.ask("UID STORE 1 FLAGS (\\Seen)") == [answer.encode()]
        assert await client.ask("UID STORE 1 FLAGS (\\Seen)") == [answer.encode()]
        assert server.store.mailbox("INBOX").message(1).flags == frozenset()
        await client.ok("UID STORE 1 FLAGS (\\Seen)")


async def test_answer_refuses_a_synchronizing_literal(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        client = await connect(server)
        server.faults.add("APPEND", Answer("NO [OVERQUOTA] full"), times=None)
        assert await client.ask("APPEND INBOX {100}") == [b"NO [OVERQUOTA] full"]
        assert await client.ask(b"APPEND INBOX {5+}\r\n12345") == [b"NO [OVERQUOTA] full"]
        assert len(server.store.mailbox("INBOX")) == 3
        assert server.mutations == ["APPEND INBOX {100}", "APPEND INBOX {5+}"]


async def test_bye_ends_the_connection(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        server.faults.add("UID FETCH", Bye("shutting down"))
        client.send("UID FETCH 1 FLAGS")
        assert await client.rest() == b"* BYE shutting down\r\n"
        assert server.journal[-1] == "UID FETCH 1 FLAGS"


async def test_stop_reading_blocks_the_client_s_sending(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        client = await connect(server)
        rule = server.faults.add("APPEND", StopReading())
        client.send(b"APPEND INBOX {50000000+}\r\n" + b"x" * 50_000_000)
        await rule.struck.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.writer.drain()
        assert server.connections[0].octets_received < 1000
        assert not server.connections[0].closed.is_set()


@pytest.mark.parametrize("by", [2, -1])
async def test_a_literal_announced_wrongly(connect: Connect, by: int) -> None:
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        server.faults.add("UID FETCH", LiteralOff(by))
        tag = client.send("UID FETCH 1 BODY.PEEK[]")
        await client.reader.readuntil(b"BODY[] ")
        assert await client.reader.readuntil(b"\r\n") == b"{%d}\r\n" % (20 + by)
        assert (await client.responses(tag))[-1].startswith(tag + b" OK")


async def test_rewrite_sees_whole_responses_and_can_leave_them_out(connect: Connect) -> None:
    seen: list[bytes] = []

    def change(response: bytes) -> bytes:
        seen.append(response)
        return b"" if response.startswith(b"* 2 ") else response.replace(b"body", b"BODY")

    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        server.faults.add("UID FETCH", Rewrite(change))
        lines = await client.ok("UID FETCH 1:3 BODY.PEEK[]")
        assert lines == [FIRST[:-2].replace(b"body", b"BODY"), FIRST[:-2].replace(b"body", b"BODY").replace(b"1", b"3")]
        assert len(seen) == 4


async def test_two_faults_in_one_command(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        server.faults.add("NOOP", Inject(b"* OK one\r\n"))
        server.faults.add("*", Cut(before_tagged=True))
        client.send("NOOP")
        assert await client.rest() == b"* OK one\r\n"


async def test_faults_at_the_greeting(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        server.faults.add("CONNECT", Answer("BYE too many connections"), connection=1)
        server.faults.add("CONNECT", Rewrite(lambda _: b"HTTP/1.1 200 OK\r\n"), connection=2)
        server.faults.add("CONNECT", Hold(asyncio.Event()), connection=3)
        server.faults.add("CONNECT", Cut(after_octets=0), connection=4)
        assert (await connect(server, login=False)).greeting == b"* BYE too many connections"
        assert (await connect(server, login=False)).greeting == b"HTTP/1.1 200 OK"
        reader, writer = await asyncio.open_connection(server.host, server.port)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        writer.transport.abort()
        with pytest.raises(asyncio.IncompleteReadError):
            await connect(server, login=False)
        await connect(server)


@pytest.mark.parametrize(
    ("action", "answer"),
    [(Answer("NO [INUSE] odd"), b"NO [INUSE] odd"), (Cut(), b"OK Idle completed"), (Cut(before_tagged=True), None)],
    ids=["answer", "cut after", "cut before"],
)
async def test_faults_at_done(connect: Connect, action: Action, answer: bytes | None) -> None:
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        server.faults.add("DONE", action)
        tag = client.send("IDLE")
        await client.response()
        server.store.deliver("INBOX", RAW)
        assert await client.response() == b"* 4 EXISTS"
        assert await client.response() == b"* 0 RECENT"
        client.writer.write(b"DONE\r\n")
        if answer is None:
            assert await client.rest() == b""
        else:
            assert await client.response() == tag + b" " + answer


async def test_an_idle_that_never_pushes(connect: Connect) -> None:
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        server.faults.add("IDLE", Rewrite(lambda response: b"" if response.startswith(b"* ") else response))
        tag = client.send("IDLE")
        await client.response()
        server.store.deliver("INBOX", RAW)
        client.writer.write(b"DONE\r\n")
        assert await client.responses(tag) == [tag + b" OK Idle completed"]


def test_rules_count_by_name_and_connection() -> None:
    faults = Faults()
    faults.add("noop", Answer("NO a"), nth=2, times=2)
    faults.add("*", Answer("NO b"), connection=7, times=None)
    due = [
        faults.due(name, number) for name, number in [("NOOP", 1), ("NOOP", 2), ("CHECK", 7), ("NOOP", 1), ("NOOP", 1)]
    ]
    assert due == [[], [Answer("NO a")], [Answer("NO b")], [Answer("NO a")], []]
    assert faults.due("CONNECT", 7) == faults.due("DONE", 7) == []
    faults.clear()
    assert faults.due("CHECK", 7) == []
