"""What to do about mailboxes: (known, on the server, on this disk) → created, renamed, deleted, on either side. Pure.

| known | here | there | operation                                                              |
|-------|------|-------|------------------------------------------------------------------------|
| –     | –    | x     | nothing: its directory is made when it is visited                      |
| –     | x    | –     | CreateRemote                                                           |
| –     | x    | x     | nothing: their messages are matched by content                         |
| x     | x    | x     | nothing                                                                |
| x     | –    | x     | RenameRemote, if its directory has another name now; else DirectoryGone |
| x     | x    | –     | RenameLocal, if it has another name there now; else MailboxGone        |
| x     | –    | –     | RenameLocal, if renamed on both sides: the server's name wins; else ForgetMailbox |

A directory counts as gone only if a pass saw it once; it is the same under another name if it is the same inode. A
mailbox on the server is the same under another name if it has the same MAILBOXID (RFC 8474), or, where the server has
none, if it is the only new one with the old UIDVALIDITY and no smaller UIDNEXT. A rename that is not recognised comes
out as messages that moved.

What the config's patterns leave out is neither looked at nor missed. Once its directory is gone as well it is forgotten
(ForgetMailbox): taken in again, it comes anew, and its absence here is no deletion.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from maild.core.model import Listing, MailboxName, RemoteMailbox
from maild.core.names import MailboxUnusable, directory, levels_from

INBOX = MailboxName("INBOX")


@dataclass(frozen=True, slots=True)
class Known:
    """A mailbox as the state has it: see `local.state.MailboxState`."""

    name: MailboxName
    directory: str
    identity: str
    object_id: str
    epoch: str
    next_uid: str


@dataclass(frozen=True, slots=True)
class CreateRemote:
    """A directory that only this disk has: make the mailbox on the server."""

    name: MailboxName
    levels: tuple[str, ...]
    directory: str


@dataclass(frozen=True, slots=True)
class RenameRemote:
    """The directory got another name here: rename the mailbox on the server."""

    name: MailboxName
    new_name: MailboxName
    levels: tuple[str, ...]
    directory: str


@dataclass(frozen=True, slots=True)
class RenameLocal:
    """The mailbox got another name on the server: rename the directory, from where it is now."""

    name: MailboxName
    new_name: MailboxName
    old_directory: str
    directory: str


@dataclass(frozen=True, slots=True)
class DirectoryGone:
    """The directory is gone here, the mailbox is still there."""

    name: MailboxName


@dataclass(frozen=True, slots=True)
class MailboxGone:
    """The mailbox is gone there, the directory is still here."""

    name: MailboxName


@dataclass(frozen=True, slots=True)
class ForgetMailbox:
    """Gone on both sides, or left out by the config and gone here."""

    name: MailboxName


MailboxOperation = CreateRemote | RenameRemote | RenameLocal | DirectoryGone | MailboxGone | ForgetMailbox


@dataclass(frozen=True, slots=True)
class Sides:
    """All there is to decide from. `here` maps directories to the inode they are, as `Known.identity` has it."""

    known: Collection[Known]
    there: Listing
    here: Mapping[str, str]
    is_wanted: Callable[[str], bool]
    layout: str


def plan_mailboxes(sides: Sides) -> tuple[list[MailboxOperation], dict[str, str]]:
    """What to do, in order; and the directories that can be no mailbox on the server, with the reason in words."""
    plan: list[MailboxOperation] = []
    known_names = {known.name for known in sides.known}
    new_there = {mailbox.name: mailbox for mailbox in sides.there.mailboxes if mailbox.name not in known_names}
    mapped = {place for mailbox in sides.there.mailboxes if (place := _place(mailbox, sides.layout)) is not None}
    taken = {known.directory for known in sides.known} | mapped
    new_here = {where: identity for where, identity in sides.here.items() if where not in taken}
    for known in sides.known:
        if sides.is_wanted(known.name):
            operation = _about(known, sides, new_there, new_here)
            if operation is not None:
                plan.append(operation)
        elif known.identity and known.directory not in sides.here:
            plan.append(ForgetMailbox(known.name))
    created, unusable = _created(new_here, sides)
    plan.extend(created)
    return sorted(plan, key=lambda operation: _order(operation, plan)), unusable


def _order(operation: MailboxOperation, plan: Iterable[MailboxOperation]) -> tuple[int, int]:
    """Renames first. A server takes children along: those that go elsewhere go before the parent, others after it."""
    match operation:
        case RenameRemote(name=name):
            comes_along = any(comes_with(operation, other) for other in plan if isinstance(other, RenameRemote))
            return (1 if comes_along else 0), -len(name)
        case RenameLocal():
            return 0, 0
        case _:
            return 2, 0


def comes_with(child: RenameRemote, parent: RenameRemote) -> bool:
    """Whether renaming `parent` on the server gives `child` its new name too."""
    below = child.name.removeprefix(parent.name)
    is_below = below not in ("", child.name) and not below[:1].isalnum()
    return is_below and child.new_name == parent.new_name + below


def _about(
    known: Known, sides: Sides, new_there: dict[MailboxName, RemoteMailbox], new_here: dict[str, str]
) -> MailboxOperation | None:
    is_here = known.directory in sides.here
    is_there = known.name in sides.there.present
    if is_there and (is_here or not known.identity):
        return None
    if not is_there and (renamed := _renamed_there(known, sides, new_there.values())) is not None:
        place = _place(renamed, sides.layout)
        now = known.directory if is_here else _elsewhere(known, sides.here)
        if place is not None and now is not None:
            del new_there[renamed.name]
            new_here.pop(now, None)
            return RenameLocal(known.name, renamed.name, now, place)
    if is_there and not is_here:
        return _directory_gone(known, sides, new_here)
    if not is_there and not is_here and (alike := _renamed_alike(known, sides, new_there.values())) is not None:
        place = str(_place(alike, sides.layout))
        del new_there[alike.name]
        return RenameLocal(known.name, alike.name, place, place)
    return MailboxGone(known.name) if is_here else ForgetMailbox(known.name)


def _directory_gone(known: Known, sides: Sides, new_here: dict[str, str]) -> MailboxOperation:
    now = _elsewhere(known, new_here)
    if now is not None and known.name != INBOX:
        levels = levels_from(PurePosixPath(now), sides.layout)
        name = name_of(levels, sides.there.separator)
        if name is not None and sides.is_wanted(name) and name not in sides.there.present:
            del new_here[now]
            return RenameRemote(known.name, name, levels, now)
    return DirectoryGone(known.name)


def _elsewhere(known: Known, here: Mapping[str, str]) -> str | None:
    if not known.identity:
        return None
    return next((where for where, identity in here.items() if identity == known.identity), None)


def _renamed_there(known: Known, sides: Sides, new: Iterable[RemoteMailbox]) -> RemoteMailbox | None:
    candidates = list(new)
    if known.object_id:
        return next((mailbox for mailbox in candidates if mailbox.object_id == known.object_id), None)
    if not known.epoch or not known.next_uid.isdigit():
        return None
    alike = [m for m in candidates if m.epoch == known.epoch and m.next_uid.isdigit()]
    rivals = [other for other in sides.known if other.epoch == known.epoch and other.name not in sides.there.present]
    if len(alike) != 1 or len(rivals) != 1 or int(alike[0].next_uid) < int(known.next_uid):
        return None
    return alike[0]


def _renamed_alike(known: Known, sides: Sides, new: Iterable[RemoteMailbox]) -> RemoteMailbox | None:
    """Its new name there where its directory here has that name too: renamed on both sides, or cut off in between."""
    now = _elsewhere(known, sides.here)
    return None if now is None else next((m for m in new if _place(m, sides.layout) == now), None)


def _place(mailbox: RemoteMailbox, layout: str) -> str | None:
    try:
        return str(directory(mailbox.levels, layout))
    except MailboxUnusable:
        return None  # whoever visits it says why


def _created(new_here: Mapping[str, str], sides: Sides) -> tuple[list[MailboxOperation], dict[str, str]]:
    created: list[MailboxOperation] = []
    unusable: dict[str, str] = {}
    for where in sorted(new_here):
        levels = levels_from(PurePosixPath(where), sides.layout)
        name = name_of(levels, sides.there.separator)
        if name is None:
            unusable["/".join(levels)] = (
                f"its name has the server's separator {sides.there.separator!r} in it; rename its directory"
            )
        elif sides.is_wanted(name) and name not in sides.there.present:
            created.append(CreateRemote(name, levels, where))
    return created, unusable


def name_of(levels: tuple[str, ...], separator: str) -> MailboxName | None:
    """The name of a mailbox on the server; None where it cannot be said there."""
    if not levels or not all(levels) or (not separator and len(levels) > 1):
        return None
    if separator and any(separator in level for level in levels):
        return None
    first = INBOX if levels[0].upper() == INBOX else levels[0]
    return MailboxName(separator.join((first, *levels[1:])))
