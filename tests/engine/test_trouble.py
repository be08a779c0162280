"""What goes wrong on the server or on the way: it stays where it happened, and in the end everything is here once."""

from __future__ import annotations

import re

import pytest
import structlog.testing

from maild.config import Password
from maild.testing.faults import Answer, Bye, Cut, LiteralOff, Rewrite
from tests.engine.world import World, bodies, long_body, message


def without(uid: int, *, instead: bytes = b"") -> Rewrite:
    """The server leaves a message's body out of its answers."""

    def change(response: bytes) -> bytes:
        is_meant = re.search(rb"\(UID %d .*BODY\[\]" % uid, response, re.DOTALL)
        return instead if is_meant else response

    return Rewrite(change)


# -- one bad message


async def test_a_message_that_does_not_come_is_skipped_and_asked_for_again(any_world: World) -> None:
    any_world.deliver(6)
    rule = any_world.server.faults.add("UID FETCH", without(3), times=None)
    report = await any_world.synced()
    assert (report.total("pulled"), report.total("skipped")) == (5, 1)
    assert rule.count > 0
    report = await any_world.synced()
    assert (report.total("pulled"), report.total("skipped")) == (0, 1)
    any_world.server.faults.clear()
    assert (await any_world.synced()).total("skipped") == 1, "after the second time in vain it is left for a minute"
    report = await any_world.sync(only=["INBOX"])
    assert (report.total("pulled"), report.total("skipped")) == (1, 0)
    any_world.assert_equal()
    await any_world.settled()


async def test_a_message_without_a_body_is_skipped(any_world: World) -> None:
    """`BODY[] NIL`: what some servers say of a message that they can no longer read."""
    any_world.deliver(3)
    nil = b"* 2 FETCH (UID 2 FLAGS () BODY[] NIL)\r\n"
    any_world.server.faults.add("UID FETCH", without(2, instead=nil), times=None)
    report = await any_world.synced()
    assert report.total("pulled") == 2
    any_world.server.faults.clear()
    await any_world.synced()
    any_world.assert_equal()


async def test_a_set_that_is_refused_is_asked_for_one_by_one(any_world: World) -> None:
    any_world.deliver(4)
    any_world.server.faults.add("UID FETCH", Answer("NO [SERVERBUG] cannot read one of them"), nth=2)
    any_world.server.faults.add("UID FETCH", Answer("NO [SERVERBUG] cannot read it"), nth=4, times=1)
    report = await any_world.synced()
    assert (report.total("pulled"), report.total("skipped")) == (3, 1)
    any_world.server.faults.clear()
    report = await any_world.synced()
    assert (report.total("pulled"), report.total("skipped")) == (1, 0)
    any_world.assert_equal()
    await any_world.settled()


async def test_what_did_not_come_is_noticed_after_a_lost_connection_too(any_world: World) -> None:
    """The first attempt's messages must not hide that one of the second attempt is missing."""
    any_world.deliver(8)
    cut = any_world.server.faults.add("UID FETCH", Cut(after_octets=900), nth=2)
    rule = any_world.server.faults.add("UID FETCH", without(8), nth=1, times=None)
    report = await any_world.synced()
    assert rule.count > 1
    assert cut.struck.is_set()
    assert (report.total("pulled"), report.total("skipped")) == (7, 1)
    any_world.server.faults.clear()
    report = await any_world.synced()
    assert report.total("pulled") == 1
    any_world.assert_equal()
    await any_world.settled()


async def test_a_message_expunged_while_it_is_fetched(any_world: World) -> None:
    any_world.deliver(4)
    await any_world.synced()
    any_world.deliver(3, start=5)
    any_world.server.faults.add("UID FETCH", without(6), times=None)
    await any_world.synced()
    any_world.server.faults.clear()
    any_world.store.expunge("INBOX", 6)
    report = await any_world.synced()
    assert report.total("skipped") == 0
    any_world.assert_equal()
    await any_world.settled()


# -- one bad mailbox


async def test_a_mailbox_that_cannot_be_opened_stops_no_other(any_world: World) -> None:
    for name in ("Aaa", "Bbb", "Ccc"):
        any_world.store.create(name)
        any_world.deliver(2, name)
    any_world.deliver(2)
    any_world.settings(connections=1)
    any_world.server.faults.add("SELECT", Answer("NO [NOPERM] not for you"), nth=2)
    report = await any_world.sync()
    assert not report.ok
    assert report.error is None
    failed = [mailbox for mailbox in report.mailboxes.values() if mailbox.state == "error"]
    assert len(failed) == 1
    assert "NOPERM" in str(failed[0].error)
    assert report.total("pulled") == 6
    state = any_world.state()
    assert [row.error is not None for name, row in state.mailboxes().items() if name == failed[0].name] == [True]
    state.close()
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


