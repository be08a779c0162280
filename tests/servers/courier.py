"""A Courier POP3 server of one's own: Courier's program for what comes after the login, behind a login of ours.

Debian's courier-pop cannot stand beside Dovecot's POP3 (each conflicts with `pop3-server`), and Courier's own login
asks an authentication daemon at a path that is compiled in. So the packages are downloaded and unpacked, not installed,
and `courierpop3d` is started on each connection whose USER and PASS are right, as `courierpop3login` would do it.
"""

from __future__ import annotations

import os
import shutil
import socketserver
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, cast

PACKAGES = ("courier-pop", "courier-authlib", "libcourier-unicode4")
CAPABILITIES = ("TOP", "USER", "LOGIN-DELAY 10", "PIPELINING", "UIDL", "IMPLEMENTATION Courier Mail Server")


class CourierMissing(Exception):
    """It cannot be had here; the text says why."""


class Courier:
    """One maildrop on one port. A context manager; afterwards neither processes nor files are left."""

    host = "127.0.0.1"
    user = "jo"
    password = "correct horse battery staple"

    def __enter__(self) -> Courier:
        self._session = threading.Lock()  # one has the maildrop at a time
        self._root = Path(tempfile.mkdtemp(prefix="maild-courier-"))
        try:
            self.maildir = self._root / "home" / "Maildir"
            for subdir in ("cur", "new", "tmp"):
                (self.maildir / subdir).mkdir(parents=True)
            self._program, self._libraries = _unpacked(self._root)
            self._server = _Server((self.host, 0), _Login)
        except BaseException:
            shutil.rmtree(self._root)
            raise
        self._server.courier = self
        self.pop3_port = self.imap_port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="courier", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()  # waits for the sessions, whose clients have ended
        shutil.rmtree(self._root)

    def deliver(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Put messages (name, disk form) into the maildrop."""
        for name, octets in messages:
            (self.maildir / "tmp" / name).write_bytes(octets)
            (self.maildir / "tmp" / name).rename(self.maildir / "new" / name)

    def messages(self) -> Counter[bytes]:
        """What is in the maildrop, in disk form, when no session has it."""
        with self._session:
            files = [path for subdir in ("cur", "new") for path in (self.maildir / subdir).iterdir()]
            return Counter(path.read_bytes() for path in files)

    def serve(self, connection: int) -> None:
        """Let Courier carry on with a connection that is logged in."""
        facts = {"AUTHENTICATED": self.user, "TCPREMOTEIP": self.host, "TCPREMOTEPORT": "0"}
        with self._session:
            subprocess.run(
                [str(self._program), self.maildir.name],
                cwd=self.maildir.parent,
                env={**os.environ, **facts, "LD_LIBRARY_PATH": self._libraries},
                stdin=connection,
                stdout=connection,
                stderr=subprocess.DEVNULL,
                check=False,
            )


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = False
    courier: Courier


class _Lines(Protocol):
    def readline(self) -> bytes: ...


class _Login(socketserver.StreamRequestHandler):
    rbufsize = 0  # what follows the password is Courier's to read

    def handle(self) -> None:
        """CAPA, USER and PASS."""
        courier = cast("_Server", self.server).courier
        user = ""
        self._say("+OK Hello there.")
        while line := cast("_Lines", self.rfile).readline():
            command, _, argument = line.decode().rstrip("\r\n").partition(" ")
            if command == "PASS" and (user, argument) == (courier.user, courier.password):
                courier.serve(self.connection.fileno())
                return
            if command == "USER":
                user = argument
            match command:
                case "CAPA":
                    self._say("+OK Here's what I can do:", *CAPABILITIES, ".")
                case "USER":
                    self._say("+OK Password required.")
                case "PASS":
                    self._say("-ERR Login failed.")
                case "QUIT":
                    self._say("+OK Better luck next time.")
                    return
                case _:
                    self._say("-ERR Invalid command.")

    def _say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())


def _unpacked(root: Path) -> tuple[Path, str]:
    """courierpop3d, and where its libraries are."""
    if shutil.which("apt-get") is None:
        raise CourierMissing("no apt-get here")
    packages = root / "packages"
    packages.mkdir(mode=0o755)
    got = subprocess.run(
        ["apt-get", "download", "-qq", *PACKAGES], cwd=packages, capture_output=True, text=True, check=False
    )
    if got.returncode != 0:
        raise CourierMissing(f"apt-get download {' '.join(PACKAGES)}: {got.stderr.strip()[-200:]}")
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root / "courier")], check=True)
    (program,) = (root / "courier").rglob("courierpop3d")
    libraries = sorted({str(path.parent) for path in (root / "courier").rglob("*.so.*")})
    return program, os.pathsep.join(libraries)
