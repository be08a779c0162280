"""Messages delivered here by a pass that was killed before it noted their pairs, and which have moved on since."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import pytest

from maild.core.model import Pair
from maild.core.names import MailboxUnusable
from maild.local.delivery import Delivered, Staged
from maild.local.directory import MailboxDirectory
from maild.local.state import Changes, State
from tests.engine.twin import Twin

pytestmark = pytest.mark.anyio


class Killed(BaseException):
    """The process has ended here."""


@pytest.fixture(params=["message_id", "no_message_id"])
async def twin(quick_path: Path, request: pytest.FixtureRequest) -> Twin:
    """Message 2 is in INBOX on both sides; there are other mailboxes."""
    twin = Twin(quick_path, message_ids=request.param == "message_id")
    twin.configure(remote_delete="expunge", connections=1)
    for mailbox in ("Archive", "Work"):
        twin.store.create(mailbox)
    twin.deliver(2)
    await twin.synced()
    return twin


async def killed(twin: Twin, monkeypatch: pytest.MonkeyPatch, patch: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Message 1 comes, and the pass that delivers it ends where `patch` says."""
    twin.deliver(1, flags=["\\Flagged"])
    with monkeypatch.context() as patched, pytest.raises(BaseExceptionGroup) as caught:
        patch(patched)
        await twin.sync()
    assert caught.value.split(Killed)[0] is not None


def before_the_pair(patch: pytest.MonkeyPatch) -> None:
    original = State.apply

    def apply(self: State, changes: Iterable[Changes]) -> None:
        several = list(changes)
        if any(change.add for change in several):
            raise Killed
        original(self, several)

    patch.setattr(State, "apply", apply)


def before_the_name(patch: pytest.MonkeyPatch) -> None:
    def commit(self: Staged) -> list[Delivered]:
        raise Killed

    patch.setattr(Staged, "commit", commit)
    patch.setattr(Staged, "discard", lambda _: None)  # who is killed leaves it in `tmp`


def noted(twin: Twin) -> list[Pair]:
    state = State.open(twin.state_dir / "work.sqlite")
    try:
        return [pair for pairs in state.deliveries().values() for pair in pairs]
    finally:
        state.close()


async def settled(twin: Twin, **wanted: list[int]) -> None:
    """After one pass both sides hold these messages, and rest."""
    await twin.synced()
    twin.assert_equal()
    assert {name: sorted(shown.raw for shown in twin.there(name)) for name in twin.store.names} == {
        name: sorted(twin.body(n) for n in wanted.get(name, [])) for name in twin.store.names
    }
    await twin.synced()
    await twin.quiet()
    assert noted(twin) == []


async def left_in_tmp(twin: Twin) -> None:
    """One pass; the file that was left there is removed, which maild does once its writer has gone."""
    (left,) = (twin.where("INBOX") / "tmp").iterdir()
    await twin.synced()
    left.unlink()


