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
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio

from maild.commands import asking
from maild.commands.account import told_daemon
from maild.commands.asking import say
from maild.config import Account, Config, Password, units
from maild.core.errors import AuthRejected, MaildError
from maild.core.providers import Provider, provider_of
from maild.engine import accounts, keeping
from maild.remote import discover
from maild.remote.discover import Found, Offer
from maild.remote.trial import Tried, endpoints, try_login

OK, FAILED, USAGE = 0, 1, 64
TRIES = 3
PROTOCOLS = ("imap", "pop3", "smtp")
EXPLAINED = (
    "IMAP: all mailboxes of the server are kept the same here and there, also what other devices do.",
    "POP3: new messages of the INBOX are fetched to this disk; what happens here stays here.",
)
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


class Unanswered(MaildError):
    """Something is not known, and there is nobody to ask: wrong usage."""


@dataclass(slots=True)
class Draft:
    """The account as far as it is known. `secret` is how the config names its source; `password` is one to be kept."""

    name: str
    address: str
    servers: dict[str, dict[str, object]] = field(default_factory=dict)
    secret: dict[str, object] = field(default_factory=dict, repr=False)
    password: str = field(default="", repr=False)
    maildir: str = ""
    provider: Provider | None = None

    def table(self) -> dict[str, object]:
        """As it is written: the secret stands with the server that mail comes from, or with the only one there is."""
        first = next(iter(self.servers))
        sections = {p: {**s, **(self.secret if p == first else {})} for p, s in self.servers.items()}
        return {"address": self.address, **({"maildir": self.maildir} if self.maildir else {}), **sections}

    def account(self, config: Config | None) -> Account:
        """By the rules of the config; logs in with the new password where there is one. Raises ConfigError."""
        account = accounts.judged(self.name, self.table(), config)
        if not self.password:
            return account
        return with_password(account, self.password)


def with_password(account: Account, password: str) -> Account:
    """The account as it logs in with this password everywhere."""
    new = Password(password)
    return replace(
        account,
        imap=account.imap and replace(account.imap, secret=new),
        pop3=account.pop3 and replace(account.pop3, secret=new),
        smtp=account.smtp and replace(account.smtp, secret=new),
    )


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
    _find_servers(draft, args)
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
    maildir = "" if args.maildir is None else str(_absolute(args.maildir))
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


