"""`maild account add` at a terminal: what is asked, what is shown, and that no password is."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from maild.testing.imap import ImapServer
from maild.testing.pop3 import Pop3Server
from maild.testing.smtp import SmtpServer
from maild.testing.store import Store
from tests.conftest import SecretScan
from tests.servers.autoconfig import XML, AutoconfigServer, server
from tests.servers.certificates import Authority
from tests.servers.nameserver import NameServer
from tests.servers.running import running

ROOT = Path(__file__).resolve().parents[2]
ADDRESS, PASSWORD, WRONG = "me@mail.example", "a long pass phrase", "a wrong pass phrase"
LONGEST_S = 60.0

# maild with other sources than the internet's: it is a process of its own, so they come in its arguments.
CHILD = """\
import socket, ssl, sys
from pathlib import Path
from maild.remote import discover
url, port, ca_file = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
discover.SOURCES = discover.Sources(
    autoconfig=(url,), resolver=("127.0.0.1", port), context=ssl.create_default_context(cafile=str(ca_file)),
    ca_file=ca_file, ports=lambda _protocol, _port: 1,
)
real = socket.getaddrinfo
def localhost_only(host, *arguments, **more):
    if host not in ("localhost", b"localhost", "127.0.0.1", "::1"):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return real(host, *arguments, **more)
socket.getaddrinfo = localhost_only
from maild.cli import main
sys.exit(main(sys.argv[4:]))
"""


class Terminal:
    """maild at the other end of a terminal. `shown` is all that a person would have seen."""

    def __init__(self, arguments: list[str], home: Path) -> None:
        self._ours, theirs = pty.openpty()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MAILD_"))}
        environ = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "TERM": "xterm"}
        self._child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environ,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""
        self._seen = 0

    def until(self, text: str) -> None:
        """Wait until this is shown, behind what was waited for before."""
        deadline = time.monotonic() + LONGEST_S
        while text not in self.shown[self._seen :]:
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"{text!r} was not shown, but: {self.shown}")
        self._seen = self.shown.index(text, self._seen) + len(text)

    def type(self, line: str) -> None:
        os.write(self._ours, line.encode() + b"\n")

    def end(self) -> int:
        """The exit status, when it is over."""
        while self._read():
            continue
        os.close(self._ours)
        return self._child.wait(LONGEST_S)

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], LONGEST_S)[0]:
            return False
        try:
            octets = os.read(self._ours, 65536)
        except OSError:  # the other end is closed
            return False
        self.shown += octets.decode().replace("\r\n", "\n")
        return bool(octets)


@dataclass(slots=True)
class World:
    """A provider with all that it has to offer, and a user's home."""

    home: Path
    authority: Authority
    web: AutoconfigServer
    names: NameServer
    imap: ImapServer
    pop3: Pop3Server
    smtp: SmtpServer

    def terminal(self, *arguments: str, action: tuple[str, ...] = ("add", ADDRESS)) -> Terminal:
        sources = [self.web.url + "/config.xml", str(self.names.address[1]), str(self.authority.ca_file)]
        return Terminal([*sources, "account", *action, *arguments], self.home)

    def describe(self, *, pop3: bool) -> None:
        servers = server("imap", "localhost", self.imap.port) + server("smtp", "localhost", self.smtp.port)
        servers += server("pop3", "localhost", self.pop3.port) if pop3 else ""
        self.web.pages["/config.xml"] = XML.format(servers=servers).encode()

    def account(self) -> Any:
        return tomllib.loads((self.home / ".config/maild/accounts.d/mail.toml").read_text())["accounts"]["mail"]


@pytest.fixture
def world(tmp_path: Path, secret_scan: SecretScan) -> Iterator[World]:
    secret_scan.add(PASSWORD)
    secret_scan.add(WRONG)
    authority = Authority(tmp_path / "ca")
    certificate = authority.good()
    tls = certificate.server_context()
    users = {ADDRESS: PASSWORD}
    imap, pop3 = ImapServer(Store(), users, ssl_context=tls), Pop3Server([], users, ssl_context=tls)
    smtp = SmtpServer(users=users, tls=tls)
    home = tmp_path / "home"
    home.mkdir()
    with running(imap, pop3, smtp), AutoconfigServer(certificate) as web, NameServer() as names:
        yield World(home, authority, web, names, imap, pop3, smtp)


def test_an_address_and_a_password_are_enough(world: World, secret_scan: SecretScan) -> None:
    world.describe(pop3=False)
    terminal = world.terminal("--ca-file", str(world.authority.ca_file))
    terminal.until("Found by the description at")
    terminal.until(f"receiving: IMAP localhost:{world.imap.port} (TLS), as {ADDRESS}")
    terminal.until(f"Password of {ADDRESS}:")
    terminal.type(WRONG)
    terminal.until("refused to log in")
    terminal.until("Password again:")
    terminal.type(PASSWORD)
    terminal.until("Login for receiving works")
    terminal.until("Login for sending works")
    assert terminal.end() == 0
    secret_scan.lines += terminal.shown.splitlines()
    assert list(world.account()["imap"]) == ["host", "port", "ca_file", "password_file"]
    kept = world.home / ".config/maild/mail.password"
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == (PASSWORD + "\n", 0o600)


