"""The publisher: which jobs go in one message, and what happens when the store fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import fakeredis
import pytest

from clip_queue.api.publisher import CoalescingPublisher
from clip_queue.shared import submissions
from clip_queue.shared.errors import ClipError, QueueFull, Unavailable
from clip_queue.shared.job import Inputs, Job, Kind
from clip_queue.shared.lane import Lane
from clip_queue.shared.store import Op

from .service import Broker, ConsumedStore, until

T = TypeVar("T")

MODEL = "m"


class SlowStore(ConsumedStore):
    """Carries out no operation before ``free`` is set. ``asked``: how many came."""

    def __init__(self, client: Any, broker: Broker) -> None:
        super().__init__(client, broker)
        self.free = asyncio.Event()
        self.asked = 0

    async def execute(self, op: Op[T]) -> T:
        self.asked += 1
        await asyncio.wait_for(self.free.wait(), 10)
        return await super().execute(op)


@dataclass
class Parts:
    server: fakeredis.FakeServer
    store: SlowStore
    broker: Broker

    def publisher(self, **options: int) -> CoalescingPublisher:
        return CoalescingPublisher(self.store, **options)

    async def began(self) -> None:
        await until(lambda: self.store.asked)

    async def keys(self) -> list[Any]:
        return list(await self.store.client.keys("cq:job:*"))


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    server = fakeredis.FakeServer()
    broker = Broker()
    it = Parts(server, SlowStore(fakeredis.FakeAsyncRedis(server=server), broker), broker)
    yield it
    it.store.free.set()
    await it.store.close()


def submission(
    lane: Lane = Lane.INTERACTIVE, limit: int = 1000, items: Sequence[bytes | str] = ("x",)
) -> submissions.Submission:
    return submissions.Submission(Job(Kind.EMBED_TEXT, MODEL, len(items), lane, ttl=60_000), Inputs(list(items)), limit)


def submit(publisher: CoalescingPublisher, count: int, **more: Any) -> list[asyncio.Task[submissions.Accepted]]:
    return [asyncio.create_task(publisher.submit(submission(**more))) for _ in range(count)]


async def errors(tasks: Sequence[asyncio.Task[submissions.Accepted]]) -> list[str]:
    """The messages of the tasks' errors."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, ClipError) for result in results), results
    return [str(result) for result in results]


async def test_jobs_that_arrive_while_others_are_written_go_together(parts: Parts) -> None:
    publisher = parts.publisher()
    first = submit(publisher, 1)
    await parts.began()
    rest = submit(publisher, 70)
    other = submit(publisher, 1, lane=Lane.BACKGROUND)
    await asyncio.sleep(0.1)
    parts.store.free.set()
    accepted = [job.job_id for job in await asyncio.gather(*first, *rest, *other)]
    messages = sorted(parts.broker.sent, key=lambda message: len(message[1]))
    assert [len(ids) for _, ids in messages] == [1, 1, 6, 64]
    assert sorted(job_id for _, ids in messages for job_id in ids) == sorted(accepted)
    await publisher.close()


async def test_large_inputs_make_smaller_messages(parts: Parts) -> None:
    publisher = parts.publisher()
    first = submit(publisher, 1)
    await parts.began()
    rest = submit(publisher, 3, items=[bytes(12 * 2**20)])
    await asyncio.sleep(0)
    parts.store.free.set()
    await asyncio.gather(*first, *rest)
    assert [len(ids) for _, ids in parts.broker.sent] == [1, 2, 1]


async def test_a_refused_or_a_repeated_job_is_not_published(parts: Parts) -> None:
    parts.store.free.set()
    publisher = parts.publisher()
    await publisher.submit(submission())
    with pytest.raises(QueueFull, match=r"^1 items of 'm' are waiting \(limit 1\); try again later\.$"):
        await publisher.submit(submission(limit=1))
    once = submission()
    keyed = [submissions.Submission(Job(Kind.EMBED_TEXT, MODEL, 1), once.inputs, 9, idempotency="k") for _ in range(2)]
    accepted = [await publisher.submit(it) for it in keyed]
    assert [it.duplicate for it in accepted] == [False, True]
    assert len(parts.broker.sent) == 2


async def test_too_many_submissions_that_wait_are_refused(parts: Parts) -> None:
    publisher = parts.publisher(max_pending=2)
    first = submit(publisher, 1)
    await parts.began()
    waiting = submit(publisher, 2)
    await asyncio.sleep(0)
    assert await errors(submit(publisher, 1)) == ["Too many requests wait for the queue; try again."]
    parts.store.free.set()
    await asyncio.gather(*first, *waiting)


async def test_a_store_that_fails_refuses_all_and_is_asked_to_discard(parts: Parts) -> None:
    publisher = parts.publisher()
    parts.store.free.set()
    parts.server.connected = False
    assert await errors(submit(publisher, 2)) == ["The job store cannot be reached (ConnectionError); try again."] * 2
    await publisher.close()
    parts.server.connected = True
    assert await parts.keys() == []


async def test_any_other_failure_refuses_the_job_too(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    publisher = parts.publisher()
    unpackable = submissions.Submission(Job(Kind.EMBED_TEXT, MODEL, 1), Inputs(["x"], [object()]), 9)  # type: ignore[list-item]
    with pytest.raises(Unavailable, match=r"^The job could not be queued \(TypeError\)\.$"):
        await publisher.submit(unpackable)
    assert "sending failed" in caplog.text
    parts.store.free.set()
    await publisher.submit(submission())


async def test_a_caller_that_has_left_before_its_turn_costs_nothing(parts: Parts) -> None:
    publisher = parts.publisher()
    first = submit(publisher, 1)
    await parts.began()
    left = submit(publisher, 1)
    await asyncio.sleep(0)
    left[0].cancel()
    parts.store.free.set()
    await asyncio.gather(*first)
    await publisher.close()
    assert len(await parts.keys()) == 1
    assert len(parts.broker.sent) == 1


async def test_a_caller_may_leave_while_its_job_is_sent(parts: Parts) -> None:
    publisher = parts.publisher()
    leaving = submit(publisher, 1)
    await parts.began()
    leaving[0].cancel()
    await asyncio.sleep(0)
    parts.store.free.set()
    await publisher.close()
    assert len(parts.broker.sent) == 1
