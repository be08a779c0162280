"""Servers that keep copies of what they send, found out without being in the table: no second copy, and never none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from maild.config import Account
from maild.core.errors import ConnectionLost
from maild.core.likeness import Likeness
from maild.engine import own_copies
from maild.testing.smtp import RESET, SmtpServer
from tests.engine.sending import NOW, PASSWORD, USER, A, World


class Mailbox:
    """The server's Sent: has what `keeps` says of the messages that the server took, from the `delay`-th look on."""

    def __init__(self, server: SmtpServer, keeps: Callable[[bytes], bool], delay: int = 0) -> None:
        self.looks = 0
        self._server, self._keeps, self._delay = server, keeps, delay

    async def find(self, wanted: Likeness) -> bool | None:
        self.looks += 1
        kept = [message.octets for message in self._server.taken if self._keeps(message.octets)]
        return self.looks > self._delay and any(wanted.fits(octets) for octets in kept)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with SmtpServer(users={USER: PASSWORD}) as server:
        yield World(server, tmp_path)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_copies, "PAUSES_S", (0.0, 0.0, 0.0))


async def send(world: World, mailbox: Mailbox, subject: str = "hello", account: Account | None = None) -> None:
    world.accept(A, subject=subject)
    drained = await world.drain(account or world.account(sent="auto"), find_sent=mailbox.find)
    assert drained.is_well
    assert world.outbox.contents().items == ()


@pytest.mark.parametrize("delay", [0, 2])
async def test_a_server_that_keeps_its_own_gets_no_second_copy(world: World, delay: int) -> None:
    """Also from another drain, which knows it and looks all the same."""
    mailbox = Mailbox(world.server, lambda _: True, delay)
    await send(world, mailbox)
    assert mailbox.looks == delay + 1
    await send(world, mailbox)
    assert mailbox.looks == delay + 2
    assert world.mailbox("Sent") == []


async def test_many_at_once(world: World) -> None:
    mailbox = Mailbox(world.server, lambda _: True)
    for number in range(20):
        world.accept(f"r{number}@x.example", subject=str(number))
    await world.drain(world.account(sent="auto"), find_sent=mailbox.find)
    assert (mailbox.looks, world.mailbox("Sent")) == (20, [])


async def test_of_another_server_it_is_known_after_the_first_message(world: World) -> None:
    mailbox = Mailbox(world.server, lambda _: False)
    for count in (1, 2):
        await send(world, mailbox)
        assert mailbox.looks == len(own_copies.PAUSES_S)
        assert len(world.mailbox("Sent")) == count


async def test_a_server_that_begins_to_keep_them_is_found_out(world: World) -> None:
    """Not with every message, and also by a daemon that runs for months."""
    keeps: list[bool] = []
    mailbox = Mailbox(world.server, lambda _: bool(keeps))
    account = world.account(sent="auto")
    submitter = world.submitter(account, find_sent=mailbox.find)
    with world.outbox.draining():
        for days, looks, copies in ((0, 3, 1), (3, 3, 2), (6.9, 3, 3), (7, 4, 3), (8, 5, 3), (30, 6, 3)):
            world.now_s = NOW + days * 86400
            keeps += [True] if days >= 3 else []
            world.accept(A)
            assert (await submitter.drain()).is_well
            assert (mailbox.looks, len(world.mailbox("Sent"))) == (looks, copies), days


async def test_a_clock_that_was_wrong_does_not_put_it_off(world: World) -> None:
    mailbox = Mailbox(world.server, lambda _: False)
    world.now_s = NOW + 400 * 86400
    await send(world, mailbox)
    world.now_s = NOW
    await send(world, mailbox)
    assert mailbox.looks == 2 * len(own_copies.PAUSES_S)


async def test_what_the_server_did_not_keep_gets_a_copy(world: World) -> None:
    """Somebody switched it off, or it keeps some only; what was found out is no word about each message."""
    mailbox = Mailbox(world.server, lambda octets: b"Subject: kept" in octets)
    await send(world, mailbox, "kept")
    await send(world, mailbox, "lost")
    await send(world, mailbox, "kept")
    (copy,) = world.mailbox("Sent")
    assert b"Subject: lost" in copy


