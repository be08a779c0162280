"""Fetching, searching, flagging, copying, moving, expunging and adding messages."""

from __future__ import annotations

import pytest

from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.testing.conftest import Connect, RawClient

HEADER = b"Subject: Hi\r\n there\r\nDate: Mon, 21 Sep 2026 10:00:00 +0200\r\nMessage-ID: <a@x>\r\n\r\n"
BODY = b"first (line\r\nsecond {3}\r\n"
RAW = HEADER + BODY


def filled(count: int = 5) -> Store:
    store = Store(clock=lambda: 1_790_000_000)
    for _ in range(count):
        store.deliver("INBOX", RAW)
    return store


async def opened(connect: Connect, server: ImapServer, *, enable: str = "") -> RawClient:
    client = await connect(server)
    if enable:
        await client.ok(f"ENABLE {enable}")
    await client.ok("SELECT INBOX")
    return client


def literal(octets: bytes) -> bytes:
    return b"{%d}\r\n%b" % (len(octets), octets)


@pytest.mark.parametrize(
    ("item", "value"),
    [
        (b"FLAGS", b"FLAGS ()"),
        (b"INTERNALDATE", b'INTERNALDATE "21-Sep-2026 14:13:20 +0000"'),
        (b"RFC822.SIZE", b"RFC822.SIZE %d" % len(RAW)),
        (b"MODSEQ", b"MODSEQ (3)"),
        (b"EMAILID", b"EMAILID (E3)"),
        (b"THREADID", b"THREADID NIL"),
        (b"BODY.PEEK[]", b"BODY[] " + literal(RAW)),
        (b"BODY.PEEK[HEADER]", b"BODY[HEADER] " + literal(HEADER)),
        (b"body.peek[text]", b"BODY[TEXT] " + literal(BODY)),
        (b"BODY.PEEK[]<5.6>", b"BODY[]<5> " + literal(RAW[5:11])),
        (b"BODY.PEEK[TEXT]<900.6>", b"BODY[TEXT]<900> {0}\r\n"),
        (
            b'BODY.PEEK[HEADER.FIELDS (message-id "SUBJECT" X-None)]',
            b"BODY[HEADER.FIELDS (message-id SUBJECT X-None)] "
            + literal(b"Subject: Hi\r\n there\r\nMessage-ID: <a@x>\r\n\r\n"),
        ),
        (
            b"BODY.PEEK[HEADER.FIELDS.NOT (Subject Date)]",
            b"BODY[HEADER.FIELDS.NOT (Subject Date)] " + literal(b"Message-ID: <a@x>\r\n\r\n"),
        ),
        (b"RFC822.HEADER", b"RFC822.HEADER " + literal(HEADER)),
        (b"(FLAGS RFC822.SIZE)", b"FLAGS () RFC822.SIZE %d" % len(RAW)),
        (b"FAST", b'FLAGS () INTERNALDATE "21-Sep-2026 14:13:20 +0000" RFC822.SIZE %d' % len(RAW)),
    ],
)
async def test_fetch_items(connect: Connect, item: bytes, value: bytes) -> None:
    async with ImapServer(filled(2)) as server:
        client = await opened(connect, server)
        assert await client.ok(b"UID FETCH 2 " + item) == [b"* 2 FETCH (UID 2 " + value + b")"]
        assert await client.ok(b"FETCH 2 " + item) == [b"* 2 FETCH (" + value + b")"]
        assert server.store.mailbox("INBOX").message(2).flags == frozenset()


@pytest.mark.parametrize("item", ["BODY[]", "BODY[TEXT]", "RFC822", "RFC822.TEXT"])
async def test_reading_a_body_marks_it_seen_once(connect: Connect, item: str) -> None:
    async with ImapServer(filled(1)) as server:
        client = await opened(connect, server)
        [first] = await client.ok(f"UID FETCH 1 {item}")
        [second] = await client.ok(f"UID FETCH 1 {item}")
        assert first.endswith(b" FLAGS (\\Seen))")
        assert b"FLAGS" not in second
        assert server.store.mailbox("INBOX").message(1).flags == {"\\Seen"}


async def test_examine_does_not_mark_seen(connect: Connect) -> None:
    async with ImapServer(filled(1)) as server:
        client = await connect(server)
        await client.ok("EXAMINE INBOX")
        await client.ok("UID FETCH 1 BODY[]")
        assert server.store.mailbox("INBOX").message(1).flags == frozenset()


