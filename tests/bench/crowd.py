"""A server for many accounts, in a process of its own: maild's own in-memory IMAP server over TLS.

Dovecot would need a process for each connection, some thousands of them; what is measured is the client. Every user has
the same mail. The process takes orders from its standard input, a line each, and answers each with a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from maild.testing.imap.server import ImapServer
from maild.testing.store import Store
from tests.bench.measure import ROOT
from tests.servers.certificates import Authority, Certificate

PASSWORD = "correct horse battery staple"
MESSAGES = 20
BACKLOG_S = 60.0


def user(number: int) -> str:
    """The name of an account of the crowd."""
    return f"user{number:05}"


@dataclass(slots=True)
class Crowd:
    """The server, as the bench has it. A context manager."""

    accounts: int
    directory: Path
    port: int = 0
    ca_file: Path = field(init=False)
    _process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Self:
        authority = Authority(self.directory)
        self.ca_file, good = authority.ca_file, authority.good()
        certificate = ["--chain", str(good.chain_file), "--key", str(good.key_file)]
        command = [sys.executable, "-m", "tests.bench.crowd", "--accounts", str(self.accounts), *certificate]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.port = self._order("up")["port"]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()

    def restart(self) -> None:
        """Every connection is lost, and at once there is a server again."""
        self._order("down")
        self._order("up")

    def accepted_s(self) -> list[float]:
        """When each connection since the last `up` was accepted, by time.monotonic."""
        found: list[float] = self._order("accepted")["accepted_s"]
        return found

    def deliver(self) -> None:
        """One more message for everybody."""
        self._order("deliver")

    def _order(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


async def _serve(accounts: int, certificate: Certificate) -> None:
    """Carry out orders until they end."""
    store = Store()
    inbox = store.mailbox("INBOX")
    for number in range(MESSAGES):
        store.deliver("INBOX", _message(number))
    users = {user(number): PASSWORD for number in range(accounts)}
    server = ImapServer(store, users, ssl_context=certificate.server_context())
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while order := (await orders.readline()).decode().strip():
        answer: dict[str, Any] = {}
        match order:
            case "up":
                server.accepted_s.clear()
                await server.start(port=server.port)
                answer["port"] = server.port
            case "down":
                await server.aclose()
                server.connections.clear()
            case "accepted":
                answer["accepted_s"] = server.accepted_s
            case "deliver":
                store.deliver("INBOX", _message(len(inbox)))
        print(json.dumps(answer), flush=True)
    await server.aclose()


def _message(number: int) -> bytes:
    return b"Message-ID: <%d@crowd.example>\r\nSubject: %d\r\n\r\n%b" % (number, number, b"Hello.\r\n" * 200)


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(prog="tests.bench.crowd", description=__doc__)
    parser.add_argument("--accounts", type=int, required=True)
    parser.add_argument("--chain", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.accounts, Certificate(arguments.chain, arguments.key)))


if __name__ == "__main__":
    main()
