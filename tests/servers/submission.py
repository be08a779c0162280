"""Submission servers for tests: maild's own in a thread, and a Dovecot that passes on to it what it takes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maild.testing.smtp import SmtpServer
from tests.servers.dovecot import Dovecot, DovecotMissing, find_dovecot, free_ports

START_TIMEOUT_S = 10.0


@contextmanager
def serving(server: SmtpServer) -> Iterator[SmtpServer]:
    """The server in a thread of its own, for clients that bring their own event loop or process."""
    started, stopping = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with server:
            started.set()
            await stopping.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        if not started.wait(START_TIMEOUT_S):
            raise TimeoutError("the submission server did not start")
        yield server
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(START_TIMEOUT_S)
        loop.close()


def until_taken(server: SmtpServer, count: int, within_s: float) -> bool:
    """Wait until the server that is `serving` has accepted so many messages; whether it has."""
    deadline = time.monotonic() + within_s
    while len(server.journal) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(server.journal) >= count


class DovecotSubmission:
    """Dovecot's submission service, in front of `relay`. A context manager, like `Dovecot`. Raises DovecotMissing."""

    def __init__(self, relay: SmtpServer) -> None:
        libexec = Path("/usr/lib/dovecot/submission")
        find_dovecot()
        if not libexec.exists():
            raise DovecotMissing("this Dovecot has no submission: apt-get install dovecot-submissiond")
        self.submission_port, self.submissions_port = free_ports(2)
        self.dovecot = Dovecot(
            settings=f"""\
protocols = imap submission
hostname = localhost
submission_relay_host = {relay.host}
submission_relay_port = {relay.port}
submission_max_mail_size = 1 M
service submission-login {{
  inet_listener submission {{
    port = {self.submission_port}
  }}
  inet_listener submissions {{
    port = {self.submissions_port}
    ssl = yes
  }}
}}
"""
        )

    def __enter__(self) -> DovecotSubmission:
        self.dovecot.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.dovecot.close()
