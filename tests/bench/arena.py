"""Where contenders meet: the servers with their accounts, a fresh directory for each run, and the rounds."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench import corpus
from tests.bench.clients import Client, Server, limit_command, mail_directory
from tests.bench.corpus import Message
from tests.bench.measure import RunFailed, Sample, timed
from tests.bench.report import Row, Scenario
from tests.bench.verify import Facts, Verdict, verify
from tests.servers import append
from tests.servers.dovecot import Dovecot
from tests.servers.proxy import DelayProxy

RUN_TIMEOUT_S = 900.0
ROOMY_OCTETS = 25 << 30  # with less room, each scenario's Maildirs go before the next begins


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    mail: int
    distant: int
    few: int
    small: int
    small_base: int
    big_octets: int
    mailboxes: int
    mailbox_messages: int
    outbox: int
    rounds: int
    few_rounds: int
    deliveries: int = 60
    storm: int = 500
    crowd: int = 1_000
    settle_s: float = 75.0  # maild gives memory back a minute after it was busy


FULL = Sizes(10_000, 2_000, 300, 100_000, 10_000, 200_000_000, 200, 50, 200, rounds=5, few_rounds=2)
QUICK = Sizes(
    *(500, 200, 50, 2_000, 500, 20_000_000, 10, 10, 20),
    rounds=1,
    few_rounds=1,
    deliveries=4,
    storm=30,
    crowd=10,
    settle_s=1.0,
)


@dataclass(frozen=True, slots=True)
class Account:
    """A user on the servers, and what its Maildir must hold."""

    user: str
    mailboxes: Mapping[str, Facts]

    @property
    def messages(self) -> int:
        """In all mailboxes."""
        return sum(map(len, self.mailboxes.values()))


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of a scenario's table: how a round of it runs, and what its Maildir is compared with."""

    label: str
    run: Callable[[Path], Sample]
    account: Account | None = None
    ours: bool = False
    missing: str | None = None
    rounds: int | None = None


