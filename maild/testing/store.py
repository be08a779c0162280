"""Mail in memory as an IMAP server sees it: UIDs, flags, mod-sequences and what was expunged.

A test uses it in three ways: to fill a server, to make "another client's" changes while one is connected, and to read
the truth afterwards. Mailbox names are decoded text with the store's separator between levels. Everything is plain
data; change it from the event loop's thread only. Invariants: `messages` ascend by UID, a UID is never used twice under
one UIDVALIDITY, and every change raises `highestmodseq` (RFC 7162 §3.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

SYSTEM_FLAGS = ("\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft")
_SYSTEM = {flag.lower(): flag for flag in SYSTEM_FLAGS}

Listener = Callable[["Mailbox"], None]


class Refused(Exception):
    """The store will not do that. `code` is the response code a server answers with (RFC 5530), or ""."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(slots=True)
class Message:
    """One message: `raw` in wire form, `date_s` (INTERNALDATE) in seconds since 1970 UTC."""

    uid: int
    raw: bytes
    flags: frozenset[str]
    date_s: int
    modseq: int
    email_id: str


class Mailbox:
    """A named set of messages. Tests may set `read_only`, `permanent_flags`, `special_use` and the counters freely.

    A new one is subscribed. `permanent_flags` are those that can be stored; `\\*` among them lets clients invent
    keywords. `modseqs` False makes it a mailbox without mod-sequences (NOMODSEQ, RFC 7162 §3.1.2.2).
    `append_limit` is the most octets an appended message may have (APPENDLIMIT, RFC 7889).
    """

    def __init__(self, name: str, mailbox_id: str, uidvalidity: int, special_use: str, changed: Listener) -> None:
        self.name = name
        self.mailbox_id = mailbox_id
        self.uidvalidity = uidvalidity
        self.uidnext = 1
        self.highestmodseq = 1
        self.messages: list[Message] = []
        self.expunged: list[tuple[int, int]] = []  # (modseq, uid), ascending by modseq
        self.expunge_floor = 0  # expunges up to this modseq are no longer in the log
        self.special_use = special_use
        self.subscribed = True
        self.read_only = False
        self.modseqs = True
        self.append_limit: int | None = None
        self.deleted = False
        self.permanent_flags: frozenset[str] = frozenset((*SYSTEM_FLAGS, "\\*"))
        self._keywords: dict[str, str] = {}
        self._by_uid: dict[int, Message] = {}
        self._changed = changed

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def __bool__(self) -> bool:
        return True  # an empty mailbox is one too

    @property
    def uids(self) -> list[int]:
        return [message.uid for message in self.messages]

    @property
    def keywords(self) -> tuple[str, ...]:
        """Every keyword that was ever set here, as first spelled."""
        return tuple(self._keywords.values())

    def find(self, uid: int) -> Message | None:
        return self._by_uid.get(uid)

    def message(self, uid: int) -> Message:
        """The message with that UID; KeyError where there is none."""
        return self._by_uid[uid]

    def permitted(self, flags: Iterable[str]) -> frozenset[str]:
        """Those of `flags` that can be stored, spelled as this mailbox spells them; `\\Recent` never can."""
        free = "\\*" in self.permanent_flags
        kept = set()
        for flag in flags:
            name = _SYSTEM.get(flag.lower()) or self._keywords.get(flag.lower(), flag)
            if name in self.permanent_flags or (free and not name.startswith("\\")):
                kept.add(name)
                if not name.startswith("\\"):
                    self._keywords.setdefault(name.lower(), name)
        return frozenset(kept)

    def add(self, raw: bytes, flags: Iterable[str], date_s: int, email_id: str) -> Message:
        """Append a message under the next UID."""
        self.highestmodseq += 1
        message = Message(self.uidnext, raw, self.permitted(flags), date_s, self.highestmodseq, email_id)
        self.uidnext += 1
        self.messages.append(message)
        self._by_uid[message.uid] = message
        self._changed(self)
        return message

    def set_flags(
        self,
        uids: Iterable[int],
        *,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        replace: Iterable[str] | None = None,
    ) -> list[int]:
        """Change flags, all under one new mod-sequence; the UIDs whose flags really changed."""
        more, fewer = self.permitted(add), self.permitted(remove)
        whole = None if replace is None else self.permitted(replace)
        changed = []
        for uid in uids:
            message = self._by_uid.get(uid)
            if message is None:
                continue
            flags = ((message.flags if whole is None else whole) | more) - fewer
            if flags != message.flags:
                message.flags, message.modseq = flags, self.highestmodseq + 1
                changed.append(uid)
        if changed:
            self.highestmodseq += 1
            self._changed(self)
        return changed

    def expunge(self, uids: Iterable[int]) -> list[int]:
        """Remove messages for good, whatever their flags, and log it; the UIDs that were there."""
        gone = sorted(set(uids) & self._by_uid.keys())
        if gone:
            self.highestmodseq += 1
            for uid in gone:
                del self._by_uid[uid]
                self.expunged.append((self.highestmodseq, uid))
            self.messages = [message for message in self.messages if message.uid in self._by_uid]
            self._changed(self)
        return gone

    def vanished_since(self, modseq: int) -> list[int]:
        """UIDs expunged after `modseq`, ascending; once the log is shorter, every UID that is not there (§3.2.5.2)."""
        if modseq < self.expunge_floor:
            return [uid for uid in range(1, self.uidnext) if uid not in self._by_uid]
        return sorted(uid for at, uid in self.expunged if at > modseq)

    def forget_expunged(self) -> None:
        """Drop the expunge log, as servers do that keep it for a while only."""
        self.expunged.clear()
        self.expunge_floor = self.highestmodseq

    def renumber(self, uidvalidity: int, *, keep: bool) -> None:
        """Start a new UIDVALIDITY: the same messages under UIDs from 1, or none at all."""
        self.uidvalidity = uidvalidity
        self.highestmodseq += 1
        self.messages = self.messages if keep else []
        for uid, message in enumerate(self.messages, 1):
            message.uid, message.modseq = uid, self.highestmodseq
        self._by_uid = {message.uid: message for message in self.messages}
        self.uidnext = len(self.messages) + 1
        self.forget_expunged()
        self._changed(self)


