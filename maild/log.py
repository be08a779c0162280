"""The log: structlog set-up, what must not appear in it, and the catalogue of event names.

Events go to standard error, one line each, as text on a terminal and as JSON elsewhere. An event is `noun.participle`
with constant text; its facts are keyword arguments with names from `KEYS`. Level info is what an operator wants once,
warning what is tried again, error what a human must act on, debug everything per message and per command.
Modules below this one in the import order call `structlog.get_logger()` and write the names out; a test compares.
"""

from __future__ import annotations

import logging
import os
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, TextIO, cast

# structlog.dev imports rich if it finds it, for tracebacks maild does not print: 60 ms of every start, and 6 MB.
_RICH_WAS_THERE = "rich" in sys.modules
if not _RICH_WAS_THERE:
    sys.modules["rich"] = None  # type: ignore[assignment]  # what the import system takes as "there is none"
import structlog  # noqa: E402
from structlog.typing import EventDict, Processor, WrappedLogger  # noqa: E402

from maild.config.values import LogFormat, LogLevel  # noqa: E402
from maild.remote.masking import MASK, masked  # noqa: E402

if TYPE_CHECKING:
    from maild.config import Config

if not _RICH_WAS_THERE:
    del sys.modules["rich"]

EVENTS = {
    "account.started": "an account's pass over its mailboxes begins",
    "account.finished": "it ended; the counts are those of all its mailboxes",
    "account.failed": "it could not go on; the other accounts do",
    "account.stalled": "an account gives no sign of life; systemd's watchdog ends the daemon, and starts it again",
    "config.refused": "the config could not be read again; the one in use stays",
    "config.reloaded": "the config was read again; `changed` names the accounts that were started anew",
    "daemon.started": "`maild run` begins",
    "daemon.stopped": "it ended as it was told to",
    "hook.failed": "a program of [hooks] could not be run, failed, or was killed because it took too long",
    "mailbox.failed": "one mailbox could not be synchronised; the others are",
    "mailbox.created": "a mailbox that only this disk had was made on the server",
    "mailbox.renamed": "a mailbox got, on one side, the new name that it has on the other",
    "mailbox.deleted": "a mailbox that is gone on one side, and had nothing left in it, is gone on the other too",
    "mailbox.rebuilt": "uidvalidity changed or the state was lost: the pairs were made anew by content",
    "mailbox.refused": "the deletion guard refused the plan",
    "maildrop.limited": "a POP3 server deletes mail by itself, sooner than `leave_on_server` says",
    "maildrop.renumbered": "all messages of a POP3 server have other unique-ids than before; it may be another server",
    "maildrop.unconfirmed": "a POP3 server did not say that it carried out the deletions; the next poll looks",
    "mailbox.retained": "a mailbox that was to be deleted on the server stays: something came in",
    "mailbox.skipped": "a mailbox that cannot be used",
    "message.pulled": "one message is durable in the Maildir",
    "message.refused": "one message did not go to the server, or cannot be read; it stays here and is tried again",
    "message.skipped": "one message was left on the server",
    "session.opened": "connected and logged in",
    "session.lost": "the connection ended before the work did",
    "session.refused": "one more session was not to be had; the work goes on over those there are",
    "session.retried": "a lost session is opened again",
    "network.changed": "an address came or went, the machine slept, a clock jumped: every connection is tried at once",
    "watch.failed": "changes on this disk, or of addresses, are not heard of as they are made, only found by the polls",
    "push.started": "the server tells of changes from now on, by `method`; `reason`: why not by a better one",
    "secret.refused": "a secret cannot be read, so it is not seen whether it has been replaced",
    "task.failed": "a fault in maild, with its traceback; the task is begun again",
    "task.retried": "a part of the daemon failed, and is begun again after a while",
    "outbox.drained": "what was due was tried; the counts are recipients by what came of it",
    "outbox.stopped": "an account could not submit, or not keep what it had to; it is tried again",
    "message.failed": "a recipient will not get a message; a report is in the INBOX",
    "message.doubted": "whether a message was sent cannot be looked up on the server now",
    "message.confirmed": "a message of which it was not known whether it was sent is in the server's Sent mailbox",
    "sent.learned": "it was found out who keeps the copies of what is sent",
    "login.rejected": "the server refused the credentials",
    "login.needed": "the refresh token of an OAuth login dies soon: `maild login` has to be run before then",
    "token.refreshed": "an access token was renewed ahead of its end, or after a refusal",
    "server.alerted": "the server wants the user to read something (RFC 9051 §7.1, ALERT)",
    "server.corrected": "the server broke the protocol in a way that could be read all the same",
}

