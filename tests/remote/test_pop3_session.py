"""A POP3 connection: TLS and what is tried against it, logging in, commands ahead of their answers, silence."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from maild.config import Password, Pop3
from maild.core.errors import (
    AuthRejected,
    ConnectionLost,
    MaildError,
    ProtocolViolation,
    Rejected,
    TlsFailed,
    Unavailable,
)
from maild.remote.pop3 import session as module
from maild.remote.pop3.parse import Expected, Shape
from maild.remote.pop3.remote import Maildrop
from maild.remote.pop3.session import IN_FLIGHT, Pop3Session
from maild.testing.faults import Answer, Hold, Inject
from maild.testing.pop3 import ALL, Pop3Server
from tests.remote.conftest import DEADLINE_S, PASSWORD, SHORT_S, USER
from tests.servers.certificates import Authority, Certificate

pytestmark = pytest.mark.usefixtures("quiet_loop")

LONGEST_OCTETS = 1 << 20


def endpoint(port: int, **changes: Any) -> Pop3:
    values: dict[str, Any] = {"host": "127.0.0.1", "user": USER, "secret": Password(PASSWORD), "tls": "none"}
    return Pop3(port=port, **(values | changes))


@asynccontextmanager
async def connected(where: Pop3) -> AsyncIterator[Pop3Session]:
    async with asyncio.timeout(DEADLINE_S):
        session = await Pop3Session.connect(where, LONGEST_OCTETS)
        try:
            yield session
        finally:
            await session.leave()


@asynccontextmanager
async def served(*raws: bytes, **options: Any) -> AsyncIterator[Pop3Server]:
    async with Pop3Server(raws, {USER: PASSWORD}, **options) as server:
        yield server


# -- TLS


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
async def test_tls(authority: Authority, tls: str) -> None:
    context = authority.good().server_context()
    options = {"ssl_context": context} if tls == "implicit" else {"stls_context": context}
    async with served(b"A: b\r\n\r\n", **options) as server:
        where = endpoint(server.port, tls=tls, ca_file=authority.ca_file, host="localhost")
        async with connected(where) as session:
            await session.login(USER, PASSWORD)
            assert len(await Maildrop(session).listing()) == 1
        before = server.journal[: server.journal.index("AUTH ***")]
        assert before == (["CAPA"] if tls == "implicit" else ["CAPA", "STLS", "CAPA"])


BAD: dict[str, Callable[[Authority], Certificate]] = {
    name: getattr(Authority, name) for name in ("expired", "wrong_name", "self_signed") if hasattr(Authority, name)
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
@pytest.mark.parametrize("tls", ["implicit", "starttls"])
async def test_a_certificate_that_is_no_good(
    authority: Authority, make: Callable[[Authority], Certificate], tls: str
) -> None:
    context = make(authority).server_context()
    options = {"ssl_context": context} if tls == "implicit" else {"stls_context": context}
    async with served(**options) as server:
        where = endpoint(server.port, tls=tls, ca_file=authority.ca_file, host="localhost")
        with pytest.raises(TlsFailed):
            async with connected(where):
                pass
        assert not {"AUTH ***", "PASS ***"} & set(server.journal)


async def test_stls_is_not_offered() -> None:
    async with served() as server:
        with pytest.raises(TlsFailed, match="does not offer STLS"):
            async with connected(endpoint(server.port, tls="starttls")):
                pass
        assert server.journal == ["CAPA"]


@pytest.mark.parametrize("answer", ["-ERR no", "+ go on", "* OK", "", "+OKAY"])
async def test_stls_is_refused(authority: Authority, answer: str) -> None:
    async with served(stls_context=authority.good().server_context()) as server:
        server.faults.add("STLS", Answer(answer))
        with pytest.raises(TlsFailed):
            async with connected(endpoint(server.port, tls="starttls", ca_file=authority.ca_file)):
                pass
        assert server.journal == ["CAPA", "STLS"]


INJECTED: dict[str, Callable[[], list[bytes]]] = {
    "an answer": lambda: [b"+OK go\r\n+OK logged in\r\n"],
    "capabilities": lambda: [b"+OK go\r\n+OK\r\nSASL PLAIN\r\n.\r\n"],
    "in two segments": lambda: [b"+OK go\r\n", b"+OK\r\nSASL PLAIN\r\n.\r\n"],
    "a partial line": lambda: [b"+OK go\r\n+O"],
    "one octet": lambda: [b"+OK go\r\n+"],
    "one octet, late": lambda: [b"+OK go\r\n", b"+"],
    "an empty line": lambda: [b"+OK go\r\n\r\n"],
    "an empty line, late": lambda: [b"+OK go\r\n", b"\r\n"],
    "the OK itself cut": lambda: [b"+OK g", b"o\r\n-ERR no\r\n"],
    "garbage": lambda: [b"+OK go\r\n\x00\xff\x16"],
}


@pytest.mark.parametrize("pieces", INJECTED.values(), ids=INJECTED)
async def test_octets_behind_the_answer_are_an_attack(authority: Authority, pieces: Callable[[], list[bytes]]) -> None:
    """None of them is taken for an answer within TLS, and nothing but STLS and CAPA goes out."""
    context, heard, inside = authority.good().server_context(), bytearray(), bytearray()
    over = asyncio.Event()

    async def attack(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"+OK hello\r\n")
            heard.extend(await reader.readline())
            writer.write(b"+OK\r\nSTLS\r\nSASL PLAIN\r\n.\r\n")
            heard.extend(await reader.readline())
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a ClientHello belongs to TLS
            for piece in pieces():
                writer.write(piece)
                for _turn in range(3):  # of the loop: the client has read this piece before the next is sent
                    await asyncio.sleep(0)
            await writer.start_tls(context)
            inside.extend(await reader.read())
        except OSError:
            return
        finally:
            writer.transport.abort()
            over.set()

    server = await asyncio.start_server(attack, "127.0.0.1", 0)
    async with server, asyncio.timeout(DEADLINE_S):
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((TlsFailed, ConnectionLost)):
            async with connected(endpoint(port, tls="starttls", ca_file=authority.ca_file)):
                pass
        await over.wait()
    assert bytes(heard) == b"CAPA\r\nSTLS\r\n"
    assert bytes(inside) == b""


async def test_what_was_said_before_tls_is_forgotten(authority: Authority) -> None:
    async with served(stls_context=authority.good().server_context()) as server:
        lie = b"+OK\r\nSTLS\r\nPIPELINING\r\nSASL LOGIN\r\nEVIL\r\n.\r\n"
        server.faults.add("CAPA", Answer(lie.decode().removesuffix("\r\n")))
        where = endpoint(server.port, tls="starttls", ca_file=authority.ca_file, host="localhost")
        async with connected(where) as session:
            assert not session.has("EVIL")
            await session.login(USER, PASSWORD)


async def test_a_pin(authority: Authority) -> None:
    certificate = authority.good()
    pin = f"sha256:{certificate.fingerprint()}"
    async with served(ssl_context=certificate.server_context()) as server:
        async with connected(endpoint(server.port, tls="implicit", tls_fingerprint=pin)) as session:
            await session.login(USER, PASSWORD)
        with pytest.raises(TlsFailed, match="not the pinned one"):
            async with connected(endpoint(server.port, tls="implicit", tls_fingerprint="sha256:" + "0" * 64)):
                pass


# -- greeting and login


@pytest.mark.parametrize(
    ("greeting", "error"),
    [
        ("-ERR [SYS/TEMP] later", Unavailable),
        ("-ERR go away", Rejected),
        ("220 smtp.example.org ESMTP", ProtocolViolation),
        ("* OK IMAP4rev1", ProtocolViolation),
        ("+OK one\r\n+OK two", ProtocolViolation),
    ],
)
async def test_greetings(greeting: str, error: type[MaildError]) -> None:
    async with served() as server:
        server.faults.add("CONNECT", Answer(greeting))
        with pytest.raises(error):
            async with connected(endpoint(server.port)):
                pass


async def test_nobody_listens() -> None:
    with pytest.raises(ConnectionLost, match="refused"):
        async with connected(endpoint(1)):
            pass


@pytest.mark.parametrize("secret", ["a\r\nDELE 1", "a\nb", "a\0b"])
@pytest.mark.parametrize("capabilities", [ALL, frozenset({"USER"})])
async def test_a_secret_that_is_more_than_one_line(secret: str, capabilities: frozenset[str]) -> None:
    async with served(capabilities=capabilities) as server:
        async with connected(endpoint(server.port)) as session:
            with pytest.raises(AuthRejected):
                await session.login(USER, secret)
        assert set(server.journal) <= {"CAPA", "QUIT"}


async def test_a_password_too_long_for_one_line() -> None:
    """RFC 5034 §4: then the response is sent when the server asks for it."""
    secret = "ä" * 150
    async with Pop3Server(users={USER: secret}) as server, connected(endpoint(server.port)) as session:
        await session.login(USER, secret)
        assert server.journal == ["CAPA", "AUTH ***"]


async def test_user_and_pass_on_request() -> None:
    async with served() as server, connected(endpoint(server.port, auth="login")) as session:
        await session.login(USER, PASSWORD)
        assert server.journal == ["CAPA", f"USER {USER}", "PASS ***"]


async def test_apop_on_request() -> None:
    """The proof of RFC 1939 §7, and no password on the line."""
    users = {USER: "tanstaaf"}
    async with Pop3Server((), users, timestamp="<1896.697170952@dbc.mtview.ca.us>") as server:
        async with connected(endpoint(server.port)) as session:
            await session.login(USER, "tanstaaf")
        async with connected(endpoint(server.port, auth="apop")) as session:
            await session.login(USER, "tanstaaf")
            assert await Maildrop(session).listing() == []
            with pytest.raises(AuthRejected):
                await session.login(USER, "a\nb")
        async with connected(endpoint(server.port, auth="apop")) as session:
            with pytest.raises(AuthRejected, match="refused to log in"):
                await session.login(USER, "another")
        assert [line for line in server.journal if line.split(" ")[0] in {"AUTH", "USER", "PASS"}] == ["AUTH ***"]
        assert f"APOP {USER} c4c9334bac560ecc979e58001b3e22fb" in server.journal


@pytest.mark.parametrize("tls", ["none", "starttls"])
async def test_apop_that_is_not_offered(authority: Authority, tls: str) -> None:
    """A timestamp that came before the handshake is nobody's word."""
    options = {"stls_context": authority.good().server_context(), "timestamp": "<1@a>"} if tls == "starttls" else {}
    async with served(**options) as server:
        where = endpoint(server.port, auth="apop", tls=tls, ca_file=authority.ca_file, host="localhost")
        async with connected(where) as session:
            with pytest.raises(AuthRejected, match="does not offer APOP"):
                await session.login(USER, PASSWORD)
        assert not any(line.startswith(("APOP", "USER", "AUTH")) for line in server.journal)


