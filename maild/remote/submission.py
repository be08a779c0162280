"""Submitting messages over one SMTP connection: log in, then MAIL, RCPT, DATA for each (RFC 6409, RFC 4954).

What this file keeps:
- it is known at every moment how far a message has come: before the final dot it has not been submitted; from the
  dot to its reply nobody knows;
- nothing of a message becomes a command: paths are looked at once more, line ends are CRLF only, and no line begins
  with a single dot (RFC 5321 §4.5.2);
- no credential and no message is sent before TLS is up as the config demands.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import structlog

from maild.config import Smtp
from maild.core.errors import AuthRejected, ConnectionLost, MaildError, ProtocolViolation, TlsFailed
from maild.core.head import disk_form
from maild.core.outgoing import Notices, Reply, Submission, Verdict, Verdicts
from maild.remote.auth import Credentials
from maild.remote.masking import masked
from maild.remote.net import check_pin, tls_context, translated
from maild.remote.sasl import ChannelBinding, Exchange, choose, refusal_hint
from maild.remote.scram import server_end_point
from maild.remote.smtp import CLOSING, RFC_5321, WITHOUT_STARTTLS, Connection, SessionRefused, Timeouts, connected

BLOCK_OCTETS = 64 << 10
AUTH_ARGUMENT_OCTETS = 512 - len("AUTH \r\n")  # RFC 4954 §4
KEPT_CHARACTERS = 1000  # of a reply, for each recipient

_READY, _CHALLENGE, _START_INPUT = 220, 334, 354
_ABOUT_LOGIN = frozenset({530, 534, 535, 538})  # RFC 4954 §6: at whatever command, they are about the account
_NOT_IN_PATH = re.compile(r"[\x00-\x20\x7f<>]")

Take = Callable[[], Submission | None]
BeginBody = Callable[[Submission, Verdicts], Awaitable[bytes | Reply]]

log = structlog.get_logger()


class SmtpSession:
    """One authenticated connection; one task at a time may use it."""

    def __init__(self, endpoint: Smtp, connection: Connection, timeouts: Timeouts) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._timeouts = timeouts
        self._extensions: dict[str, str] = {}
        self._needs_reset = False  # a transaction was begun and did not end with a body
        self._is_inside_body = False
        self._closing: Reply | None = None  # a 421: the server's last word
        self.is_given_up = False  # it was ended because a message could not be sent that the server was ready for

    @classmethod
    async def open(cls, endpoint: Smtp, credentials: Credentials, timeouts: Timeouts = RFC_5321) -> SmtpSession:
        """Connect, secure the connection, log in.

        Raises Offline where there is no connection at all, SessionRefused, ConnectionLost, ProtocolViolation,
        TlsFailed, AuthRejected, SecretUnavailable.
        """
        connection = await connected(endpoint, timeouts)
        session = cls(endpoint, connection, timeouts)
        try:
            with translated(endpoint):
                await session._begin()
                session._check_login()
                await credentials.log_in(session._log_in, lambda: connection.failure is None)
        except BaseException:
            session.drop()
            raise
        log.debug("session.opened", host=endpoint.host, port=endpoint.port, protocol="smtp")
        return session

    @property
    def is_over(self) -> bool:
        """Nothing more can be submitted over it."""
        return self._closing is not None or self._connection.failure is not None

    async def submit(self, take: Take, begin_body: BeginBody) -> AsyncGenerator[tuple[Submission, Verdicts]]:
        """Submit what `take` gives, until it gives None or the session is over; everybody gets a verdict, in order.

        `begin_body` is awaited when the server wants the body, with those it has refused; it returns the message in its
        disk form, and nothing of the body is sent before; or why it cannot be sent now, which ends the session. With
        PIPELINING a message costs two round trips. RFC 2920 lets the next envelope follow the body at once; Dovecot 2.3
        dies of that, and leaves the body unanswered.
        """
        while not self.is_over and (current := take()) is not None:
            verdicts: dict[str, Verdict] = {}
            if (unfit := self._unfit(current)) is not None:
                verdicts.update(dict.fromkeys(current.recipients, Verdict.of(unfit)))
            else:
                await self._transaction(current, verdicts, begin_body)
            yield current, verdicts

    async def close(self) -> None:
        """Say goodbye, without waiting long for an answer."""
        if not self.is_over:
            with suppress(MaildError):
                await self._connection.run(self._timeouts.goodbye_s, b"QUIT")
        self.drop()

    def drop(self) -> None:
        """Close at once."""
        self._connection.fail(ConnectionLost("dropped"))

    # -- opening

    async def _begin(self) -> None:
        greeting = await self._connection.reply(self._timeouts.command_s)
        if greeting.code != _READY:
            raise self._refusal("does not greet", greeting)
        await self._ehlo()
        if self._endpoint.tls == "starttls":
            if "starttls" not in self._extensions:
                raise TlsFailed(f"{self._connection.server} does not offer STARTTLS", WITHOUT_STARTTLS)
            self._extensions = {}
            await self._connection.upgrade(tls_context(self._endpoint), self._endpoint.host, self._timeouts.connect_s)
            check_pin(self._endpoint, self._connection.certificate())
            await self._ehlo()

    async def _ehlo(self) -> None:
        reply, self._extensions = await self._connection.ehlo(self._timeouts.command_s)
        if reply.code != 250:
            raise self._refusal("refused EHLO", reply)

    def _check_login(self) -> None:
        """A server that offers AUTH by nothing at all mostly misses what checks its passwords, and for a while only."""
        if not self._offered():
            text = f"{self._connection.server} offers no way to log in"
            raise SessionRefused(text, Reply(0, text))

    def _offered(self) -> list[str]:
        return self._extensions.get("auth", "").upper().split()

    async def _log_in(self, secret: str) -> None:
        """AUTH by the strongest mechanism there is (RFC 4954). Raises AuthRejected, SessionRefused, TlsFailed."""
        certificate = self._connection.certificate()
        binding = server_end_point(certificate) if certificate else None
        if not await self._authenticate(secret, binding):
            await self._authenticate(secret, None)

    async def _authenticate(self, secret: str, binding: ChannelBinding | None) -> bool:
        """Whether it is done; if not, the server cannot do this channel binding, and nothing else is wrong yet."""
        endpoint = self._endpoint
        mechanism = choose(endpoint, endpoint.user, secret, self._offered(), binding=binding)
        if mechanism is None:
            raise ProtocolViolation("SMTP has no login command of its own")
        exchange = Exchange(mechanism, room_octets=AUTH_ARGUMENT_OCTETS)
        reply = await self._run(b"AUTH", *exchange.argument.encode("ascii").split(b" "))
        while reply.code == _CHALLENGE:
            reply = await self._run(exchange.answer(reply.text.encode("utf-8", "replace")))
        exchange.finish(is_accepted=reply.is_positive)
        if reply.is_positive:
            return True
        if 400 <= reply.code < 500:
            raise self._refusal(f"cannot log in {endpoint.user} now", reply)
        if exchange.may_retry_unbound:
            return False
        text = f"{self._connection.server} refused to log in {endpoint.user}: {masked(str(reply))}"
        text += f" ({exchange.detail})" if exchange.detail else ""
        raise AuthRejected(text, refusal_hint(endpoint))

    async def _run(self, *words: bytes) -> Reply:
        return await self._connection.run(self._timeouts.command_s, *words)

    def _refusal(self, what: str, reply: Reply) -> SessionRefused:
        return SessionRefused(f"{self._connection.server} {what}: {masked(str(reply))}", reply)

    # -- one message

    def _unfit(self, submission: Submission) -> Reply | None:
        """Why this server cannot be asked to take a message at all, in the form of a reply; None if it can."""
        if any(_NOT_IN_PATH.search(path) for path in (submission.sender, *submission.recipients)):
            return Reply(553, "5.1.3 an address holds what must not be sent to a server")
        if _NOT_IN_PATH.search(submission.notices.notify + submission.notices.ret):
            return Reply(554, "5.5.4 what is asked of notices of delivery must not be sent to a server")
        if submission.utf8 == "needed" and "smtputf8" not in self._extensions:
            return Reply(553, "5.6.7 the server does not take addresses beyond ASCII (SMTPUTF8)")
        limit = self._extensions.get("size", "")
        if limit.isdecimal() and 0 < int(limit) < submission.size_octets:
            size = submission.size_octets
            return Reply(552, f"5.3.4 the server takes {limit} octets at most, this message has {size}")
        return None

    def _envelope(self, submission: Submission) -> list[bytes]:
        """MAIL, then RCPT for each recipient (RFC 5321 §4.1.1), with the extensions that apply."""
        has_utf8 = bool(submission.utf8) and "smtputf8" in self._extensions
        parameters = [f"SIZE={submission.size_octets}"] if "size" in self._extensions else []
        if (submission.is_8bit or has_utf8) and "8bitmime" in self._extensions:
            parameters.append("BODY=8BITMIME")
        if has_utf8:
            parameters.append("SMTPUTF8")
        charset = "utf-8" if has_utf8 else "ascii"
        for_mail, for_recipient = _notices(submission.notices) if "dsn" in self._extensions else ("", "")
        mail = " ".join([f"MAIL FROM:<{submission.sender}>", *parameters]) + for_mail
        return [mail.encode(charset), *(f"RCPT TO:<{r}>{for_recipient}".encode(charset) for r in submission.recipients)]

    async def _transaction(self, this: Submission, verdicts: dict[str, Verdict], begin_body: BeginBody) -> None:
        """Submit one message, into `verdicts`. A lost connection is no error here: it is what the verdicts tell."""
        is_dot_sent = False
        accepted: list[str] = []
        try:
            accepted, reply = await self._opened(this, verdicts)
            if reply is None:
                return
            if reply.code == _START_INPUT:
                text = await begin_body(this, dict(verdicts)) if accepted else b""
                if isinstance(text, Reply):
                    verdicts.update(dict.fromkeys(accepted, Verdict("deferred", text)))
                    self.is_given_up = True  # there is no other way back: an end of the body would be a message
                    self.drop()
                    return
                last = await self._send_body(text)
                if not self._connection.has_reply():
                    self._end_body(last)  # raises only where nothing of it was written
                    is_dot_sent = True
                reply = await self._next(self._timeouts.final_s)
            if 300 <= reply.code < 400 or (reply.is_positive and not is_dot_sent):
                raise self._nonsense(reply)
            verdicts.update({address: verdict_of(reply) for address in accepted})
            if self._is_inside_body:
                self.drop()  # the server decided before the end, and what it takes for a command now is not known
        except (ConnectionLost, ProtocolViolation) as exc:
            self._connection.fail(exc)
            self._settle_lost(this, verdicts, exc, frozenset(accepted if is_dot_sent else ()))

    def _settle_lost(
        self, this: Submission, verdicts: dict[str, Verdict], exc: MaildError, doubtful: frozenset[str]
    ) -> None:
        reply = self._closing or Reply(0, exc.text)
        for address in this.recipients:
            if address in doubtful:
                verdicts[address] = Verdict("uncertain", reply)
            elif address not in verdicts:
                verdicts[address] = Verdict("deferred", reply)

    def _can_pipeline(self) -> bool:
        return "pipelining" in self._extensions

    def _end_body(self, last: bytes) -> None:
        """The end of the message with the final dot, in one write."""
        self._connection.send([], last + b".\r\n")
        self._needs_reset = self._is_inside_body = False

    async def _opened(self, this: Submission, verdicts: dict[str, Verdict]) -> tuple[list[str], Reply | None]:
        """MAIL, RCPT and DATA: whom the server accepted, and its answer to DATA, None where it was not asked."""
        if self._can_pipeline():
            return await self._opened_at_once(this, verdicts)
        if self._needs_reset:
            await self._step(b"RSET")
        self._needs_reset = True
        mail, *recipients = self._envelope(this)
        reply = await self._step(mail)
        if not reply.is_positive:
            verdicts.update({address: verdict_of(reply) for address in this.recipients})
            return [], None
        for address, command in zip(this.recipients, recipients, strict=True):
            self._judge(address, await self._step(command), verdicts)
        accepted = [address for address in this.recipients if address not in verdicts]
        if not accepted:
            return [], None
        return accepted, await self._step(b"DATA")

    async def _opened_at_once(self, this: Submission, verdicts: dict[str, Verdict]) -> tuple[list[str], Reply | None]:
        reset = [b"RSET"] if self._needs_reset else []
        self._connection.send([*reset, *self._envelope(this), b"DATA"])
        self._needs_reset = True
        if reset:
            await self._next(self._timeouts.command_s)
        mail = await self._next(self._timeouts.command_s)
        for address in this.recipients:
            reply = await self._next(self._timeouts.command_s)
            self._judge(address, reply if mail.is_positive else mail, verdicts)
        start = await self._next(self._timeouts.data_s)
        return [address for address in this.recipients if address not in verdicts], start

    def _judge(self, address: str, reply: Reply, verdicts: dict[str, Verdict]) -> None:
        if 300 <= reply.code < 400:
            raise self._nonsense(reply)
        if not reply.is_positive:
            verdicts[address] = verdict_of(reply)

    async def _step(self, command: bytes) -> Reply:
        """One command of a transaction, without PIPELINING."""
        if self._closing is not None:
            raise ConnectionLost(f"{self._connection.server} ended the session: {self._closing}")
        self._connection.send([command])
        return await self._next(self._timeouts.data_s if command == b"DATA" else self._timeouts.command_s)

    async def _next(self, timeout_s: float) -> Reply:
        """The next reply of a transaction; 421 is the server's last."""
        if self._closing is not None:
            raise ConnectionLost(f"{self._connection.server} ended the session: {self._closing}")
        reply = await self._connection.reply(timeout_s)
        if reply.code == CLOSING:
            self._closing = reply
        return reply

    def _nonsense(self, reply: Reply) -> ProtocolViolation:
        return ProtocolViolation(f"{self._connection.server} answered out of turn: {reply}")

    async def _send_body(self, text: bytes) -> bytes:
        """The message but for its last block, which is returned. Ends early where the server has had enough."""
        self._connection.owe()
        self._is_inside_body = True
        blocks = wire_blocks(text)
        last = next(blocks)
        for block in blocks:
            if self._connection.has_reply():
                break
            self._connection.send([], last)
            await self._connection.room(self._timeouts.block_s)
            last = block
        return last


