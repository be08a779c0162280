"""Which command is what: the function that carries it out, the states it is allowed in, the extension it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from maild.testing.faults import Reply
from maild.testing.imap import access, delivery, mailboxes, messages, notify, opening
from maild.testing.imap.session import Session
from maild.testing.imap.syntax import Arguments

Run = Callable[[Session, Arguments, Reply], Awaitable[str]]

_ANY = ("anonymous", "authenticated", "selected")
_LOGIN = ("anonymous",)
_USER = ("authenticated", "selected")
_OPEN = ("selected",)


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table. `expunges`: other clients' expunges may be told with it (RFC 9051 §7.5.1)."""

    run: Run
    states: tuple[str, ...]
    needs: str = ""
    mutates: bool = False
    expunges: bool = True


COMMANDS: dict[str, Command] = {
    "CAPABILITY": Command(access.capability, _ANY),
    "NOOP": Command(access.noop, _ANY),
    "LOGOUT": Command(access.logout, _ANY),
    "ID": Command(access.identify, _ANY, "ID"),
    "STARTTLS": Command(access.starttls, _LOGIN),
    "AUTHENTICATE": Command(access.authenticate, _LOGIN),
    "LOGIN": Command(access.login, _LOGIN),
    "COMPRESS": Command(access.compress, _USER, "COMPRESS=DEFLATE"),
    "ENABLE": Command(access.enable, ("authenticated",), "ENABLE"),
    "NAMESPACE": Command(access.namespace, _USER, "NAMESPACE"),
    "LIST": Command(mailboxes.list_mailboxes, _USER),
    "LSUB": Command(mailboxes.lsub, _USER),
    "STATUS": Command(mailboxes.status, _USER),
    "CREATE": Command(mailboxes.create, _USER, mutates=True),
    "DELETE": Command(mailboxes.delete, _USER, mutates=True),
    "RENAME": Command(mailboxes.rename, _USER, mutates=True),
    "SUBSCRIBE": Command(partial(mailboxes.subscribe, wanted=True), _USER, mutates=True),
    "UNSUBSCRIBE": Command(partial(mailboxes.subscribe, wanted=False), _USER, mutates=True),
    "SELECT": Command(partial(opening.select, examine=False), _USER),
    "EXAMINE": Command(partial(opening.select, examine=True), _USER),
    "CLOSE": Command(partial(opening.close, expunge=True), _OPEN, mutates=True),
    "UNSELECT": Command(partial(opening.close, expunge=False), _OPEN, "UNSELECT"),
    "CHECK": Command(access.noop, _OPEN),
    "IDLE": Command(delivery.idle, _USER, "IDLE"),
    "NOTIFY": Command(notify.notify, _USER, "NOTIFY"),
    "APPEND": Command(delivery.append, _USER, mutates=True),
    "FETCH": Command(partial(messages.fetch, by_uid=False), _OPEN, expunges=False),
    "UID FETCH": Command(partial(messages.fetch, by_uid=True), _OPEN),
    "STORE": Command(partial(messages.store, by_uid=False), _OPEN, mutates=True, expunges=False),
    "UID STORE": Command(partial(messages.store, by_uid=True), _OPEN, mutates=True),
    "SEARCH": Command(partial(messages.search, by_uid=False), _OPEN, expunges=False),
    "UID SEARCH": Command(partial(messages.search, by_uid=True), _OPEN),
    "COPY": Command(partial(messages.copy, by_uid=False), _OPEN, mutates=True),
    "UID COPY": Command(partial(messages.copy, by_uid=True), _OPEN, mutates=True),
    "MOVE": Command(partial(messages.move, by_uid=False), _OPEN, "MOVE", mutates=True),
    "UID MOVE": Command(partial(messages.move, by_uid=True), _OPEN, "MOVE", mutates=True),
    "EXPUNGE": Command(partial(messages.expunge, by_uid=False), _OPEN, mutates=True),
    "UID EXPUNGE": Command(partial(messages.expunge, by_uid=True), _OPEN, "UIDPLUS", mutates=True),
}
