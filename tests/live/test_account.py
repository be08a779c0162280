"""`maild account add` and `maild doctor` with a real Dovecot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SecretScan
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
ADDRESS, RUN_S = "newcomer@example.org", 60.0


def run(home: Path, scan: SecretScan, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MAILD_"))}
    environ = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-m", "maild", *arguments],
        input=said,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
        env=environ,
    )
    scan.lines += [ran.stdout, ran.stderr]
    return ran


def test_from_an_address_to_mail(dovecot: Dovecot, tmp_path: Path, secret_scan: SecretScan) -> None:
    secret_scan.add(dovecot.password)
    dovecot.import_messages("newcomer", "INBOX", [(b"Subject: hello\r\n\r\nbody\r\n", (), 1_700_000_000)])
    server = ["--imap-host", "localhost", "--imap-port", str(dovecot.imaps_port), "--ca-file", str(dovecot.ca_file)]
    added = run(
        tmp_path,
        secret_scan,
        "account",
        "add",
        ADDRESS,
        *server,
        "--user",
        "newcomer",
        "--password-stdin",
        said=dovecot.password,
    )
    assert added.returncode == 0, added.stderr
    assert "Login for receiving works: newcomer at localhost" in added.stdout
    synced = run(tmp_path, secret_scan, "sync")
    assert synced.returncode == 0, synced.stderr
    assert len(list((tmp_path / "Mail/example/INBOX/new").iterdir())) == 1
    examined = run(tmp_path, secret_scan, "doctor", "--json")
    assert examined.returncode == 0, examined.stdout
    findings = json.loads(examined.stdout)["findings"]
    texts = {finding["area"]: finding["text"] for finding in findings}
    assert texts["imap login"].startswith("newcomer is logged in by ")
    assert texts["imap changes"].startswith("QRESYNC")
    assert any(finding["text"].startswith("Dovecot ") for finding in findings if finding["area"] == "imap quirk")
