"""Where a secret comes from, and when to stop trying it.

Every secret this process has read is kept, so that the log can leave it out. `Credentials` is what all protocols log in
with: it reads the secret when it is needed, once more after a refusal, and then no server hears of it again until it
has changed.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL
from typing import assert_never

import anyio
import anyio.to_thread
import structlog
from anyio.abc import ByteReceiveStream, Process

from maild.config import (
    Endpoint,
    NoSecret,
    OAuth2,
    Password,
    PasswordCommand,
    PasswordCredential,
    PasswordFile,
    PasswordKeyring,
    Secret,
    TokenCommand,
)
from maild.core.errors import AuthRejected, SecretUnavailable, Unavailable

COMMAND_TIMEOUT_S = 30.0
KEYRING_TIMEOUT_S = 60.0  # the user may have to unlock it
_LINGER_S = 1.0  # for output still in the pipes when the command has ended
_LIMIT_OCTETS = 64 * 1024

log = structlog.get_logger()
_read_so_far: set[str] = set()


def keep_out_of_log(text: str) -> None:
    """Adds a secret, or a form of one that goes over the wire, to what `log` replaces wherever it turns up."""
    if text:
        _read_so_far.add(text)


def no_longer_secret(text: str) -> None:
    """A token that was replaced: it opens nothing any more, and the log need not look for it for ever."""
    _read_so_far.discard(text)


def kept_out_of_log() -> list[str]:
    """All that must not be logged, longest first, so that no rest of a longer one stays."""
    return sorted(_read_so_far, key=len, reverse=True)


async def read_secret(secret: Secret, account: str) -> str:
    """The password or token from its source, read anew at each call, "" where none is needed.

    Raises SecretUnavailable with what to do about it; for OAuth also what `oauth.access_token` raises.
    """
    match secret:
        case Password(text):
            found = text
        case PasswordCommand(argv):
            found = await _from_command(argv, f'account "{account}": password_command {argv[0]!r}')
        case PasswordFile(path):
            where = f'account "{account}": password_file {path}'
            found = await anyio.to_thread.run_sync(_from_file, path, where, 0o077, "create it with mode 0600")
        case PasswordCredential(name):
            found = await _from_credential(name, f'account "{account}": password_credential {name!r}')
        case PasswordKeyring():
            found = await _from_keyring(account)
        case TokenCommand(argv):
            found = await _from_command(argv, f'account "{account}": token_command {argv[0]!r}')
        case OAuth2():
            from maild.remote import oauth  # here, because few accounts have use for it

            found = await oauth.access_token(secret)
        case NoSecret():
            found = ""
        case _:
            assert_never(secret)
    keep_out_of_log(found)
    return found


class Credentials:
    """The secret of one endpoint, for all of its sessions. Keep it as long as the account: it knows of a refusal."""

    def __init__(self, endpoint: Endpoint, account: str) -> None:
        self.refused: AuthRejected | None = None  # the server's last word; nothing is tried until `has_changed`
        self._secret = endpoint.secret
        self._host = endpoint.host
        self._account = account
        self._known: str | None = None  # a password that the server took
        self._refused_mark = ""
        self._first = anyio.Lock()  # the secret is tried first, and refused, once and not by several at a time

    async def log_in(self, attempt: Callable[[str], Awaitable[None]], can_go_on: Callable[[], bool]) -> None:
        """Log in by `attempt(secret)`. Refused, the secret is read once more, and tried again only if it has changed.

        `can_go_on` tells whether the connection is still good for another attempt. Raises AuthRejected, from then on at
        once; Unavailable where the secret has changed but only a new connection can show it; and SecretUnavailable.
        """
        async with self._first:
            secret = await self._current()
            if self._known is None:
                try:
                    await attempt(secret)
                except AuthRejected as exc:
                    secret = await self._again(secret, exc, attempt, can_go_on)
                self._known = secret
                return
        try:
            await attempt(secret)
        except AuthRejected as exc:
            async with self._first:
                if self.refused is not None:
                    raise self.refused from exc
                self._known = await self._again(secret, exc, attempt, can_go_on)

    @property
    def is_in_a_file(self) -> bool:
        """Whether it costs nothing, and asks nobody anything, to read it often."""
        return isinstance(self._secret, PasswordFile | PasswordCredential)

    async def has_changed(self) -> bool:
        """Whether there is another secret than the refused one; then it may be tried. Reads the source once."""
        if self.refused is not None and await self._mark() != self._refused_mark:
            self.refused = None
        return self.refused is None

    async def _current(self) -> str:
        """A password that is known to be good is not read again; a token has an end."""
        if self.refused is not None:
            raise self.refused
        if self._known is not None and not isinstance(self._secret, OAuth2 | TokenCommand):
            return self._known
        return await read_secret(self._secret, self._account)

    async def _again(
        self,
        secret: str,
        refusal: AuthRejected,
        attempt: Callable[[str], Awaitable[None]],
        can_go_on: Callable[[], bool],
    ) -> str:
        """The secret that was taken at the second attempt."""
        log.warning("login.rejected", account=self._account, host=self._host, reason=refusal.text)
        self.refused, self._known = refusal, None
        again = await self._renewed(secret)
        self._refused_mark = await self._mark(again)
        if again == secret:
            raise refusal
        self.refused = None
        if not can_go_on():
            raise Unavailable(f"{refusal.text}; the secret has changed since it was read", "it is tried again")
        try:
            await attempt(again)
        except AuthRejected as exc:
            self.refused = exc
            raise
        return again

    async def _renewed(self, refused: str) -> str:
        if isinstance(self._secret, OAuth2):
            from maild.remote import oauth

            return await oauth.access_token(self._secret, refused=refused)
        return await read_secret(self._secret, self._account)

    async def _mark(self, read: str | None = None) -> str:
        """What tells one secret from another; `read` saves reading it. Of OAuth it is the stored login, not a token."""
        if isinstance(self._secret, OAuth2):
            from maild.remote import oauth

            return await oauth.stored_mark(self._secret)
        return await read_secret(self._secret, self._account) if read is None else read


async def _from_keyring(account: str) -> str:
    from maild.remote import keyring

    where = f'account "{account}": password_keyring'
    store = f"secret-tool store --label=maild service {keyring.PASSWORDS} user {account}"
    try:
        with anyio.fail_after(KEYRING_TIMEOUT_S):
            found = await anyio.to_thread.run_sync(
                keyring.lookup, keyring.PASSWORDS, account, where, abandon_on_cancel=True
            )
    except TimeoutError:
        raise SecretUnavailable(f"{where}: the keyring was not unlocked in time", "unlock it") from None
    if found is None:
        raise SecretUnavailable(f"{where}: there is no entry for this account", f"run {store}")
    return _first_line(found.encode(), where, f"run {store}")


async def _from_credential(name: str, where: str) -> str:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise SecretUnavailable(
            f"{where}: $CREDENTIALS_DIRECTORY is not set",
            f"run maild under systemd with LoadCredential={name}:FILE, or use password_file",
        )
    absent = f"add LoadCredential={name}:FILE to maild's unit"
    return await anyio.to_thread.run_sync(_from_file, Path(directory) / name, where, 0, absent)


def _from_file(path: Path, where: str, forbidden_mode: int, absent: str) -> str:
    """The first line of a file that has none of the permission bits of `forbidden_mode`."""
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise SecretUnavailable(f"{where}: is not a regular file", "write the password into one")
            if mode & forbidden_mode:
                text = f"{where}: others have access to it (mode {stat.S_IMODE(mode):04o})"
                raise SecretUnavailable(text, f"run chmod 600 {path}")
            raw = file.read(_LIMIT_OCTETS)
    except OSError as error:
        remedy = absent if error.errno == errno.ENOENT else "see to it that maild's user can read it"
        raise SecretUnavailable(f"{where}: cannot be read: {error.strerror}", remedy) from None
    return _first_line(raw, where, "write the password into its first line")


def _open_without_waiting(path: str, flags: int) -> int:
    """A FIFO that nobody writes to is an error and no standstill."""
    return os.open(path, flags | os.O_NONBLOCK)


async def _from_command(argv: tuple[str, ...], where: str) -> str:
    """The first line a program prints, if it ends well and in time. What it prints is never part of an error."""
    remedy = "run the command in a shell as maild's user to see what is wrong"
    try:
        with anyio.CancelScope(shield=True):  # cut off here, asyncio would reap it behind the back of its own watcher
            process = await anyio.open_process(argv, stdin=DEVNULL, start_new_session=True)
    except OSError as error:
        raise SecretUnavailable(f"{where}: cannot be run: {error.strerror}", "give the program's full path") from None
    output, complaint = bytearray(), bytearray()
    try:
        with anyio.fail_after(COMMAND_TIMEOUT_S):
            await _until_end(process, output, complaint)
    except TimeoutError:
        raise SecretUnavailable(f"{where}: no answer within {COMMAND_TIMEOUT_S:g} s", remedy) from None
    finally:
        await _ended(process)
    if process.returncode != 0:
        raise SecretUnavailable(f"{where}: {_how_it_ended(process)}{_excerpt(complaint, output)}", remedy)
    return _first_line(bytes(output), where, remedy)


async def _until_end(process: Process, output: bytearray, complaint: bytearray) -> None:
    async with anyio.create_task_group() as readers:
        readers.start_soon(_collect, process.stdout, output)
        readers.start_soon(_collect, process.stderr, complaint)
        await process.wait()
        # An agent that the command left running (gpg-agent, an ssh master) may hold the pipes open for hours.
        readers.cancel_scope.deadline = anyio.current_time() + _LINGER_S


async def _collect(stream: ByteReceiveStream | None, into: bytearray) -> None:
    """Takes what comes to the end, so that the writer never blocks, and keeps the first 64 KiB."""
    if stream is not None:
        async for chunk in stream:
            into += chunk[: _LIMIT_OCTETS - len(into)]


async def _ended(process: Process) -> None:
    """Leaves no process and no pipe behind, also when we are cancelled: what still runs is killed with its children."""
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            with suppress(ProcessLookupError):  # it ended this moment
                os.killpg(process.pid, signal.SIGKILL)
        await process.aclose()


def _how_it_ended(process: Process) -> str:
    status = process.returncode or 0
    return f"exit status {status}" if status > 0 else f"ended by signal {-status}"


def _excerpt(complaint: bytearray, output: bytearray) -> str:
    """The first line of standard error for a person, without anything that also went to standard output."""
    lines = complaint.decode(errors="replace").strip().splitlines()
    text = "".join(char if char.isprintable() else " " for char in lines[0])[:200] if lines else ""
    for secret in output.decode(errors="replace").split():
        text = text.replace(secret, "***")
    return f": {text}" if text else ""


def _first_line(raw: bytes, where: str, remedy: str) -> str:
    line = raw.partition(b"\n")[0].removesuffix(b"\r")
    if not line:
        raise SecretUnavailable(f"{where}: its first line is empty", remedy)
    if len(line) == _LIMIT_OCTETS or b"\0" in line or b"\r" in line:
        raise SecretUnavailable(f"{where}: its first line cannot be a password", remedy)
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise SecretUnavailable(f"{where}: its first line is not UTF-8 text", remedy) from None
