"""Listing, opening and changing mailboxes."""

from __future__ import annotations

import pytest

from maild.testing.imap import ALL, ImapServer
from maild.testing.samples import sample_store
from maild.testing.store import Store
from tests.testing.conftest import Connect

RAW = b"Subject: x\r\n\r\nbody\r\n"


def tree(separator: str = "/") -> Store:
    store = Store(separator=separator)
    for levels, role in (
        (("A",), ""),
        (("A", "B"), ""),
        (("A", "B", "C"), ""),
        (("X", "Y"), ""),
        (("Gesendet",), "\\Sent"),
    ):
        store.create(separator.join(levels), role)
    return store


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ('"" "*"', ["INBOX", "A", "A/B", "A/B/C", "X", "X/Y", "Gesendet"]),
        ('"" %', ["INBOX", "A", "X", "Gesendet"]),
        ('"" A/%', ["A/B"]),
        ('A/ "*"', ["A/B", "A/B/C"]),
        ('"" %/%', ["A/B", "X/Y"]),
        ('"" inbox', ["INBOX"]),
        ('"" "nothing"', []),
        ('"" (A %/Y)', ["A", "X/Y"]),
    ],
)
async def test_list_patterns(connect: Connect, pattern: str, names: list[str]) -> None:
    async with ImapServer(tree()) as server:
        client = await connect(server)
        lines = await client.ok(f"LIST {pattern}")
        assert [line.decode().split('"')[-2] for line in lines] == names


async def test_list_attributes_and_separator(connect: Connect) -> None:
    async with ImapServer(tree(".")) as server:
        client = await connect(server)
        assert await client.ok('LIST "" ""') == [b'* LIST (\\Noselect) "." ""']
        assert await client.ok('LIST "" %') == [
            b'* LIST (\\HasNoChildren) "." "INBOX"',
            b'* LIST (\\HasChildren) "." "A"',
            b'* LIST (\\NonExistent \\HasChildren) "." "X"',
            b'* LIST (\\HasNoChildren \\Sent) "." "Gesendet"',
        ]


async def test_list_with_everything_in_one_command(connect: Connect) -> None:
    store = tree()
    store.deliver("A/B", RAW)
    store.mailbox("A").subscribed = False
    async with ImapServer(store) as server:
        client = await connect(server)
        command = 'LIST "" "A*" RETURN (SPECIAL-USE SUBSCRIBED CHILDREN STATUS (MESSAGES UIDNEXT UNSEEN))'
        assert await client.ok(command) == [
            b'* LIST (\\HasChildren) "/" "A"',
            b'* STATUS "A" (MESSAGES 0 UIDNEXT 1 UNSEEN 0)',
            b'* LIST (\\HasChildren \\Subscribed) "/" "A/B"',
            b'* STATUS "A/B" (MESSAGES 1 UIDNEXT 2 UNSEEN 1)',
            b'* LIST (\\HasNoChildren \\Subscribed) "/" "A/B/C"',
            b'* STATUS "A/B/C" (MESSAGES 0 UIDNEXT 1 UNSEEN 0)',
        ]
        assert await client.ok('LIST (SPECIAL-USE) "" "*"') == [b'* LIST (\\HasNoChildren \\Sent) "/" "Gesendet"']
        assert [line.split()[-1] for line in await client.ok('LIST "" "X" RETURN (STATUS (MESSAGES))')] == [b'"X"']
        assert server.count("LIST") == 3
        assert server.mutations == []


async def test_names_travel_in_modified_utf7(connect: Connect) -> None:
    async with ImapServer(sample_store()) as server:
        client = await connect(server)
        names = [line.split(b'"')[3] for line in await client.ok('LIST "" "*"')]
        assert {b"Entw&APw-rfe", b"&ZeVnLIqe-", b"&2DzfOw- Garten"} <= set(names)
        assert (await client.ok('SELECT "&ZeVnLIqe-"'))[2] == b"* 4 EXISTS"
        assert server.connections[0].selected == "日本語"
        assert (await client.ask("SELECT &ZeVnLIqe"))[-1].startswith(b"BAD")


