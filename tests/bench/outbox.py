"""Sending, measured: 200 queued messages of 10 KB over at most four connections, and how long `maild sendmail` takes.

    python -m tests.bench.outbox [ROUNDS]

The server runs in a process of its own and keeps what it gets in memory; every change of state on our side is durable.
Compare with nullmailer (18 messages a second at loopback), one msmtp process a message (11; 81 s at 50 ms) and Postfix
flushing its deferred queue (120 to 320 a second; 2.4 s at 50 ms, over 20 connections).
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio

from maild import log
from maild.config import load
from maild.config.senders import read_senders
from maild.engine.accept import Order, prepared
from maild.engine.submit import submit_all
from maild.local.outbox import Outbox
from maild.testing.smtp import SmtpServer
from tests.servers.proxy import DelayProxy

MESSAGES = 200
BODY = (b"x" * 70 + b"\n") * 144  # 10 KB
PASSWORD = "correct horse battery staple"
CONFIG = """\
[maild]
state_dir = "{root}/state"
maildir = "{root}/Mail"
log_level = "warning"
[accounts.work]
address = "me@example.org"
[accounts.work.smtp]
host = "127.0.0.1"
port = {port}
tls = "none"
user = "me"
password = "{password}"
"""


async def serve() -> None:
    """The server's process: prints its port, and at the end how many different messages it got."""
    async with SmtpServer(users={"me": PASSWORD}) as server:
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print(len({message.recipients for message in server.journal}), flush=True)


@contextmanager
def server() -> Iterator[int]:
    """A server's port; afterwards it must have got every message."""
    command = [sys.executable, "-m", "tests.bench.outbox", "serve"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield int(process.stdout.readline())
    said, _ = process.communicate()
    if int(said) != MESSAGES:
        raise SystemExit(f"the server got {said.strip()} different messages of {MESSAGES}")


def config_in(root: Path, port: int) -> Path:
    path = root / "maild.toml"
    path.write_text(CONFIG.format(root=root, port=port, password=PASSWORD))
    path.chmod(0o600)
    return path


def drain(rtt_s: float) -> float:
    """Seconds from the first connection until everything is sent, copied to Sent and forgotten."""
    with ExitStack() as running:
        directory = running.enter_context(tempfile.TemporaryDirectory())
        port = running.enter_context(server())
        if rtt_s:
            port = running.enter_context(DelayProxy(port, rtt_s=rtt_s)).port
        path = config_in(Path(directory), port)
        config, senders = load(path), read_senders(path)
        outbox = Outbox(config.state_dir)
        for number in range(MESSAGES):
            order = Order(recipients=(f"r{number}@x.example",))
            outbox.accept(*prepared(b"Subject: %d\n\n" % number + BODY, order, senders, time.time()))
        started = time.perf_counter()
        results = anyio.run(submit_all, config, outbox)
        took_s = time.perf_counter() - started
        if not results["work"].is_well or outbox.contents().items:
            raise SystemExit(f"not everything was sent: {results}")
    return took_s


def sendmail_ms(times: int) -> float:
    """Median wall time of one `maild sendmail`, in milliseconds."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "MAILD_CONFIG": str(config_in(Path(directory), 25))}
        took: list[float] = []
        for _ in range(times):
            started = time.perf_counter()
            command = [sys.executable, "-m", "maild", "sendmail", "-t"]
            subprocess.run(command, input=b"To: a@x.example\n\n" + BODY, env=environment, check=True)
            took.append(time.perf_counter() - started)
    return statistics.median(took) * 1000


def main() -> None:
    """Measure and print."""
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
        return
    log.configure("error")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for rtt_s in (0.0, 0.05):
        took = statistics.median(drain(rtt_s) for _ in range(rounds))
        rate = MESSAGES / took
        print(f"{MESSAGES} messages, round trip {rtt_s * 1000:.0f} ms: {took:.2f} s, {rate:.0f} a second")
    print(f"maild sendmail: {sendmail_ms(10 * rounds):.0f} ms")


if __name__ == "__main__":
    main()
