"""The IMAP server: `ImapServer` over a `Store`, with `ALL` extensions or `BARE`.

In reading order: `server` (connections and the life of a command), `commands` (the table), then the commands by subject
in `access`, `mailboxes`, `opening`, `messages`, `delivery` and `notify`; below them `session` (what a client was told),
`fetch` and `search` (compiled requests) and `syntax` (the grammar).
"""

from maild.testing.imap.server import Connection, ImapServer
from maild.testing.imap.session import ALL, BARE

__all__ = ["ALL", "BARE", "Connection", "ImapServer"]