@pytest.mark.parametrize(
    ("messages", "uids"),
    [
        ("UID FETCH 2:4,3,*", [2, 3, 4, 9]),
        ("UID FETCH 100:*", [9]),
        ("UID FETCH 7:100", [9]),
        ("UID FETCH 6:8", []),
        ("FETCH *:4", [4, 5, 9]),
        ("FETCH 1,1,1", [1]),
    ],
)
async def test_sets(connect: Connect, messages: str, uids: list[int]) -> None:
    store = filled(9)
    store.expunge("INBOX", [6, 7, 8])
    async with ImapServer(store) as server:
        client = await opened(connect, server)
        lines = await client.ok(f"{messages} (UID)")
        assert [int(line.split(b"UID ")[1].rstrip(b")")) for line in lines] == uids


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("FETCH 6 FLAGS", b"BAD"),
        ("UID FETCH 0 FLAGS", b"BAD"),
        ("UID FETCH 1 (FLAGS", b"BAD"),
        ("UID FETCH 1 FROBS", b"BAD"),
        ("UID FETCH 1 BODY[1.2]", b"NO"),
        ("UID FETCH 1 ENVELOPE", b"NO"),
        ("UID FETCH 1 ALL", b"NO"),
        ("UID FETCH 1 (FLAGS) (CHANGEDSINCE 1 VANISHED)", b"BAD"),
        ("UID STORE 1 +FLAGS", b"BAD"),
        ("UID SEARCH FROBS", b"BAD"),
        ("UID SEARCH RETURN (FROBS) ALL", b"BAD"),
        ("UID SEARCH CHARSET KOI8-R ALL", b"NO [BADCHARSET"),
        ("UID SEARCH " + "NOT " * 60 + "ALL", b"BAD"),
        ("UID SEARCH " + "(" * 60 + "ALL" + ")" * 60, b"BAD"),
        ("UID COPY 1 nothing", b"NO [TRYCREATE]"),
        ("APPEND nothing {1+}\r\nx", b"NO [TRYCREATE]"),
        ("APPEND INBOX hello", b"BAD"),
    ],
)
async def test_refusals(connect: Connect, command: str, answer: bytes) -> None:
    async with ImapServer(filled()) as server:
        client = await opened(connect, server)
        *untagged, tagged = await client.ask(command)
        assert tagged.startswith(answer)
        assert untagged == []


async def test_fetch_of_many_messages_streams(connect: Connect) -> None:
    store = Store()
    for _ in range(5000):
        store.deliver("INBOX", RAW)
    store.deliver("INBOX", b"x" * 3_000_000)
    async with ImapServer(store) as server:
        client = await opened(connect, server)
        tag = client.send("UID FETCH 1:* (BODY.PEEK[])")
        for number in range(1, 5001):
            assert await client.response() == b"* %d FETCH (UID %d BODY[] %b)" % (number, number, literal(RAW))
        assert len(await client.response()) > 3_000_000
        assert (await client.response()).startswith(tag)
        assert server.octets_sent == server.connections[0].octets_sent > 3_000_000


async def test_changedsince_and_vanished(connect: Connect) -> None:
    store = filled()
    inbox = store.mailbox("INBOX")
    since = inbox.highestmodseq
    store.set_flags("INBOX", 4, add=["\\Flagged"])
    store.expunge("INBOX", [1, 2])
    async with ImapServer(store) as server:
        client = await opened(connect, server, enable="QRESYNC")
        changed = [b"* 2 FETCH (UID 4 FLAGS (\\Flagged) MODSEQ (7))"]
        assert await client.ok(f"UID FETCH 1:* (FLAGS) (CHANGEDSINCE {since})") == changed
        vanished = await client.ok(f"UID FETCH 2:* (FLAGS) (CHANGEDSINCE {since} VANISHED)")
        assert vanished == [b"* VANISHED (EARLIER) 2", *changed]


@pytest.mark.parametrize(
    ("criteria", "uids"),
    [
        ("ALL", [1, 2, 3, 4, 5]),
        ("UID 2:3", [2, 3]),
        ("4:*", [4, 5]),
        ("SEEN", [2]),
        ("UNSEEN UNDELETED", [1, 4, 5]),
        ("DELETED", [3]),
        ("KEYWORD $work", [4]),
        ("UNKEYWORD $Work", [1, 2, 3, 5]),
        ("HEADER Message-ID <a@x>", [1, 2, 3, 4]),
        ('HEADER Message-ID "nothing"', []),
        ("HEADER Message-ID {5+}\r\n<A@X>", [1, 2, 3, 4]),
        ("SUBJECT there", [1, 2, 3, 4]),
        ("BODY SECOND", [1, 2, 3, 4]),
        ("TEXT subject", [1, 2, 3, 4]),
        ("OR SEEN (DELETED NOT SEEN)", [2, 3]),
        ("SINCE 22-Sep-2026", [5]),
        ("BEFORE 22-Sep-2026", [1, 2, 3, 4]),
        ("ON 30-Sep-2026", [5]),
        ("SENTON 21-Sep-2026", [1, 2, 3, 4]),
        ("SENTBEFORE 21-Sep-2026", []),
        ("LARGER 50", [1, 2, 3, 4]),
        ("SMALLER 50", [5]),
        ("EMAILID E3", [2]),
        ("CHARSET UTF-8 SEEN", [2]),
        ("NEW", []),
    ],
)
async def test_search(connect: Connect, criteria: str, uids: list[int]) -> None:
    store = filled(4)
    store.deliver("INBOX", b"\r\n", date_s=1_790_000_000 + 9 * 86400)
    store.set_flags("INBOX", 2, add=["\\Seen"])
    store.set_flags("INBOX", 3, add=["\\Deleted", "\\Seen"])
    store.set_flags("INBOX", 3, remove=["\\Seen"])
    store.set_flags("INBOX", 4, add=["$Work"])
    async with ImapServer(store) as server:
        client = await opened(connect, server)
        [line] = await client.ok(f"UID SEARCH {criteria}")
        assert [int(word) for word in line.split()[2:]] == uids
        [extended] = await client.ok(f"UID SEARCH RETURN (COUNT MIN MAX) {criteria}")
        ends = f"MIN {uids[0]} MAX {uids[-1]} " if uids else ""
        assert extended.split(b" UID ")[1].decode() == f"{ends}COUNT {len(uids)}"


