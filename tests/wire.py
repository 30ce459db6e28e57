"""Requests to the API's embedding routes, and checks of their responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from clip_queue.shared.vectors import Matrix, Vector, cosine
from tests.images import base64_image

Vectors = Matrix  # the name that some tests use

EMBED_KEYS = ["inference_id", "frame_id", "time", "embeddings"]
COMPARE_KEYS = ["inference_id", "frame_id", "time", "similarity", "parent_id"]


def ok(response: httpx.Response) -> dict[str, Any]:
    """The body of a response, which must have the status 200."""
    assert response.status_code == 200, f"{response.status_code}: {response.text[:300]}"
    body: dict[str, Any] = response.json()
    return body


def refused(response: httpx.Response, status: int, *, coded: bool = True) -> dict[str, Any]:
    """The body of an error, which must be an object with ``message`` and ``code``; without the latter.

    ``coded``: False where an API of release 0.1, which has no codes, may be the one that answers.
    """
    assert response.status_code == status, f"{response.status_code}: {response.text[:300]}"
    body: dict[str, Any] = response.json()
    assert isinstance(body["message"], str)
    assert body["message"]
    assert body.pop("code", None) or not coded
    assert body.keys() <= {"message", "index"}
    return body


def embed_images(http: httpx.Client, images: Sequence[bytes], **more: object) -> httpx.Response:
    return http.post("/clip/embed_image", json={"image": [base64_image(i) for i in images], **more})


def embed_texts(http: httpx.Client, texts: Sequence[str], **more: object) -> httpx.Response:
    return http.post("/clip/embed_text", json={"text": list(texts), **more})


def vectors(response: httpx.Response) -> Matrix:
    """The features (n, dimension) in the response of an embed route."""
    return np.array(ok(response)["embeddings"], dtype=np.float32)


def cosines(subject: Matrix, prompts: Matrix) -> Vector:
    """The cosines (n,) of the first row of ``subject`` with each row of ``prompts``."""
    return cosine(subject[0], prompts)


def same(got: Matrix, expected: Matrix, within: float = 1e-5) -> None:
    """Check that each row is the expected one, with a difference of at most ``within`` of its length."""
    assert got.shape == expected.shape
    off = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert off.max() <= within, f"rows are off by {off} of their length"
