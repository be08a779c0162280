"""Addresses as header fields and command lines hold them: read with certainty, or refused with the reason.

A recipient must never be lost or invented, so nothing is guessed: what RFC 5322 §3.4 and its obsolete forms do not
read in exactly one way raises `AddressError`. Accepted are groups, nested comments, folded fields, quoted strings,
encoded words in display names, unquoted dots in them, and empty list elements.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

MAX_ADDRESS_OCTETS = 320  # 64 of a local part, "@", 255 of a domain: RFC 5321 §4.5.3.1

_ATOM = re.compile(r"[^\x00-\x20\x7f()<>\[\]:;@\\,\"]+")
_BLANK = re.compile(r"[ \t\r\n]+")
_QUOTED = re.compile(r'"((?:[^"\\\x00\r\n]|\\[^\x00\r\n])*)"')
_LITERAL = re.compile(r"\[[A-Za-z0-9.:-]+\]")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_\x80-\U0010ffff-]+(?<!-)")  # of a domain; IDNA judges what is not ASCII
_FOLD = re.compile(r"\r?\n(?=[ \t])")
_ENCODED_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?\s]*\?=")


class AddressError(ValueError):
    """A text that is no address, or could be read in more than one way; the message says which text and why."""


@dataclass(frozen=True, slots=True)
class Address:
    """One mailbox: what stands on both sides of the "@". A quoted local part keeps its quotes."""

    local: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"

    @property
    def key(self) -> tuple[str, str]:
        """Equal for two spellings of one address: the case of a domain does not matter, that of a local part may."""
        return self.local, self.domain.casefold()


class _Kind(Enum):
    WORD = "word"
    QUOTED = "quoted string"
    LITERAL = "domain literal"
    BLANK = "blank"
    SPECIAL = "special"


@dataclass(frozen=True, slots=True)
class _Token:
    kind: _Kind
    text: str


def parse_address(text: str) -> Address:
    """Exactly one address, without or with a display name. Raises AddressError."""
    found = parse_list(text)
    if len(found) != 1:
        raise AddressError(f"{text.strip()!a} is {'no address' if not found else 'more than one address'}")
    return found[0]


def parse_list(field: str) -> list[Address]:
    """The addresses of a field's body such as that of To, in order. Raises AddressError."""
    unfolded = _FOLD.sub("", field).strip(" \t\r\n")
    found: list[Address] = []
    element: list[_Token] = []
    is_in_group = is_in_angle = False
    for token in _tokens(unfolded):
        special = token.text if token.kind is _Kind.SPECIAL else ""
        if special in ("<", ">"):
            is_in_angle = special == "<"
        match special:
            case "," if not is_in_angle:
                found += _mailbox(element, unfolded)
                element = []
            case ":" if not is_in_angle:
                if is_in_group or not _is_phrase(element):
                    raise _unclear(unfolded, "a colon stands where no group can begin")
                is_in_group, element = True, []
            case ";" if not is_in_angle:
                if not is_in_group:
                    raise _unclear(unfolded, "addresses are divided by commas, not by semicolons")
                found += _mailbox(element, unfolded)
                is_in_group, element = False, [token]
            case _:
                element.append(token)
    if is_in_group or is_in_angle:
        raise _unclear(unfolded, "a group is not closed with a semicolon" if is_in_group else "a > is missing")
    return found + _mailbox(element, unfolded)


def check_address(address: Address) -> Address:
    """See that an address can go over the wire as it is (RFC 5321 §4.1.2). Raises AddressError."""
    text = str(address)
    if any(char <= " " or char in "<>\x7f" or char.isspace() or not _is_text(char) for char in text):
        raise AddressError(f"{text!a} holds a blank, a control character or an angle bracket")
    if not address.local:
        raise AddressError(f"{text!a} has nothing before the @")
    if not _LITERAL.fullmatch(address.domain):
        labels = address.domain.split(".")
        if not all(1 <= len(label) <= 63 and _LABEL.fullmatch(label) for label in labels):
            raise AddressError(f"{address.domain!a} in {text!a} is no domain")
    if len(text.encode()) > MAX_ADDRESS_OCTETS:
        raise AddressError(f"{text[:40]!a}… is longer than {MAX_ADDRESS_OCTETS} octets")
    return address


def _is_text(char: str) -> bool:
    """No half of a surrogate pair, by which octets that are not UTF-8 are carried, and no C1 control."""
    return not ("\ud800" <= char <= "\udfff" or "\x80" <= char <= "\x9f")


def _tokens(text: str) -> Iterator[_Token]:
    """Words, quoted strings, domain literals and specials; a comment counts as a blank."""
    at = 0
    while at < len(text):
        char = text[at]
        if char == "(":
            at = _after_comment(text, at)
            yield _Token(_Kind.BLANK, "")
            continue
        for kind, pattern in _PATTERNS:
            if found := pattern.match(text, at):
                yield _Token(kind, found[0])
                at = found.end()
                break
        else:
            if char not in "<>:;@,":
                raise _unclear(text, f"{char!a} cannot stand there")
            yield _Token(_Kind.SPECIAL, char)
            at += 1


