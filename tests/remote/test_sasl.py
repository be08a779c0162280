"""Mechanisms against the RFCs' own examples, servers that cheat, and what must not be sent."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maild.config import Imap, NoSecret, OAuth2, Password, Secret, TokenCommand
from maild.config.values import Auth
from maild.core.errors import AuthRejected, MaildError, ProtocolViolation, TlsFailed
from maild.remote import scram
from maild.remote.sasl import Exchange, Mechanism, choose, external, login, oauthbearer, plain, xoauth2
from maild.remote.scram import ChannelBinding, Scram, saslprep, server_end_point
from tests.servers.certificates import Authority

USER, PASSWORD = "user", "correct horse battery staple"
BINDING = ChannelBinding("tls-server-end-point", b"\x01\x02,\xff")

# RFC 7677 §3
RFC_NONCE = "rOprNGfwEbeRWgbNEkqO"
RFC_CHALLENGE = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
RFC_PROOF = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
RFC_SIGNATURE = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def rfc_login() -> Scram:
    return Scram("user", "pencil", binding=None, offers_plus=False, nonce=RFC_NONCE)


# -- SCRAM


def test_scram_says_what_rfc_7677_shows() -> None:
    mechanism = rfc_login()
    assert mechanism.name == "SCRAM-SHA-256"
    assert mechanism.initial() == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    assert not mechanism.has_proved
    assert mechanism.answer(RFC_CHALLENGE) == RFC_PROOF
    assert mechanism.has_proved
    assert mechanism.answer(RFC_SIGNATURE) == b""
    mechanism.check()
    assert mechanism.answer(b"") is None


@pytest.mark.parametrize(
    "signature",
    [b"v=" + b64encode(bytes(32)), b"v=", b"v=!", b"", b"v" + RFC_SIGNATURE[3:], RFC_SIGNATURE.replace(b"v=6", b"v=7")],
)
def test_a_server_that_does_not_know_the_password_is_found_out(signature: bytes) -> None:
    mechanism = rfc_login()
    mechanism.answer(RFC_CHALLENGE)
    with pytest.raises((TlsFailed, ProtocolViolation)):
        mechanism.answer(signature)
    with pytest.raises(TlsFailed, match="cannot be trusted"):
        mechanism.check()


@pytest.mark.parametrize("challenges", [[], [RFC_CHALLENGE]])
def test_a_server_that_lets_us_in_without_its_proof_is_not_trusted(challenges: list[bytes]) -> None:
    mechanism = rfc_login()
    for challenge in challenges:
        mechanism.answer(challenge)
    with pytest.raises(TlsFailed, match="without proving that it knows the password"):
        mechanism.check()


def test_a_server_s_error_is_kept_for_the_refusal() -> None:
    mechanism = rfc_login()
    mechanism.answer(RFC_CHALLENGE)
    assert mechanism.answer(b"e=invalid-proof") == b""
    assert mechanism.detail == "invalid-proof"
    with pytest.raises(TlsFailed):
        mechanism.check()


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"m=ext," + RFC_CHALLENGE, "cannot be read"),
        (b"s=c2FsdA==," + RFC_CHALLENGE, "cannot be read"),
        (RFC_CHALLENGE.replace(b"r=rOpr", b"r=rOqr"), "does not continue ours"),
        (b"r=" + RFC_NONCE.encode() + b",s=c2FsdA==,i=4096", "does not continue ours"),
        (b"r=,s=c2FsdA==,i=4096", "does not continue ours"),
        (RFC_CHALLENGE.replace(b"s=W22Z", b"s=???"), "is not base64"),
        (RFC_CHALLENGE.replace(b"i=4096", b"i=4095"), "not 4096 to 1000000"),
        (RFC_CHALLENGE.replace(b"i=4096", b"i=1000001"), "not 4096 to 1000000"),
        (RFC_CHALLENGE.replace(b"i=4096", b"i=" + b"9" * 4000), "not 4096 to 1000000"),
        (RFC_CHALLENGE.replace(b"i=4096", b"i=-4096"), "not 4096 to 1000000"),
        (RFC_CHALLENGE.replace(b"i=4096", "i=٤٠٩٦".encode()), "not 4096 to 1000000"),
        (RFC_CHALLENGE + b"," + b"x" * 5000, "has no end"),
    ],
)
def test_a_challenge_that_is_none_ends_it_before_any_proof(challenge: bytes, reason: str) -> None:
    mechanism = rfc_login()
    with pytest.raises(ProtocolViolation, match=reason):
        mechanism.answer(challenge)
    assert not mechanism.has_proved


def test_extensions_after_the_count_are_ignored() -> None:
    challenge = RFC_CHALLENGE + b",x=1"
    assert (rfc_login().answer(challenge) or b"").startswith(b"c=biws,r=")


@pytest.mark.parametrize(
    ("binding", "offers_plus", "name", "header", "bound"),
    [
        (None, False, "SCRAM-SHA-256", b"n,,", b"n,,"),
        (None, True, "SCRAM-SHA-256", b"n,,", b"n,,"),
        (BINDING, False, "SCRAM-SHA-256", b"y,,", b"y,,"),
        (
            BINDING,
            True,
            "SCRAM-SHA-256-PLUS",
            b"p=tls-server-end-point,,",
            b"p=tls-server-end-point,,\x01\x02,\xff",
        ),
    ],
)
def test_channel_binding_is_part_of_what_is_proved(
    binding: ChannelBinding | None, offers_plus: bool, name: str, header: bytes, bound: bytes
) -> None:
    mechanism = Scram(USER, PASSWORD, binding=binding, offers_plus=offers_plus, nonce="abc")
    assert mechanism.name == name
    assert mechanism.initial() == header + b"n=user,r=abc"
    final = mechanism.answer(b"r=abcdef,s=c2FsdA==,i=4096") or b""
    fields = dict(part.split(b"=", 1) for part in final.split(b","))
    assert b64decode(fields[b"c"]) == bound
    assert fields[b"p"] == b64encode(proof(PASSWORD, b"n=user,r=abc,r=abcdef,s=c2FsdA==,i=4096,", final))


def proof(password: str, before: bytes, final: bytes) -> bytes:
    """RFC 5802 §3, written down once more."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", 4096)
    key = hmac.digest(salted, b"Client Key", "sha256")
    signed = before + final[: final.rindex(b",p=")]
    signature = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
    return bytes(a ^ b for a, b in zip(key, signature, strict=True))


