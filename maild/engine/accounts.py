"""The files that `maild account` writes: `accounts.d/NAME.toml`, a password file beside it, and a first `maild.toml`.

The user's own file is made where there is no config at all, and never changed. Every file is written whole or not at
all, with mode 0600. An account is judged by the config's own rules before it is written and with all others after; what
does not pass is taken out again.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import tomli_w

from maild.config import Account, Config, examine
from maild.config.places import account_files, standard_places, the_main_file
from maild.core.errors import ConfigError, LocalError
from maild.local.durable import disk_error, make_directory, replace_file

Table = Mapping[str, object]

_HEAD = "# Written by `maild account add`; yours to edit. `maild account remove {name}` takes it away.\n"
_MAIN = """\
# The config of maild; yours to edit. Accounts may stand here too; those of `maild account add` are in accounts.d.
# Every key is explained in config/maild.toml of the sources and in the manual page maild.toml(5).
"""
_NO_ACCOUNT = "there is no account yet"


def main_file(path: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The user's own config file; where there is none, the one to be made."""
    try:
        return the_main_file(path, environ)
    except FileNotFoundError:
        return standard_places(environ)[0]


def account_file(main: Path, name: str) -> Path:
    return main.parent / "accounts.d" / f"{name}.toml"


def password_file(main: Path, name: str) -> Path:
    """Where maild keeps a password that the user gave it to keep."""
    return main.parent / f"{name}.password"


def present_config(main: Path) -> Config | None:
    """The config as it is, None where it holds no account yet. Raises ConfigError for anything else that is wrong."""
    if not main.exists() and not (main.parent / "accounts.d").is_dir():
        return None
    report = examine(main)
    wrong = [problem for problem in report.errors if not _is_only_empty(problem.message, main)]
    if wrong:
        raise ConfigError([str(problem) for problem in wrong])
    return report.config


def _is_only_empty(message: str, main: Path) -> bool:
    """What is wrong with a config before its first account."""
    return message.startswith(_NO_ACCOUNT) or (not main.exists() and message.startswith("there is no such file"))


def judged(name: str, table: Table, config: Config | None) -> Account:
    """The account that a table describes, by all rules of the config. Raises ConfigError."""
    with TemporaryDirectory(prefix="maild-") as place:
        main = Path(place) / "maild.toml"
        document: dict[str, object] = {"accounts": {name: table}}
        if config is not None:
            document["maild"] = {"maildir": str(config.maildir), "state_dir": str(config.state_dir)}
        main.touch(mode=0o600)
        main.write_text(tomli_w.dumps(document))
        report = examine(main)
    if report.config is None:
        raise ConfigError([f"{problem.key}: {problem.message}" for problem in report.errors])
    return report.config.accounts[name]


def write_account(main: Path, name: str, table: Table) -> tuple[Path, Config]:
    """Put the account beside the user's own file; where there is none at all the first one is made.

    Returns the account's file, and the config as it is now. Raises ConfigError, LocalError.
    """
    file = account_file(main, name)
    if file.exists():
        raise LocalError(f"there is already a file {file}", "choose another --name, or remove that account first")
    is_first = not main.exists()
    if is_first:
        write_file(main, _MAIN.encode())
    write_file(file, _HEAD.format(name=name).encode() + tomli_w.dumps({"accounts": {name: table}}).encode())
    report = examine(main)
    if report.config is None:
        remove_file(file)
        if is_first:
            remove_file(main)
        raise ConfigError([str(problem) for problem in report.errors])
    return file, report.config


def write_file(path: Path, octets: bytes) -> None:
    """Write a whole file, mode 0600, durably, in a directory that is made if it is missing. Raises LocalError."""
    make_directory(path.parent)
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            replace_file(directory, path.name, octets, 0o600)
        finally:
            os.close(directory)
    except OSError as exc:
        raise disk_error(exc, "write", path) from exc


def remove_file(path: Path) -> None:
    """Take a file away; one that is gone already will do. Raises LocalError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise disk_error(exc, "remove", path) from exc


def own_file(config: Config, name: str) -> Path:
    """Which file the account stands in."""
    for file in account_files(config.path):
        if name in _accounts_in(file):
            return file
    return config.path


def is_ours(file: Path, config: Config) -> bool:
    """Whether the file may go with its account: it stands in accounts.d and holds no other one."""
    return file != config.path and len(_accounts_in(file)) == 1


def _accounts_in(file: Path) -> Mapping[str, object]:
    with file.open("rb") as stream:
        accounts = tomllib.load(stream).get("accounts", {})
    return accounts if isinstance(accounts, dict) else {}
