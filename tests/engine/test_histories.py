"""Random histories of two sides that change at once, with the invariants of a synchroniser as the oracle.

A history is rounds of changes, each followed by passes until nothing is left to do. The model below knows what each
message should have become: a flag that one side changed wins, deletion beats flags and moves, of two moves the server's
wins, nothing else is ever lost or doubled. `MAILD_HISTORIES` sets how many there are (500; `make test-long` 10,000,
and a tenth of that over IMAP).
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.engine.test_twoway import LACKING
from tests.engine.twin import LETTERS, Twin, WireTwin
from tests.engine.world import PASSWORD, USER

HISTORIES = int(os.environ.get("MAILD_HISTORIES", "500"))
PARTS = 10  # each drawn from a seed of its own, so that they can run beside each other
FLAGS = ("\\Seen", "\\Flagged", "\\Answered", "$Forwarded")
LETTER_OF = {flag: letter for letter, flag in LETTERS.items()}
NAMES = ("INBOX", "A", "A/b", "C")

Kind = Literal["deliver", "write", "flag", "delete", "move", "copy", "rename"]


@dataclass(slots=True)
class Side:
    """What one side did to a message since both were equal."""

    mailbox: int
    flags: frozenset[str]
    is_deleted: bool = False
    handle: Path | int = 0  # the file; on the server the UID


@dataclass(slots=True)
class Known:
    """A message that both sides had when they were equal last, and what became of it on each."""

    n: int
    base: Side  # as on the server
    here: Side
    there: Side
    key: str  # the file's unique name

    @property
    def is_traceless_here(self) -> bool:
        """No longer under its unique name: deleted, or moved to a new one. Only the content is left to know it by."""
        return self.here.is_deleted or _key(self.here.handle) != self.key

    @property
    def is_traceless_there(self) -> bool:
        """No longer under its UID: deleted or moved."""
        return self.there.is_deleted or self.there.handle != self.base.handle

    @property
    def may_be_another(self) -> bool:
        """Deleted here, and on the server the same mailbox has it under another UID: moved away and back, or new."""
        is_renumbered = self.there.mailbox == self.base.mailbox and self.there.handle != self.base.handle
        return self.here.is_deleted and not self.there.is_deleted and is_renumbered

    def result(self) -> Side | None:
        """What both sides should have in the end; None for nothing."""
        if self.here.is_deleted or self.there.is_deleted:
            return None
        base, here, there = self.base.flags, self.here.flags, self.there.flags
        flags = (base & here & there) | ((here | there) - base)
        moved = self.there.mailbox if self.there.mailbox != self.base.mailbox else self.here.mailbox
        return Side(moved, flags)


@dataclass(slots=True)
class Box:
    """A mailbox, under one name or, after a rename, under another on each side."""

    here: str
    there: str


@dataclass(frozen=True, slots=True)
class Change:
    """One change: on which side, what, and numbers that choose the message, the mailbox and the flag."""

    is_here: bool
    kind: Kind
    message: int
    mailbox: int
    flag: int


CHANGES = st.builds(
    Change,
    st.booleans(),
    st.sampled_from(("deliver", "write", "flag", "flag", "delete", "move", "move", "copy", "rename")),
    st.integers(0, 30),
    st.integers(0, 3),
    st.integers(0, 3),
)


@dataclass(frozen=True, slots=True)
class Round:
    """Changes, then passes; the first is cut at a step, or not. Afterwards an event that must change nothing."""

    changes: tuple[Change, ...]
    cut_at: int | None
    event: str


ROUNDS = st.builds(
    Round,
    st.lists(CHANGES, max_size=8).map(tuple),
    st.one_of(st.none(), st.integers(0, 25)),
    st.sampled_from(("", "", "", "lose state", "renumber", "older state")),
)
SETTINGS = st.fixed_dictionaries(
    {
        "way": st.sampled_from(("changes", "full")),
        "tells_uids": st.booleans(),
        "has_marks": st.booleans(),
        "has_object_ids": st.booleans(),
    }
)


@dataclass(slots=True)
class History:
    """Both sides, and the model of them."""

    twin: Twin
    boxes: list[Box] = field(default_factory=list)
    known: list[Known] = field(default_factory=list)
    copies: Counter[int] = field(default_factory=Counter)  # by number: copies that may have been taken for moves
    number: int = 0
    tells_renames: bool = True  # else a mailbox renamed there is one gone and one new, and what came in here stays
    known_next: list[tuple[int, int, frozenset[str]]] = field(default_factory=list)

    async def begin(self) -> None:
        for name in NAMES:
            if name != "INBOX":
                self.twin.store.create(name)
            self.boxes.append(Box(name, name))
        for index in (0, 0, 0, 1, 2):
            self._new(False, index, ())
        await self._until_quiet()

    # -- changes

    def change(self, change: Change) -> None:
        index = change.mailbox % len(self.boxes)
        if change.kind in ("deliver", "write"):
            self._new(change.is_here, index, FLAGS[: change.flag])
            return
        if change.kind == "rename":
            self._rename(change.is_here, 1 + change.message % 3, change.flag)
            return
        alive = [k for k in self.known if not (k.here if change.is_here else k.there).is_deleted]
        if alive:
            self._one(change, alive[change.message % len(alive)], index)

    def _new(self, is_here: bool, index: int, flags: Iterable[str]) -> None:
        self.number += 1
        n, kept = self.number, frozenset(flags)
        if is_here:
            self.twin.write(n, self.boxes[index].here, "".join(LETTER_OF[flag] for flag in kept))
        else:
            self.twin.deliver(n, self.boxes[index].there, kept)
        self.known_next.append((n, index, kept))

    def _one(self, change: Change, known: Known, index: int) -> None:
        side = known.here if change.is_here else known.there
        if change.kind == "flag":
            flag = FLAGS[change.flag]
            side.flags = side.flags ^ {flag}
            if change.is_here:
                side.handle = self.twin.relabel(self._path(side), "".join(LETTER_OF[f] for f in side.flags))
            else:
                self.twin.store.set_flags(self.boxes[side.mailbox].there, self._uid(side), replace=side.flags)
        elif change.kind == "delete":
            side.is_deleted = True
            if change.is_here:
                self._path(side).unlink()
            else:
                self.twin.store.expunge(self.boxes[side.mailbox].there, self._uid(side))
        elif change.kind == "move" and index != side.mailbox:
            self._move(change.is_here, side, index, new_name=bool(change.flag % 2))
        elif change.kind == "copy":
            self.copies[known.n] += 1
            if change.is_here:
                self.twin.copy(self._path(side), self.boxes[index].here)
            else:
                self.twin.store.copy(self.boxes[side.mailbox].there, self._uid(side), self.boxes[index].there)

    def _move(self, is_here: bool, side: Side, index: int, *, new_name: bool) -> None:
        if is_here:
            side.handle = self.twin.move(self._path(side), self.boxes[index].here, new_name=new_name)
        else:
            source, target = self.boxes[side.mailbox].there, self.boxes[index].there
            ((_, side.handle),) = self.twin.store.move(source, self._uid(side), target)
        side.mailbox = index

    def _rename(self, is_here: bool, index: int, number: int) -> None:
        box, name = self.boxes[index], f"R{number}"
        if any(name in (other.here, other.there) for other in self.boxes):
            return
        if is_here:
            old = self.twin.where(box.here)
            if any(other.here.startswith(box.here + "/") for other in self.boxes):
                return  # children would come along, which the scenarios have
            old.rename(self.twin.where(name))
            for known in self.known:
                if isinstance(known.here.handle, Path) and known.here.handle.is_relative_to(old):
                    known.here.handle = self.twin.where(name) / known.here.handle.relative_to(old)
            box.here = name
        elif self.tells_renames and not any(other.there.startswith(box.there + "/") for other in self.boxes):
            self.twin.store.rename(box.there, name)
            box.there = name

    @staticmethod
    def _path(side: Side) -> Path:
        assert isinstance(side.handle, Path)
        return side.handle

    @staticmethod
    def _uid(side: Side) -> int:
        assert isinstance(side.handle, int)
        return side.handle

    # -- passes

    async def settle(self, cut_at: int | None) -> None:
        if cut_at is not None:
            await self.twin.sync(lose_at=cut_at)
        await self._until_quiet()

    async def _until_quiet(self) -> None:
        for _ in range(2):
            await self.twin.synced()
        await self.twin.quiet()
        self._compare()

    async def event(self, event: str) -> None:
        """Something that is nobody's change: both sides stay as they are."""
        twin = self.twin
        before = {name: twin.there(name) for name in twin.store.names}
        state = twin.state_dir / "work.sqlite"
        if event == "lose state":
            for path in twin.state_dir.iterdir():
                path.unlink()
        elif event == "older state" and (copy := twin.directory / "older.sqlite").exists():
            for path in twin.state_dir.glob("work.sqlite*"):
                path.unlink()
            state.write_bytes(copy.read_bytes())
        elif event == "renumber":
            for name in twin.store.names:
                twin.store.bump_uidvalidity(name)
        (twin.directory / "older.sqlite").write_bytes(state.read_bytes() if state.exists() else b"")
        if event:
            await twin.synced()
            twin.assert_equal()
            assert {name: twin.there(name) for name in twin.store.names} == before
            await twin.quiet()
            self._look_again()

    # -- the oracle

    def _compare(self) -> None:
        for box in self.boxes:
            box.here = box.there = box.there if box.there in self.twin.store.names else box.here
        self.twin.assert_equal()
        wanted: Counter[tuple[int, str, frozenset[str]]] = Counter()
        for known in self.known:
            if (result := known.result()) is not None:
                wanted[known.n, self.boxes[result.mailbox].there, result.flags] += 1
        for n, index, flags in self.known_next:
            wanted[n, self.boxes[index].there, flags] += 1
        found = self._found()
        copied = set(self.copies)
        copied.update(n for n, count in Counter(known.n for known in self.known).items() if count > 1)
        for known in self.known:
            if known.may_be_another:
                copied.add(known.n)
                self.copies[known.n] += 1
        exact = {item: count for item, count in wanted.items() if item[0] not in copied}
        assert exact == {item: count for item, count in found.items() if item[0] not in copied}
        deleted = {known.n for known in self.known if known.here.is_deleted or known.there.is_deleted}
        for n in copied:  # equal messages are not told apart: a copy, and deleting the first of them, is a move
            count = sum(number for (m, _, _), number in found.items() if m == n)
            new = sum(m == n for m, _, _ in self.known_next)
            most = new + _most_left([k for k in self.known if k.n == n]) + self.copies[n]
            assert (0 if n in deleted else 1) <= count <= most, f"message {n}: {count} of {most}"
        self._look_again()

    def _found(self) -> Counter[tuple[int, str, frozenset[str]]]:
        found: Counter[tuple[int, str, frozenset[str]]] = Counter()
        for mailbox in self.twin.store.mailboxes:
            for message in mailbox:
                found[_number(message.raw), mailbox.name, message.flags] += 1
        return found

    def _look_again(self) -> None:
        """Both sides are equal: from here on changes count anew."""
        self.known.clear()
        self.known_next.clear()
        self.copies.clear()
        for index, box in enumerate(self.boxes):
            paths: dict[int, list[Path]] = {}
            for path in self.twin.files(box.here):
                paths.setdefault(_number(path.read_bytes()), []).append(path)
            for message in self.twin.store.mailbox(box.there):
                same = paths[_number(message.raw)]
                flags = message.flags
                path = next(p for p in same if {LETTERS[c] for c in p.name.partition(":2,")[2]} == flags)
                same.remove(path)
                there = Side(index, flags, handle=message.uid)
                here = replace(there, handle=path)
                self.known.append(Known(_number(message.raw), there, here, replace(there), _key(path)))


