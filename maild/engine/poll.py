"""One poll of a POP3 account: what is new comes into INBOX, what need not stay on the server is deleted there.

Invariants:
- a message is in the state before it is retrieved, and counts as here once its file is durable and its pair committed;
  so whatever instant maild is killed at, the next poll retrieves it, or finds its file by content (`retrieve`);
- a deletion is written down before DELE is sent, and is true when QUIT was answered with +OK; after a QUIT that was
  lost the next poll looks: what is still listed is deleted again, what is not has been (`prune`);
- DELE is sent only for messages that are durable here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath

import anyio
import anyio.to_thread
import structlog

from maild.config import Account, Pop3
from maild.core.errors import ConfigError, ConnectionLost, MaildError, PlanRefused, ProtocolViolation
from maild.core.maildrop import DAY_S, Known, News, Policy, Terms, compare, is_by_content
from maild.core.model import Epoch, MailboxName, Uid
from maild.core.names import directory
from maild.engine.lifetime import note_pass, only_ours, state_path
from maild.engine.propagate import StateThread
from maild.engine.prune import prune
from maild.engine.report import AccountReport
from maild.engine.retrieve import Retrieval, Visit
from maild.local.maildir import Maildir
from maild.local.maildrop import MaildropTable, note_terms, terms_told
from maild.local.marker import check_root, mark_root
from maild.local.state import MailboxState, State
from maild.remote import open_maildrop
from maild.remote.auth import Credentials
from maild.remote.pop3.remote import Maildrop, Pop3Remote

TRIES = 3  # of a transfer, when the connection is lost on the way
RETRY_DELAY_S = 1.0
INBOX = MailboxName("INBOX")

log = structlog.get_logger()


async def poll_account(
    account: Account,
    state_dir: Path,
    report: AccountReport,
    *,
    credentials: Credentials | None = None,
    dry_run: bool = False,
    now: Callable[[], float] = time.time,
) -> Terms | None:
    """One poll, told in `report`; what the server says about polling it, None where it was not logged in to.

    Never raises a MaildError: it is reported. `credentials` are those of a caller who makes more than one poll; `now`
    is the clock by which messages age, in seconds since 1970 UTC.
    """
    started = time.monotonic()
    report.state = "connecting"
    log.debug("account.started", account=account.name)
    terms: Terms | None = None
    try:
        async with _opened(account, state_dir, report, dry_run=dry_run, now=now) as visit:
            try:
                await _poll(visit, open_maildrop(account, credentials))
            finally:
                terms = visit.terms
    except MaildError as exc:
        _fail(account, report, exc)
    except BaseExceptionGroup as group:
        _fail(account, report, only_ours(group))
    report.duration_s = time.monotonic() - started
    report.state = "ok" if report.ok else "error"
    _log_end(account, report)
    return terms


def _fail(account: Account, report: AccountReport, exc: MaildError) -> None:
    report.error, report.failure = str(exc), exc
    for mailbox in report.mailboxes.values():
        if mailbox.state in {"pending", "syncing"}:
            mailbox.state, mailbox.error = "refused" if isinstance(exc, PlanRefused) else "error", report.error
    if report.error != report.known_error:
        log.error("account.failed", account=account.name, error=exc.text, hint=exc.hint)


def _log_end(account: Account, report: AccountReport) -> None:
    counts = {name: report.total(name) for name in ("pulled", "adopted", "refused", "skipped")}
    is_news = report.error is None or report.error != report.known_error
    (log.info if is_news else log.debug)(
        "account.finished",
        account=account.name,
        octets=report.done_octets,
        deleted=report.total("deleted_there"),
        duration_s=round(report.duration_s, 3),
        **counts,
    )


@asynccontextmanager
async def _opened(
    account: Account, state_dir: Path, report: AccountReport, *, dry_run: bool, now: Callable[[], float]
) -> AsyncIterator[Visit]:
    """State and disk of an account, closed again at the end."""
    if account.pop3 is None:
        raise ConfigError([f'account "{account.name}" has no pop3 section'])
    with state_path(account, state_dir, dry_run=dry_run) as path:
        thread = StateThread(await anyio.to_thread.run_sync(State.open, path))
        try:
            visit = await thread.run(_begun, account, account.pop3, thread, report, dry_run, now)
            try:
                yield visit
                if visit.is_announced:
                    await thread.run(mark_root, account.maildir, thread.state)
            finally:
                if visit.maildir is not None:
                    visit.maildir.close()
            await _note_end(thread, None, dry_run=dry_run)
        except MaildError as exc:
            await _note_end(thread, exc, dry_run=dry_run)
            raise
        except BaseExceptionGroup as group:
            await _note_end(thread, only_ours(group), dry_run=dry_run)
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(thread.state.close)


async def _note_end(thread: StateThread, failure: MaildError | None, *, dry_run: bool) -> None:
    if not dry_run:
        await thread.run(note_pass, thread.state, None if failure is None else str(failure))


def _begun(
    account: Account,
    pop3: Pop3,
    thread: StateThread,
    report: AccountReport,
    dry_run: bool,
    now: Callable[[], float],
) -> Visit:
    """See that the Maildir is the one the state knows, and open what is needed of both. Blocks."""
    state, now_s = thread.state, now()
    check_root(account.maildir, state, dry_run)
    report.mailbox(INBOX)
    where = directory((INBOX,), account.layout)
    mailbox = state.mailboxes().get(INBOX)
    if mailbox is None:
        mailbox = MailboxState(0, INBOX, str(where)) if dry_run else state.add_mailbox(INBOX, str(where))
    table = MaildropTable(state, mailbox.id)
    if not dry_run:
        table.create()
        _begin_anew_if_other(state, table, mailbox, Epoch(f"pop3 {pop3.user}@{pop3.host}"), now_s)
    policy = Policy(pop3.leave_on_server, pop3.delete_with_local, pop3.max_message_size_octets)
    maildir = _open_maildir(account, state, mailbox, where, dry_run=dry_run)
    visit = Visit(account, pop3, thread, report, mailbox, maildir, table, policy, dry_run, now, now_s)
    visit.recall_doubts()
    return visit


def _begin_anew_if_other(state: State, table: MaildropTable, mailbox: MailboxState, epoch: Epoch, now_s: float) -> None:
    """Another host or user is another maildrop: its unique-ids mean other messages, though they may look the same."""
    if mailbox.epoch == epoch:
        return
    if mailbox.epoch is not None:
        table.begin_anew(f" was:{now_s:.0f}:")
        log.info("mailbox.rebuilt", mailbox=mailbox.name)
    state.set_epoch(mailbox.id, epoch)


def _open_maildir(
    account: Account, state: State, mailbox: MailboxState, where: PurePosixPath, *, dry_run: bool
) -> Maildir | None:
    """INBOX's directory, made if this disk never had it. One that is gone is not made again behind one's back."""
    maildir = Maildir.open(account.maildir, where)
    if maildir is None and mailbox.id and state.count(mailbox.id):
        raise PlanRefused(
            f"mailbox {INBOX}: its directory {account.maildir / where} is gone, and it was not maild that removed it",
            "mount or restore it; to fetch it all again, remove the account's file in state_dir",
        )
    if dry_run:
        return maildir
    maildir = maildir or Maildir.create(account.maildir, where)
    maildir.delete_stale_tmp(time.time())
    return maildir


async def _poll(visit: Visit, remote: Pop3Remote) -> None:
    """Sessions until one comes to its end. What a lost one brought stays, so the next has less to do."""
    for attempt in range(1, TRIES + 1):
        try:
            async with remote.opened() as drop:
                return await _visit(visit, drop)
        except (ConnectionLost, ProtocolViolation) as exc:
            if visit.is_pulling:
                await visit.state.run(visit.doubt)
            delay_s = RETRY_DELAY_S * attempt
            login_delay_s = visit.terms.login_delay_s if visit.terms is not None else 0
            if not visit.is_pulling or attempt == TRIES or login_delay_s > delay_s:
                raise
            visit.is_pulling = False
            log.warning("session.retried", account=visit.account.name, mailbox=INBOX, reason=exc.text)
            await anyio.sleep(delay_s)
    raise ConnectionLost(f"{visit.pop3.host}: no session came to its end")


async def _visit(visit: Visit, drop: Maildrop) -> None:
    """All that is done in one session."""
    visit.terms = await drop.terms()
    if not visit.dry_run:
        await visit.state.run(_note_terms, visit, visit.terms)
    listed = await drop.listing()
    visit.report.state = visit.box.state = "syncing"
    visit.listed = {message.uid: message.number for message in listed if message.uid is not None}
    nameless = [message.number for message in listed if message.uid is None]
    visit.known = await visit.state.run(visit.table.known)
    judged, later = _by_when(visit.known, has_nameless=bool(nameless))
    news = compare(visit.listed, judged, visit.now_s)
    fresh = [visit.listed[uid] for uid in news.fresh]
    visit.sizes = await drop.sizes([*fresh, *nameless]) if fresh or nameless else {}
    if not visit.dry_run:
        await visit.state.run(_note, visit, news)
    retrieval = Retrieval(visit, drop, news, nameless)
    await retrieval.match()
    await retrieval.pull()
    late_news = compare([uid for uid in visit.listed if is_by_content(uid)], later, visit.now_s)
    await prune(visit, drop, is_renumbered=news.is_renumbered)
    visit.box.state = "refused" if visit.box.refused else "error" if visit.box.error else "ok"
    if not visit.dry_run:
        await visit.state.run(_conclude, visit, news, late_news, len(listed))


def _note_terms(visit: Visit, terms: Terms) -> None:
    """Remember what the server wants, and when it was logged in to: the next daemon has to know as well. Blocks."""
    state = visit.state.state
    before, _ = terms_told(state)
    if terms != Terms() or before != Terms():
        note_terms(state, terms, visit.now())
    days, leave = terms.expire_days, visit.policy.leave
    if terms != before and days is not None and (leave is True or leave > days * DAY_S):
        reason = f"the server keeps mail for {days} days" if days else "the server keeps no mail that was fetched"
        log.warning("maildrop.limited", account=visit.account.name, reason=reason)


def remembered_terms(account: Account, state_dir: Path) -> tuple[Terms, float]:
    """What the account's server wanted when it was logged in to last, and when that was, in seconds since 1970 UTC.

    Blocks. Raises LocalError.
    """
    path = state_dir / f"{account.name}.sqlite"
    if not path.exists():
        return Terms(), 0.0
    state = State.open(path)
    try:
        return terms_told(state)
    finally:
        state.close()


def _by_when(known: Mapping[Uid, Known], *, has_nameless: bool) -> tuple[dict[Uid, Known], dict[Uid, Known]]:
    """What is known, parted: of which the listing tells whether it is there, and of which only retrieving does."""
    late = {uid for uid in known if is_by_content(uid)} if has_nameless else set()
    return {uid: known[uid] for uid in known if uid not in late}, {uid: known[uid] for uid in late}


def _note(visit: Visit, news: News) -> None:
    """Begin with what is seen for the first time, and be done with what is gone as was asked for. Blocks."""
    gone = [*news.confirmed, *news.forgotten]
    if news.unseen or news.returned or gone:
        visit.table.note_listing(news.unseen, (), news.returned, gone, visit.now_s)


def _conclude(visit: Visit, news: News, late_news: News, messages: int) -> None:
    """The poll is complete; what was not listed in it is gone from the server, for now. Blocks."""
    _note(visit, late_news)
    if lost := [*news.newly_lost, *late_news.newly_lost]:
        visit.table.note_listing((), lost, (), (), visit.now_s)
    visit.state.state.finish(visit.mailbox.id, None, None, messages, visit.now_s)
    if visit.box.error is not None and not visit.box.refused:
        visit.state.state.set_error(visit.mailbox.id, visit.box.error)
