"""Which message that vanished in one place is the one that appeared in another. Pure.

Moves are found by content, before anything else is decided, among all mailboxes of an account: a file that vanished and
an equal one that has no pair (`local_moves`), a Uid that vanished and a new message of equal facts (`remote_moves`).
Each appearance is used once, and where there are several the nearest wins: the same unique name, the same mailbox, any.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from maild.core.model import Content, Facts, Key, MailboxName, Pair, Uid


class Gone(NamedTuple):
    """A pair that one side or both no longer have, in the mailbox where it was."""

    mailbox: MailboxName
    pair: Pair


class File(NamedTuple):
    """A local file without a pair."""

    mailbox: MailboxName
    key: Key


class NewMessage(NamedTuple):
    """A message on the server without a pair."""

    mailbox: MailboxName
    uid: Uid


NOTHING: Mapping[Gone, File] = {}
SLACK_OCTETS = 64  # by which a server's sizes may be wrong, as Exchange's are


def local_moves(gone: Iterable[Gone], files: Mapping[Content, Sequence[File]]) -> dict[Gone, File]:
    """For each pair whose file is gone the file that it has become, where there is one with its content."""
    left = {content: list(some) for content, some in files.items()}
    wanted: dict[Content, list[Gone]] = defaultdict(list)
    for one in gone:
        if one.pair.content in left:
            wanted[one.pair.content].append(one)
    moved: dict[Gone, File] = {}
    for content, several in wanted.items():
        moved.update(_nearest(several, left[content]))
    return moved


def _nearest(gone: list[Gone], files: list[File]) -> dict[Gone, File]:
    """Each file once: to whom it is nearest first, and then in the order given. In linear time."""
    moved: dict[Gone, File] = {}
    left = dict.fromkeys(range(len(files)))
    kinds: tuple[tuple[Callable[[Gone], str], Callable[[File], str]], ...] = (
        (lambda one: one.pair.key, lambda file: file.key),
        (lambda one: one.mailbox, lambda file: file.mailbox),
        (lambda _: "", lambda _: ""),
    )
    for of_gone, of_file in kinds:
        alike: dict[str, deque[int]] = defaultdict(deque)
        for n in left:
            alike[of_file(files[n])].append(n)
        for one in gone:
            if one not in moved and (some := alike.get(of_gone(one))):
                n = some.popleft()
                moved[one] = files[n]
                del left[n]
    return moved


def remote_moves(
    gone: Mapping[Facts, Sequence[Gone]],
    fresh: Mapping[Facts, Sequence[NewMessage]],
    moved_here: Mapping[Gone, File] = NOTHING,
) -> dict[Gone, NewMessage]:
    """For each pair whose message is gone on the server the new one there that it has become.

    `gone` is keyed by the facts of its local file, which is where it was or where `moved_here` says; nearest is a new
    message in that mailbox. Facts without a Message-ID prove nothing; nor do those that local files of different
    contents share.
    """
    moved: dict[Gone, NewMessage] = {}
    for facts, several in gone.items():
        found = fresh.get(facts)
        if not found or not facts.message_id or len({one.pair.digest for one in several}) > 1:
            continue
        left, far = dict.fromkeys(range(len(found))), list[Gone]()
        near: dict[MailboxName, deque[int]] = defaultdict(deque)
        for n, new in enumerate(found):
            near[new.mailbox].append(n)
        for one in sorted(several, key=lambda one: (one.mailbox, one.pair.uid)):
            where = moved_here[one].mailbox if one in moved_here else one.mailbox
            if near[where]:
                n = near[where].popleft()
                del left[n]
                moved[one] = found[n]
            else:
                far.append(one)
        moved.update(zip(far, (found[n] for n in left), strict=False))
    return moved


def likely(sizes: Sequence[int], fresh: Sequence[tuple[Uid, int]]) -> list[Uid]:
    """Those that may have one of these sizes on disk, where each line is an octet shorter than on the wire."""
    ordered = sorted(sizes)
    likely: list[Uid] = []
    for uid, size in fresh:
        at = bisect_right(ordered, size + SLACK_OCTETS) - 1
        if at >= 0 and ordered[at] * 2 + SLACK_OCTETS >= size:
            likely.append(uid)
    return likely
