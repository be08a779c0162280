"""What a real server has is what lies in the Maildir: octets, flags, keywords, dates, names."""

from __future__ import annotations

import hashlib
import ssl
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.bench import corpus
from tests.live.client import Client
from tests.live.conftest import started
from tests.servers.append import Message
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.live

WHEN_S = 1_600_000_000
KEYWORDS = ("$Forwarded", "$MDNSent", "Wichtig", "NonJunk", "$label1")
NAMES = (
    "Entwürfe",
    "Größe & Maß",
    "日本語",
    "🌻 Garten",
    "Rechnungen/2025/März",
    "cur",
    "new/tmp",
    "100%",
    "%2e%2e",
    "dovecot-keywords",
    "a b  c",
    'quote"back\\slash',
    "-rf *",
    "{12}",
    "(paren]",
    "&-",
    "A.B",
    "A/B",
)


def small(n: int) -> bytes:
    header = f"Message-ID: <live-{n}@test.example>\r\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?= {n}\r\n"
    return f"{header}\r\nZeile\r\nlone \r cr {n}\r\n".encode()


def imported(n: int, flags: tuple[str, ...] = ()) -> tuple[bytes, tuple[str, ...], datetime]:
    return small(n), flags, datetime.fromtimestamp(WHEN_S + n, UTC)


def test_ten_thousand_messages(client: Client) -> None:
    """Sizes of 2 KB and some of several MB; every octet, flag, keyword and date."""
    expected: Counter[tuple[bytes, frozenset[str], int]] = Counter()

    def messages() -> Iterator[Message]:
        for n, message in enumerate([*corpus.small(9_700), *corpus.mail(300)]):
            flags = (*message.flags, *([KEYWORDS[n % len(KEYWORDS)]] if n % 3 == 0 else []))
            raw, _, date = message.imported()
            expected[raw.replace(b"\r\n", b"\n"), frozenset(flags), int(date.timestamp())] += 1
            yield raw, flags, date

    client.server.import_messages(client.user, "INBOX", messages())
    assert client.sync().startswith("work: 10,000 new")
    assert client.facts() == expected
    assert client.sync().startswith("work: nothing new")
    client.server.doveadm("flags", "add", "-u", client.user, "\\Flagged Neu", "mailbox", "INBOX", "uid", "1:100")
    client.server.doveadm("expunge", "-u", client.user, "mailbox", "INBOX", "uid", "101:200")
    result = client.sync()
    assert "100 flag changes" in result
    assert "100 deleted here" in result
    assert sum(client.facts().values()) == 9_900


@pytest.mark.parametrize("layout", ["nested", "maildir++"])
def test_two_hundred_mailboxes(client: Client, layout: str) -> None:
    names = [*NAMES, *(f"Archiv/Jahr {n // 20}/Ordner {n}" for n in range(200 - len(NAMES)))]
    mailboxes = {name: [imported(1000 * n + i) for i in range(3)] for n, name in enumerate(names)}
    mailboxes["INBOX"] = [imported(999_000)]
    server = started(settings="namespace inbox {\n  location = sdbox:~/sdbox\n}")
    with server:
        client.server = server
        server.import_mailboxes(client.user, mailboxes)
        client.account = f'layout = "{layout}"'
        assert client.sync().startswith("work: 601 new")
        expected = Counter(raw.replace(b"\r\n", b"\n") for several in mailboxes.values() for raw, _, _ in several)
        assert client.everything() == expected
        directories = {p.parent.parent for p in client.maildir.rglob("*") if p.parent.name in {"new", "cur"}}
        assert len(directories) == 201
        assert client.sync().startswith("work: nothing new")
        assert client.everything() == expected


def test_separator_dot(client: Client) -> None:
    with started(separator=".") as server:
        client.server = server
        server.import_mailboxes(client.user, {"INBOX": [imported(1)], "Archiv.Größe.2025": [imported(2, ("\\Seen",))]})
        assert client.sync().startswith("work: 2 new")
        (path,) = client.files("Archiv/Größe/2025")
        assert path.read_bytes() == small(2).replace(b"\r\n", b"\n")
        assert client.sync().startswith("work: nothing new")


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_tls(client: Client, tls: str) -> None:
    client.server.import_messages(client.user, "INBOX", [imported(n) for n in range(50)])
    client.tls, client.host = tls, "localhost"
    client.port = client.server.imaps_port if tls == "implicit" else client.server.imap_port
    client.settings = f'ca_file = "{client.server.ca_file}"'
    assert client.sync().startswith("work: 50 new")
    assert client.sync().startswith("work: nothing new")


def test_a_pinned_certificate(client: Client, dovecot: Dovecot) -> None:
    client.server.import_messages(client.user, "INBOX", [imported(1)])
    pem = ssl.get_server_certificate((dovecot.host, dovecot.imaps_port))
    client.tls, client.port = "implicit", dovecot.imaps_port
    client.settings = f'tls_fingerprint = "sha256:{hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()}"'
    assert client.sync().startswith("work: 1 new")
    client.settings = f'tls_fingerprint = "sha256:{"0" * 64}"'
    assert "not the pinned one" in client.fail()


def test_uidvalidity_and_lost_state_move_nothing(client: Client, tmp_path: Path) -> None:
    client.server.import_messages(client.user, "INBOX", [imported(n, ("\\Seen",)) for n in range(300)])
    client.sync()
    before = client.facts()
    for path in client.state_dir.iterdir():
        path.unlink()
    assert client.sync().startswith("work: 300 on both sides already")
    assert client.facts() == before
