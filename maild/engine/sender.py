"""The outbox of a running daemon: each account drains what is due, is woken by what is new, and waits for nobody else.

The daemon is the one drainer for as long as it lives. The kernel tells when the outbox's directory changes, and whoever
changes it says so; once a second it is looked at beside that, which costs one system call.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import structlog

from maild.config import Account
from maild.core.errors import AuthRejected, ConnectionLost, LocalError, MaildError, Retry, Unavailable
from maild.core.outgoing import Item
from maild.engine.doubts import FindSent
from maild.engine.hooks import HookBoard
from maild.engine.submit import Drained, Submitter
from maild.local.durable import disk_error
from maild.local.outbox import Outbox

log = structlog.get_logger()

LOOK_EVERY_S = 1.0
TICK_NS = 100_000_000  # more than the 1 to 10 ms of Linux file systems (CONFIG_HZ)
CHECK_SECRET_EVERY_S = 900.0
SECRET_FILE_S = 5.0  # the same where the secret is in a file
CHECK_CLOCK_EVERY_S = 900.0
_UNREADABLE = "it waits until its file can be read; the others are sent"


class Sender:
    """One account's. `run` drains until `stop`, within `Outbox.draining()`. `hooks` hear of what will not arrive.

    `find_sent` looks for what may have been sent, None for an account without mailboxes on a server.
    """

    def __init__(
        self,
        account: Account,
        outbox: Outbox,
        state_dir: Path,
        hooks: HookBoard,
        find_sent: FindSent | None = None,
    ) -> None:
        self.account = account
        self.error: MaildError | None = None
        self._hooks = hooks
        self._submitter = Submitter(account, outbox, state_dir, find_sent=find_sent, on_failure=self._tell)
        self._woken = anyio.Event()
        self._is_woken = False
        self.stopping = anyio.Event()
        self._flushes: list[_Flush] = []
        self._is_told = False  # that the account needs a person

    def wake(self) -> None:
        """Something in the outbox is new, or what kept it from being sent is past."""
        self._is_woken = True
        self._woken.set()

    def stop(self) -> None:
        """End when the messages on the wire are answered for."""
        self.stopping.set()
        for flush in self._flushes:  # which no drain has taken up, nor will
            flush.drained = self._stopped
            flush.done.set()
        self._submitter.stop()
        self._woken.set()

    async def flush(self, *, is_due_only: bool = False) -> Drained:
        """Try everything that waits, or only what is due, now; what came of it."""
        if self.stopping.is_set():
            return self._stopped
        flush = _Flush(is_due_only)
        self._flushes.append(flush)
        self._woken.set()
        await flush.done.wait()
        return flush.drained or Drained(self.account.name)

    @property
    def _stopped(self) -> Drained:
        return Drained(self.account.name, error=Unavailable("the daemon is ending it, or starts it anew: try again"))

    @property
    def state(self) -> str:
        """As `maild status` has it for an account that only sends."""
        match self.error:
            case None:
                return "idle"
            case AuthRejected():
                return "auth_rejected"
            case ConnectionLost():
                return "offline"
            case _:
                return "backing_off"

    async def run(self) -> None:
        next_s: float | None = None
        while not self.stopping.is_set():
            if not (self._is_woken or self._flushes or (next_s is not None and next_s <= time.time())):
                await self._until(next_s)
                continue
            flushes, self._flushes, self._is_woken = self._flushes, [], False
            drained = Drained(self.account.name)
            try:
                drained = await self._submitter.drain(everything=not all(f.is_due_only for f in flushes))
            except BaseException:
                self._is_woken = True  # whoever runs it again goes on with what was left
                raise
            finally:
                for flush in flushes:
                    flush.drained = drained
                    flush.done.set()
            self.error, next_s = drained.error, drained.next_s
            if isinstance(self.error, AuthRejected):
                next_s = time.time() + CHECK_SECRET_EVERY_S  # the drain looks whether the secret is another
            needs_person = self.error is not None and self.error.retry is not Retry.LATER
            if self.error is not None and needs_person and not self._is_told:
                self._hooks.note_failure(self.account.name, self.error)
            self._is_told = needs_person

    async def _until(self, wall_s: float | None) -> None:
        """Until woken or `wall_s`; now and then also before it, for the clock may have been set back meanwhile."""
        self._woken = anyio.Event()
        checked_s = anyio.current_time() + (float("inf") if wall_s is None else CHECK_CLOCK_EVERY_S)
        while not self._woken.is_set() and (wall_s is None or time.time() < wall_s):
            clock_s = checked_s - anyio.current_time()
            if clock_s <= 0:
                self.wake()
                return
            left_s = clock_s if wall_s is None else min(wall_s - time.time(), clock_s)
            is_refused = isinstance(self.error, AuthRejected)
            with anyio.move_on_after(min(left_s, SECRET_FILE_S) if is_refused else left_s):
                await self._woken.wait()
            if is_refused and await self._submitter.has_other_secret():
                self.wake()

    def _tell(self, item: Item) -> None:
        """Called in a thread; the hook takes it on the event loop."""
        reason = next((r.reply for r in item.recipients if r.state == "failed"), "")
        anyio.from_thread.run_sync(self._hooks.note_failure, self.account.name, f"message {item.id} failed: {reason}")


@dataclass(slots=True)
class _Flush:
    is_due_only: bool
    drained: Drained | None = None
    done: anyio.Event = field(default_factory=anyio.Event)


async def watch_outbox(
    outbox: Outbox, wake: Callable[[Collection[str]], None], changed: Callable[[], Awaitable[None]]
) -> None:
    """`wake` the accounts with messages in the outbox, at first and whenever the directory changes; for ever.

    `changed` returns when somebody says that it did. A disk in trouble is looked at again: the senders go on meanwhile,
    and whoever lets go of the outbox would forget what they were told.
    """
    stamp: int | None = None
    told = ""
    unreadable: Collection[str] = ()
    while True:
        began_ns = time.time_ns()
        try:
            now = await anyio.to_thread.run_sync(_stamp, outbox.path)
            if now != stamp:
                # A change within one tick of the file system's clock shows in no time stamp: a new one proves nothing.
                stamp = now if began_ns - now > TICK_NS else None
                contents = await anyio.to_thread.run_sync(outbox.contents)
                for item_id in sorted(contents.unreadable.keys() - set(unreadable)):
                    log.warning("outbox.stopped", item=item_id, reason=contents.unreadable[item_id], hint=_UNREADABLE)
                unreadable = contents.unreadable.keys()
                wake({item.account for item in contents.items if not item.phase})
        except LocalError as exc:
            stamp = None
            if exc.text != told:
                log.warning("outbox.stopped", reason=exc.text, hint=exc.hint)
            told = exc.text
        with anyio.move_on_after(LOOK_EVERY_S):
            await changed()


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
    except OSError as exc:
        raise disk_error(exc, "look at", path) from exc
