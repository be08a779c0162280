"""What the machine brings: disk, permissions, limits, clock, systemd; and a service's environment, for secrets.

Everything here looks and changes nothing. What cannot be found out is said to be so.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from maild.config import Account, Config, PasswordCommand, Secret, TokenCommand
from maild.core.errors import MaildError
from maild.local.marker import MARKER

Level = Literal["ok", "note", "warning", "problem"]

SERVICE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNIT = "maild.service"
_PASSED_ON = ("HOME", "USER", "LOGNAME", "LANG", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
_COMMAND_S = 10.0
_OTHERS = 0o077
_LITTLE_OCTETS = 1 << 30
_LITTLE_INODES = 100_000
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "afs", "ceph"})
_MOUNTS = Path("/proc/self/mountinfo")
_INOTIFY = Path("/proc/sys/fs/inotify")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say. `area` is what it is about, `remedy` what to do, "" where nothing has to be done."""

    level: Level
    area: str
    text: str
    remedy: str = ""
    account: str = ""

    @classmethod
    def of(cls, exc: MaildError, area: str, account: str = "") -> Finding:
        """The problem that an error tells."""
        return cls("problem", area, exc.text, exc.hint, account)


def as_service(secret: Secret, environ: Mapping[str, str] = os.environ) -> Secret:
    """The same secret, read as a service would: a program has the environment that systemd gives, and no more.

    Only names that hold no secret are passed on: they stand in the arguments of a process.
    """
    if not isinstance(secret, PasswordCommand | TokenCommand):
        return secret
    given = [f"{name}={environ[name]}" for name in _PASSED_ON if name in environ]
    return replace(secret, argv=("/usr/bin/env", "-i", f"PATH={SERVICE_PATH}", *given, *secret.argv))


def examine_machine(config: Config, mailboxes: int) -> Iterator[Finding]:
    """What all accounts share; `mailboxes` is how many of them are to be watched."""
    yield from _files(config)
    yield from _state(config.state_dir)
    yield from _inotify(mailboxes)
    yield _clock()
    yield from _systemd()


# -- files


def _files(config: Config) -> Iterator[Finding]:
    yield Finding("ok", "config", f"{config.path} is good; accounts: {', '.join(config.accounts)}")
    for note in config.notes:
        yield Finding("note", "config", note)
    for path in sorted((config.state_dir / "tokens").glob("**/*.json")):  # password files: where secrets are read
        if (mode := path.stat().st_mode & 0o777) & _OTHERS:
            text = f"{path} holds a login and others have access to it (mode {mode:04o})"
            yield Finding("problem", "permissions", text, f"run chmod 600 {path}")
    if config.path.parent.stat().st_mode & 0o022:
        text = f"others may write into {config.path.parent}, and so decide where your password is sent"
        yield Finding("problem", "permissions", text, f"run chmod go-w {config.path.parent}")


def _state(directory: Path) -> Iterator[Finding]:
    if not directory.exists():
        yield Finding("note", "state", f"{directory} is not there yet; the first pass makes it")
        return
    if directory.stat().st_mode & _OTHERS:
        text = f"others have access to {directory}, which knows your mailboxes"
        yield Finding("warning", "state", text, f"run chmod 700 {directory}")
    if not os.access(directory, os.W_OK | os.X_OK):
        yield Finding("problem", "state", f"{directory} cannot be written", "give it to the user who runs maild")
    if (kind := file_system(directory)) in _NETWORK:
        text = f"{directory} is on a network file system ({kind}), where SQLite is not safe"
        yield Finding("problem", "state", text, "set state_dir in [maild] to a local disk")
    else:
        yield Finding("ok", "state", f"{directory}, on {kind}")


def examine_maildir(account: Account, config: Config) -> Iterator[Finding]:
    """Whether the account's Maildir is there, is its own, can be written, and has room."""
    for finding in _maildir(account.maildir, (config.state_dir / f"{account.name}.sqlite").exists()):
        yield replace(finding, account=account.name)


def _maildir(root: Path, is_known: bool) -> Iterator[Finding]:
    area = "maildir"
    if root.is_symlink() and not root.exists():
        yield Finding("problem", area, f"{root} is a symlink that leads nowhere", "mount or restore what it points to")
        return
    if not root.exists():
        if is_known:
            text = f"{root} was there before and is gone; nothing is deleted because of it"
            yield Finding("problem", area, text, "mount or restore it")
        else:
            yield Finding("note", area, f"{root} is not there yet; the first pass makes it")
            yield from _room(root)
        return
    if not os.access(root, os.W_OK | os.X_OK):
        yield Finding("problem", area, f"{root} cannot be written", "give it to the user who runs maild")
    if not (root / MARKER).exists() and is_known:
        text = f"{root} has lost its marker file {MARKER}: it may be another directory than the one maild knows"
        yield Finding("problem", area, text, "mount or restore it; see maild status")
    else:
        yield Finding("ok", area, f"{root} is there")
    yield from _room(root)


