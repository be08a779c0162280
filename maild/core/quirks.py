"""What is peculiar about servers, as data: recognised by host, ID answer or capability, shown by `maild doctor`.

Each entry says what it means for the user and where it is known from. What maild does about it is done by what a server
offers or answers, never by its name: a table that is out of date must not break an account. `owner/repo#number` is an
issue there; RFCs are cited where the peculiarity is one that the standard allows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quirk:
    """One peculiarity. A server has it if its host ends in one of `hosts`, its ID answer holds one of `identities`
    (in lower case), or it offers one of `capabilities`. `remedy` names a key of the config, where one helps."""

    server: str
    text: str
    evidence: str
    hosts: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    remedy: str = ""


def quirks_of(host: str, capabilities: Collection[str] = (), identity: Mapping[str, str] | None = None) -> list[Quirk]:
    """The peculiarities of a server, in the order of the table. `identity` is its answer to ID (RFC 2971)."""
    return list(_matching("." + host.lower().rstrip("."), capabilities, " ".join((identity or {}).values()).lower()))


def _matching(host: str, capabilities: Collection[str], identity: str) -> Iterator[Quirk]:
    for quirk in QUIRKS:
        by_host = any(host.endswith("." + end) for end in quirk.hosts)
        by_identity = any(word in identity for word in quirk.identities)
        if by_host or by_identity or any(name in capabilities for name in quirk.capabilities):
            yield quirk


_GMAIL = ("imap.gmail.com", "pop.gmail.com", "smtp.gmail.com")
_EXCHANGE = ("outlook.office365.com", "outlook.com", "office365.com")
_NETEASE = ("163.com", "126.com", "yeah.net")

QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "Gmail",
        "a mailbox is a label: a message with several labels comes once for each, and [Gmail]/All Mail holds all again",
        "Gmail IMAP extensions (X-GM-EXT-1); OfflineIMAP/offlineimap#489, #611",
        _GMAIL[:1],
        capabilities=("X-GM-EXT-1",),
        remedy='mailboxes = ["*", "![Gmail]/All Mail"] keeps each message once for each label only',
    ),
    Quirk(
        "Gmail",
        "at most 15 connections at a time, shared with every other program and device of the account",
        "Gmail help: limits of IMAP clients; mordak/runt#1",
        _GMAIL[:1],
        capabilities=("X-GM-EXT-1",),
        remedy="connections = 4 (the default) leaves room for others",
    ),
    Quirk(
        "Gmail",
        "about 2,500 MB may be pulled and 500 MB appended a day; more locks the account for some hours (OVERQUOTA)",
        "Google Workspace: bandwidth limits of Gmail; chatwoot/chatwoot#6082",
        _GMAIL[:1],
        capabilities=("X-GM-EXT-1",),
    ),
    Quirk(
        "Gmail",
        "has CONDSTORE and no QRESYNC: what was deleted elsewhere is found by listing the UIDs",
        "its CAPABILITY; modern-email/defects#28 for answers without text after HIGHESTMODSEQ",
        _GMAIL[:1],
        capabilities=("X-GM-EXT-1",),
    ),
    Quirk(
        "Gmail",
        "keeps a copy of what is submitted to it: maild makes none of its own (sent = auto)",
        "Gmail help: settings of IMAP clients",
        _GMAIL[2:],
    ),
    Quirk(
        "Gmail",
        "over POP3 a message is offered to one program only; the user name recent:ADDRESS shows 30 days to all",
        "Gmail help: read mail on other programs using POP",
        _GMAIL[1:2],
        remedy='user = "recent:me@gmail.com"',
    ),
    Quirk(
        "Exchange",
        "takes OAuth 2.0 only, and keeps a copy of what is submitted: maild makes none of its own (sent = auto)",
        "Microsoft: basic authentication in Exchange Online is off since 2022",
        _EXCHANGE,
    ),
    Quirk(
        "Exchange",
        "lists calendar items with UIDs that cannot be fetched: they are left on the server, and listed in status",
        "OfflineIMAP/offlineimap#62, #281, #507",
        _EXCHANGE,
        identities=("exchange",),
    ),
    Quirk(
        "Exchange",
        "tells wrong sizes (RFC822.SIZE) of messages that it converts: content decides, and not the size",
        "Microsoft: RFC822.SIZE is an estimate unless EnableExactRFC822Size is set",
        _EXCHANGE,
        identities=("exchange",),
    ),
    Quirk(
        "iCloud",
        "does not tell the roles of its mailboxes; they are called Sent Messages, Deleted Messages, Junk and Archive",
        "its CAPABILITY in 2019; jstedfast/MailKit#1871 for ENABLE without an answer",
        ("imap.mail.me.com", "mail.me.com"),
        remedy='sent_mailbox = "Sent Messages" in the smtp section',
    ),
    Quirk(
        "iCloud",
        "may keep a copy of what is submitted, or not; maild makes one of its own (sent = auto)",
        "reports both ways in Foundry376/Mailspring#937",
        ("smtp.mail.me.com",),
        remedy='sent = "none" in the smtp section, where two copies turn up',
    ),
    Quirk(
        "Yahoo",
        "has had no IDLE for years, so new mail was found by polling",
        "M66B/FairEmail#86, thunderbird/thunderbird-android#5429",
        ("imap.mail.yahoo.com", "imap.aol.com"),
        remedy='poll = "5m" looks more often',
    ),
    Quirk(
        "Proton Bridge",
        "gives its mailboxes a new UIDVALIDITY when it is upgraded or repaired: pairs are then rebuilt by content",
        "ProtonMail/proton-bridge#220",
        identities=("proton",),
    ),
    Quirk(
        "Proton Bridge",
        "refuses LIST with RETURN: it is asked again without, and its certificate is its own",
        "jstedfast/MailKit#674",
        identities=("proton",),
        remedy="ca_file with the certificate that Bridge exports",
    ),
    Quirk(
        "NetEase",
        "refuses SELECT (Unsafe Login) until the program has said who it is: maild sends ID after every login",
        "OfflineIMAP/offlineimap3#71, pimalaya/himalaya#651",
        _NETEASE,
        identities=("netease", "coremail"),
    ),
    Quirk(
        "NetEase",
        "an initial response with AUTHENTICATE (SASL-IR) fails on some of its servers",
        "Wh1isper/mcp-email-server#85",
        _NETEASE,
        identities=("netease", "coremail"),
        remedy='disable_extensions = ["SASL-IR"] if the login fails without a reason',
    ),
    Quirk(
        "QQ",
        "refuses sets of UIDs that do not ascend: maild sends ascending ones to every server",
        "modern-email/defects#40",
        ("imap.qq.com",),
    ),
    Quirk(
        "Yandex",
        "ends sessions with BYE after BYE and never answers the command: the connection is dropped and made anew",
        "jstedfast/MailKit#938",
        ("imap.yandex.com", "imap.yandex.ru"),
    ),
    Quirk(
        "Zoho",
        "tells negative mod-sequences in some mailboxes: they are taken as unknown",
        "jstedfast/MailKit#1686",
        ("imap.zoho.com", "imap.zoho.eu"),
    ),
    Quirk(
        "Mail.ru",
        "writes big numbers in the form 9.3736e+06: such a value is taken as unknown",
        "jstedfast/MailKit#1838",
        ("imap.mail.ru",),
    ),
    Quirk(
        "STRATO",
        "answers LIST with RETURN with nothing: it is asked again without",
        "jstedfast/MailKit#1957",
        ("imap.strato.de",),
    ),
    Quirk(
        "Dovecot",
        "pushes all mailboxes at once where mailbox_list_index is on (NOTIFY), and finds changes fastest (QRESYNC)",
        "Dovecot documentation: mailbox_list_index, RFC 5465",
        identities=("dovecot",),
    ),
    Quirk(
        "Dovecot",
        "says OK Still here to an idle connection every two minutes: it counts as a proof of life",
        "Dovecot documentation: imap_idle_notify_interval",
        identities=("dovecot",),
    ),
    Quirk(
        "Cyrus",
        "keeps what was expunged for a while where delayed expunge is on: its administrator can bring it back",
        "Cyrus documentation: expunge_mode",
        identities=("cyrus",),
    ),
    Quirk(
        "Courier",
        "has mailboxes below INBOX only, with a dot between levels: INBOX.Sent",
        "Courier documentation: maildir folders; RFC 2342 NAMESPACE",
        identities=("courier",),
    ),
    Quirk(
        "Domino",
        "doubles the parentheses around FETCH answers: they are read all the same",
        "jstedfast/MailKit#943",
        identities=("domino",),
    ),
)
