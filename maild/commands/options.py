"""The options of all commands but those of `account_options`; whoever says what he wants plainly needs none of it."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from maild import __version__
from maild.commands import account_options, printable

USAGE = 64

_ABOUT = """\
Keeps IMAP accounts and Maildirs on this disk equal, both ways, polls POP3
accounts, and sends mail from an outbox. Any reader of Maildirs opens what it
keeps: mutt, aerc, notmuch, mu4e."""

_FIRST_STEPS = """\
first steps:
  maild demo              see it work, with servers of its own and no account
  maild account add ME@EXAMPLE.ORG
                          set up an account, from its address
  maild sync              fetch the mail; then read it with mutt or aerc
  maild run               keep it up to date from then on (systemd/ has units)
  maild doctor            when something is not as it should be

exit status: 0 all well, 1 an account or mailbox failed (others were done),
64 wrong usage, 69 no daemon runs where one is needed, 75 the outbox could not
be written: try again later, 77 no permission, 78 bad config
"""

_BEFORE_THE_COMMAND = frozenset(("-c", "--config", "-v", "--verbose", "--version"))

_CHECK = "Reads the config and tells everything that is wrong with it, without touching the network."

_SYNC = """\
One full pass now: new messages come into the Maildirs, and what changed on either side is carried over to the other.
Interrupted at any moment, the next pass continues where this one was. Where a daemon runs, it does it."""

_LOGIN = """\
Gets the tokens for an account whose secret is oauth2, once; maild refreshes them from then on. With a display a browser
is used, otherwise a code that can be typed in on any device, where the provider offers that."""

_DEMO = """\
Starts mail servers of its own on this machine, with sample mail, and maild against them: a first sync, then the daemon,
to which mail comes by push, from where flags go back, and through which a message is sent. Shows each step with its
time, and the Maildirs at the end. Needs no account and no config, and leaves nothing behind unless told to."""

_RUN = """\
Keeps all accounts up to date until it is stopped: new mail comes as soon as the server tells, changes made here go
there at once, and what is in the outbox is sent. Starts without a network. For systemd there are units in systemd/."""

_RELOAD = """\
Has the daemon read its config again. Accounts whose config changed, and those whose login was refused, are started
anew; the others do not notice. A config with errors is refused, and the one in use stays."""

_STATUS = """\
What every account, mailbox and the outbox is doing, and what is in the way of anything. Needs no network, and waits for
nobody: it may be called while a sync runs. `maild -v status` shows every mailbox."""

_APPROVE = """\
Releases the plan that the deletion guard refused for a mailbox, or all those of an account: the next pass carries it
out. `maild status` shows them. Only that plan is released; one that would delete more is refused again."""

_OUTBOX = """\
Messages on their way out, from `maild sendmail`. A message that is held waits until it is released; cancel forgets it;
retry tries again at once what waits or has failed. Without a daemon, flush sends from this process."""


_SENDMAIL = """\
What other programs take for sendmail; maild-sendmail is the same under a name of its own."""


class _Parser(argparse.ArgumentParser):
    has_flags_only = False  # no option of it takes a value

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Options may also stand between words; argparse takes no more words after one that follows optional words."""
        if self.has_flags_only and args is not None and "--" not in args:
            args = sorted(args, key=lambda word: not word.startswith("-"))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Wrong usage is 64 here (EX_USAGE), not argparse's 2."""
        if message.startswith("unrecognized arguments:") and _BEFORE_THE_COMMAND & set(message.split()):
            message += "; -c and -v stand before the command"
        elif found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            from maild.core.errors import did_you_mean

            message += did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        self.print_usage(sys.stderr)
        self.exit(USAGE, printable(f"{self.prog}: {message}") + "\n")


