"""The marker in an account's Maildir: proof that this is the Maildir the state speaks of, and how old it is.

`.maild` in the root holds JSON: `id`, made once at random and kept in the state too, and `generation`, which rises
after every pass that changed something, in the marker first and in the state after it. A Maildir with a smaller
generation than the state was restored from a backup: its pairs are made anew by content, and nothing is deleted
because of it. So is one that is ahead by more than the one rise that can be cut off between marker and state: then it
is the state that was restored, and which Maildirs are older than this one is told by the marker alone. What such a
state knows of flags is no base either, for they may have been set since.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from maild.core.errors import LocalError
from maild.core.model import Uid
from maild.local.durable import disk_error, make_directory, replace_file
from maild.local.state import MailboxState, State

MARKER = ".maild"
MOUNT = "mount or restore it"
_ID = "maildir_id"
_GENERATION = "maildir_generation"


def check_root(root: Path, state: State, dry_run: bool = False) -> None:
    """See that the account's Maildir is there and is the one the state knows. Raises LocalError; makes the first one.

    A dangling symlink, a disk that is not mounted, a marker that is gone: each stops the account, deletes nothing. All
    its mailboxes with messages are refused then, as if each had lost its directory; once one of these plans has been
    approved, as a whole, a new Maildir is begun, in which the others are refused one by one.
    """
    if root.is_symlink() and not root.exists():
        text = f"the Maildir {root} is a symlink that leads nowhere"
        _refuse_all(state, text, dry_run)
        raise LocalError(text, "mount or restore what it points to")
    known = state.meta(_ID)
    found = _read(root)
    if known is not None and found is None:
        text = _gone(root)
        if not _refuse_all(state, text, dry_run):
            raise LocalError(
                text,
                f"{MOUNT}; to start anew remove the account's file in state_dir: mail is matched by content",
            )
        if not dry_run:
            for row in state.mailboxes().values():
                if not _gone_with_root(state, row):  # else an empty one would be deleted on the server
                    state.forget_directory(row.id)
            make_directory(root)
            rise = next_rise(state)
            rise.write(root)
            rise.note(state)
        return
    if known is None or found is None or found[0] != known:
        if not dry_run:
            _begin(root, state)
    elif (ahead := found[1] - int(state.meta(_GENERATION) or 0)) and not dry_run:
        if ahead != 1:
            _rebuild_all(state)
        if ahead > 1:
            state.forget_bases()
        if ahead > 0:
            state.set_meta(_GENERATION, str(found[1]))
        if ahead != 1:
            mark_root(root, state)


def check_still_there(root: Path, state: State) -> None:
    """See that what was looked at is the Maildir still. Raises LocalError.

    Where its disk went away in the middle of a pass, an empty directory may be left in its place.
    """
    found = _read(root)
    if found is None or found[0] != state.meta(_ID) or found[1] < int(state.meta(_GENERATION) or 0):
        raise LocalError(_gone(root), MOUNT)


def _gone(root: Path) -> str:
    return f"the Maildir {root} is gone or lost its marker file {MARKER}"


def _refuse_all(state: State, text: str, dry_run: bool) -> bool:
    """Refuse to delete on the server what is gone here with the Maildir; whether any of it has been approved."""
    is_approved = False
    for row in state.mailboxes().values():
        gone = _gone_with_root(state, row)
        plan = state.refusal(row.id) if row.approved else None
        if gone and plan is not None and plan.delete_remote.issuperset(gone):
            is_approved = True
        elif gone and not dry_run:
            told = f"mailbox {row.name}: {text}, with {len(gone)} messages; nothing was deleted on the server"
            state.refuse(row.id, told, gone, ())
    return is_approved


def _gone_with_root(state: State, row: MailboxState) -> list[Uid]:
    return [pair.uid for pair in state.pairs(row.id) if not pair.only] if row.epoch is not None else []


def mark_root(root: Path, state: State) -> None:
    """Let the generation rise: the Maildir and the state have changed together."""
    rise = next_rise(state)
    rise.mark(root)
    rise.note(state)


@dataclass(frozen=True, slots=True)
class Rise:
    """`mark_root` in two steps, of which the slow first one needs no state: `mark`, and only then `note`."""

    _identity: str
    _generation: int

    def mark(self, root: Path) -> None:
        """Into the marker. Raises LocalError, also where the Maildir is there no longer: its disk may have gone."""
        found = _read(root)
        if found is None or found[0] != self._identity:
            raise LocalError(_gone(root), MOUNT)
        self.write(root)

    def write(self, root: Path) -> None:
        """The same, and begin a Maildir with it."""
        _write(root, self._identity, self._generation)

    def note(self, state: State) -> None:
        """Into the state."""
        state.set_meta(_GENERATION, str(self._generation))


def next_rise(state: State) -> Rise:
    """The next one; at most one is under way."""
    return Rise(str(state.meta(_ID)), int(state.meta(_GENERATION) or 0) + 1)


def _begin(root: Path, state: State) -> None:
    """A Maildir and a state that do not know each other."""
    _rebuild_all(state)
    new = secrets.token_hex(8)
    make_directory(root)
    _write(root, new, 1)
    state.set_meta(_ID, new)
    state.set_meta(_GENERATION, "1")


def _rebuild_all(state: State) -> None:
    """Everything is matched by content."""
    for mailbox in state.mailboxes().values():
        if mailbox.epoch is not None:
            state.rebuild(mailbox.id, mailbox.epoch)


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
