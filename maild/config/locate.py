"""On which line of a TOML file a key stands; tomllib does not tell.

Reads only text that tomllib has accepted, so it need not judge: it splits the text into words, strings and
punctuation and follows tables, dotted keys, inline tables and arrays. Strings and comments cannot fool it because
they are one token each, however many lines they have.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

KeyPath = tuple[str | int, ...]

_TOKEN = re.compile(
    r"""(?P<text>\"\"\"(?:[^\\]|\\.)*?\"{3,5}(?!\") | '''.*?'{3,5}(?!')
               | \"(?:[^\"\\\n]|\\.)*\" | '[^'\n]*')
      | (?P<comment>\#[^\n]*) | (?P<word>[A-Za-z0-9_-]+) | (?P<mark>[\[\]{}=,.\n]) """,
    re.VERBOSE | re.DOTALL,
)


class _Token(NamedTuple):
    kind: str  # text | word | mark | end
    text: str
    line: int


class Lines:
    """Key path → line, counted from 1, for one file."""

    def __init__(self, text: str) -> None:
        self._known: dict[KeyPath, int] = {(): 1}
        self._elements: dict[KeyPath, int] = {}
        self._tokens = list(_tokens(text))
        self._next = 0
        self._read_document()

    def of(self, path: KeyPath) -> int:
        """The line of a key, or of the innermost table around it that the file has."""
        while path not in self._known:
            path = path[:-1]
        return self._known[path]

    def _read_document(self) -> None:
        table: KeyPath = ()
        while (token := self._peek()).kind != "end":
            if token.text == "\n":
                self._take()
            elif token.kind == "mark":
                table = self._read_header()
            else:
                self._read_pair(table)

    def _read_header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`; its own line counts more than that of an earlier `[a.b.c]`."""
        line = self._take().line
        is_array = self._peek().text == "["
        if is_array:
            self._take()
        path = self._into_arrays(self._read_key())
        while self._peek().text == "]":
            self._take()
        if is_array:
            self._elements[path] = self._elements.get(path, -1) + 1
            self._known.setdefault(path, line)
            path = (*path, self._elements[path])
        self._remember(path[:-1], line)
        self._known[path] = line
        return path

    def _into_arrays(self, key: KeyPath) -> KeyPath:
        """Below an array of tables a header means the array's last element."""
        path: KeyPath = ()
        for part in key[:-1]:
            path = (*path, part)
            if path in self._elements:
                path = (*path, self._elements[path])
        return (*path, key[-1])

    def _read_pair(self, table: KeyPath) -> None:
        line = self._peek().line
        path = table + self._read_key()
        self._remember(path, line)
        self._take()  # the equals sign
        self._read_value(path)

    def _read_key(self) -> KeyPath:
        parts = [_unquoted(self._take())]
        while self._peek().text == "." and self._peek().kind == "mark":
            self._take()
            parts.append(_unquoted(self._take()))
        return tuple(parts)

    def _read_value(self, path: KeyPath) -> None:
        first = self._take()
        if first.kind != "mark" or first.text not in "[{":
            self._skip_scalar()
            return
        closing = "]" if first.text == "[" else "}"
        count = 0
        while (token := self._peek()).kind != "end":
            if token.kind == "mark" and token.text in (closing, ",", "\n"):
                self._take()
                if token.text == closing:
                    return
            elif closing == "]":
                self._known[(*path, count)] = token.line
                self._read_value((*path, count))
                count += 1
            else:
                self._read_pair(path)

    def _skip_scalar(self) -> None:
        """The rest of a number or date such as `1.5` or `07:32:00`, which is several tokens."""
        while (token := self._peek()).kind == "word" or token.text == ".":
            self._take()

    def _remember(self, path: KeyPath, line: int) -> None:
        for length in range(1, len(path) + 1):
            self._known.setdefault(path[:length], line)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        if token.kind != "end":
            self._next += 1
        return token


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for found in _TOKEN.finditer(text.replace("\r\n", "\n")):
        kind = found.lastgroup or ""
        if kind != "comment":
            yield _Token(kind, found[0], line)
        line += found[0].count("\n")
    yield _Token("end", "", line)


def _unquoted(token: _Token) -> str:
    """A key as tomllib gives it: quoted keys have escapes only within double quotes."""
    if token.kind != "text":
        return token.text
    if token.text.startswith("'"):
        return token.text[1:-1]
    return next(iter(tomllib.loads(f"{token.text} = 0")))
