"""The deletion guard: refuses a plan that would empty a side (contract 5). Pure.

Refused is a plan that deletes every message of a mailbox that holds at least 10, or more than the account's limit and
at least 20.
"""

from __future__ import annotations

from maild.core.errors import PlanRefused

ALL_OF_AT_LEAST = 10
MANY_AT_LEAST = 20


def check_deletions(mailbox: str, deletions: int, messages: int, allowed: int) -> None:
    """Raises PlanRefused when `deletions` of a mailbox's `messages` are too many; `allowed` is the account's limit."""
    is_all = deletions >= messages >= ALL_OF_AT_LEAST
    is_many = deletions >= MANY_AT_LEAST and deletions > allowed
    if is_all or is_many:
        raise PlanRefused(
            f"mailbox {mailbox}: {deletions} of {messages} messages are gone on the server; none was deleted here",
            "if that is right, remove them here by hand; a larger max_deletions lets such a plan pass unless it is all",
        )
