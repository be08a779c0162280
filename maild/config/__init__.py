"""The config: TOML files → frozen values; every error names file, line and key path, and all come at once.

In reading order: `values` is what the rest of maild sees; `schema` is every key with its type and default;
`units` the texts for durations, sizes and paths; `rules` what keys must mean together; `files` finds, reads and
judges the files; `build` makes the values.
"""

from maild.config.files import Report, examine, load
from maild.config.problems import Problem
from maild.config.values import (
    Account,
    Config,
    DeletionLimit,
    Endpoint,
    Hooks,
    Imap,
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