def _notices(wanted: Notices) -> tuple[str, str]:
    """What MAIL and RCPT say of delivery status notifications (RFC 3461 §4)."""
    for_mail = f" RET={wanted.ret}" if wanted.ret else ""
    for_mail += f" ENVID={xtext(wanted.envid)}" if wanted.envid else ""
    return for_mail, f" NOTIFY={wanted.notify}" if wanted.notify else ""


def xtext(text: str) -> str:
    """Printable ASCII as a parameter's value holds it (RFC 3461 §4)."""
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)


def wire_blocks(text: bytes, block_octets: int = BLOCK_OCTETS) -> Iterator[bytes]:
    """A message in its disk form as it goes on the wire, in pieces: CRLF, and dots doubled at the start of a line.

    The final dot is not part of it; the last piece ends with CRLF.
    """
    if b"\r" in text or not text.endswith(b"\n"):
        text = disk_form(text or b"\n")
    is_line_start = True
    for at in range(0, len(text), block_octets):
        piece = text[at : at + block_octets]
        stuffed = b"." + piece if is_line_start and piece.startswith(b".") else piece
        is_line_start = piece.endswith(b"\n")
        yield stuffed.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")


def verdict_of(reply: Reply) -> Verdict:
    """What a reply in a transaction means for a recipient; one about logging in is no word on the message."""
    kept = replace(reply, text=reply.text[:KEPT_CHARACTERS])
    return Verdict("deferred", kept) if reply.code in _ABOUT_LOGIN else Verdict.of(kept)