@dataclass(slots=True)
class Arena:
    """The servers and the directories of one bench. A context manager; afterwards nothing is left of it.

    Mail is filled in when an account is first asked for and stays for the whole bench: every contender only reads.
    The servers keep it as mdbox, few large files, so that their files do not disturb the file system that is timed.
    """

    sizes: Sizes
    parent: Path
    log: Callable[[str], None]
    work: Path = field(init=False)
    plain: Dovecot = field(init=False)
    _compressing: Dovecot | None = None
    _pop3: Dovecot | None = None
    _accounts: dict[str, Account] = field(default_factory=dict)
    _failures: set[str] = field(default_factory=set)
    _leaving: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Arena:
        with ExitStack() as stack:
            self.work = Path(tempfile.mkdtemp(prefix="maild-bench-", dir=self.parent))
            stack.callback(shutil.rmtree, self.work)
            self.work.chmod(0o711)  # getmail6 delivers as another user than root
            self.plain = stack.enter_context(Dovecot(mail_format="mdbox"))
            self._leaving = stack.pop_all()
        # ext4 makes a file more slowly where many were deleted lately. Directories below one marked +T are spread over
        # the whole disk by the hash of their name, so that no run takes the place of one that was removed.
        spread = subprocess.run(["chattr", "+T", str(self.work)], capture_output=True, check=False)
        if spread.returncode != 0:
            self.log("this file system has no `chattr +T`: runs may disturb each other more")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.log("removing the Maildirs")
        self._leaving.close()

    def directory(self) -> Path:
        """A new empty directory for one run."""
        path = self.work / uuid.uuid4().hex[:12]
        path.mkdir(mode=0o711)
        return path

    def tidy(self) -> None:
        """Make room, if there is little, at a moment when nothing is timed."""
        if shutil.disk_usage(self.work).free < ROOMY_OCTETS:
            for path in self.work.iterdir():
                shutil.rmtree(path)

    def server(self, account: Account, *, compress: bool = False, tls: bool = False) -> Server:
        """How to reach the account."""
        dovecot = self._compressing_server() if compress else self.plain
        port = dovecot.imaps_port if tls else dovecot.imap_port
        server = Server(port, account.user, dovecot.password)
        # mbsync 1.4.4 finds no address in a certificate, only names.
        return replace(server, host="localhost", ca_file=dovecot.ca_file) if tls else server

    def distant(self, account: Account, stack: ExitStack, rtt_s: float) -> Server:
        """How to reach it from far away; the proxy lives as long as the stack."""
        proxy = stack.enter_context(DelayProxy(self.plain.imap_port, rtt_s=rtt_s))
        return replace(self.server(account), port=proxy.port)

    def maildrop_port(self) -> int:
        """Where every account is a POP3 maildrop, which nobody changes: no flags are set there."""
        if self._pop3 is None:
            settings = "protocol pop3 {\n  pop3_no_flag_updates = yes\n}"
            dovecot = Dovecot(mail_format="mdbox", pop3=True, mail_root=self.plain.mail_root, settings=settings)
            self._pop3 = self._leaving.enter_context(dovecot)
        return self._pop3.pop3_port

    def _compressing_server(self) -> Dovecot:
        if self._compressing is None:
            dovecot = Dovecot(mail_format="mdbox", compress=True, mail_root=self.plain.mail_root)
            self._compressing = self._leaving.enter_context(dovecot)
        return self._compressing

    def mail(self, count: int) -> Account:
        """An account with that many of `mail` in INBOX."""
        return self._filled(f"mail{count}", {"INBOX": corpus.mail(count)})

    def small(self, count: int) -> Account:
        """An account with that many of `small` in INBOX."""
        return self._filled(f"small{count}", {"INBOX": corpus.small(count)})

    def own(self, name: str, count: int) -> Account:
        """The same for one contender alone, which changes it."""
        return self._filled(f"{name}{count}", {"INBOX": corpus.small(count)})

    def big(self, octets: int) -> Account:
        """An account with one message of that size."""
        return self._filled(f"big{octets}", {"INBOX": corpus.big(octets)})

    def mailboxes(self, mailboxes: int, each: int) -> Account:
        """An account with many mailboxes of small messages, in two levels."""
        messages = corpus.small(mailboxes * each)
        return self._filled(
            f"boxes{mailboxes}x{each}",
            {f"Lists/list-{n:03}": _some(messages, each) for n in range(1, mailboxes)}
            | {"INBOX": _some(messages, each)},
        )

    def _filled(self, user: str, mailboxes: Mapping[str, Iterator[Message]]) -> Account:
        if user not in self._accounts:
            self.log(f"filling account {user}")
            facts: dict[str, Facts] = {mailbox: {} for mailbox in mailboxes}

            def noted(mailbox: str, messages: Iterable[Message]) -> Iterator[append.Message]:
                for message in messages:
                    facts[mailbox][message.number] = message.fact()
                    yield message.imported()

            self.plain.import_mailboxes(user, {mailbox: noted(mailbox, some) for mailbox, some in mailboxes.items()})
            self._accounts[user] = Account(user, facts)
            # Once through everything, so that the first contender does not find a colder server than the others.
            for mailbox in mailboxes:
                self.plain.doveadm("fetch", "-u", user, "size.virtual date.received", "mailbox", mailbox, "all")
        return self._accounts[user]

    def contender(
        self, client: Client, account: Account, server: Server, *, label: str | None = None, rounds: int | None = None
    ) -> Contender:
        """A client that fetches the account once, into nothing."""

        def run(directory: Path) -> Sample:
            return timed(client.command(server, directory), directory, timeout_s=RUN_TIMEOUT_S)

        label = label or client.name
        return Contender(label, run, account, client.name == "maild", client.missing(), rounds)

    def reading_limit(self, account: Account) -> Contender:
        """The raw FETCH of everything, discarded: what the server and the kernel allow."""
        command = limit_command("read", self.server(account))
        return Contender("raw: FETCH, thrown away", lambda directory: _self_timed(command, directory))

    def retrieving_limit(self, server: Server) -> Contender:
        """The same of a POP3 maildrop: RETR of everything, discarded."""
        command = limit_command("retrieve", server)
        return Contender("raw: RETR, thrown away", lambda directory: _self_timed(command, directory))

    def writing_limit(self, corpus_name: str, account: Account) -> Contender:
        """The same files from memory, as durably: what the disk and the kernel allow."""
        arguments = ["--corpus", corpus_name, "--count", str(account.messages)]
        server = self.server(account)

        def run(directory: Path) -> Sample:
            command = [*limit_command("write", server), *arguments, "--directory", str(mail_directory(directory))]
            return _self_timed(command, directory)

        return Contender("raw: the files, durable", run, account)

    def contest(self, scenario: Scenario, contenders: Iterable[Contender], rounds: int) -> Scenario:
        """Let the contenders take turns, so often; what fails once does not run again. Fills the scenario's rows."""
        pairs = [(contender, _row(contender)) for contender in contenders]
        scenario.rows += [row for _, row in pairs]
        for turn in range(rounds):
            for contender, row in pairs:
                if row.failure is None and turn < (contender.rounds or rounds):
                    self._run(scenario, contender, row, f"{turn + 1}/{rounds}")
            self.tidy()
        return scenario

    def failed(self, scenario: Scenario, row: Row, failure: RunFailed) -> None:
        """Note it, and tell it in full the first time that it happens."""
        row.failure = str(failure)
        known = row.failure in self._failures
        self._failures.add(row.failure)
        self.log(f"{scenario.name}: {row.label} FAILED: {'as above' if known else row.failure}")

    def _run(self, scenario: Scenario, contender: Contender, row: Row, turn: str) -> None:
        directory = self.directory()
        try:
            sample = contender.run(directory)
        except RunFailed as failed:
            self.failed(scenario, row, failed)
            return
        row.samples.append(sample)
        if contender.account is not None:
            _judge(row, verify(mail_directory(directory), contender.account.mailboxes))
        kept = f", bytes kept: {row.kept}" if row.kept else ""
        self.log(f"{scenario.name} {turn}: {row.label}: {sample.wall_s:.3f} s{kept}")


def _row(contender: Contender) -> Row:
    messages = contender.account.messages if contender.account else 0
    return Row(contender.label, messages, failure=contender.missing, ours=contender.ours)


def _judge(row: Row, verdict: Verdict) -> None:
    """The worst round counts."""
    if row.faithful is not False:
        row.kept, row.faithful = verdict.text(), verdict.faithful


def _some(messages: Iterator[Message], count: int) -> Iterator[Message]:
    """The next few, taken when they are asked for."""
    for _ in range(count):
        yield next(messages)


def _self_timed(command: list[str], directory: Path) -> Sample:
    """A limit times its own core, without the start of Python and its preparations."""
    sample = timed(command, directory, timeout_s=RUN_TIMEOUT_S)
    return replace(sample, wall_s=json.loads((directory / "stdout").read_text())["wall_s"])
