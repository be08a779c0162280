"""The filler's two encodings, which its users cannot see go wrong."""

from __future__ import annotations

import pytest

from tests.servers.append import _appended, modified_utf7, quoted


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("INBOX", "INBOX"),
        ("Entwürfe", "Entw&APw-rfe"),
        ("Tom & Jerry", "Tom &- Jerry"),
        ("台北/日本語", "&U,BTFw-/&ZeVnLIqe-"),  # RFC 3501 §5.1.3
        ("😀", "&2D3eAA-"),
    ],
)
def test_modified_utf7(name: str, wire: str) -> None:
    assert modified_utf7(name) == wire


def test_quoted() -> None:
    assert quoted('a "b" \\c') == b'"a \\"b\\" \\\\c"'


def test_uids_are_read_from_ranges() -> None:
    assert _appended(b"a OK [APPENDUID 1700000000 3:5,9] done\r\n") == [3, 4, 5, 9]
