"""``"on_error": "skip"``: one bad item fails alone, wherever it is found to be bad."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import numpy as np
import pytest

from clip_queue.api.items import FetchedItems, RequestItems
from clip_queue.api.refused import complete_job, complete_result
from clip_queue.api.requests import HEART
from clip_queue.shared.errors import BadImage, ClipError
from clip_queue.shared.fetch import Fetcher
from clip_queue.shared.job import Job, JobResult, Kind, OnError, State
from clip_queue.shared.settings import Settings

from .service import BAD, MODEL, Service, serve

IMAGE = {"type": "base64", "value": HEART}
CAUSE = "Could not load input image. Cause: "


class Site(Fetcher):
    """Has an image at /good; hangs at /slow; nothing else is there."""

    async def get(self, url: str) -> bytes:
        if url.endswith("/slow"):
            await asyncio.sleep(60)
        if url.endswith("/good"):
            return b"good"
        raise BadImage.because("gone")


BAD_IMAGES: list[tuple[object, str]] = [
    ({"type": "url", "value": "https://a.b/dead"}, CAUSE + "gone"),
    ({"type": "base64", "value": "%%%"}, CAUSE + "Malformed base64 input image."),
    ({"type": "base64", "value": ""}, CAUSE + "Empty image payload."),
    ({"type": "base64", "value": "A" * 2000}, CAUSE + "Image is larger than 1024 bytes (setting max_image_bytes)."),
    (None, "image[1] must be an image: an object with type and value, or a string of a URL or base64."),
    (7, "image[1] must be an image: an object with type and value, or a string of a URL or base64."),
    ({"type": "numpy", "value": ""}, CAUSE + "NumPy images are not accepted: pickled input can run code. "
     "Send base64 or a URL."),
]  # fmt: skip
BAD_TEXTS: list[tuple[object, str]] = [
    ("b" * 21, "Text input is too long for the model context length: 21 characters, 20 at most."),
    (None, "Field 'text' must hold text here; it holds null."),
    ({"a": 1}, "Field 'text' must hold text here; it holds an object."),
    (BAD, "refused by the worker"),
]
CASES = [("image", IMAGE, *case) for case in BAD_IMAGES] + [("text", "good", *case) for case in BAD_TEXTS]


@pytest.mark.parametrize(("field", "good", "bad", "message"), CASES)
async def test_one_bad_item_fails_alone(field: str, good: object, bad: object, message: str) -> None:
    settings = {"max_image_bytes": 1024, "max_text_chars": 20}
    async with serve(fetcher=Site(Settings()), **settings) as service:
        items = {field: [good, bad, good], "on_error": "skip"}
        response = await service.http.post(f"/clip/embed_{field}", json=items)
        assert response.status_code == 200, response.text
        assert list(response.json()) == ["inference_id", "frame_id", "time", "embeddings", "errors"]
        job = await service.submit(task=f"embed_{field}", **items)
        document = await service.look(job["id"], wait=5)
        for result in (response.json(), document["result"]):
            assert [row is None for row in result["embeddings"]] == [False, True, False]
            (error,) = result["errors"]
            assert (error["index"], error["message"]) == (1, message)
        assert document["items"] == {"total": 3, "done": 2, "failed": 1}
        array = await service.http.get(f"/jobs/{job['id']}/result", headers={"Accept": "application/x-npy"})
        assert np.isnan(np.load(io.BytesIO(array.content))).any(axis=1).tolist() == [False, True, False]
        strict = await service.http.post(f"/clip/embed_{field}", json={field: [good, bad, good]})
        assert strict.status_code in (400, 422)


async def test_without_skip_a_response_has_the_keys_that_it_had(service: Service) -> None:
    response = await service.http.post("/clip/embed_text", json={"text": ["a"], "on_error": "fail"})
    assert list(response.json()) == ["inference_id", "frame_id", "time", "embeddings"]
    wrong = await service.http.post("/clip/embed_text", json={"text": ["a", 1, 2]})
    assert wrong.status_code == 422
    assert [error["loc"][:2] for error in wrong.json()["detail"]] == [["body", "text"]] * 2
    assert wrong.json()["detail"][1]["loc"][3] == 1


async def test_errors_of_the_worker_and_of_the_api_have_the_indexes_of_the_request(service: Service) -> None:
    texts = [None, "a", BAD, 7, BAD, "four"]
    job = await service.submit(text=texts, on_error="skip")
    assert job["items"]["total"] == 6
    result = (await service.look(job["id"], wait=5))["result"]
    assert [error["index"] for error in result["errors"]] == [0, 2, 3, 4]
    assert [row and row[1] for row in result["embeddings"]] == [None, 1, None, None, None, 4]
    (listed,) = (await service.http.get("/jobs")).json()["jobs"]
    assert listed["items"] == {"total": 6, "done": 2, "failed": 4}


async def test_a_url_that_is_not_fetched_in_time_fails_alone() -> None:
    async with serve(fetcher=Site(Settings()), request_timeout=0.4) as service:
        body = {"image": ["https://a.b/slow", "https://a.b/good"], "on_error": "skip"}
        result = (await service.http.post("/clip/embed_image", json=body)).json()
        assert result["embeddings"] == [None, [0, 4]]
        assert result["errors"] == [
            {"code": "late", "message": "The images could not be fetched within 0.3 s.", "index": 0}
        ]


async def test_without_a_good_item_the_first_error_is_that_of_all(service: Service) -> None:
    body: dict[str, Any] = {"text": [None, 7], "on_error": "skip"}
    response = await service.http.post("/clip/embed_text", json=body)
    assert response.status_code == 400
    assert response.json() == {
        "message": "Field 'text' must hold text here; it holds null.",
        "code": "bad_input",
        "index": 0,
    }
    headers = {"Idempotency-Key": "k"}
    for status in (202, 200):
        response = await service.http.post("/jobs", json={"task": "embed_text", **body}, headers=headers)
        assert response.status_code == status
        document = response.json()
        assert document["state"] == "failed"
        assert document["items"] == {"total": 2, "done": 0, "failed": 2}
        assert document["error"]["message"] == "Field 'text' must hold text here; it holds null."
        assert document["error"]["index"] == 0
    assert len((await service.http.get("/jobs")).json()["jobs"]) == 1
    assert service.broker.sent == []
    assert await service.redis.hget("cq:load", f"{MODEL}:background") == b"0"


def test_the_first_error_of_a_failed_job_is_the_first_items() -> None:
    refused = [{"code": "bad_input", "message": "API", "index": 1}]
    own = {"code": "bad_input", "message": "worker", "index": 1}
    job = Job(Kind.EMBED_TEXT, MODEL, 2, state=State.FAILED, on_error=OnError.SKIP, error=own, refused=refused)
    assert complete_job(job).error == refused[0]
    assert complete_result(job, JobResult(error=own, errors=[own])).errors[1]["index"] == 2
    job.error = {**own, "index": 0}
    assert complete_job(job).error == job.error
    job.error = {"code": "late", "message": "late", "index": None}
    shown = complete_job(job)
    assert shown.error == job.error
    assert (shown.total, shown.failed) == (3, 1)
    assert complete_job(shown) == shown


async def test_an_error_in_a_named_prompt_names_the_prompt(service: Service) -> None:
    subject = {"subject": "a", "subject_type": "text"}
    for prompts, message in [
        ({"x": "a", "y": BAD}, "refused by the worker (prompt 'y')"),
        ({"y": None}, "Field 'prompt' must hold text here; it holds null. (prompt 'y')"),
    ]:
        response = await service.http.post("/clip/compare", json={**subject, "prompt": prompts})
        assert response.status_code == 400
        assert response.json()["message"] == message
    images = {"good": IMAGE, "bad": "https://nobody.invalid/"}
    for task in ({}, {"task": "compare"}):
        body = {**subject, **task, "prompt_type": "image", "prompt": images}
        response = await service.http.post("/jobs" if task else "/clip/compare", json=body)
        assert response.status_code == 400
        assert response.json()["index"] == 1
        assert response.json()["message"].endswith("(prompt 'bad')")
    job = await service.submit(task="compare", **subject, prompt={"x": "a", "y": BAD})
    assert (await service.look(job["id"], wait=5))["error"]["message"] == "refused by the worker (prompt 'y')"


async def test_prompts_may_have_the_names_of_an_images_fields(service: Service) -> None:
    body = {"subject": "a", "subject_type": "text", "prompt": {"type": "cat", "value": "dog"}}
    assert (await service.http.post("/clip/compare", json=body)).json()["similarity"] == {"type": 0.0, "value": 0.1}
    image = {**body, "prompt": IMAGE, "prompt_type": "image"}
    assert (await service.http.post("/clip/compare", json=image)).json()["similarity"] == [0.0]


def test_items_without_an_error_are_the_inputs() -> None:
    items = FetchedItems.of(["a", ClipError("no", index=1), b"c"], RequestItems([], ["x"]))
    assert (items.inputs.items, items.inputs.names) == (["a", b"c"], ["x"])
    items.raise_if_none()
    with pytest.raises(ClipError, match="no"):
        FetchedItems.of([ClipError("no", index=0)], RequestItems([])).raise_if_none()
