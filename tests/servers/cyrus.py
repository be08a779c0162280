"""A private Cyrus IMAP 3 for the long live tests: everything in one temporary directory, on one loopback port.

Debian's cyrus-imapd cannot be installed beside Dovecot (each conflicts with `imap-server`). So its `imapd` is fetched
and unpacked, not installed; master, tools and libraries are those of cyrus-common, which conflicts with nothing. Any
user name exists and has the one password: where Cyrus asks saslauthd, this module answers.
"""

from __future__ import annotations

import contextlib
import imaplib
import os
import pwd
import select
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from tests.servers.dovecot import HOST, free_ports

PACKAGE = "cyrus-imapd"
MASTER = Path("/usr/lib/cyrus/bin/master")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
LOOK_AGAIN_S = 0.02


class CyrusMissing(Exception):
    """It cannot be had here; the text says why."""


class CyrusFailed(Exception):
    """Cyrus did not do what it was asked; the text holds the end of what it said."""


class Cyrus:
    """One running Cyrus with altnamespace and "/" between levels. A context manager; afterwards nothing is left.

    A user's first login makes INBOX and Trash. Raises CyrusMissing where the programs are not to be had.
    """

    host = HOST
    password = "correct horse battery staple"

    def __init__(self) -> None:
        if not MASTER.exists():
            raise CyrusMissing("no Cyrus here: apt-get install cyrus-common")
        self.root = Path(tempfile.mkdtemp(prefix="maild-cyrus-"))
        try:
            self._imapd = _unpacked(self.root)
        except BaseException:
            shutil.rmtree(self.root)
            raise
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = _Saslauthd(str(self.root / "saslauthd"), self.password)
        (self.imap_port,) = free_ports(1)

    def __enter__(self) -> Cyrus:
        try:
            self._prepare()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def connect(self, user: str) -> imaplib.IMAP4:
        """A logged-in standard-library connection, for tests that change the server's side."""
        session = imaplib.IMAP4(self.host, self.imap_port)
        session.login(user, self.password)
        return session

    def close(self) -> None:
        """Stop, and remove the temporary directory."""
        try:
            self._stop()
        finally:
            self._asked.close()
            shutil.rmtree(self.root)

    def _prepare(self) -> None:
        owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.root.chmod(0o711)
        settings = _SETTINGS.format(root=self.root, owner=owner.pw_name)
        (self.root / "imapd.conf").write_text(settings)
        services = _SERVICES.format(root=self.root, imapd=self._imapd, port=self.imap_port, bin=MASTER.parent)
        (self.root / "cyrus.conf").write_text(services)
        for name in ("conf", "conf/socket", "mail", "lock", "proc", "run"):
            (self.root / name).mkdir()
            if os.geteuid() == 0:
                os.chown(self.root / name, owner.pw_uid, owner.pw_gid)

    def _start(self) -> None:
        # setpriv: should this process be killed, its Cyrus stops too.
        command = ["setpriv", "--pdeathsig", "TERM", str(MASTER), "-D", "-p", str(self.root / "run" / "pid")]
        command += ["-C", str(self.root / "imapd.conf"), "-M", str(self.root / "cyrus.conf")]
        with (self.root / "said").open("ab") as said:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "CYRUS_VERBOSE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._greets():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self.root / "said").read_text(errors="replace")
                raise CyrusFailed(f"Cyrus did not start (its log is syslog's); it said:\n{text[-2000:]}")
            time.sleep(LOOK_AGAIN_S)

    def _greets(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.imap_port), START_TIMEOUT_S) as line:
            return line.recv(4096).startswith(b"* OK")
        return False

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        pidfd = os.pidfd_open(process.pid)
        try:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # the whole group: the master alone would let sessions go on
            ended, _, _ = select.select([pidfd], [], [], STOP_TIMEOUT_S)
        finally:
            os.close(pidfd)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not ended:
            raise CyrusFailed("Cyrus had to be killed")


class _Saslauthd(socketserver.ThreadingUnixStreamServer):
    """The protocol of Cyrus SASL's saslauthd: four counted strings (user, password, service, realm), one as answer."""

    daemon_threads = True

    def __init__(self, path: str, password: str) -> None:
        super().__init__(path, _Question)
        self.password = password.encode()
        Path(path).chmod(0o666)
        self._thread = threading.Thread(target=self.serve_forever, name="saslauthd", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Question(socketserver.StreamRequestHandler):
    server: _Saslauthd

    def handle(self) -> None:
        strings = []
        for _ in range(4):
            (octets,) = struct.unpack("!H", self.rfile.read(2))
            strings.append(self.rfile.read(octets))
        answer = b"OK" if strings[1] == self.server.password else b"NO"
        self.wfile.write(struct.pack("!H", len(answer)) + answer)


def _unpacked(root: Path) -> Path:
    """The program `imapd`, of the release that is in cyrus-common."""
    if shutil.which("apt-get") is None:
        raise CyrusMissing("no apt-get here")
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Version}", "cyrus-common"],
        capture_output=True,
        text=True,
        check=False,
    )
    wanted = f"{PACKAGE}={shown.stdout}" if shown.returncode == 0 else PACKAGE
    packages = root / "packages"
    packages.mkdir()
    got = subprocess.run(
        ["apt-get", "download", "-qq", wanted], cwd=packages, capture_output=True, text=True, check=False
    )
    if got.returncode != 0:
        raise CyrusMissing(f"apt-get download {wanted}: {got.stderr.strip()[-200:]}")
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root / "unpacked")], check=True)
    (program,) = (root / "unpacked").rglob("imapd")
    return program


_SETTINGS = """\
configdirectory: {root}/conf
proc_path: {root}/proc
mboxname_lockpath: {root}/lock
defaultpartition: default
partition-default: {root}/mail
cyrus_user: {owner}
servername: localhost
altnamespace: yes
unixhierarchysep: yes
conversations: yes
munge8bit: no
allowplaintext: yes
failedloginpause: 0
sasl_mech_list: PLAIN LOGIN
sasl_pwcheck_method: saslauthd
sasl_saslauthd_path: {root}/saslauthd
autocreate_quota: 0
autocreate_inbox_folders: Trash
autocreate_subscribe_folders: Trash
xlist-trash: Trash
"""

_SERVICES = """\
START {{
  recover cmd="{bin}/ctl_cyrusdb -C {root}/imapd.conf -r"
}}
SERVICES {{
  imap cmd="{imapd} -C {root}/imapd.conf -U 50" listen="127.0.0.1:{port}" prefork=1
}}
EVENTS {{
}}
"""
