"""Connecting and logging in, from the client's end of the socket."""

from __future__ import annotations

import asyncio
import base64
import gc
import ssl

import pytest

from maild.testing.imap import ALL, BARE, ImapServer
from maild.testing.store import Store
from tests.testing.conftest import Connect


def plain(user: str, password: str) -> str:
    return base64.b64encode(f"\0{user}\0{password}".encode()).decode()


async def test_capabilities_in_greeting_and_login_differ(connect: Connect) -> None:
    async with ImapServer(Store()) as server:
        client = await connect(server, login=False)
        assert client.greeting.startswith(b"* OK [CAPABILITY IMAP4rev1 ")
        assert b"AUTH=PLAIN" in client.greeting
        assert b"QRESYNC" not in client.greeting
        *_, tagged = await client.ask("LOGIN user password")
        assert tagged.startswith(b"OK [CAPABILITY IMAP4rev1 ")
        assert b"QRESYNC" in tagged
        assert b"AUTH=" not in tagged
        [line] = await client.ok("CAPABILITY")
        assert set(line.split()[2:]) == {name.encode() for name in ALL if not name.startswith("AUTH=")}


@pytest.mark.parametrize("password", ["wrong", '"pass\\"word"'])
async def test_a_wrong_password_is_said_so(connect: Connect, password: str) -> None:
    async with ImapServer(Store()) as server:
        client = await connect(server, login=False)
        assert (await client.ask(f"LOGIN user {password}"))[-1].startswith(b"NO [AUTHENTICATIONFAILED]")
        assert (await client.ask("SELECT INBOX"))[-1].startswith(b"BAD")
        await client.ok("LOGIN user password")


async def test_login_takes_literals_and_quoted_strings(connect: Connect) -> None:
    async with ImapServer(Store(), {'ü"\\x': "p w"}) as server:
        client = await connect(server, login=False)
        user = 'ü"\\x'.encode()
        await client.ok(b'LOGIN {%d+}\r\n%b "p w"' % (len(user), user))
        assert server.connections[0].user == 'ü"\\x'
        assert server.journal == ["LOGIN {5+} ***"]


async def test_plain_with_and_without_initial_response(connect: Connect) -> None:
    async with ImapServer(Store()) as server:
        first = await connect(server, login=False)
        await first.ok("AUTHENTICATE PLAIN " + plain("user", "password"))
        second = await connect(server, login=False)
        tag = second.send("AUTHENTICATE PLAIN")
        assert await second.response() == b"+ "
        second.writer.write(plain("user", "password").encode() + b"\r\n")
        assert (await second.responses(tag))[-1].startswith(tag + b" OK")
        third = await connect(server, login=False)
        tag = third.send("AUTHENTICATE PLAIN")
        await third.response()
        third.writer.write(b"*\r\n")
        assert (await third.responses(tag))[-1].startswith(tag + b" BAD")
        assert (await third.ask("AUTHENTICATE PLAIN " + plain("user", "no")))[-1].startswith(
            b"NO [AUTHENTICATIONFAILED]"
        )
        assert (await third.ask("AUTHENTICATE GSSAPI"))[-1].startswith(b"NO")
        assert "password" not in " ".join(server.journal)
        assert plain("user", "password") not in " ".join(server.journal)


async def test_initial_response_needs_sasl_ir(connect: Connect) -> None:
    async with ImapServer(Store(), capabilities=ALL - {"SASL-IR"}) as server:
        client = await connect(server, login=False)
        assert b"SASL-IR" not in client.greeting
        assert (await client.ask("AUTHENTICATE PLAIN " + plain("user", "password")))[-1].startswith(b"BAD")


