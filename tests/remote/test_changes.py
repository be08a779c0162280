"""The writing half of the port when servers refuse, lie, cut the line or say more than they were asked."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest

from maild.core.errors import ConnectionLost, LocalError, ProtocolViolation, Rejected
from maild.core.model import (
    NO_FLAGS,
    Appended,
    Cursor,
    Epoch,
    FlagChange,
    Key,
    MailboxName,
    Outgoing,
    Permitted,
    Uid,
)
from maild.core.ports import RemoteBox
from maild.remote.imap import append as appending
from maild.remote.imap.change import sendable
from maild.remote.imap.dates import date_time, internal_date
from maild.remote.imap.opening import Findings
from maild.remote.imap.parse import Data, Untagged
from maild.remote.imap.session import Protocol
from maild.remote.imap.sets import found_in, sets
from maild.testing.faults import Answer, Bye, Cut, Inject, Rewrite, StopReading
from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.remote.contract import INBOX, WHEN_S, outgoing, raw_of, scanned, uids_of
from tests.remote.test_imap_remote import serving

pytestmark = pytest.mark.usefixtures("quiet_loop")

SEEN = frozenset({"\\Seen"})
MARKED = frozenset({"\\Deleted"})
OTHER = MailboxName("other")
SINGLE = ALL - {"MULTIAPPEND"}


def store_of(count: int) -> Store:
    store = Store()
    store.create("other")
    for number in range(1, count + 1):
        store.deliver("INBOX", raw_of(number), date_s=WHEN_S)
    return store


@asynccontextmanager
async def opened(
    store: Store, capabilities: Iterable[str] = ALL, **changes: object
) -> AsyncIterator[tuple[ImapServer, RemoteBox]]:
    """A server and INBOX, open and scanned."""
    async with serving(store, capabilities, **changes) as (server, remote):
        await remote.listing()
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            server.journal.clear()
            yield server, box


async def answers(box: RemoteBox, *messages: Outgoing) -> dict[str, Appended]:
    return {answer.key: answer async for answer in box.append(iter(messages))}


def seen(*numbers: int) -> list[FlagChange]:
    return [FlagChange(uid, SEEN, NO_FLAGS) for uid in uids_of(*numbers)]


def flags_in(store: Store, mailbox: str = "INBOX") -> dict[int, frozenset[str]]:
    return {message.uid: message.flags for message in store.mailbox(mailbox)}


# -- opening


async def test_a_visit_of_the_mailbox_that_is_open_costs_no_round_trip() -> None:
    async with serving(store_of(2), connections=1) as (server, remote):
        await remote.listing()
        scan = await scanned(remote)
        server.journal.clear()
        async with remote.visit(INBOX, scan.epoch) as box:
            assert await box.store(seen(1)) == {"1"}
        assert server.journal == ["UID STORE 1 +FLAGS.SILENT (\\Seen)"]


async def test_the_session_that_has_it_open_is_preferred() -> None:
    async with serving(store_of(2), connections=2) as (server, remote):
        await remote.listing()
        async with remote.visit(INBOX) as inbox, remote.visit(OTHER) as other:
            epochs = {INBOX: (await inbox.scan(None)).epoch, OTHER: (await other.scan(None)).epoch}
        server.journal.clear()
        for name in (INBOX, OTHER, INBOX, OTHER):
            async with remote.visit(name, epochs[name]) as box:
                await box.facts(uids_of(1))
        assert server.count("SELECT") == 0


@pytest.mark.parametrize("told", ["* OK [CLOSED] bye\r\n", "* OK [UIDVALIDITY 77] new\r\n"])
async def test_in_doubt_a_mailbox_is_opened_again(told: str) -> None:
    async with serving(store_of(2), connections=1) as (server, remote):
        await remote.listing()
        async with remote.visit(INBOX) as box:
            epoch = (await box.scan(None)).epoch
            server.faults.add("UID FETCH", Inject(told.encode()))
            await box.facts(uids_of(1))
        server.journal.clear()
        async with remote.visit(INBOX, epoch):
            assert server.count("SELECT") == 1


async def test_a_read_only_visit_never_selects() -> None:
    async with serving(store_of(2), connections=1) as (server, remote):
        await remote.listing()
        for _ in range(2):
            async with remote.visit(INBOX, read_only=True) as box:
                scan = await box.scan(None)
            async with remote.visit(INBOX, scan.epoch, read_only=True) as box:
                await box.facts(uids_of(1))
        assert (server.count("EXAMINE"), server.count("SELECT")) == (2, 0)
        async with remote.visit(INBOX, scan.epoch) as box:
            await box.store(seen(1))
        assert (server.count("EXAMINE"), server.count("SELECT")) == (2, 1)


async def test_a_mailbox_that_the_server_opens_for_reading_only() -> None:
    store = store_of(1)
    store.mailbox("INBOX").read_only = True
    async with opened(store) as (server, box):
        assert (await box.scan(None)).permitted is None
        with pytest.raises(Rejected, match="open for reading only"):
            await box.store(seen(1))
        assert server.mutations == []


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([Untagged("OK", "PERMANENTFLAGS", b"(\\seen $X \\*)", "")], Permitted(frozenset({"\\Seen", "$X"}), True)),
        ([Untagged("OK", "PERMANENTFLAGS", b"(\\Flagged Old)", "")], Permitted(frozenset({"\\Flagged", "Old"}), False)),
        ([Untagged("OK", "PERMANENTFLAGS", b"()", ""), Data("FLAGS", [[b"\\Seen"]])], Permitted(NO_FLAGS, False)),
        ([Data("FLAGS", [[b"\\Answered", b"word", b"\\Recent"]])], Permitted(frozenset({"\\Answered", "word"}), False)),
        ([], Permitted(NO_FLAGS, False)),
    ],
)
async def test_permitted(events: list[Data | Untagged], expected: Permitted) -> None:
    found = Findings()
    for event in events:
        found.take(event)
    assert found.permitted() == expected


async def test_flags_that_the_mailbox_does_not_keep_are_not_appended() -> None:
    store = store_of(0)
    store.mailbox("INBOX").permanent_flags = frozenset({"\\Seen", "$known"})
    async with opened(store) as (server, box):
        await answers(box, outgoing("k", raw_of(1), ["\\Seen", "\\Flagged", "$Known", "$new"]))
        assert server.journal[0].startswith('APPEND "INBOX" ($Known \\Seen) ')


# -- listing


async def test_mailbox_ids_and_what_refuses_them() -> None:
    store = store_of(3)
    for refused in (False, True):
        async with serving(store) as (server, remote):
            if refused:
                server.faults.add("LIST", Answer("BAD no such item"))
            (inbox, _) = (await remote.listing()).mailboxes
            assert inbox.object_id == ("" if refused else store.mailbox("INBOX").mailbox_id)
            assert (inbox.messages, inbox.next_uid) == (3, "4")
            assert inbox.epoch == str(store.mailbox("INBOX").uidvalidity)
            assert inbox.mark is not None
            assert server.count("LIST") == 1 + refused


@pytest.mark.parametrize("times", [0, 2, 4])
async def test_mailbox_ids_without_list_status(times: int) -> None:
    store = store_of(3)
    async with serving(store, ALL - {"LIST-STATUS"}) as (server, remote):
        server.faults.add("STATUS", Answer("BAD no such item"), times=times)
        (inbox, _) = (await remote.listing()).mailboxes
        assert inbox.object_id == ("" if times else store.mailbox("INBOX").mailbox_id)
        assert inbox.messages == (None if times == 4 else 3)


@pytest.mark.parametrize("garbage", ["{c\x7fU", "\x01)b", "\x01\r\nb", '"ab', "(a", "{3}", "\x00", "ä", "x" * 256])
async def test_mailbox_ids_that_are_none(garbage: str) -> None:
    """Cyrus 3.6.1 answers STATUS with a few octets of garbage: then no id of the listing is believed."""
    store = store_of(3)
    store.mailbox("other").mailbox_id = garbage
    async with serving(store) as (_, remote):
        found = {mailbox.name: mailbox for mailbox in (await remote.listing()).mailboxes}
    assert {mailbox.object_id for mailbox in found.values()} == {""}
    assert (found[INBOX].messages, found[INBOX].next_uid) == (3, "4")


async def test_no_mailbox_at_all_is_no_listing() -> None:
    async with serving(store_of(1)) as (server, remote):
        server.faults.add("LIST", Answer("OK nothing"), times=None)
        with pytest.raises(ProtocolViolation, match=r"lists no mailbox at all.*nothing is taken as deleted"):
            await remote.listing()
        server.faults.clear()
        assert (await remote.listing()).mailboxes


async def test_the_trash_can_be_moved_to_though_nobody_wants_it_here() -> None:
    store = store_of(2)
    store.create("Müll", "\\Trash")
    async with serving(store, mailboxes=("INBOX",)) as (_, remote):
        listing = await remote.listing()
        assert [mailbox.name for mailbox in listing.mailboxes] == ["INBOX"]
        assert listing.present == {"INBOX", "other", "Müll"}
        assert listing.trash == "Müll"
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            assert await box.move(uids_of(1), listing.trash) == {"1": "1"}


async def test_no_separator_means_no_levels() -> None:
    async with serving(Store(separator="")) as (_, remote):
        listing = await remote.listing()
        assert listing.separator == ""
        with pytest.raises(Rejected, match="no mailboxes inside mailboxes"):
            await remote.create(("a", "b"))
        assert (await remote.create(("a/b",))).name == "a/b"


# -- flags


async def test_one_message_whose_flags_are_refused_costs_only_itself() -> None:
    store = store_of(9)
    async with opened(store) as (server, box):
        server.faults.add("UID STORE", Answer("NO not one of these"))
        server.faults.add("UID STORE", Answer("NO [LIMIT] not this one"), nth=5)
        assert await box.store(seen(*range(1, 10))) == set(uids_of(1, 2, 3, 5, 6, 7, 8, 9))
    assert [uid for uid, flags in flags_in(store).items() if not flags] == [4]


async def test_long_sets_are_cut_and_sent_ahead() -> None:
    odd = range(1, 5000, 2)
    parts = sets(uids_of(*odd))
    assert sum(len(part) for part in parts) == len(odd)
    store = store_of(3)
    async with opened(store) as (server, box):
        await box.store(seen(*odd))
        assert len(server.journal) == len(parts) > 1
        assert max(map(len, server.journal)) < 4100


async def test_nothing_but_atoms_is_sendable() -> None:
    good = ["\\Seen", "\\DELETED", "$Forwarded", "a.b", "x[1", "a{b}"[:1]]
    bad = ["\\Recent", "\\*", "\\Foo", "a b", "a)b", "(", '"', "a\\b", "a]", "a{", "%", "*", "\r\n", "\x7f", "é", ""]
    assert sendable([*good, *bad]) == sorted(good)


# -- appending


async def test_each_message_s_refusal_is_its_own() -> None:
    store = store_of(0)
    for capabilities in (ALL, SINGLE):
        async with opened(store, capabilities) as (server, box):
            if capabilities is ALL:
                server.faults.add("APPEND", Answer("NO [LIMIT] not so many"))  # the first is all of them together
            nth = 3 if capabilities is ALL else 2
            server.faults.add("APPEND", Answer("NO [OVERQUOTA] the mailbox is full"), nth=nth)
            server.faults.add("APPEND", Answer("NO [CANNOT] I do not like it"), nth=nth + 1)
            told = await answers(box, *(outgoing(str(n), raw_of(n)) for n in range(5)))
        assert {key for key, answer in told.items() if answer.uid} == {"0", "3", "4"}
        assert told["1"] == Appended(
            Key("1"), None, "the server refused APPEND: [OVERQUOTA] the mailbox is full", is_full=True
        )
        assert told["2"] == Appended(Key("2"), None, "the server refused APPEND: [CANNOT] I do not like it")
    assert len(store.mailbox("INBOX")) == 6


@pytest.mark.parametrize("capabilities", [ALL, SINGLE, ALL - {"LITERAL+"}])
async def test_a_mailbox_that_is_gone_refuses_every_message(capabilities: frozenset[str]) -> None:
    async with opened(store_of(0), capabilities) as (server, box):
        server.faults.add("APPEND", Answer("NO [TRYCREATE] no such mailbox"), times=None)
        told = await answers(box, *(outgoing(str(n), raw_of(n, n * 60_000)) for n in range(4)))
        assert {answer.refusal for answer in told.values()} == {
            "the server refused APPEND: [TRYCREATE] no such mailbox"
        }
        assert len(told) == 4
        server.faults.clear()
        assert (await box.scan(None)).complete, "the session is still good"


@pytest.mark.parametrize("is_global", [True, False])
async def test_a_message_above_the_server_s_limit_is_not_sent(is_global: bool) -> None:
    store = store_of(0)
    store.mailbox("INBOX").append_limit = 100
    extra = {"APPENDLIMIT=100"} if is_global else {"APPENDLIMIT"}
    async with opened(store, ALL | extra) as (server, box):
        told = await answers(box, outgoing("small", raw_of(1)), outgoing("big", raw_of(2, 1000)))
        assert told["big"].refusal.endswith("octets, and the server takes 100 at most")
        assert told["small"].uid == "1"
        assert server.count("APPEND") == 1


@pytest.mark.parametrize("octets", [0, 100_000])
async def test_nul_needs_binary(octets: int) -> None:
    raw = raw_of(1, octets) + b"a\0b\r\n"
    for capabilities, is_taken in ((ALL, False), (ALL | {"BINARY"}, True), (ALL - {"LITERAL+"} | {"BINARY"}, True)):
        store = store_of(0)
        async with opened(store, capabilities) as (_, box):
            told = await answers(box, outgoing("nul", raw), outgoing("good", raw_of(2)))
        assert told["good"].uid is not None
        assert bool(told["nul"].refusal) != is_taken
        assert ("NUL" in told["nul"].refusal) != is_taken
        assert (raw in [message.raw for message in store.mailbox("INBOX")]) == is_taken


async def test_flags_that_the_mailbox_does_not_keep_are_not_stored() -> None:
    store = store_of(2)
    store.mailbox("INBOX").permanent_flags = frozenset({"\\Seen"})
    async with opened(store) as (server, box):
        changes = [FlagChange(uid, SEEN | {"\\Flagged", "$new"}, NO_FLAGS) for uid in uids_of(1, 2)]
        assert await box.store(changes) == {"1", "2"}
        assert await box.store([FlagChange(uid, frozenset({"$new"}), NO_FLAGS) for uid in uids_of(1, 2)]) == {"1", "2"}
        assert server.journal == ["UID STORE 1:2 +FLAGS.SILENT (\\Seen)"]


async def test_a_very_big_message_waits_for_the_server_s_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "AHEAD_OCTETS", 100_000)
    async with opened(store_of(0)) as (server, box):
        server.faults.add("APPEND", Answer("NO [OVERQUOTA] no room"))
        received = server.connections[0].octets_received
        told = await answers(box, outgoing("big", raw_of(1, 200_000)), outgoing("b", raw_of(2, 200_000)))
        assert [told["big"].is_full, told["b"].uid] == [True, "1"]
        assert server.connections[0].octets_received - received < 300_000


@pytest.mark.parametrize(
    ("extension", "forms"), [("LITERAL+", ["+}", "+}"]), ("LITERAL-", ["+}", "}"]), ("IDLE", ["}", "}"])]
)
async def test_forms_of_literals(extension: str, forms: list[str]) -> None:
    async with opened(store_of(0), SINGLE - {"LITERAL+"} | {extension}) as (server, box):
        await answers(box, outgoing("a", raw_of(1)), outgoing("b", raw_of(2, 5000)))
        sent = [command for command in server.journal if command.startswith("APPEND")]
        assert [re.sub(r".*\d", "", command) for command in sent] == forms


async def test_an_appenduid_of_another_mailbox_is_not_believed() -> None:
    async with opened(store_of(0), SINGLE) as (server, box):
        server.faults.add("APPEND", Rewrite(lambda r: re.sub(rb"APPENDUID \d+", b"APPENDUID 7", r)))
        assert (await answers(box, outgoing("a", raw_of(1))))["a"] == Appended(Key("a"), None)


@pytest.mark.parametrize("told", ["1:4294967295", "1,2", "x", "*"])
async def test_an_appenduid_that_cannot_be_is_not_believed(told: str) -> None:
    async with opened(store_of(0), SINGLE) as (server, box):
        new = f"\\g<1> {told}]".encode()
        server.faults.add("APPEND", Rewrite(lambda r: re.sub(rb"(APPENDUID \d+) [\d:,]+\]", new, r)))
        assert (await answers(box, outgoing("a", raw_of(1))))["a"] == Appended(Key("a"), None)


@pytest.mark.parametrize("told", ["2", "0", "3,3"])
async def test_an_appenduid_of_what_was_there_before_is_not_believed(told: str) -> None:
    """It would be another message's, and its pair would be lost."""
    async with opened(store_of(2)) as (server, box):
        new = f"\\g<1> {told}]".encode()
        server.faults.add("APPEND", Rewrite(lambda r: re.sub(rb"(APPENDUID \d+) [\d:,]+\]", new, r)))
        keys = "ab" if "," in told else "a"
        told_uids = await answers(box, *(outgoing(key, raw_of(n)) for n, key in enumerate(keys, 3)))
    assert told_uids == {key: Appended(Key(key), None) for key in keys}


