"""The parts of the bench, small: the corpus stays the same, verifying finds faults, figures are right."""

from __future__ import annotations

import os
import re
import select
import statistics
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.bench import corpus, outbox
from tests.bench.clients import Maild, Mbsync, OfflineImap, Server, maild_program
from tests.bench.crowd import PASSWORD, Crowd, user
from tests.bench.daemon import Daemon
from tests.bench.limits import DurableMaildir, _unix_time
from tests.bench.measure import RunFailed, Sample, timed
from tests.bench.pop3 import Fetchmail, Getmail, MaildPop3, Mpop
from tests.bench.push import Mta, flag_times_s, made_lane
from tests.bench.report import Row, Scenario, Target, as_json, as_text
from tests.bench.run import main
from tests.bench.thousand import most_in_a_second
from tests.bench.verify import facts_of, verify
from tests.bench.witness import Witness
from tests.servers.dovecot import Dovecot, DovecotMissing

DEADLINE_S = 10.0
SOME = list(corpus.mail(1_500))
SECRETIVE = ("maild.toml", "mbsyncrc", "offlineimaprc", "mpoprc", "getmailrc", "fetchmailrc", "procmailrc")


def maildir_of(messages: list[corpus.Message], path: Path, *, syncfs: bool = False) -> Path:
    items = [(message.fact().letters, message.date, message.raw) for message in messages]
    DurableMaildir(path / "INBOX", syncfs=syncfs).deliver(items)
    return path


def file_of(message: corpus.Message, maildir: Path) -> Path:
    wanted = f"Message-ID: <{message.number}.".encode()
    return next(path for path in maildir.glob("INBOX/*/*") if wanted in path.read_bytes()[:4_000])


def test_corpus_is_the_same_everywhere() -> None:
    together = corpus.digest(b"".join(message.raw for message in SOME[1:200]))
    assert together.hex() == "df1055b7c356a62aac1887ccf142ef4a"
    assert [message.raw for message in corpus.mail(50)] == [message.raw for message in SOME[:50]]


def test_sizes_are_as_promised() -> None:
    sizes = [len(message.raw) for message in SOME]
    assert 7_500 < statistics.median(sizes) < 8_500
    assert max(sizes) == pytest.approx(4_000_000, rel=0.01)
    assert all(1_600 < len(message.raw) < 2_700 for message in corpus.small(300))
    assert len(next(corpus.big(9_000_000)).raw) == pytest.approx(9_000_000, rel=0.001)


@pytest.mark.parametrize(
    "oddity",
    [rb"\r(?!\n)", rb"[\x80-\xff]", rb"[^\n]{998}", rb"=\r\n|=C3", rb"Encoding: base64", rb"\n\.\r", rb"[^\n]\Z"],
    ids=["lone CR", "8 bit", "long line", "quoted-printable", "base64", "dot", "no newline at the end"],
)
def test_oddities_of_real_mail_occur(oddity: bytes) -> None:
    assert any(re.search(oddity, message.raw) for message in SOME)


def test_what_a_server_would_alter_itself_does_not_occur() -> None:
    altered = re.compile(rb"\r\r|\x00|(?<!\r)\n")
    assert [message.number for message in SOME if altered.search(message.raw)] == []


def test_flags_and_dates_differ_from_message_to_message() -> None:
    assert {message.fact().letters for message in SOME} == {"", "S", "FS", "RS", "FRS"}
    assert all(older.date < newer.date for older, newer in pairwise(SOME))


@pytest.mark.parametrize("syncfs", [False, True])
def test_a_right_maildir_is_found_right(tmp_path: Path, syncfs: bool) -> None:
    verdict = verify(maildir_of(SOME[1:100], tmp_path, syncfs=syncfs), {"INBOX": facts_of(SOME[1:100])})
    assert verdict.faithful
    assert (verdict.expected, verdict.found, verdict.text()) == (99, 99, "all")


