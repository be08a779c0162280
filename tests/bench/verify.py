"""Compares a Maildir with what should be in it: octets, flags and dates, nothing missing, nothing twice."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.corpus import Fact, Message, digest

_NUMBER = re.compile(rb"^Message-ID: <(\d+)\.", re.MULTILINE)
_ADDED = re.compile(rb"^(X-TUID): .*\n", re.MULTILINE)  # what mbsync writes into the messages it fetches

Facts = dict[int, Fact]


@dataclass(slots=True)
class Verdict:
    """What was found, in messages."""

    expected: int = 0
    found: int = 0
    exact: int = 0
    missing: int = 0
    doubled: int = 0
    altered: int = 0
    added: Counter[str] = field(default_factory=Counter)  # by what was added, as "X-TUID"
    wrong_flags: int = 0
    wrong_dates: int = 0

    @property
    def complete(self) -> bool:
        """Every message is there once."""
        return self.missing == self.doubled == 0

    @property
    def faithful(self) -> bool:
        """Every message is there once, octet for octet, with its flags and its date."""
        return self.complete and self.exact == self.expected and self.wrong_flags == self.wrong_dates == 0

    def text(self) -> str:
        """The verdict in a few words, for the table."""
        if self.faithful:
            return "all"
        counts = {
            "missing": self.missing,
            "doubled": self.doubled,
            "altered": self.altered,
            **{f"with {header} added": count for header, count in self.added.items()},
            "wrong flags": self.wrong_flags,
            "wrong dates": self.wrong_dates,
        }
        return ", ".join(f"{_share(count, self.expected)} {what}" for what, count in counts.items() if count)


def _share(count: int, whole: int) -> str:
    return "all" if count == whole else str(count)


def facts_of(messages: Iterable[Message]) -> Facts:
    """Number → what the Maildir must have."""
    return {message.number: message.fact() for message in messages}


def verify(maildir: Path, mailboxes: Mapping[str, Facts]) -> Verdict:
    """Compare `<maildir>/<mailbox>/{cur,new}` with the facts, for each mailbox."""
    verdict = Verdict()
    for mailbox, facts in mailboxes.items():
        verdict.expected += len(facts)
        seen = Counter[int | None]()
        for place in ("cur", "new"):
            directory = maildir / mailbox / place
            for path in directory.iterdir() if directory.is_dir() else ():
                seen[_compare(path, facts, verdict)] += 1
        verdict.found += seen.total()
        verdict.missing += sum(number not in seen for number in facts)
        verdict.doubled += sum(count - 1 for number, count in seen.items() if number is not None)
    return verdict


def _compare(path: Path, facts: Facts, verdict: Verdict) -> int | None:
    """Count one file's agreement; its message's number, None if it has none that is known here."""
    with path.open("rb") as file:
        raw = file.read()
        modified = int(os.fstat(file.fileno()).st_mtime)
    told = _NUMBER.search(raw[:16_384])
    fact = facts.get(int(told[1])) if told else None
    if told is None or fact is None:
        verdict.altered += 1
        return None
    if digest(raw) == fact.digest:
        verdict.exact += 1
    elif (added := _ADDED.search(raw)) and digest(_ADDED.sub(b"", raw, count=1)) == fact.digest:
        verdict.added[added[1].decode()] += 1
    elif raw.endswith(b"\n") and digest(raw[:-1]) == fact.digest:
        verdict.added["a line end"] += 1
    else:
        verdict.altered += 1
    verdict.wrong_flags += path.name.partition(":2,")[2] != fact.letters
    verdict.wrong_dates += fact.mtime is not None and modified != fact.mtime
    return int(told[1])