_PATTERNS = (
    (_Kind.BLANK, _BLANK),
    (_Kind.WORD, _ATOM),
    (_Kind.QUOTED, _QUOTED),
    (_Kind.LITERAL, _LITERAL),
)


def _after_comment(text: str, at: int) -> int:
    depth = 0
    while at < len(text):
        match text[at]:
            case "\\":
                at += 1
            case "(":
                depth += 1
            case ")":
                depth -= 1
        at += 1
        if depth == 0:
            return at
    raise _unclear(text, "a comment is not closed")


def _is_phrase(tokens: list[_Token]) -> bool:
    words = [token for token in tokens if token.kind is not _Kind.BLANK]
    return bool(words) and all(token.kind in (_Kind.WORD, _Kind.QUOTED) for token in words)


def _mailbox(element: list[_Token], field: str) -> list[Address]:
    """What stands between two commas: nothing or one address, which may have come before as the end of a group."""
    tokens = _stripped(element)
    if tokens and tokens[0].text == ";" and tokens[0].kind is _Kind.SPECIAL:
        if len(tokens) > 1:
            raise _unclear(field, "a comma is missing after a group")
        return []
    if not tokens:
        return []
    opens = [n for n, token in enumerate(tokens) if token.kind is _Kind.SPECIAL and token.text == "<"]
    if not opens:
        return [_addr_spec(tokens, field)]
    if len(opens) > 1 or tokens[-1] != _Token(_Kind.SPECIAL, ">"):
        raise _unclear(field, "angle brackets do not pair, or something follows them")
    address = _addr_spec(_stripped(tokens[opens[0] + 1 : -1]), field)
    _check_name(_stripped(tokens[: opens[0]]), address, field)
    return [address]


def _check_name(name: list[_Token], address: Address, field: str) -> None:
    """A display name is words. One that reads as an address is good only if it is the same address again.

    Otherwise a comma may be missing between two recipients. Half an encoded word means that a comma was inside it.
    """
    if name and not _is_phrase(name):
        spelled = _addr_spec(name, field)
        if str(spelled).casefold() != str(address).casefold():
            raise _unclear(field, f"is {spelled} before <{address}> a name, or is a comma missing?")
        return
    if any(token.kind is _Kind.WORD and _is_half_encoded(token.text) for token in name):
        raise _unclear(field, "an encoded word is cut in two; is there a comma or a bracket inside it?")


def _is_half_encoded(word: str) -> bool:
    return (word.startswith("=?") or word.endswith("?=")) and not _ENCODED_WORD.fullmatch(word)


def _addr_spec(tokens: list[_Token], field: str) -> Address:
    """`local@domain`; blanks and comments only around the "@" (RFC 5322 §4.4, as far as it is unambiguous)."""
    at = [n for n, token in enumerate(tokens) if token == _Token(_Kind.SPECIAL, "@")]
    shown = "".join(token.text or " " for token in tokens)
    if len(at) != 1:
        why = "has no domain; write it as name@domain" if not at else "has more than one @"
        raise _unclear(field, f"{shown!a} {why}")
    local, domain = _stripped(tokens[: at[0]]), _stripped(tokens[at[0] + 1 :])
    if len(local) != 1 or local[0].kind not in (_Kind.WORD, _Kind.QUOTED):
        raise _unclear(field, f"{shown!a} has no single word before the @")
    if len(domain) != 1 or domain[0].kind not in (_Kind.WORD, _Kind.LITERAL):
        raise _unclear(field, f"{shown!a} has no single word after the @")
    if local[0].text.startswith("=?") or "?=" in domain[0].text:
        raise _unclear(field, f"{shown!a} looks like a piece of an encoded word")
    return check_address(Address(_unquoted(local[0]), domain[0].text))


def _unquoted(token: _Token) -> str:
    """A local part in its plainest spelling: quotes go where nothing inside needs them."""
    if token.kind is _Kind.WORD:
        return token.text
    inner = re.sub(r"\\(.)", r"\1", token.text[1:-1])
    return inner if _ATOM.fullmatch(inner) else token.text


def _stripped(tokens: list[_Token]) -> list[_Token]:
    start, end = 0, len(tokens)
    while start < end and tokens[start].kind is _Kind.BLANK:
        start += 1
    while end > start and tokens[end - 1].kind is _Kind.BLANK:
        end -= 1
    return tokens[start:end]


def _unclear(field: str, why: str) -> AddressError:
    shown = field if len(field) <= 200 else field[:200] + "…"
    return AddressError(f"cannot read the addresses in {shown!a}: {why}")
