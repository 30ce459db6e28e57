"""Health and readiness."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from clip_queue.api.health import Readiness
from clip_queue.api.proofs import Modality, Proofs
from clip_queue.shared.errors import ClipError, MemoryFull, QueueFull
from clip_queue.shared.job import Inputs, JobResult, Kind

from .service import MODEL, Service, serve


async def test_the_process_is_healthy_without_a_worker() -> None:
    async with serve(worker=False) as service:
        assert (await service.http.get("/healthz")).json() == {"status": "healthy"}


async def test_a_worker_that_embeds_makes_the_service_ready(service: Service) -> None:
    responses = await asyncio.gather(*(service.http.get("/readiness") for _ in range(3)))
    assert [response.json() for response in responses] == [{"status": "ready"}] * 3
    assert sorted(await service.kinds()) == ["embed_image", "embed_text"], "concurrent callers share one check"


async def test_without_a_worker_the_service_is_not_ready() -> None:
    async with serve(worker=False) as service:
        response = await service.http.get("/readiness")
        message = f"No live worker serves model '{MODEL}' (served now: none)."
        assert (response.status_code, response.json()) == (503, {"status": "not ready", "message": message})
        assert response.headers["Retry-After"] == "2"


async def test_a_worker_that_does_not_answer_makes_the_service_not_ready(service: Service) -> None:
    service.worker.running.clear()
    readiness = Readiness(service.client, probe_timeout=0.1)
    problem = await readiness.problem()
    assert problem is not None
    for part in "images", "texts":
        assert f"Model '{MODEL}' does not compute {part}: No result within 0.1 s; job " in problem
    service.worker.running.set()
    assert await readiness.problem() == problem, "the check is valid for some seconds"


async def test_a_part_of_a_model_that_has_just_computed_a_result_is_not_probed(service: Service) -> None:
    body: dict[str, Any] = {"text": "a"}
    assert (await service.http.post("/clip/embed_text", json=body)).status_code == 200
    assert await Readiness(service.client).problem() is None
    assert await service.kinds() == ["embed_text", "embed_image"], "the second is the probe"
    assert await Readiness(service.client).problem() is None
    assert len(service.broker.sent) == 2, "a probe's result counts as any other"
    assert await Readiness(service.client, cache_ttl=0).problem() is None
    assert len(await service.kinds()) == 4


async def test_images_that_hang_make_the_service_not_ready_however_many_texts_flow(service: Service) -> None:
    service.worker.hanging.add(Kind.EMBED_IMAGE)
    readiness = Readiness(service.client, cache_ttl=0.1, probe_timeout=0.2)
    for _ in range(3):
        assert (await service.http.post("/clip/embed_text", json={"text": "a"})).status_code == 200
        problem = await readiness.problem()
        assert problem is not None
        assert problem.startswith(f"Model '{MODEL}' does not compute images: No result within 0.2 s; job ")
        assert "texts" not in problem
        await asyncio.sleep(0.11)
    service.worker.hanging.clear()
    assert await readiness.problem() is None


def test_a_comparison_proves_images_and_not_texts_which_may_come_from_a_cache() -> None:
    proofs = Proofs()
    result = JobResult(similarity=[0.1], timings={"forward": 0.1})
    proofs.add(MODEL, Inputs([b"image", "text"]), result)
    assert proofs.latest(MODEL, Modality.IMAGE) > 0
    assert proofs.latest(MODEL, Modality.TEXT) == float("-inf")
    proofs.add(MODEL, Inputs(["text", "text"]), JobResult(similarity=[0.1], timings={"forward": 0.0}))
    assert proofs.latest(MODEL, Modality.TEXT) == float("-inf"), "from the cache"
    proofs.add(MODEL, Inputs(["text", "text"]), result)
    assert proofs.latest(MODEL, Modality.TEXT) > 0
    assert proofs.latest("other", Modality.TEXT) == float("-inf")


async def test_a_store_that_cannot_be_reached_makes_the_service_not_ready(service: Service) -> None:
    service.server.connected = False
    assert await Readiness(service.client).problem() == "The job store cannot be reached (ConnectionError); try again."


async def test_a_task_that_has_ended_makes_the_service_not_ready(service: Service) -> None:
    await service.client.registry.close()
    assert await Readiness(service.client).problem() == "a task of the API has ended"


@pytest.mark.parametrize("error", [MemoryFull("The store is full: of 1 GB."), QueueFull("9 items are waiting.")])
async def test_a_door_that_is_shut_is_told_once_and_not_as_a_model_that_computes_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: ClipError
) -> None:
    async def refused(*_: object) -> None:
        raise error

    monkeypatch.setattr(service.client.publisher, "submit", refused)
    problem = await Readiness(service.client).problem()
    assert problem == f"New requests are refused ({error.code}): {error.message}"


async def test_the_log_says_once_why_it_is_not_ready(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    service.worker.running.clear()
    readiness = Readiness(service.client, cache_ttl=0, probe_timeout=0.05)
    with caplog.at_level("INFO", logger="clip_queue.api.health"):
        problem = await readiness.problem()
        assert problem is not None
        service.worker.running.set()
        wait = Readiness(service.client, cache_ttl=0)
        assert await wait.problem() is None
    assert [record.message for record in caplog.records] == [f"not ready: {problem}", "ready"]