async def test_a_mechanism_that_is_not_offered() -> None:
    async with served() as server, connected(endpoint(server.port, auth="scram-sha-256")) as session:
        with pytest.raises(AuthRejected):
            await session.login(USER, PASSWORD)
        assert server.journal == ["CAPA"]


async def test_a_server_without_capa() -> None:
    raw = b"A: b\r\n\r\n"
    async with served(raw, capabilities={"USER", "UIDL"}) as server, connected(endpoint(server.port)) as session:
        await session.login(USER, PASSWORD)
        assert [listed.uid for listed in await Maildrop(session).listing()] == ["uid000001"]


# -- commands


async def logged_in(session: Pop3Session) -> Maildrop:
    await session.login(USER, PASSWORD)
    return Maildrop(session)


async def test_commands_are_sent_ahead_where_the_server_can() -> None:
    """A window of them and no more; without PIPELINING one at a time."""
    raws = [b"A: %d\r\n\r\nx\r\n" % n for n in range(3 * IN_FLIGHT)]
    for capabilities, ahead in ((ALL, IN_FLIGHT), (ALL - {"PIPELINING"}, 1)):
        async with served(*raws, capabilities=capabilities) as server, connected(endpoint(server.port)) as session:
            drop = await logged_in(session)
            gate = asyncio.Event()
            server.faults.add("RETR", Hold(gate), nth=1)
            taken: list[int] = []

            def wanted(taken: list[int] = taken) -> Iterator[tuple[int, int]]:
                for number in range(1, len(raws) + 1):
                    taken.append(number)
                    yield number, 0

            got: list[int] = []
            async with aclosing(drop.fetch(wanted(), _no_body)) as stream:
                task = asyncio.ensure_future(anext(stream))
                while server.count("RETR") < 1:
                    await asyncio.sleep(0)
                assert len(taken) == ahead
                gate.set()
                got += [retrieved.number for retrieved in await task]
                async for several in stream:
                    got += [retrieved.number for retrieved in several]
            assert got == list(range(1, len(raws) + 1))