_WHERE = "account accounts mailbox to uid item protocol host port user path task hook"
_OUTGOING = "sent deferred failed uncertain"
_WHAT = "messages mailboxes pulled pushed adopted moved flags deleted skipped refused octets size_octets sessions"
_WHY = "reason hint error code command capability version attempt delay_s duration_s limit method changed round_trips"
KEYS = frozenset(f"{_WHERE} {_WHAT} {_OUTGOING} {_WHY}".split())

NOTHING = cast("LogLevel", "critical")  # no event has this level

_MASKED_WORDS = frozenset(("password", "passwd", "secret", "token", "authorization"))
_LONGEST = 2000  # characters of one value; servers send alerts of 100 kB


def configure(level: LogLevel, log_format: LogFormat = "auto", stream: TextIO | None = None) -> None:
    """Sends the log to `stream` (standard error), from `level` up; may be called again."""
    output = sys.stderr if stream is None else stream
    is_console = log_format == "console" or (log_format == "auto" and output.isatty())
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _clock(is_console=is_console),
    ]
    # The traceback becomes text before redaction: it may show a secret, and the console's own would show locals.
    after: list[Processor] = [structlog.processors.format_exc_info, redact, _renderer(output, is_console=is_console)]
    structlog.configure(
        processors=before + after,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=False,
    )
    _catch_standard_logging(output, before, after)


def beside_results(config: Config, *, is_verbose: bool) -> LogLevel:
    """For commands whose results tell all that went wrong: a log is for who asks for one, in the config or by `-v`."""
    if is_verbose:
        return "debug"
    return NOTHING if config.log_level == "info" and config.log_format == "auto" else config.log_level


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: no secret, no control character and nothing endless reaches the log."""
    for key, value in event.items():
        if _MASKED_WORDS & set(key.lower().split("_")):
            event[key] = MASK
        else:
            event[key] = _clean(value, keep_lines=key in ("exception", "stack"))
    return event


def _clean(value: Any, *, keep_lines: bool = False) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case dict():
            return {str(_clean(str(key))): _clean(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(item) for item in value]
        case bytes() | bytearray():
            return _clean(bytes(value).decode(errors="backslashreplace"))
    text = masked(str(value))
    if keep_lines:
        return "\n".join(_escaped(line) for line in text.split("\n"))
    return _escaped(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")


def _escaped(text: str) -> str:
    """Nothing that moves the cursor, colours the terminal or turns the direction of writing."""
    if text.isprintable():
        return text
    return "".join(char if unicodedata.category(char) not in ("Cc", "Cf", "Cs") else ascii(char)[1:-1] for char in text)


def _clock(*, is_console: bool) -> Processor:
    if is_console:
        return structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    return structlog.processors.TimeStamper(fmt="iso", utc=True)


def _renderer(output: TextIO, *, is_console: bool) -> Processor:
    if not is_console:
        return structlog.processors.JSONRenderer(ensure_ascii=False)
    has_colors = output.isatty() and not os.environ.get("NO_COLOR")
    return structlog.dev.ConsoleRenderer(colors=has_colors, pad_event_to=18, sort_keys=False)


def _catch_standard_logging(output: TextIO, before: list[Processor], after: list[Processor]) -> None:
    """Warnings of libraries and asyncio take the same way, so that redaction holds for them too."""
    handler = logging.StreamHandler(output)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=[remove_meta, *after])
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # It formats every chunk it receives and logs commands with their arguments; our session reports what matters.
    wire = logging.getLogger("aioimaplib.aioimaplib")
    wire.setLevel(logging.WARNING)
    wire.propagate = False
    wire.handlers = [logging.NullHandler()]
