"""What changed on this disk, cheaply: which mailbox directories there are, and whether anything in one has changed.

The mtime of a directory rises with every name made, renamed or removed in it, so one that is as it was has nothing new;
unless the change came in the same tick of the clock as the last look, which `is_settled` tells.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self

from maild.core.names import NESTED
from maild.local.directory import MailboxDirectory, translated
from maild.local.durable import disk_error
from maild.local.keywords import KEYWORDS_FILE
from maild.local.scan import MTIME_TICK_NS

_SECOND_NS = 1_000_000_000
_WHOLE_SECONDS_NS = 2 * _SECOND_NS
_OWN = frozenset({"cur", "new", "tmp"})
_ROUNDS = 3
_MAX_DEPTH = 100  # one descriptor each; names as long as the path allows may have more levels
_MAX_DIRECTORIES = 100_000
_INSIDE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a mailbox's directory looked like: inode and mtime of `cur` and `new`, mtime and size of the keywords."""

    cur_inode: int
    cur_ns: int
    new_inode: int
    new_ns: int
    keywords_ns: int = 0
    keywords_octets: int = 0

    def text(self) -> str:
        """For the state; `read` takes it back."""
        return (
            f"{self.cur_inode} {self.cur_ns} {self.new_inode} {self.new_ns} {self.keywords_ns} {self.keywords_octets}"
        )

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The stamp that `text` gave this, None for any other text."""
        try:
            stamp = cls(*map(int, text.split(" ")))
        except (ValueError, TypeError):
            return None
        return stamp if stamp.text() == text else None


def stamp_of(directory: MailboxDirectory) -> Stamp:
    """The stamp of an open mailbox. Taken before its files are read: what changes later then shows."""
    with translated("read", directory.path):
        return _stamp(os.fstat(directory.cur), os.fstat(directory.new), directory.top)


def is_settled(stamp: Stamp, now_ns: int) -> bool:
    """Whether a change after `now_ns` is sure to give another stamp. One that is not settled proves nothing later.

    `now_ns` is when the stamp was taken, since 1970 UTC. The list of keywords only grows, so its size tells.
    """
    return all(_is_past(changed_ns, now_ns) for changed_ns in (stamp.cur_ns, stamp.new_ns))


def _is_past(changed_ns: int, now_ns: int) -> bool:
    tick_ns = MTIME_TICK_NS if changed_ns % _SECOND_NS else _WHOLE_SECONDS_NS
    return changed_ns < now_ns - tick_ns


@dataclass(frozen=True, slots=True)
class LocalMailbox:
    """A mailbox's directory: where it is below the account's Maildir ("." is that itself), and what it looks like.

    `identity` is device and inode of its `cur`: it stays the same when somebody renames the directory.
    """

    directory: str
    stamp: Stamp
    identity: str


@dataclass(frozen=True, slots=True)
class Survey:
    """The mailboxes of an account's Maildir by directory; and where there may be more, with the reason in words."""

    mailboxes: dict[str, LocalMailbox] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def doubt(self, directory: str) -> str | None:
        """Why a mailbox that is not in `mailboxes` may be there all the same; None: it is gone."""
        path = PurePosixPath(directory)
        for place in (path, *path.parents):
            if str(place) in self.unreadable:
                return self.unreadable[str(place)]
        return None


def survey(root: Path, layout: str) -> Survey:
    """Every mailbox directory of an account's Maildir, in a few system calls each. Raises LocalError.

    Nothing is followed through a symlink. What cannot be read, is no whole mailbox, or is too deep is in `unreadable`.
    A directory that is renamed meanwhile might be seen under neither name: then everything is looked at once more.
    """
    walk, is_certain, rounds = _Walk(layout), False, 0
    while not is_certain and rounds < _ROUNDS:
        walk, rounds = _Walk(layout), rounds + 1
        started_ns = time.time_ns()
        try:
            walk.root(root)
            is_certain = walk.was_still(root, started_ns)
        except OSError as exc:
            raise disk_error(exc, "read", root) from exc
    return walk.found