async def test_implicit_tls(connect: Connect, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with ImapServer(Store(), ssl_context=server_tls) as server:
        client = await connect(server, tls=client_tls)
        await client.ok("NOOP")
        assert server.connections[0].tls


async def test_starttls_forgets_the_clear_part(
    connect: Connect, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with ImapServer(Store(), starttls_context=server_tls) as server:
        client = await connect(server, login=False)
        assert b"STARTTLS" in client.greeting
        assert b"LOGINDISABLED" in client.greeting
        assert b"AUTH=PLAIN" not in client.greeting
        assert (await client.ask("LOGIN user password"))[-1].startswith(b"NO [PRIVACYREQUIRED]")
        await client.ok("STARTTLS")
        await client.writer.start_tls(client_tls, server_hostname="localhost")
        [capabilities] = await client.ok("CAPABILITY")
        assert b"STARTTLS" not in capabilities
        assert b"AUTH=PLAIN" in capabilities
        await client.ok("LOGIN user password")
        assert server.connections[0].tls
        assert (await client.ask("STARTTLS"))[-1].startswith(b"BAD")


async def test_what_carries_tls_outlives_the_garbage_collector(
    connect: Connect, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """asyncio's StreamWriter closes its transport when it is collected, whatever that carries by then."""
    async with ImapServer(Store(), starttls_context=server_tls) as server:
        client = await connect(server, login=False)
        await client.ok("STARTTLS")
        await client.writer.start_tls(client_tls, server_hostname="localhost")
        await client.ok("NOOP")
        gc.collect()
        await client.ok("NOOP")


async def test_starttls_drops_what_came_before_the_handshake(
    connect: Connect, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with ImapServer(Store(), starttls_context=server_tls) as server:
        client = await connect(server, login=False)
        client.writer.write(b"x1 STARTTLS\r\nx2 LOGIN user password\r\n")
        assert (await client.response()).startswith(b"x1 OK")
        await client.writer.start_tls(client_tls, server_hostname="localhost")
        assert (await client.ask("SELECT INBOX"))[-1].startswith(b"BAD"), "the injected LOGIN counted"
        assert server.journal == ["STARTTLS", "SELECT INBOX"]


async def test_a_failed_handshake_ends_the_connection(connect: Connect, server_tls: ssl.SSLContext) -> None:
    async with ImapServer(Store(), starttls_context=server_tls) as server:
        client = await connect(server, login=False)
        await client.ok("STARTTLS")
        client.writer.write(b"this is no ClientHello, whatever it is\r\n")
        await client.rest()
        async with asyncio.timeout(5):
            await server.connections[0].closed.wait()


@pytest.mark.parametrize(("greeting", "state"), [("* PREAUTH welcome", b"OK"), ("* OK", b"BAD")])
async def test_greetings_of_the_test_s_own(connect: Connect, greeting: str, state: bytes) -> None:
    async with ImapServer(Store(), greeting=greeting) as server:
        client = await connect(server, login=False)
        assert client.greeting == greeting.encode()
        assert (await client.ask("SELECT INBOX"))[-1].startswith(state)


async def test_a_bye_greeting_closes(connect: Connect) -> None:
    async with ImapServer(Store(), greeting="* BYE too many connections") as server:
        client = await connect(server, login=False)
        assert await client.rest() == b""
        assert client.greeting == b"* BYE too many connections"


async def test_id_namespace_enable_logout(connect: Connect) -> None:
    async with ImapServer(Store(separator="."), namespace="INBOX.") as server:
        client = await connect(server)
        assert await client.ok('ID ("name" "maild" "version" NIL)') == [b'* ID ("name" "maild-testing")']
        assert await client.ok("ID NIL") == [b'* ID ("name" "maild-testing")']
        assert await client.ok("NAMESPACE") == [b'* NAMESPACE (("INBOX." ".")) NIL NIL']
        assert await client.ok("ENABLE QRESYNC X-NONE") == [b"* ENABLED QRESYNC"]
        await client.ok("SELECT INBOX")
        assert (await client.ask("ENABLE CONDSTORE"))[-1].startswith(b"BAD"), "RFC 5161 §3.1"
        untagged = await client.ok("LOGOUT")
        assert untagged[0].startswith(b"* BYE")
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "command",
    [
        "ENABLE QRESYNC",
        "NAMESPACE",
        "ID NIL",
        'LIST "" "*" RETURN (STATUS (MESSAGES))',
        'LIST (SPECIAL-USE) "" "*"',
        'LIST "" ("*" "%")',
        "STATUS INBOX (HIGHESTMODSEQ)",
        "STATUS INBOX (MAILBOXID)",
        "STATUS INBOX (SIZE)",
        "SELECT INBOX (CONDSTORE)",
        "IDLE",
    ],
)
async def test_what_a_bare_server_lacks_is_bad(connect: Connect, command: str) -> None:
    async with ImapServer(Store(), capabilities=BARE) as server:
        client = await connect(server)
        assert (await client.ask(command))[-1].startswith(b"BAD")
        await client.ok("NOOP")


@pytest.mark.parametrize(
    "command",
    [
        "UID EXPUNGE 1",
        "UID MOVE 1 INBOX",
        "UID FETCH 1 (MODSEQ)",
        "UID FETCH 1 (FLAGS) (CHANGEDSINCE 1)",
        "UID FETCH 1 (EMAILID)",
        "UID STORE 1 (UNCHANGEDSINCE 1) FLAGS ()",
        "UID SEARCH MODSEQ 1",
        "UID SEARCH RETURN (ALL) ALL",
        "UNSELECT",
    ],
)
async def test_what_a_bare_server_lacks_in_a_mailbox_is_bad(connect: Connect, command: str) -> None:
    store = Store()
    store.deliver("INBOX", b"\r\nx")
    async with ImapServer(store, capabilities=BARE) as server:
        client = await connect(server)
        lines = await client.ok("SELECT INBOX")
        assert not any(b"MODSEQ" in line or b"MAILBOXID" in line for line in lines)
        assert (await client.ask(command))[-1].startswith(b"BAD")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"", b"* BAD"),
        (b"* NOOP", b"* BAD"),
        (b"x", b"x BAD"),
        (b"x FROBNICATE", b"x BAD"),
        (b"x NOOP now", b"x BAD"),
        (b"x FETCH 1 FLAGS", b"x BAD"),
        (b"x LOGIN user password", b"x BAD"),
        (b"\x16\x03\x01 \x00", b"* BAD"),
    ],
)
async def test_what_is_no_command_here_is_bad(connect: Connect, line: bytes, answer: bytes) -> None:
    async with ImapServer(Store()) as server:
        client = await connect(server)
        client.writer.write(line + b"\r\n")
        assert (await client.response()).startswith(answer)
        await client.ok("NOOP")


