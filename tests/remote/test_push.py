"""Push: what the server tells by itself is heard, and a server that tells nothing is found out."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from maild.core.errors import ConnectionLost, MaildError, Unavailable
from maild.core.model import MailboxName
from maild.remote.imap import experience as experience_module
from maild.remote.imap import push, told
from maild.remote.imap import remote as remote_module
from maild.remote.imap.experience import REFUSED_S, RENEW_S, Experience
from maild.remote.imap.remote import ImapRemote
from maild.remote.imap.told import News
from maild.testing.faults import Answer, Bye, Cut, Forget, Hold, Inject, Rewrite
from maild.testing.imap import ALL, ImapServer
from maild.testing.store import Store
from tests.daemon.waiting import until
from tests.remote.conftest import DEADLINE_S, PASSWORD, SHORT_S, USER, imap_endpoint

pytestmark = pytest.mark.usefixtures("quiet_loop")

INBOX, OTHER, JUNK = MailboxName("INBOX"), MailboxName("Other"), MailboxName("Junk")
RAW = b"Subject: x\r\n\r\nbody\r\n"
METHODS = pytest.mark.parametrize("method", ["notify", "idle"])


def filled() -> Store:
    store = Store()
    for name in (OTHER, JUNK):
        store.create(name)
    store.deliver("INBOX", RAW)
    return store


class Account:
    """A server in memory and the remote that watches it."""

    def __init__(self, server: ImapServer, remote: ImapRemote) -> None:
        self.server = server
        self.store = server.store
        self.remote = remote

    @asynccontextmanager
    async def watching(self, method: Any = "auto", *idle: MailboxName) -> AsyncIterator[News]:
        async with self.remote.watch([INBOX, OTHER], idle or [INBOX], method) as news:
            await self.server.until(lambda: method == "poll" or self.server.count("IDLE") > 0 or news.method == "poll")
            yield news

    async def renewed(self, times: int = 1) -> None:
        """Until IDLE was left and begun again so often from now on."""
        before = self.server.count("DONE"), self.server.count("IDLE")
        await self.server.until(
            lambda: self.server.count("DONE") >= before[0] + times and self.server.count("IDLE") >= before[1] + times
        )

    async def probed(self, news: News) -> None:
        """Until IDLE was left and begun again, so that what was told before has arrived."""
        news.probe()
        await self.renewed()


Make = Callable[..., Any]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """`account = await make(capabilities=…, **changes of the endpoint)`."""
    made: list[Account] = []

    async def build(capabilities: frozenset[str] = ALL, **changes: Any) -> Account:
        server = await ImapServer(filled(), {USER: PASSWORD}, capabilities=capabilities).start()
        changes = {"mailboxes": ("*", "!Junk")} | changes
        made.append(Account(server, ImapRemote(imap_endpoint(server.port, **changes), "work")))
        return made[-1]

    async with asyncio.timeout(30):
        yield build
    for account in made:
        await account.remote.aclose()
        account.server.faults.clear()
        await account.server.aclose()


def restless(account: Account, interval_s: float = 0.0) -> Experience:
    """Have it leave and enter IDLE all the time."""
    account.remote._experience.interval_s = interval_s
    return account.remote._experience


async def hint(news: News) -> told.Hint:
    async with asyncio.timeout(DEADLINE_S):
        return await news.hint()


async def ended(news: News) -> MaildError:
    """What ends the watch."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await news.hint()
            except MaildError as exc:
                return exc


# -- what is told


async def test_notify_tells_of_all_mailboxes_and_which_changed(make: Make) -> None:
    account = await make()
    async with account.watching() as news:
        assert (news.method, news.mailboxes, news.lack) == ("notify", {INBOX, OTHER}, "")
        account.store.deliver("Other", RAW)
        assert await hint(news) == {OTHER}
        account.store.set_flags("INBOX", 1, add=["\\Seen"])
        assert await hint(news) == {INBOX}
        account.store.expunge("INBOX", 1)
        assert await hint(news) == {INBOX}


async def test_notify_of_a_mailbox_that_nobody_wants_is_no_hint(make: Make) -> None:
    account = await make()
    async with account.watching() as news:
        account.store.deliver("Junk", RAW)
        account.store.deliver("Other", RAW)
        assert await hint(news) == {OTHER}


