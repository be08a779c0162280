"""Arguments and exit statuses, `maild check`, and how fast it starts. `sync` and `demo` are stood in for."""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import maild
from maild.cli import main, plainly_said
from maild.commands import options
from maild.commands.options import all_options
from maild.core.errors import ConfigError, LocalError, MaildError, NoPermission

GOOD = """\
[accounts.work]
address = "me@example.org"
[accounts.work.imap]
host = "imap.example.org"
password_command = ["pass", "mail/work"]
compress = "on"

[accounts.isp]
address = "me@isp.example"
maildir = "/srv/isp"
layout = "maildir++"
[accounts.isp.pop3]
host = "pop.isp.example"
tls = "starttls"
user = "me"
password_command = ["pass", "mail/isp"]
[accounts.isp.smtp]
host = "smtp.isp.example"
"""

BAD = """\
[accounts.work]
adress = "me@example.org"
imap = { host = "imap.example.org", password_command = ["pass"] }
"""


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without a config, and the working directory where the tests write theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("MAILD_CONFIG", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


Stand = Callable[[argparse.Namespace], int]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """`maild sync` and `maild demo` only note what they were called with."""
    called: list[argparse.Namespace] = []
    stand_in(monkeypatch, lambda args: called.append(args) or 0)  # type: ignore[func-returns-value]
    return called


def stand_in(monkeypatch: pytest.MonkeyPatch, run: Stand) -> None:
    commands, sync, demo = ModuleType("maild.commands"), ModuleType("maild.commands.sync"), ModuleType("maild.demo")
    sync.run = demo.run = run  # type: ignore[attr-defined]
    commands.sync, commands.options = sync, options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "maild.commands", commands)
    monkeypatch.setitem(sys.modules, "maild.commands.sync", sync)
    monkeypatch.setitem(sys.modules, "maild.demo", demo)
    monkeypatch.setattr(maild, "demo", demo, raising=False)


def failing(error: BaseException) -> Stand:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


# arguments


def test_sync_gets_its_arguments(commands: list[argparse.Namespace]) -> None:
    assert main(["-v", "-c", "x.toml", "sync", "--dry-run", "--json", "work", "home/INBOX"]) == 0
    (args,) = commands
    assert (args.verbose, args.config, args.dry_run, args.json) == (True, Path("x.toml"), True, True)
    assert args.targets == ["work", "home/INBOX"]


def test_sync_without_arguments(commands: list[argparse.Namespace]) -> None:
    assert main(["sync"]) == 0
    (args,) = commands
    assert (args.verbose, args.config, args.dry_run, args.json, args.targets) == (False, None, False, False, [])


@pytest.mark.parametrize(("arguments", "keep"), [([], None), (["--keep", "dir"], Path("dir"))])
def test_demo_gets_its_arguments(commands: list[argparse.Namespace], arguments: list[str], keep: Path | None) -> None:
    assert main(["demo", *arguments]) == 0
    assert commands[0].keep == keep


@pytest.mark.parametrize("status", [0, 1, 75])
def test_exit_status_of_a_command_is_passed_on(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    stand_in(monkeypatch, lambda args: status)
    assert main(["sync"]) == status


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["snc"], "maild: argument COMMAND: invalid choice: 'snc' (choose from"),
        (["--nothing"], "maild: unrecognized arguments: --nothing"),
        (["check", "extra"], "maild: unrecognized arguments: extra"),
        (["check", "-c", "x"], "maild: unrecognized arguments: -c x; -c and -v stand before the command"),
        (["-c"], "maild: argument -c/--config: expected one argument"),
        (["sync", "--dry"], "maild: unrecognized arguments: --dry"),
        (["demo", "--keep"], "maild demo: argument --keep: expected one argument"),
    ],
)
def test_wrong_usage_is_64(capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str) -> None:
    assert main(arguments) == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: maild ")
    assert complaint in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["snc"], '(did you mean "sync"?)'),
        (["account", "ad"], '(did you mean "add"?)'),
        (["outbox", "lits"], '(did you mean "list"?)'),
        (["sync", "--dryrun"], "unrecognized arguments: --dryrun\n"),
        (["sync", "-v"], "unrecognized arguments: -v; -c and -v stand before the command\n"),
        (["\x1b[31m"], r"invalid choice: '\x1b[31m'"),
    ],
)
def test_wrong_usage_says_what_may_be_meant(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert main(arguments) == 64
    assert complaint in capsys.readouterr().err


def test_no_command_shows_the_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert "first steps:" in err


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["check", "-h"], ["sync", "--help"], ["demo", "-h"]])
def test_help_goes_to_standard_output(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: maild ")
    assert err == ""


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    for command in ("demo", "account", "sync", "run", "doctor"):
        assert f"\n    {command} " in said
        assert f"\n  maild {command} " in said
    assert max(map(len, said.splitlines())) < 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"maild {maild.__version__}\n", "")


