"""Access tokens of OAuth 2.0 (RFC 6749): from the store, refreshed ahead of their end and after a refusal.

`access_token` is what logging in asks for; `oauth_login` is how the first tokens come. oauthlib makes the requests and
reads the answers; what goes over the network is here: urllib in a thread, TLS verified, no redirect followed, plain
HTTP only to this machine itself. A refresh token may be good for one use only (RFC 9700 §4.14), so each refresh holds
the store's lock, begins by reading what is stored, and ends with storing what came, also when nobody waits any more.
"""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import IO, Any
from urllib.parse import urlsplit

import anyio.to_thread
import structlog

from maild import __version__
from maild.config import OAuth2
from maild.core.errors import ConnectionLost, MaildError, ProtocolViolation, SecretUnavailable, TlsFailed, Unavailable
from maild.remote.auth import keep_out_of_log, no_longer_secret
from maild.remote.masking import masked
from maild.remote.tokens import Tokens, TokenStore, open_store

HTTP_TIMEOUT_S = 8.0  # a daemon that is told to stop has 10 s
MARGIN_S = 120  # a token that ends within it is refreshed first
WARNING_S = 7 * 24 * 3600  # how long before a refresh token dies the user hears of it
_LIMIT_OCTETS = 256 * 1024
_TEXT_CHARACTERS = 200
_NOT_NOW = ("temporarily_unavailable", "server_error")  # RFC 6749 §4.1.2.1
_LIFETIME_KEYS = ("refresh_token_expires_in", "refresh_expires_in")  # Google's and Microsoft's, Keycloak's

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Provider:
    """Who gives tokens. `device_authorization_endpoint` is "" where the mail scopes cannot be had by device code.

    `parameters` go with the authorization request; `redirect_host` is how the provider wants loopback written.
    """

    authorization_endpoint: str
    token_endpoint: str
    device_authorization_endpoint: str
    scopes: tuple[str, ...]
    redirect_host: str = "127.0.0.1"  # RFC 8252 §7.3
    parameters: tuple[tuple[str, str], ...] = ()


_OUTLOOK = "https://outlook.office.com"
PROVIDERS = {
    # A desktop client of Google has a client_secret that is none, and has to send it; its device flow has no mail.
    "google": Provider(
        "https://accounts.google.com/o/oauth2/v2/auth",
        "https://oauth2.googleapis.com/token",
        "",
        ("https://mail.google.com/",),
        parameters=(("access_type", "offline"), ("prompt", "consent")),  # without both, no refresh token
    ),
    # A public client; offline_access is what gives a refresh token. A refresh token unused for 90 days dies.
    "microsoft": Provider(
        "https://login.microsoftonline.com/common/oauth2/v2.0/authorize",
        "https://login.microsoftonline.com/common/oauth2/v2.0/token",
        "https://login.microsoftonline.com/common/oauth2/v2.0/devicecode",
        (
            f"{_OUTLOOK}/IMAP.AccessAsUser.All",
            f"{_OUTLOOK}/POP.AccessAsUser.All",
            f"{_OUTLOOK}/SMTP.Send",
            "offline_access",
        ),
        redirect_host="localhost",
    ),
}
_UNKNOWN = Provider("", "", "", ())


def provider_of(oauth2: OAuth2) -> Provider:
    """The provider as known by name, with what the config says in its place."""
    known = PROVIDERS.get(oauth2.provider, _UNKNOWN)
    return replace(
        known,
        authorization_endpoint=oauth2.authorization_endpoint or known.authorization_endpoint,
        token_endpoint=oauth2.token_endpoint or known.token_endpoint,
        device_authorization_endpoint=oauth2.device_authorization_endpoint or known.device_authorization_endpoint,
        scopes=oauth2.scopes or known.scopes,
    )


async def access_token(oauth2: OAuth2, *, refused: str = "", clock: Callable[[], float] = time.time) -> str:
    """A token that holds for some minutes; another one than `refused`, if a server has refused that.

    Raises SecretUnavailable if only a new `maild login` helps, ConnectionLost, TlsFailed or Unavailable otherwise.
    """
    source = _Source(oauth2, open_store(oauth2), clock)
    # Given up, it goes on in its thread: a refresh token that was spent must be replaced in the store.
    return await anyio.to_thread.run_sync(source.token, refused, abandon_on_cancel=True)


