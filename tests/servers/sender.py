"""One account that only sends: its config, and the commands that its user would type."""

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
log_level = "{log_level}"
[accounts.work]
address = "me@example.org"
[accounts.work.smtp]
host = "{host}"
port = {port}
tls = "{tls}"
user = "{user}"
password = "{password}"
"""


def config_of_sender(
    root: Path,
    *,
    port: int,
    user: str,
    password: str,
    host: str = "127.0.0.1",
    tls: str = "none",
    ca_file: Path | None = None,
    log_level: str = "info",
) -> Path:
    """Write the config of account "work"; state and mail are to be below `root` too."""
    path = root / "maild.toml"
    text = CONFIG.format(root=root, host=host, port=port, tls=tls, user=user, password=password, log_level=log_level)
    path.write_text(text + (f'ca_file = "{ca_file}"\n' if ca_file else ""))
    path.chmod(0o600)
    return path


class Sender:
    """The account on a server with a certificate for `localhost`; config, state and mail are below `root`."""

    def __init__(self, root: Path, *, port: int, tls: str, ca_file: Path, password: str) -> None:
        self.root = root
        self._config = config_of_sender(
            root, host="localhost", port=port, tls=tls, ca_file=ca_file, user="jo", password=password
        )

    def run(self, *words: str, raw: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "maild", "-c", str(self._config), *words]
        return subprocess.run(command, input=raw, capture_output=True, check=False, env=dict(os.environ))

    def items(self) -> list[dict[str, Any]]:
        """What is in the outbox, as `maild outbox --json` tells it."""
        found = json.loads(self.run("outbox", "--json").stdout)
        assert isinstance(found, list)
        return found
