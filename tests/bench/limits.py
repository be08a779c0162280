"""The limits of this machine, timed beside the programs: what no client can do faster.

`read`: the FETCH that a client needs, read and thrown away; `retrieve`: the same over POP3, RETR after RETR sent ahead.
`write`: the same files, written with the same durability,
from memory. `least`: the least asyncio client that is still right: it parses the FETCH stream, turns CRLF into LF,
writes, renames, and makes each batch durable, by fsyncs in threads or by one syncfs. It knows nothing but this server.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import re
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

FETCH = b"fetch9 UID FETCH 1:* (UID FLAGS INTERNALDATE BODY.PEEK[])\r\n"
BUFFER_OCTETS = 256 << 10
BATCH_MESSAGES = 100
BATCH_OCTETS = 4 << 20
BATCHES_AHEAD = 2
FSYNC_THREADS = 8
AHEAD = 300

_LETTERS = {b"\\Answered": "R", b"\\Flagged": "F", b"\\Seen": "S"}
_HEAD = re.compile(rb'UID (\d+)|FLAGS \(([^)]*)\)|INTERNALDATE "([^"]*)"|\{(\d+)\}$')
_MONTHS = {name: n for n, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}
_LONE_CR = re.compile(rb"\r(?!\n)")
_POP3_END = b"\r\n.\r\n"

Item = tuple[str, int, bytes]  # flag letters, INTERNALDATE, wire form


class DurableMaildir:
    """Writes batches of messages durably: files, then their names, then the directories.

    `syncfs` flushes the whole file system once a batch, other programs' data too, in place of an fsync a file.
    """

    def __init__(self, path: Path, *, syncfs: bool = False) -> None:
        self._directories: dict[str, int] = {}
        for name in ("tmp", "new", "cur"):
            (path / name).mkdir(parents=True)
            self._directories[name] = os.open(path / name, os.O_RDONLY)
        self._syncers = ThreadPoolExecutor(FSYNC_THREADS)
        self._syncfs = ctypes.CDLL(None, use_errno=True).syncfs if syncfs else None
        self._count = 0

    def deliver(self, batch: Iterable[Item]) -> None:
        """Returns when the batch would survive a power failure."""
        written = [self._write(item) for item in batch]
        self._make_durable([fd for fd, _, _ in written])
        tmp = self._directories["tmp"]
        for fd, key, letters in written:
            os.close(fd)
            place, name = ("cur", f"{key}:2,{letters}") if letters else ("new", key)
            os.rename(key, name, src_dir_fd=tmp, dst_dir_fd=self._directories[place])
        os.fsync(self._directories["new"])
        os.fsync(self._directories["cur"])

    def _make_durable(self, fds: list[int]) -> None:
        if self._syncfs is None:
            for _ in self._syncers.map(os.fsync, fds):
                pass
        elif self._syncfs(fds[0]) != 0:
            raise OSError(ctypes.get_errno(), "syncfs failed")

    def _write(self, item: Item) -> tuple[int, str, str]:
        letters, date, raw = item
        self._count += 1
        key = f"{date}.Q{self._count}.limit"
        raw = raw.replace(b"\r\n", b"\n") if _LONE_CR.search(raw) else raw.translate(None, b"\r")
        fd = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._directories["tmp"])
        os.write(fd, raw)
        os.utime(fd, (date, date))
        return fd, key, letters


class LeastClient(asyncio.BufferedProtocol):
    """One connection, one FETCH; hands over batches and reads on only while few are waiting."""

    def __init__(self, maildir: DurableMaildir) -> None:
        self._buffer = bytearray(BUFFER_OCTETS)
        self._view = memoryview(self._buffer)
        self._line = b""
        self._parts: list[bytes] = []
        self._left = 0
        self._facts: tuple[str, int] = ("", 0)
        self._batch: list[Item] = []
        self._batch_octets = 0
        self._maildir = maildir
        self._writer = ThreadPoolExecutor(1)
        self._waiting: set[asyncio.Future[None]] = set()
        self.tagged: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    async def command(self, line: bytes) -> None:
        """Send, and wait for the tagged OK."""
        self.tagged = asyncio.get_running_loop().create_future()
        self.transport.write(line)
        answer = await self.tagged
        if answer.split()[1] != b"OK":
            raise SystemExit(answer.decode())

    async def finish(self) -> None:
        """Wait until everything is durable."""
        if self._batch:
            self._hand_over()
        await asyncio.gather(*self._waiting)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, count: int) -> None:
        start = 0
        while start < count:
            if self._left:
                end = min(count, start + self._left)
                self._parts.append(bytes(self._view[start:end]))
                self._left -= end - start
                start = end
                if not self._left:
                    self._message()
                continue
            end = self._buffer.find(b"\n", start, count)
            if end < 0:
                self._line += self._view[start:count]
                return
            line, self._line = self._line + bytes(self._view[start : end + 1]), b""
            start = end + 1
            self._response(line)

    def _response(self, line: bytes) -> None:
        if line[:2] == b"* " and line.endswith(b"}\r\n"):
            letters, date = "", 0
            for found in _HEAD.finditer(line[:-2]):
                if found[2]:
                    letters = "".join(sorted(_LETTERS[flag] for flag in found[2].split() if flag in _LETTERS))
                elif found[3]:
                    date = _unix_time(found[3])
                elif found[4]:
                    self._left = int(found[4])
            self._facts = (letters, date)
        elif line[:2] not in (b"* ", b")\r") and not self.tagged.done():
            self.tagged.set_result(line)

    def _message(self) -> None:
        raw = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._batch.append((*self._facts, raw))
        self._batch_octets += len(raw)
        if len(self._batch) >= BATCH_MESSAGES or self._batch_octets >= BATCH_OCTETS:
            self._hand_over()

    def _hand_over(self) -> None:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._writer, self._maildir.deliver, self._batch)
        self._batch, self._batch_octets = [], 0
        self._waiting.add(future)
        future.add_done_callback(self._durable)
        if len(self._waiting) >= BATCHES_AHEAD:
            self.transport.pause_reading()

    def _durable(self, future: asyncio.Future[None]) -> None:
        self._waiting.discard(future)
        future.result()
        if not self.transport.is_reading() and not self.transport.is_closing():
            self.transport.resume_reading()


def _unix_time(text: bytes) -> int:
    """An IMAP date-time, such as `29-Feb-2024 12:34:56 +0100`, in Unix seconds."""
    day, month, year = int(text[:2]), _MONTHS[text[3:6]], int(text[7:11])
    hour, minute, second = int(text[12:14]), int(text[15:17]), int(text[18:20])
    east_minutes = int(text[22:24]) * 60 + int(text[24:26])
    local = datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    return int(local) + (60 if text[21:22] == b"-" else -60) * east_minutes


async def least(port: int, user: str, password: str, directory: Path, *, syncfs: bool) -> None:
    """Fetch INBOX into a new Maildir."""
    loop = asyncio.get_running_loop()
    maildir = DurableMaildir(directory / "INBOX", syncfs=syncfs)
    _, client = await loop.create_connection(lambda: LeastClient(maildir), "127.0.0.1", port)
    await client.command(f'l LOGIN {user} "{password}"\r\n'.encode())
    await client.command(b"s EXAMINE INBOX\r\n")
    await client.command(FETCH)
    await client.finish()
    client.transport.close()


def read(port: int, user: str, password: str) -> float:
    """Seconds that the FETCH takes when nothing is done with what arrives."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f'l LOGIN {user} "{password}"\r\ns EXAMINE INBOX\r\n'.encode())
        text = b""
        while b"\ns OK" not in text:
            text += connection.recv(65_536)
        buffer = bytearray(BUFFER_OCTETS)
        view = memoryview(buffer)
        began = time.monotonic()
        connection.sendall(FETCH)
        tail = b""
        while b"\nfetch9 " not in tail:
            count = connection.recv_into(buffer)
            tail = bytes(view[max(0, count - 100) : count]) if count >= 100 else tail[-100:] + view[:count]
        return time.monotonic() - began


