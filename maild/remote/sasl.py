"""Logging in by SASL (RFC 4422), the same for IMAP, POP3 and SMTP. Nothing here does I/O.

How a protocol uses it, once TLS is up and the server has said which mechanisms it offers:

    mechanism = choose(endpoint, user, secret, {"PLAIN", "SCRAM-SHA-256"}, binding=…, has_own_command=True)
    if mechanism is None:
        …                        # LOGIN of IMAP, USER and PASS of POP3: the best the server has
    exchange = Exchange(mechanism, room_octets=…)
    send("AUTHENTICATE " + exchange.argument)           # POP3 and SMTP: "AUTH "
    while the server sends a continuation ("+ …", SMTP "334 …"):
        send(exchange.answer(text after "+ " or "334 "))  # octets without CRLF; "*" where we give up
    exchange.finish(is_accepted=…)   # raises if the server did not prove who it is, or why we gave up
    # not accepted: raise AuthRejected yourself with the server's words and `exchange.detail`, which may be ""

`room_octets` is how long `argument` may be for the initial response to go with the command: 0 where the server does
not allow one (IMAP without SASL-IR), 255 less the command for POP3 (RFC 5034 §4), 512 less it for SMTP (RFC 4954 §4).
If `exchange.may_retry_unbound` is true after a refusal, the server had trouble with channel binding and not with the
password: `choose` again with `binding=None`.

`choose` never takes less than `auth` asks for, and a token never goes where a password is expected.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection
from typing import Protocol

from maild.config import Endpoint, NoSecret, OAuth2, TokenCommand
from maild.core.errors import AuthRejected, MaildError, ProtocolViolation
from maild.remote.auth import keep_out_of_log
from maild.remote.scram import NAME as SCRAM
from maild.remote.scram import ChannelBinding, Scram, escaped_name

__all__ = ["ChannelBinding", "Exchange", "Mechanism", "check_sendable", "choose", "refusal_hint"]

_MOST_CHALLENGES = 8
_DETAIL_CHARACTERS = 200
_TOKEN_MECHANISMS = ("OAUTHBEARER", "XOAUTH2")


class Mechanism(Protocol):
    """One way to log in, for one login. Responses and challenges are octets, not base64."""

    @property
    def name(self) -> str:
        """As on the wire, such as SCRAM-SHA-256."""

    @property
    def detail(self) -> str:
        """Why the server says no, where its challenge told; raw words of the server."""

    @property
    def has_proved(self) -> bool:
        """Whether the server has seen enough for a refusal to be about user and secret."""

    def initial(self) -> bytes | None:
        """The initial response, or None if the server speaks first."""

    def answer(self, challenge: bytes) -> bytes | None:
        """The response, or None if there is nothing more to say and the login has to be given up."""

    def check(self) -> None:
        """To be called when the server says that we are in. Raises if it has not proved who it is."""


class _Spoken:
    """A mechanism that says its sentences one after the other, whatever the server asks."""

    def __init__(self, name: str, sentences: list[bytes], *, starts: bool) -> None:
        self.name = name
        self.detail = ""
        self.has_proved = True
        self._first = sentences.pop(0) if starts else None
        self._rest = sentences

    def initial(self) -> bytes | None:
        return self._first

    def answer(self, _challenge: bytes) -> bytes | None:
        return self._rest.pop(0) if self._rest else None

    def check(self) -> None:
        """These mechanisms prove nothing about the server; TLS did."""


class _Bearer:
    """OAUTHBEARER and XOAUTH2: one response with the token; a challenge after it is an error, to be acknowledged."""

    def __init__(self, name: str, response: bytes, acknowledgement: bytes) -> None:
        self.name = name
        self.detail = ""
        self.has_proved = True
        self._response = response
        self._acknowledgement: bytes | None = acknowledgement

    def initial(self) -> bytes:
        return self._response

    def answer(self, challenge: bytes) -> bytes | None:
        """The error is JSON with `status` and `scope` (RFC 7628 §3.2.2); the refusal comes after our answer."""
        self.detail = self.detail or _error_status(challenge)
        answer, self._acknowledgement = self._acknowledgement, None
        return answer

    def check(self) -> None:
        """A token proves nothing about the server; TLS did."""


def plain(user: str, secret: str) -> Mechanism:
    """PLAIN (RFC 4616); the server does the preparation of both."""
    return _Spoken("PLAIN", [b"\0" + user.encode() + b"\0" + secret.encode()], starts=True)


def login(user: str, secret: str) -> Mechanism:
    """LOGIN (draft-murchison-sasl-login): the server asks for the user, then for the password."""
    return _Spoken("LOGIN", [user.encode(), secret.encode()], starts=False)


def external() -> Mechanism:
    """EXTERNAL (RFC 4422, appendix A): whoever the client certificate says."""
    return _Spoken("EXTERNAL", [b""], starts=True)


def oauthbearer(user: str, token: str, host: str, port: int) -> Mechanism:
    """OAUTHBEARER (RFC 7628 §3.1); an error challenge is answered with %x01."""
    head = b"n,a=" + escaped_name(user) + b",\x01"
    pairs = f"host={host}\x01port={port}\x01auth=Bearer {token}\x01\x01"
    return _Bearer("OAUTHBEARER", head + pairs.encode(), b"\x01")


def xoauth2(user: str, token: str) -> Mechanism:
    """XOAUTH2 (Google's and Microsoft's own); an error challenge is answered with an empty line."""
    return _Bearer("XOAUTH2", f"user={user}\x01auth=Bearer {token}\x01\x01".encode(), b"")


def _error_status(challenge: bytes) -> str:
    try:
        found = json.loads(challenge)
    except (ValueError, RecursionError):
        return ""
    status = found.get("status") if isinstance(found, dict) else None
    return f"status {status}"[:_DETAIL_CHARACTERS] if isinstance(status, str | int) else ""


def choose(
    endpoint: Endpoint,
    user: str,
    secret: str,
    offered: Collection[str],
    *,
    binding: ChannelBinding | None = None,
    has_own_command: bool = False,
) -> Mechanism | None:
    """The strongest mechanism that `auth` allows and the server offers, by names in upper case; None for its own
    plain-password command, if it has one that may be used now.

    Raises AuthRejected, and nothing is sent, if there is none, or if user or secret hold what cannot be sent.
    """
    check_sendable(user, secret)
    wanted = _wanted(endpoint)
    makers: dict[str, Callable[[], Mechanism]] = {
        "EXTERNAL": external,
        "OAUTHBEARER": lambda: oauthbearer(user, secret, endpoint.host, endpoint.port),
        "XOAUTH2": lambda: xoauth2(user, secret),
        f"{SCRAM}-PLUS": lambda: Scram(user, secret, binding=binding, offers_plus=True),
        SCRAM: lambda: Scram(user, secret, binding=binding, offers_plus=False),
        "PLAIN": lambda: plain(user, secret),
        "LOGIN": lambda: login(user, secret),
    }
    for name in wanted:
        if name == "LOGIN" and has_own_command:
            return None
        if name in offered and (binding is not None or not name.endswith("-PLUS")):
            return makers[name]()
    raise _nothing_fits(endpoint, wanted, offered)


def _wanted(endpoint: Endpoint) -> tuple[str, ...]:
    """What the config allows, strongest first."""
    match endpoint.auth:
        case "auto" if isinstance(endpoint.secret, OAuth2 | TokenCommand):
            return _TOKEN_MECHANISMS
        case "auto":
            return f"{SCRAM}-PLUS", SCRAM, "PLAIN", "LOGIN"
        case "scram-sha-256":
            return f"{SCRAM}-PLUS", SCRAM
        case name:
            return (name.upper(),)


def check_sendable(user: str, secret: str) -> None:
    """Raise AuthRejected for what no protocol can send.

    NUL ends a field in PLAIN, %x01 one in OAUTHBEARER, and a line break a line.
    """
    if any(c in user + secret for c in "\r\n\0\x01"):
        raise AuthRejected(
            "user or password holds a line break or NUL, which cannot be sent to a mail server", "correct it"
        )


def _nothing_fits(endpoint: Endpoint, wanted: tuple[str, ...], offered: Collection[str]) -> AuthRejected:
    names = " or ".join(name for name in wanted if not name.endswith("-PLUS"))
    known = " ".join(sorted(offered)) or "nothing"
    shown = "".join(c if c.isprintable() else "?" for c in known)[:_DETAIL_CHARACTERS]
    text = f"{endpoint.host}:{endpoint.port} does not offer to log in by {names}, but by {shown}"
    if wanted == _TOKEN_MECHANISMS:
        return AuthRejected(text, "a token must not be sent in any other way; use a password if the provider allows it")
    remedy = "ask the server's operator" if endpoint.auth == "auto" else 'auth = "auto" takes what there is'
    return AuthRejected(text, f"nothing was sent; {remedy}")


def refusal_hint(endpoint: Endpoint) -> str:
    """What to do when the server refused the login, for the error's hint."""
    match endpoint.secret:
        case OAuth2(owner=owner):
            return f"run maild login {owner.partition('/')[0]}, and check user and the provider's settings"
        case TokenCommand():
            return "check user and what token_command prints"
        case NoSecret():
            return "check client_cert, and user"
        case _:
            return "check user and password; many providers want an app password for mail programs"


