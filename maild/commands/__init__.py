"""What each subcommand does, one module each; `cli` imports the one that is asked for."""

from __future__ import annotations

from collections.abc import Collection

_NAMED = 12  # accounts in a text


def printable(text: str) -> str:
    """A server's words may be in it: nothing in them may move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def no_such_account(wrong: str, names: Collection[str]) -> str:
    """What is said of an account that the config does not have."""
    from maild.core.errors import did_you_mean  # only a mistake pays for it

    some, left = list(names)[:_NAMED], len(names) - _NAMED
    more = f" and {left:,} more" if left > 0 else ""
    return f"no account is called {wrong!r}{did_you_mean(wrong, names)}; there are: {', '.join(some)}{more}"
