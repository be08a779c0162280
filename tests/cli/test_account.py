"""`maild account`: set up without questions, changed, listed, removed; and no password is ever in what it prints."""

from __future__ import annotations

import io
import json
import re
import shlex
import stat
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from maild.cli import main
from maild.commands import account
from maild.commands.options import all_options
from maild.config import examine
from maild.testing.imap import ImapServer
from maild.testing.pop3 import Pop3Server
from maild.testing.smtp import SmtpServer
from maild.testing.store import Store
from tests.conftest import SecretScan
from tests.servers.certificates import Authority
from tests.servers.dovecot import free_ports
from tests.servers.running import running

ADDRESS = "me@mail.example"
OLD, NEW = "first pass phrase", "second pass phrase"


@dataclass(slots=True)
class Place:
    """A home with nothing in it, and three servers that know one user."""

    home: Path
    ca_file: Path
    imap: ImapServer
    pop3: Pop3Server
    smtp: SmtpServer
    users: dict[str, str]
    capsys: pytest.CaptureFixture[str]
    said: str = field(default="")

    def run(self, *arguments: str) -> int:
        status = main(list(arguments))
        out, err = self.capsys.readouterr()
        self.said += out + err
        return status

    def add(self, *arguments: str, smtp: bool = True, address: str = ADDRESS) -> int:
        imap = ["--imap-host", "localhost", "--imap-port", str(self.imap.port)]
        sending = ["--smtp-host", "localhost", "--smtp-port", str(self.smtp.port)] if smtp else []
        user = ["--ca-file", str(self.ca_file), *(["--user", ADDRESS] if address != ADDRESS else [])]
        return self.run("account", "add", address, *imap, *sending, *user, *arguments)

    def password_file(self, password: str = OLD, mode: int = 0o600) -> str:
        path = self.home / "password"
        path.touch(mode=mode)
        path.write_text(password + "\n")
        return str(path)

    @property
    def config(self) -> Path:
        return self.home / ".config/maild/maild.toml"

    def account(self, name: str = "mail") -> Any:
        return tomllib.loads((self.config.parent / f"accounts.d/{name}.toml").read_text())["accounts"][name]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def place(
    tmp_path: Path,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    secret_scan: SecretScan,
) -> Iterator[Place]:
    for name in ("MAILD_CONFIG", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    tls = authority.good().server_context()
    users = {ADDRESS: secret_scan.add(OLD)}
    secret_scan.add(NEW)
    store = Store()
    store.create("Sent", special_use="\\Sent")
    imap, pop3 = (
        ImapServer(store, users, ssl_context=tls),
        Pop3Server([b"Subject: 1\r\n\r\nx\r\n"], users, ssl_context=tls),
    )
    smtp = SmtpServer(users=users, tls=tls)
    with running(imap, pop3, smtp):
        found = Place(tmp_path, authority.ca_file, imap, pop3, smtp, users, capsys)
        yield found
    secret_scan.lines += found.said.splitlines()


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_from_nothing_to_mail(place: Place) -> None:
    assert place.add("--password-file", place.password_file()) == 0
    assert place.account() == {
        "address": ADDRESS,
        "imap": {
            "host": "localhost",
            "port": place.imap.port,
            "ca_file": str(place.ca_file),
            "password_file": str(place.home / "password"),
        },
        "smtp": {"host": "localhost", "port": place.smtp.port, "ca_file": str(place.ca_file)},
    }
    assert {mode(place.config), mode(place.config.parent / "accounts.d/mail.toml")} == {0o600}
    assert "Login for receiving works" in place.said
    assert "Login for sending works" in place.said
    assert "Sent (sent)" in place.said
    assert place.run("check") == 0
    assert place.run("sync", "mail") == 0
    assert (place.home / "Mail/mail/INBOX/new").is_dir()


def test_a_password_from_standard_input_is_kept_in_a_file_of_its_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, OLD + "\n")
    assert place.add("--password-stdin") == 0
    kept = place.config.parent / "mail.password"
    assert (kept.read_text(), mode(kept)) == (OLD + "\n", 0o600)
    assert place.run("sync") == 0


def test_nothing_is_written_where_the_password_is_refused(place: Place) -> None:
    assert place.add("--password-file", place.password_file(NEW)) == 1
    assert "refused to log in" in place.said
    assert not place.config.parent.exists()


def test_it_is_said_that_nothing_was_written(place: Place) -> None:
    server = ["--imap-host", "localhost", "--imap-port", str(free_ports(1)[0])]
    assert place.run("account", "add", ADDRESS, *server, "--password-file", place.password_file()) == 1
    assert "connection refused; check host, port and the network; nothing was written" in place.said
    assert not place.config.exists()


