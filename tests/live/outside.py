"""An outsider's view of one account: the server as another client sees it, the disk as a mail reader does.

Nothing of maild is used here but its command line. Mailboxes go by their levels joined with "/", messages by what both
sides must agree on: disk form, flags and keywords, date in seconds.
"""

from __future__ import annotations

import base64
import imaplib
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.live.client import Client, Fact, facts_in
from tests.servers.append import modified_utf7
from tests.servers.proxy import FaultProxy

WHEN_S = 1_600_000_000
COUNTERS = ("pulled", "pushed", "flags", "deleted", "moved", "refused", "skipped")
MUTATING = re.compile(
    rb"(?im)^\S+ (?:UID )?(APPEND|STORE|COPY|MOVE|EXPUNGE|CREATE|RENAME|DELETE|SUBSCRIBE|UNSUBSCRIBE|CLOSE)\b"
)
_LISTED = re.compile(rb'\((?P<attributes>[^)]*)\) (?:"[^"]*"|NIL) (?P<name>.*)')
_numbers = itertools.count(1)


def letter(n: int, extra: str = "", *, octets: int = 0) -> bytes:
    """Message number `n` in the disk form."""
    filler = b"0123456789abcdef" * 4 + b"\n"
    head = f"Message-ID: <out-{n}@test.example>\nDate: Tue, 14 Nov 2023 22:13:20 +0000\nSubject: Nr. {n}\n{extra}\n"
    return head.encode() + f"Grüße {n}\n".encode() + filler * (octets // len(filler))


def wire(raw: bytes) -> bytes:
    return raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@dataclass(slots=True)
class Outside:
    """See the module. `client` runs maild; `layout` is the account's."""

    client: Client
    layout: str = "nested"
    separator: str = "/"
    _session: imaplib.IMAP4 | None = field(default=None)

    # -- maild

    def sync(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """One pass: what `--json` says about the account."""
        self.client.account = f'layout = "{self.layout}"\n{self.extra}'
        ran = self.client.run("sync", "--json", *arguments)
        assert ran.returncode == status, ran.stdout + ran.stderr
        told: dict[str, Any] = json.loads(ran.stdout)["accounts"]["work"]
        assert told["ok"] is (status == 0), told
        return told

    extra: str = ""

    def counts(self, *arguments: str, status: int = 0) -> dict[str, int]:
        """The counters of one pass that are not 0."""
        told = self.sync(*arguments, status=status)
        return {name: told[name] for name in COUNTERS if told[name]}

    def settled(self) -> None:
        """Both sides are equal, and a pass that finds this out changes nothing and says so."""
        self.equal()
        before, mail = self.snapshot(), self.there()
        with FaultProxy(self.client.server.imap_port, record=True) as proxy:
            self.client.port = proxy.port
            assert self.counts() == {}
            said = proxy.recorded("server")
        self.client.port = 0
        assert MUTATING.findall(said) == []
        assert b"BODY.PEEK[]" not in said, "a message was fetched"
        assert self.snapshot() == before
        assert self.there() == mail

    def status(self) -> dict[str, Any]:
        ran = self.client.run("status", "--json")
        told: dict[str, Any] = json.loads(ran.stdout)["accounts"]["work"]
        return told

    def lose_state(self) -> None:
        shutil.rmtree(self.client.state_dir)

    # -- this disk

    @property
    def root(self) -> Path:
        return self.client.maildir

    def where(self, mailbox: str) -> Path:
        """Of a mailbox with a plain name."""
        if self.layout == "nested":
            return self.root / mailbox
        return self.root if mailbox == "INBOX" else self.root / ("." + mailbox.replace("/", "."))

    def make(self, mailbox: str) -> None:
        for name in ("tmp", "new", "cur"):
            (self.where(mailbox) / name).mkdir(parents=True, exist_ok=True)

    def write(self, raw: bytes, mailbox: str = "INBOX", letters: str = "", *, date_s: int = WHEN_S) -> Path:
        """Deliver a message as a program on this disk does."""
        self.make(mailbox)
        name = f"{date_s}.R{next(_numbers)}.reader"
        temporary = self.where(mailbox) / "tmp" / name
        temporary.write_bytes(raw)
        os.utime(temporary, (date_s, date_s))
        path = self.where(mailbox) / (f"cur/{name}:2,{letters}" if letters else f"new/{name}")
        temporary.rename(path)
        return path

    def files(self, mailbox: str = "INBOX") -> list[Path]:
        top = self.where(mailbox)
        return sorted(p for name in ("new", "cur") for p in (top / name).iterdir())

    def find(self, n: int, mailbox: str = "INBOX") -> Path:
        (path,) = [p for p in self.files(mailbox) if f"Subject: Nr. {n}\n".encode() in p.read_bytes()]
        return path

    def relabel(self, path: Path, letters: str) -> Path:
        """As readers do: into `cur`, with these letters."""
        target = path.parent.parent / "cur" / f"{path.name.partition(':2,')[0]}:2,{''.join(sorted(letters))}"
        return path.rename(target)

    def move(self, path: Path, mailbox: str, *, new_name: bool = False) -> Path:
        self.make(mailbox)
        key, colon, info = path.name.partition(":2,")
        key = f"{WHEN_S}.N{next(_numbers)}.reader" if new_name else key
        return path.rename(self.where(mailbox) / path.parent.name / (key + colon + info))

    def here(self) -> dict[str, Counter[Fact]]:
        """Every mailbox on this disk."""
        found = {}
        for cur in sorted(self.root.rglob("cur")):
            top = cur.parent
            if not (top / "new").is_dir() or not (top / "tmp").is_dir():
                continue
            relative = top.relative_to(self.root)
            if self.layout == "nested":
                levels = [unquote(part) for part in relative.parts]
            else:
                levels = [unquote(part) for part in relative.name.split(".")[1:]] or ["INBOX"]
            assert not list((top / "tmp").iterdir()), f"left in the tmp of {top}"
            found["\x00".join(levels)] = facts_in(top)
        return found

    def snapshot(self) -> dict[str, tuple[int, ...]]:
        """Every file and directory below the Maildir, as far as a change would show."""
        found = {}
        for path in [self.root, *self.root.rglob("*")]:
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return found

    # -- the server

    @contextmanager
    def session(self, mailbox: str = "") -> Iterator[imaplib.IMAP4]:
        """Another client's connection, with a mailbox open."""
        with self.client.server.connect(self.client.user) as session:
            if mailbox:
                _ok(session.select(_quoted(mailbox)))
            yield session
            if mailbox:
                session.unselect()

    def deliver(self, raw: bytes, mailbox: str = "INBOX", flags: Iterable[str] = (), *, date_s: int = WHEN_S) -> None:
        date = datetime.fromtimestamp(date_s, UTC).strftime('"%d-%b-%Y %H:%M:%S +0000"')
        with self.session() as session:
            _ok(session.append(_quoted(mailbox), f"({' '.join(flags)})", date, wire(raw)))

    def fill(self, numbers: Iterable[int], mailbox: str = "INBOX", flags: Iterable[str] = ()) -> None:
        """Many at once."""
        kept = tuple(flags)
        self.client.server.import_messages(
            self.client.user,
            mailbox,
            [(wire(letter(n)), kept, datetime.fromtimestamp(WHEN_S + n, UTC)) for n in numbers],
        )

    def store(self, n: int, change: str, flags: str, mailbox: str = "INBOX") -> None:
        with self.session(mailbox) as session:
            _ok(session.uid("STORE", self._uid(session, n), change, f"({flags})"))

    def expunge(self, numbers: Iterable[int], mailbox: str = "INBOX") -> None:
        with self.session(mailbox) as session:
            uids = ",".join(self._uid(session, n) for n in numbers)
            _ok(session.uid("STORE", uids, "+FLAGS", "(\\Deleted)"))
            _ok(session.uid("EXPUNGE", uids))

    def move_there(self, numbers: Iterable[int], source: str, target: str) -> None:
        with self.session(source) as session:
            _ok(session.uid("MOVE", ",".join(self._uid(session, n) for n in numbers), _quoted(target)))

    def command(self, name: str, *mailboxes: str) -> None:
        """CREATE, RENAME, DELETE."""
        with self.session() as session:
            _ok(getattr(session, name)(*map(_quoted, mailboxes)))

    @staticmethod
    def _uid(session: imaplib.IMAP4, n: int) -> str:
        _, found = session.uid("SEARCH", "HEADER", "Message-ID", f"<out-{n}@test.example>")
        uids = found[0].split()
        assert len(uids) == 1, f"message {n} is there {len(uids)} times"
        return str(uids[0].decode())

    def there(self) -> dict[str, Counter[Fact]]:
        """Every selectable mailbox on the server."""
        found = {}
        with self.session() as session:
            _, lines = session.list()
            for line in lines:
                name = _name(line)
                if name is not None:
                    found["\x00".join(_decoded(name).split(self.separator))] = self._messages(session, name)
        return found

    @staticmethod
    def _messages(session: imaplib.IMAP4, name: str) -> Counter[Fact]:
        _ok(session.select('"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"', readonly=True))
        _, lines = session.uid("FETCH", "1:*", "(FLAGS INTERNALDATE BODY.PEEK[])")
        counted: Counter[Fact] = Counter()
        head, raw = b"", b""
        for line in lines:
            if isinstance(line, tuple):
                head, raw = line
            elif line is not None:
                facts = head + line
                flags = re.search(rb"FLAGS \(([^)]*)\)", facts)
                date = re.search(rb'INTERNALDATE "([^"]*)"', facts)
                assert flags is not None
                assert date is not None
                when = datetime.strptime(date[1].decode().strip(), "%d-%b-%Y %H:%M:%S %z")
                names = frozenset(flag.decode() for flag in flags[1].split() if flag != b"\\Recent")
                counted[raw.replace(b"\r\n", b"\n"), names, int(when.timestamp())] += 1
        return counted

    # -- both

    def equal(self) -> None:
        here, there = self.here(), self.there()
        assert set(here) == set(there), (sorted(here), sorted(there))
        for name, messages in here.items():
            lacking, extra = there[name] - messages, messages - there[name]
            assert messages == there[name], f"{name}: only on the server {lacking}, only here {extra}"

    def numbers(self, side: dict[str, Counter[Fact]], mailbox: str = "INBOX") -> list[int]:
        """Which messages a mailbox of one side has, by number, doubles included."""
        found = side.get(mailbox.replace("/", "\x00"), Counter())
        return sorted(int(raw.partition(b"Subject: Nr. ")[2].split(b"\n", 1)[0]) for raw, _, _ in found.elements())


def _ok(answer: tuple[str, Any]) -> None:
    assert answer[0] == "OK", answer


def _quoted(mailbox: str) -> str:
    return '"' + modified_utf7(mailbox).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _name(line: object) -> str | None:
    """The name in a LIST response, as it is on the wire; None where the mailbox cannot be selected."""
    head, literal = line if isinstance(line, tuple) else (line, b"")
    if not isinstance(head, bytes):
        return None
    match = _LISTED.match(head)
    if match is None or b"\\noselect" in match["attributes"].lower() or b"\\nonexist" in match["attributes"].lower():
        return None
    name = literal or match["name"]
    if name.startswith(b'"'):
        name = re.sub(rb"\\(.)", rb"\1", name[1:-1])
    return str(name.decode())


def _decoded(name: str) -> str:
    """Modified UTF-7 (RFC 3501 §5.1.3) as text."""

    def decode(run: re.Match[str]) -> str:
        if not run[1]:
            return "&"
        octets = base64.b64decode(run[1] + "=" * (-len(run[1]) % 4), b"+,")
        return octets.decode("utf-16-be")

    return re.sub(r"&([^-]*)-", decode, name)
