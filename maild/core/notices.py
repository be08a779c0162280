"""What a sender is told of a message that does not arrive: reports in the form of RFC 3464, readable by a person too.

They are built here and delivered on this disk; none is ever sent. Date and boundary are passed in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from maild.core.head import encoded_text
from maild.core.outgoing import Item, Recipient

_ENHANCED = re.compile(r"\d{3} ([245]\.\d{1,3}\.\d{1,3})(?: |$)")
_BASIC = re.compile(r"[2-5]\d\d(?: |$)")
_LINE_OCTETS = 900  # a server's words in one line of the report; RFC 5322 §2.1.1 allows 998


@dataclass(frozen=True, slots=True)
class Occasion:
    """When and where a report is written. `date` and `arrived` are in the form of a Date field, `remote` names the
    submission server, `original_head` is the head of the message in its disk form."""

    date: str
    arrived: str
    host: str
    remote: str
    boundary: str
    original_head: bytes


def failure_report(item: Item, failed: Sequence[Recipient], to: str, occasion: Occasion) -> bytes:
    """A message, in its disk form, that says who did not get the message and why (RFC 3464, RFC 6522)."""
    waiting = item.with_state("queued", "deferred", "uncertain", "held")
    rest = "For its other recipients maild goes on trying.\n\n" if waiting else ""
    text = (
        f"Your message could not be delivered to {_people(failed)}.\n\n"
        f"{_told(failed)}\n{rest}"
        f"It is kept in the outbox. When the cause is removed:  maild outbox retry {item.id}\n"
        f"To throw it away:  maild outbox cancel {item.id}\n\n{_about(item, occasion)}"
    )
    return _report(item, failed, to, occasion, "failed", "Undelivered", text)


def delay_notice(item: Item, to: str, occasion: Occasion) -> bytes:
    """A message, in its disk form, that says who has not got the message yet, and that maild goes on trying."""
    late = item.with_state("deferred")
    text = (
        f"Your message has not been delivered yet to {_people(late)}. There is nothing you need to do: maild goes on\n"
        f"trying for 5 days, and tells you if it gives up.\n\n{_told(late)}\n"
        f"To stop it:  maild outbox cancel {item.id}\n\n{_about(item, occasion)}"
    )
    return _report(item, late, to, occasion, "delayed", "Delayed", text)


def _report(
    item: Item, about: Sequence[Recipient], to: str, occasion: Occasion, action: str, title: str, text: str
) -> bytes:
    boundary, subject = occasion.boundary, f"{title}: {_one_line(item.subject) or '(no subject)'}"
    head = (
        f"Date: {occasion.date}\n"
        f"From: maild <{to}>\n"
        f"To: <{to}>\n"
        f"Subject: {encoded_text(subject)}\n"
        f"Message-ID: <{boundary}@{occasion.host}>\n"
        + (f"In-Reply-To: {item.message_id}\nReferences: {item.message_id}\n" if item.message_id else "")
        + "Auto-Submitted: auto-replied\n"
        "MIME-Version: 1.0\n"
        f'Content-Type: multipart/report; report-type=delivery-status; boundary="{boundary}"\n\n'
    )
    parts = (
        ("text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit", text.encode("utf-8", "replace")),
        ("message/delivery-status", _delivery_status(about, occasion, action).encode("utf-8", "replace")),
        ("text/rfc822-headers", occasion.original_head),
    )
    body = b"".join(f"--{boundary}\nContent-Type: {kind}\n\n".encode() + octets + b"\n" for kind, octets in parts)
    return head.encode("utf-8", "replace") + body + f"--{boundary}--\n".encode()


def _delivery_status(about: Sequence[Recipient], occasion: Occasion, action: str) -> str:
    """The fields of RFC 3464 §2.2 for the message, and of §2.3 for each recipient."""
    groups = [f"Reporting-MTA: dns; {occasion.host}\nArrival-Date: {occasion.arrived}\n"]
    for recipient in about:
        kind = "rfc822" if recipient.address.isascii() else "utf-8"
        lines = [
            f"Final-Recipient: {kind}; {recipient.address}",
            f"Action: {action}",
            f"Status: {status_code(recipient.reply, is_final=action == 'failed')}",
            f"Remote-MTA: dns; {occasion.remote}",
        ]
        if _BASIC.match(recipient.reply):
            lines.append(f"Diagnostic-Code: smtp; {_one_line(recipient.reply)}")
        groups.append("\n".join(lines) + "\n")
    return "\n".join(groups)


def status_code(reply: str, *, is_final: bool) -> str:
    """The enhanced status code in a reply (RFC 3463), else the class that fits."""
    found = _ENHANCED.match(reply)
    if found and found[1].startswith("5" if is_final else "4"):
        return found[1]
    return "5.0.0" if is_final else "4.0.0"


def _people(recipients: Sequence[Recipient]) -> str:
    return recipients[0].address if len(recipients) == 1 else f"{len(recipients)} recipients"


def _told(recipients: Sequence[Recipient]) -> str:
    return "".join(f"  {r.address}\n      {_one_line(r.reply) or 'no answer'}\n" for r in recipients)


def _about(item: Item, occasion: Occasion) -> str:
    return (
        f"Subject: {_one_line(item.subject)}\nMessage-ID: {item.message_id}\n"
        f"Accepted: {occasion.arrived}\nServer: {occasion.remote}\nTries: {item.attempts}\n"
    )


def _one_line(text: str) -> str:
    """No line break and no control character of a server's or a sender's words gets into a field."""
    flat = "".join(char if char.isprintable() else " " for char in text)
    return flat.encode("utf-8", "replace")[:_LINE_OCTETS].decode("utf-8", "ignore")
