"""Passwords that maild keeps for the user: in a file of mode 0600, or in the desktop's keyring.

Other sources are the user's own; for each there is a text that says how a password is changed there.
"""

from __future__ import annotations

from pathlib import Path

from maild.config import (
    OAuth2,
    Password,
    PasswordCommand,
    PasswordCredential,
    PasswordFile,
    PasswordKeyring,
    Secret,
    TokenCommand,
)
from maild.engine import accounts
from maild.remote import keyring

LOST_PASSWORD = "A password that is lost only the provider can replace, on its web site; maild cannot."  # noqa: S105


def can_keep(secret: Secret) -> bool:
    """Whether a new password can be put there by maild."""
    return isinstance(secret, PasswordFile | PasswordKeyring)


def keep(secret: Secret, password: str, account: str) -> bool:
    """Put the password there; False where that is not maild's to do. Raises LocalError, SecretUnavailable."""
    match secret:
        case PasswordFile(path):
            accounts.write_file(path, password.encode() + b"\n")
            return True
        case PasswordKeyring():
            keyring.store(keyring.PASSWORDS, account, password, f'account "{account}"')
            return True
        case _:
            return False


def forget(secret: Secret, account: str, main: Path) -> str:
    """Take away the password that maild put there; where it was, "" if it is not maild's. Raises SecretUnavailable."""
    match secret:
        case PasswordFile(path) if path == accounts.password_file(main, account):
            accounts.remove_file(path)
        case PasswordKeyring():
            keyring.remove(keyring.PASSWORDS, account, f'account "{account}"')
        case OAuth2(token_file=Path() as path):
            accounts.remove_file(path)
        case _:
            return ""
    return place(secret)


def place(secret: Secret) -> str:
    """Where it is, in words."""
    match secret:
        case PasswordFile(path):
            return f"the file {path} (mode 0600)"
        case PasswordKeyring():
            return "the desktop's keyring"
        case PasswordCommand(argv):
            return f"what the program {argv[0]} prints"
        case PasswordCredential(name):
            return f"the systemd credential {name}"
        case Password():
            return "the config itself"
        case OAuth2(token_file=file):
            return "the keyring" if file is None else f"the file {file}"
        case TokenCommand(argv):
            return f"what the program {argv[0]} prints"
        case _:
            return "the client certificate"


def how_to_change(secret: Secret, account: str, file: Path) -> str:
    """What to do where maild cannot put a new password."""
    match secret:
        case Password():
            return f'edit password in {file}, which maild does not rewrite; then run "maild reload"'
        case PasswordCommand(argv):
            return (
                f"the password comes from the program {argv[0]} (password_command in {file}): change it there, as with "
                '"pass edit", then run "maild reload"'
            )
        case PasswordCredential(name):
            return f"write the new one with systemd-creds into the credential {name}, then restart the service"
        case OAuth2():
            return f'there is no password: run "maild login {account}"'
        case TokenCommand(argv):
            return f"there is no password: log in anew with the program {argv[0]}"
        case _:
            return "there is no password: the client certificate logs in"
