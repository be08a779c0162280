"""`maild approve`: one refused plan is released, in words that say what it will do; nothing else is."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from maild.cli import main
from maild.core.model import Key, MailboxName, Uid
from maild.local.state import State

CONFIG = """\
[maild]
state_dir = "STATE"
[accounts.work]
address = "me@example.org"
imap = { host = "imap.example.org", password_command = ["pass"] }
"""


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "maild.toml").write_text(CONFIG.replace("STATE", str(tmp_path / "state")))
    monkeypatch.setenv("MAILD_CONFIG", str(tmp_path / "maild.toml"))
    return tmp_path / "state"


@pytest.fixture
def state(state_dir: Path) -> Iterator[State]:
    """An account with a plan refused in INBOX, one in Lists/exim, and nothing wrong with Sent."""
    opened = State.open(state_dir / "work.sqlite")
    for name in ("INBOX", "Lists/exim", "Sent"):
        opened.add_mailbox(MailboxName(name), name)
    opened.refuse(number(opened, "INBOX"), "all are gone", [Uid(str(n)) for n in range(1200)], [Key("1.a")])
    opened.refuse(number(opened, "Lists/exim"), "the directory is gone", (), ())
    yield opened
    opened.close()


def number(state: State, name: str) -> int:
    return state.mailboxes()[MailboxName(name)].id


def approved(state: State) -> set[str]:
    return {str(name) for name, mailbox in state.mailboxes().items() if mailbox.approved}


def test_one_mailbox(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["approve", "work/INBOX"]) == 0
    assert approved(state) == {"INBOX"}
    assert capsys.readouterr().out == (
        "work/INBOX: approved. The next pass deletes 1,200 messages on the server and 1 message here.\n"
        "Anything more than that is refused again. To do it now: maild sync work/INBOX\n"
    )


def test_the_first_slash_ends_the_account(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["approve", "work/Lists/exim"]) == 0
    assert approved(state) == {"Lists/exim"}
    told = "work/Lists/exim: approved. The next pass carries out what was refused: the directory is gone.\n"
    assert told in capsys.readouterr().out


def test_a_whole_account(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    state.approve(number(state, "INBOX"))
    assert main(["approve", "work"]) == 0
    assert approved(state) == {"INBOX", "Lists/exim"}
    said = capsys.readouterr().out
    assert "work/INBOX: was approved already. " in said
    assert said.endswith("maild sync work\n")


def test_nothing_is_refused(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["approve", "work/Sent"]) == 1
    assert capsys.readouterr().err == "maild: nothing is refused in work/Sent; nothing was approved\n"
    for name in ("INBOX", "Lists/exim"):
        state.clear_refusal(number(state, name))
    assert main(["approve", "work"]) == 1
    assert capsys.readouterr().err == "maild: nothing is refused in work; nothing was approved\n"
    assert approved(state) == set()


def test_before_the_first_pass(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["approve", "work"]) == 1
    assert capsys.readouterr().err == "maild: nothing is refused: account 'work' has not been synchronised yet\n"
    assert not state_dir.exists()


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("wrok", "maild: no account is called 'wrok' (did you mean \"work\"?); there are: work\n"),
        ("work/inbox", "maild: account 'work' has no mailbox 'inbox'; refused are: INBOX, Lists/exim\n"),
    ],
)
def test_unknown(state: State, target: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["approve", target]) == 64
    assert capsys.readouterr().err == complaint
    assert approved(state) == set()


def test_a_state_that_is_written_all_the_time(
    state: State, state_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = sqlite3.connect(state_dir / "work.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0.05))
    try:
        assert main(["approve", "work/INBOX"]) == 75
    finally:
        writer.close()
    assert "the state of account 'work' is being written all the time" in capsys.readouterr().err
    assert approved(state) == set()


def test_a_plan_that_was_replaced_in_this_instant(
    state: State, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    approve = State.approve

    def and_refused_again(self: State, mailbox_id: int) -> bool:
        done = approve(self, mailbox_id)
        state.refuse(mailbox_id, "more are gone", [Uid("x")], ())
        return done

    monkeypatch.setattr(State, "approve", and_refused_again)
    assert main(["approve", "work/INBOX"]) == 1
    assert "nothing was approved" in capsys.readouterr().err
