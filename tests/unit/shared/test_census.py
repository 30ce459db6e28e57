"""What the store holds now, and what it has counted."""

from __future__ import annotations

import fakeredis
import pytest

from clip_queue.shared import ops, runs, submissions
from clip_queue.shared.census import Census, census
from clip_queue.shared.held import ByteLimits
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.store import Store
from clip_queue.shared.workers import bury, workers

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
    assert store.execute(workers()) == []
    assert look(store).totals == {}, "who only looks does not judge"
    for _ in range(3):
        store.execute(bury())
    assert look(store).totals == {("worker_lost", "", ""): 1}


def renewed(store: Store, done: int, failed: int = 0, rate: float = 5.0) -> Job:
    """A run that a command leads, as far as it is."""
    run = Job(Kind.EMBED_DATASET, MODEL, 9, Lane.BULK, id="run", ttl=60_000, done=done, failed=failed)
    run.progress = {"rows_per_s": rate}
    store.execute(ops.renew_run(run, "leader", 60))
    return run


def waits(store: Store, seconds: float) -> None:
    """It has been this long since the rows of each run have grown."""
    for run in store.client.zrange("cq:live_runs", 0, -1):
        store.client.zincrby("cq:live_runs", -1000 * seconds, run)


def test_a_run_that_a_command_leads_is_seen_and_how_long_its_rows_have_not_grown(store: Store) -> None:
    renewed(store, 3)
    waits(store, 10)
    renewed(store, 3, rate=0.0)
    (run,) = look(store, MODEL).runs
    assert (run.model, run.rate) == (MODEL, 0.0)
    assert 10 <= run.stalled < 60
    renewed(store, 3, failed=1)
    (run,) = look(store, MODEL).runs
    assert (run.rate, run.stalled < 5) == (5.0, True)
    store.execute(ops.cancel("run", ""))
    assert look(store, MODEL).runs == []
    assert not store.client.exists("cq:live_runs")


def test_a_run_that_an_earlier_release_has_ended_is_forgotten(store: Store) -> None:
    renewed(store, 3)
    store.client.hset("cq:job:run", "state", "succeeded")
    assert look(store, MODEL).runs == []
    renewed(store, 3)
    store.client.delete("cq:job:run")
    assert look(store, MODEL).runs == []
    assert not store.client.exists("cq:live_runs")


def test_progress_that_says_no_speed_is_no_error(store: Store) -> None:
    renewed(store, 3)
    for odd in ("", "{}", '{"rows_per_s": null}', "[1]", "{"):
        store.client.hset("cq:job:run", "progress", odd)
        assert look(store, MODEL).runs[0].rate == 0.0


def test_a_run_that_a_worker_leads_is_seen_and_stalls_when_nobody_leads_it(store: Store) -> None:
    job = Job(Kind.EMBED_DATASET, MODEL, 0, Lane.BULK, ttl=60_000)
    request = runs.RunRequest(["/in"], "/out", {})
    store.execute(runs.accept_run(runs.RunSubmission(job, request, 3)))
    assert look(store, MODEL).runs == []
    store.execute(ops.beat("w", b"", 60, []))
    store.execute(ops.claim([job.id], "w", 3, ops.Suspicion.ALL))
    store.execute(runs.write_progress(job.id, "w", 9, {"rows_per_s": 2.5}, advanced=False))
    waits(store, 10)
    store.execute(runs.write_progress(job.id, "w", 9, {"rows_per_s": 2.5}, advanced=False))
    assert look(store, MODEL).runs[0].stalled >= 10
    store.execute(ops.beat("w", b"", 60, [(job.id, 4, 0)]))
    store.execute(runs.write_progress(job.id, "w", 9, {"rows_per_s": 2.5}, advanced=False))
    assert look(store, MODEL).runs[0].stalled < 5
    waits(store, 20)
    store.execute(ops.deregister("w"))
    store.execute(runs.reconcile_runs(3, 60))
    assert look(store, MODEL).runs[0].stalled >= 20


def test_rows_are_counted_once_a_shard_is_done(store: Store) -> None:
    shards = []
    for model in (MODEL, runs.led(MODEL)):
        job = Job(Kind.EMBED_SHARD, model, 10, Lane.BULK, ttl=60_000)
        store.execute(submissions.accept([submissions.Submission(job, Inputs(["x"]), 100)]))
        shards.append(job.id)
    store.execute(ops.beat("w", b"x", 60, []))
    store.execute(ops.claim(shards, "w", 3))
    for state in (State.SUCCEEDED, State.SUCCEEDED):
        completions = [ops.Completion(shard, state, JobResult(), 8, 2) for shard in shards]
        store.execute(ops.finish(completions, "w"))  # the second time nothing is left to end
    totals = look(store, MODEL).totals
    assert (totals["rows_done", "bulk", MODEL], totals["rows_failed", "bulk", MODEL]) == (16, 4)
