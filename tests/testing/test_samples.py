"""The sample mail: always the same, complete, and as odd as promised."""

from __future__ import annotations

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

from maild.testing.samples import START_S, document, letter, maildrop_samples, new_message, picture, sample_store


def parsed(raw: bytes) -> EmailMessage:
    return message_from_bytes(raw, policy=default)


def test_every_store_holds_the_same_octets() -> None:
    first, second = sample_store(), sample_store(separator=".")
    assert [name.replace("/", ".") for name in first.names] == list(second.names)
    facts = [[(m.raw, m.flags, m.date_s) for box in store.mailboxes for m in box] for store in (first, second)]
    assert facts[0] == facts[1]
    assert 55 <= len(facts[0]) <= 70
    assert all(len(box) for box in first.mailboxes)


def test_mailboxes_have_roles_and_names_beyond_ascii() -> None:
    roles = {box.special_use: box.name for box in sample_store().mailboxes if box.special_use}
    assert roles["\\Sent"] == "Gesendet"
    assert roles["\\Drafts"] == "Entwürfe"
    assert {"日本語", "🌻 Garten", "Rechnungen/2026", "Familie/Großeltern"} <= set(sample_store().names)


def test_attachments_and_pictures_are_whole() -> None:
    store = sample_store()
    bills = [parsed(message.raw) for message in store.mailbox("Rechnungen/2026")]
    for bill in bills:
        [attachment] = bill.iter_attachments()
        assert attachment.get_content().startswith(b"%PDF-1.4")
        assert (attachment.get_filename() or "").startswith("Rechnung_2026-")
    pictures = [part for box in store.mailboxes for m in box for part in parsed(m.raw).walk()]
    assert {part.get_filename() for part in pictures if part.get_content_type() == "image/png"} == {
        "Zürichsee.png",
        "桜.png",
    }
    assert document("x").count(b"endobj") == 4
    assert picture(2, 2, 7)[:8] == b"\x89PNG\r\n\x1a\n"


def test_threads_refer_to_messages_that_are_there() -> None:
    messages = [parsed(m.raw) for box in sample_store().mailboxes for m in box]
    known = {str(message["Message-ID"]).strip() for message in messages}
    references = [word for message in messages for word in str(message.get("References", "")).split()]
    assert len(references) > 10
    assert set(references) <= known


def test_the_odd_ones_are_odd() -> None:
    raws = [m.raw for m in sample_store().mailbox("INBOX")]
    assert any(raw.startswith(b"\r\n") for raw in raws), "no header"
    assert any(not raw.endswith(b"\n") for raw in raws), "no line end"
    assert any(b"Message-ID" not in raw for raw in raws)
    assert any("Müsli".encode() in raw.split(b"\r\n\r\n")[0] for raw in raws), "8-bit header"
    assert any("Grüße".encode("latin-1") in raw for raw in raws)
    assert any(b"\r\n." in raw for raw in raws)


def test_new_messages_differ_by_number_only() -> None:
    first, second = parsed(new_message(1, START_S)), parsed(new_message(2, START_S))
    assert new_message(1, START_S) == new_message(1, START_S)
    assert first["Message-ID"] != second["Message-ID"]
    assert "Nr. 1 " in str(first["Subject"])
    assert first["Date"].datetime.timestamp() == START_S


def test_the_maildrop_is_always_the_same_and_holds_one_twice() -> None:
    drop = list(maildrop_samples())
    assert drop == list(maildrop_samples())
    assert (len(drop), len(set(drop))) == (5, 4)
    assert all(raw.endswith(b"\r\n") for raw in drop)
    assert any(b"\r\n..\r\n" in raw for raw in drop), "a line that has to be stuffed"


def test_the_letter_is_what_a_mail_program_gives_away() -> None:
    raw = letter()
    assert b"\r" not in raw
    assert {"From", "To", "Cc", "Subject"} <= set(parsed(raw).keys())
    assert not {"Date", "Message-ID"} & set(parsed(raw).keys())
