"""The instance lock: one holder, named to the second, gone with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maild.core.errors import LocalError, StateBusy
from maild.local.lock import InstanceLock
from tests.local.conftest import Fail


def test_the_state_directory_is_made_for_the_user_alone(tmp_path: Path) -> None:
    with InstanceLock(tmp_path / "state" / "maild"):
        assert (tmp_path / "state" / "maild").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "state" / "maild" / "lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o770])
def test_a_state_directory_open_to_others_is_closed_to_them(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    InstanceLock(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_symlink_to_the_state_directory_will_do(tmp_path: Path) -> None:
    """systemd makes StateDirectory= one when DynamicUser= is set."""
    (tmp_path / "private").mkdir()
    (tmp_path / "state").symlink_to("private")
    InstanceLock(tmp_path / "state").close()
    assert (tmp_path / "private" / "lock").exists()


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    with (
        InstanceLock(tmp_path, "maild sync"),
        pytest.raises(StateBusy, match=rf"in use by pid {os.getpid()} \(maild sync, since 2\d\d\d-.*\+00:00\)"),
    ):
        InstanceLock(tmp_path)
    InstanceLock(tmp_path).close()


def test_the_name_of_a_shorter_holder_is_whole(tmp_path: Path) -> None:
    InstanceLock(tmp_path, "a long purpose " * 5).close()
    with InstanceLock(tmp_path, "x"):
        assert (tmp_path / "lock").read_text().count("\n") == 1


def test_a_killed_holder_holds_no_longer(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom maild.local.lock import InstanceLock\n"
        "lock = InstanceLock(Path(sys.argv[1]), 'maild run')\nprint('held', flush=True)\nsys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateBusy, match=rf"pid {holder.pid} \(maild run"):
            InstanceLock(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    InstanceLock(tmp_path).close()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_directory_that_cannot_be_used_is_an_error(tmp_path: Path, fail: Fail, code: int) -> None:
    fail("open", code)
    with pytest.raises(LocalError, match=r"cannot use the state directory .*: .*; "):
        InstanceLock(tmp_path)


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(LocalError, match=r"cannot lock .*lock: No locks available"):
        InstanceLock(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
