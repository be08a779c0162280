"""Live progress on a terminal, per account: messages, octets, rate and time left. Nothing anywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from maild.control import Conversation, note_progress
from maild.engine.report import AccountReport

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

REFRESH_S = 0.1
_WIDE = 96  # columns for all there is to show


@asynccontextmanager
async def shown(reports: Collection[AccountReport], *, is_wanted: bool) -> AsyncIterator[None]:
    """Show the reports as they grow, for as long as the block lasts."""
    if not (is_wanted and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"):
        yield
        return
    progress = _progress()
    with progress:
        tasks = {
            report.name: progress.add_task(report.name, total=None, what="connecting", octets=0) for report in reports
        }
        async with anyio.create_task_group() as group:
            group.start_soon(_refresh, progress, tasks, reports)
            try:
                yield
            finally:
                group.cancel_scope.cancel()
                _update(progress, tasks, reports)


def listen(talk: Conversation, reports: Mapping[str, AccountReport]) -> None:
    """Show what the daemon says about its passes, until it has a result."""

    def take() -> None:
        for message in talk:
            for name, progress in message["progress"].items():
                note_progress(reports[name], progress)

    async def show() -> None:
        async with shown(reports.values(), is_wanted=True):
            await anyio.to_thread.run_sync(take, abandon_on_cancel=True)

    anyio.run(show)


def _progress() -> Progress:
    """Imported here: rich costs a tenth of a second, which a pass without a terminal need not pay."""
    from rich.console import Console, RenderableType
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    class WithOctets(ProgressColumn):
        """A column that stays empty while no message is on its way: `0/0 bytes` tells nothing."""

        def __init__(self, column: ProgressColumn) -> None:
            super().__init__()
            self._column = column

        def render(self, task: Task) -> RenderableType:
            return self._column.render(task) if task.fields["octets"] else ""

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        TextColumn("[bold]{task.description}"),
        TextColumn("{task.fields[what]}"),
        WithOctets(BarColumn(bar_width=24 if console.width >= _WIDE else 8)),
        WithOctets(DownloadColumn(binary_units=True)),
    ]
    if console.width >= _WIDE:
        columns += [WithOctets(TransferSpeedColumn()), WithOctets(TimeRemainingColumn(compact=True))]
    return Progress(*columns, console=console, auto_refresh=False)


async def _refresh(progress: Progress, tasks: dict[str, TaskID], reports: Collection[AccountReport]) -> None:
    while True:
        _update(progress, tasks, reports)
        await anyio.sleep(REFRESH_S)


def _update(progress: Progress, tasks: dict[str, TaskID], reports: Collection[AccountReport]) -> None:
    for report in reports:
        known = report.wanted_octets > 0 or report.state in {"ok", "error"}
        progress.update(
            tasks[report.name],
            completed=min(report.done_octets, report.wanted_octets),
            total=max(report.wanted_octets, 1) if known else None,
            what=_what(report),
            octets=report.wanted_octets,
        )
    progress.refresh()


def _what(report: AccountReport) -> str:
    if report.state in {"pending", "connecting"}:
        return "connecting"
    if report.state == "error":
        return "[red]failed"
    if not report.wanted_messages:
        return "done" if report.state == "ok" else "comparing"
    return f"{report.done_messages:,}/{report.wanted_messages:,} messages"
