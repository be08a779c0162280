"""SCRAM-SHA-256 (RFC 5802, RFC 7677): the password is proved in both directions and never sent. Pure.

What this file keeps: the server's signature is checked, so a server that does not know the password is found out; its
iteration count is bounded in both directions; its nonce must continue ours; and channel binding (RFC 5929), where both
sides can, ties the proof to this very TLS connection, so that nobody in the middle can use it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import stringprep
import unicodedata
from base64 import b64decode, b64encode
from dataclasses import dataclass

from maild.core.errors import AuthRejected, ProtocolViolation, TlsFailed

NAME = "SCRAM-SHA-256"
LEAST_ITERATIONS = 4096  # RFC 7677 §4
MOST_ITERATIONS = 1_000_000  # a second of CPU: a hostile server cannot ask for an hour
_NONCE_OCTETS = 18
_LONGEST_CHALLENGE_OCTETS = 4096
_HASH = "sha256"
_END_POINT_HASHES = {  # what signs the certificate → what hashes it; MD5 and SHA-1 become SHA-256 (RFC 5929 §4.1)
    "2a864886f70d010104": "sha256",  # md5WithRSAEncryption
    "2a864886f70d010105": "sha256",  # sha1WithRSAEncryption
    "2a864886f70d01010b": "sha256",
    "2a864886f70d01010c": "sha384",
    "2a864886f70d01010d": "sha512",
    "2a8648ce3d0401": "sha256",  # ecdsa-with-SHA1
    "2a8648ce3d040302": "sha256",
    "2a8648ce3d040303": "sha384",
    "2a8648ce3d040304": "sha512",
}


@dataclass(frozen=True, slots=True)
class ChannelBinding:
    """What only the two ends of one TLS connection know or see alike (RFC 5056): its type's name and its octets."""

    name: str
    octets: bytes


def server_end_point(certificate: bytes | None) -> ChannelBinding | None:
    """`tls-server-end-point` (RFC 5929 §4) of a certificate (DER); None where its signature names no single hash."""
    name = _END_POINT_HASHES.get(_signature_algorithm(certificate or b""))
    if certificate is None or name is None:
        return None
    return ChannelBinding("tls-server-end-point", hashlib.new(name, certificate).digest())


def _signature_algorithm(certificate: bytes) -> str:
    """The octets of the signature algorithm's identifier in hex, or "" if this is no certificate (RFC 5280 §4.1)."""
    try:
        body, _ = _element(certificate)
        _, after_tbs = _element(body)
        algorithm, _ = _element(after_tbs)
        return _element(algorithm)[0].hex()
    except IndexError:
        return ""


def _element(der: bytes) -> tuple[bytes, bytes]:
    """The contents of the first DER element, and what follows it."""
    length, start = der[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[2:start])
    return der[start : start + length], der[start + length :]


def saslprep(text: str) -> str:
    """RFC 4013, as for a query: unassigned code points may be in it. Raises AuthRejected for what must not."""
    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c for c in text if c == " " or not stringprep.in_table_b1(c)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if any(_is_prohibited(c) for c in prepared) or not _is_bidirectionally_sound(prepared):
        raise AuthRejected(
            "user or password holds characters that SCRAM does not allow (RFC 4013)",
            'change the password, or use auth = "plain"',
        )
    return prepared


def _is_prohibited(char: str) -> bool:
    return (
        stringprep.in_table_c12(char)
        or stringprep.in_table_c21_c22(char)
        or stringprep.in_table_c3(char)
        or stringprep.in_table_c4(char)
        or stringprep.in_table_c5(char)
        or stringprep.in_table_c6(char)
        or stringprep.in_table_c7(char)
        or stringprep.in_table_c8(char)
        or stringprep.in_table_c9(char)
    )


def _is_bidirectionally_sound(text: str) -> bool:
    """RFC 3454 §6: with right-to-left characters there are no left-to-right ones, and they stand at both ends."""
    if not any(map(stringprep.in_table_d1, text)):
        return True
    ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
    return ends and not any(map(stringprep.in_table_d2, text))


def escaped_name(user: str) -> bytes:
    """A saslname (RFC 5801 §4, RFC 5802 §5.1): "," and "=" would end it."""
    return user.replace("=", "=3D").replace(",", "=2C").encode()


