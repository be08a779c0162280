"""How work on an account begins and ends, whatever its protocol: where its state is, whom it trusts, what failed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from maild.config import Account
from maild.core.errors import MaildError
from maild.local.durable import disk_error
from maild.local.overview import LAST_PASS, last_done
from maild.local.state import State

Trust = tuple[tuple[Path, int, int, int] | None, ...]


def trust_of(account: Account) -> Trust:
    """The files that say whom an account trusts and who it is, as they are now: another value once one is replaced."""
    endpoints = [endpoint for endpoint in (account.imap, account.pop3, account.smtp) if endpoint is not None]
    files = [file for e in endpoints for file in (e.ca_file, e.client_cert, e.client_key) if file is not None]
    return tuple(map(_stamp, files))


def _stamp(path: Path) -> tuple[Path, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None  # whoever connects says why
    return path, found.st_mtime_ns, found.st_size, found.st_ino


@contextmanager
def state_path(account: Account, state_dir: Path, *, dry_run: bool) -> Iterator[Path]:
    """Where the account's state is. A dry run that finds none begins one that is thrown away."""
    path = state_dir / f"{account.name}.sqlite"
    if not dry_run or path.exists():
        yield path
        return
    try:
        scratch = TemporaryDirectory(prefix="maild-")
    except OSError as exc:
        raise disk_error(exc, "make a directory in", gettempdir()) from exc
    with scratch as directory:
        yield Path(directory) / path.name


def note_pass(state: State, error: str | None, now_s: float | None = None) -> None:
    """For `maild status`: that a pass ended, why as a whole it failed, and when one last came to its end. Blocks."""
    at_s = int(time.time() if now_s is None else now_s)
    done_at_s: float | None = at_s
    if error is not None:
        done_at_s = last_done(state.meta(LAST_PASS))
    told = {"at": at_s, "ok": error is None, "error": error, "done_at": done_at_s}
    state.set_meta(LAST_PASS, json.dumps(told))


def only_ours(group: BaseExceptionGroup[BaseException]) -> MaildError:
    """The first of our errors in a group that holds nothing else; a fault in maild is raised as it is."""
    ours, others = group.split(MaildError)
    if others is not None or ours is None:
        raise group
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    if not isinstance(first, MaildError):
        raise group
    return first