def _absolute(path: Path) -> Path:
    """No shell expands the ~ of `--maildir=~/Mail`."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise Unanswered(f"{path} begins with ~ and the name of a user that this machine does not know") from None


# -- where


def _find_servers(draft: Draft, args: argparse.Namespace) -> None:
    given = {protocol: server for protocol in PROTOCOLS if (server := _given(protocol, args))}
    if "imap" in given and "pop3" in given:
        raise Unanswered("an account has IMAP or POP3, not both", "leave out --imap-host or --pop3-host")
    draft.servers = given or _discovered(draft, args)
    if args.user is not None:
        for server in draft.servers.values():
            server["user"] = args.user
    if args.ca_file is not None:
        for server in draft.servers.values():
            server["ca_file"] = str(_absolute(args.ca_file))


def _given(protocol: str, args: argparse.Namespace) -> dict[str, object]:
    host, port, tls = (getattr(args, f"{protocol}_{key}") for key in ("host", "port", "tls"))
    if host is None:
        if port or tls:
            given = f"--{protocol}-port" if port else f"--{protocol}-tls"
            raise Unanswered(f"{given} needs --{protocol}-host")
        return {}
    return {"host": host, **({"port": port} if port else {}), **({"tls": tls} if tls else {})}


def _discovered(draft: Draft, args: argparse.Namespace) -> dict[str, dict[str, object]]:
    say(f"Looking for the servers of {draft.address} …")
    found = anyio.run(discover.discover, draft.address)
    if found is None:
        return _asked_servers(draft)
    draft.provider = found.provider or draft.provider
    incoming = _incoming(found, args)
    chosen = [offer for offer in (incoming, found.offer("smtp")) if offer is not None]
    if not chosen:
        return _asked_servers(draft)
    say(f"Found by {found.source}:", *(f"  {_shown(offer)}" for offer in chosen))
    _tell_provider(draft.provider, args)
    _agree(found, chosen, args)
    names_user = any(offer.user != draft.address for offer in chosen)  # sending borrows the name of receiving otherwise
    return {offer.protocol: _section(offer, names_user=names_user) for offer in chosen}


def _tell_provider(provider: Provider | None, args: argparse.Namespace) -> None:
    """What is particular there. Raises Unanswered where a password would be asked for in vain."""
    if provider is None or not provider.note:
        return
    say(f"  {provider.name} {provider.note}.")
    if provider.login in ("google", "microsoft") and args.oauth2 is None:
        hint = f"add --oauth2 {provider.login} --client-id ID, with an id that you register there"
        if provider.login == "microsoft" and args.password_command is None:
            raise Unanswered(f"{provider.name} takes no password", hint)
        say(f"  For OAuth 2.0 {hint}.")


def _incoming(found: Found, args: argparse.Namespace) -> Offer | None:
    imap, pop3 = found.offer("imap"), found.offer("pop3")
    if args.pop3:
        if pop3 is None:
            raise Unanswered("no POP3 server was found", "give it with --pop3-host")
        return pop3
    if imap is None or pop3 is None or args.yes or not asking.is_interactive():
        return imap or pop3
    say(*EXPLAINED)
    return pop3 if asking.ask("IMAP or POP3", "IMAP").lower().startswith("pop") else imap


def _agree(found: Found, chosen: Iterable[Offer], args: argparse.Namespace) -> None:
    """Have the user confirm what is found, where whoever controls the network could have planted it (RFC 6186 §6)."""
    if not found.must_be_confirmed:
        return
    if not asking.is_interactive():
        options = " ".join(f"--{offer.protocol}-host {offer.host}" for offer in chosen)
        raise Unanswered(
            f"{found.source} is not protected against forgery, so this has to be confirmed", f"add {options}"
        )
    say("These names are not protected against forgery, and the password will go there.")
    if not asking.confirm("Are these your provider's servers?"):
        raise Unanswered("nothing was written", "give the servers with --imap-host and --smtp-host")


def _asked_servers(draft: Draft) -> dict[str, dict[str, object]]:
    domain = draft.address.rpartition("@")[2]
    if not asking.is_interactive():
        raise Unanswered(f"no servers were found for {domain}", "give them with --imap-host and --smtp-host")
    say(f"No servers were found for {domain}. Your provider's help pages name them.")
    servers: dict[str, dict[str, object]] = {}
    if host := asking.ask("IMAP server (empty for POP3)"):
        servers["imap"] = {"host": host}
    elif host := asking.ask("POP3 server (empty for none)"):
        servers["pop3"] = {"host": host}
    if host := asking.ask("Server for sending, SMTP (empty for none)"):
        servers["smtp"] = {"host": host}
    if not servers:
        raise Unanswered("an account needs a server", "nothing was written")
    return servers


def _section(offer: Offer, *, names_user: bool) -> dict[str, object]:
    standard = (
        {"imap": 993, "pop3": 995, "smtp": 465} if offer.tls == "implicit" else {"imap": 143, "pop3": 110, "smtp": 587}
    )
    return {
        "host": offer.host,
        **({"port": offer.port} if offer.port != standard[offer.protocol] else {}),
        **({"tls": offer.tls} if offer.tls != "implicit" else {}),
        **({"user": offer.user} if names_user else {}),
    }


def _shown(offer: Offer) -> str:
    tls = "TLS" if offer.tls == "implicit" else "STARTTLS"
    what = "sending:  " if offer.protocol == "smtp" else "receiving:"
    return f"{what} {offer.protocol.upper()} {offer.host}:{offer.port} ({tls}), as {offer.user}"


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
        draft.secret = {"password_file": str(_absolute(file))}
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
            secret = {"client_secret": _absolute(args.client_secret_file).read_text().strip()}
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
