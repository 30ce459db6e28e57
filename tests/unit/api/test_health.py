"""Health and readiness."""

from __future__ import annotations

import asyncio

from clip_queue.api.health import Readiness

from .service import MODEL, Service, serve


async def test_the_process_is_healthy_without_a_worker() -> None:
    async with serve(worker=False) as service:
        assert (await service.http.get("/healthz")).json() == {"status": "healthy"}


async def test_a_worker_that_embeds_makes_the_service_ready(service: Service) -> None:
    responses = await asyncio.gather(*(service.http.get("/readiness") for _ in range(3)))
    assert [response.json() for response in responses] == [{"status": "ready"}] * 3
    assert len(service.broker.sent) == 1, "concurrent callers share one check"


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
    assert problem.startswith("No result within 0.1 s; job ")
    service.worker.running.set()
    assert await readiness.problem() == problem, "the check is valid for some seconds"


async def test_a_model_that_has_just_computed_a_result_is_not_probed(service: Service) -> None:
    assert (await service.http.post("/clip/embed_text", json={"text": "a"})).status_code == 200
    assert await Readiness(service.client).problem() is None
    assert len(service.broker.sent) == 1
    assert await Readiness(service.client, cache_ttl=0).problem() is None
    assert len(service.broker.sent) == 2


async def test_a_store_that_cannot_be_reached_makes_the_service_not_ready(service: Service) -> None:
    service.server.connected = False
    assert await Readiness(service.client).problem() == "The job store cannot be reached (ConnectionError); try again."


async def test_a_task_that_has_ended_makes_the_service_not_ready(service: Service) -> None:
    await service.client.registry.close()
    assert await Readiness(service.client).problem() == "a task of the API has ended"
