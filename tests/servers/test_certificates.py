"""Each certificate is good or bad in exactly the way its name says, as a verifying client sees it."""

from __future__ import annotations

import re
import ssl
import stat
from pathlib import Path

import pytest

from tests.servers.certificates import Authority, Certificate


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


def shake_hands(context: ssl.SSLContext, certificate: Certificate, host: str = "localhost") -> None:
    """A TLS handshake in memory; raises what the client raises."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname=host)
    server = certificate.server_context().wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() is not None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_good_certificate_is_accepted(authority: Authority, host: str) -> None:
    shake_hands(authority.client_context(), authority.good(), host)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("wrong_name", "Hostname mismatch"),
        ("expired", "certificate has expired"),
        ("not_yet_valid", "certificate is not yet valid"),
        ("self_signed", "self-signed certificate"),
    ],
)
def test_bad_certificates_are_refused_for_their_own_reason(authority: Authority, name: str, complaint: str) -> None:
    certificate: Certificate = getattr(authority, name)()
    with pytest.raises(ssl.SSLCertVerificationError, match=re.escape(complaint)):
        shake_hands(authority.client_context(), certificate)


def test_nobody_else_trusts_the_authority(authority: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(ssl.create_default_context(), authority.good())


def test_fingerprint_is_that_of_the_servers_own_certificate(authority: Authority) -> None:
    good = authority.good()
    assert re.fullmatch(r"[0-9a-f]{64}", good.fingerprint())
    assert good.fingerprint() != authority.expired().fingerprint()


def test_private_keys_are_private(authority: Authority) -> None:
    assert stat.S_IMODE(authority.good().key_file.stat().st_mode) == 0o600
