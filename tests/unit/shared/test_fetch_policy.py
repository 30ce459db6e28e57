"""What may be fetched: the form of URLs, lists of hosts, and addresses with the addresses that they contain."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from clip_queue.shared.errors import BadImage
from clip_queue.shared.fetch_policy import Policy
from clip_queue.shared.settings import Settings


def refusal(url: str, **settings: object) -> str:
    with pytest.raises(BadImage, match=r"^Could not load input image\. Cause: ") as caught:
        Policy(Settings.model_validate(settings)).check(url)
    return caught.value.message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://images.test/a", "fetch_allow_http"),
        ("ftp://images.test/a", "Only https"),
        ("file:///etc/passwd", "Only https"),
        ("//images.test/a", "Only https"),
        ("/etc/passwd", "Only https"),
        ("https://127.0.0.1/a", "fetch_allow_ip_hosts"),
        ("https://127.0.0.1./a", "fetch_allow_ip_hosts"),
        ("https://8.8.8.8/a", "fetch_allow_ip_hosts"),
        ("https://[::1]/a", "fetch_allow_ip_hosts"),
        ("https://[::ffff:127.0.0.1]/a", "fetch_allow_ip_hosts"),
        ("https://localhost/a", "fetch_allow_bare_hosts"),
        ("https://localhost./a", "fetch_allow_bare_hosts"),
        ("https://user@images.test/a", "user name or password"),
        ("https://user:pass@images.test/a", "user name or password"),
        ("https://good.test\\@images.test/a", "user name or password"),
        ("https://2130706433/a", "URL is invalid"),
        ("https://0x7f000001/a", "URL is invalid"),
        ("https://127.1/a", "URL is invalid"),
        ("https://0177.0.0.1/a", "URL is invalid"),
        ("https:///a", "URL is invalid"),
        ("https://a..b/a", "URL is invalid"),
        ("https://images.test:0/a", "URL is invalid"),
        ("https://images.test:65536/a", "URL is invalid"),
        ("https://images.test:-1/a", "URL is invalid"),
        ("https://images.test:x/a", "URL is invalid"),
        ("https://127.0.0.1%2f.test/a", "URL is invalid"),
        ("https://images.test\r\n.test/a", "URL is invalid"),
        ("https://[::1/a", "URL is invalid"),
        (f"https://{'a' * 64}.test/a", "URL is invalid"),
        (f"https://images.test/{'a' * 70_000}", "URL is invalid"),
    ],
)
def test_a_url_of_the_wrong_form_is_refused(url: str, says: str) -> None:
    assert says in refusal(url)


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        (
            "http://a.test/",
            {},
            "Plain http:// URLs are not accepted: a non https:// URL needs the setting fetch_allow_http.",
        ),
        ("ftp://a.test/", {}, "Only https:// URLs are accepted, and this is a non https:// URL."),
        ("https://u@a.test/", {}, "URLs with a user name or password are not accepted."),
        (
            "https://8.8.8.8/",
            {},
            "URLs whose host is an IP address are not accepted: a URL without FQDN needs the setting "
            "fetch_allow_ip_hosts.",
        ),
        (
            "https://minio/",
            {},
            "URLs whose host has no domain are not accepted: a URL without FQDN needs the setting "
            "fetch_allow_bare_hosts.",
        ),
        (
            "https://a.test/",
            {"fetch_deny_hosts": ["a.test"]},
            "The URL's host is one that is refused (setting fetch_deny_hosts).",
        ),
        (
            "https://a.test/",
            {"fetch_allow_hosts": ["b.test"]},
            "The URL's host is not one of those allowed (setting fetch_allow_hosts).",
        ),
        ("https://", {}, "Provided image URL is invalid."),
    ],
)
def test_each_refusal_says_why(url: str, settings: dict[str, object], message: str) -> None:
    assert refusal(url, **settings) == f"Could not load input image. Cause: {message}"


def test_a_url_comes_back_in_canonical_form() -> None:
    policy = Policy(Settings(fetch_allow_http=True))
    assert policy.check(" HTTP://Bücher.Test.:8080/ü?a=b".strip()).netloc == b"xn--bcher-kva.test:8080"
    assert str(policy.check("https://IMAGES.test.:443/a")) == "https://images.test/a"


def test_any_port_is_accepted() -> None:
    for port in (1, 22, 80, 9000, 65535):
        assert Policy(Settings()).check(f"https://images.test:{port}/").port == port


def test_settings_open_what_is_closed() -> None:
    for url, setting in [
        ("http://images.test/", "fetch_allow_http"),
        ("https://127.0.0.1/", "fetch_allow_ip_hosts"),
        ("https://[2606:4700::1111]:8443/", "fetch_allow_ip_hosts"),
        ("https://minio/", "fetch_allow_bare_hosts"),
    ]:
        assert setting in refusal(url)
        assert Policy(Settings.model_validate({setting: True})).check(url).host


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1"])
def test_no_setting_opens_other_spellings_of_addresses(host: str) -> None:
    assert "URL is invalid" in refusal(f"https://{host}/", fetch_allow_ip_hosts=True, fetch_allow_bare_hosts=True)


def test_lists_of_hosts() -> None:
    url = "https://images.test/a.png"
    deny, allow = "fetch_deny_hosts", "fetch_allow_hosts"
    assert deny in refusal(url, fetch_deny_hosts=["images.test"])
    assert deny in refusal(url, fetch_deny_hosts=["*.test"], fetch_allow_hosts=["*.test"])
    assert deny in refusal("https://[::0:1]/", fetch_allow_ip_hosts=True, fetch_deny_hosts=["[::1]"])
    assert allow in refusal(url, fetch_allow_hosts=["*.images.test"])  # the hosts below it, not itself
    assert allow in refusal(url, fetch_allow_hosts=["ages.test"])
    assert Policy(Settings(fetch_allow_hosts=["*.test"], fetch_deny_hosts=["other.test"])).check(url).host
    assert Policy(Settings(fetch_allow_hosts=["Bücher.Test"])).check("https://xn--bcher-kva.test./").host


@pytest.mark.parametrize(
    "wrong",
    [
        {"fetch_allow_hosts": ["https://x.test"]},
        {"fetch_deny_hosts": ["*.*.test"]},
        {"fetch_allow_networks": ["10.0.0.0/99"]},
    ],
)
def test_a_setting_that_is_no_host_or_no_network_stops_the_start(wrong: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"^not a host: '(https://x\.test|\*\.\*\.test)'$|10\.0\.0\.0/99"):
        Policy(Settings.model_validate(wrong))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"),
        *("100.100.100.200", "192.0.0.192", "192.88.99.1", "168.63.129.16", "198.18.0.1", "192.0.2.1", "203.0.113.9"),
        *("224.0.0.1", "224.0.1.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "ff0e::1"),
        *("2001:db8::1", "3fff::1", "5f00::1", "100::1", "4000::1", "2606:4700::1%lo"),
        *("::ffff:10.0.0.1", "::ffff:0:10.0.0.1", "::10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe"),
        *("64:ff9b:1::10.0.0.1", "64:ff9b:1::8.8.8.8", "2002:a00:1::", "2002:7f00:1::1"),
        "2001:0:808:808::f5ff:fffe",  # Teredo: server 8.8.8.8, client 10.0.0.1
        "2001:0:a00:1::f7f7:f7f7",  # Teredo: server 10.0.0.1, client 8.8.8.8
        *("2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:10.0.0.1"),
    ],
)
def test_addresses_that_are_not_global_are_refused(address: str) -> None:
    assert not Policy(Settings()).allows(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001:80b::200e", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"),
        *("::ffff:0:8.8.8.8", "::8.8.8.8"),
        *("2002:808:808::1", "2001:0:808:808::f7f7:f7f7", "2606:4700::5efe:8.8.8.8"),
    ],
)
def test_global_addresses_are_allowed(address: str) -> None:
    assert Policy(Settings()).allows(ip_address(address))


@pytest.mark.parametrize(
    ("networks", "address", "allowed"),
    [
        (["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "64:ff9b::10.1.2.3", True),
        (["10.0.0.0/8"], "::ffff:11.1.2.3", True),
        (["10.0.0.0/8"], "::ffff:192.168.1.1", False),
        (["::1/128"], "::1", True),
        (["fe80::/10"], "fe80::1%lo", False),
        (["64:ff9b::/96"], "64:ff9b::10.1.2.3", False),  # the list is of what an address denotes
        (["64:ff9b:1::/48"], "64:ff9b:1::8.8.8.8", True),
        (["64:ff9b:1::/48"], "64:ff9b:1::10.1.2.3", False),
        (["64:ff9b:1::/48"], "64:ff9b:1:a01:2:300::", False),  # 10.1.2.3 after a prefix of 48 bits
        (["64:ff9b:1::/48"], "64:ff9b:1:0:a:102:300:0", False),  # and of 64
    ],
)
def test_networks_can_be_allowed(networks: list[str], address: str, allowed: bool) -> None:
    assert Policy(Settings(fetch_allow_networks=networks)).allows(ip_address(address)) is allowed