class Scram:
    """One login by SCRAM-SHA-256, or -PLUS where the server offers that and there is a `binding`.

    `nonce` is for tests only.
    """

    def __init__(
        self, user: str, password: str, *, binding: ChannelBinding | None, offers_plus: bool, nonce: str = ""
    ) -> None:
        uses_plus = binding is not None and offers_plus
        self.name = f"{NAME}-PLUS" if uses_plus else NAME
        self.detail = ""  # why the server says no, in its words
        self._password = saslprep(password).encode()
        self._nonce = nonce or b64encode(secrets.token_bytes(_NONCE_OCTETS)).decode()
        # RFC 5802 §6: "y" says that we could bind but the server does not; one that does sees the fraud in between.
        flag = "n" if binding is None else f"p={binding.name}" if uses_plus else "y"
        self._header = f"{flag},,".encode()
        self._bound = self._header + (binding.octets if binding is not None and uses_plus else b"")
        self._first = b"n=" + escaped_name(saslprep(user)) + b",r=" + self._nonce.encode()
        self._signature: bytes | None = None  # what the server has to show, once our proof is on its way
        self._is_checked = False

    @property
    def has_proved(self) -> bool:
        """Whether the server has seen our proof, so that a refusal can be about the password."""
        return self._signature is not None

    def initial(self) -> bytes:
        return self._header + self._first

    def answer(self, challenge: bytes) -> bytes | None:
        """Raises ProtocolViolation for what is not SCRAM, TlsFailed for a server that does not know the password."""
        if len(challenge) > _LONGEST_CHALLENGE_OCTETS:
            raise ProtocolViolation("the server's SCRAM challenge has no end")
        if self._signature is None:
            return self._prove(challenge)
        if self._is_checked:
            return None
        self._check(challenge)
        return b""

    def check(self) -> None:
        """To be called once the server says that we are in. Raises TlsFailed if it did not prove who it is."""
        if not self._is_checked:
            raise _impostor("it let us in without proving that it knows the password")

    def _prove(self, challenge: bytes) -> bytes:
        """The client-final-message (RFC 5802 §3) for the server-first-message."""
        nonce, salt, iterations = self._read(challenge)
        salted = hashlib.pbkdf2_hmac(_HASH, self._password, salt, iterations)
        client_key = _hmac(salted, b"Client Key")
        final = b"c=" + b64encode(self._bound) + b",r=" + nonce
        signed = b",".join((self._first, challenge, final))
        signature = _hmac(hashlib.new(_HASH, client_key).digest(), signed)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._signature = _hmac(_hmac(salted, b"Server Key"), signed)
        return final + b",p=" + b64encode(proof)

    def _read(self, challenge: bytes) -> tuple[bytes, bytes, int]:
        """Nonce, salt and iteration count; `r=…,s=…,i=…`, and extensions that may be ignored."""
        parts = challenge.split(b",")
        if len(parts) < 3 or [part[:2] for part in parts[:3]] != [b"r=", b"s=", b"i="]:
            raise ProtocolViolation("the server's SCRAM challenge cannot be read")
        nonce, salt, count = (part[2:] for part in parts[:3])
        if not nonce.startswith(self._nonce.encode()) or len(nonce) == len(self._nonce):
            raise ProtocolViolation("the server's SCRAM nonce does not continue ours")
        if not (count.isdigit() and len(count) < 10 and LEAST_ITERATIONS <= int(count) <= MOST_ITERATIONS):
            raise ProtocolViolation(
                f"the server wants an iteration count for SCRAM that is not {LEAST_ITERATIONS} to {MOST_ITERATIONS}",
                'ask its operator; auth = "plain" does without SCRAM',
            )
        return nonce, _decoded(salt), int(count)

    def _check(self, challenge: bytes) -> None:
        """The server-final-message: `v=` and the server's signature, or `e=` and a reason."""
        value = challenge.split(b",")[0]
        if value.startswith(b"e="):
            self.detail = value[2:].decode("utf-8", "replace")
            return
        if not value.startswith(b"v=") or not hmac.compare_digest(_decoded(value[2:]), self._signature or b""):
            raise _impostor("its SCRAM signature is wrong, so it does not know the password")
        self._is_checked = True


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, _HASH)


def _decoded(text: bytes) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise ProtocolViolation("the server's SCRAM challenge is not base64") from None


def _impostor(reason: str) -> TlsFailed:
    return TlsFailed(
        f"the server cannot be trusted: {reason}",
        "somebody may be posing as your mail server; the password was not sent. Check host and the network",
    )
