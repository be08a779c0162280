"""Directories of mailboxes: renamed and removed so that a crash at any step leaves one mailbox with all its messages.

A mailbox is where its `cur` is. In the nested layout its directory may hold child mailboxes, which are mailboxes of
their own and stay. So there are two ways to rename:

- Nothing but the mailbox is in its directory, and nothing has the new name: one rename of the directory.
- Otherwise its parts go one by one, in this order: the list of keywords and the messages in `new` get a second name (a
  hard link) in the new directory, so that none is missing and letters keep their meaning under either name; all that is
  made durable; `cur` is renamed, which is the step that counts; that is made durable; then what is left under the old
  name is cleared away. Before that step the old mailbox is whole, and the new name is none, for it has no `cur`; after
  it the new one is whole, and the old name is none. `rename_mailbox` once more completes what a crash left.

Everything here blocks; each call is durable on return. Nobody else in this process may use the mailboxes meanwhile.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath

from maild.core.flags import join_info, split_info
from maild.core.names import MailboxUnusable
from maild.local.directory import descend, translated, unique_key
from maild.local.durable import fsync_dir, fsync_many, rename_new
from maild.local.keywords import KEYWORDS_FILE
from maild.local.scan import is_message

_PARTS = frozenset({"cur", "new", "tmp"})
_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST})
_INSIDE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HERE = PurePosixPath(".")

# What mail programs keep about a mailbox in its directory, by the beginning of the name: Dovecot, Courier, mbsync.
_METADATA = ("dovecot-", "dovecot.", "courierimap", "maildirfolder", ".mbsyncstate", ".isyncuidmap.db", ".uidvalidity")


def rename_mailbox(root: Path, old: PurePosixPath, new: PurePosixPath) -> None:
    """Give a mailbox another directory below the account's Maildir, without the child mailboxes that are in it.

    Missing parents are made, mode 0700; parents that are left empty go. One that is renamed already will do. Raises
    MailboxUnusable where it is not there, where the new name is a mailbox, and for the Maildir itself (INBOX in
    Maildir++); LocalError where the disk refuses.
    """
    what = f"rename the mailbox to {new}:"
    if old == new:
        return
    if _HERE in (old, new):
        raise MailboxUnusable(f"cannot {what} {root / old}: the account's Maildir itself is one of them")
    with translated(what, root / old):
        _check(root, old, new)
        if not _has(root, old):
            _sync(root, new, new.parent)
        elif not _renamed_whole(root, old, new):
            _move_parts(root, old, new)
        _remove_empty(root, old)


def remove_mailbox(root: Path, relative: PurePosixPath) -> bool:
    """Remove a mailbox that has nothing in `cur` and `new`; one that is gone already will do.

    False, and nothing is changed, where anything is in them or it is the account's Maildir itself. Child mailboxes
    stay, and so does the directory while they or anything unknown are in it; parents that are left empty go.
    """
    if relative == _HERE:
        return False
    with translated("remove the mailbox", root / relative), ExitStack() as opened:
        _opened(opened, root, _HERE)
        if _has(root, relative):
            top = _opened(opened, root, relative)
            if not _emptied(top):
                return False
            _clear_tmp(top)
            for name in _metadata(top):
                os.unlink(name, dir_fd=top)
            fsync_dir(top)
        _remove_empty(root, relative)
    return True


def _check(root: Path, old: PurePosixPath, new: PurePosixPath) -> None:
    """Raise MailboxUnusable unless exactly one of the two names is a mailbox."""
    is_at_old, is_at_new = _has(root, old / "cur"), _has(root, new / "cur")
    if is_at_old and is_at_new:
        raise MailboxUnusable(
            f"cannot rename the mailbox {root / old} to {root / new}: there is a mailbox of that name",
            "rename or remove one of the two",
        )
    if not is_at_old and not is_at_new:
        raise MailboxUnusable(f"cannot rename the mailbox {root / old} to {root / new}: it is not there")


def _sync(root: Path, *relatives: PurePosixPath) -> None:
    for relative in relatives:
        with ExitStack() as opened:
            fsync_dir(_opened(opened, root, relative))


def _renamed_whole(root: Path, old: PurePosixPath, new: PurePosixPath) -> bool:
    """Rename the directory if it holds nothing else and nothing has the new name; False where that cannot be."""
    if old in new.parents or _has(root, new) or _has_children(root, old):
        return False
    with ExitStack() as opened:
        source = _opened(opened, root, old.parent)
        target = _opened(opened, root, new.parent, make=True)
        try:
            rename_new(old.name, new.name, source, target)
        except FileExistsError:
            return False
        fsync_dir(target)
        fsync_dir(source)
    return True


def _move_parts(root: Path, old: PurePosixPath, new: PurePosixPath) -> None:
    """The second way, see above; every step may find itself done."""
    with ExitStack() as opened:
        source = _opened(opened, root, old)
        target = _opened(opened, root, new, make=True)
        for name in ("tmp", "new"):
            _make(name, target)
        if _is_there("cur", source):
            _share_keywords(source, target)
            _link_new(source, target)
            fsync_dir(target)
            rename_new("cur", "cur", source, target)
            fsync_dir(target)
            fsync_dir(source)
        _finish_new(source, target)
        _clear_tmp(source)
        _move_metadata(source, target)
        fsync_many((target, source))


def _share_keywords(source: int, target: int) -> None:
    """Without a `cur` no name of the target uses a letter, so what list it may have is of no use."""
    if is_message(KEYWORDS_FILE, source):
        with suppress(FileNotFoundError):
            os.unlink(KEYWORDS_FILE, dir_fd=target)
        os.link(KEYWORDS_FILE, KEYWORDS_FILE, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)


def _link_new(source: int, target: int) -> None:
    """Give the messages in `new` a second name in the target."""
    with ExitStack() as opened:
        if not _is_there("new", source):
            return
        old, new = (_inside(opened, "new", top) for top in (source, target))
        linked = {inode for inode, _ in _messages(new)}
        for inode, name in _messages(old):
            if inode not in linked:
                with suppress(FileNotFoundError):  # a reader took it to `cur`, which is to come
                    _link(name, old, new)
        fsync_dir(new)


def _link(name: str, old: int, new: int) -> None:
    try:
        os.link(name, name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
    except FileExistsError:  # another message
        fresh = join_info(unique_key(), split_info(name)[1])
        os.link(name, fresh, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)


def _finish_new(source: int, target: int) -> None:
    """`cur` is in its place: drop second names, and take along what was delivered in between."""
    with ExitStack() as opened:
        new, cur = (_inside(opened, name, target) for name in ("new", "cur"))
        read = {(inode, split_info(name)[0]) for inode, name in _messages(cur)}
        for inode, name in _messages(new):
            if (inode, split_info(name)[0]) in read:  # a reader took it from the old `new` to `cur` after it was linked
                os.unlink(name, dir_fd=new)
        if not _is_there("new", source):
            return
        old = _inside(opened, "new", source)
        linked = {inode for inode, _ in _messages(new)}
        left = _messages(old)
        for inode, name in left:
            if inode not in linked and (inode, split_info(name)[0]) not in read:
                _link(name, old, new)
        fsync_many((new, cur))
        for _, name in left:
            os.unlink(name, dir_fd=old)
    _remove_directory("new", source)


def _messages(directory: int) -> list[tuple[int, str]]:
    """(inode, name) of the plain files in it."""
    descriptor = os.open(".", _INSIDE, dir_fd=directory)
    try:
        with os.scandir(descriptor) as items:
            return [(item.inode(), item.name) for item in items if item.is_file(follow_symlinks=False)]
    finally:
        os.close(descriptor)


def _emptied(top: int) -> bool:
    """Remove `new` and `cur` if both are empty; if not, or not any more, both are there as before."""
    with ExitStack() as opened:
        for name in ("new", "cur"):
            if _is_there(name, top) and os.listdir(_inside(opened, name, top)):
                return False
    had_new = _is_there("new", top)
    if not _remove_directory("new", top):
        return False
    if _remove_directory("cur", top):
        return True
    if had_new:
        _make("new", top)
        fsync_dir(top)
    return False


def _clear_tmp(top: int) -> None:
    with ExitStack() as opened:
        if not _is_there("tmp", top):
            return
        tmp = _inside(opened, "tmp", top)
        for name in os.listdir(tmp):
            if is_message(name, tmp):
                os.unlink(name, dir_fd=tmp)
    _remove_directory("tmp", top)


def _move_metadata(source: int, target: int) -> None:
    """Take along what other programs keep about the mailbox. What the target has stays: it has the keywords."""
    for name in _metadata(source):
        if name == KEYWORDS_FILE or _is_there(name, target):
            os.unlink(name, dir_fd=source)
        else:
            rename_new(name, name, source, target)


def _metadata(top: int) -> list[str]:
    return [name for name in os.listdir(top) if name.startswith(_METADATA) and is_message(name, top)]


def _remove_empty(root: Path, relative: PurePosixPath) -> None:
    """Remove a directory and then its parents, as long as nothing is in them; never the account's Maildir itself."""
    for path in (relative, *relative.parents):
        if path == _HERE:
            return
        try:
            above = descend(root, path.parent, make=False)
        except FileNotFoundError:
            continue
        try:
            if not _remove_directory(path.name, above):
                return
            fsync_dir(above)
        finally:
            os.close(above)


