"""Everything that can go wrong, as one tree. Each class knows how far it reaches and whether to try again.

A text says what happened and where; `hint` says what to do about it. Callers decide by the class
attributes `scope` and `retry`, never by a ladder of isinstance checks.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import ClassVar


def did_you_mean(wrong: str, possible: Iterable[str]) -> str:
    """` (did you mean "x"?)` where something possible is close to `wrong`, whatever its case; else nothing."""
    import difflib  # only a mistake pays for it

    spelled = {name.casefold(): name for name in possible}
    near = difflib.get_close_matches(wrong.casefold(), spelled, n=1)
    return f' (did you mean "{spelled[near[0]]}"?)' if near else ""


class Scope(enum.Enum):
    """How much of the work an error spoils; everything outside goes on."""

    MESSAGE = "message"
    MAILBOX = "mailbox"
    ACCOUNT = "account"
    PROCESS = "process"


class Retry(enum.Enum):
    """When trying again can help."""

    LATER = "later"  # with back-off, by itself
    AFTER_CHANGE = "after_change"  # a person has to change something first


class MaildError(Exception):
    """Base of all errors that maild raises on purpose; `str()` is one line for a person."""

    scope: ClassVar[Scope] = Scope.PROCESS
    retry: ClassVar[Retry] = Retry.AFTER_CHANGE

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.text.rstrip('.')}; {self.hint}" if self.hint else self.text


class ConfigError(MaildError):
    """The config cannot be used; `problems` holds one `FILE:LINE: KEY.PATH: text` per line.

    Exit status 78, or 77 if `is_denied`: nothing is known to be wrong but that the user may not read it.
    """

    def __init__(self, problems: list[str], *, is_denied: bool = False) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.is_denied = is_denied


class SecretUnavailable(MaildError):
    """A password could not be read from its source (command failed, file missing or readable by others)."""

    scope = Scope.ACCOUNT


class RemoteError(MaildError):
    """Something about the other machine."""

    scope = Scope.ACCOUNT
    retry = Retry.LATER


class ConnectionLost(RemoteError):
    """No connection could be made, it ended, or it gave no proof of life in time."""


class TlsFailed(RemoteError):
    """TLS could not be set up as the config demands: certificate, name, pin, or a server without it."""

    retry = Retry.AFTER_CHANGE


class AuthRejected(RemoteError):
    """The server refused the credentials."""

    retry = Retry.AFTER_CHANGE


class Unavailable(RemoteError):
    """The server says: not now (RFC 5530 UNAVAILABLE, INUSE, LIMIT, too many connections)."""


class Rejected(RemoteError):
    """The server refused one command (tagged NO or BAD); the session is still good."""

    scope = Scope.MAILBOX

    def __init__(self, text: str, hint: str = "", code: str = "") -> None:
        super().__init__(text, hint)
        self.code = code  # the response code's name in upper case, such as "NONEXISTENT", or ""


class ProtocolViolation(RemoteError):
    """The server broke the protocol or one of our limits; that session is closed."""


class LocalError(MaildError):
    """This disk: full, read-only, no permission, something that is not a Maildir."""

    scope = Scope.ACCOUNT
    retry = Retry.LATER


class NoPermission(LocalError):
    """This disk again: the user who runs maild may not. Exit status 77 where it ends a command."""


class PlanRefused(MaildError):
    """The deletion guard refused a plan for one mailbox."""

    scope = Scope.MAILBOX


class NoSuchMailbox(MaildError):
    """A pass was asked for a mailbox that the account does not have: a mistake of who asked, not of the account."""

    scope = Scope.MAILBOX


class StateBusy(MaildError):
    """Another maild holds the state directory."""