# ends


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NoPermission("cannot write /srv/x: Permission denied"), 77),
        (LocalError("cannot write /srv/x: No space left on device"), 1),
        (ConfigError(["maild.toml: cannot be read: Permission denied"], is_denied=True), 77),
        (ConfigError(["maild.toml:1: accounts: must be a table"]), 78),
    ],
)
def test_no_permission_is_77(monkeypatch: pytest.MonkeyPatch, error: MaildError, status: int) -> None:
    stand_in(monkeypatch, failing(error))
    assert main(["sync"]) == status


def test_a_config_that_may_not_be_read_is_77(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: object, **options: object) -> object:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    (tmp_path / "maild.toml").write_text(GOOD)
    monkeypatch.setattr(Path, "open", refuse)
    for command in (["check"], ["check", "--json"], ["status"], ["doctor"], ["account", "list"]):
        assert main(["-c", "maild.toml", *command]) == 77, command


def test_bad_config_found_by_a_command_is_78(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, failing(ConfigError(["a.toml:1: x: is wrong", "a.toml:2: \x1by: is wrong"])))
    assert main(["sync"]) == 78
    assert capsys.readouterr() == ("", "a.toml:1: x: is wrong\na.toml:2: \\x1by: is wrong\n")


def test_other_errors_are_one_line_and_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, failing(LocalError("the disk is full\x1b[2J", "make room")))
    assert main(["sync"]) == 1
    assert capsys.readouterr() == ("", "maild: the disk is full\\x1b[2J; make room\n")


def test_interruption_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, failing(KeyboardInterrupt()))
    assert main(["sync"]) == 130
    assert capsys.readouterr() == ("", "")


def maild_process(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    root = Path(maild.__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen([sys.executable, "-m", "maild", *arguments], env=environ, **options)


@pytest.mark.parametrize("arguments", [["-c", "maild.toml", "check", "--json"], ["--help"]])
def test_reader_that_has_gone_is_no_reason_for_a_traceback(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "maild.toml").write_text(GOOD)
    reading, writing = os.pipe()
    os.close(reading)
    with maild_process(*arguments, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def redirected(directory: Path, redirection: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """maild with a small config, as a shell starts it with that redirection; HOME is in the directory."""
    (directory / "maild.toml").write_text(GOOD)
    words = [
        "sh",
        "-c",
        f'exec "$@" {redirection}',
        "sh",
        sys.executable,
        "-m",
        "maild",
        "-c",
        "maild.toml",
        *arguments,
    ]
    environ = {**os.environ, "PYTHONPATH": str(Path(maild.__file__).parents[1]), "HOME": str(directory)}
    return subprocess.run(words, env=environ, cwd=directory, capture_output=True, check=False)


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", [["check"], ["status"], ["outbox", "list"], ["account", "list"]])
def test_standard_streams_that_are_closed_change_nothing(tmp_path: Path, command: list[str], redirection: str) -> None:
    said = redirected(tmp_path, redirection, *command)
    assert (said.returncode, said.stderr) == (0, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["check"], ["status", "--json"], ["outbox", "list"]])
def test_standard_output_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], unbuffered: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    said = redirected(tmp_path, ">/dev/full", *command)
    assert (said.returncode, said.stderr) == (1, b"maild: cannot write to standard output: No space left on device\n")


def test_name_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "maild.toml").write_text(GOOD.replace('user = "me"', 'user = "日本"'))
    environ = {**os.environ, "PYTHONPATH": str(Path(maild.__file__).parents[1]), "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "maild", "-c", "maild.toml", "check"]
    said = subprocess.run(command, env=environ, capture_output=True, check=True)
    assert b"POP3, \\u65e5\\u672c at" in said.stdout


# check


def test_check_of_a_good_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "maild.toml").write_text(GOOD)
    assert main(["-c", "maild.toml", "check"]) == 0
    out, err = capsys.readouterr()
    assert out == (
        "work: IMAP, me@example.org at imap.example.org:993 (implicit TLS); Maildir /home/me/Mail/work\n"
        "isp: POP3, me at pop.isp.example:110 (STARTTLS) and SMTP, me at smtp.isp.example:465 (implicit TLS); "
        "Maildir /srv/isp\n"
        "config ok\n"
    )
    assert err == ""


def test_check_of_a_bad_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "maild.toml").write_text(BAD)
    assert main(["-c", "maild.toml", "check"]) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        'maild.toml:1: accounts.work.address: is missing; for example address = "me@example.org"\n'
        'maild.toml:2: accounts.work.adress: is not a key that maild knows (did you mean "address"?)\n'
    )


