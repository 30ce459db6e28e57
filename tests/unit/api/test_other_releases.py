"""What a newer release has written: it is shown with its own words, or fails one request, and ends no task."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict

import msgpack
import pytest

from clip_queue.shared import ops
from clip_queue.shared.errors import Unreadable
from clip_queue.shared.lane import Lane
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.reconciler import ReconcilePass
from clip_queue.shared.settings import Settings
from clip_queue.shared.workers import WorkerInfo, workers

from .service import HOUR, MODEL, Service, until

INFO = ModelInfo(MODEL, "shipped:x", "f", 2, 77, (32, 32), "fp32")


async def later(service: Service, job_id: str, **fields: str) -> None:
    await service.redis.hset(f"cq:job:{job_id}", mapping=fields)  # type: ignore[misc, arg-type]


async def test_a_job_of_an_unknown_kind_is_shown_with_its_own_words(service: Service) -> None:
    job = await service.submit()
    assert (await service.look(job["id"], wait=5))["state"] == "succeeded"
    await later(service, job["id"], kind="embed_sound", lane="urgent", on_error="retry", of_later="\x00")
    document = await service.look(job["id"])
    assert (document["task"], document["priority"], document["on_error"]) == ("embed_sound", "urgent", "retry")
    assert document["state"] == "succeeded"
    page = (await service.http.get("/jobs")).json()
    assert [found["task"] for found in page["jobs"]] == ["embed_sound"]
    result = await service.http.get(f"/jobs/{job['id']}/result")
    assert result.status_code == 200
    array = await service.http.get(f"/jobs/{job['id']}/result", headers={"Accept": "application/x-npy"})
    assert array.status_code == 400
    assert "'embed_sound'" in array.json()["message"]
    events = await service.http.get(f"/jobs/{job['id']}/events")
    assert '"task":"embed_sound"' in events.text


async def test_a_state_of_a_later_release_is_shown(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit()
    await later(service, job["id"], state="paused")
    assert (await service.look(job["id"]))["state"] == "paused"
    cancelled = await service.http.delete(f"/jobs/{job['id']}")
    assert cancelled.status_code == 409
    assert "paused" in cancelled.json()["message"]


async def test_a_record_that_cannot_be_read_is_left_out_of_a_list(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = await service.submit(), await service.submit(text="dog")
    await service.redis.hdel(f"cq:job:{bad['id']}", "total")  # type: ignore[misc]
    page = (await service.http.get("/jobs")).json()
    assert [found["id"] for found in page["jobs"]] == [good["id"]]
    assert "a job is left out of a list: The job's record has no field 'total'." in caplog.text
    response = await service.http.get(f"/jobs/{bad['id']}")
    assert (response.status_code, response.json()["message"]) == (500, "The job's record has no field 'total'.")


async def test_a_result_that_cannot_be_read_fails_its_request_alone(service: Service) -> None:
    service.worker.running.clear()
    request = asyncio.create_task(service.http.post("/clip/embed_text", json={"text": "cat"}))
    await until(lambda: service.broker.sent)
    (job_id,) = service.client.replies._pending
    await service.redis.rpush(service.client.replies.address, job_id.encode() + b"\xc1\xc1", b"", b"\xff" * 40)  # type: ignore[misc]
    response = await asyncio.wait_for(request, 10)
    assert response.status_code == 500
    assert "msgpack cannot be read" in response.json()["message"]
    assert service.client.replies.alive
    service.worker.running.set()
    assert (await service.http.post("/clip/embed_text", json={"text": "cat"})).status_code == 200


async def test_workers_that_cannot_be_read_are_passed_over_with_one_line(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    good = asdict(WorkerInfo("new", "h", 1, "cpu", models=[INFO])) | {"later": {"x": 1}}
    good["models"] = [{**asdict(INFO), "name": "new-model", "later": 1}, {"name": "odd"}, 3]
    records = {"a": b"\xc1", "b": msgpack.packb([1]), "c": msgpack.packb({"id": "c"}), "d": msgpack.packb(good)}
    for name, data in records.items():
        await service.store.execute(ops.beat(name, data, HOUR, []))
    for _ in range(3):
        found = {info.id: info for info in await service.store.execute(workers())}
    assert found.keys() == {"worker", "new"}
    assert [model.name for model in found["new"].models] == ["new-model"]
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "passed over" in r.message]
    assert len(lines) == len(set(lines)), lines
    assert any("no field 'host'" in line or "WorkerInfo" in line for line in lines), lines


@pytest.mark.parametrize("size", [[], [1], [1, 2, 3], "x"])
def test_an_image_size_that_is_none_is_named(size: object) -> None:
    with pytest.raises(Unreadable, match="image_size"):
        ModelInfo.from_json({**asdict(INFO), "image_size": size})


async def test_a_job_of_an_unknown_lane_is_sent_again_where_it_waits(service: Service) -> None:
    service.worker.running.clear()
    job = await service.submit()
    await later(service, job["id"], lane="urgent", sent="0")
    reconciling = ReconcilePass([MODEL], Settings())
    while (op := reconciling.op) is not None:
        reconciling.advance(await service.store.execute(op))
    assert [(model, str(lane), ids) for model, lane, ids in reconciling.resend] == [(MODEL, "urgent", [job["id"]])]
    assert reconciling.resend[0][1] not in list(Lane)


async def test_a_damaged_record_does_not_end_reconciling(service: Service) -> None:
    service.worker.running.clear()
    jobs = [await service.submit(text=text) for text in ("a", "b", "c", "d", "e")]
    for job, field in zip(jobs, ("lane", "attempts", "created", "total", "ttl"), strict=True):
        await service.redis.hdel(f"cq:job:{job['id']}", field)  # type: ignore[misc]
        await later(service, job["id"], state="running", worker="dead", sent="0")
    reconciling = ReconcilePass([MODEL], Settings())
    while (op := reconciling.op) is not None:
        reconciling.advance(await service.store.execute(op))
    assert {i for _, _, ids in reconciling.resend for i in ids} == {job["id"] for job in jobs[1:]}
