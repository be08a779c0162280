"""`maild outbox` on a real outbox and over a real connection, and the whole killed in the middle again and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maild.cli import main
from maild.config.senders import Sender, Senders
from maild.core import outgoing
from maild.core.outgoing import Item
from maild.engine.accept import Order, prepared
from maild.local.outbox import Outbox
from maild.testing.smtp import RESET, SmtpServer
from tests.servers.sender import config_of_sender
from tests.servers.submission import serving

PASSWORD = "correct horse battery staple"


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with serving(SmtpServer(users={"me": PASSWORD})) as running:
        yield running


@pytest.fixture
def config(tmp_path: Path, server: SmtpServer) -> Path:
    return config_of_sender(tmp_path, port=server.port, user="me", password=PASSWORD, log_level="error")


@pytest.fixture
def outbox(config: Path) -> Outbox:
    return Outbox(config.parent / "state")


def accept(
    outbox: Outbox, *recipients: str, subject: str = "hello", account: str = "work", at_s: int | None = None
) -> Item:
    senders = Senders(outbox.path.parent, (Sender(account, ("me@example.org",), 0),), None)
    raw = f"Subject: {subject}\n\nthere\x1b[31m\n".encode()
    order = Order(recipients=recipients or ("a@x.example",), send_s=at_s)
    return outbox.accept(*prepared(raw, order, senders, time.time()))


Said = tuple[int, str, str]


@pytest.fixture
def maild(config: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> Said:
        status = main(["-c", str(config), "outbox", *words])
        return status, *capsys.readouterr()

    return run


def documents(said: Said) -> list[dict[str, Any]]:
    found = json.loads(said[1])
    assert isinstance(found, list)
    return found


# -- what is shown


def test_an_empty_outbox(maild: Any) -> None:
    assert maild() == (0, "the outbox is empty\n", "")
    assert maild("list", "--json") == (0, "[]\n", "")
    assert maild("flush") == (0, "nothing is waiting\n", "")


def test_the_json_of_the_contract(maild: Any, outbox: Outbox, server: SmtpServer) -> None:
    item = accept(outbox, "a@x.example", "b@x.example", subject="=?utf-8?q?h=C3=A9?=")
    server.react("rcpt", "451 4.3.0 try later", when="a@x")
    maild("flush")
    (document,) = documents(maild("list", "--json"))
    assert time.strptime(document.pop("next_attempt"), "%Y-%m-%dT%H:%M:%SZ")
    assert time.strptime(document.pop("accepted"), "%Y-%m-%dT%H:%M:%SZ")
    assert document == {
        "id": item.id,
        "account": "work",
        "sender": "me@example.org",
        "state": "deferred",
        "attempts": 1,
        "size": item.size_octets,
        "subject": "hé",
        "message_id": item.message_id,
        "recipients": [
            {"address": "a@x.example", "state": "deferred", "reply": "451 4.3.0 try later"},
            {"address": "b@x.example", "state": "sent", "reply": "250 2.0.0 queued"},
        ],
    }


def test_nothing_moves_the_cursor(maild: Any, outbox: Outbox, server: SmtpServer) -> None:
    item = accept(outbox, subject="=?utf-8?b?G1szMW1yZWQ=?=")  # ESC [31m red
    server.react("mail", "451 4.3.0 \x1b]0;title\x07")
    status, out, err = maild("flush")
    for words in (["list"], ["show", item.id]):
        _, out, err = maild(*words)
        assert "\x1b" not in out + err
        assert "\\x1b[31m" in out
    assert status == 1


def test_one_line_a_message(maild: Any, outbox: Outbox) -> None:
    item = accept(outbox, *(f"r{n}@x.example" for n in range(5)))
    outbox.edit(item.id, outgoing.held)
    _, out, _ = maild("list")
    assert out == f"{item.id}  work  held  to r0@x.example, r1@x.example, r2@x.example and 2 more: hello\n"


def test_when_it_will_be_sent(maild: Any, outbox: Outbox) -> None:
    accept(outbox, at_s=int(time.time()) + 7200)
    assert "  queued, to be sent in 2.0 h  to " in maild("list")[1]


def test_show(maild: Any, outbox: Outbox) -> None:
    item = accept(outbox)
    _, out, _ = maild("show", item.id[:-2])
    assert f"id:              {item.id}\n" in out
    assert "to:              a@x.example: queued\n" in out
    assert out.endswith("\n\nthere\\x1b[31m\n\n")
    shown = json.loads(maild("show", item.id, "--json")[1])
    assert shown["message"].endswith("there\x1b[31m\n")


@pytest.mark.parametrize("action", ["show", "hold", "release", "retry", "cancel"])
def test_the_json_of_several_is_one_document(maild: Any, outbox: Outbox, action: str) -> None:
    one, two = accept(outbox), accept(outbox)
    if action == "release":
        maild("hold", one.id, two.id)
    status, out, err = maild(action, one.id, "nope", two.id, "--json")
    assert (status, "'nope'" in err) == (1, True)
    assert [found["id"] for found in json.loads(out)] == [one.id, two.id]
    assert maild(action, "nope", "--json")[:2] == (1, "")


def test_options_stand_where_they_like(maild: Any, outbox: Outbox) -> None:
    item = accept(outbox)
    shown = [maild(*words) for words in (("show", item.id, "--json"), ("show", "--json", item.id))]
    shown.append(maild("--json", "show", item.id))
    assert shown[0] == shown[1] == shown[2]
    assert maild("show", "--jsan", item.id)[0] == 64


def test_of_a_message_whose_file_is_gone_the_rest_is_shown(maild: Any, outbox: Outbox) -> None:
    one, two = accept(outbox), accept(outbox, subject="still there")
    outbox.text_path(one.id).unlink()
    status, out, err = maild("show", one.id, two.id)
    assert (status, len(err.splitlines())) == (1, 1)
    assert f"{one.id}.eml is gone; `maild outbox cancel {one.id}` forgets the message" in err
    assert f"id:              {one.id}\n" in out
    assert "Subject: still there" in out


def test_a_file_that_cannot_be_read_is_told(maild: Any, outbox: Outbox) -> None:
    accept(outbox)
    (outbox.path / "x.toml").write_text("account = 1")
    status, out, err = maild("list")
    assert (status, len(out.splitlines())) == (1, 1)
    assert "cannot read x.toml" in err


# -- what can be done


def test_hold_release_cancel(maild: Any, outbox: Outbox, server: SmtpServer) -> None:
    item = accept(outbox)
    assert maild("hold", item.id) == (0, f"{item.id}: held\n", "")
    assert maild("flush")[:2] == (0, "work: nothing sent (in the outbox: 1 held)\n")
    assert server.connections == 0
    assert maild("release", item.id) == (0, f"{item.id}: queued\n", "")
    assert maild("cancel", item.id) == (0, f"{item.id}: cancelled\n", "")
    assert maild("cancel", item.id)[0] == 1
    assert maild() == (0, "the outbox is empty\n", "")


@pytest.mark.parametrize(
    ("reaction", "state", "action", "hint"),
    [
        ("550 5.1.1 nobody", "failed", "hold", "before `maild outbox retry"),
        ("550 5.1.1 nobody", "failed", "release", "before `maild outbox retry"),
        ("451 4.3.0 later", "deferred", "release", "or now after `maild outbox retry"),
        (RESET, "uncertain", "hold", "`maild outbox cancel"),
        (RESET, "uncertain", "release", "`maild outbox cancel"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    maild: Any, outbox: Outbox, server: SmtpServer, reaction: Any, state: str, action: str, hint: str
) -> None:
    item = accept(outbox)
    server.react("dot", reaction)
    maild("flush")
    before = outbox.find(item.id)
    status, out, err = maild(action, item.id)
    assert (status, out) == (1, "")
    assert err.startswith(f"maild: cannot {action} {item.id}: it is {state}; ")
    assert hint in err
    assert outbox.find(item.id) == before
    assert maild(action, item.id, "--json")[:2] == (1, "")


def test_a_lost_connection_is_told_without_numbers(maild: Any, outbox: Outbox, server: SmtpServer) -> None:
    accept(outbox)
    server.react("dot", RESET)
    maild("flush")
    assert "was lost: connection reset by peer\n" in maild("list")[1]
    assert maild("flush") == (0, "work: nothing sent (in the outbox: 1 uncertain)\n", "")


def test_several_ids_of_which_one_is_wrong(maild: Any, outbox: Outbox) -> None:
    one, two = accept(outbox), accept(outbox)
    status, out, err = maild("hold", one.id, "nonsense", two.id)
    assert status == 1
    assert out == f"{one.id}: held\n{two.id}: held\n"
    assert "no message has the id 'nonsense'" in err


def test_flush_retry_and_a_failure(maild: Any, outbox: Outbox, server: SmtpServer, tmp_path: Path) -> None:
    item = accept(outbox, "a@x.example", "b@x.example")
    server.react("rcpt", "550 5.1.1 nobody", when="b@x")
    assert maild("flush")[:2] == (1, "work: 1 failed, 1 sent\n")
    assert outbox.counts()["failed"] == 1
    assert maild("retry", item.id)[1] == f"{item.id}: queued\n"
    status, out, _ = maild("flush", "--json")
    assert status == 0
    assert json.loads(out) == {
        "accounts": {"work": {"ok": True, "error": None, "sent": 1, "deferred": 0, "failed": 0, "uncertain": 0}}
    }
    assert [message.recipients for message in server.journal] == [("a@x.example",), ("b@x.example",)]
    assert len(list((tmp_path / "Mail/work/Sent/cur").iterdir())) == 1
    assert len(list((tmp_path / "Mail/work/INBOX/new").iterdir())) == 1


def test_a_message_of_an_account_that_is_gone(maild: Any, outbox: Outbox) -> None:
    accept(outbox, account="gone")
    status, _, err = maild("flush")
    assert status == 1
    assert 'messages wait for account "gone"' in err


def test_two_at_once(maild: Any, outbox: Outbox) -> None:
    accept(outbox)
    with outbox.draining():
        status, _, err = maild("flush")
    assert status == 1
    assert "another maild is submitting" in err


@pytest.mark.parametrize("words", [["hold"], ["show"], ["flush", "x"], ["list", "x"], ["nonsense"]])
def test_wrong_usage(maild: Any, words: list[str]) -> None:
    assert maild(*words)[0] == 64


# -- killed


def test_killed_again_and_again(config: Path, outbox: Outbox, server: SmtpServer) -> None:
    """SIGKILL while it drains: nobody goes without, and twice gets it only who was recorded as uncertain."""
    recipients = [f"r{n}@x.example" for n in range(60)]
    for address in recipients:
        accept(outbox, address)
    doubtful: set[str] = set()
    for taken in (1, 5, 12, 20, 33, 45):
        process = subprocess.Popen(
            [sys.executable, "-m", "maild", "-c", str(config), "outbox", "flush"],
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            stdout=subprocess.DEVNULL,
        )
        wait_for(server, taken, process)
        process.kill()
        process.wait()
        with outbox.draining():  # what it left is put in order, and what is in doubt said
            doubtful |= {r.address for item in outbox.contents().items for r in item.with_state("uncertain")}
    for item in outbox.contents().items:
        outbox.edit(item.id, lambda found: outgoing.retried(found, time.time()))
    assert main(["-c", str(config), "outbox", "flush"]) == 0
    got = Counter(address for message in server.taken for address in message.recipients)
    assert set(got) == set(recipients)
    assert {address for address, times in got.items() if times > 1} <= doubtful
    assert max(got.values()) <= 2
    assert outbox.contents().items == ()
    assert len(list((config.parent / "Mail/work/Sent/cur").iterdir())) == len(recipients)


def wait_for(server: SmtpServer, taken: int, process: subprocess.Popen[bytes]) -> None:
    """Until the server has seen so many messages, or the process is done before."""
    done = threading.Event()
    original = server.take

    def take(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        if len(server.taken) >= taken:
            done.set()

    server.take = take  # type: ignore[method-assign]
    threading.Thread(target=lambda: (process.wait(), done.set()), daemon=True).start()
    assert done.wait(30)
    server.take = original  # type: ignore[method-assign]


def test_sync_with_send_sends_what_is_due(
    config: Path, outbox: Outbox, server: SmtpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The account has no mail on a server, so that there is nothing to pull."""
    accept(outbox, "a@x.example")
    assert main(["-c", str(config), "sync", "--send", "--dry-run"]) == 0
    assert server.journal == []
    assert main(["-c", str(config), "sync", "--send"]) == 0
    assert "work: 1 sent" in capsys.readouterr().out
    assert [message.recipients for message in server.journal] == [("a@x.example",)]


