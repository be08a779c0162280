"""`maild sync` where a daemon runs, nothing changed: the whole command beside a whole run of mbsync."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from tests.bench.arena import RUN_TIMEOUT_S, Account, Arena, Contender
from tests.bench.clients import Mbsync
from tests.bench.daemon import Daemon
from tests.bench.measure import Sample, timed
from tests.bench.report import Scenario, Target

PUSHED_S = 600.0
ROUNDS = 7
TIMES_AS_FAST = 3.0  # in a very big mailbox
NOT_SLOWER = 1.0


def asking(arena: Arena) -> Scenario:
    """A sync that finds nothing, in a big mailbox and in a very big one."""
    few, many = arena.small(arena.sizes.small_base), arena.small(arena.sizes.small)
    title = f"`maild sync` through a daemon, nothing new: INBOX of {few.messages:,} and of {many.messages:,}"
    scenario = Scenario("asking", title)
    with ExitStack() as stack:
        contenders = [made for account in (few, many) for made in _pair(arena, stack, account)]
        arena.contest(scenario, contenders, min(ROUNDS, 2 + arena.sizes.rounds))
    for account, bound in ((few, NOT_SLOWER), (many, TIMES_AS_FAST)):
        times = scenario.times_as_fast(_label("maild", account), _label("mbsync", account))
        text = f"`maild sync` through a daemon, {account.messages:,} messages: mbsync's time to maild's"
        scenario.targets.append(Target(text, times, bound, "×"))
    return scenario


def _label(client: str, account: Account) -> str:
    return f"{client}, {account.messages:,} messages"


def _pair(arena: Arena, stack: ExitStack, account: Account) -> list[Contender]:
    """A daemon that is up to date, and mbsync in a Maildir where it has fetched everything."""
    server = arena.server(account)
    imap = {"host": server.host, "port": server.port, "user": server.user, "password": server.password, "tls": "none"}
    daemon = Daemon(arena.directory(), {"bench": {"address": "me@bench.example", "imap": imap}})
    stack.enter_context(daemon)
    daemon.until_pushed(PUSHED_S)
    arena.log(f"asking: a daemon has {account.messages:,} messages")
    mbsync, directory = Mbsync(), arena.directory()
    if mbsync.missing() is None:  # the first run fetches everything, the second waits for a second to pass
        for quick in (Mbsync(fsync=False), mbsync):
            timed(quick.command(server, directory), directory, timeout_s=RUN_TIMEOUT_S)
    command = mbsync.command(server, directory)

    def ask(place: Path) -> Sample:
        return timed([*daemon.command, "sync", "--json"], place, timeout_s=RUN_TIMEOUT_S)

    def run(place: Path) -> Sample:
        return timed(command, place, timeout_s=RUN_TIMEOUT_S)

    return [
        Contender(_label("maild", account), ask, ours=True),
        Contender(_label("mbsync", account), run, missing=mbsync.missing()),
    ]