def test_every_fault_is_found(tmp_path: Path) -> None:
    messages = SOME[1:11]
    maildir = maildir_of(messages, tmp_path)
    files = [file_of(message, maildir) for message in messages]

    def rewrite(path: Path, raw: bytes) -> None:
        times = path.stat()
        path.write_bytes(raw)
        os.utime(path, (times.st_atime, times.st_mtime))

    rewrite(files[0], files[0].read_bytes() + b"x")
    rewrite(files[1], b"X-TUID: abcdefghijkl\n" + files[1].read_bytes())
    os.utime(files[2], (1, 1))
    files[3].rename(files[3].with_name("moved:2,T"))
    files[4].unlink()
    twin = files[5].with_name("twin" + files[5].name)
    twin.write_bytes(files[5].read_bytes())
    os.utime(twin, (messages[5].date, messages[5].date))
    (maildir / "INBOX" / "new" / "stranger").write_bytes(b"Subject: no number\n\n")

    verdict = verify(maildir, {"INBOX": facts_of(messages)})
    assert not verdict.faithful
    assert verdict.text() == "1 missing, 1 doubled, 2 altered, 1 with X-TUID added, 1 wrong flags, 1 wrong dates"


def test_a_missing_mailbox_is_missing_mail(tmp_path: Path) -> None:
    assert verify(tmp_path, {"INBOX": facts_of(SOME[:5])}).text() == "all missing"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"29-Feb-2024 12:34:56 +0000", 1709210096), (b" 1-Jan-2020 00:30:00 +0130", 1577833200)],
)
def test_internaldate_in_unix_time(text: bytes, seconds: int) -> None:
    assert _unix_time(text) == seconds


def scenario(ours: list[float], theirs: list[float]) -> Scenario:
    rows = [
        Row("maild", 1_000, [Sample(wall, wall / 2, 30.0) for wall in ours], "all", True, ours=True),
        Row("mbsync", 1_000, [Sample(wall, wall / 2, 15.0) for wall in theirs], "all with X-TUID added", False),
        Row("absent", failure="first line\nno absent: apt-get install it"),
    ]
    return Scenario("made-up", "nothing", rows)


def test_ratios_are_of_medians() -> None:
    made_up = scenario([2.0, 1.0, 9.0], [7.0, 6.0, 5.0])
    assert made_up.times_as_fast("maild", "mbsync") == 3.0
    assert made_up.times_as_fast("maild", "absent") is None


def test_table_shows_medians_ranges_ratios_and_reasons() -> None:
    lines = as_text(scenario([2.0, 1.0, 9.0], [7.0, 6.0, 5.0])).splitlines()
    assert lines[2].split() == ["maild", "2.00", "1.00", "–", "9.00", "3", "500", "1.00", "30", "1.00×", "all"]
    assert "6.00  5.00 – 7.00" in lines[3]
    assert lines[3].endswith("3.00×  all with X-TUID added")
    assert lines[4].endswith("(no absent: apt-get install it)")
    assert as_json(scenario([1.0], [2.0]))["rows"][1]["runs"][0]["wall_s"] == 2.0


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target("a", 2.5, 2.5), True),
        (Target("a", 2.49, 2.5), False),
        (Target("a", 2.49, 2.5, at_most=True), True),
        (Target("a", 2.51, 2.5, at_most=True), False),
        (Target("a", None, 2.5, at_most=True), False),
    ],
)
def test_targets(target: Target, reached: bool) -> None:
    assert target.reached is reached
    assert target.line(judged=True).startswith("reached " if reached else "NOT REACHED")
    assert target.line(judged=False).startswith("not judged")


def test_a_run_is_measured_without_the_memory_of_the_bench(tmp_path: Path) -> None:
    ballast = bytearray(os.urandom(1 << 20) * 100)
    sample = timed([sys.executable, "-c", "sum(range(10**6))"], tmp_path, timeout_s=60)
    assert 0 < sample.cpu_s <= sample.wall_s * 2
    assert 5 < sample.rss_mib < 60 < len(ballast) >> 20


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"(?s)exit status 3:.*no such luck"):
        timed(["sh", "-c", "echo no such luck >&2; exit 3"], tmp_path, timeout_s=60)


def test_a_run_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="not finished after"):
        timed(["sh", "-c", "echo $$ > pid; exec sleep 1000"], tmp_path, timeout_s=0.5)
    with suppress(ProcessLookupError):  # it has no parent any more that would wait for it
        ended = os.pidfd_open(int((tmp_path / "pid").read_text()))
        assert select.select([ended], [], [], DEADLINE_S)[0], "it was not killed"
        os.close(ended)