async def test_search_by_number_modseq_and_esearch(connect: Connect) -> None:
    store = filled(6)
    store.expunge("INBOX", 1)
    store.set_flags("INBOX", [3, 4], add=["\\Seen"])
    async with ImapServer(store) as server:
        client = await opened(connect, server)
        assert await client.ok("SEARCH SEEN") == [b"* SEARCH 2 3"]
        assert await client.ok("UID SEARCH MODSEQ 9") == [b"* SEARCH 3 4 (MODSEQ 9)"]
        assert await client.ok('UID SEARCH MODSEQ "/flags/\\\\seen" all 9') == [b"* SEARCH 3 4 (MODSEQ 9)"]
        tag = client.send("UID SEARCH RETURN () 1:*")
        assert (await client.responses(tag))[0] == b'* ESEARCH (TAG "%b") UID ALL 2:6' % tag


async def test_store_changes_flags_and_tells_them(connect: Connect) -> None:
    store = filled(3)
    async with ImapServer(store) as server:
        client = await opened(connect, server)
        assert await client.ok("UID STORE 1,3 +FLAGS (\\seen $Work)") == [
            b"* 1 FETCH (UID 1 FLAGS ($Work \\Seen))",
            b"* 3 FETCH (UID 3 FLAGS ($Work \\Seen))",
        ]
        assert await client.ok("STORE 3 -FLAGS \\Seen $Work") == [b"* 3 FETCH (FLAGS ())"]
        assert await client.ok("UID STORE 1:* FLAGS.SILENT (\\Flagged)") == []
        assert {message.flags for message in store.mailbox("INBOX")} == {frozenset({"\\Flagged"})}
        assert await client.ok("NOOP") == [], "own changes are not news"


async def test_conditional_store(connect: Connect) -> None:
    store = filled(3)
    store.set_flags("INBOX", 2, add=["\\Flagged"])
    async with ImapServer(store) as server:
        client = await opened(connect, server, enable="CONDSTORE")
        *told, tagged = await client.ask("UID STORE 1:3 (UNCHANGEDSINCE 4) +FLAGS.SILENT (\\Seen)")
        assert told == [b"* 1 FETCH (UID 1 MODSEQ (6))", b"* 3 FETCH (UID 3 MODSEQ (6))"]
        assert tagged.startswith(b"OK [MODIFIED 2]")
        assert store.mailbox("INBOX").message(2).flags == {"\\Flagged"}
        [silent] = await client.ok("UID STORE 2 +FLAGS.SILENT (\\Seen)")
        assert silent == b"* 2 FETCH (UID 2 MODSEQ (7))", "RFC 7162 §3.1.3: MODSEQ even when silent"


async def test_copy_and_move_say_the_new_uids(connect: Connect) -> None:
    store = filled(4)
    store.create("B")
    store.deliver("B", RAW)
    validity = store.mailbox("B").uidvalidity
    async with ImapServer(store) as server:
        client = await opened(connect, server, enable="QRESYNC")
        assert (await client.ask("UID COPY 1:2 B")) == [f"OK [COPYUID {validity} 1:2 2:3] Copied".encode()]
        assert await client.ask("UID MOVE 1,3 B") == [
            f"* OK [COPYUID {validity} 1,3 4:5] Moved".encode(),
            b"* VANISHED 1,3",
            b"OK [HIGHESTMODSEQ 6] Move completed",
        ]
        assert await client.ask("MOVE 1 B") == [
            f"* OK [COPYUID {validity} 2 6] Moved".encode(),
            b"* VANISHED 2",
            b"OK [HIGHESTMODSEQ 7] Move completed",
        ]
        assert (store.mailbox("INBOX").uids, len(store.mailbox("B"))) == ([4], 6)
        assert (await client.ask("UID COPY 99 B")) == [b"OK Copied"]


