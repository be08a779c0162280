"""OAuth 2.0 against a scripted authorisation server: both ways to log in, refresh, rotation, refusal, the store."""

from __future__ import annotations

import asyncio
import json
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import structlog

from maild.config import OAuth2
from maild.core.errors import ConfigError, ConnectionLost, MaildError, ProtocolViolation, SecretUnavailable, Unavailable
from maild.remote import auth, oauth, oauth_login, tokens
from maild.remote.oauth import access_token, provider_of
from maild.remote.oauth_login import DeviceCode, by_browser, by_device
from maild.remote.tokens import FileStore, Tokens, open_store
from tests.servers.authorization import CLIENT_ID, AuthorizationServer

DEADLINE_S = 10.0
START = 1_800_000_000.0


@pytest.fixture(autouse=True)
def nothing_read_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_read_so_far", set())


@pytest.fixture
def provider() -> Iterator[AuthorizationServer]:
    with AuthorizationServer() as server:
        yield server


@pytest.fixture
def oauth2(provider: AuthorizationServer, tmp_path: Path) -> OAuth2:
    return OAuth2(
        provider="test",
        client_id=CLIENT_ID,
        authorization_endpoint=f"{provider.url}/authorize",
        token_endpoint=f"{provider.url}/token",
        device_authorization_endpoint=f"{provider.url}/device",
        scopes=("mail", "more"),
        owner="work",
        token_file=tmp_path / "state" / "tokens" / "work.json",
    )


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def logged_in(oauth2: OAuth2, provider: AuthorizationServer, *, life_s: int = 3600, **more: object) -> Tokens:
    """A login as `maild login` would have left it at START."""
    provider.access.add("access-0")
    provider.refresh.add("refresh-0")
    given = Tokens("access-0", "refresh-0", int(START) + life_s, 0, CLIENT_ID, oauth2.token_endpoint)
    given = replace(given, **more)  # type: ignore[arg-type]
    oauth_login.save(oauth2, given)
    return given


def stored(oauth2: OAuth2) -> Tokens:
    found = open_store(oauth2).load()
    assert found is not None
    return found


# -- by device code


async def no_wait(_seconds: float) -> None:
    await asyncio.sleep(0)


async def test_a_login_by_device_code(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    provider.pending = 3
    shown: list[DeviceCode] = []
    async with asyncio.timeout(DEADLINE_S):
        given = await by_device(oauth2, shown.append, no_wait, Clock())
    assert shown == [DeviceCode(f"{provider.url}/enter", "WDJB-MJHT", f"{provider.url}/enter?code=WDJB-MJHT", 900.0)]
    assert provider.asked("/device") == [{"client_id": CLIENT_ID, "scope": "mail more"}]
    assert len(provider.asked("/token")) == 4
    assert given.access_token in provider.access
    assert given.refresh_token in provider.refresh
    assert given.expires_at == START + 3600
    assert {given.access_token, given.refresh_token} <= set(auth.kept_out_of_log())


async def test_a_provider_that_is_asked_too_often_is_asked_less(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    slow, pending = (json.dumps({"error": name}) for name in ("slow_down", "authorization_pending"))
    device = {"device_code": "d", "user_code": "u", "verification_url": "https://e.example", "expires_in": 900}
    provider.answers = [(200, json.dumps(device)), (400, slow), (400, pending), (503, "<html>busy"), (400, "{}")]
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(SecretUnavailable):
            await by_device(oauth2, lambda _: None, wait, Clock())
    assert waits == [5.0, 10.0, 10.0, 20.0]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("access_denied", "the login was declined"),
        ("expired_token", "the code was not entered in time"),
        ("odd\x1b[31m", "odd [31m"),
    ],
)
async def test_a_device_login_that_is_refused(
    error: str, text: str, provider: AuthorizationServer, oauth2: OAuth2
) -> None:
    def refuse(_code: DeviceCode) -> None:
        provider.answers = [(400, json.dumps({"error": error}))]

    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(SecretUnavailable) as refusal:
            await by_device(oauth2, refuse, no_wait, Clock())
    assert text in refusal.value.text
    assert "run maild login work" in refusal.value.hint
    assert not (oauth2.token_file or Path()).exists()


