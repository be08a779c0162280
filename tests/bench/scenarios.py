"""What is timed, and what must be reached in it. Each scenario is a function from the arena to its filled `Scenario`.

The bounds are those that the project set itself; both sides are durable unless a name says otherwise.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from tests.bench import passes
from tests.bench.arena import RUN_TIMEOUT_S, Account, Arena, Contender
from tests.bench.asking import asking
from tests.bench.clients import (
    Client,
    InterImap,
    Least,
    Maild,
    Mbsync,
    OfflineImap,
    Server,
    mail_directory,
    maild_program,
)
from tests.bench.measure import RunFailed, Sample, timed
from tests.bench.outbox import outbox
from tests.bench.pop3 import pop3
from tests.bench.push import push
from tests.bench.rebuilt import rebuilt
from tests.bench.report import Row, Scenario, Target
from tests.bench.thousand import thousand
from tests.servers.proxy import DelayProxy

MAILD, MBSYNC, MBSYNC_UNSAFE = Maild(), Mbsync(), Mbsync("mbsync, FSync no", fsync=False)
LEAST, LEAST_SYNCFS = Least(), Least("least asyncio client, syncfs", syncfs=True)
FLAT_MIB = 8.0  # what counts as "no growth": less than this
SETUP_RTT_S = 0.2
STARTS = 15


def initial(arena: Arena) -> Scenario:
    """The first sync of a big mailbox on a fast line."""
    account = arena.mail(arena.sizes.mail)
    server = arena.server(account)
    scenario = Scenario("initial", f"{account.messages:,} messages into an empty Maildir, RTT 0")
    contenders = [
        *(arena.contender(client, account, server) for client in (MAILD, MBSYNC, MBSYNC_UNSAFE, LEAST, LEAST_SYNCFS)),
        arena.writing_limit("mail", account),
        arena.reading_limit(account),
    ]
    arena.contest(scenario, contenders, arena.sizes.rounds)
    unsafe = scenario.times_as_fast("mbsync, FSync no", "maild")
    least = scenario.times_as_fast("maild", "least asyncio client")
    scenario.targets = [
        Target("initial sync: mbsync's time to maild's", scenario.times_as_fast("maild", "mbsync"), 2.5, "×"),
        Target("initial sync: maild's time to that of mbsync with FSync no", unsafe, 2.2, "×", at_most=True),
        Target("initial sync: maild's speed in % of the least asyncio client's", least and 100 * least, 70, "%"),
    ]
    return scenario


def compress(arena: Arena) -> Scenario:
    """The same on a server that offers COMPRESS, each with its defaults."""
    account = arena.mail(arena.sizes.mail)
    server = arena.server(account, compress=True)
    scenario = Scenario("compress", f"{account.messages:,} messages, RTT 0, the server offers COMPRESS")
    compressed = Maild('maild, compress = "on"', compress=True)
    contenders = [arena.contender(client, account, server) for client in (MAILD, compressed, MBSYNC)]
    arena.contest(scenario, contenders, arena.sizes.few_rounds)
    ratio = scenario.times_as_fast("maild", "mbsync")
    scenario.targets = [Target("server offers COMPRESS: mbsync's time to maild's", ratio, 6, "×")]
    return scenario


def offlineimap(arena: Arena) -> Scenario:
    """A few messages only: OfflineIMAP needs some 10 ms for each."""
    account = arena.mail(arena.sizes.few)
    server = arena.server(account)
    scenario = Scenario("offlineimap", f"{account.messages:,} messages, RTT 0 (few, for its sake: see msg/s)")
    contenders = [arena.contender(client, account, server) for client in (MAILD, OfflineImap())]
    return arena.contest(scenario, contenders, arena.sizes.few_rounds)


def small(arena: Arena) -> Scenario:
    """A very big mailbox of small messages, and what it costs in memory."""
    account, base = arena.small(arena.sizes.small), arena.small(arena.sizes.small_base)
    server = arena.server(account)
    scenario = Scenario("small", f"{account.messages:,} messages of 2 KB, RTT 0")
    fewer = f"maild, {base.messages:,} messages"
    contenders = [
        *(arena.contender(client, account, server) for client in (MAILD, MBSYNC)),
        *(arena.contender(client, account, server, rounds=1) for client in (LEAST, LEAST_SYNCFS)),
        arena.contender(MAILD, base, arena.server(base), label=fewer),
    ]
    arena.contest(scenario, contenders, arena.sizes.few_rounds)
    scenario.targets = [
        Target("small messages: mbsync's time to maild's", scenario.times_as_fast("maild", "mbsync"), 3, "×"),
        Target("small messages: maild's peak memory", _peak(scenario, "maild"), 80, " MiB", at_most=True),
        _no_growth(scenario, "maild", fewer, "ten times the messages"),
    ]
    return scenario


def big(arena: Arena) -> Scenario:
    """One very big message, and what it costs in memory."""
    account, base = arena.big(arena.sizes.big_octets), arena.mail(1)
    scenario = Scenario("big", f"one message of {arena.sizes.big_octets // 1_000_000} MB, RTT 0")
    contenders = [
        arena.contender(MAILD, account, arena.server(account)),
        arena.contender(MBSYNC, account, arena.server(account)),
        arena.contender(MAILD, base, arena.server(base), label="maild, one message of 4 MB"),
    ]
    arena.contest(scenario, contenders, arena.sizes.few_rounds)
    scenario.targets = [_no_growth(scenario, "maild", "maild, one message of 4 MB", "a message fifty times as big")]
    return scenario


def distant(arena: Arena) -> Scenario:
    """The first sync over a long line."""
    account = arena.mail(arena.sizes.distant)
    scenario = Scenario("distant", f"{account.messages:,} messages into an empty Maildir, at a round-trip time")
    with ExitStack() as stack:
        contenders = []
        for rtt_ms in (20, 100):
            server = arena.distant(account, stack, rtt_ms / 1000)
            for client in (MAILD, MBSYNC, MBSYNC_UNSAFE):
                label = f"{client.name}, RTT {rtt_ms} ms"
                contenders.append(arena.contender(client, account, server, label=label))
        arena.contest(scenario, contenders, min(3, arena.sizes.rounds))
    slower = scenario.times_as_fast("mbsync, RTT 100 ms", "maild, RTT 100 ms")
    text = "initial sync at 100 ms: maild's time to mbsync's"
    scenario.targets = [Target(text, slower, 0.75, "×", at_most=True)]
    return scenario


def mailboxes(arena: Arena) -> Scenario:
    """Many mailboxes over a line of 20 ms."""
    account = arena.mailboxes(arena.sizes.mailboxes, arena.sizes.mailbox_messages)
    title = f"{arena.sizes.mailboxes} mailboxes of {arena.sizes.mailbox_messages} small messages, RTT 20 ms"
    scenario = Scenario("mailboxes", title)
    with ExitStack() as stack:
        server = arena.distant(account, stack, 0.02)
        contenders = [arena.contender(client, account, server) for client in (MAILD, MBSYNC)]
        arena.contest(scenario, contenders, arena.sizes.few_rounds)
    ratio = scenario.times_as_fast("maild", "mbsync")
    scenario.targets = [Target("many mailboxes at 20 ms: mbsync's time to maild's", ratio, 5, "×")]
    return scenario


def tls(arena: Arena) -> Scenario:
    """What encryption costs."""
    account = arena.mail(arena.sizes.mail)
    scenario = Scenario("tls", f"{account.messages:,} messages, RTT 0, with and without TLS")
    encrypted = arena.server(account, tls=True)
    contenders = [
        arena.contender(MAILD, account, encrypted, label="maild, TLS"),
        arena.contender(MBSYNC, account, encrypted, label="mbsync, TLS", rounds=1),
        arena.contender(MAILD, account, arena.server(account), label="maild, plain"),
    ]
    arena.contest(scenario, contenders, min(3, arena.sizes.rounds))
    ratio = scenario.times_as_fast("maild, plain", "maild, TLS")
    scenario.targets = [Target("TLS: maild's time to its time without", ratio, 1.3, "×", at_most=True)]
    return scenario


def unchanged(arena: Arena) -> Scenario:
    """A pass that finds nothing new, the whole process started anew."""
    one = arena.mail(arena.sizes.mail)
    many = arena.mailboxes(arena.sizes.mailboxes, arena.sizes.mailbox_messages)
    scenario = Scenario("unchanged", f"nothing new: INBOX of {one.messages:,}, or {len(many.mailboxes)} mailboxes")
    interimap = InterImap(arena.server(many))
    with ExitStack() as stack:
        contenders = []
        for account, what, rtts_ms in ((one, "INBOX", (0, 100)), (many, "mailboxes", (0, 20, 100))):
            clients = [(client, _Again(arena, client, account)) for client in (MAILD, MBSYNC, interimap)]
            for rtt_ms in rtts_ms:
                server = arena.distant(account, stack, rtt_ms / 1000) if rtt_ms else arena.server(account)
                for client, again in clients:
                    if client is MBSYNC and account is many and rtt_ms == 100:
                        continue  # more than a minute each time
                    label = f"{client.name}, {what}, RTT {rtt_ms} ms"
                    contenders.append(
                        Contender(label, again.runner(server), ours=client is MAILD, missing=client.missing())
                    )
        arena.contest(scenario, contenders, arena.sizes.rounds)
    cold = scenario.row("maild, INBOX, RTT 100 ms")
    ratio = scenario.times_as_fast("maild, mailboxes, RTT 100 ms", "interimap, mailboxes, RTT 100 ms")
    scenario.targets = [
        Target("nothing new at 100 ms, INBOX: the whole command", cold and cold.wall_s, 0.9, " s", at_most=True),
        Target("nothing new at 100 ms, many mailboxes: interimap's time to maild's", ratio, 1, "×"),
    ]
    return scenario


def changes(arena: Arena) -> Scenario:
    """What a change costs in a very big mailbox: maild's work after login beside whole runs of mbsync."""
    count = arena.sizes.small
    scenario = Scenario("changes", f"INBOX of {count:,}: a pass of maild after login, a whole run of mbsync")
    both = Mbsync(both_ways=True)
    ours, theirs = arena.own("maild", count), arena.own("mbsync", count)
    mbsync_directory = arena.directory()
    timed(both.command(arena.server(theirs), mbsync_directory), mbsync_directory, timeout_s=RUN_TIMEOUT_S)
    with ExitStack() as stack:
        for rtt_ms in (0, 100):
            found = _maild_passes(arena, ours, stack, rtt_ms)
            server = arena.distant(theirs, stack, rtt_ms / 1000) if rtt_ms else arena.server(theirs)
            sides = passes.Sides(mail_directory(mbsync_directory) / "INBOX", arena.server(theirs))
            peers = passes.mbsync_passes(both.command(server, mbsync_directory), sides)
            for one, other in zip(found, peers, strict=True):
                share = other.wall_s / one.wall_s
                scenario.notes.append(
                    f"RTT {rtt_ms} ms, {one.what}: maild {one.wall_s:.3f} s (CPU {one.cpu_s:.3f}),"
                    f" mbsync {other.wall_s:.3f} s, {share:.1f}×"
                )
                arena.log(f"changes: {scenario.notes[-1]}")
                if one.what == passes.NOTHING:
                    scenario.targets += _quiet(one, f"INBOX of {count:,}", rtt_ms)
                else:
                    text = f"{one.what} at {rtt_ms} ms: mbsync's whole run to maild's work"
                    scenario.targets.append(Target(text, share, 5, "×"))
        many = arena.mailboxes(arena.sizes.mailboxes, arena.sizes.mailbox_messages)
        (quiet,) = _maild_passes(arena, many, stack, 100, "--only", passes.NOTHING)
        scenario.targets.append(_round_trips_of(quiet, f"{len(many.mailboxes)} mailboxes", 100))
    return scenario


