"""Messages bigger than `max_message_size` do not come; a file that is here is theirs all the same, and is sent once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.test_untold import killed_before_a_pair, pairs, prepared
from tests.engine.twin import Twin

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["changes", "full"])
def twin(quick_path: Path, request: pytest.FixtureRequest) -> Twin:
    twin = prepared(Twin(quick_path, settings={"way": request.param}))
    twin.configure(max_message_size_octets=300)
    return twin


def big(twin: Twin) -> bytes:
    return twin.body(1) + b"x" * 400 + b"\n"


async def settled(twin: Twin, mailbox: str) -> None:
    """The big message is there on both sides and nowhere else, message 2 in INBOX, and nothing more happens."""
    await twin.synced()
    twin.assert_equal()
    assert [shown.raw for shown in twin.there(mailbox)] == [big(twin)]
    assert sum(len(twin.there(name)) for name in twin.store.names) == 2
    await twin.synced()
    await twin.quiet()
    assert pairs(twin, mailbox) == 1


@pytest.fixture(params=["killed", "appended"])
async def untold(twin: Twin, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Twin:
    """The big message is in Archive on both sides, and no pair knows it."""
    twin.settings["tells_uids"] = request.param == "killed"
    twin.deliver(2)
    await twin.synced()
    twin.write(1, "Archive", raw=big(twin))
    if request.param == "killed":
        await killed_before_a_pair(twin, monkeypatch)
    else:
        await twin.synced()
    assert len(twin.there("Archive")) == len(twin.files("Archive")) == 1
    return twin


async def test_nothing_moves(untold: Twin) -> None:
    await untold.synced()
    assert untold.remote.journal == untold.remote.fetched == []
    await settled(untold, "Archive")


async def test_it_moves_on_on_the_server(untold: Twin) -> None:
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    await untold.synced()
    assert untold.remote.journal == []
    await settled(untold, "Work")


async def test_the_reader_moves_it_on(untold: Twin) -> None:
    untold.move(untold.one(1, "Archive"), "Work")
    await untold.synced()
    (change,) = untold.remote.journal
    assert change.startswith("move Archive ")
    await settled(untold, "Work")


async def test_it_was_left_there_before(untold: Twin) -> None:
    """A pass that saw its new mailbox alone did not wait: it does not fetch such a message anyway."""
    untold.store.move("Archive", [untold.uid(1, "Archive")], "Work")
    await untold.sync(only=["Work"])
    assert untold.files("Work") == []
    for _ in range(2):
        await untold.synced()
        assert untold.remote.journal == []
    await settled(untold, "Work")


@pytest.mark.parametrize("message_ids", [True, False])
async def test_the_state_is_lost(twin: Twin, message_ids: bool) -> None:
    """Without a Message-ID only its content tells."""
    twin.message_ids = message_ids
    twin.configure(max_message_size_octets=1000)
    twin.deliver(2)
    twin.deliver(1, "Archive", raw=big(twin))
    await twin.synced()
    twin.configure(max_message_size_octets=300)
    (twin.state_dir / "work.sqlite").unlink()
    await twin.synced()
    assert twin.remote.journal == []
    assert len(twin.remote.fetched) == (0 if message_ids else 2)
    await settled(twin, "Archive")


async def test_it_was_left_there_and_is_put_here_by_hand(twin: Twin) -> None:
    twin.deliver(2)
    twin.deliver(1, "Archive", ["\\Seen"], raw=big(twin))
    await twin.synced()
    assert twin.files("Archive") == []
    twin.write(1, "Archive", "S", raw=big(twin))
    for _ in range(2):
        await twin.synced()
        assert twin.remote.journal == []
    await settled(twin, "Archive")


async def test_one_with_a_pair_moves_on_the_server(twin: Twin) -> None:
    """Its file follows, though the limit has been lowered since."""
    twin.configure(max_message_size_octets=1000)
    twin.deliver(2)
    twin.deliver(1, "Archive", raw=big(twin))
    await twin.synced()
    twin.configure(max_message_size_octets=300)
    twin.store.move("Archive", [twin.uid(1, "Archive")], "Work")
    await settled(twin, "Work")


@pytest.mark.parametrize("message_ids", [True, False])
async def test_one_of_its_size_is_another(twin: Twin, message_ids: bool) -> None:
    """It is sent, and the other is left there."""
    twin.message_ids = message_ids
    twin.deliver(2)
    twin.deliver(1, "Archive", raw=big(twin).replace(b"Hallo", b"Hullo").replace(b"m1@", b"m9@"))
    await twin.synced()
    twin.write(1, "Archive", raw=big(twin))
    for _ in range(2):
        report = await twin.synced()
    assert len(twin.there("Archive")) == 2
    assert len(twin.files("Archive")) == 1
    assert report.mailboxes["Archive"].skipped == 1


async def test_a_dry_run_tells_the_same(untold: Twin) -> None:
    report = await untold.sync(dry_run=True)
    assert report.mailboxes["Archive"].adopted == 1
    assert report.mailboxes["Archive"].pushed == 0
    await settled(untold, "Archive")


@pytest.fixture
async def paired(twin: Twin) -> Twin:
    """The big message is in Archive on both sides with a pair; the limit has been lowered since."""
    twin.configure(max_message_size_octets=1000)
    for n, mailbox in ((2, "INBOX"), (1, "Archive")):
        twin.deliver(n, mailbox, raw=big(twin) if n == 1 else None)
    await twin.synced()
    twin.configure(max_message_size_octets=300)
    return twin


@pytest.mark.parametrize("only", [["Work"], ["Archive"], ["Archive", "INBOX"]], ids="-".join)
@pytest.mark.parametrize("is_moved_here", [False, True])
async def test_one_with_a_pair_moves_on_the_server_and_a_named_pass_sees_half_of_it(
    paired: Twin, only: list[str], is_moved_here: bool
) -> None:
    """It does not come to where it is now: its file is not to go."""
    paired.store.move("Archive", [paired.uid(1, "Archive")], "Work")
    if is_moved_here:
        paired.move(paired.one(1, "Archive"), "INBOX")
    await paired.sync(only=only)
    for _ in range(3):
        await paired.synced()
    assert not any(change.startswith("append") for change in paired.remote.journal)
    await settled(paired, "Work")


@pytest.mark.parametrize("is_named", [False, True])
async def test_one_with_a_pair_is_deleted_on_the_server(paired: Twin, is_named: bool) -> None:
    """Beside another of its size that was left there: its file goes, if not at once."""
    paired.deliver(3, "Work", raw=big(paired).replace(b"m1@", b"m9@"))
    await paired.synced()
    paired.store.expunge("Archive", [paired.uid(1, "Archive")])
    await paired.sync(only=["Archive"] if is_named else ())
    for _ in range(2):
        await paired.synced()
    assert paired.files("Archive") == []
    assert paired.files("Work") == []
    assert len(paired.there("Work")) == 1
    await paired.synced()
    await paired.quiet()
