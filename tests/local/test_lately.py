"""What has left the outbox, remembered for as long as its copy might be taken for another message's."""

from __future__ import annotations

from pathlib import Path

import pytest

from maild.core.likeness import Marks
from maild.local import lately
from maild.local.lately import KEPT_S, NAME, Lately, add, read

NOW = 1_800_000_000


def marks(number: int) -> Marks:
    return Marks(f"id {number}", f"traits {number}")


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read(tmp_path) == Lately(0, {})
    add(tmp_path, {"one": marks(1), "two": marks(2)}, NOW)
    add(tmp_path, {"two": marks(2), "three": marks(3)}, NOW + 1.5)
    left = {"one": (NOW, marks(1)), "two": (NOW + 1, marks(2)), "three": (NOW + 1, marks(3))}
    assert read(tmp_path) == Lately(0, left)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_what_is_old_is_forgotten_and_it_is_known_since_when(tmp_path: Path) -> None:
    add(tmp_path, {"old": marks(1)}, NOW)
    add(tmp_path, {"new": marks(2)}, NOW + 9)
    add(tmp_path, {"last": marks(3)}, NOW + KEPT_S)
    assert (read(tmp_path).since_s, [*read(tmp_path).left]) == (NOW, ["new", "last"])
    add(tmp_path, {}, NOW + KEPT_S + 5)
    assert read(tmp_path).since_s == NOW


def test_there_are_never_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lately, "MOST", 3)
    for number in range(5):
        add(tmp_path, {str(number): marks(number)}, NOW + number)
    assert (read(tmp_path).since_s, [*read(tmp_path).left]) == (NOW + 1, ["2", "3", "4"])


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"{",
        b"[]",
        b'{"since": 1}',
        b'{"since": 1, "left": [["a", 1]]}',
        b'{"since": 1e999, "left": []}',
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_damaged_it_tells_of_nothing_up_to_now(tmp_path: Path, octets: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lately.time, "time", lambda: NOW + 0.5)
    (tmp_path / NAME).write_bytes(octets)
    assert read(tmp_path) == Lately(NOW, {})
    add(tmp_path, {"one": marks(1)}, NOW + 9)
    assert read(tmp_path) == Lately(NOW, {"one": (NOW + 9, marks(1))})
