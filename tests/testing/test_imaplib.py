"""The server as the standard library's imaplib sees it: another client that is not ours."""

from __future__ import annotations

import imaplib
import ssl
from collections.abc import Callable

import anyio
import pytest

from maild.testing.imap import BARE, ImapServer
from maild.testing.samples import sample_store
from maild.testing.store import Store


async def in_thread(visit: Callable[[], None]) -> None:
    with anyio.fail_after(10):
        await anyio.to_thread.run_sync(visit)


@pytest.mark.parametrize("separator", ["/", "."])
async def test_a_whole_account_arrives_unchanged(separator: str) -> None:
    store = sample_store(separator=separator)
    found: dict[str, list[bytes]] = {}

    def visit() -> None:
        with imaplib.IMAP4(server.host, server.port, timeout=5) as client:
            client.login("user", "password")
            for line in client.list()[1]:
                assert isinstance(line, bytes)
                name = line.rpartition(f'"{separator}" '.encode())[2].decode()
                if b"NonExistent" in line:
                    continue
                assert client.select(name, readonly=True)[0] == "OK"
                fetched = client.uid("FETCH", "1:*", "(UID FLAGS BODY.PEEK[])")[1]
                found[name] = [part[1] for part in fetched if isinstance(part, tuple)]

    async with ImapServer(store) as server:
        await in_thread(visit)
    assert list(found.values()) == [[message.raw for message in box] for box in store.mailboxes]
    assert server.mutations == []


async def test_a_session_with_everything_imaplib_can_do() -> None:
    store = Store()

    def visit() -> None:
        with imaplib.IMAP4(server.host, server.port, timeout=5) as client:
            with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
                client.login("user", "wrong")
            client.authenticate("PLAIN", lambda _: b"\0user\0password")
            assert client.create("Archiv")[0] == "OK"
            date = '"01-Feb-2026 03:04:05 +0100"'
            assert client.append("INBOX", "(\\Seen)", date, b"Subject: a\r\n\r\nb")[0] == "OK"
            client.select("INBOX")
            assert client.search(None, "SUBJECT", '"a"') == ("OK", [b"1"])
            assert client.store("1", "+FLAGS", "\\Flagged")[1] == [b"1 (FLAGS (\\Flagged \\Seen))"]
            assert client.uid("COPY", "1", "Archiv")[0] == "OK"
            assert client.status("Archiv", "(MESSAGES)")[1] == [b'"Archiv" (MESSAGES 1)']
            client.store("1", "+FLAGS", "\\Deleted")
            assert client.expunge()[1] == [b"1"]
            client.unselect()
            client.rename("Archiv", "Alt")
            client.subscribe("Alt")
            assert client.namespace()[1] == [b'(("" "/")) NIL NIL']

    async with ImapServer(store) as server:
        await in_thread(visit)
        assert [message.flags for message in store.mailbox("Alt")] == [{"\\Seen", "\\Flagged"}]
        assert len(store.mailbox("INBOX")) == 0
        assert server.count("LOGIN") == 1


async def test_starttls_and_a_bare_server(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    def visit() -> None:
        with imaplib.IMAP4("localhost", server.port, timeout=5) as client:
            with pytest.raises(imaplib.IMAP4.error, match="PRIVACYREQUIRED"):
                client.login("user", "password")
            client.starttls(client_tls)
            client.login("user", "password")
            assert client.select("INBOX") == ("OK", [b"0"])
            assert set(client.capability()[1][0].split()) == {b"IMAP4rev1"}

    async with ImapServer(Store(), capabilities=BARE, starttls_context=server_tls) as server:
        await in_thread(visit)
