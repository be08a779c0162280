"""What a server says of itself, late, twice, unasked or in eight bits changes no flags, mailbox or cursor."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from maild.core.errors import ConnectionLost, Rejected
from maild.core.model import Flags, MailboxName, Uid
from maild.remote.imap.parse import FetchData
from maild.remote.imap.remote import ImapRemote
from maild.remote.imap.stream import MESSAGE_OVERHEAD_OCTETS, SINK_OCTETS, _held_octets
from maild.testing.faults import Answer, Cut, Hold, Inject, Rewrite
from maild.testing.imap import ALL
from maild.testing.store import Store
from tests.remote.conftest import DEADLINE_S, Serve, imap_endpoint
from tests.remote.contract import INBOX, applied, scanned
from tests.remote.test_imap_remote import bodies, refuse_body, serving, truth

pytestmark = pytest.mark.usefixtures("quiet_loop")

WITHOUT_UNSELECT = ALL - {"UNSELECT"}


def store_of(count: int, *mailboxes: str) -> Store:
    store = Store()
    for mailbox in mailboxes:
        store.create(mailbox)
    for number in range(count):
        store.deliver("INBOX", b"x" * number + b"\r\n", ["\\Seen"] if number % 2 else [])
    return store


def replaced(pattern: bytes, new: bytes) -> Rewrite:
    return Rewrite(lambda response: re.sub(pattern, new, response, flags=re.DOTALL))


def before(start: bytes, told: bytes) -> Rewrite:
    """Say `told` before each response that begins with `start`."""
    return Rewrite(lambda response: told + response if response.startswith(start) else response)


def uids(*numbers: int) -> list[Uid]:
    return [Uid(str(number)) for number in numbers]


def cursor_of(cursor: str) -> dict[str, int]:
    return {key: int(value) for key, value in json.loads(cursor).items()}


# -- eight bits


async def test_a_keyword_in_eight_bits_is_left_out() -> None:
    async with serving(store_of(2)) as (server, remote):
        await remote.listing()
        server.faults.add("UID FETCH", replaced(rb"FLAGS \(\\Seen\)", b"FLAGS (\\\\Seen gr\xfc\xdfe plain)"))
        scan = await scanned(remote, None)
    assert applied({}, scan) == {1: frozenset(), 2: frozenset({"\\Seen", "plain"})}
    assert scan.complete


async def test_a_mailbox_name_in_eight_bits_is_reported_and_harms_no_other() -> None:
    async with serving(store_of(1)) as (server, remote):
        bad = b'* LIST () "/" "gr\xfc\xdfe"\r\n* LIST () "/" {5}\r\ngr\xfc\xdfe\r\n'
        server.faults.add("LIST", before(b"* LIST ", bad))
        listing = await remote.listing()
        assert [mailbox.name for mailbox in listing.mailboxes] == ["INBOX"]
        assert list(listing.unusable.values()) == ["its name is neither UTF-8 nor modified UTF-7"]
        assert all(name.isprintable() and name.encode() for name in listing.unusable)
        assert (await scanned(remote, None)).complete


# -- the mailbox that was open before


@pytest.mark.parametrize("is_known", [False, True])
async def test_news_of_the_mailbox_before_are_not_applied_to_the_next(is_known: bool) -> None:
    store = store_of(4, "next")
    for _ in range(4):
        store.deliver("next", b"n\r\n", ["\\Flagged"])
    async with serving(store, WITHOUT_UNSELECT, connections=1) as (server, remote):
        await remote.listing()
        async with remote.visit(MailboxName("next")) as box:
            cursor = (await box.scan(None)).cursor
        await scanned(remote, None)
        old = (
            b"* VANISHED (EARLIER) 1:3\r\n* VANISHED 2\r\n* 1 FETCH (UID 4 FLAGS (\\Deleted) MODSEQ (99))\r\n"
            b"* 99 EXISTS\r\n* OK [UIDNEXT 99] x\r\n* OK [HIGHESTMODSEQ 9999] x\r\n"
        )
        fault = server.faults.add("SELECT", Inject(old))
        async with remote.visit(MailboxName("next")) as box:
            scan = await box.scan(cursor if is_known else None)
    assert fault.struck.is_set()
    assert scan.complete
    assert scan.vanished == frozenset()
    assert scan.messages == 4
    assert applied({n: frozenset({"\\Flagged"}) for n in range(1, 5)}, scan) == truth(store, "next")
    assert cursor_of(scan.cursor)["m"] == store.mailbox("next").highestmodseq


async def test_vanished_of_now_during_an_opening_deletes_nothing() -> None:
    store = store_of(4)
    async with serving(store) as (server, remote):
        await remote.listing()
        cursor = (await scanned(remote, None)).cursor
        store.set_flags("INBOX", 1, add=["\\Flagged"])
        fault = server.faults.add("SELECT", before(b"* OK [UIDVALIDITY", b"* VANISHED 2:3\r\n"))
        scan = await scanned(remote, cursor)
    assert fault.struck.is_set()
    assert scan.vanished == frozenset()
    assert not scan.full
    assert {uid for uid, _, _ in scan.items} == {"1"}


# -- while a scan runs


async def test_a_modseq_told_after_the_opening_does_not_move_the_cursor() -> None:
    """A change while all is being listed: the next scan from the cursor must see it, the list may not have it."""
    store = store_of(4)
    async with serving(store) as (server, remote):
        await remote.listing()
        at_opening = store.mailbox("INBOX").highestmodseq

        def late(response: bytes) -> bytes:
            if response.startswith(b"* 4 FETCH"):
                store.set_flags("INBOX", 1, add=["\\Flagged"])
                store.deliver("INBOX", b"late\r\n")
                told = b"* OK [HIGHESTMODSEQ %d] x\r\n* 5 EXISTS\r\n" % store.mailbox("INBOX").highestmodseq
                return response + told
            return response

        server.faults.add("UID FETCH", Rewrite(late))
        first = await scanned(remote, None)
        assert first.complete
        assert len(first.items) == first.messages == 4
        assert (cursor_of(first.cursor)["m"], cursor_of(first.cursor)["n"]) == (at_opening, 5)
        server.faults.clear()
        second = await scanned(remote, first.cursor)
    assert applied(applied({}, first), second) == truth(store)
    assert "5" in {uid for uid, _, _ in second.items}


async def test_a_fetch_response_without_flags_clears_none() -> None:
    store = store_of(4)
    async with serving(store) as (server, remote):
        await remote.listing()
        server.faults.add("UID FETCH", before(b"* 4 FETCH", b"* 2 FETCH (UID 2 MODSEQ (7))\r\n"))
        scan = await scanned(remote, None)
    assert applied({}, scan) == truth(store)
    assert scan.complete


async def test_flags_told_again_without_the_size_keep_the_size() -> None:
    async with serving(store_of(4)) as (server, remote):
        await remote.listing()
        server.faults.add("UID FETCH", before(b"* 4 FETCH", b"* 2 FETCH (UID 2 FLAGS (\\Answered))\r\n"))
        scan = await scanned(remote, None)
    told: dict[str, tuple[Flags, int]] = {uid: (flags, size) for uid, flags, size in scan.items}
    assert told["2"] == (frozenset({"\\Answered"}), 3)
    assert [size for _, size in told.values()] == [2, 3, 4, 5]


# -- what a server refuses


@pytest.mark.parametrize("refused", ["ENABLE", "SELECT"])
@pytest.mark.parametrize("answer", ["NO not today", "BAD never heard of it"])
async def test_without_the_qresync_that_it_advertises_all_is_scanned(refused: str, answer: str) -> None:
    store = store_of(4)
    async with serving(store) as (server, remote):
        if refused == "ENABLE":
            server.faults.add("ENABLE", Answer(answer))
        await remote.listing()
        scan = await scanned(remote, None)
        known = applied({}, scan)
        if refused == "SELECT":
            server.faults.add("SELECT", Answer(answer))
        for _ in range(3):
            store.expunge("INBOX", min(truth(store)))
            store.deliver("INBOX", b"new\r\n")
            scan = await scanned(remote, scan.cursor)
            assert scan.complete
            known = applied(known, scan)
            assert known == truth(store)
        assert sum("QRESYNC (" in line for line in server.journal) <= 1


async def test_facts_that_are_refused_are_missing_and_the_session_stays() -> None:
    async with serving(store_of(2)) as (server, remote):
        await remote.listing()
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            server.faults.add("UID FETCH", Answer("NO [CANNOT] no header fields here"))
            assert await box.facts(uids(1, 2)) == {}
            assert set(await bodies(box, uids(1, 2))) == set(uids(1, 2))
        assert len(server.connections) == 1


async def test_facts_that_nobody_asked_for_are_nobodys() -> None:
    async with serving(store_of(3)) as (server, remote):
        await remote.listing()
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            for told in (999, 3):
                server.faults.add("UID FETCH", Rewrite(lambda r, t=told: r.replace(b"UID 1 ", b"UID %d " % t)))
                assert set(await box.facts(uids(1, 2))) == {"2"}, told


@pytest.mark.parametrize("answer", ["NO not here", "BAD never heard of it"])
async def test_a_refused_namespace_is_tolerated(answer: str) -> None:
    async with serving(store_of(1, "a")) as (server, remote):
        fault = server.faults.add("NAMESPACE", Answer(answer))
        assert {mailbox.name for mailbox in (await remote.listing()).mailboxes} == {"INBOX", "a"}
    assert fault.struck.is_set()


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
async def test_what_can_be_no_host_is_one_clear_error(host: str) -> None:
    remote = ImapRemote(imap_endpoint(143, host=host), "work")
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(ConnectionLost, match=re.escape(f"{host} cannot be")) as error:
            await remote.listing()
    assert error.value.hint == "check the spelling of host"
    await remote.aclose()


# -- bodies


@pytest.mark.parametrize("uid", [1, 99])
async def test_a_body_that_nobody_asked_for_is_not_delivered(uid: int) -> None:
    async with serving(store_of(4)) as (server, remote):
        await remote.listing()
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            unasked = b"* 1 FETCH (UID %d FLAGS () BODY[] {5}\r\nevil\n)\r\n" % uid
            fault = server.faults.add("UID FETCH", Inject(unasked))
            found = await bodies(box, uids(3, 4))
    assert fault.struck.is_set()
    assert found == {"3": b"xx\r\n", "4": b"xxx\r\n"}


async def test_a_message_that_comes_twice_is_delivered_once() -> None:
    async with serving(store_of(4)) as (server, remote):
        await remote.listing()
        arrived: list[Uid] = []
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            server.faults.add("UID FETCH", Rewrite(lambda r: r + r if b"BODY[]" in r else r))
            async for several in box.fetch(iter([uids(3, 4)]), refuse_body):
                arrived += [message.uid for message in several]
    assert sorted(arrived) == ["3", "4"]


async def test_a_session_left_in_the_middle_of_a_fetch_is_not_lent_again() -> None:
    async with serving(store_of(40), connections=1) as (server, remote):
        await remote.listing()
        batches: Iterator[list[Uid]] = iter([uids(number) for number in range(1, 41)])
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            server.faults.add("UID FETCH", Hold(asyncio.Event()), nth=2)
            async for _ in box.fetch(batches, refuse_body):
                break
        server.faults.clear()
        scan = await scanned(remote, None)
        assert scan.complete
        assert len(server.connections) == 2


async def test_a_session_given_back_with_answers_owed_is_dropped(serve: Serve) -> None:
    """Whoever had it next would get them."""
    silent: Callable[[bytes], bytes | Iterable[bytes]] = lambda line: (  # noqa: E731
        b"" if b" NOOP" in line else line.split()[0] + b" OK done\r\n"
    )
    remote = ImapRemote(imap_endpoint(await serve(silent), connections=1), "work")
    async with asyncio.timeout(DEADLINE_S):
        async with remote._session() as first:
            first.launch("NOOP")
        assert first.is_lost
        async with remote._session() as second:
            assert second is not first
    await remote.aclose()


@pytest.mark.parametrize("is_big", [False, True])
async def test_a_big_message_counts_what_it_holds(is_big: bool) -> None:
    sink: Any = object()
    event = FetchData(seq=1, uid=1, flags=frozenset(), sections={b"": sink if is_big else b"x" * 100})
    assert _held_octets(event) == MESSAGE_OVERHEAD_OCTETS + (SINK_OCTETS if is_big else 100)


# -- a second session


async def test_a_second_connection_that_is_dropped_without_a_word_leaves_the_first() -> None:
    async with serving(store_of(4), connections=3) as (server, remote):
        await remote.listing()
        for number in range(2, 12):
            server.faults.add("CONNECT", Cut(after_octets=0), connection=number)

        async def visitor() -> bool:
            async with remote.visit(INBOX) as box:
                return (await box.scan(None)).complete

        assert await asyncio.gather(*(visitor() for _ in range(5))) == [True] * 5
        assert sum(connection.user is not None for connection in server.connections) == 1


async def test_a_mailbox_without_uidvalidity_is_refused_alone() -> None:
    async with serving(store_of(1)) as (server, remote):
        await remote.listing()
        server.faults.add("SELECT", Rewrite(lambda r: b"" if b"UIDVALIDITY" in r else r))
        with pytest.raises(Rejected, match="no UIDVALIDITY"):
            await scanned(remote, None)
        assert (await scanned(remote, None)).complete
