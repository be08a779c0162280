"""The directory in which a demo happens: the one to keep, or one that is removed when it is over."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import tomli_w

from maild.core.errors import LocalError
from maild.demo.servers import Servers
from maild.local.durable import disk_error, make_directory
from maild.testing.samples import ADDRESS, POP3_ADDRESS, letter

ACCOUNT, POP3_ACCOUNT = "demo", "isp"
CONFIG, PASSWORD, LETTER, LOG = "maild.toml", "password", "letter.eml", "maild.log"
LOCK, STATE, MAIL = "lock", "state", "Mail"
_OURS = {CONFIG, PASSWORD, LETTER, LOG, LOCK, STATE, MAIL}  # all that a demo writes into its directory
_MARK = "# Written by `maild demo`. The next demo in this directory\n# replaces it, and the mail beside it.\n\n"


@contextmanager
def opened_place(keep: Path | None) -> Iterator[Path]:
    """The directory to work in. Raises LocalError where it will not do."""
    if keep is None:
        try:
            temporary = TemporaryDirectory(prefix="maild-demo-")
        except OSError as exc:
            raise LocalError(
                f"no temporary directory: {exc}", "set TMPDIR, or name one: maild demo --keep DIR"
            ) from exc
        try:
            yield _usable(Path(temporary.name))
        finally:
            try:
                temporary.cleanup()
            except KeyboardInterrupt:
                temporary.cleanup()
                raise
        return
    place = _usable(keep.absolute())
    make_directory(place)
    try:
        if any(place.iterdir()) and not _is_earlier_demo(place):
            raise LocalError(f"{place} is not empty, and not the directory of an earlier demo", "name a new directory")
    except OSError as exc:
        raise disk_error(exc, "look into", place) from exc
    yield place


def _usable(place: Path) -> Path:
    text = str(place)
    if "$" in text or not text.isprintable():
        raise LocalError(f"{text!r} cannot stand in a config, where $ begins a variable", "name another directory")
    return place


def _is_earlier_demo(place: Path) -> bool:
    """Whether a demo has written all that is in it."""
    if any(entry.is_symlink() or entry.name not in _OURS for entry in place.iterdir()):
        return False
    return (place / CONFIG).is_file() and (place / CONFIG).read_bytes().startswith(_MARK.encode())


def remove_earlier(place: Path) -> None:
    """Remove the mail and the state of an earlier demo; the caller holds its lock, so that one is over."""
    try:
        for name in (MAIL, STATE):
            for path in (place / name).glob("*"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path != place / STATE / LOCK:
                    path.unlink()
        for name in (LETTER, LOG):
            (place / name).unlink(missing_ok=True)
    except OSError as exc:
        raise disk_error(exc, "remove the earlier demo in", place) from exc


def write_config(place: Path, servers: Servers, password: str) -> None:
    """The config, the file with the password, and the message that is going to be sent. Raises LocalError."""
    access = {"tls": "none", "password_file": str(place / PASSWORD)}
    imap = {"host": servers.imap.host, "port": servers.imap.port, **access}
    smtp = {"host": servers.smtp.host, "port": servers.smtp.port, "tls": "none"}
    pop3 = {"host": servers.pop3.host, "port": servers.pop3.port, **access, "leave_on_server": True}
    document = {
        "maild": {"maildir": str(place / MAIL), "state_dir": str(place / STATE)},
        "accounts": {
            ACCOUNT: {"address": ADDRESS, "imap": imap, "smtp": smtp},
            POP3_ACCOUNT: {"address": POP3_ADDRESS, "pop3": pop3},
        },
    }
    _write_private(place / PASSWORD, f"{password}\n".encode())
    _write_private(place / LETTER, letter())
    _write_private(place / CONFIG, (_MARK + tomli_w.dumps(document)).encode())


def _write_private(path: Path, octets: bytes) -> None:
    """A new file that only its owner can read."""
    try:
        path.unlink(missing_ok=True)
        path.touch(0o600, exist_ok=False)
        path.write_bytes(octets)
    except OSError as exc:
        raise disk_error(exc, "write", path) from exc
