"""The outline of a config says what the whole config says, and leaves what it cannot read to the validation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maild.config import load
from maild.config.outline import Outline, outline_of, read_outline
from maild.config.senders import read_senders
from maild.core.errors import ConfigError

SERVER = '{ host = "h.example", password_command = ["pass"] }'
ACCOUNT = f'[accounts.work]\naddress = "me@example.org"\nimap = {SERVER}\nsmtp = {SERVER}\n'
MORE = f"""\
[accounts.isp]
address = "me@isp.example"
maildir = "/srv/isp"
pop3 = {SERVER}
[accounts.list]
address = "me@list.example"
smtp = {SERVER}
"""
ENVIRON = {"HOME": "/home/me"}


def written(directory: Path, text: str, beside: str = "") -> Path:
    (directory / "accounts.d").mkdir()
    (directory / "accounts.d/more.toml").write_text(beside)
    (directory / "accounts.d/.hidden.toml").write_text("no TOML")
    file = directory / "maild.toml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("head", ["", '[maild]\nstate_dir = "~/state"\n'])
@pytest.mark.parametrize("environ", [ENVIRON, {**ENVIRON, "STATE_DIRECTORY": "/var/lib/maild:/other"}])
def test_it_says_what_the_config_says(tmp_path: Path, head: str, environ: dict[str, str]) -> None:
    file = written(tmp_path, head + ACCOUNT, MORE)
    outline = read_outline(file, environ)
    assert outline == outline_of(load(file, environ))
    assert list(outline.accounts.items()) == [("work", "imap"), ("isp", "pop3"), ("list", "smtp")]


def test_a_mistake_elsewhere_is_no_reason_to_tell_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, '[maild]\nlog_levle = "info"\nstate_dir = "/state"\n' + ACCOUNT)
    assert read_outline(file, ENVIRON) == Outline(Path("/state"), {"work": "imap"})


@pytest.mark.parametrize(
    ("text", "beside", "complaint"),
    [
        ("[accounts.work]\naddress =", "", "is not valid TOML"),
        ("", "", "account"),
        ("accounts = 1", "", "accounts"),
        ("[accounts]\nwork = 1", "", "accounts.work"),
        ('[accounts.work]\naddress = "me@example.org"', "", "accounts.work"),
        (ACCOUNT.replace("work", '"../work"'), "", "an account name is"),
        (ACCOUNT, ACCOUNT, "is already an account"),
        ("[maild]\nstate_dir = 1\n" + ACCOUNT, "", "maild.state_dir"),
    ],
)
def test_what_it_cannot_use_is_told_by_the_validation(tmp_path: Path, text: str, beside: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_outline(written(tmp_path, text, beside), ENVIRON)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        read_outline(tmp_path / "maild.toml", ENVIRON)


def test_accounts_that_cannot_be_listed_are_not_left_out_silently(tmp_path: Path) -> None:
    main = tmp_path / "maild.toml"
    main.write_text(ACCOUNT)
    (tmp_path / "accounts.d").write_text("no directory: one that may not be read is the same for root")
    with pytest.raises(ConfigError, match=r"accounts\.d: cannot be listed"):
        read_outline(main, ENVIRON)
    with pytest.raises(ConfigError, match=r"accounts\.d: cannot be listed"):
        read_senders(main, ENVIRON)


def test_a_state_dir_in_the_wrong_place_is_not_passed_over(tmp_path: Path) -> None:
    """The message would go into an outbox that is not the one that is meant."""
    with pytest.raises(ConfigError, match="state_dir: does not belong here but in"):
        read_senders(written(tmp_path, 'state_dir = "/state"\n' + ACCOUNT), ENVIRON)


def test_what_takes_long_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from maild.config.outline import read_outline\n"
        "read_outline(Path(sys.argv[1])); print('pydantic' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(written(tmp_path, ACCOUNT, MORE))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
