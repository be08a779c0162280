"""Where in an account's Maildir the files are that one of its mailboxes does not have any more.

A reader moves a message by renaming its file, which keeps the key, or by writing a copy and removing the first, which
does not. The first is found by key, the second by content.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from maild.core.flags import split_info
from maild.core.identity import identify
from maild.core.model import Key
from maild.local.directory import translated
from maild.local.maildir import Maildir
from maild.local.scan import Entry

_READ_OCTETS = 1 << 20
_NO_MESSAGE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Content = tuple[int, bytes]  # size and digest of a message's content


def find_elsewhere(root: Path, wanted: Mapping[Key, Content | None], others: Collection[Key]) -> dict[Key, Key]:
    """Which of these messages are somewhere below the account's Maildir: the key asked for → the key it has there.

    All mailboxes are read, whatever they are called. A file stands for one message only, and those called `others` for
    none of these. Symlinks are not followed. Raises LocalError.
    """
    with translated("look for moved messages in", root):
        found = _by_key(root, wanted)
        left = {key: content for key, content in wanted.items() if key not in found and content is not None}
        return found | _by_content(root, left, {*found.values(), *others}) if left else found


def _by_key(root: Path, wanted: Mapping[Key, Content | None]) -> dict[Key, Key]:
    found: dict[Key, Key] = {}
    for entry in _messages(root):
        key = split_info(entry.name)[0]
        if key in wanted:
            found[key] = key
    return found


def _by_content(root: Path, wanted: Mapping[Key, Content], taken: set[Key]) -> dict[Key, Key]:
    """Messages by size and digest. Files with CRLF line ends are as big as their content only if they have no CR."""
    by_content: dict[Content, list[Key]] = defaultdict(list)
    for key, content in wanted.items():
        by_content[content].append(key)
    sizes = {size for size, _ in by_content}
    found: dict[Key, Key] = {}
    for entry in _messages(root):
        key = split_info(entry.name)[0]
        if key in taken or _size(entry) not in sizes:
            continue
        keys = by_content.get(_content(entry.path) or (0, b""))
        if keys:
            found[keys.pop()] = key
    return found


def _messages(root: Path) -> Iterator[os.DirEntry[str]]:
    """Every file in a `cur` or `new` below the Maildir."""
    for directory, _, _ in os.walk(root, onerror=_raise):
        if os.path.basename(directory) not in ("cur", "new"):
            continue
        with os.scandir(directory) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))


def _raise(exc: OSError) -> None:
    """What cannot be read may hold any of them. But for what a reader removed meanwhile."""
    if not isinstance(exc, FileNotFoundError):
        raise exc


def _size(entry: os.DirEntry[str]) -> int:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # a reader renamed it meanwhile
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _content(path: str) -> Content | None:
    try:
        descriptor = os.open(path, _NO_MESSAGE)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb", buffering=0) as file:
        identity = identify(iter(lambda: file.read(_READ_OCTETS), b""))
    return identity.size_octets, identity.digest


def changed_since(maildir: Maildir, entries: Mapping[Key, Entry], since_s: float) -> dict[Key, Entry]:
    """Those of a mailbox's files that got their name, flags or content since then (seconds since 1970 UTC)."""
    found: dict[Key, Entry] = {}
    with translated("read", maildir.path):
        for key, entry in entries.items():
            with suppress(FileNotFoundError):  # a reader renamed it: then it is not what a crash left behind
                descriptor = maildir.directory.descriptor(entry.subdir)
                if os.stat(entry.name, dir_fd=descriptor, follow_symlinks=False).st_ctime >= since_s:
                    found[key] = entry
    return found
