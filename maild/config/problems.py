"""Findings about a config, and pydantic's errors in plain words. No text ever repeats a value of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from maild.config import units
from maild.config.locate import KeyPath
from maild.config.schema import SECTIONS, Section
from maild.core.errors import did_you_mean

_WANTED = {
    "string_type": "a text in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list in [ ]",
    "dict_type": "a table",
    "model_type": "a table",
}

# What mbsync, OfflineIMAP, msmtp, getmail, fetchmail and mail readers call it.
_KEYS_ELSEWHERE = {
    "email": "address",
    "encryption": "tls",
    "folders": "mailboxes",
    "from": "address",
    "login": "user",
    "passcmd": "password_command",
    "passwordeval": "password_command",
    "path": "maildir",
    "patterns": "mailboxes",
    "security": "tls",
    "server": "host",
    "ssl": "tls",
    "sslcertfile": "ca_file",
    "ssltype": "tls",
    "starttls": "tls",
    "tls_trust_file": "ca_file",
}
_WORDS_ELSEWHERE = {
    "false": "off",
    "imaps": "implicit",
    "no": "off",
    "pop3s": "implicit",
    "smtps": "implicit",
    "ssl": "implicit",
    "ssl/tls": "implicit",
    "tls": "implicit",
    "true": "on",
    "yes": "on",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to say about a config. `line` is 0 and `key` "" where it concerns no line or key."""

    file: str
    line: int
    key: str
    message: str
    is_denied: bool = False  # the file may not be read by this user

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.message) if part)


def key_text(path: Iterable[str | int]) -> str:
    """A key path as one would write it: `accounts.work.imap.host`, odd parts in quotes, list places as `[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (
                part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part, ensure_ascii=False)
            )
    return text


def suggestion(wrong: object, possible: Collection[str], elsewhere: Mapping[str, str] = MappingProxyType({})) -> str:
    """` (did you mean "x"?)` where something possible is close to `wrong`, or is what others call so; else nothing."""
    if not isinstance(wrong, str):
        return ""
    same = elsewhere.get(wrong.casefold())
    return did_you_mean(wrong, possible) if same is None or same not in possible else f' (did you mean "{same}"?)'


def one_of(words: Iterable[str], last: str = "or") -> str:
    """`a`, `a or b`, `a, b or c`."""
    *head, tail = words
    return f"{', '.join(head)} {last} {tail}" if head else tail


def findings(error: ValidationError) -> Iterator[tuple[KeyPath, str]]:
    """What pydantic found wrong: where, and what in plain words."""
    for detail in error.errors(include_url=False):
        yield detail["loc"], _message(detail)


def section_at(path: KeyPath) -> type[Section] | None:
    """The section that stands at a key path."""
    return SECTIONS.get(tuple("*" if place == 1 else str(part) for place, part in enumerate(path)))


def _message(detail: ErrorDetails) -> str:
    given, path = detail["input"], detail["loc"]
    match detail["type"]:
        case "missing":
            return _missing(path)
        case "extra_forbidden":
            return _unknown(path)
        case "literal_error":
            return _not_among(str(detail["ctx"]["expected"]), given)
        case "value_error":
            return str(detail["ctx"]["error"])
        case known if known in _WANTED:
            return f"must be {_WANTED[known]}, not {units.kind(given)}{_remedy(known, path, given)}"
        case _:
            return "cannot be used"


def _missing(path: KeyPath) -> str:
    section = section_at(path[:-1])
    examples = section.model_fields[str(path[-1])].examples if section else None
    return "is missing" + (f'; for example {path[-1]} = "{examples[0]}"' if examples else "")


def _unknown(path: KeyPath) -> str:
    """Names the section where such a key belongs, else the nearest key of this one."""
    name, section = str(path[-1]), section_at(path[:-1])
    homes = [_header(place, path) for place, other in SECTIONS.items() if place and name in other.model_fields]
    if homes:
        return f"does not belong here but in {one_of(homes[:3])}"
    near = suggestion(name, section.model_fields, _KEYS_ELSEWHERE) if section else ""
    return f"is not a key that maild knows{near}"


def _header(place: tuple[str, ...], path: KeyPath) -> str:
    account = key_text([path[1]]) if len(path) > 2 and path[0] == "accounts" else "NAME"
    return f"[{'.'.join(account if part == '*' else part for part in place)}]"


def _not_among(expected: str, given: object) -> str:
    words = re.findall(r"'([^']*)'", expected)
    if not words:
        return "must be true or left out"
    quoted = [f'"{word}"' for word in words]
    wrong = suggestion(given, words, _WORDS_ELSEWHERE) if isinstance(given, str) else f", not {units.kind(given)}"
    return f"must be {one_of(quoted)}{wrong}"


def _remedy(wanted: str, path: KeyPath, given: object) -> str:
    """What the user probably meant, where a wrong type shows it."""
    if wanted == "list_type" and isinstance(given, str):
        if str(path[-1]).endswith("_command") or path[0] == "hooks":
            return '; it is run without a shell, as in ["pass", "mail/work"]'
        return '; put it in brackets, as in ["…"]'
    if wanted == "model_type" and isinstance(given, list):
        return f"; write [{key_text(path)}] with single brackets"
    if path == ("accounts",):
        return "; each account is a table [accounts.NAME]"
    return ""
