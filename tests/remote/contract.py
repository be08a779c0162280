"""What every server must make of the port, whatever it can: one suite for servers in memory and real ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import pytest

from maild.core.errors import LocalError, Rejected
from maild.core.likeness import Likeness
from maild.core.model import (
    NO_FLAGS,
    Appended,
    Cursor,
    FlagChange,
    Flags,
    Key,
    MailboxName,
    Outgoing,
    Scan,
    Uid,
)
from maild.remote.imap.remote import ImapRemote

WHEN_S = 1_600_000_000
INBOX = MailboxName("INBOX")
TARGET = MailboxName("Ziel & mehr")
MESSAGE = b"Message-ID: <%d@test.example>\r\nDate: Mon, 14 Sep 2020 12:00:00 +0000\r\nSubject: x\r\n\r\nbody %d\r\n"

Content = tuple[bytes, Flags, int]  # wire form, flags, INTERNALDATE in seconds

CAPABILITY_SETS: dict[str, frozenset[str]] = {  # what is taken away
    "all": frozenset(),
    "no QRESYNC": frozenset({"QRESYNC"}),
    "no CONDSTORE": frozenset({"QRESYNC", "CONDSTORE"}),
    "no ESEARCH, no QRESYNC": frozenset({"QRESYNC", "ESEARCH"}),
    "no UIDPLUS": frozenset({"UIDPLUS"}),
    "no MOVE": frozenset({"MOVE"}),
    "no UIDPLUS, no MOVE": frozenset({"UIDPLUS", "MOVE"}),
    "no LIST-STATUS": frozenset({"LIST-STATUS"}),
    "no OBJECTID": frozenset({"OBJECTID"}),
    "no MULTIAPPEND": frozenset({"MULTIAPPEND"}),
    "no LITERAL+": frozenset({"LITERAL+", "MULTIAPPEND"}),
    "no UNSELECT": frozenset({"UNSELECT"}),
    "bare": frozenset(
        {"QRESYNC", "CONDSTORE", "ESEARCH", "UIDPLUS", "MOVE", "LIST-STATUS", "LIST-EXTENDED", "SPECIAL-USE"}
        | {"OBJECTID", "MULTIAPPEND", "LITERAL+", "LITERAL-", "UNSELECT", "ENABLE", "ID", "NAMESPACE", "IDLE"}
    ),
}


class Account(Protocol):
    """The remote under test, and the same account as another client sees it; that one knows no extension."""

    removed: frozenset[str]

    def remote(self, **changes: Any) -> ImapRemote: ...

    def deliver(self, mailbox: str, raw: bytes, flags: Iterable[str] = ()) -> int: ...

    def contents(self, mailbox: str) -> dict[int, Content]: ...

    def flag(self, mailbox: str, uids: Sequence[int], flags: Iterable[str]) -> None: ...

    def expunge(self, mailbox: str, uids: Sequence[int]) -> None: ...

    def create(self, name: str) -> None: ...

    def names(self) -> set[str]: ...

    def subscribed(self) -> set[str]: ...


def raw_of(number: int, octets: int = 0) -> bytes:
    raw = MESSAGE % (number, number)
    return raw + b"z" * 70 * (octets // 70) + b"\r\n" if octets else raw


def outgoing(key: str, raw: bytes, flags: Iterable[str] = (), size_octets: int | None = None) -> Outgoing:
    def pieces() -> Iterator[bytes]:
        for start in range(0, len(raw), 50_000):
            yield raw[start : start + 50_000]

    return Outgoing(Key(key), frozenset(flags), WHEN_S, len(raw) if size_octets is None else size_octets, pieces)


def uids_of(*numbers: int) -> list[Uid]:
    return [Uid(str(number)) for number in numbers]


def flags_of(account: Account, mailbox: str = "INBOX") -> dict[int, Flags]:
    return {uid: flags for uid, (_, flags, _) in account.contents(mailbox).items()}


async def scanned(remote: ImapRemote, cursor: Cursor | None = None, mailbox: MailboxName = INBOX) -> Scan:
    async with remote.visit(mailbox) as box:
        return await box.scan(cursor)


def applied(known: dict[int, Flags], scan: Scan) -> dict[int, Flags]:
    found = {int(uid): flags for uid, flags, _ in scan.items}
    if scan.full:
        return found
    return {uid: flags for uid, flags in (known | found).items() if Uid(str(uid)) not in scan.vanished}


async def appended(
    remote: ImapRemote, messages: Iterable[Outgoing], mailbox: MailboxName = INBOX
) -> dict[str, Appended]:
    async with remote.visit(mailbox) as box:
        await box.scan(None)
        return {answer.key: answer async for answer in box.append(iter(list(messages)))}


class PortContract:
    """Each test gets an `account` of its own, with only an empty INBOX that matters."""

    # -- mailboxes

    async def test_listing(self, account: Account) -> None:
        account.create(TARGET)
        account.create("a/b/c")
        account.deliver(TARGET, raw_of(1))
        listing = await account.remote(mailboxes=("*", "!Trash", "!a/b/c")).listing()
        by_name = {mailbox.name: mailbox for mailbox in listing.mailboxes}
        assert listing.separator == "/"
        assert {"INBOX", TARGET, "a/b/c", "a", "Trash"} <= listing.present
        assert {"Trash", "a/b/c"}.isdisjoint(by_name)
        assert listing.trash == "Trash" or (listing.trash is None and "SPECIAL-USE" in account.removed)
        if "LIST-STATUS" not in account.removed or "CONDSTORE" not in account.removed:
            assert (by_name[TARGET].messages, by_name[TARGET].next_uid) == (1, "2")
            assert int(by_name[TARGET].epoch) > 0

    async def test_create(self, account: Account) -> None:
        remote = account.remote()
        await remote.listing()
        for _ in range(2):  # one that is there already will do
            made = await remote.create(("Größe", "Maß & Zahl", "x"))
            assert (made.name, made.levels) == ("Größe/Maß & Zahl/x", ("Größe", "Maß & Zahl", "x"))
        assert made.name in account.names()
        assert made.name in account.subscribed()
        assert set(await appended(remote, [outgoing("k", raw_of(1))], made.name)) == {"k"}
        assert made.name in (await remote.listing()).present

    @pytest.mark.parametrize("levels", [(), ("",), ("a", ""), ("a/b",), ("x", "a/b"), ("\ud800",)])
    async def test_what_no_name_can_say_is_refused(self, account: Account, levels: tuple[str, ...]) -> None:
        remote = account.remote()
        await remote.listing()
        before = account.names()
        with pytest.raises(Rejected, match="cannot be on the server") as refusal:
            await remote.create(levels)
        assert refusal.value.hint
        assert account.names() == before

    async def test_a_name_that_would_be_a_command_is_a_name(self, account: Account) -> None:
        remote = account.remote()
        await remote.listing()
        name = 'a"\r\nX1 DELETE "a'
        try:
            await remote.create((name,))
        except Rejected:
            return  # some servers take no control characters
        assert name in account.names()

    async def test_rename_takes_those_inside_along(self, account: Account) -> None:
        account.create("alt")
        account.create("alt/innen")
        account.deliver("alt/innen", raw_of(1))
        remote = account.remote()
        await remote.listing()
        await scanned(remote, mailbox=MailboxName("alt"))
        renamed = await remote.rename(MailboxName("alt"), ("neu", "Ä"))
        assert (renamed.name, renamed.levels) == ("neu/Ä", ("neu", "Ä"))
        assert {"neu/Ä", "neu/Ä/innen"} <= account.names()
        assert {"alt", "alt/innen"}.isdisjoint(account.names())
        assert {"neu/Ä", "neu/Ä/innen"} <= account.subscribed()
        assert {"alt", "alt/innen"}.isdisjoint(account.subscribed())
        assert (await scanned(remote, mailbox=MailboxName("neu/Ä/innen"))).messages == 1
        with pytest.raises(Rejected, match="there is no mailbox alt"):
            await scanned(remote, mailbox=MailboxName("alt"))

    async def test_rename_that_cannot_be(self, account: Account) -> None:
        account.create("a")
        account.create("b")
        remote = account.remote()
        await remote.listing()
        with pytest.raises(Rejected, match="mailbox a cannot be renamed to b: the server refused RENAME"):
            await remote.rename(MailboxName("a"), ("b",))
        with pytest.raises(Rejected, match="INBOX cannot be renamed"):
            await remote.rename(INBOX, ("b", "c"))
        assert {"a", "b", "INBOX"} <= account.names()
        assert (await scanned(remote, mailbox=MailboxName("a"))).complete

    async def test_delete(self, account: Account) -> None:
        account.create("weg")
        account.deliver("weg", raw_of(1))
        account.expunge("weg", [1])
        remote = account.remote()
        await remote.listing()
        scan = await scanned(remote, mailbox=MailboxName("weg"))
        for _ in range(2):  # one that is gone already will do
            assert await remote.delete(MailboxName("weg"), scan.cursor)
            assert "weg" not in account.names() | account.subscribed()
        with pytest.raises(Rejected, match="INBOX cannot be deleted"):
            await remote.delete(INBOX, scan.cursor)
        assert (await scanned(remote)).complete

    async def test_delete_of_what_is_not_as_it_was_seen(self, account: Account) -> None:
        weg = MailboxName("weg")
        account.create("weg")
        remote = account.remote()
        await remote.listing()
        empty = await scanned(remote, mailbox=weg)
        account.deliver("weg", raw_of(1))
        assert not await remote.delete(weg, empty.cursor), "a message came in"
        full = await scanned(remote, empty.cursor, weg)
        assert not await remote.delete(weg, full.cursor), "it was seen"
        account.expunge("weg", [1])
        assert not await remote.delete(weg, empty.cursor), "one came in and went"
        assert "weg" in account.names()
        scan = await scanned(remote, full.cursor, weg)
        assert await remote.delete(weg, scan.cursor)
        assert "weg" not in account.names()

    async def test_delete_of_what_another_client_deleted(self, account: Account) -> None:
        account.create("weg")
        remote, other = account.remote(), account.remote()
        await remote.listing()
        await other.listing()
        scan = await scanned(remote, mailbox=MailboxName("weg"))
        assert await other.delete(MailboxName("weg"), scan.cursor)
        assert await remote.delete(MailboxName("weg"), scan.cursor)
        assert "weg" not in account.names()

    # -- what may be changed

    async def test_permitted(self, account: Account) -> None:
        remote = account.remote()
        await remote.listing()
        permitted = (await scanned(remote)).permitted
        assert permitted is not None
        wanted = frozenset({"\\Seen", "\\Deleted", "\\Flagged", "\\Answered", "\\Draft", "$neu"})
        assert permitted.of(wanted | {"\\Recent", "\\Other"}) == wanted

    async def test_read_only(self, account: Account) -> None:
        account.deliver("INBOX", raw_of(1))
        remote = account.remote()
        await remote.listing()
        async with remote.visit(INBOX, read_only=True) as box:
            scan = await box.scan(None)
            assert scan.permitted is None
            assert scan.messages == 1
            with pytest.raises(Rejected, match="mailbox INBOX is open for reading only"):
                await box.store([FlagChange(Uid("1"), frozenset({"\\Seen"}), NO_FLAGS)])
            with pytest.raises(Rejected, match="mailbox INBOX is open for reading only"):
                await box.expunge(uids_of(1))
            with pytest.raises(Rejected, match="mailbox INBOX is open for reading only"):
                _ = [answer async for answer in box.append(iter([outgoing("k", raw_of(2))]))]
        assert flags_of(account) == {1: NO_FLAGS}
        async with remote.visit(INBOX, scan.epoch) as box:
            assert await box.store([FlagChange(Uid("1"), frozenset({"\\Seen"}), NO_FLAGS)]) == {"1"}
        assert flags_of(account) == {1: frozenset({"\\Seen"})}

    # -- flags

    async def test_store(self, account: Account) -> None:
        for number in range(1, 8):
            account.deliver("INBOX", raw_of(number), ["\\Seen"] if number % 2 else ["alt"])
        account.expunge("INBOX", [7])
        remote = account.remote()
        await remote.listing()
        changes = [
            FlagChange(Uid(str(n)), frozenset({"\\Flagged", "$Neu"}), frozenset({"\\Seen"})) for n in (1, 2, 3, 7)
        ]
        changes.append(FlagChange(Uid("4"), NO_FLAGS, frozenset({"alt"})))
        changes.append(FlagChange(Uid("5"), frozenset({"\\Answered"}), NO_FLAGS))
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            assert await box.store(changes) == {"1", "2", "3", "4", "5", "7"}
        expected = {
            1: {"\\Flagged", "$Neu"},
            2: {"alt", "\\Flagged", "$Neu"},
            3: {"\\Flagged", "$Neu"},
            4: set(),
            5: {"\\Seen", "\\Answered"},
            6: {"alt"},
        }
        assert flags_of(account) == {uid: frozenset(flags) for uid, flags in expected.items()}

    @pytest.mark.parametrize(
        "flag", ["a b", 'q"', "x)\r\nX1 STORE", "(", "{3}", "ä", "", "\\", "\\Recent", "a]", "*", "%", "a\0"]
    )
    async def test_a_flag_that_is_no_atom_is_left_out(self, account: Account, flag: str) -> None:
        account.deliver("INBOX", raw_of(1))
        remote = account.remote()
        await remote.listing()
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            done = await box.store([FlagChange(Uid("1"), frozenset({flag, "\\Seen"}), frozenset({flag + "x"}))])
            answers = [answer async for answer in box.append(iter([outgoing("k", raw_of(2), [flag, "\\Flagged"])]))]
        assert done == {"1"}
        assert [answer.refusal for answer in answers] == [""]
        assert flags_of(account) == {1: frozenset({"\\Seen"}), 2: frozenset({"\\Flagged"})}

    async def test_many_flags_at_once(self, account: Account) -> None:
        remote = account.remote()
        await remote.listing()
        await appended(remote, [outgoing(str(n), raw_of(n)) for n in range(300)])
        seen = range(1, 301, 2)  # the set of them is longer than a short line
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            changes = [FlagChange(Uid(str(n)), frozenset({"\\Seen"}), NO_FLAGS) for n in seen]
            assert await box.store(changes) == set(uids_of(*seen))
        assert {uid for uid, flags in flags_of(account).items() if "\\Seen" in flags} == set(seen)

    # -- new messages

    async def test_append(self, account: Account) -> None:
        raws = {str(n): raw_of(n, n * 1000) for n in range(1, 9)}
        raws["big"] = raw_of(9, 300_000)
        raws["last"] = raw_of(10)
        remote = account.remote()
        await remote.listing()
        sent = [outgoing(key, raw, ["\\Seen", "$Wort", "\\Recent"] if key == "3" else []) for key, raw in raws.items()]
        answers = await appended(remote, sent)
        assert {key: answer.refusal for key, answer in answers.items()} == dict.fromkeys(raws, "")
        found = account.contents("INBOX")
        for key, answer in answers.items():
            assert answer.uid is not None
            flags = frozenset({"\\Seen", "$Wort"}) if key == "3" else NO_FLAGS
            assert found[int(answer.uid)] == (raws[key], flags, WHEN_S)
        assert len(found) == len(raws)

    async def test_append_leaves_out_what_cannot_be_sent(self, account: Account) -> None:
        remote = account.remote()
        await remote.listing()
        sent = [
            outgoing("first", raw_of(1)),
            outgoing("empty", b""),
            outgoing("second", raw_of(2)),
            outgoing("third", raw_of(3, 100_000)),
        ]
        answers = await appended(remote, sent)
        assert answers["empty"].refusal == "an empty message cannot be sent to a mail server"
        assert not answers["empty"].is_full
        assert {key for key, answer in answers.items() if answer.refusal} == {"empty"}
        assert len(account.contents("INBOX")) == 3

    @pytest.mark.parametrize("octets", [0, 200_000])
    @pytest.mark.parametrize("difference", [-1, 1])
    async def test_a_file_that_changed_its_size_is_no_half_command(
        self, account: Account, octets: int, difference: int
    ) -> None:
        remote = account.remote()
        await remote.listing()
        raw = raw_of(2, octets)
        answers = []
        with pytest.raises(LocalError, match="message bad no longer has the"):
            async with remote.visit(INBOX) as box:
                await box.scan(None)
                messages = [outgoing("good", raw_of(1)), outgoing("bad", raw, size_octets=len(raw) + difference)]
                async for answer in box.append(iter(messages)):
                    answers.append(answer.key)
        assert answers == ["good"]
        assert [raw for raw, _, _ in account.contents("INBOX").values()] == [raw_of(1)]
        assert (await scanned(remote)).messages == 1

    async def test_two_equal_messages_are_two(self, account: Account) -> None:
        remote = account.remote()
        await remote.listing()
        answers = await appended(remote, [outgoing("a", raw_of(1)), outgoing("b", raw_of(1))])
        uids = {answer.uid for answer in answers.values()}
        assert uids == {"1", "2"} or (uids == {None} and "UIDPLUS" in account.removed), "a guess may be wrong"
        assert len(account.contents("INBOX")) == 2

    # -- moving and removing

    async def test_move(self, account: Account) -> None:
        account.create(TARGET)
        account.deliver(TARGET, raw_of(99))
        for number in range(1, 9):
            account.deliver("INBOX", raw_of(number), ["\\Flagged"] if number == 3 else [])
        account.expunge("INBOX", [5])
        before = account.contents("INBOX")
        remote = account.remote()
        await remote.listing()
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            moved = await box.move(uids_of(2, 3, 5, 7), TARGET)
        assert set(moved) == {"2", "3", "7"}
        assert set(account.contents("INBOX")) == {1, 4, 6, 8}
        found = account.contents(TARGET)
        assert {raw for raw, _, _ in found.values()} == {raw_of(n) for n in (2, 3, 7, 99)}
        for old, new in moved.items():
            if "UIDPLUS" not in account.removed:
                assert new is not None
            if new is not None:
                assert found[int(new)] == before[int(old)]

    async def test_a_move_to_what_is_not_there(self, account: Account) -> None:
        account.create("kurz")
        for number in range(1, 4):
            account.deliver("INBOX", raw_of(number))
        remote, other = account.remote(), account.remote()
        await remote.listing()
        await other.listing()
        kurz = MailboxName("kurz")
        assert await other.delete(kurz, (await scanned(other, mailbox=kurz)).cursor)
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            for target in ("kurz", "nie gewesen"):
                with pytest.raises(Rejected):
                    await box.move(uids_of(1, 2, 3), MailboxName(target))
        assert flags_of(account) == {1: NO_FLAGS, 2: NO_FLAGS, 3: NO_FLAGS}

    async def test_expunge(self, account: Account) -> None:
        for number in range(1, 9):
            account.deliver("INBOX", raw_of(number))
        account.expunge("INBOX", [5])
        remote = account.remote()
        await remote.listing()
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            assert await box.expunge(uids_of(2, 3, 5, 8)) == {"2", "3", "5", "8"}
        assert flags_of(account) == dict.fromkeys([1, 4, 6, 7], NO_FLAGS)

    async def test_what_others_marked_as_deleted_stays(self, account: Account) -> None:
        account.create(TARGET)
        for number in range(1, 7):
            account.deliver("INBOX", raw_of(number))
        account.flag("INBOX", [6], ["\\Deleted"])
        remote = account.remote()
        await remote.listing()
        can_expunge = "UIDPLUS" not in account.removed
        can_move = can_expunge or "MOVE" not in account.removed
        async with remote.visit(INBOX) as box:
            await box.scan(None)
            gone = await box.expunge(uids_of(1, 2))
            moved = await box.move(uids_of(3), TARGET)
        assert gone == ({"1", "2"} if can_expunge else set())
        assert set(moved) == ({"3"} if can_move else set())
        left = {1, 2, 3, 4, 5, 6} - {int(uid) for uid in gone} - {int(uid) for uid in moved}
        marked = frozenset({"\\Deleted"})
        assert flags_of(account) == {uid: marked if uid == 6 else NO_FLAGS for uid in left}
        assert len(account.contents(TARGET)) == len(moved)

    async def test_scans_follow_our_own_changes(self, account: Account) -> None:
        account.create(TARGET)
        for number in range(1, 30):
            account.deliver("INBOX", raw_of(number))
        remote = account.remote()
        await remote.listing()
        scan = await scanned(remote)
        known = applied({}, scan)
        for step in range(4):
            async with remote.visit(INBOX, scan.epoch) as box:
                if step == 0:
                    await box.store([FlagChange(Uid("3"), frozenset({"\\Seen", "$x"}), NO_FLAGS)])
                elif step == 1:
                    await box.expunge(uids_of(5, 6, 7, 29))
                elif step == 2:
                    _ = [answer async for answer in box.append(iter([outgoing("k", raw_of(77), ["\\Draft"])]))]
                else:
                    await box.move(uids_of(1, 2, 30), TARGET)
                    account.deliver("INBOX", raw_of(78))
                    account.expunge("INBOX", [10])
            scan = await scanned(remote, scan.cursor)
            assert scan.complete
            assert scan.messages == len(account.contents("INBOX"))
            if "CONDSTORE" not in account.removed:
                assert not scan.full, "the cursor tells what has changed"
            known = applied(known, scan)
            assert known == flags_of(account)

    async def test_which_messages_are_there_now(self, account: Account) -> None:
        """Also of those that others expunged while the mailbox is open, and though it is open for changes."""
        for number in range(1, 6):
            account.deliver("INBOX", raw_of(number))
        remote = account.remote()
        await remote.listing()
        scan = await scanned(remote)
        async with remote.visit(INBOX, scan.epoch) as box:
            assert await box.has(uids_of(1, 3, 9)) == set(uids_of(1, 3))
            account.expunge("INBOX", [3, 4])
            assert await box.has(uids_of(1, 3, 4, 5)) == set(uids_of(1, 5))
            assert await box.has([]) == set()

    async def test_a_message_is_found_by_its_head(self, account: Account) -> None:
        head = b"Date: %s\r\nTo: B <b@x.example>, c@X.example\r\nCc: d@x.example\r\nSubject: %s\r\n\r\nbody\r\n"
        for number in range(1, 40):
            account.deliver("INBOX", raw_of(number))
        monday = b"Mon, 14 Sep 2020 12:00:00 +0000"
        account.deliver("INBOX", b"Message-ID: <kept@test.example>\r\n" + head % (monday, b"one"))
        remote = account.remote()
        await remote.listing()
        wanted = {
            b"Message-ID: <kept@test.example>\r\n\r\n": True,
            b"Message-ID: <7@test.example>\r\n\r\n": True,
            b"Message-ID: <kept@test.example\r\n\r\n": False,
            b'Message-ID: <"\\@test.example>\r\n\r\n': False,
            "Message-ID: <ä@test.example>\r\n\r\n".encode(): False,
            b"Message-ID: <other@me.example>\r\n" + head % (monday, b"=?utf-8?q?one?="): True,
            b"Message-ID: <other@me.example>\r\n" + head % (b"14 Sep 2020 14:00:00 +0200", b"one"): True,
            b"Message-ID: <other@test.example>\r\n" + head % (monday, b"one"): False,
            b"Message-ID: <other@me.example>\r\n" + head % (monday, b"two"): False,
            head % (b"Mon, 14 Sep 2020 12:00:01 +0000", b"one"): False,
            (head % (monday, b"one")).replace(b"d@x", b"e@x"): False,
            (head % (b"never", b"one")): False,
            b"Subject: one\r\n\r\n": False,
        }
        async with remote.visit(INBOX, read_only=True) as box:
            found = {octets: await box.holds(Likeness.of(octets, WHEN_S)) for octets in wanted}
        assert found == wanted
        account.deliver("INBOX", b"Message-ID: <late@test.example>\r\n\r\n")
        async with remote.visit(INBOX, read_only=True) as box:
            assert await box.holds(Likeness.of(b"Message-ID: <late@test.example>\r\n\r\n", WHEN_S))
