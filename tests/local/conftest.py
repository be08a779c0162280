"""Mailboxes on real files, and a disk that fails when a test says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from maild.local.maildir import Maildir

Fail = Callable[..., list[Any]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An account's Maildir that is not there yet."""
    return tmp_path / "Mail" / "work"


@pytest.fixture
def inbox(root: Path) -> Iterator[Maildir]:
    with Maildir.create(root, PurePosixPath("INBOX")) as maildir:
        yield maildir


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """`fail("fsync", errno.EIO, after=2)`: the third os.fsync and all later ones raise. Returns the list of calls."""

    def arrange(call: str, code: int, after: int = 0, times: int = 1_000_000) -> list[Any]:
        real = getattr(os, call)
        calls: list[Any] = []

        def failing(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            if after < len(calls) <= after + times:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, call, failing)
        return calls

    return arrange
