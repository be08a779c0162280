"""What FETCH can be asked for, compiled once per command to functions of a message (RFC 9051 §6.4.5). Pure.

ENVELOPE, BODYSTRUCTURE and body part numbers are not offered: a client of maild never asks for them, and a server that
invented them would be worse than one that says NO.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from maild.testing.imap.syntax import Arguments, BadSyntax, date_time
from maild.testing.store import Message, Refused

Render = Callable[[Message], bytes]

_SECTION = re.compile(r"BODY(\.PEEK)?\Z")
_MACROS = {"FAST": b"FLAGS INTERNALDATE RFC822.SIZE", "ALL": b"", "FULL": b""}
_FIELD = re.compile(rb"([^:\r\n]*):.*?\r\n(?:[ \t].*?\r\n)*", re.S)
_PLAIN: dict[str, Render] = {
    "UID": lambda message: b"UID %d" % message.uid,
    "FLAGS": lambda message: flags(message),
    "INTERNALDATE": lambda message: b"INTERNALDATE " + date_time(message.date_s),
    "RFC822.SIZE": lambda message: b"RFC822.SIZE %d" % len(message.raw),
    "MODSEQ": lambda message: b"MODSEQ (%d)" % message.modseq,
    "EMAILID": lambda message: b"EMAILID (%b)" % message.email_id.encode(),
    "THREADID": lambda _: b"THREADID NIL",
}
_RFC822 = {"RFC822": "", "RFC822.HEADER": "HEADER", "RFC822.TEXT": "TEXT"}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing asked for; `name` decides which extension it needs, `marks_seen` whether it sets \\Seen."""

    name: str
    render: Render
    marks_seen: bool = False


def flags(message: Message) -> bytes:
    return b"FLAGS (%b)" % " ".join(sorted(message.flags)).encode()


def items(arguments: Arguments) -> list[Item]:
    """One item, several in parentheses, or a macro."""
    if not arguments.took(b"("):
        return _macro(arguments)
    found = [_item(arguments)]
    while arguments.took(b" "):
        found.append(_item(arguments))
    arguments.expect(b")")
    return found


def _macro(arguments: Arguments) -> list[Item]:
    for name, meaning in _MACROS.items():
        if arguments.took(name.encode()):
            if not meaning:
                raise Refused("CANNOT", "This server has no ENVELOPE")
            return items(Arguments(b"(" + meaning + b")"))
    return [_item(arguments)]


def _item(arguments: Arguments) -> Item:
    name = arguments.word()
    if name in _PLAIN:
        return Item(name, _PLAIN[name])
    if name in _RFC822:
        cut = _section(_RFC822[name], ())
        return Item(name, _literal(name.encode(), cut), marks_seen=name != "RFC822.HEADER")
    peek = _SECTION.match(name.partition("[")[0])
    if peek and "[" in name:
        return _body(name.partition("[")[2], arguments, marks_seen=not peek[1])
    if name in ("ENVELOPE", "BODY", "BODYSTRUCTURE"):
        raise Refused("CANNOT", f"This server has no {name}")
    raise BadSyntax(f"Unknown FETCH item {name}")


def _body(kind: str, arguments: Arguments, *, marks_seen: bool) -> Item:
    """`BODY[kind`, which is read already, with its field names, `]` and the octets asked for."""
    fields: list[bytes] = []
    if kind in ("HEADER.FIELDS", "HEADER.FIELDS.NOT"):
        arguments.expect(b" (")
        fields.append(arguments.astring())
        while arguments.took(b" "):
            fields.append(arguments.astring())
        arguments.expect(b")")
    arguments.expect(b"]")
    label = b"BODY[%b%b]" % (kind.encode(), b" (%b)" % b" ".join(fields) if fields else b"")
    cut = _section(kind, tuple(field.lower() for field in fields))
    if not arguments.took(b"<"):
        return Item("BODY[]", _literal(label, cut), marks_seen)
    start = arguments.number()
    arguments.expect(b".")
    octets = arguments.number()
    arguments.expect(b">")
    part = _literal(label + b"<%d>" % start, lambda raw: cut(raw)[start : start + octets])
    return Item("BODY[]", part, marks_seen)


def _literal(label: bytes, cut: Callable[[bytes], bytes]) -> Render:
    def render(message: Message) -> bytes:
        octets = cut(message.raw)
        return b"%b {%d}\r\n%b" % (label, len(octets), octets)

    return render


def _section(kind: str, fields: tuple[bytes, ...]) -> Callable[[bytes], bytes]:
    match kind:
        case "":
            return lambda raw: raw
        case "HEADER":
            return lambda raw: split(raw)[0]
        case "TEXT":
            return lambda raw: split(raw)[1]
        case "HEADER.FIELDS":
            return lambda raw: _fields(split(raw)[0], lambda name: name in fields)
        case "HEADER.FIELDS.NOT":
            return lambda raw: _fields(split(raw)[0], lambda name: name not in fields)
        case _:
            raise Refused("CANNOT", f"This server has no section {kind}")


def split(raw: bytes) -> tuple[bytes, bytes]:
    """Header with its empty line, and the rest; a message without an empty line is all header."""
    if raw.startswith(b"\r\n"):
        return raw[:2], raw[2:]
    end = raw.find(b"\r\n\r\n")
    return (raw, b"") if end < 0 else (raw[: end + 4], raw[end + 4 :])


def _fields(header: bytes, wanted: Callable[[bytes], bool]) -> bytes:
    kept = (match[0] for match in _FIELD.finditer(header) if wanted(match[1].rstrip().lower()))
    return b"".join(kept) + b"\r\n"


def header_values(header: bytes, name: bytes) -> list[bytes]:
    """Bodies of every field of that name, unfolded and stripped."""
    found = (match for match in _FIELD.finditer(header) if match[1].rstrip().lower() == name.lower())
    return [match[0].partition(b":")[2].replace(b"\r\n", b"").strip() for match in found]
