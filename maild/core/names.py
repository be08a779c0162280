"""Mailbox names: as the server sends them, as directories below the account's Maildir, as patterns select them.

Nothing a server can send leaves the account's Maildir: `directory` is injective and yields neither an absolute
path nor a ".." nor a directory that a Maildir needs for itself.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from maild.core.errors import LocalError, Scope

NESTED = "nested"
MAILDIR_PLUS_PLUS = "maildir++"

_INBOX = "INBOX"
_MAX_COMPONENT_OCTETS = 255  # NAME_MAX of every file system in use
_MAX_PATH_OCTETS = 3072  # leaves room in PATH_MAX (4096) for the account's Maildir before it and a file name after it
_RESERVED = frozenset({"cur", "new", "tmp", "dovecot-keywords"})  # what a mailbox directory itself contains
_EMPTY_LEVEL = "%"  # no other level is written so: a "%" of a name becomes %25
_UNSAFE = re.compile("[/%\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UNSAFE_PLUS_PLUS = re.compile("[./%\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPES = re.compile("(?:%[0-9A-F]{2})+")
_SHIFTED = re.compile("&([^&-]*)-")
_TO_SHIFT = re.compile("&|[^ -~]+")


class MailboxUnusable(LocalError):
    """One mailbox cannot be kept on this disk; the account's other mailboxes can."""

    scope = Scope.MAILBOX


def decode_mutf7(wire: bytes) -> str | None:
    """A mailbox name in modified UTF-7 as text, None when it is not valid (RFC 3501 §5.1.3).

    Only the one right spelling of a name is valid, so `encode_mutf7` gives the same octets back.
    """
    try:
        name = _SHIFTED.sub(_unshifted, wire.decode("ascii"))
    except ValueError:  # not ASCII, not base64, not UTF-16: each raises a subclass
        return None
    return name if encode_mutf7(name) == wire else None


def encode_mutf7(name: str) -> bytes:
    """A mailbox name in modified UTF-7, as the server wants it (RFC 3501 §5.1.3)."""
    return _TO_SHIFT.sub(_shifted, name).encode("ascii")


def _unshifted(run: re.Match[str]) -> str:
    if not run[1]:
        return "&"
    padding = "=" * (-len(run[1]) % 4)
    return base64.b64decode(run[1].replace(",", "/") + padding).decode("utf-16-be")


def _shifted(run: re.Match[str]) -> str:
    if run[0] == "&":
        return "&-"
    encoded = base64.b64encode(run[0].encode("utf-16-be", "surrogatepass")).decode("ascii")
    return "&" + encoded.rstrip("=").replace("/", ",") + "-"


def directory(levels: tuple[str, ...], layout: str) -> PurePosixPath:
    """Where a mailbox lives, relative to the account's Maildir; "." is that Maildir itself (maildir++ INBOX).

    Different levels never share a directory. Raises `MailboxUnusable` for a name that no file system could hold.
    """
    if not levels:
        raise MailboxUnusable("the server lists a mailbox without a name")
    if layout == NESTED:
        components = [_component(level, _UNSAFE) for level in levels]
    elif levels == (_INBOX,):
        components = []
    else:
        components = ["." + ".".join(_component(level, _UNSAFE_PLUS_PLUS) for level in levels)]
    _check_lengths(components, levels)
    return PurePosixPath(*components)


def levels_from(directory: PurePosixPath, layout: str) -> tuple[str, ...]:
    """The mailbox levels that `directory` is for; what maild would not have written itself is taken as it stands."""
    if layout == NESTED:
        return tuple(_level(component) for component in directory.parts)
    if not directory.name:
        return (_INBOX,)
    return tuple(_level(component) for component in directory.name[1:].split("."))


def _component(level: str, unsafe: re.Pattern[str]) -> str:
    if not level:
        return _EMPTY_LEVEL
    escaped = unsafe.sub(lambda character: _percent(character[0]), level)
    if escaped.startswith(".") or escaped in _RESERVED:
        return _percent(escaped[0]) + escaped[1:]
    return escaped


def _percent(character: str) -> str:
    return "".join(f"%{octet:02X}" for octet in character.encode("utf-8", "surrogatepass"))


def _level(component: str) -> str:
    return "" if component == _EMPTY_LEVEL else _ESCAPES.sub(_unpercented, component)


def _unpercented(escapes: re.Match[str]) -> str:
    try:
        return bytes.fromhex(escapes[0].replace("%", "")).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return escapes[0]


def _check_lengths(components: list[str], levels: tuple[str, ...]) -> None:
    lengths = [len(component.encode()) for component in components]
    if max(lengths, default=0) <= _MAX_COMPONENT_OCTETS and sum(lengths) + len(lengths) <= _MAX_PATH_OCTETS:
        return
    shown = repr("/".join(levels))
    raise MailboxUnusable(
        f"the name of mailbox {shown[:60]}… is too long for a directory"
        f" ({max(lengths)} octets in one level of at most {_MAX_COMPONENT_OCTETS}, {sum(lengths)} in all)",
        "rename it on the server, or leave it out with `mailboxes`",
    )


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a decoded mailbox name is selected: the last pattern that fits decides, "!" before it excludes.

    "*" stands for any characters, separators included, "?" for one; everything else for itself.
    INBOX is the one name without regard to case (RFC 9051 §5.1).
    """
    selected = False
    is_inbox = name.upper() == _INBOX
    for pattern in patterns:
        glob = pattern.removeprefix("!")
        if _fits(name.upper(), glob.upper()) if is_inbox else _fits(name, glob):
            selected = not pattern.startswith("!")
    return selected


def _fits(name: str, glob: str) -> bool:
    """Match without backtracking beyond the last "*": a hostile name costs at most len(name) * len(glob) steps."""
    at = position = 0
    star, resume = -1, 0
    while at < len(name):
        wanted = glob[position : position + 1]
        if wanted == "*":
            star, resume = position, at
            position += 1
        elif wanted == "?" or wanted == name[at]:
            at += 1
            position += 1
        elif star >= 0:
            resume += 1
            at, position = resume, star + 1
        else:
            return False
    return not glob[position:].strip("*")
