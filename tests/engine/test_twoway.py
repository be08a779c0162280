"""Two-way sync, by scenario: what each side and both sides do, and what both have afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from maild.engine import look
from maild.local.state import State
from maild.testing.imap import ALL, BARE, ImapServer
from maild.testing.store import Store
from tests.conftest import INTERRUPTED
from tests.engine.twin import Shown, Twin, WireTwin, body
from tests.engine.world import PASSWORD, USER

pytestmark = pytest.mark.anyio

Step = Callable[[Twin], object]
Record = Callable[[str, object], None]


def start(twin: Twin) -> None:
    """What both sides have before a scenario: five messages in INBOX, two in Archive, an empty Trash and Work/a."""
    twin.store.create("Archive")
    twin.store.create("Trash", "\\Trash")
    twin.store.create("Work")
    twin.store.create("Work/a")
    for n in range(1, 6):
        twin.deliver(n, flags=["\\Seen"] if n % 2 else [])
    for n in (6, 7):
        twin.deliver(n, "Archive", ["$Label1"])


def flag_here(twin: Twin) -> None:
    twin.relabel(twin.one(2), "FS")
    twin.relabel(twin.one(1), "")


def flag_there(twin: Twin) -> None:
    twin.store.set_flags("INBOX", twin.uid(2), add=["\\Flagged", "$Later"])
    twin.store.set_flags("INBOX", twin.uid(1), remove=["\\Seen"])


def flag_both(twin: Twin) -> None:
    twin.relabel(twin.one(1), "FS")
    twin.relabel(twin.one(3), "")
    twin.store.set_flags("INBOX", twin.uid(1), add=["\\Answered"], remove=["\\Seen"])
    twin.store.set_flags("INBOX", twin.uid(3), add=["$Work"])


def keyword_here(twin: Twin) -> None:
    path = twin.one(6, "Archive")
    twin.relabel(path, "S")
    (twin.where("INBOX") / "dovecot-keywords").write_text("0 $Mine\n1 $Label1\n")
    twin.relabel(twin.one(4), "Sab")


def add_here(twin: Twin) -> None:
    twin.write(10, letters="S")
    twin.write(11, "Archive")
    twin.write(12, raw=b"no header at all\n")
    twin.write(13, raw=b"Subject: no line end")


def add_there(twin: Twin) -> None:
    twin.deliver(10)
    twin.deliver(11, "Work/a", ["\\Flagged"])


def add_same_both(twin: Twin) -> None:
    twin.write(10, letters="S")
    twin.deliver(10, flags=["\\Flagged"])
    twin.write(14, raw=body(14, message_id=""))
    twin.deliver(14, raw=body(14, message_id=""))


def delete_here(twin: Twin) -> None:
    twin.one(2).unlink()
    twin.one(7, "Archive").unlink()


def delete_there(twin: Twin) -> None:
    twin.store.expunge("INBOX", [twin.uid(2), twin.uid(3)])


def delete_both(twin: Twin) -> None:
    twin.one(2).unlink()
    twin.store.expunge("INBOX", [twin.uid(2), twin.uid(3)])
    twin.one(4).unlink()


def delete_here_flag_there(twin: Twin) -> None:
    twin.store.set_flags("INBOX", twin.uid(2), add=["\\Flagged"])
    twin.one(2).unlink()


def delete_there_flag_here(twin: Twin) -> None:
    twin.relabel(twin.one(2), "F")
    twin.store.expunge("INBOX", twin.uid(2))


def move_here(twin: Twin) -> None:
    twin.move(twin.one(2), "Archive")
    twin.move(twin.one(1), "Work/a", new_name=True)


def move_there(twin: Twin) -> None:
    twin.store.move("INBOX", twin.uid(2), "Archive")
    twin.store.move("INBOX", [twin.uid(1), twin.uid(3)], "Work/a")


def move_both_differently(twin: Twin) -> None:
    twin.move(twin.one(2), "Archive")
    twin.store.move("INBOX", twin.uid(2), "Work/a")


def move_both_alike(twin: Twin) -> None:
    twin.move(twin.one(2), "Archive", new_name=True)
    twin.store.move("INBOX", twin.uid(2), "Archive")


def move_here_delete_there(twin: Twin) -> None:
    twin.move(twin.one(2), "Archive")
    twin.store.expunge("INBOX", twin.uid(2))


def move_there_delete_here(twin: Twin) -> None:
    twin.one(2).unlink()
    twin.store.move("INBOX", twin.uid(2), "Archive")


def move_here_flag_both(twin: Twin) -> None:
    twin.store.set_flags("INBOX", twin.uid(1), add=["\\Answered"])
    twin.move(twin.relabel(twin.one(1), "F"), "Archive")


def move_there_flag_here(twin: Twin) -> None:
    twin.relabel(twin.one(2), "R")
    twin.store.set_flags("INBOX", twin.uid(2), add=["\\Seen"])
    twin.store.move("INBOX", twin.uid(2), "Archive")


def rename_file(twin: Twin) -> None:
    path = twin.one(1)
    path.rename(path.with_name(path.name.replace("M", "X", 1).replace(":2,S", ":2,FS")))


def copy_here(twin: Twin) -> None:
    twin.copy(twin.one(1), "Archive")
    twin.copy(twin.one(1), "INBOX")


def copy_there(twin: Twin) -> None:
    twin.store.copy("INBOX", twin.uid(1), "Archive")
    twin.store.copy("INBOX", twin.uid(2), "INBOX")


def create_here(twin: Twin) -> None:
    twin.write(10, "New/deep/er", "S")
    twin.make("Empty")


def create_there(twin: Twin) -> None:
    twin.store.create("New/deep/er")
    twin.deliver(10, "New/deep/er")
    twin.store.create("Empty")


def create_both(twin: Twin) -> None:
    twin.store.create("Both")
    twin.deliver(10, "Both", ["\\Seen"])
    twin.write(10, "Both", "F")
    twin.write(11, "Both")


def create_both_and_move_here(twin: Twin) -> None:
    twin.store.create("Both")
    twin.store.create("Other")
    twin.move(twin.relabel(twin.one(1), "F"), "Both")
    twin.store.set_flags("INBOX", twin.uid(2), add=["\\Answered"])
    twin.move(twin.one(2), "Other", new_name=True)


def rename_mailbox_here(twin: Twin) -> None:
    twin.where("Archive").rename(twin.where("Old"))
    twin.where("Work").rename(twin.where("Job"))


def rename_mailbox_there(twin: Twin) -> None:
    twin.store.rename("Archive", "Old")
    twin.store.rename("Work", "Job")


def rename_mailbox_both(twin: Twin) -> None:
    twin.where("Archive").rename(twin.where("Mine"))
    twin.store.rename("Archive", "Theirs")


def rename_mailbox_and_change(twin: Twin) -> None:
    twin.relabel(twin.one(6, "Archive"), "S")
    twin.where("Archive").rename(twin.where("Old"))
    twin.deliver(10, "Archive")


def delete_mailbox_there(twin: Twin) -> None:
    twin.store.delete("Archive")
    twin.store.delete("Work/a")


def delete_empty_mailbox_here(twin: Twin) -> None:
    for name in ("cur", "new", "tmp"):
        (twin.where("Work/a") / name).rmdir()
    twin.where("Work/a").rmdir()


def delete_mailbox_there_add_here(twin: Twin) -> None:
    twin.store.delete("Archive")
    twin.write(10, "Archive")


SCENARIOS: list[Step] = [
    flag_here,
    flag_there,
    flag_both,
    keyword_here,
    add_here,
    add_there,
    add_same_both,
    delete_here,
    delete_there,
    delete_both,
    delete_here_flag_there,
    delete_there_flag_here,
    move_here,
    move_there,
    move_both_differently,
    move_both_alike,
    move_here_delete_there,
    move_there_delete_here,
    move_here_flag_both,
    move_there_flag_here,
    rename_file,
    copy_here,
    copy_there,
    create_here,
    create_there,
    create_both,
    create_both_and_move_here,
    rename_mailbox_here,
    rename_mailbox_there,
    rename_mailbox_both,
    rename_mailbox_and_change,
    delete_mailbox_there,
    delete_empty_mailbox_here,
    delete_mailbox_there_add_here,
]
MOVES: list[Step] = [
    delete_here,
    move_here,
    move_there,
    move_both_differently,
    move_both_alike,
    move_here_delete_there,
    move_there_delete_here,
    move_here_flag_both,
]
TWO_PASSES = [delete_mailbox_there_add_here]  # the first ends a mailbox, the second begins it again


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda step: step.__name__)
async def test_scenario(quick_path: Path, scenario: Step) -> None:
    twin = Twin(quick_path)
    start(twin)
    await twin.synced()
    await twin.quiet()
    scenario(twin)
    await twin.synced()
    if scenario not in TWO_PASSES:
        twin.assert_equal()
        await twin.quiet()
    await twin.synced()
    twin.assert_equal()
    await twin.quiet()


LACKING: dict[str, frozenset[str]] = {
    "nothing": frozenset(),
    "QRESYNC": frozenset({"QRESYNC"}),
    "CONDSTORE": frozenset({"QRESYNC", "CONDSTORE"}),
    "UIDPLUS": frozenset({"UIDPLUS"}),
    "MOVE": frozenset({"MOVE"}),
    "OBJECTID": frozenset({"OBJECTID"}),
    "LIST-STATUS": frozenset({"LIST-STATUS"}),
    "everything": ALL - BARE,
}


@pytest.mark.parametrize("lacking", LACKING)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda step: step.__name__)
async def test_scenario_over_imap(quick_path: Path, scenario: Step, lacking: str) -> None:
    """Whatever the server can do, the result is the same."""
    async with ImapServer(Store(), {USER: PASSWORD}, capabilities=ALL - LACKING[lacking]) as server:
        twin = WireTwin.over(quick_path, server)
        start(twin)
        await twin.synced()
        await twin.quiet()
        scenario(twin)
        for _ in range(2):
            await twin.synced()
        twin.assert_equal()
        await twin.quiet()


async def test_a_flag_removed_there_while_the_message_moves_here(quick_path: Path) -> None:
    """On a server that does not tell the new UID: the file is without a pair for a while, and knows what is removed."""
    twin = Twin(quick_path, settings={"tells_uids": False})
    start(twin)
    await twin.synced()
    twin.store.set_flags("INBOX", twin.uid(1), remove=["\\Seen"], add=["$Label1"])
    twin.move(twin.one(1), "Archive")
    for _ in range(2):
        await twin.synced()
    twin.assert_equal()
    assert [shown.flags for shown in twin.there("Archive") if b"Nr. 1\n" in shown.raw] == [("$Label1",)]
    await twin.quiet()


CASES = [pytest.param(step, "proof", id=step.__name__) for step in SCENARIOS] + [
    pytest.param(step, lack, id=f"{step.__name__}-{lack}")
    for step in MOVES
    for lack in ("no_message_id", "wrong_sizes")
]


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize(("scenario", "facts"), CASES)
async def test_scenario_cut_at_every_step(
    quick_path: Path, scenario: Step, facts: str, request: pytest.FixtureRequest, record_property: Record
) -> None:
    """Cut before and after each effect on the server, for good; a new pass then ends where an undisturbed one ends."""
    prepared = _preparation(facts, request)
    undisturbed = await prepared(quick_path / "undisturbed", scenario)
    await undisturbed.synced()
    steps = undisturbed.remote.steps
    await undisturbed.synced()
    wanted = contents(undisturbed)
    record_property(f"{INTERRUPTED} in memory: effects on the server", steps)
    for step in range(steps):
        twin = await prepared(quick_path / str(step), scenario)
        report = await twin.sync(lose_at=step)
        assert not report.ok, f"cut at step {step}, and nobody noticed"
        for _ in range(2):
            await twin.synced()
        twin.assert_equal()
        assert contents(twin) == wanted, f"cut at step {step}"
        await twin.quiet()


@pytest.mark.parametrize(
    ("scenario", "lacking"),
    [
        pytest.param(step, name, marks=() if step in (move_here, delete_here) and name == "MOVE" else pytest.mark.long)
        for step in SCENARIOS
        for name in ("nothing", "MOVE", "UIDPLUS", "everything")
    ],
    ids=lambda one: one if isinstance(one, str) else one.__name__,
)
async def test_scenario_cut_at_every_command(
    quick_path: Path, scenario: Step, lacking: str, record_property: Record
) -> None:
    """The line is cut at each command in turn: before it, within its answer, or carried out and unanswered."""
    wanted, commands = None, 0
    for cut in (None, *range(200)):
        if cut is not None and cut > commands + 2:
            break
        async with ImapServer(Store(), {USER: PASSWORD}, capabilities=ALL - LACKING[lacking]) as server:
            twin = WireTwin.over(quick_path / str(cut), server)
            start(twin)
            await twin.synced()
            scenario(twin)
            before = len(server.journal)
            await twin.sync(lose_at=cut)
            commands = commands or len(server.journal) - before
            for _ in range(2):
                await twin.synced()
            twin.assert_equal()
            wanted = wanted or contents(twin)
            assert contents(twin) == wanted, f"cut at command {cut}"
            await twin.quiet()
    record_property(f"{INTERRUPTED} in memory: commands", commands)


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize(("scenario", "facts"), CASES)
async def test_scenario_killed_at_every_commit(
    quick_path: Path,
    scenario: Step,
    facts: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    record_property: Record,
) -> None:
    """Killed before and after each commit to the state.

    No stamp is ever stored: whether one is, and so how many commits there are, would depend on the clock.
    """
    monkeypatch.setattr(look, "is_settled", lambda *_: False)
    prepared = _preparation(facts, request)
    undisturbed = await prepared(quick_path / "undisturbed", scenario)
    commits = Commits(monkeypatch)
    await undisturbed.synced()
    most = commits.count
    await undisturbed.synced()
    wanted = contents(undisturbed)
    record_property(f"{INTERRUPTED} in memory: commits to the state", 2 * most)
    for moment in range(2 * most):
        twin = await prepared(quick_path / str(moment), scenario)
        commits.kill_at(moment)
        with pytest.raises(BaseException, match=r"killed|unhandled errors"):
            await twin.sync()
        commits.kill_at(None)
        for _ in range(2):
            await twin.synced()
        twin.assert_equal()
        assert contents(twin) == wanted, f"killed at moment {moment}"
        await twin.quiet()


class Killed(BaseException):
    """What a kill -9 looks like from inside: nothing of ours catches it."""


class Commits:
    """Counts the transactions of every state, and kills before (even) or after (odd) one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._moment: int | None = None
        self._is_dead = False
        original = State.transaction

        @contextmanager
        def transaction(state: State) -> Iterator[object]:
            if self._is_dead or self._moment == 2 * self.count:
                self._is_dead = True
                raise Killed("killed before a commit")
            with original(state) as database:
                yield database
            self.count += 1
            if self._moment == 2 * self.count - 1:
                self._is_dead = True
                raise Killed("killed after a commit")

        monkeypatch.setattr(State, "transaction", transaction)

    def kill_at(self, moment: int | None) -> None:
        self.count, self._moment, self._is_dead = 0, moment, False


def _preparation(facts: str, request: pytest.FixtureRequest) -> Callable[[Path, Step], Awaitable[Twin]]:
    """How to begin where facts prove what they should, or for want of them, or because they are wrong, do not."""
    if facts == "wrong_sizes":
        request.getfixturevalue("wrong_sizes")
    return partial(_prepared, message_ids=facts != "no_message_id")


async def _prepared(directory: Path, scenario: Step, *, message_ids: bool) -> Twin:
    directory.mkdir()
    twin = Twin(directory, message_ids=message_ids)
    start(twin)
    await twin.synced()
    scenario(twin)
    return twin


def contents(twin: Twin) -> dict[str, list[Shown]]:
    return {mailbox: twin.there(mailbox) for mailbox in sorted(twin.store.names)}
