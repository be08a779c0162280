"""Which files are read, what their keys become, and what is filled in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from maild.config import (
    Config,
    DeletionLimit,
    Hooks,
    NoSecret,
    OAuth2,
    Password,
    PasswordCommand,
    PasswordCredential,
    PasswordFile,
    PasswordKeyring,
    Secret,
    TokenCommand,
    examine,
    load,
)
from maild.core.errors import ConfigError

SMALLEST = """
[accounts.work]
address = "me@example.org"
[accounts.work.imap]
host = "imap.example.org"
password_command = ["pass", "mail/work"]
"""

EVERYTHING = """
[maild]
maildir = "$MAIL/./box/../mail"
state_dir = "${STATE}/maild"
log_level = "warning"
log_format = "json"
default_account = "isp"

[hooks]
on_new_mail = ["~/bin/new", "~", "$MAIL"]
on_change = ["changed"]
on_failure = ["failed"]

[accounts.work]
address = "me@example.org"
aliases = ["I@example.org", "büro@example.org"]
maildir = "~/work"
layout = "maildir++"
max_deletions = 200

[accounts.work.imap]
host = "[::1]"
port = 1430
tls = "none"
user = "Me Myself"
auth = "login"
password = 'pa"ss\\word'
ca_file = "/ca.pem"
tls_fingerprint = "sha256:AB:CD0000000000000000000000000000000000000000000000000000000000:ff"
mailboxes = ["*", "!Junk"]
push = "poll"
idle_mailboxes = []
poll = "90s"
connections = 1
deletions = "to_local"
remote_delete = "expunge"
max_message_size = "512K"
compress = "on"
disable_extensions = ["qresync", "AUTH=PLAIN"]

[accounts.work.smtp]
host = "smtp.example.org"
tls = "starttls"
sent = "copy"
sent_mailbox = "Gesendete Objekte"
undo = "30s"

[accounts.isp]
address = "me@isp.example"
max_deletions = "10%"

