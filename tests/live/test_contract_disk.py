"""Contract 3, sentence by sentence, from outside: what lies on this disk, against a real Dovecot."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tests.live.client import Client
from tests.live.conftest import started
from tests.live.outside import WHEN_S, Outside, letter
from tests.servers.append import Refused
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.live

HOSTILE = (
    "Entwürfe",
    "Größe & Maß",
    "日本語/🌻",
    "../../etc",
    "..",
    ".hidden",
    "cur",
    "new/tmp",
    "100%",
    "%2e%2e",
    "-rf *",
    'quote"back\\slash',
    "{12}",
    "a.b/c",
    "tab\there",
    "inbox2",
    "~",
    "$HOME",
    "dovecot-keywords",
    ".maild",
)


@pytest.fixture(scope="module")
def lenient() -> Iterator[Dovecot]:
    """A server that lets mailboxes have any name."""
    settings = "namespace inbox {\n  location = sdbox:~/sdbox:CONTROL=~/control\n}\nmail_full_filesystem_access = yes"
    with started(mail_format="sdbox", separator="^", settings=settings) as server:
        yield server


@pytest.fixture(params=["nested", pytest.param("maildir++", marks=pytest.mark.long)])
def outside(client: Client, request: pytest.FixtureRequest) -> Outside:
    return Outside(client, request.param)


def test_hostile_names(lenient: Dovecot, client: Client, outside: Outside) -> None:
    """Names are the decoded ones, the dangerous characters percent-encoded; none leaves the account's Maildir."""
    client.server, outside.separator = lenient, "^"
    for n, name in enumerate(HOSTILE):
        with suppress(Refused):
            outside.fill([n], name.replace("/", "^"))
    outside.sync()
    outside.settled()
    assert len(outside.here()) > 15, outside.here().keys()
    assert {path.name for path in client.directory.iterdir()} == {"Mail", "state", "maild.toml"}
    (first,) = [p for p in (outside.root / "Entwürfe", outside.root / ".Entwürfe") if p.exists()]
    assert (first / "cur").is_dir()
    for path in outside.root.rglob("*"):
        assert not any(ord(c) < 32 for c in path.name), path


def test_octets_dates_flags(outside: Outside) -> None:
    """CRLF becomes LF, every other octet is kept; INTERNALDATE is the mtime; names as the contract has them."""
    odd = [
        b"From: a@b.example\n\nlone \r cr, 8 bit \xff\xfe, no end of line",
        b"Subject: x\n\n\n\n.\n..\n From the start\n",
        b"no header at all\n",
        b"X: y\n",
        b"\n",
        letter(9) + b"\x80\x81" * 500 + b"\n" + b"z" * 5000 + b"\n",
    ]
    for n, raw in enumerate(odd):
        outside.deliver(raw, date_s=1 + n * 86_400 * 365)
    for n, flags in enumerate(
        ["\\Seen", "\\Draft \\Flagged \\Answered \\Seen \\Deleted", "$Forwarded", "Wichtig $Label1"]
    ):
        outside.deliver(letter(20 + n), flags=flags.split(), date_s=WHEN_S + n)
    told = outside.sync()
    assert told["pulled"] == 10
    outside.settled()
    for path in outside.files():
        assert re.fullmatch(r"[^:]*(:2,D?F?P?R?S?T?[a-z]*)?", path.name), path.name
        assert (path.parent.name == "new") == (":" not in path.name)
    assert outside.find(21).name.endswith(":2,DFRST")
    assert outside.find(22).name.endswith(":2,P")
    assert not any(re.search(r"U=|,U", path.name) for path in outside.files())


def test_unknown_letters_stay(outside: Outside) -> None:
    outside.fill([1, 2], flags=["\\Seen"])
    outside.sync()
    outside.relabel(outside.find(1), "SXZ")
    outside.sync()
    outside.store(1, "+FLAGS", "\\Flagged")
    outside.sync()
    assert sorted(outside.find(1).name.partition(":2,")[2]) == sorted("FSXZ")
    outside.relabel(outside.find(2), "Xq")  # a keyword's letter that nobody has explained
    outside.sync()
    assert outside.counts() == {}
    assert sorted(outside.find(2).name.partition(":2,")[2]) == sorted("Xq")


def test_keywords_travel_both_ways(outside: Outside) -> None:
    """`dovecot-keywords`, letters a to z, as Dovecot itself keeps them; more than 26 of them too."""
    outside.fill([1, 2, 3])
    outside.store(1, "+FLAGS", "Eins $Label1")
    outside.sync()
    outside.settled()
    listed = outside.where("INBOX") / "dovecot-keywords"
    letters = {
        line.split(" ", 1)[1]: "abcdefghijklmnopqrstuvwxyz"[int(line.split()[0])]
        for line in listed.read_text().splitlines()
    }
    outside.relabel(outside.find(2), letters["Eins"])
    outside.relabel(outside.find(1), letters["$Label1"])
    listed.write_text(listed.read_text() + f"{len(letters)} Mine\n")
    outside.relabel(outside.find(3), "S" + "abcdefghijklmnopqrstuvwxyz"[len(letters)])
    assert outside.counts() == {"flags": 3}
    outside.settled()
    outside.store(1, "+FLAGS", " ".join(f"Many{n}" for n in range(30)))
    outside.sync()
    assert outside.counts() == {}
    outside.relabel(outside.find(1), outside.find(1).name.partition(":2,")[2] + "F")
    assert outside.counts() == {"flags": 1}
    (flags,) = [flags for raw, flags, _ in outside.there()["INBOX"] if b"Nr. 1\n" in raw]
    assert {f"Many{n}" for n in range(30)} | {"\\Flagged", "$Label1"} == flags
    assert outside.counts() == {}


