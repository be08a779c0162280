"""Every key a config may have, with its type and default: the one place that says so.

The models mirror the file, section by section; `DiskPath` and `Argv` need the environment as validation context.
A default is written as in the file. What the sections mean together is the business of `rules`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo

from maild.config import units, values


def _path(value: object, info: ValidationInfo) -> Path:
    return units.path(value, info.context or {})


def _argv(value: list[str], info: ValidationInfo) -> tuple[str, ...]:
    return units.argv(value, info.context or {})


Line = Annotated[str, AfterValidator(units.line)]
Address = Annotated[str, AfterValidator(units.address)]
Host = Annotated[str, AfterValidator(units.host)]
HttpsUrl = Annotated[str, AfterValidator(units.https_url)]
Fingerprint = Annotated[str, AfterValidator(units.fingerprint)]
FileName = Annotated[str, AfterValidator(units.file_name)]
Extension = Annotated[str, AfterValidator(units.extension)]
Port = Annotated[int, AfterValidator(units.port)]
Some = Annotated[int, AfterValidator(units.some)]
DiskPath = Annotated[Path, PlainValidator(_path)]
Argv = Annotated[list[str], AfterValidator(_argv)]
Patterns = Annotated[list[Line], AfterValidator(units.patterns)]
Duration = Annotated[int, PlainValidator(units.duration_s)]
SomeDuration = Annotated[int, PlainValidator(units.some_duration_s)]
Keeping = Annotated[bool | int, PlainValidator(units.keeping_s)]
Size = Annotated[int, PlainValidator(units.size_octets)]
Limit = Annotated[values.DeletionLimit, PlainValidator(units.deletion_limit)]


def _written(text: str) -> Any:
    """A default in the file's own words."""
    return Field(default=text, validate_default=True)


class Section(BaseModel):
    """One table of the file: no unknown keys, and no value of one type taken for another."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class MaildSection(Section):
    """`[maild]`"""

    maildir: DiskPath = _written("~/Mail")
    state_dir: DiskPath | None = None
    log_level: values.LogLevel = "info"
    log_format: values.LogFormat = "auto"
    default_account: Line | None = None


class HooksSection(Section):
    """`[hooks]`"""

    on_new_mail: Argv | None = None
    on_change: Argv | None = None
    on_failure: Argv | None = None


class OAuth2Section(Section):
    """`oauth2 = { … }`"""

    provider: Line = Field(examples=["google"])
    client_id: Line = Field(examples=["1234.apps.example"])
    client_secret: Line | None = Field(default=None, repr=False)
    authorization_endpoint: HttpsUrl | None = None
    token_endpoint: HttpsUrl | None = None
    device_authorization_endpoint: HttpsUrl | None = None
    scopes: list[Line] | None = None
    tokens: Literal["file", "keyring"] = "file"


class EndpointSection(Section):
    """What `imap`, `pop3` and `smtp` have in common."""

    host: Host = Field(examples=["mail.example.org"])
    port: Port | None = None
    tls: values.Tls = "implicit"
    allow_plaintext: bool = False
    user: Line | None = None
    auth: values.Pop3Auth | None = None
    password: Line | None = Field(default=None, repr=False)
    password_command: Argv | None = None
    password_file: DiskPath | None = None
    password_credential: FileName | None = None
    password_keyring: Literal[True] | None = None
    oauth2: OAuth2Section | None = None
    token_command: Argv | None = None
    ca_file: DiskPath | None = None
    tls_fingerprint: Fingerprint | None = None
    client_cert: DiskPath | None = None
    client_key: DiskPath | None = None


class ImapSection(EndpointSection):
    """`[accounts.NAME.imap]`"""

    auth: values.Auth | None = None
    mailboxes: Patterns = ["*"]
    subscribed_only: bool = False
    push: values.Push = "auto"
    idle_mailboxes: list[Line] = ["INBOX"]
    poll: SomeDuration = _written("15m")
    connections: Some = 4
    deletions: values.Deletions = "both"
    remote_delete: values.RemoteDelete = "trash"
    max_message_size: Size = _written("100M")
    compress: Literal["off", "on"] = "off"
    disable_extensions: list[Extension] = []


class Pop3Section(EndpointSection):
    """`[accounts.NAME.pop3]`"""

    poll: SomeDuration = _written("5m")
    leave_on_server: Keeping = True
    delete_with_local: bool = False
    max_message_size: Size = _written("100M")


class SmtpSection(EndpointSection):
    """`[accounts.NAME.smtp]`; user, auth and secret default to those of the account's imap or pop3 section."""

    auth: values.Auth | None = None
    sent: values.Sent = "auto"
    sent_mailbox: Line | None = None
    undo: Duration = _written("0s")


class AccountSection(Section):
    """`[accounts.NAME]`"""

    address: Address = Field(examples=["me@example.org"])
    aliases: list[Address] = []
    maildir: DiskPath | None = None
    layout: values.Layout = "nested"
    max_deletions: Limit = _written("50%")
    imap: ImapSection | None = None
    pop3: Pop3Section | None = None
    smtp: SmtpSection | None = None


class File(Section):
    """A whole file."""

    maild: MaildSection | None = None
    hooks: HooksSection | None = None
    accounts: dict[str, AccountSection] = {}


SECRET_SOURCES = (
    "password",
    "password_command",
    "password_file",
    "password_credential",
    "password_keyring",
    "oauth2",
    "token_command",
)

PROTOCOLS = ("imap", "pop3", "smtp")

# Where each section stands, "*" being an account's name.
SECTIONS: dict[tuple[str, ...], type[Section]] = {
    (): File,
    ("maild",): MaildSection,
    ("hooks",): HooksSection,
    ("accounts", "*"): AccountSection,
    ("accounts", "*", "imap"): ImapSection,
    ("accounts", "*", "pop3"): Pop3Section,
    ("accounts", "*", "smtp"): SmtpSection,
    ("accounts", "*", "imap", "oauth2"): OAuth2Section,
    ("accounts", "*", "pop3", "oauth2"): OAuth2Section,
    ("accounts", "*", "smtp", "oauth2"): OAuth2Section,
}
