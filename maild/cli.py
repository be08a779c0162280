"""`maild`: arguments in, exit status out. Whatever a command needs is imported when that command runs."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from maild import __version__
from maild.commands import account_options, printable

if TYPE_CHECKING:
    from maild.config import Account, Config, Endpoint, Problem, Report

OK, FAILED, USAGE, DENIED, BAD_CONFIG = 0, 1, 64, 77, 78
INTERRUPTED, PIPE_CLOSED = 130, 141  # what a shell reports for SIGINT and SIGPIPE

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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status (`sys.argv` by default)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a mailbox name must not stop us on a latin-1 terminal
    try:
        status = _run(argv)
        if sys.stdout is not None:  # as it is where it was closed before the start
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has gone; without this the interpreter would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return status


def sendmail() -> int:
    """`maild-sendmail`, which other programs take for sendmail."""
    return main(["sendmail", *sys.argv[1:]])


def _run(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    if (at := _sendmail_at(words)) is not None:
        return _sendmail(words, at)
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # after --help, --version or wrong usage
        return stop.code if isinstance(stop.code, int) else USAGE
    if args.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    from maild.core.errors import ConfigError, MaildError, NoPermission

    try:
        return _dispatch(args)
    except ConfigError as error:
        for problem in error.problems:
            print(printable(problem), file=sys.stderr)
        return DENIED if error.is_denied else BAD_CONFIG
    except MaildError as error:
        print(printable(f"maild: {error}"), file=sys.stderr)
        return DENIED if isinstance(error, NoPermission) else FAILED


def _sendmail_at(words: Sequence[str]) -> int | None:
    """Where the command `sendmail` stands behind global options: what follows it are sendmail's own, not argparse's."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] in ("-c", "--config") else 1
    return at if words[at : at + 1] == ["sendmail"] else None


def _sendmail(words: Sequence[str], at: int) -> int:
    from maild.commands import sendmail

    if not at:
        return sendmail.run(None, words[1:])
    try:
        args = _parser().parse_args([*words[:at], "sendmail"])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    return sendmail.run(args.config, words[at + 1 :])


def _dispatch(args: argparse.Namespace) -> int:
    match args.command:
        case "check":
            return _check(args)
        case "sync":
            from maild.commands import sync

            return sync.run(args)
        case "run":
            from maild.commands import run

            return run.run(args)
        case "reload":
            from maild.commands import reload

            return reload.run(args)
        case "status":
            from maild.commands import status

            return status.run(args)
        case "approve":
            from maild.commands import approve

            return approve.run(args)
        case "outbox":
            from maild.commands import outbox

            return outbox.run(args)
        case "login":
            from maild.commands import login

            return login.run(args)
        case "account":
            from maild.commands import account

            return account.run(args)
        case "doctor":
            from maild.commands import doctor

            return doctor.run(args)
        case _:
            from maild import demo

            return demo.run(args)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Wrong usage is 64 here (EX_USAGE), not argparse's 2."""
        if message.startswith("unrecognized arguments:") and _BEFORE_THE_COMMAND & set(message.split()):
            message += "; -c and -v stand before the command"
        elif found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            from maild.core.errors import did_you_mean

            message += did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        self.print_usage(sys.stderr)
        self.exit(USAGE, printable(f"{self.prog}: {message}") + "\n")


def _parser() -> argparse.ArgumentParser:
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


def manual_parser() -> argparse.ArgumentParser:
    """All commands and options, for the manual pages and completions."""
    return _parser()


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
    outbox.add_argument("id", metavar="ID", nargs="*", help="of a message, or how it begins")
    outbox.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def _check(args: argparse.Namespace) -> int:
    from maild.config import examine

    report = examine(args.config)
    if args.json:
        _print_json(report)
    else:
        _print_report(report)
    if report.config is None:
        return DENIED if report.is_denied else BAD_CONFIG
    return OK


def _print_report(report: Report) -> None:
    for problem in (*report.errors, *report.notes):
        print(printable(str(problem)), file=sys.stderr)
    if report.config:
        for account in report.config.accounts.values():
            print(f"{account.name}: {_description(account)}; Maildir {account.maildir}")
        print("config ok")


def _print_json(report: Report) -> None:
    import json

    document = {
        "ok": report.config is not None,
        "file": report.file or None,
        "errors": [_json_problem(problem) for problem in report.errors],
        "notes": [_json_problem(problem) for problem in report.notes],
        "accounts": [_json_account(account) for account in _accounts(report.config)],
    }
    print(json.dumps(document, ensure_ascii=False, indent=2))


def _accounts(config: Config | None) -> list[Account]:
    return list(config.accounts.values()) if config else []


def _json_problem(problem: Problem) -> dict[str, object]:
    """`file` and `line` are null where the problem has none."""
    return {
        "file": problem.file or None,
        "line": problem.line or None,
        "key": problem.key,
        "message": problem.message,
    }


def _json_account(account: Account) -> dict[str, object]:
    servers = {protocol: {"host": e.host, "port": e.port, "user": e.user} for protocol, e in _servers(account)}
    return {
        "name": account.name,
        "address": account.address,
        "maildir": str(account.maildir),
        "layout": account.layout,
        **servers,
    }


def _servers(account: Account) -> list[tuple[str, Endpoint]]:
    every = (("imap", account.imap), ("pop3", account.pop3), ("smtp", account.smtp))
    return [(protocol, endpoint) for protocol, endpoint in every if endpoint]


def _description(account: Account) -> str:
    """For example `IMAP, me@example.org at imap.example.org:993 (implicit TLS)`."""
    tls = {"implicit": "implicit TLS", "starttls": "STARTTLS", "none": "without TLS"}
    return " and ".join(
        f"{protocol.upper()}, {server.user} at {server.host}:{server.port} ({tls[server.tls]})"
        for protocol, server in _servers(account)
    )
