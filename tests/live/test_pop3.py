"""POP3 against a real Dovecot: every message once and only once, and only what is due is deleted there."""

from __future__ import annotations

import json
import poplib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from tests.bench import corpus
from tests.live.client import Client
from tests.live.conftest import started
from tests.live.test_pull import imported
from tests.live.test_trouble import killed_after
from tests.servers.dovecot import Dovecot
from tests.servers.proxy import FaultProxy

pytestmark = pytest.mark.live

DAY_S = 86_400


class PopClient(Client):
    """An account with a pop3 section."""

    def argv(self, *arguments: str) -> list[str]:
        self.port = self.port or self.server.pop3_port
        command = super().argv(*arguments)
        config = self.directory / "maild.toml"
        config.write_text(config.read_text().replace("[accounts.work.imap]", "[accounts.work.pop3]"))
        return command

    def counts(self) -> dict[str, int]:
        """A poll that goes well, by its JSON."""
        ran = self.run("sync", "--json")
        assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr + ran.stdout
        return dict(json.loads(ran.stdout)["accounts"]["work"])

    def on_server(self) -> Counter[bytes]:
        """What is in the maildrop, read over IMAP, in disk form."""
        session = self.server.connect(self.user)
        session.select("INBOX", readonly=True)
        _, found = session.fetch("1:*", "(BODY.PEEK[])") if session.search(None, "ALL")[1][0] else ("", [])
        session.logout()
        raws = [part[1] for part in found if isinstance(part, tuple)]
        return Counter(raw.replace(b"\r\n", b"\n") for raw in raws)

    def age(self, seconds: int) -> None:
        """Move everything that was seen so far into the past, as if the clock had moved on."""
        with closing(sqlite3.connect(self.state_dir / "work.sqlite")) as database, database:
            database.execute("UPDATE maildrop SET first_seen_s = first_seen_s - ?", (seconds,))


@pytest.fixture(scope="module")
def pop3_server() -> Iterator[Dovecot]:
    with started(pop3=True) as server:
        yield server


@pytest.fixture
def pop(pop3_server: Dovecot, tmp_path: Path, request: pytest.FixtureRequest) -> PopClient:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return PopClient(tmp_path, pop3_server, name[:60].strip("-").lower())


def filled(pop: PopClient, count: int, start: int = 0) -> Counter[bytes]:
    """Real mail in the maildrop; what must lie in the Maildir in the end."""
    messages = list(corpus.mail(start + count))[start:]
    pop.server.import_messages(pop.user, "INBOX", [one.imported() for one in messages])
    return Counter(one.disk_form() for one in messages)


def test_five_hundred_messages_over_ten_polls(pop: PopClient) -> None:
    """Every octet, also where a message has no line end at its end."""
    expected: Counter[bytes] = Counter()
    for n in range(10):
        expected += filled(pop, 50, 50 * n)
        assert pop.counts()["pulled"] == 50
        assert pop.everything() == expected
    assert pop.sync().startswith("work: nothing new")
    assert pop.on_server() == expected


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_tls(pop: PopClient, tls: str) -> None:
    expected = filled(pop, 30)
    pop.tls, pop.host = tls, "localhost"
    pop.port = pop.server.pop3s_port if tls == "implicit" else pop.server.pop3_port
    pop.settings = f'ca_file = "{pop.server.ca_file}"'
    assert pop.counts()["pulled"] == 30
    assert pop.everything() == expected
    assert pop.sync().startswith("work: nothing new")


def test_stls_against_a_certificate_nobody_trusts(pop: PopClient) -> None:
    pop.tls, pop.host = "starttls", "localhost"
    assert "unknown" in pop.fail()


def test_nothing_left_on_the_server(pop: PopClient) -> None:
    expected = filled(pop, 40)
    pop.settings = "leave_on_server = false"
    counts = pop.counts()
    assert (counts["pulled"], counts["deleted"]) == (40, 40)
    assert pop.on_server() == Counter()
    assert pop.sync().startswith("work: nothing new")
    assert pop.everything() == expected


def test_ageing(pop: PopClient) -> None:
    first = filled(pop, 10)
    pop.settings = 'leave_on_server = "14d"'
    pop.counts()
    pop.age(14 * DAY_S - 3600)
    second = filled(pop, 5, 10)
    assert pop.counts()["deleted"] == 0
    pop.age(3600)
    assert pop.counts()["deleted"] == 10
    assert pop.on_server() == second
    assert pop.everything() == first + second


def test_deleting_with_the_local_file(pop: PopClient) -> None:
    expected = filled(pop, 8)
    pop.settings = "delete_with_local = true"
    pop.counts()
    gone, moved = sorted(pop.files())[:2]
    expected_there = expected - Counter([gone.read_bytes()])
    gone.unlink()
    for subdir in ("cur", "new", "tmp"):
        (pop.maildir / "Archive" / subdir).mkdir(parents=True)
    moved.rename(pop.maildir / "Archive" / "cur" / f"{moved.name}:2,S")
    assert pop.counts()["deleted"] == 1
    assert pop.on_server() == expected_there == pop.everything()


def test_a_file_that_was_removed_or_moved_does_not_come_back(pop: PopClient) -> None:
    """Nor does one that a reader marked, copied under another name, or put into a mailbox of its own."""
    expected = filled(pop, 8)
    pop.counts()
    gone, moved, copied, marked = sorted(pop.files())[:4]
    content_gone = gone.read_bytes()
    gone.unlink()
    for subdir in ("cur", "new", "tmp"):
        (pop.maildir / "Lists" / "python" / subdir).mkdir(parents=True)
    moved.rename(pop.maildir / "Lists" / "python" / "cur" / f"{moved.name}:2,S")
    (pop.maildir / "Lists" / "python" / "new" / "1700000000.other").write_bytes(copied.read_bytes())
    copied.unlink()
    marked.rename(marked.parent.with_name("cur") / f"{marked.name}:2,FS")
    for _ in range(3):
        assert pop.sync().startswith("work: nothing new")
    assert pop.everything() == expected - Counter([content_gone])
    assert pop.on_server() == expected


