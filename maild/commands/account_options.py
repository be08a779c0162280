"""The options of `maild account` and `maild doctor`, apart from what they do: every start of maild reads them."""

from __future__ import annotations

import argparse
from pathlib import Path

_ABOUT = """\
Sets up accounts and looks after them. What `add` is not told it finds out by itself, and asks as little as possible;
with --password-file, --password-command, --password-stdin … it asks nothing and serves scripts. Passwords are never
given as arguments."""

_DOCTOR = """\
Looks at everything between this machine and the mail: config, permissions, secrets as a service would see them, names,
TCP, TLS, logging in, mailboxes, disk, limits and systemd. Each finding says what to do. Changes nothing."""


def add_account(parser: argparse.ArgumentParser) -> None:
    """The four actions."""
    parser.description = _ABOUT
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    add = actions.add_parser("add", help="set up an account", allow_abbrev=False)
    add.add_argument("address", metavar="ADDRESS", help="such as me@example.org")
    _add_what(add)
    _add_servers(add)
    _add_secret(add)
    listed = actions.add_parser("list", help="show the accounts", allow_abbrev=False)
    listed.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    passwd = actions.add_parser("passwd", help="replace a password, after the servers took it", allow_abbrev=False)
    passwd.add_argument("name", metavar="NAME", help="of the account")
    passwd.add_argument("--smtp", action="store_true", help="that for sending, where it is another one")
    passwd.add_argument("--password-stdin", action="store_true", help="read it from standard input")
    passwd.add_argument("--no-test", action="store_true", help="replace it without logging in")
    remove = actions.add_parser("remove", help="remove an account; its mail stays", allow_abbrev=False)
    remove.add_argument("name", metavar="NAME", help="of the account")
    remove.add_argument("--yes", action="store_true", help="ask nothing")


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Which accounts, and how it is told."""
    parser.description = _DOCTOR
    parser.add_argument("accounts", metavar="ACCOUNT", nargs="*", help="only this account; all by default")
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


def _add_what(add: argparse.ArgumentParser) -> None:
    add.add_argument("--name", help="of the account; otherwise from the address's domain")
    add.add_argument("--maildir", metavar="DIR", type=Path, help="where its mail goes, if not below [maild] maildir")
    add.add_argument("--user", help="to log in as, where it is not the address")
    add.add_argument("--pop3", action="store_true", help="POP3 where the provider has both")
    add.add_argument("--no-test", action="store_true", help="write it without logging in")
    add.add_argument("--yes", action="store_true", help="take what is found without a question")


def _add_servers(add: argparse.ArgumentParser) -> None:
    servers = add.add_argument_group("servers", "given by hand, where they are not to be looked for")
    for protocol, what in (("imap", "mailboxes"), ("pop3", "a maildrop"), ("smtp", "sending")):
        servers.add_argument(f"--{protocol}-host", metavar="HOST", help=f"the server for {what}")
        servers.add_argument(f"--{protocol}-port", metavar="PORT", type=int, help="where it is not the usual one")
        servers.add_argument(f"--{protocol}-tls", choices=("implicit", "starttls"), help="implicit by default")
    servers.add_argument("--ca-file", metavar="FILE", type=Path, help="trust these authorities instead of the system's")


def _add_secret(add: argparse.ArgumentParser) -> None:
    secret = add.add_argument_group("the password", "where it is, or is to be kept; a terminal is asked otherwise")
    place = secret.add_mutually_exclusive_group()
    place.add_argument("--password-file", metavar="FILE", type=Path, help="the first line of a file of mode 0600")
    place.add_argument("--password-command", metavar="COMMAND", help='what a program prints, as in "pass mail/work"')
    place.add_argument("--password-keyring", action="store_true", help="the desktop's keyring")
    place.add_argument("--password-credential", metavar="NAME", help="a systemd credential")
    place.add_argument("--oauth2", metavar="PROVIDER", choices=("google", "microsoft"), help="tokens of maild login")
    secret.add_argument("--password-stdin", action="store_true", help="read it from standard input, and keep it there")
    secret.add_argument("--client-id", metavar="ID", help="with --oauth2: the one you registered with the provider")
    secret.add_argument("--client-secret-file", metavar="FILE", type=Path, help="with --oauth2, where it wants one")