async def test_an_appenduid_that_is_told_twice_is_believed_once() -> None:
    async with opened(store_of(2), SINGLE) as (server, box):
        server.faults.add("APPEND", Rewrite(lambda r: re.sub(rb"(APPENDUID \d+) \d+", rb"\1 3", r)), times=None)
        told = await answers(box, outgoing("a", raw_of(3)), outgoing("b", raw_of(4)))
    assert told == {"a": Appended(Key("a"), "3"), "b": Appended(Key("b"), None)}


async def test_without_uidplus_only_what_is_certain_is_found() -> None:
    store = store_of(3)
    async with opened(store, ALL - {"UIDPLUS"}) as (server, box):
        store.deliver("INBOX", raw_of(7))  # another client has the same message as ours
        nameless = b"Subject: no id\r\n\r\nbody\r\n"
        told = await answers(
            box, *(outgoing(str(n), raw_of(n)) for n in (6, 7, 8)), outgoing("none", nameless), outgoing("9", raw_of(9))
        )
        uids = {message.raw: str(message.uid) for message in store.mailbox("INBOX")}
        assert {key: answer.uid for key, answer in told.items()} == {
            "6": uids[raw_of(6)],
            "7": None,
            "8": uids[raw_of(8)],
            "none": None,
            "9": uids[raw_of(9)],
        }
        assert not any(answer.refusal for answer in told.values())
        assert [command for command in server.journal if "FETCH" in command] == [
            "UID FETCH 4:* (UID RFC822.SIZE BODY.PEEK[HEADER.FIELDS (MESSAGE-ID DATE)])"
        ]


