"""Tables of URLs: ``clip-queue embed`` and a worker fetch images from a TLS site whose authority is private."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trustme

from tests.bulk_command import Embed
from tests.harness import Service, Stack, stack
from tests.images import noise_image
from tests.outputs import matrix, strays, table
from tests.wire import Vectors

from .tls_site import LIMIT, NOT_ALLOWED, PRIVATE, TOO_LARGE, UNREACHABLE, Handler, Site, answer, redirect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

IMAGES = [noise_image(seed, format="JPEG") for seed in range(18)]
SECRET = "hunter2"
READERS = 40  # images that the worker would read at once
AT_ONCE = 24  # and URLs that it may fetch at once
HOLD = 5.0  # seconds that a turnstile waits to be full
ENDED = 120.0  # seconds that a command may take on a loaded machine
OPTIONS = ("--dtype", "float32", "--batch-size", 4, "--shard-size", 10)
ALLOW = {
    "fetch_allow_ip_hosts": True,
    "fetch_allow_networks": "127.0.0.1/32",
    "fetch_timeout": 30,  # beside other tests a handshake of many at once may take seconds
    "max_image_bytes": LIMIT,
}


# Tables of URLs


def parquet(folder: Path, urls: Sequence[str]) -> Path:
    path = folder / "in.parquet"
    pq.write_table(pa.table({"n": list(range(len(urls))), "url": list(urls)}), path, row_group_size=5)
    return path


def sheet(folder: Path, urls: Sequence[str]) -> Path:
    path = folder / "in.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("n", "url"), *enumerate(urls)])
    return path


def lines(folder: Path, urls: Sequence[str]) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps({"n": n, "url": url}) for n, url in enumerate(urls)))
    return path


# Who fetches


@pytest.fixture(scope="module")
def trust(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes that are started trust the site's authority, by the variable that OpenSSL has for it."""
    path = tmp_path_factory.mktemp("trust") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SSL_CERT_FILE", str(path))
        yield


@dataclass
class Fetching:
    """A worker that may fetch from the site, and the command beside it."""

    stack: Stack
    worker: Service

    def command(self, folder: Path, source: Path) -> Embed:
        return Embed(folder, str(source), folder / "out", *OPTIONS, env=self.stack.env())


@pytest.fixture(scope="module")
def fetching(trust: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fetching]:
    more = {"read_threads": READERS, "fetch_concurrency": AT_ONCE}
    with stack(tmp_path_factory.mktemp("fetching"), **ALLOW, **more) as it:
        worker = it.worker()
        it.ready(worker)
        yield Fetching(it, worker)


