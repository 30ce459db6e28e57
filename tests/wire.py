"""What tests say on the wire, and what they read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from tests.pictures import base64_image

Vectors = NDArray[np.float32]  # (n, dimension)

EMBED_KEYS = ["inference_id", "frame_id", "time", "embeddings"]
COMPARE_KEYS = ["inference_id", "frame_id", "time", "similarity", "parent_id"]


def ok(response: httpx.Response) -> dict[str, Any]:
    """The body of a 200."""
    assert response.status_code == 200, f"{response.status_code}: {response.text[:300]}"
    body: dict[str, Any] = response.json()
    return body


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The body of an error: an object with ``message``."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:300]}"
    body: dict[str, Any] = response.json()
    assert isinstance(body["message"], str)
    assert body["message"]
    assert body.keys() <= {"message", "index"}
    return body


def embed_images(http: httpx.Client, pictures: Sequence[bytes], **more: object) -> httpx.Response:
    return http.post("/clip/embed_image", json={"image": [base64_image(p) for p in pictures], **more})


def embed_texts(http: httpx.Client, texts: Sequence[str], **more: object) -> httpx.Response:
    return http.post("/clip/embed_text", json={"text": list(texts), **more})


def vectors(response: httpx.Response) -> Vectors:
    """The features of an embed route's answer."""
    return np.array(ok(response)["embeddings"], dtype=np.float32)


def cosines(subject: Vectors, prompts: Vectors) -> Vectors:
    """Cosines (n,) of one row with each row of another matrix."""
    unit = prompts / np.linalg.norm(prompts, axis=1, keepdims=True)
    out: Vectors = unit @ (subject[0] / np.linalg.norm(subject[0]))
    return out


def same(got: Vectors, expected: Vectors, within: float = 1e-5) -> None:
    """Each row is the expected one, the length of their difference being ``within`` of its length."""
    assert got.shape == expected.shape
    off = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert off.max() <= within, f"rows are off by {off} of their length"
