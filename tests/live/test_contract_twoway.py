"""Contract 4, sentence by sentence, from outside, against a real Dovecot."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.live.client import Client
from tests.live.conftest import started
from tests.live.outside import WHEN_S, Outside, letter, wire
from tests.servers.dovecot import Dovecot
from tests.servers.proxy import FaultProxy

pytestmark = pytest.mark.live

VALIDITIES = itertools.count(1)
LAYOUTS = ["nested", pytest.param("maildir++", marks=pytest.mark.long)]


@pytest.fixture(params=LAYOUTS)
def outside(client: Client, request: pytest.FixtureRequest) -> Outside:
    return Outside(client, request.param)


def both_have(outside: Outside, messages: int = 6) -> None:
    """INBOX with messages from 1 on, Archive with 50 and 51, an empty Liste/Alt and an empty Trash."""
    outside.command("create", "Trash")
    outside.fill(range(1, messages + 1))
    outside.fill([50, 51], "Archive", ["\\Seen", "$Label1"])
    outside.command("create", "Liste/Alt")
    outside.sync()
    outside.equal()


def test_everything_travels_both_ways(outside: Outside) -> None:
    """New messages, flags, keywords, deletions and moves, on both sides at once; the counts are exact."""
    both_have(outside, 12)
    foretold = changed_everywhere(outside)
    told = outside.sync()
    wanted = {"pulled": 3, "pushed": 2, "flags": 4, "deleted": 2, "moved": 3, "refused": 0, "skipped": 0}
    assert {name: told[name] for name in wanted} == wanted
    assert {name: foretold[name] for name in wanted} == wanted
    outside.settled()
    here = outside.here()
    assert outside.numbers(here) == [1, 2, 3, 4, 9, 10, 20, 21, 22]
    assert outside.numbers(here, "Archive") == [7, 8, 23, 50, 51]
    assert outside.numbers(here, "Liste/Alt") == [12]
    assert outside.numbers(here, "Trash") == [5]
    flags = {int(raw.partition(b"Nr. ")[2].split()[0]): flags for raw, flags, _ in here["INBOX"]}
    assert flags[1] == {"\\Flagged", "\\Answered", "$Label1"}
    assert flags[2] == {"\\Seen"}
    assert flags[3] == {"Wichtig"}


def changed_everywhere(outside: Outside) -> dict[str, object]:
    """Change both sides, and see that a dry run changes nothing; what it foretells."""
    outside.relabel(outside.find(1), "F")
    outside.store(1, "+FLAGS", "\\Answered $Label1")
    outside.relabel(outside.find(2), "S")
    outside.store(3, "+FLAGS", "Wichtig")
    outside.find(5).unlink()
    outside.expunge([6])
    outside.move(outside.find(7), "Archive")
    outside.move(outside.find(8), "Archive", new_name=True)
    outside.move_there([12], "INBOX", "Liste/Alt")
    outside.expunge([11])
    outside.find(11).unlink()
    outside.write(letter(20), letters="S", date_s=WHEN_S + 20)
    outside.deliver(letter(21), flags=["\\Flagged"], date_s=WHEN_S + 21)
    outside.write(letter(22))
    outside.deliver(letter(23), "Archive")
    before, mail = outside.snapshot(), outside.there()
    state = {path: path.read_bytes() for path in outside.client.state_dir.rglob("*.sqlite")}
    foretold = outside.sync("--dry-run")
    assert outside.snapshot() == before
    assert outside.there() == mail
    assert {path: path.read_bytes() for path in outside.client.state_dir.rglob("*.sqlite")} == state
    return foretold


def test_conflicts(outside: Outside) -> None:
    """A deletion beats a flag change and a move; of two moves the server's wins; equal content elsewhere is safe."""
    both_have(outside)
    outside.relabel(outside.find(1), "F")
    outside.expunge([1])
    outside.store(2, "+FLAGS", "\\Flagged")
    outside.find(2).unlink()
    outside.move(outside.find(3), "Archive")
    outside.expunge([3])
    outside.move_there([4], "INBOX", "Archive")
    outside.find(4).unlink()
    outside.move(outside.find(5), "Archive")
    outside.move_there([5], "INBOX", "Liste/Alt")
    twin = outside.find(50, "Archive")
    outside.write(twin.read_bytes(), "INBOX", date_s=WHEN_S + 50)
    for _ in range(2):
        outside.sync()
    outside.settled()
    here = outside.here()
    assert outside.numbers(here) == [6, 50]
    assert outside.numbers(here, "Archive") == [50, 51]
    assert outside.numbers(here, "Liste/Alt") == [5]
    outside.find(50).unlink()
    outside.sync()
    assert outside.numbers(outside.here(), "Archive") == [50, 51]


