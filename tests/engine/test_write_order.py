"""Durability as the kernel sees it: the file, its name, its pair, each durable before the next.

maild runs under strace; the trace is judged by `disorder`, which is itself tested with traces that are doctored.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from maild.testing.imap import ImapServer
from maild.testing.store import Store
from tests.engine.world import DEADLINE_S, PASSWORD, START_S, USER, World, long_body, message

CALLS = (
    "openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,close,"
    "sync_file_range,syncfs"
)

_LINE = re.compile(r"(\d+) +(.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")
_RENAME = re.compile(r'renameat2?\(\d+<(?P<from>[^>]*)>, "(?P<name>[^"]*)", \d+<(?P<into>[^>]*)>, "(?P<target>[^"]*)"')
_FSYNC = re.compile(r"f(?:data)?sync\(\d+<(?P<path>[^>]*)>")
_WAL_WRITE = re.compile(r'pwrite64\(\d+<[^>]*\.sqlite-wal>, "(?P<octets>.*)')


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that went well: its text, and the lines of the trace on which it began and ended."""

    text: str
    begin: int
    end: int


def calls(lines: list[str]) -> list[Call]:
    """The calls of a trace of several threads, those that were interrupted by others put together again."""
    begun: dict[str, tuple[str, int]] = {}
    found: list[Call] = []
    for number, line in enumerate(lines):
        match = _LINE.match(line)
        if match is None:
            continue
        pid, text = match.groups()
        if text.endswith("<unfinished ...>"):
            begun[pid] = (text.removesuffix("<unfinished ...>"), number)
            continue
        start = number
        if _RESUMED.match(text):
            head, start = begun.pop(pid)
            text = head + _RESUMED.sub("", text)
        if " = -1 " not in text:
            found.append(Call(text, start, number))
    return found


def deliveries(found: list[Call]) -> list[tuple[Call, re.Match[str]]]:
    """The renames that made a message visible: out of a mailbox's `tmp`, into its `new` or `cur`."""
    renames = ((call, match) for call in found if (match := _RENAME.match(call.text)))
    return [
        (call, match)
        for call, match in renames
        if Path(match["from"]).name == "tmp" and Path(match["into"]).name in {"new", "cur"}
    ]


def disorder(found: list[Call]) -> list[str]:
    """What is wrong with the order of the calls, for each message that was delivered; and that one was at all."""
    synced: dict[str, list[Call]] = {}
    for call in found:
        if match := _FSYNC.match(call.text):
            synced.setdefault(match["path"], []).append(call)
    wal = [(call, match["octets"]) for call in found if (match := _WAL_WRITE.match(call.text))]
    delivered = deliveries(found)
    wrong = [] if delivered else ["no message was delivered"]
    for call, match in delivered:
        name, file = match["name"], f"{match['from']}/{match['name']}"
        if not any(sync.end < call.begin for sync in synced.get(file, [])):
            wrong.append(f"{name}: it got its name before the file was durable")
        named = [sync.end for sync in synced.get(match["into"], []) if sync.begin > call.end]
        noted = [write.begin for write, octets in wal if name in octets]
        if not named:
            wrong.append(f"{name}: its name was never made durable")
        if not noted:
            wrong.append(f"{name}: its pair was never written")
        if named and noted and min(noted) < min(named):
            wrong.append(f"{name}: its pair was written before its name was durable")
    return wrong


async def trace_of_a_pass(world: World, directory: Path) -> list[Call]:
    """Run `maild sync` under strace against the world's server."""
    config = directory / "maild.toml"
    config.write_text(
        f'[maild]\nmaildir = "{world.root.parent}"\nstate_dir = "{world.state_dir}"\n'
        f'[accounts.work]\naddress = "{USER}"\n[accounts.work.imap]\nhost = "{world.server.host}"\n'
        f'port = {world.server.port}\ntls = "none"\npassword = "{PASSWORD}"\n'
    )
    config.chmod(0o600)
    output = directory / "trace"
    options = ["-f", "-y", "-qq", "-s", "6000", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(output)]
    command = ["strace", *options, sys.executable, "-m", "maild", "-c", str(config), "sync"]
    with anyio.fail_after(DEADLINE_S):
        ran = await anyio.run_process(command, check=False, stderr=subprocess.PIPE)
    if b"PTRACE" in ran.stderr or b"ptrace" in ran.stderr:
        pytest.skip(f"strace may not trace here: {ran.stderr.decode().strip()}")
    assert ran.returncode == 0, ran.stderr.decode()
    return calls(output.read_text(errors="replace").splitlines())


@pytest.fixture(scope="module")
async def trace(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The trace of one pass over two mailboxes: small messages with and without flags, and one that goes over `tmp`."""
    if shutil.which("strace") is None:
        pytest.skip("no strace here: apt-get install strace")
    directory = tmp_path_factory.mktemp("trace")
    async with ImapServer(Store(), {USER: PASSWORD}) as server:
        world = World(directory, server)
        world.store.create("Archiv")
        world.deliver(60)
        world.deliver(40, "Archiv", start=100, flags=["\\Seen", "Wort"])
        world.store.deliver("INBOX", message(99, body=long_body()), (), START_S)
        found = await trace_of_a_pass(world, directory)
        world.assert_equal()
    return found


@pytest.mark.live
async def test_the_file_then_its_name_then_its_pair(trace: list[Call]) -> None:
    assert disorder(trace) == []
    assert len(deliveries(trace)) == 101


def moved(call: Call, to: int) -> Call:
    return Call(call.text, to, to)


def without_one_file_fsync(found: list[Call]) -> list[Call]:
    _, match = deliveries(found)[-1]
    return [call for call in found if not ("fsync" in call.text and f"/{match['name']}>" in call.text)]


def with_one_name_first(found: list[Call]) -> list[Call]:
    early, _ = deliveries(found)[-1]
    return [moved(early, -1), *(call for call in found if call is not early)]


def without_directory_fsyncs(found: list[Call]) -> list[Call]:
    return [call for call in found if not re.match(r"fsync\(\d+<[^>]*/(new|cur)>", call.text)]


def with_one_pair_first(found: list[Call]) -> list[Call]:
    _, match = deliveries(found)[0]
    early = next(call for call in found if _WAL_WRITE.match(call.text) and match["name"] in call.text)
    return [moved(early, -1), *(call for call in found if call is not early)]


def without_pairs(found: list[Call]) -> list[Call]:
    return [call for call in found if not _WAL_WRITE.match(call.text)]


def nothing(found: list[Call]) -> list[Call]:
    return []


@pytest.mark.live
@pytest.mark.parametrize(
    ("doctor", "expected"),
    [
        (without_one_file_fsync, "before the file was durable"),
        (with_one_name_first, "before the file was durable"),
        (without_directory_fsyncs, "its name was never made durable"),
        (with_one_pair_first, "its pair was written before"),
        (without_pairs, "its pair was never written"),
        (nothing, "no message was delivered"),
    ],
)
async def test_a_trace_out_of_order_is_noticed(
    trace: list[Call], doctor: Callable[[list[Call]], list[Call]], expected: str
) -> None:
    assert any(expected in text for text in disorder(doctor(trace)))
