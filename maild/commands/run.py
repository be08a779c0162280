"""`maild run`: the daemon in the foreground. Exit status 0 after a signal, 1 where it could not start."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import threading
import time

import anyio

from maild import log
from maild.config import load
from maild.config.values import LogLevel
from maild.daemon import Daemon
from maild.engine.limits import Lookups, settle_in
from maild.local.lock import InstanceLock

OK = 0
LINGER_S = 0.5


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError, LocalError, StateBusy."""
    config = load(args.config)
    log_level: LogLevel | None = "debug" if args.verbose else None
    log.configure(log_level or config.log_level, config.log_format)
    settle_in()
    with InstanceLock(config.state_dir, "maild run"):
        anyio.run(_run, Daemon(config, config.path, log_level))
    _end_at_once()
    return OK


async def _run(daemon: Daemon) -> None:
    asyncio.get_running_loop().set_default_executor(Lookups())
    await daemon.run()


def _end_at_once() -> None:
    """End the process where a thread keeps it: one that waits for a keyring, say. All that matters is on the disk."""
    until_s = time.monotonic() + LINGER_S
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    for thread in others:
        thread.join(max(until_s - time.monotonic(), 0.0))
    if any(thread.is_alive() for thread in others):
        logging.shutdown()
        sys.stderr.flush()
        os._exit(OK)
