"""Submitting: every stage of a transaction against everything a server may do there, for one and for several."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from maild.config import Password, Smtp
from maild.core.errors import AuthRejected, ConnectionLost, MaildError, ProtocolViolation, TlsFailed
from maild.core.outgoing import Notices, Submission, Verdict, Verdicts
from maild.remote.auth import Credentials
from maild.remote.smtp import RFC_5321, Offline, SessionRefused, Timeouts
from maild.remote.submission import SmtpSession
from maild.testing.smtp import EOF, EXTENSIONS, RESET, SILENCE, STALL, End, Reaction, SmtpServer, Stage
from tests.servers.certificates import Authority

pytestmark = pytest.mark.usefixtures("quiet_loop")

USER = "user"
PASSWORD = "correct horse battery staple"
TEXT = b"Subject: hello\n\n.a line with a dot\n..two\nand the last"
WIRE = b"Subject: hello\r\n\r\n.a line with a dot\r\n..two\r\nand the last\r\n"
SHORT = Timeouts(connect_s=5, command_s=0.3, data_s=0.3, block_s=0.3, final_s=0.3, goodbye_s=0.1)
LONG = Timeouts(connect_s=5, command_s=5, data_s=5, block_s=5, final_s=5, goodbye_s=0.1)
ONE = ("a@b.example",)
SEVERAL = ("a@b.example", "c@d.example", "e@f.example")
WITHOUT_PIPELINING = tuple(name for name in EXTENSIONS if name != "PIPELINING")


def endpoint(server: SmtpServer, **changes: Any) -> Smtp:
    values: dict[str, Any] = {"user": USER, "secret": Password(PASSWORD), "tls": "none"}
    return Smtp(host=server.host, port=server.port, **(values | changes))


def message(number: int = 1, recipients: Sequence[str] = ONE, **changes: Any) -> Submission:
    return replace(Submission(str(number), "me@example.org", tuple(recipients), len(WIRE)), **changes)


@dataclass
class Bodies:
    """What the engine does in these tests: it notes which bodies were begun and whom the server had refused."""

    text: bytes = TEXT
    begun: list[str] = field(default_factory=list)
    refused: dict[str, Verdicts] = field(default_factory=dict)

    async def __call__(self, submission: Submission, refused: Verdicts) -> bytes:
        self.begun.append(submission.id)
        self.refused[submission.id] = refused
        return self.text


@asynccontextmanager
async def opened(server: SmtpServer, timeouts: Timeouts = LONG, **changes: Any) -> AsyncIterator[SmtpSession]:
    there = endpoint(server, **changes)
    session = await SmtpSession.open(there, Credentials(there, "work"), timeouts)
    try:
        yield session
    finally:
        session.drop()


async def submit(session: SmtpSession, *messages: Submission, bodies: Bodies | None = None) -> dict[str, Verdicts]:
    waiting = list(messages)
    found: dict[str, Verdicts] = {}
    async with aclosing(session.submit(lambda: waiting.pop(0) if waiting else None, bodies or Bodies())) as answers:
        async for submission, verdicts in answers:
            found[submission.id] = dict(verdicts)
    return found


def states(verdicts: Verdicts) -> dict[str, str]:
    return {address: verdict.state for address, verdict in verdicts.items()}


def servers() -> SmtpServer:
    return SmtpServer(users={USER: PASSWORD})


# -- when all goes well


@pytest.mark.parametrize("extensions", [EXTENSIONS, WITHOUT_PIPELINING, ()])
@pytest.mark.parametrize("recipients", [ONE, SEVERAL])
async def test_messages_arrive_octet_by_octet(extensions: Sequence[str], recipients: Sequence[str]) -> None:
    async with SmtpServer(users={USER: PASSWORD}, extensions=extensions) as server, opened(server) as session:
        found = await submit(session, *(message(n, recipients) for n in range(5)))
        await session.close()
    assert [states(verdicts) for verdicts in found.values()] == [dict.fromkeys(recipients, "sent")] * 5
    assert [(m.sender, m.recipients, m.octets) for m in server.journal] == [
        ("me@example.org", tuple(recipients), WIRE)
    ] * 5
    assert server.connections == 1


async def test_the_reply_is_kept() -> None:
    async with servers() as server, opened(server) as session:
        server.react("dot", "250-2.0.0 queued\r\n250 2.0.0 as 4711")
        found = await submit(session, message())
    assert str(found["1"][ONE[0]].reply) == "250 2.0.0 queued as 4711"


async def test_the_null_reverse_path_and_many_recipients() -> None:
    recipients = [f"r{n}@b.example" for n in range(300)]
    async with servers() as server, opened(server) as session:
        found = await submit(session, message(1, recipients, sender=""))
    assert set(states(found["1"]).values()) == {"sent"}
    assert server.journal[0].sender == ""
    assert list(server.journal[0].recipients) == recipients


async def test_with_pipelining_an_envelope_is_one_write() -> None:
    """And nothing follows a body before it is answered for: Dovecot 2.3 dies of an envelope there."""
    async with servers() as server, opened(server) as session:
        waiting = [message(1, SEVERAL), message(2)]
        async with aclosing(session.submit(lambda: waiting.pop(0) if waiting else None, Bodies())) as answers:
            await anext(answers)
            assert [line.split(" ")[0] for line in server.commands[-5:]] == ["MAIL", *["RCPT"] * 3, "DATA"]
            assert len(waiting) == 1
            await anext(answers)
    assert len(server.journal) == 2


# -- every stage and every reaction

REPLIES: dict[str, Reaction] = {
    "4yz": "451 4.3.0 try later",
    "5yz": "550 5.7.1 no",
    "421": "421 4.3.2 shutting down",
    "garbage": b"\x00\xff what is this\r\n",
    "endless": b"x" * 20_000,
    "changing": b"250-one\r\n550 two\r\n",
    "silence": SILENCE,
    "reset": RESET,
    "EOF": EOF,
}


@pytest.mark.parametrize("recipients", [ONE, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("reaction", REPLIES)
@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "body", "dot"])
@pytest.mark.parametrize("extensions", [EXTENSIONS, WITHOUT_PIPELINING], ids=["pipelining", "one by one"])
async def test_what_a_server_does_with_a_message(
    stage: Stage, reaction: str, recipients: Sequence[str], extensions: Sequence[str]
) -> None:
    """4yz and losses before the dot defer, 5yz fails, and whatever is unclear after the dot is uncertain."""
    bodies = Bodies(
        text=b"x\n" * (4 << 20) if stage == "body" else TEXT
    )  # or it would be over before the server reacts
    async with SmtpServer(users={USER: PASSWORD}, extensions=extensions) as server, opened(server, SHORT) as session:
        server.react(stage, REPLIES[reaction], when=recipients[-1] if stage == "rcpt" else "")
        found = states((await submit(session, message(1, recipients), bodies=bodies))["1"])
    clear = {"4yz": "deferred", "5yz": "failed", "421": "deferred"}
    is_unclear = stage == "dot" or (stage, reaction) == ("body", "silence")  # which takes all of the body, and its end
    expected = clear.get(reaction, "uncertain" if is_unclear else "deferred")
    if stage == "rcpt" and reaction in ("4yz", "5yz"):
        others = dict.fromkeys(recipients[:-1], "sent")
        assert found == {**others, recipients[-1]: expected}
    else:
        assert found == dict.fromkeys(recipients, expected)
    was_begun = stage in ("body", "dot") or (stage == "rcpt" and len(recipients) > 1 and reaction in ("4yz", "5yz"))
    assert bodies.begun == (["1"] if was_begun else [])
    if expected != "uncertain":  # what is not uncertain and not sent must not have been taken
        assert [m.recipients for m in server.journal] == (
            [tuple(recipients[:-1])] if stage == "rcpt" and was_begun else []
        )


@pytest.mark.parametrize("reaction", ["4yz", "5yz"])
@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "dot"])
@pytest.mark.parametrize("extensions", [EXTENSIONS, WITHOUT_PIPELINING], ids=["pipelining", "one by one"])
async def test_a_refused_message_holds_up_no_other(stage: Stage, reaction: str, extensions: Sequence[str]) -> None:
    async with SmtpServer(users={USER: PASSWORD}, extensions=extensions) as server, opened(server) as session:
        server.react(stage, REPLIES[reaction])
        found = await submit(session, message(1), message(2, ["x@y.example"]), message(3, SEVERAL))
        assert not session.is_over
    assert states(found["1"]) == {ONE[0]: {"4yz": "deferred", "5yz": "failed"}[reaction]}
    assert states(found["2"]) == {"x@y.example": "sent"}
    assert set(states(found["3"]).values()) == {"sent"}
    assert [m.recipients for m in server.journal] == [("x@y.example",), SEVERAL]


@pytest.mark.parametrize("reaction", ["421", "garbage", "reset", "EOF"])
async def test_when_the_session_is_over_nothing_more_is_taken(reaction: str) -> None:
    waiting = [message(1), message(2)]
    async with servers() as server, opened(server, SHORT) as session:
        server.react("dot", REPLIES[reaction])
        async with aclosing(session.submit(lambda: waiting.pop(0) if waiting else None, Bodies())) as answers:
            found = {submission.id: states(verdicts) async for submission, verdicts in answers}
        assert session.is_over
    assert found == {"1": {ONE[0]: "deferred" if reaction == "421" else "uncertain"}}
    assert [submission.id for submission in waiting] == ["2"]


async def test_the_refused_are_known_before_the_body() -> None:
    bodies = Bodies()
    async with servers() as server, opened(server) as session:
        server.react("rcpt", "550 5.1.1 nobody", when="c@d")
        server.react("rcpt", "450 4.2.1 busy", when="e@f")
        await submit(session, message(1, SEVERAL), bodies=bodies)
    assert states(bodies.refused["1"]) == {"c@d.example": "failed", "e@f.example": "deferred"}
    assert server.journal[0].recipients == ("a@b.example",)


async def test_all_refused_and_a_server_that_wants_the_body_all_the_same() -> None:
    """RFC 2920 §3.1: the client ends the body at once; nobody gets anything, and the session goes on."""
    bodies = Bodies()
    async with servers() as server, opened(server, SHORT) as session:
        server.react("rcpt", "550 5.1.1 nobody")
        server.react("data", "354 go on")
        found = await submit(session, message(1), message(2, SEVERAL), bodies=bodies)
    assert states(found["1"]) == {ONE[0]: "failed"}
    assert set(states(found["2"]).values()) == {"sent"}
    assert bodies.begun == ["2"]


async def test_a_positive_answer_to_data_is_no_delivery() -> None:
    async with servers() as server, opened(server, SHORT) as session:
        server.react("data", "250 2.0.0 sure")
        found = await submit(session, message(1))
    assert states(found["1"]) == {ONE[0]: "deferred"}
    assert session.is_over


async def test_a_positive_answer_inside_the_body_is_no_delivery() -> None:
    async with servers() as server, opened(server, SHORT) as session:
        server.react("body", "250 2.0.0 queued")
        found = await submit(session, message(1), bodies=Bodies(text=b"x\n" * (4 << 20)))
    assert states(found["1"]) == {ONE[0]: "deferred"}
    assert session.is_over


async def test_words_about_the_login_are_no_words_about_the_message() -> None:
    async with servers() as server, opened(server) as session:
        server.react("mail", "530 5.7.0 Authentication required")
        found = await submit(session, message(1))
    assert states(found["1"]) == {ONE[0]: "deferred"}


async def test_a_server_that_takes_nothing_more_of_a_big_body() -> None:
    async with servers() as server, opened(server, SHORT) as session:
        server.react("body", STALL)
        found = await submit(session, message(1), bodies=Bodies(text=b"x\n" * (8 << 20)))
    assert states(found["1"]) == {ONE[0]: "deferred"}
    assert server.journal == []


async def test_a_connection_that_is_reset_while_a_big_body_is_written() -> None:
    """The loop has not heard of the reset yet: the first block meets it, the second finds the transport closed."""
    is_reset = threading.Event()

    def serve(listener: socket.socket) -> None:
        there, _ = listener.accept()
        with there, there.makefile("rwb", 0) as wire:
            for answer in (b"220 x", b"250-x\r\n250 AUTH PLAIN", b"235 ok", b"250 ok", b"250 ok", b"354 go"):
                wire.write(answer + b"\r\n")
                if not answer.startswith(b"354"):
                    wire.readline()
            there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        is_reset.set()

    class Waiting(Bodies):
        async def __call__(self, submission: Submission, refused: Verdicts) -> bytes:
            assert is_reset.wait(10)
            return await super().__call__(submission, refused)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        there = Smtp(host="127.0.0.1", port=port, user=USER, secret=Password(PASSWORD), tls="none")
        session = await SmtpSession.open(there, Credentials(there, "work"), LONG)
        found = await submit(session, message(1), bodies=Waiting(text=b"x\n" * (1 << 20)))
        thread.join()
    assert states(found["1"]) == {ONE[0]: "deferred"}
    assert session.is_over


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ("greeting", "command_s"),
        ("ehlo", "command_s"),
        ("auth", "command_s"),
        ("mail", "command_s"),
        ("rcpt", "command_s"),
        ("data", "data_s"),
        ("body", "block_s"),
        ("dot", "final_s"),
        ("quit", "goodbye_s"),
    ],
)
async def test_each_step_has_its_own_patience(stage: Stage, step: str) -> None:
    """A server that falls silent is left after the time of that step, not after that of another."""
    timeouts = Timeouts(**dict.fromkeys(["connect_s", "command_s", "data_s", "block_s", "final_s", "goodbye_s"], 60.0))
    timeouts = replace(timeouts, **{step: 0.2})
    bodies = Bodies(text=b"x\n" * (8 << 20)) if stage == "body" else Bodies()
    async with servers() as server, asyncio.timeout(10):
        server.react(stage, STALL if stage == "body" else SILENCE)
        with suppress(ConnectionLost):
            async with opened(server, timeouts) as session:
                found = await submit(session, message(1), bodies=bodies)
                await session.close()
                assert stage != "quit" or states(found["1"]) == {ONE[0]: "sent"}


async def test_the_patience_of_the_standard() -> None:
    """RFC 5321 §4.5.3.2: a server that is slow with its last word has not lost the message."""
    assert (RFC_5321.command_s, RFC_5321.data_s, RFC_5321.block_s, RFC_5321.final_s) == (300, 120, 180, 600)


# -- opening


@pytest.mark.parametrize(
    ("stage", "reaction", "expected"),
    [
        ("greeting", "4yz", SessionRefused),
        ("greeting", "5yz", SessionRefused),
        ("greeting", "421", SessionRefused),
        ("greeting", "garbage", ProtocolViolation),
        ("greeting", "endless", ProtocolViolation),
        ("greeting", "silence", ConnectionLost),
        ("greeting", "reset", ConnectionLost),
        ("greeting", "EOF", ConnectionLost),
        ("ehlo", "4yz", SessionRefused),
        ("ehlo", "5yz", SessionRefused),
        ("ehlo", "421", SessionRefused),
        ("ehlo", "garbage", ProtocolViolation),
        ("ehlo", "changing", ProtocolViolation),
        ("ehlo", "silence", ConnectionLost),
        ("ehlo", "EOF", ConnectionLost),
        ("auth", "4yz", SessionRefused),
        ("auth", "5yz", AuthRejected),
        ("auth", "421", SessionRefused),
        ("auth", "garbage", ProtocolViolation),
        ("auth", "silence", ConnectionLost),
        ("auth", "reset", ConnectionLost),
    ],
)
async def test_a_session_that_does_not_come_about(stage: Stage, reaction: str, expected: type[MaildError]) -> None:
    async with servers() as server:
        server.react(stage, REPLIES[reaction])
        with pytest.raises(expected) as caught:
            async with opened(server, SHORT):
                pass
    assert not isinstance(caught.value, Offline)  # there was a server: that is an attempt
    assert str(server.port) in str(caught.value)
    if isinstance(caught.value, SessionRefused):
        assert str(caught.value.reply) == REPLIES[reaction]


async def test_no_server_at_all_is_no_attempt() -> None:
    async with servers() as server:
        pass
    with pytest.raises(Offline):
        async with opened(server, SHORT):
            pass


@pytest.mark.parametrize("auth", ["plain", "login", "auto"])
async def test_logging_in(auth: str) -> None:
    async with servers() as server, opened(server, auth=auth) as session:
        assert states((await submit(session, message()))["1"]) == {ONE[0]: "sent"}


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2"])
async def test_other_mechanisms(mechanism: str) -> None:
    """They come from `remote.sasl`, as for all protocols; a token where it takes one."""
    auth = mechanism.lower()
    async with SmtpServer(users={USER: PASSWORD}, mechanisms=(mechanism, "PLAIN")) as server:
        async with opened(server, auth=auth) as session:
            assert states((await submit(session, message()))["1"]) == {ONE[0]: "sent"}
        with pytest.raises(AuthRejected):
            async with opened(server, auth=auth, secret=Password("not that one")):
                pass
    assert len(server.journal) == 1


async def test_a_wrong_password_is_tried_once() -> None:
    async with servers() as server:
        there = endpoint(server, secret=Password("not that one"))
        credentials = Credentials(there, "work")
        for _ in range(3):
            with pytest.raises(AuthRejected, match=r"refused to log in user: 535 5\.7\.8"):
                await SmtpSession.open(there, credentials, SHORT)
    assert server.commands.count("AUTH") == 1


async def test_a_server_without_auth_is_not_used() -> None:
    """That may pass: the secret is as good as before, and is not even read."""
    async with SmtpServer() as server:
        there = endpoint(server)
        credentials = Credentials(there, "work")
        with pytest.raises(SessionRefused, match="offers no way to log in"):
            await SmtpSession.open(there, credentials, SHORT)
    assert "AUTH" not in server.commands
    assert credentials.refused is None


async def test_a_server_with_no_mechanism_for_us_waits_for_another_config() -> None:
    async with SmtpServer(users={USER: PASSWORD}, mechanisms=("GSSAPI",)) as server:
        with pytest.raises(AuthRejected, match=r"does not offer to log in by .*, but by GSSAPI"):
            async with opened(server):
                pass
    assert "AUTH" not in server.commands


# -- TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
async def test_over_tls(tls: str, authority: Authority) -> None:
    context = authority.good().server_context()
    server = SmtpServer(users={USER: PASSWORD}, **{"tls" if tls == "implicit" else "starttls": context})
    async with server, opened(server, tls=tls, ca_file=authority.ca_file) as session:
        found = await submit(session, message(1), message(2, SEVERAL))
        await session.close()
    assert {state for verdicts in found.values() for state in states(verdicts).values()} == {"sent"}
    assert len(server.journal) == 2


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
async def test_a_certificate_for_another_name(tls: str, authority: Authority) -> None:
    context = authority.wrong_name().server_context()
    server = SmtpServer(users={USER: PASSWORD}, **{"tls" if tls == "implicit" else "starttls": context})
    async with server:
        with pytest.raises(TlsFailed, match="another"):
            async with opened(server, SHORT, tls=tls, ca_file=authority.ca_file):
                pass
    assert "AUTH" not in server.commands


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
async def test_a_pinned_certificate(tls: str, authority: Authority) -> None:
    good, other = authority.good(), authority.self_signed()
    context = good.server_context()
    server = SmtpServer(users={USER: PASSWORD}, **{"tls" if tls == "implicit" else "starttls": context})
    async with server:
        async with opened(server, tls=tls, tls_fingerprint=f"sha256:{good.fingerprint()}"):
            pass
        before = server.commands.count("AUTH")
        with pytest.raises(TlsFailed, match="fingerprint"):
            async with opened(server, tls=tls, tls_fingerprint=f"sha256:{other.fingerprint()}"):
                pass
    assert server.commands.count("AUTH") == before


@pytest.mark.parametrize(
    ("reaction", "expected"),
    [("502 5.5.1 no", TlsFailed), ("454 4.7.0 not now", SessionRefused), ("354 hm", TlsFailed), (EOF, ConnectionLost)],
)
async def test_starttls_refused(reaction: str | End, expected: type[MaildError], authority: Authority) -> None:
    async with SmtpServer(users={USER: PASSWORD}, starttls=authority.good().server_context()) as server:
        server.react("starttls", reaction)
        with pytest.raises(expected):
            async with opened(server, SHORT, tls="starttls", ca_file=authority.ca_file):
                pass
    assert server.commands[1:] == ["STARTTLS"]


async def test_starttls_that_is_not_offered() -> None:
    async with servers() as server:
        with pytest.raises(TlsFailed, match="does not offer STARTTLS"):
            async with opened(server, SHORT, tls="starttls"):
                pass
    assert [command.split()[0] for command in server.commands] == ["EHLO"]


@pytest.mark.parametrize("injected", ["250 AUTH LOGIN\r\n", "2", "\r\n", "250-AUTH PLAIN\r\n250 X\r\n"])
async def test_octets_behind_the_answer_to_starttls_are_an_attack(injected: str, authority: Authority) -> None:
    async with SmtpServer(users={USER: PASSWORD}, starttls=authority.good().server_context()) as server:
        server.react("starttls", f"220 go\r\n{injected}".encode())
        with pytest.raises(TlsFailed, match="sent more in plain text"):
            async with opened(server, SHORT, tls="starttls", ca_file=authority.ca_file):
                pass
    assert "AUTH" not in server.commands


# -- what the server can do


async def test_size_is_told_and_obeyed() -> None:
    async with SmtpServer(users={USER: PASSWORD}, extensions=("SIZE 1000",)) as server, opened(server) as session:
        found = await submit(session, message(1, size_octets=999), message(2, SEVERAL, size_octets=1001))
    assert server.journal[0].parameters == ("SIZE=999",)
    assert len(server.journal) == 1
    assert set(states(found["2"]).values()) == {"failed"}
    assert "takes 1000 octets at most" in str(found["2"][ONE[0]].reply)


@pytest.mark.parametrize(
    ("extensions", "changes", "expected"),
    [
        (("8BITMIME", "SMTPUTF8"), {}, ()),
        (("8BITMIME", "SMTPUTF8"), {"is_8bit": True}, ("BODY=8BITMIME",)),
        (("SMTPUTF8",), {"is_8bit": True}, ()),
        (("8BITMIME", "SMTPUTF8"), {"is_8bit": True, "utf8": "wanted"}, ("BODY=8BITMIME", "SMTPUTF8")),
        (("8BITMIME",), {"is_8bit": True, "utf8": "wanted"}, ("BODY=8BITMIME",)),
        (("8BITMIME", "SMTPUTF8"), {"utf8": "needed"}, ("BODY=8BITMIME", "SMTPUTF8")),
    ],
)
async def test_extensions_only_where_they_are_needed(
    extensions: Sequence[str], changes: dict[str, Any], expected: Sequence[str]
) -> None:
    async with SmtpServer(users={USER: PASSWORD}, extensions=extensions) as server, opened(server) as session:
        await submit(session, message(1, **changes))
    assert server.journal[0].parameters == tuple(expected)


async def test_notices_of_delivery_only_where_the_server_has_them() -> None:
    wanted = Notices("SUCCESS,DELAY", "HDRS", "a+b=c d")
    async with SmtpServer(users={USER: PASSWORD}, extensions=("DSN",)) as server, opened(server) as session:
        await submit(session, message(1, notices=wanted), message(2))
    assert server.journal[0].parameters == ("RET=HDRS", "ENVID=a+2Bb+3Dc+20d")
    assert [line for line in server.commands if line.startswith("RCPT")] == [
        f"RCPT TO:<{ONE[0]}> NOTIFY=SUCCESS,DELAY",
        f"RCPT TO:<{ONE[0]}>",
    ]
    async with servers() as server, opened(server) as session:
        await submit(session, message(1, notices=wanted))
    assert not any(parameter.startswith(("RET", "ENVID")) for parameter in server.journal[0].parameters)
    assert f"RCPT TO:<{ONE[0]}>" in server.commands


@pytest.mark.parametrize("notices", [Notices("NEVER\r\nRCPT TO:<x@y>"), Notices(ret="FULL AUTH=<>")])
async def test_what_is_asked_of_notices_is_no_command(notices: Notices) -> None:
    """The file of an item can be edited by hand."""
    async with SmtpServer(users={USER: PASSWORD}, extensions=("DSN",)) as server, opened(server) as session:
        found = await submit(session, message(1, notices=notices))
    assert set(states(found["1"]).values()) == {"failed"}
    assert not any(line.startswith("MAIL") for line in server.commands)


async def test_addresses_beyond_ascii() -> None:
    there = message(1, ["é@b.example"], utf8="needed")
    async with servers() as server, opened(server) as session:
        assert states((await submit(session, there))["1"]) == {"é@b.example": "sent"}
    assert server.journal[0].recipients == ("é@b.example",)
    async with SmtpServer(users={USER: PASSWORD}, extensions=("8BITMIME",)) as server, opened(server) as session:
        found = await submit(session, there)
    assert states(found["1"]) == {"é@b.example": "failed"}
    assert "5.6.7" in str(found["1"]["é@b.example"].reply)


# -- nothing of a message becomes a command


@pytest.mark.parametrize(
    "address",
    [
        "b@x\r\nRCPT TO:<z@x",
        "b@x>,<c@x",
        "b@x> NOTIFY=NEVER",
        "b@x\n",
        "b\0@x",
        "b @x",
        "<b@x>",
        "b@x\rDATA",
        "b@x\x7f",
    ],
)
@pytest.mark.parametrize("role", ["sender", "recipient"])
async def test_an_address_that_holds_more_than_an_address_is_not_sent(address: str, role: str) -> None:
    hostile = message(1, [address]) if role == "recipient" else message(1, sender=address)
    async with servers() as server, opened(server) as session:
        before = len(server.commands)
        found = await submit(session, hostile)
        assert server.commands[before:] == []
        assert not session.is_over
    assert set(states(found["1"]).values()) == {"failed"}


SMUGGLING = [
    b"x\n.\nMAIL FROM:<evil@x>\n",
    b"x\n.\r\nMAIL FROM:<evil@x>\n",
    b"x\r.\rMAIL FROM:<evil@x>\r",
    b"x\r\n.\rMAIL FROM:<evil@x>\n",
    b"x\r\n.\r\nMAIL FROM:<evil@x>\r\n",
    b".\nQUIT\n",
    b".",
    b"..",
    b"",
    b"\n",
    b"\r",
    b"x\r",
    b"no line end",
]


@pytest.mark.parametrize("text", SMUGGLING)
async def test_a_body_is_one_body(text: bytes) -> None:
    async with servers() as server, opened(server) as session:
        found = await submit(session, message(1), message(2), bodies=Bodies(text=text))
        before = server.commands.count("QUIT")
    assert [states(v) for v in found.values()] == [{ONE[0]: "sent"}] * 2
    assert before == 0
    assert len(server.journal) == 2
    expected = re.sub(rb"\r\n|\r|\n", b"\r\n", text)
    assert server.journal[0].octets == (expected if expected.endswith(b"\r\n") else expected + b"\r\n")


# -- replies


@pytest.mark.parametrize("octets", [1, 2, 7])
async def test_replies_in_pieces(octets: int) -> None:
    """However a reply is cut, it is the same reply."""
    reply = b"250-2.1.0 one\r\n250-2.1.0 two\r\n250 2.1.0 three\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(text: bytes) -> None:
            for at in range(0, len(text), octets):
                writer.write(text[at : at + octets])
                await writer.drain()

        await say(b"220-hello\r\n220 there\r\n")
        await reader.readline()
        await say(b"250-x\r\n250-AUTH PLAIN\r\n250 SIZE\r\n")
        await reader.readline()
        await say(b"235 ok\r\n")
        for answer in (reply, reply, b"354 go\r\n"):
            await reader.readline()
            await say(answer)
        await reader.readuntil(b"\r\n.\r\n")
        await say(b"250 2.0.0 done\r\n")
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        there = Smtp(
            host="127.0.0.1",
            port=listener.sockets[0].getsockname()[1],
            user=USER,
            secret=Password(PASSWORD),
            tls="none",
        )
        session = await SmtpSession.open(there, Credentials(there, "work"), LONG)
        found = await submit(session, message())
        session.drop()
    assert states(found["1"]) == {ONE[0]: "sent"}


async def test_an_answer_that_nobody_asked_for_ends_the_session() -> None:
    async with servers() as server, opened(server, SHORT) as session:
        server.react("mail", b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n250 2.0.0 queued\r\n250 2.0.0 and more\r\n")
        found = await submit(session, message(1), message(2))
    assert found["1"][ONE[0]].state != "sent"
    assert isinstance(found["1"][ONE[0]], Verdict)
    assert session.is_over
    assert server.journal == []
