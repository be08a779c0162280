"""`config/maild.toml` is the documentation of every key: complete, valid, and its defaults are the real ones."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from maild.config import Config, load
from maild.config.schema import SECTIONS
from maild.core.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "config" / "maild.toml"
LINES = EXAMPLE.read_text().splitlines()
ENVIRON = {"HOME": "/home/me"}
DEFAULT = re.compile(r"^#(?=[a-z\[])(?!e\.g\. )")
EXAMPLE_ONLY = re.compile(r"^#e\.g\. ")


def uncommented(lines: list[str]) -> list[str]:
    """With the `#` of every default and every optional section taken away."""
    return [DEFAULT.sub("", line) for line in lines]


def loaded(directory: Path, lines: list[str]) -> Config:
    """The config without what depends on its own place and lines."""
    path = directory / "maild.toml"
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    config = load(path, ENVIRON)
    return replace(config, notes=(), accounts=dict(config.accounts))


FULL = uncommented(LINES)
DEFAULTS = [number for number, line in enumerate(LINES) if DEFAULT.match(line) and not line.startswith("#[")]
REQUIRED = [number for number in DEFAULTS if re.match(r"#(address|host|password_file) ", LINES[number])]
OPTIONAL = [number for number in DEFAULTS if number not in REQUIRED]
EXAMPLES = [number for number, line in enumerate(LINES) if EXAMPLE_ONLY.match(line)]


def section_of(number: int) -> tuple[str, ...]:
    """The header above a line."""
    headers = (match for line in FULL[number::-1] if (match := re.match(r"\[(.*)\]", line)))
    return tuple(next(headers)[1].split("."))


def test_it_is_good_as_it_stands(tmp_path: Path) -> None:
    assert list(loaded(tmp_path, LINES).accounts) == ["work"]


@pytest.mark.parametrize("number", OPTIONAL, ids=lambda number: f"{LINES[number].partition(' ')[0]}-{number + 1}")
def test_a_default_changes_nothing(tmp_path: Path, number: int) -> None:
    assert loaded(tmp_path, FULL[:number] + FULL[number + 1 :]) == loaded(tmp_path, FULL)


@pytest.mark.parametrize("number", REQUIRED, ids=lambda number: f"{LINES[number].partition(' ')[0]}-{number + 1}")
def test_the_other_lines_are_needed(tmp_path: Path, number: int) -> None:
    with pytest.raises(ConfigError):
        loaded(tmp_path, FULL[:number] + FULL[number + 1 :])


def test_defaults_of_what_is_on_change_nothing_either(tmp_path: Path) -> None:
    start = LINES.index("#[accounts.work.smtp]")
    assert loaded(tmp_path, uncommented(LINES[:start])) == loaded(tmp_path, LINES)


def test_every_key_is_documented_once() -> None:
    text = "\n".join(EXAMPLE_ONLY.sub("", line) for line in FULL)
    documented = keys(tomllib.loads(text))
    wanted = {
        (*place, key)
        for place, section in SECTIONS.items()
        for key in section.model_fields
        if place and "oauth2" not in place and key not in ("imap", "pop3", "smtp")
    }
    assert documented - {path for path in documented if "oauth2" in path[:-1]} == wanted


def test_every_key_of_oauth2_is_documented() -> None:
    text = "\n".join(EXAMPLE_ONLY.sub("", line) for line in FULL)
    pop3 = tomllib.loads(text)["accounts"]["isp"]["pop3"]
    assert set(pop3["oauth2"]) == set(SECTIONS["accounts", "*", "pop3", "oauth2"].model_fields)


def keys(table: dict[str, Any], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Key paths of values, account names as `*`."""
    found = set()
    for name, value in table.items():
        key = (*path, "*" if path == ("accounts",) else name)
        if isinstance(value, dict):
            found |= keys(value, key)
        if not isinstance(value, dict) or name == "oauth2":
            found.add(key)
    return found


@pytest.mark.parametrize("number", EXAMPLES, ids=lambda number: f"{LINES[number].split()[1]}-{number + 1}")
def test_an_example_is_valid_where_it_stands(number: int) -> None:
    place = section_of(number)
    pattern = tuple("*" if part in ("work", "isp") else part for part in place)
    values = tomllib.loads(EXAMPLE_ONLY.sub("", LINES[number]))
    if "oauth2" in values and len(values["oauth2"]) == 1:
        pattern, values = (*pattern, "oauth2"), values["oauth2"]
    required = {"host": "h.example", "address": "me@h.example", "provider": "p", "client_id": "c"}
    fields = SECTIONS[pattern].model_fields
    needed = {key: value for key, value in required.items() if key in fields and fields[key].is_required()}
    section = SECTIONS[pattern].model_validate({**needed, **values}, context=ENVIRON)
    assert section.model_fields_set >= values.keys()


def test_section_is_found_by_its_header() -> None:
    assert section_of(next(n for n in EXAMPLES if "on_change" in LINES[n])) == ("hooks",)
    assert section_of(next(n for n in EXAMPLES if "sent_mailbox" in LINES[n])) == ("accounts", "work", "smtp")


def test_what_maild_writes_itself_is_read_back(tmp_path: Path) -> None:
    """`tomli_w` of the parsed example means the same."""
    document = tomllib.loads("\n".join(FULL))
    assert loaded(tmp_path, tomli_w.dumps(document).splitlines()) == loaded(tmp_path, FULL)
