"""Push, measured: from the server's notice of a delivery to the file in the Maildir, and from a reader's flag to there.

Every contender has an account of its own and stays up for the whole scenario; they take turns, a delivery each. A
delivery is over when its file is there, and the next one follows at a random instant. What the server itself takes to
tell anybody (Dovecot: half a second) is what a bare IDLE connection hears, and is not counted. Dovecot counts that half
second for each connection from the first change that this one saw: two of the same account are told at once only of
what comes when nothing has changed for as long, so an account's turn comes no sooner.
"""

from __future__ import annotations

import imaplib
import itertools
import random
import select
import smtplib
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench import corpus
from tests.bench.arena import Arena
from tests.bench.clients import Client, Mbsync, Server, mail_directory
from tests.bench.daemon import Daemon
from tests.bench.measure import RunFailed, Sample
from tests.bench.report import Row, Scenario, Target
from tests.bench.witness import Sightings, Witness, idling
from tests.servers.dovecot import Dovecot
from tests.servers.proxy import DelayProxy

FAR_RTT_S = 0.1
LATE_S = 20.0
PUSHED_S = 60.0
MEDIAN_MS, MOST_MS, FAR_MS, FLAG_MS = 15.0, 30.0, 250.0, 150.0
SETTLED_S = (0.05, 0.4)  # between a file and the next delivery, to whichever account
NOTICE_S = 0.7  # an account's own last change has been told to all by then
STORM_S = (0.0, 0.03)  # between deliveries of which many fall into one notice
LOOK_S = 0.001


@dataclass(slots=True)
class Lane:
    """A contender with its account: what was delivered to it, and what was seen of that."""

    row: Row
    near: Server
    sightings: Sightings
    mailbox: Path
    numbers: list[int] = field(default_factory=list)
    quiet_from_s: float = 0.0

    def above_notice_s(self) -> list[float]:
        """For each delivery that was timed, how long after the server's notice its file was there."""
        found = []
        for n, number in enumerate(self.numbers, 1):
            told_s, seen_s = self.sightings.told_s.get(n), self.sightings.seen_s.get(number)
            if told_s is not None and seen_s is not None:
                found.append(max(0.0, seen_s - told_s))
        return found

    def missing(self) -> int:
        """How many deliveries are not in the Maildir, or are there more than once."""
        return sum(len(self.sightings.files.get(number, {})) != 1 for number in self.numbers)


