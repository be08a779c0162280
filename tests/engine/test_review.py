"""What a review found: passes that hung, doubled, deleted or gave up, each made small and told once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath
from typing import Any

import anyio
import pytest

from maild.core.model import Fetched, Uid
from maild.engine import carry_out, crew, propagate, pull
from maild.engine.account import CHANGES
from maild.engine.propagate import SPOOL_OCTETS
from maild.local.delivery import Incoming
from maild.local.maildir import Maildir
from maild.local.spool import Spool
from maild.local.state import MailboxState
from maild.testing.faults import Answer, Cut, Hold, Inject, Rewrite
from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.engine.world import PASSWORD, START_S, USER, World, bodies, long_body, message

SOON_S = 10.0
TUID = b"X-TUID: nK1/bEkS2zPx"


def stored(world: World, mailbox: str = "INBOX") -> MailboxState:
    state = world.state()
    try:
        return next(row for name, row in state.mailboxes().items() if name == mailbox)
    finally:
        state.close()


def opened(world: World) -> Maildir:
    maildir = Maildir.open(world.root, PurePosixPath(stored(world).directory))
    assert maildir is not None
    return maildir


def whole(world: World) -> None:
    """Nothing half-written where readers look."""
    there = {seen.raw for seen in world.on_server("INBOX")}
    assert {file.raw for file in world.files()} <= there


# -- the end of a pass that is not a good one


@pytest.mark.parametrize("is_big", [False, True])
async def test_a_pass_that_is_cancelled_in_the_middle_of_a_pull_ends(
    world: World, monkeypatch: pytest.MonkeyPatch, is_big: bool
) -> None:
    monkeypatch.setattr(pull, "FETCH_MESSAGES", 5)
    world.deliver(40)
    if is_big:
        world.store.deliver("INBOX", message(99, body=long_body()), (), START_S)
    hold = Hold(asyncio.Event(), after_octets=1_500_000 if is_big else 0)
    held = world.server.faults.add("UID FETCH", hold, nth=2 if is_big else 4)
    task = asyncio.create_task(world.sync())
    async with asyncio.timeout(SOON_S):
        await held.struck.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    whole(world)
    world.server.faults.clear()
    await world.synced()
    world.assert_equal()


@pytest.mark.parametrize("where", ["stage", "_commit_pairs", "on_durable"])
async def test_a_fault_of_maild_while_messages_are_delivered_ends_the_pass(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """No MaildError: nobody expects it, and nobody may wait for ever for what it had in hand."""

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError(where)

    monkeypatch.setattr(pull, "FETCH_MESSAGES", 5)
    monkeypatch.setattr(propagate, "QUEUE_OCTETS", 2000)  # so that the pull waits for room too
    world.deliver(200)
    with monkeypatch.context() as patch:
        if where == "stage":
            patch.setattr(propagate, "stage", broken)
        elif where == "_commit_pairs":
            patch.setattr(propagate.Deliverer, where, broken)
        else:
            patch.setattr(carry_out, "_count_durable", broken)
        async with asyncio.timeout(SOON_S):
            with pytest.raises(BaseExceptionGroup) as raised:
                await world.sync()
    assert raised.group_contains(ZeroDivisionError, match=where)
    whole(world)
    await world.synced()
    world.assert_equal(tmp=False)  # what was staged then goes when it is old


async def test_what_is_put_when_all_is_given_up_already_is_waited_for_by_nobody(world: World) -> None:
    """A body may arrive in the instant of Ctrl-C: its pull runs once more, those who deliver do not."""
    world.deliver(1)
    await world.synced()
    state, maildir = world.state(), opened(world)
    deliverer = propagate.Deliverer(propagate.StateThread(state))
    delivery = propagate.Delivery(stored(world), maildir, lambda _: None)
    try:
        with anyio.CancelScope() as scope:
            async with deliverer.running():
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                await deliverer.put(delivery, [Incoming(maildir, Uid("9"), frozenset(), None, b"x\n")])
                await anyio.sleep_forever()
        with anyio.fail_after(SOON_S / 10):
            await delivery.drained()
        assert delivery.failure is not None
    finally:
        state.close()
        maildir.close()


# -- two names, one directory


@pytest.fixture
async def dotted(tmp_path: Path) -> AsyncIterator[World]:
    """A server that divides levels by ".", with one mailbox of two levels."""
    store = Store(separator=".")
    store.create("a.b")
    async with ImapServer(store, {USER: PASSWORD}, capabilities=ALL) as server:
        yield World(tmp_path, server)


async def test_another_separator_is_the_same_directory(dotted: World) -> None:
    world = dotted
    for n in range(1, 7):
        world.store.deliver("a.b", message(n), ["\\Seen"], START_S + n)
    await world.synced()
    before = {file.path: file.raw for file in world.files("a/b")}
    assert len(before) == 6
    world.store.separator = "/"
    world.store.rename("a.b", "a/b")
    world.commands()
    report = await world.synced()
    assert bodies(world.commands()) == []
    assert {name: report.total(name) for name in CHANGES} == dict.fromkeys(CHANGES, 0), "it was only renamed"
    assert {file.path: file.raw for file in world.files("a/b")} == before
    assert world.server.mutations == []
    world.assert_equal("INBOX", "a/b")
    await world.settled()


async def test_two_listed_names_with_one_directory_are_one_that_works_and_one_that_is_told(world: World) -> None:
    world.store.create("a/b")
    world.deliver(3, "a/b")
    await world.synced()
    world.store.create("a.b")
    world.deliver(2, "a.b", start=50)
    dots = Rewrite(lambda r: r.replace(b'"/"', b'"."') if r.startswith(b"* LIST") and b"a.b" in r else r)
    world.server.faults.add("LIST", dots, times=None)
    for _ in range(2):
        report = await world.sync()
        assert not report.ok
        assert report.error is None
        states = {str(name): mailbox.state for name, mailbox in report.mailboxes.items()}
        assert (states.get("a/b", "ok"), states["a.b"]) == ("ok", "error")
        assert "as a/b has already" in str(report.mailboxes[next(n for n in report.mailboxes if n == "a.b")].error)
        world.assert_equal("INBOX", "a/b")


# -- sessions


async def test_a_helper_does_not_open_the_mailbox_again_and_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All batches are handed out, much is still to come: one more session has nothing to do."""
    monkeypatch.setattr(pull, "WORTH_HELP_OCTETS", 1000)
    world.settings(connections=3)
    for n in range(2):
        world.store.deliver("INBOX", message(n, body=long_body()), (), START_S)
    held = Hold(asyncio.Event(), after_octets=500_000)
    rule = world.server.faults.add("UID FETCH", held, nth=2)
    looked = 0
    neediest = crew.Crew._neediest

    def seen(this: Any) -> Any:
        nonlocal looked
        looked += 1
        if looked > 20:
            held.event.set()
        return neediest(this)

    monkeypatch.setattr(crew.Crew, "_neediest", seen)
    await world.synced()
    assert rule.struck.is_set()
    assert looked > 20, "the others had time to spin"
    assert world.server.count("SELECT") <= 4
    world.assert_equal()


