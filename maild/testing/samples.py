"""Sample mail for the demo: some sixty messages in mailboxes with German and other names, always the same octets.

What is in real mailboxes is in here: threads, HTML with a picture, attachments, encoded and raw 8-bit headers, Latin-1
bodies, a message without Message-ID, one without a header, one twice. Dates are in autumn 2026.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from hashlib import sha256

from maild.testing.store import Store

START_S = 1_790_000_000  # 2026-09-21
_HOUR_S = 3600

ADDRESS, POP3_ADDRESS = "erika@example.org", "erika@isp.example"
SENT = "Gesendet"

ME = f"Erika Mustermann <{ADDRESS}>"
JONAS = "Jonas Weiß <jonas@example.net>"
LENA = "Lena Müller-Lüdenscheidt <lena@example.com>"
TANAKA = "田中 花子 <hanako@example.jp>"
SHOP = "Buchhandlung Löwe <rechnung@buecher.example>"
LIST = "Garten-Liste <garten@lists.example.org>"

MAILBOXES = {  # levels → special use (RFC 6154)
    ("Entwürfe",): "\\Drafts",
    (SENT,): "\\Sent",
    ("Papierkorb",): "\\Trash",
    ("Spam",): "\\Junk",
    ("Archiv",): "\\Archive",
    ("Archiv", "2025"): "",
    ("Rechnungen",): "",
    ("Rechnungen", "2026"): "",
    ("Familie", "Großeltern"): "",  # "Familie" itself does not exist
    ("Bücher & Noten",): "",
    ("日本語",): "",
    ("🌻 Garten",): "",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One message and where it lies; `date_s` is its INTERNALDATE in seconds since 1970."""

    levels: tuple[str, ...]
    raw: bytes
    flags: tuple[str, ...]
    date_s: int


@dataclass(frozen=True, slots=True)
class File:
    """An attachment; `inline_id` makes it a picture of the HTML part."""

    name: str
    mime_type: str
    octets: bytes
    inline_id: str = ""


def sample_store(*, separator: str = "/") -> Store:
    """A store with all sample mailboxes and messages; equal for every call."""
    store = Store(separator=separator)
    for levels, special_use in MAILBOXES.items():
        store.create(separator.join(levels), special_use)
    for sample in samples():
        store.deliver(separator.join(sample.levels), sample.raw, sample.flags, sample.date_s)
    return store


def new_message(n: int, now_s: int) -> bytes:
    """A message that has just arrived, in wire form; its subject and Message-ID hold `n`."""
    text = f"Hallo Erika,\n\ndies ist die {n}. Nachricht, die während der Vorführung ankommt.\n\nViele Grüße\nJonas\n"
    return compose(f"new-{n}", f"Neue Nachricht Nr. {n} – schöne Grüße", JONAS, ME, text, now_s)


def letter() -> bytes:
    """What a mail program gives to `maild sendmail -t`: LF, and no Date or Message-ID yet."""
    message = EmailMessage(policy=SMTP.clone(linesep="\n"))
    message["From"], message["To"], message["Cc"] = ME, ADDRESS, POP3_ADDRESS
    message["Subject"] = "Schöne Grüße an mich selbst"
    message.set_content("Einmal über den Ausgang hinaus und wieder herein.\n\n.\nAuch ein Punkt am Zeilenanfang.\n")
    return message.as_bytes()


def maildrop_samples() -> Iterator[bytes]:
    """What lies on a POP3 server, in wire form: five messages, one of them with a picture, one twice."""
    to = f"Erika Mustermann <{POP3_ADDRESS}>"
    provider = "Ihr Anbieter <service@isp.example>"
    photo = File("Störche.png", "image/png", picture(64, 48, 90))
    yield compose(
        "isp-welcome", "Willkommen – Ihr Postfach ist eröffnet", provider, to, "Viel Freude damit.\n", _at(10)
    )
    yield compose("isp-storks", "Die Störche sind da", TANAKA, to, "Ein Bild vom Nest.\n", _at(90), files=[photo])
    yield compose("isp-dots", "Punkte am Zeilenanfang", JONAS, to, ".\n..\n.\nEnde\n", _at(95))
    for _ in range(2):
        yield compose("isp-bill", "Ihre Rechnung für Oktober", provider, to, "Betrag: 4,99 €\n", _at(120))


