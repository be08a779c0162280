"""The store: UIDs, mod-sequences, expunge log, names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from maild.testing.store import Mailbox, Refused, Store

RAW = b"Subject: x\r\n\r\nbody\r\n"


def filled(count: int = 3) -> tuple[Store, Mailbox]:
    store = Store(clock=lambda: 42.0)
    for _ in range(count):
        store.deliver("INBOX", RAW)
    return store, store.mailbox("INBOX")


def test_deliver_counts_up_uid_and_modseq() -> None:
    store, inbox = filled(2)
    uid = store.deliver("inbox", RAW, ["\\seen", "$Work"], date_s=7)
    message = inbox.message(uid)
    assert (uid, inbox.uidnext, message.modseq, inbox.highestmodseq) == (3, 4, 4, 4)
    assert message.flags == {"\\Seen", "$Work"}
    assert message.date_s == 7
    assert inbox.message(1).date_s == 42
    assert len({message.email_id for message in inbox}) == 3


def test_flags_change_under_one_modseq_and_only_where_they_differ() -> None:
    store, inbox = filled()
    store.set_flags("INBOX", 2, add=["\\Seen"])
    before = inbox.highestmodseq
    assert store.set_flags("INBOX", [1, 2, 3, 99], add=["\\Seen"]) == [1, 3]
    assert [message.modseq for message in inbox] == [before + 1, before, before + 1]
    assert store.set_flags("INBOX", 1, add=["\\Seen"]) == []
    assert inbox.highestmodseq == before + 1
    store.set_flags("INBOX", 1, replace=["\\Flagged"])
    store.set_flags("INBOX", 3, remove=["\\SEEN"])
    assert [message.flags for message in inbox] == [{"\\Flagged"}, {"\\Seen"}, frozenset()]


def test_flags_that_are_not_permitted_are_not_stored() -> None:
    store, inbox = filled(1)
    store.set_flags("INBOX", 1, add=["$Work"])
    inbox.permanent_flags = frozenset({"\\Seen", "$Work"})
    store.set_flags("INBOX", 1, add=["\\Flagged", "$Home", "\\Seen", "\\Recent", "\\Odd"])
    assert inbox.message(1).flags == {"\\Seen", "$Work"}


def test_keywords_keep_their_first_spelling() -> None:
    store, inbox = filled(2)
    store.set_flags("INBOX", 1, add=["$Work"])
    store.set_flags("INBOX", 2, add=["$WORK"])
    assert inbox.keywords == ("$Work",)
    assert inbox.message(2).flags == {"$Work"}


def test_expunges_are_logged_until_forgotten() -> None:
    store, inbox = filled(5)
    start = inbox.highestmodseq
    assert store.expunge("INBOX", [2, 4, 77]) == [2, 4]
    store.expunge("INBOX", 5)
    assert inbox.uids == [1, 3]
    assert inbox.uidnext == 6
    assert inbox.vanished_since(start) == [2, 4, 5]
    assert inbox.vanished_since(start + 1) == [5]
    inbox.forget_expunged()
    assert inbox.vanished_since(start + 1) == [2, 4, 5], "a server that forgot names every UID that is not there"
    assert inbox.vanished_since(inbox.highestmodseq) == []


def test_move_keeps_what_makes_the_message_the_same_one() -> None:
    store, inbox = filled(2)
    store.create("Archiv")
    store.set_flags("INBOX", 2, add=["\\Seen"])
    original = inbox.message(2)
    assert store.move("INBOX", [2, 99], "Archiv") == [(2, 1)]
    moved = store.mailbox("Archiv").message(1)
    assert (moved.email_id, moved.date_s, moved.flags) == (original.email_id, original.date_s, frozenset({"\\Seen"}))
    assert inbox.uids == [1]


@pytest.mark.parametrize("keep", [True, False])
def test_new_uidvalidity_renumbers_or_empties(keep: bool) -> None:
    store, inbox = filled(3)
    store.expunge("INBOX", 1)
    before = (inbox.uidvalidity, inbox.highestmodseq)
    assert store.bump_uidvalidity("INBOX", keep=keep) == inbox.uidvalidity
    assert inbox.uidvalidity > before[0]
    assert inbox.highestmodseq > before[1]
    assert inbox.uids == ([1, 2] if keep else [])
    assert inbox.uidnext == (3 if keep else 1)


def test_mailboxes_are_created_renamed_with_children_and_deleted() -> None:
    store = Store(separator=".")
    first = store.create("A", "\\Archive")
    store.create("A.B")
    store.create("Ab")
    store.rename("A", "Z")
    assert list(store.names) == ["INBOX", "Ab", "Z", "Z.B"]
    assert store.mailbox("Z") is first
    store.delete("Z")
    assert list(store.names) == ["INBOX", "Ab", "Z.B"]
    assert store.find("Z") is None
    assert first.deleted
    again = store.create("Z")
    assert (again.uidvalidity, again.mailbox_id) != (first.uidvalidity, first.mailbox_id)


def test_an_empty_mailbox_is_one_too() -> None:
    assert Store().find("INBOX")
    assert Store().find("nothing") is None


def test_renaming_inbox_moves_its_messages() -> None:
    store, inbox = filled(2)
    store.rename("INBOX", "Old")
    assert (len(inbox), len(store.mailbox("Old"))) == (0, 2)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda store: store.create("inbox"), "ALREADYEXISTS"),
        (lambda store: store.delete("nothing"), "NONEXISTENT"),
        (lambda store: store.delete("INBOX"), "CANNOT"),
        (lambda store: store.rename("A", "INBOX"), "ALREADYEXISTS"),
    ],
    ids=["create", "delete", "delete INBOX", "rename"],
)
def test_refusals_carry_a_response_code(change: Callable[[Store], object], code: str) -> None:
    store = Store()
    store.create("A")
    with pytest.raises(Refused) as refused:
        change(store)
    assert refused.value.code == code


def test_listeners_hear_of_every_change_until_they_stop() -> None:
    store, inbox = filled(1)
    heard: list[Mailbox] = []
    stop = store.listen(heard.append)
    store.deliver("INBOX", RAW)
    store.set_flags("INBOX", 1, add=["\\Seen"])
    store.set_flags("INBOX", 1, add=["\\Seen"])
    store.expunge("INBOX", 1)
    stop()
    store.deliver("INBOX", RAW)
    assert heard == [inbox, inbox, inbox]
