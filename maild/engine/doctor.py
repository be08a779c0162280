"""`maild doctor`: what lies between this machine and the mail of an account, layer by layer, each with a remedy.

A layer that fails is named, and those behind it are not tried: what they would say follows from it. Nothing is changed
anywhere. What the machine itself needs is in `surroundings`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import anyio.to_thread

from maild.config import Account, Endpoint, Imap, NoSecret, OAuth2, Password, PasswordCredential, Pop3, Secret, Smtp
from maild.core.errors import AuthRejected, MaildError, SecretUnavailable
from maild.core.quirks import quirks_of
from maild.engine.surroundings import Finding, Level, as_service
from maild.remote import sasl
from maild.remote.auth import read_secret
from maild.remote.probe import Reached, reach
from maild.remote.trial import Tried, endpoints, try_login

STEP_S = 15.0
SOON_DAYS = 14  # a certificate that renews itself has more than that left (ACME: 30 days)
SLOW_S = 5.0
_DAY_S = 86400
_LAYERS = {"name": "DNS", "tcp": "TCP", "tls": "TLS", "greeting": "greeting", "capabilities": "capabilities"}
_NEEDED_ROLES = ("\\Sent", "\\Trash", "\\Drafts", "\\Junk")


async def examine_account(account: Account) -> AsyncIterator[Finding]:
    """All servers of an account, each from its name to its mailboxes."""
    readable: dict[Secret, bool] = {}
    for protocol, endpoint in endpoints(account):
        if endpoint.secret not in readable:
            readable[endpoint.secret] = not isinstance(endpoint.secret, PasswordCredential)
            async for finding in _secret(account, endpoint):
                readable[endpoint.secret] &= finding.level != "problem"
                yield replace(finding, account=account.name)
        is_readable = readable[endpoint.secret]
        async for finding in _server(protocol, endpoint, account, is_readable=is_readable):
            yield replace(finding, account=account.name)


# -- secrets


async def _secret(account: Account, endpoint: Imap | Pop3 | Smtp) -> AsyncIterator[Finding]:
    """Whether the secret can be read, and as a service would read it: without a terminal, with a plain environment."""
    area = "secret"
    match endpoint.secret:
        case NoSecret():
            yield Finding("ok", area, "the client certificate logs in; no secret is needed")
            return
        case PasswordCredential(name):
            text = f"the credential {name!r} is known to the service only; logging in is not tried from here"
            yield Finding("note", area, text, "maild status shows whether the service can log in")
            return
        case Password():
            yield Finding("note", area, "the password stands in the config itself", "password_file keeps it apart")
            return
        case _:
            pass
    begun = time.monotonic()
    try:
        await read_secret(as_service(endpoint.secret), account.name)
    except SecretUnavailable as exc:
        yield await _only_here(account, endpoint, exc)
        return
    except MaildError as exc:
        yield Finding.of(exc, area)
        return
    took_s = time.monotonic() - begun
    kind = "token" if isinstance(endpoint.secret, OAuth2) else "password"
    yield Finding("ok", area, f"the {kind} can be read, also by a service ({took_s:.1f} s)")
    if took_s > SLOW_S:
        yield Finding(
            "warning", area, f"it takes {took_s:.0f} s to read the secret, at every connection", "speed it up"
        )


async def _only_here(account: Account, endpoint: Imap | Pop3 | Smtp, exc: SecretUnavailable) -> Finding:
    if as_service(endpoint.secret) == endpoint.secret:
        return Finding.of(exc, "secret")
    try:
        await read_secret(endpoint.secret, account.name)
    except SecretUnavailable as same:
        return Finding.of(same, "secret")
    text = f"the secret can be read from this shell, but not with a service's environment: {exc.text}"
    remedy = "give full paths in password_command, and nothing that needs a terminal or variables of your shell"
    return Finding("problem", "secret", text, remedy)


# -- servers


async def _server(
    protocol: str, endpoint: Imap | Pop3 | Smtp, account: Account, *, is_readable: bool
) -> AsyncIterator[Finding]:
    reached = await anyio.to_thread.run_sync(reach, endpoint, STEP_S)
    for finding in _reached(protocol, endpoint, reached):
        yield finding
    if reached.failure is not None:
        return
    tried = Tried()
    if is_readable:
        try:
            tried = await try_login(endpoint, account.name)
        except AuthRejected as exc:
            is_tried = _choose(endpoint, reached) is not None  # and not given up before, for want of a mechanism
            remedy = f"{exc.hint}; a new password: maild account passwd {account.name}" if is_tried else exc.hint
            yield Finding("problem", f"{protocol} login", exc.text, remedy)
            return
        except MaildError as exc:
            yield Finding.of(exc, f"{protocol} login")
            return
        yield Finding("ok", f"{protocol} login", f"{endpoint.user} is logged in by {mechanism(endpoint, reached)}")
    for finding in _inside(endpoint, tried):
        yield finding
    capabilities = tried.capabilities or reached.capabilities
    for quirk in quirks_of(endpoint.host, capabilities, tried.identity):
        yield Finding("note", f"{protocol} quirk", f"{quirk.server} {quirk.text} [{quirk.evidence}]", quirk.remedy)


def _reached(protocol: str, endpoint: Endpoint, reached: Reached) -> Iterator[Finding]:
    """What was found at each layer, up to the one that failed."""
    where = f"{endpoint.host}:{endpoint.port}"
    if reached.addresses:
        text = f"{endpoint.host} is {', '.join(reached.addresses)} ({reached.name_s * 1000:.0f} ms)"
        slow = reached.name_s > SLOW_S
        yield Finding("warning" if slow else "ok", f"{protocol} DNS", text, "the name server is slow" if slow else "")
    if reached.address:
        text = f"{where} answers at {reached.address} ({reached.connect_s * 1000:.0f} ms)"
        yield Finding("ok", f"{protocol} TCP", text)
        for address, reason in reached.unreachable:
            text = f"{address} does not answer ({reason}), another address of {endpoint.host} does"
            yield Finding("warning", f"{protocol} TCP", text, "if it is an IPv6 address, look at this machine's IPv6")
    if reached.certificate is not None:
        yield from _tls(protocol, endpoint, reached)
    elif endpoint.tls == "none":
        text = f"{where} is used without TLS: password and mail can be read on the way"
        yield Finding("warning", f"{protocol} TLS", text, 'tls = "implicit" or "starttls"')
    if reached.failure is not None:
        found = Finding.of(reached.failure, f"{protocol} {_LAYERS[reached.layer]}")
        if reached.layer == "greeting" and endpoint.tls == "starttls":
            found = replace(found, remedy=f'{found.remedy}; if this port speaks TLS at once, use tls = "implicit"')
        yield found
        return
    yield Finding("ok", f"{protocol} greeting", _cut(reached.greeting))
    yield Finding("ok", f"{protocol} capabilities", _cut(" ".join(sorted(reached.capabilities)) or "none"))


def _tls(protocol: str, endpoint: Endpoint, reached: Reached) -> Iterator[Finding]:
    certificate, area = reached.certificate, f"{protocol} TLS"
    if certificate is None or (reached.failure is not None and reached.layer == "tls"):
        return
    days = int((certificate.expires_s - time.time()) // _DAY_S)
    names = f" for {', '.join(certificate.names[:4])}" if certificate.names else ""
    issuer = f", issued by {certificate.issuer}" if certificate.issuer else ""
    pin = ", the pinned one" if endpoint.tls_fingerprint else ""
    text = f"{reached.tls}, certificate{names}{issuer}{pin}, good for {days} more days"
    if days < SOON_DAYS:
        yield Finding("warning", area, text, "the server's operator has to renew it, or mail stops then")
    else:
        yield Finding("ok", area, text)


def mechanism(endpoint: Imap | Pop3 | Smtp, reached: Reached) -> str:
    """By which mechanism maild logs in there, in words."""
    return _choose(endpoint, reached) or "what it offers inside TLS"


def _choose(endpoint: Imap | Pop3 | Smtp, reached: Reached) -> str | None:
    """The same, None where none of what was offered will do."""
    offered = reached.mechanisms
    has_own = isinstance(endpoint, Pop3) or (isinstance(endpoint, Imap) and "LOGINDISABLED" not in reached.capabilities)
    try:
        chosen = sasl.choose(endpoint, endpoint.user, "-", offered, has_own_command=has_own)
    except AuthRejected:
        return None
    if chosen is None:
        return "USER and PASS" if isinstance(endpoint, Pop3) else "LOGIN"
    return f"{chosen.name}, with channel binding" if f"{chosen.name}-PLUS" in offered else chosen.name


def _inside(endpoint: Imap | Pop3 | Smtp, tried: Tried) -> Iterator[Finding]:
    """What is only seen after logging in."""
    if isinstance(endpoint, Imap) and tried.mailboxes:
        roles = {role: name for name, role in tried.mailboxes if role}
        told = ", ".join(f"{role.removeprefix(chr(92))} is {name}" for role, name in roles.items()) or "no roles"
        yield Finding("ok", "imap mailboxes", f"there are {len(tried.mailboxes):,}; {told}")
        if missing := [role for role in _NEEDED_ROLES if role not in roles]:
            text = f"no mailbox has the role {', '.join(missing)}"
            remedy = "sent_mailbox names the one for sent mail" if "\\Sent" in missing else ""
            yield Finding("note", "imap mailboxes", text, remedy)
        yield _push(endpoint, tried.capabilities)
        yield _changes(tried.capabilities - endpoint.disable_extensions)
        if endpoint.compress:
            yield _compression(tried.capabilities - endpoint.disable_extensions)
    if isinstance(endpoint, Pop3) and tried.messages is not None:
        yield Finding("ok", "pop3 maildrop", f"messages in it: {tried.messages:,}")
        if "UIDL" not in tried.capabilities:
            text = "the server does not say that it has unique-ids (UIDL): messages are told apart by their headers"
            yield Finding("note", "pop3 maildrop", text)


def _push(endpoint: Imap, capabilities: frozenset[str]) -> Finding:
    """Which way new mail is heard of, and why that one: NOTIFY needs IDLE too, and gives way to it."""
    area = "imap push"
    if endpoint.push == "poll":
        return Finding("ok", area, "polling, as the config says")
    offered = capabilities - endpoint.disable_extensions
    if "IDLE" not in offered:
        text = "polling: the server offers no IDLE, or disable_extensions leaves it out"
        return Finding("note", area, text, "a shorter poll finds new mail sooner")
    idle = f"IDLE in {', '.join(endpoint.idle_mailboxes)}, the others are polled"
    if endpoint.push == "idle":
        return Finding("ok", area, f"{idle}, as the config says")
    if "NOTIFY" in offered:
        return Finding("ok", area, "NOTIFY: the server offers it, and tells of all mailboxes at once")
    level: Level = "ok" if endpoint.push == "auto" else "note"
    return Finding(level, area, f"{idle}: the server offers no NOTIFY")


def _changes(offered: frozenset[str]) -> Finding:
    for name, text in (
        ("QRESYNC", "QRESYNC: changes and deletions in one round trip"),
        ("CONDSTORE", "CONDSTORE: changes in one round trip; deletions by listing the UIDs"),
    ):
        if name in offered:
            return Finding("ok", "imap changes", text)
    return Finding("note", "imap changes", "neither QRESYNC nor CONDSTORE: all flags are listed at every pass")


def _compression(offered: frozenset[str]) -> Finding:
    area = "imap compression"
    if "COMPRESS=DEFLATE" in offered:
        return Finding("ok", area, "COMPRESS=DEFLATE, as the config says")
    text = "the server does not offer COMPRESS=DEFLATE, or disable_extensions leaves it out: nothing is compressed"
    return Finding("note", area, text, 'compress = "on" has no effect here')


def _cut(text: str) -> str:
    return text if len(text) <= 500 else text[:500] + " …"
