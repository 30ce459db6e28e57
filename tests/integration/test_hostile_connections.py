"""One connection, or many, that send too much, too slowly, or other than they say; and clients that read nothing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from tests.harness import Api, Stack, wait_for
from tests.jobs_api import succeeded
from tests.raw_http import Connection, exchange, request, status

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /clip/embed_text HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
TEXT = b'{"text":"cat"}'
CLOSE = b"Connection: close"
SECOND = 1.0  # header_timeout and client_timeout of the API


@pytest.fixture(scope="module")
def door(served: tuple[Stack, Api]) -> Iterator[Api]:
    """An API whose limits are reached soon."""
    api = served[0].api(
        header_timeout=SECOND, client_timeout=SECOND, min_client_rate=1000, max_connections=100, max_body_bytes=2**20
    )
    served[0].ready(api)
    yield api
    _, found, traceback = api.log.read_text().partition("Traceback")
    assert not found, traceback[:5000]
    assert api.alive
    api.stop()


def memory(api: Api) -> int:
    return int(psutil.Process(api.pid).memory_info().rss)


def connections(api: Api) -> int:
    found = psutil.Process(api.pid).net_connections(kind="tcp")
    return sum(c.status == "ESTABLISHED" and c.laddr.port == api.port for c in found)


def message(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head
    return str(json.loads(body)["message"])


def served_promptly(api: Api) -> None:
    with api.client() as http:
        began = time.monotonic()
        assert http.get("/healthz").status_code == 200
        assert http.post("/clip/embed_text", json={"text": "cat"}).status_code == 200
        assert time.monotonic() - began < 10


def flood(api: Api, head: bytes, line: bytes, size: int) -> tuple[int, bytes]:
    """Send ``line`` again and again after ``head``; how many bytes were taken, and the answer."""
    with Connection(api.port) as connection:
        connection.send(head)
        block, sent = line * (65536 // len(line) + 1), 0
        while sent < size and connection.send(block):
            sent += len(block)
        return sent, connection.read()


@pytest.mark.parametrize(
    ("head", "line", "expected"),
    [
        (GET, b"X-A: " + b"a" * 1000 + b"\r\n", 431),
        (GET, b"X: 1\r\n", 431),
        (GET, b"a:\r\n", 431),
        (GET + b"X-A: ", b"a" * 1000, 431),
        (GET, b"a" * 1000, 431),
        (b"GET /?", b"a" * 1000, 414),
        (b"GET ", b" " * 1000, 431),
        (CHUNKED + b"3\r\n{} \r\n0\r\n", b"X-A: " + b"a" * 1000 + b"\r\n", 431),
        (CHUNKED + b"2;", b"x" * 1000, 413),
        (CHUNKED + b"2\r\n{ \r\n", b"1;" + b"x" * 100 + b"\r\n \r\n", 413),
        (CHUNKED, b"1\r\n \r\n", 413),
        (CHUNKED, b"1000\r\n" + b" " * 4096 + b"\r\n", 413),
    ],
    ids=[
        "long headers",
        "short headers",
        "empty headers",
        "one endless value",
        "one endless name",
        "an endless URL",
        "spaces before the URL",
        "endless trailers",
        "an endless extension of a chunk",
        "chunks with long extensions",
        "tiny chunks",
        "more than the largest body",
    ],
)
def test_sixty_megabytes_of_anything_cost_nothing(door: Api, head: bytes, line: bytes, expected: int) -> None:
    before = memory(door)
    sent, answer = flood(door, head, line, 60 * 2**20)
    assert sent < 16 * 2**20, "the connection is closed long before"
    assert status(answer) in (expected, 0), "an answer can be lost with the connection, while the client is sending"
    assert memory(door) - before < 24 * 2**20
    served_promptly(door)


def test_headers_over_a_limit_are_431_and_what_is_within_it_is_read(door: Api) -> None:
    answer = exchange(door.port, GET + b"X: 1\r\n" * 201 + b"\r\n")
    assert (status(answer), "setting max_header_bytes" in message(answer)) == (431, True)
    assert b"connection: close" in answer
    assert b"x-request-id" in answer
    assert status(exchange(door.port, GET + b"X: %s\r\n\r\n" % (b"a" * 66_000))) == 431
    assert status(exchange(door.port, GET + b"X: 1\r\n" * 150 + CLOSE + b"\r\n\r\n")) == 200
    assert status(exchange(door.port, GET + b"X: %s\r\n" % (b"a" * 60_000) + CLOSE + b"\r\n\r\n")) == 200
    assert status(exchange(door.port, b"GET /%s HTTP/1.1\r\n\r\n" % (b"a" * 70_000))) == 414
    assert "- - 431 too_large items=0 id=" in door.log.read_text()


def test_a_head_that_is_sent_byte_by_byte_ends_in_time(door: Api) -> None:
    with Connection(door.port) as connection:
        began, answer = time.monotonic(), b""
        for byte in GET + b"X-Slow: " + b"a" * 10_000:
            if not connection.send(bytes([byte])):
                break
            connection.socket.settimeout(0.02)
            try:
                answer += connection.socket.recv(4096)
                break
            except TimeoutError:
                pass
        assert status(answer) == 408
        assert "setting header_timeout" in message(answer)
        assert SECOND <= time.monotonic() - began < 10


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"G", GET, b"\r\n" * 10])
def test_a_half_open_connection_is_closed(door: Api, sent: bytes) -> None:
    with Connection(door.port) as connection:
        connection.send(sent)
        assert status(connection.read()) == (408 if b"G" in sent else 0)


def test_four_hundred_half_open_connections_keep_nobody_out(door: Api) -> None:
    with ExitStack() as opened:
        half = [opened.enter_context(Connection(door.port)) for _ in range(400)]
        for connection in half:
            connection.send(GET)
        for _ in range(5):
            served_promptly(door)
            assert connections(door) <= 100 + 64 + 1
        wait_for(lambda: connections(door) <= 2, 20, "the half-open connections are closed")


def test_where_all_connections_are_at_work_others_get_503_and_health_is_answered(
    served: tuple[Stack, Api],
) -> None:
    api = served[0].api(max_connections=4)
    served[0].ready(api)
    with ExitStack() as opened:
        for _ in range(4):
            connection = opened.enter_context(Connection(api.port))
            connection.send(POST + b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n")
            assert b"100 Continue" in connection.read(b"\r\n\r\n")  # the application waits for the body
        with api.client() as http:
            answer = http.post("/clip/embed_text", json={"text": "a"})
            assert answer.status_code == 503
            assert "setting max_connections" in answer.json()["message"]
            assert answer.headers["Retry-After"] == "1"
            assert http.get("/healthz").status_code == 200
            assert http.get("/.well-known/ready").status_code == 204
    wait_for(lambda: connections(api) == 0)
    with api.client() as http:
        assert "\nclip_queue_connections_refused_total 1.0\n" in http.get("/metrics").text
    served_promptly(api)
    assert "Traceback" not in api.log.read_text()
    api.stop()


def test_half_a_body_is_408(door: Api) -> None:
    answer = exchange(door.port, POST + b"Content-Length: 100\r\n\r\n{")
    assert status(answer) == 408
    assert "setting client_timeout" in message(answer)
    assert status(exchange(door.port, CHUNKED + b"5\r\n{")) == 408
    assert "POST /clip/embed_text 408 too_slow items=0 id=" in door.log.read_text()


def test_a_body_that_trickles_is_408_and_a_slow_one_is_read(door: Api) -> None:
    with Connection(door.port) as connection:
        connection.send(POST + b"Content-Length: 5000\r\n\r\n")
        began = time.monotonic()
        while time.monotonic() - began < 20 and connection.send(b" ") and not connection.closed:
            connection.socket.settimeout(0.05)
            try:
                connection.socket.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                pass
        connection.socket.settimeout(20)
        assert status(connection.read()) == 408
    body = TEXT + b" " * 16_000
    with Connection(door.port) as connection:  # four seconds, at four times the least rate
        connection.send(request(body, CLOSE)[: -len(body)])
        for at in range(0, len(body), 2000):
            assert connection.send(body[at : at + 2000])
            time.sleep(0.5)
        assert status(connection.read()) == 200


def test_a_body_that_nobody_reads_is_passed_over_for_a_while(door: Api) -> None:
    """An answer comes before the body is whole: the client may send on, and reads the answer, but not for ever."""
    large = POST + b"Content-Length: %d\r\n\r\n" % (3 * 2**20)
    for head in (large, large.replace(b"/clip/embed_text", b"/nowhere"), large.replace(b"POST", b"PUT")):
        with Connection(door.port) as connection:
            assert connection.send(head + b" " * 2**19)
            assert status(connection.read(b'"}')) in (413, 404, 405)
            for _ in range(200):
                if not connection.send(b" " * 2**20):
                    break
            else:
                pytest.fail("200 MiB of a body were read that nobody wants")


def test_lengths_that_lie(door: Api) -> None:
    less = exchange(door.port, request(TEXT).replace(b": 14", b": 10") + request(TEXT, CLOSE))
    assert status(less) == 422, "half the JSON is the body"
    assert less.count(b"HTTP/1.1 ") <= 2
    assert status(exchange(door.port, request(TEXT).replace(b": 14", b": 20"))) == 408
    for lie in (b"-1", b"1e3", b"0x10", b"99999999999999999999999", b"14, 15", b"\xb2", b"", b"+14"):
        answer = exchange(door.port, request(TEXT).replace(b": 14", b": " + lie))
        assert status(answer) in (400, 413, 422), lie
    both = POST + b"Content-Length: 14\r\nContent-Length: 15\r\n\r\n" + TEXT
    assert status(exchange(door.port, both)) == 400


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Content-Length: 4\r\nTransfer-Encoding:\r\n chunked\r\n",
    ],
)
def test_no_request_is_smuggled(door: Api, framing: bytes) -> None:
    inner = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = exchange(door.port, POST + framing + b"\r\n0\r\n\r\n" + inner)
    assert status(answer) in (400, 408, 411, 422, 501)
    assert b"404" not in answer.replace(b"404 Not Found", b"404") or answer.count(b"HTTP/1.1 ") == 1
    assert answer.count(b"HTTP/1.1 ") == 1, "one request, one answer"


def test_requests_sent_ahead_are_answered_in_order(door: Api) -> None:
    ahead = [request(b'{"text":"%d"}' % i) for i in range(8)] + [request(b"[]"), GET + CLOSE + b"\r\n\r\n"]
    answer = exchange(door.port, b"".join(ahead))
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200] * 8 + [422, 200]
    with Connection(door.port) as connection:
        connection.send((GET + b"\r\n") * 10_000)
        assert connection.read().count(b"200 OK") <= 200


def test_what_is_no_http_behind_a_request_does_not_take_its_answer(door: Api) -> None:
    answer = exchange(door.port, request(TEXT) + b"\x00\x01 nonsense\r\n\r\n")
    assert status(answer) == 200
    assert answer.count(b"HTTP/1.1 ") == 1


def test_many_offers_to_upgrade_in_one_packet(door: Api) -> None:
    offer = GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert b"200 OK" in exchange(door.port, offer * 3 + GET + CLOSE + b"\r\n\r\n")
    with Connection(door.port) as connection:
        connection.send(offer * 3000)
        connection.read()
    websocket = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    answer = exchange(door.port, GET + websocket + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    assert status(answer) == 200


def test_a_client_that_reads_nothing_is_disconnected(door: Api) -> None:
    with door.client() as http:
        texts = [f"text {i}" for i in range(256)]
        job = http.post("/jobs", json={"task": "embed_text", "text": texts}).json()
        succeeded(http, job["id"], 240)
    before = memory(door)
    wait_for(lambda: connections(door) == 0)
    ask = f"GET /jobs/{job['id']}/result HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with Connection(door.port, receive_buffer=4096) as connection:
        connection.send(ask * 30)
        wait_for(lambda: connections(door) == 1)
        wait_for(lambda: connections(door) == 0, 30, "it is disconnected")
        assert memory(door) - before < 64 * 2**20


def test_a_client_that_leaves_with_requests_sent_ahead_is_no_traceback(door: Api) -> None:
    with door.client() as http:
        job = http.post("/jobs", json={"task": "embed_text", "text": "a"}).json()
    ask = f"GET /jobs/{job['id']}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    for _ in range(20):
        with Connection(door.port) as connection:
            connection.send(ask * 20)
    wait_for(lambda: connections(door) == 0)  # and no traceback, as after each of these tests
