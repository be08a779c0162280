"""The senders of a daemon, which drain only while the outbox is its own: it lets go of that when the last has ended.

A sender that is cut off still writes down what it knows of the messages that it has in hand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from maild.core.errors import MaildError
from maild.engine.sender import Sender
from maild.engine.supervise import Patience, keep_alive
from maild.local.outbox import Outbox


@dataclass(slots=True, eq=False)
class _Kept:
    """A sender; `scope` and `ended` are those of the task that it runs in, None before the first."""

    sender: Sender
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ended: anyio.Event | None = None


class Dispatch:
    """Where all accounts' senders run."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._kept: list[_Kept] = []
        self._tasks: TaskGroup | None = None
        self._error: MaildError | None = None
        self._was_tried = anyio.Event()

    async def run(self, watch: Callable[[], Awaitable[None]]) -> None:
        """Have the outbox, and the senders run, for as long as `watch` does. Raises StateBusy, LocalError."""
        try:
            with self._outbox.draining():
                async with anyio.create_task_group() as tasks:
                    self._tasks = tasks
                    for kept in self._kept:
                        self._start(kept, tasks)
                    self._was_tried.set()
                    try:
                        await watch()
                    finally:
                        self._tasks = None
        except MaildError as exc:
            self._error = exc
            self._was_tried.set()
            raise

    async def until_ours(self) -> None:
        """Until the outbox is ours. Raises StateBusy, LocalError where it could not be had when it was tried last."""
        await self._was_tried.wait()
        if self._tasks is None and self._error is not None:
            raise self._error

    async def keep(self, sender: Sender) -> None:
        """Have a sender run until it is stopped; before this returns, it has let go of everything, also if cut off."""
        kept = _Kept(sender)
        self._kept.append(kept)
        if self._tasks is not None:
            self._start(kept, self._tasks)
        try:
            await sender.stopping.wait()
            if kept.ended is not None:
                await kept.ended.wait()
        finally:
            self._kept.remove(kept)
            kept.scope.cancel()
            with anyio.CancelScope(shield=True):
                if kept.ended is not None:
                    await kept.ended.wait()

    def _start(self, kept: _Kept, tasks: TaskGroup) -> None:
        kept.scope, kept.ended = anyio.CancelScope(), anyio.Event()
        tasks.start_soon(self._run, kept.sender, kept.scope, kept.ended)

    async def _run(self, sender: Sender, scope: anyio.CancelScope, ended: anyio.Event) -> None:
        try:
            with scope:
                await keep_alive("sender", sender.run, Patience())
        finally:
            ended.set()
