"""The CLIP routes: their responses, their headers, and each error that they may return."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from clip_queue.api.items import FetchedItems
from clip_queue.api.requests import HEART
from clip_queue.shared.errors import BadImage
from clip_queue.shared.fetch import Fetcher
from clip_queue.shared.job import Inputs, Kind
from clip_queue.shared.models import NOTICES
from clip_queue.shared.settings import Settings

from .service import BAD, FINGERPRINT, MODEL, Service, serve, until

IMAGE = {"type": "base64", "value": HEART}


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    assert body.pop("code")
    assert body.keys() <= {"message", "index"}
    return body


async def test_texts_are_embedded_in_order(service: Service) -> None:
    response = await service.http.post("/clip/embed_text", json={"text": ["a", "four"]})
    assert response.status_code == 200
    body = response.json()
    assert list(body) == ["inference_id", "frame_id", "time", "embeddings"]
    assert body["embeddings"] == [[0, 1], [1, 4]]
    assert response.headers["X-Clip-Queue-Model"] == MODEL
    assert response.headers["X-Clip-Queue-Fingerprint"] == FINGERPRINT
    assert response.headers["X-Clip-Queue-Notice"] == NOTICES[MODEL]
    assert response.headers["Server-Timing"] == "queue;dur=1.00, forward;dur=2.00"
    assert [queue for queue, _ in service.broker.sent] == [f"clip.{MODEL}.interactive"]


async def test_one_text_and_one_image_need_no_list(service: Service) -> None:
    text = await service.http.post("/clip/embed_text", json={"text": "cat", "clip_version_id": MODEL})
    image = await service.http.post("/clip/embed_image", json={"image": IMAGE})
    assert text.json()["embeddings"] == [[0, 3]]
    assert image.json()["embeddings"][0][1] > 100


async def test_cosines_have_the_names_of_their_prompts(service: Service) -> None:
    unnamed = await service.http.post("/clip/compare", json={"subject": IMAGE, "prompt": ["cat", "dog"]})
    assert list(unnamed.json()) == ["inference_id", "frame_id", "time", "similarity", "parent_id"]
    assert unnamed.json()["similarity"] == [0.0, 0.1]
    named = await service.http.post("/clip/compare", json={"subject": IMAGE, "prompt": {"x": "cat", "y": "dog"}})
    assert named.json()["similarity"] == {"x": 0.0, "y": 0.1}
    images = {"subject": "heart", "subject_type": "text", "prompt": IMAGE, "prompt_type": "image"}
    assert (await service.http.post("/clip/compare", json=images)).json()["similarity"] == [0.0]


@pytest.mark.parametrize(
    ("field", "kind", "bad"), [("prompt", "image", "§§"), ("prompt", "text", "x" * 3000), ("prompt", "text", BAD)]
)
async def test_a_bad_prompt_has_an_index_and_a_bad_subject_none(
    service: Service, field: str, kind: str, bad: str
) -> None:
    """So whoever compares one with one knows which of both to mend."""
    good = {"subject": HEART, "subject_type": "image", "prompt": "cat", "prompt_type": "text"}
    prompt = await service.http.post("/clip/compare", json={**good, "prompt": bad, "prompt_type": kind})
    assert refusal(prompt, 400)["index"] == 0
    subject = await service.http.post("/clip/compare", json={**good, "subject": bad, "subject_type": kind})
    assert "index" not in refusal(subject, 400)


async def test_the_workers_error_is_the_callers_with_its_index(service: Service) -> None:
    body = refusal(await service.http.post("/clip/embed_text", json={"text": ["good", BAD]}), 400)
    assert body == {"message": "refused by the worker", "index": 1}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("embed_text", {"text": []}, "Field 'text' is empty: give at least one."),
        ("embed_text", {"text": ["a", "b", "c"]}, "Field 'text' holds 3 items; at most 2 fit in a request."),
        (
            "embed_text",
            {"text": "long text"},
            "Text input is too long for the model context length: 9 characters, 5 at most.",
        ),
        ("compare", {"subject": [IMAGE], "prompt": "a"}, "Field 'subject' must be one image or text, not a list."),
        ("compare", {"subject": IMAGE, "prompt": [{}]}, "Field 'prompt' must hold text here; it holds an object."),
        ("compare", {"subject": IMAGE, "prompt": [1.5]}, "Field 'prompt' must hold text here; it holds a number."),
        (
            "compare",
            {"subject": None, "subject_type": "text", "prompt": "a"},
            "Field 'subject' must hold text here; it holds null.",
        ),
        ("embed_image", {"image": "?"}, "Could not load input image. Cause: Malformed base64 input image."),
    ],
)
async def test_items_that_cannot_be_used_are_named(path: str, body: object, message: str) -> None:
    async with serve(max_texts=2, max_text_chars=5) as service:
        assert refusal(await service.http.post(f"/clip/{path}", json=body), 400)["message"] == message
        assert service.broker.sent == []


async def test_an_unknown_model_and_one_without_a_worker() -> None:
    async with serve(worker=False, models=f"{MODEL},other=a/b") as service:
        for model, status, message in [
            ("nothing", 404, "Model 'nothing' is not known here."),
            ("other", 503, "No live worker serves model 'other' (served now: none)."),
            ("ViT-B-16", 503, "No live worker serves model 'ViT-B-16' (served now: none)."),
        ]:
            response = await service.http.post("/clip/embed_text", json={"text": "a", "clip_version_id": model})
            assert refusal(response, status) == {"message": message}
        assert response.headers["Retry-After"] == "5"


async def test_a_full_queue_says_when_to_try_again() -> None:
    async with serve(max_queued_items=3) as service:
        await service.worker.announce(rate=0.5)
        await service.client.registry.refresh()
        service.worker.running.clear()
        first = asyncio.create_task(service.http.post("/clip/embed_text", json={"text": ["a", "b"]}))
        await until(lambda: service.broker.sent)
        response = await service.http.post("/clip/embed_text", json={"text": ["a", "b"]})
        assert refusal(response, 429) == {"message": f"2 items of '{MODEL}' are waiting (limit 3); try again later."}
        assert response.headers["Retry-After"] == "4"
        service.worker.running.set()
        assert (await first).status_code == 200


async def test_a_result_that_does_not_come_is_late() -> None:
    async with serve(request_timeout=0.2) as service:
        service.worker.running.clear()
        response = await service.http.post("/clip/embed_text", json={"text": "a"})
        job_id = service.broker.sent[0][1][0]
        assert refusal(response, 504) == {"message": f"No result within 0.2 s; job {job_id} was queued."}


async def test_a_caller_that_leaves_cancels_its_job(service: Service) -> None:
    service.worker.running.clear()
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": b'{"text": "a"}', "more_body": False}])

    async def receive() -> Any:
        if message := next(messages, None):
            return message
        await until(lambda: service.broker.sent)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/clip/embed_text", "headers": [], "query_string": b""}
    await service.app(scope, receive, send)
    assert (sent[0]["status"], sent[1]["body"]) == (409, b'{"message":"The job was cancelled.","code":"cancelled"}')


async def test_a_caller_that_leaves_when_the_store_cannot_be_reached_cancels_nothing(service: Service) -> None:
    service.worker.running.clear()

    async def disconnected() -> None:
        await until(lambda: service.broker.sent)
        service.server.connected = False

    items = FetchedItems(Inputs(["a"]))
    call = asyncio.create_task(service.client.call(Kind.EMBED_TEXT, MODEL, items, "open", disconnected))
    await until(lambda: service.broker.sent and not service.server.connected)
    await asyncio.sleep(0.1)
    service.server.connected = True
    service.worker.running.set()
    assert (await call).vectors


class Images(Fetcher):
    """Fetches from a table."""

    table: dict[str, bytes | BadImage]

    async def get(self, url: str) -> bytes:
        found = self.table[url]
        if isinstance(found, BadImage):
            raise found
        return found


async def test_images_are_fetched_by_url() -> None:
    fetcher = Images(Settings())
    fetcher.table = {"https://a.b/1": b"12", "https://a.b/2": b"123", "https://a.b/3": BadImage.because("gone")}
    async with serve(fetcher=fetcher) as service:
        good = {"image": ["https://a.b/1", IMAGE, {"type": "url", "value": "https://a.b/2"}]}
        response = await service.http.post("/clip/embed_image", json=good)
        rows = response.json()["embeddings"]
        assert [rows[0][1], rows[2][1]] == [2, 3]
        response = await service.http.post("/clip/embed_image", json={"image": [IMAGE, "https://a.b/3"]})
        assert refusal(response, 400) == {"message": "Could not load input image. Cause: gone", "index": 1}


async def test_a_store_that_cannot_be_reached_is_unavailable(service: Service) -> None:
    service.server.connected = False
    response = await service.http.post("/clip/embed_text", json={"text": "a"})
    message = "The job store cannot be reached (ConnectionError); try again."
    assert refusal(response, 503) == {"message": message}
    assert response.headers["Retry-After"] == "1"
