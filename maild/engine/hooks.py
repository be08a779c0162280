"""The user's programs that are run when something happened: new mail, any change, a failure.

Each hook runs once at a time; what happens meanwhile is gathered and told by its next run. It gets the paths of new
messages on standard input, one a line, and facts in variables; it never holds a pass up, and one that does not end in
time is killed with its children. Nothing that a server said is ever part of a command line.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from subprocess import DEVNULL

import anyio
import structlog
from anyio.abc import Process

from maild.config import Hooks
from maild.core.errors import MaildError, NoSuchMailbox, Retry
from maild.engine.report import AccountReport

TIME_LIMIT_S = 60.0
MOST_PATHS = 10_000  # told to one run; MAILD_NEW has the count of all
CHANGES_HERE = ("pulled", "flags", "moved", "deleted")
_TEXT_CHARACTERS = 2000
_VARIABLE_OCTETS = 100_000

log = structlog.get_logger()


@dataclass(slots=True)
class News:
    """What a hook has not been told yet. `mailboxes` are ACCOUNT/MAILBOX, each once, in the order of events."""

    accounts: dict[str, None] = field(default_factory=dict)
    mailboxes: dict[str, None] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    error: str = ""

    def __bool__(self) -> bool:
        return bool(self.accounts)

    def variables(self, event: str) -> dict[str, str]:
        """As the hook finds them in its environment; names of mailboxes are divided by line ends."""
        told = {
            "MAILD_EVENT": event,
            "MAILD_ACCOUNTS": _lines(self.accounts).replace("\n", " "),
            "MAILD_MAILBOXES": _lines(self.mailboxes),
            "MAILD_NEW": str(self.counts.get("pulled", 0)),
            "MAILD_FLAGS": str(self.counts.get("flags", 0)),
            "MAILD_MOVED": str(self.counts.get("moved", 0)),
            "MAILD_DELETED": str(self.counts.get("deleted", 0)),
        }
        return told | ({"MAILD_ERROR": _one_line(self.error)[:_TEXT_CHARACTERS]} if self.error else {})


class Hook:
    """One of them. `argv` may be replaced at any time, empty for none."""

    def __init__(self, event: str, argv: Sequence[str] = (), time_limit_s: float = TIME_LIMIT_S) -> None:
        self.event = event
        self.argv = tuple(argv)
        self._time_limit_s = time_limit_s
        self._news = News()
        self._has_news = anyio.Event()

    def add(self, account: str, report: AccountReport | None, counters: Sequence[str], error: str = "") -> None:
        """Something happened; quiet where none of the counters has anything to tell and there is no error."""
        counts = {name: report.total(name) for name in counters} if report is not None else {}
        if not self.argv or not (error or any(counts.values())):
            return
        news = self._news
        news.accounts[account] = None
        news.error = error or news.error
        for name, count in counts.items():
            news.counts[name] = news.counts.get(name, 0) + count
        if report is not None:
            for mailbox in report.mailboxes.values():
                if any(getattr(mailbox, name) for name in counters):
                    news.mailboxes[f"{account}/{mailbox.name}"] = None
            news.paths += (report.delivered or [])[: MOST_PATHS - len(news.paths)]
        self._has_news.set()

    async def run(self) -> None:
        """Tell what there is to tell, for ever."""
        while True:
            await self._has_news.wait()
            self._has_news = anyio.Event()
            await self.tell()

    async def tell(self) -> str:
        """Tell what there is to tell now; nothing is run where there is nothing. What went wrong, "" for nothing."""
        news, self._news = self._news, News()
        return await self._run_once(news) if news and self.argv else ""

    async def _run_once(self, news: News) -> str:
        environment = {**os.environ, **news.variables(self.event)}
        environment.pop("NOTIFY_SOCKET", None)  # systemd's words are ours alone
        try:
            with anyio.CancelScope(shield=True):  # cut off here, asyncio would reap it behind its watcher's back
                process = await anyio.open_process(
                    self.argv, stdout=DEVNULL, stderr=DEVNULL, env=environment, start_new_session=True
                )
        except OSError as exc:
            return self._complain(f"{self.argv[0]} cannot be run: {exc.strerror}", "give the program's full path")
        try:
            with anyio.move_on_after(self._time_limit_s):
                await _tell(process, news.paths)
                await process.wait()
        finally:
            is_late = process.returncode is None
            await _ended(process)
        if is_late:
            return self._complain(
                f"not done after {self._time_limit_s:g} s, killed", "start long work in the background"
            )
        if process.returncode:
            return self._complain(f"exit status {process.returncode}", "run it by hand to see why")
        return ""

    def _complain(self, reason: str, hint: str) -> str:
        log.warning("hook.failed", hook=self.event, command=self.argv[0], reason=reason, hint=hint)
        return f"hook {self.event}: {reason}; {hint}"


class HookBoard:
    """All hooks of the config, told by all accounts."""

    def __init__(self, hooks: Hooks, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._all = {event: Hook(event, argv, time_limit_s) for event, argv in _argvs(hooks).items()}

    def change(self, hooks: Hooks) -> None:
        for event, argv in _argvs(hooks).items():
            self._all[event].argv = tuple(argv)

    @property
    def wants_paths(self) -> bool:
        """Whether anybody is told which files are new."""
        return bool(self._all["on_new_mail"].argv or self._all["on_change"].argv)

    def note_pass(self, report: AccountReport) -> None:
        """A pass has ended, well or not: what it changed on this disk is told."""
        self._all["on_new_mail"].add(report.name, report, ("pulled",))
        self._all["on_change"].add(report.name, report, CHANGES_HERE)

    def note_failure(self, account: str, error: MaildError | str) -> None:
        """An account came to need a person, or a message will not arrive."""
        self._all["on_failure"].add(account, None, (), str(error))

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            for hook in self._all.values():
                tasks.start_soon(hook.run)

    async def tell(self, reports: Iterable[AccountReport]) -> list[str]:
        """After passes in a process that ends then: each hook is run once, if at all, and waited for.

        Whether a failure will pass by itself shows only with time, so of those that may nothing is told. Returns what
        went wrong with hooks.
        """
        for report in reports:
            self.note_pass(report)
            refused = next((m.error for m in report.mailboxes.values() if m.state == "refused"), None)
            failure = None if isinstance(report.failure, NoSuchMailbox) else report.failure  # only the user's slip
            if failure is not None and failure.retry is not Retry.LATER:
                self.note_failure(report.name, failure)
            elif refused is not None:
                self.note_failure(report.name, refused)
        complaints: list[str] = []

        async def tell(hook: Hook) -> None:
            if complaint := await hook.tell():
                complaints.append(complaint)

        async with anyio.create_task_group() as tasks:
            for hook in self._all.values():
                tasks.start_soon(tell, hook)
        return complaints


def _argvs(hooks: Hooks) -> Mapping[str, tuple[str, ...]]:
    return {"on_new_mail": hooks.on_new_mail, "on_change": hooks.on_change, "on_failure": hooks.on_failure}


def _lines(names: Iterable[str]) -> str:
    """As many as the kernel lets one variable hold (execve(2): 128 KiB)."""
    lines, room = list[str](), _VARIABLE_OCTETS
    for line in map(_one_line, names):
        room -= len(os.fsencode(line)) + 1
        if room < 0:
            break
        lines.append(line)
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


async def _tell(process: Process, paths: Sequence[str]) -> None:
    """The paths, then the end; a program need not read them."""
    if process.stdin is None:
        return
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, BrokenPipeError, ConnectionResetError):
        if paths:
            await process.stdin.send(b"".join(os.fsencode(path) + b"\n" for path in paths))
        await process.stdin.aclose()


async def _ended(process: Process) -> None:
    """No process is left of one that is not done, nor its children; also when we are cancelled."""
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.aclose()
