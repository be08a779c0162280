"""A name server on loopback for SRV and MX records, over UDP and TCP; a context manager."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self


@dataclass(slots=True)
class NameServer:
    """`srv` and `mx` are records by name; `truncates` cuts every UDP answer, `code` is an error for every question."""

    srv: dict[str, list[tuple[int, int, int, str]]] = field(default_factory=dict)
    mx: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    truncates: bool = False
    code: int = 0
    garbage: bytes | None = None
    journal: list[str] = field(default_factory=list)
    _udp: socket.socket | None = None
    _tcp: socket.socket | None = None

    def __enter__(self) -> Self:
        while self._tcp is None:
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp.bind(("127.0.0.1", 0))
            try:
                self._tcp = socket.create_server(self._udp.getsockname())
            except OSError:  # the port is free for one of them only
                self._udp.close()
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in (self._udp, self._tcp):
            if sock is not None:
                end(sock)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._udp.getsockname() if self._udp else ("", 0)
        return host, port

    def _serve_udp(self) -> None:
        while self._udp is not None:
            try:
                question, client = self._udp.recvfrom(4096)
                if not question:  # shut down
                    return
                self._udp.sendto(self._answer(question, is_udp=True), client)
            except OSError:
                return

    def _serve_tcp(self) -> None:
        while self._tcp is not None:
            try:
                client, _ = self._tcp.accept()
            except OSError:
                return
            with client:
                (length,) = struct.unpack("!H", client.recv(2))
                answer = self._answer(client.recv(length), is_udp=False)
                client.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, question: bytes, *, is_udp: bool) -> bytes:
        if self.garbage is not None:
            return question[:2] + self.garbage
        labels, at = [], 12
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode())
            at += question[at] + 1
        name, (kind,) = ".".join(labels), struct.unpack_from("!H", question, at + 1)
        self.journal.append(name)
        rows: list[bytes] = []
        if kind == 33:
            rows = [struct.pack("!3H", *row[:3]) + encoded(row[3]) for row in self.srv.get(name, [])]
        elif kind == 15:
            rows = [struct.pack("!H", row[0]) + encoded(row[1]) for row in self.mx.get(name, [])]
        is_cut = self.truncates and is_udp
        flags = 0x8180 | (0x0200 if is_cut else 0) | self.code
        shown = [] if is_cut else rows
        head = struct.pack("!6H", *struct.unpack_from("!H", question), flags, 1, len(shown), 0, 0)
        records = [b"\xc0\x0c" + struct.pack("!2HIH", kind, 1, 60, len(row)) + row for row in shown]
        return head + question[12 : at + 5] + b"".join(records)


def encoded(name: str) -> bytes:
    """A name as labels; "." is the root."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name.strip(".").split(".") if label) + b"\0"


def end(sock: socket.socket) -> None:
    """Close it so that whoever waits in another thread is woken."""
    with suppress(OSError):  # UDP is not connected, and is woken all the same
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
