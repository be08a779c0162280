"""Deterministic mail for the bench: the same octets on every machine, each message known by its number.

`mail`: log-normal sizes around a median of 8 KB, and in 1 % an attachment of up to 4 MB. `small`: 2 KB each. They look
like real mail: folded and over-long header lines, quoted-printable, base64, 8-bit text, a lone CR here, no newline at
the end there.
"""

from __future__ import annotations

import base64
import hashlib
import math
import quopri
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

MEDIAN_OCTETS = 7_600
SIGMA = 1.16
ATTACHMENT_SHARE = 0.0094
ATTACHMENT_OCTETS = (500_000, 4_000_000)
FIRST_DATE = 1_500_000_000

FLAG_LETTERS = {"\\Answered": "R", "\\Flagged": "F", "\\Seen": "S"}

_ENGLISH = """
the of and to in that was his with is for as had you not be her on at by which have or from this him but all she they
were my are me one their so an said them we who would been will no when there if more out up into do any your what has
man could other than our some very time upon about may its only now like little then can should made did us such great
before must two these see know over much down after first mr good men own never
"""
_GERMAN = "für über schön Grüße Müller möchte größer während Übung können zurück häufig außerdem Straße"
_WORDS, _UMLAUT_WORDS = (re.findall(r"\w+", text) for text in (_ENGLISH, _GERMAN))


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it goes to the server. `raw` is wire form; `date` is its INTERNALDATE in Unix seconds."""

    number: int
    raw: bytes
    flags: tuple[str, ...]
    date: int

    def imported(self) -> tuple[bytes, Sequence[str], datetime]:
        """As `Dovecot.import_messages` takes it."""
        return self.raw, self.flags, datetime.fromtimestamp(self.date, UTC)

    def fact(self) -> Fact:
        """What must stand in the Maildir."""
        letters = "".join(sorted(FLAG_LETTERS[flag] for flag in self.flags))
        return Fact(digest(self.disk_form()), letters, self.date)

    def disk_form(self) -> bytes:
        """CRLF as LF, every other octet as it is."""
        return self.raw.replace(b"\r\n", b"\n")


@dataclass(frozen=True, slots=True)
class Fact:
    """A message as the Maildir must have it: digest of its disk form, Maildir flag letters, mtime in seconds.

    `mtime` is None where any will do, as over POP3, which tells no date.
    """

    digest: bytes
    letters: str
    mtime: int | None


def digest(data: bytes) -> bytes:
    """What two messages are compared by."""
    return hashlib.blake2b(data, digest_size=16).digest()


def mail(count: int) -> Iterator[Message]:
    """The first `count` messages of `mail`; 10,000 are 318 MB on the wire."""
    for number in range(1, count + 1):
        random_source = random.Random(f"mail {number}")
        yield _message(number, random_source, _mail_size(number, random_source))


def small(count: int) -> Iterator[Message]:
    """The first `count` messages of `small`, 1.7 to 2 KB each."""
    for number in range(1, count + 1):
        random_source = random.Random(f"small {number}")
        yield _message(number, random_source, random_source.randrange(1_700, 2_000))


def big(octets: int) -> Iterator[Message]:
    """One message of that size."""
    yield _message(1, random.Random("big"), octets)


def _mail_size(number: int, random_source: random.Random) -> int:
    if number == 1:
        return ATTACHMENT_OCTETS[1]
    if random_source.random() < ATTACHMENT_SHARE:
        return round(math.exp(random_source.uniform(*map(math.log, ATTACHMENT_OCTETS))))
    return round(random_source.lognormvariate(math.log(MEDIAN_OCTETS), SIGMA))


def _message(number: int, random_source: random.Random, octets: int) -> Message:
    """About so many octets, but never fewer than its header needs."""
    date = FIRST_DATE + number * 1_801
    head = _header(number, random_source, date)
    body = _body(random_source, max(0, octets - len(head)))
    flags = [flag for flag, share in (("\\Answered", 0.1), ("\\Flagged", 0.05)) if random_source.random() < share]
    if flags or random_source.random() < 0.7:
        flags.append("\\Seen")
    return Message(number, head + body, tuple(flags), date)


def _header(number: int, random_source: random.Random, date: int) -> bytes:
    when = datetime.fromtimestamp(date, UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    token = random_source.randbytes(24).hex()
    lines = [
        f"Return-Path: <{token[:6]}@lists.example>",
        f"Received: from mx{number % 7}.example ([192.0.2.{number % 250}])",
        f"\tby mail.bench.example with ESMTPS id {token[:12]}",
        f"\tfor <me@bench.example>; {when}",
    ]
    if random_source.random() < 0.6:
        signature = base64.b64encode(random_source.randbytes(192)).decode()
        lines.append("DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=lists.example; s=one; h=from:to:subject;")
        lines += [f"\t{'b=' if start == 0 else ''}{signature[start : start + 72]}" for start in range(0, 256, 72)]
    if random_source.random() < 0.01:  # longer than RFC 5322 allows, and sent all the same
        references = " ".join(f"<{random_source.randbytes(12).hex()}@lists.example>" for _ in range(40))
        lines.append(f"References: {references}")
    subject = " ".join(random_source.choices(_WORDS, k=random_source.randrange(2, 9)))
    if random_source.random() < 0.15:
        subject = f"=?utf-8?b?{base64.b64encode(random_source.choice(_UMLAUT_WORDS).encode()).decode()}?= {subject}"
    lines += [
        f"Message-ID: <{number}.{token[:16]}@bench.example>",
        f"Date: {when}",
        f"From: {' '.join(random_source.choices(_WORDS, k=2)).title()} <{token[:6]}@lists.example>",
        "To: me@bench.example",
        f"Subject: {subject}",
        "MIME-Version: 1.0",
    ]
    return "\r\n".join(lines).encode() + b"\r\n"


def _body(random_source: random.Random, octets: int) -> bytes:
    """The rest of the header, the empty line, and text or parts of about so many octets together."""
    if octets > 30_000:
        return _with_attachment(random_source, octets)
    kind = random_source.choice(("plain", "plain", "quoted-printable", "8bit"))
    content = _lines(random_source, kind, octets)
    encoding = "7bit" if kind == "plain" else kind
    head = f"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    if random_source.random() < 0.004:
        content = re.sub(rb" (?=\w)", b"\r", content, count=1)  # a lone CR, as some programs send
    if random_source.random() < 0.005:
        content = content.removesuffix(b"\r\n")  # no newline at the end
    return head.encode() + content


def _with_attachment(random_source: random.Random, octets: int) -> bytes:
    boundary = random_source.randbytes(12).hex().encode()
    parts = [
        b'Content-Type: multipart/mixed; boundary="' + boundary + b'"\r\n\r\nThis is MIME.\r\n--' + boundary,
        b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n",
        _lines(random_source, "quoted-printable", 4_000),
        b"--" + boundary + b"\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n",
    ]
    left = octets - sum(map(len, parts))
    parts += [_lines(random_source, "base64", left), b"--" + boundary + b"--\r\n"]
    return b"".join(parts)


def _lines(random_source: random.Random, kind: str, octets: int) -> bytes:
    """Whole lines of about so many octets from the pool of that kind, from a random place on."""
    pool = _pool(kind)
    repeated = b"" if octets <= len(pool) else pool * (octets // len(pool))
    octets -= len(repeated)
    start = pool.find(b"\r\n", random_source.randrange(len(pool) - octets + 1))
    if start < 0 or start + 2 + octets > len(pool):
        start = -2
    end = pool.find(b"\r\n", start + 2 + octets)
    return repeated + (pool[start + 2 : end + 2] if end >= 0 else pool[start + 2 :])


@cache
def _pool(kind: str) -> bytes:
    """A stock of lines ending in CRLF."""
    random_source = random.Random(f"pool {kind}")
    if kind == "base64":
        return base64.encodebytes(random_source.randbytes(3 << 20)).replace(b"\n", b"\r\n")
    vocabulary = _WORDS if kind == "plain" else _WORDS + _UMLAUT_WORDS * 2
    lines = []
    for _ in range(6_000):
        lines.append(" ".join(random_source.choices(vocabulary, k=random_source.randrange(4, 13))))
        if random_source.random() < 0.02:
            lines.append(random_source.choice(("", ".", "..", "From me to you", ">From here", "-- ")))
    text = "\n".join(lines).encode() + b"\n"
    if kind == "quoted-printable":
        text = quopri.encodestring(text)
    return text.replace(b"\n", b"\r\n")
