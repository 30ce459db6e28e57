"""The real application in this process: its store is on fakeredis, and the broker and the worker are the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import fakeredis
import httpx
import numpy as np
from fastapi import FastAPI
from redis.exceptions import RedisError

from clip_queue.api.app import create_app
from clip_queue.api.job_client import JobClient
from clip_queue.api.publisher import CoalescingPublisher
from clip_queue.api.reply_listener import ReplyListener
from clip_queue.shared import comparison, ops
from clip_queue.shared.errors import BadInput
from clip_queue.shared.fetch import Fetcher
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, OnError, State
from clip_queue.shared.messages import TASK
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore, Op
from clip_queue.shared.workers import WorkerInfo

T = TypeVar("T")

MODEL = "emoji-mini"
WORKER = "worker"
FINGERPRINT = "fingerprint"
BAD = "bad text"  # the worker refuses this item
HOUR = 3600.0


class Broker:
    """In the place of Celery's consumer: keeps the messages that a store has pushed."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[str]]] = []  # queue and references
        self.messages: asyncio.Queue[list[str]] = asyncio.Queue()

    async def take(self, redis: Any) -> None:
        """Take what waits in the queues."""
        for queue in sorted(await redis.keys("clip.*")):
            while data := await redis.rpop(queue):
                task, (model, lane, references) = read(data)
                assert task == TASK
                assert queue.decode() == f"clip.{model}.{lane}"
                self.sent.append((queue.decode(), references))
                self.messages.put_nowait(references)


class ConsumedStore(AsyncStore):
    """A store whose messages the broker takes before an operation returns."""

    def __init__(self, client: Any, broker: Broker) -> None:
        super().__init__(client)
        self._broker = broker

    async def execute(self, op: Op[T]) -> T:
        try:
            return await super().execute(op)
        finally:
            with contextlib.suppress(RedisError):
                await self._broker.take(self.client)


def read(data: bytes) -> tuple[str, tuple[str, str, list[str]]]:
    """The task of a message, and its arguments: model, lane, references."""
    message = json.loads(data)
    return message["headers"]["task"], tuple(json.loads(message["body"])[0])


class Worker:
    """Claims the jobs of each message and ends them, except those of kinds in ``hanging``.

    While ``running`` is clear, it only receives.
    """

    def __init__(self, store: AsyncStore, broker: Broker) -> None:
        self._store = store
        self._broker = broker
        self.running = asyncio.Event()
        self.running.set()
        self.hanging: set[Kind] = set()

    async def announce(self, model: str = MODEL, rate: float = 0.0) -> None:
        info = ModelInfo(model, f"shipped:{model}", FINGERPRINT, 2, 77, (32, 32), "fp32")
        worker = WorkerInfo(WORKER, "host", 1, "cpu", models=[info], rate=rate)
        await self._store.execute(ops.beat(WORKER, worker.pack(), HOUR, []))

    async def run(self) -> None:
        """Work until the broker's messages end with an empty one."""
        while ids := await self._broker.messages.get():
            await self.running.wait()
            await self.work(ids)

    async def claim(self, ids: Sequence[str]) -> list[ops.Claimed]:
        return await self._store.execute(ops.claim(ids, WORKER, 3))

    async def work(self, ids: Sequence[str]) -> None:
        for claimed in await self.claim(ids):
            if claimed.job and claimed.inputs and claimed.job.kind not in self.hanging:
                await self.finish(claimed.job, claimed.inputs)

    async def finish(self, job: Job, inputs: Inputs) -> None:
        result = answer(job, inputs)
        state = State.FAILED if result.error else State.SUCCEEDED
        failed = len(result.errors)
        await self._store.execute(
            ops.finish([ops.Completion(job.id, state, result, job.total - failed, failed)], WORKER)
        )


def answer(job: Job, inputs: Inputs) -> JobResult:
    """Row i is (i, length of item i); the cosines of a comparison are 0.0, 0.1, 0.2 and so on."""
    bad = [i for i, item in enumerate(inputs.items) if item == BAD]
    index = comparison.caller_index if job.kind is Kind.COMPARE else int
    errors = [BadInput("refused by the worker", index=index(i)).to_wire() for i in bad]
    if errors and job.on_error is OnError.FAIL:
        return JobResult(error=errors[0], names=inputs.names)
    timings = {"queue": 0.001, "forward": 0.002}
    if job.kind is Kind.COMPARE:
        cosines = [i / 10 for i in range(job.total - 1)]
        return JobResult(FINGERPRINT, similarity=cosines, names=inputs.names, timings=timings)
    rows = np.array([[i, len(item)] for i, item in enumerate(inputs.items) if i not in bad], dtype="<f4")
    return JobResult(FINGERPRINT, rows.tobytes(), 2 if len(rows) else 0, errors=errors, timings=timings)


@dataclass
class Service:
    app: FastAPI
    http: httpx.AsyncClient
    client: JobClient
    server: fakeredis.FakeServer
    store: AsyncStore
    redis: fakeredis.FakeAsyncRedis
    broker: Broker
    worker: Worker

    async def submit(self, **body: object) -> dict[str, Any]:
        """Submit a job that must be accepted; its document."""
        response = await self.http.post("/jobs", json={"task": "embed_text", "text": "cat", **body})
        assert response.status_code == 202, response.text
        document: dict[str, Any] = response.json()
        return document

    async def kinds(self) -> list[str]:
        """The kinds of all jobs that were sent, in order."""
        ids = [job_id for _, references in self.broker.sent for job_id in references]
        return [(await self.store.execute(ops.view(job_id))).job.kind for job_id in ids]

    async def look(self, job_id: str, **query: Any) -> dict[str, Any]:
        response = await self.http.get(f"/jobs/{job_id}", params=query)
        assert response.status_code == 200, response.text
        document: dict[str, Any] = response.json()
        return document


@asynccontextmanager
async def serve(*, worker: bool = True, fetcher: Fetcher | None = None, **settings: object) -> AsyncIterator[Service]:
    """The service.

    Args:
        worker: whether a live worker is there.
        fetcher: fetches images; by default a real one.
    """
    server = fakeredis.FakeServer()
    redis = fakeredis.FakeAsyncRedis(server=server)
    store = AsyncStore(redis)
    broker = Broker()
    clients: list[JobClient] = []

    def connect(settings: Settings) -> JobClient:
        own = ConsumedStore(fakeredis.FakeAsyncRedis(server=server), broker)
        replies = ReplyListener(fakeredis.FakeAsyncRedis(server=server), block=0.05)
        clients.append(JobClient(settings, own, CoalescingPublisher(own), replies, fetcher or Fetcher(settings)))
        return clients[0]

    worked = Worker(store, broker)
    task = asyncio.create_task(worked.run())
    if worker:
        await worked.announce()
    else:
        worked.running.clear()
    app = create_app(Settings.model_validate(settings), connect=connect)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        await clients[0].registry.refresh()
        yield Service(app, http, clients[0], server, store, redis, broker, worked)
        server.connected = True
    worked.running.set()
    broker.messages.put_nowait([])
    await task
    await store.close()


async def until(condition: Callable[[], Awaitable[object]] | Callable[[], object], timeout: float = 5.0) -> None:
    """Wait until a condition is true."""
    async with asyncio.timeout(timeout):
        while True:
            result = condition()
            if await result if isinstance(result, Awaitable) else result:
                return
            await asyncio.sleep(0.01)
