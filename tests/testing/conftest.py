"""An IMAP client that knows nothing: it sends lines and reads responses off the socket, as an independent witness."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trustme

from maild.testing.imap import ImapServer

DEADLINE_S = 5.0


class RawClient:
    """One connection. Responses come back whole, with their literals, without the last CRLF."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.greeting = b""
        self._tags = 0

    async def response(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            parts = [await self.reader.readuntil(b"\r\n")]
            while announced := re.search(rb"\{(\d+)\}\r\n\Z", parts[-1]):
                parts.append(await self.reader.readexactly(int(announced[1])))
                parts.append(await self.reader.readuntil(b"\r\n"))
        return b"".join(parts)[:-2]

    async def responses(self, tag: bytes) -> list[bytes]:
        """Everything up to the tagged response, that one last."""
        found = [await self.response()]
        while not found[-1].startswith(tag + b" "):
            found.append(await self.response())
        return found

    def send(self, command: str | bytes) -> bytes:
        """Send a command; the tag it got."""
        self._tags += 1
        tag = b"t%d" % self._tags
        self.writer.write(tag + b" " + (command if isinstance(command, bytes) else command.encode()) + b"\r\n")
        return tag

    async def ask(self, command: str | bytes) -> list[bytes]:
        """The responses to one command, the tagged one last and without its tag."""
        tag = self.send(command)
        *untagged, tagged = await self.responses(tag)
        return [*untagged, tagged.removeprefix(tag + b" ")]

    async def ok(self, command: str | bytes) -> list[bytes]:
        """The untagged responses of a command that succeeds."""
        *untagged, tagged = await self.ask(command)
        assert tagged.startswith(b"OK"), tagged
        return untagged

    async def rest(self) -> bytes:
        """What still comes until the server closes; ConnectionResetError where it resets."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.read()


Connect = Callable[..., Awaitable[RawClient]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`await connect(server)` gives a client that is logged in; `login=False` one that only read the greeting."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(server: ImapServer, *, login: bool = True, tls: ssl.SSLContext | None = None) -> RawClient:
        name = "localhost" if tls else None
        reader, writer = await asyncio.open_connection(server.host, server.port, ssl=tls, server_hostname=name)
        writers.append(writer)
        client = RawClient(reader, writer)
        client.greeting = await client.response()
        if login:
            await client.ok("LOGIN user password")
        return client

    yield connected
    for writer in writers:
        writer.transport.abort()
        try:
            await writer.wait_closed()
        except OSError:
            continue  # a test that had the connection reset


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