@pytest.mark.parametrize("fault", [Cut(after_octets=0), Cut(before_tagged=True, reset=True), Bye("go away")])
@pytest.mark.parametrize("capabilities", [SINGLE, ALL - {"LITERAL+"}])
async def test_what_was_confirmed_before_a_loss_is_told(capabilities: frozenset[str], fault: Cut | Bye) -> None:
    store = store_of(0)
    told: list[Appended] = []
    async with opened(store, capabilities) as (server, box):
        server.faults.add("APPEND", fault, nth=4)
        with pytest.raises(ConnectionLost):
            async for answer in box.append(outgoing(str(n), raw_of(n)) for n in range(200)):
                told.append(answer)
    assert {(answer.key, answer.uid) for answer in told} <= {("0", "1"), ("1", "2"), ("2", "3")}
    assert "2" in {answer.key for answer in told} or capabilities is SINGLE
    assert len(store.mailbox("INBOX")) in (3, 4)


@pytest.mark.parametrize("difference", [-1, 1])
async def test_a_big_message_that_changes_while_it_is_sent_ends_the_connection(difference: int) -> None:
    """It is looked at before, so it must change after that."""
    raw = raw_of(1, 200_000)
    sizes: Iterator[int] = iter(())

    def pieces() -> Iterator[bytes]:
        change = next(sizes)
        yield raw[:100_000]
        yield raw[100_000:-1] if change < 0 else raw[100_000:] + b"x" * change

    store = store_of(0)
    for capabilities in (ALL, ALL - {"LITERAL+"}):
        sizes = iter([0, difference])
        async with serving(store, capabilities, connections=1) as (server, remote):
            await remote.listing()
            with pytest.raises(LocalError, match="message big no longer has the"):
                async with remote.visit(INBOX) as box:
                    await box.scan(None)
                    await answers(box, Outgoing(Key("big"), NO_FLAGS, WHEN_S, len(raw), pieces))
            assert len(store.mailbox("INBOX")) == 0
            assert (await scanned(remote)).messages == 0
            assert len(server.connections) == 2


