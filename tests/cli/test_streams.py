"""Standard streams that are full, closed, or nobody reads: at most one line, and the exit status that fits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import maild

CONFIG = """
[maild]
maildir = "{0}/Mail"
state_dir = "{0}/state"
[accounts.work]
address = "me@example.org"
smtp = {{host = "127.0.0.1", port = 9, tls = "none", user = "me", password = "secret"}}
"""
MESSAGE = b"To: a@x.example\n\nhello\n"
FULL = b"maild: cannot write to standard output: No space left on device\n"
SHOWING = ["outbox list --json", "status", "sendmail --help", "--version"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "maild.toml"
    path.write_text(CONFIG.format(tmp_path))
    path.chmod(0o600)
    return path


def run(
    config: Path, words: str, redirections: str, *, stdin: bytes = b"", unbuffered: bool = False
) -> tuple[int, bytes]:
    """The exit status, and what it said on standard error, where a shell is told of `redirections` besides."""
    environ = {**os.environ, "PYTHONPATH": str(Path(maild.__file__).parents[1])}
    environ.pop("PYTHONUNBUFFERED", None)
    environ |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    command = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "maild", "-c", str(config)]
    done = subprocess.run([*command, *words.split()], env=environ, input=stdin, capture_output=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", SHOWING)
def test_a_full_standard_output_is_told_in_one_line(config: Path, words: str) -> None:
    assert run(config, words, ">/dev/full") == (1, FULL)


@pytest.mark.parametrize("words", ["outbox list", "--version"])
def test_it_does_not_matter_what_is_buffered(config: Path, words: str) -> None:
    assert run(config, words, ">/dev/full", unbuffered=True) == (1, FULL)
    assert run(config, words, ">/dev/full 2>&1") == (1, b"")


@pytest.mark.parametrize("words", SHOWING)
def test_closed_streams_are_no_fault(config: Path, words: str) -> None:
    assert run(config, words, ">&-") == (0, b"")
    assert run(config, words, ">&- 2>&-") == (0, b"")


@pytest.mark.parametrize("redirections", [">/dev/full", ">&-", "2>&-", ">/dev/full 2>/dev/full", ">&- 2>&-"])
def test_sendmail_accepts_whatever_there_is_to_write_to(config: Path, redirections: str) -> None:
    assert run(config, "sendmail -t", redirections, stdin=MESSAGE) == (0, b"")
    assert len(list((config.parent / "state" / "outbox").glob("*.toml"))) == 1


@pytest.mark.parametrize("redirections", ["2>/dev/full", "2>&-", ">&- 2>&-"])
def test_sendmail_refuses_with_its_status_where_it_cannot_say_why(config: Path, redirections: str) -> None:
    assert run(config, "sendmail -t", redirections, stdin=b"To: a@@x\n\n") == (65, b"")
    assert not (config.parent / "state" / "outbox").exists()


@pytest.mark.parametrize(
    ("redirections", "status", "reason"), [("<&-", 65, b"is closed"), ("0>/dev/null", 75, b"Bad file descriptor")]
)
def test_sendmail_without_a_message_to_read(config: Path, redirections: str, status: int, reason: bytes) -> None:
    code, said = run(config, "sendmail a@x.example", redirections)
    assert (code, said.count(b"\n")) == (status, 1)
    assert reason in said
    assert not (config.parent / "state" / "outbox").exists()
