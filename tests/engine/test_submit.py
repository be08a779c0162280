"""The outbox of an account against a server that does as it is told: states, schedule, copies, reports, crashes."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import anyio
import pytest

from maild.config import Config, Imap, Password, Smtp, load
from maild.config.senders import read_senders
from maild.core import outgoing
from maild.core.errors import AuthRejected, ConnectionLost, LocalError, MaildError, Rejected
from maild.core.likeness import Likeness
from maild.core.model import MailboxName
from maild.core.names import directory
from maild.core.outgoing import Item
from maild.engine import aftermath, doubts
from maild.engine.accept import Order, prepared
from maild.engine.doubts import looking
from maild.engine.own_copies import wants_copy
from maild.engine.sender import watch_outbox
from maild.engine.submit import submit_all
from maild.local.once import deliver_once, letter_key
from maild.local.outbox import Contents, ItemBusy, Outbox
from maild.local.state import State
from maild.remote.smtp import Offline
from maild.testing.imap import ImapServer
from maild.testing.smtp import EOF, EXTENSIONS, RESET, SILENCE, Reaction, SmtpServer, Stage
from maild.testing.store import Store
from tests.engine.sending import NOW, PASSWORD, SHORT, USER, A, B, C, World, states
from tests.local.crash import Crash, Machine, every_step
from tests.local.powercut import SyncedDisk


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with SmtpServer(users={USER: PASSWORD}) as server:
        yield World(server, tmp_path)


# -- when all goes well


async def test_sent_copied_and_forgotten(world: World) -> None:
    world.accept(A, B)
    drained = await world.drain()
    assert drained.is_well
    assert (drained.counts, drained.next_s) == (Counter(sent=2), None)
    (message,) = world.server.journal
    assert (message.sender, message.recipients) == ("me@example.org", (A, B))
    assert world.mailbox("Sent") == [message.octets.replace(b"\r\n", b"\n")]
    assert [path.name[-4:] for path in (world.root / "Mail/work/Sent/cur").iterdir()] == [":2,S"]
    assert world.outbox.contents().items == ()
    assert list(world.outbox.path.rglob("*.eml")) == []


async def test_nothing_to_do_makes_no_connection(world: World) -> None:
    assert (await world.drain()).is_well
    assert world.server.connections == 0


@pytest.mark.parametrize("count", [1, 7, 60])
async def test_many_messages_over_few_connections(world: World, count: int) -> None:
    for number in range(count):
        world.accept(f"r{number}@x.example", subject=str(number))
    drained = await world.drain()
    assert drained.counts == Counter(sent=count)
    assert sorted(m.recipients[0] for m in world.server.journal) == sorted(f"r{n}@x.example" for n in range(count))
    assert world.server.connections <= 4
    assert len(world.mailbox("Sent")) == count
    assert world.outbox.contents().items == ()


async def test_further_connections_that_are_refused_harm_nothing(world: World) -> None:
    for number in range(40):
        world.accept(f"r{number}@x.example")
    world.server.react("auth", "235 2.7.0 welcome")
    world.server.react("auth", "454 4.7.0 too many", times=3)
    assert (await world.drain()).is_well
    assert len(world.server.journal) == 40


async def test_what_arrives_while_it_drains_goes_out_too(world: World) -> None:
    world.accept(A)
    submitter = world.submitter()
    with world.outbox.draining():
        drain = asyncio.get_running_loop().create_task(submitter.drain())
        await world.server.until(lambda: world.server.commands)
        world.accept(B)
        drained = await drain
    assert drained.counts == Counter(sent=2)
    assert world.server.connections == 1


async def test_a_server_that_says_nothing_holds_up_no_other_account(tmp_path: Path) -> None:
    """Side by side, each over its own connections."""
    async with SmtpServer(users={USER: PASSWORD}) as silent, SmtpServer(users={USER: PASSWORD}) as quick:
        silent.react("greeting", SILENCE, times=99)
        text = f'[maild]\nstate_dir = "{tmp_path}/state"\nmaildir = "{tmp_path}/Mail"\n'
        for name, server in (("silent", silent), ("quick", quick)):
            text += f'[accounts.{name}]\naddress = "me@{name}.example"\n[accounts.{name}.smtp]\ntls = "none"\n'
            text += f'host = "{server.host}"\nport = {server.port}\nuser = "{USER}"\npassword = "{PASSWORD}"\n'
        config_file = tmp_path / "maild.toml"
        config_file.touch(mode=0o600)
        config_file.write_text(text)
        config, outbox = load(config_file), Outbox(tmp_path / "state")
        senders = read_senders(config_file)
        for name in ("silent", "quick"):
            raw = f"From: me@{name}.example\nSubject: hello\n\nthere\n".encode()
            outbox.accept(*prepared(raw, Order(recipients=(A,)), senders, time.time()))
        drain = asyncio.get_running_loop().create_task(submit_all(config, outbox))
        await quick.until(lambda: quick.journal)
        while {item.account for item in outbox.contents().items} != {"silent"}:
            await asyncio.sleep(0.001)
        while not silent.connections:
            await asyncio.sleep(0.001)
        assert not drain.done()
        drain.cancel()
        await asyncio.gather(drain, return_exceptions=True)
    assert outbox.contents().items[0].state == "queued"


# -- what the server says, and when it is asked again


@pytest.mark.parametrize(
    ("stage", "reaction", "state", "after_s"),
    [
        ("mail", "451 4.3.0 later", "deferred", 60),
        ("rcpt", "450 4.2.0 greylisted", "deferred", 300),
        ("data", "421 4.3.2 bye", "deferred", 300),
        ("dot", "452 4.3.1 full", "deferred", 60),
        ("mail", EOF, "deferred", 60),
        ("data", RESET, "deferred", 60),
        ("dot", EOF, "uncertain", 900),
        ("dot", RESET, "uncertain", 900),
        ("dot", SILENCE, "uncertain", 900),
        ("dot", b"nonsense\r\n", "uncertain", 900),
        ("greeting", "421 4.3.2 busy", "deferred", 300),
        ("greeting", "554 5.7.1 no service for you", "deferred", 60),
        ("greeting", EOF, "deferred", 60),
        ("greeting", SILENCE, "deferred", 60),
        ("ehlo", b"nonsense\r\n", "deferred", 60),
        ("auth", "454 4.7.0 not now", "deferred", 60),
    ],
)
async def test_tried_again(world: World, stage: Stage, reaction: Reaction, state: str, after_s: int) -> None:
    world.timeouts = SHORT
    world.accept()
    world.server.react(stage, reaction)
    drained = await world.drain()
    item = world.item()
    assert (item.state, item.attempts, item.phase, item.wakes_at()) == (state, 1, "", NOW + after_s)
    assert item.recipients[0].reply
    assert not drained.is_well
    assert drained.next_s is not None
    assert drained.next_s >= NOW + after_s
    assert world.mailbox("INBOX") == []
    if state == "deferred":
        assert world.mailbox("Sent") == []
        assert world.server.journal == []
        world.now_s = NOW + after_s - 1
        before = world.server.connections
        await world.drain()
        assert world.server.connections == before
    world.now_s = NOW + after_s
    assert (await world.drain()).is_well
    assert len(world.mailbox("Sent")) == 1
    assert world.outbox.contents().items == ()


async def test_the_schedule_of_the_contract(world: World) -> None:
    world.accept()
    world.server.react("mail", "451 4.3.0 later", times=1000)
    gaps: list[int] = []
    while True:
        await world.drain()
        if (at := world.item().wakes_at()) is None:
            break
        gaps.append(at - int(world.now_s))
        world.now_s = at
    assert [gap // 60 for gap in gaps[:9]] == [1, 2, 4, 8, 16, 32, 64, 128, 240]
    assert set(gaps[9:]) == {240 * 60}
    assert sum(gaps) >= outgoing.LIFETIME_S > sum(gaps[:-1])
    assert world.item().state == "failed"
    subjects = [message_from_bytes(raw)["Subject"] for raw in world.mailbox("INBOX")]
    assert sorted(subjects) == ["Delayed: hello", "Undelivered: hello"]


async def test_time_offline_is_no_attempt(world: World) -> None:
    item = world.accept()
    account = world.account()
    await world.server.__aexit__(None, None, None)
    submitter = world.submitter(account)
    with world.outbox.draining():
        for days in range(8):
            world.now_s = NOW + days * 86400
            drained = await submitter.drain()
            assert isinstance(drained.error, Offline)
            assert drained.next_s is not None
            assert 0 < drained.next_s - world.now_s <= 900
    assert world.item() == item


async def test_a_refused_password_keeps_everything_as_it_is(world: World) -> None:
    item = world.accept()
    submitter = world.submitter(world.account(secret=Password("another one")))
    with world.outbox.draining():
        for _ in range(3):
            drained = await submitter.drain()
            assert isinstance(drained.error, AuthRejected)
            assert drained.next_s is None
    assert world.item() == item
    assert world.server.commands.count("AUTH") == 1


async def test_a_server_that_offers_no_login_for_a_while_is_tried_again(world: World) -> None:
    world.accept()
    submitter, users = world.submitter(world.account()), world.server.users
    world.server.users = None
    with world.outbox.draining():
        for tries in range(1, 4):
            drained = await submitter.drain(everything=True)
            assert "offers no way to log in" in str(drained.error)
            item = world.item()
            assert (item.state, item.attempts) == ("deferred", tries)
            assert drained.next_s is not None
            assert world.now_s < drained.next_s <= world.now_s + 60 * 2 ** (tries - 1)
        world.server.users = users
        world.now_s = drained.next_s
        assert (await submitter.drain()).counts == Counter(sent=1)


async def test_a_failure_is_reported_once_and_kept(world: World) -> None:
    accepted = world.accept(A, B, subject="=?utf-8?q?h=C3=A9llo?=")
    world.server.react("rcpt", "550 5.1.1 nobody here", when=B)
    told: list[Item] = []
    drained = await world.drain(on_failure=told.append)
    assert drained.counts == Counter(sent=1, failed=1)
    assert not drained.is_well
    await world.drain()
    (raw,) = world.mailbox("INBOX")
    report = message_from_bytes(raw, policy=policy.default)
    assert report["subject"] == "Undelivered: héllo"
    assert "550 5.1.1 nobody here" in next(report.iter_parts()).get_content()
    assert A not in next(report.iter_parts()).get_content()
    assert [item.id for item in told] == [accepted.id]
    assert (world.outbox.path / "failed" / f"{accepted.id}.eml").exists()
    assert states(world.item()) == ["sent", "failed"]
    assert len(world.mailbox("Sent")) == 1


async def test_each_recipient_goes_its_own_way(world: World) -> None:
    world.accept(A, B, C)
    world.server.react("rcpt", "550 5.1.1 nobody", when=B)
    world.server.react("rcpt", "451 4.3.0 later", when=C)
    await world.drain()
    assert states(world.item()) == ["sent", "failed", "deferred"]
    assert (len(world.mailbox("Sent")), len(world.mailbox("INBOX"))) == (1, 1)
    world.now_s += 60
    await world.drain()
    assert [message.recipients for message in world.server.journal] == [(A,), (C,)]
    assert states(world.item()) == ["sent", "failed", "sent"]
    assert (len(world.mailbox("Sent")), len(world.mailbox("INBOX"))) == (1, 1)


async def test_a_retried_failure_is_sent_and_may_fail_again(world: World) -> None:
    item = world.accept()
    world.server.react("rcpt", "550 5.1.1 nobody", times=2)
    await world.drain()
    for _ in range(2):
        world.outbox.edit(item.id, lambda found: outgoing.retried(found, world.now_s))
        await world.drain()
    assert len(world.mailbox("INBOX")) == 2
    assert len(world.mailbox("Sent")) == 1
    assert world.outbox.contents().items == ()


async def test_a_message_whose_file_is_gone_fails_and_holds_up_no_other(world: World) -> None:
    lost = world.accept(A)
    world.accept(B)
    (world.outbox.path / f"{lost.id}.eml").unlink()
    drained = await world.drain()
    assert drained.counts == Counter(sent=1, failed=1)
    assert world.item().state == "failed"
    assert b"is gone from the outbox" in world.mailbox("INBOX")[0]
    world.outbox.cancel(lost.id)
    assert world.outbox.contents().items == ()


# -- what a person orders


async def test_held_and_not_due_is_not_sent(world: World) -> None:
    held, later = world.accept(A), world.accept(B, at_s=NOW + 3600)
    world.outbox.edit(held.id, outgoing.held)
    drained = await world.drain()
    assert drained.next_s == NOW + 3600
    assert world.server.connections == 0
    await world.drain(everything=True)
    assert [message.recipients for message in world.server.journal] == [(B,)]
    world.outbox.edit(held.id, lambda found: outgoing.released(found, world.now_s))
    await world.drain()
    assert [message.recipients for message in world.server.journal] == [(B,), (A,)]
    assert later.since_s == NOW + 3600


async def test_everything_tries_what_is_deferred(world: World) -> None:
    world.accept()
    world.server.react("mail", "451 4.3.0 later")
    await world.drain()
    assert (await world.drain(everything=True)).is_well


async def test_cancelled_while_another_is_being_sent(world: World) -> None:
    world.accept(A)
    submitter = world.submitter()
    world.server.react("dot", SILENCE)
    with world.outbox.draining():
        drain = asyncio.get_running_loop().create_task(submitter.drain())
        await world.server.until(lambda: world.server.taken)
        with pytest.raises(ItemBusy):
            world.outbox.cancel(world.item().id)
        late = world.accept(B)
        world.outbox.cancel(late.id)
        drain.cancel()
        await asyncio.gather(drain, return_exceptions=True)
    assert world.item().state == "uncertain"  # the dot was sent, and nobody waited for the answer
    assert len(world.server.taken) == 1


@pytest.mark.parametrize("extensions", [EXTENSIONS, ()], ids=["pipelining", "plain"])
@pytest.mark.parametrize("stage", ["mail", "rcpt", "data"])
@pytest.mark.parametrize("end", ["cancelled", "killed"])
async def test_ended_before_the_body_is_as_before(tmp_path: Path, end: str, stage: Stage, extensions: Any) -> None:
    """Nothing of the message was sent, and that is known: it is tried again at once, and nobody is in doubt."""
    async with SmtpServer(users={USER: PASSWORD}, extensions=extensions) as server:
        world = World(server, tmp_path)
        item = world.accept(A)
        server.react(stage, SILENCE)
        with world.outbox.draining():
            drain = asyncio.get_running_loop().create_task(world.submitter().drain())
            await server.until(lambda: any(command.upper().startswith(stage.upper()) for command in server.commands))
            seen = Outbox(tmp_path / "state").contents().items
            if end == "killed":
                shutil.copytree(tmp_path / "state", tmp_path / "left" / "state")
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)
        assert [found.phase for found in seen] == ["envelope"]
        left = Outbox(tmp_path / "left" / "state") if end == "killed" else world.outbox
        with left.draining():
            assert left.contents().items == (item,)


async def test_who_was_refused_is_recorded_before_the_body(world: World) -> None:
    world.accept(A, B)
    world.server.react("rcpt", "550 5.1.1 nobody", when=B)
    world.server.react("dot", SILENCE)
    with world.outbox.draining():
        drain = asyncio.get_running_loop().create_task(world.submitter().drain())
        await world.server.until(lambda: world.server.taken)
        recorded = world.item()
        drain.cancel()
        await asyncio.gather(drain, return_exceptions=True)
    assert recorded.phase == "body"
    assert [(r.state, r.is_in_flight) for r in recorded.recipients] == [("queued", True), ("failed", False)]


async def test_stopping_finishes_what_is_on_the_wire(world: World) -> None:
    for number in range(30):
        world.accept(f"r{number}@x.example")
    submitter = world.submitter()
    with world.outbox.draining():
        drain = asyncio.get_running_loop().create_task(submitter.drain())
        await world.server.until(lambda: len(world.server.journal) >= 3)
        submitter.stop()
        drained = await drain
    sent = len(world.server.journal)
    assert 3 <= sent < 30
    assert drained.counts == Counter(sent=sent)
    assert {(item.state, item.phase, item.attempts) for item in world.outbox.contents().items} == {("queued", "", 0)}
    assert len(world.outbox.contents().items) == 30 - sent


# -- doubt


@pytest.mark.parametrize("knows", [True, False, None])
async def test_doubt_is_settled_by_looking(world: World, knows: bool | None) -> None:
    item = world.accept()
    asked: list[str] = []

    async def find_sent(wanted: Likeness) -> bool | None:
        asked.append(wanted.message_id)
        return knows

    account = world.account(sent="none")
    world.server.react("dot", RESET)
    await world.drain(account, find_sent=find_sent)
    assert world.item().state == "uncertain"
    await world.drain(account, find_sent=find_sent)
    assert asked == [item.message_id]
    assert len(world.outbox.contents().items) == (0 if knows else 1)
    world.now_s += 900
    await world.drain(account, find_sent=find_sent)
    assert len(world.server.taken) == (1 if knows else 2)
    ids = {message_from_bytes(message.octets)["Message-ID"] for message in world.server.taken}
    assert ids == {item.message_id}
    assert world.outbox.contents().items == ()


async def never(wanted: Likeness) -> bool | None:
    raise AssertionError(f"it must not be looked for: {wanted}")


async def test_our_own_copy_is_no_proof(world: World) -> None:
    world.accept()
    world.server.react("dot", RESET)
    await world.drain(find_sent=never)
    await world.drain(find_sent=never)
    assert world.item().state == "uncertain"


async def test_the_copy_of_an_earlier_attempt_is_no_proof(world: World) -> None:
    """It was for another recipient: the one in doubt might never get the message."""
    world.accept(A, B)
    account = world.account(sent="none")
    world.server.react("rcpt", "451 4.3.0 later", when=B)
    await world.drain(account)
    world.now_s += 60
    world.server.react("dot", RESET)
    await world.drain(account)
    assert states(world.item()) == ["sent", "uncertain"]
    await world.drain(account, find_sent=never)
    world.now_s += 900
    assert (await world.drain(account, find_sent=never)).is_well
    assert [message.recipients for message in world.server.taken] == [(A,), (B,), (B,)]


async def test_one_copy_is_no_proof_for_who_was_in_another_transaction(world: World) -> None:
    world.accept(A, B)
    account = world.account(sent="none")
    world.server.react("rcpt", "451 4.3.0 later", when=B)
    world.server.react("dot", RESET, times=2)
    await world.drain(account)
    assert states(world.item()) == ["uncertain", "deferred"]
    world.now_s += 60
    await world.drain(account)
    assert states(world.item()) == ["uncertain", "uncertain"]
    await world.drain(account, find_sent=never)
    world.now_s += 900
    assert (await world.drain(account, find_sent=never)).is_well
    assert [message.recipients for message in world.server.taken] == [(A,), (B,), (A, B)]


async def test_a_second_doubt_about_the_same_recipients_is_looked_up(world: World) -> None:
    async def find_sent(wanted: Likeness) -> bool | None:
        return len(world.server.taken) > 1

    world.accept(A, B)
    account = world.account(sent="none")
    world.server.react("dot", RESET, times=2)
    for _ in range(2):
        await world.drain(account, find_sent=find_sent)
        world.now_s += 900
    assert states(world.item()) == ["uncertain", "uncertain"]
    await world.drain(account, find_sent=find_sent)
    assert world.outbox.contents().items == ()
    assert len(world.server.taken) == 2


@pytest.mark.parametrize(
    ("failure", "waits"),
    [(ConnectionLost("away"), True), (AuthRejected("no"), False), (Rejected("no such mailbox"), False)],
)
async def test_a_server_that_cannot_be_asked_is_waited_for_but_not_for_ever(
    world: World, failure: MaildError, waits: bool
) -> None:
    async def find_sent(wanted: Likeness) -> bool | None:
        raise failure

    account = world.account(sent="none")
    world.accept()
    world.server.react("dot", RESET)
    await world.drain(account)
    began_s = world.now_s
    while world.outbox.contents().items:
        wakes_at = world.item().wakes_at()
        assert wakes_at is not None
        assert wakes_at > world.now_s
        world.now_s = wakes_at
        await world.drain(account, find_sent=find_sent)
    assert len(world.server.taken) == 2
    assert world.now_s - began_s == (4 * 3600 if waits else 900)


async def test_a_look_that_takes_for_ever_holds_up_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def find_sent(wanted: Likeness) -> bool | None:
        await asyncio.Event().wait()
        return None

    monkeypatch.setattr(doubts, "LOOK_S", 0.05)
    account = world.account(sent="none")
    world.accept(A)
    world.server.react("dot", RESET)
    await world.drain(account)
    world.accept(B)
    await world.drain(account, find_sent=find_sent)
    assert [message.recipients for message in world.server.journal] == [(B,)]
    assert world.item().state == "uncertain"


@pytest.mark.parametrize("kept_as", ["it is", "with another Message-ID", "nothing"])
async def test_looked_for_on_the_server(world: World, kept_as: str) -> None:
    """The whole way: the server's own copy is found over the account's IMAP, by a drain without a daemon."""
    store = Store()
    store.create("Gesendete Objekte", "\\Sent")
    item = world.accept(A, subject="one\nTo: a@x.example")
    assert item.subject == "one"
    async with ImapServer(store, {USER: PASSWORD}) as imap:
        host = Imap(host=imap.host, port=imap.port, user=USER, secret=Password(PASSWORD), tls="none")
        account = replace(world.account(sent="none"), imap=host)
        world.server.react("dot", RESET)
        async with looking(account) as find_sent:
            await world.drain(account, find_sent=find_sent)
            (taken,) = world.server.taken
            raw = taken.octets
            if kept_as == "with another Message-ID":
                raw = raw.replace(item.message_id.encode(), b"<other@server.example>").replace(
                    b"To: a@x.example", b"To: A <a@X.example>"
                )
            if kept_as != "nothing":
                store.deliver("Gesendete Objekte", b"Received: from me by you\r\n" + raw, date_s=NOW)
            store.deliver("Gesendete Objekte", b"Message-ID: <x@y>\r\nSubject: one\r\n\r\n")
            await world.drain(account, find_sent=find_sent)
    assert bool(world.outbox.contents().items) == (kept_as == "nothing")


# -- the Sent mailbox


@pytest.mark.parametrize(
    ("sent", "host", "expected"),
    [
        ("auto", "smtp.example.org", True),
        ("auto", "smtp.gmail.com", False),
        ("auto", "SMTP.Office365.com.", False),
        ("copy", "smtp.gmail.com", True),
        ("none", "smtp.example.org", False),
    ],
)
def test_who_keeps_a_copy(sent: Any, host: str, expected: bool) -> None:
    assert wants_copy(Smtp(host=host, port=465, user="u", secret=Password("p"), sent=sent)) == expected


async def test_no_copy_where_none_is_wanted(world: World) -> None:
    world.accept()
    assert (await world.drain(world.account(sent="none"))).is_well
    assert world.mailbox("Sent") == []
    assert world.outbox.contents().items == ()


@pytest.mark.parametrize(
    ("layout", "options", "expected"),
    [
        ("nested", {}, "Sent"),
        ("maildir++", {}, ".Sent"),
        ("nested", {"sent_mailbox": "[Gmail]/Sent Mail"}, "[Gmail]/Sent Mail"),
        ("maildir++", {"sent_mailbox": "Mail/Sent.x"}, ".Mail.Sent%2Ex"),
    ],
)
async def test_where_the_copy_goes(world: World, layout: Any, options: dict[str, str], expected: str) -> None:
    world.accept()
    await world.drain(replace(world.account(**options), layout=layout))
    assert len(world.mailbox(expected)) == 1


@pytest.mark.parametrize("layout", ["nested", "maildir++"])
async def test_the_copy_goes_where_the_role_is(world: World, layout: Any) -> None:
    """Once, also when the crash came before the role was known, and a reader moved the copy meanwhile."""
    account = replace(world.account(), layout=layout)
    (world.root / "Mail/work").mkdir(parents=True)
    (world.root / "Mail/work/.maild").touch()
    state = State.open(world.root / "state" / "work.sqlite")
    item = world.accept()
    with world.outbox.draining():
        await world.submitter(account).drain()
        kept = replace(item, recipients=(replace(item.recipients[0], state="sent"),), copy="begun")
        world.outbox.accept(kept, b"Subject: as it was before the crash\n\n")
        (again,) = world.outbox.contents().items
        first = world.root / "Mail/work" / directory(("Sent",), layout) / "cur"
        key = letter_key(again.id, again.created_s, "sent")
        (first / f"{key}:2,S").write_bytes(b"delivered, and not yet noted")
        moved = directory(("Moved",), layout)
        for subdir in ("cur", "new", "tmp"):
            (world.root / "Mail/work" / moved / subdir).mkdir(parents=True)
        (first / f"{key}:2,S").rename(world.root / "Mail/work" / moved / "cur" / f"{key}:2,RS")
        where = directory(("Gesendete Objekte",), layout)
        state.set_roles({"\\Sent": (MailboxName("Gesendete Objekte"), str(where))})
        await world.submitter(account).drain()
        assert world.outbox.contents().items == ()
        assert [len(world.mailbox(str(directory((name,), layout)))) for name in ("Sent", "Moved")] == [1, 1]
        assert world.mailbox(str(where)) == []
        world.accept(B)
        await world.submitter(account).drain()
        assert len(world.mailbox(str(where))) == 1
    state.close()


async def test_a_maildir_that_is_not_there_keeps_the_copy_waiting(world: World) -> None:
    world.accept()
    (world.root / "state" / "work.sqlite").touch()
    (world.root / "Mail" / "work").mkdir(parents=True)
    drained = await world.drain()
    assert drained.counts == Counter(sent=1)
    assert drained.next_s == NOW + 60
    assert world.item().state == "sent"
    (world.root / "Mail" / "work" / ".maild").touch()
    await world.drain()
    assert len(world.mailbox("Sent")) == 1
    assert world.outbox.contents().items == ()
    assert len(world.server.journal) == 1


async def test_nobody_changes_what_is_being_seen_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled in between, the message would be back when it is written down that its report is delivered."""
    item = world.accept()
    (world.root / "state" / "work.sqlite").touch()
    (world.root / "Mail" / "work").mkdir(parents=True)
    world.server.react("rcpt", "550 5.1.1 nobody")
    await world.drain()
    assert world.mailbox("INBOX") == []
    (world.root / "Mail" / "work" / ".maild").touch()
    refused: list[str] = []

    def deliver(*args: Any) -> None:
        deliver_once(*args)
        with pytest.raises(ItemBusy):
            Outbox(world.root / "state").cancel(item.id)
        refused.append(item.id)

    monkeypatch.setattr(aftermath, "deliver_once", deliver)
    await world.drain()
    assert refused == [item.id]
    assert len(world.mailbox("INBOX")) == 1
    Outbox(world.root / "state").cancel(item.id)
    await world.drain()
    assert world.outbox.contents().items == ()


