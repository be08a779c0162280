"""The private Dovecot: starts, takes mail, refuses wrong passwords, stops, and leaves nothing behind."""

from __future__ import annotations

import imaplib
import os
import poplib
import shutil
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.servers.append import Refused
from tests.servers.certificates import Authority
from tests.servers.dovecot import Dovecot, DovecotFailed, DovecotMissing

pytestmark = pytest.mark.live

WHEN = datetime(2024, 2, 29, 12, 34, 56, tzinfo=UTC)
RAW = b"Message-ID: <%d@test.example>\r\nSubject: gr\xc3\xbc\xc3\x9fe\r\n\r\nline\r\nlone \r here\r\n"


def start(**options: object) -> Dovecot:
    try:
        return Dovecot(**options)  # type: ignore[arg-type]
    except DovecotMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with start(pop3=True, lmtp=True) as server:
        yield server


def test_messages_arrive_with_flags_keywords_and_dates(server: Dovecot) -> None:
    messages = [(RAW % n, ["\\Seen", "$Forwarded"] if n % 2 else [], WHEN) for n in range(3)]
    assert server.import_messages("arrive", "INBOX", messages) == [1, 2, 3]
    session = server.connect("arrive")
    session.select("INBOX", readonly=True)
    _, answer = session.fetch("2", "(FLAGS INTERNALDATE BODY.PEEK[])")
    session.logout()
    assert isinstance(answer[0], tuple)
    facts, body = answer[0]
    assert body == RAW % 1
    assert b'INTERNALDATE "29-Feb-2024 12:34:56 +0000"' in facts
    assert b"\\Seen" in facts
    assert b"$Forwarded" in facts


def test_many_messages_come_in_several_batches(server: Dovecot) -> None:
    uids = server.import_messages("many", "Entwürfe/Ä & Ö", ((RAW % n, [], WHEN) for n in range(1234)))
    assert uids == list(range(1, 1235))
    assert server.doveadm("mailbox", "status", "-u", "many", "messages", "Entwürfe/Ä & Ö").endswith("messages=1234\n")


def test_mailboxes_are_made_once_and_filled_twice(server: Dovecot) -> None:
    for expected in ({"Sent": [1], "A/B": []}, {"Sent": [2], "A/B": []}):
        assert server.import_mailboxes("twice", {"Sent": [(RAW, [], None)], "A/B": []}) == expected


def test_special_use_is_announced(server: Dovecot) -> None:
    server.import_mailboxes("special", {"Sent": [], "Trash": []})
    session = server.connect("special")
    _, lines = session.list()
    session.logout()
    assert b'(\\HasNoChildren \\Sent) "/" Sent' in lines


def test_an_impossible_mailbox_is_refused_with_the_reason(server: Dovecot) -> None:
    with pytest.raises(Refused, match="NO"):
        server.import_messages("refused", "a//b", [])


def test_a_wrong_password_is_refused(server: Dovecot) -> None:
    session = imaplib.IMAP4(server.host, server.imap_port)
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        session.login("anybody", "wrong")
    session.logout()


def test_tls_both_ways_with_the_certificate_of_its_own_authority(server: Dovecot) -> None:
    context = Authority.trusting(server.ca_file)
    implicit = imaplib.IMAP4_SSL("localhost", server.imaps_port, ssl_context=context)
    assert implicit.login("tls", server.password)[0] == "OK"
    implicit.logout()
    upgraded = imaplib.IMAP4("localhost", server.imap_port)
    upgraded.starttls(context)
    assert upgraded.login("tls", server.password)[0] == "OK"
    upgraded.logout()


def test_extensions_are_as_dovecot_has_them(server: Dovecot) -> None:
    session = server.connect("extensions")
    offered = set(session.capability()[1][0].split())
    session.logout()
    assert {b"QRESYNC", b"NOTIFY", b"LIST-STATUS", b"LITERAL+", b"SPECIAL-USE", b"UIDPLUS"} <= offered
    assert b"COMPRESS=DEFLATE" not in offered