def _quiet(one: passes.Pass, what: str, rtt_ms: int) -> list[Target]:
    """CPU of a pass that finds nothing, and where the line has a length, its round trips."""
    found = [Target(f"nothing changed at {rtt_ms} ms, {what}: maild's CPU", one.cpu_s * 1000, 30, " ms", at_most=True)]
    return [*found, _round_trips_of(one, what, rtt_ms)] if rtt_ms else found


def _round_trips_of(one: passes.Pass, what: str, rtt_ms: int) -> Target:
    """How many times the line was gone along and back; what is left over is the work at both ends."""
    trips = math.floor(1000 * one.wall_s / rtt_ms)
    return Target(f"nothing changed, {what}: round trips after login", trips, 3, at_most=True)


def _maild_passes(arena: Arena, account: Account, stack: ExitStack, rtt_ms: int, *arguments: str) -> list[passes.Pass]:
    near = arena.server(account)
    port = arena.distant(account, stack, rtt_ms / 1000).port if rtt_ms else near.port
    command = [sys.executable, "-m", "tests.bench.passes", "--port", str(port), "--near", str(near.port)]
    where = ["--user", account.user, "--password", near.password, "--directory", str(arena.directory())]
    said = subprocess.run(
        [*command, *where, *arguments], capture_output=True, text=True, check=True, timeout=RUN_TIMEOUT_S
    )
    return [passes.Pass(**json.loads(line)) for line in said.stdout.splitlines()]


