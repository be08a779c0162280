"""Every stage of a session × every reaction of the server × one and several recipients, against the contract.

What one drain comes to: each recipient's state, when the next attempt is, what the server took; and that afterwards
everybody gets the message whom it did not fail, once unless it was uncertain, with one copy in Sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from maild.config import Account
from maild.testing.smtp import EOF, RESET, SILENCE, Reaction, SmtpServer, Stage
from tests.engine.sending import NOW, PASSWORD, SHORT, USER, A, B, C, World
from tests.servers.certificates import Authority

pytestmark = pytest.mark.usefixtures("no_fsync", "no_threads")

REACTIONS: dict[str, Reaction] = {
    "2yz": "250 2.0.0 as you like",
    "4yz": "451 4.3.0 later",
    "450": "450 4.2.0 greylisted",
    "5yz": "550 5.7.1 no",
    "421": "421 4.3.2 bye",
    "garbage": b"nonsense\r\n",
    "silence": SILENCE,
    "reset": RESET,
    "EOF": EOF,
}
STAGES: tuple[Stage, ...] = ("greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "dot", "quit")
SOON, LATER, DOUBT = 60, 300, 900  # seconds


@dataclass(frozen=True)
class Outcome:
    """The state of the last recipient and of the others, the next attempt, None for never."""

    last: str
    others: str
    after_s: int | None


def same(state: str, after_s: int | None) -> Outcome:
    return Outcome(state, state, after_s)


SENT, FAILED = same("sent", None), same("failed", None)


def expected(stage: Stage, reaction: str) -> Outcome:
    """The contract."""
    after_s = LATER if reaction in ("421", "450") else SOON
    match stage, reaction:
        case "quit", _:
            return SENT
        case ("auth" | "mail" | "rcpt" | "dot", "2yz"):
            return SENT
        case ("auth", "5yz") | ("starttls", ("5yz" | "2yz")):
            return same("queued", 0)  # no attempt: the account waits for another secret or config
        case (("mail" | "data" | "dot"), "5yz"):
            return FAILED
        case "rcpt", "5yz":
            return Outcome("failed", "sent", None)
        case "rcpt", ("4yz" | "450"):
            return Outcome("deferred", "sent", after_s)
        case "dot", ("garbage" | "silence" | "reset" | "EOF"):
            return same("uncertain", DOUBT)
        case _:
            return same("deferred", after_s)


@dataclass
class MatrixWorld(World):
    """Over TLS from STARTTLS on where that is the stage in question."""

    ca_file: Path | None = None

    def account(self, **changes: Any) -> Account:
        return super().account(**({"tls": "starttls", "ca_file": self.ca_file} if self.ca_file else {}), **changes)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def world(tmp_path: Path, stage: Stage, authority: Authority) -> AsyncIterator[World]:
    context = authority.good().server_context() if stage == "starttls" else None
    async with SmtpServer(users={USER: PASSWORD}, starttls=context) as server:
        yield MatrixWorld(
            server, tmp_path, timeouts=replace(SHORT, connect_s=1.0), ca_file=authority.ca_file if context else None
        )


@pytest.mark.parametrize("recipients", [(A,), (A, B, C)], ids=["one", "several"])
@pytest.mark.parametrize("reaction", REACTIONS)
@pytest.mark.parametrize("stage", STAGES)
async def test_the_contract(world: World, stage: Stage, reaction: str, recipients: tuple[str, ...]) -> None:
    outcome = expected(stage, reaction)
    world.accept(*recipients)
    world.server.react(stage, REACTIONS[reaction], when=recipients[-1] if stage == "rcpt" else "")
    await world.drain()
    states = dict.fromkeys(recipients[:-1], outcome.others) | {recipients[-1]: outcome.last}
    left = world.outbox.contents().items
    is_kept = set(states.values()) != {"sent"}
    assert len(left) == is_kept
    if is_kept:
        (item,) = left
        assert {r.address: r.state for r in item.recipients} == states
        assert item.wakes_at() == (None if outcome.after_s is None else NOW + outcome.after_s)
        assert (item.phase, item.attempts) == ("", 0 if outcome.last == "queued" else 1)
        assert all(r.reply or r.state == "queued" for r in item.recipients)
    got = {address for message in world.server.journal for address in message.recipients}
    assert got == {address for address, state in states.items() if state == "sent"}
    assert len(world.mailbox("Sent")) == ("sent" in states.values())
    assert len(world.mailbox("INBOX")) == ("failed" in states.values())
    await and_then(world, states)


async def and_then(world: World, states: dict[str, str]) -> None:
    """With a server that does as it should: everybody gets it whom it did not fail."""
    wanted = {address for address, state in states.items() if state != "failed"}
    while pending := [at for item in world.outbox.contents().items if (at := item.wakes_at()) is not None]:
        world.now_s = max(world.now_s, *pending)
        await world.drain()
    accepted = Counter(address for message in world.server.journal for address in message.recipients)
    assert accepted == dict.fromkeys(wanted, 1)
    taken = Counter(address for message in world.server.taken for address in message.recipients)
    assert max(taken.values(), default=0) <= 2, "whoever was uncertain, or refused after the dot, was tried once more"
    assert len(world.mailbox("Sent")) == bool(wanted)
    assert len(world.mailbox("INBOX")) == ("failed" in states.values())
    assert {item.state for item in world.outbox.contents().items} <= {"failed"}
