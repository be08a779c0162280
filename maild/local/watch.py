"""Changes on this disk, heard of as they are made (inotify(7)); hints only: a look at the directory finds what it was.

One inotify instance serves all accounts of the process. Watched are `cur` and `new` of every mailbox, every directory
in which a new mailbox may appear, and those above the Maildir, which may be moved away with it. A reader's burst of
renames becomes one hint: it is given when nothing has happened for `SETTLE_S`, or `BURST_S` after its first event. What
the kernel could not tell (a queue that overflowed, no more watches to be had) becomes the hint to look at everything.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread

from maild.core.errors import LocalError
from maild.core.names import NESTED
from maild.local.durable import disk_error

SETTLE_S = 0.03
BURST_S = 0.3

_CREATE, _DELETE, _MOVED_FROM, _MOVED_TO = 0x100, 0x200, 0x40, 0x80
_DELETE_SELF, _MOVE_SELF, _UNMOUNT, _OVERFLOW, _IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
_ONLYDIR, _DONT_FOLLOW, _EXCL_UNLINK = 0x1000000, 0x2000000, 0x4000000
_IN_MAILBOX = _CREATE | _DELETE | _MOVED_FROM | _MOVED_TO | _ONLYDIR | _DONT_FOLLOW | _EXCL_UNLINK
_IN_TREE = _IN_MAILBOX | _DELETE_SELF | _MOVE_SELF
_ISDIR, _MASK_ADD = 0x40000000, 0x20000000
_ABOVE = _DELETE_SELF | _MOVE_SELF | _ONLYDIR | _MASK_ADD  # it may be watched for another reason, too
_CLOSE_ON_EXEC_AND_NONBLOCK = os.O_CLOEXEC | os.O_NONBLOCK
_HEAD = struct.Struct("iIII")  # wd, mask, cookie, length of the name
_READ_OCTETS = 64 * 1024
_MESSAGES = ("cur", "new")

Hint = frozenset[str] | None  # directories of mailboxes as `local.survey` names them; None: look at everything


@dataclass(slots=True, eq=False)
class TreeWatch:
    """What has changed below one account's Maildir since it was asked last.

    `is_complete` is False where not everything could be watched, so that somebody has to look now and then. Once the
    Maildir itself is gone, or another is in its place, nothing is heard any more: `hint` raises LocalError.
    """

    root: Path
    layout: str
    is_complete: bool = True
    _changed: set[str] = field(default_factory=set)
    _is_all: bool = False
    _is_over: bool = False
    _first_s: float = 0.0
    _moved: anyio.Event = field(default_factory=anyio.Event)

    async def hint(self) -> Hint:
        """Wait for a change, and until the burst it belongs to is over. Raises LocalError."""
        while not self._changed and not self._is_all:
            await self._event()
        if self._is_over:
            raise LocalError(
                f"{self.root} was moved, removed or unmounted", "changes in it are not heard of until it is back"
            )
        while anyio.current_time() < self._first_s + BURST_S:
            with anyio.move_on_after(SETTLE_S) as quiet:
                await self._event()
            if quiet.cancelled_caught:
                break
        changed, self._changed = frozenset(self._changed), set()
        is_all, self._is_all = self._is_all, False
        return None if is_all else changed

    def take_all(self) -> None:
        """Whoever begins to watch looks at everything anyway: what was noted so far is no news."""
        self._changed, self._is_all = set(), False

    def note(self, directory: str | None) -> None:
        """Something happened in a mailbox, or, with None, where it cannot be told."""
        if not self._changed and not self._is_all:
            self._first_s = anyio.current_time()
        if directory is None:
            self._is_all = True
        else:
            self._changed.add(directory)
        self._moved.set()

    def end(self) -> None:
        """The Maildir is not where it was."""
        self._is_over = True
        self.note(None)

    async def _event(self) -> None:
        self._moved = anyio.Event()
        await self._moved.wait()


@dataclass(frozen=True, slots=True)
class _Place:
    """A watched directory: in which tree, where below its root, and the mailbox that it is a part of, if of one.

    With `is_above` it is one above the root, and `path` is absolute.
    """

    tree: TreeWatch
    path: str
    mailbox: str | None
    is_above: bool = False

    @property
    def is_below(self) -> bool:
        """Whether the tree is still there without it."""
        return bool(self.path) and not self.is_above


class Watcher:
    """The inotify instance of the process. Used by the event loop's thread; directories are walked in another."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._places: defaultdict[int, list[_Place]] = defaultdict(list)

    async def run(self) -> None:
        """Read events for as long as the task lives."""
        while True:
            await anyio.wait_readable(self._descriptor)
            try:
                octets = os.read(self._descriptor, _READ_OCTETS)
            except BlockingIOError:
                continue
            appeared: list[_Place] = []
            for wd, mask, name in _events(octets):
                appeared += self._take(wd, mask, name)
            for place in appeared:
                try:
                    await self._watch_below(place)
                except LocalError:  # whoever looks at it says why it cannot be read
                    place.tree.is_complete = False
                    place.tree.note(None) if place.path else place.tree.end()

    @asynccontextmanager
    async def tree(self, root: Path, layout: str) -> AsyncIterator[TreeWatch]:
        """Watch an account's Maildir for as long as the block lasts. Raises LocalError where it cannot be read."""
        tree = TreeWatch(root, layout)
        try:
            await self._watch_below(_Place(tree, "", None))
            for path in await anyio.to_thread.run_sync(_above, root):
                self._add(_Place(tree, path, None, is_above=True))
            tree.take_all()
            yield tree
        finally:
            self._forget(lambda place: place.tree is tree)

    @asynccontextmanager
    async def directory(self, path: Path) -> AsyncIterator[TreeWatch]:
        """Watch what is in one directory, for as long as the block lasts. Raises LocalError where it cannot be."""
        tree = TreeWatch(path, NESTED)
        try:
            self._add(_Place(tree, "", "."))
            yield tree
        finally:
            self._forget(lambda place: place.tree is tree)

    def _take(self, wd: int, mask: int, name: str) -> list[_Place]:
        """Note an event; the directories that appeared and are to be watched too."""
        if mask & _OVERFLOW:
            trees = {id(place.tree): place.tree for places in self._places.values() for place in places}
            return [_Place(tree, "", None) for tree in trees.values()]  # directories may have appeared unheard
        appeared: list[_Place] = []
        for place in list(self._places.get(wd, ())):
            if mask & (_UNMOUNT | _DELETE_SELF | _MOVE_SELF):
                place.tree.note(None) if place.is_below else place.tree.end()
            elif place.is_above:
                continue
            elif place.mailbox is not None:
                place.tree.note(place.mailbox)
            elif mask & _ISDIR:
                place.tree.note(None)  # a mailbox came, went or got another name
                if mask & (_CREATE | _MOVED_TO):
                    appeared.append(_Place(place.tree, f"{place.path}/{name}" if place.path else name, None))
        if mask & _IGNORED:
            self._places.pop(wd, None)
        return appeared

    async def _watch_below(self, place: _Place) -> None:
        """Watch a directory and those in it; what appeared in them before is covered by a look at everything."""
        try:
            found = await anyio.to_thread.run_sync(_directories, place)
        except OSError as exc:
            if place.path and exc.errno in (errno.ENOENT, errno.ENOTDIR):
                place.tree.note(None)
                return
            raise disk_error(exc, "read", place.tree.root / place.path) from exc
        for one in found:
            self._add(one)
        place.tree.note(None)

    def _add(self, place: _Place) -> None:
        path = place.tree.root / place.path
        mask = _IN_TREE if place.mailbox is None else _IN_MAILBOX
        if place.is_above:
            mask = _ABOVE
        elif not place.path:
            mask &= ~_DONT_FOLLOW  # the account's Maildir itself may be a symlink
        wd, code = _add_watch(self._descriptor, os.fsencode(path), mask)
        if wd >= 0:
            self._places[wd] = [known for known in self._places[wd] if known.tree is not place.tree] + [place]
        elif place.is_above:
            return  # not ours to read: then the next pass finds out
        elif code in (errno.ENOSPC, errno.ENOMEM):
            place.tree.is_complete = False
        elif code not in (errno.ENOENT, errno.ENOTDIR):
            raise disk_error(OSError(code, os.strerror(code)), "watch", path)

    def _forget(self, is_past: Callable[[_Place], bool]) -> None:
        for wd, places in list(self._places.items()):
            left = [place for place in places if not is_past(place)]
            if left:
                self._places[wd] = left
            else:
                del self._places[wd]
                _library().inotify_rm_watch(self._descriptor, wd)  # EINVAL: the kernel removed it already


