"""What every account, mailbox and the outbox is doing, as the document that `maild status --json` prints.

Here it is made from stored state, as for a time when no daemon runs. A daemon knows more (`state`, `push`) and may put
that in; whoever shows a document need not know which of the two made it. Times are ISO 8601 in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NotRequired, TypedDict

from maild import __version__
from maild.core.errors import LocalError
from maild.local.overview import MailboxOverview, Refused, Withheld, read_overview

OUTBOX = ("queued", "held", "deferred", "uncertain", "failed")


class SkippedDocument(TypedDict):
    """A message left on the server, `size` in octets there, tried `count` times."""

    uid: str
    reason: str
    size: int
    count: int
    since: str


class HeldBackDocument(TypedDict):
    """A local message that the server did not take; `file` is its name up to the colon."""

    file: str
    reason: str
    size: int
    count: int
    since: str


class RefusedDocument(TypedDict):
    """A plan that the guard refused: how many messages it deletes on this disk and on the server."""

    here: int
    there: int
    reason: str
    approved: bool


class MailboxDocument(TypedDict):
    """One mailbox; `unseen` is null where flags do not travel (POP3)."""

    messages: int
    unseen: int | None
    state: str
    refused: RefusedDocument | None
    error: str | None
    skipped: list[SkippedDocument]
    held_back: list[HeldBackDocument]


class AccountDocument(TypedDict):
    """One account; `state` and `push` as in the contract, `push_reason` where push is less than what was asked for."""

    protocol: str
    state: str
    push: str | None
    push_reason: NotRequired[str]
    error: str | None
    last_sync: str | None
    mailboxes: dict[str, MailboxDocument]


class DaemonDocument(TypedDict):
    """The daemon that made the document."""

    pid: int
    uptime_s: float


class OutboxDocument(TypedDict):
    """How many messages are in each state; all null where the outbox cannot be read, and only then `error` says why."""

    queued: int | None
    held: int | None
    deferred: int | None
    uncertain: int | None
    failed: int | None
    error: NotRequired[str]


class Document(TypedDict):
    """All of it; `daemon` is null when none runs."""

    version: str
    daemon: DaemonDocument | None
    accounts: dict[str, AccountDocument]
    outbox: OutboxDocument


def stored_status(state_dir: Path, accounts: Mapping[str, str]) -> Document:
    """What stored state tells of these accounts (name → protocol). One that cannot be read has the error. Blocks."""
    return {
        "version": __version__,
        "daemon": None,
        "accounts": {name: stored_account(state_dir, name, protocol) for name, protocol in accounts.items()},
        "outbox": outbox_status(state_dir),
    }


def nothing_known(protocol: str) -> AccountDocument:
    """What there is to tell of an account before its first pass."""
    return {"protocol": protocol, "state": "starting", "push": None, "error": None, "last_sync": None, "mailboxes": {}}


def stored_account(state_dir: Path, name: str, protocol: str) -> AccountDocument:
    """One account of it."""
    document: AccountDocument = {
        "protocol": protocol,
        "state": "stopped",
        "push": None,
        "error": None,
        "last_sync": None,
        "mailboxes": {},
    }
    try:
        overview = read_overview(state_dir / f"{name}.sqlite")
    except LocalError as exc:
        document["error"] = str(exc)
        return document
    document["error"] = overview.error
    document["last_sync"] = None if overview.last_pass_s is None else _utc(overview.last_pass_s)
    document["mailboxes"] = {m.name: _mailbox(m, has_flags=protocol == "imap") for m in overview.mailboxes}
    return document


def outbox_status(state_dir: Path) -> OutboxDocument:
    """How many messages are on their way out. Blocks."""
    counts: Mapping[str, int | None] = dict.fromkeys(OUTBOX, 0)
    trouble = ""
    if (state_dir / "outbox").exists():
        from maild.local.outbox import Outbox  # many never send: they need not wait for this

        try:
            counts = {str(state): count for state, count in Outbox(state_dir).counts().items()}
        except LocalError as exc:
            counts, trouble = dict.fromkeys(OUTBOX), str(exc)
    queued, held, deferred, uncertain, failed = (counts[state] for state in OUTBOX)
    document: OutboxDocument = {
        "queued": queued,
        "held": held,
        "deferred": deferred,
        "uncertain": uncertain,
        "failed": failed,
    }
    if trouble:
        document["error"] = trouble
    return document


def _mailbox(mailbox: MailboxOverview, *, has_flags: bool) -> MailboxDocument:
    return {
        "messages": mailbox.messages,
        "unseen": mailbox.unseen if has_flags else None,
        "state": _state(mailbox),
        "refused": _refused(mailbox.refused) if mailbox.refused else None,
        "error": mailbox.error,
        "skipped": _skipped(mailbox.skipped),
        "held_back": _held_back(mailbox.held_back),
    }


def _state(mailbox: MailboxOverview) -> str:
    """What needs the user most comes first."""
    if mailbox.refused is not None:
        return "refused"
    if mailbox.error is not None:
        return "error"
    return "pending" if mailbox.last_pass_s is None else "ok"


def _refused(plan: Refused) -> RefusedDocument:
    return {"here": plan.here, "there": plan.there, "reason": plan.reason, "approved": plan.is_approved}


def _skipped(messages: Iterable[Withheld]) -> list[SkippedDocument]:
    return [
        {"uid": m.id, "reason": m.reason, "size": m.size_octets, "count": m.count, "since": _utc(m.first_s)}
        for m in messages
    ]


def _held_back(messages: Iterable[Withheld]) -> list[HeldBackDocument]:
    return [
        {"file": m.id, "reason": m.reason, "size": m.size_octets, "count": m.count, "since": _utc(m.first_s)}
        for m in messages
    ]


def _utc(seconds: float) -> str:
    """Whole seconds, for example `2026-11-23T06:00:00Z`."""
    return datetime.fromtimestamp(int(seconds), UTC).replace(tzinfo=None).isoformat() + "Z"
