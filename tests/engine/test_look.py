"""Looking at a mailbox on this disk after its list of keywords changed: what letters mean, and what that costs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from maild.core.model import Flags, Key, MailboxName, Pair, Uid
from maild.engine import visits
from maild.engine.look import Look, look_at, look_if_changed, open_mailbox
from maild.local import scan
from maild.local.maildir import Maildir
from maild.local.state import Changes, Orphan, State
from maild.remote.imap.remote import ImapRemote
from tests.engine.world import World, message

KINDS: list[tuple[str, Flags]] = [
    ("", frozenset()),
    (":2,S", frozenset({"\\Seen"})),
    (":2,Sa", frozenset({"\\Seen", "one"})),
    (":2,b", frozenset({"two"})),
]
MANY = 400


class Box:
    """A mailbox of `MANY` messages, of each kind as many, known to the state; message n is of kind n modulo 4."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "Mail"
        self.top = self.root / "INBOX"
        Maildir.create(self.root, PurePosixPath("INBOX")).close()
        self.list_keywords("one", "two")
        self.state = State.open(directory / "state.sqlite")
        self._id = self.state.add_mailbox(MailboxName("INBOX"), "INBOX").id
        pairs = []
        for n in range(MANY):
            info, flags = KINDS[n % len(KINDS)]
            pairs.append(Pair(Uid(str(n + 1)), self.key(n), flags, 5, bytes(16), "", info))
            self.path(n).write_bytes(b"x")
        self.state.apply([Changes(self._id, add=pairs)])
        for subdir in ("new", "cur"):
            os.utime(self.top / subdir, (1, 1))
        assert not self.look().has_news

    def key(self, n: int) -> Key:
        return Key(f"{1_700_000_000 + n}.host")

    def path(self, n: int) -> Path:
        info, _ = KINDS[n % len(KINDS)]
        return self.top / ("cur" if info else "new") / (self.key(n) + info)

    def list_keywords(self, *keywords: str) -> None:
        (self.top / "dovecot-keywords").write_text("".join(f"{n} {word}\n" for n, word in enumerate(keywords)))

    def look_if_changed(self) -> Look:
        """As a pass begins."""
        (row,) = self.state.mailboxes().values()
        maildir = open_mailbox(self.root, row)
        assert maildir is not None
        with maildir:
            return look_if_changed(self.state, row, maildir)

    def look(self) -> Look:
        """One look, whose stamp is stored."""
        (row,) = self.state.mailboxes().values()
        maildir = open_mailbox(self.root, row)
        assert maildir is not None
        with maildir:
            look = look_at(self.state, row, maildir)
        self.state.set_stamp(row.id, look.stamp)
        return look


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.state.close()


def changes(look: Look) -> dict[int, Flags]:
    return {int(uid) - 1: mine for uid, (_, mine) in look.news.changed.items()}


