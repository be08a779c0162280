"""Commands about the connection and the login: CAPABILITY, STARTTLS, AUTHENTICATE, LOGIN, ID, COMPRESS and the like.

Each returns the text of the tagged OK; it raises `Refused` for NO and `BadSyntax` for BAD.
"""

from __future__ import annotations

import base64

from maild.testing.faults import Reply
from maild.testing.imap.session import Session
from maild.testing.imap.syntax import Arguments, BadSyntax, decode_base64, string
from maild.testing.sasl import MECHANISMS, admitted
from maild.testing.store import Refused

_CAN_BE_ENABLED = ("CONDSTORE", "QRESYNC")


async def capability(session: Session, arguments: Arguments, reply: Reply) -> str:
    arguments.end()
    await reply.send(f"* CAPABILITY {session.capabilities()}\r\n".encode())
    return "Capability completed"


async def noop(_session: Session, arguments: Arguments, _reply: Reply) -> str:
    """NOOP and CHECK: what is new goes out with every command anyway."""
    arguments.end()
    return "Completed"


async def logout(session: Session, arguments: Arguments, reply: Reply) -> str:
    arguments.end()
    session.over = True
    await reply.send(b"* BYE Goodbye\r\n")
    return "Logout completed"


async def identify(_session: Session, arguments: Arguments, reply: Reply) -> str:
    """ID (RFC 2971)."""
    arguments.space()
    if not arguments.took(b"NIL"):
        arguments.expect(b"(")
        while not arguments.took(b")"):
            arguments.string()
            arguments.space()
            if not arguments.took(b"NIL"):
                arguments.string()
            arguments.took(b" ")
    arguments.end()
    await reply.send(b'* ID ("name" "maild-testing")\r\n')
    return "ID completed"


async def login(session: Session, arguments: Arguments, _reply: Reply) -> str:
    arguments.space()
    user = arguments.astring()
    arguments.space()
    password = arguments.astring()
    arguments.end()
    _check_privacy(session)
    return _admit(session, admitted(session.policy.users, user.decode("utf-8", "replace"), password))


async def authenticate(session: Session, arguments: Arguments, reply: Reply) -> str:
    """AUTHENTICATE, the initial response in the command where SASL-IR is offered (RFC 4959)."""
    arguments.space()
    mechanism = arguments.word()
    initial = None
    if arguments.took(b" "):
        if not session.policy.has("SASL-IR"):
            raise BadSyntax("SASL-IR is not offered")
        initial = arguments.astring() if arguments else b""
    arguments.end()
    if f"AUTH={mechanism}" not in session.policy.capabilities or mechanism not in MECHANISMS:
        raise Refused("CANNOT", f"Mechanism {mechanism} is not offered")
    _check_privacy(session)
    login = MECHANISMS[mechanism](session.policy.users)
    challenge = next(login)
    try:
        while True:
            response = await _response(session, reply, challenge) if initial is None else decode_base64(initial)
            initial = None
            challenge = login.send(response)
    except StopIteration as end:
        return _admit(session, end.value)


async def _response(session: Session, reply: Reply, challenge: bytes) -> bytes:
    await reply.send(b"+ " + base64.b64encode(challenge) + b"\r\n")
    await session.wire.flush()
    line = await session.wire.line()
    if line == b"*":
        raise BadSyntax("Authentication cancelled")
    return decode_base64(line)


def _check_privacy(session: Session) -> None:
    if not session.login_allowed:
        raise Refused("PRIVACYREQUIRED", "TLS is required first")


def _admit(session: Session, user: str) -> str:
    session.user = user
    return f"[CAPABILITY {session.capabilities()}] Logged in"


async def starttls(session: Session, arguments: Arguments, reply: Reply) -> str:
    """STARTTLS; the server forgets everything it was told in the clear (RFC 9051 §6.2.1)."""
    arguments.end()
    context = session.policy.starttls_context
    if context is None or session.wire.tls:
        raise BadSyntax("STARTTLS is not offered")
    await reply.send(f"{session.tag} OK Begin TLS\r\n".encode(), tagged=True)
    await session.wire.start_tls(context)
    session.enabled.clear()
    session.condstore = False
    return ""


async def enable(session: Session, arguments: Arguments, reply: Reply) -> str:
    """ENABLE (RFC 5161): names that are not known are left out of the answer."""
    asked = []
    while arguments.took(b" "):
        asked.append(arguments.word())
    arguments.end()
    if not asked:
        raise BadSyntax("Nothing to enable")
    new = [name for name in asked if name in _CAN_BE_ENABLED and session.policy.has(name)]
    session.enabled.update(new)
    if new:
        session.wants_modseq()
    await reply.send(" ".join(["* ENABLED", *new]).encode() + b"\r\n")
    return "Enabled"


async def compress(session: Session, arguments: Arguments, reply: Reply) -> str:
    """COMPRESS (RFC 4978): what follows the tagged OK is compressed, both ways."""
    arguments.space()
    if arguments.word() != "DEFLATE":
        raise BadSyntax("Only DEFLATE is known")
    arguments.end()
    if session.wire.is_compressed:
        raise Refused("COMPRESSIONACTIVE", "It is on already")
    await reply.send(f"{session.tag} OK Compression is on\r\n".encode(), tagged=True)
    await session.wire.compress()
    return ""


async def namespace(session: Session, arguments: Arguments, reply: Reply) -> str:
    """NAMESPACE (RFC 2342): one personal namespace."""
    arguments.end()
    separator = session.store.separator
    divider = string(separator.encode()) if separator else b"NIL"
    await reply.send(b"* NAMESPACE ((%b %b)) NIL NIL\r\n" % (string(session.policy.namespace.encode()), divider))
    return "Namespace completed"