def _no_body(size_octets: int) -> Any:
    raise AssertionError(f"a message of {size_octets} octets needs no file")


async def test_leaving_early_ends_the_connection() -> None:
    async with served(*[b"A: b\r\n\r\n"] * 50) as server, connected(endpoint(server.port)) as session:
        drop = await logged_in(session)
        async with aclosing(drop.fetch(((n, 0) for n in range(1, 51)), _no_body)) as stream:
            await anext(stream)
        if session._parser.outstanding:
            assert session.is_lost
        else:
            assert not session.is_lost


async def test_a_cancelled_command_ends_the_connection() -> None:
    async with served(b"A: b\r\n\r\n") as server, connected(endpoint(server.port)) as session:
        await logged_in(session)
        rule = server.faults.add("UIDL", Hold(asyncio.Event()))
        task = asyncio.ensure_future(session.run("UIDL", Shape.LISTING))
        await rule.struck.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert session.is_lost


@pytest.mark.parametrize("octets", [b"", b"+OK\r\n1 uid"])
async def test_silence_ends_the_connection(monkeypatch: pytest.MonkeyPatch, octets: bytes) -> None:
    monkeypatch.setattr(module, "STALL_S", SHORT_S)
    async with served(b"A: b\r\n\r\n") as server, connected(endpoint(server.port)) as session:
        drop = await logged_in(session)
        server.faults.add("UIDL", Hold(asyncio.Event(), after_octets=len(octets)))
        with pytest.raises(ConnectionLost, match="sent nothing"):
            await drop.listing()
        assert session.is_lost


