"""Real mail readers at work in the Maildir while passes run: mutt moves, flags and deletes, notmuch tags, and a second
Dovecot serves it to another client that does all of that too, and adds.

In the end nothing is lost or doubled, both sides are equal, and each change has arrived on the server.
"""

from __future__ import annotations

import contextlib
import imaplib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.live.client import Client
from tests.live.conftest import started
from tests.live.outside import WHEN_S, Outside, letter, wire
from tests.servers.dovecot import Dovecot

pytestmark = [
    pytest.mark.live,
    pytest.mark.long,
    pytest.mark.skipif(
        not all(map(shutil.which, ("mutt", "notmuch", "script"))), reason="needs Debian's mutt, notmuch and bsdutils"
    ),
]

READER_S = 60.0
ROUNDS = 8


class Interrupted(Exception):
    """A file went while notmuch looked at it: it wants to be run again."""


class Readers:
    """The two programs, with a config of their own beside the Maildir."""

    def __init__(self, outside: Outside) -> None:
        self._root, directory = outside.root, outside.client.directory
        self._prefix = list(outside.client.prefix)
        self._muttrc, self._notmuchrc = directory / "muttrc", directory / "notmuchrc"
        self._muttrc.write_text(
            f"set folder={self._root}\nset mbox_type=Maildir\nset confirmappend=no\nset confirmcreate=no\n"
            'set delete=yes\nset move=no\nset mark_old=no\nset quit=yes\nset record=""\n'
        )
        index = directory / "index"
        index.mkdir()
        if self._prefix:
            shutil.chown(index, "nobody", "nogroup")
        self._notmuchrc.write_text(
            f"[database]\npath={index}\nmail_root={self._root}\n[user]\nname=me\nprimary_email=me@example.org\n"
            "[new]\ntags=unread;inbox;\nignore=.maild;dovecot-keywords\n[maildir]\nsynchronize_flags=true\n"
        )

    def mutt(self, mailbox: str, keys: str) -> None:
        command = ["mutt", "-n", "-F", str(self._muttrc), "-f", str(self._root / mailbox), "-e", f'push "{keys}"']
        self._run(["script", "-qec", subprocess.list2cmdline(command), "/dev/null"])

    def notmuch(self, *arguments: str) -> None:
        self._run(["notmuch", *arguments])

    def _run(self, command: list[str]) -> None:
        command = [*self._prefix, *command]
        environment = {**os.environ, "TERM": "xterm", "NOTMUCH_CONFIG": str(self._notmuchrc)}
        ran = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=READER_S
        )
        if ran.returncode == os.EX_TEMPFAIL:
            raise Interrupted
        ran.check_returncode()


def read_on(readers: Readers, first: int) -> None:
    """Ten messages from `first` on: two flagged, one deleted, two moved, two tagged; three are left alone."""

    def matching(*numbers: int) -> str:
        return "|".join(f"Nr. {n}$" for n in numbers)

    readers.mutt(
        "INBOX",
        f"<tag-pattern>~s '{matching(first, first + 1)}'<enter><tag-prefix><set-flag>!<untag-pattern>.<enter>"
        f"<delete-pattern>~s '{matching(first + 2)}'<enter>"
        f"<tag-pattern>~s '{matching(first + 3, first + 4)}'<enter><tag-prefix><save-message>=Archive<enter>"
        "<sync-mailbox><exit>",
    )
    readers.notmuch("new")
    for n in (first + 5, first + 6):
        readers.notmuch("tag", "+flagged", "-unread", "--", f"id:out-{n}@test.example")


def test_mutt_and_notmuch_during_passes(client: Client) -> None:
    client.settings = 'remote_delete = "expunge"'
    outside = Outside(client)
    outside.fill(range(10 * ROUNDS))
    outside.fill([5000], "Archive")
    outside.sync()
    readers = Readers(outside)
    failures: list[BaseException] = []
    is_over = threading.Event()

    def work() -> None:
        try:
            for round_ in range(ROUNDS):
                read_on(readers, 10 * round_)
        except BaseException as exc:
            failures.append(exc)
        finally:
            is_over.set()

    reading = threading.Thread(target=work)
    reading.start()
    passes = 0
    try:
        while not is_over.is_set():
            outside.fill([1000 + passes])
            outside.store(10 * (passes % ROUNDS) + 9, "+FLAGS", f"Pass{passes % 5}")
            outside.sync()
            passes += 1
    finally:
        reading.join()
    assert failures == []
    for _ in range(2):
        outside.sync()
    outside.settled()
    assert_result(outside, passes)


