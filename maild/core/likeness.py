"""What tells whether a message on a server is the one that was sent: it may have got fields, or another Message-ID."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from maild.core.addresses import AddressError, parse_list
from maild.core.head import Message, decoded, disk_form, divide


@dataclass(frozen=True, slots=True)
class Likeness:
    """A message by its head: Message-ID; and Date, recipients of To and Cc, and subject, where all of these are known.

    `sent_s` is not after it was sent first, in seconds since 1970 UTC.
    """

    message_id: str
    traits: tuple[float, frozenset[tuple[str, str]], str] | None
    sent_s: int

    @classmethod
    def of(cls, octets: bytes, sent_s: int = 0) -> Likeness:
        """That of a message, or of its head alone, in either form."""
        message = divide(disk_form(octets))
        return cls(message.first("message-id"), _traits(message), sent_s)

    def fits(self, octets: bytes) -> bool:
        """Whether a message, or its head, is this one: by Message-ID, else by Date and recipients.

        A subject that differs is another message: a program may send several within a second.
        """
        other = Likeness.of(octets)
        if self.message_id and self.message_id == other.message_id:
            return True
        return self.traits is not None and self.traits == other.traits


def _traits(message: Message) -> tuple[float, frozenset[tuple[str, str]], str] | None:
    try:
        at_s = parsedate_to_datetime(message.first("date")).timestamp()
        recipients = frozenset(a.key for body in message.bodies("to", "cc") for a in parse_list(body))
    except (ValueError, OverflowError, AddressError):
        return None
    return (at_s, recipients, " ".join(decoded(message.first("subject")).split())) if recipients else None
