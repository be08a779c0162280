"""The real daemon with a POP3 account on a real Dovecot: polled by its timer, kept over a restart, refused once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import corpus
from tests.daemon.process import DaemonProcess, imap_account
from tests.daemon.waiting import until
from tests.live.conftest import started
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def pop3_server() -> Iterator[Dovecot]:
    with started(pop3=True) as server:
        yield server


def daemon_of(directory: Path, server: Dovecot, user: str, *settings: str) -> DaemonProcess:
    lines = imap_account(server.host, server.pop3_port, user, Dovecot.password, *settings)
    return DaemonProcess(directory, {"work": lines.replace(".imap]", ".pop3]")})


def deliver(server: Dovecot, user: str, start: int, count: int) -> None:
    messages = list(corpus.small(start + count))[start:]
    server.import_messages(user, "INBOX", [one.imported() for one in messages])


async def test_new_mail_is_found_by_the_timer_and_once_only(pop3_server: Dovecot, tmp_path: Path) -> None:
    daemon = daemon_of(tmp_path, pop3_server, "timer", 'poll = "1s"')
    deliver(pop3_server, "timer", 0, 5)
    try:
        daemon.start()
        told = await daemon.until_account(lambda a: a["state"] == "idle")
        assert (told["protocol"], told["push"]) == ("pop3", "poll")
        deliver(pop3_server, "timer", 5, 3)
        await until(lambda: len(daemon.files("INBOX")) == 8)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait()
        deliver(pop3_server, "timer", 8, 1)
        daemon.start()
        await until(lambda: len(daemon.files("INBOX")) == 9)
        await daemon.until_account(lambda a: a["state"] == "idle")
        await daemon.stop()
        assert len({path.read_bytes() for path in daemon.files("INBOX")}) == len(daemon.files("INBOX")) == 9
    finally:
        daemon.kill()
    assert "Traceback" not in daemon.log
    assert Dovecot.password not in daemon.log


async def test_a_wrong_password_is_tried_once_until_it_is_another(pop3_server: Dovecot, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.touch(mode=0o600)
    secret.write_text("wrong\n")
    daemon = daemon_of(tmp_path, pop3_server, "refused", 'poll = "1s"')
    right = f'password = "{Dovecot.password}"'
    daemon.accounts["work"] = daemon.accounts["work"].replace(right, f'password_file = "{secret}"')
    deliver(pop3_server, "refused", 0, 2)
    try:
        daemon.start()
        told = await daemon.until_account(lambda a: a["state"] == "auth_rejected")
        assert "check user and password" in told["error"]
        ran = await daemon.run("sync")
        assert ran.returncode == 1
        tried = [line for line in pop3_server.log().splitlines() if "pop3-login" in line and "user=<timer>" not in line]
        assert len(tried) == 1, tried  # and after it not even a connection
        secret.write_text(f"{Dovecot.password}\n")
        await daemon.until_account(lambda a: a["state"] == "idle")
        assert len(daemon.files("INBOX")) == 2
        await daemon.stop()
    finally:
        daemon.kill()
    assert Dovecot.password not in daemon.log
