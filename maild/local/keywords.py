"""The keywords of one mailbox and the letters a to z that stand for them in file names, as Dovecot keeps them.

The file `dovecot-keywords` in the mailbox's directory has a line "N keyword" per keyword, N from 0 (a) to 25 (z).
A letter is in this file, durably, before a file name uses it; a line once written is never changed or removed, so that
a file name never changes its meaning. Dovecot guards its own writing by `dovecot-uidlist.lock`, which maild does not
take: the file is read again right before it is replaced, which leaves a window of a millisecond to whoever adds a new
keyword in both programs at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from string import ascii_lowercase

from maild.core.flags import keywords_of
from maild.core.model import Flags
from maild.local.durable import replace_file

KEYWORDS_FILE = "dovecot-keywords"
_MAX_FILE_OCTETS = 1 << 20
_MAX_KEYWORD_OCTETS = 255

_Stamp = tuple[int, int, int]  # inode, mtime in ns, size


class Keywords:
    """The list of one mailbox, as the file has it by the last call of a method. Safe to use from several threads."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = None
        self._content = b""
        self._used: set[int] = set()
        self.by_letter: dict[str, str] = {}
        self.letters: dict[str, str] = {}  # keyword in lower case → letter
        self._refresh()

    def refresh(self) -> None:
        """Read the file if it changed since it was read last."""
        with self._lock:
            self._refresh()

    def assign(self, flags: Iterable[Flags]) -> None:
        """Give every keyword in `flags` a letter, as long as there are any, and make that durable."""
        wanted = frozenset().union(*flags)
        with self._lock:
            self._refresh()
            missing = self._without_letter(wanted)
            free = sorted(set(range(len(ascii_lowercase))) - self._used)
            lines = [f"{number} {keyword}\n" for number, keyword in zip(free, missing, strict=False)]
            if lines:
                self._append("".join(lines).encode())

    def unrepresentable(self, flags: Flags) -> frozenset[str]:
        """Those keywords that no file name can carry: all letters are taken, or it cannot stand in the list."""
        keywords = keywords_of(flags)
        if not keywords:
            return frozenset()  # as most are: the file need not be looked at
        with self._lock:
            self._refresh()
            missing = self._without_letter(flags)
            fitting = missing[: len(ascii_lowercase) - len(self._used)]
            have = {keyword for keyword in keywords if keyword.lower() in self.letters}
        return frozenset(keywords) - have - frozenset(fitting)

    def _without_letter(self, flags: Flags) -> list[str]:
        """Keywords that could get a letter, one spelling each."""
        missing = {
            keyword.lower(): keyword
            for keyword in reversed(keywords_of(flags))
            if keyword.lower() not in self.letters and _can_be_listed(keyword)
        }
        return [missing[folded] for folded in sorted(missing)]

    def _refresh(self) -> None:
        try:
            status = os.stat(KEYWORDS_FILE, dir_fd=self._top, follow_symlinks=False)
        except FileNotFoundError:
            stamp, content = None, b""
        else:
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            content = self._read()
        self._stamp, self._content = stamp, content
        self._parse()

    def _read(self) -> bytes:
        descriptor = os.open(
            KEYWORDS_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._top
        )
        try:
            return os.read(descriptor, _MAX_FILE_OCTETS)
        finally:
            os.close(descriptor)

    def _parse(self) -> None:
        by_letter: dict[str, str] = {}
        self._used = set()
        for line in self._content.split(b"\n"):
            number, _, keyword = line.partition(b" ")
            if not number.isdigit() or not keyword or int(number[:3]) >= len(ascii_lowercase):
                continue
            self._used.add(int(number))
            try:
                by_letter[ascii_lowercase[int(number)]] = keyword.decode()
            except UnicodeDecodeError:
                continue  # the letter is taken, what it means cannot be told
        self.letters = {keyword.lower(): letter for letter, keyword in sorted(by_letter.items(), reverse=True)}
        self.by_letter = by_letter

    def _append(self, lines: bytes) -> None:
        """Replace the file by itself and `lines`. Its mtime grows by a second at least: Dovecot sees no less."""
        content = self._content if not self._content or self._content.endswith(b"\n") else self._content + b"\n"
        mtime_s = int(time.time())
        if self._stamp is not None:
            mtime_s = max(mtime_s, self._stamp[1] // 1_000_000_000 + 1)
        replace_file(self._top, KEYWORDS_FILE, content + lines, mtime_s=mtime_s)
        self._refresh()


def _can_be_listed(keyword: str) -> bool:
    """Dovecot reads a line up to its end, and a keyword is an IMAP atom: nothing invisible, no space."""
    return keyword.isprintable() and " " not in keyword and len(keyword.encode()) <= _MAX_KEYWORD_OCTETS