@dataclass(slots=True)
class _Again:
    """A client in a directory where it has already fetched everything."""

    arena: Arena
    client: Client
    account: Account
    directory: Path | None = None

    def runner(self, server: Server) -> Callable[[Path], Sample]:
        """A run that finds nothing new; the first one ever is preceded by one that fetches everything."""

        def run(_: Path) -> Sample:
            if self.directory is None:
                directory = self.arena.directory()
                near = self.client.command(self.arena.server(self.account), directory)
                for _pass in (1, 2):  # the second, because mbsync waits when a mailbox changed within this second
                    timed(near, directory, timeout_s=RUN_TIMEOUT_S)
                self.directory = directory
            return timed(self.client.command(server, self.directory), self.directory, timeout_s=RUN_TIMEOUT_S)

        return run


def setup(arena: Arena) -> Scenario:
    """Round trips from the start of the connection to the first FETCH, by the clock of the proxy.

    What is left over after whole round trips is the client's own work; the note under the table shows it.
    """
    account = arena.mail(1)
    scenario = Scenario("setup", f"one message at RTT {SETUP_RTT_S * 1000:.0f} ms: round trips before the first FETCH")
    for client in (MAILD, MBSYNC):
        row = Row(client.name, ours=client is MAILD, failure=client.missing())
        scenario.rows.append(row)
        if row.failure is None:
            trips = _round_trips(arena, client, account, scenario, row)
            if client is MAILD:
                text = "round trips before the first FETCH, TCP's handshake included"
                scenario.targets = [Target(text, trips and math.floor(trips), 5, at_most=True)]
    return scenario


