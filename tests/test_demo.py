"""`maild demo`, run as a user runs it: what it shows, what is then on the disk, and that it leaves nothing behind."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import mailbox
import os
import pty
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import termios
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from maild import config, demo
from maild.cli import main
from maild.core.errors import LocalError
from maild.demo import place as places
from maild.demo import servers, stage
from maild.demo.screen import Screen
from maild.demo.steps import STEPS, YOUR_CONFIG
from maild.local.lock import InstanceLock
from maild.remote import auth
from maild.testing.faults import Action, Answer, Rewrite
from maild.testing.imap import BARE, ImapServer
from maild.testing.samples import MAILBOXES, maildrop_samples, sample_store

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
LAST_S = 120.0
PROGRAM = (sys.executable, "-P", "-m", "maild")


def words(text: str) -> str:
    """Without line ends and indentation, for texts that may be wrapped."""
    return " ".join(text.split())


def lf(raw: bytes) -> bytes:
    return raw.replace(b"\r\n", b"\n")


@dataclass(frozen=True)
class Surroundings:
    """A home in which nothing can be written, no desktop, and a directory for temporary files of the test's own."""

    temporary: Path

    @property
    def environment(self) -> dict[str, str]:
        left_out = ("MAILD", "XDG", "DBUS", "DISPLAY", "NO_COLOR", "STATE_DIRECTORY", "COLUMNS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        home = "/proc/self"  # not even root can make a file there
        return {**kept, "HOME": home, "TMPDIR": str(self.temporary), "TERM": "xterm", "LC_ALL": "C.UTF-8"}

    def processes(self) -> list[str]:
        """The commands of those that run with a config in here, or are a demo of ours."""
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                if process.name.isdigit() and str(self.temporary).encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def assert_nothing_is_left(self) -> None:
        assert list(self.temporary.iterdir()) == []
        assert self.processes() == []


@pytest.fixture
def surroundings(tmp_path: Path) -> Surroundings:
    (tmp_path / "tmp").mkdir()
    return Surroundings(tmp_path / "tmp")


# what it shows, and what is then on the disk


@dataclass(frozen=True)
class Kept:
    """One demo whose directory was kept, and what it said."""

    place: Path
    out: str
    surroundings: Surroundings

    @property
    def text(self) -> str:
        return words(self.out)

    def messages(self, name: str) -> list[bytes]:
        """Of a mailbox, as a stranger reads them."""
        reader = mailbox.Maildir(self.place / "Mail" / name, create=False)
        return [reader.get_bytes(key) for key in reader.keys()]  # noqa: SIM118


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    base = tmp_path_factory.mktemp("demo")
    (base / "tmp").mkdir()
    around = Surroundings(base / "tmp")
    done = subprocess.run(
        [*PROGRAM, "demo", "--keep", "a new/directory"],
        cwd=base,
        env=around.environment,
        capture_output=True,
        timeout=LAST_S,
        check=False,
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return Kept(base / "a new/directory", done.stdout.decode(), around)


def test_every_step_is_shown_in_order_and_plain_in_a_pipe(kept: Kept) -> None:
    titles = [f"{number}. {title}" for number, (title, _) in enumerate(STEPS, 1)]
    assert [line for line in kept.out.splitlines() if line in titles] == titles
    assert "\x1b" not in kept.out
    wide = [line for line in kept.out.splitlines() if len(line) > 80]
    assert [line for line in wide if str(kept.place) not in line] == []


@pytest.mark.parametrize(
    "told",
    [
        r"IMAP 127\.0\.0\.1:\d+ 62 messages in 13 mailboxes",
        r"POP3 127\.0\.0\.1:\d+ 5 messages in a maildrop",
        r"\$ maild sync demo: 62 new \(\d+\.\d s\) isp: 5 new \(\d+\.\d s\) [\d,]+ ms from the command to its end",
        r"62 messages by IMAP and 5 by POP3, \d\d kB, all durable",
        r"Verified: the 62 messages here are those on the IMAP server, equal in every octet",
        r"\$ maild run & [\d,]+ ms until the daemon is there and can be asked",
        r"[\d,]+ ms until it has looked at everything and the server pushes, by (NOTIFY|IDLE)",
        r"[\d,]+ ms from the delivery on the server to a readable file, in Mail/demo/INBOX/new",
        r"[\d,]+ ms until a message that another client has answered is marked so here",
        r"[\d,]+ ms until one that another client has deleted is gone here",
        r"its name ends in :2,S [\d,]+ ms from there until it is \\Seen on the server",
        r"\$ maild sendmail -t < .*letter\.eml'? [\d,]+ ms the ",
        r"[\d,]+ ms the command has returned 0: the message is durable in the outbox",
        r"[\d,]+ ms the SMTP server has accepted it for both recipients",
        r"[\d,]+ ms it is back, by push: a readable file in Mail/demo/INBOX/new",
        r"[\d,]+ ms its copy is in Gesendet, here and on the server",
        r"it was sent once, and is in Gesendet exactly once",
        r"\$ maild sync isp isp: 1 new",
        r"leave_on_server = true: all 6 messages stay on the server",
        r"\$ maild status demo IMAP, idle, pushed by (NOTIFY|IDLE), last sync \d+ s ago 13 mailboxes, 64 messages",
        r"isp POP3, idle, polled, last sync \d+ s ago 1 mailbox, 6 messages outbox: empty daemon: pid \d+",
        r"[\d,]+ ms until the daemon has ended by itself, with exit status 0",
        r"Verified once more, all 64 messages of IMAP and all of POP3\.",
        r"Familie Großeltern: 2 messages, 1 new Gesendet: 3 messages",
        r"All was as it should be\. The demo took \d+\.\d s, of which [\d,]+ ms for a first sync",
        r"[\d,]+ ms until the same message, sent over SMTP, is back in INBOX by push",
        r"With your own mail .* maild account add .* maild check .* maild sync .* maild run",
    ],
)
def test_what_was_promised_is_told(kept: Kept, told: str) -> None:
    assert re.search(told, kept.text), kept.out


def test_what_to_look_at_is_told_with_its_path(kept: Kept) -> None:
    assert f"$ export MAILD_CONFIG='{kept.place}/maild.toml'\n" in kept.out
    assert f"$ mutt -f '{kept.place}/Mail/demo/INBOX'\n" in kept.out
    assert f"$ maild -c '{kept.place}/maild.toml' status\n" in kept.out
    shown = "".join(f"       {line}".rstrip() + "\n" for line in (kept.place / "maild.toml").read_text().splitlines())
    assert shown in kept.out


def test_the_directory_holds_a_real_config_for_its_owner_only(kept: Kept) -> None:
    inside = {path.name: stat.S_IMODE(path.stat().st_mode) for path in kept.place.iterdir()}
    assert sorted(inside) == ["Mail", "letter.eml", "lock", "maild.log", "maild.toml", "password", "state"]
    assert {inside[name] for name in ("maild.toml", "password", "letter.eml")} == {0o600}
    accounts = config.load(kept.place / "maild.toml").accounts
    assert accounts["demo"].maildir == kept.place / "Mail/demo"
    assert accounts["demo"].smtp is not None
    assert accounts["isp"].pop3 is not None


def test_the_password_is_shown_and_logged_nowhere(kept: Kept) -> None:
    password = (kept.place / "password").read_text().strip()
    assert len(password) >= 12
    log = (kept.place / "maild.log").read_text()
    assert '"daemon.stopped"' in log
    assert password not in kept.out + log


def test_the_maildir_is_what_was_on_the_server_and_what_came(kept: Kept) -> None:
    store = sample_store()
    for there in store.mailboxes:
        if there.name not in ("INBOX", "Gesendet"):
            assert Counter(kept.messages(f"demo/{there.name}")) == Counter(lf(m.raw) for m in there), there.name
    before = Counter(lf(message.raw) for message in store.mailbox("INBOX"))
    inbox = Counter(kept.messages("demo/INBOX"))
    assert (before - inbox).total() == 1  # another client has deleted it
    new, back = sorted(inbox - before, key=lambda octets: b"Message-ID: <new-1@" not in octets)
    assert b"Message-ID: <new-1@maild.example>" in new
    assert back.startswith(b"Return-Path: <erika@example.org>\nReceived: ")
    (copy,) = Counter(kept.messages("demo/Gesendet")) - Counter(lf(m.raw) for m in store.mailbox("Gesendet"))
    assert back.endswith(copy)
    assert copy.endswith(b"\n\n.\nAuch ein Punkt am Zeilenanfang.\n")
    assert copy.count(b"Message-ID: <") == copy.count(b"Date: ") == 1


def test_the_flags_of_both_sides_are_in_the_names(kept: Kept) -> None:
    cur = [path.name.partition(":2,")[2] for path in (kept.place / "Mail/demo/INBOX/cur").iterdir()]
    before = Counter("R" for m in sample_store().mailbox("INBOX") if "\\Answered" in m.flags)
    assert sum("R" in letters for letters in cur) == before["R"] + 1
    read = [m for m in mailbox.Maildir(kept.place / "Mail/demo/INBOX", create=False) if "S" in m.get_flags()]
    seen_before = sum("\\Seen" in m.flags for m in sample_store().mailbox("INBOX"))
    assert len(read) == seen_before - 1 + 1  # one of them was deleted, a new one read


def test_the_maildrop_came_once_and_the_sent_message_too(kept: Kept) -> None:
    here, there = Counter(kept.messages("isp/INBOX")), Counter(map(lf, maildrop_samples()))
    assert (there - here).total() == 0
    (sent,) = here - there
    assert sent in kept.messages("demo/INBOX")


def test_what_is_kept_can_still_be_asked(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", str(kept.place / "maild.toml"), "status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["daemon"] is None
    mailboxes = told["accounts"]["demo"]["mailboxes"]
    assert {"/".join(levels) for levels in MAILBOXES} | {"INBOX"} == set(mailboxes)
    assert sum(one["messages"] for one in mailboxes.values()) == 64
    assert told["outbox"] == {"queued": 0, "held": 0, "deferred": 0, "uncertain": 0, "failed": 0}


def test_beside_the_kept_directory_nothing_is_left(kept: Kept) -> None:
    kept.surroundings.assert_nothing_is_left()
    assert [path.name for path in kept.place.parent.parent.iterdir() if path.name != "tmp"] == ["a new"]


def test_on_a_terminal_in_colours_and_nothing_kept(surroundings: Surroundings) -> None:
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [*PROGRAM, "demo"], env=surroundings.environment, stdin=terminal, stdout=terminal, stderr=terminal
    ) as running:
        os.close(terminal)
        octets = b""
        with suppress(OSError):  # EIO: the last one has closed the terminal
            while chunk := os.read(master, 4096):
                octets += chunk
        os.close(master)
        assert running.wait(LAST_S) == 0
    out = octets.decode().replace("\r\n", "\n")
    plain = ESCAPE.sub("", out)
    assert "\x1b" not in plain
    assert "\x1b[32m   Verified" in out
    assert "All of it is removed now." in plain
    assert "maild demo --keep ~/maild-demo" in plain
    assert "All was as it should be." in plain
    assert [line for line in plain.splitlines() if len(line) > 80 and str(surroundings.temporary) not in line] == []
    surroundings.assert_nothing_is_left()


# it ends before its end


@pytest.mark.parametrize(
    ("number", "status", "options"),
    [(signal.SIGINT, 130, ()), (signal.SIGTERM, 130, ("-v",)), (None, 141, ())],
    ids=["Ctrl-C", "SIGTERM", "nobody reads"],
)
def test_ended_while_the_daemon_runs_it_leaves_nothing(
    surroundings: Surroundings, number: signal.Signals | None, status: int, options: tuple[str, ...]
) -> None:
    with subprocess.Popen(
        [*PROGRAM, *options, "demo"], env=surroundings.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        for line in running.stdout:
            if b"until the daemon is there" in line:
                break
        assert any(" run " in f"{command} " for command in surroundings.processes())
        if number is None:
            running.stdout.close()
        else:
            running.send_signal(number)
        told = running.stderr.read().decode()
        assert running.wait(LAST_S) == status, told
    if options:
        assert '"event": "daemon.stopped"' in told
    else:
        assert told == ""
    surroundings.assert_nothing_is_left()


def test_a_signal_while_it_cleans_up_leaves_nothing_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cleanup, calls = tempfile.TemporaryDirectory.cleanup, []

    def interrupted(directory: tempfile.TemporaryDirectory[str]) -> None:
        calls.append(directory.name)
        if len(calls) == 1:
            raise KeyboardInterrupt
        cleanup(directory)

    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", interrupted)
    with pytest.raises(KeyboardInterrupt), places.opened_place(None) as place:
        (place / "file").write_text("")
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


def test_other_signals_end_it_as_ctrl_c_does_unless_they_are_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), demo._other_ends_as_by_ctrl_c():
            signal.raise_signal(signal.SIGHUP)  # as under nohup
            assert signal.getsignal(signal.SIGTERM) is not before[0]
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before[0]
    finally:
        signal.signal(signal.SIGHUP, before[1])


# in this process: which directories it takes, and what makes it fail


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files, while the demo runs in this process; logging is put back as it was."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(auth, "_read_so_far", set())
    for name in ("MAILD_CONFIG", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "STATE_DIRECTORY", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    root, wire = logging.getLogger(), logging.getLogger("aioimaplib.aioimaplib")
    before = (root.level, root.handlers.copy(), wire.level, wire.handlers.copy(), wire.propagate)
    yield temporary
    structlog.reset_defaults()
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    wire.setLevel(before[2])
    wire.handlers[:] = before[3]
    wire.propagate = before[4]


@pytest.fixture
def earlier(kept: Kept, tmp_path: Path) -> Path:
    """The directory of an earlier demo, of this test's own."""
    return shutil.copytree(kept.place, tmp_path / "earlier", symlinks=True)


@pytest.mark.usefixtures("here")
def test_a_directory_with_something_in_it_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "Mail").mkdir(parents=True)
    (mine / "Mail/letter").write_text("dear")
    assert main(["demo", "--keep", str(mine)]) == 1
    out, err = capsys.readouterr()
    hint = "name a new directory"
    assert err == f"maild: {mine} is not empty, and not the directory of an earlier demo; {hint}\n"
    assert out == ""
    assert [path.relative_to(mine) for path in mine.rglob("*")] == [Path("Mail"), Path("Mail/letter")]


def test_an_earlier_demo_is_replaced(earlier: Path) -> None:
    with places.opened_place(earlier) as place:
        places.remove_earlier(place)
    left = sorted(str(path.relative_to(earlier)) for path in earlier.rglob("*"))
    assert left == ["Mail", "lock", "maild.toml", "password", "state", "state/lock"]


@pytest.mark.parametrize("addition", ["file", "symlink", "other config"])
def test_what_somebody_added_to_an_earlier_demo_is_not_removed(earlier: Path, addition: str) -> None:
    match addition:
        case "file":
            (earlier / "notes").write_text("mine")
        case "symlink":
            (earlier / "Mail").rename(earlier.parent / "elsewhere")
            (earlier / "Mail").symlink_to(earlier.parent / "elsewhere")
        case _:
            (earlier / "maild.toml").write_text("[maild]\n")
    before = sorted(earlier.rglob("*"))
    with pytest.raises(LocalError, match="not the directory of an earlier demo"), places.opened_place(earlier):
        pass
    assert sorted(earlier.rglob("*")) == before


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("held", [".", "state"], ids=["a demo", "a daemon on its config"])
def test_one_that_still_runs_is_not_replaced(capsys: pytest.CaptureFixture[str], earlier: Path, held: str) -> None:
    before = sorted(earlier.rglob("*"))
    with InstanceLock(earlier / held, "maild demo"):
        assert main(["demo", "--keep", str(earlier)]) == 1
    assert f"is in use by pid {os.getpid()} (maild demo" in capsys.readouterr().err
    assert sorted(earlier.rglob("*")) == before


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["a$HOME", "a\nb", "a\udcff"])
def test_a_directory_that_no_config_could_name(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    assert main(["demo", "--keep", str(tmp_path / name)]) == 1
    assert "cannot stand in a config, where $ begins a variable; name another directory" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


@pytest.mark.usefixtures("here")
def test_a_file_is_no_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--keep", str(tmp_path / "file")]) == 1
    assert f"maild: cannot create {tmp_path / 'file'}: File exists; " in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_without_a_place_for_temporary_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert main(["demo"]) == 1
    assert re.search(r"^maild: no temporary directory: .*; set TMPDIR, or .*--keep DIR$", capsys.readouterr().err)


Spoil = Callable[..., None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """`spoil("COMMAND", action)` makes the demo's server misbehave; `capabilities=` gives it fewer extensions."""

    def spoilt(*fault: str | Action, capabilities: frozenset[str] | None = None) -> None:
        class Spoilt(ImapServer):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, capabilities=capabilities)  # type: ignore[arg-type]
                if fault:
                    self.faults.add(*fault, times=None)  # type: ignore[arg-type]

        monkeypatch.setattr(servers, "ImapServer", Spoilt)

    return spoilt


OTHER_OCTETS = Rewrite(lambda response: response.replace(b"Nur ein Text", b"Nun ein Text"))


def test_a_server_that_refuses_the_login_makes_it_fail(
    capsys: pytest.CaptureFixture[str], spoil: Spoil, here: Path
) -> None:
    spoil("AUTHENTICATE", Answer("NO [AUTHENTICATIONFAILED] who \x1b[1m are you"))
    assert main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert "maild: the demo failed at step 3, The first sync: maild sync ended with exit status 1: " in err
    assert "who" in err
    assert err.endswith("; with --keep DIR all would be left in DIR to look at\n")
    assert "All was as it should be" not in out
    assert "\x1b" not in err + out
    assert list(here.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_a_maildir_that_is_not_what_the_server_has_makes_it_fail(
    capsys: pytest.CaptureFixture[str], spoil: Spoil, tmp_path: Path
) -> None:
    spoil("UID FETCH", OTHER_OCTETS)
    place = tmp_path / "kept"
    assert main(["demo", "--keep", str(place)]) == 1
    out, err = capsys.readouterr()
    told = "mailbox INBOX is not here what it is there: 1 of 22 messages with other octets"
    assert f"maild: the demo failed at step 3, The first sync: {told}; all is left in {place}\n" == err
    assert "Verified" not in out
    files = [path for path in (place / "Mail/demo/INBOX").rglob("*") if path.is_file()]
    assert any(b"Nun ein Text" in path.read_bytes() for path in files)


def test_a_server_that_never_pushes_makes_it_fail_and_the_daemon_end(
    capsys: pytest.CaptureFixture[str], spoil: Spoil, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    spoil(capabilities=BARE)
    monkeypatch.setattr(stage, "PATIENCE_S", 1.0)
    assert main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"the demo failed at step 4, The daemon: not within 1 s: ", err)
    assert "\n5. " not in out
    assert list(here.iterdir()) == []
    assert Surroundings(here).processes() == []


def test_what_the_daemon_complained_of_is_told(tmp_path: Path) -> None:
    log = tmp_path / "maild.log"
    assert stage.trouble(log) == ""
    lines = [
        {"event": "watch.failed", "level": "warning", "reason": "no more watches"},
        {"event": "x", "level": "info"},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert stage.trouble(log) == "watch.failed no more watches"
    log.write_text(log.read_text() + "Traceback (most recent call last):\n  File …\nZeroDivisionError: oops\n")
    assert stage.trouble(log) == "ZeroDivisionError: oops"


# the screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch, no_color: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    screen = Screen()
    screen.say("Verified", "green")
    screen.time(1234.4, "until it was there")
    assert ("\x1b[32m   Verified" in terminal.getvalue()) == (not no_color)
    assert ESCAPE.sub("", terminal.getvalue()) == "   Verified\n    1,234 ms  until it was there\n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_a_server_says_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    output = stream()
    monkeypatch.setattr(sys, "stdout", output)
    screen = Screen()
    for tell in (screen.title, screen.say, screen.command, screen.show, lambda text: screen.time(1, text)):
        tell("a \x1b[2J [bold]:smile: \x9b1m b")
    lines = [line for line in ESCAPE.sub("", output.getvalue()).split("\n") if line]
    assert len(lines) == 5
    assert all(line.endswith(r"a \x1b[2J [bold]:smile: \x9b1m b") for line in lines)


@pytest.mark.parametrize(("columns", "widest"), [("10", 40), ("80", 80), ("300", 100)])
def test_paragraphs_fit_the_terminal_and_commands_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, widest: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    screen = Screen()
    for tell in (screen.title, screen.say, lambda text: screen.time(1, text)):
        tell("word " * 100)
    lines = capsys.readouterr().out.splitlines()
    assert widest - 6 < max(map(len, lines)) <= widest
    screen.command("maild " * 100)
    screen.show("maild " * 100)
    assert len(capsys.readouterr().out.splitlines()) == 2


# what comes next


def test_the_config_it_proposes_is_good_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "maild.toml").write_text(YOUR_CONFIG)
    account = config.load(tmp_path / "maild.toml").accounts["work"]
    assert account.imap is not None
    assert account.smtp is not None
    assert (account.maildir, account.imap.port, account.smtp.port) == (tmp_path / "home/Mail/work", 993, 465)
    assert len(YOUR_CONFIG.splitlines()) <= 12
