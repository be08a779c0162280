"""`maild login`: the first tokens of an account, by device code (RFC 8628) or by browser (RFC 8252, with RFC 7636).

Both show the user something and wait for it to be done; where the text goes is the caller's. The browser comes back to
a port on 127.0.0.1 that is open for this one answer; a request without our `state` is not the provider's, and changes
nothing. Errors: SecretUnavailable where the provider or the user says no, ConnectionLost, TlsFailed, Unavailable.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode, urlsplit

import anyio
import anyio.to_thread

from maild.config import OAuth2
from maild.core.errors import ConfigError, ConnectionLost, ProtocolViolation, SecretUnavailable, Unavailable
from maild.remote.auth import keep_out_of_log
from maild.remote.oauth import Refusal, account_of, post, provider_of, request_tokens, secret_of
from maild.remote.tokens import Tokens, open_store

LOGIN_TIMEOUT_S = 900.0  # as long as most device codes live
_INTERVAL_S = 5.0  # RFC 8628 §3.2, where the provider says nothing
_LONGEST_INTERVAL_S = 60.0
_SLOWER_S = 5.0  # RFC 8628 §3.5, slow_down
_LONGEST_REQUEST_OCTETS = 16 * 1024
_DEVICE_GRANT_ENDED = {"expired_token": "the code was not entered in time", "access_denied": "the login was declined"}

_DONE = "You are logged in. maild goes on by itself; this window can be closed."
_NOT_DONE = "The login did not succeed; the terminal says why."
_NOTHING_HERE = "Nothing here."


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """What the user has to type where. `complete_url` has the code in it already, "" if the provider has no such."""

    url: str
    user_code: str
    complete_url: str
    expires_in_s: float


def can_use_device(oauth2: OAuth2) -> bool:
    """Whether the provider gives mail tokens by device code."""
    return bool(provider_of(oauth2).device_authorization_endpoint)


def save(oauth2: OAuth2, tokens: Tokens) -> None:
    """Keep what a login gave, for all protocols of the account. Blocks."""
    store = open_store(oauth2)
    with store.exclusive():
        store.save(tokens)


# -- by device code


async def by_device(
    oauth2: OAuth2,
    show: Callable[[DeviceCode], None],
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    clock: Callable[[], float] = time.time,
) -> Tokens:
    """Show a code, and wait until the user has entered it at the provider, on whatever device."""
    if not can_use_device(oauth2):
        raise ConfigError([f'account "{oauth2.owner}": {oauth2.provider} has no login by device code; use --browser'])
    code, device_code, interval_s = await _device_code(oauth2)
    show(code)
    body = _device_body(oauth2, device_code)
    left_s = code.expires_in_s
    while left_s > 0:
        await sleep(interval_s)
        left_s -= max(interval_s, 1.0)
        try:
            return await anyio.to_thread.run_sync(request_tokens, oauth2, body, int(clock()), abandon_on_cancel=True)
        except Refusal as exc:
            if exc.error == "slow_down":
                interval_s += _SLOWER_S
            elif exc.error != "authorization_pending":
                raise _refused(oauth2, _DEVICE_GRANT_ENDED.get(exc.error, exc.text)) from None
        except (ConnectionLost, Unavailable):
            interval_s = min(interval_s * 2, _LONGEST_INTERVAL_S)  # RFC 8628 §3.5
    raise _refused(oauth2, _DEVICE_GRANT_ENDED["expired_token"])


async def _device_code(oauth2: OAuth2) -> tuple[DeviceCode, str, float]:
    """RFC 8628 §3.1, §3.2: what to show, the code that only we know, and how often to ask in seconds."""
    provider = provider_of(oauth2)
    form = {"client_id": oauth2.client_id, "scope": " ".join(provider.scopes), **secret_of(oauth2)}
    url = provider.device_authorization_endpoint
    status, answer = await anyio.to_thread.run_sync(post, url, urlencode(form), abandon_on_cancel=True)
    try:
        found = json.loads(answer)
        if status != 200:
            raise _refused(oauth2, Refusal(str(found["error"]), str(found.get("error_description", ""))).text)
        where = str(found.get("verification_uri") or found["verification_url"])  # Google's older spelling
        interval_s = float(found.get("interval", _INTERVAL_S))
        device_code = str(found["device_code"])
        code = DeviceCode(
            where, str(found["user_code"]), str(found.get("verification_uri_complete", "")), float(found["expires_in"])
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        host = urlsplit(url).netloc
        raise ProtocolViolation(f"{host} does not answer as a device endpoint does (HTTP status {status})") from None
    keep_out_of_log(device_code)
    return code, device_code, min(max(interval_s, 0.0), _LONGEST_INTERVAL_S)


def _device_body(oauth2: OAuth2, device_code: str) -> str:
    from oauthlib.oauth2 import DeviceClient

    client = DeviceClient(oauth2.client_id)
    return str(client.prepare_request_body(device_code, include_client_id=True, **secret_of(oauth2)))


# -- by browser


async def by_browser(oauth2: OAuth2, show: Callable[[str], None], clock: Callable[[], float] = time.time) -> Tokens:
    """Show an address for a browser on this machine, and wait until it comes back with the provider's answer."""
    request = _BrowserRequest(oauth2)
    answers: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _serve_one(reader, writer, request.state, answers)

    try:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
    except OSError as exc:
        raise SecretUnavailable(f"cannot listen on 127.0.0.1: {exc.strerror or exc}", "use --device") from None
    async with server:
        port = int(server.sockets[0].getsockname()[1])
        show(request.address(port))
        try:
            with anyio.fail_after(LOGIN_TIMEOUT_S):
                found = await answers.get()
        except TimeoutError:
            raise _refused(oauth2, "the browser did not come back in time") from None
    if "code" not in found:
        reason = Refusal(found.get("error", "no code"), found.get("error_description", "")).text
        raise _refused(oauth2, reason)
    body = request.body(found["code"], port)
    try:
        return await anyio.to_thread.run_sync(request_tokens, oauth2, body, int(clock()), abandon_on_cancel=True)
    except Refusal as exc:
        raise _refused(oauth2, exc.text) from None


