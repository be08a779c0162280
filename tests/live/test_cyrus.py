"""A second real server, Cyrus IMAP: the contract of the port and the two-way scenarios, as on Dovecot."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from maild.local.overview import read_overview
from tests.conftest import INTERRUPTED
from tests.engine.test_twoway import (
    SCENARIOS,
    Record,
    Step,
    add_here,
    add_same_both,
    delete_both,
    move_there_flag_here,
    rename_mailbox_here,
    rename_mailbox_there,
    start,
)
from tests.engine.twin import START_S, Twin
from tests.live.store import LiveStore
from tests.live.test_port_contract import LiveAccount
from tests.live.test_twoway import LACKING, cut_at_every_command, twin_of, undergo
from tests.remote.contract import CAPABILITY_SETS, PortContract
from tests.servers.cyrus import Cyrus, CyrusMissing

pytestmark = [pytest.mark.live, pytest.mark.long]

_USERS = itertools.count(1)


@pytest.fixture(scope="module")
def cyrus() -> Iterator[Cyrus]:
    try:
        server = Cyrus()
    except CyrusMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


class TestCyrus(PortContract):
    """See the module."""

    @pytest.fixture(params=CAPABILITY_SETS)
    async def account(self, request: pytest.FixtureRequest, cyrus: Cyrus) -> AsyncIterator[LiveAccount]:
        made = LiveAccount(cyrus, f"contract-{next(_USERS)}", CAPABILITY_SETS[request.param])
        async with asyncio.timeout(30):
            yield made
            for remote in made.remotes:
                await remote.aclose()
        made.close()


def user_of(cyrus: Cyrus, name: str) -> LiveStore:
    cyrus.connect(name).logout()  # the first login makes the mailboxes
    return LiveStore(cyrus.host, cyrus.imap_port, name, cyrus.password)


def twin_on(cyrus: Cyrus, directory: Path, lacking: str) -> Twin:
    return twin_of(directory, user_of(cyrus, f"two-{next(_USERS)}"), lacking)


@pytest.mark.anyio
@pytest.mark.parametrize("lacking", LACKING)
@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one is not add_here], ids=lambda step: step.__name__)
async def test_scenario(tmp_path: Path, scenario: Step, lacking: str, cyrus: Cyrus) -> None:
    await undergo(twin_on(cyrus, tmp_path, lacking), scenario)


@pytest.mark.anyio
@pytest.mark.parametrize("lacking", LACKING)
async def test_what_it_takes_for_no_message_stays_here(tmp_path: Path, lacking: str, cyrus: Cyrus) -> None:
    """Cyrus refuses what has no header of RFC 5322, with or without MULTIAPPEND; what comes with it arrives."""
    twin = twin_on(cyrus, tmp_path, lacking)
    start(twin)
    await twin.synced()
    add_here(twin)
    report = await twin.sync()
    assert (report.total("pushed"), report.total("held_back")) == (2, 2), report
    before = twin.snapshot()
    again = await twin.sync()
    assert (again.total("pushed"), again.ok) == (0, True), again
    assert twin.snapshot() == before
    known = read_overview(twin.state_dir / "work.sqlite").mailboxes[0].held_back
    assert [withheld.reason for withheld in known] == ["the server refused APPEND: Message contains invalid header"] * 2
    for n in (12, 13):
        (path,) = [path for path in twin.files() if int(path.stat().st_mtime) == START_S + n]
        path.unlink()
    await twin.synced()
    twin.assert_equal()
    await twin.quiet()


@pytest.mark.anyio
@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("scenario", [add_same_both, delete_both, move_there_flag_here, rename_mailbox_here])
async def test_scenario_cut_at_every_command(
    tmp_path: Path, scenario: Step, cyrus: Cyrus, record_property: Record
) -> None:
    def users(name: str) -> LiveStore:
        return user_of(cyrus, f"cut-{name}")

    record_property(f"{INTERRUPTED} on Cyrus", await cut_at_every_command(tmp_path, scenario, users))


@pytest.mark.anyio
async def test_a_mailbox_renamed_there_is_renamed_here(tmp_path: Path, cyrus: Cyrus) -> None:
    """Its STATUS tells nonsense as MAILBOXID, another each time; UIDVALIDITY and UIDNEXT tell."""
    twin = twin_on(cyrus, tmp_path, "nothing")
    start(twin)
    await twin.synced()
    files = {path.stat().st_ino for path in twin.files("Archive")}
    rename_mailbox_there(twin)
    report = await twin.synced()
    assert [report.total(counter) for counter in ("pulled", "moved", "deleted")] == [0, 0, 0], report
    assert {path.stat().st_ino for path in twin.files("Old")} == files
    twin.assert_equal()
    await twin.quiet()
