"""Mail providers whose servers maild knows without asking anybody: pure data, for `maild account add`.

Found by the domain of an address, or by where the domain's mail goes (MX) for those who bring a domain of their own.
Host names are those of the providers' own help pages.
What is here is a first guess that saves questions: every server is connected to, and logged in to, before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ServerProtocol = Literal["imap", "pop3", "smtp"]
ServerTls = Literal["implicit", "starttls", "none"]
UserForm = Literal["address", "local"]  # the whole address, or what stands before its @
Login = Literal["password", "app password", "google", "microsoft"]  # the last two: OAuth 2.0 there

APP_PASSWORD = "wants an app password: make one in the account's security settings on its web site"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Server:
    """Where to connect, and as whom."""

    protocol: ServerProtocol
    host: str
    port: int
    tls: ServerTls = "implicit"
    user: UserForm = "address"


@dataclass(frozen=True, slots=True)
class Provider:
    """Who runs the servers. `servers` are in order of preference; `note` is for who sets up an account there."""

    name: str
    domains: frozenset[str]
    servers: tuple[Server, ...]
    login: Login = "password"
    note: str = ""
    mail_hosts: tuple[str, ...] = ()  # where the mail of domains that are hosted there goes: ends of MX names


def provider_of(domain: str) -> Provider | None:
    """Who runs the mail of this domain, if its name tells."""
    return _BY_DOMAIN.get(domain.lower().rstrip("."))


def provider_by_mail_hosts(hosts: Iterable[str]) -> Provider | None:
    """Who runs the mail of a domain whose MX records name these hosts."""
    for host in hosts:
        bare = "." + host.lower().rstrip(".")
        for provider in PROVIDERS:
            if any(bare.endswith("." + end) for end in provider.mail_hosts):
                return provider
    return None


def _imap(host: str, port: int = 993, tls: ServerTls = "implicit", user: UserForm = "address") -> Server:
    return Server("imap", host, port, tls, user)


def _pop3(host: str, port: int = 995, tls: ServerTls = "implicit", user: UserForm = "address") -> Server:
    return Server("pop3", host, port, tls, user)


def _smtp(host: str, port: int = 465, tls: ServerTls = "implicit", user: UserForm = "address") -> Server:
    return Server("smtp", host, port, tls, user)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SWITCH_ON = "has to be told first that mail programs may log in: see the settings of the account on its web site"

PROVIDERS: tuple[Provider, ...] = (
    Provider(
        "Gmail",
        _names("gmail.com googlemail.com"),
        (_imap("imap.gmail.com"), _pop3("pop.gmail.com"), _smtp("smtp.gmail.com")),
        "google",
        "takes OAuth 2.0, or an app password once two-step verification is on; the ordinary password is refused",
        ("google.com", "googlemail.com"),
    ),
    Provider(
        "Outlook.com",
        _names(
            "outlook.com hotmail.com live.com msn.com outlook.de hotmail.de live.de outlook.fr hotmail.fr live.fr "
            "hotmail.co.uk live.co.uk outlook.es hotmail.es hotmail.it outlook.it outlook.at live.nl live.com.au"
        ),
        (
            _imap("outlook.office365.com"),
            _pop3("outlook.office365.com"),
            _smtp("smtp-mail.outlook.com", 587, "starttls"),
        ),
        "microsoft",
        "takes OAuth 2.0 only; passwords of any kind are refused",
    ),
    Provider(
        "Microsoft 365",
        frozenset(),
        (_imap("outlook.office365.com"), _pop3("outlook.office365.com"), _smtp("smtp.office365.com", 587, "starttls")),
        "microsoft",
        "takes OAuth 2.0 only; the organisation may have to allow IMAP and authenticated SMTP",
        ("mail.protection.outlook.com", "mx.microsoft"),
    ),
    Provider(
        "iCloud",
        _names("icloud.com me.com mac.com"),
        (_imap("imap.mail.me.com", user="local"), _smtp("smtp.mail.me.com", 587, "starttls")),
        "app password",
        APP_PASSWORD,
        ("mail.icloud.com",),
    ),
    Provider(
        "Yahoo",
        _names(
            "yahoo.com ymail.com rocketmail.com yahoo.de yahoo.fr yahoo.co.uk yahoo.it yahoo.es yahoo.ca yahoo.com.br "
            "yahoo.in yahoo.co.in yahoo.com.au"
        ),
        (_imap("imap.mail.yahoo.com"), _pop3("pop.mail.yahoo.com"), _smtp("smtp.mail.yahoo.com")),
        "app password",
        APP_PASSWORD,
        ("yahoodns.net",),
    ),
    Provider(
        "AOL",
        _names("aol.com aol.de aol.fr aol.co.uk aim.com"),
        (_imap("imap.aol.com"), _pop3("pop.aol.com"), _smtp("smtp.aol.com")),
        "app password",
        APP_PASSWORD,
    ),
    Provider(
        "Fastmail",
        _names(
            "fastmail.com fastmail.fm fastmail.net fastmail.org fastmail.de fastmail.co.uk sent.com messagingengine.com"
        ),
        (_imap("imap.fastmail.com"), _pop3("pop.fastmail.com"), _smtp("smtp.fastmail.com")),
        "app password",
        APP_PASSWORD,
        ("messagingengine.com",),
    ),
    Provider(
        "GMX",
        _names("gmx.de gmx.net gmx.at gmx.ch gmx.eu gmx.info gmx.org gmx.biz mein.gmx mail.gmx email.gmx"),
        (_imap("imap.gmx.net"), _pop3("pop.gmx.net"), _smtp("mail.gmx.net")),
        note=_SWITCH_ON,
        mail_hosts=("gmx.net",),
    ),
    Provider(
        "GMX international",
        _names("gmx.com gmx.us gmx.co.uk gmx.fr gmx.es"),
        (_imap("imap.gmx.com"), _pop3("pop.gmx.com"), _smtp("mail.gmx.com")),
        note=_SWITCH_ON,
    ),
    Provider(
        "WEB.DE",
        _names("web.de email.de"),
        (_imap("imap.web.de"), _pop3("pop3.web.de"), _smtp("smtp.web.de")),
        note=_SWITCH_ON,
    ),
    Provider(
        "T-Online",
        _names("t-online.de magenta.de"),
        (_imap("secureimap.t-online.de"), _pop3("securepop.t-online.de"), _smtp("securesmtp.t-online.de")),
        note="wants the e-mail password, not that of the customer account; set one in its e-mail centre",
    ),
    Provider(
        "freenet",
        _names("freenet.de"),
        (_imap("mx.freenet.de"), _pop3("mx.freenet.de"), _smtp("mx.freenet.de")),
        note=_SWITCH_ON,
    ),
    Provider(
        "1&1 IONOS",
        frozenset(),
        (_imap("imap.ionos.de"), _pop3("pop.ionos.de"), _smtp("smtp.ionos.de")),
        mail_hosts=("kundenserver.de", "ionos.de"),
    ),
    Provider(
        "STRATO",
        frozenset(),
        (_imap("imap.strato.de"), _pop3("pop3.strato.de"), _smtp("smtp.strato.de")),
        mail_hosts=("rzone.de",),
    ),
    Provider(
        "Vodafone",
        _names("vodafone.de vodafonemail.de arcor.de"),
        (_imap("imap.vodafonemail.de"), _pop3("pop.vodafonemail.de"), _smtp("smtp.vodafonemail.de")),
    ),
    Provider(
        "Swisscom",
        _names("bluewin.ch bluemail.ch"),
        (_imap("imaps.bluewin.ch"), _pop3("pop3s.bluewin.ch"), _smtp("smtpauths.bluewin.ch")),
    ),
    Provider(
        "Posteo",
        _names(
            "posteo.de posteo.net posteo.eu posteo.org posteo.at posteo.ch posteo.com posteo.me posteo.li posteo.lu "
            "posteo.nl posteo.be posteo.dk posteo.es posteo.it posteo.pl posteo.se posteo.uk posteo.us"
        ),
        (_imap("posteo.de"), _pop3("posteo.de"), _smtp("posteo.de")),
        mail_hosts=("posteo.de",),
    ),
    Provider(
        "mailbox.org",
        _names("mailbox.org secure.mailbox.org"),
        (_imap("imap.mailbox.org"), _pop3("pop3.mailbox.org"), _smtp("smtp.mailbox.org")),
        mail_hosts=("mailbox.org",),
    ),
    Provider(
        "Proton Mail",
        _names("proton.me protonmail.com protonmail.ch pm.me"),
        (_imap("127.0.0.1", 1143, "starttls"), _smtp("127.0.0.1", 1025, "starttls")),
        note="is reached through Proton Mail Bridge on this machine: start it, and use the user name and password "
        "that it shows; give its certificate as ca_file (Bridge: Settings, Export TLS certificates)",
        mail_hosts=("protonmail.ch",),
    ),
    Provider(
        "Zoho",
        _names("zoho.com zohomail.com"),
        (_imap("imap.zoho.com"), _pop3("pop.zoho.com"), _smtp("smtp.zoho.com")),
        "app password",
        _SWITCH_ON,
        ("mx.zoho.com",),
    ),
    Provider(
        "Zoho Europe",
        _names("zoho.eu zohomail.eu"),
        (_imap("imap.zoho.eu"), _pop3("pop.zoho.eu"), _smtp("smtp.zoho.eu")),
        "app password",
        _SWITCH_ON,
        ("mx.zoho.eu",),
    ),
    Provider(
        "Yandex",
        _names("yandex.com yandex.ru ya.ru yandex.by yandex.kz"),
        (_imap("imap.yandex.com"), _pop3("pop.yandex.com"), _smtp("smtp.yandex.com")),
        "app password",
        f"{APP_PASSWORD}; it {_SWITCH_ON}",
        ("yandex.net", "yandex.ru"),
    ),
    Provider(
        "Mail.ru",
        _names("mail.ru inbox.ru list.ru bk.ru internet.ru"),
        (_imap("imap.mail.ru"), _pop3("pop.mail.ru"), _smtp("smtp.mail.ru")),
        "app password",
        APP_PASSWORD,
        ("mail.ru",),
    ),
    Provider(
        "QQ",
        _names("qq.com vip.qq.com foxmail.com"),
        (_imap("imap.qq.com"), _pop3("pop.qq.com"), _smtp("smtp.qq.com")),
        "app password",
        "wants an authorization code instead of the password; it is made in the settings of the web mail",
    ),
    Provider(
        "NetEase 163",
        _names("163.com"),
        (_imap("imap.163.com"), _pop3("pop.163.com"), _smtp("smtp.163.com")),
        "app password",
        "wants an authorization code instead of the password; it is made in the settings of the web mail",
    ),
    Provider(
        "NetEase 126",
        _names("126.com"),
        (_imap("imap.126.com"), _pop3("pop.126.com"), _smtp("smtp.126.com")),
        "app password",
        "wants an authorization code instead of the password; it is made in the settings of the web mail",
    ),
    Provider(
        "NetEase yeah.net",
        _names("yeah.net"),
        (_imap("imap.yeah.net"), _pop3("pop.yeah.net"), _smtp("smtp.yeah.net")),
        "app password",
        "wants an authorization code instead of the password; it is made in the settings of the web mail",
    ),
    Provider(
        "Orange",
        _names("orange.fr wanadoo.fr"),
        (_imap("imap.orange.fr"), _pop3("pop.orange.fr"), _smtp("smtp.orange.fr")),
    ),
    Provider(
        "Free",
        _names("free.fr"),
        (_imap("imap.free.fr", user="local"), _pop3("pop.free.fr", user="local"), _smtp("smtp.free.fr", user="local")),
    ),
    Provider(
        "Infomaniak",
        _names("ik.me ikmail.com etik.com"),
        (_imap("mail.infomaniak.com"), _pop3("mail.infomaniak.com"), _smtp("mail.infomaniak.com")),
        mail_hosts=("ikmail.com", "infomaniak.ch"),
    ),
    Provider(
        "Migadu",
        frozenset(),
        (_imap("imap.migadu.com"), _pop3("pop.migadu.com"), _smtp("smtp.migadu.com")),
        mail_hosts=("migadu.com",),
    ),
)

_BY_DOMAIN = {domain: provider for provider in PROVIDERS for domain in provider.domains}
