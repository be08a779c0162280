"""`maild outbox`: what is on its way out, for a person or as JSON, and what a person may do about it.

Exit status 0 all well, 1 when something could not be sent or done, 64 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import assert_never

import anyio

from maild import log
from maild.commands import printable
from maild.config import Config, load
from maild.control import NoDaemon, ask, nudge
from maild.core import outgoing
from maild.core.errors import MaildError, NoPermission, StateBusy
from maild.core.outgoing import Item, State
from maild.engine.submit import Drained, submit_all, told
from maild.local.outbox import Outbox

OK, FAILED, USAGE = 0, 1, 64
Document = dict[str, object]
_SHOWN_RECIPIENTS = 3
_SUBJECT_CHARACTERS = 60


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError, LocalError."""
    wants_id = args.action in ("show", "hold", "release", "cancel", "retry")
    if wants_id != bool(args.id):
        what = "needs the ID of a message; `maild outbox list` shows them" if wants_id else "takes no ID"
        print(f"maild outbox {args.action} {what}", file=sys.stderr)
        return USAGE
    config = load(args.config)
    log.configure(log.beside_results(config, is_verbose=args.verbose), config.log_format)
    outbox = Outbox(config.state_dir)
    match args.action:
        case "list":
            return _list(outbox, as_json=args.json)
        case "show":
            return _each(args, partial(_shown_document if args.json else _show, outbox))
        case "flush":
            return _flush(config, outbox, as_json=args.json)
        case action:
            status = _each(args, partial(_change, outbox, action, as_json=args.json))
            nudge(config.state_dir, {"ask": "outbox"})
            return status


def _each(args: argparse.Namespace, act: Callable[[str], Document | None]) -> int:
    """For each id; one that fails stops none of the others. As JSON an object for one id, a list for several.

    Raises NoPermission.
    """
    status, documents = OK, []
    for item_id in args.id:
        try:
            documents += [found] if (found := act(item_id)) is not None else []
        except NoPermission:
            raise
        except MaildError as exc:
            print(f"maild: {printable(str(exc))}", file=sys.stderr)
            status = FAILED
    if args.json and (documents or len(args.id) > 1):
        print(json.dumps(documents if len(args.id) > 1 else documents[0], ensure_ascii=False, indent=2))
    return status


# -- what a person may do


def _change(outbox: Outbox, action: str, item_id: str, *, as_json: bool) -> Document | None:
    item = outbox.find(item_id)
    now_s = time.time()
    match action:
        case "hold":
            item = _refused_unless("held", action, outbox.edit(item.id, outgoing.held))
        case "release":
            item = _refused_unless("queued", action, outbox.edit(item.id, partial(outgoing.released, now_s=now_s)))
        case "retry":
            item = outbox.edit(item.id, partial(outgoing.retried, now_s=now_s))
        case _:
            item = outbox.cancel(item.id)
    if as_json:
        return json_item(item)
    sent = len(item.with_state("sent"))
    note = f" ({sent} of {len(item.recipients)} recipients have got it)" if sent and action == "cancel" else ""
    print(f"{item.id}: {'cancelled' if action == 'cancel' else item.state}{note}")
    return None


def _refused_unless(wanted: State, action: str, item: Item) -> Item:
    """The item if what was to be done could be done for anybody. Raises MaildError."""
    if item.with_state(wanted):
        return item
    hints: dict[State, str] = {
        "deferred": f"it is tried again by itself, or now after `maild outbox retry {item.id}`",
        "failed": f"nothing more is sent of it before `maild outbox retry {item.id}`",
        "uncertain": f"the server did not say whether it took the message; `maild outbox cancel {item.id}` keeps it "
        "from being sent again",
    }
    raise MaildError(f"cannot {action} {item.id}: it is {item.state}", hints.get(item.state, ""))


def _flush(config: Config, outbox: Outbox, *, as_json: bool) -> int:
    try:
        results = _flushed(config, outbox)
    except StateBusy as exc:
        print(f"maild: {exc}", file=sys.stderr)
        return FAILED
    if as_json:
        print(json.dumps({"accounts": {name: told(d) for name, d in results.items()}}, indent=2))
    for name, drained in results.items():
        if drained.error is not None:
            print(printable(f"maild: {name}: {drained.error}"), file=sys.stderr)
        if not as_json:
            print(f"{name}: {drained.in_words}{_left(outbox, name) if drained.is_nothing else ''}")
    if not results and not as_json:
        print("nothing is waiting")
    is_readable = _tell_unreadable(outbox)
    return OK if is_readable and all(drained.is_well for drained in results.values()) else FAILED


def _left(outbox: Outbox, account: str) -> str:
    """What is in the outbox all the same, where nothing was tried."""
    states = Counter(item.state for item in outbox.contents().items if item.account == account)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f" (in the outbox: {told})" if told else ""