async def test_mailboxes_that_come_go_or_are_renamed_are_told(make: Make) -> None:
    account = await make()
    async with account.watching() as news:
        account.store.create("New")
        assert await hint(news) is None
        account.store.rename("New", "Newer")
        assert await hint(news) is None
        account.store.deliver("Newer", RAW)  # its name is not known yet: somebody has to look
        assert await hint(news) is None
        account.store.delete("Newer")
        assert await hint(news) is None


async def test_idle_tells_of_one_mailbox_in_each_way(make: Make) -> None:
    account = await make()
    async with account.watching("idle") as news:
        assert (news.method, news.mailboxes, news.lack) == ("idle", {INBOX}, "")
        account.store.deliver("INBOX", RAW)
        assert await hint(news) == {INBOX}
        account.store.set_flags("INBOX", 1, add=["\\Seen"])
        assert await hint(news) == {INBOX}
        account.store.expunge("INBOX", 1)
        assert await hint(news) == {INBOX}
    assert account.server.count("EXAMINE") == 1
    assert account.server.count("SELECT") == 0


async def test_idle_takes_a_session_for_each_mailbox_and_leaves_one_for_work(make: Make) -> None:
    account = await make(connections=3)
    async with account.watching("idle", INBOX, OTHER, JUNK) as news:
        assert news.mailboxes == {INBOX, OTHER}
        account.store.deliver("Other", RAW)
        assert await hint(news) == {OTHER}
        async with asyncio.timeout(DEADLINE_S):
            await account.remote.listing()


async def test_hints_that_nobody_waits_for_are_merged(make: Make) -> None:
    account = await make()
    async with account.watching() as news:
        for _ in range(50):
            account.store.deliver("Other", RAW)
            account.store.deliver("INBOX", RAW)
            await asyncio.sleep(0)
        account.store.create("New")
        await account.probed(news)
        hints = 1
        while await hint(news) is not None:
            hints += 1
        assert hints <= 2


@METHODS
async def test_what_is_told_while_no_command_runs_is_heard(make: Make, method: str) -> None:
    """In the same segment as the end of IDLE, when the next command is not sent yet; RFC 5465 allows it at any time."""
    account = await make()
    more = {"notify": b'* STATUS "Other" (MESSAGES 1 UIDNEXT 2)\r\n', "idle": b"* 2 EXISTS\r\n"}[method]
    account.server.faults.add("DONE", Rewrite(lambda line: line + more if b" OK " in line else line))
    async with account.watching(method) as news:
        news.probe()
        assert await hint(news) == {OTHER if method == "notify" else INBOX}


async def test_idle_counts_what_comes_before_its_go_ahead_and_with_the_counters(make: Make) -> None:
    account = await make()
    account.server.faults.add("IDLE", Inject(b"* 2 EXISTS\r\n"))
    async with account.watching("idle") as news:
        assert await hint(news) == {INBOX}
        account.server.faults.add("STATUS", Inject(b"* 3 EXISTS\r\n"))
        news.probe()
        assert await hint(news) == {INBOX}


@METHODS
async def test_what_is_no_change_is_no_hint(make: Make, method: str) -> None:
    account = await make()
    async with account.watching(method) as news:
        (session,) = [c for c in account.server.connections if "IDLE" in c.commands]
        await session.send_raw(b"* OK Still here\r\n* OK [ALERT] read this\r\n* NO later\r\n* BAD line\r\n+ \r\n\r\n")
        await session.send_raw(b'* STATUS "Junk" (MESSAGES 1)\r\n* CAPABILITY IMAP4rev1 IDLE NOTIFY\r\n')
        await account.probed(news)
        assert not news._stirred.is_set()
        account.store.deliver("INBOX", RAW)
        assert await hint(news) == {INBOX}


# -- nothing falls between


@METHODS
@pytest.mark.parametrize("loses", [False, True])
async def test_deliveries_at_random_instants_are_all_heard_of(make: Make, method: str, loses: bool) -> None:
    """Around DONE and IDLE, also where the server forgets what came between two IDLEs."""
    account = await make()
    if loses:
        account.server.faults.add("IDLE", Forget(), times=None)
    restless(account)
    chance = random.Random(4)
    async with account.watching(method) as news:
        for _ in range(100):
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            account.store.deliver("INBOX", RAW)
            assert INBOX in (await hint(news) or ())