# -- crashes


async def run_once(world: World) -> None:
    with world.outbox.draining():
        await world.submitter().drain()


async def settle_all(world: World) -> None:
    for _ in range(4):
        world.outbox = Outbox(world.root / "state")
        await run_once(world)
        world.now_s += 901


@pytest.mark.parametrize(
    ("refusal", "end"),
    [
        (None, "killed"),
        (None, "power cut"),
        ("550 5.1.1 nobody", "killed"),
        pytest.param("550 5.1.1 nobody", "power cut", marks=pytest.mark.long),
    ],
)
async def test_a_crash_at_any_step_loses_nothing_and_doubles_only_what_was_uncertain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str | None, end: str
) -> None:
    """Stopped at the n-th change of the disk and started again: everybody gets it, once unless there was doubt.

    Killed, all that was done is there; after the power cut only what was synced.
    """
    disk = SyncedDisk(monkeypatch, tmp_path)
    machine = Machine(monkeypatch)
    for steps in every_step(machine):
        async with SmtpServer(users={USER: PASSWORD}) as server:
            root = tmp_path / str(steps)
            root.mkdir()
            world = World(server, root)
            recipients = [(A,), (B, C)]
            for group in recipients:
                world.accept(*group)
            if refusal is not None:
                server.react("rcpt", refusal, times=99, when=B)
            with machine.crashing_at(steps):
                await crashed(world)
            if end == "power cut" and machine.has_crashed:
                world.root = tmp_path / f"{steps} after"
                disk.image(root, world.root)
            world.outbox = Outbox(world.root / "state")
            with world.outbox.draining():
                doubtful = {
                    r.address for i in world.outbox.contents().items for r in i.recipients if r.state == "uncertain"
                }
            await settle_all(world)
            check(world, doubtful, refusal is not None)
        disk.close()
    assert steps > 20


