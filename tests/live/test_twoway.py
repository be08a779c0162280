"""The two-way scenarios against a real server, over a real line: what each side and both sides do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from maild.config import Password
from maild.remote.pace import connects
from maild.testing.store import Store
from tests.conftest import INTERRUPTED
from tests.engine.test_twoway import SCENARIOS, Record, Step, contents, start
from tests.engine.twin import Shown, Twin, WireTwin
from tests.live.store import LiveStore
from tests.servers.cutting import CutLine, Way
from tests.servers.dovecot import Dovecot

pytestmark = [pytest.mark.live, pytest.mark.anyio]

LACKING = {
    "nothing": frozenset[str](),
    "QRESYNC": frozenset({"QRESYNC"}),
    "UIDPLUS and MOVE": frozenset({"UIDPLUS", "MOVE"}),
    "much": frozenset({"QRESYNC", "CONDSTORE", "UIDPLUS", "MOVE", "LIST-STATUS", "MULTIAPPEND", "LITERAL+"}),
}


class LiveTwin(WireTwin):
    """The same twin with a real server; what is asked of it in vain shows in the mail that it has."""

    async def quiet(self) -> None:
        before, there = self.snapshot(), {name: self.store.mailbox(name) for name in self.store.names}
        report = await self.synced()
        counters = ("pulled", "pushed", "flags", "flags_there", "moved", "moved_there", "deleted", "deleted_there")
        assert {name: report.total(name) for name in counters} == dict.fromkeys(counters, 0)
        assert self.snapshot() == before
        assert {name: self.store.mailbox(name) for name in self.store.names} == there


@pytest.fixture(scope="module")
def users(dovecot: Dovecot) -> Callable[[str], LiveStore]:
    def user(name: str) -> LiveStore:
        clean = "".join(c if c.isalnum() else "-" for c in name)[:60].strip("-").lower()
        return LiveStore("127.0.0.1", dovecot.imap_port, f"two-{clean}", dovecot.password)

    return user


def twin_of(directory: Path, store: LiveStore, lacking: str) -> Twin:
    twin = LiveTwin(directory, cast("Store", store))
    twin.configure(
        host=store.host,
        port=store.port,
        user=store.user,
        secret=Password(store.password),
        disable_extensions=LACKING[lacking],
    )
    return twin


async def undergo(twin: Twin, scenario: Step) -> None:
    """From the same mail on both sides through the scenario to the same mail on both sides."""
    start(twin)
    await twin.synced()
    await twin.quiet()
    scenario(twin)
    for _ in range(2):
        await twin.synced()
    twin.assert_equal()
    await twin.quiet()


@pytest.mark.parametrize(
    "lacking", ["nothing", *(pytest.param(n, marks=pytest.mark.long) for n in LACKING if n != "nothing")]
)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda step: step.__name__)
async def test_scenario_on_a_real_server(
    tmp_path: Path, scenario: Step, lacking: str, users: Callable[[str], LiveStore]
) -> None:
    await undergo(twin_of(tmp_path, users(f"{lacking}-{scenario.__name__}"), lacking), scenario)


async def cut_at_every_command(
    directory: Path, scenario: Step, users: Callable[[str], LiveStore], *, lacking: str = "nothing"
) -> int:
    """Cut before each command of a pass in turn, and after it with its answer lost, wholly or by half; two more passes
    then end where an undisturbed one ends, and the next finds nothing to do. How many cuts there were."""
    ways = itertools.cycle([(Way.NOT_SENT, Way.UNANSWERED), (Way.NOT_SENT, Way.HALF_ANSWERED)])
    moments = ((command, way) for command, both in enumerate(ways) for way in both)
    wanted: dict[str, list[Shown]] | None = None
    async with CutLine(users("any").port) as line:
        for points, moment in enumerate(itertools.chain([None], moments)):
            name = f"{scenario.__name__}-{points}"
            twin = twin_of(directory / name, users(name), lacking)
            twin.configure(port=line.port, connections=1)
            connects.forget()
            start(twin)
            await twin.synced()
            scenario(twin)
            if moment is not None:
                line.cut_at(*moment)
                await twin.sync()
                if not line.repair():
                    assert points > 6, "a pass has more commands than that"
                    return points - 1
            for _ in range(2):
                await twin.synced()
            twin.assert_equal()
            wanted = wanted or contents(twin)
            assert contents(twin) == wanted, f"cut at {moment}"
            await twin.quiet()
    raise AssertionError


@pytest.mark.long
@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda step: step.__name__)
async def test_scenario_cut_at_every_command_on_a_real_server(
    tmp_path: Path,
    scenario: Step,
    users: Callable[[str], LiveStore],
    record_property: Record,
) -> None:
    record_property(f"{INTERRUPTED} on Dovecot", await cut_at_every_command(tmp_path, scenario, users))
