"""A private Postfix for live tests and the bench: its own configuration and queue, never the system's; loopback only.

It hands everything to one server, `relay`. With a `Dovecot` that knows the passwords it is a submission server too. It
needs root, as Postfix does.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.servers.certificates import Authority
from tests.servers.dovecot import free_ports

HOST = "127.0.0.1"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0

_MAIN = {
    "compatibility_level": "3.6",
    "maillog_file_prefixes": "/",
    "mail_owner": "postfix",
    "setgid_group": "postdrop",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "myhostname": "postfix.test.example",
    "mydestination": "",
    "alias_maps": "",
    "smtp_dns_support_level": "disabled",
    "smtp_tls_security_level": "none",
}
_MASTER = """\
pickup unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
_SMTPD = """\
{starttls} inet n - n - - smtpd
  -o smtpd_tls_security_level=encrypt
{implicit} inet n - n - - smtpd
  -o smtpd_tls_wrappermode=yes
"""


class PostfixMissing(Exception):
    """Postfix cannot be run here; the text says why."""


class PostfixFailed(Exception):
    """It did not do what it was asked; the text holds the end of its log."""


def find_postfix() -> str | None:
    """Why no Postfix can be run here, None if one can."""
    if shutil.which("postfix", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        return "no postfix: apt-get install postfix"
    return None if os.geteuid() == 0 else "Postfix is started by root only"


class Postfix:
    """One running Postfix. A context manager; afterwards neither processes nor files are left. Raises PostfixMissing.

    `auth_socket` is that of a Dovecot (see `dovecot_auth`); `settings` are further lines of main.cf.
    """

    def __init__(
        self, relay_port: int, *, auth_socket: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        if (reason := find_postfix()) is not None:
            raise PostfixMissing(reason)
        self.starttls_port, self.implicit_port = free_ports(2)
        self._has_submission = auth_socket is not None
        self._process: subprocess.Popen[bytes] | None = None
        self.root = Path(tempfile.mkdtemp(prefix="maild-postfix-"))
        self.root.chmod(0o711)
        authority = Authority(self.root / "certificates")
        self.ca_file = authority.ca_file
        certificate = authority.good()
        self.config, self.queue = self.root / "config", self.root / "queue"
        self.config.mkdir()
        self.queue.mkdir()
        (self.root / "data").mkdir()
        shutil.chown(self.root / "data", "postfix")
        main = _MAIN | {
            "queue_directory": str(self.queue),
            "data_directory": str(self.root / "data"),
            "maillog_file": str(self.root / "log"),
            "relayhost": f"[{HOST}]:{relay_port}",
            "smtpd_tls_cert_file": str(certificate.chain_file),
            "smtpd_tls_key_file": str(certificate.key_file),
        }
        if auth_socket is not None:
            main |= {
                "smtpd_sasl_auth_enable": "yes",
                "smtpd_sasl_type": "dovecot",
                "smtpd_sasl_path": str(auth_socket),
                "smtpd_tls_auth_only": "yes",
                "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
            }
        self._main = main | dict(settings or {})
        self._write()

    def _write(self) -> None:
        (self.config / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in self._main.items()))
        listeners = _SMTPD.format(starttls=self.starttls_port, implicit=self.implicit_port)
        (self.config / "master.cf").write_text((listeners if self._has_submission else "") + _MASTER)

    def __enter__(self) -> Postfix:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(self) -> None:
        self.run("/usr/sbin/postfix", "-c", str(self.config), "check")  # makes what is missing in the queue directory
        # setpriv: should this process be killed, its Postfix stops too.
        command = ["setpriv", "--pdeathsig", "TERM", "/usr/lib/postfix/sbin/master", "-c", str(self.config), "-s", "-d"]
        with (self.root / "stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise PostfixFailed(f"Postfix did not start:\n{self.log()[-2000:]}")
            time.sleep(0.02)

    def _is_up(self) -> bool:
        if not self._has_submission:
            return (self.queue / "public" / "pickup").exists()
        try:
            with socket.create_connection((HOST, self.starttls_port), 5.0) as connection:
                return connection.recv(4096).startswith(b"220 ")
        except OSError:
            return False

    def set(self, name: str, value: str) -> None:
        """Change a setting; it holds when this returns."""
        self._main[name] = value
        self._write()
        self.run("/usr/sbin/postfix", "-c", str(self.config), "reload")

    def run(self, *command: str, stdin: bytes = b"") -> bytes:
        """One of its commands; what it says."""
        ran = subprocess.run(command, input=stdin, capture_output=True, check=False)
        if ran.returncode != 0:
            raise PostfixFailed(f"{' '.join(command)}: {ran.stderr.decode(errors='replace')}\n{self.log()[-2000:]}")
        return ran.stdout

    def waiting(self, *queues: str) -> int:
        """How many messages are in these queues, by default in all of them."""
        names = queues or ("maildrop", "incoming", "active", "deferred")
        return sum(1 for name in names for _, _, files in os.walk(self.queue / name) for _ in files)

    def log(self) -> str:
        """Everything that it said."""
        files = (self.root / "stderr", self.root / "log")
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def close(self) -> None:
        """Stop it and all its processes, and remove its directory."""
        process, self._process = self._process, None
        try:
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        finally:
            shutil.rmtree(self.root)


def dovecot_auth(socket_path: Path) -> str:
    """Settings of a Dovecot that is to answer Postfix's questions about passwords there."""
    return f"service auth {{\n  unix_listener {socket_path} {{\n    mode = 0666\n  }}\n}}\n"