[accounts.isp.pop3]
host = "192.0.2.7"
tls = "none"
allow_plaintext = true
user = "me"
password_file = "~/secret"
poll = "2h"
leave_on_server = "14d"
delete_with_local = true
"""


def written(directory: Path, text: str, name: str = "maild.toml") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def loaded(directory: Path, text: str, environ: Mapping[str, str] | None = None) -> Config:
    return load(written(directory, text), environ or {"HOME": "/home/me"})


def test_smallest_config_has_every_default(tmp_path: Path) -> None:
    config = loaded(tmp_path, SMALLEST)
    assert (config.maildir, config.state_dir) == (Path("/home/me/Mail"), Path("/home/me/.local/state/maild"))
    assert (config.log_level, config.log_format, config.default_account) == ("info", "auto", None)
    assert config.hooks == Hooks()
    (account,) = config.accounts.values()
    assert (account.name, account.address, account.aliases) == ("work", "me@example.org", ())
    assert (account.maildir, account.layout) == (Path("/home/me/Mail/work"), "nested")
    assert account.max_deletions == DeletionLimit(50, is_percent=True)
    assert (account.pop3, account.smtp) == (None, None)
    imap = account.imap
    assert imap is not None
    assert (imap.host, imap.port, imap.tls, imap.allow_plaintext) == ("imap.example.org", 993, "implicit", False)
    assert (imap.user, imap.auth, imap.secret) == ("me@example.org", "auto", PasswordCommand(("pass", "mail/work")))
    assert (imap.ca_file, imap.tls_fingerprint) == (None, None)
    assert (imap.mailboxes, imap.push, imap.idle_mailboxes, imap.poll_s) == (("*",), "auto", ("INBOX",), 900)
    assert (imap.connections, imap.deletions, imap.remote_delete) == (4, "both", "trash")
    assert (imap.max_message_size_octets, imap.compress, imap.disable_extensions) == (104857600, False, frozenset())


def test_every_key_arrives(tmp_path: Path) -> None:
    config = loaded(tmp_path, EVERYTHING, {"HOME": "/home/me", "MAIL": "/srv", "STATE": "/var"})
    assert (config.maildir, config.state_dir) == (Path("/srv/mail"), Path("/var/maild"))
    assert (config.log_level, config.log_format, config.default_account) == ("warning", "json", "isp")
    assert config.hooks == Hooks(
        on_new_mail=("/home/me/bin/new", "~", "$MAIL"), on_change=("changed",), on_failure=("failed",)
    )
    assert list(config.accounts) == ["work", "isp"]


def test_every_key_of_an_imap_account_arrives(tmp_path: Path) -> None:
    work = loaded(tmp_path, EVERYTHING, {"HOME": "/home/me", "MAIL": "/srv", "STATE": "/var"}).accounts["work"]
    assert (work.aliases, work.maildir) == (("I@example.org", "büro@example.org"), Path("/home/me/work"))
    assert (work.layout, work.max_deletions) == ("maildir++", DeletionLimit(200, is_percent=False))
    imap, smtp = work.imap, work.smtp
    assert imap is not None
    assert (imap.host, imap.port, imap.tls, imap.user, imap.auth) == ("::1", 1430, "none", "Me Myself", "login")
    assert imap.secret == Password('pa"ss\\word')
    assert (imap.ca_file, imap.tls_fingerprint) == (Path("/ca.pem"), "sha256:abcd" + "00" * 29 + "ff")
    assert (imap.mailboxes, imap.push, imap.idle_mailboxes) == (("*", "!Junk"), "poll", ())
    assert (imap.poll_s, imap.connections, imap.deletions, imap.remote_delete) == (90, 1, "to_local", "expunge")
    assert (imap.max_message_size_octets, imap.compress) == (524288, True)
    assert imap.disable_extensions == {"QRESYNC", "AUTH=PLAIN"}
    assert smtp is not None
    assert (smtp.host, smtp.port, smtp.tls) == ("smtp.example.org", 587, "starttls")
    assert (smtp.sent, smtp.sent_mailbox, smtp.undo_s) == ("copy", "Gesendete Objekte", 30)
    assert (smtp.user, smtp.auth, smtp.secret) == (imap.user, imap.auth, imap.secret)


def test_every_key_of_a_pop3_account_arrives(tmp_path: Path) -> None:
    isp = loaded(tmp_path, EVERYTHING, {"HOME": "/home/me", "MAIL": "/srv", "STATE": "/var"}).accounts["isp"]
    assert (isp.maildir, isp.max_deletions) == (Path("/srv/mail/isp"), DeletionLimit(10, is_percent=True))
    pop3 = isp.pop3
    assert pop3 is not None
    assert (pop3.host, pop3.port, pop3.allow_plaintext, pop3.user) == ("192.0.2.7", 110, True, "me")
    assert pop3.secret == PasswordFile(Path("/home/me/secret"))
    assert (pop3.poll_s, pop3.leave_on_server, pop3.delete_with_local) == (7200, 14 * 86400, True)


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ('password_credential = "work"', PasswordCredential("work")),
        ("password_keyring = true", PasswordKeyring()),
        (
            'oauth2 = { provider = "google", client_id = "1", client_secret = "2", tokens = "keyring" }',
            OAuth2("google", "1", "2", owner="a"),
        ),
        (
            'oauth2 = { provider = "x", client_id = "1", authorization_endpoint = "https://x.example", '
            'token_endpoint = "https://x.example/t", device_authorization_endpoint = "https://x.example/d", '
            'scopes = ["mail"] }',
            OAuth2(
                "x",
                "1",
                "",
                "https://x.example",
                "https://x.example/t",
                "https://x.example/d",
                ("mail",),
                owner="a",
                token_file=Path("/home/me/.local/state/maild/tokens/a.json"),
            ),
        ),
        ('token_command = ["~/bin/token"]', TokenCommand(("/home/me/bin/token",))),
        ('auth = "external"\nclient_cert = "~/me.pem"', NoSecret()),
    ],
)
def test_other_secrets(tmp_path: Path, key: str, secret: object) -> None:
    text = f'[accounts.a]\naddress = "me@a.example"\n[accounts.a.smtp]\nhost = "a.example"\n{key}\n'
    smtp = loaded(tmp_path, text).accounts["a"].smtp
    assert smtp is not None
    assert smtp.secret == secret


IMAP_AND_SMTP = """
[accounts.a]
address = "me@a.example"
[accounts.a.imap]
host = "a.example"
{imap}
[accounts.a.smtp]
host = "b.example"
{smtp}
"""


def test_apop_is_of_pop3_alone(tmp_path: Path) -> None:
    """Who sends by the same user and password does so in another way."""
    text = (
        '[accounts.a]\naddress = "me@a.example"\n[accounts.a.pop3]\nhost = "a.example"\nauth = "apop"\n'
        'password = "secret"\n[accounts.a.smtp]\nhost = "b.example"\n'
    )
    account = loaded(tmp_path, text).accounts["a"]
    assert account.pop3 is not None
    assert account.smtp is not None
    assert (account.pop3.auth, account.smtp.auth) == ("apop", "auto")
    with pytest.raises(ConfigError, match=r"accounts\.a\.smtp\.auth: must be"):
        loaded(tmp_path, f'{text}auth = "apop"\n')


def secrets_of(tmp_path: Path, imap: str, smtp: str) -> tuple[Secret, Secret]:
    account = loaded(tmp_path, IMAP_AND_SMTP.format(imap=imap, smtp=smtp)).accounts["a"]
    assert account.imap is not None
    assert account.smtp is not None
    return account.imap.secret, account.smtp.secret


@pytest.mark.parametrize("smtp", ["", 'oauth2 = { provider = "google", client_id = "1" }'])
def test_one_login_serves_both_servers_of_a_provider(tmp_path: Path, smtp: str) -> None:
    first, second = secrets_of(tmp_path, 'oauth2 = { provider = "google", client_id = "1" }', smtp)
    assert first == second


def test_another_provider_for_sending_has_tokens_of_its_own(tmp_path: Path) -> None:
    other = 'oauth2 = { provider = "microsoft", client_id = "1" }'
    first, second = secrets_of(tmp_path, 'oauth2 = { provider = "google", client_id = "1" }', other)
    assert isinstance(first, OAuth2)
    assert isinstance(second, OAuth2)
    assert (first.owner, second.owner) == ("a", "a/smtp")
    assert second.token_file == Path("/home/me/.local/state/maild/tokens/a/smtp.json")
    assert first.token_file != second.token_file


def test_the_client_certificate_goes_with_the_login(tmp_path: Path) -> None:
    account = loaded(
        tmp_path, IMAP_AND_SMTP.format(imap='auth = "external"\nclient_cert = "/c"\nclient_key = "/k"', smtp="")
    ).accounts["a"]
    assert account.smtp is not None
    assert (account.smtp.auth, account.smtp.secret) == ("external", NoSecret())
    assert (account.smtp.client_cert, account.smtp.client_key) == (Path("/c"), Path("/k"))


@pytest.mark.parametrize(
    ("protocol", "tls", "port"),
    [
        ("imap", "implicit", 993),
        ("imap", "starttls", 143),
        ("imap", "none", 143),
        ("pop3", "implicit", 995),
        ("pop3", "starttls", 110),
        ("smtp", "implicit", 465),
        ("smtp", "starttls", 587),
    ],
)
def test_port_follows_tls(tmp_path: Path, protocol: str, tls: str, port: int) -> None:
    section = f'host = "localhost"\ntls = "{tls}"\npassword_command = ["p"]'
    account = loaded(tmp_path, f'accounts.a.address = "a@b.example"\n[accounts.a.{protocol}]\n{section}').accounts["a"]
    assert getattr(account, protocol).port == port


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "imap.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"]
)
def test_no_tls_needs_no_permission_on_this_machine(tmp_path: Path, host: str) -> None:
    assert loaded(tmp_path, SMALLEST.replace("imap.example.org", host) + 'tls = "none"').accounts


@pytest.mark.parametrize("host", ["localhost.example", "128.0.0.1", "::2", "notlocalhost", "127.0.0.1.example"])
def test_no_tls_to_another_machine_needs_permission(tmp_path: Path, host: str) -> None:
    text = SMALLEST.replace("imap.example.org", host) + 'tls = "none"\n'
    with pytest.raises(ConfigError, match=r"7: accounts\.work\.imap\.tls: \"none\" sends"):
        loaded(tmp_path, text)
    assert loaded(tmp_path, text + "allow_plaintext = true").accounts


@pytest.mark.parametrize(
    ("environ", "state_dir"),
    [
        ({}, "/home/me/.local/state/maild"),
        ({"XDG_STATE_HOME": "/xdg"}, "/xdg/maild"),
        ({"XDG_STATE_HOME": "not/absolute"}, "/home/me/.local/state/maild"),
        ({"XDG_STATE_HOME": "/xdg", "STATE_DIRECTORY": "/var/lib/maild"}, "/var/lib/maild"),
        ({"STATE_DIRECTORY": "/var/lib/maild:/var/lib/more"}, "/var/lib/maild"),
    ],
)
def test_where_the_state_is(tmp_path: Path, environ: dict[str, str], state_dir: str) -> None:
    assert loaded(tmp_path, SMALLEST, {"HOME": "/home/me", **environ}).state_dir == Path(state_dir)


def test_state_dir_in_the_config_wins(tmp_path: Path) -> None:
    text = '[maild]\nstate_dir = "/s"\n' + SMALLEST
    assert loaded(tmp_path, text, {"HOME": "/h", "STATE_DIRECTORY": "/var/lib/maild"}).state_dir == Path("/s")


class Places:
    """The places of the search order below one directory, and the environment that names them."""

    def __init__(self, directory: Path) -> None:
        self.given = directory / "given.toml"
        self.named = directory / "named.toml"
        self.xdg = directory / "xdg/maild/maild.toml"
        self.home = directory / "home/.config/maild/maild.toml"
        self.system = directory / "etc/maild.toml"
        self.environ = {"HOME": str(directory / "home")}

    def write(self, *paths: Path) -> None:
        for path in paths:
            written(path.parent, SMALLEST, path.name)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    found = Places(tmp_path)
    monkeypatch.setattr("maild.config.places.SYSTEM_CONFIG", found.system)
    return found


def test_search_order(tmp_path: Path, places: Places) -> None:
    places.write(places.given, places.named, places.xdg, places.home, places.system)
    named = {**places.environ, "XDG_CONFIG_HOME": str(tmp_path / "xdg"), "MAILD_CONFIG": str(places.named)}
    xdg = {**places.environ, "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert load(places.given, named).path == places.given
    assert load(None, named).path == places.named
    assert load(None, xdg).path == places.xdg
    assert load(None, places.environ).path == places.home
    assert load(None, {**places.environ, "XDG_CONFIG_HOME": "not/absolute"}).path == places.home
    places.home.unlink()
    assert load(None, places.environ).path == places.system


def test_config_that_was_named_has_to_be_there(places: Places) -> None:
    places.write(places.home, places.system)
    for path, environ in ((places.given, {}), (None, {"MAILD_CONFIG": str(places.given)})):
        with pytest.raises(ConfigError, match=r"given\.toml: there is no such file; to begin: \"maild account"):
            load(path, {**places.environ, **environ})


def test_users_config_that_cannot_be_read_is_not_passed_over(places: Places) -> None:
    places.write(places.system)
    places.home.parent.mkdir(parents=True)
    places.home.symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"home/\.config/maild/maild\.toml: there is no such file"):
        load(None, places.environ)


def test_no_config_at_all_tells_where_it_was_looked_for(places: Places) -> None:
    (problem,) = examine(None, places.environ).errors
    assert str(problem).startswith(f"{places.home}: there is no config; looked at --config and $MAILD_CONFIG")
    assert str(problem).endswith("sets up an account and writes one")
    assert str(places.system) in problem.message


def test_directory_in_place_of_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {"HOME": "/h"})


def test_accounts_d_comes_after_in_name_order(tmp_path: Path) -> None:
    for name in ("b", "a", "10", "9"):
        written(tmp_path, SMALLEST.replace("work", f"n{name}"), f"accounts.d/{name}.toml")
    written(tmp_path, "[accounts.broken", "accounts.d/.hidden.toml")
    written(tmp_path, "[accounts.broken", "accounts.d/backup.toml~")
    assert list(loaded(tmp_path, SMALLEST).accounts) == ["work", "n10", "n9", "na", "nb"]


def test_accounts_may_all_stand_in_accounts_d(tmp_path: Path) -> None:
    written(tmp_path, SMALLEST, "accounts.d/work.toml")
    written(tmp_path, "", "accounts.d/empty.toml")
    assert list(loaded(tmp_path, '[maild]\ndefault_account = "work"').accounts) == ["work"]


def test_unreadable_accounts_d_is_told(tmp_path: Path) -> None:
    written(tmp_path, "this is not a directory", "accounts.d")
    with pytest.raises(ConfigError, match=r"accounts\.d: cannot be listed: Not a directory"):
        loaded(tmp_path, SMALLEST)


def test_broken_link_in_accounts_d_is_told_and_no_account_is_missed(tmp_path: Path) -> None:
    (tmp_path / "accounts.d").mkdir()
    (tmp_path / "accounts.d/gone.toml").symlink_to(tmp_path / "nowhere")
    report = examine(written(tmp_path, '[maild]\ndefault_account = "gone"'), {"HOME": "/h"})
    assert [problem.file for problem in report.errors] == [str(tmp_path / "accounts.d/gone.toml")]


def test_same_maildir_through_a_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    one = SMALLEST.replace("[accounts.work.imap]", f'maildir = "{tmp_path}/real"\n[accounts.work.imap]')
    two = one.replace("work", "home").replace("/real", "/link")
    with pytest.raises(ConfigError, match=r"accounts\.home\.maildir: .*/link is also the Maildir of account work"):
        loaded(tmp_path, one + two)


@pytest.mark.parametrize(
    "path", ["//home/me/Mail/work", "///home//me/./Mail/x/../work/", "$HOME/Mail/work", "~/Mail/work/"]
)
def test_same_maildir_in_another_spelling_is_found(tmp_path: Path, path: str) -> None:
    two = SMALLEST.replace("work", "home").replace("[accounts.home.imap]", f'maildir = "{path}"\n[accounts.home.imap]')
    with pytest.raises(ConfigError, match=r"/home/me/Mail/work is also the Maildir of account work"):
        loaded(tmp_path, SMALLEST + two)


def test_names_that_only_begin_alike_are_not_inside_each_other(tmp_path: Path) -> None:
    assert len(loaded(tmp_path, SMALLEST + SMALLEST.replace("work", "work2")).accounts) == 2


def test_password_in_a_private_file_is_fine(tmp_path: Path) -> None:
    text = SMALLEST.replace('password_command = ["pass", "mail/work"]', 'password = "swordfish"')
    config = loaded(tmp_path, text)
    assert "swordfish" not in repr(config)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610])
def test_password_in_a_file_that_others_have_access_to_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, SMALLEST.replace('password_command = ["pass", "mail/work"]', 'password = "swordfish"'))
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"password: others have access to this file \(mode {mode:04o}\)") as caught:
        load(path, {"HOME": "/h"})
    assert "swordfish" not in str(caught.value)


def test_home_comes_from_the_user_database_where_the_environment_has_none(tmp_path: Path) -> None:
    assert load(written(tmp_path, SMALLEST), {}).maildir == Path(f"~{_user()}/Mail").expanduser()


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def test_home_of_another_user(tmp_path: Path) -> None:
    config = loaded(tmp_path, f'[maild]\nmaildir = "~{_user()}/x"\n' + SMALLEST, {"HOME": "/elsewhere"})
    assert config.maildir == Path(f"~{_user()}/x").expanduser()


def test_values_cannot_be_changed(tmp_path: Path) -> None:
    config = loaded(tmp_path, SMALLEST)
    with pytest.raises(FrozenInstanceError):
        config.log_level = "debug"  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.accounts["x"] = config.accounts["work"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("limit", "messages", "most"),
    [
        (DeletionLimit(50, is_percent=True), 10, 5),
        (DeletionLimit(50, is_percent=True), 11, 5),
        (DeletionLimit(0, is_percent=True), 1000, 0),
        (DeletionLimit(100, is_percent=True), 7, 7),
        (DeletionLimit(20, is_percent=False), 10, 20),
    ],
)
def test_deletion_limit(limit: DeletionLimit, messages: int, most: int) -> None:
    assert limit.of(messages) == most


def test_a_default_account_that_cannot_send_is_told(tmp_path: Path) -> None:
    config = loaded(tmp_path, '[maild]\ndefault_account = "work"\n' + SMALLEST)
    assert config.notes == (
        f"{tmp_path}/maild.toml:2: maild.default_account: this account has no smtp section, so it cannot send",
    )
    smtp = '[accounts.work.smtp]\nhost = "smtp.example.org"\n'
    assert loaded(tmp_path, '[maild]\ndefault_account = "work"\n' + SMALLEST + smtp).notes == ()


def test_a_password_file_that_others_can_read_is_told(tmp_path: Path) -> None:
    """No error: it need not be there yet, and another user's maild may be the one that reads it."""
    secret = tmp_path / "password"
    text = SMALLEST.replace('password_command = ["pass", "mail/work"]', f'password_file = "{secret}"')
    assert str(secret) in text
    assert loaded(tmp_path, text).notes == ()
    secret.write_text("secret\n")
    secret.chmod(0o640)
    assert loaded(tmp_path, text).notes == (
        f"{tmp_path}/maild.toml:{text[: text.index('password_file')].count(chr(10)) + 1}: "
        f"accounts.work.imap.password_file: others have access to {secret} (mode 0640); run chmod 600 {secret}",
    )
    secret.chmod(0o600)
    assert loaded(tmp_path, text).notes == ()


def test_reading_twice_gives_equal_values(tmp_path: Path) -> None:
    one, two = loaded(tmp_path, SMALLEST), loaded(tmp_path, SMALLEST)
    assert replace(one, accounts=dict(one.accounts)) == replace(two, accounts=dict(two.accounts))


def test_windows_line_ends_do_not_move_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"maild\.toml:7: accounts\.work\.imap\.x: is not a key"):
        loaded(tmp_path, (SMALLEST + "x = 1\n").replace("\n", "\r\n"))
