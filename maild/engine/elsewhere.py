"""Before anything is deleted on the server, or sent to it: does this pass see both ends of what may be a move?

A mailbox may be left out of a pass: it failed, it was not asked for, it cannot be made on the server, or a reader put
a file there, or took one away, after the look. What lies there has moved, for all that is known: its message stays
where it is, and the next pass that sees both mailboxes moves it; and a new file that equals one that is gone there
came from there, and is not sent. Nothing is looked at unless a file is gone or new.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple

import structlog

from maild.core.errors import LocalError
from maild.core.identity import identify
from maild.core.mailboxes import name_of
from maild.core.model import Content, Key, MailboxName, Pair, Uid
from maild.core.moves import likely
from maild.core.names import levels_from
from maild.engine.adopt import Unreadable, is_its_own
from maild.engine.look import open_mailbox
from maild.engine.pull import Work
from maild.engine.sync import MailboxPass
from maild.local.directory import MailboxDirectory, translated
from maild.local.outgoing import open_message, pieces_of, size_on_disk
from maild.local.scan import Entry, differences, scan
from maild.local.state import MailboxState, Orphan, State
from maild.local.survey import LocalMailbox, Survey, survey

log = structlog.get_logger()


class _Place(NamedTuple):
    """A directory to be looked at, what the state has of it, and the pass that looked at it before."""

    directory: str
    row: MailboxState | None
    this: MailboxPass | None


class _Seen(NamedTuple):
    """What is in a directory now: the files under names that the state does not expect, and which that it does are not.

    `contents` are those of the files that nobody knows, but for the `unreadable`.
    """

    unexpected: Mapping[Key, Entry]
    missing: Collection[Key]
    contents: set[Content]
    unreadable: list[Unreadable]

    def has(self, pair: Pair) -> bool:
        """Whether a pair of this mailbox has a file; the state may expect it under any name."""
        return pair.key in self.unexpected or (pair.info is not None and pair.key not in self.missing)


_NOTHING = _Seen({}, (), set(), [])


async def keep_what_may_be_too_big(work: Work, passes: Sequence[MailboxPass]) -> None:
    """Take out of the news what is gone on the server and may be where its size keeps it from coming.

    It may be one that an earlier pass left for its size, or be about to be: its file is all that would be here of it,
    and stays until a pass has seen both. Comes before what moved is found, for which those left count as new here.
    """
    gone = [(p, pair) for p in passes if p.rules.deletes_here for pair in p.remote.gone.values() if not pair.only]
    if not gone:
        return
    looked = {p.mailbox.id: p for p in passes}
    left = await work.state.run(_left_for_size, work)
    sizes = [pair.size_octets for _, pair in gone]
    unseen: list[tuple[Uid, int]] = []
    unsettled: set[int] = set()
    for mailbox_id, messages in left.items():
        this = looked.get(mailbox_id)
        alike = likely(sizes, messages)
        if alike and not (this is not None and this.bring_back(this.left_like(sizes))):
            unsettled.add(mailbox_id)
            unseen += [(uid, size) for uid, size in messages if uid in alike]
    if unsettled and not work.dry_run:
        await work.state.run(partial(work.state.state.look_again, unsettled, is_all=True))
    is_partial = work.is_asked or bool(work.failed & work.listed)
    for p, pair in gone:
        is_big = is_partial and pair.size_octets > work.imap.max_message_size_octets
        if is_big or likely([pair.size_octets], unseen):
            _keep_pair(p, pair, passes)


def _left_for_size(work: Work) -> dict[int, list[tuple[Uid, int]]]:
    """In the mailboxes that are synchronised, by their ids."""
    ids = {row.id for row in work.rows().values() if row.name in work.listed and work.wants(row.name)}
    left = work.state.state.left_for_size(work.imap.max_message_size_octets)
    return {mailbox_id: messages for mailbox_id, messages in left.items() if mailbox_id in ids}


def _keep_pair(this: MailboxPass, pair: Pair, passes: Sequence[MailboxPass]) -> None:
    """Its pair as it is, and a file that may be its own where that is."""
    this.remote.gone.pop(pair.uid)
    if this.local.gone.pop(pair.uid, None) is not None:
        this.awaited.add(pair.key)
    this.is_undone = this.is_missed = True
    for p in passes:
        keys = {key for key in p.unpaired.by_content.get(pair.content, ()) if key in p.unpaired.entries}
        p.waiting |= keys
        p.awaited |= keys


async def leave_what_lies_elsewhere(work: Work, passes: Sequence[MailboxPass], separator: str) -> None:
    """Take out of the news what may have moved to where these passes did not look; `settle_moves` comes before.

    `separator` is the server's, for the names of directories that are no mailbox there yet. Nothing is written.
    """
    if work.is_asked or work.failed & work.listed:
        _keep_changed(passes)
    gone = [p for p in passes if any(_gone_for_good(p))]
    if gone and work.account.maildir.exists():
        await work.state.run(_leave, work, passes, gone, separator)


async def keep_what_came_from_elsewhere(work: Work, passes: Sequence[MailboxPass]) -> None:
    """Do not send what lies here and has gone from where these passes did not look: it is on the server already."""
    new = [p for p in passes if p.to_send and p.rules.permitted is not None and p.rules.deletes_there]
    if new:
        await work.state.run(_keep, work, {p.mailbox.id for p in passes}, new)


def _gone_for_good(this: MailboxPass) -> Iterator[Pair]:
    """Pairs whose file is gone, and whose message is to go too."""
    if this.rules.deletes_there and this.rules.permitted is not None:
        yield from (pair for pair in this.local.gone.values() if not pair.only)


def _keep_changed(passes: Sequence[MailboxPass]) -> None:
    """Gone on the server, perhaps to a mailbox that was not looked at: flags changed here are to go there with it."""
    for p in (p for p in passes if not p.is_leaving):
        for uid in p.remote.gone.keys() & p.local.changed.keys():
            p.awaited.add(p.remote.gone.pop(uid).key)
            del p.local.changed[uid]


def _leave(work: Work, passes: Sequence[MailboxPass], gone: Sequence[MailboxPass], separator: str) -> None:
    sizes = {pair.size_octets for p in gone for pair in _gone_for_good(p)}
    found: set[Content] = set()
    unreadable = [file for p in passes for file in p.unpaired.unreadable.values()]
    here = survey(work.account.maildir, work.account.layout)
    if (doubt := _unseen_mailbox(work, here)) is not None:
        _wait(gone, doubt)
        return
    for place in _places(work, passes, here, separator):
        try:
            seen = _look(work, place, sizes)
        except LocalError as exc:
            _wait(gone, exc)
            return
        found |= seen.contents
        unreadable += seen.unreadable
        if place.this is not None and seen is not _NOTHING:
            _take_out(place.this, [pair for pair in _gone_for_good(place.this) if seen.has(pair)])
    for p in gone:
        _take_out(p, [pair for pair in _gone_for_good(p) if pair.content in found])
        for file in unreadable:
            _wait([p], file.reason, file)


def _take_out(this: MailboxPass, pairs: Sequence[Pair]) -> None:
    """Neither do they go from the server, nor does an equal message there count as one of them come back."""
    for pair in pairs:
        del this.local.gone[pair.uid]
        this.remote.gone.pop(pair.uid, None)
        this.awaited.add(pair.key)
    uids = {pair.uid for pair in pairs}
    this.doomable = [pair for pair in this.doomable if pair.uid not in uids]
    this.may_come_back = min(this.may_come_back, len(this.doomable))


def _keep(work: Work, looked: Collection[int], new: Sequence[MailboxPass]) -> None:
    contents = {p.unpaired.content_of(key) for p in new for key in p.to_send}
    came = _gone_unseen(work, looked, contents)
    for p in new:
        keys = {key for key in p.to_send if p.unpaired.content_of(key) in came}
        p.waiting |= keys
        p.awaited |= keys
        p.report.held_back += len(keys)
        if keys and work.is_asked:
            names = ", ".join(sorted({came[p.unpaired.content_of(key)] for key in keys}))
            p.report.error = (
                f"messages that were moved here from {names}: {len(keys)}; they wait for a pass that looks there too:"
                f" maild sync {work.account.name}"
            )


def _gone_unseen(work: Work, looked: Collection[int], contents: Collection[Content]) -> dict[Content, MailboxName]:
    """Those of these contents that a mailbox has on the server, and had here, as far as this pass has not looked."""
    state, root, found = work.state.state, work.account.maildir, dict[Content, MailboxName]()
    here = survey(root, work.account.layout).mailboxes if root.exists() else {}
    leftovers = state.with_leftovers()
    for row in work.rows().values():
        is_synchronised = row.name in work.listed and work.wants(row.name)
        place = here.get(row.directory)
        if row.id in looked or not is_synchronised:
            continue
        is_same = place is not None and not _has_changed(row, place)
        pairs = [] if is_same else [pair for pair in state.pairs_with(row.id, contents) if not pair.only]
        notes = state.orphans(row.id).values() if row.id in leftovers else ()
        sent = [note for note in notes if note.is_untold and note.content in contents]
        known: list[Pair | Orphan] = [*pairs, *sent]
        if not known:
            continue
        there: Mapping[Key, Entry] = {}
        try:
            with open_mailbox(root, row) or nullcontext() as maildir:
                if maildir is not None:
                    there = maildir.locate({one.key: one.flags for one in known})
        except LocalError as exc:  # they may have gone from there
            log.warning("mailbox.failed", account=work.account.name, mailbox=row.name, error=str(exc))
        found.update((one.content, row.name) for one in known if one.key not in there)
    return found


def _wait(gone: Sequence[MailboxPass], reason: object, file: Unreadable | None = None) -> None:
    """Something changed where nobody can look: it may be any of them, or of those which this file may be.

    A mailbox without a directory is the guard's.
    """
    for p in (p for p in gone if p.look.is_here):
        pairs = [pair for pair in _gone_for_good(p) if file is None or file.may_be(pair.size_octets)]
        _take_out(p, pairs)
        if pairs:
            p.report.error = (
                f"{len(pairs)} messages that are gone here stay on the server, for they may have moved: {reason}"
            )


def _unseen_mailbox(work: Work, here: Survey) -> str | None:
    """Why nobody can look into one of the account's mailboxes, where files may be; None where all can be."""
    for row in work.rows().values():
        is_synchronised = row.name in work.listed and work.wants(row.name)
        if is_synchronised and row.directory not in here.mailboxes and (doubt := here.doubt(row.directory)):
            return f"mailbox {row.name}: {work.account.maildir / row.directory}: {doubt}"
    return None


