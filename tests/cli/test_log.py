"""What the log looks like, what never gets into it, and that its events are those of the catalogue."""

from __future__ import annotations

import ast
import base64
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from maild import log
from maild.remote import auth
from tests.conftest import SecretScan

PACKAGE = Path(log.__file__).parent
SWORDFISH = 'sword"fish\\ pässword'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(auth, "_read_so_far", set())
    monkeypatch.delenv("NO_COLOR", raising=False)
    root, wire = logging.getLogger(), logging.getLogger("aioimaplib.aioimaplib")
    before = (root.level, root.handlers.copy(), wire.level, wire.handlers.copy(), wire.propagate)
    yield
    structlog.reset_defaults()
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    wire.setLevel(before[2])
    wire.handlers[:] = before[3]
    wire.propagate = before[4]


def logged(event: str = "account.started", *, level: str = "info", **facts: Any) -> dict[str, Any]:
    """The JSON document that one event becomes."""
    stream = io.StringIO()
    log.configure("debug", "json", stream)
    getattr(structlog.get_logger(), level)(event, **facts)
    document: dict[str, Any] = json.loads(stream.getvalue())
    return document


# form


def test_json_off_a_terminal() -> None:
    stream = io.StringIO()
    log.configure("info", "auto", stream)
    structlog.get_logger().info("account.started", account="work", mailbox="Entwürfe", messages=3)
    (line,) = stream.getvalue().splitlines()
    document = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", document.pop("timestamp"))
    assert document == {
        "event": "account.started",
        "level": "info",
        "account": "work",
        "mailbox": "Entwürfe",
        "messages": 3,
    }
    assert "Entwürfe" in line


@pytest.mark.parametrize(("log_format", "stream"), [("auto", Terminal()), ("console", io.StringIO())])
def test_text_on_a_terminal(log_format: Any, stream: io.StringIO) -> None:
    log.configure("info", log_format, stream)
    structlog.get_logger().info("account.started", account="work")
    assert re.search(r"\d\d:\d\d:\d\d.*account\.started.*account.*=.*work", stream.getvalue())
    assert stream.getvalue().count("\n") == 1


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_colours(stream: io.StringIO) -> bool:
        log.configure("info", "console", stream)
        structlog.get_logger().info("account.started")
        return "\x1b[" in stream.getvalue()

    assert has_colours(Terminal())
    assert not has_colours(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colours(Terminal())


@pytest.mark.parametrize(("level", "seen"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_level(level: Any, seen: int) -> None:
    stream = io.StringIO()
    log.configure(level, "json", stream)
    logger = structlog.get_logger()
    for method in ("debug", "info", "warning", "error"):
        getattr(logger, method)("account.started")
    assert len(stream.getvalue().splitlines()) == seen


def test_it_can_be_set_anew_for_loggers_that_are_there() -> None:
    first, second = io.StringIO(), io.StringIO()
    logger = structlog.get_logger()
    log.configure("error", "json", first)
    logger.info("account.started")
    log.configure("info", "json", second)
    logger.info("account.started")
    assert (first.getvalue(), len(second.getvalue().splitlines())) == ("", 1)


def test_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "json")
    structlog.get_logger().info("account.started")
    out, err = capsys.readouterr()
    assert (out, json.loads(err)["event"]) == ("", "account.started")


# redaction


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "shown",
    [
        SWORDFISH,
        f"LOGIN me {SWORDFISH}!",
        'LOGIN me "sword\\"fish\\\\ pässword"',
        repr(SWORDFISH),
        f"LOGIN {SWORDFISH!r}",
        encoded(f"\0me\0{SWORDFISH}"),
        encoded(f"\0you\0{SWORDFISH}"),
        encoded(f"\0them\0{SWORDFISH}"),
        encoded(SWORDFISH),
    ],
)
def test_a_secret_that_was_read_is_replaced(secret_scan: SecretScan, shown: str) -> None:
    secret_scan.add(SWORDFISH)
    auth.keep_out_of_log(SWORDFISH)
    document = logged(
        shown, reason=shown, path=Path("/dir") / shown, error=ValueError(shown), hint=[shown, {shown: (shown,)}]
    )
    for value in (document["event"], document["reason"], document["path"], document["error"], document["hint"][0]):
        assert "***" in value
        assert "fish" not in value
    assert "fish" not in json.dumps(document)
    assert encoded(SWORDFISH)[4:-4] not in json.dumps(document)


def test_octets_are_read_as_text_before_they_are_searched() -> None:
    auth.keep_out_of_log("swordfish")
    assert logged(reason=b"a swordfish \xff")["reason"] == "a *** \\xff"


def test_a_longer_secret_goes_as_a_whole() -> None:
    auth.keep_out_of_log("sword")
    auth.keep_out_of_log("swordfish")
    assert logged(reason="swordfish sword")["reason"] == "*** ***"


def test_a_secret_read_later_is_replaced_from_then_on() -> None:
    assert logged(reason="swordfish")["reason"] == "swordfish"
    auth.keep_out_of_log("swordfish")
    assert logged(reason="swordfish")["reason"] == "***"


def test_a_short_secret_spares_base64_text() -> None:
    auth.keep_out_of_log("abc")
    assert logged(reason="xYWJjx")["reason"] == "xYWJjx"


@pytest.mark.parametrize("key", ["password", "PASSWORD", "secret", "access_token", "client_secret", "passwd"])
def test_telling_keys_are_masked_whatever_they_hold(key: str) -> None:
    assert logged(**{key: ["anything"]})[key] == "***"


def test_facts_without_text_stay_as_they_are() -> None:
    auth.keep_out_of_log("1")
    document = logged(messages=11, duration_s=1.5, uid=None, deleted=True)
    assert [document[key] for key in ("messages", "duration_s", "uid", "deleted")] == [11, 1.5, None, True]


def test_traceback_is_text_without_secrets_and_without_locals() -> None:
    auth.keep_out_of_log("swordfish")
    for log_format in ("json", "console"):
        stream = io.StringIO()
        log.configure("info", log_format, stream)  # type: ignore[arg-type]
        password = "sword" + "fish"
        try:
            raise ValueError(password)
        except ValueError:
            structlog.get_logger().exception("account.failed")
        assert "ValueError: ***" in stream.getvalue()
        assert "swordfish" not in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\r\n", "a\\nb\\r\\n"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\ud800", "\\ud800"),
        ("Entwürfe 日本\u3000", "Entwürfe 日本\u3000"),
    ],
)
def test_nothing_of_a_server_reaches_the_terminal_unescaped(text: str, shown: str) -> None:
    assert logged(reason=text)["reason"] == shown
    stream = Terminal()
    log.configure("info", "console", stream)
    structlog.get_logger().info("server.alerted", reason=text)
    assert text not in stream.getvalue() or text == shown
    assert stream.getvalue().count("\n") == 1


