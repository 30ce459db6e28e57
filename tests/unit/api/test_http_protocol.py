"""Offers to upgrade are ignored, and what a connection may cost is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from clip_queue.api.connections import Limits
from clip_queue.api.http_protocol import HttpProtocol

from .service import until

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    body = await request.body()
    await Response(b"%s %s " % (request.method.encode(), request.url.path.encode()) + body)(scope, receive, send)


@asynccontextmanager
async def serving(app: ASGIApp, limits: Limits) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    """A server of ``app`` in this process, and its port."""
    protocol = type("Limited", (HttpProtocol,), {"limits": limits})
    config = uvicorn.Config(app, port=0, http=protocol, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    with contextlib.suppress(AttributeError):
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    yield server, server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serving(echo, Limits()) as (_, port):
        yield port


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


async def test_connect_is_a_400_and_ends_the_connection(port: int) -> None:
    connect = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"
    answer = await ask(port, connect + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer
    answers = await ask(port, post(b"first"), connect)
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400 " in answers


async def test_what_is_no_http_is_a_400(port: int) -> None:
    assert (await ask(port, b"\x16\x03\x01 no HTTP\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    await ask(port, b"CONNECT a.b:443 HTTP/1.1\r\nHost: a.b\r\n\r\n")
    assert (await ask(port, post(b"after", b""))).endswith(b"after")


@pytest.mark.parametrize("url", [b"x", b"x?a=b", b"x:99999/", b"x:/", b"[::1/", b"/x"])
async def test_an_absolute_url_that_is_none_is_a_400(port: int, url: bytes, caplog: pytest.LogCaptureFixture) -> None:
    asked = b"GET http://%s HTTP/1.1\r\nHost: x\r\n\r\n" % url
    for before in (b"", post(b"first", b"")):
        answer = await ask(port, *filter(None, [before]), asked)
        assert b"POST /a b first" in answer or not before
        assert answer.count(b"HTTP/1.1 400 ") == 1
        assert answer.endswith(b'"code":"no_http"}')
    lines = [r.getMessage() for r in caplog.records if r.name == "clip_queue.api.request_log"]
    assert [line.startswith("- - 400 no_http items=0 id=") for line in lines] == [True, True]
    assert (await ask(port, asked.replace(url, b"x/a"))).endswith(b"GET /a ")


CHUNKS = b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


@pytest.mark.parametrize("coding", [b"chunked", b"Chunked", b" \tCHUNKED  "])
async def test_chunked_is_read_however_it_is_written(port: int, coding: bytes) -> None:
    for name in (b"Transfer-Encoding:", b"transfer-encoding: "):
        assert (await ask(port, b"POST / HTTP/1.1\r\nHost: x\r\n" + name + coding + CHUNKS)).endswith(b"POST / abc")


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip,Chunked", b"gzip\r\nTransfer-Encoding: chunked", b"gzip"])
async def test_another_transfer_coding_is_a_400(port: int, coding: bytes) -> None:
    answer = await ask(port, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: " + coding + CHUNKS)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Transfer-Encoding may only be chunked." in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer


BRIEF = Limits(header_time=0.2, client_time=0.2, linger=0.2, rate=1e6, connections=3)


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000
            await asyncio.sleep(0)

    await StreamingResponse(parts())(scope, receive, send)


async def large(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * 30_000_000})


@pytest.mark.parametrize("app", [endless, large])
@pytest.mark.parametrize("pause", [None, 0.02])
async def test_a_client_that_takes_nothing_or_too_little_is_disconnected(app: ASGIApp, pause: float | None) -> None:
    async with serving(app, BRIEF) as (server, port):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: server.server_state.connections)
            (connection,) = server.server_state.connections
            began = loop.time()
            most = 0
            while server.server_state.connections and loop.time() - began < 10:
                most = max(most, connection.transport.get_write_buffer_size())
                if pause:
                    await loop.sock_recv(client, 10)
                await asyncio.sleep(pause or 0.01)
            assert not server.server_state.connections, "it is still there"
            assert app is large or most < 200_000
        await until(lambda: not server.server_state.tasks)


async def test_a_client_that_reads_slowly_but_steadily_gets_all() -> None:
    async with serving(large, Limits(client_time=0.2, rate=1e6)) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = 0
        while chunk := await reader.read(300_000):
            got += len(chunk)
            await asyncio.sleep(0.005)
        writer.close()
    assert got > 30_000_000


async def test_the_oldest_idle_connection_makes_room() -> None:
    async with serving(echo, Limits(connections=3)) as (server, port):
        streams = []
        for sent in (b"GET / HTTP/1.1\r\n\r\n", b"", b"GET / HT", b"", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            if sent.endswith(b"\r\n\r\n"):
                assert (await reader.read(100)).startswith(b"HTTP/1.1 200")
            streams.append((reader, writer))
            await until(lambda: len(server.server_state.connections) == min(len(streams), 3))
        for reader, _ in (streams[1], streams[2]):
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
        reader, writer = streams[0]  # one that has been served goes last
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert (await reader.read(100)).startswith(b"HTTP/1.1 200")
        for _, writer in streams:
            writer.close()


async def test_a_connection_costs_no_timer_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(echo, Limits()) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(b"a", b""))
        await reader.readuntil(b"POST /a b a")
        looks = 0
        look = HttpProtocol._look

        def counted(protocol: HttpProtocol) -> None:
            nonlocal looks
            looks += 1
            look(protocol)

        monkeypatch.setattr(HttpProtocol, "_look", counted)
        for _ in range(100):
            writer.write(post(b"a", b""))
            await reader.readuntil(b"POST /a b a")
        writer.close()
    assert looks == 0


async def test_trailers_are_read_and_do_not_reach_the_application() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        seen.extend(scope["headers"])
        await Response(body)(scope, receive, send)

    async with serving(app, Limits(headers=2)) as (_, port):
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = await ask(port, head + b"3\r\nabc\r\n0\r\n", b"X-Api-Key: y\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n")
    assert answer.count(b"200 OK") == 2
    assert seen == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers before it has read the body, as where the key is wrong."""
    await Response(b"no", 401, {"connection": "close"} if scope["path"] == "/close" else {})(scope, receive, send)


