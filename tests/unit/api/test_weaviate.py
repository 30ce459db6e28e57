"""The wire of Weaviate's `multi2vec-clip`, by the requests that its Go client sends."""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np
import pytest

from clip_queue.api.requests import HEART

from .service import BAD, MODEL, Service, serve

IMAGE = base64.b64decode(HEART)


def unit(rows: list[list[float]]) -> np.ndarray[Any, Any]:
    matrix = np.array(rows, np.float32)
    scaled: np.ndarray[Any, Any] = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return scaled


async def test_texts_and_images_come_back_apart_with_length_1(service: Service) -> None:
    response = await service.http.post("/vectorize", json={"texts": ["a", "abc"], "images": [HEART]})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer.keys() == {"textVectors", "imageVectors"}
    np.testing.assert_allclose(answer["textVectors"], unit([[0, 1], [1, 3]]), rtol=1e-6)
    np.testing.assert_allclose(answer["imageVectors"], unit([[2, len(IMAGE)]]), rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "texts", "images"),
    [
        ({"texts": ["a"], "images": None}, 1, 0),  # a nil slice of Go is null
        ({"texts": None, "images": [HEART]}, 0, 1),
        ({"texts": None, "images": None}, 0, 0),
        ({"texts": [], "images": []}, 0, 0),
        ({"images": [HEART], "of_nobody": 1}, 0, 1),
        ({}, 0, 0),
    ],
)
async def test_either_may_be_missing(service: Service, body: dict[str, Any], texts: int, images: int) -> None:
    answer = (await service.http.post("/vectorize", json=body)).json()
    assert (len(answer["textVectors"]), len(answer["imageVectors"])) == (texts, images)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"texts": ["a", BAD]}, 400, "item 1: refused by the worker"),
        ({"texts": ["a"], "images": [HEART, "§"]}, 400, "item 2: Could not load"),
        ({"images": ["https://example.org/a.png"]}, 400, "Malformed base64"),
        ({"texts": "a"}, 422, "texts: Input should be a valid list"),
        ({"texts": [None]}, 422, "texts.0: Input should be a valid string"),
        ({"texts": ["a"] * 2049}, 400, "holds 2049 items; at most 2048"),
    ],
)
async def test_an_error_is_one_sentence(service: Service, body: dict[str, Any], status: int, says: str) -> None:
    response = await service.http.post("/vectorize", json=body)
    assert response.status_code == status
    assert response.json().keys() == {"error"}
    assert says in response.json()["error"]


async def test_live_ready_and_meta(service: Service) -> None:
    for path in ("/.well-known/live", "/.well-known/ready"):
        response = await service.http.get(path)
        assert (response.status_code, response.content) == (204, b"")
    meta = (await service.http.get("/meta")).json()
    assert (meta["model"], meta["dimension"]) == (MODEL, 2)


async def test_ready_waits_for_nothing_and_says_what_is_missing() -> None:
    async with serve(worker=False) as service:
        response = await service.http.get("/.well-known/ready")
        assert response.status_code == 503
        assert f"No live worker serves model '{MODEL}'" in response.json()["error"]
        await service.worker.announce()
        await service.client.registry.refresh()
        service.server.connected = False  # nor for the store
        began = time.monotonic()
        assert (await service.http.get("/.well-known/ready")).status_code == 204
        assert time.monotonic() - began < 0.5


async def test_the_deployment_decides_whether_a_key_is_needed() -> None:
    body = {"texts": ["a"]}
    async with serve(api_keys="one,two:three") as service:
        response = await service.http.post("/vectorize", json=body)
        assert response.status_code == 401
        assert response.json() == {"error": "Unauthorized api_key"}
        for header in ("Bearer one", basic("any:one"), basic(":two:three")):  # the last two: http://any:KEY@host
            sent = await service.http.post("/vectorize", json=body, headers={"Authorization": header})
            assert sent.status_code == 200, header
        for header in (basic("one"), basic("one:"), basic("any:three"), "Basic §", "Basic"):
            headers = {b"Authorization": header.encode()}
            assert (await service.http.post("/vectorize", json=body, headers=headers)).status_code == 401, header
        for path in ("/.well-known/live", "/.well-known/ready", "/meta"):
            assert (await service.http.get(path)).is_success
    async with serve(api_keys="one", vectorize_without_key=True) as service:
        assert (await service.http.post("/vectorize", json=body)).status_code == 200
        assert (await service.http.post("/clip/embed_text", json={"text": "a"})).status_code == 401
        assert (await service.http.post("/v1/embeddings", json={"input": "a"})).status_code == 401


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()