def test_a_long_value_is_cut() -> None:
    assert logged(reason="x" * 100_000)["reason"] == "x" * 2000 + "…"


# other loggers


def test_warnings_of_libraries_take_the_same_way() -> None:
    stream = io.StringIO()
    log.configure("debug", "json", stream)
    auth.keep_out_of_log("swordfish")
    logging.getLogger("asyncio").warning("task %s failed with %s", 1, "swordfish")
    logging.getLogger("asyncio").info("not seen")
    document = json.loads(stream.getvalue())
    assert (document["event"], document["level"]) == ("task 1 failed with ***", "warning")


def test_the_wire_library_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    log.configure("debug", "json", stream)
    wire = logging.getLogger("aioimaplib.aioimaplib")
    assert not wire.isEnabledFor(logging.INFO)
    wire.error("LOGIN me swordfish")
    assert stream.getvalue() == ""
    assert capsys.readouterr() == ("", "")


# catalogue


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call that logs, in the whole package: of a variable that `structlog.get_logger()` was given to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        loggers = {
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and "get_logger" in ast.unparse(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if name in loggers:
                    if method in ("debug", "info", "warning", "error", "exception", "critical"):
                        yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def test_every_event_is_in_the_catalogue() -> None:
    for place, call in calls():
        assert call.args, place
        event = call.args[0]
        assert isinstance(event, ast.Constant), f"{place}: the text of an event is constant"
        assert event.value in log.EVENTS, f"{place}: {event.value} is not in EVENTS of log.py"
        unknown = {keyword.arg for keyword in call.keywords} - log.KEYS - {"exc_info"}
        assert not unknown, f"{place}: not in KEYS of log.py: {unknown}"


def test_catalogue_is_well_formed() -> None:
    for event, meaning in log.EVENTS.items():
        assert re.fullmatch(r"[a-z]+\.([a-z]+ed|lost|rebuilt)", event)
        assert meaning
    assert all(re.fullmatch(r"[a-z_]+", key) for key in log.KEYS)
