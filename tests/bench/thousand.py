"""A thousand accounts in one daemon, over TLS: how soon it is there, what it costs while nothing happens, how it comes
back when the server was away, and how quickly it is asked.

Memory is what the daemon has more than one with a single account. It is looked at when the first passes are over and
what they needed was given back, CPU over a while in which nothing happens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench.arena import Arena, Contender
from tests.bench.crowd import PASSWORD, Crowd, user
from tests.bench.daemon import Daemon
from tests.bench.measure import Sample, timed
from tests.bench.report import Scenario, Target

PUSHED_S = 300.0  # the first time, and after a restart of the server
ALONE_S = 5.0
LOOK_S = 1.0
POLL_S = 900.0  # maild's default for its safety pass
ASKED = 5  # times
READY_S, EACH_KIB, CPU_PERCENT, MOST_CONNECTS, STATUS_MS = 2.0, 130.0, 0.5, 50.0, 300.0


def thousand(arena: Arena) -> Scenario:
    """As many accounts as the sizes say."""
    count = arena.sizes.crowd
    scenario = Scenario("thousand", f"{count:,} accounts over TLS in one daemon, {user(0)} alone for comparison")
    with ExitStack() as stack:
        crowd = stack.enter_context(Crowd(count, arena.directory()))
        with Daemon(arena.directory(), _accounts(crowd, 1)) as one:
            one.until_pushed(PUSHED_S)
            time.sleep(min(ALONE_S, arena.sizes.settle_s))
            alone_kib = one.memory_kib()
        daemon = stack.enter_context(Daemon(arena.directory(), _accounts(crowd, count)))
        first_s = daemon.until_pushed(PUSHED_S, every_s=LOOK_S)
        arena.log(f"thousand: ready after {daemon.ready_s:.2f} s, pushed after {first_s:.0f} s")
        first_connects = most_in_a_second(crowd.accepted_s())
        time.sleep(arena.sizes.settle_s)
        all_kib = daemon.memory_kib()
        cpu_percent = _cpu_percent(daemon, arena.sizes.settle_s)
        scenario.targets += _memory(scenario, count, alone_kib, all_kib)
        arena.contest(scenario, [_asking("daemon", daemon)], ASKED)
        pass_s = _pass_cpu_s(daemon, arena.directory()) / count
        share = 100 * pass_s * count / POLL_S
        told = (
            f"a pass that finds nothing: {1000 * pass_s:.1f} ms of CPU; of all, every 15 min: {share:.2f} % of a core"
        )
        scenario.notes.append(told)
        crowd.restart()
        again_s = _pushed_again(daemon)
        again_connects = most_in_a_second(crowd.accepted_s())
        arena.log(f"thousand: pushed again after {again_s:.0f} s")
    arena.contest(scenario, [_asking("no daemon", daemon)], ASKED)
    scenario.notes.append(f"all have push {first_s:.0f} s after the start, {again_s:.0f} s after the server's restart")
    asked = [(row.label, 1000 * row.wall_s if row.samples else None) for row in scenario.rows]
    scenario.targets += [
        Target("until READY=1", daemon.ready_s, READY_S, " s", at_most=True),
        Target("CPU while nothing happens, of a core", cpu_percent, CPU_PERCENT, " %", at_most=True),
        Target("pushed again after a restart of the server", again_s, PUSHED_S, " s", at_most=True),
        Target("connections in any second, first", first_connects, MOST_CONNECTS, at_most=True),
        Target("connections in any second, after the restart", again_connects, MOST_CONNECTS, at_most=True),
        *(Target(f"`{label}`", asked_ms, STATUS_MS, " ms", at_most=True) for label, asked_ms in asked),
    ]
    return scenario


def _accounts(crowd: Crowd, count: int) -> Mapping[str, Mapping[str, Any]]:
    server = {"host": "localhost", "port": crowd.port, "tls": "implicit", "ca_file": str(crowd.ca_file)}
    return {
        f"account{n:05}": {
            "address": f"{user(n)}@bench.example",
            "imap": {**server, "user": user(n), "password": PASSWORD},
        }
        for n in range(count)
    }


def _memory(
    scenario: Scenario, count: int, alone_kib: tuple[float, float], all_kib: tuple[float, float]
) -> list[Target]:
    targets = []
    for what, alone, together in zip(("RSS", "PSS"), alone_kib, all_kib, strict=True):
        scenario.notes.append(f"{what}: {together / 1024:.1f} MiB, {alone / 1024:.1f} MiB with a single account")
        text, each = f"memory for each account above the first ({what})", (together - alone) / (count - 1)
        targets.append(Target(text, each, EACH_KIB, " KiB", at_most=True))
    return targets


def _cpu_percent(daemon: Daemon, for_s: float) -> float:
    before_s, began = daemon.cpu_s(), time.perf_counter()
    time.sleep(for_s)
    return 100 * (daemon.cpu_s() - before_s) / (time.perf_counter() - began)


def _pass_cpu_s(daemon: Daemon, directory: Path) -> float:
    """What the daemon needs for a pass over all accounts: the safety pass, which is no part of the idle time above."""
    before_s = daemon.cpu_s()
    timed([*daemon.command, "sync", "--json"], directory, timeout_s=PUSHED_S)
    return daemon.cpu_s() - before_s


def _pushed_again(daemon: Daemon) -> float:
    """From the moment at which the first account has noticed that the server went away."""
    began = time.perf_counter()
    daemon.until(lambda found: any(account["push"] is None for account in found.values()), PUSHED_S)
    daemon.until_pushed(PUSHED_S, every_s=LOOK_S)
    return time.perf_counter() - began


def most_in_a_second(at_s: list[float]) -> float:
    """The most of these instants that lie within one second, wherever it begins."""
    ordered = sorted(at_s)
    most, first = 0, 0
    for n, end_s in enumerate(ordered):
        while ordered[first] <= end_s - 1:
            first += 1
        most = max(most, n - first + 1)
    return float(most)


def _asking(what: str, daemon: Daemon) -> Contender:
    def run(directory: Path) -> Sample:
        return timed([*daemon.command, "status", "--json"], directory, timeout_s=60)

    return Contender(f"maild status --json, {what}", run, ours=True)
