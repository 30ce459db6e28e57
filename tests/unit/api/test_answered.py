"""What is removed from the store once it is answered."""

from __future__ import annotations

import asyncio

from clip_queue.api import answered
from clip_queue.api.answered import AnsweredJobs
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.store import Op


class Store:
    def __init__(self) -> None:
        self.away = False
        self.removed: list[list[str]] = []

    async def execute(self, op: Op[None]) -> None:
        if self.away:
            raise Unavailable("away")
        ((_, _, _, *ids),) = op.commands
        self.removed.append(ids)


async def test_jobs_are_removed_together() -> None:
    store = Store()
    jobs = AnsweredJobs(store, interval=0.01)  # type: ignore[arg-type]
    jobs.start()
    for number in range(answered.BATCH + 1):
        jobs.add(str(number))
    while sum(map(len, store.removed)) <= answered.BATCH:
        await asyncio.sleep(0.01)
    assert [len(ids) for ids in store.removed] == [answered.BATCH, 1]
    assert jobs.alive
    await jobs.close()


async def test_the_end_of_the_process_removes_what_waits() -> None:
    store = Store()
    jobs = AnsweredJobs(store, interval=60)  # type: ignore[arg-type]
    jobs.start()
    jobs.add("a")
    await jobs.close()
    assert store.removed == [["a"]]


async def test_a_store_that_is_away_is_not_waited_for() -> None:
    store = Store()
    jobs = AnsweredJobs(store, interval=0.01)  # type: ignore[arg-type]
    jobs.start()
    store.away = True
    jobs.add("a")
    await asyncio.sleep(0.05)
    store.away = False
    jobs.add("b")
    while not store.removed:
        await asyncio.sleep(0.01)
    assert store.removed == [["b"]]
    await jobs.close()


async def test_no_more_than_so_many_wait() -> None:
    store = Store()
    jobs = AnsweredJobs(store, interval=60)  # type: ignore[arg-type]
    for number in range(answered.MOST + 5):
        jobs.add(str(number))
    await jobs.close()
    removed = [job_id for ids in store.removed for job_id in ids]
    assert removed == [str(number) for number in range(5, answered.MOST + 5)]