def retrieve(port: int, user: str, password: str) -> float:
    """Seconds that RETR of everything takes over POP3, `AHEAD` commands at a time, when nothing is done with it."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"USER {user}\r\nPASS {password}\r\nSTAT\r\n".encode())
        text = b""
        while text.count(b"\n") < 4:  # the greeting first
            text += connection.recv(65_536)
        count = int(text.splitlines()[3].split()[1])
        began = time.monotonic()
        asked = min(count, AHEAD)
        connection.sendall(b"".join(b"RETR %d\r\n" % n for n in range(1, asked + 1)))
        ended, tail = 0, b""
        while ended < count:
            octets = tail + connection.recv(BUFFER_OCTETS)
            more = octets.count(_POP3_END)
            ended, tail = ended + more, octets[-len(_POP3_END) + 1 :]
            if asked < count and more:
                ahead = min(count, ended + AHEAD)
                connection.sendall(b"".join(b"RETR %d\r\n" % n for n in range(asked + 1, ahead + 1)))
                asked = ahead
        return time.monotonic() - began


def write(corpus: str, count: int, directory: Path) -> float:
    """Seconds that it takes to write the corpus from memory, durably."""
    from tests.bench import corpus as bench_corpus

    make = {"mail": bench_corpus.mail, "small": bench_corpus.small}[corpus]
    items = [(message.fact().letters, message.date, message.raw) for message in make(count)]
    maildir = DurableMaildir(directory / "INBOX")
    began = time.monotonic()
    for start in range(0, count, BATCH_MESSAGES):
        maildir.deliver(items[start : start + BATCH_MESSAGES])
    return time.monotonic() - began


def main() -> None:
    """`limits read|retrieve|least|write …`; all but `least` print their seconds as JSON."""
    parser = argparse.ArgumentParser(prog="tests.bench.limits")
    parser.add_argument("what", choices=("read", "retrieve", "least", "write"))
    parser.add_argument("--port", type=int)
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--syncfs", action="store_true")
    parser.add_argument("--corpus")
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    if arguments.what == "least":
        where = (arguments.port, arguments.user, arguments.password, arguments.directory)
        asyncio.run(least(*where, syncfs=arguments.syncfs))
    elif arguments.what in {"read", "retrieve"}:
        measure = read if arguments.what == "read" else retrieve
        print(json.dumps({"wall_s": measure(arguments.port, arguments.user, arguments.password)}))
    else:
        print(json.dumps({"wall_s": write(arguments.corpus, arguments.count, arguments.directory)}))


if __name__ == "__main__":
    main()
