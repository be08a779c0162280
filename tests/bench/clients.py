"""Who is timed, and how each is configured: as its users would, but for the one thing that the variant's name says.

Every client fetches all mailboxes of one account into `<directory>/mail/<mailbox>/{cur,new,tmp}` and is run as a whole
process, as from a shell. Adding a peer is adding a class with these four members.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import tomli_w


@dataclass(frozen=True, slots=True)
class Server:
    """Where to fetch from: an account on a server of ours, directly or through a proxy."""

    port: int
    user: str
    password: str
    ca_file: Path | None = None  # given: implicit TLS
    host: str = "127.0.0.1"


class Client(Protocol):
    """A program that can be timed."""

    @property
    def name(self) -> str:
        """As the table shows it."""

    def missing(self) -> str | None:
        """Why it cannot run here; None if it can."""

    def version(self) -> str:
        """Name and release, as it tells them."""

    def command(self, server: Server, directory: Path) -> list[str]:
        """Write its configuration into the directory; what to run, once or again. State and mail stay in there too."""


def mail_directory(directory: Path) -> Path:
    """Where a client's mailboxes are."""
    return directory / "mail"


def first_line(*command: str) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return (said.stdout.strip() or said.stderr.strip()).partition("\n")[0]


def private_file(path: Path, text: str) -> str:
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


def maild_program() -> list[str]:
    """The command beside this Python if the package is installed there, else the module."""
    script = Path(sys.executable).with_name("maild")
    return [str(script)] if script.exists() else [sys.executable, "-m", "maild"]


@dataclass(frozen=True, slots=True)
class Maild:
    """maild as it is, with its defaults, or with compression."""

    name: str = "maild"
    compress: bool = False

    def missing(self) -> str | None:
        """It is this repository."""
        return None

    def version(self) -> str:
        """As `maild --version` says."""
        return first_line(*maild_program(), "--version")

    def command(self, server: Server, directory: Path) -> list[str]:
        """`maild -c CONFIG sync`."""
        imap = {"host": server.host, "port": server.port, "user": server.user, "password": server.password}
        imap |= {"tls": "implicit", "ca_file": str(server.ca_file)} if server.ca_file else {"tls": "none"}
        imap |= {"compress": "on"} if self.compress else {}
        account = {"address": "me@bench.example", "maildir": str(mail_directory(directory))}
        config = {
            "maild": {"state_dir": str(directory / "state"), "log_level": "warning"},
            "accounts": {"bench": {**account, "imap": {**imap, "max_message_size": "1G"}}},
        }
        path = private_file(directory / "maild.toml", tomli_w.dumps(config))
        return [*maild_program(), "-c", path, "sync"]


@dataclass(frozen=True, slots=True)
class Mbsync:
    """isync's mbsync, pulling only or both ways. It uses COMPRESS where the server offers it."""

    name: str = "mbsync"
    fsync: bool = True
    both_ways: bool = False

    def missing(self) -> str | None:
        """Debian has it."""
        return None if shutil.which("mbsync") else "no mbsync: apt-get install isync"

    def version(self) -> str:
        """As `mbsync --version` says."""
        return first_line("mbsync", "--version")

    def command(self, server: Server, directory: Path) -> list[str]:
        """`mbsync -c CONFIG -a`."""
        mail = mail_directory(directory)
        mail.mkdir(exist_ok=True)
        (directory / "state").mkdir(exist_ok=True)
        tls = f"SSLType IMAPS\nCertificateFile {server.ca_file}" if server.ca_file else "SSLType None"
        text = f"""\
FSync {"yes" if self.fsync else "no"}
SyncState {directory}/state/

IMAPStore far
Host {server.host}
Port {server.port}
User {server.user}
Pass "{server.password}"
AuthMechs LOGIN
{tls}

MaildirStore near
Path {mail}/
Inbox {mail}/INBOX
SubFolders Verbatim

Channel bench
Far :far:
Near :near:
Patterns *
Create {"Both" if self.both_ways else "Near"}
Sync {"All" if self.both_ways else "Pull"}
Expunge {"Both" if self.both_ways else "None"}
CopyArrivalDate yes
"""
        return ["mbsync", "-c", private_file(directory / "mbsyncrc", text), "-a"]


@dataclass(frozen=True, slots=True)
class InterImap:
    """interimap, which keeps two IMAP servers equal: its near one is a user of `near`, a new one for each directory."""

    near: Server
    name: str = "interimap"

    def missing(self) -> str | None:
        """Debian has it."""
        return None if shutil.which("interimap") else "no interimap: apt-get install interimap"

    def version(self) -> str:
        """As `interimap --version` says."""
        return first_line("interimap", "--version")

    def command(self, server: Server, directory: Path) -> list[str]:
        """`interimap --config CONFIG`."""
        near = replace(self.near, user=f"interimap-{directory.name}")
        sides = "".join(
            f"[{name}]\ntype = imap\nhost = {side.host}\nport = {side.port}\nSTARTTLS = NO\nauth = LOGIN\n"
            f"username = {side.user}\npassword = {side.password}\n"
            for name, side in (("local", near), ("remote", server))
        )
        text = f"database = {directory}/state.db\n{sides}"
        return ["interimap", "--quiet", "--config", private_file(directory / "interimaprc", text)]


@dataclass(frozen=True, slots=True)
class OfflineImap:
    """OfflineIMAP, reading only."""

    name: str = "offlineimap3"

    def missing(self) -> str | None:
        """Debian has it."""
        return None if shutil.which("offlineimap") else "no offlineimap: apt-get install offlineimap3"

    def version(self) -> str:
        """As `offlineimap --version` says."""
        return f"offlineimap {first_line('offlineimap', '--version')}"

    def command(self, server: Server, directory: Path) -> list[str]:
        """`offlineimap -c CONFIG -o -u quiet`."""
        text = f"""\
[general]
accounts = bench
metadata = {directory}/state
[Account bench]
localrepository = near
remoterepository = far
[Repository near]
type = Maildir
localfolders = {mail_directory(directory)}
sep = /
utime_from_header = no
[Repository far]
type = IMAP
remotehost = {server.host}
remoteport = {server.port}
remoteuser = {server.user}
remotepass = {server.password}
ssl = no
starttls = no
readonly = True
"""
        return ["offlineimap", "-c", private_file(directory / "offlineimaprc", text), "-o", "-u", "quiet"]


@dataclass(frozen=True, slots=True)
class Least:
    """The least asyncio client that is durable and right; see `limits`. Fetches INBOX only."""

    name: str = "least asyncio client"
    syncfs: bool = False

    def missing(self) -> str | None:
        """It is this repository."""
        return None

    def version(self) -> str:
        """It has no releases."""
        return f"Python {sys.version.split()[0]}"

    def command(self, server: Server, directory: Path) -> list[str]:
        """`limits least`, as a process of its own like everybody else."""
        how = ["--syncfs"] if self.syncfs else []
        return [*limit_command("least", server), "--directory", str(mail_directory(directory)), *how]


def limit_command(what: str, server: Server) -> list[str]:
    """A command of `limits` that connects."""
    where = ["--port", str(server.port), "--user", server.user, "--password", server.password]
    return [sys.executable, "-m", "tests.bench.limits", what, *where]
