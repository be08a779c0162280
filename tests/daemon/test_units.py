"""The systemd units: what they have to say, and what systemd's own tools say about them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
UNITS = {"maild.service": 2.0, "maild-system.service": 1.5}  # the highest exposure that `security` may find


def settings(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / unit).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS)
def test_keys(unit: str) -> None:
    found = settings(unit)
    assert found["Type"] == ["notify"]  # notify-reload is unknown to systemd 252
    assert found["ExecStart"][0].endswith("/maild run")
    assert found["ExecReload"] == ["kill -HUP $MAINPID"]
    assert found["RestartPreventExitStatus"] == ["78"]
    assert found["Restart"] == ["on-failure"]
    assert int(found["WatchdogSec"][0]) >= 30
    assert int(found["TimeoutStopSec"][0]) > 10
    assert found["UMask"] == ["0077"]
    assert "network-online.target" not in (SYSTEMD / unit).read_text()
    assert {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"} == set(found["RestrictAddressFamilies"][0].split())


def test_the_system_unit_has_a_user_state_and_secrets_of_its_own() -> None:
    found = settings("maild-system.service")
    assert (found["DynamicUser"], found["StateDirectory"]) == (["yes"], ["maild"])
    assert found["LoadCredential"][0].startswith("mail:/etc/maild/")


@pytest.mark.parametrize("unit", UNITS)
def test_every_group_of_hardening_has_its_reason(unit: str) -> None:
    hardening = (SYSTEMD / unit).read_text().split("# -- What it may do.")[1]
    assert sum(line.startswith("#") for line in hardening.splitlines()) >= 6


@pytest.mark.live
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_to_complain_about(unit: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: apt-get install systemd")
    program = tmp_path / "maild"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit
    text = re.sub(r"^ExecStart=\S+", f"ExecStart={program}", (SYSTEMD / unit).read_text(), flags=re.MULTILINE)
    copy.write_text(text)
    scope = ["--user"] if unit == "maild.service" else []
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}

    def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = ["systemd-analyze", *scope, *arguments, str(copy)]
        return subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)

    verified = analyze("verify")
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    judged = analyze("security", "--offline=true", f"--threshold={UNITS[unit] * 10:.0f}")
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", judged.stdout)
    assert found is not None, judged.stderr
    assert float(found[1]) <= UNITS[unit]
