"""One connection's octets, both ways: what is sent, what arrives, and that neither side runs away from the other.

Without compression what arrives is handed on as it lies in the buffer that it was read into. With compression
(RFC 4978) it is inflated piece by piece: while nobody wants more, or when the event loop has others to serve, the rest
stays compressed and nothing is read, so that a stream which blows up a thousandfold takes no memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from maild.core.errors import ConnectionLost, MaildError
from maild.remote.imap.deflate import Deflation, Inflation
from maild.remote.imap.liveness import keep_alive

STALL_S = 60.0  # within this, whoever waits must see `STALL_OCTETS` move or what he waits for
STALL_OCTETS = 4096  # a byte now and then is no proof of life
PIECE_OCTETS = 64 << 10  # inflated at a time
TURN_OCTETS = 256 << 10  # inflated before others have their turn; as much as one read brings

Take = Callable[[bytes | bytearray | memoryview, int], None]


class Line:
    """The transport of one connection. `take` gets what arrives, `fail` is told why the connection must end."""

    def __init__(self, server: str, take: Take, fail: Callable[[MaildError], None]) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.received_octets = 0  # as they are when inflated
        self._take = take
        self._fail = fail
        self._deflation: Deflation | None = None
        self._inflation: Inflation | None = None
        self._is_over = False
        self._is_unwanted = False  # nobody wants more for now
        self._is_stopped = False  # nothing is read from the transport
        self._turn: asyncio.Handle | None = None
        self._writable: asyncio.Event | None = None  # while the line takes nothing

    def attach(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport if isinstance(transport, asyncio.Transport) else None
        if (sock := transport.get_extra_info("socket")) is not None:
            keep_alive(sock)

    # -- what arrives

    def received(self, octets: bytes | bytearray | memoryview, length: int) -> None:
        """The first `length` of these have arrived; they may be reused afterwards."""
        if self._is_over:
            return
        if self._inflation is None:
            self.received_octets += length
            self._take(octets, length)
        else:
            self._inflation.add(memoryview(octets)[:length])
            self._inflate(self._inflation)

    def compress(self) -> None:
        """From here on both ways are compressed."""
        self._deflation, self._inflation = Deflation(), Inflation(PIECE_OCTETS)

    def _inflate(self, inflation: Inflation) -> None:
        """Hand on what there is, as far as it is wanted."""
        left = TURN_OCTETS
        try:
            while left > 0 and not self._is_unwanted and not self._is_over and (piece := inflation.piece()):
                left -= len(piece)
                self.received_octets += len(piece)
                self._take(piece, len(piece))
        except MaildError as exc:
            self._fail(exc)
        self._regulate()

    def _take_turn(self) -> None:
        self._turn = None
        try:
            if self._inflation is not None:
                self._inflate(self._inflation)
        except BaseException:  # from a transport's own call it would end the connection, too
            self.abort()
            raise

    def stop(self) -> None:
        """Read nothing more from this transport; another will take its place."""
        if self.transport is not None:
            self.transport.pause_reading()

    def pause(self) -> None:
        """Hand on nothing more until `resume`."""
        self._is_unwanted = True
        self._regulate()

    def resume(self) -> None:
        self._is_unwanted = False
        self._regulate()

    def _regulate(self) -> None:
        """Read if more is wanted and nothing is left to inflate; if something is left and wanted, take a turn."""
        if self._is_over or self.transport is None:
            return
        has_more = self._inflation is not None and self._inflation.has_more
        if has_more and not self._is_unwanted and self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)
        is_stopped = has_more or self._is_unwanted
        if is_stopped != self._is_stopped:
            self._is_stopped = is_stopped
            if is_stopped:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    # -- what is sent

    def write(self, octets: bytes) -> None:
        if self.transport is not None and not self._is_over:
            self.transport.write(octets if self._deflation is None else self._deflation.deflated(octets))

    def pause_writing(self) -> None:
        self._writable = self._writable or asyncio.Event()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set()

    @property
    def unsent_octets(self) -> int:
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    async def room(self) -> None:
        """Wait until what was sent is on its way, but for a little; a server that takes nothing is dropped."""
        while (writable := self._writable) is not None:
            unsent = self.unsent_octets
            with anyio.move_on_after(STALL_S):
                await writable.wait()
            if not writable.is_set() and self.unsent_octets > unsent - STALL_OCTETS:
                self._fail(ConnectionLost(f"{self.server} took nothing for {STALL_S:.0f} s"))

    async def watched(self, event: asyncio.Event, is_ready: Callable[[], bool]) -> None:
        """Wait for `event` as long as octets keep coming; a connection that stalls is dropped."""
        while not is_ready():
            before = self.received_octets
            event.clear()
            with anyio.move_on_after(STALL_S):
                await event.wait()
                continue
            if self.received_octets - before < STALL_OCTETS:
                self._fail(ConnectionLost(f"{self.server} sent nothing for {STALL_S:.0f} s"))

    # -- the end

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self._end()
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Close behind what was written."""
        self._end()
        if self.transport is not None:
            self.transport.close()

    def _end(self) -> None:
        self._is_over = True
        self.resume_writing()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
