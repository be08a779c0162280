"""Conversations with servers good and bad, written down in `dialogues/`, and what must come of each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from maild.core.errors import (
    AuthRejected,
    ConnectionLost,
    MaildError,
    ProtocolViolation,
    Rejected,
    TlsFailed,
    Unavailable,
)
from maild.remote.imap.login import login
from maild.remote.imap.parse import Data, FetchData, Numbered, Untagged
from maild.remote.imap.session import ImapSession, quoted
from maild.remote.imap.stream import messages as stream_of
from maild.testing.dialogue import Dialogue
from tests.remote.conftest import DEADLINE_S, PASSWORD, USER, Connect, imap_endpoint, scripts

pytestmark = pytest.mark.usefixtures("quiet_loop")

Act = Callable[[ImapSession], Awaitable[object]]


async def nothing(_session: ImapSession) -> None:
    """The connection itself is what the case is about."""


async def logged_in(session: ImapSession) -> set[str]:
    await login(session, USER, PASSWORD)
    return session.protocol.capabilities


async def login_twice(session: ImapSession) -> None:
    with pytest.raises(AuthRejected):
        await login(session, USER, "wrong")
    await login(session, USER, PASSWORD)


async def login_quoted(session: ImapSession) -> None:
    await login(session, 'a"b\\c d', 'pä"ss\\word')


async def namespace(session: ImapSession) -> list[object]:
    await logged_in(session)
    return list((await session.run("NAMESPACE")).events)


async def pipelined(session: ImapSession) -> list[object]:
    await logged_in(session)
    sent = [
        session.launch("ID", '("name" "maild")'),
        session.launch("NAMESPACE"),
        session.launch("LIST", '""', '"*"'),
        session.launch("STATUS", quoted('a (b) "c"'), "(UIDNEXT)"),
    ]
    return [(await session.finish(command)).events for command in sent]


async def two_statuses(session: ImapSession) -> str:
    await logged_in(session)
    first, second = (session.launch("STATUS", quoted(name), "(UIDNEXT)") for name in "ab")
    assert (await session.finish(first)).tagged.status == "OK"
    with pytest.raises(Rejected, match=r"refused STATUS: \[NONEXISTENT\] no such mailbox") as refusal:
        await session.finish(second)
    assert not session.is_lost
    return refusal.value.code


async def examined(session: ImapSession) -> list[object]:
    await logged_in(session)
    examine = session.launch("EXAMINE", quoted("INBOX"))
    session.set_selected(True)
    fetch = session.launch("FETCH", "1:*", "(UID FLAGS RFC822.SIZE)", prefix="UID")
    try:
        opened = await session.finish(examine)
    except Rejected:
        session.set_selected(False)
        with pytest.raises(Rejected):
            await session.finish(fetch)
        return [(await session.run("NAMESPACE")).tagged.status]
    return [*opened.events, (await session.finish(fetch)).events]


async def messages(session: ImapSession) -> tuple[dict[int | None, object], list[int]]:
    """Sets 1:2 and 3 streamed; an error on the way is raised with what came before as its note."""
    await logged_in(session)
    await session.run("EXAMINE", quoted("INBOX"))
    session.set_selected(True)
    found: dict[int | None, object] = {}
    refused: list[int] = []
    stream = stream_of(session, iter([[1, 2], [3]]), "(UID BODY.PEEK[])", lambda _size: None, refused)
    try:
        async for arrived in stream:
            found.update((message.uid, message.sections[b""]) for message in arrived)
    except MaildError as error:
        error.add_note(repr(found))
        raise
    return found, refused


async def log_out(session: ImapSession) -> None:
    await logged_in(session)
    await session.logout()
    with pytest.raises(ConnectionLost, match="logged out"):
        await session.run("NAMESPACE")


async def compressed(session: ImapSession) -> tuple[bool, list[object]]:
    await logged_in(session)
    is_compressed = await session.compress()
    namespaces: list[object] = list((await session.run("NAMESPACE")).data("NAMESPACE"))
    await session.logout()
    return is_compressed, namespaces


async def after_bye(session: ImapSession) -> None:
    await logged_in(session)
    while True:  # the goodbye may arrive before or after the command that it answers
        await session.run("CAPABILITY")


@dataclass(frozen=True)
class Case:
    """What to do with the session, with which endpoint, and what is the result: a value or an error."""

    act: Act = nothing
    result: object = None
    error: tuple[type[MaildError], str] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    note: str = ""


IDLE = {"IMAP4REV1", "IDLE"}
STARTTLS = {"tls": "starttls"}
NO_NAMESPACES = [Data("NAMESPACE", [None, None, None])]
THREE = ({1: b"one", 2: b"two", 3: b"three"}, [])

CASES = {
    "login-login": Case(logged_in, IDLE),
    "login-login-untagged": Case(logged_in, IDLE),
    "login-quoted": Case(login_quoted),
    "login-plain-ir": Case(logged_in, IDLE),
    "login-plain": Case(logged_in, IDLE),
    "login-plain-without-ir": Case(logged_in, IDLE, changes={"disable_extensions": frozenset({"SASL-IR"})}),
    "login-plain-asked-twice": Case(
        logged_in, error=(AuthRejected, "refused to log in user: cancelled; check user and")
    ),
    "login-refused": Case(
        logged_in, error=(AuthRejected, "refused to log in user: Invalid credentials; check user and")
    ),
    "login-refused-without-text": Case(logged_in, error=(AuthRejected, "refused to log in user: NO; check user and")),
    "login-unavailable": Case(logged_in, error=(Unavailable, "User database is down; it is tried again later")),
    "login-too-many": Case(logged_in, error=(Unavailable, "Too many simultaneous connections")),
    "login-bye": Case(logged_in, error=(Unavailable, "Maximum number of connections")),
    "login-disabled": Case(
        logged_in,
        error=(
            AuthRejected,
            "does not offer to log in by SCRAM-SHA-256 or PLAIN or LOGIN, but by ANONYMOUS NTLM; nothing",
        ),
    ),
    "login-plain-not-offered": Case(
        logged_in,
        error=(AuthRejected, 'does not offer to log in by PLAIN, but by LOGIN; nothing was sent; auth = "auto"'),
        changes={"auth": "plain"},
    ),
    "login-again": Case(login_twice),
    "capability-asked": Case(),
    "capability-refused": Case(error=(ProtocolViolation, "does not tell its capabilities: .*what.*; check host and")),
    "capability-none": Case(error=(ProtocolViolation, "does not speak IMAP4rev1; check host and port")),
    "capability-old": Case(error=(ProtocolViolation, "does not speak IMAP4rev1; check host and port")),
    "greeting-bye": Case(error=(ConnectionLost, "ended the connection: Server shutting down")),
    "greeting-bye-busy": Case(error=(Unavailable, "ended the connection: come back later")),
    "greeting-preauth": Case(error=(TlsFailed, r"wants to skip logging in \(PREAUTH\); maild does not")),
    "greeting-garbage": Case(error=(ProtocolViolation, "does not greet as an IMAP server does; check host and port")),
    "greeting-http": Case(error=(ProtocolViolation, "does not greet as an IMAP server does; check host and port")),
    "greeting-smtp": Case(error=(ProtocolViolation, "does not greet as an IMAP server does; check host and port")),
    "greeting-tagged": Case(error=(ProtocolViolation, "a command that was not sent")),
    "greeting-untagged": Case(error=(ProtocolViolation, "does not greet as an IMAP server does; check host and port")),
    "greeting-closed": Case(error=(ConnectionLost, "closed the connection")),
    "greeting-in-pieces": Case(),
    "pipelined": Case(
        pipelined,
        [
            [Data("ID", [None])],
            [Data("NAMESPACE", [[[b"", b"/"]], None, None])],
            [Data("LIST", [[], b"/", b"INBOX"]), Data("LIST", [[], b"/", b'a (b) "c"'])],
            [Data("STATUS", [b'a (b) "c"', [b"UIDNEXT", b"5"]])],
        ],
    ),
    "pipelined-out-of-order": Case(two_statuses, "NONEXISTENT"),
    "unknown-tag": Case(namespace, error=(ProtocolViolation, r"a command that was not sent \(X99\)")),
    "bye-in-command": Case(namespace, error=(ConnectionLost, "ended the connection: Internal error")),
    "bye-between-commands": Case(after_bye, error=(ConnectionLost, "ended the connection: Autologout; idle for")),
    "bye-then-silence": Case(namespace, error=(ConnectionLost, "ended the connection: Internal error")),
    "alert": Case(namespace, [Untagged("OK", "ALERT", b"", "\\x1b]0;pwned\\x07 visit http://evil.example")]),
    "alert-too-early": Case(error=(TlsFailed, "refused STARTTLS: NO"), changes=STARTTLS),
    "examine-fetch": Case(
        examined,
        [
            Data("FLAGS", [[b"\\Seen", b"\\Deleted"]]),
            Untagged("OK", "PERMANENTFLAGS", b"(\\*)", "x"),
            Numbered(2, "EXISTS"),
            Untagged("OK", "UIDVALIDITY", b"7", "x"),
            Untagged("OK", "UIDNEXT", b"10", "x"),
            [FetchData(1, 8, frozenset(), size=100), FetchData(2, 9, frozenset({"\\Seen"}), size=200)],
        ],
    ),
    "examine-refused": Case(examined, ["OK"]),
    "messages": Case(messages, THREE),
    "messages-like-responses": Case(messages, ({1: b"* BYE bye\r\nX1 OK\r\n", 2: b"{10}\r\n", 3: b")\r\n"}, [])),
    "messages-quoted": Case(messages, ({1: b'a "quoted" one :)', 2: b"", 3: b""}, [])),
    "messages-short-literal": Case(messages, ({1: b"one", 2: b"two", 3: b"three\r"}, [])),
    "messages-long-literal": Case(messages, error=(ProtocolViolation, "do not add up"), note="one"),
    "messages-refused": Case(messages, ({1: b"one", 3: b"three"}, [1, 2])),
    "messages-cut": Case(messages, error=(ConnectionLost, "closed the connection"), note="one"),
    "continuation-unasked": Case(namespace, []),
    "not-imap-in-between": Case(namespace, [Data("NAMESPACE", [None, None, None])]),
    "logout": Case(log_out),
    "compress": Case(compressed, (True, NO_NAMESPACES)),
    "compress-no": Case(compressed, (False, NO_NAMESPACES)),
    "compress-bad": Case(compressed, (False, NO_NAMESPACES)),
    "compress-absent": Case(compressed, (False, NO_NAMESPACES)),
    "compress-garbage": Case(compressed, error=(ProtocolViolation, "the compressed stream is damaged")),
    "compress-bye": Case(compressed, error=(Unavailable, "ended the connection: shutting down")),
    "starttls-absent": Case(error=(TlsFailed, "does not offer STARTTLS; nothing was sent; use port"), changes=STARTTLS),
    "starttls-absent-asked": Case(error=(TlsFailed, "does not offer STARTTLS; nothing was"), changes=STARTTLS),
    "starttls-no": Case(error=(TlsFailed, "refused STARTTLS: TLS not available .*; nothing was"), changes=STARTTLS),
    "starttls-bad": Case(error=(TlsFailed, "refused STARTTLS: Unknown command; nothing was"), changes=STARTTLS),
    "starttls-plus": Case(error=(TlsFailed, r"refused STARTTLS: \+ go ahead; nothing was"), changes=STARTTLS),
    "starttls-bye": Case(error=(ConnectionLost, "ended the connection: no TLS for you"), changes=STARTTLS),
    "starttls-close": Case(error=(ConnectionLost, "closed the connection"), changes=STARTTLS),
    "starttls-no-capability": Case(error=(ProtocolViolation, "does not tell its capabilities"), changes=STARTTLS),
}


async def test_every_conversation_has_its_case() -> None:
    assert CASES.keys() == {path.stem for path in scripts()}


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.stem)
async def test_conversation(script: Path, connect: Connect) -> None:
    case = CASES[script.stem]

    async def play(port: int) -> object:
        session = await connect(imap_endpoint(port, **case.changes))
        try:
            return await case.act(session)
        finally:
            session.drop()

    async with asyncio.timeout(DEADLINE_S), Dialogue.from_file(script) as server:
        if case.error is None:
            assert await play(server.port) == case.result
        else:
            with pytest.raises(case.error[0], match=case.error[1]) as failure:
                await play(server.port)
            assert type(failure.value) is case.error[0]
            assert PASSWORD not in str(failure.value)
            assert case.note in "".join(getattr(failure.value, "__notes__", []))


async def test_an_alert_is_logged_escaped_and_only_after_tls(connect: Connect) -> None:
    with structlog.testing.capture_logs() as logged:
        for name in ("alert", "alert-too-early"):
            await test_conversation(next(path for path in scripts() if path.stem == name), connect)
    alerts = [entry for entry in logged if entry["event"] == "server.alerted"]
    assert [entry["reason"] for entry in alerts] == ["\\x1b]0;pwned\\x07 visit http://evil.example"]
    assert alerts[0]["log_level"] == "warning"


async def test_capabilities_are_read_in_any_case(connect: Connect) -> None:
    async with Dialogue.from_file(next(path for path in scripts() if path.stem == "capability-asked")) as server:
        session = await connect(imap_endpoint(server.port))
        assert session.protocol.capabilities == {"IMAP4REV1", "AUTH=PLAIN", "SASL-IR"}
        assert session.has("SASL-IR")
        session.drop()
