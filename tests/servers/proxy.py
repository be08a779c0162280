"""A TCP proxy on loopback that adds delay, injects faults and counts, without knowing what protocol it carries.

`DelayProxy` runs it in a process of its own, for timing; `FaultProxy` in a thread, for tests that break connections.
The same from a shell: `python -m tests.servers.proxy --listen 0 --target PORT --delay-ms 10` prints its port, works
until its stdin ends, and then prints what it counted as JSON.

Delay: each octet arrives `delay` later than it was sent, half a round trip each way; at most 4 MiB are on their way in
one direction. A connection costs a round trip more, as the TCP handshake does over a real line: the server hears of it
1.5 round trips after the client began, so that its greeting arrives after 2.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from tests.servers.relay import HOST, Relay, Sighting, Stats, Toward

WAIT_S = 10.0

T = TypeVar("T")


def _event_loop() -> asyncio.AbstractEventLoop:
    """select() waits to the microsecond; asyncio's own choice, epoll, rounds every delay up to a millisecond."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class FaultProxy:
    """The proxy in a thread of this process, with faults to order. A context manager; safe to call from any thread.

    `record=True` keeps what passes, for `recorded`. Its methods are quick, except `wait_for`, which an
    async test calls through `anyio.to_thread.run_sync` where the other side of the proxy is on its own event loop.
    """

    host = HOST

    def __init__(self, target_port: int, *, delay_s: float = 0.0, record: bool = False) -> None:
        self._relay = Relay(target_port, delay_s=delay_s, record=record)
        self._relay.changed = self._announce
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None], int]] = Future()
        self._change = threading.Condition()
        self._changes = 0

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._loop, self._serving, self.port = self._started.result(WAIT_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(WAIT_S)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=_event_loop) as runner, contextlib.suppress(asyncio.CancelledError):
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop, listener = asyncio.get_running_loop(), self._relay.listen()
        serving = loop.create_task(self._relay.serve(listener))
        self._started.set_result((loop, serving, listener.getsockname()[1]))
        await serving

    def _announce(self) -> None:
        with self._change:
            self._changes += 1
            self._change.notify_all()

    def _order(self, action: Callable[[], T]) -> T:
        """Run on the proxy's event loop and wait for the result."""

        async def run() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT_S)

    def stats(self) -> Stats:
        """What passed so far."""
        return self._order(lambda: replace(self._relay.stats))

    def recorded(self, toward: Toward) -> bytes:
        """Everything that the other side sent toward this one, over all connections (needs `record=True`)."""
        transcript = self._relay.transcript
        if transcript is None:
            raise ValueError("this FaultProxy does not record")
        return self._order(lambda: bytes(transcript[toward]))

    def wait_for(self, condition: Callable[[FaultProxy], bool], timeout_s: float = WAIT_S) -> None:
        """Return as soon as the condition holds; TimeoutError if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self._changes  # before the condition is asked, which must be without the lock: it asks the loop
            if condition(self):
                return
            with self._change:
                while self._changes == seen:
                    if not self._change.wait(deadline - time.monotonic()):
                        raise TimeoutError(f"the proxy's condition did not come true; {self.stats()}")

    def open_connections(self) -> int:
        """How many connections are carried right now."""
        return self._order(lambda: self._relay.open_connections)

    def cut_after(self, octets: int, *, toward: Toward = "client", reset: bool = False) -> None:
        """Let that many more octets through in this direction, then close the connection that brings the next one.

        Happens once; later connections work. With `reset` by RST, otherwise by FIN.
        """
        self._order(lambda: self._relay.cut_after(octets, toward, reset=reset))

    def cut(self, *, reset: bool = False) -> None:
        """Close every connection now. Both sides learn of it."""
        self._order(lambda: self._relay.drop(reset=reset))

    def blackhole(self) -> None:
        """From now on nothing arrives anywhere and nobody is told, as when a router loses its state.

        New connections are accepted and stay silent. `resume` lets new connections work; those lost here stay lost.
        """
        self._order(self._relay.blackhole)

    def stall(self) -> None:
        """Hold everything back, in both directions, until `resume`."""
        self._order(self._relay.flowing.clear)

    def resume(self) -> None:
        """End `stall` or `blackhole`."""
        self._order(self._relay.resume)


class DelayProxy:
    """The proxy in a process of its own, so that its work does not disturb the timing. A context manager."""

    host = HOST

    def __init__(self, target_port: int, *, rtt_s: float, watch: Sequence[str] = ()) -> None:
        self._command = [sys.executable, "-m", __name__, "--target", str(target_port), "--delay-ms", str(rtt_s * 500)]
        for text in watch:
            self._command += ["--watch", text]

    def __enter__(self) -> DelayProxy:
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(self._command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.communicate()

    def finish(self) -> Stats:
        """Stop, and what passed."""
        said, _ = self._process.communicate()
        return _stats(json.loads(said))


def _stats(told: dict[str, Any]) -> Stats:
    sightings = {text: Sighting(**seen) for text, seen in told.pop("sightings").items()}
    return Stats(sightings=sightings, **told)


async def _serve_until_stdin_ends(relay: Relay, port: int) -> None:
    """The command-line form. SIGTERM and SIGINT end it as the end of stdin does."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, done.set)

    def await_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(done.set)

    threading.Thread(target=await_end, daemon=True).start()
    listener = relay.listen(port)
    print(listener.getsockname()[1], flush=True)
    serving = loop.create_task(relay.serve(listener))
    await done.wait()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    print(json.dumps(asdict(relay.stats)), flush=True)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="tests.servers.proxy", description=__doc__)
    parser.add_argument("--listen", type=int, default=0, metavar="PORT", help="0: any free port")
    parser.add_argument("--target", type=int, required=True, metavar="PORT", help="the server's port on 127.0.0.1")
    parser.add_argument("--delay-ms", type=float, default=0.0, metavar="MS", help="one way: half the round trip")
    parser.add_argument(
        "--watch", action="append", default=[], metavar="TEXT", help="note when a client sends it first"
    )
    arguments = parser.parse_args()
    relay = Relay(arguments.target, delay_s=arguments.delay_ms / 1000, watch=arguments.watch)
    with asyncio.Runner(loop_factory=_event_loop) as runner:
        runner.run(_serve_until_stdin_ends(relay, arguments.listen))


if __name__ == "__main__":
    main()
