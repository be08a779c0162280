"""A message that ends the connection whenever it is fetched costs itself, and neither its mailbox nor the others."""

from __future__ import annotations

import pytest

from maild.testing.faults import Rewrite
from tests.engine.world import World

ENDINGS = {
    "goodbye": b"* BYE Internal error, see the log\r\n",
    "nonsense": b"* 1 FETCH (BODY[] {99999999999}\r\n",
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("position", [4, 8, 12])
async def test_one_message_ends_the_connection(world: World, position: int, ending: str) -> None:
    world.store.create("Archiv")
    world.deliver(3, "Archiv", start=50)
    uids = world.deliver(12)
    killer = b"(UID %d " % uids[position - 1]

    def hang_up(response: bytes) -> bytes:
        return ENDINGS[ending] if killer in response and b"BODY[]" in response else response

    world.server.faults.add("UID FETCH", Rewrite(hang_up), times=None)
    report = await world.sync()
    assert report.error is None
    assert report.mailboxes["Archiv"].pulled == 3
    assert report.mailboxes["INBOX"].pulled == 11
    assert report.mailboxes["INBOX"].skipped == 1
    world.server.faults.clear()
    await world.synced()
    world.assert_equal()
