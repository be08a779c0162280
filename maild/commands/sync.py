"""`maild sync`: one full pass now, with progress on a terminal, one JSON document, or a plan.

Where a daemon runs it makes the pass, and this process does no more than ask and tell: it needs neither the whole
config nor an event loop. Without one see `sync_here`. Results go to standard output, progress and diagnostics to
standard error. Exit status 0 all well, 1 when an account or a mailbox failed or was refused; others were still done.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from maild.commands import no_such_account, printable
from maild.config.outline import Outline, read_outline
from maild.control import Conversation, NoDaemon, note_progress
from maild.engine.report import AccountReport, MailboxReport

if TYPE_CHECKING:
    import argparse

    from maild.engine.submit import Drained

OK, FAILED, USAGE = 0, 1, 64
COUNTERS = {  # in JSON → those of the report that it sums up
    "pulled": ("pulled",),
    "pushed": ("pushed",),
    "flags": ("flags", "flags_there"),
    "deleted": ("deleted", "deleted_there"),
    "moved": ("moved", "moved_there"),
    "refused": ("refused",),
    "skipped": ("skipped", "held_back"),
    "adopted": ("adopted",),
}

Targets = Mapping[str, Sequence[str]]  # an account, and the mailboxes of it that were asked for; none means all


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError and, for a busy state directory, StateBusy."""
    outline = read_outline(args.config)
    try:
        targets, senders = _targets(outline, args.targets, may_send=args.send)
    except LookupError as exc:
        from maild.config import load

        load(args.config)  # what is wrong with the config comes first
        print(printable(f"maild: {exc.args[0]}"), file=sys.stderr)
        return USAGE
    reports = {name: AccountReport(name) for name in targets}
    names = [*targets, *senders] if args.targets else []
    sent: Mapping[str, Drained] | None = {}
    if args.send and not args.dry_run:
        sent = _sent_by_daemon(outline, names)
    if args.targets and not targets and sent is not None:
        pass  # they only send
    elif sent is None or not _by_daemon(outline, targets, reports, args):
        from maild.commands import sync_here

        sent = sync_here.run(targets, names, reports, args, sent)
    if args.json:
        results = {"sent": {name: _json_sent(one) for name, one in sent.items()}} if args.send else {}
        print(json.dumps({**document(reports), **results}, ensure_ascii=False, indent=2))
    else:
        _print_results(reports, is_plan=args.dry_run)
        _print_sent(sent, senders)
    return OK if all(report.ok for report in reports.values()) and all(s.is_well for s in sent.values()) else FAILED


def _sent_by_daemon(outline: Outline, names: Sequence[str]) -> Mapping[str, Drained] | None:
    """What is due in the outbox goes out before the pass, which then carries the copies in Sent to the server.

    None where no daemon runs. Raises Refused.
    """
    from maild.commands.outbox import drained_by_daemon

    try:
        return drained_by_daemon(outline.state_dir, names)
    except NoDaemon:
        return None


def _targets(outline: Outline, words: Sequence[str], *, may_send: bool) -> tuple[Targets, list[str]]:
    """What was asked for; by default all that have mail on a server. Beside it accounts that only send, if they may.

    Raises LookupError with a text for the user.
    """
    senders: list[str] = []
    wanted: dict[str, set[str]] = defaultdict(set)
    whole: set[str] = set()
    for word in words:
        name, slash, mailbox = word.partition("/")
        protocol = outline.accounts.get(name)
        if protocol is None:
            raise LookupError(no_such_account(name, outline.accounts))
        if protocol == "smtp":
            if not may_send or slash:
                raise LookupError(f"account {name!r} has neither an imap nor a pop3 section: it has nothing to pull")
            senders += [] if name in senders else [name]
            continue
        if protocol == "pop3" and mailbox not in ("", "INBOX"):
            raise LookupError(f"account {name!r} is a POP3 account: its one mailbox on the server is INBOX")
        whole.update([name] if not slash else [])
        wanted[name].update([mailbox] if slash else [])
    if not words:
        whole.update(name for name, protocol in outline.accounts.items() if protocol != "smtp")
    chosen = [name for name in outline.accounts if name in whole or name in wanted]
    return {name: () if name in whole else tuple(sorted(wanted[name])) for name in chosen}, senders