def _room(root: Path) -> Iterator[Finding]:
    place = next(path for path in (root, *root.parents) if path.exists())
    told = os.statvfs(place)
    free, kind = told.f_bavail * told.f_frsize, file_system(place)
    text = f"{free / 2**30:.1f} GiB and {told.f_favail:,} inodes free on {kind}"
    is_little = free < _LITTLE_OCTETS or (told.f_files > 0 and told.f_favail < _LITTLE_INODES)
    yield Finding("warning" if is_little else "ok", "disk", text, "make room soon" if is_little else "")
    if told.f_flag & os.ST_RDONLY:
        yield Finding("problem", "disk", f"the file system of {place} is read-only", "mount it writable")
    if kind in _NETWORK:
        text = (
            f"the Maildir is on a network file system ({kind}): changes made elsewhere are seen at the next poll only"
        )
        yield Finding("warning", "disk", text, "a shorter poll helps")


def file_system(path: Path) -> str:
    """The type of the file system that a path is on, "an unknown file system" where it cannot be told."""
    best, kind = "", "an unknown file system"
    real = os.path.realpath(path)
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return kind
    for line in lines:
        words, _, after = line.partition(" - ")
        point = words.split(" ")[4].replace("\\040", " ")
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind


def mailboxes_in(root: Path) -> int:
    """How many mailboxes there are on this disk: directories that hold a cur. Messages are not looked at."""
    count = 0
    for _, directories, _ in os.walk(root):
        count += "cur" in directories
        directories[:] = [name for name in directories if name not in ("cur", "new", "tmp")]
    return count


# -- limits, clock, systemd


def _inotify(mailboxes: int) -> Iterator[Finding]:
    try:
        watches = int((_INOTIFY / "max_user_watches").read_text())
    except (OSError, ValueError):
        yield Finding("note", "inotify", "this machine does not tell its limits")
        return
    needed = mailboxes * 2  # cur and new
    text = f"{needed:,} of {watches:,} watches are needed for the {mailboxes:,} mailboxes on this disk"
    if needed > watches // 2:
        remedy = f"sysctl fs.inotify.max_user_watches={max(needed * 4, 65536)}; the rest is polled"
        yield Finding("warning", "inotify", text, remedy)
    else:
        yield Finding("ok", "inotify", text)


def _clock() -> Finding:
    """Mail servers do not tell the time; what is known is what this machine thinks of its own clock."""
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    told = _output("timedatectl", "show", "-p", "NTPSynchronized", "--value")
    match told:
        case "yes":
            return Finding("ok", "clock", f"it is {now}, kept right by NTP")
        case "no":
            return Finding("warning", "clock", f"it is {now}, and nothing keeps it right", "timedatectl set-ntp true")
        case _:
            return Finding(
                "note", "clock", f"it is {now}; whether that is right is not known: mail servers do not tell"
            )


def _systemd() -> Iterator[Finding]:
    if shutil.which("systemctl") is None:
        yield Finding("note", "systemd", "there is no systemctl here: something else has to start maild")
        return
    states = {scope: _output("systemctl", scope, "is-enabled", UNIT) for scope in ("--user", "--system")}
    if not any(state.startswith("enabled") for state in states.values()):
        yield Finding("note", "systemd", f"{UNIT} is not enabled", f"systemctl --user enable --now {UNIT}")
    if states["--user"].startswith("enabled"):
        yield from _user_unit()


def _user_unit() -> Iterator[Finding]:
    active = _output("systemctl", "--user", "is-active", UNIT)
    level: Level = "ok" if active == "active" else "warning"
    remedy = "" if active == "active" else f"journalctl --user -u {UNIT} says why"
    yield Finding(level, "systemd", f"{UNIT} is {active or 'in an unknown state'}", remedy)
    user = pwd.getpwuid(os.getuid()).pw_name
    if _output("loginctl", "show-user", user, "-p", "Linger", "--value") == "no":
        text = "the service stops when you log out, and starts when you log in"
        yield Finding("note", "systemd", text, f"loginctl enable-linger {user} lets it run always")


def _output(*argv: str) -> str:
    """What a program prints, "" where it is not there or does not answer."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
