"""``GET /metrics``: what is counted, under which labels, and who may read it."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clip_queue.shared import ops
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.stages import StageTimes
from clip_queue.shared.workers import WorkerInfo

from .service import FINGERPRINT, HOUR, MODEL, Service, serve

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(service: Service, **headers: str) -> Samples:
    response = await service.http.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def one(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of a name that have these labels."""
    found = [v for (n, have), v in samples.items() if n == name and labels.items() <= dict(have).items()]
    assert found, (name, labels, sorted({n for n, _ in samples}))
    return sum(found)


async def test_requests_are_counted_by_route_status_and_code() -> None:
    async with serve() as service:
        for text in "cat", 7:
            await service.http.post("/clip/embed_text", json={"text": text})
        await service.http.get("/jobs/0123456789abcdef0123456789abcdef")
        samples = await scrape(service)
    requests = "clip_queue_requests_total"
    assert one(samples, requests, method="POST", route="/clip/embed_text", status="200", code="") == 1
    assert one(samples, requests, route="/clip/embed_text", status="422", code="invalid") == 1
    assert one(samples, requests, route="/jobs/{job_id}", status="404", code="unknown_job") == 1
    assert one(samples, "clip_queue_request_duration_seconds_count", route="/clip/embed_text") == 2
    assert one(samples, "clip_queue_jobs_ended_total", model=MODEL, lane="interactive", state="succeeded") >= 1


async def test_nothing_of_a_clients_becomes_a_label() -> None:
    secret = "s3cret"
    async with serve(api_keys=f"{secret},other", cors_origins=["*"]) as service:
        await service.http.request(secret.upper(), f"/{secret}?api_key={secret}")
        await service.http.get(f"/jobs/{secret}", headers={"Authorization": f"Bearer {secret}"})
        body = {"text": secret, "clip_version_id": secret, "api_key": secret}
        await service.http.post("/clip/embed_text", json=body, headers={"X-Request-Id": secret})
        response = await service.http.get("/metrics", headers={"Authorization": f"Bearer {secret}"})
    assert response.status_code == 200
    assert secret not in response.text.lower()
    assert 'method="other",route="none"' in response.text


async def test_who_may_read_it() -> None:
    async with serve(api_keys="k,l") as service:
        assert (await service.http.get("/metrics")).status_code == 401
        await scrape(service, Authorization="Bearer k")
    async with serve(api_keys="k,l", metrics="open") as service:
        await scrape(service)
    async with serve(metrics="off") as service:
        response = await service.http.get("/metrics")
        assert (response.status_code, response.json()) == (
            404,
            {"message": "Metrics are off (setting metrics).", "code": "http"},
        )


async def test_a_store_that_is_away_is_told() -> None:
    async with serve() as service:
        service.server.connected = False
        samples = await scrape(service)
        assert one(samples, "clip_queue_store_up") == 0
        assert not any(name == "clip_queue_items" for name, _ in samples)


async def test_a_configured_model_without_a_worker_has_none() -> None:
    async with serve(worker=False) as service:
        samples = await scrape(service)
    assert one(samples, "clip_queue_workers", model=MODEL) == 0
    assert one(samples, "clip_queue_items_limit") == 4096


async def test_what_a_worker_writes_is_shown_by_worker() -> None:
    stages = StageTimes()
    for seconds in 0.003, 0.004, 99.0:
        stages.add(MODEL, "interactive", "embed_text", {"forward": seconds})
    info = ModelInfo(MODEL, f"shipped:{MODEL}", FINGERPRINT, 2, 77, (32, 32), "fp32")
    worker = WorkerInfo(
        "w",
        "host",
        1,
        "cuda",
        models=[info],
        items=7,
        batches=3,
        busy=1.5,
        stages=stages.to_wire(),
        cache_hits=5,
        gpu={"memory_used": 3.0, "busy": 0.5},
    )
    async with serve() as service:
        await service.store.execute(ops.beat("w", worker.pack(), HOUR, []))
        await service.client.registry.refresh()
        samples = await scrape(service)
    assert one(samples, "clip_queue_workers", model=MODEL, device="cuda") == 1
    assert one(samples, "clip_queue_worker_items_total", worker="w") == 7
    assert one(samples, "clip_queue_worker_busy_seconds_total", worker="w") == 1.5
    assert one(samples, "clip_queue_worker_text_cache_hits_total", worker="w") == 5
    assert one(samples, "clip_queue_gpu_busy_ratio", worker="w") == 0.5
    assert one(samples, "clip_queue_gpu_memory_used_bytes", worker="w") == 3
    assert not any(name == "clip_queue_gpu_memory_bytes" for name, _ in samples)
    bucket = "clip_queue_stage_duration_seconds_bucket"
    own = {"worker": "w", "lane": "interactive", "kind": "embed_text", "stage": "forward"}
    assert [one(samples, bucket, le=le, **own) for le in ("0.001", "0.005", "30.0", "+Inf")] == [0, 2, 2, 3]
    assert one(samples, "clip_queue_stage_duration_seconds_sum", **own) == pytest.approx(99.007)


async def test_applications_of_one_process_count_for_themselves() -> None:
    async with serve() as first, serve() as second:
        await first.http.get("/healthz")
        samples = await scrape(second)
    assert not any(dict(labels).get("route") == "/healthz" for _, labels in samples)
