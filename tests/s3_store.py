"""Stores that speak S3, for tests: moto's server as a process of its own, a line to it that can be cut, and one flat
folder of any number of keys.

``python -m tests.s3_store KEYS`` prints what planning such a folder costs: seconds, and the planning process's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import boto3
import fsspec
import httpx
from botocore.config import Config

from clip_queue.sources import storage as files
from tests.harness import Service, free_port, wait_for

SECRET = "hunter2-is-no-secret-to-tell"
PAGE = 1000  # keys, as S3 has it


def access(url: str) -> dict[str, str]:
    """What tells a client of S3 where the store is and who asks."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "AKIATESTS",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


class S3(Service):
    """A store in the memory of a process: gone when that ends. ``guarded``: it lets nobody in."""

    def __init__(self, folder: Path, name: str = "s3", *, guarded: bool = False) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self.port)]
        super().__init__(name, command, folder, {"INITIAL_NO_AUTH_ACTION_COUNT": "0"} if guarded else {})
        config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
        keys = {"aws_access_key_id": "AKIATESTS", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        self.client: Any = boto3.client("s3", endpoint_url=self.url, config=config, **keys)

    def start(self) -> S3:
        super().start()
        wait_for(lambda: not self.alive or _answers(self.url), 60, f"the store:\n{self.tail()}")
        assert self.alive, self.tail()
        return self

    def keys(self, bucket: str, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [about["Key"] for page in pages for about in page.get("Contents", [])]

    def get(self, bucket: str, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    def upload(self, path: Path, bucket: str, prefix: str) -> None:
        """A file, or all files below a folder, under the names that they have in it."""
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            name = path.name if file == path else file.relative_to(path).as_posix()
            self.client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=file.read_bytes())

    def download(self, bucket: str, prefix: str, folder: Path) -> Path:
        """All below a prefix, into a folder."""
        for key in self.keys(bucket, f"{prefix}/"):
            path = folder / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get(bucket, key))
        return folder


class Line:
    """A way to a store, as an address of its own. While it is cut nobody answers there."""

    def __init__(self, to: int) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._to = to
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Line:
        self._thread.start()
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def mend(self) -> None:
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)

    def cut(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)

    async def _open(self) -> None:
        if self._server and self._server.is_serving():
            return
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _close(self) -> None:
        if self._server:
            self._server.close()
        for end in self._ends:
            end.transport.abort()
        await asyncio.sleep(0.05)  # for those who serve to see it

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        ends = {writer, back}
        self._ends |= ends
        await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
        self._ends -= ends

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()


def anew() -> None:
    """What this process opens next is where its environment says by then."""
    files.filesystem.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/moto-api/", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


class _Flat(BaseHTTPRequestHandler):
    """A bucket whose keys lie side by side: every other one is an image's caption. It can be listed, no more."""

    count = 0
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(404, b"")

    def do_GET(self) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix = asked.get("prefix", "")
        start = int(asked.get("continuation-token", "0"))
        stop = min(self.count, start + min(PAGE, int(asked.get("max-keys", PAGE))))
        about = (
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;c4ca4238a0b923820dcc509a6f75849b&quot;</ETag>"
            "<Size>1234</Size><StorageClass>STANDARD</StorageClass>"
        )
        names = (f"{n // 2:08}.{'txt' if n % 2 else 'jpg'}" for n in range(start, stop))
        contents = "".join(f"<Contents><Key>{escape(prefix + name)}</Key>{about}</Contents>" for name in names)
        more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < self.count else ""
        truncated = "true" if more else "false"
        body = f"<KeyCount>{stop - start}</KeyCount><IsTruncated>{truncated}</IsTruncated>{more}{contents}"
        self._answer(200, f"<ListBucketResult>{body}</ListBucketResult>".encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Canned(BaseHTTPRequestHandler):
    """Answers whatever is asked the same, and notes what it was."""

    status, body = 200, b""
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".rstrip())
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def canned(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """The address of a store that answers everything the same, and what it was asked."""
    asked: list[str] = []
    with _served(type("Canned", (_Canned,), {"status": status, "body": body, "asked": asked})) as url:
        yield url, asked


@contextlib.contextmanager
def flat(count: int) -> Iterator[str]:
    """The address of a store in which any bucket and any folder has ``count`` keys."""
    with _served(type("Flat", (_Flat,), {"count": count})) as url:
        yield url


@contextlib.contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


MEASURE = """
import resource, sys, time
from clip_queue.shared.settings import Settings
from clip_queue.sources.storage import filesystem
from clip_queue.sources.formats import folder
from clip_queue.sources.discovery import containers
from clip_queue.sources.source import Source, SourceError

def images():
    return sum(shard.rows for shard in folder.plan_shards(Source("s3://bucket/flat", "folder"), 10_000, Settings())[1])

def tars():
    try:
        containers("s3://bucket/flat", (".tar",))
    except SourceError:
        return 0

filesystem("s3").info("bucket/flat")  # its modules, its connection
list_it = {"images": images, "tars": tars}[sys.argv[1]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.monotonic()
rows = list_it()
seconds = time.monotonic() - began
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(f"{sys.argv[1]}: {rows:,} rows, {seconds:.1f} s, {grown:,.0f} MiB more than before (peak of the process)")
"""


def main(count: int) -> None:
    with flat(count) as url:
        for what in ("images", "tars"):
            env = {**os.environ, **access(url)}
            subprocess.run([sys.executable, "-c", MEASURE, what], env=env, check=True, timeout=1800)


if __name__ == "__main__":
    main(int(sys.argv[1]))
