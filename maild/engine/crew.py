"""Who does the work of a pass: as many sessions as the account may have, that help each other and try again.

Jobs are mailboxes. A session without one helps with the mailbox that has most left to pull; what fails stays with its
mailbox, unless nothing gets through any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import anyio
import structlog
from anyio.abc import TaskGroup

from maild.core.errors import ConnectionLost, MaildError, PlanRefused, ProtocolViolation, Scope
from maild.core.model import MailboxName
from maild.engine.mailboxes import note_failure as tell_failure
from maild.engine.pull import Pull, Work

TRIES = 3  # of one mailbox, when the connection is lost on the way
RETRY_DELAY_S = 1.0

log = structlog.get_logger()

Job = Callable[[TaskGroup], Awaitable[None]]  # the group takes what needs no session any more


class Crew:
    """The jobs still to be done and who does them."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._left: deque[Job] = deque()
        self._busy = 0
        self._lost_in_a_row = 0  # mailboxes that lost their connection at every try, since one was done
        self._moved = anyio.Event()

    def add(self, *jobs: Job) -> None:
        self._left.extend(jobs)

    async def work_off(self) -> None:
        """Do all that is left, over as many sessions as there are."""
        async with anyio.create_task_group() as finishers, anyio.create_task_group() as tasks:
            for _ in range(self._work.imap.connections if self._left else 0):
                tasks.start_soon(self._work_on, finishers)

    async def _work_on(self, finishers: TaskGroup) -> None:
        """Take mailboxes while there are any, then help, then leave when nobody can need help any more."""
        while True:
            if self._left:
                job = self._left.popleft()
                self._busy += 1
                try:
                    await job(finishers)
                finally:
                    self._busy -= 1
                    self._moved.set()
            elif (pull := self._neediest()) is not None:
                await pull.help(self._work)
            elif not self._busy:
                return
            else:
                self._moved = anyio.Event() if self._moved.is_set() else self._moved
                with anyio.move_on_after(0.05):  # how fast the disk keeps up is looked at again
                    await self._moved.wait()

    def _neediest(self) -> Pull | None:
        """The pull with most left, if the disk could take messages faster than they arrive."""
        if self._work.deliverer.is_saturated:
            return None
        worth = [pull for pull in self._work.pulls if pull.is_worth_help]
        return max(worth, key=lambda pull: pull.left_octets, default=None)

    async def guarded(
        self, name: MailboxName, attempt: int, work_on: Callable[[], Awaitable[None]], again: Job
    ) -> None:
        """Failures of one mailbox: a lost connection is tried again, up to a limit, the rest is noted."""
        try:
            await work_on()
            self._lost_in_a_row = 0
        except MaildError as exc:
            if is_tried_again(exc, attempt):
                await pause(self._work, name, attempt, exc)
                self._left.appendleft(again)
                return
            if isinstance(exc, ConnectionLost | ProtocolViolation):
                self._lost_in_a_row += 1
                if self._lost_in_a_row >= TRIES:
                    raise  # nothing gets through any more
            await self.note_failure(name, exc)

    async def note_failure(self, name: str, exc: MaildError) -> None:
        """One mailbox's failure stays its own; what concerns the account ends the pass.

        A broken response ends its session, as a message does that makes the server hang up; the other mailboxes get
        another session.
        """
        if exc.scope not in {Scope.MAILBOX, Scope.MESSAGE} and not isinstance(exc, ProtocolViolation | ConnectionLost):
            raise exc
        tell_failure(self._work, name, exc)
        if not self._work.dry_run:
            await self._work.state.run(self._store_failure, name, exc)

    def _store_failure(self, name: str, exc: MaildError) -> None:
        state = self._work.state.state
        row = state.mailboxes().get(MailboxName(name))
        if row is not None and isinstance(exc, PlanRefused):
            state.set_refused(row.id, exc.text)
        elif row is not None:
            state.set_error(row.id, exc.text)


def is_tried_again(exc: MaildError, attempt: int) -> bool:
    """Whether another session may get further than this one."""
    return isinstance(exc, ConnectionLost | ProtocolViolation) and attempt < TRIES


async def pause(work: Work, name: MailboxName, attempt: int, exc: MaildError) -> None:
    """Before the next attempt."""
    log.warning("session.retried", account=work.account.name, mailbox=name, reason=exc.text)
    await anyio.sleep(RETRY_DELAY_S * attempt)
