"""`maild account add ADDRESS`: from an address to an account that works, with as few questions as possible.

In this order: where the servers are, which secret, does logging in work for receiving and for sending, which mailboxes
there are; then the account is written. Nothing is written before that, and no password goes anywhere but over verified
TLS to the servers that were shown. Without a terminal nothing is asked: what is missing is an error.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

import anyio

from maild.commands import asking
from maild.commands.account import told_daemon
from maild.commands.account_draft import Draft, Unanswered, absolute
from maild.commands.account_servers import find_servers
from maild.commands.asking import say
from maild.config import Account, Config, units
from maild.core.errors import AuthRejected, MaildError
from maild.core.providers import provider_of
from maild.engine import accounts, keeping
from maild.remote.trial import Tried, endpoints, try_login

OK, FAILED, USAGE = 0, 1, 64
TRIES = 3
_SHOWN_MAILBOXES = 20
_ROLES = {
    "\\All": "all mail",
    "\\Archive": "archive",
    "\\Drafts": "drafts",
    "\\Flagged": "flagged",
    "\\Junk": "junk",
    "\\Sent": "sent",
    "\\Trash": "trash",
}


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError, MaildError."""
    try:
        return _add(args)
    except Unanswered as exc:
        print(f"maild: {exc}", file=sys.stderr)
        return USAGE


def _add(args: argparse.Namespace) -> int:
    main = accounts.main_file(args.config)
    config = accounts.present_config(main)
    draft = _begun(args, config)
    find_servers(draft, args)
    _find_secret(draft, args, main)
    if args.oauth2 is None and not args.no_test:
        try:
            _test(draft, args, config)
        except MaildError as exc:
            exc.hint = f"{exc.hint}; nothing was written" if exc.hint else "nothing was written"
            raise
    file, written = _write(draft, main, config)
    told = told_daemon(written.state_dir)
    _tell_what_is_next(draft, file, args, is_kept_up_to_date=bool(told))
    say(*told)
    return OK


# -- who


def _begun(args: argparse.Namespace, config: Config | None) -> Draft:
    try:
        address = units.address(args.address)
    except ValueError as exc:
        raise Unanswered(f"{args.address!r} {exc}") from None
    taken = set() if config is None else set(config.accounts)
    if args.name is not None and args.name in taken:
        raise Unanswered(f"there is already an account {args.name!r}", "choose another --name")
    if args.name is None:
        _refuse_second(address, config)
    name = args.name or _free_name(address, taken)
    maildir = "" if args.maildir is None else str(absolute(args.maildir))
    return Draft(name, address, maildir=maildir, provider=provider_of(address.rpartition("@")[2]))


def _refuse_second(address: str, config: Config | None) -> None:
    """The same mail twice on this disk is what hardly anybody means. Raises Unanswered."""
    for account in config.accounts.values() if config else ():
        if account.address.casefold() == address.casefold():
            hint = f"a new password: maild account passwd {account.name}; once more all the same: --name"
            raise Unanswered(f"{address} is set up already, as account {account.name!r}", hint)


def _free_name(address: str, taken: set[str]) -> str:
    """The domain's first label, or the address with it where that is taken already."""
    local, _, domain = address.rpartition("@")
    first = domain.split(".", 1)[0]
    wanted = [first, f"{local}-{first}", *(f"{first}-{n}" for n in range(2, 100))]
    names = [re.sub(r"[^A-Za-z0-9._-]", "-", name).strip("._-")[:64] for name in wanted]
    free = [name for name in names if name and name not in taken]
    if not free:
        raise Unanswered("no name for the account suggests itself", "give one with --name")
    return free[0]


# -- which secret


def _find_secret(draft: Draft, args: argparse.Namespace, main: Path) -> None:
    """From the options, else by asking. What is to be kept is in `draft.password`, and kept only when all is well."""
    if args.password_command is not None:
        draft.secret = {"password_command": _words(args.password_command)}
    elif args.password_credential is not None:
        draft.secret = {"password_credential": args.password_credential}
    elif args.oauth2 is not None:
        draft.secret = {"oauth2": _oauth2(args)}
    elif args.password_keyring:
        draft.secret = {"password_keyring": True}
    else:
        file = accounts.password_file(main, draft.name) if args.password_file is None else args.password_file
        draft.secret = {"password_file": str(absolute(file))}
    if args.password_stdin:
        draft.password = asking.read_password()
    elif not _has_its_secret(args):
        draft.password = _asked_password(draft)


