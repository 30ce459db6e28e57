"""The guarded fetch, against a TLS server on the loopback address with an authority of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from ipaddress import ip_address

import httpcore
import pytest
import trustme

from api.destination import Policy
from api.fetch import Fetcher, GuardedBackend
from shared.errors import BadImage
from shared.settings import Settings

pytestmark = pytest.mark.timeout(30)

IMAGE = b"\x89PNG, as far as the fetch knows"
LIMIT = 64 * 1024
CAUSE = "Could not load input image. Cause: "
NOT_ALLOWED = CAUSE + "URL points to a network destination that is not allowed."
UNREACHABLE = CAUSE + "Data pointed by URL could not be decoded into image."
TOO_LARGE = "larger than 65536 bytes"
PRIVATE = "10.11.12.13"

Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]
Names = dict[str, list[str]]


def answer(body: bytes = IMAGE, status: str = "200 OK", length: int | None = None, **headers: str) -> Handler:
    """A whole answer; ``length`` is what is announced where it is not the truth."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    async def handle(writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()

    return handle


def redirect(to: str, status: str = "302 Found") -> Handler:
    return answer(b"moved", status, Location=to)


class Site:
    """A server of ``routes``; keeps each request's head, and whether connections were closed by the client."""

    def __init__(self, routes: dict[str, Handler]) -> None:
        self.routes = routes
        self.heads: list[str] = []
        self.connections = 0
        self.left = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                self.heads.append(head)
                await self.routes[head.split()[1].partition("?")[0]](writer)
        self.left.set()
        writer.close()

    def url(self, path: str, host: str = "images.test") -> str:
        return f"https://{host}:{self.port}{path}"

    def paths(self) -> list[str]:
        return [head.split()[1] for head in self.heads]


class Resolver:
    """Answers from a table; a list of lists is answered one after the other. Keeps what it was asked."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def site(authority: trustme.CA) -> AsyncIterator[Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("images.test", "other.test", "xn--bcher-kva.test", "127.0.0.1").configure_cert(context)
    site = Site({"/a.png": answer()})
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=context)
    site.port = server.sockets[0].getsockname()[1]
    yield site
    server.close()


Make = Callable[..., Fetcher]


@pytest.fixture
async def make(authority: trustme.CA) -> AsyncIterator[Make]:
    """Fetchers that trust the authority, know the test's names and may go to 127.0.0.1."""
    made: list[Fetcher] = []

    def make(names: Names | None = None, *, resolve: Resolver | None = None, **settings: object) -> Fetcher:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        known = {"images.test": ["127.0.0.1"], "other.test": ["127.0.0.1"], "private.test": [PRIVATE], **(names or {})}
        chosen = {"fetch_allow_networks": ["127.0.0.1/32"], "max_image_bytes": LIMIT, "fetch_timeout": 10, **settings}
        made.append(Fetcher(Settings.model_validate(chosen), ssl_context=context, resolve=resolve or Resolver(known)))
        return made[-1]

    yield make
    for fetcher in made:
        await fetcher.aclose()


