"""What tells whether a message on a server is the one that was sent: it may have got fields, or another Message-ID.

To take a message for sent that was lost is the worst that can happen here, so what could be the copy of another message
proves nothing: there may be several of one second, to the same people, about the same, such as those of two alarms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime

from maild.core.addresses import AddressError, parse_list
from maild.core.head import Message, decoded, disk_form, divide

_Traits = tuple[float, frozenset[tuple[str, str]], str]
_MARK_OCTETS = 8


@dataclass(frozen=True, slots=True)
class Marks:
    """A message's Message-ID and its traits as digests, "" for what it has not: to be compared, never to be read."""

    message_id: str
    traits: str


@dataclass(frozen=True, slots=True)
class Likeness:
    """A message by its head: Message-ID; and Date, recipients of To and Cc, and subject, where all of these are known.

    `sent_s` is not after it was sent first, in seconds since 1970 UTC. `is_id_telling`, `are_traits_telling`: no other
    message that may be on the server has the same, as far as is known (`among`).
    """

    message_id: str
    traits: _Traits | None
    sent_s: int
    is_id_telling: bool = True
    are_traits_telling: bool = True

    @classmethod
    def of(cls, octets: bytes, sent_s: int = 0) -> Likeness:
        """That of a message, or of its head alone, in either form."""
        message = divide(disk_form(octets))
        return cls(message.first("message-id"), _traits(message), sent_s)

    @property
    def marks(self) -> Marks:
        traits = self.traits
        parts = () if traits is None else (repr(traits[0]), repr(sorted(traits[1])), traits[2])
        return Marks(_mark(self.message_id), _mark("\n".join(parts)))

    def among(self, others: Iterable[Marks]) -> Likeness:
        """The same, told apart from other messages that may be on the server: what they share with it tells nothing."""
        mine, known = self.marks, list(others)
        return replace(
            self,
            is_id_telling=self.is_id_telling and mine.message_id not in {other.message_id for other in known},
            are_traits_telling=self.are_traits_telling and mine.traits not in {other.traits for other in known},
        )

    @property
    def is_telling(self) -> bool:
        """Whether any message could be known to be this one."""
        by_traits = self.are_traits_telling and self.traits is not None
        return by_traits or (self.is_id_telling and self.message_id != "")

    def fits(self, octets: bytes) -> bool:
        """Whether a message, or its head, is this one: by Message-ID, else by Date and recipients.

        A subject that differs is another message: a program may send several within a second. So is another Message-ID
        from where ours comes from: a server that replaces them names itself.
        """
        other = Likeness.of(octets)
        if self.message_id and self.message_id == other.message_id:
            return self.is_id_telling
        is_alike = self.traits is not None and self.traits == other.traits
        return self.are_traits_telling and is_alike and _may_be_replaced(self.message_id, other.message_id)


def _mark(text: str) -> str:
    octets = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(octets, digest_size=_MARK_OCTETS).hexdigest() if text else ""


def _may_be_replaced(ours: str, theirs: str) -> bool:
    origins = [message_id.rpartition("@")[2].strip("<> \t").lower() for message_id in (ours, theirs)]
    return not theirs or origins[0] != origins[1]


def _traits(message: Message) -> _Traits | None:
    try:
        at_s = parsedate_to_datetime(message.first("date")).timestamp()
        recipients = frozenset(a.key for body in message.bodies("to", "cc") for a in parse_list(body))
    except (ValueError, OverflowError, AddressError):
        return None
    return (at_s, recipients, " ".join(decoded(message.first("subject")).split())) if recipients else None