def compose(
    key: str,
    subject: str,
    sender: str,
    to: str,
    text: str,
    date_s: int,
    *,
    html: str = "",
    files: Sequence[File] = (),
    thread: Sequence[str] = (),
) -> bytes:
    """A message in wire form. `key` makes Message-ID and boundaries, `thread` are the keys it answers, oldest first."""
    message = EmailMessage(policy=SMTP)
    message["Date"] = formatdate(date_s)
    message["From"], message["To"], message["Subject"] = sender, to, subject
    message["Message-ID"] = _message_id(key)
    if thread:
        message["In-Reply-To"] = _message_id(thread[-1])
        message["References"] = " ".join(map(_message_id, thread))
    message.set_content(text)
    if html:
        message.add_alternative(html, subtype="html")
    for file in files:
        _attach(message, file)
    for number, part in enumerate(part for part in message.walk() if part.is_multipart()):
        part.set_boundary("=_" + sha256(f"{key} {number}".encode()).hexdigest()[:24])
    return message.as_bytes()


def _message_id(key: str) -> str:
    return f"<{key}@maild.example>"


def _attach(message: EmailMessage, file: File) -> None:
    maintype, _, subtype = file.mime_type.partition("/")
    if file.inline_id:
        html = message.get_body(("html",))
        if isinstance(html, EmailMessage):
            html.add_related(file.octets, maintype, subtype, cid=f"<{file.inline_id}>", filename=file.name)
        return
    message.add_attachment(file.octets, maintype=maintype, subtype=subtype, filename=file.name)