async def stored_mark(oauth2: OAuth2) -> str:
    """Something that changes with the stored login, by refresh or by `maild login`; "" without one."""
    tokens = await anyio.to_thread.run_sync(open_store(oauth2).load, abandon_on_cancel=True)
    return "" if tokens is None else tokens.refresh_token or tokens.access_token


class _Source:
    """One look at the store, with a refresh where that is due; runs in a thread."""

    def __init__(self, oauth2: OAuth2, store: TokenStore, clock: Callable[[], float]) -> None:
        self._oauth2 = oauth2
        self._store = store
        self._now = int(clock())

    def token(self, refused: str) -> str:
        tokens = self._load()
        if self._is_fresh(tokens, refused):
            return tokens.access_token
        with self._store.exclusive():
            tokens = self._load()
            if self._is_fresh(tokens, refused):  # somebody else was quicker
                return tokens.access_token
            return self._refreshed(tokens, refused).access_token

    def _load(self) -> Tokens:
        tokens = self._store.load()
        provider = provider_of(self._oauth2)
        if tokens is None:
            raise self._gone("nobody has logged in yet")
        if (tokens.client_id, tokens.token_endpoint) != (self._oauth2.client_id, provider.token_endpoint):
            raise self._gone("the stored login is with another provider or client_id")
        hide(tokens)
        return tokens

    def _is_fresh(self, tokens: Tokens, refused: str) -> bool:
        holds = not tokens.expires_at or self._now < tokens.expires_at - MARGIN_S
        return bool(tokens.access_token) and tokens.access_token != refused and holds

    def _refreshed(self, tokens: Tokens, refused: str) -> Tokens:
        if not tokens.refresh_token:
            raise self._gone("the token is at its end, and the provider gave none to refresh it with")
        try:
            renewed = self._refresh(tokens)
        except (ConnectionLost, Unavailable):
            if tokens.access_token != refused and self._now < tokens.expires_at:
                return tokens  # it still holds for a moment
            raise
        self._store.save(renewed)
        for old, new in (
            (tokens.access_token, renewed.access_token),
            (tokens.refresh_token, renewed.refresh_token),
        ):
            if old != new:
                no_longer_secret(old)
        log.debug("token.refreshed", account=self._oauth2.owner)
        self._warn(renewed)
        return renewed

    def _refresh(self, tokens: Tokens) -> Tokens:
        """RFC 6749 §6. A provider that gives no new refresh token means the old one to go on."""
        from oauthlib.oauth2 import WebApplicationClient

        client = WebApplicationClient(self._oauth2.client_id)
        body = client.prepare_refresh_body(
            refresh_token=tokens.refresh_token, client_id=self._oauth2.client_id, **secret_of(self._oauth2)
        )
        try:
            fresh = request_tokens(self._oauth2, body, self._now)
        except Refusal as exc:
            raise self._gone(f"the provider refused to refresh its token ({exc.text})") from None
        if fresh.refresh_token:
            return fresh
        return replace(
            fresh,
            refresh_token=tokens.refresh_token,
            refresh_expires_at=fresh.refresh_expires_at or tokens.refresh_expires_at,
        )

    def _warn(self, tokens: Tokens) -> None:
        left_s = tokens.refresh_expires_at - self._now
        if tokens.refresh_expires_at and left_s < WARNING_S:
            hint = f"run maild login {account_of(self._oauth2)}"
            log.warning("login.needed", account=self._oauth2.owner, duration_s=left_s, hint=hint)

    def _gone(self, reason: str) -> SecretUnavailable:
        account = account_of(self._oauth2)
        return SecretUnavailable(f'account "{self._oauth2.owner}": {reason}', f"run maild login {account}")


class Refusal(MaildError):
    """The provider answered a request with an error (RFC 6749 §5.2, RFC 8628 §3.5); `error` is its name."""

    def __init__(self, error: str, description: str) -> None:
        text = masked(f"{error}: {description}" if description else error)
        super().__init__("".join(c if c.isprintable() else " " for c in text)[:_TEXT_CHARACTERS])
        self.error = error


