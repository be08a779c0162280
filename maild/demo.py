"""`maild demo`: all of maild on this machine, with no account, shown step by step with its timings.

The server lives in this process, holds its mail in memory and listens on loopback; the config, the sync and the Maildir
are those of every day. After each sync the Maildir is compared with the server, message by message. The first thing
that is not as it should be raises DemoFailed, which ends in exit status 1.

A step is a function with a title in `STEPS`, and they run in that order. To show more, add one there.
"""

from __future__ import annotations

import argparse
import secrets
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anyio
import tomli_w

from maild import log
from maild.commands import printable
from maild.config import Account, Config, load
from maild.core.errors import LocalError, MaildError
from maild.engine.account import sync_account
from maild.engine.report import AccountReport
from maild.local.durable import disk_error, make_directory
from maild.local.lock import InstanceLock
from maild.testing import witness
from maild.testing.imap import ImapServer
from maild.testing.samples import new_message, sample_store
from maild.testing.store import Store

if TYPE_CHECKING:
    from rich.console import Console

ACCOUNT = "demo"
ADDRESS = "erika@example.org"
CONFIG, PASSWORD, STATE, MAIL = "maild.toml", "password", "state", "Mail"  # all that a demo writes into its directory
MARK = "# Written by `maild demo`; the next demo in this directory replaces it and the mail beside it.\n"
WIDTH = 100

YOUR_CONFIG = """\
[maild]
maildir = "~/Mail"

[accounts.work]
address = "me@example.org"

[accounts.work.imap]
host = "imap.example.org"
user = "me@example.org"
password_command = ["pass", "mail/work"]
mailboxes = ["*", "!Junk"]
"""


class DemoFailed(MaildError):
    """Something in the demo was not as it should be."""


def run(args: argparse.Namespace) -> int:
    """Show it all and return 0. Raises DemoFailed where it went wrong, LocalError where the directory will not do."""
    log.configure("debug" if args.verbose else "error")
    with _place(args.keep) as place, InstanceLock(place / STATE, "maild demo"):
        _remove_earlier(place)
        anyio.run(_run_steps, place, args.keep is not None)
    return 0


async def _run_steps(place: Path, is_kept: bool) -> None:
    started = time.perf_counter()
    screen = Screen()
    screen.title("maild demo: mail comes from a server into a Maildir, all on this machine and without an account.")
    password = secrets.token_urlsafe(12)
    async with ImapServer(sample_store(), {ADDRESS: password}) as server:
        server_ms, listening = _since_ms(started), time.perf_counter()
        _write_config(place, server, password)
        config = load(place / CONFIG)
        demo = Demo(screen, place, is_kept, server, server_ms, config, _since_ms(listening))
        for number, (title, step) in enumerate(STEPS, 1):
            screen.title(f"{number}. {title}")
            await step(demo)
    screen.title(f"All was as it should be. The demo took {_since_ms(started):.0f} ms.")
    _tell_what_comes_next(screen)


# -- what the steps use


class Screen:
    """Where the demo is shown: plain text, in colours on a terminal, where rich obeys NO_COLOR."""

    def __init__(self) -> None:
        self._console = _console() if sys.stdout.isatty() else None

    def title(self, text: str) -> None:
        self._line("")
        self._line(printable(text), "bold")

    def say(self, text: str, style: str = "") -> None:
        """A paragraph, wrapped."""
        for line in textwrap.wrap(printable(text), WIDTH - 3, break_long_words=False, break_on_hyphens=False):
            self._line(f"   {line}", style)

    def show(self, text: str) -> None:
        """Lines as they stand in a file or would be typed, never wrapped."""
        for line in text.splitlines():
            self._line(f"       {printable(line)}".rstrip(), "cyan")

    def _line(self, text: str, style: str = "") -> None:
        if self._console is None:
            print(text)
        else:
            self._console.print(text, style=style)


