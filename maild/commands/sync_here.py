"""`maild sync` where no daemon runs: the pass is made in this process, which holds the lock of the state directory."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import anyio

from maild import log
from maild.commands.progress import shown
from maild.config import Config, load
from maild.config.values import LogLevel
from maild.engine.account import sync_account
from maild.engine.limits import settle_in
from maild.engine.poll import poll_account
from maild.engine.report import AccountReport
from maild.local.lock import InstanceLock

if TYPE_CHECKING:
    from maild.engine.submit import Drained

NO_LOG = cast("LogLevel", "critical")  # no event has this level


def run(
    targets: Mapping[str, Sequence[str]], reports: Mapping[str, AccountReport], args: argparse.Namespace
) -> Mapping[str, Drained]:
    """One pass over each, told in its report; what was sent before. Raises ConfigError, StateBusy."""
    config = load(args.config)
    log.configure(_log_level(config, args), config.log_format)
    sent: Mapping[str, Drained] = {}
    if args.send and not args.dry_run:
        sent = _send(config, list(targets) if args.targets else [])
    settle_in()
    if args.dry_run and not config.state_dir.exists():
        anyio.run(_sync_all, config, targets, reports, args)
    else:
        with InstanceLock(config.state_dir, "maild sync"):
            anyio.run(_sync_all, config, targets, reports, args)
    return sent


def _log_level(config: Config, args: argparse.Namespace) -> LogLevel:
    """The results tell all that went wrong, in one line each; a log is for who asks. `-v` shows every step."""
    if args.verbose:
        return "debug"
    return NO_LOG if config.log_level == "info" and config.log_format == "auto" else config.log_level


def _send(config: Config, names: Sequence[str]) -> Mapping[str, Drained]:
    """What is due in the outbox goes out before the pass, which then carries the copies in Sent to the server.

    Raises StateBusy while another maild drains it.
    """
    from maild.engine.submit import submit_all
    from maild.local.outbox import Outbox

    return anyio.run(partial(submit_all, config, Outbox(config.state_dir), only=names))


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
        await poll_account(account, config.state_dir, report, dry_run=dry_run)
        return
    await sync_account(account, config.state_dir, report, only=mailboxes, dry_run=dry_run)
