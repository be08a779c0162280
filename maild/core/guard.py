"""The deletion guard: refuses a plan that would empty a side (contract 5). Pure.

Refused is a plan that deletes, on either side, every message of a mailbox that holds at least 10, or more than the
account's limit and at least 20. Which message is to be deleted has been proven before; the guard is for proofs that are
right and still not what anybody wanted: an emptied server, a Maildir restored in part, a slip of the hand.
"""

from __future__ import annotations

import shlex

from maild.core.errors import PlanRefused

ALL_OF_AT_LEAST = 10
MANY_AT_LEAST = 20
MAILBOXES_AT_LEAST = 3

HERE, THERE = "here", "on the server"


def is_too_many(deletions: int, messages: int, allowed: int) -> bool:
    """Whether so many `deletions` of a mailbox's `messages` need a person's yes; `allowed` is the account's limit."""
    return deletions >= messages >= ALL_OF_AT_LEAST or (deletions >= MANY_AT_LEAST and deletions > allowed)


def refusal(account: str, mailbox: str, deletions: int, messages: int, side: str) -> PlanRefused:
    """What to say about a plan that would delete on `side`, HERE or THERE, what is gone on the other."""
    other = THERE if side == HERE else HERE
    return PlanRefused(
        f"mailbox {mailbox}: {deletions} of {messages} messages are gone {other}; none was deleted {side}",
        f"if that is right: {approval(account, mailbox)}; if not, put them back",
    )


def approval(account: str, mailbox: str) -> str:
    """The command that releases a plan, as it is typed in a shell."""
    return f"maild approve {shlex.quote(f'{account}/{mailbox}')}"


def are_too_many_mailboxes(gone: int, known: int) -> bool:
    """Whether so many mailboxes have gone from the server at once that it is more likely a fault than a wish."""
    return gone >= MAILBOXES_AT_LEAST and gone * 2 > known
