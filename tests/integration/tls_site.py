"""A TLS server on the loopback address and a resolver of names, for fetchers that are told to know them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import pytest

from clip_queue.shared.errors import BadImage
from clip_queue.shared.fetch import Fetcher

IMAGE = b"\x89PNG, as far as the fetch knows"
LIMIT = 64 * 1024
CAUSE = "Could not load input image. Cause: "
NOT_ALLOWED = CAUSE + "URL points to a network destination that is not allowed."
UNREACHABLE = CAUSE + "Data pointed by URL could not be decoded into image."
TOO_LARGE = "larger than 65536 bytes"
PRIVATE = "10.11.12.13"

Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]
Make = Callable[..., Fetcher]
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
    """Answers from a table; keeps what it was asked."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]


async def refusal(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(BadImage) as caught:
        await fetcher.get(url)
    assert caught.value.status == 400
    assert caught.value.message.startswith(CAUSE)
    return caught.value.message
