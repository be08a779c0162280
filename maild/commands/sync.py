"""`maild sync`: one full pass now, with progress on a terminal, one JSON document, or a plan.

Results go to standard output, progress and diagnostics to standard error. Exit status 0 all well, 1 when an account or
a mailbox failed or was refused; the others were still done.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from maild import log
from maild.commands import no_such_account, printable
from maild.commands.progress import shown
from maild.config import Account, Config, load
from maild.control import Conversation, NoDaemon, note_progress
from maild.engine.limits import settle_in
from maild.engine.report import AccountReport, MailboxReport
from maild.local.lock import InstanceLock

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True)
class _Target:
    """An account, and the mailboxes of it that were asked for; none means all."""

    account: Account
    mailboxes: tuple[str, ...]


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError and, for a busy state directory, StateBusy."""
    config = load(args.config)
    log.configure(log.beside_results(config, is_verbose=args.verbose), config.log_format)
    try:
        targets, senders = _targets(config, args.targets, may_send=args.send)
    except LookupError as exc:
        print(printable(f"maild: {exc.args[0]}"), file=sys.stderr)
        return USAGE
    reports = {target.account.name: AccountReport(target.account.name) for target in targets}
    sent: Mapping[str, Drained] = {}
    if args.send and not args.dry_run:
        sent = _send(config, [*(target.account.name for target in targets), *senders] if args.targets else [])
    if args.targets and not targets:
        pass  # they only send
    elif _by_daemon(config, targets, reports, args):
        pass
    elif args.dry_run and not config.state_dir.exists():
        settle_in()
        anyio.run(_sync_all, config, targets, reports, args)
    else:
        settle_in()
        with InstanceLock(config.state_dir, "maild sync"):
            anyio.run(_sync_all, config, targets, reports, args)
    if args.json:
        results = {"sent": {name: _json_sent(one) for name, one in sent.items()}} if args.send else {}
        print(json.dumps({**document(reports), **results}, ensure_ascii=False, indent=2))
    else:
        _print_results(reports, is_plan=args.dry_run)
        _print_sent(sent, senders)
    return OK if all(report.ok for report in reports.values()) and all(s.is_well for s in sent.values()) else FAILED


def _send(config: Config, names: Sequence[str]) -> Mapping[str, Drained]:
    """What is due in the outbox goes out before the pass, which then carries the copies in Sent to the server.

    By the daemon where one runs. Raises StateBusy while another maild drains it, Refused.
    """
    from maild.commands.outbox import drained_by_daemon
    from maild.engine.submit import submit_all
    from maild.local.outbox import Outbox

    try:
        return drained_by_daemon(config.state_dir, names)
    except NoDaemon:
        return anyio.run(partial(submit_all, config, Outbox(config.state_dir), only=names))


def _targets(config: Config, words: Sequence[str], *, may_send: bool) -> tuple[list[_Target], list[str]]:
    """What was asked for; by default all that have mail on a server. Beside it accounts that only send, if they may.

    Raises LookupError with a text for the user.
    """
    senders: list[str] = []
    wanted: dict[str, set[str]] = defaultdict(set)
    whole: set[str] = set()
    for word in words:
        name, slash, mailbox = word.partition("/")
        if name not in config.accounts:
            raise LookupError(no_such_account(name, config.accounts))
        if not _is_pulled(config.accounts[name]):
            if not may_send or slash:
                raise LookupError(f"account {name!r} has neither an imap nor a pop3 section: it has nothing to pull")
            senders += [] if name in senders else [name]
            continue
        if mailbox not in ("", "INBOX") and config.accounts[name].pop3 is not None:
            raise LookupError(f"account {name!r} is a POP3 account: its one mailbox on the server is INBOX")
        whole.update([name] if not slash else [])
        wanted[name].update([mailbox] if slash else [])
    if not words:
        whole.update(name for name, account in config.accounts.items() if _is_pulled(account))
    chosen = [name for name in config.accounts if name in whole or name in wanted]
    targets = [_Target(config.accounts[n], () if n in whole else tuple(sorted(wanted[n]))) for n in chosen]
    return targets, senders


def _by_daemon(
    config: Config, targets: Sequence[_Target], reports: Mapping[str, AccountReport], args: argparse.Namespace
) -> bool:
    """Have the daemon do it, and show how far it is; False where none runs. Raises Refused."""
    wanted = {target.account.name: list(target.mailboxes) for target in targets}
    try:
        talk = Conversation(config.state_dir, {"ask": "sync", "targets": wanted, "dry_run": args.dry_run}, None)
    except NoDaemon:
        return False
    anyio.run(_listen, talk, reports, not args.json)
    return True


async def _listen(talk: Conversation, reports: Mapping[str, AccountReport], is_shown: bool) -> None:
    """Bring the reports up to date with what the daemon says until it is done."""

    def listen() -> None:
        for message in talk:
            _note(reports, message["progress"])

    async with shown(reports.values(), is_wanted=is_shown):
        await anyio.to_thread.run_sync(listen, abandon_on_cancel=True)
    _note(reports, talk.result)


def _note(reports: Mapping[str, AccountReport], told: Mapping[str, Mapping[str, object]]) -> None:
    for name, progress in told.items():
        note_progress(reports[name], progress)


def _is_pulled(account: Account) -> bool:
    return account.imap is not None or account.pop3 is not None


async def _sync_all(
    config: Config, targets: Sequence[_Target], reports: Mapping[str, AccountReport], args: argparse.Namespace
) -> None:
    """All accounts side by side; one that fails stops none of the others."""
    async with shown(reports.values(), is_wanted=not args.json), anyio.create_task_group() as tasks:
        for target in targets:
            report = reports[target.account.name]
            tasks.start_soon(_sync_one, target, config, report, args.dry_run)


async def _sync_one(target: _Target, config: Config, report: AccountReport, dry_run: bool) -> None:
    if target.account.pop3 is not None:
        from maild.engine.poll import poll_account  # here: of the two kinds many have one only, and each takes 5 MiB

        await poll_account(target.account, config.state_dir, report, dry_run=dry_run)
        return
    from maild.engine.account import sync_account

    await sync_account(target.account, config.state_dir, report, only=target.mailboxes, dry_run=dry_run)


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
        (mailbox.held_back, "{} not taken by the server"),
    )
    return ", ".join(text.format(f"{count:,}") for count, text in told if count)
