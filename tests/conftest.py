"""What every test runs under: asyncio, a disk that answers at once, reproducible Hypothesis, no secret in the log."""

from __future__ import annotations

import base64
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from maild.remote.pace import connects

# The same examples on every run, so that a red test is red again; `make test-long` searches anew each time.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100, stateful_step_count=30)
settings.register_profile(
    "long", deadline=None, max_examples=3000, stateful_step_count=80, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")

# Half of the time of the tests was waiting for a disk that none of them cuts the power of: their files are in memory,
# where this machine has a file system there with room enough. TMPDIR=… says otherwise; children inherit it.
IN_MEMORY = "/dev/shm"  # noqa: S108
ROOM_BYTES = 2 << 30
if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free >= ROOM_BYTES:
    os.environ.setdefault("TMPDIR", IN_MEMORY)
    tempfile.tempdir = None  # pytest has asked for it before

# Passwords and tokens that tests log in with. A test with one of its own names it with `secret_scan.add(…)`.
TEST_SECRETS = ("correct horse battery staple",)

STRUCTLOG_OUTPUTS = (structlog.PrintLogger, structlog.WriteLogger, structlog.BytesLogger)
STRUCTLOG_METHODS = ("msg", "log", "debug", "info", "warn", "warning", "error", "err", "critical", "exception", "fatal")


INTERRUPTED = "interruption points"  # property of a test: at how many it interrupted a pass that then was made whole


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many interruption points there were, by where."""
    points = Counter[str]()
    for report in terminalreporter.getreports("passed"):
        for name, count in report.user_properties:
            if name.startswith(INTERRUPTED):
                points[name] += int(str(count))
    for name, count in sorted(points.items()):
        terminalreporter.write_line(f"{name}: {count}")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """maild runs on asyncio only, because aioimaplib does."""
    return "asyncio"


class SecretScan:
    """Keeps what a test logged, as it would have been written, and finds the secrets in it."""

    def __init__(self) -> None:
        self.secrets = set(TEST_SECRETS)
        self.lines: list[str] = []

    def add(self, secret: str) -> str:
        """From now on this is a secret too; returned, so that it can be added where it is first used."""
        self.secrets.add(secret)
        return secret

    def leaks(self) -> list[str]:
        """The logged lines, each once, that show a secret, plain or inside base64, as SASL sends it."""
        shapes = [shape for secret in self.secrets for shape in (secret, *_base64_shapes(secret.encode()))]
        return [line for line in dict.fromkeys(self.lines) if any(shape in line for shape in shapes)]


def _base64_shapes(secret: bytes) -> list[str]:
    """The characters that depend on `secret` alone, wherever it stands in what is encoded: three alignments."""
    shapes = []
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret).decode()
        shapes.append(encoded[-(-before * 8 // 6) : (before + len(secret)) * 8 // 6])
    return shapes


@pytest.fixture(autouse=True)
def unhurried() -> None:
    """No test waits for a turn because of those before it."""
    connects.forget()


@pytest.fixture(autouse=True)
def secret_scan(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretScan]:
    """Fail the test that logs a secret, through the standard library or structlog, whatever the log is written to.

    Only what is written counts: after levels, processors and formatters. What a test's subprocess writes is for
    that test to look at: `secret_scan.lines.append(stderr)`.
    """
    scan = SecretScan()
    formatted = logging.Handler.format

    def formatted_seen(handler: logging.Handler, record: logging.LogRecord) -> str:
        line = formatted(handler, record)
        # pytest's own handlers know nothing of redaction; they stand in where the test has set up no log.
        if not _is_pytests(handler) or all(map(_is_pytests, logging.getLogger().handlers)):
            scan.lines.append(line)
        return line

    def written_seen(write: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def write_seen(output: Any, message: Any) -> None:
            scan.lines.append(message.decode(errors="replace") if isinstance(message, bytes) else str(message))
            write(output, message)

        return write_seen

    monkeypatch.setattr(logging.Handler, "format", formatted_seen)
    for output in STRUCTLOG_OUTPUTS:
        for method in STRUCTLOG_METHODS:
            if hasattr(output, method):
                monkeypatch.setattr(output, method, written_seen(getattr(output, method)))
    yield scan
    structlog.reset_defaults()  # a command that ran in this process has set the log up, and filtered it
    if leaks := scan.leaks():
        pytest.fail("secrets in the log:\n" + "\n".join(leaks), pytrace=False)


def _is_pytests(handler: logging.Handler) -> bool:
    return type(handler).__module__.startswith("_pytest.")
