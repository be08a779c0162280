"""The witness finds every way in which a Maildir can differ from the server, and nothing in one that does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from maild.testing import witness
from maild.testing.store import Store

DATE_S = 1_790_000_000
PLAIN = b"Subject: one\r\n\r\na\nb\rc\r\n"


def put(path: Path, octets: bytes, date_s: int = DATE_S) -> None:
    path.write_bytes(octets)
    os.utime(path, (date_s, date_s))


def make_mailbox(path: Path) -> Path:
    for name in ("cur", "new", "tmp"):
        (path / name).mkdir(parents=True)
    return path


@pytest.fixture
def store() -> Store:
    store = Store()
    store.deliver("INBOX", PLAIN, (), DATE_S)
    store.deliver("INBOX", b"two\r\n", ("\\Seen", "$Forwarded", "$Work"), DATE_S + 1)
    store.create("Familie/Großeltern")
    return store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What a Maildir for that store looks like, made by hand."""
    root = tmp_path / "mail"
    inbox = make_mailbox(root / "INBOX")
    put(inbox / "new/1.a.host", b"Subject: one\n\na\nb\rc\n")
    put(inbox / "cur/2.b.host:2,PSc", b"two\n", DATE_S + 1)
    (inbox / "dovecot-keywords").write_text("0 $Other\n2 $Work\n")
    make_mailbox(root / "Familie/Großeltern")
    return root


def test_equal_sides_do_not_differ(store: Store, root: Path) -> None:
    assert witness.difference(store, root) == ""
    assert witness.mailboxes(root) == [root / "Familie/Großeltern", root / "INBOX"]


def test_the_other_layout(store: Store, tmp_path: Path) -> None:
    root = make_mailbox(tmp_path / "mail")
    make_mailbox(root / ".Familie.Großeltern")
    store.expunge("INBOX", [1, 2])
    assert witness.difference(store, root, "maildir++") == ""
    put(root / "new/1.a.host", b"one\n")
    assert (
        witness.difference(store, root, "maildir++") == "mailbox INBOX is not here what it is there: 1 messages, not 0"
    )


def test_a_server_without_levels(tmp_path: Path) -> None:
    store = Store(separator="")
    store.create("Bücher & Noten/1")
    make_mailbox(tmp_path / "INBOX")
    make_mailbox(tmp_path / "Bücher & Noten%2F1")
    assert witness.difference(store, tmp_path) == ""


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "octet": (lambda box: put(box / "new/1.a.host", b"Subject: one\n\na\nb\nc\n"), "1 of 2 messages with other octets"),
    "CRLF": (lambda box: put(box / "new/1.a.host", PLAIN), "1 of 2 messages with other octets"),
    "more": (lambda box: put(box / "new/3.c.host", b"more\n"), "3 messages, not 2"),
    "fewer": (lambda box: (box / "new/1.a.host").unlink(), "1 messages, not 2"),
    "flag": (lambda box: (box / "new/1.a.host").rename(box / "cur/1.a.host:2,F"), "1 of 2 messages with other flags"),
    "keyword": (lambda box: (box / "dovecot-keywords").write_text("2 $Play\n"), "1 of 2 messages with other flags"),
    "no keywords": (lambda box: (box / "dovecot-keywords").unlink(), "1 of 2 messages with other flags or keywords"),
    "date": (lambda box: os.utime(box / "new/1.a.host", (0, DATE_S + 1)), "1 of 2 messages with another date"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_every_difference_is_told(store: Store, root: Path, what: str) -> None:
    spoil, told = SPOILT[what]
    spoil(root / "INBOX")
    assert witness.difference(store, root).startswith(f"mailbox INBOX is not here what it is there: {told}")


def test_flags_of_two_messages_that_changed_places(store: Store, root: Path) -> None:
    put(root / "INBOX/new/1.a.host", b"two\n")
    put(root / "INBOX/cur/2.b.host:2,PSc", b"Subject: one\n\na\nb\rc\n", DATE_S + 1)
    assert "2 of 2 messages with other flags" in witness.difference(store, root)


@pytest.mark.parametrize("listed", [b"c $Work\n", b"2\n", b"2 \xff\n"])
def test_keywords_that_cannot_be_read(store: Store, root: Path, listed: bytes) -> None:
    (root / "INBOX/dovecot-keywords").write_bytes(listed)
    assert f"{root / 'INBOX'} cannot be read as a Maildir: " in witness.difference(store, root)


def test_a_mailbox_that_is_missing_or_too_many(store: Store, root: Path) -> None:
    make_mailbox(root / "Spam")
    assert witness.difference(store, root) == f"the server has no mailbox for {root / 'Spam'}"
    store.create("Spam")
    assert witness.difference(store, root) == ""
    store.create("Archiv")
    assert f"{root / 'Archiv'} cannot be read as a Maildir: " in witness.difference(store, root)
