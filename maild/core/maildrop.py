"""What to do about a POP3 maildrop: what is new, what may be deleted there, what is held back. Pure.

A maildrop has no flags and no events, only messages with unique-ids that a server should never use twice (RFC 1939 §7).
What is known of each is kept until 30 days after the server listed it last, so that a server that lists nothing for a
day, or a Maildir whose messages were moved elsewhere, brings nothing back.

Invariants: a deletion is due only for a message that is durable on this disk, and never in a maildrop whose unique-ids
have all just become others; age counts from when maild first saw the message; an identity made up here cannot be one
that a server gave.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from maild.core.identity import content_of, header_facts
from maild.core.model import Key, Uid

DAY_S = 86_400.0
FORGET_S = 30 * DAY_S  # after this long without being listed
HOLD_S = DAY_S  # how long nothing is deleted after all unique-ids became others
SIZE_SLACK_OCTETS = 512  # what header lines that some servers add (Status, X-UIDL) may make of a size
MADE_UP = " "  # begins an identity that no server gave: a unique-id has no space in front
_BY_CONTENT = f"{MADE_UP}sum:"
_OWN_LINES = (b"status:", b"x-status:", b"x-uidl:")


@dataclass(frozen=True, slots=True)
class Terms:
    """What the server says about how it wants to be used (RFC 2449 §6.5, §6.7).

    `login_delay_s` is the least time between two logins; `expire_days` for how long messages are kept, None for ever,
    0 not at all once they were retrieved.
    """

    login_delay_s: int = 0
    expire_days: int | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A message as this session lists it; `uid` is None where only its content can tell what it is."""

    number: int
    uid: Uid | None


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of a message.

    `key` is its file's, None until it was delivered; `size_octets` what LIST told; `header` its `header_digest`;
    `content` size and digest of its content. `gone_s`: since when it is not listed any more; `deletion_s`: when its
    deletion was asked for last, which QUIT has not confirmed. All times in seconds since 1970 UTC.
    """

    uid: Uid
    first_seen_s: float
    size_octets: int | None = None
    header: bytes | None = None
    gone_s: float | None = None
    deletion_s: float | None = None
    key: Key | None = None
    content: tuple[int, bytes] | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """`leave` is for ever (True), not at all (False), or for so many seconds since the message was first seen."""

    leave: bool | int
    delete_with_local: bool
    max_message_octets: int


@dataclass(slots=True)
class News:
    """A listing compared with what is known.

    `fresh` have no file yet, `unseen` were never listed before. `lost` were known and are not listed, `newly_lost` of
    those were listed last time; `returned` are listed again; `confirmed` are gone as was asked for; `forgotten` are
    gone unfetched, or for so long that nothing need be remembered. `is_renumbered`: of those known none is listed, and
    others are.
    """

    fresh: list[Uid] = field(default_factory=list)
    unseen: list[Uid] = field(default_factory=list)
    lost: list[Uid] = field(default_factory=list)
    newly_lost: list[Uid] = field(default_factory=list)
    returned: list[Uid] = field(default_factory=list)
    confirmed: list[Uid] = field(default_factory=list)
    forgotten: list[Uid] = field(default_factory=list)
    is_renumbered: bool = False


def compare(listed: Collection[Uid], known: Mapping[Uid, Known], now_s: float) -> News:
    """What changed. `listed` must be complete; those without an identity yet are not in it."""
    news = News()
    for uid in listed:
        message = known.get(uid)
        if message is None:
            news.unseen.append(uid)
        elif message.gone_s is not None:
            news.returned.append(uid)
        if message is None or message.key is None:
            news.fresh.append(uid)
    present = set(listed)
    for uid, message in known.items():
        if uid in present:
            continue
        if message.deletion_s is not None:
            news.confirmed.append(uid)
        elif message.key is None or (message.gone_s is not None and now_s - message.gone_s > FORGET_S):
            news.forgotten.append(uid)
        else:
            news.lost.append(uid)
            if message.gone_s is None:
                news.newly_lost.append(uid)
    news.is_renumbered = bool(news.newly_lost and present) and present.isdisjoint(known)
    return news


@dataclass(slots=True)
class Deletions:
    """What is due: by the policy for all messages, and because the user removed the local file."""

    by_policy: list[Uid] = field(default_factory=list)
    by_user: list[Uid] = field(default_factory=list)


def due(
    listed: Collection[Uid], known: Mapping[Uid, Known], removed: Collection[Uid], policy: Policy, now_s: float
) -> Deletions:
    """Which of the listed messages the server need not keep. `removed` are those whose file the user deleted."""
    found = Deletions()
    for uid in listed:
        message = known.get(uid)
        if message is None or message.key is None:
            continue  # it is not on this disk
        if is_past(message.first_seen_s, policy.leave, now_s):
            found.by_policy.append(uid)
        elif policy.delete_with_local and uid in removed:
            found.by_user.append(uid)
    return found


def is_past(first_seen_s: float, leave: bool | int, now_s: float) -> bool:
    """Whether the server has kept a message for long enough."""
    if isinstance(leave, bool):
        return not leave
    return now_s - first_seen_s >= leave


def is_same_size(told_octets: int | None, now_octets: int | None) -> bool:
    """Whether a message may be what it was: a unique-id that was used again would hardly have its size."""
    if told_octets is None or now_octets is None:
        return True
    return abs(told_octets - now_octets) <= SIZE_SLACK_OCTETS


def next_poll_s(poll_s: float, terms: Terms) -> float:
    """How long to wait from one poll to the next, less any jitter.

    At least two polls fall into the time that the server keeps mail (EXPIRE, RFC 2449 §6.7), and never is it less than
    LOGIN-DELAY (§6.5).
    """
    if terms.expire_days:
        poll_s = min(poll_s, terms.expire_days * DAY_S / 2)
    return max(poll_s, terms.login_delay_s)


# -- identities


def header_digest(message: bytes) -> bytes | None:
    """What Message-ID and Date say, in 16 octets, None where there is no Message-ID. A whole message will do."""
    message_id, date = header_facts(header_of(message))
    return hashed(message_id, date) if message_id else None


def hashed(message_id: bytes, date: bytes) -> bytes:
    """The digest of a header's Message-ID and Date, as `header_digest` gives it."""
    return hashlib.sha256(message_id + b"\0" + date).digest()[:16]


