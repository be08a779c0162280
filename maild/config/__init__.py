"""The config: TOML files → frozen values; every error names file, line and key path, and all come at once.

In reading order: `values` is what the rest of maild sees; `schema` is every key with its type and default;
`units` the texts for durations, sizes and paths; `rules` what keys must mean together; `files` finds, reads and
judges the files; `build` makes the values.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maild.config.files import Report, examine, load
    from maild.config.problems import Problem
    from maild.config.values import (
        Account,
        Config,
        DeletionLimit,
        Endpoint,
        Hooks,
        Imap,
        NoSecret,
        OAuth2,
        Password,
        PasswordCommand,
        PasswordCredential,
        PasswordFile,
        PasswordKeyring,
        Pop3,
        Secret,
        Smtp,
        TokenCommand,
    )

__all__ = [
    "Account",
    "Config",
    "DeletionLimit",
    "Endpoint",
    "Hooks",
    "Imap",
    "NoSecret",
    "OAuth2",
    "Password",
    "PasswordCommand",
    "PasswordCredential",
    "PasswordFile",
    "PasswordKeyring",
    "Pop3",
    "Problem",
    "Report",
    "Secret",
    "Smtp",
    "TokenCommand",
    "examine",
    "load",
]


def __getattr__(name: str) -> Any:
    """Imported when first asked for: `maild sendmail` waits neither for pydantic nor for values it does not need."""
    if name in ("Problem", "Report", "examine", "load"):
        from maild.config import files as module
    elif name in __all__:
        from maild.config import values as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
