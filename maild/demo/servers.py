"""The demo's servers: IMAP, POP3, and an SMTP server that delivers what it accepts into the mailboxes of the two."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate

from maild.testing.imap import ImapServer
from maild.testing.pop3 import Pop3Server
from maild.testing.samples import ADDRESS, POP3_ADDRESS, maildrop_samples, sample_store
from maild.testing.smtp import Accepted, SmtpServer
from maild.testing.store import Store


@dataclass(slots=True)
class Servers:
    """All three. `accepted_s` is when each message was taken over SMTP (perf_counter)."""

    imap: ImapServer
    pop3: Pop3Server
    smtp: SmtpServer
    accepted_s: list[float] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return self.imap.store

    @property
    def messages(self) -> int:
        """On the IMAP server, now."""
        return sum(map(len, self.store.mailboxes))

    def deliver(self, message: Accepted) -> None:
        """To each recipient, with a trace above the message as every MTA writes it (RFC 5321 §4.4)."""
        self.accepted_s.append(time.perf_counter())
        date = formatdate(time.time(), localtime=True)
        trace = f"Return-Path: <{message.sender}>\r\nReceived: from localhost by smtp.test with ESMTPA; {date}\r\n"
        raw = trace.encode() + message.octets
        for recipient in message.recipients:
            if recipient == POP3_ADDRESS:
                self.pop3.deliver(raw)
            else:
                self.store.deliver("INBOX", raw)


@asynccontextmanager
async def running_servers(password: str) -> AsyncIterator[Servers]:
    """All three on free ports of the loopback interface, one password for all."""
    imap = ImapServer(sample_store(), {ADDRESS: password})
    pop3 = Pop3Server(maildrop_samples(), {POP3_ADDRESS: password})
    smtp = SmtpServer(users={ADDRESS: password})
    servers = Servers(imap, pop3, smtp)
    smtp.deliver = servers.deliver
    async with imap, pop3, smtp:
        yield servers
