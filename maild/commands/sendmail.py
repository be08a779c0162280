"""`maild sendmail`, also as `maild-sendmail`: a message from standard input into the outbox, durably, before status 0.

Takes the options that callers of sendmail use; those that mean nothing here are accepted. No daemon is needed, and
what takes long to import is not imported.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maild.commands import printable
from maild.config.places import SOCKET
from maild.config.senders import read_senders
from maild.core.errors import ConfigError, LocalError
from maild.core.outgoing import Notices
from maild.engine.accept import NoAccount, NoSuchAccount, Order, Refused, prepared
from maild.local.outbox import Outbox

OK, USAGE, DATA_ERROR, TRY_LATER, DENIED, BAD_CONFIG = 0, 64, 65, 75, 77, 78  # sysexits.h
LARGEST_OCTETS = 256 << 20  # what a server takes, which is less, it says itself

HELP = """\
usage: maild sendmail [-t] [-i] [-f ADDRESS] [-F NAME] [--at TIME] [--account NAME] [--] [RECIPIENT …]

Takes a message from standard input into the outbox, from where it is sent as soon as that is possible. Returns 0
once the message is safe on the disk. Needs no running daemon.

  -t              take recipients from To, Cc and Bcc, besides those given here; Bcc is removed from the message
  -i, -oi         a line with a single dot does not end the message (it never does)
  -f, -r ADDRESS  the envelope sender, which also chooses the account; by default that of Sender or From
  -F NAME         the name for From, if the message has no From
  --at TIME       not before: 2026-12-24T18:00, 18:00 (the next one), or a while from now such as 90m or 2h
  --account NAME  send through this account
  -N WHEN         ask for notices of delivery: never, or some of success,failure,delay
  -R PART         what of the message a notice is to hold: full, or hdrs (its header)
  -V ID           what notices are to call the message; -N, -R, -V need a server that offers DSN

Further options of sendmail (-b, -B, -h, -o, -O, -q, -v, -X …) are accepted and change nothing.
exit status: 0 accepted, 64 wrong usage, 65 bad address or message, 75 could not be stored: try again later,
77 no permission to read the config, 78 bad config
"""

_WITH_VALUE = frozenset("BChLOpX")  # options of sendmail that take a value and mean nothing here
_WITH_VALUE_ATTACHED = frozenset("bdoqx")  # and those whose value can only be part of the same word
_FLAGS = frozenset("AGinmsvUE")
_UNSUPPORTED_MODES = {
    "s": "it speaks no SMTP on standard input",
    "p": "use `maild outbox`",
    "i": "it has no aliases",
    "d": "use `maild run`",
    "D": "use `maild run`",
    "v": "it verifies no addresses",
    "t": "it has no test mode",
}
_ENVID_CHARACTERS = 100  # RFC 3461 §4.4
_NOTICES = {
    "N": "never, or some of success, failure and delay with commas between them",
    "R": "full or hdrs",
    "V": f"at most {_ENVID_CHARACTERS} printable characters of ASCII",
}
_AT_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_AT_DELAY = re.compile(r"\+?(\d{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class WrongUsage(ValueError):
    """The command line cannot be understood; the text says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, read."""

    order: Order
    wants_help: bool = False


def run(config: Path | None, words: Sequence[str]) -> int:
    """Carry out the command with the words after its name; the exit status."""
    try:
        options = parse(words, time.time())
    except WrongUsage as exc:
        return _failed(f"{exc} (see `maild sendmail --help`)", USAGE)
    if options.wants_help:
        print(HELP, end="")
        return OK
    try:
        return _accept(config, options.order)
    except NoSuchAccount as exc:
        return _failed(str(exc), USAGE)
    except Refused as exc:
        return _failed(str(exc), DATA_ERROR)
    except NoAccount as exc:
        return _failed(str(exc), BAD_CONFIG)
    except ConfigError as exc:
        return _failed("\n".join(exc.problems), DENIED if exc.is_denied else BAD_CONFIG)
    except LocalError as exc:
        return _failed(str(exc), TRY_LATER)


def _accept(config: Path | None, order: Order) -> int:
    senders = read_senders(config)
    if sys.stdin is None:
        raise Refused("there is no message: standard input is closed", "nothing was sent")
    try:
        raw = sys.stdin.buffer.read(LARGEST_OCTETS + 1)
    except OSError as exc:
        raise LocalError(
            f"cannot read the message from standard input: {exc.strerror or exc}", "nothing was sent"
        ) from exc
    if len(raw) > LARGEST_OCTETS:
        raise Refused(
            f"the message has more than {LARGEST_OCTETS >> 20} MiB, which no server takes", "nothing was sent"
        )
    item, text = prepared(raw, order, senders, time.time())
    Outbox(senders.state_dir).accept(item, text)
    _tell_daemon(senders.state_dir)
    return OK


def _tell_daemon(state_dir: Path) -> None:
    """A daemon hears of the message from the kernel, or within a second; where there is none, nothing is imported."""
    if (state_dir / SOCKET).exists():
        from maild.control import hint

        hint(state_dir, {"ask": "outbox"})


def _failed(text: str, status: int) -> int:
    for line in text.splitlines():
        print(f"maild sendmail: {printable(line)}", file=sys.stderr)
    return status


# -- the command line


def parse(words: Sequence[str], now_s: float) -> Options:
    """Read sendmail's options. Raises WrongUsage."""
    order = Order()
    left = list(words)
    recipients: list[str] = []
    if "--help" in left or left == ["-h"]:
        return Options(order, wants_help=True)
    while left:
        word = left.pop(0)
        if word == "--":
            recipients += left
            break
        if word.startswith("--"):
            order = _long(order, word, left, now_s)
        elif word.startswith("-") and len(word) > 1:
            for letter, value in _letters(word, left):
                order = _applied(order, letter, value)
        else:
            recipients.append(word)
    if not recipients and not order.take_from_head:
        raise WrongUsage("no recipient is given; use -t to take them from the message")
    return Options(replace(order, recipients=tuple(recipients)))


