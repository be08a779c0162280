"""UID sets on the wire, and commands about them: cut to a line's length, several in flight, each answer looked at."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from maild.core.errors import Rejected
from maild.core.model import Uid
from maild.remote.imap.answers import Reply
from maild.remote.imap.parse import Data, Event, Token, uid_ranges, uid_set
from maild.remote.imap.session import Command, ImapSession

SET_OCTETS = 4000  # a command line stays far below the 8,192 octets of RFC 7162 §4
WINDOW = 8  # commands in flight
ANSWER_LIMIT_S = 300.0  # a server may move thousands of messages, or scan one for viruses, before it says a word
MOST_FOUND = 10_000_000  # UIDs in one answer


def numbers_of(uids: Iterable[Uid]) -> list[int]:
    return [int(uid) for uid in uids]


def uids_of(numbers: Iterable[int]) -> set[Uid]:
    return {Uid(str(number)) for number in numbers}


def cut(numbers: list[int]) -> list[list[int]]:
    """Halve a batch until its set fits into a command line."""
    if len(numbers) < 2 or len(uid_set(numbers)) <= SET_OCTETS:
        return [numbers] if numbers else []
    middle = len(numbers) // 2
    return cut(numbers[:middle]) + cut(numbers[middle:])


def sets(uids: Iterable[Uid]) -> list[list[int]]:
    """Ascending, each once, cut so that each fits into a command line."""
    return cut(sorted(set(numbers_of(uids))))


@dataclass(frozen=True, slots=True)
class Call:
    """One UID command about some messages: what stands before and after the set."""

    name: str
    numbers: list[int]
    rest: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def launch(self, session: ImapSession) -> Command:
        return session.launch(self.name, *self.before, uid_set(self.numbers), *self.rest, prefix="UID")


Answer = Reply | Rejected


async def pipelined(session: ImapSession, calls: Iterable[Call]) -> list[tuple[Call, Answer]]:
    """Carry the calls out in order, a few in flight; a refusal is an answer like another."""
    answers: list[tuple[Call, Answer]] = []
    running: deque[tuple[Call, Command]] = deque()

    async def settle() -> None:
        call, command = running.popleft()
        try:
            answers.append((call, await session.finish(command, ANSWER_LIMIT_S)))
        except Rejected as exc:
            answers.append((call, exc))

    for call in calls:
        running.append((call, call.launch(session)))
        if len(running) >= WINDOW:
            await settle()
    while running:
        await settle()
    return answers


def searching(numbers: list[int]) -> Call:
    """Which of these messages are there."""
    return Call("SEARCH", numbers, before=("UID",))


async def search(session: ImapSession, criterion: str) -> set[int]:
    """UIDs in the open mailbox; in ranges where the server can (RFC 4731). Raises Rejected."""
    has_ranges = session.has("ESEARCH") or session.has("IMAP4REV2")
    criteria = ("RETURN", "(ALL)", criterion) if has_ranges else (criterion,)
    return found_in((await session.finish(session.launch("SEARCH", *criteria, prefix="UID"), ANSWER_LIMIT_S)).events)


def found_in(events: Iterable[Event]) -> set[int]:
    """The UIDs of SEARCH and ESEARCH responses."""
    found: set[int] = set()
    for event in events:
        if isinstance(event, Data) and event.name in {"SEARCH", "ESEARCH"}:
            for low, high in _ranges(event):
                if len(found) + high - low >= MOST_FOUND:
                    raise Rejected("the server finds more messages than a mailbox can have")
                found.update(range(low, high + 1))
    return found


def _ranges(event: Data) -> Iterator[tuple[int, int]]:
    words: Sequence[Token] = event.tokens
    if event.name == "ESEARCH":
        at = next((i for i, word in enumerate(words) if isinstance(word, bytes) and word.upper() == b"ALL"), None)
        words = () if at is None else words[at + 1 : at + 2]
    elif b"(" in words:
        words = words[: words.index(b"(")]  # (MODSEQ n), RFC 7162 §3.1.5
    for word in words:
        if isinstance(word, bytes):
            yield from uid_ranges(word)