def test_sync_with_send_of_an_account_that_only_sends(
    config: Path, outbox: Outbox, server: SmtpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-c", str(config), "sync", "work"]) == 64
    assert main(["-c", str(config), "sync", "--send", "work/INBOX"]) == 64
    assert "it has nothing to pull" in capsys.readouterr().err
    assert main(["-c", str(config), "sync", "--send", "work"]) == 0
    assert capsys.readouterr().out == "work: nothing to send\n"
    accept(outbox, "a@x.example")
    later = accept(outbox, "b@x.example", at_s=int(time.time()) + 3600)
    assert main(["-c", str(config), "sync", "--send", "--json", "work"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "accounts": {},
        "sent": {"work": {"ok": True, "error": None, "sent": 1, "deferred": 0, "failed": 0, "uncertain": 0}},
    }
    assert [item.id for item in outbox.contents().items] == [later.id]
    accept(outbox, "c@x.example")
    server.react("greeting", "421 4.3.2 busy")
    assert main(["-c", str(config), "sync", "--send", "work"]) == 1
    said = capsys.readouterr()
    assert "421 4.3.2 busy" in said.err
    assert said.out == "work: 1 deferred\n"


def test_a_journal_of_another_version_is_told_in_one_line(outbox: Outbox, maild: Any) -> None:
    accepted = accept(outbox)
    line = json.dumps([accepted.id, {"account": "work", "recipients": [{"address": "a@x.example"}]}]).encode()
    (outbox.path / ".journal").write_bytes(b"%08x %b\n" % (zlib.crc32(line), line))
    for words in (["list"], ["list", "--json"], ["show", accepted.id], ["hold", accepted.id], ["flush"]):
        status, out, err = maild(*words)
        assert (status, out, len(err.splitlines())) == (1, "", 1), words
        assert f"{outbox.path}/.journal, line 1" in err
    assert accept(outbox).id