async def test_garbage_in_one_mailbox_stops_no_other(any_world: World) -> None:
    for name in ("Aaa", "Bbb"):
        any_world.store.create(name)
        any_world.deliver(2, name)
    any_world.deliver(2)
    any_world.settings(connections=1)
    any_world.server.faults.add("SELECT", Rewrite(lambda _: b"* OK " + b"x" * (20 << 20) + b"\r\n"), nth=2, times=3)
    report = await any_world.sync()
    assert not report.ok
    assert report.error is None
    assert sorted(mailbox.state for mailbox in report.mailboxes.values()) == ["error", "ok", "ok"]
    any_world.server.faults.clear()
    await any_world.synced()
    any_world.assert_equal()


# -- the connection


@pytest.mark.parametrize("after_octets", [0, 37, 150, 1000, 2500])
@pytest.mark.parametrize("nth", [1, 2])
async def test_a_connection_lost_on_the_way_is_taken_up_again(any_world: World, after_octets: int, nth: int) -> None:
    any_world.deliver(15, flags=["\\Seen"])
    any_world.store.deliver("INBOX", message(99, body="x" * 3000), (), 1_700_000_000)
    rule = any_world.server.faults.add("UID FETCH", Cut(after_octets=after_octets), nth=nth)
    report = await any_world.synced()
    assert report.total("pulled") == 16
    assert rule.struck.is_set()
    assert (report.done_messages, report.done_octets) == (report.wanted_messages, report.wanted_octets) or nth == 2
    any_world.assert_equal()
    await any_world.settled()


@pytest.mark.parametrize("command", ["CONNECT", "AUTHENTICATE", "LIST", "SELECT"])
async def test_a_connection_lost_at_a_command(any_world: World, command: str) -> None:
    any_world.deliver(3)
    any_world.server.faults.add(command, Cut(after_octets=5))
    if not (report := await any_world.sync()).ok:
        assert "closed the connection" in str(report.error), report.error
    await any_world.synced()
    any_world.assert_equal()
    await any_world.settled()


async def test_a_pass_that_came_to_nothing_is_one_line_in_the_log(any_world: World) -> None:
    any_world.server.faults.add("CONNECT", Cut(after_octets=0), times=None)
    with structlog.testing.capture_logs() as logged:
        assert not (await any_world.sync()).ok
    told = [entry["event"] for entry in logged if entry["log_level"] in {"info", "error"}]
    assert told == ["account.failed"]


async def test_a_connection_lost_in_the_middle_of_a_big_message(any_world: World) -> None:
    any_world.store.deliver("INBOX", message(1, body=long_body()), (), 1_700_000_000)
    any_world.server.faults.add("UID FETCH", Cut(after_octets=2_000_000), nth=2)
    await any_world.synced()
    any_world.assert_equal()


async def test_a_connection_that_never_lasts_is_given_up(any_world: World) -> None:
    any_world.store.create("Archiv")
    any_world.deliver(3)
    any_world.server.faults.add("UID FETCH", Cut(after_octets=0), times=None)
    report = await any_world.sync()
    assert "closed the connection" in str(report.first_error())
    assert report.mailboxes["INBOX"].state == "error"
    assert any_world.server.count("AUTHENTICATE") + any_world.server.count("LOGIN") <= 8
    any_world.server.faults.clear()
    await any_world.synced()
    any_world.assert_equal()


async def test_the_server_says_goodbye(any_world: World) -> None:
    any_world.deliver(3)
    any_world.server.faults.add("SELECT", Bye("Server shutting down"))
    report = await any_world.sync()
    if not report.ok:
        assert "Server shutting down" in str(report.error)
    await any_world.synced()
    any_world.assert_equal()


async def test_a_literal_of_the_wrong_length_loses_nothing(any_world: World) -> None:
    any_world.deliver(5)
    any_world.server.faults.add("UID FETCH", LiteralOff(by=7), nth=2)
    await any_world.sync()
    any_world.server.faults.clear()
    before = any_world.on_disk() if any_world.root.exists() else []
    assert set(before) <= set(any_world.on_server("INBOX")), "nothing that the server does not have"
    await any_world.synced()
    any_world.assert_equal()


# -- the password


async def test_a_wrong_password_is_tried_at_most_twice(any_world: World) -> None:
    any_world.store.create("Archiv")
    any_world.deliver(3)
    any_world.settings(secret=Password("wrong horse"))
    report = await any_world.sync()
    tries = any_world.server.count("LOGIN") + any_world.server.count("AUTHENTICATE")
    assert 1 <= tries <= 2
    assert "refused to log in me@example.org" in str(report.error)
    assert "check user and password" in str(report.error)
    assert "wrong horse" not in str(report.error)
    assert bodies(any_world.commands()) == []
