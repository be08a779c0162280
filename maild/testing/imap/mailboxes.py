"""Commands about mailboxes as wholes: LIST and its extensions, LSUB, STATUS, CREATE and their like.

Each returns the text of the tagged OK; it raises `Refused` for NO and `BadSyntax` for BAD.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from maild.testing.faults import Reply
from maild.testing.imap.session import Policy, Session
from maild.testing.imap.syntax import Arguments, BadSyntax, encode_name, string
from maild.testing.store import Mailbox, Store

_STATUS: dict[str, tuple[str, Callable[[Mailbox], int | str]]] = {  # item → (extension it needs, value)
    "MESSAGES": ("", len),
    "RECENT": ("", lambda _: 0),
    "UIDNEXT": ("", lambda mailbox: mailbox.uidnext),
    "UIDVALIDITY": ("", lambda mailbox: mailbox.uidvalidity),
    "UNSEEN": ("", lambda mailbox: sum("\\Seen" not in message.flags for message in mailbox)),
    "HIGHESTMODSEQ": ("CONDSTORE", lambda mailbox: mailbox.highestmodseq if mailbox.modseqs else 0),
    "SIZE": ("STATUS=SIZE", lambda mailbox: sum(len(message.raw) for message in mailbox)),
    "APPENDLIMIT": ("APPENDLIMIT", lambda mailbox: "NIL" if mailbox.append_limit is None else mailbox.append_limit),
    "MAILBOXID": ("OBJECTID", lambda mailbox: f"({mailbox.mailbox_id})"),
}
_SELECTION = {"SUBSCRIBED": "", "REMOTE": "", "RECURSIVEMATCH": "", "SPECIAL-USE": "SPECIAL-USE"}
_RETURN = {"SUBSCRIBED": "", "CHILDREN": "", "SPECIAL-USE": "SPECIAL-USE", "STATUS": "LIST-STATUS"}


@dataclass(slots=True)
class _Listing:
    """What a LIST command asks for."""

    selection: list[str]
    reference: str
    patterns: list[str]
    returned: list[str]
    status: list[str]


async def list_mailboxes(session: Session, arguments: Arguments, reply: Reply) -> str:
    """LIST, extended where LIST-EXTENDED is offered (RFC 5258), with STATUS in it (RFC 5819)."""
    asked = _listing(session.policy, arguments)
    if "HIGHESTMODSEQ" in asked.status:
        session.wants_modseq()
    if asked.patterns == [""]:
        await reply.send(_list_line(b"LIST", ["\\Noselect"], "", session.store))
        return "List completed"
    for name in _matching(session.store, asked.reference, asked.patterns):
        mailbox = session.store.find(name)
        if "SUBSCRIBED" in asked.selection and not (mailbox is not None and mailbox.subscribed):
            continue
        if "SPECIAL-USE" in asked.selection and not (mailbox is not None and mailbox.special_use):
            continue
        await reply.send(_list_line(b"LIST", _attributes(session, name, asked), name, session.store))
        if mailbox is not None and asked.status:
            await reply.send(_status_line(mailbox, asked.status))
    return "List completed"


async def lsub(session: Session, arguments: Arguments, reply: Reply) -> str:
    arguments.space()
    reference = arguments.mailbox()
    arguments.space()
    pattern = arguments.pattern()
    arguments.end()
    for name in _matching(session.store, reference, [pattern]):
        mailbox = session.store.find(name)
        if mailbox is not None and mailbox.subscribed:
            await reply.send(_list_line(b"LSUB", [], name, session.store))
    return "Lsub completed"


async def status(session: Session, arguments: Arguments, reply: Reply) -> str:
    arguments.space()
    name = arguments.mailbox()
    arguments.space()
    asked = _status_items(session.policy, arguments)
    arguments.end()
    if "HIGHESTMODSEQ" in asked:
        session.wants_modseq()
    await reply.send(_status_line(session.store.mailbox(name), asked))
    return "Status completed"


async def create(session: Session, arguments: Arguments, _reply: Reply) -> str:
    name = _only_name(arguments)
    separator = session.store.separator
    mailbox = session.store.create(name.removesuffix(separator) if separator else name)
    return f"[MAILBOXID ({mailbox.mailbox_id})] Created" if session.policy.has("OBJECTID") else "Created"


async def delete(session: Session, arguments: Arguments, _reply: Reply) -> str:
    session.store.delete(_only_name(arguments))
    return "Deleted"


async def rename(session: Session, arguments: Arguments, _reply: Reply) -> str:
    arguments.space()
    old = arguments.mailbox()
    session.store.rename(old, _only_name(arguments))
    return "Renamed"


async def subscribe(session: Session, arguments: Arguments, _reply: Reply, *, wanted: bool) -> str:
    session.store.mailbox(_only_name(arguments)).subscribed = wanted
    return "Completed"


def _listing(policy: Policy, arguments: Arguments) -> _Listing:
    asked = _Listing([], "", [], [], [])
    arguments.space()
    if arguments.starts(b"("):
        asked.selection = arguments.words()
        _demand(policy, asked.selection, _SELECTION)
        arguments.space()
    asked.reference = arguments.mailbox()
    arguments.space()
    if arguments.took(b"("):
        _demand(policy, [], {})
        asked.patterns.append(arguments.pattern())
        while arguments.took(b" "):
            asked.patterns.append(arguments.pattern())
        arguments.expect(b")")
    else:
        asked.patterns.append(arguments.pattern())
    if arguments.took(b" "):
        _return_options(policy, arguments, asked)
    arguments.end()
    return asked


def _return_options(policy: Policy, arguments: Arguments, asked: _Listing) -> None:
    arguments.expect(b"RETURN (")
    while not arguments.took(b")"):
        asked.returned.append(arguments.word())
        _demand(policy, asked.returned, _RETURN)
        if asked.returned[-1] == "STATUS":
            arguments.space()
            asked.status = _status_items(policy, arguments)
        arguments.took(b" ")
    _demand(policy, asked.returned, _RETURN)


def _demand(policy: Policy, words: list[str], known: dict[str, str]) -> None:
    """BAD unless extended LIST is offered and every word is known to what is offered."""
    for word in words:
        if word not in known or (known[word] and not policy.has(known[word])):
            raise BadSyntax(f"LIST has no option {word}")
    if not policy.has("LIST-EXTENDED"):
        raise BadSyntax("LIST is not extended here")


def _status_items(policy: Policy, arguments: Arguments) -> list[str]:
    asked = arguments.words()
    for word in asked:
        if word not in _STATUS or (_STATUS[word][0] and not policy.has(_STATUS[word][0])):
            raise BadSyntax(f"STATUS has no item {word}")
    return asked


def _status_line(mailbox: Mailbox, asked: list[str]) -> bytes:
    values = " ".join(f"{item} {_STATUS[item][1](mailbox)}" for item in asked)
    return b"* STATUS %b (%b)\r\n" % (string(encode_name(mailbox.name)), values.encode())


def _list_line(kind: bytes, attributes: list[str], name: str, store: Store) -> bytes:
    divider = string(store.separator.encode()) if store.separator else b"NIL"
    return b"* %b (%b) %b %b\r\n" % (kind, " ".join(attributes).encode(), divider, string(encode_name(name)))


def _matching(store: Store, reference: str, patterns: list[str]) -> list[str]:
    """Names that exist or have children, matched by any pattern; `%` stops at a separator (RFC 9051 §6.3.9)."""
    expressions = [_expression(reference + pattern, store.separator) for pattern in patterns]
    names = dict.fromkeys(parent for name in store.names for parent in (*_parents(name, store.separator), name))
    return [name for name in names if any(expression.fullmatch(name) for expression in expressions)]


def _expression(pattern: str, separator: str) -> re.Pattern[str]:
    one_level = f"[^{re.escape(separator)}]*" if separator else ".*"
    meaning = {"*": ".*", "%": one_level}
    text = "".join(meaning.get(letter) or re.escape(letter) for letter in pattern)
    return re.compile(f"(?i:{text})" if pattern.upper() == "INBOX" else text, re.S)


def _parents(name: str, separator: str) -> Iterable[str]:
    levels = name.split(separator) if separator else [name]
    return (separator.join(levels[:depth]) for depth in range(1, len(levels)))


def _attributes(session: Session, name: str, asked: _Listing) -> list[str]:
    store, policy = session.store, session.policy
    mailbox = store.find(name)
    found = []
    if mailbox is None:
        found.append("\\NonExistent" if policy.has("LIST-EXTENDED") else "\\Noselect")
    if policy.has("CHILDREN") or "CHILDREN" in asked.returned:
        below = store.separator and any(other.startswith(name + store.separator) for other in store.names)
        found.append("\\HasChildren" if below else "\\HasNoChildren")
    if mailbox is not None and mailbox.subscribed and "SUBSCRIBED" in asked.returned + asked.selection:
        found.append("\\Subscribed")
    if mailbox is not None and mailbox.special_use and policy.has("SPECIAL-USE"):
        found.append(mailbox.special_use)
    return found


def _only_name(arguments: Arguments) -> str:
    arguments.space()
    name = arguments.mailbox()
    arguments.end()
    return name
