"""Real mail readers at work in the Maildir while passes run: mutt moves, flags and deletes, notmuch tags.

In the end nothing is lost or doubled, both sides are equal, and each change has arrived on the server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading

import pytest

from tests.live.client import Client
from tests.live.outside import Outside

pytestmark = [
    pytest.mark.live,
    pytest.mark.long,
    pytest.mark.skipif(
        not all(map(shutil.which, ("mutt", "notmuch", "script"))), reason="needs Debian's mutt, notmuch and bsdutils"
    ),
]

READER_S = 60.0
ROUNDS = 8


class Readers:
    """The two programs, with a config of their own beside the Maildir."""

    def __init__(self, outside: Outside) -> None:
        self._root, directory = outside.root, outside.client.directory
        self._muttrc, self._notmuchrc = directory / "muttrc", directory / "notmuchrc"
        self._muttrc.write_text(
            f"set folder={self._root}\nset mbox_type=Maildir\nset confirmappend=no\nset confirmcreate=no\n"
            'set delete=yes\nset move=no\nset mark_old=no\nset quit=yes\nset record=""\n'
        )
        index = directory / "index"
        index.mkdir()
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
        environment = {**os.environ, "TERM": "xterm", "NOTMUCH_CONFIG": str(self._notmuchrc)}
        subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=READER_S
        )


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
