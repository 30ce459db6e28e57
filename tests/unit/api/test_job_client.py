"""Waiting for a result whose message does not come, and how the client is made."""

from __future__ import annotations

import asyncio

import pytest

from clip_queue.api.items import FetchedItems
from clip_queue.api.job_client import JobClient
from clip_queue.shared import ops
from clip_queue.shared.errors import Cancelled, Late, Unavailable
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, State
from clip_queue.shared.settings import Settings

from .service import MODEL, WORKER, Service, serve, until

LOST = r"^The job store has lost the job; send it again\.$"


def call(service: Service, timeout: float = 5.0) -> asyncio.Task[JobResult]:
    """A request whose job the worker does not take up by itself."""
    service.worker.running.clear()
    work = service.client.call(Kind.EMBED_TEXT, MODEL, FetchedItems(Inputs(["cat"])), "owner", timeout=timeout)
    return asyncio.create_task(work)


async def accepted(service: Service) -> str:
    """The id of the request's job, once it is in the queue."""
    await until(lambda: service.broker.sent)
    return service.broker.sent[-1][1][0]


async def wake(service: Service, job_id: str) -> None:
    """A message without a result."""
    await service.redis.rpush(service.client.replies.address, job_id)


async def test_a_result_whose_message_was_lost_is_read_from_the_store(service: Service) -> None:
    request = call(service)
    job_id = await accepted(service)
    await service.redis.hdel(f"cq:job:{job_id}", "reply")
    await service.worker.work([job_id])
    await asyncio.sleep(0.1)
    assert not request.done()
    await wake(service, job_id)
    assert (await request).dimension == 2
    assert service.client.computed(MODEL) > 0


async def test_the_store_is_read_once_more_before_a_request_is_late(service: Service) -> None:
    request = call(service, timeout=0.3)
    job_id = await accepted(service)
    await service.redis.hdel(f"cq:job:{job_id}", "reply")
    await service.worker.work([job_id])
    assert (await request).dimension == 2


async def test_a_message_before_the_end_changes_nothing(service: Service) -> None:
    request = call(service, timeout=0.3)
    job_id = await accepted(service)
    await service.worker.claim([job_id])
    await wake(service, job_id)
    with pytest.raises(Late, match=rf"^No result within 0\.3 s; job {job_id} was running\.$"):
        await request


async def test_a_job_that_ended_without_a_result_has_its_error(service: Service) -> None:
    request = call(service)
    job_id = await accepted(service)
    await service.store.execute(ops.cancel(job_id, "owner"))
    with pytest.raises(Cancelled, match=r"^The job was cancelled\.$"):
        await request


async def test_a_job_that_the_store_has_lost_is_to_be_sent_again(service: Service) -> None:
    request = call(service)
    job_id = await accepted(service)
    await service.redis.delete(f"cq:job:{job_id}")
    await wake(service, job_id)
    with pytest.raises(Unavailable, match=LOST) as caught:
        await request
    assert caught.value.retry_after == 1


async def test_a_result_that_was_evicted_is_no_empty_result(service: Service) -> None:
    request = call(service)
    job_id = await accepted(service)
    await service.redis.hdel(f"cq:job:{job_id}", "reply")
    await service.worker.work([job_id])
    await service.redis.delete(f"cq:out:{job_id}")
    await wake(service, job_id)
    with pytest.raises(Unavailable, match=LOST):
        await request


async def test_a_store_that_is_away_at_the_deadline_makes_the_request_late(service: Service) -> None:
    request = call(service, timeout=0.5)
    job_id = await accepted(service)
    await asyncio.sleep(0.2)
    service.server.connected = False
    message = rf"^Job {job_id} was accepted, but the job store cannot be reached now\.$"
    with pytest.raises(Late, match=message):
        await request


async def test_a_store_that_comes_back_in_time_is_asked_again(service: Service) -> None:
    request = call(service)
    job_id = await accepted(service)
    service.server.connected = False
    await asyncio.sleep(0.2)
    service.server.connected = True
    await service.worker.work([job_id])
    assert (await request).dimension == 2


async def test_a_result_from_a_cache_is_no_computation(service: Service) -> None:
    request = call(service)
    (claimed,) = await service.worker.claim([await accepted(service)])
    assert claimed.job is not None
    result = JobResult("f", b"\0" * 8, 2, timings={"queue": 0.1, "forward": 0.0})
    await service.store.execute(ops.finish([ops.Completion(claimed.job.id, State.SUCCEEDED, result, 1)], WORKER))
    assert (await request).vectors == b"\0" * 8
    assert service.client.computed(MODEL) == float("-inf")


async def test_the_job_of_a_request_is_interactive_and_kept_for_a_short_time() -> None:
    async with serve(sync_ttl=7.0, result_ttl=70.0) as service:
        request = call(service)
        job: Job = (await service.store.execute(ops.view(await accepted(service)))).job
        assert (job.lane, job.owner, job.ttl) == ("interactive", "owner", 7000)
        assert job.deadline - job.created == 5000
        assert (await service.store.execute(ops.list_jobs("owner", None, 9, "")))[0] == []
        request.cancel()


async def test_a_client_that_connects_itself_reaches_the_redis_of_its_settings(unused_tcp_port: int) -> None:
    url = f"redis://:secret@127.0.0.1:{unused_tcp_port}/0"
    client = JobClient.connect(Settings.model_validate({"redis_url": url, "redis_timeout": 0.2}))
    assert not client.alive
    with pytest.raises(Unavailable, match=r"^The job store cannot be reached \(\w+\); try again\.$") as caught:
        await client.registry.refresh()
    assert "secret" not in str(caught.value)
    await client.close()
