"""Other machines: protocol adapters behind the ports of `maild.core.ports`."""

from __future__ import annotations

from maild.config import Account
from maild.core.errors import ConfigError
from maild.core.ports import Remote


def open_remote(account: Account) -> Remote:
    """The account's mailboxes on the other machine; connects when first asked for something."""
    match account:
        case Account(imap=imap) if imap is not None:
            from maild.remote.imap.remote import ImapRemote

            return ImapRemote(imap, account.name)
        case _:
            raise ConfigError([f'account "{account.name}" has no mailboxes on a server that this version can read'])