async def test_an_octet_now_and_then_is_no_proof_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_S", SHORT_S)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                writer.write(b"+")
                await writer.drain()
                await asyncio.wait_for(reader.read(1), SHORT_S / 20)
        except TimeoutError:
            await drip(reader, writer)
        except OSError:
            return
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with server:
        with pytest.raises((ConnectionLost, ProtocolViolation)):
            async with connected(endpoint(server.sockets[0].getsockname()[1])):
                pass


@pytest.mark.parametrize("extra", [b"+OK more\r\n", b"more\r\n", b"\r\n", b"\x00"])
async def test_what_nobody_asked_for_ends_the_session(extra: bytes) -> None:
    """The next answer would be taken for that of another command."""
    async with served(b"A: b\r\n\r\n") as server, connected(endpoint(server.port)) as session:
        drop = await logged_in(session)
        server.faults.add("UIDL", Inject(extra, after_octets=len(b"+OK unique-ids\r\n1 uid000001\r\n.\r\n")))
        await drop.listing()
        with pytest.raises((ProtocolViolation, ConnectionLost)):
            await drop.sizes([1])


async def test_a_message_beyond_the_limit_ends_the_session() -> None:
    async with served(b"A: b\r\n\r\n" + b"x" * 80 * 40_000) as server, connected(endpoint(server.port)) as session:
        drop = await logged_in(session)

        class Sink:
            def write(self, chunk: memoryview) -> None:
                assert len(chunk) < LONGEST_OCTETS + 100_000

        with pytest.raises(ProtocolViolation, match="more than 1048576 octets"):
            async with aclosing(drop.fetch([(1, 10)], lambda _: Sink())) as stream:
                async for _ in stream:
                    pass


@pytest.mark.parametrize("known", [ALL, ALL - {"PIPELINING"}])
async def test_sizes_headers_and_deletions(known: Iterable[str]) -> None:
    raws = [b"A: %d\r\n.x: y\r\n\r\n.body\r\n" % n for n in range(120)]
    async with served(*raws, capabilities=known) as server:
        async with connected(endpoint(server.port)) as session:
            drop = await logged_in(session)
            assert await drop.sizes([3, 5]) == {3: len(raws[2]), 5: len(raws[4])}
            assert await drop.sizes(range(1, 121)) == {n: len(raw) for n, raw in enumerate(raws, 1)}
            assert await drop.headers([1, 120, 121]) == {n: raws[n - 1].removesuffix(b".body\r\n") for n in (1, 120)}
            assert await drop.delete([2, 3, 999]) == {2, 3}
            assert await drop.quit()
        assert len(server.messages) == 118


async def test_without_quit_nothing_is_deleted() -> None:
    async with served(b"A: b\r\n\r\n") as server:
        async with connected(endpoint(server.port)) as session:
            drop = await logged_in(session)
            assert await drop.delete([1]) == {1}
            await session.drop()
        await server.unlocked()
        assert len(server.messages) == 1


async def test_the_secret_goes_out_in_no_other_line() -> None:
    async with served() as server, connected(endpoint(server.port)) as session:
        await session.login(USER, PASSWORD)
        text = " ".join(server.journal)
        assert PASSWORD not in text
        assert base64.b64encode(PASSWORD.encode()).decode()[:-4] not in text


async def test_a_refused_command_leaves_the_session_usable() -> None:
    async with served(b"A: b\r\n\r\n") as server, connected(endpoint(server.port)) as session:
        await logged_in(session)
        server.faults.add("NOOP", Answer("-ERR [X-Y] no"))
        with pytest.raises(Rejected) as refused:
            await session.run("NOOP")
        assert refused.value.code == "X-Y"
        async with aclosing(session.exchange([("NOOP", Expected())] * 3)) as replies:
            assert [reply.ok async for several in replies for reply in several] == [True] * 3