def test_what_is_too_big_is_in_the_status(pop: PopClient) -> None:
    expected = filled(pop, 12)
    limit = sorted(map(len, expected))[-3]
    pop.settings = f'max_message_size = "{limit // 1024}K"'
    counts = pop.counts()
    assert (counts["pulled"], counts["skipped"]) == (9, 3)
    told = json.loads(pop.run("status", "--json").stdout)["accounts"]["work"]["mailboxes"]["INBOX"]
    assert (told["state"], len(told["skipped"])) == ("ok", 3)
    assert all("max_message_size" in skipped["reason"] for skipped in told["skipped"])
    pop.settings = ""
    counts = pop.counts()
    assert (counts["pulled"], counts["skipped"]) == (3, 0)
    assert pop.everything() == expected
    assert json.loads(pop.run("status", "--json").stdout)["accounts"]["work"]["mailboxes"]["INBOX"]["skipped"] == []


def test_all_unique_ids_change(tmp_path: Path) -> None:
    """The provider has moved: hardly anything is fetched, nothing doubled, and for a day nothing deleted."""
    settings = "protocol pop3 {{\n  pop3_uidl_format = {}\n}}"
    with started(pop3=True, settings=settings.format("%08Xu%08Xv")) as before:
        pop = PopClient(tmp_path, before, "jo")
        expected = filled(pop, 40)
        pop.counts()
        with started(pop3=True, settings=settings.format("%g"), mail_root=before.mail_root) as after:
            pop.server = after
            pop.settings = 'leave_on_server = "14d"'
            pop.age(15 * DAY_S)
            with FaultProxy(after.pop3_port) as proxy:
                pop.port = proxy.port
                assert "other unique-ids" in pop.fail()
                fetched = proxy.stats().octets_to_client
            pop.port = after.pop3_port
            assert fetched < sum(map(len, expected)) / 4  # headers only
            assert pop.everything() == expected
            assert "other unique-ids" in pop.fail()
            assert pop.on_server() == expected
            assert pop.run("approve", "work/INBOX").returncode == 0
            assert pop.counts()["deleted"] == 40
            assert (pop.on_server(), pop.everything()) == (Counter(), expected)


def test_the_guard(pop: PopClient) -> None:
    expected = filled(pop, 30)
    pop.settings = "delete_with_local = true"
    pop.counts()
    for path in pop.files():
        path.unlink()
    assert "30 of 30 messages are gone here" in pop.fail()
    assert pop.on_server() == expected


def test_killed_at_any_moment(pop: PopClient) -> None:
    """Whatever the policy, nothing is lost, nothing is doubled."""
    expected = filled(pop, 400)
    pop.settings = "leave_on_server = false"
    random = Random(4711)
    with FaultProxy(pop.server.pop3_port) as proxy:
        pop.port = proxy.port
        total = sum(map(len, expected))
        for _ in range(10):
            killed_after(pop, proxy, random.randrange(1, total // 8))
        pop.sync()
    assert pop.everything() == expected
    assert pop.on_server() == Counter()


def test_the_line_is_cut_at_any_octet(pop: PopClient) -> None:
    """Among the answers to the messages, the deletions and QUIT."""
    expected = filled(pop, 60)
    pop.settings = "leave_on_server = false"
    random = Random(7)
    with FaultProxy(pop.server.pop3_port, record=True) as proxy:
        pop.port = proxy.port
        for _ in range(6):
            proxy.cut_after(random.randrange(1, 300_000), reset=True)
            pop.run()
        for left in (0, 20, 1):
            filled_again = filled(pop, 5, 500 + left)
            expected += filled_again
            size = sum(len(raw) for raw in filled_again)
            proxy.cut_after(size + 400 + left)
            pop.run()
        proxy.cut()
        pop.run()
        pop.sync()
    assert pop.everything() == expected
    assert pop.on_server() == Counter()


def test_a_maildrop_in_use(tmp_path: Path) -> None:
    with started(pop3=True, settings="pop3_lock_session = yes\nmaildir_very_dirty_syncs = no") as server:
        pop = PopClient(tmp_path, server, "jo")
        expected = filled(pop, 3)
        other = poplib.POP3(server.host, server.pop3_port)
        other.user("jo")
        other.pass_(server.password)
        assert "another program has this maildrop open" in pop.fail()
        other.quit()
        pop.sync()
        assert pop.everything() == expected


def test_a_wrong_password(pop: PopClient) -> None:
    pop.password = "not the right one"
    assert "check user and password" in pop.fail()


def test_the_state_is_lost(pop: PopClient) -> None:
    expected = filled(pop, 60)
    pop.sync()
    for path in pop.state_dir.iterdir():
        path.unlink()
    counts = pop.counts()
    assert (counts["pulled"], counts["adopted"]) == (0, 60)
    assert pop.everything() == expected


def test_six_round_trips_where_nothing_is_new(pop: PopClient) -> None:
    """Also for 10,000 messages."""
    pop.server.import_messages(pop.user, "INBOX", [imported(n) for n in range(10_000)])
    assert pop.counts()["pulled"] == 10_000
    with FaultProxy(pop.server.pop3_port) as proxy:
        pop.port = proxy.port
        assert pop.sync().startswith("work: nothing new")
        stats = proxy.stats()
    assert stats.turns_to_server <= 4, stats  # the fifth and sixth are those of TCP
