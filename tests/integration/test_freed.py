"""What a request sent is free once it is answered: none of it waits for the collector of reference cycles.

The API's collector looks rarely (``shared/garbage.py``), and knows nothing of sizes: to it a hundred forgotten bodies
of 6 MB are some thousand small objects.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import psutil
import pytest

from tests.harness import Api, Stack

MIB = 2**20
SIZE = 6 * MIB
NOISE = base64.b64encode(os.urandom(SIZE * 3 // 4)).decode()
IMAGE = {"type": "base64", "value": NOISE}
TIMES = 40

KINDS: dict[str, tuple[str, Any, int]] = {
    "an image that is none": ("/clip/embed_image", {"image": IMAGE}, 400),
    "an unknown type": ("/clip/embed_image", {"image": {"type": "nope", "value": NOISE}}, 400),
    "no image": ("/clip/embed_image", {"imag": IMAGE}, 422),
    "a long text": ("/clip/embed_text", {"text": NOISE}, 400),
    "an image that is none, compared": ("/clip/compare", {"subject": IMAGE, "prompt": ["cat"]}, 400),
    "an unknown model": ("/clip/embed_text", {"text": "cat", "clip_version_id": "nope", "more": NOISE}, 404),
    "no JSON": ("/clip/embed_text", b'{"text": "' + NOISE.encode(), 422),
    "no object": ("/clip/embed_text", b'["' + NOISE.encode() + b'"]', 422),
    "too deep": ("/clip/embed_text", b'{"text":' + b"[" * 300 + b"]" * 300 + b',"a":"' + NOISE.encode() + b'"}', 400),
    "too large": ("/clip/embed_text", b" " * (9 * MIB), 413),
    "a job that is none": ("/jobs", {"task": NOISE}, 422),
    "OpenAI's": ("/v1/embeddings", {"model": "emoji-mini", "input": NOISE}, 400),
    "Weaviate's": ("/vectorize", {"texts": NOISE}, 422),
    "a wrong route": ("/nope", {"text": NOISE}, 404),
    "good": ("/clip/embed_text", {"text": "cat", "more": NOISE}, 200),
}


@pytest.fixture(scope="module")
def door(served: tuple[Stack, Api]) -> Iterator[Api]:
    api = served[0].api(max_body_bytes=8 * MIB)
    served[0].ready(api)
    yield api
    api.stop()


@pytest.mark.parametrize("name", KINDS)
def test_a_body_is_free_once_it_is_answered(door: Api, name: str) -> None:
    path, body, status = KINDS[name]
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    process = psutil.Process(door.pid)
    with door.client() as http:

        def ask() -> None:
            try:
                found = http.post(path, content=content).status_code
            except httpx.TransportError:  # refused before it was sent to its end
                found = 413
            assert found == status

        for _ in range(3):
            ask()
        before, most = process.memory_info().rss, 0
        for _ in range(TIMES):
            ask()
            most = max(most, process.memory_info().rss)
    assert most - before < TIMES * SIZE / 2
