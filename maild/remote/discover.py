"""Where an address has its servers: the table of providers, autoconfig, SRV records, MX records, and careful probing.

In that order, the first that names a server for mail to come from wins; each step has an end in time. No password is
anywhere near: all that is asked is names and capabilities. Plain text is never an answer. What only the name service
says can be forged by whoever controls the network; unless it stays inside the address's own domain it has to be
confirmed by the user (RFC 6186 §6), and `Found.must_be_confirmed` says so.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread

from maild.config import Imap, NoSecret, Pop3, Smtp
from maild.core.providers import Provider, ServerProtocol, ServerTls, provider_by_mail_hosts, provider_of
from maild.remote import autoconfig, dns
from maild.remote.autoconfig import Offer
from maild.remote.probe import Reached, reach

T = TypeVar("T")

__all__ = ["SOURCES", "Found", "Offer", "Sources", "at_host", "discover"]

STEP_S = 15.0
PROBE_S = 6.0

# RFC 6186 §3.1 and §3.2, RFC 8314 §5.1; STARTTLS where the name does not say TLS.
_SERVICES: tuple[tuple[str, ServerProtocol, ServerTls], ...] = (
    ("_imaps", "imap", "implicit"),
    ("_imap", "imap", "starttls"),
    ("_pop3s", "pop3", "implicit"),
    ("_pop3", "pop3", "starttls"),
    ("_submissions", "smtp", "implicit"),
    ("_submission", "smtp", "starttls"),
)
_PROBED: tuple[tuple[ServerProtocol, tuple[str, ...], tuple[tuple[int, ServerTls], ...]], ...] = (
    ("imap", ("imap.", "mail.", ""), ((993, "implicit"), (143, "starttls"))),
    ("pop3", ("pop.", "pop3.", "mail.", ""), ((995, "implicit"), (110, "starttls"))),
    ("smtp", ("smtp.", "mail.", ""), ((465, "implicit"), (587, "starttls"))),
)


@dataclass(frozen=True, slots=True)
class Sources:
    """Who is asked. In URLs `{domain}` and `{address}` are filled in; the tests give their own."""

    autoconfig: tuple[str, ...] = (
        "https://autoconfig.{domain}/mail/config-v1.1.xml?emailaddress={address}",
        "https://{domain}/.well-known/autoconfig/mail/config-v1.1.xml",
        "https://autoconfig.thunderbird.net/v1.1/{domain}",
    )
    resolver: dns.Resolver | None = None  # None is that of the system
    context: ssl.SSLContext | None = None  # None trusts what the system trusts
    ca_file: Path | None = None  # the same for the servers that are probed
    ports: Callable[[ServerProtocol, int], int] = lambda _protocol, port: port


SOURCES = Sources()


@dataclass(frozen=True, slots=True)
class Found:
    """What one source says, `source` being its name in words. Offers are in order of preference."""

    source: str
    offers: tuple[Offer, ...]
    must_be_confirmed: bool = False
    provider: Provider | None = None

    def offer(self, protocol: ServerProtocol) -> Offer | None:
        """The best server for a protocol, TLS from the first octet on before STARTTLS."""
        fitting = [offer for offer in self.offers if offer.protocol == protocol]
        return next((o for o in fitting if o.tls == "implicit"), fitting[0] if fitting else None)


async def discover(address: str, sources: Sources | None = None) -> Found | None:
    """The first source that knows where mail for this address comes from; None where nobody does."""
    local, _, domain = address.rpartition("@")
    async with aclosing(_all(address, local, domain.lower(), sources or SOURCES)) as answers:
        async for found in answers:
            if found.offer("imap") or found.offer("pop3"):
                return found
    return None


async def at_host(
    protocol: ServerProtocol, host: str, address: str, *, port: int = 0, ca_file: Path | None = None
) -> Offer | None:
    """How a host that a person named speaks this protocol inside verified TLS; at the usual ports if `port` is 0."""
    sources = replace(SOURCES, ca_file=ca_file or SOURCES.ca_file)
    usual = next(ports for known, _, ports in _PROBED if known == protocol)
    for standard, tls in usual:
        offer = Offer(protocol, host, port or sources.ports(protocol, standard), tls, address)
        if await _in_time(partial(_answers, offer, sources)):
            return offer
    return None


async def _all(address: str, local: str, domain: str, sources: Sources) -> AsyncGenerator[Found]:
    if (provider := provider_of(domain)) is not None:
        yield _known(provider, address, local, "maild's table of providers")
        return
    for url in sources.autoconfig:
        if (found := await _autoconfig(url, address, domain, sources)) is not None:
            yield found
    yield await _srv(address, domain, sources)
    if (by_mx := await _mx(address, local, domain, sources)) is not None:
        yield by_mx
    yield await _probed(address, domain, sources)


def _known(provider: Provider, address: str, local: str, source: str, *, must_be_confirmed: bool = False) -> Found:
    offers = tuple(
        Offer(server.protocol, server.host, server.port, server.tls, local if server.user == "local" else address)
        for server in provider.servers
    )
    return Found(source, offers, must_be_confirmed, provider)


async def _autoconfig(url: str, address: str, domain: str, sources: Sources) -> Found | None:
    full = url.format(domain=domain, address=quote(address, safe="@"))
    octets = await _in_time(lambda: autoconfig.fetch(full, sources.context))
    if octets is None:
        return None
    try:
        offers = autoconfig.read(octets, address)
    except autoconfig.Unreadable:
        return None  # as good as none: the next source is asked
    return Found(f"the description at {full.partition('?')[0]}", tuple(offers)) if offers else None


async def _srv(address: str, domain: str, sources: Sources) -> Found:
    """The services of the domain; RFC 2782 priorities decide. A target outside the domain has to be confirmed."""
    offers: list[Offer] = []
    for service, protocol, tls in _SERVICES:
        for record in await _records(f"{service}._tcp.{domain}", dns.SRV, sources):
            if record.target and record.port:
                offers.append(Offer(protocol, record.target.lower(), record.port, tls, address))
    outside = any(not f".{offer.host}".endswith(f".{domain}") for offer in offers)
    return Found("the domain's SRV records", tuple(offers), must_be_confirmed=outside)


async def _mx(address: str, local: str, domain: str, sources: Sources) -> Found | None:
    hosts = [record.target for record in await _records(domain, dns.MX, sources)]
    provider = provider_by_mail_hosts(hosts)
    if provider is None:
        return None
    source = f"the domain's MX records, which lead to {provider.name}"
    return _known(provider, address, local, source, must_be_confirmed=True)


async def _records(name: str, kind: int, sources: Sources) -> list[dns.Record]:
    def asked() -> list[dns.Record]:
        try:
            return dns.records(name, kind, sources.resolver)
        except dns.NoAnswer:
            return []  # as good as none: the next source is asked

    return await _in_time(asked) or []


async def _probed(address: str, domain: str, sources: Sources) -> Found:
    """Hosts with the usual names that speak the protocol inside verified TLS; all of them side by side."""
    offers: dict[tuple[int, int, int], Offer] = {}

    async def probe(place: tuple[int, int, int], offer: Offer) -> None:
        if await _in_time(lambda: _answers(offer, sources)):
            offers[place] = offer

    async with anyio.create_task_group() as tasks:
        for p, (protocol, prefixes, ports) in enumerate(_PROBED):
            for t, (port, tls) in enumerate(ports):
                for h, prefix in enumerate(prefixes):
                    offer = Offer(protocol, prefix + domain, sources.ports(protocol, port), tls, address)
                    tasks.start_soon(probe, (p, t, h), offer)
    return Found("trying the usual names", tuple(offers[place] for place in sorted(offers)))


def _answers(offer: Offer, sources: Sources) -> bool:
    kinds = {"imap": Imap, "pop3": Pop3, "smtp": Smtp}
    endpoint = kinds[offer.protocol](
        host=offer.host, port=offer.port, user=offer.user, secret=NoSecret(), tls=offer.tls, ca_file=sources.ca_file
    )
    reached: Reached = reach(endpoint, PROBE_S)
    return reached.failure is None


async def _in_time(asked: Callable[[], T]) -> T | None:
    """What a blocking question gives, None where it takes too long; the thread is left to end by itself."""
    with anyio.move_on_after(STEP_S):
        return await anyio.to_thread.run_sync(asked, abandon_on_cancel=True)
    return None
