"""Where the servers of a new account are: given, found, or asked for; shown, and agreed to, before any password."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from functools import partial

import anyio

from maild.commands import asking
from maild.commands.account_draft import Draft, Unanswered, absolute
from maild.commands.asking import say
from maild.core.providers import Provider, ServerProtocol
from maild.remote import discover
from maild.remote.discover import Found, Offer

PROTOCOLS = ("imap", "pop3", "smtp")
EXPLAINED = (
    "IMAP: all mailboxes of the server are kept the same here and there, also what other devices do.",
    "POP3: new messages of the INBOX are fetched to this disk; what happens here stays here.",
)


def find_servers(draft: Draft, args: argparse.Namespace) -> None:
    """Fill in `draft.servers`. Raises Unanswered where something is missing and nobody can be asked."""
    given = {protocol: server for protocol in PROTOCOLS if (server := _given(protocol, args))}
    if "imap" in given and "pop3" in given:
        raise Unanswered("an account has IMAP or POP3, not both", "leave out --imap-host or --pop3-host")
    draft.servers = given or _discovered(draft, args)
    if args.user is not None:
        for server in draft.servers.values():
            server["user"] = args.user
    if args.ca_file is not None:
        for server in draft.servers.values():
            server["ca_file"] = str(absolute(args.ca_file))


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
        return _asked_servers(draft, args)
    draft.provider = found.provider or draft.provider
    incoming = _incoming(found, args)
    chosen = [offer for offer in (incoming, found.offer("smtp")) if offer is not None]
    if not chosen:
        return _asked_servers(draft, args)
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


def _asked_servers(draft: Draft, args: argparse.Namespace) -> dict[str, dict[str, object]]:
    domain = draft.address.rpartition("@")[2]
    if not asking.is_interactive():
        raise Unanswered(f"no servers were found for {domain}", "give them with --imap-host and --smtp-host")
    say(f"No servers were found for {domain}. Your provider's help pages name them.")
    servers: dict[str, dict[str, object]] = {}
    if server := _asked_server("IMAP server (empty for POP3)", "imap", draft, args):
        servers["imap"] = server
    elif server := _asked_server("POP3 server (empty for none)", "pop3", draft, args):
        servers["pop3"] = server
    if server := _asked_server("Server for sending, SMTP (empty for none)", "smtp", draft, args):
        servers["smtp"] = server
    if not servers:
        raise Unanswered("an account needs a server", "nothing was written")
    return servers


def _asked_server(question: str, protocol: ServerProtocol, draft: Draft, args: argparse.Namespace) -> dict[str, object]:
    """Asked for again until it answers, before any password is; nothing where none was given."""
    ca_file = None if args.ca_file is None else absolute(args.ca_file)
    while answer := asking.ask(question):
        host, port = answer, ""
        if found := re.fullmatch(r"([^:]+):([0-9]{1,5})", answer):
            host, port = found.groups()
        if args.no_test:
            return {"host": host, **({"port": int(port)} if port else {})}
        offer = anyio.run(
            partial(discover.at_host, port=int(port or 0), ca_file=ca_file), protocol, host, draft.address
        )
        if offer is not None:
            say(f"  {_shown(offer)}")
            return _section(offer, names_user=False)
        where = f"port {port}" if port else "the usual ports (HOST:PORT names another)"
        say(f"  {host} does not speak {protocol.upper()} inside verified TLS at {where}.")
    return {}


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
