"""One account, kept: the task that owns it, and those that tell it when to look.

Server, disk, timer and user all say no more than "look again"; the owner makes one pass after another, never two at
once. What is said during a pass leads to another pass; what is said twice leads to one. Failures are the owner's to
judge: one server that is away, or refuses the login, holds up nobody else.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import anyio
import anyio.to_thread
import structlog

from maild.config import Account
from maild.core.errors import AuthRejected, ConnectionLost, MaildError, Retry, Scope, Unavailable
from maild.core.likeness import Likeness
from maild.core.maildrop import Terms, next_poll_s
from maild.core.model import MailboxName
from maild.core.ports import Remote
from maild.engine.account import KeptAccount, opened_account
from maild.engine.doubts import is_in_sent
from maild.engine.listen import Common, Listening
from maild.engine.poll import poll_account, remembered_terms
from maild.engine.report import AccountReport
from maild.engine.status import AccountDocument, nothing_known, stored_account
from maild.engine.supervise import Patience, keep_alive
from maild.remote.auth import Credentials

STUCK_S = 1200.0  # an owner without a sign of life for so long is stuck; every command, and every delay, ends before
SECRET_FILE_S = 5.0  # how often a file is looked into after the secret in it was refused
TELL_AFTER_S = 3600.0  # of failures that may pass by themselves, before a person is told
READ_AT_ONCE = 50  # states in one go, for `maild status`
LONGEST_PASS_AT_STOP_S = 4.0
FAULT = "a fault in maild; the log has its traceback"
STOPPED = "maild was stopped before it was done"

log = structlog.get_logger()


MakePass = Callable[[AccountReport, Sequence[str], bool], Awaitable[None]]


@runtime_checkable
class LogsIn(Protocol):
    """A remote that knows whether its login was refused."""

    credentials: Credentials


@dataclass(slots=True, eq=False)
class Request:
    """A pass that somebody asked for and waits for; `only` names mailboxes. `report` is that of the pass, once it
    runs."""

    only: tuple[str, ...] = ()
    is_dry_run: bool = False
    report: AccountReport | None = None
    done: anyio.Event = field(default_factory=anyio.Event)


class Keeper:
    """One account with mail on a server. `run` keeps it until it is cancelled or `stop` was called."""

    def __init__(self, account: Account, protocol: str, common: Common) -> None:
        self.account = account
        self.protocol = protocol
        self.common = common
        self.failure: MaildError | None = None  # of the last pass, or what kept it from being made
        self.report: AccountReport | None = None  # of the pass that runs now
        self.has_started = False
        self._patience = Patience(common.clock, common.chance)
        self._listening = Listening(account, common, hear=self.hear, stir=self.stir, wake=self.wake)
        self._is_wanted = True  # a whole pass
        self._is_stirred_here = False  # the disk is to be looked at, which may be a reason for a pass
        self._hinted: frozenset[MailboxName] = frozenset()
        self._is_hinted = True  # it is no wonder if the next pass finds something on the server
        self._requests: list[Request] = []
        self._stirred = anyio.Event()
        self._has_synced = False
        self._is_stopping = False
        self._is_stopped = False
        self._passing: anyio.CancelScope | None = None
        self._last_sign_s = common.clock()
        self._last_counts: object = None
        self.stored: AccountDocument | None = None
        self.is_stale = True  # a pass ended since `stored` was read
        self._next_poll_s = 0.0
        self._credentials: Credentials | None = None
        self._secret_trouble = ""  # why it could not be read when it was last looked at
        self._terms = Terms()  # as a POP3 server wants to be polled
        self._login_from_s = 0.0  # before, it takes no login
        self._is_told = False  # the hook has been told of what is wrong
        self._remote: Remote | None = None
        self._look_here: Callable[[], Awaitable[bool]] = _nothing  # whether this disk has news that are not maild's own

    # -- what others may say

    def wake(self) -> None:
        """Look at everything, when there is no reason to wait."""
        self._is_wanted = True
        self._stirred.set()

    def stir(self) -> None:
        """Something happened on this disk; it may have been maild."""
        self._is_stirred_here = True
        self._stirred.set()

    def hear(self, hint: frozenset[MailboxName] | None) -> None:
        """The server said that something is new: in these mailboxes, or somewhere."""
        self._is_hinted = True
        self._hinted |= hint or frozenset()
        self.wake()

    def hasten(self) -> None:
        """There is reason to believe that what failed goes well now: look at once."""
        self._patience.reset()
        self.wake()

    def probe(self) -> None:
        """The network or the clock has changed: see whether all is as it was."""
        self._listening.probe()
        self.hasten()

    def note_secret(self) -> None:
        """There may be another secret: a refused login is no reason to wait any more."""
        if isinstance(self.failure, AuthRejected):
            self.failure = None
        self.hasten()

    def ask(self, request: Request) -> None:
        """Make a pass that begins after this."""
        self._requests.append(request)
        self._patience.reset()
        self._stirred.set()

    def stop(self) -> None:
        """End when the pass that runs has, soon in any case."""
        self._is_stopping = True
        self._patience.reset()
        self._stirred.set()
        if self._passing is not None:
            self._passing.deadline = anyio.current_time() + LONGEST_PASS_AT_STOP_S

    # -- what others may know

    @property
    def push(self) -> str | None:
        """The method in use, as `maild status` has it."""
        return None if self._is_stopped else self._listening.push

    @property
    def state(self) -> str:
        """As `maild status` has it."""
        if self._is_stopped:
            return "stopped"
        if self.report is not None:
            is_new = not self._has_synced or self.failure is not None
            return "connecting" if is_new and self.report.state in {"pending", "connecting"} else "syncing"
        match self.failure:
            case AuthRejected():
                return "auth_rejected"
            case ConnectionLost():
                return "offline"
            case None:
                return "idle" if self._has_synced else "starting"
            case failure:
                return "idle" if failure.scope in {Scope.MAILBOX, Scope.MESSAGE} else "backing_off"

    def is_stuck(self) -> bool:
        """Whether the owner gave no sign of life, and its pass did not come on, for too long. One that waits is asked
        for one in time."""
        if self.report is not None and (counts := _counts(self.report)) != self._last_counts:
            self._last_counts, self._last_sign_s = counts, self.common.clock()
        silent_s = self.common.clock() - self._last_sign_s
        if silent_s > STUCK_S / 3 and not self._is_stopped:
            self._stirred.set()
        return silent_s > STUCK_S and not self._is_stopped

    def document(self) -> AccountDocument:
        """What `maild status` tells of it, as of the last `refresh`."""
        stored = self.stored or nothing_known(self.protocol)
        error = str(self.failure) if self.failure is not None else stored["error"]
        if error is None and self.push is None and self._listening.failure is not None:
            error = f"no push: {self._listening.failure}"
        shown: AccountDocument = {**stored, "state": self.state, "push": self.push, "error": error}
        if self.push is not None and self._listening.lack:
            shown["push_reason"] = self._listening.lack
        if self.report is not None:
            busy = {name for name, mailbox in self.report.mailboxes.items() if mailbox.state == "syncing"}
            mailboxes = stored["mailboxes"]
            shown["mailboxes"] = {
                name: {**mailbox, "state": "syncing"} if name in busy else mailbox
                for name, mailbox in mailboxes.items()
            }
        return shown

    async def find_sent(self, wanted: Likeness) -> bool | None:
        """Whether the account's Sent mailbox on the server has a message. Raises MaildError where that is not known."""
        if isinstance(self.failure, AuthRejected):
            raise self.failure
        if self._remote is None:
            raise Unavailable(f"the mail of account {self.account.name} cannot be looked at now")
        return await is_in_sent(self._remote, wanted)

    # -- the owner

    async def run(self) -> None:
        """Keep the account. Never raises a MaildError."""
        self.has_started = True
        try:
            await keep_alive("account", self._keep, self._patience, self._fail_to_begin, account=self.account.name)
        finally:
            self._is_stopped = True
            for request in self._requests:
                request.done.set()

    async def _keep(self) -> None:
        """With the state open; raises what keeps it from being opened."""
        await self._patience.wait(self.common.pace.wait_s(self._host))
        if self.account.pop3 is not None:
            await self._await_login_delay()
            credentials = Credentials(self.account.pop3, self.account.name)
            self._credentials = credentials = self._credentials or credentials
            await self._own(partial(self._poll, credentials))
            return
        async with opened_account(self.account, self.common.state_dir) as kept, anyio.create_task_group() as tasks:
            self._remote = kept.remote
            try:
                tasks.start_soon(self._listening.to_server, kept.remote)
                tasks.start_soon(self._listening.to_disk)
                self._look_here = partial(self._look, kept)
                await self._own(partial(self._pass, kept))
                tasks.cancel_scope.cancel()
            finally:
                self._remote = None
                self.common.note_end(kept)

    async def _own(self, make_pass: MakePass) -> None:
        """One pass after another, whenever one is wanted."""
        while not self._is_stopping:
            self._last_sign_s = self.common.clock()
            if self._requests or (self._is_wanted and self._may_try()):
                if self._patience.failures or self._listening.has_lost_push:
                    await self.common.pace.turn(self._host)
                await self._one_pass(make_pass)
            elif self._is_stirred_here and not self._is_wanted:
                self._is_stirred_here = False
                if await self._has_local_news():
                    self._is_wanted = True
            else:
                await self._until_stirred()

    async def _has_local_news(self) -> bool:
        try:
            return await self._look_here()
        except MaildError:
            return True  # the pass says what is wrong

    def _may_try(self) -> bool:
        """Whether a pass that nobody waits for may be made now."""
        if isinstance(self.failure, AuthRejected):
            return False
        return self.common.clock() >= self._try_from_s

    @property
    def _try_from_s(self) -> float:
        return max(self._login_from_s, self._patience.retry_at_s if self._patience.failures else 0.0)

    async def _until_stirred(self) -> None:
        """Wait for a word, for the timer, or for the end of a delay."""
        now_s = self.common.clock()
        until_s = self._try_from_s if self._is_wanted else self._next_poll_s
        if isinstance(self.failure, AuthRejected):
            until_s = self._next_poll_s
            if self._credentials is not None and self._credentials.is_in_a_file:
                until_s = min(until_s, now_s + SECRET_FILE_S)
        self._stirred = anyio.Event()
        with anyio.move_on_after(max(until_s - now_s, 0.0)) as waited:
            await self._stirred.wait()
        if not waited.cancelled_caught:
            return
        self._is_wanted = True
        if isinstance(self.failure, AuthRejected):
            self._set_timer()
            if await self._has_other_secret():
                self.failure = None
                self._patience.reset()

    async def _one_pass(self, make_pass: MakePass) -> None:
        """A pass for all who want one now; a dry run is one by itself."""
        requests, only, dry_run = self._taken()
        report = AccountReport(self.account.name, known_error=str(self.failure) if self.failure else None)
        report.delivered = [] if self.common.hooks.wants_paths else None
        for request in requests:
            request.report = report
        self.report = report
        was_well, is_hinted, began_s = self.failure is None and self._has_synced, self._is_hinted, self.common.clock()
        self._is_hinted = self._is_hinted and dry_run
        is_over = False
        try:
            with anyio.CancelScope() as self._passing:
                await make_pass(report, only, dry_run)
                is_over = True
        finally:
            self.report, self._passing = None, None
            if not is_over:
                report.error = report.error or (STOPPED if self._is_stopping else FAULT)
            for request in requests:
                request.done.set()
        if is_over and not dry_run:
            self._judge(report, only)
            if was_well and not is_hinted and self.failure is None:
                found = [MailboxName(name) for name, mailbox in report.mailboxes.items() if mailbox.pulled]
                self._listening.note_found(found, began_s)

    def _taken(self) -> tuple[list[Request], tuple[str, ...], bool]:
        """The requests that the next pass serves, the mailboxes that it is restricted to, and whether it is dry."""
        if self._requests and self._requests[0].is_dry_run:
            first = self._requests.pop(0)
            return [first], first.only, True
        requests = [request for request in self._requests if not request.is_dry_run]
        self._requests = [request for request in self._requests if request.is_dry_run]
        is_whole = self._is_wanted or not all(request.only for request in requests)
        if is_whole:
            self._is_wanted = self._is_stirred_here = False
            return requests, (), False
        return requests, tuple(sorted({name for request in requests for name in request.only})), False

    def _judge(self, report: AccountReport, only: Sequence[str]) -> None:
        """What the end of a pass means for the next one."""
        self.is_stale = True
        self._last_sign_s = self.common.clock()
        failure, had_failed = report.failure, self.failure is not None
        self.common.hooks.note_pass(report)
        if only and failure is not None and failure.scope is Scope.MAILBOX:
            self.wake()  # a name that is not there says nothing about the account
            return
        if failure is None or failure.scope in {Scope.MAILBOX, Scope.MESSAGE}:
            self.failure = failure
            self._patience.reset()
            self._set_timer()
            self._has_synced = True
            if had_failed:
                self._listening.hasten()
            names = tuple(sorted(MailboxName(name) for name in report.mailboxes))
            self._listening.begin(None if only else names)
        else:
            self._fail(failure)
            self._patience.note_failure()
        self._tell_failure(report)

    def _fail_to_begin(self, failure: MaildError | None) -> None:
        """No pass can be made: whoever waits for one hears why."""
        self._last_sign_s = self.common.clock()
        self._fail(failure)
        requests, self._requests = self._requests, []
        for request in requests:
            request.report = AccountReport(self.account.name, "error", str(self.failure), failure=self.failure)
            request.done.set()

    def _fail(self, failure: MaildError | None) -> None:
        self.failure = failure or MaildError(FAULT, "please report it")
        self._is_wanted = True
        self.is_stale = True
        self._listening.end()
        if isinstance(failure, AuthRejected):
            self._set_timer()

    def _tell_failure(self, report: AccountReport) -> None:
        """To the hook: at once what needs a person, after an hour what may pass by itself; each once."""
        failure = self.failure
        refused = next((m.error for m in report.mailboxes.values() if m.state == "refused"), None)
        if failure is None and refused is None:
            self._is_told = False
        elif not self._is_told:
            may_pass = failure is not None and failure.retry is Retry.LATER
            if not may_pass or self._patience.failing_for_s >= TELL_AFTER_S:
                self._is_told = True
                self.common.hooks.note_failure(self.account.name, failure or refused or "")

    # -- passes

    async def _pass(self, kept: KeptAccount, report: AccountReport, only: Sequence[str], dry_run: bool) -> None:
        self.common.passes += 1
        this = KeptAccount(kept.account, kept.imap, kept.remote, kept.state, dry_run) if dry_run else kept
        if isinstance(kept.remote, LogsIn) and kept.remote.credentials.refused is not None:
            await self._unless_unreadable(kept.remote.credentials.has_changed)
        self._credentials = kept.remote.credentials if isinstance(kept.remote, LogsIn) else None
        hinted, self._hinted = self._hinted, self._hinted if dry_run else frozenset()
        await this.bring_up_to_date(report, only, hinted)
        await kept.remote.rest()
        await self.common.note_use(kept)

    async def _look(self, kept: KeptAccount) -> bool:
        """Whether this disk has news that are not maild's own."""
        try:
            return await kept.has_local_news()
        finally:
            await self.common.note_use(kept)

    async def _await_login_delay(self) -> None:
        """Nothing is polled by itself before the server wants to hear from us, whoever polled it last."""
        self._terms, login_s = await anyio.to_thread.run_sync(remembered_terms, self.account, self.common.state_dir)
        delay_s = self._terms.login_delay_s
        self._login_from_s = self.common.clock() + min(login_s + delay_s - time.time(), delay_s)

    async def _poll(self, credentials: Credentials, report: AccountReport, only: Sequence[str], dry_run: bool) -> None:
        if credentials.refused is not None:
            await self._unless_unreadable(credentials.has_changed)
        state_dir = self.common.state_dir
        terms = await poll_account(self.account, state_dir, report, credentials=credentials, dry_run=dry_run)
        if terms is not None:
            self._terms, self._login_from_s = terms, self.common.clock() + terms.login_delay_s
        self._listening.push = "poll" if report.ok else None

    async def _has_other_secret(self) -> bool:
        """Whether the refused secret has been replaced; where it cannot be read it has not."""
        return self._credentials is None or await self._unless_unreadable(self._credentials.has_changed)

    async def _unless_unreadable(self, has_changed: Callable[[], Awaitable[bool]]) -> bool:
        try:
            has_it, trouble = await has_changed(), None
        except MaildError as exc:
            has_it, trouble = False, exc
        if trouble is not None and str(trouble) != self._secret_trouble:
            log.warning("secret.refused", account=self.account.name, reason=trouble.text, hint=trouble.hint)
        self._secret_trouble = str(trouble or "")
        return has_it

    # -- who tells when to look

    def _set_timer(self) -> None:
        """A little earlier or later each time, so that accounts do not keep step."""
        section = self.account.imap or self.account.pop3
        poll_s = next_poll_s(float(section.poll_s) if section is not None else 0.0, self._terms)
        spread_s = poll_s * 0.1 * (self.common.chance() - (0.0 if self._terms.login_delay_s else 0.5))
        self._next_poll_s = self.common.clock() + poll_s + spread_s

    @property
    def _host(self) -> str:
        section = self.account.imap or self.account.pop3
        return section.host if section is not None else ""


async def _nothing() -> bool:
    return False


async def refresh(keepers: Iterable[Keeper]) -> None:
    """Read again what is stored of those that have had a pass since it was read."""
    stale = [keeper for keeper in keepers if keeper.is_stale]
    for start in range(0, len(stale), READ_AT_ONCE):
        some = stale[start : start + READ_AT_ONCE]
        for keeper in some:
            keeper.is_stale = False
        for keeper, stored in zip(some, await anyio.to_thread.run_sync(_read, some), strict=True):
            keeper.stored = stored


def _read(keepers: Sequence[Keeper]) -> list[AccountDocument]:
    return [stored_account(keeper.common.state_dir, keeper.account.name, keeper.protocol) for keeper in keepers]


def _counts(report: AccountReport) -> object:
    """What changes while a pass comes on."""
    done = sum(mailbox.state not in {"pending", "syncing"} for mailbox in report.mailboxes.values())
    changes = [report.total(name) for name in ("pulled", "pushed", "adopted", "flags", "flags_there", "deleted")]
    return report.state, report.done_messages, report.done_octets, len(report.mailboxes), done, *changes
