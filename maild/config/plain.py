"""TOML as nearly every config has it, read by one pattern a line: in less time than `tomllib` takes to be imported.

What goes beyond it (escapes, several lines, inline tables, dotted or quoted keys, dates) is left to `tomllib`, and so
is all that might be wrong: what is read here is valid TOML, and says the same there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Table = dict[str, object]

_KEY = "[A-Za-z0-9_-]+"
_VALUE = r"""(?:"[^"\\\x00-\x08\x0a-\x1f\x7f]*"|'[^'\x00-\x08\x0a-\x1f\x7f]*'|true|false|0|[1-9][0-9]{0,8})"""
_ARRAY = rf"\[[ \t]*(?:{_VALUE}[ \t]*,[ \t]*)*(?:{_VALUE}[ \t]*)?\]"
_LINE = re.compile(
    rf"[ \t]*(?:\[({_KEY}(?:\.{_KEY})*)\]|({_KEY})[ \t]*=[ \t]*({_VALUE}|{_ARRAY}))?"
    r"[ \t]*(?:#[^\x00-\x08\x0a-\x1f\x7f]*)?"
)


class NotPlain(Exception):
    """It takes a whole parser."""


def texts(text: str) -> Table:
    """The tables of a file and the texts in them; other values are there as None. Raises NotPlain."""
    tables: Table = {}
    here, seen = tables, {""}
    for line in text.replace("\r\n", "\n").split("\n"):
        if (found := _LINE.fullmatch(line)) is None:
            raise NotPlain
        header, key, value = found.groups()
        if header is not None:
            if header in seen:
                raise NotPlain
            seen.add(header)
            here = _table(tables, header.split("."))
        elif key is not None:
            if key in here:
                raise NotPlain
            here[key] = value[1:-1] if value[0] in "\"'" else None
    return tables


def _table(tables: Table, names: Iterable[str]) -> Table:
    for name in names:
        inner = tables.setdefault(name, {})
        if not isinstance(inner, dict):
            raise NotPlain
        tables = inner
    return tables