class _Walk:
    """One round through the directories."""

    def __init__(self, layout: str) -> None:
        self.found = Survey()
        self._is_nested = layout == NESTED
        self._visited = 0
        self._parents: list[tuple[str, int]] = []  # directories with others in them, and their mtimes

    def root(self, root: Path) -> None:
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            children = self._read(top, "." if not self._is_nested else "")
            for name in children:
                if self._is_nested or name.startswith("."):
                    self._visit(name, top, name, 1)
        finally:
            os.close(top)

    def was_still(self, root: Path, started_ns: int) -> bool:
        """Whether no directory was renamed during the round; what moves leaves a parent, whose mtime shows it."""
        for path, changed_ns in self._parents:
            try:
                if os.stat(root / path, follow_symlinks=path == "").st_mtime_ns != changed_ns:
                    return False
            except FileNotFoundError:
                return False
            if changed_ns >= started_ns - MTIME_TICK_NS:
                return False
        return True

    def _visit(self, name: str, parent: int, path: str, depth: int) -> None:
        """Look into a directory and, in the nested layout, into those below it."""
        self._visited += 1
        if self._visited > _MAX_DIRECTORIES:
            self._doubt(".", f"the Maildir has more than {_MAX_DIRECTORIES} directories; maild looks no further")
            return
        if depth > _MAX_DEPTH:
            self._doubt(path, f"the Maildir has more than {_MAX_DEPTH} levels; maild looks no further")
            return
        try:
            top = os.open(name, _INSIDE, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as exc:
            self._doubt(path, _reason(exc))
            return
        try:
            for child in self._children(top, path):
                self._visit(child, top, f"{path}/{child}", depth + 1)
        finally:
            os.close(top)

    def _children(self, top: int, path: str) -> list[str]:
        try:
            return self._read(top, path)
        except OSError as exc:
            self._doubt(path, _reason(exc))
            return []

    def _read(self, top: int, path: str) -> list[str]:
        """Note the mailbox in an open directory if there is one; the names of the directories to look into."""
        changed_ns = os.fstat(top).st_mtime_ns
        names: set[str] = set()
        children: list[str] = []
        with os.scandir(top) as items:
            for item in items:
                if item.name in _OWN or item.name == KEYWORDS_FILE:
                    names.add(item.name)
                elif self._may_be_mailbox(item.name, path):
                    if item.is_dir(follow_symlinks=False):
                        children.append(item.name)
                    elif item.is_symlink():
                        self._doubt(_join(path, item.name), "it is a symlink: inside a Maildir maild follows none")
        if children or path in ("", "."):
            self._parents.append((path if path != "." else "", changed_ns))
        if path and ("cur" in names or "new" in names):
            self._note(top, path, KEYWORDS_FILE in names)
        return children

    def _may_be_mailbox(self, name: str, parent: str) -> bool:
        """In the nested layout a leading dot is percent-encoded; in Maildir++ the name of all but INBOX has one."""
        if self._is_nested:
            return not name.startswith(".")
        return parent == "." and name.startswith(".")

    def _note(self, top: int, path: str, has_keywords: bool) -> None:
        try:
            cur, new = (os.stat(name, dir_fd=top, follow_symlinks=False) for name in ("cur", "new"))
        except FileNotFoundError:
            self._doubt(path, "it has only one of `cur` and `new`: make the other, or remove this one")
            return
        if not (stat.S_ISDIR(cur.st_mode) and stat.S_ISDIR(new.st_mode)):
            self._doubt(path, "its `cur` or `new` is no directory; inside a Maildir maild follows no symlinks")
        elif not _is_text(path):
            self._doubt(path, "its name is not UTF-8: rename it")
        else:
            stamp = _stamp(cur, new, top if has_keywords else None)
            self.found.mailboxes[path] = LocalMailbox(path, stamp, f"{cur.st_dev}:{cur.st_ino}")

    def _doubt(self, path: str, reason: str) -> None:
        self.found.unreadable[path.encode("utf-8", "backslashreplace").decode()] = reason


def _stamp(cur: os.stat_result, new: os.stat_result, top: int | None) -> Stamp:
    """`top`: the mailbox's directory where a list of keywords may be in it."""
    times = (cur.st_ino, cur.st_mtime_ns, new.st_ino, new.st_mtime_ns)
    if top is None:
        return Stamp(*times)
    try:
        keywords = os.stat(KEYWORDS_FILE, dir_fd=top, follow_symlinks=False)
    except FileNotFoundError:
        return Stamp(*times)
    return Stamp(*times, keywords.st_mtime_ns, keywords.st_size)


def _join(path: str, name: str) -> str:
    return name if path in ("", ".") else f"{path}/{name}"


def _reason(exc: OSError) -> str:
    return exc.strerror or str(exc)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
