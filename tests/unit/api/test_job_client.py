"""Waiting for a result whose message does not come, and how the client is made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from clip_queue.api import job_client
from clip_queue.api.items import FetchedItems
from clip_queue.api.job_client import JobClient
from clip_queue.api.proofs import Modality
from clip_queue.shared import ops
from clip_queue.shared.errors import Cancelled, Late, Unavailable
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, State
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Op

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
    assert service.client.proofs.latest(MODEL, Modality.TEXT) > 0


async def test_the_store_is_read_once_more_before_a_request_is_late(service: Service) -> None:
    request = call(service, timeout=2.0)
    job_id = await accepted(service)
    await service.redis.hdel(f"cq:job:{job_id}", "reply")
    await service.worker.work([job_id])
    assert (await request).dimension == 2


async def test_a_message_before_the_end_changes_nothing(service: Service) -> None:
    request = call(service, timeout=2.0)
    job_id = await accepted(service)
    await service.worker.claim([job_id])
    await wake(service, job_id)
    with pytest.raises(Late, match=rf"^No result within 2 s; job {job_id} was running\.$"):
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
    request = call(service, timeout=2.0)
    job_id = await accepted(service)
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


Event = Callable[[], Awaitable[object]]


@contextmanager
def meanwhile(service: Service, before: Event | None = None, after: Event | None = None) -> Iterator[None]:
    """Let something happen once, before or after the store is read for a job's outcome: before the client knows it."""
    execute, events = service.client.store.execute, {"before": before, "after": after}

    async def interposed(op: Op[Any]) -> Any:
        outcome = op.commands[-1][0] == "GET"
        if outcome and (event := events.pop("before", None)):
            await event()
        try:
            return await execute(op)
        finally:
            if outcome and (event := events.pop("after", None)):
                await event()

    service.client.store.execute = interposed  # type: ignore[method-assign]
    yield
    service.client.store.execute = execute  # type: ignore[method-assign]


async def claimed(service: Service) -> Event:
    """The request's job is at work. What is returned ends it, and waits until the request has been told."""
    (claim,) = await service.worker.claim([await accepted(service)])
    assert claim.job
    assert claim.inputs
    job, inputs = claim.job, claim.inputs

    async def finish() -> None:
        await service.worker.finish(job, inputs)
        (reply,) = service.client.replies._pending[job.id]
        await until(lambda: reply.message)

    return finish


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_result_that_comes_during_the_last_look_at_the_store_is_the_answer(
    service: Service, moment: str
) -> None:
    request = call(service, timeout=1.5)
    with meanwhile(service, **{moment: await claimed(service)}):
        assert (await request).dimension == 2


async def test_a_result_that_comes_while_the_store_cannot_be_read_any_more_is_the_answer(service: Service) -> None:
    request = call(service, timeout=1.5)
    finish = await claimed(service)

    async def finish_and_break() -> None:
        await finish()
        service.server.connected = False

    with meanwhile(service, before=finish_and_break):
        assert (await request).dimension == 2
    service.server.connected = True


async def test_a_result_that_comes_while_a_message_without_one_is_looked_after_is_the_answer(service: Service) -> None:
    request = call(service)
    finish = await claimed(service)
    with meanwhile(service, after=finish):
        await wake(service, service.broker.sent[-1][1][0])
        assert (await request).dimension == 2


async def test_a_result_of_which_no_message_came_is_found_after_a_while(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the reply list expired while this process was paused."""
    monkeypatch.setattr(job_client, "LOOK_INTERVAL", 0.2)
    monkeypatch.setattr(job_client, "CHECK_INTERVAL", 0.05)
    request = call(service, timeout=60)
    job_id = await accepted(service)
    await service.redis.hdel(f"cq:job:{job_id}", "reply")
    await service.worker.work([job_id])
    assert (await asyncio.wait_for(request, 5)).dimension == 2


async def without_worker(service: Service) -> None:
    """The worker's lease has ended, and the API has seen it."""
    await service.store.execute(ops.deregister(WORKER))
    await service.client.registry.refresh()


async def test_a_request_whose_model_has_no_worker_for_too_long_is_refused_and_its_job_cancelled() -> None:
    async with serve(restart_grace=0.5) as service:
        request = call(service, timeout=60)
        job_id = await accepted(service)
        await without_worker(service)
        with pytest.raises(
            Unavailable, match=rf"^No live worker serves model '{MODEL}' \(served now: none\)\.$"
        ) as caught:
            await asyncio.wait_for(request, 10)
        assert caught.value.retry_after == 5
        assert (await service.store.execute(ops.view(job_id))).job.state is State.CANCELLED


async def test_a_request_whose_worker_comes_back_in_time_is_answered() -> None:
    async with serve(restart_grace=4.0) as service:
        request = call(service, timeout=60)
        job_id = await accepted(service)
        await without_worker(service)
        await asyncio.sleep(2.2)
        assert not request.done()
        await service.worker.announce()
        await service.client.registry.refresh()
        await asyncio.sleep(2.2)
        assert not request.done(), "the time begins anew with each worker"
        await service.worker.work([job_id])
        assert (await request).dimension == 2


async def test_a_result_that_comes_before_its_job_can_be_cancelled_is_the_answer() -> None:
    async with serve(restart_grace=0.0) as service:
        request = call(service, timeout=60)
        job_id = await accepted(service)
        await service.redis.hdel(f"cq:job:{job_id}", "reply")
        await service.worker.work([job_id])
        await without_worker(service)
        assert (await asyncio.wait_for(request, 10)).dimension == 2


async def test_at_the_deadline_a_request_without_a_worker_is_refused_and_not_late(service: Service) -> None:
    request = call(service, timeout=0.5)
    await accepted(service)
    await without_worker(service)
    with pytest.raises(Unavailable, match=r"^No live worker serves"):
        await request


async def test_the_time_of_a_request_counts_from_its_beginning(service: Service) -> None:
    service.worker.running.clear()
    began = time.monotonic() - 4.5
    work = service.client.call(Kind.EMBED_TEXT, MODEL, FetchedItems(Inputs(["cat"])), "owner", timeout=5.0, began=began)
    with pytest.raises(Late, match=r"^No result within 5 s; job"):
        await asyncio.wait_for(work, 3)
    job = (await service.store.execute(ops.view(await accepted(service)))).job
    assert 0 < job.deadline - job.created <= 500 + 1000 * job_client.LATER


async def test_a_result_from_a_cache_is_no_computation(service: Service) -> None:
    request = call(service)
    (claimed,) = await service.worker.claim([await accepted(service)])
    assert claimed.job is not None
    result = JobResult("f", b"\0" * 8, 2, timings={"queue": 0.1, "forward": 0.0})
    await service.store.execute(ops.finish([ops.Completion(claimed.job.id, State.SUCCEEDED, result, 1)], WORKER))
    assert (await request).vectors == b"\0" * 8
    assert service.client.proofs.latest(MODEL, Modality.TEXT) == float("-inf")


async def test_the_job_of_a_request_is_interactive_and_kept_for_a_short_time() -> None:
    async with serve(sync_ttl=7.0, result_ttl=70.0) as service:
        request = call(service)
        job: Job = (await service.store.execute(ops.view(await accepted(service)))).job
        assert (job.lane, job.owner, job.ttl) == ("interactive", "owner", 7000)
        assert job.deadline - job.created == 5000 + 1000 * job_client.LATER
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
