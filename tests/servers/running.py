"""Asyncio servers in a thread of their own, for commands that bring their own event loop or process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Any

START_TIMEOUT_S = 10.0


@contextmanager
def running(*servers: AbstractAsyncContextManager[Any]) -> Iterator[None]:
    """All of them, until the block ends."""
    started, stopping = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server)
            started.set()
            await stopping.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        if not started.wait(START_TIMEOUT_S):
            raise TimeoutError("the servers did not start")
        yield
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(START_TIMEOUT_S)
        loop.close()
