"""Logging in to a real Dovecot by each mechanism, and `maild login` at a real token endpoint that Dovecot asks too."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SecretScan
from tests.live.conftest import started
from tests.servers.authorization import AuthorizationServer
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.live

RUN_S = 60.0
USER = "jo"
MECHANISMS = "plain login scram-sha-256 xoauth2 oauthbearer"
_OAUTH2 = """\
introspection_url = {url}/introspect?access_token=
introspection_mode = get
username_attribute = username
active_attribute = active
active_value = true
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[AuthorizationServer]:
    with AuthorizationServer(user=USER) as server:
        yield server


@pytest.fixture(scope="module")
def mail(provider: AuthorizationServer) -> Iterator[Dovecot]:
    """A Dovecot with all mechanisms, that asks the provider about tokens; one message in INBOX."""
    directory = Path(tempfile.mkdtemp(prefix="maild-oauth2-"))
    directory.chmod(0o711)
    oauth2 = directory / "oauth2.conf"
    oauth2.write_text(_OAUTH2.format(url=provider.url))
    passdb = f"passdb {{\n  driver = oauth2\n  mechanisms = xoauth2 oauthbearer\n  args = {oauth2}\n}}"
    try:
        with started(settings=f"auth_mechanisms = {MECHANISMS}\n{passdb}\nauth_verbose = yes") as server:
            server.import_messages(USER, "INBOX", [(b"Subject: hello\r\n\r\nbody\r\n", (), 1_700_000_000)])
            yield server
    finally:
        shutil.rmtree(directory)


