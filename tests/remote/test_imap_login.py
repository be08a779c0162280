"""Logging in to IMAP by each mechanism, against a server that keeps the RFCs and against some that do not."""

from __future__ import annotations

import asyncio
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from maild.config import Imap, PasswordFile, Secret, TokenCommand
from maild.config.values import Auth
from maild.core.errors import AuthRejected, MaildError, ProtocolViolation, TlsFailed
from maild.remote.imap.login import login
from maild.remote.imap.remote import ImapRemote
from maild.testing.dialogue import Dialogue
from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.conftest import SecretScan
from tests.remote.conftest import DEADLINE_S, PASSWORD, USER, Connect, imap_endpoint
from tests.servers.certificates import Authority

ODD_PASSWORDS = ["x", 'q"uo\\te {5}', "pässwörd✓", "a,b=c", " blanks ", "x" * 900]
AUTHS: list[Auth] = ["plain", "login", "scram-sha-256", "oauthbearer", "xoauth2"]


def server_with(*mechanisms: str, password: str = PASSWORD, without: str = "", **options: object) -> ImapServer:
    offered = (ALL - {"AUTH=PLAIN", without}) | {f"AUTH={name}" for name in mechanisms}
    return ImapServer(Store(), {USER: password}, capabilities=offered, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("auth", AUTHS)
@pytest.mark.parametrize("password", ODD_PASSWORDS)
@pytest.mark.parametrize("without", ["", "SASL-IR"])
async def test_every_mechanism_with_every_password(auth: Auth, password: str, without: str, connect: Connect) -> None:
    async with server_with(auth.upper(), password=password, without=without) as server:
        session = await connect(imap_endpoint(server.port, auth=auth))
        async with asyncio.timeout(DEADLINE_S):
            await login(session, USER, password)
        assert session.has("IDLE")
        assert server.connections[0].user == USER
        assert server.count("LOGIN" if auth == "login" else "AUTHENTICATE") == 1
        wrong = await connect(imap_endpoint(server.port, auth=auth))
        with pytest.raises(AuthRejected, match=r"refused to log in user: .*check user and password"):
            await login(wrong, USER, password + "x")
        async with asyncio.timeout(DEADLINE_S):
            await login(wrong, USER, password)  # the session is still good


@pytest.mark.parametrize("is_right", [True, False])
async def test_where_the_login_command_is_forbidden_it_is_a_mechanism(is_right: bool, connect: Connect) -> None:
    answer = "OK [CAPABILITY IMAP4rev1] in" if is_right else "NO [AUTHENTICATIONFAILED] no"
    script = (
        "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=LOGIN LOGINDISABLED] hello\n"
        "C: $1 AUTHENTICATE LOGIN\nS: + VXNlcm5hbWU6\nC: dXNlcg==\nS: + UGFzc3dvcmQ6\n"
        f"C: Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ==\nS: $1 {answer}\n"
    )
    async with Dialogue(script) as server:
        session = await connect(imap_endpoint(server.port))
        if is_right:
            await login(session, USER, PASSWORD)
        else:
            with pytest.raises(AuthRejected):
                await login(session, USER, PASSWORD)


async def test_an_error_challenge_tells_the_status(connect: Connect) -> None:
    async with server_with("XOAUTH2") as server:
        session = await connect(imap_endpoint(server.port, auth="xoauth2"))
        with pytest.raises(AuthRejected, match=r"Authentication failed \(status 401\); check"):
            await login(session, USER, "old token")


async def test_auto_takes_scram_and_sends_no_password(connect: Connect, written: list[bytes]) -> None:
    async with server_with("PLAIN", "LOGIN", "SCRAM-SHA-256") as server:
        session = await connect(imap_endpoint(server.port))
        await login(session, USER, PASSWORD)
    assert written[0].split()[2] == b"SCRAM-SHA-256"
    decoded = [b64decode(part) for line in written[:3] for part in line.split()[-1:] if part.isascii()]
    assert not any(PASSWORD.encode() in octets for octets in [*written, *decoded])


async def test_a_mechanism_may_be_switched_off(connect: Connect, written: list[bytes]) -> None:
    async with server_with("PLAIN", "SCRAM-SHA-256") as server:
        disabled = frozenset({"AUTH=SCRAM-SHA-256"})
        session = await connect(imap_endpoint(server.port, disable_extensions=disabled))
        await login(session, USER, PASSWORD)
    assert written[0].split()[2] == b"PLAIN"


async def test_a_token_is_never_sent_as_a_password(connect: Connect, written: list[bytes]) -> None:
    async with server_with("PLAIN", "LOGIN", "SCRAM-SHA-256") as server:
        session = await connect(imap_endpoint(server.port, secret=TokenCommand(("token",))))
        with pytest.raises(AuthRejected, match="a token must not be sent in any other way"):
            await login(session, USER, PASSWORD)
    assert written == []


# -- servers that cheat at SCRAM


def scram_first(line: bytes) -> bytes:
    """The server-first-message for a client's initial response line."""
    nonce = b64decode(line).decode().rpartition("r=")[2]
    return f"r={nonce}more,s={b64encode(b'salt').decode()},i=4096".encode()


async def cheating(connect: Connect, replies: Callable[[bytes, int], bytes | None]) -> MaildError:
    """Log in by SCRAM at a server that answers its n-th line by `replies(tag, n)`, None for a proper first message."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=SCRAM-SHA-256] hello\r\n")
        tag, number = b"", 0
        while line := await reader.readline():
            tag = tag or line.split()[0]
            said = replies(tag, number)
            writer.write(said if said is not None else b"+ " + b64encode(scram_first(line.split()[-1])) + b"\r\n")
            number += 1
        writer.close()

    async with await asyncio.start_server(converse, "127.0.0.1", 0) as server:
        session = await connect(imap_endpoint(server.sockets[0].getsockname()[1], auth="scram-sha-256"))
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(MaildError) as failure:
                await login(session, USER, PASSWORD)
        session.drop()
    return failure.value


async def test_a_forged_signature_ends_the_login(connect: Connect) -> None:
    forged = b"+ " + b64encode(b"v=" + b64encode(bytes(32))) + b"\r\n"
    error = await cheating(connect, lambda tag, n: [None, forged, tag + b" OK in\r\n"][n])
    assert isinstance(error, TlsFailed)
    assert "its SCRAM signature is wrong" in str(error)


async def test_an_ok_without_a_signature_is_not_believed(connect: Connect) -> None:
    error = await cheating(connect, lambda tag, n: [None, tag + b" OK in\r\n"][n])
    assert isinstance(error, TlsFailed)
    assert "without proving" in str(error)


async def test_an_ok_at_once_is_not_believed(connect: Connect) -> None:
    error = await cheating(connect, lambda tag, _: tag + b" OK in\r\n")
    assert isinstance(error, TlsFailed)


async def test_too_few_iterations_are_refused_with_a_star(connect: Connect, written: list[bytes]) -> None:
    def replies(tag: bytes, number: int) -> bytes:
        weak = b64encode(b"r=x,s=c2FsdA==,i=1")
        return b"+ " + weak + b"\r\n" if number == 0 else tag + b" BAD cancelled\r\n"

    error = await cheating(connect, replies)
    assert isinstance(error, ProtocolViolation)
    assert written[-1] == b"*\r\n"


# -- channel binding


async def test_a_server_that_cannot_do_the_binding_is_asked_without(authority: Authority, connect: Connect) -> None:
    """It says so by refusing before it has seen a proof; the password is not at fault."""
    plus = "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=SCRAM-SHA-256 AUTH=SCRAM-SHA-256-PLUS] hello\n"
    script = plus + (
        "C: $1 AUTHENTICATE SCRAM-SHA-256-PLUS <...>\nS: $1 NO no such binding\n"
        "C: $2 AUTHENTICATE SCRAM-SHA-256 <...>\nS: $2 NO [AUTHENTICATIONFAILED] no\n"
    )
    async with Dialogue(script, tls=authority.good().server_context(), implicit_tls=True) as server:
        session = await connect(imap_endpoint(server.port, tls="implicit", host="localhost", ca_file=authority.ca_file))
        with pytest.raises(AuthRejected):
            await login(session, USER, PASSWORD)


@pytest.mark.parametrize("is_off", [False, True])
async def test_the_binding_is_to_this_certificate(
    is_off: bool, authority: Authority, connect: Connect, written: list[bytes]
) -> None:
    async with server_with("SCRAM-SHA-256", ssl_context=authority.good().server_context()) as server:
        disabled = frozenset({"AUTH=SCRAM-SHA-256-PLUS"}) if is_off else frozenset()
        session = await connect(
            imap_endpoint(
                server.port,
                tls="implicit",
                host="localhost",
                ca_file=authority.ca_file,
                disable_extensions=disabled,
            )
        )
        await login(session, USER, PASSWORD)
    first = b64decode(written[0].split()[-1])
    assert first.startswith(b"n,,n=user" if is_off else b"y,,n=user")


# -- the secret behind it


def token_source(path: Path) -> Secret:
    return TokenCommand((sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", str(path)))


async def test_each_session_has_a_token_of_its_own(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    async with server_with("XOAUTH2", password="first") as first, server_with("XOAUTH2", password="second") as second:
        command = token_source(token)
        here, there = (
            Imap(host="127.0.0.1", port=server.port, user=USER, secret=command, tls="none")
            for server in (first, second)
        )
        one = ImapRemote(here, "work")
        await one.listing()
        await one.aclose()
        token.write_text("second")
        another = ImapRemote(there, "work", one.credentials)
        await another.listing()
        await another.aclose()


async def test_a_refusal_is_remembered_by_whoever_owns_the_account(tmp_path: Path, secret_scan: SecretScan) -> None:
    path = tmp_path / "password"
    path.write_text(secret_scan.add("not the right one") + "\n")
    path.chmod(0o600)
    async with server_with("PLAIN") as server:
        endpoint = Imap(host="127.0.0.1", port=server.port, user=USER, secret=PasswordFile(path), tls="none")
        first = ImapRemote(endpoint, "work")
        with pytest.raises(AuthRejected):
            await first.listing()
        await first.aclose()
        second = ImapRemote(endpoint, "work", first.credentials)
        with pytest.raises(AuthRejected):
            await second.listing()
        assert server.count("AUTHENTICATE") == 1
        path.write_text(PASSWORD + "\n")
        assert await first.credentials.has_changed()
        await second.listing()
        await second.aclose()