async def test_an_append_that_is_left_in_the_middle_is_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "AHEAD_OCTETS", 100 << 20)
    store = store_of(0)
    is_sending = asyncio.Event()
    raw = raw_of(1, 10_000_000)

    async with serving(store, connections=1) as (server, remote):
        await remote.listing()

        async def sender() -> None:
            async with remote.visit(INBOX) as box:
                await box.scan(None)
                server.faults.add("APPEND", StopReading())
                is_sending.set()
                await answers(box, outgoing("big", raw))

        task = asyncio.create_task(sender())
        await is_sending.wait()
        await server.until(lambda: server.count("APPEND") == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await scanned(remote)).messages == 0
        assert len(server.connections) == 2


async def test_a_server_that_takes_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maild.remote.imap.line.STALL_S", 0.2)
    monkeypatch.setattr(appending, "AHEAD_OCTETS", 100 << 20)
    most = 0
    write = Protocol._write

    def write_seen(protocol: Protocol, octets: bytes) -> None:
        nonlocal most
        write(protocol, octets)
        most = max(most, protocol.line.unsent_octets)

    monkeypatch.setattr(Protocol, "_write", write_seen)
    async with opened(store_of(0)) as (server, box):
        server.faults.add("APPEND", StopReading())
        with pytest.raises(ConnectionLost, match="took nothing for"):
            await answers(box, *(outgoing(str(n), raw_of(n, 30_000_000)) for n in range(2)))
    assert most < 1 << 20


