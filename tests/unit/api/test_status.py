"""``GET /status``: what it says, to whom, and that it answers whatever is away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from clip_queue.api.recent import Counts, Recent, sample
from clip_queue.shared import ops
from clip_queue.shared.census import Census, LaneCensus
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.workers import WorkerInfo

from .service import FINGERPRINT, HOUR, MODEL, Service, serve


async def status(service: Service, **headers: str) -> dict[str, Any]:
    response = await service.http.get("/status", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    found: dict[str, Any] = response.json()
    return found


async def announce(service: Service, **more: Any) -> None:
    info = ModelInfo(MODEL, f"shipped:{MODEL}", FINGERPRINT, 2, 77, (32, 32), "fp32")
    worker = WorkerInfo("w", "host", 1, "cuda:0", models=[info], items=70, batches=10, busy=3.5, rate=20.0, **more)
    await service.store.execute(ops.beat("w", worker.pack(), HOUR, []))
    await service.client.registry.refresh()


async def test_it_tells_models_workers_lanes_and_the_store() -> None:
    async with serve(max_queued_items=50, max_items=3) as service:
        await announce(service, logit_scales={MODEL: 25.5}, gpu={"busy": 0.5})
        service.worker.running.clear()
        await service.submit(text=["cat", "dog"])
        found = await status(service)
    model = found["models"][0]
    assert (model["name"], model["default"], model["fingerprints"]) == (MODEL, True, [FINGERPRINT])
    assert (model["logit_scale"], model["image_size"], model["dimension"]) == (25.5, [32, 32], 2)
    assert "emoji" in model["notice"]
    worker = next(each for each in found["workers"] if each["id"] == "w")
    assert (worker["items"], worker["batches"], worker["busy_s"], worker["rate"]) == (70, 10, 3.5, 20.0)
    assert (worker["device"], worker["models"], worker["gpu"]) == ("cuda:0", [MODEL], {"busy": 0.5})
    lane = next(each for each in found["lanes"] if each["lane"] == "background")
    assert (lane["items"], lane["limit"], lane["waiting"]) == (2, 50, 1)
    assert found["store"]["held_bytes"] > 0
    assert found["limits"]["max_items"] == 3
    assert found["searches"] == found["runs"] == found["recent"] == []


async def test_a_worker_of_an_earlier_release_tells_no_scale() -> None:
    async with serve() as service:
        assert (await status(service))["models"][0]["logit_scale"] is None


async def test_it_says_what_is_wrong_and_answers_all_the_same() -> None:
    async with serve(models="emoji-mini,RN50") as service:
        found = await status(service)
        assert found["ready"] is False
        assert "No live worker serves model 'RN50'" in found["problem"]
        absent = found["models"][1]
        assert (absent["name"], absent["workers"], absent["fingerprints"]) == ("RN50", 0, [])
        service.server.connected = False
        found = await status(service)
        assert found["store"] is None
        assert found["lanes"] == []
        assert not found["ready"]


async def test_a_slow_probe_holds_nobody_up() -> None:
    async with serve() as service:
        service.worker.running.clear()
        found = await asyncio.wait_for(status(service), 3)
    assert (found["ready"], found["problem"]) == (False, "not checked yet")


async def test_it_asks_for_a_key_where_keys_are_set_and_shows_no_job() -> None:
    async with serve(api_keys="one,two") as service:
        assert (await service.http.get("/status")).status_code == 401
        one = {"Authorization": "Bearer one"}
        response = await service.http.post("/jobs", json={"task": "embed_text", "text": "a secret of one"}, headers=one)
        job = response.json()["id"]
        text = str(await status(service, Authorization="Bearer two"))
    assert job not in text
    assert "secret of one" not in text


async def test_the_last_minutes_are_told_from_a_time_on() -> None:
    async with serve() as service:
        ring = service.app.state.recent
        await ring.close()
        for text in ("cat", 7):
            await service.http.post("/clip/embed_text", json={"text": text})
        ring._interval = 0.05
        ring.start()
        async with asyncio.timeout(20):
            while len(ring.since(0)) < 3:
                await asyncio.sleep(0.02)
        await ring.close()
        samples = (await service.http.get("/status?since=0")).json()["recent"]
        later = (await service.http.get("/status", params={"since": samples[0]["at"]})).json()["recent"]
        assert (await service.http.get("/status?since=x")).status_code == 422
    assert len(samples) >= 3
    assert later == samples[1:]
    assert samples[0]["lanes"] == {"interactive": 0, "background": 0, "bulk": 0}


def test_a_sample_is_what_has_grown() -> None:
    before = Counts(
        100.0, 10, {"queue_full": 1}, {"succeeded": 5}, {"a": (100.0, 10.0, 5.0)}, {("a", "forward"): (10.0, 1.0)}
    )
    now = Counts(
        105.0,
        20,
        {"queue_full": 3, "bad_image": 1},
        {"succeeded": 12, "failed": 1},
        {"a": (200.0, 20.0, 7.5), "b": (1000.0, 10.0, 99.0)},
        {("a", "forward"): (20.0, 1.5), ("b", "forward"): (1.0, 60.0)},
    )
    found = sample(before, now, Census(77, None, [LaneCensus("m", "bulk", 4, 1, 0.0)], {}), at=1000.0)
    assert found == {
        "at": 1000.0,
        "requests_per_s": 2.0,
        "failures": {"queue_full": 2, "bad_image": 1},
        "ended": {"succeeded": 7, "failed": 1},
        "items_per_s": 20.0,  # of what `b` did before it was seen nothing is known
        "batch": 10.0,
        "busy": 0.5,
        "workers": {"a": {"batch": 10.0, "busy": 0.5}},
        "stages": {"forward": 0.05},
        "lanes": {"bulk": 4},
        "held_bytes": 77,
    }
    unknown = sample(replace(before, ended=None), now, None, at=1000.0)
    assert unknown["ended"] == {}  # jobs of the time before are not taken for those of the last seconds
    idle = sample(now, Counts(110.0, 20, now.failures, now.ended, now.workers, now.stages), None, at=1005.0)
    assert (idle["requests_per_s"], idle["batch"], idle["lanes"], idle["stages"]) == (0.0, None, None, {})


async def test_what_cannot_be_counted_is_left_out_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as service:
        ring = Recent(service.client, service.app.state.metrics, interval=0.02)
        broken = [True]
        monkeypatch.setattr("clip_queue.api.recent.stages_of", lambda workers: {} if not broken else 1 / 0)
        ring.start()
        await asyncio.sleep(0.1)
        assert ring.since(0) == []
        broken.clear()
        async with asyncio.timeout(20):
            while not ring.since(0):
                await asyncio.sleep(0.02)
        await ring.close()


async def test_it_is_in_the_documentation() -> None:
    async with serve(api_keys="one") as service:
        document = (await service.http.get("/openapi.json")).json()
        response: httpx.Response = await service.http.get("/status", headers={"Authorization": "Bearer one"})
    described = document["paths"]["/status"]["get"]
    assert described["security"]
    schemas = document["components"]["schemas"]
    assert set(response.json()) == set(schemas["StatusDocument"]["properties"])
    assert set(sample(Counts(0.0), Counts(1.0), None, at=1.0)) == set(schemas["Sample"]["properties"])
