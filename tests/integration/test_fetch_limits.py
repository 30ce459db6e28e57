"""The bounds of a fetch: time, bytes, how many at once, and what may be said of it."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from collections.abc import Sequence

import pytest

from clip_queue.shared.errors import BadImage
from clip_queue.shared.fetch_failure import BROKEN, TIMEOUT

from .tls_site import (
    CAUSE,
    IMAGE,
    LIMIT,
    TOO_LARGE,
    UNREACHABLE,
    Handler,
    Make,
    Resolver,
    Site,
    answer,
    redirect,
    refusal,
)

pytestmark = pytest.mark.timeout(30)


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
    assert await refusal(fetcher, site.url("/drip")) == f"{UNREACHABLE} {TIMEOUT}"
    assert 0.4 < time.monotonic() - begun < 5
    assert await fetcher.get(site.url("/a.png")) == IMAGE  # and nothing is left behind


async def test_a_slow_resolver_is_under_the_limit(make: Make) -> None:
    class Slow(Resolver):
        async def __call__(self, host: str, port: int) -> Sequence[str]:
            return await asyncio.Future()

    assert await refusal(make(resolve=Slow({}), fetch_timeout=0.2), "https://slow.test/") == f"{UNREACHABLE} {TIMEOUT}"


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
    assert await refusal(fetcher, site.url("/short")) == f"{UNREACHABLE} {BROKEN}"
    assert await fetcher.get(site.url("/more")) == bytes(len(IMAGE))  # the rest belongs to no answer
    assert await fetcher.get(site.url("/a.png")) == IMAGE  # and is not taken for the next one
    assert await refusal(fetcher, site.url("/minus")) == f"{UNREACHABLE} {BROKEN}"


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


async def test_many_connections_are_kept_as_one_is(site: Site, make: Make) -> None:
    everyone = asyncio.Barrier(16)

    async def together(writer: asyncio.StreamWriter) -> None:
        await everyone.wait()
        await answer()(writer)

    site.routes["/together"] = together
    fetcher = make(fetch_concurrency=16)
    for _ in range(4):
        assert await asyncio.gather(*(fetcher.get(site.url("/together")) for _ in range(16))) == [IMAGE] * 16
    assert site.connections == 16


async def test_waiting_for_a_slot_is_not_under_the_time_limit(site: Site, make: Make) -> None:
    async def work(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)  # one in time, all one after the other not
        await answer()(writer)

    site.routes["/work"] = work
    fetcher = make(fetch_concurrency=1, fetch_timeout=1.0)
    assert await asyncio.gather(*(fetcher.get(site.url("/work")) for _ in range(5))) == [IMAGE] * 5


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
