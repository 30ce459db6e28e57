"""The registry of live workers, and the reconciler of the API."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import fakeredis
import pytest

from clip_queue.api.reconciler import Reconciler
from clip_queue.api.registry import Registry
from clip_queue.shared import ops, submissions
from clip_queue.shared.errors import Unavailable, UnknownModel
from clip_queue.shared.job import Inputs, Job, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.loading import begin_loading, end_loading
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore, Op

from .service import MODEL, WORKER, Broker, ConsumedStore, Worker, serve, until

SETTINGS = Settings(models=[MODEL, "mine=a/b"], lease=1.2)


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


@pytest.fixture
async def store(server: fakeredis.FakeServer) -> AsyncIterator[AsyncStore]:
    it = AsyncStore(fakeredis.FakeAsyncRedis(server=server))
    yield it
    server.connected = True
    await it.close()


async def test_a_model_is_served_as_long_as_a_worker_lives(store: AsyncStore) -> None:
    registry = Registry(store, SETTINGS)
    with pytest.raises(Unavailable, match=r"^No live worker serves model 'emoji-mini' \(served now: none\)\.$"):
        await registry.resolve(None)
    assert await registry.resolve(None, later=True) == MODEL
    assert await registry.resolve("mine", later=True) == "mine"
    with pytest.raises(UnknownModel, match=r"^Model 'nothing' is not known here\.$"):
        await registry.resolve("nothing", later=True)
    await Worker(store, Broker()).announce("mine", rate=10)
    await registry.refresh()
    assert await registry.resolve("mine") == "mine"
    with pytest.raises(Unavailable, match=r"^No live worker serves model 'RN50' \(served now: mine\)\.$"):
        await registry.resolve("RN50", later=True)


class Counting(AsyncStore):
    """Counts the reads, each of which takes a moment."""

    reads = 0

    async def execute(self, op: Op[Any]) -> Any:
        self.reads += 1
        await asyncio.sleep(0.05)
        return await super().execute(op)


async def test_before_a_request_is_refused_the_workers_are_read_again(server: fakeredis.FakeServer) -> None:
    store = Counting(fakeredis.FakeAsyncRedis(server=server))
    registry = Registry(store, SETTINGS)
    await registry.refresh()
    with pytest.raises(UnknownModel):
        await registry.resolve("new")
    worker = Worker(store, Broker())
    await worker.announce()
    assert await registry.resolve(MODEL) == MODEL
    await worker.announce("new")
    assert await registry.resolve("new", later=True) == "new", "also a model of nobody's settings"
    store.reads = 0
    assert await registry.resolve("new") == "new"
    assert store.reads == 0, "what the list has needs no look"
    await store.close()


async def test_requests_that_look_again_share_a_read_and_one_that_leaves_does_not_end_it(
    server: fakeredis.FakeServer,
) -> None:
    store = Counting(fakeredis.FakeAsyncRedis(server=server))
    registry = Registry(store, SETTINGS)
    await Worker(store, Broker()).announce()
    store.reads = 0
    requests = [asyncio.create_task(registry.resolve(MODEL)) for _ in range(50)]
    await asyncio.sleep(0)
    requests[0].cancel()
    assert await asyncio.gather(*requests[1:]) == [MODEL] * 49
    assert store.reads == 1
    server.connected = False
    refused = await asyncio.gather(*(registry.resolve("mine") for _ in range(9)), return_exceptions=True)
    assert {str(error) for error in refused} == {"The job store cannot be reached (ConnectionError); try again."}
    assert store.reads == 2
    await registry.look_again()
    assert registry.models, "the last list stays"
    server.connected = True
    await registry.close()
    await store.close()


async def test_the_time_without_a_worker_counts_from_the_first_look_and_not_while_one_loads(
    server: fakeredis.FakeServer, store: AsyncStore
) -> None:
    registry = Registry(store, SETTINGS)

    async def absent() -> float:
        await registry.refresh()
        return registry.absent_for(MODEL)

    assert registry.absent_for(MODEL) == 0, "nothing was read"
    assert await absent() == 0, "the first look: before it, nothing is known"
    await asyncio.sleep(0.1)
    assert 0.1 <= await absent() < 5
    server.connected = False
    with pytest.raises(Unavailable):
        await registry.refresh()
    await asyncio.sleep(0.1)
    assert registry.absent_for(MODEL) == 0
    server.connected = True
    assert await absent() == 0, "leases ran out while the store was away"
    await asyncio.sleep(0.05)
    assert await absent() > 0
    await store.execute(begin_loading([MODEL]))
    assert await absent() == 0
    assert registry.absent_for("mine") > 0
    assert 0 < await store.client.ttl(f"cq:loading:{MODEL}") <= 60
    await store.execute(end_loading([MODEL]))
    await asyncio.sleep(0.05)
    assert await absent() > 0
    await Worker(store, Broker()).announce()
    assert await absent() == 0
    assert registry.workers


async def test_a_model_whose_worker_is_being_restarted_is_still_accepted_for_a_while(store: AsyncStore) -> None:
    registry = Registry(store, Settings(models=[MODEL, "mine=a/b"], restart_grace=0.6))
    worker = Worker(store, Broker())
    await worker.announce()
    await registry.refresh()
    await store.execute(ops.deregister(WORKER))
    await registry.refresh()
    assert not registry.models
    assert await registry.resolve(MODEL) == MODEL
    with pytest.raises(Unavailable, match="No live worker serves model 'mine'"):
        await registry.resolve("mine")  # of it there was none

    async def gone() -> bool:
        await registry.refresh()
        return registry.absent_for(MODEL) > 0.6

    await until(gone)
    with pytest.raises(Unavailable, match=f"No live worker serves model '{MODEL}'"):
        await registry.resolve(MODEL)
    await store.execute(begin_loading([MODEL]))
    assert await registry.resolve(MODEL) == MODEL, "one is being started"


async def test_when_to_try_again_follows_from_the_workers_rate(store: AsyncStore) -> None:
    registry = Registry(store, SETTINGS)
    assert registry.retry_after(MODEL, 100) == 5
    await Worker(store, Broker()).announce(rate=10)
    await registry.refresh()
    assert [registry.retry_after(MODEL, items) for items in (1, 25, 10_000)] == [1, 3, 60]
    assert registry.retry_after("mine", 100) == 5


async def test_workers_are_kept_for_a_while_when_the_store_cannot_be_reached(
    server: fakeredis.FakeServer, store: AsyncStore
) -> None:
    await Worker(store, Broker()).announce()
    registry = Registry(store, SETTINGS, poll_interval=0.02, keep=1.0)
    registry.start()
    await until(lambda: registry.models)
    server.connected = False
    await asyncio.sleep(0.1)
    assert registry.models
    await until(lambda: not registry.models)
    server.connected = True
    await until(lambda: registry.models)
    assert registry.alive
    await registry.close()
    assert not registry.alive


async def test_a_registry_that_was_never_read_knows_nobody(server: fakeredis.FakeServer, store: AsyncStore) -> None:
    server.connected = False
    registry = Registry(store, SETTINGS, poll_interval=0.02)
    registry.start()
    await asyncio.sleep(0.1)
    assert registry.workers == []
    await registry.close()


class Reconciled:
    """A reconciler with its parts, and jobs that it has to look after."""

    def __init__(self, store: AsyncStore) -> None:
        self.broker = Broker()
        self.store = ConsumedStore(store.client, self.broker)
        self.reconciler = Reconciler(self.store, Registry(store, SETTINGS), SETTINGS, period=0.05)

    async def lost(self, lane: Lane) -> str:
        """A job whose message was lost long ago."""
        job = Job(Kind.EMBED_TEXT, MODEL, 1, lane, ttl=60_000)
        accepting = submissions.accept([submissions.Submission(job, Inputs(["x"]), 9)], publish=False)
        await self.store.execute(accepting)
        await self.store.client.hset(f"cq:job:{job.id}", "sent", 0)
        return job.id


async def test_lost_jobs_are_sent_again_after_the_time_of_a_lease(
    store: AsyncStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    it = Reconciled(store)
    interactive, background = await it.lost(Lane.INTERACTIVE), await it.lost(Lane.BACKGROUND)
    await asyncio.sleep(0.2)  # what else is done before it starts
    began = time.monotonic()
    it.reconciler.start()
    await until(lambda: it.broker.sent)
    waited = time.monotonic() - began
    assert waited >= SETTINGS.lease, "a store that came back just now may not know its workers yet"
    await until(lambda: len(it.broker.sent) == 2)
    assert sorted(it.broker.sent) == [
        (f"clip.{MODEL}.background", [background]),
        (f"clip.{MODEL}.interactive", [interactive]),
    ]
    levels = {record.getMessage(): record.levelname for record in caplog.records}
    assert levels[f"sending 1 job(s) of clip.{MODEL}.interactive again"] == "WARNING"
    assert levels[f"sending 1 job(s) of clip.{MODEL}.background again"] == "INFO"
    await it.reconciler.close()


async def test_a_job_of_a_dead_worker_is_queued_again(store: AsyncStore) -> None:
    it = Reconciled(store)
    job_id = await it.lost(Lane.INTERACTIVE)
    await store.execute(ops.claim([job_id], WORKER, 3))
    it.reconciler.start()
    await until(lambda: it.broker.sent)
    assert (await store.execute(ops.view(job_id))).job.state is State.QUEUED
    await it.reconciler.close()


async def test_it_goes_on_when_the_store_fails(server: fakeredis.FakeServer, store: AsyncStore) -> None:
    it = Reconciled(store)
    job_id = await it.lost(Lane.INTERACTIVE)
    server.connected = False
    it.reconciler.start()
    await asyncio.sleep(SETTINGS.lease + 0.2)
    server.connected = True
    await until(lambda: it.broker.sent == [(f"clip.{MODEL}.interactive", [job_id])])
    assert it.reconciler.alive
    await it.reconciler.close()
    assert not it.reconciler.alive


async def test_the_doors_look_again_before_they_refuse_or_list() -> None:
    """The picture of the API is a minute old here."""
    async with serve(worker=False) as service:
        await service.client.registry.close()
        worker = service.worker
        await worker.announce()
        worker.running.set()
        assert (await service.http.post("/clip/embed_text", json={"text": "a"})).status_code == 200
        body = {"text": "a", "clip_version_id": "new"}
        assert (await service.http.post("/clip/embed_text", json=body)).status_code == 404
        await worker.announce("new")
        models = (await service.http.get("/model/registry")).json()["models"]
        assert [model["model_id"] for model in models] == ["clip/new"]
        await worker.announce("newer")
        for door, job in (("/clip/embed_text", {}), ("/jobs", {"task": "embed_text"})):
            response = await service.http.post(door, json={**job, "text": "a", "clip_version_id": "newer"})
            assert response.status_code in (200, 202), response.text
            await worker.announce("newest")
            await service.client.registry.refresh()
            await worker.announce("newer")
