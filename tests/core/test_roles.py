"""Which mailbox is for what was sent, by its name."""

from __future__ import annotations

import pytest

from maild.core.roles import sent_among, usual_sent


@pytest.mark.parametrize(
    ("mailboxes", "expected"),
    [
        ([("INBOX",), ("Sent",)], ("Sent",)),
        ([("Sent Items",), ("Sent",)], ("Sent",)),
        ([("Drafts",), ("Sent Messages",)], ("Sent Messages",)),
        ([("gesendete objekte",)], ("gesendete objekte",)),
        ([("Envoye\N{COMBINING ACUTE ACCENT}s",)], ("Envoye\N{COMBINING ACUTE ACCENT}s",)),
        ([("INBOX",), ("INBOX", "Sent")], ("INBOX", "Sent")),
        ([("INBOX", "Sent"), ("Sent Items",)], ("Sent Items",)),
        ([("Archive", "Sent"), ("Absent",)], None),
        ([], None),
    ],
)
def test_by_its_name(mailboxes: list[tuple[str, ...]], expected: tuple[str, ...] | None) -> None:
    assert sent_among(mailboxes) == expected


@pytest.mark.parametrize(
    ("mailboxes", "expected"),
    [
        ([], ("Sent",)),
        ([("INBOX",)], ("Sent",)),
        ([("INBOX",), ("Archive",)], ("Sent",)),
        ([("INBOX",), ("INBOX", "Archive")], ("INBOX", "Sent")),
        ([("INBOX",), ("INBOX", "Archive"), ("Lists",)], ("Sent",)),
    ],
)
def test_what_to_call_it(mailboxes: list[tuple[str, ...]], expected: tuple[str, ...]) -> None:
    assert usual_sent(mailboxes) == expected
