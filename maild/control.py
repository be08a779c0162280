"""The daemon's socket, both ends: `control.sock` in the state directory, readable and writable by its owner only.

One request a connection: a line of JSON there, lines of JSON back, the last of which has `result` or `error`; each has
the `version` of this protocol. Progress comes in lines before it. The daemon waits for a request for some seconds,
takes a few KiB of it and so many clients at once; whoever does not read what it asked for is cut off, and nobody waits
for the answer to a client that is gone. No client holds up anything but its own answer.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from maild.config.places import SOCKET
from maild.core.errors import MaildError
from maild.engine.report import AccountReport, MailboxReport

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1
MOST_CLIENTS = 64
REQUEST_S = 5.0
REQUEST_OCTETS = 256 * 1024
TAKE_S = 30.0  # how long a client may leave an answer unread
LOOK_EVERY_S = 0.5  # whether a client that says no more is still there
ANSWER_OCTETS = 256 << 20  # the most that a client takes
CONNECT_S = 5.0
_LONGEST_ADDRESS = 100  # sun_path has 108 octets (unix(7))
_CHUNK = 1 << 16

Message = dict[str, Any]
Answer = Callable[[Message], AsyncGenerator[Message, None]]


class NoDaemon(MaildError):
    """Nobody listens at the control socket. Exit status 69 where a daemon is needed."""


class Refused(MaildError):
    """The daemon's answer is an error. `status` is the exit status that fits."""

    def __init__(self, text: str, hint: str = "", status: int = 1) -> None:
        super().__init__(text, hint)
        self.status = status


# -- the daemon's end


class ControlServer:
    """Answers clients by `answer(request)`, whose messages are sent as they come; it raises Refused for an error.

    The caller holds the lock of the state directory: a socket that is there is a dead daemon's, and is replaced.
    Raises LocalError where the disk refuses.
    """

    def __init__(
        self,
        state_dir: Path,
        answer: Answer,
        *,
        most_clients: int = MOST_CLIENTS,
        request_s: float = REQUEST_S,
        take_s: float = TAKE_S,
    ) -> None:
        self._path = state_dir / SOCKET
        self._answer = answer
        self._most, self._request_s, self._take_s = most_clients, request_s, take_s
        self._clients = 0
        self._listener = _listening(self._path)

    def close(self) -> None:
        self._listener.close()
        self._path.unlink(missing_ok=True)

    async def run(self) -> None:
        """Answer for ever."""
        import asyncio  # here, as below: a program that asks needs no event loop, and starts in half the time

        import anyio

        async with anyio.create_task_group() as tasks:
            while True:
                try:
                    connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
                except OSError as exc:
                    if exc.errno not in _PASSING:
                        raise
                    await anyio.sleep(1.0)  # until there is a descriptor again, or memory
                    continue
                if self._clients >= self._most:
                    connection.close()
                    continue
                self._clients += 1
                tasks.start_soon(self._serve, connection)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError, TimeoutError):  # a client that goes, or does not do its part
                connection.setblocking(False)
                await self._converse(connection)
        finally:
            connection.close()
            self._clients -= 1

    async def _converse(self, connection: socket.socket) -> None:
        import anyio

        try:
            request = await self._request(connection)
        except Refused as exc:
            await self._send(connection, _error(exc))
            return

        async def answer() -> None:
            with suppress(OSError, TimeoutError):
                await self._answer_all(connection, request)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            with suppress(OSError):
                await _gone(connection)
            tasks.cancel_scope.cancel()

    async def _answer_all(self, connection: socket.socket, request: Message) -> None:
        try:
            async with aclosing(self._answer(request)) as messages:
                async for message in messages:
                    await self._send(connection, message)
        except MaildError as exc:
            await self._send(connection, _error(exc))

    async def _request(self, connection: socket.socket) -> Message:
        import asyncio

        import anyio

        line = bytearray()
        with anyio.fail_after(self._request_s):
            while b"\n" not in line:
                chunk = await asyncio.get_running_loop().sock_recv(connection, _CHUNK)
                line += chunk
                if not chunk or len(line) > REQUEST_OCTETS:
                    raise Refused("the request is not one line of a size that is taken", status=64)
        return _read(bytes(line.partition(b"\n")[0]))

    async def _send(self, connection: socket.socket, message: Message) -> None:
        import asyncio

        import anyio

        with anyio.fail_after(self._take_s):
            await asyncio.get_running_loop().sock_sendall(connection, _line(message))


