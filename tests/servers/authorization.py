"""A scripted OAuth 2.0 authorisation server on loopback: code with PKCE, device code, refresh, introspection.

It keeps what a strict provider keeps: a code is good once and for the redirect and verifier it was asked with, a
refresh token (`rotates`) once, and one that comes twice takes the whole login away (RFC 9700 §4.14.2). `journal` has
every request; `answers` are played, first come first served, before anything else is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT_ID = "maild-test-client"

Form = dict[str, str]


@dataclass(slots=True)
class AuthorizationServer:
    """A context manager. `user` is who logs in with every login."""

    user: str = "user"
    access_life_s: int | None = 3600
    refresh_life_s: int | None = None
    rotates: bool = True
    gives_refresh: bool = True
    pending: int = 0  # how many times a device code is still waiting for its user
    client_secret: str = ""
    journal: list[tuple[str, Form]] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)
    access: set[str] = field(default_factory=set)  # tokens that are good
    refresh: set[str] = field(default_factory=set)
    _spent: set[str] = field(default_factory=set)
    _codes: dict[str, Form] = field(default_factory=dict)
    _devices: set[str] = field(default_factory=set)
    _http: ThreadingHTTPServer | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        owner = self

        class Handler(_Handler):
            server_side = owner

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._http is not None and self._thread is not None:
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()

    @property
    def url(self) -> str:
        assert self._http is not None
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def config(self, **more: str) -> str:
        """The value of `oauth2` in a config."""
        pairs = {
            "provider": "test",
            "client_id": CLIENT_ID,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "device_authorization_endpoint": f"{self.url}/device",
            **more,
        }
        return "{ " + ", ".join(f'{key} = "{value}"' for key, value in pairs.items()) + ', scopes = ["mail", "more"] }'

    def asked(self, path: str) -> list[Form]:
        return [form for where, form in self.journal if where == path]

    def consent(self, address: str) -> str:
        """What the provider's page does when its user agrees to `address`: where it sends the browser."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        self.journal.append(("/authorize", query))
        code = secrets.token_urlsafe(16)
        self._codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def answer(self, path: str, form: Form) -> tuple[int, str]:
        self.journal.append((path, form))
        if path == "/introspect":
            is_active = form.get("access_token") in self.access
            return 200, json.dumps({"active": True, "username": self.user} if is_active else {"active": False})
        if self.answers:
            return self.answers.pop(0)
        if path == "/device":
            return self._device(form)
        if path == "/token":
            return self._token(form)
        return 404, "nothing here"

    def _device(self, form: Form) -> tuple[int, str]:
        if form.get("client_id") != CLIENT_ID:
            return _error("invalid_client")
        code = secrets.token_urlsafe(16)
        self._devices.add(code)
        return 200, json.dumps(
            {
                "device_code": code,
                "user_code": "WDJB-MJHT",
                "verification_uri": f"{self.url}/enter",
                "verification_uri_complete": f"{self.url}/enter?code=WDJB-MJHT",
                "expires_in": 900,
                "interval": 0,
            }
        )

    def _token(self, form: Form) -> tuple[int, str]:
        if form.get("client_id") != CLIENT_ID or form.get("client_secret", "") != self.client_secret:
            return _error("invalid_client", status=401)
        match form.get("grant_type"):
            case "authorization_code":
                return self._for_code(form)
            case "refresh_token":
                return self._for_refresh(form.get("refresh_token", ""))
            case "urn:ietf:params:oauth:grant-type:device_code":
                return self._for_device(form.get("device_code", ""))
            case _:
                return _error("unsupported_grant_type")

    def _for_code(self, form: Form) -> tuple[int, str]:
        asked = self._codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or asked["redirect_uri"] != form.get("redirect_uri"):
            return _error("invalid_grant")
        if asked["code_challenge_method"] != "S256" or asked["code_challenge"] != challenge:
            return _error("invalid_grant", "the verifier does not fit")
        return self._issue(with_refresh=self.gives_refresh)

    def _for_device(self, code: str) -> tuple[int, str]:
        if code not in self._devices:
            return _error("invalid_grant")
        if self.pending > 0:
            self.pending -= 1
            return _error("authorization_pending")
        self._devices.discard(code)
        return self._issue(with_refresh=self.gives_refresh)

    def _for_refresh(self, token: str) -> tuple[int, str]:
        if token in self._spent:  # stolen, or a client that forgot to keep the new one
            self.refresh.clear()
            return _error("invalid_grant", "the refresh token was used before")
        if token not in self.refresh:
            return _error("invalid_grant", "the refresh token is revoked")
        if self.rotates:
            self.refresh.discard(token)
            self._spent.add(token)
        return self._issue(with_refresh=self.rotates)

    def _issue(self, *, with_refresh: bool) -> tuple[int, str]:
        given: dict[str, Any] = {"access_token": f"access-{secrets.token_urlsafe(16)}", "token_type": "Bearer"}
        self.access.add(given["access_token"])
        if self.access_life_s is not None:
            given["expires_in"] = self.access_life_s
        if with_refresh:
            given["refresh_token"] = f"refresh-{secrets.token_urlsafe(16)}"
            self.refresh.add(given["refresh_token"])
        if self.refresh_life_s is not None:
            given["refresh_token_expires_in"] = self.refresh_life_s
        return 200, json.dumps(given)


def _error(name: str, description: str = "", *, status: int = 400) -> tuple[int, str]:
    return status, json.dumps({"error": name, **({"error_description": description} if description else {})})


class _Handler(BaseHTTPRequestHandler):
    server_side: AuthorizationServer

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", "0"))
        self._reply(urlsplit(self.path).path, self.rfile.read(size).decode())

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self._reply(parts.path, parts.query)

    def _reply(self, path: str, text: str) -> None:
        form = {name: values[0] for name, values in parse_qs(text).items()}
        status, body = self.server_side.answer(path, form)
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", body)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_args: object) -> None:
        """Nothing: the journal has it."""
