"""Messages as they come in: several UID FETCH commands in flight, read no faster than the caller takes them.

Reading pauses while more than a few MiB wait for the caller.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator

import structlog

from maild.core.errors import ConnectionLost, Rejected
from maild.remote.imap.parse import Event, FetchData, Sink, uid_set
from maild.remote.imap.session import Command, ImapSession, Protocol

HIGH_WATER_OCTETS = 2 << 20
SINK_OCTETS = 1 << 20  # what a message counts that is on the disk already: it holds a descriptor there
IN_FLIGHT = 4  # FETCH commands sent ahead, so that the line never waits for us
MESSAGE_OVERHEAD_OCTETS = 1024  # what a message costs in memory besides its octets

log = structlog.get_logger()


async def messages(
    session: ImapSession,
    sets: Iterator[list[int]],
    items: str,
    open_body: Callable[[int], Sink | None],
    refused: list[int],
) -> AsyncGenerator[list[FetchData]]:
    """UID FETCH each set, several in flight, and hand over what has completed whenever the caller is ready for it.

    The next set is taken only when there is room for it. Sets that the server refuses are added to `refused`. An
    unsolicited flag update has no body and is left out. Leaving early ends the connection.
    """
    stream = _Stream(session.protocol, sets, items, open_body, refused)
    try:
        while (fetched := await stream.next()) is not None:
            yield fetched
    finally:
        stream.close()


class _Stream:
    """The messages of several UID FETCH commands, as they come in."""

    def __init__(
        self,
        protocol: Protocol,
        sets: Iterator[list[int]],
        items: str,
        open_body: Callable[[int], Sink | None],
        refused: list[int],
    ) -> None:
        self._protocol = protocol
        self._sets = sets
        self._items = items
        self._refused = refused
        self._running: deque[tuple[Command, list[int]]] = deque()
        self._arrived: list[FetchData] = []
        self._octets = 0
        self._progress = asyncio.Event()
        protocol.receiver.parser.open_body = open_body

    async def next(self) -> list[FetchData] | None:
        """All that has arrived, at least one message; None after the last."""
        while True:
            self._send_ahead()
            if self._arrived:
                return self._all_arrived()
            if not self._running:
                return None
            command, numbers = self._running[0]
            if command.done:
                self._running.popleft()
                await self._settle(command, numbers)
            else:
                await self._protocol.line.watched(self._progress, self._is_ready)

    def close(self) -> None:
        if any(not command.done for command, _ in self._running):
            self._protocol.fail(ConnectionLost("the transfer was given up"))
        self._protocol.line.resume()
        self._protocol.receiver.parser.open_body = None

    def _is_ready(self) -> bool:
        return bool(self._arrived) or self._running[0][0].done

    async def _settle(self, command: Command, numbers: list[int]) -> None:
        try:
            await self._protocol.finish(command)
        except Rejected as exc:
            log.debug("server.corrected", host=self._protocol.server, reason=exc.text)
            self._refused.extend(numbers)

    def _send_ahead(self) -> None:
        if self._arrived and self._protocol.lost is not None:
            return  # what has arrived is good
        while len(self._running) < IN_FLIGHT and (numbers := next(self._sets, None)) is not None:
            tag = self._protocol.new_tag()
            command = Command("FETCH", tag, uid_set(numbers), self._items, prefix="UID", collect=self._collect)
            command.progress = self._progress
            self._running.append((self._protocol.launch(command), numbers))

    def _collect(self, event: Event) -> None:
        if isinstance(event, FetchData) and event.uid is not None and b"" in event.sections:
            self._arrived.append(event)
            self._octets += _held_octets(event)
            if self._octets > HIGH_WATER_OCTETS:
                self._protocol.line.pause()
            self._progress.set()

    def _all_arrived(self) -> list[FetchData]:
        arrived, self._arrived = self._arrived, []
        self._octets = 0
        self._protocol.line.resume()
        return arrived


def _held_octets(fetched: FetchData) -> int:
    body = fetched.sections[b""]
    held = len(body) if isinstance(body, bytes | bytearray) else SINK_OCTETS
    return MESSAGE_OVERHEAD_OCTETS + held
