"""Only subscribed mailboxes, where the config wants that; the others are left alone on both sides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from maild.testing.imap import ALL, BARE, ImapServer
from maild.testing.store import Store
from tests.engine.twin import WireTwin
from tests.engine.world import PASSWORD, USER

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[ALL, ALL - {"LIST-EXTENDED"}, BARE], ids=["list", "lsub", "bare"])
async def twin(quick_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[WireTwin]:
    """INBOX and "Nicht" are not subscribed, "Ja" and "Ja/Auch" are."""
    async with ImapServer(Store(), {USER: PASSWORD}, capabilities=request.param) as server:
        twin = WireTwin.over(quick_path, server)
        twin.configure(subscribed_only=True)
        for n, mailbox in enumerate(("INBOX", "Nicht", "Ja", "Ja/Auch"), 1):
            if mailbox != "INBOX":
                twin.store.create(mailbox)
            twin.store.mailbox(mailbox).subscribed = mailbox.startswith("Ja")
            twin.deliver(n, mailbox)
        yield twin


async def test_only_those_and_inbox(twin: WireTwin) -> None:
    await twin.synced()
    assert twin.mailboxes_here() == {"INBOX", "Ja", "Ja/Auch"}
    for mailbox in ("INBOX", "Ja", "Ja/Auch"):
        assert twin.here(mailbox) == twin.there(mailbox)
    await twin.synced()
    assert twin.server.mutations == []


async def test_one_that_is_left_is_kept_on_both_sides(twin: WireTwin) -> None:
    await twin.synced()
    twin.store.mailbox("Ja").subscribed = False
    twin.one(3, "Ja").unlink()
    twin.deliver(9, "Ja")
    twin.move(twin.one(1), "Ja")  # leaves the account
    await twin.synced()
    assert len(twin.there("Ja")) == 2
    assert [shown.raw for shown in twin.here("Ja")] == [twin.body(1)]
    assert twin.there("INBOX") == []
    assert [change for change in twin.server.mutations if "Ja" in change] == []


async def test_one_that_is_taken_in_again(twin: WireTwin) -> None:
    """Nothing is fetched that is here already, and nothing is doubled."""
    await twin.synced()
    twin.store.mailbox("Ja").subscribed = False
    await twin.synced()
    twin.write(7, "Ja")
    twin.deliver(8, "Ja")
    twin.store.mailbox("Ja").subscribed = True
    await twin.synced()
    assert twin.here("Ja") == twin.there("Ja")
    assert len(twin.here("Ja")) == 3


async def test_a_mailbox_made_here_is_subscribed(twin: WireTwin) -> None:
    await twin.synced()
    twin.write(6, "Neu")
    await twin.synced()
    await twin.synced()
    assert twin.store.mailbox("Neu").subscribed
    assert twin.here("Neu") == twin.there("Neu")


async def test_a_directory_of_one_that_is_not_subscribed_is_left_alone(twin: WireTwin) -> None:
    twin.write(5, "Nicht")
    await twin.synced()
    assert len(twin.here("Nicht")) == len(twin.there("Nicht")) == 1
    assert twin.here("Nicht") != twin.there("Nicht")
