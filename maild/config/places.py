"""Where the config and the state are, by the search order and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from maild.config import units

SYSTEM_CONFIG = Path("/etc/maild/maild.toml")
SOCKET = "control.sock"  # in the state directory: how a daemon is asked


def standard_places(environ: Mapping[str, str]) -> list[Path]:
    """Where a config is looked for that nobody named, in order."""
    user = environ.get("XDG_CONFIG_HOME", "")
    directory = Path(user) if user.startswith("/") else Path(units.home(environ)) / ".config"
    return [directory / "maild/maild.toml", SYSTEM_CONFIG]


def the_main_file(path: Path | None, environ: Mapping[str, str]) -> Path:
    """`path`, else `$MAILD_CONFIG`, else the first that is there. Raises FileNotFoundError where there is none."""
    if path is not None:
        return path
    if named := environ.get("MAILD_CONFIG"):
        return Path(named)
    for candidate in standard_places(environ):
        if os.path.lexists(candidate):
            return candidate
    raise FileNotFoundError("there is no config")


def account_files(main: Path) -> list[Path]:
    """The files of `accounts.d` in name order, without hidden ones, which editors leave. Raises OSError."""
    directory = main.parent / "accounts.d"
    try:
        # not glob, which is silent about a directory that may not be read
        return sorted(file for file in directory.iterdir() if file.suffix == ".toml" and file.name[0] != ".")
    except FileNotFoundError:
        return []


def state_dir(environ: Mapping[str, str]) -> Path:
    """`$STATE_DIRECTORY` (systemd may list several, colons between them), else the XDG state directory."""
    if given := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    user = environ.get("XDG_STATE_HOME", "")
    return (Path(user) if user.startswith("/") else Path(units.home(environ)) / ".local/state") / "maild"