async def test_a_server_that_cannot_be_asked_is_not_waited_for(world: World) -> None:
    async def find_sent(wanted: Likeness) -> bool | None:
        raise ConnectionLost("away")

    world.accept(A)
    assert (await world.drain(world.account(sent="auto"), find_sent=find_sent)).is_well
    assert len(world.mailbox("Sent")) == 1
    mailbox = Mailbox(world.server, lambda _: True)
    await send(world, mailbox)
    assert (mailbox.looks, len(world.mailbox("Sent"))) == (1, 1)


@pytest.mark.parametrize(("sent", "copies"), [("copy", 1), ("none", 0)])
async def test_the_config_has_the_last_word(world: World, sent: str, copies: int) -> None:
    mailbox = Mailbox(world.server, lambda _: True)
    await send(world, mailbox, account=world.account(sent=sent))
    assert (mailbox.looks, len(world.mailbox("Sent"))) == (0, copies)


async def test_another_server_is_another_question(world: World) -> None:
    keeping, other = Mailbox(world.server, lambda _: True), Mailbox(world.server, lambda _: False)
    await send(world, keeping)
    account = world.account(sent="auto")
    assert account.smtp is not None
    await send(world, other, account=replace(account, smtp=replace(account.smtp, host="localhost")))
    assert (other.looks, len(world.mailbox("Sent"))) == (len(own_copies.PAUSES_S), 1)


async def test_what_was_found_out_may_be_damaged(world: World) -> None:
    mailbox = Mailbox(world.server, lambda _: True)
    await send(world, mailbox)
    (world.outbox.path / ".work.sent").write_bytes(b"{")
    await send(world, mailbox)
    assert (mailbox.looks, world.mailbox("Sent")) == (2, [])


async def test_a_message_that_is_sent_on_is_copied(world: World) -> None:
    """The server may have it from when it was sent first."""
    mailbox = Mailbox(world.server, lambda _: True)
    await send(world, mailbox)
    await send(world, mailbox, "hello\nResent-Date: Tue, 24 Nov 2026 10:00:00 +0100\nResent-To: a@x.example")
    assert (mailbox.looks, len(world.mailbox("Sent"))) == (1, 1)


async def test_what_was_found_out_settles_no_doubt(world: World) -> None:
    """A mail reader that keeps copies itself looks like a server that does; its copy is none of what was sent."""
    copies: list[bytes] = []

    async def find(wanted: Likeness) -> bool | None:
        return any(wanted.fits(octets) for octets in copies)

    account = world.account(sent="auto")
    for subject in ("one", "two"):
        copies.append(world.outbox.text(world.accept(A, subject=subject).id))
        if subject == "two":
            world.server.react("body", RESET)
        await world.drain(account, find_sent=find)
    assert len(world.server.taken) == 1
    for _ in range(2):
        assert world.item().state == "uncertain"
        await world.drain(account, find_sent=find)
    world.now_s += 15 * 60 + 1
    await world.drain(account, find_sent=find)
    assert len(world.server.taken) == 2
    assert world.outbox.contents().items == ()


async def test_a_server_without_such_a_mailbox_teaches_nothing(world: World) -> None:
    async def nowhere(_: Likeness) -> bool | None:
        return None

    world.accept(A, subject="one")
    await world.drain(world.account(sent="auto"), find_sent=nowhere)
    assert len(world.mailbox("Sent")) == 1
    await send(world, Mailbox(world.server, lambda _: True), "two")
    assert len(world.mailbox("Sent")) == 1


async def test_what_a_crash_left_is_looked_for_where_it_is_known(world: World) -> None:
    mailbox = Mailbox(world.server, lambda _: True)
    await send(world, mailbox)
    item = world.accept(A, subject="again")
    await send_by_hand(world)
    world.outbox.edit(
        item.id, lambda found: replace(found, copy="begun", recipients=(replace(found.recipients[0], state="sent"),))
    )
    await world.drain(world.account(sent="auto"), find_sent=mailbox.find)
    assert (world.outbox.contents().items, world.mailbox("Sent")) == ((), [])


async def send_by_hand(world: World) -> None:
    """The server takes what is in the outbox, and the outbox does not hear of it."""
    (item,) = world.outbox.contents().items
    octets = world.outbox.text(item.id).replace(b"\n", b"\r\n")
    world.server.taken.append(replace(world.server.taken[0], octets=octets))
