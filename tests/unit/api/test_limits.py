"""``docs/limits.md``: each row has a setting that exists, and is what the service answers."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn

from clip_queue.api.connections import Limits
from clip_queue.shared.errors import ClipError
from clip_queue.shared.settings import Settings
from tests.harness import ROOT

from .service import BAD, Service, serve
from .test_http_protocol import ask, serving

SETTING = re.compile(r"`(\w+)`")
TEXT = "/clip/embed_text"


class Row(NamedTuple):
    bound: str
    setting: str
    status: str
    code: str
    message: str

    @property
    def pattern(self) -> str:
        return ".+".join(re.escape(part) for part in self.message.split("…"))


def rows() -> list[Row]:
    lines = (ROOT / "docs" / "limits.md").read_text().splitlines()
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return [Row(*row) for row in cells if row[0] != "bound"]


ROWS = {row.bound: row for row in rows()}


def codes(kind: type[ClipError] = ClipError) -> dict[str, int]:
    found = {kind.code: kind.status}
    for sub in kind.__subclasses__():
        found |= codes(sub)
    return found


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_row_names_settings_that_exist_and_a_code_with_its_status(row: Row) -> None:
    for name in [
        *SETTING.findall(row.setting),
        *SETTING.findall(row.bound),
        *re.findall(r"setting (\w+)", row.message),
    ]:
        assert name in Settings.model_fields, name
    code = row.code.strip("`")
    if code in codes() and row.status not in ("414", "431"):
        assert codes()[code] == int(row.status)
    assert row.setting != "-" or row.status != "-" or re.search(r"\d|hour", row.bound), "what is the limit?"


def test_each_limit_has_its_row() -> None:
    names = [name for name in Settings.model_fields if re.search("^max_|_max_|_timeout$|_ttl$|_rate$", name)]
    of_workers = {"drain_timeout", "forward_timeout", "read_timeout", "sync_ttl"}  # no caller meets them
    text = (ROOT / "docs" / "limits.md").read_text()
    assert {name for name in names if f"`{name}`" not in text} <= of_workers


Ask = Callable[[Service], Awaitable[httpx.Response]]


def post(path: str = TEXT, **body: Any) -> Ask:
    return lambda service: service.http.post(path, json=body)


def raw(content: bytes, **headers: str) -> Ask:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda service: service.http.post(TEXT, content=content, headers=named)


async def never(service: Service) -> httpx.Response:
    async def body() -> Any:
        yield b"{"
        await asyncio.sleep(60)

    return await service.http.post(TEXT, content=body())


async def trickle(service: Service) -> httpx.Response:
    async def body() -> Any:
        while True:
            yield b" "
            await asyncio.sleep(0.02)

    return await service.http.post(TEXT, content=body())


async def slow_worker(service: Service) -> httpx.Response:
    service.worker.running.clear()
    return await service.http.post(TEXT, json={"text": "a"})


async def full(service: Service) -> httpx.Response:
    service.worker.running.clear()
    await service.submit(text=["a", "b"])
    return await service.http.post("/jobs", json={"task": "embed_text", "text": "a"})


async def away(service: Service) -> httpx.Response:
    service.server.connected = False
    return await service.http.get("/jobs")


def two_runs(first: str, second: str) -> Ask:
    async def asked(service: Service) -> httpx.Response:
        run = {"task": "embed_dataset", "source": "/in"}
        response = await service.http.post("/jobs", json={**run, "output": first})
        assert response.status_code == 202, response.text
        return await service.http.post("/jobs", json={**run, "output": second})

    return asked


IMAGE = {"type": "base64", "value": "A" * 4000}
ROOTS: dict[str, object] = {"bulk_sources": "/in", "bulk_outputs": "/out"}
CASES: dict[str, tuple[dict[str, object], Ask]] = {
    "bytes of a body, compressed or not": ({"max_body_bytes": 2000}, post(text="a" * 3000)),
    "bytes of all bodies that an API process receives and reads": (
        {"max_total_body_bytes": 2000},
        post(text="a" * 3000),
    ),
    "a wrong key in the query or the header: the body is not read": (
        {"api_keys": "one"},
        lambda service: service.http.post(f"{TEXT}?api_key=two"),
    ),
    "bytes of a body without a key in the query, the header or its first 64 KiB": (
        {"api_keys": "one", "max_keyless_bytes": 2000},
        post(text="a" * 3000),
    ),
    "encodings: gzip": ({}, raw(b"{}", Content_Encoding="br")),
    "depth of JSON: 200": ({}, raw(b'{"a":' + b"[" * 201 + b"]" * 201 + b"}")),
    "values of JSON: 200,000": ({}, raw(b"[" + b"0," * 200_001 + b"0]")),
    "errors that an answer lists: 20, and their number": ({}, post(text=[1] * 30)),
    "time without a byte of the body": ({"client_timeout": 0.05}, never),
    "average rate of the body, after the first `client_timeout`": (
        {"client_timeout": 0.2, "min_client_rate": 1000},
        trickle,
    ),
    "images or prompts of a request": ({}, post("/clip/embed_image", image=["x"] * 9)),
    "texts of a request": ({}, post(text=["x"] * 10_001)),
    "texts and images of `/v1/embeddings` and `/vectorize`": ({}, post("/v1/embeddings", input=["x"] * 2049)),
    "items of a job": ({}, post("/jobs", task="embed_text", text=["x"] * 1025)),
    "characters of a text": ({}, post(text="x" * 2001)),
    "encoded bytes of an image": ({"max_image_bytes": 1024}, post("/clip/embed_image", image=IMAGE)),
    "unfinished items of a model's lane": ({"max_queued_items": 2}, full),
    "time of a synchronous request": ({"request_timeout": 0.05}, slow_worker),
    "time of a job that has a deadline: at most 30 days": (
        {},
        post("/jobs", task="embed_text", text=BAD, deadline_s=31 * 86400),
    ),
    "jobs of a page: 100": ({}, lambda service: service.http.get("/jobs?limit=101")),
    "an Idempotency-Key: 200 characters": (
        {},
        lambda service: service.http.post("/jobs", content=b"{}", headers={"Idempotency-Key": "k" * 201}),
    ),
    "time for Redis to answer": ({}, away),
    "runs of datasets that have not ended": ({**ROOTS, "max_bulk_runs": 1}, two_runs("/out/a", "/out/b")),
    "runs into one output: one": (ROOTS, two_runs("/out/a", "/out//a/")),
    "places that a run may read": (ROOTS, post("/jobs", task="embed_dataset", source="/etc", output="/out/a")),
    "places that it may write below": (ROOTS, post("/jobs", task="embed_dataset", source="/in", output="/tmp/a")),
    "paths of a run's source: 1,024": (
        ROOTS,
        post("/jobs", task="embed_dataset", source=["/in/a"] * 1025, output="/out/a"),
    ),
    "characters of such a path: 4,096": (
        ROOTS,
        post("/jobs", task="embed_dataset", source="/in/" + "a" * 4096, output="/out/a"),
    ),
}
PATHS = {
    "bytes of a request's headers, or of its body's trailers": b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000,
    "number of headers: 200": b"GET / HTTP/1.1\r\n" + b"A: 1\r\n" * 202,
    "bytes of a URL": b"GET /" + b"a" * 70_000,
    "time in which URL and headers arrive": b"GET / HTTP/1.1\r\nA: a",
    "framing of a chunked body: 1 MiB and as much as its content": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked"
    b"\r\n\r\n1;" + b"x" * 1_200_000,
    "transfer codings: chunked": b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "what is no HTTP, or a URL that is none": b"\x16\x03\x01\r\n\r\n",
}
ELSEWHERE = {
    "a body that is still sent after its answer": "integration/test_hostile_connections.py",
    "an answer that is not taken": "unit/api/test_http_protocol.py",
    "requests sent ahead of an answer": "integration/test_hostile_connections.py",
    "connections": "unit/api/test_http_protocol.py",
    "bytes that all jobs": "integration/test_memory.py",
    "bytes that those of one key": "integration/test_memory.py",
    "a job that alone is larger": "integration/test_memory.py",
    "bytes of a result": "unit/shared/test_held.py",
    "memory of Redis": "integration/test_memory.py",
    "time without a worker": "integration/test_restarts.py",
    "tokens of a text": "integration/test_bad_input.py",
    "pixels": "unit/worker/test_image_limits.py",
    "time of decoding": "unit/worker/test_decode_helpers.py",
    "bytes of one image": "integration/test_limits.py",
    "bytes of all": "integration/test_fetch_limits.py",
    "time for one URL": "unit/shared/test_fetch.py",
    "redirects": "integration/test_limits.py",
    "URLs fetched at once": "unit/shared/test_fetch.py",
    "time for all URLs": "unit/shared/test_fetch.py",
    "time of `?wait=`": "integration/test_jobs_poll.py",
    "a stream of events": "unit/api/test_job_events.py",
    "how long a result is kept": "integration/test_jobs_poll.py",
    "workers that a job may take down": "integration/test_give_up.py",
    "runs that a worker leads at once": "unit/worker/test_leading.py",
    "hits of a page": "integration/test_search_route.py",
    "hits of a query on all pages": "integration/test_search_route.py",
    "texts or images of a query": "integration/test_search_route.py",
    "searches and pictures at once": "integration/test_search_processes.py",
    "those that wait for a process": "integration/test_search_processes.py",
    "time of a search": "integration/test_search_processes.py",
    "bytes of a picture": "integration/test_search_route.py",
    "places that pictures may lie in": "integration/test_search_route.py",
}


def test_each_row_is_tried_somewhere() -> None:
    assert {*CASES, *PATHS} <= ROWS.keys()
    rest = ROWS.keys() - CASES.keys() - PATHS.keys()
    assert [bound for bound in rest if not bound.startswith(tuple(ELSEWHERE))] == []
    for file in ELSEWHERE.values():
        assert (Path(ROOT) / "tests" / file).exists(), file


@pytest.mark.parametrize("bound", CASES)
async def test_the_service_answers_what_a_row_says(bound: str, caplog: pytest.LogCaptureFixture) -> None:
    settings, asked = CASES[bound]
    row = ROWS[bound]
    caplog.set_level(logging.WARNING)
    async with serve(**settings) as service:
        response = await asked(service)
        service.server.connected = True
        assert response.status_code == int(row.status), response.text
        if row.message != "-":
            body = response.json()
            message = body.get("message") or body.get("error", {}).get("message") or body["detail"][0]["msg"]
            assert re.fullmatch(row.pattern, message), message
        lines = [r.getMessage() for r in caplog.records if r.name == "clip_queue.api.request_log"]
        assert f" {row.status} {row.code.strip('`')} " in lines[-1]


@pytest.mark.parametrize("bound", PATHS)
async def test_the_protocol_answers_what_a_row_says(bound: str) -> None:
    row = ROWS[bound]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serving(app, Limits(header_time=0.1)) as (server, port):
        assert isinstance(server, uvicorn.Server)
        answer = await ask(port, PATHS[bound])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head[9:12]) == int(row.status), answer[:300]
    assert re.fullmatch(row.pattern, json.loads(body)["message"])
    assert json.loads(body)["code"] == row.code.strip("`")
