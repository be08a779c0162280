"""The desktop's secret service (GNOME Keyring, KWallet, KeePassXC) over D-Bus; alone imports secretstorage.

An entry is found by its attributes `service` and `user`, as `secret-tool store --label=maild service maild user work`
writes them; what the Python package keyring wrote (`username`) is found too. Everything here blocks, for as long as the
user takes to unlock the keyring: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from maild.core.errors import SecretUnavailable

if TYPE_CHECKING:
    from jeepney.io.blocking import DBusConnection
    from secretstorage import Item

PASSWORDS = "maild"  # the service of passwords
TOKENS = "maild tokens"
_USER_KEYS = ("user", "username")
_WITHOUT_DESKTOP = "run maild inside the desktop session, or use password_command, password_file or password_credential"


def lookup(service: str, user: str, where: str) -> str | None:
    """The secret of an entry, None if there is none. `where` begins every error; raises SecretUnavailable."""
    with _connected(where) as connection:
        item = _item(connection, service, user, where)
        raw = item.get_secret() if item is not None else None
    try:
        return raw.decode() if raw is not None else None
    except UnicodeDecodeError:
        raise SecretUnavailable(f"{where}: the keyring's entry is not UTF-8 text", "store it anew") from None


def store(service: str, user: str, secret: str, where: str) -> None:
    """Make or replace an entry in the default keyring. Raises SecretUnavailable."""
    import secretstorage

    with _connected(where) as connection:
        collection = secretstorage.get_default_collection(connection)
        if collection.is_locked() and collection.unlock():
            raise _locked(where)
        attributes = {"service": service, "user": user}
        collection.create_item(f"{service}: {user}", attributes, secret.encode(), replace=True)


def remove(service: str, user: str, where: str) -> None:
    """Take an entry out, if there is one. Raises SecretUnavailable."""
    with _connected(where) as connection:
        if (item := _item(connection, service, user, where)) is not None:
            item.delete()


def _item(connection: DBusConnection, service: str, user: str, where: str) -> Item | None:
    import secretstorage

    for key in _USER_KEYS:
        for item in secretstorage.search_items(connection, {"service": service, key: user}):
            if item.is_locked() and item.unlock():
                raise _locked(where)
            return item
    return None


@contextmanager
def _connected(where: str) -> Iterator[DBusConnection]:
    """A connection to the session bus; what goes wrong on it inside the block becomes SecretUnavailable."""
    try:
        import secretstorage
    except ImportError:
        raise SecretUnavailable(
            f"{where}: the package secretstorage is not installed", 'run pip install "maild[keyring]"'
        ) from None
    try:
        with closing(secretstorage.dbus_init()) as connection:
            yield connection
    except secretstorage.LockedException:
        raise _locked(where) from None
    except secretstorage.SecretServiceNotAvailableException as exc:
        raise SecretUnavailable(
            f"{where}: there is no secret service on this session's D-Bus ({exc})",
            _WITHOUT_DESKTOP,
        ) from None
    except OSError as exc:
        raise SecretUnavailable(
            f"{where}: this session's D-Bus cannot be reached: {exc.strerror or exc}", _WITHOUT_DESKTOP
        ) from None
    except secretstorage.SecretStorageException as exc:
        text = f"{where}: the keyring failed: {exc}"
        raise SecretUnavailable(text, "look at it with the desktop's own tool") from None


def _locked(where: str) -> SecretUnavailable:
    return SecretUnavailable(f"{where}: the keyring is locked", "unlock it, then run maild reload")
