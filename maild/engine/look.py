"""Looking at this disk: which mailboxes' directories changed, and what about their messages.

A directory's mtime rises whenever a file in it is made, removed or renamed, and flags are part of file names: a mailbox
whose stamp is the one that was stored after the last look has nothing new in it. Whatever is in doubt is looked at.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from maild.config.values import Layout
from maild.core.errors import LocalError
from maild.core.flags import same_flags, split_info
from maild.core.model import NO_FLAGS, Flags, Key, Pair, Uid
from maild.core.reconcile import LocalNews
from maild.local.maildir import Maildir
from maild.local.scan import Entry
from maild.local.state import Changes, MailboxState, State
from maild.local.survey import Stamp, is_settled, stamp_of, survey

Seconds = Mapping[Key, Sequence[Entry]]  # further files with the unique name of another

WORTH_NOTING = 100  # names
MOST_NAMELESS = 20_000  # pairs whose file may have any name; with more, every pair is looked at


@dataclass(slots=True)
class Look:
    """What is new in one mailbox's directory since its pairs were last right.

    `stamp` is to be stored once all of it is carried out; None where it proves nothing (the directory changed within
    the same tick of the clock). `unpaired` are the files that no pair knows, `seen` those
    of changed pairs, `seconds` files that have the unique name of a pair's file, beside it, and the same content: they
    are ignored as long as that is there, and go with it. `is_here`: there is a directory.
    """

    stamp: str | None = None
    is_here: bool = True
    news: LocalNews = field(default_factory=LocalNews)
    unpaired: dict[Key, Entry] = field(default_factory=dict)
    seen: dict[Key, Entry] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=dict)

    @property
    def has_news(self) -> bool:
        return bool(self.news.changed or self.news.gone or self.unpaired)


def open_mailbox(root: Path, mailbox: MailboxState) -> Maildir | None:
    """The mailbox's directory as it is, None where it is not there."""
    return Maildir.open(root, PurePosixPath(mailbox.directory))


def look_at(state: State, mailbox: MailboxState, maildir: Maildir | None, *, may_note: bool = True) -> Look:
    """Compare the whole directory with the pairs. Blocks.

    Most names are those that the state expects, and are not looked at one by one; unless their letters mean something
    else by now, as a changed list of keywords may make them. Names that readers gave without changing flags are noted
    for the next time, if `may_note`.
    """
    if maildir is None:
        return Look(is_here=False, news=LocalNews(gone=_gone_with_directory(state, mailbox)))
    expected, others = state.names(mailbox.id)  # first: meanwhile a change that came just before this settles
    now_ns = time.time_ns()
    stamp = stamp_of(maildir.directory)
    settled = stamp.text() if is_settled(stamp, now_ns) else None
    other_names: Collection[Key] | None = None  # keys that have one instead of the expected; None: nobody knows
    otherwise = _meaning_otherwise(state, mailbox, maildir) if _keywords_changed(mailbox, stamp) else {}
    if others + len(otherwise) > MOST_NAMELESS:
        entries, doubtful = maildir.entries(), state.keys(mailbox.id)
        duplicates = maildir.duplicates
    else:
        entries, doubtful, other_names, duplicates = maildir.differences(expected)
        still = {key: entry for key, entry in otherwise.items() if key not in entries and key not in doubtful}
        found = maildir.locate(dict.fromkeys(still, NO_FLAGS), still) if still else {}
        entries.update(found)
        other_names |= found.keys()
        settled = settled if len(found) == len(still) else None
        doubtful.update(state.nameless(mailbox.id, others) if others else ())
    doubtful.update(entries)
    pairs = state.pairs_by_key(mailbox.id, doubtful) if doubtful else {}
    news, seen = LocalNews(), dict[Key, Entry]()
    renamed: list[tuple[Uid, Flags, str | None]] = []
    expected_here = _expected_beside(pairs, entries, other_names)
    seconds = _tell_apart(maildir, pairs, entries, expected_here, duplicates, may_rename=may_note)
    for key, pair in pairs.items():
        entry = entries.pop(key, None)
        if entry is not None and entry is expected_here.get(key):
            continue
        if entry is None:
            if pair.only != "remote":
                news.gone[pair.uid] = pair
        elif not pair.only:
            mine = flags_here(maildir, entry, pair.flags)
            if not same_flags(mine, pair.flags):
                news.changed[pair.uid] = pair, mine
                seen[key] = entry
            elif pair.info != entry.info:
                renamed.append((pair.uid, pair.flags, entry.info))
    if len(renamed) > WORTH_NOTING and may_note:
        state.apply([Changes(mailbox.id, flags=renamed)])
    # With a second file it is looked at each time: who removes the first one has to know of it.
    return Look(None if seconds else settled, True, news, entries, seen, seconds)


