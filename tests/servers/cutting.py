"""A line to a real IMAP server that ends at a command to order: one not carried out, or one whose answer is lost.

For plain connections without IDLE, one at a time. A command that is to be cut waits until those before it have been
answered, so that what the server has done by then, and what the client knows of it, is the same each time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

HOST = "127.0.0.1"
CHUNK_OCTETS = 64 << 10
_LITERAL = re.compile(rb"\{(\d+)\+?\}\r\n\Z")


class Way(Enum):
    """What becomes of the command at which the line ends."""

    NOT_SENT = "it does not reach the server"
    UNANSWERED = "it is carried out, and nothing of the answer arrives"
    HALF_ANSWERED = "it is carried out, and half of the answer arrives"


@dataclass(frozen=True, slots=True)
class Piece:
    """A line or a part of a literal. `begins` and `ends` tell of the command or response that it belongs to."""

    octets: bytes
    begins: bool
    ends: bool


class Pieces:
    """Octets of one direction, cut where lines and literals end."""

    def __init__(self) -> None:
        self._buffer = b""
        self._literal_octets = 0
        self._is_inside = False

    def of(self, octets: bytes) -> Iterator[Piece]:
        """What is complete with these octets; the rest is kept."""
        self._buffer += octets
        while self._buffer:
            if self._literal_octets:
                taken = min(self._literal_octets, len(self._buffer))
                self._literal_octets -= taken
                ends = False
            else:
                taken = self._buffer.find(b"\n") + 1
                if not taken:
                    return
                literal = _LITERAL.search(self._buffer[:taken])
                self._literal_octets = int(literal[1]) if literal else 0
                ends = literal is None
            piece, self._buffer = self._buffer[:taken], self._buffer[taken:]
            yield Piece(piece, begins=not self._is_inside, ends=ends)
            self._is_inside = not ends


class CutLine:
    """See the module. An async context manager; `port` leads to the server on `target_port`."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._at: int | None = None
        self._way = Way.NOT_SENT
        self._commands = 0
        self._is_cut = False
        self._links: dict[_Link, asyncio.Task[None]] = {}

    async def __aenter__(self) -> CutLine:
        self._server = await asyncio.start_server(self._carry, HOST, 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for link in self._links:
            link.close()
        await asyncio.gather(*self._links.values())

    def cut_at(self, command: int, way: Way) -> None:
        """End the line at the command with this number, counted from 0 and from now; no line works after it."""
        self._at, self._way, self._commands = command, way, 0

    def repair(self) -> bool:
        """Everything works again; whether the command to be cut at was reached."""
        was_cut, self._at, self._is_cut = self._is_cut, None, False
        return was_cut

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.close()
            return
        link = _Link(self, reader, writer, *await asyncio.open_connection(HOST, self._target_port))
        self._links[link] = asyncio.create_task(link.run())

    def forget(self, link: _Link) -> None:
        del self._links[link]

    def is_due(self) -> bool:
        """Count one more command; whether it is the one to cut at."""
        if self._at is None:
            return False
        self._commands += 1
        return self._commands == self._at + 1

    @property
    def way(self) -> Way:
        return self._way

    def note_cut(self) -> None:
        self._is_cut = True


class _Link:
    """One connection and its counterpart to the server."""

    def __init__(
        self,
        line: CutLine,
        from_client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._line = line
        self._from_client, self._to_client = from_client, to_client
        self._from_server, self._to_server = from_server, to_server
        self._open: set[bytes] = set()  # tags of what is not answered yet
        self._answered = asyncio.Condition()
        self._withheld: bytearray | None = None

    async def run(self) -> None:
        """Carry octets both ways until both sides have finished, one is gone, or the line is cut."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._up())
                tasks.create_task(self._down())
        except* ConnectionError:
            pass  # either side may leave at any time
        finally:
            self.close()
            self._line.forget(self)

    def close(self) -> None:
        self._to_client.close()
        self._to_server.close()

    async def _up(self) -> None:
        """Until the client leaves, or the line is cut."""
        pieces, is_last = Pieces(), False
        while octets := await self._from_client.read(CHUNK_OCTETS):
            for piece in pieces.of(octets):
                if piece.begins:
                    if is_last := self._line.is_due():
                        await self._all_answered()
                        if self._line.way is Way.NOT_SENT:
                            await self._cut()
                            return
                        self._withheld = bytearray()
                    self._open.add(piece.octets.split(None, 1)[0])
                self._to_server.write(piece.octets)
                await self._to_server.drain()
                if is_last and piece.ends:
                    await self._all_answered()
                    await self._cut()
                    return
        self._to_server.write_eof()

    async def _all_answered(self) -> None:
        async with self._answered:
            await self._answered.wait_for(lambda: not self._open)

    async def _cut(self) -> None:
        self._line.note_cut()
        if self._line.way is Way.HALF_ANSWERED and self._withheld is not None:
            self._to_client.write(bytes(self._withheld[: len(self._withheld) // 2]))
            await self._to_client.drain()
        self.close()

    async def _down(self) -> None:
        pieces = Pieces()
        while octets := await self._from_server.read(CHUNK_OCTETS):
            for piece in pieces.of(octets):
                if self._withheld is None or piece.octets.startswith(b"+"):
                    self._to_client.write(piece.octets)
                    await self._to_client.drain()
                else:
                    self._withheld += piece.octets
                if piece.begins:
                    async with self._answered:
                        self._open.discard(piece.octets.split(None, 1)[0])
                        self._answered.notify_all()
        async with self._answered:
            self._open.clear()  # the server has left, as after LOGOUT
            self._answered.notify_all()
        self._to_client.close()
