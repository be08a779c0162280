"""What aioimaplib 2.0.3 does that made us replace its receiving half, pinned, and the same input given to ours.

A test of the first kind that fails after an upgrade is good news: the workaround it names may go.
"""

from __future__ import annotations

import asyncio
import logging
from importlib.metadata import version

import pytest
from aioimaplib import aioimaplib

from maild.core.errors import ConnectionLost, MaildError, ProtocolViolation, Unavailable
from maild.remote.imap.login import login
from maild.remote.imap.parse import Data, FetchData, Numbered, Vanished
from maild.remote.imap.session import Command, Protocol, quoted
from maild.testing.dialogue import Dialogue
from tests.remote.conftest import DEADLINE_S, PASSWORD, USER, Connect, imap_endpoint

HELLO = "S: * OK [CAPABILITY IMAP4rev1] hello\n"
LOGIN = "C: $1 LOGIN <...>\nS: $1 OK [CAPABILITY IMAP4rev1] in\n"


class Wire(asyncio.Transport):
    """Keeps what is written; what is received is given to the protocol by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data


@pytest.fixture
async def stock() -> aioimaplib.IMAP4ClientProtocol:
    """Their protocol, with a mailbox selected, and no network."""
    protocol = aioimaplib.IMAP4ClientProtocol(asyncio.get_running_loop())
    protocol.connection_made(Wire())
    protocol.state = aioimaplib.SELECTED
    return protocol


async def begun(stock: aioimaplib.IMAP4ClientProtocol) -> tuple[asyncio.Task[aioimaplib.Response], bytes]:
    """A UID FETCH that was sent and waits; its tag."""
    fetch = asyncio.create_task(stock.fetch("1:*", "(UID FLAGS)", by_uid=True))
    await asyncio.sleep(0)
    return fetch, stock.transport.written.split()[0]


async def ended(task: asyncio.Task[aioimaplib.Response]) -> None:
    task.cancel()
    await asyncio.wait([task])


def test_the_version_is_the_one_that_was_studied() -> None:
    assert version("aioimaplib").startswith("2.0.")


async def test_the_names_that_the_session_uses_exist(stock: aioimaplib.IMAP4ClientProtocol) -> None:
    command = aioimaplib.Command("NOOP", "A1")
    for name in ("_exception", "_event", "_reset_timer", "close", "wait", "name", "tag", "args", "prefix"):
        assert hasattr(command, name), f"Command.{name}"
    for name in ("pending_async_commands", "capabilities", "state", "new_tag", "send", "transport", "connection_lost"):
        assert hasattr(stock, name), f"IMAP4ClientProtocol.{name}"
    for name in ("create_client", "wait_hello_from_server", "_wait_connection_and_hello"):
        assert hasattr(aioimaplib.IMAP4, name), f"IMAP4.{name}"
    assert {"STARTTLS", "AUTHENTICATE", "LOGIN", "LIST", "STATUS", "EXAMINE", "FETCH", "ID"} <= set(aioimaplib.Commands)
    assert len({aioimaplib.STARTED, aioimaplib.NONAUTH, aioimaplib.AUTH, aioimaplib.SELECTED, aioimaplib.LOGOUT}) == 5
    assert issubclass(Protocol, asyncio.BufferedProtocol), "asyncio then reads into our buffer"


async def test_ours_speaks_in_their_words() -> None:
    assert Command("FETCH", "A1", "1:*", "(UID)", prefix="UID").line() == "A1 UID FETCH 1:* (UID)"
    with pytest.raises(ValueError, match="CR and LF"):  # the last guard: whatever passes ours does not pass theirs
        Command("LIST", "A1", '""', "a\r\nb")


async def test_many_lines_in_one_read_break_theirs(stock: aioimaplib.IMAP4ClientProtocol) -> None:
    fetch, _ = await begun(stock)
    with pytest.raises(RecursionError):
        stock.data_received(b"".join(b"* %d FETCH (UID %d FLAGS ())\r\n" % (n, n) for n in range(1, 3001)))
    await ended(fetch)


@pytest.mark.parametrize("line", [b"* 9 EXISTS", b"* 2 EXPUNGE", b"* VANISHED (EARLIER) 1:5", b"* OK [ALERT] x"])
async def test_theirs_drops_what_comes_within_a_fetch(line: bytes, stock: aioimaplib.IMAP4ClientProtocol) -> None:
    fetch, tag = await begun(stock)
    stock.data_received(line + b"\r\n" + tag + b" OK done\r\n")
    assert (await fetch).lines == [b"done"]


async def test_theirs_deletes_stars_within_a_line(stock: aioimaplib.IMAP4ClientProtocol) -> None:
    listing = asyncio.create_task(stock.simple_command("LIST", '""', '"*"'))
    await asyncio.sleep(0)
    tag = stock.transport.written.split()[0]
    stock.data_received(b'* LIST () "/" "a* b"\r\n' + tag + b" OK\r\n")
    assert (await listing).lines[0] == b'() "/" "ab"'


async def test_theirs_takes_the_end_of_a_text_for_a_literal(stock: aioimaplib.IMAP4ClientProtocol) -> None:
    fetch, tag = await begun(stock)
    stock.data_received(b"* OK text {12}\r\n" + tag + b" OK done\r\n")
    await asyncio.sleep(0)
    assert not fetch.done()
    await ended(fetch)


async def test_theirs_counts_parentheses_within_quotes(stock: aioimaplib.IMAP4ClientProtocol) -> None:
    fetch, tag = await begun(stock)
    stock.data_received(b'* 1 FETCH (ENVELOPE ("hi :("))\r\n* 2 FETCH (UID 2)\r\n' + tag + b" OK done\r\n")
    assert b"* 2 FETCH (UID 2)" in (await fetch).lines, "the second response, with its star, was taken for the first's"


async def test_theirs_ignores_lower_case(stock: aioimaplib.IMAP4ClientProtocol) -> None:
    fetch, tag = await begun(stock)
    stock.data_received(tag + b" ok done\r\n")
    await asyncio.sleep(0)
    assert not fetch.done()
    await ended(fetch)


async def test_theirs_does_not_wake_who_waits_when_the_connection_goes(
    stock: aioimaplib.IMAP4ClientProtocol,
) -> None:
    fetch, _ = await begun(stock)
    stock.connection_lost(ConnectionResetError())
    await asyncio.sleep(0)
    assert not fetch.done()
    await ended(fetch)


async def test_theirs_takes_preauth_in_a_text_for_one(stock: aioimaplib.IMAP4ClientProtocol) -> None:
    stock.state = aioimaplib.CONNECTED
    welcome = asyncio.create_task(stock.welcome(b"* OK no PREAUTH here"))
    await asyncio.sleep(0)
    assert stock.state == aioimaplib.AUTH
    welcome.cancel()
    await asyncio.wait([welcome])


async def test_theirs_is_stuck_after_a_cancelled_command(stock: aioimaplib.IMAP4ClientProtocol) -> None:
    first = asyncio.create_task(stock.simple_command("EXAMINE", "a"))
    await asyncio.sleep(0)
    await ended(first)
    second = asyncio.create_task(stock.simple_command("NOOP"))
    await asyncio.sleep(0)
    assert b"NOOP" not in stock.transport.written
    await ended(second)


async def test_theirs_logs_a_quoted_password(
    stock: aioimaplib.IMAP4ClientProtocol, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aioimaplib.aioimaplib")
    stock.state = aioimaplib.NONAUTH
    login = asyncio.create_task(stock.login("me", 'pass"word'))
    await asyncio.sleep(0)
    assert 'pass\\\\"word' in caplog.text, "it compares the raw secret with the quoted form"
    await ended(login)


def test_theirs_can_do_no_starttls() -> None:
    assert not hasattr(aioimaplib.IMAP4, "starttls")
    assert not hasattr(aioimaplib.IMAP4ClientProtocol, "starttls")


# -- the same input, ours


@pytest.mark.usefixtures("quiet_loop")
async def test_ours_keeps_everything(connect: Connect) -> None:
    script = (
        HELLO
        + LOGIN
        + (
            "C: $2 UID FETCH 1:* (UID FLAGS)\n"
            "S: * 9 EXISTS\nS: * 2 EXPUNGE\nS: * VANISHED (EARLIER) 1:5\nS: * OK text {12}\n"
            'S: * 1 FETCH (ENVELOPE ("hi :(") UID 1)\nS: * LIST () "/" "a* b"\n'
            "S*3000: * $# FETCH (UID $# FLAGS ())\nS: $2 ok done {3}\nEOF\n"
        )
    )
    async with asyncio.timeout(DEADLINE_S), Dialogue(script) as server:
        session = await connect(imap_endpoint(server.port))
        await login(session, USER, PASSWORD)
        session.set_selected(True)
        events = (await session.run("FETCH", "1:*", "(UID FLAGS)", prefix="UID")).events
        session.drop()
    assert events[:3] == [Numbered(9, "EXISTS"), Numbered(2, "EXPUNGE"), Vanished(True, ((1, 5),))]
    assert events[4:6] == [FetchData(1, 1), Data("LIST", [[], b"/", b"a* b"])]
    assert len(events) == 3006


@pytest.mark.usefixtures("quiet_loop")
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("CLOSE", ConnectionLost),
        ("RESET", ConnectionLost),
        ("S: * BYE [UNAVAILABLE] x", Unavailable),
        ("S: zzz OK", ProtocolViolation),
        ("S: * 1 FETCH (BODY[] {4294967296}", ProtocolViolation),
    ],
)
async def test_ours_tells_who_waits_at_once(answer: str, error: type[MaildError], connect: Connect) -> None:
    script = f"{HELLO}{LOGIN}C: $2 STATUS <...>\n{answer}\n"
    async with asyncio.timeout(DEADLINE_S), Dialogue(script) as server:
        session = await connect(imap_endpoint(server.port))
        await login(session, USER, PASSWORD)
        with pytest.raises(error):
            await session.run("STATUS", quoted("INBOX"), "(UIDNEXT)")
        assert session.is_lost