class Store:
    """All mailboxes of one account; INBOX is always there. `separator` divides levels, "" means no hierarchy.

    `clock` gives the INTERNALDATE of messages delivered without one, in seconds since 1970.
    """

    def __init__(self, *, separator: str = "/", clock: Callable[[], float] = time.time) -> None:
        self.separator = separator
        self._clock = clock
        self._mailboxes: dict[str, Mailbox] = {}
        self._listeners: list[Listener] = []
        self._numbers = 0
        self.create("INBOX")

    @property
    def mailboxes(self) -> tuple[Mailbox, ...]:
        return tuple(self._mailboxes.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._mailboxes)

    def find(self, name: str) -> Mailbox | None:
        return self._mailboxes.get(_spelled(name))

    def mailbox(self, name: str) -> Mailbox:
        """The mailbox of that name; INBOX in any case (RFC 9051 §5.1)."""
        found = self.find(name)
        if found is None:
            raise Refused("NONEXISTENT", f"there is no mailbox {name}")
        return found

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after every change of a mailbox; the result ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def create(self, name: str, special_use: str = "") -> Mailbox:
        """A new empty mailbox; its parents need not exist. `special_use` such as `\\Sent` (RFC 6154)."""
        name = _spelled(name)
        if not name or name in self._mailboxes:
            raise Refused("ALREADYEXISTS" if name else "CANNOT", f"mailbox {name} cannot be created")
        number = self._next()
        made = self._mailboxes[name] = Mailbox(name, f"M{number}", 1000 + number, special_use, self._changed)
        self._changed(made)
        return made

    def delete(self, name: str) -> None:
        """Remove a mailbox with its messages; its children stay."""
        mailbox = self.mailbox(name)
        if mailbox.name == "INBOX":
            raise Refused("CANNOT", "INBOX cannot be deleted")
        del self._mailboxes[mailbox.name]
        mailbox.deleted = True
        self._changed(mailbox)

    def rename(self, old: str, new: str) -> None:
        """Rename a mailbox and its children; renaming INBOX moves its messages into a new mailbox (RFC 9051 §6.3.6)."""
        new = _spelled(new)
        if new in self._mailboxes:
            raise Refused("ALREADYEXISTS", f"mailbox {new} exists already")
        if self.mailbox(old).name == "INBOX":
            self.create(new)
            self.move("INBOX", self.mailbox("INBOX").uids, new)
            return
        below = old + self.separator if self.separator else None
        for name in self.names:
            if name == old or (below is not None and name.startswith(below)):
                mailbox = self._mailboxes.pop(name)
                mailbox.name = new + name[len(old) :]
                self._mailboxes[mailbox.name] = mailbox
                self._changed(mailbox)

    def deliver(self, mailbox: str, raw: bytes, flags: Iterable[str] = (), date_s: int | None = None) -> int:
        """Put a message (wire form) into a mailbox, as an MDA or another client would; its UID."""
        date_s = int(self._clock()) if date_s is None else date_s
        return self.mailbox(mailbox).add(raw, flags, date_s, f"E{self._next()}").uid

    def set_flags(
        self,
        mailbox: str,
        uids: int | Iterable[int],
        *,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        replace: Iterable[str] | None = None,
    ) -> list[int]:
        """Change flags of one message or several; the UIDs whose flags really changed."""
        return self.mailbox(mailbox).set_flags(_several(uids), add=add, remove=remove, replace=replace)

    def expunge(self, mailbox: str, uids: int | Iterable[int]) -> list[int]:
        """Remove one message or several for good; the UIDs that were there."""
        return self.mailbox(mailbox).expunge(_several(uids))

    def copy(self, source: str, uids: int | Iterable[int], target: str) -> list[tuple[int, int]]:
        """Copy messages with flags, date and EMAILID (RFC 8474 §5.1); (old UID, new UID) for each."""
        into = self.mailbox(target)
        pairs = []
        for uid in _several(uids):
            message = self.mailbox(source).find(uid)
            if message is not None:
                twin = into.add(message.raw, message.flags, message.date_s, message.email_id)
                pairs.append((uid, twin.uid))
        return pairs

    def move(self, source: str, uids: int | Iterable[int], target: str) -> list[tuple[int, int]]:
        """Copy, then expunge the originals (RFC 6851); (old UID, new UID) for each."""
        pairs = self.copy(source, uids, target)
        self.expunge(source, [old for old, _ in pairs])
        return pairs

    def bump_uidvalidity(self, mailbox: str, *, keep: bool = True) -> int:
        """Give a mailbox a new UIDVALIDITY, with the same messages renumbered, or emptied; the new value."""
        self.mailbox(mailbox).renumber(2000 + self._next(), keep=keep)
        return self.mailbox(mailbox).uidvalidity

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _changed(self, mailbox: Mailbox) -> None:
        for listener in tuple(self._listeners):
            listener(mailbox)


def _spelled(name: str) -> str:
    return "INBOX" if name.upper() == "INBOX" else name


def _several(uids: int | Iterable[int]) -> Iterable[int]:
    return (uids,) if isinstance(uids, int) else uids
