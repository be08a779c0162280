"""Finding the servers of an address: each source, their order, and what hostile answers come to."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maild.core.providers import PROVIDERS, provider_by_mail_hosts, provider_of
from maild.remote import autoconfig, dns
from maild.remote.autoconfig import Offer, Unreadable
from maild.remote.discover import Sources, discover
from maild.testing.imap import ImapServer
from maild.testing.smtp import SmtpServer
from maild.testing.store import Store
from tests.servers.autoconfig import XML, AutoconfigServer, server
from tests.servers.certificates import Authority
from tests.servers.nameserver import NameServer

ADDRESS = "me@mail.example"
GOOD = XML.format(
    servers=server("imap", "imap.%EMAILDOMAIN%", 143, "STARTTLS")
    + server("imap", "imap.mail.example", 993, user="%EMAILLOCALPART%")
    + server("imap", "plain.mail.example", 143, "plain")
    + server("exchange", "ews.mail.example", 443)
    + server("smtp", "smtp.mail.example", 465)
).encode()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def web(authority: Authority) -> Iterator[AutoconfigServer]:
    with AutoconfigServer(authority.good()) as found:
        yield found


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer() as found:
        yield found


@pytest.fixture(autouse=True)
def no_names_but_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real name service is asked nothing."""
    real = socket.getaddrinfo

    def found(host: Any, *arguments: Any, **more: Any) -> Any:
        if host not in ("localhost", "127.0.0.1"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", found)


@pytest.fixture
def sources(web: AutoconfigServer, names: NameServer, authority: Authority) -> Sources:
    """All on loopback; nothing is there to be probed."""
    return Sources(
        autoconfig=(
            web.url + "/mail/config-v1.1.xml?emailaddress={address}",
            web.url + "/known",
            web.url + "/v1.1/{domain}",
        ),
        resolver=names.address,
        context=authority.client_context(),
        ca_file=authority.ca_file,
        ports=lambda _protocol, _port: 1,
    )


# -- the table


def test_every_domain_belongs_to_one_provider() -> None:
    domains = [domain for provider in PROVIDERS for domain in provider.domains]
    assert len(domains) == len(set(domains))
    assert all(domain == domain.lower() and "@" not in domain for domain in domains)


def test_every_provider_receives_and_sends_inside_tls() -> None:
    for provider in PROVIDERS:
        assert {"imap", "smtp"} <= {one.protocol for one in provider.servers}, provider.name
        assert all(one.tls in ("implicit", "starttls") for one in provider.servers), provider.name


async def test_a_known_domain_asks_nobody(sources: Sources, web: AutoconfigServer, names: NameServer) -> None:
    found = await discover("me@Gmail.com", sources)
    assert found is not None
    assert found.offer("imap") == Offer("imap", "imap.gmail.com", 993, "implicit", "me@Gmail.com")
    assert (found.must_be_confirmed, web.journal, names.journal) == (False, [], [])


async def test_where_the_user_name_is_not_the_address(sources: Sources) -> None:
    found = await discover("me@icloud.com", sources)
    assert found is not None
    assert [offer.user for offer in found.offers] == ["me", "me@icloud.com"]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("aspmx.l.google.com", "Gmail"),
        ("x-example.mail.protection.outlook.com.", "Microsoft 365"),
        ("evilgoogle.com", ""),
    ],
)
def test_mx_names_of_providers(host: str, name: str) -> None:
    found = provider_by_mail_hosts([host])
    assert (found.name if found else "") == name
    assert provider_of("nobody.example") is None


# -- autoconfig


async def test_the_providers_own_description(sources: Sources, web: AutoconfigServer) -> None:
    web.pages["/mail/config-v1.1.xml"] = GOOD
    found = await discover(ADDRESS, sources)
    assert found is not None
    assert found.offer("imap") == Offer("imap", "imap.mail.example", 993, "implicit", "me")
    assert found.offer("smtp") == Offer("smtp", "smtp.mail.example", 465, "implicit", ADDRESS)
    assert [offer.host for offer in found.offers] == ["imap.mail.example", "imap.mail.example", "smtp.mail.example"]
    assert not found.must_be_confirmed
    assert web.journal == [f"/mail/config-v1.1.xml?emailaddress={ADDRESS}"]


async def test_the_central_database_hears_the_domain_only(sources: Sources, web: AutoconfigServer) -> None:
    web.pages["/v1.1/mail.example"] = GOOD
    found = await discover(ADDRESS, sources)
    assert found is not None
    assert found.source == f"the description at {web.url}/v1.1/mail.example"
    assert web.journal[1:] == ["/known", "/v1.1/mail.example"]


@pytest.mark.parametrize(
    "page",
    [
        b'<!DOCTYPE x [<!ENTITY a "b">]>' + GOOD.partition(b"?>")[2],
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><clientConfig/>',
        b"not xml",
        b"",
        GOOD[:-20],
        b"<a>" * 100_000,
        XML.format(servers=server("imap", "imap.mail.example", 0)).encode(),
        XML.format(servers=server("imap", "a/../b", 993)).encode(),
        XML.format(servers=server("imap", "imap.mail.example", 993, user="a&#10;b")).encode(),
        GOOD + b" " * (autoconfig.MOST_OCTETS + 1),
        b"http://localhost:1/elsewhere",
    ],
)
async def test_a_description_that_cannot_be_used_is_none(sources: Sources, web: AutoconfigServer, page: bytes) -> None:
    web.pages["/mail/config-v1.1.xml"] = page
    assert await discover(ADDRESS, sources) is None