async def refusal(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(BadImage) as caught:
        await fetcher.get(url)
    assert caught.value.status == 400
    assert caught.value.message.startswith(CAUSE)
    return caught.value.message


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


async def test_hosts_are_compared_in_one_form(site: Site, make: Make) -> None:
    fetcher = make({"xn--bcher-kva.test": ["127.0.0.1"]}, fetch_allow_hosts=["Bücher.Test", "IMAGES.test."])
    for host in ("bücher.test", "BÜCHER.test.", "xn--bcher-kva.test", "Images.Test."):
        assert await fetcher.get(site.url("/a.png", host)) == IMAGE


async def test_an_unknown_authority_is_refused(site: Site) -> None:
    fetcher = Fetcher(Settings(fetch_allow_networks=["127.0.0.0/8"]), resolve=Resolver({"images.test": ["127.0.0.1"]}))
    assert await refusal(fetcher, site.url("/a.png")) == UNREACHABLE
    await fetcher.aclose()


async def test_a_certificate_for_another_name_is_refused(site: Site, make: Make) -> None:
    assert await refusal(make({"wrong.test": ["127.0.0.1"]}), site.url("/a.png", "wrong.test")) == UNREACHABLE
    assert site.heads == []


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
async def test_a_url_of_the_wrong_form_is_refused_before_anything_is_asked(make: Make, url: str, says: str) -> None:
    resolver = Resolver({})
    assert says in await refusal(make(resolve=resolver), url)
    assert resolver.asked == []


async def test_what_settings_allow_is_fetched(site: Site, make: Make, unused_tcp_port: int) -> None:
    plain = await asyncio.start_server(site.serve, "127.0.0.1", unused_tcp_port)
    assert await make(fetch_allow_ip_hosts=True).get(site.url("/a.png", "127.0.0.1")) == IMAGE
    bare = make({"minio": ["127.0.0.1"]}, fetch_allow_http=True, fetch_allow_bare_hosts=True)
    assert await bare.get(f"http://minio:{unused_tcp_port}/a.png") == IMAGE
    plain.close()


async def test_lists_of_hosts(site: Site, make: Make) -> None:
    deny, allow = "fetch_deny_hosts", "fetch_allow_hosts"
    assert deny in await refusal(make(fetch_deny_hosts=["images.test"]), site.url("/a.png"))
    assert deny in await refusal(make(fetch_deny_hosts=["*.test"], fetch_allow_hosts=["*.test"]), site.url("/a.png"))
    assert allow in await refusal(make(fetch_allow_hosts=["*.images.test"]), site.url("/a.png"))  # below it, not it
    assert allow in await refusal(make(fetch_allow_hosts=["ages.test"]), site.url("/a.png"))
    assert await make(fetch_allow_hosts=["*.test"], fetch_deny_hosts=["other.test"]).get(site.url("/a.png")) == IMAGE
    for wrong in ({"fetch_allow_hosts": ["https://x.test"]}, {"fetch_allow_networks": ["10.0.0.0/99"]}):
        with pytest.raises(ValueError, match=r"x\.test|10\.0\.0\.0"):
            make(**wrong)


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
async def test_addresses_that_are_not_global_are_refused(make: Make, address: str) -> None:
    fetcher = make({"somewhere.test": [address]}, fetch_allow_networks=[])
    assert await refusal(fetcher, "https://somewhere.test/a") == NOT_ALLOWED


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001:80b::200e", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"),
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
def test_networks_can_be_excepted(networks: list[str], address: str, allowed: bool) -> None:
    assert Policy(Settings(fetch_allow_networks=networks)).allows(ip_address(address)) is allowed


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
    assert await refusal(make(), site.url("/lost")) == UNREACHABLE


@pytest.mark.parametrize("status", ["304 Not Modified", "400 Bad", "401 No", "404 Not Found", "500 Oh", "503 Later"])
async def test_a_bad_status_is_refused(site: Site, make: Make, status: str) -> None:
    site.routes["/bad"] = answer(b"" if status.startswith("304") else b"no", status)
    assert await refusal(make(), site.url("/bad")) == UNREACHABLE


async def test_what_cannot_be_reached_is_said_so(site: Site, make: Make, unused_tcp_port: int) -> None:
    assert await refusal(make(), f"https://images.test:{unused_tcp_port}/") == UNREACHABLE
    assert await refusal(make(), "https://unknown.test/") == UNREACHABLE
    assert await refusal(make({"empty.test": []}), "https://empty.test/") == UNREACHABLE


async def test_the_systems_resolver_is_used_and_checked(site: Site, authority: trustme.CA) -> None:
    fetcher = Fetcher(Settings(fetch_allow_bare_hosts=True))
    assert await refusal(fetcher, site.url("/a.png", "localhost")) == NOT_ALLOWED
    assert site.connections == 0
    await fetcher.aclose()


async def stall(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    await asyncio.Event().wait()


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    while not writer.is_closing():  # each byte in time for any timeout between bytes
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.02)


async def drip_redirects(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.2)  # each hop in time, all of them together not
    await redirect("/drip")(writer)


@pytest.mark.parametrize(("handler", "redirects"), [(stall, 3), (drip, 3), (drip_redirects, 10_000)])
async def test_one_time_limit_holds_for_everything(site: Site, make: Make, handler: Handler, redirects: int) -> None:
    site.routes["/drip"] = handler
    begun = time.monotonic()
    fetcher = make(fetch_timeout=0.5, fetch_max_redirects=redirects)
    assert await refusal(fetcher, site.url("/drip")) == UNREACHABLE
    assert 0.4 < time.monotonic() - begun < 5
    assert await fetcher.get(site.url("/a.png")) == IMAGE  # and nothing is left behind


async def test_a_slow_resolver_is_under_the_limit(make: Make) -> None:
    class Slow(Resolver):
        async def __call__(self, host: str, port: int) -> Sequence[str]:
            return await asyncio.Future()

    assert await refusal(make(resolve=Slow({}), fetch_timeout=0.2), "https://slow.test/") == UNREACHABLE


