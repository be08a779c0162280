"""Where OAuth tokens are kept: one file per account, mode 0600, or the desktop's secret service. Everything blocks.

One store serves all protocols of an account and all processes: who changes it holds `exclusive()`, and has to read it
anew inside, because a refresh token may be good only once.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from maild.config import OAuth2
from maild.core.errors import SecretUnavailable
from maild.remote import keyring


@dataclass(frozen=True, slots=True, repr=False)
class Tokens:
    """What a provider gave. Times are seconds since 1970, 0 where it did not say. `token_endpoint` and `client_id` are
    of those who gave and got them: nobody else is ever shown these tokens.
    """

    access_token: str
    refresh_token: str = ""
    expires_at: int = 0
    refresh_expires_at: int = 0
    client_id: str = ""
    token_endpoint: str = ""

    def __repr__(self) -> str:
        return f"Tokens(expires_at={self.expires_at})"


class TokenStore(Protocol):
    """Holds the tokens of one owner."""

    def load(self) -> Tokens | None:
        """What is stored, None for nothing. Raises SecretUnavailable."""

    def save(self, tokens: Tokens) -> None:
        """Replace what is stored, durably. Raises SecretUnavailable."""

    def remove(self) -> None:
        """Forget what is stored. Raises SecretUnavailable."""

    def exclusive(self) -> AbstractContextManager[object]:
        """Nobody else changes the store inside the block."""


def open_store(oauth2: OAuth2) -> TokenStore:
    """The store that the config names."""
    return FileStore(oauth2.token_file, oauth2.owner) if oauth2.token_file else KeyringStore(oauth2.owner)


class FileStore:
    """A JSON file; replaced as a whole, so that a crash leaves the old one or the new one."""

    def __init__(self, path: Path, owner: str) -> None:
        self._path = path
        self._where = f'account "{owner}": token file {path}'

    def load(self) -> Tokens | None:
        try:
            with self._path.open("rb") as file:
                if (mode := stat.S_IMODE(os.fstat(file.fileno()).st_mode)) & 0o077:
                    text = f"{self._where}: others have access to it (mode {mode:04o})"
                    raise SecretUnavailable(text, f"run chmod 600 {self._path}")
                return _read(file.read(), self._where)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._failed(exc) from None

    def save(self, tokens: Tokens) -> None:
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            self._make_directory()
            self._write(fresh, _written(tokens).encode())
        except OSError as exc:
            fresh.unlink(missing_ok=True)
            raise self._failed(exc) from None

    def _write(self, fresh: Path, raw: bytes) -> None:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def remove(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as exc:
            raise self._failed(exc) from None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """A lock file beside it: locks of different descriptors exclude each other within a process too."""
        try:
            self._make_directory()
            descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise self._failed(exc) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_directory(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _failed(self, exc: OSError) -> SecretUnavailable:
        return SecretUnavailable(f"{self._where}: {exc.strerror or exc}", "see to it that maild's user can write there")


class KeyringStore:
    """An entry of the secret service; locked within this process only, where the daemon is."""

    _lock = threading.Lock()

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._where = f'account "{owner}": tokens in the keyring'

    def load(self) -> Tokens | None:
        text = keyring.lookup(keyring.TOKENS, self._owner, self._where)
        return None if text is None else _read(text.encode(), self._where)

    def save(self, tokens: Tokens) -> None:
        keyring.store(keyring.TOKENS, self._owner, _written(tokens), self._where)

    def remove(self) -> None:
        keyring.remove(keyring.TOKENS, self._owner, self._where)

    def exclusive(self) -> AbstractContextManager[object]:
        return self._lock


def _written(tokens: Tokens) -> str:
    return json.dumps(asdict(tokens), indent=2) + "\n"


def _read(raw: bytes, where: str) -> Tokens:
    """Keys that are not known are of a later version, and left out."""
    known = {field.name: field.type for field in fields(Tokens)}
    try:
        values = json.loads(raw)
        found = {name: value for name, value in values.items() if name in known}
        if any(type(value).__name__ != known[name] for name, value in found.items()):
            raise TypeError
        return Tokens(**found)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise SecretUnavailable(f"{where}: holds no tokens", "remove it and run maild login") from None
