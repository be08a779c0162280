"""POP3: whole maildrops fetched by maild and its peers, and what a poll that finds nothing new costs.

Over POP3 neither flags nor dates travel, so only octets are compared. Every client leaves the mail on the server.
mpop fsyncs each message, as do getmail6 and procmail, to which fetchmail hands what it fetches.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import tomli_w

from tests.bench.arena import RUN_TIMEOUT_S, Account, Arena, Contender
from tests.bench.clients import Client, Server, first_line, mail_directory, maild_program, private_file
from tests.bench.measure import RunFailed, timed
from tests.bench.report import Row, Scenario, Target
from tests.servers.proxy import DelayProxy

RTT_S = 0.02
TCP_ROUND_TRIPS = 1


@dataclass(frozen=True, slots=True)
class MaildPop3:
    """maild as it is, with its defaults."""

    name: str = "maild"

    def missing(self) -> str | None:
        """It is this repository."""
        return None

    def version(self) -> str:
        """As `maild --version` says."""
        return first_line(*maild_program(), "--version")

    def command(self, server: Server, directory: Path) -> list[str]:
        """`maild -c CONFIG sync`."""
        pop3 = {"host": server.host, "port": server.port, "user": server.user, "password": server.password}
        account = {"address": "me@bench.example", "maildir": str(mail_directory(directory))}
        config = {
            "maild": {"state_dir": str(directory / "state"), "log_level": "warning"},
            "accounts": {"bench": {**account, "pop3": {**pop3, "tls": "none", "max_message_size": "1G"}}},
        }
        return [*maild_program(), "-c", private_file(directory / "maild.toml", tomli_w.dumps(config)), "sync"]


@dataclass(frozen=True, slots=True)
class Mpop:
    """mpop, which asks for many messages at a time where the server offers PIPELINING."""

    name: str = "mpop"

    def missing(self) -> str | None:
        """Debian has it."""
        return None if shutil.which("mpop") else "no mpop: apt-get install mpop"

    def version(self) -> str:
        """As `mpop --version` says."""
        return first_line("mpop", "--version")

    def command(self, server: Server, directory: Path) -> list[str]:
        """`mpop -C CONFIG -q bench`."""
        text = f"""\
account bench
host {server.host}
port {server.port}
user {server.user}
password "{server.password}"
auth user
tls off
keep on
received_header off
uidls_file {directory}/uidls
delivery maildir {_made_inbox(directory)}
"""
        return ["mpop", "-C", private_file(directory / "mpoprc", text), "-q", "bench"]


@dataclass(frozen=True, slots=True)
class Getmail:
    """getmail6, without the header lines that it can be told to leave out."""

    name: str = "getmail6"

    def missing(self) -> str | None:
        """Debian has it."""
        return None if shutil.which("getmail") else "no getmail: apt-get install getmail6"

    def version(self) -> str:
        """As `getmail --version` says."""
        return first_line("getmail", "--version")

    def command(self, server: Server, directory: Path) -> list[str]:
        """`getmail --getmaildir DIR --rcfile CONFIG`. It delivers no mail as root, but as whom it is told to."""
        inbox = _made_inbox(directory)
        deliverer = ""
        if os.geteuid() == 0:
            deliverer = "user = nobody"
            for path in (inbox, *inbox.iterdir()):
                shutil.chown(path, "nobody")
        text = f"""\
[retriever]
type = SimplePOP3Retriever
server = {server.host}
port = {server.port}
username = {server.user}
password = {server.password}
[destination]
type = Maildir
path = {inbox}/
{deliverer}
[options]
read_all = false
delete = false
delivered_to = false
received = false
verbose = 0
"""
        return ["getmail", "--getmaildir", str(directory), "--rcfile", private_file(directory / "getmailrc", text)]


@dataclass(frozen=True, slots=True)
class Fetchmail:
    """fetchmail, which hands each message to procmail."""

    name: str = "fetchmail + procmail"

    def missing(self) -> str | None:
        """Debian has both."""
        absent = [program for program in ("fetchmail", "procmail") if not shutil.which(program)]
        return f"no {' and no '.join(absent)}: apt-get install {' '.join(absent)}" if absent else None

    def version(self) -> str:
        """As `fetchmail --version` says."""
        return first_line("fetchmail", "--version")

    def command(self, server: Server, directory: Path) -> list[str]:
        """`fetchmail -f CONFIG`."""
        rules = private_file(directory / "procmailrc", f"MAILDIR={directory}\nDEFAULT={_made_inbox(directory)}/\n")
        text = f"""\
set idfile "{directory}/fetchids"
set pidfile "{directory}/fetchmail.pid"
set invisible
poll {server.host} service {server.port} protocol pop3 uidl no dns
  user "{server.user}" password "{server.password}" keep sslproto ""
  mda "procmail -m {rules}"