def header_of(message: bytes) -> bytes:
    """A message's header in wire form, or all of it where there is no empty line."""
    end = message.find(b"\r\n\r\n")
    return message if end < 0 else message[: end + 2]


def uid_of_header(header: bytes, size_octets: int) -> Uid:
    """The identity of a message without a unique-id: its header, less what servers write into it, and its size."""
    lines = (line for line in content_of(header).split(b"\n") if not line.lower().startswith(_OWN_LINES))
    digest = hashlib.sha256(b"\n".join(lines).strip(b"\n")).hexdigest()
    return Uid(f"{MADE_UP}top:{digest[:32]}:{size_octets}")


def uid_of_content(digest: bytes) -> Uid:
    """The identity of a message of which nothing but its content tells anything."""
    return Uid(f"{_BY_CONTENT}{digest.hex()}")


def is_by_content(uid: Uid) -> bool:
    """Whether a message has to be retrieved to be known as this one."""
    return uid.startswith(_BY_CONTENT)


def nth(uid: Uid, count: int) -> Uid:
    """The identity of the `count`-th message that has the same, counted from 1."""
    return uid if count <= 1 else Uid(f"{uid}#{count}")


def unambiguous(found: Mapping[int, Uid | None]) -> list[Listed]:
    """The messages with their unique-ids, without those that two or more of them share."""
    counts = Counter(found.values())
    return [Listed(number, uid if uid is None or counts[uid] == 1 else None) for number, uid in sorted(found.items())]


def matched(fresh: Mapping[Uid, tuple[int, bytes]], lost: Iterable[Known]) -> dict[Uid, Uid]:
    """New unique-ids of messages known by others: fresh → lost.

    By size and header, where that leaves no doubt: all lost ones of a group have the same content, and there are no
    more new ones than lost ones.
    """
    groups: dict[tuple[int, bytes], list[Uid]] = defaultdict(list)
    for uid, facts in fresh.items():
        groups[facts].append(uid)
    candidates: dict[tuple[int, bytes], list[Known]] = defaultdict(list)
    for message in lost:
        if message.size_octets is not None and message.header is not None and message.key is not None:
            candidates[message.size_octets, message.header].append(message)
    found: dict[Uid, Uid] = {}
    for facts, uids in groups.items():
        same = candidates.get(facts, [])
        if len(uids) <= len(same) and len({message.content for message in same}) == 1:
            found.update(zip(uids, (message.uid for message in same), strict=False))
    return found
