"""The manual pages and completions: as the program is now, complete, and of a form that their readers take."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maild.commands.manual import pages
from maild.config.schema import SECTIONS

CONFIG = Path(__file__).resolve().parents[2] / "config"
PAGES = pages((CONFIG / "maild.toml").read_text())


@pytest.mark.parametrize("name", PAGES)
def test_it_is_up_to_date(name: str) -> None:
    assert (CONFIG / name).read_text() == PAGES[name], "run `make man`"


def test_every_command_of_the_contract_is_there() -> None:
    shown = set(re.findall(r"^\.SS maild (.*)$", PAGES["man/maild.1"], re.MULTILINE))
    assert {"check", "sync", "status", "doctor", "sendmail", "outbox", "approve", "login", "demo"} <= shown
    assert {"account add", "account list", "account passwd", "account remove"} <= shown


def test_every_key_is_there() -> None:
    shown = set(re.findall(r"^\.B (\w+)$", PAGES["man/maild.toml.5"].replace("\\-", "-"), re.MULTILINE))
    keys = {name for place, section in SECTIONS.items() if place for name in section.model_fields}
    assert keys - shown == {"imap", "pop3", "smtp", "oauth2"}


@pytest.mark.parametrize("name", ["man/maild.1", "man/maild.toml.5"])
def test_roff_takes_it(name: str) -> None:
    if (groff := shutil.which("groff")) is None:
        pytest.skip("groff is not there")
    done = subprocess.run(
        [groff, "-Kutf8", "-man", "-Tutf8", "-ww", "-z"], input=PAGES[name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["acc"], {"account"}),
        (["account", "re"], {"remove"}),
        (["account", "add", "--imap-h"], {"--imap-host"}),
        (["doctor", "--j"], {"--json"}),
        (["-v", "stat"], {"status"}),
        (["outbox", "re"], {"release", "retry"}),
        (["sync", "w"], {"work"}),
        (["account", "passwd", ""], {"work", "list", "--help", "--smtp", "--password-stdin", "--no-test"}),
        (["sync", "list", "--dr"], {"--dry-run"}),  # an account of a command's name
    ],
)
def test_bash_completes(typed: list[str], offered: set[str], tmp_path: Path) -> None:
    config = tmp_path / "maild.toml"
    account = '[accounts.{0}]\naddress = "me@example.org"\nimap = {{ host = "h.example", password_command = ["x"] }}\n'
    config.write_text(account.format("work") + account.format("list"))
    words = " ".join(f"'{word}'" for word in ["maild", *typed])
    script = f'maild() {{ {sys.executable} -m maild "$@"; }}; source {CONFIG}/completions/maild.bash; '
    script += f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _maild; "
    environ = {**os.environ, "MAILD_CONFIG": str(config), "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", script + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True, env=environ
    )
    assert set(done.stdout.split()) == offered
