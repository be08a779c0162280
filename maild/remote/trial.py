"""Logging in once, to see whether it works and what the server has: for `maild account` and `maild doctor`.

Goes the way of every day (the same sessions, the same rules about TLS), changes nothing on the server and delivers
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from maild import __version__
from maild.config import Account, Endpoint, Imap, Pop3, Smtp
from maild.core.errors import Rejected, RemoteError
from maild.remote.auth import Credentials
from maild.remote.imap.listing import list_mailboxes, understood
from maild.remote.imap.login import login
from maild.remote.imap.parse import Data, printable
from maild.remote.imap.session import ImapSession, quoted
from maild.remote.pop3.session import Pop3Session
from maild.remote.submission import SmtpSession

_BODY_OCTETS = 1 << 20  # no message is fetched here
_GOODBYE_S = 5.0


@dataclass(frozen=True, slots=True)
class Tried:
    """What a server told after the login. `mailboxes` are those of the config, each with its role or "".

    `identity` is the answer to ID (RFC 2971); `messages` is None where nothing was counted.
    """

    capabilities: frozenset[str] = frozenset()
    identity: Mapping[str, str] = field(default_factory=dict)
    mailboxes: tuple[tuple[str, str], ...] = ()
    messages: int | None = None


async def try_login(endpoint: Endpoint, account: str) -> Tried:
    """Log in and look around. Raises what logging in raises (`core.errors`), and SecretUnavailable."""
    match endpoint:
        case Imap():
            return await _try_imap(endpoint, account)
        case Pop3():
            return await _try_pop3(endpoint, account)
        case Smtp():
            session = await SmtpSession.open(endpoint, Credentials(endpoint, account))
            await session.close()
            return Tried()
        case _:
            raise TypeError(f"there is no such server: {type(endpoint).__name__}")


def endpoints(account: Account) -> list[tuple[str, Imap | Pop3 | Smtp]]:
    """The account's servers by protocol, the one that mail comes from first."""
    every = (("imap", account.imap), ("pop3", account.pop3), ("smtp", account.smtp))
    return [(protocol, endpoint) for protocol, endpoint in every if endpoint is not None]


async def _try_imap(endpoint: Imap, account: str) -> Tried:
    session = await ImapSession.connect(endpoint, _BODY_OCTETS)
    try:
        await Credentials(endpoint, account).log_in(
            lambda secret: login(session, endpoint.user, secret), lambda: not session.is_lost
        )
        identity = await _identity(session)
        events = await list_mailboxes(session, subscribed=endpoint.subscribed_only)
        names = understood(events, endpoint.mailboxes, (), subscribed_only=endpoint.subscribed_only)
        found = tuple((str(mailbox.public.name), mailbox.public.role) for mailbox in names.wanted)
        return Tried(frozenset(session.protocol.capabilities), identity, found)
    finally:
        with suppress(RemoteError):  # the goodbye is a courtesy; what counts has been seen
            await session.finish(session.launch("LOGOUT"), _GOODBYE_S)
        session.drop()


async def _identity(session: ImapSession) -> dict[str, str]:
    if not session.has("ID"):
        return {}
    try:
        reply = await session.run("ID", f'("name" "maild" "version" {quoted(__version__)})')
    except Rejected:
        return {}  # it says nothing about itself: that is its right (RFC 2971 §3.1)
    return _pairs(reply.data("ID"))


def _pairs(answers: list[Data]) -> dict[str, str]:
    told = answers[0].tokens[0] if answers and answers[0].tokens else None
    words = told if isinstance(told, list) else []
    return {
        printable(key).lower(): printable(value)
        for key, value in zip(words[::2], words[1::2], strict=False)
        if isinstance(key, bytes) and isinstance(value, bytes)
    }


async def _try_pop3(endpoint: Pop3, account: str) -> Tried:
    session = await Pop3Session.connect(endpoint, _BODY_OCTETS)
    try:
        await Credentials(endpoint, account).log_in(
            lambda secret: session.login(endpoint.user, secret), lambda: not session.is_lost
        )
        stat = await session.run("STAT")
        count = stat.text.split(" ", 1)[0]
        return Tried(frozenset(session.capabilities), messages=int(count) if count.isdecimal() else None)
    finally:
        await session.leave()
