"""Sending with a real IMAP server beside it: one copy in Sent on both sides, and doubt settled by looking there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from maild.core.names import directory
from maild.testing.smtp import RESET, Accepted, SmtpServer
from tests.daemon.process import DaemonProcess, imap_account
from tests.daemon.waiting import until
from tests.live.conftest import started
from tests.servers.dovecot import Dovecot
from tests.servers.submission import serving

pytestmark = pytest.mark.live

SENT = "Gesendete Objekte"
SETTINGS = f"""\
namespace inbox {{
  mailbox Sent {{
    special_use =
  }}
  mailbox "{SENT}" {{
    special_use = \\Sent
    auto = create
  }}
}}
"""

Make = Callable[..., DaemonProcess]


@pytest.fixture(scope="module")
def mail() -> Iterator[Dovecot]:
    with started(settings=SETTINGS) as server:
        yield server


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with serving(SmtpServer(users={"jo": Dovecot.password})) as server:
        yield server


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return "".join(c if c.isalnum() else "-" for c in request.node.name)[:60].strip("-").lower()


@pytest.fixture
def make(tmp_path: Path, mail: Dovecot, relay: SmtpServer, user: str) -> Iterator[Make]:
    made: list[DaemonProcess] = []

    def build(layout: str = "nested", **smtp: Any) -> DaemonProcess:
        values = {
            "host": relay.host,
            "port": relay.port,
            "tls": "none",
            "user": "jo",
            "password": mail.password,
            **smtp,
        }
        lines = [f'layout = "{layout}"', imap_account(mail.host, mail.imap_port, user, mail.password)]
        lines += ["[accounts.{name}.smtp]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        made.append(DaemonProcess(tmp_path, {"work": "\n".join(lines)}))
        made[-1].write_config()
        return made[-1]

    yield build
    for daemon in made:
        daemon.kill()
        assert "Traceback" not in daemon.log, daemon.log


async def send(maild: DaemonProcess, subject: str) -> None:
    message = maild.directory / "message"
    message.write_text(f"To: b@x.example\nDate: Tue, 24 Nov 2026 10:00:00 +0100\nSubject: {subject}\n\nHello.\n")
    sent = await maild.run("sendmail", "-t", stdin=message)
    assert sent.returncode == 0, sent.stderr


async def run(maild: DaemonProcess, *words: str) -> str:
    ran = await maild.run(*words)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


async def is_empty(maild: DaemonProcess) -> bool:
    return await run(maild, "outbox") == "the outbox is empty\n"


def subjects_there(mail: Dovecot, user: str, mailbox: str = SENT) -> list[str]:
    told = mail.doveadm("-f", "tab", "fetch", "-u", user, "hdr.subject", "mailbox", mailbox, "all")
    return told.splitlines()[1:]


@pytest.mark.parametrize("layout", ["nested", pytest.param("maildir++", marks=pytest.mark.long)])
async def test_one_copy_in_the_mailbox_with_the_role(make: Make, mail: Dovecot, user: str, layout: str) -> None:
    maild = make(layout)
    await run(maild, "sync")
    where = str(directory((SENT,), layout))
    for number in (1, 2):
        await send(maild, f"Nr. {number}")
        await run(maild, "outbox", "flush")
        assert len(maild.files(where)) == number
        for _ in range(2):
            await run(maild, "sync")
            assert subjects_there(mail, user) == [f"Nr. {n}" for n in range(1, number + 1)]
            assert len(maild.files(where)) == number
    assert not (maild.maildir() / directory(("Sent",), layout)).exists()
    shutil.rmtree(maild.state_dir)  # everything is matched by content again
    await run(maild, "sync")
    assert (len(subjects_there(mail, user)), len(maild.files(where))) == (2, 2)


async def test_the_copy_is_carried_to_the_server_by_the_daemon(make: Make, mail: Dovecot, user: str) -> None:
    maild = make()
    maild.start()
    await maild.until_pushed()
    await send(maild, "Nr. 1")
    await until(lambda: subjects_there(mail, user) == ["Nr. 1"])
    assert len(maild.files(SENT)) == 1
    await maild.stop()


@pytest.mark.parametrize("by_daemon", [False, True], ids=["flush", "daemon"])
async def test_a_server_that_keeps_its_own_copies_is_noticed(
    make: Make, mail: Dovecot, relay: SmtpServer, user: str, by_daemon: bool
) -> None:
    """What it keeps is not octet by octet what was sent, and it is in no table."""

    def keep(message: Accepted) -> None:
        mail.import_messages(user, SENT, [(b"Received: from me\r\n" + message.octets, ("\\Seen",), 1_800_000_000)])

    maild = make()
    await run(maild, "sync")
    relay.deliver = keep
    if by_daemon:
        maild.start()
        await maild.until_pushed()
    for number in (1, 2):
        await send(maild, f"Nr. {number}")
        if not by_daemon:
            await run(maild, "outbox", "flush")
            await run(maild, "sync")
        await until(lambda count=number: len(maild.files(SENT)) == count)  # type: ignore[misc]
        await until(partial(is_empty, maild))
        assert subjects_there(mail, user) == [f"Nr. {n}" for n in range(1, number + 1)]
        assert all(b"Received: from me" in path.read_bytes() for path in maild.files(SENT))
    if by_daemon:
        await maild.stop()


@pytest.mark.parametrize("by_daemon", [False, True], ids=["flush", "daemon"])
async def test_what_the_server_kept_is_not_sent_again(
    make: Make, mail: Dovecot, relay: SmtpServer, user: str, by_daemon: bool
) -> None:
    maild = make(sent="none")
    relay.react("dot", RESET, times=2)
    if by_daemon:
        maild.start()
        await maild.until_pushed()
    await send(maild, "kept")
    await send(maild, "lost")

    async def states() -> dict[str, str]:
        return {item["subject"]: item["state"] for item in json.loads(await run(maild, "outbox", "--json"))}

    if not by_daemon:
        for _ in range(2):  # a session that was of no use is not opened again in the same drain
            assert (await maild.run("outbox", "flush")).returncode == 1

    async def are_doubted() -> bool:
        return await states() == {"kept": "uncertain", "lost": "uncertain"}

    await until(are_doubted)
    (kept,) = (message.octets for message in relay.taken if b"Subject: kept" in message.octets)
    mail.import_messages(user, SENT, [(b"Received: from me\r\n" + kept, (), 1_800_000_000)])
    await maild.run("outbox", "flush")

    async def is_settled() -> bool:
        return await states() == {"lost": "uncertain"}

    await until(is_settled)
    assert len(relay.taken) == 2
    if by_daemon:
        await maild.stop()
