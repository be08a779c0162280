"""When a secret is read, read again, and no longer tried; the same for every protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog

from maild.config import Imap, PasswordFile, TokenCommand
from maild.core.errors import AuthRejected, ConnectionLost, SecretUnavailable, Unavailable
from maild.remote import auth
from maild.remote.auth import Credentials


@pytest.fixture(autouse=True)
def nothing_read_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_read_so_far", set())


@dataclass(slots=True)
class Server:
    """Takes one password, and remembers what it was given."""

    takes: str
    tried: list[str] = field(default_factory=list)
    on_refusal: Callable[[], object] = lambda: None
    stays: bool = True

    async def attempt(self, secret: str) -> None:
        self.tried.append(secret)
        if secret != self.takes:
            self.on_refusal()
            raise AuthRejected("refused to log in")

    def can_go_on(self) -> bool:
        return self.stays


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("old\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def credentials(password_file: Path) -> Credentials:
    return Credentials(Imap(host="h.example", port=993, user="u", secret=PasswordFile(password_file)), "work")


async def test_a_password_that_was_taken_is_not_read_again(credentials: Credentials, password_file: Path) -> None:
    server = Server("old")
    await credentials.log_in(server.attempt, server.can_go_on)
    password_file.unlink()
    await credentials.log_in(server.attempt, server.can_go_on)
    assert server.tried == ["old", "old"]
    assert credentials.refused is None


async def test_a_refused_password_that_is_still_the_same_is_tried_once(credentials: Credentials) -> None:
    server = Server("new")
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            with pytest.raises(AuthRejected, match="refused to log in"):
                await credentials.log_in(server.attempt, server.can_go_on)
    assert server.tried == ["old"]
    assert credentials.refused is not None
    assert [event["event"] for event in logged] == ["login.rejected"]


async def test_a_password_changed_meanwhile_is_tried_at_once(credentials: Credentials, password_file: Path) -> None:
    server = Server("new", on_refusal=lambda: password_file.write_text("new\n"))
    await credentials.log_in(server.attempt, server.can_go_on)
    await credentials.log_in(server.attempt, server.can_go_on)
    assert server.tried == ["old", "new", "new"]
    assert credentials.refused is None


async def test_a_password_changed_after_it_was_taken(credentials: Credentials, password_file: Path) -> None:
    server = Server("old")
    await credentials.log_in(server.attempt, server.can_go_on)
    server.takes = "new"
    password_file.write_text("new\n")
    await credentials.log_in(server.attempt, server.can_go_on)
    assert server.tried == ["old", "old", "new"]
    server.takes = "newer"
    for _ in range(3):
        with pytest.raises(AuthRejected):
            await credentials.log_in(server.attempt, server.can_go_on)
    assert server.tried == ["old", "old", "new", "new"]


async def test_two_wrong_passwords_are_the_end(credentials: Credentials, password_file: Path) -> None:
    server = Server("other", on_refusal=lambda: password_file.write_text("new\n"))
    for _ in range(3):
        with pytest.raises(AuthRejected):
            await credentials.log_in(server.attempt, server.can_go_on)
    assert server.tried == ["old", "new"]


async def test_on_a_connection_that_is_gone_the_new_one_waits_for_the_next(
    credentials: Credentials, password_file: Path
) -> None:
    server = Server("new", on_refusal=lambda: password_file.write_text("new\n"), stays=False)
    with pytest.raises(Unavailable, match="the secret has changed since it was read; it is tried again"):
        await credentials.log_in(server.attempt, server.can_go_on)
    await credentials.log_in(server.attempt, server.can_go_on)
    assert server.tried == ["old", "new"]


async def test_a_lost_connection_says_nothing_about_the_password(credentials: Credentials) -> None:
    async def lose(_secret: str) -> None:
        raise ConnectionLost("gone")

    with pytest.raises(ConnectionLost):
        await credentials.log_in(lose, lambda: False)
    assert credentials.refused is None
    server = Server("old")
    await credentials.log_in(server.attempt, server.can_go_on)


async def test_it_is_tried_again_once_it_has_changed(credentials: Credentials, password_file: Path) -> None:
    assert await credentials.has_changed(), "it was not refused"
    server = Server("new")
    with pytest.raises(AuthRejected):
        await credentials.log_in(server.attempt, server.can_go_on)
    assert not await credentials.has_changed()
    assert not await credentials.has_changed()
    password_file.write_text("new\n")
    assert await credentials.has_changed()
    await credentials.log_in(server.attempt, server.can_go_on)
    assert server.tried == ["old", "new"]


async def test_a_secret_that_cannot_be_read_again(credentials: Credentials, password_file: Path) -> None:
    server = Server("new", on_refusal=password_file.unlink)
    with pytest.raises(SecretUnavailable):
        await credentials.log_in(server.attempt, server.can_go_on)
    with pytest.raises(AuthRejected):
        await credentials.log_in(server.attempt, server.can_go_on)
    password_file.write_text("new\n")
    password_file.chmod(0o600)
    assert await credentials.has_changed()
    await credentials.log_in(server.attempt, server.can_go_on)
    assert server.tried == ["old", "new"]


async def test_sessions_that_start_together_try_a_wrong_password_once(credentials: Credentials) -> None:
    server = Server("new")
    tries = [credentials.log_in(server.attempt, server.can_go_on) for _ in range(8)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert all(isinstance(result, AuthRejected) for result in results)
    assert server.tried == ["old"]


async def test_a_token_is_asked_for_each_time(tmp_path: Path) -> None:
    counter = tmp_path / "count"
    command = TokenCommand(("sh", "-c", f"echo x >> {counter}; wc -l < {counter}"))
    credentials = Credentials(Imap(host="h.example", port=993, user="u", secret=command), "work")
    tried: list[str] = []

    async def take(secret: str) -> None:
        tried.append(secret)

    for _ in range(3):
        await credentials.log_in(take, lambda: True)
    assert tried == ["1", "2", "3"]
