"""Each thing that goes wrong is one clear line that says what to do, and nothing is lost by it."""

from __future__ import annotations

import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.live.client import Client
from tests.live.conftest import started
from tests.live.test_pull import imported
from tests.servers.certificates import Authority
from tests.servers.proxy import FaultProxy

pytestmark = pytest.mark.live

CORPUS = 600


def filled(client: Client, count: int = CORPUS, octets: int = 3000) -> Counter[bytes]:
    """Put messages on the server; what must lie in the Maildir in the end."""
    filler = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abc\r\n" * (octets // 63)
    messages = [(raw + filler, flags, date) for raw, flags, date in (imported(n) for n in range(count))]
    client.server.import_messages(client.user, "INBOX", messages)
    return Counter(raw.replace(b"\r\n", b"\n") for raw, _, _ in messages)


# -- killed


def killed_many_times(client: Client, kills: int) -> None:
    """Kill passes at random moments, each after so many octets have come, and let one come to its end."""
    expected = filled(client)
    random = Random(4711)
    with FaultProxy(client.server.imap_port) as proxy:
        client.port = proxy.port
        total = sum(map(len, expected))
        for _ in range(kills):
            killed_after(client, proxy, random.randrange(1, total // 8))
            whole = expected.keys()
            if (client.maildir / "INBOX" / "cur").exists():
                assert all(path.read_bytes() in whole for path in client.files()), "half a message"
        kept = len(client.files())
        before = proxy.stats().octets_to_client
        client.sync()
        moved = proxy.stats().octets_to_client - before
    client.port = client.server.imap_port
    assert client.everything() == expected
    average = total / CORPUS
    assert moved < (CORPUS - kept) * average * 1.2 + CORPUS * 400, (moved, kept, total)
    assert client.sync().startswith("work: nothing new")


def test_killed_ten_times(client: Client) -> None:
    killed_many_times(client, 10)


def killed_after(client: Client, proxy: FaultProxy, octets: int) -> None:
    """Start a pass and kill it when so many octets have come; it may have ended before."""
    goal = proxy.stats().octets_to_client + octets
    with client.start() as process:
        proxy.wait_for(lambda p: p.stats().octets_to_client >= goal or process.poll() is not None)
        process.kill()
        process.communicate()
    proxy.wait_for(lambda p: p.open_connections() == 0)  # or what the server still sends to the killed is counted later


@pytest.mark.long
def test_killed_fifty_times(client: Client) -> None:
    killed_many_times(client, 50)


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk(client: Client, small_disk: Path) -> None:
    expected = filled(client, 800, 5000)
    client.maildir = small_disk / "Mail"
    error = client.fail()
    assert "No space left on device" in error
    assert "make room" in error
    assert str(client.maildir) in error
    assert 0 < len(client.files()) < 800
    assert all(path.read_bytes() in expected for path in client.files()), "half a message"
    assert list((client.maildir / "INBOX" / "tmp").iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    client.sync()
    assert client.everything() == expected
    assert client.sync().startswith("work: nothing new")


# -- wrong settings, each one line


def test_a_wrong_password(client: Client) -> None:
    client.password = "wrong horse"
    error = client.fail()
    assert f"refused to log in {client.user}" in error
    assert "check user and password" in error
    assert client.server.log().count("auth failed, 1 attempts") <= 2


def test_a_host_that_does_not_exist(client: Client) -> None:
    client.host, client.tls = "imap.does-not-exist.invalid", "implicit"
    error = client.fail()
    assert "imap.does-not-exist.invalid cannot be found" in error
    assert "check the spelling of host" in error


def test_a_closed_port(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client.port = listener.getsockname()[1]
    error = client.fail()
    assert f"127.0.0.1:{client.port}" in error
    assert "check host, port and the network" in error


def test_plain_text_where_tls_is_expected(client: Client) -> None:
    client.tls, client.host = "implicit", "localhost"
    error = client.fail()
    assert "TLS with localhost" in error
    assert 'use tls = "starttls"' in error


@pytest.mark.parametrize(
    ("kind", "reason", "hint"),
    [
        ("expired", "its certificate has expired", "operator has to renew it"),
        ("wrong_name", "its certificate is for another", "use as host a name that the certificate holds"),
        ("self_signed", "certificate is self-signed", "tls_fingerprint"),
    ],
)
@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_a_bad_certificate(client: Client, tmp_path: Path, kind: str, reason: str, hint: str, tls: str) -> None:
    authority = Authority(tmp_path / "authority")
    with started(certificate=getattr(authority, kind)()) as server:
        client.server, client.tls, client.host = server, tls, "localhost"
        client.port = server.imaps_port if tls == "implicit" else server.imap_port
        client.settings = f'ca_file = "{authority.ca_file}"'
        error = client.fail()
        assert reason in error
        assert hint in error
        assert "Login" not in server.log()


def test_starttls_that_is_not_offered(client: Client) -> None:
    with started(settings="ssl = no") as server:
        client.server, client.tls, client.host, client.port = server, "starttls", "localhost", server.imap_port
        error = client.fail()
        assert "does not offer STARTTLS" in error
        assert "nothing was sent" in error


# -- the server goes away


def test_a_server_that_is_stopped_in_the_middle(client: Client) -> None:
    with started() as server:
        client.server = server
        expected = filled(client, 2000, 20_000)
        with FaultProxy(server.imap_port) as proxy:
            client.port = proxy.port
            process = client.start()
            proxy.wait_for(lambda p: p.stats().octets_to_client > 4_000_000)
            proxy.stall()
            server.stop()
            proxy.resume()
            _, err = process.communicate()
            assert process.returncode == 1
            assert len(err.splitlines()) == 1, err.decode()
            assert all(path.read_bytes() in expected for path in client.files()), "half a message"
            server.start()
            client.port = server.imap_port
            client.sync()
        assert client.everything() == expected
