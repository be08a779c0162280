"""`maild run`: the config becomes accounts, each with its keeper and its sender, in one task group.

It runs until a signal ends it: SIGTERM and SIGINT stop it within 10 s, SIGHUP has it read its config again, SIGUSR1
look at everything now.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from maild import __version__
from maild import log as log_setup
from maild.config import Account, Config, load
from maild.config.outline import protocol_of
from maild.config.values import LogLevel
from maild.control import ControlServer, Message, Refused, as_message, as_progress
from maild.core.errors import AuthRejected, ConfigError, LocalError, MaildError
from maild.engine.dispatch import Dispatch
from maild.engine.hooks import HookBoard
from maild.engine.keeper import Keeper, Request, refresh
from maild.engine.lifetime import Trust, trust_of
from maild.engine.limits import Thrift
from maild.engine.listen import Common, OpenTree
from maild.engine.network import watch_network
from maild.engine.sender import Sender, watch_outbox
from maild.engine.status import AccountDocument, Document, nothing_known, outbox_status
from maild.engine.supervise import Patience, keep_alive
from maild.local.notify import Notifier
from maild.local.outbox import Outbox
from maild.local.watch import Watcher, watching

STOP_S = 8.0  # for what is on the wire; then it is cut off, which loses nothing
TICK_S = 5.0
PROGRESS_S = 0.2

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Running:
    """An account that is kept."""

    account: Account
    protocol: str
    keeper: Keeper | None
    sender: Sender | None
    trust: Trust
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    has_started: bool = False
    ended: anyio.Event = field(default_factory=anyio.Event)

    async def keep(self, dispatch: Dispatch) -> None:
        """Its mail and its outbox; in no more tasks than that takes, for there may be a thousand accounts."""
        if self.sender is None:
            if self.keeper is not None:
                await self.keeper.run()
            return
        if self.keeper is None:
            await dispatch.keep(self.sender)
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dispatch.keep, self.sender)
            await self.keeper.run()

    def stop(self) -> None:
        for part in (self.keeper, self.sender):
            if part is not None:
                part.stop()

    @property
    def state(self) -> str:
        if self.ended.is_set():
            return "stopped"
        if self.keeper is not None:
            return self.keeper.state
        return self.sender.state if self.sender is not None else "starting"

    @property
    def is_refused(self) -> bool:
        """Whether a login was refused, of the mail or of its sending."""
        is_sender = self.sender is not None and isinstance(self.sender.error, AuthRejected)
        return self.state == "auth_rejected" or is_sender

    def document(self) -> AccountDocument:
        """What `maild status` tells of it; an error of sending where the mail itself has none."""
        error = str(self.sender.error) if self.sender is not None and self.sender.error is not None else None
        if self.keeper is not None:
            document = self.keeper.document()
            return {**document, "state": self.state, "error": document["error"] or error}
        return {**nothing_known(self.protocol), "state": self.state, "error": error}


class Daemon:
    """All of it. The caller holds the lock of the state directory."""

    def __init__(self, config: Config, path: Path | None = None, log_level: LogLevel | None = None) -> None:
        """`path` is where the config is read again; `log_level` stands above what it says."""
        self.config = config
        self._path, self._log_level = path, log_level
        self._accounts: dict[str, Running] = {}
        self._began_s = time.monotonic()
        self._hooks = HookBoard(config.hooks)
        self._outbox = Outbox(config.state_dir)
        self._dispatch = Dispatch(self._outbox)
        self._outbox_changed = anyio.Event()
        self._common = Common(config.state_dir, self._hooks)
        self._notifier = Notifier()
        self._is_to_stop = anyio.Event()
        self._reloading = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._watcher: Watcher | None = None

    # -- its life

    async def run(self) -> None:
        """Until a signal, or `stop`."""
        server = ControlServer(self.config.state_dir, self.answer)
        log.info("daemon.started", version=__version__, accounts=len(self.config.accounts), path=self.config.path)
        try:
            async with self._open_tree() as self._common.open_tree, anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._hear_signals)
                self._supervise("control", server.run)
                self._supervise("hooks", self._hooks.run)
                self._supervise("outbox", self._drain)
                self._supervise("network", partial(watch_network, self._probe))
                for account in self.config.accounts.values():
                    self._start(account)
                while not all(running.has_started for running in self._accounts.values()):
                    await anyio.lowlevel.checkpoint()
                self._notifier.ready()
                self._supervise("health", self._watch_over)
                await self._is_to_stop.wait()
                await self._end()
                tasks.cancel_scope.cancel()
        finally:
            server.close()
            log.info("daemon.stopped", duration_s=round(time.monotonic() - self._began_s, 1))

    def stop(self) -> None:
        """As SIGTERM does; a second one does not wait any more."""
        if self._is_to_stop.is_set() and self._tasks is not None:
            self._tasks.cancel_scope.cancel()
        self._is_to_stop.set()

    @asynccontextmanager
    async def _open_tree(self) -> AsyncIterator[OpenTree | None]:
        """What tells of changes on this disk; without inotify the polls find them."""
        async with AsyncExitStack() as stack:
            try:
                watcher = await stack.enter_async_context(watching())
            except LocalError as exc:
                log.warning("watch.failed", reason=exc.text, hint=exc.hint)
                yield None
                return
            self._watcher = watcher
            try:
                yield watcher.tree
            finally:
                self._watcher = None

    async def _end(self) -> None:
        self._notifier.stopping()
        self._notifier.status("stopping")
        with anyio.move_on_after(STOP_S):
            await self._stopped(list(self._accounts.values()))

    async def _stopped(self, some: list[Running]) -> None:
        for running in some:
            running.stop()
        for running in some:
            await running.ended.wait()

    async def _hear_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1) as received:
            async for number in received:
                match number:
                    case signal.SIGHUP:
                        self._supervise("reload", self._reload_by_signal)
                    case signal.SIGUSR1:
                        self._look_at_everything()
                    case _:
                        self.stop()

    def _supervise(self, what: str, run: Callable[[], Awaitable[None]]) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(keep_alive, what, run, Patience())

    def _look_at_everything(self) -> None:
        for running in self._accounts.values():
            if running.keeper is not None:
                running.keeper.hasten()
            if running.sender is not None:
                running.sender.wake()

    def _probe(self) -> None:
        """The network has changed, or the machine slept: see at once what still stands, and try what did not."""
        for running in self._accounts.values():
            if running.keeper is not None:
                running.keeper.probe()
            if running.sender is not None:
                running.sender.wake()

    # -- accounts

    def _start(self, account: Account) -> None:
        protocol = protocol_of(account)
        keeper = None if protocol == "smtp" else Keeper(account, protocol, self._common)
        sender = None
        if account.smtp is not None:
            find_sent = keeper.find_sent if keeper is not None and account.imap is not None else None
            sender = Sender(account, self._outbox, self.config.state_dir, self._hooks, find_sent)
        running = self._accounts[account.name] = Running(account, protocol, keeper, sender, trust_of(account))
        if self._tasks is not None:
            self._tasks.start_soon(self._keep, running)

    async def _keep(self, running: Running) -> None:
        running.has_started = True
        try:
            with running.scope:
                await running.keep(self._dispatch)
        finally:
            running.ended.set()

    async def _replace(self, config: Config) -> list[str]:
        """Stop what is gone or another, start what is new; the rest does not notice. The names of what changed.

        An account is another too when its certificates were replaced: its connections were made with the old ones.
        """
        changed = [
            name
            for name, running in self._accounts.items()
            if (wanted := config.accounts.get(name)) != running.account
            or running.is_refused
            or trust_of(wanted) != running.trust
        ]
        old = [self._accounts[name] for name in changed]
        with anyio.move_on_after(STOP_S):
            await self._stopped(old)
        for running in old:
            running.scope.cancel()
            await running.ended.wait()
            del self._accounts[running.account.name]
        self.config = config
        new = [account for name, account in config.accounts.items() if name not in self._accounts]
        for account in new if not self._is_to_stop.is_set() else ():
            self._start(account)
        self._accounts = {name: self._accounts[name] for name in config.accounts if name in self._accounts}
        self._outbox_changed.set()
        return sorted({*changed, *(account.name for account in new)})

    # -- the config again

    async def reload(self) -> list[str]:
        """Read the config again; the accounts that changed have been started anew. Raises ConfigError: all stays."""
        async with self._reloading:
            self._notifier.reloading()
            try:
                config = await anyio.to_thread.run_sync(partial(load, self._path, may_be_empty=True))
                if config.state_dir != self.config.state_dir:
                    raise ConfigError([f"{config.path}: maild.state_dir: has changed; that needs a restart of maild"])
                log_setup.configure(self._log_level or config.log_level, config.log_format)
                self._hooks.change(config.hooks)
                changed = await self._replace(config)
            except ConfigError as exc:
                log.error("config.refused", error=exc.text, hint="the config that was read before stays in use")
                raise
            finally:
                self._notifier.ready()
            log.info("config.reloaded", accounts=len(config.accounts), changed=changed)
            return changed

    async def _reload_by_signal(self) -> None:
        try:
            await self.reload()
        except ConfigError:
            return  # it is in the log

    # -- the outbox

    async def _drain(self) -> None:
        await self._dispatch.run(self._watch_outbox)

    async def _watch_outbox(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._hear_of_outbox)
            await watch_outbox(self._outbox, self._wake_senders, self._until_outbox_changes)

    async def _hear_of_outbox(self) -> None:
        if self._watcher is None:
            return
        try:
            async with self._watcher.directory(self._outbox.path) as changes:
                while True:
                    await changes.hint()
                    self._outbox_changed.set()
        except LocalError as exc:  # it is looked at every second all the same
            log.warning("outbox.stopped", reason=exc.text, hint=exc.hint)

    def _wake_senders(self, names: Collection[str]) -> None:
        for name in names:
            if (running := self._accounts.get(name)) is not None and running.sender is not None:
                running.sender.wake()

    async def _until_outbox_changes(self) -> None:
        await self._outbox_changed.wait()
        self._outbox_changed = anyio.Event()  # what is said from here on is for the next time

    # -- health

    async def _watch_over(self) -> None:
        """Tell systemd how it goes, and that it goes; a stuck owner ends that, and systemd starts us again."""
        watchdog_s = self._notifier.watchdog_s
        tick_s = TICK_S if watchdog_s is None else min(TICK_S, watchdog_s / 3)
        thrift = Thrift()
        while True:
            stuck = [name for name, running in self._accounts.items() if running.keeper and running.keeper.is_stuck()]
            if not stuck:
                self._notifier.alive()
            elif watchdog_s is not None:
                log.error("account.stalled", accounts=stuck, hint="systemd restarts maild when its watchdog ends")
            self._notifier.status(self._in_one_line())
            await refresh(_keepers(self._accounts.values()))
            thrift.look(self._common.passes)
            await anyio.sleep(tick_s)

    def _in_one_line(self) -> str:
        states: dict[str, int] = {}
        for running in self._accounts.values():
            states[running.state] = states.get(running.state, 0) + 1
        return (
            ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in sorted(states.items())) or "no account"
        )

    # -- what is asked over the control socket

    async def answer(self, request: Message) -> AsyncGenerator[Message, None]:
        """The messages of the answer, the last one with `result`. Raises Refused."""
        match request:
            case {"ask": "status", **facts}:
                yield {"result": await self._status(_names(facts.get("accounts", [])))}
            case {"ask": "sync", "targets": dict(targets), **facts}:
                async for message in self._sync(targets, is_dry_run=facts.get("dry_run") is True):
                    yield message
            case {"ask": "reload"}:
                try:
                    with anyio.CancelScope(shield=True):  # a client that goes away does not stop it half-way
                        changed = await self.reload()
                    gone = [name for name in changed if name not in self.config.accounts]
                    yield {"result": {"changed": changed, "gone": gone}}
                except ConfigError as exc:
                    raise Refused(exc.text, "the config that was read before stays in use", 78) from exc
            case {"ask": "look", "account": str(name)}:
                if (keeper := self._running(name).keeper) is not None:
                    keeper.hasten()
                yield {"result": {}}
            case {"ask": "login", "account": str(name)}:
                self._note_secret(self._running(name))
                yield {"result": {}}
            case {"ask": "outbox"}:
                self._outbox_changed.set()
                yield {"result": {}}
            case {"ask": "flush"}:
                yield {"result": await self._flush()}
            case {"ask": "send", "accounts": names}:
                yield {"result": await self._flush(_names(names), is_due_only=True)}
            case _:
                raise Refused("the daemon does not know what is asked of it", "restart it after an upgrade", 64)

    def _note_secret(self, running: Running) -> None:
        """There may be another secret: whoever waits because the last one was refused goes on at once."""
        if running.keeper is not None:
            running.keeper.note_secret()
        if running.sender is not None:
            running.sender.wake()

    def _running(self, name: str) -> Running:
        if (running := self._accounts.get(name)) is None:
            raise Refused(f"the daemon knows no account {name!r}", "after a change of the config: maild reload", 64)
        return running

    async def _status(self, wanted: list[str]) -> Document:
        chosen = {name: self._running(name) for name in wanted} if wanted else dict(self._accounts)
        await refresh(_keepers(chosen.values()))
        accounts = {name: running.document() for name, running in chosen.items()}
        return {
            "version": __version__,
            "daemon": {"pid": os.getpid(), "uptime_s": round(time.monotonic() - self._began_s, 1)},
            "accounts": accounts,
            "outbox": await anyio.to_thread.run_sync(outbox_status, self.config.state_dir),
        }

    async def _sync(self, targets: Mapping[str, Any], *, is_dry_run: bool) -> AsyncGenerator[Message, None]:
        requests: dict[str, Request] = {}
        for name, mailboxes in targets.items():
            if (keeper := self._running(name).keeper) is None:
                raise Refused(
                    f"account {name!r} has neither an imap nor a pop3 section: it has nothing to pull", "", 64
                )
            requests[name] = Request(tuple(_names(mailboxes)), is_dry_run)
            keeper.ask(requests[name])
        shown: dict[str, Message] = {}
        for request in requests.values():
            while not request.done.is_set():
                with anyio.move_on_after(PROGRESS_S):
                    await request.done.wait()
                if progress := _news(requests, shown):
                    yield {"progress": progress}
        yield {"result": {name: as_message(request.report) for name, request in requests.items() if request.report}}

    async def _flush(self, only: Collection[str] = (), *, is_due_only: bool = False) -> Message:
        """What became of all that waits, or is due, of all accounts or of `only` some. Raises Refused."""
        try:
            await self._dispatch.until_ours()
        except MaildError as exc:
            raise Refused(exc.text, exc.hint) from exc
        senders = [running.sender for running in self._accounts.values() if running.sender is not None]
        contents = await anyio.to_thread.run_sync(self._outbox.contents)
        waiting = {item.account for item in contents.items if not item.is_over}
        waiting &= set(only) if only else waiting
        results: Message = {}

        async def flush(sender: Sender) -> None:
            drained = await sender.flush(is_due_only=is_due_only)
            error = None if drained.error is None else str(drained.error)
            results[sender.account.name] = {"error": error, "counts": dict(drained.counts)}

        async with anyio.create_task_group() as tasks:
            for sender in senders:
                if sender.account.name in waiting:
                    tasks.start_soon(flush, sender)
        for name in waiting - results.keys():
            error = f'messages wait for account "{name}", which has no smtp section in the config'
            results[name] = {"error": error, "counts": {}}
        return results


def _news(requests: Mapping[str, Request], shown: dict[str, Message]) -> Message:
    """How far the passes are, of those of which something else was told before."""
    news: Message = {}
    for name, request in requests.items():
        if request.report is not None:
            report = as_progress(request.report)
            if shown.get(name) != report:
                shown[name] = news[name] = report
    return news


def _keepers(some: Iterable[Running]) -> list[Keeper]:
    return [running.keeper for running in some if running.keeper is not None]


def _names(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise Refused("names of accounts or mailboxes are a list of texts", status=64)
    return value
