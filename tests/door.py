"""The job door as its clients use it."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

FINAL = {"succeeded", "failed", "cancelled", "expired"}


def post(http: httpx.Client, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    return http.post("/jobs", json=body, headers=headers)


def submit(http: httpx.Client, headers: dict[str, str] | None = None, **body: object) -> dict[str, Any]:
    """Submit what must be accepted; the job's document."""
    response = post(http, headers, **body)
    assert response.status_code == 202, f"{response.status_code}: {response.text[:300]}"
    document: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/jobs/{document['id']}"
    return document


def submit_texts(http: httpx.Client, *texts: str, **more: object) -> str:
    """Submit texts to embed; the job's id."""
    return str(submit(http, task="embed_text", text=list(texts), **more)["id"])


def look(http: httpx.Client, job_id: str, wait: float = 0) -> dict[str, Any]:
    response = http.get(f"/jobs/{job_id}", params={"wait": wait} if wait else None)
    assert response.status_code == 200, f"{response.status_code}: {response.text[:300]}"
    document: dict[str, Any] = response.json()
    return document


def ended(http: httpx.Client, job_id: str, timeout: float = 60) -> dict[str, Any]:
    """The job's document once it has ended."""
    until = time.monotonic() + timeout
    while True:
        document = look(http, job_id, wait=2)
        if document["state"] in FINAL:
            return document
        assert time.monotonic() < until, f"not ended within {timeout:g} s: {document}"


def succeeded(http: httpx.Client, job_id: str, timeout: float = 60) -> NDArray[np.float32]:
    """The vectors of a job that must succeed."""
    document = ended(http, job_id, timeout)
    assert document["state"] == "succeeded", document
    return np.array(document["result"]["embeddings"], dtype=np.float32)


def moment(text: str) -> float:
    """A time of a document, as seconds since the epoch."""
    assert text.endswith("Z")
    return datetime.fromisoformat(text).timestamp()
