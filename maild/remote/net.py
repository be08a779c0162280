"""TLS contexts, shared by all accounts with the same trust, and foreign exceptions made ours.

TLS 1.2 or newer; certificate and name are verified, and the name is a subject alternative name: the common name is not
looked at (RFC 9525 §2). A pinned certificate (`tls_fingerprint`) without a `ca_file` is
trusted for being that very certificate, whoever signed it; with a `ca_file` both must hold.
"""

from __future__ import annotations

import asyncio.sslproto
import hashlib
import hmac
import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from maild.config import Endpoint
from maild.core.errors import ConnectionLost, MaildError, TlsFailed

_READ_OCTETS = 64 * 1024  # of a connection at once
_FEED_OCTETS = 16 * 1024  # to OpenSSL at once: it keeps for ever a third more than it was ever given


class _Buffers(threading.local):
    """What TLS connections read into, one for all those of a thread: whatever comes is taken out in the same call."""

    def __init__(self) -> None:
        self.octets = memoryview(bytearray(_READ_OCTETS))


class _SharedBuffer(asyncio.sslproto.SSLProtocol):
    """asyncio's, without the read buffer of 256 KiB that it allocates for each connection, whether used or not."""

    max_size = 16 * 1024  # of what is decrypted at once: a record
    _buffers = _Buffers()

    def get_buffer(self, n: int) -> memoryview:
        return self._buffers.octets

    def buffer_updated(self, nbytes: int) -> None:
        octets = self._buffers.octets
        for start in range(0, nbytes, _FEED_OCTETS):
            self._ssl_buffer_view = octets[start : min(nbytes, start + _FEED_OCTETS)]
            super().buffer_updated(len(self._ssl_buffer_view))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._ssl_buffer = bytearray()
        super().connection_made(transport)


asyncio.sslproto.SSLProtocol = _SharedBuffer  # type: ignore[misc]  # the event loop's own

_OTHERS = 0o077  # permission bits that nobody else may have on a private key
_NAME_HINT = "use as host a name that the certificate holds (as subject alternative name; a common name does not count)"
_CA_HINT = "it must hold PEM certificates"
_PAIR_HINT = "client_cert and client_key must be PEM, belong together, be readable, and the key must not be encrypted"
_REASONS = {
    10: ("its certificate has expired", "the server's operator has to renew it; also check this machine's clock"),
    9: ("its certificate is not valid yet", "check this machine's clock"),
    18: ("its certificate is self-signed", "if it is yours, give it as ca_file or pin it with tls_fingerprint"),
    19: ("its certificate chain ends in an unknown root", "give the root certificate as ca_file"),
    20: ("its certificate comes from an unknown authority", "give the authority's certificate as ca_file"),
    62: ("its certificate is for another name", _NAME_HINT),
    64: ("its certificate is for another address", _NAME_HINT),
}


@dataclass(frozen=True, slots=True)
class _Version:
    """A file as it is now: its path, and what changes when somebody renews it."""

    path: Path
    stamp: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path) -> _Version:
        found = path.stat()
        return cls(path, (found.st_mtime_ns, found.st_size, found.st_ino))


@lru_cache(maxsize=64)
def _context(
    ca_file: _Version | None, client_cert: _Version | None, client_key: _Version | None, is_pinned: bool
) -> ssl.SSLContext:
    with _usable("ca_file", ca_file.path if ca_file else None, _CA_HINT):
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file.path))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # of TLS 1.2: who was verified stays who it is
    context.hostname_checks_common_name = False
    if is_pinned and ca_file is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # check_pin decides, before anything is sent
    if client_cert is not None:
        key = client_key or client_cert
        with _usable("client_cert", client_cert.path, _PAIR_HINT):
            # The empty password is for an encrypted key: OpenSSL would ask for one on the terminal.
            context.load_cert_chain(client_cert.path, key.path, password=b"")
    return context


@contextmanager
def _usable(name: str, path: Path | None, hint: str) -> Iterator[None]:
    """Inside, what is wrong with a file becomes TlsFailed."""
    try:
        yield
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise TlsFailed(f"cannot use {name} {path}: {reason}", hint) from exc


