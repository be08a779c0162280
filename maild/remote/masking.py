"""Secrets taken out of texts that others wrote: a server may repeat in its refusal what it was sent."""

from __future__ import annotations

import base64
import functools
import re

from maild.remote.auth import kept_out_of_log

MASK = "***"
_SHORTEST_ENCODED = 6  # octets; what is shorter leaves too little in base64 to be told from anything else


def masked(text: str) -> str:
    """The text without any secret that was read so far, plain or encoded as it goes over the wire."""
    pattern = _secret_pattern(tuple(kept_out_of_log()))
    return pattern.sub(MASK, text) if pattern else text


@functools.lru_cache(maxsize=4)
def _secret_pattern(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """Matches each secret plain, as a quoted string (RFC 9051 §4.3), as Python shows it, and inside base64."""
    shapes = {shape for secret in secrets for shape in _shapes(secret)}
    return re.compile("|".join(map(re.escape, sorted(shapes, key=len, reverse=True)))) if shapes else None


def _shapes(secret: str) -> set[str]:
    quoted = secret.replace("\\", "\\\\").replace('"', '\\"')
    return {secret, quoted, repr(secret)[1:-1], *_base64_shapes(secret.encode())}


def _base64_shapes(raw: bytes) -> set[str]:
    """What base64 makes of the octets wherever they stand in a longer text: one shape for each of three offsets.

    Only the characters that depend on nothing but `raw` count: those at the edges also carry their neighbours' bits.
    """
    if len(raw) < _SHORTEST_ENCODED:
        return set()
    encoded = ((before, base64.b64encode(bytes(before) + raw).decode()) for before in range(3))
    return {text[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6] for before, text in encoded}