def test_the_state_is_private_and_may_be_lost(outside: Outside) -> None:
    outside.fill(range(40), flags=["\\Seen"])
    outside.fill(range(40, 45), "Liste")
    outside.sync()
    files = {
        path.relative_to(outside.client.state_dir) for path in outside.client.state_dir.rglob("*") if path.is_file()
    }
    assert Path("work.sqlite") in files
    for path in [outside.client.state_dir, *outside.client.state_dir.rglob("*")]:
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path
    before = outside.snapshot()
    outside.lose_state()
    assert outside.counts() == {}
    marker = str(outside.root / ".maild")
    after = outside.snapshot()
    assert {k: v for k, v in after.items() if k not in (marker, str(outside.root))} == {
        k: v for k, v in before.items() if k not in (marker, str(outside.root))
    }
    outside.settled()


def test_links_and_strange_things_are_no_messages(outside: Outside) -> None:
    outside.fill([1])
    outside.sync()
    inbox = outside.where("INBOX")
    secret = outside.client.directory / "secret"
    secret.write_bytes(letter(66))
    (inbox / "cur" / "1.link.host:2,S").symlink_to(secret)
    os.mkfifo(inbox / "cur" / "2.fifo.host:2,S")
    (inbox / "cur" / "3.directory.host:2,S").mkdir()
    (inbox / "cur" / ".dotfile").write_text("mine")
    (inbox / "notes.txt").write_text("mine")
    outside.sync()
    assert outside.counts() == {}
    assert sum(outside.there()["INBOX"].values()) == 1
    assert (inbox / "cur" / "1.link.host:2,S").is_symlink()
    assert (inbox / "cur" / ".dotfile").read_text() == (inbox / "notes.txt").read_text() == "mine"


def test_readers_during_passes(outside: Outside) -> None:
    readers_during_passes(outside, 4)


@pytest.mark.long
def test_readers_during_many_passes(outside: Outside) -> None:
    readers_during_passes(outside, 40)


def readers_during_passes(outside: Outside, passes: int) -> None:
    """A reader renames, flags, and moves from `new` to `cur` without end; the server's flags change too."""
    outside.fill(range(150))
    outside.sync()
    over = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        random = Random(7)
        try:
            while not over.is_set():
                path = random.choice(outside.files())
                keywords = [c for c in path.name.partition(":2,")[2] if c.islower()]
                letters = "".join([*(c for c in "FRS" if random.random() < 0.5), *keywords])
                try:
                    outside.relabel(path, letters)
                except FileNotFoundError:
                    continue
                over.wait(0.001)
        except BaseException as exc:
            failures.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for n in range(passes):
            outside.store(n, "+FLAGS", "Server")
            outside.fill([1000 + n])
            outside.sync()
    finally:
        over.set()
        reader.join()
    assert failures == []
    for _ in range(2):
        outside.sync()
    outside.settled()
    assert outside.numbers(outside.here()) == sorted([*range(150), *range(1000, 1000 + passes)])
    flags = [flags for raw, flags, _ in outside.here()["INBOX"] for n in range(passes) if f"Nr. {n}\n".encode() in raw]
    assert all("Server" in some for some in flags)


@pytest.mark.skipif(subprocess.run(["which", "strace"], capture_output=True).returncode != 0, reason="no strace here")
@pytest.mark.long
def test_a_file_is_durable_before_it_shows(outside: Outside, tmp_path: Path) -> None:
    """Each file fsynced in `tmp` before its name is in `new` or `cur`, the directory fsynced afterwards."""
    outside.fill(range(20), flags=["\\Seen"])
    outside.client.account = f'layout = "{outside.layout}"'
    trace = tmp_path / "trace"
    calls = "trace=openat,fsync,fdatasync,syncfs,rename,renameat,renameat2,link,linkat"
    subprocess.run(
        ["strace", "-f", "-y", "-qq", "-e", calls, "-o", str(trace), *outside.client.argv()],
        check=True,
        capture_output=True,
    )
    synced: set[str] = set()
    shown = 0
    for line in trace.read_text().splitlines():
        if (call := re.search(r"f(?:data)?sync\(\d+<([^>]*)>", line)) is not None:
            synced.add(Path(call[1]).name)
        elif (
            call := re.search(r'(?:rename|link)\w*\([^"]*"([^"]*)"[^"]*<[^>]*/(?:new|cur)>, "([^"]*)"', line)
        ) is not None:
            shown += 1
            assert Path(call[1]).name in synced, line
    assert shown == 20