def test_entities_are_refused_and_not_expanded() -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><clientConfig>&b;</clientConfig>'
    with pytest.raises(Unreadable, match="document type or entities"):
        autoconfig.read(bomb, ADDRESS)


async def test_a_web_server_that_cannot_be_trusted_is_not_believed(sources: Sources, authority: Authority) -> None:
    with AutoconfigServer(authority.wrong_name(), {"/known": GOOD}) as web:
        assert await discover(ADDRESS, replace(sources, autoconfig=(web.url + "/known",))) is None


# -- SRV and MX


async def test_srv_records_inside_the_domain(sources: Sources, names: NameServer) -> None:
    names.srv["_imaps._tcp.mail.example"] = [(20, 0, 993, "b.mail.example."), (10, 0, 1993, "a.mail.example.")]
    names.srv["_submissions._tcp.mail.example"] = [(0, 0, 465, "out.mail.example.")]
    names.srv["_imap._tcp.mail.example"] = [(0, 0, 0, ".")]
    found = await discover(ADDRESS, sources)
    assert found is not None
    assert found.offer("imap") == Offer("imap", "a.mail.example", 1993, "implicit", ADDRESS)
    assert found.offer("smtp") == Offer("smtp", "out.mail.example", 465, "implicit", ADDRESS)
    assert not found.must_be_confirmed


@pytest.mark.parametrize("target", ["imap.elsewhere.example.", "evilmail.example.", "mail.example.evil."])
async def test_srv_records_that_leave_the_domain_have_to_be_confirmed(
    sources: Sources, names: NameServer, target: str
) -> None:
    names.srv["_imaps._tcp.mail.example"] = [(0, 0, 993, target)]
    found = await discover(ADDRESS, sources)
    assert found is not None
    assert found.must_be_confirmed


async def test_mx_records_lead_to_a_provider(sources: Sources, names: NameServer) -> None:
    names.mx["mail.example"] = [(5, "aspmx.l.google.com.")]
    found = await discover(ADDRESS, sources)
    assert found is not None
    assert found.provider is not None
    assert (found.provider.name, found.must_be_confirmed) == ("Gmail", True)


def test_a_long_answer_comes_over_tcp(names: NameServer) -> None:
    names.truncates = True
    names.mx["mail.example"] = [(20, "b.example"), (10, "a.example")]
    assert [record.target for record in dns.records("mail.example", dns.MX, names.address)] == [
        "a.example",
        "b.example",
    ]


def test_a_name_that_does_not_exist_has_no_records(names: NameServer) -> None:
    names.code = 3
    assert dns.records("mail.example", dns.MX, names.address) == []


@pytest.mark.parametrize("code", [1, 2, 5])
def test_a_name_server_that_fails(names: NameServer, code: int) -> None:
    names.code = code
    with pytest.raises(dns.NoAnswer):
        dns.records("mail.example", dns.MX, names.address)


_QUESTION = b"\x04mail\x07example\x00" + struct.pack("!2H", dns.MX, 1)
_HEAD = struct.pack("!5H", 0x8180, 1, 1, 0, 0)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x81\x80",
        _HEAD + b"\x04evil\x07example\x00" + struct.pack("!2H", dns.MX, 1),
        _HEAD + _QUESTION,
        _HEAD + _QUESTION + b"\xc0\x0c" + struct.pack("!2HIH", dns.MX, 1, 60, 4) + b"\x00\x01\xc0\x2c",
        _HEAD + _QUESTION + b"\xff\xff",
        _HEAD
        + _QUESTION
        + b"\xc0\x0c"
        + struct.pack("!2HIH", dns.MX, 1, 60, 9)
        + b"\x00\x01\x05\xff\xff\xff\xff\xff\x00",
    ],
)
def test_an_answer_that_is_none(names: NameServer, garbage: bytes) -> None:
    names.garbage = garbage
    with pytest.raises(dns.NoAnswer):
        dns.records("mail.example", dns.MX, names.address)


# -- probing


async def test_servers_with_the_usual_names_are_tried(sources: Sources, authority: Authority) -> None:
    tls = authority.good().server_context()
    imap, smtp = ImapServer(Store(), {}, ssl_context=tls), SmtpServer(tls=tls)
    async with imap, smtp:
        ports = {"imap": imap.port, "pop3": 1, "smtp": smtp.port}
        found = await discover("me@localhost", replace(sources, ports=lambda protocol, _: ports[protocol]))
        assert found is not None
        assert (found.source, found.offer("pop3")) == ("trying the usual names", None)
        assert found.offer("imap") == Offer("imap", "localhost", imap.port, "implicit", "me@localhost")
        assert found.offer("smtp") == Offer("smtp", "localhost", smtp.port, "implicit", "me@localhost")


async def test_a_server_whose_certificate_is_not_trusted_is_not_found(
    sources: Sources, authority: Authority, tmp_path: Path
) -> None:
    async with ImapServer(Store(), {}, ssl_context=authority.good().server_context()) as imap:
        other = Authority(tmp_path)
        mine = replace(sources, ports=lambda _protocol, _port: imap.port, ca_file=other.ca_file)
        assert await discover("me@localhost", mine) is None
        assert imap.count("LOGIN") + imap.count("AUTHENTICATE") == 0