def account_of(oauth2: OAuth2) -> str:
    """The name for `maild login`."""
    return oauth2.owner.partition("/")[0]


def secret_of(oauth2: OAuth2) -> dict[str, str]:
    """The client_secret as an argument, for providers that want one of clients that cannot keep any."""
    keep_out_of_log(oauth2.client_secret)
    return {"client_secret": oauth2.client_secret} if oauth2.client_secret else {}


def hide(tokens: Tokens) -> None:
    """Keep them out of the log."""
    keep_out_of_log(tokens.access_token)
    keep_out_of_log(tokens.refresh_token)


def request_tokens(oauth2: OAuth2, body: str, now: int) -> Tokens:
    """Ask the token endpoint; blocks. Raises Refusal, or what `post` raises."""
    from oauthlib.oauth2 import OAuth2Error, WebApplicationClient

    endpoint = provider_of(oauth2).token_endpoint
    status, answer = post(endpoint, body)
    try:
        found = WebApplicationClient(oauth2.client_id).parse_request_body_response(answer)
    except OAuth2Error as exc:
        if status >= 500 or status == 429 or exc.error in _NOT_NOW:
            raise Unavailable(f"{_host(endpoint)} answers with HTTP status {status}") from None
        raise Refusal(str(exc.error or "no token"), str(exc.description or "")) from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ProtocolViolation(f"{_host(endpoint)} does not answer as a token endpoint (HTTP {status})") from None
    return _tokens(oauth2, endpoint, found, now)


def _tokens(oauth2: OAuth2, endpoint: str, found: dict[str, Any], now: int) -> Tokens:
    access, refresh = found.get("access_token"), found.get("refresh_token") or ""
    if not isinstance(access, str) or not isinstance(refresh, str):
        raise ProtocolViolation(f"{_host(endpoint)} gives tokens that are none")
    life_s = _seconds(found.get("expires_in"))
    refresh_life_s = next((life for key in _LIFETIME_KEYS if (life := _seconds(found.get(key)))), 0)
    tokens = Tokens(
        access_token=access,
        refresh_token=refresh,
        expires_at=now + life_s if life_s else 0,
        refresh_expires_at=now + refresh_life_s if refresh_life_s else 0,
        client_id=oauth2.client_id,
        token_endpoint=endpoint,
    )
    hide(tokens)
    return tokens


def _seconds(value: object) -> int:
    """A duration as providers write it, 0 for what cannot be one."""
    text = str(value)
    return min(int(text), 10 * 365 * 86400) if text.isdigit() and len(text) < 12 else 0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like others: tokens and codes go to the configured address and nowhere else."""

    def redirect_request(self, *_args: object) -> None:
        return None


def post(url: str, body: str) -> tuple[int, str]:
    """POST a form: HTTP status and answer, also of an error. Blocks; raises ConnectionLost or TlsFailed."""
    request = urllib.request.Request(  # noqa: S310  # the config has seen that it is https, or http to loopback
        url,
        data=body.encode(),
        headers={
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
            "User-Agent": f"maild/{__version__}",
        },
    )
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=ssl.create_default_context()))
    try:
        with opener.open(request, timeout=HTTP_TIMEOUT_S) as response:
            return int(response.status), _body(response)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, _body(exc)
    except urllib.error.URLError as exc:
        raise _unreachable(url, exc.reason) from None
    except (OSError, HTTPException) as exc:
        raise _unreachable(url, exc) from None


def _body(response: IO[bytes]) -> str:
    return response.read(_LIMIT_OCTETS).decode("utf-8", "replace")


def _unreachable(url: str, reason: object) -> MaildError:
    if isinstance(reason, ssl.SSLCertVerificationError):
        text = f"{_host(url)} cannot be trusted: {reason.verify_message}"
        return TlsFailed(text, "nothing was sent; check this machine's clock and its certificate store")
    detail = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return ConnectionLost(f"{_host(url)} cannot be asked for tokens: {detail}", "check the network")


def _host(url: str) -> str:
    return urlsplit(url).netloc
