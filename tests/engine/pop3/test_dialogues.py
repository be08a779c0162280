"""Polls of POP3 servers good and bad, written down in `dialogues/`, and what must come of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from maild.config import Account, Password, Pop3
from maild.engine.poll import poll_account
from maild.engine.report import AccountReport
from maild.testing.dialogue import Dialogue
from tests.engine.world import DEADLINE_S

SECRET = "secret word"
SCRIPTS = sorted((Path(__file__).parent / "dialogues").glob("*.txt"))


@dataclass(frozen=True)
class Case:
    """What lies in the Maildir after so many `polls`, and in each how many came, or why it failed."""

    bodies: tuple[bytes, ...] = ()
    polls: tuple[int | str, ...] = (0,)
    skipped: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


ONE, TWO = b"A: one\n\nhello\n", b"A: two\n\nhello\n"
DELETES = {"leave_on_server": False}

CASES = {
    "greeting-http": Case(polls=("a status was due; check host and port",)),
    "greeting-smtp": Case(polls=("a status was due; check host and port",)),
    "greeting-refused": Case(polls=("does not want to talk: your address is not allowed here",)),
    "greeting-busy": Case(polls=("too many connections from your address; ",)),
    "greeting-without-plus": Case(polls=("a status was due; check host and port",)),
    "old-server": Case((ONE, b"A: two\n\n.\nx\n"), (2,)),
    "octet-by-octet": Case((b"A: one\n\n.\n\n", b"A: two\n\n..\n"), (2,)),
    "listing-odd": Case((b"A: two\n\nthree\n", b"A: two\n\ntwo\n"), (2,)),
    "smuggled-end": Case((b"A: b\n\nx\n.\n+OK\n-ERR [AUTH] go away\n.\n.\n",), (1,)),
    "more-than-asked": Case(polls=("sent more than it was asked for",)),
    "login-auth": Case(polls=("[AUTH] Authentication failed; check user and password",)),
    "login-in-use": Case(polls=("[IN-USE] Do you have another POP session running?; another program",)),
    "login-locked": Case(polls=("maildrop locked; ",)),
    "login-delay": Case(polls=("between mail checks violation; the server wants more time",)),
    "login-perm": Case(polls=("your mailbox is damaged; only the server's operator can help",)),
    "login-echo": Case(polls=("refused to log in",)),
    "without-uidl": Case((ONE, ONE), (2,)),
    "one-refused": Case((TWO,), (1,), skipped=1),
    "cut-in-a-message": Case((ONE, TWO), (2,)),
    "pipelined": Case((ONE, TWO), (2,)),
    "quit-lost": Case((ONE,), ("the connection broke", 0), settings=DELETES),
    "quit-not-removed": Case((ONE,), ("did not confirm the deletions; the next poll looks", 0), settings=DELETES),
}


def test_every_conversation_has_its_case() -> None:
    assert CASES.keys() == {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
async def test_conversation(script: Path, tmp_path: Path) -> None:
    case = CASES[script.stem]
    with anyio.fail_after(DEADLINE_S):
        async with Dialogue.from_file(script) as server:
            pop3 = Pop3(
                host=server.host, port=server.port, user="user@example.org", secret=Password(SECRET), tls="none"
            )
            pop3 = replace(pop3, **case.settings)
            account = Account(name="isp", address=pop3.user, maildir=tmp_path / "Mail", pop3=pop3)
            for expected in case.polls:
                report = AccountReport("isp")
                await poll_account(account, tmp_path / "state", report)
                if isinstance(expected, str):
                    error = report.first_error() or "none"
                    assert expected in error
                    assert SECRET not in error
                else:
                    assert report.first_error() is None
                    assert report.total("pulled") == expected
                assert report.total("skipped") == (case.skipped if expected == case.polls[0] else 0)
    found = [path.read_bytes() for path in tmp_path.glob("Mail/INBOX/[nc]*/*")]
    assert Counter(found) == Counter(case.bodies)