async def test_no_more_than_a_few_mib_are_sent_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "AHEAD_OCTETS", 200_000)
    taken = 0

    def messages() -> Iterator[Outgoing]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield outgoing(str(number), raw_of(number, 60_000))

    async with opened(store_of(0), SINGLE) as (_, box):
        answered = 0
        async for _answer in box.append(messages()):
            answered += 1
            assert taken - answered <= 3 + 2 * appending.RUN_OCTETS // 60_000
        assert answered == 100


# -- moving and removing


@pytest.mark.parametrize("capabilities", [ALL, ALL - {"MOVE"}, ALL - {"MOVE", "UIDPLUS"}])
async def test_one_message_that_cannot_be_moved_stays(capabilities: frozenset[str]) -> None:
    store = store_of(5)
    verb = "UID MOVE" if "MOVE" in capabilities else "UID COPY"
    async with opened(store, capabilities) as (server, box):
        server.faults.add(verb, Answer("NO [SERVERBUG] one of them is broken"))
        server.faults.add(verb, Answer("NO [SERVERBUG] it is broken"), nth=3)
        moved = await box.move(uids_of(1, 2, 3, 4), OTHER)
    assert set(moved) == {"1", "3", "4"}
    assert flags_in(store) == {2: NO_FLAGS, 5: NO_FLAGS}
    assert [message.raw for message in store.mailbox("other")] == [raw_of(n) for n in (1, 3, 4)]


@pytest.mark.parametrize("code", ["[TRYCREATE] ", "[NOPERM] ", "[OVERQUOTA] ", ""])
@pytest.mark.parametrize("capabilities", [ALL, ALL - {"MOVE"}, ALL - {"MOVE", "UIDPLUS"}])
async def test_a_target_that_takes_nothing(capabilities: frozenset[str], code: str) -> None:
    store = store_of(5)
    verb = "UID MOVE" if "MOVE" in capabilities else "UID COPY"
    async with opened(store, capabilities) as (server, box):
        server.faults.add(verb, Answer(f"NO {code}not there"), times=None)
        with pytest.raises(Rejected, match=r"nothing could be moved to mailbox other: .*not there") as refusal:
            await box.move(uids_of(1, 2, 3), OTHER)
        assert refusal.value.code == code.strip("[] ")
        assert not any("STORE" in command or "EXPUNGE" in command for command in server.journal)
    assert flags_in(store) == dict.fromkeys(range(1, 6), NO_FLAGS)


@pytest.mark.parametrize("place", ["tagged", "nowhere"])
async def test_copyuid_where_a_server_puts_it(place: str) -> None:
    code = b""

    def placed(response: bytes) -> bytes:
        nonlocal code
        if b"COPYUID" in response:
            code = response[response.index(b"[") : response.index(b"]") + 1]
            return b""
        return (
            response.replace(b" OK ", b" OK " + code + b" ") if place == "tagged" and b" OK " in response else response
        )

    store = store_of(4)
    async with opened(store, ALL - {"QRESYNC", "CONDSTORE"}) as (server, box):
        server.faults.add("UID MOVE", Rewrite(placed))
        moved = await box.move(uids_of(2, 4), OTHER)
    assert moved == ({"2": "1", "4": "2"} if place == "tagged" else {"2": None, "4": None})


@pytest.mark.parametrize("verb", ["MOVE", "COPY"])
@pytest.mark.parametrize(
    ("told", "known"),
    [
        (b"2,4 7,7", {"2": None, "4": None}),  # whose is 7?
        (b"2,4 0,7", {"2": None, "4": "7"}),
        (b"2,3,4 7,8,9", {"2": "7", "4": "9"}),  # nobody asked to move 3
    ],
)
async def test_a_copyuid_that_cannot_be_is_not_believed(verb: str, told: bytes, known: dict[str, str | None]) -> None:
    store = store_of(4)
    async with opened(store, ALL if verb == "MOVE" else ALL - {"MOVE"}) as (server, box):
        change = Rewrite(lambda r: re.sub(rb"(COPYUID \d+) [^\]]+", rb"\1 " + told, r))
        server.faults.add(f"UID {verb}", change)
        assert await box.move(uids_of(2, 4), OTHER) == known
    assert {message.uid for message in store.mailbox("INBOX")} == {1, 3}