async def test_a_lost_wake_up_is_found_by_the_counters(make: Make) -> None:
    account = await make()
    account.server.faults.add("IDLE", Forget(), nth=2)
    account.server.faults.add("IDLE", Hold(held := asyncio.Event()), nth=2)
    async with account.watching("idle") as news:
        news.probe()
        await account.server.until(lambda: account.server.count("IDLE") == 2)
        account.store.deliver("INBOX", RAW)  # after the counters were told, before IDLE begins
        held.set()
        news.probe()
        assert await hint(news) == {INBOX}


# -- a server that cannot, will not, or only says so


@pytest.mark.parametrize("answer", ["NO no", "BAD what", "NO [BADEVENT (MessageNew)] no"])
async def test_notify_refused_leads_to_idle_and_is_told(make: Make, answer: str) -> None:
    account = await make()
    account.server.faults.add("NOTIFY", Answer(answer), times=None)
    for _ in range(2):
        async with account.watching() as news:
            assert news.method == "idle"
            assert news.lack.startswith("no NOTIFY: the server refused NOTIFY")
            account.store.deliver("INBOX", RAW)
            assert await hint(news) == {INBOX}
    assert account.server.count("NOTIFY") == 1


@METHODS
@pytest.mark.parametrize("answer", ["NO no", "BAD what", "OK done"])
async def test_idle_refused_leads_to_polling_and_is_told(make: Make, method: str, answer: str) -> None:
    account = await make()
    account.server.faults.add("IDLE", Answer(answer), times=None)
    for _ in range(2):
        async with account.watching(method) as news:
            assert (news.method, news.mailboxes) == ("poll", frozenset())
            assert news.lack.startswith("no IDLE: ")
    assert account.server.count("IDLE") == 1
    assert len(account.server.connections) == 1  # what is refused costs no further login
    await account.server.until(lambda: account.server.connections[0].closed.is_set())


@pytest.mark.parametrize("command", ["NOTIFY", "IDLE"])
async def test_not_now_is_not_never(make: Make, command: str) -> None:
    account = await make()
    account.server.faults.add(command, Answer("NO [UNAVAILABLE] later"))
    with pytest.raises(Unavailable, match="later"):
        async with account.watching():
            raise AssertionError("it was refused")
    async with account.watching() as news:
        assert (news.method, news.lack) == ("notify", "")


async def test_what_the_server_does_not_offer(make: Make) -> None:
    account = await make(ALL - {"NOTIFY"})
    async with account.watching() as news:
        assert (news.method, news.lack) == ("idle", "")
    account = await make(ALL - {"NOTIFY", "IDLE"})
    async with account.watching() as news:
        assert (news.method, news.lack) == ("poll", "the server offers no IDLE")
    account = await make(connections=1)
    async with account.watching() as news:
        assert (news.method, news.lack) == ("poll", "there is no connection besides the one for work")
    account = await make()
    async with account.watching("poll") as news:
        assert (news.method, news.lack) == ("poll", "")
    async with account.watching("idle", MailboxName("Nowhere")) as news:
        assert (news.method, news.lack) == ("poll", "no mailbox of idle_mailboxes can be opened")


async def test_what_was_refused_is_tried_again_after_a_day(make: Make) -> None:
    account = await make()
    clock = [1000.0]
    account.remote._experience = Experience(clock=lambda: clock[0])
    account.server.faults.add("NOTIFY", Answer("NO no"))
    async with account.watching() as news:
        assert (news.method, news.again_s) == ("idle", REFUSED_S)
        news.again_s = 0.0
        assert isinstance(await ended(news), Unavailable)
    clock[0] += REFUSED_S
    async with account.watching() as news:
        assert (news.method, news.lack, news.again_s) == ("notify", "", None)


@METHODS
async def test_a_go_ahead_that_never_comes_ends_the_session_and_twice_the_method(
    make: Make, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "GO_AHEAD_S", SHORT_S)
    account = await make()
    account.server.faults.add("IDLE", Hold(asyncio.Event()), times=None)
    for _ in range(2):
        with pytest.raises(ConnectionLost, match="did not answer IDLE"):
            async with account.watching(method):
                raise AssertionError("it never began")
    async with account.watching(method) as news:
        assert news.method == "poll"