def all_options() -> argparse.ArgumentParser:
    """The commands with what each of them takes."""
    parser = _Parser(
        prog="maild",
        description=_ABOUT,
        epilog=_FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"maild {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log every step")
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        help="read this config instead of $MAILD_CONFIG, ~/.config/maild/maild.toml or /etc/maild/maild.toml",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_demo(commands)
    account_options.add_account(
        commands.add_parser("account", help="set up and look after accounts", allow_abbrev=False)
    )
    _add_login(commands)
    _add_check(commands)
    account_options.add_doctor(commands.add_parser("doctor", help="connect, and say what is wrong", allow_abbrev=False))
    _add_sync(commands)
    _add_daemon(commands)
    _add_status(commands)
    _add_approve(commands)
    _add_outbox(commands)
    commands.add_parser(
        "sendmail", help="take a message from standard input to send it", description=_SENDMAIL, add_help=False
    )
    return parser


def _add_check(commands: argparse._SubParsersAction[_Parser]) -> None:
    check = commands.add_parser("check", help="say whether the config is good", description=_CHECK, allow_abbrev=False)
    check.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def _add_sync(commands: argparse._SubParsersAction[_Parser]) -> None:
    sync = commands.add_parser("sync", help="fetch and carry over now", description=_SYNC, allow_abbrev=False)
    sync.add_argument(
        "targets",
        metavar="ACCOUNT[/MAILBOX]",
        nargs="*",
        help="only this account or this mailbox, such as work or work/INBOX; everything by default",
    )
    sync.add_argument("--dry-run", action="store_true", help="print what would be done and change nothing")
    sync.add_argument("--send", action="store_true", help="what is due in the outbox goes out too")
    sync.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def _add_daemon(commands: argparse._SubParsersAction[_Parser]) -> None:
    commands.add_parser("run", help="keep the mail up to date: the daemon", description=_RUN, allow_abbrev=False)
    commands.add_parser("reload", help="have the daemon read its config", description=_RELOAD, allow_abbrev=False)


def _add_login(commands: argparse._SubParsersAction[_Parser]) -> None:
    login = commands.add_parser("login", help="log in at an OAuth 2.0 provider", description=_LOGIN, allow_abbrev=False)
    login.add_argument("account", metavar="ACCOUNT", help="an account with oauth2 in its config")
    way = login.add_mutually_exclusive_group()
    way.add_argument("--device", action="store_true", help="show a code to type in on any device")
    way.add_argument("--browser", action="store_true", help="use a browser on this machine")


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    demo = commands.add_parser(
        "demo", help="show it all at work, without an account", description=_DEMO, allow_abbrev=False
    )
    demo.add_argument(
        "--keep",
        metavar="DIR",
        type=Path,
        help="do it in this directory and leave everything there: config, Maildirs, log",
    )


def _add_status(commands: argparse._SubParsersAction[_Parser]) -> None:
    status = commands.add_parser(
        "status", help="show what is going on, and what is in the way", description=_STATUS, allow_abbrev=False
    )
    status.add_argument("accounts", metavar="ACCOUNT", nargs="*", help="only this account; all by default")
    status.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    status.add_argument("--watch", action="store_true", help="draw it anew every second until Ctrl-C")


def _add_approve(commands: argparse._SubParsersAction[_Parser]) -> None:
    approve = commands.add_parser(
        "approve", help="release deletions that were refused", description=_APPROVE, allow_abbrev=False
    )
    approve.add_argument("target", metavar="ACCOUNT[/MAILBOX]", help="a mailbox, or all refused ones of an account")


def _add_outbox(commands: argparse._SubParsersAction[_Parser]) -> None:
    outbox = commands.add_parser(
        "outbox", help="show, send, hold or cancel outgoing messages", description=_OUTBOX, allow_abbrev=False
    )
    outbox.add_argument(
        "action",
        nargs="?",
        default="list",
        choices=("list", "show", "flush", "hold", "release", "cancel", "retry"),
        help="list (default); flush: try everything that waits now; show, hold, release, cancel, retry: one message",
    )
    outbox.has_flags_only = True
    outbox.add_argument("id", metavar="ID", nargs="*", help="of a message, or how it begins")
    outbox.add_argument("--json", action="store_true", help="print one JSON document on standard output")
