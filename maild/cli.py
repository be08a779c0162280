"""`maild`: arguments in, exit status out. Whatever a command needs is imported when that command runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from maild.commands import printable, streams

if TYPE_CHECKING:
    import argparse

    from maild.config import Account, Config, Endpoint, Problem, Report

OK, FAILED, USAGE, DENIED, BAD_CONFIG = 0, 1, 64, 77, 78
INTERRUPTED, PIPE_CLOSED = 130, 141  # what a shell reports for SIGINT and SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status. By default that of `sys.argv`, with which the process may end."""
    streams.prepare()
    try:
        status = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except streams.OutputFailed as failure:
        streams.give_up()
        if failure.has_no_reader:
            return PIPE_CLOSED
        print(f"maild: cannot write to standard output: {failure.reason}", file=sys.stderr)
        return FAILED
    if argv is None and plainly_said(sys.argv[1:]) is not None:
        _end_at_once(status)
    return status


def _end_at_once(status: int) -> None:
    """End the process, which has nothing left to do: taking an interpreter apart takes a seventh of such a run."""
    sys.stderr.flush()
    os._exit(status)


def sendmail() -> int:
    """`maild-sendmail`, which other programs take for sendmail."""
    return main(["sendmail", *sys.argv[1:]])


def _run(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    if (at := _sendmail_at(words)) is not None:
        return _sendmail(words, at)
    args = plainly_said(words)
    if args is None:
        from maild.commands.options import all_options

        options = all_options()
        try:
            args = options.parse_args(words)
        except SystemExit as stop:  # after --help, --version or wrong usage
            return stop.code if isinstance(stop.code, int) else USAGE
        if args.command is None:
            options.print_help(sys.stderr)
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


def plainly_said(words: Sequence[str]) -> argparse.Namespace | None:
    """`[-c FILE] sync|status [NAME …] [--json]` as argparse takes it, None for anything else.

    A daemon answers in less time than argparse takes to be imported and told of all options, and these two are what
    scripts and bars of a desktop call all the time.
    """
    rest, config = list(words), None
    if len(rest) > 1 and rest[0] in ("-c", "--config"):
        config, rest = Path(rest[1]), rest[2:]
        if words[1].startswith("-"):
            return None
    if not rest or rest[0] not in ("sync", "status"):
        return None
    command, *names = rest
    is_json = "--json" in (names[:1] + names[-1:])
    if is_json:
        names.remove("--json")
    if any(word.startswith("-") for word in names):
        return None
    of_command = {"targets": names, "send": False, "dry_run": False} if command == "sync" else {"accounts": names}
    said = SimpleNamespace(config=config, verbose=False, command=command, json=is_json, **of_command)
    if command == "status":
        said.watch = False
    return cast("argparse.Namespace", said)


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
    from maild.commands.options import all_options

    try:
        args = all_options().parse_args([*words[:at], "sendmail"])
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
