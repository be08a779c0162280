"""The contract of the port on the server in memory, with everything it can and with less and less."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import pytest

from maild.remote.imap.remote import ImapRemote
from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.remote.conftest import DEADLINE_S, PASSWORD, USER, imap_endpoint
from tests.remote.contract import CAPABILITY_SETS, WHEN_S, Content, PortContract


class MemoryAccount:
    """A store, its server, and remotes that were asked for."""

    def __init__(
        self, server: ImapServer, store: Store, removed: frozenset[str], *, is_compressed: bool = False
    ) -> None:
        self.removed = removed
        self._is_compressed = is_compressed
        self.remotes: list[ImapRemote] = []
        self._server = server
        self._store = store

    def remote(self, **changes: Any) -> ImapRemote:
        self.remotes.append(
            ImapRemote(imap_endpoint(self._server.port, compress=self._is_compressed, **changes), "work")
        )
        return self.remotes[-1]

    def deliver(self, mailbox: str, raw: bytes, flags: Iterable[str] = ()) -> int:
        return self._store.deliver(mailbox, raw, flags, WHEN_S)

    def contents(self, mailbox: str) -> dict[int, Content]:
        return {m.uid: (m.raw, m.flags, m.date_s) for m in self._store.mailbox(mailbox)}

    def flag(self, mailbox: str, uids: Sequence[int], flags: Iterable[str]) -> None:
        self._store.set_flags(mailbox, uids, add=flags)

    def expunge(self, mailbox: str, uids: Sequence[int]) -> None:
        self._store.expunge(mailbox, uids)

    def create(self, name: str) -> None:
        self._store.create(name)

    def names(self) -> set[str]:
        return set(self._store.names)

    def subscribed(self) -> set[str]:
        return {mailbox.name for mailbox in self._store.mailboxes if mailbox.subscribed}


@pytest.fixture(params=[*CAPABILITY_SETS, "compressed"])
async def account(request: pytest.FixtureRequest) -> AsyncIterator[MemoryAccount]:
    is_compressed = request.param == "compressed"
    removed = frozenset() if is_compressed else CAPABILITY_SETS[request.param]
    store = Store()
    store.create("Trash", "\\Trash")
    async with (
        asyncio.timeout(2 * DEADLINE_S),
        ImapServer(store, {USER: PASSWORD}, capabilities=ALL - removed) as server,
    ):
        made = MemoryAccount(server, store, removed, is_compressed=is_compressed)
        yield made
        for remote in made.remotes:
            await remote.aclose()
        if is_compressed:
            assert {connection.commands.count("COMPRESS DEFLATE") for connection in server.connections} == {1}


@pytest.mark.usefixtures("quiet_loop")
class TestMemory(PortContract):
    """See the module."""
