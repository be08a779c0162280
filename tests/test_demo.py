"""`maild demo`: what it shows, what it leaves, which directories it takes, and that what is wrong makes it fail."""

from __future__ import annotations

import io
import logging
import mailbox
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import structlog

from maild import config, demo
from maild.cli import main
from maild.local.lock import InstanceLock
from maild.remote import auth
from maild.testing.faults import Action, Answer, Rewrite
from maild.testing.imap import BARE, ImapServer
from maild.testing.samples import MAILBOXES, sample_store

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home and a directory for temporary files of the test's own; logging as it was."""
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


def words(text: str) -> str:
    """Without line ends and indentation, for texts that may be wrapped."""
    return " ".join(text.split())


Spoil = Callable[..., None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """`spoil("COMMAND", action)` makes the demo's server misbehave; `capabilities=` gives it fewer extensions."""

    def spoilt(*fault: str | Action, capabilities: Iterable[str] | None = None) -> None:
        class Spoilt(ImapServer):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, capabilities=capabilities)  # type: ignore[arg-type]
                if fault:
                    self.faults.add(*fault, times=None)  # type: ignore[arg-type]

        monkeypatch.setattr(demo, "ImapServer", Spoilt)

    return spoilt


# what it shows and leaves


def test_everything_is_shown_and_nothing_left(capsys: pytest.CaptureFixture[str], surroundings: Path) -> None:
    assert main(["demo"]) == 0
    out, err = capsys.readouterr()
    text = words(out)
    assert err == ""
    for number, (title, _) in enumerate(demo.STEPS, 1):
        assert f"\n{number}. {title}\n" in out
    assert "62 messages in 13 mailboxes: INBOX, Entwürfe," in text
    for levels in MAILBOXES:
        assert "/".join(levels) in text
    assert re.search(r"^       address = \"erika@example.org\"$", out, re.MULTILINE)
    assert re.search(r"62 messages pulled in \d+ ms, 6\d kB over [1-4] connections?,", text)
    assert "Verified: the 62 messages here are those on the server, equal in every octet" in text
    assert re.search(r"in \d+ ms: 3 pulled, 4 flag changes, 2 deleted here. 11 mailboxes had not changed", text)
    assert "Verified again, all 63 messages." in text
    assert re.search(r"with \d commands in \d+ ms", text)
    assert '\n       LIST "" "*" RETURN (' in out
    assert re.search(r"Familie +Großeltern: 2 messages, 1 new +Gesendet", text)
    assert "maild demo --keep ~/maild-demo" in text
    assert "maild check" in text
    assert "maild sync" in text
    assert list(surroundings.iterdir()) == []


def test_the_password_is_not_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--keep", str(tmp_path / "kept")]) == 0
    password = (tmp_path / "kept/password").read_text().strip()
    assert len(password) >= 12
    assert password not in capsys.readouterr().out


def test_a_kept_directory_holds_a_maildir_and_a_real_config(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, surroundings: Path
) -> None:
    place = tmp_path / "a new/directory"
    assert main(["demo", "--keep", str(place)]) == 0
    out = capsys.readouterr().out
    root = place / "Mail/demo"
    assert f"mutt -f '{root}/INBOX'\n" in out
    assert f"cat '{place}/maild.toml'\n" in out
    assert sorted(path.name for path in place.iterdir()) == ["Mail", "maild.toml", "password", "state"]
    assert {stat.S_IMODE((place / name).stat().st_mode) for name in ("maild.toml", "password")} == {0o600}
    account = config.load(place / "maild.toml").accounts["demo"]
    assert (account.maildir, account.imap is not None and account.imap.tls) == (root, "none")
    assert "".join(f"       {line}".rstrip() + "\n" for line in (place / "maild.toml").read_text().split("\n")) in out
    assert list(surroundings.iterdir()) == []


