"""Logging in: AUTHENTICATE by the strongest mechanism there is (`sasl.choose`), or LOGIN."""

from __future__ import annotations

from maild.remote.imap.answers import refused_login
from maild.remote.imap.parse import Tagged
from maild.remote.imap.session import ImapSession, quoted
from maild.remote.sasl import ChannelBinding, Exchange, choose
from maild.remote.scram import NAME as SCRAM
from maild.remote.scram import server_end_point

_IR_OCTETS = 8192  # of an initial response in its command line (RFC 7162 §4)


async def login(session: ImapSession, user: str, secret: str) -> None:
    """Log in, once more without channel binding where the server cannot do this one.

    Raises AuthRejected; Unavailable where the server says that it is not about the secret; TlsFailed for a server that
    does not prove that it knows the password.
    """
    binding = None
    if f"AUTH={SCRAM}-PLUS" not in session.endpoint.disable_extensions and (tls := session.tls) is not None:
        binding = server_end_point(tls.getpeercert(binary_form=True))
    if not await _log_in(session, user, secret, binding):
        await _log_in(session, user, secret, None)


async def _log_in(session: ImapSession, user: str, secret: str, binding: ChannelBinding | None) -> bool:
    """Whether it is done; if not, the server cannot do this channel binding, and nothing else is wrong yet."""
    protocol, endpoint = session.protocol, session.endpoint
    before = protocol.capabilities
    offered = {name.removeprefix("AUTH=") for name in before if name.startswith("AUTH=") and session.has(name)}
    has_login = "LOGINDISABLED" not in before
    mechanism = choose(endpoint, user, secret, offered, binding=binding, has_own_command=has_login)
    exchange = None
    if mechanism is not None:
        exchange = Exchange(mechanism, room_octets=_IR_OCTETS if session.has("SASL-IR") else 0)
    protocol.capabilities = set()
    tagged = await (_login(session, user, secret) if exchange is None else _authenticate(session, exchange))
    if exchange is not None:
        exchange.finish(is_accepted=tagged.status == "OK")
    if tagged.status != "OK":
        protocol.capabilities = before  # for another try
        if exchange is not None and exchange.may_retry_unbound:
            return False
        raise refused_login(endpoint, user, tagged, "" if exchange is None else exchange.detail)
    session.set_selected(False)
    if not protocol.capabilities:
        await session.ask_capabilities()
    return True


async def _login(session: ImapSession, user: str, password: str) -> Tagged:
    command = session.launch("LOGIN", quoted(user), quoted(password))
    return (await session.protocol.finish(command, may_refuse=True)).tagged


async def _authenticate(session: ImapSession, exchange: Exchange) -> Tagged:
    command = session.launch("AUTHENTICATE", *exchange.argument.split(" "), answer=exchange.answer)
    return (await session.protocol.finish(command, may_refuse=True)).tagged
