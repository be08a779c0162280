"""The contract of the port on a real Dovecot, with all it can, with less and less of it used, and compressed."""

from __future__ import annotations

import asyncio
import imaplib
import itertools
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import pytest

from maild.core.flags import canonical_flags
from maild.core.names import decode_mutf7
from maild.remote.imap.dates import internal_date
from maild.remote.imap.remote import ImapRemote
from maild.remote.imap.session import ImapSession
from tests.live.conftest import started
from tests.remote.conftest import imap_endpoint
from tests.remote.contract import CAPABILITY_SETS, WHEN_S, Content, PortContract
from tests.servers.append import modified_utf7
from tests.servers.cyrus import Cyrus
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.live

_USERS = itertools.count(1)
_FACTS = [re.compile(fact) for fact in (rb"UID (\d+)", rb"FLAGS \(([^)]*)\)", rb'INTERNALDATE "([^"]+)"')]
_LISTED = re.compile(rb'\((?P<attributes>[^)]*)\) "." (?:"(?P<quoted>.*)"|(?P<atom>.*))\Z')


class LiveAccount:
    """One user of a real server, and another client's connection of the standard library."""

    def __init__(
        self, server: Dovecot | Cyrus, user: str, removed: frozenset[str], *, is_compressed: bool = False
    ) -> None:
        self.removed = removed
        self._is_compressed = is_compressed
        self.remotes: list[ImapRemote] = []
        self._server = server
        self._user = user
        self._other = server.connect(user)

    def remote(self, **changes: Any) -> ImapRemote:
        endpoint = imap_endpoint(
            self._server.imap_port,
            user=self._user,
            secret=imap_endpoint(1).secret,
            disable_extensions=self.removed,
            compress=self._is_compressed,
            **changes,
        )
        self.remotes.append(ImapRemote(endpoint, "work"))
        return self.remotes[-1]

    def deliver(self, mailbox: str, raw: bytes, flags: Iterable[str] = ()) -> int:
        date = imaplib.Time2Internaldate(WHEN_S)
        answered = self._ok(self._other.append(_wire(mailbox), f"({' '.join(flags)})", date, raw))
        return int(answered[0].split(b"]")[0].split()[-1])

    def contents(self, mailbox: str) -> dict[int, Content]:
        self._ok(self._other.select(_wire(mailbox), readonly=True))
        found: dict[int, Content] = {}
        if self._ok(self._other.search(None, "ALL"))[0]:
            parts = self._ok(self._other.fetch("1:*", "(UID FLAGS INTERNALDATE BODY.PEEK[])"))  # type: ignore[arg-type]
            for part in parts:
                if isinstance(part, tuple):
                    uid, flags, date = (fact[1] for pattern in _FACTS if (fact := pattern.search(part[0])) is not None)
                    date_s = internal_date(date.strip())
                    assert date_s is not None
                    found[int(uid)] = (part[1], canonical_flags(flags.decode().split()), date_s)
        self._other.unselect()
        return found

    def flag(self, mailbox: str, uids: Sequence[int], flags: Iterable[str]) -> None:
        self._ok(self._other.select(_wire(mailbox)))
        self._ok(self._other.uid("STORE", _set(uids), "+FLAGS", f"({' '.join(flags)})"))
        self._other.unselect()

    def expunge(self, mailbox: str, uids: Sequence[int]) -> None:
        self._ok(self._other.select(_wire(mailbox)))
        self._ok(self._other.uid("STORE", _set(uids), "+FLAGS", "(\\Deleted)"))
        self._ok(self._other.uid("EXPUNGE", _set(uids)))
        self._other.unselect()

    def create(self, name: str) -> None:
        self._ok(self._other.create(_wire(name)))
        self._ok(self._other.subscribe(_wire(name)))

    def names(self) -> set[str]:
        return self._listed(self._ok(self._other.list()))

    def subscribed(self) -> set[str]:
        return self._listed(self._ok(self._other.lsub()))

    def close(self) -> None:
        self._other.logout()

    def _listed(self, lines: list[Any]) -> set[str]:
        found = (_LISTED.match(line) for line in lines if line)
        wires = (m["quoted"] or m["atom"] for m in found if m is not None and b"\\no" not in m["attributes"].lower())
        return {name for wire in wires if (name := decode_mutf7(wire)) is not None}

    @staticmethod
    def _ok(answer: tuple[str, list[Any]]) -> list[Any]:
        assert answer[0] == "OK", answer
        return answer[1]


def _wire(name: str) -> str:
    return f'"{modified_utf7(name)}"'


def _set(uids: Sequence[int]) -> str:
    return ",".join(map(str, uids))


@pytest.fixture(scope="module")
def compressing() -> Iterator[Dovecot]:
    """A Dovecot that offers COMPRESS=DEFLATE."""
    with started(compress=True) as server:
        yield server


QUICK = ("all", "no CONDSTORE", "bare")  # the others take a minute more, and the server in memory has them all


@pytest.fixture(
    params=[
        pytest.param(removed, id=name, marks=() if name in QUICK else pytest.mark.long)
        for name, removed in CAPABILITY_SETS.items()
    ]
)
async def account(request: pytest.FixtureRequest, dovecot: Dovecot) -> AsyncIterator[LiveAccount]:
    made = LiveAccount(dovecot, f"contract-{next(_USERS)}", request.param)
    made.create("Trash")
    async with asyncio.timeout(30):
        yield made
        for remote in made.remotes:
            await remote.aclose()
    made.close()


class TestDovecot(PortContract):
    """See the module."""


class TestCompressed(PortContract):
    """The same over a line that is compressed."""

    @pytest.fixture
    async def account(self, compressing: Dovecot) -> AsyncIterator[LiveAccount]:
        made = LiveAccount(compressing, f"contract-{next(_USERS)}", frozenset(), is_compressed=True)
        made.create("Trash")
        compressed: list[bool] = []
        compress = ImapSession.compress

        async def noted(session: ImapSession) -> bool:
            compressed.append(await compress(session))
            return compressed[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImapSession, "compress", noted)
            async with asyncio.timeout(30):
                yield made
                for remote in made.remotes:
                    await remote.aclose()
        made.close()
        assert compressed
        assert all(compressed)