def test_nothing_is_written_where_the_certificate_is_not_trusted(place: Place, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    assert place.add("--password-file", place.password_file(), "--ca-file", str(other.ca_file)) == 1
    assert "cannot be trusted" in place.said
    assert place.imap.count("LOGIN") + place.imap.count("AUTHENTICATE") == 0
    assert not place.config.parent.exists()


def test_a_password_file_that_others_can_read_is_not_used(place: Place) -> None:
    assert place.add("--password-file", place.password_file(mode=0o644)) == 1
    assert "others have access" in place.said


def test_pop3(place: Place) -> None:
    arguments = ["--pop3-host", "localhost", "--pop3-port", str(place.pop3.port), "--ca-file", str(place.ca_file)]
    assert (
        place.run("account", "add", ADDRESS, "--name", "isp", *arguments, "--password-file", place.password_file()) == 0
    )
    assert list(place.account("isp")) == ["address", "pop3"]
    assert "Messages on the server: 1." in place.said
    assert "It cannot send" in place.said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "must be a plain address"),
        ([ADDRESS, "--imap-host", "localhost"], "no password, and no terminal"),
        ([ADDRESS, "--imap-host", "a.example", "--pop3-host", "b.example"], "not both"),
        ([ADDRESS, "--imap-host", "a.example", "--oauth2", "google"], "needs --client-id"),
        ([ADDRESS, "--imap-host", "a.example", "--smtp-port", "25"], "--smtp-port needs --smtp-host"),
        ([ADDRESS, "--imap-tls", "starttls"], "--imap-tls needs --imap-host"),
        (
            [
                ADDRESS,
                "--imap-host",
                "a.example",
                "--oauth2",
                "google",
                "--client-id",
                "1",
                "--client-secret-file",
                "/no",
            ],
            "--client-secret-file cannot be read",
        ),
        (
            [ADDRESS, "--imap-host", "a.example", "--password-command", "pass 'mail"],
            "--password-command cannot be read",
        ),
    ],
)
def test_what_is_missing_is_wrong_usage(
    place: Place, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "")
    assert place.run("account", "add", *arguments) == 64
    assert said in place.said


def test_a_name_that_is_taken_is_not_used_twice(place: Place) -> None:
    assert place.add("--password-file", place.password_file()) == 0
    assert place.add("--password-file", place.password_file(), "--name", "mail") == 64
    assert place.add("--password-file", place.password_file(), address="you@mail.example") == 0
    assert place.account("you-mail")["address"] == "you@mail.example"


def test_an_address_is_not_set_up_twice_by_mistake(place: Place) -> None:
    assert place.add("--password-file", place.password_file()) == 0
    assert place.add("--password-file", place.password_file(), address=ADDRESS.upper()) == 64
    assert "is set up already, as account 'mail'; a new password: maild account passwd mail" in place.said
    assert place.add("--password-file", place.password_file(), "--name", "again") == 0


def test_a_tilde_that_no_shell_expanded(place: Place) -> None:
    place.password_file()
    assert place.add("--password-file=~/password", "--maildir=~/Post/mail") == 0
    assert place.account()["maildir"] == f"{place.home}/Post/mail"
    assert place.account()["imap"]["password_file"] == f"{place.home}/password"


def test_a_broken_config_stays_as_it_is(place: Place) -> None:
    place.config.parent.mkdir(parents=True)
    place.config.write_text("[maild]\nmaildirr = 1\n")
    assert place.add("--password-file", place.password_file()) == 78
    assert "maildirr" in place.said
    assert list(place.config.parent.iterdir()) == [place.config]


def test_the_users_own_file_is_not_touched(place: Place) -> None:
    place.config.parent.mkdir(parents=True)
    place.config.write_text("# mine\n[maild]\nmaildir = '~/Post'\n")
    assert place.add("--password-file", place.password_file()) == 0
    assert place.config.read_text() == "# mine\n[maild]\nmaildir = '~/Post'\n"
    assert f"its mail will be in {place.home}/Post/mail" in place.said


def test_oauth2_is_written_for_maild_login(place: Place) -> None:
    assert place.add("--oauth2", "google", "--client-id", "1234.apps.example") == 0
    assert place.account()["imap"]["oauth2"] == {"provider": "google", "client_id": "1234.apps.example"}
    assert "maild login mail" in place.said


def test_list(place: Place) -> None:
    place.add("--password-file", place.password_file())
    place.said = ""
    assert place.run("account", "list", "--json") == 0
    (found,) = json.loads(place.said)
    assert (found["name"], found["imap"]["user"]) == ("mail", ADDRESS)
    assert place.run("account", "list") == 0
    assert f"IMAP      {ADDRESS} at localhost:{place.imap.port}" in place.said
    assert f"password  the file {place.home}" in place.said


def test_passwd_is_tested_first_and_then_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("--password-file", place.password_file())
    typed(monkeypatch, NEW + "\n")
    assert place.run("account", "passwd", "mail") == 1
    assert (place.home / "password").read_text() == OLD + "\n"
    assert "only the provider can replace" in place.said
    place.users[ADDRESS] = NEW
    typed(monkeypatch, NEW + "\n")
    assert place.run("account", "passwd", "mail") == 0
    assert ((place.home / "password").read_text(), mode(place.home / "password")) == (NEW + "\n", 0o600)
    assert place.run("sync") == 0