async def _gone(connection: socket.socket) -> None:
    """Until the client has closed the connection, or says far more than it has to. One that only has nothing more to
    say (shutdown(2)) still reads."""
    import asyncio
    import select

    import anyio

    octets = 0
    while chunk := await asyncio.get_running_loop().sock_recv(connection, _CHUNK):
        octets += len(chunk)
        if octets > REQUEST_OCTETS:
            return
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP is told anyhow
    while not poll.poll(0):  # noqa: ASYNC110 - nobody tells
        await anyio.sleep(LOOK_EVERY_S)


def _error(exc: MaildError) -> Message:
    return {"error": exc.text, "hint": exc.hint, "status": exc.status if isinstance(exc, Refused) else 1}


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            with _address(path) as address:
                listener.bind(address)
        finally:
            os.umask(before)
        listener.listen(MOST_CLIENTS)
    except OSError as exc:
        listener.close()
        from maild.local.durable import disk_error  # the daemon's end alone needs it

        raise disk_error(exc, "listen at", path) from exc
    return listener


# -- the other end


class Conversation:
    """A request on its way; iterate for what the daemon says until its result, which is then in `result`."""

    def __init__(self, state_dir: Path, request: Mapping[str, object], timeout_s: float | None = 30.0) -> None:
        """Connect and ask. `timeout_s` is for the next line of the answer. Raises NoDaemon."""
        self.result: Any = None
        self._path = state_dir / SOCKET
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._connection.settimeout(CONNECT_S)
        try:
            with _address(self._path) as address:
                self._connection.connect(address)
            self._connection.sendall(_line(dict(request)))
            self._connection.settimeout(timeout_s)
        except OSError as exc:
            self._connection.close()
            raise NoDaemon(f"no maild daemon answers at {self._path}", "start one: maild run") from exc

    def __iter__(self) -> Iterator[Message]:
        """Each message before the result. Raises Refused with the daemon's error, NoDaemon where it goes away."""
        try:
            with self._connection.makefile("rb") as lines:
                while True:
                    line = lines.readline(ANSWER_OCTETS)
                    if not line.endswith(b"\n"):
                        raise NoDaemon("the maild daemon ended before it had answered", "see its log")
                    message = _read(line)
                    if "error" in message:
                        raise Refused(
                            str(message["error"]), str(message.get("hint", "")), int(message.get("status", 1))
                        )
                    if "result" in message:
                        self.result = message["result"]
                        return
                    yield message
        except OSError as exc:
            raise NoDaemon(f"the maild daemon at {self._path} does not answer", "see its log") from exc
        finally:
            self._connection.close()


def ask(state_dir: Path, request: Mapping[str, object], timeout_s: float | None = 30.0) -> Any:
    """Ask and return the result, whatever is said before it. Raises NoDaemon, Refused."""
    conversation = Conversation(state_dir, request, timeout_s)
    for _ in conversation:
        continue
    return conversation.result


def nudge(state_dir: Path, request: Mapping[str, object]) -> bool:
    """Tell a daemon something if there is one; whether there was."""
    try:
        ask(state_dir, request, CONNECT_S)
    except (NoDaemon, Refused):
        return False
    return True


def hint(state_dir: Path, request: Mapping[str, object]) -> None:
    """Tell a daemon something if there is one, without waiting for it: not even whether it took notice."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with connection, suppress(OSError), _address(state_dir / SOCKET) as address:
        connection.connect(address)
        connection.send(_line(dict(request)))


# -- what goes over the wire


def as_message(report: AccountReport) -> Message:
    """A report as JSON has it."""
    return as_progress(report) | {"mailboxes": {name: one.as_dict() for name, one in report.mailboxes.items()}}


def as_progress(report: AccountReport) -> Message:
    """The same without the mailboxes: how far it is."""
    return {name: getattr(report, name) for name in AccountReport.PROGRESS}


def note_progress(report: AccountReport, message: Mapping[str, Any]) -> None:
    """Bring a report up to date with what `as_message` made of another, or with a part of it."""
    for name in AccountReport.PROGRESS:
        if name in message:
            setattr(report, name, message[name])
    for name, told in message.get("mailboxes", {}).items():
        mailbox = report.mailboxes[name] = MailboxReport(name)
        for key in MailboxReport.FIELDS:
            if key in told:
                setattr(mailbox, key, told[key])


_PASSING = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED))


def _line(message: Message) -> bytes:
    return json.dumps({"version": VERSION, **message}, separators=(",", ":")).encode() + b"\n"


def _read(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise Refused("not a line of JSON", status=64) from exc
    if not isinstance(message, dict) or message.get("version") != VERSION:
        raise Refused(
            f"not a message of version {VERSION} of this protocol",
            "maild and its daemon are of different versions: restart the daemon",
            64,
        )
    return message


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """The path as an address, by way of its directory's descriptor where it is too long for one."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
