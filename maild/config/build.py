"""From the validated sections of a file to the values the rest of maild works with: every default is settled here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict

from maild.config import places, schema, values

_PORTS = {"imap": (993, 143), "pop3": (995, 110), "smtp": (465, 587)}  # implicit TLS; STARTTLS or none


class _Endpoint(TypedDict):
    host: str
    port: int
    user: str
    secret: values.Secret
    tls: values.Tls
    allow_plaintext: bool
    auth: values.Pop3Auth
    ca_file: Path | None
    tls_fingerprint: str | None
    client_cert: Path | None
    client_key: Path | None


@dataclass(frozen=True, slots=True)
class _Owner:
    """The account that a section belongs to."""

    name: str
    address: str
    tokens: Path  # the directory


def config(path: Path, files: list[schema.File], environ: Mapping[str, str], notes: tuple[str, ...]) -> values.Config:
    """The whole config, of files that are known to be good; the first one is the main file."""
    main = files[0].maild or schema.MaildSection.model_validate({}, context=environ)
    hooks = files[0].hooks or schema.HooksSection()
    state_dir = main.state_dir or places.state_dir(environ)
    accounts = {
        name: _account(section, main.maildir, _Owner(name, section.address, state_dir / "tokens"))
        for file in files
        for name, section in file.accounts.items()
    }
    return values.Config(
        path=path,
        maildir=main.maildir,
        state_dir=state_dir,
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


def _account(section: schema.AccountSection, maildir: Path, owner: _Owner) -> values.Account:
    imap = _imap(section.imap, owner) if section.imap else None
    pop3 = _pop3(section.pop3, owner) if section.pop3 else None
    return values.Account(
        name=owner.name,
        address=section.address,
        maildir=section.maildir or maildir / owner.name,
        aliases=tuple(section.aliases),
        layout=section.layout,
        max_deletions=section.max_deletions,
        imap=imap,
        pop3=pop3,
        smtp=_smtp(section.smtp, owner, imap or pop3) if section.smtp else None,
    )


def _imap(section: schema.ImapSection, owner: _Owner) -> values.Imap:
    return values.Imap(
        **_endpoint("imap", section, owner, None),
        mailboxes=tuple(section.mailboxes),
        subscribed_only=section.subscribed_only,
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


def _pop3(section: schema.Pop3Section, owner: _Owner) -> values.Pop3:
    return values.Pop3(
        **_endpoint("pop3", section, owner, None),
        poll_s=section.poll,
        leave_on_server=section.leave_on_server,
        delete_with_local=section.delete_with_local,
        max_message_size_octets=section.max_message_size,
    )


def _smtp(section: schema.SmtpSection, owner: _Owner, incoming: values.Endpoint | None) -> values.Smtp:
    return values.Smtp(
        **_endpoint("smtp", section, owner, incoming),
        sent=section.sent,
        sent_mailbox=section.sent_mailbox,
        undo_s=section.undo,
    )


def _endpoint(
    protocol: str, section: schema.EndpointSection, owner: _Owner, incoming: values.Endpoint | None
) -> _Endpoint:
    """What is not said comes from the account's incoming server, else from the protocol and the address."""
    implicit, other = _PORTS[protocol]
    auth = section.auth or (incoming.auth if incoming and incoming.auth != "apop" else "auto")
    own = _secret(section, owner, auth)
    if isinstance(own, values.OAuth2) and incoming and isinstance(incoming.secret, values.OAuth2):
        own = _apart(own, incoming.secret)
    secret = own or (incoming.secret if incoming else None)
    certificate, key = section.client_cert, section.client_key
    if certificate is None and incoming and (own is None or own == values.NoSecret()):
        certificate, key = incoming.client_cert, incoming.client_key
    if secret is None:
        raise ValueError(f"a section without a secret passed the rules: {protocol} at {section.host}")
    return _Endpoint(
        host=section.host,
        port=section.port or (implicit if section.tls == "implicit" else other),
        user=section.user or (incoming.user if incoming else owner.address),
        secret=secret,
        tls=section.tls,
        allow_plaintext=section.allow_plaintext,
        auth=auth,
        ca_file=section.ca_file,
        tls_fingerprint=section.tls_fingerprint,
        client_cert=certificate,
        client_key=key,
    )


def _secret(section: schema.EndpointSection, owner: _Owner, auth: values.Pop3Auth) -> values.Secret | None:
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
        return _oauth2(section.oauth2, owner)
    if section.token_command is not None:
        return values.TokenCommand(tuple(section.token_command))
    return values.NoSecret() if auth == "external" else None


def _oauth2(section: schema.OAuth2Section, owner: _Owner) -> values.OAuth2:
    return values.OAuth2(
        provider=section.provider,
        client_id=section.client_id,
        client_secret=section.client_secret or "",
        authorization_endpoint=section.authorization_endpoint or "",
        token_endpoint=section.token_endpoint or "",
        device_authorization_endpoint=section.device_authorization_endpoint or "",
        scopes=tuple(section.scopes or ()),
        owner=owner.name,
        token_file=owner.tokens / f"{owner.name}.json" if section.tokens == "file" else None,
    )


def _apart(own: values.OAuth2, incoming: values.OAuth2) -> values.OAuth2:
    """One login serves all of an account's protocols, unless the submission server has a provider of its own."""
    if own == incoming:
        return own
    owner = f"{own.owner}/smtp"
    return replace(own, owner=owner, token_file=own.token_file and own.token_file.parent / f"{owner}.json")