"""
        return ["fetchmail", "--silent", "--nosyslog", "-f", private_file(directory / "fetchmailrc", text)]


MAILD, MPOP = MaildPop3(), Mpop()
SLOW: tuple[Client, ...] = (Getmail(), Fetchmail())


def _made_inbox(directory: Path) -> Path:
    inbox = mail_directory(directory) / "INBOX"
    for subdir in ("cur", "new", "tmp"):
        (inbox / subdir).mkdir(parents=True, exist_ok=True)
    return inbox


def pop3(arena: Arena) -> Scenario:
    """First fetches at both distances, and a poll that finds nothing new."""
    many, some = _bare(arena.mail(arena.sizes.mail)), _bare(arena.mail(arena.sizes.distant))
    title = f"POP3: {many.messages:,} messages at RTT 0, {some.messages:,} at RTT {RTT_S * 1000:.0f} ms"
    scenario = Scenario("pop3", title)
    near = _server(arena, many)
    fast: list[Client] = [MAILD, MPOP]
    with ExitStack() as stack:
        proxy = stack.enter_context(DelayProxy(near.port, rtt_s=RTT_S))
        far = replace(_server(arena, some), port=proxy.port)
        rounds = arena.sizes.rounds
        limits = [arena.writing_limit("mail", arena.mail(arena.sizes.mail)), arena.retrieving_limit(near)]
        arena.contest(scenario, [*(arena.contender(client, many, near) for client in fast), *limits], rounds)
        arena.contest(scenario, _distant(arena, fast, some, far), rounds)
        arena.contest(scenario, _distant(arena, SLOW, some, far), 1)
    trips = _round_trips(arena, scenario, many, near)
    ours = f"maild{_far_label()}"
    scenario.targets = [
        Target("POP3 at RTT 0: mpop's time to maild's", scenario.times_as_fast("maild", "mpop"), 2, "×"),
        Target("POP3 at 20 ms: mpop's time to maild's", scenario.times_as_fast(ours, f"mpop{_far_label()}"), 2, "×"),
        *_slow_targets(scenario, ours),
        Target("POP3: maild's peak memory", _peak(scenario, "maild"), 60, " MiB", at_most=True),
        Target("POP3: round trips of a poll with nothing new, TCP's included", trips, 6, at_most=True),
    ]
    return scenario


def _slow_targets(scenario: Scenario, ours: str) -> list[Target]:
    """Of those that could be measured: some releases of getmail6 stop for minutes waiting for a child of theirs."""
    found = {client.name: scenario.times_as_fast(ours, f"{client.name}{_far_label()}") for client in SLOW}
    text = "POP3 at 20 ms: {}'s time to maild's"
    return [Target(text.format(name), times, 30, "×") for name, times in found.items() if times is not None]


def _bare(account: Account) -> Account:
    """The account as POP3 shows it: messages have no flags, and no dates."""
    facts = {n: replace(fact, letters="", mtime=None) for n, fact in account.mailboxes["INBOX"].items()}
    return Account(account.user, {"INBOX": facts})


def _server(arena: Arena, account: Account) -> Server:
    return replace(arena.server(account), port=arena.maildrop_port())


def _far_label() -> str:
    return f", RTT {RTT_S * 1000:.0f} ms"


def _distant(arena: Arena, clients: Iterable[Client], account: Account, server: Server) -> list[Contender]:
    return [arena.contender(client, account, server, label=f"{client.name}{_far_label()}") for client in clients]


def _peak(scenario: Scenario, label: str) -> float | None:
    row = scenario.row(label)
    return row.rss_mib if row else None


def _round_trips(arena: Arena, scenario: Scenario, account: Account, server: Server) -> float | None:
    """Of each client's second run, as the proxy counts how often the client spoke in answer to the server."""
    found: dict[str, int] = {}
    for client in (MAILD, MPOP):
        row = Row(f"{client.name}, nothing new{_far_label()}", ours=client is MAILD, failure=client.missing())
        scenario.rows.append(row)
        if row.failure is not None:
            continue
        directory = arena.directory()
        try:
            timed(client.command(server, directory), directory, timeout_s=RUN_TIMEOUT_S)
            with DelayProxy(server.port, rtt_s=RTT_S) as proxy:
                again = client.command(replace(server, port=proxy.port), directory)
                row.samples.append(timed(again, directory, timeout_s=RUN_TIMEOUT_S))
                found[client.name] = proxy.finish().turns_to_server + TCP_ROUND_TRIPS
        except RunFailed as failed:
            arena.failed(scenario, row, failed)
    told = ", ".join(f"{name} {trips}" for name, trips in found.items())
    scenario.notes.append(f"round trips of a poll of {account.messages:,} with nothing new, TCP's included: {told}")
    arena.log(f"pop3: {scenario.notes[-1]}")
    return found.get(MAILD.name)
