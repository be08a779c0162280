"""`maild sendmail` as its callers use it: options, exit statuses, many at once, and how fast it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maild.cli import main
from maild.commands import sendmail
from maild.commands.sendmail import Options, WrongUsage, moment, parse
from maild.config import load
from maild.config.senders import read_senders
from maild.core.outgoing import Item, Notices
from maild.engine.accept import Order
from maild.local.outbox import Outbox

NOW = 1_800_000_000
CONFIG = """\
[maild]
state_dir = "{root}/state"
maildir = "{root}/Mail"
default_account = "work"
[accounts.work]
address = "me@example.org"
aliases = ["alias@example.org"]
[accounts.work.smtp]
host = "127.0.0.1"
tls = "none"
user = "me"
password_command = ["false"]
[accounts.home]
address = "me@home.example"
[accounts.home.smtp]
host = "127.0.0.1"
tls = "none"
undo = "5m"
password_command = ["false"]
[accounts.pull]
address = "me@pull.example"
[accounts.pull.imap]
host = "127.0.0.1"
password_command = ["false"]
"""
MESSAGE = b"From: me@example.org\nTo: a@x.example\nBcc: b@x.example\nSubject: hello\n\nthere\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "maild.toml"
    path.write_text(CONFIG.format(root=tmp_path))
    return path


def run(config: Path, *words: str, raw: bytes = MESSAGE) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*words), input=raw, capture_output=True, check=False, env=environment(config))


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "maild", "sendmail", *words]


def environment(config: Path) -> dict[str, str]:
    return {**os.environ, "MAILD_CONFIG": str(config)}


def items(config: Path) -> list[Item]:
    return list(Outbox(config.parent / "state").contents().items)


def addresses(item: Item) -> list[str]:
    return [recipient.address for recipient in item.recipients]


# -- the command line

ACCEPTED = [
    ["-t"],
    ["-ti"],
    ["-t", "-i"],
    ["-t", "-oi"],
    ["-t", "-oem", "-odb", "-bm"],
    ["-t", "-oi", "-f", "x@y"],
    ["-tfx@y"],
    ["-FCronDaemon", "-i", "-B8BITMIME", "-oem", "-t"],
    ["-t", "-N", "never", "-R", "hdrs", "-V", "id", "-v", "-U", "-G"],
    ["-t", "-O", "DeliveryMode=b", "-h", "3", "-q1h", "-d9"],
    ["-t", "-C", "/etc/mail.cf", "-X", "log", "-Lmail", "-p", "ESMTP:x"],
]


@pytest.mark.parametrize("words", ACCEPTED, ids=" ".join)
def test_options_of_sendmail_are_accepted(words: list[str]) -> None:
    assert parse(words, NOW).order.take_from_head


@pytest.mark.parametrize(
    ("words", "recipients", "sender", "name"),
    [
        (["a@x"], ("a@x",), None, ""),
        (["-f", "x@y", "--", "a@x", "-t"], ("a@x", "-t"), "x@y", ""),
        (["-fx@y", "a@x", "b@x"], ("a@x", "b@x"), "x@y", ""),
        (["-r", "x@y", "-F", "A B", "a@x"], ("a@x",), "x@y", "A B"),
        (["-f", "", "a@x"], ("a@x",), "", ""),
        (["a@x", "-i", "-f", "-", "b@x"], ("a@x", "b@x"), "-", ""),
        (["-"], ("-",), None, ""),
    ],
)
def test_what_the_options_mean(words: list[str], recipients: tuple[str, ...], sender: str | None, name: str) -> None:
    order = parse(words, NOW).order
    assert (order.recipients, order.sender, order.full_name) == (recipients, sender, name)


def test_our_own_options() -> None:
    order = parse(["--account", "home", "--at=2h", "-t"], NOW).order
    assert (order.account, order.send_s) == ("home", NOW + 7200)
    asked = parse(["-t", "-N", "success,delay", "-Rhdrs", "-V", "my id"], NOW).order.notices
    assert asked == Notices("SUCCESS,DELAY", "HDRS", "my id")
    assert parse(["-t", "-Nnever"], NOW).order.notices == Notices("NEVER")
    assert parse(["--help"], NOW) == Options(Order(), wants_help=True)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "no recipient is given"),
        (["-i"], "no recipient is given"),
        (["-t", "-f"], "-f needs a value"),
        (["-bs"], "speaks no SMTP"),
        (["-bp"], "use `maild outbox`"),
        (["-Z", "a@x"], "-Z is no option"),
        (["--nonsense", "a@x"], "no option --nonsense"),
        (["-N", "never,delay", "a@x"], "-N 'never,delay' is not never, or some of"),
        (["-N", "", "a@x"], "-N '' is not never"),
        (["-R", "all", "a@x"], "-R 'all' is not full or hdrs"),
        (["-V", "x" * 101, "a@x"], "is not at most 100 printable"),
        (["--at", "soon", "a@x"], "is no time"),
        (["--at", "2001-01-01T00:00", "a@x"], "is in the past"),
        (["--account"], "--account needs a value"),
    ],
)
def test_wrong_usage(words: list[str], text: str) -> None:
    with pytest.raises(WrongUsage, match=text):
        parse(words, NOW)


def test_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert moment("90s", NOW) == NOW + 90
    assert moment("+3d", NOW) == NOW + 3 * 86400
    assert moment("2030-01-01T00:00Z", NOW) == 1_893_456_000
    assert moment("2030-01-01 01:00+01:00", NOW) == 1_893_456_000
    assert moment("2030-01-01", NOW) == 1_893_456_000
    clock = time.strftime("%H:%M", time.gmtime(NOW + 3600))
    assert moment(clock, NOW) == (NOW + 3600) // 60 * 60
    earlier = time.strftime("%H:%M", time.gmtime(NOW - 3600))
    assert moment(earlier, NOW) == (NOW - 3600) // 60 * 60 + 86400


@pytest.mark.parametrize("text", ["999999999d", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00+14:00"])
def test_a_moment_that_no_calendar_has(text: str) -> None:
    with pytest.raises(WrongUsage, match="--at"):
        moment(text, NOW)


# -- the whole


def test_accepted(config: Path) -> None:
    done = run(config, "-t", "-oi")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    (item,) = items(config)
    assert (item.account, item.sender, item.subject) == ("work", "me@example.org", "hello")
    assert addresses(item) == ["a@x.example", "b@x.example"]
    assert b"Bcc" not in Outbox(config.parent / "state").text(item.id)


def test_global_options_and_accounts(config: Path) -> None:
    words = [sys.executable, "-m", "maild", "-v", "-c", str(config), "sendmail", "--account=home", "z@x.example"]
    assert subprocess.run(words, input=MESSAGE, check=False).returncode == 0
    (item,) = items(config)
    assert (item.account, addresses(item), item.next_s - item.created_s) == ("home", ["z@x.example"], 300)


def test_the_second_name(config: Path) -> None:
    code = "import sys; from maild.cli import sendmail; sys.exit(sendmail())"
    words = [sys.executable, "-c", code, "-i", "z@x.example"]
    assert subprocess.run(words, input=MESSAGE, check=False, env=environment(config)).returncode == 0
    assert len(items(config)) == 1


@pytest.mark.parametrize(
    ("words", "raw", "status", "text"),
    [
        (["-bs"], MESSAGE, 64, b"speaks no SMTP"),
        (["-t"], b"To: root\n\n", 65, b"has no domain"),
        (["-t"], b"no head\n", 65, b"not divided from the body"),
        (["a@x\nb@y"], MESSAGE, 65, b"cannot read the addresses"),
        (["--account", "pull", "a@x"], MESSAGE, 64, b"no account 'pull' can send"),
    ],
)
def test_refused(config: Path, words: list[str], raw: bytes, status: int, text: bytes) -> None:
    done = run(config, *words, raw=raw)
    assert done.returncode == status
    assert text in done.stderr
    assert done.stderr.startswith(b"maild sendmail: ")
    assert items(config) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_state_directory_that_cannot_be_written(config: Path) -> None:
    config.parent.chmod(0o500)
    done = run(config, "-t")
    config.parent.chmod(0o700)
    assert done.returncode == 75


def test_an_outbox_that_cannot_be_made(config: Path) -> None:
    (config.parent / "state").write_text("not a directory")
    done = run(config, "-t")
    assert done.returncode == 75
    assert b"maild sendmail: cannot" in done.stderr


def test_a_message_that_no_server_would_take(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program gone wild fills neither the memory nor the disk."""
    monkeypatch.setattr(sendmail, "LARGEST_OCTETS", 1 << 20)
    message = config.parent / "message"
    for beyond, status in ((0, 0), (1, 65)):
        message.write_bytes(MESSAGE + b"x" * ((1 << 20) - len(MESSAGE) + beyond))
        with message.open() as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            assert main(["-c", str(config), "sendmail", "-t"]) == status
    assert "the message has more than 1 MiB" in capsys.readouterr().err
    assert len(items(config)) == 1


