"""One IMAP connection: connect, TLS, compression, commands side by side; alone imports aioimaplib.

aioimaplib opens the connection, makes tags, knows which command is legal in which state and carries the life of a
command; its receiving half is replaced by `receive.Receiver` (maild's tests pin each fact that makes this necessary).

What this file keeps:
- any number of commands may be in flight; an untagged response belongs to the oldest of them (RFC 9051 §5.5), so only
  commands by UID are ever sent side by side;
- a lost connection or silence reaches every waiter as one of our errors;
- a command that is cancelled or times out ends the connection: an answer would still be owed;
- a command's literals follow it without anything in between, no faster than the server takes them;
- nothing the server said before TLS is believed, nor kept; nothing is sent between COMPRESS and its answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
import time
from collections.abc import Callable

import anyio
import structlog
from aioimaplib import aioimaplib

from maild.config import Imap
from maild.core.errors import ConnectionLost, MaildError, ProtocolViolation, Rejected, TlsFailed
from maild.remote.imap import deflate
from maild.remote.imap.answers import WITHOUT_STARTTLS, Opened, Reply, refused_starttls, rejected
from maild.remote.imap.line import Line
from maild.remote.imap.parse import Event, Limits, Tagged
from maild.remote.imap.receive import Collect, Receiver, Waiting
from maild.remote.net import check_pin, tls_context, translated

CONNECT_TIMEOUT_S = 30.0
HAPPY_EYEBALLS_S = 0.25  # RFC 8305 §5, between attempts at the addresses of a name
COMMAND_TIMEOUT_S = 60.0

_BUFFER = bytearray(256 * 1024)  # one for all connections: get_buffer and buffer_updated are never interleaved
_VIEW = memoryview(_BUFFER)

_ANY_STATE = (aioimaplib.NONAUTH, aioimaplib.AUTH, aioimaplib.SELECTED)
_STATES: dict[str, tuple[str, ...]] = {
    **{name: tuple(known.valid_states) for name, known in aioimaplib.Commands.items()},
    "UNSELECT": (aioimaplib.SELECTED,),
    "CAPABILITY": _ANY_STATE,
    "ENABLE": (aioimaplib.AUTH, aioimaplib.SELECTED),
    "IDLE": (aioimaplib.AUTH, aioimaplib.SELECTED),  # RFC 2177 §3
    "NOTIFY": (aioimaplib.AUTH, aioimaplib.SELECTED),
}

log = structlog.get_logger()


def ignore(event: Event) -> None:
    """Takes the untagged responses of a command where they do not matter."""


def now_s() -> float:
    """A clock that goes on while the machine sleeps (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def quoted(text: str) -> str:
    """An IMAP quoted string (RFC 9051 §4.3). CR, LF and NUL cannot be in one: Rejected, and nothing is sent."""
    if any(c in text for c in "\r\n\0"):
        raise Rejected(
            f"a line break or NUL cannot be sent to the server, as in {text!a}", "rename it with another client"
        )
    return str(aioimaplib.quoted(text))


class Command(Waiting, aioimaplib.Command):
    """aioimaplib's command with our receiving half, and no timer of its own per line."""

    def __init__(
        self, name: str, tag: str, *args: str, prefix: str | None = None, collect: Collect | None = None
    ) -> None:
        aioimaplib.Command.__init__(self, name, tag, *args, prefix=prefix or "", untagged_resp_name=tag)
        Waiting.__init__(self, collect)
        self._event = self.progress  # one is enough, some hundred octets less for each that idles

    def __repr__(self) -> str:
        """Without the arguments: they may hold a secret."""
        return f"{self.tag} {self.prefix or ''}{self.name}"

    def line(self) -> str:
        """What goes over the wire, without CRLF."""
        return aioimaplib.Command.__repr__(self)

    async def wait(self) -> None:
        """For its end. Raises what it failed with."""
        while not self.done:
            self.progress.clear()
            await self.progress.wait()
        if self.failure is not None:
            raise self.failure

    def end(self, reply: Tagged | None, failure: MaildError | None = None) -> None:
        super().end(reply, failure)
        self._exception = failure  # type: ignore[assignment]  # aioimaplib declares it None
        self.close(b"", reply.status if reply is not None else "KO")

    def _reset_timer(self) -> None:
        """No timer per line: deadlines are kept by whoever waits."""


class Protocol(aioimaplib.IMAP4ClientProtocol, asyncio.BufferedProtocol):
    """Octets in, commands out, and how they end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits, server: str) -> None:
        self.server = server
        self.lost: MaildError | None = None
        self.heard_at_s = now_s()
        self.line = Line(server, self._receive, self.fail)
        self.receiver = Receiver(server, limits, self.line)
        super().__init__(loop)
        for unused in ("state_condition", "idle_queue", "_idle_event"):
            delattr(self, unused)  # some KiB for each session
        self.running_loop = loop
        self.pending_async_commands = self.receiver.waiting

    @property
    def capabilities(self) -> set[str]:
        return self.receiver.capabilities  # type: ignore[return-value]  # of aioimaplib, which never changes it

    @capabilities.setter
    def capabilities(self, capabilities: set[str]) -> None:
        self.receiver.capabilities = capabilities

    # -- receiving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.line.attach(transport)

    @property
    def silent_s(self) -> float:
        """For how long nothing has come."""
        return now_s() - self.heard_at_s

    def get_buffer(self, sizehint: int) -> memoryview:
        return _VIEW

    def buffer_updated(self, nbytes: int) -> None:
        self.line.received(_VIEW, nbytes)

    def data_received(self, data: bytes) -> None:
        self.line.received(data, len(data))

    def eof_received(self) -> bool:
        return False

    def _receive(self, octets: bytes | bytearray | memoryview, length: int) -> None:
        self.heard_at_s = now_s()
        try:
            self.receiver.take(octets, length)
        except MaildError as exc:
            self.fail(exc)

    # -- turning: STARTTLS, COMPRESS

    async def turn(self, name: str, *args: str) -> Tagged:
        """Send a command after whose answer everything is read in another way; nothing is sent before that."""
        command = self.launch(Command(name, self.new_tag(), *args))
        self.receiver.turning = command
        return (await self.finish(command, COMMAND_TIMEOUT_S, may_refuse=True)).tagged

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """STARTTLS (RFC 9051 §6.2.1); everything known before is forgotten."""
        tagged = await self.turn("STARTTLS")
        if tagged.status != "OK":
            raise refused_starttls(self.server, tagged.text or tagged.status)
        self.receiver.forget()
        if self.line.transport is not None:
            secured = await self.running_loop.start_tls(
                self.line.transport, self, context, server_hostname=host, ssl_handshake_timeout=CONNECT_TIMEOUT_S
            )
            if secured is not None:
                self.connection_made(secured)
            self.state = aioimaplib.NONAUTH

    # -- sending

    def send(self, line: str, scrub: str | None = None) -> None:
        """aioimaplib logs what it sends; this does not."""
        self._write(line.encode("utf-8", "surrogateescape") + b"\r\n")  # a mailbox name goes back as it came

    def write(self, octets: bytes) -> None:
        """Send octets that belong to the command launched last."""
        self._write(octets)

    def _write(self, octets: bytes) -> None:
        self.line.write(octets)

    def pause_writing(self) -> None:
        self.line.pause_writing()

    def resume_writing(self) -> None:
        self.line.resume_writing()

    async def room(self) -> None:
        """Wait until the line has taken what was sent, but for a little; one that takes nothing is dropped."""
        await self.line.room()
        if self.lost is not None:
            raise self.lost

    def launch(self, command: Command, literal: bytes | None = None) -> Command:
        """Send a command without waiting for those before it, and all that follows its line in the same write."""
        if self.lost is not None:
            raise self.lost
        if self.state not in _STATES.get(command.name, ()) or self.receiver.turning is not None:
            raise ProtocolViolation(f"{command.name} makes no sense now ({self.state.lower()})")
        command.sent_at_octets = self.line.received_octets
        self.pending_async_commands[command.tag] = command
        if literal is None:
            self.send(command.line())
        else:
            self._write(b"%b\r\n%b" % (command.line().encode("utf-8", "surrogateescape"), literal))
        return command

    async def finish(
        self, command: Command, limit_s: float | None = COMMAND_TIMEOUT_S, *, may_refuse: bool = False
    ) -> Reply:
        """Wait for a command's end; NO and BAD raise Rejected. Beyond `limit_s`, or in silence, the connection goes."""
        try:
            if limit_s is None:
                await self.line.watched(command.progress, lambda: command.done)
            else:
                with anyio.fail_after(limit_s):
                    await command.wait()
        except TimeoutError:
            self.fail(ConnectionLost(f"{self.server} did not answer {command.name} within {limit_s:.0f} s"))
        except asyncio.CancelledError:
            self.fail(ConnectionLost("the command was given up"))
            raise
        if command.failure is not None:
            raise command.failure
        if command.reply is None:
            raise self.lost or ConnectionLost(f"{self.server} closed the connection")
        if command.reply.status != "OK" and not may_refuse:
            raise rejected(command.name, command.reply)
        return Reply(command.reply, command.events)

    # -- the end

    def fail(self, error: MaildError) -> None:
        """End the connection at once; every waiter gets `error`."""
        self._give_up(error)
        self.line.abort()

    def leave(self) -> None:
        """Say goodbye and close behind it (RFC 9051 §6.1.3)."""
        self.send(f"{self.new_tag()} LOGOUT")
        self._give_up(ConnectionLost("logged out"))
        self.line.close()

    def _give_up(self, error: MaildError) -> None:
        lost = self.lost = self.lost or error
        self.state = aioimaplib.LOGOUT
        self.receiver.end(lost)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost is None:
            known = os.strerror(exc.errno).lower() if isinstance(exc, OSError) and exc.errno else str(exc or "")
            reason = f": {known}" if known else ""
            self.fail(ConnectionLost(f"{self.server} closed the connection{reason}"))


class _Client(aioimaplib.IMAP4):
    """aioimaplib's client around our protocol; happy eyeballs (RFC 8305) against black-holed IPv6."""

    def __init__(self, endpoint: Imap, limits: Limits, context: ssl.SSLContext | None) -> None:
        self.limits = limits
        super().__init__(
            endpoint.host,
            endpoint.port,
            timeout=CONNECT_TIMEOUT_S,
            ssl_context=context,  # type: ignore[arg-type]  # None is its default
        )

    def create_client(
        self,
        host: str,
        port: int,
        loop: asyncio.AbstractEventLoop | None,
        conn_lost_cb: Callable[[Exception | None], None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        running = asyncio.get_running_loop()
        self.ours = ours = Protocol(running, self.limits, f"{host}:{port}")
        self.protocol = ours  # type: ignore[assignment]  # aioimaplib declares it None
        delay_s = None if _is_address(host) else HAPPY_EYEBALLS_S  # an address leaves nothing to choose from
        self._client_task = running.create_task(
            running.create_connection(lambda: ours, host, port, ssl=ssl_context, happy_eyeballs_delay=delay_s)
        )

    async def _wait_connection_and_hello(self) -> None:
        await self._client_task
        await self.ours.receiver.greeting
        self.ours.state = aioimaplib.NONAUTH  # PREAUTH is refused in any case


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class ImapSession:
    """One authenticated connection. Used by one task at a time; commands may be sent side by side."""

    def __init__(self, endpoint: Imap, protocol: Protocol) -> None:
        self.endpoint = endpoint
        self.protocol = protocol
        self.enabled: frozenset[str] = frozenset()

    @classmethod
    async def connect(cls, endpoint: Imap, max_message_octets: int) -> ImapSession:
        """TCP, TLS as the config demands, greeting, capabilities; nothing secret is sent."""
        limits = Limits(body=max_message_octets)
        is_implicit = endpoint.tls == "implicit"
        with translated(endpoint):
            client = _Client(endpoint, limits, tls_context(endpoint) if is_implicit else None)
            try:
                await client.wait_hello_from_server()
                session = cls(endpoint, client.ours)
                await session._secure((await client.ours.receiver.greeting).status)
            except BaseException:
                client._client_task.cancel()
                client.ours.fail(ConnectionLost("given up"))
                raise
        return session

    async def _secure(self, greeting: str) -> None:
        protocol = self.protocol
        if greeting == "PREAUTH":
            raise TlsFailed(
                f"{protocol.server} wants to skip logging in (PREAUTH)", "maild does not use such a connection"
            )
        if self.endpoint.tls == "starttls":
            if not protocol.capabilities:
                await self.ask_capabilities()
            if "STARTTLS" not in protocol.capabilities:
                raise TlsFailed(f"{protocol.server} does not offer STARTTLS", WITHOUT_STARTTLS)
            await protocol.start_tls(tls_context(self.endpoint), self.endpoint.host)
        if self.endpoint.tls != "none":
            tls = self.tls
            check_pin(self.endpoint, tls.getpeercert(binary_form=True) if tls is not None else None)
        protocol.receiver.is_private = True
        if not protocol.capabilities:
            await self.ask_capabilities()

    async def ask_capabilities(self) -> None:
        try:
            await self.run("CAPABILITY")
        except Rejected as exc:
            raise ProtocolViolation(
                f"{self.protocol.server} does not tell its capabilities: {exc.text}", "check host and port"
            ) from exc
        if not self.protocol.capabilities & {"IMAP4REV1", "IMAP4REV2"}:
            raise ProtocolViolation(f"{self.protocol.server} does not speak IMAP4rev1", "check host and port")

    @property
    def tls(self) -> ssl.SSLObject | None:
        transport = self.protocol.line.transport
        return None if transport is None else transport.get_extra_info("ssl_object")

    async def compress(self) -> bool:
        """Compress both ways from here on (RFC 4978), if the server offers it and agrees; whether it does."""
        if not self.has(deflate.NAME):
            reason = "the server does not offer to compress"
        elif self.tls is not None and self.tls.compression() is not None:
            reason = "TLS compresses already"
        else:
            tagged = await self.protocol.turn("COMPRESS", "DEFLATE")
            if tagged.status == "OK":
                return True
            reason = f"the server does not compress: {tagged.text or tagged.status}"
        log.debug("server.corrected", host=self.protocol.server, reason=reason)
        return False

    def has(self, capability: str) -> bool:
        """Whether the server offers an extension that the config does not switch off."""
        return capability in self.protocol.capabilities and capability not in self.endpoint.disable_extensions

    async def settled(self) -> None:
        """Wait for the end of all commands; what they answer does not matter."""
        for command in list(self.protocol.pending_async_commands.values()):
            await self.protocol.finish(command, may_refuse=True)

    @property
    def oldest(self) -> Waiting | None:
        """The command that untagged responses belong to."""
        return self.protocol.receiver.oldest()

    @property
    def is_busy(self) -> bool:
        """Whether commands still wait for their end."""
        return bool(self.protocol.pending_async_commands)

    @property
    def is_lost(self) -> bool:
        return self.protocol.lost is not None

    # -- commands

    def launch(
        self,
        name: str,
        *args: str,
        prefix: str | None = None,
        collect: Collect | None = None,
        answer: Callable[[bytes], bytes] | None = None,
    ) -> Command:
        """Send a command now; `finish` waits for it. `collect` takes its untagged responses instead of the reply.

        `answer` makes of each continuation what is sent next.
        """
        command = Command(name, self.protocol.new_tag(), *args, prefix=prefix, collect=collect)
        command.on_continuation = answer
        return self.protocol.launch(command)

    def launch_with(self, literal: bytes, name: str, *args: str) -> Command:
        """Send a command whose last argument announces a non-synchronizing literal, with all that follows its line."""
        command = Command(name, self.protocol.new_tag(), *args, collect=ignore)
        return self.protocol.launch(command, literal)

    def overhear(self, listener: Collect) -> None:
        """Tell `listener` too what the commands that are still waited for are told."""
        for command in self.protocol.receiver.waiting.values():
            command.overheard = listener

    async def launch_asking(self, limit_s: float, name: str, *args: str, collect: Collect = ignore) -> Command:
        """Send a command that goes on when the server says so: IDLE, or one with a synchronizing literal last.

        Returns when the server has said so, or has ended the command, which is done then (RFC 9051 §4.3, RFC 2177).
        """
        command = Command(name, self.protocol.new_tag(), *args, collect=collect)
        command.needs_go_ahead = True
        self.protocol.launch(command)
        with anyio.move_on_after(limit_s):
            while command.needs_go_ahead and not command.done:
                command.progress.clear()
                await command.progress.wait()
        if command.needs_go_ahead and not command.done:
            self.protocol.fail(ConnectionLost(f"{self.protocol.server} did not answer {name} within {limit_s:.0f} s"))
        return command

    async def feed(self, octets: bytes) -> None:
        """Send more octets of the command that was launched last; returns when there is room for further ones."""
        if not self.is_lost:
            self.protocol.write(octets)
        await self.room()

    async def room(self) -> None:
        """Wait until the line has taken what was sent, but for a little."""
        await self.protocol.room()

    async def finish(self, command: Command, limit_s: float | None = COMMAND_TIMEOUT_S) -> Reply:
        return await self.protocol.finish(command, limit_s)

    async def run(self, name: str, *args: str, prefix: str | None = None) -> Reply:
        """Send a command and wait for it."""
        return await self.finish(self.launch(name, *args, prefix=prefix))

    @property
    def opened(self) -> Opened | None:
        """The mailbox that is open, None also where that is in doubt."""
        return self.protocol.receiver.opened

    def is_selected(self) -> bool:
        return bool(self.protocol.state == aioimaplib.SELECTED)

    def set_selected(self, is_selected: bool) -> None:
        """Tell the session whether a mailbox is open, or will be by the time of what is sent next."""
        self.protocol.receiver.opened = None
        if not self.is_lost:
            self.protocol.state = aioimaplib.SELECTED if is_selected else aioimaplib.AUTH

    def set_opened(self, opened: Opened) -> None:
        """Remember which mailbox is open, after the server has said so."""
        if not self.is_lost:
            self.set_selected(True)
            self.protocol.receiver.opened = opened

    async def logout(self) -> None:
        """Say goodbye, without waiting for the answer, and close."""
        if not self.is_lost:
            self.protocol.leave()

    def drop(self) -> None:
        """Close at once."""
        self.protocol.fail(ConnectionLost("dropped"))
