"""A session in trouble: loss, silence, cancellation, slow consumers; nothing is left behind and no secret shown."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
import structlog

from maild.core.errors import (
    AuthRejected,
    ConnectionLost,
    LocalError,
    MaildError,
    ProtocolViolation,
    Rejected,
)
from maild.remote.imap import session as module
from maild.remote.imap import stream as streaming
from maild.remote.imap.login import login
from maild.remote.imap.parse import Event, FetchData, Numbered
from maild.remote.imap.session import Command, ImapSession, quoted
from maild.remote.imap.stream import messages
from maild.testing.dialogue import Dialogue
from maild.testing.faults import Cut, Hold
from maild.testing.imap import ImapServer
from maild.testing.store import Store
from tests.conftest import SecretScan
from tests.remote.conftest import DEADLINE_S, LONGEST_OCTETS, PASSWORD, USER, Connect, Serve, imap_endpoint
from tests.servers.proxy import FaultProxy

pytestmark = pytest.mark.usefixtures("quiet_loop")

GREETING = b"* OK [CAPABILITY IMAP4rev1] hello\r\n"
ITEMS = "(UID BODY.PEEK[])"


def filled(messages: int, octets: int = 300) -> Store:
    store = Store()
    for number in range(1, messages + 1):
        store.deliver("INBOX", (b"Subject: %d\r\n\r\n" % number).ljust(octets - 2, b"x") + b"\r\n")
    return store


def raw(store: Store) -> dict[int, bytes]:
    return {message.uid: message.raw for message in store.mailbox("INBOX")}


def server_of(store: Store) -> ImapServer:
    return ImapServer(store, {USER: PASSWORD})


async def open_inbox(connect: Connect, port: int) -> ImapSession:
    session = await connect(imap_endpoint(port))
    await login(session, USER, PASSWORD)
    await session.run("EXAMINE", quoted("INBOX"))
    session.set_selected(True)
    return session


def sets_of(store: Store, size: int) -> Iterator[list[int]]:
    uids = sorted(raw(store))
    return (uids[start : start + size] for start in range(0, len(uids), size))


async def pull(session: ImapSession, sets: Iterator[list[int]], into: dict[int, bytes]) -> None:
    async for arrived in messages(session, sets, ITEMS, lambda _size: None, []):
        for message in arrived:
            body = message.sections[b""]
            assert message.uid is not None
            assert isinstance(body, bytes | bytearray)
            into[message.uid] = bytes(body)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# -- lost connections


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("after", [0, 1, 40, 333, 334, 1000, 1669])
async def test_a_connection_lost_in_a_transfer(after: int, reset: bool, connect: Connect) -> None:
    store = filled(20)
    async with server_of(store) as server, asyncio.timeout(DEADLINE_S):
        server.faults.add("UID FETCH", Cut(after_octets=after, reset=reset))
        session = await open_inbox(connect, server.port)
        found: dict[int, bytes] = {}
        with pytest.raises(ConnectionLost, match="closed the connection"):
            await pull(session, sets_of(store, 5), found)
        assert found.items() <= raw(store).items(), "what came before the loss is whole and right"
        assert session.is_lost
        with pytest.raises(ConnectionLost):
            await session.run("NAMESPACE")
        if not reset:
            assert len(found) == after // 334, "nothing complete is thrown away"


async def test_a_connection_cut_anywhere_ends_in_an_error_of_ours(connect: Connect) -> None:
    store = filled(10)
    generator = random.Random(4711)
    async with server_of(store) as server, asyncio.timeout(4 * DEADLINE_S):
        with FaultProxy(server.port) as proxy:
            whole: dict[int, bytes] = {}
            await pull(await open_inbox(connect, proxy.port), sets_of(store, 3), whole)
            assert whole == raw(store)
            length = proxy.stats().octets_to_client
            for reset in (False, True) * 10:
                proxy.cut_after(generator.randrange(length), reset=reset)
                found: dict[int, bytes] = {}
                with pytest.raises(ConnectionLost):
                    await pull(await open_inbox(connect, proxy.port), sets_of(store, 3), found)
                assert found.items() <= whole.items()


async def test_every_command_in_flight_hears_of_the_loss(connect: Connect) -> None:
    async with server_of(Store()) as server, asyncio.timeout(DEADLINE_S):
        session = await open_inbox(connect, server.port)
        server.faults.add("STATUS", Cut(before_tagged=True), nth=3)
        sent = [session.launch("STATUS", quoted("INBOX"), "(MESSAGES)") for _ in range(20)]
        ends = await asyncio.gather(*(session.finish(command) for command in sent), return_exceptions=True)
        assert [isinstance(end, ConnectionLost) for end in ends] == [False, False, *[True] * 18]


async def test_fifty_connections_and_losses_leave_nothing_behind() -> None:
    async with server_of(Store()) as server, asyncio.timeout(4 * DEADLINE_S):
        before = open_descriptors()
        tasks = asyncio.all_tasks()
        server.faults.add("NAMESPACE", Cut(before_tagged=True), times=None)
        server.faults.add("LIST", Cut(after_octets=3, reset=True), times=None)
        for number in range(50):
            session = await ImapSession.connect(imap_endpoint(server.port), LONGEST_OCTETS)
            await login(session, USER, PASSWORD)
            match number % 4:
                case 0:
                    await session.logout()
                case 1:
                    session.drop()
                case 2:
                    session.launch("LIST", '""', '"*"')  # nobody waits for it
                    await server.connections[-1].closed.wait()
                case _:
                    with pytest.raises(ConnectionLost):
                        await session.run("NAMESPACE")
        for connection in server.connections:
            await connection.closed.wait()
        while asyncio.all_tasks() - tasks:
            await asyncio.wait(asyncio.all_tasks() - tasks)
        assert open_descriptors() <= before + 1


async def test_a_connect_that_is_given_up_leaves_nothing_behind() -> None:
    async with Dialogue("EOF\n") as server:
        with anyio.move_on_after(0.05) as scope:
            await ImapSession.connect(imap_endpoint(server.port), LONGEST_OCTETS)
        assert scope.cancelled_caught


async def test_a_closed_port_and_an_unknown_name() -> None:
    async with Dialogue("EOF\n") as server:
        port = server.port
        await server.aclose()
        with pytest.raises(ConnectionLost, match=f"127.0.0.1:{port}.*check host, port and the network"):
            await ImapSession.connect(imap_endpoint(port), LONGEST_OCTETS)
        server._connections = []
    with pytest.raises(ConnectionLost, match=r"nowhere\.invalid.* cannot be found: .*check the spelling of host"):
        await ImapSession.connect(imap_endpoint(1, host="nowhere.invalid"), LONGEST_OCTETS)


# -- silence


@pytest.mark.usefixtures("short_times")
async def test_no_greeting(connect: Connect) -> None:
    async with Dialogue("EOF\n") as server:
        with pytest.raises(ConnectionLost, match="did not answer in time; check host, port and whether a firewall"):
            await connect(imap_endpoint(server.port))


@pytest.mark.usefixtures("short_times")
async def test_a_command_without_an_answer(connect: Connect, serve: Serve) -> None:
    session = await connect(imap_endpoint(await serve(lambda _line: b"")))
    await login(session, USER, PASSWORD)
    with pytest.raises(ConnectionLost, match="did not answer NAMESPACE within"):
        await session.run("NAMESPACE")
    assert session.is_lost, "an answer is still owed"


@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize("after", [None, 0, 1, 100, 360])
async def test_a_transfer_that_stalls(after: int | None, connect: Connect) -> None:
    store = filled(3)
    async with server_of(store) as server, asyncio.timeout(DEADLINE_S):
        server.faults.add("UID FETCH", Hold(asyncio.Event(), after))
        session = await open_inbox(connect, server.port)
        found: dict[int, bytes] = {}
        with pytest.raises(ConnectionLost, match="sent nothing for"):
            await pull(session, iter([[1, 2, 3]]), found)
        assert len(found) == (1 if after == 360 else 0)


async def dribble(writer: asyncio.StreamWriter, octets: bytes) -> None:
    """One octet every 10 ms: the pace of the attack, not a wait for anything."""
    for octet in octets:
        writer.write(bytes((octet,)))
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize("step", ["greeting", "command", "transfer"])
async def test_an_octet_now_and_then_is_no_sign_of_life(step: str) -> None:
    slow = {
        "greeting": b"* OK [CAPABILITY IMAP4rev1] " + b"x" * 1000,
        "command": b"* NAMESPACE " + b"x" * 1000,
        "transfer": b"* 1 FETCH (UID 1 BODY[] {1000}\r\n" + b"x" * 1000,
    }[step]

    async def torment(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if step != "greeting":
                writer.write(GREETING)
                tag = (await reader.readline()).split()[0]
                writer.write(tag + b" OK [CAPABILITY IMAP4rev1] in\r\n")
                await reader.readline()
            await dribble(writer, slow)
        except ConnectionError:
            return
        finally:
            writer.transport.abort()

    async def victim(port: int) -> None:
        session = await ImapSession.connect(imap_endpoint(port), LONGEST_OCTETS)
        await login(session, USER, PASSWORD)
        if step == "command":
            await session.run("NAMESPACE")
        session.set_selected(True)
        await pull(session, iter([[1]]), {})

    server = await asyncio.start_server(torment, "127.0.0.1", 0)
    async with server, asyncio.timeout(3):
        with pytest.raises(ConnectionLost):
            await victim(server.sockets[0].getsockname()[1])


# -- cancellation


async def test_a_cancelled_command_ends_the_connection(connect: Connect) -> None:
    async with server_of(Store()) as server, asyncio.timeout(DEADLINE_S):
        going_on = asyncio.Event()
        rule = server.faults.add("NAMESPACE", Hold(going_on))
        session = await open_inbox(connect, server.port)
        other = session.launch("STATUS", quoted("INBOX"), "(MESSAGES)")
        await session.finish(other)
        later = session.launch("NAMESPACE")
        waiting = asyncio.create_task(session.finish(later))
        behind = session.launch("STATUS", quoted("INBOX"), "(MESSAGES)")
        await rule.struck.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert session.is_lost
        with pytest.raises(ConnectionLost, match="the command was given up"):
            await session.finish(behind)
        with pytest.raises(ConnectionLost, match="the command was given up"):
            await session.run("NAMESPACE")
        going_on.set()
        await server.connections[0].closed.wait()


async def test_a_stream_that_is_closed_early_ends_the_connection(connect: Connect) -> None:
    store = filled(100, 5000)
    async with server_of(store) as server, asyncio.timeout(DEADLINE_S):
        session = await open_inbox(connect, server.port)
        async with aclosing(messages(session, sets_of(store, 10), ITEMS, lambda _size: None, [])) as stream:
            async for _arrived in stream:
                break
        assert session.is_lost
        with pytest.raises(ConnectionLost, match="the transfer was given up"):
            await session.run("NAMESPACE")
        await server.connections[0].closed.wait()


async def test_a_stream_that_came_to_its_end_leaves_the_session_usable(connect: Connect) -> None:
    store = filled(10)
    async with server_of(store) as server, asyncio.timeout(DEADLINE_S):
        session = await open_inbox(connect, server.port)
        for size in (3, 10, 100):
            found: dict[int, bytes] = {}
            await pull(session, sets_of(store, size), found)
            assert found == raw(store)
        await pull(session, iter([]), {})
        assert (await session.run("STATUS", quoted("INBOX"), "(MESSAGES)")).data("STATUS")


async def test_logging_out_wakes_who_still_waits(connect: Connect) -> None:
    async with server_of(Store()) as server, asyncio.timeout(DEADLINE_S):
        rule = server.faults.add("NAMESPACE", Hold(asyncio.Event()))
        session = await open_inbox(connect, server.port)
        waiting = asyncio.create_task(session.run("NAMESPACE"))
        await rule.struck.wait()
        await session.logout()
        with pytest.raises(ConnectionLost, match="logged out"):
            await waiting


# -- much at once


async def test_many_commands_in_flight(connect: Connect) -> None:
    store = Store()
    for number in range(200):
        store.create(f"m{number}")
        store.deliver(f"m{number}", b"\r\n" * (number + 1))
    async with server_of(store) as server, asyncio.timeout(DEADLINE_S):
        session = await open_inbox(connect, server.port)
        sent = [session.launch("STATUS", quoted(f"m{number}"), "(UIDNEXT)") for number in range(200)]
        for number, command in enumerate(sent):
            (status,) = (await session.finish(command)).data("STATUS")
            assert status.tokens == [b"m%d" % number, [b"UIDNEXT", b"2"]]


async def test_a_hundred_thousand_lines_in_one_answer(connect: Connect, serve: Serve) -> None:
    lines = b"".join(b"* %d FETCH (UID %d FLAGS (\\Seen))\r\n" % (n, n) for n in range(1, 100_001))
    session = await connect(imap_endpoint(await serve(lambda line: lines + line.split()[0] + b" OK\r\n")))
    await login(session, USER, PASSWORD)
    session.set_selected(True)
    found: list[int] = []

    def take(event: Event) -> None:
        assert isinstance(event, FetchData)
        found.append(event.seq)

    began = time.process_time()
    command = session.launch("FETCH", "1:*", "(UID FLAGS)", prefix="UID", collect=take)
    await session.finish(command, None)
    assert found == list(range(1, 100_001))
    assert time.process_time() - began < 5


async def test_an_answer_without_end_is_not_kept(
    connect: Connect, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maild.remote.imap.receive.REPLY_OCTETS", 100_000)

    def endless(_line: bytes) -> Iterator[bytes]:
        while True:
            yield b'* LIST () "/" INBOX\r\n' * 100

    session = await connect(imap_endpoint(await serve(endless)))
    await login(session, USER, PASSWORD)
    with pytest.raises(ProtocolViolation, match="answers NAMESPACE without end"):
        await session.run("NAMESPACE")


async def test_what_comes_before_a_violation_is_used(connect: Connect, serve: Serve) -> None:
    answer = b"* 1 EXISTS\r\n* 1 FETCH (X {99999999999}\r\n"
    session = await connect(imap_endpoint(await serve(lambda _line: answer)))
    await login(session, USER, PASSWORD)
    found: list[Event] = []
    with pytest.raises(ProtocolViolation, match="99999999999 octets"):
        await session.finish(session.launch("NAMESPACE", collect=found.append))
    assert found == [Numbered(1, "EXISTS")]


async def test_a_name_with_octets_that_are_no_utf8_goes_back_as_it_came(connect: Connect, serve: Serve) -> None:
    lines: list[bytes] = []

    def answer(line: bytes) -> bytes:
        lines.append(line)
        return line.split()[0] + b" NO\r\n"

    session = await connect(imap_endpoint(await serve(answer)))
    await login(session, USER, PASSWORD)
    with pytest.raises(Rejected):
        await session.run("STATUS", quoted(b"Entw\xfcrfe".decode("utf-8", "surrogateescape")), "(UIDNEXT)")
    assert lines[0].endswith(b' STATUS "Entw\xfcrfe" (UIDNEXT)\r\n')


# -- back-pressure


class Slow:
    """Takes messages, and lets the loop turn until the connection has nothing more to say before it takes the next."""

    def __init__(self, session: ImapSession) -> None:
        self.protocol = session.protocol
        self.most_octets = 0
        self.pauses = 0

    async def until_quiet(self, handed_over: int) -> None:
        seen = -1
        while seen != self.protocol.line.received_octets:
            seen = self.protocol.line.received_octets
            for _turn in range(20):
                await asyncio.sleep(0)
        self.pauses += self.protocol.line._is_unwanted
        self.most_octets = max(self.most_octets, seen - handed_over)


@pytest.mark.parametrize("octets", [300, 10_000])
async def test_a_slow_consumer_stops_the_server(octets: int, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    high = 1 << 18
    monkeypatch.setattr(streaming, "HIGH_WATER_OCTETS", high)
    store = filled(6_000_000 // (octets + 1000), octets)
    async with server_of(store) as server, asyncio.timeout(4 * DEADLINE_S):
        session = await open_inbox(connect, server.port)
        slow = Slow(session)
        found: dict[int, bytes] = {}
        handed_over = session.protocol.line.received_octets
        async for arrived in messages(session, sets_of(store, 1000), ITEMS, lambda _size: None, []):
            for message in arrived:
                body = message.sections[b""]
                assert message.uid is not None
                assert isinstance(body, bytes | bytearray)
                found[message.uid] = bytes(body)
                handed_over += len(body)
            await slow.until_quiet(handed_over)
        assert found == raw(store)
        assert slow.pauses > 2
        framing = 60 * len(store.mailbox("INBOX"))
        assert slow.most_octets < high + len(module._BUFFER) + octets + framing


class FullDisk:
    """A sink that fails after a while."""

    def __init__(self) -> None:
        self.octets = 0

    def write(self, chunk: memoryview, /) -> None:
        self.octets += len(chunk)
        if self.octets > 1_000_000:
            raise LocalError("no space left", "make room")


async def test_a_sink_that_fails_ends_the_transfer_with_its_own_error(connect: Connect) -> None:
    store = filled(1, 6 << 20)
    async with server_of(store) as server, asyncio.timeout(DEADLINE_S):
        session = await open_inbox(connect, server.port)
        stream = messages(session, iter([[1]]), ITEMS, lambda _size: FullDisk(), [])
        with pytest.raises(LocalError, match="no space left; make room"):
            await anext(stream)
        assert session.is_lost
        await stream.aclose()


# -- secrets


@pytest.mark.parametrize("secret", [PASSWORD, 'q"uo\\te', "pässwörd✓", "x" * 500])
@pytest.mark.parametrize("auth", ["login", "plain"])
@pytest.mark.parametrize("outcome", ["OK", "NO", "BAD", "BYE", "CLOSE"])
async def test_no_secret_in_logs_errors_and_reprs(
    secret: str, auth: str, outcome: str, caplog: pytest.LogCaptureFixture, secret_scan: SecretScan, connect: Connect
) -> None:
    caplog.set_level(logging.DEBUG)
    secret_scan.add(secret)
    commands: list[str] = []
    end = {"BYE": "S: * BYE no\nCLOSE\n", "CLOSE": "CLOSE\n"}.get(
        outcome, f"S: $1 {outcome} [CAPABILITY IMAP4rev1] x\n"
    )
    said = ""
    script = f"S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hello\nC: $1 <...>\n{end}"
    with structlog.testing.capture_logs() as logged:
        async with asyncio.timeout(DEADLINE_S), Dialogue(script) as server:
            session = await connect(imap_endpoint(server.port, auth=auth))
            launch = session.protocol.launch

            def launched(command: Command) -> Command:
                commands.append(repr(command) + str(command) + f"{command!r:>9}")
                return launch(command)

            session.protocol.launch = launched  # type: ignore[method-assign]
            try:
                await login(session, USER, secret)
            except MaildError as error:
                said = "".join(traceback.format_exception(error)) + repr(error)
    shown = [*commands, said, repr(session), repr(session.protocol), str(logged), caplog.text]
    secret_scan.lines += shown
    assert not secret_scan.leaks()
    assert len(commands) == 1
    assert (said == "") == (outcome == "OK")


async def test_the_endpoint_s_repr_has_no_secret() -> None:
    assert PASSWORD not in repr(imap_endpoint(1))


@pytest.mark.parametrize(
    ("auth", "octet"), [*(("login", octet) for octet in ("\r", "\n", "\0", "\r\nA9 LOGOUT")), ("plain", "\0")]
)  # base64 carries the others: RFC 4616 forbids NUL only
@pytest.mark.parametrize("place", ["user", "password"])
async def test_what_cannot_be_sent_is_refused_here(
    auth: str, octet: str, place: str, connect: Connect, written: list[bytes]
) -> None:
    async with server_of(Store()) as server:
        session = await connect(imap_endpoint(server.port, auth=auth))
        user, password = (f"u{octet}", PASSWORD) if place == "user" else (USER, f"{PASSWORD}{octet}")
        with pytest.raises(AuthRejected, match="line break or NUL") as refusal:
            await login(session, user, password)
        assert PASSWORD not in str(refusal.value)
        assert written == []
        await login(session, USER, PASSWORD)


@pytest.mark.parametrize("octet", ["\r", "\n", "\0", "\r\nA9 LOGOUT"])
async def test_a_mailbox_name_that_cannot_be_sent_is_refused_here(
    octet: str, connect: Connect, written: list[bytes]
) -> None:
    async with server_of(Store()) as server:
        session = await open_inbox(connect, server.port)
        before = list(written)
        with pytest.raises(Rejected, match="a line break or NUL cannot be sent"):
            await session.run("EXAMINE", quoted(f"IN{octet}BOX"))
        assert written == before
        assert not session.is_lost
