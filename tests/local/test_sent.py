"""Where this disk has the mailbox for what was sent."""

from __future__ import annotations

import sqlite3
from pathlib import Path, PurePosixPath

import pytest

from maild.core.errors import LocalError
from maild.core.model import MailboxName
from maild.local.schema import _MIGRATIONS, StateUnusable
from maild.local.sent import sent_directory
from maild.local.state import State

SENT = "\\Sent"


def name(text: str) -> MailboxName:
    return MailboxName(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "Mail"


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State.open(tmp_path / "work.sqlite")


def where(root: Path, state: State, wanted: str | None = None, layout: str = "nested") -> str:
    return str(sent_directory(root, layout, state.path, wanted))


def test_as_the_config_names_it(root: Path, state: State) -> None:
    state.set_roles({SENT: (name("Gesendete Objekte"), "Gesendete Objekte")})
    assert where(root, state, "Elsewhere/Sent") == "Elsewhere/Sent"
    assert where(root, state, "Elsewhere/Sent", "maildir++") == ".Elsewhere.Sent"
    state.add_mailbox(name("INBOX.Sent"), "INBOX/Sent")
    assert where(root, state, "INBOX.Sent") == "INBOX/Sent"


@pytest.mark.parametrize(
    ("layout", "directory"), [("nested", "Gesendete Objekte"), ("maildir++", ".Gesendete Objekte")]
)
def test_by_its_role(root: Path, state: State, layout: str, directory: str) -> None:
    state.add_mailbox(name("Sent"), str(PurePosixPath("Sent" if layout == "nested" else ".Sent")))
    state.set_roles({SENT: (name("Gesendete Objekte"), directory), "\\Trash": (name("T"), "T")})
    assert where(root, state, layout=layout) == directory


def test_a_role_goes_with_its_mailbox(root: Path, state: State) -> None:
    row = state.add_mailbox(name("Sent"), "Sent")
    state.set_roles({SENT: (name("Sent"), "Sent")})
    state.rename_mailbox(row.id, name("Out"), "Out")
    assert where(root, state) == "Out"
    assert state.roles() == {SENT: (name("Out"), "Out")}
    state.set_roles({})
    assert state.roles() == {}


def test_roles_that_are_known_are_not_written(state: State) -> None:
    roles = {SENT: (name("Sent"), "Sent")}
    state.set_roles(roles)
    before = state._database.total_changes
    state.set_roles(dict(roles))
    assert state._database.total_changes == before


def test_by_its_name(root: Path, state: State) -> None:
    for text in ("INBOX", "Archive", "Sent Items"):
        state.add_mailbox(name(text), text)
    assert where(root, state) == "Sent Items"
    (root / "Sent" / "cur").mkdir(parents=True)
    assert where(root, state) == "Sent"


def test_where_there_is_none(root: Path, state: State, tmp_path: Path) -> None:
    assert where(root, state) == "Sent"
    assert str(sent_directory(root, "maildir++", tmp_path / "none.sqlite", None)) == ".Sent"
    for text in ("INBOX", "INBOX/Archive"):
        state.add_mailbox(name(text), text)
    assert where(root, state) == "INBOX/Sent"


@pytest.mark.parametrize("version", range(1, len(_MIGRATIONS)))
def test_a_state_of_an_older_maild_is_read_and_brought_up_to_date(root: Path, tmp_path: Path, version: int) -> None:
    """Also while it is still as it was: the outbox may be drained before the next pass."""
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript("".join(_MIGRATIONS[:version]))
        database.execute("INSERT INTO mailboxes (name, directory) VALUES ('Sent Items', 'Sent Items')")
        database.execute(f"PRAGMA user_version = {version}")
    database.close()
    assert str(sent_directory(root, "nested", path, None)) == "Sent Items"
    state = State.open(path)
    assert list(state.mailboxes()) == ["Sent Items"]
    state.set_roles({SENT: (name("Out"), "Out")})
    state.close()
    assert str(sent_directory(root, "nested", path, None)) == "Out"


def test_a_damaged_state_is_told(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StateUnusable):
        sent_directory(root, "nested", path, None)


def test_a_name_that_no_directory_can_have(root: Path, state: State) -> None:
    with pytest.raises(LocalError, match="too long"):
        where(root, state, "x" * 300)