def assert_result(outside: Outside, passes: int) -> None:
    kept = [n for n in range(10 * ROUNDS) if n % 10 not in (2, 3, 4)]
    there = outside.there()
    assert outside.numbers(there) == [*kept, *range(1000, 1000 + passes)]
    assert outside.numbers(there, "Archive") == [*(n for n in range(10 * ROUNDS) if n % 10 in (3, 4)), 5000]
    for raw, flags, _ in there["INBOX"]:
        n = int(raw.partition(b"Subject: Nr. ")[2].split(b"\n", 1)[0])
        if n < 10 * ROUNDS:
            assert ("\\Flagged" in flags) == (n % 10 in (0, 1, 5, 6)), (n, flags)
            assert "\\Seen" in flags or n % 10 not in (5, 6), (n, flags)


# -- and a Dovecot

AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
MAY_READ = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")  # this Python may be in the home of root
SERVE_MAILDIR = "mail_location = maildir:~/Mail:LAYOUT=fs:INBOX=~/Mail/INBOX"
EACH = 12  # messages in a round; what happens to which is told below by their number in it
MOVED, DELETED = (1, 4), (2, 5)
MORE_ROUNDS = 8


@pytest.fixture
def shared(dovecot: Dovecot) -> Iterator[tuple[Outside, Dovecot]]:
    """An account, and a second Dovecot that serves its Maildir. As root all work as `nobody`, for Dovecot must."""
    with started(settings=SERVE_MAILDIR) as local:
        directory = local.mail_root / "me"
        directory.mkdir()
        prefix: tuple[str, ...] = ()
        if os.geteuid() == 0:
            shutil.chown(directory, "nobody", "nogroup")
            prefix = (*AS_NOBODY, *MAY_READ)
        yield Outside(Client(directory, dovecot, "readers-and-dovecot", prefix=prefix)), local


def read_by_imap(local: Dovecot, first: int) -> None:
    """One flagged, with a keyword, one moved, one deleted, a new one: by another client, on the Dovecot here."""

    def done(answer: tuple[str, list[Any]]) -> list[Any]:
        assert answer[0] == "OK", answer
        return answer[1]

    with local.connect("me") as session:

        def uid(n: int) -> str:
            (found,) = done(session.uid("SEARCH", "HEADER", "Message-ID", f"<out-{n}@test.example>"))
            (one,) = found.split()
            return str(one.decode())

        done(session.select("INBOX"))
        done(session.uid("STORE", uid(first), "+FLAGS", "(\\Flagged Here)"))
        done(session.uid("MOVE", uid(first + MOVED[0]), "Archive"))
        done(session.uid("STORE", uid(first + DELETED[0]), "+FLAGS", "(\\Deleted)"))
        done(session.uid("EXPUNGE", uid(first + DELETED[0])))
        done(session.append("INBOX", "(\\Seen)", imaplib.Time2Internaldate(WHEN_S), wire(letter(2000 + first))))
        session.unselect()


def read_by_mutt(readers: Readers, outside: Outside, first: int) -> None:
    """One flagged, one moved, one deleted; once more where mutt left off because others changed the mailbox."""
    flagged, moved, deleted = (first + number for number in (3, MOVED[1], DELETED[1]))
    deadline = time.monotonic() + READER_S
    while True:
        keys = ""
        if "F" not in (letters_of(outside, flagged) or ()):
            keys += f"<tag-pattern>~s 'Nr. {flagged}$'<enter><tag-prefix><set-flag>!<untag-pattern>.<enter>"
        if letters_of(outside, deleted) is not None:
            keys += f"<delete-pattern>~s 'Nr. {deleted}$'<enter>"
        if letters_of(outside, moved) is not None:
            is_copied = letters_of(outside, moved, "Archive") is not None
            save = "" if is_copied else "<tag-prefix><save-message>=Archive<enter>"
            keys += f"<tag-pattern>~s 'Nr. {moved}$'<enter>{save}<delete-pattern>~s 'Nr. {moved}$'<enter>"
        if not keys:
            return
        assert time.monotonic() < deadline, f"mutt could not do {keys}"
        readers.mutt("INBOX", keys + "<sync-mailbox><sync-mailbox><exit>")