def test_mailds_configuration_is_one_that_maild_accepts(tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.touch()
    for server in (Server(143, "me", "made up"), Server(993, "me", "made up", ca_file)):
        command = Maild().command(server, tmp_path)
        assert command[:-2] == [*maild_program(), "-c"]
        ran = subprocess.run([*command[:-1], "check"], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        (tmp_path / "maild.toml").unlink()


def test_mailds_configuration_for_pop3_is_one_that_maild_accepts(tmp_path: Path) -> None:
    command = MaildPop3().command(Server(110, "me", "made up"), tmp_path)
    ran = subprocess.run([*command[:-1], "check"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_what_pop3_does_not_tell_is_not_compared(tmp_path: Path) -> None:
    """No flags, any date; a line end that a client added is told apart from a message that it altered."""
    bare = {message.number: replace(message.fact(), letters="", mtime=None) for message in SOME[1:100]}
    maildir = maildir_of([replace(message, flags=(), date=0) for message in SOME[1:100]], tmp_path)
    assert verify(maildir, {"INBOX": bare}).faithful
    path = file_of(next(message for message in SOME[1:100] if not message.raw.endswith(b"\n")), maildir)
    path.write_bytes(path.read_bytes() + b"\n")
    verdict = verify(maildir, {"INBOX": bare})
    assert not verdict.faithful
    assert verdict.text() == "1 with a line end added"


def test_configurations_with_passwords_are_private(tmp_path: Path) -> None:
    for client in (Maild(), Mbsync(), OfflineImap(), Mpop(), Getmail(), Fetchmail()):
        client.command(Server(143, "me", "made up"), tmp_path)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir() if path.is_file()}
    assert modes == dict.fromkeys(SECRETIVE, "0o600")


def test_unknown_scenarios_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--scenario", "nonsense"])
    assert "initial" in capsys.readouterr().err


def test_most_instants_in_any_second() -> None:
    assert most_in_a_second([]) == 0
    assert most_in_a_second([5.0, 0.9, 0.0, 1.0, 1.8, 1.85, 1.95]) == 4


def test_a_crowd_is_kept_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "daemon").mkdir()
    with Crowd(3, tmp_path / "crowd") as crowd:
        server = {"host": "localhost", "port": crowd.port, "tls": "implicit", "ca_file": str(crowd.ca_file)}
        accounts = {
            user(n): {"address": "me@bench.example", "imap": {**server, "user": user(n), "password": PASSWORD}}
            for n in range(3)
        }
        with Daemon(tmp_path / "daemon", accounts) as daemon:
            daemon.until_pushed(30)
            assert len(crowd.accepted_s()) >= 6
            rss_kib, pss_kib = daemon.memory_kib()
            assert 10_000 < pss_kib <= rss_kib < 200_000
            assert 0 < daemon.cpu_s() < 30
            crowd.restart()
            daemon.until(lambda found: any(account["push"] is None for account in found.values()), 30)
            daemon.until_pushed(30)
            assert 3 <= len(crowd.accepted_s()) <= 9


@pytest.mark.live
def test_deliveries_are_timed_and_losses_are_found(tmp_path: Path) -> None:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(Dovecot(lmtp=True))
        except DovecotMissing as missing:
            pytest.skip(str(missing))
        witness = stack.enter_context(Witness())
        lane = made_lane(server, witness, stack, Row("maild, IDLE", ours=True), 0.0, tmp_path, 3)
        mta = Mta(server, witness)
        mta.deliver(lane)
        mta.storm(lane, 5)
        assert len(lane.above_notice_s()) == 6
        assert max(lane.above_notice_s()) < 10
        assert max(flag_times_s(lane, 1)) < 10
        assert lane.missing() == 0
        lane.numbers.append(1)
        assert lane.missing() == 1


def test_a_queue_is_sent_and_counted(tmp_path: Path) -> None:
    """maild alone: its peers need their packages, and root."""
    sample = outbox._sending(outbox._maild, 5, 0.0, logs_in=True)(tmp_path)
    assert sample.wall_s > 0
    assert len(list((tmp_path / "mail/bench/Sent/cur").iterdir())) == 5


def test_a_message_that_does_not_arrive_is_a_failure(tmp_path: Path) -> None:
    def prepare(directory: Path, port: int, count: int, stack: ExitStack) -> list[str]:
        return outbox._maild(directory, port, count - 1, stack)

    with pytest.raises(RunFailed, match="got 1 messages, 1 different ones, of 2"):
        outbox._sending(prepare, 2, 0.0, logs_in=True)(tmp_path)


def test_accepting_is_timed_and_counted(tmp_path: Path) -> None:
    assert outbox._accept_one(tmp_path).wall_s > 0
