"""Doubt where the server keeps its own copies: a copy that could be another message's never makes a lost one sent."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from maild.core.likeness import Likeness
from maild.core.outgoing import Item
from maild.engine.submit import Drained
from maild.local import lately
from maild.testing.smtp import RESET, SmtpServer
from tests.engine.sending import PASSWORD, USER, A, B, World

TO = "\nTo: a@x.example"


@dataclass
class Keeping:
    """An account whose server keeps what it takes, with a Message-ID of its own if it `replaces` them."""

    world: World
    replaces: bool = False
    extra: list[bytes] = field(default_factory=list)
    asked: int = 0

    async def find(self, wanted: Likeness) -> bool | None:
        self.asked += 1
        kept = [message.octets for message in self.world.server.taken]
        if self.replaces:
            own = b"Message-ID: <%d@prod.server.example>"
            kept = [re.sub(rb"Message-ID: <.*>", own % number, octets) for number, octets in enumerate(kept)]
        return any(wanted.fits(octets) for octets in (*kept, *self.extra))

    async def drain(self) -> Drained:
        return await self.world.drain(self.world.account(sent="none"), find_sent=self.find)

    async def lost(self) -> Drained:
        """The next message is cut off in its body, and the server has nothing of it."""
        self.world.server.react("body", RESET)
        return await self.drain()

    async def unanswered(self) -> Drained:
        """The next message is taken, and nobody hears of it."""
        self.world.server.react("dot", RESET)
        return await self.drain()

    def states(self) -> list[str]:
        return [item.state for item in self.world.outbox.contents().items]

    async def end(self) -> list[str]:
        """Everything there is, after all; the recipients whom the server has messages for."""
        self.world.now_s += 901
        await self.drain()
        assert self.states() == []
        return [message.recipients[0] for message in self.world.server.taken]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with SmtpServer(users={USER: PASSWORD}) as server:
        yield World(server, tmp_path)


@pytest.fixture(params=[False, True], ids=["keeping Message-IDs", "replacing them"])
def server(world: World, request: pytest.FixtureRequest) -> Keeping:
    return Keeping(world, request.param)


def accept(world: World, subject: str = "ALERT") -> Item:
    return world.accept(A, subject=subject + TO)


async def test_the_only_one_that_looks_so_is_found(world: World, server: Keeping) -> None:
    accept(world, "another")
    await server.drain()
    accept(world)
    await server.unanswered()
    assert server.states() == ["uncertain"]
    await server.drain()
    assert server.states() == []
    assert len(world.server.taken) == 2


async def test_the_copy_of_one_that_was_sent_before_is_not_that_of_the_lost_one(world: World, server: Keeping) -> None:
    accept(world)
    await server.drain()
    accept(world)
    await server.lost()
    await server.drain()
    assert server.states() == ["uncertain"]
    assert await server.end() == [A, A]


async def test_one_copy_settles_the_doubt_about_one_message_at_most(world: World, server: Keeping) -> None:
    for stage in ("dot", "body"):
        accept(world)
        world.server.react(stage, RESET)
        await world.drain(world.account(sent="none"))  # where it is not looked for at once
    assert (server.states(), len(world.server.taken)) == (["uncertain", "uncertain"], 1)
    await server.drain()
    assert len(server.states()) == (2 if server.replaces else 1)
    assert len(await server.end()) == (3 if server.replaces else 2)


async def test_one_that_was_never_tried_raises_no_doubt(world: World, server: Keeping) -> None:
    accept(world)
    await server.unanswered()
    senders_clock = world.now_s
    waiting = world.accept(A, subject="ALERT" + TO, at_s=int(senders_clock) + 600)
    await server.drain()
    assert [item.id for item in world.outbox.contents().items] == [waiting.id]


async def test_the_copy_of_one_that_was_cancelled_in_doubt(world: World, server: Keeping) -> None:
    first = accept(world)
    await server.unanswered()
    world.outbox.cancel(first.id)
    accept(world)
    await server.lost()
    await server.drain()
    assert server.states() == ["uncertain"]
    assert await server.end() == [A, A]


async def test_one_message_submitted_twice_is_not_known_by_its_id(world: World, server: Keeping) -> None:
    """As a script does that gives the same message to each recipient by itself: one copy tells nothing of the other."""
    for recipient, drain in ((A, server.drain), (B, server.lost)):
        world.accept(recipient, subject="news\nTo: list@x.example\nMessage-ID: <same@me.example>")
        await drain()
    await server.drain()
    assert server.states() == ["uncertain"]
    assert await server.end() == [A, B]


async def test_one_that_is_sent_on_is_not_known_by_its_id(world: World, server: Keeping) -> None:
    first = accept(world)
    server.extra.append(world.outbox.text(first.id))
    world.outbox.cancel(first.id)  # somebody else has sent it
    resent = f"\nResent-Date: Tue, 24 Nov 2026 10:00:00 +0100\nResent-To: {B}\nMessage-ID: {first.message_id}"
    world.accept(B, subject="ALERT" + TO + resent)
    await server.lost()
    await server.drain()
    assert server.states() == ["uncertain"]
    assert await server.end() == [B]


async def test_another_machines_message_of_the_same_second(world: World) -> None:
    """It sends through the same account: the two differ in the Message-ID alone, and the server has not replaced it."""
    server = Keeping(world)
    item = accept(world)
    theirs = item.message_id.replace("<", "<other.")
    server.extra.append(world.outbox.text(item.id).replace(item.message_id.encode(), theirs.encode()))
    await server.lost()
    await server.drain()
    assert server.states() == ["uncertain"]
    assert await server.end() == [A]


async def test_what_may_have_been_forgotten_may_be_what_is_found(world: World, server: Keeping) -> None:
    world.now_s = 1_000_000_000  # whatever the clock of this machine says, the damage is later
    accept(world)
    await server.drain()
    (world.outbox.path / lately.NAME).write_bytes(b"damaged")
    accept(world)
    await server.lost()
    await server.drain()
    assert server.states() == ["uncertain"]


async def test_one_whose_file_is_gone_could_look_like_any(world: World) -> None:
    server = Keeping(world)
    first = accept(world)
    await server.lost()
    world.outbox.text_path(first.id).unlink()
    accept(world)
    await server.lost()
    await server.drain()
    assert server.asked == 0


async def test_a_message_that_cannot_be_read_keeps_no_other_in_doubt(world: World) -> None:
    server = Keeping(world)
    first = accept(world, "one")
    await server.unanswered()
    path = world.outbox.text_path(first.id)
    path.unlink()
    path.mkdir()
    accept(world, "two")
    await server.unanswered()
    await server.drain()
    assert [item.subject for item in world.outbox.contents().items] == ["one"]


async def test_a_crash_before_it_is_forgotten_makes_no_doubt_of_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = accept(world)
    server = Keeping(world)
    await server.unanswered()
    world.outbox.remember([item.id], world.now_s)
    await server.drain()
    assert server.states() == []
    assert replace(lately.read(world.outbox.path), left={}).since_s == 0


@pytest.mark.parametrize(
    ("name", "is_readers"),
    [
        ("cur/1800000000.R1234567890.here:2,S", True),  # mutt
        ("new/1800000000.99_1.here", True),  # aerc
        ("cur/sent-1:2,S", True),
        ("cur/1800000000.M000001P7Q3.here:2,S", False),  # maild: it came from the server
    ],
)
async def test_a_readers_own_copy_is_no_proof(world: World, name: str, is_readers: bool) -> None:
    """It keeps what it sends in the local Sent mailbox, from where a pass has carried it to the server."""
    server = Keeping(world)
    item = accept(world)
    text = world.outbox.text(item.id)
    sent = world.root / "Mail" / "work" / "Sent"
    for subdir in ("cur", "new", "tmp"):
        (sent / subdir).mkdir(parents=True)
    (sent / "cur" / "1700000000.R1.here:2,S").write_bytes(b"Message-ID: <other@here>\n\n")
    (sent / name).write_bytes(text)
    server.extra.append(text)
    await server.lost()
    await server.drain()
    assert server.states() == (["uncertain"] if is_readers else [])
    if is_readers:
        assert await server.end() == [A]
