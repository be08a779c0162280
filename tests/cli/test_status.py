"""`maild status`: what stored state tells, as JSON and for a person; on a terminal, anew each second."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maild.cli import main
from maild.commands import standing, status
from maild.commands.standing import Look, lines
from maild.core.model import Cursor, Flags, Key, MailboxName, Pair, Skipped, Uid
from maild.core.outgoing import Item, Recipient
from maild.engine.status import AccountDocument, Document, MailboxDocument, OutboxDocument
from maild.local.outbox import Outbox
from maild.local.state import Changes, State
from maild.local.withheld import Unsent

CONFIG = """\
[maild]
state_dir = "state"
[accounts.work]
address = "me@example.org"
imap = { host = "imap.example.org", password_command = ["pass"] }
[accounts.isp]
address = "me@isp.example"
pop3 = { host = "pop.isp.example", password_command = ["pass"] }
[accounts.list]
address = "me@list.example"
smtp = { host = "smtp.list.example", password_command = ["pass"] }
"""
NO_FLAGS: Flags = frozenset()
NOW_S = 1_764_000_000.0  # 2025-11-24T16:00:00Z
EMPTY: OutboxDocument = {"queued": 0, "held": 0, "deferred": 0, "uncertain": 0, "failed": 0}


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory holds a config; its state directory is not made yet."""
    directory = tmp_path / "state"
    (tmp_path / "maild.toml").write_text(CONFIG.replace('"state"', f'"{directory}"'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAILD_CONFIG", str(tmp_path / "maild.toml"))
    monkeypatch.setenv("COLUMNS", "80")
    return directory


@pytest.fixture
def work(state_dir: Path) -> Iterator[State]:
    state = State.open(state_dir / "work.sqlite")
    yield state
    state.close()


def mailbox(state: State, name: str = "INBOX", messages: int = 2) -> int:
    """One after a complete pass, with that many unseen messages."""
    number = state.add_mailbox(MailboxName(name), name).id
    state.apply([Changes(number, add=[Pair(Uid(str(n)), Key(f"{n}.a"), NO_FLAGS, 9, b"") for n in range(messages)])])
    state.finish(number, Cursor("1"), "m", messages, NOW_S)
    return number


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["status", *arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def words(text: str) -> str:
    """Without the line ends, whose places depend on the length of paths."""
    return " ".join(text.split())


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(told(capsys, "--json", *arguments))


# JSON


def test_before_the_first_pass(capsys: pytest.CaptureFixture[str], state_dir: Path) -> None:
    nothing: dict[str, object] = {"state": "stopped", "push": None, "error": None, "last_sync": None, "mailboxes": {}}
    found = document(capsys)
    assert found.pop("version") == "0.1.0"
    assert found == {
        "daemon": None,
        "accounts": {
            "work": {"protocol": "imap", **nothing},
            "isp": {"protocol": "pop3", **nothing},
            "list": {"protocol": "smtp", **nothing},
        },
        "outbox": EMPTY,
    }
    assert not state_dir.exists()


def test_a_mailbox_as_the_contract_has_it(capsys: pytest.CaptureFixture[str], work: State) -> None:
    mailbox(work)
    work.set_meta("last_pass", json.dumps({"at": NOW_S + 60.9, "ok": True, "error": None}))
    account = document(capsys)["accounts"]["work"]
    assert (account["last_sync"], account["error"]) == ("2025-11-24T16:01:00Z", None)
    assert account["mailboxes"]["INBOX"] == {
        "messages": 2,
        "unseen": 2,
        "state": "ok",
        "refused": None,
        "error": None,
        "skipped": [],
        "held_back": [],
    }


def test_what_was_not_done(capsys: pytest.CaptureFixture[str], work: State) -> None:
    inbox = mailbox(work)
    work.refuse(inbox, "2 of 2 are gone", [Uid("1"), Uid("2")], [Key("1.a")])
    work.skip(inbox, [Skipped(Uid("7"), "too big", 5000)], NOW_S)
    work.hold_back(inbox, [Unsent(Key("9.a"), "over quota", 60)], NOW_S)
    work.set_error(mailbox(work, "Sent"), "cannot be read")
    work.add_mailbox(MailboxName("New"), "New")
    found = document(capsys)["accounts"]["work"]["mailboxes"]
    assert {name: facts["state"] for name, facts in found.items()} == {
        "INBOX": "refused",
        "New": "pending",
        "Sent": "error",
    }
    since = "2025-11-24T16:00:00Z"
    assert found["INBOX"]["refused"] == {"here": 1, "there": 2, "reason": "2 of 2 are gone", "approved": False}
    assert found["INBOX"]["skipped"] == [{"uid": "7", "reason": "too big", "size": 5000, "count": 1, "since": since}]
    held_back = [{"file": "9.a", "reason": "over quota", "size": 60, "count": 1, "since": since}]
    assert found["INBOX"]["held_back"] == held_back
    assert found["Sent"]["error"] == "cannot be read"


def test_one_damaged_file_hides_no_other_account(
    capsys: pytest.CaptureFixture[str], work: State, state_dir: Path
) -> None:
    mailbox(work)
    (state_dir / "isp.sqlite").write_bytes(b"no database" * 100)
    found = document(capsys)["accounts"]
    assert found["isp"]["state"] == "stopped"
    assert "is damaged" in found["isp"]["error"]
    assert found["work"]["mailboxes"]["INBOX"]["messages"] == 2
    assert f"failed: the state {state_dir / 'isp.sqlite'} is damaged" in words(told(capsys, "isp"))


def test_pop3_knows_nothing_of_flags(capsys: pytest.CaptureFixture[str], state_dir: Path) -> None:
    state = State.open(state_dir / "isp.sqlite")
    mailbox(state)
    state.close()
    assert document(capsys)["accounts"]["isp"]["mailboxes"]["INBOX"]["unseen"] is None
    assert "  1 mailbox, 2 messages\n" in told(capsys, "isp")


def test_outbox_is_counted(capsys: pytest.CaptureFixture[str], state_dir: Path) -> None:
    recipients = (Recipient("you@example.org"),)
    item = Item(
        id="", account="work", sender="me@x", recipients=recipients, size_octets=5, created_s=5, since_s=5, next_s=5
    )
    state_dir.mkdir()
    Outbox(state_dir).accept(item, b"text\n")
    assert document(capsys)["outbox"] == {**EMPTY, "queued": 1}
    assert "\noutbox: 1 queued; see maild outbox\n" in told(capsys)


def test_outbox_that_cannot_be_read(capsys: pytest.CaptureFixture[str], state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / "outbox").write_text("a file")
    found = document(capsys)["outbox"]
    assert found["queued"] is None
    assert "outbox" in found["error"]
    assert " outbox: cannot read " in words(told(capsys))


def test_only_the_accounts_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(document(capsys, "list", "work")["accounts"]) == ["work", "list"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["wrok"], "maild: no account is called 'wrok' (did you mean \"work\"?); there are: work, isp, list\n"),
        (["a\x1b[31m"], r"maild: no account is called 'a\x1b[31m'"),
        (["--watch"], "maild: --watch draws on a terminal"),
        (["--watch", "--json"], "maild: --watch draws on a terminal"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str) -> None:
    assert main(["status", *arguments]) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(complaint)


def test_bad_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "maild.toml").write_text("[accounts.work\n")
    assert main(["status"]) == 78
    assert "maild.toml:1: is not valid TOML" in capsys.readouterr().err


def test_what_takes_long_is_not_imported() -> None:
    code = (
        "import sys; from maild.cli import main; main(['status', '--json'])\n"
        "print([name for name in ('pydantic', 'rich', 'anyio', 'structlog') if name in sys.modules], file=sys.stderr)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stderr == "[]\n"


# for a person


def a_mailbox(**facts: Any) -> MailboxDocument:
    plain: dict[str, object] = {"state": "ok", "refused": None, "error": None, "skipped": [], "held_back": []}
    made: MailboxDocument = {"messages": 1200, "unseen": 1, **plain, **facts}  # type: ignore[typeddict-item]
    return made


def an_account(**facts: Any) -> AccountDocument:
    plain = {"protocol": "imap", "state": "stopped", "push": None, "error": None, "last_sync": "2025-11-24T15:50:00Z"}
    made: AccountDocument = {**plain, "mailboxes": {}, **facts}  # type: ignore[typeddict-item]
    return made


def shown(account: AccountDocument, look: Look = Look(), **facts: Any) -> list[str]:  # noqa: B008 - it is frozen
    """The block of one account."""
    whole: Document = {"version": "1", "daemon": None, "accounts": {"work": account}, "outbox": EMPTY, **facts}  # type: ignore[typeddict-item]
    text = list(lines(whole, look, NOW_S))
    assert max(map(standing._cells, text)) <= look.width or look.is_coloured
    return text[: text.index("")]


def test_nothing_to_say() -> None:
    mailboxes = {"INBOX": a_mailbox(), "Sent": a_mailbox(state="pending", messages=34, unseen=0)}
    assert shown(an_account(mailboxes=mailboxes)) == [
        "work  IMAP, last sync 10 min ago",
        "  2 mailboxes, 1,234 messages, 1 unseen",
    ]


def test_every_mailbox_in_columns() -> None:
    mailboxes = {"受信": a_mailbox(), "Drafts": a_mailbox(state="pending", messages=1, unseen=0)}
    assert shown(an_account(mailboxes=mailboxes), Look(is_complete=True))[2:] == [
        "  受信    ok       1,200 messages, 1 unseen",
        "  Drafts  pending  1 message, 0 unseen",
    ]


@pytest.mark.parametrize(
    ("plan", "advice"),
    [
        ({"here": 0, "there": 1200}, "to delete 1,200 messages on the server after all: maild approve work/INBOX"),
        ({"here": 1, "there": 0}, "to delete 1 message here after all: maild approve work/INBOX"),
        ({"here": 0, "there": 0}, "if that is right: maild approve work/INBOX"),
        ({"here": 2, "there": 0, "approved": True}, "approved: 2 messages here will be deleted with the next pass"),
        ({"here": 0, "there": 0, "approved": True}, "approved: it is carried out with the next pass"),
    ],
)
def test_refused(plan: dict[str, Any], advice: str) -> None:
    refused = {"reason": "all are gone", "approved": False, **plan}
    assert shown(an_account(mailboxes={"INBOX": a_mailbox(state="refused", refused=refused)}))[2:] == [
        "  INBOX  refused  1,200 messages, 1 unseen",
        "    all are gone",
        f"    {advice}",
    ]


def test_a_command_is_never_broken() -> None:
    name = "Archive of everything/that was/ever written by anybody to everybody else"
    refused = {"reason": "all are gone", "here": 0, "there": 0, "approved": False}
    document: Document = {
        "version": "1",
        "daemon": None,
        "accounts": {"work": an_account(mailboxes={name: a_mailbox(state="refused", refused=refused)})},
        "outbox": EMPTY,
    }
    assert f"      maild approve 'work/{name}'" in list(lines(document, Look(40), NOW_S))


def test_messages_that_did_not_travel() -> None:
    since = "2025-11-20T00:00:00Z"
    skipped = [
        {"uid": str(n), "reason": "not delivered", "size": 1 << 20, "count": 1, "since": since} for n in range(8, 13)
    ]
    skipped += [{"uid": "1", "reason": f"reason {n}", "size": 0, "count": 1, "since": since} for n in range(4)]
    held_back = [{"file": "9.a", "reason": "over quota", "size": 2048, "count": 3, "since": since}]
    assert shown(an_account(mailboxes={"INBOX": a_mailbox(skipped=skipped, held_back=held_back)}))[3:] == [
        "    9 messages left on the server:",
        "      not delivered: uids 8, 9, 10 and 2 more (5.0M, since 2025-11-20)",
        "      reason 0: uid 1 (since 2025-11-20)",
        "      reason 1: uid 1 (since 2025-11-20)",
        "      2 more, for other reasons: maild status --json",
        "    1 message not sent to the server:",
        "      over quota: file 9.a (2.0K, since 2025-11-20)",
    ]


def test_accounts_without_a_pass() -> None:
    assert shown(an_account(last_sync=None)) == ["work  IMAP, never synchronised", "  to begin: maild sync work"]
    assert shown(an_account(last_sync=None, protocol="smtp")) == ["work  SMTP, sends only"]
    assert shown(an_account(last_sync=None, error="no network")) == ["work  IMAP", "  failed: no network"]


def test_with_a_daemon() -> None:
    daemon = {"pid": 4711, "uptime_s": 7300.0}
    assert shown(an_account(state="backing_off", push="notify"), daemon=daemon) == [
        "work  IMAP, backing off, pushed by NOTIFY, last sync 10 min ago"
    ]
    assert shown(an_account(state="auth_rejected", error="no"), Look(200), daemon=daemon)[1:] == [
        "  failed: no",
        "  not tried again until the secret is another one, or after `maild reload`",
    ]
    whole: Document = {"version": "1", "daemon": {"pid": 4711, "uptime_s": 7300.0}, "accounts": {}, "outbox": EMPTY}
    assert list(lines(whole, Look(), NOW_S)) == ["outbox: empty", "daemon: pid 4711, running for 2 h"]


def test_words_of_a_server_do_nothing_to_the_terminal() -> None:
    bad = "\x1b]0;x\x07 \x9b31m \u202e"
    withheld = {"uid": bad, "file": bad, "reason": bad, "size": 1, "count": 1, "since": "2025-11-20T00:00:00Z"}
    refused = {"reason": bad, "here": 0, "there": 0, "approved": False}
    facts = {"refused": refused, "error": bad, "skipped": [withheld], "held_back": [withheld]}
    account = an_account(error=bad, mailboxes={bad: a_mailbox(state=bad, **facts)})
    assert all(line.isprintable() for line in shown(account, Look(200)))


@pytest.mark.parametrize("width", [20, 40, 80, 100])
def test_lines_stay_inside_the_terminal(width: int) -> None:
    error = "the server refused it for a reason that is long " * 3
    text = list(standing.behind("    ", error, Look(width)))
    assert max(map(len, text)) <= max(width, 24)
    assert " ".join(line.strip() for line in text) == error.strip()


def test_colours_change_nothing_but_the_colours() -> None:
    account = an_account(error="no network", mailboxes={"INBOX": a_mailbox(state="error", error="cannot be read")})
    painted = shown(account, Look(is_coloured=True))
    assert "\x1b[31m" in "".join(painted)
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in painted] == shown(account)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s ago"), (99, "99 s ago"), (100, "2 min ago"), (7200, "2 h ago"), (864_000, "10 days ago")],
)
def test_how_long_ago(seconds: float, text: str) -> None:
    assert standing._ago(seconds) == text


# on a terminal

Ended = Callable[[bytes], bool]


def on_a_terminal(is_enough: Ended, *arguments: str, **environ: str) -> tuple[bytes, int]:
    """What `maild status` writes to a terminal of 12 lines until it is enough, and its exit status after Ctrl-C."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 80, 0, 0))
    variables = {**os.environ, "TERM": "xterm", **environ}
    del variables["COLUMNS"]
    command = [sys.executable, "-m", "maild", "status", *arguments]
    root = str(Path(__file__).resolve().parents[2])
    variables["PYTHONPATH"] = root
    child = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=variables)
    os.close(theirs)
    written, deadline, is_told = b"", time.monotonic() + 30, False
    while time.monotonic() < deadline and select.select([ours], [], [], 30)[0]:
        try:
            written += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not is_told and is_enough(written):
            child.send_signal(signal.SIGINT)
            is_told = True
    os.close(ours)
    return written, child.wait(10)


def test_watch_draws_anew_and_leaves_the_last_picture(work: State) -> None:
    mailbox(work)

    def after_a_change(written: bytes) -> bool:
        if b", 2 messages, " in written and b"Later" not in written:
            work.set_error(mailbox(work, "Later"), "cannot be read")
        return b"Later" in written

    written, status_ = on_a_terminal(after_a_change, "--watch")
    assert status_ == 0
    screen, left, after = written.partition(b"\x1b[?1049l")
    assert screen.startswith(b"\x1b[?1049h")
    assert left
    assert b"\x1b[H" not in after
    assert b"cannot be read" in after
    assert b"Traceback" not in written


@pytest.mark.parametrize(
    ("environ", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_are_for_terminals(work: State, environ: dict[str, str], is_coloured: bool) -> None:
    work.set_error(mailbox(work), "cannot be read")
    written, status_ = on_a_terminal(lambda _: False, **environ)
    assert status_ == 0
    assert b"cannot be read" in written
    assert (b"\x1b[" in written) == is_coloured


def test_a_frame_is_never_higher_than_the_terminal() -> None:
    frame = status._frame([str(n) for n in range(20)], 12)
    assert frame.count("\n") == 11
    assert "… 9 more lines" in frame
    assert "more" not in status._frame([str(n) for n in range(12)], 12)