def test_a_name_cannot_end_its_field() -> None:
    mechanism = Scram("a=b,c", PASSWORD, binding=None, offers_plus=False, nonce="n")
    assert mechanism.initial() == b"n,,n=a=3Db=2Cc,r=n"


def test_each_login_has_a_nonce_of_its_own() -> None:
    nonces = {Scram(USER, PASSWORD, binding=None, offers_plus=False).initial() for _ in range(20)}
    assert len(nonces) == 20


def test_server_end_point_is_the_certificate_s_hash(tmp_path: Path) -> None:
    certificate = Authority(tmp_path).good()
    pem = certificate.chain_file.read_text()
    der = b64decode("".join(pem.split("-----")[2].split()))
    binding = server_end_point(der)
    assert binding is not None
    assert binding.name == "tls-server-end-point"
    assert binding.octets == hashlib.new(scram._END_POINT_HASHES[scram._signature_algorithm(der)], der).digest()


@pytest.mark.parametrize("der", [None, b"", b"\x30", b"\x30\x80", b"\x30\x03\x30\x01\x00", b"garbage" * 20])
def test_what_is_no_certificate_binds_nothing(der: bytes | None) -> None:
    assert server_end_point(der) is None


@given(st.binary(max_size=64))
def test_no_octets_break_the_reader_of_certificates(der: bytes) -> None:
    assert server_end_point(der) is None


# RFC 4013 §3
@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("😀 new in Unicode 6", "😀 new in Unicode 6"),
        ("\u0627\u0628", "\u0627\u0628"),
    ],
)
def test_saslprep(text: str, prepared: str) -> None:
    assert saslprep(text) == prepared


