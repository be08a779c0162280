"""`maild login NAME`: log in at an OAuth 2.0 provider, by a code typed on any device or in a browser here."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser

import anyio

from maild import log
from maild.commands import no_such_account, printable
from maild.config import Account, OAuth2, load
from maild.control import nudge
from maild.remote import oauth_login
from maild.remote.oauth_login import DeviceCode
from maild.remote.tokens import Tokens

OK, USAGE = 0, 64


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError, and MaildError when the login fails."""
    config = load(args.config)
    log.configure("debug" if args.verbose else "warning", config.log_format)
    account = config.accounts.get(args.account)
    if account is None:
        return _refuse(no_such_account(args.account, config.accounts))
    logins = _logins(account)
    if not logins:
        return _refuse(
            f"account {account.name!r} has no oauth2 in its config, so there is nothing to log in to by hand"
        )
    for oauth2 in logins:
        _say(f"Logging in account {oauth2.owner} at {oauth2.provider}.")
        tokens = anyio.run(_log_in, oauth2, args)
        oauth_login.save(oauth2, tokens)
        _say(*_result(oauth2, tokens))
    if nudge(config.state_dir, {"ask": "login", "account": account.name}):
        _say("The daemon that runs goes on with it now.")
    return OK


def _refuse(text: str) -> int:
    print(printable(f"maild: {text}"), file=sys.stderr)
    return USAGE


def _say(*lines: str) -> None:
    for line in lines:
        print(printable(line), flush=True)


def _logins(account: Account) -> list[OAuth2]:
    """What there is to log in to, each once: one login usually serves all of an account's servers."""
    endpoints = (account.imap, account.pop3, account.smtp)
    found = [e.secret for e in endpoints if e is not None and isinstance(e.secret, OAuth2)]
    return list(dict.fromkeys(found))


async def _log_in(oauth2: OAuth2, args: argparse.Namespace) -> Tokens:
    if args.device or not (args.browser or _has_display() or not oauth_login.can_use_device(oauth2)):
        return await oauth_login.by_device(oauth2, _show_code)
    return await oauth_login.by_browser(oauth2, _show_address)


def _has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _show_code(code: DeviceCode) -> None:
    _say("", f"  1. Open {code.url} in any browser, on this or another device.")
    _say(f"  2. Enter the code {code.user_code} and log in there.")
    if code.complete_url:
        _say("", f"  Both in one: {code.complete_url}")
    _say("", f"Waiting for you, for {code.expires_in_s / 60:.0f} minutes at most; Ctrl-C gives up.")


def _show_address(address: str) -> None:
    is_opened = _has_display() and sys.stdout.isatty() and webbrowser.open(address)
    _say("", "A browser window was opened. If not, open this:" if is_opened else "Open this in a browser here:")
    _say("", f"  {address}", "", "Waiting for the browser to come back to this machine; Ctrl-C gives up.")


def _result(oauth2: OAuth2, tokens: Tokens) -> tuple[str, ...]:
    where = f"in {oauth2.token_file} (mode 0600)" if oauth2.token_file else "in the keyring"
    if tokens.refresh_token:
        return "", f"Logged in. The tokens are {where}; maild refreshes them by itself."
    return (
        "",
        f"Logged in. The token is {where}.",
        "But the provider gave nothing to refresh it with: this login has to be repeated when it ends.",
    )
