"""Each config in `bad_configs/` prints exactly the lines beside it, and no line of any shows a secret.

A case is NAME.toml, or a directory NAME with maild.toml and accounts.d; NAME.txt holds what must be said.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from maild.config import load
from maild.core.errors import ConfigError

CASES = Path(__file__).parent / "bad_configs"
NAMES = sorted(path.stem for path in CASES.glob("*.txt"))
ENVIRON = {"HOME": "/home/me"}
READABLE_BY_OTHERS = ("readable_password/readable_password.toml", "accounts_d_readable_password/accounts.d/home.toml")


def complaints(name: str, directory: Path) -> list[str]:
    """What `load` says about a case, whose files are copied so that their modes do not depend on the checkout."""
    if (CASES / name).is_dir():
        shutil.copytree(CASES / name, directory, dirs_exist_ok=True)
        main = Path("maild.toml")
    else:
        main = Path(f"{name}.toml")
        shutil.copy(CASES / main, directory)
    for file in directory.rglob("*.toml"):
        is_readable = f"{name}/{file.relative_to(directory)}" in READABLE_BY_OTHERS
        file.chmod(0o644 if is_readable else 0o600)
    with pytest.raises(ConfigError) as caught:
        load(main, ENVIRON)
    return caught.value.problems


@pytest.mark.parametrize("name", NAMES)
def test_bad_config_prints_exactly_this(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaints(name, tmp_path) == (CASES / f"{name}.txt").read_text().splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_no_complaint_shows_a_secret(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "hunter2" not in "\n".join(complaints(name, tmp_path))


def test_every_case_has_its_text() -> None:
    cases = {path.stem for path in CASES.iterdir() if path.suffix != ".txt"}
    assert cases == set(NAMES)
    assert len(NAMES) >= 30