@pytest.mark.parametrize("text", ["\x07", "\u0627\u0031", "a\ue000", "\u200ea", "\ufffd"])
def test_saslprep_refuses(text: str) -> None:
    with pytest.raises(AuthRejected, match="characters that SCRAM does not allow"):
        saslprep(text)


# -- the others


def test_plain_is_rfc_4616() -> None:
    assert plain("tim", "tanstaaftanstaaf").initial() == b"\0tim\0tanstaaftanstaaf"
    assert plain(USER, "pässwörd✓").initial() == b"\0user\0" + "pässwörd✓".encode()


def test_login_waits_to_be_asked() -> None:
    mechanism = login(USER, PASSWORD)
    assert mechanism.initial() is None
    assert [mechanism.answer(b"Username:"), mechanism.answer(b"Password:")] == [USER.encode(), PASSWORD.encode()]
    assert mechanism.answer(b"Once more:") is None


def test_external_says_nothing() -> None:
    assert external().initial() == b""


def test_oauthbearer_is_rfc_7628() -> None:
    """§4.1"""
    mechanism = oauthbearer("user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==", "server.example.com", 143)
    assert mechanism.initial() == (
        b"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01"
        b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01"
    )


@pytest.mark.parametrize(
    ("mechanism", "acknowledgement"), [(oauthbearer(USER, "t", "h", 1), b"\x01"), (xoauth2(USER, "t"), b"")]
)
def test_a_token_s_error_challenge_is_answered_once(mechanism: Mechanism, acknowledgement: bytes) -> None:
    assert mechanism.answer(b'{"status":"401","schemes":"bearer","scope":"mail"}') == acknowledgement
    assert mechanism.detail == "status 401"
    assert mechanism.answer(b'{"status":"402"}') is None
    assert mechanism.detail == "status 401"


@pytest.mark.parametrize("challenge", [b"", b"[]", b'{"status":{}}', b"{", b"[" * 100_000, b"\xff", b'"x"'])
def test_an_error_challenge_that_says_nothing(challenge: bytes) -> None:
    mechanism = xoauth2(USER, "t")
    assert mechanism.answer(challenge) == b""
    assert mechanism.detail == ""


# -- choosing

ALL = {"PLAIN", "LOGIN", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "XOAUTH2", "OAUTHBEARER", "EXTERNAL"}
ALL |= {"ANONYMOUS", "NTLM", "PLAIN-CLIENTTOKEN", "CRAM-MD5", "GSSAPI"}
TOKENS = OAuth2("google", "1", owner="work")


def endpoint(auth: Auth = "auto", secret: Secret | None = None) -> Imap:
    return Imap(host="mail.example.org", port=993, user=USER, secret=secret or Password(PASSWORD), auth=auth)


@pytest.mark.parametrize(
    ("auth", "secret", "offered", "chosen"),
    [
        ("auto", None, ALL, "SCRAM-SHA-256-PLUS"),
        ("auto", None, ALL - {"SCRAM-SHA-256-PLUS"}, "SCRAM-SHA-256"),
        ("auto", None, {"PLAIN", "LOGIN"}, "PLAIN"),
        ("auto", None, {"LOGIN", "CRAM-MD5"}, "LOGIN"),
        ("auto", TOKENS, ALL, "OAUTHBEARER"),
        ("auto", TOKENS, ALL - {"OAUTHBEARER"}, "XOAUTH2"),
        ("auto", TokenCommand(("t",)), {"PLAIN", "XOAUTH2"}, "XOAUTH2"),
        ("plain", None, ALL, "PLAIN"),
        ("login", None, ALL, "LOGIN"),
        ("scram-sha-256", None, ALL, "SCRAM-SHA-256-PLUS"),
        ("scram-sha-256", None, {"SCRAM-SHA-256", "PLAIN"}, "SCRAM-SHA-256"),
        ("oauthbearer", None, ALL, "OAUTHBEARER"),
        ("xoauth2", None, ALL, "XOAUTH2"),
        ("external", NoSecret(), ALL, "EXTERNAL"),
    ],
)
def test_the_strongest_that_the_config_allows(
    auth: Auth, secret: Secret | None, offered: set[str], chosen: str
) -> None:
    mechanism = choose(endpoint(auth, secret), USER, PASSWORD, offered, binding=BINDING)
    assert mechanism is not None
    assert mechanism.name == chosen