def _flushed(config: Config, outbox: Outbox) -> dict[str, Drained]:
    """By the daemon, or in this process without one. Raises StateBusy, Refused."""
    try:
        return drained_by_daemon(config.state_dir)
    except NoDaemon:
        return anyio.run(partial(submit_all, config, outbox, everything=True))


def drained_by_daemon(state_dir: Path, only: Sequence[str] | None = None) -> dict[str, Drained]:
    """Have a daemon try all that waits, or what is due of `only` these accounts. Raises NoDaemon, Refused."""
    request = {"ask": "flush"} if only is None else {"ask": "send", "accounts": list(only)}
    results: dict[str, Drained] = {}
    for name, facts in ask(state_dir, request, timeout_s=None).items():
        error = None if facts["error"] is None else MaildError(facts["error"])
        results[name] = Drained(name, Counter(facts["counts"]), error)
    return results


# -- what a person is shown


def _list(outbox: Outbox, *, as_json: bool) -> int:
    contents = outbox.contents()
    if as_json:
        print(json.dumps([json_item(item) for item in contents.items], ensure_ascii=False, indent=2))
    else:
        for item in contents.items:
            print(_line(item, time.time()))
        if not contents.items and not contents.unreadable:
            print("the outbox is empty")
    return OK if _tell_unreadable(outbox) else FAILED


def _tell_unreadable(outbox: Outbox) -> bool:
    """Whether all items could be read; those that could not are told."""
    unreadable = outbox.contents().unreadable
    for reason in unreadable.values():
        print(printable(f"maild: {outbox.path}: cannot read {reason}"), file=sys.stderr)
    return not unreadable


def json_item(item: Item) -> dict[str, object]:
    """The JSON form of the contract. `next_attempt` is null where none will come by itself."""
    wakes_at = item.wakes_at()
    return {
        "id": item.id,
        "account": item.account,
        "sender": item.sender,
        "state": item.state,
        "attempts": item.attempts,
        "next_attempt": None if wakes_at is None else _utc(wakes_at),
        "size": item.size_octets,
        "subject": item.subject,
        "message_id": item.message_id,
        "accepted": _utc(item.created_s),
        "recipients": [{"address": r.address, "state": r.state, "reply": r.reply or None} for r in item.recipients],
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _line(item: Item, now_s: float) -> str:
    """One message: id, state, when next, to whom and about what; below it what servers said."""
    people = [recipient.address for recipient in item.recipients]
    to = ", ".join(people[:_SHOWN_RECIPIENTS])
    to += f" and {len(people) - _SHOWN_RECIPIENTS} more" if len(people) > _SHOWN_RECIPIENTS else ""
    subject = item.subject[:_SUBJECT_CHARACTERS] or "(no subject)"
    head = printable(f"{item.id}  {item.account}  {_state(item, now_s)}  to {to}: {subject}")
    said = [f"    {r.address}: {r.state}: {r.reply}" for r in item.recipients if r.reply and r.state != "sent"]
    return "\n".join([head, *map(printable, said)])


def _state(item: Item, now_s: float) -> str:
    state: State = item.state
    wakes_at = item.wakes_at()
    match state:
        case "queued" | "deferred" | "uncertain":
            if item.phase:
                return "being sent"
            after_s = (wakes_at or 0) - now_s
            if after_s <= 0:
                return state
            what = "next try" if item.attempts else "to be sent"
            return f"{state}, {what} in {_duration(after_s)}"
        case "held" | "failed" | "sent":
            return state
        case _:
            assert_never(state)


def _duration(seconds: float) -> str:
    """Roughly, as `45 s`, `12 min`, `3.5 h` or `2 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"


def _shown_document(outbox: Outbox, item_id: str) -> Document:
    item = outbox.find(item_id)
    return {**json_item(item), "message": outbox.text(item.id).decode("utf-8", "replace")}


def _show(outbox: Outbox, item_id: str) -> None:
    """What is known, then the message. Raises LocalError where that cannot be read."""
    item = outbox.find(item_id)
    for line in _facts(item):
        print(printable(line))
    text = outbox.text(item.id).decode("utf-8", "replace")
    print()
    for line in text.split("\n"):
        print(printable(line.replace("\t", "        ")))


def _facts(item: Item) -> Iterable[str]:
    facts: Sequence[tuple[str, str]] = (
        ("id", item.id),
        ("account", item.account),
        ("envelope sender", item.sender or "<> (none)"),
        ("state", _state(item, time.time())),
        ("accepted", _utc(item.created_s)),
        ("tries", str(item.attempts)),
        ("size", f"{item.size_octets:,} octets"),
    )
    yield from (f"{name + ':':<17}{value}" for name, value in facts)
    for recipient in item.recipients:
        reply = f" ({recipient.reply})" if recipient.reply else ""
        yield f"{'to:':<17}{recipient.address}: {recipient.state}{reply}"
