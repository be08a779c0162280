"""The spool of outgoing messages: `<id>.eml`, what goes on the wire, and `<id>.toml`, what is known about it.

Invariants:
- A message is accepted when its `.toml` has its name; file and directory are durable by then. An `.eml` alone is what
  a crash left of accepting or removing, and is deleted when it is a day old.
- Every write of a `.toml` replaces it whole and is durable on return; many are made durable together.
- An item is changed either under the edit lock, or by the drainer while it has it in hand, which the journal tells
  (`local.journal`). There is one drainer: it holds the drain lock for as long as it lives. So nobody changes what the
  other has in hand.
- `failed/` holds what has failed for good. An `.eml` that is not beside its `.toml` is in the other directory.

Accepting takes no lock. Everything here blocks, and raises LocalError where the disk does not do as it should.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from maild.core.errors import LocalError, MaildError, Retry, Scope, StateBusy
from maild.core.outgoing import Item, State, interrupted
from maild.local.durable import disk_error, fsync_dir, make_directory, replace_file, sync_names, write_all
from maild.local.itemfile import ItemUnreadable, dump, load
from maild.local.outboxfiles import (
    delete_remains,
    locked,
    names_in,
    new_message,
    opened,
    replace_all,
    translated,
    unlinked,
)

if TYPE_CHECKING:
    from maild.local.journal import Journal

DIRECTORY = "outbox"
FAILED = "failed"
_EDIT_LOCK = ".edit.lock"
_DRAIN_LOCK = ".drain.lock"
_SYNCED = ".synced"
_OF_ONE_FILE = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ELOOP})
_COUNTED: tuple[State, ...] = ("queued", "held", "deferred", "uncertain", "failed")


class NoSuchItem(MaildError):
    """No item, or more than one, has the id that was asked for."""

    scope = Scope.MESSAGE
    retry = Retry.AFTER_CHANGE


class ItemBusy(MaildError):
    """The item is being submitted at this moment, so it cannot be changed."""

    scope = Scope.MESSAGE
    retry = Retry.LATER


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in the outbox, oldest first, and the ids of items whose `.toml` cannot be read, with the reason."""

    items: tuple[Item, ...]
    unreadable: dict[str, str]


_Loaded = tuple[tuple[int, int, int], Item]  # what the file looked like, and what it holds


