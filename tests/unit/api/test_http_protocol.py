"""An offer to upgrade the connection is ignored, and the request answered as if it were not there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from clip_queue.api.http_protocol import HttpProtocol

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    body = await request.body()
    await Response(b"%s %s " % (request.method.encode(), request.url.path.encode()) + body)(scope, receive, send)


@pytest.fixture
async def port(unused_tcp_port: int) -> AsyncIterator[int]:
    config = uvicorn.Config(echo, port=unused_tcp_port, http=HttpProtocol, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    with contextlib.suppress(AttributeError):
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield unused_tcp_port
    server.should_exit = True
    await task


async def ask(port: int, *parts: bytes) -> bytes:
    """The answers to what is sent in several packets, until the server closes or is silent for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.02)
    answers = b""
    with contextlib.suppress(TimeoutError):
        while chunk := await asyncio.wait_for(reader.read(65536), 0.3):
            answers += chunk
    writer.close()
    return answers


def post(body: bytes, more: bytes = OFFER) -> bytes:
    return b"POST /a%%20b?c HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (more, len(body)) + body


async def test_the_body_behind_an_offer_is_read(port: int) -> None:
    assert (await ask(port, post(b'{"text":"a"}'))).endswith(b'POST /a b {"text":"a"}')


async def test_a_body_in_many_packets_and_a_head_in_pieces(port: int) -> None:
    whole = post(b"x" * 5000)
    for cut in (10, 60, 100, 150, whole.index(b"\r\n\r\n") + 2, whole.index(b"\r\n\r\n") + 4, 1000):
        assert (await ask(port, whole[:cut], whole[cut:])).endswith(b"POST /a b " + b"x" * 5000)


async def test_a_chunked_body_and_a_second_request_on_the_connection(port: int) -> None:
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\n" + OFFER + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    answers = await ask(port, chunked, post(b"two"), post(b"three", b"") + post(b"four"))
    for body in (b"POST / abc", b"POST /a b two", b"POST /a b three", b"POST /a b four"):
        assert body in answers
    assert answers.count(b"200 OK") == 4


@pytest.mark.parametrize("protocol", [b"TLS/1.0", b"h2c, foo/2", b"anything"])
async def test_any_unknown_protocol_is_ignored(port: int, protocol: bytes) -> None:
    offer = b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n"
    assert (await ask(port, post(b"body", offer))).endswith(b"POST /a b body")


async def test_a_connection_that_shall_close_is_closed(port: int) -> None:
    offer = b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n"
    answers = await asyncio.wait_for(ask(port, post(b"body", offer)), 5)
    assert b"connection: close" in answers.lower()
    assert answers.endswith(b"POST /a b body")


async def test_what_is_no_http_is_a_400(port: int) -> None:
    assert (await ask(port, b"\x16\x03\x01 no HTTP\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    await ask(port, b"CONNECT a.b:443 HTTP/1.1\r\nHost: a.b\r\n\r\n")
    assert (await ask(port, post(b"after", b""))).endswith(b"after")