class _BrowserRequest:
    """One authorization request: its state and its code verifier, which only the two ends of it know."""

    def __init__(self, oauth2: OAuth2) -> None:
        from oauthlib.oauth2 import WebApplicationClient

        self._oauth2 = oauth2
        self._provider = provider_of(oauth2)
        self._client = WebApplicationClient(oauth2.client_id)
        self._verifier: str = self._client.create_code_verifier(64)
        self.state = secrets.token_urlsafe(24)
        keep_out_of_log(self._verifier)
        keep_out_of_log(self.state)

    def address(self, port: int) -> str:
        """Where the browser has to go."""
        endpoint = self._provider.authorization_endpoint
        address = self._client.prepare_request_uri(
            _as_https(endpoint),
            redirect_uri=self._redirect(port),
            scope=list(self._provider.scopes),
            state=self.state,
            code_challenge=self._client.create_code_challenge(self._verifier, "S256"),
            code_challenge_method="S256",
            **dict(self._provider.parameters),
        )
        return endpoint[: endpoint.index(":")] + str(address)[len("https") :]

    def body(self, code: str, port: int) -> str:
        """The request for tokens (RFC 6749 §4.1.3)."""
        keep_out_of_log(code)
        redirect = self._redirect(port)
        return str(
            self._client.prepare_request_body(
                code=code, redirect_uri=redirect, code_verifier=self._verifier, **secret_of(self._oauth2)
            )
        )

    def _redirect(self, port: int) -> str:
        return f"http://{self._provider.redirect_host}:{port}/"


def _as_https(url: str) -> str:
    """oauthlib takes no http at all, which the config allows towards this machine itself."""
    return "https" + url[url.index(":") :]


async def _serve_one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: str, answers: asyncio.Queue[dict[str, str]]
) -> None:
    """Answer one HTTP request; the one that knows our state is the provider's."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        found = _query(head) if len(head) <= _LONGEST_REQUEST_OCTETS else {}
        is_ours = secrets.compare_digest(found.get("state", "").encode(), state.encode())
        text = (_DONE if "code" in found else _NOT_DONE) if is_ours else _NOTHING_HERE
        writer.write(_page("200 OK" if is_ours else "404 Not Found", text))
        await writer.drain()
        if is_ours:
            answers.put_nowait(found)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        return  # a browser that thought better of it
    finally:
        writer.close()


def _query(head: bytes) -> dict[str, str]:
    """The parameters of a GET request for /, each but once."""
    words = head.split(b"\r\n", 1)[0].decode("ascii", "replace").split(" ")
    if len(words) != 3 or words[0] != "GET" or urlsplit(words[1]).path != "/":
        return {}
    return {name: values[0] for name, values in parse_qs(urlsplit(words[1]).query).items() if len(values) == 1}


def _page(status: str, text: str) -> bytes:
    body = f"<!doctype html><meta charset=utf-8><title>maild</title><p>{text}</p>\n".encode()
    fields = (
        f"HTTP/1.1 {status}",
        "Content-Type: text/html; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Referrer-Policy: no-referrer",
        "Connection: close",
    )
    return "\r\n".join(fields).encode() + b"\r\n\r\n" + body


def _refused(oauth2: OAuth2, reason: str) -> SecretUnavailable:
    return SecretUnavailable(
        f'account "{oauth2.owner}": {reason}', f"to try again, run maild login {account_of(oauth2)}"
    )
