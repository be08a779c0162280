"""Throw-away certificates for loopback servers: a good one, and one for each way in which a certificate can be bad."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's certificate chain and its private key, as PEM files."""

    chain_file: Path
    key_file: Path

    def server_context(self) -> ssl.SSLContext:
        """A context for a server that shows this certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.chain_file, self.key_file)
        return context

    def fingerprint(self) -> str:
        """SHA-256 of the server's own certificate (DER), in hexadecimal: what `tls_fingerprint` pins."""
        certificate = x509.load_pem_x509_certificate(self.chain_file.read_bytes())
        return certificate.fingerprint(hashes.SHA256()).hex()


class Authority:
    """A certificate authority that nobody trusts but whoever reads `ca_file`. All files go into `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        directory.mkdir(parents=True, exist_ok=True)
        self._ca.cert_pem.write_to_path(str(self.ca_file))

    def good(self, hosts: Sequence[str] = HOSTS) -> Certificate:
        """Valid now, for localhost by name and by address."""
        return self._issue("good", hosts)

    def wrong_name(self) -> Certificate:
        """Valid now, for another machine's name."""
        return self._issue("wrong-name", ["imap.elsewhere.example"])

    def common_name_only(self) -> Certificate:
        """For localhost, said in the subject's common name only, as before RFC 2818."""
        return self._by_hand("common-name", "localhost", None)

    def expired(self) -> Certificate:
        """For localhost, until yesterday."""
        now = datetime.now(UTC)
        return self._issue("expired", HOSTS, now - timedelta(days=30), now - timedelta(days=1))

    def not_yet_valid(self) -> Certificate:
        """For localhost, from tomorrow on: what a clock that is behind sees."""
        now = datetime.now(UTC)
        return self._issue("not-yet-valid", HOSTS, now + timedelta(days=1), now + timedelta(days=30))

    def self_signed(self) -> Certificate:
        """Valid now for localhost, vouched for by itself only."""
        return self._by_hand("self-signed", "localhost", "localhost", is_self_signed=True)

    def client_context(self) -> ssl.SSLContext:
        """A context that trusts this authority only, and checks names and dates."""
        return self.trusting(self.ca_file)

    @staticmethod
    def trusting(ca_file: Path) -> ssl.SSLContext:
        """The same for an authority that only left its file."""
        return ssl.create_default_context(cafile=str(ca_file))

    def _issue(
        self, name: str, hosts: Sequence[str], start: datetime | None = None, end: datetime | None = None
    ) -> Certificate:
        issued = self._ca.issue_cert(*hosts, not_before=start, not_after=end)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        return self._write(name, chain, issued.private_key_pem.bytes())

    def _by_hand(
        self, name: str, common_name: str, alternative: str | None, *, is_self_signed: bool = False
    ) -> Certificate:
        """What trustme does not make."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        ca = x509.load_pem_x509_certificate(self._ca.cert_pem.bytes())
        ca_key = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if is_self_signed else ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
        )
        if alternative is not None:
            names = x509.SubjectAlternativeName([x509.DNSName(alternative)])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(key if is_self_signed else ca_key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._write(name, certificate.public_bytes(serialization.Encoding.PEM), private)

    def _write(self, name: str, chain: bytes, key: bytes) -> Certificate:
        certificate = Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        certificate.chain_file.write_bytes(chain)
        certificate.key_file.touch(mode=0o600)
        certificate.key_file.write_bytes(key)
        return certificate
