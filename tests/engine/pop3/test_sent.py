"""What a POP3 account sends stays on this disk: once in its Sent mailbox, which no poll touches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maild.config import Account, Password, Smtp
from maild.config.senders import Sender, Senders
from maild.engine.accept import Order, prepared
from maild.engine.submit import Submitter
from maild.local.outbox import Outbox
from maild.testing.smtp import RESET, SmtpServer
from tests.engine.maildrop import DAY_S, PopWorld
from tests.engine.world import PASSWORD, USER

HEAD = "From: me@x.example\nTo: a@x.example\nDate: Tue, 24 Nov 2026 10:00:00 +0100\nMessage-ID: <1@me.example>"
TEXT = f"{HEAD}\n\nhello\n".encode()


class Sending:
    """The account with a way out."""

    def __init__(self, world: PopWorld, server: SmtpServer, **changes: str) -> None:
        secret = Password(PASSWORD)
        smtp = Smtp(host=server.host, port=server.port, user=USER, secret=secret, tls="none")
        self._world = world
        self._account: Account = replace(world.account, smtp=replace(smtp, **changes))
        self.outbox = Outbox(world.state_dir)

    async def send(self, *, everything: bool = False) -> None:
        if not self.outbox.contents().items:
            senders = Senders(self._world.state_dir, (Sender(self._account.name, (USER,), 0),), None)
            self.outbox.accept(*prepared(TEXT, Order(take_from_head=True), senders, self._world.now_s))
        with self.outbox.draining():
            submitter = Submitter(self._account, self.outbox, self._world.state_dir, clock=lambda: self._world.now_s)
            await submitter.drain(everything=everything)


@pytest.mark.parametrize("is_polled_before", [True, False])
async def test_it_is_kept_here_once_and_for_good(world: PopWorld, is_polled_before: bool) -> None:
    """Also beside mail that is deleted on the server as soon as it is here, and a poll that looks for what is gone."""
    world.settings(leave_on_server=False)
    world.deliver(2)
    if is_polled_before:
        await world.polled()
    async with SmtpServer(users={USER: PASSWORD}) as server:
        sending = Sending(world, server)
        await sending.send()
        assert [message.recipients for message in server.journal] == [("a@x.example",)]
    assert sending.outbox.contents().items == ()
    (copy,) = world.paths("Sent")
    assert (copy.parent.name, copy.name[-4:], copy.read_bytes()) == ("cur", ":2,S", TEXT)
    for _ in range(2):
        world.now_s += 40 * DAY_S
        await world.polled()
    assert world.paths("Sent") == [copy]
    assert len(world.paths()) == 2
    assert not world.on_server()


async def test_in_doubt_there_is_none_until_it_is_sent_and_then_one(world: PopWorld) -> None:
    async with SmtpServer(users={USER: PASSWORD}) as server:
        sending = Sending(world, server)
        server.react("dot", RESET)
        await sending.send()
        assert [item.state for item in sending.outbox.contents().items] == ["uncertain"]
        assert not (world.root / "Sent").exists()
        world.now_s += 901
        await sending.send()
    assert [path.read_bytes() for path in world.paths("Sent")] == [TEXT]


@pytest.mark.parametrize(("changes", "mailbox"), [({"sent_mailbox": "Gesendet"}, "Gesendet"), ({"sent": "none"}, None)])
async def test_as_the_config_says(world: PopWorld, changes: dict[str, str], mailbox: str | None) -> None:
    async with SmtpServer(users={USER: PASSWORD}) as server:
        await Sending(world, server, **changes).send()
    assert not (world.root / "Sent").exists()
    if mailbox is not None:
        assert len(world.paths(mailbox)) == 1


async def test_a_mailbox_that_is_there_is_used(world: PopWorld) -> None:
    world.make_mailbox("Sent Items")
    async with SmtpServer(users={USER: PASSWORD}) as server:
        await Sending(world, server).send()
    assert len(world.paths("Sent Items")) == 1
    assert not (world.root / "Sent").exists()
