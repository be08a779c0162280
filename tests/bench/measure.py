"""One timed run of one program, in an empty directory of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launch.py")
ROOT = Path(__file__).parents[2]
STDERR_TAIL = 2_000


class RunFailed(Exception):
    """A timed program failed; the text says how, with the end of its stderr."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run took. Wall time in seconds, CPU seconds of user and system together, peak memory in MiB."""

    wall_s: float
    cpu_s: float
    rss_mib: float


def timed(command: Sequence[str], directory: Path, *, timeout_s: float) -> Sample:
    """Run the command with `directory` as its home and the place of its output. Raises RunFailed.

    Whatever was written before is on the disk first, so that nobody pays for another's write-back.
    """
    report = directory / "measured.json"
    os.sync()
    with (directory / "stdout").open("wb") as stdout, (directory / "stderr").open("wb") as stderr:
        launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCHER), str(report), *command],
            cwd=directory,
            env=environment(directory),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            launcher.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"not finished after {timeout_s:.0f} s{_tail(directory)}") from None
        finally:
            if launcher.returncode is None:
                os.killpg(launcher.pid, signal.SIGKILL)
                launcher.wait()
    measured = json.loads(report.read_text())
    if measured["exit_status"] != 0:
        raise RunFailed(f"exit status {measured['exit_status']}{_tail(directory)}")
    cpu_s = measured["user_s"] + measured["system_s"]
    return Sample(measured["wall_s"], cpu_s, measured["peak_rss_kib"] / 1024)


def environment(directory: Path) -> dict[str, str]:
    """Nothing of the user's own configuration is read, and nothing is written to it."""
    kept = {name: os.environ[name] for name in ("PATH", "TZ", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": str(directory), "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)}


def _tail(directory: Path) -> str:
    said = "\n".join((directory / name).read_text(errors="replace") for name in ("stdout", "stderr")).strip()
    return f":\n{said[-STDERR_TAIL:]}" if said else ", and said nothing"