def read_by_notmuch(readers: Readers, outside: Outside, first: int) -> None:
    """One flagged and read, one read; once more where a file had another name by then, which notmuch passes over."""
    wanted = {first + 6: (("+flagged", "-unread"), "FS"), first + 7: (("-unread",), "S")}
    deadline = time.monotonic() + READER_S
    while left := [
        n for n, (_, letters) in wanted.items() if not (letters_of(outside, n) or set()).issuperset(letters)
    ]:
        assert time.monotonic() < deadline, f"notmuch could not change {left}"
        with contextlib.suppress(Interrupted):
            readers.notmuch("new")
            for n in left:
                readers.notmuch("tag", *wanted[n][0], "--", f"id:out-{n}@test.example")


def letters_of(outside: Outside, n: int, mailbox: str = "INBOX") -> set[str] | None:
    """Of a message's file; None where there is none. While names change a listing may miss some: it is made again."""
    while True:
        files = outside.files(mailbox)
        for path in files:
            with contextlib.suppress(FileNotFoundError):
                if f"Subject: Nr. {n}\n".encode() in path.read_bytes():
                    return set(path.name.partition(":2,")[2])
        if files == outside.files(mailbox):
            return None


def test_dovecot_mutt_and_notmuch_during_passes(shared: tuple[Outside, Dovecot]) -> None:
    outside, local = shared
    outside.client.settings = 'remote_delete = "expunge"'
    outside.fill(range(EACH * MORE_ROUNDS))
    outside.fill([5000], "Archive")
    outside.sync()
    readers = Readers(outside)
    work: list[Callable[[int], None]] = [
        partial(read_by_imap, local),
        partial(read_by_mutt, readers, outside),
        partial(read_by_notmuch, readers, outside),
    ]
    failures: list[BaseException] = []

    def rounds(read: Callable[[int], None]) -> None:
        try:
            for first in range(0, EACH * MORE_ROUNDS, EACH):
                read(first)
        except BaseException as exc:
            failures.append(exc)

    reading = [threading.Thread(target=rounds, args=(one,)) for one in work]
    for thread in reading:
        thread.start()
    passes = 0
    while any(thread.is_alive() for thread in reading):
        outside.fill([1000 + passes])
        outside.store(EACH * (passes % MORE_ROUNDS) + 8, "+FLAGS", f"There{passes % 5}")
        outside.sync()
        passes += 1
    assert failures == []
    for _ in range(2):
        outside.sync()
    with local.connect("me") as session:  # it has seen all
        for mailbox in ("INBOX", "Archive"):
            session.select(mailbox)
            session.unselect()
    outside.sync()
    outside.settled()
    assert_all_done(outside, passes)


def assert_all_done(outside: Outside, passes: int) -> None:
    numbers = range(EACH * MORE_ROUNDS)
    there = outside.there()
    kept = [n for n in numbers if n % EACH not in (*MOVED, *DELETED)]
    added = [2000 + first for first in range(0, EACH * MORE_ROUNDS, EACH)]
    assert outside.numbers(there) == [*kept, *range(1000, 1000 + passes), *added]
    names = [path.name for path in outside.files("Archive")]
    assert outside.numbers(there, "Archive") == [*(n for n in numbers if n % EACH in MOVED), 5000], names
    for raw, flags, _ in there["INBOX"]:
        n = int(raw.partition(b"Subject: Nr. ")[2].split(b"\n", 1)[0])
        if n in numbers:
            assert ("\\Flagged" in flags) == (n % EACH in (0, 3, 6)), (n, flags)
            assert ("Here" in flags) == (n % EACH == 0), (n, flags)
            is_marked = n % EACH == 8 and n // EACH < passes
            assert any(flag.startswith("There") for flag in flags) == is_marked, (n, flags)
            assert "\\Seen" in flags or n % EACH not in (6, 7), (n, flags)