async def crashed(world: World) -> None:
    try:
        await run_once(world)
    except Crash:
        return
    except BaseExceptionGroup as group:
        if group.subgroup(Crash) is None:
            raise


def check(world: World, doubtful: set[str], has_refusal: bool) -> None:
    got = Counter(r for message in world.server.journal for r in message.recipients)
    expected = {A, C} if has_refusal else {A, B, C}
    assert set(got) == expected
    assert {address for address, times in got.items() if times > 1} <= doubtful
    assert len(world.mailbox("Sent")) == 2
    assert len(world.mailbox("INBOX")) == (1 if has_refusal else 0)
    left = world.outbox.contents()
    assert not left.unreadable
    assert [states(item) for item in left.items] == ([["failed", "sent"]] if has_refusal else [])


async def test_an_outbox_that_cannot_be_read_is_the_result_of_a_drain(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.accept()
    with world.outbox.draining():
        monkeypatch.setattr(Outbox, "contents", Mock(side_effect=LocalError("cannot read it")))
        drained = await world.submitter().drain()
    assert (str(drained.error), drained.next_s) == ("cannot read it", NOW + 60)


async def test_a_full_disk_in_the_middle_is_survived(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body is not sent when it could not be recorded; what the server said is known as long as maild lives."""
    world.accept()
    real = os.fdatasync
    calls: list[int] = []

    def fdatasync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    failing = 1  # the body; the claim began the file
    drained = await world.drain()
    assert isinstance(drained.error, LocalError)
    assert world.server.taken == []
    assert world.item().state == "queued"
    calls.clear()
    failing = 2  # the verdict
    with world.outbox.draining():
        submitter = world.submitter()
        drained = await submitter.drain()
        assert isinstance(drained.error, LocalError)
        assert not isinstance(drained.error, ConnectionLost)
        assert (await submitter.drain()).error is None
    assert world.outbox.contents().items == ()
    assert (len(world.mailbox("Sent")), len(world.server.taken)) == (1, 1)


async def test_a_copy_that_cannot_be_kept_is_tried_once_a_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try writes to the outbox, which wakes whoever watches it: that must not be a reason for the next one."""
    tries: list[float] = []

    def not_mounted(*_: Any) -> None:
        tries.append(world.now_s)
        raise LocalError("the Maildir is not mounted")

    world.accept(A)
    with monkeypatch.context() as patch, world.outbox.draining():
        patch.setattr(aftermath, "check_mounted", not_mounted)
        submitter = world.submitter()
        drained = await submitter.drain()
        for _ in range(3):
            again = await submitter.drain()
            assert again.next_s == drained.next_s == world.now_s + 60
        assert len(tries) == 1
        world.now_s += 60
        await submitter.drain()
        await submitter.drain(everything=True)
        assert len(tries) == 3
        patch.undo()
        await submitter.drain(everything=True)
    assert (world.outbox.contents().items, len(world.mailbox("Sent"))) == ((), 1)


async def test_a_message_that_cannot_be_read_holds_up_no_other(world: World) -> None:
    for n in range(3):
        world.accept(A, subject=str(n))
    bad = world.outbox.contents().items[1]
    path = world.outbox.path / f"{bad.id}.eml"
    path.rename(path.with_suffix(".away"))
    path.mkdir()  # EISDIR, in place of a bad sector
    drained = await world.drain()
    assert drained.counts == Counter(sent=2, deferred=1)
    assert "cannot read" in world.item().recipients[0].reply
    path.rmdir()
    path.with_suffix(".away").rename(path)
    world.now_s += 60
    assert (await world.drain()).counts == Counter(sent=1)


async def test_a_flush_ends_what_an_earlier_one_left(world: World) -> None:
    """Sent, and interrupted before its copy was kept."""
    item = world.accept(A)
    account = world.account()

    def left(found: Item) -> Item:
        return replace(found, copy="begun", recipients=(replace(found.recipients[0], state="sent"),))

    world.outbox.edit(item.id, left)
    root = world.root
    config = Config(path=root / "maild.toml", maildir=root, state_dir=root / "state", accounts={"work": account})
    results = await submit_all(config, world.outbox, everything=True)
    assert results["work"].error is None
    assert (world.outbox.contents().items, len(world.mailbox("Sent"))) == ((), 1)


async def test_a_disk_in_trouble_does_not_end_the_watch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches holds the outbox for those who send: a verdict on its way would be lost."""
    world.accept(A)
    original, failures = world.outbox.contents, [LocalError("too many open files")] * 2

    def contents() -> Contents:
        if failures:
            raise failures.pop()
        return original()

    async def changed() -> None:
        return None

    monkeypatch.setattr(world.outbox, "contents", contents)
    woken: list[set[str]] = []
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:

            def wake(names: Collection[str]) -> None:
                woken.append(set(names))
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch_outbox, world.outbox, wake, changed)
    assert (woken, failures) == ([{"work"}], [])
