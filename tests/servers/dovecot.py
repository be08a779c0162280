"""A private Dovecot 2.3 for live tests and the bench: everything in one temporary directory, loopback ports only.

Runs as root (mail then belongs to `nobody`) or as an ordinary user. Any user name exists and has the one password;
another password is refused at once. The server never fsyncs: it is the clients' durability that is measured.
"""

from __future__ import annotations

import contextlib
import grp
import imaplib
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from tests.servers.append import Filler, Message
from tests.servers.certificates import Authority, Certificate

MailFormat = Literal["maildir", "sdbox", "mdbox"]

HOST = "127.0.0.1"
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
_given: set[int] = set()
START_ATTEMPTS = 3  # another program may take a free port before Dovecot does

SPECIAL_USE = {
    "Drafts": "\\Drafts",
    "Sent": "\\Sent",
    "Junk": "\\Junk",
    "Trash": "\\Trash",
    "Archive": "\\Archive",
}


class DovecotMissing(Exception):
    """Dovecot or a part of it is not installed; the text says which Debian package brings it."""


class DovecotFailed(Exception):
    """Dovecot or doveadm did not do what it was asked; the text holds the end of its log."""


def find_dovecot(*, pop3: bool = False, lmtp: bool = False) -> Path:
    """The `dovecot` program. Raises DovecotMissing unless it and the wanted protocols are installed."""
    program = shutil.which(
        "dovecot", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    )
    if program is None or shutil.which("doveadm") is None:
        raise DovecotMissing("no dovecot and doveadm here: apt-get install dovecot-imapd")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if not said.startswith("2.3."):
        raise DovecotMissing(f"Dovecot {said.strip()} is not a 2.3: its configuration is another language")
    settings = subprocess.run(["doveconf", "-dh", "libexec_dir"], capture_output=True, text=True, check=True).stdout
    wanted = {"imap": True, "pop3": pop3, "lmtp": lmtp}
    for protocol in (name for name, needed in wanted.items() if needed):
        if not (Path(settings.strip()) / protocol).exists():
            package = "dovecot-lmtpd" if protocol == "lmtp" else f"dovecot-{protocol}d"
            raise DovecotMissing(f"this Dovecot has no {protocol}: apt-get install {package}")
    return Path(program)


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that nobody listens on right now, and none that this process has been given before."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = held.enter_context(socket.create_server((HOST, 0))).getsockname()[1]
            if port not in _given:
                ports.append(port)
                _given.add(port)
    return ports


def _pidfds_of_group(group: int) -> list[int]:
    """File descriptors that become readable when the processes of a process group end."""
    pidfds = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == group:
                pidfds.append(os.pidfd_open(pid))
    return pidfds