async def test_a_device_code_that_is_never_entered(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    provider.pending = 10_000
    device = {"device_code": "d", "user_code": "u", "verification_uri": "https://e.example", "expires_in": 20}
    provider.answers = [(200, json.dumps(device))]
    provider._devices.add("d")
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(SecretUnavailable, match="not entered in time"):
            await by_device(oauth2, lambda _: None, no_wait, Clock())
    assert len(provider.asked("/token")) == 4


@pytest.mark.parametrize("answer", [(200, "{}"), (200, "[]"), (404, "<html>"), (200, '{"expires_in": "x"}'), (500, "")])
async def test_what_is_no_device_endpoint(
    answer: tuple[int, str], provider: AuthorizationServer, oauth2: OAuth2
) -> None:
    provider.answers = [answer]
    with pytest.raises(ProtocolViolation, match="does not answer as a device endpoint"):
        await by_device(oauth2, lambda _: None, no_wait, Clock())


async def test_google_has_no_mail_by_device_code() -> None:
    google = OAuth2("google", "1", owner="work")
    assert not oauth_login.can_use_device(google)
    with pytest.raises(ConfigError, match="use --browser"):
        await by_device(google, lambda _: None, no_wait, Clock())


# -- by browser


async def browse(address: str, method: str = "GET") -> str:
    """Fetch an address as a browser would; the whole answer."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"{method} {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.decode()


class Browser:
    """Runs `by_browser`, and has the address that it showed."""

    def __init__(self, oauth2: OAuth2) -> None:
        self._shown: asyncio.Queue[str] = asyncio.Queue()
        self.task = asyncio.create_task(by_browser(oauth2, self._shown.put_nowait, Clock()))

    async def address(self) -> str:
        return await self._shown.get()

    async def result(self) -> Tokens:
        async with asyncio.timeout(DEADLINE_S):
            return await self.task


async def test_a_login_by_browser(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    browser = Browser(oauth2)
    address = await browser.address()
    assert address.startswith(f"{provider.url}/authorize?")
    answer = await browse(provider.consent(address))
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert "You are logged in" in answer
    given = await browser.result()
    assert given.access_token in provider.access
    assert given.refresh_token in provider.refresh
    (asked,) = provider.asked("/authorize")
    assert asked["scope"] == "mail more"
    assert asked["response_type"] == "code"
    assert urlsplit(asked["redirect_uri"]).hostname == "127.0.0.1"
    (form,) = provider.asked("/token")
    assert len(form["code_verifier"]) >= 43
    assert form["code_verifier"] not in address
    hidden = set(auth.kept_out_of_log())
    assert {form["code"], form["code_verifier"], asked["state"]} <= hidden


async def test_a_stranger_s_request_changes_nothing(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    browser = Browser(oauth2)
    address = await browser.address()
    redirect = provider.consent(address)
    root = redirect.partition("?")[0]
    for other in (f"{root}?code=stolen&state=wrong", f"{root}?code=stolen", f"{root}?", f"{root}favicon.ico?"):
        assert (await browse(other)).startswith("HTTP/1.1 404 ")
    assert (await browse(redirect, "POST")).startswith("HTTP/1.1 404 ")
    assert (await browse(f"{redirect}&state=again")).startswith("HTTP/1.1 404 ")
    _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(root).port)
    writer.write(b"half a request")
    writer.close()
    assert (await browse(redirect)).startswith("HTTP/1.1 200 ")
    assert (await browser.result()).access_token in provider.access


async def test_a_login_that_the_user_declines(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    browser = Browser(oauth2)
    address = await browser.address()
    query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    answer = await browse(f"{query['redirect_uri']}?error=access_denied&error_description=No%1B&state={query['state']}")
    assert "did not succeed" in answer
    with pytest.raises(SecretUnavailable, match=r"access_denied: No .*; to try again, run maild login work"):
        await browser.result()
    assert provider.asked("/token") == []


async def test_a_code_that_the_provider_does_not_take(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    browser = Browser(oauth2)
    redirect = provider.consent(await browser.address())
    provider._codes.clear()
    await browse(redirect)
    with pytest.raises(SecretUnavailable, match="invalid_grant"):
        await browser.result()


async def test_giving_up_closes_the_port(oauth2: OAuth2, provider: AuthorizationServer) -> None:
    browser = Browser(oauth2)
    query = parse_qs(urlsplit(await browser.address()).query)
    browser.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await browser.task
    with pytest.raises(OSError, match=r"refused|failed"):
        await browse(query["redirect_uri"][0])


async def test_a_client_secret_that_is_none_goes_along(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    provider.client_secret = "GOCSPX-public"
    browser = Browser(replace(oauth2, client_secret="GOCSPX-public"))
    await browse(provider.consent(await browser.address()))
    assert (await browser.result()).access_token in provider.access
    assert "GOCSPX-public" in auth.kept_out_of_log()


@pytest.mark.parametrize("name", ["google", "microsoft"])
async def test_known_providers_are_complete(name: str) -> None:
    known = provider_of(OAuth2(name, "1", owner="work"))
    assert known.authorization_endpoint.startswith("https://")
    assert known.token_endpoint.startswith("https://")
    assert known.scopes
    address = oauth_login._BrowserRequest(OAuth2(name, "1", owner="work")).address(4711)
    assert address.startswith(known.authorization_endpoint + "?")
    query = parse_qs(urlsplit(address).query)
    assert query["code_challenge_method"] == ["S256"]
    assert query["redirect_uri"] == [f"http://{known.redirect_host}:4711/"]
    assert ("offline" in query.get("access_type", [])) or "offline_access" in query["scope"][0]


# -- refreshing


async def test_a_token_that_holds_is_used_as_it_is(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider)
    clock = Clock()
    assert await access_token(oauth2, clock=clock) == "access-0"
    clock.now += 3600 - oauth.MARGIN_S - 1
    assert await access_token(oauth2, clock=clock) == "access-0"
    assert provider.journal == []


async def test_a_token_is_refreshed_before_its_end(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider)
    clock = Clock()
    clock.now += 3600 - oauth.MARGIN_S
    fresh = await access_token(oauth2, clock=clock)
    assert fresh in provider.access - {"access-0"}
    assert provider.asked("/token") == [
        {"grant_type": "refresh_token", "refresh_token": "refresh-0", "client_id": CLIENT_ID}
    ]
    assert stored(oauth2).access_token == fresh
    assert stored(oauth2).expires_at == int(clock.now) + 3600
    assert stored(oauth2).refresh_token in provider.refresh
    hidden = auth.kept_out_of_log()
    assert fresh in hidden
    assert "access-0" not in hidden
    assert "refresh-0" not in hidden


async def test_each_refresh_uses_the_newest_refresh_token(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider)
    clock = Clock()
    for _ in range(4):
        clock.now += 3600
        assert await access_token(oauth2, clock=clock) in provider.access
    assert len({form["refresh_token"] for form in provider.asked("/token")}) == 4


async def test_without_rotation_the_refresh_token_stays(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    provider.rotates = False
    logged_in(oauth2, provider, life_s=0, refresh_expires_at=int(START) + 10**8)
    await access_token(oauth2, clock=Clock())
    assert stored(oauth2).refresh_token == "refresh-0"
    assert stored(oauth2).refresh_expires_at == int(START) + 10**8


async def test_a_refused_token_is_replaced(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider)
    fresh = await access_token(oauth2, refused="access-0", clock=Clock())
    assert fresh != "access-0"
    assert await access_token(oauth2, refused="access-0", clock=Clock()) == fresh, "somebody else replaced it already"
    assert len(provider.asked("/token")) == 1


async def test_many_that_need_a_token_at_once_refresh_it_once(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider, life_s=0)
    found = await asyncio.gather(*(access_token(oauth2, clock=Clock()) for _ in range(10)))
    assert len(set(found)) == 1
    assert len(provider.asked("/token")) == 1


async def test_a_refresh_that_nobody_waits_for_is_kept(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    """Cancelled between request and answer: the old refresh token is spent, so the new one must be stored."""
    logged_in(oauth2, provider, life_s=0)
    is_asked, may_answer, is_saved = threading.Event(), threading.Event(), threading.Event()
    answer, save = provider.answer, FileStore.save

    def slow_answer(path: str, form: dict[str, str]) -> tuple[int, str]:
        is_asked.set()
        may_answer.wait(DEADLINE_S)
        return answer(path, form)

    def seen_save(store: FileStore, given: Tokens) -> None:
        save(store, given)
        is_saved.set()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AuthorizationServer, "answer", lambda _, path, form: slow_answer(path, form))
        patched.setattr(FileStore, "save", seen_save)
        task = asyncio.create_task(access_token(oauth2, clock=Clock()))
        assert await asyncio.to_thread(is_asked.wait, DEADLINE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_answer.set()
        assert await asyncio.to_thread(is_saved.wait, DEADLINE_S)
    assert stored(oauth2).refresh_token in provider.refresh


async def test_a_login_that_is_gone_needs_a_person(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider, life_s=0)
    provider.refresh.clear()
    with pytest.raises(SecretUnavailable) as refusal:
        await access_token(oauth2, clock=Clock())
    assert str(refusal.value) == (
        'account "work": the provider refused to refresh its token (invalid_grant: the refresh token is revoked); '
        "run maild login work"
    )
    assert stored(oauth2).refresh_token == "refresh-0"


@pytest.mark.parametrize(
    "answer",
    [(503, "<html>"), (500, '{"error":"server_error"}'), (429, "slow"), (400, '{"error":"temporarily_unavailable"}')],
)
async def test_a_provider_in_trouble_is_asked_again_later(
    answer: tuple[int, str], provider: AuthorizationServer, oauth2: OAuth2
) -> None:
    logged_in(oauth2, provider, life_s=0)
    provider.answers = [answer]
    with pytest.raises(Unavailable):
        await access_token(oauth2, clock=Clock())
    assert await access_token(oauth2, clock=Clock()) in provider.access


async def test_in_trouble_a_token_is_used_to_its_end(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider, life_s=60)
    provider.answers = [(503, "")]
    assert await access_token(oauth2, clock=Clock()) == "access-0"


async def test_a_provider_that_is_not_there(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider, life_s=0)
    provider.__exit__()
    with pytest.raises(ConnectionLost, match=r"cannot be asked for tokens: Connection refused"):
        await access_token(oauth2, clock=Clock())
    provider.__enter__()


async def test_a_redirect_is_not_followed(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider, life_s=0)
    with AuthorizationServer() as thief:
        provider.answers = [(status, f"{thief.url}/token") for status in (302, 307, 308)]
        for _ in range(3):
            with pytest.raises(MaildError):
                await access_token(oauth2, clock=Clock())
        assert thief.journal == []


@pytest.mark.parametrize(
    "body",
    [
        '{"access_token": 7, "token_type": "Bearer"}',
        '{"access_token": "a", "refresh_token": ["x"]}',
        '{"access_token": "a", "expires_in": "soon"}',
        "[" * 100_000,
        "[]",
        "7",
    ],
)
async def test_an_answer_that_holds_no_tokens(body: str, provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider, life_s=0)
    provider.answers = [(200, body)]
    with pytest.raises(MaildError):
        await access_token(oauth2, clock=Clock())
    assert stored(oauth2).access_token == "access-0"


async def test_a_dying_refresh_token_is_warned_of(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider, life_s=0)
    provider.refresh_life_s = oauth.WARNING_S - 1
    with structlog.testing.capture_logs() as logged:
        await access_token(oauth2, clock=Clock())
    (warning,) = [event for event in logged if event["event"] == "login.needed"]
    assert warning["log_level"] == "warning"
    assert warning["duration_s"] == oauth.WARNING_S - 1
    assert warning["hint"] == "run maild login work"
    provider.refresh_life_s = oauth.WARNING_S + 1
    with structlog.testing.capture_logs() as logged:
        await access_token(oauth2, refused=stored(oauth2).access_token, clock=Clock())
    assert [event["event"] for event in logged] == ["token.refreshed"]


async def test_a_login_elsewhere_is_not_used(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    """Tokens never go to another token endpoint than the one they came from."""
    logged_in(oauth2, provider)
    with AuthorizationServer() as other:
        moved = replace(oauth2, token_endpoint=f"{other.url}/token")
        with pytest.raises(SecretUnavailable, match="with another provider or client_id; run maild login work"):
            await access_token(moved, clock=Clock())
        assert other.journal == []
    with pytest.raises(SecretUnavailable, match="another provider or client_id"):
        await access_token(replace(oauth2, client_id="other"), clock=Clock())


async def test_nothing_to_refresh_with(provider: AuthorizationServer, oauth2: OAuth2) -> None:
    logged_in(oauth2, provider, life_s=0, refresh_token="")
    with pytest.raises(SecretUnavailable, match="gave none to refresh it with; run maild login work"):
        await access_token(oauth2, clock=Clock())


# -- the store


def test_the_file_is_for_its_owner_only(oauth2: OAuth2, provider: AuthorizationServer) -> None:
    logged_in(oauth2, provider)
    path = oauth2.token_file
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["work.json", "work.lock"]
    path.chmod(0o640)
    with pytest.raises(SecretUnavailable, match=rf"others have access to it \(mode 0640\); run chmod 600 {path}"):
        open_store(oauth2).load()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"access_token": 7}', b'{"expires_at": 1}', b"\xff", b"[" * 10**5]
)
def test_a_file_that_holds_no_tokens(content: bytes, oauth2: OAuth2, provider: AuthorizationServer) -> None:
    logged_in(oauth2, provider)
    assert oauth2.token_file is not None
    oauth2.token_file.write_bytes(content)
    with pytest.raises(SecretUnavailable, match="holds no tokens; remove it and run maild login"):
        open_store(oauth2).load()


def test_keys_of_a_later_version_do_no_harm(oauth2: OAuth2, provider: AuthorizationServer) -> None:
    given = logged_in(oauth2, provider)
    path = oauth2.token_file
    assert path is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dpop_key": "x"}))
    assert open_store(oauth2).load() == given


def test_a_failed_write_leaves_the_old_tokens(
    oauth2: OAuth2, provider: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = logged_in(oauth2, provider)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokens.os, "fsync", full)
    with pytest.raises(SecretUnavailable, match="No space left on device"):
        open_store(oauth2).save(replace(given, access_token="new"))
    assert open_store(oauth2).load() == given
    assert oauth2.token_file is not None
    assert sorted(entry.name for entry in oauth2.token_file.parent.iterdir()) == ["work.json", "work.lock"]


def test_the_repr_shows_no_token() -> None:
    assert "secret" not in repr(Tokens("secret-a", "secret-r"))
    assert "secret" not in repr(OAuth2("x", "1", "secret"))


async def test_logging_out_is_removing(oauth2: OAuth2, provider: AuthorizationServer) -> None:
    logged_in(oauth2, provider)
    store = open_store(oauth2)
    store.remove()
    store.remove()
    assert store.load() is None
    with pytest.raises(SecretUnavailable, match="nobody has logged in yet; run maild login work"):
        await access_token(oauth2)


async def test_the_real_clock_is_the_default(oauth2: OAuth2, provider: AuthorizationServer) -> None:
    logged_in(oauth2, provider, expires_at=int(time.time()) + 3600)
    assert await access_token(oauth2) == "access-0"
