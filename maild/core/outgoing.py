"""The nouns of the outbox, and what an attempt makes of them. Times are seconds since 1970 UTC, and passed in.

An item goes through `claimed` → `body_begun` → `settled`, each recorded before what it announces happens. What a crash
leaves behind, `interrupted` reads: in the phase "envelope" nothing was submitted; in the phase "body" nobody knows.

A recipient is `queued`, `held`, `deferred` (to be tried again), or it is over: `sent`, `failed`. `uncertain` is one for
whom the message was submitted without an answer (RFC 1047): to be looked for, or submitted again with the same
Message-ID when `uncertain_s` has come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

from maild.core.backoff import LONGEST_RETRY_S, retry_delay_s

State = Literal["queued", "held", "sent", "deferred", "failed", "uncertain"]
Phase = Literal["", "envelope", "body"]
Copy = Literal["", "begun", "done"]
Utf8 = Literal["", "wanted", "needed"]

LIFETIME_S = 5 * 86400
DELAY_NOTICE_S = 4 * 3600
UNCERTAIN_S = 15 * 60

_PRECEDENCE: tuple[State, ...] = ("uncertain", "held", "deferred", "queued", "failed", "sent")
STATES = frozenset(_PRECEDENCE)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, or what there is to say instead of an answer (`code` 0). `text` is one line, raw."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip() if self.code else self.text

    @property
    def is_positive(self) -> bool:
        return 200 <= self.code < 300

    @property
    def is_permanent(self) -> bool:
        return 500 <= self.code < 600


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one attempt came to for one recipient."""

    state: State
    reply: Reply

    @classmethod
    def of(cls, reply: Reply) -> Verdict:
        """2yz is sent, 5yz has failed, all else is tried again."""
        state: State = "sent" if reply.is_positive else "failed" if reply.is_permanent else "deferred"
        return cls(state, reply)


Verdicts = Mapping[str, Verdict]  # by recipient


@dataclass(frozen=True, slots=True)
class Notices:
    """What delivery status notifications are asked for (RFC 3461 §4), "" for what the server does by itself.

    `notify` are NEVER, or some of SUCCESS, FAILURE, DELAY, with commas; `ret` is FULL or HDRS; `envid` what the sender
    wants to know the message by, in printable ASCII.
    """

    notify: str = ""
    ret: str = ""
    envid: str = ""


AS_USUAL = Notices()


@dataclass(frozen=True, slots=True)
class Submission:
    """One message for one transaction: its envelope, and what the server has to know beforehand.

    `utf8`: "needed" where an address is not ASCII, "wanted" where only the head is not (RFC 6531).
    """

    id: str
    sender: str
    recipients: tuple[str, ...]
    size_octets: int
    is_8bit: bool = False
    utf8: Utf8 = ""
    notices: Notices = AS_USUAL


