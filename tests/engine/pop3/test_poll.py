"""One poll of a POP3 account: every message once and only once, whatever the server offers and does."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing

from maild.core.maildrop import Terms
from maild.engine import lifetime
from maild.local.overview import read_overview
from maild.remote.pop3.parse import Limits
from maild.testing.faults import Answer, Cut, Rewrite
from tests.engine.maildrop import CAPABILITIES, DAY_S, PopWorld, disk_form, pop_world
from tests.engine.world import long_body, message


async def test_what_is_new_comes_once(any_world: PopWorld) -> None:
    world = any_world
    raws = world.deliver(30)
    report = await world.polled()
    assert (report.total("pulled"), report.total("adopted")) == (30, 0)
    assert world.on_disk() == disk_form(raws)
    raws += world.deliver(5, start=100)
    assert (await world.polled()).total("pulled") == 5
    for _ in range(3):
        assert (await world.polled()).total("pulled") == 0
    assert world.on_disk() == disk_form(raws)
    assert world.on_server() == dict.fromkeys(raws, 1)


async def test_a_poll_with_nothing_new_asks_for_nothing_but_the_list(world: PopWorld) -> None:
    world.deliver(20)
    await world.polled()
    world.commands()
    await world.polled()
    assert world.commands() == ["CAPA", "AUTH ***", "UIDL", "QUIT"]


async def test_octets_that_are_not_like_mail(any_world: PopWorld) -> None:
    """No header, no end, dots, lone CRs and LFs, a NUL, nothing at all."""
    world = any_world
    raws = [
        b"A: b\r\n\r\nno end",
        b"A: c\r\n\r\n.\r\n..\r\n.x\r\n",
        b".dot first\r\n\r\n",
        b"A: d\r\n\r\nlone \r cr\r\n\x00\xff\r\n",
        b"no header at all",
        b"\r\n\r\nempty header\r\n",
    ]
    for raw in raws:
        world.server.deliver(raw)
    await world.polled()
    await world.polled()
    assert world.on_disk() == disk_form(raws)


async def test_a_message_bigger_than_memory_goes_through_a_file(world: PopWorld) -> None:
    body = long_body() + ".\r\n..dots\r\n"
    raw = message(1, body=body)
    assert len(raw) > Limits().memory
    world.server.deliver(raw)
    raws = [raw, *world.deliver(3, start=2)]
    await world.polled()
    assert world.on_disk() == disk_form(raws)
    world.lose_state()
    report = await world.polled()
    assert (report.total("pulled"), report.total("adopted")) == (0, 4)
    assert world.on_disk() == disk_form(raws)


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
async def test_line_ends(world: PopWorld, line_end: bytes) -> None:
    world.server._policy.line_end = line_end
    raws = world.deliver(4)
    await world.polled()
    assert world.on_disk() == disk_form(raws)


async def test_what_is_too_big_stays_and_is_told(world: PopWorld) -> None:
    raws = world.deliver(3)
    world.server.deliver(message(9, body="x" * 5000))
    world.settings(max_message_size_octets=4096, leave_on_server=False)
    report = await world.polled()
    assert (report.total("pulled"), report.total("skipped")) == (3, 1)
    assert world.on_disk() == disk_form(raws)
    assert len(world.server.messages) == 1
    world.settings(max_message_size_octets=1 << 20)
    report = await world.polled()
    assert (report.total("pulled"), report.total("skipped")) == (1, 0)
    assert world.server.messages == []


async def test_a_size_that_lies(world: PopWorld) -> None:
    """Told too small it still comes; told too big as well."""
    raws = world.deliver(4)
    for kept, told in zip(world.server.messages, (0, 1, 10_000, 1 << 40), strict=True):
        kept.size_octets = told
    world.settings(max_message_size_octets=1 << 50)
    assert (await world.polled()).total("pulled") == 4
    assert world.on_disk() == disk_form(raws)


async def test_a_message_that_the_server_does_not_give_holds_nobody_up(world: PopWorld) -> None:
    raws = world.deliver(3)
    world.server.faults.add("RETR", Answer("-ERR cannot read it"), nth=2)
    report = await world.polled()
    assert (report.total("pulled"), report.total("skipped")) == (2, 1)
    report = await world.polled()
    assert (report.total("pulled"), report.total("skipped")) == (1, 0)
    assert world.on_disk() == disk_form(raws)


async def test_the_connection_is_lost_in_a_message(any_world: PopWorld) -> None:
    """The rest comes over the next one, and nothing twice."""
    world = any_world
    raws = world.deliver(20)
    world.server.faults.add("RETR", Cut(after_octets=60), nth=7)
    assert (await world.polled()).total("pulled") == 20
    assert world.on_disk() == disk_form(raws)


async def test_a_message_that_ends_every_connection_is_given_up(world: PopWorld) -> None:
    raws = world.deliver(5)
    poison = world.server.messages[2]

    def poisoned(response: bytes) -> bytes:
        return b"garbage\r\n" if poison.raw in response else response

    world.server.faults.add("RETR", Rewrite(poisoned), times=None)
    report = await world.polled()
    assert (report.total("pulled"), report.total("skipped")) == (4, 1)
    assert world.on_disk() == disk_form([raw for raw in raws if raw != poison.raw])


@pytest.mark.parametrize("is_delayed", [False, True], ids=["at once", "LOGIN-DELAY"])
async def test_messages_that_end_every_connection_cost_a_poll_each_and_no_more(
    world: PopWorld, is_delayed: bool
) -> None:
    """Three of them are more than the tries of one poll; where the server wants a delay each poll has one try."""
    if is_delayed:
        world.server.capabilities.add("LOGIN-DELAY 900")
    raws = world.deliver(8)
    poison = {world.server.messages[n].raw for n in (0, 3, 7)}
    good = [raw for raw in raws if raw not in poison]

    def poisoned(response: bytes) -> bytes:
        return b"garbage\r\n" if any(raw in response for raw in poison) else response

    world.server.faults.add("RETR", Rewrite(poisoned), times=None)
    polls = [await world.poll()]
    while polls[-1].error is not None and len(polls) < 10:
        world.now_s += 900.0
        polls.append(await world.poll())
    assert len(polls) == (7 if is_delayed else 3)
    assert polls[-1].total("skipped") == 3
    assert world.on_disk() == disk_form(good)
    world.deliver(1, start=100)
    report = await world.polled()
    assert (report.total("pulled"), report.total("skipped")) == (1, 3)

    poison.clear()
    world.now_s += 4 * 3600.0
    assert (await world.polled()).total("pulled") == 3
    report = await world.polled()
    assert (report.total("pulled"), report.total("skipped")) == (0, 0)
    assert len(world.on_disk()) == 9


async def test_a_message_that_was_cut_off_once_is_asked_for_last(world: PopWorld) -> None:
    """What follows it must not wait for it."""
    world.server.capabilities.add("LOGIN-DELAY 900")
    raws = world.deliver(3)
    world.server.faults.add("RETR", Cut(after_octets=60))
    assert (await world.poll()).error is not None
    world.commands()
    assert (await world.polled()).total("pulled") == 3
    assert [line for line in world.commands() if line.startswith("RETR")] == ["RETR 2", "RETR 3", "RETR 1"]
    assert world.on_disk() == disk_form(raws)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("-ERR [AUTH] no", "check user and password"),
        ("-ERR no such user", "check user and password"),
        ("-ERR [IN-USE] busy", "another program has this maildrop open"),
        ("-ERR [LOGIN-DELAY] slow down", "more time between two logins"),
        ("-ERR [SYS/TEMP] disk", "tried again later"),
        ("-ERR [SYS/PERM] broken", "only the server's operator can help"),
        ("-ERR maildrop is locked by another session", "tried again later"),
    ],
)
async def test_a_refused_login(world: PopWorld, answer: str, said: str) -> None:
    world.deliver(1)
    world.server.faults.add("AUTH", Answer(answer), times=None)
    report = await world.poll()
    assert report.error is not None
    assert said in report.error
    assert world.counted()["AUTH"] == 1


async def test_what_status_tells_of_a_poll_that_failed(world: PopWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1_800_000_000.0
    monkeypatch.setattr(lifetime.time, "time", lambda: now_s)
    await world.polled()
    world.server.faults.add("AUTH", Answer("-ERR [AUTH] no"), times=1)
    now_s += 100
    report = await world.poll()
    stored = read_overview(world.state_dir / "isp.sqlite")
    assert (stored.error, stored.last_pass_s) == (report.error, now_s - 100)
    assert stored.error is not None
    await world.polled()
    stored = read_overview(world.state_dir / "isp.sqlite")
    assert (stored.error, stored.last_pass_s) == (None, now_s)


async def test_user_and_pass_where_there_is_no_sasl(tmp_path: Path) -> None:
    async with pop_world(tmp_path, CAPABILITIES["bare"]) as world:
        world.deliver(1)
        await world.polled()
        assert world.commands()[:3] == ["CAPA", f"USER {world.account.address}", "PASS ***"]


async def test_a_maildrop_that_is_in_use(world: PopWorld) -> None:
    world.deliver(1)
    world.server._policy.locked_by = 99
    report = await world.poll()
    assert report.error is not None
    assert "another program has this maildrop open" in report.error
    world.server._policy.locked_by = 0
    await world.polled()


async def test_what_the_server_wants(world: PopWorld) -> None:
    world.server.capabilities.update({"LOGIN-DELAY 900", "EXPIRE 14"})
    await world.polled()
    assert world.terms == Terms(900, 14)


async def test_a_dry_run_changes_nothing_anywhere(world: PopWorld) -> None:
    world.deliver(3)
    report = await world.poll(dry_run=True)
    assert report.total("pulled") == 3
    assert not world.root.exists()
    assert not world.state_dir.exists()
    await world.polled()
    world.deliver(2, start=10)
    world.settings(leave_on_server=False)
    before = {path: path.read_bytes() for path in world.root.parent.rglob("*") if path.is_file()}
    report = await world.poll(dry_run=True)
    assert (report.total("pulled"), report.total("deleted_there")) == (2, 3)
    assert {path: path.read_bytes() for path in world.root.parent.rglob("*") if path.is_file()} == before
    assert len(world.server.messages) == 5


async def test_the_maildir_is_gone(world: PopWorld) -> None:
    world.deliver(12)
    world.settings(delete_with_local=True)
    await world.polled()
    world.root.rename(world.root.with_name("elsewhere"))
    report = await world.poll()
    assert report.error is not None
    assert "is gone" in report.error
    assert len(world.server.messages) == 12
    world.root.with_name("elsewhere").rename(world.root)
    (world.root / "INBOX").rename(world.root / "x")
    assert not (await world.poll()).ok
    assert len(world.server.messages) == 12


async def test_the_maildir_may_be_the_account_itself(world: PopWorld) -> None:
    from dataclasses import replace

    world.account = replace(world.account, layout="maildir++")
    world.deliver(2)
    await world.polled()
    assert len(list((world.root / "new").iterdir())) == 2


@pytest.mark.parametrize(
    ("expire", "leave", "said"),
    [
        ("EXPIRE 14", True, "keeps mail for 14 days"),
        ("EXPIRE 14", int(30 * DAY_S), "keeps mail for 14 days"),
        ("EXPIRE 0", True, "keeps no mail that was fetched"),
        ("EXPIRE 14", int(14 * DAY_S), None),
        ("EXPIRE 14", False, None),
        ("EXPIRE NEVER", True, None),
    ],
)
async def test_a_server_that_keeps_mail_for_less_than_it_is_left_there(
    world: PopWorld, expire: str, leave: bool | int, said: str | None
) -> None:
    """It is told once, and no file goes because of it."""
    world.server.capabilities.add(expire)
    world.settings(leave_on_server=leave)
    with structlog.testing.capture_logs() as logged:
        for _ in range(2):
            await world.polled()
    reasons = [entry["reason"] for entry in logged if entry["event"] == "maildrop.limited"]
    assert len(reasons) == (said is not None)
    assert all(str(said) in reason for reason in reasons)
