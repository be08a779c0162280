"""What the keys of a config must mean together. Each rule is one function from the files to its findings.

The rules read the parsed TOML, not the validated models: so they speak even where another key is wrong, and all
problems come at once. They stay silent about values of a wrong type, which the schema reports.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from maild.config import units
from maild.config.locate import KeyPath, Lines
from maild.config.problems import Problem, key_text, one_of, suggestion
from maild.config.schema import PROTOCOLS, SECRET_SOURCES

Table = Mapping[str, object]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OFFERED_SECRETS = (
    "oauth2",
    "password_command",
    "password_file",
    "password_keyring",
    "password_credential",
    "password",
)
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "device_authorization_endpoint", "scopes")
_KNOWN_PROVIDERS = ("google", "microsoft")


@dataclass(frozen=True, slots=True)
class Source:
    """One parsed file. `mode` is its permission bits; only the main file may hold more than accounts."""

    name: str
    mode: int
    table: Table
    lines: Lines
    is_main: bool

    def problem(self, path: KeyPath, message: str) -> Problem:
        return Problem(self.name, self.lines.of(path), key_text(path), message)


@dataclass(frozen=True, slots=True)
class Place:
    """One account's table in its file."""

    source: Source
    name: str
    table: Table

    def section(self, protocol: str) -> Table | None:
        return as_table(self.table.get(protocol))

    def problem(self, path: KeyPath, message: str) -> Problem:
        return self.source.problem(("accounts", self.name, *path), message)

    def line(self, path: KeyPath) -> int:
        return self.source.lines.of(("accounts", self.name, *path))

    def sections(self) -> Iterator[tuple[str, Table]]:
        for protocol in PROTOCOLS:
            if (section := self.section(protocol)) is not None:
                yield protocol, section


def as_table(value: object) -> Table | None:
    """The value if it is a table."""
    return value if isinstance(value, dict) else None


def places(sources: list[Source]) -> list[Place]:
    """The accounts of all files in order, those of a name that was there before included."""
    found = []
    for source in sources:
        for name, value in (as_table(source.table.get("accounts")) or {}).items():
            if (table := as_table(value)) is not None:
                found.append(Place(source, name, table))
    return found


def broken_rules(sources: list[Source], maildir: Path | None, environ: Mapping[str, str]) -> Iterator[Problem]:
    """Everything that is wrong with the files together; `maildir` is where accounts live by default."""
    accounts = places(sources)
    yield from _only_accounts(sources)
    for place in accounts:
        yield from _name(place)
        yield from _protocols(place)
        for protocol, section in place.sections():
            yield from _secret(place, protocol, section)
            yield from _certificate(place, protocol, section)
            yield from _oauth_endpoints(place, protocol, section)
            yield from _plaintext(place, protocol, section)
            yield from _readable_password(place, protocol, section)
    yield from _duplicates(accounts)
    yield from _maildirs(accounts, maildir, environ)


def missing_accounts(sources: list[Source], *, may_be_empty: bool) -> Iterator[Problem]:
    """No account at all, and a default account that is none; to be asked only when every file could be read."""
    main, names = sources[0], [place.name for place in places(sources)]
    has_none = all(source.table.get("accounts", {}) == {} for source in sources)
    if has_none and not may_be_empty:
        yield main.problem((), 'there is no account yet; "maild account add ADDRESS" sets one up')
    wanted = (as_table(main.table.get("maild")) or {}).get("default_account")
    if isinstance(wanted, str) and wanted and wanted not in names:
        yield main.problem(("maild", "default_account"), "no account has this name" + suggestion(wanted, names))


def doubts(sources: list[Source], environ: Mapping[str, str]) -> Iterator[Problem]:
    """What is no error of the config and can hardly be meant."""
    main = sources[0]
    wanted = (as_table(main.table.get("maild")) or {}).get("default_account")
    for place in places(sources):
        if place.name == wanted and "smtp" not in place.table:
            yield main.problem(("maild", "default_account"), "this account has no smtp section, so it cannot send")
        for protocol, section in place.sections():
            yield from _readable_password_file(place, protocol, section, environ)


def _only_accounts(sources: list[Source]) -> Iterator[Problem]:
    for source in sources[1:]:
        for key in source.table:
            if key in ("maild", "hooks"):
                yield source.problem((key,), f"belongs in {sources[0].name}; only accounts may stand here")


def _name(place: Place) -> Iterator[Problem]:
    if not _NAME.fullmatch(place.name):
        yield place.problem((), "an account name is at most 64 letters, digits, . _ or -, a letter or digit first")


def _protocols(place: Place) -> Iterator[Problem]:
    given = [protocol for protocol in PROTOCOLS if protocol in place.table]
    if not given:
        account = key_text(["accounts", place.name])
        yield place.problem((), f"has no server; add [{account}.imap], [{account}.pop3] or [{account}.smtp]")
    if "imap" in given and "pop3" in given:
        line = place.line(("imap",))
        yield place.problem(("pop3",), f"an account has imap or pop3, not both (imap is on line {line})")