def _console() -> Console:
    """Imported here: who writes into a file or a pipe need not wait for rich."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Demo:
    """What the steps share. `place` is the directory that holds everything that is written."""

    screen: Screen
    place: Path
    is_kept: bool
    server: ImapServer
    server_ms: float
    config: Config
    config_ms: float

    @property
    def account(self) -> Account:
        return self.config.accounts[ACCOUNT]

    @property
    def messages(self) -> int:
        """On the server, now."""
        return sum(map(len, self.server.store.mailboxes))


# -- the steps


async def show_server(demo: Demo) -> None:
    server, names = demo.server, demo.server.store.names
    demo.screen.say(
        f"An IMAP server in memory listens at {server.host}:{server.port}, up with its mail in {demo.server_ms:.0f} ms."
        f" It has {_counted(demo.messages, 'message')} in {_counted(len(names), 'mailbox')}:"
    )
    demo.screen.say(", ".join(names))


async def show_config(demo: Demo) -> None:
    path = demo.place / CONFIG
    demo.screen.say(f"A real file, read and found good in {demo.config_ms:.0f} ms:")
    demo.screen.show(f"$ cat {shlex.quote(str(path))}\n{path.read_text(encoding='utf-8')}")


async def sync_first(demo: Demo) -> None:
    report = await _sync(demo, pulled=demo.messages)
    demo.screen.say(
        f"{_counted(demo.messages, 'message')} pulled in {_ms(report)}, {report.done_octets / 1000:.0f} kB over"
        f" {_counted(len(demo.server.connections), 'connection')}, all durable on the disk."
    )
    demo.screen.say(
        f"Verified: the {demo.messages} messages here are those on the server, equal in every octet (CRLF there is LF"
        " here), every flag and keyword, and the date, which is the mtime of the file.",
        "green",
    )


async def sync_changes(demo: Demo) -> None:
    flagged, deleted, delivered = _change_like_another_client(demo.server.store)
    demo.screen.say(
        f"Another client sets flags on {_counted(flagged, 'message')} of INBOX and deletes {deleted};"
        f" {_counted(delivered, 'message')} arrived in INBOX and 日本語."
    )
    report = await _sync(demo, pulled=delivered, flags=flagged, deleted=deleted)
    demo.screen.say(
        f"The second sync carries over exactly that in {_ms(report)}: {delivered} pulled,"
        f" {_counted(flagged, 'flag change')}, {deleted} deleted here."
        f" {_counted(report.unchanged, 'mailbox')} had not changed and stayed closed."
    )
    demo.screen.say(f"Verified again, all {demo.messages} messages.", "green")


async def sync_nothing(demo: Demo) -> None:
    before = len(demo.server.journal)
    report = await _sync(demo)
    commands = demo.server.journal[before:]
    if opened := [command for command in commands if command.startswith(("EXAMINE ", "SELECT "))]:
        raise _failure(demo, f"nothing had changed, and yet the third sync opened a mailbox: {opened[0]}")
    demo.screen.say(
        f"The third sync finds that out with {_counted(len(commands), 'command')} in {_ms(report)};"
        " the one LIST tells of all mailboxes:"
    )
    demo.screen.show("\n".join(commands))


async def show_maildir(demo: Demo) -> None:
    root = demo.account.maildir
    demo.screen.say("One file per message, one directory per mailbox:")
    demo.screen.show("\n".join([str(root), *_tree(root)]))
    if demo.is_kept:
        demo.screen.say("It stays there. Any mail reader that knows Maildirs can open it, such as mutt:")
        demo.screen.show(f"mutt -f {shlex.quote(str(root / 'INBOX'))}")
        demo.screen.say("The server ends with the demo: to sync once more, run the demo once more.")
    else:
        demo.screen.say("All of it is removed now. To keep it, and to read it with mutt:")
        demo.screen.show(f"maild demo --keep ~/maild-demo\nmutt -f ~/maild-demo/{MAIL}/{ACCOUNT}/INBOX")


Step = Callable[[Demo], Awaitable[None]]

STEPS: tuple[tuple[str, Step], ...] = (
    ("A mail server", show_server),
    ("The config", show_config),
    ("The first sync", sync_first),
    ("Something changes on the server", sync_changes),
    ("Nothing changes", sync_nothing),
    ("The mail on this disk", show_maildir),
)


def _tell_what_comes_next(screen: Screen) -> None:
    screen.say("With your own mail it takes twelve lines at most, in ~/.config/maild/maild.toml:")
    screen.show(YOUR_CONFIG)
    screen.say("and then:")
    screen.show("maild check     says whether the config is good\nmaild sync      fetches the mail")


# -- syncing


async def _sync(demo: Demo, **expected: int) -> AccountReport:
    """One real pass. It must have done what is expected and nothing else, and leave the Maildir like the server."""
    report = AccountReport(ACCOUNT)
    await sync_account(demo.account, demo.config.state_dir, report)
    if not report.ok:
        raise _failure(demo, f"the sync failed: {report.first_error()}")
    for counter in ("pulled", "flags", "deleted", "adopted", "refused", "skipped"):
        if (count := report.total(counter)) != expected.get(counter, 0):
            raise _failure(demo, f"the sync counted {counter}: {count} instead of {expected.get(counter, 0)}")
    if difference := witness.difference(demo.server.store, demo.account.maildir, demo.account.layout):
        raise _failure(demo, difference)
    return report


def _failure(demo: Demo, text: str) -> DemoFailed:
    where = f"all is left in {demo.place}" if demo.is_kept else "with --keep DIR all would be left in DIR to look at"
    return DemoFailed(f"the demo failed: {text}", where)


def _change_like_another_client(store: Store) -> tuple[int, int, int]:
    """How many messages got other flags, were deleted, and were delivered."""
    inbox = store.mailbox("INBOX")
    unread = [message.uid for message in inbox if "\\Seen" not in message.flags]
    flagged = store.set_flags("INBOX", unread[:3], add=["\\Seen"])
    flagged += store.set_flags("INBOX", unread[3:4], add=["\\Flagged", "$Later"])
    deleted = store.expunge("INBOX", [uid for uid in inbox.uids if uid not in unread][:2])
    targets = ("INBOX", "INBOX", "日本語")
    for number, target in enumerate(targets, 1):
        store.deliver(target, new_message(number, int(time.time())))
    return len(flagged), len(deleted), len(targets)


# -- the directory


@contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    """The directory to work in: the one to keep, or one that is removed afterwards."""
    if keep is None:
        with TemporaryDirectory(prefix="maild-demo-") as temporary:
            yield _usable(Path(temporary))
        return
    place = _usable(keep.absolute())
    make_directory(place)
    try:
        if any(place.iterdir()) and not _is_earlier_demo(place):
            raise LocalError(f"{place} is not empty, and not the directory of an earlier demo", "name a new directory")
    except OSError as exc:
        raise disk_error(exc, "look into", place) from exc
    yield place


def _usable(place: Path) -> Path:
    text = str(place)
    if "$" in text or not text.isprintable():
        raise LocalError(f"{text!r} cannot stand in a config, where $ begins a variable", "name another directory")
    return place


def _is_earlier_demo(place: Path) -> bool:
    """Whether a demo has written all that is in it."""
    ours = {CONFIG, PASSWORD, STATE, MAIL}
    if any(entry.is_symlink() or entry.name not in ours for entry in place.iterdir()):
        return False
    return (place / CONFIG).is_file() and (place / CONFIG).read_bytes().startswith(MARK.encode())


def _remove_earlier(place: Path) -> None:
    """Remove the mail and the state of an earlier demo; the lock is held, so that one is over."""
    try:
        if (place / MAIL).exists():
            shutil.rmtree(place / MAIL)
        for file in (place / STATE).glob(f"{ACCOUNT}.sqlite*"):
            file.unlink()
    except OSError as exc:
        raise disk_error(exc, "remove the earlier demo in", place) from exc


def _write_config(place: Path, server: ImapServer, password: str) -> None:
    """The config, and the file with the password."""
    imap = {"host": server.host, "port": server.port, "tls": "none", "password_file": str(place / PASSWORD)}
    document = {
        "maild": {"maildir": str(place / MAIL), "state_dir": str(place / STATE)},
        "accounts": {ACCOUNT: {"address": ADDRESS, "imap": imap}},
    }
    _write_private(place / PASSWORD, f"{password}\n")
    _write_private(place / CONFIG, MARK + tomli_w.dumps(document))


def _write_private(path: Path, text: str) -> None:
    """A new file that only its owner can read."""
    try:
        path.unlink(missing_ok=True)
        path.touch(0o600, exist_ok=False)
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise disk_error(exc, "write", path) from exc


def _tree(root: Path) -> Iterator[str]:
    """The mailboxes on disk, deeper ones indented, each with how many messages it holds."""
    shown = {root}
    for path in witness.mailboxes(root):
        for above in reversed(path.relative_to(root).parents[:-1]):
            if root / above not in shown:
                shown.add(root / above)
                yield _branch(above) + above.name
        shown.add(path)
        new, cur = (sum(1 for _ in (path / name).iterdir()) for name in ("new", "cur"))
        counts = _counted(new + cur, "message") + (f", {new} new" if new else "")
        yield f"{_branch(path.relative_to(root))}{path.name}: {counts}"


def _branch(relative: Path) -> str:
    return "    " * len(relative.parts)


# -- words


def _counted(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("x") else "s"
    return f"{count} {noun}{'' if count == 1 else plural}"


def _ms(report: AccountReport) -> str:
    return f"{report.duration_s * 1000:.0f} ms"


def _since_ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000