@pytest.fixture(scope="module")
def expected(fetching: Fetching, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    """The vectors of the same images, from a folder."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "in").mkdir()
    for n, data in enumerate(IMAGES):
        (folder / "in" / f"{n:02}.jpg").write_bytes(data)
    command = fetching.command(folder, folder / "in")
    command.start()
    assert command.ended(ENDED) == 0, command.said
    return matrix(folder / "out", "img_emb")


async def status(command: Embed) -> int:
    """A command's exit status; the site answers meanwhile, in this loop."""
    command.start()
    return await asyncio.to_thread(command.ended, ENDED)


def at(site: Site, path: str) -> str:
    return site.url(path, "127.0.0.1")


# What is fetched


async def never(_: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def too_much(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(LIMIT + 1))
    writer.close()


def good(site: Site) -> list[str]:
    """A URL for each image, by several ways."""
    paths = [f"/{n}.jpg" for n in range(len(IMAGES))]
    site.routes |= {path: answer(data) for path, data in zip(paths, IMAGES, strict=True)}
    urls = [at(site, path) for path in paths]
    site.routes |= {
        "/moved": redirect("/moved/on"),
        "/moved/on": redirect(urls[1]),
        "/caf%C3%A9%201": redirect("/2.jpg"),
    }
    urls[1], urls[2] = at(site, "/moved"), at(site, "/café 1")
    urls[3] += f"?X-Signature={SECRET}#part"
    urls[4] = f"  {urls[4].replace('https', 'HTTPS')} "
    return urls


def bad(site: Site, closed: int) -> dict[str, str]:
    """URLs that lead to no image, and what is said of each."""
    site.routes |= {
        "/404": answer(b"", "404 Not Found"),
        "/words": answer(b"not an image at all"),
        "/half": answer(IMAGES[0][: len(IMAGES[0]) // 2]),
        "/large": answer(bytes(LIMIT + 1)),
        "/larger": too_much,
        "/never": never,
        "/private": redirect(f"https://{PRIVATE}/latest/meta-data"),
        "/metadata": redirect("https://169.254.169.254/latest/meta-data"),
        "/loopback": redirect(f"https://127.0.0.2:{site.port}/0.jpg"),
        "/plain": redirect(f"http://127.0.0.1:{site.port}/0.jpg"),
        "/loop": redirect("/loop"),
    }
    return {
        at(site, f"/404?X-Signature={SECRET}"): UNREACHABLE,
        f"https://user:{SECRET}@127.0.0.1:{site.port}/0.jpg": "user name or password",
        at(site, "/404"): UNREACHABLE,
        f"https://127.0.0.1:{closed}/0.jpg": UNREACHABLE,
        at(site, "/never"): UNREACHABLE,
        at(site, "/words"): "Data is not image.",
        at(site, "/half"): "truncated or broken",
        at(site, "/large"): TOO_LARGE,
        at(site, "/larger"): TOO_LARGE,
        at(site, "/private"): NOT_ALLOWED,
        at(site, "/metadata"): NOT_ALLOWED,
        at(site, "/loopback"): NOT_ALLOWED,
        f"https://{PRIVATE}/0.jpg": NOT_ALLOWED,
        at(site, "/plain"): "fetch_allow_http",
        f"http://127.0.0.1:{site.port}/0.jpg": "fetch_allow_http",
        at(site, "/loop"): "redirects more than 3 times",
        site.url("/0.jpg", "localhost"): "fetch_allow_bare_hosts",
        "https://[::1": "URL is invalid",
    }


@pytest.mark.parametrize("write", [parquet, sheet, lines])
async def test_a_bad_url_is_its_rows_error_and_its_neighbours_are_whole(
    fetching: Fetching,
    expected: Vectors,
    site: Site,
    tmp_path: Path,
    unused_tcp_port: int,
    write: Callable[[Path, Sequence[str]], Path],
) -> None:
    leads, leads_not = good(site), bad(site, unused_tcp_port)
    urls = [url for pair in zip(leads, leads_not, strict=True) for url in pair]
    command = fetching.command(tmp_path, write(tmp_path, urls))
    assert await status(command) == 3, command.said
    assert f"{len(leads)} rows embedded, {len(leads_not)} failed" in command.said

    rows, errors = table(command.output), table(command.output, "errors")
    assert [row["image_path"] for row in rows] == [row["url"] for row in rows] == leads
    assert [int(row["n"]) for row in rows] == list(range(0, len(urls), 2))
    np.testing.assert_allclose(matrix(command.output, "img_emb"), expected, atol=2e-6)
    assert {row["url"]: row["error"] for row in errors}.keys() == leads_not.keys()
    assert [int(row["n"]) for row in errors] == list(range(1, len(urls), 2))
    for row in errors:
        assert leads_not[row["url"]] in row["error"]
        assert SECRET not in row["error"]
    assert f"/3.jpg?X-Signature={SECRET}" in site.paths(), "a signature is sent as it stands"
    assert strays(command.output) == []
    assert f"https://127.0.0.1:{site.port}/404: " in command.said
    assert SECRET not in command.said
    assert SECRET not in (command.output / "manifest.json").read_text()
    log = fetching.worker.log.read_text()
    assert "fetching from 127.0.0.1 failed: status 404" in log
    assert SECRET not in log


# How many at once


class Turnstile:
    """Answers once ``size`` requests are open, and a little later, so that one too many would be seen; else after
    :data:`HOLD`. ``most`` were open at once."""

    def __init__(self, size: int, then: Handler) -> None:
        self.most = 0
        self._size, self._then = size, then
        self._open = 0
        self._full = asyncio.Event()

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        self.most = max(self.most, self._open)
        if self._open >= self._size:
            self._full.set()
        try:
            await asyncio.wait_for(self._full.wait(), HOLD)
            await asyncio.sleep(0.3)
        except TimeoutError:
            pass
        finally:
            self._open -= 1
        await self._then(writer)


async def test_as_many_urls_are_fetched_at_once_as_the_setting_says_and_no_more(
    fetching: Fetching, site: Site, tmp_path: Path
) -> None:
    site.routes["/0.jpg"] = turnstile = Turnstile(AT_ONCE, answer(IMAGES[0]))
    count = 4 * AT_ONCE
    source = parquet(tmp_path, [at(site, f"/0.jpg?{n}") for n in range(count)])
    command = Embed(tmp_path, str(source), tmp_path / "out", "--shard-size", count, env=fetching.stack.env())
    assert await status(command) == 0, command.said
    assert turnstile.most == AT_ONCE
    assert sorted(site.paths()) == sorted(f"/0.jpg?{n}" for n in range(count)), "each once"
    assert site.connections < 2 * AT_ONCE, "they are used again"
    assert len(table(command.output)) == count


async def test_workers_that_the_command_starts_have_its_settings_and_its_trust(
    trust: None, site: Site, tmp_path: Path
) -> None:
    site.routes["/0.jpg"] = turnstile = Turnstile(2, answer(IMAGES[0]))
    env = {f"CLIP_QUEUE_{name.upper()}": str(value) for name, value in {**ALLOW, "fetch_concurrency": 2}.items()}
    source = lines(tmp_path, [at(site, f"/0.jpg?{n}") for n in range(12)])
    command = Embed(tmp_path, str(source), tmp_path / "out", "--workers", 1, env=env)
    assert await status(command) == 0, command.said
    assert turnstile.most == 2
    assert len(table(command.output)) == 12
