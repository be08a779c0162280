"""A Maildir as a stranger reads it, to compare it with the store of a server.

The standard library's `mailbox` does the reading, so that nothing vouches for itself; of maild only the meaning of
names and letters is used, as `core.names` and `core.flags` have it.
"""

from __future__ import annotations

import mailbox
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from maild.core.flags import from_letters
from maild.core.names import NESTED, directory
from maild.testing.store import Message, Store


class Shape(NamedTuple):
    """What both sides have to agree on: LF line ends; INTERNALDATE there, mtime here, in seconds since 1970."""

    octets: bytes
    flags: frozenset[str]
    date_s: int


_RESPECTS: tuple[tuple[str, Callable[[Shape], object]], ...] = (
    ("other octets", lambda shape: shape.octets),
    ("other flags or keywords", lambda shape: (shape.octets, shape.flags)),
    ("another date", lambda shape: shape),
)


def difference(store: Store, root: Path, layout: str = NESTED) -> str:
    """How an account's Maildir differs from what is on the server, in words; "" where it does not.

    The first mailbox that differs is told, with the first respect in which it does and in how many messages.
    """
    expected: set[Path] = set()
    for there in store.mailboxes:
        levels = tuple(there.name.split(store.separator)) if store.separator else (there.name,)
        path = root / directory(levels, layout)
        expected.add(path)
        try:
            found = read(path)
        except (OSError, ValueError, mailbox.Error) as exc:
            return f"{path} cannot be read as a Maildir: {exc!r}"
        if told := _difference(list(map(_shape, there)), found):
            return f"mailbox {there.name} is not here what it is there: {told}"
    if more := sorted(set(mailboxes(root)) - expected):
        return f"the server has no mailbox for {more[0]}"
    return ""


def mailboxes(root: Path) -> list[Path]:
    """The directories of the mailboxes on disk, in order."""
    return sorted(path for path in (root, *root.rglob("*")) if (path / "cur").is_dir())


def read(path: Path) -> list[Shape]:
    """Every message of one mailbox's directory. Raises OSError, ValueError or mailbox.Error where it is no Maildir."""
    keywords = _keywords(path / "dovecot-keywords")
    reader = mailbox.Maildir(path, create=False)
    shapes = []
    for key, message in reader.iteritems():
        flags = from_letters(message.get_flags(), keywords)
        shapes.append(Shape(reader.get_bytes(key), flags, int(message.get_date())))
    return shapes


def _keywords(path: Path) -> dict[str, str]:
    """Letter → keyword, from lines such as `0 $Work`."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    numbered = (line.split(" ", 1) for line in lines)
    return {chr(ord("a") + int(number)): keyword for number, keyword in numbered}


def _shape(message: Message) -> Shape:
    return Shape(message.raw.replace(b"\r\n", b"\n"), message.flags, message.date_s)


def _difference(there: list[Shape], here: list[Shape]) -> str:
    if len(there) != len(here):
        return f"{len(here)} messages, not {len(there)}"
    for respect, view in _RESPECTS:
        if others := Counter(map(view, here)) - Counter(map(view, there)):
            return f"{others.total()} of {len(here)} messages with {respect}"
    return ""
