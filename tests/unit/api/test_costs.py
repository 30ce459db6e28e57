"""What one request may cost before it is refused."""

from __future__ import annotations

import gzip
import time
from collections.abc import AsyncIterator

import orjson
import pytest
from fastapi.exceptions import RequestValidationError

from clip_queue.api.error_responses import MAX_DETAILS

from .service import Service, serve

PATH = "/clip/embed_text"
KEYLESS = {"message": "Unauthorized api_key", "code": "unauthorized"}


@pytest.mark.parametrize("path", [PATH, "/jobs"])
@pytest.mark.parametrize("text", [b"0,", b"[],", b'"",', b"null,", b'"\\ud83d",'])
async def test_many_wrong_values_are_refused_soon_and_shortly(service: Service, path: str, text: bytes) -> None:
    for count in (150_000, 2**20):
        body = b'{"task":"embed_text","text":[' + text * count + b"0]}"
        began = time.process_time()  # not by the clock: other processes share the cores
        response = await service.http.post(path, content=body)
        assert response.status_code == 422
        assert len(response.content) < 2000
        assert time.process_time() - began < 2
    skipped = b'{"task":"embed_text","on_error":"skip","text":[' + text * 90_000 + b"0]}"
    response = await service.http.post(path, content=skipped)
    assert response.status_code == 400
    assert "holds 90001 items; at most" in response.json()["message"]


async def test_an_answer_lists_twenty_errors_and_how_many_there_are(service: Service) -> None:
    @service.app.get("/many")
    async def many() -> None:
        raise RequestValidationError([{"loc": ("a",), "msg": "b", "type": "c"}] * 1000)

    body = (await service.http.get("/many")).json()
    assert (len(body["detail"]), body["errors"]) == (MAX_DETAILS, 1000)


@pytest.mark.parametrize("request_", [{"params": {"api_key": "x"}}, {"headers": {"Authorization": "Bearer x"}}])
async def test_a_wrong_key_is_refused_before_the_body_is_read(request_: dict[str, dict[str, str]]) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b" "

    async with serve(api_keys="one") as service:
        response = await service.http.post(PATH, content=body(), **request_)  # type: ignore[arg-type]
        assert (response.status_code, response.json()) == (401, KEYLESS)
        assert read == 0


async def test_without_a_key_only_the_beginning_of_a_body_is_read() -> None:
    async with serve(api_keys="one", max_keyless_bytes=100_000) as service:
        sent = 0

        async def body(head: bytes) -> AsyncIterator[bytes]:
            nonlocal sent
            sent = 0
            yield head
            for _ in range(100):
                sent += 10_000
                yield b" " * 10_000
            yield b"}"

        for head in (b'{"text":"a"', b'{"api_key":"on","text":"a"', b'{"api_key":"\\u006fne","text":"a"'):
            response = await service.http.post(PATH, content=body(head))
            assert response.status_code == 401
            assert "setting max_keyless_bytes" in response.json()["message"]
            assert sent < 200_000
        for head in (b'{"api_key":"one","text":"a"', b'{"text":"a", "api_key" : "one"'):
            assert (await service.http.post(PATH, content=body(head))).status_code == 200
        header = {"Authorization": "Bearer one"}
        assert (await service.http.post(PATH, content=body(b'{"text":"a"'), headers=header)).status_code == 200
        small = orjson.dumps({"text": "a" + " " * 1000, "padding": " " * 90_000, "api_key": "one"})
        assert (await service.http.post(PATH, content=small)).status_code == 200, "a key at the end of a small body"
        nested = b'{"x":{"api_key":"one"},"text":"a"'
        response = await service.http.post(PATH, content=body(nested))
        assert response.json() == KEYLESS, "what lets a body be read is not yet what is accepted"


async def test_a_compressed_body_without_a_key_is_bounded_too() -> None:
    async with serve(api_keys="one", max_keyless_bytes=2000) as service:
        headers = {"Content-Encoding": "gzip"}
        small = gzip.compress(b'{"text":"a","api_key":"one"}')
        assert (await service.http.post(PATH, content=small, headers=headers)).status_code == 200
        bomb = gzip.compress(b'{"text":"a","api_key":"one"}' + b" " * 5000)
        assert (await service.http.post(PATH, content=bomb, headers=headers)).status_code == 401
        both = {**headers, "Authorization": "Bearer one"}
        assert (await service.http.post(PATH, content=bomb, headers=both)).status_code == 200


@pytest.mark.parametrize("deadline", [b"0.0001", b"1e-9", b"5e-324"])
async def test_the_shortest_deadline_is_one(service: Service, deadline: bytes) -> None:
    service.worker.running.clear()
    body = b'{"task":"embed_text","text":"a","deadline_s":%s}' % deadline
    document = (await service.http.post("/jobs", content=body)).json()
    assert document["deadline"] > document["created"]
    for wrong in (b"NaN", b"Infinity", b"1e999", b"9" * 500, b"-1", b"0"):
        body = b'{"task":"embed_text","text":"a","deadline_s":%s}' % wrong
        assert (await service.http.post("/jobs", content=body)).status_code == 422
