"""Submitting jobs: what is accepted, what is refused, and repeated submissions."""

from __future__ import annotations

from typing import Any

import pytest

from clip_queue.api.publisher import CoalescingPublisher
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import State

from .service import MODEL, ConsumedStore, Service, serve, until

TEXT = {"task": "embed_text", "text": ["cat", "dog"]}


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


async def test_an_accepted_job_has_a_document_and_a_place_in_the_queue(service: Service) -> None:
    service.worker.running.clear()
    response = await service.http.post("/jobs", json={**TEXT, "deadline_s": 60, "on_error": "skip"})
    document = response.json()
    assert response.status_code == 202
    assert response.headers["Location"] == f"/jobs/{document['id']}"
    assert (document["task"], document["model"], document["state"]) == ("embed_text", MODEL, "queued")
    assert (document["priority"], document["on_error"]) == ("background", "skip")
    assert document["items"] == {"total": 2, "done": 0, "failed": 0}
    assert document["queue"]["position"] == 0
    assert document["queue"]["age_s"] >= 0
    assert document["deadline"] > document["created"]
    assert document["created"].endswith("Z")
    empty = ["started", "finished", "expires", "progress", "fingerprint", "error", "result"]
    assert [document[name] for name in empty] == [None] * 7
    assert service.broker.sent == [(f"clip.{MODEL}.background", [document["id"]])]


async def test_a_job_of_a_configured_model_waits_for_its_worker() -> None:
    async with serve(worker=False) as service:
        assert (await service.submit())["state"] == "queued"


async def test_the_shortest_deadline_is_a_deadline(service: Service) -> None:
    service.worker.running.clear()
    assert (await service.submit(deadline_s=0.0001))["deadline"] is not None


async def test_the_same_key_with_the_same_body_is_the_same_job(service: Service) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await service.http.post("/jobs", json=TEXT, headers=headers)
    again = await service.http.post("/jobs", json=TEXT, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    other = await service.http.post("/jobs", json={**TEXT, "text": "other"}, headers=headers)
    assert other.status_code == 422
    assert other.json() == {
        "message": "This Idempotency-Key was used before with another body; use a new key.",
        "code": "idempotency_key_reused",
    }
    assert len(service.broker.sent) == 1


async def test_a_key_whose_job_is_gone_makes_a_new_one(service: Service) -> None:
    headers = {"Idempotency-Key": "k"}
    first = (await service.http.post("/jobs", json=TEXT, headers=headers)).json()["id"]
    await service.redis.delete(f"cq:job:{first}")
    response = await service.http.post("/jobs", json=TEXT, headers=headers)
    assert response.status_code == 202
    assert response.json()["id"] != first


async def test_a_job_that_the_store_loses_at_once_is_unknown(service: Service) -> None:
    service.worker.running.clear()

    class Losing(ConsumedStore):
        """Deletes each job that it has accepted."""

        async def execute(self, op: Any) -> Any:
            found = await super().execute(op)
            for _, job_ids in service.broker.sent:
                for job_id in job_ids:
                    service.server.dbs[0].pop(f"cq:job:{job_id}".encode(), None)
            return found

    service.client.publisher = CoalescingPublisher(Losing(service.redis, service.broker))
    response = await service.http.post("/jobs", json=TEXT)
    job_id = service.broker.sent[0][1][0]
    assert response.status_code == 404
    assert response.json() == {
        "message": f"No job '{job_id}': it never was, or its result has expired.",
        "code": "unknown_job",
    }


async def test_the_interactive_lane_is_for_those_whom_the_settings_allow() -> None:
    interactive = {**TEXT, "priority": "interactive"}
    async with serve() as closed:
        response = await closed.http.post("/jobs", json=interactive)
        message = "Field 'priority' may not be 'interactive' here (setting interactive_jobs)."
        assert (response.status_code, response.json()) == (400, {"message": message, "code": "bad_input"})
        wrong = await closed.http.post("/jobs", json={**TEXT, "priority": "bulk"})
        assert wrong.status_code == 422
        assert wrong.json()["detail"] == [
            {"loc": ["body", "embed_text", "priority"], "msg": "Input should be 'background'", "type": "enum"}
        ]
    async with serve(interactive_jobs=True) as open_:
        assert (await open_.http.post("/jobs", json=interactive)).json()["priority"] == "interactive"
        wrong = await open_.http.post("/jobs", json={**TEXT, "priority": ["x"]})
        assert wrong.json()["detail"][0]["msg"] == "Input should be 'background' or 'interactive'"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"task": "sing"}, 422, "'task' should be 'embed_image', 'embed_text', 'compare' or 'embed_dataset'"),
        ({}, 422, "'task' should be 'embed_image', 'embed_text', 'compare' or 'embed_dataset'"),
        ({**TEXT, "deadline_s": 0}, 422, "greater than 0"),
        ({**TEXT, "deadline_s": True}, 422, "should be a number"),
        ({**TEXT, "text": ["a"] * 5}, 400, "Field 'text' holds 5 items; at most 4 fit in a request."),
        ({**TEXT, "clip_version_id": "nothing"}, 404, "Model 'nothing' is not known here."),
        ({**TEXT, "clip_version_id": "RN50"}, 503, f"No live worker serves model 'RN50' (served now: {MODEL})."),
        ({"task": "embed_image", "image": nested(300)}, 400, "The body is nested too deeply."),
    ],
)
async def test_what_cannot_be_a_job_is_refused(body: object, status: int, says: str) -> None:
    async with serve(max_job_items=4) as service:
        response = await service.http.post("/jobs", json=body)
        assert response.status_code == status
        assert says in response.text
        assert service.broker.sent == []


async def test_a_store_that_does_not_answer_leaves_no_job(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has written the job, and only its reply is lost."""
    service.worker.running.clear()
    execute, store = service.client.store.execute, service.client.store

    async def lost(op: Any) -> Any:
        await execute(op)
        monkeypatch.setattr(store, "execute", execute)
        raise Unavailable("The job store cannot be reached (TimeoutError); try again.", retry_after=1)

    monkeypatch.setattr(store, "execute", lost)
    response = await service.http.post("/jobs", json=TEXT, headers={"Idempotency-Key": "k"})
    assert response.status_code == 503
    assert response.json()["code"] == "unavailable"
    assert response.headers["Retry-After"] == "1"

    async def gone() -> bool:
        return (await service.http.get("/jobs")).json() == {"jobs": [], "cursor": None}

    await until(gone)
    again = await service.http.post("/jobs", json=TEXT, headers={"Idempotency-Key": "k"})
    assert again.status_code == 202, "the key of a discarded job is free"


async def test_a_comparison_and_images_are_jobs_too(service: Service) -> None:
    compare = await service.submit(task="compare", subject="a", subject_type="text", prompt={"x": "b"})
    image = await service.submit(task="embed_image", image=["AAAA", "BBBB"])
    assert (await service.look(compare["id"], wait=5))["result"]["similarity"] == {"x": 0.0}
    assert (await service.look(image["id"], wait=5))["state"] == State.SUCCEEDED