def _most_left(equal: list[Known]) -> int:
    """How many of equal messages are left at most, whichever of those without a trace on a side was moved there.

    One deleted here, moved there, and one deleted there: nobody can tell that it was not the second that moved.
    """
    here = sum(k.is_traceless_here and not k.here.is_deleted for k in equal)
    there = sum(k.is_traceless_there and not k.there.is_deleted for k in equal)
    traces = Counter((k.is_traceless_here, k.is_traceless_there) for k in equal)
    only_here, only_there = min(traces[True, False], here), min(traces[False, True], there)
    both = min(traces[True, True], here - only_here, there - only_there)
    return traces[False, False] + only_here + only_there + both


def _key(handle: Path | int) -> str:
    assert isinstance(handle, Path)
    return handle.name.partition(":2,")[0]


def _number(raw: bytes) -> int:
    return int(raw.partition(b"Subject: Nr. ")[2].split(b"\n", 1)[0])


async def lived(history: History, rounds: list[Round]) -> None:
    """A history from its beginning to its end."""
    history.twin.configure(remote_delete="expunge")
    await history.begin()
    for one in rounds:
        for change in one.changes:
            history.change(change)
        await history.settle(one.cut_at)
        await history.event(one.event)


SETTINGS_OF_HISTORIES: dict[str, Any] = {
    "deadline": None,
    "phases": (Phase.generate,),  # shrinking takes longer than a test may; the seed gives the same history again
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@pytest.mark.parametrize("is_doubled", [False, True])
async def test_which_of_two_equal_messages_was_moved(quick_path: Path, is_doubled: bool) -> None:
    """One is deleted here and moved on the server, the other is deleted on the server: what is there may be the other.

    Without the other the deletion here counts (a found history).
    """
    history = History(Twin(quick_path))
    changes = [Change(False, "move", 4, 1, 0), Change(True, "delete", 4, 0, 0)]
    if is_doubled:
        changes.append(Change(False, "delete", 5, 0, 0))
    copies = [Change(False, "copy", 4, 2, 0)] if is_doubled else []
    await lived(history, [Round(tuple(copies), None, ""), Round(tuple(changes), None, "")])
    left = [(known.n, known.base.mailbox) for known in history.known if known.n == 5]
    assert left == ([(5, 1)] if is_doubled else [])


@pytest.mark.parametrize("part", range(PARTS))
def test_histories(part: int, no_fsync: None) -> None:
    @seed(part)
    @settings(max_examples=max(1, HISTORIES // PARTS), **SETTINGS_OF_HISTORIES)
    @given(rounds=st.lists(ROUNDS, min_size=1, max_size=3), ways=SETTINGS)
    def every(rounds: list[Round], ways: dict[str, object]) -> None:
        anyio.run(live, rounds, ways)

    async def live(rounds: list[Round], ways: dict[str, object]) -> None:
        with tempfile.TemporaryDirectory(prefix="maild-test-") as directory:
            await lived(History(Twin(Path(directory), settings=ways)), rounds)

    every()


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_histories_over_imap(part: int, no_fsync: None) -> None:
    """The same with a line between, cut at any command, and a server that can do more or less."""

    @seed(part)
    @settings(max_examples=max(1, HISTORIES // PARTS // 10), **SETTINGS_OF_HISTORIES)
    @given(rounds=st.lists(ROUNDS, min_size=1, max_size=3), lacking=st.sampled_from(sorted(LACKING)))
    def every(rounds: list[Round], lacking: str) -> None:
        anyio.run(live, rounds, lacking)

    async def live(rounds: list[Round], lacking: str) -> None:
        with tempfile.TemporaryDirectory(prefix="maild-test-") as directory:
            async with ImapServer(Store(), {USER: PASSWORD}, capabilities=ALL - LACKING[lacking]) as server:
                twin = WireTwin.over(Path(directory), server)
                await lived(History(twin, tells_renames=lacking != "everything"), rounds)

    every()
