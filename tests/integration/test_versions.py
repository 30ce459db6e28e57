"""The last release beside today's: APIs and workers of both, on one Redis, as in a rolling upgrade.

At each release the archive and the names below are renewed (CONTRIBUTING.md).
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import numpy as np
import pytest

from clip_queue.shared.job import State
from tests.harness import Api, Service, Stack, stack
from tests.images import base64_image, noise_image
from tests.jobs_api import ended, look, submit, submit_texts, succeeded
from tests.reference import Reference
from tests.release_archive import LAST, LAST_API, LAST_HTTP, LAST_WORKER, unpack
from tests.wire import cosines, embed_images, embed_texts, ok, refused, same, vectors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

START = 240.0  # most seconds that a process takes to start on a loaded machine
IMAGES = [noise_image(seed) for seed in range(3)]
TEXTS = ["red heart", "dog face", "pizza"]


@dataclass
class Mixed:
    """APIs and workers by release: ``old`` and ``new``."""

    stack: Stack
    apis: dict[str, Api]
    workers: dict[str, Service]

    @property
    def submitter(self) -> Api:
        return next(iter(self.apis.values()))

    @property
    def other(self) -> Api:
        """Another API if there is one."""
        return list(self.apis.values())[-1]


@contextmanager
def mixed(folder: Path, apis: str, workers: str) -> Iterator[Mixed]:
    root = unpack(LAST, folder)
    with stack(folder) as it:
        made = Mixed(it, {}, {})
        for release in workers.split():
            made.workers[release] = it.worker(LAST_WORKER, root=root) if release == "old" else it.worker()
        for release in apis.split():
            made.apis[release] = it.api(LAST_API, http=LAST_HTTP, root=root) if release == "old" else it.api()
        it.ready(*made.workers.values(), *made.apis.values(), timeout=START)
        yield made
        ended_early = [service.name for service in it.services if not service.alive]
        assert not ended_early, f"ended: {ended_early}"


MIXTURES = {
    "an old API, a new worker": ("old", "new"),
    "a new API, an old worker": ("new", "old"),
    "both, the old API first": ("old new", "old new"),
    "both, the new API first": ("new old", "old new"),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    with mixed(tmp_path_factory.mktemp("mixed"), "old new", "old new") as it:
        yield it


@pytest.fixture(scope="module", params=MIXTURES.values(), ids=MIXTURES)
def services(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    apis, workers = request.param
    if " " in apis:
        both: Mixed = request.getfixturevalue("both")
        yield Mixed(both.stack, {release: both.apis[release] for release in apis.split()}, both.workers)
        return
    with mixed(tmp_path_factory.mktemp("mixed"), apis, workers) as it:
        yield it


@pytest.fixture
def submitter(services: Mixed) -> Iterator[httpx.Client]:
    with services.submitter.client() as client:
        yield client


@pytest.fixture
def other(services: Mixed) -> Iterator[httpx.Client]:
    with services.other.client() as client:
        yield client


@pytest.fixture(scope="module")
def right() -> tuple[np.ndarray, np.ndarray]:
    """The features of the images and of the texts."""
    reference = Reference()
    return reference.images(IMAGES), reference.texts(TEXTS)


def test_images_texts_and_cosines_are_right(
    submitter: httpx.Client, other: httpx.Client, right: tuple[np.ndarray, np.ndarray]
) -> None:
    images, texts = right
    for http in (submitter, other):
        for _ in range(4):  # with two workers, each is likely to have its turn
            same(vectors(embed_images(http, IMAGES)), images, within=1e-3)
            same(vectors(embed_texts(http, TEXTS)), texts, within=1e-3)
            body = {"subject": base64_image(IMAGES[0]), "prompt": {f"p{i}": t for i, t in enumerate(TEXTS)}}
            found = ok(http.post("/clip/compare", json=body))["similarity"]
            np.testing.assert_allclose([found[f"p{i}"] for i in range(3)], cosines(images[:1], texts), atol=1e-3)


def test_a_bad_image_is_refused_by_its_index(submitter: httpx.Client, other: httpx.Client) -> None:
    for http in (submitter, other):
        assert refused(embed_images(http, [IMAGES[0], b"no image"]), 400, coded=False)["index"] == 1


def test_a_job_is_seen_from_both_sides(
    submitter: httpx.Client, other: httpx.Client, right: tuple[np.ndarray, np.ndarray]
) -> None:
    job_id = submit_texts(submitter, *TEXTS)
    same(succeeded(other, job_id), right[1], within=1e-3)
    same(succeeded(submitter, job_id), right[1], within=1e-3)
    listed = other.get("/jobs", params={"state": "succeeded", "limit": 100}).json()["jobs"]
    assert job_id in [job["id"] for job in listed]
    raw = other.get(f"/jobs/{job_id}/result", headers={"Accept": "application/x-npy"})
    assert (raw.status_code, raw.content[:6]) == (200, b"\x93NUMPY")


def test_bad_items_are_skipped(submitter: httpx.Client, other: httpx.Client) -> None:
    body = [base64_image(image) for image in (IMAGES[0], b"no image", IMAGES[1])]
    job_id = submit(submitter, task="embed_image", image=body, on_error="skip")["id"]
    for http in (submitter, other):
        document = ended(http, job_id)
        assert (document["state"], document["items"]) == ("succeeded", {"total": 3, "done": 2, "failed": 1})
        assert [row is None for row in document["result"]["embeddings"]] == [False, True, False]
        assert [error["index"] for error in document["result"]["errors"]] == [1]


def test_events_of_a_job_end_with_its_end(submitter: httpx.Client, other: httpx.Client) -> None:
    job_id = submit_texts(submitter, *(f"thing {i}" for i in range(100)))
    with other.stream("GET", f"/jobs/{job_id}/events") as stream:
        data = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert data[-1]["state"] == "succeeded"


def test_a_job_is_cancelled_from_the_other_side(services: Mixed, submitter: httpx.Client, other: httpx.Client) -> None:
    for worker in services.workers.values():
        worker.signal(signal.SIGSTOP)
    try:
        job_id = submit_texts(submitter, "never done")
        assert other.delete(f"/jobs/{job_id}").status_code == 200
        assert look(submitter, job_id)["state"] == look(other, job_id)["state"] == State.CANCELLED
    finally:
        for worker in services.workers.values():
            worker.signal(signal.SIGCONT)
    assert ended(other, submit_texts(submitter, "done"))["state"] == "succeeded"
    assert look(submitter, job_id)["state"] == State.CANCELLED


def test_an_idempotency_key_holds_on_both_sides(submitter: httpx.Client, other: httpx.Client) -> None:
    headers, body = {"Idempotency-Key": str(uuid4())}, {"task": "embed_text", "text": TEXTS}
    first = submit(submitter, headers, **body)
    again = other.post("/jobs", json=body, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert other.post("/jobs", json={**body, "text": ["another"]}, headers=headers).status_code == 422
