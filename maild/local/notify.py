"""What systemd is told: that we are ready, reload, stop, are alive (sd_notify(3)). Nothing where nobody listens."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

_STATUS_CHARACTERS = 200


class Notifier:
    """Datagrams to `$NOTIFY_SOCKET`. One that cannot be sent is lost: whoever supervises us notices by itself."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # the abstract name space (unix(7))
            self._address = "\0" + self._address[1:]
        self._status = ""
        micros, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        is_meant = self._address and micros.isdecimal() and pid in ("", str(os.getpid()))
        self.watchdog_s: float | None = int(micros) / 1e6 if is_meant else None

    def ready(self) -> None:
        """The start, or a reload, is done."""
        self._send("READY=1")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Everything that has to be is; the watchdog waits for this at least every `watchdog_s`."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`, sent when it is another than before."""
        line = "".join(c if c.isprintable() else " " for c in text)[:_STATUS_CHARACTERS]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)  # a listener that does not read must not hold us up
            sender.sendto(text.encode(), self._address)
