"""Sending, beside nullmailer, msmtp and Postfix: a queue of messages of 10 KB, on a fast line and over a long one.

maild is durable at each change of state, over at most four connections; Postfix sends over twenty; nullmailer and msmtp
send one message after another. The server keeps what it gets in memory. All log in but Postfix. Daemons are timed from
the word to send until their queue is empty: Postfix, nullmailer, and maild without the start of Python.

Postfix and nullmailer run from a private configuration, as root. Debian does not install both at a time:
`apt-get download nullmailer`, `dpkg -x nullmailer*.deb DIR`, copy sbin/nullmailer-* and lib/nullmailer to /usr, make
/etc/nullmailer and /var/spool/nullmailer.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import tomli_w

from maild import log
from maild.config import load
from maild.config.senders import read_senders
from maild.engine.accept import Order, prepared
from maild.engine.limits import settle_in
from maild.engine.submit import submit_all
from maild.local.outbox import Outbox
from maild.testing.smtp import SmtpServer
from tests.bench.arena import Arena, Contender
from tests.bench.clients import maild_program, private_file
from tests.bench.measure import RunFailed, Sample, timed
from tests.bench.report import Scenario, Target
from tests.servers.postfix import Postfix, find_postfix
from tests.servers.proxy import DelayProxy

BODY = (b"x" * 70 + b"\n") * 144  # 10 KB
USER, PASSWORD = "me", "correct-horse-battery-staple"
RTT_S = 0.05
AT_ONCE = 50
STARTS = 15
TIMEOUT_S = 300.0
NULLMAILER = ("/etc/nullmailer", "/var/spool/nullmailer")
QUEUE_TIMEOUT_S = 60.0

Prepare = Callable[[Path, int, int, ExitStack], list[str]]  # directory, port, messages → the command to be timed


def outbox(arena: Arena) -> Scenario:
    """A queue that is sent, and how long whoever sends has to wait."""
    count = arena.sizes.outbox
    scenario = Scenario("outbox", f"{count} queued messages of 10 KB; then accepting one, and {AT_ONCE} at once")
    peers: tuple[tuple[str, Prepare, str | None, bool], ...] = (
        ("maild", _maild_drain, None, True),
        ("maild outbox flush", _maild, None, True),
        ("Postfix", _postfix, find_postfix(), False),
        ("nullmailer", _nullmailer, _no_nullmailer(), True),
        ("msmtp", _msmtp, None if shutil.which("msmtp") else "no msmtp: apt-get install msmtp", True),
    )
    for rtt_s, suffix in ((0.0, ""), (RTT_S, f", RTT {RTT_S * 1000:.0f} ms")):
        contenders = [
            Contender(
                name + suffix,
                _sending(prepare, count, rtt_s, logs_in=logs_in),
                ours=name.startswith("maild"),
                missing=missing,
                rounds=1 if rtt_s and name in ("msmtp", "nullmailer") else None,
            )
            for name, prepare, missing, logs_in in peers
        ]
        arena.contest(scenario, contenders, arena.sizes.rounds)
    for row in scenario.rows:
        row.messages = count
        row.kept, row.faithful = ("all", True) if row.samples else (None, None)  # or the run would have failed
    accepting = [
        Contender("maild sendmail", _accept_one, ours=True),
        Contender(f"maild sendmail, {AT_ONCE} at once", _accept_many, ours=True, rounds=arena.sizes.few_rounds),
    ]
    arena.contest(scenario, accepting, STARTS if arena.sizes.rounds > 1 else 1)
    distant, one = scenario.row(f"maild, RTT {RTT_S * 1000:.0f} ms"), scenario.row("maild sendmail")
    scenario.targets = [
        Target("outbox: nullmailer's time to maild's", scenario.times_as_fast("maild", "nullmailer"), 10, "×"),
        Target("outbox: msmtp's time to maild's", scenario.times_as_fast("maild", "msmtp"), 10, "×"),
        Target("outbox: Postfix's time to maild's", scenario.times_as_fast("maild", "Postfix"), 1, "×"),
        Target("outbox at 50 ms: maild's time", distant and distant.wall_s, 6, " s", at_most=True),
        Target("maild sendmail: its time", one and 1000 * one.wall_s, 120, " ms", at_most=True),
    ]
    return scenario


def _sending(prepare: Prepare, count: int, rtt_s: float, *, logs_in: bool) -> Callable[[Path], Sample]:
    def run(directory: Path) -> Sample:
        with ExitStack() as stack:
            port = stack.enter_context(_server(count, logs_in=logs_in))
            if rtt_s:
                port = stack.enter_context(DelayProxy(port, rtt_s=rtt_s)).port
            sample = timed(prepare(directory, port, count, stack), directory, timeout_s=TIMEOUT_S)
        if prepare is not _maild_drain:
            return sample
        return replace(sample, wall_s=json.loads((directory / "stdout").read_text())["wall_s"])

    return run


@contextmanager
def _server(count: int, *, logs_in: bool) -> Iterator[int]:
    """A server's port; when nothing went wrong it must have got each message once. Raises RunFailed."""
    command = [sys.executable, "-m", "tests.bench.outbox", "serve", "users" if logs_in else "everybody"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise RunFailed("the server has no output")
        yield int(process.stdout.readline())
    except BaseException:
        process.kill()
        process.wait()
        raise
    got = [int(word) for word in process.communicate()[0].split()]
    if got != [count, count]:
        raise RunFailed(f"the server got {got[0]} messages, {got[1]} different ones, of {count}")


async def serve(*, has_users: bool) -> None:
    """The server's process: prints its port, and at the end how many messages it got, and how many different ones."""
    async with SmtpServer(users={USER: PASSWORD} if has_users else None) as server:
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print(len(server.journal), len({message.recipients for message in server.journal}), flush=True)


def _raw(number: int) -> bytes:
    head = f"From: me@bench.example\nTo: r{number}@x.example\nSubject: {number}\n"
    return f"{head}Message-ID: <{number}@bench.example>\nDate: Tue, 24 Nov 2026 10:00:00 +0100\n\n".encode() + BODY


# -- who is timed


def _config(directory: Path, port: int) -> Path:
    smtp = {"host": "127.0.0.1", "port": port, "tls": "none", "user": USER, "password": PASSWORD}
    config = {
        "maild": {"state_dir": str(directory / "state"), "maildir": str(directory / "mail"), "log_level": "warning"},
        "accounts": {"bench": {"address": "me@bench.example", "smtp": smtp}},
    }
    return Path(private_file(directory / "maild.toml", tomli_w.dumps(config)))


def _maild(directory: Path, port: int, count: int, _: ExitStack) -> list[str]:
    """`maild outbox flush`, with the copies in the Sent mailbox."""
    path = _config(directory, port)
    senders, place = read_senders(path), Outbox(directory / "state")
    for number in range(count):
        place.accept(*prepared(_raw(number), Order(take_from_head=True), senders, time.time()))
    return [*maild_program(), "-c", str(path), "outbox", "flush"]


def _maild_drain(directory: Path, port: int, count: int, stack: ExitStack) -> list[str]:
    """What a daemon does when it is woken: it tells itself how long that took."""
    *_, path, _, _ = _maild(directory, port, count, stack)
    return [sys.executable, "-m", "tests.bench.outbox", "drain", path]


def drain(path: Path) -> None:
    """The process of that, set up as a daemon is: prints its wall time as JSON."""
    settle_in()
    log.configure("error")
    config = load(path)
    started = time.perf_counter()
    results = anyio.run(submit_all, config, Outbox(config.state_dir))
    took_s = time.perf_counter() - started
    if not all(drained.is_well for drained in results.values()):
        raise SystemExit(f"not everything was sent: {results}")
    print(json.dumps({"wall_s": took_s}))


def _msmtp(directory: Path, port: int, count: int, _: ExitStack) -> list[str]:
    """One process a message, as whoever has no queue calls it."""
    text = f"""\
account default
host 127.0.0.1
port {port}
from me@bench.example
auth plain
user {USER}
password {PASSWORD}
tls off
"""
    config = private_file(directory / "msmtprc", text)
    (directory / "queue").mkdir()
    for number in range(count):
        (directory / "queue" / f"{number:04}").write_bytes(_raw(number))
    send = f"for m in queue/*; do msmtp -C {shlex.quote(config)} -t < $m || exit 1; done"
    return ["sh", "-c", send]


def _no_nullmailer() -> str | None:
    has_program = shutil.which("nullmailer-send", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None
    if not has_program or not all(Path(place).is_dir() for place in NULLMAILER):
        return "no nullmailer: see the top of tests/bench/outbox.py"
    return None if os.geteuid() == 0 else "nullmailer needs root for a private configuration"


def _nullmailer(directory: Path, port: int, count: int, _: ExitStack) -> list[str]:
    """Its places are compiled in: it sees private directories there."""
    config, spool = directory / "etc", directory / "spool"
    for path in (config, spool, spool / "queue", spool / "tmp", spool / "failed"):
        path.mkdir()
    os.mkfifo(spool / "trigger")
    (config / "me").write_text("bench.example\n")
    (config / "remotes").write_text(f"127.0.0.1 smtp --port={port} --user={USER} --pass={PASSWORD}\n")
    for number in range(count):
        envelope = f"me@bench.example\nr{number}@x.example\n\n".encode()
        (spool / "queue" / f"{int(time.time())}.{number}").write_bytes(envelope + _raw(number))
    pairs = zip((config, spool), NULLMAILER, strict=True)
    mounts = [f"mount --bind {shlex.quote(str(mine))} {place}" for mine, place in pairs]
    send = 'nullmailer-send & p=$!; while [ -n "$(ls queue)" ]; do sleep 0.02; done; kill $p'
    script = " && ".join([*mounts, f"cd {NULLMAILER[1]}", f"{{ {send}; }}"])
    return ["unshare", "--mount", "sh", "-c", script]


def _postfix(_: Path, port: int, count: int, stack: ExitStack) -> list[str]:
    """Flushing its deferred queue."""
    postfix = stack.enter_context(Postfix(port, settings={"defer_transports": "smtp"}))
    for number in range(count):
        words = ("-C", str(postfix.config), "-i", "-f", "me@bench.example", f"r{number}@x.example")
        postfix.run("/usr/sbin/sendmail", *words, stdin=_raw(number))
    deadline = time.monotonic() + QUEUE_TIMEOUT_S
    while postfix.waiting("deferred") < count:
        if time.monotonic() > deadline:
            raise RunFailed(f"Postfix did not queue the messages:\n{postfix.log()[-1000:]}")
        time.sleep(0.05)
    postfix.set("defer_transports", "")
    queues = " ".join(shlex.quote(str(postfix.queue / name)) for name in ("deferred", "incoming", "active"))
    flush = f"/usr/sbin/postqueue -c {shlex.quote(str(postfix.config))} -f"
    return ["sh", "-c", f'{flush}; while [ -n "$(find {queues} -type f -print -quit)" ]; do sleep 0.02; done']


# -- accepting


def _accept_one(directory: Path) -> Sample:
    return _accepted(directory, 1, "exec {} < message")


def _accept_many(directory: Path) -> Sample:
    return _accepted(directory, AT_ONCE, f"for n in $(seq {AT_ONCE}); do {{}} < message & done; wait")


def _accepted(directory: Path, count: int, script: str) -> Sample:
    config = _config(directory, 25)
    (directory / "message").write_bytes(_raw(1))
    program = shlex.join([*maild_program(), "-c", str(config), "sendmail", "-t"])
    sample = timed(["sh", "-c", script.format(program)], directory, timeout_s=TIMEOUT_S)
    accepted = len(Outbox(directory / "state").contents().items)
    if accepted != count:
        raise RunFailed(f"{accepted} messages of {count} were accepted")
    return sample


if __name__ == "__main__":
    if sys.argv[1] == "drain":
        drain(Path(sys.argv[2]))
    else:
        asyncio.run(serve(has_users=sys.argv[2] == "users"))