async def test_copy_without_uidplus_says_nothing(connect: Connect) -> None:
    store = filled(1)
    store.create("B")
    async with ImapServer(store, capabilities=ALL - {"UIDPLUS"}) as server:
        client = await opened(connect, server)
        assert await client.ask("UID COPY 1 B") == [b"OK Copied"]
        assert (await client.ask("APPEND B {1+}\r\nx")) == [b"OK Append completed"]


async def test_expunge_removes_what_is_marked(connect: Connect) -> None:
    store = filled(6)
    store.set_flags("INBOX", [2, 3, 5, 6], add=["\\Deleted"])
    async with ImapServer(store) as server:
        client = await opened(connect, server)
        assert await client.ok("UID EXPUNGE 1:3") == [b"* 3 EXPUNGE", b"* 2 EXPUNGE"]
        assert store.mailbox("INBOX").uids == [1, 4, 5, 6]
        await client.ok("UNSELECT")
        await client.ok("ENABLE QRESYNC")
        await client.ok("SELECT INBOX")
        assert await client.ask("EXPUNGE") == [b"* VANISHED 5:6", b"OK [HIGHESTMODSEQ 10] Expunge completed"]


async def test_append_keeps_octets_flags_and_date(connect: Connect) -> None:
    store = Store(clock=lambda: 5.0)
    raw = b"Subject: \xc3\xbc\r\n\r\nA\nB\r\x01\r\n{4}\r\n"
    async with ImapServer(store) as server:
        client = await opened(connect, server)
        date = '"01-Feb-2026 03:04:05 +0100"'
        told = await client.ask(f'APPEND "INBOX" (\\Seen $Work) {date} '.encode() + b"{%d+}\r\n" % len(raw) + raw)
        validity = store.mailbox("INBOX").uidvalidity
        assert told == [b"* 1 EXISTS", b"* 0 RECENT", f"OK [APPENDUID {validity} 1] Append completed".encode()]
        message = store.mailbox("INBOX").message(1)
        assert (message.raw, message.flags, message.date_s) == (raw, frozenset({"\\Seen", "$Work"}), 1769911445)
        tag = client.send("APPEND INBOX {3}")
        assert (await client.response()).startswith(b"+ ")
        client.writer.write(b"abc\r\n")
        assert (await client.responses(tag))[-1].startswith(tag + b" OK [APPENDUID")
        assert store.mailbox("INBOX").message(2).date_s == 5
        assert server.journal[-1] == "APPEND INBOX {3}"


async def test_what_append_takes_no_literal_of(connect: Connect) -> None:
    async with ImapServer(Store(), capabilities=ALL | {"BINARY", "APPENDLIMIT"}) as server:
        client = await connect(server)
        server.store.mailbox("INBOX").append_limit = 3
        assert (await client.ask(b"APPEND INBOX {3+}\r\na\0b"))[-1].startswith(b"BAD")
        assert (await client.ask(b"APPEND INBOX {0+}\r\n"))[-1].startswith(b"NO")
        assert (await client.ask(b"APPEND INBOX {4+}\r\nabcd"))[-1].startswith(b"NO [TOOBIG]")
        assert (await client.ask(b"APPEND INBOX ~{3+}\r\na\0b"))[-1].startswith(b"OK")
        assert await client.ok("STATUS INBOX (APPENDLIMIT MESSAGES)") == [
            b'* STATUS "INBOX" (APPENDLIMIT 3 MESSAGES 1)'
        ]
        assert server.store.mailbox("INBOX").message(1).raw == b"a\0b"


async def test_multiappend(connect: Connect) -> None:
    command = b'APPEND INBOX (\\Seen) {1+}\r\na "01-Feb-2026 03:04:05 +0100" {2+}\r\nbb {3+}\r\nccc'
    async with ImapServer(Store()) as server:
        client = await connect(server)
        validity = server.store.mailbox("INBOX").uidvalidity
        assert await client.ask(command) == [f"OK [APPENDUID {validity} 1:3] Append completed".encode()]
        assert [message.raw for message in server.store.mailbox("INBOX")] == [b"a", b"bb", b"ccc"]
        assert server.journal[-1] == 'APPEND INBOX (\\Seen) {1+} "01-Feb-2026 03:04:05 +0100" {2+} {3+}'
    async with ImapServer(Store(), capabilities=ALL - {"MULTIAPPEND"}) as server:
        client = await connect(server)
        assert (await client.ask(command))[-1].startswith(b"BAD")
        assert len(server.store.mailbox("INBOX")) == 0
