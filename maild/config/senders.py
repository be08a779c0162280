"""Who may send, read from the config without its validation: `maild sendmail` has to start quickly.

pydantic alone takes longer to import than a message takes to be accepted. Only what sending needs is looked at, so
a mistake elsewhere in the config never keeps a message from being accepted. What is looked at and not as it should be
goes through the whole validation, which then says all that is wrong.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maild.config import units
from maild.config.places import account_files, state_dir, the_main_file

if TYPE_CHECKING:
    from maild.config.values import Config

Table = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Sender:
    """An account that can submit: its addresses, its own first, and how long its messages wait for a second thought."""

    account: str
    addresses: tuple[str, ...]
    undo_s: int


@dataclass(frozen=True, slots=True)
class Senders:
    """All accounts with an smtp section, in the order of the config, and which of them sends when none fits."""

    state_dir: Path
    accounts: tuple[Sender, ...]
    default_account: str | None


def read_senders(path: Path | None, environ: Mapping[str, str] = os.environ) -> Senders:
    """The senders of the config at `path`, or of the first one of the search order. Raises ConfigError."""
    try:
        return _senders(the_main_file(path, environ), environ)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        from maild.config import load

        return _of(load(path, environ))


def _of(config: Config) -> Senders:
    accounts = tuple(
        Sender(account.name, (account.address, *account.aliases), account.smtp.undo_s)
        for account in config.accounts.values()
        if account.smtp is not None
    )
    return Senders(config.state_dir, accounts, config.default_account)


def _senders(main: Path, environ: Mapping[str, str]) -> Senders:
    with main.open("rb") as file:
        table = tomllib.load(file)
    if not {"state_dir", "default_account"}.isdisjoint(table):
        raise KeyError("what stands outside [maild] would be passed over, and another outbox taken")
    accounts = dict(_table(table.get("accounts", {})))
    for path in account_files(main):
        with path.open("rb") as file:
            more = _table(tomllib.load(file)["accounts"])
        if not accounts.keys().isdisjoint(more):
            raise KeyError("an account is there twice")
        accounts |= more
    head = _table(table.get("maild", {}))
    given = head.get("state_dir")
    default = head.get("default_account")
    if default is not None and default not in accounts:
        raise KeyError(default)
    return Senders(
        state_dir(environ) if given is None else units.path(given, environ),
        tuple(_sender(name, _table(account)) for name, account in accounts.items() if "smtp" in _table(account)),
        None if default is None else str(default),
    )


def _sender(name: str, account: Table) -> Sender:
    aliases = account.get("aliases", [])
    if not isinstance(aliases, list):
        raise TypeError("aliases")
    addresses = tuple(units.address(_text(address)) for address in (account["address"], *aliases))
    return Sender(name, addresses, units.duration_s(_table(account["smtp"]).get("undo", "0s")))


def _table(value: object) -> Table:
    if not isinstance(value, dict):
        raise TypeError("a table")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text")
    return value
