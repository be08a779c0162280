"""Key path → line, compared with where tomllib's keys really stand."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from maild.config.locate import KeyPath, Lines

DOCUMENT = (
    """\
# [not.a.table]
top = 1
"quoted key" = "a = 1 # no comment"
'literal "key"' = 'C:\\'
esc\
""".replace("esc", '"\\u0061pple" = 1.5e+3')
    + '''
dotted . key.'x' = 07:32:00

[a]   # comment
text = """
[a.b]
c = 1 \\""" "" """""
other = \'\'\'
\'\' [x] \'\'\'\'\'
date = 1979-05-27 07:32:00Z

[a.b.c]
list = [ "x", [1, 2,
  3], { k = "]", j.i = [
  4 ] }, # comment with ] and "
  "last",
]
inline = { p = 1, "q.r" = "}", s = { t = [] } }

[a.b]
late = true

[[many]]
one = 1
[[many]]
one = 1
[many.sub]
two = 2
[[many.deep]]
[[many.deep]]
three = 3
[bare-key_1.2]
4 = 5
'''
)

EXPECTED: dict[KeyPath, int] = {
    (): 1,
    ("top",): 2,
    ("quoted key",): 3,
    ('literal "key"',): 4,
    ("apple",): 5,
    ("dotted",): 6,
    ("dotted", "key", "x"): 6,
    ("a",): 8,
    ("a", "text"): 9,
    ("a", "other"): 12,
    ("a", "date"): 14,
    ("a", "b"): 24,
    ("a", "b", "c"): 16,
    ("a", "b", "c", "list"): 17,
    ("a", "b", "c", "list", 0): 17,
    ("a", "b", "c", "list", 1): 17,
    ("a", "b", "c", "list", 1, 2): 18,
    ("a", "b", "c", "list", 2): 18,
    ("a", "b", "c", "list", 2, "k"): 18,
    ("a", "b", "c", "list", 2, "j", "i"): 18,
    ("a", "b", "c", "list", 2, "j", "i", 0): 19,
    ("a", "b", "c", "list", 3): 20,
    ("a", "b", "c", "inline"): 22,
    ("a", "b", "c", "inline", "q.r"): 22,
    ("a", "b", "c", "inline", "s", "t"): 22,
    ("a", "b", "late"): 25,
    ("many",): 27,
    ("many", 0, "one"): 28,
    ("many", 1): 29,
    ("many", 1, "one"): 30,
    ("many", 1, "sub", "two"): 32,
    ("many", 1, "deep", 1): 34,
    ("many", 1, "deep", 1, "three"): 35,
    ("bare-key_1", "2", "4"): 37,
}


def paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key path of a parsed document, places in lists included."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, inner in parts:
        yield from paths(inner, (*path, part))


@pytest.mark.parametrize(("path", "line"), EXPECTED.items(), ids=str)
def test_line_of_each_key(path: KeyPath, line: int) -> None:
    assert Lines(DOCUMENT).of(path) == line


def test_the_document_has_these_keys_and_the_locator_all_of_them() -> None:
    every = set(paths(tomllib.loads(DOCUMENT)))
    assert set(EXPECTED) <= every
    assert every <= set(Lines(DOCUMENT)._known)


@pytest.mark.parametrize(
    ("path", "line"), [(("nowhere",), 1), (("a", "missing"), 8), (("many", 1, "missing"), 29), (("top", "x"), 2)]
)
def test_missing_key_has_the_line_of_its_table(path: KeyPath, line: int) -> None:
    assert Lines(DOCUMENT).of(path) == line


def test_carriage_returns_count_no_line() -> None:
    assert Lines('a = """\r\nx\r\n"""\r\nb = 1\r\n').of(("b",)) == 4


def test_empty_document() -> None:
    assert Lines("").of(("x",)) == 1


KEYS = st.text(alphabet="ab-_ .\"'\\#=[]{}ü", max_size=4)
TEXTS = st.text(alphabet="a \"'\\#=[]{},\n\r", max_size=12)
SCALARS = st.booleans() | st.integers(-99, 99) | st.floats(allow_nan=False) | st.dates() | st.times() | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.booleans())
def test_every_key_that_tomllib_sees_is_found_on_a_line_that_holds_it(
    document: dict[str, Any], multiline: bool
) -> None:
    text = tomli_w.dumps(document, multiline_strings=multiline)
    lines, rows = Lines(text), text.split("\n")
    for path in paths(tomllib.loads(text)):
        assert path in lines._known
        if path and isinstance(key := path[-1], str):
            row = rows[lines.of(path) - 1]
            assert key in row or tomli_w.dumps({key: 0}).partition(" = ")[0] in row or key in row.replace("\\", "")


@given(st.text(alphabet="ab.=[]{}\"'#,\\\n 1\r", max_size=40))
def test_whatever_tomllib_accepts_is_located_to_the_last_key(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(paths(document)) <= set(Lines(text)._known)
