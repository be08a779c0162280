"""The head of a message that is to be sent: its fields as octets, what is taken out of it and what is added.

The body is never touched, nor is a field that stays: its octets go out as they came, but for line ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_NAME = re.compile(rb"([!-9;-~]+)[ \t]*:")
_MBOX = re.compile(rb">?From (?![ \t]*:)[^\n]*\n")
_WORD = re.compile(r"=\?([^?\s]+)\?([bBqQ])\?([^?\s]*)\?=(?:[ \t\n]+(?==\?[^?\s]+\?[bBqQ]\?))?")
_MAX_WORD_OCTETS = 45  # of UTF-8 in one encoded word: 60 characters of base64 and 12 around them, RFC 2047 §2


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name in lower case, and its octets with name, folding and line end."""

    name: str
    octets: bytes

    @property
    def body(self) -> str:
        """What follows the colon, without the folding. Octets that are not UTF-8 become surrogates."""
        _, _, body = self.octets.partition(b":")
        return re.sub(rb"\n(?=[ \t])", b"", body).decode("utf-8", "surrogateescape").strip()


@dataclass(frozen=True, slots=True)
class Message:
    """A message in its disk form (LF), divided.

    `is_closed`: an empty line ends the head, or the message ends with it. Otherwise a line that is no field does, and
    counts as the body's first.
    """

    fields: tuple[Field, ...]
    body: bytes
    is_closed: bool

    def bodies(self, *names: str) -> list[str]:
        """The bodies of all fields with one of these names, in the order they stand."""
        return [field.body for field in self.fields if field.name in names]

    def first(self, *names: str) -> str:
        """The body of the first field with one of these names, in the order of the names; "" if there is none."""
        for name in names:
            for field in self.fields:
                if field.name == name:
                    return field.body
        return ""

    def has(self, *names: str) -> bool:
        return any(field.name in names for field in self.fields)

    def without(self, *names: str) -> Message:
        """The same message with the fields of these names taken out."""
        return Message(tuple(f for f in self.fields if f.name not in names), self.body, self.is_closed)

    def preceded_by(self, lines: Sequence[tuple[str, str]]) -> Message:
        """The same message with these fields (name, body) at its beginning; the bodies are ASCII."""
        added = tuple(Field(name.lower(), f"{name}: {body}\n".encode("ascii")) for name, body in lines)
        return Message((*added, *self.fields), self.body, self.is_closed)

    def joined(self) -> bytes:
        """The disk form, with an empty line between head and body."""
        return b"".join([*(field.octets for field in self.fields), b"\n", self.body])


def disk_form(raw: bytes) -> bytes:
    """Any line ends (CRLF, LF, lone CR) as LF, and one at the very end: on the wire each becomes CRLF and no other is.

    A lone CR or LF inside a message is how one message is smuggled in another (CVE-2023-51764).
    """
    text = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text if text.endswith(b"\n") or not text else text + b"\n"


def divide(text: bytes) -> Message:
    """The fields and the body of a message in its disk form. An mbox separator line before it is left out."""
    if separator := _MBOX.match(text):
        text = text[separator.end() :]
    fields: list[Field] = []
    at = 0
    while at < len(text) and text[at] != 0x0A:
        end = _end_of_field(text, at)
        found = _NAME.match(text, at, end)
        if found is None:
            return Message(tuple(fields), text[at:], is_closed=False)
        fields.append(Field(found[1].decode("ascii").lower(), text[at:end]))
        at = end
    return Message(tuple(fields), text[at + 1 :], is_closed=True)


def _end_of_field(text: bytes, at: int) -> int:
    while True:
        at = text.find(b"\n", at) + 1
        if at == 0:
            return len(text)
        if text[at : at + 1] not in (b" ", b"\t"):
            return at


def shown(body: str) -> str:
    """A field's body as it can be kept: octets that are not UTF-8 become U+FFFD."""
    return body.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def encoded_phrase(name: str) -> str:
    """A display name for a field: as it is, quoted, or as encoded words (RFC 2047), whatever it needs."""
    if name.isascii() and name.isprintable():
        if re.fullmatch(r"[A-Za-z0-9 !#$%&'*+/=?^_`{|}~-]+", name) and "=?" not in name:
            return name
        return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    return " ".join(_encoded_words(name))


def encoded_text(text: str) -> str:
    """The body of an unstructured field such as Subject, as encoded words where ASCII does not do."""
    return text if text.isascii() and text.isprintable() else " ".join(_encoded_words(text))


def _encoded_words(text: str) -> Iterator[str]:
    from base64 import b64encode

    part = b""
    for char in "".join(c if c.isprintable() else " " for c in text):
        octets = char.encode("utf-8", "replace")
        if len(part) + len(octets) > _MAX_WORD_OCTETS:
            yield f"=?utf-8?b?{b64encode(part).decode()}?="
            part = b""
        part += octets
    yield f"=?utf-8?b?{b64encode(part).decode()}?="


def decoded(body: str) -> str:
    """A field's body for a person's eyes: encoded words decoded (RFC 2047), what cannot be is left as it stands."""
    return _WORD.sub(_decoded_word, body).encode("utf-8", "replace").decode()


def _decoded_word(word: re.Match[str]) -> str:
    import binascii

    charset, encoding, text = word[1].partition("*")[0], word[2], word[3]
    try:
        if encoding in "bB":
            raw = binascii.a2b_base64(text + "=" * (-len(text) % 4))
        else:
            raw = binascii.a2b_qp(text.replace("_", " "), header=True)
        return raw.decode(charset, "replace")
    except (LookupError, ValueError):
        return word[0]
