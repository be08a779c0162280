"""One account that only sends, over TLS, and the commands that its user would type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CONFIG = """\
[maild]
state_dir = "{root}/state"
maildir = "{root}/Mail"
[accounts.work]
address = "me@example.org"
[accounts.work.smtp]
host = "localhost"
port = {port}
tls = "{tls}"
ca_file = "{ca_file}"
user = "jo"
password = "{password}"
"""


class Sender:
    """Config, state and mail are below `root`."""

    def __init__(self, root: Path, *, port: int, tls: str, ca_file: Path, password: str) -> None:
        self.root = root
        self._config = root / "maild.toml"
        self._config.write_text(CONFIG.format(root=root, port=port, tls=tls, ca_file=ca_file, password=password))
        self._config.chmod(0o600)

    def run(self, *words: str, raw: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "maild", "-c", str(self._config), *words]
        return subprocess.run(command, input=raw, capture_output=True, check=False, env=dict(os.environ))

    def items(self) -> list[dict[str, Any]]:
        """What is in the outbox, as `maild outbox --json` tells it."""
        found = json.loads(self.run("outbox", "--json").stdout)
        assert isinstance(found, list)
        return found
