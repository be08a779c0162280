"""The texts a config uses for durations, sizes, paths and the like, turned into plain values.

Every function takes what TOML gave and raises ValueError with a text for a person, which never repeats the value
(but for the name of a variable that is not set): it may be a secret that stands in the wrong place.
"""

from __future__ import annotations

import os
import pwd
import re
import unicodedata
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maild.config.values import DeletionLimit

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_OCTETS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_HOST_NAME = re.compile(r"[\w](?:[\w.-]*\w)?\.?")


def kind(value: object) -> str:
    """What a TOML value is, in words."""
    match value:
        case bool():
            return "true or false"
        case str():
            return "a text"
        case int():
            return "a number"
        case float():
            return "a fraction"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def duration_s(value: object) -> int:
    """Seconds of "30s", "5m", "2h" or "14d"."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('must be a duration such as "30s", "5m", "2h" or "14d"' + _instead(value))
    return int(found[1]) * _SECONDS[found[2]]


def some_duration_s(value: object) -> int:
    """A duration that is not nothing."""
    seconds = duration_s(value)
    if seconds < 1:
        raise ValueError('must be at least "1s"')
    return seconds


def keeping_s(value: object) -> bool | int:
    """How long to keep messages on a POP3 server: always, not at all, or so many seconds."""
    if isinstance(value, bool):
        return value
    try:
        return some_duration_s(value)
    except ValueError:
        raise ValueError('must be true, false or a duration such as "14d"' + _instead(value)) from None


def size_octets(value: object) -> int:
    """Octets of "512K", "50M" or "2G", in powers of 1024."""
    found = re.fullmatch(r"([0-9]{1,9})([KMG])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('must be a size such as "512K", "50M" or "2G"' + _instead(value))
    if int(found[1]) < 1:
        raise ValueError('must be at least "1K"')
    return int(found[1]) * _OCTETS[found[2]]


def deletion_limit(value: object) -> DeletionLimit:
    """A share such as "50%" or a plain count such as 200 (or "200")."""
    from maild.config.values import DeletionLimit  # 12 ms that `maild sendmail` never needs

    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9:
        return DeletionLimit(value, is_percent=False)
    found = re.fullmatch(r"([0-9]{1,9})(%?)", value) if isinstance(value, str) else None
    if found is None or (found[2] and int(found[1]) > 100):
        raise ValueError('must be a share from "0%" to "100%" or a count such as 200' + _instead(value, int))
    return DeletionLimit(int(found[1]), is_percent=bool(found[2]))


def path(value: object, environ: Mapping[str, str]) -> Path:
    """An absolute path, `~` and `$VARIABLES` expanded, `..` and doubled slashes folded away."""
    if not isinstance(value, str):
        raise ValueError(f"must be a path in quotes, not {kind(value)}")
    text = _expand_home(_expand_variables(line(value), environ), environ)
    if not text.startswith("/"):
        raise ValueError("must be an absolute path, or begin with ~ or a $VARIABLE that holds one")
    return Path(os.path.normpath("/" + text.lstrip("/")))  # normpath keeps two slashes at the front


def home(environ: Mapping[str, str]) -> str:
    """The user's home directory: `$HOME`, else what the user database says."""
    return environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir


def line(value: str) -> str:
    """A text that is not empty and holds no control character, so that it cannot end a protocol line early."""
    if not value:
        raise ValueError("must not be empty")
    if any(unicodedata.category(char) == "Cc" for char in value):
        raise ValueError("must not contain line ends or other control characters")
    return value


def address(value: str) -> str:
    """A mail address without a display name, such as me@example.org."""
    local, at, domain = line(value).rpartition("@")
    if not (local and at and domain) or any(char.isspace() or char in "<>,;@" for char in local + domain):
        raise ValueError('must be a plain address such as "me@example.org"')
    return value


def host(value: str) -> str:
    """A host name or address and nothing else; an IPv6 address loses its brackets."""
    line(value)
    if "//" in value or "/" in value:
        raise ValueError('must be a host name alone, without "imap://" or a path')
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    if _is_address(bare) or (_HOST_NAME.fullmatch(value) and ".." not in value and len(value) < 254):
        return bare
    if re.fullmatch(r"[^:]+:[0-9]+", value):
        raise ValueError("must be a host name alone; the port goes into the key port")
    raise ValueError('must be a host name or an IP address such as "imap.example.org"')


def is_loopback(name: str) -> bool:
    """Whether a host can only be this machine."""
    bare = name.rstrip(".").lower()
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    return _is_address(bare) and ip_address(bare).is_loopback


def fingerprint(value: str) -> str:
    """The pin of a certificate, "sha256:" and 64 hex digits with or without colons, in one spelling."""
    if not re.fullmatch(r"sha256:[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}", value):
        raise ValueError('must be "sha256:" followed by 64 hex digits, with or without colons between the pairs')
    return "sha256:" + value.removeprefix("sha256:").replace(":", "").lower()


def https_url(value: str) -> str:
    """Where tokens are asked for; in clear only from this machine itself."""
    found = re.fullmatch(r"(https?)://([^\s/@]+?)(:[0-9]+)?(/\S*)?", line(value))
    if found is None or (found[1] == "http" and not is_loopback(found[2].strip("[]"))):
        raise ValueError('must be an address that begins with "https://"')
    return value


def port(value: int) -> int:
    """A TCP port."""
    if not 1 <= value <= 65535:
        raise ValueError("must be between 1 and 65535")
    return value


def some(value: int) -> int:
    """A count of at least one."""
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def file_name(value: str) -> str:
    """A name inside one directory, with no way out of it."""
    if "/" in line(value) or value in (".", ".."):
        raise ValueError("must be a plain file name without slashes")
    return value


def extension(value: str) -> str:
    """The name of an IMAP capability, in upper case."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+=._-]*", value):
        raise ValueError('must be the name of an IMAP extension such as "QRESYNC"')
    return value.upper()


def argv(words: list[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """A program and its arguments; of these only the program has `~` and `$VARIABLES` expanded, as a path has."""
    if not words or not words[0]:
        raise ValueError("must name a program, then its arguments")
    if any("\0" in word for word in words):
        raise ValueError("must not contain a NUL character")
    return (_expand_home(_expand_variables(words[0], environ), environ), *words[1:])


def patterns(value: list[str]) -> list[str]:
    """Mailbox patterns in order; at least one that takes something in."""
    if any(pattern == "!" for pattern in value):
        raise ValueError('has a "!" without a pattern behind it')
    if all(pattern.startswith("!") for pattern in value):
        raise ValueError('takes in no mailbox; begin with "*" for all of them, then exclude, as in ["*", "!Junk"]')
    return value


def _instead(value: object, *wanted: type) -> str:
    """What was given, where its kind is already wrong."""
    return "" if type(value) in (str, *wanted) else f", not {kind(value)}"


def _expand_variables(text: str, environ: Mapping[str, str]) -> str:
    def value_of(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in environ:
            raise ValueError(f"uses ${name}, which is not set")
        return environ[name]

    return _VARIABLE.sub(value_of, text)


def _expand_home(text: str, environ: Mapping[str, str]) -> str:
    if not text.startswith("~"):
        return text
    user, slash, rest = text[1:].partition("/")
    if not user:
        return home(environ) + slash + rest
    try:
        return pwd.getpwnam(user).pw_dir + slash + rest
    except KeyError:
        raise ValueError("begins with ~ and the name of a user that this machine does not know") from None


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
