"""The steps of the demo, in order in `STEPS`. Each shows something, and looks up that it is so."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio

from maild.demo.place import ACCOUNT, CONFIG, LETTER, POP3_ACCOUNT
from maild.demo.screen import Screen
from maild.demo.stage import DemoFailed, Stage, milliseconds, until
from maild.testing import witness
from maild.testing.samples import ADDRESS, POP3_ADDRESS, SENT, new_message

YOUR_CONFIG = """\
[maild]
maildir = "~/Mail"

[accounts.work]
address = "me@example.org"

[accounts.work.imap]
host = "imap.example.org"
password_command = ["pass", "mail/work"]

[accounts.work.smtp]
host = "smtp.example.org"
"""


async def show_servers(stage: Stage) -> None:
    servers, screen = stage.servers, stage.screen
    screen.say(
        f"In this process, with sample mail in memory, up in {stage.servers_ms:.0f} ms. They listen on loopback only:"
    )
    boxes, drop = _counted(len(servers.store.names), "mailbox"), _counted(len(servers.pop3.messages), "message")
    screen.show(
        f"IMAP  {servers.imap.host}:{servers.imap.port}  {_counted(servers.messages, 'message')} in {boxes}\n"
        f"SMTP  {servers.smtp.host}:{servers.smtp.port}  delivers what it accepts to the other two\n"
        f"POP3  {servers.pop3.host}:{servers.pop3.port}  {drop} in a maildrop"
    )


async def show_config(stage: Stage) -> None:
    path = stage.place / CONFIG
    stage.screen.say(f"A real file, read and found good in {stage.config_ms:.0f} ms:")
    stage.screen.command(f"export MAILD_CONFIG={shlex.quote(str(path))}")
    stage.screen.command('cat "$MAILD_CONFIG"')
    stage.screen.show(path.read_text(encoding="utf-8"))


async def sync_first(stage: Stage) -> None:
    servers, screen = stage.servers, stage.screen
    took_ms = await stage.run("sync")
    stage.results.append(
        (took_ms, f"for a first sync of {servers.messages} messages by IMAP and {len(servers.pop3.messages)} by POP3")
    )
    octets = sum(len(message.raw) for box in servers.store.mailboxes for message in box)
    octets += sum(len(message.raw) for message in servers.pop3.messages)
    screen.time(
        took_ms,
        f"from the command to its end: {servers.messages} messages by IMAP and {len(servers.pop3.messages)} by POP3,"
        f" {octets / 1000:.0f} kB, all durable on the disk",
    )
    _verify(stage)
    screen.say(
        f"Verified: the {servers.messages} messages here are those on the IMAP server, equal in every octet (CRLF there"
        " is LF here), every flag and keyword, and the date, which is the mtime of the file; so are the"
        f" {len(servers.pop3.messages)} of POP3 in their octets.",
        "green",
    )


async def start_daemon(stage: Stage) -> None:
    started_s = time.perf_counter()
    await stage.start_daemon()
    await stage.until_status("the daemon answers", lambda _: True)
    answers_ms = milliseconds(started_s)
    what = "both accounts are idle, and the IMAP server pushes"
    accounts = await stage.until_status(what, _is_at_rest)
    rests_ms = milliseconds(started_s)
    stage.screen.time(answers_ms, "until the daemon is there and can be asked")
    push = accounts[ACCOUNT]["push"].upper()
    stage.screen.time(rests_ms, f"until it has looked at everything and the server pushes, by {push}")
    await stage.until_status(what, _is_at_rest, looks=10)  # nothing is left to do that would disturb what follows


def _is_at_rest(accounts: dict[str, Any]) -> bool:
    is_pushed = accounts[ACCOUNT]["push"] in ("notify", "idle")
    return is_pushed and all(account["state"] == "idle" for account in accounts.values())


async def receive(stage: Stage) -> None:
    """Mail that arrives, and what another client does, seen on this disk."""
    store, inbox, screen = stage.servers.store, stage.maildir / "INBOX", stage.screen
    before = set(_files(inbox))
    raw = new_message(1, int(time.time()))
    delivered_s = time.perf_counter()
    store.deliver("INBOX", raw)
    file = await until("the new message is in INBOX", lambda: next(iter(set(_files(inbox)) - before), None))
    octets, took_ms = file.read_bytes(), milliseconds(delivered_s)
    if octets != raw.replace(b"\r\n", b"\n"):
        raise DemoFailed(f"{file} is not the message that was delivered")
    stage.results.append((took_ms, "until new mail on the server is a readable file here"))
    screen.time(took_ms, f"from the delivery on the server to a readable file, in {_place_of(stage, file.parent)}")
    answered, deleted = [message for message in store.mailbox("INBOX") if "\\Seen" in message.flags][:2]
    answered_file, deleted_file = (_file_with(inbox, message.raw) for message in (answered, deleted))
    changed_s = time.perf_counter()
    store.set_flags("INBOX", answered.uid, add=["\\Answered"])
    await until("the flag is here", lambda: "R" in _letters(answered_file))
    screen.time(milliseconds(changed_s), "until a message that another client has answered is marked so here")
    changed_s = time.perf_counter()
    store.expunge("INBOX", deleted.uid)
    await until("the message is gone here", lambda: _now(deleted_file) is None)
    screen.time(milliseconds(changed_s), "until one that another client has deleted is gone here")


async def mark_here(stage: Stage) -> None:
    """A flag that a mail reader sets, seen on the server."""
    inbox = stage.maildir / "INBOX"
    new = next(iter(sorted((inbox / "new").iterdir())))
    octets = new.read_bytes()
    (message,) = (m for m in stage.servers.store.mailbox("INBOX") if m.raw.replace(b"\r\n", b"\n") == octets)
    stage.screen.say("A mail reader opens a new message: its file moves from new/ to cur/, and its name ends in :2,S")
    renamed_s = time.perf_counter()
    new.rename(inbox / "cur" / f"{new.name}:2,S")
    await until("the flag is on the server", lambda: "\\Seen" in message.flags)
    took_ms = milliseconds(renamed_s)
    stage.results.append((took_ms, "until a flag set here is on the server"))
    stage.screen.time(took_ms, "from there until it is \\Seen on the server")


async def send(stage: Stage) -> None:
    """A message through the outbox, over SMTP, and back by push."""
    servers, screen, letter = stage.servers, stage.screen, stage.place / LETTER
    inbox = stage.maildir / "INBOX"
    screen.say(f"A message from {ADDRESS} to {ADDRESS} and {POP3_ADDRESS}. All times are from the command on:")
    screen.command(f"maild sendmail -t < {shlex.quote(str(letter))}")
    before, found = set(_files(inbox)), list[tuple[Path, float]]()
    began_s = time.perf_counter()

    def is_back() -> bool:
        if not found and (new := set(_files(inbox)) - before):
            found.append((new.pop(), milliseconds(began_s)))
        return bool(found)

    def has_ended() -> bool:
        is_back()  # looked for at the same time: the daemon may be quicker than the command's way out
        return command.returncode is not None

    with letter.open("rb") as text:
        command = await anyio.open_process(stage.command("sendmail", "-t"), stdin=text, env=stage.environment)
    async with command:
        await until("maild sendmail has ended", has_ended)
        ended_ms = milliseconds(began_s)
        if command.returncode and command.stderr is not None:
            told = (await command.stderr.receive()).decode()
            raise DemoFailed(f"maild sendmail ended with exit status {command.returncode}: {told}")
    await until("the message is back in INBOX", is_back)
    ((file, back_ms),) = found
    stage.results.append((ended_ms, "until maild sendmail has put a message safely into the outbox"))
    stage.results.append((back_ms, "until the same message, sent over SMTP, is back in INBOX by push"))
    accepted_ms = (servers.accepted_s[-1] - began_s) * 1000
    happened = [
        (ended_ms, "the command has returned 0: the message is durable in the outbox"),
        (accepted_ms, "the SMTP server has accepted it for both recipients"),
        (back_ms, f"it is back, by push: a readable file in {_place_of(stage, file.parent)}"),
    ]
    for took_ms, what in sorted(happened):
        screen.time(took_ms, what)
    (accepted,) = servers.smtp.journal
    if not file.read_bytes().endswith(accepted.octets.replace(b"\r\n", b"\n")):
        raise DemoFailed(f"{file} is not the message that was sent")
    await until("its copy is on the server", lambda: _copies_there(stage, accepted.octets))
    screen.time(milliseconds(began_s), f"its copy is in {SENT}, here and on the server")
    _verify_one_copy(stage)
    screen.say(f"Verified: it was sent once, and is in {SENT} exactly once.", "green")


async def poll(stage: Stage) -> None:
    pop3, screen = stage.servers.pop3, stage.screen
    screen.say(
        "POP3 has no push: the daemon polls every five minutes, and whenever it is asked to. The message was"
        " sent there too:"
    )
    took_ms = await stage.run("sync", POP3_ACCOUNT)
    screen.time(took_ms, "from the command to its end; the daemon has done the work")
    _verify(stage)
    if (retrieved := pop3.count("RETR")) != len(pop3.messages):
        raise DemoFailed(f"{len(pop3.messages)} messages came with {retrieved} RETR commands")
    screen.say(
        f"leave_on_server = true: all {len(pop3.messages)} messages stay on the server for other devices, and maild"
        " knows which ones it has; each came here once."
    )


async def show_status(stage: Stage) -> None:
    await stage.run("status")


async def end(stage: Stage) -> None:
    stage.screen.command("kill %1")
    ended_s = time.perf_counter()
    if status := await stage.end_daemon():
        raise DemoFailed(f"maild run ended with exit status {status}")
    stage.screen.time(milliseconds(ended_s), "until the daemon has ended by itself, with exit status 0")
    _verify(stage)
    _verify_one_copy(stage)
    stage.screen.say(f"Verified once more, all {stage.servers.messages} messages of IMAP and all of POP3.", "green")


async def show_maildir(stage: Stage) -> None:
    screen, root = stage.screen, stage.maildir
    screen.say("One file per message, one directory per mailbox:")
    screen.show("\n".join([str(root.parent), *_tree(root.parent)]))
    if stage.is_kept:
        screen.say("It stays there. Any mail reader that knows Maildirs can open it, such as mutt:")
        screen.command(f"mutt -f {shlex.quote(str(root / 'INBOX'))}")
        screen.say("The servers end with the demo, but what is stored can still be asked:")
        screen.command(f"maild -c {shlex.quote(str(stage.place / CONFIG))} status")
    else:
        screen.say("All of it is removed now. To keep it, and to read it with mutt:")
        screen.command("maild demo --keep ~/maild-demo")
        screen.command(f"mutt -f ~/maild-demo/{root.relative_to(stage.place)}/INBOX")


Step = Callable[[Stage], Awaitable[None]]

STEPS: tuple[tuple[str, Step], ...] = (
    ("Three mail servers", show_servers),
    ("The config", show_config),
    ("The first sync", sync_first),
    ("The daemon", start_daemon),
    ("Changes on the server come here", receive),
    ("Changes here go to the server", mark_here),
    ("A message is sent, and comes back", send),
    ("The POP3 account", poll),
    ("How it stands", show_status),
    ("The end of the daemon", end),
    ("The mail on this disk", show_maildir),
)


def tell_what_comes_next(screen: Screen) -> None:
    screen.title("With your own mail")
    screen.say("maild finds the servers, asks for the password and writes the config,")
    screen.command("maild account add me@example.org")
    screen.say("or you write it, twelve lines at most, into ~/.config/maild/maild.toml:")
    screen.show(YOUR_CONFIG)
    screen.say("Then:")
    screen.show(
        "maild check     says whether the config is good\n"
        "maild sync      fetches the mail once\n"
        "maild run       keeps it up to date; systemd/ has a unit for it"
    )


# -- what is on the disk, and what is on the servers


def _verify(stage: Stage) -> None:
    """Both accounts have here what their servers have. Raises DemoFailed."""
    account = stage.config.accounts[ACCOUNT]
    if told := witness.difference(stage.servers.store, account.maildir, account.layout):
        raise DemoFailed(told)
    here = Counter(shape.octets for shape in witness.read(stage.pop3_maildir / "INBOX"))
    there = Counter(message.raw.replace(b"\r\n", b"\n") for message in stage.servers.pop3.messages)
    if here != there:
        raise DemoFailed(
            f"of {there.total()} messages in the maildrop {(there - here).total()} are not here,"
            f" and {(here - there).total()} are here that are not there"
        )


def _verify_one_copy(stage: Stage) -> None:
    """The message was sent once, and its copy is in Sent once, on both sides. Raises DemoFailed."""
    (accepted,) = stage.servers.smtp.journal
    here = sum(shape.octets == accepted.octets.replace(b"\r\n", b"\n") for shape in witness.read(stage.maildir / SENT))
    there = _copies_there(stage, accepted.octets)
    if (here, there) != (1, 1):
        raise DemoFailed(f"the message that was sent is in {SENT} {here} times here and {there} times on the server")


def _copies_there(stage: Stage, octets: bytes) -> int:
    return sum(message.raw == octets for message in stage.servers.store.mailbox(SENT))


def _files(mailbox: Path) -> Iterator[Path]:
    """The messages of a mailbox; those that are renamed meanwhile may be missed, or told twice."""
    for name in ("new", "cur"):
        yield from (mailbox / name).iterdir()


def _file_with(mailbox: Path, raw: bytes) -> Path:
    """The file of a message (wire form). Raises DemoFailed."""
    octets = raw.replace(b"\r\n", b"\n")
    for file in _files(mailbox):
        if file.read_bytes() == octets:
            return file
    raise DemoFailed(f"a message of the server's INBOX is not in {mailbox}")


def _now(file: Path) -> Path | None:
    """The same file under the name that it has now, whatever its flags; None where it is gone."""
    unique = file.name.partition(":")[0]
    return next((one for one in _files(file.parent.parent) if one.name.partition(":")[0] == unique), None)


def _letters(file: Path) -> str:
    now = _now(file)
    return "" if now is None else now.name.partition(":2,")[2]


def _place_of(stage: Stage, directory: Path) -> str:
    return str(directory.relative_to(stage.place))


def _tree(root: Path) -> Iterator[str]:
    """The mailboxes on disk, deeper ones indented, each with how many messages it holds."""
    shown = {root}
    for path in witness.mailboxes(root):
        for above in reversed(path.relative_to(root).parents[:-1]):
            if root / above not in shown:
                shown.add(root / above)
                yield _branch(above) + above.name
        shown.add(path)
        new, cur = (sum(1 for _ in (path / name).iterdir()) for name in ("new", "cur"))
        counts = _counted(new + cur, "message") + (f", {new} new" if new else "")
        yield f"{_branch(path.relative_to(root))}{path.name}: {counts}"


def _branch(relative: Path) -> str:
    return "    " * len(relative.parts)


def _counted(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("x") else "s"
    return f"{count} {noun}{'' if count == 1 else plural}"
