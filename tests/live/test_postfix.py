"""The outbox through Postfix as submission server, over TLS, logged in, to the server behind it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

from maild.testing.smtp import SmtpServer
from tests.servers.dovecot import Dovecot, DovecotMissing
from tests.servers.postfix import Postfix, PostfixMissing, dovecot_auth
from tests.servers.sender import Sender
from tests.servers.submission import serving, until_taken

pytestmark = [pytest.mark.live, pytest.mark.long]

ARRIVES_S = 60.0
REFUSED = "inline:{{nobody@x.example = 550 5.1.1 nobody here}, {later@x.example = 450 4.2.0 later}}"
SETTINGS = {
    "message_size_limit": "1000000",
    "smtpd_recipient_restrictions": f"check_recipient_access {REFUSED}, permit_sasl_authenticated, reject",
}


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with serving(SmtpServer()) as server:
        yield server


@pytest.fixture
def postfix(relay: SmtpServer) -> Iterator[Postfix]:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        auth = Path(directory) / "auth"
        try:
            with (
                Dovecot(settings=dovecot_auth(auth)),
                Postfix(relay.port, auth_socket=auth, settings=SETTINGS) as found,
            ):
                yield found
        except (DovecotMissing, PostfixMissing) as missing:
            pytest.skip(str(missing))


def sender_to(root: Path, postfix: Postfix, tls: str, password: str = Dovecot.password) -> Sender:
    port = postfix.implicit_port if tls == "implicit" else postfix.starttls_port
    return Sender(root, port=port, tls=tls, ca_file=postfix.ca_file, password=password)


def arrived(relay: SmtpServer, count: int) -> None:
    """Postfix passes on what it took a little later."""
    assert until_taken(relay, count, ARRIVES_S), f"{len(relay.journal)} of {count} messages arrived"


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_sent_through_postfix(tmp_path: Path, postfix: Postfix, relay: SmtpServer, tls: str) -> None:
    sender = sender_to(tmp_path, postfix, tls)
    for number in range(20):
        raw = f"To: r{number}@x.example, s@x.example\nSubject: {number}\n\n.dot\nrest\n".encode()
        assert sender.run("sendmail", "-t", "-N", "never", "-V", "an id", raw=raw).returncode == 0
    flushed = sender.run("outbox", "flush")
    assert (flushed.returncode, flushed.stdout, flushed.stderr) == (0, b"work: 40 sent\n", b"")
    arrived(relay, 20)
    got = {tuple(sorted(message.recipients)): message.octets for message in relay.journal}
    assert got.keys() == {(f"r{number}@x.example", "s@x.example") for number in range(20)}
    for octets in got.values():
        assert message_from_bytes(octets).get_payload() == ".dot\r\nrest\r\n"
    assert len(list((tmp_path / "Mail/work/Sent/cur").iterdir())) == 20
    assert sender.items() == []


def test_what_postfix_refuses(tmp_path: Path, postfix: Postfix, relay: SmtpServer) -> None:
    """Each recipient by itself, and the next message goes its way in the same session."""
    sender = sender_to(tmp_path, postfix, "implicit")
    sender.run("sendmail", "nobody@x.example", "later@x.example", "a@x.example", raw=b"Subject: x\n\n")
    sender.run("sendmail", "nobody@x.example", raw=b"Subject: y\n\n")
    sender.run("sendmail", "a@x.example", raw=b"Subject: big\n\n" + b"x" * 70 * 20_000)
    sender.run("sendmail", "b@x.example", raw=b"Subject: z\n\n")
    assert sender.run("outbox", "flush").returncode == 1
    arrived(relay, 2)
    assert sorted(message.recipients for message in relay.journal) == [("a@x.example",), ("b@x.example",)]
    states = {
        item["subject"]: {recipient["address"][0]: recipient["state"] for recipient in item["recipients"]}
        for item in sender.items()
    }
    assert states == {"x": {"n": "failed", "l": "deferred", "a": "sent"}, "y": {"n": "failed"}, "big": {"a": "failed"}}
    assert len(list((tmp_path / "Mail/work/INBOX/new").iterdir())) == 3


def test_a_wrong_password_keeps_the_message(tmp_path: Path, postfix: Postfix, relay: SmtpServer) -> None:
    sender = sender_to(tmp_path, postfix, "starttls", password="not that one")
    sender.run("sendmail", "a@x.example", raw=b"Subject: x\n\n")
    flushed = sender.run("outbox", "flush")
    assert flushed.returncode == 1
    assert b"refused to log in jo" in flushed.stderr
    (item,) = sender.items()
    assert (item["state"], item["attempts"]) == ("queued", 0)
    assert relay.journal == []