def _round_trips(arena: Arena, client: Client, account: Account, scenario: Scenario, row: Row) -> float | None:
    """In units of the round-trip time; None if the client failed or never fetched."""
    directory = arena.directory()
    port = arena.server(account).port
    with DelayProxy(port, rtt_s=SETUP_RTT_S, watch=["FETCH", "BODY.PEEK["]) as proxy:
        server = Server(proxy.port, account.user, arena.plain.password)
        try:
            row.samples.append(timed(client.command(server, directory), directory, timeout_s=RUN_TIMEOUT_S))
        except RunFailed as failed:
            arena.failed(scenario, row, failed)
            return None
        stats = proxy.finish()
    seen = {text: sighting.elapsed_s / SETUP_RTT_S for text, sighting in stats.sightings.items()}
    told = ", ".join(f"{text} after {trips:.1f} round trips" for text, trips in seen.items())
    scenario.notes.append(f"{row.label}: {told or 'no FETCH'}; {stats.connections} connection(s)")
    arena.log(f"setup: {scenario.notes[-1]}")
    return seen.get("FETCH")


def start(arena: Arena) -> Scenario:
    """How long the shortest commands take, the whole process."""
    directory = arena.directory()
    config = directory / "ten.toml"
    config.touch(mode=0o600)
    config.write_text(tomli_w.dumps(_ten_accounts(directory)))
    commands = {
        "maild --version": [*maild_program(), "--version"],
        "maild check, ten accounts": [*maild_program(), "-c", str(config), "check"],
        "python, nothing": [sys.executable, "-c", "pass"],
    }
    scenario = Scenario("start", "whole processes")
    contenders = [_starting(label, command) for label, command in commands.items()]
    arena.contest(scenario, contenders, STARTS)
    values = {row.label: row.wall_s * 1000 if row.samples else None for row in scenario.rows}
    scenario.targets = [
        Target("`maild --version`", values["maild --version"], 60, " ms", at_most=True),
        Target("`maild check` of ten accounts", values["maild check, ten accounts"], 400, " ms", at_most=True),
    ]
    return scenario


def _starting(label: str, command: list[str]) -> Contender:
    return Contender(label, lambda directory: timed(command, directory, timeout_s=60), ours=label.startswith("maild"))


def _ten_accounts(directory: Path) -> dict[str, object]:
    accounts = {
        f"account{n}": {
            "address": f"me{n}@bench.example",
            "imap": {"host": f"imap{n}.bench.example", "user": f"me{n}", "password": "made up"},
        }
        for n in range(10)
    }
    settings = {"maildir": str(directory / "mail"), "state_dir": str(directory / "state")}
    return {"maild": settings, "accounts": accounts}


def _peak(scenario: Scenario, label: str) -> float | None:
    row = scenario.row(label)
    return row.rss_mib if row else None


def _no_growth(scenario: Scenario, label: str, base: str, what: str) -> Target:
    most, least = _peak(scenario, label), _peak(scenario, base)
    growth = most - least if most is not None and least is not None else None
    return Target(f"growth of maild's peak memory with {what}", growth, FLAT_MIB, " MiB", at_most=True)


def faithful(scenarios: Sequence[Scenario]) -> list[Target]:
    """Over everything that maild was to fetch in this bench; nothing where only other things were timed."""
    fetched = [row for scenario in scenarios for row in scenario.rows if row.ours and row.messages]
    if not fetched:
        return []
    share = 100 * sum(row.faithful is True for row in fetched) / len(fetched)
    return [Target("maild's Maildirs with every octet, flag and date kept and nothing added", share, 100, "%")]


SCENARIOS: dict[str, Callable[[Arena], Scenario]] = {
    function.__name__: function
    for function in (
        initial,
        compress,
        distant,
        mailboxes,
        tls,
        small,
        big,
        unchanged,
        changes,
        rebuilt,
        setup,
        start,
        asking,
        push,
        thousand,
        offlineimap,
        pop3,
        outbox,
    )
}
