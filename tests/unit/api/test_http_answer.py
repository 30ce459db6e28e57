"""How an answer goes to the connection: its head together with what follows it at once, and never later than that."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from clip_queue.api.connections import Limits
from clip_queue.api.http_protocol import HttpProtocol

from .test_http_protocol import ask, serving

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Recorded:
    """A transport that notes what is written at once."""

    written: list[bytes]

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self._transport.write(data)

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        self.written.append(b"".join(parts))
        self._transport.writelines(parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the server has written, call by call."""
    made = HttpProtocol.connection_made
    Recorded.written = []

    def recorded(self: HttpProtocol, transport: asyncio.Transport) -> None:
        made(self, cast(asyncio.Transport, Recorded(transport)))

    monkeypatch.setattr(HttpProtocol, "connection_made", recorded)
    return Recorded.written


@pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
async def test_head_and_body_go_together(written: list[bytes], size: int) -> None:
    async with serving(Response(b"x" * size), Limits()) as (_, port):
        answers = await ask(port, GET, GET)
    assert len(written) == 2
    assert answers == b"".join(written)
    assert written[0].endswith(b"\r\n\r\n" + b"x" * size)


async def test_two_requests_in_one_packet_are_answered_in_their_order(written: list[bytes]) -> None:
    async def path(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(scope["path"])(scope, receive, send)

    async with serving(path, Limits()) as (_, port):
        await ask(port, GET.replace(b"/ ", b"/a ") + GET.replace(b"/ ", b"/b ") + GET.replace(b"/ ", b"/c "))
    assert [answer[-2:] for answer in written] == [b"/a", b"/b", b"/c"]


@pytest.mark.parametrize("connection", [b"keep-alive", b"close"])
async def test_an_answer_without_a_body_is_sent(written: list[bytes], connection: bytes) -> None:
    head = b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: %s\r\n\r\n" % connection
    for status, content in (200, b"abc"), (204, None), (304, None):
        written.clear()
        async with serving(Response(content, status), Limits()) as (_, port):
            answer = await ask(port, head)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.endswith(b"\r\n\r\n")
        assert len(written) == 1


@pytest.mark.parametrize("after", [0.0, 0.1])
async def test_the_head_of_a_stream_does_not_wait_for_its_first_part(after: float) -> None:
    go = asyncio.Event()

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(after)
        await go.wait()
        for part in (b"one", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with serving(stream, Limits()) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200 ")
        go.set()
        assert await asyncio.wait_for(reader.readexactly(21), 5) == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        writer.close()


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    raise RuntimeError


async def short(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})


@pytest.mark.parametrize("app", [broken, short])
async def test_an_answer_that_breaks_off_ends_the_connection_behind_its_head(app: ASGIApp) -> None:
    async with serving(app, Limits()) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n")
        writer.close()


async def test_a_client_that_has_left_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    left = asyncio.Event()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await Response(b"x")(scope, receive, send)
        left.set()

    async with serving(late, Limits()) as (_, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.wait_for(left.wait(), 5)
    assert not caplog.records