def _places(work: Work, passes: Sequence[MailboxPass], found: Survey, separator: str) -> list[_Place]:
    """Where there may be files that nobody knows: what is not as it was when it was looked at, or has some for sure."""
    state = work.state.state
    looked = {p.mailbox.directory: p for p in passes}
    rows = {row.directory: row for row in work.rows().values()}
    leftovers = state.with_leftovers()
    places: list[_Place] = []
    for where, here in found.mailboxes.items():
        this, row = looked.get(where), rows.get(where)
        if this is not None:
            if here.stamp.text() != this.look.stamp:
                places.append(_Place(where, this.mailbox, this))
        elif row is None:
            if _is_wanted(work, where, separator):
                places.append(_Place(where, None, None))
        elif work.wants(row.name) and (row.id in leftovers or _has_changed(row, here)):
            places.append(_Place(where, row, None))
    return places


def _has_changed(row: MailboxState, here: LocalMailbox) -> bool:
    return row.epoch is None or here.stamp.text() != row.stamp


def _is_wanted(work: Work, where: str, separator: str) -> bool:
    """What the user left out is no mailbox of the account: what is moved there is to go from the server."""
    name = name_of(levels_from(PurePosixPath(where), work.account.layout), separator)
    return name is None or work.wants(name)


def _look(work: Work, place: _Place, sizes: Collection[int]) -> _Seen:
    """What a mailbox has now, with the contents of those files that nobody knows and that have about these sizes."""
    directory = MailboxDirectory.open(work.account.maildir, PurePosixPath(place.directory))
    if directory is None:
        return _NOTHING
    contents: set[Content] = set()
    unreadable: list[Unreadable] = []
    with closing(directory):
        with translated("read", directory.path):
            unexpected, missing, known = _found(work.state.state, directory, place)
        for entry in unexpected.values():
            size_octets = size_on_disk(directory, entry) if entry.key not in known else 0
            if not any(Unreadable(size_octets, "").may_be(size) for size in sizes):
                continue
            try:
                with translated(f"read {entry.name} in", directory.path):
                    contents |= _content(directory, entry)
            except LocalError as exc:
                if not is_its_own(exc):
                    raise
                unreadable.append(Unreadable(size_octets, exc.text))
    return _Seen(unexpected, missing, contents, unreadable)


def _found(
    state: State, directory: MailboxDirectory, place: _Place
) -> tuple[Mapping[Key, Entry], Collection[Key], Collection[Key]]:
    """Files under unexpected names, the keys of expected names without a file, and the keys that are accounted for."""
    if place.row is None:
        return scan(directory).entries, (), ()
    expected, _ = state.names(place.row.id)
    unexpected, missing, *_ = differences(directory, expected)
    known = {key for key, pair in state.pairs_by_key(place.row.id, unexpected.keys()).items() if pair.only != "remote"}
    return unexpected, missing, known | place.this.look.unpaired.keys() if place.this is not None else known


def _content(directory: MailboxDirectory, entry: Entry) -> set[Content]:
    descriptor = open_message(directory, entry)
    if descriptor is None:
        return set()
    try:
        identity = identify(pieces_of(descriptor))
    finally:
        os.close(descriptor)
    return {(identity.size_octets, identity.digest)}
