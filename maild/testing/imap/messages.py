"""Commands about messages of the open mailbox: FETCH, STORE, SEARCH, COPY, MOVE, EXPUNGE, each with its UID form.

Each returns the text of the tagged OK; it raises `Refused` for NO and `BadSyntax` for BAD. `by_uid` is the UID form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maild.testing.faults import Reply
from maild.testing.imap import fetch as fetching
from maild.testing.imap.opening import within
from maild.testing.imap.search import Criteria
from maild.testing.imap.session import Selected, Session
from maild.testing.imap.syntax import Arguments, BadSyntax, Ranges, set_of
from maild.testing.store import Mailbox, Refused

_RESULTS = ("MIN", "MAX", "ALL", "COUNT")


async def fetch(session: Session, arguments: Arguments, reply: Reply, *, by_uid: bool) -> str:
    """FETCH with CHANGEDSINCE and VANISHED (RFC 7162 §3.1.4, §3.2.6); responses go out one by one."""
    selected = session.open_box
    arguments.space()
    ranges = arguments.ranges()
    arguments.space()
    items = _fetch_items(session, arguments, by_uid)
    since, vanished = _fetch_modifiers(session, arguments, by_uid)
    arguments.end()
    uids = selected.resolve(ranges, by_uid)
    if vanished:
        gone = within(selected.mailbox.vanished_since(since), ranges)
        await _send_all(reply, [b"* VANISHED (EARLIER) %b\r\n" % set_of(gone)] if gone else [])
    if since >= 0 and all(item.name != "MODSEQ" for item in items):
        items.append(fetching.items(Arguments(b"MODSEQ"))[0])
    if any(item.marks_seen for item in items) and not selected.read_only:
        items = _mark_seen(session, uids, items)
    for message in selected.messages(uids):
        if message.modseq > since:
            parts = b" ".join([item.render(message) for item in items])
            await reply.send(b"* %d FETCH (%b)\r\n" % (selected.number(message.uid), parts))
    if not by_uid and any(selected.mailbox.find(uid) is None for uid in uids):
        raise Refused("EXPUNGEISSUED", "Some of the messages were expunged by another client")
    return "Fetch completed"


def _fetch_items(session: Session, arguments: Arguments, by_uid: bool) -> list[fetching.Item]:
    items = fetching.items(arguments)
    for item in items:
        if item.name == "MODSEQ":
            _demand(session, "CONDSTORE", "MODSEQ")
        elif item.name in ("EMAILID", "THREADID"):
            _demand(session, "OBJECTID", item.name)
    if by_uid and all(item.name != "UID" for item in items):
        items = fetching.items(Arguments(b"UID")) + items
    return items


def _fetch_modifiers(session: Session, arguments: Arguments, by_uid: bool) -> tuple[int, bool]:
    """(mod-sequence to look after, or -1; whether VANISHED was asked for)."""
    if not arguments.took(b" "):
        return -1, False
    _demand(session, "CONDSTORE", "CHANGEDSINCE")
    arguments.expect(b"(CHANGEDSINCE ")
    since = arguments.number()
    vanished = arguments.took(b" VANISHED")
    arguments.expect(b")")
    if vanished and not (by_uid and session.qresync):
        raise BadSyntax("VANISHED needs UID FETCH and QRESYNC enabled")
    return since, vanished


def _mark_seen(session: Session, uids: list[int], items: list[fetching.Item]) -> list[fetching.Item]:
    """Set \\Seen as BODY[] without PEEK does; the new flags stand in the same responses."""
    selected = session.open_box
    changed = selected.mailbox.set_flags(uids, add=["\\Seen"])
    for uid in changed:
        selected.told_own[uid] = selected.mailbox.message(uid).modseq
    if not changed or any(item.name == "FLAGS" for item in items):
        return items
    return items + fetching.items(Arguments(b"FLAGS"))


@dataclass(frozen=True, slots=True)
class _StoreAsked:
    """A STORE command, read. `unchanged_since` is -1 where it was not given (RFC 7162 §3.1.3)."""

    ranges: Ranges
    unchanged_since: int
    sign: str
    silent: bool
    flags: list[str]


async def store(session: Session, arguments: Arguments, reply: Reply, *, by_uid: bool) -> str:
    asked = _store_arguments(session, arguments)
    selected = _writable(session)
    uids = selected.resolve(asked.ranges, by_uid)
    present = selected.messages(uids)
    late = asked.unchanged_since
    passed = [message.uid for message in present if late < 0 or message.modseq <= late]
    failed = [message.uid for message in present if late >= 0 and message.modseq > late]
    changed = _change(selected.mailbox, passed, asked)
    selected.told_own.update((uid, selected.mailbox.message(uid).modseq) for uid in changed)
    told = passed if not asked.silent or late >= 0 else changed if session.condstore else []
    for message in selected.messages(told):
        line = selected.flags_of(
            message,
            with_uid=by_uid or session.qresync,
            with_modseq=session.condstore,
            with_flags=not asked.silent,
        )
        await reply.send(line)
    if failed:
        names = failed if by_uid else [selected.number(uid) for uid in failed]
        return f"[MODIFIED {set_of(names).decode()}] Conditional STORE failed"
    if not by_uid and len(present) < len(uids):
        raise Refused("EXPUNGEISSUED", "Some of the messages were expunged by another client")
    return "Store completed"


def _store_arguments(session: Session, arguments: Arguments) -> _StoreAsked:
    arguments.space()
    ranges = arguments.ranges()
    arguments.space()
    unchanged_since = -1
    if arguments.starts(b"("):
        _demand(session, "CONDSTORE", "UNCHANGEDSINCE")
        arguments.expect(b"(UNCHANGEDSINCE ")
        unchanged_since = arguments.number()
        arguments.expect(b") ")
    sign = "+" if arguments.took(b"+") else "-" if arguments.took(b"-") else ""
    arguments.expect(b"FLAGS")
    silent = arguments.took(b".SILENT")
    arguments.space()
    flags = arguments.flags()
    arguments.end()
    return _StoreAsked(ranges, unchanged_since, sign, silent, flags)


def _change(mailbox: Mailbox, uids: list[int], asked: _StoreAsked) -> list[int]:
    if asked.sign == "+":
        return mailbox.set_flags(uids, add=asked.flags)
    if asked.sign == "-":
        return mailbox.set_flags(uids, remove=asked.flags)
    return mailbox.set_flags(uids, replace=asked.flags)


async def search(session: Session, arguments: Arguments, reply: Reply, *, by_uid: bool) -> str:
    """SEARCH, with the ESEARCH answer where RETURN asks for it (RFC 4731)."""
    selected = session.open_box
    arguments.space()
    wanted = _search_return(session, arguments)
    if arguments.took(b"CHARSET "):
        _check_charset(arguments.astring())
        arguments.space()
    criteria = Criteria(arguments, lambda ranges, uids: frozenset(selected.resolve(ranges, uids)))
    test = criteria.all_of()
    arguments.end()
    for extension in criteria.used:
        _demand(session, extension, "This criterion")
    numbered = ((selected.number(message.uid), message) for message in selected.messages(selected.uids))
    found = [(number, message) for number, message in numbered if test(number, message)]
    names = [message.uid if by_uid else number for number, message in found]
    modseq = max((message.modseq for _, message in found), default=0) if "CONDSTORE" in criteria.used else 0
    if wanted is None:
        tail = b" (MODSEQ %d)" % modseq if modseq else b""
        await reply.send(b"* SEARCH%b%b\r\n" % (b"".join(b" %d" % name for name in names), tail))
    else:
        await reply.send(_esearch(session.tag, names, wanted, modseq, by_uid))
    return "Search completed"


def _search_return(session: Session, arguments: Arguments) -> list[str] | None:
    if not arguments.took(b"RETURN "):
        return None
    _demand(session, "ESEARCH", "RETURN")
    wanted = arguments.words()
    if any(word not in _RESULTS for word in wanted):
        raise BadSyntax("Unknown SEARCH result option")
    arguments.space()
    return wanted or ["ALL"]


def _check_charset(name: bytes) -> None:
    if name.upper() not in (b"US-ASCII", b"UTF-8"):
        raise Refused("BADCHARSET (US-ASCII UTF-8)", "Unknown charset")


def _esearch(tag: str, names: list[int], wanted: list[str], modseq: int, by_uid: bool) -> bytes:
    parts = [f'* ESEARCH (TAG "{tag}")' + (" UID" if by_uid else "")]
    if names:
        values = {"MIN": str(names[0]), "MAX": str(names[-1]), "ALL": set_of(names).decode()}
        parts += [f"{word} {values[word]}" for word in wanted if word in values]
    parts += [f"COUNT {len(names)}"] if "COUNT" in wanted else []
    parts += [f"MODSEQ {modseq}"] if modseq else []
    return " ".join(parts).encode() + b"\r\n"


async def copy(session: Session, arguments: Arguments, _reply: Reply, *, by_uid: bool) -> str:
    selected = session.open_box
    uids, target = _transfer(session, arguments, by_uid)
    pairs = session.store.copy(selected.mailbox.name, uids, target.name)
    return (_copyuid(session, target, pairs) + " Copied").lstrip()


async def move(session: Session, arguments: Arguments, reply: Reply, *, by_uid: bool) -> str:
    """MOVE (RFC 6851): COPYUID comes untagged, before the expunges. A cut leaves no message in both mailboxes."""
    selected = _writable(session)
    uids, target = _transfer(session, arguments, by_uid)
    pairs = session.store.move(selected.mailbox.name, uids, target.name)
    if code := _copyuid(session, target, pairs):
        await reply.send(f"* OK {code} Moved\r\n".encode())
    await _send_all(reply, session.updates())
    return _with_modseq(session, selected, "Move completed")


def _transfer(session: Session, arguments: Arguments, by_uid: bool) -> tuple[list[int], Mailbox]:
    """Which messages go where; TRYCREATE where the target is missing (RFC 9051 §6.4.7)."""
    arguments.space()
    ranges = arguments.ranges()
    arguments.space()
    name = arguments.mailbox()
    arguments.end()
    return session.open_box.resolve(ranges, by_uid), writable_target(session, name)


def writable_target(session: Session, name: str) -> Mailbox:
    """The mailbox that messages shall be added to."""
    target = session.store.find(name)
    if target is None:
        raise Refused("TRYCREATE", f"There is no mailbox {name}")
    if target.read_only:
        raise Refused("NOPERM", f"Mailbox {name} is read-only")
    return target


def _copyuid(session: Session, target: Mailbox, pairs: Sequence[tuple[int, int]]) -> str:
    if not pairs or not session.policy.has("UIDPLUS"):
        return ""
    old, new = (set_of(pair[side] for pair in pairs).decode() for side in (0, 1))
    return f"[COPYUID {target.uidvalidity} {old} {new}]"


async def expunge(session: Session, arguments: Arguments, reply: Reply, *, by_uid: bool) -> str:
    """EXPUNGE, and UID EXPUNGE of UIDPLUS (RFC 4315)."""
    selected = _writable(session)
    uids = selected.mailbox.uids
    if by_uid:
        arguments.space()
        uids = selected.resolve(arguments.ranges(), True)
    arguments.end()
    marked = [message.uid for message in selected.messages(uids) if "\\Deleted" in message.flags]
    gone = selected.mailbox.expunge(marked)
    await _send_all(reply, session.updates())
    return _with_modseq(session, selected, "Expunge completed") if gone else "Expunge completed"


def _with_modseq(session: Session, selected: Selected, text: str) -> str:
    """The new HIGHESTMODSEQ belongs into the tagged OK once QRESYNC is enabled (RFC 7162 §3.2.7)."""
    if not session.qresync or not selected.mailbox.modseqs:
        return text
    return f"[HIGHESTMODSEQ {selected.mailbox.highestmodseq}] {text}"


async def _send_all(reply: Reply, lines: Sequence[bytes]) -> None:
    for line in lines:
        await reply.send(line)


def _writable(session: Session) -> Selected:
    selected = session.open_box
    if selected.read_only:
        raise Refused("READ-ONLY", "The mailbox is open for reading only")
    return selected


def _demand(session: Session, extension: str, what: str) -> None:
    if not session.policy.has(extension):
        raise BadSyntax(f"{what} needs {extension}, which is not offered")
    mailbox = session.open_box.mailbox
    if extension == "CONDSTORE":
        if not mailbox.modseqs:
            raise BadSyntax("This mailbox has no mod-sequences")
        session.wants_modseq()
