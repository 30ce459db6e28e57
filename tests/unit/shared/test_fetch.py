"""Fetching images by URL, from a plain HTTP server of the test. (Over TLS: tests/integration/test_fetch.)"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from clip_queue.shared.errors import BadImage, ClipError, Late, Unavailable
from clip_queue.shared.fetch import Fetcher, ImageUrl
from clip_queue.shared.settings import Settings

LIMIT = 2048
CAUSE = "Could not load input image. Cause: "
UNREACHABLE = CAUSE + "Data pointed by URL could not be decoded into image."
HOST = "images.test"


class Site:
    """An HTTP server: each path has a whole response. A path that it does not have is never answered."""

    def __init__(self) -> None:
        self.port = 0
        self.paths: list[str] = []
        self.responses: dict[str, bytes] = {}

    def put(self, path: str, body: bytes = b"image", status: str = "200 OK", **headers: str) -> str:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.responses[path] = "\r\n".join([*lines, "", ""]).encode() + body
        return self.url(path)

    def url(self, path: str) -> str:
        return f"http://{HOST}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                self.paths.append(head.split()[1])
                if response := self.responses.get(self.paths[-1]):
                    writer.write(response)
                    await writer.drain()
        writer.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    it = Site()
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.port = server.sockets[0].getsockname()[1]
    yield it
    server.close()


async def look_up(host: str, port: int) -> Sequence[str]:
    if host != HOST:
        raise OSError("no such host")
    return ["127.0.0.1"]


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    it = Fetcher(
        Settings(
            fetch_allow_http=True,
            fetch_allow_ip_hosts=True,
            fetch_allow_networks=["127.0.0.0/8"],
            fetch_max_redirects=2,
            fetch_timeout=3.0,  # also what the site takes to answer, on a busy machine
            max_image_bytes=LIMIT,
        ),
        look_up=look_up,
    )
    yield it
    await it.aclose()


async def refusal(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(BadImage) as caught:
        await fetcher.get(url)
    return caught.value.message


async def test_a_body_is_fetched_through_its_redirects(site: Site, fetcher: Fetcher) -> None:
    site.put("/1", b"", "302 Found", Location="/2")
    site.put("/2", b"", "307 Temporary Redirect", Location=site.put("/3", bytes(LIMIT)))
    assert await fetcher.get(site.url("/1")) == bytes(LIMIT)
    assert site.paths == ["/1", "/2", "/3"]
    assert await fetcher.get(f"http://127.0.0.1:{site.port}/3") == bytes(LIMIT)


async def test_what_is_no_image_is_refused_with_its_reason(site: Site, fetcher: Fetcher) -> None:
    refusals = {
        site.put("/large", bytes(LIMIT + 1)): CAUSE + "Image is larger than 2048 bytes (setting max_image_bytes).",
        site.put("/empty", b""): CAUSE + "Data is not image.",
        site.put("/missing", b"no", "404 Not Found"): UNREACHABLE + " Its server answered with status 404.",
        site.put("/packed", b"no", Content_Encoding="gzip"): (
            CAUSE + "URL answered with a compressed body (Content-Encoding), though asked not to."
        ),
        site.put("/loop", b"", "302 Found", Location="/loop"): (
            CAUSE + "URL redirects more than 2 times (setting fetch_max_redirects)."
        ),
        site.put("/wrong", b"", "302 Found", Location="https://[::1"): CAUSE + "Provided image URL is invalid.",
        site.put("/inside", b"", "302 Found", Location="http://10.0.0.1/"): (
            CAUSE + "URL points to a network destination that is not allowed."
        ),
        site.url("/never answered"): UNREACHABLE + " There was no answer in time.",
        f"http://nowhere.test:{site.port}/": UNREACHABLE + " Its host name cannot be resolved.",
        "https://xn--a.com/": CAUSE + "Provided image URL is invalid.",
        "https://user@images.test/": CAUSE + "URLs with a user name or password are not accepted.",
    }
    for url, message in refusals.items():
        assert await refusal(fetcher, url) == message


async def test_a_body_without_a_length_ends_at_the_limit(site: Site, fetcher: Fetcher) -> None:
    chunk = b"400\r\n" + bytes(1024) + b"\r\n"
    site.responses["/chunks"] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + 9 * chunk
    assert "Image is larger than 2048 bytes" in await refusal(fetcher, site.url("/chunks"))


async def test_a_closed_connection_is_no_error_of_the_url(site: Site, fetcher: Fetcher) -> None:
    url = site.put("/image", Connection="keep-alive")
    assert await fetcher.get(url) == b"image"
    site.responses["/cut"] = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n"
    assert await refusal(fetcher, site.url("/cut")) == UNREACHABLE + " There was no answer in time."
    assert await fetcher.get(url) == b"image"


async def test_a_port_that_nobody_listens_on(fetcher: Fetcher, unused_tcp_port: int) -> None:
    refused = await refusal(fetcher, f"http://{HOST}:{unused_tcp_port}/")
    assert refused == UNREACHABLE + " The connection was refused."


async def test_the_system_resolves_names_by_default() -> None:
    fetcher = Fetcher(Settings(fetch_allow_http=True, fetch_allow_bare_hosts=True))
    assert await refusal(fetcher, "http://localhost:1/") == (
        CAUSE + "URL points to a network destination that is not allowed."
    )
    await fetcher.aclose()


# Bytes of one request, and of all


def bounded(**limits: int) -> Fetcher:
    chosen = {"fetch_allow_http": True, "fetch_allow_networks": ["127.0.0.0/8"], **limits}
    return Fetcher(Settings.model_validate(chosen), look_up=look_up)


async def test_the_bytes_of_one_request_are_bounded(site: Site) -> None:
    fetcher = bounded(fetch_max_request_bytes=2500)
    asked = [ImageUrl(site.put(f"/{n}", bytes(1000)), n) for n in range(3)]
    assert len(await fetcher.resolve(asked[:2], 5)) == 2
    assert len(await fetcher.resolve(asked[:2], 5)) == 2, "each request has its own"
    message = CAUSE + "The images of the request's URLs are together larger than 2500 bytes"
    with pytest.raises(BadImage) as caught:
        await fetcher.resolve(asked, 5)
    assert caught.value.message == message + " (setting fetch_max_request_bytes)."
    found = await fetcher.resolve(asked, 5, skip=True)
    (refused,) = [item for item in found if isinstance(item, ClipError)]
    assert refused.message.startswith(message)
    await fetcher.aclose()


async def test_the_bytes_of_all_requests_are_bounded_while_they_fetch(site: Site) -> None:
    fetcher = bounded(fetch_max_total_bytes=2500)
    one, two = ImageUrl(site.put("/1", bytes(2000)), 0), ImageUrl(site.put("/2", bytes(2000)), 1)
    slow = asyncio.create_task(fetcher.resolve([one, ImageUrl(site.url("/never"), 1)], 5))
    while "/never" not in site.paths or "/1" not in site.paths:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable, match="setting fetch_max_total_bytes") as caught:
        await fetcher.resolve([two], 5)
    assert caught.value.retry_after == 2
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    assert await fetcher.resolve([two], 5) == [bytes(2000)], "what was given up counts no more"
    await fetcher.aclose()


# Several at the same time


class Table(Fetcher):
    """Fetches from a table, once all its URLs are asked for. An event is waited for."""

    table: dict[str, bytes | ClipError | asyncio.Event]
    asked: list[str]
    cancelled: list[str]
    all_asked: asyncio.Event

    async def get(self, url: str) -> bytes:
        self.asked.append(url)
        if len(self.asked) == len(self.table):
            self.all_asked.set()
        try:
            await self.all_asked.wait()  # it passes only if the fetches run at the same time
            found = self.table[url]
            if isinstance(found, asyncio.Event):
                await found.wait()
                return b"late"
        except asyncio.CancelledError:
            self.cancelled.append(url)
            raise
        if isinstance(found, ClipError):
            raise found
        return found


def table(**found: bytes | ClipError | asyncio.Event) -> Table:
    it = Table(Settings())
    it.table, it.asked, it.cancelled, it.all_asked = dict(found), [], [], asyncio.Event()
    return it


def urls(*names: str) -> list[ImageUrl]:
    return [ImageUrl(name, index) for index, name in enumerate(names)]


async def test_items_stay_in_order_and_urls_are_fetched_at_the_same_time() -> None:
    fetcher = table(a=b"one", b=b"two")
    assert await fetcher.resolve(["x", ImageUrl("a"), b"y", ImageUrl("b")], 5) == ["x", b"one", b"y", b"two"]
    assert await fetcher.resolve(["x", b"y"], 5) == ["x", b"y"]
    assert await fetcher.resolve([], 5) == []


async def test_the_first_error_by_order_is_raised_and_the_other_fetches_are_cancelled() -> None:
    fetcher = table(a=b"", b=BadImage.because("first"), c=BadImage.because("second"), d=asyncio.Event())
    with pytest.raises(BadImage, match="first") as caught:
        await fetcher.resolve(urls("a", "b", "c", "d"), 5)
    assert caught.value.index == 1
    assert fetcher.cancelled == ["d"]


async def test_the_error_of_a_single_image_has_no_index() -> None:
    with pytest.raises(BadImage) as caught:
        await table(a=BadImage.because("gone")).resolve([ImageUrl("a")], 5)
    assert caught.value.index is None


async def test_fetching_that_takes_too_long_is_late() -> None:
    fetcher = table(a=asyncio.Event())
    with pytest.raises(Late, match=r"^The images could not be fetched within 0\.1 s\.$"):
        await fetcher.resolve(urls("a"), 0.1)
    assert fetcher.cancelled == ["a"]


async def test_a_cancelled_request_cancels_its_fetches() -> None:
    fetcher = table(a=asyncio.Event())
    task = asyncio.create_task(fetcher.resolve(urls("a"), 5))
    await fetcher.all_asked.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert fetcher.cancelled == ["a"]