def tls_context(endpoint: Endpoint) -> ssl.SSLContext:
    """The context for an endpoint; one object for all that trust the same, made anew when one of its files changes.

    Raises TlsFailed for a bad `ca_file`, `client_cert` or `client_key`, and for a key that others have access to.
    """
    if (key := endpoint.client_key or endpoint.client_cert) is not None:
        _check_private("client_key" if endpoint.client_key else "client_cert", key)
    return _context(
        _version("ca_file", endpoint.ca_file, _CA_HINT),
        _version("client_cert", endpoint.client_cert, _PAIR_HINT),
        _version("client_key", endpoint.client_key, _PAIR_HINT),
        endpoint.tls_fingerprint is not None,
    )


def _check_private(name: str, path: Path) -> None:
    """Refuse a private key as a password file is refused; systemd's credentials are private, whatever their mode."""
    with _usable(name, path, _PAIR_HINT):
        mode = path.stat().st_mode
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if stat.S_ISREG(mode) and mode & _OTHERS and not (credentials and path.is_relative_to(credentials)):
        text = f"{name} {path} holds a private key, and others have access to it (mode {stat.S_IMODE(mode):04o})"
        raise TlsFailed(text, f"run chmod 600 {path}")


def _version(name: str, path: Path | None, hint: str) -> _Version | None:
    if path is None:
        return None
    with _usable(name, path, hint):
        return _Version.of(path)


def check_pin(endpoint: Endpoint, certificate: bytes | None) -> None:
    """Compare the server's certificate (DER) with `tls_fingerprint`, if there is one. Raises TlsFailed."""
    if endpoint.tls_fingerprint is None:
        return
    found = "sha256:" + hashlib.sha256(certificate or b"").hexdigest()
    if not hmac.compare_digest(found, endpoint.tls_fingerprint):
        raise TlsFailed(
            f"{endpoint.host}:{endpoint.port} showed a certificate with the fingerprint {found}, not the pinned one",
            "if the operator changed it, confirm that with them and update tls_fingerprint; nothing was sent",
        )


@contextmanager
def translated(endpoint: Endpoint) -> Iterator[None]:
    """Inside, exceptions of sockets, TLS and name resolution become ours, naming the server and a remedy."""
    try:
        yield
    except MaildError:
        raise
    except ssl.SSLCertVerificationError as exc:
        reason, hint = _REASONS.get(exc.verify_code, (exc.verify_message, "nothing was sent"))
        raise TlsFailed(f"{_where(endpoint)} cannot be trusted: {reason}", hint) from exc
    except ssl.SSLError as exc:
        raise TlsFailed(f"TLS with {_where(endpoint)} failed: {exc.reason or exc}", tls_hint(endpoint)) from exc
    except socket.gaierror as exc:
        hint = "check the spelling of host and whether this machine is online"
        raise ConnectionLost(f"{endpoint.host} cannot be found: {exc.strerror or exc}", hint) from exc
    except UnicodeError as exc:
        raise ConnectionLost(f"{endpoint.host} cannot be a host name", "check the spelling of host") from exc
    except TimeoutError as exc:
        hint = "check host, port and whether a firewall is in between"
        raise ConnectionLost(f"{_where(endpoint)} did not answer in time", hint) from exc
    except OSError as exc:
        known = os.strerror(exc.errno).lower() if exc.errno else ""  # asyncio's own text repeats host and port
        reason = known or str(exc) or "the server closed the connection"  # as in the middle of a handshake
        raise ConnectionLost(f"{_where(endpoint)}: {reason}", "check host, port and the network") from exc


def _where(endpoint: Endpoint) -> str:
    return f"{endpoint.host}:{endpoint.port}"


def tls_hint(endpoint: Endpoint) -> str:
    """What to do about a handshake that does not come about."""
    if endpoint.tls == "implicit":
        return 'if this port speaks plain text first, use tls = "starttls"'
    return "ask the server's operator which TLS versions it offers"
