"""The real daemon process against the server in memory: from its start to its end, and what it is asked meanwhile."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from maild.testing.imap import ImapServer
from maild.testing.store import Store
from tests.daemon.process import DaemonProcess, NotifySocket, imap_account
from tests.daemon.waiting import until
from tests.engine.world import PASSWORD, USER, message
from tests.servers.certificates import Authority
from tests.servers.dovecot import free_ports

Make = Callable[..., DaemonProcess]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[DaemonProcess] = []

    def build(**options: object) -> DaemonProcess:
        daemon = DaemonProcess(tmp_path, **options)  # type: ignore[arg-type]
        made.append(daemon)
        return daemon

    yield build
    for daemon in made:
        daemon.kill()
        assert "Traceback" not in daemon.log, daemon.log
        assert PASSWORD not in daemon.log


@pytest.fixture
async def server() -> AsyncIterator[ImapServer]:
    store = Store()
    store.deliver("INBOX", message(1), (), 1_700_000_000)
    async with ImapServer(store, {USER: PASSWORD}) as running:
        yield running


def account(server: ImapServer, *settings: str) -> str:
    return imap_account(server.host, server.port, USER, PASSWORD, *settings)


async def test_from_start_to_stop_with_systemd(make: Make, server: ImapServer, tmp_path: Path) -> None:
    notify = NotifySocket(tmp_path / "n")
    daemon = make(accounts={"work": account(server)})
    daemon.start(NOTIFY_SOCKET=str(notify.path), WATCHDOG_USEC="3000000")
    await daemon.until_account(lambda a: a["state"] == "idle")
    assert len(daemon.files()) == 1
    await until(lambda: "READY=1" in notify.read() and "WATCHDOG=1" in notify.read())
    await until(lambda: "STATUS=1 idle" in notify.read())
    pings = notify.read().count("WATCHDOG=1")
    await until(lambda: notify.read().count("WATCHDOG=1") > pings)
    daemon.signal(signal.SIGHUP)
    await until(lambda: notify.read().count("READY=1") == 2)
    lines = list(notify.read())
    assert lines[lines.index("RELOADING=1") + 1].startswith("MONOTONIC_USEC=")
    await daemon.stop()
    assert "STOPPING=1" in notify.read()
    assert not (daemon.state_dir / "control.sock").exists()
    notify.close()


async def test_starts_without_its_server_and_is_there_when_it_comes(make: Make, tmp_path: Path) -> None:
    notify = NotifySocket(tmp_path / "n")
    (port,) = free_ports(1)
    daemon = make(accounts={"work": imap_account("127.0.0.1", port, USER, PASSWORD)})
    daemon.start(NOTIFY_SOCKET=str(notify.path))
    await until(lambda: "READY=1" in notify.read())
    offline = await daemon.until_account(lambda a: a["state"] == "offline")
    assert offline["error"]
    store = Store()
    store.deliver("INBOX", message(1), (), 1_700_000_000)
    server = ImapServer(store, {USER: PASSWORD})
    await server.start(port=port)
    try:
        daemon.signal(signal.SIGUSR1)
        await daemon.until_account(lambda a: a["state"] == "idle" and a["error"] is None)
        assert len(daemon.files()) == 1
        await daemon.stop()
    finally:
        await server.aclose()
    notify.close()


async def test_wrong_password_is_tried_at_most_twice_until_the_config_is_another(
    make: Make, server: ImapServer
) -> None:
    daemon = make(accounts={"work": imap_account(server.host, server.port, USER, "wrong")})
    daemon.start()
    rejected = await daemon.until_account(lambda a: a["state"] == "auth_rejected")
    assert rejected["push"] is None
    logins = server.count("LOGIN") + server.count("AUTHENTICATE")
    assert logins <= 2
    daemon.signal(signal.SIGUSR1)
    asked = await daemon.run("sync", "--json")
    assert asked.returncode == 1
    assert server.count("LOGIN") + server.count("AUTHENTICATE") == logins
    daemon.accounts["work"] = account(server)
    daemon.write_config()
    reloaded = await daemon.run("reload")
    assert (reloaded.returncode, reloaded.stdout) == (0, "started anew: work\n")
    await daemon.until_account(lambda a: a["state"] == "idle" and a["error"] is None)
    await daemon.stop()


async def test_reload_takes_the_certificates_that_were_replaced(make: Make, tmp_path: Path) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    trusted = tmp_path / "ca.pem"
    shutil.copy(old.ca_file, trusted)
    context = old.good().server_context()
    async with ImapServer(Store(), {USER: PASSWORD}, ssl_context=context) as server:
        lines = account(server, f'ca_file = "{trusted}"').replace('tls = "none"', 'tls = "implicit"')
        daemon = make(accounts={"work": lines})
        daemon.start()
        await daemon.until_account(lambda a: a["state"] == "idle" and a["error"] is None)
        assert (await daemon.run("reload")).stdout == "nothing changed\n"
        shutil.copy(new.ca_file, trusted)
        assert (await daemon.run("reload")).stdout == "started anew: work\n"
        failed = await daemon.until_account(lambda a: a["error"])
        assert "comes from an unknown authority" in failed["error"]
        renewed = new.good()
        context.load_cert_chain(renewed.chain_file, renewed.key_file)
        shutil.copy(new.ca_file, trusted)  # the same again: who replaces it means something by it
        assert (await daemon.run("reload")).stdout == "started anew: work\n"
        await daemon.until_account(lambda a: a["state"] == "idle" and a["error"] is None)
        await daemon.stop()


async def test_reload_leaves_the_sessions_of_other_accounts_alone(make: Make, server: ImapServer) -> None:
    daemon = make(accounts={"work": account(server), "home": account(server)})
    daemon.start()
    for name in ("work", "home"):
        await daemon.until_account(lambda a: a["state"] == "idle" and a["push"], name)
    await daemon.run("reload")
    before = {connection.number for connection in server.connections}
    daemon.accounts["home"] = account(server, 'mailboxes = ["INBOX"]')
    daemon.accounts["third"] = account(server)
    daemon.write_config()
    assert (await daemon.run("reload")).stdout == "started anew: home, third\n"
    await daemon.until_account(lambda a: a["state"] == "idle" and a["push"], "third")
    await daemon.until_account(lambda a: a["state"] == "idle" and a["push"], "home")
    kept = before & {connection.number for connection in server.connections}
    assert kept
    del daemon.accounts["third"]
    daemon.write_config()
    daemon.signal(signal.SIGHUP)
    await until(lambda: '"changed": ["third"]' in daemon.log)
    status = await daemon.status()
    assert status is not None
    assert list(status["accounts"]) == ["work", "home"]
    del daemon.accounts["work"]
    daemon.accounts["home"] = account(server)
    daemon.write_config()
    assert (await daemon.run("reload")).stdout == "started anew: home; stopped: work\n"
    daemon.accounts.clear()  # as after `maild account remove` of the last one
    daemon.write_config()
    assert (await daemon.run("reload")).stdout == "stopped: home\n"
    assert (await daemon.ask(ask="status"))["accounts"] == {}
    await daemon.stop()


async def test_a_broken_config_is_refused_and_the_old_one_stays(make: Make, server: ImapServer) -> None:
    daemon = make(accounts={"work": account(server)})
    daemon.start()
    await daemon.until_account(lambda a: a["state"] == "idle")
    daemon.extra = "[nonsense]\n"
    daemon.write_config()
    refused = await daemon.run("reload")
    assert refused.returncode == 78
    assert "nonsense" in refused.stderr
    daemon.signal(signal.SIGHUP)
    await until(lambda: daemon.log.count("config.refused") == 2)
    await daemon.until_account(lambda a: a["state"] == "idle")
    await daemon.stop()


async def test_sync_goes_through_the_daemon_and_says_the_same(make: Make, server: ImapServer) -> None:
    daemon = make(accounts={"work": account(server, 'push = "poll"')})
    daemon.start()
    await daemon.until_account(lambda a: a["state"] == "idle" and a["push"] == "poll")
    while (before := daemon.log.count("account.finished")) + 1 != await _passes_after_sync(daemon):
        assert before < 20, "it never comes to rest"
    server.store.deliver("INBOX", message(2), (), 1_700_000_000)
    dry = json.loads((await daemon.run("sync", "--dry-run", "--json")).stdout)["accounts"]["work"]
    assert (dry["ok"], dry["pulled"]) == (True, 1)
    assert len(daemon.files()) == 1
    told = json.loads((await daemon.run("sync", "--json")).stdout)["accounts"]["work"]
    assert (told["ok"], told["error"], told["pulled"], told["mailboxes"]["INBOX"]["pulled"]) == (True, None, 1, 1)
    assert len(daemon.files()) == 2
    assert (await daemon.run("sync", "nobody")).returncode == 64
    assert "nothing new" in (await daemon.run("sync", "work/INBOX")).stdout
    await daemon.stop()
    server.store.deliver("INBOX", message(3), (), 1_700_000_000)
    assert json.loads((await daemon.run("sync", "--json")).stdout)["accounts"]["work"]["pulled"] == 1


async def _passes_after_sync(daemon: DaemonProcess) -> int:
    """How many passes there were in all once one more was asked for and done; none is left that nobody asked for."""
    assert (await daemon.run("sync")).returncode == 0
    return daemon.log.count("account.finished")


async def test_status_tells_of_the_daemon_and_without_one_of_stored_state(make: Make, server: ImapServer) -> None:
    daemon = make(accounts={"work": account(server)})
    daemon.start()
    await daemon.until_account(lambda a: a["state"] == "idle")
    told = json.loads((await daemon.run("status", "--json")).stdout)
    assert daemon.process is not None
    assert told["daemon"]["pid"] == daemon.process.pid
    assert told["accounts"]["work"]["mailboxes"]["INBOX"]["messages"] == 1
    await daemon.stop()
    stopped = json.loads((await daemon.run("status", "--json")).stdout)
    assert stopped["daemon"] is None
    assert stopped["accounts"]["work"]["state"] == "stopped"
    assert stopped["accounts"]["work"]["mailboxes"] == told["accounts"]["work"]["mailboxes"]
    assert (await daemon.run("reload")).returncode == 69


async def test_a_second_one_is_refused_and_told_who_is_there(make: Make, server: ImapServer) -> None:
    daemon = make(accounts={"work": account(server)})
    daemon.start()
    await daemon.until_account(lambda a: a["state"] == "idle")
    second = await daemon.run("run")
    assert second.returncode == 1
    assert "maild run" in second.stderr
    await daemon.until_account(lambda a: a["state"] == "idle")
    await daemon.stop()


async def test_hooks_hear_of_new_mail_and_of_nothing_else(make: Make, server: ImapServer, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    script = f"import sys; open({str(heard)!r}, 'a').write(sys.stdin.read())"
    hook = json.dumps([sys.executable, "-c", script])
    daemon = make(accounts={"work": account(server, 'push = "poll"')}, extra=f"[hooks]\non_new_mail = {hook}\n")
    daemon.start()
    (first,) = await until(lambda: heard.exists() and heard.read_text().splitlines())
    assert Path(first) in daemon.files()
    await daemon.run("sync")
    server.store.deliver("INBOX", message(2), (), 1_700_000_000)
    await daemon.run("sync")
    lines = await until(lambda: len(heard.read_text().splitlines()) == 2 and heard.read_text().splitlines())
    assert set(map(Path, lines)) == set(daemon.files())
    await daemon.stop()


async def test_sigterm_during_a_pass_loses_nothing(make: Make, server: ImapServer) -> None:
    for n in range(2, 400):
        server.store.deliver("INBOX", message(n), (), 1_700_000_000)
    daemon = make(accounts={"work": account(server)})
    daemon.start()
    await until(lambda: daemon.files())
    await daemon.stop()
    daemon.start()
    await daemon.until_account(
        lambda a: a["mailboxes"].get("INBOX", {}).get("messages") == 399 and a["state"] == "idle"
    )
    assert len({path.read_bytes() for path in daemon.files()}) == len(daemon.files()) == 399
    await daemon.stop()


async def test_bad_config_ends_with_78(make: Make) -> None:
    daemon = make(accounts={})
    daemon.start()
    assert await daemon.ended() == 78
