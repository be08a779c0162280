"""An account that sends: its outbox, a server that does as it is told, and a clock that a test turns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maild.config import Account, Password, Smtp
from maild.config.senders import Sender, Senders
from maild.core.outgoing import Item
from maild.engine.accept import Order, prepared
from maild.engine.submit import Drained, Submitter
from maild.local.outbox import Outbox
from maild.remote.smtp import Timeouts
from maild.testing.smtp import SmtpServer

USER = "user"
PASSWORD = "correct horse battery staple"
NOW = 1_800_000_000
SHORT = Timeouts(connect_s=5, command_s=0.3, data_s=0.3, block_s=0.3, final_s=0.3, goodbye_s=0.1)
LONG = Timeouts(connect_s=5, command_s=5, data_s=5, block_s=5, final_s=5, goodbye_s=0.1)
A, B, C = "a@x.example", "b@x.example", "c@x.example"


@dataclass
class World:
    """An account with its outbox, a server, and a clock that a test turns."""

    server: SmtpServer
    root: Path
    now_s: float = NOW
    timeouts: Timeouts = LONG

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.root / "state")

    def account(self, **changes: Any) -> Account:
        values: dict[str, Any] = {"user": USER, "secret": Password(PASSWORD), "tls": "none", "sent": "copy"}
        smtp = Smtp(host=self.server.host, port=self.server.port, **(values | changes))
        return Account(name="work", address="me@example.org", maildir=self.root / "Mail" / "work", smtp=smtp)

    def submitter(self, account: Account | None = None, **options: Any) -> Submitter:
        values: dict[str, Any] = {"clock": lambda: self.now_s, "timeouts": self.timeouts}
        return Submitter(account or self.account(), self.outbox, self.root / "state", **(values | options))

    def accept(self, *recipients: str, subject: str = "hello", at_s: int | None = None) -> Item:
        senders = Senders(self.root / "state", (Sender("work", ("me@example.org",), 0),), None)
        raw = f"Subject: {subject}\n\nthere\n".encode()
        item, text = prepared(raw, Order(recipients=recipients or (A,), send_s=at_s), senders, self.now_s)
        return self.outbox.accept(item, text)

    async def drain(self, account: Account | None = None, *, everything: bool = False, **options: Any) -> Drained:
        with self.outbox.draining():
            return await self.submitter(account, **options).drain(everything=everything)

    def item(self) -> Item:
        (only,) = self.outbox.contents().items
        return only

    def mailbox(self, name: str) -> list[bytes]:
        root = self.root / "Mail" / "work" / name
        return [path.read_bytes() for subdir in ("cur", "new") for path in sorted((root / subdir).glob("*"))]


def states(item: Item) -> list[str]:
    return [recipient.state for recipient in item.recipients]