def test_plus_needs_something_to_bind_to() -> None:
    mechanism = choose(endpoint(), USER, PASSWORD, {"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"})
    assert mechanism is not None
    assert mechanism.name == "SCRAM-SHA-256"
    with pytest.raises(AuthRejected):
        choose(endpoint("scram-sha-256"), USER, PASSWORD, {"SCRAM-SHA-256-PLUS", "PLAIN"})


@pytest.mark.parametrize(
    ("auth", "secret", "offered"),
    [
        ("auto", None, {"ANONYMOUS", "NTLM", "CRAM-MD5", "EXTERNAL", "XOAUTH2", "PLAIN-CLIENTTOKEN"}),
        ("auto", None, set()),
        ("auto", TOKENS, {"PLAIN", "LOGIN", "SCRAM-SHA-256"}),
        ("plain", None, {"LOGIN", "SCRAM-SHA-256"}),
        ("login", None, {"PLAIN"}),
        ("scram-sha-256", None, {"PLAIN", "LOGIN", "SCRAM-SHA-1"}),
        ("oauthbearer", TOKENS, {"XOAUTH2", "PLAIN"}),
        ("xoauth2", TOKENS, {"OAUTHBEARER", "PLAIN"}),
        ("external", NoSecret(), {"PLAIN", "ANONYMOUS"}),
    ],
)
def test_never_weaker_than_configured(auth: Auth, secret: Secret | None, offered: set[str]) -> None:
    with pytest.raises(AuthRejected, match="does not offer to log in by") as refusal:
        choose(endpoint(auth, secret), USER, PASSWORD, offered, binding=BINDING)
    assert refusal.value.hint
    assert PASSWORD not in str(refusal.value)


@pytest.mark.parametrize(
    ("auth", "offered", "chosen"),
    [
        ("auto", {"LOGIN"}, None),
        ("auto", set(), None),
        ("login", {"LOGIN", "PLAIN"}, None),
        ("auto", {"PLAIN"}, "PLAIN"),
        ("auto", {"SCRAM-SHA-256"}, "SCRAM-SHA-256"),
    ],
)
def test_a_protocol_s_own_command_stands_in_for_login(auth: Auth, offered: set[str], chosen: str | None) -> None:
    mechanism = choose(endpoint(auth), USER, PASSWORD, offered, has_own_command=True)
    assert (mechanism and mechanism.name) == chosen


@pytest.mark.parametrize("auth", ["plain", "scram-sha-256", "oauthbearer", "external"])
def test_the_own_command_stands_in_for_nothing_else(auth: Auth) -> None:
    with pytest.raises(AuthRejected):
        choose(endpoint(auth), USER, PASSWORD, {"LOGIN"}, has_own_command=True)
    with pytest.raises(AuthRejected):
        choose(endpoint(secret=TOKENS), USER, PASSWORD, {"LOGIN"}, has_own_command=True)


@pytest.mark.parametrize("auth", ["auto", "plain", "login", "scram-sha-256", "oauthbearer", "xoauth2"])
@pytest.mark.parametrize("octet", ["\r", "\n", "\0", "\x01", "\r\nA9 LOGOUT"])
@pytest.mark.parametrize("place", ["user", "secret"])
def test_what_could_end_a_field_or_a_line_is_refused_here(auth: Auth, octet: str, place: str) -> None:
    user, secret = (USER + octet, PASSWORD) if place == "user" else (USER, PASSWORD + octet)
    with pytest.raises(AuthRejected, match="line break or NUL") as refusal:
        choose(endpoint(auth), user, secret, ALL)
    assert PASSWORD not in str(refusal.value)


def test_what_a_server_offers_reaches_no_terminal_unescaped() -> None:
    with pytest.raises(AuthRejected) as refusal:
        choose(endpoint("plain"), USER, PASSWORD, {"\x1b[31mRED", "X" * 5000})
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 500


