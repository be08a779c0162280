"""From the validated sections of a file to the values the rest of maild works with: every default is settled here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict

from maild.config import schema, units, values

_PORTS = {"imap": (993, 143), "pop3": (995, 110), "smtp": (465, 587)}  # implicit TLS; STARTTLS or none


class _Endpoint(TypedDict):
    host: str
    port: int
    user: str
    secret: values.Secret
    tls: values.Tls
    allow_plaintext: bool
    auth: values.Auth
    ca_file: Path | None
    tls_fingerprint: str | None


def config(path: Path, files: list[schema.File], environ: Mapping[str, str], notes: tuple[str, ...]) -> values.Config:
    """The whole config, of files that are known to be good; the first one is the main file."""
    main = files[0].maild or schema.MaildSection.model_validate({}, context=environ)
    hooks = files[0].hooks or schema.HooksSection()
    accounts = {
        name: _account(name, section, main.maildir) for file in files for name, section in file.accounts.items()
    }
    return values.Config(
        path=path,
        maildir=main.maildir,
        state_dir=main.state_dir or _state_dir(environ),
        accounts=MappingProxyType(accounts),
        log_level=main.log_level,
        log_format=main.log_format,
        default_account=main.default_account,
        hooks=values.Hooks(
            on_new_mail=tuple(hooks.on_new_mail or ()),
            on_change=tuple(hooks.on_change or ()),
            on_failure=tuple(hooks.on_failure or ()),
        ),
        notes=notes,
    )


def _state_dir(environ: Mapping[str, str]) -> Path:
    """`$STATE_DIRECTORY` (systemd may list several, colons between them), else the XDG state directory."""
    if given := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    user = environ.get("XDG_STATE_HOME", "")
    return (Path(user) if user.startswith("/") else Path(units.home(environ)) / ".local/state") / "maild"


def _account(name: str, section: schema.AccountSection, maildir: Path) -> values.Account:
    imap = _imap(section.imap, section.address) if section.imap else None
    pop3 = _pop3(section.pop3, section.address) if section.pop3 else None
    return values.Account(
        name=name,
        address=section.address,
        maildir=section.maildir or maildir / name,
        aliases=tuple(section.aliases),
        layout=section.layout,
        max_deletions=section.max_deletions,
        imap=imap,
        pop3=pop3,
        smtp=_smtp(section.smtp, section.address, imap or pop3) if section.smtp else None,
    )


def _imap(section: schema.ImapSection, address: str) -> values.Imap:
    return values.Imap(
        **_endpoint("imap", section, address, None),
        mailboxes=tuple(section.mailboxes),
        push=section.push,
        idle_mailboxes=tuple(section.idle_mailboxes),
        poll_s=section.poll,
        connections=section.connections,
        deletions=section.deletions,
        remote_delete=section.remote_delete,
        max_message_size_octets=section.max_message_size,
        compress=section.compress == "on",
        disable_extensions=frozenset(section.disable_extensions),
    )


def _pop3(section: schema.Pop3Section, address: str) -> values.Pop3:
    return values.Pop3(
        **_endpoint("pop3", section, address, None),
        poll_s=section.poll,
        leave_on_server=section.leave_on_server,
        delete_with_local=section.delete_with_local,
    )


def _smtp(section: schema.SmtpSection, address: str, incoming: values.Endpoint | None) -> values.Smtp:
    return values.Smtp(
        **_endpoint("smtp", section, address, incoming),
        sent=section.sent,
        sent_mailbox=section.sent_mailbox,
        undo_s=section.undo,
    )


def _endpoint(
    protocol: str, section: schema.EndpointSection, address: str, incoming: values.Endpoint | None
) -> _Endpoint:
    """What is not said comes from the account's incoming server, else from the protocol and the address."""
    implicit, other = _PORTS[protocol]
    secret = _secret(section) or (incoming.secret if incoming else None)
    if secret is None:
        raise ValueError(f"a section without a secret passed the rules: {protocol} at {section.host}")
    return _Endpoint(
        host=section.host,
        port=section.port or (implicit if section.tls == "implicit" else other),
        user=section.user or (incoming.user if incoming else address),
        secret=secret,
        tls=section.tls,
        allow_plaintext=section.allow_plaintext,
        auth=section.auth or (incoming.auth if incoming else "auto"),
        ca_file=section.ca_file,
        tls_fingerprint=section.tls_fingerprint,
    )


def _secret(section: schema.EndpointSection) -> values.Secret | None:
    """The one source that is given; the rules have seen that there are not two."""
    if section.password is not None:
        return values.Password(section.password)
    if section.password_command is not None:
        return values.PasswordCommand(tuple(section.password_command))
    if section.password_file is not None:
        return values.PasswordFile(section.password_file)
    if section.password_credential is not None:
        return values.PasswordCredential(section.password_credential)
    if section.password_keyring is not None:
        return values.PasswordKeyring()
    if section.oauth2 is not None:
        return _oauth2(section.oauth2)
    return values.TokenCommand(tuple(section.token_command)) if section.token_command is not None else None


def _oauth2(section: schema.OAuth2Section) -> values.OAuth2:
    return values.OAuth2(
        provider=section.provider,
        client_id=section.client_id,
        authorization_endpoint=section.authorization_endpoint or "",
        token_endpoint=section.token_endpoint or "",
        device_authorization_endpoint=section.device_authorization_endpoint or "",
        scopes=tuple(section.scopes or ()),
    )