def _secret(place: Place, protocol: str, section: Table) -> Iterator[Problem]:
    given = [source for source in SECRET_SOURCES if source in section]
    borrows = protocol == "smtp" and ("imap" in place.table or "pop3" in place.table)
    if not given and not borrows and section.get("auth") != "external":
        yield place.problem((protocol,), f"has no secret; give exactly one of {one_of(_OFFERED_SECRETS)}")
    if len(given) > 1:
        first, *others = sorted(given, key=lambda source: place.line((protocol, source)))
        line = place.line((protocol, first))
        for source in others:
            yield place.problem((protocol, source), f"is a second secret beside {first} (line {line}); keep one")


def _certificate(place: Place, protocol: str, section: Table) -> Iterator[Problem]:
    if section.get("auth") == "external" and "client_cert" not in section:
        yield place.problem((protocol, "auth"), '"external" logs in by client_cert, which is missing')
    if "client_key" in section and "client_cert" not in section:
        yield place.problem((protocol, "client_key"), "is of no use without client_cert")


def _oauth_endpoints(place: Place, protocol: str, section: Table) -> Iterator[Problem]:
    table = as_table(section.get("oauth2")) or {}
    if not isinstance(provider := table.get("provider"), str) or provider in _KNOWN_PROVIDERS:
        return
    if missing := [key for key in _ENDPOINTS if key not in table]:
        known = f"known by name are only {one_of(_KNOWN_PROVIDERS, 'and')}{suggestion(provider, _KNOWN_PROVIDERS)}"
        needed = f"any other provider also needs {one_of(missing, 'and')}"
        yield place.problem((protocol, "oauth2", "provider"), f"{known}; {needed}")


def _plaintext(place: Place, protocol: str, section: Table) -> Iterator[Problem]:
    host = section.get("host")
    if section.get("tls") != "none" or section.get("allow_plaintext") is True or not isinstance(host, str):
        return
    try:
        if units.is_loopback(units.host(host)):
            return
    except ValueError:
        return  # the schema reports it
    yield place.problem(
        (protocol, "tls"),
        '"none" sends the password and all mail in clear; use "implicit" or "starttls", '
        "or set allow_plaintext = true if that is really meant",
    )


def _readable_password(place: Place, protocol: str, section: Table) -> Iterator[Problem]:
    if "password" in section and place.source.mode & 0o077:
        name, mode = place.source.name, place.source.mode
        yield place.problem(
            (protocol, "password"),
            f"others have access to this file (mode {mode:04o}) and it holds a password; run chmod 600 {name}",
        )


def _readable_password_file(
    place: Place, protocol: str, section: Table, environ: Mapping[str, str]
) -> Iterator[Problem]:
    """It need not be there yet; as it is, it would be refused when it is read."""
    try:
        path = units.path(section["password_file"], environ)
        mode = stat.S_IMODE(path.stat().st_mode)
    except (KeyError, ValueError, OSError):
        return  # the schema reports what is no path
    if mode & 0o077:
        yield place.problem(
            (protocol, "password_file"), f"others have access to {path} (mode {mode:04o}); run chmod 600 {path}"
        )


def _duplicates(accounts: list[Place]) -> Iterator[Problem]:
    first: dict[str, Place] = {}
    for place in accounts:
        earlier = first.setdefault(place.name, place)
        if earlier is not place:
            yield place.problem((), f"is already an account in {earlier.source.name}:{earlier.line(())}")


def _maildirs(accounts: list[Place], default: Path | None, environ: Mapping[str, str]) -> Iterator[Problem]:
    seen: dict[str, tuple[Place, str]] = {}
    taken: set[str] = set()  # those seen
    parents: set[str] = set()  # every directory that one of them lies in
    for place in accounts:
        directory = _maildir(place, default, environ)
        if directory is None or place.name in seen:
            continue
        real = os.path.realpath(directory)
        above = _directories_above(real)
        meets_any = real in taken or real in parents or not taken.isdisjoint(above)
        for other, theirs in seen.values() if meets_any else ():  # or a thousand would be compared with each other
            if relation := _overlap(real, theirs):
                where = f"{other.source.name}:{other.line(('maildir',))}"
                yield place.problem(("maildir",), f"{directory} {relation} account {key_text([other.name])} ({where})")
        seen[place.name] = (place, real)
        taken.add(real)
        parents |= above


def _directories_above(path: str) -> set[str]:
    parts = path.split("/")
    return {"/".join(parts[:count]) or "/" for count in range(1, len(parts))}


def _maildir(place: Place, default: Path | None, environ: Mapping[str, str]) -> Path | None:
    if "maildir" not in place.table:
        return default / place.name if default and _NAME.fullmatch(place.name) else None
    try:
        return units.path(place.table["maildir"], environ)
    except ValueError:
        return None  # the schema reports it


def _overlap(mine: str, other: str) -> str:
    if mine == other:
        return "is also the Maildir of"
    if mine.startswith(other.rstrip("/") + "/"):
        return "lies inside the Maildir of"
    if other.startswith(mine.rstrip("/") + "/"):
        return "holds the Maildir of"
    return ""
