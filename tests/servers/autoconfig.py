"""An HTTPS server on loopback that serves what a provider's autoconfig would; a context manager."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from tests.servers.certificates import Certificate

XML = """<?xml version="1.0"?>
<clientConfig version="1.1"><emailProvider id="mail.example">
  <domain>mail.example</domain><displayName>Mail</displayName>
  {servers}
</emailProvider></clientConfig>
"""


def server(kind: str, host: str, port: int, socket_type: str = "SSL", user: str = "%EMAILADDRESS%") -> str:
    """One server of a description; kind is imap, pop3 or smtp."""
    tag = "outgoingServer" if kind == "smtp" else "incomingServer"
    return (
        f'<{tag} type="{kind}"><hostname>{host}</hostname><port>{port}</port><socketType>{socket_type}</socketType>'
        f"<username>{user}</username><authentication>password-cleartext</authentication></{tag}>"
    )


@dataclass(slots=True)
class AutoconfigServer:
    """`pages` are bodies by path; a page that begins with "http" is a redirect there. `journal` has what was asked."""

    certificate: Certificate
    pages: dict[str, bytes] = field(default_factory=dict)
    journal: list[str] = field(default_factory=list)
    _http: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.journal.append(self.path)
                page = owner.pages.get(self.path.partition("?")[0])
                if page is not None and page.startswith(b"http"):
                    self.send_response(302)
                    self.send_header("Location", page.decode())
                    page = b""
                else:
                    self.send_response(404 if page is None else 200)
                self.send_header("Content-Length", str(len(page or b"")))
                self.end_headers()
                self.wfile.write(page or b"")

            def log_message(self, *_args: object) -> None:
                """Nothing is logged: the journal tells."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.socket = self.certificate.server_context().wrap_socket(self._http.socket, server_side=True)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that does not trust us
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()

    @property
    def url(self) -> str:
        return f"https://localhost:{self._http.server_address[1] if self._http else 0}"
