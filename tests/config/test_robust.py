"""Whatever stands in a config, the answer is a config or a ConfigError with places, never another exception."""

from __future__ import annotations

import copy
import re
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

from maild.config import Config, load
from maild.core.errors import ConfigError
from tests.config.test_load import EVERYTHING

ENVIRON = {"HOME": "/home/me", "MAIL": "/srv", "STATE": "/var"}
GOOD: dict[str, Any] = tomllib.loads(EVERYTHING)
Steps = tuple[str, ...]


def places(table: dict[str, Any], path: Steps = ()) -> Iterator[Steps]:
    for key, value in table.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


PLACES = list(places(GOOD))
KEY = st.text(min_size=1, max_size=12)
SCALAR = (
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.text(max_size=20)
    | st.sampled_from(
        ["", "~", "$", "~nobody-here/x", "$HOME", "/", "0s", "5m", "1K", "100%", "localhost", "none", "a@b"]
    )
)
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3))


def answer(document: dict[str, Any] | str | bytes) -> Config | list[str]:
    """The config or the complaints; anything else fails the test by being raised."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "maild.toml"
        match document:
            case bytes():
                path.write_bytes(document)
            case str():
                path.write_bytes(document.encode())
            case dict():
                path.write_bytes(tomli_w.dumps(document).encode())
        path.chmod(0o600)
        try:
            return load(path, ENVIRON)
        except ConfigError as error:
            problems = error.problems
    assert problems
    assert all(re.match(rf"{path}:[1-9][0-9]*: ", problem) for problem in problems)
    return [problem.removeprefix(f"{path}:") for problem in problems]


def with_value(path: Steps, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    table = document
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    return document


def test_the_good_one_is_good() -> None:
    assert isinstance(answer(GOOD), Config)


@given(st.sampled_from(PLACES), VALUE)
@example(("accounts", "work", "imap", "port"), 10**400)
@example(("accounts", "work", "max_deletions"), 10**400)
@example(("accounts", "work", "imap", "poll"), "999999999d")
@example(("maild", "maildir"), "~")
def test_any_value_for_any_key(path: Steps, value: Any) -> None:
    answer(with_value(path, value))


@given(st.sampled_from(PLACES), st.sampled_from([True, 7, 1.5, "text", ["x"], {"x": 1}, [{"x": 1}]]))
def test_a_value_of_a_wrong_type_is_told_at_its_key(path: Steps, value: Any) -> None:
    right: Any = GOOD
    for key in path:
        right = right[key]
    found = answer(with_value(path, value))
    if type(value) is type(right):
        return
    if isinstance(found, list):
        assert any(re.match(rf"[0-9]+: {re.escape('.'.join(path))}\b", problem) for problem in found)
    else:
        assert path[-1] in ("leave_on_server", "max_deletions")  # those take more than one type


@given(st.sampled_from(PLACES), KEY)
def test_any_key_misspelt(path: Steps, wrong: str) -> None:
    document = copy.deepcopy(GOOD)
    table = document
    for key in path[:-1]:
        table = table[key]
    if wrong in table:
        return
    table[wrong] = table.pop(path[-1])
    found = answer(document)
    assert isinstance(found, list) or path[0] == "accounts"  # an account may have any good name


@given(st.sampled_from([path for path in PLACES if len(path) != 2 or path[0] != "accounts"]), st.data())
def test_a_letter_left_out_is_told_with_what_was_meant(path: Steps, data: st.DataObject) -> None:
    name = path[-1]
    place = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:place] + name[place + 1 :]
    document = copy.deepcopy(GOOD)
    table = document
    for key in path[:-1]:
        table = table[key]
    if wrong in table or not wrong:
        return
    table[wrong] = table.pop(name)
    key = re.escape(".".join((*path[:-1], wrong)))
    found = answer(document)
    assert isinstance(found, list)
    about = [problem for problem in found if re.match(rf"[0-9]+: {key}: ", problem)]
    assert about
    assert "did you mean" in about[0] or "does not belong here" in about[0]


@given(st.text(alphabet="[]{}=.\"'#\\,\n ab1", max_size=60))
def test_any_text(text: str) -> None:
    answer(text)


@given(st.binary(max_size=40))
@example(b"\xef\xbb\xbf[accounts]")
@example(b"a = " + b"9" * 5000)
@example(b"a = " + b"[" * 2000 + b"]" * 2000)
@example(b"a = " + b"{a=" * 2000 + b"1" + b"}" * 2000)
@example(b"maild.maildir = 0x" + b"f" * 9000)
@example(b"accounts.a.max_deletions = 0x" + b"f" * 9000)
@example(b"accounts.a.imap.port = 0x" + b"f" * 9000)
def test_any_octets(raw: bytes) -> None:
    answer(raw)