def push(arena: Arena) -> Scenario:
    """New mail here, and flags there, as soon as they are made."""
    count, storm = arena.sizes.deliveries, arena.sizes.storm
    title = f"{count} deliveries: seconds from the server's notice to the file, beside an IDLE watcher that runs mbsync"
    scenario = Scenario("push", title)
    with ExitStack() as stack:
        server = stack.enter_context(Dovecot(lmtp=True))
        witness = stack.enter_context(Witness())
        lanes: dict[str, Lane] = {}
        for rtt_s in (0.0, FAR_RTT_S):
            for what in ("maild, NOTIFY", "maild, IDLE", "IDLE and mbsync"):
                label = f"{what}, RTT {rtt_s * 1000:.0f} ms"
                row = Row(label, ours=what.startswith("maild"))
                scenario.rows.append(row)
                try:
                    lanes[label] = _lane(arena, server, witness, stack, row, rtt_s)
                except RunFailed as failed:
                    arena.failed(scenario, row, failed)
        mta = Mta(server, witness)
        for rtt, turns in ((f"RTT {FAR_RTT_S * 1000:.0f} ms", count // 2), ("RTT 0 ms", count)):
            some = [lane for label, lane in lanes.items() if label.endswith(rtt)]
            for _ in range(turns):
                for lane in some:
                    mta.deliver(lane)
            arena.log(f"push: {rtt}: {turns} deliveries each")
        for lane in lanes.values():
            lane.row.samples = [Sample(latency_s, 0.0, 0.0) for latency_s in lane.above_notice_s()]
            lane.row.messages = 0
        ours = [lane for lane in lanes.values() if lane.row.ours]
        flags_ms = [1000 * took_s for lane in ours[:2] for took_s in flag_times_s(lane, count // 2)]
        near = [lane for label, lane in lanes.items() if lane.row.ours and label.endswith("RTT 0 ms")]
        for lane in near:
            mta.storm(lane, storm)
        lost = sum(lane.missing() for lane in ours)
        delivered = sum(len(lane.numbers) for lane in ours)
    _judge(scenario, flags_ms, lost, delivered)
    return scenario


def _judge(scenario: Scenario, flags_ms: list[float], lost: int, delivered: int) -> None:
    for row in scenario.rows:
        found = [1000 * sample.wall_s for sample in row.samples]
        middle, most = (statistics.median(found), _p95(found)) if found else (None, None)
        if found:
            scenario.notes.append(f"{row.label}: median {middle:.1f} ms, 95 % within {most:.1f} ms")
        if not row.ours:
            continue
        if row.label.endswith("RTT 0 ms"):
            scenario.targets += [
                Target(f"{row.label}: median above the server's notice", middle, MEDIAN_MS, " ms", at_most=True),
                Target(f"{row.label}: 95 % above the server's notice", most, MOST_MS, " ms", at_most=True),
            ]
        else:
            text = f"{row.label}: 95 % above the server's notice"
            scenario.targets.append(Target(text, most, FAR_MS, " ms", at_most=True))
    flag_ms = statistics.median(flags_ms) if flags_ms else None
    scenario.targets += [
        Target(f"lost or doubled of {delivered:,} deliveries", float(lost), 0, at_most=True),
        Target("a reader's flag, until the server has it: median", flag_ms, FLAG_MS, " ms", at_most=True),
    ]
    if flags_ms:
        scenario.notes.append(f"flag to the server: median {flag_ms:.0f} ms, 95 % within {_p95(flags_ms):.0f} ms")


def _p95(values: list[float]) -> float:
    return sorted(values)[max(0, -(-len(values) * 95 // 100) - 1)]


# -- contenders


def _lane(arena: Arena, server: Dovecot, witness: Witness, stack: ExitStack, row: Row, rtt_s: float) -> Lane:
    return made_lane(server, witness, stack, row, rtt_s, arena.directory(), arena.sizes.few)


def made_lane(
    server: Dovecot, witness: Witness, stack: ExitStack, row: Row, rtt_s: float, directory: Path, messages: int
) -> Lane:
    """A contender that has fetched so many messages and waits for more. Raises RunFailed."""
    user = "".join(c if c.isalnum() else "-" for c in row.label.lower())
    server.import_messages(user, "INBOX", (message.imported() for message in corpus.small(messages)))
    near = Server(server.imap_port, user, server.password)
    port = stack.enter_context(DelayProxy(near.port, rtt_s=rtt_s)).port if rtt_s else near.port
    far = replace(near, port=port)
    if row.ours:
        method = "notify" if "NOTIFY" in row.label else "idle"
        mailbox = _start_maild(stack, far, directory, method)
    else:
        mailbox = _start_watcher(stack, far, directory)
    return Lane(row, near, witness.account(near, mailbox), mailbox)


def _start_maild(stack: ExitStack, server: Server, directory: Path, method: str) -> Path:
    imap = {"host": server.host, "port": server.port, "user": server.user, "password": server.password, "tls": "none"}
    daemon = Daemon(directory, {"bench": {"address": "me@bench.example", "imap": {**imap, "push": method}}})
    stack.enter_context(daemon)
    daemon.until(lambda found: found["bench"]["push"] == method and found["bench"]["state"] == "idle", PUSHED_S)
    return daemon.maildir("bench") / "INBOX"


def _start_watcher(stack: ExitStack, server: Server, directory: Path) -> Path:
    client: Client = Mbsync()
    if (missing := client.missing()) is not None:
        raise RunFailed(missing)
    command = client.command(server, directory)
    _run(command)
    stack.enter_context(_watching(server, command))
    return mail_directory(directory) / "INBOX"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunFailed(f"mbsync failed:\n{done.stderr[-1000:]}")


@contextmanager
def _watching(server: Server, command: list[str]) -> Iterator[None]:
    """What goimapnotify does, without its delay: run mbsync whenever an IDLE connection hears of something."""
    connection, _ = idling(server)
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.is_set():
            if not select.select([connection], [], [], 0.2)[0]:
                continue
            with suppress(OSError):
                if b"EXISTS" in connection.recv(65_536):
                    subprocess.run(command, capture_output=True, check=False)

    thread = threading.Thread(target=watch, name="watcher", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        connection.close()


# -- deliveries, and flags


class Mta:
    """Delivers over LMTP, a connection for all."""

    def __init__(self, server: Dovecot, witness: Witness) -> None:
        self._server = server
        self._witness = witness
        self._numbers = itertools.count(10_000_000)
        self._dice = random.Random(4)  # the same instants in every run

    def deliver(self, lane: Lane) -> None:
        """One message; returns when its file is there, or it is late, and a moment later."""
        time.sleep(max(0.0, lane.quiet_from_s - time.monotonic()))
        number = self._send(lane, 1)[0]
        self._witness.wait(lambda: number in lane.sightings.seen_s, LATE_S)
        lane.quiet_from_s = time.monotonic() + NOTICE_S
        time.sleep(self._dice.uniform(*SETTLED_S))

    def storm(self, lane: Lane, count: int) -> None:
        """Many at random instants, also while the client is busy with those before; returns when all are there."""
        numbers = self._send(lane, count, STORM_S)
        self._witness.wait(lambda: lane.sightings.seen_s.keys() >= set(numbers), LATE_S)

    def _send(self, lane: Lane, count: int, pause_s: tuple[float, float] = (0.0, 0.0)) -> list[int]:
        numbers = []
        with smtplib.LMTP(self._server.host, self._server.lmtp_port) as lmtp:
            for _ in range(count):
                numbers.append(next(self._numbers))
                lane.numbers.append(numbers[-1])
                lmtp.sendmail("bench@bench.example", [lane.near.user], _message(numbers[-1]))
                time.sleep(self._dice.uniform(*pause_s))
        return numbers


def _message(number: int) -> bytes:
    head = f"Message-ID: <{number}@push.bench.example>\r\nFrom: bench@bench.example\r\nSubject: {number}\r\n\r\n"
    return head.encode() + b"Hello.\r\n" * 300


def flag_times_s(lane: Lane, count: int) -> list[float]:
    """How long until the server knows of each flag that a reader sets; those that are late count as `LATE_S`."""
    session = imaplib.IMAP4(lane.near.host, lane.near.port)
    session.login(lane.near.user, lane.near.password)
    session.select("INBOX", readonly=True)
    found = []
    for number in lane.numbers[:count]:
        path = next(iter(lane.sightings.files.get(number, {}).values()), None)
        if path is None or not path.exists():
            continue
        session.untagged_responses.clear()
        (lane.mailbox / "cur").mkdir(exist_ok=True)
        began = time.perf_counter()
        path.rename(lane.mailbox / "cur" / f"{path.name.partition(':')[0]}:2,F")
        while time.perf_counter() - began < LATE_S:
            session.noop()
            if any(b"Flagged" in line for line in session.untagged_responses.pop("FETCH", [])):
                break
            time.sleep(LOOK_S)
        found.append(time.perf_counter() - began)
        time.sleep(0.3)  # a reader's next move; else two of them are one burst
    session.logout()
    return found