async def test_an_endless_body_is_cut_at_the_limit(site: Site, make: Make) -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")
            await writer.drain()
            sent += 0x4000

    site.routes["/endless"] = endless
    assert TOO_LARGE in await refusal(make(), site.url("/endless"))
    await asyncio.wait_for(site.left.wait(), 10)  # the connection is closed, not drained
    assert sent < 2**25  # what the kernel's buffers take, no more


async def test_the_announced_length_is_not_believed(site: Site, make: Make) -> None:
    async def nothing_after(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        await asyncio.Event().wait()

    async def until_close(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(LIMIT + 1))
        writer.close()

    async def short(writer: asyncio.StreamWriter) -> None:
        await answer(IMAGE, length=len(IMAGE) + 10)(writer)
        writer.close()

    site.routes |= {"/huge": nothing_after, "/until": until_close, "/short": short}
    site.routes |= {"/more": answer(bytes(LIMIT * 2), length=len(IMAGE)), "/minus": answer(length=-1)}
    fetcher = make()
    assert TOO_LARGE in await refusal(fetcher, site.url("/huge"))  # at once: no body ever comes
    assert TOO_LARGE in await refusal(fetcher, site.url("/until"))
    assert await refusal(fetcher, site.url("/short")) == UNREACHABLE
    assert await fetcher.get(site.url("/more")) == bytes(len(IMAGE))  # the rest belongs to no answer
    assert await fetcher.get(site.url("/a.png")) == IMAGE  # and is not taken for the next one
    assert await refusal(fetcher, site.url("/minus")) == UNREACHABLE


async def test_compressed_bodies_are_refused_unread(site: Site, make: Make) -> None:
    bomb = gzip.compress(bytes(2**24))
    assert len(bomb) < LIMIT
    for name in ("gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP"):
        site.routes["/bomb"] = answer(bomb, Content_Encoding=name)
        assert "compressed body" in await refusal(make(), site.url("/bomb"))
    site.routes["/plain"] = answer(Content_Encoding="Identity")
    assert await make().get(site.url("/plain")) == IMAGE
    site.routes["/empty"] = answer(b"")
    assert await refusal(make(), site.url("/empty")) == CAUSE + "Data is not image."


async def test_at_most_so_many_urls_at_once(site: Site, make: Make) -> None:
    inside = most = 0
    full, leave = asyncio.Event(), asyncio.Event()

    async def gate(writer: asyncio.StreamWriter) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == 2:
            full.set()
        await leave.wait()
        inside -= 1
        await answer()(writer)

    site.routes["/gate"] = gate
    fetcher = make(fetch_concurrency=2)
    tasks = [asyncio.create_task(fetcher.get(site.url("/gate"))) for _ in range(8)]
    await asyncio.wait_for(full.wait(), 10)
    assert "fetch_allow_http" in await refusal(fetcher, "http://images.test/")  # a refusal waits for no slot
    leave.set()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 10) == [IMAGE] * 8
    assert most == 2


async def test_a_cancelled_fetch_gives_its_slot_back(site: Site, make: Make) -> None:
    arrived = asyncio.Event()

    async def hold(writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await asyncio.Event().wait()

    site.routes["/hold"] = hold
    fetcher = make(fetch_concurrency=1)
    task = asyncio.create_task(fetcher.get(site.url("/hold")))
    await asyncio.wait_for(arrived.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await fetcher.get(site.url("/a.png")) == IMAGE


async def test_proxies_of_the_environment_are_not_used(
    site: Site, make: Make, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_tcp_port}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{unused_tcp_port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert await make().get(site.url("/a.png")) == IMAGE


async def test_secrets_in_urls_reach_neither_messages_nor_logs(
    site: Site, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site.routes |= {"/404": answer(status="404 Gone"), "/to": redirect("/404?sig=SECRET"), "/stall": stall}
    site.routes["/away"] = redirect("https://u:SECRET@images.test/?sig=SECRET")
    fetcher = make(fetch_timeout=0.5)
    bad = [site.url(f"{path}?sig=SECRET") for path in ("/404", "/to", "/stall", "/away")]
    bad += ["https://u:SECRET@images.test/", "http://images.test/?SECRET", "https://images.test:SECRET/", "SECRET://x"]
    bad += ["https://private.test/?SECRET", "https://unknown.test/?SECRET", "https://127.0.0.1/?SECRET"]
    for url in bad:
        with pytest.raises(BadImage) as caught:
            await fetcher.get(url)
        assert "SECRET" not in caught.value.message
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith("asyncio")]
    assert "fetching from images.test failed: status 404" in ours
    assert "SECRET" not in "".join(ours)