def test_a_new_keyword_changes_nothing_and_costs_no_look_at_each_file(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.list_keywords("one", "two", "three")
    looked_at: list[object] = []
    stat = os.stat

    def counted(*args: Any, **kwargs: Any) -> os.stat_result:
        looked_at.append(args)
        return stat(*args, **kwargs)

    monkeypatch.setattr(os, "stat", counted)
    assert not box.look().has_news
    assert len(looked_at) < MANY / 10


def test_letters_that_mean_something_else_are_changed_flags(box: Box) -> None:
    box.list_keywords("uno", "two")
    look = box.look()
    assert changes(look) == {n: frozenset({"\\Seen", "uno"}) for n in range(2, MANY, 4)}
    assert look.seen.keys() == {box.key(n) for n in range(2, MANY, 4)}
    assert look.news.gone == {}
    assert look.unpaired == {}


def test_a_keyword_that_got_a_letter_elsewhere_is_not_on_files_without_it(box: Box) -> None:
    """Its pair had it all the same, while the letters were used up."""
    full = ["one", "two", *(f"k{n}" for n in range(24))]
    box.list_keywords(*full)
    assert not box.look().has_news
    (row,) = box.state.mailboxes().values()
    box.state.apply([Changes(row.id, flags=[(Uid("1"), frozenset({"late"}), "")])])
    box.list_keywords(*full[:-1], "zz")
    assert not box.look().has_news, "no file name here can carry it"
    box.list_keywords(*full[:-1], "late")
    assert changes(box.look()) == {0: frozenset()}


def test_files_that_moved_and_went_meanwhile(box: Box) -> None:
    box.list_keywords("uno", "two")
    box.path(2).unlink()
    box.path(1).unlink()
    box.path(6).rename(box.top / "cur" / f"{box.key(6)}:2,FSa")
    box.path(0).rename(box.top / "cur" / f"{box.key(0)}:2,F")
    look = box.look()
    assert {int(uid) - 1 for uid in look.news.gone} == {1, 2}
    found = changes(look)
    assert found.pop(6) == {"\\Seen", "\\Flagged", "uno"}
    assert found.pop(0) == {"\\Flagged"}
    assert found == {n: frozenset({"\\Seen", "uno"}) for n in range(10, MANY, 4)}


def test_a_file_renamed_while_it_is_looked_at_is_not_gone(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.list_keywords("uno", "two")
    differences = scan.differences

    def then_a_reader(*args: Any) -> Any:
        found = differences(*args)
        box.path(2).rename(box.top / "cur" / f"{box.key(2)}:2,FSa")
        box.path(6).unlink()
        return found

    monkeypatch.setattr("maild.local.maildir.differences", then_a_reader)
    look = box.look()
    assert look.news.gone == {}, "what went just now is for the next look"
    assert changes(look)[2] == {"\\Seen", "\\Flagged", "uno"}
    assert look.stamp is None
    monkeypatch.undo()
    assert {int(uid) - 1 for uid in box.look().news.gone} == {6}


# -- not looking


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Which `cur` and `new` were read."""
    read: list[object] = []

    def counting(function: Any) -> Any:
        def counted(where: Any) -> Any:
            place = Path(f"/proc/self/fd/{where}").readlink() if isinstance(where, int) else Path(where)
            if place.name in {"cur", "new"}:
                read.append(place)
            return function(where)

        return counted

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, counting(getattr(os, name)))
    return read


def test_no_name_is_read_where_nothing_changed(box: Box, listings: list[object]) -> None:
    assert not box.look_if_changed().has_news
    assert listings == []


def test_a_file_that_changed_is_found(box: Box, listings: list[object]) -> None:
    box.path(1).unlink()
    assert box.look_if_changed().news.gone.keys() == {Uid("2")}
    assert listings


def test_a_file_that_lost_its_pair_is_found_though_the_directory_is_as_it_was(box: Box) -> None:
    """A pass that deletes it was killed in between, after its note or, long ago, without one."""
    (row,) = box.state.mailboxes().values()
    orphan = Orphan(box.key(1), frozenset({"\\Seen"}), 5, bytes(16), "unsure")
    box.state.make_unsure(row.id, [orphan], [(row.id, Uid("2"))])
    assert box.look_if_changed().unpaired.keys() == {box.key(1)}
    box.state.drop_orphans(row.id, [box.key(1)])
    box.state.apply([Changes(row.id, drop=[Uid("3")])])
    assert box.look_if_changed().unpaired.keys() == {box.key(1), box.key(2)}


def test_an_orphan_alone_is_reason_to_look(box: Box, listings: list[object]) -> None:
    (row,) = box.state.mailboxes().values()
    box.state.apply([Changes(row.id, sent=[Orphan(Key("elsewhere"), frozenset(), 5, bytes(16), "sent")])])
    assert not box.look_if_changed().has_news
    assert listings


def test_what_a_look_found_is_looked_at_again(box: Box) -> None:
    """That pass left it as it was, so that the stamp is the same: a file that is not sent, for one."""
    (box.top / "new" / "stranger").write_bytes(b"x")
    os.utime(box.top / "new", (2, 2))
    look = box.look()
    (row,) = box.state.mailboxes().values()
    box.state.finish(row.id, None, None, MANY, 1.0, stamp=look.stamp, matched=not look.has_news)
    assert box.look_if_changed().unpaired.keys() == {"stranger"}


async def test_a_pass_with_news_of_the_server_alone_reads_no_names(world: World, listings: list[object]) -> None:
    world.deliver(4)
    for _ in range(2):
        await world.sync()
    for subdir in ("new", "cur"):
        os.utime(world.root / "INBOX" / subdir, (1, 1))
    await world.sync()
    world.store.set_flags("INBOX", 1, add=["\\Flagged"])
    world.store.expunge("INBOX", [2])
    world.deliver(1, start=5)
    listings.clear()
    report = await world.sync()
    assert (report.total("pulled"), report.total("flags"), report.total("deleted")) == (1, 1, 1)
    assert listings == []
    world.assert_equal("INBOX")


async def test_a_mailbox_that_changed_here_is_asked_for_before_its_names_are_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that takes longer than LIST: else its changes would wait for one more round trip."""
    monkeypatch.setattr(visits, "SLOW_MESSAGES", 2)
    world.deliver(2)
    await world.synced()
    world.relabel(world.one(1), "F")
    steps: list[str] = []

    def noted(step: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            steps.append(step)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(ImapRemote, "expect", noted("expect", ImapRemote.expect))
    monkeypatch.setattr(visits, "look_at", noted("look", look_at))
    report = await world.sync()
    assert (report.total("flags_there"), steps[:2]) == (
        1,
        ["expect", "look"],
    )  # and perhaps "expect", once LIST is sent
    monkeypatch.setattr(visits, "SLOW_MESSAGES", 3)
    world.relabel(world.one(1), "")
    steps.clear()
    report = await world.sync()
    assert (report.total("flags_there"), steps[:2]) == (1, ["look", "expect"]), "it may be as it was: nothing is opened"


async def test_a_few_new_messages_come_with_the_first_look(world: World) -> None:
    """LIST counts them; SELECT, and what is new, is the second round trip. There is no third."""
    world.deliver(2)
    await world.synced()
    await world.settled()
    world.deliver(1, start=3)
    world.commands()
    assert (await world.synced()).total("pulled") == 1
    sent = [command for command in world.commands() if "SELECT" in command or "FETCH" in command]
    assert [" BODY.PEEK[]<0." in command for command in sent] == [False, False, True], sent
    world.assert_equal("INBOX")
    await world.settled()


async def test_no_body_comes_with_a_look_that_finds_other_news(world: World) -> None:
    """Neither what changed, nor what this side has sent itself."""
    world.deliver(2)
    await world.synced()
    world.write_foreign(3, message(3))
    assert (await world.synced()).total("pushed") == 1
    world.store.set_flags("INBOX", 1, add=["\\Flagged"])
    world.commands()
    assert (await world.synced()).total("flags") == 1
    assert not any("BODY.PEEK[]" in command for command in world.commands())