def test_the_maildir_is_what_the_server_had_at_the_end(tmp_path: Path) -> None:
    assert main(["demo", "--keep", str(tmp_path / "kept")]) == 0
    root = tmp_path / "kept/Mail/demo"
    store = sample_store()
    for there in store.mailboxes:
        if there.name not in ("INBOX", "日本語"):
            here = mailbox.Maildir(root / there.name, create=False)
            wanted = sorted(message.raw.replace(b"\r\n", b"\n") for message in there)
            assert sorted(map(here.get_bytes, here.keys())) == wanted, there.name
    inbox = mailbox.Maildir(root / "INBOX", create=False)
    octets = {inbox.get_bytes(key) for key in inbox.keys()}  # noqa: SIM118
    before = {message.raw.replace(b"\r\n", b"\n") for message in store.mailbox("INBOX")}
    assert len(before - octets) == 2
    assert sorted(re.findall(rb"Message-ID: <(new-\d)", b"".join(octets - before))) == [b"new-1", b"new-2"]
    later = [message for message in inbox if "F" in message.get_flags() and "S" not in message.get_flags()]
    assert any(set("abcdefghijklmnopqrstuvwxyz") & set(message.get_flags()) for message in later)
    assert "$Later" in (root / "INBOX/dovecot-keywords").read_text()


