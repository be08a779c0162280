"""What is heard and seen of a delivery, to the tenth of a millisecond: the server's own notice, and the file.

One thread waits for all of it: a bare IDLE connection on loopback for each account, and inotify on each Maildir.
"""

from __future__ import annotations

import ctypes
import os
import re
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from tests.bench.clients import Server

_CREATE, _MOVED_TO = 0x100, 0x80  # inotify(7)
_HEAD = struct.Struct("iIII")
_NUMBER = re.compile(rb"^Message-ID: <(\d+)@", re.MULTILINE | re.IGNORECASE)
_EXISTS = re.compile(rb"\* (\d+) EXISTS")
_HEAD_OCTETS = 8_000
_TIMEOUT_S = 30.0


def idling(server: Server) -> tuple[socket.socket, int]:
    """A connection that idles on INBOX, and how many messages are there."""
    connection = socket.create_connection((server.host, server.port), _TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = connection.makefile("rb")
    lines.readline()
    count = 0
    for tag, command in ((b"1", f'LOGIN {server.user} "{server.password}"'), (b"2", "SELECT INBOX"), (b"+", "IDLE")):
        connection.sendall(f"{tag.decode() if tag != b'+' else '3'} {command}\r\n".encode())
        while not (line := lines.readline()).startswith(tag):
            if not line or line.startswith(tag[:1] + b" NO"):
                raise OSError(f"{command.split()[0]}: the server said {line!r}")
            if found := _EXISTS.match(line):
                count = int(found[1])
    lines.detach()
    return connection, count


@dataclass(slots=True)
class Sightings:
    """Of one account: when the server told of how many messages, and when which message was in the Maildir."""

    base: int
    told_s: dict[int, float] = field(default_factory=dict)  # the n-th delivered message → first notice that covers it
    seen_s: dict[int, float] = field(default_factory=dict)  # its number → its file
    files: dict[int, dict[str, Path]] = field(default_factory=dict)  # its number → by key, where each copy was last
    _highest: int = 0

    def tell(self, count: int, at_s: float) -> None:
        """The server says that there are so many now."""
        for n in range(self._highest + 1, count - self.base + 1):
            self.told_s[n] = at_s
        self._highest = max(self._highest, count - self.base)

    def see(self, path: Path, at_s: float) -> None:
        """A file is there. One that is already gone again was renamed, and seen before."""
        with suppress(FileNotFoundError), path.open("rb") as file:
            if found := _NUMBER.search(file.read(_HEAD_OCTETS)):
                self.seen_s.setdefault(int(found[1]), at_s)
                self.files.setdefault(int(found[1]), {})[path.name.partition(":")[0]] = path


class Witness:
    """A context manager with the thread. Accounts are added before anything is delivered to them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._selector = selectors.DefaultSelector()
        self._stop_reading, self._stop = os.pipe()
        self._selector.register(self._stop_reading, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)
        self._connections: list[socket.socket] = []
        self._descriptors: list[int] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._stop)
        self._thread.join()
        for connection in self._connections:
            connection.close()
        for descriptor in [self._stop_reading, *self._descriptors]:
            os.close(descriptor)
        self._selector.close()

    def account(self, server: Server, mailbox: Path) -> Sightings:
        """Begin to watch an account whose Maildir is there already."""
        connection, count = idling(server)
        connection.setblocking(False)
        sightings = Sightings(count)
        descriptor = _watching([mailbox / "new", mailbox / "cur"])
        self._connections.append(connection)
        self._descriptors.append(descriptor)
        rest = bytearray()
        places = {1: mailbox / "new", 2: mailbox / "cur"}  # inotify counts its watches
        hear, look = partial(_hear, connection, rest, sightings), partial(_look, descriptor, places, sightings)
        self._selector.register(connection, selectors.EVENT_READ, hear)
        self._selector.register(descriptor, selectors.EVENT_READ, look)
        return sightings

    def wait(self, happened: Callable[[], bool], limit_s: float) -> bool:
        """Wait until it is so; whether it was in time."""
        with self.changed:
            return self.changed.wait_for(happened, limit_s)

    def _run(self) -> None:
        while True:
            ready = self._selector.select()
            at_s = time.monotonic()
            with self.changed:
                for key, _ in ready:
                    if key.data is None:
                        return
                    key.data(at_s)
                self.changed.notify_all()


def _hear(connection: socket.socket, rest: bytearray, sightings: Sightings, at_s: float) -> None:
    with suppress(BlockingIOError):
        rest += connection.recv(65_536)
    *lines, last = bytes(rest).split(b"\r\n")
    rest[:] = last
    for line in lines:
        if found := _EXISTS.match(line):
            sightings.tell(int(found[1]), at_s)


def _look(descriptor: int, places: dict[int, Path], sightings: Sightings, at_s: float) -> None:
    octets = os.read(descriptor, 65_536)
    at = 0
    while at < len(octets):
        watch, _, _, length = _HEAD.unpack_from(octets, at)
        at += _HEAD.size + length
        name = os.fsdecode(octets[at - length : at].rstrip(b"\0"))
        sightings.see(places[watch] / name, at_s)


def _watching(directories: list[Path]) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    descriptor: int = library.inotify_init1(os.O_CLOEXEC)
    for directory in directories:
        if library.inotify_add_watch(descriptor, os.fsencode(directory), _CREATE | _MOVED_TO) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(directory))
    return descriptor