def picture(width: int, height: int, hue: int) -> bytes:
    """A PNG with a gradient in 8-bit RGB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + b"".join(bytes((hue, 255 * x // width, 255 - hue)) for x in range(width))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(row * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def document(title: str) -> bytes:
    """A PDF of one page with one line of text (ASCII)."""
    drawing = f"BT /F1 24 Tf 72 720 Td ({title}) Tj ET".encode("ascii", "replace")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(drawing), drawing),
    ]
    out, offsets = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n%b" % (len(objects) + 1, table)
    return out + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)


def samples() -> Iterator[Sample]:
    """Every sample message, oldest first within its group."""
    yield from _summer_party()
    yield from _inbox()
    yield from _odd()
    yield from _invoices()
    yield from _japanese()
    yield from _garden()
    yield from _archive()
    yield from _others()


def _at(hours: float) -> int:
    return START_S + int(hours * _HOUR_S)


def _sample(
    levels: str,
    key: str,
    subject: str,
    people: tuple[str, str],
    text: str,
    hours: float,
    flags: str = "\\Seen",
    *,
    html: str = "",
    files: Sequence[File] = (),
    thread: Sequence[str] = (),
) -> Sample:
    """`levels` divided by `/`, flags by spaces; the server got it two minutes after it was written."""
    raw = compose(key, subject, *people, text, _at(hours), html=html, files=files, thread=thread)
    return Sample(tuple(levels.split("/")), raw, tuple(flags.split()), _at(hours) + 120)


def _summer_party() -> Iterator[Sample]:
    """One thread over INBOX and Gesendet."""
    texts = (
        ("INBOX", LENA, "Hallo zusammen,\n\nwer bringt den Grill mit?\n\nLena"),
        ("Gesendet", ME, "Ich habe einen, aber er ist groß. Wer hilft tragen?"),
        ("INBOX", JONAS, "Ich komme um fünf mit dem Anhänger.\n\n> Wer hilft tragen?"),
        ("INBOX", LENA, "Großartig! Dann fehlt nur noch der Kartoffelsalat 🥔"),
        ("Gesendet", ME, "Den mache ich. Bis Samstag!"),
        ("INBOX", JONAS, "Es regnet laut Vorhersage. Zelt?"),
    )
    for number, (mailbox, sender, text) in enumerate(texts):
        subject = "Sommerfest im Garten – wer bringt was?"
        to = LENA if sender == ME else ME
        keys = [f"party-{earlier}" for earlier in range(number)]
        flags = "\\Seen" if number < 4 else "\\Answered \\Seen" if number == 4 else "\\Flagged"
        title = f"Re: {subject}" if number else subject
        yield _sample(mailbox, f"party-{number}", title, (sender, to), text + "\n", 3 * number, flags, thread=keys)


def _inbox() -> Iterator[Sample]:
    """What lies in the INBOX of somebody who reads mail: new, flagged, forwarded, with pictures and attachments."""
    html = "<html><body><h1>Schöne Grüße</h1><p>aus <b>Zürich</b> <img src='cid:see'></p></body></html>"
    photo = File("Zürichsee.png", "image/png", picture(64, 48, 40), inline_id="see")
    text = "Schöne Grüße aus Zürich!\n"
    yield _sample("INBOX", "zurich", "Grüße vom Zürichsee", (LENA, ME), text, 30, html=html, files=[photo])
    plan = File("Projektplan (Übersicht).pdf", "application/pdf", document("Projektplan"))
    table = File("zahlen.csv", "text/csv", "Posten;Betrag\r\nBüro;12,50\r\n".encode())
    text = "Anbei der Plan und die Zahlen.\n"
    yield _sample(
        "INBOX", "plan", "Projektplan: bitte prüfen", (JONAS, ME), text, 40, "\\Flagged $Work", files=[plan, table]
    )
    text = "Die Rechnung ging weiter an die Buchhaltung.\n"
    yield _sample("INBOX", "forward", "Fwd: Rechnung 2026-117", (SHOP, ME), text, 50, "\\Seen $Forwarded")
    news = "<p>Diese Woche: <a href='https://example.org/'>Neues aus der Stadt</a></p>" * 40
    for week in range(1, 7):
        subject = f"Wochenblatt Nr. {week}: Märkte, Museen und Musik für die ganze Familie an diesem Wochenende"
        flags = "\\Seen" if week < 4 else ""
        people = ("Wochenblatt <post@blatt.example>", ME)
        yield _sample("INBOX", f"news-{week}", subject, people, "Nur als HTML.\n", 60 + 168 * week, flags, html=news)
    long_line = "Ein Absatz ohne Umbruch: " + "sehr lang " * 300
    yield _sample("INBOX", "long", "Ein sehr langer Absatz", (LENA, ME), long_line + "\n", 70, "")
    dots = ".\n..\n.signature\nFrom here on nothing is a new message\n>From neither\n"
    yield _sample("INBOX", "dots", "Punkte am Zeilenanfang", (JONAS, ME), dots, 72, "")


def _odd() -> Iterator[Sample]:
    """Messages that no library would write but every mailbox holds; made by hand."""
    date = formatdate(_at(100)).encode()
    head = b"From: erika@example.org\r\nTo: jonas@example.net\r\nDate: " + date + b"\r\n"
    odd = {
        "raw 8-bit header": head + "Subject: Müsli ohne Kodierung\r\n\r\nUTF-8 in der Kopfzeile.\r\n".encode(),
        "latin-1 body": head
        + b"Subject: =?iso-8859-1?Q?Gr=FC=DFe?=\r\nMessage-ID: <latin1@maild.example>\r\nMIME-Version: 1.0\r\n"
        + b"Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        + "Schöne Grüße in Latin-1\r\n".encode("latin-1"),
        "folded": head
        + b"Subject: =?utf-8?B?w4RyZ2VyIG1pdCBkZW0gWmVpbGVudW1icnVjaCDigJMg?=\r\n =?utf-8?B?ZG9wcGVsdA==?=\r\n"
        + b"Message-ID:\r\n <folded@maild.example>\r\n\r\ngefaltet\r\n",
        "no header": b"\r\nNur ein Text, ohne jede Kopfzeile.\r\n",
        "no body": head + b"Subject: ohne Text\r\nMessage-ID: <empty@maild.example>\r\n\r\n",
        "no end": head + b"Subject: ohne Zeilenende\r\n\r\nHier fehlt das Ende",
        "bare LF": head + b"Subject: gemischte Zeilenenden\r\n\r\neins\nzwei\r\ndrei\r\n",
    }
    for number, raw in enumerate(odd.values()):
        yield Sample(("INBOX",), raw, ("\\Seen",) if number % 2 else (), _at(100 + number))


def _invoices() -> Iterator[Sample]:
    for month in range(1, 10):
        number = f"2026-{100 + month}"
        bill = File(f"Rechnung_{number}.pdf", "application/pdf", document(f"Rechnung {number}"))
        text = f"Sehr geehrte Frau Mustermann,\n\nanbei Ihre Rechnung {number} über {month * 7},90 €.\n"
        flags = "\\Seen $Paid" if month < 8 else "\\Flagged"
        subject = f"Ihre Rechnung {number}"
        yield _sample(
            "Rechnungen/2026", f"bill-{month}", subject, (SHOP, ME), text, -4000 + 700 * month, flags, files=[bill]
        )
    text = "Bitte beachten Sie unsere neue Bankverbindung.\n"
    yield _sample("Rechnungen", "bank", "Neue Bankverbindung", (SHOP, ME), text, -5000)


def _japanese() -> Iterator[Sample]:
    texts = ("来月の会議について", "資料をお送りします", "ありがとうございました", "桜の写真 🌸")
    for number, subject in enumerate(texts):
        files = [File("桜.png", "image/png", picture(48, 48, 200))] if number == 3 else []
        text = f"エリカ様\n\n{subject}。\n\n田中\n"
        yield _sample("日本語", f"ja-{number}", subject, (TANAKA, ME), text, 200 + 26 * number, "\\Seen", files=files)


def _garden() -> Iterator[Sample]:
    for number, subject in enumerate(("Tomaten im Herbst", "Re: Tomaten im Herbst", "Äpfel zu verschenken 🍎")):
        thread = ["garden-0"] if number == 1 else []
        text = "Guten Tag in die Runde!\n\nMehr dazu am Zaun.\n"
        yield _sample(
            "🌻 Garten", f"garden-{number}", f"[garten] {subject}", (LIST, LIST), text, 300 + number, thread=thread
        )


def _archive() -> Iterator[Sample]:
    for number in range(12):
        text = f"Protokoll der {number + 1}. Sitzung.\n\n" + "Es wurde beraten und beschlossen.\n" * (number + 1)
        people = (JONAS, ME) if number % 2 else (ME, JONAS)
        where = "Archiv/2025" if number < 8 else "Archiv"
        subject = f"Protokoll {number + 1}/2025"
        yield _sample(where, f"minutes-{number}", subject, people, text, -9000 + 400 * number)
    yield _sample("Archiv", "party-0-copy", "Sommerfest (Kopie)", (LENA, ME), "Zum Aufheben.\n", -100)
    yield _sample("Archiv", "party-0-copy", "Sommerfest (Kopie)", (LENA, ME), "Zum Aufheben.\n", -100)


def _others() -> Iterator[Sample]:
    text = "Liebe Lena,\n\nwas ich schon lange schreiben wollte …\n"
    yield _sample("Entwürfe", "draft-1", "Noch nicht fertig", (ME, LENA), text, 400, "\\Draft \\Seen")
    yield _sample("Entwürfe", "draft-2", "", (ME, JONAS), "\n", 401, "\\Draft")
    yield _sample("Papierkorb", "trash-1", "Alte Einladung", (JONAS, ME), "Vorbei.\n", 20, "\\Seen \\Deleted")
    win = ("Gewinnspiel <win@spam.example>", ME)
    yield _sample("Spam", "spam-1", "SIE HABEN GEWONNEN!!!", win, "Klicken Sie hier.\n", 21, "$Junk")
    text = "Liebes Kind,\n\ndanke für die Fotos! Der Großvater lässt grüßen.\n"
    grandma = ("Oma Käthe <kaethe@example.org>", ME)
    yield _sample("Familie/Großeltern", "oma-1", "Danke für die schönen Bilder", grandma, text, 220, "\\Flagged \\Seen")
    yield _sample("Familie/Großeltern", "oma-2", "Rezept: Käsespätzle", grandma, "500 g Mehl, 5 Eier …\n", 230, "")
    text = "Die Partitur liegt zur Abholung bereit.\n"
    yield _sample("Bücher & Noten", "notes-1", "Bach: »Wohltemperiertes Klavier«", (SHOP, ME), text, 240)