def _by_daemon(
    outline: Outline, targets: Targets, reports: Mapping[str, AccountReport], args: argparse.Namespace
) -> bool:
    """Have the daemon do it, and show how far it is; False where none runs. Raises Refused."""
    wanted = {name: list(mailboxes) for name, mailboxes in targets.items()}
    try:
        talk = Conversation(outline.state_dir, {"ask": "sync", "targets": wanted, "dry_run": args.dry_run}, None)
    except NoDaemon:
        return False
    if not args.json and sys.stderr.isatty():
        from maild.commands.progress import listen

        listen(talk, reports)
    else:
        for message in talk:
            note(reports, message["progress"])
    note(reports, talk.result)
    return True


def note(reports: Mapping[str, AccountReport], told: Mapping[str, Mapping[str, object]]) -> None:
    """Bring the reports up to date with what the daemon said."""
    for name, progress in told.items():
        note_progress(reports[name], progress)


# -- results


def document(reports: Mapping[str, AccountReport]) -> dict[str, object]:
    """The JSON form of the contract, one entry per account."""
    return {"accounts": {name: _json_account(report) for name, report in reports.items()}}


def _json_account(report: AccountReport) -> dict[str, object]:
    return {
        "ok": report.ok,
        "error": report.first_error(),
        **{name: sum(report.total(one) for one in summed) for name, summed in COUNTERS.items()},
        "duration_s": round(report.duration_s, 3),
        **({"plan": report.plan} if report.plan else {}),
        "mailboxes": {name: _json_mailbox(mailbox) for name, mailbox in report.mailboxes.items()},
    }


def _json_mailbox(mailbox: MailboxReport) -> dict[str, object]:
    sums = {name: sum(getattr(mailbox, one) for one in summed) for name, summed in COUNTERS.items()}
    sides = {name: getattr(mailbox, name) for name in ("flags_there", "deleted_there", "moved_there", "held_back")}
    return {"state": mailbox.state, "error": mailbox.error, **sums, **sides}


def _json_sent(drained: Drained) -> dict[str, object]:
    from maild.engine.submit import told

    return told(drained)


def _print_sent(sent: Mapping[str, Drained], senders: Sequence[str]) -> None:
    """What went out; of accounts that only send also that nothing did."""
    for name, drained in sent.items():
        if drained.error is not None:
            print(printable(f"maild: {name}: {drained.error}"), file=sys.stderr)
        print(f"{name}: {drained.in_words}")
    for name in senders:
        if name not in sent:
            print(f"{name}: nothing to send")


def _print_results(reports: Mapping[str, AccountReport], *, is_plan: bool) -> None:
    for report in reports.values():
        for line in report.plan:
            print(f"{report.name}/{printable(line)}")
        for mailbox in report.mailboxes.values():
            if is_plan and (counts := _counts(mailbox, is_plan=True)):
                print(f"{report.name}/{printable(mailbox.name)}: {counts}")
            if mailbox.error is not None and mailbox.error != report.error:
                print(f"maild: {report.name}/{printable(mailbox.name)}: {printable(mailbox.error)}", file=sys.stderr)
        if report.error is not None:
            print(f"maild: {report.name}: {printable(report.error)}", file=sys.stderr)
        else:
            print(f"{report.name}: {_summary(report, is_plan=is_plan)}")


def _summary(report: AccountReport, *, is_plan: bool) -> str:
    total = MailboxReport(report.name)
    for name in (one for summed in COUNTERS.values() for one in summed):
        setattr(total, name, report.total(name))
    nothing = "nothing would change" if is_plan else "nothing new"
    return f"{_counts(total, is_plan=is_plan) or nothing} ({report.duration_s:.1f} s)"


def _counts(mailbox: MailboxReport, *, is_plan: bool) -> str:
    """For example `12 new, 3 flag changes`."""
    told = (
        (mailbox.pulled, "{} to pull" if is_plan else "{} new"),
        (mailbox.pushed, "{} to send" if is_plan else "{} sent to the server"),
        (mailbox.adopted, "{} on both sides already"),
        (mailbox.flags, "{} flag changes here"),
        (mailbox.flags_there, "{} flag changes on the server"),
        (mailbox.moved, "{} to move here" if is_plan else "{} moved here"),
        (mailbox.moved_there, "{} to move on the server" if is_plan else "{} moved on the server"),
        (mailbox.deleted, "{} to delete here" if is_plan else "{} deleted here"),
        (mailbox.deleted_there, "{} to delete on the server" if is_plan else "{} deleted on the server"),
        (mailbox.refused, "{} deletions refused"),
        (mailbox.skipped, "{} left on the server"),
        (mailbox.held_back, "{} not sent to the server"),
    )
    return ", ".join(text.format(f"{count:,}") for count, text in told if count)