def look_if_changed(state: State, mailbox: MailboxState, maildir: Maildir, *, may_note: bool = True) -> Look:
    """The same, without reading any names where the last look found nothing and nothing has changed since. Blocks.

    An orphan may be a file that lost its pair without a change to the directory.
    """
    is_same = mailbox.matched and stamp_of(maildir.directory).text() == mailbox.stamp
    if is_same and not state.orphans(mailbox.id):
        return Look(mailbox.stamp)
    return look_at(state, mailbox, maildir, may_note=may_note)


def _expected_beside(
    pairs: Mapping[Key, Pair], entries: Mapping[Key, Entry], other_names: Collection[Key] | None
) -> dict[Key, Entry]:
    """Files under the name that the state expects, of which there is one under another name as well."""
    found: dict[Key, Entry] = {}
    for key in entries.keys() & pairs.keys() if other_names is not None else ():
        info = pairs[key].info
        if info is not None and pairs[key].only != "remote" and key not in (other_names or ()):
            letters = split_info(info)[1]
            found[key] = Entry(key, "new" if letters is None else "cur", letters)
    return found


def _tell_apart(
    maildir: Maildir,
    pairs: Mapping[Key, Pair],
    entries: dict[Key, Entry],
    expected_here: Mapping[Key, Entry],
    duplicates: Sequence[Entry],
    *,
    may_rename: bool,
) -> Seconds:
    """Of several files with one unique name that of the pair remains in `entries`; those that are the same are told.

    Another message that has the name, as of a backup that was copied over the Maildir, gets a name of its own, and is
    an entry: whatever is done to the one would be done to the other else.
    """
    several = {key: [entry, entries[key]] for key, entry in expected_here.items()}
    for entry in duplicates:
        several.setdefault(entry.key, [entries[entry.key]]).append(entry)
    seconds: dict[Key, list[Entry]] = defaultdict(list)
    for key, files in several.items():
        own = files[0]
        if key in pairs and key not in expected_here:
            own = _own(maildir, pairs[key], files)
        entries[key] = own
        for entry in (entry for entry in files if entry is not own):
            if not may_rename or maildir.is_same(own, entry):
                seconds[key].append(entry)
            elif (aside := maildir.put_aside(entry)) is not None:
                entries[aside.key] = aside
    return {key: same for key, same in seconds.items() if key in pairs}


def _own(maildir: Maildir, pair: Pair, files: Sequence[Entry]) -> Entry:
    """The pair's file: the one with its name, else with its content, else the first."""
    named = next((entry for entry in files if entry.info == pair.info), None)
    return named or next((entry for entry in files if _holds(maildir, entry, pair)), files[0])


def _holds(maildir: Maildir, entry: Entry, pair: Pair) -> bool:
    """Whether this file is known to hold the message of the pair."""
    try:
        identity = maildir.identity(entry)
    except LocalError:
        return False
    return identity is not None and (identity.size_octets, identity.digest) == pair.content


def has_local_news(state: State, root: Path, layout: Layout) -> bool:
    """Whether anything below an account's Maildir is other than the state says, as far as this disk can tell. Blocks.

    After maild's own writes nothing is, and nobody has to ask the server.
    """
    if not root.exists():
        return True
    found, rows = survey(root, layout), state.mailboxes()
    if not found.mailboxes.keys() <= {row.directory for row in rows.values()}:
        return True
    for row in rows.values():
        here = found.mailboxes.get(row.directory)
        if here is not None and row.epoch is not None and here.stamp.text() == row.stamp:
            continue
        maildir = open_mailbox(root, row)
        if maildir is None:
            return True
        with maildir:
            look = look_at(state, row, maildir)
        if look.has_news or row.epoch is None:
            return True
        state.set_stamp(row.id, look.stamp)
    return False


def _keywords_changed(mailbox: MailboxState, stamp: Stamp) -> bool:
    """Whether the list of keywords is another than at the last look, so that letters may mean something else."""
    before = Stamp.read(mailbox.stamp) if mailbox.stamp else None
    if before is None:
        return stamp.keywords_octets > 0
    return (before.keywords_ns, before.keywords_octets) != (stamp.keywords_ns, stamp.keywords_octets)


def _meaning_otherwise(state: State, mailbox: MailboxState, maildir: Maildir) -> dict[Key, Entry]:
    """Files that have the names that the state expects, which by now mean other flags than they did."""
    maildir.refresh_keywords()
    found: dict[Key, Entry] = {}
    for info, flags in state.meanings(mailbox.id):
        letters = split_info(info)[1]
        subdir = "new" if letters is None else "cur"
        if not same_flags(flags_here(maildir, Entry(Key(""), subdir, letters), flags), flags):
            found.update((key, Entry(key, subdir, letters)) for key in state.keys_meaning(mailbox.id, info, flags))
    return found


def _gone_with_directory(state: State, mailbox: MailboxState) -> dict[Uid, Pair]:
    return {pair.uid: pair for pair in state.pairs(mailbox.id) if pair.only != "remote"}


def flags_here(maildir: Maildir, entry: Entry, base: Flags) -> Flags:
    """The flags of a file; a keyword that no file name can carry counts as unchanged here."""
    return maildir.flags(entry) | maildir.unrepresentable(base)
