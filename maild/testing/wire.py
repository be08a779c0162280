"""One connection's octets as a test server sees them: lines, literals, batches; TLS, compression, ways to end it.

Delay is put on what arrives, not on what is sent, so pipelined commands wait once for all of them as they do on a
real line. Nothing read before a TLS handshake survives it: `start_tls` begins with a new, empty reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import zlib
from collections.abc import Callable

MAX_LINE_OCTETS = 1 << 16
BATCH_OCTETS = 1 << 16


class ConnectionEnded(Exception):
    """The peer is gone, or a fault ended the connection."""


class LineTooLong(Exception):
    """A line above `MAX_LINE_OCTETS`; the rest of it is still unread."""


class _LateProtocol(asyncio.StreamReaderProtocol):
    """Hands what arrives to its reader `latency_s` later; end of data keeps its place in the order."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None] | None,
        latency_s: float,
    ) -> None:
        super().__init__(reader, connected)
        self._latency_s = latency_s
        self._arrival = asyncio.get_running_loop()
        self._gone = False
        self._tls = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tls = transport.get_extra_info("sslcontext") is not None
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._latency_s:
            super().data_received(data)
        else:
            self._arrival.call_later(self._latency_s, self._deliver, data)

    def _deliver(self, data: bytes) -> None:
        if not self._gone:
            super().data_received(data)

    def eof_received(self) -> bool | None:
        if not self._latency_s or self._tls:  # a TLS transport closes at once, whatever is returned
            return super().eof_received()
        self._arrival.call_later(self._latency_s, self._end)
        return True

    def _end(self) -> None:
        if not self._gone:
            super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        super().connection_lost(exc)


