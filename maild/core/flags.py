"""Flags: how the server spells them, how they merge, and the letters they have in a Maildir file name.

System flags stand as `\\Seen`, keywords as the server spells them; keywords are compared without regard to case
(RFC 9051 §2.3.2). In a file name stands "KEY:2,LETTERS": D F P R S T for the flags every Maildir reader knows, a to z
for keywords by the mailbox's own list, and letters of other programs, which stay where they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from maild.core.model import Flags, Key

_SYSTEM = {flag.lower(): flag for flag in ("\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen", "$Forwarded")}
_LETTERS = {"D": "\\Draft", "F": "\\Flagged", "P": "$Forwarded", "R": "\\Answered", "S": "\\Seen", "T": "\\Deleted"}
_LETTER_OF = {flag.lower(): letter for letter, flag in _LETTERS.items()}
_INFO = ":2,"


def canonical_flags(names: Iterable[str]) -> Flags:
    """Flags as a server sent them, each once and in its one spelling.

    `\\Recent` is the session's, not the message's, and other names with a backslash mean nothing to a Maildir: both go.
    """
    found: dict[str, str] = {}
    for name in names:
        folded = name.lower()
        if folded in _SYSTEM:
            found[folded] = _SYSTEM[folded]
        elif name and not name.startswith("\\"):
            found.setdefault(folded, name)
    return frozenset(found.values())


@functools.lru_cache(maxsize=1024)
def keywords_of(flags: Flags) -> tuple[str, ...]:
    """Those flags that need a letter of the mailbox's own list, in order, without regard to case."""
    keywords = (flag for flag in flags if flag.lower() not in _LETTER_OF)
    return tuple(sorted(keywords, key=lambda flag: (flag.lower(), flag)))


def same_flags(one: Flags, other: Flags) -> bool:
    """Whether both say the same, however the keywords are spelled."""
    return one == other or _folded(one) == _folded(other)


def merge(base: Flags, local: Flags, remote: Flags) -> Flags:
    """What both sides should have: per flag, the side that changed it since `base` wins.

    (base ∧ local ∧ remote) ∨ ((local ∨ remote) − base). A flag has two values, so two changes of one flag agree.
    Keywords keep the server's spelling, or the local one where the server has none.
    """
    if local == base:
        return remote
    spelling = {flag.lower(): flag for flag in (*local, *remote)}
    old, here, there = _folded(base), _folded(local), _folded(remote)
    return frozenset(spelling[flag] for flag in (old & here & there) | ((here | there) - old))


def _folded(flags: Flags) -> frozenset[str]:
    return frozenset(flag.lower() for flag in flags)


def to_letters(flags: Flags, keyword_letters: Mapping[str, str]) -> str:
    """The letters of a file name, in ASCII order. `keyword_letters`: keyword in lower case → letter.

    A keyword without a letter is left out.
    """
    letters = set()
    for flag in flags:
        folded = flag.lower()
        letter = _LETTER_OF.get(folded) or keyword_letters.get(folded)
        if letter:
            letters.add(letter)
    return "".join(sorted(letters))


def from_letters(letters: str, keywords: Mapping[str, str]) -> Flags:
    """The flags that a file name's letters mean. `keywords`: letter → keyword. Unknown letters mean nothing."""
    known = letters.partition(",")[0]
    return frozenset(flag for letter in known if (flag := _LETTERS.get(letter) or keywords.get(letter)))


def replace_letters(
    old_letters: str, flags: Flags, keyword_letters: Mapping[str, str], keywords: Mapping[str, str]
) -> str:
    """The letters for `flags`, with those of the old name that mean nothing to maild kept.

    What follows a "," is another program's extension and stays as it is.
    """
    old, comma, extension = old_letters.partition(",")
    foreign = {letter for letter in old if letter not in _LETTERS and letter not in keywords}
    return "".join(sorted(foreign.union(to_letters(flags, keyword_letters)))) + comma + extension


def split_info(filename: str) -> tuple[Key, str | None]:
    """A Maildir file name as (key, letters); letters is None where there is no ":2," at all."""
    key, info, letters = filename.partition(_INFO)
    return Key(key), letters if info else None


def join_info(key: Key, letters: str | None) -> str:
    """The file name that `split_info` takes apart."""
    return key if letters is None else f"{key}{_INFO}{letters}"
