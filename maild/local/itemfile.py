"""An outbox item as a TOML file that a person can read: written whole by maild, and judged when it is read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, get_args

from maild.core.outgoing import STATES, Copy, Item, Notices, Phase, Recipient, Utf8


class ItemUnreadable(ValueError):
    """The file is not one that maild wrote, or somebody changed it; the text says where."""


def dump(item: Item) -> bytes:
    """The file's octets."""
    import tomli_w

    return tomli_w.dumps(_table(item)).encode()


def load(item_id: str, octets: bytes) -> Item:
    """The item of a file. Raises ItemUnreadable."""
    import tomllib

    try:
        return _item(item_id, tomllib.loads(octets.decode()))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as exc:
        reason = f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)
        raise ItemUnreadable(f"{item_id}.toml: {reason}") from exc


def _table(item: Item) -> dict[str, Any]:
    times = {"accepted": item.created_s, "since": item.since_s, "next_attempt": item.next_s}
    if item.uncertain_s:
        times["uncertain_until"] = item.uncertain_s
    notices = {name: value for name, value in asdict(item.notices).items() if value}
    return {
        "account": item.account,
        "sender": item.sender,
        "subject": item.subject,
        "message_id": item.message_id,
        "size_octets": item.size_octets,
        "is_8bit": item.is_8bit,
        "utf8": item.utf8,
        **({"notices": notices} if notices else {}),
        **{name: datetime.fromtimestamp(seconds, UTC) for name, seconds in times.items()},
        "attempts": item.attempts,
        "phase": item.phase,
        "sent_copy": item.copy,
        "is_delay_told": item.is_delay_told,
        **({"is_doubt_mixed": True} if item.is_doubt_mixed else {}),
        "recipients": [_recipient_table(recipient) for recipient in item.recipients],
    }


def _recipient_table(recipient: Recipient) -> dict[str, Any]:
    told = {"is_in_flight": recipient.is_in_flight, "is_reported": recipient.is_reported}
    return {
        "address": recipient.address,
        "state": recipient.state,
        "reply": recipient.reply.encode("utf-8", "replace").decode(),
        **{name: True for name, is_so in told.items() if is_so},
    }


def _item(item_id: str, table: Mapping[str, Any]) -> Item:
    item = Item(
        id=item_id,
        account=_text(table, "account"),
        sender=_text(table, "sender"),
        recipients=tuple(_recipient(entry) for entry in table["recipients"]),
        size_octets=int(table["size_octets"]),
        created_s=_seconds(table, "accepted"),
        since_s=_seconds(table, "since"),
        next_s=_seconds(table, "next_attempt"),
        message_id=_text(table, "message_id"),
        subject=_text(table, "subject"),
        is_8bit=bool(table["is_8bit"]),
        utf8=table["utf8"],
        notices=Notices(**{name: _text(table["notices"], name) for name in table.get("notices", {})}),
        attempts=int(table["attempts"]),
        phase=table["phase"],
        uncertain_s=_seconds(table, "uncertain_until") if "uncertain_until" in table else 0,
        copy=table["sent_copy"],
        is_delay_told=bool(table["is_delay_told"]),
        is_doubt_mixed=bool(table.get("is_doubt_mixed", False)),
    )
    check(item)
    return item


def check(item: Item) -> None:
    """See that an item that was read is one that this maild can handle. Raises ValueError."""
    if item.phase not in get_args(Phase) or item.copy not in get_args(Copy) or item.utf8 not in get_args(Utf8):
        raise ValueError("phase, sent_copy or utf8 is none that maild knows")
    if not item.recipients:
        raise ValueError("there are no recipients")
    if unknown := [recipient.state for recipient in item.recipients if recipient.state not in STATES]:
        raise ValueError(f"{unknown[0]!r} is no state of a recipient")


def _recipient(table: Mapping[str, Any]) -> Recipient:
    return Recipient(
        _text(table, "address"),
        table["state"],
        _text(table, "reply"),
        is_in_flight=bool(table.get("is_in_flight", False)),
        is_reported=bool(table.get("is_reported", False)),
    )


def _text(table: Mapping[str, Any], key: str) -> str:
    if not isinstance(table[key], str):
        raise TypeError(f"{key} must be a text")
    return str(table[key])


def _seconds(table: Mapping[str, Any], key: str) -> int:
    if not isinstance(table[key], datetime):
        raise TypeError(f"{key} must be a time")
    return int(table[key].timestamp())