@METHODS
async def test_idle_that_the_server_ends_at_once_is_given_up(make: Make, method: str) -> None:
    account = await make()

    for _ in range(2):
        async with account.watching(method) as news:
            session = [c for c in account.server.connections if "IDLE" in c.commands][-1]
            await session.send_raw(f"{session._session.tag} OK done\r\n".encode())
            assert "ends IDLE by itself" in str(await ended(news))
    async with account.watching(method) as news:
        assert (news.method, news.lack) == ("poll", "no IDLE: the server ends it by itself, or does not begin it")


def mute(line: bytes) -> bytes:
    return b"" if line.startswith(b"* ") else line


@pytest.mark.parametrize("tells_at_done", [False, True])
async def test_idle_that_tells_nothing_is_found_out_by_the_counters(
    make: Make, monkeypatch: pytest.MonkeyPatch, tells_at_done: bool
) -> None:
    monkeypatch.setattr(push, "MUTE_S", 0.0)
    account = await make()
    account.server.faults.add("IDLE", Rewrite(mute), times=None)
    if tells_at_done:
        account.server.faults.add("DONE", Inject(b"* 2 EXISTS\r\n"), times=None)
    async with account.watching("idle") as news:
        news.probe()
        await account.renewed()  # nothing came, so nothing was missed
        if tells_at_done:
            await hint(news)
        account.store.deliver("INBOX", RAW)
        news.probe()
        assert await hint(news) == {INBOX}  # late, but not lost
        await account.server.until(lambda: account.server.count("IDLE") == account.server.count("DONE") + 1)
        account.store.deliver("INBOX", RAW)
        news.probe()
        assert "does not tell of new mail" in str(await ended(news))
    async with account.watching("idle") as news:
        assert (news.method, news.lack) == ("poll", "no IDLE: the server does not tell of new mail by it")