@asynccontextmanager
async def watching() -> AsyncIterator[Watcher]:
    """The inotify instance, with a task that reads it. Raises LocalError where the system has none left."""
    descriptor = _library().inotify_init1(_CLOSE_ON_EXEC_AND_NONBLOCK)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise disk_error(OSError(code, os.strerror(code)), "watch directories with", "inotify")
    try:
        watcher = Watcher(descriptor)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.run)
            yield watcher
            tasks.cancel_scope.cancel()
    finally:
        os.close(descriptor)


def _above(root: Path) -> list[str]:
    """The directories above, also those that a symlink leads through; the topmost goes nowhere. Blocks."""
    above = {*root.parents, *root.resolve().parents}
    return sorted(str(path) for path in above if path != path.parent)


def _directories(place: _Place) -> list[_Place]:
    """A directory and everything below it that is to be watched. Blocks."""
    tree, found = place.tree, [place]
    is_nested = tree.layout == NESTED
    with os.scandir(tree.root / place.path) as items:
        names = [item.name for item in items if item.is_dir(follow_symlinks=False)]
    mailbox = place.path or "."
    for name in sorted(names):
        path = f"{place.path}/{name}" if place.path else name
        if name in _MESSAGES:
            found.append(_Place(tree, path, mailbox))
        elif name != "tmp" and name.startswith(".") != is_nested:
            found.extend(_directories_anyhow(_Place(tree, path, None)))
    return found


def _directories_anyhow(place: _Place) -> list[_Place]:
    """The same; what vanishes or cannot be read meanwhile is left to the look at everything that follows."""
    try:
        return _directories(place)
    except OSError:
        place.tree.is_complete = False
        return []


def _events(octets: bytes) -> Iterator[tuple[int, int, str]]:
    """(watch descriptor, mask, name) of each event (struct inotify_event)."""
    at = 0
    while at < len(octets):
        wd, mask, _, length = _HEAD.unpack_from(octets, at)
        name = octets[at + _HEAD.size : at + _HEAD.size + length].rstrip(b"\0")
        yield wd, mask, os.fsdecode(name)
        at += _HEAD.size + length


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _add_watch(descriptor: int, path: bytes, mask: int) -> tuple[int, int]:
    """The watch descriptor, or -1, and the errno."""
    wd = _library().inotify_add_watch(descriptor, path, ctypes.c_uint32(mask))
    return wd, ctypes.get_errno() if wd < 0 else 0