def test_moves_are_no_transfers(outside: Outside) -> None:
    """Either way and with flags changed meanwhile: no message body crosses the line."""
    outside.client.server.import_messages(
        outside.client.user, "INBOX", [(wire(letter(n, octets=20_000)), (), None) for n in range(12)]
    )
    both_have(outside, 0)
    for n in range(4):
        outside.move(outside.find(n), "Archive", new_name=n % 2 == 1)
    outside.relabel(outside.find(3, "Archive"), "F")
    outside.move_there(range(4, 8), "INBOX", "Liste/Alt")
    outside.store(7, "+FLAGS", "\\Flagged", "Liste/Alt")
    inodes = {n: outside.find(n).stat().st_ino for n in range(4, 8)}
    with FaultProxy(outside.client.server.imap_port, record=True) as proxy:
        outside.client.port = proxy.port
        told = outside.sync()
        stats, said = proxy.stats(), proxy.recorded("server")
    outside.client.port = 0
    assert told["moved"] == 8
    assert (told["pulled"], told["pushed"], told["deleted"]) == (0, 0, 0)
    assert stats.octets_to_client < 20_000
    assert stats.octets_to_server < 20_000
    assert b" APPEND " not in said
    assert inodes == {n: outside.find(n, "Liste/Alt").stat().st_ino for n in range(4, 8)}
    outside.settled()


def test_mailboxes_both_ways(outside: Outside) -> None:
    """Made, renamed and deleted; new ones are subscribed to."""
    both_have(outside)
    outside.write(letter(30), "Neu/Unten/Tief")
    outside.make("Leer")
    outside.command("create", "Da")
    outside.sync()
    outside.settled()
    with outside.session() as session:
        subscribed = b"\n".join(line for line in session.lsub()[1] if isinstance(line, bytes))
    for name in (b"Neu/Unten/Tief", b"Leer"):
        assert name in subscribed, subscribed
    outside.where("Archive").rename(outside.where("Archiv2"))
    outside.command("rename", "Da", "Dort")
    told = outside.sync()
    assert (told["pulled"], told["pushed"], told["deleted"]) == (0, 0, 0)
    outside.settled()
    assert {"Archiv2", "Dort"} <= outside.here().keys()
    assert not {"Archive", "Da"} & outside.here().keys() or "Archive" in outside.there()
    outside.command("delete", "Dort")
    outside.command("delete", "Neu/Unten/Tief")
    shutil.rmtree(outside.where("Leer"))
    for _ in range(2):
        outside.sync()
    outside.settled()
    assert not {"Dort", "Leer", "Neu\x00Unten\x00Tief"} & outside.here().keys()


@pytest.mark.parametrize("way", ["both", "to_local", "to_remote", "none"])
@pytest.mark.long
def test_which_way_deletions_travel(outside: Outside, way: str) -> None:
    """And what stays is left alone: also after flags changed, a lost UIDVALIDITY, and forever."""
    outside.client.settings = f'deletions = "{way}"\nremote_delete = "expunge"'
    both_have(outside)
    outside.find(1).unlink()
    outside.expunge([2])
    outside.move(outside.find(3), "Archive")
    outside.move_there([4], "INBOX", "Liste/Alt")
    outside.sync()
    gone_there, gone_here = way in ("both", "to_remote"), way in ("both", "to_local")
    for _ in range(2):
        assert outside.counts() == {}
        here, there = outside.numbers(outside.here()), outside.numbers(outside.there())
        assert here == ([2, 4, 5, 6] if not gone_here else [5, 6])
        assert there == ([1, 3, 5, 6] if not gone_there else [5, 6])
        new_validity(outside, "INBOX")
        told = outside.sync()
        assert (told["pulled"], told["pushed"], told["deleted"], told["moved"]) == (0, 0, 0, 0)


def new_validity(outside: Outside, mailbox: str) -> None:
    """The server numbers the mailbox anew."""
    server, user = outside.client.server, outside.client.user
    server.doveadm("mailbox", "update", "-u", user, "--uid-validity", str(WHEN_S + next(VALIDITIES)), mailbox)


def test_uidvalidity_and_lost_state(outside: Outside) -> None:
    """Matched by content, nothing fetched where it is known, flags merged, nothing deleted."""
    outside.client.server.import_messages(
        outside.client.user, "INBOX", [(wire(letter(n, octets=10_000)), ("\\Seen",), None) for n in range(40)]
    )
    outside.sync()
    new_validity(outside, "INBOX")
    outside.expunge([0])
    outside.find(1).unlink()
    outside.relabel(outside.find(2), "FS")
    outside.deliver(letter(100))
    with FaultProxy(outside.client.server.imap_port) as proxy:
        outside.client.port = proxy.port
        told = outside.sync()
        came = proxy.stats().octets_to_client
    outside.client.port = 0
    assert told["deleted"] == 0
    assert came < 60_000
    outside.settled()
    assert outside.numbers(outside.here()) == [*range(40), 100]
    assert outside.find(2).name.endswith(":2,FS")


