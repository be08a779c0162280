"""What the drainer has in hand, each step in one line of one file, so that a step of many messages costs one sync.

An item is in hand from the line that takes it until it is put down: its `.toml` then tells the same, or is gone. So
long the last line about it is the truth, and its `.toml` is as it was before. A line is `CRC-32 JSON`, the JSON is
`[id, item]`, or `[id, null]` for one that was put down. What follows a line that is not whole was never durable.

Who is not the drainer reads the file before the `.toml`s: an item that was put down meanwhile is then known from its
`.toml`, or is taken to be still in hand, never as it was before.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from maild.core.errors import LocalError
from maild.core.outgoing import Item, Notices, Recipient
from maild.local.durable import fsync_dir, replace_file, write_all
from maild.local.itemfile import check

NAME = ".journal"
FULL_OCTETS = 1 << 20  # then it is written anew, with what is in hand only

_ITEM = tuple(field.name for field in fields(Item) if field.name not in ("notices", "recipients"))
_NOTICES = tuple(field.name for field in fields(Notices))
_RECIPIENT = tuple(field.name for field in fields(Recipient))
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Journal:
    """The file as its one writer has it; several threads may use it. Raises OSError where the disk refuses.

    `held` is what is in hand, by id.
    """

    def __init__(self, directory: int) -> None:
        self.held: dict[str, Item] = {}
        self._directory = directory
        self._descriptor: int | None = None  # None before the first line, and after an error
        self._octets = 0
        self._lock = threading.Lock()

    def note(self, items: Sequence[Item]) -> None:
        """Have items in hand, as they are now; durable on return. After an error none is that was not before."""
        with self._lock:
            new = [item.id for item in items if item.id not in self.held]
            self.held.update((item.id, item) for item in items)
            try:
                self._append([_line(item.id, _table(item)) for item in items])
            except OSError:
                for item_id in new:
                    del self.held[item_id]
                raise

    def put_down(self, item_ids: Collection[str], *, are_gone: bool = False) -> None:
        """Items whose `.toml` tells the truth, or with `are_gone` durably is no more; durable on return.

        After an error they are still in hand, and are to be put down once more.
        """
        with self._lock:
            ended = {item_id: self.held.pop(item_id) for item_id in item_ids if item_id in self.held}
            if not ended:
                return
            try:
                self._append([] if are_gone else [_line(item_id, None) for item_id in ended])
            except OSError:
                self.held.update(ended)
                raise
            if not self.held and self._descriptor is not None:
                os.ftruncate(self._descriptor, 0)  # what it held is over, so it does no harm if it comes back
                self._octets = 0

    def close(self) -> None:
        """No more is written but what an error kept from the file; that goes if nothing is in hand."""
        with self._lock:
            if self._descriptor is None and self.held:
                with suppress(OSError):  # it was told when it failed first
                    self._begin()
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
                if not self.held:
                    with suppress(OSError):  # it tells of nothing
                        os.unlink(NAME, dir_fd=self._directory)

    def _append(self, lines: Sequence[bytes]) -> None:
        octets = b"".join(lines)
        if not octets:
            return
        if self._descriptor is None or self._octets + len(octets) > FULL_OCTETS:
            self._begin()
            return
        try:
            write_all(self._descriptor, octets)
            os.fdatasync(self._descriptor)
        except OSError:
            os.close(self._descriptor)  # what it has of these lines is not known: the next begin a new file
            self._descriptor = None
            raise
        self._octets += len(octets)

    def _begin(self) -> None:
        """A new file with all that is in hand."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        octets = b"".join(_line(item.id, _table(item)) for item in self.held.values())
        replace_file(self._directory, NAME, octets)
        self._descriptor = os.open(NAME, _APPEND, dir_fd=self._directory)
        self._octets = len(octets)


def read(directory: Path) -> dict[str, Item]:
    """What is in hand according to the file in a directory, by id; an item without a `.toml` is over all the same.

    Raises OSError, and LocalError where a line is whole and cannot be understood: another version of maild wrote it.
    """
    try:
        octets = (directory / NAME).read_bytes()
    except FileNotFoundError:
        return {}
    held: dict[str, Item] = {}
    for number, line in enumerate(octets.splitlines(keepends=True), 1):
        if (whole := _whole(line)) is None:
            break
        try:
            item_id, table = json.loads(whole)
            if not isinstance(item_id, str):
                raise TypeError("the id is no text")
            item = None if table is None else _item(item_id, table)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise LocalError(
                f"{directory / NAME}, line {number}: {_reason(exc)}: another version of maild has written it",
                "let that version end its work by `maild outbox flush`; or move the file away, after which messages "
                "that were being sent may be sent twice",
            ) from exc
        held.pop(item_id, None)
        if item is not None:
            held[item_id] = item
    return held


def _reason(exc: Exception) -> str:
    return f"{exc} is missing" if isinstance(exc, KeyError) else str(exc).removeprefix("Item.__init__() ")


def forget(directory: int) -> None:
    """Remove the file, durably: what it tells is in the `.toml`s."""
    try:
        os.unlink(NAME, dir_fd=directory)
    except FileNotFoundError:
        return
    fsync_dir(directory)


def _line(item_id: str, table: dict[str, Any] | None) -> bytes:
    octets = json.dumps([item_id, table]).encode()
    return b"%08x %b\n" % (zlib.crc32(octets), octets)


def _whole(line: bytes) -> bytes | None:
    """The JSON of a line that was written to its end."""
    checksum, _, octets = line.partition(b" ")
    return octets[:-1] if octets.endswith(b"\n") and checksum == b"%08x" % zlib.crc32(octets[:-1]) else None


def _table(item: Item) -> dict[str, Any]:
    return {
        **{name: getattr(item, name) for name in _ITEM},
        "notices": {name: getattr(item.notices, name) for name in _NOTICES},
        "recipients": [{name: getattr(recipient, name) for name in _RECIPIENT} for recipient in item.recipients],
    }


def _item(item_id: str, table: dict[str, Any]) -> Item:
    """Of this or another version of maild; what this one does not know is left out.

    Raises ValueError, TypeError, KeyError, AttributeError where it knows too little.
    """
    known = {name: table[name] for name in _ITEM if name in table}
    notices = {name: value for name, value in table.get("notices", {}).items() if name in _NOTICES}
    recipients = [{name: entry[name] for name in _RECIPIENT if name in entry} for entry in table["recipients"]]
    item = Item(
        **{**known, "id": item_id},
        notices=Notices(**notices),
        recipients=tuple(Recipient(**entry) for entry in recipients),
    )
    check(item)
    return item
