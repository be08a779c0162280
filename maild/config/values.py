"""What a config means, once it is read and found good: frozen values with every default filled in.

Nothing here knows TOML. Durations are seconds, sizes octets, paths absolute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Tls = Literal["implicit", "starttls", "none"]
Auth = Literal["auto", "plain", "login", "scram-sha-256", "oauthbearer", "xoauth2", "external"]
Pop3Auth = Auth | Literal["apop"]
Layout = Literal["nested", "maildir++"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]
Push = Literal["auto", "notify", "idle", "poll"]
Deletions = Literal["both", "to_local", "to_remote", "none"]
RemoteDelete = Literal["trash", "expunge"]
Sent = Literal["auto", "copy", "none"]


@dataclass(frozen=True, slots=True)
class Password:
    """The password itself, as it stands in the file; its repr does not show it."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PasswordCommand:
    """A program, run without a shell, whose first line of output is the password."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PasswordFile:
    """A file, readable by its owner only, whose first line is the password."""

    path: Path


@dataclass(frozen=True, slots=True)
class PasswordCredential:
    """The name of a file in `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential)."""

    name: str


@dataclass(frozen=True, slots=True)
class PasswordKeyring:
    """The desktop's secret service: service `maild`, user `<account>`."""


@dataclass(frozen=True, slots=True)
class OAuth2:
    """Tokens from an OAuth 2.0 provider; the end points are "" where the provider's name implies them.

    `owner` is whose tokens they are: the account, or "<account>/smtp" where that section has a provider of its own.
    They are kept in `token_file`, or in the desktop's secret service where that is None.
    """

    provider: str
    client_id: str
    client_secret: str = field(default="", repr=False)
    authorization_endpoint: str = ""
    token_endpoint: str = ""
    device_authorization_endpoint: str = ""
    scopes: tuple[str, ...] = ()
    owner: str = ""
    token_file: Path | None = None


@dataclass(frozen=True, slots=True)
class TokenCommand:
    """A program, run without a shell, that prints an access token."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoSecret:
    """None is needed: the client certificate says who we are (`auth = "external"`)."""


Secret = (
    Password | PasswordCommand | PasswordFile | PasswordCredential | PasswordKeyring | OAuth2 | TokenCommand | NoSecret
)


@dataclass(frozen=True, slots=True)
class DeletionLimit:
    """How many messages of one mailbox one pass may delete: a share of them, or a plain count."""

    amount: int
    is_percent: bool

    def of(self, messages: int) -> int:
        """The most that may be deleted from a mailbox that holds `messages`."""
        return messages * self.amount // 100 if self.is_percent else self.amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How to reach a server and log in there; the same for every protocol.

    `host` is a name or an address without brackets. `tls_fingerprint` is "sha256:" and 64 lower-case hex digits of
    the DER certificate. `ca_file` replaces the system's store. `client_cert` and `client_key` are PEM files to show to
    the server; the key may stand in the certificate's file.
    """

    host: str
    port: int
    user: str
    secret: Secret
    tls: Tls = "implicit"
    allow_plaintext: bool = False
    auth: Pop3Auth = "auto"  # "apop" for POP3 only
    ca_file: Path | None = None
    tls_fingerprint: str | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Imap(Endpoint):
    """The server whose mailboxes an account holds. `mailboxes` are patterns in order, `!` excludes."""

    mailboxes: tuple[str, ...] = ("*",)
    subscribed_only: bool = False
    push: Push = "auto"
    idle_mailboxes: tuple[str, ...] = ("INBOX",)
    poll_s: int = 900
    connections: int = 4
    deletions: Deletions = "both"
    remote_delete: RemoteDelete = "trash"
    max_message_size_octets: int = 100 << 20
    compress: bool = False
    disable_extensions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pop3(Endpoint):
    """The server whose one mailbox an account polls. `leave_on_server` is for ever, not at all, or so many seconds."""

    poll_s: int = 300
    leave_on_server: bool | int = True
    delete_with_local: bool = False
    max_message_size_octets: int = 100 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Smtp(Endpoint):
    """The server an account submits to. `sent_mailbox` is None for the one with the role \\Sent."""

    sent: Sent = "auto"
    sent_mailbox: str | None = None
    undo_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Programs to run when something happened, each an argv without a shell, empty for none."""

    on_new_mail: tuple[str, ...] = ()
    on_change: tuple[str, ...] = ()
    on_failure: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One login with its mailboxes and its submission server; never both `imap` and `pop3`."""

    name: str
    address: str
    maildir: Path
    aliases: tuple[str, ...] = ()
    layout: Layout = "nested"
    max_deletions: DeletionLimit = DeletionLimit(50, is_percent=True)
    imap: Imap | None = None
    pop3: Pop3 | None = None
    smtp: Smtp | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of it. `accounts` keeps the order of the files; `notes` tells what is valid and may not be meant."""

    path: Path
    maildir: Path
    state_dir: Path
    accounts: Mapping[str, Account]
    log_level: LogLevel = "info"
    log_format: LogFormat = "auto"
    default_account: str | None = None
    hooks: Hooks = Hooks()
    notes: tuple[str, ...] = ()
