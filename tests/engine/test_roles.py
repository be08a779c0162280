"""The roles that a listing tells are in the state, for whoever puts something into a mailbox by its role."""

from __future__ import annotations

import pytest

from maild.local.sent import sent_directory
from maild.local.state import State
from tests.engine.world import World


def sent_of(world: World) -> str:
    return str(sent_directory(world.root, world.account.layout, world.database, None))


@pytest.mark.parametrize("is_wanted", [True, False])
async def test_the_sent_mailbox_is_known_by_its_role(world: World, is_wanted: bool) -> None:
    """Also where it is not synchronised, and when its role or its name is another."""
    world.store.create("Sent")
    world.store.create("Gesendete Objekte", "\\Sent")
    world.settings(mailboxes=("*",) if is_wanted else ("*", "!Gesendete Objekte"))
    await world.sync()
    assert sent_of(world) == "Gesendete Objekte"
    world.store.rename("Gesendete Objekte", "Ausgang")
    await world.sync()
    assert sent_of(world) == "Ausgang"
    world.store.delete("Ausgang")
    await world.sync()
    assert sent_of(world) == "Sent"


async def test_a_dry_run_stores_nothing(world: World) -> None:
    world.store.create("Ausgang", "\\Sent")
    await world.sync()
    state = State.open(world.database)
    state.set_roles({})
    state.close()
    await world.sync(dry_run=True)
    assert sent_of(world) == "Sent"
