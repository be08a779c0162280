"""What goes on the wire for a body: line ends and dots, wherever the blocks of writing end."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from maild.core.head import disk_form
from maild.remote.submission import BLOCK_OCTETS, wire_blocks

PIECES = st.lists(st.sampled_from([b"\n", b"\r", b".", b"..", b"x", b"\r\n", b"\n.\n", b"\xff"]), max_size=40)


@given(text=PIECES.map(b"".join), block_octets=st.integers(min_value=1, max_value=9))
@example(b"\n.\r\nQUIT\r\n", 1)
def test_a_body_holds_no_end_of_a_body(text: bytes, block_octets: int) -> None:
    wire = b"".join(wire_blocks(text, block_octets))
    assert b"\r\n.\r\n" not in b"\r\n" + wire
    assert re.search(rb"\r(?!\n)|(?<!\r)\n", wire) is None
    assert wire.endswith(b"\r\n")
    lines = [line.removeprefix(b".") for line in wire.split(b"\r\n")]
    assert b"\n".join(lines) == (disk_form(text) or b"\n")


def test_dots_at_the_border_of_blocks_of_the_real_size() -> None:
    for before in range(BLOCK_OCTETS - 3, BLOCK_OCTETS + 3):
        text = b"x" * before + b"\n.\n.rest\n"
        assert b"".join(wire_blocks(text)) == b"x" * before + b"\r\n..\r\n..rest\r\n"
