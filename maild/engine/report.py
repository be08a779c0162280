"""What a pass is doing and what it has done: counters that the engine raises and a display reads."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class MailboxReport:
    """One mailbox of a pass. `state` is pending, syncing, ok, refused or error; `error` says why in one line."""

    name: str
    state: str = "pending"
    error: str | None = None
    pulled: int = 0
    adopted: int = 0
    flags: int = 0
    deleted: int = 0
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
    mailboxes: dict[str, MailboxReport] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Nothing failed and nothing was refused."""
        return self.error is None and all(m.state in {"ok", "pending"} for m in self.mailboxes.values())

    def mailbox(self, name: str) -> MailboxReport:
        return self.mailboxes.setdefault(name, MailboxReport(name))

    def total(self, counter: str) -> int:
        """One of the mailbox counters over all mailboxes."""
        return sum(int(getattr(m, counter)) for m in self.mailboxes.values())

    def first_error(self) -> str | None:
        """The account's error, else that of its first mailbox that has one."""
        return self.error or next((m.error for m in self.mailboxes.values() if m.error), None)
