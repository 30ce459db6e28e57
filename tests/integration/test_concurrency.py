"""Many clients at once: each gets its own answer, whatever shares its batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np

from tests.harness import Api, Stack
from tests.images import base64_image, noise_image
from tests.reference import Reference
from tests.wire import cosines, same, vectors

CLIENTS = 64
TRUNCATED = noise_image(99, size=(400, 300), format="JPEG")[:4000]

Answers = list[httpx.Response]


def at_once(api: Api, ask: Callable[[httpx.AsyncClient, int], Awaitable[httpx.Response]]) -> Answers:
    """The answers of ``CLIENTS`` clients that all ask at once, in order."""

    async def all_of_them() -> Answers:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=api.url, timeout=60, trust_env=False, limits=limits) as http:
            return await asyncio.gather(*(ask(http, i) for i in range(CLIENTS)))

    return asyncio.run(all_of_them())


def embed(http: httpx.AsyncClient, image: bytes) -> Awaitable[httpx.Response]:
    return http.post("/clip/embed_image", json={"image": base64_image(image)})


def test_64_clients_each_get_their_own_vector(served: tuple[Stack, Api], reference: Reference) -> None:
    files = [noise_image(seed) for seed in range(CLIENTS)]
    words = [f"word number {i}" for i in range(CLIENTS)]

    async def ask(http: httpx.AsyncClient, i: int) -> httpx.Response:
        match i % 3:
            case 0:
                return await embed(http, files[i])
            case 1:
                return await http.post("/clip/embed_text", json={"text": words[i]})
        body: dict[str, Any] = {"subject": base64_image(files[i]), "prompt": words[i - 2 : i]}
        return await http.post("/clip/compare", json=body)

    answers = at_once(served[1], ask)
    images, texts = reference.images(files), reference.texts(words)
    for i, answer in enumerate(answers):
        match i % 3:
            case 0:
                same(vectors(answer), images[i : i + 1])
            case 1:
                same(vectors(answer), texts[i : i + 1])
            case 2:
                expected = cosines(images[i : i + 1], texts[i - 2 : i])
                np.testing.assert_allclose(answer.json()["similarity"], expected, atol=1e-5)


def test_a_truncated_jpeg_among_concurrent_requests_harms_none_of_them(
    served: tuple[Stack, Api], reference: Reference
) -> None:
    files = [noise_image(seed) for seed in range(CLIENTS)]
    answers = at_once(served[1], lambda http, i: embed(http, TRUNCATED if i % 4 == 0 else files[i]))
    assert [a.status_code for a in answers] == [400 if i % 4 == 0 else 200 for i in range(CLIENTS)]
    good = [i for i in range(CLIENTS) if i % 4]
    same(np.concatenate([vectors(answers[i]) for i in good]), reference.images([files[i] for i in good]))