@pytest.mark.parametrize("verb", ["MOVE", "COPY"])
@pytest.mark.parametrize("is_known", [True, False])
async def test_a_copyuid_of_another_uidvalidity_tells_no_uids(verb: str, is_known: bool) -> None:
    """What moved is known all the same (RFC 4315 §3: the first argument is that of the target)."""
    store = store_of(4)
    async with opened(store, ALL if verb == "MOVE" else ALL - {"MOVE"}) as (_, box):
        validity = store.mailbox(OTHER).uidvalidity
        moved = await box.move(uids_of(2, 4), OTHER, Epoch(str(validity if is_known else validity + 1)))
    assert moved == ({"2": "1", "4": "2"} if is_known else {"2": None, "4": None})
    assert {message.uid for message in store.mailbox("INBOX")} == {1, 3}


@pytest.mark.parametrize(
    ("told", "is_looked_for"),
    [
        (b"* VANISHED 1:2\r\n", False),
        (b"* VANISHED 2\r\n* VANISHED 1,4:4294967295\r\n", False),
        (b"* VANISHED 1,3\r\n", True),  # 3 is another client's
        (b"* VANISHED (EARLIER) 1:2\r\n", True),  # old news of whatever it was
        (b"* 1 EXPUNGE\r\n* 1 EXPUNGE\r\n", True),  # whose?
        (b"", True),
    ],
)
async def test_what_is_gone_is_told_or_looked_for(told: bytes, is_looked_for: bool) -> None:
    store = store_of(4)
    async with opened(store) as (server, box):
        server.faults.add("UID EXPUNGE", Rewrite(lambda said: told if b"VANISHED" in said else said))
        assert await box.expunge(uids_of(1, 2)) == set(uids_of(1, 2))
        searches = [command for command in server.journal if command.startswith("UID SEARCH")]
        assert searches == (["UID SEARCH UID 1:2"] if is_looked_for else [])


async def test_what_did_not_vanish_is_not_gone() -> None:
    store = store_of(4)
    async with opened(store) as (server, box):
        server.faults.add("UID EXPUNGE", Answer("NO not now"), times=None)
        server.faults.add("UID STORE", Inject(b"* VANISHED 2\r\n"))  # a lie, or another client's doing
        assert await box.expunge(uids_of(1, 2)) == set(uids_of(2))


async def test_a_copy_is_confirmed_before_anything_is_marked() -> None:
    store = store_of(4)
    async with opened(store, ALL - {"MOVE", "QRESYNC"}) as (server, box):
        await box.move(uids_of(1, 2), OTHER)
        verbs = [re.sub(r" [\d:,]+.*", "", command) for command in server.journal]
    assert verbs == ["UID COPY", "UID STORE", "UID EXPUNGE", "UID SEARCH UID"]


@pytest.mark.parametrize("capabilities", [ALL - {"MOVE"}, ALL - {"MOVE", "UIDPLUS"}])
async def test_a_lost_connection_between_copy_and_expunge_loses_nothing(capabilities: frozenset[str]) -> None:
    store = store_of(4)
    async with opened(store, capabilities) as (server, box):
        server.faults.add("UID STORE", Cut(after_octets=0))
        with pytest.raises(ConnectionLost):
            await box.move(uids_of(1, 2), OTHER)
    assert len(store.mailbox("INBOX")) == 4
    assert len(store.mailbox("other")) == 2


@pytest.mark.parametrize("is_one_refused", [False, True])
async def test_what_was_copied_and_not_expunged_is_told(is_one_refused: bool) -> None:
    """Also beside one that the server did not copy, of which nothing is anywhere else."""
    store = store_of(4)
    async with opened(store, ALL - {"MOVE"}) as (server, box):
        server.faults.add("UID EXPUNGE", Answer("NO not now"), times=None)
        if is_one_refused:
            server.faults.add("UID COPY", Answer("NO [SERVERBUG] one of them is broken"))
            server.faults.add("UID COPY", Answer("NO [SERVERBUG] it is broken"), nth=3)
        left_behind = set[Uid]()
        assert await box.move(uids_of(1, 2, 3), OTHER, left_behind=left_behind) == {}
    assert left_behind == set(uids_of(1, 3) if is_one_refused else uids_of(1, 2, 3))
    assert len(store.mailbox("other")) == len(left_behind)


@pytest.mark.parametrize("is_move", [False, True])
async def test_without_uidplus_a_mark_in_between_stops_the_expunge(is_move: bool) -> None:
    store = store_of(5)
    async with opened(store, ALL - {"UIDPLUS", "MOVE"}) as (server, box):

        def mark(response: bytes) -> bytes:
            store.set_flags("INBOX", 5, add=["\\Deleted"])
            return response

        server.faults.add("UID STORE", Rewrite(mark))
        done: set[str] | Sequence[str]
        done = list(await box.move(uids_of(1, 2), OTHER)) if is_move else await box.expunge(uids_of(1, 2))
        assert not done
        assert server.count("EXPUNGE") == 0
    assert flags_in(store) == {1: NO_FLAGS, 2: NO_FLAGS, 3: NO_FLAGS, 4: NO_FLAGS, 5: MARKED}