def test_check_json_of_a_good_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "maild.toml").write_text(GOOD)
    assert main(["-c", "maild.toml", "check", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    assert document["ok"] is True
    assert document["file"] == "maild.toml"
    assert document["errors"] == []
    assert document["accounts"] == [
        {
            "name": "work",
            "address": "me@example.org",
            "maildir": "/home/me/Mail/work",
            "layout": "nested",
            "imap": {"host": "imap.example.org", "port": 993, "user": "me@example.org"},
        },
        {
            "name": "isp",
            "address": "me@isp.example",
            "maildir": "/srv/isp",
            "layout": "maildir++",
            "pop3": {"host": "pop.isp.example", "port": 110, "user": "me"},
            "smtp": {"host": "smtp.isp.example", "port": 465, "user": "me"},
        },
    ]


def test_check_json_of_a_bad_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "maild.toml").write_text(BAD)
    assert main(["-c", "maild.toml", "check", "--json"]) == 78
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    assert (document["ok"], document["file"], document["accounts"]) == (False, "maild.toml", [])
    assert document["errors"][1] == {
        "file": "maild.toml",
        "line": 2,
        "key": "accounts.work.adress",
        "message": 'is not a key that maild knows (did you mean "address"?)',
    }


def test_check_json_without_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("maild.config.places.SYSTEM_CONFIG", tmp_path / "none.toml")
    assert main(["check", "--json"]) == 78
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["file"]) == (False, None)
    (error,) = document["errors"]
    assert (error["file"], error["line"], error["key"]) == ("/home/me/.config/maild/maild.toml", None, "")
    assert error["message"].startswith("there is no config; looked at")


def test_check_finds_the_config_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "named.toml").write_text(GOOD)
    monkeypatch.setenv("MAILD_CONFIG", str(tmp_path / "named.toml"))
    assert main(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(tmp_path / "named.toml")


# start


def imported_by(*arguments: str) -> set[str]:
    code = f"import sys; from maild.cli import main; main({list(arguments)!r}); print(*sys.modules, file=sys.stderr)"
    environ = {**os.environ, "PYTHONPATH": str(Path(maild.__file__).parents[1])}
    said = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    return set(said.stderr.splitlines()[-1].split())


def test_version_imports_nothing_big() -> None:
    big = {"pydantic", "structlog", "asyncio", "anyio", "rich", "tomllib", "json", "ssl", "sqlite3", "maild.config"}
    assert imported_by("--version") & big == set()


@pytest.mark.parametrize("command", ["sync", "status"])
def test_what_asks_a_daemon_imports_nothing_big_before_it_knows_that_none_runs(command: str) -> None:
    code = f"import sys, maild.cli, maild.commands.{command}; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    big = {"pydantic", "structlog", "asyncio", "anyio", "rich", "ssl", "sqlite3", "maild.config.files"}
    assert set(said.stdout.split()) & (big | {"argparse", "dataclasses", "inspect", "shutil"}) == set()


@pytest.mark.parametrize(
    "words",
    [
        "sync",
        "sync --json",
        "sync work home/INBOX",
        "sync --json work",
        "sync work home --json",
        "-c x.toml sync",
        "--config x.toml sync --json",
        "status",
        "status --json",
        "-c x.toml status work --json",
    ],
)
def test_what_is_said_plainly_is_what_argparse_makes_of_it(words: str) -> None:
    plain = plainly_said(words.split())
    assert plain is not None
    assert vars(plain) == vars(all_options().parse_args(words.split()))


@pytest.mark.parametrize(
    "words",
    [
        "",
        "-c",
        "-c x.toml",
        "-c --json sync",
        "-v sync",
        "--config=x.toml sync",
        "sync --dry-run",
        "sync --send",
        "sync -- --json",
        "sync -h",
        "sync --jso",
        "sync work --json home",
        "sync --json work --json",
        "status --watch",
        "status -c x.toml",
        "check --json",
        "run",
        "syn",
    ],
)
def test_what_is_not_said_plainly_is_left_to_argparse(words: str) -> None:
    assert plainly_said(words.split()) is None


def test_check_imports_nothing_that_connects(tmp_path: Path) -> None:
    (tmp_path / "maild.toml").write_text(GOOD)
    imported = imported_by("-c", "maild.toml", "check")
    assert "maild.config" in imported
    assert imported & {"structlog", "anyio", "asyncio", "rich", "ssl", "sqlite3", "maild.remote"} == set()


def fastest_s(*arguments: str, runs: int = 5) -> float:
    """The least CPU time of several runs: one thread that waits for nothing takes as long where nothing else runs."""
    spent = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with maild_process(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            assert process.wait() == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spent)


def test_version_is_fast() -> None:
    assert fastest_s("--version") < 0.060


def test_check_of_ten_accounts_is_fast(tmp_path: Path) -> None:
    account = GOOD.partition("\n\n")[0] + "\n"
    (tmp_path / "maild.toml").write_text("".join(account.replace("work", f"n{number}") for number in range(10)))
    assert fastest_s("-c", "maild.toml", "check") < 0.400
