"""Which URLs and which addresses images may be fetched from."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx

from clip_queue.shared.errors import BadImage
from clip_queue.shared.settings import Settings

Address = IPv4Address | IPv6Address

NOT_ALLOWED = "URL points to a network destination that is not allowed."
INVALID = "Provided image URL is invalid."

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+", re.ASCII)

# IPv6 networks whose last 32 bits are an IPv4 address: compatible, mapped, translated (SIIT), NAT64.
_LAST_32_BITS = [ip_network(n) for n in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")]
_NAT64_LOCAL = ip_network("64:ff9b:1::/48")
_GLOBAL_V6 = ip_network("2000::/3")
# Never public, whatever this Python's tables contain: protocol assignments (with Oracle's metadata service), the 6to4
# relay, Azure's host agent (a public address that only answers inside Azure), documentation.
_NEVER = [ip_network(n) for n in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001:db8::/32", "3fff::/20")]


def denoted(address: Address) -> list[Address]:
    """All addresses that a packet to ``address`` may arrive at: itself, or the IPv4 addresses that it contains."""
    if isinstance(address, IPv4Address) or int(address) <= 1:  # :: and ::1 contain no IPv4 address
        return [address]
    raw = address.packed
    last = IPv4Address(raw[12:])
    if address.sixtofour:
        return [address.sixtofour]
    if address.teredo:
        return list(address.teredo)  # the relay's server and the client behind it
    if any(address in network for network in _LAST_32_BITS):
        return [last]
    if address in _NAT64_LOCAL:  # each site chooses the place of the IPv4 bits (RFC 6052)
        places = [raw[6:8] + raw[9:11], raw[7:8] + raw[9:12], raw[9:13], raw[12:]]
        return [address, *(IPv4Address(place) for place in places if place[0])]
    if raw[8:12] in (b"\0\0\x5e\xfe", b"\2\0\x5e\xfe"):  # ISATAP
        return [address, last]
    return [address]


class Policy:
    """What the ``fetch_*`` settings allow: URLs by their form and host, addresses by their network."""

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError for a setting that is no host or no network."""
        self._http = settings.fetch_allow_http
        self._ip_hosts = settings.fetch_allow_ip_hosts
        self._bare_hosts = settings.fetch_allow_bare_hosts
        self._allow = [_pattern(p) for p in settings.fetch_allow_hosts]
        self._deny = [_pattern(p) for p in settings.fetch_deny_hosts]
        self._networks = [ip_network(n, strict=False) for n in settings.fetch_allow_networks]

    def check(self, url: str | httpx.URL) -> httpx.URL:
        """The URL with its host in canonical form. Raises BadImage if its form or its host is refused."""
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise BadImage.because(INVALID) from None
        # The tests of Roboflow Inference look for `non https:// URL` and `URL without FQDN`.
        if parsed.scheme == "http" and not self._http:
            raise BadImage.because(
                "Plain http:// URLs are not accepted: a non https:// URL needs the setting fetch_allow_http."
            )
        if parsed.scheme not in ("http", "https"):
            raise BadImage.because("Only https:// URLs are accepted, and this is a non https:// URL.")
        try:
            host, is_ip = _canonical(parsed.raw_host.decode("ascii"))
            _ = parsed.host  # decodes IDNA, and refuses what is none: xn--a
        except ValueError:
            raise BadImage.because(INVALID) from None
        if parsed.userinfo:
            raise BadImage.because("URLs with a user name or password are not accepted.")
        if parsed.port is not None and not 0 < parsed.port < 65536:
            raise BadImage.because(INVALID)
        if is_ip and not self._ip_hosts:
            raise BadImage.because(
                "URLs whose host is an IP address are not accepted: a URL without FQDN needs the setting "
                "fetch_allow_ip_hosts."
            )
        if not is_ip and "." not in host and not self._bare_hosts:
            raise BadImage.because(
                "URLs whose host has no domain are not accepted: a URL without FQDN needs the setting "
                "fetch_allow_bare_hosts."
            )
        if _matches(host, self._deny):
            raise BadImage.because("The URL's host is one that is refused (setting fetch_deny_hosts).")
        if self._allow and not _matches(host, self._allow):
            raise BadImage.because("The URL's host is not one of those allowed (setting fetch_allow_hosts).")
        return parsed.copy_with(host=host)

    def allows(self, address: Address) -> bool:
        """Whether all addresses that it denotes are global, or in a network that the settings name."""
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return False  # an address with a scope is on a local network of this machine
        return all(_is_global(a) or any(a in network for network in self._networks) for a in denoted(address))


def _is_global(address: Address) -> bool:
    if any(address in network for network in _NEVER) or address.is_multicast or not address.is_global:
        return False
    return not address.is_reserved if isinstance(address, IPv4Address) else address in _GLOBAL_V6


def _canonical(host: str) -> tuple[str, bool]:
    """The host in canonical form, and whether it is an IP address. Raises ValueError if it is no host at all."""
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if ":" in host or _NUMBER.fullmatch(labels[-1]):
        return str(ip_address(host)), True  # refuses other spellings of an address, such as 127.1 and 0x7f000001
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("not a host name")
    return host, False


def _pattern(text: str) -> str:
    """A host or ``*.host`` of the settings, in canonical form."""
    star, host = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    try:
        return star + _canonical(httpx.URL(scheme="https", host=host).raw_host.decode("ascii"))[0]
    except (httpx.InvalidURL, ValueError):
        raise ValueError(f"not a host: {text!r}") from None


def _matches(host: str, patterns: list[str]) -> bool:
    return any(host.endswith(p[1:]) if p.startswith("*.") else host == p for p in patterns)
