"""Adoption: a message that is on both sides without a pair gets one. The one recovery there is.

A crash between effect and commit, a lost state, a new UIDVALIDITY, a Maildir that another tool wrote: all leave a
message on both sides and no pair. Most are told apart by cheap facts, the others by their content once it has come.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, cast

from maild.core.errors import LocalError
from maild.core.flags import same_flags
from maild.core.identity import TUID_WIRE_OCTETS, LocalIdentity, disk_and_content, fingerprint
from maild.core.model import NO_FLAGS, Content, Facts, Fetched, Flags, Key, MergeFlags, Pair, Permitted, Uid
from maild.core.reconcile import merge_flags, missing_in
from maild.engine.look import flags_here
from maild.local.maildir import Maildir
from maild.local.scan import Entry
from maild.local.spool import Spool
from maild.local.state import Changes, MailboxState, Orphan, State

MOST_COMPARED = 100  # equal messages, each with each
MARK_OCTETS = 64  # more than a line that is in a file and no part of its content, as mbsync's


class Unsure(NamedTuple):
    """The pair that a file had, whose message is gone from where it was: deleted, or moved to where the file is."""

    mailbox_id: int
    pair: Pair


class Unreadable(NamedTuple):
    """A file of which nobody can tell what it is: its size in octets, None where not even that, and why, in words."""

    size_octets: int | None
    reason: str

    def may_be(self, size_octets: int) -> bool:
        """Whether it may be the message of this size; each of its lines may have an octet that does not count."""
        mine = self.size_octets
        return mine is None or size_octets <= mine <= 2 * size_octets + MARK_OCTETS


@dataclass(slots=True)
class Unpaired:
    """Files of one mailbox that no pair knows, by what they are. `orphans` keep what lost pairs knew.

    Files that are `unsure` are adopted by their content only; those that nothing equal came for are deleted. Those that
    are `unreadable` are nothing else: they are neither sent nor adopted, and may be whatever is missing elsewhere.
    """

    entries: dict[Key, Entry] = field(default_factory=dict)
    identities: dict[Key, LocalIdentity] = field(default_factory=dict)
    orphans: dict[Key, Orphan] = field(default_factory=dict)
    unsure: dict[Key, Unsure] = field(default_factory=dict)
    unreadable: dict[Key, Unreadable] = field(default_factory=dict)
    by_content: dict[Content, list[Key]] = field(init=False)
    _kept_there: dict[Content, list[Key]] = field(init=False)

    def __post_init__(self) -> None:
        self.know(self.orphans)
        self.by_content = defaultdict(list)
        for key, identity in self.identities.items():
            self.by_content[identity.size_octets, identity.digest].append(key)

    def sizes(self) -> set[int]:
        """What the messages may count on the server."""
        plain = {identity.facts.size_octets for identity in self.identities.values()}
        return plain | {i.facts.size_octets + TUID_WIRE_OCTETS for i in self.identities.values() if i.has_tuid}

    def by_facts(self, *, with_tuid: bool) -> dict[Facts, list[Key]]:
        """Keys by their cheap identity, without those that have no Message-ID to be known by.

        With `with_tuid` only those that mbsync marked, as the server counts them if it has the mark too.
        """
        found: dict[Facts, list[Key]] = defaultdict(list)
        for key, identity in self.identities.items():
            facts = identity.facts
            if with_tuid:
                facts = Facts(facts.size_octets + TUID_WIRE_OCTETS, facts.message_id, facts.date)
            if facts.message_id and (identity.has_tuid or not with_tuid):
                found[facts].append(key)
        return found

    def with_content(self, content: Content, flags: Flags = NO_FLAGS, maildir: Maildir | None = None) -> Key | None:
        """A file with this very content, first an unsure one; with a `maildir` rather one with these flags as well."""
        found = [key for key in self.by_content.get(content, ()) if key in self.entries]
        found = [key for key in found if key in self.unsure] or found
        if maildir is None or len(found) > MOST_COMPARED:
            return found[0] if found else None
        alike = (key for key in found if same_flags(maildir.flags(self.entries[key]), flags))
        return next(alike, found[0] if found else None)

    def untold(self) -> list[Orphan]:
        """What the server has, or may have, under a Uid that nobody told."""
        return [orphan for orphan in self.orphans.values() if orphan.is_untold]

    def content_of(self, key: Key) -> Content:
        return self.identities[key].size_octets, self.identities[key].digest

    def unsure_contents(self) -> set[Content]:
        """Contents of which facts are not to pair any file: the one that waits for its message has the first claim."""
        return {self.content_of(key) for key in self.unsure if key in self.entries}

    @property
    def kept_here(self) -> dict[Key, Orphan]:
        """Files whose deletion on the server did not travel: they are not to be sent."""
        return {key: orphan for key, orphan in self.orphans.items() if orphan.only == "local" and key in self.entries}

    def know(self, orphans: dict[Key, Orphan]) -> None:
        """Take these for its orphans."""
        self.orphans, self._kept_there = orphans, defaultdict(list)
        for key, orphan in orphans.items():
            if orphan.only == "remote":
                self._kept_there[orphan.size_octets, orphan.digest].append(key)

    @property
    def has_kept_there(self) -> bool:
        return bool(self._kept_there)

    def take_kept_there(self, content: Content) -> Orphan | None:
        """One with this content whose deletion here did not travel: it is not to come back."""
        while keys := self._kept_there.get(content):
            if (orphan := self.orphans.pop(keys.pop(0), None)) is not None:
                return orphan
        self._kept_there.pop(content, None)
        return None

    def add(self, entry: Entry, identity: LocalIdentity) -> None:
        self.entries[entry.key], self.identities[entry.key] = entry, identity
        self.by_content[identity.size_octets, identity.digest].append(entry.key)

    def remember(self, key: Key, pair: Pair) -> None:
        """What was its pair elsewhere: the base of its flags."""
        self.orphans[key] = Orphan(key, pair.flags, pair.size_octets, pair.digest)

    def take(self, key: Key) -> tuple[Entry, LocalIdentity, Flags]:
        """Its entry, identity and base flags; it is no longer unpaired."""
        orphan = self.orphans.pop(key, None)
        return self.entries.pop(key), self.identities.pop(key), NO_FLAGS if orphan is None else orphan.flags


def sent_orphan(key: Key, flags: Flags, content: Content, only: Literal["sending", "sent"] = "sent") -> Orphan:
    """What the server has been given; with "sending" what it is about to be: after a kill it is looked for there."""
    return Orphan(key, flags, *content, only=only)


def unsure_of(mailbox_id: int, orphan: Orphan) -> Unsure:
    """A file that was being deleted, in the mailbox where it is: its pair has gone already."""
    pair = Pair(kept_uid(orphan.key), orphan.key, orphan.flags, orphan.size_octets, orphan.digest)
    return Unsure(mailbox_id, pair)


def kept_uid(key: Key) -> Uid:
    """Instead of a Uid, for a message that the server has not: no adapter gives or reads such a one."""
    return Uid("-" + hashlib.sha256(os.fsencode(key)).hexdigest()[:16])


def read_unpaired(
    state: State, mailbox: MailboxState, maildir: Maildir, entries: Mapping[Key, Entry], *, needs_all: bool = False
) -> Unpaired:
    """Read what these files are. Blocks for as long as that takes.

    One that cannot be read raises LocalError if `needs_all`: it may be any of the messages that are new on the server.
    """
    identities: dict[Key, LocalIdentity] = {}
    unreadable: dict[Key, Unreadable] = {}
    for key, entry in entries.items():
        try:
            identity = maildir.identity(entry)
        except LocalError as exc:
            if needs_all or not is_its_own(exc):
                raise
            unreadable[key] = Unreadable(maildir.size_on_disk(entry), exc.text)
        else:
            if identity is not None:
                identities[key] = identity
    readable = {key: entries[key] for key in identities}
    return Unpaired(readable, identities, state.orphans(mailbox.id), unreadable=unreadable)


def is_its_own(exc: LocalError) -> bool:
    """Whether only one file is in trouble: its octets or its permissions."""
    return isinstance(exc.__cause__, OSError) and exc.__cause__.errno in {errno.EACCES, errno.EPERM, errno.EIO}


Alike = Callable[[Uid, Key], bool]


def match_facts(
    unpaired: Unpaired, facts: Mapping[Uid, Facts], is_alike: Alike = lambda uid, key: False
) -> dict[Uid, Key]:
    """Pair by cheap identity, where that leaves no doubt. Of equal messages those go together that are alike in flags.

    No doubt: a Message-ID is there, all local files of the group have the same content, and there are no more messages
    on the server than files. Everything else is decided by the content once it has been fetched.
    """
    groups: dict[Facts, list[Uid]] = defaultdict(list)
    for uid, fact in facts.items():
        groups[fact].append(uid)
    matched: dict[Uid, Key] = {}
    for with_tuid in (False, True):
        taken = set(matched.values())
        for fact, same in unpaired.by_facts(with_tuid=with_tuid).items():
            keys = [key for key in same if key not in taken]
            uids = [uid for uid in groups.get(fact, []) if uid not in matched]
            if len(uids) <= len(keys) and len({unpaired.identities[key].digest for key in keys}) == 1:
                matched.update(_together(sorted(uids, key=uid_order), sorted(keys), is_alike))
    return matched


def _together(uids: list[Uid], keys: list[Key], is_alike: Alike) -> dict[Uid, Key]:
    """Each of `uids` with one of `keys`, of which there are as many or more."""
    if len(keys) == 1 or len(keys) > MOST_COMPARED:
        return dict(zip(uids, keys, strict=False))
    matched: dict[Uid, Key] = {}
    for uid in uids:
        if (key := next((key for key in keys if is_alike(uid, key)), None)) is not None:
            matched[uid] = key
            keys.remove(key)
    left = [uid for uid in uids if uid not in matched]
    return matched | dict(zip(left, keys, strict=False))


def uid_order(uid: Uid) -> tuple[int, str]:
    """A key to sort by: newer ones come later."""
    return len(uid), uid


@dataclass(slots=True)
class Adopted:
    """What came of an adoption: files whose flags changed, flags the server still needs, and whether any file escaped.

    A file escapes when a reader renames it just then; the next look brings its flags together.
    """

    flags: int = 0
    merges: list[MergeFlags] = field(default_factory=list)
    has_escaped: bool = False


def adopt(
    state: State,
    mailbox: MailboxState,
    maildir: Maildir,
    unpaired: Unpaired,
    matched: Mapping[Uid, Key],
    remote: Mapping[Uid, Flags],
    permitted: Permitted | None,
) -> Adopted:
    """Make pairs of what is on both sides, and bring the flags together on this one. Blocks.

    The base of a new pair is what the server has: what only this disk has is then a local change, told in `merges`.
    """
    adopted = Adopted()
    pairs: dict[Key, Pair] = {}
    moved: list[Changes] = []
    changes: dict[Key, tuple[Entry, Flags]] = {}
    agreed: dict[Key, Flags] = {}
    entries: dict[Key, Entry] = {}
    for uid, key in matched.items():
        entry, identity, base = unpaired.take(key)
        entries[key] = entry
        if (was := unpaired.unsure.pop(key, None)) is not None:
            moved.append(Changes(was.mailbox_id, drop=[was.pair.uid]))
        here, there = flags_here(maildir, entry, base), remote[uid]
        pairs[key] = Pair(uid, key, there, identity.size_octets, identity.digest)
        was_base = pairs[key] if base == there else Pair(uid, key, base, identity.size_octets, identity.digest)
        operation = merge_flags(was_base, here, there, permitted)
        if not same_flags(operation.flags, here):
            changes[key] = entry, operation.flags
            agreed[key] = there - missing_in(here | base, there)
        if operation.add or operation.remove:
            adopted.merges.append(operation)
    done = maildir.set_flags(list(changes.values())) if changes else {}
    for key, pair in pairs.items():
        entry = done.get(key, entries[key])
        if same_flags(flags_here(maildir, entry, pair.flags), pair.flags):
            pairs[key] = Pair(pair.uid, key, pair.flags, pair.size_octets, pair.digest, info=entry.info)
    for key in changes.keys() - done.keys():
        pairs[key] = replace(pairs[key], flags=agreed[key])
        adopted.has_escaped = True
    escaped = {pairs[key].uid for key in changes.keys() - done.keys()}
    adopted.merges = [operation for operation in adopted.merges if operation.uid not in escaped]
    adopted.flags = len(done)
    state.apply([*moved, Changes(mailbox.id, add=list(pairs.values()))])
    return adopted


def fetched_content(fetched: Fetched) -> Content:
    """What has just been fetched, to be looked for among local files. Blocks for as long as hashing takes."""
    if isinstance(fetched.raw, Spool):
        return fetched.raw.finish()
    _, content = disk_and_content(cast("bytes | bytearray", fetched.raw))
    return fingerprint(content)
