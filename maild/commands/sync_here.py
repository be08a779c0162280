"""`maild sync` where no daemon runs: the pass is made in this process, which holds the lock of the state directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio

from maild import log
from maild.commands import printable
from maild.commands.progress import shown
from maild.config import Config, load
from maild.engine.limits import settle_in
from maild.engine.report import AccountReport
from maild.local.lock import InstanceLock

if TYPE_CHECKING:
    from maild.engine.submit import Drained


def run(
    targets: Mapping[str, Sequence[str]],
    senders: Sequence[str],
    reports: Mapping[str, AccountReport],
    args: argparse.Namespace,
    sent: Mapping[str, Drained] | None,
) -> Mapping[str, Drained]:
    """One pass over each, told in its report, after sending what is due of `senders` where `sent` is None.

    Returns what was sent. Raises ConfigError, and StateBusy while another maild runs or drains the outbox.
    """
    config = load(args.config)
    log.configure(log.beside_results(config, is_verbose=args.verbose), config.log_format)
    if sent is None:
        from maild.engine.submit import submit_all
        from maild.local.outbox import Outbox

        sent = anyio.run(partial(submit_all, config, Outbox(config.state_dir), only=senders))
    if senders and not targets:
        return sent
    settle_in()
    has_hooks = bool(config.hooks.on_new_mail or config.hooks.on_change or config.hooks.on_failure)
    for report in reports.values() if has_hooks else ():
        report.delivered = []
    if args.dry_run and not config.state_dir.exists():
        anyio.run(_sync_all, config, targets, reports, args)
    else:
        with InstanceLock(config.state_dir, "maild sync"):
            anyio.run(_sync_all, config, targets, reports, args)
    if has_hooks and not args.dry_run:
        from maild.engine.hooks import HookBoard

        for complaint in anyio.run(HookBoard(config.hooks).tell, reports.values()):
            print(printable(f"maild: {complaint}"), file=sys.stderr)
    return sent


async def _sync_all(
    config: Config,
    targets: Mapping[str, Sequence[str]],
    reports: Mapping[str, AccountReport],
    args: argparse.Namespace,
) -> None:
    """All accounts side by side; one that fails stops none of the others."""
    async with shown(reports.values(), is_wanted=not args.json), anyio.create_task_group() as tasks:
        for name, mailboxes in targets.items():
            tasks.start_soon(_sync_one, config, name, mailboxes, reports[name], args.dry_run)


async def _sync_one(config: Config, name: str, mailboxes: Sequence[str], report: AccountReport, dry_run: bool) -> None:
    account = config.accounts[name]
    if account.pop3 is not None:
        from maild.engine.poll import poll_account  # here: of the two kinds many have one only, and each takes 5 MiB

        await poll_account(account, config.state_dir, report, dry_run=dry_run)
        return
    from maild.engine.account import sync_account

    await sync_account(account, config.state_dir, report, only=mailboxes, dry_run=dry_run)