@dataclass(slots=True)
class Account:
    """A config with one account, and `maild` as a process of its own."""

    directory: Path
    server: Dovecot
    scan: SecretScan
    secret: str
    settings: str = ""

    def argv(self, *arguments: str) -> list[str]:
        config = self.directory / "maild.toml"
        config.write_text(
            f'[maild]\nstate_dir = "{self.directory}/state"\nmaildir = "{self.directory}/Mail"\n'
            f'[accounts.work]\naddress = "me@example.org"\n[accounts.work.imap]\nhost = "localhost"\n'
            f'port = {self.server.imaps_port}\nca_file = "{self.server.ca_file}"\nuser = "{USER}"\n'
            f"{self.secret}\n{self.settings}\n"
        )
        config.chmod(0o600)
        return [sys.executable, "-m", "maild", "-v", "-c", str(config), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        ran = subprocess.run(
            self.argv(*arguments), capture_output=True, text=True, check=False, timeout=RUN_S, env=environment()
        )
        self.scan.lines += [ran.stdout, ran.stderr]
        return ran

    def sync(self) -> None:
        ran = self.run("sync")
        assert ran.returncode == 0, ran.stderr + ran.stdout
        assert len(list((self.directory / "Mail/work/INBOX/new").iterdir())) == 1

    def fail(self) -> str:
        ran = self.run("sync", "--json")
        assert ran.returncode == 1, ran.stderr + ran.stdout
        assert "Traceback" not in ran.stderr
        return str(json.loads(ran.stdout)["accounts"]["work"]["error"])

    @property
    def token_file(self) -> Path:
        return self.directory / "state/tokens/work.json"

    def tokens(self) -> dict[str, str]:
        """What is stored; from now on secret to the scan."""
        found: dict[str, str] = json.loads(self.token_file.read_text())
        self.scan.add(found["access_token"])
        self.scan.add(found["refresh_token"])
        return found


def environment() -> dict[str, str]:
    hidden = ("MAILD", "DISPLAY", "WAYLAND", "DBUS")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


def shown_address(process: subprocess.Popen[str], start: str) -> str:
    """The line of its output that is an address."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().startswith(start):
            return line.strip()
        assert "Waiting" not in line, "it showed no address"
    raise AssertionError("it ended without an address")


def logins_by(server: Dovecot, method: str) -> int:
    return server.log().count(f"Login: user=<{USER}>, method={method},")


@pytest.mark.parametrize(
    ("auth", "method"),
    [("auto", "SCRAM-SHA-256"), ("scram-sha-256", "SCRAM-SHA-256"), ("plain", "PLAIN"), ("login", "PLAIN")],
)
def test_passwords(auth: str, method: str, mail: Dovecot, tmp_path: Path, secret_scan: SecretScan) -> None:
    before = logins_by(mail, method)
    Account(tmp_path, mail, secret_scan, f'password = "{mail.password}"', f'auth = "{auth}"').sync()
    assert logins_by(mail, method) > before


@pytest.mark.parametrize("auth", ["auto", "plain", "login"])
def test_a_wrong_password(auth: str, mail: Dovecot, tmp_path: Path, secret_scan: SecretScan) -> None:
    wrong = secret_scan.add("hunter2 hunter2")
    text = Account(tmp_path, mail, secret_scan, f'password = "{wrong}"', f'auth = "{auth}"').fail()
    assert f"refused to log in {USER}: Authentication failed" in text
    assert "check user and password" in text


def test_what_dovecot_does_not_offer(mail: Dovecot, tmp_path: Path, secret_scan: SecretScan) -> None:
    account = Account(
        tmp_path, mail, secret_scan, "", f'auth = "external"\nclient_cert = "{mail._certificate.chain_file}"'
    )
    account.settings += f'\nclient_key = "{mail._certificate.key_file}"'
    assert "does not offer to log in by EXTERNAL, but by" in account.fail()


@pytest.fixture
def account(mail: Dovecot, provider: AuthorizationServer, tmp_path: Path, secret_scan: SecretScan) -> Account:
    provider.journal.clear()
    return Account(tmp_path, mail, secret_scan, f"oauth2 = {provider.config()}")


@pytest.mark.parametrize(("auth", "method"), [("auto", "OAUTHBEARER"), ("xoauth2", "XOAUTH2")])
def test_by_device_code_to_the_mail(auth: str, method: str, account: Account, provider: AuthorizationServer) -> None:
    account.settings = f'auth = "{auth}"'
    assert "nobody has logged in yet; run maild login work" in account.fail()
    provider.pending = 2
    ran = account.run("login", "work", "--device")
    assert ran.returncode == 0, ran.stderr
    assert f"Open {provider.url}/enter in any browser" in ran.stdout
    assert "Enter the code WDJB-MJHT" in ran.stdout
    assert f"The tokens are in {account.token_file} (mode 0600)" in ran.stdout
    assert stat.S_IMODE(account.token_file.stat().st_mode) == 0o600
    tokens, before = account.tokens(), logins_by(account.server, method)
    account.sync()
    assert logins_by(account.server, method) > before
    assert account.tokens() == tokens


def test_by_browser_to_the_mail(account: Account, provider: AuthorizationServer) -> None:
    process = subprocess.Popen(
        account.argv("login", "work", "--browser"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        with urllib.request.urlopen(provider.consent(shown_address(process, provider.url)), timeout=RUN_S) as page:  # noqa: S310
            assert b"You are logged in" in page.read()
        said, complained = process.communicate(timeout=RUN_S)
    finally:
        process.kill()
    assert process.returncode == 0, complained
    assert "Logged in." in said
    account.tokens()
    account.sync()


def test_tokens_are_renewed_when_they_are_old_or_refused(account: Account, provider: AuthorizationServer) -> None:
    assert account.run("login", "work", "--device").returncode == 0
    first = account.tokens()
    account.token_file.write_text(json.dumps(first | {"expires_at": 1}))
    account.sync()
    second = account.tokens()
    assert second["access_token"] != first["access_token"]
    provider.access.discard(second["access_token"])  # taken away before its time: Dovecot refuses it
    account.sync()
    third = account.tokens()
    assert third["access_token"] not in (first["access_token"], second["access_token"])
    provider.access.clear()
    provider.refresh.clear()
    assert "the provider refused to refresh its token (invalid_grant" in account.fail()
    assert account.run("login", "work", "--device").returncode == 0
    account.tokens()
    account.sync()


def test_a_token_that_stays_refused_is_the_end(account: Account, provider: AuthorizationServer) -> None:
    """The provider gives tokens, but not to somebody whom the mail server lets in."""
    assert account.run("login", "work", "--device").returncode == 0
    account.tokens()
    provider.user = "somebody else"
    try:
        text = account.fail()
    finally:
        provider.user = USER
    assert "refused to log in" in text
    assert "run maild login work" in text
    account.tokens()


def test_token_command(account: Account, provider: AuthorizationServer) -> None:
    token = account.scan.add("a token from elsewhere")
    provider.access.add(token)
    account.secret = f'token_command = ["echo", "{token}"]'
    account.sync()
    provider.access.discard(token)
    assert "check user and what token_command prints" in account.fail()


def test_login_of_what_needs_none(account: Account) -> None:
    assert account.run("login", "nobody").returncode == 64
    account.secret = 'password = "x"'
    ran = account.run("login", "work")
    assert (ran.returncode, ran.stdout) == (64, "")
    assert "has no oauth2 in its config" in ran.stderr
