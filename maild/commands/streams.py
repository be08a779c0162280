"""Standard output and error of the commands: that nothing can be written to the one is told, of the other it cannot be.

Both are there for whatever follows, also where they were closed before the start: no file of ours gets their numbers.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper

_STANDARD = 2  # the highest number


class OutputFailed(Exception):
    """Standard output took nothing more: nobody reads it, or what it goes to is full. `reason` is for a person."""

    def __init__(self, error: OSError) -> None:
        self.reason = error.strerror or str(error)
        self.has_no_reader = isinstance(error, BrokenPipeError)
        super().__init__(self.reason)


class _Output(TextIOWrapper):
    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as exc:
            raise OutputFailed(exc) from exc

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as exc:
            raise OutputFailed(exc) from exc


class _Errors(TextIOWrapper):
    """What cannot be written is lost: there is nowhere left to say so, and the exit status still tells."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def prepare() -> None:
    """Replace both, once. A mailbox name must not stop us on a terminal that cannot show it."""
    if sys.stdout is None or sys.stderr is None:
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD:
            continue
        os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if type(sys.stdout) is TextIOWrapper:  # a test has its own
        sys.stdout = _replaced(sys.stdout, _Output)
    if type(sys.stderr) is TextIOWrapper:
        sys.stderr = _replaced(sys.stderr, _Errors)


def _replaced(stream: TextIOWrapper, kind: type[TextIOWrapper]) -> TextIOWrapper:
    is_line_buffered, is_unbuffered, encoding = stream.line_buffering, stream.write_through, stream.encoding
    return kind(
        stream.detach(),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=is_line_buffered,
        write_through=is_unbuffered,
    )


def give_up() -> None:
    """Have what is left in standard output go nowhere, without the interpreter's complaint at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