# -- the lines


def line(octets: bytes) -> bytes:
    return b64encode(octets)


def test_the_initial_response_goes_with_the_command_where_there_is_room() -> None:
    whole = Exchange(plain(USER, PASSWORD), room_octets=255)
    assert whole.argument == "PLAIN AHVzZXIAY29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ=="
    exact = len(whole.argument)
    assert Exchange(plain(USER, PASSWORD), room_octets=exact).argument == whole.argument
    for room in (0, exact - 1):
        apart = Exchange(plain(USER, PASSWORD), room_octets=room)
        assert apart.argument == "PLAIN"
        assert apart.answer(b"") == b"AHVzZXIAY29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ=="


def test_an_empty_initial_response_is_an_equals_sign_or_an_empty_line() -> None:
    assert Exchange(external(), room_octets=99).argument == "EXTERNAL ="
    apart = Exchange(external())
    assert (apart.argument, apart.answer(b"")) == ("EXTERNAL", b"")


@pytest.mark.parametrize("prompt", [b"", b"go", b"!!! not base64"])
def test_what_the_server_says_to_begin_with_does_not_matter(prompt: bytes) -> None:
    assert Exchange(xoauth2(USER, "t")).answer(prompt) == line(b"user=user\x01auth=Bearer t\x01\x01")


def test_a_whole_login_by_scram() -> None:
    exchange = Exchange(rfc_login(), room_octets=0)
    assert exchange.argument == "SCRAM-SHA-256"
    assert exchange.answer(b"") == line(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
    assert exchange.answer(line(RFC_CHALLENGE)) == line(RFC_PROOF)
    assert exchange.answer(line(RFC_SIGNATURE)) == b""
    exchange.finish(is_accepted=True)


@pytest.mark.parametrize("challenge", [b"!!!", b"", line(b"r=other,s=c2FsdA==,i=4096")])
def test_a_broken_challenge_gives_up_and_says_why(challenge: bytes) -> None:
    exchange = Exchange(rfc_login(), room_octets=999)
    assert exchange.answer(challenge) == b"*"
    assert exchange.answer(line(RFC_CHALLENGE)) == b"*"
    for is_accepted in (False, True):
        with pytest.raises(ProtocolViolation):
            exchange.finish(is_accepted=is_accepted)


def test_a_forged_signature_gives_up_and_says_why() -> None:
    exchange = Exchange(rfc_login(), room_octets=999)
    exchange.answer(line(RFC_CHALLENGE))
    assert exchange.answer(line(b"v=" + line(bytes(32)))) == b"*"
    with pytest.raises(TlsFailed, match="its SCRAM signature is wrong"):
        exchange.finish(is_accepted=True)


def test_a_server_that_asks_for_more_than_there_is() -> None:
    exchange = Exchange(plain(USER, PASSWORD), room_octets=255)
    assert exchange.answer(b"more") == b"*"
    exchange.finish(is_accepted=False)


def test_a_server_that_asks_without_end() -> None:
    exchange = Exchange(xoauth2(USER, "t"), room_octets=255)
    assert b"*" in [exchange.answer(b"") for _ in range(20)]
    with pytest.raises(MaildError, match="without end"):
        exchange.finish(is_accepted=False)


def test_a_refusal_before_the_proof_is_about_the_channel_binding() -> None:
    exchange = Exchange(Scram("user", "pencil", binding=BINDING, offers_plus=True, nonce=RFC_NONCE), room_octets=999)
    assert exchange.may_retry_unbound
    exchange.answer(line(RFC_CHALLENGE))
    assert not exchange.may_retry_unbound
    assert not Exchange(rfc_login(), room_octets=999).may_retry_unbound


def test_the_server_s_reason_is_fit_to_be_shown() -> None:
    exchange = Exchange(rfc_login(), room_octets=999)
    exchange.answer(line(RFC_CHALLENGE))
    exchange.answer(line(b"e=\x1b[31m" + b"x" * 3000))
    assert exchange.detail.isprintable()
    assert len(exchange.detail) <= 200
