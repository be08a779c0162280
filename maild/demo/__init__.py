"""`maild demo`: all of maild on this machine, with no account, shown step by step with its timings.

The servers live in this process, hold their mail in memory and listen on loopback. Everything else is that of every
day: the commands are run as a user runs them, the daemon is a process of its own, the Maildirs are on the disk. What is
claimed is looked up first, on the disk and in the servers. The first thing that is not as it should be ends it with
exit status 1, and so does nothing else.

A step is a function with a title in `steps.STEPS`, and they run in that order. To show more, add one there.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import anyio

from maild import log
from maild.config import load
from maild.core.errors import MaildError
from maild.demo.place import CONFIG, LOG, STATE, opened_place, remove_earlier, write_config
from maild.demo.screen import Screen
from maild.demo.servers import running_servers
from maild.demo.stage import DemoFailed, Stage, milliseconds, trouble
from maild.demo.steps import STEPS, tell_what_comes_next
from maild.local.lock import InstanceLock


def run(args: argparse.Namespace) -> int:
    """Show it all and return 0. Raises DemoFailed where it went wrong, LocalError where the directory will not do."""
    log.configure("debug" if args.verbose else "error")
    with _other_ends_as_by_ctrl_c(), opened_place(args.keep) as place, InstanceLock(place, "maild demo"):
        with InstanceLock(place / STATE, "maild demo"):
            remove_earlier(place)
        anyio.run(_play, place, args.keep is not None, args.verbose)
    return 0


@contextmanager
def _other_ends_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as SIGINT does, so that it cleans up at any moment."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        by_ctrl_c = signal.getsignal(signal.SIGINT)  # asyncio's while it runs, then Python's
        if not callable(by_ctrl_c):
            raise KeyboardInterrupt
        by_ctrl_c(signal.SIGINT, frame)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _play(place: Path, is_kept: bool, is_verbose: bool) -> None:
    started_s = time.perf_counter()
    screen = Screen()
    screen.title("maild demo: mail comes and goes, all on this machine and without an account")
    password = secrets.token_urlsafe(12)
    async with running_servers(password) as servers:
        servers_ms = milliseconds(started_s)
        write_config(place, servers, password)
        loading_s = time.perf_counter()
        config = load(place / CONFIG)
        config_ms = milliseconds(loading_s)
        stage = Stage(screen, place, is_kept, is_verbose, servers, servers_ms, config, config_ms)
        await _play_steps(stage)
    screen.title(f"All was as it should be. The demo took {milliseconds(started_s) / 1000:.1f} s, of which")
    for took_ms, what in stage.results:
        screen.time(took_ms, what)
    tell_what_comes_next(screen)


async def _play_steps(stage: Stage) -> None:
    try:
        for number, (title, step) in enumerate(STEPS, 1):
            stage.screen.title(f"{number}. {title}")
            try:
                await step(stage)
            except BrokenPipeError:  # nobody looks any more
                raise
            except (MaildError, OSError) as exc:
                raise _failure(stage, f"step {number}, {title}", exc) from exc
    finally:
        await stage.end_daemon()


def _failure(stage: Stage, where: str, exc: MaildError | OSError) -> DemoFailed:
    text = exc.text if isinstance(exc, MaildError) else str(exc)
    if told := trouble(stage.place / LOG):
        text += f" (the daemon's log: {told})"
    hint = f"all is left in {stage.place}" if stage.is_kept else "with --keep DIR all would be left in DIR to look at"
    return DemoFailed(f"the demo failed at {where}: {text}", hint)
