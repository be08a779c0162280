"""How a command ended, and what a server means by refusing: its words made our errors."""

from __future__ import annotations

from dataclasses import dataclass, field

from maild.config import Imap
from maild.core.errors import AuthRejected, ConnectionLost, MaildError, Rejected, TlsFailed, Unavailable
from maild.core.model import Epoch, Permitted
from maild.remote.imap.parse import Data, Event, Tagged, Untagged
from maild.remote.masking import masked
from maild.remote.sasl import refusal_hint

WITHOUT_STARTTLS = 'nothing was sent; use port 993 with tls = "implicit" if the server offers it'
_NOT_NOW = frozenset({"UNAVAILABLE", "INUSE", "LIMIT", "SERVERBUG", "CONTACTADMIN"})  # RFC 5530: not the password
_BUSY = ("too many", "maximum number", "connection limit", "try again later")


@dataclass(slots=True)
class Opened:
    """The mailbox that a session has open. `read_only`: by EXAMINE; `permitted` is None where nothing may be changed.

    `next_uid` is above every UID that was there when it was opened, 0 where the server does not tell.
    """

    wire: str
    epoch: Epoch
    read_only: bool
    permitted: Permitted | None
    next_uid: int


@dataclass(frozen=True, slots=True)
class Reply:
    """How a command ended well: its tagged OK and the untagged responses that came while it was the oldest."""

    tagged: Tagged
    events: list[Event] = field(default_factory=list)

    def data(self, name: str) -> list[Data]:
        """Its untagged responses of this name."""
        return [event for event in self.events if isinstance(event, Data) and event.name == name]


def rejected(command: str, reply: Tagged) -> Rejected:
    code = f" [{reply.code}]" if reply.code else ""
    return Rejected(f"the server refused {command}:{code} {reply.text or reply.status}", code=reply.code)


def _is_not_now(answer: Tagged | Untagged) -> bool:
    """Whether the server means the moment, and not what was asked of it."""
    return answer.code in _NOT_NOW or any(word in answer.text.lower() for word in _BUSY)


def goodbye(server: str, event: Untagged) -> MaildError:
    text = f"{server} ended the connection: {masked(event.text) or 'BYE'}"
    if _is_not_now(event):
        return Unavailable(text)
    return ConnectionLost(text)


def refused_starttls(server: str, reply: str) -> TlsFailed:
    return TlsFailed(f"{server} refused STARTTLS: {reply}", WITHOUT_STARTTLS)


def refused_login(endpoint: Imap, user: str, reply: Tagged, detail: str) -> MaildError:
    """`detail` is what the challenges before the refusal told."""
    text = f"{endpoint.host}:{endpoint.port} refused to log in {user}: {masked(reply.text) or reply.status}"
    text += f" ({detail})" if detail else ""
    if _is_not_now(reply):
        return Unavailable(text, "it is tried again later")
    return AuthRejected(text, refusal_hint(endpoint))
