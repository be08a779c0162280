"""The server's side of SASL logins, for the servers in memory: PLAIN, LOGIN, SCRAM-SHA-256, OAUTHBEARER and XOAUTH2.

A login is a generator: it yields challenges, is sent responses (octets, not base64), returns the user's name, and
raises `Refused`. Of OAUTHBEARER and XOAUTH2 a user's password is the token. Written from the RFCs and not from
`remote.sasl`, so that a misunderstanding there does not cancel out here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Generator, Mapping

from maild.testing.store import Refused

Users = Mapping[str, str]
Login = Generator[bytes, bytes, str]
ITERATIONS = 4096


def plain(users: Users) -> Login:
    """RFC 4616"""
    parts = (yield b"").split(b"\0")
    if len(parts) != 3:
        raise Refused("AUTHENTICATIONFAILED", "Not a PLAIN response")
    return admitted(users, parts[1].decode("utf-8", "replace"), parts[2])


def login(users: Users) -> Login:
    """draft-murchison-sasl-login"""
    user = yield b"Username:"
    password = yield b"Password:"
    return admitted(users, user.decode("utf-8", "replace"), password)


def scram_sha_256(users: Users) -> Login:
    """RFC 5802 and RFC 7677, without channel binding."""
    header, bare = _split_first((yield b""))
    fields = dict(part.split("=", 1) for part in bare.decode().split(","))
    user = fields["n"].replace("=2C", ",").replace("=3D", "=")
    salt, nonce = os.urandom(16), fields["r"] + base64.b64encode(os.urandom(12)).decode()
    challenge = f"r={nonce},s={base64.b64encode(salt).decode()},i={ITERATIONS}".encode()
    final = yield challenge
    without_proof, _, proof = final.rpartition(b",p=")
    if without_proof != b"c=" + base64.b64encode(header) + b",r=" + nonce.encode():
        raise Refused("AUTHENTICATIONFAILED", "Channel binding or nonce differ")
    salted = hashlib.pbkdf2_hmac("sha256", users.get(user, "").encode(), salt, ITERATIONS)
    signed = b",".join((bare, challenge, without_proof))
    stored = hashlib.sha256(_hmac(salted, b"Client Key")).digest()
    mask = _hmac(stored, signed)
    key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), mask, strict=False))
    if hashlib.sha256(key).digest() != stored or user not in users:
        raise Refused("AUTHENTICATIONFAILED", "Authentication failed")
    yield b"v=" + base64.b64encode(_hmac(_hmac(salted, b"Server Key"), signed))
    return user


def _split_first(message: bytes) -> tuple[bytes, bytes]:
    """The GS2 header with its commas, and the rest of the client-first-message."""
    parts = message.split(b",", 2)
    if len(parts) != 3 or parts[0] not in (b"n", b"y"):
        raise Refused("AUTHENTICATIONFAILED", "Not a SCRAM message")
    return b",".join(parts[:2]) + b",", parts[2]


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def oauthbearer(users: Users) -> Login:
    """RFC 7628"""
    header, _, rest = (yield b"").partition(b"\x01")
    user = header.decode().removeprefix("n,a=").removesuffix(",").replace("=2C", ",").replace("=3D", "=")
    return (yield from _with_token(users, user, rest, b"\x01"))


def xoauth2(users: Users) -> Login:
    """Google's and Microsoft's own."""
    first, _, rest = (yield b"").partition(b"\x01")
    return (yield from _with_token(users, first.decode().removeprefix("user="), rest, b""))


def _with_token(users: Users, user: str, rest: bytes, acknowledgement: bytes) -> Login:
    auth = next((pair for pair in rest.split(b"\x01") if pair.startswith(b"auth=Bearer ")), b"")
    try:
        return admitted(users, user, auth.removeprefix(b"auth=Bearer "))
    except Refused:
        answer = yield b'{"status":"401","schemes":"bearer","scope":"mail"}'
        if answer != acknowledgement:
            raise Refused("AUTHENTICATIONFAILED", "The error was not acknowledged") from None
        raise


def admitted(users: Users, user: str, secret: bytes) -> str:
    """The user's name, if the secret is right."""
    if user not in users or users[user].encode() != secret:
        raise Refused("AUTHENTICATIONFAILED", "Authentication failed")
    return user


MECHANISMS: dict[str, Callable[[Users], Login]] = {
    "PLAIN": plain,
    "LOGIN": login,
    "SCRAM-SHA-256": scram_sha_256,
    "OAUTHBEARER": oauthbearer,
    "XOAUTH2": xoauth2,
}