def _remove_directory(name: str, parent: int) -> bool:
    """False where something is in it; one that is not there is as good as removed."""
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno in _NOT_EMPTY:
            return False
        raise
    return True


def _has_children(root: Path, relative: PurePosixPath) -> bool:
    """Whether the directory holds others that may be mailboxes, or may have such below."""
    top = descend(root, relative, make=False)
    try:
        with os.scandir(top) as items:
            names = [item.name for item in items if item.is_dir(follow_symlinks=False)]
    finally:
        os.close(top)
    return any(name not in _PARTS and not name.startswith(".") for name in names)


def _has(root: Path, relative: PurePosixPath) -> bool:
    """Whether there is anything of that name; not through symlinks."""
    try:
        parent = descend(root, relative.parent, make=False)
    except FileNotFoundError:
        return False
    try:
        return _is_there(relative.name, parent)
    finally:
        os.close(parent)


def _opened(opened: ExitStack, root: Path, relative: PurePosixPath, *, make: bool = False) -> int:
    descriptor = descend(root, relative, make=make)
    opened.callback(os.close, descriptor)
    return descriptor


def _inside(opened: ExitStack, name: str, parent: int) -> int:
    descriptor = os.open(name, _INSIDE, dir_fd=parent)
    opened.callback(os.close, descriptor)
    return descriptor


def _make(name: str, parent: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)


def _is_there(name: str, parent: int) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
