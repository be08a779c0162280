"""The port for IMAP against servers that can more or less: the same results; bad answers cost only themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from maild.core.errors import AuthRejected, MaildError, Rejected, Unavailable
from maild.core.model import Cursor, Epoch, Flags, MailboxName, Uid
from maild.core.ports import RemoteBox
from maild.remote.imap.dates import internal_date
from maild.remote.imap.remote import ImapRemote
from maild.testing.dialogue import Dialogue
from maild.testing.faults import Answer, Bye, Rewrite
from maild.testing.imap import ALL, BARE, ImapServer
from maild.testing.store import Store
from tests.remote.conftest import DEADLINE_S, PASSWORD, USER, imap_endpoint
from tests.remote.contract import INBOX, applied, scanned

pytestmark = pytest.mark.usefixtures("quiet_loop")

CAPABILITIES: dict[str, frozenset[str]] = {
    "all": ALL,
    "no QRESYNC": ALL - {"QRESYNC"},
    "no CONDSTORE": ALL - {"QRESYNC", "CONDSTORE"},
    "no LIST-STATUS": ALL - {"LIST-STATUS"},
    "no SPECIAL-USE": ALL - {"SPECIAL-USE"},
    "no ENABLE": ALL - {"ENABLE"},
    "bare": BARE,
}

each_server = pytest.mark.parametrize("capabilities", CAPABILITIES.values(), ids=CAPABILITIES)


@asynccontextmanager
async def serving(
    store: Store, capabilities: Iterable[str] = ALL, **changes: Any
) -> AsyncIterator[tuple[ImapServer, ImapRemote]]:
    async with (
        asyncio.timeout(2 * DEADLINE_S),
        ImapServer(store, {USER: PASSWORD}, capabilities=capabilities) as server,
    ):
        remote = ImapRemote(imap_endpoint(server.port, **changes), "work")
        try:
            yield server, remote
        finally:
            await remote.aclose()


def refuse_body(_size: int) -> Any:
    raise AssertionError("no message is big here")


def truth(store: Store, mailbox: str = "INBOX") -> dict[int, Flags]:
    return {message.uid: message.flags for message in store.mailbox(mailbox)}


async def bodies(box: RemoteBox, *batches: list[Uid]) -> dict[Uid, bytes]:
    found: dict[Uid, bytes] = {}
    async for arrived in box.fetch(iter(batches), refuse_body):
        for message in arrived:
            assert isinstance(message.raw, bytes | bytearray)
            found[message.uid] = bytes(message.raw)
    return found


# -- listing


def many_mailboxes(separator: str) -> Store:
    store = Store(separator=separator)
    store.create("Entwürfe & mehr", "\\Drafts")
    store.create(f"a{separator}b{separator}日本語")
    store.create("Sent", "\\Sent")
    store.create('quo"ted \\ name')
    store.deliver("Sent", b"x\r\n")
    return store


@each_server
@pytest.mark.parametrize("separator", ["/", "."])
async def test_listing(capabilities: frozenset[str], separator: str) -> None:
    async with serving(many_mailboxes(separator), capabilities) as (_, remote):
        listing = await remote.listing()
    by_name = {mailbox.name: mailbox for mailbox in listing.mailboxes}
    nested = f"a{separator}b{separator}日本語"
    assert set(by_name) >= {"INBOX", "Entwürfe & mehr", nested, "Sent", 'quo"ted \\ name'}
    assert by_name[MailboxName(nested)].levels == ("a", "b", "日本語")
    assert not listing.unusable
    if "SPECIAL-USE" in capabilities:
        assert by_name[MailboxName("Sent")].role == "\\Sent"
        assert by_name[MailboxName("Entwürfe & mehr")].role == "\\Drafts"
    has_modseq = bool(capabilities & {"CONDSTORE", "QRESYNC"})
    if "LIST-STATUS" in capabilities or "CONDSTORE" in capabilities:
        assert by_name[MailboxName("Sent")].messages == 1
    assert (by_name[MailboxName("Sent")].mark is not None) == has_modseq


@each_server
async def test_marks_change_with_the_mailbox(capabilities: frozenset[str]) -> None:
    store = many_mailboxes("/")
    async with serving(store, capabilities) as (_, remote):
        before = {m.name: m.mark for m in (await remote.listing()).mailboxes}
        assert before == {m.name: m.mark for m in (await remote.listing()).mailboxes}
        store.set_flags("Sent", 1, add=["\\Seen"])
        after = {m.name: m.mark for m in (await remote.listing()).mailboxes}
        changed = {name for name in before if before[name] != after[name]}
        assert changed == ({"Sent"} if after[MailboxName("Sent")] else set())


LIST = {
    "unselectable ones are left out": (
        ['(\\Noselect) "/" a', '(\\NonExistent) "/" b', '() "/" c'],
        {"c": ("c",)},
        set(),
    ),
    "the same twice": (['() "/" a', '(\\HasNoChildren) "/" a'], {"a": ("a",)}, set()),
    "INBOX in any case": (['() "/" inbox', '() "/" Inbox'], {"INBOX": ("INBOX",)}, set()),
    "names differing in case": (['() "/" a', '() "/" A'], {"a": ("a",), "A": ("A",)}, set()),
    "raw UTF-8 and modified UTF-7 of one name": (['() "/" "ü"', '() "/" "&APw-"'], {"ü": ("ü",)}, {"&APw-"}),
    "what is no modified UTF-7": (['() "/" "a&b"'], {"a&b": ("a&b",)}, set()),
    "no separator": (["() NIL a/b"], {"a/b": ("a/b",)}, set()),
    "no name": (['() "/" ""', "() NIL", "(", '() "/" c'], {"c": ("c",)}, set()),
}


@pytest.mark.parametrize(("lines", "names", "unusable"), LIST.values(), ids=LIST)
async def test_odd_listings(lines: list[str], names: dict[str, tuple[str, ...]], unusable: set[str]) -> None:
    said = "".join(f"S: * LIST {line}\n" for line in lines)
    script = (
        "S: * OK [CAPABILITY IMAP4rev1] hello\nC: $1 LOGIN <...>\nS: $1 OK [CAPABILITY IMAP4rev1] in\n"
        f'C: $2 LIST "" "*"\n{said}S: $2 OK\nHANGUP\n'
    )
    async with asyncio.timeout(DEADLINE_S), Dialogue(script) as server:
        remote = ImapRemote(imap_endpoint(server.port), "work")
        listing = await remote.listing()
        await remote.aclose()
    assert {mailbox.name: mailbox.levels for mailbox in listing.mailboxes} == names
    assert set(listing.unusable) == unusable


async def test_other_people_s_mailboxes_only_if_they_are_named() -> None:
    said = b'* NAMESPACE (("" "/")) (("Other Users/" "/")) (("Shared/" "/"))\r\n'
    for patterns, wanted in (
        (("*",), {"INBOX"}),
        (("*", "Shared/*"), {"INBOX", "Shared/x"}),
        (("*", "!INBOX", "Other Users/*"), {"Other Users/y"}),
    ):
        store = Store()
        store.create("Shared/x")
        store.create("Other Users/y")
        async with serving(store, mailboxes=patterns) as (server, remote):
            rewrite = Rewrite(lambda response: said if response.startswith(b"* NAMESPACE") else response)
            server.faults.add("NAMESPACE", rewrite)
            assert {mailbox.name for mailbox in (await remote.listing()).mailboxes} == wanted


@pytest.mark.parametrize("fault", ["NO", "BAD", "OK"])
async def test_a_server_that_cannot_do_the_extended_list(fault: str) -> None:
    async with serving(many_mailboxes("/")) as (server, remote):
        server.faults.add("LIST", Answer(f"{fault} never heard of it"))  # OK: strato answers nothing
        assert len((await remote.listing()).mailboxes) >= 5
        assert server.count("LIST") == 2


# -- scanning


@each_server
async def test_scans_follow_every_change(capabilities: frozenset[str]) -> None:
    store = Store()
    for number in range(20):
        store.deliver("INBOX", b"x" * number + b"\r\n", ["\\Seen"] if number % 2 else [])
    async with serving(store, capabilities) as (_, remote):
        await remote.listing()
        scan = await scanned(remote, None)
        assert scan.full
        assert scan.messages == 20
        assert [size for _, _, size in scan.items] == [number + 2 for number in range(20)]
        known = applied({}, scan)
        assert known == truth(store)

        def deliver() -> None:
            store.deliver("INBOX", b"new\r\n", ["\\Flagged", "$word"])

        def mixed() -> None:
            store.expunge("INBOX", [1, 21])
            store.set_flags("INBOX", [2, 3], replace=["\\Answered"])
            store.deliver("INBOX", b"more\r\n")

        for change in (
            lambda: None,
            deliver,
            lambda: store.set_flags("INBOX", [4, 5], add=["\\Deleted"], remove=["\\Seen"]),
            lambda: store.expunge("INBOX", [6, 7, 8, 20]),
            mixed,
            lambda: store.expunge("INBOX", list(truth(store))),
            deliver,
            lambda: store.bump_uidvalidity("INBOX"),
            lambda: store.bump_uidvalidity("INBOX", keep=False),
            deliver,
        ):
            epoch, cursor = scan.epoch, scan.cursor
            change()
            scan = await scanned(remote, cursor)
            assert scan.complete
            assert scan.messages == len(truth(store))
            assert scan.epoch == Epoch(str(store.mailbox("INBOX").uidvalidity))
            assert scan.full or scan.epoch == epoch
            known = applied(known, scan)
            assert known == truth(store)


@each_server
async def test_a_modseq_below_the_stored_one_means_everything_anew(capabilities: frozenset[str]) -> None:
    store = Store()
    store.deliver("INBOX", b"x\r\n")
    async with serving(store, capabilities) as (_, remote):
        await remote.listing()
        scan = await scanned(remote, None)
        later = Cursor(scan.cursor.replace('"m":', '"m":9'))
        again = await scanned(remote, later)
        assert again.full
        assert applied({}, again) == truth(store)


async def test_a_scan_that_was_cut_short_is_not_complete() -> None:
    store = Store()
    for _ in range(5):
        store.deliver("INBOX", b"x\r\n")
    for capabilities in CAPABILITIES.values():
        async with serving(store, capabilities) as (server, remote):
            await remote.listing()

            def limited(response: bytes) -> bytes:
                if response.startswith(b"* 3 FETCH"):
                    return b""
                return response.replace(b" OK ", b" OK [MESSAGELIMIT 2 3] ") if b" OK " in response[:30] else response

            server.faults.add("UID FETCH", Rewrite(limited))
            scan = await scanned(remote, None)
            assert not scan.complete
            assert len(scan.items) == 4


async def test_fewer_messages_than_the_server_counts_is_not_complete() -> None:
    store = Store()
    for _ in range(3):
        store.deliver("INBOX", b"x\r\n")
    async with serving(store) as (server, remote):
        await remote.listing()
        server.faults.add("UID FETCH", Rewrite(lambda r: b"" if r.startswith(b"* 2 FETCH") else r))
        assert not (await scanned(remote, None)).complete
        assert (await scanned(remote, None)).complete


async def test_a_mailbox_that_is_gone_leaves_the_session_usable() -> None:
    store = Store()
    store.create("gone")
    async with serving(store) as (server, remote):
        await remote.listing()
        store.delete("gone")
        with pytest.raises(Rejected, match="mailbox gone cannot be opened: the server refused SELECT"):
            async with remote.visit(MailboxName("gone")) as box:
                await box.scan(None)
        assert (await scanned(remote, None)).complete
        assert len(server.connections) == 1


async def test_another_epoch_is_noticed_before_anything_is_fetched() -> None:
    store = Store()
    store.create("other")
    store.deliver("INBOX", b"x\r\n")
    async with serving(store, connections=1) as (_, remote):
        await remote.listing()
        epoch = (await scanned(remote, None)).epoch
        async with remote.visit(MailboxName("other")) as box:
            await box.scan(None)
        store.bump_uidvalidity("INBOX")
        with pytest.raises(Rejected, match="changed its UIDVALIDITY"):
            async with remote.visit(INBOX, epoch):
                pytest.fail("it was opened")


# -- facts and bodies


@each_server
async def test_facts(capabilities: frozenset[str]) -> None:
    store = Store()
    headers = [b"Message-ID: <a@b>\r\nDate: today\r\n", b"message-id:\r\n <c@d>\r\n", b"Subject: x\r\n", b""]
    for header in headers:
        store.deliver("INBOX", header + b"\r\nbody\r\n")
    async with serving(store, capabilities) as (_, remote):
        await remote.listing()
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            facts = await box.facts([Uid(str(uid)) for uid in (1, 2, 3, 4, 99)])
    assert {uid: (f.message_id, f.date) for uid, f in facts.items()} == {
        "1": (b"<a@b>", b"today"),
        "2": (b"<c@d>", b""),
        "3": (b"", b""),
        "4": (b"", b""),
    }
    assert [facts[Uid(str(n))].size_octets for n in range(1, 5)] == [len(header) + 8 for header in headers]


@each_server
async def test_one_message_that_the_server_refuses_costs_only_itself(capabilities: frozenset[str]) -> None:
    store = Store()
    for number in range(1, 10):
        store.deliver("INBOX", b"%d\r\n" % number)
    async with serving(store, capabilities) as (server, remote):
        await remote.listing()
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            server.faults.add("UID FETCH", Answer("NO [SERVERBUG] cannot read it"))  # the first set
            server.faults.add("UID FETCH", Answer("NO [SERVERBUG] cannot read it"), nth=5)  # then message 2 alone
            uids = [Uid(str(uid)) for uid in range(1, 10)]
            found = await bodies(box, uids[:3], uids[3:6], uids[6:])
    missing = set(uids) - set(found)
    assert len(missing) == 1
    assert missing <= set(uids[:3])
    assert all(found[uid] == b"%d\r\n" % int(uid) for uid in found)


# -- sessions


async def test_sessions_stay_within_the_limit() -> None:
    async with serving(Store(), connections=2) as (server, remote):
        await remote.listing()
        most = 0

        async def visitor() -> None:
            nonlocal most
            async with remote.visit(INBOX) as box:
                await box.scan(None)
                most = max(most, sum(not connection.closed.is_set() for connection in server.connections))

        await asyncio.gather(*(visitor() for _ in range(10)))
        assert most == 2
        assert len(server.connections) == 2


@pytest.mark.parametrize("refusal", ["NO [LIMIT] one is enough", "BYE"])
async def test_a_server_that_allows_fewer_sessions_is_lived_with(refusal: str) -> None:
    async with serving(Store(), connections=4) as (server, remote):
        await remote.listing()
        fault = Bye("Too many connections") if refusal == "BYE" else Answer(refusal)
        server.faults.add("AUTHENTICATE", fault, times=None)

        async def visitor() -> bool:
            async with remote.visit(INBOX) as box:
                return (await box.scan(None)).complete

        assert await asyncio.gather(*(visitor() for _ in range(5))) == [True] * 5
        assert sum(connection.user is not None for connection in server.connections) == 1


async def test_no_session_at_all_is_an_error() -> None:
    async with serving(Store()) as (server, remote):
        server.faults.add("AUTHENTICATE", Answer("NO [UNAVAILABLE] later"), times=None)
        with pytest.raises(Unavailable):
            await remote.listing()
        server.faults.clear()
        assert (await remote.listing()).mailboxes


@pytest.mark.parametrize("capabilities", [ALL, BARE - {"AUTH=PLAIN"}])
async def test_a_wrong_password_is_tried_once(capabilities: frozenset[str]) -> None:
    async with (
        asyncio.timeout(DEADLINE_S),
        ImapServer(Store(), {USER: "another"}, capabilities=capabilities) as server,
    ):
        remote = ImapRemote(imap_endpoint(server.port), "work")
        with pytest.raises(AuthRejected):
            await remote.listing()
        await remote.aclose()
        assert server.count("AUTHENTICATE") + server.count("LOGIN") == 1


async def test_a_lost_session_is_replaced() -> None:
    async with serving(Store()) as (server, remote):
        await remote.listing()
        await server.connections[0].drop()
        for _ in range(3):  # the loss may be noticed before or by the next command
            try:
                listing = await remote.listing()
                break
            except MaildError:
                continue
        else:
            pytest.fail("it never came back")
        assert listing.mailboxes
        assert len(server.connections) == 2


# -- INTERNALDATE


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"01-Jan-1970 00:00:00 +0000", 0),
        (b" 1-Jan-1970 00:00:01 +0000", 1),
        (b"1-jan-1970 01:00:00 +0100", 0),
        (b"31-DEC-1969 19:00:00 -0500", 0),
        (b"24-Nov-2026 12:30:15 +0530", 1795503615),
        (b"31-Dec-2016 23:59:60 +0000", 1483228799),
        (b"01-Jan-1900 00:00:00 +0000", -2208988800),
        (b"31-Feb-2020 00:00:00 +0000", None),
        (b"01-Foo-2020 00:00:00 +0000", None),
        (b"01-Jan-0000 00:00:00 +0000", None),
        (b"01-Jan-2020 25:00:00 +0000", None),
        (b"01-Jan-2020 00:00:00", None),
        (b"2020-01-01T00:00:00Z", None),
        (b"", None),
        (None, None),
        (b"9" * 100_000, None),
    ],
)
async def test_internal_date(text: bytes | None, seconds: int | None) -> None:
    assert internal_date(text) == seconds


async def test_sessions_that_are_not_needed_any_more_are_closed_but_the_one_in_a_mailbox() -> None:
    store = Store()
    store.deliver("INBOX", b"Subject: one\r\n\r\n")
    async with serving(store) as (server, remote):
        await remote.listing()
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            await remote.prepare()
            await remote.prepare()
        assert len(server.connections) == 2
        await remote.rest()
        await server.until(lambda: sum(not c.closed.is_set() for c in server.connections) == 1)
        assert next(c for c in server.connections if not c.closed.is_set()).selected == "INBOX"
        await remote.rest(keep=0)
        await server.until(lambda: all(c.closed.is_set() for c in server.connections))
        assert [mailbox.name for mailbox in (await remote.listing()).mailboxes] == ["INBOX"]
