"""Which accounts there are, read from the config without its validation: `maild status` has to answer at once.

pydantic alone takes longer to import than a thousand accounts' states take to be read, and a mistake elsewhere in the
config is no reason not to show what is known. What is looked at and not as it should be goes through the whole
validation, which then says all that is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from maild.config import plain, units
from maild.config.places import account_files, state_dir, the_main_file

if TYPE_CHECKING:
    from maild.config.values import Account, Config

Protocol = Literal["imap", "pop3", "smtp"]
_PROTOCOLS: tuple[Protocol, ...] = ("imap", "pop3", "smtp")  # an account that has more is known by the first


class Outline(NamedTuple):
    """Where the state is, and every account in the order of the config, by what it is first of all."""

    state_dir: Path
    accounts: Mapping[str, Protocol]


def read_outline(path: Path | None, environ: Mapping[str, str] = os.environ, *, may_be_empty: bool = False) -> Outline:
    """The outline of the config at `path`, or of the first one of the search order. Raises ConfigError."""
    try:
        return _outline(the_main_file(path, environ), environ, may_be_empty=may_be_empty)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        from maild.config import load

        return outline_of(load(path, environ, may_be_empty=may_be_empty))


def outline_of(config: Config) -> Outline:
    """The same of a config that is there already."""
    return Outline(config.state_dir, {name: protocol_of(account) for name, account in config.accounts.items()})


def protocol_of(account: Account) -> Protocol:
    """What an account is first of all."""
    return next(protocol for protocol in _PROTOCOLS if getattr(account, protocol) is not None)


def _outline(main: Path, environ: Mapping[str, str], *, may_be_empty: bool) -> Outline:
    head, accounts = _read(main)
    for path in account_files(main):
        _, more = _read(path)
        if not accounts.keys().isdisjoint(more):
            raise KeyError("an account is there twice")
        accounts |= more
    if not accounts and not may_be_empty:
        raise KeyError("accounts")
    directory = units.path(head["state_dir"], environ) if "state_dir" in head else state_dir(environ)
    return Outline(directory, {name: _protocol(name, account) for name, account in accounts.items()})


def _read(path: Path) -> tuple[dict[str, object], dict[str, object]]:
    """The table [maild] of a file, and its accounts."""
    text = path.read_bytes().decode()
    try:
        table: Mapping[str, object] = plain.texts(text)
    except plain.NotPlain:
        import tomllib

        table = tomllib.loads(text)
    head, accounts = table.get("maild", {}), table.get("accounts", {})
    if not (isinstance(head, dict) and isinstance(accounts, dict)):
        raise TypeError("a table")
    return head, accounts


def _protocol(name: str, account: object) -> Protocol:
    if "/" in name or not isinstance(account, dict):  # it becomes the name of a file
        raise TypeError("an account")
    for protocol in _PROTOCOLS:
        if protocol in account:
            return protocol
    raise KeyError("imap")
