"""`maild run`: the daemon in the foreground. Exit status 0 after a signal, 1 where it could not start."""

from __future__ import annotations

import argparse

import anyio

from maild import log
from maild.config import load
from maild.config.values import LogLevel
from maild.daemon import Daemon
from maild.engine.limits import settle_in
from maild.local.lock import InstanceLock


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError, LocalError, StateBusy."""
    config = load(args.config)
    log_level: LogLevel | None = "debug" if args.verbose else None
    log.configure(log_level or config.log_level, config.log_format)
    settle_in()
    with InstanceLock(config.state_dir, "maild run"):
        anyio.run(_run, Daemon(config, config.path, log_level))
    return 0


async def _run(daemon: Daemon) -> None:
    await daemon.run()