@pytest.mark.parametrize("remote_delete", ["trash", "expunge"])
@pytest.mark.long
def test_where_deleted_messages_go(outside: Outside, remote_delete: str) -> None:
    outside.client.settings = f'remote_delete = "{remote_delete}"'
    both_have(outside)
    outside.find(1).unlink()
    outside.find(50, "Archive").unlink()
    assert outside.sync()["deleted"] == 2
    outside.sync()
    outside.settled()
    there = outside.there()
    assert outside.numbers(there, "Trash") == ([1, 50] if remote_delete == "trash" else [])
    if remote_delete == "trash":
        outside.find(1, "Trash").unlink()
        outside.sync()
        outside.settled()
        assert outside.numbers(outside.there(), "Trash") == [50]


@pytest.mark.long
def test_a_message_that_is_too_big(outside: Outside) -> None:
    outside.client.settings = 'max_message_size = "20K"'
    outside.deliver(letter(1, octets=50_000))
    outside.fill([2])
    assert outside.counts() == {"pulled": 1, "skipped": 1}
    (skipped,) = outside.status()["mailboxes"]["INBOX"]["skipped"]
    assert "max_message_size" in str(skipped)
    assert outside.counts() == {"skipped": 1}
    outside.client.settings = ""
    assert outside.counts() == {"pulled": 1}
    outside.settled()


# -- a Maildir that somebody else made


def from_mbsync(outside: Outside) -> None:
    rc = outside.client.directory / "mbsyncrc"
    server = outside.client.server
    rc.write_text(
        f"IMAPAccount a\nHost 127.0.0.1\nPort {server.imap_port}\nUser {outside.client.user}\n"
        f'Pass "{server.password}"\nSSLType None\n\n'
        "IMAPStore there\nAccount a\n\n"
        f"MaildirStore here\nPath {outside.root}/\nInbox {outside.root}/INBOX\nSubFolders Verbatim\n\n"
        "Channel c\nFar :there:\nNear :here:\nPatterns *\nCreate Both\nSync All\nSyncState *\n"
    )
    outside.root.mkdir()
    subprocess.run(["mbsync", "-q", "-c", str(rc), "c"], check=True, capture_output=True)


def from_offlineimap(outside: Outside) -> None:
    rc = outside.client.directory / "offlineimaprc"
    server = outside.client.server
    rc.write_text(
        f"[general]\naccounts = a\nmetadata = {outside.client.directory}/meta\n[Account a]\n"
        "localrepository = l\nremoterepository = r\n"
        f"[Repository l]\ntype = Maildir\nlocalfolders = {outside.root}\nsep = /\n"
        f"[Repository r]\ntype = IMAP\nremotehost = 127.0.0.1\nremoteport = {server.imap_port}\n"
        f"remoteuser = {outside.client.user}\nremotepass = {server.password}\nssl = no\nstarttls = no\n"
        "auth_mechanisms = LOGIN\n"
    )
    subprocess.run(["offlineimap", "-c", str(rc), "-o", "-u", "quiet"], check=True, capture_output=True)


def from_copy(outside: Outside) -> None:
    """`cp -a` of another maild's Maildir: everything but the state."""
    outside.sync()
    outside.lose_state()
    outside.root.rename(outside.client.directory / "old")
    subprocess.run(["cp", "-a", str(outside.client.directory / "old"), str(outside.root)], check=True)


def from_dovecot(outside: Outside) -> None:
    """Dovecot's own Maildir, index files and all."""
    store = outside.client.server.mail_root / outside.client.user / "maildir"
    shutil.copytree(store, outside.root)
    for path in [outside.root, *outside.root.rglob("*")]:
        os.chown(path, os.geteuid(), os.getegid())


