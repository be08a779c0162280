"""Other machines: protocol adapters behind the ports of `maild.core.ports`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maild.config import Account
from maild.core.errors import ConfigError
from maild.core.ports import Remote

if TYPE_CHECKING:
    from maild.remote.auth import Credentials
    from maild.remote.pop3.remote import Pop3Remote


def open_remote(account: Account) -> Remote:
    """The account's mailboxes on the other machine; connects when first asked for something."""
    match account:
        case Account(imap=imap) if imap is not None:
            from maild.remote.imap.remote import ImapRemote

            return ImapRemote(imap, account.name)
        case _:
            raise ConfigError([f'account "{account.name}" has no mailboxes on a server that this version can read'])


def open_maildrop(account: Account, credentials: Credentials | None = None) -> Pop3Remote:
    """The account's maildrop on its POP3 server; connects when it is opened. `credentials`: the caller's own."""
    if account.pop3 is None:
        raise ConfigError([f'account "{account.name}" has no pop3 section'])
    from maild.remote.pop3.remote import Pop3Remote

    return Pop3Remote(account.pop3, account.name, credentials)