def _has_its_secret(args: argparse.Namespace) -> bool:
    """Whether the options name where the password is already, or will be."""
    given = (args.password_command, args.password_credential, args.oauth2, args.password_file)
    return any(option is not None for option in given) or bool(args.password_keyring and not asking.is_interactive())


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as exc:
        raise Unanswered(f"--password-command cannot be read: {exc}", 'quote it as in "pass mail/work"') from None


def _oauth2(args: argparse.Namespace) -> dict[str, object]:
    if args.client_id is None:
        raise Unanswered("--oauth2 needs --client-id, one that you registered with the provider")
    secret = {}
    if args.client_secret_file is not None:
        try:
            secret = {"client_secret": absolute(args.client_secret_file).read_text().strip()}
        except OSError as exc:
            raise Unanswered(f"--client-secret-file cannot be read: {exc.strerror}") from None
    return {"provider": args.oauth2, "client_id": args.client_id, **secret}


def _asked_password(draft: Draft) -> str:
    if not asking.is_interactive():
        raise Unanswered(
            "there is no password, and no terminal to ask for it",
            "give --password-file, --password-command, --password-keyring, --password-credential or --password-stdin",
        )
    what = "App password" if draft.provider and draft.provider.login != "password" else "Password"
    return asking.ask_password(f"{what} of {draft.address}")


# -- does it work


def _test(draft: Draft, args: argparse.Namespace, config: Config | None) -> None:
    """Log in to every server. A person may correct the password; otherwise the first refusal ends it."""
    for left in reversed(range(TRIES)):
        try:
            _log_in_everywhere(draft.account(config))
            return
        except AuthRejected as exc:
            if not (draft.password and left and asking.is_interactive() and not args.password_stdin):
                raise
            say(f"  {exc}", "  " + keeping.LOST_PASSWORD)
            draft.password = asking.ask_password("Password again")


def _log_in_everywhere(account: Account) -> None:
    for protocol, endpoint in endpoints(account):
        tried = anyio.run(try_login, endpoint, account.name)
        what = "sending" if protocol == "smtp" else "receiving"
        say(f"Login for {what} works: {endpoint.user} at {endpoint.host}:{endpoint.port}.", *_seen(tried))


def _seen(tried: Tried) -> list[str]:
    if tried.messages is not None:
        return [f"  Messages on the server: {tried.messages:,}."]
    mailboxes = sorted(tried.mailboxes, key=lambda mailbox: (mailbox[0] != "INBOX", mailbox[0].casefold()))
    named = [f"  {name}{f' ({_ROLES[role]})' if role in _ROLES else ''}" for name, role in mailboxes]
    more = [f"  and {len(named) - _SHOWN_MAILBOXES:,} more"] if len(named) > _SHOWN_MAILBOXES else []
    return ([f"Mailboxes there: {len(named):,}"] if named else []) + named[:_SHOWN_MAILBOXES] + more


# -- writing


def _write(draft: Draft, main: Path, config: Config | None) -> tuple[Path, Config]:
    """The secret first, then the account; if that is refused the secret goes again."""
    account = accounts.judged(draft.name, draft.table(), config)
    secret = endpoints(account)[0][1].secret
    is_kept = bool(draft.password) and keeping.keep(secret, draft.password, draft.name)
    try:
        file, written = accounts.write_account(main, draft.name, draft.table())
    except MaildError:
        if is_kept:
            keeping.forget(secret, draft.name, main)
        raise
    say(f"Account {draft.name} is in {file}; its mail will be in {written.accounts[draft.name].maildir}.")
    if is_kept:
        say(f"The password is in {keeping.place(secret)}.")
    return file, written


def _tell_what_is_next(draft: Draft, file: Path, args: argparse.Namespace, *, is_kept_up_to_date: bool) -> None:
    config = "" if args.config is None else f"-c {shlex.quote(str(args.config))} "
    if args.oauth2 is not None:
        say(f"Now log in there once: maild {config}login {draft.name}")
    if "smtp" not in draft.servers:
        say(f"It cannot send: add [accounts.{draft.name}.smtp] with a host to {file} for that.")
    if "imap" in draft.servers or "pop3" in draft.servers:
        say(f"To fetch the mail: maild {config}sync {draft.name}")
        if not is_kept_up_to_date:
            say(f"To keep it up to date from then on: maild {config}run, or as a service: see the README")
