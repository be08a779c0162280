"""Delays: how they grow, where they end, and what shortens or lengthens them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.backoff import reconnect_delay_s, retry_delay_s


def test_retries_double_from_a_minute_to_four_hours() -> None:
    minutes = [retry_delay_s(attempts) / 60 for attempts in range(1, 12)]
    assert minutes == [1, 2, 4, 8, 16, 32, 64, 128, 240, 240, 240]


@pytest.mark.parametrize("code", [421, 450])
def test_who_asks_for_patience_gets_it(code: int) -> None:
    assert [retry_delay_s(attempts, {code, 451}) / 60 for attempts in (1, 2, 3, 4, 5)] == [5, 5, 5, 8, 16]
    assert retry_delay_s(1, {451}) == 60


@given(st.integers(min_value=0, max_value=10**6), st.floats(0, 10**6), st.floats(0, 1))
def test_reconnects_stay_in_their_bounds(failures: int, since_first_s: float, chance: float) -> None:
    delay_s = reconnect_delay_s(failures, since_first_s, lambda: chance)
    assert 0.5 <= delay_s <= (900 if since_first_s >= 3600 else 300)


def test_reconnects_grow() -> None:
    assert [reconnect_delay_s(n, 0, lambda: 1.0) for n in (1, 2, 3, 10, 99)] == [1, 2, 4, 300, 300]
    assert reconnect_delay_s(1, 3600, lambda: 1.0) == 900
    assert reconnect_delay_s(3, 0, lambda: 0.0) == 2
