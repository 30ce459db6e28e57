"""The guarded fetch, against a TLS server on the loopback address with an authority of its own: where it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpcore
import pytest
import trustme

from clip_queue.shared.errors import BadImage
from clip_queue.shared.fetch import Fetcher, GuardedBackend
from clip_queue.shared.fetch_failure import BROKEN, NO_HOST, REFUSED, TLS
from clip_queue.shared.fetch_policy import Policy
from clip_queue.shared.settings import Settings

from .tls_site import IMAGE, LIMIT, NOT_ALLOWED, PRIVATE, UNREACHABLE, Make, Resolver, Site, answer, redirect, refusal

pytestmark = pytest.mark.timeout(30)


async def test_a_body_is_fetched_whole_and_its_connection_used_again(site: Site, make: Make) -> None:
    site.routes["/big"] = answer(bytes(LIMIT))
    fetcher = make()
    assert await fetcher.get(site.url("/a.png?x=1#part")) == IMAGE
    assert await fetcher.get(site.url("/big")) == bytes(LIMIT)  # exactly the limit
    assert site.connections == 1
    head = site.heads[0].lower()
    assert head.startswith("get /a.png?x=1 http/1.1\r\n")
    assert f"host: images.test:{site.port}\r\n" in head
    assert "accept-encoding: identity\r\n" in head
    assert "cookie" not in head


async def test_a_kept_connection_that_its_server_has_closed_is_not_the_urls_fault(site: Site, make: Make) -> None:
    async def shut(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def shut_once(writer: asyncio.StreamWriter) -> None:
        site.routes["/b.png"] = answer()
        writer.close()

    site.routes |= {"/b.png": shut_once, "/shut": shut}
    fetcher = make()
    assert [await fetcher.get(site.url(path)) for path in ("/a.png", "/b.png")] == [IMAGE] * 2
    assert site.paths() == ["/a.png", "/b.png", "/b.png"]
    assert site.connections == 2
    assert await refusal(fetcher, site.url("/shut")) == f"{UNREACHABLE} {BROKEN}"
    assert site.paths()[3:] == ["/shut"] * 2, "a new connection has the last word"
    assert await refusal(fetcher, site.url("/shut")) == f"{UNREACHABLE} {BROKEN}"
    assert site.paths()[5:] == ["/shut"]


async def test_hosts_are_compared_in_one_form(site: Site, make: Make) -> None:
    fetcher = make({"xn--bcher-kva.test": ["127.0.0.1"]}, fetch_allow_hosts=["Bücher.Test", "IMAGES.test."])
    for host in ("bücher.test", "BÜCHER.test.", "xn--bcher-kva.test", "Images.Test."):
        assert await fetcher.get(site.url("/a.png", host)) == IMAGE


async def test_an_unknown_authority_is_refused(site: Site) -> None:
    fetcher = Fetcher(Settings(fetch_allow_networks=["127.0.0.0/8"]), look_up=Resolver({"images.test": ["127.0.0.1"]}))
    assert await refusal(fetcher, site.url("/a.png")) == f"{UNREACHABLE} {TLS}"
    await fetcher.aclose()


async def test_a_certificate_for_another_name_is_refused(site: Site, make: Make) -> None:
    assert (
        await refusal(make({"wrong.test": ["127.0.0.1"]}), site.url("/a.png", "wrong.test")) == f"{UNREACHABLE} {TLS}"
    )
    assert site.heads == []


async def test_what_settings_allow_is_fetched(site: Site, make: Make, unused_tcp_port: int) -> None:
    plain = await asyncio.start_server(site.serve, "127.0.0.1", unused_tcp_port)
    assert await make(fetch_allow_ip_hosts=True).get(site.url("/a.png", "127.0.0.1")) == IMAGE
    bare = make({"minio": ["127.0.0.1"]}, fetch_allow_http=True, fetch_allow_bare_hosts=True)
    assert await bare.get(f"http://minio:{unused_tcp_port}/a.png") == IMAGE
    plain.close()


@pytest.mark.parametrize("address", [PRIVATE, "169.254.169.254", "::1", "fe80::1%lo", "64:ff9b::a9fe:a9fe"])
async def test_a_name_of_a_private_address_is_refused(site: Site, make: Make, address: str) -> None:
    assert await refusal(make({"images.test": [address]}), site.url("/a.png")) == NOT_ALLOWED
    ip_host = make(fetch_allow_ip_hosts=True)
    assert await refusal(ip_host, "https://127.0.0.2/a") == NOT_ALLOWED


async def test_a_refused_url_is_not_even_resolved(make: Make) -> None:
    resolver = Resolver({})
    assert "fetch_allow_http" in await refusal(make(look_up=resolver), "http://images.test/a")
    assert resolver.asked == []


async def test_one_forbidden_address_among_several_refuses_the_name(site: Site, make: Make) -> None:
    assert await refusal(make({"images.test": ["127.0.0.1", PRIVATE]}), site.url("/a.png")) == NOT_ALLOWED
    assert site.connections == 0


class Recorder(httpcore.AsyncMockBackend):
    """Keeps the addresses it was told to connect to; those in ``down`` cannot be reached."""

    def __init__(self, *down: str) -> None:
        super().__init__([])
        self.down = down
        self.connected: list[tuple[str, float | None]] = []

    async def connect_tcp(  # type: ignore[no-untyped-def]
        self, host: str, port: int, timeout: float | None = None, *_: object, **__: object
    ):
        self.connected.append((host, timeout))
        if host in self.down:
            raise httpcore.ConnectError("down")
        return await super().connect_tcp(host, port, timeout)


async def test_a_name_that_changes_its_answer_gains_nothing() -> None:
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])

    async def rebind(host: str, port: int) -> Sequence[str]:
        return next(answers)

    inner = Recorder()
    backend = GuardedBackend(Policy(Settings()), rebind, inner)
    await backend.connect_tcp("rebind.test", 443)
    assert inner.connected == [("8.8.8.8", None)]  # the address that was checked, not the name: no second look-up
    with pytest.raises(BadImage):
        await backend.connect_tcp("rebind.test", 443)
    assert len(inner.connected) == 1


async def test_the_next_address_is_tried_where_one_is_down() -> None:
    inner = Recorder("2606:4700::1111")
    resolver = Resolver({"two.test": ["2606:4700::1111", "1.1.1.1"]})
    await GuardedBackend(Policy(Settings()), resolver, inner).connect_tcp("two.test", 443, 10.0)
    assert inner.connected == [("2606:4700::1111", 5.0), ("1.1.1.1", 5.0)]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_redirects_are_followed(site: Site, make: Make, status: str) -> None:
    site.routes |= {"/1": redirect("/2?x=y", status), "/2": redirect(site.url("/a.png", "other.test"), status)}
    assert await make().get(site.url("/1")) == IMAGE
    assert site.paths() == ["/1", "/2?x=y", "/a.png"]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("https://private.test/latest/meta-data", NOT_ALLOWED),
        ("http://images.test/a.png", "fetch_allow_http"),
        ("https://127.0.0.1/a.png", "fetch_allow_ip_hosts"),
        ("https://localhost/a.png", "fetch_allow_bare_hosts"),
        ("https://denied.test/a.png", "fetch_deny_hosts"),
        ("https://user:pass@images.test/a.png", "user name or password"),
        ("file:///etc/passwd", "Only https"),
        ("https://[::1", "URL is invalid"),
        ("//private.test/", NOT_ALLOWED),
    ],
)
async def test_a_redirect_is_checked_like_the_first_url(site: Site, make: Make, target: str, says: str) -> None:
    site.routes["/1"] = redirect(target)
    assert says in await refusal(make(fetch_deny_hosts=["denied.test"]), site.url("/1"))
    assert site.paths() == ["/1"]


async def test_redirects_are_counted(site: Site, make: Make) -> None:
    site.routes |= {"/loop": redirect("/loop"), "/1": redirect("/a.png"), "/lost": answer(status="302 Found")}
    assert "more than 3 times (setting fetch_max_redirects)" in await refusal(make(), site.url("/loop"))
    assert site.paths() == ["/loop"] * 4
    assert "more than 0 times" in await refusal(make(fetch_max_redirects=0), site.url("/1"))
    assert await make(fetch_max_redirects=1).get(site.url("/1")) == IMAGE
    assert await refusal(make(), site.url("/lost")) == UNREACHABLE + " Its server answered with status 302."


@pytest.mark.parametrize("status", ["304 Not Modified", "400 Bad", "401 No", "404 Not Found", "500 Oh", "503 Later"])
async def test_a_bad_status_is_refused(site: Site, make: Make, status: str) -> None:
    site.routes["/bad"] = answer(b"" if status.startswith("304") else b"no", status)
    assert await refusal(make(), site.url("/bad")) == f"{UNREACHABLE} Its server answered with status {status[:3]}."


async def test_what_cannot_be_reached_is_said_so(site: Site, make: Make, unused_tcp_port: int) -> None:
    assert await refusal(make(), f"https://images.test:{unused_tcp_port}/") == f"{UNREACHABLE} {REFUSED}"
    assert await refusal(make(), "https://unknown.test/") == f"{UNREACHABLE} {NO_HOST}"
    assert await refusal(make({"empty.test": []}), "https://empty.test/") == f"{UNREACHABLE} {NO_HOST}"


async def test_the_systems_resolver_is_used_and_checked(site: Site, authority: trustme.CA) -> None:
    fetcher = Fetcher(Settings(fetch_allow_bare_hosts=True))
    assert await refusal(fetcher, site.url("/a.png", "localhost")) == NOT_ALLOWED
    assert site.connections == 0
    await fetcher.aclose()


async def test_proxies_of_the_environment_are_not_used(
    site: Site, make: Make, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_tcp_port}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{unused_tcp_port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert await make().get(site.url("/a.png")) == IMAGE
