"""A systemd of its own for a test: PID 1 in namespaces, over this machine's files, none of which it can change.

It needs root, a kernel with cgroup v2 and overlayfs, and the right to make namespaces; where one of these is missing
`SystemdMissing` says which. Everything that it writes is in memory, and gone at its end; the network is shared, so that
servers of the test are on loopback there too. Units that the machine has are not started: sysinit.target and the like
are empty.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

USER, USER_ID = "maild-test", 61234
BOOT_S = 20.0
LOOK_S = 0.05
_ROOT = Path(__file__).resolve().parents[2]
_RUNTIME = f"/run/user/{USER_ID}"

_BOOT = r"""
set -e
work=/media; files=$1; shift
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$work"
mkdir "$work"/upper "$work"/inner "$work"/root
cp -a "$files"/. "$work"/upper/
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/inner" "$work"/root
cd "$work"/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
# As on a machine that has run services: a user's manager cannot make it.
mkdir -p run/systemd/unit-root
mount -t tmpfs -o mode=1777 tmpfs tmp
rm -rf etc/systemd/system/*.wants usr/lib/systemd/system/*.wants usr/lib/systemd/user/*.wants etc/systemd/user/*.wants
for pair; do
    mkdir -p "./${pair#*=}"
    mount --bind "${pair%%=*}" "./${pair#*=}"
done
hostname maild-test
mkdir -p .before
pivot_root . .before
umount -l /.before
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 /lib/systemd/systemd --system \
    --unit=maild-test.target --log-target=console --log-level=notice
"""

_PROGRAM = """\
#!/bin/sh
export LD_LIBRARY_PATH=/opt/maild-python/lib PYTHONHOME=/opt/maild-python PYTHONDONTWRITEBYTECODE=1
PYTHONPATH=/opt/maild:/opt/maild-packages exec /opt/maild-python/bin/python3 -m maild "$@"
"""

_MANAGER = f"""\
[Service]
Type=notify
User={USER}
Delegate=yes
Environment=XDG_RUNTIME_DIR={_RUNTIME}
ExecStartPre=+/usr/bin/install -d -o {USER_ID} -g {USER_ID} -m 0700 {_RUNTIME}
ExecStart=/lib/systemd/systemd --user
"""


class SystemdMissing(RuntimeError):
    """It cannot be had here; the text says why."""


class Systemd:
    """A context manager; booted on entry. `files` (path → text) are there, root's and readable by root alone."""

    def __init__(self, directory: Path, files: Mapping[str, str]) -> None:
        self._directory = directory
        self._files = dict(files)
        self._cgroup: Path | None = None

    def __enter__(self) -> Self:
        self._demand()
        self._lay_out()
        self._boot()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        if self._cgroup is not None:
            _removed(self._cgroup)

    # -- what is said to it

    def call(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program inside, as root."""
        enter = ["nsenter", f"--target={self._pid}", "-m", "-p", "-u", "-i", "-C", "-r", "-w", *argv]
        return subprocess.run(enter, capture_output=True, text=True, check=False, timeout=60)

    def call_as_user(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """The same as the user, with whose manager `systemctl --user` speaks."""
        who = ["setpriv", f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups"]
        return self.call(*who, "env", f"XDG_RUNTIME_DIR={_RUNTIME}", f"HOME=/home/{USER}", *argv)

    def write(self, path: str, text: str) -> None:
        """A file inside is another now."""
        self.call("sh", "-c", 'printf %s "$2" > "$1"', "sh", path, text)

    # -- how it comes to be

    def _demand(self) -> None:
        if os.geteuid() != 0:
            raise SystemdMissing("a systemd in namespaces needs root")
        for program in ("/lib/systemd/systemd", "unshare", "nsenter", "setpriv"):
            if shutil.which(program) is None:
                raise SystemdMissing(f"there is no {program}: apt-get install systemd util-linux")
        with Path("/proc/self/mounts").open() as mounts:
            places = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
        if not places:
            raise SystemdMissing("no cgroup v2 is mounted")
        self._cgroup = Path(places[0]) / f"maild-test-{os.getpid()}-{time.monotonic_ns()}"
        try:
            self._cgroup.mkdir()
        except OSError as exc:
            raise SystemdMissing(f"no cgroup can be made: {exc}") from exc

    def _lay_out(self) -> None:
        """What is there besides the machine's own files."""
        units = "etc/systemd/system"
        passwd = Path("/etc/passwd").read_text() + f"{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/sh\n"
        files = {
            "etc/passwd": passwd,
            "etc/group": Path("/etc/group").read_text() + f"{USER}:x:{USER_ID}:\n",
            f"{units}/maild-test.target": "[Unit]\nDefaultDependencies=no\n",
            f"{units}/user-manager.service": _MANAGER,
            "usr/local/bin/maild": _PROGRAM,
            f"home/{USER}/.local/bin/maild": _PROGRAM,
            **self._files,
        }
        upper = self._directory / "files"
        for name, text in files.items():
            path = upper / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            is_public = name in ("etc/passwd", "etc/group") or name.startswith(units)
            path.chmod(0o755 if name.endswith("bin/maild") else 0o644 if is_public else 0o600)
        for path in (home := upper / f"home/{USER}", *home.rglob("*")):
            os.chown(path, USER_ID, USER_ID)
            path.chmod(0o700)

    def _boot(self) -> None:
        binds = {
            sys.base_prefix: "opt/maild-python",
            str(_ROOT): "opt/maild",
            sysconfig.get_paths()["purelib"]: "opt/maild-packages",
        }
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--cgroup"]
        argv += ["sh", "-c", _BOOT, "sh", str(self._directory / "files")]
        argv += [f"{source}={target}" for source, target in binds.items()]
        enter = ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(self._cgroup), *argv]
        self._log = (self._directory / "systemd.log").open("w+")
        self._process = subprocess.Popen(enter, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        until_s = time.monotonic() + BOOT_S
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > until_s:
                said = (self._directory / "systemd.log").read_text()[-1000:].strip()
                self.__exit__()
                raise SystemdMissing(f"it did not boot: {said or 'and it said nothing'}")
            time.sleep(LOOK_S)
        self.call("umount", "/proc/sys")  # booted, it changes the kernel's settings no more; sandboxes mount a /proc

    def _is_up(self) -> bool:
        with suppress(FileNotFoundError, ValueError, IndexError):
            task = f"/proc/{self._process.pid}/task/{self._process.pid}/children"
            self._pid = int(Path(task).read_text().split()[0])
            if Path(f"/proc/{self._pid}/exe").resolve().name == "systemd":
                return self.call("systemctl", "is-system-running").stdout.strip() == "running"
        return False


def _removed(cgroup: Path) -> None:
    """With those below it, once the processes in them, which are killed, are gone."""
    until_s = time.monotonic() + BOOT_S
    while time.monotonic() < until_s:
        for procs in cgroup.rglob("cgroup.procs"):
            for pid in procs.read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        with suppress(OSError):
            for below in sorted(cgroup.rglob("*/"), reverse=True):
                below.rmdir()
            cgroup.rmdir()
            return
        time.sleep(LOOK_S)
