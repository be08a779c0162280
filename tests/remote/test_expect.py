"""A mailbox asked for behind the LIST that is under way: it saves a round trip, and changes nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from maild.core.errors import ConnectionLost, Rejected
from maild.core.model import Cursor, Fetched, MailboxName, Scan
from maild.remote.imap.opening import AHEAD_MESSAGES, AHEAD_OCTETS
from maild.remote.imap.remote import ImapRemote
from maild.testing.dialogue import Dialogue
from maild.testing.faults import Action, Answer, Cut, Hold, Rewrite
from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.remote.conftest import DEADLINE_S, PASSWORD, USER, imap_endpoint
from tests.remote.contract import raw_of, scanned, uids_of
from tests.remote.test_imap_remote import refuse_body

pytestmark = pytest.mark.usefixtures("quiet_loop")

INBOX, OTHER = MailboxName("INBOX"), MailboxName("Other")
FLAGGED = frozenset({"\\Flagged"})


@asynccontextmanager
async def serving(
    capabilities: frozenset[str] = ALL, **changes: Any
) -> AsyncIterator[tuple[ImapServer, ImapRemote, Cursor]]:
    """Three messages in INBOX, seen up to the cursor; a mailbox Other."""
    store = Store()
    store.create(OTHER)
    for number in (1, 2, 3):
        store.deliver("INBOX", raw_of(number))
    async with (
        asyncio.timeout(2 * DEADLINE_S),
        ImapServer(store, {USER: PASSWORD}, capabilities=capabilities) as server,
    ):
        remote = ImapRemote(imap_endpoint(server.port, **({"connections": 1} | changes)), "work")
        try:
            await remote.listing()
            cursor = (await scanned(remote)).cursor
            server.journal.clear()
            yield server, remote, cursor
        finally:
            await remote.aclose()


def nothing() -> None:
    """What else happens while LIST is under way."""


async def listed(
    server: ImapServer,
    remote: ImapRemote,
    cursor: Cursor,
    meanwhile: Callable[[], object] = nothing,
    **changes: Any,
) -> None:
    """A listing, while which INBOX is expected, and something else happens."""
    may_answer = asyncio.Event()
    server.faults.add("LIST", Hold(may_answer))
    before = server.count("LIST")
    listing = asyncio.create_task(remote.listing())
    try:
        await server.until(lambda: server.count("LIST") > before)
        remote.expect(INBOX, cursor, **changes)
        meanwhile()
    finally:
        may_answer.set()
        await listing


def change_everything(store: Store) -> None:
    store.set_flags("INBOX", 1, add=["\\Flagged"])
    store.expunge("INBOX", [2])
    store.deliver("INBOX", raw_of(4))


def facts_of(scan: Scan) -> tuple[object, ...]:
    return list(scan.items), scan.vanished, scan.complete, scan.full, scan.messages, scan.mark, scan.cursor


@pytest.mark.parametrize("missing", [set(), {"QRESYNC"}, {"UNSELECT"}, {"QRESYNC", "UNSELECT"}])
async def test_it_is_asked_for_before_the_listing_is_there(missing: set[str]) -> None:
    async with serving(ALL - missing) as (server, remote, cursor):
        change_everything(server.store)
        await listed(server, remote, cursor)
        await server.until(lambda: server.count("UID FETCH") == (2 if "QRESYNC" in missing else 1))
        names = [command.split(" (")[0] for command in server.journal if not command.startswith("NOOP")]
        assert names[names.index('SELECT "INBOX"') - 1].startswith("LIST"), names
        before = list(server.journal)
        async with remote.visit(INBOX) as box:
            expected = await box.scan(cursor)
            permitted = expected.permitted
        asked = [command for command in server.journal[len(before) :] if not command.startswith("UID SEARCH")]
        assert asked == []  # without QRESYNC the UIDs are asked for, to know what is gone
        assert facts_of(await scanned(remote, cursor)) == facts_of(expected)
        assert (expected.vanished, expected.messages, len(expected.items)) == (set(uids_of(2)), 3, 2)
        assert permitted is not None
        async with remote.visit(INBOX, expected.epoch) as box:
            assert await box.expunge(uids_of(1)) == set(uids_of(1))


async def test_the_visit_waits_for_nothing_that_is_told_already() -> None:
    async with serving() as (server, remote, cursor):
        await listed(server, remote, cursor)
        await server.until(lambda: server.count("UID FETCH") == 1)
        server.faults.add("*", Hold(asyncio.Event()))  # whatever is asked for now is never answered
        async with remote.visit(INBOX) as box, asyncio.timeout(DEADLINE_S):
            assert len((await box.scan(cursor)).items) == 0


@pytest.mark.parametrize("missing", [{"QRESYNC", "CONDSTORE"}, {"LIST-STATUS"}])
async def test_where_it_cannot_be_asked_for_ahead_nothing_is(missing: set[str]) -> None:
    async with serving(ALL - missing) as (server, remote, cursor):
        change_everything(server.store)
        await listed(server, remote, cursor)
        assert server.count("SELECT") == 0
        assert (await scanned(remote, cursor)).messages == 3


async def test_it_may_be_told_before_there_is_a_connection() -> None:
    async with serving() as (server, first, cursor):
        change_everything(server.store)
        await first.aclose()
        server.journal.clear()
        remote = ImapRemote(imap_endpoint(server.port, connections=1), "work")
        listing = asyncio.create_task(_as_object(remote.listing))
        await asyncio.sleep(0)
        remote.expect(INBOX, cursor)
        await listing
        await server.until(lambda: server.count("UID FETCH") == 1)  # before anybody visits
        scan = await scanned(remote, cursor)
        assert (scan.vanished, scan.messages, server.count("SELECT")) == (set(uids_of(2)), 3, 1)
        assert server.journal[-2].startswith("SELECT")
        await remote.aclose()


async def test_outside_a_listing_it_is_nothing() -> None:
    async with serving() as (server, remote, cursor):
        remote.expect(INBOX, cursor)
        remote.expect(MailboxName("never heard of"), cursor)
        await remote.listing()
        assert server.count("SELECT") == 0
        await listed(server, remote, cursor, lambda: remote.expect(OTHER, cursor))
        assert [command.split(" (")[0] for command in server.journal if "SELECT " in command] == ['SELECT "INBOX"']


async def test_what_is_asked_for_otherwise_is_asked_anew() -> None:
    async with serving() as (server, remote, cursor):
        await listed(server, remote, cursor)
        full = await scanned(remote, None)
        assert (full.full, len(full.items)) == (True, 3)
        await listed(server, remote, cursor)
        async with remote.visit(INBOX, read_only=True) as box:
            await box.scan(cursor)
        assert server.count("EXAMINE") == 1
        await listed(server, remote, cursor, read_only=True)
        async with remote.visit(INBOX, read_only=True) as box:
            await box.scan(cursor)
        assert server.count("EXAMINE") == 2


async def test_a_visit_that_begins_with_something_else() -> None:
    async with serving() as (server, remote, cursor):
        await listed(server, remote, cursor)
        epoch = (await scanned(remote)).epoch
        await listed(server, remote, cursor)
        selected = server.count("SELECT")
        async with remote.visit(INBOX, epoch) as box:
            assert await box.expunge(uids_of(1)) == set(uids_of(1))
        assert server.count("SELECT") == selected


async def test_what_nobody_came_for_is_not_told_later() -> None:
    async with serving(connections=2) as (server, remote, cursor):
        async with remote.visit(INBOX) as inbox, remote.visit(OTHER) as other:
            await inbox.scan(None)
            await other.scan(None)
        server.journal.clear()
        await listed(server, remote, cursor)
        await server.until(lambda: server.count("UID FETCH") == 1)
        server.store.deliver("INBOX", raw_of(4))
        async with remote.visit(OTHER) as box:
            await box.scan(None)
        await remote.listing()  # on the session that was used last
        scan = await scanned(remote, cursor)
        assert [uid for uid, _, _ in scan.items] == uids_of(4)


async def test_another_visit_on_the_only_session_is_not_disturbed() -> None:
    async with serving() as (server, remote, cursor):
        server.store.deliver(OTHER, raw_of(9))
        await listed(server, remote, cursor)
        scan = await scanned(remote, None, OTHER)
        assert (len(scan.items), scan.complete) == (1, True)
        assert (await scanned(remote, cursor)).complete


async def test_a_mailbox_that_is_gone_by_then() -> None:
    async with serving() as (server, remote, cursor):
        await remote.create((OTHER, "child"))
        gone = MailboxName("Other/child")
        may_answer = asyncio.Event()
        server.faults.add("LIST", Hold(may_answer))
        listing = asyncio.create_task(remote.listing())
        await server.until(lambda: server.journal[-1].startswith("LIST"))
        remote.expect(gone, cursor)
        server.store.delete(gone)
        may_answer.set()
        assert gone not in (await listing).present
        with pytest.raises(Rejected, match="there is no mailbox Other/child on the server"):
            async with remote.visit(gone):
                pass
        assert (await scanned(remote, cursor)).complete


async def test_a_mailbox_may_be_renamed_and_deleted_though_it_was_expected() -> None:
    async with serving() as (server, remote, cursor):
        await remote.listing()
        may_answer = asyncio.Event()
        server.faults.add("LIST", Hold(may_answer))
        listing = asyncio.create_task(remote.listing())
        await server.until(lambda: server.journal[-1].startswith("LIST"))
        remote.expect(OTHER, cursor)
        may_answer.set()
        await listing
        new = (await remote.rename(OTHER, ("New",))).name
        server.store.expunge(new, server.store.mailbox(new).uids)
        assert await remote.delete(new, (await scanned(remote, mailbox=new)).cursor)
        assert server.store.names == ("INBOX",)


async def test_another_epoch_is_a_full_scan() -> None:
    async with serving() as (server, remote, cursor):
        server.store.mailbox("INBOX").renumber(77, keep=True)
        await listed(server, remote, cursor)
        scan = await scanned(remote, cursor)
        assert (scan.full, scan.complete, len(scan.items)) == (True, True, 3)


async def test_a_connection_lost_meanwhile() -> None:
    async with serving() as (server, remote, cursor):
        server.faults.add("SELECT", Cut(after_octets=10))
        await listed(server, remote, cursor)
        with suppress(ConnectionLost):  # told of to the visit, or known before it
            await scanned(remote, cursor)
        assert (await scanned(remote, cursor)).complete
        assert len(server.connections) == 2


async def test_push_may_take_the_session() -> None:
    async with serving(ALL - {"NOTIFY"}, connections=2) as (server, remote, cursor):
        await listed(server, remote, cursor)
        async with remote.watch([INBOX], [INBOX], "idle") as news:
            assert news.method == "idle"
            assert (await scanned(remote, cursor)).complete


# -- small new messages come along


async def fetched(remote: ImapRemote, cursor: Cursor) -> tuple[Scan, list[Fetched]]:
    """A scan, and all that it found new, asked for at once and once."""
    async with remote.visit(INBOX) as box:
        scan = await box.scan(cursor)
        batches = iter([[uid for uid, _, _ in scan.items]])
        return scan, [one async for several in box.fetch(batches, refuse_body) for one in several]


def bodies_asked(server: ImapServer) -> list[str]:
    """The sets of UIDs of which the messages were asked for, cut or whole."""
    return [command.split()[2] for command in server.journal if "BODY.PEEK[]" in command]


@pytest.mark.parametrize("missing", [set(), {"QRESYNC"}, {"UNSELECT"}])
async def test_small_new_messages_come_along(missing: set[str]) -> None:
    async with serving(ALL - missing) as (server, remote, cursor):
        for number in (4, 5):
            server.store.deliver("INBOX", raw_of(number), ["\\Flagged"])
        await listed(server, remote, cursor, has_mail=True)
        await server.until(lambda: len(bodies_asked(server)) == 1)
        server.faults.add("*", Hold(asyncio.Event()))  # whatever is asked for now is never answered
        async with asyncio.timeout(DEADLINE_S):
            scan, found = await fetched(remote, cursor)
        server.faults.clear()
        told = [(one.uid, one.flags, one.raw) for one in found]
        assert told == [(uid, FLAGGED, raw_of(int(uid))) for uid in uids_of(4, 5)]
        assert all(one.date_s for one in found)
        assert facts_of(scan) == facts_of(await scanned(remote, cursor))


async def test_small_new_messages_come_along_with_a_scan_that_is_not_begun_ahead() -> None:
    async with serving() as (server, remote, cursor):
        server.store.deliver("INBOX", raw_of(4))
        await remote.listing()
        remote.expect(INBOX, cursor, has_mail=True)
        for _ in range(2):  # the next time nothing is expected
            _, found = await fetched(remote, cursor)
            assert [(one.uid, one.raw) for one in found] == [(uid, raw_of(4)) for uid in uids_of(4)]
        assert bodies_asked(server) == ["4:7", "4"]


async def test_nothing_comes_along_of_which_the_server_did_not_tell() -> None:
    async with serving() as (server, remote, cursor):
        server.store.deliver("INBOX", raw_of(4))
        await listed(server, remote, cursor)
        _, found = await fetched(remote, cursor)
        assert ([one.uid for one in found], bodies_asked(server)) == (uids_of(4), ["4"])


async def test_big_messages_and_more_than_a_few_are_fetched_by_themselves() -> None:
    raws = {number: raw_of(number, AHEAD_OCTETS * (number == 5)) for number in range(4, 4 + AHEAD_MESSAGES + 3)}
    async with serving() as (server, remote, cursor):
        for raw in raws.values():
            server.store.deliver("INBOX", raw)
        await listed(server, remote, cursor, has_mail=True)
        _, found = await fetched(remote, cursor)
        assert {int(one.uid): one.raw for one in found} == raws
        assert len(found) == len(raws)
        assert bodies_asked(server) == ["4:7", "5,8:10"]


@pytest.mark.parametrize("octets", [AHEAD_OCTETS - 1, AHEAD_OCTETS, AHEAD_OCTETS + 1])
async def test_a_message_that_is_just_cut_or_just_not(octets: int) -> None:
    raw = raw_of(4) + b"z" * (octets - len(raw_of(4)))
    async with serving() as (server, remote, cursor):
        server.store.deliver("INBOX", raw)
        await listed(server, remote, cursor, has_mail=True)
        _, found = await fetched(remote, cursor)
        assert [one.raw for one in found] == [raw]
        assert bodies_asked(server)[1:] == ([] if octets < AHEAD_OCTETS else ["4"])


def _with_another_size(response: bytes) -> bytes:
    return response.replace(b"RFC822.SIZE ", b"RFC822.SIZE 1")


def _without_flags(response: bytes) -> bytes:
    return response.replace(b"FLAGS () ", b"") if b"BODY[]" in response else response


def _twice(response: bytes) -> bytes:
    return response * 2 if b"BODY[]" in response else response


@pytest.mark.parametrize(
    ("wrong", "is_believed"),
    [
        (Answer("NO not now"), False),
        (Answer("BAD what"), False),
        (Rewrite(_with_another_size), False),
        (Rewrite(_without_flags), False),
        (Rewrite(_twice), True),
    ],
)
async def test_what_comes_along_wrongly_is_fetched_again(wrong: Action, is_believed: bool) -> None:
    async with serving() as (server, remote, cursor):
        server.store.deliver("INBOX", raw_of(4))
        server.faults.add("UID FETCH", wrong, nth=2)
        await listed(server, remote, cursor, has_mail=True)
        scan, found = await fetched(remote, cursor)
        assert [(one.uid, one.raw) for one in found] == [(uid, raw_of(4)) for uid in uids_of(4)]
        assert scan.complete
        assert bodies_asked(server)[1:] == ([] if is_believed else ["4"])


async def test_what_comes_along_is_of_the_scan_that_counts() -> None:
    """The mailbox was begun anew meanwhile: the same UID is another message."""
    async with serving() as (server, remote, cursor):
        server.store.deliver("INBOX", raw_of(4))
        server.store.mailbox("INBOX").renumber(77, keep=True)
        await listed(server, remote, cursor, has_mail=True)
        scan, found = await fetched(remote, cursor)
        assert (scan.full, len(found)) == (True, 4)
        assert [one.raw for one in found] == [raw_of(number) for number in (1, 2, 3, 4)]


BOTH_AT_ONCE = r"""
S: * OK [CAPABILITY IMAP4rev1] hello
C: $1 LOGIN "user" "correct horse battery staple"
S: $1 OK [CAPABILITY IMAP4rev1 ENABLE CONDSTORE QRESYNC LIST-STATUS] in
C: $2 ENABLE QRESYNC
C: $3 LIST "" "*" RETURN (STATUS (MESSAGES UIDNEXT UIDVALIDITY HIGHESTMODSEQ))
S: * ENABLED QRESYNC
S: $2 OK
S: * LIST () "/" INBOX
S: $3 OK
C: $4 LIST "" "*" RETURN (STATUS (MESSAGES UIDNEXT UIDVALIDITY HIGHESTMODSEQ))
C: $5 SELECT "INBOX" (QRESYNC (7 3))
C: $6 UID FETCH 5:* (UID FLAGS RFC822.SIZE)
# Neither hinders the other, so a server may answer both at once (RFC 9051 §5.5). All of this is taken for LIST's.
S: * LIST () "/" INBOX
S: * 3 EXISTS
S: * VANISHED (EARLIER) 2
S: * 1 FETCH (UID 1 FLAGS (\Seen) MODSEQ (5))
S: $4 OK
S: * FLAGS (\Seen)
S: * OK [UIDVALIDITY 7] x
S: * OK [UIDNEXT 5] x
S: * OK [HIGHESTMODSEQ 5] x
S: $5 OK [READ-WRITE] x
S: $6 OK
C: $7 SELECT "INBOX" (QRESYNC (7 3))
C: $8 UID FETCH 5:* (UID FLAGS RFC822.SIZE)
S: * 3 EXISTS
S: * FLAGS (\Seen)
S: * OK [UIDVALIDITY 7] x
S: * OK [UIDNEXT 5] x
S: * OK [HIGHESTMODSEQ 5] x
S: * VANISHED (EARLIER) 2
S: * 1 FETCH (UID 1 FLAGS (\Seen) MODSEQ (5))
S: $7 OK [READ-WRITE] x
S: $8 OK
HANGUP
"""


async def test_a_server_that_answers_both_at_once_loses_nothing() -> None:
    cursor = Cursor('{"v":7,"n":5,"m":3,"e":4}')
    async with asyncio.timeout(DEADLINE_S), Dialogue(BOTH_AT_ONCE) as server:
        remote = ImapRemote(imap_endpoint(server.port, connections=1), "work")
        await remote.listing()
        listing: asyncio.Task[object] = asyncio.create_task(_as_object(remote.listing))
        while remote._listing_on is None:
            await asyncio.sleep(0)
        remote.expect(INBOX, cursor)
        await listing
        async with remote.visit(INBOX) as box:
            scan = await box.scan(cursor)
        await remote.aclose()
    assert (scan.vanished, [uid for uid, _, _ in scan.items], scan.messages) == (set(uids_of(2)), uids_of(1), 3)


async def _as_object(listing: Callable[[], Awaitable[object]]) -> object:
    return await listing()