async def test_a_flat_server_has_no_separator(connect: Connect) -> None:
    store = Store(separator="")
    store.create("a/b")
    async with ImapServer(store, capabilities=ALL - {"CHILDREN"}) as server:
        client = await connect(server)
        assert await client.ok('LIST "" %') == [b'* LIST () NIL "INBOX"', b'* LIST () NIL "a/b"']
        assert await client.ok("NAMESPACE") == [b'* NAMESPACE (("" NIL)) NIL NIL']


async def test_create_rename_subscribe_delete(connect: Connect) -> None:
    async with ImapServer(Store()) as server:
        client = await connect(server)
        created = await client.ask("CREATE Entw&APw-rfe/")
        assert created[-1].startswith(b"OK [MAILBOXID (M")
        assert (await client.ask("CREATE Entw&APw-rfe"))[-1].startswith(b"NO [ALREADYEXISTS]")
        await client.ok("RENAME Entw&APw-rfe {3+}\r\nNeu")
        assert server.store.names == ("INBOX", "Neu")
        await client.ok("UNSUBSCRIBE Neu")
        assert await client.ok('LSUB "" *') == [b'* LSUB () "/" "INBOX"']
        await client.ok("SUBSCRIBE Neu")
        assert len(await client.ok('LSUB "" *')) == 2
        await client.ok("DELETE Neu")
        assert (await client.ask("DELETE Neu"))[-1].startswith(b"NO [NONEXISTENT]")
        assert (await client.ask("DELETE inbox"))[-1].startswith(b"NO [CANNOT]")
        assert server.mutations == [
            "CREATE Entw&APw-rfe/",
            "CREATE Entw&APw-rfe",
            "RENAME Entw&APw-rfe {3+}",
            "UNSUBSCRIBE Neu",
            "SUBSCRIBE Neu",
            "DELETE Neu",
            "DELETE Neu",
            "DELETE inbox",
        ]


async def test_status(connect: Connect) -> None:
    store = Store()
    store.deliver("INBOX", RAW, ["\\Seen"])
    store.deliver("INBOX", RAW)
    inbox = store.mailbox("INBOX")
    async with ImapServer(store) as server:
        client = await connect(server)
        items = "MESSAGES RECENT UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ SIZE MAILBOXID"
        values = f"MESSAGES 2 RECENT 0 UIDNEXT 3 UIDVALIDITY {inbox.uidvalidity} UNSEEN 1 HIGHESTMODSEQ 3 SIZE 40"
        assert await client.ok(f"STATUS inbox ({items})") == [
            f'* STATUS "INBOX" ({values} MAILBOXID ({inbox.mailbox_id}))'.encode()
        ]
        assert (await client.ask("STATUS INBOX (FROBS)"))[-1].startswith(b"BAD")
        assert (await client.ask("STATUS nothing (MESSAGES)"))[-1].startswith(b"NO [NONEXISTENT]")
        inbox.modseqs = False
        assert await client.ok("STATUS INBOX (HIGHESTMODSEQ)") == [b'* STATUS "INBOX" (HIGHESTMODSEQ 0)']


async def test_select_tells_the_mailbox(connect: Connect) -> None:
    store = Store()
    inbox = store.mailbox("INBOX")
    store.deliver("INBOX", RAW, ["\\Seen", "$Work"])
    store.deliver("INBOX", RAW)
    async with ImapServer(store) as server:
        client = await connect(server)
        assert await client.ask("SELECT INBOX") == [
            b"* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft $Work)",
            b"* OK [PERMANENTFLAGS (\\Answered \\Deleted \\Draft \\Flagged \\Seen $Work \\*)] Flags permitted",
            b"* 2 EXISTS",
            b"* 0 RECENT",
            b"* OK [UNSEEN 2] First unseen",
            f"* OK [UIDVALIDITY {inbox.uidvalidity}] UIDs valid".encode(),
            b"* OK [UIDNEXT 3] Predicted next UID",
            b"* OK [HIGHESTMODSEQ 3] Mod-sequences",
            f"* OK [MAILBOXID ({inbox.mailbox_id})] Mailbox".encode(),
            b"OK [READ-WRITE] Opened",
        ]
        again = await client.ask("EXAMINE INBOX")
        assert again[0] == b"* OK [CLOSED] Previous mailbox closed"
        assert b"* OK [PERMANENTFLAGS ()] Flags permitted" in again
        assert again[-1] == b"OK [READ-ONLY] Opened"
        assert (await client.ask("UID STORE 1 FLAGS ()"))[-1].startswith(b"NO [READ-ONLY]")
        assert (await client.ask("SELECT nothing"))[-1].startswith(b"NO [NONEXISTENT]")
        assert (await client.ask("UID FETCH 1 FLAGS"))[-1].startswith(b"BAD"), "a failed SELECT leaves none open"


