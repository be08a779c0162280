"""What vanished in one place and appeared in another: which appearance each one takes, and what proves nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from maild.core.model import NO_FLAGS, Facts, Key, MailboxName, Pair, Uid
from maild.core.moves import Content, File, Gone, NewMessage, local_moves, remote_moves


def digest(content: str) -> bytes:
    return sha256(content.encode()).digest()[:16]


def gone(mailbox: str, uid: str, key: str, content: str = "a") -> Gone:
    return Gone(MailboxName(mailbox), Pair(Uid(uid), Key(key), NO_FLAGS, len(content), digest(content)))


def file(mailbox: str, key: str) -> File:
    return File(MailboxName(mailbox), Key(key))


def new(mailbox: str, uid: str) -> NewMessage:
    return NewMessage(MailboxName(mailbox), Uid(uid))


def of(content: str) -> Content:
    return len(content), digest(content)


# -- files


def test_a_file_that_is_gone_is_the_equal_one_elsewhere() -> None:
    was = gone("INBOX", "1", "k1")
    assert local_moves([was], {of("a"): [file("Archive", "k1")]}) == {was: file("Archive", "k1")}


def test_another_content_is_another_message_whatever_its_name() -> None:
    assert local_moves([gone("INBOX", "1", "k1")], {of("b"): [file("Archive", "k1")]}) == {}


def test_the_same_name_is_nearest_then_the_same_mailbox_then_any() -> None:
    was = gone("INBOX", "1", "k1")
    by_name, here, elsewhere = file("Archive", "k1"), file("INBOX", "k8"), file("Aaa", "k9")
    assert local_moves([was], {of("a"): [elsewhere, here, by_name]}) == {was: by_name}
    assert local_moves([was], {of("a"): [elsewhere, here]}) == {was: here}
    assert local_moves([was], {of("a"): [elsewhere]}) == {was: elsewhere}


def test_the_nearest_pair_takes_the_file() -> None:
    """Two equal messages are gone, one equal file is there: it is that of the name it has."""
    first, second = gone("INBOX", "1", "k1"), gone("INBOX", "2", "k2")
    assert local_moves([first, second], {of("a"): [file("Archive", "k2")]}) == {second: file("Archive", "k2")}


def test_equal_messages_take_one_file_each() -> None:
    several = [gone("INBOX", str(n), f"k{n}") for n in range(3)]
    files = [file("Archive", f"x{n}") for n in range(2)]
    moved = local_moves(several, {of("a"): files})
    assert len(moved) == 2
    assert sorted(moved.values()) == sorted(files)


def test_nothing_gone_and_nothing_there() -> None:
    assert local_moves([], {of("a"): [file("INBOX", "k1")]}) == {}
    assert local_moves([gone("INBOX", "1", "k1")], {}) == {}


PLACES = st.tuples(st.sampled_from(["INBOX", "A", "B"]), st.sampled_from("abc"))


@given(went=st.lists(PLACES, max_size=8), came=st.lists(PLACES, max_size=8))
def test_each_file_is_used_once_and_as_many_as_can_be(went: list[tuple[str, str]], came: list[tuple[str, str]]) -> None:
    several = [gone(mailbox, str(n), f"k{n}", content) for n, (mailbox, content) in enumerate(went)]
    files: dict[Content, list[File]] = {}
    for n, (mailbox, content) in enumerate(came):
        files.setdefault(of(content), []).append(file(mailbox, f"k{n}"))
    before = {content: list(some) for content, some in files.items()}
    moved = local_moves(several, files)
    assert files == before, "what was given is left as it was"
    assert len(set(moved.values())) == len(moved)
    for was, now in moved.items():
        assert now in files[was.pair.size_octets, was.pair.digest]
    for content in "abc":
        most = min(sum(c == content for _, c in went), sum(c == content for _, c in came))
        assert sum(was.pair.digest == digest(content) for was in moved) == most


def test_very_many_equal_files_are_not_all_compared() -> None:
    """Whoever copied one message ten thousand times waits no longer for that."""
    files = [file("Archive", f"x{n}") for n in range(10_000)]
    assert len(local_moves([gone("INBOX", "1", "k1")], {of("a"): files})) == 1


def test_very_many_equal_messages_take_linear_time() -> None:
    """Four times as many take about four times as long, on either side; each with each would be sixteen times."""

    def seconds(count: int) -> float:
        went = [gone("INBOX", f"{n}", f"k{n}") for n in range(count)]
        files = [file("Archive" if n % 2 else "INBOX", f"x{n}") for n in range(count)]
        came = [new("Archive" if n % 2 else "INBOX", f"{n}") for n in range(count)]
        begun = time.process_time()
        assert len(local_moves(went, {of("a"): files})) == count
        assert len(remote_moves({FACTS: went}, {FACTS: came})) == count
        return time.process_time() - begun

    assert min(seconds(1600) for _ in range(3)) < 9 * min(seconds(400) for _ in range(5))


# -- messages on the server

FACTS = Facts(100, b"<1@test.example>", b"Tue, 14 Nov 2023 22:13:00 +0000")


def moves(went: Sequence[Gone], came: Sequence[NewMessage], facts: Facts = FACTS) -> Mapping[Gone, NewMessage]:
    return remote_moves({facts: went}, {facts: came})


def test_a_message_that_is_gone_is_the_new_one_of_equal_facts() -> None:
    was = gone("INBOX", "1", "k1")
    assert moves([was], [new("Archive", "7")]) == {was: new("Archive", "7")}


def test_other_facts_are_another_message() -> None:
    was = gone("INBOX", "1", "k1")
    for other in (
        Facts(101, FACTS.message_id, FACTS.date),
        Facts(100, b"<2@test.example>", FACTS.date),
        Facts(100, FACTS.message_id, b""),
    ):
        assert remote_moves({FACTS: [was]}, {other: [new("Archive", "7")]}) == {}


def test_without_a_message_id_nothing_is_proven() -> None:
    assert moves([gone("INBOX", "1", "k1")], [new("Archive", "7")], Facts(100, b"", FACTS.date)) == {}


def test_facts_of_different_contents_prove_nothing() -> None:
    different = [gone("INBOX", "1", "k1", "a"), gone("INBOX", "2", "k2", "b")]
    assert moves(different, [new("Archive", "7"), new("Archive", "8")]) == {}


def test_each_new_message_is_used_once() -> None:
    several = [gone("INBOX", str(n), f"k{n}") for n in range(3)]
    moved = moves(several, [new("Archive", "7"), new("Archive", "8")])
    assert sorted(moved.values()) == [new("Archive", "7"), new("Archive", "8")]


def test_a_new_message_in_the_same_mailbox_is_nearest() -> None:
    was = gone("INBOX", "1", "k1")
    assert moves([was], [new("Archive", "7"), new("INBOX", "2")]) == {was: new("INBOX", "2")}


def test_where_the_file_is_by_now_is_nearest() -> None:
    """Else a state from a backup, older than a move and a copy, would make one more of them."""
    was, other = gone("INBOX", "1", "k1"), gone("INBOX", "2", "k2")
    came = [new("INBOX", "8"), new("Archive", "7")]
    here = {was: file("Archive", "k1")}
    assert remote_moves({FACTS: [was]}, {FACTS: came}, here) == {was: new("Archive", "7")}
    both = {was: new("Archive", "7"), other: new("INBOX", "8")}
    assert remote_moves({FACTS: [was, other]}, {FACTS: came}, here) == both


def test_what_was_given_stays_as_it_was() -> None:
    came = [new("Archive", "7")]
    moves([gone("INBOX", "1", "k1")], came)
    assert came == [new("Archive", "7")]
