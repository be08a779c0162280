"""A certificate of our own, shown to the server: read from its files, again when they change, and told apart."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from maild.config import Imap, NoSecret, Password
from maild.core.errors import TlsFailed
from maild.remote.imap.login import login
from maild.remote.net import tls_context
from maild.testing.dialogue import Dialogue
from tests.remote.conftest import Connect
from tests.servers.certificates import Authority, Certificate


def endpoint(authority: Authority, client: Certificate | None, port: int = 993) -> Imap:
    return Imap(
        host="localhost",
        port=port,
        user="user",
        secret=NoSecret(),
        auth="external",
        ca_file=authority.ca_file,
        client_cert=client and client.chain_file,
        client_key=client and client.key_file,
    )


def demanding(authority: Authority) -> ssl.SSLContext:
    """A server's context that takes nobody without a certificate."""
    context = authority.good().server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca_file)
    return context


async def test_external_logs_in_by_certificate(authority: Authority, connect: Connect, tmp_path: Path) -> None:
    script = (
        "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=EXTERNAL AUTH=PLAIN] hello\n"
        "C: $1 AUTHENTICATE EXTERNAL =\nS: $1 OK [CAPABILITY IMAP4rev1 IDLE] in\n"
    )
    async with Dialogue(script, tls=demanding(authority), implicit_tls=True) as server:
        session = await connect(endpoint(authority, authority.good(), server.port))
        await login(session, "user", "")
        assert session.has("IDLE")


def test_a_renewed_file_is_read_again(authority: Authority, tmp_path: Path) -> None:
    mine = Certificate(tmp_path / "me.pem", tmp_path / "me.key")
    issued = authority.good()
    shutil.copy(issued.chain_file, mine.chain_file)
    shutil.copy(issued.key_file, mine.key_file)
    before = tls_context(endpoint(authority, mine))
    assert tls_context(endpoint(authority, mine)) is before
    assert tls_context(endpoint(authority, None)) is not before
    fresh = tmp_path / "fresh"
    fresh.write_bytes(mine.chain_file.read_bytes() + b"\n")
    fresh.replace(mine.chain_file)
    assert tls_context(endpoint(authority, mine)) is not before


def test_a_renewed_ca_file_is_read_again(tmp_path: Path) -> None:
    first, second = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    trusted = Imap(host="h.example", port=993, user="u", secret=Password("p"), ca_file=first.ca_file)
    before = tls_context(trusted)
    shutil.copy(second.ca_file, first.ca_file)
    after = tls_context(trusted)
    assert before.get_ca_certs() != after.get_ca_certs()


def test_key_and_certificate_may_share_a_file(authority: Authority, tmp_path: Path) -> None:
    issued = authority.good()
    both = tmp_path / "both.pem"
    both.touch(mode=0o600)
    both.write_bytes(issued.key_file.read_bytes() + issued.chain_file.read_bytes())
    one = Imap(host="h.example", port=993, user="u", secret=NoSecret(), client_cert=both)
    assert tls_context(one) is tls_context(one)


@pytest.mark.parametrize("fault", ["absent", "no key", "garbage", "encrypted", "of another", "unreadable directory"])
def test_a_pair_that_cannot_be_used(fault: str, authority: Authority, tmp_path: Path) -> None:
    mine = Certificate(tmp_path / "me.pem", tmp_path / "me.key")
    issued = authority.good()
    shutil.copy(issued.chain_file, mine.chain_file)
    shutil.copy(issued.key_file, mine.key_file)
    match fault:
        case "absent":
            mine.chain_file.unlink()
        case "no key":
            mine.key_file.unlink()
        case "garbage":
            mine.key_file.write_text("nothing")
        case "encrypted":
            key = load_pem_private_key(mine.key_file.read_bytes(), None)
            mine.key_file.write_bytes(
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"swordfish"))
            )
        case "of another":
            shutil.copy(Authority(tmp_path / "other").good().key_file, mine.key_file)
        case _:
            mine = Certificate(tmp_path, tmp_path)
    with pytest.raises(TlsFailed, match=r"cannot use client_(cert|key) /.*; client_cert and client_key must be PEM"):
        tls_context(endpoint(authority, mine))
