"""What a pass is doing and what it has done: counters that the engine raises and a display reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from maild.core.errors import MaildError

MOST_DELIVERED = 10_000


class MailboxReport:
    """One mailbox of a pass. `state` is pending, syncing, ok, refused or error; `error` says why in one line.

    Counters are of this disk, those with `_there` of the server. `skipped` messages stay on the server, `held_back`
    ones here; `refused` counts deletions that the guard did not let pass.

    No dataclass, nor is the other one: a program that asks a daemon would take as long to import `dataclasses` as the
    daemon to answer.
    """

    COUNTERS = (
        "pulled",
        "adopted",
        "pushed",
        "flags",
        "flags_there",
        "moved",
        "moved_there",
        "deleted",
        "deleted_there",
        "held_back",
        "refused",
        "skipped",
        "wanted",
        "wanted_octets",
    )
    FIELDS = ("name", "state", "error", *COUNTERS)
    __slots__ = FIELDS

    def __init__(self, name: str, state: str = "pending", error: str | None = None, **counters: int) -> None:
        """Counters that are not given are 0."""
        self.name = name
        self.state = state
        self.error = error
        self.pulled = self.adopted = self.pushed = 0
        self.flags = self.flags_there = 0
        self.moved = self.moved_there = 0
        self.deleted = self.deleted_there = 0
        self.held_back = self.refused = self.skipped = 0
        self.wanted = self.wanted_octets = 0
        for counter, value in counters.items():
            setattr(self, counter, value)

    def as_dict(self) -> dict[str, object]:
        """All that there is of it, as JSON can have it."""
        return {name: getattr(self, name) for name in self.FIELDS}


class AccountReport:
    """One account of a pass. Octets are those of the wire; `wanted` counts what the mailboxes looked at so far need.

    `state` is pending, connecting, syncing, ok or error. `plan`: what would happen to whole mailboxes in a dry run, in
    words. `failure` is the error whose text `error` is; `known_error` that of the last pass: one that is the same is
    not logged again. `delivered` holds the first new files, where somebody wants to know.
    """

    COUNTERS = ("done_messages", "done_octets", "wanted_messages", "wanted_octets", "unchanged")
    PROGRESS = ("name", "state", "error", "duration_s", *COUNTERS, "plan")
    __slots__ = (*PROGRESS, "delivered", "failure", "known_error", "mailboxes")

    def __init__(
        self,
        name: str,
        state: str = "pending",
        error: str | None = None,
        *,
        failure: MaildError | None = None,
        known_error: str | None = None,
        delivered: list[str] | None = None,
    ) -> None:
        self.name = name
        self.state = state
        self.error = error
        self.duration_s = 0.0
        self.done_messages = self.done_octets = 0
        self.wanted_messages = self.wanted_octets = self.unchanged = 0
        self.plan: list[str] = []
        self.mailboxes: dict[str, MailboxReport] = {}
        self.failure = failure
        self.known_error = known_error
        self.delivered = delivered

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