class Dovecot:
    """One running Dovecot. A context manager; afterwards neither processes nor files are left.

    `mail_root` (default: inside the temporary directory) keeps users' mail where the caller says, and may be shared by
    several servers: each user's home is `<mail_root>/<user>`. `settings` are further lines of configuration, last.
    """

    host = HOST
    password = "correct horse battery staple"

    def __init__(
        self,
        *,
        mail_format: MailFormat = "maildir",
        separator: str = "/",
        compress: bool = False,
        pop3: bool = False,
        lmtp: bool = False,
        certificate: Certificate | None = None,
        mail_root: Path | None = None,
        settings: str = "",
    ) -> None:
        self._program = find_dovecot(pop3=pop3, lmtp=lmtp)
        self._options = (mail_format, separator, compress, settings)
        self._protocols = ["imap", *(["pop3"] if pop3 else []), *(["lmtp"] if lmtp else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.root = Path(tempfile.mkdtemp(prefix="maild-dovecot-"))
        self.root.chmod(0o711)
        self.log_file = self.root / "dovecot.log"
        self.config_file = self.root / "dovecot.conf"
        self.mail_root = mail_root or self.root / "mail"
        self.mail_root.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(self.mail_root, self._owner.pw_uid, self._owner.pw_gid)
        authority = Authority(self.root / "certificates")
        self.ca_file = authority.ca_file
        self._certificate = certificate or authority.good()
        passwords = self.root / "passwords"
        passwords.write_text(f"everybody:{{PLAIN}}{self.password}\n")
        self._allocate_ports()

    def _allocate_ports(self) -> None:
        self.imap_port, self.imaps_port, self.pop3_port, self.pop3s_port, self.lmtp_port = free_ports(5)

    def __enter__(self) -> Dovecot:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id of the running master."""
        if self._process is None:
            raise DovecotFailed("this Dovecot does not run")
        return self._process.pid

    def start(self) -> None:
        """Start listening; returns when it does. Raises DovecotFailed with the log when it cannot."""
        for attempt in range(1, START_ATTEMPTS + 1):
            self.config_file.write_text(self._config())
            if self._launch():
                return
            log = self.log()
            if "Address already in use" not in log or attempt == START_ATTEMPTS:
                raise DovecotFailed(f"Dovecot did not start:\n{log[-2000:]}")
            self.log_file.unlink()
            self._allocate_ports()

    def _launch(self) -> bool:
        """Run the master until it says that it is ready (as it tells systemd); False if it ends or stays silent."""
        notices = self.root / "notify"
        notices.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(str(notices))
            # setpriv: should this process be killed, its Dovecot stops too.
            command = ["setpriv", "--pdeathsig", "TERM", str(self._program), "-F", "-c", str(self.config_file)]
            with (self.root / "stderr").open("ab") as stderr:
                self._process = subprocess.Popen(
                    command,
                    env={**os.environ, "NOTIFY_SOCKET": str(notices)},
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    start_new_session=True,
                )
            pidfd = os.pidfd_open(self._process.pid)
            try:
                readable, _, _ = select.select([notified.fileno(), pidfd], [], [], START_TIMEOUT_S)
                ready = readable == [notified.fileno()] and b"READY=1" in notified.recv(4096) and self._greets()
            except OSError:
                ready = False
            finally:
                os.close(pidfd)
        if not ready:
            self.stop()
        return ready

    def _greets(self) -> bool:
        """Whether it answers. A Dovecot stopped before its first connection would also take 5 s longer to end."""
        with socket.create_connection((self.host, self.imap_port), START_TIMEOUT_S) as connection:
            return connection.recv(4096).startswith(b"* OK")

    def stop(self) -> None:
        """End the server and all of its sessions; the mail stays. Nothing happens when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        sessions = _pidfds_of_group(process.pid)
        try:
            os.killpg(process.pid, signal.SIGTERM)  # the whole group: the master alone would let sessions go on
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise DovecotFailed(f"Dovecot had to be killed:\n{self.log()[-2000:]}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pidfd in sessions:
                select.select([pidfd], [], [])
                os.close(pidfd)

    def restart(self) -> None:
        """Stop and start on the same ports: every connection is lost."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop, and remove the temporary directory (not a `mail_root` that was given)."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.root)

    def log(self) -> str:
        """Everything it logged since it was made, and what it wrote to stderr."""
        files = (self.root / "stderr", self.log_file)
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def doveadm(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run one doveadm command on this server and return its output; DovecotFailed if it fails.

        For instance `doveadm("flags", "add", "-u", "jo", "\\\\Seen", "mailbox", "INBOX", "all")`. Mailbox names are
        plain UTF-8 here.
        """
        command = ["doveadm", "-c", str(self.config_file), *arguments]
        ran = subprocess.run(command, input=stdin, capture_output=True, check=False)
        if ran.returncode != 0:
            raise DovecotFailed(f"{' '.join(command)}: {ran.stderr.decode(errors='replace').strip()}")
        return ran.stdout.decode()

    def connect(self, user: str) -> imaplib.IMAP4:
        """A logged-in standard-library connection, for tests that change the server's side."""
        session = imaplib.IMAP4(self.host, self.imap_port)
        session.login(user, self.password)
        return session

    def import_messages(self, user: str, mailbox: str, messages: Iterable[Message]) -> list[int]:
        """Put messages (raw with CRLF, flags and keywords, INTERNALDATE) into a mailbox, made if missing; their UIDs.

        Some 10,000 small ones a second. Raises append.Refused.
        """
        return self.import_mailboxes(user, {mailbox: messages})[mailbox]

    def import_mailboxes(self, user: str, mailboxes: Mapping[str, Iterable[Message]]) -> dict[str, list[int]]:
        """The same for many mailboxes over one connection: name → messages; name → their UIDs."""
        with Filler(self.host, self.imap_port, user, self.password) as filler:
            uids = {}
            for mailbox, messages in mailboxes.items():
                if mailbox.upper() != "INBOX":
                    filler.create(mailbox)
                uids[mailbox] = filler.append(mailbox, messages)
            return uids

    def copy_store(self, destination: Path) -> None:
        """Copy all users' mail, for the `mail_root` of another Dovecot. No session may be open meanwhile."""
        subprocess.run(["cp", "-a", "--reflink=auto", f"{self.mail_root}/.", str(destination)], check=True)

    def _config(self) -> str:
        """The whole configuration file."""
        mail_format, separator, compress, extra = self._options
        special = "\n".join(
            f"  mailbox {name} {{\n    special_use = {mark}\n  }}" for name, mark in SPECIAL_USE.items()
        )
        return "\n".join(
            [
                _BASE.format(
                    root=self.root,
                    protocols=" ".join(self._protocols),
                    uid=self._owner.pw_uid,
                    gid=self._owner.pw_gid,
                    mail_root=self.mail_root,
                    location=f"{mail_format}:~/{mail_format}",
                    separator=separator,
                    special=special,
                    chain=self._certificate.chain_file,
                    key=self._certificate.key_file,
                ),
                "" if os.geteuid() == 0 else _unprivileged(self._owner),
                _listeners("imap-login", imap=self.imap_port, imaps=self.imaps_port),
                _listeners("pop3-login", pop3=self.pop3_port, pop3s=self.pop3s_port)
                if "pop3" in self._protocols
                else "",
                _listeners("lmtp", lmtp=self.lmtp_port) if "lmtp" in self._protocols else "",
                "protocol imap {\n  mail_plugins = $mail_plugins zlib imap_zlib\n}" if compress else "",
                extra,
                "",
            ]
        )


_BASE = """\
base_dir = {root}/run
state_dir = {root}/state
log_path = {root}/dovecot.log
protocols = {protocols}
listen = 127.0.0.1
login_greeting = ready

ssl = yes
ssl_cert = <{chain}
ssl_key = <{key}
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
# One line for everybody; a static passdb could not hold a password with spaces.
passdb {{
  driver = passwd-file
  args = username_format=everybody {root}/passwords
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={mail_root}/%u allow_all_users=yes
}}
first_valid_uid = 1
first_valid_gid = 1

mail_location = {location}
mail_fsync = never
mail_max_userip_connections = 0
namespace inbox {{
  inbox = yes
  separator = {separator}
{special}
}}

default_vsz_limit = 0
default_process_limit = 2048
service auth {{
  client_limit = 16384
}}
service anvil {{
  client_limit = 16384
  # without this socket, auth does not slow down after wrong passwords
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
"""


def _listeners(service: str, **ports: int) -> str:
    """A service with its inet listeners; login processes serve many logins each, so that a login costs no fork."""
    lines = [f"  inet_listener {name} {{\n    port = {port}\n  }}" for name, port in ports.items()]
    lines += ["  service_count = 0"] if service.endswith("-login") else []
    return f"service {service} {{\n" + "\n".join(lines) + "\n}"


def _unprivileged(owner: pwd.struct_passwd) -> str:
    """What an ordinary user's Dovecot must do without: other users, and chroot."""
    group = grp.getgrgid(owner.pw_gid).gr_name
    services = ("anvil", "imap-login", "pop3-login", "ipc", "director", "dns-client", "stats", "imap-urlauth-login")
    users = [
        f"default_internal_user = {owner.pw_name}",
        f"default_internal_group = {group}",
        f"default_login_user = {owner.pw_name}",
    ]
    return "\n".join([*users, *(f"service {name} {{\n  chroot =\n}}" for name in services)])