def test_lmtp_delivers_and_pop3_collects(server: Dovecot) -> None:
    with smtplib.LMTP(server.host, server.lmtp_port) as delivery:
        delivery.sendmail("a@test.example", ["pop"], RAW % 1)
    mailbox = poplib.POP3(server.host, server.pop3_port)
    mailbox.user("pop")
    mailbox.pass_(server.password)
    lines = mailbox.retr(1)[1]
    mailbox.quit()
    assert b"Message-ID: <1@test.example>" in lines


def test_doveadm_failures_are_told(server: Dovecot) -> None:
    with pytest.raises(DovecotFailed, match="nowhere"):
        server.doveadm("mailbox", "status", "-u", "jo", "messages", "nowhere")


def test_separator_format_compression_and_further_settings() -> None:
    with start(mail_format="sdbox", separator=".", compress=True, settings="imap_capability = +X-EXTRA") as server:
        assert server.import_messages("jo", "A.B", [(RAW, [], WHEN)]) == [1]
        session = server.connect("jo")
        offered = session.capability()[1][0].split()
        listed = session.list()[1]
        session.logout()
        assert {b"COMPRESS=DEFLATE", b"X-EXTRA"} <= set(offered)
        assert any(str(line).endswith('"." A.B\'') for line in listed)
        assert (server.mail_root / "jo" / "sdbox").is_dir()


def test_restart_keeps_mail_and_ports_and_stopping_leaves_nothing() -> None:
    with start() as server:
        server.import_messages("jo", "INBOX", [(RAW, [], WHEN)])
        session = server.connect("jo")
        port, pid, root = server.imap_port, server.pid, server.root
        server.restart()
        assert (server.imap_port, server.pid != pid) == (port, True)
        assert session.readline() == b"* BYE Server shutting down.\r\n"
        assert session.readline() == b""
        session.shutdown()
        assert server.import_messages("jo", "INBOX", [(RAW, [], WHEN)]) == [2]
        pid = server.pid
    assert not root.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_copied_store_serves_another_server(tmp_path: Path) -> None:
    with start(mail_format="sdbox") as first:
        first.import_messages("jo", "INBOX", [(RAW % n, [], WHEN) for n in range(5)])
        copy = tmp_path / "copy"
        copy.mkdir()
        first.copy_store(copy)
        first.import_messages("jo", "INBOX", [(RAW, [], WHEN)])
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents[:3]:  # pytest's directories are its user's only, Dovecot's mail user is another
        parent.chmod(0o711)
    with start(mail_format="sdbox", mail_root=copy) as second:
        assert second.import_messages("jo", "INBOX", [(RAW, [], WHEN)]) == [6]
    assert copy.is_dir()


def test_a_bad_setting_is_told_with_the_log() -> None:
    server = start(settings="mail_fsync = perhaps")
    with pytest.raises(DovecotFailed, match="Invalid value: perhaps"), server:
        pass
    assert not server.root.exists()


def test_a_taken_port_is_left_for_another() -> None:
    with start() as first:
        second = start()
        second.imap_port = first.imap_port
        with second:
            assert second.imap_port != first.imap_port


def test_a_missing_dovecot_is_told_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(DovecotMissing, match="apt-get install dovecot-imapd"):
        Dovecot()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_can_run_it(tmp_path: Path) -> None:
    code = (
        "from tests.servers.dovecot import Dovecot\n"
        "with Dovecot() as server:\n"
        "    print(server.import_messages('jo', 'INBOX', [(b'Subject: a\\r\\n\\r\\n', [], None)]), server.log())\n"
    )
    root = Path(__file__).parents[2]
    as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    if subprocess.run([*as_nobody, sys.executable, "-c", "import tests"], cwd=root, check=False).returncode:
        pytest.skip("the working tree cannot be read by others")
    ran = subprocess.run(
        [*as_nobody, sys.executable, "-B", "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert ran.stdout.startswith("[1]"), ran.stderr