@pytest.mark.parametrize("how", ["the client asks for it", "an old client", "the application does", "in chunks"])
async def test_an_answer_that_comes_before_the_body_is_read_though_the_connection_shall_close(how: str) -> None:
    size = 8 << 20
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
    body = bytes(size)
    if how == "an old client":
        head = head.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Connection: close\r\n", b"")
    elif how == "the application does":
        head = head.replace(b"/a", b"/close").replace(b"Connection: close\r\n", b"")
    elif how == "in chunks":
        head = head.replace(b"Content-Length: %d" % size, b"Transfer-Encoding: chunked")
        body = (b"10000\r\n" + bytes(1 << 16) + b"\r\n") * 128 + b"0\r\n\r\n"
    async with serving(refuse, Limits(linger=20)) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + body[:1000])
        await asyncio.sleep(0.3)  # the answer is on its way
        writer.write(body[1000:])
        await asyncio.wait_for(writer.drain(), 20)
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert answer.endswith(b"no")
        await until(lambda: not server.server_state.connections, 20)
        writer.close()


async def read_then_refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers when it has read more than the limit of the bodies, as the routes do."""
    seen, request = 0, Request(scope, receive)
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > 1 << 16:
            break
    await Response(b"no", 413)(scope, receive, send)


@pytest.mark.parametrize("app", [refuse, read_then_refuse])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_client_whose_body_is_not_read_to_its_end_is_told_to_use_another_connection(
    app: ASGIApp, chunked: bool
) -> None:
    size = 3 << 16
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    body = (b"8000\r\n" + bytes(1 << 15) + b"\r\n") * 6 + b"0\r\n\r\n" if chunked else bytes(size)
    async with serving(app, Limits(linger=20, body_bytes=1 << 16)) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % framing)
        for at in range(0, len(body), 1 << 15):
            writer.write(body[at : at + (1 << 15)])
            await asyncio.wait_for(writer.drain(), 20)
            await asyncio.sleep(0.02)
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert answer.endswith(b"no")
        # A chunked body that is refused at once may still be short.
        assert (b"connection: close" in answer.lower()) is (app is not refuse or not chunked)
        await until(lambda: not server.server_state.connections, 20)


async def test_a_connection_is_kept_whose_body_is_within_the_limit() -> None:
    async with serving(refuse, Limits(linger=20, body_bytes=1 << 16)) as (_, port):
        answers = await ask(port, post(bytes(1 << 16)), post(b""))
        assert answers.count(b"HTTP/1.1 401") == 2


async def test_a_body_behind_the_last_answer_is_not_waited_for_without_end() -> None:
    async with serving(refuse, Limits(linger=0.4, body_bytes=1 << 20)) as (server, port):
        for sent in (b" ", bytes(4 << 20)):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 900000000\r\n\r\n" + sent)
            await asyncio.sleep(0.05)
            await until(lambda: not server.server_state.connections, 20)
            writer.close()


async def test_a_request_behind_one_that_shall_close_gets_no_answer() -> None:
    async with serving(refuse, Limits(linger=20)) as (_, port):
        head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"
        answers = await ask(port, head + b"1234", b"56789" + head + b"123456789")
        assert answers.count(b"HTTP/1.1 ") == 1