def _letters(word: str, left: list[str]) -> Iterator[tuple[str, str]]:
    """The options in one word: `-ti` is two of them, `-fADDRESS` and `-f ADDRESS` one with its value."""
    at = 1
    while at < len(word):
        letter, rest = word[at], word[at + 1 :]
        at += 1
        if letter in "fFrNRV" or letter in _WITH_VALUE:
            if not rest and not left:
                raise WrongUsage(f"-{letter} needs a value")
            yield letter, rest or left.pop(0)
            return
        if letter in _WITH_VALUE_ATTACHED:
            yield letter, rest
            return
        yield letter, ""


def _applied(order: Order, letter: str, value: str) -> Order:
    match letter:
        case "t":
            return replace(order, take_from_head=True)
        case "f" | "r":
            return replace(order, sender=value)
        case "F":
            return replace(order, full_name=value)
        case "N" | "R" | "V":
            return replace(order, notices=_with_notice(order.notices, letter, value))
        case "b" if value in _UNSUPPORTED_MODES:
            raise WrongUsage(f"-b{value} is not what this program does: {_UNSUPPORTED_MODES[value]}")
        case _ if letter in _WITH_VALUE or letter in _WITH_VALUE_ATTACHED or letter in _FLAGS:
            return order
        case _:
            raise WrongUsage(f"-{letter} is no option of sendmail")


def _with_notice(notices: Notices, letter: str, value: str) -> Notices:
    """What is asked for with one more option (RFC 3461 §4). Raises WrongUsage."""
    words = value.upper().split(",")
    if letter == "N" and (words == ["NEVER"] or set(words) <= {"SUCCESS", "FAILURE", "DELAY"}):
        return replace(notices, notify=",".join(dict.fromkeys(words)))
    if letter == "R" and value.upper() in ("FULL", "HDRS"):
        return replace(notices, ret=value.upper())
    if letter == "V" and 0 < len(value) <= _ENVID_CHARACTERS and value.isascii() and value.isprintable():
        return replace(notices, envid=value)
    raise WrongUsage(f"-{letter} {value!a} is not {_NOTICES[letter]}")


def _long(order: Order, word: str, left: list[str], now_s: float) -> Order:
    name, equals, value = word.partition("=")
    if name not in ("--at", "--account"):
        raise WrongUsage(f"there is no option {name}")
    if not equals:
        if not left:
            raise WrongUsage(f"{name} needs a value")
        value = left.pop(0)
    if name == "--account":
        return replace(order, account=value)
    return replace(order, send_s=moment(value, now_s))


def moment(text: str, now_s: float) -> int:
    """The time that `--at` names, in seconds since 1970 UTC; without a zone it is local. Raises WrongUsage."""
    from datetime import UTC, datetime, timedelta

    if delay := _AT_DELAY.fullmatch(text):
        seconds = int(now_s) + int(delay[1]) * _SECONDS[delay[2]]
        if seconds > datetime.max.replace(tzinfo=UTC).timestamp():
            raise WrongUsage(f"--at {text!a} is after the year 9999")
        return seconds
    now = datetime.fromtimestamp(now_s).astimezone()
    if clock := _AT_CLOCK.fullmatch(text):
        today = now.replace(tzinfo=None, hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        at = today.astimezone()
        return int((at if at > now else (today + timedelta(days=1)).astimezone()).timestamp())
    try:
        given = datetime.fromisoformat(text)
        seconds = int((given if given.tzinfo else given.astimezone()).astimezone(UTC).timestamp())
    except (ValueError, OverflowError, OSError):
        raise WrongUsage(
            f"--at {text!a} is no time; write 2026-12-24T18:00, 18:00, or a while such as 90m or 2h"
        ) from None
    if seconds < now_s:
        raise WrongUsage(f"--at {text!a} is in the past")
    return seconds