def test_imap_and_pop3_are_explained_where_there_is_a_choice(world: World, secret_scan: SecretScan) -> None:
    world.describe(pop3=True)
    terminal = world.terminal("--ca-file", str(world.authority.ca_file))
    terminal.until("IMAP: all mailboxes of the server")
    terminal.until("POP3: new messages of the INBOX")
    terminal.until("IMAP or POP3 [IMAP]:")
    terminal.type("pop3")
    terminal.until(f"Password of {ADDRESS}:")
    terminal.type(PASSWORD)
    assert terminal.end() == 0
    secret_scan.lines += terminal.shown.splitlines()
    assert list(world.account()) == ["address", "pop3", "smtp"]


def test_what_the_name_service_says_is_confirmed_before_a_password_is_asked_for(world: World) -> None:
    world.names.srv["_imaps._tcp.mail.example"] = [(0, 0, world.imap.port, "localhost.")]
    terminal = world.terminal()
    terminal.until("not protected against forgery")
    terminal.until("(yes/no) [yes]:")
    terminal.type("no")
    assert terminal.end() == 64
    assert "Password" not in terminal.shown
    assert not (world.home / ".config").exists()


def test_where_nothing_is_found_the_servers_are_asked_for(world: World, secret_scan: SecretScan) -> None:
    terminal = world.terminal("--ca-file", str(world.authority.ca_file), "--no-test")
    terminal.until("IMAP server (empty for POP3):")
    terminal.type("imap.mail.example")
    terminal.until("SMTP (empty for none):")
    terminal.type("")
    terminal.until(f"Password of {ADDRESS}:")
    terminal.type(PASSWORD)
    terminal.until("It cannot send")
    assert terminal.end() == 0
    secret_scan.lines += terminal.shown.splitlines()
    assert world.account()["imap"]["host"] == "imap.mail.example"


def test_a_server_is_looked_at_before_the_password_is_asked_for(world: World, secret_scan: SecretScan) -> None:
    terminal = world.terminal("--ca-file", str(world.authority.ca_file))
    terminal.until("IMAP server (empty for POP3):")
    terminal.type("localhost")  # the usual ports are port 1 here
    terminal.until("localhost does not speak IMAP inside verified TLS at the usual ports (HOST:PORT names another).")
    terminal.until("IMAP server (empty for POP3):")
    terminal.type(f"localhost:{world.smtp.port}")
    terminal.until(f"localhost does not speak IMAP inside verified TLS at port {world.smtp.port}.")
    terminal.until("IMAP server (empty for POP3):")
    terminal.type(f"localhost:{world.imap.port}")
    terminal.until(f"receiving: IMAP localhost:{world.imap.port} (TLS), as {ADDRESS}")
    terminal.until("SMTP (empty for none):")
    assert "Password" not in terminal.shown
    terminal.type(f"localhost:{world.smtp.port}")
    terminal.until(f"Password of {ADDRESS}:")
    terminal.type(PASSWORD)
    terminal.until("Login for sending works")
    assert terminal.end() == 0
    secret_scan.lines += terminal.shown.splitlines()
    assert world.account()["imap"]["port"] == world.imap.port


def test_passwd_and_remove(world: World, secret_scan: SecretScan) -> None:
    server = [
        "--imap-host",
        "localhost",
        "--imap-port",
        str(world.imap.port),
        "--ca-file",
        str(world.authority.ca_file),
    ]
    terminal = world.terminal(*server)
    terminal.until(f"Password of {ADDRESS}:")
    terminal.type(PASSWORD)
    assert terminal.end() == 0
    kept = world.home / ".config/maild/mail.password"
    for password, status, said in (
        (WRONG, 1, "the password was not changed"),
        (PASSWORD, 0, "The new password of mail"),
    ):
        terminal = world.terminal(action=("passwd", "mail"))
        terminal.until(f"New password of mail ({ADDRESS}):")
        terminal.type(password)
        terminal.until(said)
        assert terminal.end() == status
        assert kept.read_text() == PASSWORD + "\n"
        secret_scan.lines += terminal.shown.splitlines()
    for answer, status in (("no", 1), ("", 0)):
        terminal = world.terminal(action=("remove", "mail"))
        terminal.until("Remove account mail? The mail stays. (yes/no) [yes]:")
        terminal.type(answer)
        assert terminal.end() == status
        assert kept.exists() == (status == 1)


def test_the_end_of_the_input_writes_nothing(world: World) -> None:
    world.describe(pop3=False)
    terminal = world.terminal("--ca-file", str(world.authority.ca_file))
    terminal.until(f"Password of {ADDRESS}:")
    terminal.type("\x04")
    assert terminal.end() == 1
    assert not (world.home / ".config").exists()
