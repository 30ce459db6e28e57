"""A load of requests, by a small HTTP/1.1 client that needs little time, because it shares the cores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import uvloop


@dataclass
class Load:
    """The result of a load. ``latencies`` are seconds, one for each successful response."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def rate(self) -> float:
        """Successful responses a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """The latency, in seconds, that this share of the responses does not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Connection(asyncio.Protocol):
    """A connection that is kept alive. It sends one request at a time.

    No stream and no task for each answer: a client that takes a fifth of the cores measures itself.
    """

    def __init__(self, url: str) -> None:
        split = urlsplit(url)
        self._host, self._port = split.hostname or "", split.port or 80
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._head, self._size = 0, -1  # bytes of the answer's headers, and of the whole answer once they are here

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._loop.create_connection(lambda: self, self._host, self._port)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request; returns the status and the body of its response."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        return await self._ask(head.encode() + body)

    async def get(self, path: str) -> tuple[int, bytes]:
        return await self._ask(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())

    async def _ask(self, data: bytes) -> tuple[int, bytes]:
        answer: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        self._answer = answer
        self._transport.write(data)
        async with asyncio.timeout(120):
            return await answer

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        if self._size < 0:
            end = received.find(b"\r\n\r\n")
            if end < 0:
                return
            header = received[:end].lower() + b"\r"
            at = header.index(b"content-length:") + 15
            self._head = end + 4
            self._size = self._head + int(header[at : header.index(b"\r", at)])
        if len(received) >= self._size:
            answer = int(received[9:12]), bytes(received[self._head : self._size])
            received.clear()
            self._size = -1
            if self._answer and not self._answer.done():
                self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("The server closed the connection."))

    def close(self) -> None:
        self._transport.close()


async def _run(url: str, path: str, bodies: Iterator[bytes], at_once: int, seconds: float) -> Load:
    load = Load()
    connections = [Connection(url) for _ in range(at_once)]
    await asyncio.gather(*(c.open() for c in connections))
    began = time.perf_counter()
    until = began + seconds

    async def work(connection: Connection) -> None:
        while (sent := time.perf_counter()) < until:
            status, _ = await connection.post(path, next(bodies))
            if status == 200:
                load.latencies.append(time.perf_counter() - sent)
            else:
                load.failures += 1

    await asyncio.gather(*(work(c) for c in connections))
    load.seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return load


def run(url: str, path: str, bodies: Iterator[bytes], *, at_once: int, seconds: float) -> Load:
    """POST ``bodies`` over ``at_once`` connections for a number of seconds."""
    return uvloop.run(_run(url, path, bodies, at_once, seconds))


def rate_of(work: Callable[[], int], seconds: float) -> float:
    """The items a second of a function, which returns how many it has done."""
    work()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += work()
    return done / (time.perf_counter() - began)