def test_passwd_says_where_a_password_is_that_maild_does_not_keep(place: Place) -> None:
    place.add("--password-command", f"cat {place.password_file()}")
    assert place.run("account", "passwd", "mail") == 1
    assert "comes from the program cat" in place.said


def test_remove_keeps_the_mail(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, OLD)
    place.add("--password-stdin")
    place.run("sync")
    assert place.run("account", "remove", "mail") == 64
    assert place.run("account", "remove", "mail", "--yes") == 0
    assert (place.home / "Mail/mail/INBOX").is_dir()
    assert f"Its mail stays in {place.home}/Mail/mail" in place.said
    assert sorted(path.name for path in place.config.parent.iterdir()) == ["accounts.d", "maild.toml"]
    place.said = ""
    assert place.run("account", "list", "--json") == 0
    assert place.said == "[]\n"
    assert place.run("account", "list") == 0
    assert "there is no account yet" in place.said


def test_what_is_left_in_the_outbox_of_a_removed_account_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.add("--password-file", place.password_file())
    message = io.TextIOWrapper(io.BytesIO(b"Subject: x\n\nx\n"))
    monkeypatch.setattr(sys, "stdin", message)
    assert place.run("sendmail", "you@mail.example") == 0
    place.said = ""
    assert place.run("account", "remove", "mail", "--yes") == 0
    assert "In the outbox of it: 1. They wait for an account of this name" in place.said


def test_an_account_in_the_users_own_file_is_not_removed(place: Place) -> None:
    place.config.parent.mkdir(parents=True)
    text = '[accounts.own]\naddress = "a@b.example"\nsmtp = { host = "b.example", password_command = ["pass"] }\n'
    place.config.write_text(text)
    assert place.run("account", "remove", "own", "--yes") == 1
    assert f"take the tables [accounts.own] and below out of {place.config}" in place.said
    assert place.config.read_text() == text


@pytest.mark.parametrize("action", ["passwd", "remove"])
def test_an_account_that_is_none(place: Place, action: str) -> None:
    place.add("--password-file", place.password_file())
    assert place.run("account", action, "nobody") == 64
    assert "there are: mail" in place.said


def test_a_provider_without_passwords_says_what_it_takes(place: Place) -> None:
    assert place.run("account", "add", "me@outlook.com", "--password-file", place.password_file()) == 64
    assert "takes no password; add --oauth2 microsoft" in place.said


def test_a_known_provider_is_set_up_without_asking_anybody(place: Place) -> None:
    arguments = ["--password-file", place.password_file(), "--no-test"]
    assert place.run("account", "add", "me@posteo.de", *arguments) == 0
    assert place.account("posteo") == {
        "address": "me@posteo.de",
        "imap": {"host": "posteo.de", "password_file": str(place.home / "password")},
        "smtp": {"host": "posteo.de"},
    }
    assert "Found by maild's table of providers:" in place.said


def test_where_the_user_name_differs_between_the_servers(place: Place) -> None:
    arguments = ["--password-file", place.password_file(), "--no-test", "--yes"]
    assert place.run("account", "add", "me@icloud.com", *arguments) == 0
    assert place.run("account", "list", "--json") == 0
    listed = place.said[place.said.index("[\n") :]
    (found,) = json.loads(listed)
    assert (found["imap"]["user"], found["smtp"]["user"]) == ("me", "me@icloud.com")


README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def readme_commands() -> list[str]:
    return re.findall(r"^    maild ((?!sendmail)[a-z]\w*\b[^#\n]*)", README, re.MULTILINE)


def test_the_readme_shows_how() -> None:
    shown = {line.split()[0] for line in readme_commands()}
    assert {"account", "sync", "run", "outbox"} <= shown


@pytest.mark.parametrize("text", re.findall(r"^```toml\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
def test_what_the_readme_shows_is_a_good_config(text: str, tmp_path: Path) -> None:
    account = (
        '[accounts.another]\naddress = "me@example.net"\nsmtp = { host = "h.example", password_command = ["x"] }\n'
    )
    (tmp_path / "maild.toml").write_text(account + text)
    assert examine(tmp_path / "maild.toml").errors == ()


@pytest.mark.parametrize("line", readme_commands())
def test_what_the_readme_shows_can_be_typed(line: str) -> None:
    words = shlex.split(line.partition("<")[0])
    assert all_options().parse_args(words).command == words[0]


def test_a_running_daemon_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def answer(state_dir: Path, request: object, _timeout_s: float) -> object:
        asked.append((state_dir, request))
        return {"changed": ["mail"]}

    monkeypatch.setattr(account, "ask", answer)
    assert place.add("--password-file", place.password_file()) == 0
    assert asked == [(place.home / ".local/state/maild", {"ask": "reload"})]
    assert "The daemon that runs knows it now." in place.said