async def test_an_endless_line_ends_the_connection(connect: Connect) -> None:
    async with ImapServer(Store()) as server:
        client = await connect(server)
        client.writer.write(b"x NOOP " + b"y" * 200_000)
        assert (await client.response()) == b"* BYE Line too long"


async def test_literals_that_are_not_offered_are_refused(connect: Connect) -> None:
    async with ImapServer(Store(), capabilities=ALL - {"LITERAL+"} | {"LITERAL-"}) as server:
        client = await connect(server)
        await client.ok(b"APPEND INBOX {4096+}\r\n" + b"x" * 4096)
        assert (await client.ask(b"APPEND INBOX {4097+}\r\n" + b"x" * 4097))[-1].startswith(b"BAD")
        await client.rest()
        assert len(server.store.mailbox("INBOX")) == 1


async def test_latency_is_paid_once_by_pipelined_commands(connect: Connect) -> None:
    async with ImapServer(Store(), latency_s=0.05) as server:
        client = await connect(server)
        start = asyncio.get_running_loop().time()
        tags = [client.send("NOOP") for _ in range(20)]
        await client.responses(tags[-1])
        took = asyncio.get_running_loop().time() - start
        assert 0.05 <= took < 0.5, "twenty round trips would be a second"


async def test_the_server_starts_again_with_the_same_mail(connect: Connect) -> None:
    server = ImapServer(Store())
    await server.start()
    port = server.port
    client = await connect(server)
    await server.aclose()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await client.response()
    await server.start(port=port)
    await (await connect(server)).ok("SELECT INBOX")
    await server.aclose()
