"""An account's maildrop on a POP3 server: logging in, and what can be asked for and done there.

The session holds the server's lock on the maildrop, so there is one at a time and it is as short as can be. Message
numbers are good for this session only; the rest of maild knows messages by their identity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import anyio
import structlog

from maild.config import Pop3
from maild.core.errors import Rejected
from maild.core.maildrop import Listed, Terms, nth, uid_of_header, unambiguous
from maild.core.ports import OpenBody
from maild.remote.auth import Credentials
from maild.remote.pop3.parse import Expected, Reply, Shape, Sink, read_sizes, read_uids
from maild.remote.pop3.session import Pop3Session

ONE_BY_ONE = 50  # of more messages than this the sizes are asked for all at once
_FOREVER = "NEVER"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Retrieved:
    """One answer to RETR: the message in wire form, or what took it; None with the server's reason for its absence."""

    number: int
    body: bytes | Sink | None
    size_octets: int
    refusal: str = ""


class Pop3Remote:
    """One account's maildrop; connects when it is opened."""

    def __init__(self, endpoint: Pop3, account: str, credentials: Credentials | None = None) -> None:
        """`credentials` are the caller's who outlives this object and has to know of a refusal."""
        self._endpoint = endpoint
        self._account = account
        self.credentials = Credentials(endpoint, account) if credentials is None else credentials

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Maildrop]:
        """The maildrop, locked for as long as the block lasts. Nothing is deleted unless `Maildrop.quit` is called."""
        session = await self._session()
        try:
            yield Maildrop(session)
        finally:
            with anyio.CancelScope(shield=True):
                await session.leave()

    async def _session(self) -> Pop3Session:
        endpoint = self._endpoint
        if self.credentials.refused is not None:
            raise self.credentials.refused
        session = await Pop3Session.connect(endpoint, endpoint.max_message_size_octets * 3 // 2 + (1 << 20))
        try:
            await self.credentials.log_in(
                lambda secret: session.login(endpoint.user, secret), lambda: not session.is_lost
            )
        except BaseException:
            await session.leave()
            raise
        log.debug("session.opened", account=self._account, protocol="pop3", host=endpoint.host)
        return session


class Maildrop:
    """An open maildrop, used by one task at a time. Errors as for `core.ports`."""

    def __init__(self, session: Pop3Session) -> None:
        self._session = session

    @property
    def can_top(self) -> bool:
        """Whether headers can be had without the messages."""
        return self._session.has("TOP")

    async def terms(self) -> Terms:
        """How the server wants to be used; some tell only who has logged in (RFC 2449 §6.5: USER)."""
        told = self._session.capabilities
        if any("USER" in told.get(name, ()) for name in ("LOGIN-DELAY", "EXPIRE")):
            await self._session.ask_capabilities()
            told = self._session.capabilities
        delay, expire = _number(told.get("LOGIN-DELAY")), told.get("EXPIRE", (_FOREVER,))
        return Terms(delay or 0, None if expire[:1] == (_FOREVER,) else _number(expire))

    async def listing(self) -> list[Listed]:
        """Every message. Where the server has no unique-ids, or none that tell messages apart, TOP makes one up."""
        try:
            found = read_uids((await self._session.run("UIDL", Shape.LISTING)).lines)
        except Rejected as exc:
            log.info("server.corrected", host=self._session.endpoint.host, reason=f"no UIDL: {exc.text}")
            found = dict.fromkeys(await self._all_sizes())
        listed = unambiguous(found)
        nameless = [message.number for message in listed if message.uid is None]
        if not nameless:
            return listed
        made_up = await self._made_up(nameless) if self.can_top else {}
        return [made_up.get(message.number, message) for message in listed]

    async def _made_up(self, numbers: list[int]) -> dict[int, Listed]:
        sizes = await self.sizes(numbers)
        headers = await self.headers(numbers)
        seen: Counter[str] = Counter()
        named: dict[int, Listed] = {}
        for number in numbers:
            if number in headers and number in sizes:
                uid = uid_of_header(headers[number], sizes[number])
                seen[uid] += 1
                named[number] = Listed(number, nth(uid, seen[uid]))
        return named

    async def sizes(self, numbers: Collection[int]) -> dict[int, int]:
        """Size in octets of each, as LIST tells it; one that it does not tell is missing."""
        if len(numbers) > ONE_BY_ONE or not self._session.has("PIPELINING"):
            everything = await self._all_sizes() if numbers else {}
            return {number: everything[number] for number in numbers if number in everything}
        found: dict[int, int] = {}
        async for number, reply in self._each(numbers, "LIST {}", Expected()):
            if reply.ok:
                found[number] = read_sizes([reply.text.encode()]).get(number, 0)
        return found

    async def _all_sizes(self) -> dict[int, int]:
        return read_sizes((await self._session.run("LIST", Shape.LISTING)).lines)

    async def headers(self, numbers: Collection[int]) -> dict[int, bytes]:
        """The header of each (TOP n 0), in wire form; one that the server does not give is missing."""
        found: dict[int, bytes] = {}
        async for number, reply in self._each(numbers, "TOP {} 0", Expected(Shape.BODY)):
            if reply.ok and isinstance(reply.body, bytes):
                found[number] = reply.body
        return found

    async def _each(
        self, numbers: Collection[int], command: str, expected: Expected
    ) -> AsyncGenerator[tuple[int, Reply]]:
        left = iter(numbers)
        async with aclosing(self._session.exchange((command.format(n), expected) for n in numbers)) as replies:
            async for several in replies:
                for reply in several:
                    yield next(left), reply

    async def fetch(self, wanted: Iterable[tuple[int, int]], open_body: OpenBody) -> AsyncGenerator[list[Retrieved]]:
        """The messages (number, size told), in order, as they arrive; a big one goes through `open_body`.

        The server is read no faster than the caller iterates. Leaving early ends the connection.
        """
        asked: list[int] = []

        def commands() -> Iterable[tuple[str, Expected]]:
            for number, size_octets in wanted:
                asked.append(number)
                yield f"RETR {number}", Expected(Shape.BODY, open_body, size_octets)

        done = 0
        async with aclosing(self._session.exchange(commands())) as replies:
            async for several in replies:
                numbers = asked[done : done + len(several)]
                done += len(several)
                yield [_retrieved(number, reply) for number, reply in zip(numbers, several, strict=True)]

    async def delete(self, numbers: Collection[int]) -> set[int]:
        """Mark messages as deleted (DELE); those that the server agreed to. Only `quit` removes them."""
        return {number async for number, reply in self._each(numbers, "DELE {}", Expected()) if reply.ok}

    async def quit(self) -> bool:
        """End the session; whether the server confirms that all that was deleted is gone (RFC 1939 §6)."""
        return (await self._session.quit()).ok


def _retrieved(number: int, reply: Reply) -> Retrieved:
    if reply.ok:
        return Retrieved(number, reply.body, reply.size_octets)
    return Retrieved(number, None, 0, f"the server does not deliver it: {reply.text or reply.status}")


def _number(words: tuple[str, ...] | None) -> int | None:
    word = words[0] if words else ""
    return int(word) if word.isdigit() and len(word) <= 9 else None
