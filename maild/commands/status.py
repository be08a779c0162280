"""`maild status`: what every account, mailbox and the outbox is doing, for a person or as JSON.

Asks the daemon where there is one. Works without, from stored state, and beside a running `maild sync`; it never waits
for one. Exit status 0 whatever there is to tell, 64 for wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from maild.commands import no_such_account, printable
from maild.config.outline import Outline, read_outline
from maild.control import NoDaemon, Refused, ask

if TYPE_CHECKING:
    import argparse

    from maild.engine.status import Document

OK, USAGE = 0, 64
_EVERY_S = 1.0
_PATIENCE_S = 5.0  # with a daemon that does not answer
# The terminal's second screen, without a cursor and cutting lines that are too long; and back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError."""
    if args.watch and (args.json or not (sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb")):
        return _refuse("--watch draws on a terminal; scripts call `maild status --json` as often as they like")
    outline = read_outline(args.config)
    for name in args.accounts:
        if name not in outline.accounts:
            return _refuse(no_such_account(name, outline.accounts))
    if args.watch:
        return _watch(lambda: _document(outline, args.accounts), is_complete=args.verbose)
    document = _document(outline, args.accounts)
    if args.json:
        print(as_json(document))
    else:
        print("\n".join(_lines(document, is_complete=args.verbose)))
    return OK


def as_json(document: Document) -> str:
    """The document, each account on a line of its own: `indent` takes 20 times as long, which many accounts feel."""
    accounts = ",\n".join(f"  {_json(name)}: {_json(account)}" for name, account in document["accounts"].items())
    head = f'"version": {_json(document["version"])}, "daemon": {_json(document["daemon"])}'
    return f'{{{head},\n "accounts": {{\n{accounts}}},\n "outbox": {_json(document["outbox"])}}}'


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _document(outline: Outline, wanted: list[str]) -> Document:
    """From the daemon, which knows more; without one from stored state."""
    try:
        told: Document = ask(outline.state_dir, {"ask": "status", "accounts": wanted}, _PATIENCE_S)
    except (NoDaemon, Refused):  # also one that is busy, or of another version, or does not know an account yet
        pass
    else:
        return told
    from maild.engine.status import stored_status

    accounts = {name: protocol for name, protocol in outline.accounts.items() if not wanted or name in wanted}
    return stored_status(outline.state_dir, accounts)


def _refuse(text: str) -> int:
    print(printable(f"maild: {text}"), file=sys.stderr)
    return USAGE


def _lines(document: Document, *, is_complete: bool) -> list[str]:
    from maild.commands.standing import lines, look_of  # programs that want JSON need not wait for it

    return list(lines(document, look_of(sys.stdout, is_complete=is_complete), time.time()))


def _watch(document: Callable[[], Document], *, is_complete: bool) -> int:
    """Draw it anew each second until Ctrl-C, which leaves what was drawn last."""
    import shutil

    shown: list[str] = []
    sys.stdout.write(_ENTER)
    try:
        while True:
            shown = _lines(document(), is_complete=is_complete)
            sys.stdout.write(_frame(shown, shutil.get_terminal_size().lines))
            sys.stdout.flush()
            time.sleep(_EVERY_S)
    except KeyboardInterrupt:
        return OK
    finally:
        sys.stdout.write(_LEAVE)
        print("\n".join(shown))


def _frame(shown: list[str], height: int) -> str:
    """What draws the lines over those that stand there, without flicker; more than fit are left out."""
    if len(shown) > height:
        shown = [*shown[: height - 1], f"… {len(shown) - height + 1:,} more lines"]
    return _HOME + "\n".join(line + _CLEAR_LINE for line in shown) + _CLEAR_BELOW
