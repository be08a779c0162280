"""The marker in an account's Maildir: proof that this is the Maildir the state speaks of, and how old it is.

`.maild` in the root holds JSON: `id`, made once at random and kept in the state too, and `generation`, which rises
after every pass that changed something, in the marker first and in the state after it. A Maildir with a smaller
generation than the state was restored from a backup: its pairs are made anew by content, and nothing is deleted
because of it. One with a greater generation than the state ever meant to give has an older state beside it: the same,
and what that state knows of flags is no base either, for they may have been set since.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from maild.core.errors import LocalError
from maild.local.durable import disk_error, make_directory, replace_file
from maild.local.state import State

MARKER = ".maild"
_ID = "maildir_id"
_GENERATION = "maildir_generation"
_HIGHEST = "maildir_highest_generation"  # that the marker may have: more than the state's after a kill in between


def check_root(root: Path, state: State, dry_run: bool = False) -> None:
    """See that the account's Maildir is there and is the one the state knows. Raises LocalError; makes the first one.

    A dangling symlink, a disk that is not mounted, a marker that is gone: each stops the account, deletes nothing. All
    its mailboxes with messages are refused then, as if each had lost its directory; once one of these plans has been
    approved a new Maildir is begun, in which the others are refused one by one.
    """
    if root.is_symlink() and not root.exists():
        text = f"the Maildir {root} is a symlink that leads nowhere"
        _refuse_all(state, text, dry_run)
        raise LocalError(text, "mount or restore what it points to")
    known = state.meta(_ID)
    found = _read(root)
    if known is not None and found is None:
        text = f"the Maildir {root} is gone or lost its marker file {MARKER}"
        if not _refuse_all(state, text, dry_run):
            raise LocalError(
                text,
                "mount or restore it; to start anew remove the account's file in state_dir: mail is matched by content",
            )
        if not dry_run:
            make_directory(root)
            mark_root(root, state)
        return
    if known is None or found is None or found[0] != known:
        if not dry_run:
            _begin(root, state)
    elif found[1] < _number(state, _GENERATION) and not dry_run:
        _rebuild(state)
        mark_root(root, state)
    elif found[1] > max(_number(state, _GENERATION), _number(state, _HIGHEST)) and not dry_run:
        _rebuild(state)
        state.forget_bases()
        state.set_meta(_HIGHEST, str(found[1]))
        _raise(root, next_rise(state), state)


def _rebuild(state: State) -> None:
    for mailbox in state.mailboxes().values():
        if mailbox.epoch is not None:
            state.rebuild(mailbox.id, mailbox.epoch)


def _number(state: State, name: str) -> int:
    return int(state.meta(name) or 0)


def _refuse_all(state: State, text: str, dry_run: bool) -> bool:
    """Refuse to delete on the server what is gone here with the Maildir; whether any of it has been approved."""
    rows = [row for row in state.mailboxes().values() if row.epoch is not None]
    for row in rows if not dry_run else ():
        gone = [pair.uid for pair in state.pairs(row.id) if not pair.only]
        if gone and not row.approved:
            told = f"mailbox {row.name}: {text}, with {len(gone)} messages; nothing was deleted on the server"
            state.refuse(row.id, told, gone, ())
    return any(row.approved for row in rows)


def mark_root(root: Path, state: State) -> None:
    """Let the generation rise: the Maildir and the state have changed together."""
    _raise(root, next_rise(state, is_last=True), state)


def _raise(root: Path, rise: Rise, state: State) -> None:
    rise.mark(root)
    rise.note(state)


@dataclass(frozen=True, slots=True)
class Rise:
    """`mark_root` in two steps, of which the slow first one needs no state: `mark`, and only then `note`."""

    _identity: str
    _generation: int

    def mark(self, root: Path) -> None:
        """Into the marker. Raises LocalError."""
        _write(root, self._identity, self._generation)

    def note(self, state: State) -> None:
        """Into the state."""
        state.set_meta(_GENERATION, str(self._generation))


def next_rise(state: State, *, is_last: bool = False) -> Rise:
    """The next one; at most one is under way. `is_last`: it may be the second of a pass, which the first provided for.

    The state notes first how far the marker may be ahead of it.
    """
    generation, highest = _number(state, _GENERATION), _number(state, _HIGHEST)
    if not is_last or generation >= highest:
        generation = max(generation, highest)
        state.set_meta(_HIGHEST, str(generation + 2))
    return Rise(str(state.meta(_ID)), generation + 1)


def _begin(root: Path, state: State) -> None:
    """A Maildir and a state that do not know each other: everything is matched by content."""
    _rebuild(state)
    new = secrets.token_hex(8)
    make_directory(root)
    _write(root, new, 1)
    state.set_meta(_ID, new)
    state.set_meta(_GENERATION, "1")
    state.set_meta(_HIGHEST, "1")


def _read(root: Path) -> tuple[str, int] | None:
    path = root / MARKER
    try:
        text = path.read_bytes()[:4096]
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise disk_error(exc, "read", path) from exc
    try:
        values = json.loads(text)
        return str(values["id"]), int(values["generation"])
    except (ValueError, KeyError, TypeError):
        return "", 0  # damaged: as good as another Maildir's


def _write(root: Path, identity: str, generation: int) -> None:
    octets = json.dumps({"id": identity, "generation": generation}).encode() + b"\n"
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            replace_file(descriptor, MARKER, octets, 0o600)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise disk_error(exc, "write the marker of", root) from exc