async def test_a_read_only_mailbox(connect: Connect) -> None:
    store = Store()
    store.mailbox("INBOX").read_only = True
    async with ImapServer(store) as server:
        client = await connect(server)
        assert (await client.ask("SELECT INBOX"))[-1].startswith(b"OK [READ-ONLY]")
        assert (await client.ask("APPEND INBOX {1+}\r\nx"))[-1].startswith(b"NO [NOPERM]")


async def test_close_expunges_in_silence_and_unselect_does_not(connect: Connect) -> None:
    store = Store()
    for _ in range(3):
        store.deliver("INBOX", RAW, ["\\Deleted"])
    async with ImapServer(store) as server:
        client = await connect(server)
        await client.ok("SELECT INBOX")
        assert await client.ok("UNSELECT") == []
        assert len(store.mailbox("INBOX")) == 3
        await client.ok("EXAMINE INBOX")
        await client.ok("CLOSE")
        assert len(store.mailbox("INBOX")) == 3
        await client.ok("SELECT INBOX")
        assert await client.ok("CLOSE") == []
        assert len(store.mailbox("INBOX")) == 0
        assert (await client.ask("CLOSE"))[-1].startswith(b"BAD")


async def test_qresync_tells_what_changed_since(connect: Connect) -> None:
    store = Store()
    inbox = store.mailbox("INBOX")
    for _ in range(6):
        store.deliver("INBOX", RAW)
    since = inbox.highestmodseq
    store.set_flags("INBOX", 2, add=["\\Seen"])
    store.expunge("INBOX", [3, 4, 6])
    store.deliver("INBOX", RAW)
    async with ImapServer(store) as server:
        client = await connect(server)
        command = f"SELECT INBOX (QRESYNC ({inbox.uidvalidity} {since}"
        assert (await client.ask(command + "))"))[-1].startswith(b"BAD"), "not enabled yet"
        await client.ok("ENABLE QRESYNC")
        told = [b"* VANISHED (EARLIER) 3:4,6", b"* 2 FETCH (UID 2 FLAGS (\\Seen) MODSEQ (8))"]
        new = b"* 4 FETCH (UID 7 FLAGS () MODSEQ (10))"
        assert (await client.ok(command + "))"))[-3:] == [*told, new]
        known = await client.ok(command + " 1:3))")
        assert known[-2:] == [b"* VANISHED (EARLIER) 3", told[1]]
        assert (await client.ok(command + " 1:7 (1:3 1:3)))"))[-3:] == [*told, new], "sequence match data"
        other = await client.ok(f"SELECT INBOX (QRESYNC ({inbox.uidvalidity + 1} {since}))")
        assert not any(b"VANISHED" in line or b"FETCH" in line for line in other), "another UIDVALIDITY"
        inbox.forget_expunged()
        assert b"* VANISHED (EARLIER) 3:4,6" in await client.ok(command + "))")


async def test_a_mailbox_without_modseqs(connect: Connect) -> None:
    store = Store()
    store.deliver("INBOX", RAW)
    store.mailbox("INBOX").modseqs = False
    async with ImapServer(store) as server:
        client = await connect(server)
        await client.ok("ENABLE QRESYNC")
        lines = await client.ok(f"SELECT INBOX (QRESYNC ({store.mailbox('INBOX').uidvalidity} 1))")
        assert b"* OK [NOMODSEQ] Mod-sequences" in lines
        assert not any(b"FETCH" in line for line in lines)
        assert (await client.ask("UID FETCH 1 (FLAGS) (CHANGEDSINCE 1)"))[-1].startswith(b"BAD")
