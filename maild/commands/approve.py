"""`maild approve`: the user's word that a plan which the deletion guard refused is right.

It holds for that plan or a part of it; one that deletes more is refused again. Exit status 0 approved, 1 when nothing
is refused there, 64 for wrong usage, 75 while another program keeps the state from being written.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from maild.commands import no_such_account, printable
from maild.config.outline import Outline, read_outline
from maild.control import nudge
from maild.local.schema import StateLocked
from maild.local.state import MailboxState, State
from maild.local.withheld import Refusal

OK, FAILED, USAGE, TRY_LATER = 0, 1, 64, 75


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status. Raises ConfigError, LocalError."""
    outline = read_outline(args.config)
    account, _, mailbox = args.target.partition("/")
    if account not in outline.accounts:
        return _told(USAGE, no_such_account(account, outline.accounts))
    path = _state_file(outline, account)
    if not path.exists():
        return _told(FAILED, f"nothing is refused: account {account!r} has not been synchronised yet")
    try:
        state = State.open(path)
    except StateLocked:
        return _told(TRY_LATER, _busy(account))
    try:
        return _approve(state, outline.state_dir, account, mailbox)
    except StateLocked:
        return _told(TRY_LATER, _busy(account))
    finally:
        state.close()


def _state_file(outline: Outline, account: str) -> Path:
    return outline.state_dir / f"{account}.sqlite"


def _told(status: int, text: str) -> int:
    print(printable(f"maild: {text}"), file=sys.stderr)
    return status


def _busy(account: str) -> str:
    return f"nothing was approved: the state of account {account!r} is being written all the time; try again shortly"


def _approve(state: State, state_dir: Path, account: str, mailbox: str) -> int:
    known = {str(name): found for name, found in state.mailboxes().items()}
    if mailbox and mailbox not in known:
        refused_there = ", ".join(name for name, found in known.items() if found.refused is not None) or "none"
        return _told(USAGE, f"account {account!r} has no mailbox {mailbox!r}; refused are: {refused_there}")
    wanted = [known[mailbox]] if mailbox else list(known.values())
    refused = [found for found in wanted if found.refused is not None]
    done = [found for found in refused if _release(state, account, found)]
    if not done:
        where = f"{account}/{mailbox}" if mailbox else account
        return _told(FAILED, f"nothing is refused in {where}; nothing was approved")
    target = f"{account}/{done[0].name}" if len(done) == 1 else account
    if nudge(state_dir, {"ask": "look", "account": account}):
        print("Anything more than that is refused again. The daemon does it now.")
        return OK
    print(printable(f"Anything more than that is refused again. To do it now: maild sync {shlex.quote(target)}"))
    return OK


def _release(state: State, account: str, mailbox: MailboxState) -> bool:
    """Approve it and say what that means. False where a pass has cleared or replaced the refusal in this instant."""
    plan = state.refusal(mailbox.id) if state.approve(mailbox.id) else None
    if plan is None or not plan.approved:
        return False
    already = "was approved already" if mailbox.approved else "approved"
    print(printable(f"{account}/{mailbox.name}: {already}. {_consequence(plan, mailbox)}"))
    return True


def _consequence(plan: Refusal, mailbox: MailboxState) -> str:
    sides = ((len(plan.delete_remote), "on the server"), (len(plan.delete_local), "here"))
    told = [f"{count:,} {'message' if count == 1 else 'messages'} {where}" for count, where in sides if count]
    if told:
        return f"The next pass deletes {' and '.join(told)}."
    return f"The next pass carries out what was refused: {mailbox.refused}."
