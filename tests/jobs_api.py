"""Requests to the jobs API, as its clients send them."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import httpx
import numpy as np

from clip_queue.shared.vectors import Matrix

FINAL = {"succeeded", "failed", "cancelled", "expired"}


def post(http: httpx.Client, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    return http.post("/jobs", json=body, headers=headers)


def submit(http: httpx.Client, headers: dict[str, str] | None = None, **body: object) -> dict[str, Any]:
    """Submit a job that must be accepted; returns its document."""
    response = post(http, headers, **body)
    assert response.status_code == 202, f"{response.status_code}: {response.text[:300]}"
    document: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/jobs/{document['id']}"
    return document


def submit_texts(http: httpx.Client, *texts: str, **more: object) -> str:
    """Submit texts to embed; returns the job's id."""
    return str(submit(http, task="embed_text", text=list(texts), **more)["id"])


def look(http: httpx.Client, job_id: str, wait: float = 0) -> dict[str, Any]:
    """The job's document. ``wait``: longest wait of the server for a change of the job's state, seconds."""
    response = http.get(f"/jobs/{job_id}", params={"wait": wait} if wait else None)
    assert response.status_code == 200, f"{response.status_code}: {response.text[:300]}"
    document: dict[str, Any] = response.json()
    return document


def ended(http: httpx.Client, job_id: str, timeout: float = 60) -> dict[str, Any]:
    """Wait until a job has ended; returns its document."""
    until = time.monotonic() + timeout
    while True:
        document = look(http, job_id, wait=2)
        if document["state"] in FINAL:
            return document
        assert time.monotonic() < until, f"not ended within {timeout:g} s: {document}"


def succeeded(http: httpx.Client, job_id: str, timeout: float = 60) -> Matrix:
    """Wait until a job has succeeded; returns its vectors (n, dimension)."""
    document = ended(http, job_id, timeout)
    assert document["state"] == "succeeded", document
    return np.array(document["result"]["embeddings"], dtype=np.float32)


def moment(text: str) -> float:
    """A time in a document, in seconds since the epoch."""
    assert text.endswith("Z")
    return datetime.fromisoformat(text).timestamp()
