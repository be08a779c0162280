"""The proxy at work: links between clients and one server, with delay, faults and counting. See `proxy` for its use."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

HOST = "127.0.0.1"
WINDOW_OCTETS = 4 << 20
CHUNK_OCTETS = 256 << 10
COMMAND_OVERLAP = 64  # a watched text may be cut in two by the network
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Toward = Literal["client", "server"]


@dataclass(slots=True)
class Sighting:
    """When a client first sent a watched text: since the first connection, and how often that client had answered."""

    elapsed_s: float
    turns: int


@dataclass(slots=True)
class Stats:
    """What passed. A turn is a side speaking after the other did: `turns_to_server` are a client's round trips."""

    connections: int = 0
    octets_to_client: int = 0
    octets_to_server: int = 0
    turns_to_client: int = 0
    turns_to_server: int = 0
    sightings: dict[str, Sighting] = field(default_factory=dict)


class _Cut(Exception):
    """The armed fault ends this link."""


class _Link:
    """One client's connection and its counterpart to the server."""

    def __init__(self, relay: Relay, client: socket.socket) -> None:
        self.relay = relay
        self.client = client
        self.server = socket.socket()
        self.server.setblocking(False)
        self.began = time.monotonic()
        self.connected = asyncio.Event()
        self.last: Toward | None = None
        self.turns = 0
        self.reset = False
        self.dead = relay.blackholed

    async def run(self) -> None:
        """Carry octets both ways until both sides have finished or one is gone."""
        up, down = _Flow(self, "server"), _Flow(self, "client")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(up.take())
                tasks.create_task(up.give())
                await asyncio.sleep(3 * self.relay.delay_s)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(self.server, (HOST, self.relay.target_port))
                self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connected.set()
                tasks.create_task(down.take())
                tasks.create_task(down.give())
        except* ConnectionResetError:
            self.reset = True
        except* (OSError, _Cut):
            self.reset = self.reset or not self.connected.is_set()
        finally:
            for side in (self.client, self.server):
                if self.reset:
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                side.close()


class _Flow:
    """One direction of a link: what was taken from one side and is due at the other."""

    def __init__(self, link: _Link, toward: Toward) -> None:
        self.link = link
        self.relay = link.relay
        self.toward: Toward = toward
        self.source, self.target = (link.server, link.client) if toward == "client" else (link.client, link.server)
        self.due: deque[tuple[float, bytes]] = deque()
        self.octets = 0
        self.arrived = asyncio.Event()
        self.room = asyncio.Event()
        self.tail = b""

    async def take(self) -> None:
        """Read until the sender finishes, no further ahead than the window."""
        loop = asyncio.get_running_loop()
        earliest = self.link.began + 2 * self.relay.delay_s
        while True:
            chunk = await loop.sock_recv(self.source, CHUNK_OCTETS)
            self.relay.count(self, chunk)
            if not self.link.dead:
                self.due.append((max(time.monotonic(), earliest) + self.relay.delay_s, chunk))
                self.octets += len(chunk)
                self.arrived.set()
            if not chunk:
                return
            while self.octets >= WINDOW_OCTETS:
                self.room.clear()
                await self.room.wait()

    async def give(self) -> None:
        """Deliver each chunk when it is due; the end of the stream, too."""
        loop = asyncio.get_running_loop()
        await self.link.connected.wait()
        while True:
            while not self.due:
                self.arrived.clear()
                await self.arrived.wait()
            when, chunk = self.due[0]
            if (early := when - time.monotonic()) > 0:
                await asyncio.sleep(early)
            await self.relay.flowing.wait()
            self.due.popleft()
            if not chunk:
                self.target.shutdown(socket.SHUT_WR)
                return
            if not self.link.dead:
                allowed = self.relay.allowance(self.toward, len(chunk))
                await loop.sock_sendall(self.target, chunk[:allowed])
                if allowed < len(chunk):
                    self.link.reset = self.relay.cut_resets
                    raise _Cut
            self.octets -= len(chunk)
            self.room.set()


class Relay:
    """The proxy itself, on the running event loop. Faults apply to every connection, present and future."""

    def __init__(
        self, target_port: int, *, delay_s: float = 0.0, watch: Sequence[str] = (), record: bool = False
    ) -> None:
        self.target_port = target_port
        self.delay_s = delay_s
        self.stats = Stats()
        self.transcript: dict[Toward, bytearray] | None = None
        if record:
            self.transcript = {"client": bytearray(), "server": bytearray()}
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.blackholed = False
        self.cut_resets = False
        self.changed: Callable[[], None] = lambda: None
        self._budget: dict[Toward, int | None] = {"client": None, "server": None}
        self._watch = [text.encode() for text in watch]
        self._began: float | None = None
        self._links: dict[asyncio.Task[None], _Link] = {}

    def listen(self, port: int = 0) -> socket.socket:
        """A listening socket for `serve`."""
        listener = socket.create_server((HOST, port), backlog=1024)
        listener.setblocking(False)
        return listener

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled; then drop every connection."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                client, _ = await loop.sock_accept(listener)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link = _Link(self, client)
                self._began = self._began or link.began
                self.stats.connections += 1
                task = loop.create_task(link.run())
                self._links[task] = link
                task.add_done_callback(self._forget)
                self.changed()
        finally:
            listener.close()
            tasks = self.drop(reset=False)
            await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._links[task]
        self.changed()

    def drop(self, *, reset: bool) -> list[asyncio.Task[None]]:
        """Close every connection at once, by RST or by FIN."""
        for task, link in self._links.items():
            link.reset = reset
            task.cancel()
        return list(self._links)

    @property
    def open_connections(self) -> int:
        """How many connections are carried right now."""
        return len(self._links)

    def blackhole(self) -> None:
        """Lose everything on its way and everything sent from now on."""
        self.blackholed = True
        for link in self._links.values():
            link.dead = True

    def resume(self) -> None:
        """Let new connections work again, and deliver what `flowing` held back."""
        self.blackholed = False
        self.flowing.set()

    def cut_after(self, octets: int, toward: Toward, *, reset: bool) -> None:
        """Let that many more octets through in this direction, then close the connection that would exceed it."""
        self._budget[toward] = octets
        self.cut_resets = reset

    def allowance(self, toward: Toward, wanted: int) -> int:
        """How many of the wanted octets may pass; fewer means that the cut is due (it happens once)."""
        budget = self._budget[toward]
        if budget is None:
            return wanted
        self._budget[toward] = None if wanted > budget else budget - wanted
        return min(wanted, budget)

    def count(self, flow: _Flow, chunk: bytes) -> None:
        """Take note of what a side sent."""
        link, stats = flow.link, self.stats
        if not chunk:
            return
        turned = link.last not in (None, flow.toward)
        link.last = flow.toward
        if flow.toward == "client":
            stats.octets_to_client += len(chunk)
            stats.turns_to_client += turned
        else:
            stats.octets_to_server += len(chunk)
            stats.turns_to_server += turned
            link.turns += turned
            self._look(flow, chunk)
        if self.transcript is not None:
            self.transcript[flow.toward] += chunk
        self.changed()

    def _look(self, flow: _Flow, chunk: bytes) -> None:
        """Note the first time that each watched text is sent."""
        if not self._watch:
            return
        text = flow.tail + chunk
        flow.tail = text[-COMMAND_OVERLAP:]
        for wanted in [wanted for wanted in self._watch if wanted in text]:
            self._watch.remove(wanted)
            elapsed_s = time.monotonic() - (self._began or 0.0)
            self.stats.sightings[wanted.decode()] = Sighting(elapsed_s, flow.link.turns)
