"""The state is lost, and everything is on both sides: maild finds the pairs again. Beside it a first pull of the same.

What of the messages' octets crosses the wire meanwhile is counted in one more run, through a proxy that keeps all
that the server says: whole messages, and everything, facts included.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.bench.arena import RUN_TIMEOUT_S, Account, Arena, Contender
from tests.bench.clients import Maild, Server, mail_directory
from tests.bench.measure import Sample, timed
from tests.bench.report import Scenario, Target
from tests.servers.proxy import FaultProxy

FIRST, AGAIN = "maild, first pull", "maild, state lost"
_BODY = re.compile(rb"BODY\[\] \{(\d+)\}")


def rebuilt(arena: Arena) -> Scenario:
    """A very big mailbox of small messages, which is the worst: facts weigh most beside them."""
    account = arena.small(arena.sizes.small)
    server = arena.server(account)
    scenario = Scenario("rebuilt", f"INBOX of {account.messages:,} on both sides, the state lost, RTT 0")
    lost = _Lost(arena, account)
    contenders = [
        arena.contender(Maild(), account, server, label=FIRST),
        Contender(AGAIN, lambda _: lost.run(server), ours=True),
    ]
    arena.contest(scenario, contenders, arena.sizes.few_rounds + 1)
    kept = sum(path.stat().st_size for path in lost.files())
    bodies, everything = lost.octets(server)
    scenario.notes.append(
        f"bodies {kept / 1e6:.1f} MB; crossed the wire: bodies {bodies / 1e6:.2f} MB, all {everything / 1e6:.1f} MB"
    )
    share = scenario.times_as_fast(FIRST, AGAIN)
    scenario.targets = [
        Target("state lost: share of the body octets that crosses the wire", 100 * bodies / kept, 2, "%", at_most=True),
        Target("state lost: maild's time to that of a first pull", share, 0.25, "×", at_most=True),
    ]
    return scenario


class _Lost:
    """A directory where everything is, whose state is lost before each run."""

    def __init__(self, arena: Arena, account: Account) -> None:
        self._arena, self._account = arena, account
        self._directory: Path | None = None

    def run(self, server: Server) -> Sample:
        directory = self._filled()
        shutil.rmtree(directory / "state")
        return timed(Maild().command(server, directory), directory, timeout_s=RUN_TIMEOUT_S)

    def octets(self, server: Server) -> tuple[int, int]:
        """Of one more run: those of whole messages that the server sent, and all that it sent."""
        with FaultProxy(server.port, record=True) as proxy:
            self.run(Server(proxy.port, server.user, server.password))
            said = proxy.recorded("client")
        return sum(int(literal[1]) for literal in _BODY.finditer(said)), len(said)

    def files(self) -> list[Path]:
        inbox = mail_directory(self._filled()) / "INBOX"
        return [path for subdir in ("cur", "new") for path in (inbox / subdir).iterdir()]

    def _filled(self) -> Path:
        """Gone after `Arena.tidy`: then it is filled anew."""
        if self._directory is None or not self._directory.exists():
            self._directory = self._arena.directory()
            command = Maild().command(self._arena.server(self._account), self._directory)
            timed(command, self._directory, timeout_s=RUN_TIMEOUT_S)
        return self._directory