async def test_a_server_that_drops_every_further_connection_is_used_over_the_first(any_world: World) -> None:
    for name in ("Aaa", "Bbb", "Ccc"):
        any_world.store.create(name)
        any_world.deliver(3, name)
    any_world.deliver(3)
    any_world.settings(connections=4)
    for number in range(2, 20):
        any_world.server.faults.add("CONNECT", Cut(after_octets=0), connection=number)
    report = await any_world.synced()
    assert report.total("pulled") == 12
    any_world.assert_equal()


async def test_a_mailbox_that_always_ends_the_connection_stops_no_other(any_world: World) -> None:
    """Not one message at a time can be told to be the reason: the scan itself does it."""
    any_world.store.create("Aaa")
    any_world.store.create("Zzz")
    any_world.deliver(2, "Aaa")
    any_world.deliver(2, "Zzz")
    any_world.deliver(3)
    any_world.settings(connections=1)
    size = len(any_world.store.mailbox("INBOX").messages)

    def hang_up(response: bytes) -> bytes:
        return b"* BYE out of order\r\n" if response.startswith(b"* %d EXISTS" % size) else response

    any_world.server.faults.add("SELECT", Rewrite(hang_up), times=None)
    report = await any_world.sync()
    assert not report.ok
    assert report.error is None
    assert report.mailboxes["INBOX"].state == "error"
    assert "out of order" in str(report.mailboxes["INBOX"].error)
    assert report.total("pulled") == 4
    any_world.assert_equal("Aaa", "Zzz")
    any_world.server.faults.clear()
    await any_world.synced()
    any_world.assert_equal()


# -- bodies, big ones and unasked ones


