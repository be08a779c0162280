"""The two DEFLATE streams of a connection by themselves."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.core.errors import ProtocolViolation
from maild.remote.imap.deflate import Deflation, Inflation


@given(octets=st.binary(max_size=5000), cuts=st.lists(st.integers(1, 300)), piece=st.integers(1, 700))
def test_any_cut_and_any_piece_give_the_same_octets(octets: bytes, cuts: list[int], piece: int) -> None:
    deflation, inflation = Deflation(), Inflation(piece)
    stream = deflation.deflated(octets) + deflation.deflated(octets * 3)
    found = b""
    for size in [*cuts, len(stream)]:
        part, stream = stream[:size], stream[size:]
        inflation.add(part)
        while got := inflation.piece():
            assert len(got) <= piece
            found += got
        assert not inflation.has_more
    assert found == octets * 4


def test_a_stream_that_ends_or_is_none_is_a_violation() -> None:
    ended = Inflation(100)
    whole = zlib.compressobj(wbits=-15)
    ended.add(whole.compress(b"x" * 150) + whole.flush())
    assert [len(ended.piece()), len(ended.piece())] == [100, 50]
    with pytest.raises(ProtocolViolation, match="ended the compressed stream"):
        ended.piece()
    none = Inflation(100)
    none.add(b"* OK Still here\r\n")
    with pytest.raises(ProtocolViolation, match="the compressed stream is damaged"):
        none.piece()