async def test_an_expunge_that_is_refused_removes_nothing() -> None:
    for capabilities in (ALL, ALL - {"UIDPLUS"}):
        store = store_of(3)
        async with opened(store, capabilities) as (server, box):
            for name in ("UID EXPUNGE", "EXPUNGE"):
                server.faults.add(name, Answer("NO [NOPERM] not yours"), times=None)
            store.expunge("INBOX", 2)
            assert await box.expunge(uids_of(1, 2)) == {"2"}
        assert set(flags_in(store)) == {1, 3}


async def test_a_message_that_cannot_be_marked_stays_alone() -> None:
    store = store_of(4)
    async with opened(store) as (server, box):
        server.faults.add("UID STORE", Answer("NO one of them is locked"))
        server.faults.add("UID STORE", Answer("NO it is locked"), nth=3)
        assert await box.expunge(uids_of(1, 2, 3)) == {"1", "3"}
    assert set(flags_in(store)) == {2, 4}


async def test_what_happens_meanwhile_does_no_harm() -> None:
    store = store_of(6)
    noise = b"* 99 EXISTS\r\n* 3 EXPUNGE\r\n* 1 FETCH (FLAGS (\\Deleted))\r\n* VANISHED 1:6\r\n* OK [ALERT] hm\r\n"
    async with opened(store, ALL - {"QRESYNC"}) as (server, box):
        for name in ("UID STORE", "APPEND", "UID MOVE", "UID EXPUNGE", "UID SEARCH"):
            server.faults.add(name, Inject(noise), times=None)
        assert await box.store(seen(1)) == {"1"}
        assert (await answers(box, outgoing("k", raw_of(9))))["k"].uid == "7"
        assert await box.move(uids_of(2, 99), OTHER) == {"2": "1"}
        assert await box.expunge(uids_of(3)) == {"3"}
    assert flags_in(store) == {1: SEEN, 4: NO_FLAGS, 5: NO_FLAGS, 6: NO_FLAGS, 7: NO_FLAGS}


# -- what CONDSTORE does not tell


@pytest.mark.parametrize("removed", [{"QRESYNC"}, {"QRESYNC", "ESEARCH"}])
async def test_without_qresync_only_uids_are_compared(removed: set[str]) -> None:
    store = store_of(30)
    async with serving(store, ALL - removed) as (server, remote):
        await remote.listing()
        scan = await scanned(remote)
        store.expunge("INBOX", [1, 7, 8, 30])
        store.set_flags("INBOX", 9, add=["\\Seen"])
        store.deliver("INBOX", raw_of(31))
        server.journal.clear()
        scan = await scanned(remote, scan.cursor)
        assert not scan.full
        assert scan.complete
        assert {"1", "7", "8", "30"} <= scan.vanished
        assert scan.vanished.isdisjoint(str(uid) for uid in flags_in(store))
        assert {uid for uid, _, _ in scan.items} == {"9", "31"}
        assert not any("FETCH 1:*" in command for command in server.journal)


@pytest.mark.parametrize("fault", ["NO not now", "BAD what", "OK nothing"])
async def test_uids_that_the_server_does_not_list_are_not_taken_as_gone(fault: str) -> None:
    store = store_of(30)
    async with serving(store, ALL - {"QRESYNC"}) as (server, remote):
        await remote.listing()
        scan = await scanned(remote)
        store.expunge("INBOX", [1, 7])
        server.faults.add("UID SEARCH", Answer(fault))
        scan = await scanned(remote, scan.cursor)
        assert scan.full
        assert scan.complete
        assert {int(uid) for uid, _, _ in scan.items} == set(flags_in(store))


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Data("SEARCH", [b"3", b"1"]), {1, 3}),
        (Data("SEARCH", []), set()),
        (Data("SEARCH", [b"2", b"(", b"MODSEQ", b"9", b")"]), {2}),
        (Data("ESEARCH", [[b"TAG", b"A"], b"UID", b"ALL", b"1:3,7"]), {1, 2, 3, 7}),
        (Data("ESEARCH", [[b"TAG", b"A"], b"UID", b"COUNT", b"3", b"all", b"5"]), {5}),
        (Data("ESEARCH", [[b"TAG", b"A"], b"UID"]), set()),
        (Data("SEARCH", [b"x", b"-1", b"*"]), set()),
    ],
)
async def test_found_in(event: Data, expected: set[int]) -> None:
    assert found_in([event]) == expected


async def test_a_search_without_end_is_refused() -> None:
    with pytest.raises(Rejected, match="more messages than a mailbox can have"):
        found_in([Data("ESEARCH", [[b"TAG", b"A"], b"UID", b"ALL", b"1:4294967295"])])


# -- mailboxes


async def test_create_tells_the_object_id_and_a_refused_subscription_is_no_error() -> None:
    store = store_of(0)
    async with serving(store) as (server, remote):
        await remote.listing()
        server.faults.add("SUBSCRIBE", Answer("NO no subscriptions here"))
        made = await remote.create(("new",))
        assert made.object_id == store.mailbox("new").mailbox_id
        async with remote.visit(made.name) as box:
            assert (await box.scan(None)).complete


