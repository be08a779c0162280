"""The outbox through Dovecot's submission service, over TLS, logged in, to the server behind it."""

from __future__ import annotations

from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

from maild.testing.smtp import SmtpServer
from tests.servers.dovecot import DovecotMissing
from tests.servers.sender import Sender
from tests.servers.submission import DovecotSubmission, serving


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with serving(SmtpServer()) as server:
        yield server


@pytest.fixture
def submission(relay: SmtpServer) -> Iterator[DovecotSubmission]:
    try:
        service = DovecotSubmission(relay)
    except DovecotMissing as missing:
        pytest.skip(str(missing))
    with service:
        yield service


def sender_to(root: Path, submission: DovecotSubmission, tls: str, password: str | None = None) -> Sender:
    dovecot = submission.dovecot
    port = submission.submissions_port if tls == "implicit" else submission.submission_port
    return Sender(root, port=port, tls=tls, ca_file=dovecot.ca_file, password=password or dovecot.password)


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_sent_through_dovecot(tmp_path: Path, submission: DovecotSubmission, relay: SmtpServer, tls: str) -> None:
    sender = sender_to(tmp_path, submission, tls)
    for number in range(20):
        raw = f"To: r{number}@x.example, s@x.example\nSubject: {number}\n\n.dot\nrest\n".encode()
        assert sender.run("sendmail", "-t", raw=raw).returncode == 0
    flushed = sender.run("outbox", "flush")
    assert (flushed.returncode, flushed.stdout, flushed.stderr) == (0, b"work: 40 sent\n", b"")
    got = {message.recipients: message.octets for message in relay.journal}
    assert got.keys() == {(f"r{number}@x.example", "s@x.example") for number in range(20)}
    for octets in got.values():  # Dovecot puts a Received field before it
        assert message_from_bytes(octets).get_payload() == ".dot\r\nrest\r\n"
    assert len(list((tmp_path / "Mail/work/Sent/cur").iterdir())) == 20
    assert sender.items() == []


def test_what_dovecot_and_the_server_behind_it_refuse(
    tmp_path: Path, submission: DovecotSubmission, relay: SmtpServer
) -> None:
    sender = sender_to(tmp_path, submission, "implicit")
    relay.react("rcpt", "550 5.1.1 nobody here", when="nobody@")
    relay.react("rcpt", "451 4.3.0 later", when="later@")
    sender.run("sendmail", "nobody@x.example", "later@x.example", "a@x.example", raw=b"Subject: x\n\n")
    sender.run("sendmail", "a@x.example", raw=b"Subject: big\n\n" + b"x" * 70 * 20_000)
    assert sender.run("outbox", "flush").returncode == 1
    states = {r["address"]: r["state"] for item in sender.items() for r in item["recipients"] if item["subject"] == "x"}
    assert states == {"nobody@x.example": "failed", "later@x.example": "deferred", "a@x.example": "sent"}
    (big,) = (item for item in sender.items() if item["subject"] == "big")
    assert big["state"] == "failed"
    assert len(list((tmp_path / "Mail/work/INBOX/new").iterdir())) == 2


def test_a_wrong_password_keeps_the_message(tmp_path: Path, submission: DovecotSubmission, relay: SmtpServer) -> None:
    sender = sender_to(tmp_path, submission, "implicit", password="not that one")
    sender.run("sendmail", "a@x.example", raw=b"Subject: x\n\n")
    flushed = sender.run("outbox", "flush")
    assert flushed.returncode == 1
    assert b"refused to log in jo" in flushed.stderr
    (item,) = sender.items()
    assert (item["state"], item["attempts"]) == ("queued", 0)
    assert relay.journal == []
