"""`maild doctor`: set-ups that are broken in one way each, and the way is named, with a remedy and without a secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from maild.cli import main
from maild.core.quirks import QUIRKS, quirks_of
from maild.engine import doctor, surroundings
from maild.testing.imap import ImapServer
from maild.testing.pop3 import Pop3Server
from maild.testing.smtp import SmtpServer
from maild.testing.store import Store
from tests.conftest import SecretScan
from tests.servers.certificates import Authority, Certificate
from tests.servers.running import running

USER, PASSWORD = "me@mail.example", "a long pass phrase"


@dataclass(slots=True)
class Setup:
    """A good set-up, that a test breaks before it starts."""

    home: Path
    authority: Authority
    stack: ExitStack
    capsys: pytest.CaptureFixture[str]
    certificate: Certificate
    imap: dict[str, object] = field(default_factory=dict)
    smtp: dict[str, object] = field(default_factory=dict)
    more: str = ""
    said: str = ""

    @property
    def config(self) -> Path:
        return self.home / "maild.toml"

    @property
    def password_file(self) -> Path:
        return self.home / "password"

    def start(self, *, starttls: bool = False, offers_tls: bool = True, password: str = PASSWORD) -> None:
        """The servers, and the config for them."""
        tls = self.certificate.server_context()
        imap_tls = {"starttls_context": tls if offers_tls else None} if starttls else {"ssl_context": tls}
        store = Store()
        store.create("Sent", special_use="\\Sent")
        imap = ImapServer(store, {USER: password}, **imap_tls)
        smtp = SmtpServer(users={USER: password}, tls=self.authority.good().server_context())
        self.stack.enter_context(running(imap, smtp))
        self.write({"port": imap.port, **({"tls": "starttls"} if starttls else {})}, {"port": smtp.port})

    def write(self, imap: dict[str, object], smtp: dict[str, object]) -> None:
        common = {"host": "localhost", "ca_file": str(self.authority.ca_file)}
        secret = {"password_file": str(self.password_file)}
        sections = {
            "imap": {**common, **secret, **imap, **self.imap},
            "smtp": {**common, **smtp, **self.smtp},
        }
        lines = [f'[maild]\nmaildir = "{self.home}/Mail"\nstate_dir = "{self.home}/state"\n{self.more}']
        lines += [f'[accounts.work]\naddress = "{USER}"']
        for protocol, keys in sections.items():
            lines.append(f"[accounts.work.{protocol}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None]
        self.config.write_text("\n".join(lines) + "\n")

    def doctor(self, *arguments: str) -> tuple[int, list[Any]]:
        """Exit status and findings."""
        status = main(["-c", str(self.config), "doctor", "--json", *arguments])
        out, err = self.capsys.readouterr()
        assert err == ""
        self.said += out
        document = json.loads(out)
        assert document["ok"] == (status == 0)
        return status, document["findings"]

    def problem(self) -> Any:
        """The one problem there is."""
        status, findings = self.doctor()
        (found,) = [finding for finding in findings if finding["level"] == "problem"]
        assert status == 1
        assert found["remedy"], found
        return found


@pytest.fixture
def setup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], secret_scan: SecretScan, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Setup]:
    secret_scan.add(PASSWORD)
    monkeypatch.setenv("HOME", str(tmp_path))
    tmp_path.chmod(0o700)
    authority = Authority(tmp_path / "ca")
    with ExitStack() as stack:
        found = Setup(tmp_path, authority, stack, capsys, authority.good())
        found.password_file.touch(mode=0o600)
        found.password_file.write_text(PASSWORD + "\n")
        yield found
    secret_scan.lines += found.said.splitlines()


def areas(findings: list[Any], level: str = "ok") -> set[str]:
    return {finding["area"] for finding in findings if finding["level"] == level}


def text_of(findings: list[Any], area: str) -> str:
    return " | ".join(finding["text"] for finding in findings if finding["area"] == area)


def test_a_good_set_up(setup: Setup) -> None:
    setup.start()
    assert main(["-c", str(setup.config), "sync"]) == 0
    setup.capsys.readouterr()
    status, findings = setup.doctor()
    assert status == 0
    layers = {
        f"{p} {layer}" for p in ("imap", "smtp") for layer in ("DNS", "TCP", "TLS", "greeting", "capabilities", "login")
    }
    wanted = layers | {"imap mailboxes", "imap push", "imap changes", "maildir", "disk", "secret", "config", "state"}
    assert wanted <= areas(findings)
    assert areas(findings, "problem") == set()
    assert "Sent is Sent" in text_of(findings, "imap mailboxes")
    assert "QRESYNC" in text_of(findings, "imap changes")
    assert f"{USER} is logged in by" in text_of(findings, "imap login")
    assert "more days" in text_of(findings, "imap TLS")


def test_for_a_person(setup: Setup) -> None:
    setup.start()
    assert main(["-c", str(setup.config), "doctor"]) == 0
    out, _ = setup.capsys.readouterr()
    assert "ok       work: imap TCP: localhost:" in out
    assert out.splitlines()[-1].startswith("problems: 0")


def test_a_name_that_does_not_exist(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    real = socket.getaddrinfo

    def unknown(host: Any, *arguments: Any, **more: Any) -> Any:
        if host == "imap.nowhere.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    setup.imap["host"] = "imap.nowhere.example"
    setup.start()
    found = setup.problem()
    assert found["area"] == "imap DNS"
    assert "imap.nowhere.example cannot be found" in found["text"]


def test_a_port_that_nobody_listens_on(setup: Setup, unused_port: int) -> None:
    setup.imap["port"] = unused_port
    setup.start()
    found = setup.problem()
    assert (found["area"], "refused" in found["text"]) == ("imap TCP", True)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


BAD: list[tuple[str, Callable[[Authority], Certificate]]] = [
    ("its certificate has expired", Authority.expired),
    ("its certificate is for another name", Authority.wrong_name),
    ("its certificate is not valid yet", Authority.not_yet_valid),
    ("its certificate is self-signed", Authority.self_signed),
]


@pytest.mark.parametrize(("said", "make"), BAD, ids=[said for said, _ in BAD])
def test_a_certificate_that_cannot_be_trusted(
    setup: Setup, said: str, make: Callable[[Authority], Certificate]
) -> None:
    setup.certificate = make(setup.authority)
    setup.start()
    found = setup.problem()
    assert (found["area"], said in found["text"]) == ("imap TLS", True)


def test_a_certificate_that_ends_soon(setup: Setup) -> None:
    now = datetime.now(UTC)
    days = timedelta(days=3, hours=1)
    setup.certificate = setup.authority._issue("soon", ("localhost",), now - days, now + days)
    setup.start()
    status, findings = setup.doctor()
    assert (status, "imap TLS" in areas(findings, "warning")) == (0, True)
    assert "good for 3 more days" in text_of(findings, "imap TLS")


def test_a_pin_that_does_not_fit(setup: Setup) -> None:
    setup.imap["tls_fingerprint"] = "sha256:" + "0" * 64
    setup.start()
    found = setup.problem()
    assert (found["area"], "not the pinned one" in found["text"]) == ("imap TLS", True)


def test_a_pin_that_fits(setup: Setup) -> None:
    setup.imap |= {"tls_fingerprint": "sha256:" + setup.certificate.fingerprint(), "ca_file": None}
    setup.start()
    status, findings = setup.doctor()
    assert status == 0
    assert "the pinned one, good for" in text_of(findings, "imap TLS")


def test_a_server_without_starttls(setup: Setup) -> None:
    setup.start(starttls=True, offers_tls=False)
    found = setup.problem()
    assert (found["area"], "does not offer STARTTLS" in found["text"]) == ("imap TLS", True)


def test_starttls_at_a_port_that_speaks_tls_at_once(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "STEP_S", 0.5)
    setup.imap["tls"] = "starttls"
    setup.start()
    found = setup.problem()
    assert (found["area"], "did not answer in time" in found["text"]) == ("imap greeting", True)
    assert found["remedy"].endswith('if this port speaks TLS at once, use tls = "implicit"')


def test_a_mechanism_that_the_server_does_not_offer(setup: Setup) -> None:
    setup.imap["auth"] = "xoauth2"
    setup.imap["password_file"] = None
    setup.imap["token_command"] = ["echo", PASSWORD]
    setup.start()
    status, findings = setup.doctor()
    (found,) = [f for f in findings if f["level"] == "problem" and f["area"] == "imap login"]
    assert (status, "does not offer to log in by XOAUTH2" in found["text"]) == (1, True)
    assert "account passwd" not in found["remedy"], "another password changes nothing about it"


def test_starttls(setup: Setup) -> None:
    setup.start(starttls=True)
    status, findings = setup.doctor()
    assert (status, areas(findings, "problem")) == (0, set())


def test_a_server_of_another_protocol(setup: Setup) -> None:
    smtp = SmtpServer(tls=setup.authority.good().server_context())
    setup.stack.enter_context(running(smtp))
    setup.imap["port"] = smtp.port
    setup.start()
    found = setup.problem()
    assert (found["area"], "does not greet as an IMAP server does" in found["text"]) == ("imap greeting", True)


def test_a_password_that_is_refused(setup: Setup) -> None:
    setup.start(password="another one")
    status, findings = setup.doctor()
    assert (status, areas(findings, "problem")) == (1, {"imap login", "smtp login"})
    assert all("maild account passwd work" in f["remedy"] for f in findings if f["level"] == "problem")


def test_a_password_file_that_others_can_read(setup: Setup) -> None:
    setup.password_file.chmod(0o644)
    setup.start()
    found = setup.problem()
    assert (found["area"], f"chmod 600 {setup.password_file}" in found["remedy"]) == ("secret", True)


def test_a_password_command_that_only_this_shell_finds(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    program = setup.home / "bin/my-pass"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {setup.password_file}\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    setup.imap |= {"password_file": None, "password_command": ["my-pass"]}
    setup.start()
    found = setup.problem()
    assert (found["area"], "not with a service's environment" in found["text"]) == ("secret", True)


def test_a_password_command_that_a_service_finds_too(setup: Setup) -> None:
    setup.imap |= {"password_file": None, "password_command": ["cat", str(setup.password_file)]}
    setup.start()
    status, findings = setup.doctor()
    assert (status, "also by a service" in text_of(findings, "secret")) == (0, True)


def test_a_credential_is_left_to_the_service(setup: Setup) -> None:
    setup.imap |= {"password_file": None, "password_credential": "work"}
    setup.start()
    status, findings = setup.doctor()
    assert (status, "secret" in areas(findings, "note")) == (0, True)
    assert "imap login" not in areas(findings)


@pytest.mark.parametrize("what", ["gone", "dangling", "marker"])
def test_a_maildir_that_is_not_what_it_was(setup: Setup, what: str) -> None:
    setup.start()
    assert main(["-c", str(setup.config), "sync"]) == 0
    setup.capsys.readouterr()
    maildir = setup.home / "Mail/work"
    if what == "marker":
        (maildir / ".maild").unlink()
    else:
        maildir.rename(setup.home / "elsewhere")
    if what == "dangling":
        maildir.symlink_to(setup.home / "nowhere")
    found = setup.problem()
    said = {"gone": "is gone", "dangling": "leads nowhere", "marker": "lost its marker"}[what]
    assert (found["area"], said in found["text"]) == ("maildir", True)


def test_a_config_directory_that_others_may_write(setup: Setup) -> None:
    setup.start()
    setup.home.chmod(0o777)
    found = setup.problem()
    assert (found["area"], "chmod go-w" in found["remedy"]) == ("permissions", True)


def test_a_bad_config(setup: Setup) -> None:
    setup.more = "maildirr = 1\n"
    setup.start()
    status, findings = setup.doctor()
    assert (status, areas(findings, "problem")) == (78, {"config"})
    assert "did you mean" in text_of(findings, "config")


def test_an_account_that_is_none(setup: Setup) -> None:
    setup.start()
    assert main(["-c", str(setup.config), "doctor", "nobody"]) == 64


def test_pop3(setup: Setup) -> None:
    setup.start()
    pop3 = Pop3Server([b"a\r\n\r\nb\r\n"], {USER: PASSWORD}, ssl_context=setup.certificate.server_context())
    setup.stack.enter_context(running(pop3))
    text = setup.config.read_text()
    head, _, smtp = text.partition("[accounts.work.imap]")
    section = f'[accounts.work.pop3]\nhost = "localhost"\nport = {pop3.port}\nca_file = "{setup.authority.ca_file}"\n'
    secret = f'password_file = "{setup.password_file}"\n'
    setup.config.write_text(
        head + section + secret + "[accounts.work.smtp]" + smtp.partition("[accounts.work.smtp]")[2]
    )
    status, findings = setup.doctor()
    assert (status, text_of(findings, "pop3 maildrop")) == (0, "messages in it: 1")
    assert {"pop3 TLS", "pop3 login", "smtp login"} <= areas(findings)


def test_nothing_a_server_says_moves_the_cursor(setup: Setup) -> None:
    imap = ImapServer(
        Store(), {USER: PASSWORD}, ssl_context=setup.certificate.server_context(), greeting="* OK \x1b[2J hello"
    )
    setup.stack.enter_context(running(imap))
    setup.imap["port"] = imap.port
    setup.start()
    assert main(["-c", str(setup.config), "doctor"]) == 0
    out, _ = setup.capsys.readouterr()
    assert "\x1b" not in out
    assert "\\x1b[2J hello" in out


# -- the table of quirks


def test_every_quirk_says_where_it_is_known_from_and_how_it_is_recognised() -> None:
    for quirk in QUIRKS:
        assert quirk.evidence, quirk
        assert quirk.hosts or quirk.identities or quirk.capabilities, quirk


@pytest.mark.parametrize(
    ("host", "capabilities", "identity", "server"),
    [
        ("imap.gmail.com", (), {}, {"Gmail"}),
        ("mail.example", ("X-GM-EXT-1",), {}, {"Gmail"}),
        ("mail.example", (), {"name": "Dovecot"}, {"Dovecot"}),
        ("mail.example", (), {"name": "Coremail Imap", "vendor": "Netease"}, {"NetEase"}),
        ("outlook.office365.com", (), {}, {"Exchange"}),
        ("imap.evilgmail.com", (), {}, set()),
        ("mail.example", ("IMAP4REV1",), {}, set()),
    ],
)
def test_a_server_is_recognised(
    host: str, capabilities: tuple[str, ...], identity: dict[str, str], server: set[str]
) -> None:
    assert {quirk.server for quirk in quirks_of(host, capabilities, identity)} == server


def test_more_mailboxes_than_can_be_watched(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = setup.home / "inotify"
    limits.mkdir()
    (limits / "max_user_watches").write_text("3\n")
    monkeypatch.setattr(surroundings, "_INOTIFY", limits)
    setup.start()
    assert main(["-c", str(setup.config), "sync"]) == 0
    setup.capsys.readouterr()
    status, findings = setup.doctor()
    assert (status, "inotify" in areas(findings, "warning")) == (0, True)
    assert "4 of 3 watches are needed for the 2 mailboxes" in text_of(findings, "inotify")


def test_the_mailboxes_of_a_tree_are_counted_without_their_messages(tmp_path: Path) -> None:
    for name in ("INBOX/cur", "INBOX/new", "a/b/cur", "a/b/cur/cur"):
        (tmp_path / name).mkdir(parents=True)
    assert surroundings.mailboxes_in(tmp_path) == 2


def test_a_disk_that_is_nearly_full(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_LITTLE_OCTETS", 1 << 62)
    setup.start()
    _, findings = setup.doctor()
    assert "disk" in areas(findings, "warning")


def test_a_state_directory_on_a_network_file_system(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = setup.home / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:40 / " + str(setup.home) + "/state rw - nfs4 server:/home rw\n"
    )
    monkeypatch.setattr(surroundings, "_MOUNTS", mounts)
    (setup.home / "state").mkdir(mode=0o700)
    setup.start()
    found = setup.problem()
    assert (found["area"], "where SQLite is not safe" in found["text"]) == ("state", True)


def test_systemd_and_linger(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        ("systemctl", "--user", "is-enabled"): "enabled",
        ("systemctl", "--user", "is-active"): "failed",
        ("loginctl", "show-user"): "no",
        ("timedatectl", "show"): "no",
    }

    def said(*argv: str) -> str:
        return next((text for start, text in answers.items() if argv[: len(start)] == start), "")

    monkeypatch.setattr(surroundings, "_output", said)
    monkeypatch.setattr(surroundings.shutil, "which", lambda _: "/bin/systemctl")
    setup.start()
    _, findings = setup.doctor()
    remedies = " ".join(f["remedy"] for f in findings if f["area"] in ("systemd", "clock"))
    assert "journalctl --user -u maild.service" in remedies
    assert "loginctl enable-linger" in remedies
    assert "timedatectl set-ntp true" in remedies


@pytest.mark.parametrize(
    ("offered", "keys", "level", "said"),
    [
        ({"IDLE", "NOTIFY"}, {}, "ok", "NOTIFY: "),
        ({"IDLE"}, {}, "ok", "IDLE in INBOX, the others are polled: the server offers no NOTIFY"),
        ({"IDLE"}, {"push": "notify"}, "note", "IDLE in INBOX"),
        ({"IDLE", "NOTIFY"}, {"push": "idle"}, "ok", "IDLE in INBOX, the others are polled, as the config says"),
        ({"IDLE", "NOTIFY"}, {"disable_extensions": ["IDLE"]}, "note", "polling: "),
        ({"ID"}, {}, "note", "polling: "),
        ({"IDLE"}, {"push": "poll"}, "ok", "polling, as the config says"),
    ],
)
def test_how_new_mail_is_heard_of(
    setup: Setup, offered: set[str], keys: dict[str, object], level: str, said: str
) -> None:
    imap = ImapServer(Store(), {USER: PASSWORD}, capabilities=offered, ssl_context=setup.certificate.server_context())
    setup.stack.enter_context(running(imap))
    setup.imap |= {"port": imap.port, **keys}
    setup.start()
    _, findings = setup.doctor()
    (found,) = [finding for finding in findings if finding["area"] == "imap push"]
    assert (found["level"], found["text"].startswith(said)) == (level, True), found


@pytest.mark.parametrize(
    ("offered", "keys", "told"),
    [
        ({"ID", "COMPRESS=DEFLATE"}, {"compress": "on"}, [("ok", "COMPRESS=DEFLATE, as the config says")]),
        ({"ID"}, {"compress": "on"}, [("note", "the server does not offer COMPRESS=DEFLATE")]),
        (
            {"ID", "COMPRESS=DEFLATE"},
            {"compress": "on", "disable_extensions": ["COMPRESS=DEFLATE"]},
            [("note", "the server does not offer COMPRESS=DEFLATE, or disable_extensions leaves it out")],
        ),
        ({"ID", "COMPRESS=DEFLATE"}, {}, []),
    ],
)
def test_whether_it_is_compressed(
    setup: Setup, offered: set[str], keys: dict[str, object], told: list[tuple[str, str]]
) -> None:
    imap = ImapServer(Store(), {USER: PASSWORD}, capabilities=offered, ssl_context=setup.certificate.server_context())
    setup.stack.enter_context(running(imap))
    setup.imap |= {"port": imap.port, **keys}
    setup.start()
    _, findings = setup.doctor()
    found = [finding for finding in findings if finding["area"] == "imap compression"]
    assert len(found) == len(told)
    for finding, (level, text) in zip(found, told, strict=True):
        assert (finding["level"], finding["text"].startswith(text)) == (level, True), finding
