"""The desktop's secret service: a real GNOME Keyring on a D-Bus of its own, and every way in which there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from maild.config import OAuth2, PasswordKeyring
from maild.core.errors import SecretUnavailable
from maild.remote import auth, keyring
from maild.remote.tokens import KeyringStore, Tokens, open_store

START_S = 10.0
PASSWORD = "correct horse battery staple"
BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={directory}/socket</listen>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
"""
WHERE = 'account "work": password_keyring'


@pytest.fixture(autouse=True)
def nothing_read_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_read_so_far", set())


def stopped_with_us(*command: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *command], **options)  # type: ignore[call-overload, no-any-return]


@contextmanager
def running_bus(directory: Path) -> Iterator[str]:
    """The address of a private session bus that starts no services."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("no dbus-daemon here: apt-get install dbus-daemon")
    config = directory / "bus.conf"
    config.write_text(BUS.format(directory=directory))
    daemon = stopped_with_us(
        "dbus-daemon", "--nofork", "--print-address", f"--config-file={config}",
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert daemon.stdout is not None
    try:
        yield daemon.stdout.readline().decode().strip()
    finally:
        daemon.terminate()
        daemon.wait()
        daemon.stdout.close()


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_bus(tmp_path_factory.mktemp("bus")) as address:
        yield address


@pytest.fixture(scope="module")
def service(bus: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same, with a keyring on it that is unlocked."""
    if shutil.which("gnome-keyring-daemon") is None:
        pytest.skip("no gnome-keyring-daemon here: apt-get install gnome-keyring dbus-bin")
    home = tmp_path_factory.mktemp("keyring")
    environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": bus, "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    environment |= {"XDG_DATA_HOME": str(home / "data"), "XDG_CACHE_HOME": str(home / "cache")}
    command = ("gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets")
    daemon = stopped_with_us(
        *command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    assert daemon.stdin is not None
    daemon.stdin.write(b"unlock")
    daemon.stdin.close()
    wait_for(bus)
    yield bus
    daemon.terminate()
    daemon.wait()


def wait_for(bus: str) -> None:
    """Until somebody answers to the name of the secret service."""
    command = [
        "dbus-send", f"--bus={bus}", "--print-reply", "--dest=org.freedesktop.DBus", "/",
        "org.freedesktop.DBus.NameHasOwner", "string:org.freedesktop.secrets",
    ]  # fmt: skip
    deadline = time.monotonic() + START_S
    while b"true" not in subprocess.run(command, capture_output=True, check=False).stdout:
        assert time.monotonic() < deadline, "the keyring did not start"


@pytest.fixture
def unlocked(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", service)


@pytest.mark.live
async def test_a_password_from_the_keyring(unlocked: None) -> None:
    with pytest.raises(SecretUnavailable) as absent:
        await auth.read_secret(PasswordKeyring(), "work")
    assert str(absent.value) == (
        f"{WHERE}: there is no entry for this account; run secret-tool store --label=maild service maild user work"
    )
    keyring.store(keyring.PASSWORDS, "work", "old", WHERE)
    keyring.store(keyring.PASSWORDS, "work", PASSWORD, WHERE)
    keyring.store(keyring.PASSWORDS, "home", "another", WHERE)
    assert await auth.read_secret(PasswordKeyring(), "work") == PASSWORD
    assert PASSWORD in auth.kept_out_of_log()
    keyring.remove(keyring.PASSWORDS, "work", WHERE)
    keyring.remove(keyring.PASSWORDS, "work", WHERE)
    assert keyring.lookup(keyring.PASSWORDS, "work", WHERE) is None
    assert await auth.read_secret(PasswordKeyring(), "home") == "another"


@pytest.mark.live
async def test_what_the_package_keyring_wrote_is_found(unlocked: None) -> None:
    import secretstorage

    connection = secretstorage.dbus_init()
    try:
        attributes = {"service": "maild", "username": "python", "application": "Python keyring library"}
        secretstorage.get_default_collection(connection).create_item("x", attributes, PASSWORD.encode())
    finally:
        connection.close()
    assert await auth.read_secret(PasswordKeyring(), "python") == PASSWORD


@pytest.mark.live
def test_tokens_in_the_keyring(unlocked: None) -> None:
    store = open_store(OAuth2("google", "1", owner="work"))
    assert isinstance(store, KeyringStore)
    assert store.load() is None
    tokens = Tokens("access", "refresh", 1, 2, "1", "https://t.example")
    with store.exclusive():
        store.save(tokens)
    assert store.load() == tokens
    assert keyring.lookup(keyring.PASSWORDS, "work", WHERE) is None, "a password of the same account is another entry"
    store.remove()
    assert store.load() is None


@pytest.mark.live
async def test_a_bus_without_a_keyring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with running_bus(tmp_path) as address:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
        with pytest.raises(SecretUnavailable, match="there is no secret service on this session's D-Bus"):
            await auth.read_secret(PasswordKeyring(), "work")


async def test_a_bus_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/nobody")
    with pytest.raises(SecretUnavailable, match="D-Bus cannot be reached: No such file or directory; run maild inside"):
        await auth.read_secret(PasswordKeyring(), "work")


async def test_no_bus_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    with pytest.raises(SecretUnavailable, match="inside the desktop session, or use password_command") as failure:
        await auth.read_secret(PasswordKeyring(), "work")
    assert failure.value.text.startswith(f"{WHERE}: there is no secret service")


async def test_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "secretstorage", None)
    with pytest.raises(SecretUnavailable, match=r'is not installed; run pip install "maild\[keyring\]"'):
        await auth.read_secret(PasswordKeyring(), "work")