async def test_idle_that_tells_now_and_then_is_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notice that is late once is not a server that is mute."""
    monkeypatch.setattr(push, "MUTE_S", 0.0)
    account = await make()
    async with account.watching("idle") as news:
        for _ in range(4):
            rule = account.server.faults.add("IDLE", Rewrite(mute))
            news.probe()
            await account.server.until(lambda rule=rule: rule.count == 1)
            await account.server.until(lambda: account.server.count("IDLE") == account.server.count("DONE") + 1)
            account.store.deliver("INBOX", RAW)
            news.probe()
            assert await hint(news) == {INBOX}
            await account.server.until(lambda: account.server.count("IDLE") == account.server.count("DONE") + 1)
            account.store.deliver("INBOX", RAW)
            await until(lambda: news._listeners[0]._has_spoken)  # type: ignore[attr-defined]
            await account.probed(news)
            await until(lambda: news._listeners[0]._idle is not None)  # type: ignore[attr-defined]
            assert await hint(news) == {INBOX}
        assert news.method == "idle"
        assert not account.remote._experience.refusal("IDLE")


async def test_notify_that_tells_nothing_is_found_out_by_whoever_looks(make: Make) -> None:
    account = await make()
    account.server.faults.add("TELL", Rewrite(mute), times=None)
    async with account.watching() as news:
        account.store.deliver("Other", RAW)
        news.missed()
        await account.renewed()
        assert news.method == "notify"
        news.missed()
        assert "NOTIFY is given up" in str(await ended(news))
    async with account.watching() as news:
        assert (news.method, news.lack) == ("idle", "no NOTIFY: the server does not tell of new mail by it")


async def test_idle_of_which_something_was_missed_is_asked_for_its_counters(make: Make) -> None:
    account = await make()
    async with account.watching("idle") as news:
        news.missed()
        await account.renewed()
        assert not account.remote._experience.refusal("IDLE")


# -- NOTIFICATIONOVERFLOW


async def told_overflow(account: Account) -> None:
    session = [c for c in account.server.connections if "IDLE" in c.commands][-1]
    await session.send_raw(b"* OK [NOTIFICATIONOVERFLOW] too much\r\n")


async def test_after_an_overflow_notify_is_asked_for_again_and_everything_looked_at(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told, "LEAST_NOTIFY_S", 0.0)
    account = await make()
    async with account.watching() as news:
        for count in range(2, 6):
            await told_overflow(account)
            assert await hint(news) is None
            assert account.server.count("NOTIFY") == count
            account.store.deliver("Other", RAW)
            assert await hint(news) == {OTHER}


async def test_overflows_without_end_lead_to_idle(make: Make) -> None:
    account = await make()
    async with account.watching() as news:
        await told_overflow(account)
        assert await hint(news) is None
        await told_overflow(account)
        assert "NOTIFY is given up" in str(await ended(news))
    async with account.watching() as news:
        assert (news.method, news.lack) == ("idle", "no NOTIFY: the server overflows at once")


async def test_notify_refused_after_an_overflow_is_not_blamed_on_idle(make: Make) -> None:
    account = await make()
    async with account.watching() as news:
        account.server.faults.add("NOTIFY", Answer("NO no"))
        await told_overflow(account)
        assert isinstance(await ended(news), Unavailable)
    async with account.watching() as news:
        assert news.method == "idle"


# -- how it ends


@METHODS
@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"* BYE shutting down\r\n", ConnectionLost),
        (b"* BYE Too many connections\r\n", Unavailable),
        (b"* BYE [UNAVAILABLE] later\r\n", Unavailable),
        (b"* " + b"x" * 2000 + b" {99999999999999999999}\r\n* 1 FETCH (" + b"(" * 100 + b"\r\n", MaildError),
    ],
)
async def test_what_ends_the_watch_is_told_at_once(make: Make, method: str, said: bytes, kind: type) -> None:
    account = await make()
    async with account.watching(method) as news:
        session = [c for c in account.server.connections if "IDLE" in c.commands][-1]
        await session.send_raw(said)
        failure = await ended(news)
        assert isinstance(failure, kind)
        assert await ended(news) is failure  # then and ever after


@METHODS
@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_ends_ends_the_watch(make: Make, method: str, reset: bool) -> None:
    account = await make()
    experience = restless(account, RENEW_S)
    async with account.watching(method) as news:
        session = [c for c in account.server.connections if "IDLE" in c.commands][-1]
        await session.drop(reset=reset)
        lost = await ended(news)
        assert isinstance(lost, ConnectionLost)
        assert str(lost).endswith("connection reset by peer" if reset else "closed the connection")
    assert account.remote._open == len(account.remote._free)  # whoever leaves at once finds nothing half given back
    assert experience.interval_s == RENEW_S  # nothing was silent
    async with account.watching(method) as news:
        assert news.method == method


@METHODS
@pytest.mark.parametrize("is_asked", [False, True])
async def test_a_session_that_died_silently_is_noticed_and_learnt_from(
    make: Make, method: str, is_asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "DONE_LIMIT_S", SHORT_S)
    account = await make()
    account.server.faults.add("DONE", Hold(asyncio.Event()))
    experience = restless(account, RENEW_S if is_asked else 2 * SHORT_S)
    monkeypatch.setattr(experience_module, "SHORTEST_RENEW_S", 0.0)
    before = experience.interval_s
    async with account.watching(method) as news:
        if is_asked:
            news.probe()
        assert "did not answer IDLE" in str(await ended(news))
    assert experience.interval_s == (before if is_asked else before / 2)  # after a sleep it says nothing of routers


async def test_the_watch_leaves_no_session_behind(make: Make) -> None:
    account = await make(connections=3)
    for method in ("notify", "idle") * 3:
        async with account.watching(method, INBOX, OTHER):
            pass
    await account.server.until(
        lambda: all(c.closed.is_set() for c in account.server.connections if "IDLE" in c.commands)
    )
    assert (account.remote._held, account.remote._open) == ([], len(account.remote._free))
    assert account.server.count("DONE") == account.server.count("IDLE")


# -- sessions for work, after a sleep and after long silence


@pytest.mark.parametrize("after", ["probe", "silence"])
async def test_a_session_in_doubt_that_does_not_answer_is_replaced(
    make: Make, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "PROOF_S", SHORT_S)
    account = await make()
    async with account.watching() as news:
        await account.remote.listing()
        connections = len(account.server.connections)
        await account.remote.listing()

        def doubt() -> None:
            if after == "probe":
                news.probe()
            else:
                monkeypatch.setattr(remote_module, "SILENT_S", -1.0)

        doubt()
        account.server.journal.clear()
        await account.remote.listing()  # that proves it: nothing is asked before, which would take a round trip
        assert len(account.server.connections) == connections
        if after == "silence":  # a probe leaves IDLE as well
            assert [command.split()[0] for command in account.server.journal] == ["NAMESPACE", "LIST"]
        doubt()
        async with account.remote.visit(INBOX):
            pass
        assert account.server.count("NOOP") >= 1
        (work,) = account.remote._free
        account.server.faults.add("*", Hold(asyncio.Event()), times=None, connection=_number(account, work))
        doubt()
        async with asyncio.timeout(DEADLINE_S):
            await account.remote.listing()
        assert work.is_lost
        assert account.remote._open == len(account.remote._free) + len(account.remote._held)
        (work,) = account.remote._free
        account.server.faults.add("*", Hold(asyncio.Event()), times=None, connection=_number(account, work))
        doubt()
        async with asyncio.timeout(DEADLINE_S), account.remote.visit(INBOX):
            assert work.is_lost
        assert account.remote._open == len(account.remote._free) + len(account.remote._held)


def _number(account: Account, session: Any) -> int:
    port = session.protocol.line.transport.get_extra_info("sockname")[1]
    (found,) = [c for c in account.server.connections if c._session.wire._socket.getpeername()[1] == port]
    return int(found.number)


async def test_the_kernel_watches_every_connection(make: Make) -> None:
    account = await make()
    await account.remote.listing()
    (session,) = account.remote._free
    sock = session.protocol.line.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 120
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) + 3 * 30 < 300
    assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) < 120_000


# -- all of it again


@pytest.mark.parametrize(
    ("method", "command"),
    [
        ("notify", "NOTIFY"),
        ("notify", "NOOP"),
        ("notify", "IDLE"),
        ("idle", "EXAMINE"),
        ("idle", "STATUS"),
        ("idle", "IDLE"),
    ],
)
async def test_cut_at_any_command_it_is_an_error_and_there_again(make: Make, method: str, command: str) -> None:
    account = await make()
    account.server.faults.add(command, Cut(after_octets=1))
    with pytest.raises(ConnectionLost):
        async with account.watching(method):
            raise AssertionError("it was cut")
    async with account.watching(method) as news:
        assert (news.method, news.lack) == (method, "")
        account.store.deliver("INBOX", RAW)
        assert await hint(news) == {INBOX}


async def test_push_gives_way_to_work_where_the_server_allows_one_session(make: Make) -> None:
    account = await make()
    await account.remote.listing()
    account.server.faults.add("CONNECT", Bye("Too many connections"))
    async with account.watching() as news:  # it took the session that there was
        await account.remote.listing()
        assert isinstance(await ended(news), Unavailable)
    async with account.watching() as news:
        assert (news.method, news.lack) == ("poll", "the server allows too few connections")
        await account.remote.listing()


async def test_a_connection_that_fails_once_says_nothing_about_how_many_are_allowed(make: Make) -> None:
    """Else a blip of the network would cost push for as long as a server is believed that has no more to give."""
    account = await make()
    await account.remote.listing()
    account.server.faults.add("CONNECT", Cut(after_octets=0))
    async with account.watching() as news:
        await account.remote.listing()  # push has the session that was there; the first attempt at another fails
        assert news.method == "notify"
    assert account.remote._limit == 4
    account.server.faults.add("CONNECT", Cut(after_octets=0), times=2)
    async with account.watching() as news:
        await account.remote.listing()
        assert isinstance(await ended(news), Unavailable)  # twice in a row it is the server: work comes first
    assert account.remote._limit == 1
    assert account.remote._learnt_until_s - time.monotonic() <= remote_module.UNSAID_LIMIT_S


@METHODS
@pytest.mark.parametrize("command", ["IDLE", "NOTIFY", "NOOP", "STATUS"])
async def test_connections_lost_again_and_again_are_the_network_as_long_as_push_works_between(
    make: Make, method: str, command: str
) -> None:
    account = await make()
    for _ in range(4):
        rule = account.server.faults.add(command, Cut(after_octets=1))
        try:
            async with account.watching(method):
                assert not rule.count
        except ConnectionLost:
            assert rule.count == 1
        account.server.faults.clear()
        async with account.watching(method) as news:
            assert (news.method, news.lack) == (method, "")
