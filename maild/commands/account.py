"""`maild account`: set up, show, change the password of, and remove accounts.

The user's own file is never rewritten: of an account that stands there it is said what to edit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio

from maild import log
from maild.commands import asking, no_such_account, printable
from maild.commands.asking import say
from maild.config import Account, Config, Endpoint, NoSecret, OAuth2, Password, Secret, TokenCommand, load
from maild.control import NoDaemon, Refused, ask, nudge
from maild.core.errors import AuthRejected, MaildError
from maild.engine import accounts, keeping
from maild.local.outbox import Outbox
from maild.remote.trial import endpoints, try_login

OK, FAILED, USAGE = 0, 1, 64
_RELOAD_S = 60.0


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError, MaildError."""
    log.configure("debug" if args.verbose else log.NOTHING)
    match args.action:
        case "add":
            from maild.commands import account_add

            return account_add.run(args)
        case "list":
            return _list(args)
        case "passwd":
            return _passwd(args)
        case _:
            return _remove(args)


def told_daemon(state_dir: Path) -> list[str]:
    """Have a daemon that runs read its config again; what came of it, nothing where none runs."""
    try:
        ask(state_dir, {"ask": "reload"}, _RELOAD_S)
    except NoDaemon:
        return []
    except Refused as exc:
        return [f"The daemon that runs keeps its config: {exc}"]
    return ["The daemon that runs knows it now."]


def _refuse(text: str, status: int = USAGE) -> int:
    print(printable(f"maild: {text}"), file=sys.stderr)
    return status


def _no_such(config: Config, name: str) -> int:
    return _refuse(no_such_account(name, config.accounts))


# -- list


def _list(args: argparse.Namespace) -> int:
    config = load(args.config, may_be_empty=True)
    found = [_document(account, config) for account in config.accounts.values()]
    if args.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return OK
    for account in config.accounts.values():
        say(f"{account.name}  {', '.join((account.address, *account.aliases))}")
        for label, text in _facts(account, config):
            say(f"  {label:9} {text}")
    if not config.accounts:
        say('there is no account yet; "maild account add ADDRESS" sets one up')
    return OK


def _facts(account: Account, config: Config) -> Iterator[tuple[str, str]]:
    secrets: list[Secret] = []
    for protocol, endpoint in endpoints(account):
        yield protocol.upper(), f"{endpoint.user} at {endpoint.host}:{endpoint.port}"
        secrets += [endpoint.secret] if endpoint.secret not in secrets else []
    for secret in secrets:
        yield ("login" if isinstance(secret, OAuth2 | TokenCommand | NoSecret) else "password"), keeping.place(secret)
    if account.imap or account.pop3:
        yield "mail", str(account.maildir)
    yield "set up in", str(accounts.own_file(config, account.name))


def _document(account: Account, config: Config) -> dict[str, object]:
    servers = {
        protocol: {"host": e.host, "port": e.port, "tls": e.tls, "user": e.user} for protocol, e in endpoints(account)
    }
    return {
        "name": account.name,
        "address": account.address,
        "maildir": str(account.maildir),
        "file": str(accounts.own_file(config, account.name)),
        **servers,
    }


# -- passwd


def _passwd(args: argparse.Namespace) -> int:
    config = load(args.config)
    if (account := config.accounts.get(args.name)) is None:
        return _no_such(config, args.name)
    secret = _secret_in_question(account, is_for_smtp=args.smtp)
    if secret is None:
        return _refuse(f"account {account.name!r} has no smtp section")
    if not keeping.can_keep(secret):
        file = accounts.own_file(config, account.name)
        return _refuse(keeping.how_to_change(secret, account.name, file), FAILED)
    password = _new_password(account, args)
    if not args.no_test and not _is_taken(account, secret, password):
        return FAILED
    keeping.keep(secret, password, account.name)
    say(f"The new password of {account.name} is in {keeping.place(secret)}.", *told_daemon(config.state_dir))
    nudge(config.state_dir, {"ask": "login", "account": account.name})  # it may wait for other reasons than a refusal
    return OK


def _secret_in_question(account: Account, *, is_for_smtp: bool) -> Secret | None:
    if is_for_smtp:
        return None if account.smtp is None else account.smtp.secret
    return endpoints(account)[0][1].secret


def _new_password(account: Account, args: argparse.Namespace) -> str:
    if args.password_stdin or not sys.stdin.isatty():
        return asking.read_password()
    return asking.ask_password(f"New password of {account.name} ({account.address})")


def _is_taken(account: Account, secret: Secret, password: str) -> bool:
    """Whether every server that this password is for takes it; only then it replaces the old one."""
    for protocol, endpoint in endpoints(account):
        if endpoint.secret != secret:
            continue
        try:
            anyio.run(try_login, _with(endpoint, password), account.name)
        except AuthRejected as exc:
            _refuse(f"{exc.text.rstrip('.')}; the password was not changed")
            _refuse(keeping.LOST_PASSWORD)
            return False
        except MaildError as exc:
            _refuse(f"{exc.text.rstrip('.')}; the password was not changed; --no-test changes it all the same")
            return False
        what = "sending" if protocol == "smtp" else "receiving"
        say(f"Login for {what} works: {endpoint.user} at {endpoint.host}:{endpoint.port}.")
    return True


def _with(endpoint: Endpoint, password: str) -> Endpoint:
    return replace(endpoint, secret=Password(password))


# -- remove


def _remove(args: argparse.Namespace) -> int:
    config = load(args.config)
    if (account := config.accounts.get(args.name)) is None:
        return _no_such(config, args.name)
    file = accounts.own_file(config, account.name)
    if not accounts.is_ours(file, config):
        what = f"take the tables [accounts.{account.name}] and below out of {file}"
        return _refuse(f'maild does not rewrite a file of yours: {what}, then run "maild reload"', FAILED)
    if not args.yes and not asking.is_interactive():
        return _refuse("nothing was removed; --yes removes it without a question")
    if not args.yes and not asking.confirm(f"Remove account {account.name}? The mail stays."):
        say("Nothing was removed.")
        return FAILED
    left = _left_in_outbox(config, account)
    accounts.remove_file(file)
    say(f"Account {account.name} is removed. Its mail stays in {account.maildir}.")
    _forget_secrets(account, config.path)
    say(f"What was known of it stays in {_state_file(config, account)}, for the case that it comes back.")
    if left:
        say(f"In the outbox of it: {left:,}. They wait for an account of this name; maild outbox cancel forgets them.")
    say(*told_daemon(config.state_dir))
    return OK


def _left_in_outbox(config: Config, account: Account) -> int:
    """How many messages nobody sends any more once the account is gone."""
    if account.smtp is None or not (config.state_dir / "outbox").exists():
        return 0
    items = Outbox(config.state_dir).contents().items
    return sum(item.account == account.name and item.state not in ("sent", "failed") for item in items)


def _forget_secrets(account: Account, main: Path) -> None:
    for secret in dict.fromkeys(endpoint.secret for _, endpoint in endpoints(account)):
        if where := keeping.forget(secret, account.name, main):
            say(f"Its password is gone from {where}.")


def _state_file(config: Config, account: Account) -> Path:
    return config.state_dir / f"{account.name}.sqlite"
