"""Polling jobs, their results, cancelling and listing."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import numpy as np
import pytest

from clip_queue.api.job_document import array, document
from clip_queue.shared import ops, submissions
from clip_queue.shared.errors import BadInput
from clip_queue.shared.job import Job, JobResult, Kind, OnError, State

from .service import BAD, FINGERPRINT, MODEL, Service, serve, until

NPY = {"Accept": "application/x-npy"}
NOWHERE = "0" * 32


def unknown(job_id: str) -> dict[str, str]:
    return {"message": f"No job {job_id!r}: it never was, or its result has expired.", "code": "unknown_job"}


async def npy(service: Service, job_id: str) -> Any:
    response = await service.http.get(f"/jobs/{job_id}/result", headers=NPY)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-npy"
    assert response.headers["X-Clip-Queue-Fingerprint"] == FINGERPRINT
    return np.load(io.BytesIO(response.content))


async def test_a_long_poll_ends_when_the_state_changes(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit(text=["cat", "four"])
    poll = asyncio.create_task(service.look(job["id"], wait=30))
    await until(lambda: service.redis.exists(f"cq:watch:{job['id']}"))
    (claimed,) = await service.worker.claim([job["id"]])
    running = await asyncio.wait_for(poll, 5)
    assert running["state"] == "running"
    assert running["attempts"] == 1
    assert running["queue"] is None
    assert claimed.job is not None
    assert claimed.inputs is not None
    await service.worker.finish(claimed.job, claimed.inputs)
    done = await service.look(job["id"], wait=30)
    assert done["state"] == "succeeded"
    assert done["items"] == {"total": 2, "done": 2, "failed": 0}
    assert done["timings"] == {"queue": 0.001, "forward": 0.002}
    assert done["fingerprint"] == FINGERPRINT
    assert done["result"]["embeddings"] == [[0, 3], [1, 4]]
    assert done["expires"] > done["finished"] >= done["started"] >= done["created"]


async def test_a_long_poll_is_cut_by_the_setting() -> None:
    async with serve(max_wait=0.1) as service:
        service.worker.running.clear()
        job = await service.submit()
        assert (await service.look(job["id"], wait=1e9))["state"] == "queued"
        for wrong in ("nan", "-1"):
            assert (await service.http.get(f"/jobs/{job['id']}", params={"wait": wrong})).status_code == 422


async def test_a_long_poll_of_a_job_that_disappears_ends(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit()
    poll = asyncio.create_task(service.http.get(f"/jobs/{job['id']}", params={"wait": 30}))
    await until(lambda: service.redis.exists(f"cq:watch:{job['id']}"))
    await service.store.execute(submissions.discard([job["id"]]))
    await service.redis.rpush(service.client.replies.address, job["id"])
    response = await asyncio.wait_for(poll, 5)
    assert (response.status_code, response.json()) == (404, unknown(job["id"]))


async def test_a_result_is_json_or_an_array(service: Service) -> None:
    job = await service.submit(text=["cat", "four"])
    await service.look(job["id"], wait=5)
    response = await service.http.get(f"/jobs/{job['id']}/result")
    assert response.json()["embeddings"] == [[0, 3], [1, 4]]
    assert response.headers["X-Clip-Queue-Model"] == MODEL
    assert np.array_equal(await npy(service, job["id"]), np.array([[0, 3], [1, 4]], np.float32))
    compare = await service.submit(task="compare", subject="a", subject_type="text", prompt=["b", "c"])
    await service.look(compare["id"], wait=5)
    assert np.array_equal(await npy(service, compare["id"]), np.array([0, 0.1], np.float32))


async def test_skipped_items_are_null_in_json_and_nan_in_an_array(service: Service) -> None:
    job = await service.submit(text=["cat", BAD, "four"], on_error="skip")
    found = await service.look(job["id"], wait=5)
    assert found["state"] == "succeeded"
    assert found["items"] == {"total": 3, "done": 2, "failed": 1}
    assert found["result"]["embeddings"] == [[0, 3], None, [2, 4]]
    assert found["result"]["errors"] == [{"code": "bad_input", "message": "refused by the worker", "index": 1}]
    rows = await npy(service, job["id"])
    assert np.isnan(rows[1]).all()
    assert rows[[0, 2]].tolist() == [[0, 3], [2, 4]]


async def test_a_result_of_only_skipped_items(service: Service) -> None:
    job = await service.submit(text=[BAD, BAD], on_error="skip")
    found = await service.look(job["id"], wait=5)
    assert found["result"]["embeddings"] == [None, None]
    assert (await npy(service, job["id"])).shape == (2, 0)


async def test_a_job_without_a_result_says_why(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit(text=["cat", BAD])
    path = f"/jobs/{job['id']}/result"
    response = await service.http.get(path)
    assert (response.status_code, response.json()) == (
        409,
        {"message": "The job has no result; it is queued", "code": "job_finished"},
    )
    service.worker.running.set()
    failed = await service.look(job["id"], wait=5)
    if failed["state"] == "running":
        failed = await service.look(job["id"], wait=5)
    assert failed["error"] == {"code": "bad_input", "message": "refused by the worker", "index": 1}
    response = await service.http.get(path)
    assert response.json() == {
        "message": "The job has no result; it is failed: refused by the worker",
        "code": "job_finished",
    }


async def test_a_result_that_was_evicted_is_unknown(service: Service) -> None:
    job = await service.submit()
    await service.look(job["id"], wait=5)
    await service.redis.delete(f"cq:out:{job['id']}")
    response = await service.http.get(f"/jobs/{job['id']}/result")
    assert (response.status_code, response.json()) == (404, unknown(job["id"]))


async def test_what_is_no_job_is_unknown(service: Service) -> None:
    for method, path in [("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")]:
        response = await service.http.request(method, f"/jobs/{NOWHERE}{path}")
        assert (response.status_code, response.json()) == (404, unknown(NOWHERE))


async def test_a_job_is_cancelled_once(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit()
    response = await service.http.delete(f"/jobs/{job['id']}")
    assert response.json()["state"] == "cancelled"
    assert response.json()["error"]["message"] == "The job was cancelled."
    again = await service.http.delete(f"/jobs/{job['id']}")
    assert again.status_code == 409
    assert again.json() == {"message": "The job has ended already: it is cancelled.", "code": "job_finished"}


async def test_a_deadline_that_passes_is_the_jobs_error(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit(deadline_s=0.001)
    await asyncio.sleep(0.01)
    service.worker.running.set()
    assert (await service.look(job["id"], wait=5))["error"]["message"] == (
        "The job's deadline passed before it was done."
    )


async def test_a_job_that_loses_each_worker_fails(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit()
    await service.redis.hset(f"cq:job:{job['id']}", "attempts", 3)
    service.worker.running.set()
    assert (await service.look(job["id"], wait=5))["error"]["message"] == (
        "The job's worker was lost each time it was tried; it is not tried again."
    )


@pytest.mark.parametrize(
    ("accept", "array"),
    [
        ("application/x-npy", True),
        ("APPLICATION/X-NPY", True),
        ("application/json, application/x-npy", True),
        ("application/json;q=0.5, application/x-npy", True),
        ("application/json, application/x-npy;q=0.1", False),
        ("application/x-npy;q=0", False),
        ("application/x-npyfoo", False),
        ("*/*", False),
    ],
)
async def test_a_result_is_an_array_for_who_would_rather_have_one(service: Service, accept: str, array: bool) -> None:
    job = await service.submit()
    await service.look(job["id"], wait=5)
    response = await service.http.get(f"/jobs/{job['id']}/result", headers={"Accept": accept})
    assert response.headers["content-type"] == ("application/x-npy" if array else "application/json")
    assert response.headers["vary"] == "Accept"


async def test_jobs_are_listed_newest_first_by_state_and_page(service: Service) -> None:
    service.worker.running.clear()
    ids = []
    for place in range(3):
        ids.append((await service.submit())["id"])
        await service.redis.zadd("cq:jobs:open", {ids[-1]: place + 1})
    await service.http.delete(f"/jobs/{ids[0]}")
    first = (await service.http.get("/jobs", params={"limit": 2})).json()
    assert [job["id"] for job in first["jobs"]] == [ids[2], ids[1]]
    second = (await service.http.get("/jobs", params={"limit": 2, "cursor": first["cursor"]})).json()
    assert [job["id"] for job in second["jobs"]] == [ids[0]]
    assert second["cursor"] is None
    cancelled = (await service.http.get("/jobs", params={"state": "cancelled"})).json()
    assert [job["id"] for job in cancelled["jobs"]] == [ids[0]]
    gone = "0:" + "0" * 32
    assert (await service.http.get("/jobs", params={"cursor": gone})).json() == {"jobs": [], "cursor": None}
    for cut in (first["cursor"].partition(":")[0], "no cursor", ":", f"{first['cursor']} "):
        refused = await service.http.get("/jobs", params={"cursor": cut})
        assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["query", "cursor"])
    assert (await service.http.get("/jobs", params={"limit": 0})).status_code == 422


@pytest.mark.parametrize("kind", [Kind.EMBED_DATASET, Kind.EMBED_SHARD])
def test_a_bulk_job_counts_rows_and_has_no_array(kind: Kind) -> None:
    job = Job(kind, MODEL, 10, on_error=OnError.SKIP, state=State.SUCCEEDED, created=1, finished=1001, done=9, failed=1)
    out = document(ops.View(job, None, 0), JobResult(FINGERPRINT))
    assert out["result"] == {"inference_id": job.id, "frame_id": None, "time": 1.0, "rows": 9, "failed": 1}
    with pytest.raises(BadInput, match=r"^The vectors of a bulk run are in its output folder\.$"):
        array(job, JobResult(FINGERPRINT))
