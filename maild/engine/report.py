"""What a pass is doing and what it has done: counters that the engine raises and a display reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from maild.core.errors import MaildError

MOST_DELIVERED = 10_000


@dataclass(slots=True)
class MailboxReport:
    """One mailbox of a pass. `state` is pending, syncing, ok, refused or error; `error` says why in one line.

    Counters are of this disk, those with `_there` of the server. `skipped` messages stay on the server, `held_back`
    ones here; `refused` counts deletions that the guard did not let pass.
    """

    name: str
    state: str = "pending"
    error: str | None = None
    pulled: int = 0
    adopted: int = 0
    pushed: int = 0
    flags: int = 0
    flags_there: int = 0
    moved: int = 0
    moved_there: int = 0
    deleted: int = 0
    deleted_there: int = 0
    held_back: int = 0
    refused: int = 0
    skipped: int = 0
    wanted: int = 0
    wanted_octets: int = 0


@dataclass(slots=True)
class AccountReport:
    """One account of a pass. Octets are those of the wire; `wanted` counts what the mailboxes looked at so far need."""

    name: str
    state: str = "pending"  # pending, connecting, syncing, ok, error
    error: str | None = None
    duration_s: float = 0.0
    done_messages: int = 0
    done_octets: int = 0
    wanted_messages: int = 0
    wanted_octets: int = 0
    unchanged: int = 0
    plan: list[str] = field(default_factory=list)  # of a dry run: what would happen to whole mailboxes, in words
    mailboxes: dict[str, MailboxReport] = field(default_factory=dict)
    failure: MaildError | None = None  # whose text `error` is
    known_error: str | None = None  # of the last pass: an `error` that is the same is not logged again
    delivered: list[str] | None = None  # the first new files, where somebody wants to know

    @property
    def ok(self) -> bool:
        """Nothing failed and nothing was refused."""
        return self.error is None and all(m.state in {"ok", "pending"} for m in self.mailboxes.values())

    def mailbox(self, name: str) -> MailboxReport:
        return self.mailboxes.setdefault(name, MailboxReport(name))

    def note_delivered(self, path: Path) -> None:
        """A new message is durable under this path."""
        if self.delivered is not None and len(self.delivered) < MOST_DELIVERED:
            self.delivered.append(str(path))

    def total(self, counter: str) -> int:
        """One of the mailbox counters over all mailboxes."""
        return sum(int(getattr(m, counter)) for m in self.mailboxes.values())

    def first_error(self) -> str | None:
        """The account's error, else that of its first mailbox that has one."""
        return self.error or next((m.error for m in self.mailboxes.values() if m.error), None)