class _InflatedReader:
    """What a reader brings, inflated (RFC 4978); raises as a StreamReader does."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._stream = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        self._octets = bytearray()

    async def readuntil(self, separator: bytes) -> bytes:
        while (found := self._octets.find(separator)) < 0:
            if len(self._octets) > MAX_LINE_OCTETS:
                raise asyncio.LimitOverrunError("a line without end", len(self._octets))
            await self._more(None)
        return self._take(found + len(separator))

    async def readexactly(self, octets: int) -> bytes:
        while len(self._octets) < octets:
            await self._more(octets)
        return self._take(octets)

    async def read(self, octets: int) -> bytes:
        try:
            while not self._octets:
                await self._more(None)
        except asyncio.IncompleteReadError:
            return b""
        return self._take(min(octets, len(self._octets)))

    async def _more(self, expected: int | None) -> None:
        if not (octets := await self._reader.read(BATCH_OCTETS)):
            raise asyncio.IncompleteReadError(bytes(self._octets), expected)
        try:
            self._octets += self._stream.decompress(octets)
        except zlib.error as error:
            raise ConnectionEnded(f"the client's compressed stream is damaged: {error}") from error

    def _take(self, octets: int) -> bytes:
        taken = bytes(self._octets[:octets])
        del self._octets[:octets]
        return taken


class Wire:
    """Reads and writes one connection and counts its octets; written octets go out at `flush` or in batches.

    `octets_sent` are counted as they go out, compressed or not, `octets_received` as they are when inflated.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency_s: float = 0.0) -> None:
        self.octets_received = 0
        self.octets_sent = 0
        self.tls = writer.get_extra_info("ssl_object") is not None
        self._reader: asyncio.StreamReader | _InflatedReader = reader
        self._writer = writer
        self._plain_writer: asyncio.StreamWriter | None = None  # without TLS; forgotten, it would close what it carries
        self._deflation: zlib._Compress | None = None
        self._socket: socket.socket = writer.get_extra_info("socket")
        self._latency_s = latency_s
        self._batch = bytearray()
        self._handshake_failed = False  # asyncio closed the socket then, and tells no reader or writer of ours

    async def line(self) -> bytes:
        """The next line without its CRLF."""
        try:
            line = await self._reader.readuntil(b"\r\n")
        except asyncio.LimitOverrunError as error:
            raise LineTooLong from error
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ConnectionEnded("the client closed the connection") from error
        self.octets_received += len(line)
        return line[:-2]

    async def exactly(self, octets: int) -> bytes:
        """The next `octets`, as they are."""
        try:
            data = await self._reader.readexactly(octets)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ConnectionEnded("the client closed the connection") from error
        self.octets_received += octets
        return data

    async def ended(self) -> bytes:
        """Wait for the client to close; what it sent instead, or b""."""
        try:
            data = await self._reader.read(BATCH_OCTETS)
        except OSError:
            return b""
        self.octets_received += len(data)
        return data

    async def write(self, data: bytes | memoryview) -> None:
        """Take octets for sending, in batches of `BATCH_OCTETS`; waits while the client does not read."""
        self._batch += data[:BATCH_OCTETS]
        if len(self._batch) >= BATCH_OCTETS:
            await self.flush()
        rest = memoryview(data)[BATCH_OCTETS:]
        for start in range(0, len(rest), BATCH_OCTETS):
            await self.flush()
            self._batch += rest[start : start + BATCH_OCTETS]

    async def flush(self) -> None:
        """Hand everything to the kernel, or at least to the transport."""
        data, self._batch = self._batch, bytearray()
        try:
            if data:
                sent = data if self._deflation is None else self._deflated(self._deflation, data)
                self._writer.write(sent)
                self.octets_sent += len(sent)
            await self._writer.drain()
        except OSError as error:
            raise ConnectionEnded("the connection broke while sending") from error

    def _deflated(self, deflation: zlib._Compress, data: bytearray) -> bytes:
        return deflation.compress(data) + deflation.flush(zlib.Z_SYNC_FLUSH)

    @property
    def is_compressed(self) -> bool:
        return self._deflation is not None

    async def compress(self) -> None:
        """Send what was written so far; from then on both ways are raw DEFLATE (RFC 4978)."""
        await self.flush()
        self._deflation = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        if isinstance(self._reader, asyncio.StreamReader):
            self._reader = _InflatedReader(self._reader)

    def stop_reading(self) -> None:
        """Take nothing more from the client, so that its sends fill up and block."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def start_tls(self, context: ssl.SSLContext, before: bytes = b"") -> None:
        """Send `before` in the clear, then be the server of a TLS handshake; what was read before it is dropped."""
        transport = self._writer.transport
        self.stop_reading()  # so that no handshake octet can reach the old reader
        await self.write(before)
        await self.flush()
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_LINE_OCTETS)
        protocol = _LateProtocol(reader, None, self._latency_s)
        try:
            secured = await loop.start_tls(transport, protocol, context, server_side=True)
        except asyncio.CancelledError:
            self._handshake_failed = True  # the outcome will not be heard
            raise
        except OSError as error:
            self._handshake_failed = True
            raise ConnectionEnded(f"the TLS handshake failed: {error}") from error
        if secured is None:
            self._handshake_failed = True
            raise ConnectionEnded("the client closed the connection during the TLS handshake")
        protocol.connection_made(secured)
        self._reader = reader
        self._plain_writer = self._writer
        self._writer = asyncio.StreamWriter(secured, protocol, reader, loop)
        self.tls = True

    async def close(self, *, reset: bool = False) -> None:
        """End the connection after what was written so far: FIN (close_notify under TLS), or a TCP reset."""
        if not reset:
            await self.flush()
            self._writer.close()
            return
        self._writer.transport.set_write_buffer_limits(high=0)
        await self.flush()
        self.abort(reset=True)

    def release(self) -> None:
        """Let the transport close behind what it still has to send; nothing is written after this."""
        self._writer.close()

    async def closed(self) -> None:
        """Wait until the socket is really gone, however that came about."""
        if self._handshake_failed:
            return
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self, *, reset: bool = False) -> None:
        """End the connection now, without waiting for anything."""
        if reset and self._socket.fileno() >= 0:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


async def listen(
    connected: Callable[[Wire], None],
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    latency_s: float = 0.0,
    accepted: Callable[[], None] = lambda: None,
) -> asyncio.Server:
    """Accept connections and give each to `connected` as a `Wire`; port 0 takes a free one.

    `accepted` is called for each at once, `connected` after the TLS handshake.
    """

    def protocol() -> _LateProtocol:
        accepted()
        reader = asyncio.StreamReader(limit=MAX_LINE_OCTETS)
        return _LateProtocol(reader, lambda r, w: connected(Wire(r, w, latency_s)), latency_s)

    return await asyncio.get_running_loop().create_server(protocol, host, port, ssl=tls)
