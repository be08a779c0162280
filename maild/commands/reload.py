"""`maild reload`: the daemon reads its config again.

Exit status 0 done, 69 when no daemon runs, 78 when the config has errors; then the one in use stays.
"""

from __future__ import annotations

import argparse
import sys

from maild.commands import printable
from maild.config.outline import read_outline
from maild.control import NoDaemon, Refused, ask

OK, NO_DAEMON = 0, 69
_LONGEST_S = 60.0


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError."""
    outline = read_outline(args.config, may_be_empty=True)
    try:
        answer = ask(outline.state_dir, {"ask": "reload"}, _LONGEST_S)
    except NoDaemon as exc:
        print(printable(f"maild: {exc}"), file=sys.stderr)
        return NO_DAEMON
    except Refused as exc:
        for line in str(exc).splitlines():
            print(printable(line), file=sys.stderr)
        return exc.status
    gone = answer.get("gone", [])
    started = [name for name in answer["changed"] if name not in gone]
    told = [("started anew", started), ("stopped", gone)]
    print(printable("; ".join(f"{what}: {', '.join(names)}" for what, names in told if names)) or "nothing changed")
    return OK
