"""One account of a Dovecot, its config, and `maild sync` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.dovecot import Dovecot

PASS_S = 100.0
_LETTERS = {"\\Draft": "D", "\\Flagged": "F", "$Forwarded": "P", "\\Answered": "R", "\\Seen": "S", "\\Deleted": "T"}

Fact = tuple[bytes, frozenset[str], int]  # disk form, flags and keywords, mtime in seconds


@dataclass(slots=True)
class Client:
    """`settings` are further lines of the imap section, `account` of the account's; `prefix` begins each command."""

    directory: Path
    server: Dovecot
    user: str
    port: int = 0
    host: str = "127.0.0.1"
    tls: str = "none"
    password: str = Dovecot.password
    settings: str = ""
    account: str = ""
    prefix: tuple[str, ...] = ()
    maildir: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.maildir = self.directory / "Mail"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    def argv(self, *arguments: str) -> list[str]:
        config = self.directory / "maild.toml"
        config.write_text(
            f'[maild]\nstate_dir = "{self.state_dir}"\n'
            f'[accounts.work]\naddress = "me@example.org"\nmaildir = "{self.maildir}"\n{self.account}\n'
            f'[accounts.work.imap]\nhost = "{self.host}"\nport = {self.port or self.server.imap_port}\n'
            f'tls = "{self.tls}"\nuser = "{self.user}"\npassword = "{self.password}"\n{self.settings}\n'
        )
        config.chmod(0o600)
        return [*self.prefix, sys.executable, "-m", "maild", "-c", str(config), *(arguments or ("sync",))]

    def start(self) -> subprocess.Popen[bytes]:
        """Begin a pass; the caller waits for its end."""
        return subprocess.Popen(self.argv(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment())

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments), capture_output=True, text=True, check=False, timeout=PASS_S, env=_environment()
        )

    def sync(self) -> str:
        """A pass that goes well, without a word on standard error; its result line."""
        ran = self.run()
        assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr + ran.stdout
        return ran.stdout

    def fail(self) -> str:
        """A pass that does not go well; the one line that says why."""
        ran = self.run()
        assert ran.returncode == 1, ran.stderr + ran.stdout
        assert len(ran.stderr.splitlines()) == 1, ran.stderr
        assert "Traceback" not in ran.stderr
        assert self.password not in ran.stderr
        return ran.stderr

    def files(self, mailbox: str = "INBOX") -> list[Path]:
        directory = self.maildir / mailbox
        return [*(directory / "new").iterdir(), *(directory / "cur").iterdir()]

    def facts(self, mailbox: str = "INBOX") -> Counter[Fact]:
        """What lies in a mailbox."""
        return facts_in(self.maildir / mailbox)

    def everything(self) -> Counter[bytes]:
        """The content of every message file below the Maildir."""
        files = (path for path in self.maildir.rglob("*") if path.is_file())
        return Counter(path.read_bytes() for path in files if path.parent.name in {"new", "cur"})


def facts_in(directory: Path) -> Counter[Fact]:
    """What lies in a mailbox's directory, its letters read as Dovecot writes them."""
    listed = directory / "dovecot-keywords"
    lines = (line.split(" ", 1) for line in listed.read_text().splitlines()) if listed.exists() else ()
    names = {chr(ord("a") + int(number)): keyword for number, keyword in lines}
    names.update((letter, flag) for flag, letter in _LETTERS.items())
    found: Counter[Fact] = Counter()
    for subdir in ("new", "cur"):
        for path in (directory / subdir).iterdir():
            letters = path.name.partition(":2,")[2]
            found[path.read_bytes(), frozenset(names[c] for c in letters), int(path.stat().st_mtime)] += 1
    return found


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MAILD")}
