"""POP3 against a Courier: another implementation's listing, sizes and QUIT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import cast

import pytest

from tests.bench import corpus
from tests.live.test_pop3 import PopClient
from tests.live.test_trouble import killed_after
from tests.servers.courier import Courier, CourierMissing
from tests.servers.dovecot import Dovecot
from tests.servers.proxy import FaultProxy

pytestmark = [pytest.mark.live, pytest.mark.long]


@pytest.fixture
def courier() -> Iterator[Courier]:
    try:
        with Courier() as server:
            yield server
    except CourierMissing as missing:
        pytest.skip(f"no Courier: {missing}")


@pytest.fixture
def pop(courier: Courier, tmp_path: Path) -> PopClient:
    return PopClient(tmp_path, cast("Dovecot", courier), courier.user)  # all that is used of it both have


def filled(courier: Courier, start: int, count: int) -> Counter[bytes]:
    messages = list(corpus.mail(start + count))[start:]
    courier.deliver((f"1700000000.{one.number}.courier", one.disk_form()) for one in messages)
    return Counter(one.disk_form() for one in messages)


def test_five_hundred_messages_over_ten_polls(courier: Courier, pop: PopClient) -> None:
    expected: Counter[bytes] = Counter()
    for n in range(10):
        expected += filled(courier, 50 * n, 50)
        assert pop.counts()["pulled"] == 50
        assert pop.everything() == expected
    assert pop.sync().startswith("work: nothing new")
    assert courier.messages() == expected


def test_killed_and_cut_at_any_moment_where_nothing_is_left_there(courier: Courier, pop: PopClient) -> None:
    expected = filled(courier, 0, 200)
    pop.settings = "leave_on_server = false"
    random = Random(4711)
    total = sum(map(len, expected))
    with FaultProxy(courier.pop3_port) as proxy:
        pop.port = proxy.port
        for _ in range(6):
            killed_after(pop, proxy, random.randrange(1, total // 6))
            there, here = courier.messages(), pop.everything()
            assert here <= expected, "half a message, or one twice"
            assert expected <= there + here, "a message is gone"
        proxy.cut_after(random.randrange(1, total // 6), reset=True)
        pop.run()
        pop.sync()
    assert pop.everything() == expected
    assert courier.messages() == Counter()


def test_the_state_is_lost(courier: Courier, pop: PopClient) -> None:
    expected = filled(courier, 0, 60)
    pop.sync()
    for path in pop.state_dir.iterdir():
        path.unlink()
    counts = pop.counts()
    assert (counts["pulled"], counts["adopted"]) == (0, 60)
    assert pop.everything() == expected