class Exchange:
    """A mechanism in the base64 lines of IMAP, POP3 and SMTP; see the module. For one login, then to be left."""

    def __init__(self, mechanism: Mechanism, *, room_octets: int = 0) -> None:
        self.mechanism = mechanism
        self.argument = mechanism.name  # what follows AUTHENTICATE or AUTH
        self._initial = mechanism.initial()
        self._challenges = 0
        self._failure: MaildError | None = None
        if self._initial is not None:
            argument = f"{mechanism.name} {self._line(self._initial).decode() or '='}"
            if len(argument) <= room_octets:
                self.argument, self._initial = argument, None

    @property
    def detail(self) -> str:
        """Why the server refused, as far as its challenge told; fit to be shown, and "" for nothing."""
        return "".join(c if c.isprintable() else "?" for c in self.mechanism.detail)[:_DETAIL_CHARACTERS]

    @property
    def may_retry_unbound(self) -> bool:
        """After a refusal: the server has not seen a proof yet, so what it minds is the channel binding."""
        return self.mechanism.name.endswith("-PLUS") and not self.mechanism.has_proved and self._failure is None

    def answer(self, challenge: bytes) -> bytes:
        """The line that answers a continuation's text, without CRLF. `*` gives up (RFC 4422 §3.5)."""
        self._challenges += 1
        if self._initial is not None:
            response, self._initial = self._initial, None  # whatever it asked: it is our turn to begin
            return self._line(response)
        if self._challenges > _MOST_CHALLENGES:
            self._failure = ProtocolViolation("the server asks without end while we log in")
        if self._failure is not None:
            return b"*"
        try:
            answer = self.mechanism.answer(_decoded(challenge))
        except MaildError as exc:
            self._failure = exc
            return b"*"
        return b"*" if answer is None else self._line(answer)

    def finish(self, *, is_accepted: bool) -> None:
        """When the server has decided: raises what made us give up, or TlsFailed for a server without its proof."""
        if self._failure is not None:
            raise self._failure
        if is_accepted:
            self.mechanism.check()

    def _line(self, response: bytes) -> bytes:
        line = b64encode(response)
        if isinstance(self.mechanism, _Spoken):
            keep_out_of_log(line.decode())  # a short password is not found inside it otherwise
        return line


def _decoded(challenge: bytes) -> bytes:
    """What is not base64 stays as it is: a mechanism that cares will not understand it."""
    try:
        return b64decode(challenge.strip(), validate=True)
    except ValueError:
        return challenge
