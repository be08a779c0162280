"""What is made of a message on its way into the outbox: recipients, account, sender, what is added and taken out."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from maild.config.senders import Sender, Senders
from maild.core.outgoing import Item
from maild.engine.accept import NoAccount, Order, Refused, date_field, prepared
from maild.local.outbox import Outbox

NOW = 1_800_000_000
WORK = Sender("work", ("me@example.org", "alias@example.org"), 0)
HOME = Sender("home", ("me@bücher.example", "Other@Home.example"), 30)


def senders(*accounts: Sender, default: str | None = None) -> Senders:
    return Senders(Path("/state"), accounts or (WORK, HOME), default)


def take(raw: bytes, among: Senders | None = None, **order: Any) -> tuple[Item, bytes]:
    if "recipients" not in order:
        order.setdefault("take_from_head", True)
    return prepared(raw, Order(**order), among or senders(default="work"), NOW)


def recipients(raw: bytes, **order: Any) -> list[str]:
    return [recipient.address for recipient in take(raw, **order)[0].recipients]


# -- recipients


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"To: a@b\nCc: c@d\nBcc: e@f\n\n", ["a@b", "c@d", "e@f"]),
        (b"Bcc: only@b\n\n", ["only@b"]),
        (b"To: a@b\nTo: c@d\nTO : e@f\n\n", ["a@b", "c@d", "e@f"]),
        (b"To: a@b, A@b, a@B\n\n", ["a@b", "A@b"]),
        (b"To: Team: a@b,\n\tc@d;\nCc: none:;\n\n", ["a@b", "c@d"]),
        (b"To: =?utf-8?q?J=C3=B6rg?= <a@b>\n\n", ["a@b"]),
        (b"To: J\xc3\xb6rg <a@b>\n\n", ["a@b"]),
        (b"To: J\xf6rg <a@b>\n\n", ["a@b"]),
        ("To: a@bücher.example, b@BÜCHER.example\n\n".encode(), [f"{n}@xn--bcher-kva.example" for n in "ab"]),
        ("To: faß@faß.example\n\n".encode(), ["faß@xn--fa-hia.example"]),
        (b"To: a@b\n\nTo: in the body <x@y>\n", ["a@b"]),
        (b"To: a@b\r\nCc: c@d\r\n\r\n", ["a@b", "c@d"]),
        (b"Reply-To: x@y\nTo: a@b\nDelivered-To: z@z\n\n", ["a@b"]),
        (b"Resent-To: r@s\nResent-Bcc: t@u\nTo: a@b\nBcc: c@d\n\n", ["r@s", "t@u"]),
    ],
)
def test_taken_from_the_head(raw: bytes, expected: list[str]) -> None:
    assert recipients(raw) == expected


def test_given_ones_and_those_of_the_head_are_all_there() -> None:
    raw = b"To: a@b\nBcc: c@d\n\n"
    assert recipients(raw, recipients=("x@y",), take_from_head=True) == ["x@y", "a@b", "c@d"]
    assert recipients(raw, recipients=("x@y", "z@w, q@r", "x@y")) == ["x@y", "z@w", "q@r"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "there is no recipient"),
        (b"To: undisclosed-recipients:;\n\n", "there is no recipient"),
        (b"To: root\n\n", "'root' has no domain"),
        (b"To: a@b, c\n\n", "'c' has no domain"),
        (b"To: a@b\nCc: c@d <e@f>\n\n", "comma missing"),
        (b"To: a@b; c@d\n\n", "not by semicolons"),
        (b"To: a@b\n\nSubject: x\n".replace(b"\n\n", b"\nno field\n"), "not divided from the body"),
        (b"To: a@-.example\n\n", "is no domain"),
        ("To: a@\u0378.example\n\n".encode(), "is no domain"),
        (b"To: \xff@b\n\n", "holds a blank, a control"),
        (b"Resent-Date: 1\nResent-Date: 2\nResent-To: a@b\n\n", "resent more than once"),
        (b"To: a@b\x00\n\n", "cannot stand there"),
    ],
)
def test_refused_with_a_reason(raw: bytes, text: str) -> None:
    with pytest.raises(Refused, match=text) as caught:
        take(raw)
    assert "nothing was sent" in str(caught.value)


@pytest.mark.parametrize("address", ["a@b\r\nRCPT TO:<c@d>", "a@b>", "<a@b> SIZE=1", "a b@c", "a@b\0", "a@b\n", "a"])
def test_what_could_be_a_command_is_no_recipient(address: str) -> None:
    try:
        found = recipients(b"\n", recipients=(address,))
    except Refused:
        return
    assert found == [address.strip()]  # a line end around it is not part of it
    assert found == ["a@b"]


# -- the message


def test_bcc_goes_and_everything_else_stays() -> None:
    raw = b"X-Odd:  kept\t \nBcc: a@b,\n c@d\nTo: e@f\nResent-Bcc: g@h\nSubject: x\n\nBcc: in the body\n\xff\n"
    _, text = take(raw, recipients=("x@y",))
    head, _, body = text.partition(b"\n\n")
    assert head.split(b"\n")[-3:] == [b"X-Odd:  kept\t ", b"To: e@f", b"Subject: x"]
    assert body == b"Bcc: in the body\n\xff\n"


def test_from_date_and_message_id_are_added_once_if_missing() -> None:
    item, text = take(b"To: a@b\n\nhello")
    fields = dict(re.findall(rb"^([\w-]+): (.*)$", text.partition(b"\n\n")[0], re.MULTILINE))
    assert fields[b"From"] == b"<me@example.org>"
    assert parsedate_to_datetime(fields[b"Date"].decode()).timestamp() == NOW
    assert re.fullmatch(rb"<[\w.]+@example\.org>", fields[b"Message-ID"])
    assert item.message_id == fields[b"Message-ID"].decode()
    again, same = take(text)
    assert same == text
    assert again.message_id == item.message_id


def test_two_messages_of_one_second_have_two_ids() -> None:
    assert take(b"To: a@b\n\n")[0].message_id != take(b"To: a@b\n\n")[0].message_id


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Cron Daemon", b"Cron Daemon <me@example.org>"),
        ('J. "Q" Doe', b'"J. \\"Q\\" Doe" <me@example.org>'),
        ("Jörg", b"=?utf-8?b?SsO2cmc=?= <me@example.org>"),
        ("x\r\nBcc: a@b", b"=?utf-8?b?eCAgQmNjOiBhQGI=?= <me@example.org>"),
    ],
)
def test_a_full_name_where_there_is_no_from(name: str, expected: bytes) -> None:
    _, text = take(b"To: a@b\n\n", full_name=name)
    assert b"From: " + expected + b"\n" in text
    _, text = take(b"From: x@y\nTo: a@b\n\n", full_name=name)
    assert text.count(b"From: ") == 1


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"no head\nat all\n", b"\n\nno head\nat all\n"),
        (b"\nbody\n", b"\n\nbody\n"),
        (b"", b"\n\n"),
        (b"A: 1\nno field\n", b"\nA: 1\n\nno field\n"),
        (b"a\rb\r\nc", b"\n\na\nb\nc\n"),
        (b"From me@x Thu\nA: 1\n\nx\n", b"\nA: 1\n\nx\n"),
    ],
)
def test_a_message_always_has_a_head(raw: bytes, expected: bytes) -> None:
    _, text = take(raw, recipients=("a@b",))
    assert text.endswith(expected)
    assert b"\r" not in text
    assert text.partition(b"\n\n")[0].count(b"Message-ID: ") == 1


@pytest.mark.parametrize(
    ("raw", "recipient", "is_8bit", "utf8"),
    [
        (b"To: a@b\n\nascii\n", "a@b", False, ""),
        (b"To: a@b\n\n\xc3\xa9\n", "a@b", True, ""),
        (b"Subject: \xc3\xa9\n\n", "a@b", True, "wanted"),
        (b"Subject: \xe9\n\n", "a@b", True, ""),
        (b"\n\n", "é@b", False, "needed"),
        (b"\n\n", "a@é.example", False, ""),
    ],
)
def test_what_the_server_must_be_able_to_do(raw: bytes, recipient: str, is_8bit: bool, utf8: str) -> None:
    item, _ = take(raw, recipients=(recipient,))
    assert (item.is_8bit, item.utf8) == (is_8bit, utf8)


def test_the_size_is_that_of_the_wire() -> None:
    item, text = take(b"To: a@b\n\n.dot\nline\n")
    assert item.size_octets == len(text.replace(b"\n", b"\r\n"))


def test_the_subject_is_readable() -> None:
    assert take(b"To: a@b\nSubject: =?utf-8?q?h=C3=A9?=\n =?utf-8?q?llo?=\n\n")[0].subject == "héllo"
    assert take(b"To: a@b\nSubject: \xff\n\n")[0].subject == "?"


# -- account and sender


@pytest.mark.parametrize(
    ("head", "order", "account", "sender"),
    [
        (b"From: me@example.org\n", {}, "work", "me@example.org"),
        (b"From: A <ALIAS@Example.org>\n", {}, "work", "ALIAS@Example.org"),
        (b"From: other@home.example\n", {}, "home", "other@home.example"),
        ("From: me@bücher.example\n".encode(), {}, "home", "me@xn--bcher-kva.example"),
        (b"From: x@y\nSender: other@home.example\n", {}, "home", "other@home.example"),
        (b"From: other@home.example\nResent-From: me@example.org\n", {}, "work", "me@example.org"),
        (b"From: stranger@x\n", {}, "work", "stranger@x"),
        (b"", {}, "work", "me@example.org"),
        (b"", {"account": "home"}, "home", "me@xn--bcher-kva.example"),
        (b"From: me@example.org\n", {"account": "home"}, "home", "me@example.org"),
        (b"From: me@example.org\n", {"sender": "other@home.example"}, "home", "other@home.example"),
        (b"From: me@example.org\n", {"sender": "bounces+1@lists.example"}, "work", "bounces+1@lists.example"),
        (b"From: other@home.example\n", {"sender": ""}, "home", ""),
        (b"From: other@home.example\n", {"sender": "<>"}, "home", ""),
        (b"From: root (Cron Daemon)\n", {"sender": "root"}, "work", "me@example.org"),
        (b"From: unreadable <\n", {}, "work", "me@example.org"),
    ],
)
def test_account_and_sender(head: bytes, order: dict[str, Any], account: str, sender: str) -> None:
    item, _ = take(head + b"\n", recipients=("a@b",), **order)
    assert (item.account, item.sender) == (account, sender)


@pytest.mark.parametrize(
    ("among", "order", "text"),
    [
        (Senders(Path("/state"), (), None), {}, "no account can send"),
        (senders(), {}, "no account has the sender's address; use -f or --account"),
        (senders(), {"account": "nobody"}, "no account 'nobody' can send; there are: work, home"),
        (senders(default="imap-only"), {}, "no account has the sender's address"),
    ],
)
def test_no_account(among: Senders, order: dict[str, Any], text: str) -> None:
    with pytest.raises(NoAccount, match=text):
        take(b"From: stranger@x\n\n", among, recipients=("a@b",), **order)


def test_the_only_account_needs_no_default() -> None:
    assert take(b"From: stranger@x\n\n", senders(HOME), recipients=("a@b",))[0].account == "home"


def test_a_message_id_that_is_no_text_is_kept_as_far_as_it_is(tmp_path: Path) -> None:
    item, text = take(b"To: a@b\nMessage-ID: <\xff@x>\n\n", senders(WORK))
    Outbox(tmp_path).accept(item, text)
    assert Outbox(tmp_path).contents().items[0].message_id == "<\ufffd@x>"
    assert b"Message-ID: <\xff@x>\n" in text


@pytest.mark.parametrize("name", [b"Bcc", b"bcc ", b"Resent-BCC"])
def test_a_bcc_that_a_broken_head_would_show_is_refused(name: bytes) -> None:
    head = b"To: a@b\nTh\xc3\xa9ma: x\n" + name + b": secret@b\n"
    with pytest.raises(Refused, match="everybody would see the Bcc"):
        take(head + b"\nhello\n", senders(WORK), recipients=("a@b",), take_from_head=False)
    for raw in (b"Hello,\nBcc: is what I mean\n", b"To: a@b\n\nx\nBcc: y\n", b"To: a@b\nx\n\nBcc: y\n"):
        assert take(raw, senders(WORK), recipients=("a@b",), take_from_head=False)[1].endswith(raw[-6:])


# -- when


def test_undo_and_a_chosen_time() -> None:
    assert take(b"To: a@b\n\n", senders(WORK))[0].next_s == NOW
    assert take(b"To: a@b\n\n", senders(HOME))[0].next_s == NOW + 30
    at = take(b"To: a@b\n\n", senders(HOME), send_s=NOW + 3600)[0]
    assert (at.next_s, at.since_s, at.created_s) == (NOW + 3600, NOW + 3600, NOW)


@pytest.mark.parametrize("seconds", [0, NOW, 1_234_567_890])
def test_a_date_field_is_that_time(seconds: int) -> None:
    assert parsedate_to_datetime(date_field(seconds)).timestamp() == seconds
