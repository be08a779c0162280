"""`maild doctor`: what is between this machine and the mail, for a person or as JSON.

Exit status 0 when there is no problem, 1 otherwise, 78 where the config itself is bad, 77 where it may not be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import anyio

from maild import log
from maild.commands import no_such_account, printable
from maild.commands.standing import GREEN, RED, YELLOW, behind, look_of
from maild.config import Account, Config, examine
from maild.engine.doctor import examine_account
from maild.engine.surroundings import Finding, examine_machine, examine_maildir, mailboxes_in

OK, FAILED, USAGE, DENIED, BAD_CONFIG = 0, 1, 64, 77, 78
_SIGNS = {"ok": "ok", "note": "note", "warning": "WARNING", "problem": "PROBLEM"}
_COLOURS = {"ok": GREEN, "warning": YELLOW, "problem": RED}


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    report = examine(args.config)
    log.configure("debug" if args.verbose else log.NOTHING)
    if report.config is None:
        remedy = "correct it; maild check says the same" if report.file else "maild account add ADDRESS writes one"
        found = [Finding("problem", "config", str(error), remedy) for error in report.errors]
        _tell(found, args)
        return DENIED if report.is_denied else BAD_CONFIG
    config = report.config
    if unknown := [name for name in args.accounts if name not in config.accounts]:
        print(printable(f"maild: {no_such_account(unknown[0], config.accounts)}"), file=sys.stderr)
        return USAGE
    wanted = [config.accounts[name] for name in args.accounts] or list(config.accounts.values())
    found = anyio.run(_examined, config, wanted, args)
    if args.json:
        _tell(found, args)
    else:
        _sum_up(found)
    return FAILED if any(finding.level == "problem" for finding in found) else OK


async def _examined(config: Config, wanted: Sequence[Account], args: argparse.Namespace) -> list[Finding]:
    """Told one by one as they come, where a person reads."""
    found: list[Finding] = []

    def add(finding: Finding) -> None:
        found.append(finding)
        if not args.json:
            _print(finding)

    for account in wanted:
        for finding in examine_maildir(account, config):
            add(finding)
        async for finding in examine_account(account):
            add(finding)
    mailboxes = sum(mailboxes_in(account.maildir) for account in wanted)
    for finding in examine_machine(config, mailboxes):
        add(finding)
    return found


def _tell(found: Sequence[Finding], args: argparse.Namespace) -> None:
    if args.json:
        is_good = not any(finding.level == "problem" for finding in found)
        document = {"ok": is_good, "findings": [asdict(finding) for finding in found]}
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return
    for finding in found:
        _print(finding)


def _print(finding: Finding) -> None:
    """Wrapped and coloured on a terminal; elsewhere a line for each, and one for what to do about it."""
    look = look_of(sys.stdout, is_wrapped=False)
    where = f"{finding.account}: " if finding.account else ""
    text = f"{where}{finding.area}: {finding.text}"
    for line in behind(f"{_SIGNS[finding.level]:8} ", text, look, _COLOURS.get(finding.level, "")):
        print(line)
    if finding.remedy:
        for line in behind(f"{'':8} → ", finding.remedy, look):
            print(line, flush=True)


def _sum_up(found: Sequence[Finding]) -> None:
    counts = {level: sum(finding.level == level for finding in found) for level in ("problem", "warning")}
    print(f"problems: {counts['problem']}, warnings: {counts['warning']}")
