"""What stands around the code: pins, no addresses and no paths, the Makefile's help, the licence, the map."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import maild
from tests.conftest import SecretScan

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


def repository_files() -> list[Path]:
    """What git has or would take; of a copy without .git, everything but what tools make."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    no_outer_repository = {**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=no_outer_repository)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        made = re.compile(r"/(\.\w*cache|\.venv|\.git|\.hypothesis|__pycache__|build|dist|bench-results)/")
        paths = [path for path in ROOT.rglob("*") if not made.search(f"/{path.relative_to(ROOT)}")]
    return [path for path in paths if path.is_file()]


def occurrences(pattern: str) -> list[str]:
    """`file:line: text` of every line in the repository that the pattern matches."""
    wanted = re.compile(pattern)
    found = []
    for path in repository_files():
        lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
        found += [f"{path.relative_to(ROOT)}:{n}: {line}" for n, line in enumerate(lines, 1) if wanted.search(line)]
    return found


def pins() -> dict[str, str]:
    """name → release, as constraints.txt pins them."""
    found = re.findall(r"^([a-z0-9-]+)==(\S+) \\$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return dict(found)


def test_no_download_address_is_in_the_repository() -> None:
    # Whoever installs decides where packages come from. Put together here, so that this file does not name the hosts.
    hosts = [("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("deb", "debian", "org")]
    patterns = ["\\.".join(host) for host in hosts]
    patterns += [r"https?://\S*\.(?:whl|tar\.gz|tgz|zip|deb)\b", r"index[-_]url", r"find[-_]links", r"trusted[-_]host"]
    assert occurrences("|".join(patterns)) == []


def test_no_path_of_a_build_machine_is_in_the_repository() -> None:
    here = {str(ROOT), str(Path.home())} - {"/"}
    assert occurrences("|".join([r"(?<![\w.~])/(?:work|root)/", *(re.escape(f"{path}/") for path in here)])) == []


@pytest.mark.parametrize("line", ["see /elsewhere/x", "no match here"])
def test_occurrences_are_found_where_they_are(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text(f"first\n{line}\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert occurrences("/elsewhere/") == (["a.txt:2: see /elsewhere/x"] if "elsewhere" in line else [])


def test_constraints_hold_names_releases_and_hashes_only() -> None:
    pin, digest = r"[a-z0-9-]+==[\w.]+ \\", r"    --hash=sha256:[0-9a-f]{64}(?: \\)?"
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(f"{pin}|{digest}", line)] == []
    unhashed = [line for line, after in itertools.pairwise([*lines, ""]) if "==" in line and "--hash" not in after]
    assert unhashed == []


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_every_requirement_has_a_floor_and_is_pinned_inside_its_range(text: str) -> None:
    requirement = Requirement(text)
    assert ">=" in {specifier.operator for specifier in requirement.specifier}
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_build_backend_is_pinned_too() -> None:
    (backend,) = PYPROJECT["build-system"]["requires"]
    assert backend in PROJECT["optional-dependencies"]["dev"]


def test_make_help_names_every_target_and_variable() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    said = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^ +make ([a-z-]+) +\S", said.stdout, re.MULTILINE)) == targets
    assert set(re.findall(r"^ +([A-Z_]+)= +\S", said.stdout, re.MULTILINE)) == variables
    assert {"demo", "test", "test-long", "bench", "lint", "clean"} <= targets


@pytest.mark.parametrize("script", ["run", "venv", "debian"])
def test_ci_scripts_can_be_run(script: str) -> None:
    path = ROOT / ".ci" / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)


def test_licence_is_the_whole_gpl_3() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.split(maxsplit=6)[:6] == ["GNU", "GENERAL", "PUBLIC", "LICENSE", "Version", "3,"]
    assert [int(n) for n in re.findall(r"^  (\d+)\. [A-Z]", text, re.MULTILINE)] == list(range(18))
    assert "How to Apply These Terms to Your New Programs" in text
    assert PROJECT["license"] == "GPL-3.0-or-later"


def test_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == maild.__version__


def test_importing_maild_imports_nothing_else() -> None:
    code = "import json, sys; old = set(sys.modules); import maild; print(json.dumps(sorted(set(sys.modules) - old)))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == ["maild"]


def test_map_of_the_package_names_every_module_and_no_other() -> None:
    package = ROOT / "maild"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    on_map = modules_on_map(maild.__doc__ or "")
    assert sorted(modules - on_map) == [], "modules that the map in maild/__init__.py does not name"
    assert sorted(on_map - modules) == [], "modules on the map that are not there"


def modules_on_map(text: str) -> set[str]:
    """The modules that the map names: each stands in the folder (ends in "/") under or behind which it is named."""
    found: set[str] = set()
    folders: list[tuple[int, str]] = []
    for indent, line in re.findall(r"^( {4,})(\S.*)$", text, re.MULTILINE):
        while folders and folders[-1][0] >= len(indent):
            folders.pop()
        if folder := re.match(r"\w+/", line):
            folders.append((len(indent), folder[0]))
        found |= {"".join(name for _, name in folders) + module for module in re.findall(r"(?<![\w/])\w+\.py\b", line)}
    return {module for module in found if not module.endswith("__init__.py")}


USERS = (b"", b"x", b"me")  # so that the secret begins at each of the three places inside a base64 group


def log_by_standard_library(text: str) -> None:
    logging.getLogger("maild.test").warning("login with %s", text)


def log_by_structlog(text: str) -> None:
    log = structlog.wrap_logger(structlog.PrintLogger(), processors=[structlog.processors.JSONRenderer()])
    log.info("login.tried", facts=text)


@pytest.mark.parametrize("log", [log_by_standard_library, log_by_structlog])
@pytest.mark.parametrize("shown", [b"open sesame", *(base64.b64encode(user + b"\0open sesame") for user in USERS)])
def test_a_secret_in_the_log_is_found(secret_scan: SecretScan, log: Callable[[str], None], shown: bytes) -> None:
    secret_scan.add("open sesame")
    log("nothing to see")
    assert secret_scan.leaks() == []
    log(shown.decode())
    (leak,) = secret_scan.leaks()
    assert shown.decode() in leak
    secret_scan.lines.clear()  # or this test would fail for what it did