@pytest.mark.parametrize("uid", [2, 99])
async def test_a_body_that_nobody_asked_for_makes_no_file(any_world: World, uid: int) -> None:
    any_world.deliver(4)
    await any_world.synced()
    any_world.deliver(2, start=5)
    evil = message(66)
    told = b"* 2 FETCH (UID %d FLAGS () INTERNALDATE " % uid + b'"14-Nov-2023 22:13:20 +0000" BODY[] {%d}\r\n%b)\r\n'
    rule = any_world.server.faults.add("UID FETCH", Inject(told % (len(evil), evil)), nth=1, times=None)
    await any_world.synced()
    assert rule.count > 1
    any_world.server.faults.clear()
    await any_world.synced()
    any_world.assert_equal()


async def test_a_big_body_that_nobody_asked_for_leaves_no_temporary_file(world: World) -> None:
    world.deliver(4)
    await world.synced()
    world.deliver(2, start=5)
    evil = message(66, body=long_body())
    told = b"* 2 FETCH (UID 2 FLAGS () BODY[] {%d}\r\n%b)\r\n" % (len(evil), evil)
    rule = world.server.faults.add("UID FETCH", Inject(told), nth=2)
    await world.synced()
    assert rule.struck.is_set()
    world.assert_equal()


async def test_an_adopted_big_message_leaves_its_temporary_file_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a Message-ID only the content tells, so each is fetched; what is here already must not pile up in tmp."""
    raws = [message(n, message_id="", body=long_body()) for n in range(3)]
    for n, raw in enumerate(raws):
        world.store.deliver("INBOX", raw, (), START_S)
        world.write_foreign(n, raw.replace(b"\r\n", b"\n"))
    done = 0
    left: set[int] = set()
    take, discard = pull.Pull._take, Spool.discard
    gone: set[int] = set()

    def discarded(spool: Spool) -> None:
        gone.add(id(spool))
        discard(spool)

    async def taken(this: Any, work: Any, several: list[Fetched], spools: set[Spool]) -> None:
        nonlocal done
        await take(this, work, several, spools)
        done += len(several)
        left.update(id(fetched.raw) for fetched in several if id(fetched.raw) not in gone or fetched.raw in spools)

    monkeypatch.setattr(Spool, "discard", discarded)
    monkeypatch.setattr(pull.Pull, "_take", taken)
    report = await world.synced()
    assert (report.total("adopted"), report.total("pulled"), done) == (3, 0, 3)
    assert left == set()
    assert list((world.directory("INBOX") / "tmp").iterdir()) == []
    assert len(world.files()) == 3


async def test_a_big_message_counts_in_the_queue(world: World) -> None:
    world.deliver(1)
    await world.synced()
    maildir = opened(world)
    spool: Spool = maildir.spool(5)
    try:
        assert propagate._octets(Incoming(maildir, Uid("9"), frozenset(), None, spool)) == SPOOL_OCTETS
        assert propagate._octets(Incoming(maildir, Uid("9"), frozenset(), None, b"12345")) == 5
    finally:
        spool.discard()
        maildir.close()


# -- what a scan says


async def test_a_size_once_told_keeps_a_message_out(any_world: World) -> None:
    any_world.deliver(2)
    big = any_world.store.deliver("INBOX", message(3, body="x" * 5000), (), START_S)
    any_world.deliver(1, start=4)
    any_world.settings(max_message_size_octets=3000)
    again = b"* 3 FETCH (UID %d FLAGS (\\Seen))\r\n" % big
    change: Callable[[bytes], bytes] = lambda r: again + r if r.startswith(b"* 4 FETCH") else r  # noqa: E731
    any_world.server.faults.add("UID FETCH", Rewrite(change))
    report = await any_world.synced()
    assert (report.total("pulled"), report.total("skipped")) == (3, 1)
    assert not any(re.search(rf"\b{big}\b", line) for line in bodies(any_world.commands()))


async def test_what_changes_during_the_full_scan_comes_with_the_next_pass(any_world: World) -> None:
    any_world.deliver(4)

    def late(response: bytes) -> bytes:
        if not response.startswith(b"* 4 FETCH"):
            return response
        any_world.deliver(1, start=5)
        any_world.store.set_flags("INBOX", 1, add=["\\Flagged"])
        modseq = any_world.store.mailbox("INBOX").highestmodseq
        return response + b"* 5 EXISTS\r\n* OK [HIGHESTMODSEQ %d] x\r\n" % modseq

    any_world.server.faults.add("UID FETCH", Rewrite(late))
    report = await any_world.synced()
    assert report.total("pulled") == 4
    any_world.server.faults.clear()
    report = await any_world.synced()
    assert report.total("pulled") == 1
    any_world.assert_equal()
    await any_world.settled()


async def test_without_facts_the_content_decides(any_world: World) -> None:
    any_world.deliver(5)
    await any_world.synced()
    any_world.lose_state()
    any_world.server.faults.add("UID FETCH", Answer("NO [CANNOT] no header fields"), nth=2)
    report = await any_world.synced()
    assert (report.total("adopted"), report.total("pulled")) == (5, 0)
    assert "HEADER.FIELDS" in " ".join(any_world.server.journal)
    any_world.assert_equal()


@pytest.mark.parametrize("refused", ["ENABLE", "SELECT"])
async def test_a_server_that_refuses_its_own_qresync(world: World, refused: str) -> None:
    world.deliver(5)
    if refused == "ENABLE":
        world.server.faults.add("ENABLE", Answer("NO not today"), times=None)
    await world.synced()
    for n in range(6, 9):
        world.deliver(1, start=n)
        world.store.expunge("INBOX", n - 5)
        world.store.set_flags("INBOX", n - 1, add=["\\Flagged"])
        if refused == "SELECT":
            world.server.faults.add("SELECT", Answer("BAD no such parameter"))
        await world.synced()
        world.assert_equal()


# -- partial listings


def limited(gone: int) -> Rewrite:
    """Lists less than there is, and says so."""

    def change(response: bytes) -> bytes:
        if response.startswith(b"* %d FETCH" % gone):
            return b""
        return response.replace(b" OK ", b" OK [MESSAGELIMIT 5] ", 1) if b" OK " in response[:30] else response

    return Rewrite(change)


async def test_a_partial_listing_is_the_mailbox_s_error_and_deletes_nothing(any_world: World) -> None:
    any_world.deliver(6)
    await any_world.synced()
    forget_cursor(any_world)
    cursor = stored(any_world).cursor
    any_world.deliver(1, start=7)
    any_world.server.faults.add("UID FETCH", limited(2), times=None)
    for _ in range(2):
        report = await any_world.sync()
        assert not report.ok
        assert report.error is None
        assert report.mailboxes["INBOX"].state == "error"
        assert "listed only a part of it" in str(report.mailboxes["INBOX"].error)
        assert report.total("deleted") == 0
        assert len(any_world.files()) == 7
        assert stored(any_world).cursor == cursor
        assert stored(any_world).error
    any_world.server.faults.clear()
    await any_world.synced()
    assert stored(any_world).error is None
    any_world.assert_equal()
    await any_world.settled()


def forget_cursor(world: World) -> None:
    state = world.state()
    try:
        row = next(iter(state.mailboxes().values()))
        state.finish(row.id, None, None, row.messages or 0, 1.0)
    finally:
        state.close()


async def test_after_a_count_that_does_not_fit_everything_is_compared(world: World) -> None:
    """The last net: QRESYNC forgot to tell of an expunge; the count tells that something is wrong."""
    world.deliver(6)
    await world.synced()
    world.store.expunge("INBOX", 3)
    hide = Rewrite(lambda r: b"" if r.startswith(b"* VANISHED (EARLIER)") else r)
    fault = world.server.faults.add("SELECT", hide)
    await world.synced()
    assert fault.struck.is_set()
    assert len(world.files()) == 6
    assert stored(world).cursor is None
    report = await world.synced()
    assert report.total("deleted") == 1
    world.assert_equal()
    await world.settled()


# -- X-TUID


def marked(raw: bytes, end: bytes) -> bytes:
    head, middle, rest = raw.partition(end + end)
    return head + end + TUID + middle + rest


@pytest.mark.parametrize("server_too", [False, True])
async def test_a_maildir_of_mbsync_is_adopted_without_a_body(any_world: World, server_too: bool) -> None:
    for n in range(1, 6):
        raw = message(n)
        any_world.write_foreign(n, marked(raw.replace(b"\r\n", b"\n"), b"\n"), "S")
        any_world.store.deliver("INBOX", marked(raw, b"\r\n") if server_too else raw, ["\\Seen"], START_S + n)
    report = await any_world.synced()
    assert (report.total("adopted"), report.total("pulled")) == (5, 0)
    assert bodies(any_world.commands()) == []
    assert len(any_world.files()) == 5
    await any_world.settled()
