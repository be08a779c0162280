"""What is read plainly is what tomllib reads; what tomllib refuses, or reads otherwise, is not read plainly."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.config.plain import NotPlain, texts

CONFIG = """\
# the mail of two people
[maild]
state_dir = "~/state"   # "here"
[accounts.work]
address = 'me@example.org'
aliases = ["a@example.org", 'b@example.org', ]
[accounts.work.imap]
\thost = "imap.example.org"
port = 993
password_command = [ "pass", "mail/#work" ]
[accounts.list.smtp]
[accounts.list]
allow_plaintext = true
"""


def whole(table: dict[str, object]) -> dict[str, object]:
    """What tomllib read, with None for what is no text."""
    return {
        key: whole(value) if isinstance(value, dict) else value if isinstance(value, str) else None
        for key, value in table.items()
    }


def test_the_usual_config() -> None:
    assert texts(CONFIG) == whole(tomllib.loads(CONFIG))
    assert texts(CONFIG.replace("\n", "\r\n")) == texts(CONFIG)


def test_the_example_is_read_plainly() -> None:
    example = (Path(__file__).parents[2] / "config/maild.toml").read_text()
    assert texts(example) == whole(tomllib.loads(example))


@pytest.mark.parametrize(
    "text",
    [
        "a = 1\na = 2",
        "[a]\n[a]",
        "a = 1\n[a]",
        "a = 1\n[a.b]",
        "[a.b]\nc = 1\n[a]\nb = 2",
        "[[a]]",
        "a.b = 1",
        '"a" = 1',
        '["a"]',
        'a = "\\u0041"',
        'a = """x"""',
        "a = '''x'''",
        "a = [\n1]",
        "a = [1, [2]]",
        'a = { b = "c" }',
        "a = 1.5",
        "a = 007",
        "a = 1979-05-27",
        "a = 1 b = 2",
        "a =",
        "a",
        'a = "x',
        'a = "\x07"',
        "# \x07",
        "a = 1\r# lone",
        "a = [1,,2]",
        "a = [,]",
        "[a] b = 1",
        "[]",
    ],
)
def test_what_is_not_plain_or_wrong_is_left_to_tomllib(text: str) -> None:
    with pytest.raises(NotPlain):
        texts(text)


@given(st.lists(st.sampled_from(sorted({*CONFIG, *"\\\"'[]{}.=#,\n\x00é\u2028"})), max_size=60).map("".join))
def test_whatever_is_read_plainly_is_the_same_there(text: str) -> None:
    _compare(text)


@given(st.data())
def test_whatever_becomes_of_the_usual_config(data: st.DataObject) -> None:
    lines = data.draw(st.lists(st.sampled_from(CONFIG.splitlines()), max_size=12))
    text = "\n".join(lines)
    at = data.draw(st.integers(0, len(text)))
    some = data.draw(st.text(st.sampled_from("\\\"'[]{}.=#, \t\n\rx7\x00\x7fé\u2028"), max_size=4))
    _compare(text[:at] + some + text[at + data.draw(st.integers(0, 4)) :])


def _compare(text: str) -> None:
    try:
        found = texts(text)
    except NotPlain:
        return
    assert found == whole(tomllib.loads(text))