class Outbox:
    """The outbox of one state directory. It may be used by several threads and processes at a time."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / DIRECTORY
        self._failed = self.path / FAILED
        self._known: dict[str, _Loaded] = {}
        self._journal: Journal | None = None  # the drainer's

    # -- accepting

    def accept(self, item: Item, text: bytes) -> Item:
        """Take a message, in its disk form; the item is the one given, with its id. Durable on return, or nothing."""
        self._make_lasting()
        with translated("accept a message in", self.path), opened(self.path) as directory:
            name, descriptor = new_message(directory)
            try:
                try:
                    write_all(descriptor, text)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                accepted = replace(item, id=name)
                replace_file(directory, f"{name}.toml", dump(accepted))
            except BaseException:
                for suffix in (".toml", ".eml"):  # the error that counts is the first
                    with suppress(OSError):
                        os.unlink(name + suffix, dir_fd=directory)
                raise
        return accepted

    # -- looking

    def contents(self) -> Contents:
        """All items, those that have failed too. One whose `.toml` has not changed is not read again."""
        held = self._held()
        found: dict[str, _Loaded] = {}
        items: list[Item] = []
        unreadable: dict[str, str] = {}
        for item_id, path in self._tomls():
            if item_id in held:
                items.append(held[item_id])
                continue
            try:
                found[path] = self._loaded(item_id, path)
            except FileNotFoundError:
                continue  # it went its way since the directory was read
            except OSError as exc:
                if exc.errno not in _OF_ONE_FILE:
                    raise disk_error(exc, "read", path) from exc
                unreadable[item_id] = f"{item_id}.toml: {exc.strerror}"
            except ItemUnreadable as exc:
                unreadable[item_id] = str(exc)
        self._known = found
        items += (item for _, item in found.values())
        return Contents(tuple(sorted(items, key=lambda item: (item.created_s, item.id))), unreadable)

    def counts(self) -> dict[State, int]:
        """How many items there are in each state, as `maild status` tells it; without "sent", which do not stay."""
        states = Counter(item.state for item in self.contents().items)
        return {state: states[state] for state in _COUNTED}

    def find(self, prefix: str) -> Item:
        """The item whose id begins so. Raises NoSuchItem where there is none or more than one."""
        items = [item for item in self.contents().items if item.id.startswith(prefix)]
        exact = [item for item in items if item.id == prefix]
        if len(exact or items) != 1:
            what = "more than one message has an id that begins with" if items else "no message has the id"
            raise NoSuchItem(f"{what} {prefix!r} in the outbox", "`maild outbox list` shows the ids")
        return (exact or items)[0]

    def has_text(self, item_id: str) -> bool:
        """Whether the message itself is there; somebody may have removed it by hand."""
        return self.text_path(item_id).exists()

    def text_path(self, item_id: str) -> Path:
        """Where the message is."""
        path = self.path / f"{item_id}.eml"
        return path if path.exists() else self._failed / f"{item_id}.eml"

    def text(self, item_id: str) -> bytes:
        """A message in its disk form, as it goes on the wire but for line ends."""
        for directory in (self.path, self._failed):
            path = directory / f"{item_id}.eml"
            try:
                return path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise disk_error(exc, "read", path) from exc
        raise LocalError(f"{self.path / item_id}.eml is gone", f"`maild outbox cancel {item_id}` forgets the message")

    # -- changing what is not being submitted

    def edit(self, item_id: str, change: Callable[[Item], Item]) -> Item:
        """Change an item, durable on return. Raises ItemBusy while it is being submitted, NoSuchItem if it is gone."""
        with self._editing():
            item = self._editable(item_id)
            changed = change(item)
            if changed != item:
                self.record([changed])
        return changed

    def cancel(self, item_id: str) -> Item:
        """Take an item out for good, durable on return. Raises ItemBusy while it is being submitted."""
        with self._editing():
            item = self._editable(item_id)
            if item.attempts:  # what was in doubt may be on the server
                self._remember([item_id], time.time())
            self.remove([item_id])
        return item

    # -- draining

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Be the one who submits; what an earlier drainer left behind is put in order. Raises StateBusy."""
        make_directory(self.path)
        with translated("lock", self.path):
            descriptor = os.open(self.path / _DRAIN_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not locked(descriptor):
                raise StateBusy(
                    "another maild is submitting from this outbox", "it sends what is due; wait until it is done"
                )
            self._recover()
            with self._writing_journal():
                yield
        finally:
            os.close(descriptor)

    def claim(self, item_ids: Sequence[str], change: Callable[[Item], Item | None]) -> list[Item]:
        """Take items in hand, as `change` makes them; those for which it gives None, or that are gone, are left out.

        Only for the drainer. Until it lets go of them, by `record` or `remove`, nobody else changes them.
        """
        with self._editing():
            held = self._held()
            items = [found for item_id in item_ids if (found := self._read(item_id, held)) is not None]
            claimed = [changed for item in items if not item.phase and (changed := change(item)) is not None]
            self.note(claimed)
        return claimed

    def note(self, items: Sequence[Item]) -> None:
        """How far items in hand have come, durable on return. Only for the drainer."""
        with translated("write to", self.path):
            self._drainers_journal().note(items)

    @property
    def is_ours(self) -> bool:
        """Whether this is the drainer, within `draining`."""
        return self._journal is not None

    def is_in_hand(self, item_id: str) -> bool:
        """Whether this drainer has claimed the item, and not let go of it."""
        return (drainers := self._journal) is not None and item_id in drainers.held

    def remember(self, item_ids: Sequence[str], now_s: float) -> None:
        """Keep what tells these from others on the server, before they are removed; durable on return."""
        with self._editing():
            self._remember(item_ids, now_s)

    def record(self, items: Sequence[Item]) -> None:
        """Write what is known about items into their files and let go of them, durable on return.

        Each is then where it belongs: in `failed/` if it has failed for good, beside the others otherwise.
        """
        for directory in (self.path, self._failed):
            here = [item for item in items if self._directory_of(item.id) == directory]
            if here:
                with translated("write to", directory), opened(directory) as descriptor:
                    replace_all(descriptor, {f"{item.id}.toml": dump(item) for item in here})
        self._place(items)
        self._put_down(items)

    def remove(self, item_ids: Sequence[str]) -> None:
        """Forget items, durable on return. First it is durable that they are no more, then the messages go."""
        with translated("remove messages from", self.path):
            if elsewhere := self._without_tomls(self.path, item_ids):
                self._without_tomls(self._failed, elsewhere)
            if self._journal is not None:
                self._journal.put_down(item_ids, are_gone=True)
            for item_id in item_ids:
                if not unlinked(self.path / f"{item_id}.eml"):
                    unlinked(self._failed / f"{item_id}.eml")

    # -- inside

    def _make_lasting(self) -> None:
        """Have the directory, durable in all that is above it, whoever makes it at this moment; once, as a file tells.

        An item would be lost with a directory that a process before us has made and not yet synced.
        """
        if (self.path / _SYNCED).exists():
            return
        make_directory(self.path)
        with translated("accept a message in", self.path):
            sync_names(self.path)
            os.close(os.open(self.path / _SYNCED, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _remember(self, item_ids: Sequence[str], now_s: float) -> None:
        """Under the edit lock. Of a message that cannot be read it is only known that it may look like any."""
        from maild.core.likeness import Likeness, Marks  # what `maild sendmail` never needs
        from maild.local import lately

        marks: dict[str, Marks] = {}
        for item_id in item_ids:
            with suppress(LocalError):
                marks[item_id] = Likeness.of(self.text(item_id)).marks
        if item_ids:
            with translated("write to", self.path):
                lately.add(self.path, marks, now_s, are_all=len(marks) == len(item_ids))

    def _held(self) -> dict[str, Item]:
        """What the drainer has in hand. Whoever is not it calls this before reading `.toml`s."""
        if (drainers := self._journal) is not None:
            return dict(drainers.held)
        from maild.local import journal  # 5 ms that `maild sendmail` never needs

        with translated("read the journal in", self.path):
            return journal.read(self.path)

    def _drainers_journal(self) -> Journal:
        if self._journal is None:
            raise RuntimeError("only within draining()")
        return self._journal

    def _put_down(self, items: Sequence[Item]) -> None:
        if self._journal is not None:
            with translated("write to", self.path):
                self._journal.put_down([item.id for item in items])

    def _place(self, items: Sequence[Item]) -> None:
        """Have each where it belongs; after a power cut one may be in both places."""
        for item in items:
            has_failed = item.is_over and item.state == "failed"
            wanted, other = (self._failed, self.path) if has_failed else (self.path, self._failed)
            if (other / f"{item.id}.toml").exists():
                make_directory(wanted)
                with translated("move a message to", wanted):
                    for suffix in (".eml", ".toml"):
                        with suppress(FileNotFoundError):  # moved before a crash
                            os.rename(other / f"{item.id}{suffix}", wanted / f"{item.id}{suffix}")
                        unlinked(other / f"{item.id}{suffix}")  # two names of one file rename leaves as they are
                    for directory in (wanted, other):
                        with opened(directory) as descriptor:
                            fsync_dir(descriptor)

    def _without_tomls(self, directory: Path, item_ids: Sequence[str]) -> list[str]:
        """Remove `.toml`s, durably; those that were not there."""
        missing = [item_id for item_id in item_ids if not unlinked(directory / f"{item_id}.toml")]
        if len(missing) < len(item_ids):
            with opened(directory) as descriptor:
                fsync_dir(descriptor)
        return missing

    def _tomls(self) -> Iterator[tuple[str, str]]:
        """The items' ids and the paths of their files."""
        for directory in (self.path, self._failed):
            tomls = (name for name in names_in(directory) if name.endswith(".toml") and name[0] != ".")
            yield from ((name[:-5], f"{directory}/{name}") for name in tomls)

    def _has_toml(self, item_id: str) -> bool:
        return (self._directory_of(item_id) / f"{item_id}.toml").exists()

    def _directory_of(self, item_id: str) -> Path:
        return self._failed if (self._failed / f"{item_id}.toml").exists() else self.path

    def _loaded(self, item_id: str, path: str) -> _Loaded:
        """What a file looks like and holds; one that looks as it did, which every write changes, is not read again."""
        status = os.stat(path)
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._known.get(path)
        return known if known and known[0] == stamp else (stamp, load(item_id, Path(path).read_bytes()))

    def _read(self, item_id: str, held: Mapping[str, Item]) -> Item | None:
        path = f"{self._directory_of(item_id)}/{item_id}.toml"
        try:
            found = self._loaded(item_id, path)[1]
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise disk_error(exc, "read", path) from exc
        return held.get(item_id, found)

    def _editable(self, item_id: str) -> Item:
        """The item as it is, put in order if its drainer died. Call under the edit lock."""
        held = self._held()
        item = self._read(item_id, held)
        if item is not None and (item.phase or item_id in held):
            with opened(self.path) as directory:
                descriptor = os.open(_DRAIN_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
            try:
                if not locked(descriptor):
                    raise ItemBusy(f"the message {item_id} is being submitted at this moment", "try again shortly")
                item = self._read(item_id, self._held())  # its drainer may have ended since it was read first
                self._fold([item] if item is not None else [])
            finally:
                os.close(descriptor)
            item = self._read(item_id, {})
        if item is None:
            raise NoSuchItem(f"the message {item_id} is no longer in the outbox")
        return item

    @contextmanager
    def _editing(self) -> Iterator[None]:
        """Holds the edit lock; whoever has it needs it for milliseconds."""
        make_directory(self.path)
        with translated("lock", self.path):
            descriptor = os.open(self.path / _EDIT_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with translated("lock", self.path):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _writing_journal(self) -> Iterator[None]:
        from maild.local.journal import Journal

        with opened(self.path) as directory:
            self._journal = Journal(directory)
            try:
                yield
            finally:
                with translated("write to", self.path):
                    self._journal.close()
                self._journal = None

    def _fold(self, items: Iterable[Item]) -> dict[str, Item]:
        """Put down what a drainer that died had in hand: of these items, and all that its journal tells of.

        Those that were put down, as they are then. Call under both locks; it takes as long as they are many.
        """
        from maild.local import journal

        held, now_s = self._held(), time.time()
        left = {item.id: item for item in items if item.phase}
        left |= {item_id: item for item_id, item in held.items() if self._has_toml(item_id)}
        ended = {item.id: interrupted(item, now_s) if item.phase else item for item in left.values()}
        self.record(list(ended.values()))
        with translated("clean up", self.path), opened(self.path) as directory:
            journal.forget(directory)
        return ended

    def _recover(self) -> None:
        """After a crash: attempts that were running have ended, items go where they belong, remains are deleted."""
        with self._editing():
            items = self.contents().items
            ended, in_failed = self._fold(items), names_in(self._failed)
            items = tuple(ended.get(item.id, item) for item in items)
            self._place([item for item in items if item.state == "failed" or f"{item.id}.toml" in in_failed])
            with translated("clean up", self.path):
                delete_remains(self.path, in_failed, time.time())