@pytest.mark.parametrize("keep", [False, True])
def test_as_a_program_of_its_own(tmp_path: Path, surroundings: Path, keep: bool) -> None:
    arguments = ["--keep", "kept"] if keep else []
    done = subprocess.run(
        [sys.executable, "-m", "maild", "demo", *arguments],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(surroundings), "PYTHONPATH": str(Path(demo.__file__).parent.parent)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    text = done.stdout.decode()
    assert "\x1b" not in text
    assert "All was as it should be." in text
    assert "日本語: 5 messages" in text
    assert (tmp_path / "kept/Mail/demo/INBOX/cur").is_dir() == keep
    assert f"mutt -f {tmp_path}/kept/Mail/demo/INBOX" in text or not keep
    assert list(surroundings.iterdir()) == []


def test_verbose_logs_every_step_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-v", "demo"]) == 0
    out, err = capsys.readouterr()
    assert '"account.finished"' in err
    assert "account.finished" not in out


# on a terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch, no_color: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["demo"]) == 0
    text = terminal.getvalue()
    assert ("\x1b[32m   Verified" in text) == (not no_color)
    assert "   Verified again, all 63 messages.\n" in ESCAPE.sub("", text)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_a_server_says_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    output = stream()
    monkeypatch.setattr(sys, "stdout", output)
    screen = demo.Screen()
    for tell in (screen.title, screen.say, screen.show):
        tell("a \x1b[2J [bold]:smile: \x9b1m b")
    lines = ESCAPE.sub("", output.getvalue()).split("\n")
    assert [line.strip() for line in lines if line] == [r"a \x1b[2J [bold]:smile: \x9b1m b"] * 3


# which directories it takes


def test_a_directory_with_something_in_it_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "mine"
    (place / "Mail").mkdir(parents=True)
    (place / "Mail/letter").write_text("dear")
    assert main(["demo", "--keep", str(place)]) == 1
    out, err = capsys.readouterr()
    hint = "name a new directory"
    assert err == f"maild: {place} is not empty, and not the directory of an earlier demo; {hint}\n"
    assert out == ""
    assert [path.relative_to(place) for path in place.rglob("*")] == [Path("Mail"), Path("Mail/letter")]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    assert main(["demo", "--keep", str(tmp_path / "kept")]) == 0
    assert (tmp_path / "kept/Mail/demo/INBOX").is_dir()


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "kept"
    assert main(["demo", "--keep", str(place)]) == 0
    (left_over,) = (place / "Mail/demo/Spam/cur").iterdir()
    left_over.rename(left_over.with_name("moved"))
    first = (place / "maild.toml").read_text()
    assert main(["demo", "--keep", str(place)]) == 0
    assert not left_over.with_name("moved").exists()
    assert (place / "maild.toml").read_text() != first


@pytest.mark.parametrize("addition", ["file", "symlink", "other config"])
def test_what_somebody_added_to_an_earlier_demo_is_not_removed(tmp_path: Path, addition: str) -> None:
    place = tmp_path / "kept"
    assert main(["demo", "--keep", str(place)]) == 0
    match addition:
        case "file":
            (place / "notes").write_text("mine")
        case "symlink":
            (place / "Mail").rename(tmp_path / "elsewhere")
            (place / "Mail").symlink_to(tmp_path / "elsewhere")
        case _:
            (place / "maild.toml").write_text("[maild]\n")
    before = sorted(place.rglob("*"))
    assert main(["demo", "--keep", str(place)]) == 1
    assert sorted(place.rglob("*")) == before


def test_a_demo_that_still_runs_is_not_replaced(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "kept"
    assert main(["demo", "--keep", str(place)]) == 0
    before = sorted(place.rglob("*"))
    with InstanceLock(place / "state", "maild demo"):
        assert main(["demo", "--keep", str(place)]) == 1
    assert f"{place / 'state'} is in use by pid {os.getpid()} (maild demo" in capsys.readouterr().err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("name", ["a$HOME", "a\nb", "a\udcff"])
def test_a_directory_that_no_config_could_name(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    assert main(["demo", "--keep", str(tmp_path / name)]) == 1
    assert "cannot stand in a config, where $ begins a variable; name another directory" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_a_file_is_no_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--keep", str(tmp_path / "file")]) == 1
    assert f"maild: cannot create {tmp_path / 'file'}: File exists; " in capsys.readouterr().err


# when something is wrong


FAULTS: list[tuple[str, Action, str]] = [
    (
        "UID FETCH",
        Rewrite(lambda response: response.replace(b"Nur ein Text", b"Nun ein Text")),
        "mailbox INBOX is not here what it is there: 1 of 22 messages with other octets",
    ),
    (
        "UID FETCH",
        Rewrite(lambda response: response.replace(b"-2026 ", b"-2025 ") if b"Gewinnspiel" in response else response),
        "mailbox Spam is not here what it is there: 1 of 1 messages with another date",
    ),
    (
        "UID FETCH",
        Rewrite(lambda response: response.replace(b"$Paid", b"$Open")),
        "mailbox Rechnungen/2026 is not here what it is there: 7 of 9 messages with other flags or keywords",
    ),
    (
        "UID FETCH",
        Rewrite(lambda response: b"" if b"Gewinnspiel" in response else response),
        "the sync counted pulled: 61 instead of 62",
    ),
    ("LIST", Rewrite(lambda response: b"" if b"Spam" in response else response), "the sync counted pulled: 61"),
    ("AUTHENTICATE", Answer("NO [AUTHENTICATIONFAILED] who \x1b[1m are you"), "the sync failed: "),
]


@pytest.mark.parametrize(("command", "action", "told"), FAULTS)
def test_a_server_that_does_wrong_makes_it_fail(
    capsys: pytest.CaptureFixture[str], spoil: Spoil, surroundings: Path, command: str, action: Action, told: str
) -> None:
    spoil(command, action)
    assert main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert f"maild: the demo failed: {told}" in err
    assert err.endswith("; with --keep DIR all would be left in DIR to look at\n")
    assert "Verified" not in out
    assert "All was as it should be" not in out
    assert "\x1b" not in err
    assert list(surroundings.iterdir()) == []


def test_what_failed_is_left_to_look_at(capsys: pytest.CaptureFixture[str], spoil: Spoil, tmp_path: Path) -> None:
    spoil("UID FETCH", FAULTS[0][1])
    assert main(["demo", "--keep", str(tmp_path / "kept")]) == 1
    assert capsys.readouterr().err.endswith(f"; all is left in {tmp_path / 'kept'}\n")
    files = [path for path in (tmp_path / "kept/Mail/demo/INBOX").rglob("*") if path.is_file()]
    assert any(b"Nun ein Text" in path.read_bytes() for path in files)


def test_a_third_sync_that_opens_a_mailbox_is_a_failure(capsys: pytest.CaptureFixture[str], spoil: Spoil) -> None:
    spoil(capabilities=BARE)
    assert main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert "Verified again" in out
    assert "nothing had changed, and yet the third sync opened a mailbox: SELECT" in err


# what comes next


def test_the_config_it_proposes_is_good_and_short(tmp_path: Path) -> None:
    (tmp_path / "maild.toml").write_text(demo.YOUR_CONFIG)
    account = config.load(tmp_path / "maild.toml").accounts["work"]
    assert account.imap is not None
    assert (account.maildir, account.imap.port) == (tmp_path / "home/Mail/work", 993)
    assert len(demo.YOUR_CONFIG.splitlines()) <= 12
