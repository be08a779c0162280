"""Questions at a terminal, for commands that set something up; where there is no terminal, nothing is asked.

Passwords are typed without being shown, or come as one line from standard input. They are kept out of the log from the
moment they are there.
"""

from __future__ import annotations

import getpass
import sys

from maild.commands import printable
from maild.core.errors import MaildError
from maild.remote.auth import keep_out_of_log

_LIMIT_CHARACTERS = 4096


class NothingToAsk(MaildError):
    """An answer is needed and there is nobody to give it."""


def is_interactive() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def say(*lines: str) -> None:
    """Lines for a person, on standard output."""
    for line in lines:
        print(printable(line), flush=True)


def ask(question: str, default: str = "") -> str:
    """One line; the default for an empty one. Raises NothingToAsk at the end of the input."""
    hint = f" [{default}]" if default else ""
    try:
        return input(printable(f"{question}{hint}: ")).strip() or default
    except EOFError:
        raise NothingToAsk("the input ended in the middle of a question", "nothing was changed") from None


def confirm(question: str) -> bool:
    """Yes or no, yes by default."""
    return ask(f"{question} (yes/no)", "yes").lower() in ("y", "yes")


def ask_password(question: str) -> str:
    """A password, typed without being shown. Raises NothingToAsk."""
    try:
        found = getpass.getpass(printable(f"{question}: "))
    except EOFError:
        raise NothingToAsk("no password was given", "nothing was changed") from None
    return _checked(found)


def read_password() -> str:
    """A password from the first line of standard input. Raises NothingToAsk."""
    return _checked(sys.stdin.readline(_LIMIT_CHARACTERS).rstrip("\r\n"))


def _checked(password: str) -> str:
    if not password:
        raise NothingToAsk("no password was given", "nothing was changed")
    if not password.isprintable():
        raise NothingToAsk("a password cannot hold control characters", "nothing was changed")
    keep_out_of_log(password)
    return password