@dataclass(frozen=True, slots=True)
class Recipient:
    """One recipient. `reply` are the last words about it; `is_in_flight`: the body that is being sent is for it too.

    `is_reported`: its failure is told in a report that is in the INBOX.
    """

    address: str
    state: State = "queued"
    reply: str = ""
    is_in_flight: bool = False
    is_reported: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A message in the outbox, without its octets.

    `sender` is the reverse-path, "" for none. `size_octets` is that of the wire form. `since_s` is when the time began
    after which it is given up: as much later as tries came after they were due, for want of a connection or a running
    maild. `next_s` is when it may be tried next. `copy` is that for the Sent mailbox: "begun" as
    soon as somebody has got the message, when it may be there already. `is_doubt_mixed`: who is uncertain was in
    several transactions, so that one copy in the server's Sent mailbox says nothing about the others.
    """

    id: str
    account: str
    sender: str
    recipients: tuple[Recipient, ...]
    size_octets: int
    created_s: int
    since_s: int
    next_s: int
    message_id: str = ""
    subject: str = ""
    is_8bit: bool = False
    utf8: Utf8 = ""
    notices: Notices = AS_USUAL
    attempts: int = 0
    phase: Phase = ""
    uncertain_s: int = 0
    copy: Copy = ""
    is_delay_told: bool = False
    is_doubt_mixed: bool = False

    @property
    def state(self) -> State:
        """The one state to show for all recipients: that which most wants to be seen."""
        states = {recipient.state for recipient in self.recipients}
        return next(state for state in _PRECEDENCE if state in states)

    @property
    def is_over(self) -> bool:
        """Nothing will be tried again."""
        return self.state in ("failed", "sent")

    def with_state(self, *states: State) -> tuple[Recipient, ...]:
        return tuple(recipient for recipient in self.recipients if recipient.state in states)

    def due(self, now_s: float, *, everything: bool = False) -> tuple[str, ...]:
        """Who is to be tried now. With `everything` also who is to wait; those held never are."""
        is_time = everything or self.next_s <= now_s or self._is_ahead(now_s)
        waiting = self.with_state("queued", "deferred") if is_time else ()
        is_over = self.uncertain_s <= now_s or self.uncertain_s > now_s + LONGEST_RETRY_S
        doubtful = self.with_state("uncertain") if is_over else ()
        return tuple(recipient.address for recipient in (*waiting, *doubtful))

    def _is_ahead(self, now_s: float) -> bool:
        """Whether the clock has been set back by so much that `next_s` means nothing any more."""
        if self.attempts:
            return self.next_s > now_s + LONGEST_RETRY_S
        return self.created_s > now_s + LONGEST_RETRY_S and self.next_s <= self.created_s + LONGEST_RETRY_S

    def wakes_at(self) -> int | None:
        """When somebody is due next, None for never."""
        times = [self.next_s] if self.with_state("queued", "deferred") else []
        times += [self.uncertain_s] if self.with_state("uncertain") else []
        return min(times, default=None)


# -- an attempt


def submission(item: Item) -> Submission:
    """What the server is to be asked: the envelope for those in flight."""
    recipients = tuple(r.address for r in item.recipients if r.is_in_flight)
    return Submission(item.id, item.sender, recipients, item.size_octets, item.is_8bit, item.utf8, item.notices)


def claimed(item: Item, addresses: Sequence[str]) -> Item:
    """An attempt for these recipients begins; nothing of the message has been sent."""
    wanted = frozenset(addresses)
    recipients = tuple(replace(r, is_in_flight=r.address in wanted) for r in item.recipients)
    return replace(item, recipients=recipients, phase="envelope", attempts=item.attempts + 1)


def body_begun(item: Item, refused: Verdicts) -> Item:
    """The server wants the body, for everyone in flight but those it has `refused`."""
    recipients = tuple(_judged(r, refused[r.address]) if r.address in refused else r for r in item.recipients)
    return replace(item, recipients=recipients, phase="body")


def settled(item: Item, verdicts: Verdicts, now_s: float) -> Item:
    """The attempt is over. Whoever was in flight and has no verdict was not tried, and is due again at once."""
    now = int(now_s)
    due_s = item.wakes_at()
    since_s = min(now, item.since_s + max(0, now - (now if due_s is None else due_s)))
    before = {r.address for r in item.with_state("uncertain")}
    new = {address for address, verdict in verdicts.items() if verdict.state == "uncertain"}
    recipients = tuple(
        _judged(r, verdicts[r.address]) if r.address in verdicts else replace(r, is_in_flight=False)
        for r in item.recipients
    )
    if now - since_s >= LIFETIME_S:
        recipients = tuple(_given_up(r, before, new) for r in recipients)
    codes = {verdict.reply.code for verdict in verdicts.values() if verdict.state == "deferred"}
    codes |= {_code(r.reply) for r in recipients if r.state == "deferred"}
    doubted = {r.address for r in recipients if r.state == "uncertain"}
    is_mixed = bool(before and new) and not (doubted == new and new <= before)
    is_deferred = any(r.state == "deferred" for r in recipients)
    doubt_s = max(UNCERTAIN_S, retry_delay_s(item.attempts)) if before & new else UNCERTAIN_S
    return replace(
        item,
        recipients=recipients,
        phase="",
        since_s=since_s,
        next_s=now + retry_delay_s(item.attempts, codes) if is_deferred and not _were_too_many(verdicts) else now,
        uncertain_s=now + doubt_s if new else item.uncertain_s,
        copy=item.copy or ("begun" if any(r.state == "sent" for r in recipients) else ""),
        is_doubt_mixed=bool(doubted) and (item.is_doubt_mixed or is_mixed),
    )


def unclaimed(item: Item) -> Item:
    """The attempt did not come to pass: as if it had not been begun."""
    recipients = tuple(replace(r, is_in_flight=False) for r in item.recipients)
    return replace(item, recipients=recipients, phase="", attempts=item.attempts - 1)


def interrupted(item: Item, now_s: float) -> Item:
    """What an attempt left that ended with its process: whether the message was submitted may not be known."""
    if item.phase == "envelope":
        return unclaimed(item)
    lost = Verdict("uncertain", Reply(0, "maild was stopped before the server had answered"))
    return settled(item, {r.address: lost for r in item.recipients if r.is_in_flight}, now_s)


def found_in_sent(item: Item, now_s: float) -> Item:
    """The server has the message among those sent: whoever was uncertain has got it."""
    proof = Verdict("sent", Reply(0, "found in the Sent mailbox on the server"))
    return settled(item, {r.address: proof for r in item.with_state("uncertain")}, now_s)


def _judged(recipient: Recipient, verdict: Verdict) -> Recipient:
    return replace(recipient, state=verdict.state, reply=str(verdict.reply), is_in_flight=False)


def _given_up(recipient: Recipient, doubted: Set[str], doubted_now: Set[str]) -> Recipient:
    """One in doubt is looked for first, so that ends with the next try, whatever comes of it."""
    is_doubted = recipient.address in doubted
    if recipient.state != "deferred" and not (is_doubted and recipient.address in doubted_now):
        return recipient
    doubt = "; it may have arrived" if is_doubted else ""
    days = LIFETIME_S // 86400
    return replace(recipient, state="failed", reply=f"{recipient.reply} (given up after {days} days{doubt})")


def _were_too_many(verdicts: Verdicts) -> bool:
    """Whether only the number of recipients kept the others waiting: they come next (RFC 5321 §4.5.3.1.10)."""
    waiting = [verdict.reply for verdict in verdicts.values() if verdict.state == "deferred"]
    is_progress = any(verdict.state == "sent" for verdict in verdicts.values())
    return is_progress and bool(waiting) and all(map(_is_about_number, waiting))


def _is_about_number(reply: Reply) -> bool:
    return reply.code == 452 and (reply.text.startswith("4.5.3 ") or "too many" in reply.text.lower())


def _code(reply: str) -> int:
    return int(reply[:3]) if reply[:3].isdigit() else 0


# -- what a person orders


def held(item: Item) -> Item:
    """Nobody who waits is tried any more, until it is released."""
    return _changed(item, "held", "queued", "deferred")


def released(item: Item, now_s: float) -> Item:
    """Whoever was held is due now, and the time to give it up begins anew; where nobody was, nothing changes."""
    if not item.with_state("held"):
        return item
    return replace(_changed(item, "queued", "held"), next_s=int(now_s), since_s=int(now_s))


def retried(item: Item, now_s: float) -> Item:
    """Whoever has not got it is due now, also who has failed, and the time to give it up begins anew."""
    again = _changed(item, "queued", "held", "deferred", "failed", "uncertain")
    is_mixed = item.is_doubt_mixed or bool(item.with_state("uncertain"))
    return replace(again, next_s=int(now_s), since_s=int(now_s), uncertain_s=0, is_doubt_mixed=is_mixed)


def _changed(item: Item, to: State, *states: State) -> Item:
    recipients = tuple(replace(r, state=to, is_reported=False) if r.state in states else r for r in item.recipients)
    return replace(item, recipients=recipients)


# -- what a person is told


def owes_report(item: Item) -> tuple[Recipient, ...]:
    """Who has failed without a report yet."""
    return tuple(r for r in item.recipients if r.state == "failed" and not r.is_reported)


def owes_delay_notice(item: Item, now_s: float) -> bool:
    """Whether it has been deferred for so long that its sender should know."""
    is_late = now_s - item.since_s >= DELAY_NOTICE_S
    return is_late and not item.is_delay_told and bool(item.with_state("deferred"))