@pytest.mark.parametrize("answer", ["NO [ALREADYEXISTS] it is there", "NO it is there", "BAD it is there"])
async def test_what_is_there_need_not_be_created(answer: str) -> None:
    async with serving(store_of(0)) as (server, remote):
        await remote.listing()
        server.faults.add("CREATE", Answer(answer), times=None)
        assert (await remote.create(("other",))).name == "other"
        if "ALREADYEXISTS" not in answer:
            with pytest.raises(Rejected, match="mailbox new cannot be created: the server refused CREATE"):
                await remote.create(("new",))


async def test_a_mailbox_that_is_open_is_left_before_it_is_renamed_or_deleted() -> None:
    for capabilities in (ALL, ALL - {"UNSELECT"}):
        async with serving(store_of(0), capabilities, connections=2) as (server, remote):
            await remote.listing()
            async with remote.visit(OTHER) as one, remote.visit(OTHER) as two:
                await one.scan(None)
                await two.scan(None)
            assert [connection.selected for connection in server.connections] == ["other", "other"]
            await remote.rename(OTHER, ("neu",))
            assert all(connection.selected in (None, "INBOX") for connection in server.connections)
            async with remote.visit(MailboxName("neu")) as one:
                scan = await one.scan(None)
            assert await remote.delete(MailboxName("neu"), scan.cursor)
            assert all(connection.selected in (None, "INBOX") for connection in server.connections)
            assert not any(connection.closed.is_set() for connection in server.connections), "no BYE for it"


async def test_names_follow_those_that_the_server_has() -> None:
    async with serving(store_of(0)) as (server, remote):
        server.faults.add("LIST", Rewrite(lambda r: '* LIST () "/" "Grün"\r\n'.encode() + r if b'"INBOX"' in r else r))
        await remote.listing()
        server.faults.add("CREATE", Answer("OK made"))
        server.journal.clear()
        await remote.create(("Müll",))
        assert server.journal[0].encode("latin-1") == 'CREATE "Müll"'.encode()


# -- dates


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, '" 1-Jan-1970 00:00:00 +0000"'),
        (1795503615, '"24-Nov-2026 07:00:15 +0000"'),
        (-2208988800, '" 1-Jan-1900 00:00:00 +0000"'),
        (-50_000_000_000, '"25-Jul-0385 07:06:40 +0000"'),
        (1 << 50, ""),
        (-(1 << 50), ""),
        (1 << 90, ""),
    ],
)
async def test_date_time(seconds: int, text: str) -> None:
    assert date_time(seconds) == text
    if text:
        assert internal_date(text.strip('"').encode()) == seconds


@pytest.mark.parametrize("told", [b"MESSAGES 0 UIDNEXT 2", b"UIDNEXT 1", b"MESSAGES 0", b"MESSAGES 1 UIDNEXT 1", b""])
async def test_a_mailbox_is_not_deleted_without_proof_that_it_is_as_it_was(told: bytes) -> None:
    async with serving(store_of(0)) as (server, remote):
        await remote.listing()
        cursor = (await scanned(remote, mailbox=OTHER)).cursor
        assert not await remote.delete(OTHER, Cursor("")), "never seen"
        server.faults.add("STATUS", Rewrite(lambda r: re.sub(rb"MESSAGES \d+ UIDNEXT \d+", told, r)))
        assert not await remote.delete(OTHER, cursor)
        server.faults.add("STATUS", Rewrite(lambda r: re.sub(rb"UIDVALIDITY \d+", b"UIDVALIDITY 7", r)))
        assert not await remote.delete(OTHER, cursor), "another mailbox of that name"
        server.faults.add("STATUS", Answer("NO [SERVERBUG] no counters"))
        with pytest.raises(Rejected, match=r"mailbox other cannot be deleted: .*no counters"):
            await remote.delete(OTHER, cursor)
        assert not any(command.startswith("DELETE") for command in server.journal)
        assert await remote.delete(OTHER, cursor)
        assert server.store.names == ("INBOX",)


async def test_a_mailbox_that_is_gone_counts_as_deleted_whatever_status_says() -> None:
    """Dovecot: `NO Mailbox doesn't exist`, without a code."""
    async with serving(store_of(0)) as (server, remote):
        await remote.listing()
        cursor = (await scanned(remote, mailbox=OTHER)).cursor
        server.store.delete("other")
        server.faults.add("STATUS", Answer("NO Mailbox doesn't exist: other"), times=2)
        server.faults.add("LIST", Answer("NO [SERVERBUG] no list"))
        with pytest.raises(Rejected, match="Mailbox doesn't exist"):
            await remote.delete(OTHER, cursor)
        assert await remote.delete(OTHER, cursor)


async def test_a_mailbox_is_deleted_where_only_status_tells_uidnext() -> None:
    store = store_of(0)
    store.deliver("other", raw_of(1))
    store.expunge("other", [1])
    async with serving(store) as (server, remote):
        await remote.listing()
        server.faults.add("SELECT", Rewrite(lambda r: b"" if b"UIDNEXT" in r else r))
        scan = await scanned(remote, mailbox=OTHER)
        assert json.loads(scan.cursor)["n"] == 1
        assert await remote.delete(OTHER, scan.cursor)
    assert store.names == ("INBOX",)
