"""COMPRESS=DEFLATE (RFC 4978): octets of one connection made smaller and whole again, a raw DEFLATE stream each way.

What a server's stream holds when it is whole again is bounded by nothing but its own will (a thousand times as much,
as zlib goes): it is inflated in pieces, and the next piece only when somebody wants it.
"""

from __future__ import annotations

import zlib

from maild.core.errors import ProtocolViolation

NAME = "COMPRESS=DEFLATE"
_RAW = -zlib.MAX_WBITS  # no zlib header (RFC 4978 §4); the window is the largest there is, for servers use that


class Deflation:
    """Our octets on their way there."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(wbits=_RAW)

    def deflated(self, octets: bytes) -> bytes:
        """Flushed to the octet: the server must not have to wait for more of it."""
        return self._stream.compress(octets) + self._stream.flush(zlib.Z_SYNC_FLUSH)


class Inflation:
    """The server's octets, `piece_octets` at most at a time."""

    def __init__(self, piece_octets: int) -> None:
        self._stream = zlib.decompressobj(wbits=_RAW)
        self._piece_octets = piece_octets
        self._waiting = b""
        self._has_more = False  # zlib may hold the rest of what it was given, when a piece was full

    @property
    def has_more(self) -> bool:
        """Whether a piece may be had without further octets from the server."""
        return bool(self._waiting) or self._has_more

    def add(self, octets: bytes | memoryview) -> None:
        """Octets as they came; nothing is inflated yet."""
        self._waiting = self._waiting + bytes(octets)

    def piece(self) -> bytes:
        """The next piece, b"" where more has to come first. Raises ProtocolViolation for what is not DEFLATE."""
        try:
            octets = self._stream.decompress(self._waiting, self._piece_octets)
        except zlib.error as exc:
            raise ProtocolViolation(f"the compressed stream is damaged: {exc}") from exc
        self._waiting = self._stream.unconsumed_tail
        self._has_more = len(octets) == self._piece_octets
        if self._stream.eof and not octets:
            raise ProtocolViolation("the server ended the compressed stream")
        return octets
