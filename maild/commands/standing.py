"""The document of `maild status` as lines for a person: one block per account, then what somebody should look at.

Whether stored state or a daemon made the document makes no difference here. Nothing that came from a server reaches
the terminal unescaped.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from maild.commands import printable
from maild.engine.status import AccountDocument, Document, MailboxDocument, OutboxDocument, RefusedDocument

_BOLD, RED, YELLOW, GREEN = "1", "31", "33", "32"
_COLOURS = {
    **dict.fromkeys(("error", "refused", "auth_rejected"), RED),
    **dict.fromkeys(("pending", "offline", "backing_off"), YELLOW),
    **dict.fromkeys(("idle", "syncing", "ok"), GREEN),
}
_STATES = {"backing_off": "backing off", "auth_rejected": "login refused"}
_PUSH = {"notify": "pushed by NOTIFY", "idle": "pushed by IDLE", "poll": "polled"}
_WIDEST = 100  # columns: longer lines of text are hard to read
_WIDEST_NAME = 28
_STATE_WIDTH = 9  # `refused`, and two blanks
_NARROWEST_TEXT = 20
_SHOWN_REASONS, _SHOWN_MESSAGES = 3, 3

_Group = tuple[str, list[str], int, str]  # reason, ids of messages, octets of all, first seen


@dataclass(frozen=True, slots=True)
class Look:
    """How it is to be shown: width in columns, colours or none, every mailbox or those with something to say."""

    width: int = 80
    is_coloured: bool = False
    is_complete: bool = False


def lines(document: Document, look: Look, now_s: float) -> Iterator[str]:
    """The whole of it, without line ends."""
    width = max(map(_cells, document["accounts"]), default=0)
    for name, account in document["accounts"].items():
        yield from _account(name, account, document, look, width, now_s)
        yield ""
    yield from _outbox(document["outbox"], look)
    yield from _daemon(document, look)


def _account(
    name: str, account: AccountDocument, document: Document, look: Look, width: int, now_s: float
) -> Iterator[str]:
    mailboxes, error, last_sync = account["mailboxes"], account["error"], account["last_sync"]
    is_new = account["protocol"] != "smtp" and last_sync is None and error is None
    facts = [account["protocol"].upper(), *_doing(account, document, look)]
    if last_sync is not None:
        facts.append(f"last sync {_ago(now_s - datetime.fromisoformat(last_sync).timestamp())}")
    elif is_new:
        facts.append("never synchronised")
    yield f"{paint(_padded(printable(name), width), _BOLD, look)}  {', '.join(facts)}"
    if error is not None:
        yield from behind("  failed: ", error, look, RED)
    if account["state"] == "auth_rejected" and document["daemon"] is not None:
        yield from behind("  ", "not tried again until the secret is another one, or after `maild reload`", look)
    if is_new and document["daemon"] is None:
        yield f"  to begin: maild sync {shlex.quote(name)}"
    if mailboxes:
        yield f"  {_totals(mailboxes.values())}"
    told = {name: m for name, m in mailboxes.items() if look.is_complete or _has_something_to_say(m)}
    columns = [cells for mailbox in told if (cells := _cells(printable(mailbox))) <= _WIDEST_NAME]
    for mailbox, facts_of_it in told.items():
        yield from _mailbox(name, mailbox, facts_of_it, look, max(columns, default=0))


def _doing(account: AccountDocument, document: Document, look: Look) -> list[str]:
    """State and push; without a daemon every account is stopped, which is said once, at the end."""
    if document["daemon"] is None:
        return ["sends only"] if account["protocol"] == "smtp" else []
    state = printable(account["state"])
    doing = [paint(_STATES.get(state, state), _COLOURS.get(state, ""), look)]
    if account["push"] is not None:
        reason = printable(account.get("push_reason", ""))
        doing.append(_PUSH.get(account["push"], printable(account["push"])) + (f" ({reason})" if reason else ""))
    return doing


def _ago(seconds: float) -> str:
    """Roughly, as `12 min ago`."""
    for limit, size, unit in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) / size:.0f} {unit} ago"
    return f"{seconds / 86400:,.0f} days ago"


def _totals(mailboxes: Iterable[MailboxDocument]) -> str:
    """For example `12 mailboxes, 104,233 messages, 1,204 unseen`."""
    all_of_them = list(mailboxes)
    told = [
        _counted(len(all_of_them), "mailbox", "mailboxes"),
        _counted(sum(m["messages"] for m in all_of_them), "message"),
    ]
    unseen = [m["unseen"] for m in all_of_them if m["unseen"] is not None]
    return ", ".join(told + ([f"{sum(unseen):,} unseen"] if unseen else []))


def _has_something_to_say(mailbox: MailboxDocument) -> bool:
    return bool(mailbox["state"] in ("refused", "error") or mailbox["skipped"] or mailbox["held_back"])


# -- one mailbox


def _mailbox(account: str, name: str, mailbox: MailboxDocument, look: Look, column: int) -> Iterator[str]:
    """One row of a table, and below it what there is to say about the mailbox."""
    shown, state = printable(name), printable(mailbox["state"])
    if _cells(shown) > column:  # a line of its own
        yield f"  {shown}"
        shown = ""
    painted = paint(_padded(state, _STATE_WIDTH), _COLOURS.get(state, ""), look)
    yield f"  {_padded(shown, column)}  {painted}{_totals([mailbox]).partition(', ')[2]}"
    if (plan := mailbox["refused"]) is not None:
        yield from _refused(f"{account}/{name}", plan, look)
    if mailbox["error"] is not None:
        yield from behind("    ", mailbox["error"], look)
    skipped = _groups((m["uid"], m["reason"], m["size"], m["since"]) for m in mailbox["skipped"])
    yield from _withheld("left on the server", "uid", skipped, look)
    held_back = _groups((m["file"], m["reason"], m["size"], m["since"]) for m in mailbox["held_back"])
    yield from _withheld("not sent to the server", "file", held_back, look)


def _refused(target: str, plan: RefusedDocument, look: Look) -> Iterator[str]:
    yield from behind("    ", plan["reason"], look)
    sides = ((plan["there"], "on the server"), (plan["here"], "here"))
    told = [f"{_counted(count, 'message')} {where}" for count, where in sides if count]
    if plan["approved"]:
        what = f"{' and '.join(told)} will be deleted" if told else "it is carried out"
        yield from behind("    ", f"approved: {what} with the next pass", look)
        return
    what = f"to delete {' and '.join(told)} after all" if told else "if that is right"
    command = f"maild approve {shlex.quote(printable(target))}"
    if _cells(f"    {what}: {command}") <= look.width:
        yield f"    {what}: {command}"
    else:  # in one piece, to be copied
        yield from (f"    {what}:", f"      {command}")


def _groups(messages: Iterable[tuple[str, str, int, str]]) -> list[_Group]:
    """Messages by reason, the reason with the most of them first."""
    found: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for message, reason, size_octets, since in messages:
        found[reason].append((message, size_octets, since))
    groups = [(r, [m for m, _, _ in of], sum(s for _, s, _ in of), min(t for _, _, t in of)) for r, of in found.items()]
    return sorted(groups, key=lambda group: -len(group[1]))


def _withheld(what: str, kind: str, groups: Sequence[_Group], look: Look) -> Iterator[str]:
    """How many messages did not travel, and for the commonest reasons which and since when."""
    if not groups:
        return
    yield f"    {paint(_counted(sum(len(ids) for _, ids, _, _ in groups), 'message'), YELLOW, look)} {what}:"
    for reason, ids, size_octets, since in groups[:_SHOWN_REASONS]:
        some = ", ".join(sorted(ids, key=lambda id_: (len(id_), id_))[:_SHOWN_MESSAGES])
        some += f" and {len(ids) - _SHOWN_MESSAGES:,} more" if len(ids) > _SHOWN_MESSAGES else ""
        size = f"{_size(size_octets)}, " if size_octets else ""
        named = f"{kind} {some}" if len(ids) == 1 else f"{kind}s {some}"
        yield from behind("      ", f"{reason}: {named} ({size}since {_day(since)})", look)
    if left := sum(len(ids) for _, ids, _, _ in groups[_SHOWN_REASONS:]):
        yield from behind("      ", f"{left:,} more, for other reasons: maild status --json", look)


def _day(since: str) -> str:
    return datetime.fromisoformat(since).astimezone(UTC).strftime("%Y-%m-%d")


def _size(octets: int) -> str:
    """As in the config: K, M and G are powers of 1,024."""
    for unit, factor in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if octets >= factor:
            return f"{octets / factor:,.1f}{unit}"
    return f"{octets} octets"


# -- what stands below the accounts


def _outbox(outbox: OutboxDocument, look: Look) -> Iterator[str]:
    if error := outbox.get("error"):
        yield from behind("outbox: ", error, look, RED)
        return
    counts = (
        (outbox["queued"], "queued", ""),
        (outbox["held"], "held", ""),
        (outbox["deferred"], "deferred", YELLOW),
        (outbox["uncertain"], "uncertain", YELLOW),
        (outbox["failed"], "failed", RED),
    )
    told = [paint(f"{count:,} {state}", colour, look) for count, state, colour in counts if count]
    yield f"outbox: {', '.join(told)}; see maild outbox" if told else "outbox: empty"


def _daemon(document: Document, look: Look) -> Iterator[str]:
    if (daemon := document["daemon"]) is not None:
        yield f"daemon: pid {daemon['pid']}, running for {_ago(daemon['uptime_s']).removesuffix(' ago')}"
        return
    yield from behind("", "No daemon is running; this is how the last pass left it.", look)


# -- text in columns


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def look_of(stream: TextIO, *, is_complete: bool = False, is_wrapped: bool = True) -> Look:
    """How it is to be shown there: no colours but on a terminal without NO_COLOR, no lines that are hard to read."""
    is_terminal = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    width = min(shutil.get_terminal_size().columns, _WIDEST) if is_terminal or is_wrapped else sys.maxsize
    return Look(width, is_terminal and not os.environ.get("NO_COLOR"), is_complete)


def paint(text: str, colour: str, look: Look) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if look.is_coloured and colour else text


def behind(head: str, text: str, look: Look, colour: str = "") -> Iterator[str]:
    """Text behind `head`, filled to the width, its further lines below its first; made safe to print.

    A word that is longer than a line stays in one piece, to be copied.
    """
    room = max(look.width - _cells(head), _NARROWEST_TEXT)
    start, line = paint(head, colour, look), ""
    for word in printable(text).split():
        if line and _cells(line) + 1 + _cells(word) > room:
            yield start + line
            start, line = " " * _cells(head), ""
        line += f" {word}" if line else word
    yield start + line


def _padded(text: str, columns: int) -> str:
    return text + " " * (columns - _cells(text))


def _cells(text: str) -> int:
    """How many columns it takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
