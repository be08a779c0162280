"""Contract 5 and the accidents of contract 3 and 4, from outside: nothing is deleted that nobody wanted deleted."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable

import pytest

from tests.live.client import Client
from tests.live.outside import Outside, letter, wire
from tests.servers.proxy import FaultProxy

pytestmark = pytest.mark.live


@pytest.fixture
def outside(client: Client) -> Outside:
    client.settings = 'remote_delete = "expunge"'
    return Outside(client)


def approve(outside: Outside, mailbox: str = "INBOX", status: int = 0) -> None:
    ran = outside.client.run("approve", f"work/{mailbox}")
    assert ran.returncode == status, ran.stdout + ran.stderr


def remove_here(outside: Outside, numbers: Iterable[int]) -> None:
    for n in numbers:
        outside.find(n).unlink()


def remove_there(outside: Outside, numbers: Iterable[int]) -> None:
    outside.expunge(numbers)


Removal = Callable[[Outside, Iterable[int]], None]


@pytest.mark.parametrize("remove", [remove_here, remove_there])
@pytest.mark.parametrize(
    ("messages", "gone"),
    [
        (10, 10),
        pytest.param(40, 21, marks=pytest.mark.long),
        pytest.param(9, 9, marks=pytest.mark.long),
        pytest.param(40, 20, marks=pytest.mark.long),
    ],
)
def test_the_guard(outside: Outside, remove: Removal, messages: int, gone: int) -> None:
    """Refused, told in status with the counts; everything else goes on; approve releases that one plan."""
    outside.fill(range(1, messages + 1))
    outside.fill([100], "Andere")
    outside.sync()
    remove(outside, range(1, gone + 1))
    if gone < 10 or gone == 20:
        assert outside.counts() == {"deleted": gone}
        outside.settled()
        return
    outside.deliver(letter(200))
    outside.write(letter(201))
    outside.expunge([100], "Andere")
    told = outside.sync(status=1)
    assert (told["refused"], told["pulled"], told["pushed"], told["deleted"]) == (gone, 1, 1, 1)
    assert str(gone) in told["error"]
    assert str(messages) in told["error"]
    kept = outside.there() if remove is remove_here else outside.here()
    assert outside.numbers(kept) == [*range(1, messages + 1), 200, 201]
    inbox = outside.status()["mailboxes"]["INBOX"]
    assert inbox["state"] == "refused"
    assert str(gone) in str(inbox["refused"])
    assert outside.sync(status=1)["refused"] == gone
    approve(outside)
    assert outside.counts() == {"deleted": gone}
    outside.settled()
    assert outside.status()["mailboxes"]["INBOX"]["state"] == "ok"
    approve(outside, status=1)
    if messages == 10:
        outside.fill(range(300, 310))
        outside.sync()
        remove(outside, [*range(300, 310), 200, 201])
        assert outside.sync(status=1)["refused"] == 12, "the next plan is another"


def test_a_limit_of_ones_own(outside: Outside) -> None:
    outside.extra = 'max_deletions = "90%"'
    outside.fill(range(40))
    outside.sync()
    remove_here(outside, range(30))
    assert outside.counts() == {"deleted": 30}


def root_gone(outside: Outside) -> None:
    outside.root.rename(outside.client.directory / "away")


def root_empty(outside: Outside) -> None:
    root_gone(outside)
    outside.root.mkdir()


def root_dangling(outside: Outside) -> None:
    root_gone(outside)
    outside.root.symlink_to(outside.client.directory / "not-mounted")


def marker_gone(outside: Outside) -> None:
    shutil.copytree(outside.root, outside.client.directory / "away")
    (outside.root / ".maild").unlink()


@pytest.mark.parametrize("accident", [root_gone, root_empty, root_dangling, marker_gone])
def test_a_maildir_that_is_not_there(outside: Outside, accident: Callable[[Outside], None]) -> None:
    outside.fill([1, 2, 3])
    outside.sync()
    accident(outside)
    before = outside.there()
    for _ in range(2):
        told = outside.sync(status=1)
        assert str(outside.root) in told["error"]
        assert told["deleted"] == told["pulled"] == told["pushed"] == 0
    assert outside.there() == before
    assert outside.status()["error"]
    if outside.root.is_symlink() or not outside.root.exists():
        outside.root.unlink(missing_ok=True)
    else:
        shutil.rmtree(outside.root)
    (outside.client.directory / "away").rename(outside.root)
    assert outside.counts() == {}
    outside.settled()


def test_a_mailbox_directory_that_is_gone(outside: Outside) -> None:
    outside.fill([1, 2])
    outside.fill([50, 51], "Liste")
    outside.sync()
    shutil.rmtree(outside.where("Liste"))
    outside.deliver(letter(3))
    told = outside.sync(status=1)
    assert told["pulled"] == 1
    assert told["deleted"] == 0
    assert outside.numbers(outside.there(), "Liste") == [50, 51]
    assert outside.status()["mailboxes"]["Liste"]["state"] == "refused"
    approve(outside, "Liste")
    outside.sync()
    assert "Liste" not in outside.there()
    outside.settled()


@pytest.mark.parametrize("part", ["cur", "new"])
@pytest.mark.long
def test_half_a_mailbox_directory(outside: Outside, part: str) -> None:
    outside.fill([1, 2], flags=["\\Seen"] if part == "cur" else [])
    outside.sync()
    shutil.rmtree(outside.where("INBOX") / part)
    before = outside.there()
    outside.sync(status=1)
    assert outside.there() == before


@pytest.mark.long
def test_a_mailbox_directory_that_is_a_dangling_symlink(outside: Outside) -> None:
    outside.fill([1, 2], "Archive")
    outside.sync()
    outside.where("Archive").rename(outside.client.directory / "disk")
    outside.where("Archive").symlink_to(outside.client.directory / "not-mounted")
    before = outside.there()
    for _ in range(2):
        outside.sync(status=1)
        assert outside.there() == before
        assert outside.where("Archive").is_symlink()


@pytest.mark.long
def test_a_directory_that_cannot_be_read(outside: Outside) -> None:
    outside.fill([1, 2], "Archive")
    outside.sync()
    cur = outside.where("Archive") / "new"
    shutil.rmtree(cur)
    cur.write_text("a file")
    before = outside.there()
    outside.sync(status=1)
    assert outside.there() == before


def test_an_emptied_server(outside: Outside) -> None:
    outside.fill(range(12))
    outside.fill(range(50, 70), "Archive")
    outside.sync()
    outside.expunge(range(12))
    outside.expunge(range(50, 70), "Archive")
    told = outside.sync(status=1)
    assert (told["refused"], told["deleted"]) == (32, 0)
    assert outside.numbers(outside.here()) == [*range(12)]
    approve(outside, "")
    assert outside.counts() == {"deleted": 32}


def test_a_server_that_lost_its_mailboxes(outside: Outside) -> None:
    for name in ("A", "B", "C", "D"):
        outside.fill([1, 2], name)
    outside.sync()
    for name in ("A", "B", "C"):
        outside.command("delete", name)
    outside.sync(status=1)
    assert {"A", "B", "C", "D", "INBOX"} == outside.here().keys()
    assert set(outside.there()) == {"D", "INBOX"}


def test_an_old_maildir_from_a_backup(outside: Outside) -> None:
    """Older than the state: matched by content, nothing is deleted because of it."""
    outside.fill(range(12))
    outside.sync()
    backup = outside.client.directory / "backup"
    subprocess.run(["cp", "-a", str(outside.root), str(backup)], check=True)
    outside.fill(range(20, 25))
    outside.sync()
    outside.expunge([0, 1])
    outside.store(2, "+FLAGS", "\\Seen")
    outside.sync()
    shutil.rmtree(outside.root)
    backup.rename(outside.root)
    told = outside.sync()
    assert (told["deleted"], told["refused"]) == (0, 0)
    outside.sync()
    outside.settled()
    assert outside.numbers(outside.here()) == [*range(12), *range(20, 25)]


def test_an_old_state_from_a_backup(outside: Outside) -> None:
    outside.fill(range(12))
    outside.sync()
    backup = outside.client.directory / "backup"
    shutil.copytree(outside.client.state_dir, backup)
    outside.fill(range(20, 25))
    outside.expunge([0])
    outside.relabel(outside.find(2), "F")
    outside.sync()
    outside.write(letter(30))
    outside.find(21).unlink()
    outside.sync()
    shutil.rmtree(outside.client.state_dir)
    backup.rename(outside.client.state_dir)
    told = outside.sync()
    assert (told["deleted"], told["refused"], told["pulled"], told["pushed"]) == (0, 0, 0, 0)
    outside.settled()
    assert outside.numbers(outside.here()) == [*range(1, 12), 20, *range(22, 25), 30]


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.long)])
def test_killed_while_both_sides_change(outside: Outside, kills: int) -> None:
    """After each kill the next pass goes on; in the end everything is there once."""
    outside.fill(range(60))
    outside.sync()
    wanted = set(range(60))
    gone = set()
    for n in range(kills):
        new_here, new_there = range(1000 + 40 * n, 1020 + 40 * n), range(1020 + 40 * n, 1040 + 40 * n)
        for m in new_here:
            outside.write(letter(m, octets=3000))
        outside.fill(new_there)
        wanted.update(new_here, new_there)
        if n < 25:
            outside.find(2 * n).unlink()
            outside.expunge([2 * n + 1])
            gone.update((2 * n, 2 * n + 1))
        with FaultProxy(outside.client.server.imap_port) as proxy:
            outside.client.port = proxy.port
            goal = 2000 + 3500 * (n * 7 % 20)
            with outside.client.start() as process:
                proxy.wait_for(
                    lambda p, goal=goal, process=process: (  # type: ignore[misc]
                        p.stats().octets_to_server + p.stats().octets_to_client > goal or process.poll() is not None
                    ),
                    30,
                )
                process.kill()
                process.communicate()
        outside.client.port = 0
    for _ in range(2):
        outside.sync()
    outside.settled()
    assert outside.numbers(outside.here()) == sorted(wanted - gone)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.long
def test_a_full_disk_deletes_nothing(outside: Outside) -> None:
    """Maildir and state on one small disk: nothing is lost, and all goes on once there is room."""
    disk = outside.client.directory / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    try:
        (disk / "Mail").mkdir()
        outside.client.maildir = disk / "Mail"
        outside.fill(range(20))
        outside.sync()
        outside.client.server.import_messages(
            outside.client.user,
            "INBOX",
            [(wire(letter(n, octets=20_000)), (), None) for n in range(100, 220)],
        )
        outside.relabel(outside.find(1), "F")
        outside.find(2).unlink()
        told = outside.sync(status=1)
        assert "No space left" in told["error"]
        assert set(outside.numbers(outside.there())) >= {*range(3, 20), *range(100, 220)}
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        outside.sync()
        outside.settled()
        assert outside.numbers(outside.here()) == [0, 1, *range(3, 20), *range(100, 220)]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
