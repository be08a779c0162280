"""Which mailbox holds what was sent, where no server says it by a role (RFC 6154): as mailboxes are usually called."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

SENT = "\\Sent"

# What mail programs and providers call it, the most usual first; compared without regard to case.
SENT_NAMES = (
    "Sent",
    "Sent Items",
    "Sent Mail",
    "Sent Messages",
    "Gesendet",
    "Gesendete Objekte",
    "Gesendete Elemente",
    "Gesendete Nachrichten",
    "Envoyés",
    "Messages envoyés",
    "Éléments envoyés",
    "Objets envoyés",
    "Enviados",
    "Elementos enviados",
    "Mensajes enviados",
    "Itens enviados",
    "Posta inviata",
    "Inviati",
    "Verzonden",
    "Verzonden items",
    "Verzonden berichten",
    "Sendt",
    "Sendte elementer",
    "Skickat",
    "Skickade",
    "Lähetetyt",
    "Wysłane",
    "Elementy wysłane",
    "Odeslané",
    "Odeslaná pošta",
    "Отправленные",
    "送信済み",
    "送信済みアイテム",
    "已发送",
    "已发送邮件",
)
_RANKS = {unicodedata.normalize("NFC", name).casefold(): rank for rank, name in enumerate(SENT_NAMES)}
_INBOX = "INBOX"


def sent_among(mailboxes: Iterable[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The levels of the mailbox that by its name holds what was sent: at the top, or else right below INBOX."""
    ranked = [(rank, levels) for levels in mailboxes if (rank := _rank(levels)) is not None]
    return min(ranked)[1] if ranked else None


def usual_sent(mailboxes: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """What to call it where there is none: "Sent", below INBOX where all mailboxes are (Courier, Cyrus)."""
    others = [levels for levels in mailboxes if levels != (_INBOX,)]
    return (_INBOX, "Sent") if others and all(levels[0] == _INBOX for levels in others) else ("Sent",)


def _rank(levels: tuple[str, ...]) -> tuple[int, int] | None:
    if not levels or (len(levels) > 1 and levels[:-1] != (_INBOX,)):
        return None
    rank = _RANKS.get(unicodedata.normalize("NFC", levels[-1]).casefold())
    return None if rank is None else (len(levels), rank)