@pytest.mark.parametrize("origin", [from_copy, from_mbsync, from_offlineimap, from_dovecot])
@pytest.mark.long
def test_an_existing_maildir_is_adopted(client: Client, origin: object) -> None:
    program = {from_mbsync: "mbsync", from_offlineimap: "offlineimap"}.get(origin)  # type: ignore[call-overload]
    if program is not None and shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    outside = Outside(client, "maildir++" if origin is from_dovecot else "nested")
    client.server.import_messages(
        client.user, "INBOX", [(wire(letter(n, octets=20_000)), ("\\Seen",) * (n % 2), None) for n in range(30)]
    )
    outside.fill([50, 51], "Archive", ["\\Flagged"])
    outside.command("create", "Liste/Alt")
    origin(outside)  # type: ignore[operator]
    files = {path.stat().st_ino for path in outside.root.rglob("*") if path.parent.name in ("new", "cur")}
    with FaultProxy(client.server.imap_port, record=True) as proxy:
        client.port = proxy.port
        told = outside.sync()
        stats, said = proxy.stats(), proxy.recorded("server")
    client.port = 0
    assert (told["pulled"], told["pushed"], told["deleted"], told["moved"]) == (0, 0, 0, 0)
    assert b" APPEND " not in said
    assert b"BODY.PEEK[]" not in said
    assert max(stats.octets_to_client, stats.octets_to_server) < 60_000
    if origin in (from_mbsync, from_offlineimap):  # their files have dates, and mbsync's a header field, of their own
        assert outside.counts() == {}
        for name in ("INBOX", "Archive"):
            assert outside.numbers(outside.here(), name) == outside.numbers(outside.there(), name)
    else:
        outside.settled()
    assert {p.stat().st_ino for p in outside.root.rglob("*") if p.parent.name in ("new", "cur")} == files


# -- what a server may refuse


@pytest.fixture(scope="module")
def strict() -> Iterator[Dovecot]:
    """A server with a quota, access lists and a limit on message size."""
    settings = (
        "mail_plugins = $mail_plugins quota acl\n"
        "protocol imap {\n  mail_plugins = $mail_plugins imap_quota imap_acl\n}\n"
        "plugin {\n  quota = count:User quota\n  quota_rule = *:storage=200K\n  quota_vsizes = yes\n"
        "  quota_max_mail_size = 60K\n  acl = vfile\n}\n"
    )
    with started(settings=settings) as server:
        yield server


@pytest.mark.long
def test_over_quota_and_too_big_for_the_server(strict: Dovecot, outside: Outside) -> None:
    outside.client.server = strict
    outside.fill([1, 2])
    outside.sync()
    outside.write(letter(10, octets=80_000))
    outside.write(letter(11))
    told = outside.sync()
    assert (told["pushed"], told["skipped"]) == (1, 1)
    (held_back,) = outside.status()["mailboxes"]["INBOX"]["held_back"]
    assert held_back["reason"]
    for n in range(20, 26):
        outside.write(letter(n, octets=50_000))
    outside.write(letter(12))
    told = outside.sync()
    assert told["pushed"] >= 3
    outside.store(1, "+FLAGS", "\\Seen")
    outside.relabel(outside.find(2), "F")
    told = outside.sync()
    assert told["flags"] == 2
    assert sorted({*outside.numbers(outside.here())}) == [1, 2, 10, 11, 12, *range(20, 26)]


@pytest.mark.long
def test_a_mailbox_that_may_only_be_read(strict: Dovecot, outside: Outside) -> None:
    outside.client.server = strict
    outside.fill([1, 2, 3], "Nur")
    outside.sync()
    strict.doveadm("acl", "set", "-u", outside.client.user, "Nur", "owner", "lookup", "read")
    before = outside.there()
    outside.relabel(outside.find(1, "Nur"), "F")
    outside.find(2, "Nur").unlink()
    outside.write(letter(4), "Nur")
    outside.sync()
    assert outside.there() == before
    assert outside.numbers(outside.here(), "Nur") == [1, 3, 4]
    assert outside.counts() == {}
    assert outside.numbers(outside.here(), "Nur") == [1, 3, 4]


# -- whichever extensions the server has


EVERYTHING = (
    "QRESYNC CONDSTORE MOVE UIDPLUS LIST-STATUS LITERAL+ MULTIAPPEND NOTIFY ENABLE ESEARCH SPECIAL-USE LIST-EXTENDED"
)


@pytest.mark.parametrize("lacking", ["QRESYNC", "CONDSTORE", "MOVE", "UIDPLUS", "LIST-STATUS", "everything"])
@pytest.mark.long
def test_the_same_without(client: Client, lacking: str) -> None:
    names = {"CONDSTORE": "QRESYNC CONDSTORE", "everything": EVERYTHING}.get(lacking, lacking).split()
    client.settings = f'disable_extensions = {json.dumps(names)}\nremote_delete = "expunge"'
    outside = Outside(client)
    both_have(outside, 12)
    changed_everywhere(outside)
    for _ in range(2):
        outside.sync()
    outside.settled()
    assert outside.numbers(outside.here()) == [1, 2, 3, 4, 9, 10, 20, 21, 22]
    assert Counter(outside.numbers(outside.here(), "Archive")) == Counter([7, 8, 23, 50, 51])