def test_a_config_with_a_mistake_elsewhere_still_sends(config: Path) -> None:
    config.write_text(config.read_text() + "\n[accounts.pull.pop3]\nhost = 7\nnonsense = true\n")
    assert run(config, "-t").returncode == 0
    config.write_text(config.read_text().replace('address = "me@example.org"', "address = 7"))
    done = run(config, "-t")
    assert done.returncode == 78
    assert b"accounts.work.address" in done.stderr
    assert len(items(config)) == 1


def test_no_config(tmp_path: Path) -> None:
    done = run(tmp_path / "none.toml", "-t")
    assert done.returncode == 78
    assert b"no such file" in done.stderr


def test_help(config: Path) -> None:
    done = run(config, "--help")
    assert done.returncode == 0
    assert b"usage: maild sendmail" in done.stdout


def test_fifty_at_once(config: Path) -> None:
    started = [
        subprocess.Popen(command("-i", f"r{n}@x.example"), stdin=subprocess.PIPE, env=environment(config))
        for n in range(50)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(MESSAGE)
        process.stdin.close()
    assert [process.wait(60) for process in started] == [0] * 50
    found = items(config)
    assert sorted(address for item in found for address in addresses(item)) == sorted(
        f"r{n}@x.example" for n in range(50)
    )
    assert len({item.message_id for item in found}) == 50


def test_it_starts_without_what_it_does_not_need(config: Path) -> None:
    code = (
        "import sys, io; from maild.cli import main;"
        "sys.stdin = io.TextIOWrapper(io.BytesIO(b'To: a@x.example\\n\\n'));"
        "status = main(['sendmail', '-t']); heavy = {'pydantic', 'anyio', 'asyncio', 'structlog', 'rich', 'ssl',"
        " 'email.message', 'aiosmtplib', 'idna', 'sqlite3'} & set(sys.modules); print(status, sorted(heavy))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment(config))
    assert (done.stdout, done.stderr) == ("0 []\n", "")


def test_the_quick_reading_of_the_config_agrees_with_the_whole(config: Path) -> None:
    beside = config.parent / "accounts.d"
    beside.mkdir()
    (beside / "more.toml").write_text(
        '[accounts.more]\naddress = "x@more.example"\n[accounts.more.smtp]\nhost = "s"\nundo = "1m"\n'
        'password_command = ["false"]\n'
    )
    (beside / ".hidden.toml").write_text("nonsense")
    quick, whole = read_senders(config), load(config)
    assert quick.state_dir == whole.state_dir
    assert quick.default_account == whole.default_account
    assert [(s.account, s.addresses, s.undo_s) for s in quick.accounts] == [
        (a.name, (a.address, *a.aliases), a.smtp.undo_s) for a in whole.accounts.values() if a.smtp is not None
    ]
