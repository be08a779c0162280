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
from typing import cast

import anyio

from maild import log
from maild.commands import printable
from maild.commands.progress import shown
from maild.config import Account, Config, load
from maild.config.values import LogLevel
from maild.engine.account import sync_account
from maild.engine.limits import settle_in
from maild.engine.report import AccountReport, MailboxReport
from maild.local.lock import InstanceLock

OK, FAILED, USAGE = 0, 1, 64
NO_LOG = cast("LogLevel", "critical")  # no event has this level
COUNTERS = ("pulled", "adopted", "flags", "deleted", "refused", "skipped")


@dataclass(frozen=True, slots=True)
class _Target:
    """An account, and the mailboxes of it that were asked for; none means all."""

    account: Account
    mailboxes: tuple[str, ...]


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError and, for a busy state directory, StateBusy."""
    config = load(args.config)
    log.configure(_log_level(config, args), config.log_format)
    try:
        targets = _targets(config, args.targets)
    except LookupError as exc:
        print(f"maild: {exc.args[0]}", file=sys.stderr)
        return USAGE
    settle_in()
    reports = {target.account.name: AccountReport(target.account.name) for target in targets}
    if args.dry_run and not config.state_dir.exists():
        anyio.run(_sync_all, config, targets, reports, args)
    else:
        with InstanceLock(config.state_dir, "maild sync"):
            anyio.run(_sync_all, config, targets, reports, args)
    if args.json:
        print(json.dumps(document(reports), ensure_ascii=False, indent=2))
    else:
        _print_results(reports, is_plan=args.dry_run)
    return OK if all(report.ok for report in reports.values()) else FAILED


def _log_level(config: Config, args: argparse.Namespace) -> LogLevel:
    """The results tell all that went wrong, in one line each; a log is for who asks. `-v` shows every step."""
    if args.verbose:
        return "debug"
    return NO_LOG if config.log_level == "info" and config.log_format == "auto" else config.log_level


def _targets(config: Config, words: Sequence[str]) -> list[_Target]:
    """What was asked for; all IMAP accounts by default. Raises LookupError with a text for the user."""
    wanted: dict[str, set[str]] = defaultdict(set)
    whole: set[str] = set()
    for word in words:
        name, slash, mailbox = word.partition("/")
        if name not in config.accounts:
            raise LookupError(f"no account is called {name!r}; there are: {', '.join(config.accounts)}")
        if config.accounts[name].imap is None:
            raise LookupError(f"account {name!r} has no imap section, and this version pulls IMAP accounts only")
        whole.update([name] if not slash else [])
        wanted[name].update([mailbox] if slash else [])
    if not words:
        whole.update(name for name, account in config.accounts.items() if account.imap is not None)
        for name in config.accounts.keys() - whole:
            print(f"maild: account {name!r} is left out: it has no imap section", file=sys.stderr)
    chosen = [name for name in config.accounts if name in whole or name in wanted]
    return [_Target(config.accounts[n], () if n in whole else tuple(sorted(wanted[n]))) for n in chosen]


async def _sync_all(
    config: Config, targets: Sequence[_Target], reports: Mapping[str, AccountReport], args: argparse.Namespace
) -> None:
    """All accounts side by side; one that fails stops none of the others."""
    async with shown(reports.values(), is_wanted=not args.json), anyio.create_task_group() as tasks:
        for target in targets:
            report = reports[target.account.name]
            tasks.start_soon(_sync_one, target, config, report, args.dry_run)


async def _sync_one(target: _Target, config: Config, report: AccountReport, dry_run: bool) -> None:
    await sync_account(target.account, config.state_dir, report, only=target.mailboxes, dry_run=dry_run)


# -- results


def document(reports: Mapping[str, AccountReport]) -> dict[str, object]:
    """The JSON form of the contract, one entry per account."""
    return {"accounts": {name: _json_account(report) for name, report in reports.items()}}


def _json_account(report: AccountReport) -> dict[str, object]:
    return {
        "ok": report.ok,
        "error": report.first_error(),
        "pulled": report.total("pulled"),
        "pushed": 0,
        "flags": report.total("flags"),
        "deleted": report.total("deleted"),
        "moved": 0,
        "refused": report.total("refused"),
        "skipped": report.total("skipped"),
        "adopted": report.total("adopted"),
        "duration_s": round(report.duration_s, 3),
        "mailboxes": {name: _json_mailbox(mailbox) for name, mailbox in report.mailboxes.items()},
    }


def _json_mailbox(mailbox: MailboxReport) -> dict[str, object]:
    return {"state": mailbox.state, "error": mailbox.error, **{name: getattr(mailbox, name) for name in COUNTERS}}


def _print_results(reports: Mapping[str, AccountReport], *, is_plan: bool) -> None:
    for report in reports.values():
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
    for name in COUNTERS:
        setattr(total, name, report.total(name))
    nothing = "nothing would change" if is_plan else "nothing new"
    return f"{_counts(total, is_plan=is_plan) or nothing} ({report.duration_s:.1f} s)"


def _counts(mailbox: MailboxReport, *, is_plan: bool) -> str:
    """For example `12 new, 3 flag changes`."""
    told = (
        (mailbox.pulled, "{} to pull" if is_plan else "{} new"),
        (mailbox.adopted, "{} already here"),
        (mailbox.flags, "{} flag changes"),
        (mailbox.deleted, "{} to delete here" if is_plan else "{} deleted here"),
        (mailbox.refused, "{} deletions refused"),
        (mailbox.skipped, "{} left on the server"),
    )
    return ", ".join(text.format(f"{count:,}") for count, text in told if count)