async def test_it_stays(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    await killed(twin, monkeypatch, before_the_pair)
    assert [pair.key for pair in noted(twin)] == [twin.one(1).name.partition(":")[0]]
    await settled(twin, INBOX=[1, 2])
    assert twin.remote.fetched == []


@pytest.mark.parametrize("new_name", [False, True])
async def test_the_reader_moves_it(twin: Twin, monkeypatch: pytest.MonkeyPatch, new_name: bool) -> None:
    await killed(twin, monkeypatch, before_the_pair)
    twin.move(twin.one(1), "Archive", new_name=new_name)
    await twin.synced()
    (change,) = twin.remote.journal
    assert change.startswith("move INBOX ")
    await settled(twin, INBOX=[2], Archive=[1])


@pytest.mark.parametrize("new_name", [False, True])
@pytest.mark.parametrize("name", ["INBOX", "Archive"])
async def test_the_reader_moves_it_and_one_mailbox_is_asked_for(
    twin: Twin, monkeypatch: pytest.MonkeyPatch, name: str, new_name: bool
) -> None:
    await killed(twin, monkeypatch, before_the_pair)
    twin.move(twin.one(1), "Archive", new_name=new_name)
    await twin.sync(only=[name])
    assert twin.remote.journal == []
    assert len(twin.files("INBOX")) + len(twin.files("Archive")) == 2
    await settled(twin, INBOX=[2], Archive=[1])


async def test_another_client_moves_it(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    await killed(twin, monkeypatch, before_the_pair)
    twin.store.move("INBOX", [twin.uid(1)], "Archive")
    await twin.synced()
    assert twin.remote.journal == []
    await settled(twin, INBOX=[2], Archive=[1])


@pytest.mark.parametrize("new_name", [False, True])
async def test_both_move_it(twin: Twin, monkeypatch: pytest.MonkeyPatch, new_name: bool) -> None:
    """Of two moves the server's wins."""
    await killed(twin, monkeypatch, before_the_pair)
    twin.move(twin.one(1), "Work", new_name=new_name)
    twin.store.move("INBOX", [twin.uid(1)], "Archive")
    await settled(twin, INBOX=[2], Archive=[1])


async def test_another_client_deletes_it(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was known here under its Uid, and its file is there: it does not come back."""
    await killed(twin, monkeypatch, before_the_pair)
    twin.store.expunge("INBOX", [twin.uid(1)])
    await settled(twin, INBOX=[2])


async def test_flags_that_changed_since(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base of its flags is what came: what one side took away does not come back."""
    await killed(twin, monkeypatch, before_the_pair)
    twin.relabel(twin.one(1), "S")
    await settled(twin, INBOX=[1, 2])
    assert [shown.flags for shown in twin.there("INBOX")] == [("\\Seen",), ()]


async def test_a_file_that_is_gone_proves_nothing(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it ever got its name nobody knows; so its message comes, once more perhaps."""
    await killed(twin, monkeypatch, before_the_pair)
    twin.one(1).unlink()
    await settled(twin, INBOX=[1, 2])


async def test_it_never_got_its_name(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    await killed(twin, monkeypatch, before_the_name)
    assert len(noted(twin)) == 1
    assert len(twin.files()) == 1
    await left_in_tmp(twin)
    await settled(twin, INBOX=[1, 2])


async def test_an_equal_file_elsewhere_is_not_it(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in `tmp` still never was in the mailbox: neither is taken for a move of the other."""
    await killed(twin, monkeypatch, before_the_name)
    twin.write(1, "Archive", "F")
    await left_in_tmp(twin)
    await settled(twin, INBOX=[1, 2], Archive=[1])


async def test_in_another_epoch_its_uid_means_nothing(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    await killed(twin, monkeypatch, before_the_pair)
    twin.store.bump_uidvalidity("INBOX")
    await settled(twin, INBOX=[1, 2])


async def test_a_mailbox_that_nobody_can_look_into_keeps_the_note(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    await killed(twin, monkeypatch, before_the_pair)
    opened = MailboxDirectory.open

    def unreadable(root: Path, relative: PurePosixPath) -> MailboxDirectory | None:
        if relative.name == "INBOX":
            raise MailboxUnusable("it cannot be read")
        return opened(root, relative)

    with monkeypatch.context() as patched:
        patched.setattr(MailboxDirectory, "open", unreadable)
        assert not (await twin.sync()).ok
    twin.move(twin.one(1), "Archive")
    await settled(twin, INBOX=[2], Archive=[1])


async def test_a_dry_run_leaves_the_note(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    await killed(twin, monkeypatch, before_the_pair)
    twin.move(twin.one(1), "Archive")
    before = noted(twin)
    await twin.sync(dry_run=True)
    assert noted(twin) == before
    await settled(twin, INBOX=[2], Archive=[1])


async def test_a_first_pull_notes_nothing(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = Twin(quick_path)
    await killed(twin, monkeypatch, before_the_pair)
    assert noted(twin) == []
    await settled(twin, INBOX=[1])
