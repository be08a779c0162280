"""The POP3 server: `Pop3Server` over a list of messages, with `ALL` capabilities or `BARE`.

In reading order: `server` (connections and the life of a command), `session` (what each command does).
"""

from maild.testing.pop3.server import Pop3Server
from maild.testing.pop3.session import ALL, BARE, Message

__all__ = ["ALL", "BARE", "Message", "Pop3Server"]
