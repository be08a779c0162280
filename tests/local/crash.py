"""A process that dies in the middle: from the n-th change of the disk on nothing of it happens any more."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHANGES = ("open", "write", "fsync", "fdatasync", "ftruncate", "rename", "link", "unlink", "mkdir")


class Crash(Exception):
    """The process is gone."""


class Machine:
    """Counts what changes the disk; `crashing_at(n)` lets n of those calls through, then all of them raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.has_crashed = False
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            is_change = name != "open" or bool(args[1] & (os.O_WRONLY | os.O_CREAT))
            if self.left is not None and is_change:
                if self.left == 0:
                    self.has_crashed = True
                    raise Crash(name)
                self.left -= 1
            return real(*args, **kwargs)

        return call

    @contextmanager
    def crashing_at(self, steps: int) -> Iterator[None]:
        self.left, self.has_crashed = steps, False
        try:
            yield
        finally:
            self.left = None


def every_step(machine: Machine) -> Iterator[int]:
    """0, 1, 2 … until a run in which nothing crashed."""
    for steps in itertools.count():
        assert steps < 500, "it never comes to an end"
        yield steps
        if not machine.has_crashed:
            return
