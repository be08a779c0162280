"""The bench as a command: `python -m tests.bench.run [--quick] [--scenario NAME …] [--json FILE] [--work DIR]`.

Exit status: 0 when every target was reached, 1 when one was not or maild failed, 2 when it could not run at all. With
`--quick`, which takes a minute and is too small to judge, only failures count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.arena import FULL, QUICK, Arena
from tests.bench.clients import Client, Maild, Mbsync, OfflineImap
from tests.bench.pop3 import Fetchmail, Getmail, Mpop
from tests.bench.report import Scenario, as_json, as_text, target_as_json
from tests.bench.scenarios import SCENARIOS, faithful
from tests.servers.dovecot import DovecotMissing

WORK = Path("/var/tmp")  # noqa: S108 -- on a disk, where /tmp may be memory; what goes there has a random name
RULE = "-" * 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen scenarios, print tables and targets, write JSON."""
    arguments = _arguments(argv)
    machine = _machine(arguments.work)
    print("\n".join(f"{what}: {value}" for what, value in machine.items()))
    if machine["file system"] in ("tmpfs", "ramfs"):
        print("Nothing is durable in memory and fsync costs nothing there: choose another place with --work.")
    began = time.monotonic()

    def log(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    sizes = QUICK if arguments.quick else FULL
    scenarios = []
    try:
        with Arena(sizes, arguments.work, log) as arena:
            for name in arguments.scenario or SCENARIOS:
                log(f"--- {name} (load {os.getloadavg()[0]:.1f})")
                scenarios.append(SCENARIOS[name](arena))
    except DovecotMissing as missing:
        print(f"The bench needs a server: {missing}", file=sys.stderr)
        return 2
    return _report(scenarios, machine, arguments)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench.run", description="maild beside its peers, on this machine.")
    parser.add_argument("--quick", action="store_true", help="a minute, small numbers: does everything work?")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: bench-results/<time>.json")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="where Maildirs are made (%(default)s)")
    return parser.parse_args(argv)


def _machine(work: Path) -> dict[str, str]:
    """What the figures depend on."""
    stat = subprocess.run(["stat", "-f", "-c", "%T", str(work)], capture_output=True, text=True, check=True)
    clients: list[Client] = [Maild(), Mbsync(), OfflineImap(), Mpop(), Getmail(), Fetchmail()]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}",
        "file system": stat.stdout.strip(),
        **{client.name: client.missing() or client.version() for client in clients},
    }


def _report(scenarios: list[Scenario], machine: dict[str, str], arguments: argparse.Namespace) -> int:
    targets = [target for scenario in scenarios for target in scenario.targets]
    targets += faithful(scenarios)
    failures = [f"{s.name}: {row.label}: {row.failure_line()}" for s in scenarios for row in s.rows if row.failure]
    print(RULE, *(f"{as_text(scenario)}\n" for scenario in scenarios), RULE, sep="\n")
    print(
        "`time`: how many times as long as maild's line above. Medians; CPU is user and system of the client alone.\n"
    )
    print("\n".join(target.line(judged=not arguments.quick) for target in targets))
    if failures:
        print("\nFailed or not measured:", *failures, sep="\n")
    result: dict[str, Any] = {
        "machine": machine,
        "quick": arguments.quick,
        "scenarios": [as_json(scenario) for scenario in scenarios],
        "targets": [target_as_json(target) for target in targets],
    }
    path = arguments.json or Path("bench-results") / f"{machine['time'].replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {path}")
    ours_failed = any(row.ours and row.failure for scenario in scenarios for row in scenario.rows)
    unfaithful = any(row.ours and row.faithful is False for scenario in scenarios for row in scenario.rows)
    missed = not arguments.quick and not all(target.reached for target in targets)
    return 1 if ours_failed or unfaithful or missed else 0


if __name__ == "__main__":
    sys.exit(main())
