"""What the store holds now, and what it has counted."""

from __future__ import annotations

import fakeredis
import pytest

from clip_queue.shared import ops, submissions
from clip_queue.shared.census import Census, census
from clip_queue.shared.held import ByteLimits
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.store import Store
from clip_queue.shared.workers import workers

MODEL = "org/clip:large"


@pytest.fixture
def store() -> Store:
    return Store(fakeredis.FakeRedis())


def look(store: Store, *models: str) -> Census:
    return store.execute(census(models))


def accept(store: Store, lane: Lane, items: int = 1) -> str:
    job = Job(Kind.EMBED_TEXT, MODEL, items, lane, ttl=60_000)
    held = ByteLimits(10**9, 1)
    store.execute(submissions.accept([submissions.Submission(job, Inputs(["x"] * items), 100, bytes=held)]))
    return job.id


def test_an_empty_store_has_nothing(store: Store) -> None:
    found = look(store, MODEL)
    assert (found.held, found.limit, found.unfinished, found.totals) == (0, None, {MODEL: 0}, {})
    assert [(lane.lane, lane.items, lane.waiting, lane.oldest) for lane in found.lanes] == [
        (lane, 0, 0, 0.0) for lane in Lane
    ]
    assert look(store).lanes == []


def test_lanes_are_told_apart_and_ends_are_counted(store: Store) -> None:
    first = accept(store, Lane.INTERACTIVE, 3)
    accept(store, Lane.INTERACTIVE)
    accept(store, Lane.BACKGROUND)
    store.client.zincrby(
        f"cq:queued:{MODEL}:background", -5000, store.client.zrange(f"cq:queued:{MODEL}:background", 0, 0)[0]
    )
    store.execute(ops.beat("w", b"x", 60, []))
    store.execute(ops.claim([first], "w", 3))
    store.execute(ops.finish([ops.Completion(first, State.SUCCEEDED, JobResult(), 3)], "w"))
    found = look(store, MODEL, "other")
    lanes = {(lane.model, lane.lane): lane for lane in found.lanes}
    assert lanes[MODEL, "interactive"].items == lanes[MODEL, "interactive"].waiting == 1
    assert 5.0 <= lanes[MODEL, "background"].oldest < 60
    assert lanes["other", "background"].items == 0
    assert found.unfinished == {MODEL: 2, "other": 0}
    assert found.totals == {("succeeded", "interactive", MODEL): 1}
    assert found.held > 0


def test_a_worker_whose_lease_ran_out_is_counted_once_and_one_that_left_is_not(store: Store) -> None:
    for name in "lost", "left":
        store.execute(ops.beat(name, b"x", 60, []))
    store.execute(ops.deregister("left"))
    store.client.delete("cq:worker:lost")
    for _ in range(3):
        store.execute(workers())
    assert look(store).totals == {("worker_lost", "", ""): 1}
